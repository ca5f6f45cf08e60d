"""How weights are stored: number formats, weight formats and the schemes that users name.

A weight format answers one question: which tensors, of how many bytes, does one matrix of
(out_features, in_features) become? in_features is the contraction dimension, GGML's ne0.
A scheme is a weight format together with the parameters that it leaves in the model's own dtype.

Everything is exact in integers of bytes. Layouts were read in the released packages that write or
load them: vLLM 0.32.0, bitsandbytes 0.50.2, GPTQModel 7.7.0, AutoAWQ 0.2.9, compressed-tensors
0.20.0, NVIDIA ModelOpt 0.47.0, transformers 5.19.0, and ggml at commit d99724f2b.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

from moesize.core.errors import InvalidInputError, UnknownNameError, UnsupportedError
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
        raise UnknownNameError("number format", name, _near(key, NUMBER_FORMATS))
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
        raise UnknownNameError("GGUF tensor type", name, _near(name.upper(), BLOCK_TYPES))
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

# --- Schemes ------------------------------------------------------------------------------------

# Roles (prefixes of whole words) that no common tool quantizes, with everything one-dimensional:
# llm-compressor, GPTQModel and AutoAWQ replace the decoder layers' linear modules only; ModelOpt
# 0.47.0 names the same exceptions (`configs/ptq/units/default_disabled_quantizers.yaml`).
_ALWAYS_KEPT = (
    "norms",
    "embedding",
    "lm_head",
    "router",
    "shared_experts.sigmoid_gate",
    "attention.sinks",
    "attention.relative_bias",
    "attention.compressor",
    "attention.indexer.weights",
    "attention.indexer.compressor",
    "attention.linear.conv",
    "attention.linear.conv_groups",
    "attention.linear.q_conv",
    "attention.linear.k_conv",
    "attention.linear.v_conv",
    "attention.linear.a_log",
    "attention.linear.dt_bias",
    "attention.linear.d",
    "attention.linear.a",
    "attention.linear.b",
    "attention.linear.ba",
    "towers",
    "other",
)
_MLA_PROJECTIONS = ("attention.q_a", "attention.q_b", "attention.kv_a", "attention.kv_b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A quantization that users name, such as `awq-4bit` or `Q4_K_M`.

    `kept_roles` stay in the model's dtype, as does everything one-dimensional; when `only_roles` is
    not empty, everything but these stays too. `engine_kept_roles` adds (engine, roles) to the
    kept roles. For a GGUF scheme the type of each tensor is chosen by `moesize.core.gguf`;
    `gguf_file_type` is also set for plain schemes that llama.cpp has under another name.
    `min_compute_capability` is what vLLM demands of an NVIDIA GPU, None where vLLM cannot load it.
    """

    name: str
    title: str
    weight_format: WeightFormat
    leaves_out: str
    min_compute_capability: tuple[int, int] | None
    capability_source: str
    kept_roles: tuple[str, ...] = _ALWAYS_KEPT
    only_roles: tuple[str, ...] = ()
    engine_kept_roles: tuple[tuple[str, tuple[str, ...]], ...] = ()
    gguf_file_type: str = ""

    @property
    def is_gguf(self) -> bool:
        """Whether the type of each tensor follows llama.cpp's rules."""
        return isinstance(self.weight_format, Gguf)


_LEAVES_LINEAR = "embeddings, lm_head, router, norms, biases"
# transformers 5 holds routed experts as three-dimensional parameters, and bitsandbytes replaces
# nn.Linear only (`integrations/bitsandbytes.py:replace_with_bnb_linear`, `type(module) is
# nn.Linear`): the experts of Mixtral, Qwen3-MoE, ... stay in the model's dtype there.
_BNB_KEPT = (("transformers", ("routed_experts",)),)
_BNB_LEAVES = (
    _LEAVES_LINEAR + "; in transformers 5 also the routed experts, which are no nn.Linear there"
)
_BNB_SOURCE = (
    "vllm quantization/bitsandbytes.py at 01f5395f asks for 7.0, the wheels for 7.5; in-tree up to "
    "0.24.0"
)
_V32 = "vllm 0.32.0 quantization/"
# Some of vLLM's loaders ask for less than its wheels are built for; the wheels decide.
_WHEELS = (7, 5)
_WHEELS_SOURCE = "vllm 0.21.0 docs/getting_started/installation/gpu.cuda.inc.md: 7.5 or higher"


def _plain_scheme(
    name: str, dtype: str, capability: tuple[int, int], source: str, gguf_file_type: str
) -> Scheme:
    return Scheme(
        name=name,
        title=f"not quantized, {dtype}",
        weight_format=Plain(dtype=dtype),
        leaves_out="nothing is quantized",
        min_compute_capability=capability,
        capability_source=source,
        kept_roles=(),
        gguf_file_type=gguf_file_type,
    )


def _gguf_scheme(file_type: str, default_type: str) -> Scheme:
    return Scheme(
        name=file_type,
        title=f"llama.cpp GGUF {file_type}, most tensors {default_type}",
        weight_format=Gguf(block_type=BLOCK_TYPES[default_type]),
        leaves_out="router, norms, biases and small recurrent tensors stay F32; "
        "embeddings and output are quantized",
        min_compute_capability=_WHEELS,
        capability_source="vllm quantization/gguf.py at 00620f91 asks for 6.0, the wheels for 7.5; "
        "in-tree up to 0.22.1, a plug-in later",
        gguf_file_type=file_type,
    )


_OWN_SCHEMES = (
    _plain_scheme(
        "bf16", "bfloat16", (8, 0), "vllm 0.32.0 platforms/cuda.py:check_if_supports_dtype", "BF16"
    ),
    _plain_scheme("fp16", "float16", _WHEELS, _WHEELS_SOURCE, "F16"),
    _plain_scheme("fp32", "float32", _WHEELS, _WHEELS_SOURCE, "F32"),
    Scheme(
        name="fp8",
        title="FP8 (E4M3), one scale for each matrix, as vLLM's --quantization fp8 makes it",
        weight_format=Fp8PerTensor(),
        leaves_out=_LEAVES_LINEAR,
        min_compute_capability=(7, 5),
        capability_source=_V32 + "fp8.py; FP8 arithmetic from 8.9 on, weight-only below",
    ),
    Scheme(
        name="fp8-block",
        title="FP8 (E4M3), one scale for each 128 x 128 tile, as DeepSeek-V3 is published",
        weight_format=Fp8Block(),
        leaves_out=_LEAVES_LINEAR + ", the small parts of sparse attention",
        min_compute_capability=(7, 5),
        capability_source=_V32 + "fp8.py; FP8 arithmetic from 8.9 on, weight-only below",
    ),
    Scheme(
        name="int8",
        title="INT8 by bitsandbytes, LLM.int8()",
        weight_format=BitsAndBytesInt8(),
        leaves_out=_BNB_LEAVES,
        min_compute_capability=_WHEELS,
        capability_source=_BNB_SOURCE,
        engine_kept_roles=_BNB_KEPT,
    ),
    Scheme(
        name="gptq-4bit",
        title="GPTQ, 4 bits, groups of 128, symmetric",
        weight_format=GroupInt(bits=4, group_size=128, symmetric=True),
        leaves_out=_LEAVES_LINEAR + ", sparse-attention indexer",
        min_compute_capability=_WHEELS,
        capability_source=_V32 + "auto_gptq.py asks for 6.0, Marlin kernels and wheels for 7.5",
        kept_roles=(*_ALWAYS_KEPT, "attention.indexer"),
    ),
    Scheme(
        name="gptq-8bit",
        title="GPTQ, 8 bits, groups of 128, symmetric",
        weight_format=GroupInt(bits=8, group_size=128, symmetric=True),
        leaves_out=_LEAVES_LINEAR + ", sparse-attention indexer",
        min_compute_capability=_WHEELS,
        capability_source=_V32 + "auto_gptq.py asks for 6.0, Marlin kernels and wheels for 7.5",
        kept_roles=(*_ALWAYS_KEPT, "attention.indexer"),
    ),
    Scheme(
        name="awq-4bit",
        title="AWQ, 4 bits, groups of 128, with zero points",
        weight_format=GroupInt(
            bits=4, group_size=128, symmetric=False, g_idx_stored=False, packed_along="out"
        ),
        leaves_out=_LEAVES_LINEAR + ", sparse-attention indexer",
        min_compute_capability=(7, 5),
        capability_source=_V32 + "auto_awq.py",
        kept_roles=(*_ALWAYS_KEPT, "attention.indexer"),
    ),
    Scheme(
        name="w4a16",
        title="compressed-tensors W4A16, 4 bits, groups of 128, symmetric",
        weight_format=PackQuantized(bits=4, group_size=128),
        leaves_out=_LEAVES_LINEAR + ", sparse-attention indexer",
        min_compute_capability=(7, 5),
        capability_source=_V32 + "compressed_tensors/schemes/compressed_tensors_wNa16.py",
        kept_roles=(*_ALWAYS_KEPT, "attention.indexer"),
    ),
    Scheme(
        name="w8a8",
        title="compressed-tensors W8A8, INT8 weights and activations, one scale for each row",
        weight_format=Int8PerChannel(),
        leaves_out=_LEAVES_LINEAR + ", sparse-attention indexer",
        min_compute_capability=(7, 5),
        capability_source=_V32 + "compressed_tensors/schemes/compressed_tensors_w8a8_int8.py",
        kept_roles=(*_ALWAYS_KEPT, "attention.indexer"),
    ),
    Scheme(
        name="nf4",
        title="bitsandbytes NF4, blocks of 64",
        weight_format=BitsAndBytes4Bit(),
        leaves_out=_BNB_LEAVES,
        min_compute_capability=_WHEELS,
        capability_source=_BNB_SOURCE,
        engine_kept_roles=_BNB_KEPT,
    ),
    Scheme(
        name="nf4-dq",
        title="bitsandbytes NF4, blocks of 64, double quantization of the block scales",
        weight_format=BitsAndBytes4Bit(nested=True),
        leaves_out=_BNB_LEAVES,
        min_compute_capability=_WHEELS,
        capability_source=_BNB_SOURCE,
        engine_kept_roles=_BNB_KEPT,
    ),
    Scheme(
        name="mxfp4",
        title="MXFP4 routed experts, as gpt-oss is published",
        weight_format=Mxfp4(),
        leaves_out="everything but the routed experts",
        min_compute_capability=(8, 0),
        capability_source=_V32 + "mxfp4.py",
        only_roles=("routed_experts",),
    ),
    Scheme(
        name="nvfp4",
        title="NVFP4 by NVIDIA ModelOpt, blocks of 16",
        weight_format=Nvfp4(),
        leaves_out=_LEAVES_LINEAR + ", MLA projections before o_proj, sparse-attention indexer; "
        "other attention is quantized (many published MoE checkpoints leave it as well)",
        min_compute_capability=(7, 5),
        capability_source=_V32 + "modelopt.py; FP4 arithmetic from 10.0 on, weight-only below",
        kept_roles=(*_ALWAYS_KEPT, *_MLA_PROJECTIONS, "attention.indexer"),
    ),
)
# BF16, F16 and F32 files are what bf16, fp16 and fp32 mean to llama.cpp.
_SCHEMES = _OWN_SCHEMES + tuple(
    _gguf_scheme(file_type, default_type)
    for file_type, default_type in GGUF_FILE_TYPES.items()
    if file_type not in ("F32", "F16", "BF16")
)
_SCHEMES_BY_NAME: Mapping[str, Scheme] = MappingProxyType(
    {scheme.name.lower(): scheme for scheme in _SCHEMES}
)
_SCHEME_ALIASES = MappingProxyType(
    {
        "bfloat16": "bf16",
        "float16": "fp16",
        "half": "fp16",
        "f16": "fp16",
        "float32": "fp32",
        "f32": "fp32",
    }
)


def list_schemes() -> tuple[Scheme, ...]:
    """Every scheme, in the order in which they are shown; GGUF file types come last."""
    return _SCHEMES


def find_scheme(name: str) -> Scheme:
    """The scheme called `name`, in any case. Raises UnknownNameError with the nearest names."""
    key = name.strip().lower()
    scheme = _SCHEMES_BY_NAME.get(_SCHEME_ALIASES.get(key, key))
    if scheme is None:
        near = [_SCHEMES_BY_NAME[found].name for found in _near(key, _SCHEMES_BY_NAME)]
        raise UnknownNameError("quantization", name, near, "moesize quants")
    return scheme


def scheme_format_for(
    scheme: Scheme, role: str, shape: tuple[int, ...], *, engine: str = ""
) -> WeightFormat | None:
    """How `scheme` stores a tensor of this role and shape; None: it keeps the model's dtype.

    `shape` ends in (out_features, in_features). `engine` matters for bitsandbytes, see
    `Scheme.engine_kept_roles`. Raises UnsupportedError for a quantized GGUF scheme, whose types
    depend on more than the role: `moesize.core.gguf.assign_types` chooses them.
    """
    if scheme.is_gguf:
        raise UnsupportedError(
            f"{scheme.name} has no one format for {role}",
            "moesize.core.gguf.assign_types knows the type of each tensor",
        )
    if isinstance(scheme.weight_format, Plain):
        return scheme.weight_format
    if len(shape) < 2 or _has_role(role, scheme.kept_roles):
        return None
    if scheme.only_roles and not _has_role(role, scheme.only_roles):
        return None
    for name, roles in scheme.engine_kept_roles:
        if name == engine and _has_role(role, roles):
            return None
    return scheme.weight_format


def _has_role(role: str, prefixes: tuple[str, ...]) -> bool:
    return any(role == prefix or role.startswith(prefix + ".") for prefix in prefixes)


# --- Family words -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyChoice:
    """What a family word such as `4bit` means for an engine, and why."""

    word: str
    engine: str
    scheme: Scheme
    reason: str


FAMILY_WORDS = ("4bit", "8bit")
_AWQ_REASON = (
    "the usual 4-bit checkpoints on the Hugging Face hub are AWQ and GPTQ; AWQ is the largest of "
    "awq-4bit, gptq-4bit and w4a16 in memory (zero points are kept), so what fits with it fits "
    "with the others"
)
_FP8_REASON = "fp8 needs no special checkpoint (--quantization fp8) and runs from Turing on"
_FAMILIES: Mapping[tuple[str, str], tuple[str, str]] = MappingProxyType(
    {
        ("4bit", "vllm"): ("awq-4bit", _AWQ_REASON),
        ("8bit", "vllm"): ("fp8", _FP8_REASON),
        ("4bit", "sglang"): ("awq-4bit", _AWQ_REASON),
        ("8bit", "sglang"): ("fp8", _FP8_REASON),
        ("4bit", "llama.cpp"): ("Q4_K_M", "what `-hf` downloads when no type is given"),
        ("8bit", "llama.cpp"): ("Q8_0", "Q8_0 is llama.cpp's only 8-bit file type"),
        ("4bit", "transformers"): ("nf4", "load_in_4bit with bnb_4bit_quant_type nf4"),
        ("8bit", "transformers"): ("int8", "load_in_8bit, LLM.int8() of bitsandbytes"),
    }
)


def resolve_family(word: str, engine: str) -> FamilyChoice:
    """The scheme that `4bit` or `8bit` stands for in this engine, with the reason.

    Raises UnknownNameError for another word or engine.
    """
    key = word.strip().lower()
    if key not in FAMILY_WORDS:
        raise UnknownNameError("quantization family", word, FAMILY_WORDS, "moesize quants")
    choice = _FAMILIES.get((key, engine))
    if choice is None:
        engines = sorted({name for _, name in _FAMILIES})
        raise UnknownNameError("engine", engine, engines, "moesize engines")
    name, reason = choice
    return FamilyChoice(word=key, engine=engine, scheme=find_scheme(name), reason=reason)


def _near(name: str, known: Mapping[str, object]) -> list[str]:
    # Only on the way to an error message, so difflib is not paid for otherwise.
    import difflib

    return difflib.get_close_matches(name, list(known), n=3)
