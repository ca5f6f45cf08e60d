"""The chosen layers of a model as one rank computes them: a spec of its own.

Formulas of `core.compute` take a whole model. A model that has only the chosen layers, and in each
of them only the rank's heads and columns, costs what the rank computes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, assert_never

from moesize.core.attention import CompressedAttention, GroupedQueryAttention, LatentAttention
from moesize.core.errors import UnsupportedError
from moesize.core.feed_forward import DenseMlp, FeedForward
from moesize.core.model_spec import Block, ExtraTensor, LayerRun, ModelSpec
from moesize.core.recurrent import (
    GatedDeltaNet,
    KimiDeltaAttention,
    LightningAttention,
    Mamba1,
    Mamba2,
    ShortConv,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moesize.core.mixers import Mixer


def units_of_rank(units: int, size: int, *, replicate: bool = False) -> int:
    """Heads or columns of one rank. Raises UnsupportedError where they do not divide."""
    if units % size == 0:
        return units // size
    if replicate and size % units == 0:
        return 1
    raise UnsupportedError(f"{units} heads or columns do not divide into {size} ranks")


def rank_spec(spec: ModelSpec, layers: Sequence[int], size: int = 1) -> ModelSpec:
    """The layers `layers` of a model, of which one of `size` ranks computes its part."""
    names = tuple(spec.layout[index] for index in layers)
    blocks = tuple(_block(block, size) for block in spec.blocks if block.name in names)
    if not names:
        raise UnsupportedError("a model without decoder layers has no forward pass")
    embedding = spec.embedding
    if size > 1:
        head = embedding.head_vocab_size or embedding.vocab_size
        embedding = replace(embedding, head_vocab_size=units_of_rank(head, size))
    return replace(
        spec,
        blocks=blocks,
        layers=(LayerRun(blocks=names),),
        encoder_layers=(),
        mtp=None,
        towers=(),
        embedding=embedding,
        extra=tuple(_extra(tensor, size) for tensor in spec.extra),
    )


def _block(block: Block, size: int) -> Block:
    if size == 1:
        return block
    return replace(
        block,
        mixers=tuple(rank_mixer(mixer, size) for mixer in block.mixers),
        feed_forwards=tuple(_feed_forward(part, size) for part in block.feed_forwards),
        extra=tuple(_extra(tensor, size) for tensor in block.extra),
    )


def _extra(tensor: ExtraTensor, size: int) -> ExtraTensor:
    """A tensor that no kind describes, with the rows (`out`) or columns (`in`) of one rank."""
    if size == 1 or not tensor.split:
        return tensor
    rows, *columns = tensor.shape
    if tensor.split == "out":
        return replace(tensor, shape=(units_of_rank(rows, size), *columns))
    return replace(tensor, shape=(rows, units_of_rank(columns[0], size), *columns[1:]))


def rank_mixer(mixer: Mixer, size: int) -> Mixer:
    """The mixer with the heads of one rank; KV heads and state groups repeat where they must."""

    def part(name: str, *, replicate: bool = False) -> dict[str, Any]:
        return {name: units_of_rank(getattr(mixer, name), size, replicate=replicate)}

    if size == 1:
        return mixer
    match mixer:
        case GroupedQueryAttention():
            index = part("index_heads", replicate=True) if mixer.index_heads else {}
            groups = part("num_kv_heads", replicate=True)
            return replace(mixer, **part("num_heads"), **groups, **index)
        case LatentAttention() | KimiDeltaAttention():
            return replace(mixer, **part("num_heads"))
        case LightningAttention():
            return replace(mixer, **part("num_heads"), **part("num_kv_heads"))
        case GatedDeltaNet():
            return replace(mixer, **part("num_k_heads"), **part("num_v_heads"))
        case Mamba2():
            groups = part("num_groups", replicate=True)
            return replace(mixer, **part("num_heads"), **groups)
        case Mamba1():
            return replace(mixer, **part("inner_size"))
        case ShortConv():
            return replace(mixer, **part("size"))
        case CompressedAttention():
            return replace(mixer, **part("num_heads"), **part("output_groups"))
        case _:
            assert_never(mixer)


def _feed_forward(part: FeedForward, size: int) -> FeedForward:
    width = units_of_rank(part.intermediate_size, size)
    if isinstance(part, DenseMlp):
        return replace(part, intermediate_size=width)
    shared = part.shared
    if shared is not None:
        own = units_of_rank(shared.intermediate_size, size)
        shared = replace(shared, intermediate_size=own)
    return replace(part, intermediate_size=width, shared=shared)
