"""Quantized matrices back to numbers, in plain torch.

Layouts as `moesize.core.weight_formats` counts them; the value of a stored number follows from
the OCP microscaling specification (MXFP4, MXFP8), NVIDIA's NVFP4, the GPTQ and AWQ packers, the
compressed-tensors compressors and the QLoRA paper (NF4, arXiv 2305.14314).

Numbers are scaled in place: at most two copies in float32 stand beside what is stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_never

import torch
from torch import Tensor

from moesize.core.errors import InvalidInputError, UnsupportedError
from moesize.core.weight_formats import (
    BitsAndBytes4Bit,
    BitsAndBytesInt8,
    Fp8Block,
    Fp8PerChannel,
    Fp8PerTensor,
    Gguf,
    GroupInt,
    Int8PerChannel,
    Mxfp4,
    Mxfp8,
    Nvfp4,
    PackQuantized,
    Plain,
    WeightFormat,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

# Names that packers give one part of a matrix, in the order they are looked for.
_NAMES: dict[str, tuple[str, ...]] = {
    "weight": (".weight", "_blocks", ".weight_packed", ".qweight"),
    "scale": (".weight_scale_inv", ".weight_scale", ".scales", "_scales", ".scale", ".SCB"),
    "zero_point": (".qzeros", ".weight_zero_point"),
    "g_idx": (".g_idx", ".weight_g_idx"),
    "weight_shape": (".weight_shape",),
    "global_scale": (".weight_scale_2", ".weight_global_scale"),
    "absmax": (".weight.absmax",),
    "quant_map": (".weight.quant_map",),
    "nested_absmax": (".weight.nested_absmax",),
    "nested_quant_map": (".weight.nested_quant_map",),
    "quant_state": (
        ".weight.quant_state.bitsandbytes__nf4",
        ".weight.quant_state.bitsandbytes__fp4",
    ),
}


def parts_of(state: Mapping[str, Tensor], module: str) -> dict[str, Tensor]:
    """The stored tensors of one matrix under common names (`weight`, `scale`, `zero_point`, ...).

    `reciprocal` marks a global scale that divides (compressed-tensors' `weight_global_scale`).
    """
    parts: dict[str, Tensor] = {}
    for part, suffixes in _NAMES.items():
        for suffix in suffixes:
            if module + suffix in state:
                parts[part] = state[module + suffix]
                if suffix == ".weight_global_scale":
                    parts["reciprocal"] = torch.ones(1)
                break
    if "weight" not in parts:
        raise InvalidInputError(f"the checkpoint holds no matrix {module!r}")
    return parts


def dequantize(
    parts: Mapping[str, Tensor], weight_format: WeightFormat, device: torch.device | None = None
) -> Tensor:
    """One matrix (out, in) in float32 from its stored tensors, named as `parts_of` names them.

    Raises InvalidInputError when a part is missing, UnsupportedError for GGUF block types.
    """
    where = device or parts["weight"].device
    on = {name: tensor.to(where) for name, tensor in parts.items()}
    try:
        return _dequantize(on, weight_format)
    except KeyError as error:
        raise InvalidInputError(f"a quantized matrix lacks its {error.args[0]}") from error


def _dequantize(parts: Mapping[str, Tensor], weight_format: WeightFormat) -> Tensor:
    weight = parts["weight"]
    match weight_format:
        case Plain():
            return weight.float()
        case Fp8PerTensor():
            return weight.float() * parts["scale"].float()
        case Fp8PerChannel() | Int8PerChannel():
            return weight.float() * parts["scale"].float().reshape(-1, 1)
        case Fp8Block():
            return _tiles(
                weight, parts["scale"], weight_format.block_rows, weight_format.block_cols
            )
        case Mxfp4():
            values = _e2m1(weight.reshape(weight.shape[0], -1))
            return _by_group(values, _e8m0(parts["scale"]))
        case Mxfp8():
            return _by_group(weight.to(torch.float32, copy=True), _e8m0(parts["scale"]))
        case Nvfp4():
            overall = parts["global_scale"].float()
            if "reciprocal" in parts:
                overall = 1.0 / overall
            return _by_group(_e2m1(weight), parts["scale"].float() * overall)
        case GroupInt():
            if weight_format.packed_along == "out":
                return _awq(parts, weight_format)
            return _gptq(parts, weight_format)
        case PackQuantized():
            return _packed(parts, weight_format)
        case BitsAndBytes4Bit():
            return _bitsandbytes4(parts, weight_format)
        case BitsAndBytesInt8():
            return weight.float() * (parts["scale"].float() / 127.0).reshape(-1, 1)
        case Gguf():
            raise UnsupportedError("GGUF blocks are not unpacked here", "use a safetensors file")
        case _:
            assert_never(weight_format)


def _tiles(weight: Tensor, scale: Tensor, rows: int, cols: int) -> Tensor:
    """One scale for each tile of rows x cols; the last tiles may be cut short."""
    wide = _scale_values(scale).repeat_interleave(rows, 0).repeat_interleave(cols, 1)
    return weight.to(torch.float32, copy=True).mul_(wide[: weight.shape[0], : weight.shape[1]])


def _scale_values(scale: Tensor) -> Tensor:
    return _e8m0(scale) if scale.dtype == torch.uint8 else scale.float()


def _e8m0(scale: Tensor) -> Tensor:
    """Powers of two: the stored byte is the exponent plus 127."""
    if scale.dtype != torch.uint8:
        return scale.float()
    return torch.exp2(scale.float() - 127.0)


def _e2m1(packed: Tensor) -> Tensor:
    """Two values a byte, the low half first: (out, in / 2) bytes -> (out, in).

    Not by a table: indices of 32 bits are copied into 64 unseen (pytorch
    TensorAdvancedIndexingUtils.h), and 64 are 16 times what is stored.
    """
    halves = torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)
    # As half precision: the sign at bit 15, two bits of exponent from bit 10 on, one of mantissa
    # before it. Its exponents are counted from 15 and those of E2M1 from 1.
    signs = halves.to(torch.int16)
    del halves
    numbers = (signs & 0x7).bitwise_left_shift_(9)
    numbers.bitwise_or_(signs.bitwise_and_(0x8).bitwise_left_shift_(12))
    del signs
    return numbers.view(torch.float16).float().mul_(2.0**14)


def _by_group(values: Tensor, scale: Tensor) -> Tensor:
    """values (out, in), scale (out, groups): each scale serves in / groups neighbours."""
    groups = scale.shape[-1]
    size = -(-values.shape[-1] // groups)
    return values.mul_(scale.repeat_interleave(size, dim=-1)[..., : values.shape[-1]])


def _unpack_words(words: Tensor, bits: int, dim: int, count: int) -> Tensor:
    """Unsigned numbers of `bits` out of int32 words along `dim`, the lowest bits first.

    Three bits do not divide a word: there the bits of the words form one stream.
    """
    moved = words.movedim(dim, -1)
    if 32 % bits == 0:
        # In the type of the words: twice as wide, a large matrix would take gigabytes.
        shifts = torch.arange(0, 32, bits, device=words.device, dtype=words.dtype)
        numbers = (moved.unsqueeze(-1) >> shifts).bitwise_and_((1 << bits) - 1)
        numbers = numbers.flatten(-2)
    else:
        stream = (
            (moved.unsqueeze(-1).long() >> torch.arange(32, device=words.device)) & 1
        ).flatten(-2)
        whole = stream.shape[-1] // bits * bits
        places = 1 << torch.arange(bits, device=words.device)
        numbers = (stream[..., :whole].unflatten(-1, (-1, bits)) * places).sum(-1)
    return numbers[..., :count].movedim(-1, dim)


def _gptq(parts: Mapping[str, Tensor], layout: GroupInt) -> Tensor:
    """qweight (in * bits / 32, out), scales (groups, out), qzeros (groups, out * bits / 32).

    Stored zero points are one too small in the format that AutoGPTQ introduced.
    """
    scale = parts["scale"].float()
    out_features = scale.shape[1]
    in_features = parts["weight"].shape[0] * 32 // layout.bits
    zero = _unpack_words(parts["zero_point"], layout.bits, 1, out_features) + 1
    # Packers let zero minus one wrap around, so one more wraps back.
    zero = zero & ((1 << layout.bits) - 1)
    if "g_idx" in parts:
        group = parts["g_idx"].long()
    else:
        size = in_features if layout.group_size == -1 else layout.group_size
        group = torch.arange(in_features, device=scale.device) // size
    numbers = _unpack_words(parts["weight"], layout.bits, 0, in_features).float()
    return numbers.sub_(zero.float()[group]).mul_(scale[group]).T


# AutoAWQ packs the columns of a word in this order, lowest bits first.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def _awq(parts: Mapping[str, Tensor], layout: GroupInt) -> Tensor:
    """qweight (in, out * bits / 32), scales (groups, out), qzeros (groups, out * bits / 32)."""
    if layout.bits != 4:
        raise UnsupportedError(f"AWQ of {layout.bits} bits is not unpacked")
    scale = parts["scale"].float()
    numbers = _awq_columns(parts["weight"]).float()
    zero = _awq_columns(parts["zero_point"]).float()
    size = numbers.shape[0] // scale.shape[0]
    group = torch.arange(numbers.shape[0], device=scale.device) // size
    return numbers.sub_(zero[group]).mul_(scale[group]).T


def _awq_columns(words: Tensor) -> Tensor:
    numbers = _unpack_words(words, 4, 1, words.shape[1] * 8).unflatten(1, (-1, 8))
    place = torch.tensor(_AWQ_ORDER, device=words.device).argsort()
    return numbers[:, :, place].flatten(1)


def _packed(parts: Mapping[str, Tensor], layout: PackQuantized) -> Tensor:
    """compressed-tensors: weight_packed (out, in * bits / 32), offset by half the range."""
    scale = parts["scale"].float()
    # `weight_shape` is that of the whole matrix, of which a rank may hold a part; of words that are
    # not full it says where the numbers end.
    words = parts["weight"].shape
    in_features = min(int(parts["weight_shape"][1]), words[1] * 32 // layout.bits)
    out_features = words[0]
    offset = 1 << (layout.bits - 1)
    numbers = _unpack_words(parts["weight"], layout.bits, 1, in_features).float()
    size = in_features if layout.group_size == -1 else layout.group_size
    group = torch.arange(in_features, device=scale.device) // size
    if "g_idx" in parts and bool((parts["g_idx"] >= 0).all()):
        group = parts["g_idx"].long()
    if layout.symmetric:
        numbers = numbers.sub_(offset)
    else:
        # Both have the offset.
        zero = _unpack_words(parts["zero_point"], layout.bits, 0, out_features).float()
        numbers = numbers.sub_(zero[:, group])
    return numbers.mul_(scale[:, group])


def _bitsandbytes4(parts: Mapping[str, Tensor], layout: BitsAndBytes4Bit) -> Tensor:
    """Two values a byte, the high half first; absmax for each block of the flat matrix."""
    state = _quant_state(parts["quant_state"])
    flat = parts["weight"].flatten()
    halves = torch.stack((flat >> 4, flat & 0xF), dim=-1).flatten().long()
    values = parts["quant_map"].float()[halves]
    absmax = parts["absmax"]
    if layout.nested:
        codes = parts["nested_quant_map"].float()[absmax.long()]
        nested = parts["nested_absmax"].float()
        size = int(state.get("nested_blocksize", layout.nested_block_elements))
        absmax = codes * nested.repeat_interleave(size)[: codes.numel()]
        absmax = absmax + float(state.get("nested_offset", 0.0))
    size = int(state.get("blocksize", layout.block_elements))
    shape = state["shape"]
    count = shape[0] * shape[1]
    return (values[:count] * absmax.float().repeat_interleave(size)[:count]).reshape(shape)


def _quant_state(raw: Tensor) -> dict[str, Any]:
    """The JSON text that bitsandbytes stores beside a matrix, bounded."""
    import json

    if raw.numel() > 4096:
        raise InvalidInputError("a quantization state of more than 4096 bytes is none")
    try:
        state = json.loads(bytes(raw.cpu().tolist()))
    except ValueError as error:
        raise InvalidInputError("a quantization state is no JSON") from error
    if not isinstance(state, dict) or not _is_shape(state.get("shape")):
        raise InvalidInputError("a quantization state has no shape")
    return state


def _is_shape(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(n, int) and 0 < n < 1 << 26 for n in value)
    )
