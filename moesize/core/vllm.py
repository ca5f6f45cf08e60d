"""vLLM: from a model, its stored weights, a GPU and a request to ledgers and capacity.

The order is the engine's own: weights are loaded, a profile run takes its peak, what is left of
the budget becomes KV blocks. Sources are named by each item.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from moesize.core.attention import LatentAttention
from moesize.core.deployment import Layout, Request, choose_layout
from moesize.core.engine import EngineAnswer, RankCost
from moesize.core.errors import InvalidDeploymentError, InvalidInputError
from moesize.core.feed_forward import DenseMlp
from moesize.core.inventory import moe_of
from moesize.core.ledger import GpuLedger, MemoryItem, exact_item
from moesize.core.plan import KvSummary, Note
from moesize.core.units import ceil_div, format_gib
from moesize.core.vllm_budget import (
    BudgetSettings,
    BudgetShape,
    LatentShape,
    MoeBackend,
    MoeShape,
    VllmBudget,
    max_concurrent_batches,
    vllm_budget,
)
from moesize.core.vllm_kv import (
    KvLayout,
    KvPlan,
    KvSettings,
    group_layers,
    max_context_tokens,
    plan_kv,
)
from moesize.core.vllm_layers import CacheOptions, VllmLayers, vllm_layers
from moesize.core.vllm_settings import VllmSettings as VllmSettings
from moesize.core.vllm_versions import VllmProfile as VllmProfile  # noqa: TC001
from moesize.core.vllm_versions import rules_of as rules_of
from moesize.core.vllm_weights import (
    RankWeights,
    Stage,
    mxfp4_backend,
    pipeline_stages,
    rank_weights,
    valid_tensor_parallel_sizes,
)
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

# Kernels for a device without an NVIDIA compute capability are chosen as for this generation:
# Hopper for AMD Instinct (FP8, sparse MLA), Ampere for a card known by its size only.
_ASSUMED_CAPABILITY = {"amd": "9.0"}
_ASSUMED_OTHERWISE = "8.0"
# v1/attention/backends/*: get_supported_kernel_block_sizes are multiples of this.
_BLOCK_MULTIPLE = 16


# Fields of a Request that this engine plans; others are refused, never ignored.
PLANS = frozenset(
    (
        "engine",
        "engine_version",
        "num_gpus",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "data_parallel_size",
        "expert_parallel",
        "context_tokens",
        "concurrency",
        "kv_dtype",
        "gpu_memory_utilization",
        "max_num_seqs",
        "max_num_batched_tokens",
        "enforce_eager",
        "block_tokens",
        "kv_cache_bytes",
        "engine_settings",
    )
)


def plan_vllm(
    spec: ModelSpec,
    stored: tuple[StoredEntry, ...],
    gpu: GpuSpec,
    request: Request,
    profile: VllmProfile,
) -> EngineAnswer:
    """Plan one replica on equal GPUs.

    Raises InvalidDeploymentError for settings vLLM refuses, UnsupportedError for what is unknown.
    """
    engine_settings = _settings(request)
    layout = choose_layout(request, valid_tensor_parallel_sizes(spec), spec.title)
    tp, capability = layout.tensor_parallel_size, _capability(gpu)
    core = profile.core_for(
        spec,
        vendor=gpu.vendor,
        compute_capability=capability,
        kv_dtype=request.kv_dtype or "auto",
        pipeline_parallel_size=layout.pipeline_parallel_size,
        use_v1=engine_settings.use_v1,
    )
    profile = profile.for_core(core).with_settings(engine_settings)
    stages = pipeline_stages(
        spec.num_layers,
        layout.pipeline_parallel_size,
        profile.weight_rules.pipeline_remainder,
        engine_settings.pp_layer_partition,
    )
    weights = _stage_weights(spec, stored, layout, stages, gpu, profile)
    context = _context(spec, request)
    usable = gpu.usable_memory()
    batch = profile.batch(
        core,
        spec,
        context,
        gpu_total_bytes=usable.best_bytes,
        gpu_name=gpu.name,
        max_num_seqs=request.max_num_seqs,
        max_num_batched_tokens=request.max_num_batched_tokens,
        settings=engine_settings,
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
    states = profile.mamba_cache_mode(spec, engine_settings)
    cache = _cache(
        spec, request, profile, tp, capability, stages, states == "align", engine_settings
    )
    runner = profile.model_runner(spec)
    in_flight = max_concurrent_batches(
        len(stages), runner, async_scheduling=engine_settings.async_scheduling is not False
    )
    settings = KvSettings(
        max_model_len=context,
        max_num_batched_tokens=batch.max_num_batched_tokens,
        max_concurrent_batches=in_flight if profile.kv_rules.counts_all_in_flight else 1,
        mamba_cache_mode=states,
        hybrid_manager=not engine_settings.disable_hybrid_kv_cache_manager,
        block_outermost=cache.block_outermost,
    )
    kv_layout = group_layers(cache.stages, settings, profile.kv_rules)
    utilization = request.gpu_memory_utilization or profile.default_utilization
    budgets = tuple(
        vllm_budget(
            _shape(spec, layout),
            BudgetSettings(
                total_bytes=usable.best_bytes,
                gpu_memory_utilization=utilization,
                compute_capability=capability,
                max_num_batched_tokens=batch.max_num_batched_tokens,
                max_num_seqs=batch.max_num_seqs,
                max_model_len=context,
                block_tokens=kv_layout.block_tokens or cache.block_tokens,
                num_kv_groups=max(1, len(kv_layout.groups)),
                tensor_parallel_size=tp,
                model_runner=runner,
                moe_backend=_moe_backend(stored, capability, profile),
                attention_backend=cache.backend,
                enforce_eager=bool(request.enforce_eager),
                is_last_stage=stage.last,
                loose_state_bytes=cache.loose_state_bytes[stage.index],
                vendor=gpu.vendor,
                segment_bytes=rank.segment_bytes,
                repacked_module_bytes=rank.repacked_module_bytes,
                rules=profile.budget_rules,
            ),
            profile.constants,
        )
        for stage, rank in zip(stages, weights, strict=True)
    )
    concurrency = request.concurrency or 1
    rotary = _rotary_bytes(spec, profile)
    available = [
        _available(budget, rank, rotary, request)
        for budget, rank in zip(budgets, weights, strict=True)
    ]
    kv = plan_kv(kv_layout, settings, [best for best, _, _ in available], profile.kv_rules)
    null_blocks = 1 if profile.kv_rules.reserves_null_block else 0
    needed_blocks = kv.blocks_per_request * concurrency + null_blocks
    needed = [needed_blocks * size for size in kv_layout.stage_block_bytes]
    shortfalls = [n - best for n, (best, _, _) in zip(needed, available, strict=True)]
    limiting = max(range(len(stages)), key=lambda i: shortfalls[i])
    summary = _kv_summary(
        kv,
        kv_layout,
        settings,
        cache,
        limiting,
        available[limiting],
        needed[limiting],
        concurrency,
        spec.max_context,
    )
    ledgers = tuple(
        GpuLedger(
            rank=stage.index * tp,
            pp_stage=stage.index,
            usable_bytes=usable.best_bytes,
            budget_bytes=budget.requested_bytes,
            items=(
                *_weight_items(rank, rotary, layout),
                _kv_item(need, kv, concurrency, context, kv_layout.stage_block_bytes[stage.index]),
                *(_budget_item(item) for item in budget.items),
            ),
        )
        for stage, rank, budget, need in zip(stages, weights, budgets, needed, strict=True)
    )
    held = weights[limiting]
    # Re-packing holds one layer's largest module twice (vLLM process_weights_after_loading).
    load_peak = held.resident_bytes + (held.largest_module_bytes if held.scale_bytes else 0)
    deployment = {
        "engine": "vllm",
        "engine_version": profile.version,
        "gpu": gpu.id,
        "gpu_name": gpu.name,
        "gpu_count": request.num_gpus,
        "tp": tp,
        "pp": len(stages),
        "dp": 1,
        "ep": layout.expert_parallel,
        "context": context,
        "concurrency": concurrency,
        "kv_dtype": cache.kv_dtype,
        "gpu_memory_utilization": utilization,
        "max_num_seqs": batch.max_num_seqs,
        "max_num_batched_tokens": batch.max_num_batched_tokens,
        "block_size": kv_layout.block_tokens or cache.block_tokens,
        "enforce_eager": bool(request.enforce_eager),
        "kv_cache_memory_bytes": request.kv_cache_bytes,
        "attention_backend": cache.backend,
        "moe_backend": _moe_backend(stored, capability, profile) if _has_experts(spec) else None,
        "engine_settings": engine_settings.to_dict(),
    }
    return EngineAnswer(
        deployment=deployment,
        defaulted=_defaulted(request),
        ledgers=ledgers,
        kv=summary,
        limiting_rank=stages[limiting].index * tp,
        limiting=RankCost(
            weights_by_group=held.by_group,
            scale_bytes=held.scale_bytes,
            parameter_bytes=held.parameter_bytes,
            num_layers=len(stages[limiting].layers),
            recurrent_bytes=_recurrent_bytes(cache, limiting),
        ),
        warnings=tuple(_warnings(spec, gpu, request, layout, ledgers[limiting], load_peak)),
        held_before_start=_held_before_start(profile),
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


def _settings(request: Request) -> VllmSettings:
    """The engine's own settings of a request; all defaults when there are none."""
    found = request.engine_settings or VllmSettings()
    if not isinstance(found, VllmSettings):
        raise InvalidInputError(f"engine_settings of vLLM is a {type(found).__name__}")
    return found


def _stage_weights(
    spec: ModelSpec,
    stored: tuple[StoredEntry, ...],
    layout: Layout,
    stages: tuple[Stage, ...],
    gpu: GpuSpec,
    profile: VllmProfile,
) -> tuple[RankWeights, ...]:
    """Weights of a rank of every stage; kept by the spec, for sweeps ask for them again."""
    tp, ep = layout.tensor_parallel_size, layout.expert_parallel_size
    capability, rocm = _capability_text(gpu), gpu.vendor.lower() == "amd"
    kept: dict[tuple[object, ...], tuple[object, tuple[RankWeights, ...]]]
    kept = spec.__dict__.setdefault("_rank_weights", {})
    # `stored` stands beside its weights, so that its identity stays taken.
    rules = profile.weight_rules
    layers = tuple(stage.layers.stop for stage in stages)
    key = (id(stored), tp, ep, layers, capability, rocm, id(rules))
    if key not in kept:
        weights = tuple(
            rank_weights(
                spec,
                stored,
                tensor_parallel_size=tp,
                expert_parallel_size=ep,
                compute_capability=capability,
                rocm=rocm,
                stage=stage,
                rules=rules,
            )
            for stage in stages
        )
        kept[key] = ((stored, rules), weights)
    return kept[key][1]


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
    profile: VllmProfile,
    tp: int,
    capability: tuple[int, int],
    stages: tuple[Stage, ...],
    aligned_states: bool,
    settings: VllmSettings,
) -> VllmLayers:
    options = CacheOptions(
        tensor_parallel_size=tp,
        compute_capability=capability,
        kv_dtype=request.kv_dtype or "auto",
        dtype="bfloat16" if spec.dtype == "float32" else "",
        block_tokens=request.block_tokens,
        checkpoint_kinds=profile.checkpoint_kinds,
        aligned_states=aligned_states,
        conv_dtype=_state_dtype(settings.mamba_cache_dtype),
        recurrent_dtype=_state_dtype(settings.mamba_ssm_cache_dtype),
        rules=profile.cache_rules,
    )
    return vllm_layers(spec, options, [stage.layers for stage in stages])


def _state_dtype(asked: str | None) -> str:
    """Number format of recurrent states: as asked; "" is the model's own."""
    return "" if asked in (None, "auto") else str(asked)


def _available(
    budget: VllmBudget, weights: RankWeights, rotary_bytes: int, request: Request
) -> tuple[int, int, int]:
    """KV bytes of one rank: best, low, high. Negative when the weights do not fit."""
    if request.kv_cache_bytes is not None:
        return (request.kv_cache_bytes,) * 3
    left = budget.requested_bytes - weights.resident_bytes - rotary_bytes
    charged = [item for item in budget.items if item.in_budget]
    best = left - sum(item.bytes for item in charged)
    low = left - sum(item.high_bytes for item in charged)
    high = left - sum(item.low_bytes for item in charged)
    return best, low, high


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
    formats = [item.weight_format for item in stored if item.entry.tensor.expert]
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


def _shape(spec: ModelSpec, layout: Layout) -> BudgetShape:
    """Widths that decide the activation peak, per rank."""
    tp, ep = layout.tensor_parallel_size, layout.expert_parallel_size
    dense = 0
    moe_shape: MoeShape | None = None
    latent: LatentShape | None = None
    for block in spec.blocks:
        for feed_forward in block.feed_forwards:
            if isinstance(feed_forward, DenseMlp):
                dense = max(dense, ceil_div(feed_forward.intermediate_size, tp))
        moe = moe_of(block)
        if moe is not None:
            width = moe.intermediate_size if ep > 1 else ceil_div(moe.intermediate_size, tp)
            moe_shape = MoeShape(
                num_local_experts=ceil_div(moe.num_experts, ep),
                experts_per_token=moe.experts_per_token,
                intermediate_size=width,
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
        has_encoder=bool(spec.towers),
    )


def _rotary_bytes(spec: ModelSpec, profile: VllmProfile) -> int:
    """cos/sin tables that stay on every rank; in some the positions of long videos count."""
    element = {"float32": 4, "bfloat16": 2, "float16": 2}
    model = "bfloat16" if spec.dtype == "float32" else spec.dtype
    sizes = [
        table.positions * table.rotary_dim * element[table.dtype or model] * table.copies
        for table in spec.rotary
    ]
    if sizes and spec.model_type in profile.fourfold_position_types:
        sizes[0] *= 4
    return sum(sizes)


def _weight_items(weights: RankWeights, rotary_bytes: int, layout: Layout) -> list[MemoryItem]:
    source = "tensor inventory; vLLM 0.32.0 model_executor/layers"
    split = f"1/{layout.tensor_parallel_size} of what tensor parallelism splits"
    if layout.expert_parallel_size > 1:
        split += f", whole experts on {layout.expert_parallel_size} ranks"
    rows = [
        (f"weights.{group}", size, f"elements x element width, {split}")
        for group, size in weights.by_group.items()
    ]
    rows += [
        (
            "weights.scales",
            weights.scale_bytes,
            "scales, zero points and tables of quantized matrices",
        ),
        (
            "weights.padding",
            weights.padding_bytes,
            "vocabulary rows to a multiple of 64; MXFP4 experts to kernel tiles",
        ),
        (
            "weights.latent_copies",
            weights.latent_copy_bytes,
            "absorbed MLA matrices, de-quantized beside a quantized kv_b",
        ),
        (
            "weights.repacked",
            weights.repacked_bytes,
            "what loading adds for a kernel: biases in float32, scales in another order",
        ),
        (
            "weights.allocator_rounding",
            weights.rounding_bytes,
            "each tensor rounded as torch's caching allocator does",
        ),
        ("weights.buffers", rotary_bytes, "rotary tables: positions x rotary size x element width"),
    ]
    return [
        exact_item(name, "weights", size, formula, source) for name, size, formula in rows if size
    ]


def _kv_item(
    needed_bytes: int, kv: KvPlan, concurrency: int, context: int, block_bytes: int
) -> MemoryItem:
    formula = (
        f"({concurrency} x {kv.blocks_per_request:,} blocks for {context:,} tokens + 1 null block) "
        f"x {block_bytes:,} bytes"
    )
    return exact_item(
        "kv_cache", "kv_cache", needed_bytes, formula, "vLLM 0.32.0 v1/core/kv_cache_utils.py"
    )


def _budget_item(item: Any) -> MemoryItem:
    return MemoryItem(
        name=item.name,
        category=item.category,
        size_bytes=item.bytes,
        low_bytes=item.low_bytes,
        high_bytes=item.high_bytes,
        formula=item.formula,
        source=item.source,
        in_budget=item.in_budget,
    )


def _kv_summary(
    kv: KvPlan,
    layout: KvLayout,
    settings: KvSettings,
    cache: VllmLayers,
    stage: int,
    available: tuple[int, int, int],
    needed_bytes: int,
    concurrency: int,
    most_context: int,
) -> KvSummary:
    per_token, per_sequence = _steady_state(cache, stage)
    usable_blocks = max(kv.num_blocks - 1, 0)
    longest = replace(settings, max_model_len=most_context)
    return KvSummary(
        bytes_per_token=per_token,
        state_bytes_per_sequence=per_sequence,
        block_tokens=layout.block_tokens or cache.block_tokens,
        blocks=kv.num_blocks,
        available_bytes=available[0],
        available_low_bytes=available[1],
        available_high_bytes=available[2],
        needed_bytes=needed_bytes,
        capacity_tokens=kv.tokens_logged,
        max_concurrency=kv.max_concurrency,
        max_context=max_context_tokens(layout, longest, usable_blocks // concurrency),
        dtype=cache.kv_dtype,
        backend=cache.backend,
        groups=tuple(
            {
                "kind": group.kind,
                "layers": group.num_layers,
                "block_tokens": group.block_tokens,
                "page_bytes": group.page_bytes(stage),
            }
            for group in layout.groups
        ),
    )


def _steady_state(cache: VllmLayers, stage: int) -> tuple[int, int]:
    """(bytes per further token, bytes per sequence that do not grow) on one rank of a stage."""
    per_token = per_sequence = 0
    for pages in cache.stages[stage]:
        if pages.kind in ("mamba", "ring"):
            per_sequence += pages.state_bytes * pages.num_layers
        elif pages.window_tokens is not None:
            per_sequence += (
                pages.state_bytes * pages.num_layers * pages.window_tokens // pages.tokens_per_state
            )
        else:
            per_token += pages.state_bytes * pages.num_layers // pages.tokens_per_state
    return per_token, per_sequence


def _recurrent_bytes(cache: VllmLayers, stage: int) -> int:
    """States of linear attention and Mamba of one sequence: read and written in every step."""
    return sum(
        pages.state_bytes * pages.num_layers
        for pages in cache.stages[stage]
        if pages.kind == "mamba"
    )


def _defaulted(request: Request) -> tuple[str, ...]:
    names = {
        "engine_version": "engine_version",
        "tensor_parallel_size": "tp",
        "pipeline_parallel_size": "pp",
        "data_parallel_size": "dp",
        "expert_parallel": "ep",
        "context_tokens": "context",
        "concurrency": "concurrency",
        "kv_dtype": "kv_dtype",
        "gpu_memory_utilization": "gpu_memory_utilization",
        "max_num_seqs": "max_num_seqs",
        "max_num_batched_tokens": "max_num_batched_tokens",
        "enforce_eager": "enforce_eager",
        "block_tokens": "block_size",
    }
    given = request.given()
    return tuple(shown for field, shown in names.items() if field not in given)


def _warnings(
    spec: ModelSpec,
    gpu: GpuSpec,
    request: Request,
    layout: Layout,
    ledger: GpuLedger,
    load_peak_bytes: int,
) -> list[Note]:
    out = []
    if layout.note:
        out.append(Note(code="layout", message=layout.note))
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
    if spec.dtype == "float32" and spec.quantization is None:
        out.append(
            Note(code="dtype", message="the checkpoint is float32; vLLM serves it as bfloat16")
        )
    return out
