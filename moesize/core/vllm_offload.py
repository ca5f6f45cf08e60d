"""Weights that vLLM keeps in host memory: what leaves each GPU, and what stays for it.

`--cpu-offload-gb` moves whole parameters, layer by layer in the order of the model, until so many
bytes have been moved; the GPU reads them over the bus. Prefetching moves whole layers and keeps a
buffer of `prefetch_step` of them. Embedding and head stay. vLLM 0.33.0 model_executor/offloader/.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moesize.core.allocator import allocated_bytes
from moesize.core.errors import InvalidDeploymentError, UnsupportedError
from moesize.core.ledger import MemoryItem, exact_item
from moesize.core.plan import Note
from moesize.core.records import dataclass
from moesize.core.units import GIB, format_gib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moesize.core.deployment import Request
    from moesize.core.model_spec import ModelSpec
    from moesize.core.vllm_ranks import Rank
    from moesize.core.vllm_settings import VllmSettings
    from moesize.core.vllm_weights import Parameter, RankWeights

# Name segments of --cpu-offload-params that can be told apart here.
_EXPERTS = ("experts", "routed_experts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offload:
    """What goes to the host.

    limit_bytes    per GPU; None with prefetching
    experts_only   parameters of routed experts alone
    expert_layers  so many layers' experts; "all" of them when `limit_bytes` is None as well
    group_size, num_in_group, prefetch_step   the last layers of every group are prefetched
    """

    limit_bytes: int | None = None
    experts_only: bool = False
    expert_layers: int | None = None
    group_size: int = 0
    num_in_group: int = 1
    prefetch_step: int = 1

    def apply(self, spec: ModelSpec, rank: Rank) -> tuple[Rank, int]:
        """The rank without what it offloads, and the bytes that go to the host for it."""
        moved = list(self._moved(spec, rank))
        if not moved:
            return rank, 0
        weights = _without(rank.weights, moved)
        items = rank.items
        if self.group_size:
            size = self._buffer_bytes(spec, rank)
            words = (
                f"{self.prefetch_step} layer{'s' if self.prefetch_step > 1 else ''} of offloaded "
                f"weights on their way"
            )
            source = "vLLM 0.33.0 model_executor/offloader/prefetch.py:StaticBufferPool"
            buffers = exact_item("runtime.offload_buffers", "runtime", size, words, source)
            items = (*items, buffers)
        total = sum(parameter.size_bytes for parameter in moved)
        return replace(rank, weights=weights, items=items), total

    def _moved(self, spec: ModelSpec, rank: Rank) -> Iterator[Parameter]:
        left = self.limit_bytes
        layers_left = self.expert_layers
        for parameters in self._layers(spec, rank):
            chosen = [p for p in parameters if p.is_expert or not self.experts_only]
            if chosen and layers_left is not None:
                if not layers_left:
                    return
                layers_left -= 1
            for parameter in chosen:
                if left is not None:
                    if left <= 0:
                        return
                    left -= parameter.size_bytes
                yield parameter

    def _layers(self, spec: ModelSpec, rank: Rank) -> Iterator[list[Parameter]]:
        listed = rank.weights.layer_parameters
        if not self.group_size:
            # Towers are built before the layers.
            yield listed.get("tower", [])
        for position, index in enumerate(rank.stage.layers):
            kept = self.group_size - self.num_in_group
            if self.group_size and position % self.group_size < kept:
                continue
            yield [p for p in listed.get(spec.layout[index], []) if index in p.layers]

    def _buffer_bytes(self, spec: ModelSpec, rank: Rank) -> int:
        """A copy of every distinct parameter of the offloaded layers, times the steps ahead."""
        sizes = {
            (parameter.name, parameter.is_scale, parameter.size_bytes): parameter.size_bytes
            for parameters in self._layers(spec, rank)
            for parameter in parameters
            if parameter.is_expert or not self.experts_only
        }
        return sum(sizes.values()) * self.prefetch_step


def _without(weights: RankWeights, moved: list[Parameter]) -> RankWeights:
    by_group = dict(weights.by_group)
    scales, padding = weights.scale_bytes, weights.padding_bytes
    rounding, experts = weights.rounding_bytes, weights.expert_bytes
    for parameter in moved:
        rounding -= allocated_bytes(parameter.size_bytes) - parameter.size_bytes
        if parameter.is_expert:
            experts -= parameter.size_bytes
        if parameter.is_scale:
            scales -= parameter.size_bytes
        else:
            by_group[parameter.group] -= parameter.size_bytes - parameter.padding_bytes
            padding -= parameter.padding_bytes
    return replace(
        weights,
        by_group=by_group,
        scale_bytes=scales,
        padding_bytes=padding,
        rounding_bytes=max(0, rounding),
        expert_bytes=experts,
    )


def plan_offload(spec: ModelSpec, request: Request, settings: VllmSettings) -> Offload | None:
    """What a request keeps in host memory; None for nothing.

    Raises InvalidDeploymentError for what vLLM refuses, UnsupportedError for what is unknown.
    """
    layers = request.offload_experts
    group_size = settings.offload_group_size or 0
    uva = bool(request.cpu_offload_bytes)
    if layers is not None:
        if uva or group_size:
            raise InvalidDeploymentError(
                "--offload-experts and --cpu-offload-gib are one setting of vLLM",
                "give one of them",
            )
        return _experts(spec, request, layers)
    backend = settings.offload_backend or "auto"
    if group_size and backend != "uva":
        count = settings.offload_num_in_group or 1
        step = 1 if settings.offload_prefetch_step is None else settings.offload_prefetch_step
        if count > group_size or step < 1:
            raise InvalidDeploymentError(
                f"offload_num_in_group ({count}) must not exceed offload_group_size "
                f"({group_size}), and offload_prefetch_step ({step}) must be at least 1"
            )
        return Offload(
            group_size=group_size,
            num_in_group=count,
            prefetch_step=step,
            experts_only=_experts_only(settings.offload_params),
        )
    if not uva or backend == "prefetch":
        return None
    return Offload(
        limit_bytes=request.cpu_offload_bytes,
        experts_only=_experts_only(settings.cpu_offload_params),
    )


def _experts_only(segments: tuple[str, ...] | None) -> bool:
    if not segments:
        return False
    if set(segments) <= set(_EXPERTS):
        return True
    raise UnsupportedError(
        f"offloading parameters by the names {', '.join(segments)[:80]} is not planned",
        "experts can be named, or nothing",
    )


def _experts(spec: ModelSpec, request: Request, layers: int | str) -> Offload:
    from moesize.core.inventory import moe_of

    if not any(moe_of(block) for block in spec.blocks):
        raise InvalidDeploymentError(
            f"{spec.title} has no experts to offload", "use --cpu-offload-gib"
        )
    if layers == "all":
        return Offload(experts_only=True)
    if request.pipeline_parallel_size not in (None, 1):
        raise UnsupportedError(
            "experts of a number of layers with pipeline stages are not planned",
            "use --offload-experts all, or --cpu-offload-gib per GPU",
        )
    return Offload(experts_only=True, expert_layers=int(layers))


def host_item(moved: list[tuple[int, int]]) -> MemoryItem:
    """(bytes of a rank, GPUs alike) of every kind of rank as an item of the host."""
    total = sum(size * count for size, count in moved)
    most = max(size for size, _ in moved)
    return exact_item(
        "weights.offloaded",
        "weights",
        total,
        f"{sum(count for _, count in moved)} GPUs, up to {format_gib(most)} each; pinned",
        "vLLM 0.33.0 model_executor/offloader/uva.py",
    )


def offload_notes(offload: Offload, most_bytes: int) -> list[Note]:
    """How vLLM is told, where that is not what the user typed."""
    if offload.group_size or not offload.experts_only or offload.limit_bytes is not None:
        return []
    gib = -(-most_bytes * 100 // GIB) / 100
    message = (
        f"vLLM offloads by bytes and names: --cpu-offload-gb {gib:g} --cpu-offload-params experts"
    )
    return [Note(code="offload", message=message)]
