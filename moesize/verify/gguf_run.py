"""GGUF files on a device: raw blocks loaded and measured beside the ledger. No forward pass.

Blocks lie on the device as bytes: what their formats mean is not computed here, so weights, the
allocator's blocks and segments, and the peak of loading are what is compared.
"""

from __future__ import annotations

import datetime
import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from moesize.api import is_gguf_file
from moesize.catalog import is_gguf_path
from moesize.core.allocator import total_allocated_bytes
from moesize.core.errors import EnvironmentProblem, InvalidInputError, UnsupportedError
from moesize.core.quantization import find_scheme
from moesize.core.units import MIB, format_bytes
from moesize.readers.gguf.header import GgufFile, block_of, open_gguf
from moesize.readers.gguf.tensors import (
    check_against,
    expected_of,
    of_layers,
    refuse_missing,
    scheme_of,
)
from moesize.verify.caching_allocator import CachingAllocator
from moesize.verify.gguf_synthetic import file_type, write_synthetic_gguf
from moesize.verify.loading import Job, Loaded, cached_share, load_jobs, speed_of
from moesize.verify.report import Device, Failure, PhaseRecord, Speed, Term, VerifyReport
from moesize.verify.safetensors_files import Place, StoredTensor
from moesize.verify.selection import num_layers, parse_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from moesize.core.model_spec import ModelSpec
    from moesize.core.quantization import Scheme
    from moesize.readers.gguf.tensors import ExpectedTensor
    from moesize.verify.devices import Meter
    from moesize.verify.phases import Progress

# Of free memory this is left alone: fragments, buffers, other processes.
_MARGIN_BYTES = 256 * MIB
_MARGIN_SHARE = 0.10
_NO_PASS = "GGUF blocks are loaded as bytes: weights are measured, no pass is run"


# --- Loading --------------------------------------------------------------------------------------


def load_gguf(
    file: GgufFile,
    device: str | torch.device = "cpu",
    layers: Collection[int] | None = None,
    readers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Loaded:
    """The raw blocks of some layers, and what stands outside of them, as uint8 on the device.

    layers    None: everything in the file
    progress  called in this thread with the bytes that have arrived since the last call
    Raises InvalidInputError for a file that is cut off meanwhile; torch's own out-of-memory error
    passes through.
    """
    jobs = _jobs(file, layers)
    cached = cached_share(jobs)
    begin = time.perf_counter()
    state = load_jobs(jobs, torch.device(device), readers=readers, progress=progress)
    total = sum(job.size_bytes for job in jobs)
    return Loaded(state, total, total, time.perf_counter() - begin, {}, cached)


def _jobs(file: GgufFile, layers: Collection[int] | None) -> list[Job]:
    """In the order of the files, so that readers move forward through them."""
    jobs = []
    for name, tensor in file.tensors.items():
        block = block_of(name)
        if layers is not None and block is not None and block not in layers:
            continue
        size = tensor.size_bytes
        place = Place(tensor.path, StoredTensor("U8", (size,), 0, size), tensor.start)
        jobs.append(Job(name, "U8", (size,), place, 1, size, ((0, size),)))
    return sorted(jobs, key=lambda job: (job.place.path, job.place.offset))


# --- Terms ----------------------------------------------------------------------------------------


class GgufMeasured(NamedTuple):
    """What `verify_gguf_terms` found: the shape of `phases.Measured`, as far as files are loaded.

    requested_bytes  loaded; 0 where memory ran out
    """

    terms: tuple[Term, ...]
    phases: tuple[PhaseRecord, ...]
    failure: Failure | None
    requested_bytes: int
    load_gb_per_s: float
    cached_share: float | None


def verify_gguf_terms(
    spec: ModelSpec,
    scheme: Scheme | None,
    file: GgufFile,
    meter: Meter,
    *,
    layers: Collection[int] | None = None,
    tolerance: float | None = None,
    readers: int | None = None,
    progress: Progress | None = None,
) -> GgufMeasured:
    """Load layers of a file and compare what they take with what moesize counts for them.

    scheme  None: the types that the spec has of its own
    layers  None: everything in the file, MTP blocks too
    The terms are `weights`, with a device that has blocks also `weights.blocks`,
    `weights.reserved`, `weights.driver` and `process`, and `load_peak` and `after_free`.
    Raises InvalidInputError for a file of another model, or one that lacks tensors.
    """
    from moesize.verify.devices import process_bytes
    from moesize.verify.passes import Stopwatch
    from moesize.verify.phases import out_of_memory, silent

    compared = check_against(spec, scheme, file, layers)
    refuse_missing(compared, file)
    jobs = _jobs(file, layers)
    order = {job.name: number for number, job in enumerate(jobs)}
    expected = of_layers(expected_of(spec, scheme, file), layers)
    # What is reserved depends on the order of loading.
    expected.sort(key=lambda tensor: order[compared.pairs[tensor.name]])
    say = progress or silent
    watch = Stopwatch(meter)
    total = sum(job.size_bytes for job in jobs)
    found = _Found()
    failure = None
    with meter.watch():
        meter.release()
        free = meter.free_bytes()
        before = meter.reading()
        begin = watch.begin("load")
        state: dict[str, torch.Tensor] = {}
        try:
            loaded = load_gguf(
                file, meter.device, layers, readers, lambda done: say("load", done, total)
            )
            state = loaded.state
            record = watch.end()
            now = meter.reading()
            found = _Found(
                requested=now.requested - before.requested,
                allocated=now.allocated - before.allocated,
                reserved=now.reserved - before.reserved,
                driver=free - meter.free_bytes(),
                process=process_bytes(meter),
                peak=record.peak_bytes - begin,
                gb_per_s=loaded.gb_per_s,
                cached_share=loaded.cached_share,
            )
            del loaded
        except Exception as error:
            asked = out_of_memory(error)
            if asked is None:
                raise
            # The traceback of the error would keep every tensor alive.
            message = str(error).splitlines()[0][:300]
            error.__traceback__ = None
            live = {"weights": max(0, meter.reading().allocated - before.allocated)}
            failure = Failure(watch.current, asked or None, live, message)
        state.clear()
        meter.release()
        meter.synchronize()
        left = meter.reading().allocated - before.allocated
    terms = _terms(expected, meter, found, left, tolerance)
    return GgufMeasured(
        terms, tuple(watch.records), failure, found.requested or 0, found.gb_per_s,
        found.cached_share,
    )  # fmt: skip


class _Found(NamedTuple):
    """Bytes as the device counted them; None where loading did not get there."""

    requested: int | None = None
    allocated: int | None = None
    reserved: int | None = None
    driver: int | None = None
    process: int | None = None
    peak: int | None = None
    gb_per_s: float = 0.0
    cached_share: float | None = None


def _terms(
    expected: Sequence[ExpectedTensor],
    meter: Meter,
    found: _Found,
    left: int,
    tolerance: float | None,
) -> tuple[Term, ...]:
    from moesize.verify.terms import TOLERANCES

    def term(name: str, predicted: int | None, measured: int | None, why: str) -> Term:
        share = TOLERANCES.get(name, 0.0) if tolerance is None else tolerance
        return Term(
            name=name,
            predicted_bytes=predicted,
            measured_bytes=measured,
            tolerance=share,
            why=why,
        )

    sizes = [tensor.size_bytes for tensor in expected]
    requested, blocks = sum(sizes), total_allocated_bytes(sizes)
    out = [
        term("weights", requested, found.requested, f"GGML blocks of {len(sizes):,} tensors"),
    ]
    if meter.counts_blocks:
        out += [
            term("weights.blocks", blocks, found.allocated, "the allocator's blocks"),
            term("weights.reserved", _reserved(sizes), found.reserved, "the allocator's segments"),
            term("weights.driver", None, found.driver, "free memory that loading took"),
            term("process", None, found.process, "NVML: this process, context included"),
        ]
    loading = blocks if meter.counts_blocks else requested
    why = "tensors are made once; files pass through buffers of the host"
    out += [
        term("load_peak", loading, found.peak, why),
        term("after_free", 0, left, "still live after everything was let go"),
    ]
    return tuple(one for one in out if one.measured_bytes is not None or one.predicted_bytes)


def _reserved(sizes: Sequence[int]) -> int:
    """Segments that the tensors take when they are loaded one after another."""
    allocator = CachingAllocator()
    for key, size in enumerate(sizes):
        allocator.allocate(size, key)
    return allocator.reserved


# --- The command ----------------------------------------------------------------------------------


def wants_gguf(model: str | ModelSpec, shards: str | None, quant: str) -> bool:
    """Whether a run is about GGUF: by the file or folder that is named, or by the type asked for.

    A folder counts when it has no safetensors. A GGUF file as MODEL counts unless another scheme is
    asked for.
    """
    if shards in (None, "synthetic") and _names_file(model) and _is_own(quant):
        return True
    if shards not in (None, "synthetic", "hub"):
        path = Path(str(shards)).expanduser()
        if path.is_dir():
            has = {suffix: any(path.glob(f"*{suffix}")) for suffix in (".gguf", ".safetensors")}
            return has[".gguf"] and not has[".safetensors"]
        return path.suffix.lower() == ".gguf"
    return shards != "hub" and _asked_scheme(quant) is not None


def _names_file(model: str | ModelSpec) -> bool:
    if not isinstance(model, str):
        return is_gguf_file(model)
    try:
        return is_gguf_path(Path(model).expanduser())
    except (OSError, RuntimeError, ValueError):
        return False


def _is_own(quant: str) -> bool:
    return quant.strip().lower() in ("checkpoint", "auto")


def _asked_scheme(quant: str) -> Scheme | None:
    """The GGUF scheme that --quant names; None for anything else."""
    from moesize.core.errors import UnknownNameError

    try:
        found = find_scheme(quant)
    except UnknownNameError:
        return None
    return found if found.is_gguf else None


def verify_gguf(
    model: str | ModelSpec,
    shards: str | None,
    *,
    device: str = "auto",
    layers: str | Sequence[int] = "auto",
    quant: str = "checkpoint",
    tp_rank: tuple[int, int] | None = None,
    engine: str = "torch",
    seed: int = 0,
    limit_bytes: int | None = None,
    tolerance: float | None = None,
    save: bool = False,
    keep_shards: str | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> VerifyReport:
    """Measure a model's layers out of a GGUF file, or out of one of random blocks.

    shards  a file, a part of a divided one or a folder; `synthetic`: written for the run; None:
            MODEL where it is a file, else written
    Raises as `moesize.verify.run.verify` does.
    """
    from moesize.catalog import resolve_model
    from moesize.verify.devices import allocator_settings, find_meter
    from moesize.verify.terms import blocks_note, without_blocks

    if tp_rank not in (None, (0, 1)) or os.environ.get("WORLD_SIZE", "1") != "1":
        raise UnsupportedError(
            "GGUF blocks are not cut for ranks", "measure on one device, without --tp-rank"
        )
    if engine != "torch":
        raise UnsupportedError(f"--engine {engine[:40]} is not measured with GGUF files")
    spec, kind = (model, "spec") if not isinstance(model, str) else resolve_model(model)
    own = is_gguf_file(spec) and shards in (None, "synthetic") and _is_own(quant)
    if own and shards is None and isinstance(model, str) and kind == "gguf":
        shards = model
    meter = find_meter(device)
    if limit_bytes is not None:
        meter.limit(limit_bytes)
    free = meter.free_bytes() if limit_bytes is None else min(meter.free_bytes(), limit_bytes)
    if limit_bytes is None:
        free -= max(_MARGIN_BYTES, round(_MARGIN_SHARE * free))
    written = shards in (None, "synthetic")
    notes = [_NO_PASS]
    written_as = None
    if written and not own:
        written_as = _asked_scheme(quant)
        if written_as is None:
            raise InvalidInputError(f"--quant {quant[:40]!r} is no GGUF type", "such as Q4_K_M")
    with _opened(spec, shards, written_as, layers, seed, keep_shards, free, progress) as file:
        scheme = None if own else scheme_of(file, "" if _is_own(quant) else quant)
        # A kept file of random blocks has some layers only.
        compared = check_against(spec, scheme, file, file.blocks)
        refuse_missing(compared, file)
        if compared.summary and scheme is not None:
            notes.append(f"the file is not what {scheme.name} makes: {compared.summary}")
        chosen = _choose(spec, file, layers, free)
        whole = len(chosen) == num_layers(spec)
        if not whole:
            notes.append(f"{len(chosen)} of {num_layers(spec)} layers are loaded")
        if any(block >= num_layers(spec) for block in file.blocks):
            notes.append("blocks of multi-token prediction are not loaded")
        found = verify_gguf_terms(
            spec, scheme, file, meter, layers=chosen, tolerance=tolerance, progress=progress
        )
        settings = allocator_settings() if meter.counts_blocks else ()
        if settings:
            notes.append(blocks_note(settings))
            found = found._replace(terms=without_blocks(found.terms))
        speed = speed_of(
            found.requested_bytes, found.load_gb_per_s, found.cached_share,
            meter.device, file.paths[0], meter.free_bytes(),
        )  # fmt: skip
    said = file_type(spec, scheme)
    name = find_scheme(said).name if said else "gguf"
    return _report(
        spec, kind, name, meter, chosen, found, speed, notes,
        shards="synthetic" if written else "folder", seed=seed, save=save, command=command,
    )  # fmt: skip


@contextmanager
def _opened(
    spec: ModelSpec,
    shards: str | None,
    scheme: Scheme | None,
    layers: str | Sequence[int],
    seed: int,
    keep_shards: str | None,
    free: int,
    progress: Progress | None,
) -> Iterator[GgufFile]:
    """The file that is named, or one of random blocks, gone afterwards unless it is to be kept."""
    if shards not in (None, "synthetic"):
        yield open_gguf(Path(str(shards)).expanduser())
        return
    chosen = _fitting(spec, scheme, layers, free)
    kept = None if keep_shards is None else Path(keep_shards).expanduser()
    folder = Path(tempfile.mkdtemp(prefix="moesize-verify-")) if kept is None else kept
    try:
        say = progress or (lambda _what, _done, _total: None)
        made = write_synthetic_gguf(
            spec, scheme, chosen, folder, seed, lambda done: say("write shards", done, 0)
        )
        yield open_gguf(folder / made.shards[0])
    finally:
        if kept is None:
            shutil.rmtree(folder, ignore_errors=True)


def _named(layers: str | Sequence[int], spec: ModelSpec) -> tuple[int, ...] | None:
    """Layers that were asked for; None: as many as fit."""
    if isinstance(layers, str):
        return None if layers.strip().lower() == "auto" else parse_layers(layers, spec)
    own = tuple(sorted(set(layers)))
    if not own or own[0] < 0 or own[-1] >= num_layers(spec):
        raise InvalidInputError(f"{spec.id} has layers 0-{num_layers(spec) - 1}")
    return own


def _fitting(
    spec: ModelSpec, scheme: Scheme | None, layers: str | Sequence[int], free: int
) -> tuple[int, ...]:
    """Layers to write."""
    from moesize.readers.gguf.tensors import expected_tensors

    sizes: dict[int | None, list[int]] = {}
    for tensor in expected_tensors(spec, scheme):
        sizes.setdefault(tensor.block, []).append(tensor.size_bytes)
    return _within(spec, sizes, _named(layers, spec), free)


def _choose(
    spec: ModelSpec, file: GgufFile, layers: str | Sequence[int], free: int
) -> tuple[int, ...]:
    """Layers to load."""
    sizes: dict[int | None, list[int]] = {}
    for name, tensor in file.tensors.items():
        sizes.setdefault(block_of(name), []).append(tensor.size_bytes)
    return _within(spec, sizes, _named(layers, spec), free)


def _within(
    spec: ModelSpec,
    sizes: dict[int | None, list[int]],
    named: tuple[int, ...] | None,
    free: int,
) -> tuple[int, ...]:
    """The named layers; else one of every kind, then the lowest, as far as they fit.

    sizes  of the tensors of each block; layers with the same sizes are of one kind
    Raises EnvironmentProblem when what is to be loaded does not fit.
    """
    there = [layer for layer in range(num_layers(spec)) if layer in sizes]
    cost = {block: total_allocated_bytes(own) for block, own in sizes.items()}
    used = cost.get(None, 0)
    if named is None:
        kinds: dict[tuple[int, ...], int] = {}
        for layer in there:
            kinds.setdefault(tuple(sorted(sizes[layer])), layer)
        needed = list(kinds.values())
    else:
        absent = [layer for layer in named if layer not in sizes]
        if absent:
            raise InvalidInputError(f"the file has no layer {absent[0]}")
        needed = list(named)
    used += sum(cost[layer] for layer in needed)
    if used > free:
        raise EnvironmentProblem(
            f"{format_bytes(used)} are to be loaded, and {format_bytes(max(0, free))} may be used",
            "choose fewer --layers; nothing was allocated",
        )
    chosen = set(needed)
    for layer in there if named is None else ():
        if layer not in chosen and used + cost[layer] <= free:
            chosen.add(layer)
            used += cost[layer]
    return tuple(sorted(chosen))


def _report(
    spec: ModelSpec,
    kind: str,
    scheme: str,
    meter: Meter,
    layers: tuple[int, ...],
    found: GgufMeasured,
    speed: Speed,
    notes: list[str],
    *,
    shards: str,
    seed: int,
    save: bool,
    command: str,
) -> VerifyReport:
    from moesize.verify.receipts import spec_hash

    report = VerifyReport(
        model=spec.id,
        model_source=kind,
        spec_sha256=spec_hash(spec),
        revision="",
        quantization=scheme,
        device=Device(meter.kind, meter.name, meter.total_bytes(), meter.driver, torch.__version__),
        engine="torch",
        shards=shards,
        layers=layers,
        num_layers=num_layers(spec),
        tokens=0,
        sequences=0,
        decode_steps=0,
        dtype="uint8",
        rank=0,
        ranks=1,
        seed=seed,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        command=command,
        terms=found.terms,
        phases=found.phases,
        speed=speed,
        failure=found.failure,
        notes=tuple(notes),
    )
    if not save:
        return report
    from moesize.verify.receipts import save as keep

    return replace(report, saved_to=str(keep(report)))
