"""TensorRT-LLM and Text Generation Inference, at the level of their documented rules.

Both load the weights, run the largest prompt once, and give what is left to a pool of KV blocks:

    TGI            pool = fraction * 0.9 * total - what the device holds after the warm-up
    TensorRT-LLM   pool = free_gpu_memory_fraction * (total - peak of the profile run)

so TGI's fraction is one of the card and TensorRT-LLM's one of what is free. Read in
huggingface/text-generation-inference at db931fcf (3.3.7: `server/.../models/flash_causal_lm.py`,
`models/globals.py`, `utils/import_utils.py`, `launcher/src/main.rs`) and in NVIDIA/TensorRT-LLM at
000439672 (`tensorrt_llm/_torch/pyexecutor/_util.py`), `KvCacheConfig` of its documentation.
How they split tensors is taken to be as vLLM does; models whose cache neither rule describes are
refused.

Symbols: T tokens of the largest prefill, H hidden size, F feed-forward width per rank, k experts
per token, t tensor-parallel size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from moesize.core.attention import GroupedQueryAttention, LatentAttention
from moesize.core.checkpoint import keep
from moesize.core.deployment import POOL_FIELDS, choose_layout, defaulted_names
from moesize.core.engine import Constant, Constants, EngineAnswer, EngineProfile, RankCost
from moesize.core.errors import InvalidDeploymentError, UnsupportedError
from moesize.core.feed_forward import DenseMlp
from moesize.core.inventory import moe_of
from moesize.core.kv_cache import KV_BITS
from moesize.core.ledger import GpuLedger, MemoryItem, exact_item
from moesize.core.plan import KvSummary, Note
from moesize.core.records import dataclass
from moesize.core.units import ceil_div, format_bytes
from moesize.core.vllm_weights import (
    RankWeights,
    Stage,
    pipeline_stages,
    rank_weights,
    valid_tensor_parallel_sizes,
)

if TYPE_CHECKING:
    from moesize.core.checkpoint import StoredEntry
    from moesize.core.deployment import Layout, Request
    from moesize.core.gpu import GpuSpec
    from moesize.core.model_spec import ModelSpec

PLANS = POOL_FIELDS

_DTYPE_BYTES = 2
_WIDEST_PREFILL = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRules:
    """What the data file says about an engine version.

    fraction       share of the card (TGI) or of what is free (TensorRT-LLM), by default
    wiggle         factor on TGI's fraction
    prefill_tokens   T when it can not be derived
    """

    engine: str
    title: str
    version: str
    constants: Constants
    fraction_of: Literal["total", "free"]
    fraction: float
    wiggle: float
    block_tokens: int
    prefill_tokens: int
    prefill_from_compute: bool
    pipeline: bool
    latent: bool
    source: str


def rules_of(profile: EngineProfile) -> PoolRules:
    """The planner's view of what the data files say about a version."""
    facts = profile.facts
    return PoolRules(
        engine=profile.engine,
        title=profile.title,
        version=profile.version,
        constants=profile.constants,
        fraction_of=facts["fraction_of"],
        fraction=facts["fraction"],
        wiggle=facts["wiggle"],
        block_tokens=facts["block_tokens"],
        prefill_tokens=facts["prefill_tokens"],
        prefill_from_compute=facts["prefill_from_compute"],
        pipeline=facts["pipeline"],
        latent=facts["latent"],
        source=facts["pool_source"],
    )


def plan_pool(
    spec: ModelSpec,
    stored: tuple[StoredEntry, ...],
    gpu: GpuSpec,
    request: Request,
    rules: PoolRules,
) -> EngineAnswer:
    """Plan one replica on equal GPUs.

    Raises InvalidDeploymentError for settings that the engine refuses, UnsupportedError for models
    that its documented rules do not describe.
    """
    if request.engine_settings is not None:
        raise UnsupportedError(f"settings of another engine were given to {rules.title}")
    layout = choose_layout(request, valid_tensor_parallel_sizes(spec), spec.title)
    if layout.pipeline_parallel_size > 1 and not rules.pipeline:
        raise InvalidDeploymentError(
            f"{rules.title} has no pipeline parallelism",
            f"use a --tp that the model allows: {valid_tensor_parallel_sizes(spec)}",
        )
    tp = layout.tensor_parallel_size
    context = request.context_tokens or spec.max_context
    if context > spec.max_context:
        raise InvalidDeploymentError(
            f"context {context:,} is longer than the {spec.max_context:,} tokens of {spec.title}",
            f"use --context {spec.max_context} or less",
        )
    concurrency = request.concurrency or 1
    stages = pipeline_stages(spec.num_layers, layout.pipeline_parallel_size)
    weights = _weights(spec, stored, layout, stages, gpu.compute_capability)
    kv_dtype, element_bits = _kv_dtype(spec, request, rules)
    usable = gpu.usable_memory()
    total = usable.best_bytes
    tokens = _prefill_tokens(spec, gpu, request, rules, context, tp)
    fraction = request.gpu_memory_utilization or rules.fraction
    per_token = [_token_bytes(spec, stage, tp, element_bits, rules) for stage in stages]
    if not all(per_token):
        raise UnsupportedError(
            f"{spec.title} keeps no keys and values: {rules.title}'s pool says nothing about it",
            "plan it with --engine vllm",
        )
    blocks_each = ceil_div(context, rules.block_tokens)
    needed = [concurrency * blocks_each * rules.block_tokens * size for size in per_token]
    ledgers: list[GpuLedger] = []
    available: list[tuple[int, int, int]] = []
    for stage, held, size, need in zip(stages, weights, per_token, needed, strict=True):
        runtime = _runtime_items(spec, stage, rules, tokens, tp, request)
        left = [
            total
            - held.resident_bytes
            - sum(getattr(item, name) for item in runtime if item.in_budget)
            for name in ("size_bytes", "high_bytes", "low_bytes")
        ]
        budget = total
        reserve: list[MemoryItem] = []
        if rules.fraction_of == "total":
            budget = int(total * fraction * rules.wiggle)
            left = [amount - (total - budget) for amount in left]
        else:
            pool = [int(max(0, amount) * fraction) for amount in left]
            reserve = [
                exact_item(
                    "reserve.free_fraction",
                    "reserve",
                    max(0, left[0]) - pool[0],
                    f"1 - {fraction:g} of the {format_bytes(max(0, left[0]))} that are free",
                    rules.source,
                )
            ]
            left = [kept if amount > 0 else amount for kept, amount in zip(pool, left, strict=True)]
        if request.kv_cache_bytes is not None:
            left = [request.kv_cache_bytes] * 3
        available.append((left[0], left[1], left[2]))
        formula = (
            f"{concurrency} x {blocks_each:,} blocks of {rules.block_tokens} tokens x "
            f"{size:,} bytes per token"
        )
        ledgers.append(
            GpuLedger(
                rank=stage.index * tp,
                pp_stage=stage.index,
                usable_bytes=total,
                budget_bytes=budget,
                items=(
                    *_weight_items(held, tp),
                    exact_item("kv_cache", "kv_cache", need, formula, rules.source),
                    *runtime,
                    *reserve,
                ),
            )
        )
    shortfalls = [need - best for need, (best, _, _) in zip(needed, available, strict=True)]
    limiting = max(range(len(stages)), key=lambda i: shortfalls[i])
    blocks = min(
        max(0, best) // (size * rules.block_tokens)
        for (best, _, _), size in zip(available, per_token, strict=True)
    )
    capacity = blocks * rules.block_tokens
    held = weights[limiting]
    longest = min(spec.max_context, blocks // concurrency * rules.block_tokens)
    best, low, high = available[limiting]
    return EngineAnswer(
        deployment={
            "engine": rules.engine,
            "engine_version": rules.version,
            "gpu": gpu.id,
            "gpu_name": gpu.name,
            "gpu_count": request.num_gpus,
            "tp": tp,
            "pp": len(stages),
            "dp": 1,
            "ep": layout.expert_parallel,
            "context": context,
            "concurrency": concurrency,
            "kv_dtype": kv_dtype,
            "gpu_memory_utilization": fraction,
            "max_num_seqs": request.max_num_seqs,
            "max_num_batched_tokens": tokens,
            "block_size": rules.block_tokens,
            "enforce_eager": bool(request.enforce_eager),
            "kv_cache_memory_bytes": request.kv_cache_bytes,
            "attention_backend": "",
            "moe_backend": None,
            "engine_settings": {"fraction_of": rules.fraction_of},
        },
        defaulted=defaulted_names(request),
        ledgers=tuple(ledgers),
        kv=KvSummary(
            bytes_per_token=per_token[limiting],
            state_bytes_per_sequence=0,
            block_tokens=rules.block_tokens,
            blocks=blocks,
            available_bytes=best,
            available_low_bytes=low,
            available_high_bytes=high,
            needed_bytes=needed[limiting],
            capacity_tokens=capacity,
            max_concurrency=capacity / context,
            max_context=longest,
            dtype=kv_dtype,
        ),
        limiting_rank=stages[limiting].index * tp,
        limiting=RankCost(
            weights_by_group=held.by_group,
            scale_bytes=held.scale_bytes,
            parameter_bytes=held.parameter_bytes,
            num_layers=len(stages[limiting].layers),
        ),
        warnings=tuple(_warnings(rules, layout.note)),
    )


def _weights(
    spec: ModelSpec,
    stored: tuple[StoredEntry, ...],
    layout: Layout,
    stages: tuple[Stage, ...],
    compute_capability: str | None,
) -> list[RankWeights]:
    """Weights of a rank of every stage."""
    tp, ep = layout.tensor_parallel_size, layout.expert_parallel_size

    def made() -> list[RankWeights]:
        return [
            rank_weights(
                spec,
                stored,
                tensor_parallel_size=tp,
                expert_parallel_size=ep,
                compute_capability=compute_capability,
                stage=stage,
            )
            for stage in stages
        ]

    return keep(spec, stored, ("pool_weights", tp, ep, stages, compute_capability), made)


def _kv_dtype(spec: ModelSpec, request: Request, rules: PoolRules) -> tuple[str, int]:
    name = request.kv_dtype or "auto"
    if name == "auto":
        name = "bfloat16" if spec.dtype == "float32" else spec.dtype
    bits = KV_BITS.get({"bf16": "bfloat16", "fp16": "float16"}.get(name, name), 0)
    if not bits or bits > 16:
        raise UnsupportedError(
            f"KV dtype {name!r} is not planned for {rules.title}", "use auto or fp8"
        )
    return name, bits


def _token_bytes(spec: ModelSpec, stage: Stage, tp: int, bits: int, rules: PoolRules) -> int:
    """Pool bytes of one token on one rank: every layer keeps every token, windows or not."""
    total = 0
    for layer in stage.layers:
        for mixer in spec.block(spec.layout[layer]).mixers:
            if isinstance(mixer, LatentAttention) and rules.latent and mixer.indexer is None:
                width = mixer.kv_lora_rank + mixer.qk_rope_head_dim
            elif isinstance(mixer, GroupedQueryAttention) and not mixer.index_heads:
                if mixer.shares_kv:
                    continue
                heads = max(1, mixer.num_kv_heads // tp)
                width = heads * (mixer.head_dim + mixer.v_head_dim)
            else:
                raise UnsupportedError(
                    f"what {rules.title} keeps for {mixer.kind} layers of {spec.title} is not "
                    "documented",
                    "plan it with --engine vllm",
                )
            total += width * bits // 8
    return total


def _prefill_tokens(
    spec: ModelSpec, gpu: GpuSpec, request: Request, rules: PoolRules, context: int, tp: int
) -> int:
    """Tokens of the warm-up: as given, else peak FLOP/s over FLOPs of a token (TGI), or a default.

    launcher/src/main.rs: `compute_optimal`, capped by the model's positions.
    """
    if request.max_num_batched_tokens is not None:
        return request.max_num_batched_tokens
    tokens = rules.prefill_tokens
    peak = gpu.peak_flops_per_s("bf16")
    if rules.prefill_from_compute and peak and not spec.towers:
        flops = 0
        for name in spec.layout:
            block = spec.block(name)
            for mixer in block.mixers:
                if isinstance(mixer, GroupedQueryAttention):
                    heads = 3 * mixer.num_heads + 2 * mixer.num_kv_heads
                    flops += 2 * heads * mixer.head_dim * spec.hidden_size
            for feed_forward in block.feed_forwards:
                if isinstance(feed_forward, DenseMlp):
                    flops += 6 * spec.hidden_size * feed_forward.intermediate_size
            moe = moe_of(block)
            if moe is not None:
                flops += 6 * spec.hidden_size * moe.intermediate_size * moe.experts_per_token
        best = int(peak) * tp // flops if flops else 0
        tokens = best if best > 100 else tokens
    return max(1, min(tokens, context if rules.prefill_from_compute else tokens, _WIDEST_PREFILL))


def _runtime_items(
    spec: ModelSpec, stage: Stage, rules: PoolRules, tokens: int, tp: int, request: Request
) -> list[MemoryItem]:
    hidden, widest = spec.hidden_size, 0
    for name in {spec.layout[layer] for layer in stage.layers}:
        block = spec.block(name)
        for feed_forward in block.feed_forwards:
            if isinstance(feed_forward, DenseMlp):
                width = 3 * ceil_div(feed_forward.intermediate_size, tp) + 3 * hidden
                widest = max(widest, width)
        moe = moe_of(block)
        if moe is not None:
            inner = 2 * ceil_div(moe.intermediate_size, tp)
            rows = max(inner, hidden) + max(inner // 2, hidden)
            widest = max(widest, moe.experts_per_token * rows + 4 * hidden)
    peak = tokens * widest * _DTYPE_BYTES
    if stage.last:
        logits = tokens * hidden * _DTYPE_BYTES + _sampled(request) * spec.embedding.vocab_size * 6
        peak = max(peak, logits)
    names = ["non_torch"]
    outside: list[str] = []
    if not request.enforce_eager:
        (outside if rules.fraction_of == "total" else names).append("cuda_graphs")
    if tp * (2 if not (stage.first and stage.last) else 1) > 1:
        names.append("communication")
    items = [
        _item(
            "activations.peak",
            rules.constants["forward_activation_factor"],
            peak,
            f"T x 2 x (3 F/t + 3 H) or the experts' rows; T = {tokens:,}, H = {hidden:,}, t = {tp}",
        )
    ]
    items += [
        _item(f"runtime.{name}", rules.constants[name], 1, "", in_budget=name not in outside)
        for name in (*names, *outside)
    ]
    return items


def _sampled(request: Request) -> int:
    return request.max_num_seqs or 128


def _item(
    name: str, constant: Constant, factor: int, formula: str, *, in_budget: bool = True
) -> MemoryItem:
    best, low, high = (
        round(value * factor) for value in (constant.value, constant.low, constant.high)
    )
    seen = f"seen {constant.observations} times" if constant.observations else "not measured yet"
    return MemoryItem(
        name=name,
        category="activations" if name.startswith("activations") else "runtime",
        size_bytes=best,
        low_bytes=low,
        high_bytes=high,
        formula=formula or f"{format_bytes(best)}, {seen}",
        source=constant.source,
        in_budget=in_budget,
    )


def _weight_items(held: RankWeights, tp: int) -> list[MemoryItem]:
    source = "tensor inventory; split as vLLM does"
    rows = [
        (f"weights.{group}", size, f"elements x element width, 1/{tp} of what is split")
        for group, size in held.by_group.items()
    ]
    rest = held.padding_bytes + held.rounding_bytes + held.latent_copy_bytes
    rows += [
        ("weights.scales", held.scale_bytes, "scales, zero points and tables of quantized weights"),
        ("weights.allocator_rounding", rest, "padding of matrices and rounding of the allocator"),
    ]
    return [
        exact_item(name, "weights", size, formula, source) for name, size, formula in rows if size
    ]


def _warnings(rules: PoolRules, layout_note: str) -> list[Note]:
    notes = [Note(code="layout", message=layout_note)] if layout_note else []
    message = (
        f"{rules.title} is planned by its documented rule alone: no log of a real server was "
        "compared, and tensors are taken to be split as vLLM does"
    )
    return [*notes, Note(code="documented-rule", message=message)]
