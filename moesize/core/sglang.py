"""SGLang: from a model, its stored weights, a GPU and a request to ledgers and capacity.

The order is the engine's own: weights are loaded into what is free after the ranks have met, the
static fraction of that free memory less the weights becomes the pools, and what lies outside the
fraction has to hold activations, CUDA graphs and tables. Nothing is profiled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesize.core.checkpoint import keep
from moesize.core.deployment import POOL_FIELDS, defaulted_names
from moesize.core.engine import Constant, Constants, EngineAnswer, EngineProfile, RankCost
from moesize.core.errors import (
    UnsupportedError,
)
from moesize.core.feed_forward import DenseMlp
from moesize.core.inventory import moe_of
from moesize.core.ledger import Category, GpuLedger, MemoryItem, exact_item
from moesize.core.plan import KvSummary, Note
from moesize.core.records import dataclass
from moesize.core.recurrent import Mamba1
from moesize.core.sglang_budget import (
    prefill_graph_mib,
)
from moesize.core.sglang_pool import (
    PoolCells,
    PoolRules,
    PoolSizes,
    longest_context,
    needed_pool_bytes,
    size_pools,
    stage_cells,
    token_cell,
)
from moesize.core.sglang_resolve import (
    Resolved,
    SglangProfile,
    capability_text,
    is_multimodal,
    resolve,
)
from moesize.core.sglang_settings import SglangSettings as SglangSettings
from moesize.core.sglang_weights import (
    mtp_weights,
    rotary_bytes,
    sglang_stages,
    sglang_weights,
)
from moesize.core.units import GIB, MIB, ceil_div, format_gib, round_up
from moesize.core.vllm_weights import RankWeights, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moesize.core.checkpoint import StoredEntry
    from moesize.core.deployment import Request
    from moesize.core.gpu import GpuSpec
    from moesize.core.model_spec import ModelSpec

# Fields of a Request that this engine plans; others are refused, never ignored.
PLANS = POOL_FIELDS | {
    "data_parallel_size",
    "block_tokens",
    "data_parallel_attention",
    "num_redundant_experts",
    "num_spec_tokens",
    "mtp",
    "draft",
}

_VLM_CACHE_BYTES = 100 * MIB
_SYMMETRIC_BYTES = 4 * GIB


def rules_of(profile: EngineProfile) -> SglangProfile:
    """The planner's view of what the data files say about a version."""
    return SglangProfile(
        version=profile.version,
        constants=profile.constants,
        facts=profile.facts,
        pool_rules=PoolRules(**profile.facts["pool_rules"]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _StagePlan:
    """One pipeline stage: what its fullest rank holds and what its pools hold."""

    stage: Stage
    weights: RankWeights
    draft: RankWeights | None
    cells: PoolCells
    sizes: PoolSizes
    rest: tuple[int, int, int]
    needed: int
    items: tuple[MemoryItem, ...]
    budget: int


def plan_sglang(
    spec: ModelSpec,
    stored: tuple[StoredEntry, ...],
    gpu: GpuSpec,
    request: Request,
    profile: SglangProfile,
) -> EngineAnswer:
    """Plan one server (one replica, where --dp-size makes several) on equal GPUs.

    Raises InvalidDeploymentError for settings SGLang refuses, UnsupportedError for what is unknown.
    """
    _check_model(spec)
    resolved = resolve(spec, gpu, request, profile)
    p = resolved.layout.pipeline_parallel_size
    stages = sglang_stages(spec.num_layers, p, rest_last=profile.facts["pipeline_rest_last"])
    plans = _plan_stages(spec, stored, gpu, request, profile, resolved, stages)
    shortfalls = [plan.needed - plan.rest[0] for plan in plans]
    limiting = max(range(len(plans)), key=lambda i: shortfalls[i])
    worst = plans[limiting]
    # All stages allocate what the smallest allows.
    sizes = min((plan.sizes for plan in plans), key=lambda found: found.tokens)
    usable = gpu.usable_memory().best_bytes
    tp = resolved.layout.tensor_parallel_size
    ledgers = tuple(
        GpuLedger(
            rank=plan.stage.index * tp,
            pp_stage=plan.stage.index,
            usable_bytes=usable,
            budget_bytes=plan.budget,
            items=plan.items,
        )
        for plan in plans
    )
    refusal = _refusal(plans, resolved, request, profile.pool_rules)
    return EngineAnswer(
        deployment=_deployment(gpu, request, profile, resolved, sizes),
        defaulted=defaulted_names(request),
        ledgers=ledgers,
        kv=_kv_summary(spec, plans, limiting, sizes, resolved, profile),
        limiting_rank=worst.stage.index * tp,
        limiting=RankCost(
            weights_by_group=worst.weights.by_group,
            scale_bytes=worst.weights.scale_bytes,
            parameter_bytes=worst.weights.parameter_bytes,
            num_layers=len(worst.stage.layers),
            recurrent_bytes=worst.cells.state_bytes,
            attention_dp=resolved.attention_dp,
        ),
        warnings=(*resolved.notes, *_warnings(spec, gpu, ledgers[limiting], resolved, sizes)),
        refusal=refusal,
    )


def _check_model(spec: ModelSpec) -> None:
    mixers = [mixer for block in spec.blocks for mixer in block.mixers]
    if spec.encoder_layout or not spec.num_layers:
        raise UnsupportedError("encoders in SGLang are not modelled", "plan it with --engine vllm")
    if any(isinstance(mixer, Mamba1) for mixer in mixers):
        raise UnsupportedError(
            "Mamba-1 layers in SGLang are not modelled", "plan it with --engine vllm"
        )


def _plan_stages(
    spec: ModelSpec,
    stored: tuple[StoredEntry, ...],
    gpu: GpuSpec,
    request: Request,
    profile: SglangProfile,
    resolved: Resolved,
    stages: tuple[Stage, ...],
) -> tuple[_StagePlan, ...]:
    facts, rules = profile.facts, profile.pool_rules
    usable = gpu.usable_memory().best_bytes
    world = resolved.layout.tensor_parallel_size * resolved.layout.pipeline_parallel_size
    outside = _start_items(world, profile.constants)
    free = [usable - sum(item.size_bytes for item in outside)]
    free.append(usable - sum(item.high_bytes for item in outside))
    free.append(usable - sum(item.low_bytes for item in outside))
    weights = _stage_weights(spec, stored, gpu, resolved, stages, profile)
    drafts = _draft_weights(spec, stored, gpu, request, resolved, stages, facts)
    mixers = {block.name: block.mixers for block in spec.blocks}
    all_cells = [
        stage_cells([spec.layout[i] for i in stage.layers], mixers, resolved.cell_options, rules)
        for stage in stages
    ]
    widest_state = max((cells.state_bytes for cells in all_cells), default=0)
    rotary = rotary_bytes(spec)
    plans = []
    for stage, rank, draft, own in zip(stages, weights, drafts, all_cells, strict=True):
        cells = _with_draft(request, resolved, own, facts, rules, widest_state)
        charged = [*_weight_items(rank, rotary, resolved)]
        if draft is not None:
            charged.append(_draft_item(draft, resolved, in_budget=facts["draft_before_pool"]))
        reserve = _multimodal_reserve(spec, facts)
        charged += reserve
        slack = _constant_item("runtime.load_slack", "runtime", profile.constants["load_slack"])
        charged.append(slack)
        budget = int(free[0] * resolved.fraction)
        inside = [item for item in charged if item.in_budget]
        held = (
            sum(item.size_bytes for item in inside),
            sum(item.high_bytes for item in inside),
            sum(item.low_bytes for item in inside),
        )
        # Free memory differs between ranks, and the smallest counts: the band's ends are taken
        # together with those of what is loaded.
        rest = tuple(
            int(size * resolved.fraction) - taken for size, taken in zip(free, held, strict=True)
        )
        if request.kv_cache_bytes is not None:
            rest = (request.kv_cache_bytes,) * 3
        sizes = size_pools(rest[0], cells, resolved.pool_options, rules)
        needed = needed_pool_bytes(
            resolved.context, resolved.per_rank_sequences, cells, resolved.pool_options, rules
        )
        items = (
            *charged,
            _kv_item(needed, cells, resolved),
            *outside,
            *_runtime_items(spec, resolved, cells, sizes, profile.constants),
        )
        plans.append(
            _StagePlan(
                stage=stage,
                weights=rank,
                draft=draft,
                cells=cells,
                sizes=sizes,
                rest=(rest[0], rest[1], rest[2]),
                needed=needed,
                items=items,
                budget=budget,
            )
        )
    return tuple(plans)


def _with_draft(
    request: Request,
    resolved: Resolved,
    cells: PoolCells,
    facts: Mapping[str, Any],
    rules: PoolRules,
    widest_state: int,
) -> PoolCells:
    """Cells with the draft's layers, in the budget or beside it, and the widest stage's states."""
    full, beside = cells.full_bytes, 0
    layers = resolved.draft_layers
    if layers and cells.full_layers:
        draft = int(cells.full_bytes * layers / cells.full_layers)
        if request.draft is not None and not facts["draft_before_pool"]:
            blocks = {block.name: block.mixers for block in request.draft.spec.blocks}
            options = resolved.cell_options
            draft = sum(
                token_cell(mixer, options, rules)
                for name in request.draft.spec.layout
                for mixer in blocks[name]
            )
        if facts["draft_before_pool"]:
            full += draft
        else:
            beside = draft
    return PoolCells(
        full_bytes=full,
        window_bytes=cells.window_bytes,
        state_bytes=widest_state if cells.state_bytes or facts["widest_state"] else 0,
        draft_bytes=beside,
        full_layers=cells.full_layers,
        window_layers=cells.window_layers,
        state_layers=cells.state_layers,
    )


def _stage_weights(
    spec: ModelSpec,
    stored: tuple[StoredEntry, ...],
    gpu: GpuSpec,
    resolved: Resolved,
    stages: tuple[Stage, ...],
    profile: SglangProfile,
) -> tuple[RankWeights, ...]:
    """Weights of a rank of every stage; kept by the spec, for sweeps ask for them again."""
    capability, rocm = capability_text(gpu), gpu.vendor.lower() == "amd"
    copy_bytes: int = profile.facts["latent_copy_bytes"]
    kept: dict[tuple[object, ...], tuple[object, tuple[RankWeights, ...]]]
    kept = spec.__dict__.setdefault("_sglang_weights", {})
    # `stored` stands beside its weights, so that its identity stays taken.
    key = (id(stored), resolved.weight_ranks, stages, capability, rocm, copy_bytes)
    if key not in kept:
        weights = tuple(
            sglang_weights(
                spec,
                stored,
                resolved.weight_ranks,
                stage,
                compute_capability=capability,
                rocm=rocm,
                latent_copy_bytes=copy_bytes,
            )
            for stage in stages
        )
        kept[key] = (stored, weights)
    return kept[key][1]


def _draft_weights(
    spec: ModelSpec,
    stored: tuple[StoredEntry, ...],
    gpu: GpuSpec,
    request: Request,
    resolved: Resolved,
    stages: tuple[Stage, ...],
    facts: Mapping[str, Any],
) -> list[RankWeights | None]:
    """The draft on the last stage; the model's embedding and head serve it."""
    found: list[RankWeights | None] = [None] * len(stages)
    capability, rocm = capability_text(gpu), gpu.vendor.lower() == "amd"
    if request.draft is not None:
        draft = request.draft.spec
        whole = request.draft.stored
        # set_embed: the model's embedding serves the draft, whose own is freed.
        shares_embedding = resolved.algorithm.startswith("EAGLE")
        found[-1] = keep(
            draft,
            whole,
            ("sglang_draft", shares_embedding, resolved.weight_ranks, capability, rocm),
            lambda: sglang_weights(
                draft,
                tuple(
                    item
                    for item in whole
                    if not (shares_embedding and item.entry.section == "embedding")
                ),
                resolved.weight_ranks,
                sglang_stages(draft.num_layers, 1, rest_last=False)[0],
                compute_capability=capability,
                rocm=rocm,
            ),
        )
    elif spec.mtp is not None and resolved.algorithm == "EAGLE":
        copy_bytes: int = facts["latent_copy_bytes"]
        found[-1] = keep(
            spec,
            stored,
            ("sglang_mtp", resolved.weight_ranks, capability, rocm, copy_bytes),
            lambda: mtp_weights(
                spec,
                stored,
                resolved.weight_ranks,
                compute_capability=capability,
                rocm=rocm,
                latent_copy_bytes=copy_bytes,
            ),
        )
    return found


_POOL_SOURCE = "SGLang 0.5.23 srt/mem_cache/kv_cache_configurator.py, pool_configurator.py"
_WEIGHT_SOURCE = "tensor inventory; SGLang 0.5.23 srt/layers, srt/models"
_MEMORY_SOURCE = "SGLang 0.5.23 srt/arg_groups/memory_hook.py"


def _constant_item(
    name: str,
    category: Category,
    constant: Constant,
    *,
    factor: float = 1,
    formula: str = "",
    in_budget: bool = True,
) -> MemoryItem:
    source = f"{constant.source} ({constant.observations} observations, {constant.date})"
    return MemoryItem(
        name=name,
        category=category,
        size_bytes=int(constant.value * factor),
        low_bytes=int(constant.low * factor),
        high_bytes=int(constant.high * factor),
        formula=formula or constant.note,
        source=source,
        in_budget=in_budget,
    )


def _start_items(world: int, constants: Constants) -> list[MemoryItem]:
    """What is gone before SGLang reads the free memory that its fraction is of."""
    items = [
        _constant_item(
            "runtime.cuda_context", "runtime", constants["cuda_context"], in_budget=False
        )
    ]
    if world > 1:
        name = "nccl_8_ranks" if world >= 8 else "nccl_2_to_7_ranks"
        items.append(
            _constant_item("runtime.communication", "runtime", constants[name], in_budget=False)
        )
    return items


def _weight_items(weights: RankWeights, rotary: int, resolved: Resolved) -> list[MemoryItem]:
    ranks = resolved.weight_ranks
    split = {
        "attention": f"1/{ranks.attention} of the heads",
        "dense_mlp": f"1/{ranks.dense}",
        "shared_experts": f"1/{ranks.shared_experts}",
        "embedding": f"1/{ranks.embedding} of the vocabulary",
        "lm_head": f"1/{ranks.head} of the vocabulary",
        "routed_experts": f"1/{ranks.experts} of the experts, 1/{ranks.expert_width} of each",
    }
    rows = [
        (f"weights.{group}", size, f"elements x element width, {split.get(group, 'as attention')}")
        for group, size in weights.by_group.items()
    ]
    rows += [
        ("weights.scales", weights.scale_bytes, "scales, zero points of quantized matrices"),
        ("weights.padding", weights.padding_bytes, "rows and columns that fill kernels' tiles"),
        (
            "weights.latent_copies",
            weights.latent_copy_bytes,
            "absorbed matrices w_kc and w_vc, copied beside kv_b",
        ),
        (
            "weights.allocator_segments",
            weights.rounding_bytes,
            "tensors of 10 MiB and more in steps of 2 MiB, smaller ones in segments of 20 MiB",
        ),
        ("weights.buffers", rotary, "rotary tables: positions x rotary size x 4 bytes"),
    ]
    return [
        exact_item(name, "weights", size, formula, _WEIGHT_SOURCE)
        for name, size, formula in rows
        if size
    ]


def _draft_item(draft: RankWeights, resolved: Resolved, *, in_budget: bool) -> MemoryItem:
    what = "MTP blocks" if resolved.algorithm == "EAGLE" else "draft model"
    return exact_item(
        "draft.weights",
        "draft",
        draft.resident_bytes,
        f"{what}: elements x element width, split as the model; embedding and head are the model's",
        "SGLang 0.5.23 srt/managers/scheduler.py:init_model_worker, srt/models/deepseek_nextn.py",
        in_budget=in_budget,
    )


def _multimodal_reserve(spec: ModelSpec, facts: Mapping[str, Any]) -> list[MemoryItem]:
    if not facts["multimodal_reserve"] or not is_multimodal(spec, facts):
        return []
    return [
        exact_item(
            "reserve.multimodal_cache",
            "reserve",
            _VLM_CACHE_BYTES,
            "embedding cache of 100 MiB kept out of the pool (SGLANG_VLM_CACHE_SIZE_MB)",
            "SGLang 0.5.23 srt/mem_cache/kv_cache_configurator.py:mm_runtime_reservation_gb",
        )
    ]


def _kv_item(needed: int, cells: PoolCells, resolved: Resolved) -> MemoryItem:
    sequences, context, page = resolved.per_rank_sequences, resolved.context, resolved.page
    tokens = sequences * round_up(context, page)
    formula = f"{sequences} x {round_up(context, page):,} tokens x {cells.full_bytes:,} bytes"
    if cells.window_bytes:
        ratio = resolved.pool_options.window_ratio
        formula += f" + {ratio:g} x as many tokens x {cells.window_bytes:,} bytes of windows"
    if cells.state_bytes:
        slots = resolved.pool_options.slots_per_request
        formula += (
            f"; states of {sequences} x {slots} slots x {cells.state_bytes:,} bytes; the pools are "
            f"shared out {resolved.pool_options.state_ratio:g} : 1"
        )
    if not tokens * cells.full_bytes and not cells.state_bytes and not cells.window_bytes:
        formula = "no layer of this stage keeps a cache"
    return exact_item("kv_cache", "kv_cache", needed, formula, _POOL_SOURCE)


def _runtime_items(
    spec: ModelSpec,
    resolved: Resolved,
    cells: PoolCells,
    sizes: PoolSizes,
    constants: Constants,
) -> list[MemoryItem]:
    """What the other 1 - f of the card must hold."""
    items = [_activations(spec, resolved, constants)]
    reserve, capacity = resolved.reserve, resolved.capacity
    if reserve.decode_graphs and reserve.disaggregation != "prefill":
        items.append(
            _constant_item(
                "runtime.cuda_graphs",
                "runtime",
                constants["cuda_graph_bytes_per_sequence"],
                factor=capacity.graph_max_sequences,
                formula=f"decode graphs of up to {capacity.graph_max_sequences} sequences",
                in_budget=False,
            )
        )
    if reserve.prefill_graphs and reserve.disaggregation != "decode":
        items.append(
            _constant_item(
                "runtime.prefill_graphs",
                "runtime",
                constants["prefill_graph_factor"],
                factor=prefill_graph_mib(reserve, capacity) * MIB,
                formula="what the engine expects prefill graphs to take beside tensors",
                in_budget=False,
            )
        )
    rows = sizes.max_running + 1
    width = resolved.context + 4 + resolved.pool_options.num_spec_tokens
    items.append(
        exact_item(
            "runtime.request_table",
            "runtime",
            rows * width * 4,
            f"{rows:,} requests x {width:,} positions x 4 bytes",
            "SGLang 0.5.23 srt/mem_cache/memory_pool.py:ReqToTokenPool",
            in_budget=False,
        )
    )
    padding = resolved.page * (cells.full_bytes + cells.window_bytes)
    items.append(
        exact_item(
            "runtime.padding_page",
            "runtime",
            padding,
            f"one page of {resolved.page} tokens more than the pools have",
            "SGLang 0.5.23 srt/mem_cache/memory_pool.py: size + page_size",
            in_budget=False,
        )
    )
    if cells.draft_bytes:
        items.append(
            exact_item(
                "draft.kv_cache",
                "draft",
                sizes.tokens * cells.draft_bytes,
                f"{sizes.tokens:,} tokens x {cells.draft_bytes:,} bytes, beside the budget",
                "SGLang 0.5.10 model_runner_kv_cache_mixin.py: the draft takes the target's tokens",
                in_budget=False,
            )
        )
    if resolved.backend == "flashinfer":
        items.append(
            _constant_item(
                "runtime.attention_workspace",
                "runtime",
                constants["flashinfer_workspace"],
                in_budget=False,
            )
        )
    if resolved.settings.enable_symm_mem:
        items.append(
            exact_item(
                "runtime.symmetric_memory",
                "runtime",
                _SYMMETRIC_BYTES,
                "symmetric memory, 4 GiB unless SGLANG_SYMM_MEM_PREALLOC_GB_SIZE says otherwise",
                _MEMORY_SOURCE,
                in_budget=False,
            )
        )
    return items


def _activations(spec: ModelSpec, resolved: Resolved, constants: Constants) -> MemoryItem:
    """A prefill chunk through the widest layer, and logits of the sequences that end in it.

    Tokens of all attention ranks are gathered before experts and dense layers.
    """
    dp = resolved.attention_dp
    chunk = resolved.capacity.chunked_prefill_size
    if chunk <= 0:
        chunk = resolved.reserve.max_prefill_tokens
    hidden, widest = spec.hidden_size, 4 * spec.hidden_size
    t = resolved.layout.tensor_parallel_size
    for block in spec.blocks:
        for feed_forward in block.feed_forwards:
            if isinstance(feed_forward, DenseMlp):
                width = ceil_div(feed_forward.intermediate_size, resolved.weight_ranks.dense)
                widest = max(widest, 3 * hidden + 3 * width)
        moe = moe_of(block)
        if moe is not None:
            rows = moe.experts_per_token
            width = ceil_div(moe.intermediate_size, resolved.weight_ranks.expert_width)
            share = max(1, resolved.weight_ranks.experts)
            widest = max(widest, 3 * hidden + ceil_div(rows * (hidden + 3 * width), share))
    logits = min(chunk, 256) * ceil_div(spec.embedding.vocab_size, 1)
    factor = chunk * widest * 2 + logits * 6
    return _constant_item(
        "activations.prefill",
        "activations",
        constants["activation_factor"],
        factor=factor,
        formula=(
            f"{chunk:,} tokens x {widest:,} values x 2 bytes + 256 rows of logits in two formats"
            + (f", gathered from {dp} attention ranks" if dp > 1 else "")
            + f" (tp {t})"
        ),
        in_budget=False,
    )


def _refusal(
    plans: tuple[_StagePlan, ...], resolved: Resolved, request: Request, rules: PoolRules
) -> str:
    """Why SGLang would not start, whatever is asked of it; empty when it starts."""
    if request.kv_cache_bytes is not None:
        return ""
    window, held = resolved.pool_options.window_tokens + resolved.page, plans[0].sizes.window_tokens
    for plan in plans:
        rest = plan.rest[0]
        if plan.sizes.tokens > 0 and rules.refuses_small_windows and 0 < held <= window:
            return (
                f"SGLang does not start: the sliding-window pool of {held:,} tokens cannot hold "
                f"one request, which takes {window:,}"
            )
        if plan.sizes.tokens > 0:
            continue
        free = plan.budget / resolved.fraction
        held = plan.budget - rest
        least = held / free
        what = f"mem fraction static {resolved.fraction:.3f} leaves no memory for the KV cache"
        if least >= 1:
            return f"SGLang does not start: {what}; the weights alone exceed the GPU"
        return (
            f"SGLang does not start: {what}; it needs more than {least:.4f} "
            f"(1 - free after loading / free before)"
        )
    return ""


def _kv_summary(
    spec: ModelSpec,
    plans: tuple[_StagePlan, ...],
    limiting: int,
    sizes: PoolSizes,
    resolved: Resolved,
    profile: SglangProfile,
) -> KvSummary:
    plan = plans[limiting]
    cells, options = plan.cells, resolved.pool_options
    per_sequence = cells.state_bytes + cells.window_bytes * options.window_tokens
    longest = longest_context(
        [(stage.rest[0], stage.cells) for stage in plans],
        resolved.per_rank_sequences,
        spec.max_context,
        options,
        profile.pool_rules,
    )
    groups: list[dict[str, Any]] = []
    for kind, layers, size in (
        ("full", cells.full_layers, cells.full_bytes),
        ("sliding", cells.window_layers, cells.window_bytes),
        ("mamba", cells.state_layers, cells.state_bytes),
    ):
        if layers:
            tokens = 1 if kind == "mamba" else resolved.page
            groups.append(
                {
                    "kind": kind,
                    "layers": layers,
                    "block_tokens": tokens,
                    "page_bytes": tokens * size,
                }
            )
    held = sizes.tokens / resolved.context
    if sizes.window_tokens and options.window_tokens:
        most = min(resolved.context, options.window_tokens) + resolved.page
        held = min(held, sizes.window_tokens / most)
    return KvSummary(
        bytes_per_token=cells.full_bytes,
        state_bytes_per_sequence=per_sequence,
        block_tokens=resolved.page,
        blocks=sizes.tokens // resolved.page,
        available_bytes=plan.rest[0],
        available_low_bytes=plan.rest[1],
        available_high_bytes=plan.rest[2],
        needed_bytes=plan.needed,
        capacity_tokens=sizes.tokens,
        max_concurrency=min(held, float(sizes.max_running)),
        max_context=longest,
        dtype=resolved.kv_dtype,
        backend=resolved.backend,
        groups=tuple(groups),
        replicas=max(resolved.attention_dp, resolved.replicas),
    )


def _deployment(
    gpu: GpuSpec,
    request: Request,
    profile: SglangProfile,
    resolved: Resolved,
    sizes: PoolSizes,
) -> dict[str, Any]:
    ranks, options = resolved.weight_ranks, resolved.pool_options
    own: dict[str, Any] = {
        **resolved.settings.to_dict(),
        "dp_attention": resolved.attention_dp > 1,
        "attention_tp_size": resolved.attention_ranks,
        "ep_size": ranks.experts,
        "moe_tp_size": ranks.expert_width,
        "cuda_graph_max_bs": resolved.capacity.graph_max_sequences,
        "prefill_cuda_graphs": resolved.reserve.prefill_graphs,
    }
    if sizes.window_tokens:
        own["swa_full_tokens_ratio"] = options.window_ratio
        own["swa_max_total_num_tokens"] = sizes.window_tokens
    if sizes.state_slots:
        own["mamba_full_memory_ratio"] = options.state_ratio
        own["max_mamba_cache_size"] = sizes.state_slots
        own["state_slots_per_request"] = options.slots_per_request
    if resolved.algorithm:
        own["speculative_algorithm"] = resolved.algorithm
        own["speculative_num_draft_tokens"] = options.num_spec_tokens
    dp = max(resolved.attention_dp, resolved.replicas)
    return {
        "engine": "sglang",
        "engine_version": profile.version,
        "gpu": gpu.id,
        "gpu_name": gpu.name,
        "gpu_count": request.num_gpus,
        "tp": resolved.layout.tensor_parallel_size,
        "pp": resolved.layout.pipeline_parallel_size,
        "dp": dp,
        "ep": ranks.experts > 1,
        "context": resolved.context,
        "concurrency": resolved.concurrency,
        "kv_dtype": resolved.kv_dtype,
        "gpu_memory_utilization": round(resolved.fraction, 4),
        "max_num_seqs": sizes.max_running,
        "max_num_batched_tokens": options.chunked_prefill_tokens,
        "block_size": resolved.page,
        "enforce_eager": bool(request.enforce_eager),
        "kv_cache_memory_bytes": request.kv_cache_bytes,
        "attention_backend": resolved.backend,
        "moe_backend": resolved.settings.moe_a2a_backend,
        "engine_settings": own,
    }


def _warnings(
    spec: ModelSpec,
    gpu: GpuSpec,
    ledger: GpuLedger,
    resolved: Resolved,
    sizes: PoolSizes,
) -> list[Note]:
    out = []
    started = ("runtime.cuda_context", "runtime.communication")
    needed = [item for item in ledger.items if not item.in_budget and item.name not in started]
    left = ledger.usable_bytes - ledger.budget_bytes
    left -= sum(item.size_bytes for item in ledger.items if item.name in started)
    used = sum(item.size_bytes for item in needed)
    if used > left:
        message = (
            f"outside the static fraction {format_gib(max(0, left))} are left; activations, graphs "
            f"and tables may need {format_gib(used)}: lower --gpu-memory-utilization "
            "(--mem-fraction-static) or the prefill chunk"
        )
        out.append(Note(code="device-peak", message=message))
    if sizes.tokens and sizes.max_running < resolved.per_rank_sequences:
        message = (
            f"SGLang runs {sizes.max_running:,} requests at once on a rank; "
            f"{resolved.per_rank_sequences:,} are asked for, the rest wait"
        )
        out.append(Note(code="max-running-requests", message=message))
    if resolved.attention_dp > 1:
        share, asked = resolved.per_rank_sequences, resolved.concurrency
        message = (
            f"cache, tokens and limits are those of one of {resolved.attention_dp} data-parallel "
            f"ranks of attention, which serves {share} of {asked} sequence{'s'[: asked > 1]}"
        )
        out.append(Note(code="data-parallel", message=message))
    if resolved.replicas > 1:
        message = f"{resolved.replicas} replicas; the ledger is that of a GPU of one"
        out.append(Note(code="replicas", message=message))
    if gpu.driver_total_bytes is None and not resolved.fraction_given:
        message = (
            f"the total that nvidia-smi shows for {gpu.name} is not known; the static fraction is "
            "derived from what torch sees"
        )
        out.append(Note(code="driver-total", message=message))
    if gpu.compute_capability is None:
        message = (
            f"{gpu.name} has no NVIDIA compute capability; kernels chosen as for "
            f"{capability_text(gpu)}, runtime sizes as on NVIDIA"
        )
        out.append(Note(code="gpu-generation-unknown", message=message))
    if spec.dtype == "float32" and spec.quantization is None:
        out.append(
            Note(code="dtype", message="the checkpoint is float32; it is planned as bfloat16")
        )
    return out
