"""Gemma 1 to 4, text part: head sizes, windows and widths that differ between layers.

Defaults are those of the config classes in transformers 5.19 (configuration_gemma*.py). Gemma's
own config files leave most keys out, so they matter here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesize.core.feed_forward import DenseMlp, FeedForward, MoeMlp
from moesize.core.model_spec import Block, Embedding, ExtraTensor, RotaryTable
from moesize.readers.hf.common import (
    decoder_fields,
    dense_mlp,
    every_nth_full,
    grouped_query_attention,
    kv_heads,
    layer_types,
    layer_windows,
    max_context,
    rotary_table,
    with_defaults,
)
from moesize.readers.hf.registry import SpecFields, family
from moesize.readers.hf.view import ConfigView

if TYPE_CHECKING:
    from moesize.core.attention import GroupedQueryAttention

_GEMMA = {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 8192,
}
_GEMMA2 = {
    **_GEMMA,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "sliding_window": 4096,
}
_GEMMA3 = {**_GEMMA2, "vocab_size": 262208, "max_position_embeddings": 131072}
_GEMMA3N = {
    **_GEMMA3,
    "vocab_size": 262400,
    "vocab_size_per_layer_input": 262144,
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "hidden_size_per_layer_input": 256,
    "num_hidden_layers": 35,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
    "num_kv_shared_layers": 15,
    "altup_num_inputs": 4,
    "laurel_rank": 64,
}
_GEMMA4 = {
    **_GEMMA3,
    "vocab_size": 262144,
    "vocab_size_per_layer_input": 262144,
    "hidden_size_per_layer_input": 256,
    "num_hidden_layers": 30,
    "sliding_window": 512,
    "num_kv_shared_layers": 0,
    "global_head_dim": 512,
}


def _bias(config: ConfigView) -> dict[str, bool]:
    flag = config.flag("attention_bias", default=False)
    return {"qkv_bias": flag, "out_bias": flag}


@family("gemma")
def gemma(config: ConfigView) -> SpecFields:
    """Gemma 1: Llama's shape, tied, with heads of 256."""
    config = with_defaults(config, **_GEMMA)
    attention = grouped_query_attention(config, **_bias(config))
    block = Block(name="layer", mixers=(attention,), feed_forwards=(dense_mlp(config),))
    table = rotary_table(config, attention.head_dim, max_context(config))
    return decoder_fields(config, [block] * config.layers(), tied=True, rotary=(table,))


def _layout(
    config: ConfigView, windows: list[int | None], qk_norm: str, num_norms: int
) -> list[Block]:
    blocks = {}
    for window in windows:
        attention = grouped_query_attention(config, window=window, qk_norm=qk_norm, **_bias(config))
        blocks[window] = Block(
            name="full" if window is None else "sliding",
            mixers=(attention,),
            feed_forwards=(dense_mlp(config),),
            num_norms=num_norms,
        )
    return [blocks[window] for window in windows]


@family("gemma2", "vaultgemma")
def gemma2(config: ConfigView) -> SpecFields:
    """Gemma 2: norms before and behind both sublayers, a window in every other layer."""
    config = with_defaults(config, **_GEMMA2)
    own = config.text("model_type") == "gemma2"
    count = config.layers()
    pattern = ["full_attention" if i % 2 else "sliding_attention" for i in range(count)]
    windows = layer_windows(config, count, pattern=pattern)
    rotary = (rotary_table(config, config.int("head_dim"), max_context(config)),) if own else ()
    return decoder_fields(
        config,
        _layout(config, windows, "none", 4 if own else 2),
        tied=True,
        rotary=rotary,
        naming="gemma2" if own else "vaultgemma",
    )


@family("gemma3_text")
def gemma3(config: ConfigView) -> SpecFields:
    """Gemma 3: norms on query and key heads; five layers of six have a window.

    As an embedding model (bidirectional) it sees half a window to each side.
    """
    config = with_defaults(config, **_GEMMA3)
    count = config.layers()
    # transformers 4.5x wrote the pattern with a leading underscore.
    every = config.int("sliding_window_pattern", "_sliding_window_pattern", default=6)
    windows = layer_windows(config, count, pattern=every_nth_full(count, every))
    if config.flag("use_bidirectional_attention", default=False):
        windows = [None if window is None else window // 2 + 1 for window in windows]
    return decoder_fields(
        config,
        _layout(config, windows, "head", 4),
        tied=True,
        max_context=max_context(config),
        rotary=_local_and_global(config, config.int("head_dim"), config.int("head_dim")),
        naming="gemma2",
    )


def _local_and_global(
    config: ConfigView, local_size: int, global_size: int
) -> tuple[RotaryTable, ...]:
    """One table for windowed layers, one for the others; rope scaling applies to the latter.

    transformers 5 nests one object per layer type in `rope_parameters`.
    """
    positions = max_context(config)
    nested = config.sub("rope_parameters")
    view = config
    if nested is not None and "full_attention" in nested:
        rope = nested.need_sub("full_attention")
        view = ConfigView({"rope_scaling": rope.data}, config.file, nested.where)
    return (
        RotaryTable(positions=positions, rotary_dim=local_size),
        rotary_table(view, global_size, positions),
    )


@family("gemma3n_text")
def gemma3n(config: ConfigView) -> SpecFields:
    """Gemma 3n: four streams (AltUp), low-rank residuals (LAuReL), embeddings per layer.

    The last `num_kv_shared_layers` layers read the cache of an earlier layer. Their unused key and
    value weights are in the published files all the same, and no engine loads them.
    """
    config = with_defaults(config, **_GEMMA3N)
    count, hidden = config.layers(), config.int("hidden_size")
    windows = layer_windows(config, count, pattern=every_nth_full(count, 5))
    widths = _widths(config, count)
    first_shared = count - _shared_layers(config, count)
    streams, rank = config.int("altup_num_inputs", high=64), config.int("laurel_rank")
    per_layer = config.int("hidden_size_per_layer_input")
    extra = [
        ExtraTensor(role="other.altup_correction", shape=(streams, streams), matmul=True),
        ExtraTensor(role="other.altup_prediction", shape=(streams**2, streams), matmul=True),
        ExtraTensor(role="other.altup_router", shape=(streams, hidden), matmul=True),
        ExtraTensor(role="norms.altup_router", shape=(hidden,)),
        ExtraTensor(role="other.laurel_left", shape=(rank, hidden), matmul=True),
        ExtraTensor(role="other.laurel_right", shape=(hidden, rank), matmul=True),
        *_per_layer_input(hidden, per_layer),
        ExtraTensor(role="other.altup_scale", shape=(hidden,)),
    ]
    layout, unused = [], 0
    for i, (window, width) in enumerate(zip(windows, widths, strict=True)):
        shared = i >= first_shared
        attention = grouped_query_attention(
            config, window=window, qk_norm="head", shares_kv=shared, **_bias(config)
        )
        if shared:
            unused += _unused_elements(attention, hidden)
        name = ("full" if window is None else "sliding") + f"_{width}" + "_shared" * shared
        layout.append(
            Block(
                name=name,
                mixers=(attention,),
                feed_forwards=(DenseMlp(intermediate_size=width),),
                num_norms=5,  # four around the sublayers, one behind LAuReL
                extra=tuple(extra),
            )
        )
    return decoder_fields(
        config,
        layout,
        tied=True,
        max_context=max_context(config),
        embedding=_per_layer_embedding(config, per_layer),
        extra=(
            *_per_layer_projection(count, hidden, per_layer),
            *(
                ExtraTensor(
                    role=f"other.altup_{part}",
                    shape=(hidden, hidden),
                    copies=streams - 1,
                    matmul=True,
                )
                for part in ("projections", "unembed_projections")
                if streams > 1
            ),
        ),
        stored_extra=_unused_kv(unused),
        rotary=_local_and_global(config, config.int("head_dim"), config.int("head_dim")),
        naming="gemma3n",
    )


def _widths(config: ConfigView, count: int) -> list[int]:
    """`intermediate_size` of every layer: one number, or a list of them."""
    value = config.data.get("intermediate_size")
    if not isinstance(value, list):
        return [config.int("intermediate_size")] * count
    if len(value) != count:
        raise config.fail(f"intermediate_size has {len(value)} entries for {count} layers")
    return [
        ConfigView({"intermediate_size": width}, config.file, config.where).int("intermediate_size")
        for width in value
    ]


def _unused_elements(attention: GroupedQueryAttention, hidden: int) -> int:
    """Key and value weights and the key norm of a layer that reads another layer's cache."""
    parts = 1 if attention.key_is_value else 2
    return (parts * attention.num_kv_heads * hidden + 1) * attention.head_dim


def _unused_kv(elements: int) -> tuple[ExtraTensor, ...]:
    return (ExtraTensor(role="other.unused_kv", shape=(elements,)),) if elements else ()


def _shared_layers(config: ConfigView, count: int) -> int:
    shared = config.count("num_kv_shared_layers", default=0)
    if shared >= count:
        raise config.fail(f"num_kv_shared_layers ({shared}) must be below {count} layers")
    return shared


def _per_layer_input(hidden: int, per_layer: int) -> tuple[ExtraTensor, ...]:
    return (
        ExtraTensor(role="other.per_layer_gate", shape=(per_layer, hidden), matmul=True),
        ExtraTensor(role="other.per_layer_projection", shape=(hidden, per_layer), matmul=True),
        ExtraTensor(role="norms.per_layer", shape=(hidden,)),
    )


def _per_layer_projection(count: int, hidden: int, per_layer: int) -> tuple[ExtraTensor, ...]:
    return (
        ExtraTensor(
            role="other.per_layer_model_projection",
            shape=(count * per_layer, hidden),
            split="out",
            matmul=True,
        ),
        ExtraTensor(role="norms.per_layer_projection", shape=(per_layer,)),
    )


def _per_layer_embedding(config: ConfigView, per_layer: int) -> Embedding:
    rows = config.int("vocab_size_per_layer_input") if per_layer else 0
    return Embedding(
        vocab_size=config.int("vocab_size"),
        tied=config.flag("tie_word_embeddings", default=True),
        per_layer_vocab_size=rows,
        per_layer_size=per_layer,
    )


@family("gemma4_text")
def gemma4(config: ConfigView) -> SpecFields:
    """Gemma 4: global layers with larger heads, and optional extras that differ by size.

    Per-layer embeddings and shared caches (E2B, E4B); one projection as key and value of global
    layers (26B, 31B); experts beside the dense MLP of every layer (26B-A4B). Every layer ends with
    a scalar that is stored as a buffer. Files hold unused key and value weights as in Gemma 3n.
    """
    config = _flatten_overrides(with_defaults(config, **_GEMMA4))
    count, hidden = config.layers(), config.int("hidden_size")
    types = layer_types(config, count) or every_nth_full(count, 6)
    types = [*types[:-1], "full_attention"]  # the config class forces the last layer
    windows = layer_windows(
        ConfigView({**config.data, "layer_types": types}, config.file, config.where), count
    )
    if config.data.get("use_bidirectional_attention") == "all":
        windows = [None if window is None else window // 2 + 1 for window in windows]
    first_shared = count - _shared_layers(config, count)
    wide = config.flag("use_double_wide_mlp", default=False)
    moe = _gemma4_experts(config)
    per_layer = config.count("hidden_size_per_layer_input", default=0)
    extra: tuple[ExtraTensor, ...] = _per_layer_input(hidden, per_layer) if per_layer else ()
    if moe is not None:
        extra += (
            ExtraTensor(role="router.scale", shape=(hidden,)),
            ExtraTensor(role="router.expert_scale", shape=(moe.num_experts,)),
        )
    layout, unused = [], 0
    for i, window in enumerate(windows):
        shared = i >= first_shared
        width = config.int("intermediate_size") * (2 if wide and shared else 1)
        feed_forwards: tuple[FeedForward, ...] = (DenseMlp(intermediate_size=width),)
        if moe is not None:
            feed_forwards += (moe,)
        attention = _gemma4_attention(config, window, shared)
        if shared:
            unused += _unused_elements(attention, hidden)
        layout.append(
            Block(
                name=("full" if window is None else "sliding") + "_shared" * shared,
                mixers=(attention,),
                feed_forwards=feed_forwards,
                num_norms=4 if moe is None else 7,
                extra=extra,
            )
        )
    head, global_head = config.int("head_dim"), config.int("global_head_dim")
    return decoder_fields(
        config,
        layout,
        tied=True,
        max_context=max_context(config),
        embedding=_per_layer_embedding(config, per_layer),
        extra=_per_layer_projection(count, hidden, per_layer) if per_layer else (),
        stored_extra=(
            ExtraTensor(role="other.layer_scalar", shape=(1,), copies=count),
            *_unused_kv(unused),
        ),
        rotary=_local_and_global(config, head, global_head),
        naming="gemma4",
    )


def _flatten_overrides(config: ConfigView) -> ConfigView:
    """`per_layer_config` as transformers 5 writes it: the same facts for every global layer."""
    overrides = config.sub("per_layer_config")
    if overrides is None:
        return config
    facts = list(overrides.data.values())
    if any(not isinstance(fact, dict) or fact != facts[0] for fact in facts):
        raise config.fail("per_layer_config must give every global layer the same facts")
    if not facts or set(facts[0]) - {"head_dim", "num_key_value_heads"}:
        raise config.fail("per_layer_config may only set head_dim and num_key_value_heads")
    names = {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_key_value_heads"}
    flat = {names[key]: value for key, value in facts[0].items()}
    return ConfigView({**config.data, **flat}, config.file, config.where)


def _gemma4_attention(
    config: ConfigView, window: int | None, shared: bool
) -> GroupedQueryAttention:
    """Global layers have heads of `global_head_dim`, and fewer KV heads if keys are values."""
    facts: dict[str, Any] = {"window": window, "qk_norm": "head", "shares_kv": shared}
    if window is None:
        size = config.int("global_head_dim")
        facts |= {"head_dim": size, "v_head_dim": size}
        if config.flag("attention_k_eq_v", default=False):
            facts["key_is_value"] = True
            facts["num_kv_heads"] = config.int(
                "num_global_key_value_heads", default=kv_heads(config)
            )
    return grouped_query_attention(config, **facts, **_bias(config))


def _gemma4_experts(config: ConfigView) -> MoeMlp | None:
    if not config.flag("enable_moe_block", default=False):
        return None
    return MoeMlp(
        num_experts=config.int("num_experts"),
        experts_per_token=config.int("top_k_experts"),
        intermediate_size=config.int("moe_intermediate_size", "expert_intermediate_size"),
        stacked=True,
    )
