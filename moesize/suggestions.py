"""What would fit instead: every suggestion is planned before it is made."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moesize.core.errors import MoesizeError
from moesize.core.inventory import moe_of
from moesize.core.plan import Plan, Suggestion
from moesize.core.quantization import Scheme, find_scheme
from moesize.core.units import format_gib
from moesize.core.weight_formats import (
    Plain,
)
from moesize.engines import engine_profile, refuse_unplanned
from moesize.gpus import find_gpu

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moesize.core.deployment import Request
    from moesize.core.gpu import GpuSpec
    from moesize.core.model_spec import ModelSpec

# Cards that people can rent or have, small to large; the smallest that fits is named.
_COMMON_GPUS = (
    "l4",
    "a10g",
    "rtx-4090",
    "rtx-5090",
    "l40s",
    "a100-80gb-sxm",
    "h100-80gb-sxm",
    "h200-141gb-sxm",
    "b200",
    "b300",
)
_SHARES = (0.75, 0.8, 0.85, 0.88, 0.9)
_COUNTS = (2, 3, 4, 8, 16)
_SMALLER = ("fp8", "awq-4bit")
_EIGHT_BIT = ("fp8", "fp8-block", "fp8-dynamic", "int8", "w8a8")
# llama.cpp's, large to small; those that people publish most.
_SMALLER_GGUF = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ2_M")
_MOST = 4
# Batches that people serve with; vLLM's own default on large GPUs is 1,024.
_FEWER_SEQUENCES = (256, 128, 64)
_MOST_SEQUENCES = 1024
# A shorter context is worth naming only if it still holds a conversation.
_SHORTEST_CONTEXT = 2048


def suggestions(
    spec: ModelSpec, source: str, scheme: Scheme | None, gpu: GpuSpec, request: Request
) -> tuple[Suggestion, ...]:
    """Up to four changes that fit, cheapest kind first."""
    tries = _Planner(spec, source, scheme, gpu, request)
    ways = [
        tries.shorter_context,
        tries.fewer_sequences,
        tries.larger_share,
        tries.smaller_weights,
        tries.more_gpus,
        tries.larger_gpu,
        tries.smaller_weights_on_more_gpus,
        tries.larger_gpus,
    ]
    # Experts on the host are what people do with llama.cpp, and the last resort of a server.
    ways.insert(3 if "llama" in request.engine else len(ways), tries.experts_on_host)
    found: list[Suggestion] = []
    for way in ways:
        candidate = way() if len(found) < _MOST else None
        if candidate is not None:
            found.append(candidate)
    return tuple(found)


class _Planner:
    def __init__(
        self,
        spec: ModelSpec,
        source: str,
        scheme: Scheme | None,
        gpu: GpuSpec,
        request: Request,
    ) -> None:
        self.spec, self.source, self.scheme = spec, source, scheme
        self.found_larger = False
        self.gpu, self.request = gpu, request
        # Sizes that were given for the old number of GPUs say nothing about a new one.
        self.free = replace(request, tensor_parallel_size=None, pipeline_parallel_size=None)
        # --tp 2 on 4 GPUs leaves two idle: using them is a change worth trying.
        tp = request.tensor_parallel_size
        sizes = (tp or 1) * (request.pipeline_parallel_size or 1)
        used = sizes * (request.data_parallel_size or 1)
        self.idle = tp is not None and used < request.num_gpus
        self.sizes_given = (
            request.tensor_parallel_size is not None or request.pipeline_parallel_size is not None
        )

    def attempt(
        self, request: Request, gpu: GpuSpec | None = None, scheme: Scheme | None = None
    ) -> Plan | None:
        """The plan, or None when the engine refuses it or it does not fit beyond doubt."""
        from moesize.api import make_plan

        try:
            plan = make_plan(
                self.spec,
                self.source,
                scheme or self.scheme,
                "",
                gpu or self.gpu,
                request,
                with_costs=False,
            )
        except MoesizeError:
            return None
        return plan if plan.fits and plan.verdict.certain else None

    def shorter_context(self) -> Suggestion | None:
        from moesize.api import make_plan

        plan = make_plan(
            self.spec, self.source, self.scheme, "", self.gpu, self.request, with_costs=False
        )
        for longest in _round_lengths(plan.kv_cache.max_context):
            shorter = self.attempt(replace(self.request, context_tokens=longest))
            if shorter is not None:
                return _suggestion(
                    f"a context of {longest:,} tokens", ("--context", str(longest)), shorter
                )
        return None

    def fewer_sequences(self) -> Suggestion | None:
        """A smaller batch: vLLM's profile run samples for all its sequences at once."""
        if self.request.engine != "vllm":
            return None
        for most in _FEWER_SEQUENCES:
            if most >= (self.request.max_num_seqs or _MOST_SEQUENCES):
                continue
            plan = self.attempt(replace(self.request, max_num_seqs=most))
            if plan is not None:
                options = ("--max-num-seqs", str(most))
                return _suggestion(f"at most {most} sequences at once", options, plan)
        return None

    def larger_share(self) -> Suggestion | None:
        """More of the card, for an engine that takes its share by formula and not by measure."""
        if self.request.engine != "sglang" or self.request.kv_cache_bytes is not None:
            return None
        for share in _SHARES:
            if share <= (self.request.gpu_memory_utilization or 0):
                continue
            plan = self.attempt(replace(self.request, gpu_memory_utilization=share))
            if plan is not None and not any(n.code == "device-peak" for n in plan.warnings):
                options = ("--gpu-memory-utilization", f"{share:g}")
                return _suggestion(f"a static fraction of {share:g}", options, plan)
        return None

    def smaller(self) -> Iterator[Scheme]:
        """Schemes with smaller weights than what was asked for."""
        own = self.scheme
        if engine_profile(self.request.engine).facts.get("weights") == "gguf":
            names: tuple[str, ...] = _SMALLER_GGUF
            published = self.spec.quantization
            if own is None and published is not None and published.file_type:
                own = find_scheme(published.file_type)  # what a GGUF file says it is of
            if own is not None and own.name in names:
                names = names[names.index(own.name) + 1 :]
            elif own is not None and own.is_gguf:
                names = ()
            yield from map(find_scheme, names)
            return
        quantized = self.spec.quantization is not None if own is None else True
        if own is not None and isinstance(own.weight_format, Plain):
            quantized = False
        if quantized and (own is None or own.name not in _EIGHT_BIT):
            return
        for name in _SMALLER[1:] if quantized else _SMALLER:
            yield find_scheme(name)

    def smaller_weights(self) -> Suggestion | None:
        for scheme in self.smaller():
            plan = self.attempt(self.request, scheme=scheme)
            if plan is not None:
                return _suggestion(f"{scheme.name} weights", ("--quant", scheme.name), plan)
        return None

    def experts_on_host(self) -> Suggestion | None:
        """All routed experts in the host's memory, where the engine can leave them there."""
        if self.request.offload_experts == "all" or not _offloads_experts(self.request.engine):
            return None
        if not any(moe_of(block) is not None for block in self.spec.blocks):
            return None
        plan = self.attempt(replace(self.request, offload_experts="all"))
        if plan is None:
            return None
        size = sum(item.size_bytes for item in plan.host if item.category == "weights")
        what = f"all routed experts on the host, {format_gib(size)} of its memory"
        return _suggestion(what, ("--offload-experts", "all"), plan)

    def more_gpus(self, scheme: Scheme | None = None) -> Suggestion | None:
        for count in _COUNTS:
            least = self.request.num_gpus + (not self.idle)
            if count < least:
                continue
            plan = self.attempt(replace(self.free, num_gpus=count), scheme=scheme)
            if plan is not None:
                what = f"{count} x {self.gpu.name}"
                options = self.gpu_options(plan)
                if scheme is not None:
                    what += f" with {scheme.name} weights"
                    options += ("--quant", scheme.name)
                return _suggestion(what, options, plan)
        return None

    def gpu_options(self, plan: Plan, *, always: bool = True) -> tuple[str, ...]:
        """Number of GPUs, and the parallel sizes where such had been given: the whole change."""
        settings = plan.deployment
        options: tuple[str, ...] = ()
        if always or settings["gpu_count"] > 1:
            options = ("--gpus", str(settings["gpu_count"]))
        if self.sizes_given:
            options += ("--tp", str(settings["tp"]), "--pp", str(settings["pp"]))
        return options

    def smaller_weights_on_more_gpus(self) -> Suggestion | None:
        for scheme in self.smaller():
            found = self.more_gpus(scheme)
            if found is not None:
                return found
        return None

    def larger_gpu(self, count: int | None = None) -> Suggestion | None:
        own = self.gpu.usable_memory().best_bytes
        request = self.request if count is None else replace(self.free, num_gpus=count)
        for name in _COMMON_GPUS:
            other = find_gpu(name).spec
            if other.usable_memory().best_bytes <= own * 1.05:
                continue
            plan = self.attempt(request, gpu=other)
            if plan is not None:
                self.found_larger = True
                options = ("--gpu", other.id, *self.gpu_options(plan, always=count is not None))
                count = plan.deployment["gpu_count"]
                return _suggestion(f"{count} x {other.name}", options, plan)
        return None

    def larger_gpus(self) -> Suggestion | None:
        # Several of a larger kind are worth naming only where one is not enough.
        for count in () if self.found_larger else _COUNTS:
            if count > self.request.num_gpus:
                found = self.larger_gpu(count)
                if found is not None:
                    return found
        return None


def _offloads_experts(engine: str) -> bool:
    """Whether an engine plans with experts in the memory of the host."""
    try:
        refuse_unplanned(engine, {"offload_experts"})
    except MoesizeError:
        return False
    return True


def _round_lengths(longest: int) -> Iterator[int]:
    """Lengths that people use, not above `longest`: multiples of 4096 or 1024, ever smaller."""
    for share in (100, 90, 75, 50, 25):
        part = longest * share // 100
        for step in (4096, 1024):
            length = part // step * step
            if length >= _SHORTEST_CONTEXT:
                yield length
                break


def _suggestion(what: str, options: tuple[str, ...], plan: Plan) -> Suggestion:
    kv = plan.kv_cache
    detail = f"{format_gib(kv.available_bytes)} for KV, {kv.capacity_tokens:,} tokens"
    return Suggestion(what=what, options=options, verdict=plan.verdict, detail=detail)
