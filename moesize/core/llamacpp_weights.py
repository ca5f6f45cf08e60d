"""Which device holds each tensor of a GGUF file, and how many bytes its buffer has.

Sources: llama.cpp 0c1e57098 (libllama 0.5.0) src/llama-model.cpp:load_tensors (layers to devices),
src/llama-model-loader.cpp:create_tensor (overrides), src/llama-arch.cpp:LLM_TENSOR_INFOS (input,
layers, output).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from moesize.core.errors import InvalidDeploymentError
from moesize.core.gguf_view import file_tensor, gguf_architecture, gguf_tensors
from moesize.core.llamacpp_kv import HOST_ALIGNMENT, allocated_bytes
from moesize.core.llamacpp_patterns import Pattern
from moesize.core.records import dataclass
from moesize.core.units import round_up

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from moesize.core.checkpoint import StoredEntry
    from moesize.core.gguf_view import FileTensor
    from moesize.core.model_spec import ModelSpec

HOST = -1
# common/common.h:LLM_FFN_EXPS_REGEX and LLM_FFN_DENSE_REGEX.
EXPERTS_PATTERN = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"

DENSE_PATTERN = r"\.ffn_(up|down|gate)\."
# LLM_TENSOR_LAYER_INPUT: they stay on the host, whatever is offloaded.
_INPUT = (
    "token_embd.weight",
    "position_embd.weight",
    "token_types.weight",
    "per_layer_token_embd.weight",
)
# LLM_TENSOR_LAYER_REPEATING without a block of their own: they go with the first layer.
_FIRST_LAYER = ("embedding_norm.weight", "embedding_norm.bias", "per_layer_model_proj.weight")
# The router's bias of an MTP block is not skipped with the rest of the block in these.
_KEEPS_MTP_BIAS = ("deepseek32", "glm-dsa", "step35")
_ROUTER_BIAS = "exp_probs_b.bias"
# Every device with a layer that needs them has a copy.
_ROPE = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_ATTENTION_NORMS = ("q_norm", "k_norm", "q_a_norm", "kv_a_norm")
_EXPERT_PARTS = {
    "ffn_gate_exps.weight": 0,
    "ffn_gate_up_exps.weight": 0,
    "ffn_up_exps.weight": 1,
    "ffn_down_exps.weight": 2,
}
_EMBEDDING = "token_embd.weight"
_HEAD = "output.weight"
# These make the output before the embedding, so that a tied one exists twice on the host as well
# (src/models/gemma4.cpp).
_OUTPUT_FIRST = ("gemma4",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How layers and tensors are shared out.

    gpu_layers    -ngl: so many of the last layers, the output being one; None = all
    fractions     relative shares of the devices: --tensor-split, or free memory
    overrides     patterns with the device (HOST or a number) of the tensors they are found in;
                  the first one counts
    load_mtp      MTP blocks are loaded
    mapped        the file is mapped into memory: what the host holds is there once
    output_last   the output goes to a GPU after all blocks have (builds of 2025); else before them
    """

    num_gpus: int
    gpu_layers: int | None = None
    fractions: tuple[float, ...] = ()
    overrides: tuple[tuple[str, int], ...] = ()
    load_mtp: bool = False
    mapped: bool = True
    output_last: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceWeights:
    """Weights on one device.

    buffer_bytes     what llama.cpp logs as its model buffer: tensors with padding
    by_group         bytes without padding by parameter group, MTP blocks left out; a tied copy of
                     the embedding is counted under lm_head
    mtp_bytes        the part of the buffer that MTP blocks have
    input_bytes      look-up tables of the input, which no device computes with
    """

    buffer_bytes: int
    by_group: dict[str, int]
    mtp_bytes: int = 0
    input_bytes: int = 0
    num_tensors: int = 0

    @property
    def tensor_bytes(self) -> int:
        """Sum of the groups."""
        return sum(self.by_group.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Every layer's device, and what each device holds.

    layer_device           of each block, MTP blocks included
    experts_on_host        blocks with a routed expert tensor on the host although the block is not
    host_expert_tensors    bytes of gate, up and down of each of these blocks; 0 on the GPU
    host_tensors           of blocks on the host: the largest tensor of each kind, by its name
                           without block and ending
    moved                  tensors that an override moved
    """

    layer_device: tuple[int, ...]
    output_device: int
    gpus: tuple[DeviceWeights, ...]
    host: DeviceWeights
    experts_on_host: tuple[int, ...] = ()
    host_expert_tensors: tuple[tuple[int, int, int], ...] = ()
    host_tensors: tuple[tuple[str, int], ...] = ()
    moved: int = 0


def place(spec: ModelSpec, stored: tuple[StoredEntry, ...], split: Split) -> Placement:
    """The placement of a file's tensors. Kept by the spec, for sweeps ask for it again.

    Raises InvalidDeploymentError for an override that names a device there is not.
    """
    kept: dict[tuple[int, Split], tuple[object, Placement]]
    kept = spec.__dict__.setdefault("_llamacpp_placements", {})
    # `stored` stands beside its placement, so that its identity stays taken.
    key = (id(stored), split)
    if key not in kept:
        kept[key] = (stored, _place(spec, stored, split))
    return kept[key][1]


def layer_devices(num_blocks: int, split: Split) -> tuple[tuple[int, ...], int]:
    """(device of every block, device of the output).

    The last `gpu_layers` of blocks + output are offloaded; such a layer belongs to the first
    device whose cumulative share exceeds (layer - first) / offloaded, in single precision.
    """
    total = num_blocks + 1
    wanted = total if split.gpu_layers is None else min(split.gpu_layers, total)
    offloaded = wanted if split.num_gpus else 0
    first = max(0, num_blocks - offloaded) if split.output_last else total - offloaded
    bounds = _bounds(split)
    devices = []
    for layer in range(total):
        if layer < first or layer - first >= offloaded:
            devices.append(HOST)
            continue
        share = _single((layer - first) / offloaded)
        devices.append(next(i for i, bound in enumerate(bounds) if bound > share))
    return tuple(devices[:-1]), devices[-1]


def _bounds(split: Split) -> list[float]:
    """Cumulative shares, rounded as llama.cpp's floats are."""
    shares = split.fractions or (1.0,) * split.num_gpus
    if len(shares) != split.num_gpus or any(share < 0 for share in shares):
        raise InvalidDeploymentError(
            f"{len(shares)} shares of a tensor split for {split.num_gpus} GPUs",
            "give one positive number for each GPU",
        )
    if split.num_gpus and not sum(shares):
        shares = (1.0,) * split.num_gpus
    sums: list[float] = []
    total = 0.0
    for share in shares:
        total = _single(total + _single(share))
        sums.append(total)
    return [_single(part / total) for part in sums]


def _single(value: float) -> float:
    result: float = struct.unpack("f", struct.pack("f", value))[0]
    return result


def num_blocks(spec: ModelSpec) -> int:
    """Blocks that the file counts: MTP blocks included where the converter keeps them."""
    return gguf_tensors(spec)[0].num_layers


def _place(spec: ModelSpec, stored: Sequence[StoredEntry], split: Split) -> Placement:
    blocks = num_blocks(spec)
    layer_device, output_device = layer_devices(blocks, split)
    overrides = [(Pattern(text), device) for text, device in split.overrides]
    for _, device in overrides:
        if not HOST <= device < split.num_gpus:
            raise InvalidDeploymentError(
                f"a tensor override names GPU {device}; there are {split.num_gpus}",
                "count from 0: CUDA0 is the first one",
            )
    held = _Held(split.num_gpus)
    on_host: dict[int, list[int]] = {}
    kinds: dict[str, int] = {}
    moved = 0
    full_layers = _full_attention_layers(spec)
    keeps_bias = gguf_architecture(spec) in _KEEPS_MTP_BIAS
    for item, tensor in _tensors(spec, stored):
        entry = item.entry
        is_mtp = entry.section in ("mtp", "stored") and bool(entry.layers)
        if is_mtp and not split.load_mtp and not (keeps_bias and tensor.name == _ROUTER_BIAS):
            continue
        group = entry.tensor.group
        if not entry.layers:
            for device in _homes(tensor.name, layer_device, output_device, full_layers):
                target = _override(overrides, tensor.name, device)
                moved += target != device
                if target == HOST and tensor.name in (_HEAD, _EMBEDDING) and not is_mtp:
                    # A tied embedding is the output too; where both are, the head comes later.
                    kinds.setdefault("output", tensor.size_bytes)
                    if tensor.name == _HEAD:
                        kinds["output"] = tensor.size_bytes
                held.add(target, tensor, group, is_input=tensor.name in _INPUT)
            continue
        if any(layer_device[layer] == HOST for layer in entry.layers if layer < blocks):
            for name in _names(tensor):
                kind = name.partition(".")[0]
                kinds[kind] = max(kinds.get(kind, 0), tensor.size_bytes)
        counts: dict[int, int] = {}
        for layer in entry.layers:
            device = layer_device[layer] if layer < len(layer_device) else output_device
            if not overrides:
                counts[device] = counts.get(device, 0) + tensor.copies
                continue
            for name in _names(tensor):
                target = _override(overrides, f"blk.{layer}.{name}", device)
                counts[target] = counts.get(target, 0) + 1
                if target == device:
                    continue
                moved += 1
                if target == HOST and entry.tensor.expert:
                    part = _EXPERT_PARTS.get(name)
                    sizes = on_host.setdefault(layer, [0, 0, 0])
                    if part is not None:
                        sizes[part] = tensor.size_bytes
        for device, count in counts.items():
            held.add(device, tensor, group, count=count, is_mtp=is_mtp)
    if _HEAD not in held.names and _EMBEDDING in held.names and spec.embedding.has_head:
        _tie(spec, stored, held, output_device, split)
    return Placement(
        layer_device=layer_device,
        output_device=output_device,
        gpus=tuple(held.weights(device) for device in range(split.num_gpus)),
        host=held.weights(HOST),
        experts_on_host=tuple(sorted(on_host)),
        host_expert_tensors=tuple((a, b, c) for _, (a, b, c) in sorted(on_host.items())),
        host_tensors=tuple(sorted(kinds.items())),
        moved=moved,
    )


def _tie(
    spec: ModelSpec,
    stored: Sequence[StoredEntry],
    held: _Held,
    output_device: int,
    split: Split,
) -> None:
    """A tied head is a second copy of the embedding, unless both are in the same buffer."""
    twice = gguf_architecture(spec) in _OUTPUT_FIRST and not split.mapped
    if output_device == HOST and not twice:
        return
    for _, tensor in _tensors(spec, stored):
        if tensor.name == _EMBEDDING:
            held.add(output_device, tensor, "lm_head")
            return


def _tensors(
    spec: ModelSpec, stored: Sequence[StoredEntry]
) -> Iterator[tuple[StoredEntry, FileTensor]]:
    for item in stored:
        if item.entry.section != "tower":
            yield item, file_tensor(spec, item)


def _full_attention_layers(spec: ModelSpec) -> tuple[int, ...]:
    """Layers whose rotary factors are loaded: all, in Gemma 4 those without a window."""
    if gguf_architecture(spec) not in _OUTPUT_FIRST:
        return tuple(range(spec.num_layers))
    return tuple(
        layer
        for layer, name in enumerate(spec.layout)
        if all(getattr(mixer, "window", None) is None for mixer in spec.block(name).mixers)
    )


def _names(tensor: FileTensor) -> tuple[str, ...]:
    """Names of the copies of a tensor in a layer; those of norms, which `gguf_name` makes up, as
    files have them.
    """
    if tensor.name == "hidden_norm.weight":
        return ("attn_norm.weight", *("ffn_norm.weight",) * (tensor.copies - 1))
    if tensor.name.startswith(_ATTENTION_NORMS):
        return ("attn_" + tensor.name,) * tensor.copies
    return (tensor.name,) * tensor.copies


def _homes(
    name: str,
    layer_device: tuple[int, ...],
    output_device: int,
    full_layers: tuple[int, ...],
) -> list[int]:
    """Devices of a tensor outside the blocks."""
    if name in _INPUT:
        return [HOST]
    if name in _ROPE:
        return list(dict.fromkeys(layer_device[i] for i in full_layers))
    if name in _FIRST_LAYER:
        return [layer_device[0]]
    return [output_device]


def _override(overrides: Sequence[tuple[Pattern, int]], name: str, device: int) -> int:
    for pattern, target in overrides:
        if pattern.found_in(name):
            return target
    return device


class _Held:
    """What the devices have so far."""

    def __init__(self, num_gpus: int) -> None:
        devices = (HOST, *range(num_gpus))
        self.names: set[str] = set()
        self._groups: dict[int, dict[str, int]] = {device: {} for device in devices}
        self._buffer = dict.fromkeys(devices, 0)
        self._mtp = dict.fromkeys(devices, 0)
        self._input = dict.fromkeys(devices, 0)
        self._tensors = dict.fromkeys(devices, 0)

    def add(
        self,
        device: int,
        tensor: FileTensor,
        group: str,
        *,
        count: int | None = None,
        is_mtp: bool = False,
        is_input: bool = False,
    ) -> None:
        """`count` tensors; as many as the entry has copies if not given."""
        self.names.add(tensor.name)
        count = tensor.copies if count is None else count
        size = tensor.size_bytes
        if device == HOST:
            padded = round_up(size, HOST_ALIGNMENT)
        else:
            padded = allocated_bytes(size, tensor.shape[0], tensor.block_type)
        if not is_mtp:
            groups = self._groups[device]
            groups[group] = groups.get(group, 0) + size * count
        self._buffer[device] += padded * count
        self._tensors[device] += count
        if is_mtp:
            self._mtp[device] += padded * count
        if is_input:
            self._input[device] += padded * count

    def weights(self, device: int) -> DeviceWeights:
        """All that one device has."""
        return DeviceWeights(
            buffer_bytes=self._buffer[device],
            by_group=self._groups[device],
            mtp_bytes=self._mtp[device],
            input_bytes=self._input[device],
            num_tensors=self._tensors[device],
        )
