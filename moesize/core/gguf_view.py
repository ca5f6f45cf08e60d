"""From a model's inventory to the tensors of its GGUF file, and how large that file is.

What llama.cpp's converter (`conversion/*.py`, ggml-org/llama.cpp at 0c1e57098) makes of a published
checkpoint, as data: GGUF architecture, which projections stay fused, whether MTP blocks come along,
which tensors are added (rotary factors) and left out (towers, which have a file of their own, the
mmproj). `moesize.core.gguf` then gives every tensor its type.

Left out: files of other converters and dates (one tensor for each expert before 2024, tied
embeddings at the default type before March 2024, other types for a fused attn_qkv in 2024; MLA with
an undivided kv_b, of before spring 2025, unless the spec was read from such a file); FP8 and MXFP4
that the converter copies from DeepSeek-V4 and Kimi-K3; DBRX's router, which stays F16 instead of
F32 (0.006 %).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from moesize.core.attention import CompressedAttention, GroupedQueryAttention, LatentAttention
from moesize.core.checkpoint import StoredEntry
from moesize.core.errors import InvalidInputError, UnsupportedError
from moesize.core.feed_forward import MoeMlp
from moesize.core.gguf import (
    GgufModel,
    GgufTensor,
    assign_types,
    file_tensor_bytes,
    find_file_type,
    gguf_name,
    model_bytes,
)
from moesize.core.inventory import Entry, inventory
from moesize.core.records import dataclass
from moesize.core.recurrent import GatedDeltaNet
from moesize.core.tensors import Tensor, matrix
from moesize.core.weight_formats import (
    BLOCK_TYPES,
    BlockType,
    Gguf,
    WeightFormat,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from moesize.core.mixers import Mixer
    from moesize.core.model_spec import CheckpointQuantization, ModelSpec
    from moesize.core.quantization import Scheme


# --- Families -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """What llama.cpp's converter does with one model type.

    keeps_mtp       MTP blocks come along as further blocks
    fused_qkv       q, k and v are published, and stay, one matrix
    fused_gate_up   so are gate and up, as one ffn_up
    fused_experts   so are gate and up of the routed experts, as one ffn_gate_up_exps
    kv_heads_vary   KV heads are written for each layer, 0 for layers without attention; otherwise
                    the number of the attention layers stands for all
    keeps_mxfp4     experts published in MXFP4 are copied as they are, whatever the file type:
                    llama-quantize refuses to quantize what is quantized
    drops_tied_head a head that the files repeat although it is tied is left out
    positions_from  rows of the position table before the first token's, which are left out
    unlisted_blocks MTP blocks that files have and configs do not state: they count as blocks for
                    the quantizer's rules, but their tensors are not in the inventory
    """

    architecture: str
    keeps_mtp: bool = False
    fused_qkv: bool = False
    fused_gate_up: bool = False
    fused_experts: bool = False
    kv_heads_vary: bool = False
    keeps_mxfp4: bool = False
    drops_tied_head: bool = False
    positions_from: int = 0
    unlisted_blocks: int = 0


def _family(architecture: str, flags: str = "") -> _Family:
    """`flags`: the names of the facts that hold."""
    return _Family(architecture=architecture, **dict.fromkeys(flags.split(), True))


# Roberta numbers positions from pad_token_id + 1, and its pad token is 1 (conversion/bert.py).
_ROBERTA = _Family(architecture="bert", positions_from=2)
# Three MTP blocks (conversion/mimo.py).
_MIMO_V2 = _Family(architecture="mimo2", keeps_mtp=True, kv_heads_vary=True, unlisted_blocks=3)


_FAMILIES: dict[str, _Family] = {
    # Llama and what is converted as one
    **dict.fromkeys(
        ("llama", "mistral", "mixtral", "Yi", "internlm3", "ministral", "voxtral"),
        _family("llama"),
    ),
    "llama4": _family("llama4"),
    "llama4_text": _family("llama4"),
    "ministral3": _family("mistral3"),
    "mistral3": _family("mistral3"),
    "mistral4": _family("mistral4"),
    "smollm3": _family("smollm3"),
    "arcee": _family("arcee"),
    "apertus": _family("apertus"),
    "deci": _family("deci", "kv_heads_vary"),
    "nemotron-nas": _family("deci", "kv_heads_vary"),
    # Qwen
    "qwen": _family("qwen", "fused_qkv"),
    "qwen2": _family("qwen2"),
    "qwen2_moe": _family("qwen2moe"),
    "qwen2_vl": _family("qwen2vl"),
    "qwen2_5_vl": _family("qwen2vl"),
    "qwen2_5_omni": _family("qwen2vl"),
    "qwen3": _family("qwen3"),
    "qwen3_moe": _family("qwen3moe"),
    "qwen3_vl": _family("qwen3vl"),
    "qwen3_asr": _family("qwen3vl"),
    "qwen3_vl_moe": _family("qwen3vlmoe"),
    "qwen3_vl_moe_text": _family("qwen3vlmoe"),
    "qwen3_omni_moe": _family("qwen3vlmoe"),
    "qwen3_omni_moe_text": _family("qwen3vlmoe"),
    "qwen3_next": _family("qwen3next", "keeps_mtp"),
    "qwen3_5": _family("qwen35", "keeps_mtp"),
    "qwen3_5_text": _family("qwen35", "keeps_mtp"),
    "qwen3_5_moe": _family("qwen35moe", "keeps_mtp"),
    "qwen3_5_moe_text": _family("qwen35moe", "keeps_mtp"),
    # DeepSeek and its kin
    "deepseek": _family("deepseek"),
    **dict.fromkeys(
        ("deepseek_v2", "deepseek_v3", "kimi_k2", "kimi_k25", "kimi_vl"),
        _family("deepseek2", "drops_tied_head"),
    ),
    "glm4_moe_lite": _family("deepseek2", "keeps_mtp drops_tied_head"),
    "deepseek_v32": _family("deepseek32", "keeps_mtp drops_tied_head"),
    "deepseek_v4": _family("deepseek4"),
    "deepseek_ref": _family("deepseek4"),
    "glm_moe_dsa": _family("glm-dsa", "keeps_mtp drops_tied_head"),
    "kimi_k3": _family("kimi-k3", "kv_heads_vary"),
    "kimi_linear": _family("kimi-linear", "kv_heads_vary"),
    # GLM
    "chatglm": _family("chatglm", "fused_qkv fused_gate_up"),
    "glm": _family("chatglm", "fused_gate_up"),
    "glm4": _family("glm4", "fused_gate_up"),
    "glm4v": _family("glm4", "fused_gate_up"),
    "glm4_moe": _family("glm4moe", "keeps_mtp"),
    "glm4v_moe": _family("glm4moe", "keeps_mtp"),
    "glm4v_moe_text": _family("glm4moe", "keeps_mtp"),
    "solar_open": _family("glm4moe"),
    # Gemma
    "gemma": _family("gemma", "drops_tied_head"),
    "gemma2": _family("gemma2", "drops_tied_head"),
    "gemma3": _family("gemma3"),
    "gemma3_text": _family("gemma3"),
    "gemma3n": _family("gemma3n"),
    "gemma3n_text": _family("gemma3n"),
    "gemma4": _family("gemma4", "fused_experts"),
    "gemma4_text": _family("gemma4", "fused_experts"),
    "gemma4_unified": _family("gemma4", "fused_experts"),
    # Phi, Granite, OLMo, Cohere
    "phi": _family("phi2"),
    "phi-msft": _family("phi2", "fused_qkv"),
    "phi3": _family("phi3", "fused_qkv fused_gate_up"),
    "phimoe": _family("phimoe"),
    "granite": _family("granite"),
    "granite_swa": _family("granite_swa"),
    "granitemoe_swa": _family("granite_swa", "fused_experts"),
    "granitemoe": _family("granitemoe"),
    "granitemoeshared": _family("granitemoe"),
    "granitemoehybrid": _family("granitehybrid", "kv_heads_vary"),
    "bamba": _family("granitehybrid", "kv_heads_vary"),
    "olmo": _family("olmo"),
    "hf_olmo": _family("olmo"),
    "olmo2": _family("olmo2"),
    "olmo3": _family("olmo2"),
    "olmoe": _family("olmoe"),
    "cohere": _family("command-r"),
    "cohere2": _family("cohere2"),
    "cohere2_moe": _family("cohere2moe", "keeps_mtp"),
    # Experts
    "gpt_oss": _family("gpt-oss", "keeps_mxfp4"),
    "dbrx": _family("dbrx", "fused_qkv"),
    "minimax_m2": _family("minimax-m2"),
    "minimax_m3": _family("minimax-m3"),
    "minimax_m3_vl": _family("minimax-m3"),
    "minimax_m3_vl_text": _family("minimax-m3"),
    "minimax_m1": _family("minimax-01"),
    "minimax_text_01": _family("minimax-01"),
    "dots1": _family("dots1"),
    "ernie4_5": _family("ernie4_5"),
    "ernie4_5_moe": _family("ernie4_5-moe"),
    "ernie4_5_moe_text": _family("ernie4_5-moe"),
    "afmoe": _family("afmoe"),
    "bailing_moe": _family("bailingmoe"),
    "bailing_hybrid": _family("bailingmoe3", "keeps_mtp kv_heads_vary"),
    "laguna": _family("laguna"),
    "mellum": _family("mellum"),
    "bailing_moe_v2": _family("bailingmoe2", "fused_qkv keeps_mtp"),
    "hunyuan_v1_moe": _family("hunyuan-moe", "drops_tied_head"),
    "hunyuan": _family("hunyuan-moe", "drops_tied_head"),
    "hunyuan_v1_dense": _family("hunyuan-dense", "drops_tied_head"),
    "hy_v3": _family("hy_v3", "keeps_mtp"),
    "exaone": _family("exaone"),
    "exaone4": _family("exaone4"),
    "exaone4_5": _family("exaone4", "keeps_mtp"),
    "exaone_moe": _family("exaone-moe", "keeps_mtp"),
    "mimo_v2": _MIMO_V2,
    "mimo_v2_flash": _MIMO_V2,
    "step3p5": _family("step35", "keeps_mtp"),
    "step3p7": _family("step35", "keeps_mtp"),
    # State-space layers
    "jamba": _family("jamba", "kv_heads_vary"),
    "nemotron_h": _family("nemotron_h", "kv_heads_vary keeps_mtp"),
    "mamba": _family("mamba", "kv_heads_vary drops_tied_head"),
    "falcon_mamba": _family("mamba", "kv_heads_vary drops_tied_head"),
    "mamba2": _family("mamba2", "kv_heads_vary"),
    "falcon_h1": _family("falcon-h1"),
    "lfm2": _family("lfm2", "kv_heads_vary"),
    "lfm2_vl": _family("lfm2", "kv_heads_vary"),
    "lfm2_moe": _family("lfm2moe", "kv_heads_vary"),
    # Others
    "baichuan": _family("baichuan"),
    "bloom": _family("bloom", "fused_qkv"),
    "falcon": _family("falcon", "fused_qkv"),
    "RefinedWeb": _family("falcon", "fused_qkv"),
    "RefinedWebModel": _family("falcon", "fused_qkv"),
    "gpt2": _family("gpt2", "fused_qkv"),
    "grok-1": _family("grok"),
    "gpt_bigcode": _family("starcoder", "fused_qkv"),
    "gpt_neox": _family("gptneox", "fused_qkv"),
    "mpt": _family("mpt", "fused_qkv"),
    "internlm2": _family("internlm2"),
    "jais2": _family("jais2"),
    "minicpm": _family("minicpm"),
    "nemotron": _family("nemotron"),
    "orion": _family("orion"),
    "seed_oss": _family("seed_oss"),
    "stablelm": _family("stablelm"),
    "stablelm_epoch": _family("stablelm"),
    "starcoder2": _family("starcoder2"),
    "xverse": _family("xverse"),
    "bitnet": _family("bitnet"),
    "bert": _family("bert"),
    "camembert": _family("bert"),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}

# Wrappers around any of several language models, which the facts of the spec tell apart.
_WRAPPERS = frozenset({"internvl", "internvl_chat", "llava", "llava_next", "llava_onevision"})


def _family_of(spec: ModelSpec) -> _Family:
    family = _FAMILIES.get(spec.model_type)
    if family is None and spec.model_type in _WRAPPERS:
        family = _FAMILIES.get(_wrapped_model_type(spec))
    if family is None:
        raise UnsupportedError(
            f"llama.cpp has no converter for model type {spec.model_type!r}, as far as moesize "
            "knows, so the size of a GGUF file cannot be told",
            "use an engine that loads safetensors, such as vllm or transformers, and no GGUF type",
        )
    return family


def _wrapped_model_type(spec: ModelSpec) -> str:
    """The model type inside a wrapper, by what sets the likely ones apart."""
    inner = spec.naming.partition("@")[0]
    if inner in _FAMILIES:
        return inner
    attention = _attention(spec, vary=False)
    if not isinstance(attention, GroupedQueryAttention) or inner != "default":
        return ""
    has_experts = _num_experts(spec) > 0
    if attention.qk_norm == "head":
        return "qwen3_moe" if has_experts else "qwen3"
    if has_experts:
        return ""
    return "qwen2" if attention.qkv_bias and not attention.out_bias else "llama"


def gguf_architecture(spec: ModelSpec) -> str:
    """GGUF's name for the architecture, `general.architecture` in the file.

    Raises UnsupportedError for a model type that llama.cpp's converter does not take.
    """
    architecture = _family_of(spec).architecture
    if architecture == "nemotron_h" and _num_experts(spec):
        return "nemotron_h_moe"
    return architecture


# --- Tensors ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """Equal tensors of the file: the entry that stands for them, and one tensor for each copy."""

    entry: Entry
    tensors: tuple[GgufTensor, ...]
    copies: int  # tensors in one layer


@dataclass(frozen=True, slots=True)
class _View:
    """A GGUF file before types: what the quantizer knows, and all parts in inventory order."""

    model: GgufModel
    parts: tuple[_Part, ...]
    tensors: tuple[GgufTensor, ...]
    keeps_mxfp4: bool

    def types(self, file_type: str, imatrix: bool) -> tuple[BlockType, ...]:
        """The type of every tensor."""
        types = assign_types(self.tensors, self.model, file_type, has_imatrix=imatrix)
        if not self.keeps_mxfp4:
            return types
        kept = BLOCK_TYPES["MXFP4"]
        return tuple(
            kept if tensor.name.endswith("_exps.weight") else block_type
            for tensor, block_type in zip(self.tensors, types, strict=True)
        )


# Published, and never converted; Apertus' scalars become metadata (conversion/llama.py).
_DROPPED = ("other.pooler", "other.inverse_frequencies", "other.alpha_", "towers")
_QKV = ("attention.q", "attention.k", "attention.v")


def gguf_tensors(spec: ModelSpec, *, mtp: bool = True) -> tuple[GgufModel, tuple[GgufTensor, ...]]:
    """Every tensor of the GGUF file, and what the quantizer knows of the model.

    `mtp` False: as converted with `--no-mtp`, or before llama.cpp kept MTP blocks.
    Raises UnsupportedError for families and tensors that llama.cpp lacks.
    """
    view = _view(spec, mtp)
    return view.model, view.tensors


def _view(spec: ModelSpec, mtp: bool) -> _View:
    # Kept on the spec, as moesize.core.checkpoint does: a global cache would keep specs alive.
    views: dict[bool, _View] = spec.__dict__.setdefault("_gguf_views", {})
    if mtp not in views:
        views[mtp] = _make_view(spec, mtp)
    return views[mtp]


def _make_view(spec: ModelSpec, with_mtp: bool) -> _View:
    family = _family_of(spec)
    if not with_mtp:
        family = replace(family, keeps_mtp=False, unlisted_blocks=0)
    parts = tuple(_part(spec, entry) for entry in _entries(spec, family))
    mtp = family.unlisted_blocks
    if spec.mtp is not None and family.keeps_mtp:
        mtp = len(spec.mtp.layers)
    attention = _attention(spec, vary=family.kv_heads_vary)
    heads, kv_heads = _heads(attention)
    model = GgufModel(
        architecture=gguf_architecture(spec),
        num_layers=(spec.num_layers or len(spec.encoder_layout)) + mtp,
        num_heads=heads,
        num_kv_heads=kv_heads,
        num_experts=_num_experts(spec),
    )
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    return _View(model, parts, tensors, family.keeps_mxfp4 and _has_mxfp4(spec))


def _has_mxfp4(spec: ModelSpec) -> bool:
    """Whether the experts are published in MXFP4, or are in the GGUF file of the spec."""
    own = spec.quantization
    return own is not None and (
        own.method == "mxfp4"
        or any(t.type == "MXFP4" and t.name.endswith("_exps.weight") for t in own.tensor_types)
    )


def _attention(spec: ModelSpec, *, vary: bool) -> Mixer | None:
    """The attention whose heads the quantizer sees: layer 0's, or the first there is."""
    layout = spec.layout or spec.encoder_layout
    for name in layout[:1] if vary else dict.fromkeys(layout):
        for mixer in spec.block(name).mixers:
            if isinstance(mixer, (GroupedQueryAttention, LatentAttention, CompressedAttention)):
                return mixer
    return None


def _heads(attention: Mixer | None) -> tuple[int, int]:
    match attention:
        case GroupedQueryAttention():
            return attention.num_heads, attention.num_kv_heads
        case LatentAttention() | CompressedAttention():
            return attention.num_heads, 1
        case _:
            return 0, 0


def _num_experts(spec: ModelSpec) -> int:
    return max(
        (
            feed_forward.num_experts
            for block in spec.blocks
            for feed_forward in block.feed_forwards
            if isinstance(feed_forward, MoeMlp)
        ),
        default=0,
    )


def _entries(spec: ModelSpec, family: _Family) -> Iterator[Entry]:
    """The inventory as the converter rearranges it."""
    for entry in inventory(spec):
        role = entry.tensor.role
        if entry.section == "tower" or role.startswith(_DROPPED):
            continue
        if entry.section == "mtp" or (entry.section == "stored" and entry.layers):
            if family.keeps_mtp:
                yield from _converted(spec, family, entry)
        elif entry.section == "stored":
            yield from _repeated(spec, family, entry)
        else:
            yield from _converted(spec, family, entry)
    yield from _added(spec, family)


def _repeated(spec: ModelSpec, family: _Family, entry: Entry) -> Iterator[Entry]:
    """What published files hold and engines do not load, where the converter keeps it."""
    role = entry.tensor.role
    if role == "lm_head.weight" and not family.drops_tied_head:
        yield entry
    elif role == "other.layer_scalar":  # Gemma 4: one scalar in each layer
        layers = tuple(range(spec.num_layers))
        yield Entry(replace(entry.tensor, shape=(1,), copies=1), "layers", layers)
    elif role == "other.unused_kv":  # Gemma 3n and 4: layers that read another layer's cache
        for block in spec.blocks:
            mixer = block.mixers[0]
            if isinstance(mixer, GroupedQueryAttention) and mixer.shares_kv:
                layers = tuple(i for i, name in enumerate(spec.layout) if name == block.name)
                for tensor in replace(mixer, shares_kv=False).tensors(spec.hidden_size):
                    if tensor.role in ("attention.k", "attention.v", "norms.k"):
                        yield Entry(tensor, "layers", layers, block.name)


def _converted(spec: ModelSpec, family: _Family, entry: Entry) -> Iterator[Entry]:
    """One entry as none, one or two of the file."""
    tensor = entry.tensor
    role = tensor.role
    base, bias = role.removesuffix(".bias"), role[len(role.removesuffix(".bias")) :]
    if base == "attention.kv_b" and not has_undivided_kv_b(spec):
        for half in _split_kv_b(spec, entry):
            yield replace(entry, tensor=half)
    elif base == "attention.linear.qkvz":
        mixer = next(m for m in spec.block(entry.block).mixers if isinstance(m, GatedDeltaNet))
        rows = 2 * mixer.key_size + mixer.value_size
        columns = tensor.shape[1]
        yield replace(entry, tensor=matrix("attention.linear.qkv", rows, columns))
        yield replace(entry, tensor=matrix("attention.linear.z", mixer.value_size, columns))
    elif role in ("norms.hidden", "norms.final") and tensor.copies > 1:
        copies = tensor.copies - _attention_residuals(spec, entry)
        yield replace(entry, tensor=replace(tensor, copies=copies))
    elif base == "embedding.positions":
        rows, columns = tensor.shape
        yield replace(entry, tensor=replace(tensor, shape=(rows - family.positions_from, columns)))
    elif base.endswith("_groups"):
        pass  # the second part of a Mamba-2 matrix, see below
    elif base in ("attention.linear.in", "attention.linear.conv"):
        yield _joined(spec, entry, role, (role, base + "_groups" + bias))
    elif family.fused_qkv and base in _QKV:
        if base == "attention.q":
            roles = tuple(part + bias for part in _QKV)
            yield _joined(spec, entry, "attention.qkv" + bias, roles)
    elif family.fused_gate_up and base in ("dense_mlp.gate", "dense_mlp.up"):
        if base == "dense_mlp.up":
            roles = ("dense_mlp.gate" + bias, "dense_mlp.up" + bias)
            yield _joined(spec, entry, role, roles)
    elif family.fused_experts and role in ("routed_experts.gate", "routed_experts.up"):
        if role == "routed_experts.up":
            roles = ("routed_experts.gate", "routed_experts.up")
            yield _joined(spec, entry, "routed_experts.gate_up", roles)
    else:
        yield entry


def has_undivided_kv_b(spec: ModelSpec) -> bool:
    """Whether the spec is of a GGUF file of before spring 2025, with MLA's kv_b in one piece.

    llama.cpp runs such a model as one without MLA: it caches keys and values of every head
    (src/models/deepseek2.cpp, `is_mla`).
    """
    own = spec.quantization
    return own is not None and any(item.name == _UNDIVIDED for item in own.tensor_types)


_UNDIVIDED = "attn_kv_b.weight"


def _attention_residuals(spec: ModelSpec, entry: Entry) -> int:
    """Kimi-K3 multiplies the norm of each attention residual into its projection."""
    role = "other.attention_residual"
    if entry.block:
        return sum(item.copies for item in spec.block_tensors[entry.block] if item.role == role)
    return sum(item.copies for item in spec.extra if item.role == role)


def _joined(spec: ModelSpec, entry: Entry, role: str, roles: tuple[str, ...]) -> Entry:
    """The tensors of these roles in the entry's block, one below the other."""
    parts = [tensor for tensor in spec.block_tensors[entry.block] if tensor.role in roles]
    rows = sum(tensor.shape[0] for tensor in parts)
    shape = (rows, *entry.tensor.shape[1:])
    return replace(entry, tensor=replace(entry.tensor, role=role, shape=shape, shard=None))


def _split_kv_b(spec: ModelSpec, entry: Entry) -> tuple[Tensor, Tensor]:
    """MLA's kv_b by head: k_b transposed, (rank, nope), and v_b (v, rank).

    As `moesize.core.gguf.split_mla_kv_b`, in the inventory's order of dimensions.
    """
    mixer = next(m for m in spec.block(entry.block).mixers if isinstance(m, LatentAttention))
    rank, heads = mixer.kv_lora_rank, mixer.num_heads
    return (
        matrix("attention.k_b", rank, mixer.qk_nope_head_dim, copies=heads),
        matrix("attention.v_b", mixer.v_head_dim, rank, copies=heads),
    )


def _added(spec: ModelSpec, family: _Family) -> Iterator[Entry]:
    """Tensors that the converter makes: factors of the rotary frequencies, one for each pair."""
    pairs = max((table.rotary_dim // 2 for table in spec.rotary), default=0)
    scaling = {table.scaling for table in spec.rotary}
    architecture = family.architecture
    if architecture == "gemma4":
        pairs = max(
            mixer.head_dim // 2
            for block in spec.blocks
            for mixer in block.mixers
            if isinstance(mixer, GroupedQueryAttention)
        )
        yield Entry(Tensor("other.rope_freqs", (pairs,)), "final")
    elif "llama3" in scaling and architecture in _LLAMA3_ROPE:
        yield Entry(Tensor("other.rope_freqs", (pairs,)), "final")
    elif scaling & {"longrope", "su"} and architecture in _LONG_ROPE:
        yield Entry(Tensor("other.rope_factors_long", (pairs,)), "final")
        yield Entry(Tensor("other.rope_factors_short", (pairs,)), "final")


# Converters that write `rope_freqs` for rope type llama3, and `rope_factors_*` for longrope.
_LLAMA3_ROPE = frozenset(
    {
        "afmoe",
        "apertus",
        "arcee",
        "deci",
        "exaone",
        "exaone-moe",
        "exaone4",
        "granite",
        "granite_swa",
        "granitehybrid",
        "granitemoe",
        "llama",
        "llama4",
        "mistral3",
        "smollm3",
        "step35",
    }
)
_LONG_ROPE = frozenset({"minicpm", "phi3", "phimoe"})


def _part(spec: ModelSpec, entry: Entry) -> _Part:
    """The tensors that an entry stands for; experts and heads of one layer are stacked in one."""
    tensor = entry.tensor
    stacked = tensor.copies > 1 and (tensor.expert or tensor.role in _STACKED)
    shape = tuple(reversed(tensor.shape))
    if stacked:
        shape = (*shape, tensor.copies)
    name = _name(spec, entry)
    copies = 1 if stacked else tensor.copies
    if entry.layers:
        tensors = tuple(
            GgufTensor(name=f"blk.{layer}.{name}", shape=shape, block=layer)
            for layer in entry.layers
            for _ in range(copies)
        )
        name = "blk.{layer}." + name
    else:
        tensors = (GgufTensor(name=name, shape=shape),) * copies
    # gguf_name makes names for norms up; the published ones are shown instead.
    shown = "" if tensor.group == "norms" else name
    return _Part(replace(entry, name=shown), tensors, copies)


_STACKED = ("attention.k_b", "attention.v_b")


def _name(spec: ModelSpec, entry: Entry) -> str:
    role = entry.tensor.role
    if entry.section == "stored" and entry.layers:
        role = "other.mtp_" + ("embedding" if role == "embedding.tokens" else "head")
    if role == "router.bias" and _adds_bias(spec, entry):
        return "ffn_gate_inp.bias"
    mixers = spec.block(entry.block).mixers if entry.block else ()
    kinds = [mixer.kind for mixer in mixers]
    if role.startswith("attention.linear."):
        kinds = [kind for kind in kinds if kind not in ("gqa", "mla", "compressed")]
    return gguf_name(role, mixer=kinds[0] if kinds else "")


def _adds_bias(spec: ModelSpec, entry: Entry) -> bool:
    """Whether the router's bias is one of its product (gpt-oss), not one of the choice."""
    return any(
        isinstance(part, MoeMlp) and part.router_bias == "bias"
        for part in spec.block(entry.block).feed_forwards
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTensor:
    """A tensor of the file as it is stored; `copies` equal ones in each of its layers.

    name    without the block: `ffn_down_exps.weight`
    shape   ne0 first, experts last
    """

    name: str
    shape: tuple[int, ...]
    block_type: BlockType
    copies: int

    @property
    def size_bytes(self) -> int:
        """Bytes of one of them."""
        return self.block_type.row_bytes(self.shape[0]) * prod(self.shape[1:])


def file_tensor(spec: ModelSpec, item: StoredEntry) -> FileTensor:
    """The tensor that an entry of `gguf_entries` is in the file.

    Raises UnsupportedError for an entry that is no GGUF tensor.
    """
    tensor = item.entry.tensor
    stacked = tensor.copies > 1 and (tensor.expert or tensor.role in _STACKED)
    shape = tuple(reversed(tensor.shape))
    block_type = BLOCK_TYPES.get(_GGUF_NAMES.get(item.dtype, item.dtype))
    if block_type is None:
        raise UnsupportedError(
            f"{tensor.role} is stored as {item.dtype}, which is no GGUF type",
            "choose a GGUF type such as Q4_K_M: `moesize quants` lists all",
        )
    return FileTensor(
        name=_name(spec, item.entry),
        shape=(*shape, tensor.copies) if stacked else shape,
        block_type=block_type,
        copies=1 if stacked else tensor.copies,
    )


# --- Sizes --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFileSize:
    """Bytes of a GGUF file: exact tensor data plus metadata, which depends on the vocabulary.

    low and high enclose the metadata of published files of common tokenizers.
    """

    tensor_bytes: int
    metadata_bytes: int
    low: int
    high: int

    @property
    def estimate(self) -> int:
        """Tensor data and the likely metadata."""
        return self.tensor_bytes + self.metadata_bytes


def gguf_entries(
    spec: ModelSpec, scheme: Scheme, *, imatrix: bool = False, mtp: bool = True
) -> tuple[StoredEntry, ...]:
    """The tensors of the GGUF file as inventory entries with the type of each.

    An entry is divided where its layers have different types. `imatrix`: quantized with an
    importance matrix; `mtp` False: as converted with `--no-mtp`.
    Raises UnsupportedError for families that llama.cpp lacks and for schemes that are not its own.
    """
    if not scheme.gguf_file_type:
        raise UnsupportedError(
            f"{scheme.name} is no GGUF file type", "`moesize quants` lists the schemes"
        )
    file_type = find_file_type(scheme.gguf_file_type)
    cache: dict[tuple[str, bool, bool], tuple[StoredEntry, ...]]
    cache = spec.__dict__.setdefault("_gguf_entries", {})
    key = (file_type, imatrix, mtp)
    if key not in cache:
        view = _view(spec, mtp)
        cache[key] = tuple(_stored(view, view.types(file_type, imatrix)))
    return cache[key]


# What `convert_hf_to_gguf.py --outtype auto` makes of a checkpoint's type.
_CONVERTED = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
# Published formats that the converter copies instead of taking them apart.
_COPIED = ("mxfp4",)


def gguf_stored(spec: ModelSpec, scheme: Scheme | None) -> tuple[StoredEntry, ...]:
    """The tensors that llama.cpp loads: of a GGUF scheme, or (None) of the checkpoint converted.

    Raises UnsupportedError for other schemes, and for published formats that are no GGUF type.
    """
    from moesize.core.quantization import find_scheme

    if scheme is not None:
        if not scheme.gguf_file_type:
            raise UnsupportedError(
                f"llama.cpp loads GGUF files; {scheme.name} is no GGUF type",
                "use --quant Q4_K_M, Q8_0, ...: `moesize quants` lists all",
            )
        return gguf_entries(spec, scheme)
    if spec.quantization is not None and spec.quantization.method == "gguf":
        return _file_entries(spec, spec.quantization)
    method = spec.quantization.method if spec.quantization is not None else ""
    if method and method not in _COPIED:
        raise UnsupportedError(
            f"llama.cpp cannot load {spec.title} as published ({method}): a converter makes a GGUF "
            "file of it",
            "choose the file's type: --quant Q8_0, Q4_K_M, ...; `moesize quants` lists all",
        )
    return gguf_entries(spec, find_scheme(_CONVERTED[spec.dtype]))


def _file_entries(spec: ModelSpec, quantization: CheckpointQuantization) -> tuple[StoredEntry, ...]:
    """The tensors of the GGUF file that the spec was read from, each of the type that it has."""
    cache: dict[str, tuple[StoredEntry, ...]] = spec.__dict__.setdefault("_file_entries", {})
    if "" not in cache:
        view = _view(spec, True)
        by_name: dict[tuple[str, int | None], str] = {}
        for item in quantization.tensor_types:
            by_name.update({(item.name, layer): item.type for layer in item.layers or (None,)})
        types = tuple(_stored_type(tensor, by_name) for tensor in view.tensors)
        cache[""] = tuple(_stored(view, types))
    return cache[""]


def _stored_type(tensor: GgufTensor, types: dict[tuple[str, int | None], str]) -> BlockType:
    name = tensor.name if tensor.block is None else tensor.name.split(".", 2)[2]
    found = types.get((name, tensor.block), "")
    if found not in BLOCK_TYPES:
        raise InvalidInputError(
            f"quantization.tensor_types of the spec gives {tensor.name} "
            + (f"the unknown type {found[:40]!r}" if found else "no type"),
            "import the GGUF file again",
        )
    return BLOCK_TYPES[found]


def gguf_model_bytes(
    spec: ModelSpec, file_type: str, *, imatrix: bool = False, mtp: bool = True
) -> int:
    """What llama.cpp prints as "model size": all tensors of the file, MTP blocks included."""
    view = _view(spec, mtp)
    types = view.types(file_type, imatrix)
    return model_bytes(view.tensors, types)


def gguf_file_bytes(
    spec: ModelSpec, file_type: str, *, imatrix: bool = False, mtp: bool = True
) -> GgufFileSize:
    """Size of the file: tensors padded to 32 bytes, and metadata within a band.

    Metadata is almost all vocabulary. Published files have about 23 bytes for each token of a
    SentencePiece vocabulary (text, score, type) and 39 to 61 for a BPE one (merges as well).
    """
    view = _view(spec, mtp)
    types = view.types(file_type, imatrix)
    tensor_data = file_tensor_bytes(view.tensors, types)
    directory = len(view.tensors) * _TENSOR_INFO_BYTES
    vocabulary = spec.embedding.vocab_size
    small = vocabulary <= _SMALL_VOCABULARY or view.model.architecture in _SENTENCEPIECE
    each = _SENTENCEPIECE_TOKEN_BYTES if small else _BPE_TOKEN_BYTES
    return GgufFileSize(
        tensor_bytes=tensor_data,
        metadata_bytes=vocabulary * each + directory,
        low=tensor_data + vocabulary * _TOKEN_BYTES_LOW + directory,
        high=tensor_data + vocabulary * _TOKEN_BYTES_HIGH + directory,
    )


# Name (about 22 characters) with its length, number of dimensions, two of them, type and offset.
_TENSOR_INFO_BYTES = 62
# Vocabularies of this size are SentencePiece's; the larger ones are BPE, but for Gemma's.
_SMALL_VOCABULARY = 65_536
_SENTENCEPIECE = frozenset({"gemma", "gemma2", "gemma3", "gemma3n"})
_SENTENCEPIECE_TOKEN_BYTES, _BPE_TOKEN_BYTES = 24, 46
_TOKEN_BYTES_LOW, _TOKEN_BYTES_HIGH = 18, 66


def _stored(view: _View, of_tensors: tuple[BlockType, ...]) -> Iterator[StoredEntry]:
    types = iter(of_tensors)
    for part in view.parts:
        of_part = [next(types) for _ in part.tensors]
        entry = part.entry
        if not entry.layers:
            yield _stored_entry(entry, of_part[0])
            continue
        by_type: dict[str, list[int]] = {}
        for layer, block_type in zip(entry.layers, of_part[:: part.copies], strict=True):
            by_type.setdefault(block_type.name, []).append(layer)
        for name, layers in by_type.items():
            yield _stored_entry(replace(entry, layers=tuple(layers)), BLOCK_TYPES[name])


_PLAIN_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Token tables of hash routing are I32 in the file, as wide as F32; the inventory may say int64.
_GGUF_NAMES = {
    **{dtype: name for name, dtype in _PLAIN_DTYPES.items()},
    "int32": "F32",
    "int64": "F32",
}


def _stored_entry(entry: Entry, block_type: BlockType) -> StoredEntry:
    dtype = _PLAIN_DTYPES.get(block_type.name)
    if dtype is None:
        weight_format: WeightFormat = Gguf(block_type=block_type)
        return StoredEntry(entry, weight_format, block_type.name)
    # Token tables of hash routing are I32, as wide as F32.
    return StoredEntry(entry, None, entry.tensor.dtype if "int" in entry.tensor.dtype else dtype)


def count_types(entries: Iterable[StoredEntry]) -> dict[str, int]:
    """Tensors of each type, as a GGUF loader lists them."""
    counts: Counter[str] = Counter()
    names = {dtype: name for name, dtype in _PLAIN_DTYPES.items()} | {"int32": "I32"}
    for item in entries:
        tensor = item.entry.tensor
        stacked = tensor.expert or tensor.role in _STACKED
        copies = 1 if stacked else tensor.copies
        counts[names.get(item.dtype, item.dtype)] += copies * item.entry.count
    return dict(counts)
