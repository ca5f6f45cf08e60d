"""Terms: which figure of a report is compared with which figure of a plan, and in what unit.

Ledger items are found by category and name, never by engine, so that an engine that is added
later is compared without a change here. A report with several candidates (GPU or version not
stated) is predicted where all of them agree within 1 %: as the one in the middle, with a band over
all of them.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from moesize.accuracy.models import is_latent
from moesize.accuracy.runs import is_accelerator, is_mapped, moves_tensors, plan_run
from moesize.core.errors import MoesizeError
from moesize.core.quantization import find_scheme
from moesize.core.records import dataclass
from moesize.core.units import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from moesize.accuracy.models import Resolved
    from moesize.accuracy.reports import FieldReport
    from moesize.accuracy.runs import Run
    from moesize.core.gpu import GpuSpec
    from moesize.core.ledger import GpuLedger, MemoryItem
    from moesize.core.plan import Plan, Verdict

Unit = Literal["GiB", "MiB", "tokens", "requests", "blocks"]

# In the order in which they are shown. What each one is stands in docs/field-reports.md.
TERMS = (
    "weights",
    "draft_weights",
    "kv_gib",
    "kv_tokens_given_kv",
    "kv_tokens_given_available",
    "kv_tokens",
    "concurrency_given_kv",
    "concurrency",
    "kv_blocks_given_kv",
    "kv_blocks",
    "kv_needed",
    "max_context_given_kv",
    "block_size",
    "cuda_graphs",
    "cuda_graphs_estimate",
    "activation_peak",
    "non_torch",
    "model_buffer",
    "model_buffer_host",
    "model_total",
    "kv_buffer",
    "kv_buffer_host",
    "kv_total",
    "state_buffer",
    "state_total",
    "compute_buffer",
    "compute_buffer_host",
    "output_buffer",
    "device_total",
)
# A report is covered when all of these that it has are predicted.
MAIN_TERMS = frozenset(
    (
        "weights",
        "kv_tokens_given_kv",
        "kv_tokens_given_available",
        "kv_blocks_given_kv",
        "model_total",
        "kv_total",
    )
)
# What a forked engine does in its own way.
_NOT_OF_A_FORK = frozenset(
    ("compute_buffer", "compute_buffer_host", "output_buffer", "device_total")
)
_NEEDS_WEIGHTS = frozenset(
    (
        "weights",
        "draft_weights",
        "kv_gib",
        "kv_tokens",
        "concurrency",
        "kv_blocks",
        "model_buffer",
        "model_buffer_host",
        "model_total",
        "device_total",
    )
)
_NEEDS_GPU = frozenset(
    (
        "kv_gib",
        "kv_tokens",
        "concurrency",
        "kv_blocks",
        "cuda_graphs",
        "cuda_graphs_estimate",
        "activation_peak",
        "non_torch",
    )
)
_BY_PLACE = frozenset(("model_buffer", "kv_buffer", "state_buffer", "compute_buffer"))
# Compute buffers are of one layer at a time, however many there are.
_BY_LAYERS = _BY_PLACE - {"compute_buffer"}
_OF_PLACED_WEIGHTS = frozenset(
    ("model_buffer", "model_buffer_host", "compute_buffer", "compute_buffer_host", "device_total")
)
# Engines that keep recurrent states inside the KV buffer; others print a buffer for them.
_STATES_IN_KV = ("ik_llama.cpp",)
# Pools hold size + page_size slots (SGLang 0.5.23 srt/mem_cache/memory_pool.py).
_SPARE_PAGE = ("sglang",)
_COMPUTE = frozenset(("compute_buffer", "compute_buffer_host"))
_OF_CONTEXT = _COMPUTE | {"kv_buffer", "kv_buffer_host", "kv_total", "device_total"}
# Files of the same model that are as small and as large as such files are.
_SMALL_AND_LARGE = ("IQ1_S", "Q8_0")
_OF_HOST_WEIGHTS = frozenset(("model_buffer_host", "model_total"))
_AGREE = 0.01
# Engines print two decimals: the true figure lies within half of the last one.
_HALF_UNIT = 0.005
_STATE_SIZE = re.compile(
    r"max_mamba_cache_size: (\d{1,9}), conv_state size: (\d{1,6}\.\d{1,4})GB, "
    r"ssm_state size: (\d{1,6}\.\d{1,4})GB"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One observed figure. `device` is llama.cpp's name where there is one for each device.

    `printed` is how many printed figures it is the sum of, each of them rounded; `digit` the last
    digit that was printed, where it is not the one that `half_digit` finds.
    """

    term: str
    unit: Unit
    observed: float
    device: str = ""
    index: int = 0
    printed: int = 1
    digit: float = 0.0

    @property
    def rounding(self) -> float:
        """How far the true figure may lie from the printed one."""
        return self.printed * (self.digit / 2 or half_digit(self.observed, self.unit))


def half_digit(value: float, unit: Unit) -> float:
    """Half of the last digit that an engine printed: two decimals, or as many as there are.

    Counts are printed whole, and zeros at the end are lost in a report.
    """
    if unit in ("tokens", "blocks"):
        return 0.0
    decimals = len(f"{value:.6f}".rstrip("0").partition(".")[2])
    half: float = 0.5 / 10 ** max(2, decimals)
    return half


class Prediction(NamedTuple):
    """What a plan says, in the figure's unit.

    `exact_given` when low and high are what the rounding of a logged figure allows: an observation
    between them is met exactly, and one outside is off by its distance from them.
    """

    value: float
    low: float
    high: float
    exact_given: bool = False


# --- what a report holds --------------------------------------------------------------------------


def figures_of(report: FieldReport, *, given_blocks: tuple[int, ...]) -> list[Figure]:
    """The figures of a report that have a term.

    `given_blocks` are block sizes that a user can give; any other one was made by the engine and
    is compared.
    """
    found = [*_serving_figures(report, given_blocks), *_buffer_figures(report)]
    return sorted(found, key=lambda figure: TERMS.index(figure.term))


def _serving_figures(report: FieldReport, given_blocks: tuple[int, ...]) -> Iterator[Figure]:
    seen = report.observed
    kv = seen.get("kv_cache_gib")
    tokens = seen.get("kv_cache_tokens") or seen.get("max_total_num_tokens")
    plain: tuple[tuple[str, str, Unit], ...] = (
        ("weights", "weights_gib", "GiB"),
        ("draft_weights", "draft_weights_gb", "GiB"),
        ("kv_gib", "kv_cache_gib", "GiB"),
        ("concurrency", "max_concurrency", "requests"),
        ("kv_blocks", "gpu_blocks", "blocks"),
        ("cuda_graphs", "cuda_graph_gib", "GiB"),
        ("cuda_graphs_estimate", "cuda_graph_estimated_gib", "GiB"),
        ("activation_peak", "activation_peak_gib", "GiB"),
        ("non_torch", "non_torch_gib", "GiB"),
    )
    for term, name, unit in plain:
        if name in seen:
            yield Figure(term=term, unit=unit, observed=seen[name])
    if tokens:
        yield Figure(term="kv_tokens", unit="tokens", observed=tokens)
    if kv is not None and kv > 0:
        if tokens:
            yield Figure(term="kv_tokens_given_kv", unit="tokens", observed=tokens)
        if "max_concurrency" in seen:
            value = seen["max_concurrency"]
            yield Figure(term="concurrency_given_kv", unit="requests", observed=value)
        if "gpu_blocks" in seen:
            yield Figure(term="kv_blocks_given_kv", unit="blocks", observed=seen["gpu_blocks"])
        if "estimated_max_model_len" in seen:
            value = seen["estimated_max_model_len"]
            yield Figure(term="max_context_given_kv", unit="tokens", observed=value)
    if tokens and _pool_bytes(report) is not None:
        yield Figure(term="kv_tokens_given_available", unit="tokens", observed=tokens)
    if "kv_needed_gib" in seen and seen.get("kv_needed_for_tokens"):
        yield Figure(term="kv_needed", unit="GiB", observed=seen["kv_needed_gib"])
    block = report.number("block_size")
    if block is not None and report.engine == "vllm" and block not in given_blocks:
        yield Figure(term="block_size", unit="tokens", observed=block)
    states = state_gib(seen.get("mamba_cache"))
    if states is not None:
        yield Figure(term="state_total", unit="GiB", observed=states)


def state_gib(value: object) -> float | None:
    """GiB of SGLang's recurrent states, from its log line or from its parts."""
    if isinstance(value, dict):
        return float(value.get("conv_gib", 0)) + float(value.get("ssm_gib", 0))
    match = _STATE_SIZE.search(value[:500]) if isinstance(value, str) else None
    return float(match[2]) + float(match[3]) if match else None


def _pool_bytes(report: FieldReport) -> tuple[int, int, int] | None:
    """(best, low, high) bytes that SGLang gives to its pools.

    available after loading - available before it x (1 - mem_fraction_static), each printed with two
    decimals (SGLang 0.5.23 srt/mem_cache/kv_cache_configurator.py:_profile_available_bytes).
    """
    before = report.observed.get("mem_avail_before_load_gb")
    after = report.observed.get("mem_avail_after_load_gb")
    stated = [
        item.partition("=")[2]
        for item in report.settings.get("other_flags") or ()
        if item.startswith("mem_fraction_static=")
    ]
    if report.engine != "sglang" or not before or not after or not stated:
        return None
    try:
        share = float(stated[0])
    except ValueError:
        return None
    if not 0 < share < 1:
        return None
    # A draft model loads after the pools are made: it takes nothing from them.
    best = after - before * (1 - share)
    slack = _HALF_UNIT * (2 - share)
    found = tuple(int(value * GIB) for value in (best, best - slack, best + slack))
    return (found[0], found[1], found[2]) if found[1] > 0 else None


def _buffer_figures(report: FieldReport) -> Iterator[Figure]:
    seen = report.observed
    model = seen.get("model_buffer_mib") or {}
    yield from _by_device(model, "model_buffer", "model_buffer_host")
    if model:
        total = round(sum(model.values()), 2)
        yield Figure(term="model_total", unit="MiB", observed=total, printed=len(model))
    # Where a log shows a part of the cache only, the collector says which in `kv_detail`.
    kv = {} if "kv_detail" in seen else seen.get("kv_buffer_mib") or {}
    yield from _by_device(kv, "kv_buffer", "kv_buffer_host")
    # What is allocated is a little more than what the log calls the cache itself.
    total = sum(kv.values()) or seen.get("kv_self_mib")
    if total:
        yield Figure(term="kv_total", unit="MiB", observed=round(total, 2), printed=max(1, len(kv)))
    states = seen.get("rs_buffer_mib") or {}
    yield from _by_device(states, "state_buffer", "")
    if states:
        total = round(sum(states.values()), 2)
        yield Figure(term="state_total", unit="MiB", observed=total, printed=len(states))
    yield from _by_device(
        seen.get("compute_buffer_mib") or {}, "compute_buffer", "compute_buffer_host"
    )
    output = sum((seen.get("output_buffer_mib") or {}).values())
    if output:
        yield Figure(term="output_buffer", unit="MiB", observed=output)
    if "projected_device_mib" in seen:
        yield Figure(
            term="device_total", unit="MiB", observed=seen["projected_device_mib"], digit=1
        )
    breakdown = seen.get("memory_breakdown_mib") or {}
    for part, term in (("model", "model_buffer"), ("compute", "compute_buffer")):
        sizes = {device: values[part] for device, values in breakdown.items() if part in values}
        if f"{term}_mib" not in seen:
            yield from _by_device(sizes, term, f"{term}_host", digit=1)


def _by_device(
    sizes: dict[str, float], term: str, host_term: str, digit: float = 0.0
) -> Iterator[Figure]:
    host = 0.0
    index = on_host = 0
    for device in sorted(sizes, key=_device_order):
        if not is_accelerator(device) or device == "Host":
            host += sizes[device]
            on_host += 1
            continue
        yield Figure(
            term=term, unit="MiB", observed=sizes[device], device=device, index=index, digit=digit
        )
        index += 1
    if host and host_term:
        yield Figure(
            term=host_term,
            unit="MiB",
            observed=round(host, 2),
            device="host",
            printed=on_host,
            digit=digit,
        )


def _device_order(device: str) -> tuple[str, int]:
    head = device.rstrip("0123456789")
    return head, int(device[len(head) :] or 0)


# --- what plans say -------------------------------------------------------------------------------


class Plans:
    """The plans of a report's candidates, made when they are asked for and kept."""

    def __init__(self, report: FieldReport, model: Resolved, run: Run) -> None:
        self.report, self.model, self.run = report, model, run
        self._kept: dict[tuple[int, tuple[tuple[str, int], ...]], Plan | str] = {}
        self._others: dict[str, Plans] = {}

    def plan(self, candidate: int, **changes: int) -> Plan:
        """One plan. Raises _RefusedError with the planner's own words."""
        key = (candidate, tuple(sorted(changes.items())))
        if key not in self._kept:
            try:
                made: Plan | str = plan_run(self.model, self.run.candidates[candidate], **changes)
            except MoesizeError as error:
                made = error.message
            except (ValueError, OverflowError) as error:
                # A setting that no planner expects from the command line; the rest still counts.
                made = f"{type(error).__name__}: {error}"[:200]
            self._kept[key] = made
        found = self._kept[key]
        if isinstance(found, str):
            raise _RefusedError(found)
        return found

    def predict(self, figure: Figure) -> Prediction | str:
        """A prediction, or why there is none."""
        reason = self._refusal(figure)
        if reason:
            return reason
        moved = figure.term in _COMPUTE and moves_tensors(self.report)
        if not moved or not self.model.weights_problem:
            return self._predicted(figure)
        # Experts that are copied to a GPU take room there; where the largest and the smallest
        # files agree, they are not.
        found = [self._stored_as(scheme)._predicted(figure) for scheme in _SMALL_AND_LARGE]
        ends = [end for end in found if isinstance(end, Prediction)]
        if len(ends) < len(found) or ends[1].value - ends[0].value > _AGREE * ends[1].value:
            return f"weights not known: {self.model.weights_problem}"
        return Prediction(ends[1].value, ends[0].low, ends[1].high)

    def _predicted(self, figure: Figure) -> Prediction | str:
        made: list[Prediction] = []
        refused = ""
        for candidate in range(len(self.run.candidates)):
            try:
                prediction = _METHODS[figure.term](self, candidate, figure)
            except _RefusedError as error:
                refused = refused or str(error)
                continue
            made.append(prediction)
        if not made:
            return f"settings refused: {refused}"
        return self._agreed(made)

    def _stored_as(self, scheme: str) -> Plans:
        if scheme not in self._others:
            model = replace(self.model, scheme=find_scheme(scheme))
            self._others[scheme] = Plans(self.report, model, self.run)
        return self._others[scheme]

    def verdict(self) -> Verdict | str:
        """Whether it fits, where all candidates say the same, or why there is no answer."""
        reason = self._problem()
        if not reason:
            where = (self.run.weights_moved, self.run.devices_problem, self.run.split_problem)
            unknown = next(filter(None, where), "")
            reason = f"placement not known: {unknown}" if unknown else ""
        if not reason and self.model.weights_problem:
            reason = f"weights not known: {self.model.weights_problem}"
        if not reason and self.run.unplanned:
            reason = self.run.unplanned
        if not reason and not self.run.gpu_known:
            reason = "gpu not known: the outcome depends on it"
        if reason:
            return reason
        made: list[Verdict] = []
        refused = ""
        for candidate in range(len(self.run.candidates)):
            try:
                made.append(self.plan(candidate).verdict)
            except _RefusedError as error:
                refused = refused or str(error)
        if not made:
            return f"settings refused: {refused}"
        if len({verdict.fits for verdict in made}) > 1:
            return "version not known: some fit and some do not"
        return next((verdict for verdict in made if not verdict.certain), made[0])

    def _agreed(self, made: list[Prediction]) -> Prediction | str:
        low, high = min(p.value for p in made), max(p.value for p in made)
        if high - low > _AGREE * abs(high):
            versions = {c.request.engine_version for c in self.run.candidates}
            unknown = "version" if len(versions) > 1 else "gpu"
            return f"{unknown} not known: between {low:,.6g} and {high:,.6g}"
        middle = sorted(made)[(len(made) - 1) // 2]
        return Prediction(
            middle.value, min(p.low for p in made), max(p.high for p in made), middle.exact_given
        )

    def _problem(self) -> str:
        """Why nothing of the report can be planned: its engine, its model, or its settings."""
        if self.run.problem.startswith("engine not planned"):
            return self.run.problem
        return self.model.problem or self.run.problem

    def _refusal(self, figure: Figure) -> str:
        problem = self._problem()
        if problem:
            return problem
        if figure.term in _NEEDS_WEIGHTS and self.model.weights_problem:
            return f"weights not known: {self.model.weights_problem}"
        if figure.term in _NEEDS_GPU and self.run.unplanned:
            return self.run.unplanned
        if figure.term in _NEEDS_GPU and not self.run.gpu_known:
            return "gpu not known: the term depends on it"
        if figure.term in _NOT_OF_A_FORK and self.report.engine != self.run.engine:
            return f"engine not planned: {self.report.engine} builds graphs of its own"
        if figure.term in _OF_HOST_WEIGHTS and is_mapped(self.report):
            return "mapped file: what the log counts overlaps what lies on devices"
        if figure.term in _OF_CONTEXT and self.run.context_problem:
            return f"context not known: {self.run.context_problem}"
        if figure.term in _COMPUTE and self.run.graph_problem:
            return f"graph not known: {self.run.graph_problem}"
        if figure.term == "compute_buffer_host" and self.run.host_graph_problem:
            return f"graph not known: {self.run.host_graph_problem}"
        if figure.term == "output_buffer" and self.run.sequences_problem:
            return f"sequences not known: {self.run.sequences_problem}"
        if figure.term in _BY_PLACE and self.run.devices_problem:
            return f"placement not known: {self.run.devices_problem}"
        if figure.term in _BY_LAYERS and self.run.split_problem:
            return f"placement not known: {self.run.split_problem}"
        if figure.term in _OF_PLACED_WEIGHTS and self.run.weights_moved:
            return f"placement not known: {self.run.weights_moved}"
        return ""


class _RefusedError(Exception):
    """The planner's reason."""


def _weights(plans: Plans, candidate: int, _figure: Figure) -> Prediction:
    ledger = plans.plan(candidate).gpus[0]
    # vLLM loads a draft inside the same measurement; SGLang prints it apart.
    with_draft = plans.run.engine != "sglang"
    kinds = ("weights", "draft") if with_draft else ("weights",)
    return _sum(ledger.items, lambda item: item.category in kinds and _is_weights(item), GIB)


def _is_weights(item: MemoryItem) -> bool:
    return not item.name.startswith(("draft.kv", "draft.activations", "draft.runtime"))


def _draft_weights(plans: Plans, candidate: int, _figure: Figure) -> Prediction:
    items = plans.plan(candidate).gpus[0].items
    found = _sum(items, lambda item: item.category == "draft" and _is_weights(item), GIB)
    if not found.value:
        raise _RefusedError("the plan has no draft model")
    return found


def kv_band(plan: Plan, gpu: GpuSpec) -> tuple[int, int, int]:
    """(best, low, high) bytes left for the KV cache, the card's memory being uncertain as well."""
    kv = plan.kv_cache
    ledger = _limiting(plan)
    spread = gpu.usable_memory()
    share = ledger.budget_bytes / ledger.usable_bytes if ledger.usable_bytes else 0.0
    low = kv.available_low_bytes - int((spread.best_bytes - spread.low_bytes) * share)
    high = kv.available_high_bytes + int((spread.high_bytes - spread.best_bytes) * share)
    return kv.available_bytes, min(low, kv.available_bytes), max(high, kv.available_bytes)


def _limiting(plan: Plan) -> GpuLedger:
    rank = plan.verdict.limiting_rank
    return next((ledger for ledger in plan.gpus if ledger.rank == rank), plan.gpus[0])


def _kv_gib(plans: Plans, candidate: int, _figure: Figure) -> Prediction:
    sizes = kv_band(plans.plan(candidate), plans.run.candidates[candidate].gpu)
    best, low, high = (size / GIB for size in sizes)
    return Prediction(best, low, high)


def _end_to_end(read: Callable[[Plan], float]) -> Callable[[Plans, int, Figure], Prediction]:
    """A capacity from the plan's own KV memory; its band from the ends of that memory's band."""

    def predict(plans: Plans, candidate: int, _figure: Figure) -> Prediction:
        plan = plans.plan(candidate)
        _, low, high = kv_band(plan, plans.run.candidates[candidate].gpu)
        ends = [
            read(plans.plan(candidate, kv_cache_bytes=size)) if size > 0 else 0.0
            for size in (low, high)
        ]
        value = read(plan)
        return Prediction(value, min(value, ends[0]), max(value, ends[1]))

    return predict


def _given_kv(read: Callable[[Plan], float]) -> Callable[[Plans, int, Figure], Prediction]:
    """A capacity of the logged KV memory, which is printed with two decimals."""

    def predict(plans: Plans, candidate: int, _figure: Figure) -> Prediction:
        logged = plans.report.observed["kv_cache_gib"]
        # What an engine shares out: where it prints recurrent states apart, both together.
        logged += state_gib(plans.report.observed.get("mamba_cache")) or 0.0
        half = _HALF_UNIT
        if plans.run.engine in _SPARE_PAGE and not _is_latent(plans):
            half *= 2  # the sum of two printed figures, K and V
        made = [
            plans.plan(candidate, kv_cache_bytes=max(1, int((logged + x) * GIB)))
            for x in (0.0, -half, half)
        ]
        # What SGLang prints as allocated includes a page that no token ever uses.
        spare = made[0].kv_cache.block_tokens if plans.run.engine in _SPARE_PAGE else 0
        values = [max(0.0, read(plan) - spare) for plan in made]
        return Prediction(values[0], min(values), max(values), exact_given=True)

    return predict


def _tokens_given_available(plans: Plans, candidate: int, _figure: Figure) -> Prediction:
    sizes = _pool_bytes(plans.report)
    assert sizes is not None
    values = [
        float(plans.plan(candidate, kv_cache_bytes=size).kv_cache.capacity_tokens) for size in sizes
    ]
    return Prediction(values[0], min(values), max(values), exact_given=True)


def _is_latent(plans: Plans) -> bool:
    return plans.model.spec is not None and is_latent(plans.model.spec)


def _kv_needed(plans: Plans, candidate: int, _figure: Figure) -> Prediction:
    tokens = plans.report.observed["kv_needed_for_tokens"]
    needed = plans.plan(candidate, context_tokens=tokens, concurrency=1).kv_cache.needed_bytes
    return Prediction(needed / GIB, needed / GIB, needed / GIB)


def _block_size(plans: Plans, candidate: int, _figure: Figure) -> Prediction:
    tokens = plans.plan(candidate).kv_cache.block_tokens
    return Prediction(tokens, tokens, tokens)


def _items(*names: str) -> Callable[[Plans, int, Figure], Prediction]:
    """Ledger items of the first rank whose category or name is one of these."""

    def predict(plans: Plans, candidate: int, _figure: Figure) -> Prediction:
        items = plans.plan(candidate).gpus[0].items
        if not any(_named(item, names) for item in items):
            raise _RefusedError(f"the plan has no {names[0].rpartition('.')[2]}")
        return _sum(items, lambda item: _named(item, names), GIB)

    return predict


def _named(item: MemoryItem, names: tuple[str, ...]) -> bool:
    return item.category in names or item.name.startswith(names)


def _estimate(plans: Plans, candidate: int, figure: Figure) -> Prediction:
    items = plans.plan(candidate).gpus[0].items
    own = "runtime.cuda_graph_estimate"
    if any(item.name.startswith(own) for item in items):
        return _items(own)(plans, candidate, figure)
    charged = [i for i in items if i.name.startswith("runtime.cuda_graph") and i.in_budget]
    if not charged:
        raise _RefusedError("the plan charges no estimate of CUDA graphs")
    return _sum(charged, lambda _item: True, GIB)


def _buffers(plans: Plans, candidate: int, figure: Figure, kind: str, where: str) -> Prediction:
    plan = plans.plan(candidate)
    items: list[MemoryItem] = []
    if where in ("all", "host"):
        items += plan.host
    if where == "all":
        items += [item for ledger in plan.gpus for item in ledger.items]
    elif where == "device":
        if figure.index >= len(plan.gpus):
            raise _RefusedError(
                f"the plan has {len(plan.gpus)} devices, none of them {figure.device}"
            )
        items += plan.gpus[figure.index].items
    kinds = (kind, "state") if kind == "kv" and plans.report.engine in _STATES_IN_KV else (kind,)
    return _sum(items, lambda item: _buffer_kind(item) in kinds, MIB)


def _buffer_kind(item: MemoryItem) -> str:
    """Which of llama.cpp's buffers an item is part of."""
    if "output" in item.name and item.category != "weights":
        return "output"
    # The tensors of MTP blocks are loaded with the rest.
    if item.category in ("weights", "lora") or item.name.endswith("mtp_weights"):
        return "model"
    if item.category == "draft":
        return "draft"
    if item.category == "kv_cache":
        states = ("state" in item.name, "recurrent" in item.name, item.name.endswith(".rs"))
        return "state" if any(states) else "kv"
    return "compute" if item.category == "activations" else "runtime"


def _buffer(kind: str, where: str) -> Callable[[Plans, int, Figure], Prediction]:
    return lambda plans, candidate, figure: _buffers(plans, candidate, figure, kind, where)


def _state_total(plans: Plans, candidate: int, figure: Figure) -> Prediction:
    if figure.unit == "MiB":
        return _buffers(plans, candidate, figure, "state", "all")
    items = plans.plan(candidate).gpus[0].items
    if not any(_buffer_kind(item) == "state" for item in items):
        raise _RefusedError("the plan has no item for recurrent states")
    return _sum(items, lambda item: _buffer_kind(item) == "state", GIB)


def _device_total(plans: Plans, candidate: int, _figure: Figure) -> Prediction:
    items = plans.plan(candidate).gpus[0].items
    return _sum(items, lambda item: _buffer_kind(item) != "runtime", MIB)


def _sum(
    items: Iterable[MemoryItem], wanted: Callable[[MemoryItem], bool], unit: int
) -> Prediction:
    found = [item for item in items if wanted(item)]
    return Prediction(
        sum(item.size_bytes for item in found) / unit,
        sum(item.low_bytes for item in found) / unit,
        sum(item.high_bytes for item in found) / unit,
    )


def _tokens(plan: Plan) -> float:
    return float(plan.kv_cache.capacity_tokens)


def _concurrency(plan: Plan) -> float:
    return plan.kv_cache.max_concurrency


def _blocks(plan: Plan) -> float:
    return float(plan.kv_cache.blocks)


def _max_context(plan: Plan) -> float:
    return float(plan.kv_cache.max_context)


_METHODS: dict[str, Callable[[Plans, int, Figure], Prediction]] = {
    "weights": _weights,
    "draft_weights": _draft_weights,
    "kv_gib": _kv_gib,
    "kv_tokens_given_kv": _given_kv(_tokens),
    "kv_tokens_given_available": _tokens_given_available,
    "kv_tokens": _end_to_end(_tokens),
    "concurrency_given_kv": _given_kv(_concurrency),
    "concurrency": _end_to_end(_concurrency),
    "kv_blocks_given_kv": _given_kv(_blocks),
    "kv_blocks": _end_to_end(_blocks),
    "kv_needed": _kv_needed,
    "max_context_given_kv": _given_kv(_max_context),
    "block_size": _block_size,
    "cuda_graphs": _items("runtime.cuda_graphs"),
    "cuda_graphs_estimate": _estimate,
    "activation_peak": _items("activations", "runtime.moe_workspace", "runtime.sampler_state"),
    "non_torch": _items("runtime.non_torch"),
    "model_buffer": _buffer("model", "device"),
    "model_buffer_host": _buffer("model", "host"),
    "model_total": _buffer("model", "all"),
    "kv_buffer": _buffer("kv", "device"),
    "kv_buffer_host": _buffer("kv", "host"),
    "kv_total": _buffer("kv", "all"),
    "state_buffer": _buffer("state", "device"),
    "state_total": _state_total,
    "compute_buffer": _buffer("compute", "device"),
    "compute_buffer_host": _buffer("compute", "host"),
    "output_buffer": _buffer("output", "all"),
    "device_total": _device_total,
}
