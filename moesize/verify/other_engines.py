"""`--engine transformers` and `--engine vllm`: the library's own pass over the same shards.

transformers runs its own class, built from the config and loaded from safetensors; code of a
checkpoint is never run. vLLM runs offline in a process of its own, and its start-up log is read as
`moesize audit` reads it.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from moesize.core.errors import EnvironmentProblem, InvalidInputError, UnsupportedError
from moesize.core.kv_cache import sequence_cost
from moesize.verify import predict
from moesize.verify.devices import Meter, find_meter
from moesize.verify.forward import Numerics
from moesize.verify.passes import Stopwatch, Workload
from moesize.verify.phases import out_of_memory, silent
from moesize.verify.predict import Subject
from moesize.verify.report import Device, Failure, PhaseRecord, Term, VerifyReport
from moesize.verify.selection import Selection
from moesize.verify.synthetic import write_synthetic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moesize.verify.phases import Progress
    from moesize.verify.run import Source

_VLLM_TIMEOUT_S = 3600
# What vLLM is asked to do; the arguments come as JSON, so that no text is ever code.
_VLLM = """
import json, sys
from vllm import LLM, SamplingParams
given = json.loads(sys.argv[1])
llm = LLM(**given["llm"])
llm.generate([{"prompt_token_ids": [1] * given["tokens"]}] * given["sequences"],
             SamplingParams(max_tokens=given["steps"], ignore_eos=True))
"""


def verify_with(
    engine: str,
    source: Source,
    work: Workload,
    settings: Any,
    *,
    device: str,
    progress: Progress | None,
) -> VerifyReport:
    """Measure the whole model in a library. Raises EnvironmentProblem when it is not installed."""
    if importlib.util.find_spec(engine) is None:
        raise EnvironmentProblem(
            f"--engine {engine}: {engine} is not installed", f"pip install {engine}"
        )
    if settings.tp_rank is not None:
        raise UnsupportedError(f"--engine {engine} measures one device, not a rank of several")
    if settings.layers not in ("auto", "all"):
        raise UnsupportedError(
            f"--engine {engine} loads whole models only", "leave --layers out, or write all"
        )
    if source.spec.encoder_layout:
        raise UnsupportedError(f"--engine {engine} does not measure models with an encoder")
    if source.config is None:
        raise UnsupportedError(
            f"--engine {engine} needs the model's config.json",
            "give MODEL as a folder or a config.json",
        )
    subject = Subject(
        spec=source.spec, stored=source.stored, numerics=Numerics.neutral(source.spec),
        selection=Selection(tuple(range(source.spec.num_layers))), dtype=source.spec.dtype,
    )  # fmt: skip
    meter = find_meter(device)
    _refuse_when_too_large(subject, meter, work)
    with _folder(source, subject, work, progress) as folder:
        if engine == "transformers":
            terms, phases, failure, notes = _transformers(folder, subject, meter, work)
        else:
            terms, phases, failure, notes = _vllm(folder, source, work)
    from moesize.verify.receipts import spec_hash

    report = VerifyReport(
        model=source.spec.id,
        model_source=source.kind,
        spec_sha256=spec_hash(source.spec),
        revision=source.revision,
        quantization=source.scheme,
        device=Device(meter.kind, meter.name, meter.total_bytes(), meter.driver, torch.__version__),
        engine=engine,
        shards=source.shards,
        layers=subject.selection.layers,
        num_layers=source.spec.num_layers,
        tokens=work.tokens,
        sequences=work.sequences,
        decode_steps=work.decode_steps,
        dtype=subject.dtype,
        rank=0,
        ranks=1,
        seed=work.seed,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        command=settings.command,
        terms=terms,
        phases=phases,
        failure=failure,
        notes=notes,
    )
    if settings.save:
        from moesize.verify.receipts import save

        report = replace(report, saved_to=str(save(report)))
    return report


def _refuse_when_too_large(subject: Subject, meter: Meter, work: Workload) -> None:
    needed = predict.weights(subject).requested_bytes
    needed += predict.cache_bytes(subject, work, "growing")
    if needed > 0.9 * meter.free_bytes():
        raise EnvironmentProblem(
            f"weights and cache alone take {needed:,} bytes of the {meter.free_bytes():,} free",
            "the library loads whole models; --engine torch measures some of the layers",
        )


@contextmanager
def _folder(
    source: Source, subject: Subject, work: Workload, progress: Progress | None
) -> Iterator[Path]:
    """A folder with config.json and shards; links to the given ones, or synthetic shards."""
    with tempfile.TemporaryDirectory(prefix="moesize-verify-") as name:
        folder = Path(name) / "model"
        if source.shards == "folder":
            assert source.folder is not None
            folder.mkdir()
            for path in source.folder.glob("*.safetensors*"):
                (folder / path.name).symlink_to(path.resolve())
        elif source.shards == "synthetic":
            total = predict.weights(subject).requested_bytes
            say = progress or silent
            write_synthetic(
                source.spec, source.stored, subject.selection, folder, seed=work.seed,
                progress=lambda done: say("write shards", done, total),
            )  # fmt: skip
        else:
            raise UnsupportedError("--engine torch takes shards from the hub, others do not")
        # Classes of the checkpoint's own would be code of a stranger.
        config = {k: v for k, v in (source.config or {}).items() if k != "auto_map"}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield folder


_Parts = tuple[tuple[Term, ...], tuple[PhaseRecord, ...], Failure | None, tuple[str, ...]]


def _transformers(folder: Path, subject: Subject, meter: Meter, work: Workload) -> _Parts:
    """from_pretrained, a prompt, steps with the library's own cache."""
    watch = Stopwatch(meter)
    held = predict.weights(subject)
    found: dict[str, int] = {}
    failure = None
    with meter.watch():
        start = meter.reading()
        try:
            _run_transformers(folder, subject, meter, work, watch, found)
        except Exception as error:
            asked = out_of_memory(error)
            if asked is None:
                raise
            message = str(error).splitlines()[0][:300]
            failure = Failure(watch.current, asked or None, dict(found), message)
        meter.release()
        found["left"] = meter.reading().allocated - start.allocated
    grown = sequence_cost(subject.spec, subject.dtype)
    cache = predict.cache_bytes(subject, work, "growing")
    rows = [
        ("weights", held.requested_bytes, 0.01, "parameters and buffers of the library's class"),
        ("load_peak", None, 0.0, "the library's own loader"),
        (
            "kv_cache.growing", cache, 0.02,
            f"the library's own cache; {grown.bytes_per_token:,} bytes a token",
        ),
        ("prefill_peak", None, 0.0, "of the library's own kernels; not predicted here"),
        ("decode_peak", None, 0.0, "of the library's own kernels; not predicted here"),
    ]  # fmt: skip
    terms = tuple(
        Term(
            name=name, predicted_bytes=predicted, measured_bytes=found.get(name),
            tolerance=tolerance, why=why,
        )
        for name, predicted, tolerance, why in rows
    )  # fmt: skip
    return terms, tuple(watch.records), failure, ()


def _run_transformers(
    folder: Path,
    subject: Subject,
    meter: Meter,
    work: Workload,
    watch: Stopwatch,
    found: dict[str, int],
) -> None:
    from transformers import AutoModelForCausalLM

    begin = watch.begin("load")
    before = meter.reading().requested
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, use_safetensors=True, local_files_only=True,
            dtype=subject.torch_dtype,
        )  # fmt: skip
        model.to(meter.device)
    except (ValueError, KeyError, ImportError, OSError) as error:
        first = str(error).strip().splitlines()[0][:200]
        raise UnsupportedError(f"transformers does not load this model: {first}") from error
    model.eval()
    tensors = [*model.parameters(), *model.buffers()]
    if hasattr(meter, "live"):
        # Loaded by threads of the library, which no watch of this thread sees.
        meter.live.adopt(tensors)
    record = watch.end()
    found["weights"] = meter.reading().requested - before
    found["load_peak"] = record.peak_bytes - begin
    rows = subject.spec.embedding.vocab_size
    generator = torch.Generator().manual_seed(work.seed)
    ids = torch.randint(rows, (work.sequences, work.longest), generator=generator)
    ids = ids.to(meter.device)
    with torch.no_grad():
        start = watch.begin("prefill")
        held = meter.reading().requested
        out = model(ids[:, : work.tokens], use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        del out
        record = watch.end()
        kept = record.end_bytes - start
        found["prefill_peak"] = record.peak_bytes - start - max(0, kept)
        for step in range(work.decode_steps):
            start = watch.begin(f"decode {step}")
            place = work.tokens + step
            out = model(ids[:, place : place + 1], past_key_values=cache, use_cache=True)
            del out
            peak = watch.end().peak_bytes - start
            found["decode_peak"] = max(found.get("decode_peak", 0), peak)
        found["kv_cache.growing"] = meter.reading().requested - held
        del cache


def _vllm(folder: Path, source: Source, work: Workload) -> _Parts:
    """vLLM in a process of its own; its log as an audit reads it."""
    from moesize.audit import audit

    given = {
        "llm": {
            "model": str(folder), "skip_tokenizer_init": True, "trust_remote_code": False,
            "max_model_len": work.longest + 1, "max_num_seqs": work.sequences,
        },
        "tokens": work.tokens, "sequences": work.sequences, "steps": work.decode_steps,
    }  # fmt: skip
    log = folder.parent / "vllm.log"
    with log.open("w", encoding="utf-8") as stream:
        try:
            done = subprocess.run(
                [sys.executable, "-c", _VLLM, json.dumps(given)],
                stdout=stream, stderr=subprocess.STDOUT, timeout=_VLLM_TIMEOUT_S, check=False,
                env={**os.environ, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise EnvironmentProblem("vLLM did not end within an hour") from error
    try:
        answer = audit(str(log), model=str(folder), calibration=False)
    except InvalidInputError as error:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise EnvironmentProblem(
            f"vLLM ended with {done.returncode} before it said anything: {''.join(last)[:200]}"
        ) from error
    terms = tuple(
        Term(
            name=f"vllm.{term.name}",
            predicted_bytes=None if term.predicted is None else round(term.predicted),
            measured_bytes=round(term.logged), tolerance=0.02, why=term.why,
            low_bytes=None if term.low is None else round(term.low),
            high_bytes=None if term.high is None else round(term.high),
        )
        for term in answer.terms
        if term.unit == "bytes"
    )  # fmt: skip
    del source
    failure = None
    if answer.outcome.logged == "failed":
        failure = Failure("vllm", None, {}, answer.outcome.cause[:300])
    return terms, (), failure, tuple(answer.notes)
