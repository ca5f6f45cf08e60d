"""Hypothesis strategies: specs of every kind, deployments, and helpers to vary them."""

from __future__ import annotations

from hypothesis import strategies as st

from moesize.core.attention import GroupedQueryAttention, LatentAttention
from moesize.core.deployment import Request
from moesize.core.feed_forward import DenseMlp, FeedForward, MoeMlp, SharedExperts
from moesize.core.mixers import Mixer
from moesize.core.model_spec import Block, Embedding, LayerRun, ModelSpec, RotaryTable, Source
from moesize.core.recurrent import GatedDeltaNet, Mamba2

# Powers of two up to 8 divide all heads, widths and vocabularies made here: what tensor
# parallelism splits, it splits evenly.
TP_SIZES = (1, 2, 4, 8)

heads = st.sampled_from([8, 16, 32])
head_dims = st.sampled_from([64, 128])
hidden_sizes = st.sampled_from([512, 1024, 2048])
widths = st.sampled_from([1024, 2048, 4096])
windows = st.sampled_from([None, 128, 1024])


@st.composite
def grouped_query_attentions(draw: st.DrawFn, *, window: bool = True) -> GroupedQueryAttention:
    """GQA with at least eight KV heads, so that eight ranks share them out without copies."""
    num_heads, head_dim = draw(heads), draw(head_dims)
    num_kv_heads = draw(st.sampled_from([k for k in (8, 16, 32) if num_heads % k == 0]))
    return GroupedQueryAttention(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        v_head_dim=head_dim,
        window=draw(windows) if window else None,
        qk_norm=draw(st.sampled_from(["none", "head"])),
        qkv_bias=draw(st.booleans()),
    )


@st.composite
def latent_attentions(draw: st.DrawFn) -> LatentAttention:
    """DeepSeek's attention, with and without a query latent."""
    return LatentAttention(
        num_heads=draw(heads),
        q_lora_rank=draw(st.sampled_from([None, 256])),
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
    )


recurrent_mixers = st.sampled_from(
    [
        GatedDeltaNet(
            num_k_heads=16, num_v_heads=32, k_head_dim=128, v_head_dim=128, conv_kernel=4
        ),
        Mamba2(num_heads=32, head_dim=64, num_groups=8, state_size=128, conv_kernel=4),
    ]
)

dense_mlps = st.builds(DenseMlp, intermediate_size=widths, gated=st.booleans(), bias=st.booleans())


@st.composite
def moe_mlps(draw: st.DrawFn) -> MoeMlp:
    """Routed experts, with and without shared ones."""
    num_experts = draw(st.sampled_from([8, 16, 64]))
    shared = draw(
        st.none() | st.builds(SharedExperts, intermediate_size=widths, gate=st.booleans())
    )
    return MoeMlp(
        num_experts=num_experts,
        experts_per_token=draw(st.integers(1, num_experts)),
        intermediate_size=draw(widths),
        router_bias=draw(st.sampled_from(["none", "correction", "bias"])),
        shared=shared,
    )


def make_spec(
    *blocks: tuple[tuple[Mixer, ...], tuple[FeedForward, ...], int],
    hidden_size: int = 1024,
    vocab_size: int = 32_768,
    tied: bool = False,
    max_context: int = 8192,
    name: str = "made",
) -> ModelSpec:
    """A spec of the given blocks, each with its number of layers."""
    return ModelSpec(
        id=name,
        title=name,
        model_type="made",
        hub_id="",
        dtype="bfloat16",
        hidden_size=hidden_size,
        max_context=max_context,
        embedding=Embedding(vocab_size=vocab_size, tied=tied),
        blocks=tuple(
            Block(name=f"b{i}", mixers=mixers, feed_forwards=feed_forwards)
            for i, (mixers, feed_forwards, _) in enumerate(blocks)
        ),
        layers=tuple(
            LayerRun(blocks=(f"b{i}",), repeat=repeat) for i, (_, _, repeat) in enumerate(blocks)
        ),
        rotary=(RotaryTable(positions=max_context, rotary_dim=64),),
        source=Source(config="made for a test", checked="2026-11-22"),
    )


@st.composite
def specs(draw: st.DrawFn, *, recurrent: bool = True, latent: bool = True) -> ModelSpec:
    """Small models: one attention kind (MLA or GQA), perhaps recurrent layers, dense and MoE."""
    kinds: list[st.SearchStrategy[Mixer]] = [grouped_query_attentions()]
    if latent:
        kinds.append(latent_attentions())
    attention = draw(st.one_of(*kinds))
    layers = st.integers(1, 4)
    blocks = [((attention,), (draw(dense_mlps),), draw(layers))]
    if draw(st.booleans()):
        blocks.append(((attention,), (draw(moe_mlps()),), draw(layers)))
    if recurrent and isinstance(attention, GroupedQueryAttention) and draw(st.booleans()):
        blocks.append(((draw(recurrent_mixers),), (draw(dense_mlps),), draw(layers)))
    return make_spec(
        *blocks,
        hidden_size=draw(hidden_sizes),
        tied=draw(st.booleans()),
        max_context=draw(st.sampled_from([8192, 32_768])),
    )


requests = st.builds(
    Request,
    num_gpus=st.sampled_from(TP_SIZES),
    context_tokens=st.integers(1, 8192),
    concurrency=st.integers(1, 64),
)
