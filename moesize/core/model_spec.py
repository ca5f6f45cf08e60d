"""What a model is: blocks, how they are stacked, embeddings, MTP blocks and towers.

A spec states facts about an architecture and never a byte count; `inventory` lists its tensors.

Symbols: L layers, H hidden size, V vocabulary.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from moesize.core.feed_forward import FeedForward
from moesize.core.mixers import Mixer
from moesize.core.records import dataclass
from moesize.core.tensors import GROUPS, Tensor

# Element types that checkpoints hold unquantized weights in.
DTYPES = ("bfloat16", "float16", "float32")
MAX_LAYERS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraTensor:
    """A tensor that no kind describes: hyper-connections, scalars, per-layer projections.

    split: "" (replicated), "out" or "in", as for any other matrix.
    """

    role: str
    shape: tuple[int, ...]
    copies: int = 1
    split: Literal["", "out", "in"] = ""
    dtype: str = ""
    matmul: bool = False

    def __post_init__(self) -> None:
        if self.role.partition(".")[0] not in GROUPS:
            raise ValueError(f"role {self.role!r} must begin with one of {', '.join(GROUPS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One kind of layer: its mixers, its feed-forwards, and its norms over the hidden size.

    num_norms    weight vectors of hidden size; norm_bias adds a bias to each
    A layer may have several mixers side by side (attention and Mamba) or none (NAS models).
    """

    name: str
    mixers: tuple[Mixer, ...] = ()
    feed_forwards: tuple[FeedForward, ...] = ()
    num_norms: int = 2
    norm_bias: bool = False
    extra: tuple[ExtraTensor, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRun:
    """`repeat` times the listed blocks, in this order."""

    blocks: tuple[str, ...]
    repeat: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """Token embedding, positions, and the output head.

    tied              the head is the token embedding; stored_tied_head: the published files hold
                      it a second time all the same (a fact of the checkpoint, not of the config)
    positions         learned absolute positions (rows); 0 with rotary or no positions
    per_layer_*       one more look-up of V' rows by layers * size (Gemma 3n and 4)
    head_bias         the head has a bias of V
    norm              a norm right after the look-up (BERT, BLOOM)
    size              width of the table when it is not the hidden size (OPT-350m, ALBERT); 0 = H
    """

    vocab_size: int
    tied: bool
    stored_tied_head: bool = False
    positions: int = 0
    token_types: int = 0
    per_layer_vocab_size: int = 0
    per_layer_size: int = 0
    head_bias: bool = False
    has_head: bool = True
    norm: bool = False
    norm_bias: bool = False
    head_vocab_size: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiTokenPrediction:
    """Extra blocks that guess further tokens; engines load them for speculation only.

    layers            the block of each MTP layer, in order
    norms             vectors of hidden size per MTP layer (enorm, hnorm, final)
    projection_inputs columns of eh_proj in hidden sizes (2: previous state and embedding); 0 = none
    stores_embedding, stores_head   the published files repeat them in every MTP layer
    """

    layers: tuple[str, ...]
    norms: int = 3
    projection_inputs: int = 2
    stores_embedding: bool = False
    stores_head: bool = False
    shared_head: bool = True
    extra: tuple[ExtraTensor, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerTensor:
    """`copies` equal tensors of a tower; split as in ExtraTensor, in `units` (heads) if given."""

    name: str
    shape: tuple[int, ...]
    copies: int = 1
    split: Literal["", "out", "in"] = ""
    units: int = 0

    def __post_init__(self) -> None:
        if len(self.shape) < {"": 0, "out": 1, "in": 2}[self.split]:
            raise ValueError(f"{self.name}: nothing to split in {len(self.shape)} sizes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """A vision or audio encoder with its projector, as counted tensors.

    kind "vision", "audio" or "projector". tensor_parallel False: every rank holds all of it.
    """

    name: str
    kind: Literal["vision", "audio", "projector"]
    tensors: tuple[TowerTensor, ...]
    tensor_parallel: bool = True
    num_layers: int = 0
    hidden_size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationRule:
    """Matrices whose module name matches one of `modules` are stored in `format`.

    modules   regular expressions, searched in the full module name; empty = every matrix
    format    "keep" (the model's dtype) or a key of `checkpoint.FORMATS`; the rest: its parameters
    """

    format: str
    modules: tuple[str, ...] = ()
    bits: int = 0
    group_size: int = 0
    symmetric: bool = True
    act_order: bool = False
    nested: bool = False
    block_rows: int = 0
    block_cols: int = 0
    scale_dtype: str = ""
    static_input_scale: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorTypes:
    """The GGML type of a tensor of a GGUF file, in some layers (none: outside of layers).

    name   `core.gguf`'s, without the block: `ffn_down.weight`
    """

    name: str
    type: str
    layers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointQuantization:
    """How the published files are quantized: the first rule that matches a matrix decides.

    method     as the config names it: gptq, awq, fp8, compressed-tensors, modelopt, ...
    towers     True when the vision and audio towers are quantized as well
    kv_dtype   number format of the KV cache that the checkpoint asks for; "" = none
    file_type, tensor_types   of a GGUF file (method "gguf"): what it says it is of ("" = nothing
               that is known), and the type of every tensor
    Embeddings, norms, routers and whatever is no matrix are never quantized; a head only when
    `quantized_head` says so.
    """

    method: str
    rules: tuple[QuantizationRule, ...]
    quantized_head: bool = False
    towers: bool = False
    kv_dtype: str = ""
    file_type: str = ""
    tensor_types: tuple[TensorTypes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryTable:
    """One cos/sin cache that engines keep: positions x rotary_dim elements.

    dtype     float32 where engines keep it so (yarn); empty = the model's dtype
    scaling   rope type as configs name it (llama3, longrope, yarn); empty = none or not said
    """

    positions: int
    rotary_dim: int
    dtype: str = ""
    copies: int = 1
    scaling: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in ("", *DTYPES):
            raise ValueError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the facts of a spec come from, and what they were checked against.

    total_elements   the published element count that the inventory was checked against; None = none
    """

    config: str
    checked: str
    total_elements: int | None = None
    total_source: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A whole model.

    text_type  model type of the language model inside a multimodal wrapper; empty = model_type
    naming     family whose checkpoint tensor names are used (`naming.NAMES`)
    blocks     the kinds of layer; runs stack them
    encoder    runs of the encoder in an encoder-decoder model
    stored_extra   what the published files hold beside the parameters: registered buffers, weights
                   that engines do not load
    """

    id: str
    title: str
    model_type: str
    hub_id: str
    aliases: tuple[str, ...] = ()
    dtype: str
    hidden_size: int
    max_context: int
    embedding: Embedding
    blocks: tuple[Block, ...]
    layers: tuple[LayerRun, ...]
    encoder_layers: tuple[LayerRun, ...] = ()
    num_final_norms: int = 1
    final_norm_bias: bool = False
    extra: tuple[ExtraTensor, ...] = ()
    stored_extra: tuple[ExtraTensor, ...] = ()
    mtp: MultiTokenPrediction | None = None
    towers: tuple[Tower, ...] = ()
    rotary: tuple[RotaryTable, ...] = ()
    quantization: CheckpointQuantization | None = None
    naming: str = "default"
    text_type: str = ""
    source: Source
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        for runs in (self.layers, self.encoder_layers):
            # Counted before it is expanded: a repeat of 10^12 must not be tried.
            stacked = sum(run.repeat * len(run.blocks) for run in runs)
            if stacked > MAX_LAYERS:
                raise ValueError(f"{stacked:,} layers; more than {MAX_LAYERS:,} is no model")
        # An encoder-only model (BERT) has no decoder layers.
        if not any(run.repeat and run.blocks for run in (*self.layers, *self.encoder_layers)):
            raise ValueError("layers and encoder_layers stack no block")
        names = [block.name for block in self.blocks]
        if len(set(names)) != len(names):
            raise ValueError(f"block names repeat: {names}")
        used = {name for run in (*self.layers, *self.encoder_layers) for name in run.blocks}
        if self.mtp is not None:
            used.update(self.mtp.layers)
        missing = sorted(used - set(names))
        if missing:
            raise ValueError(f"layers name blocks that do not exist: {missing}")
        unused = sorted(set(names) - used)
        if unused:
            raise ValueError(f"blocks that no layer uses: {unused}")

    @cached_property
    def layout(self) -> tuple[str, ...]:
        """Block name of every decoder layer, in order; its length is the number of layers."""
        return _expand(self.layers)

    @cached_property
    def encoder_layout(self) -> tuple[str, ...]:
        """Block name of every encoder layer."""
        return _expand(self.encoder_layers)

    @property
    def num_layers(self) -> int:
        """Decoder layers; MTP layers not included."""
        return len(self.layout)

    def block(self, name: str) -> Block:
        """The block of that name; KeyError if there is none."""
        return self._blocks_by_name[name]

    @cached_property
    def _blocks_by_name(self) -> dict[str, Block]:
        return {block.name: block for block in self.blocks}

    @cached_property
    def block_tensors(self) -> dict[str, tuple[Tensor, ...]]:
        """Tensors of one layer of each block, by block name."""
        from moesize.core.inventory import tensors_of_block

        return {block.name: tensors_of_block(block, self.hidden_size) for block in self.blocks}


def _expand(runs: tuple[LayerRun, ...]) -> tuple[str, ...]:
    return tuple(name for run in runs for _ in range(run.repeat) for name in run.blocks)
