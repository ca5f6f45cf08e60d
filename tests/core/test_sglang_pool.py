"""Pools against the start-up logs of SGLang servers, and laws that hold for any pool.

Logs: github.com/shun8686/for_debug at 85e1ce7 (SGLang of January and June 2026 on Ascend; the
arithmetic of the pools is that of every device) and vllm issue 21348 (4 x H100).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesize.catalog import resolve_model
from moesize.core.attention import CompressedAttention, GroupedQueryAttention, LatentAttention
from moesize.core.errors import InvalidDeploymentError, UnsupportedError
from moesize.core.recurrent import GatedDeltaNet
from moesize.core.sglang_pool import (
    CellOptions,
    PoolCells,
    PoolOptions,
    PoolRules,
    longest_context,
    max_running_requests,
    needed_pool_bytes,
    size_pools,
    stage_cells,
    state_cell,
    token_cell,
)
from moesize.core.units import GIB

RULES = PoolRules()
OLD = PoolRules(windows_by_cell=False, window_request_cap=False, padded_states=False)
OPTIONS = PoolOptions(context_tokens=32768)


def cells_of(model: str, ranks: int, **options: object) -> PoolCells:
    spec, _ = resolve_model(model, online=False)
    mixers = {block.name: block.mixers for block in spec.blocks}
    chosen = CellOptions(ranks=ranks, kv_dtype="bfloat16")
    chosen = replace(chosen, **options)  # type: ignore[arg-type]
    return stage_cells(spec.layout, mixers, chosen, RULES)


@pytest.mark.parametrize(
    ("model", "attention_ranks", "page", "tokens", "logged_gib"),
    [
        # "KV Cache is allocated. #tokens: ..., KV size: ... GB" (K and V summed).
        ("deepseek-r1", 4, 128, 217600, 14.25),
        ("deepseek-r1", 8, 128, 44288, 2.91),
        ("deepseek-r1", 2, 128, 179328, 11.74),
        ("deepseek-r1", 1, 128, 134272, 8.80),
        ("qwen3-235b-a22b", 16, 128, 441600, 19.80),
        ("qwen3-235b-a22b", 1, 128, 188672, 33.86),
        ("qwen3-30b-a3b", 2, 128, 802688, 36.76),
        ("qwen3-32b", 8, 128, 1172096, 35.78),
        ("qwen3-32b", 16, 128, 1298816, 39.64),
        ("qwen3-32b", 4, 128, 527360, 32.20),
        ("qwen3-coder-480b-a35b", 8, 128, 162176, 4.80),
        ("qwen3-coder-480b-a35b", 4, 128, 156800, 9.28),
        ("qwen3.5-9b", 2, 1, 1359146, 20.74),
        # vllm issue 21348: K size 8.23 GB, V size 8.23 GB.
        ("qwen3-235b-a22b-fp8", 4, 1, 367404, 16.46),
    ],
)
def test_bytes_of_logged_tokens(
    model: str, attention_ranks: int, page: int, tokens: int, logged_gib: float
) -> None:
    """A pool has one page more than it says; KV heads are copied where ranks outnumber them.

    Left out: two DeepSeek-V3.2 and one Qwen3-Next, whose pools on Ascend have another layout.
    """
    cell = cells_of(model, attention_ranks).full_bytes
    # Keys and values are rounded apart: two hundredths where both were printed.
    assert (tokens + page) * cell / GIB == pytest.approx(logged_gib, abs=0.011)


@pytest.mark.parametrize(
    ("model", "ranks", "page", "fraction", "before", "after", "tokens"),
    [
        # "Load weight begin. avail mem", "Load weight end. avail mem", max_total_num_tokens.
        ("qwen3-235b-a22b", 16, 128, 0.78, 60.87, 33.17, 441600),
        ("qwen3-32b", 8, 128, 0.72, 60.89, 52.80, 1172096),
        ("qwen3-coder-480b-a35b", 4, 128, 0.70, 60.83, 27.52, 156800),
        ("deepseek-r1", 2, 128, 0.75, 61.07, 27.00, 179328),
        ("qwen3-coder-480b-a35b", 8, 128, 0.73, 60.87, 38.07, 732288),
    ],
)
def test_tokens_of_logged_free_memory(
    model: str, ranks: int, page: int, fraction: float, before: float, after: float, tokens: int
) -> None:
    """`rest = after - before * (1 - f)`; both are printed to 0.01 GiB and the least rank counts.

    Chosen from 24 logs: the five whose printing rank was the least free one, as far as the tokens
    tell. Fourteen others are off by 0.05 to 0.3 GiB, four by 0.3 to 0.7, and
    Qwen3-Next, whose pool on Ascend has another layout, by far.
    """
    rest = int((after - before * (1 - fraction)) * GIB)
    cells = cells_of(model, ranks)
    found = size_pools(rest, cells, replace(OPTIONS, page_tokens=page), RULES).tokens
    assert abs(found - tokens) * cells.full_bytes <= 0.025 * GIB
    assert found % page == 0


def test_mamba_cache_of_a_log() -> None:
    """Qwen3.5-9B TP2, bfloat16 states: 1521 slots, conv 0.84 GB, ssm 17.84 GB.

    `avail mem` 51.46 of 61.1 at 0.8 leaves 39.24 GiB; pool and cache together took 39.4, so that
    0.17 GiB had come free since.
    """
    cells = cells_of("qwen3.5-9b", 2, state_dtype="bfloat16")
    assert (1521 + 1) * cells.state_bytes / GIB == pytest.approx(0.84 + 17.84, abs=0.011)
    rest = int((20.74 + 0.84 + 17.84) * GIB)
    sizes = size_pools(rest, cells, replace(OPTIONS, slots_per_request=3), RULES)
    assert sizes.state_slots == pytest.approx(1521, abs=1)
    assert sizes.tokens == pytest.approx(1359146, rel=5e-4)
    assert sizes.max_running == sizes.state_slots // 3


def test_mamba_slots_without_prefix_caching() -> None:
    """Qwen3-Next TP4, --max-running-requests 80: 80 slots, conv 0.03 GB and ssm 1.42 GB."""
    cells = cells_of("qwen3-next-80b-a3b", 4)
    assert 81 * cells.state_bytes / GIB == pytest.approx(0.03 + 1.42, abs=0.011)
    options = replace(OPTIONS, state_slots=80, prefix_caching=False, max_running=80)
    sizes = size_pools(10 * GIB, cells, options, RULES)
    assert (sizes.state_slots, sizes.max_running) == (80, 80)
    assert sizes.state_bytes == 81 * cells.state_bytes


def test_least_fraction_of_a_thread() -> None:
    """SemiAnalysisAI/InferenceX issue 2128: 12.25 GB free of 12.25 + 125.65 needs 0.9113."""
    assert pytest.approx(0.9113, abs=2e-4) == 1 - 12.25 / (12.25 + 125.65)
    cells = PoolCells(full_bytes=1000)
    free = int(137.90 * GIB)
    held = int(125.65 * GIB)
    assert size_pools(int(free * 0.911) - held, cells, OPTIONS, RULES).tokens == 0
    assert size_pools(int(free * 0.912) - held, cells, OPTIONS, RULES).tokens > 0


def test_windows_get_their_share_of_the_tokens() -> None:
    """full * swa_full_tokens_ratio: pool_configurator.py:HybridSWAPoolConfigurator, ratio 0.8."""
    cells = cells_of("gpt-oss-120b", 1, hybrid_windows=True)
    # 18 of 36 layers each; 8 KV heads x 64 x 2 x 2 bytes.
    assert (cells.full_layers, cells.window_layers) == (18, 18)
    assert cells.full_bytes == cells.window_bytes == 18 * 8 * 64 * 2 * 2
    options = replace(OPTIONS, window_tokens=128)
    sizes = size_pools(10 * GIB, cells, options, RULES)
    assert sizes.tokens == int(10 * GIB // (cells.full_bytes * 1.8))
    assert sizes.window_tokens == int(sizes.tokens * 0.8)
    # Up to 0.5.10 whole tokens of all layers are counted first.
    older = size_pools(10 * GIB, cells, options, OLD)
    assert abs(older.tokens - sizes.tokens) <= 2


def test_latent_cells() -> None:
    mixer = LatentAttention(
        num_heads=128,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
    )
    plain = CellOptions(ranks=8, kv_dtype="bfloat16")
    assert token_cell(mixer, plain, RULES) == 576 * 2
    assert token_cell(mixer, replace(plain, kv_dtype="fp8_e4m3"), RULES) == 576
    # FP4: half a byte and one scale per 16 values.
    assert token_cell(mixer, replace(plain, kv_dtype="nvfp4"), RULES) == 288 + 36
    sparse = resolve_model("deepseek-v3.2", online=False)[0].blocks[0].mixers[0]
    # An index key of 128 FP8 values and a scale; packed rows: 512 + 4 scales + 64 bfloat16.
    assert token_cell(sparse, plain, RULES) == 576 * 2 + 132
    packed = replace(plain, kv_dtype="fp8_e4m3", sparse_fp8_packed=True)
    assert token_cell(sparse, packed, RULES) == 656 + 132


def test_layers_that_share_an_index_have_none_of_their_own() -> None:
    """0.5.20 kv_cache_configurator.py:_should_elide_dsa_index_k; before, all layers had one."""
    spec, _ = resolve_model("glm-5.2", online=False)
    mixers = {block.name: block.mixers for block in spec.blocks}
    options = CellOptions(ranks=8, kv_dtype="bfloat16")
    shared = sum(
        isinstance(mixer, LatentAttention) and mixer.index_shared
        for name in spec.layout
        for mixer in mixers[name]
    )
    now = stage_cells(spec.layout, mixers, options, RULES).full_bytes
    before = stage_cells(spec.layout, mixers, options, PoolRules(index_everywhere=True)).full_bytes
    assert shared
    assert before - now == shared * 132


def test_recurrent_heads_that_do_not_divide_are_refused() -> None:
    mixer = GatedDeltaNet(
        num_k_heads=16, num_v_heads=32, k_head_dim=128, v_head_dim=128, conv_kernel=4
    )
    with pytest.raises(InvalidDeploymentError, match="cannot split"):
        state_cell(mixer, CellOptions(ranks=3, kv_dtype="bfloat16"))


def test_compressed_attention_is_refused() -> None:
    spec, _ = resolve_model("deepseek-v4-flash", online=False)
    mixer = next(m for b in spec.blocks for m in b.mixers if isinstance(m, CompressedAttention))
    with pytest.raises(UnsupportedError):
        token_cell(mixer, CellOptions(ranks=1, kv_dtype="bfloat16"), RULES)


@pytest.mark.parametrize(
    ("tokens", "context", "given_running", "expected"),
    [
        # kv_cache_configurator.py:resolve_max_num_reqs (0.5.23).
        (1_000_000, 131_072, None, 3906),
        (100_000, 131_072, None, 2048),
        (10_000_000, 131_072, None, 4096),
        (100_000, 131_072, 5000, 5000),
        (1000, 131_072, 5000, 500),
    ],
)
def test_max_running_requests(
    tokens: int, context: int, given_running: int | None, expected: int
) -> None:
    options = PoolOptions(context_tokens=context, max_running=given_running)
    assert max_running_requests(tokens, 0, PoolCells(full_bytes=1), options, RULES) == expected


any_cells = st.builds(
    PoolCells,
    full_bytes=st.integers(1, 1 << 20),
    window_bytes=st.sampled_from([0, 1024, 1 << 16]),
    state_bytes=st.sampled_from([0, 1 << 20, 30 << 20]),
)
any_options = st.builds(
    PoolOptions,
    context_tokens=st.just(32768),
    page_tokens=st.sampled_from([1, 16, 64, 128]),
    window_tokens=st.sampled_from([128, 4096]),
    window_ratio=st.sampled_from([0.1, 0.5, 0.8, 1.0]),
    state_ratio=st.sampled_from([0.1, 0.9, 2.0]),
    num_spec_tokens=st.sampled_from([0, 4]),
    max_running=st.sampled_from([None, 48, 1000]),
    slots_per_request=st.sampled_from([1, 3, 5]),
)
any_rules = st.sampled_from(
    [
        RULES,
        OLD,
        PoolRules(padded_states=False, state_speculation="joint", window_request_cap=False),
    ]
)


@given(st.integers(0, 100 * GIB), st.integers(0, 10 * GIB), any_cells, any_options, any_rules)
def test_more_memory_never_holds_less(
    rest: int, more: int, cells: PoolCells, options: PoolOptions, rules: PoolRules
) -> None:
    less_tokens = size_pools(rest, cells, options, rules).tokens
    more_tokens = size_pools(rest + more, cells, options, rules).tokens
    # A further state slot may take what a few tokens had.
    step = 6 * cells.state_bytes // cells.full_bytes + 2 * options.page_tokens
    assert more_tokens >= less_tokens - (step if cells.state_bytes else 0)


@given(st.integers(1, 200_000), st.integers(1, 64), any_cells, any_options, any_rules)
def test_needed_bytes_hold_what_they_are_needed_for(
    context: int, sequences: int, cells: PoolCells, options: PoolOptions, rules: PoolRules
) -> None:
    options = replace(options, max_running=max(options.max_running or 0, sequences) or None)
    needed = needed_pool_bytes(context, sequences, cells, options, rules)
    sizes = size_pools(needed, cells, options, rules)
    assert sizes.tokens >= sequences * context
    if cells.state_bytes:
        assert sizes.state_slots >= sequences * options.slots_per_request
    if cells.window_bytes:
        assert sizes.window_tokens >= sequences * min(context, options.window_tokens)


@given(any_cells, any_options, st.integers(1, 40 * GIB), st.integers(1, 16))
def test_longest_context_fits_and_no_longer_one_does(
    cells: PoolCells, options: PoolOptions, rest: int, sequences: int
) -> None:
    longest = longest_context([(rest, cells)], sequences, 100_000, options, RULES)
    if longest:
        assert needed_pool_bytes(longest, sequences, cells, options, RULES) <= rest
    if longest < 100_000:
        assert needed_pool_bytes(longest + 1, sequences, cells, options, RULES) > rest


@given(st.integers(1, 60), st.sampled_from(["bfloat16", "fp8_e4m3", "mxfp8", "nvfp4"]))
def test_a_cell_is_proportional_to_the_layers(layers: int, kv_dtype: str) -> None:
    mixer = GroupedQueryAttention(num_heads=32, num_kv_heads=8, head_dim=128, v_head_dim=128)
    options = CellOptions(ranks=4, kv_dtype=kv_dtype)
    one = stage_cells(["a"], {"a": (mixer,)}, options, RULES).full_bytes
    assert stage_cells(["a"] * layers, {"a": (mixer,)}, options, RULES).full_bytes == layers * one
