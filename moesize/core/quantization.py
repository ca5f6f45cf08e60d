"""The quantization schemes that users name, and what each leaves in the model's own dtype.

A scheme is a weight format (`weight_formats`) together with the roles that it does not touch. A
family word such as `4bit` stands for an engine's usual scheme.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from moesize.core.errors import UnknownNameError, UnsupportedError
from moesize.core.records import dataclass
from moesize.core.weight_formats import (
    BLOCK_TYPES,
    GGUF_FILE_TYPES,
    BitsAndBytes4Bit,
    BitsAndBytesInt8,
    Fp8Block,
    Fp8PerTensor,
    Gguf,
    GroupInt,
    Int8PerChannel,
    Mxfp4,
    Nvfp4,
    PackQuantized,
    Plain,
    WeightFormat,
    near_names,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

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
        "awq": "awq-4bit",
        "gptq": "gptq-4bit",
        "int4": "w4a16",
        "bitsandbytes": "nf4",
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
        scheme = _SCHEMES_BY_NAME.get(key.replace("_", "-"))
    if scheme is None:
        near = [_SCHEMES_BY_NAME[found].name for found in near_names(key, _SCHEMES_BY_NAME)]
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
        ("4bit", "tensorrt-llm"): ("awq-4bit", _AWQ_REASON),
        ("8bit", "tensorrt-llm"): ("fp8", _FP8_REASON),
        ("4bit", "tgi"): ("awq-4bit", _AWQ_REASON),
        ("8bit", "tgi"): ("fp8", _FP8_REASON),
        ("4bit", "llama.cpp"): ("Q4_K_M", "what `-hf` downloads when no type is given"),
        ("8bit", "llama.cpp"): ("Q8_0", "Q8_0 is llama.cpp's only 8-bit file type"),
        ("4bit", "ik_llama.cpp"): ("Q4_K_M", "what llama.cpp downloads when no type is given"),
        ("8bit", "ik_llama.cpp"): ("Q8_0", "Q8_0 is its only 8-bit file type of llama.cpp"),
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
