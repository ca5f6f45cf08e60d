"""Terms of an audit: what the log prints, what the plan says, and why the two differ."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from moesize.core.errors import MoesizeError
from moesize.core.records import dataclass
from moesize.core.units import GIB, format_bytes, format_gib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from moesize.audit import AsRun
    from moesize.calibration import Record
    from moesize.core.ledger import GpuLedger, MemoryItem
    from moesize.core.plan import Plan
    from moesize.logs.detect import Reading
    from moesize.logs.facts import Seen, Start

# Share by which a term without a band of its own may differ, beyond the rounding of the log.
TOLERANCE = {
    "weights": 0.01,
    "kv_tokens_given_kv": 0.005,
    "concurrency": 0.01,
    "model": 0.005,
    "kv": 0.002,
    "state": 0.002,
    "compute": 0.10,
    "output": 0.01,
}
_OTHERWISE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One figure on both sides.

    error   (predicted - logged) / logged; None where one of them is missing or the log says 0
    ok      within band and tolerance; None where nothing was predicted
    rank    the rank or device that it is about, "" = all alike or not said
    """

    name: str
    unit: str
    logged: float
    step: float
    predicted: float | None
    low: float | None
    high: float | None
    ok: bool | None
    why: str
    rank: str = ""
    line: int = 0

    @property
    def error(self) -> float | None:
        """As a share of what was logged."""
        if self.predicted is None or not self.logged:
            return None
        return (self.predicted - self.logged) / abs(self.logged)

    def to_dict(self) -> dict[str, Any]:
        """The row of the JSON document; bytes, tokens and blocks are integers."""
        whole = self.unit != "sequences"

        def number(value: float | None) -> float | int | None:
            return None if value is None else round(value) if whole else round(value, 4)

        return {
            "name": self.name,
            "predicted": number(self.predicted),
            "logged": number(self.logged),
            "error": None if self.error is None else round(self.error, 6),
            "unit": self.unit,
            "why": self.why,
            "low": number(self.low),
            "high": number(self.high),
            "ok": self.ok,
            "rank": self.rank or None,
            "line": self.line or None,
        }


class _Band(NamedTuple):
    best: float
    low: float
    high: float


class _Logged(NamedTuple):
    """A figure of the log over all ranks: the one that decides, and how far they lie apart."""

    value: float
    step: float
    line: int
    ranks: int
    least: float
    most: float


def terms_of(start: Start, run: AsRun | None, plan: Plan | None, error: str) -> tuple[Term, ...]:
    """Every figure of the log; `error` says why nothing is predicted."""
    match start.engine:
        case "vllm":
            return _vllm_terms(start, run, plan, error)
        case "sglang":
            return _sglang_terms(start, run, plan, error)
        case _:
            return _llama_terms(start, run, plan, error)


def _over_ranks(start: Start, name: str, *, least: bool) -> _Logged | None:
    """The least (what every rank must have) or the most of the last figure of each rank."""
    last = {item.rank: item for item in start.all(name)}
    if not last:
        return None
    if least and len(last) == 1:
        # One process may print what each of its workers has: the least of them counts.
        rank = next(iter(last))
        last[rank] = min(start.all(name), key=lambda item: item.value)
    values = [item.value for item in last.values()]
    chosen = (min if least else max)(last.values(), key=lambda item: item.value)
    return _Logged(chosen.value, chosen.step, chosen.line, len(values), min(values), max(values))


def share_of(name: str, *, has_band: bool) -> float:
    """Share of the prediction by which a figure may differ; a band is tolerance enough."""
    return TOLERANCE.get(name, 0.0 if has_band else _OTHERWISE)


def _judge(
    name: str,
    unit: str,
    logged: _Logged,
    band: _Band | None,
    why: str,
    *,
    rank: str = "",
) -> Term:
    ok: bool | None = None
    if band is not None:
        slack = share_of(name, has_band=band.low != band.high) * abs(band.best)
        # The log rounds, and one of its digits more is no disagreement.
        slack += logged.step
        ok = band.low - slack <= logged.value <= band.high + slack
    if logged.ranks > 1 and logged.most - logged.least > logged.step:
        spread = (
            f"{_text(logged.least, unit)} to {_text(logged.most, unit)} on {logged.ranks} ranks"
        )
        why = f"{why}; the log has {spread}"
    return Term(
        name=name,
        unit=unit,
        logged=logged.value,
        step=logged.step,
        predicted=None if band is None else band.best,
        low=None if band is None else band.low,
        high=None if band is None else band.high,
        ok=ok,
        why=why,
        rank=rank,
        line=logged.line,
    )


def _text(value: float, unit: str) -> str:
    if unit == "bytes":
        return format_gib(round(value)) if abs(value) >= GIB // 8 else format_bytes(round(value))
    return f"{value:,.2f}" if unit == "sequences" else f"{round(value):,}"


def _gap(name: str, logged: _Logged, band: _Band, unit: str = "bytes") -> str:
    """The difference in words."""
    apart = logged.value - band.best
    if abs(apart) <= logged.step:
        return "equal within the rounding of the log"
    more = "more" if apart > 0 else "less"
    text = f"{_text(abs(apart), unit)} {more} than predicted"
    if band.low != band.high and band.low - logged.step <= logged.value <= band.high + logged.step:
        return f"{text}, inside the band {_text(band.low, unit)} to {_text(band.high, unit)}"
    if band.low != band.high and abs(apart) > TOLERANCE.get(name, 0.0) * abs(band.best):
        return f"{text}, outside the band {_text(band.low, unit)} to {_text(band.high, unit)}"
    share = TOLERANCE.get(name, _OTHERWISE)
    if abs(apart) <= share * abs(band.best) + logged.step:
        return f"{text}, within {share:.1%}"
    return text


def _sum(items: Iterable[MemoryItem]) -> _Band | None:
    kept = list(items)
    if not kept:
        return None
    return _Band(
        sum(item.size_bytes for item in kept),
        sum(item.low_bytes for item in kept),
        sum(item.high_bytes for item in kept),
    )


def _ledger(plan: Plan, *, most: Callable[[GpuLedger], int]) -> GpuLedger:
    return max(plan.gpus, key=most)


def _loaded(item: MemoryItem) -> bool:
    """What "Model loading took" counts: weights, a draft's weights, adapters."""
    if item.category in ("weights", "lora"):
        return True
    return item.category == "draft" and "kv" not in item.name


# --- vLLM -----------------------------------------------------------------------------------------

_ACTIVATION_ITEMS = ("runtime.moe_workspace", "runtime.mla_workspace")


def _vllm_terms(start: Start, run: AsRun | None, plan: Plan | None, error: str) -> tuple[Term, ...]:
    known_gpu = run is not None and run.gpu is not None
    no_gpu = "needs the GPU: give --gpu" if plan is not None and not known_gpu else error
    out: list[Term] = []
    gaps: dict[str, float] = {}

    def put(
        name: str,
        logged: _Logged | None,
        band: _Band | None,
        *,
        unit: str = "bytes",
        why: str = "",
        needs_gpu: bool = True,
    ) -> None:
        if logged is None:
            return
        if needs_gpu and not known_gpu:
            band = None
        if band is None:
            words = (no_gpu if needs_gpu else error) or why or "not planned for this version"
            out.append(_judge(name, unit, logged, None, words))
            return
        gaps[name] = logged.value - band.best
        gap = _gap(name, logged, band, unit)
        out.append(_judge(name, unit, logged, band, f"{gap}; {why}" if why else gap))

    heaviest = items = None
    if plan is not None:
        heaviest = _ledger(plan, most=lambda g: sum(i.size_bytes for i in g.items if _loaded(i)))
        items = {item.name: item for item in heaviest.items}
    weights = _over_ranks(start, "weights", least=False)
    band = _sum(i for i in heaviest.items if _loaded(i)) if heaviest is not None else None
    put("weights", weights, band, why=_weights_why(weights, band, plan), needs_gpu=False)

    def of(*names: str) -> _Band | None:
        return _sum(items[n] for n in names if n in items) if items is not None else None

    graphs = of("runtime.cuda_graphs")
    charged = items is not None and any(
        i.name == "runtime.cuda_graphs" and i.in_budget for i in items.values()
    )
    if graphs is None and plan is not None and plan.deployment.get("enforce_eager"):
        graphs = _Band(0, 0, 0)
    put(
        "cuda_graphs_estimated",
        _over_ranks(start, "cuda_graphs_estimated", least=False),
        graphs,
        why="" if charged else "graphs are not charged to the budget in this version",
    )
    activations = None
    if heaviest is not None:
        activations = _sum(
            i for i in heaviest.items if i.category == "activations" or i.name in _ACTIVATION_ITEMS
        )
    put("activation_peak", _over_ranks(start, "activation_peak", least=False), activations)
    put("non_torch", _over_ranks(start, "non_torch", least=False), of("runtime.non_torch"))
    consumed = _over_ranks(start, "consumed", least=False)
    if heaviest is not None:
        rest = _sum(
            i
            for i in heaviest.items
            if _loaded(i)
            or i.name in ("runtime.non_torch", "runtime.allocator_slack", "runtime.sampler_state")
        )
        put("consumed", consumed, rest, why="weights, non-torch memory and the allocator's slack")
    else:
        put("consumed", consumed, None)
    _put_held(start, items, put)

    kv = _over_ranks(start, "kv_cache", least=True)
    kv_band = None
    if plan is not None:
        summary = plan.kv_cache
        kv_band = _Band(
            summary.available_bytes, summary.available_low_bytes, summary.available_high_bytes
        )
    put("kv_cache", kv, kv_band, why=_kv_why(kv, kv_band, gaps, plan) if known_gpu else "")
    tokens = _over_ranks(start, "kv_tokens", least=True)
    if tokens is None:
        tokens = _tokens_from_blocks(start, plan)
    if run is not None and plan is not None:
        ends = _capacity(run, kv_band) if known_gpu else None
        put("kv_tokens", tokens, ends, unit="tokens", why="follows from the KV memory")
        given = _capacity(run, _around(kv)) if kv is not None else None
        put(
            "kv_tokens_given_kv",
            tokens if kv is not None else None,
            given,
            unit="tokens",
            why="for the KV memory that the log prints",
            needs_gpu=False,
        )
        _put_concurrency(start, run, kv, known_gpu, put)
    else:
        put("kv_tokens", tokens, None, unit="tokens", needs_gpu=False)
        concurrency = _over_ranks(start, "concurrency", least=True)
        put("concurrency", concurrency, None, unit="sequences", needs_gpu=False)
    put(
        "cuda_graphs",
        _over_ranks(start, "cuda_graphs", least=False),
        graphs,
        why="what capturing took in the end"
        + ("" if charged else "; not charged to the budget in this version"),
    )
    return tuple(out)


def _put_held(start: Start, items: dict[str, MemoryItem] | None, put: Any) -> None:
    total, free = start.last("total_memory"), start.last("free_memory")
    if total is None or free is None or total.rank != free.rank:
        return
    held = _Logged(total.value - free.value, total.step * 2, free.line, 1, total.value, total.value)
    band = None
    if items is not None:
        names = ("runtime.cuda_context", "runtime.communication")
        band = _sum(items[name] for name in names if name in items)
    put("held_before_start", held, band, why="context and communication, and other processes")


def _put_concurrency(
    start: Start, run: AsRun, kv: _Logged | None, known_gpu: bool, put: Any
) -> None:
    logged = _over_ranks(start, "concurrency", least=True)
    if logged is None:
        return
    at = start.last("concurrency_at")
    extra: tuple[str, ...] = ()
    if at is not None and start.flags.get("max_model_len") != round(at.value):
        extra = ("--max-model-len", str(round(at.value)))
    band = _planned(
        run,
        _around(kv) if kv is not None else None,
        lambda p: p.kv_cache.max_concurrency,
        extra,
    )
    put(
        "concurrency",
        logged,
        band,
        unit="sequences",
        why="for the KV memory that the log prints" if kv is not None else "",
        needs_gpu=kv is None and not known_gpu,
    )


def _tokens_from_blocks(start: Start, plan: Plan | None) -> _Logged | None:
    """V0 prints blocks; a block holds what the plan says, 16 tokens unless it was set."""
    blocks = _over_ranks(start, "kv_blocks", least=True)
    if blocks is None:
        return None
    size = start.flags.get("block_size")
    tokens = size if isinstance(size, int) else plan.kv_cache.block_tokens if plan else 16
    return blocks._replace(value=blocks.value * tokens, step=tokens)


def _around(logged: _Logged | None) -> _Band | None:
    if logged is None:
        return None
    half = logged.step / 2
    return _Band(logged.value, logged.value - half, logged.value + half)


def _capacity(run: AsRun, kv: _Band | None) -> _Band | None:
    return _planned(run, kv, lambda p: p.kv_cache.capacity_tokens)


def _planned(
    run: AsRun,
    kv: _Band | None,
    figure: Callable[[Plan], float],
    extra: tuple[str, ...] = (),
) -> _Band | None:
    """A figure of the plan when the cache has the KV bytes of the band; None if refused."""
    try:
        if kv is None:
            best = figure(run.plan(extra))
            return _Band(best, best, best)
        values = [figure(run.plan(extra, kv_bytes=round(size))) if size > 0 else 0.0 for size in kv]
    except MoesizeError:
        return None
    return _Band(values[0], min(values), max(values))


def _weights_why(logged: _Logged | None, band: _Band | None, plan: Plan | None) -> str:
    if logged is None or band is None or plan is None:
        return ""
    ratio = logged.value / max(band.best, 1)
    if 0.98 <= ratio <= 1.02:
        return ""
    for factor, words in (
        (0.5, "half as much: were the weights quantized to 8 bits? --quant says so"),
        (0.28, "about a quarter: were the weights quantized to 4 bits? --quant says so"),
        (2.0, "twice as much: are the weights wider than planned, or TP half as large?"),
    ):
        if abs(ratio / factor - 1) < 0.12:
            return words
    if ratio > 1:
        return (
            "is more loaded than planned (a draft model, adapters, a tower that is not quantized), "
            "or another model?"
        )
    return "is less loaded than planned (no vision tower), or another model or quantization?"


def _kv_why(
    logged: _Logged | None, band: _Band | None, gaps: dict[str, float], plan: Plan | None
) -> str:
    """Which logged terms make up the gap of the KV memory."""
    if logged is None or band is None or plan is None:
        return ""
    gap = logged.value - band.best
    if abs(gap) <= max(logged.step, GIB // 50):
        return ""
    parts, rest = [], gap
    names = {
        "weights": "weights",
        "cuda_graphs_estimated": "CUDA graphs",
        "activation_peak": "activations",
        "non_torch": "non-torch memory",
    }
    if "consumed" in gaps:
        names = {
            "consumed": "weights and non-torch memory",
            "cuda_graphs_estimated": "CUDA graphs",
            "activation_peak": "activations",
        }
    for name, words in names.items():
        apart = gaps.get(name, 0.0)
        if abs(apart) >= GIB // 50:
            parts.append(
                f"{_text(abs(apart), 'bytes')} {'more' if apart > 0 else 'less'} for {words}"
            )
            rest += apart
    if not parts:
        return "the log prints none of the terms that could explain it"
    if abs(rest) >= GIB // 20:
        parts.append(f"{_text(abs(rest), 'bytes')} unexplained")
    return ", ".join(parts)


# --- SGLang ---------------------------------------------------------------------------------------


def _sglang_terms(
    start: Start, run: AsRun | None, plan: Plan | None, error: str
) -> tuple[Term, ...]:
    known_gpu = run is not None and run.gpu is not None
    ledger = None
    if plan is not None:
        ledger = _ledger(plan, most=lambda g: g.category_bytes("weights"))

    def pick(test: Callable[[MemoryItem], bool]) -> _Band | None:
        return _sum(i for i in ledger.items if test(i)) if ledger is not None else None

    summary = plan.kv_cache if plan is not None else None
    kv_band = None
    if summary is not None:
        kv_band = _Band(
            summary.available_bytes, summary.available_low_bytes, summary.available_high_bytes
        )
    out = []

    def put(name: str, logged: _Logged | None, band: _Band | None, unit: str, why: str) -> None:
        if logged is None:
            return
        if band is None or (not known_gpu and name != "weights"):
            words = error or ("needs the GPU: give --gpu" if not known_gpu else "not planned")
            out.append(_judge(name, unit, logged, None, words))
            return
        gap = _gap(name, logged, band, unit)
        out.append(_judge(name, unit, logged, band, f"{gap}; {why}" if why else gap))

    put(
        "weights",
        _over_ranks(start, "weights", least=False),
        pick(lambda i: i.category in ("weights", "lora")),
        "bytes",
        "difference of free memory around loading: context growth and libraries are in it",
    )
    draft = pick(lambda i: i.category == "draft" and "kv" not in i.name)
    put("draft_weights", _over_ranks(start, "draft_weights", least=False), draft, "bytes", "")
    pool = _summed(start, "kv_pool", "state")
    states = start.last("state") is not None
    put("kv_cache", pool, kv_band, "bytes", "KV pool and states together" if states else "")
    tokens = _over_ranks(start, "kv_tokens", least=True) or _over_ranks(
        start, "pool_tokens", least=True
    )
    capacity = None
    if run is not None and summary is not None:
        capacity = _capacity(run, kv_band) or _Band(*(summary.capacity_tokens,) * 3)
    put("kv_tokens", tokens, capacity, "tokens", "")
    if run is not None and pool is not None and plan is not None:
        given = _capacity(run, _around(pool))
        put("kv_tokens_given_kv", tokens, given, "tokens", "for the KV memory that the log prints")
    graphs = pick(lambda i: "cuda_graph" in i.name)
    put("cuda_graphs", _over_ranks(start, "cuda_graphs", least=False), graphs, "bytes", "")
    return tuple(out)


def _is_state(name: str) -> bool:
    return any(word in name for word in ("state", "mamba", "recurrent"))


def _summed(start: Start, *names: str) -> _Logged | None:
    """Several buffers of one rank (K and V, full and sliding) as one figure, the least rank's."""
    by_rank: dict[str, list[Seen]] = {}
    for item in start.seen:
        if item.name in names:
            by_rank.setdefault(item.rank, []).append(item)
    if not by_rank:
        return None
    totals = {
        rank: (sum(i.value for i in found), sum(i.step for i in found), found[-1].line)
        for rank, found in by_rank.items()
    }
    value, step, line = min(totals.values())
    values = [total[0] for total in totals.values()]
    return _Logged(value, step, line, len(values), min(values), max(values))


# --- llama.cpp ------------------------------------------------------------------------------------

_HOST_DEVICES = ("CPU", "CPU_Mapped", "CPU_REPACK", "CPU_AARCH64", "AMX", "CUDA_Host", "BLAS")


def _llama_terms(
    start: Start, run: AsRun | None, plan: Plan | None, error: str
) -> tuple[Term, ...]:
    del run
    out = []
    devices = _llama_devices(start)
    mix = _other_mix(start, plan)
    for name, test in _LLAMA_TERMS:
        by_device: dict[str, list[Seen]] = {}
        # A model that found no room: what was asked for stands in its place.
        asked = start.all("asked") if name == "model" and not start.all(name) else []
        for item in start.all(name) or asked:
            by_device.setdefault(_device_key(item.rank), []).append(item)
        for device, found in by_device.items():
            if name == "compute":  # reserved anew: the last one stands
                found = found[-1:]
            logged = _Logged(
                sum(i.value for i in found), sum(i.step for i in found), found[-1].line, 1, 0, 0
            )
            band = None
            if plan is not None:
                items = _llama_items(plan, device, devices)
                band = _sum(i for i in items if test(i)) if items is not None else None
                if band is None and items is not None:
                    band = _Band(0, 0, 0)
            if band is None:
                words = error or "host buffers are not planned one by one"
                out.append(_judge(name, "bytes", logged, None, words, rank=device))
            else:
                gap = _gap(name, logged, band)
                if name == "model" and device == "host" and logged.value > 2 * band.best:
                    gap += (
                        "; were tensors kept on the host (-ot, --n-cpu-moe)? the log does not say "
                        "which: give --engine-args"
                    )
                if name == "model" and mix and abs(logged.value - band.best) > logged.step:
                    gap += f"; {mix}"
                out.append(_judge(name, "bytes", logged, band, gap, rank=device))
    return tuple(out)


def _other_mix(start: Start, plan: Plan | None) -> str:
    """The file is not the size that this type has today: quantizers mixed other types."""
    file = start.last("file_size")
    if file is None or plan is None:
        return ""
    ours = plan.quantization.weight_bytes
    if abs(file.value - ours) <= max(file.step, ours / 200):
        return ""
    return (
        f"the file has {format_gib(round(file.value))} of tensors, {plan.quantization.scheme} as "
        f"it is made today {format_gib(ours)}: --model FILE.gguf plans the file itself"
    )


_LLAMA_TERMS: tuple[tuple[str, Callable[[MemoryItem], bool]], ...] = (
    ("model", lambda i: i.category == "weights"),
    ("kv", lambda i: i.category == "kv_cache" and not _is_state(i.name)),
    ("state", lambda i: i.category == "kv_cache" and _is_state(i.name)),
    ("compute", lambda i: i.category == "activations" or "compute" in i.name),
    ("output", lambda i: "output" in i.name and i.category in ("runtime", "activations")),
)


def _device_key(name: str) -> str:
    return "host" if name in _HOST_DEVICES or name.endswith("_Host") else name


def _llama_devices(start: Start) -> list[str]:
    """GPUs in the order of their numbers: the ranks of the plan."""
    names = {s.rank for s in start.seen if s.name in ("model", "kv", "state", "compute", "asked")}
    return sorted((n for n in names if _device_key(n) != "host"), key=lambda n: (len(n), n))


def _llama_items(plan: Plan, device: str, devices: list[str]) -> tuple[MemoryItem, ...] | None:
    if device == "host":
        return plan.host or None
    position = devices.index(device)
    return plan.gpus[position].items if position < len(plan.gpus) else None


# --- what a log measures --------------------------------------------------------------------------


def measured(
    reading: Reading, run: AsRun, plan: Plan, terms: tuple[Term, ...], notes: list[str]
) -> list[Record]:
    """Calibration records of a log; notes say which figures were left out and why."""
    from moesize.api import model_kind
    from moesize.calibration import TARGETS, Record
    from moesize.engines import engine_profile

    assert run.gpu is not None
    kind = model_kind(run.spec)
    version = run.version or plan.deployment["engine_version"]
    constants = engine_profile(run.engine, run.version, run.gpu.id, kind).constants
    by_name = {term.name: term for term in terms}
    # NCCL's memory and the context are logged as one figure: only a single GPU tells them apart.
    alone = plan.deployment["gpu_count"] == 1
    out: dict[str, Record] = {}
    for name, targets in TARGETS.items():
        term = by_name.get(name)
        if term is None or term.predicted is None or (name == "held_before_start" and not alone):
            continue
        logged = term.logged
        weights = by_name.get("weights")
        if name == "consumed":
            if weights is None or weights.predicted is None:
                continue
            logged -= weights.logged - weights.predicted
        for target in targets:
            constant = constants.get(target.constant)
            if constant is None or target.constant in out:
                continue
            blank = Record(
                gpu=run.gpu.id,
                engine=run.engine,
                version=version,
                kind=kind if target.by_kind else "",
                constant=target.constant,
                term=name,
                value=constant.value,
                unit=constant.unit[:120],
                date=datetime.datetime.now(datetime.UTC).date().isoformat(),
                log=reading.sha256,
            )
            value = _solve(reading.start, run, term, logged, constant.value, blank)
            if value is None:
                continue
            # Far outside everything known it is no measurement of this constant.
            if not constant.low / 4 <= value <= max(constant.high * 2, constant.value * 4):
                notes.append(
                    f"{name} was not saved: {value:,.4g} {constant.unit} is far outside what "
                    f"{target.constant} can be ({constant.low:g} to {constant.high:g}); does "
                    "another process use the GPU?"
                )
                continue
            out[target.constant] = blank._replace(value=float(round(value, 6)))
    return list(out.values())


def _solve(
    start: Start, run: AsRun, term: Term, logged: float, constant: float, blank: Record
) -> float | None:
    """The constant with which the plan says what the log says; None if it does not decide that.

    The plan is made again with a larger constant: the term must grow in proportion, and must come
    out as logged with the solution.
    """
    from moesize.engines import calibration_trying

    def predicted(value: float) -> float | None:
        with calibration_trying(blank._replace(value=value)):
            try:
                again = terms_of(start, run, run.plan(), "")
            except MoesizeError:
                return None
        return next((t.predicted for t in again if t.name == term.name), None)

    larger = constant * 1.25 or 1.0
    there = predicted(larger)
    if there is None or term.predicted is None or there == term.predicted:
        return None
    value = constant + (logged - term.predicted) * (larger - constant) / (there - term.predicted)
    if value <= 0:
        return None
    check = predicted(value)
    if check is None or abs(check - logged) > max(term.step, abs(logged) / 100):
        return None
    return value
