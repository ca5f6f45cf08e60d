"""Budget, defaults and items against vLLM's documented tables and public logs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import moesize
from moesize.core.attention import GroupedQueryAttention
from moesize.core.errors import UnknownNameError, UnsupportedError
from moesize.core.feed_forward import DenseMlp, MoeMlp
from moesize.core.model_spec import Block, Embedding, LayerRun, ModelSpec, Source
from moesize.core.recurrent import ShortConv
from moesize.core.units import GIB, MIB
from moesize.core.vllm_budget import (
    BatchDefaults,
    BudgetItem,
    BudgetRules,
    BudgetSettings,
    BudgetShape,
    LatentShape,
    MoeShape,
    VllmBudget,
    capture_sizes,
    default_batch,
    max_concurrent_batches,
    mla_context_tokens,
    moe_workspace_bytes,
    requested_bytes,
    sampler_bytes,
    vllm_budget,
)
from moesize.engines import engine_profile, release_of, vllm_profile

H100_BYTES = int(79.18 * GIB)
CONSTANTS = engine_profile("vllm").constants
LLAMA_8B = BudgetShape(hidden_size=4096, vocab_size=128256, dense_intermediate_size=14336)
QWEN3_30B = BudgetShape(
    hidden_size=2048,
    vocab_size=151936,
    dense_intermediate_size=0,
    moe=MoeShape(num_local_experts=128, experts_per_token=8, intermediate_size=768),
)
DEEPSEEK_V3_TP8 = BudgetShape(
    hidden_size=7168,
    vocab_size=129280,
    dense_intermediate_size=18432,
    moe=MoeShape(num_local_experts=256, experts_per_token=8, intermediate_size=256),
    latent=LatentShape(num_heads=128, latent_size=576, up_projected_size=256, sparse=False),
)


def settings(**changes: Any) -> BudgetSettings:
    values: dict[str, Any] = {
        "total_bytes": H100_BYTES,
        "gpu_memory_utilization": 0.92,
        "compute_capability": (9, 0),
        "max_num_batched_tokens": 8192,
        "max_num_seqs": 1024,
        "max_model_len": 8192,
        "block_tokens": 16,
    }
    return BudgetSettings(**(values | changes))


def item(budget: VllmBudget, name: str) -> BudgetItem:
    return next(item for item in budget.items if item.name == name)


def names(budget: VllmBudget) -> set[str]:
    return {item.name for item in budget.items}


@pytest.mark.parametrize(
    ("memory_gib", "name", "expected"),
    [
        (178.4, "NVIDIA B200", BatchDefaults(16384, 1024)),
        (139.8, "NVIDIA H200", BatchDefaults(8192, 1024)),
        (79.18, "NVIDIA H100 80GB HBM3", BatchDefaults(8192, 1024)),
        (79.25, "NVIDIA A100-SXM4-80GB", BatchDefaults(2048, 256)),
        (79.25, "NVIDIA A800-SXM4-80GB", BatchDefaults(8192, 1024)),
        (22.06, "NVIDIA A10G", BatchDefaults(2048, 256)),
    ],
)
def test_scheduler_defaults(memory_gib: float, name: str, expected: BatchDefaults) -> None:
    """The table of vLLM 0.32.0 engine/arg_utils.py:get_batch_defaults for `vllm serve`."""
    assert default_batch(int(memory_gib * GIB), name, 131072) == expected


def test_scheduler_defaults_are_capped() -> None:
    """A default T is at most S * max_model_len and a default S at most T; given values stay."""
    assert default_batch(H100_BYTES, "H100", 512, max_num_seqs=2) == (1024, 2)
    assert default_batch(H100_BYTES, "H100", 4096, max_num_batched_tokens=64) == (64, 64)
    assert default_batch(H100_BYTES, "H100", 4096, chunked_prefill=False) == (8192, 1024)
    assert default_batch(H100_BYTES, "H100", 32768, chunked_prefill=False) == (32768, 1024)
    given_both = {"max_num_seqs": 512, "max_num_batched_tokens": 256}
    assert default_batch(H100_BYTES, "H100", 4096, **given_both) == (256, 512)


def test_requested_memory_is_rounded_up() -> None:
    """`ceil(total * utilization)`: the figure the engine asks for on an 80 GB A100."""
    assert requested_bytes(85_899_345_920, 0.9) == 77_309_411_328
    assert requested_bytes(10, 0.92) == 10


@pytest.mark.parametrize(
    ("sequences", "tokens", "capability", "count", "largest"),
    [
        # Log lines of two servers: 51 and 35 sizes, the largest being 512 and 256.
        (256, 8192, (9, 0), 51, 512),
        (128, 8192, (9, 0), 35, 256),
        (1024, 16384, (10, 0), 83, 1024),
        (1, 2048, (8, 9), 2, 2),
        (256, 100, (8, 9), 16, 100),
        (0, 64, (8, 9), 0, None),
    ],
)
def test_captured_sizes(
    sequences: int, tokens: int, capability: tuple[int, int], count: int, largest: int | None
) -> None:
    sizes = capture_sizes(sequences, tokens, capability)
    assert len(sizes) == count
    assert max(sizes, default=None) == largest
    assert list(sizes) == sorted(set(sizes))


@pytest.mark.parametrize(
    ("stages", "runner", "asynchronous", "batches"),
    [
        (1, "v2", True, 2),
        (2, "v2", True, 3),
        (1, "v1", True, 2),
        (2, "v1", True, 2),
        (4, "v2", False, 4),
    ],
)
def test_concurrent_batches(stages: int, runner: Any, asynchronous: bool, batches: int) -> None:
    assert max_concurrent_batches(stages, runner, async_scheduling=asynchronous) == batches


@pytest.mark.parametrize(("tokens", "logged_gib"), [(20_000, 2.07), (29_000, 2.99)])
def test_dense_forward_peak_as_logged(tokens: int, logged_gib: float) -> None:
    """vllm issue 10517, Llama-3.1-8B: activation peak printed by the profile run."""
    budget = vllm_budget(
        LLAMA_8B, settings(max_num_batched_tokens=tokens, max_num_seqs=64), CONSTANTS
    )
    assert item(budget, "activations.peak").bytes == pytest.approx(logged_gib * GIB, rel=0.006)


def test_compiled_forward_peak_is_inside_the_band() -> None:
    """ShanghaoLi0913/memory-aware_RLHF, Qwen2.5-3B, one sequence of 2048 tokens: 0.17 GiB."""
    shape = BudgetShape(hidden_size=2048, vocab_size=151936, dense_intermediate_size=11008)
    one = settings(max_num_batched_tokens=2048, max_num_seqs=1)
    peak = item(vllm_budget(shape, one, CONSTANTS), "activations.peak")
    assert peak.low_bytes <= 0.17 * GIB <= peak.high_bytes
    assert peak.bytes == pytest.approx(0.17 * GIB, rel=0.15)


def test_everything_but_weights_and_cache_as_logged() -> None:
    """NnamdiOdozi/mlops-assignment, vLLM 0.22.1, Qwen3-30B-A3B-FP8 on an H100, S=64, T=8192.

    0.92 * 79.18 - 29.08 (weights) - 42.54 (cache) = 1.23 GiB, 0.14 of it the graph estimate.
    """
    fp8 = settings(max_num_seqs=64, moe_backend="deep_gemm", model_runner="v1", num_layers=48)
    budget = vllm_budget(QWEN3_30B, fp8, CONSTANTS)
    rest = 0.92 * 79.18 * GIB - (29.08 + 42.54) * GIB
    charged = [item for item in budget.items if item.in_budget]
    assert sum(item.low_bytes for item in charged) < rest < sum(item.high_bytes for item in charged)
    assert budget.charged_bytes == pytest.approx(rest, abs=0.2 * GIB)
    assert budget.available_kv_bytes(int(29.08 * GIB)) == pytest.approx(42.54 * GIB, rel=0.005)
    graphs = item(budget, "runtime.cuda_graphs")
    assert graphs.formula.startswith("30 graphs (19 piecewise")
    assert graphs.low_bytes < 0.14 * GIB < graphs.high_bytes


def test_communication_as_logged() -> None:
    """llm-d benchmark, Llama-3.3-70B on H100: non-torch memory grows 0.41 GiB from TP1 to TP2."""
    two = vllm_budget(LLAMA_8B, settings(tensor_parallel_size=2), CONSTANTS)
    communication = item(two, "runtime.communication")
    assert communication.bytes == pytest.approx(0.41 * GIB, rel=0.1)
    assert not communication.in_budget
    one = vllm_budget(LLAMA_8B, settings(), CONSTANTS)
    assert "runtime.communication" not in names(one)
    assert one.outside_bytes < two.outside_bytes
    three = vllm_budget(LLAMA_8B, settings(tensor_parallel_size=3), CONSTANTS)
    assert item(three, "runtime.communication").bytes == CONSTANTS["nccl_2_to_7_ranks"].value
    eight = settings(tensor_parallel_size=8, compute_capability=(8, 0))
    on_ampere = item(vllm_budget(LLAMA_8B, eight, CONSTANTS), "runtime.communication").bytes
    assert on_ampere == CONSTANTS["nccl_8_ranks"].value + 24 * MIB


def test_experts_of_deepseek_v3_at_tp8() -> None:
    """DeepGEMM pads 8 * 8192 rows over 256 experts to 98048: 0.65 GiB of fp8 and 1.31 of bf16."""
    deep_gemm = settings(moe_backend="deep_gemm", tensor_parallel_size=8, block_tokens=64)
    assert moe_workspace_bytes(DEEPSEEK_V3_TP8, deep_gemm) == 98_048 * 7168 * 3
    budget = vllm_budget(DEEPSEEK_V3_TP8, deep_gemm, CONSTANTS)
    # 65536 tokens of 16 heads * (128 + 128) up-projected values, 576 latent ones kept.
    assert mla_context_tokens(deep_gemm) == 65536
    assert item(budget, "activations.peak").low_bytes >= 65536 * 16 * 256 * 2
    assert item(budget, "runtime.mla_workspace").bytes == 65536 * 576 * 2


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ("triton", 8192 * 8 * (2048 + 2048) * 2),
        ("marlin", 8192 * 8 * (2048 + 2048) * 2),
        ("cutlass", 8192 * 8 * (2048 + 2048) * 2),
        ("flashinfer", 8192 * 2048 * 2),
        ("triton_gpt_oss", (8192 * 8 * 768 + 8192 * 2048) * 2),
        ("batched", 128 * 8192 * (2048 + 1536) * 2),
    ],
)
def test_expert_workspace_by_backend(backend: Any, expected: int) -> None:
    """`workspace_shapes` of each backend, worked by hand for 128 experts of 768."""
    assert moe_workspace_bytes(QWEN3_30B, settings(moe_backend=backend)) == expected
    workspace = vllm_budget(QWEN3_30B, settings(moe_backend=backend), CONSTANTS)
    assert item(workspace, "runtime.moe_workspace").high_bytes >= expected


def test_data_parallel_experts_see_all_tokens() -> None:
    double = settings(data_parallel_size=2)
    assert moe_workspace_bytes(QWEN3_30B, double) == 2 * moe_workspace_bytes(QWEN3_30B, settings())
    assert moe_workspace_bytes(LLAMA_8B, double) == 0


def test_tokens_that_are_sent_to_their_experts() -> None:
    """DeepEP: the balanced share, at most what an all-gather brings.

    Batched kernels: a buffer of `(local experts, T * ranks, width)`, vLLM 0.27.1
    `experts/batched_deep_gemm_moe.py:workspace_shapes`; 256 tokens at a time before 0.20,
    `envs.py:VLLM_MOE_DP_CHUNK_SIZE`.
    """
    alone, gathered = settings(), settings(data_parallel_size=2)
    sent = settings(data_parallel_size=2, sends_to_experts=True)
    assert moe_workspace_bytes(QWEN3_30B, sent) == moe_workspace_bytes(QWEN3_30B, alone)
    workspace = item(vllm_budget(QWEN3_30B, sent, CONSTANTS), "runtime.moe_workspace")
    assert workspace.high_bytes >= moe_workspace_bytes(QWEN3_30B, gathered)
    chunked = BudgetRules(batched_chunk_tokens=256)
    batched = replace(sent, moe_backend="batched", rules=chunked)
    assert moe_workspace_bytes(QWEN3_30B, batched) == 128 * 256 * 2 * (2048 + 1536) * 2


def test_batched_experts_lower_the_batch() -> None:
    """vLLM 0.20.2 and 0.33.0 `engine/arg_utils.py`: 256 tokens, so 256 sequences, if not given."""
    flags = "--data-parallel-size 16 --enable-expert-parallel --all2all-backend deepep_low_latency"
    wanted = {"0.33.0": (256, 256), "0.19.1": (8192, 1024)}
    for version, batch in wanted.items():
        plan = moesize.plan(
            "deepseek-v3",
            gpu="h200-141gb-sxm",
            gpus=16,
            engine_version=version,
            engine_args=flags,
            suggest=False,
        )
        settled = plan.to_dict()["deployment"]
        assert (settled["max_num_batched_tokens"], settled["max_num_seqs"]) == batch, version


def test_sampler_state_of_model_runner_v2() -> None:
    """gpt-oss vocabulary, 1024 sequences: 4 bytes and a bit per entry, on the last stage only."""
    shape = BudgetShape(hidden_size=2880, vocab_size=201088, dense_intermediate_size=0)
    budget = vllm_budget(shape, settings(), CONSTANTS)
    assert item(budget, "runtime.sampler_state").bytes == 1024 * (201088 + 6284) * 4
    assert "runtime.sampler_state" not in names(
        vllm_budget(shape, settings(model_runner="v1"), CONSTANTS)
    )
    early = settings(is_last_stage=False)
    assert "runtime.sampler_state" not in names(vllm_budget(shape, early, CONSTANTS))
    assert sampler_bytes(shape, early, CONSTANTS) == 0
    assert sampler_bytes(shape, settings(model_runner="v1"), CONSTANTS) == 14 * 1024 * 201088


def test_items_that_settings_switch() -> None:
    eager = vllm_budget(LLAMA_8B, settings(enforce_eager=True), CONSTANTS)
    assert "runtime.cuda_graphs" not in names(eager)
    flashinfer = vllm_budget(LLAMA_8B, settings(attention_backend="FLASHINFER"), CONSTANTS)
    assert item(flashinfer, "runtime.attention_workspace").bytes == 394 * MIB
    latent = vllm_budget(LLAMA_8B, settings(attention_backend="FLASHINFER_MLA"), CONSTANTS)
    assert item(latent, "runtime.attention_workspace").bytes == 128 * MIB
    seeing = BudgetShape(
        hidden_size=4096, vocab_size=1000, dense_intermediate_size=1, has_encoder=True
    )
    encoder = item(vllm_budget(seeing, settings(), CONSTANTS), "activations.encoder")
    assert encoder.bytes >= 8192 * 4096 * 2


def test_block_tables() -> None:
    """1024 sequences of 1M tokens in blocks of 16: 256 MiB a copy, two copies."""
    long = settings(max_model_len=1 << 20)
    tables = item(vllm_budget(LLAMA_8B, long, CONSTANTS), "runtime.block_tables")
    assert (tables.low_bytes, tables.bytes, tables.in_budget) == (256 * MIB, 512 * MIB, False)


def test_profiles_by_version() -> None:
    """Which release changed what was read in the releases' sources (data/engines/vllm.json)."""
    assert vllm_profile().version == "0.33.0"
    oldest = vllm_profile("0.28.0")
    assert (oldest.kv_rules.reserves_null_block, oldest.checkpoint_kinds) == (False, ())
    nightly = vllm_profile("v0.29.1rc1.dev17")
    assert nightly.kv_rules.reserves_null_block
    assert nightly.checkpoint_kinds == ("kimi_delta",)
    assert not engine_profile("vllm", "v0.29.1rc1.dev17").is_newer_than_known
    assert engine_profile("vllm", "1.4").is_newer_than_known


def _tiny(model_type: str, *, moe: bool, hybrid: bool) -> ModelSpec:
    mixer = GroupedQueryAttention(num_heads=2, num_kv_heads=2, head_dim=4, v_head_dim=4)
    recurrent = ShortConv(size=8, kernel=3)
    experts = MoeMlp(num_experts=4, experts_per_token=2, intermediate_size=8)
    block = Block(
        name="layer",
        mixers=(recurrent if hybrid else mixer,),
        feed_forwards=(experts if moe else DenseMlp(intermediate_size=8),),
    )
    return ModelSpec(
        id="tiny",
        title="tiny",
        model_type=model_type,
        hub_id="",
        dtype="bfloat16",
        hidden_size=8,
        max_context=64,
        embedding=Embedding(vocab_size=64, tied=True),
        blocks=(block,),
        layers=(LayerRun(blocks=("layer",)),),
        source=Source(config="", checked=""),
    )


@pytest.mark.parametrize(
    ("model_type", "moe", "hybrid", "old_runner"),
    [
        ("llama", False, False, "v2"),
        ("mixtral", True, False, "v1"),
        ("qwen3_5", False, True, "v1"),
        ("deepseek_v4", True, False, "v2"),
    ],
)
def test_model_runner_by_version(model_type: str, moe: bool, hybrid: bool, old_runner: str) -> None:
    """0.28 used runner V2 for dense models and five MoE types; every later release for all."""
    spec = _tiny(model_type, moe=moe, hybrid=hybrid)
    assert vllm_profile("0.28.0").model_runner(spec) == old_runner
    assert vllm_profile("0.29.0").model_runner(spec) == "v2"


@pytest.mark.parametrize("version", ["0.5.5", "", "latest", "0"])
def test_unknown_versions_are_refused(version: str) -> None:
    with pytest.raises(UnsupportedError, match="not known"):
        engine_profile("vllm", version)
    with pytest.raises(UnknownNameError, match="vlm"):
        engine_profile("vlm")


def test_release_numbers() -> None:
    assert release_of("0.29.1rc1.dev17") == (0, 29, 1)
    assert release_of("nightly") is None


def test_every_constant_is_a_band_with_a_source() -> None:
    for constant in CONSTANTS.values():
        assert constant.low <= constant.value <= constant.high, constant.name
        assert constant.source
        assert constant.date
        assert constant.unit
        assert constant.observations or "unmeasured" in constant.spread


@given(
    st.integers(1, 4096),
    st.integers(1, 65536),
    st.integers(1, 1 << 20),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from(["v1", "v2"]),
    st.sampled_from([LLAMA_8B, QWEN3_30B, DEEPSEEK_V3_TP8]),
)
def test_bands_are_ordered_and_items_named_once(
    sequences: int, tokens: int, context: int, ranks: int, runner: Any, shape: BudgetShape
) -> None:
    budget = vllm_budget(
        shape,
        settings(
            max_num_seqs=sequences,
            max_num_batched_tokens=tokens,
            max_model_len=context,
            tensor_parallel_size=ranks,
            model_runner=runner,
        ),
        CONSTANTS,
    )
    assert len(names(budget)) == len(budget.items)
    for entry in budget.items:
        assert 0 <= entry.low_bytes <= entry.bytes <= entry.high_bytes, entry
        assert entry.formula
        assert entry.source
    assert budget.charged_bytes + budget.outside_bytes == sum(i.bytes for i in budget.items)


@pytest.mark.parametrize(("version", "charged"), [("0.26.0", False), ("0.33.0", True)])
def test_unified_memory_charges_what_host_processes_take(version: str, charged: bool) -> None:
    """From 0.27 on free memory before and after counts, on a GB10 the system's (mem_utils.py)."""
    import moesize

    for gpu, shared in (("gb10-dgx-spark", True), ("h100", False)):
        plan = moesize.plan("qwen3-8b", gpu=gpu, engine_version=version, context=4096)
        names = {item.name for item in plan.gpus[0].items}
        assert ("runtime.host_growth" in names) == (shared and charged)


def test_a_yes_is_not_certain_where_the_peak_may_pass_the_card() -> None:
    """At 0.98 of 31.86 GiB, 0.64 GiB are left: less than a context may take outside it."""
    import moesize

    options = {"gpu": "radeon-ai-pro-r9700", "context": 4096, "enforce_eager": True}
    tight = moesize.plan("qwen3-8b", gpu_memory_utilization=0.98, **options).verdict
    assert tight.fits
    assert not tight.certain
    assert "close" in tight.reason
    roomy = moesize.plan("qwen3-8b", gpu_memory_utilization=0.9, **options).verdict
    assert roomy.fits
    assert roomy.certain
