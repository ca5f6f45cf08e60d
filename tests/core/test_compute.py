"""FLOPs, distinct experts, bytes of a step and the roofline.

Expected values come from papers, from torch's FlopCounterMode run on transformers' own models,
from public benchmark prints, or are worked by hand on models small enough for it.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesize.core import compute
from moesize.core.attention import (
    CompressedAttention,
    GroupedQueryAttention,
    Indexer,
    LatentAttention,
)
from moesize.core.compute import (
    average_distinct_experts,
    decode_step_bytes,
    dense_equivalent,
    expected_distinct_experts,
    flops_per_token,
    kv_read_elements,
    prefill_flops,
    routed_fraction,
)
from moesize.core.errors import InvalidInputError
from moesize.core.feed_forward import DenseMlp, MoeMlp, SharedExperts
from moesize.core.inventory import count_parameters
from moesize.core.model_spec import (
    Block,
    Embedding,
    ExtraTensor,
    LayerRun,
    ModelSpec,
    MultiTokenPrediction,
    Source,
    Tower,
)
from moesize.core.recurrent import (
    GatedDeltaNet,
    KimiDeltaAttention,
    LightningAttention,
    Mamba1,
    Mamba2,
    ShortConv,
)
from moesize.core.speed import Band, matmul_format, performance_constants, roofline
from moesize.readers.hf.read import spec_from_config

DATA = Path(compute.__file__).parents[1] / "data" / "performance.json"
DOCUMENT = json.loads(DATA.read_text(encoding="utf-8"))
CONSTANTS = performance_constants(DOCUMENT)


def model(
    *blocks: Block,
    hidden: int = 8,
    repeat: int = 1,
    vocabulary: int = 32,
    tied: bool = False,
    **more: Any,
) -> ModelSpec:
    return ModelSpec(
        id="small",
        title="small",
        model_type="small",
        hub_id="",
        dtype="bfloat16",
        hidden_size=hidden,
        max_context=1 << 20,
        embedding=more.pop("embedding", Embedding(vocab_size=vocabulary, tied=tied)),
        blocks=blocks,
        layers=more.pop("layers", (LayerRun(blocks=tuple(b.name for b in blocks), repeat=repeat),)),
        source=Source(config="worked by hand", checked=""),
        **more,
    )


def gqa(**more: Any) -> GroupedQueryAttention:
    sizes = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 2, "v_head_dim": 2}
    return GroupedQueryAttention(**{**sizes, **more})


def mla(**more: Any) -> LatentAttention:
    sizes: dict[str, Any] = {
        "num_heads": 4,
        "q_lora_rank": 6,
        "kv_lora_rank": 5,
        "qk_nope_head_dim": 3,
        "qk_rope_head_dim": 2,
        "v_head_dim": 4,
    }
    return LatentAttention(**{**sizes, **more})


def one_layer(mixer: Any, **more: Any) -> ModelSpec:
    return model(Block(name="layer", mixers=(mixer,)), **more)


def read(**config: Any) -> ModelSpec:
    return spec_from_config(
        {"torch_dtype": "bfloat16", "max_position_embeddings": 4096, **config}, file="inline"
    )


LLAMA_SMALL = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
LLAMA_2_7B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "tie_word_embeddings": False,
}
LLAMA_3_8B = {
    **LLAMA_2_7B,
    "vocab_size": 128256,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
}
MIXTRAL_8X7B = {
    **LLAMA_2_7B,
    "model_type": "mixtral",
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


def deepseek_v3(*, sparse: bool = False) -> ModelSpec:
    """DeepSeek-V3 (V3.2 with `sparse`), from config.json of the hub repositories."""
    indexer = Indexer(num_heads=64, head_dim=128, top_k=2048, query_rank=1536)
    attention = LatentAttention(
        num_heads=128,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        indexer=indexer if sparse else None,
    )
    moe = MoeMlp(
        num_experts=256,
        experts_per_token=8,
        intermediate_size=2048,
        shared=SharedExperts(intermediate_size=2048),
    )
    dense = Block(
        name="dense",
        mixers=(attention,),
        feed_forwards=(DenseMlp(intermediate_size=18432),),
    )
    sparse_block = Block(name="moe", mixers=(attention,), feed_forwards=(moe,))
    return model(
        dense,
        sparse_block,
        hidden=7168,
        vocabulary=129280,
        layers=(LayerRun(blocks=("dense",), repeat=3), LayerRun(blocks=("moe",), repeat=58)),
    )


def deepseek_v4_pro() -> ModelSpec:
    """DeepSeek-V4-Pro: ratios 128, 128, then 4 and 128 in turn over 61 layers."""

    def block(name: str, ratio: int) -> Block:
        attention = CompressedAttention(
            num_heads=128,
            head_dim=512,
            qk_rope_head_dim=64,
            q_lora_rank=1536,
            output_groups=16,
            output_rank=1024,
            window=128,
            compress_ratio=ratio,
            index_heads=64,
            index_head_dim=128,
            index_top_k=1024,
        )
        moe = MoeMlp(
            num_experts=384,
            experts_per_token=6,
            intermediate_size=3072,
            shared=SharedExperts(intermediate_size=3072),
        )
        return Block(name=name, mixers=(attention,), feed_forwards=(moe,))

    return model(
        block("r128", 128),
        block("r4", 4),
        hidden=7168,
        vocabulary=129280,
        layers=(
            LayerRun(blocks=("r128", "r128")),
            LayerRun(blocks=("r4", "r128"), repeat=29),
            LayerRun(blocks=("r4",)),
        ),
    )


# --- Against other people's numbers -------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "active_billions", "tolerance"),
    [
        (LLAMA_2_7B, 6.74, 0.01),  # Llama 2 paper and hub: 6.74 B
        (MIXTRAL_8X7B, 12.9, 0.05),  # Mixtral paper, arXiv 2401.04088: 12.9 B active
    ],
)
def test_linear_flops_are_twice_the_published_active_parameters(
    config: dict[str, Any], active_billions: float, tolerance: float
) -> None:
    spec = read(**config)
    flops = flops_per_token(spec, 1)
    embedding = spec.embedding.vocab_size * spec.hidden_size
    counted = (flops.total - flops.attention_core) / 2 + embedding
    assert counted / 1e9 == pytest.approx(active_billions, abs=tolerance)


def test_deepseek_v3_costs_about_74_gflop_per_token() -> None:
    """Technical report, arXiv 2412.19437: 37 B active parameters."""
    flops = flops_per_token(deepseek_v3(), 1)
    assert (flops.total - flops.attention_core) / 1e9 == pytest.approx(74, rel=0.02)


def test_deepseek_v4_pro_needs_27_percent_of_v32_at_a_million_tokens() -> None:
    """Model card of deepseek-ai/DeepSeek-V4-Pro: 27 % of the single-token FLOPs of V3.2 at 1M.

    They count FP4 work at a rate of its own, so the figures agree to a few points only.
    """
    million = 1 << 20
    ratio = (
        flops_per_token(deepseek_v4_pro(), million).total
        / flops_per_token(deepseek_v3(sparse=True), million).total
    )
    assert ratio == pytest.approx(0.27, abs=0.02)


def deepseek_moe_16b() -> ModelSpec:
    attention = GroupedQueryAttention(num_heads=16, num_kv_heads=16, head_dim=128, v_head_dim=128)
    moe = MoeMlp(
        num_experts=64,
        experts_per_token=6,
        intermediate_size=1408,
        shared=SharedExperts(intermediate_size=2816),
    )
    return model(
        Block(
            name="dense",
            mixers=(attention,),
            feed_forwards=(DenseMlp(intermediate_size=10944),),
        ),
        Block(name="moe", mixers=(attention,), feed_forwards=(moe,)),
        hidden=2048,
        vocabulary=102400,
        layers=(LayerRun(blocks=("dense",)), LayerRun(blocks=("moe",), repeat=27)),
    )


@pytest.mark.parametrize(
    ("spec", "published"),
    [(deepseek_moe_16b(), 74.4e12), (read(**LLAMA_2_7B), 187.9e12)],
    ids=["DeepSeekMoE-16B", "Llama-2-7B"],
)
def test_flops_tables_of_the_deepseekmoe_paper(spec: ModelSpec, published: float) -> None:
    """arXiv 2401.06066, FLOPs per 4K tokens: training, so three forward passes; attention not
    halved for causality; a head for every position. The formula is not given, hence 2.5 %."""
    tokens = 4096
    once = prefill_flops(spec, tokens, causal=False)
    every_head = once.total + (tokens - 1) * once.lm_head
    assert 3 * every_head == pytest.approx(published, rel=0.025)


# torch 2.x FlopCounterMode over transformers 5.19 on the CPU, eager attention, no cache: every
# position meets every other (nothing is saved by causality) and has a head.
@pytest.mark.parametrize(
    ("spec", "tokens", "matmuls", "attention"),
    [
        (read(**LLAMA_SMALL), 1, 323584, 768),
        (read(**LLAMA_SMALL), 2, 647168, 3072),
        (read(**LLAMA_SMALL), 16, 5177344, 196608),
        (
            read(
                **{
                    **LLAMA_SMALL,
                    "model_type": "mixtral",
                    "num_local_experts": 8,
                    "num_experts_per_tok": 2,
                }
            ),
            1,
            510976,
            768,
        ),
    ],
)
def test_prefill_equals_torch_flop_counter(
    spec: ModelSpec, tokens: int, matmuls: int, attention: int
) -> None:
    flops = prefill_flops(spec, tokens, causal=False)
    assert flops.attention_core == attention
    assert flops.total - flops.attention_core + (tokens - 1) * flops.lm_head == matmuls


@pytest.mark.parametrize(
    ("tokens", "matmuls", "attention"), [(1, 229376, 576), (16, 3670016, 147456)]
)
def test_decompressed_latent_attention_equals_torch_flop_counter(
    tokens: int, matmuls: int, attention: int
) -> None:
    """DeepseekV3ForCausalLM of transformers 5.19 with two dense layers."""
    attention_layer = LatentAttention(
        num_heads=4,
        q_lora_rank=24,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=12,
    )
    block = Block(
        name="layer",
        mixers=(attention_layer,),
        feed_forwards=(DenseMlp(intermediate_size=160),),
    )
    flops = prefill_flops(model(block, hidden=64, vocabulary=512, repeat=2), tokens, causal=False)
    assert flops.attention_core == attention
    assert flops.total - flops.attention_core + (tokens - 1) * flops.lm_head == matmuls


def test_mamba_projections_equal_torch_flop_counter() -> None:
    """MambaForCausalLM of transformers 5.19, two layers: 184320 in matrix products."""
    mixer = Mamba1(inner_size=128, state_size=16, dt_rank=4, conv_kernel=4)
    spec = model(Block(name="layer", mixers=(mixer,)), hidden=64, vocabulary=512, repeat=2)
    flops = flops_per_token(spec, 1)
    state_and_convolution = 2 * (6 * 128 * 16 + 2 * 4 * 128)
    assert flops.total - state_and_convolution == 184320


@pytest.mark.parametrize(
    ("experts", "per_token", "tokens", "distinct"),
    [
        (8, 2, 1, 2.0),
        (8, 2, 8, 7.2),
        (8, 2, 32, 8.0),
        (128, 8, 1, 8),
        (128, 8, 8, 51.6),
        (128, 8, 32, 111.8),
        (128, 8, 256, 128),
        (128, 4, 8, 28.7),
        (128, 4, 32, 81.7),
        (128, 4, 128, 125.8),
        (256, 8, 8, 57.4),
        (256, 8, 32, 163.3),
        (256, 8, 128, 251.6),
        (256, 8, 256, 255.9),
        (512, 10, 8, 74.7),
        (512, 10, 32, 239.6),
        (512, 10, 128, 471.0),
        (512, 10, 256, 508.7),
    ],
)
def test_distinct_experts_of_known_models(
    experts: int, per_token: int, tokens: int, distinct: float
) -> None:
    assert expected_distinct_experts(experts, per_token, tokens) == pytest.approx(
        distinct, abs=0.05
    )


# --- Attention, worked by hand ------------------------------------------------------------------


def test_grouped_query_decode_by_hand() -> None:
    """H 8, N 4, K 2, d 2, V 32: q 64 + k 32 + v 32 + o 64 weights; head 256."""
    flops = flops_per_token(one_layer(gqa()), 10)
    assert flops.attention_projections == 2 * (64 + 32 + 32 + 64)
    assert flops.attention_core == 10 * 2 * 4 * (2 + 2)
    assert flops.lm_head == 2 * 256
    assert flops.total == 384 + 320 + 512


def test_decode_is_twice_active_parameters_plus_attention() -> None:
    spec = read(**LLAMA_3_8B)
    counts = count_parameters(spec)
    weights = counts.active_without_embeddings - counts.by_group["norms"]
    for context in (1, 1000, 131072):
        core = 32 * 4 * 32 * 128 * context
        assert flops_per_token(spec, context).total == 2 * weights + core


def test_a_tied_head_costs_what_an_untied_one_does() -> None:
    tied, apart = one_layer(gqa(), tied=True), one_layer(gqa())
    assert flops_per_token(tied, 5) == flops_per_token(apart, 5)


def test_a_narrow_table_has_a_narrow_head() -> None:
    """OPT-350m: the table is narrower than the hidden size."""
    narrow = Embedding(vocab_size=32, tied=True, size=4)
    assert flops_per_token(one_layer(gqa(), embedding=narrow), 5).lm_head == 2 * 32 * 4


def test_no_head_no_head_flops() -> None:
    encoder = one_layer(gqa(), embedding=Embedding(vocab_size=32, tied=True, has_head=False))
    assert flops_per_token(encoder, 5).lm_head == 0


@pytest.mark.parametrize(("position", "attended"), [(1, 1), (3, 3), (4, 4), (5, 4), (1000, 4)])
def test_window_keeps_the_newest(position: int, attended: int) -> None:
    flops = flops_per_token(one_layer(gqa(window=4)), position)
    assert flops.attention_core == attended * 32


@pytest.mark.parametrize(("position", "attended"), [(1, 1), (4, 4), (5, 1), (7, 3), (8, 4)])
def test_chunks_start_afresh(position: int, attended: int) -> None:
    flops = flops_per_token(one_layer(gqa(chunk=4)), position)
    assert flops.attention_core == attended * 32


def test_latent_attention_is_absorbed_in_decode_only() -> None:
    """N 4, r 5, nope 3, rope 2, v 4, n 10. Projections cost the same in both forms."""
    decode = flops_per_token(one_layer(mla()), 10)
    prefill = flops_per_token(one_layer(mla()), 10, "prefill")
    assert decode.attention_core == 10 * 2 * 4 * ((5 + 2) + 5)
    assert prefill.attention_core == 10 * 2 * 4 * ((3 + 2) + 4)
    assert decode.attention_projections == prefill.attention_projections


def test_sparse_attention_scores_all_and_attends_to_few() -> None:
    indexer = Indexer(num_heads=3, head_dim=7, top_k=6, query_rank=6)
    spec = one_layer(mla(indexer=indexer))
    for phase in ("decode", "prefill"):
        flops = flops_per_token(spec, 100, phase)  # type: ignore[arg-type]
        assert flops.sparse_indexer == 100 * 2 * 3 * 7
        assert flops.attention_core == 6 * 2 * 4 * (7 + 5)
    assert flops_per_token(spec, 4).attention_core == 4 * 2 * 4 * (7 + 5)


def test_a_layer_that_shares_the_choice_scores_nothing() -> None:
    indexer = Indexer(num_heads=3, head_dim=7, top_k=6, query_rank=6)
    own = Block(name="own", mixers=(mla(indexer=indexer),))
    shared = Block(name="shared", mixers=(mla(index_shared=True),))
    both = flops_per_token(model(own, shared), 100)
    assert both.sparse_indexer == 100 * 2 * 3 * 7
    assert both.attention_core == 2 * 6 * 2 * 4 * (7 + 5)
    assert kv_read_elements(model(own, shared), 100) == {"latent": 2 * 6 * 7, "index": 700}


def test_pooled_index_keys() -> None:
    """Pools of 4, top 8: at 30 tokens 7 keys are scored; 8 tokens and the 2 of the begun pool
    are attended to (vLLM 0.32.0: topk + context % kpool)."""
    indexer = Indexer(num_heads=3, head_dim=7, top_k=8, query_rank=6, pool=4)
    spec = one_layer(mla(indexer=indexer))
    flops = flops_per_token(spec, 30)
    assert flops.sparse_indexer == 7 * 2 * 3 * 7
    assert flops.attention_core == 10 * 2 * 4 * (7 + 5)
    assert kv_read_elements(spec, 30) == {"latent": 10 * 7, "index": 7 * 7}


def test_block_sparse_attention_keeps_the_begun_block() -> None:
    """Two blocks of 128: the begun one and one more."""
    spec = one_layer(gqa(index_heads=1, index_head_dim=4, index_top_k=2))
    assert flops_per_token(spec, 256).attention_core == 256 * 32
    assert flops_per_token(spec, 257).attention_core == (128 + 1) * 32
    assert flops_per_token(spec, 300).attention_core == (128 + 44) * 32
    assert flops_per_token(spec, 300).sparse_indexer == 300 * 2 * 4
    assert kv_read_elements(spec, 300) == {"kv": 172 * 2 * 4, "index": 300 * 4}


def compressed(ratio: int) -> CompressedAttention:
    return CompressedAttention(
        num_heads=4,
        head_dim=8,
        qk_rope_head_dim=2,
        q_lora_rank=6,
        output_groups=2,
        output_rank=3,
        window=16,
        compress_ratio=ratio,
        index_heads=3,
        index_head_dim=5,
        index_top_k=10,
    )


@pytest.mark.parametrize(
    ("ratio", "states", "scored"), [(1, 16, 0), (4, 16 + 10, 250), (128, 16 + 7, 0)]
)
def test_compressed_attention_at_a_thousand_tokens(ratio: int, states: int, scored: int) -> None:
    """Window 16; ratio 4 scores 250 states and keeps 10; ratio 128 attends to all 7 whole ones."""
    flops = flops_per_token(one_layer(compressed(ratio)), 1000)
    assert flops.attention_core == states * 4 * 4 * 8
    assert flops.sparse_indexer == scored * 2 * 3 * 5
    read_ = kv_read_elements(one_layer(compressed(ratio)), 1000)
    assert read_.get("latent", 0) + read_.get("compressed", 0) == states * 8
    assert read_.get("index", 0) == scored * 5


def test_cross_attention_reads_the_encoder() -> None:
    cross = Block(name="cross", mixers=(gqa(cross=True),))
    spec = model(cross)
    flops = flops_per_token(spec, 10, encoder_tokens=7)
    assert flops.attention_core == 7 * 2 * 4 * (2 + 2)
    assert flops.attention_projections == 2 * (64 + 64)  # q and o; k and v are made once
    prompt = prefill_flops(spec, 3, encoder_tokens=7)
    assert prompt.encoder == 7 * 2 * (32 + 32)
    assert prompt.attention_core == 3 * flops.attention_core
    assert kv_read_elements(spec, 10, encoder_tokens=7) == {"cross": 7 * 2 * 4}


def test_encoder_only_model_by_hand() -> None:
    """Every token attends to all of them; the pooler (H x H) runs once."""
    block = Block(name="encoder", mixers=(gqa(),), feed_forwards=(DenseMlp(intermediate_size=3),))
    spec = model(
        block,
        layers=(),
        encoder_layers=(LayerRun(blocks=("encoder",), repeat=2),),
        embedding=Embedding(vocab_size=32, tied=True, has_head=False),
        extra=(ExtraTensor(role="other.pooler", shape=(8, 8), matmul=True),),
    )
    flops = prefill_flops(spec, 5)
    assert flops.attention_projections == 5 * 2 * 2 * 192
    assert flops.attention_core == 5 * 5 * 2 * 32
    assert flops.dense_mlp == 5 * 2 * 2 * 3 * 8 * 3
    assert flops.lm_head == 2 * 64
    assert flops.encoder == flops.other == 0


def test_experts_of_an_encoder_are_chosen_too() -> None:
    moe = MoeMlp(num_experts=4, experts_per_token=1, intermediate_size=3)
    spec = model(
        Block(name="decoder", mixers=(gqa(),)),
        Block(name="encoder", feed_forwards=(moe,)),
        layers=(LayerRun(blocks=("decoder",)),),
        encoder_layers=(LayerRun(blocks=("encoder",)),),
    )
    assert prefill_flops(spec, 1, encoder_tokens=5).encoder == 5 * 2 * (4 * 8 + 3 * 8 * 3)
    assert dense_equivalent(spec, 1).ratio == 1


def test_encoder_layers_run_once_over_the_source() -> None:
    decoder = Block(name="decoder", mixers=(gqa(),))
    encoder = Block(name="encoder", mixers=(gqa(),))
    spec = model(
        decoder,
        encoder,
        layers=(LayerRun(blocks=("decoder",)),),
        encoder_layers=(LayerRun(blocks=("encoder",), repeat=2),),
    )
    assert flops_per_token(spec, 1).attention_projections == 2 * 192
    prompt = prefill_flops(spec, 1, encoder_tokens=5)
    assert prompt.encoder == 2 * 5 * (2 * 192 + 5 * 32)


# --- Recurrent mixers, worked by hand -----------------------------------------------------------


@pytest.mark.parametrize(
    ("mixer", "projections", "decode", "prefill"),
    [
        (
            GatedDeltaNet(num_k_heads=2, num_v_heads=4, k_head_dim=3, v_head_dim=5, conv_kernel=4),
            8 * (2 * 6 + 2 * 20) + 8 * 8 + 20 * 8,
            2 * 4 * 32 + 4 * 7 * 15,
            2 * 4 * 32 + 4 * (6 * 15 + 64 * (6 * 3 + 4 * 5)),
        ),
        (
            KimiDeltaAttention(num_heads=2, head_dim=3, conv_kernel=4),
            4 * 8 * 6 + 2 * 8 * 3 + 2 * 3 * 6 + 2 * 8,
            2 * 4 * 18 + 2 * 7 * 9,
            2 * 4 * 18 + 2 * (6 * 9 + 64 * 10 * 3),
        ),
        (
            Mamba2(num_heads=4, head_dim=3, num_groups=1, state_size=5, conv_kernel=4),
            8 * (12 + 22 + 4) + 8 * 12,
            2 * 4 * 22 + 5 * 60,
            2 * 4 * 22 + 4 * 60 + 2 * 256 * (5 + 12),
        ),
        (
            LightningAttention(num_heads=2, head_dim=3, num_kv_heads=2),
            8 * 18 + 8 * 6 + 8 * 6,
            2 * 5 * 9,
            2 * (4 * 9 + 4 * 256 * 3),
        ),
        (ShortConv(size=8, kernel=3), 8 * 24 + 8 * 8, 2 * 3 * 8, 2 * 3 * 8),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_recurrent_mixers(mixer: Any, projections: int, decode: int, prefill: int) -> None:
    spec = one_layer(mixer)
    assert flops_per_token(spec, 9).recurrent == 2 * projections + decode
    assert flops_per_token(spec, 9, "prefill").recurrent == 2 * projections + prefill
    assert flops_per_token(spec, 9) == flops_per_token(spec, 9000)
    assert kv_read_elements(spec, 9) == {}


# --- Feed-forwards and the rest -----------------------------------------------------------------


def moe_model(experts: int = 4, per_token: int = 2, **more: Any) -> ModelSpec:
    moe = MoeMlp(num_experts=experts, experts_per_token=per_token, intermediate_size=3, **more)
    return model(Block(name="layer", mixers=(gqa(),), feed_forwards=(moe,)))


def test_mixture_of_experts_by_hand() -> None:
    shared = SharedExperts(intermediate_size=5, gate=True)
    flops = flops_per_token(moe_model(shared=shared), 1)
    assert flops.router == 2 * 4 * 8
    assert flops.routed_experts == 2 * 2 * 3 * 8 * 3
    assert flops.shared_experts == 2 * (3 * 8 * 5 + 8)
    assert dense_equivalent(moe_model(shared=shared), 1).flops == (flops.total + 2 * 2 * 3 * 8 * 3)


def test_latent_experts_and_extra_matrices_count_as_other() -> None:
    flops = flops_per_token(moe_model(latent_size=2), 1)
    assert flops.routed_experts == 2 * 2 * 3 * 2 * 3
    assert flops.other == 2 * (2 * 8 + 8 * 2)
    extra = ExtraTensor(role="other.stream", shape=(3, 8), copies=2, matmul=True)
    look_up = ExtraTensor(role="other.table", shape=(3, 8))
    block = Block(name="layer", mixers=(gqa(),), extra=(extra, look_up))
    assert flops_per_token(model(block), 1).other == 2 * 2 * 24


def test_one_expert_that_is_always_chosen_is_the_dense_model() -> None:
    dense = model(
        Block(name="layer", mixers=(gqa(),), feed_forwards=(DenseMlp(intermediate_size=3),))
    )
    single = moe_model(experts=1, per_token=1)
    flops = flops_per_token(single, 77)
    assert flops.routed_experts == flops_per_token(dense, 77).dense_mlp
    assert flops.total - flops.router == flops_per_token(dense, 77).total
    assert dense_equivalent(single, 77).ratio == 1
    assert dense_equivalent(dense, 77).ratio == 1


def test_mixtral_with_every_expert_is_its_total() -> None:
    """46.7 B parameters (Mixtral paper: 47 B), less the embedding table."""
    spec = read(**MIXTRAL_8X7B)
    equivalent = dense_equivalent(spec, 1)
    assert equivalent.flops / 2e9 == pytest.approx(46.7 - 0.13, abs=0.05)
    assert equivalent.to_dict() == {
        "flops": equivalent.flops,
        "ratio": round(equivalent.flops / flops_per_token(spec, 1).total, 4),
    }


def test_towers_and_mtp_are_left_out_and_said_so() -> None:
    plain = one_layer(gqa())
    more = replace(
        plain,
        towers=(Tower(name="eye", kind="vision", tensors=()),),
        mtp=MultiTokenPrediction(layers=("layer",)),
    )
    assert flops_per_token(more, 3).total == flops_per_token(plain, 3).total
    assert [line.split()[0] for line in flops_per_token(more, 3).excluded] == [
        "norms,",
        "vision",
        "multi-token",
    ]
    assert flops_per_token(plain, 3).to_dict() == {
        "total": 992,
        "attention_projections": 384,
        "attention_core": 96,
        "lm_head": 512,
        "excluded": ["norms, activations, rotary embedding, softmax and sampling"],
    }


# --- Properties ---------------------------------------------------------------------------------

STEADY = [
    one_layer(gqa()),
    one_layer(gqa(window=5)),
    one_layer(mla()),
    one_layer(mla(indexer=Indexer(num_heads=3, head_dim=7, top_k=6, query_rank=6))),
    one_layer(compressed(1)),
    one_layer(compressed(4)),
    one_layer(compressed(128)),
    one_layer(LightningAttention(num_heads=2, head_dim=3, num_kv_heads=2)),
    moe_model(),
]
# Chunks, blocks and pools start afresh: here a token may cost less than the one before it.
KINDS = [
    *STEADY,
    one_layer(gqa(chunk=5)),
    one_layer(gqa(chunk=6, window=4)),
    one_layer(gqa(index_heads=1, index_head_dim=4, index_top_k=2)),
    one_layer(mla(indexer=Indexer(num_heads=3, head_dim=7, top_k=8, query_rank=6, pool=4))),
]


@given(spec=st.sampled_from(KINDS), tokens=st.integers(1, 700))
def test_a_prompt_is_the_sum_of_its_positions(spec: ModelSpec, tokens: int) -> None:
    whole = prefill_flops(spec, tokens)
    by_position = sum(flops_per_token(spec, n, "prefill").total for n in range(1, tokens + 1))
    assert whole.total == by_position + whole.lm_head


@given(spec=st.sampled_from(KINDS), tokens=st.integers(2, 5000), data=st.data())
def test_cached_tokens_are_saved_exactly(spec: ModelSpec, tokens: int, data: st.DataObject) -> None:
    cached = data.draw(st.integers(1, tokens - 1))
    parts = (
        prefill_flops(spec, cached).total + prefill_flops(spec, tokens, cached_tokens=cached).total
    )
    assert parts == prefill_flops(spec, tokens).total + prefill_flops(spec, 1).lm_head


@given(spec=st.sampled_from(STEADY), context=st.integers(1, 1 << 20))
def test_more_context_never_costs_less(spec: ModelSpec, context: int) -> None:
    assert flops_per_token(spec, context + 1).total >= flops_per_token(spec, context).total
    more = kv_read_elements(spec, context + 1)
    assert all(more[part] >= n for part, n in kv_read_elements(spec, context).items())


@given(window=st.integers(1, 4000), context=st.integers(1, 4000))
def test_a_window_beyond_the_context_is_none(window: int, context: int) -> None:
    narrow = flops_per_token(one_layer(gqa(window=window)), context)
    full = flops_per_token(one_layer(gqa()), context)
    assert narrow.total <= full.total
    assert (narrow == full) == (window >= context)


@given(
    experts=st.integers(1, 512),
    tokens=st.integers(1, 5000),
    data=st.data(),
)
def test_distinct_experts_stay_within_bounds(
    experts: int, tokens: int, data: st.DataObject
) -> None:
    per_token = data.draw(st.integers(1, experts))
    distinct = expected_distinct_experts(experts, per_token, tokens)
    assert per_token - 1e-6 <= distinct <= min(experts, per_token * tokens) + 1e-6
    assert distinct <= expected_distinct_experts(experts, per_token, tokens + 1) + 1e-6


def test_distinct_experts_over_layers() -> None:
    assert average_distinct_experts(one_layer(gqa()), 8) is None
    assert routed_fraction(one_layer(gqa()), 8) == 0
    assert expected_distinct_experts(8, 2, 0) == 0
    wide = MoeMlp(num_experts=8, experts_per_token=1, intermediate_size=3)
    narrow = MoeMlp(num_experts=4, experts_per_token=1, intermediate_size=3)
    spec = model(
        Block(name="wide", feed_forwards=(wide,)), Block(name="narrow", feed_forwards=(narrow,))
    )
    two = 8 * (1 - (7 / 8) ** 2), 4 * (1 - (3 / 4) ** 2)
    assert average_distinct_experts(spec, 2) == pytest.approx(sum(two) / 2)
    assert routed_fraction(spec, 2) == pytest.approx(sum(two) / 12)


def test_zero_compute_experts_take_their_part() -> None:
    """LongCat-Flash: 12 of 512 real and 256 zero experts, 8 real ones for a token on average
    (technical report, arXiv 2509.01322)."""
    assert expected_distinct_experts(512, 12, 1, extra_routes=256) == pytest.approx(8)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: flops_per_token(KINDS[0], 0),
        lambda: flops_per_token(KINDS[0], 1, encoder_tokens=-1),
        lambda: prefill_flops(KINDS[0], 0),
        lambda: prefill_flops(KINDS[0], 5, cached_tokens=5),
        lambda: expected_distinct_experts(4, 5, 1),
        lambda: expected_distinct_experts(4, 1, -1),
        lambda: kv_read_elements(KINDS[0], 0),
        lambda: decode_step_bytes(KINDS[0], {"experts": 1}, sequences=1, kv_read_bytes=0),
        lambda: decode_step_bytes(KINDS[0], {}, sequences=0, kv_read_bytes=0),
    ],
)
def test_senseless_numbers_are_refused(wrong: Any) -> None:
    with pytest.raises(InvalidInputError):
        wrong()


# --- Bytes of a step ----------------------------------------------------------------------------


def test_heads_are_split_until_there_are_none_left() -> None:
    spec = one_layer(gqa())
    assert kv_read_elements(spec, 10) == {"kv": 10 * 2 * 4}
    assert kv_read_elements(spec, 10, tensor_parallel_size=2) == {"kv": 10 * 4}
    assert kv_read_elements(spec, 10, tensor_parallel_size=4) == {"kv": 10 * 4}
    assert kv_read_elements(one_layer(mla()), 10, tensor_parallel_size=4) == {"latent": 70}


def test_step_bytes_by_hand() -> None:
    """E 4, A 2: one token reads half of the experts, two read 3/4, towers are not read."""
    resident = {
        "attention": 100,
        "routed_experts": 1000,
        "router": 10,
        "embedding": 3200,
        "lm_head": 3200,
        "towers": 5000,
    }
    one = decode_step_bytes(
        moe_model(), resident, sequences=1, kv_read_bytes=7, state_bytes=3, scale_bytes=431
    )
    assert one.routed_fraction == pytest.approx(0.5)
    assert one.weights["routed_experts"] == 500
    assert one.embedding_rows == 100
    assert one.weights["scales"] == round(431 * 3810 / 4310)
    assert one.total == 100 + 500 + 10 + 3200 + 381 + 100 + 7 + 2 * 3
    assert one.to_dict()["total"] == one.total
    assert one.to_dict()["state"] == 6
    assert "weights.towers" not in one.to_dict()
    two = decode_step_bytes(moe_model(), resident, sequences=2, kv_read_bytes=14)
    assert two.weights["routed_experts"] == 750
    pooled = decode_step_bytes(moe_model(), resident, sequences=1, kv_read_bytes=7, routed_tokens=2)
    assert pooled.weights["routed_experts"] == 750


def test_a_tied_table_is_read_as_the_head() -> None:
    resident = {"attention": 100, "embedding": 3200}
    tied = decode_step_bytes(one_layer(gqa(), tied=True), resident, sequences=1, kv_read_bytes=0)
    assert tied.weights["lm_head"] == 3200
    per_layer = Embedding(vocab_size=32, tied=True, per_layer_vocab_size=32, per_layer_size=8)
    half = decode_step_bytes(
        one_layer(gqa(), embedding=per_layer), resident, sequences=1, kv_read_bytes=0
    )
    assert half.weights["lm_head"] == 1600


# --- Roofline -----------------------------------------------------------------------------------

H100 = {"bf16": 989 * 10**12, "fp16": 989 * 10**12, "fp32": 67 * 10**12, "fp8": 1979 * 10**12}
P40 = {"fp32": 118 * 10**11, "fp16": 2 * 10**11}
V100 = {"fp32": 157 * 10**11, "fp16": 125 * 10**12}
A100 = {"fp32": 195 * 10**11, "bf16": 312 * 10**12, "fp16": 312 * 10**12, "int8": 624 * 10**12}
B200 = {**H100, "fp4": 9 * 10**15}
GB10 = {"fp32": 297 * 10**11}


@pytest.mark.parametrize(
    ("scheme", "peaks", "number_format"),
    [
        ("bf16", H100, "bf16"),
        ("bf16", V100, "fp16"),
        ("fp16", P40, "fp32"),
        ("fp32", H100, "fp32"),
        ("fp32", {"bf16": 1}, None),
        ("fp8", H100, "fp8"),
        ("fp8-block", A100, "bf16"),
        ("w8a8", A100, "int8"),
        ("awq-4bit", H100, "bf16"),
        ("Q4_K_M", V100, "fp16"),
        ("nvfp4", B200, "fp4"),
        ("nvfp4", H100, "bf16"),
        ("mxfp4", B200, "fp8"),
        ("mxfp4", H100, "bf16"),
        ("bf16", GB10, None),
        ("bf16", {"bf16": None}, None),
    ],
)
def test_number_format_of_the_multiplications(
    scheme: str, peaks: dict[str, int | None], number_format: str | None
) -> None:
    assert matmul_format(scheme, peaks) == number_format


def ask(**more: Any) -> compute.Roofline:
    question: dict[str, Any] = {
        "engine": "vllm",
        "vendor": "nvidia",
        "memory_type": "HBM3",
        "bandwidth_bytes_per_s": 10**12,
        "peak_flops_per_s": {"bf16": 10**14},
        "scheme": "bf16",
        "step_bytes": 10**10,
        "step_flops": 10**10,
        "sequences": 4,
        "num_layers": 10,
        "prefill_flops": 10**14,
    }
    return roofline(CONSTANTS, **{**question, **more})


def regime_row(name: str) -> dict[str, Any]:
    (row,) = [r for r in DOCUMENT["decode"] + DOCUMENT["prefill"] if r["name"] == name]
    return row


def test_memory_bound_step_by_hand() -> None:
    """10 GB at 1 TB/s: 10 ms of pure reading, more with the regime's efficiency and overhead."""
    row = regime_row("server on NVIDIA")
    result = ask()
    step_ms = 10 / row["memory_efficiency"] + 10 * row["layer_overhead_us"] / 1e3
    token = result.time_per_output_token_ms
    assert token is not None
    assert token.best == pytest.approx(step_ms)
    assert token.low == pytest.approx(step_ms * row["time_factor_low"])
    assert token.high == pytest.approx(step_ms * row["time_factor_high"])
    assert result.decode_tokens_per_s is not None
    assert result.decode_tokens_per_s.best == pytest.approx(4e3 / step_ms)
    assert result.decode_tokens_per_s_per_sequence is not None
    assert result.decode_tokens_per_s_per_sequence.low == pytest.approx(1e3 / token.high)
    assert (result.bound, result.arithmetic_intensity, result.ridge_point) == ("memory", 1, 100)
    assert result.unknown == ()


def test_compute_bound_step_by_hand() -> None:
    """10 TFLOP at 100 TFLOP/s: 100 ms of pure arithmetic."""
    row, prompt = regime_row("server on NVIDIA"), regime_row("server, dense")
    result = ask(step_flops=10**13)
    assert result.bound == "compute"
    expected = 100 / prompt["efficiency"]["best"] + 10 * row["layer_overhead_us"] / 1e3
    assert result.time_per_output_token_ms is not None
    assert result.time_per_output_token_ms.best == pytest.approx(expected)


def test_first_token_waits_for_the_prompt() -> None:
    """100 TFLOP at 100 TFLOP/s: one second of pure arithmetic."""
    row = regime_row("server, MoE")
    first = ask(mixture_of_experts=True).time_to_first_token_ms
    assert first is not None
    expected = row["first_token_overhead_ms"] + 1000 / row["efficiency"]["best"]
    assert first.best == pytest.approx(expected)
    assert first.high == pytest.approx(expected * row["time_factor_high"])
    local = regime_row("llama.cpp, dense, graphics card")
    here = ask(engine="llama.cpp", memory_type="GDDR6").time_to_first_token_ms
    assert here is not None
    assert here.low == pytest.approx(1000 / local["efficiency"]["high"])
    assert here.high == pytest.approx(1000 / local["efficiency"]["low"])


def test_a_short_prompt_still_reads_the_weights() -> None:
    row = regime_row("server on NVIDIA")
    first = ask(prefill_flops=1, prefill_bytes=10**12).time_to_first_token_ms
    assert first is not None
    floor = 1000 / row["memory_efficiency"] + 10 * row["layer_overhead_us"] / 1e3
    overhead = regime_row("server, dense")["first_token_overhead_ms"]
    assert first.best == pytest.approx(floor + overhead)


def test_stages_of_a_pipeline_follow_one_another() -> None:
    one, two = ask(), ask(pipeline_parallel_size=2)
    assert one.time_per_output_token_ms is not None
    assert two.time_per_output_token_ms is not None
    assert two.time_per_output_token_ms.best == pytest.approx(2 * one.time_per_output_token_ms.best)


def test_prompts_between_steps_slow_decode_down() -> None:
    row = regime_row("server on NVIDIA")
    alone, busy = ask(), ask(mixed_prefill_flops=10**12)
    assert alone.time_per_output_token_ms is not None
    assert busy.time_per_output_token_ms is not None
    assert busy.time_per_output_token_ms.best - alone.time_per_output_token_ms.best == (
        pytest.approx(10 / row["mixed_prefill_efficiency"])
    )


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({}, "server on NVIDIA"),
        ({"scheme": "gptq-4bit"}, "server on NVIDIA, 4-bit integer weights"),
        ({"sparse_attention": True}, "server on NVIDIA, sparse attention"),
        ({"vendor": "amd"}, "server on AMD"),
        ({"engine": "llama.cpp"}, "llama.cpp on NVIDIA, HBM"),
        ({"engine": "llama.cpp", "memory_type": "GDDR6X"}, "llama.cpp on NVIDIA, GDDR or LPDDR"),
        ({"engine": "llama.cpp", "vendor": "apple"}, "llama.cpp on other GPUs"),
        ({"engine": "transformers"}, None),
        ({"vendor": "google"}, None),
    ],
)
def test_regime(more: dict[str, Any], name: str | None) -> None:
    result = ask(**more)
    assert result.regime == name
    if name is None:
        assert result.time_per_output_token_ms is None
        assert "never calibrated" in result.unknown[0]


def test_unknown_bandwidth_gives_a_reason_and_no_number() -> None:
    result = ask(bandwidth_bytes_per_s=None)
    shown = result.performance_dict()
    assert shown["decode_tokens_per_s"] is None
    assert shown["time_to_first_token_ms"] is None
    assert shown["unknown"] == ["the memory bandwidth of this GPU is not known"]
    assert result.compute_dict()["ridge_point"] is None
    assert result.bound == "memory"


def test_unknown_peak_leaves_a_step_that_surely_waits_for_memory() -> None:
    low = ask(peak_flops_per_s=GB10)
    assert low.time_per_output_token_ms == ask().time_per_output_token_ms
    assert low.time_to_first_token_ms is None
    assert low.unknown == ("the peak FLOP/s of this GPU for bf16 is not known",)
    high = ask(peak_flops_per_s=GB10, step_flops=10**12)
    assert (high.bound, high.time_per_output_token_ms) == (None, None)


def test_documents_of_the_roofline() -> None:
    result = ask()
    assert result.compute_dict() == {
        "arithmetic_intensity": 1.0,
        "ridge_point": 100.0,
        "bound": "memory",
        "peak_format": "bf16",
    }
    assert set(result.performance_dict()) == {
        "decode_tokens_per_s",
        "decode_tokens_per_s_per_sequence",
        "time_per_output_token_ms",
        "time_to_first_token_ms",
        "regime",
        "unknown",
    }
    assert Band(low=1.23456, best=2, high=3).to_dict() == {"low": 1.235, "best": 2, "high": 3}
    with pytest.raises(InvalidInputError):
        ask(step_bytes=0)


# llama.cpp, Llama-3-8B f16, 1024 generated tokens, tokens/s:
# XiongjieDai/GPU-Benchmarks-on-LLM-Inference, README, May 2024. Bandwidths: vendors.
@pytest.mark.parametrize(
    ("bandwidth", "memory_type", "observed"),
    [
        (1008 * 10**9, "GDDR6X", 54.34),  # RTX 4090
        (936 * 10**9, "GDDR6X", 46.51),  # RTX 3090
        (864 * 10**9, "GDDR6", 43.42),  # L40S
        (2000 * 10**9, "HBM2e", 67.79),  # H100 PCIe
        (1935 * 10**9, "HBM2e", 54.56),  # A100 PCIe
    ],
)
def test_observed_speed_lies_in_the_band(bandwidth: int, memory_type: str, observed: float) -> None:
    spec = read(**LLAMA_3_8B)
    groups = count_parameters(spec).by_group
    kv = 2 * sum(kv_read_elements(spec, 512).values())
    step = decode_step_bytes(
        spec, {name: 2 * n for name, n in groups.items()}, sequences=1, kv_read_bytes=kv
    )
    result = ask(
        engine="llama.cpp",
        memory_type=memory_type,
        bandwidth_bytes_per_s=bandwidth,
        step_bytes=step.total,
        step_flops=flops_per_token(spec, 512).total,
        sequences=1,
        num_layers=spec.num_layers,
        scheme="fp16",
        peak_flops_per_s={"fp16": 71 * 10**12},
    )
    band = result.decode_tokens_per_s
    assert band is not None
    assert band.low <= observed <= band.high


# --- The data file, and speed -------------------------------------------------------------------


@pytest.mark.parametrize("row", DOCUMENT["decode"], ids=lambda row: row["name"])
def test_decode_regimes_are_plausible_and_sourced(row: dict[str, Any]) -> None:
    assert 0 < row["memory_efficiency"] <= 1
    assert row["layer_overhead_us"] >= 0
    assert row["time_factor_low"] <= 1 <= row["time_factor_high"]
    assert row["calibration"]["n"] >= 8
    assert row["calibration"]["groups"] >= 2
    for errors in (row["calibration"]["in_sample"], row["calibration"]["left_out"]):
        assert errors["median"] <= errors["p90"] <= errors["worst"]
    assert row["sources"]


@pytest.mark.parametrize("row", DOCUMENT["prefill"], ids=lambda row: row["name"])
def test_prefill_regimes_are_plausible_and_sourced(row: dict[str, Any]) -> None:
    assert 0 < row["efficiency"]["low"] <= row["efficiency"]["best"] <= row["efficiency"]["high"]
    assert row["efficiency"]["high"] <= 1
    assert row["calibration"]["n"] >= 5
    assert row["sources"]


def test_names_of_regimes_are_unique() -> None:
    names = [row["name"] for row in DOCUMENT["decode"] + DOCUMENT["prefill"]]
    assert len(set(names)) == len(names)
    assert CONSTANTS.date == "2026-11-22"


def test_a_call_is_fast_after_the_first() -> None:
    """60 layers of MoE in well under 0.2 ms; ten times as much is allowed on a busy machine."""
    spec = deepseek_v3(sparse=True)
    flops_per_token(spec, 1)
    best = min(_seconds(spec) for _ in range(20))
    assert best < 2e-3


def _seconds(spec: ModelSpec) -> float:
    start = time.process_time()
    flops_per_token(spec, 4096)
    return time.process_time() - start
