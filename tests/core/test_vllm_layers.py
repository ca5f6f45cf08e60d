"""Pages of real models: bytes and block sizes as vLLM 0.32.0 and public logs have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from moesize.core.attention import (
    CompressedAttention,
    GroupedQueryAttention,
    Indexer,
    LatentAttention,
)
from moesize.core.errors import InvalidDeploymentError, UnknownNameError, UnsupportedError
from moesize.core.model_spec import (
    Block,
    CheckpointQuantization,
    Embedding,
    LayerRun,
    ModelSpec,
    MultiTokenPrediction,
    Source,
)
from moesize.core.recurrent import (
    GatedDeltaNet,
    KimiDeltaAttention,
    LightningAttention,
    Mamba1,
    Mamba2,
    ShortConv,
)
from moesize.core.units import GIB
from moesize.core.vllm_kv import KvSettings, group_layers, plan_kv
from moesize.core.vllm_layers import CacheOptions, VllmLayers, vllm_layers

if TYPE_CHECKING:
    from moesize.core.mixers import Mixer

HOPPER, BLACKWELL, AMPERE, RTX_50 = (9, 0), (10, 0), (8, 0), (12, 0)


def gqa(num_heads: int, num_kv_heads: int, head_dim: int, **rest: Any) -> GroupedQueryAttention:
    return GroupedQueryAttention(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        v_head_dim=head_dim,
        **rest,
    )


def model(*kinds: tuple[int, Mixer], mtp: bool = False, kv_dtype: str = "") -> ModelSpec:
    """`count` layers of each mixer, in this order; MTP layers are like the first kind."""
    quantization = CheckpointQuantization(method="fp8", rules=(), kv_dtype=kv_dtype)
    return ModelSpec(
        id="test",
        title="test",
        model_type="test",
        hub_id="",
        dtype="bfloat16",
        hidden_size=1024,
        max_context=4096,
        embedding=Embedding(vocab_size=1024, tied=True),
        blocks=tuple(
            Block(name=f"kind{index}", mixers=(mixer,)) for index, (_, mixer) in enumerate(kinds)
        ),
        layers=tuple(
            LayerRun(blocks=(f"kind{index}",), repeat=count)
            for index, (count, _) in enumerate(kinds)
        ),
        mtp=MultiTokenPrediction(layers=("kind0",)) if mtp else None,
        quantization=quantization if kv_dtype else None,
        source=Source(config="hand", checked="2026-11-22"),
    )


def layers_of(
    spec: ModelSpec, ranks: int = 1, gpu: tuple[int, int] = HOPPER, **rest: Any
) -> VllmLayers:
    options = CacheOptions(tensor_parallel_size=ranks, compute_capability=gpu, **rest)
    return vllm_layers(spec, options)


def page_sizes(layers: VllmLayers) -> list[tuple[str, int, int, int]]:
    """(kind, layers, tokens per block, bytes per page) of the only stage."""
    return [
        (pages.kind, pages.num_layers, pages.block_tokens, pages.page_bytes)
        for pages in layers.stages[0]
    ]


QWEN_27B_FULL = gqa(24, 4, 256)
QWEN_27B_LINEAR = GatedDeltaNet(
    num_k_heads=16,
    num_v_heads=48,
    k_head_dim=128,
    v_head_dim=128,
    conv_kernel=4,
    state_dtype="float32",
)
QWEN_27B = model((16, QWEN_27B_FULL), (48, QWEN_27B_LINEAR), mtp=True)
QWEN_122B = model(
    (12, gqa(32, 2, 256)),
    (
        36,
        GatedDeltaNet(
            num_k_heads=16,
            num_v_heads=64,
            k_head_dim=128,
            v_head_dim=128,
            conv_kernel=4,
            state_dtype="float32",
        ),
    ),
)
DEEPSEEK_V3 = LatentAttention(
    num_heads=128,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
)
DEEPSEEK_V32 = LatentAttention(
    num_heads=128,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    indexer=Indexer(num_heads=64, head_dim=128, top_k=2048, query_rank=1536),
)
KIMI_K3_LATENT = LatentAttention(
    num_heads=96,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
)
KIMI_K3 = model(
    (69, KimiDeltaAttention(num_heads=96, head_dim=128, conv_kernel=4, full_rank_gate=True)),
    (24, KIMI_K3_LATENT),
)
NEMOTRON_NANO_STATE = Mamba2(
    num_heads=64,
    head_dim=64,
    num_groups=8,
    state_size=128,
    conv_kernel=4,
    state_dtype="float32",
)


@pytest.mark.parametrize(
    ("thread", "spec", "ranks", "kv_dtype", "guessed", "block", "padding_percent"),
    [
        ("mitchross/talos-argocd-proxmox PR 1995", QWEN_27B, 2, "fp8", 0, 1568, 0.13),
        ("noonghunna/club-3090 1047", QWEN_27B, 1, "fp8", 0, 1568, 0.13),
        ("noonghunna/club-3090 594", QWEN_27B, 2, "fp8", 3, 1600, 0.25),
        ("noonghunna/club-3090 1107", QWEN_27B, 2, "fp8", 7, 1648, 0.73),
        ("Sandermage/genesis-vllm-patches 24", QWEN_122B, 8, "auto", 3, 544, 2.64),
    ],
)
def test_logged_hybrid_blocks(
    thread: str,
    spec: ModelSpec,
    ranks: int,
    kv_dtype: str,
    guessed: int,
    block: int,
    padding_percent: float,
) -> None:
    """Block size and padding of the state as vLLM printed them (GPUs of several generations)."""
    layers = layers_of(spec, ranks, AMPERE, kv_dtype=kv_dtype, num_spec_tokens=guessed)
    state = next(pages for pages in layers.stages[0] if pages.kind == "mamba")
    assert (layers.block_tokens, state.block_tokens) == (block, block), thread
    assert round(100 * (state.page_bytes / state.state_bytes - 1), 2) == padding_percent


def test_logged_tokens_with_mtp() -> None:
    """noonghunna/club-3090 594: the MTP layer makes 17 full layers; 300,220 tokens, 1.15x."""
    layers = layers_of(QWEN_27B, 2, AMPERE, kv_dtype="fp8", num_spec_tokens=3, num_mtp_layers=1)
    settings = KvSettings(max_model_len=262144, max_num_batched_tokens=2048)
    plan = plan_kv(group_layers(layers.stages, settings), settings, int(5.33 * GIB))
    assert (plan.blocks_per_request, plan.tokens_logged) == (179, 300_220)
    assert round(plan.max_concurrency, 2) == 1.15


@pytest.mark.parametrize(
    ("mixer", "gpu", "kv_dtype", "backend", "pages"),
    [
        # vLLM 0.32.0 on the configs of DeepSeek-V3, V3.2, GLM-5 and MiniMax-M3.
        (DEEPSEEK_V3, HOPPER, "auto", "FLASH_ATTN_MLA", [("mla", 2, 16, 18432)]),
        (DEEPSEEK_V3, HOPPER, "fp8", "FLASHMLA", [("mla", 2, 64, 36864)]),
        (DEEPSEEK_V3, BLACKWELL, "auto", "FLASHINFER_MLA", [("mla", 2, 32, 36864)]),
        (DEEPSEEK_V3, BLACKWELL, "fp8", "FLASHINFER_MLA", [("mla", 2, 32, 18432)]),
        (DEEPSEEK_V3, AMPERE, "auto", "TRITON_MLA", [("mla", 2, 16, 18432)]),
        (DEEPSEEK_V3, RTX_50, "auto", "TRITON_MLA", [("mla", 2, 16, 18432)]),
        (
            DEEPSEEK_V32,
            HOPPER,
            "auto",
            "FLASH_ATTN_MLA_SPARSE",
            [("mla", 2, 64, 73728), ("mla", 2, 64, 8448)],
        ),
        (
            DEEPSEEK_V32,
            HOPPER,
            "fp8",
            "FLASHMLA_SPARSE",
            [("mla", 2, 64, 41984), ("mla", 2, 64, 8448)],
        ),
        (
            DEEPSEEK_V32,
            BLACKWELL,
            "fp8",
            "FLASHINFER_MLA_SPARSE",
            [("mla", 2, 64, 36864), ("mla", 2, 64, 8448)],
        ),
        (
            DEEPSEEK_V32,
            RTX_50,
            "auto",
            "FLASHINFER_MLA_SPARSE_SM120",
            [("mla", 2, 64, 41984), ("mla", 2, 64, 8448)],
        ),
        (
            DEEPSEEK_V32,
            BLACKWELL,
            "nvfp4_ds_mla",
            "FLASHINFER_MLA_SPARSE",
            [("mla", 2, 64, 64 * 352), ("mla", 2, 64, 8448)],
        ),
        (
            gqa(64, 4, 128, index_heads=4, index_head_dim=128),
            HOPPER,
            "fp8",
            "MINIMAX_M3_SPARSE",
            [("full", 2, 128, 131072), ("mla", 2, 128, 32768)],
        ),
        (gqa(32, 8, 128), HOPPER, "auto", "FLASH_ATTN", [("full", 2, 16, 65536)]),
        (gqa(32, 8, 128), BLACKWELL, "fp8", "FLASHINFER", [("full", 2, 16, 32768)]),
        # Two fp32 scales per head, and 4-bit values with a scale byte per 16.
        (
            gqa(32, 8, 128),
            HOPPER,
            "int8_per_token_head",
            "TRITON_ATTN",
            [("full", 2, 16, 16 * 8 * 264)],
        ),
        (
            gqa(32, 8, 128),
            HOPPER,
            "int4_per_token_head",
            "TRITON_ATTN",
            [("full", 2, 16, 16 * 8 * 136)],
        ),
        (gqa(32, 8, 128), BLACKWELL, "nvfp4", "FLASHINFER", [("full", 2, 16, 16 * 8 * 144)]),
        # Gemma 4 on Hopper with fp8: heads of 512 want blocks of 64.
        (gqa(16, 2, 512), HOPPER, "fp8", "FLASH_ATTN", [("full", 2, 64, 131072)]),
        (gqa(16, 2, 512), HOPPER, "auto", "FLASH_ATTN", [("full", 2, 16, 65536)]),
        (gqa(16, 2, 512), BLACKWELL, "auto", "FLASHINFER", [("full", 2, 16, 65536)]),
    ],
)
def test_pages_by_backend(
    mixer: Mixer,
    gpu: tuple[int, int],
    kv_dtype: str,
    backend: str,
    pages: list[tuple[str, int, int, int]],
) -> None:
    layers = layers_of(model((2, mixer)), gpu=gpu, kv_dtype=kv_dtype)
    assert layers.backend == backend
    assert page_sizes(layers) == pages


@pytest.mark.parametrize(
    ("spec", "ranks", "kv_dtype", "pages"),
    [
        # vLLM 0.32.0 on the configs of Kimi-K3, Nemotron-3-Nano and Jamba.
        (KIMI_K3, 1, "auto", [("mamba", 69, 5760, 6635520), ("mla", 24, 5760, 6635520)]),
        (KIMI_K3, 1, "fp8", [("mamba", 69, 11392, 6561792), ("mla", 24, 11392, 6561792)]),
        (KIMI_K3, 2, "auto", [("mamba", 69, 2944, 3391488), ("mla", 24, 2944, 3391488)]),
        (
            model((23, NEMOTRON_NANO_STATE), (6, gqa(32, 2, 128))),
            1,
            "auto",
            [("mamba", 23, 2096, 2146304), ("full", 6, 2096, 2146304)],
        ),
        (
            model(
                (28, Mamba1(inner_size=8192, state_size=16, dt_rank=256, conv_kernel=4)),
                (4, gqa(32, 8, 128)),
            ),
            2,
            "auto",
            [("mamba", 28, 80, 163840), ("full", 4, 80, 163840)],
        ),
    ],
)
def test_hybrid_pages(
    spec: ModelSpec, ranks: int, kv_dtype: str, pages: list[tuple[str, int, int, int]]
) -> None:
    assert page_sizes(layers_of(spec, ranks, kv_dtype=kv_dtype)) == pages


def test_states_without_attention() -> None:
    """Nothing to align to: the state alone. Groups that do not divide over ranks are repeated."""
    short = layers_of(model((2, ShortConv(size=2048, kernel=3))))
    assert [pages.state_bytes for pages in short.stages[0]] == [2 * 2048 * 2]
    lightning = LightningAttention(num_heads=64, head_dim=128, num_kv_heads=64)
    assert [pages.state_bytes for pages in layers_of(model((1, lightning)), 8).stages[0]] == [
        8 * 128 * 128 * 2
    ]
    one_group = Mamba2(num_heads=8, head_dim=4, num_groups=1, state_size=16, conv_kernel=4)
    # (8 * 4 + 2 * 2 groups * 16) / 2 channels * 3 and 4 heads * 4 * 16, two bytes each.
    assert [pages.state_bytes for pages in layers_of(model((1, one_group)), 2).stages[0]] == [
        48 * 3 * 2 + 4 * 4 * 16 * 2
    ]
    with pytest.raises(InvalidDeploymentError, match="over 3 ranks"):
        layers_of(model((1, one_group)), 3)


def test_checkpoint_states_by_kind_and_release() -> None:
    def counts(spec: ModelSpec, **rest: Any) -> list[int]:
        stage = layers_of(spec, **rest).stages[0]
        return [pages.num_checkpoint_states for pages in stage if pages.kind == "mamba"]

    kimi_linear = model((1, KimiDeltaAttention(num_heads=32, head_dim=128, conv_kernel=4)))
    assert counts(KIMI_K3) == [1]
    assert counts(kimi_linear) == [0]
    assert counts(QWEN_27B) == [0]
    nemotron = model((1, NEMOTRON_NANO_STATE))
    assert counts(nemotron) == [1]
    assert counts(nemotron, checkpoint_kinds=("kimi_delta",)) == [0]


def deepseek_v4(ratio: int) -> CompressedAttention:
    return CompressedAttention(
        num_heads=64,
        head_dim=512,
        qk_rope_head_dim=64,
        q_lora_rank=1024,
        output_groups=8,
        output_rank=1024,
        window=128,
        compress_ratio=ratio,
        index_heads=64,
        index_head_dim=128,
        index_top_k=512,
    )


def test_deepseek_v4_pages() -> None:
    """vLLM 0.32.0 on DeepSeek-V4-Flash: 2 plain, 21 layers of ratio 4 and 20 of ratio 128."""
    spec = model((2, deepseek_v4(1)), (21, deepseek_v4(4)), (20, deepseek_v4(128)))
    layers = layers_of(spec, 8)
    assert layers.block_outermost
    assert sorted(page_sizes(layers)) == sorted(
        [
            ("sliding_mla", 43, 64, 37440),
            ("mla", 21, 256, 8640),
            ("sliding_mla", 21, 4, 8640),
            ("mla", 21, 256, 37440),
            ("sliding_mla", 21, 4, 32832),
            ("mla", 20, 256, 1728),
            ("sliding_mla", 20, 8, 32832),
        ]
    )
    with pytest.raises(UnsupportedError, match="ratio 16"):
        layers_of(model((1, deepseek_v4(16))))


def test_kv_heads_are_repeated_and_shared_caches_cost_nothing() -> None:
    """4 KV heads on 8 ranks: one each. Layers that read another's cache have no pages."""
    spec = model(
        (2, gqa(32, 4, 128)),
        (3, gqa(32, 4, 128, shares_kv=True)),
        (4, gqa(32, 4, 128, window=512)),
        (1, gqa(32, 4, 128, chunk=8192)),
    )
    eight, four = layers_of(spec, 8), layers_of(spec, 4)
    assert eight.stages == four.stages
    assert page_sizes(eight) == [
        ("full", 2, 16, 8192),
        ("sliding", 4, 16, 8192),
        ("chunked", 1, 16, 8192),
    ]
    assert [pages.window_tokens for pages in eight.stages[0]] == [None, 512, 8192]


def test_stages_dtypes_and_block_size() -> None:
    spec = model((3, gqa(8, 8, 64)), (2, gqa(8, 8, 64, window=128)), kv_dtype="fp8_e4m3")
    options = CacheOptions(tensor_parallel_size=1, compute_capability=HOPPER)
    two = vllm_layers(spec, options, [range(2), range(2, 5)])
    counted = [[(pages.kind, pages.num_layers) for pages in stage] for stage in two.stages]
    assert counted == [[("full", 2)], [("full", 1), ("sliding", 2)]]
    assert (two.kv_dtype, two.stages[0][0].state_bytes) == ("fp8_e4m3", 1024)
    asked = layers_of(spec, kv_dtype="bfloat16", block_tokens=32)
    assert (asked.kv_dtype, asked.block_tokens, asked.stages[0][0].state_bytes) == (
        "bfloat16",
        32,
        2048,
    )
    plain = model((1, gqa(8, 8, 64)))
    assert layers_of(plain, dtype="float32").stages[0][0].state_bytes == 4096


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        (model((1, gqa(8, 8, 64))), {"dtype": "bf8"}, "bf8"),
        (model((1, gqa(8, 8, 64, cross=True))), {}, "encoder-decoder"),
        (model((1, DEEPSEEK_V3)), {"kv_dtype": "nvfp4"}, "nvfp4"),
        (model((1, DEEPSEEK_V32)), {"gpu": AMPERE}, "8.0"),
        (model((1, deepseek_v4(4))), {"gpu": (8, 9)}, "8.9"),
    ],
)
def test_what_is_not_known_is_refused(
    spec: ModelSpec, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        layers_of(spec, **changes)


def test_unknown_kv_dtype_is_a_wrong_question() -> None:
    with pytest.raises(UnknownNameError, match="int3"):
        layers_of(model((1, gqa(8, 8, 64))), kv_dtype="int3")
