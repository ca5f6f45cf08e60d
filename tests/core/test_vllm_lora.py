"""LoRA matrices of a rank against vLLM 0.32.0's LoRA manager on PyTorch's meta device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesize import plan
from moesize.api import make_plan, stored_entries
from moesize.catalog import resolve_model
from moesize.core.deployment import Layout, Request
from moesize.core.errors import InvalidDeploymentError, UnsupportedError
from moesize.core.plan import Plan
from moesize.core.vllm import VllmSettings
from moesize.core.vllm_lora import plan_lora
from moesize.core.vllm_ranks import distinct_ranks
from moesize.gpus import find_gpu

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "vllm_parallel.json").read_text())
ROWS = [dict(zip(GOLDEN["lora"]["columns"], row, strict=True)) for row in GOLDEN["lora"]["rows"]]


def lora_bytes(model: str, request: Request, options: VllmSettings) -> int:
    spec, _ = resolve_model(model, online=False)
    stored = stored_entries(spec, None, "vllm")
    layout = Layout(
        tensor_parallel_size=request.tensor_parallel_size or 1,
        expert_parallel=bool(request.expert_parallel),
    )
    lora = plan_lora(request, options, layout)
    assert lora is not None
    rank, *_ = distinct_ranks(
        spec, stored, request, layout, options, compute_capability="9.0", rocm=False
    )
    return sum(item.size_bytes for item in lora.items(spec, stored, rank))


@pytest.mark.parametrize(
    "row",
    ROWS,
    ids=lambda row: f"{row['model']}-tp{row['tp']}-{row['rank']}-{row['slots']}-{row['ep']}",
)
def test_adapters_take_what_vllm_allocates(row: dict[str, Any]) -> None:
    request = Request(
        tensor_parallel_size=row["tp"],
        expert_parallel=row["ep"],
        lora_rank=row["rank"],
        max_loras=row["slots"],
    )
    options = VllmSettings(fully_sharded_loras=row["fully_sharded"] or None)
    assert lora_bytes(row["model"], request, options) == row["bytes"]


def test_a_plan_with_adapters_names_them() -> None:
    found = plan("llama-3.1-8b", gpu="h100", lora_rank=64, max_loras=8, suggest=False)
    assert found.gpus[0].category_bytes("lora") == 2_955_411_456
    names = [item.name for item in found.gpus[0].items if item.category == "lora"]
    assert names == ["lora.attention", "lora.mlp", "lora.vocabulary"]
    plain = plan("llama-3.1-8b", gpu="h100", suggest=False)
    taken = plain.kv_cache.available_bytes - found.kv_cache.available_bytes
    assert taken == 2_955_411_456
    assert found.deployment["lora_rank"] == 64


def test_mxfp4_experts_move_to_marlin_beside_adapters() -> None:
    """vLLM 0.32.0 picks Marlin for gpt-oss on an H100 with LoRA: 14,679,227,520 parameter bytes."""

    def weights(found: Plan) -> int:
        left_out = ("weights.buffers", "weights.allocator_rounding", "weights.repacked")
        return sum(
            item.size_bytes
            for item in found.gpus[0].items
            if item.category == "weights" and item.name not in left_out
        )

    found = plan("gpt-oss-20b", gpu="h100", max_loras=1, suggest=False)
    assert weights(found) == 14_679_227_520
    assert found.deployment["moe_backend"] == "marlin"
    assert weights(plan("gpt-oss-20b", gpu="h100", suggest=False)) == 13_761_264_768


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"lora_rank": 48}, InvalidDeploymentError, "--max-lora-rank 48"),
        ({"lora_rank": 16, "settings": {"max_cpu_loras": 0}}, InvalidDeploymentError, "max_cpu"),
        (
            {"lora_rank": 16, "settings": {"enable_moe_shared_loras": True}},
            UnsupportedError,
            "moe-shared",
        ),
        (
            {"lora_rank": 1, "tp": 2, "settings": {"fully_sharded_loras": True}},
            InvalidDeploymentError,
            "does not divide",
        ),
    ],
)
def test_what_vllm_refuses(options: dict[str, Any], error: type[Exception], word: str) -> None:
    spec, source = resolve_model("llama-3.1-8b", online=False)
    request = Request(
        num_gpus=options.get("tp", 1),
        lora_rank=options["lora_rank"],
        engine_settings=VllmSettings(**options.get("settings", {})),
    )
    with pytest.raises(error, match=word):
        make_plan(spec, source, None, "", find_gpu("h100").spec, request)


def test_experts_take_no_adapters_where_tokens_are_split() -> None:
    """vLLM 0.33.0 lora/layers/fused_moe.py:_ep_check."""
    request = Request(lora_rank=16)
    split = Layout(tensor_parallel_size=2, data_parallel_size=2, expert_parallel=True)
    with pytest.raises(InvalidDeploymentError, match="tokens are not split"):
        plan_lora(request, VllmSettings(), split)
    whole = Layout(data_parallel_size=4, expert_parallel=True)
    assert plan_lora(request, VllmSettings(), whole) is not None
    with pytest.raises(InvalidDeploymentError, match="allgather_reducescatter"):
        plan_lora(request, VllmSettings(all2all_backend="deepep_low_latency"), whole)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(("llama-3.1-8b", "qwen3-30b-a3b", "qwen3.5-27b")),
    st.sampled_from((8, 16, 64)),
    st.integers(1, 16),
    st.sampled_from((1, 2, 4)),
)
def test_adapters_grow_with_slots_and_shrink_with_ranks(
    model: str, rank: int, slots: int, tp: int
) -> None:
    def size(slots: int, tp: int, sharded: bool = False) -> int:
        request = Request(tensor_parallel_size=tp, lora_rank=rank, max_loras=slots)
        return lora_bytes(model, request, VllmSettings(fully_sharded_loras=sharded or None))

    assert size(slots, tp) == slots * size(1, tp)
    assert size(slots, tp, sharded=True) <= size(slots, tp) <= size(slots, 1)
