"""`moesize audit`: a start-up log beside the plan of the same deployment, term by term.

The start is planned as it was run: model, GPU and flags from the log, what the command line gives
on top. Every figure that the log prints is compared with the same figure of the plan.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from moesize._version import __version__
from moesize.audit_advice import Advice, advice_for
from moesize.audit_terms import Term, measured, terms_of
from moesize.core.errors import InvalidInputError, MoesizeError, UnknownNameError
from moesize.core.gpu import GpuSpec, MemoryReading
from moesize.core.model_spec import ModelSpec
from moesize.core.plan import Plan
from moesize.core.records import dataclass
from moesize.core.units import GIB, format_bytes, format_gib
from moesize.engines import calibration_without, engine_id
from moesize.gpus import find_gpu
from moesize.logs.detect import Reading, read_log

if TYPE_CHECKING:
    from typing import BinaryIO

    from moesize.logs.facts import Failure, Start

SCHEMA = "moesize.audit/1"
# A device that holds everything: only terms that need no GPU are read off such a plan.
_ANY_GPU = "4096GiB"
# What a plan says about that card means nothing.
_OF_THE_GPU = frozenset(("layout", "backend", "fit", "gpu", "gpu-generation-unknown"))
_FLAGS_OFF = ("dtype", "quantization", "model", "enable_chunked_prefill", "enable_sleep_mode")
_LLAMA_FLASH = {"enabled": "on", "disabled": "off", "1": "on", "0": "off"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AsRun:
    """A deployment that can be planned again with a change.

    gpu     None when neither the log nor the command line names one
    args    the engine's own flags from the log; `given` are those of the command line, verbatim
    """

    engine: str
    version: str | None
    spec: ModelSpec
    quant: str
    gpu: GpuSpec | None
    gpus: int | None
    args: tuple[str, ...]
    given: str = ""

    def plan(self, extra: tuple[str, ...] = (), *, kv_bytes: int | None = None) -> Plan:
        """The plan with flags added (the last one of a name counts). Raises MoesizeError."""
        from moesize.api import plan

        text = shlex.join(self.args)
        # The last flag of a name counts, but a whole command begins with its own words.
        own = self.given.strip()
        text = f"{text} {own}" if own.startswith("-") else f"{own} {text}"
        text = f"{text} {shlex.join(extra)}".strip()
        return plan(
            self.spec,
            gpu=self.gpu or find_gpu(_ANY_GPU).spec,
            gpus=self.gpus,
            quant=self.quant,
            engine=self.engine,
            engine_version=self.version,
            kv_cache_memory=kv_bytes,
            engine_args=text or None,
            suggest=False,
        )


class Outcome(NamedTuple):
    """How the start ended, and what the plan says about it."""

    logged: str
    predicted: str | None
    cause: str
    line: int

    @property
    def agrees(self) -> bool | None:
        """None where one of the two is not known."""
        if self.predicted is None or self.logged == "unknown":
            return None
        return (self.logged == "started") == (self.predicted != "does not fit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What `moesize audit` says."""

    log: str
    reading: Reading
    model: str
    model_source: str
    quant: str
    gpu: str
    gpus: int
    settings: dict[str, Any]
    outcome: Outcome
    terms: tuple[Term, ...]
    advice: tuple[Advice, ...]
    notes: tuple[str, ...]
    saved: tuple[dict[str, Any], ...] = ()
    saved_to: str = ""
    plan: Plan | None = None

    @property
    def compared(self) -> int:
        """Terms that stand on both sides."""
        return sum(term.ok is not None for term in self.terms)

    @property
    def agrees(self) -> bool:
        """Something was compared, and nothing is outside its tolerance or band."""
        some = self.compared > 0 or self.outcome.agrees is not None
        return (
            some
            and all(term.ok is not False for term in self.terms)
            and self.outcome.agrees is not False
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON document `moesize.audit/1`."""
        start = self.reading.start
        return {
            "schema": SCHEMA,
            "moesize_version": __version__,
            "engine": start.engine,
            "engine_version": start.version or None,
            "model": self.model or None,
            "settings": self.settings,
            "terms": [term.to_dict() for term in self.terms],
            "advice": [item.to_dict() for item in self.advice],
            "agrees": self.agrees,
            "compared": self.compared,
            "outcome": {
                "logged": self.outcome.logged,
                "predicted": self.outcome.predicted,
                "agrees": self.outcome.agrees,
                "cause": self.outcome.cause,
                "line": self.outcome.line or None,
            },
            "log": {
                "name": self.log,
                "sha256": self.reading.sha256,
                "size_bytes": self.reading.size_bytes,
                "container": start.source or None,
                "first_line": start.first_line,
                "last_line": start.last_line,
                "model": start.model or None,
                "gpu": start.gpu or None,
            },
            "model_source": self.model_source or None,
            "quantization": self.quant or None,
            "gpu": self.gpu or None,
            "gpu_count": self.gpus or None,
            "saved": list(self.saved),
            "notes": list(self.notes),
        }


def audit(
    log: str,
    *,
    model: str | None = None,
    gpu: str | None = None,
    gpus: int | None = None,
    quant: str | None = None,
    engine_version: str | None = None,
    engine_args: str | None = None,
    online: bool = False,
    calibration: bool = True,
    save: bool = False,
    stream: BinaryIO | None = None,
) -> Audit:
    """Audit the start-up log in the file `log`, or of `-`. Keyword names are the options.

    What is given wins over what the log says. `save` keeps calibration records. Raises
    MoesizeError: for a file that is no such log, a bad option, a file that cannot be written.
    """
    reading = read_log(log, stream)
    start, notes = reading.start, list(reading.notes)
    with calibration_without(reading.sha256 if calibration else "off"):
        run, error = _as_run(
            start, notes, model, gpu, gpus, quant, engine_version, engine_args, online
        )
        plan = None
        if run is not None:
            try:
                plan = run.plan()
            except MoesizeError as problem:
                error = _said(problem)
        terms = terms_of(start, run, plan, error)
        outcome = _outcome(start, run, plan)
        advice = advice_for(start, run, plan) if run is not None and plan is not None else ()
        if plan is not None:
            unsaid = {"layout"} if run is not None and run.gpu is not None else _OF_THE_GPU
            notes += [note.message for note in plan.warnings if note.code not in unsaid]
            notes += _beside(start, plan)
        saved: tuple[dict[str, Any], ...] = ()
        saved_to = ""
        if save:
            saved, saved_to = _save(reading, run, plan, terms, notes)
    return Audit(
        log=log,
        reading=reading,
        model=run.spec.id if run is not None else start.model,
        model_source=plan.model.source if plan is not None else "",
        quant=run.quant if run is not None else start.quantization,
        gpu=run.gpu.id if run is not None and run.gpu is not None else "",
        gpus=(plan.deployment["gpu_count"] if plan is not None else run.gpus or 0)
        if run is not None and run.gpu is not None
        else 0,
        settings=_settings(start, plan),
        outcome=outcome,
        terms=terms,
        advice=advice,
        notes=tuple(dict.fromkeys(notes)),
        saved=saved,
        saved_to=saved_to,
        plan=plan,
    )


def _said(problem: MoesizeError) -> str:
    return problem.message + (f"; {problem.hint}" if problem.hint else "")


def _as_run(
    start: Start,
    notes: list[str],
    model: str | None,
    gpu: str | None,
    gpus: int | None,
    quant: str | None,
    version: str | None,
    engine_args: str | None,
    online: bool,
) -> tuple[AsRun | None, str]:
    """The deployment of a start, or why it cannot be planned. Bad options raise."""
    from moesize.audit_model import model_of

    given = _words(engine_args or "")
    device = _gpu(start, gpu, notes)
    if quant is not None:
        from moesize.core.quantization import FAMILY_WORDS, find_scheme

        if quant.strip().lower() not in (*FAMILY_WORDS, "checkpoint", "auto"):
            find_scheme(quant)
    engine = _engine(start)
    if not engine:
        return None, f"{start.engine} is not planned yet"
    try:
        found = model_of(start, model, quant, online)
    except MoesizeError as problem:
        if model is not None:
            raise
        return None, _said(problem)
    if found.note:
        notes.append(found.note)
    if version is not None and start.version and version != start.version:
        notes.append(f"the log is of version {start.version}, planned as {version}")
    if not start.version and version is None:
        notes.append("the log does not name the engine's version: planned as the newest known")
    return (
        AsRun(
            engine=engine,
            version=version or start.version or None,
            spec=found.spec,
            quant=found.quant,
            gpu=device,
            gpus=gpus or _ranks(start, given),
            args=_flags(start),
            given=engine_args or "",
        ),
        "",
    )


def _engine(start: Start) -> str:
    """The engine that is planned; empty when there is none."""
    names = [start.engine]
    if start.settings.get("program") == "ik_llama.cpp":
        names.insert(0, "ik_llama.cpp")  # a fork with rules of its own, where they are known
    for name in names:
        try:
            return engine_id(name)
        except UnknownNameError:
            continue
    return ""


def _words(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text, comments=True))
    except ValueError as error:
        raise InvalidInputError(f"--engine-args: {error}", "check the quotes") from error


def _gpu(start: Start, given: str | None, notes: list[str]) -> GpuSpec | None:
    """The GPU as given, or as the log names it, with the memory that the log prints."""
    total = start.last("total_memory")
    spec: GpuSpec | None = None
    if given is not None:
        if given.strip().lower() == "local":
            from moesize.local_gpus import local_gpu

            spec = find_gpu(local_gpu()[0], kind="driver").spec
        else:
            spec = find_gpu(given).spec
    elif start.gpu:
        for kind in ("driver", "torch", None):
            try:
                spec = find_gpu(start.gpu, kind=kind).spec
                break
            except MoesizeError:
                continue
    if spec is None:
        if total is not None and start.engine != "llama.cpp":
            notes.append(
                f"the log prints {format_gib(round(total.value))} of memory but no GPU "
                f"{'that is known' if start.gpu else 'name'}: planned on a card of that size; "
                "--gpu names it"
            )
            return find_gpu(f"{total.value / GIB:.2f}GiB").spec
        if start.gpu:
            notes.append(f"the log names the GPU {start.gpu!r}, which is not known: give --gpu")
        else:
            notes.append("the log names no GPU: give --gpu to have every term compared")
        return None
    if total is None:
        return spec
    usable, logged = spec.usable_memory().best_bytes, round(total.value)
    if abs(logged - usable) > max(usable * 0.06, 2 * total.step):
        notes.append(
            f"{spec.name} hands out {format_gib(usable)}, the log says {format_gib(logged)}: "
            "another GPU, or a partition of one? planned with what the log says"
        )
    elif abs(logged - usable) <= total.step:
        return spec
    reading = MemoryReading(
        best_bytes=logged,
        low_bytes=logged,
        high_bytes=logged,
        basis="observed",
        source=f"line {total.line} of the log",
    )
    return replace(spec, torch_total=reading, memory_rule=None, driver_total_bytes=None)


def _ranks(start: Start, given: tuple[str, ...]) -> int | None:
    """GPUs of the deployment; None leaves it to the flags given on the command line."""
    if any(word.split("=")[0] in _PARALLEL_FLAGS for word in given):
        return None
    flags = start.flags

    def size(*names: str) -> int:
        values = [flags[n] for n in names if isinstance(flags.get(n), int) and flags[n] > 0]
        return int(values[0]) if values else 1

    if start.engine == "llama.cpp":
        devices = {s.rank for s in start.all("model") if s.rank[-1:].isdigit()}
        return max(1, len(devices)) if devices or start.num_devices < 2 else start.num_devices
    tp, pp = size("tensor_parallel_size", "tp_size"), size("pipeline_parallel_size", "pp_size")
    dp = size("data_parallel_size", "dp_size")
    if flags.get("enable_dp_attention") is True:
        dp = 1
    return tp * pp * dp


_PARALLEL_FLAGS = frozenset(
    (
        "--tensor-parallel-size",
        "-tp",
        "--tp",
        "--tp-size",
        "--pipeline-parallel-size",
        "-pp",
        "--pp",
        "--pp-size",
        "--data-parallel-size",
        "-dp",
        "--dp",
        "--dp-size",
    )
)


def _flags(start: Start) -> tuple[str, ...]:
    """The flags of a start as they would be typed."""
    out: list[str] = []
    for name, value in start.flags.items():
        if name in _FLAGS_OFF or value is None or value in ("auto", ""):
            continue
        if name.endswith("parallel_size") and value == 1:
            continue
        if name in ("tp_size", "pp_size", "dp_size", "ep_size") and value == 1:
            continue
        if name == "enable_prefix_caching" and value is True:
            continue
        flag = "--" + name.replace("_", "-")
        if start.engine == "llama.cpp":
            if name == "flash_attn":
                value = _LLAMA_FLASH.get(str(value), str(value))
            out += [flag, str(value)]
        elif value is True:
            out.append(flag)
        elif value is False:
            out.append("--no-" + name.replace("_", "-"))
        else:
            out += [flag, str(value)]
    if start.engine == "llama.cpp":
        if "parallel" not in start.flags and (start.last("kv") or not start.version):
            out += ["--parallel", "1"]  # builds that do not print it had one sequence
        if start.host_experts:
            layers = "|".join(str(layer) for layer in sorted(start.host_experts))
            out += ["--override-tensor", rf"blk\.({layers})\.ffn_.*_exps=CPU"]
    return tuple(out)


def _settings(start: Start, plan: Plan | None) -> dict[str, Any]:
    """What the log says the engine was started with or chose; names as the engine's."""
    out: dict[str, Any] = dict(sorted(start.flags.items()))
    for name, value in start.settings.items():
        if isinstance(value, str | int | float | bool) and name not in _PRIVATE:
            out[name] = value
    if start.quantization:
        out["quantization"] = start.quantization
    del plan
    return out


_PRIVATE = ("engine_line", "pool_end", "second_model", "version_line", "server")


def _outcome(start: Start, run: AsRun | None, plan: Plan | None) -> Outcome:
    failure: Failure | None = start.failure
    if start.ready:  # what failed later is no matter of the start
        logged, cause, line = "started", "", 0
    elif failure is not None:
        logged, cause, line = "failed", _cause(start, failure), failure.line
    elif start.last("kv_tokens") or start.last("compute"):
        logged, cause, line = "started", "", 0
    else:
        logged, cause, line = "unknown", "the log ends before the engine was ready", start.last_line
    predicted = None
    if plan is not None and run is not None and run.gpu is not None:
        predicted = "fits" if plan.fits else "does not fit"
        if plan.fits and not plan.verdict.certain:
            predicted = "fits, but close"
        elif not plan.fits and not plan.verdict.certain and logged == "started":
            predicted = "fits, but close"  # the band holds both answers
    return Outcome(logged, predicted, cause, line)


def _cause(start: Start, failure: Failure) -> str:
    asked = start.last("asked")
    words = f"{format_bytes(round(asked.value))} more was asked for; " if asked is not None else ""
    match failure.kind:
        case "context_too_long":
            needed, had = start.last("kv_needed"), start.last("kv_cache")
            context = start.flags.get("max_model_len")
            text = (
                f"the KV cache cannot hold one request of {context:,} tokens"
                if isinstance(context, int)
                else "the KV cache cannot hold one request"
            )
            if needed is not None and had is not None:
                wanted, left = format_gib(round(needed.value)), format_gib(round(had.value))
                text += f": {wanted} needed, {left} left"
            return text
        case "no_kv_memory":
            return "nothing is left for the KV cache after weights, activations and graphs"
        case "too_little_free":
            free, total = start.last("free_memory"), start.last("total_memory")
            if free is None or total is None:
                return "less memory is free than the engine allows itself"
            held = format_gib(round(total.value - free.value))
            return (
                f"{held} of the device were in use before the start (another process, or an engine "
                "that has not ended), more than the utilization leaves"
            )
        case "out_of_memory":
            if start.last("kv_tokens") or start.last("kv") or start.last("pool_tokens"):
                when = "after the KV cache was there: graphs, warm-up or a first batch"
            elif start.last("weights") or start.last("model"):
                when = "after the weights were there: the profile run or the KV cache"
            else:
                when = "while the weights were loaded"
            return f"out of memory {when}; {words}".rstrip("; ")
        case "graphs_failed":
            return "the CUDA graphs could not be captured"
        case _:
            return failure.message[:200]


def _beside(start: Start, plan: Plan) -> list[str]:
    """What the log shows beside the terms: memory of others, other kernels."""
    out = []
    total, free = start.last("total_memory"), start.last("free_memory")
    outside = [
        item for item in plan.gpus[0].items if not item.in_budget and item.category == "runtime"
    ]
    if total is not None and free is not None and free.rank == total.rank and outside:
        held = round(total.value - free.value)
        most = sum(item.high_bytes for item in outside)
        if held > most + GIB // 8:
            out.append(
                f"{format_gib(held)} of the device were in use when the engine looked, at most "
                f"{format_gib(most)} of it are the context and communication of this one: another "
                f"process holds about {format_gib(held - most)}"
            )
    logged = str(start.settings.get("attention_backend", "")).upper().replace(" ", "_")
    planned = plan.deployment.get("attention_backend") or ""
    if logged and planned and logged != planned and logged not in planned and planned not in logged:
        out.append(f"the log chose the attention backend {logged}, the plan {planned}")
    return out


def _save(
    reading: Reading,
    run: AsRun | None,
    plan: Plan | None,
    terms: tuple[Term, ...],
    notes: list[str],
) -> tuple[tuple[dict[str, Any], ...], str]:
    """Keep what the log measures; notes say why nothing was kept."""
    from moesize.calibration import save

    if run is None or plan is None or run.gpu is None:
        notes.append("nothing was saved: the start could not be planned on a known GPU")
        return (), ""
    found = measured(reading, run, plan, terms, notes)
    if not found:
        notes.append("nothing was saved: the log prints no figure that measures a constant")
        return (), ""
    path, dropped = save(found)
    if dropped:
        notes.append(f"{dropped} of the oldest calibration records made room")
    return tuple(record._asdict() for record in found), str(path)
