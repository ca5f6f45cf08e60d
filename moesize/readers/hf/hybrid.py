"""Hybrid families: linear attention, Mamba or short convolutions among attention layers.

Class defaults that configs leave out are those of Transformers 5.19 (models/*/configuration_*.py);
element types of states and decay vectors are those of vLLM 0.32.0 (model_executor/models).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesize.core.feed_forward import DenseMlp, FeedForward, MoeMlp, SharedExperts
from moesize.core.model_spec import Block, MultiTokenPrediction, RotaryTable
from moesize.core.recurrent import GatedDeltaNet, Mamba1, Mamba2, ShortConv
from moesize.readers.hf.common import (
    dense_mlp,
    embedding,
    grouped_query_attention,
    head_dim,
    max_context,
    rotary_table,
    stack,
    with_defaults,
)
from moesize.readers.hf.registry import SpecFields, family

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moesize.core.mixers import Mixer
    from moesize.readers.hf.view import ConfigView

_STATE_DTYPES = {"float32", "float16", "bfloat16"}
_ATTENTION = {"attention", "full_attention", "hybrid"}
_RECURRENT = {"mamba", "linear_attention", "mamba2"}

# vLLM 0.32.0 (config/model.py) assumes this length where a config states none, as those of
# attention-free models do.
_CONTEXT_WHEN_UNSTATED = 2048
_NO_LIMIT_NOTE = (
    "the config states no longest context: this architecture has none, engines assume 2048"
)


def _state_dtype(config: ConfigView, *keys: str, default: str = "") -> str:
    """Element type of the recurrent state; empty = the model's own."""
    name = config.text(*keys, default=default)
    if name and name not in _STATE_DTYPES:
        raise config.fail(f"{config.path(keys[0])} {name!r} is not one of {sorted(_STATE_DTYPES)}")
    return name


def _rotary(config: ConfigView, size: int, positions: int, default: float) -> RotaryTable:
    """Table of the rotated part of each head; `partial_rotary_factor` stands in several places."""
    partial = default
    for view in (config, config.sub("rope_parameters", "rope_scaling")):
        if view is not None and "partial_rotary_factor" in view:
            partial = view.number("partial_rotary_factor")
    if not 0 < partial <= 1:
        raise config.fail(f"partial_rotary_factor is {partial}; it must lie in 0..1")
    return rotary_table(config, size, positions, partial=partial)


def _layout(
    config: ConfigView, num_layers: int, *keys: str, kinds: dict[str, set[str]]
) -> list[str]:
    """A list of layer kinds, checked for length and reduced to the names in `kinds`."""
    stated = config.list(*keys)
    if not stated:
        return []
    if len(stated) != num_layers:
        raise config.fail(f"{keys[0]} has {len(stated)} entries for {num_layers} layers")
    return [_kind_of(config, value, keys[0], kinds) for value in stated]


def _kind_of(config: ConfigView, value: Any, key: str, kinds: dict[str, set[str]]) -> str:
    for kind, names in kinds.items():
        if isinstance(value, str) and value in names:
            return kind
    shown = value[:40] if isinstance(value, str) else type(value).__name__
    raise config.fail(f"{config.path(key)} holds a layer of unknown kind {shown!r}")


def _indices(config: ConfigView, num_layers: int, *keys: str) -> set[int]:
    """A list of layer indices, each checked."""
    found = config.list(*keys)
    for value in found:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < num_layers:
            raise config.fail(f"{keys[0]} must hold indices of {num_layers} layers")
    return set(found)


# Qwen3-Next and Qwen3.5 ------------------------------------------------------------------------


def _qwen_hybrid(
    config: ConfigView,
    *,
    naming: str,
    num_heads: int,
    num_kv_heads: int,
    split_projections: bool,
    moe: bool,
    intermediate_size: int,
    experts_per_token: int,
    num_experts: int,
) -> SpecFields:
    """Three gated delta layers, then one attention layer with an output gate; numbers: defaults."""
    num_layers = config.layers()
    interval = config.int("full_attention_interval", default=4)
    kinds = _layout(
        config,
        num_layers,
        "layer_types",
        kinds={"attention": _ATTENTION, "linear": _RECURRENT},
    ) or ["linear" if (i + 1) % interval else "attention" for i in range(num_layers)]
    size = config.int("head_dim", default=256)
    gated = config.flag("attn_output_gate", default=True)
    attention = grouped_query_attention(
        with_defaults(
            config,
            num_attention_heads=num_heads,
            num_key_value_heads=num_kv_heads,
            head_dim=size,
        ),
        qk_norm="head",
        gate="elementwise" if gated else "none",
        qkv_bias=config.flag("attention_bias", default=False),
        out_bias=config.flag("attention_bias", default=False),
    )
    linear = GatedDeltaNet(
        num_k_heads=config.int("linear_num_key_heads", default=16),
        num_v_heads=config.int("linear_num_value_heads", default=32),
        k_head_dim=config.int("linear_key_head_dim", default=128),
        v_head_dim=config.int("linear_value_head_dim", default=128),
        conv_kernel=config.int("linear_conv_kernel_dim", default=4),
        state_dtype=_state_dtype(config, "mamba_ssm_dtype"),
        split_projections=split_projections,
    )
    routed: FeedForward | None = None
    if moe:
        shared_width = config.count("shared_expert_intermediate_size", default=512)
        shared = SharedExperts(intermediate_size=shared_width, gate=True) if shared_width else None
        routed = MoeMlp(
            num_experts=config.int("num_experts", default=num_experts),
            experts_per_token=config.int("num_experts_per_tok", default=experts_per_token),
            intermediate_size=config.int("moe_intermediate_size", default=512),
            shared=shared,
        )
    # Read only where a layer is dense: MoE configs of this family leave the width out.
    dense_at = _indices(config, num_layers, "mlp_only_layers") if moe else set(range(num_layers))
    step = config.int("decoder_sparse_step", default=1) if moe else 1
    dense: FeedForward | None = None
    blocks = []
    for i, kind in enumerate(kinds):
        sparse = routed is not None and i not in dense_at and (i + 1) % step == 0
        if not sparse and dense is None:
            dense = DenseMlp(
                intermediate_size=config.int("intermediate_size", default=intermediate_size)
            )
        mlp = routed if sparse else dense
        assert mlp is not None
        mixer: Mixer = attention if kind == "attention" else linear
        suffix = "" if mlp is routed or not moe else "_dense"
        blocks.append(Block(name=kind + suffix, mixers=(mixer,), feed_forwards=(mlp,)))
    context = max_context(config, default=32768)
    guessing = config.count("mtp_num_hidden_layers", "num_nextn_predict_layers", default=0)
    if guessing > 16:
        raise config.fail(f"mtp_num_hidden_layers is {guessing}; at most 16 make sense")
    mtp_block = Block(
        name="mtp",
        mixers=(attention,),
        feed_forwards=(routed or _need_dense(config, dense),),
    )
    distinct, runs = stack(blocks)
    fields: SpecFields = {
        "hidden_size": config.int("hidden_size"),
        "max_context": context,
        "embedding": embedding(config, tied=False),
        "blocks": (*distinct, mtp_block) if guessing else distinct,
        "layers": runs,
        "rotary": (_rotary(config, size, context, 0.25),),
        "naming": naming,
    }
    if guessing:
        dedicated = config.flag("mtp_use_dedicated_embeddings", default=False)
        fields["mtp"] = MultiTokenPrediction(layers=("mtp",) * guessing, stores_embedding=dedicated)
    return fields


def _need_dense(config: ConfigView, dense: FeedForward | None) -> FeedForward:
    if dense is None:
        raise config.fail("intermediate_size is missing")
    return dense


@family("qwen3_next")
def qwen3_next(config: ConfigView) -> SpecFields:
    """Qwen3-Next and Qwen3-Coder-Next.

    Some published files hold an MTP block (`mtp.*`) that the config does not mention.
    """
    fields = _qwen_hybrid(
        config,
        naming="qwen3_next",
        num_heads=16,
        num_kv_heads=2,
        split_projections=False,
        moe=True,
        intermediate_size=5632,
        experts_per_token=10,
        num_experts=512,
    )
    if "mtp" not in fields:
        fields["notes"] = (
            "published files of this family may hold an MTP block that no config mentions",
        )
    return fields


@family("qwen3_5_text")
def qwen3_5_text(config: ConfigView) -> SpecFields:
    """Text part of the dense Qwen3.5 and Qwen3.6."""
    return _qwen_hybrid(
        config,
        naming="qwen3_5",
        num_heads=16,
        num_kv_heads=4,
        split_projections=True,
        moe=False,
        intermediate_size=12288,
        experts_per_token=0,
        num_experts=0,
    )


@family("qwen3_5_moe_text")
def qwen3_5_moe_text(config: ConfigView) -> SpecFields:
    """Text part of the Qwen3.5 and Qwen3.6 mixtures of experts."""
    return _qwen_hybrid(
        config,
        naming="qwen3_5",
        num_heads=16,
        num_kv_heads=2,
        split_projections=True,
        moe=True,
        intermediate_size=0,
        experts_per_token=8,
        num_experts=256,
    )


@family("olmo_hybrid")
def olmo_hybrid(config: ConfigView) -> SpecFields:
    """OLMo-Hybrid: gated delta layers (norm before) and attention layers (norm after)."""
    num_layers = config.layers(default=32)
    kinds = _layout(
        config,
        num_layers,
        "layer_types",
        kinds={"attention": _ATTENTION, "linear": _RECURRENT},
    ) or ["linear" if (i + 1) % 4 else "attention" for i in range(num_layers)]
    heads = config.int("num_attention_heads", default=30)
    hidden = config.int("hidden_size", default=3840)
    key_heads = config.int("linear_num_key_heads", default=heads)
    key_dim = config.int("linear_key_head_dim", default=3 * hidden // (4 * key_heads))
    attention = grouped_query_attention(config, qk_norm="projection")
    linear = GatedDeltaNet(
        num_k_heads=key_heads,
        num_v_heads=config.int("linear_num_value_heads", default=heads),
        k_head_dim=key_dim,
        v_head_dim=config.int("linear_value_head_dim", default=2 * key_dim),
        conv_kernel=config.int("linear_conv_kernel_dim", default=4),
        split_projections=True,
        decay_dtype="",
    )
    mlp = dense_mlp(config)
    full = Block(name="attention", mixers=(attention,), feed_forwards=(mlp,))
    delta = Block(name="linear", mixers=(linear,), feed_forwards=(mlp,))
    blocks, layers = stack([full if kind == "attention" else delta for kind in kinds])
    context = max_context(config, default=65536)
    # Without rope_parameters the released models use no positions at all (vLLM olmo_hybrid.py).
    rotary = config.sub("rope_parameters")
    uses_rope = rotary is not None and "rope_theta" in rotary
    return {
        "hidden_size": hidden,
        "max_context": context,
        "embedding": embedding(config, tied=False),
        "blocks": blocks,
        "layers": layers,
        "rotary": (rotary_table(config, attention.head_dim, context),) if uses_rope else (),
        "naming": "olmo_hybrid",
    }


# Mamba-2 hybrids ---------------------------------------------------------------------------------


def _mamba2_heads(config: ConfigView, inner: int, heads: int, *keys: str) -> int:
    """Head size: stated, or "auto" = inner width / heads; the two must agree."""
    if inner % heads:
        raise config.fail(f"{heads} Mamba heads do not divide the inner width {inner}")
    size = inner // heads
    if any(key in config for key in keys) and config.data.get(keys[0]) != "auto":
        stated = config.int(*keys)
        if stated != size:
            raise config.fail(
                f"{keys[0]} is {stated}, but {heads} heads of an inner width of {inner} have {size}"
            )
    return size


def _bamba_mamba(config: ConfigView, *, inner: int = 0, gate_norm: bool = True) -> Mamba2:
    """Mamba-2 as Bamba spells it, which Granite 4 and Falcon-H1 took over."""
    hidden = config.int("hidden_size", default=4096)
    inner = inner or config.int("mamba_expand", default=2) * hidden
    heads = config.int("mamba_n_heads", default=128)
    return Mamba2(
        num_heads=heads,
        head_dim=_mamba2_heads(config, inner, heads, "mamba_d_head"),
        num_groups=config.int("mamba_n_groups", default=1),
        state_size=config.int("mamba_d_state", default=256),
        conv_kernel=config.int("mamba_d_conv", default=4),
        conv_bias=config.flag("mamba_conv_bias", default=True),
        projection_bias=config.flag("mamba_proj_bias", default=False),
        gate_norm=gate_norm,
    )


@family("nemotron_h")
def nemotron_h(config: ConfigView) -> SpecFields:
    """Nemotron-H and Nemotron-3: every layer is one mixer or one feed-forward, with one norm.

    The pattern spells M = Mamba-2, * = attention, - = MLP, E = mixture of experts. There are no
    positions: attention has no rotary embedding.
    """
    kinds = _nemotron_kinds(config, "hybrid_override_pattern", "layers_block_type", "layer_types")
    stated = config.layers(default=len(kinds))
    if stated != len(kinds):
        raise config.fail(
            f"hybrid_override_pattern has {len(kinds)} layers, num_hidden_layers is {stated}"
        )
    parts = _NemotronParts(config)
    blocks = [parts.block(kind) for kind in kinds]
    distinct, layers = stack(blocks)
    fields: SpecFields = {
        "hidden_size": config.int("hidden_size", default=4096),
        "max_context": max_context(config, default=4096),
        "embedding": embedding(config, tied=False),
        "blocks": distinct,
        "layers": layers,
        "naming": "nemotron_h",
    }
    guessing = config.count("num_nextn_predict_layers", default=0)
    if guessing:
        if guessing > 16:
            raise config.fail(f"num_nextn_predict_layers is {guessing}; at most 16 make sense")
        steps = _nemotron_kinds(config, "mtp_hybrid_override_pattern", "mtp_layers_block_type")
        step = [parts.block(kind) for kind in steps or ("attention", "moe")]
        fields["blocks"] = (*distinct, _joined("mtp", step))
        fields["mtp"] = MultiTokenPrediction(layers=("mtp",) * guessing)
    return fields


def _joined(name: str, parts: Sequence[Block]) -> Block:
    """Several one-part layers as one block: the layers of one MTP step."""
    return Block(
        name=name,
        mixers=tuple(mixer for part in parts for mixer in part.mixers),
        feed_forwards=tuple(mlp for part in parts for mlp in part.feed_forwards),
        num_norms=sum(part.num_norms for part in parts),
    )


_NEMOTRON_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
_NEMOTRON_NAMES = {
    "mamba": _RECURRENT,
    "attention": _ATTENTION,
    "mlp": {"mlp"},
    "moe": {"moe"},
}


def _nemotron_kinds(config: ConfigView, pattern_key: str, *list_keys: str) -> list[str]:
    """Layer kinds from the pattern string, or from the list that newer configs write."""
    for key in list_keys:
        if key in config:
            values = config.list(key, max_length=4096)
            return [_kind_of(config, value, key, _NEMOTRON_NAMES) for value in values]
    pattern = config.text(pattern_key, default="")
    if len(pattern) > 4096:
        raise config.fail(f"{pattern_key} has {len(pattern)} layers, more than 4096")
    unknown = sorted(set(pattern) - set(_NEMOTRON_LETTERS))
    if unknown:
        raise config.fail(f"{pattern_key} holds unknown letters {unknown}")
    if not pattern and pattern_key == "hybrid_override_pattern":
        raise config.fail(f"{pattern_key} is missing", "it says what every layer is")
    return [_NEMOTRON_LETTERS[letter] for letter in pattern]


class _NemotronParts:
    """The four kinds of layer, each read from the config only where the pattern uses it."""

    def __init__(self, config: ConfigView) -> None:
        self.config = config
        self.blocks: dict[str, Block] = {}

    def block(self, kind: str) -> Block:
        if kind not in self.blocks:
            mixers: tuple[Mixer, ...] = ()
            mlps: tuple[FeedForward, ...] = ()
            if kind == "mamba":
                mixers = (self._mamba(),)
            elif kind == "attention":
                mixers = (self._attention(),)
            elif kind == "mlp":
                bias = self.config.flag("mlp_bias", default=False)
                width = self.config.int("intermediate_size", default=21504)
                mlps = (DenseMlp(intermediate_size=width, gated=False, bias=bias),)
            else:
                mlps = (self._moe(),)
            self.blocks[kind] = Block(name=kind, mixers=mixers, feed_forwards=mlps, num_norms=1)
        return self.blocks[kind]

    def _mamba(self) -> Mamba2:
        config = self.config
        return Mamba2(
            num_heads=config.int("mamba_num_heads", default=128),
            head_dim=config.int("mamba_head_dim", default=64),
            num_groups=config.int("n_groups", "mamba_n_groups", default=8),
            state_size=config.int("ssm_state_size", default=128),
            conv_kernel=config.int("conv_kernel", "mamba_d_conv", default=4),
            conv_bias=config.flag("use_conv_bias", "mamba_conv_bias", default=True),
            projection_bias=config.flag("mamba_proj_bias", default=False),
            state_dtype=_state_dtype(config, "mamba_ssm_cache_dtype", default="float32"),
        )

    def _attention(self) -> Mixer:
        # The first releases call the head size attention_head_dim.
        config = self.config
        size = config.int("head_dim", "attention_head_dim", default=128)
        bias = config.flag("attention_bias", default=False)
        return grouped_query_attention(
            with_defaults(config, head_dim=size), qkv_bias=bias, out_bias=bias
        )

    def _moe(self) -> MoeMlp:
        config = self.config
        bias = config.flag("mlp_bias", default=False)
        shared = None
        if count := config.count("n_shared_experts", default=1):
            width = config.int("moe_shared_expert_intermediate_size", default=7688)
            shared = SharedExperts(intermediate_size=count * width, gated=False, bias=bias)
        return MoeMlp(
            num_experts=config.int("n_routed_experts", default=8),
            experts_per_token=config.int("num_experts_per_tok", default=2),
            intermediate_size=config.int("moe_intermediate_size", default=7688),
            gated=False,
            bias=bias,
            router_bias="correction",
            shared=shared,
            latent_size=config.int("moe_latent_size", default=None),
        )


@family("bamba")
def bamba(config: ConfigView) -> SpecFields:
    """Bamba: Mamba-2 layers, attention at the listed indices, a dense MLP in each."""
    num_layers = config.layers()
    attention_at = _indices(config, num_layers, "attn_layer_indices")
    bias = config.flag("attention_bias", default=False)
    attention = grouped_query_attention(config, qkv_bias=bias, out_bias=bias)
    mlp = dense_mlp(config, bias=config.flag("mlp_bias", default=False))
    full = Block(name="attention", mixers=(attention,), feed_forwards=(mlp,))
    mamba = Block(name="mamba", mixers=(_bamba_mamba(config),), feed_forwards=(mlp,))
    blocks, layers = stack([full if i in attention_at else mamba for i in range(num_layers)])
    context = max_context(config, default=262144)
    return {
        "hidden_size": config.int("hidden_size"),
        "max_context": context,
        "embedding": embedding(config, tied=False),
        "blocks": blocks,
        "layers": layers,
        # The class sets the rotated half of each head itself.
        "rotary": (rotary_table(config, attention.head_dim, context, partial=0.5),),
        "naming": "bamba",
    }


@family("granitemoehybrid")
def granite_hybrid(config: ConfigView) -> SpecFields:
    """Granite 4: Mamba-2 and attention; routed experts beside one shared MLP, or only that."""
    num_layers = config.layers()
    kinds = (
        _layout(
            config,
            num_layers,
            "layer_types",
            "layers_block_type",
            kinds={"attention": _ATTENTION, "mamba": _RECURRENT},
        )
        or ["mamba"] * num_layers
    )
    bias = config.flag("attention_bias", default=False)
    attention = grouped_query_attention(config, qkv_bias=bias, out_bias=bias)
    width = config.int("shared_intermediate_size", default=1024)
    experts = config.count("num_local_experts", default=8)
    mlp: FeedForward
    if experts:
        mlp = MoeMlp(
            num_experts=experts,
            experts_per_token=config.int("num_experts_per_tok", default=2),
            intermediate_size=config.int("intermediate_size", default=11008),
            shared=SharedExperts(intermediate_size=width),
            stacked=True,
        )
    else:
        mlp = DenseMlp(intermediate_size=width)
    full = Block(name="attention", mixers=(attention,), feed_forwards=(mlp,))
    # Dense Granite 4 (granite-4.0-micro, -1b) has no Mamba layer and no meaningful Mamba sizes.
    mamba = full
    if "mamba" in kinds:
        mamba = Block(name="mamba", mixers=(_bamba_mamba(config),), feed_forwards=(mlp,))
    blocks, layers = stack([full if kind == "attention" else mamba for kind in kinds])
    context = max_context(config, default=2048)
    rotary: tuple[RotaryTable, ...] = ()
    if config.text("position_embedding_type", default="nope") == "rope" and "attention" in kinds:
        rotary = (rotary_table(config, attention.head_dim, context),)
    return {
        "hidden_size": config.int("hidden_size"),
        "max_context": context,
        "embedding": embedding(config, tied=False),
        "blocks": blocks,
        "layers": layers,
        "rotary": rotary,
        "naming": "granitemoehybrid",
    }


@family("falcon_h1")
def falcon_h1(config: ConfigView) -> SpecFields:
    """Falcon-H1: attention and Mamba-2 side by side in every layer."""
    bias = config.flag("attention_bias", default=False)
    projections = config.flag("projectors_bias", default=False)
    attention = grouped_query_attention(config, qkv_bias=bias, out_bias=bias)
    inner = config.int("mamba_d_ssm", default=0)
    mamba = _bamba_mamba(
        config, inner=inner, gate_norm=config.flag("mamba_rms_norm", default=False)
    )
    if projections != mamba.projection_bias:
        # `projectors_bias` is the bias of out_proj, `mamba_proj_bias` that of in_proj.
        raise config.fail("projectors_bias and mamba_proj_bias differ; no released model does that")
    mlp = dense_mlp(config, bias=config.flag("mlp_bias", default=False))
    block = Block(name="hybrid", mixers=(attention, mamba), feed_forwards=(mlp,))
    blocks, layers = stack([block] * config.layers())
    context = max_context(config, default=8192)
    return {
        "hidden_size": config.int("hidden_size"),
        "max_context": context,
        "embedding": embedding(config, tied=False),
        "blocks": blocks,
        "layers": layers,
        "rotary": (rotary_table(config, attention.head_dim, context),),
        "naming": "falcon_h1",
    }


@family("mamba2")
def mamba2(config: ConfigView) -> SpecFields:
    """Mamba-2 (Codestral Mamba): no attention, no MLP."""
    hidden = config.int("hidden_size", default=4096)
    bias = config.flag("use_bias", default=False)
    mixer = Mamba2(
        num_heads=config.int("num_heads", default=128),
        head_dim=config.int("head_dim", default=64),
        num_groups=config.int("n_groups", default=8),
        state_size=config.int("state_size", default=128),
        conv_kernel=config.int("conv_kernel", default=4),
        conv_bias=config.flag("use_conv_bias", default=True),
        projection_bias=bias,
    )
    if mixer.inner_size != config.int("expand", default=2) * hidden:
        raise config.fail("num_heads * head_dim must equal expand * hidden_size")
    return _attention_free(config, hidden, mixer, tied=False, default_layers=64)


@family("mamba", "falcon_mamba")
def mamba(config: ConfigView) -> SpecFields:
    """Mamba and Falcon-Mamba: no attention, no MLP; the norms of dt, B and C hold no weights."""
    hidden = config.int("hidden_size", default=768)
    # Stated by Falcon-Mamba, whose `expand` is not what it is built with.
    inner = config.int("intermediate_size", default=None)
    mixer = Mamba1(
        inner_size=inner or config.int("expand", default=2) * hidden,
        state_size=config.int("state_size", default=16),
        dt_rank=_dt_rank(config, "time_step_rank", hidden),
        conv_kernel=config.int("conv_kernel", default=4),
        conv_bias=config.flag("use_conv_bias", default=True),
        projection_bias=config.flag("use_bias", default=False),
    )
    return _attention_free(config, hidden, mixer, tied=True, default_layers=32)


def _attention_free(
    config: ConfigView, hidden: int, mixer: Mixer, *, tied: bool, default_layers: int
) -> SpecFields:
    layers = config.layers("num_hidden_layers", "n_layer", default=default_layers)
    blocks, runs = stack([Block(name="mamba", mixers=(mixer,), num_norms=1)] * layers)
    stated = "max_position_embeddings" in config
    return {
        "hidden_size": hidden,
        "max_context": max_context(config, default=_CONTEXT_WHEN_UNSTATED),
        "embedding": embedding(config, tied=tied),
        "blocks": blocks,
        "layers": runs,
        "naming": "mamba",
        "notes": () if stated else (_NO_LIMIT_NOTE,),
    }


def _dt_rank(config: ConfigView, key: str, hidden: int) -> int:
    """Rank of the step size; "auto" = hidden size / 16, rounded up."""
    if config.data.get(key) in (None, "auto"):
        return -(-hidden // 16)
    return config.int(key)


@family("jamba")
def jamba(config: ConfigView) -> SpecFields:
    """Jamba: Mamba with norms of dt, B and C; attention and experts every so many layers."""
    num_layers = config.layers(default=32)
    hidden = config.int("hidden_size", default=4096)
    attention_at = _periodic(config, "attn_layer", num_layers, period=8, offset=4)
    expert_at = _periodic(config, "expert_layer", num_layers, period=2, offset=1)
    experts = config.int("num_experts", default=16)
    mixers: dict[str, Mixer] = {
        "attention": grouped_query_attention(config),
        "mamba": Mamba1(
            inner_size=config.int("mamba_expand", default=2) * hidden,
            state_size=config.int("mamba_d_state", default=16),
            dt_rank=_dt_rank(config, "mamba_dt_rank", hidden) if "mamba_dt_rank" in config else 256,
            conv_kernel=config.int("mamba_d_conv", default=4),
            conv_bias=config.flag("mamba_conv_bias", default=True),
            projection_bias=config.flag("mamba_proj_bias", default=False),
            inner_norms=True,
        ),
    }
    width = config.int("intermediate_size", default=14336)
    dense = DenseMlp(intermediate_size=width)
    # With a single expert the class builds a plain MLP (Jamba 3B).
    moe: FeedForward = dense
    if experts > 1:
        moe = MoeMlp(
            num_experts=experts,
            experts_per_token=config.int("num_experts_per_tok", default=2),
            intermediate_size=width,
        )
    layout = []
    for i in range(num_layers):
        mixer = "attention" if i in attention_at else "mamba"
        mlp = moe if i in expert_at else dense
        name = f"{mixer}_{mlp.kind}"
        layout.append(Block(name=name, mixers=(mixers[mixer],), feed_forwards=(mlp,)))
    blocks, layers = stack(layout)
    return {
        "hidden_size": hidden,
        "max_context": max_context(config, "max_position_embeddings", "n_ctx", default=262144),
        "embedding": embedding(config, tied=False),
        "blocks": blocks,
        "layers": layers,
        "naming": "jamba",
    }


def _periodic(
    config: ConfigView, name: str, num_layers: int, *, period: int, offset: int
) -> set[int]:
    every = config.int(f"{name}_period", default=period)
    first = config.count(f"{name}_offset", default=offset)
    if first >= every:
        raise config.fail(f"{name}_offset ({first}) must be smaller than {name}_period ({every})")
    return {i for i in range(num_layers) if i % every == first}


# Short convolutions ------------------------------------------------------------------------------


def _lfm_layout(config: ConfigView, num_layers: int) -> list[str]:
    kinds = _layout(
        config,
        num_layers,
        "layer_types",
        kinds={"attention": _ATTENTION, "conv": {"conv", "short_conv"}},
    )
    if kinds:
        return kinds
    if "full_attn_idxs" not in config:
        raise config.fail("layer_types is missing", "it says which layers are convolutions")
    attention_at = _indices(config, num_layers, "full_attn_idxs")
    return ["attention" if i in attention_at else "conv" for i in range(num_layers)]


def _lfm_mixers(config: ConfigView) -> dict[str, Mixer]:
    hidden = config.int("hidden_size")
    return {
        "attention": grouped_query_attention(config, qk_norm="head"),
        "conv": ShortConv(
            # conv_dim and conv_dim_out of the first releases equal the hidden size.
            size=config.int("conv_dim", default=hidden),
            kernel=config.int("conv_L_cache", default=3),
            bias=config.flag("conv_bias", default=False),
        ),
    }


def _lfm_fields(config: ConfigView, layout: list[Block], naming: str) -> SpecFields:
    blocks, layers = stack(layout)
    context = max_context(config, default=128000)
    table = embedding(config, tied=config.flag("tie_embedding", default=True))
    return {
        "hidden_size": config.int("hidden_size"),
        "max_context": context,
        "embedding": table,
        "blocks": blocks,
        "layers": layers,
        "rotary": (rotary_table(config, head_dim(config), context),),
        "naming": naming,
    }


@family("lfm2")
def lfm2(config: ConfigView) -> SpecFields:
    """LFM2: gated short convolutions and attention; the MLP width may be derived from a larger one.

    width = multiple of `block_multiple_of` at or above multiplier * 2/3 * intermediate_size
    """
    width = config.int("block_ff_dim", "intermediate_size", default=12288)
    if config.flag("block_auto_adjust_ff_dim", default=True):
        width = 2 * width // 3
        multiple = config.int("block_multiple_of", default=256)
        factor = config.number("block_ffn_dim_multiplier", default=1.0)
        if not 0 < factor <= 64:
            raise config.fail(f"block_ffn_dim_multiplier is {factor}; it must lie in 0..64")
        width = -(-int(factor * width) // multiple) * multiple
    mlp = DenseMlp(intermediate_size=width)
    mixers = _lfm_mixers(config)
    layout = [
        Block(name=kind, mixers=(mixers[kind],), feed_forwards=(mlp,))
        for kind in _lfm_layout(config, config.layers())
    ]
    return _lfm_fields(config, layout, "lfm2")


@family("lfm2_moe")
def lfm2_moe(config: ConfigView) -> SpecFields:
    """LFM2 with experts: the first layers are dense."""
    dense = DenseMlp(intermediate_size=config.int("intermediate_size", default=7168))
    biased = config.flag("use_expert_bias", default=True)
    moe = MoeMlp(
        num_experts=config.int("num_experts", default=32),
        experts_per_token=config.int("num_experts_per_tok", default=4),
        intermediate_size=config.int("moe_intermediate_size", default=1792),
        router_bias="correction" if biased else "none",
    )
    num_dense = config.count("num_dense_layers", default=2)
    mixers = _lfm_mixers(config)
    layout = []
    for i, kind in enumerate(_lfm_layout(config, config.layers())):
        mlp: FeedForward = dense if i < num_dense else moe
        layout.append(
            Block(name=f"{kind}_{mlp.kind}", mixers=(mixers[kind],), feed_forwards=(mlp,))
        )
    return _lfm_fields(config, layout, "lfm2_moe")
