"""The `compute` and `performance` objects of a plan: what a token costs and how long it takes."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesize.core.attention import CompressedAttention, LatentAttention
from moesize.core.checkpoint import keep
from moesize.core.compute import (
    average_distinct_experts,
    decode_step_bytes,
    dense_equivalent,
    flops_per_token,
    kv_read_elements,
    prefill_flops,
)
from moesize.core.gpu import PEAK_FORMATS
from moesize.core.records import dataclass
from moesize.core.speed import (
    PerformanceConstants,
    Roofline,
    performance_constants,
    roofline,
)
from moesize.core.units import ceil_div
from moesize.core.weight_formats import (
    BLOCK_TYPES,
    BitsAndBytes4Bit,
    Fp8Block,
    Fp8PerChannel,
    Fp8PerTensor,
    GroupInt,
    Int8PerChannel,
    Mxfp4,
    Mxfp8,
    Nvfp4,
    PackQuantized,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moesize.core.checkpoint import StoredEntry
    from moesize.core.compute import StepBytes
    from moesize.core.engine import EngineAnswer
    from moesize.core.expert_parallel import ExpertBalance
    from moesize.core.gpu import GpuSpec
    from moesize.core.model_spec import ModelSpec

_INDEX_SCALE_ELEMENTS = 128


@dataclass(frozen=True, slots=True)
class Costs:
    """The objects, ready for JSON; `expert_parallel` is None without expert parallelism."""

    compute: dict[str, Any]
    performance: dict[str, Any]
    expert_parallel: dict[str, Any] | None = None


@cache
def _constants() -> PerformanceConstants:
    path = Path(__file__).parent / "data" / "performance.json"
    return performance_constants(json.loads(path.read_bytes()))


def costs(
    spec: ModelSpec, stored: tuple[StoredEntry, ...], gpu: GpuSpec, answer: EngineAnswer
) -> Costs:
    """FLOPs of a token at the planned context, bytes of a decode step on the limiting rank, speed.

    A step decodes all planned sequences at once, each at the full context; pipeline stages take
    them in equal micro-batches, data-parallel ranks in equal shares. FLOPs are those of the whole
    model; bytes and times those of one rank of the limiting stage, with expert parallelism and a
    skew those of the busiest rank, for which the others wait.
    """
    settings = answer.deployment
    context = settings["context"]
    tp, pp = settings["tp"], settings["pp"]
    # SGLang's data-parallel attention lies inside the tensor-parallel group, other ranks beside it.
    inside = answer.limiting.attention_dp
    replicas = max(1, settings["dp"] // inside)
    context_ranks = settings.get("dcp") or 1
    in_flight = ceil_div(settings["concurrency"], pp)
    sequences = ceil_div(in_flight, replicas)
    attended = ceil_div(sequences, inside)
    balance = answer.expert_parallel
    rank = answer.limiting
    token = flops_per_token(spec, context)
    prompt = prefill_flops(spec, context)
    # An encoder-only model (BERT) has no decoder layers; its stage is the whole model.
    all_layers = spec.num_layers or len(spec.encoder_layout)
    layers = rank.num_layers or all_layers
    share = layers / all_layers
    step = decode_step_bytes(
        spec,
        rank.weights_by_group,
        sequences=sequences,
        kv_read_bytes=round(
            _read_bytes(
                kv_read_elements(spec, context, tensor_parallel_size=tp // inside),
                settings["kv_dtype"],
            )
            * attended
            * share
            / context_ranks
        ),
        state_bytes=rank.recurrent_bytes * attended,
        scale_bytes=rank.scale_bytes,
        # The experts of a stage serve the tokens of all its data-parallel ranks.
        routed_tokens=in_flight,
    )
    moe = average_distinct_experts(spec, in_flight)
    step_flops = token.total * sequences * share / tp
    busiest, busiest_flops = step, step_flops
    if balance is not None and balance.skew > 1:
        busiest = _busiest(step, rank.weights_by_group, balance)
        extra = (balance.busiest_factor - 1) * token.to_dict().get("routed_experts", 0)
        busiest_flops += extra * sequences * share / tp
    estimate = partial(
        roofline,
        _constants(),
        engine=settings["engine"],
        vendor=gpu.vendor,
        memory_type=gpu.memory_type,
        bandwidth_bytes_per_s=gpu.memory_bandwidth_bytes_per_s,
        peak_flops_per_s={name: gpu.peak_flops_per_s(name) for name in PEAK_FORMATS},
        scheme=keep(spec, stored, "matmul_scheme", partial(_matmul_scheme, stored)),
        sequences=settings["concurrency"],
        num_layers=layers,
        prefill_flops=round(prompt.total * share / tp),
        prefill_bytes=rank.parameter_bytes,
        mixture_of_experts=moe is not None,
        sparse_attention=_is_sparse(spec),
        integrated=gpu.one_device_is == "soc" and not gpu.memory_type.startswith("HBM"),
        pipeline_parallel_size=pp,
    )
    speed = estimate(step_bytes=max(1, busiest.total), step_flops=round(busiest_flops))
    mean = speed
    if busiest is not step:
        mean = estimate(step_bytes=max(1, step.total), step_flops=round(step_flops))
    compute = {
        "decode_flops_per_token": token.total,
        "decode_flops_by_module": token.to_dict(),
        "prefill_flops": prompt.total,
        "prefill_flops_by_module": prompt.to_dict(),
        "decode_bytes_per_step": busiest.total,
        "decode_bytes_by_part": busiest.to_dict(),
        "expected_distinct_experts": None if moe is None else round(moe, 3),
        **speed.compute_dict(),
        "dense_equivalent": dense_equivalent(spec, context).to_dict(),
    }
    performance = speed.performance_dict()
    elsewhere = sum(item.size_bytes for item in answer.host if item.name == "host.weights.layers")
    if elsewhere or any(item.category == "kv_cache" for item in answer.host):
        performance = dict.fromkeys(performance) | {
            "unknown": ["part of every step is done in the host's memory, whose speed is not known"]
        }
    if not spec.num_layers:
        performance = dict.fromkeys(performance) | {
            "unknown": ["an encoder decodes no tokens; its speed is not estimated"]
        }
    if settings.get("cpu_offload_bytes"):
        performance = dict.fromkeys(performance) | {
            "unknown": ["offloaded weights are read over the bus in every step: not estimated"]
        }
    if balance is None:
        return Costs(compute, performance)
    loads = {
        "balanced": {"bytes": step.total, "ms": _step_ms(mean)},
        "busiest": {"bytes": busiest.total, "ms": _step_ms(speed)},
    }
    return Costs(compute, performance, {**balance.to_dict(), "decode_step": loads})


def _step_ms(speed: Roofline) -> float | None:
    band = speed.time_per_output_token_ms
    return None if band is None else round(band.best, 4)


def _busiest(step: StepBytes, held: Mapping[str, int], balance: ExpertBalance) -> StepBytes:
    """The step on the rank whose experts are chosen `skew` times as often as the mean."""
    load = balance.load(balance.decode_tokens, balance.skew)
    fraction = load.distinct_experts / balance.most_experts
    weights = dict(step.weights)
    weights["routed_experts"] = round(held.get("routed_experts", 0) * fraction)
    return replace(step, weights=weights, routed_fraction=fraction)


def _read_bytes(elements: dict[str, int], kv_dtype: str) -> int:
    block = BLOCK_TYPES.get(kv_dtype.partition("/")[0].upper())
    if block is not None:  # llama.cpp's types; K's type stands for both
        return sum(
            ceil_div(count, block.elements_per_block) * block.bytes_per_block
            for count in elements.values()
        )
    width = 1 if kv_dtype.startswith(("fp8", "int8")) else 4 if kv_dtype == "float32" else 2
    total = 0
    for part, count in elements.items():
        if part == "index":
            total += count + 4 * ceil_div(count, _INDEX_SCALE_ELEMENTS)
        else:
            total += count * width
    return total


def _is_sparse(spec: ModelSpec) -> bool:
    for block in spec.blocks:
        for mixer in block.mixers:
            if isinstance(mixer, CompressedAttention):
                return True
            if isinstance(mixer, LatentAttention) and mixer.indexer is not None:
                return True
    return False


def _matmul_scheme(stored: tuple[StoredEntry, ...]) -> str:
    """The scheme whose arithmetic most of the weights use."""
    largest = max(stored, key=lambda item: item.entry.elements)
    match largest.weight_format:
        case Fp8Block() | Fp8PerChannel() | Fp8PerTensor():
            return "fp8"
        case Mxfp8():
            return "mxfp8"
        case Int8PerChannel():
            return "w8a8"
        case Nvfp4():
            return "nvfp4"
        case Mxfp4():
            return "mxfp4"
        case GroupInt(bits=4) | PackQuantized(bits=4) | BitsAndBytes4Bit():
            return "awq-4bit"
        case _:
            return "fp32" if largest.dtype == "float32" else "bf16"
