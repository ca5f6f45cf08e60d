"""vLLM offline in processes of its own; its start-up log is read as `moesize audit` reads it.

Every figure of the log that is in bytes becomes a term with the audit's own band and tolerance:
weights, cache memory, graphs, and what the release prints of activations and other memory. Keywords
and variables are those of releases 0.10 to 0.33 (entrypoints/llm.py, engine/arg_utils.py, envs.py).

This process does not touch the GPU: its context would be memory that vLLM finds in use.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import moesize
from moesize.audit import Audit, audit
from moesize.audit_terms import share_of
from moesize.core.errors import (
    EnvironmentProblem,
    InvalidInputError,
    MoesizeError,
    UnsupportedError,
)
from moesize.core.units import format_count
from moesize.verify.child_process import Ended, run_python
from moesize.verify.distributed import timeout_s
from moesize.verify.other_engines import Job, Outcome
from moesize.verify.report import Device, Failure, Term

if TYPE_CHECKING:
    from moesize.audit_terms import Term as AuditTerm

_OLDEST = (0, 10)
_FACTS_TIMEOUT_S = 300.0
# Tokens of a step. vLLM's own default differs by card and entry point; the plan is told this one.
_BATCHED_TOKENS = 8192
# Asked in a process of its own, which gives the GPU back.
_FACTS = """
import json, sys
from moesize.core.errors import MoesizeError
from moesize.verify.devices import find_meter
import torch
try:
    meter = find_meter(sys.argv[1])
    facts = [meter.kind, meter.name, meter.total_bytes(), meter.driver, torch.__version__]
    found = {"device": facts, "free": meter.free_bytes()}
except MoesizeError as problem:
    found = {"error": [problem.exit_code, problem.message, problem.hint]}
with open(sys.argv[2], "w") as stream:
    json.dump(found, stream)
"""
# The arguments come from a file as JSON: prompts are long, and no text is ever code.
_RUN = """
import json, sys
from vllm import LLM, SamplingParams
with open(sys.argv[1]) as stream:
    given = json.load(stream)
llm = LLM(**given["llm"])
outputs = llm.generate(
    given["prompts"], SamplingParams(**given["sampling"]), use_tqdm=False
)
with open(sys.argv[2], "w") as stream:
    json.dump([len(one.outputs[0].token_ids) for one in outputs], stream)
"""
# What a log says -> the phase that has begun.
_PHASES = (
    (b"Starting to load model", "vLLM loads"),
    (b"odel loading took", "vLLM profiles"),
    (b"vailable KV cache memory", "vLLM captures graphs"),
    (b"init engine (profile", "vLLM generates"),
)
# Failures of a start that are too little memory for what was asked.
_MEMORY = ("out_of_memory", "no_kv_memory", "context_too_long")
_SET = {
    "VLLM_CONFIGURE_LOGGING": "1",
    # Some releases print activations and other memory at this level only.
    "VLLM_LOGGING_LEVEL": "DEBUG",
    "VLLM_LOGGING_STREAM": "ext://sys.stdout",
    "VLLM_LOGGING_COLOR": "0",
    "NO_COLOR": "1",
    # The engine in a process of its own, as a server has it.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_USE_MODELSCOPE": "False",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
}
_UNSET = (
    "VLLM_LOGGING_CONFIG_PATH", "VLLM_LOGGING_PREFIX", "FORCE_COLOR", "RANK", "LOCAL_RANK",
    "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip


class Place(NamedTuple):
    """The device as a process of its own has seen it. number: of the visible ones."""

    device: Device
    free_bytes: int
    number: int = 0


def find_place(device: str) -> Place:
    """The GPU of `--device`. Raises EnvironmentProblem where none is."""
    # Groups of processes are ended as Linux has them, where vLLM's GPU builds run.
    if not hasattr(os, "waitid"):
        raise EnvironmentProblem("--engine vllm runs on Linux")
    with tempfile.TemporaryDirectory(prefix="moesize-verify-") as name:
        answer = Path(name) / "device.json"
        ended = run_python(
            _FACTS, [device, str(answer)], folder=Path(name), timeout_s=_FACTS_TIMEOUT_S,
            environment={**os.environ, "PYTHONPATH": _search_path()},
        )  # fmt: skip
        try:
            found = json.loads(answer.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EnvironmentProblem(
                f"the device could not be asked for its memory: {_last_words(ended.output)}"
            ) from error
    if "error" in found:
        code, message, hint = found["error"]
        raise (InvalidInputError if code == 2 else EnvironmentProblem)(message, hint)
    facts = Device(*found["device"])
    if facts.kind != "cuda":
        raise EnvironmentProblem(
            "--engine vllm measures a CUDA or ROCm device, and none is here",
            "--engine torch and --engine transformers run on this one",
        )
    number = device.partition(":")[2]
    return Place(facts, found["free"], int(number) if number else 0)


def _search_path() -> str:
    """Where this moesize lies, for a Python that starts in another folder."""
    own = str(Path(moesize.__file__).resolve().parent.parent)
    return os.pathsep.join([own, *filter(None, [os.environ.get("PYTHONPATH")])])


def run(job: Job, place: Place, version: str) -> Outcome:
    """Start vLLM, generate, read its log. Raises EnvironmentProblem when it does not get there."""
    if _release(version) < _OLDEST:
        raise UnsupportedError(
            f"vLLM {version} is not run: releases from 0.10 on are", "pip install -U vllm"
        )
    given, done = job.folder.parent / "given.json", job.folder.parent / "done.json"
    given.write_text(json.dumps(arguments(job, place)), encoding="utf-8")
    limit = timeout_s()
    job.say("vLLM starts", 0, 0)
    ended = run_python(
        _RUN, [str(given), str(done)], folder=job.folder.parent,
        timeout_s=limit, environment=_environment(job.folder.parent, place, limit),
        seen=_Phases(job).seen,
    )  # fmt: skip
    answer = _audited(job, place, version, ended)
    failure = None if done.is_file() else _failure(answer, ended, limit)
    notes = list(answer.notes)
    if ended.cut:
        notes.append("vLLM printed so much that the middle of its log was left out")
    notes += [_in_words(term) for term in answer.terms if term.unit != "bytes"]
    terms = tuple(_term(term, job.tolerance) for term in answer.terms if term.unit == "bytes")
    return Outcome(terms, (), failure, tuple(notes))


def arguments(job: Job, place: Place) -> dict[str, Any]:
    """What vLLM is asked to do: keywords of LLM, prompts as token ids, keywords of SamplingParams.

    Prompts differ from their first token on, or they would share blocks.
    """
    work, rows = job.work, job.subject.spec.embedding.vocab_size
    llm: dict[str, Any] = {
        "model": str(job.folder),
        "load_format": "safetensors",
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "generation_config": "vllm",
        "max_model_len": work.longest + 1,
        "max_num_seqs": work.sequences,
        "max_num_batched_tokens": max(_BATCHED_TOKENS, work.sequences),
        "seed": work.seed % (1 << 31),
    }
    if job.limit_bytes is not None:
        share = job.limit_bytes / place.device.total_bytes
        llm["gpu_memory_utilization"] = int(min(1.0, share) * 10_000) / 10_000
    prompts = [
        {"prompt_token_ids": [(one + at) % rows for at in range(work.tokens)]}
        for one in range(work.sequences)
    ]
    sampling = {"max_tokens": work.decode_steps, "ignore_eos": True, "detokenize": False}
    return {"llm": llm, "prompts": prompts, "sampling": sampling}


def _environment(folder: Path, place: Place, limit_s: float) -> dict[str, str]:
    out = {name: value for name, value in os.environ.items() if name not in _UNSET}
    out.update(_SET)
    # Compiled graphs of random weights are of no use to anybody.
    out["VLLM_CACHE_ROOT"] = str(folder / "cache")
    out.setdefault("VLLM_ENGINE_READY_TIMEOUT_S", str(max(1, int(limit_s))))
    if place.number:
        visible = [name for name in out.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        shown = visible[place.number] if place.number < len(visible) else str(place.number)
        out["CUDA_VISIBLE_DEVICES"] = shown.strip()
    return out


class _Phases:
    """Tells which phase has begun, once each."""

    def __init__(self, job: Job) -> None:
        self.job, self.left = job, list(_PHASES)

    def seen(self, block: bytes) -> None:
        """A block of the log."""
        for mark, name in list(self.left):
            if mark in block:
                self.left.remove((mark, name))
                self.job.say(name, 0, 0)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


# --- The log --------------------------------------------------------------------------------------


def _audited(job: Job, place: Place, version: str, ended: Ended) -> Audit:
    try:
        return audit(
            "vLLM's log", model=str(job.folder), gpu=_gpu(place), engine_version=_planned(version),
            calibration=False, stream=io.BytesIO(ended.output),
        )  # fmt: skip
    except InvalidInputError as error:
        raise _gave_up(ended, timeout_s()) from error


def _planned(version: str) -> str:
    """0.33.1rc1+cu130 is planned as 0.33.1."""
    return version.partition("+")[0]


def _gpu(place: Place) -> str | None:
    """The catalogue's id of the card, None for another: its log says how large it is."""
    from moesize.gpus import find_gpu

    try:
        return find_gpu(place.device.name, kind="torch").spec.id
    except MoesizeError:
        return None


def _failure(answer: Audit, ended: Ended, limit_s: float) -> Failure:
    """Memory that ran out. Raises EnvironmentProblem for another end."""
    start = answer.reading.start
    found = start.failure
    if found is None or found.kind not in _MEMORY:
        if found is not None and found.kind == "too_little_free":
            raise EnvironmentProblem(
                f"vLLM did not start: {answer.outcome.cause}",
                "end other processes on the GPU, or bound it with --limit-memory",
            )
        raise _gave_up(ended, limit_s)
    asked = start.last("asked")
    phase = "vLLM's passes" if start.ready else "vLLM's start"
    cause = found.message if start.ready else answer.outcome.cause
    return Failure(phase, None if asked is None else round(asked.value), {}, cause[:300])


def _gave_up(ended: Ended, limit_s: float) -> EnvironmentProblem:
    words = _last_words(ended.output)
    if ended.code is None:
        return EnvironmentProblem(
            f"vLLM did not end within {limit_s:.0f} s and was stopped; it said last: {words}",
            "MOESIZE_VERIFY_TIMEOUT=SECONDS gives it longer",
        )
    if ended.code == 0:
        return EnvironmentProblem(
            f"vLLM ended without a start-up log that could be read; it said last: {words}",
            "has its logging been configured elsewhere?",
        )
    return EnvironmentProblem(f"vLLM ended with {ended.code}: {words}")


def _last_words(output: bytes) -> str:
    """The first error that was logged, else the last one of a traceback, else the last line."""
    text = output[-(1 << 20) :].decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line and "See root cause above" not in line]
    # Warnings are logged with tracebacks too.
    logged = [line for line in errors if " ERROR " in line]
    line = (logged[:1] or errors[-1:] or lines[-1:] or ["nothing"])[0]
    before, found, message = line.partition("Error: ")
    if found:  # without the logger's frame
        line = f"{before.rpartition(' ')[2]}{found}{message}"
    return "".join(char for char in line if char.isprintable())[:240]


def _term(term: AuditTerm, tolerance: float | None) -> Term:
    """A figure of the log: the audit's band and tolerance, and the rounding of the log."""
    predicted = low = high = None
    if term.predicted is not None and term.low is not None and term.high is not None:
        predicted = round(term.predicted)
        low, high = round(max(0, term.low - term.step)), round(term.high + term.step)
    share = share_of(term.name, has_band=term.low != term.high)
    return Term(
        name=f"vllm.{term.name}",
        predicted_bytes=predicted,
        measured_bytes=round(term.logged),
        tolerance=share if tolerance is None else tolerance,
        why=term.why,
        low_bytes=low,
        high_bytes=high,
    )


def _in_words(term: AuditTerm) -> str:
    """A figure of the log that is no memory: tokens of the cache, sequences at once."""
    name = term.name.replace("_", " ")
    text = f"vLLM's {name}: {format_count(round(term.logged))} {term.unit} in the log"
    if term.predicted is None:
        return text
    mark = {True: "agrees", False: "outside its tolerance", None: "not judged"}[term.ok]
    return f"{text}, {format_count(round(term.predicted))} planned ({mark})"
