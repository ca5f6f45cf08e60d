"""`--engine transformers` and `--engine vllm`: the library's own pass over the same shards.

transformers runs its own class, built from the config and loaded from safetensors. vLLM runs
offline in processes of its own, and its start-up log is read as `moesize audit` reads it. Code of a
checkpoint is never run. Both load models from the first layer on: fewer layers are a config with
fewer of them, which our own reader has to read as the first layers of the model.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from moesize.core.checkpoint import published
from moesize.core.errors import (
    EnvironmentProblem,
    MoesizeError,
    UnsupportedError,
)
from moesize.core.units import format_bytes
from moesize.verify import predict
from moesize.verify.forward import Numerics
from moesize.verify.phases import Progress, silent
from moesize.verify.predict import Subject
from moesize.verify.report import Device, Failure, PhaseRecord, Term, VerifyReport
from moesize.verify.safetensors_files import INDEX_NAME, open_checkpoint
from moesize.verify.selection import Selection, layer_kinds, parse_layers
from moesize.verify.synthetic import write_synthetic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moesize.core.model_spec import ModelSpec
    from moesize.verify.passes import Workload
    from moesize.verify.run import Source

# Of what is free: the libraries need room of their own, which nothing here predicts to the byte.
_SHARE = 0.9
# What configs call the number of layers, and where a language model's part of a config stands.
_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_PARTS = ("text_config", "language_config", "llm_config")
# How ModelOpt says beside a config what is quantized.
_QUANT_FILE = "hf_quant_config.json"


class Job(NamedTuple):
    """A model in a folder with config.json and shards, and what is to be run."""

    folder: Path
    synthetic: bool
    subject: Subject
    work: Workload
    limit_bytes: int | None
    tolerance: float | None
    say: Progress


class Outcome(NamedTuple):
    """What a library gave."""

    terms: tuple[Term, ...]
    phases: tuple[PhaseRecord, ...]
    failure: Failure | None
    notes: tuple[str, ...]


def verify_with(
    engine: str,
    source: Source,
    work: Workload,
    settings: Any,
    *,
    device: str,
    progress: Progress | None,
) -> VerifyReport:
    """Measure a model in a library. Raises EnvironmentProblem when it is not installed."""
    if engine == "transformers":
        from moesize.verify import engine_transformers as runner
    else:
        from moesize.verify import engine_vllm as runner  # type: ignore[no-redef]
    version = _installed(engine)
    config = _config(engine, source, settings)
    place = runner.find_place(device)
    free = place.free_bytes
    if settings.limit_bytes is not None:
        free = min(free, settings.limit_bytes)
    subject, config = _subject(engine, source, config, work, settings, free)
    say = progress or silent
    with _folder(source, subject, config, work, say) as folder:
        job = Job(
            folder,
            source.shards == "synthetic",
            subject,
            work,
            settings.limit_bytes,
            settings.tolerance,
            say,
        )
        found = runner.run(job, place, version)
    notes = found.notes
    if config != source.config and "auto_map" in (source.config or {}):
        notes = (*notes, "auto_map of config.json was left out: code of a checkpoint is never run")
    report = _report(engine, version, source, subject, settings, work, place.device, found)
    report = replace(report, notes=notes)
    if settings.save:
        from moesize.verify.receipts import save

        report = replace(report, saved_to=str(save(report)))
    return report


def _installed(engine: str) -> str:
    """The library's version; it is not imported for that. Raises EnvironmentProblem."""
    try:
        if importlib.util.find_spec(engine) is not None:
            return importlib.metadata.version(engine)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        pass
    raise EnvironmentProblem(
        f"--engine {engine}: {engine} is not installed", f"pip install {engine}"
    )


def _config(engine: str, source: Source, settings: Any) -> dict[str, Any]:
    """The config, where all that is asked for can be done. Raises UnsupportedError."""
    size = os.environ.get("WORLD_SIZE", "1")
    if settings.tp_rank is not None or size not in ("", "1"):
        raise UnsupportedError(
            f"--engine {engine} measures one device, not a rank of several",
            "leave --tp-rank and torchrun out",
        )
    if source.shards == "hub":
        raise UnsupportedError(
            f"--engine {engine} fetches nothing from the hub",
            "fetch the model, and give its folder (the hub cache's snapshots/<revision> will do)",
        )
    if source.spec.encoder_layout:
        raise UnsupportedError(f"--engine {engine} does not measure models with an encoder")
    if source.config is None:
        raise UnsupportedError(
            f"--engine {engine} needs the model's config.json",
            "give MODEL as a folder or a config.json",
        )
    if source.scheme != "checkpoint":
        raise UnsupportedError(
            f"--engine {engine} reads from the config how weights are stored, not from --quant",
            "give a config.json whose quantization_config says so",
        )
    from moesize.verify.run import _dtype

    dtype = _dtype(settings.dtype, source.spec)
    if dtype != source.spec.dtype:
        raise UnsupportedError(
            f"--dtype {dtype}: --engine {engine} is measured in the model's {source.spec.dtype}",
            "leave --dtype out",
        )
    if settings.keep_shards is not None:
        raise UnsupportedError(
            f"--keep-shards does not go with --engine {engine}", "keep them with --engine torch"
        )
    return _without_code(source.config)


def _without_code(config: dict[str, Any]) -> dict[str, Any]:
    """Without what names classes of the checkpoint's own: that would be code of a stranger."""
    return {
        name: _without_code(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name not in ("auto_map", "custom_pipelines")
    }


# --- Layers ---------------------------------------------------------------------------------------


def _subject(
    engine: str,
    source: Source,
    config: dict[str, Any],
    work: Workload,
    settings: Any,
    free_bytes: int,
) -> tuple[Subject, dict[str, Any]]:
    """What is loaded, and the config that says so: the whole model or its first layers."""
    spec, layers = source.spec, settings.layers
    auto = isinstance(layers, str) and layers.strip().lower() == "auto"
    if isinstance(layers, str) and not auto:
        layers = parse_layers(layers, spec)
    count = spec.num_layers if auto else len(layers)
    if not auto and tuple(sorted(set(layers))) != tuple(range(count)):
        raise UnsupportedError(
            f"--engine {engine} loads a model from its first layer on",
            f"write --layers 0-{max(0, count - 1)}, or leave it out",
        )
    whole = _of(spec, source.stored)
    room = round(_SHARE * free_bytes)
    if auto and _needed(whole, work) > room and source.shards == "synthetic":
        kinds = layer_kinds(spec, source.stored)
        least = 1 + max(kinds.index(kind) for kind in set(kinds))
        count = _most_that_fit(whole, work, room, least)
    if count < spec.num_layers:
        if source.shards != "synthetic":
            raise UnsupportedError(
                f"--engine {engine} loads fewer layers from --synthetic shards only",
                "files of the whole model hold more than a config with fewer layers",
            )
        config = _cut(config, spec.num_layers, count)
        cut = _read(config, source)
        _check_cut(cut, spec, count)
        whole = _of(cut, published(cut))
    needed = _needed(whole, work)
    if needed > room:
        raise EnvironmentProblem(
            f"weights and cache alone take {format_bytes(needed)}, and {format_bytes(free_bytes)} "
            f"are free, of which {_SHARE:.0%} are used",
            "fewer --tokens or --sequences, or --layers 0-N of synthetic shards; nothing was done",
        )
    return whole, config


def _of(spec: ModelSpec, stored: Any) -> Subject:
    return Subject(
        spec=spec, stored=stored, numerics=Numerics.neutral(spec),
        selection=Selection(tuple(range(spec.num_layers))), dtype=spec.dtype,
    )  # fmt: skip


def _needed(subject: Subject, work: Workload) -> int:
    held = predict.weights(subject).requested_bytes
    return held + predict.cache_bytes(subject, work, "growing")


def _most_that_fit(whole: Subject, work: Workload, room: int, least: int) -> int:
    """Layers from the first on, one of every kind among them. Raises EnvironmentProblem."""
    for count in range(whole.spec.num_layers - 1, least - 1, -1):
        part = replace(whole, selection=Selection(tuple(range(count))))
        if _needed(part, work) <= room:
            return count
    raise EnvironmentProblem(
        f"the first {least} layers, with one of every kind among them, do not fit "
        f"{format_bytes(room)}",
        "fewer --tokens or --sequences; --engine torch measures single layers",
    )


def _cut(config: dict[str, Any], total: int, count: int) -> dict[str, Any]:
    """The config of the first layers: their number, and lists with an entry for each layer."""
    out: dict[str, Any] = {}
    for name, value in config.items():
        if name in _COUNTS and value == total:
            out[name] = count
        elif isinstance(value, list) and len(value) == total:
            out[name] = value[:count]
        elif name in _PARTS and isinstance(value, dict):
            out[name] = _cut(value, total, count)
        else:
            out[name] = value
    return out


def _read(config: dict[str, Any], source: Source) -> ModelSpec:
    """Our own reader's view of a changed config."""
    from moesize.readers.hf.read import spec_from_config

    try:
        return spec_from_config(
            config, file="config.json", name=source.spec.id, quant_config=_quant_config(source)
        )
    except MoesizeError as problem:
        raise UnsupportedError(
            f"a config with fewer layers cannot be read: {problem.message}", "take --layers all"
        ) from problem


def _quant_config(source: Source) -> dict[str, Any] | None:
    from moesize.files import read_json

    beside = None if source.folder is None else source.folder / _QUANT_FILE
    return read_json(beside) if beside is not None and beside.is_file() else None


def _check_cut(cut: ModelSpec, spec: ModelSpec, count: int) -> None:
    """The cut model's layers are the first of the whole one. Raises UnsupportedError."""

    def blocks(of: ModelSpec) -> list[Any]:
        return [replace(of.block(name), name="") for name in of.layout[:count]]

    same = cut.num_layers == count and blocks(cut) == blocks(spec)
    if not same or (cut.hidden_size, cut.embedding) != (spec.hidden_size, spec.embedding):
        raise UnsupportedError(
            f"a config with {count} layers is not the first {count} of {spec.id}",
            "its layers do not repeat from the first on: take --layers all, or --engine torch",
        )


# --- The folder -----------------------------------------------------------------------------------


@contextmanager
def _folder(
    source: Source, subject: Subject, config: dict[str, Any], work: Workload, say: Progress
) -> Iterator[Path]:
    """A folder with config.json and shards: links to the given ones, or synthetic ones."""
    top = Path(tempfile.mkdtemp(prefix="moesize-verify-"))
    try:
        folder = top / "model"
        folder.mkdir()
        if source.shards == "folder":
            assert source.folder is not None
            _link(source.folder, subject, folder)
        else:
            total = predict.weights(subject).requested_bytes
            write_synthetic(
                subject.spec, subject.stored, subject.selection, folder, seed=work.seed,
                progress=lambda done: say("write shards", done, total),
            )  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        beside = _quant_config(source)
        if beside is not None:
            (folder / _QUANT_FILE).write_text(json.dumps(beside), encoding="utf-8")
        yield folder
    finally:
        shutil.rmtree(top, ignore_errors=True)


def _link(given: Path, subject: Subject, folder: Path) -> None:
    """Links to the shards that hold the model, their headers checked first, and an index of them.

    Nothing else of the folder is there for a library to find: no pickles, no code.
    """
    names = [t.name for t in subject.selection.tensors(subject.spec, subject.stored)]
    files = open_checkpoint(given, needed=names)
    files.aligned(names)
    if len(files.headers) == 1:
        (path,) = files.headers
        (folder / "model.safetensors").symlink_to(path.resolve())
        return
    links = {path: f"model-{number:05}.safetensors" for number, path in enumerate(files.headers)}
    for path, link in links.items():
        (folder / link).symlink_to(path.resolve())
    index = {"metadata": {}, "weight_map": {n: links[p] for n, p in files.holders.items()}}
    (folder / INDEX_NAME).write_text(json.dumps(index), encoding="utf-8")


# --- The report -----------------------------------------------------------------------------------


def _report(
    engine: str,
    version: str,
    source: Source,
    subject: Subject,
    settings: Any,
    work: Workload,
    device: Device,
    found: Outcome,
) -> VerifyReport:
    from moesize.verify.receipts import spec_hash

    return VerifyReport(
        model=source.spec.id,
        model_source=source.kind,
        spec_sha256=spec_hash(source.spec),
        revision=source.revision,
        quantization=source.scheme,
        device=device,
        engine=engine,
        engine_version=version,
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
        terms=found.terms,
        phases=found.phases,
        failure=found.failure,
        notes=found.notes,
    )
