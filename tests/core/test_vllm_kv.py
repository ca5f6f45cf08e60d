"""The planner against vLLM's own (tests/golden/vllm_kv.json) and against public start-up logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesize.core.errors import InvalidDeploymentError, UnsupportedError
from moesize.core.units import GIB, ceil_div
from moesize.core.vllm_kv import (
    KvRules,
    KvSettings,
    LayerPages,
    group_layers,
    max_context_tokens,
    plan_kv,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "vllm_kv.json").read_text())["rows"]


def pages(
    kind: str, num_layers: int, block_tokens: int, state_bytes: int, **rest: Any
) -> LayerPages:
    return LayerPages(
        kind=kind,  # type: ignore[arg-type]
        num_layers=num_layers,
        block_tokens=block_tokens,
        state_bytes=state_bytes,
        **rest,
    )


def settings(max_model_len: int, **rest: Any) -> KvSettings:
    return KvSettings(**{"max_model_len": max_model_len, "max_num_batched_tokens": 8192, **rest})


def golden_id(row: dict[str, Any]) -> str:
    name = row["model"].rpartition("/")[2]
    ranks = f"tp{row['tensor_parallel_size']}pp{row['pipeline_parallel_size']}"
    fit = "-fit" if row["smallest_that_serves_one"] else ""
    return f"{name}-{row['gpu']}-{ranks}-{row['kv_dtype']}{fit}"


@pytest.mark.parametrize("row", GOLDEN, ids=golden_id)
def test_plan_equals_vllm(row: dict[str, Any]) -> None:
    """Blocks, groups, tokens and concurrency of vLLM 0.32.0's planner, digit by digit."""
    given_settings = KvSettings(
        max_model_len=row["max_model_len"],
        max_num_batched_tokens=row["max_num_batched_tokens"],
        max_concurrent_batches=row["max_concurrent_batches"],
        block_outermost=row["block_outermost"],
    )
    stages = [[LayerPages(**layer) for layer in stage] for stage in row["stages"]]
    layout = group_layers(stages, given_settings)
    plan = plan_kv(layout, given_settings, row["available_bytes"])
    groups = sorted(
        [group.block_tokens, sum(counts[0] for counts in group.stage_layers)]
        for group in layout.groups
    )
    assert {
        "num_blocks": plan.num_blocks,
        "tokens_logged": plan.tokens_logged,
        "max_concurrency": pytest.approx(plan.max_concurrency, rel=1e-12),
        "blocks_per_request": plan.blocks_per_request,
        "block_tokens": layout.block_tokens,
        "stage_block_bytes": list(layout.stage_block_bytes),
        "groups": groups,
    } == row["expected"]
    if row["smallest_that_serves_one"]:
        assert plan.request_bytes == row["available_bytes"]
        assert plan.fits_one_request
        assert not plan_kv(layout, given_settings, row["available_bytes"] - 1).fits_one_request


# Recurrent layers of the Qwen3.6/3.8-27B and Qwen3.6-35B logs: page = block * bytes per token.
QWEN_27B_TP2 = [
    pages("mamba", 48, 1568, 1_603_584, padded_page_bytes=1568 * 1024),
    pages("full", 16, 1568, 1024),
]
QWEN_35B = [pages("mamba", 30, 2096, 2_146_304), pages("full", 10, 2096, 1024)]
QWEN_27B_TP2_MTP3 = [
    pages("mamba", 48, 1600, 1_634_304, padded_page_bytes=1600 * 1024, num_spec_states=3),
    pages("full", 17, 1600, 1024),
]


@pytest.mark.parametrize(
    ("thread", "layers", "available_gib", "context", "tokens", "concurrency"),
    [
        ("mitchross/talos-argocd-proxmox PR 1995", QWEN_27B_TP2, 4.99, 131072, 302_921, 2.31),
        ("noonghunna/club-3090 612", QWEN_35B, 5.98, 131072, 567_978, 4.33),
        ("noonghunna/club-3090 652", QWEN_35B, 6.01, 131072, 569_878, 4.35),
        ("noonghunna/club-3090 594", QWEN_27B_TP2_MTP3, 5.33, 262144, 300_220, 1.15),
    ],
)
def test_logged_hybrids(
    thread: str,
    layers: list[LayerPages],
    available_gib: float,
    context: int,
    tokens: int,
    concurrency: float,
) -> None:
    """Available GiB, tokens and concurrency as vLLM printed them on real cards."""
    given_settings = settings(context)
    layout = group_layers([layers], given_settings)
    plan = plan_kv(layout, given_settings, int(available_gib * GIB))
    assert plan.tokens_logged == tokens, thread
    assert round(plan.max_concurrency, 2) == concurrency


@pytest.mark.parametrize(
    ("thread", "num_blocks", "tokens"),
    [("noonghunna/club-3090 295", 424, 620_944), ("noonghunna/club-3090 294", 425, 622_408)],
)
def test_logged_tokens_from_blocks(thread: str, num_blocks: int, tokens: int) -> None:
    """Qwen3.6-27B int4 TP2 with three guessed tokens; the logs show tokens and 2.37x."""
    given_settings = settings(262144)
    layout = group_layers([QWEN_27B_TP2_MTP3], given_settings)
    plan = plan_kv(layout, given_settings, num_blocks * layout.stage_block_bytes[0])
    assert (plan.tokens_logged, round(plan.max_concurrency, 2)) == (tokens, 2.37), thread


@pytest.mark.parametrize(("available_gib", "logged"), [(3.81, 1952), (2.89, 1478)])
def test_logged_uniform_model(available_gib: float, logged: int) -> None:
    """vllm issue 10517, Llama-3.1-8B: blocks of 2 MiB, available GiB printed to two places."""
    given_settings = settings(8192)
    layout = group_layers([[pages("full", 32, 16, 4096)]], given_settings)
    assert layout.stage_block_bytes == (2 * 1024 * 1024,)
    plan = plan_kv(layout, given_settings, int(available_gib * GIB))
    assert abs(plan.num_blocks - logged) <= 3


def test_logged_padding_layers() -> None:
    """noonghunna/club-3090 PR 96: a draft of 5 layers makes groups of 5, padded by 2 and 4."""
    layers = [
        pages("mamba", 48, 784, 1_000_000, padded_page_bytes=784 * 2048),
        pages("full", 16, 784, 2048, variant="target"),
        pages("full", 5, 784, 2048, variant="draft"),
    ]
    layout = group_layers([layers], settings(32768))
    assert {group.num_layers for group in layout.groups} <= {3, 4, 5}
    padding = {
        variant: sum(5 - group.num_layers for group in layout.groups if group.layers[0] in kinds)
        for variant, kinds in {
            "mamba": {group.layers[0] for group in layout.groups if group.kind == "mamba"},
            "target": {g.layers[0] for g in layout.groups if g.layers[0].variant == "target"},
        }.items()
    }
    assert padding == {"mamba": 2, "target": 4}


def test_groups_widen_below_one_and_a_half() -> None:
    """12 windowed next to 13 full layers make groups of 13; 12 next to 18 groups of 12."""
    near = [pages("sliding", 12, 16, 1024, window_tokens=128), pages("full", 13, 16, 1024)]
    assert group_layers([near], settings(4096)).stage_block_bytes == (13 * 16384,)
    far = [pages("sliding", 12, 16, 1024, window_tokens=128), pages("full", 18, 16, 1024)]
    assert group_layers([far], settings(4096)).stage_block_bytes == (12 * 16384,)
    older = KvRules(widen_below_percent=100)
    assert group_layers([near], settings(4096), older).stage_block_bytes == (12 * 16384,)


def test_pages_are_made_equal() -> None:
    """A page that divides the largest gets more tokens per block, another one is padded."""
    layers = [
        pages("full", 2, 16, 1024),
        pages("sliding", 2, 16, 512, window_tokens=64),
        pages("chunked", 2, 16, 600, window_tokens=64),
        pages("mamba", 2, 16, 5000),
    ]
    layout = group_layers([layers], settings(4096))
    assert layout.stage_block_bytes == (2 * 16384,)
    assert [group.block_tokens for group in layout.groups] == [16, 32, 16, 16]
    assert {group.layers[0].page_bytes for group in layout.groups} == {16384}


def test_latent_page_that_does_not_fit_is_kept_in_full() -> None:
    """A latent page cannot be padded; the windowed layers are then kept for all tokens."""
    latent = pages("mla", 4, 16, 1152)
    windowed = pages("sliding", 2, 16, 2048, window_tokens=64)
    layout = group_layers([[latent, windowed]], settings(4096))
    assert [group.kind for group in layout.groups] == ["mla"]
    assert layout.stage_block_bytes == (4 * 16 * 1152 + 2 * 16 * 2048,)
    state = pages("mamba", 2, 16, 100_000)
    with pytest.raises(UnsupportedError, match="18432 bytes"):
        group_layers([[latent, state]], settings(4096))
    with pytest.raises(UnsupportedError, match="18432 bytes"):
        group_layers([[latent, windowed, state]], settings(4096))


def test_without_hybrid_manager_windows_are_kept_in_full() -> None:
    """With the hybrid manager off a windowed model costs what a full one does."""
    off = settings(32768, hybrid_manager=False)
    padded = pages("sliding", 10, 8, 1024, window_tokens=512, padded_page_bytes=16384)
    layout = group_layers([[pages("full", 2, 16, 1024), padded]], off)
    assert layout.stage_block_bytes == (12 * 16384,)
    assert layout.blocks_per_request(32768, off) == 2048
    windows_only = [pages("sliding", 4, 16, 1024, window_tokens=512)]
    assert group_layers([windows_only], off).groups[0].kind == "sliding"
    several = [
        pages("full", 1, 16, 1024, variant="a"),
        pages("full", 1, 32, 1024, variant="b"),
        pages("sliding_mla", 1, 16, 1024, window_tokens=8),
    ]
    with pytest.raises(UnsupportedError, match="hybrid"):
        group_layers([several], off)
    with pytest.raises(UnsupportedError, match="hybrid"):
        group_layers([[several[0], pages("mamba", 1, 16, 16384)]], off)
    assert group_layers([[]], off).groups == ()


def test_uniform_kinds_share_a_table() -> None:
    """Kinds that need the same slots are one group, whatever their width."""
    pairs = [
        (pages("full", 1, 64, 512), pages("mla", 2, 64, 132)),
        (
            pages("sliding", 1, 16, 512, window_tokens=64),
            pages("sliding_mla", 2, 16, 64, window_tokens=64),
        ),
        (
            pages("chunked", 1, 16, 512, window_tokens=64),
            pages("chunked", 2, 16, 64, window_tokens=64),
        ),
        (pages("ring", 1, 8, 512), pages("ring", 2, 8, 64)),
        (
            pages("mamba", 1, 16, 100, variant="a", padded_page_bytes=512),
            pages("mamba", 2, 16, 200, variant="b", padded_page_bytes=512),
        ),
    ]
    for pair in pairs:
        layout = group_layers([pair], settings(1024))
        assert len(layout.groups) == 1
        assert layout.groups[0].num_layers == 3
    ring = group_layers([[pairs[3][0]]], settings(1024))
    assert ring.blocks_per_request(1024, settings(1024)) == 1
    assert ring.block_tokens == 0


def test_packed_block_holds_the_widest_group() -> None:
    """Block outermost: pages side by side, states split so that they do not widen the block."""
    layers = [
        pages("full", 4, 16, 1024),
        pages("mamba", 7, 16, 20_000),
        pages("sliding", 3, 16, 512, window_tokens=64),
    ]
    packed = settings(4096, block_outermost=True)
    layout = group_layers([layers], packed)
    assert layout.stage_block_bytes == (4 * 16384,)
    by_kind = {kind: [g.num_layers for g in layout.groups if g.kind == kind] for kind in ("mamba",)}
    assert by_kind == {"mamba": [3, 2, 2]}
    # The same layers without packing get pages of one size.
    assert group_layers([layers], settings(4096)).stage_block_bytes != layout.stage_block_bytes


def test_block_distance_is_aligned() -> None:
    """Regions per layer: each page is padded; packed: the whole block is."""
    odd = pages("full", 3, 16, 100, stride_alignment_bytes=512)
    assert group_layers([[odd]], settings(64)).stage_block_bytes == (3 * 2048,)
    packed = settings(64, block_outermost=True)
    assert group_layers([[odd]], packed).stage_block_bytes == (5120,)
    # Whole kernel blocks of 64 tokens: a block of 96 tokens is three kernel blocks of 32.
    kernels = pages("full", 1, 96, 100, kernel_block_tokens=64)
    assert kernels.alignment_bytes == 3200
    assert pages("full", 1, 64, 100, kernel_block_tokens=64).alignment_bytes == 1


def test_stage_without_cache_does_not_limit() -> None:
    """A pipeline stage that stores nothing leaves the number of blocks to the others."""
    layers = [pages("full", 2, 16, 1024)]
    layout = group_layers([layers, []], settings(1024))
    assert layout.stage_block_bytes == (32768, 0)
    assert plan_kv(layout, settings(1024), [32768 * 5, 0]).num_blocks == 5
    nothing = plan_kv(group_layers([[]], settings(1024)), settings(1024), 10)
    assert (nothing.num_blocks, nothing.max_concurrency, nothing.bytes_per_block) == (1, 0.0, 0)
    assert nothing.num_sequences(1024) == 0


def test_older_rules_do_not_reserve_the_null_block() -> None:
    """0.28 says that a request fits which needs every block; later releases keep one back."""
    given_settings = settings(1024)
    layout = group_layers([[pages("full", 1, 16, 1024)]], given_settings)
    memory = 64 * 16384
    assert not plan_kv(layout, given_settings, memory).fits_one_request
    assert plan_kv(
        layout, given_settings, memory, KvRules(reserves_null_block=False)
    ).fits_one_request


def test_decode_context_parallelism() -> None:
    """Every rank holds its share of the tokens; windows refuse."""
    shared = settings(65536, decode_context_parallel_size=4)
    layout = group_layers([[pages("mla", 61, 64, 1152)]], shared)
    assert layout.blocks_per_request(65536, shared) == 256
    with pytest.raises(InvalidDeploymentError, match="context parallelism"):
        group_layers([[pages("sliding", 1, 16, 64, window_tokens=8)]], shared)


def test_states_by_cache_mode() -> None:
    """Two states per request with prefix caching, one without, and one per guessed token."""
    state = pages("mamba", 1, 16, 1000, num_spec_states=3, num_checkpoint_states=1)
    assert state.blocks_per_request(100, settings(100)) == 6
    assert state.blocks_per_request(100, settings(100, mamba_cache_mode="none")) == 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "sliding"},
        {"block_tokens": 0},
        {"num_layers": -1},
    ],
)
def test_impossible_pages_are_refused(wrong: dict[str, Any]) -> None:
    """A window without a size, an empty block and a negative count are programming errors."""
    with pytest.raises(ValueError, match=r"window_tokens|positive|negative"):
        LayerPages(
            **{"kind": "full", "num_layers": 1, "block_tokens": 16, "state_bytes": 8} | wrong
        )


block_sizes = st.sampled_from([16, 32, 64])
layer_counts = st.integers(1, 40)


@st.composite
def mixed_layers(draw: st.DrawFn) -> list[LayerPages]:
    state_bytes = draw(st.sampled_from([256, 512, 1024, 1152]))
    block_tokens = draw(block_sizes)
    layers = [pages("full", draw(layer_counts), block_tokens, state_bytes)]
    if draw(st.booleans()):
        window = draw(st.integers(1, 4096))
        layers.append(
            pages("sliding", draw(layer_counts), block_tokens, state_bytes, window_tokens=window)
        )
    if draw(st.booleans()):
        size = draw(st.integers(1, block_tokens * state_bytes))
        layers.append(pages("mamba", draw(layer_counts), block_tokens, size))
    return layers


@given(mixed_layers(), st.integers(1, 200_000), st.integers(0, 1 << 36), st.integers(0, 1 << 30))
def test_more_memory_is_never_worse(
    layers: list[LayerPages], context: int, available: int, more: int
) -> None:
    given_settings = settings(context)
    layout = group_layers([layers], given_settings)
    less, bigger = (plan_kv(layout, given_settings, size) for size in (available, available + more))
    assert less.num_blocks <= bigger.num_blocks
    assert less.max_context <= bigger.max_context
    assert less.num_sequences(context) <= bigger.num_sequences(context)


@given(mixed_layers(), st.integers(1, 200_000), st.integers(0, 30_000))
def test_largest_context_fits_and_one_more_token_does_not(
    layers: list[LayerPages], context: int, usable: int
) -> None:
    given_settings = settings(context)
    layout = group_layers([layers], given_settings)
    best = max_context_tokens(layout, given_settings, usable)
    if best:
        assert layout.blocks_per_request(best, given_settings) <= usable
    if best < context:
        assert layout.blocks_per_request(best + 1, given_settings) > usable


@given(mixed_layers(), st.integers(1, 200_000))
def test_request_bytes_serve_exactly_one_request(layers: list[LayerPages], context: int) -> None:
    given_settings = settings(context)
    layout = group_layers([layers], given_settings)
    needed = plan_kv(layout, given_settings, 0).request_bytes
    assert plan_kv(layout, given_settings, needed).fits_one_request
    assert not plan_kv(layout, given_settings, needed - 1).fits_one_request


@given(st.integers(1, 8192), st.integers(1, 300_000), block_sizes)
def test_windowed_cache_is_at_most_the_full_one(
    window: int, context: int, block_tokens: int
) -> None:
    """At most one block more (the window may start inside one); fewer on long contexts."""
    given_settings = settings(context)
    full = pages("full", 1, block_tokens, 64).blocks_per_request(context, given_settings)
    windowed = pages("sliding", 1, block_tokens, 64, window_tokens=window)
    held = windowed.blocks_per_request(context, given_settings)
    assert held <= full + 1
    if context <= window:
        assert held == full + 1
    chunked = pages("chunked", 1, block_tokens, 64, window_tokens=window)
    assert chunked.blocks_per_request(context, given_settings) <= full


@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.integers(1, 30))
def test_layers_are_dealt_out_to_groups_completely(per_stage: list[int], full: int) -> None:
    """Over stages and groups every layer is there once, and groups differ by one layer at most."""
    stages = [[pages("full", full, 16, 64)]]
    stages += [[pages("sliding", count, 16, 64, window_tokens=8)] for count in per_stage]
    layout = group_layers(stages, settings(4096))
    windowed = [group.num_layers for group in layout.groups if group.kind == "sliding"]
    assert sum(windowed) == sum(per_stage)
    if windowed:
        assert max(windowed) - min(windowed) <= 1
        assert max(windowed) == ceil_div(sum(per_stage), len(windowed))
