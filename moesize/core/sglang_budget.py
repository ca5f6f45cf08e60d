"""SGLang's share of a GPU: `mem_fraction_static` and what it is derived from.

SGLang measures nothing before it sizes its pool. It takes the memory that `nvidia-smi` shows,
subtracts a reserve for activations and graphs that follows from a few settings, and rounds. The
rules differ by release; they are facts of `data/engines/sglang.json`. Sizes here are in MiB, as in
the engine (`srt/server_args.py`, from 0.5.20 on `srt/arg_groups/memory_hook.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from moesize.core.errors import InvalidDeploymentError
from moesize.core.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Disaggregation = Literal["", "prefill", "decode"]

# arg_groups/memory_hook.py, also server_args.py from 0.5.5 on.
_METADATA_MIB = 512
_MIB_PER_TOKEN = 1.5
_LEAST_TOKENS = 2048
_MIB_PER_GRAPH_SEQUENCE = 2
_LARGE_GRAPH_SEQUENCES = 300
_LARGE_CARD_MIB = 60 * 1024
_LARGE_CARD_RESERVE_MIB = 10 * 1024
_PREFILL_GRAPH_MIB = 8
_LATENT_PREFILL_GRAPHS_MIB = 1536
_DEEPEP_MIB = 2048
_SMALL_TENSOR_PARALLEL = 4
# adjust_mem_fraction_for_vlm: a ViT-L/14 is the measure.
_VISION_FACTOR = 0.95
_VISION_REFERENCE = 24 * 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class ReserveSettings:
    """What the reserve depends on.

    driver_mib           memory.total of nvidia-smi, the smallest GPU
    chunked_prefill_size, graph_max_sequences   as given; None = by memory. A chunk below 1
                         switches chunked prefill off
    max_running          --max-running-requests, if given
    speculation          algorithm in upper case, empty without
    prefill_graphs       prefill runs in CUDA graphs on this model and layout
    vision_size          layers x hidden size squared of the vision tower; 0 = no tower
    """

    driver_mib: float
    tensor_parallel_size: int
    pipeline_parallel_size: int = 1
    attention_data_parallel_size: int = 1
    chunked_prefill_size: int | None = None
    max_prefill_tokens: int = 16384
    graph_max_sequences: int | None = None
    decode_graphs: bool = True
    max_running: int | None = None
    speculation: str = ""
    num_draft_tokens: int = 1
    latent: bool = False
    prefill_graphs: bool = False
    deepep: bool = False
    vision_size: int = 0
    disaggregation: Disaggregation = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityDefaults:
    """Settings that follow from the memory of the card.

    `chunked_prefill_size` is that of the whole server; a data-parallel attention rank takes its
    part of it.
    """

    chunked_prefill_size: int
    graph_max_sequences: int


def capacity_defaults(settings: ReserveSettings, facts: Mapping[str, Any]) -> CapacityDefaults:
    """Prefill chunk and largest decode graph, as given or by memory and tensor parallel size."""
    chunk, few, many = next(
        row[1:] for row in facts["capacity_steps"] if row[0] is None or settings.driver_mib < row[0]
    )
    graphs = few if settings.tensor_parallel_size < _SMALL_TENSOR_PARALLEL else many
    if facts["graphs_capped_by_running"] and settings.max_running is not None:
        graphs = min(graphs, settings.max_running)
    return CapacityDefaults(
        chunked_prefill_size=chunk
        if settings.chunked_prefill_size is None
        else settings.chunked_prefill_size,
        graph_max_sequences=settings.graph_max_sequences or graphs,
    )


def memory_fraction(settings: ReserveSettings, facts: Mapping[str, Any]) -> float:
    """`mem_fraction_static` when none is given, rounded as the engine does.

    Raises InvalidDeploymentError when the reserve leaves nothing of the card.
    """
    rule = facts["memory_fraction"]
    driver = settings.driver_mib
    if rule["kind"] == "by_tensor_parallel" and driver <= rule["up_to_mib"]:
        fraction: float = next(
            row[1] for row in rule["fractions"] if settings.tensor_parallel_size >= row[0]
        )
    else:
        reserve = _reserve_mib(settings, facts)
        if reserve >= driver:
            raise InvalidDeploymentError(
                f"SGLang reserves {reserve:,.0f} MiB for activations and graphs, the GPU has "
                f"{driver:,.0f} MiB",
                "a smaller --max-num-batched-tokens (--chunked-prefill-size) reserves less",
            )
        fraction = (driver - reserve) / driver
        if rule["kind"] != "by_tensor_parallel":
            fraction = round(fraction, 3)
    if settings.vision_size and facts["vision_factor"] == "by_size":
        fraction *= _vision_factor(settings.vision_size)
    return fraction


def _reserve_mib(settings: ReserveSettings, facts: Mapping[str, Any]) -> float:
    rule = facts["memory_fraction"]
    ranks = settings.tensor_parallel_size * settings.pipeline_parallel_size
    if rule["kind"] == "by_tensor_parallel":
        return float(rule["reserve_above_mib"])
    if rule["kind"] == "by_memory":
        return _reserve_by_memory(settings, rule["reserve_steps"], rule, ranks)
    capacity = capacity_defaults(settings, facts)
    reserve = _METADATA_MIB + _MIB_PER_TOKEN * _activation_tokens(settings, capacity)
    reserve += ranks / 8 * 1024
    reserve += _graph_mib(settings, capacity, rule)
    if settings.driver_mib > _LARGE_CARD_MIB:
        reserve = max(reserve, _LARGE_CARD_RESERVE_MIB)
    reserve += _speculation_mib(settings, rule)
    if settings.deepep and rule["deepep"] and settings.decode_graphs:
        reserve += _DEEPEP_MIB if settings.disaggregation != "prefill" else 0
    return reserve


def _reserve_by_memory(
    settings: ReserveSettings, steps: Sequence[Any], rule: Mapping[str, Any], ranks: int
) -> float:
    base, per_rank = next(
        row[1:] for row in steps if row[0] is None or settings.driver_mib < row[0]
    )
    reserve: float = base + per_rank * ranks + _speculation_mib(settings, rule)
    if settings.attention_data_parallel_size > 1:
        reserve += rule["dp_attention_mib"]
    return reserve


def _speculation_mib(settings: ReserveSettings, rule: Mapping[str, Any]) -> float:
    if not settings.speculation:
        return 0
    if settings.speculation == "STANDALONE":
        return float(rule["standalone_mib"])
    return float(0 if settings.speculation in rule["no_draft"] else rule["speculation_mib"])


def _activation_tokens(settings: ReserveSettings, capacity: CapacityDefaults) -> int:
    if settings.disaggregation == "decode":
        running = settings.max_running or capacity.graph_max_sequences
        tokens = running * settings.num_draft_tokens
    elif capacity.chunked_prefill_size > 0:
        tokens = capacity.chunked_prefill_size
    else:
        tokens = settings.max_prefill_tokens
    return max(tokens, _LEAST_TOKENS)


def _graph_mib(
    settings: ReserveSettings, capacity: CapacityDefaults, rule: Mapping[str, Any]
) -> float:
    """Decode graphs by their largest batch, prefill graphs by their number."""
    sequences, ranks = capacity.graph_max_sequences, settings.attention_data_parallel_size
    reserve = 0.0
    decode = settings.disaggregation != "prefill"
    # Up to 0.5.10 graphs are counted even where they are switched off.
    if decode and (settings.decode_graphs or rule["counts_disabled_graphs"]):
        reserve += sequences * _MIB_PER_GRAPH_SEQUENCE
    if ranks > 1 and decode:
        reserve += sequences * ranks * 3
        if sequences > _LARGE_GRAPH_SEQUENCES:
            reserve += sequences * ranks * 1.5
    if settings.prefill_graphs and settings.disaggregation != "decode":
        reserve += prefill_graph_mib(settings, capacity)
    return reserve


def prefill_graph_mib(settings: ReserveSettings, capacity: CapacityDefaults) -> int:
    """What the engine expects prefill graphs to take beside tensors."""
    if settings.latent:
        return _LATENT_PREFILL_GRAPHS_MIB
    return len(prefill_graph_sizes(capacity.chunked_prefill_size)) * _PREFILL_GRAPH_MIB


def prefill_graph_sizes(most_tokens: int) -> list[int]:
    """Token counts that prefill graphs are captured for (cuda_graph_hook.py, 0.5.23)."""
    sizes = [
        *range(4, 33, 4),
        *range(48, 257, 16),
        *range(288, 513, 32),
        *range(576, 1025, 64),
        *range(1280, 4097, 256),
        *range(4608, most_tokens + 1, 512),
    ]
    return [size for size in sizes if size <= most_tokens]


def _vision_factor(vision_size: int) -> float:
    growth = 0.1 * (vision_size / _VISION_REFERENCE - 1)
    return _VISION_FACTOR * max(0.8, min(1.05, 1 - growth))
