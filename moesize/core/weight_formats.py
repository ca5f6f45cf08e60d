"""How weights are stored: number formats, GGML block types and weight formats.

A weight format answers one question: which tensors, of how many bytes, does one matrix of
(out_features, in_features) become? in_features is the contraction dimension, GGML's ne0.

Everything is exact in integers of bytes. Layouts were read in the released packages that write or
load them: vLLM 0.32.0, bitsandbytes 0.50.2, GPTQModel 7.7.0, AutoAWQ 0.2.9, compressed-tensors
0.20.0, NVIDIA ModelOpt 0.47.0, transformers 5.19.0, and ggml at commit d99724f2b.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

from moesize.core.errors import InvalidInputError, UnknownNameError
from moesize.core.records import dataclass
from moesize.core.units import ceil_div

if TYPE_CHECKING:
    from collections.abc import Mapping

# --- Number formats -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberFormat:
    """A number format: its name and the width of one element in bits."""

    name: str
    bits: int


_NUMBER_BITS = {
    "float64": 64,
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "float8_e4m3": 8,
    "float8_e5m2": 8,
    "float8_e8m0": 8,
    "float4_e2m1": 4,
    "int64": 64,
    "int32": 32,
    "int16": 16,
    "int8": 8,
    "uint8": 8,
    "bool": 8,
    "int4": 4,
    "uint4": 4,
}
NUMBER_FORMATS: Mapping[str, NumberFormat] = MappingProxyType(
    {name: NumberFormat(name=name, bits=bits) for name, bits in _NUMBER_BITS.items()}
)
# Other spellings: torch, safetensors headers, Hugging Face configs, engine flags.
_NUMBER_ALIASES = {
    "double": "float64",
    "f64": "float64",
    "float": "float32",
    "fp32": "float32",
    "f32": "float32",
    "half": "float16",
    "fp16": "float16",
    "f16": "float16",
    "bf16": "bfloat16",
    "fp8": "float8_e4m3",
    "fp8_e4m3": "float8_e4m3",
    "e4m3": "float8_e4m3",
    "f8_e4m3": "float8_e4m3",
    "float8_e4m3fn": "float8_e4m3",
    "float8_e4m3fnuz": "float8_e4m3",
    "fp8_e5m2": "float8_e5m2",
    "e5m2": "float8_e5m2",
    "f8_e5m2": "float8_e5m2",
    "float8_e8m0fnu": "float8_e8m0",
    "f8_e8m0": "float8_e8m0",
    "ue8m0": "float8_e8m0",
    "float4_e2m1fn_x2": "float4_e2m1",
    "f4": "float4_e2m1",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u8": "uint8",
}


def find_number_format(name: str) -> NumberFormat:
    """The number format called `name` (`bfloat16`, `torch.bfloat16`, `BF16`, `F8_E4M3`, ...).

    Raises UnknownNameError.
    """
    known = NUMBER_FORMATS.get(name)
    if known is not None:
        return known
    key = name.strip().lower().removeprefix("torch.")
    known = NUMBER_FORMATS.get(_NUMBER_ALIASES.get(key, key))
    if known is None:
        raise UnknownNameError("number format", name, near_names(key, NUMBER_FORMATS))
    return known


def number_bytes(number_format: str, elements: int) -> int:
    """Bytes of `elements` numbers laid end to end: `ceil(elements * bits / 8)`.

    Raises UnknownNameError.
    """
    return ceil_div(elements * find_number_format(number_format).bits, 8)


# --- GGUF block types ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockType:
    """A GGML tensor type: `elements_per_block` weights are stored in `bytes_per_block` bytes."""

    name: str
    elements_per_block: int
    bytes_per_block: int

    def row_bytes(self, row_elements: int) -> int:
        """Bytes of one row: `row_elements / elements_per_block * bytes_per_block`.

        Raises InvalidInputError when the row does not divide into whole blocks.
        """
        blocks, rest = divmod(row_elements, self.elements_per_block)
        if rest:
            raise InvalidInputError(
                f"a row of {row_elements} elements does not divide into {self.name} blocks of "
                f"{self.elements_per_block}",
                "choose a type with smaller blocks for this tensor",
            )
        return blocks * self.bytes_per_block


# (elements, bytes); the bytes are the parts of the C struct in order, so that the layout can be
# read off. Source: ggml-org/ggml src/ggml-common.h at d99724f2b. Q8_1 and Q8_K never are in files.
_BLOCK_LAYOUTS = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q4_0": (32, 2 + 16),  # scale, 4-bit values
    "Q4_1": (32, 2 + 2 + 16),  # scale, minimum, 4-bit values
    "Q5_0": (32, 2 + 4 + 16),  # scale, fifth bits, 4-bit values
    "Q5_1": (32, 2 + 2 + 4 + 16),
    "Q8_0": (32, 2 + 32),
    "Q8_1": (32, 2 + 2 + 32),  # scale, scaled sum, values
    "Q2_K": (256, 16 + 64 + 2 + 2),  # 4-bit scales and minimums, values, two super-scales
    "Q3_K": (256, 32 + 64 + 12 + 2),  # third bits, values, 6-bit scales, super-scale
    "Q4_K": (256, 2 + 2 + 12 + 128),  # two super-scales, 6-bit scales and minimums, values
    "Q5_K": (256, 2 + 2 + 12 + 32 + 128),
    "Q6_K": (256, 128 + 64 + 16 + 2),  # low bits, high bits, scales, super-scale
    "Q8_K": (256, 4 + 256 + 32),  # float scale, values, sums of 16
    "IQ1_S": (256, 2 + 32 + 16),  # super-scale, grid indices, high bits and scales
    "IQ1_M": (256, 32 + 16 + 8),  # grid indices, high bits and shifts, scales
    "IQ2_XXS": (256, 2 + 64),
    "IQ2_XS": (256, 2 + 64 + 8),
    "IQ2_S": (256, 2 + 64 + 8 + 8),
    "IQ3_XXS": (256, 2 + 96),
    "IQ3_S": (256, 2 + 64 + 8 + 32 + 4),  # super-scale, indices, high bits, signs, scales
    "IQ4_NL": (32, 2 + 16),
    "IQ4_XS": (256, 2 + 2 + 4 + 128),  # super-scale, high and low scale bits, values
    "TQ1_0": (256, 48 + 4 + 2),
    "TQ2_0": (256, 64 + 2),
    "MXFP4": (32, 1 + 16),  # E8M0 exponent, values
    "NVFP4": (64, 4 + 32),  # one E4M3 scale for 16 values
    "Q1_0": (128, 2 + 16),
    "Q2_0": (64, 2 + 16),
}
BLOCK_TYPES: Mapping[str, BlockType] = MappingProxyType(
    {
        name: BlockType(name=name, elements_per_block=elements, bytes_per_block=size_bytes)
        for name, (elements, size_bytes) in _BLOCK_LAYOUTS.items()
    }
)

# What llama.cpp's quantizer can write: file type -> the type of a tensor that no rule singles out
# (`llama_ftype_get_default_type`, ggml-org/llama.cpp src/llama-quant.cpp at 0c1e57098).
GGUF_FILE_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "F32": "F32",
        "F16": "F16",
        "BF16": "BF16",
        "Q8_0": "Q8_0",
        "Q6_K": "Q6_K",
        "Q5_K_M": "Q5_K",
        "Q5_K_S": "Q5_K",
        "Q5_1": "Q5_1",
        "Q5_0": "Q5_0",
        "Q4_K_M": "Q4_K",
        "Q4_K_S": "Q4_K",
        "Q4_1": "Q4_1",
        "Q4_0": "Q4_0",
        "IQ4_NL": "IQ4_NL",
        "IQ4_XS": "IQ4_XS",
        "MXFP4_MOE": "MXFP4",
        "Q3_K_L": "Q3_K",
        "Q3_K_M": "Q3_K",
        "Q3_K_S": "Q3_K",
        "IQ3_M": "IQ3_S",
        "IQ3_S": "IQ3_S",
        "IQ3_XS": "IQ3_S",
        "IQ3_XXS": "IQ3_XXS",
        "Q2_K": "Q2_K",
        "Q2_K_S": "Q2_K",
        "Q2_0": "Q2_0",
        "IQ2_M": "IQ2_S",
        "IQ2_S": "IQ2_XS",
        "IQ2_XS": "IQ2_XS",
        "IQ2_XXS": "IQ2_XXS",
        "TQ2_0": "TQ2_0",
        "TQ1_0": "TQ1_0",
        "IQ1_M": "IQ1_M",
        "IQ1_S": "IQ1_S",
        "Q1_0": "Q1_0",
    }
)


def find_block_type(name: str) -> BlockType:
    """The GGML tensor type called `name`, in any case. Raises UnknownNameError."""
    known = BLOCK_TYPES.get(name) or BLOCK_TYPES.get(name.strip().upper())
    if known is None:
        raise UnknownNameError("GGUF tensor type", name, near_names(name.upper(), BLOCK_TYPES))
    return known


# --- Weight formats -----------------------------------------------------------------------------

Held: TypeAlias = Literal["file", "vllm_load", "vllm"]
"""Where a matrix is held.

`file`: the tensors of a published checkpoint, which is also what transformers keeps.
`vllm_load`: the parameters that vLLM creates before it reads the checkpoint (`create_weights`).
`vllm`: what is left after vLLM has rearranged them for its kernels, while it serves.

`vllm` leaves out what depends on the kernel chosen for a GPU: zero-padding to kernel tiles
(nothing when both dimensions are multiples of 128) and padding of MXFP4 experts, for which the
caller passes padded dimensions.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One stored tensor of a quantized matrix; `elements` counts elements of its stored dtype."""

    name: str
    dtype: str
    elements: int
    size_bytes: int


class _MatrixFormat(ABC):
    """What every weight format has in common."""

    __slots__ = ()

    @abstractmethod
    def components(
        self, out_features: int, in_features: int, *, held: Held = "file"
    ) -> tuple[Component, ...]:
        """The tensors that one matrix of (out_features, in_features) is stored as."""

    def matrix_bytes(self, out_features: int, in_features: int, *, held: Held = "file") -> int:
        """Bytes of one matrix with everything that belongs to it: the sum of `components`.

        Raises InvalidInputError for dimensions that the format cannot hold.
        """
        return sum(
            part.size_bytes for part in self.components(out_features, in_features, held=held)
        )


def _component(name: str, dtype: str, elements: int) -> Component:
    return Component(
        name=name, dtype=dtype, elements=elements, size_bytes=number_bytes(dtype, elements)
    )


def _check_dimensions(out_features: int, in_features: int) -> None:
    if out_features < 1 or in_features < 1:
        raise InvalidInputError(
            f"a weight matrix of {out_features} x {in_features} has no elements",
            "both dimensions are at least 1",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain(_MatrixFormat):
    """Not quantized: `out * in * element`."""

    dtype: str

    def components(
        self, out_features: int, in_features: int, *, held: Held = "file"
    ) -> tuple[Component, ...]:
        """One tensor, the same everywhere."""
        del held
        _check_dimensions(out_features, in_features)
        return (_component("weight", self.dtype, out_features * in_features),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8PerTensor(_MatrixFormat):
    """FP8 with one scale for the matrix: `out * in + 4`, `+ 4` with a static input scale.

    vLLM 0.32.0 `quantization/fp8.py` and `modelopt.py` (FP8). A fused layer of vLLM ends with one
    scale instead of one for each part: a few bytes a layer, left out.
    """

    static_input_scale: bool = False

    def components(
        self, out_features: int, in_features: int, *, held: Held = "file"
    ) -> tuple[Component, ...]:
        """Weight, weight scale and, when activations are quantized statically, their scale."""
        del held
        _check_dimensions(out_features, in_features)
        parts = (
            _component("weight", "float8_e4m3", out_features * in_features),
            _component("scale", "float32", 1),
        )
        return (
            (*parts, _component("input_scale", "float32", 1)) if self.static_input_scale else parts
        )


def _per_channel(
    weight_dtype: str, scale_dtype: str, out_features: int, in_features: int, held: Held
) -> tuple[Component, ...]:
    _check_dimensions(out_features, in_features)
    return (
        _component("weight", weight_dtype, out_features * in_features),
        _component("scale", scale_dtype if held == "file" else "float32", out_features),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8PerChannel(_MatrixFormat):
    """FP8 with one scale for each row (output channel): `out * in + out * scale`.

    `scale_dtype` is that of the checkpoint; compressed-tensors writes the model's dtype
    (`quantization/lifecycle/initialize.py`). vLLM always holds float32
    (`quantization/utils/fp8_utils.py:create_fp8_scale_parameter`).
    """

    scale_dtype: str = "bfloat16"

    def components(
        self, out_features: int, in_features: int, *, held: Held = "file"
    ) -> tuple[Component, ...]:
        """Weight and row scales."""
        return _per_channel("float8_e4m3", self.scale_dtype, out_features, in_features, held)


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8PerChannel(_MatrixFormat):
    """INT8 with one scale for each row (output channel): `out * in + out * scale`.

    Scales as for Fp8PerChannel; vLLM 0.32.0 `compressed_tensors_w8a8_int8.py`.
    """

    scale_dtype: str = "bfloat16"

    def components(
        self, out_features: int, in_features: int, *, held: Held = "file"
    ) -> tuple[Component, ...]:
        """Weight and row scales."""
        return _per_channel("int8", self.scale_dtype, out_features, in_features, held)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Block(_MatrixFormat):
    """FP8 with one scale for each tile: `out * in + ceil(out/rows) * ceil(in/cols) * scale`.

    DeepSeek-V3's layout (`weight` and `weight_scale_inv`); vLLM 0.32.0 `quantization/fp8.py`.
    Leaves out that DeepGEMM may lay the scales out anew when loading.
    """

    block_rows: int = 128
    block_cols: int = 128
    scale_dtype: str = "float32"

    def components(
        self, out_features: int, in_features: int, *, held: Held = "file"
    ) -> tuple[Component, ...]:
        """Weight and tile scales; a part of a tile counts as a whole one, in both dimensions."""
        del held
        _check_dimensions(out_features, in_features)
        tiles = ceil_div(out_features, self.block_rows) * ceil_div(in_features, self.block_cols)
        return (
            _component("weight", "float8_e4m3", out_features * in_features),
            _component("scale", self.scale_dtype, tiles),
        )


_PACK_BITS = 32  # GPTQ, AWQ and compressed-tensors pack into int32 words.


def _words(elements: int, bits: int) -> int:
    return ceil_div(elements * bits, _PACK_BITS)


def _num_groups(in_features: int, group_size: int) -> int:
    return 1 if group_size == -1 else ceil_div(in_features, group_size)


def _check_group_int(bits: int, group_size: int) -> None:
    if bits not in (2, 3, 4, 8) or (group_size != -1 and group_size < 1):
        raise InvalidInputError(
            f"{bits}-bit weights in groups of {group_size} are not a known layout",
            "bits are 2, 3, 4 or 8; group_size is at least 1, or -1 for whole rows",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupInt(_MatrixFormat):
    """Integer weights in groups along in_features, as GPTQ and AutoAWQ store them.

    `weight + groups * out * scale + zero points + g_idx`; words of 32 bits. GPTQ packs along
    in_features and stores zero points even when symmetric, and one int32 for each input (g_idx)
    even without act_order; AWQ (`packed_along="out"`) has no g_idx. Sources: GPTQModel 7.7.0
    `nn_modules/qlinear`, AutoAWQ 0.2.9 `modules/linear/gemm.py`.
    """

    bits: int
    group_size: int
    symmetric: bool
    act_order: bool = False
    zero_points_stored: bool = True
    g_idx_stored: bool = True
    packed_along: Literal["in", "out"] = "in"
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        _check_group_int(self.bits, self.group_size)

    def components(
        self, out_features: int, in_features: int, *, held: Held = "file"
    ) -> tuple[Component, ...]:
        """Weight, scales, zero points, g_idx.

        vLLM 0.32.0 never loads g_idx (act_order within groups is refused there) and drops the zero
        points of symmetric weights when it repacks. Left out: g_idx and a sort order that earlier
        releases keep with act_order (8 bytes for each input), and the zero biases that 0.32.0
        creates for GPTQ experts (w13_bias, w2_bias: 0.5 MB a layer for Mixtral).
        """
        _check_dimensions(out_features, in_features)
        groups = _num_groups(in_features, self.group_size)
        if self.packed_along == "out":
            self._check_divides(out_features, in_features)
            words = in_features * _words(out_features, self.bits)
        else:
            words = _words(in_features, self.bits) * out_features
        parts = [
            _component("weight", "int32", words),
            _component("scale", self.scale_dtype, groups * out_features),
        ]
        if self.zero_points_stored and not (self.symmetric and held == "vllm"):
            zero_words = groups * _words(out_features, self.bits)
            parts.append(_component("zero_point", "int32", zero_words))
        if self.g_idx_stored and held == "file":
            parts.append(_component("g_idx", "int32", in_features))
        return tuple(parts)

    def _check_divides(self, out_features: int, in_features: int) -> None:
        # AutoAWQ refuses such layers itself (WQLinear_GEMM.__init__).
        per_word = _PACK_BITS // self.bits
        if out_features % per_word or (self.group_size != -1 and in_features % self.group_size):
            raise InvalidInputError(
                f"AWQ cannot hold a matrix of {out_features} x {in_features}: out_features must be "
                f"a multiple of {per_word} and in_features of the group size {self.group_size}",
                "leave this matrix unquantized or choose another scheme",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackQuantized(_MatrixFormat):
    """compressed-tensors `pack-quantized`: integer weights in groups, packed along in_features.

    `out * ceil(in * bits / 32) * 4 + groups * out * scale + 16`, and packed zero points when not
    symmetric. The 16 bytes are `weight_shape`, two int64. Source: compressed-tensors 0.20.0
    `compressors/pack_quantized`; vLLM 0.32.0 `compressed_tensors_wNa16.py` creates the same.
    """

    bits: int
    group_size: int
    symmetric: bool = True
    scale_dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        _check_group_int(self.bits, self.group_size)

    def components(
        self, out_features: int, in_features: int, *, held: Held = "file"
    ) -> tuple[Component, ...]:
        """Weight, scales, shape and zero points, the same everywhere."""
        del held
        _check_dimensions(out_features, in_features)
        groups = _num_groups(in_features, self.group_size)
        parts = (
            _component("weight", "int32", out_features * _words(in_features, self.bits)),
            _component("scale", self.scale_dtype, groups * out_features),
            _component("weight_shape", "int64", 2),
        )
        if self.symmetric:
            return parts
        return (*parts, _component("zero_point", "int32", groups * _words(out_features, self.bits)))


@dataclass(frozen=True, slots=True, kw_only=True)
class BitsAndBytes4Bit(_MatrixFormat):
    """bitsandbytes NF4 or FP4: two weights a byte, one absmax for each block of the flat matrix.

    `ceil(n/2) + ceil(n/64) * 4 + 64`, n = out * in; 64 bytes are the table of 16 values. Nested
    ("double quantization"): absmax is one byte, with a second absmax for 256 of them, and a
    table of 256 values (1,024 bytes). bitsandbytes 0.50.2 `functional.py:QuantState`.
    Leaves out the JSON text of the state in a checkpoint, 80-200 bytes a matrix.
    """

    nested: bool = False
    block_elements: int = 64
    nested_block_elements: int = 256

    def components(
        self, out_features: int, in_features: int, *, held: Held = "file"
    ) -> tuple[Component, ...]:
        """Weight, absmax, value table; nested absmax and its table.

        vLLM (in-tree up to 0.24.0) turns a nested absmax back into float32 while loading
        (`bitsandbytes_loader.py:_dequantize_dq`), so there nesting saves nothing.
        """
        _check_dimensions(out_features, in_features)
        elements = out_features * in_features
        blocks = ceil_div(elements, self.block_elements)
        nested = self.nested and held == "file"
        parts = (
            _component("weight", "uint8", ceil_div(elements, 2)),
            _component("absmax", "uint8" if nested else "float32", blocks),
            _component("quant_map", "float32", 16),
        )
        if not nested:
            return parts
        nested_blocks = ceil_div(blocks, self.nested_block_elements)
        return (
            *parts,
            _component("nested_absmax", "float32", nested_blocks),
            _component("nested_quant_map", "float32", 256),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BitsAndBytesInt8(_MatrixFormat):
    """bitsandbytes LLM.int8(): `out * in + 4 * out`, and one byte `weight_format` in a checkpoint.

    bitsandbytes 0.50.2 `nn/modules.py:Linear8bitLt._save_to_state_dict`.
    """

    def components(
        self, out_features: int, in_features: int, *, held: Held = "file"
    ) -> tuple[Component, ...]:
        """Weight, row statistics (SCB) and, in a checkpoint, the format byte."""
        _check_dimensions(out_features, in_features)
        parts = (
            _component("weight", "int8", out_features * in_features),
            _component("scale", "float32", out_features),
        )
        return (*parts, _component("weight_format", "uint8", 1)) if held == "file" else parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Mxfp4(_MatrixFormat):
    """OCP MXFP4: two values a byte and one E8M0 scale for 32 along in_features.

    `out * (ceil(in/2) + ceil(in/32))`: gpt-oss `*_blocks` and `*_scales`; compressed-tensors
    0.20.0 `compressors/mxfp4`.
    """

    def components(
        self, out_features: int, in_features: int, *, held: Held = "file"
    ) -> tuple[Component, ...]:
        """Weight and scales, the same everywhere for the dimensions given."""
        del held
        _check_dimensions(out_features, in_features)
        return (
            _component("weight", "uint8", out_features * ceil_div(in_features, 2)),
            _component("scale", "float8_e8m0", out_features * ceil_div(in_features, 32)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mxfp8(_MatrixFormat):
    """OCP MXFP8: `out * (in + ceil(in/32))`, one E8M0 scale for 32 along in_features.

    vLLM 0.32.0 `quantization/online/mxfp8.py`; compressed-tensors 0.20.0 `compressors/mxfp8`.
    """

    def components(
        self, out_features: int, in_features: int, *, held: Held = "file"
    ) -> tuple[Component, ...]:
        """Weight and scales."""
        del held
        _check_dimensions(out_features, in_features)
        return (
            _component("weight", "float8_e4m3", out_features * in_features),
            _component("scale", "float8_e8m0", out_features * ceil_div(in_features, 32)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Nvfp4(_MatrixFormat):
    """NVFP4: two values a byte, one E4M3 scale for 16 along in_features, one float32 scale.

    `out * (ceil(in/2) + ceil(in/16)) + 4`, `+ 4` with a static input scale: `weight`,
    `weight_scale`, `weight_scale_2`, `input_scale` of NVIDIA ModelOpt; vLLM 0.32.0
    `quantization/modelopt.py`. Leaves out the padding of the scales to 128 rows and 4 columns by
    the Blackwell kernels: nothing when out is a multiple of 128 and in of 64.
    """

    static_input_scale: bool = True

    def components(
        self, out_features: int, in_features: int, *, held: Held = "file"
    ) -> tuple[Component, ...]:
        """Weight, block scales, scale of the matrix and scale of its input."""
        del held
        _check_dimensions(out_features, in_features)
        parts = (
            _component("weight", "uint8", out_features * ceil_div(in_features, 2)),
            _component("scale", "float8_e4m3", out_features * ceil_div(in_features, 16)),
            _component("global_scale", "float32", 1),
        )
        return (
            (*parts, _component("input_scale", "float32", 1)) if self.static_input_scale else parts
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Gguf(_MatrixFormat):
    """A GGML block type: `out * in / elements_per_block * bytes_per_block`."""

    block_type: BlockType

    def components(
        self, out_features: int, in_features: int, *, held: Held = "file"
    ) -> tuple[Component, ...]:
        """One tensor; scales lie inside its blocks. Raises InvalidInputError for a row of
        in_features that does not divide into blocks."""
        del held
        _check_dimensions(out_features, in_features)
        return (
            Component(
                name="weight",
                dtype=self.block_type.name,
                elements=out_features * in_features,
                size_bytes=out_features * self.block_type.row_bytes(in_features),
            ),
        )


WeightFormat: TypeAlias = (
    Plain
    | Fp8PerTensor
    | Fp8PerChannel
    | Fp8Block
    | Int8PerChannel
    | GroupInt
    | PackQuantized
    | BitsAndBytes4Bit
    | BitsAndBytesInt8
    | Mxfp4
    | Mxfp8
    | Nvfp4
    | Gguf
)


def near_names(name: str, known: Mapping[str, object]) -> list[str]:
    """The three most similar names."""
    # Only on the way to an error message, so difflib is not paid for otherwise.
    import difflib

    return difflib.get_close_matches(name, list(known), n=3)
