"""Parallel layouts of vLLM: what each rank holds, what is refused, what the cache holds.

Figures of tests/golden/vllm_parallel.json are vLLM 0.32.0's own: its model classes built on
PyTorch's meta device for one rank of a fake process group, and its KV-cache planner.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesize import plan
from moesize.api import stored_entries
from moesize.catalog import resolve_model
from moesize.core.deployment import Layout, Request, choose_layout
from moesize.core.errors import InvalidDeploymentError, MoesizeError, UnsupportedError
from moesize.core.expert_parallel import expert_balance
from moesize.core.inventory import count_parameters
from moesize.core.model_spec import ModelSpec
from moesize.core.vllm import VllmSettings
from moesize.core.vllm_ranks import check_layout, distinct_ranks, kv_copies, sequence_parallel
from moesize.core.vllm_weights import pipeline_stages, valid_tensor_parallel_sizes

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "vllm_parallel.json").read_text())
H200 = 150_000_000_000


def rows(name: str) -> list[dict[str, Any]]:
    table = GOLDEN[name]
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def row_id(row: dict[str, Any]) -> str:
    return "-".join(f"{key}{value}" if key != "model" else value for key, value in row.items())


def spec_of(name: str) -> ModelSpec:
    return resolve_model(name, online=False)[0]


def ranks_of(
    name: str, request: Request, options: VllmSettings | None = None, capability: str = "9.0"
) -> tuple[Any, ...]:
    spec, options = spec_of(name), options or VllmSettings()
    layout = choose_layout(request, valid_tensor_parallel_sizes(spec), name)
    check_layout(spec, request, layout, options)
    stored = stored_entries(spec, None, "vllm")
    return distinct_ranks(
        spec, stored, request, layout, options, compute_capability=capability, rocm=False
    )


def asked(tp: int = 1, dp: int = 1, pp: int = 1, **rest: Any) -> Request:
    return Request(
        num_gpus=tp * dp * pp,
        tensor_parallel_size=tp,
        data_parallel_size=dp,
        pipeline_parallel_size=pp,
        **rest,
    )


@pytest.mark.parametrize("row", rows("weights"), ids=row_id)
def test_weights_of_a_rank_are_those_of_the_engine(row: dict[str, Any]) -> None:
    tp, dp = row["tp"], row["dp"]
    request = asked(
        tp, dp, expert_parallel=row["ep"], num_redundant_experts=row["redundant"] or None
    )
    ranks = ranks_of(row["model"], request)
    # One stage: the global rank is the expert-parallel rank; ranks up to the next kind are alike.
    kind = next(rank for rank in reversed(ranks) if rank.number <= row["ep_rank"])
    assert kind.weights.parameter_bytes == row["parameter_bytes"]


@pytest.mark.parametrize("row", rows("context_parallel"), ids=row_id)
def test_context_parallel_cache_is_that_of_the_engine(row: dict[str, Any]) -> None:
    found = plan(
        row["model"],
        gpu="h100",
        tp=row["tp"],
        pp=1,
        dcp=row["dcp"],
        context=row["max_model_len"],
        kv_cache_memory=40_000_000_000,
        engine_version="0.32.0",
        suggest=False,
    ).kv_cache
    assert (found.blocks, found.capacity_tokens) == (row["blocks"], row["tokens"])


@pytest.mark.parametrize("row", rows("context_parallel_refused"), ids=row_id)
def test_context_parallel_sizes_that_vllm_refuses(row: dict[str, Any]) -> None:
    with pytest.raises(MoesizeError):
        plan(row["model"], gpu="h100", tp=row["tp"], pp=1, dcp=row["dcp"], suggest=False)


def test_sliding_windows_take_no_context_parallelism() -> None:
    with pytest.raises(InvalidDeploymentError, match="sliding-window"):
        plan("gpt-oss-20b", gpu="h100", tp=16, pp=1, dcp=2, suggest=False)


@pytest.mark.parametrize(
    ("request_", "sizes"),
    [
        (Request(num_gpus=8), (8, 1, 1)),
        (Request(num_gpus=16, data_parallel_size=16), (1, 1, 16)),
        (Request(num_gpus=16, data_parallel_size=2), (8, 1, 2)),
        (Request(num_gpus=8, pipeline_parallel_size=2), (4, 2, 1)),
        (Request(num_gpus=4, tensor_parallel_size=2), (2, 1, 1)),
        (asked(2, 4), (2, 1, 4)),
        (asked(2, 2, 2), (2, 2, 2)),
    ],
)
def test_sizes_chosen(request_: Request, sizes: tuple[int, int, int]) -> None:
    layout = choose_layout(request_, [1, 2, 4, 8], "a model")
    found = (
        layout.tensor_parallel_size,
        layout.pipeline_parallel_size,
        layout.data_parallel_size,
    )
    assert found == sizes
    assert layout.num_gpus <= request_.num_gpus
    idle = layout.num_gpus < request_.num_gpus
    assert idle == ("uses 2 of the 4 GPUs" in layout.note)


@pytest.mark.parametrize(
    "request_",
    [
        Request(num_gpus=8, data_parallel_size=3),
        Request(num_gpus=2, tensor_parallel_size=4),
        Request(num_gpus=4, tensor_parallel_size=3),
        Request(num_gpus=8, data_parallel_size=2, tensor_parallel_size=2, pipeline_parallel_size=1),
        Request(num_gpus=7, data_parallel_size=1),
    ],
)
def test_sizes_that_do_not_fit_the_gpus(request_: Request) -> None:
    with pytest.raises(InvalidDeploymentError):
        choose_layout(request_, [2, 4], "a model")


@pytest.mark.parametrize(
    ("model", "changes", "word"),
    [
        ("llama-3.1-8b", {"expert_parallel": True}, "no experts"),
        ("mixtral-8x7b", {"num_redundant_experts": 8}, "expert parallelism"),
        ("mixtral-8x7b", {"expert_skew": 2.0}, "expert parallelism"),
        ("qwen3-30b-a3b", {"expert_parallel": True, "num_redundant_experts": 1}, "divide"),
        ("qwen1.5-moe-a2.7b", {"expert_parallel": True, "num_redundant_experts": 4}, "balancing"),
        ("deepseek-v3", {"data_parallel_attention": True}, "SGLang"),
    ],
)
def test_what_vllm_refuses(model: str, changes: dict[str, Any], word: str) -> None:
    with pytest.raises((InvalidDeploymentError, UnsupportedError), match=word):
        ranks_of(model, asked(2, **changes))


def test_redundant_experts_that_divide_are_named() -> None:
    with pytest.raises(InvalidDeploymentError) as error:
        ranks_of("qwen3-30b-a3b", asked(8, expert_parallel=True, num_redundant_experts=3))
    assert "--redundant-experts 8" in error.value.hint


def test_every_kind_of_rank_has_a_ledger() -> None:
    """60 experts on 8 ranks: the first four hold 8, the others 7 (expert_map_manager.py)."""
    found = plan("qwen1.5-moe-a2.7b", gpu="a100", dp=8, ep=True, suggest=False)
    assert [(ledger.rank, ledger.pp_stage) for ledger in found.gpus] == [(0, 0), (4, 0)]
    experts = [
        next(item.size_bytes for item in ledger.items if item.name == "weights.routed_experts")
        for ledger in found.gpus
    ]
    assert experts[0] * 7 == experts[1] * 8
    assert found.verdict.limiting_rank == 0
    assert found.expert_parallel is not None
    assert found.expert_parallel["experts_per_rank"] == {"min": 7, "max": 8}


def test_ranks_are_numbered_by_replica_then_stage_then_tensor_rank() -> None:
    ranks = ranks_of("qwen1.5-moe-a2.7b", asked(4, 2, 2, expert_parallel=True))
    # 60 % 8 = 4 ranks hold one more; the fifth of a stage is tensor rank 0 of replica 1.
    assert [rank.number for rank in ranks] == [0, 8, 4, 12]


def test_capacity_is_that_of_the_rank_with_the_least_memory() -> None:
    both = plan("qwen1.5-moe-a2.7b", gpu="a100", dp=8, ep=True, suggest=False)
    available = [
        ledger.budget_bytes
        - sum(
            item.size_bytes for item in ledger.items if item.in_budget and item.name != "kv_cache"
        )
        for ledger in both.gpus
    ]
    assert both.kv_cache.available_bytes == min(available)


def test_stages_as_the_user_shares_them_out() -> None:
    """VLLM_PP_LAYER_PARTITION (distributed/utils.py:get_pp_indices)."""
    assert [len(stage.layers) for stage in pipeline_stages(61, 4)] == [15, 15, 16, 15]
    stages = pipeline_stages(61, 4, partition=(14, 16, 16, 15))
    assert [len(stage.layers) for stage in stages] == [14, 16, 16, 15]
    for wrong in ((61,), (20, 20, 20, 20)):
        with pytest.raises(InvalidDeploymentError, match="VLLM_PP_LAYER_PARTITION"):
            pipeline_stages(61, 4, partition=wrong)


@pytest.mark.parametrize(
    ("model", "tp", "dcp", "copies"),
    [
        ("deepseek-v3", 8, 1, 8),
        ("deepseek-v3", 8, 8, 1),
        ("qwen3-235b-a22b", 8, 1, 2),
        ("qwen3-235b-a22b", 4, 1, 1),
        ("qwen3-235b-a22b", 8, 2, 1),
    ],
)
def test_copies_of_keys_and_values(model: str, tp: int, dcp: int, copies: int) -> None:
    layout = Layout(tensor_parallel_size=tp, decode_context_parallel_size=dcp)
    assert kv_copies(spec_of(model), layout) == copies


def test_replicated_cache_is_named_with_what_it_wastes() -> None:
    asked = {"gpu": "h200", "gpus": 8, "context": 32768, "concurrency": 8, "suggest": False}
    found = plan("deepseek-v3", **asked)
    note = next(note for note in found.warnings if note.code == "kv-replicated")
    # 61 layers x 576 x 2 bytes per token, 8 x 32,768 tokens: 7 of 8 copies of 17.16 GiB.
    assert "8 ranks" in note.message
    assert "15.01 GiB" in note.message
    few = plan("deepseek-v3", **{**asked, "concurrency": 1})
    assert all(note.code != "kv-replicated" for note in few.warnings)
    shared = plan("deepseek-v3", tp=8, dcp=8, **asked)
    assert all(note.code != "kv-replicated" for note in shared.warnings)
    assert shared.kv_cache.capacity_tokens > 7 * found.kv_cache.capacity_tokens


def test_data_parallel_ranks_share_out_the_sequences() -> None:
    one = plan("llama-3.1-8b", gpu="a100", gpus=1, concurrency=2, suggest=False)
    eight = plan("llama-3.1-8b", gpu="a100", dp=8, concurrency=16, suggest=False)
    assert eight.deployment["gpu_count"] == 8
    assert eight.kv_cache.needed_bytes == one.kv_cache.needed_bytes
    assert eight.kv_cache.capacity_tokens == one.kv_cache.capacity_tokens
    assert eight.to_dict()["kv_cache"]["total_capacity_tokens"] == 8 * one.kv_cache.capacity_tokens


def test_tokens_of_all_data_parallel_ranks_meet_the_experts() -> None:
    """The all-gather gives every rank the tokens of all: T x dp rows of workspace."""
    sizes = [
        next(
            item.size_bytes
            for item in plan("qwen3-30b-a3b", gpu="h200", dp=dp, ep=True, suggest=False)
            .gpus[0]
            .items
            if item.name == "runtime.moe_workspace"
        )
        for dp in (2, 4)
    ]
    assert sizes[1] == 2 * sizes[0]


def test_sequence_parallel_moe_by_backend() -> None:
    layout = Layout(tensor_parallel_size=2, data_parallel_size=2, expert_parallel=True)
    assert sequence_parallel(layout, VllmSettings())
    assert not sequence_parallel(layout, VllmSettings(all2all_backend="flashinfer_all2allv"))


def test_balance_of_kimi_k2() -> None:
    """384 experts on 16 ranks, 8 per token: 64 tokens bring 64 * 8 / 16 rows to each."""
    balance = expert_balance(
        spec_of("kimi-k2"), ranks=16, skew=2.0, decode_tokens=64, prefill_tokens=1024
    )
    assert balance is not None
    mean, busiest = balance.load(64), balance.load(64, 2.0)
    assert (mean.rows, busiest.rows) == (32, 64)
    # 24 experts, each missed by all 64 tokens with probability (1 - 8 / 384) ** 64.
    assert mean.distinct_experts == pytest.approx(24 * (1 - (376 / 384) ** 64))
    assert mean.distinct_experts < busiest.distinct_experts < 24
    # A token has at most 8 experts on one rank.
    assert balance.load(4, 1000.0).rows == 32


def test_the_busiest_rank_sets_the_step() -> None:
    found = plan(
        "kimi-k2", gpu="h200", tp=8, dp=2, ep=True, expert_skew=2.0, concurrency=64, context=8192,
        suggest=False,
    )  # fmt: skip
    assert found.expert_parallel is not None
    costs = found.expert_parallel["decode_step"]
    assert costs["busiest"]["bytes"] > costs["balanced"]["bytes"]
    assert costs["busiest"]["ms"] > costs["balanced"]["ms"]
    assert found.performance["time_per_output_token_ms"]["best"] == pytest.approx(
        costs["busiest"]["ms"], abs=1e-2
    )
    even = plan(
        "kimi-k2", gpu="h200", tp=8, dp=2, ep=True, concurrency=64, context=8192, suggest=False
    )
    assert even.expert_parallel is not None
    assert even.expert_parallel["decode_step"]["busiest"] == costs["balanced"]


MOE = st.sampled_from(
    ("mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v2-lite", "qwen1.5-moe-a2.7b", "olmoe-1b-7b")
)
SIZES = st.sampled_from((1, 2, 4))


@settings(max_examples=60, deadline=None)
@given(MOE, SIZES, SIZES, st.booleans(), st.sampled_from((1, 2)))
def test_all_ranks_together_hold_the_model(
    model: str, tp: int, dp: int, expert_parallel: bool, pp: int
) -> None:
    spec = spec_of(model)
    if expert_parallel and tp * dp == 1:
        return
    ranks = ranks_of(model, asked(tp, dp, pp, expert_parallel=expert_parallel))
    held = experts = 0
    for stage in {rank.stage for rank in ranks}:
        kinds = [rank for rank in ranks if rank.stage == stage]
        # Where experts do not divide, the first kind covers the remainder of the ranks.
        starts = [
            ((r.number % (tp * pp)) - stage.index * tp) + r.number // (tp * pp) * tp for r in kinds
        ]
        ends = [*starts[1:], tp * dp]
        for rank, start, end in zip(kinds, starts, ends, strict=True):
            held += (end - start) * sum(rank.weights.by_group.values())
            experts += (end - start) * rank.weights.by_group["routed_experts"]
    counts = count_parameters(spec)
    width = 2  # all of them are bfloat16
    assert experts == counts.by_group["routed_experts"] * width
    assert held >= counts.total * width


@settings(max_examples=40, deadline=None)
@given(MOE, SIZES, SIZES)
def test_more_ranks_never_need_more_bytes_each(model: str, tp: int, dp: int) -> None:
    few = ranks_of(model, asked(tp, dp, expert_parallel=tp * dp > 1))
    many = ranks_of(model, asked(tp, dp * 2, expert_parallel=True))
    # Sequence-parallel MoE holds shared experts whole; they are left out of the comparison.
    most_few, most_many = (
        max(sum(r.weights.by_group.values()) - r.weights.by_group["shared_experts"] for r in kinds)
        for kinds in (few, many)
    )
    assert most_many <= most_few


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 64),
    st.integers(0, 64),
    st.integers(1, 4096),
    st.floats(1, 100, allow_nan=False),
)
def test_loads_stay_within_their_bounds(
    ranks: int, redundant: int, tokens: int, skew: float
) -> None:
    balance = expert_balance(
        spec_of("qwen3-30b-a3b"),
        ranks=ranks,
        redundant=redundant,
        skew=skew,
        decode_tokens=tokens,
        prefill_tokens=tokens,
    )
    assert balance is not None
    total = balance.ranks_with_most * balance.most_experts
    total += (ranks - balance.ranks_with_most) * balance.least_experts
    assert total == 128 + redundant
    mean, busiest = balance.load(tokens), balance.load(tokens, skew)
    assert mean.rows <= busiest.rows <= tokens * 8 + 1e-9
    assert mean.distinct_experts <= busiest.distinct_experts + 1e-9 <= balance.most_experts + 1e-6
    assert busiest.tokens <= tokens + 1e-9
