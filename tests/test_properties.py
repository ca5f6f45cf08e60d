"""Laws that hold for every model and deployment, whatever the numbers are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from strategies import (
    TP_SIZES,
    dense_mlps,
    grouped_query_attentions,
    make_spec,
    moe_mlps,
    requests,
    specs,
)

from moesize.api import make_plan
from moesize.catalog import load_spec
from moesize.core.attention import GroupedQueryAttention
from moesize.core.deployment import Request
from moesize.core.feed_forward import DenseMlp, MoeMlp
from moesize.core.inventory import count_parameters, inventory
from moesize.core.kv_cache import sequence_cost
from moesize.core.model_spec import ModelSpec
from moesize.core.plan import Plan
from moesize.core.quantization import find_scheme, list_schemes
from moesize.core.tensors import GROUPS
from moesize.core.units import format_bytes, format_count, parse_bytes, parse_count
from moesize.gpus import find_gpu
from moesize.importer import dump_spec
from moesize.structure import build, plain

GPU = find_gpu("h100-80gb-sxm").spec
NAMES = ("bf16", "fp8", "awq-4bit")
WEIGHTS = tuple(f"weights.{group}" for group in GROUPS)
# Fewer examples where a plan is made for each: about 2 ms apiece.
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def make(spec: ModelSpec, request: Request, scheme: str = "bf16") -> Plan:
    return make_plan(spec, "spec", find_scheme(scheme), "", GPU, request)


def items(plan: Plan, names: tuple[str, ...]) -> int:
    """Bytes of the named items on the first rank."""
    return sum(item.size_bytes for item in plan.gpus[0].items if item.name in names)


# --- parameters ---------------------------------------------------------------------------------


@quick
@given(specs())
def test_groups_sum_to_the_total_and_active_is_part_of_it(spec: ModelSpec) -> None:
    counts = count_parameters(spec)
    assert sum(counts.by_group.values()) == counts.total
    assert 0 < counts.active_without_embeddings <= counts.active <= counts.total <= counts.stored
    assert sum(entry.elements for entry in inventory(spec)) == counts.stored


@quick
@given(specs())
def test_active_is_total_exactly_when_no_expert_is_left_out(spec: ModelSpec) -> None:
    counts = count_parameters(spec)
    left_out = [
        feed_forward
        for block in spec.blocks
        for feed_forward in block.feed_forwards
        if isinstance(feed_forward, MoeMlp)
        and feed_forward.experts_per_token < feed_forward.num_experts
    ]
    assert (counts.active < counts.total) == bool(left_out)


@quick
@given(grouped_query_attentions(), st.integers(1, 8), st.sampled_from([1024, 4096]))
def test_one_expert_that_is_always_active_is_a_dense_model(
    attention: GroupedQueryAttention, layers: int, width: int
) -> None:
    dense = make_spec(((attention,), (DenseMlp(intermediate_size=width),), layers))
    moe = MoeMlp(num_experts=1, experts_per_token=1, intermediate_size=width)
    sparse = make_spec(((attention,), (moe,), layers))
    one, other = count_parameters(dense), count_parameters(sparse)
    router = other.by_group["router"]
    assert router == layers * dense.hidden_size  # 1 expert x hidden size in every layer
    assert other.total == other.active == one.total + router
    assert other.by_group["routed_experts"] == one.by_group["dense_mlp"]


@quick
@given(specs(), st.integers(1, 3))
def test_one_more_expert_changes_only_experts_and_router(spec: ModelSpec, more: int) -> None:
    def grow(feed_forward: DenseMlp | MoeMlp) -> DenseMlp | MoeMlp:
        if isinstance(feed_forward, MoeMlp):
            return replace(feed_forward, num_experts=feed_forward.num_experts + more)
        return feed_forward

    assume(count_parameters(spec).by_group["routed_experts"])
    blocks = tuple(
        replace(block, feed_forwards=tuple(map(grow, block.feed_forwards))) for block in spec.blocks
    )
    before, after = count_parameters(spec), count_parameters(replace(spec, blocks=blocks))
    changed = {group for group in GROUPS if before.by_group[group] != after.by_group[group]}
    assert changed == {"routed_experts", "router"}
    assert after.active - before.active == after.by_group["router"] - before.by_group["router"]


# --- plans --------------------------------------------------------------------------------------


@quick
@given(specs(), requests, st.sampled_from(NAMES))
def test_items_sum_to_what_is_used_and_lie_in_their_bands(
    spec: ModelSpec, request: Request, scheme: str
) -> None:
    assume(scheme != "awq-4bit" or request.num_gpus <= 4)  # a group of 128 is never cut
    plan = make(spec, request, scheme)
    for ledger in plan.gpus:
        assert sum(item.size_bytes for item in ledger.items) == ledger.used_bytes
        assert ledger.in_budget_bytes + ledger.outside_bytes == ledger.used_bytes
        assert 0 < ledger.budget_bytes <= ledger.usable_bytes
        names = [item.name for item in ledger.items]
        assert len(set(names)) == len(names)
        for item in ledger.items:
            assert 0 <= item.low_bytes <= item.size_bytes <= item.high_bytes, item.name
            assert item.formula
            assert item.source


@quick
@given(specs(), requests)
def test_the_verdict_follows_from_the_cache(spec: ModelSpec, request: Request) -> None:
    plan = make(spec, request)
    kv = plan.kv_cache
    assert plan.fits == (kv.needed_bytes <= kv.available_bytes)
    assert plan.verdict.shortfall_bytes == max(0, kv.needed_bytes - kv.available_bytes)
    assert kv.available_low_bytes <= kv.available_bytes <= kv.available_high_bytes
    assert plan.to_dict()["verdict"]["fits"] == plan.fits


@quick
@given(specs(), st.integers(1, 7000), st.integers(1, 1000), st.integers(1, 32), st.integers(1, 32))
def test_cache_does_not_fall_when_context_or_sequences_grow(
    spec: ModelSpec, context: int, longer: int, sequences: int, more: int
) -> None:
    small = make(spec, Request(context_tokens=context, concurrency=sequences)).kv_cache
    long = make(spec, Request(context_tokens=context + longer, concurrency=sequences)).kv_cache
    many = make(spec, Request(context_tokens=context, concurrency=sequences + more)).kv_cache
    assert small.needed_bytes <= long.needed_bytes
    assert small.needed_bytes < many.needed_bytes
    assert (small.bytes_per_token, small.blocks) == (many.bytes_per_token, many.blocks)


@quick
@given(specs(), st.sampled_from([1, 2, 4]))
def test_weights_do_not_grow_when_elements_become_narrower(spec: ModelSpec, gpus: int) -> None:
    sizes = [
        make(spec, Request(num_gpus=gpus), name).gpus[0] for name in ("bf16", "fp8", "awq-4bit")
    ]
    weights = [ledger.category_bytes("weights") for ledger in sizes]
    assert weights == sorted(weights, reverse=True)


@quick
@given(specs(recurrent=False), st.sampled_from(["bfloat16", "float16"]))
def test_an_8_bit_cache_takes_half(spec: ModelSpec, wide: str) -> None:
    for name in ("fp8", "fp8_e4m3"):
        narrow = make(spec, Request(kv_dtype=name)).kv_cache
        assert (
            2 * narrow.bytes_per_token
            == make(spec, Request(kv_dtype=wide)).kv_cache.bytes_per_token
        )
        assert (
            2 * sequence_cost(spec, name).bytes_per_token
            == sequence_cost(spec, wide).bytes_per_token
        )


@quick
@given(specs(recurrent=False, latent=False), st.sampled_from(TP_SIZES[1:]))
def test_ranks_hold_the_model_together(spec: ModelSpec, ranks: int) -> None:
    """Everything divides here, so that only what is replicated is held more than once."""
    alone = make(spec, Request(num_gpus=1))
    shared = make(spec, Request(num_gpus=ranks, tensor_parallel_size=ranks))
    assert shared.gpus[0].category_bytes("weights") * ranks >= alone.gpus[0].category_bytes(
        "weights"
    )
    for name in ("weights.routed_experts", "weights.lm_head"):
        assert items(shared, (name,)) * ranks == items(alone, (name,)), name
    for name in WEIGHTS:
        assert items(shared, (name,)) * ranks >= items(alone, (name,)), name
    one, all_ = alone.kv_cache, shared.kv_cache
    assert all_.bytes_per_token * ranks == one.bytes_per_token


@quick
@given(specs(recurrent=False), st.integers(2, 4))
def test_pipeline_stages_hold_every_layer_once(spec: ModelSpec, stages: int) -> None:
    assume(spec.num_layers >= stages)
    alone = make(spec, Request(num_gpus=1))
    plan = make(spec, Request(num_gpus=stages, pipeline_parallel_size=stages))
    assert [ledger.pp_stage for ledger in plan.gpus] == list(range(stages))
    layer_groups = (
        "weights.attention",
        "weights.routed_experts",
        "weights.dense_mlp",
        "weights.router",
    )
    for name in layer_groups:
        total = sum(item.size_bytes for gpu in plan.gpus for item in gpu.items if item.name == name)
        assert total == items(alone, (name,)), name


@quick
@given(
    grouped_query_attentions(window=False), st.sampled_from([128, 512, 1024]), st.integers(1, 8192)
)
def test_a_window_costs_at_most_what_full_attention_does(
    attention: GroupedQueryAttention, window: int, context: int
) -> None:
    mlp = (DenseMlp(intermediate_size=1024),)
    full = make_spec(((attention,), mlp, 4))
    narrow = make_spec(((replace(attention, window=window),), mlp, 4))
    request = Request(context_tokens=context, max_num_batched_tokens=8192)
    wide_kv, narrow_kv = make(full, request).kv_cache, make(narrow, request).kv_cache
    # One block more: a window may begin in the middle of one.
    slack = narrow_kv.block_tokens * sequence_cost(full).bytes_per_token
    assert narrow_kv.needed_bytes <= wide_kv.needed_bytes + slack
    if context <= window:
        assert narrow_kv.needed_bytes >= wide_kv.needed_bytes
    assert count_parameters(full) == count_parameters(narrow)


@quick
@given(specs(), st.sampled_from([1, 3, 16]), st.integers(1 << 26, 1 << 32))
def test_the_longest_context_fits_and_one_block_more_does_not(
    spec: ModelSpec, sequences: int, cache_bytes: int
) -> None:
    """With the cache given, so that what it holds does not depend on the context planned."""
    spec = replace(spec, max_context=1 << 21)
    asked = Request(concurrency=sequences, kv_cache_bytes=cache_bytes, context_tokens=1 << 20)
    kv = make(spec, asked).kv_cache
    if kv.needed_bytes <= kv.available_bytes:
        assert kv.max_context >= 1 << 20
    if kv.max_context == spec.max_context:
        whole = make(spec, replace(asked, context_tokens=spec.max_context)).kv_cache
        assert whole.needed_bytes <= cache_bytes
        return
    if not kv.max_context:
        assert make(spec, replace(asked, context_tokens=1)).kv_cache.needed_bytes > cache_bytes
        return
    longest = make(spec, replace(asked, context_tokens=kv.max_context)).kv_cache
    beyond = make(spec, replace(asked, context_tokens=kv.max_context + kv.block_tokens)).kv_cache
    assert longest.needed_bytes <= cache_bytes < beyond.needed_bytes


@quick
@given(specs(), requests)
def test_names_change_no_number(spec: ModelSpec, request: Request) -> None:
    other = replace(spec, id="zzz", title="Other", hub_id="a/b", aliases=("c",), notes=("d",))
    one, two = make(spec, request).to_dict(), make(other, request).to_dict()
    for document in (one, two):
        for key in ("id", "title", "notes"):
            document["model"].pop(key)
    assert one == two


@quick
@given(specs(), requests)
def test_plans_are_the_same_twice(spec: ModelSpec, request: Request) -> None:
    assert make(spec, request) == make(replace(spec), request)


# --- formats, files, units ----------------------------------------------------------------------


@pytest.mark.parametrize("scheme", list_schemes(), ids=lambda scheme: scheme.name)
def test_a_matrix_is_the_sum_of_its_components_and_grows_with_its_shape(scheme) -> None:  # type: ignore[no-untyped-def]
    weight_format = scheme.weight_format
    sizes = [weight_format.matrix_bytes(rows, 4096) for rows in (256, 512, 1024)]
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    parts = weight_format.components(512, 4096)
    assert sum(part.size_bytes for part in parts) == sizes[1]


@quick
@given(specs())
def test_a_spec_survives_yaml_and_plain_data(tmp_path_factory, spec: ModelSpec) -> None:  # type: ignore[no-untyped-def]
    path: Path = tmp_path_factory.mktemp("spec") / "made.yaml"
    path.write_text(dump_spec(spec), encoding="utf-8")
    assert load_spec(path) == spec
    assert build(ModelSpec, _lists(plain(spec))) == spec


def _lists(value: object) -> object:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list) else value


@given(st.integers(0, 1 << 60))
def test_bytes_are_read_as_they_are_printed(size: int) -> None:
    text = format_bytes(size)
    unit = {"B": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}[text.split()[-1]]
    read = parse_bytes(text.replace(",", ""))
    assert abs(read - size) <= (1 << unit) // 200 + (unit > 0)  # half of the last digit


@given(st.integers(0, 1 << 40))
def test_counts_are_read_as_they_are_written(count: int) -> None:
    assert (
        parse_count(str(count)) == parse_count(f"{count:,}") == parse_count(f"{count:_}") == count
    )
    assert parse_count(f"{count}k") == count * 1024
    assert format_count(count)


@quick
@given(dense_mlps, moe_mlps(), grouped_query_attentions())
def test_kinds_list_only_whole_tensors(
    dense: DenseMlp, moe: MoeMlp, attention: GroupedQueryAttention
) -> None:
    for kind in (dense, moe, attention):
        for tensor in kind.tensors(1024):
            assert tensor.elements > 0
            assert tensor.group in GROUPS
            assert tensor.shard is None or tensor.shape[tensor.shard.dim] % tensor.shard.units == 0
