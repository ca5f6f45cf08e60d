"""Families with latent attention (MLA) and what grew out of it: sparse indexers, compressed
attention with hyper-connections, Kimi delta attention.

Element types that differ from the model's are those vLLM 0.32.0 allocates; defaults are those of
the family's configuration class in transformers 5.19, or in vLLM 0.32.0 where transformers has
none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from moesize.core.attention import CompressedAttention, Indexer, LatentAttention
from moesize.core.feed_forward import DenseMlp, FeedForward, MoeMlp
from moesize.core.model_spec import Block, ExtraTensor, MultiTokenPrediction, RotaryTable
from moesize.core.recurrent import KimiDeltaAttention, LightningAttention
from moesize.readers.hf.common import head_dim, max_context, with_defaults
from moesize.readers.hf.moe import (
    bailing_experts,
    decoder,
    deepseek_experts,
    deepseek_v1,
    dense_first,
    layer,
    layout_of,
    next_token_layers,
    partial_factor,
    rotary,
    rotary_settings,
    shared_experts,
    words_per_layer,
)
from moesize.readers.hf.registry import SpecFields, family
from moesize.readers.hf.view import MAX_CONTEXT, ConfigView

if TYPE_CHECKING:
    from moesize.core.mixers import Mixer


def latent_attention(
    config: ConfigView, *, q_lora_default: int | None = None, **overrides: Any
) -> LatentAttention:
    """MLA under DeepSeek's names. `q_lora_rank: null` says that q has no low-rank step; a config
    without the key takes the default of the family's class."""
    q_rank = config.int("q_lora_rank", default=None)
    if q_rank is None and "q_lora_rank" not in config.data:
        q_rank = q_lora_default
    biased = config.flag("attention_bias", default=False)
    facts: dict[str, Any] = {
        "num_heads": config.int("num_attention_heads"),
        "q_lora_rank": q_rank,
        "kv_lora_rank": config.int("kv_lora_rank"),
        "qk_nope_head_dim": config.count("qk_nope_head_dim"),
        "qk_rope_head_dim": config.count("qk_rope_head_dim"),
        "v_head_dim": config.int("v_head_dim"),
        "qkv_bias": biased,
        "out_bias": biased,
        **overrides,
    }
    return LatentAttention(**facts)


def _rope(
    config: ConfigView, *, dtype: str = "", copies: int = 1, **default: int
) -> tuple[RotaryTable, ...]:
    """The table covers the rope part of the head, whatever `partial_rotary_factor` says.

    `default`: the size, for classes that have one.
    """
    size = config.count("qk_rope_head_dim", **default)
    if size == 0:
        return ()
    return rotary(config, size, partial=1.0, dtype=dtype, copies=copies)


def _dense(config: ConfigView, **facts: Any) -> DenseMlp:
    return DenseMlp(intermediate_size=config.int("intermediate_size"), **facts)


# ---- DeepSeek-V2, V3, V3.2 and models of the same shape ---------------------------------------


def _deepseek(
    config: ConfigView,
    attention: LatentAttention,
    moe: MoeMlp,
    *,
    routed: list[bool],
    expert_norms: int = 2,
    **more: Any,
) -> SpecFields:
    """Dense and routed layers around one attention; MTP layers repeat a routed layer.

    The published MTP layers hold the embedding and the head a second time (DeepSeek-V3,
    README_WEIGHTS.md).
    """
    expert_layer = layer(attention, moe, num_norms=expert_norms)
    dense_layer = layer(attention, _dense(config)) if not all(routed) else expert_layer
    count = next_token_layers(config)
    mtp = None
    if count:
        mtp = MultiTokenPrediction(
            layers=(expert_layer.name,) * count, stores_embedding=True, stores_head=True
        )
    return decoder(
        config,
        layout_of(len(routed), lambda i: expert_layer if routed[i] else dense_layer),
        mtp=mtp,
        mtp_blocks=(expert_layer,) if count else (),
        **more,
    )


def _topk_bias(config: ConfigView, default: str) -> Literal["none", "correction"]:
    """Only the auxiliary-loss-free method ("noaux_tc") has a correction bias."""
    method = config.text("topk_method", default=default)
    return "correction" if method == "noaux_tc" else "none"


@family("deepseek_v2")
def deepseek_v2(config: ConfigView) -> SpecFields:
    """DeepSeek-V2, V2-Lite, Coder-V2; without latent sizes (DeepSeek-VL2-tiny) the attention is
    that of the first DeepSeek-MoE."""
    sizes = [config.count(key, default=None) for key in ("qk_nope_head_dim", "qk_rope_head_dim")]
    if not config.flag("use_mla", default=True) or sizes == [0, 0]:
        return deepseek_v1(config)
    moe = deepseek_experts(config, router_bias=_topk_bias(config, "greedy"))
    notes: tuple[str, ...] = ()
    if "q_lora_rank" not in config.data:
        # V2-Lite publishes null and V2 a number; a copy that drops null values loses the fact.
        notes = ("the config has no q_lora_rank; the default of its class, 1536, is taken",)
    return _deepseek(
        config,
        latent_attention(config, q_lora_default=1536),
        moe,
        routed=dense_first(config, config.layers(), default=0),
        rotary=_rope(config),
        notes=notes,
    )


@family("deepseek_v3", "kimi_k2", "axk1")
def deepseek_v3(config: ConfigView) -> SpecFields:
    """DeepSeek-V3, V3.1, R1; Kimi-K2 has the same shape, A.X-K1 a third norm behind its experts."""
    moe = deepseek_experts(config, router_bias=_topk_bias(config, "noaux_tc"))
    third = config.text("model_type") == "axk1"
    return _deepseek(
        config,
        latent_attention(config, q_lora_default=1536),
        moe,
        routed=dense_first(config, config.layers(), default=1 if third else 3),
        expert_norms=3 if third else 2,
        rotary=_rope(config),
        naming="axk1" if third else "default",
    )


@family("mistral4")
def mistral4(config: ConfigView) -> SpecFields:
    """Mistral 4: DeepSeek-V3's shape without a correction bias."""
    attention = latent_attention(config, q_lora_default=1024)
    rope, nope = attention.qk_rope_head_dim, attention.qk_nope_head_dim
    # The class sets partial_rotary_factor to the rope share of the head, and vLLM 0.32.0 applies
    # it once more to the rope part.
    return _deepseek(
        config,
        attention,
        deepseek_experts(config, router_bias="none"),
        routed=dense_first(config, config.layers(), default=0),
        rotary=rotary(config, rope, partial=partial_factor(config, rope / (rope + nope)))
        if rope
        else (),
    )


@family("glm4_moe_lite")
def glm4_moe_lite(config: ConfigView) -> SpecFields:
    """GLM-4.7-Flash: DeepSeek-V3's shape with a float32 router."""
    return _deepseek(
        config,
        latent_attention(config, q_lora_default=768),
        deepseek_experts(config, router_dtype="float32"),
        routed=dense_first(config, config.layers(), default=1),
        rotary=_rope(config),
    )


@family("deepseek_v32", "glm_moe_dsa")
def deepseek_v32(config: ConfigView) -> SpecFields:
    """DeepSeek-V3.2 and GLM-5: MLA that attends to the tokens an indexer picks.

    GLM-5.2 lets layers re-use the choice of an earlier one ("shared"): they have no indexer.
    The MTP layer has one of its own. With yarn the tables are float32; the indexer rotates by
    halves and needs a second table unless it interleaves as the attention does.
    """
    num_layers = config.layers()
    plain = latent_attention(config)
    # Class defaults of DeepseekV32Config and GlmMoeDsaConfig: 64 and 32 heads.
    heads = 64 if config.text("model_type") == "deepseek_v32" else 32
    full = _with_indexer(config, plain, heads)
    shared = replace(plain, index_shared=True)
    own = _indexer_types(config, num_layers)
    routed = dense_first(config, num_layers, default=3)
    moe = deepseek_experts(config, router_bias=_topk_bias(config, "noaux_tc"))

    def make(index: int) -> Block:
        feed_forward: FeedForward = moe if routed[index] else _dense(config)
        return layer(
            full if own[index] else shared, feed_forward, prefix="" if own[index] else "shared_"
        )

    count = next_token_layers(config)
    mtp = None
    if count:
        # GLM-5's MTP layer goes without the copies that DeepSeek's holds.
        copies = config.text("model_type") == "deepseek_v32"
        mtp = MultiTokenPrediction(
            layers=("moe",) * count, stores_embedding=copies, stores_head=copies
        )
    rope = rotary_settings(config)
    kind = rope.text("rope_type", "type", default="default") if rope is not None else "default"
    interleaved = config.flag("indexer_rope_interleave", default=False)
    return decoder(
        config,
        layout_of(num_layers, make),
        mtp=mtp,
        mtp_blocks=(layer(full, moe),) if count else (),
        rotary=_rope(
            config,
            dtype="float32" if "yarn" in kind else "",
            copies=1 if interleaved else 2,
        ),
    )


def _with_indexer(
    config: ConfigView, plain: LatentAttention, heads: int, *, pool: int = 1
) -> LatentAttention:
    """The attention with an indexer of its own; every class defaults to size 128 and top 2048."""
    if plain.q_lora_rank is None:
        raise config.fail("q_lora_rank is missing", "the sparse indexer reads the query latent")
    indexer = Indexer(
        num_heads=config.int("index_n_heads", default=heads),
        head_dim=config.int("index_head_dim", default=128),
        top_k=config.int("index_topk", default=2048, high=MAX_CONTEXT),
        query_rank=plain.q_lora_rank,
        pool=pool,
    )
    return replace(plain, indexer=indexer)


def _indexer_types(config: ConfigView, num_layers: int) -> list[bool]:
    """True for layers with an indexer of their own (`full`), as the class derives it."""
    words = words_per_layer(config, "indexer_types", num_layers, ("full", "shared"))
    if words:
        return [word == "full" for word in words]
    if config.text("model_type") == "deepseek_v32":
        return [True] * num_layers
    if "index_topk_pattern" in config:
        pattern = config.data["index_topk_pattern"]
        if isinstance(pattern, str):
            letters = [letter == "F" for letter in pattern]
            if len(letters) != num_layers or set(pattern) - {"F", "S"}:
                raise config.fail("index_topk_pattern must hold one F or S for every layer")
            return letters
        return [
            word == "full"
            for word in words_per_layer(
                config, "index_topk_pattern", num_layers, ("full", "shared")
            )
        ]
    every = config.int("index_topk_freq", default=1)
    offset = config.count("index_skip_topk_offset", default=2)
    return [max(index - offset + 1, 0) % every == 0 for index in range(num_layers)]


# ---- DeepSeek-V4 ------------------------------------------------------------------------------


@family("deepseek_v4", "deepseek_ref")
def deepseek_v4(config: ConfigView) -> SpecFields:
    """DeepSeek-V4: compressed attention, hyper-connections, the first layers routed by a table.

    "deepseek_ref" is the name under which SGLang republishes it.
    """
    if config.count("vision_n_layers", default=0):
        raise config.fail("vision_n_layers: DeepSeek-V4 with a vision tower is not described yet")
    num_layers, hidden = config.layers(), config.int("hidden_size")
    streams = config.int("hc_mult", default=4, high=1024)
    spark = "dspark_target_layer_ids" in config
    # A DSpark draft has three layers unless n_mtp_layers says otherwise (vLLM 0.32.0).
    count = config.int("n_mtp_layers", default=3, high=64) if spark else next_token_layers(config)
    ratios = _compress_ratios(config, num_layers, count)
    hashed = _hash_layers(config, num_layers)
    experts = deepseek_experts(config)
    by_table = replace(experts, router_bias="none", hash_vocab_size=config.int("vocab_size"))

    def make(index: int) -> Block:
        attention = CompressedAttention(
            num_heads=config.int("num_attention_heads"),
            head_dim=config.int("head_dim", default=512),
            qk_rope_head_dim=config.int("qk_rope_head_dim", default=64),
            q_lora_rank=config.int("q_lora_rank", default=1024),
            output_groups=config.int("o_groups", default=8),
            output_rank=config.int("o_lora_rank", default=1024),
            window=config.int("sliding_window", default=128, high=MAX_CONTEXT),
            compress_ratio=ratios[index],
            index_heads=config.int("index_n_heads", default=64),
            index_head_dim=config.int("index_head_dim", default=128),
            index_top_k=config.int("index_topk", default=512),
        )
        prefix = f"ratio{ratios[index]}_" if ratios[index] > 1 else "window_"
        by_hash = index < num_layers and hashed[index]
        return layer(
            attention,
            by_table if by_hash else experts,
            prefix=prefix + ("hash_" if by_hash else ""),
            extra=_hyper_connections(streams, hidden),
        )

    guesses = [make(num_layers + i) for i in range(count)]
    mtp = None
    if spark:
        guesses[0] = _dspark_first(config, guesses[0], _head_connections(streams, hidden))
        mtp = MultiTokenPrediction(
            layers=tuple(block.name for block in guesses), norms=0, projection_inputs=0
        )
    elif count:
        mtp = MultiTokenPrediction(
            layers=tuple(block.name for block in guesses), extra=_head_connections(streams, hidden)
        )
    context = max_context(config)
    size = config.int("qk_rope_head_dim", default=64)
    # One float32 table for plain rotation and one for the compressed layers.
    copies = len({ratio > 1 for ratio in ratios[:num_layers]})
    return decoder(
        config,
        layout_of(num_layers, make),
        mtp=mtp,
        mtp_blocks=guesses,
        extra=_head_connections(streams, hidden),
        rotary=(RotaryTable(positions=context, rotary_dim=size, dtype="float32", copies=copies),),
        naming="deepseek_v4",
    )


def _dspark_first(config: ConfigView, block: Block, heads: tuple[ExtraTensor, ...]) -> Block:
    """The first layer of a DSpark draft with what the whole draft has once: the projection of the
    target layers' states, a Markov head of rank r, a confidence head, two more norms.

    Source: vLLM 0.32.0, models/deepseek_v4/nvidia/dspark.py.
    """
    hidden, vocab = config.int("hidden_size"), config.int("vocab_size")
    rank = config.int("dspark_markov_rank")
    targets = len(config.list("dspark_target_layer_ids", max_length=4096))
    extra = (
        ExtraTensor(role="other.draft_projection", shape=(hidden, targets * hidden), matmul=True),
        ExtraTensor(role="other.markov", shape=(vocab, rank), copies=2, matmul=True),
        ExtraTensor(role="other.confidence", shape=(1, hidden + rank), matmul=True),
    )
    return replace(
        block,
        name="draft_" + block.name,
        num_norms=block.num_norms + 2,
        extra=(*block.extra, *extra, *heads),
    )


_RATIOS = {
    "sliding_attention": 0,
    "compressed_sparse_attention": 4,
    "heavily_compressed_attention": 128,
}


def _compress_ratios(config: ConfigView, num_layers: int, more: int) -> list[int]:
    """Compression of every layer, those of the MTP layers behind; 0 = a plain window."""
    ratios = config.list("compress_ratios")
    if ratios:
        if len(ratios) not in (num_layers, num_layers + more):
            raise config.fail(f"compress_ratios has {len(ratios)} entries for {num_layers} layers")
        if any(type(ratio) is not int or ratio not in (0, 1, 4, 128) for ratio in ratios):
            raise config.fail("compress_ratios must hold 0, 4 or 128 for every layer")
        return ratios + [0] * (num_layers + more - len(ratios))
    types = words_per_layer(config, "layer_types", num_layers, tuple(_RATIOS), more=more)
    if not types:
        # Class rule: two heavily compressed layers, then both kinds in turn.
        types = ["heavily_compressed_attention"] * min(num_layers, 2) + [
            "compressed_sparse_attention" if index % 2 else "heavily_compressed_attention"
            for index in range(max(num_layers - 2, 0))
        ]
    found = [_RATIOS[kind] for kind in types]
    return found + [0] * (num_layers + more - len(found))


def _hash_layers(config: ConfigView, num_layers: int) -> list[bool]:
    words = words_per_layer(config, "mlp_layer_types", num_layers, ("hash_moe", "moe"))
    if words:
        return [word == "hash_moe" for word in words]
    first = config.count("num_hash_layers", default=3)
    return [index < first for index in range(num_layers)]


def _hyper_connections(streams: int, hidden: int) -> tuple[ExtraTensor, ...]:
    """Mixing of m residual streams before attention and before the experts.

    fn ((2 + m) * m, m * H), base of as many values, three scales; all float32.
    """
    wide = (2 + streams) * streams
    return tuple(
        ExtraTensor(
            role=f"other.hc_{part}_{name}", shape=shape, dtype="float32", matmul=name == "fn"
        )
        for part in ("attn", "ffn")
        for name, shape in (("fn", (wide, streams * hidden)), ("base", (wide,)), ("scale", (3,)))
    )


def _head_connections(streams: int, hidden: int) -> tuple[ExtraTensor, ...]:
    """Joining the streams before the head: fn (m, m * H), base (m), one scale; float32."""
    return tuple(
        ExtraTensor(role=f"other.hc_head_{name}", shape=shape, dtype="float32", matmul=name == "fn")
        for name, shape in (
            ("fn", (streams, streams * hidden)),
            ("base", (streams,)),
            ("scale", (1,)),
        )
    )


# ---- Kimi Linear and Kimi-K3 ------------------------------------------------------------------


@family("kimi_linear")
def kimi_linear(config: ConfigView) -> SpecFields:
    """Kimi Linear and the language model of Kimi-K3: Kimi delta attention with MLA every few
    layers; K3 adds output gates, experts in a smaller width, and attention residuals."""
    num_layers, hidden = config.layers(), config.int("hidden_size")
    linear = config.sub("linear_attn_config") or ConfigView({}, config.file)
    delta = KimiDeltaAttention(
        num_heads=linear.int("num_heads", default=config.int("linear_num_heads", default=32)),
        head_dim=linear.int("head_dim", default=config.int("linear_head_dim", default=128)),
        conv_kernel=linear.int(
            "short_conv_kernel_size",
            default=config.int("linear_conv_kernel_dim", default=4, high=1024),
            high=1024,
        ),
        full_rank_gate=linear.flag("use_full_rank_gate", default=False),
    )
    latent = latent_attention(config, output_gate=config.flag("mla_use_output_gate", default=False))
    full = _kimi_full_layers(config, linear, num_layers)
    num_shared = config.count("num_shared_experts", "n_shared_experts", default=0)
    width = config.int("moe_intermediate_size")
    latent_size = config.int("routed_expert_hidden_size", default=None)
    moe = MoeMlp(
        num_experts=config.int("num_experts", "num_local_experts"),
        experts_per_token=config.int("num_experts_per_token", "num_experts_per_tok"),
        intermediate_size=width,
        router_bias="correction",
        shared=shared_experts(num_shared, width),
        latent_size=latent_size,
        latent_norm="routed_expert_hidden_size" in config
        and config.flag("latent_moe_use_norm", default=False),
    )
    routed = dense_first(config, num_layers, default=1)
    residuals = config.int("attn_res_block_size", default=None) is not None
    # Attention residuals: a norm and a score of the stream, before attention and before the MLP.
    extra = (
        ExtraTensor(role="other.attention_residual", shape=(1, hidden), copies=2, matmul=True),
    )

    def make(index: int) -> Block:
        return layer(
            latent if full[index] else delta,
            moe if routed[index] else _dense(config),
            prefix="latent_" if full[index] else "delta_",
            num_norms=4 if residuals else 2,
            extra=extra if residuals else (),
        )

    if next_token_layers(config):
        raise config.fail("num_nextn_predict_layers: MTP layers of Kimi Linear are not described")
    final = ExtraTensor(role="other.attention_residual", shape=(1, hidden), matmul=True)
    return decoder(
        config,
        layout_of(num_layers, make),
        context=max_context(config, "max_position_embeddings", "model_max_length"),
        num_final_norms=2 if residuals else 1,
        extra=(final,) if residuals else (),
        rotary=() if config.flag("mla_use_nope", default=True) else _rope(config),
        naming="kimi_linear",
    )


def _kimi_full_layers(config: ConfigView, linear: ConfigView, num_layers: int) -> list[bool]:
    """Layers with MLA; the lists of the original config count from one."""
    words = words_per_layer(
        config, "layer_types", num_layers, ("full_attention", "linear_attention")
    )
    if words:
        return [word == "full_attention" for word in words]
    full, delta = linear.list("full_attn_layers"), linear.list("kda_layers")
    named = full + delta
    if not named:
        # Class default: every fourth layer but the first.
        return [index > 0 and index % 4 == 0 for index in range(num_layers)]
    if any(type(index) is not int for index in named) or sorted(named) != list(
        range(1, num_layers + 1)
    ):
        raise linear.fail(
            "full_attn_layers and kda_layers must name every layer from 1 to "
            f"{num_layers} exactly once"
        )
    return [index + 1 in set(full) for index in range(num_layers)]


# ---- GLM-5.3 and Hunyuan 4 -------------------------------------------------------------------


@family("glm5_next_text")
def glm5_next(config: ConfigView) -> SpecFields:
    """GLM-5.3: Kimi delta attention in three of four layers, sparse latent attention with pooled
    index keys in the others, hyper-connections around both. The MTP layer has latent attention
    and no hyper-connections."""
    num_layers, hidden = config.layers(), config.int("hidden_size")
    linear = config.sub("linear_attn_config") or ConfigView({}, config.file)
    delta = KimiDeltaAttention(
        num_heads=linear.int("num_heads", default=config.int("linear_num_heads", default=64)),
        head_dim=linear.int("head_dim", default=config.int("linear_head_dim", default=128)),
        conv_kernel=linear.int(
            "short_conv_kernel_size",
            default=config.int("linear_conv_kernel_dim", default=4, high=1024),
            high=1024,
        ),
    )
    plain = latent_attention(config, q_lora_default=1536)
    full = _with_indexer(
        config, plain, 32, pool=config.int("index_kpool", default=16, high=1 << 16)
    )
    shared = replace(plain, index_shared=True)
    words = words_per_layer(
        config,
        "layer_types",
        num_layers,
        ("linear_attention", "indexed_attention", "full_attention"),
    )
    # Class rule: every fourth layer has latent attention.
    latent = [word != "linear_attention" for word in words] or [
        index % 4 == 3 for index in range(num_layers)
    ]
    own = _indexer_types(config, num_layers)
    routed = dense_first(config, num_layers, default=3)
    moe = deepseek_experts(config, router_dtype="float32")
    streams = config.int("hc_mult", default=4, high=1024)

    def make(index: int) -> Block:
        feed_forward: FeedForward = moe if routed[index] else _dense(config)
        kind = "delta_"
        if latent[index]:
            kind = "latent_" if own[index] else "shared_"
        mixers: dict[str, Mixer] = {"delta_": delta, "latent_": full, "shared_": shared}
        return layer(
            mixers[kind], feed_forward, prefix=kind, extra=_hyper_connections(streams, hidden)
        )

    count = next_token_layers(config)
    guess = layer(full, moe, prefix="mtp_")
    return decoder(
        config,
        layout_of(num_layers, make),
        mtp=MultiTokenPrediction(layers=(guess.name,) * count) if count else None,
        mtp_blocks=(guess,) if count else (),
        rotary=_rope(config, default=0),
        naming="glm5_next",
    )


@family("hy_v4")
def hy_v4(config: ConfigView) -> SpecFields:
    """Hunyuan 4: gated latent attention with sinks, an indexer every few layers, independent
    hyper-connections; the MTP layer has none of those connections."""
    num_layers, hidden = config.layers(), config.int("hidden_size")
    plain = latent_attention(config, q_lora_default=1536)
    gated = config.flag("gated_mla", default=True)
    kind = config.text("gating_type", default="elementwise")
    if kind not in ("elementwise", "headwise"):
        raise config.fail(f"gating_type {kind!r} is not known")
    plain = replace(
        plain,
        output_gate=gated and kind == "elementwise",
        head_gate=gated and kind == "headwise",
        sinks=config.flag("learnable_sink", default=True),
    )
    full = _with_indexer(config, plain, 16)
    shared = replace(plain, index_shared=True)
    words = words_per_layer(config, "indexer_types", num_layers, ("full", "shared"))
    # Class rule: the first two layers, then every fourth.
    own = [word == "full" for word in words] or [
        index == 0 or (index - 1) % 4 == 0 for index in range(num_layers)
    ]
    routed = dense_first(config, num_layers, default=1)
    moe = deepseek_experts(config, router_dtype="float32")
    streams = config.int("hc_mult", default=4, high=1024)
    connected = config.flag("enable_ihc", default=True)
    wide = 2 * streams
    extra = tuple(
        ExtraTensor(
            role=f"other.hc_{part}_{name}", shape=shape, dtype="float32", matmul=name == "fn"
        )
        for part in ("attn", "ffn")
        for name, shape in (("fn", (wide, streams * hidden)), ("base", (wide,)), ("scale", (2,)))
    )

    def make(index: int) -> Block:
        feed_forward: FeedForward = moe if routed[index] else _dense(config)
        return layer(
            full if own[index] else shared,
            feed_forward,
            prefix="" if own[index] else "shared_",
            extra=extra if connected else (),
        )

    # One MTP layer is exported for num_nextn_predict_layers of 1 and of 2 (vLLM 0.32.0).
    count = next_token_layers(config)
    count = max(count - 1, 1) if count else 0
    guess = layer(full, moe, prefix="mtp_")
    return decoder(
        config,
        layout_of(num_layers, make),
        mtp=MultiTokenPrediction(layers=(guess.name,) * count) if count else None,
        mtp_blocks=(guess,) if count else (),
        extra=_head_connections(streams, hidden) if connected else (),
        rotary=_rope(config),
        naming="hy_v4",
    )


# ---- Ling 2.5 and 3.0, LongCat ----------------------------------------------------------------


@family("bailing_hybrid")
def bailing_hybrid(config: ConfigView) -> SpecFields:
    """Ling and Ring 2.5 (lightning attention) and 3.0 (Kimi delta attention): the last layer of
    every group has latent attention."""
    if "max_position_embeddings" not in config:
        # As the transformers class writes it.
        longest = config.int("model_max_length", high=MAX_CONTEXT)
        config = with_defaults(config, max_position_embeddings=longest)
    num_layers = config.layers()
    group = config.count("layer_group_size", default=1)
    delta = "no_kda_lora" in config or "short_conv_kernel_size" in config
    biased = config.flag("use_bias", default=False)
    gates = {"": "", "head_wise": "head", "element_wise": "all"}
    gate = config.text("gated_attention_proj_granularity_type", default="") if delta else ""
    if gate not in gates:
        raise config.fail(f"gated_attention_proj_granularity_type {gate!r} is not known")
    # Defaults of vLLM's BailingMoeV25MLAAttention and BailingMoeV3MLAAttention.
    full = LatentAttention(
        num_heads=config.int("num_attention_heads"),
        q_lora_rank=config.int("q_lora_rank", default=None),
        kv_lora_rank=config.int("kv_lora_rank", default=512),
        qk_nope_head_dim=config.count("qk_nope_head_dim", default=128),
        qk_rope_head_dim=config.count("qk_rope_head_dim", default=64),
        v_head_dim=config.int("v_head_dim", default=128),
        head_gate=gates[gate] == "head",
        output_gate=gates[gate] == "all",
    )
    linear = _kimi_delta(config) if delta else _lightning(config)
    experts = bailing_experts(config, correction=True if delta else None)
    if delta:
        experts = replace(experts, router_dtype="float32")
    dense = _dense(config, bias=biased)
    routed = dense_first(config, num_layers, default=0)

    def make(index: int) -> Block:
        is_full = group == 0 or (index + 1) % group == 0
        return layer(
            full if is_full else linear,
            experts if routed[index] else dense,
            prefix="latent_" if is_full else "linear_",
        )

    # `partial_rotary_factor` is for the heads of the lightning attention, not for the rope part.
    tables = _rope(config, default=64)
    if not delta:
        tables += rotary(config, head_dim(config))
    count = next_token_layers(config)
    guess = layer(full, experts, prefix="latent_")
    mtp = MultiTokenPrediction(layers=(guess.name,) * count) if count else None
    return decoder(
        config,
        layout_of(num_layers, make),
        mtp=mtp,
        mtp_blocks=(guess,) if mtp else (),
        rotary=tables,
        naming="bailing_delta" if delta else "bailing_hybrid",
    )


def _lightning(config: ConfigView) -> LightningAttention:
    heads, size = config.int("num_attention_heads"), head_dim(config)
    if config.flag("use_bias", default=False) or config.flag("use_qkv_bias", default=False):
        raise config.fail("use_bias: biases of the linear attention are not described")
    return LightningAttention(
        num_heads=heads,
        head_dim=size,
        num_kv_heads=heads,
        qk_norm=config.flag("use_qk_norm", default=False),
        state_dtype="",
    )


def _kimi_delta(config: ConfigView) -> KimiDeltaAttention:
    if not config.flag("no_kda_lora", default=False):
        raise config.fail("no_kda_lora is not set; only full-rank decay and gate are described")
    return KimiDeltaAttention(
        num_heads=config.int("num_attention_heads"),
        # transformers writes the rope part of latent attention as `head_dim`.
        head_dim=config.int("linear_head_dim", "head_dim"),
        conv_kernel=config.int("short_conv_kernel_size", high=1024),
        full_rank_gate=True,
        full_rank_decay=True,
    )


@family("longcat_flash")
def longcat_flash(config: ConfigView) -> SpecFields:
    """LongCat-Flash: a layer has two attentions, two dense MLPs and one mixture beside them, whose
    router also offers experts that compute nothing."""
    # transformers counts num_hidden_layers as twice num_layers.
    num_layers = config.layers("num_layers")
    attention = latent_attention(config, q_lora_default=1536)
    dense = DenseMlp(intermediate_size=config.int("ffn_hidden_size", "intermediate_size"))
    routed = config.int("n_routed_experts")
    moe = MoeMlp(
        num_experts=routed,
        experts_per_token=config.int("moe_topk", "num_experts_per_tok"),
        intermediate_size=config.int("expert_ffn_hidden_size", "moe_intermediate_size"),
        router_bias="correction",
        router_dtype=""
        if config.text("router_dtype", default="float32") == "bfloat16"
        else "float32",
        extra_routes=config.count("zero_expert_num", default=256),
    )
    block = Block(
        name="shortcut_moe",
        mixers=(attention, attention),
        feed_forwards=(dense, dense, moe),
        num_norms=4,
    )
    guess = layer(attention, dense, prefix="mtp_")
    count = next_token_layers(config, "num_nextn_predict_layers")
    return decoder(
        config,
        [block] * num_layers,
        mtp=MultiTokenPrediction(layers=(guess.name,) * count) if count else None,
        mtp_blocks=(guess,) if count else (),
        rotary=_rope(config),
        naming="longcat_flash",
    )
