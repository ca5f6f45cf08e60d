"""vLLM release by release: what start-up logs say, and constants read in the releases' sources.

Logs: the address of each stands beside its figures; vLLM prints GiB with two to four digits.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import moesize
from moesize.core.deployment import Request
from moesize.core.errors import InvalidDeploymentError, UnsupportedError
from moesize.core.units import GIB, MIB
from moesize.core.vllm_budget import capture_sizes
from moesize.core.vllm_kv import KvRules, KvSettings, LayerPages, group_layers, plan_kv
from moesize.core.vllm_settings import VllmSettings
from moesize.core.vllm_weights import WeightRules, mxfp4_backend, mxfp4_padding, pipeline_stages
from moesize.engines import engine_profile, vllm_profile

if TYPE_CHECKING:
    from moesize.core.plan import Plan
    from moesize.core.vllm_versions import VllmProfile


def plan(model: str, version: str, gpu: str = "h100", **options: Any) -> Plan:
    return moesize.plan(model, gpu=gpu, engine_version=version, suggest=False, **options)


def weights_gib(answer: Plan, stage: int = 0) -> float:
    return answer.gpus[stage].category_bytes("weights") / GIB


class Log(NamedTuple):
    """A start-up log: what was asked for, and what vLLM said."""

    source: str
    version: str
    model: str
    gpu: str
    options: dict[str, Any]
    weights_gib: float
    cache_gib: float
    tokens: int
    concurrency: float


_R9700 = "github.com/kyuz0/amd-r9700-vllm-toolboxes at 18a88f1, benchmark_results_nvidia-"
_LAMBO = "github.com/leadawon/LAMBO at bab83fe, logs/"
LOGS = (
    Log("github.com/kolyangg/mlops-assignment at daaf8cb, logs/vllm.log", "0.10.2",
        "qwen3-30b-a3b", "h100", {"context": 6144}, 56.9342, 8.68, 94784, 15.43),
    Log("github.com/ShanghaoLi0913/memory-aware_RLHF at c2b14c2, vllm.log", "0.10.2", "qwen2.5-3b",
        "rtx-4090", {"context": 4096, "max_num_seqs": 1}, 5.7916, 15.31, 445968, 108.88),
    Log("github.com/abinavChandar/demo_env_l4 at a741241, vllm.log", "0.11.0", "llama-3.1-8b", "l4",
        {"context": 32000, "max_num_seqs": 128}, 14.9889, 4.75, 38944, 1.22),
    Log(_R9700 + "3090/openai_gpt-oss-20b_tp1_server.log", "0.12.0", "gpt-oss-20b", "rtx-3090",
        {"context": 16384, "max_num_seqs": 32}, 13.7194, 7.12, 155584, 16.75),
    Log(_R9700 + "5090/openai_gpt-oss-20b_tp1_server.log", "0.12.0", "gpt-oss-20b", "rtx-5090",
        {"context": 32768, "max_num_seqs": 64}, 13.7194, 15.37, 335664, 19.2),
    Log("github.com/Parkhb1106/Telco-RAG at 2108a2f, vllm_8000.log", "0.15.0", "qwen3-30b-a3b",
        "h100", {"context": 16000}, 56.93, 6.71, 73296, 4.58),
    Log("github.com/LzyFischer/MemSuit at 9fea2d5, vllm_server.log", "0.17.1", "llama-3.1-8b",
        "a100-80gb", {"context": 32768}, 14.99, 55.79, 457024, 13.95),
    Log(_LAMBO + "vllm_qwen35_9b.log", "0.19.0", "qwen3.5-9b", "24GiB",
        {"tp": 4, "gpus": 4, "context": 32768}, 4.52, 15.36, 502656, 57.74),
    Log(_LAMBO + "vllm_serve_v4.log", "0.19.0", "qwen3.5-27b", "24GiB",
        {"tp": 4, "gpus": 4, "context": 32768}, 13.01, 7.47, 122304, 13.87),
    Log(_LAMBO + "vllm_serve_toc.log", "0.19.0", "qwen3.5-27b", "24GiB",
        {"tp": 4, "gpus": 4, "context": 50000, "max_num_seqs": 1}, 13.01, 7.56, 123088, 9.42),
)  # fmt: skip


@pytest.mark.parametrize("log", LOGS, ids=lambda log: f"{log.version}-{log.model}")
def test_tokens_and_concurrency_as_logged(log: Log) -> None:
    """The logged cache memory is rounded to 0.01 GiB: the answer lies between its two ends."""
    ends = [
        plan(
            log.model,
            log.version,
            log.gpu,
            kv_cache_memory=int((log.cache_gib + d) * GIB),
            **log.options,
        ).kv_cache
        for d in (-0.005, 0.005)
    ]
    assert ends[0].capacity_tokens <= log.tokens <= ends[1].capacity_tokens
    low, high = ends[0].max_concurrency, ends[1].max_concurrency
    assert low - 0.005 <= log.concurrency <= high + 0.005


@pytest.mark.parametrize("log", LOGS, ids=lambda log: f"{log.version}-{log.model}")
def test_weights_as_logged(log: Log) -> None:
    found = weights_gib(plan(log.model, log.version, log.gpu, **log.options))
    assert found == pytest.approx(log.weights_gib, rel=0.003)


@pytest.mark.parametrize(
    ("model", "version", "gpu", "options", "stage", "logged"),
    [
        # vllm PR 10511.
        ("llama-3-8b", "0.6.4", "h100", {}, 0, 14.96),
        # vllm issue 10517.
        ("llama-3.1-8b", "0.6.3", "24GiB", {"context": 20000}, 0, 14.9888),
        # deepseek-ai/DeepSeek-V3 issue 205: keys and values of all heads, a head on every stage.
        ("deepseek-v3", "0.6.6", "h100", {"gpus": 32, "tp": 8, "pp": 4}, 0, 16.9583),
        # vllm issue 13074: absorbed matrices in FP8 beside their factors, the remainder last.
        ("deepseek-r1", "0.7.2", "h100", {"gpus": 16, "tp": 8, "pp": 2}, 0, 39.66),
        # vllm issue 33155: scales of the experts lie there twice up to 0.24.
        ("gpt-oss-120b", "0.14.1", "h100", {}, 0, 64.38),
    ],
)
def test_weights_in_threads(
    model: str, version: str, gpu: str, options: dict[str, Any], stage: int, logged: float
) -> None:
    answer = plan(model, version, gpu, **{"context": 8192, **options})
    assert weights_gib(answer, stage) == pytest.approx(logged, rel=0.005)


def test_scales_of_experts_are_dropped_from_025_on() -> None:
    """3.3 GiB of gpt-oss-120b: 36 layers x 128 experts x 3 x 2880 x 90 bytes, and their padding."""
    before, after = plan("gpt-oss-120b", "0.24.0"), plan("gpt-oss-120b", "0.26.0")
    freed = before.gpus[0].category_bytes("weights") - after.gpus[0].category_bytes("weights")
    # Loaded with 2944 rows: 36 x 128 x (2 x 2880 x 90 + 2880 x 90), columns of the width to 92.
    assert freed == 36 * 128 * (2 * 2880 * 90 + 2880 * 90)


@pytest.mark.parametrize(
    ("version", "model", "context", "seqs", "tokens", "peak_gib"),
    [
        # vllm issue 10517, eager, without chunked prefill: T = max_model_len.
        ("0.6.3", "llama-3.1-8b", 20000, None, 20000, 2.07),
        ("0.6.3", "llama-3.1-8b", 29000, None, 29000, 2.99),
        # github.com/llm-d/llm-d-benchmark config_explorer/empirical-vllm-memory-results.md.
        ("0.14.1", "qwen3-0.6b", 16000, None, 8192, 5.56),
        ("0.14.1", "llama-3.1-8b", 16000, None, 8192, 4.76),
        ("0.14.1", "qwen3-32b", 16000, None, 8192, 5.64),
        ("0.14.1", "gpt-oss-20b", 16000, None, 8192, 7.38),
        # github.com/kolyangg/mlops-assignment at daaf8cb.
        ("0.10.2", "qwen3-30b-a3b", 6144, None, 8192, 5.58),
    ],
)
def test_activation_peak_as_logged(
    version: str, model: str, context: int, seqs: int | None, tokens: int, peak_gib: float
) -> None:
    answer = plan(model, version, context=context, max_num_seqs=seqs)
    assert answer.deployment["max_num_batched_tokens"] == tokens
    peak = next(item for item in answer.gpus[0].items if item.name == "activations.peak")
    assert peak.size_bytes / GIB == pytest.approx(peak_gib, rel=0.02)
    assert peak.low_bytes <= peak_gib * GIB <= peak.high_bytes


@pytest.mark.parametrize(
    ("version", "gpu", "context", "usage", "expected"),
    [
        # 0.7.3 config.py: without chunks the longest prompt, from 32k on chunks of 2048.
        ("0.7.3", "h100", 8192, None, (8192, 256)),
        ("0.7.3", "h100", 65536, None, (2048, 256)),
        ("0.6.6.post1", "h100", 1024, None, (2048, 256)),
        # 0.8.5 arg_utils.py: every card of 70 GiB; 0.9.2: none with a100 in its name.
        ("0.8.5", "a100-80gb", 8192, None, (8192, 1024)),
        ("0.9.2", "a100-80gb", 8192, None, (2048, 256)),
        ("0.9.2", "h100", 8192, None, (8192, 1024)),
        ("0.9.2", "h100", 8192, "llm", (16384, 1024)),
        ("0.12.0", "a100-80gb", 8192, "llm", (8192, 256)),
        # 0.28.0: a row for cards of 160 GiB.
        ("0.27.1", "b200", 8192, None, (8192, 1024)),
        ("0.28.0", "b200", 8192, None, (16384, 1024)),
        # Turing falls back to the V0 engine up to 0.9.
        ("0.9.2", "t4", 2048, None, (2048, 256)),
    ],
)
def test_batch_limits(
    version: str, gpu: str, context: int, usage: Any, expected: tuple[int, int]
) -> None:
    if usage is None:
        settings = plan("llama-3.1-8b", version, gpu, context=context).deployment
        found = settings["max_num_batched_tokens"], settings["max_num_seqs"]
    else:
        spec = moesize.show("llama-3.1-8b").spec
        found = vllm_profile(version).batch(
            "v1",
            spec,
            context,
            gpu_total_bytes=80 * GIB,
            gpu_name="A100" if "a100" in gpu else "H100",
            max_num_seqs=None,
            max_num_batched_tokens=None,
            settings=VllmSettings(usage_context=usage),
        )
    assert tuple(found) == expected


@pytest.mark.parametrize(
    ("version", "utilization", "basis", "graphs", "chunk"),
    [
        ("0.6.6", 0.9, "before_distributed", False, 32768),
        ("0.8.5", 0.9, "all_in_use", False, 32768),
        ("0.10.2", 0.9, "before_distributed", False, 32768),
        ("0.11.2", 0.9, "after_distributed", False, 32768),
        ("0.12.0", 0.9, "after_distributed", False, 16384),
        ("0.18.1", 0.9, "after_distributed", False, 0),
        ("0.19.1", 0.9, "after_distributed", False, 0),
        ("0.20.2", 0.92, "after_distributed", True, 0),
        ("0.26.0", 0.92, "after_distributed", True, 0),
        ("0.27.1", 0.92, "consumed", True, 0),
        ("0.33.0", 0.92, "consumed", True, 0),
    ],
)
def test_budget_by_version(
    version: str, utilization: float, basis: str, graphs: bool, chunk: int
) -> None:
    profile = vllm_profile(version)
    rules = profile.budget_rules
    found = profile.default_utilization, rules.budget_basis, rules.graphs_charged
    assert found == (utilization, basis, graphs)
    assert rules.moe_chunk_tokens == chunk


@pytest.mark.parametrize(
    ("version", "inside", "outside"),
    [
        ("0.8.5", {"runtime.cuda_context", "runtime.communication"}, {"runtime.cuda_graphs"}),
        ("0.10.2", {"runtime.communication"}, {"runtime.cuda_context", "runtime.cuda_graphs"}),
        ("0.19.1", set(), {"runtime.communication", "runtime.cuda_context", "runtime.cuda_graphs"}),
        ("0.20.2", {"runtime.cuda_graphs"}, {"runtime.communication", "runtime.cuda_context"}),
        (
            "0.33.0",
            {"runtime.cuda_graphs", "runtime.allocator_slack"},
            {"runtime.communication", "runtime.cuda_context"},
        ),
    ],
)
def test_what_the_budget_charges(version: str, inside: set[str], outside: set[str]) -> None:
    answer = plan("llama-3.1-8b", version, gpus=2, context=8192)
    charged = {item.name: item.in_budget for item in answer.gpus[0].items}
    assert {name for name in inside | outside if charged[name]} == inside
    assert ("runtime.allocator_slack" in charged) == (version == "0.33.0")


def test_experts_see_tokens_in_chunks_up_to_017() -> None:
    """32768 tokens a time up to 0.11, 16384 up to 0.17; scratch is kept from 0.13 on."""
    options = {"max_num_batched_tokens": 32768, "context": 32768, "max_num_seqs": 8}

    def scratch(version: str) -> int:
        items = plan("qwen3-30b-a3b", version, **options).gpus[0].items
        return next((i.size_bytes for i in items if i.name == "runtime.moe_workspace"), 0)

    assert scratch("0.12.0") == 0
    # T k (max(F, H) + max(2F, H)) 2 bytes, H = 2048, F = 768, k = 8.
    assert scratch("0.17.1") == 16384 * 8 * (2048 + 2048) * 2
    assert scratch("0.18.1") == 32768 * 8 * (2048 + 2048) * 2


def test_old_releases_have_one_group_and_a_line_per_block() -> None:
    """0.7: # GPU blocks x 16 tokens, and windows are kept whole; 0.9 keeps windows as windows."""
    old = plan("gemma-3-27b", "0.8.5", "h100", context=32768, kv_cache_memory="10GiB").kv_cache
    new = plan("gemma-3-27b", "0.9.2", "h100", context=32768, kv_cache_memory="10GiB").kv_cache
    # 62 layers x 16 heads x 2 x 128 x 2 bytes.
    assert old.blocks == 10 * GIB // (16 * 62 * 16 * 2 * 128 * 2)
    assert old.capacity_tokens == old.blocks * 16
    assert (len(old.groups), len(new.groups)) == (1, 7)
    assert new.max_concurrency > old.max_concurrency


def test_keys_and_values_of_latent_attention_before_071() -> None:
    """16 of 128 heads, padded to 256; from 0.7.1 on a latent of 576 in bfloat16."""
    options = {"gpus": 8, "context": 4096, "kv_cache_memory": "8GiB"}
    before = plan("deepseek-v3", "0.7.0", "h200", **options).kv_cache
    after = plan("deepseek-v3", "0.7.1", "h200", **options).kv_cache
    assert before.bytes_per_token == 61 * 16 * 2 * 256 * 2
    assert after.bytes_per_token == 61 * 576 * 2


@pytest.mark.parametrize(
    ("version", "gpu", "backend", "block"),
    [
        ("0.8.5", "h200", "FLASHMLA", 64),
        ("0.8.5", "a100-80gb", "TRITON_MLA", 16),
        ("0.10.2", "b200", "CUTLASS_MLA", 128),
        ("0.14.1", "h200", "FLASHMLA", 64),
        ("0.16.0", "b200", "FLASHINFER_MLA", 64),
        ("0.18.1", "h200", "FLASH_ATTN_MLA", 16),
        ("0.33.0", "b200", "FLASHINFER_MLA", 32),
    ],
)
def test_blocks_of_latent_attention(version: str, gpu: str, backend: str, block: int) -> None:
    """`platforms/cuda.py:check_and_update_config` and `_get_backend_priorities` of the release."""
    answer = plan("deepseek-v2-lite", version, gpu, context=4096)
    found = answer.deployment["attention_backend"], answer.deployment["block_size"]
    assert found == (backend, block)


def _layers(kind: Any, count: int, state_bytes: int, window: int | None = None) -> LayerPages:
    return LayerPages(
        kind=kind, num_layers=count, block_tokens=16, state_bytes=state_bytes, window_tokens=window
    )


@pytest.mark.parametrize(("percent", "groups"), [(100, 3), (125, 2), (150, 2)])
def test_group_size_by_version(percent: int, groups: int) -> None:
    """gpt-oss-20b with EAGLE, 12 sliding and 13 full: groups of 12, from 0.12 on of 13."""
    layers = [[_layers("full", 13, 64), _layers("sliding", 12, 64, 128)]]
    settings = KvSettings(max_model_len=1024, max_num_batched_tokens=64)
    layout = group_layers(layers, settings, KvRules(widen_below_percent=percent))
    assert len(layout.groups) == groups


@pytest.mark.parametrize(
    ("version", "percent"), [("0.11.2", 100), ("0.12.0", 125), ("0.17.1", 125), ("0.18.1", 150)]
)
def test_group_heuristic_is_a_fact(version: str, percent: int) -> None:
    assert vllm_profile(version).kv_rules.widen_below_percent == percent


def test_tokens_logged_change_their_meaning_with_020() -> None:
    """0.19.1: blocks // groups x block; 0.20.2: int(concurrency x max_model_len)."""
    layers = [[_layers("full", 12, 64), _layers("sliding", 12, 64, 128)]]
    settings = KvSettings(max_model_len=1024, max_num_batched_tokens=64, max_concurrent_batches=1)
    layout = group_layers(layers, settings)
    memory = 1001 * layout.stage_block_bytes[0]
    old = plan_kv(layout, settings, memory, vllm_profile("0.19.1").kv_rules)
    new = plan_kv(layout, settings, memory, vllm_profile("0.20.2").kv_rules)
    # A request takes 64 blocks of the full layers and cd(127 + 64, 16) + 1 = 13 of the others.
    assert (old.num_blocks, old.tokens_logged) == (1001, 500 * 16)
    assert old.max_concurrency == new.max_concurrency == pytest.approx(1001 / 77)
    assert new.tokens_logged == int(1001 / 77 * 1024)


def test_pages_of_several_sizes() -> None:
    """0.11 refuses, 0.12 lengthens blocks where that divides, 0.24 pads."""
    settings = KvSettings(max_model_len=1024, max_num_batched_tokens=64)

    def blocks(version: str, small: int) -> set[tuple[int, int]]:
        layers = [[_layers("full", 4, 96), _layers("sliding", 4, small, 128)]]
        layout = group_layers(layers, settings, vllm_profile(version).kv_rules)
        return {(group.block_tokens, group.layers[0].page_bytes) for group in layout.groups}

    with pytest.raises(UnsupportedError):
        blocks("0.11.2", 48)
    assert blocks("0.12.0", 48) == {(16, 1536), (32, 1536)}
    with pytest.raises(UnsupportedError):
        blocks("0.22.1", 64)
    assert blocks("0.24.0", 64) == {(16, 1536)}


@pytest.mark.parametrize(("version", "states"), [("0.19.1", 1), ("0.27.1", 1), ("0.28.0", 2)])
def test_states_of_a_request(version: str, states: int) -> None:
    """Prefix caching of hybrid models is on from 0.28 (engine/arg_utils.py), in align mode."""
    profile = vllm_profile(version)
    spec = moesize.show("qwen3-next-80b-a3b").spec
    mode = profile.mamba_cache_mode(spec, VllmSettings())
    assert mode == ("align" if states == 2 else "none")
    asked = profile.mamba_cache_mode(spec, VllmSettings(enable_prefix_caching=True))
    assert asked == "align"


def test_delta_nets_export_states_from_033_on() -> None:
    """0.33.0 qwen_gdn_linear_attn.py: on Hopper a third state, and blocks of whole 64 tokens."""
    older = plan("qwen3-next-80b-a3b", "0.32.0", gpus=4, context=32768)
    newer = plan("qwen3-next-80b-a3b", "0.33.0", gpus=4, context=32768)
    ampere = plan("qwen3-next-80b-a3b", "0.33.0", "a100-80gb", gpus=4, context=32768)
    # cd(274432 state bytes, 16 x 1024 bytes per token) x 16 = 272 (docs of 0.32), to 64: 320.
    blocks = [answer.deployment["block_size"] for answer in (older, newer, ampere)]
    assert blocks == [272, 320, 272]


@pytest.mark.parametrize(
    ("version", "capability", "kv_dtype", "stages", "core"),
    [
        ("0.7.3", (9, 0), "auto", 1, "v0"),
        ("0.8.5", (9, 0), "auto", 1, "v1"),
        ("0.8.5", (7, 5), "auto", 1, "v0"),
        ("0.8.5", (8, 0), "fp8", 1, "v0"),
        ("0.8.5", (9, 0), "fp8", 1, "v1"),
        ("0.8.5", (9, 0), "auto", 2, "v0"),
        ("0.9.2", (9, 0), "auto", 2, "v1"),
        ("0.10.2", (7, 5), "fp8", 1, "v1"),
        ("0.11.2", (7, 5), "auto", 1, "v1"),
    ],
)
def test_engine_core(
    version: str, capability: tuple[int, int], kv_dtype: str, stages: int, core: str
) -> None:
    """`engine/arg_utils.py:_is_v1_supported_oracle` of 0.8.5, 0.9.2 and 0.10.2."""
    found = vllm_profile(version).core_for(
        moesize.show("llama-3.1-8b").spec,
        vendor="nvidia",
        compute_capability=capability,
        kv_dtype=kv_dtype,
        pipeline_parallel_size=stages,
    )
    assert found == core


def test_states_beside_the_cache_in_the_v0_engine() -> None:
    """Jamba before 0.10.1: states of all sequences are made in the profile run, none is paged."""
    old, new = plan("jamba", "0.9.2", gpus=2), plan("jamba", "0.10.2", gpus=2)
    names = [{item.name for item in answer.gpus[0].items} for answer in (old, new)]
    assert ["runtime.recurrent_states" in found for found in names] == [True, False]
    assert [len(answer.kv_cache.groups) > 1 for answer in (old, new)] == [False, True]


def test_layers_that_do_not_divide() -> None:
    """0.7.3: the last stage takes the rest; later one each, from the last but one backwards."""
    old = [len(stage.layers) for stage in pipeline_stages(61, 4, remainder="last")]
    new = [len(stage.layers) for stage in pipeline_stages(61, 4)]
    assert (old, new) == ([15, 15, 15, 16], [15, 15, 16, 15])
    given = pipeline_stages(61, 4, partition=(16, 15, 15, 15))
    assert [len(stage.layers) for stage in given] == [16, 15, 15, 15]
    with pytest.raises(InvalidDeploymentError):
        pipeline_stages(61, 4, partition=(16, 15, 15, 14))
    assert vllm_profile("0.7.3").weight_rules.pipeline_remainder == "last"
    assert vllm_profile("0.8.5").weight_rules.pipeline_remainder == "before_last"


@pytest.mark.parametrize(
    ("version", "major", "backend", "tile"),
    [
        ("0.10.2", 8, "marlin", (128, 256)),
        ("0.10.2", 9, "triton", (64, 1)),
        ("0.11.2", 12, "triton", (64, 1)),
        ("0.12.0", 12, "marlin", (128, 256)),
        ("0.18.1", 10, "flashinfer", (256, 256)),
        ("0.27.1", 10, "flashinfer", (128, 256)),
    ],
)
def test_mxfp4_kernels(version: str, major: int, backend: str, tile: tuple[int, int]) -> None:
    """`quantization/mxfp4.py:get_mxfp4_backend`, later `fused_moe/oracle/mxfp4.py`."""
    rules = vllm_profile(version).weight_rules
    padding = mxfp4_padding(f"{major}.0", rules=rules)
    assert mxfp4_backend(major, rules) == padding.backend == backend
    assert (padding.intermediate, padding.hidden) == tile


def test_graphs_by_version() -> None:
    """1, 2, 4 and steps of 8 to 512 up to 0.9; 0.10 stops at 2 S; 0.11 on steps of 16 from 256."""

    def sizes(profile: VllmProfile, seqs: int, major: int = 9) -> int:
        return len(capture_sizes(seqs, 8192, (major, 0), rules=profile.budget_rules))

    assert sizes(vllm_profile("0.9.2"), 16) == 67
    assert sizes(vllm_profile("0.10.2"), 16) == 7
    assert sizes(vllm_profile("0.10.2"), 1024) == 67
    assert sizes(vllm_profile("0.11.2"), 1024) == 51
    assert [sizes(vllm_profile(v), 1024, 10) for v in ("0.27.1", "0.28.0")] == [51, 83]
    # The V0 engine captures whole decode steps up to max_num_seqs: 35 for 256 (its log says so).
    assert sizes(vllm_profile("0.7.3").for_core("v0"), 256) == 35


def test_flashinfer_workspace_grew_with_011() -> None:
    sizes = [vllm_profile(v).budget_rules.flashinfer_workspace_bytes for v in ("0.10.2", "0.11.2")]
    assert sizes == [256 * MIB, 394 * MIB]


def test_oldest_newest_and_beyond() -> None:
    with pytest.raises(UnsupportedError, match="not known"):
        engine_profile("vllm", "0.5.5")
    assert vllm_profile("0.6.0").engine_core == "v0"
    answer = plan("llama-3.1-8b", "0.34.0")
    assert "engine-version" in {note.code for note in answer.warnings}
    assert vllm_profile("0.33.0").weight_rules == WeightRules(
        mxfp4_backends=vllm_profile("0.33.0").weight_rules.mxfp4_backends,
        towers_on_first_stage=True,
    )


def test_every_fact_holds_for_one_value_at_a_time() -> None:
    """Ranges of a fact or a constant follow each other without holes from where they start."""
    import json
    from pathlib import Path

    path = Path(moesize.__file__).parent / "data" / "engines" / "vllm.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    for kind in ("facts", "constants"):
        ranges: dict[str, list[tuple[str, str | None]]] = {}
        for row in data[kind]:
            ranges.setdefault(row["name"], []).append((row["from"], row["before"]))
        for name, rows in ranges.items():
            for (_, end), (start, _) in pairwise(rows):
                assert end == start, name


def test_layer_partition_setting() -> None:
    """VLLM_PP_LAYER_PARTITION reaches the stages."""
    from moesize.engines import engine_planner, engine_rules
    from moesize.gpus import find_gpu

    request = Request(
        num_gpus=2,
        tensor_parallel_size=1,
        pipeline_parallel_size=2,
        context_tokens=4096,
        engine_settings=VllmSettings(pp_layer_partition=(20, 12)),
    )
    spec = moesize.show("llama-3.1-8b").spec
    stored = moesize.api.published(spec)
    rules = engine_rules("vllm", "0.33.0")
    answer = engine_planner("vllm")(spec, stored, find_gpu("h100").spec, request, rules)
    first, last = (ledger.category_bytes("weights") for ledger in answer.ledgers)
    # 8 layers of 218,112,000 parameters more; embedding and head weigh the same.
    assert first - last == pytest.approx(8 * 218_112_000 * 2, rel=0.001)


def _batch(version: str, **settings: Any) -> tuple[int, int]:
    return vllm_profile(version).batch(
        "v1",
        moesize.show("llama-3.1-8b").spec,
        8192,
        gpu_total_bytes=80 * GIB,
        gpu_name="H100",
        max_num_seqs=settings.pop("max_num_seqs", None),
        max_num_batched_tokens=None,
        settings=VllmSettings(**settings),
    )


def test_settings_change_the_rules() -> None:
    """Environment variables and flags of 0.17.1 and 0.33.0 (envs.py, engine/arg_utils.py)."""
    assert _batch("0.33.0", performance_mode="throughput") == (16384, 2048)
    assert _batch("0.33.0", performance_mode="throughput", max_num_seqs=64) == (16384, 64)
    changed = vllm_profile("0.17.1").with_settings(
        VllmSettings(
            fused_moe_chunk_size=8192,
            profile_cuda_graphs=True,
            cudagraph_capture_sizes=(1, 4, 2),
            flashinfer_workspace_bytes=MIB,
        )
    )
    rules = changed.budget_rules
    assert (rules.moe_chunk_tokens, rules.graphs_charged) == (8192, True)
    assert (rules.flashinfer_workspace_bytes, capture_sizes(64, 2048, (9, 0), rules=rules)) == (
        MIB,
        (1, 2, 4),
    )
    # From 0.18 on nothing is chunked, whatever the variable says.
    newer = vllm_profile("0.18.1").with_settings(VllmSettings(fused_moe_chunk_size=8192))
    assert newer.budget_rules.moe_chunk_tokens == 0
    forced = vllm_profile("0.24.0").with_settings(VllmSettings(use_v2_model_runner=True))
    spec = moesize.show("qwen3-30b-a3b").spec
    assert (vllm_profile("0.24.0").model_runner(spec), forced.model_runner(spec)) == ("v1", "v2")


def test_states_for_every_chunk_are_refused() -> None:
    """0.15 to 0.27 cache Mamba-2 states at multiples of a chunk size that specs do not hold."""
    spec = moesize.show("nemotron-h-56b").spec
    asked = VllmSettings(enable_prefix_caching=True)
    with pytest.raises(UnsupportedError, match="chunk"):
        vllm_profile("0.19.1").mamba_cache_mode(spec, asked)
    assert vllm_profile("0.28.0").mamba_cache_mode(spec, asked) == "align"


@pytest.mark.parametrize(
    ("model", "tp", "logged"),
    [
        # github.com/kyuz0/amd-r9700-vllm-toolboxes at 18a88f1, benchmark_results_amd-r9700.
        ("llama-3.1-8b", 1, 15.0586),
        ("llama-3.1-8b", 2, 7.582),
        ("gpt-oss-20b", 1, 14.3066),
        ("gpt-oss-20b", 2, 7.4551),
    ],
)
def test_weights_as_logged_on_amd(model: str, tp: int, logged: float) -> None:
    """Up to 0.20 the line is what the device holds: platforms/rocm.py of 0.19.1 and 0.21.0."""
    old = plan(model, "0.12.0", "radeon-ai-pro-r9700", gpus=tp, tp=tp, context=8192)
    assert weights_gib(old) == pytest.approx(logged, rel=0.01)
    new = plan(model, "0.21.0", "radeon-ai-pro-r9700", gpus=tp, tp=tp, context=8192)
    names = [{item.name for item in answer.gpus[0].items} for answer in (old, new)]
    assert ["weights.device_use" in found for found in names] == [True, False]


@pytest.mark.parametrize(
    ("model", "quant", "version", "logged"),
    [
        # Printed with four decimals; without the scalars of 32, 48, 36 and 40 layers the last
        # digit would be another.
        ("llama-3.1-8b", "checkpoint", "0.12.0", 14.9889),
        ("deepseek-r1-distill-qwen-14b", "checkpoint", "0.8.5.post1", 27.5916),
        ("qwen2.5-3b", "checkpoint", "0.10.2", 5.7916),
        ("qwen3-14b", "fp8-dynamic", "0.12.0", 15.3388),
    ],
)
def test_scalars_of_attention_layers_show_in_the_last_digit(
    model: str, quant: str, version: str, logged: float
) -> None:
    """Seven scales of 512 bytes a layer (0.8 to 0.27).

    Logs of github.com/kyuz0/amd-r9700-vllm-toolboxes at 18a88f1 (RTX 3090, RTX 5000 Ada),
    jayashan10/Deepseek-qwen-deployment at 5bddab0, ShanghaoLi0913/memory-aware_RLHF at c2b14c2.
    """
    found = moesize.plan(
        model, gpu="h100", quant=quant, engine_version=version, context=2048, suggest=False
    )
    weights = found.gpus[0].category_bytes("weights")
    assert round(weights / GIB, 4) == logged
