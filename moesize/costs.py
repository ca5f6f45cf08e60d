"""The `compute` and `performance` objects of a plan: what a token costs and how long it takes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesize.core.attention import CompressedAttention, LatentAttention
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
from moesize.core.speed import PerformanceConstants, performance_constants, roofline
from moesize.core.units import ceil_div
from moesize.core.weight_formats import (
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
    from moesize.core.checkpoint import StoredEntry
    from moesize.core.engine import EngineAnswer
    from moesize.core.gpu import GpuSpec
    from moesize.core.model_spec import ModelSpec

_INDEX_SCALE_ELEMENTS = 128


@dataclass(frozen=True, slots=True)
class Costs:
    """Both objects, ready for JSON."""

    compute: dict[str, Any]
    performance: dict[str, Any]


@cache
def _constants() -> PerformanceConstants:
    path = Path(__file__).parent / "data" / "performance.json"
    return performance_constants(json.loads(path.read_bytes()))


def costs(
    spec: ModelSpec, stored: tuple[StoredEntry, ...], gpu: GpuSpec, answer: EngineAnswer
) -> Costs:
    """FLOPs of a token at the planned context, bytes of a decode step on the limiting rank, speed.

    A step decodes all planned sequences at once, each at the full context; pipeline stages take
    them in equal micro-batches. FLOPs are those of the whole model; bytes and times those of one
    rank of the limiting stage.
    """
    settings = answer.deployment
    context = settings["context"]
    tp, pp = settings["tp"], settings["pp"]
    sequences = ceil_div(settings["concurrency"], pp)
    attended = ceil_div(sequences, answer.limiting.attention_dp)
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
                kv_read_elements(
                    spec, context, tensor_parallel_size=tp // answer.limiting.attention_dp
                ),
                settings["kv_dtype"],
            )
            * attended
            * share
        ),
        state_bytes=rank.recurrent_bytes * attended,
        scale_bytes=rank.scale_bytes,
    )
    moe = average_distinct_experts(spec, sequences)
    speed = roofline(
        _constants(),
        engine=settings["engine"],
        vendor=gpu.vendor,
        memory_type=gpu.memory_type,
        bandwidth_bytes_per_s=gpu.memory_bandwidth_bytes_per_s,
        peak_flops_per_s={name: gpu.peak_flops_per_s(name) for name in PEAK_FORMATS},
        scheme=_matmul_scheme(stored),
        step_bytes=max(1, step.total),
        step_flops=round(token.total * sequences * share / tp),
        sequences=settings["concurrency"],
        num_layers=layers,
        prefill_flops=round(prompt.total * share / tp),
        prefill_bytes=rank.parameter_bytes,
        mixture_of_experts=moe is not None,
        sparse_attention=_is_sparse(spec),
        integrated=gpu.one_device_is == "soc" and not gpu.memory_type.startswith("HBM"),
        pipeline_parallel_size=pp,
    )
    compute = {
        "decode_flops_per_token": token.total,
        "decode_flops_by_module": token.to_dict(),
        "prefill_flops": prompt.total,
        "prefill_flops_by_module": prompt.to_dict(),
        "decode_bytes_per_step": step.total,
        "decode_bytes_by_part": step.to_dict(),
        "expected_distinct_experts": None if moe is None else round(moe, 3),
        **speed.compute_dict(),
        "dense_equivalent": dense_equivalent(spec, context).to_dict(),
    }
    performance = speed.performance_dict()
    if not spec.num_layers:
        performance = dict.fromkeys(performance) | {
            "unknown": ["an encoder decodes no tokens; its speed is not estimated"]
        }
    return Costs(compute, performance)


def _read_bytes(elements: dict[str, int], kv_dtype: str) -> int:
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
