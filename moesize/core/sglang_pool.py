"""SGLang's memory pools: what a token costs on a rank, and how many tokens some bytes hold.

    mixers of a stage -> PoolCells -> size_pools() -> PoolSizes

Follows SGLang 0.5.23 `srt/model_executor/pool_configurator.py` and
`srt/mem_cache/kv_cache_configurator.py`; before 0.5.15 the same stood in
`model_runner_kv_cache_mixin.py` and `model_runner.py`. What differs by release is in PoolRules.

Words: a *cell* is what one token stores over all layers of a rank; a *slot* is the recurrent state
of one sequence over all layers of linear attention or Mamba; the *full* pool keeps every token, the
*window* pool those of sliding layers only.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Literal, assert_never

from moesize.core.attention import CompressedAttention, GroupedQueryAttention, LatentAttention
from moesize.core.errors import InvalidDeploymentError, UnsupportedError
from moesize.core.records import dataclass
from moesize.core.recurrent import (
    GatedDeltaNet,
    KimiDeltaAttention,
    LightningAttention,
    Mamba1,
    Mamba2,
    ShortConv,
)
from moesize.core.units import ceil_div, largest_that, round_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from moesize.core.mixers import Mixer

# Bytes of one element; formats with block scales have their own arithmetic.
KV_ELEMENT_BYTES = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
    "mxfp8": 1,
}
FP4_KV = ("fp4_e2m1", "nvfp4", "fp4_mx_block16")
_FP4_BLOCK = 16
_MXFP8_BLOCK = 32
# DSATokenToKVPool: fp8 values in blocks of 128 with a float32 scale each, rope values in bfloat16.
_SPARSE_BLOCK = 128
# configs/mamba_utils.py: SGLANG_MAMBA_CONV_DTYPE is bfloat16, the state float32.
_CONV_BYTES = 2
_STATE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# srt/environ.py: SGLANG_SWA_EVICTION_INTERVAL.
_EVICTION_INTERVAL = 128
_LEAST_REQUESTS, _MOST_REQUESTS = 2048, 4096

StateSpeculation = Literal["none", "per_slot", "up_front", "joint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRules:
    """What differs between SGLang releases; the defaults are those of 0.5.23.

    windows_by_cell      the window pool's share is part of the cell; before 0.5.15 tokens of equal
                         layers were counted first and shared out
    window_request_cap   without prefix caching and with --max-running-requests the window pool
                         holds the worst case of those requests
    refuses_small_windows   no start with a window pool that cannot hold one request
    padded_states        every state buffer has one slot more
    state_speculation    how states between guessed tokens are paid for
    index_everywhere     sparse layers that re-use another's choice have an index cache too
    packed_sparse        an FP8 cache of sparse attention is sized with its scales
    half_of_tokens       no more requests than half as many as tokens
    estimate_caps_given  --max-running-requests is capped by the estimate for the pool
    """

    windows_by_cell: bool = True
    window_request_cap: bool = True
    refuses_small_windows: bool = True
    padded_states: bool = True
    state_speculation: StateSpeculation = "joint"
    index_everywhere: bool = False
    packed_sparse: bool = True
    half_of_tokens: bool = True
    estimate_caps_given: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CellOptions:
    """What decides the bytes of a token and of a state on one rank.

    ranks              tensor-parallel ranks of attention
    hybrid_windows     sliding layers have a pool of their own
    state_dtype        --mamba-ssm-dtype, empty = the model's
    sparse_fp8_packed  FP8 rows of sparse attention carry scales and bfloat16 rope values
    """

    ranks: int
    kv_dtype: str
    hybrid_windows: bool = False
    state_dtype: str = ""
    sparse_fp8_packed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCells:
    """Bytes on one rank of a pipeline stage.

    full_bytes     one token of the full pool, draft layers included where the engine counts them
    window_bytes   one token of the window pool
    state_bytes    one slot
    draft_bytes    one token of a draft's cache outside the budget (up to 0.5.10)
    """

    full_bytes: int
    window_bytes: int = 0
    state_bytes: int = 0
    draft_bytes: int = 0
    full_layers: int = 0
    window_layers: int = 0
    state_layers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """Settings of the pools, resolved.

    window_tokens      the longest sliding window or attention chunk
    window_ratio       --swa-full-tokens-ratio; state_ratio --mamba-full-memory-ratio
    max_running        --max-running-requests of one data-parallel rank, None = not given
    num_spec_tokens    tokens verified per step, 0 without speculation
    slots_per_request  recurrent states that prefix caching keeps per request
    state_slots        --max-mamba-cache-size of one data-parallel rank, None = by memory
    spec_headroom      tokens per request that speculation adds to the pool (up to 0.5.5)
    """

    context_tokens: int
    page_tokens: int = 1
    window_tokens: int = 0
    window_ratio: float = 0.8
    state_ratio: float = 0.9
    max_total_tokens: int | None = None
    max_running: int | None = None
    num_spec_tokens: int = 0
    slots_per_request: int = 1
    state_slots: int | None = None
    prefix_caching: bool = True
    chunked_prefill_tokens: int = 8192
    spec_headroom: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSizes:
    """What the engine would log, for one data-parallel rank.

    tokens         max_total_num_tokens; window_tokens those of the window pool
    state_slots    max_mamba_cache_size
    max_running    max_running_requests
    state_bytes    of all slots and of the states between guessed tokens
    """

    tokens: int
    window_tokens: int = 0
    state_slots: int = 0
    max_running: int = 0
    state_bytes: int = 0


def token_cell(mixer: Mixer, options: CellOptions, rules: PoolRules) -> int:
    """Bytes that one layer keeps of one token on this rank; 0 for recurrent layers.

    Grouped-query `max(1, K/t) * (d + d_v) * b`, latent `(r + rope) * b` (the same on all ranks),
    sparse attention one index key of FP8 with its scales on top. Raises UnsupportedError.
    """
    match mixer:
        case GroupedQueryAttention():
            if mixer.cross or mixer.index_heads:
                what = "cross attention" if mixer.cross else "block-sparse attention"
                raise UnsupportedError(f"the pools of SGLang for {what} are not modelled")
            if mixer.shares_kv:
                return 0
            heads = max(1, mixer.num_kv_heads // options.ranks)
            return _grouped_bytes(
                heads, mixer.head_dim, mixer.v_head_dim or mixer.head_dim, options.kv_dtype
            )
        case LatentAttention():
            sparse = mixer.indexer is not None or mixer.index_shared
            return _latent_bytes(mixer, options, sparse=sparse) + _index_bytes(mixer, rules)
        case CompressedAttention():
            raise UnsupportedError(
                "the pools of SGLang for compressed attention (DeepSeek-V4) are not modelled",
                "plan it with --engine vllm",
            )
        case _:
            return 0


def _grouped_bytes(heads: int, key_size: int, value_size: int, kv_dtype: str) -> int:
    elements = heads * (key_size + value_size)
    if kv_dtype in FP4_KV:
        return elements // 2 + heads * key_size * 2 // _FP4_BLOCK
    size = elements * KV_ELEMENT_BYTES[kv_dtype]
    return size + elements // _MXFP8_BLOCK if kv_dtype == "mxfp8" else size


def _latent_bytes(mixer: LatentAttention, options: CellOptions, *, sparse: bool) -> int:
    elements = mixer.kv_lora_rank + mixer.qk_rope_head_dim
    if options.kv_dtype in FP4_KV:
        return elements // 2 + elements // _FP4_BLOCK
    if sparse and options.sparse_fp8_packed and options.kv_dtype == "fp8_e4m3":
        scales = mixer.kv_lora_rank // _SPARSE_BLOCK * 4
        return mixer.kv_lora_rank + scales + mixer.qk_rope_head_dim * 2
    return elements * KV_ELEMENT_BYTES[options.kv_dtype]


def _index_bytes(mixer: LatentAttention, rules: PoolRules) -> int:
    if mixer.indexer is None:
        if not (mixer.index_shared and rules.index_everywhere):
            return 0
        # A layer that re-uses the choice of another: the published index keys have 128 values.
        return _SPARSE_BLOCK + 4
    size = mixer.indexer.head_dim + mixer.indexer.head_dim // _SPARSE_BLOCK * 4
    return ceil_div(size, mixer.indexer.pool)


def state_cell(mixer: Mixer, options: CellOptions) -> int:
    """Bytes of one recurrent state of a layer on this rank; 0 for attention.

    Convolution inputs in bfloat16, `width/t * (kernel - 1)`, and the state in `mamba_ssm_dtype`.
    SGLang 0.5.23 configs/mamba_utils.py.
    """
    match mixer:
        case GatedDeltaNet():
            conv = _share(2 * mixer.key_size + mixer.value_size, options)
            heads = _share(mixer.num_v_heads, options)
            state = heads * mixer.v_head_dim * mixer.k_head_dim
            return _state(conv * (mixer.conv_kernel - 1), state, mixer.state_dtype, options)
        case KimiDeltaAttention():
            conv = _share(3 * mixer.num_heads * mixer.head_dim, options)
            state = _share(mixer.num_heads, options) * mixer.head_dim**2
            return _state(conv * (mixer.conv_kernel - 1), state, "", options)
        case Mamba2():
            groups = mixer.num_groups
            if groups % options.ranks:
                groups = options.ranks
            conv = _share(mixer.inner_size + 2 * groups * mixer.state_size, options)
            state = _share(mixer.num_heads, options) * mixer.head_dim * mixer.state_size
            return _state(conv * (mixer.conv_kernel - 1), state, "", options)
        case Mamba1():
            inner = _share(mixer.inner_size, options)
            return _state(inner * (mixer.conv_kernel - 1), inner * mixer.state_size, "", options)
        case LightningAttention():
            state = _share(mixer.num_heads, options) * mixer.head_dim**2
            return _state(0, state, mixer.state_dtype, options)
        case ShortConv():
            return _state(_share(mixer.size, options) * (mixer.kernel - 1), 0, "", options)
        case GroupedQueryAttention() | LatentAttention() | CompressedAttention():
            return 0
        case _:  # pragma: no cover
            assert_never(mixer)


def _state(conv: int, state: int, own_dtype: str, options: CellOptions) -> int:
    return conv * _CONV_BYTES + state * _STATE_BYTES[options.state_dtype or own_dtype or "float32"]


def _share(size: int, options: CellOptions) -> int:
    if size % options.ranks:
        raise InvalidDeploymentError(
            f"SGLang cannot split {size} recurrent channels or heads over {options.ranks} ranks",
            "choose another --tensor-parallel-size",
        )
    return size // options.ranks


def stage_cells(
    layers: Sequence[str],
    mixers: Mapping[str, Iterable[Mixer]],
    options: CellOptions,
    rules: PoolRules,
) -> PoolCells:
    """Bytes of one pipeline stage; `layers` names the block of every layer."""
    full = window = state = full_layers = window_layers = state_layers = 0
    for name in layers:
        for mixer in mixers[name]:
            slot = state_cell(mixer, options)
            size = token_cell(mixer, options, rules)
            state += slot
            state_layers += slot > 0
            if is_windowed(mixer) and options.hybrid_windows:
                window += size
                window_layers += 1
            else:
                full += size
                full_layers += not slot
    return PoolCells(
        full_bytes=full,
        window_bytes=window,
        state_bytes=state,
        full_layers=full_layers,
        window_layers=window_layers,
        state_layers=state_layers,
    )


def is_windowed(mixer: Mixer) -> bool:
    """Whether a layer attends to a window or chunk only."""
    return isinstance(mixer, GroupedQueryAttention) and bool(mixer.window or mixer.chunk)


def size_pools(
    rest_bytes: int, cells: PoolCells, options: PoolOptions, rules: PoolRules
) -> PoolSizes:
    """Pools of one rank from the bytes left after loading: tokens, window tokens, slots, requests.

    `tokens = rest // cell // page * page`; states first take `q / (1 + q)` of the rest.
    Everything is 0 where the rest holds no token. SGLang 0.5.23 `config_from_budget`.
    """
    slots = state_bytes = 0
    if cells.state_bytes:
        slots, state_bytes = _state_pool(rest_bytes, cells, options, rules)
        if slots <= 0:
            return PoolSizes(tokens=0)
    tokens = _full_tokens(max(0, rest_bytes - state_bytes), cells, options, rules)
    if options.max_total_tokens is not None:
        tokens = min(tokens, options.max_total_tokens // options.page_tokens * options.page_tokens)
    running = max_running_requests(tokens, slots, cells, options, rules)
    return PoolSizes(
        tokens=tokens + running * options.spec_headroom + (100 if options.spec_headroom else 0),
        window_tokens=_window_tokens(tokens, cells, options, rules),
        state_slots=slots,
        max_running=running,
        state_bytes=state_bytes,
    )


def _ratio(value: float) -> Fraction:
    return Fraction(str(value))


def _window_cap(options: PoolOptions) -> int:
    """Slots of the window pool that the given number of requests holds at worst (0.5.23)."""
    trailing = options.window_tokens + options.page_tokens
    trailing += _EVICTION_INTERVAL * (options.num_spec_tokens or 1)
    per_request = trailing + options.page_tokens + 2 * options.num_spec_tokens
    cap = per_request * (options.max_running or 1)
    cap += 2 * options.chunked_prefill_tokens + options.page_tokens
    return round_up(cap, options.page_tokens)


def _caps_windows(cells: PoolCells, options: PoolOptions, rules: PoolRules) -> bool:
    return (
        rules.window_request_cap
        and bool(cells.window_bytes and cells.full_bytes)
        and not options.prefix_caching
        and options.max_running is not None
        and options.chunked_prefill_tokens > 0
    )


def _full_tokens(rest_bytes: int, cells: PoolCells, options: PoolOptions, rules: PoolRules) -> int:
    page = options.page_tokens
    if not cells.full_bytes + cells.window_bytes:
        # A model or stage without attention: the engine takes what was asked for.
        return options.max_total_tokens or options.context_tokens
    if not cells.window_bytes or not cells.full_bytes:
        return rest_bytes // (cells.full_bytes + cells.window_bytes) // page * page
    if _caps_windows(cells, options, rules):
        left = max(0, rest_bytes - _window_cap(options) * cells.window_bytes)
        return left // cells.full_bytes // page * page
    cell = cells.full_bytes + _ratio(options.window_ratio) * cells.window_bytes
    if not rules.windows_by_cell:
        equal = cells.full_bytes + cells.window_bytes
        rest_bytes = rest_bytes // equal // page * page * equal
    return int(rest_bytes / cell) // page * page


def _window_tokens(tokens: int, cells: PoolCells, options: PoolOptions, rules: PoolRules) -> int:
    if not cells.window_bytes:
        return 0
    if not cells.full_bytes:
        return tokens
    if _caps_windows(cells, options, rules):
        return _window_cap(options)
    return int(tokens * _ratio(options.window_ratio)) // options.page_tokens * options.page_tokens


def _state_pool(
    rest_bytes: int, cells: PoolCells, options: PoolOptions, rules: PoolRules
) -> tuple[int, int]:
    """(slots, bytes of slots and of states between guessed tokens)."""
    size, guessed = cells.state_bytes, options.num_spec_tokens
    padding = 1 if rules.padded_states else 0
    kind: StateSpeculation = rules.state_speculation if guessed else "none"
    running = options.max_running or _LEAST_REQUESTS
    held = 0
    if kind == "up_front":
        held = size * running * guessed
    share = _ratio(options.state_ratio)
    budget = int(max(0, rest_bytes - held) * share / (1 + share))
    per_request = options.slots_per_request
    if options.state_slots is not None:
        slots = options.state_slots
    elif kind == "joint":
        factor = 1 + Fraction(guessed, per_request)
        slots = int((budget - padding * size * (1 + guessed)) / (size * factor))
    elif kind == "per_slot":
        slots = budget // size // (1 + guessed)
    else:
        slots = (budget - padding * size) // size
    if kind == "joint":
        held = size * (min(running, slots // per_request) + padding) * guessed
    elif kind == "per_slot":
        held = size * slots * guessed
    return slots, (slots + padding) * size + held


def max_running_requests(
    tokens: int, state_slots: int, cells: PoolCells, options: PoolOptions, rules: PoolRules
) -> int:
    """Requests at once on one data-parallel rank: `tokens / context * 512` within 2048 to 4096."""
    estimate = int(tokens / options.context_tokens * 512)
    estimate = max(min(estimate, _MOST_REQUESTS), _LEAST_REQUESTS)
    running = estimate if options.max_running is None else options.max_running
    if options.max_running is not None and rules.estimate_caps_given:
        running = min(running, estimate)
    elif rules.half_of_tokens:
        running = min(running, tokens // 2)
    if cells.state_bytes:
        running = min(running, state_slots // options.slots_per_request)
    return running


def needed_pool_bytes(
    context_tokens: int,
    sequences: int,
    cells: PoolCells,
    options: PoolOptions,
    rules: PoolRules,
) -> int:
    """Bytes that `size_pools` needs to hold so many sequences of this length at once.

    A sequence takes whole pages; in the window pool `min(context, window)` and a page more.
    """
    page = options.page_tokens
    tokens = sequences * round_up(context_tokens, page)
    windows = sequences * (round_up(min(context_tokens, options.window_tokens), page) + page)
    size = _token_bytes(tokens, windows, cells, options, rules)
    if not cells.state_bytes:
        return size
    padding = 1 if rules.padded_states else 0
    guessed = options.num_spec_tokens
    slots = sequences * options.slots_per_request
    if options.state_slots is not None:
        held = (options.state_slots + padding) * cells.state_bytes
        return size + held + _given_speculation_bytes(cells, options, rules)
    share = _ratio(options.state_ratio)
    states = (slots + padding) * cells.state_bytes
    if guessed and rules.state_speculation != "none":
        states += (sequences + padding) * cells.state_bytes * guessed
    total = max(-(-size * (1 + share) // 1), -(-states * (1 + share) // share))
    return int(total) + cells.full_bytes * page


def _given_speculation_bytes(cells: PoolCells, options: PoolOptions, rules: PoolRules) -> int:
    if not options.num_spec_tokens:
        return 0
    return _state_pool(0, cells, options, rules)[1] - cells.state_bytes * (
        (options.state_slots or 0) + (1 if rules.padded_states else 0)
    )


def _token_bytes(
    tokens: int, windows: int, cells: PoolCells, options: PoolOptions, rules: PoolRules
) -> int:
    if not cells.window_bytes:
        return tokens * cells.full_bytes
    if not cells.full_bytes:
        return tokens * cells.window_bytes
    if _caps_windows(cells, options, rules):
        return tokens * cells.full_bytes + _window_cap(options) * cells.window_bytes
    ratio = _ratio(options.window_ratio)
    tokens = round_up(max(tokens, int(-(-windows // ratio))), options.page_tokens)
    cell = cells.full_bytes + ratio * cells.window_bytes
    size = int(-(-tokens * cell // 1))
    if rules.windows_by_cell:
        return size
    equal = cells.full_bytes + cells.window_bytes
    return round_up(size, equal * options.page_tokens)


def longest_context(
    stages: Sequence[tuple[int, PoolCells]],
    sequences: int,
    most_tokens: int,
    options: PoolOptions,
    rules: PoolRules,
) -> int:
    """Longest context, at most `most_tokens`, of which so many sequences fit; 0 if none.

    `stages`: bytes left after loading and cells of every pipeline stage.
    """

    def fits(tokens: int) -> bool:
        return all(
            needed_pool_bytes(tokens, sequences, cells, options, rules) <= rest
            for rest, cells in stages
        )

    return largest_that(fits, most_tokens)
