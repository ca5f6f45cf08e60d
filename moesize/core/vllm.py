"""vLLM: from a model, its stored weights, a GPU and a request to ledgers and capacity.

The order is the engine's own: weights are loaded, a profile run takes its peak, what is left of
the budget becomes KV blocks. Sources are named by each item.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from moesize.core.attention import LatentAttention
from moesize.core.deployment import POOL_FIELDS, Layout, Request, choose_layout, defaulted_names
from moesize.core.engine import EngineAnswer, RankCost
from moesize.core.errors import InvalidDeploymentError, InvalidInputError, UnsupportedError
from moesize.core.expert_parallel import expert_balance
from moesize.core.feed_forward import DenseMlp
from moesize.core.inventory import moe_of
from moesize.core.ledger import GpuLedger, MemoryItem
from moesize.core.plan import Note
from moesize.core.units import ceil_div, format_gib
from moesize.core.vllm_budget import (
    BatchDefaults,
    BudgetSettings,
    BudgetShape,
    LatentShape,
    MoeBackend,
    MoeShape,
    VllmBudget,
    max_concurrent_batches,
    vllm_budget,
)
from moesize.core.vllm_encoder import encoder_shape, has_active_encoder
from moesize.core.vllm_items import (
    attention_scalar_bytes,
    budget_item,
    kv_item,
    kv_summary,
    recurrent_bytes,
    rotary_bytes,
    weight_items,
)
from moesize.core.vllm_kv import KvSettings, MambaCacheMode, group_layers, plan_kv
from moesize.core.vllm_layers import CacheOptions, VllmLayers, vllm_layers
from moesize.core.vllm_ranks import (
    Rank,
    all2all_items,
    all2all_notes,
    balancer_items,
    batches_experts,
    check_layout,
    distinct_ranks,
    kv_copies,
    sends_to_experts,
)
from moesize.core.vllm_settings import VllmSettings as VllmSettings
from moesize.core.vllm_versions import VllmProfile as VllmProfile
from moesize.core.vllm_versions import has_windows
from moesize.core.vllm_versions import rules_of as rules_of
from moesize.core.vllm_weights import Stage, mxfp4_backend, valid_tensor_parallel_sizes
from moesize.core.weight_formats import (
    Fp8Block,
    Mxfp4,
    Nvfp4,
    Plain,
)

if TYPE_CHECKING:
    from moesize.core.checkpoint import StoredEntry
    from moesize.core.gpu import GpuSpec
    from moesize.core.model_spec import ModelSpec
    from moesize.core.vllm_lora import Lora
    from moesize.core.vllm_offload import Offload
    from moesize.core.vllm_speculation import Speculation
    from moesize.core.vllm_versions import EngineCore

# Kernels for a device without an NVIDIA compute capability are chosen as for this generation:
# Hopper for AMD Instinct (FP8, sparse MLA), Ampere for a card known by its size only.
_ASSUMED_CAPABILITY = {"amd": "9.0"}
_ASSUMED_OTHERWISE = "8.0"
# v1/attention/backends/*: get_supported_kernel_block_sizes are multiples of this.
_BLOCK_MULTIPLE = 16


# Fields of a Request that this engine plans; others are refused, never ignored.
PLANS = POOL_FIELDS | {
    "data_parallel_size",
    "block_tokens",
    "decode_context_parallel_size",
    "data_parallel_attention",
    "num_redundant_experts",
    "expert_skew",
    "num_spec_tokens",
    "mtp",
    "draft",
    "lora_rank",
    "max_loras",
    "cpu_offload_bytes",
    "offload_experts",
}


# Fields of `deployment` that only vLLM fills, by the Request field that sets them.
_OWN_DEFAULTS = {
    "decode_context_parallel_size": "dcp",
    "num_redundant_experts": "num_redundant_experts",
    "cpu_offload_bytes": "cpu_offload_bytes",
}


def plan_vllm(
    spec: ModelSpec,
    stored: tuple[StoredEntry, ...],
    gpu: GpuSpec,
    request: Request,
    profile: VllmProfile,
) -> EngineAnswer:
    """Plan a deployment on equal GPUs: a ledger per distinct rank, the capacity of one replica.

    Raises InvalidDeploymentError for settings vLLM refuses, UnsupportedError for what is unknown.
    """
    options = _settings(request)
    layout = choose_layout(request, valid_tensor_parallel_sizes(spec), spec.title)
    check_layout(spec, request, layout, options)
    if layout.decode_context_parallel_size > 1 and not profile.context_parallel:
        raise InvalidDeploymentError(
            f"vLLM {profile.version} has no decode context parallelism",
            "drop --dcp, or use a later --engine-version",
        )
    _check_dtype(options)
    capability = _capability(gpu)
    core = profile.core_for(
        spec,
        vendor=gpu.vendor,
        compute_capability=capability,
        kv_dtype=request.kv_dtype or "auto",
        pipeline_parallel_size=layout.pipeline_parallel_size,
        use_v1=options.use_v1,
    )
    profile = profile.for_core(core)
    if options is not _NO_SETTINGS:
        profile = profile.with_settings(options)
    speculation = _speculation(spec, stored, request, options, layout)
    lora = _lora(request, options, layout)
    ranks = distinct_ranks(
        spec,
        stored,
        request,
        layout,
        options,
        compute_capability=_capability_text(gpu),
        rocm=gpu.vendor.lower() == "amd",
        rules=profile.weight_rules,
        towers_on_first_stage=(
            profile.weight_rules.towers_on_first_stage and profile.model_runner(spec) == "v2"
        ),
    )
    extras = _Extras(
        speculation,
        lora,
        _offload(spec, request, options),
        bool(request.num_redundant_experts or options.enable_eplb),
        tuple(all2all_items(layout, options)),
    )
    applied = [extras.applied(spec, stored, gpu, rank) for rank in ranks]
    ranks = tuple(rank for rank, _ in applied)
    host, moved_bytes = _host(spec, stored, layout, extras, applied)
    stages = tuple(dict.fromkeys(rank.stage for rank in ranks))
    context = _context(spec, request)
    usable = gpu.usable_memory()
    batch = _batch(spec, gpu, usable.best_bytes, context, request, profile, core, layout)
    states = profile.mamba_cache_mode(spec, options)
    cache = _cache(spec, request, options, profile, layout, capability, stages, speculation, states)
    runner = profile.model_runner(spec)
    in_flight = max_concurrent_batches(
        len(stages), runner, async_scheduling=options.async_scheduling is not False
    )
    settings = KvSettings(
        max_model_len=context,
        max_num_batched_tokens=batch.max_num_batched_tokens,
        max_concurrent_batches=in_flight if profile.kv_rules.counts_all_in_flight else 1,
        mamba_cache_mode=states,
        decode_context_parallel_size=layout.decode_context_parallel_size,
        block_outermost=cache.block_outermost,
        hybrid_manager=not options.disable_hybrid_kv_cache_manager,
    )
    kv_layout = group_layers(cache.stages, settings, profile.kv_rules)
    utilization = request.gpu_memory_utilization or profile.default_utilization
    moe_backend = _moe_backend(stored, capability, profile)
    if lora is not None and moe_backend == "triton_gpt_oss":
        moe_backend = "marlin"
    if batches_experts(layout, options):
        moe_backend = "batched"
    shape = _shape(spec, layout, request.num_redundant_experts or 0, options)
    held_by = {rank.stage.index: rank.weights for rank in reversed(ranks)}
    budgets = tuple(
        vllm_budget(
            shape,
            BudgetSettings(
                total_bytes=usable.best_bytes,
                gpu_memory_utilization=utilization,
                compute_capability=capability,
                max_num_batched_tokens=batch.max_num_batched_tokens,
                max_num_seqs=batch.max_num_seqs,
                max_model_len=context,
                block_tokens=kv_layout.block_tokens or cache.block_tokens,
                num_kv_groups=max(1, len(kv_layout.groups)),
                tensor_parallel_size=layout.tensor_parallel_size,
                data_parallel_size=layout.data_parallel_size,
                sends_to_experts=sends_to_experts(layout, options),
                communication_ranks=_communication_ranks(spec, layout),
                num_spec_tokens=speculation.num_tokens if speculation else 0,
                model_runner=runner,
                moe_backend=moe_backend,
                attention_backend=cache.backend,
                enforce_eager=bool(request.enforce_eager),
                is_last_stage=stage.last,
                num_layers=len(stage.layers),
                loose_state_bytes=cache.loose_state_bytes[stage.index],
                vendor=gpu.vendor,
                # An APU of AMD's with HBM does not count as integrated (platforms/interface.py).
                unified_memory=gpu.one_device_is == "soc" and gpu.vendor.lower() == "nvidia",
                segment_bytes=held_by[stage.index].segment_bytes,
                repacked_module_bytes=held_by[stage.index].repacked_module_bytes,
                rules=profile.budget_rules,
            ),
            profile.constants,
        )
        for stage in stages
    )
    concurrency = request.concurrency or 1
    # The sequences are spread over data-parallel ranks.
    sequences = ceil_div(concurrency, layout.data_parallel_size)
    rotary = rotary_bytes(spec, profile.fourfold_position_types)
    buffers = [
        rotary + attention_scalar_bytes(spec, stage.layers, profile.attention_scalars)
        for stage in stages
    ]
    fixed = [request.kv_cache_bytes] * len(stages)
    if options.num_gpu_blocks_override is not None:
        blocks = options.num_gpu_blocks_override
        fixed = [blocks * size for size in kv_layout.stage_block_bytes]
    available = [
        _available(
            budgets[rank.stage.index],
            rank,
            buffers[rank.stage.index],
            fixed[rank.stage.index],
        )
        for rank in ranks
    ]
    # Every rank gets as many blocks as the one with the least memory for them.
    least = [
        min(
            best for rank, (best, _, _) in zip(ranks, available, strict=True) if rank.stage == stage
        )
        for stage in stages
    ]
    kv = plan_kv(kv_layout, settings, least, profile.kv_rules)
    null_blocks = 1 if profile.kv_rules.reserves_null_block else 0
    needed_blocks = kv.blocks_per_request * sequences + null_blocks
    needed = [needed_blocks * kv_layout.stage_block_bytes[rank.stage.index] for rank in ranks]
    shortfalls = [n - best for n, (best, _, _) in zip(needed, available, strict=True)]
    limiting = max(range(len(ranks)), key=lambda i: shortfalls[i])
    stage = ranks[limiting].stage
    summary = kv_summary(
        kv,
        kv_layout,
        settings,
        cache,
        stage.index,
        available[limiting],
        needed[limiting],
        sequences,
        spec.max_context,
        layout.data_parallel_size,
    )
    ledgers = tuple(
        GpuLedger(
            rank=rank.number,
            pp_stage=rank.stage.index,
            count=rank.count,
            usable_bytes=usable.best_bytes,
            budget_bytes=budgets[rank.stage.index].requested_bytes,
            items=(
                *weight_items(rank.weights, buffers[rank.stage.index], layout),
                *rank.items,
                kv_item(
                    need,
                    kv,
                    sequences,
                    context,
                    kv_layout.stage_block_bytes[rank.stage.index],
                ),
                *(budget_item(item) for item in budgets[rank.stage.index].items),
            ),
        )
        for rank, need in zip(ranks, needed, strict=True)
    )
    held = ranks[limiting].weights
    # Re-packing holds one layer's largest module twice (vLLM process_weights_after_loading).
    load_peak = held.resident_bytes + (held.largest_module_bytes if held.scale_bytes else 0)
    balance = None
    if layout.expert_parallel_size > 1:
        balance = expert_balance(
            spec,
            ranks=layout.expert_parallel_size,
            redundant=request.num_redundant_experts or 0,
            skew=request.expert_skew,
            decode_tokens=ceil_div(concurrency, layout.pipeline_parallel_size),
            prefill_tokens=batch.max_num_batched_tokens * layout.data_parallel_size,
        )
    deployment = {
        "engine": "vllm",
        "engine_version": profile.version,
        "gpu": gpu.id,
        "gpu_name": gpu.name,
        "gpu_count": layout.num_gpus,
        "tp": layout.tensor_parallel_size,
        "pp": layout.pipeline_parallel_size,
        "dp": layout.data_parallel_size,
        "ep": layout.expert_parallel,
        "dcp": layout.decode_context_parallel_size,
        "context": context,
        "concurrency": concurrency,
        "kv_dtype": cache.kv_dtype,
        "gpu_memory_utilization": utilization,
        "max_num_seqs": batch.max_num_seqs,
        "max_num_batched_tokens": batch.max_num_batched_tokens,
        "block_size": kv_layout.block_tokens or cache.block_tokens,
        "enforce_eager": bool(request.enforce_eager),
        "kv_cache_memory_bytes": fixed[stage.index],
        "attention_backend": cache.backend,
        "moe_backend": moe_backend if _has_experts(spec) else None,
        "num_redundant_experts": request.num_redundant_experts or 0,
        "cpu_offload_bytes": moved_bytes,
        "speculation": speculation.to_dict() if speculation else None,
        "lora_rank": lora.rank if lora else None,
        "max_loras": lora.slots if lora else None,
        "engine_settings": {} if options is _NO_SETTINGS else options.to_dict(),
    }
    return EngineAnswer(
        deployment=deployment,
        defaulted=defaulted_names(request, _OWN_DEFAULTS),
        ledgers=ledgers,
        kv=summary,
        limiting_rank=ranks[limiting].number,
        limiting=RankCost(
            weights_by_group=held.by_group,
            scale_bytes=held.scale_bytes,
            parameter_bytes=held.parameter_bytes,
            num_layers=len(stage.layers),
            recurrent_bytes=recurrent_bytes(cache, stage.index),
        ),
        warnings=(
            *_layout_notes(spec, layout, ledgers[limiting], concurrency, profile),
            *_warnings(spec, gpu, request, ledgers[limiting], load_peak),
            *all2all_notes(layout, options),
            *_asleep(options, ranks[limiting], ledgers[limiting]),
            *_unplanned(options),
            *(speculation.notes if speculation else ()),
            *_offload_notes(extras.offload, moved_bytes),
        ),
        held_before_start=_held_before_start(profile),
        host=host,
        expert_parallel=balance,
    )


def _held_before_start(profile: VllmProfile) -> tuple[str, ...]:
    """What the device holds when vLLM compares its free memory with the budget (from 0.9 on)."""
    match profile.budget_rules.budget_basis:
        case "all_in_use":
            return ()
        case "before_distributed":
            return ("runtime.cuda_context",)
        case _:
            return ("runtime.cuda_context", "runtime.communication")


# What most plans do not ask for is imported when one does: start-up is a feature.


def _speculation(
    spec: ModelSpec,
    stored: tuple[StoredEntry, ...],
    request: Request,
    options: VllmSettings,
    layout: Layout,
) -> Speculation | None:
    asked = (request.draft, request.mtp, request.num_spec_tokens, options.spec_method)
    if not any(value is not None for value in asked):
        return None
    from moesize.core.vllm_speculation import plan_speculation

    return plan_speculation(spec, stored, request, options, layout)


def _lora(request: Request, options: VllmSettings, layout: Layout) -> Lora | None:
    if request.lora_rank is None and request.max_loras is None:
        return None
    from moesize.core.vllm_lora import plan_lora

    return plan_lora(request, options, layout)


def _offload(spec: ModelSpec, request: Request, options: VllmSettings) -> Offload | None:
    asked = (request.cpu_offload_bytes, request.offload_experts, options.offload_group_size)
    if not any(value is not None for value in asked):
        return None
    from moesize.core.vllm_offload import plan_offload

    return plan_offload(spec, request, options)


def _offload_notes(offload: Offload | None, moved_bytes: int) -> list[Note]:
    if offload is None:
        return []
    from moesize.core.vllm_offload import offload_notes

    return offload_notes(offload, moved_bytes)


class _Extras(NamedTuple):
    """What lies beside the model's own weights, or takes of them."""

    speculation: Speculation | None
    lora: Lora | None
    offload: Offload | None
    balances_experts: bool
    buffers: tuple[MemoryItem, ...]

    def applied(
        self, spec: ModelSpec, stored: tuple[StoredEntry, ...], gpu: GpuSpec, rank: Rank
    ) -> tuple[Rank, int]:
        """The rank with all of them, and what it keeps in host memory."""
        items = [*self.buffers, *balancer_items(spec, rank, enabled=self.balances_experts)]
        if self.lora is not None:
            items += self.lora.items(spec, stored, rank)
        if self.speculation is not None and rank.stage.last:
            rocm = gpu.vendor.lower() == "amd"
            items += self.speculation.items(rank, _capability_text(gpu), rocm=rocm)
        if items:
            rank = replace(rank, items=tuple(items))
        return (rank, 0) if self.offload is None else self.offload.apply(spec, rank)


def _host(
    spec: ModelSpec,
    stored: tuple[StoredEntry, ...],
    layout: Layout,
    extras: _Extras,
    applied: list[tuple[Rank, int]],
) -> tuple[tuple[MemoryItem, ...], int]:
    """Items of the host's memory, and the most that one GPU moved there."""
    items = []
    moved = [(size, rank.count) for rank, size in applied]
    most = max(size for size, _ in moved)
    if most:
        from moesize.core.vllm_offload import host_item

        items.append(host_item(moved))
    if extras.lora is not None:
        items.append(extras.lora.host_item(spec, stored, layout.num_gpus))
    return tuple(items), most


def _batch(
    spec: ModelSpec,
    gpu: GpuSpec,
    usable_bytes: int,
    context: int,
    request: Request,
    profile: VllmProfile,
    core: EngineCore,
    layout: Layout,
) -> BatchDefaults:
    """Limits of the scheduler, as given or as vLLM chooses them for this GPU."""
    batch = profile.batch(
        core,
        spec,
        context,
        gpu_total_bytes=usable_bytes,
        gpu_name=gpu.name,
        max_num_seqs=request.max_num_seqs,
        max_num_batched_tokens=request.max_num_batched_tokens,
        settings=_settings(request),
        batched_experts=batches_experts(layout, _settings(request)),
    )
    if batch.max_num_batched_tokens < batch.max_num_seqs:
        raise InvalidDeploymentError(
            f"max_num_batched_tokens ({batch.max_num_batched_tokens}) is below max_num_seqs "
            f"({batch.max_num_seqs}): vLLM refuses it",
            f"use --max-num-seqs {batch.max_num_batched_tokens} or more tokens",
        )
    if request.block_tokens is not None and request.block_tokens % _BLOCK_MULTIPLE:
        raise InvalidDeploymentError(
            f"a block of {request.block_tokens} tokens fits no attention kernel of vLLM",
            f"use a multiple of {_BLOCK_MULTIPLE}",
        )
    return batch


_NO_SETTINGS = VllmSettings()


def _settings(request: Request) -> VllmSettings:
    """The engine's own settings of a request; all defaults when there are none."""
    found = request.engine_settings or _NO_SETTINGS
    if not isinstance(found, VllmSettings):
        raise InvalidInputError(f"engine_settings of vLLM is a {type(found).__name__}")
    return found


def _context(spec: ModelSpec, request: Request) -> int:
    """Tokens of one sequence: as asked, else what vLLM takes for this model."""
    context = request.context_tokens or default_context(spec)
    if context > spec.max_context:
        raise InvalidDeploymentError(
            f"context {context:,} is longer than the {spec.max_context:,} tokens of {spec.title}",
            f"use --context {spec.max_context} or less",
        )
    return context


def default_context(spec: ModelSpec) -> int:
    """`max_model_len` when none is given: the model's longest, with LongRoPE the original length.

    A LongRoPE table holds the original positions and the stretched ones behind each other, so the
    original length is what it has beyond the longest context. vLLM 0.32.0 config/model.py.
    """
    for table in spec.rotary:
        original = table.positions - spec.max_context
        if table.scaling in ("longrope", "su") and 0 < original < spec.max_context:
            return original
    return spec.max_context


def _cache(
    spec: ModelSpec,
    request: Request,
    own: VllmSettings,
    profile: VllmProfile,
    layout: Layout,
    capability: tuple[int, int],
    stages: tuple[Stage, ...],
    speculation: Speculation | None,
    states: MambaCacheMode,
) -> VllmLayers:
    asked = (
        layout.tensor_parallel_size,
        capability,
        request.kv_dtype,
        request.block_tokens,
        profile.checkpoint_kinds,
        states,
        own.mamba_ssm_cache_dtype,
        profile.cache_rules.key,
        stages,
    )
    kept: dict[object, tuple[object, VllmLayers]] = spec.__dict__.setdefault("_vllm_layers", {})
    if speculation is None and asked in kept:
        return kept[asked][1]
    options = CacheOptions(
        tensor_parallel_size=layout.tensor_parallel_size,
        compute_capability=capability,
        kv_dtype=request.kv_dtype or "auto",
        dtype="bfloat16" if spec.dtype == "float32" else "",
        block_tokens=request.block_tokens,
        num_spec_tokens=speculation.num_tokens if speculation else 0,
        num_mtp_layers=speculation.num_mtp_layers if speculation else 0,
        checkpoint_kinds=profile.checkpoint_kinds,
        aligned_states=states == "align",
        state_dtype=_state_dtype(own),
        rules=profile.cache_rules,
    )
    layers = vllm_layers(spec, options, [stage.layers for stage in stages])
    if speculation is not None:
        return speculation.with_draft_layers(layers, options)
    # The rules stand beside the answer, so that what their key names stays taken.
    kept[asked] = (profile.cache_rules, layers)
    return layers


_STATE_DTYPES = ("float32", "bfloat16", "float16")


def _communication_ranks(spec: ModelSpec, layout: Layout) -> int:
    """GPUs of a pipeline stage that talk to each other: experts join data-parallel ranks."""
    return layout.expert_ranks if _has_experts(spec) else layout.tensor_parallel_size


def _state_dtype(options: VllmSettings) -> str:
    asked = options.mamba_ssm_cache_dtype
    if asked in (None, "auto"):
        return ""
    if asked not in _STATE_DTYPES:
        raise InvalidDeploymentError(
            f"vLLM takes no recurrent states in {asked!r}", f"use {', '.join(_STATE_DTYPES)}"
        )
    return asked


def _check_dtype(options: VllmSettings) -> None:
    """Types of the same width change nothing; a wider one is not planned."""
    if options.dtype not in (None, "auto", "half", "float16", "bfloat16"):
        raise UnsupportedError(
            f"--dtype {options.dtype[:20]} is not planned", "use auto, bfloat16 or float16"
        )


def _available(
    budget: VllmBudget, rank: Rank, buffer_bytes: int, fixed_bytes: int | None
) -> tuple[int, int, int]:
    """KV bytes of one rank: best, low, high. Negative when the weights do not fit.

    The estimates err independently of each other, so what they may be off adds as squares.
    """
    if fixed_bytes is not None:
        return (fixed_bytes,) * 3
    left = budget.requested_bytes - rank.weights.resident_bytes - buffer_bytes - rank.item_bytes
    charged = [item for item in budget.items if item.in_budget]
    best = left - sum(item.bytes for item in charged)
    less = math.hypot(*(item.high_bytes - item.bytes for item in charged))
    more = math.hypot(*(item.bytes - item.low_bytes for item in charged))
    return best, best - round(less), best + round(more)


def _capability_text(gpu: GpuSpec) -> str:
    assumed = _ASSUMED_CAPABILITY.get(gpu.vendor.lower(), _ASSUMED_OTHERWISE)
    return gpu.compute_capability or assumed


def _capability(gpu: GpuSpec) -> tuple[int, int]:
    text = _capability_text(gpu)
    major, _, minor = text.partition(".")
    return int(major), int(minor or 0)


def _has_experts(spec: ModelSpec) -> bool:
    return any(moe_of(block) is not None for block in spec.blocks)


def _moe_backend(
    stored: tuple[StoredEntry, ...], capability: tuple[int, int], profile: VllmProfile
) -> MoeBackend:
    """Kernel that runs the routed experts, by their format and the GPU generation."""
    formats = (item.weight_format for item in stored if item.entry.tensor.expert)
    expert = next((f for f in formats if f is not None), None)
    if expert is None or isinstance(expert, Plain):
        return "triton"
    if isinstance(expert, Mxfp4):
        match mxfp4_backend(capability[0], profile.weight_rules):
            case "flashinfer":
                return "flashinfer"
            case "triton":
                return "triton_gpt_oss"
            case _:
                return "marlin"
    if isinstance(expert, Nvfp4):
        return "flashinfer" if capability[0] >= 10 else "marlin"
    if isinstance(expert, Fp8Block):
        return "deep_gemm" if capability[0] >= 9 and profile.deep_gemm else "triton"
    return "triton" if expert.__class__.__name__.startswith("Fp8") else "marlin"


def _shape(spec: ModelSpec, layout: Layout, redundant: int, options: VllmSettings) -> BudgetShape:
    """Widths that decide the activation peak, per rank."""
    tp, ep = layout.tensor_parallel_size, layout.expert_parallel_size
    shares = 1 if ep > 1 else layout.expert_ranks
    dense = 0
    moe_shape: MoeShape | None = None
    latent: LatentShape | None = None
    for block in spec.blocks:
        for feed_forward in block.feed_forwards:
            if isinstance(feed_forward, DenseMlp):
                dense = max(dense, ceil_div(feed_forward.intermediate_size, tp))
        moe = moe_of(block)
        if moe is not None:
            moe_shape = MoeShape(
                num_local_experts=ceil_div(moe.num_experts + redundant, ep),
                experts_per_token=moe.experts_per_token,
                intermediate_size=ceil_div(moe.intermediate_size, shares),
            )
            if moe.shared is not None:
                dense = max(dense, ceil_div(moe.shared.intermediate_size, tp))
        for mixer in block.mixers:
            if isinstance(mixer, LatentAttention):
                latent = LatentShape(
                    num_heads=mixer.num_heads,
                    latent_size=mixer.kv_lora_rank + mixer.qk_rope_head_dim,
                    up_projected_size=mixer.qk_nope_head_dim + mixer.v_head_dim,
                    sparse=mixer.indexer is not None or mixer.index_shared,
                )
    return BudgetShape(
        hidden_size=spec.hidden_size,
        vocab_size=spec.embedding.vocab_size,
        dense_intermediate_size=dense,
        moe=moe_shape,
        latent=latent,
        has_encoder=has_active_encoder(spec, options),
        encoder=encoder_shape(spec, options, tp),
    )


# Copies of keys and values are named from a twentieth of the card on.
_NOTED_SHARE = 20


def _layout_notes(
    spec: ModelSpec, layout: Layout, ledger: GpuLedger, concurrency: int, profile: VllmProfile
) -> list[Note]:
    """What the sizes mean for the user: what was chosen, what is held more than once."""
    out = []
    if layout.note:
        out.append(Note(code="layout", message=layout.note))
    tp, dp = layout.tensor_parallel_size, layout.data_parallel_size
    if dp > 1:
        share = ceil_div(concurrency, dp)
        message = (
            f"cache, tokens and limits are those of one of {dp} data-parallel ranks, which serves "
            f"{share} of {concurrency} sequence{'s' if concurrency > 1 else ''}"
        )
        if _has_experts(spec) and not layout.expert_parallel:
            message += f"; experts are split over all {layout.expert_ranks} GPUs of a stage"
        out.append(Note(code="data-parallel", message=message))
    copies = kv_copies(spec, layout)
    cached = ledger.category_bytes("kv_cache")
    wasted = cached - cached // copies
    # Below that the copies are no reason to choose another layout.
    if wasted * _NOTED_SHARE > ledger.usable_bytes:
        most = tp // max(1, tp // (copies * layout.decode_context_parallel_size))
        latent = any(
            isinstance(mixer, LatentAttention) for block in spec.blocks for mixer in block.mixers
        )
        what = "latent attention has no heads to split" if latent else "fewer KV heads than ranks"
        ways = [f"--tp 1 --dp {tp * dp}{' --ep' if _has_experts(spec) else ''} the sequences"]
        if profile.context_parallel and not has_windows(spec):
            ways.insert(0, f"--dcp {most} shares the tokens out")
        else:
            ways = [ways[0].replace(" the sequences", " shares the sequences out")]
        message = (
            f"{what}: {copies} ranks hold the same keys and values, {format_gib(wasted)} per GPU "
            f"are copies; {', '.join(ways)}"
        )
        out.append(Note(code="kv-replicated", message=message))
    return out


def _asleep(options: VllmSettings, rank: Rank, ledger: GpuLedger) -> list[Note]:
    """What sleep leaves on a GPU: weights and cache go, contexts and graphs stay.

    vLLM 0.33.0 v1/worker/gpu_worker.py:sleep.
    """
    if not options.enable_sleep_mode:
        return []
    stays = ledger.outside_bytes + sum(
        item.size_bytes
        for item in ledger.items
        if item.name in ("runtime.cuda_graphs", "runtime.non_torch")
    )
    message = (
        f"asleep, a GPU keeps about {format_gib(stays)}; level 1 holds its "
        f"{format_gib(rank.weights.resident_bytes)} of weights in host memory, level 2 drops them"
    )
    return [Note(code="sleep", message=message)]


def _unplanned(options: VllmSettings) -> list[Note]:
    names = () if options is _NO_SETTINGS else options.unplanned()
    if not names:
        return []
    message = f"not planned, though it may change memory: {', '.join(names)}"
    return [Note(code="engine-settings", message=message)]


def _warnings(
    spec: ModelSpec,
    gpu: GpuSpec,
    request: Request,
    ledger: GpuLedger,
    load_peak_bytes: int,
) -> list[Note]:
    out = []
    if request.context_tokens is None and default_context(spec) < spec.max_context:
        message = (
            f"LongRoPE: vLLM serves {default_context(spec):,} tokens unless a context is given; "
            f"the model takes up to {spec.max_context:,}"
        )
        out.append(Note(code="longrope", message=message))
    if load_peak_bytes + ledger.outside_bytes > ledger.usable_bytes >= ledger.used_bytes:
        message = (
            f"loading may need {format_gib(load_peak_bytes)} for a moment, while quantized weights "
            "are re-packed: more than the card has"
        )
        out.append(Note(code="load-peak", message=message))
    if gpu.compute_capability is None:
        out.append(
            Note(
                code="gpu-generation-unknown",
                message=(
                    f"{gpu.name} has no NVIDIA compute capability; kernels chosen as for "
                    f"{_capability_text(gpu)}, runtime sizes as on NVIDIA"
                ),
            )
        )
    peak = ledger.budget_bytes + ledger.outside_bytes
    if peak > ledger.usable_bytes:
        out.append(
            Note(
                code="device-peak",
                message=(
                    "budget plus what lies outside it (context, communication) exceeds the card: "
                    "lower --gpu-memory-utilization"
                ),
            )
        )
    half = gpu.compute_capability is not None and _capability(gpu) < (8, 0)  # no bfloat16 there
    if spec.dtype == "float32" and spec.quantization is None and not half:
        out.append(
            Note(code="dtype", message="the checkpoint is float32; vLLM serves it as bfloat16")
        )
    return out
