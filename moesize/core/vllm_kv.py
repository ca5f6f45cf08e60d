"""vLLM's KV-cache planner as a pure function: which pages, which groups, how many blocks.

    layers of a rank -> group_layers() -> KvLayout -> plan_kv() -> KvPlan

The layout depends on the model and the parallel sizes alone, so a sweep over memory or context
makes it once. Formulas follow `vllm/v1/core/kv_cache_utils.py` and `vllm/v1/kv_cache_interface.py`
of vLLM 0.32.0; what other releases do differently is a value of KvRules. The V0 engine (up to 0.10)
has one group, the same block in every layer, and no windows.

Words: a *state* is what one token (or one group of compressed tokens, or one recurrent layer)
stores; a *page* is one block of one layer; a *block* is one page in every layer of a group, and
belongs to one group at a time.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, assert_never

from moesize.core.errors import InvalidDeploymentError, UnsupportedError
from moesize.core.records import dataclass
from moesize.core.units import ceil_div, round_up

if TYPE_CHECKING:
    from collections.abc import Sequence

LayerKind = Literal["full", "mla", "sliding", "sliding_mla", "chunked", "ring", "mamba"]
MambaCacheMode = Literal["align", "none", "all"]
PageUnification = Literal["never", "multiples", "pads"]
TokensLogged = Literal["per_request", "per_group"]

_FULL: frozenset[LayerKind] = frozenset(("full", "mla"))
_LOCAL: frozenset[LayerKind] = frozenset(("sliding", "sliding_mla", "chunked"))


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPages:
    """How the layers of one kind on one rank store their cache.

    `state_bytes` covers all KV heads of the rank, keys and values; for `mamba` it is the whole
    recurrent state. `window_tokens` is the window of a sliding kind, the chunk of a chunked one.
    `kernel_block_tokens` says that a block must consist of whole kernel blocks of at most so many
    tokens (0: no such demand). `num_checkpoint_states` are states that a layer exports while it
    prefills, for prefix caching; without `caches_prefixes` (a model without attention) there is one
    state whatever the mode. `variant` keeps kinds apart that store as much but not the same.
    """

    kind: LayerKind
    num_layers: int
    block_tokens: int
    state_bytes: int
    tokens_per_state: int = 1
    page_alignment_bytes: int = 1
    padded_page_bytes: int | None = None
    stride_alignment_bytes: int = 1
    kernel_block_tokens: int = 0
    window_tokens: int | None = None
    num_spec_states: int = 0
    num_checkpoint_states: int = 0
    caches_prefixes: bool = True
    variant: str = ""

    def __post_init__(self) -> None:
        if self.kind in _LOCAL and not self.window_tokens:
            raise ValueError(f"{self.kind} layers need window_tokens")
        if min(self.block_tokens, self.state_bytes, self.tokens_per_state) < 1:
            raise ValueError("block_tokens, state_bytes and tokens_per_state must be positive")
        if self.num_layers < 0:
            raise ValueError(f"num_layers ({self.num_layers}) must not be negative")

    @property
    def page_bytes(self) -> int:
        """Bytes of one block of one layer, padding included."""
        return self._page_bytes(self.block_tokens)

    @property
    def stride_bytes(self) -> int:
        """Distance of two blocks where every layer has a region of its own."""
        return round_up(self.page_bytes, self.alignment_bytes)

    @property
    def alignment_bytes(self) -> int:
        """What the distance between two blocks must be a multiple of."""
        if self.kernel_block_tokens:
            kernel_tokens = math.gcd(self.kernel_block_tokens, self.block_tokens)
            return 1 if kernel_tokens == self.block_tokens else self._page_bytes(kernel_tokens)
        return self.stride_alignment_bytes

    def _page_bytes(self, block_tokens: int) -> int:
        if self.kind == "mamba":
            return self.padded_page_bytes or self.state_bytes
        content = self.state_bytes * (block_tokens // self.tokens_per_state)
        aligned = round_up(content, self.page_alignment_bytes)
        if aligned != content:
            return aligned
        return self.padded_page_bytes or content

    def blocks_per_request(self, context_tokens: int, settings: KvSettings) -> int:
        """Blocks that one request of `context_tokens` holds in a group of this kind, at most."""
        match self.kind:
            case "full" | "mla":
                local = ceil_div(context_tokens, settings.decode_context_parallel_size)
                return ceil_div(local, self.block_tokens)
            case "sliding" | "sliding_mla":
                # The window may start inside a block, hence one block more.
                held = (self.window_tokens or 0) - 1 + settings.in_flight_tokens
                return ceil_div(min(held, context_tokens), self.block_tokens) + 1
            case "chunked":
                held = (self.window_tokens or 0) + settings.in_flight_tokens
                return ceil_div(min(held, context_tokens), self.block_tokens)
            case "ring":
                return 1
            case "mamba":
                resident = 1
                if self.caches_prefixes and settings.mamba_cache_mode == "align":
                    resident = 2 + self.num_checkpoint_states
                elif self.caches_prefixes and settings.mamba_cache_mode == "all":
                    resident = ceil_div(context_tokens, self.block_tokens)
                return resident + self.num_spec_states
            case _:  # pragma: no cover
                assert_never(self.kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvRules:
    """What differs between vLLM releases; the defaults are those of 0.29 to 0.33."""

    # Groups grow to the largest bucket of layers if that is less than this share of the smallest.
    widen_below_percent: int = 150
    # Mixed page sizes side by side in one block (layouts with the block outermost).
    packs_mixed_pages: bool = True
    # The block that no request can use is left out when a context is said to fit.
    reserves_null_block: bool = True
    # Layers keep a window of tokens only; else all of them, as full attention does.
    hybrid_manager: bool = True
    # The same for layers that attend in chunks (Llama 4).
    chunked_windows: bool = True
    # Pages of several sizes are made equal: not at all, by longer blocks, or by padding too.
    unifies_pages: PageUnification = "pads"
    # What the log calls tokens: blocks of one group, or what requests of full length can hold.
    tokens_logged: TokensLogged = "per_request"
    # Tokens scheduled and not settled count in windows for one batch, or for all in flight.
    counts_all_in_flight: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSettings:
    """Engine settings that the planner looks at.

    `max_concurrent_batches` is 2 with asynchronous scheduling on one pipeline stage, else the
    number of stages (one more with asynchronous scheduling). `block_outermost` is the cache layout
    that DeepSeek-V4 class models ask for.
    """

    max_model_len: int
    max_num_batched_tokens: int
    max_concurrent_batches: int = 2
    mamba_cache_mode: MambaCacheMode = "align"
    decode_context_parallel_size: int = 1
    block_outermost: bool = False
    hybrid_manager: bool = True

    @property
    def in_flight_tokens(self) -> int:
        """Tokens scheduled and not yet settled: their cache cannot be freed."""
        return self.max_num_batched_tokens * self.max_concurrent_batches


@dataclass(frozen=True, slots=True, kw_only=True)
class KvGroup:
    """Layers that share one block table. `stage_layers[i][s]`: layers of kind i on stage s."""

    layers: tuple[LayerPages, ...]
    stage_layers: tuple[tuple[int, ...], ...]

    @property
    def kind(self) -> LayerKind:
        return self.layers[0].kind

    @property
    def block_tokens(self) -> int:
        return self.layers[0].block_tokens

    @property
    def num_layers(self) -> int:
        """Layers of this group over all pipeline stages."""
        return sum(map(sum, self.stage_layers))

    def page_bytes(self, stage: int = 0) -> int:
        """Bytes of one block in all layers of this group on one stage."""
        return sum(
            pages.page_bytes * counts[stage]
            for pages, counts in zip(self.layers, self.stage_layers, strict=True)
        )

    def stride_bytes(self, stage: int = 0) -> int:
        """The same with every layer's blocks padded to their alignment."""
        return sum(
            pages.stride_bytes * counts[stage]
            for pages, counts in zip(self.layers, self.stage_layers, strict=True)
        )

    def blocks_per_request(self, context_tokens: int, settings: KvSettings) -> int:
        """Blocks of this group that one request of `context_tokens` holds."""
        return self.layers[0].blocks_per_request(context_tokens, settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """The groups of a model and what one block costs on each pipeline stage."""

    groups: tuple[KvGroup, ...]
    stage_block_bytes: tuple[int, ...]

    @property
    def block_tokens(self) -> int:
        """Tokens of the smallest block: what vLLM reports as its block size."""
        return min((group.block_tokens for group in self.groups if group.kind != "ring"), default=0)

    def blocks_per_request(self, context_tokens: int, settings: KvSettings) -> int:
        """Blocks, over all groups, of one request of `context_tokens`."""
        return sum(group.blocks_per_request(context_tokens, settings) for group in self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvPlan:
    """What vLLM would report for this memory, and what one request needs.

    `num_blocks` counts the null block, which no request can use; `tokens_logged` and
    `max_concurrency` are what the engine prints and count it too. `request_bytes` is the memory of
    one stage (the one where a block costs most) that serves one request of `max_model_len`.
    `max_context` is the longest request that fits, at most `max_model_len`.
    """

    layout: KvLayout
    settings: KvSettings
    num_blocks: int
    blocks_per_request: int
    tokens_logged: int
    max_concurrency: float
    request_bytes: int
    max_context: int

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block on the stage where it costs most."""
        return max(self.layout.stage_block_bytes, default=0)

    @property
    def fits_one_request(self) -> bool:
        return self.max_context >= self.settings.max_model_len

    def num_sequences(self, context_tokens: int) -> int:
        """Requests of `context_tokens` held at once, the null block left out."""
        needed = self.layout.blocks_per_request(context_tokens, self.settings)
        return max(self.num_blocks - 1, 0) // needed if needed else 0


def plan_kv(
    layout: KvLayout,
    settings: KvSettings,
    available_bytes: int | Sequence[int],
    rules: KvRules | None = None,
) -> KvPlan:
    """Blocks, tokens and concurrency for the cache memory of one rank per pipeline stage.

    `num_blocks = min over stages of floor(available / bytes per block)`; tokens as logged are
    `int(num_blocks / blocks_per_request * max_model_len)`, vLLM 0.32.0, `get_kv_cache_configs`; up
    to 0.19 they are `num_blocks // groups * block`.
    """
    rules = rules or KvRules()
    stages = layout.stage_block_bytes
    memory = available_bytes
    if isinstance(memory, int):
        memory = [memory] * len(stages)
    num_blocks = min(
        (
            max(size_bytes, 0) // block_bytes
            for size_bytes, block_bytes in zip(memory, stages, strict=True)
            if block_bytes
        ),
        default=1,
    )
    per_request = layout.blocks_per_request(settings.max_model_len, settings)
    null_blocks = 1 if rules.reserves_null_block else 0
    concurrency = num_blocks / per_request if per_request else 0.0
    if rules.tokens_logged == "per_group" and layout.groups:
        smallest = min(group.block_tokens for group in layout.groups)
        tokens = num_blocks // len(layout.groups) * smallest
        tokens *= settings.decode_context_parallel_size
    else:
        tokens = int(concurrency * settings.max_model_len)
    return KvPlan(
        layout=layout,
        settings=settings,
        num_blocks=num_blocks,
        blocks_per_request=per_request,
        tokens_logged=tokens,
        max_concurrency=concurrency,
        request_bytes=(per_request + null_blocks) * max(stages, default=0),
        max_context=max_context_tokens(layout, settings, num_blocks - null_blocks),
    )


def max_context_tokens(layout: KvLayout, settings: KvSettings, usable_blocks: int) -> int:
    """Longest request, at most `max_model_len`, that `usable_blocks` hold; 0 if not one token."""
    if layout.blocks_per_request(settings.max_model_len, settings) <= usable_blocks:
        return settings.max_model_len
    low, high = 0, settings.max_model_len
    # low fits (or is 0), high does not.
    while high - low > 1:
        middle = (low + high) // 2
        if layout.blocks_per_request(middle, settings) <= usable_blocks:
            low = middle
        else:
            high = middle
    return low


def group_layers(
    stages: Sequence[Sequence[LayerPages]],
    settings: KvSettings,
    rules: KvRules | None = None,
) -> KvLayout:
    """Split the layers of all pipeline stages into groups that share block tables.

    One list of LayerPages per stage, in the order in which the kinds first appear in the model.
    vLLM 0.32.0, `get_kv_cache_groups` and `_project_kv_cache_groups_to_worker`.
    Raises UnsupportedError where vLLM refuses too.
    """
    rules = rules or KvRules()
    kinds = _merge_stages(stages)
    if settings.decode_context_parallel_size > 1 and any(
        pages.kind in ("sliding", "sliding_mla") for pages, _ in kinds
    ):
        raise InvalidDeploymentError(
            "vLLM cannot use decode context parallelism with sliding-window layers",
            "drop --decode-context-parallel-size",
        )
    if not (settings.hybrid_manager and rules.hybrid_manager):
        kinds = _promote_local(kinds)
    elif not rules.chunked_windows:
        kinds = _promote_chunked(kinds)
    groups = _make_groups(kinds, settings, rules)
    return KvLayout(
        groups=groups,
        stage_block_bytes=tuple(
            _block_bytes(groups, stage, settings.block_outermost) for stage in range(len(stages))
        ),
    )


# A kind of layer (its num_layers is not looked at any more) and its layers on every stage.
_Kind = tuple[LayerPages, tuple[int, ...]]


def _merge_stages(stages: Sequence[Sequence[LayerPages]]) -> list[_Kind]:
    counts: dict[LayerPages, list[int]] = {}
    for stage, layers in enumerate(stages):
        for pages in layers:
            if pages.num_layers:
                key = replace(pages, num_layers=0)
                counts.setdefault(key, [0] * len(stages))[stage] += pages.num_layers
    return [(pages, tuple(layers)) for pages, layers in counts.items()]


def _make_groups(kinds: list[_Kind], settings: KvSettings, rules: KvRules) -> tuple[KvGroup, ...]:
    if not kinds:
        return ()
    if len(kinds) == 1 or _is_uniform_type([pages for pages, _ in kinds]):
        return (_group(kinds),)
    page_sizes = {pages.page_bytes for pages, _ in kinds}
    if rules.packs_mixed_pages and settings.block_outermost and len(page_sizes) > 1:
        return _packed_groups(kinds)
    try:
        unified = _unify_pages(kinds, rules.unifies_pages)
    except UnsupportedError:
        promoted = _full_allocation_fallback(kinds)
        if promoted is None:
            raise
        return (_group(promoted),)
    return _equal_groups(unified, rules)


def _group(kinds: Sequence[_Kind]) -> KvGroup:
    return KvGroup(
        layers=tuple(pages for pages, _ in kinds),
        stage_layers=tuple(counts for _, counts in kinds),
    )


def _is_uniform_type(layers: Sequence[LayerPages]) -> bool:
    """Whether all layers always need the same token slots, so that one block table serves all."""
    first = layers[0]
    return all(_same_slots(first, other) for other in layers[1:])


def _same_slots(first: LayerPages, other: LayerPages) -> bool:
    if first.block_tokens != other.block_tokens:
        return False
    match first.kind:
        case "full" | "mla":
            return other.kind in _FULL
        case "sliding":
            same_kind = other.kind in ("sliding", "sliding_mla")
            return same_kind and other.window_tokens == first.window_tokens
        case "sliding_mla" | "chunked":
            return other.kind == first.kind and other.window_tokens == first.window_tokens
        case "ring":
            return other.kind == "ring"
        case "mamba":
            return (
                other.kind == "mamba"
                and other.page_bytes == first.page_bytes
                and other.num_spec_states == first.num_spec_states
                and other.num_checkpoint_states == first.num_checkpoint_states
            )
        case _:  # pragma: no cover
            assert_never(first.kind)


def _unify_pages(kinds: list[_Kind], how: PageUnification) -> list[_Kind]:
    """Give all layers the largest page: more tokens per block if that divides, else padding."""
    largest = max(pages.page_bytes for pages, _ in kinds)
    for pages, _ in kinds:
        differs = pages.page_bytes != largest
        if differs and (how == "never" or (how == "multiples" and largest % pages.page_bytes)):
            raise UnsupportedError(
                f"this vLLM cannot give a page of {pages.page_bytes} bytes the size of another "
                f"layer's, {largest} bytes",
                "use a later version",
            )
    return [(_with_page_bytes(pages, largest), counts) for pages, counts in kinds]


def _with_page_bytes(pages: LayerPages, page_bytes: int) -> LayerPages:
    if pages.page_bytes == page_bytes:
        return pages
    if pages.kind == "mamba":
        return replace(pages, padded_page_bytes=page_bytes)
    if page_bytes % pages.page_bytes == 0:
        block_tokens = pages.block_tokens * (page_bytes // pages.page_bytes)
        return replace(pages, block_tokens=block_tokens)
    if pages.kind == "mla":
        raise UnsupportedError(
            f"vLLM cannot give a latent-attention page of {pages.page_bytes} bytes"
            f" the size of another layer's, {page_bytes} bytes",
            "choose another block size or KV-cache dtype",
        )
    return replace(pages, padded_page_bytes=page_bytes)


def _equal_groups(kinds: list[_Kind], rules: KvRules) -> tuple[KvGroup, ...]:
    """Groups of equally many layers; the last ones of a kind may be short (padding layers)."""
    buckets: dict[LayerPages, list[_Kind]] = {}
    for pages, counts in kinds:
        # Full-attention kinds that differ in nothing but the window are one bucket.
        key = replace(pages, window_tokens=None) if pages.kind in _FULL else pages
        buckets.setdefault(key, []).append((pages, counts))
    sizes = [sum(sum(counts) for _, counts in bucket) for bucket in buckets.values()]
    smallest, largest = min(sizes), max(sizes)
    group_size = largest if largest * 100 < smallest * rules.widen_below_percent else smallest
    groups: list[KvGroup] = []
    for (pages, bucket), size in zip(buckets.items(), sizes, strict=True):
        num_groups = ceil_div(size, group_size)
        # Layer i of the bucket goes to group i mod num_groups, so that stages share evenly.
        shares = _deal([counts for _, counts in bucket], num_groups)
        groups += [KvGroup(layers=(pages,), stage_layers=(share,)) for share in shares]
    return tuple(groups)


def _deal(bucket: Sequence[Sequence[int]], num_groups: int) -> list[tuple[int, ...]]:
    """Layers of every stage in every group when layers are dealt out one by one, in order."""
    num_stages = len(bucket[0])
    shares = [[0] * num_stages for _ in range(num_groups)]
    position = 0
    for counts in bucket:
        for stage, count in enumerate(counts):
            for group, share in enumerate(shares):
                before = ceil_div(position - group, num_groups)
                share[stage] += ceil_div(position + count - group, num_groups) - before
            position += count
    return [tuple(share) for share in shares]


def _packed_groups(kinds: list[_Kind]) -> tuple[KvGroup, ...]:
    """Groups for pages of several sizes side by side in one block; the widest sets its bytes.

    vLLM 0.32.0, `_get_packed_kv_cache_groups`: kinds that need the same slots form a bucket; a
    bucket with as many layers of every page size is a repeated pattern and may be split.
    """
    buckets: list[_Bucket] = []
    for pages, counts in kinds:
        for bucket in buckets:
            if _same_slots(bucket.kinds[0][0], pages):
                bucket.kinds.append((pages, counts))
                break
        else:
            buckets.append(_Bucket([(pages, counts)]))
    repeats_per_group = _repeats_per_group(buckets)

    def num_groups_for(bucket: _Bucket) -> int:
        if bucket.is_balanced and repeats_per_group:
            return ceil_div(bucket.repeats, repeats_per_group)
        return 1

    def holds_states(bucket: _Bucket) -> bool:
        kind = bucket.kinds[0][0].kind
        unsplit = not repeats_per_group and kind in ("sliding", "sliding_mla")
        return kind in ("mamba", "ring") or unsplit

    # What a block must hold however the state buckets are split: one state of each at least.
    anchor_bytes = max(
        bucket.widest_bytes(bucket.num_layers if holds_states(bucket) else num_groups_for(bucket))
        for bucket in buckets
    )
    groups: list[KvGroup] = []
    for bucket in buckets:
        num_groups = num_groups_for(bucket)
        if holds_states(bucket):
            states = max(anchor_bytes // bucket.kinds[0][0].page_bytes, 1)
            num_groups = max(num_groups, ceil_div(bucket.num_layers, states))
        groups += bucket.split(num_groups)
    return tuple(groups)


class _Bucket:
    """Kinds that need the same token slots, and how many layers there are of each page size."""

    __slots__ = ("kinds",)

    def __init__(self, kinds: list[_Kind]) -> None:
        self.kinds = kinds

    @property
    def by_page_bytes(self) -> dict[int, int]:
        layers: dict[int, int] = {}
        for pages, counts in self.kinds:
            layers[pages.page_bytes] = layers.get(pages.page_bytes, 0) + sum(counts)
        return layers

    @property
    def num_layers(self) -> int:
        return sum(sum(counts) for _, counts in self.kinds)

    @property
    def repeats(self) -> int:
        return max(self.by_page_bytes.values())

    @property
    def is_balanced(self) -> bool:
        return len(set(self.by_page_bytes.values())) == 1

    @property
    def is_mixed(self) -> bool:
        return len(self.by_page_bytes) > 1

    def widest_bytes(self, num_groups: int) -> int:
        return sum(
            ceil_div(layers, num_groups) * page_bytes
            for page_bytes, layers in self.by_page_bytes.items()
        )

    def split(self, num_groups: int) -> list[KvGroup]:
        if num_groups == 1:
            return [_group(self.kinds)]
        # One page size at a time: its layers are dealt out in model order, stage by stage.
        parts: list[list[_Kind]] = [[] for _ in range(num_groups)]
        for page_bytes in self.by_page_bytes:
            same = [kind for kind in self.kinds if kind[0].page_bytes == page_bytes]
            total = [sum(stage) for stage in zip(*(counts for _, counts in same), strict=True)]
            for part, share in zip(parts, _deal([total], num_groups), strict=True):
                part.append((same[0][0], share))
        return [_group(part) for part in parts]


def _repeats_per_group(buckets: Sequence[_Bucket]) -> int:
    """Pattern repeats per group with the least padding; 0 if no bucket mixes page sizes evenly."""
    balanced = [bucket for bucket in buckets if bucket.is_balanced]
    floor = max((bucket.repeats for bucket in balanced if bucket.is_mixed), default=0)
    if not floor:
        return 0
    repeats = [bucket.repeats for bucket in balanced]
    # Ties go to the larger size.
    return min(
        range(floor, max(*repeats, floor) + 1),
        key=lambda size: (sum(-count % size for count in repeats), -size),
    )


def _promote_local(kinds: list[_Kind]) -> list[_Kind]:
    """Cache of local-attention layers kept for all tokens (hybrid manager switched off)."""
    layers = [pages for pages, _ in kinds]
    if not layers or _is_uniform_type(layers):
        return kinds
    full_blocks = {pages.block_tokens for pages in layers if pages.kind in _FULL}
    if full_blocks and any(pages.kind in _LOCAL for pages in layers):
        promoted = [(_as_full(pages, full_blocks), counts) for pages, counts in kinds]
    else:
        promoted = kinds
    if not _is_uniform_type([pages for pages, _ in promoted]):
        raise UnsupportedError(
            "vLLM cannot keep these layers without its hybrid KV-cache manager",
            "drop --disable-hybrid-kv-cache-manager",
        )
    return promoted


def _promote_chunked(kinds: list[_Kind]) -> list[_Kind]:
    """Chunked attention before it had a cache of its own: kept for all tokens."""
    full_blocks = {pages.block_tokens for pages, _ in kinds if pages.kind in _FULL}
    return [
        (_as_full(pages, full_blocks) if pages.kind == "chunked" else pages, counts)
        for pages, counts in kinds
    ]


def _as_full(pages: LayerPages, full_blocks: set[int]) -> LayerPages:
    if pages.kind not in _LOCAL:
        return pages
    block_tokens = next(iter(full_blocks)) if len(full_blocks) == 1 else pages.block_tokens
    padded = pages.padded_page_bytes
    if padded is not None:
        padded = max(padded, pages.state_bytes * (block_tokens // pages.tokens_per_state))
    return replace(
        pages,
        kind="mla" if pages.kind == "sliding_mla" else "full",
        block_tokens=block_tokens,
        padded_page_bytes=padded,
    )


def _full_allocation_fallback(kinds: list[_Kind]) -> list[_Kind] | None:
    """Latent attention next to plain sliding windows whose pages cannot be made equal."""
    present = {pages.kind for pages, _ in kinds}
    if present & {"sliding_mla", "chunked"} or not {"mla", "sliding"} <= present:
        return None
    try:
        return _promote_local(kinds)
    except UnsupportedError:
        return None


def _block_bytes(groups: Sequence[KvGroup], stage: int, block_outermost: bool) -> int:
    """Bytes of one block on one stage: the widest group's."""
    if not block_outermost:
        return max((group.stride_bytes(stage) for group in groups), default=0)
    widest = max((group.page_bytes(stage) for group in groups), default=0)
    alignments = [
        pages.alignment_bytes
        for group in groups
        for pages, counts in zip(group.layers, group.stage_layers, strict=True)
        if counts[stage]
    ]
    return round_up(widest, math.lcm(*alignments))
