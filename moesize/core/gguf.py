"""Which type llama.cpp gives each tensor of a GGUF file, and how many bytes that makes.

A file type such as `Q4_K_M` is a default tensor type with exceptions by role, layer and shape.
The rules below restate `src/llama-quant.cpp` of ggml-org/llama.cpp at 0c1e57098 (libllama 0.5.0);
what the quantizer leaves alone is stored as `conversion/base.py` of the same commit writes it.

Symbols: i, n = layer index and layer count; gqa = query heads for one KV head; E = experts.
`shape` is GGML's: ne0, the contraction dimension, comes first.

Left out: overrides by the person who quantized (`--tensor-type`, "UD-", "_L" and "_XL" files; read
their headers), files older than 2024 with one tensor for each expert, and the metadata, which is
almost all vocabulary (0.7 to 11 MB).
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Literal, TypeAlias

from moesize.core.errors import InvalidInputError, UnknownNameError, UnsupportedError
from moesize.core.records import dataclass
from moesize.core.units import round_up
from moesize.core.weight_formats import (
    BLOCK_TYPES,
    GGUF_FILE_TYPES,
    BlockType,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

TENSOR_ALIGNMENT_BYTES = 32  # GGUF_DEFAULT_ALIGNMENT, ggml `include/gguf.h`


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """One tensor: its full name, its shape with ne0 first, and its block (None outside blocks)."""

    name: str
    shape: tuple[int, ...]
    block: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufModel:
    """What the quantizer looks at besides the tensors.

    `architecture` is GGUF's name (`llama`, `qwen2`, `falcon`, ...); `num_layers` counts MTP blocks
    in; heads are those of layer 0 (0 KV heads when layer 0 has no attention).
    """

    architecture: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    num_experts: int = 0


# --- Names --------------------------------------------------------------------------------------

# DeepSeek-V4's hyper-connections.
_HYPER_CONNECTIONS = ("attn_fn", "attn_base", "attn_scale", "ffn_fn", "ffn_base", "ffn_scale")
_NAMES = {
    "attention.q": "attn_q.weight",
    "attention.k": "attn_k.weight",
    "attention.v": "attn_v.weight",
    "attention.qkv": "attn_qkv.weight",
    "attention.o": "attn_output.weight",
    "attention.gate": "attn_gate.weight",
    "attention.sinks": "attn_sinks.weight",
    "attention.q_a": "attn_q_a.weight",
    "attention.q_b": "attn_q_b.weight",
    "attention.kv_a": "attn_kv_a_mqa.weight",
    "attention.kv_b": "attn_kv_b.weight",  # undivided; see split_mla_kv_b
    "attention.k_b": "attn_k_b.weight",
    "attention.v_b": "attn_v_b.weight",
    "attention.kv": "attn_kv.weight",
    "attention.o_a": "attn_output_a.weight",
    "attention.o_b": "attn_output_b.weight",
    "attention.relative_bias": "attn_rel_b.weight",
    "attention.compressor.kv": "attn_compressor_kv.weight",
    "attention.compressor.gate": "attn_compressor_gate.weight",
    "attention.compressor.ape": "attn_compressor_ape.weight",
    "attention.indexer.q": "indexer.q_proj.weight",
    "attention.indexer.q_b": "indexer.attn_q_b.weight",
    "attention.indexer.k": "indexer.attn_k.weight",
    "attention.indexer.weights": "indexer.proj.weight",
    "attention.indexer.compressor.kv": "indexer_compressor_kv.weight",
    "attention.indexer.compressor.gate": "indexer_compressor_gate.weight",
    "attention.indexer.compressor.ape": "indexer_compressor_ape.weight",
    # The inventory lists a matrix in two parts where ranks split these differently.
    "attention.linear.in": "ssm_in.weight",
    "attention.linear.in_groups": "ssm_in.weight",
    "attention.linear.conv": "ssm_conv1d.weight",
    "attention.linear.conv_groups": "ssm_conv1d.weight",
    "attention.linear.q_conv": "ssm_conv1d_q.weight",
    "attention.linear.k_conv": "ssm_conv1d_k.weight",
    "attention.linear.v_conv": "ssm_conv1d_v.weight",
    "attention.linear.q": "attn_q.weight",
    "attention.linear.k": "attn_k.weight",
    "attention.linear.v": "attn_v.weight",
    "attention.linear.qkv": "attn_qkv.weight",
    "attention.linear.z": "attn_gate.weight",
    "attention.linear.ba": "ssm_ba.weight",
    "attention.linear.a": "ssm_alpha.weight",
    "attention.linear.b": "ssm_beta.weight",
    "attention.linear.x": "ssm_x.weight",
    "attention.linear.dt": "ssm_dt.weight",
    "attention.linear.dt_bias": "ssm_dt.bias",
    "attention.linear.a_log": "ssm_a",
    "attention.linear.d": "ssm_d",
    "attention.linear.f_a": "ssm_f_a.weight",
    "attention.linear.f_b": "ssm_f_b.weight",
    "attention.linear.g": "ssm_g.weight",
    "attention.linear.g_a": "ssm_g_a.weight",
    "attention.linear.g_b": "ssm_g_b.weight",
    "attention.linear.out": "ssm_out.weight",
    "router.weight": "ffn_gate_inp.weight",
    "router.bias": "exp_probs_b.bias",
    "router.hash": "ffn_gate_tid2eid.weight",
    "router.scale": "ffn_gate_inp.scale",
    "router.expert_scale": "ffn_down_exps.scale",
    "routed_experts.gate": "ffn_gate_exps.weight",
    "routed_experts.up": "ffn_up_exps.weight",
    "routed_experts.gate_up": "ffn_gate_up_exps.weight",
    "routed_experts.down": "ffn_down_exps.weight",
    "shared_experts.gate": "ffn_gate_shexp.weight",
    "shared_experts.up": "ffn_up_shexp.weight",
    "shared_experts.down": "ffn_down_shexp.weight",
    "shared_experts.sigmoid_gate": "ffn_gate_inp_shexp.weight",
    "dense_mlp.gate": "ffn_gate.weight",
    "dense_mlp.up": "ffn_up.weight",
    "dense_mlp.down": "ffn_down.weight",
    "embedding.tokens": "token_embd.weight",
    "embedding.positions": "position_embd.weight",
    "embedding.token_types": "token_types.weight",
    "embedding.per_layer": "per_layer_token_embd.weight",
    "lm_head.weight": "output.weight",
    "lm_head.bias": "output.bias",
    "other.mtp_projection": "nextn.eh_proj.weight",
    "other.mtp_embedding": "nextn.embed_tokens.weight",
    "other.mtp_head": "nextn.shared_head_head.weight",
    "other.rope_freqs": "rope_freqs.weight",
    "other.rope_factors_long": "rope_factors_long.weight",
    "other.rope_factors_short": "rope_factors_short.weight",
    "other.latent_in": "ffn_latent_down.weight",
    "other.latent_out": "ffn_latent_up.weight",
    "other.attention_residual": "attn_res_score.weight",  # Kimi-K3, also one for the MLP
    "other.layer_scalar": "layer_output_scale.weight",
    "other.per_layer_gate": "inp_gate.weight",
    "other.per_layer_projection": "proj.weight",
    "other.per_layer_model_projection": "per_layer_model_proj.weight",
    "other.altup_projections": "altup_proj.weight",
    "other.altup_unembed_projections": "altup_unembd_proj.weight",
    "other.altup_correction": "altup_correct_coef.weight",
    "other.altup_prediction": "altup_predict_coef.weight",
    "other.altup_router": "altup_router.weight",
    "other.altup_scale": "altup_correct_scale.weight",
    "other.laurel_left": "laurel_l.weight",
    "other.laurel_right": "laurel_r.weight",
    **{f"other.hc_{part}": f"hc_{part}.weight" for part in _HYPER_CONNECTIONS},
    **{f"other.hc_head_{part}": f"output_hc_{part}.weight" for part in ("fn", "base", "scale")},
}
# Where the name depends on the kind of mixer (`kind` of moesize.core.mixers), and with it the type.
_NAMES_BY_MIXER = {
    ("kimi_delta", "attention.linear.out"): "attn_output.weight",
    ("lightning", "attention.linear.out"): "attn_output.weight",
    ("lightning", "attention.linear.g"): "attn_gate.weight",
    ("short_conv", "attention.linear.in"): "shortconv.in_proj.weight",
    ("short_conv", "attention.linear.conv"): "shortconv.conv.weight",
    ("short_conv", "attention.linear.out"): "shortconv.out_proj.weight",
    ("gqa", "attention.indexer.k"): "indexer.k_proj.weight",
}

# Architectures whose converter writes one attn_qkv instead of attn_q, attn_k and attn_v unless
# asked otherwise (llama.cpp src/models/*.cpp, gguf-py/gguf/tensor_mapping.py). Baichuan, InternLM2,
# Ernie 4.5 and Refact fuse on the hub, but their converters take the matrix apart.
FUSED_QKV_ARCHITECTURES = frozenset(
    {
        "bailingmoe2",
        "bloom",
        "chatglm",
        "codeshell",
        "cogvlm",
        "dbrx",
        "falcon",
        "gpt2",
        "gptneox",
        "graniteswitch",
        "jais",
        "mpt",
        "neo-bert",
        "openelm",
        "phi2",
        "phi3",
        "plamo2",
        "plamo3",
        "qwen",
        "starcoder",
    }
)
# Architectures that hold gate and up in one ffn_up of twice the width.
FUSED_GATE_UP_ARCHITECTURES = frozenset({"chatglm", "glm4", "phi3", "plamo2", "plamo3"})


def gguf_name(role: str, *, mixer: str = "") -> str:
    """GGUF's name for a tensor of this role, without the block: `ffn_down_exps.weight`.

    `mixer` is the kind of the layer's mixer, where there is one. A bias has `.bias` in place of
    `.weight`. The name of a norm changes no size, so each gets one made from its role. Raises
    UnsupportedError for a role that GGUF lacks (towers have a file of their own), and for one that
    the converter divides (`attention.linear.qkvz` into qkv and z).
    """
    group, _, rest = role.partition(".")
    stem = rest.removesuffix(".bias")
    suffix = ".weight" if stem == rest else ".bias"
    if group == "norms" and stem:
        return stem.replace(".", "_") + "_norm" + suffix
    for key in (role, role.removesuffix(".bias")):
        known = _NAMES_BY_MIXER.get((mixer, key)) or _NAMES.get(key)
        if known is not None:
            return known if key == role else known.removesuffix(".weight") + ".bias"
    raise UnsupportedError(
        f"no GGUF tensor name is known for {role}",
        "towers have a file of their own; attention.linear.qkvz is stored as qkv and z",
    )


def gguf_tensor(
    role: str,
    shape: tuple[int, ...],
    *,
    block: int | None = None,
    num_stacked: int = 1,
    mixer: str = "",
) -> GgufTensor:
    """The GGUF tensor of a parameter whose shape is (out_features, in_features) or (elements,).

    Dimensions are turned round; `num_stacked` experts are stacked as the last one. Raises
    UnsupportedError as `gguf_name` does.
    """
    name = gguf_name(role, mixer=mixer)
    stack = () if num_stacked == 1 else (num_stacked,)
    return GgufTensor(
        name=name if block is None else f"blk.{block}.{name}",
        shape=(*reversed(shape), *stack),
        block=block,
    )


def split_mla_kv_b(
    *,
    num_heads: int,
    qk_nope_head_dim: int,
    v_head_dim: int,
    kv_lora_rank: int,
    block: int,
) -> tuple[GgufTensor, GgufTensor]:
    """MLA's kv_b as llama.cpp stores it: attn_k_b (nope, rank, heads), attn_v_b (rank, v, heads).

    attn_k_b is transposed: its rows are only qk_nope_head_dim long, so they often fall back to a
    type with small blocks. llama.cpp `conversion/deepseek.py`.
    """
    return (
        GgufTensor(
            name=f"blk.{block}.attn_k_b.weight",
            shape=(qk_nope_head_dim, kv_lora_rank, num_heads),
            block=block,
        ),
        GgufTensor(
            name=f"blk.{block}.attn_v_b.weight",
            shape=(kv_lora_rank, v_head_dim, num_heads),
            block=block,
        ),
    )


# --- What is not quantized ----------------------------------------------------------------------

# Parts of names; the first list that has one decides. F32 is what the converter forces, "source"
# the 16-bit type of the model. The token-to-expert table of DeepSeek-V4 is I32, as wide as F32.
_KEPT_F32 = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",  # MiniMax-M3 only
    "indexer.q_proj.weight",
    "altup_correct_coef",
    "altup_predict_coef",
    "time_mix_first.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    ".position_embd",
    ".patch_embd",
    ".patch_merger",
)
_KEPT_SOURCE = (
    "altup",
    "laurel",
    "per_layer_model_proj",
    "time_mix_w0.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "attn_rel_b.weight",
)
_POSITION_TABLES = ("position_embd.weight", "token_types.weight")
# The converter writes it as F32, the quantizer does quantize it; DeepSeek-V4's own converter keeps
# the published type.
_CONVERTER_F32 = "indexer.proj.weight"
_UNQUANTIZED = ("F32", "F16", "BF16")

# --- The quantizer's categories -----------------------------------------------------------------

_Category: TypeAlias = Literal[
    "output",
    "token_embd",
    "attn_v",
    "attn_k",
    "attn_q",
    "attn_output",
    "ffn_up",
    "ffn_gate",
    "ffn_down",
    "other",
]
# In this order: "ffn_gate_up_exps" is a gate, and only "attn_v.weight" itself is a value matrix.
_CATEGORY_PARTS: tuple[tuple[str, _Category], ...] = (
    ("attn_qkv.weight", "attn_v"),
    ("attn_kv_b.weight", "attn_v"),
    ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"),
    ("attn_q.weight", "attn_q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)
_LOWEST = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M")
_LOWEST_BETTER = ("IQ2_S", "IQ2_M")

_TOKEN_EMBD = {
    "IQ1_S": "Q2_K",
    "IQ1_M": "Q2_K",
    "IQ2_XXS": "Q2_K",
    "IQ2_XS": "Q2_K",
    "IQ2_S": "IQ3_S",
    "IQ2_M": "IQ3_S",
    "IQ3_XXS": "IQ3_S",
    "TQ1_0": "Q4_K",
    "TQ2_0": "Q4_K",
    "Q2_0": "Q4_K",
}
_OUTPUT_Q5_K = (*_LOWEST, "IQ3_XXS")
_ATTN_V = {"Q2_K": "Q3_K", "IQ3_M": "Q4_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}
_ATTN_V_WIDE_GQA = {  # gqa >= 4: attn_v is small, so more bits cost little
    "Q2_K": "Q4_K",
    "Q2_K_S": "Q4_K",
    "IQ3_XXS": "Q4_K",
    "IQ3_XS": "Q4_K",
    "IQ3_S": "Q4_K",
    "IQ4_NL": "Q5_K",
    "IQ4_XS": "Q5_K",
}
_ATTN_QK = {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}
_ATTN_OUTPUT = {
    "Q2_K": "Q3_K",
    "IQ3_XXS": "IQ3_S",
    "Q3_K_M": "Q4_K",
    "Q3_K_L": "Q5_K",
    "IQ3_M": "Q4_K",
}
_ATTN_OUTPUT_8_EXPERTS = frozenset(
    {
        "Q2_K",
        "Q3_K_S",
        "Q3_K_M",
        "Q4_K_S",
        "Q4_K_M",
        "IQ3_XXS",
        "IQ3_XS",
        "IQ3_S",
        "IQ3_M",
        "IQ4_NL",
        "IQ4_XS",
    }
)
_FFN_DOWN = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}
_FFN_DOWN_FIRST_EIGHTH = {"Q2_K_S": "Q4_K", "IQ3_M": "Q4_K", "Q4_K_S": "Q5_K"}
_FFN_DOWN_FIRST_EIGHTH_WITHOUT_IMATRIX = {"IQ3_XXS": "Q4_K", "IQ4_NL": "Q5_K", "IQ4_XS": "Q5_K"}
_FFN_DOWN_FIRST_EIGHTH_WITH_IMATRIX = {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}

# A row that does not divide into the wanted blocks gets this type, F16 if that fails too.
_FALLBACK = {
    "IQ1_S": "IQ4_NL",
    "IQ1_M": "IQ4_NL",
    "IQ2_XXS": "IQ4_NL",
    "IQ2_XS": "IQ4_NL",
    "IQ2_S": "IQ4_NL",
    "IQ3_XXS": "IQ4_NL",
    "IQ3_S": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
    "Q2_0": "Q4_0",
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "TQ1_0": "Q4_0",
    "TQ2_0": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
# Layer counts that llama.cpp calls "70B" (src/models/*.cpp), where attn_v gets a better type.
_70B_LAYERS = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}
# The quantizer has rules of its own for it that are not restated here.
_UNSUPPORTED_ARCHITECTURES = frozenset({"glm5-next"})


def _gets_more_bits(i: int, n: int) -> bool:
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


@dataclass(slots=True)
class _Quantizer:
    """The state of one run over the tensors: settings and running counters."""

    model: GgufModel
    file_type: str
    default: str
    has_imatrix: bool
    is_tied: bool
    num_attn_v: int
    attn_v_index: int = 0
    ffn_up_index: int = 0
    ffn_gate_index: int = 0
    ffn_down_index: int = 0

    def choose(self, category: _Category, tensor: GgufTensor) -> str:
        """The type of a tensor that is quantized, before its row length is looked at."""
        if category == "output" or (category == "token_embd" and self.is_tied):
            return self._output(tensor)
        if self.file_type == "MXFP4_MOE":
            return self._mxfp4_moe(category, tensor)
        if category == "token_embd":
            return _TOKEN_EMBD.get(self.file_type, self.default)
        if self.file_type in _LOWEST:
            return self._lowest(category)
        match category:
            case "attn_v":
                return self._attn_v()
            case "attn_k" if self.model.num_experts == 8:
                return "Q8_0"
            case "attn_k" | "attn_q":
                return _ATTN_QK.get(self.file_type, self.default)
            case "attn_output":
                return self._attn_output()
            case "ffn_down":
                return self._ffn_down(tensor)
            case "ffn_up":
                index, self.ffn_up_index = self.ffn_up_index, self.ffn_up_index + 1
                return self._ffn_gate_or_up(self._layer(tensor, index))
            case "ffn_gate":
                index, self.ffn_gate_index = self.ffn_gate_index, self.ffn_gate_index + 1
                return self._ffn_gate_or_up(self._layer(tensor, index))
            case _:
                return self.default

    def _layer(self, tensor: GgufTensor, running_index: int) -> int:
        """Dense models count calls; MoE models take the block, the same for all its experts."""
        if self.model.num_experts <= 1:
            return running_index
        if tensor.block is None or not 0 <= tensor.block < self.model.num_layers:
            raise InvalidInputError(
                f"{tensor.name} lies outside the {self.model.num_layers} blocks of the model",
                "num_layers counts MTP blocks in",
            )
        return tensor.block

    def _output(self, tensor: GgufTensor) -> str:
        divides = tensor.shape[0] % BLOCK_TYPES[self.default].elements_per_block == 0
        if self.file_type == "MXFP4_MOE" or self.model.architecture == "falcon" or not divides:
            return "Q8_0"
        if self.file_type in _OUTPUT_Q5_K:
            return "Q5_K"
        return "Q8_0" if self.default == "Q8_0" else "Q6_K"

    def _mxfp4_moe(self, category: _Category, tensor: GgufTensor) -> str:
        is_stack = len(tensor.shape) > 2 and tensor.shape[2] > 1
        if self.model.architecture == "bailingmoe3":
            is_stack = is_stack and category in ("ffn_up", "ffn_gate", "ffn_down")
        return "MXFP4" if is_stack else "Q8_0"

    def _gqa(self) -> int:
        return self.model.num_heads // self.model.num_kv_heads if self.model.num_kv_heads else 0

    def _lowest(self, category: _Category) -> str:
        """The six smallest file types."""
        raised = "IQ3_S" if self.file_type in _LOWEST_BETTER else "Q2_K"
        has_8_experts = self.model.num_experts == 8
        match category:
            case "attn_v":
                return "Q4_K" if self._gqa() >= 4 or self.model.num_experts >= 4 else raised
            case "attn_k" if has_8_experts:
                return "Q4_K"
            case "ffn_down":
                # A plain count of calls here, even in MoE models.
                index, self.ffn_down_index = self.ffn_down_index, self.ffn_down_index + 1
                return raised if index < self.model.num_layers // 8 else self.default
            case "attn_output" if has_8_experts:
                return "Q5_K"
            case "attn_output" if self.file_type in _LOWEST_BETTER:
                return "IQ3_S"
            case "attn_output" if self.file_type in ("IQ1_S", "IQ1_M"):
                return "IQ2_XXS"
            case _:
                return self.default

    def _attn_v(self) -> str:
        index, self.attn_v_index = self.attn_v_index, self.attn_v_index + 1
        chosen = self._attn_v_by_file_type(index)
        model = self.model
        if self._is_70b() and chosen in ("Q3_K", "Q4_K"):
            chosen = "Q5_K"
        return "Q8_0" if model.num_experts == 8 else chosen

    def _attn_v_by_file_type(self, index: int) -> str:
        if self._gqa() >= 4 and self.file_type in _ATTN_V_WIDE_GQA:
            return _ATTN_V_WIDE_GQA[self.file_type]
        if self.file_type == "IQ3_XXS" and not self.has_imatrix:
            return "IQ3_S"
        if self.file_type in ("Q4_K_M", "Q5_K_M") and _gets_more_bits(index, self.num_attn_v):
            return "Q6_K"
        if (self.file_type == "Q3_K_M" and index < 2) or (self.file_type == "Q4_K_S" and index < 4):
            return "Q5_K"
        return _ATTN_V.get(self.file_type, self.default)

    def _is_70b(self) -> bool:
        model = self.model
        is_dense = model.num_experts <= 1
        has_layers = model.num_layers == _70B_LAYERS.get(model.architecture)
        # Llama's first 65B has the 80 layers too, but a KV head for each head.
        is_65b = model.architecture == "llama" and model.num_heads == model.num_kv_heads
        return is_dense and has_layers and not is_65b

    def _attn_output(self) -> str:
        if self.model.architecture == "falcon":
            return "Q4_K" if self.file_type == "Q3_K_L" else self.default
        if self.model.num_experts == 8:
            return "Q5_K" if self.file_type in _ATTN_OUTPUT_8_EXPERTS else self.default
        return _ATTN_OUTPUT.get(self.file_type, self.default)

    def _ffn_down(self, tensor: GgufTensor) -> str:
        index, self.ffn_down_index = self.ffn_down_index, self.ffn_down_index + 1
        i, n = self._layer(tensor, index), self.model.num_layers
        file_type = self.file_type
        if self.model.architecture == "falcon" and file_type in _FALCON_FFN_DOWN:
            first, more, rest = _FALCON_FFN_DOWN[file_type]
            return first if i < n // 16 else more if _gets_more_bits(i, n) else rest
        if file_type == "Q3_K_M" and i < n // 16:
            return "Q5_K"
        if file_type in ("Q4_K_M", "Q5_K_M") and _gets_more_bits(i, n):
            return "Q6_K"
        if file_type == "IQ3_M" and self.model.num_experts == 8 and _gets_more_bits(i, n):
            return "Q4_K"
        if i < n // 8:
            by_imatrix = (
                _FFN_DOWN_FIRST_EIGHTH_WITH_IMATRIX
                if self.has_imatrix
                else _FFN_DOWN_FIRST_EIGHTH_WITHOUT_IMATRIX
            )
            for table in (_FFN_DOWN_FIRST_EIGHTH, by_imatrix):
                if file_type in table:
                    return table[file_type]
        if file_type == "IQ3_XXS" and not self.has_imatrix:
            return "Q3_K"
        return _FFN_DOWN.get(file_type, self.default)

    def _ffn_gate_or_up(self, i: int) -> str:
        n = self.model.num_layers
        is_middle = n // 8 <= i < 7 * n // 8
        return "IQ3_XXS" if self.file_type == "IQ3_XS" and is_middle else self.default


# Falcon: the first sixteenth, then layers with more bits, then the rest.
_FALCON_FFN_DOWN = {
    "Q3_K_M": ("Q5_K", "Q4_K", "Q3_K"),
    "Q3_K_L": ("Q4_K", "Q4_K", "Q4_K"),
    "Q4_K_M": ("Q6_K", "Q5_K", "Q4_K"),
    "Q4_K_S": ("Q4_K", "Q4_K", "Q4_K"),
}

# --- Types and bytes ----------------------------------------------------------------------------


def list_file_types() -> tuple[str, ...]:
    """The file types that llama.cpp's quantizer can write, largest first."""
    return tuple(GGUF_FILE_TYPES)


def find_file_type(name: str) -> str:
    """The file type called `name`, in any case. Raises UnknownNameError with the nearest names."""
    key = name.strip().upper()
    if key not in GGUF_FILE_TYPES:
        import difflib  # only on the way to an error

        near = difflib.get_close_matches(key, GGUF_FILE_TYPES, n=3)
        raise UnknownNameError("GGUF file type", name, near, "moesize quants")
    return key


def assign_types(
    tensors: Sequence[GgufTensor], model: GgufModel, file_type: str, *, has_imatrix: bool = False
) -> tuple[BlockType, ...]:
    """The type of each tensor when `model` is quantized to `file_type`, in the order given.

    `has_imatrix` is whether an importance matrix was used; it matters for IQ3_XXS, IQ4_NL, IQ4_XS,
    Q4_0 and Q5_0 (IQ1 and IQ2 need one). Rules and symbols: see the module.
    Raises UnknownNameError for the file type, InvalidInputError for tensors that contradict
    `model`, UnsupportedError where llama.cpp itself refuses or the architecture has own rules.
    """
    file_type = find_file_type(file_type)
    if model.architecture in _UNSUPPORTED_ARCHITECTURES:
        raise UnsupportedError(
            f"llama.cpp quantizes {model.architecture} by rules that moesize does not know",
            "read the sizes from a GGUF file instead",
        )
    bases = [_base_name(tensor) for tensor in tensors]
    categories = {base: _category(base) for base in set(bases)}
    default = GGUF_FILE_TYPES[file_type]
    quantizer = _Quantizer(
        model=model,
        file_type=file_type,
        default=default,
        has_imatrix=has_imatrix,
        is_tied="output.weight" not in categories,
        num_attn_v=sum(categories[base] == "attn_v" for base in bases),
    )
    chosen: list[BlockType | None] = [None] * len(tensors)
    stored_as: dict[tuple[str, tuple[int, ...]], BlockType | None] = {}
    fitted: dict[tuple[str, int], BlockType] = {}
    # llama.cpp's order: by block, then by name; some rules count as they go.
    order = sorted(
        range(len(tensors)), key=lambda k: (-1 if (b := tensors[k].block) is None else b, bases[k])
    )
    for k in order:
        tensor, base = tensors[k], bases[k]
        key = (base, tensor.shape)
        if key not in stored_as:
            stored_as[key] = _kept_type(base, tensor, file_type, model.architecture)
        block_type = stored_as[key]
        if block_type is None:
            wanted = quantizer.choose(categories[base], tensor)
            row = (wanted, tensor.shape[0])
            block_type = fitted.get(row)
            if block_type is None:
                block_type = fitted[row] = _fit(wanted, tensor)
        chosen[k] = block_type
    return tuple(block_type for block_type in chosen if block_type is not None)


def tensor_bytes(tensor: GgufTensor, block_type: BlockType) -> int:
    """Bytes of one tensor: `row_bytes(ne0) * ne1 * ne2 * ...`. Raises InvalidInputError."""
    return block_type.row_bytes(tensor.shape[0]) * prod(tensor.shape[1:])


def model_bytes(tensors: Sequence[GgufTensor], types: Sequence[BlockType]) -> int:
    """What llama.cpp's loader prints as "model size": the bytes of all tensors, without padding."""
    return sum(map(tensor_bytes, tensors, types))


def file_tensor_bytes(tensors: Sequence[GgufTensor], types: Sequence[BlockType]) -> int:
    """Bytes of the tensor data in the file: every tensor padded to 32 bytes; no metadata."""
    return sum(
        round_up(tensor_bytes(tensor, block_type), TENSOR_ALIGNMENT_BYTES)
        for tensor, block_type in zip(tensors, types, strict=True)
    )


def _base_name(tensor: GgufTensor) -> str:
    return tensor.name if tensor.block is None else tensor.name.split(".", 2)[2]


def _category(base: str) -> _Category:
    if base == "output.weight":
        return "output"
    if base in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "token_embd"
    for part, category in _CATEGORY_PARTS:
        if part in base:
            return category
    return "other"


def _num_dims(shape: tuple[int, ...]) -> int:
    return max((k for k, size in enumerate(shape, start=1) if size > 1), default=1)


def _kept_type(
    base: str, tensor: GgufTensor, file_type: str, architecture: str
) -> BlockType | None:
    """The type of a tensor that no rule quantizes, else None."""
    is_f32 = (
        _num_dims(tensor.shape) < 2
        or not base.endswith("weight")
        or base in _POSITION_TABLES
        or any(part in tensor.name for part in _KEPT_F32)
    )
    if is_f32:
        return BLOCK_TYPES["F32"]
    if file_type in _UNQUANTIZED:
        is_kept = base == _CONVERTER_F32 and architecture != "deepseek4"
        return BLOCK_TYPES["F32" if is_kept else file_type]
    if any(part in base for part in _KEPT_SOURCE):
        return BLOCK_TYPES["F16"]
    return None


def _fit(wanted: str, tensor: GgufTensor) -> BlockType:
    """The wanted type, or what the quantizer takes when the row does not divide into blocks."""
    row_elements = tensor.shape[0]
    block_type = BLOCK_TYPES[wanted]
    if row_elements % block_type.elements_per_block == 0:
        return block_type
    if wanted in _FALLBACK:
        block_type = BLOCK_TYPES[_FALLBACK[wanted]]
    elif block_type.elements_per_block > 32:
        raise UnsupportedError(
            f"llama.cpp has no substitute for {wanted} in {tensor.name}, whose rows of "
            f"{row_elements} elements do not divide into blocks of "
            f"{block_type.elements_per_block}",
            "choose another file type",
        )
    if row_elements % block_type.elements_per_block:
        return BLOCK_TYPES["F16"]
    return block_type
