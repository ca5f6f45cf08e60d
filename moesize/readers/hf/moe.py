"""Mixture-of-experts decoder families with ordinary (grouped-query) attention.

Element types that differ from the model's are those vLLM 0.32.0 allocates (float32 routers and
correction biases); defaults are those of the family's configuration class in transformers 5.19,
or in vLLM 0.32.0 for families that transformers lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from moesize.core.attention import GroupedQueryAttention
from moesize.core.feed_forward import DenseMlp, FeedForward, MoeMlp, SharedExperts
from moesize.core.model_spec import Block, MultiTokenPrediction, RotaryTable
from moesize.core.recurrent import LightningAttention
from moesize.readers.hf.common import (
    embedding,
    grouped_query_attention,
    head_dim,
    layer_types,
    max_context,
    rotary_table,
    stack,
    with_defaults,
)
from moesize.readers.hf.registry import SpecFields, family
from moesize.readers.hf.view import MAX_CONTEXT, ConfigView

if TYPE_CHECKING:
    from moesize.core.mixers import Mixer

MAX_MTP_LAYERS = 64

# ---- what many families share -----------------------------------------------------------------


def decoder(
    config: ConfigView,
    layout: Sequence[Block],
    *,
    rotary: tuple[RotaryTable, ...] = (),
    tied: bool = False,
    context: int | None = None,
    mtp: MultiTokenPrediction | None = None,
    mtp_blocks: Sequence[Block] = (),
    **more: Any,
) -> SpecFields:
    """Fields of a spec from one block per layer; `tied` is the class default of the family."""
    blocks, layers = stack(layout)
    known = {block.name for block in blocks}
    extra = {block.name: block for block in mtp_blocks if block.name not in known}
    return {
        "hidden_size": config.int("hidden_size"),
        "max_context": max_context(config) if context is None else context,
        "embedding": embedding(config, tied=tied),
        "blocks": (*blocks, *extra.values()),
        "layers": layers,
        "rotary": rotary,
        "mtp": mtp,
        **more,
    }


def rotary_settings(config: ConfigView) -> ConfigView | None:
    """The rope parameters of the model, or of its full-attention layers where types differ."""
    rope = config.sub("rope_parameters", "rope_scaling")
    if rope is not None and rope.data.get("full_attention") is not None:
        return rope.sub("full_attention")
    return rope


def partial_factor(config: ConfigView, default: float = 1.0) -> float:
    """Share of the head that rotates; transformers keeps it at the top or in rope_parameters."""
    rope = rotary_settings(config)
    factor = default
    if "partial_rotary_factor" in config:
        factor = config.number("partial_rotary_factor")
    elif rope is not None and "partial_rotary_factor" in rope:
        factor = rope.number("partial_rotary_factor")
    if not 0 < factor <= 1:
        raise config.fail(f"partial_rotary_factor is {factor}; it must lie in 0..1")
    return factor


# Families that vLLM 0.32.0 runs through Transformers, which keeps frequencies and no table.
_THROUGH_TRANSFORMERS = (
    "dots1",
    "flex_olmo",
    "hunyuan",
    "hunyuan_v1_moe",
    "mellum",
    "minimax",
    "solar_open",
)


def rotary(
    config: ConfigView, size: int, *, partial: float | None = None, dtype: str = "", copies: int = 1
) -> tuple[RotaryTable, ...]:
    """The cos/sin table of a decoder; `partial` overrides the share of the head that rotates."""
    if config.data.get("model_type") in _THROUGH_TRANSFORMERS:
        return ()
    factor = partial_factor(config) if partial is None else partial
    table = rotary_table(config, size, max_context(config), partial=factor)
    if not 1 <= table.positions <= MAX_CONTEXT:
        raise config.fail(f"the rotary table would have {table.positions} positions")
    return (replace(table, dtype=dtype, copies=copies),)


def layout_of(num_layers: int, make: Callable[[int], Block]) -> list[Block]:
    """One block per layer from a function of the layer's index."""
    return [make(index) for index in range(num_layers)]


def flags_per_layer(config: ConfigView, key: str, num_layers: int) -> list[bool]:
    """A list of 0/1 (or booleans), one per layer; its length is checked."""
    values = config.list(key)
    if len(values) != num_layers:
        raise config.fail(f"{config.path(key)} has {len(values)} entries for {num_layers} layers")
    if any(value not in (0, 1) for value in values):
        raise config.fail(f"{config.path(key)} must hold 0 or 1 for every layer")
    return [bool(value) for value in values]


def words_per_layer(
    config: ConfigView, key: str, num_layers: int, allowed: Sequence[str], *, more: int = 0
) -> list[str]:
    """A list of words, one per layer, empty when missing; up to `more` MTP layers may follow."""
    words = config.list(key)
    if words and len(words) not in (num_layers, num_layers + more):
        raise config.fail(f"{config.path(key)} has {len(words)} entries for {num_layers} layers")
    unknown = sorted({str(word) for word in words} - set(allowed))
    if unknown:
        raise config.fail(f"{config.path(key)} holds {unknown[0]!r}; known: {sorted(allowed)}")
    return words


def indices(config: ConfigView, key: str, num_layers: int) -> set[int] | None:
    """Layer numbers from a list or a string such as "3,4,5"; None when missing."""
    if key not in config:
        return None
    value = config.data[key]
    items = value.split(",") if isinstance(value, str) else config.list(key)
    out = set()
    for item in items:
        text = str(item).strip()
        if not text and isinstance(value, str):
            continue
        if isinstance(item, bool) or not text.isascii() or not text.isdigit() or len(text) > 6:
            raise config.fail(f"{config.path(key)} must hold layer numbers, not {text[:40]!r}")
        if int(text) >= MAX_CONTEXT or int(text) > num_layers + MAX_MTP_LAYERS:
            raise config.fail(f"{config.path(key)} names layer {text} of {num_layers}")
        out.add(int(text))
    return out


def dense_first(config: ConfigView, num_layers: int, *, default: int | None = None) -> list[bool]:
    """True for every layer with experts: the first `first_k_dense_replace` layers have none.

    `mlp_layer_types` (transformers 5) wins over it; `moe_layer_freq` keeps every n-th layer, or
    lists the layers.
    """
    words = words_per_layer(config, "mlp_layer_types", num_layers, ("dense", "sparse"))
    if words:
        return [word == "sparse" for word in words]
    if isinstance(config.data.get("moe_layer_freq"), list):
        return flags_per_layer(config, "moe_layer_freq", num_layers)
    every = config.int("moe_layer_freq", default=1)
    missing: dict[str, Any] = {} if default is None else {"default": default}
    first = config.count("first_k_dense_replace", **missing)
    return [index >= first and index % every == 0 for index in range(num_layers)]


def shared_experts(count: int, width: int, *, bias: bool = False) -> SharedExperts | None:
    """So many experts of that width that every token passes, as one MLP; None without any."""
    if not count * width:
        return None
    return SharedExperts(intermediate_size=count * width, bias=bias)


def deepseek_experts(config: ConfigView, **overrides: Any) -> MoeMlp:
    """Experts under the names DeepSeek introduced: sigmoid scores with a correction bias."""
    width = config.int("moe_intermediate_size")
    num_shared = config.count("n_shared_experts", "num_shared_experts", default=0)
    facts: dict[str, Any] = {
        "num_experts": config.int("n_routed_experts", "num_experts", "num_local_experts"),
        "experts_per_token": config.int("num_experts_per_tok"),
        "intermediate_size": width,
        "router_bias": "correction",
        "shared": shared_experts(num_shared, width),
        **overrides,
    }
    return MoeMlp(**facts)


def next_token_layers(config: ConfigView, *keys: str, default: int = 0) -> int:
    """How many MTP layers the checkpoint has."""
    return config.count(
        *(keys or ("num_nextn_predict_layers", "num_mtp_layers")),
        default=default,
        high=MAX_MTP_LAYERS,
    )


def sliding(
    config: ConfigView, num_layers: int, allowed: Sequence[str] = ()
) -> list[int | None] | None:
    """Window per layer from `layer_types`; None when the config has no such list."""
    types = layer_types(config, num_layers)
    known = {"full_attention", "sliding_attention", *allowed}
    unknown = sorted(set(types) - known)
    if unknown:
        raise config.fail(f"layer_types holds {unknown[0]!r}; known: {sorted(known)}")
    if not types:
        return None
    if "sliding_attention" not in types:
        return [None] * num_layers
    window = config.int("sliding_window", high=MAX_CONTEXT)
    return [window if kind == "sliding_attention" else None for kind in types]


def layer(
    attention: Mixer | Sequence[Mixer], feed_forward: FeedForward, *, prefix: str = "", **more: Any
) -> Block:
    """A block with the usual two norms, named after what it holds."""
    mixers = tuple(attention) if isinstance(attention, Sequence) else (attention,)
    name = prefix + ("moe" if isinstance(feed_forward, MoeMlp) else "dense")
    return Block(name=name, mixers=mixers, feed_forwards=(feed_forward,), **more)


def window_name(window: int | None) -> str:
    """Block name part of a layer with or without a window."""
    return "sliding_" if window is not None else "full_"


# ---- Mixtral and its relatives ----------------------------------------------------------------


@family("mixtral")
def mixtral(config: ConfigView) -> SpecFields:
    """Mixtral 8x7B and 8x22B: every layer routes to A of E experts; no shared experts."""
    attention = grouped_query_attention(config, window=_window(config))
    moe = MoeMlp(
        num_experts=config.int("num_local_experts"),
        experts_per_token=config.int("num_experts_per_tok"),
        intermediate_size=config.int("intermediate_size"),
    )
    return decoder(
        config,
        [layer(attention, moe)] * config.layers(),
        rotary=rotary(config, attention.head_dim),
        naming="mixtral",
    )


def _window(config: ConfigView) -> int | None:
    window: int | None = config.int("sliding_window", default=None, high=MAX_CONTEXT)
    return window


@family("grok-1")
def grok(config: ConfigView) -> SpecFields:
    """Grok-1: as Mixtral, with norms behind attention and experts too, and a tied head.

    Source: xai-org/grok-1 model.py, DecoderLayer and InOutEmbed.
    """
    attention = grouped_query_attention(config)
    moe = MoeMlp(
        num_experts=config.int("num_experts"),
        experts_per_token=config.int("num_experts_per_tok"),
        intermediate_size=config.int("intermediate_size"),
    )
    return decoder(
        config,
        [layer(attention, moe, num_norms=4)] * config.layers(),
        rotary=rotary(config, attention.head_dim),
        tied=True,
    )


@family("phimoe")
def phimoe(config: ConfigView) -> SpecFields:
    """Phi-3.5-MoE and Phi-mini-MoE: layer norms with biases, biased attention and head."""
    config = with_defaults(config, max_position_embeddings=131072)
    biased = config.flag("attention_bias", default=False)
    attention = grouped_query_attention(
        config, window=_window(config), qkv_bias=biased, out_bias=biased
    )
    moe = MoeMlp(
        num_experts=config.int("num_local_experts"),
        experts_per_token=config.int("num_experts_per_tok"),
        intermediate_size=config.int("intermediate_size"),
    )
    fields = decoder(
        config,
        [layer(attention, moe, norm_bias=True)] * config.layers(),
        rotary=rotary(config, attention.head_dim),
        naming="mixtral",
        final_norm_bias=True,
    )
    head_bias = config.flag("lm_head_bias", default=False)
    fields["embedding"] = replace(fields["embedding"], head_bias=head_bias)
    return fields


@family("granitemoe", "granitemoeshared", "granitemoe_swa")
def granitemoe(config: ConfigView) -> SpecFields:
    """Granite 3 MoE: stacked experts; the shared variant adds one MLP that every token passes, the
    windowed variant sinks and that MLP."""
    num_layers = config.layers()
    biased = config.flag("attention_bias", default=False)
    windows: list[int | None] = [None] * num_layers
    sinks = config.text("model_type") == "granitemoe_swa"
    if sinks:
        # Class rule: every fourth layer, from the first on, is full.
        window = config.int("sliding_window", default=128, high=MAX_CONTEXT)
        windows = sliding(config, num_layers) or [
            window if index % 4 else None for index in range(num_layers)
        ]
    shared_size = config.count("shared_intermediate_size", default=0)
    moe = MoeMlp(
        num_experts=config.int("num_local_experts"),
        experts_per_token=config.int("num_experts_per_tok"),
        intermediate_size=config.int("intermediate_size"),
        shared=shared_experts(1, shared_size),
        stacked=True,
    )

    def make(index: int) -> Block:
        attention = grouped_query_attention(
            config, window=windows[index], qkv_bias=biased, out_bias=biased, sinks=sinks
        )
        return layer(attention, moe, prefix=window_name(windows[index]))

    return decoder(
        config,
        layout_of(num_layers, make),
        rotary=rotary(config, head_dim(config)),
        naming="granitemoe_swa" if sinks else "granitemoe",
    )


@family("dbrx")
def dbrx(config: ConfigView) -> SpecFields:
    """DBRX: fused qkv, experts stacked in one matrix, norms without biases."""
    hidden, heads = config.int("d_model", "hidden_size"), config.int("n_heads")
    attn, ffn = config.need_sub("attn_config"), config.need_sub("ffn_config")
    if hidden % heads:
        raise config.fail(f"d_model ({hidden}) is not a multiple of n_heads ({heads})")
    size = hidden // heads
    attention = GroupedQueryAttention(
        num_heads=heads,
        num_kv_heads=attn.int("kv_n_heads", default=1),
        head_dim=size,
        v_head_dim=size,
    )
    moe = MoeMlp(
        num_experts=ffn.int("moe_num_experts"),
        experts_per_token=ffn.int("moe_top_k", default=1),
        intermediate_size=ffn.int("ffn_hidden_size"),
        stacked=True,
    )
    blocks, layers = stack([layer(attention, moe)] * config.layers("n_layers"))
    context = max_context(config, "max_seq_len")
    return {
        "hidden_size": hidden,
        "max_context": context,
        "embedding": embedding(config, tied=False),
        "blocks": blocks,
        "layers": layers,
        "rotary": (RotaryTable(positions=context, rotary_dim=size),),
        "naming": "dbrx",
    }


# ---- Qwen, OLMo -------------------------------------------------------------------------------


def _qwen_sparse(config: ConfigView, num_layers: int) -> list[bool]:
    """Layers with experts: every `decoder_sparse_step`-th but those in `mlp_only_layers`."""
    step = config.int("decoder_sparse_step", default=1)
    dense = indices(config, "mlp_only_layers", num_layers) or set()
    experts = config.count("num_experts", "num_local_experts")
    return [experts > 0 and (i + 1) % step == 0 and i not in dense for i in range(num_layers)]


def _qwen(
    config: ConfigView, attention: GroupedQueryAttention, shared: SharedExperts | None
) -> SpecFields:
    num_layers = config.layers()
    sparse = _qwen_sparse(config, num_layers)

    def make(index: int) -> Block:
        if not sparse[index]:
            return layer(attention, DenseMlp(intermediate_size=config.int("intermediate_size")))
        return layer(
            attention,
            MoeMlp(
                num_experts=config.int("num_experts", "num_local_experts"),
                experts_per_token=config.int("num_experts_per_tok"),
                intermediate_size=config.int("moe_intermediate_size"),
                shared=shared,
            ),
        )

    return decoder(
        config,
        layout_of(num_layers, make),
        rotary=rotary(config, attention.head_dim),
        naming="qwen2_moe" if shared else "default",
    )


@family("qwen2_moe")
def qwen2_moe(config: ConfigView) -> SpecFields:
    """Qwen1.5-MoE and Qwen2-57B: biased qkv, a shared expert behind a sigmoid gate.

    vLLM 0.32.0 gives these models no sliding window, whatever the config says.
    """
    attention = grouped_query_attention(config, qkv_bias=config.flag("qkv_bias", default=True))
    width = config.int("shared_expert_intermediate_size")
    return _qwen(config, attention, SharedExperts(intermediate_size=width, gate=True))


@family("qwen3_moe", "qwen3_omni_moe_text", "qwen3_vl_moe_text")
def qwen3_moe(config: ConfigView) -> SpecFields:
    """Qwen3 MoE, also as the language model of Qwen3-VL and Qwen3-Omni: norms on q and k."""
    biased = config.flag("attention_bias", default=False)
    attention = grouped_query_attention(config, qkv_bias=biased, out_bias=biased, qk_norm="head")
    return _qwen(config, attention, None)


@family("olmoe", "flex_olmo")
def olmoe(config: ConfigView) -> SpecFields:
    """OLMoE and FlexOlmo: q and k normalized over the whole projection."""
    biased = config.flag("attention_bias", default=False)
    attention = grouped_query_attention(
        config, qkv_bias=biased, out_bias=biased, qk_norm="projection"
    )
    moe = MoeMlp(
        num_experts=config.int("num_experts", "num_local_experts"),
        experts_per_token=config.int("num_experts_per_tok"),
        intermediate_size=config.int("intermediate_size"),
    )
    return decoder(
        config,
        [layer(attention, moe)] * config.layers(),
        rotary=rotary(config, attention.head_dim),
        # FlexOlmo norms after attention and experts, as OLMo 2 does.
        naming="olmo2" if config.text("model_type") == "flex_olmo" else "default",
    )


# ---- MiniMax ----------------------------------------------------------------------------------


@family("minimax_m2")
def minimax_m2(config: ConfigView) -> SpecFields:
    """MiniMax-M2: q and k normalized over the projection, partial rotation.

    `num_mtp_modules` is in the config, but the published files hold no MTP weights.
    """
    kinds: dict[str, Literal["projection", "head"]] = {
        "per_layer": "projection",
        "per_head": "head",
    }
    kind = config.text("qk_norm_type", default="per_layer")
    if kind not in kinds:
        raise config.fail(f"qk_norm_type {kind!r} is not one of {sorted(kinds)}")
    attention = grouped_query_attention(
        config, qk_norm=kinds[kind] if config.flag("use_qk_norm", default=True) else "none"
    )
    moe = MoeMlp(
        num_experts=config.int("num_local_experts"),
        experts_per_token=config.int("num_experts_per_tok"),
        intermediate_size=config.int("intermediate_size"),
        router_bias="correction" if config.flag("use_routing_bias", default=True) else "none",
        router_dtype="float32",
    )
    return decoder(
        config,
        [layer(attention, moe)] * config.layers(),
        rotary=rotary(config, attention.head_dim, partial=_minimax_partial(config, attention)),
        naming="minimax_m2",
    )


def _minimax_partial(config: ConfigView, attention: GroupedQueryAttention) -> float:
    rotary_dim = config.int("rotary_dim", default=None, high=attention.head_dim)
    if rotary_dim is None:
        return partial_factor(config)
    return float(rotary_dim) / attention.head_dim


_M3_TEXT_ONLY = "the config describes the language model alone, without its vision tower"


@family("minimax_m3", "minimax_m3_vl_text")
def minimax_m3(config: ConfigView) -> SpecFields:
    """MiniMax-M3: block-sparse attention with an index branch, dense first layers, MTP.

    The index branch has no values of its own (`sparse_disable_index_value`); one that had is
    refused, since no engine documents its tensors.
    """
    wrapped = config.text("model_type") == "minimax_m3_vl_text"
    num_layers = config.layers()
    sparse = config.sub("sparse_attention_config") or ConfigView({}, config.file)
    types = words_per_layer(
        config, "layer_types", num_layers, ("full_attention", "minimax_m3_sparse")
    )
    if types:
        indexed = [kind == "minimax_m3_sparse" for kind in types]
    elif "sparse_attention_freq" in sparse:
        indexed = flags_per_layer(sparse, "sparse_attention_freq", num_layers)
    else:
        indexed = [False] * num_layers
    if "sparse_disable_index_value" in sparse:
        disabled = flags_per_layer(sparse, "sparse_disable_index_value", num_layers)
        if any(on and not off for on, off in zip(indexed, disabled, strict=True)):
            raise config.fail("sparse_disable_index_value: an index branch with values is unknown")
    # Class defaults of MiniMaxM3VLTextConfig.
    index_heads = _either(config, sparse, "index_n_heads", "sparse_num_index_heads", 4)
    index_size = _either(config, sparse, "index_head_dim", "sparse_index_dim", 128)
    index_top_k = _either(config, sparse, "index_topk_blocks", "sparse_topk_blocks", 16)
    plain = grouped_query_attention(config, qk_norm="head")
    with_index = replace(
        plain, index_heads=index_heads, index_head_dim=index_size, index_top_k=index_top_k
    )
    width = config.int("intermediate_size")
    num_shared = config.count("n_shared_experts", default=1)
    experts = MoeMlp(
        num_experts=config.int("num_local_experts"),
        experts_per_token=config.int("num_experts_per_tok"),
        intermediate_size=width,
        router_bias="correction" if config.flag("use_routing_bias", default=True) else "none",
        router_dtype="float32",
        shared=shared_experts(num_shared, width),
    )
    words = words_per_layer(config, "mlp_layer_types", num_layers, ("dense", "sparse"))
    if words:
        routed = [word == "sparse" for word in words]
    elif "moe_layer_freq" in config:
        routed = flags_per_layer(config, "moe_layer_freq", num_layers)
    else:
        routed = [True] * num_layers

    def make(index_layer: int) -> Block:
        attention = with_index if indexed[index_layer] else plain
        feed_forward: FeedForward = experts
        if not routed[index_layer]:
            feed_forward = DenseMlp(intermediate_size=config.int("dense_intermediate_size"))
        return layer(
            attention, feed_forward, prefix="indexed_" if indexed[index_layer] else "full_"
        )

    return decoder(
        config,
        layout_of(num_layers, make),
        rotary=rotary(config, plain.head_dim, partial=_minimax_partial(config, plain)),
        naming="minimax_m3",
        notes=() if wrapped else (_M3_TEXT_ONLY,),
    )


def _either(config: ConfigView, inner: ConfigView, key: str, legacy: str, default: int) -> int:
    if legacy in inner:
        return inner.int(legacy)
    return config.int(key, default=default)


@family("minimax", "minimax_text_01", "minimax_m1")
def minimax(config: ConfigView) -> SpecFields:
    """MiniMax-Text-01 and M1: seven lightning-attention layers, then one with softmax."""
    num_layers = config.layers()
    if "attn_type_list" in config:
        softmax = flags_per_layer(config, "attn_type_list", num_layers)
    else:
        types = words_per_layer(
            config, "layer_types", num_layers, ("full_attention", "linear_attention")
        )
        # Class default of MiniMaxConfig: the layers alternate, beginning with full attention.
        softmax = [kind == "full_attention" for kind in types] or [
            index % 2 == 0 for index in range(num_layers)
        ]
    full = grouped_query_attention(config, window=_window(config))
    linear = LightningAttention(
        num_heads=full.num_heads, head_dim=full.head_dim, num_kv_heads=full.num_heads
    )
    shared = config.count("shared_intermediate_size", default=0)
    moe = MoeMlp(
        num_experts=config.int("num_local_experts"),
        experts_per_token=config.int("num_experts_per_tok"),
        intermediate_size=config.int("intermediate_size"),
        shared=shared_experts(1, shared),
    )
    rotary_dim = config.int("rotary_dim", default=full.head_dim, high=full.head_dim)
    context = max_context(config)
    return decoder(
        config,
        layout_of(
            num_layers,
            lambda i: layer(
                full if softmax[i] else linear, moe, prefix="full_" if softmax[i] else "linear_"
            ),
        ),
        # Transformers' own class (`minimax`) keeps frequencies and no table.
        rotary=()
        if config.text("model_type") in _THROUGH_TRANSFORMERS
        else (RotaryTable(positions=context, rotary_dim=rotary_dim),),
        naming="minimax",
    )


# ---- gpt-oss, Llama 4 -------------------------------------------------------------------------


@family("gpt_oss")
def gpt_oss(config: ConfigView) -> SpecFields:
    """gpt-oss: sinks, biases everywhere, every other layer with a window.

    The experts are published in MXFP4 without a word about their type in unquantized form.
    """
    num_layers = config.layers()
    windows = sliding(config, num_layers)
    if windows is None:
        # Class default: sliding first, then full, alternating.
        window = config.int("sliding_window", default=128, high=MAX_CONTEXT)
        windows = [None if index % 2 else window for index in range(num_layers)]
    biased = config.flag("attention_bias", default=True)
    size = config.int("head_dim", default=64)
    moe = MoeMlp(
        num_experts=config.int("num_local_experts"),
        experts_per_token=config.int("num_experts_per_tok", "experts_per_token"),
        intermediate_size=config.int("intermediate_size"),
        bias=True,
        router_bias="bias",
        stacked=True,
    )

    def make(index: int) -> Block:
        attention = grouped_query_attention(
            config,
            head_dim=size,
            v_head_dim=size,
            window=windows[index],
            qkv_bias=biased,
            out_bias=biased,
            sinks=True,
        )
        return layer(attention, moe, prefix=window_name(windows[index]))

    return decoder(
        config,
        layout_of(num_layers, make),
        rotary=rotary(config, size, dtype="float32"),
        naming="gpt_oss",
    )


@family("llama4_text")
def llama4(config: ConfigView) -> SpecFields:
    """Llama 4: chunked attention but in layers without positions, one shared expert."""
    num_layers = config.layers()
    interval = config.int("no_rope_layer_interval", default=4)
    if config.list("no_rope_layers"):
        rotated = flags_per_layer(config, "no_rope_layers", num_layers)
    else:
        rotated = [(index + 1) % interval != 0 for index in range(num_layers)]
    types = words_per_layer(
        config, "layer_types", num_layers, ("full_attention", "chunked_attention")
    )
    chunked = [kind == "chunked_attention" for kind in types] or rotated
    step = config.int("interleave_moe_layer_step", default=1)
    routed = indices(config, "moe_layers", num_layers)
    if routed is None:
        routed = set(range(step - 1, num_layers, step))
    # Class default of Llama4TextConfig: 8192 tokens.
    chunk = config.int("attention_chunk_size", default=8192, high=MAX_CONTEXT)
    size = config.int("head_dim", default=128)
    biased = config.flag("attention_bias", default=False)
    width = config.int("intermediate_size")
    experts = MoeMlp(
        num_experts=config.int("num_local_experts"),
        experts_per_token=config.int("num_experts_per_tok"),
        intermediate_size=width,
        shared=SharedExperts(intermediate_size=width),
        stacked=True,
    )

    def make(index: int) -> Block:
        attention = grouped_query_attention(
            config,
            head_dim=size,
            v_head_dim=size,
            chunk=chunk if chunked[index] else None,
            qkv_bias=biased,
            out_bias=biased,
        )
        feed_forward: FeedForward = experts
        if index not in routed:
            feed_forward = DenseMlp(intermediate_size=config.int("intermediate_size_mlp"))
        return layer(attention, feed_forward, prefix="chunked_" if chunked[index] else "full_")

    return decoder(
        config, layout_of(num_layers, make), rotary=rotary(config, size), naming="llama4"
    )


# ---- DeepSeek-style experts over grouped-query attention --------------------------------------


def _mtp_like_trunk(block: Block, count: int, **facts: Any) -> MultiTokenPrediction | None:
    """MTP layers that repeat a trunk block, with enorm, hnorm, a final norm and eh_proj."""
    return MultiTokenPrediction(layers=(block.name,) * count, **facts) if count else None


@family("glm4_moe", "glm4v_moe_text")
def glm4_moe(config: ConfigView) -> SpecFields:
    """GLM-4.5 to 4.7: dense first layers, partial rotation, MTP layers that repeat the embedding
    and the head in the published files."""
    num_layers = config.layers()
    biased = config.flag("attention_bias", default=False)
    # use_qk_norm is False by class default; GLM-4.5-Air has none.
    norm: Literal["head", "none"] = "head" if config.flag("use_qk_norm", default=False) else "none"
    attention = grouped_query_attention(config, qkv_bias=biased, qk_norm=norm)
    moe = layer(attention, deepseek_experts(config, router_dtype="float32"))
    dense = layer(attention, DenseMlp(intermediate_size=config.int("intermediate_size")))
    routed = dense_first(config, num_layers, default=1)
    count = next_token_layers(config)
    return decoder(
        config,
        layout_of(num_layers, lambda i: moe if routed[i] else dense),
        rotary=rotary(config, attention.head_dim, partial=partial_factor(config, 0.5)),
        mtp=_mtp_like_trunk(moe, count, stores_embedding=True, stores_head=True),
        mtp_blocks=(moe,) if count else (),
    )


@family("dots1")
def dots1(config: ConfigView) -> SpecFields:
    """dots.llm1: norms on q and k, dense first layers, shared experts."""
    num_layers = config.layers()
    windows = sliding(config, num_layers)
    if windows is None:
        # Class rule: full attention below max_window_layers, which defaults to 62.
        window = _window(config)
        first = config.count("max_window_layers", default=62)
        windows = [window if index >= first else None for index in range(num_layers)]
    biased = config.flag("attention_bias", default=False)
    routed = dense_first(config, num_layers, default=0)

    def make(index: int) -> Block:
        attention = grouped_query_attention(
            config, window=windows[index], qkv_bias=biased, out_bias=biased, qk_norm="head"
        )
        feed_forward: FeedForward
        if routed[index]:
            feed_forward = deepseek_experts(config)
        else:
            feed_forward = DenseMlp(intermediate_size=config.int("intermediate_size"))
        return layer(attention, feed_forward, prefix=window_name(windows[index]))

    return decoder(config, layout_of(num_layers, make), rotary=rotary(config, head_dim(config)))


@family("solar_open")
def solar_open(config: ConfigView) -> SpecFields:
    """Solar Open: experts in every layer, one shared expert, no norms on q and k."""
    size = config.int("head_dim", default=128)
    biased = config.flag("attention_bias", default=False)
    attention = grouped_query_attention(config, head_dim=size, v_head_dim=size, qkv_bias=biased)
    moe = layer(attention, deepseek_experts(config, router_dtype="float32"))
    return decoder(config, [moe] * config.layers(), rotary=rotary(config, size))


@family("ernie4_5_moe", "ernie4_5_moe_text")
def ernie4_5_moe(config: ConfigView) -> SpecFields:
    """ERNIE 4.5 MoE: experts between a first and a last layer, every n-th; tied by default."""
    num_layers = config.layers()
    biased = config.flag("use_bias", default=False)
    attention = grouped_query_attention(config, qkv_bias=biased, out_bias=biased)
    width = config.int("moe_intermediate_size")
    num_shared = config.count("moe_num_shared_experts", default=2)
    moe = layer(
        attention,
        MoeMlp(
            num_experts=config.int("moe_num_experts"),
            experts_per_token=config.int("moe_k"),
            intermediate_size=width,
            router_bias="correction",
            router_dtype="float32",
            # `use_bias` reaches the shared experts and the head, not the routed experts.
            shared=shared_experts(num_shared, width, bias=biased),
        ),
    )
    dense = layer(
        attention, DenseMlp(intermediate_size=config.int("intermediate_size"), bias=biased)
    )
    first = config.count("moe_layer_start_index", default=1)
    last = config.int("moe_layer_end_index", default=-1, low=-1)
    last = num_layers - 1 if last == -1 else last
    every = config.int("moe_layer_interval", default=1)
    count = next_token_layers(config)
    mtp = None
    if count:
        # mtp_block is dense; mtp_emb_norm, mtp_hidden_norm and mtp_linear_proj.
        mtp = MultiTokenPrediction(layers=(dense.name,) * count, norms=2)
    fields = decoder(
        config,
        layout_of(
            num_layers,
            lambda i: moe if first <= i <= last and (i + 1) % every == 0 else dense,
        ),
        rotary=rotary(config, attention.head_dim),
        tied=True,
        mtp=mtp,
        mtp_blocks=(dense,) if mtp else (),
        naming="ernie4_5_moe",
    )
    fields["embedding"] = replace(fields["embedding"], head_bias=biased)
    return fields


@family("deepseek")
def deepseek_v1(config: ConfigView) -> SpecFields:
    """DeepSeek-MoE 16B: multi-head attention, softmax routing, shared experts."""
    num_layers = config.layers()
    biased = config.flag("attention_bias", default=False)
    attention = grouped_query_attention(config, qkv_bias=biased, out_bias=biased)
    moe = layer(attention, deepseek_experts(config, router_bias="none"))
    dense = layer(attention, DenseMlp(intermediate_size=config.int("intermediate_size")))
    routed = dense_first(config, num_layers, default=0)
    return decoder(
        config,
        layout_of(num_layers, lambda i: moe if routed[i] else dense),
        rotary=rotary(config, attention.head_dim),
    )


@family("hy_v3")
def hy_v3(config: ConfigView) -> SpecFields:
    """Hunyuan 3 (Tencent Hy3): norms on q and k, sigmoid routing with a bias, one dense layer."""
    num_layers = config.layers()
    size = config.int("head_dim", default=128)
    biased = config.flag("attention_bias", default=False)
    # vLLM reads `qk_norm`, transformers always has the norms.
    norm: Literal["head", "none"] = "head" if config.flag("qk_norm", default=True) else "none"
    attention = grouped_query_attention(
        config, head_dim=size, v_head_dim=size, qkv_bias=biased, out_bias=biased, qk_norm=norm
    )
    width = config.int("expert_hidden_dim", "moe_intermediate_size")
    num_shared = config.count("num_shared_experts", default=1)
    moe = layer(
        attention,
        MoeMlp(
            num_experts=config.int("num_experts", "num_local_experts"),
            experts_per_token=config.int("num_experts_per_tok"),
            intermediate_size=width,
            router_bias="correction",
            router_dtype="float32",
            shared=shared_experts(num_shared, width),
        ),
    )
    dense = layer(attention, DenseMlp(intermediate_size=config.int("intermediate_size")))
    routed = dense_first(config, num_layers, default=1)
    count = next_token_layers(config)
    return decoder(
        config,
        layout_of(num_layers, lambda i: moe if routed[i] else dense),
        rotary=rotary(config, size),
        mtp=_mtp_like_trunk(moe, count),
        mtp_blocks=(moe,) if count else (),
        naming="hy_v3",
    )


@family("afmoe")
def afmoe(config: ConfigView) -> SpecFields:
    """Arcee Trinity: gated attention, four norms per layer, windows in three of four layers."""
    num_layers = config.layers()
    windows = sliding(config, num_layers)
    if windows is None:
        every = config.int("global_attn_every_n_layers", default=4)
        window = config.int("sliding_window", default=1024, high=MAX_CONTEXT)
        windows = [None if (i + 1) % every == 0 else window for i in range(num_layers)]
    size = config.int("head_dim", default=128)
    width = config.int("moe_intermediate_size")
    num_shared = config.count("num_shared_experts", default=2)
    first = config.count("num_dense_layers", default=1)
    moe = MoeMlp(
        num_experts=config.int("num_experts"),
        experts_per_token=config.int("num_experts_per_tok"),
        intermediate_size=width,
        router_bias="correction",
        router_dtype="float32",
        shared=shared_experts(num_shared, width),
    )

    def make(index: int) -> Block:
        attention = grouped_query_attention(
            config,
            head_dim=size,
            v_head_dim=size,
            window=windows[index],
            qk_norm="head",
            gate="projection",
        )
        feed_forward: FeedForward = moe
        if index < first:
            feed_forward = DenseMlp(intermediate_size=config.int("intermediate_size"))
        return layer(attention, feed_forward, prefix=window_name(windows[index]), num_norms=4)

    return decoder(config, layout_of(num_layers, make), rotary=rotary(config, size), naming="afmoe")


@family("exaone_moe")
def exaone_moe(config: ConfigView) -> SpecFields:
    """K-EXAONE: hybrid windows, norms on q and k, shared experts, a dense MTP layer."""
    num_layers = config.layers()
    windows = sliding(config, num_layers)
    if windows is None:
        windows = _exaone_windows(config, num_layers)
    biased = config.flag("attention_bias", default=False)
    routed = dense_first(config, num_layers, default=1)
    moe = deepseek_experts(config)
    dense = DenseMlp(intermediate_size=config.int("intermediate_size"))

    def make(index: int) -> Block:
        attention = grouped_query_attention(
            config, window=windows[index], qkv_bias=biased, out_bias=biased, qk_norm="head"
        )
        return layer(
            attention,
            moe if routed[index] else dense,
            prefix=window_name(windows[index]),
        )

    count = next_token_layers(config)
    if count > 1:
        raise config.fail(f"num_nextn_predict_layers is {count}; only one MTP layer is described")
    attention = grouped_query_attention(
        config, window=windows[0], qkv_bias=biased, out_bias=biased, qk_norm="head"
    )
    guess = layer(attention, dense, prefix="mtp_")
    return decoder(
        config,
        layout_of(num_layers, make),
        rotary=rotary(config, head_dim(config)),
        mtp=_mtp_like_trunk(guess, count),
        mtp_blocks=(guess,) if count else (),
        naming="exaone_moe",
    )


def _exaone_windows(config: ConfigView, num_layers: int) -> list[int | None]:
    """From a pattern such as "LLLG" or a period; the class default is four."""
    window = config.int("sliding_window", default=4096, high=MAX_CONTEXT)
    pattern = config.data.get("sliding_window_pattern", 4)
    if isinstance(pattern, str):
        if not pattern or set(pattern) - {"L", "G"} or len(pattern) > num_layers:
            raise config.fail("sliding_window_pattern must be letters L and G")
        letters = [pattern[i % len(pattern)] for i in range(num_layers)]
        letters[-1] = "G"
        return [window if letter == "L" else None for letter in letters]
    period = config.int("sliding_window_pattern", default=4)
    return [window if (i + 1) % period else None for i in range(num_layers)]


@family("mimo_v2_flash", "mimo_v2")
def mimo_v2(config: ConfigView) -> SpecFields:
    """MiMo-V2: windows in five of six layers with their own head counts and sinks; values are
    narrower than keys. The MTP layers are not in the config and not counted."""
    num_layers = config.layers()
    window = config.int("sliding_window_size", "sliding_window", default=128, high=MAX_CONTEXT)
    if "hybrid_layer_pattern" in config:
        slides = flags_per_layer(config, "hybrid_layer_pattern", num_layers)
    else:
        types = words_per_layer(
            config, "layer_types", num_layers, ("full_attention", "sliding_attention")
        )
        # Class rule: the first layer and every sixth are full.
        slides = [kind == "sliding_attention" for kind in types] or [
            index > 0 and (index + 1) % 6 != 0 for index in range(num_layers)
        ]
    biased = config.flag("attention_bias", default=False)
    heads, groups = config.int("num_attention_heads"), config.int("num_key_value_heads")
    size = config.int("head_dim", default=192)
    values = config.int("v_head_dim", default=128)
    full = GroupedQueryAttention(
        num_heads=heads,
        num_kv_heads=groups,
        head_dim=size,
        v_head_dim=values,
        qkv_bias=biased,
        sinks=config.flag("add_full_attention_sink_bias", default=False),
    )
    local = GroupedQueryAttention(
        num_heads=config.int("swa_num_attention_heads", default=heads),
        # transformers: layers with a window have twice the KV heads, and sinks.
        num_kv_heads=config.int("swa_num_key_value_heads", default=2 * groups),
        head_dim=config.int("swa_head_dim", default=size),
        v_head_dim=config.int("swa_v_head_dim", default=values),
        window=window,
        qkv_bias=biased,
        sinks=config.flag("add_swa_attention_sink_bias", default=True),
    )
    routed = dense_first(config, num_layers, default=1)
    moe = deepseek_experts(config, router_dtype="float32")
    dense = DenseMlp(intermediate_size=config.int("intermediate_size"))
    table = rotary(config, size, partial=partial_factor(config, 0.334))
    return decoder(
        config,
        layout_of(
            num_layers,
            lambda i: layer(
                local if slides[i] else full,
                moe if routed[i] else dense,
                prefix="sliding_" if slides[i] else "full_",
            ),
        ),
        # Two bases of rotation where the local layers have one of their own.
        rotary=(replace(table[0], copies=2),) if any(slides) else table,
        naming="mimo_v2",
    )


@family("laguna")
def laguna(config: ConfigView) -> SpecFields:
    """Laguna: heads per layer, a gate per head or element, one shared expert, a dense layer."""
    num_layers = config.layers()
    windows = sliding(config, num_layers) or [None] * num_layers
    heads = config.list("num_attention_heads_per_layer")
    if heads and len(heads) != num_layers:
        raise config.fail(
            f"num_attention_heads_per_layer has {len(heads)} entries for {num_layers} layers"
        )
    per_layer = [
        ConfigView({"heads": value}, config.file, "num_attention_heads_per_layer").int("heads")
        for value in heads
    ] or [config.int("num_attention_heads")] * num_layers
    gates: dict[Any, Literal["none", "per_head", "projection"]] = {
        False: "none",
        True: "per_head",
        "per-head": "per_head",
        "per-element": "projection",
    }
    gating = config.data.get("gating", True)
    if not isinstance(gating, (bool, str)) or gating not in gates:
        raise config.fail("gating must be true, false, per-head or per-element")
    size = config.int("head_dim", default=128)
    groups = config.int("num_key_value_heads", default=8)
    biased = config.flag("attention_bias", default=False)
    words = words_per_layer(config, "mlp_layer_types", num_layers, ("dense", "sparse"))
    routed = [word == "sparse" for word in words] or [index > 0 for index in range(num_layers)]
    moe = MoeMlp(
        num_experts=config.int("num_experts"),
        experts_per_token=config.int("num_experts_per_tok"),
        intermediate_size=config.int("moe_intermediate_size"),
        router_bias="correction",
        shared=SharedExperts(intermediate_size=config.int("shared_expert_intermediate_size")),
    )

    def make(index: int) -> Block:
        attention = GroupedQueryAttention(
            num_heads=per_layer[index],
            num_kv_heads=groups,
            head_dim=size,
            v_head_dim=size,
            window=windows[index],
            qkv_bias=biased,
            out_bias=biased,
            qk_norm="head",
            gate=gates[gating],
        )
        feed_forward: FeedForward = moe
        if not routed[index]:
            feed_forward = DenseMlp(intermediate_size=config.int("intermediate_size"))
        return layer(
            attention, feed_forward, prefix=f"{window_name(windows[index])}{per_layer[index]}_"
        )

    return decoder(
        config, layout_of(num_layers, make), rotary=rotary(config, size), naming="laguna"
    )


@family("mellum")
def mellum(config: ConfigView) -> SpecFields:
    """Mellum 2: Qwen3-MoE's layer with windows in some of the layers."""
    num_layers = config.layers()
    windows = sliding(config, num_layers) or [None] * num_layers
    words = words_per_layer(config, "mlp_layer_types", num_layers, ("dense", "sparse"))
    size = config.int("head_dim", default=128)
    biased = config.flag("attention_bias", default=False)
    moe = MoeMlp(
        num_experts=config.int("num_experts", "num_local_experts"),
        experts_per_token=config.int("num_experts_per_tok"),
        intermediate_size=config.int("moe_intermediate_size"),
    )

    def make(index: int) -> Block:
        attention = grouped_query_attention(
            config,
            head_dim=size,
            v_head_dim=size,
            window=windows[index],
            qkv_bias=biased,
            out_bias=biased,
            qk_norm="head",
        )
        feed_forward: FeedForward = moe
        if words and words[index] == "dense":
            feed_forward = DenseMlp(intermediate_size=config.int("intermediate_size"))
        return layer(attention, feed_forward, prefix=window_name(windows[index]))

    return decoder(config, layout_of(num_layers, make), rotary=rotary(config, size))


@family("cohere2_moe")
def cohere2_moe(config: ConfigView) -> SpecFields:
    """Cohere 2 MoE: attention and experts side by side behind one norm, tied embeddings."""
    num_layers = config.layers()
    first = config.count("first_k_dense_replace", default=0)
    windows = sliding(config, num_layers)
    if windows is None:
        window = config.int("sliding_window", default=4096, high=MAX_CONTEXT)
        dense_period = config.int("prefix_dense_sliding_window_pattern", default=1)
        period = config.int("sliding_window_pattern", default=4)
        windows = [
            window
            if ((i + 1) % dense_period if i < first else (i - first + 1) % period) != 0
            else None
            for i in range(num_layers)
        ]
    words = words_per_layer(config, "mlp_layer_types", num_layers, ("dense", "sparse"))
    routed = [word == "sparse" for word in words] or [index >= first for index in range(num_layers)]
    size = config.int("head_dim", default=128)
    biased = config.flag("attention_bias", default=False)
    width = config.int("intermediate_size")
    num_shared = config.count("num_shared_experts", default=0)
    moe = MoeMlp(
        num_experts=config.int("num_experts"),
        experts_per_token=config.int("num_experts_per_tok"),
        intermediate_size=width,
        shared=shared_experts(num_shared, width),
    )

    def make(index: int) -> Block:
        attention = grouped_query_attention(
            config,
            head_dim=size,
            v_head_dim=size,
            window=windows[index],
            qkv_bias=biased,
            out_bias=biased,
        )
        feed_forward: FeedForward = moe
        if not routed[index]:
            feed_forward = DenseMlp(
                intermediate_size=config.int("prefix_dense_intermediate_size", default=width)
            )
        return layer(attention, feed_forward, prefix=window_name(windows[index]), num_norms=1)

    return decoder(config, layout_of(num_layers, make), rotary=rotary(config, size), tied=True)


# ---- Step -------------------------------------------------------------------------------------


def _step_routed(config: ConfigView, num_layers: int) -> set[int]:
    if "mlp_layer_types" in config:
        words = words_per_layer(
            config, "mlp_layer_types", num_layers, ("dense", "sparse"), more=MAX_MTP_LAYERS
        )
        return {index for index, word in enumerate(words) if word == "sparse"}
    routed = indices(config, "moe_layers_enum", num_layers)
    if routed is None:
        first = config.count("first_k_dense_replace", default=3)
        routed = set(range(first, num_layers))
    return routed


@family("step3p5")
def step3p5(config: ConfigView) -> SpecFields:
    """Step-3.5 and 3.7 Flash: windows in three of four layers, which may have more query heads
    (`attention_other_setting`), a gate per head, norms on q and k, dense MTP layers."""
    num_layers = config.layers()
    count = next_token_layers(config)
    types = config.list("layer_types")
    if len(types) not in (0, num_layers, num_layers + count):
        raise config.fail(f"layer_types has {len(types)} entries for {num_layers} layers")
    if any(kind not in ("full_attention", "sliding_attention") for kind in types):
        raise config.fail("layer_types must hold full_attention or sliding_attention")
    types = types or ["full_attention"] * num_layers
    # The MTP layers of a list that ends with the trunk are taken as sliding, as published.
    types = types + ["sliding_attention"] * (num_layers + count - len(types))
    size = config.int("head_dim")
    groups = config.int("num_attention_groups", "num_key_value_heads")
    biased = config.flag("attention_bias", default=False)
    other = config.sub("attention_other_setting")

    def attention(kind: str) -> GroupedQueryAttention:
        heads, own_groups, own_size = config.int("num_attention_heads"), groups, size
        if other is not None and other.text("attention_type") == kind:
            heads = other.int("num_attention_heads")
            own_groups = other.int("num_attention_groups", default=groups)
            own_size = other.int("head_dim", default=size)
        elif kind == "sliding_attention":
            heads = config.int("num_sliding_attention_heads", default=heads)
        window = None
        if kind == "sliding_attention":
            window = config.int("sliding_window", high=MAX_CONTEXT)
        return GroupedQueryAttention(
            num_heads=heads,
            num_kv_heads=own_groups,
            head_dim=own_size,
            v_head_dim=own_size,
            window=window,
            qkv_bias=biased,
            qk_norm="head",
            gate="per_head" if config.flag("use_head_wise_attn_gate", default=True) else "none",
        )

    shared = config.int("share_expert_dim", "share_expert_dims")
    moe = MoeMlp(
        num_experts=config.int("moe_num_experts", "n_routed_experts", "num_experts"),
        experts_per_token=config.int("moe_top_k", "num_experts_per_tok"),
        intermediate_size=config.int("moe_intermediate_size"),
        router_bias="correction" if config.flag("use_moe_router_bias", default=True) else "none",
        router_dtype="float32",
        shared=SharedExperts(intermediate_size=shared),
        stacked=True,
    )
    dense = DenseMlp(intermediate_size=config.int("intermediate_size"))
    routed = _step_routed(config, num_layers)

    def make(index: int) -> Block:
        feed_forward = moe if index in routed and index < num_layers else dense
        return layer(
            attention(types[index]), feed_forward, prefix=types[index].partition("_")[0] + "_"
        )

    guesses = [make(num_layers + i) for i in range(count)]
    mtp = None
    if count:
        mtp = MultiTokenPrediction(layers=tuple(block.name for block in guesses), stores_head=True)
    notes: tuple[str, ...] = ()
    if other is None and "num_sliding_attention_heads" not in config:
        notes = (
            "the config gives sliding layers no head count of their own; "
            "Step-3.5-Flash as published has 96 there",
        )
    return decoder(
        config,
        layout_of(num_layers, make),
        rotary=_step_tables(config, size, num_layers),
        mtp=mtp,
        mtp_blocks=guesses,
        naming="step3p5",
        notes=notes,
    )


def _step_tables(config: ConfigView, size: int, num_layers: int) -> tuple[RotaryTable, ...]:
    """One table per distinct base and rotating share: both may be lists of one value per layer."""
    settings = []
    for key in ("rope_theta", "partial_rotary_factors"):
        values = config.list(key) if isinstance(config.data.get(key), list) else []
        if values and len(values) < num_layers:
            raise config.fail(
                f"{config.path(key)} has {len(values)} entries for {num_layers} layers"
            )
        for value in values:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise config.fail(f"{config.path(key)} must hold numbers")
        settings.append(values or [None] * num_layers)
    tables: list[RotaryTable] = []
    for _, share in dict.fromkeys(zip(*(values[:num_layers] for values in settings), strict=True)):
        factor = partial_factor(config) if share is None else float(share)
        if not 0 < factor <= 1:
            raise config.fail("partial_rotary_factors must lie in 0..1")
        tables.extend(rotary(config, size, partial=factor))
    return tuple(tables)


@family("step3_text")
def step3(config: ConfigView) -> SpecFields:
    """Step-3: one KV head, the query through a latent of `share_q_dim`, shared experts."""
    num_layers = config.layers()
    size = config.int("head_dim", default=256)
    attention = GroupedQueryAttention(
        num_heads=config.int("num_attention_heads"),
        num_kv_heads=1,
        head_dim=size,
        v_head_dim=size,
        query_rank=config.int("share_q_dim", default=2048),
    )
    moe = layer(
        attention,
        MoeMlp(
            num_experts=config.int("moe_num_experts"),
            experts_per_token=config.int("moe_top_k"),
            intermediate_size=config.int("moe_intermediate_size"),
            shared=SharedExperts(intermediate_size=config.int("share_expert_dim")),
            stacked=True,
        ),
    )
    dense = layer(attention, DenseMlp(intermediate_size=config.int("intermediate_size")))
    routed = indices(config, "moe_layers_enum", num_layers)
    if routed is None:
        # Class default of Step3TextConfig in vLLM: layers 4 to 59.
        routed = set(range(4, 60))
    context = max_context(config, "max_position_embedding", "max_position_embeddings")
    return decoder(
        config,
        layout_of(num_layers, lambda i: moe if i in routed else dense),
        context=context,
        rotary=(RotaryTable(positions=context, rotary_dim=size),),
        naming="step3",
    )


# ---- Ling and Ring (bailing) ------------------------------------------------------------------


def bailing_experts(config: ConfigView, *, correction: bool | None = None) -> MoeMlp:
    """Experts of inclusionAI's models: shared ones may have a width of their own."""
    width = config.int("moe_intermediate_size")
    num_shared = config.count("num_shared_experts", default=0)
    shared = config.int("moe_shared_expert_intermediate_size", default=width) * num_shared
    if correction is None:
        correction = config.flag("moe_router_enable_expert_bias", default=False)
    kinds = {"": "", "fp32": "float32", "float32": "float32", "bf16": "", "bfloat16": ""}
    kind = config.text("router_dtype", default="")
    if kind not in kinds:
        raise config.fail(f"router_dtype {kind!r} is not known")
    biased = config.flag("use_bias", default=False)
    return MoeMlp(
        num_experts=config.int("num_experts"),
        experts_per_token=config.int("num_experts_per_tok", "num_experts_per_token"),
        intermediate_size=width,
        router_bias="correction" if correction else "none",
        router_dtype=kinds[kind],
        shared=shared_experts(1, shared, bias=biased),
    )


@family("bailing_moe", "bailing_moe_v2")
def bailing_moe(config: ConfigView) -> SpecFields:
    """Ling and Ring 1 and 2: grouped-query attention, optional norms on q and k, one MTP layer."""
    num_layers = config.layers()
    biased = config.flag("use_bias", default=False)
    norm: Literal["head", "none"] = "head" if config.flag("use_qk_norm", default=False) else "none"
    attention = grouped_query_attention(
        config,
        qkv_bias=biased or config.flag("use_qkv_bias", default=False),
        out_bias=biased,
        qk_norm=norm,
    )
    moe = layer(attention, bailing_experts(config))
    dense = layer(
        attention, DenseMlp(intermediate_size=config.int("intermediate_size"), bias=biased)
    )
    routed = dense_first(config, num_layers, default=0)
    count = next_token_layers(config)
    return decoder(
        config,
        layout_of(num_layers, lambda i: moe if routed[i] else dense),
        rotary=rotary(config, attention.head_dim),
        mtp=_mtp_like_trunk(moe, count),
        mtp_blocks=(moe,) if count else (),
        naming="bailing_moe",
    )


@family("hunyuan_v1_moe", "hunyuan")
def hunyuan_moe(config: ConfigView) -> SpecFields:
    """Hunyuan-A13B: norms on q and k, one shared expert of the dense width.

    Only one number of experts, top-k and shared experts for all layers is described.
    """
    num_layers = config.layers()
    biased = config.flag("attention_bias", default=False)
    attention = grouped_query_attention(config, qkv_bias=biased, out_bias=biased, qk_norm="head")
    width = _same_for_all(config, "moe_intermediate_size", config.int("intermediate_size"))
    shared = config.int("intermediate_size") * _same_for_all(config, "num_shared_expert", 1)
    moe = layer(
        attention,
        MoeMlp(
            num_experts=_same_for_all(config, "num_experts", None),
            experts_per_token=_same_for_all(config, "moe_topk", None),
            intermediate_size=width,
            shared=SharedExperts(intermediate_size=shared),
        ),
    )
    return decoder(
        config,
        [moe] * num_layers,
        rotary=rotary(config, attention.head_dim),
        naming="hunyuan_moe",
    )


def _same_for_all(config: ConfigView, key: str, default: int | None) -> int:
    """A number, or a list of one number per layer that must all be equal."""
    if isinstance(config.data.get(key), list):
        values = config.list(key)
        if not values or any(value != values[0] for value in values):
            raise config.fail(f"{config.path(key)} differs between layers; not described")
        return ConfigView({key: values[0]}, config.file, config.where).int(key)
    return config.int(key) if default is None else config.int(key, default=default)
