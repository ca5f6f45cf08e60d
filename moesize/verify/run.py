"""`moesize.verify.run.verify`: real shards on a real device beside what was predicted for them."""

from __future__ import annotations

import datetime
import gc
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from moesize.api import is_gguf_file
from moesize.core.checkpoint import StoredEntry, published, with_scheme
from moesize.core.errors import EnvironmentProblem, InvalidInputError, UnsupportedError
from moesize.core.model_spec import ModelSpec
from moesize.core.quantization import FAMILY_WORDS, find_scheme, resolve_family
from moesize.core.units import GIB, MIB, format_bytes, parse_bytes
from moesize.verify import distributed, predict
from moesize.verify.devices import (
    ContextCost,
    Meter,
    allocator_settings,
    check_types,
    context_cost,
    device_problems,
    find_meter,
    free_before,
    free_of,
)
from moesize.verify.forward import Numerics
from moesize.verify.gguf_run import verify_gguf, wants_gguf
from moesize.verify.loading import speed_of, torch_dtype
from moesize.verify.passes import Workload
from moesize.verify.phases import Measured, Progress, measure, silent
from moesize.verify.predict import DTYPES, DryPeaks, Subject
from moesize.verify.receipts import check_writable, spec_hash
from moesize.verify.report import Device, Speed, Term, VerifyReport
from moesize.verify.safetensors_files import (
    CODES,
    INDEX_NAME,
    CheckpointFiles,
    open_checkpoint,
    refuse_pickle,
    says_weights,
)
from moesize.verify.selection import Selection, choose_layers, num_layers, parse_layers
from moesize.verify.synthetic import write_synthetic
from moesize.verify.terms import (
    attribution,
    blocks_note,
    extrapolate,
    flops_of,
    terms_of,
    without_blocks,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from moesize.core.engine import Constant

ENGINES = ("torch", "transformers", "vllm")
# Free memory beyond the prediction that a run wants: fragments, kernels, other processes.
_MARGIN_BYTES = 256 * MIB
_MARGIN_SHARE = 0.02
# Of a machine's own memory more is left alone: it runs other things.
_HOST_SHARE = 0.10
# Of a disk as well: logs of others are written to it.
_DISK_SHARE = 0.10
_MOST_TOKENS = 1 << 20
# Their numbers alone take memory before anything is predicted.
_MOST_IN_ALL = 1 << 24
_PREFIX = "moesize-verify-"
# Sections of the inventory that no pass of text needs, in words.
_LEFT_OUT = {"tower": "vision and audio towers", "mtp": "MTP layers"}


@device_problems()
def verify(
    model: str | ModelSpec,
    *,
    device: str = "auto",
    shards: str | None = None,
    layers: str | Sequence[int] = "auto",
    tokens: int = 512,
    sequences: int = 4,
    decode_steps: int = 4,
    tp_rank: tuple[int, int] | None = None,
    dtype: str = "auto",
    quant: str = "checkpoint",
    seed: int = 0,
    limit_memory: int | str | None = None,
    tolerance: float | None = None,
    save: bool = False,
    keep_shards: str | None = None,
    engine: str = "torch",
    command: str = "",
    progress: Progress | None = None,
) -> VerifyReport:
    """Measure a model's layers and compare each term with its prediction.

    shards   `synthetic`, `hub`, or a folder; None: MODEL's own folder where it is one with shards,
             else synthetic
    layers   `auto`, `all`, `0-3,40` or indices
    tp_rank  (rank, size): that rank's slices on one device; under torchrun each process has its own
    Raises MoesizeError: EnvironmentProblem without device or room, InvalidInputError for hostile
    shards or bad options. Memory that runs out is a `failure` of the report.
    """
    if engine not in ENGINES:
        raise InvalidInputError(f"--engine {engine[:40]!r} is unknown", f"one of {ENGINES}")
    work = _workload(tokens, sequences, decode_steps, seed)
    if tolerance is not None and not 0 <= tolerance <= 1:  # nan is neither
        raise InvalidInputError(f"--tolerance {tolerance} is not in 0..1")
    if save:
        check_writable()
    if wants_gguf(model, shards, quant):
        return verify_gguf(
            model,
            shards,
            device=device,
            layers=layers,
            quant=quant,
            tp_rank=tp_rank,
            engine=engine,
            seed=seed,
            limit_bytes=_size(limit_memory),
            tolerance=tolerance,
            save=save,
            keep_shards=keep_shards,
            command=command,
            progress=progress,
        )
    source = _source(model, shards, quant)
    settings = _Settings(
        layers, tp_rank, dtype, _size(limit_memory), tolerance, save, keep_shards, command
    )
    if engine != "torch":
        from moesize.verify.other_engines import verify_with

        return verify_with(engine, source, work, settings, device=device, progress=progress)
    if tokens * sequences > _MOST_IN_ALL:
        raise InvalidInputError(
            f"--tokens {tokens:,} x --sequences {sequences:,} are more than {_MOST_IN_ALL:,} "
            "tokens in all"
        )
    with distributed.session() as group:
        if group is not None:
            if tp_rank is not None:
                raise InvalidInputError(
                    "--tp-rank names the rank of a single process, and torchrun's are here"
                )
            settings = settings._replace(tp_rank=(group.rank, group.size))
            progress = group.checking(progress or silent)
        with device_problems():
            card = free_before(device)
            meter = find_meter(device)
            context = context_cost(meter, free_of(meter, card))
        if group is not None:
            group.connect(meter)
        # Cycles are collected at each phase; what was there before need not be looked through.
        gc.collect()
        gc.freeze()
        try:
            with device_problems(meter.name):
                return _Run(source, work, settings, meter, group, context, progress).report()
        finally:
            gc.unfreeze()


# --- What is asked --------------------------------------------------------------------------------


class Source(NamedTuple):
    """Which model, in which format, and where its bytes come from.

    folder   of shards; None: synthetic or hub. config: the parsed config.json, None without
    """

    spec: ModelSpec
    kind: str
    stored: tuple[StoredEntry, ...]
    scheme: str
    shards: str
    folder: Path | None
    config: dict[str, Any] | None
    repo: str = ""
    revision: str = ""


class _Settings(NamedTuple):
    layers: str | Sequence[int]
    tp_rank: tuple[int, int] | None
    dtype: str
    limit_bytes: int | None
    tolerance: float | None
    save: bool
    keep_shards: str | None
    command: str


def _workload(tokens: int, sequences: int, decode_steps: int, seed: int) -> Workload:
    for name, value, least, most in (
        ("--tokens", tokens, 1, _MOST_TOKENS),
        ("--sequences", sequences, 1, 1 << 16),
        ("--decode-steps", decode_steps, 1, 1 << 16),
        ("--seed", seed, 0, 1 << 62),
    ):
        if not least <= value <= most:
            raise InvalidInputError(f"{name} {value} is not in {least}..{most}")
    return Workload(tokens=tokens, sequences=sequences, decode_steps=decode_steps, seed=seed)


def _size(value: int | str | None) -> int | None:
    if isinstance(value, str):
        value = parse_bytes(value)
    if value is not None and value <= 0:
        raise InvalidInputError(f"--limit-memory {value} is no size")
    return value


def _source(model: str | ModelSpec, shards: str | None, quant: str) -> Source:
    from moesize.catalog import resolve_model

    if isinstance(model, ModelSpec):
        spec, kind = model, "spec"
    else:
        refuse_pickle(model)
        spec, kind = resolve_model(model)
    if is_gguf_file(spec) and quant.strip().lower() in ("checkpoint", "auto"):
        raise UnsupportedError(
            f"{spec.title} is the spec of a GGUF file, and its tensors are measured from the file",
            "name the *.gguf file, or another scheme with --quant",
        )
    name = "" if isinstance(model, ModelSpec) else model
    folder, config = _folders(name, kind, shards)
    where = shards if shards in ("synthetic", "hub") else ("folder" if folder else "synthetic")
    scheme = quant.strip().lower()
    if scheme in ("checkpoint", "auto"):
        stored, scheme = published(spec), "checkpoint"
    else:
        if where != "synthetic":
            raise InvalidInputError(
                f"--quant {quant[:40]} is not what the files hold",
                "give it with --synthetic, or name a checkpoint of that scheme",
            )
        found = find_scheme(quant) if scheme not in FAMILY_WORDS else None
        found = found or resolve_family(scheme, "vllm").scheme
        if found.is_gguf:
            raise UnsupportedError("GGUF files are not measured", "take a safetensors scheme")
        stored, scheme = with_scheme(spec, found), found.name
    repo, _, revision = (name if kind == "hub" else spec.hub_id).partition("@")
    return Source(spec, kind, stored, scheme, where, folder, config, repo, revision)


def _folders(name: str, kind: str, shards: str | None) -> tuple[Path | None, dict[str, Any] | None]:
    """The folder of shards, and the config beside them or behind MODEL."""
    from moesize.files import read_json

    folder = None
    if shards is not None and shards not in ("synthetic", "hub"):
        folder = Path(shards).expanduser()
    elif shards is None and kind == "checkpoint":
        own = Path(name).expanduser()
        if own.is_dir() and says_weights(own):
            folder = own
    places = []
    if folder is not None:
        places.append(folder / "config.json" if folder.is_dir() else folder.parent / "config.json")
    if kind in ("checkpoint", "config"):
        path = Path(name).expanduser()
        places.append(path / "config.json" if path.is_dir() else path)
    for place in places:
        if place.is_file():
            return folder, read_json(place)
    return folder, None


# --- The run --------------------------------------------------------------------------------------


class _Expected(NamedTuple):
    """What passes will take, or why nobody knows; runs: whether there are passes at all."""

    peaks: DryPeaks | None
    why: str = ""
    runs: bool = True


class _Run:
    """One process's part of a verification."""

    def __init__(
        self,
        source: Source,
        work: Workload,
        settings: _Settings,
        meter: Meter,
        group: distributed.Group | None,
        context: ContextCost | None,
        progress: Progress | None,
    ) -> None:
        self.source, self.work, self.settings = source, work, settings
        self.meter, self.group, self.progress = meter, group, progress
        self.notes: list[str] = []
        self.rank, self.size = settings.tp_rank or (0, 1)
        self.dtype = _dtype(settings.dtype, source.spec)
        self.numerics, self.numerics_note = self._numerics()
        if settings.limit_bytes is not None:
            meter.limit(settings.limit_bytes)
        self.context = context
        self.revision = source.revision

    def report(self) -> VerifyReport:
        """Choose layers, measure, compare; under torchrun the gathered report of all ranks."""
        large, small = self._agreed(*self._choose())
        subject = self._subject(large)
        expected = self._expected(subject)
        self._say_what_runs(expected)
        self._say_what_is_left_out()
        self._refuse_when_too_large(subject, expected)
        self._check_types(subject, computes=expected.runs)
        # What torch has loaded for the dry run need not be looked through at every phase either.
        gc.collect()
        gc.freeze()
        runs: list[tuple[Subject, Measured]] = []
        speed = None
        for number, selection in enumerate(one for one in (small, large) if one is not None):
            part = self._subject(selection)
            with self._files(part) as files:
                last = selection == large
                found = measure(
                    part, files, self.meter, self.work,
                    context=self.context if last else None, progress=self.progress,
                    with_passes=expected.runs, with_flops=last and not expected.why,
                    group=self.group,
                )  # fmt: skip
                runs.append((part, found))
                if last and found.failure is None and not found.stopped:
                    speed = self._speed(found, files)
            ended = self.group is not None and self.group.ended
            if number == 0 and (found.failure is not None or ended):
                break
        part, found = runs[-1]
        routed = self._as_routed(part, found, expected.peaks)
        terms = terms_of(
            part, self.meter, self.work, found, routed, even=expected.peaks,
            context=self._constant(), tolerance=self.settings.tolerance,
            no_peaks=expected.why, with_passes=expected.runs,
        )  # fmt: skip
        terms = self._as_set(terms)
        if self.group is not None:
            terms = (*self.group.terms(self.meter), *terms)
        report = self._report(part, found, terms, speed)
        report = replace(report, attribution=attribution(found, routed))
        if len(runs) == 2:
            report = self._extrapolated(report, *runs[0], with_passes=expected.runs)
        if self.group is not None:
            report = self.group.gathered(report)
        return self._saved(report)

    def _as_set(self, terms: tuple[Term, ...]) -> tuple[Term, ...]:
        """The terms, without predictions of blocks where the allocator is set otherwise."""
        settings = allocator_settings() if self.meter.counts_blocks else ()
        if settings:
            self.notes.append(blocks_note(settings))
            return without_blocks(terms)
        return terms

    # --- Before ---

    def _check_types(self, subject: Subject, *, computes: bool) -> None:
        """Types of the shards and of the computation. Raises UnsupportedError."""
        meter = self.meter
        if meter.kind == "cpu":
            return
        spec, own = subject.spec, subject.selection
        codes = {CODES.get(t.dtype, "") for t in own.tensors(spec, subject.stored)} - {""}
        types = [torch_dtype(code) for code in sorted(codes)]
        check_types(meter.device, [*types, subject.torch_dtype], computes=computes)

    def _numerics(self) -> tuple[Numerics, str]:
        """What the config says, and what is to be said of it."""
        source = self.source
        if source.config is None:
            note = (
                "no config.json: epsilons, scales and rotation are neutral ones, on which no byte "
                "depends"
            )
            return Numerics.neutral(source.spec), note
        try:
            return Numerics.from_config(source.config, source.spec), ""
        except UnsupportedError as problem:
            note = f"{problem.message}: neutral epsilons, scales and rotation"
            return Numerics.neutral(source.spec), note

    def _say_what_runs(self, expected: _Expected) -> None:
        """Words about the passes, or why there are none."""
        if not expected.runs:
            self.notes.append(
                f"passes are not run ({expected.why}): weights, loading and what the device holds "
                "are measured"
            )
        elif self.numerics_note:
            self.notes.append(self.numerics_note)

    def _say_what_is_left_out(self) -> None:
        """Parts of the files that text alone does not need."""
        held = dict.fromkeys(_LEFT_OUT, 0)
        for item in self.source.stored:
            if item.entry.section in held:
                held[item.entry.section] += item.file_bytes
        parts = [
            f"{format_bytes(size)} of {_LEFT_OUT[name]}" for name, size in held.items() if size
        ]
        if parts:
            self.notes.append(f"not loaded and in no figure: {' and '.join(parts)}")

    def _subject(self, selection: Selection) -> Subject:
        source = self.source
        return Subject(
            spec=source.spec, stored=source.stored, numerics=self.numerics, selection=selection,
            dtype=self.dtype,
        )  # fmt: skip

    def _choose(self) -> tuple[Selection, Selection | None]:
        """The layers to load, and fewer of them for a second run when not all fit."""
        layers, spec = self.settings.layers, self.source.spec
        if isinstance(layers, str) and layers.strip().lower() != "auto":
            layers = parse_layers(layers, spec)
        if not isinstance(layers, str):
            own = tuple(sorted(set(layers)))
            if not own or own[0] < 0 or own[-1] >= num_layers(spec):
                raise InvalidInputError(f"{spec.id} has layers 0-{num_layers(spec) - 1}")
            return Selection(own, True, self.rank, self.size), None
        free = self._free()
        scratch = self._scratch()
        choice = choose_layers(
            spec, self.source.stored, free - self._margin(free), rank=self.rank, size=self.size,
            fixed_bytes=scratch or 0, layer_cost=None if scratch is None else self._layer_cost,
            disk_bytes=self._disk(),
        )  # fmt: skip
        return choice.large, None if choice.whole else choice.small

    def _agreed(
        self, large: Selection, small: Selection | None
    ) -> tuple[Selection, Selection | None]:
        """The fewest layers that a rank has chosen: all run the same. Raises InvalidInputError."""
        if self.group is not None:
            asked: list[Any] = [spec_hash(self.source.spec), self.source.scheme, self.dtype]
            asked += [self.source.shards, asdict(self.work), str(self.settings.layers)]
            chosen = [large.layers, None if small is None else small.layers]
            rows = self.group.all_of("layers", [asked, chosen])
            if any(row[0] != rows[0][0] for row in rows):
                raise InvalidInputError(
                    "ranks were started for different models or with different options",
                    "start all of them with one command of torchrun",
                )
            most, fewer = min((row[1] for row in rows), key=lambda row: len(row[0]))
            large = replace(large, layers=tuple(most))
            small = None if fewer is None else replace(large, layers=tuple(fewer))
        if small is not None:
            self.notes.append(
                f"{len(large.layers)} of {num_layers(self.source.spec)} layers fit; figures of the "
                "whole model are extrapolated from two runs"
            )
        return large, small

    def _disk(self) -> int | None:
        """What synthetic shards may take of the disk they are written to."""
        if self.source.shards != "synthetic":
            return None
        kept = self.settings.keep_shards
        place = Path(tempfile.gettempdir()) if kept is None else Path(kept).expanduser().absolute()
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        return round((1 - _DISK_SHARE) * shutil.disk_usage(there).free)

    def _layer_cost(self, layer: int) -> int:
        """Cache of one layer, fixed and growing side by side at the most."""
        one = self._subject(Selection((layer,), True, self.rank, self.size))
        return predict.cache_bytes(one, self.work, "static")

    def _scratch(self) -> int | None:
        """What passes take beside weights and cache: of one layer of each kind, not all.

        None where there are no passes.
        """
        spec = self.source.spec
        first = tuple(
            sorted({name: i for i, name in reversed(list(enumerate(spec.layout)))}.values())
        )
        one = self._subject(Selection(first, True, self.rank, self.size))
        expected = self._expected(one)
        if not expected.runs:
            return None
        if expected.peaks is None:
            return GIB
        most = max(expected.peaks.total, self._flops_total(one))
        return max(most - predict.weights(one).requested_bytes, 0)

    def _expected(self, subject: Subject) -> _Expected:
        """Peaks with even routing, or why there are none."""
        try:
            predict.check_passes(subject)
            routings = predict.even(subject, self.work)
            peaks = self._dry(subject, routings)
        except NotImplementedError as problem:
            return _Expected(None, f"not predicted: {problem}")
        except UnsupportedError as problem:
            return _Expected(None, problem.message, runs=False)
        return _Expected(peaks)

    def _as_routed(
        self, subject: Subject, found: Measured, expected: DryPeaks | None
    ) -> DryPeaks | None:
        """The same with what the routers chose, where there are routers."""
        routings = found.routings
        routed = routings is not None and any(
            r.loads for r in (*routings.static, *routings.growing)
        )
        if expected is None or routings is None or not routed or found.stopped:
            return expected
        if found.failure is not None:
            return expected
        return self._dry(subject, routings)

    def _dry(self, subject: Subject, routings: predict.Routings) -> DryPeaks:
        meter = self.meter
        return predict.dry_peaks(
            subject, self.work, routings, blocks=meter.counts_blocks, device=meter.kind
        )

    def _free(self) -> int:
        meter, limit = self.meter, self.settings.limit_bytes
        free = meter.free_bytes()
        if self.group is not None and meter.kind == "cpu":
            free //= self.group.ranks_of_host
        if limit is None:
            return free
        # The bound holds for all segments, cuBLAS's workspace among them.
        held = meter.reading().reserved if meter.counts_blocks else 0
        return min(free, max(0, limit - held))

    def _margin(self, free: int) -> int:
        if self.settings.limit_bytes == free and not self.meter.counts_blocks:
            # Bytes are counted one by one there.
            return 0
        share = _HOST_SHARE if self.meter.kind == "cpu" else _MARGIN_SHARE
        return max(_MARGIN_BYTES, round(share * free))

    def _flops_total(self, subject: Subject) -> int:
        """What counting FLOPs takes, where its prompt is longer than the run's own."""
        tokens = predict.flop_tokens(subject)
        if self.work.tokens * self.work.sequences >= tokens:
            return 0
        work = replace(self.work, tokens=tokens, sequences=1, decode_steps=1)
        meter, routings = self.meter, predict.even(subject, work)
        return predict.dry_peaks(
            subject, work, routings, blocks=meter.counts_blocks, device=meter.kind
        ).total

    def _refuse_when_too_large(self, subject: Subject, expected: _Expected) -> None:
        needed = predict.weights(subject).allocated_bytes
        if expected.peaks is not None:
            needed = max(needed, expected.peaks.total, self._flops_total(subject))
        elif expected.runs:
            needed += predict.cache_bytes(subject, self.work, "static")
        free = self._free()
        margin = self._margin(free)
        if needed > free and free == self.settings.limit_bytes:
            raise EnvironmentProblem(
                f"{format_bytes(needed)} are predicted, and --limit-memory allows "
                f"{format_bytes(free)}",
                "fewer --layers, --tokens or --sequences; nothing was allocated",
            )
        if needed + margin > free:
            raise EnvironmentProblem(
                f"{format_bytes(needed)} are predicted and {format_bytes(margin)} are kept free, "
                f"but only {format_bytes(free)} are free on {self.meter.name}",
                "fewer --layers, --tokens or --sequences; nothing was allocated",
            )

    # --- Shards ---

    @contextmanager
    def _files(self, subject: Subject) -> Iterator[CheckpointFiles]:
        source = self.source
        own = subject.selection
        names = [t.name for t in own.tensors(source.spec, source.stored)]
        if source.shards == "folder":
            assert source.folder is not None
            yield open_checkpoint(source.folder, needed=names)
        elif source.shards == "hub":
            from moesize.verify.hub_files import download

            say = self.progress or silent
            found = download(
                source.repo, names, revision=source.revision or None,
                progress=lambda name, size: say(f"download {name}", size, 0),
            )  # fmt: skip
            self.revision = found.commit
            yield found.files
        else:
            with self._synthetic(subject) as folder:
                yield open_checkpoint(folder, needed=names)

    @contextmanager
    def _synthetic(self, subject: Subject) -> Iterator[Path]:
        """A folder of random shards, gone afterwards unless it is to be kept."""
        group = self.group
        writes = group is None or group.local_rank == 0
        folder = self._new_folder() if writes else None
        try:
            if folder is not None:
                total = predict.weights(self._subject(replace_rank(subject.selection)))
                say = self.progress or silent
                write_synthetic(
                    self.source.spec, self.source.stored, subject.selection, folder,
                    seed=self.work.seed,
                    progress=lambda done: say("write shards", done, total.requested_bytes),
                )  # fmt: skip
            if group is not None:
                folder = group.shared_path(folder or Path())
            assert folder is not None
            yield folder
            if group is not None:
                group.barrier("shards read")
        finally:
            if folder is not None and self.settings.keep_shards is None:
                # Its writer may have been killed.
                killed = group is not None and group.ended and _is_temporary(folder)
                if writes or killed:
                    shutil.rmtree(folder, ignore_errors=True)

    def _new_folder(self) -> Path:
        if self.settings.keep_shards is None:
            return Path(tempfile.mkdtemp(prefix=_PREFIX))
        # What is there is never written over: that of an earlier run, or of the first of two.
        kept = Path(self.settings.keep_shards).expanduser().absolute()
        folder, number = kept, 1
        while (folder / INDEX_NAME).exists():
            folder, number = kept.with_name(f"{kept.name}-{number}"), number + 1
        self.notes.append(f"shards kept in {folder}")
        return folder

    # --- After ---

    def _speed(self, found: Measured, files: CheckpointFiles) -> Speed:
        """The load's pace beside the device's own."""
        return speed_of(
            found.weights_requested or 0, found.load_gb_per_s, found.cached_share,
            self.meter.device, next(iter(files.headers)), self._free(),
        )  # fmt: skip

    def _constant(self) -> Constant | None:
        """What is known of the context of this kind of device."""
        if self.meter.kind != "cuda":
            return None
        from moesize.engines import calibration_without, engine_profile
        from moesize.verify.receipts import catalogue_gpu

        with calibration_without("off"):  # no measurement confirms an earlier one of its own card
            profile = engine_profile("transformers", None, catalogue_gpu(self.meter.name))
        return profile.constants.get("cuda_context")

    def _report(
        self, part: Subject, found: Measured, terms: Any, speed: Speed | None
    ) -> VerifyReport:
        source, meter = self.source, self.meter
        return VerifyReport(
            model=source.spec.id,
            model_source=source.kind,
            spec_sha256=spec_hash(source.spec),
            revision=self.revision,
            quantization=source.scheme,
            device=Device(
                meter.kind, meter.name, meter.total_bytes(), meter.driver, torch.__version__
            ),
            engine="torch",
            shards=source.shards,
            layers=part.selection.layers,
            num_layers=num_layers(source.spec),
            tokens=self.work.tokens,
            sequences=self.work.sequences,
            decode_steps=self.work.decode_steps,
            dtype=self.dtype,
            rank=self.rank,
            ranks=self.size,
            seed=self.work.seed,
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            command=self.settings.command,
            terms=terms,
            flops=flops_of(part, found, self.settings.tolerance),
            phases=found.phases,
            speed=speed,
            failure=found.failure,
            notes=tuple(self.notes),
        )

    def _extrapolated(
        self, report: VerifyReport, small: Subject, first: Measured, *, with_passes: bool
    ) -> VerifyReport:
        terms = terms_of(
            small, self.meter, self.work, first, None, no_peaks="-", with_passes=with_passes
        )
        every = tuple(range(num_layers(self.source.spec)))
        whole = self._subject(Selection(every, True, self.rank, self.size))
        held = predict.weights(whole)
        known = {"weights": held.requested_bytes, "weights.blocks": held.allocated_bytes}
        if with_passes:
            known["kv_cache.static"] = predict.cache_bytes(whole, self.work, "static")
            known["kv_cache.growing"] = predict.cache_bytes(whole, self.work, "growing")
        return replace(report, extrapolated=extrapolate(terms, report.terms, known))

    def _saved(self, report: VerifyReport) -> VerifyReport:
        first = self.group is None or self.group.rank == 0
        if not self.settings.save or not first:
            return report
        from moesize.verify.receipts import save

        return replace(report, saved_to=str(save(report)))


def _is_temporary(folder: Path) -> bool:
    """Whether it lies where this process would have made it."""
    return folder.parent == Path(tempfile.gettempdir()) and folder.name.startswith(_PREFIX)


def replace_rank(selection: Selection) -> Selection:
    """The same layers on one rank: files hold whole tensors."""
    return Selection(selection.layers, selection.outside)


def _dtype(name: str, spec: ModelSpec) -> str:
    words = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "auto": spec.dtype}
    found = words.get(name.strip().lower(), name.strip().lower())
    if found not in DTYPES:
        raise InvalidInputError(f"--dtype {name[:40]!r} is unknown", f"one of {', '.join(DTYPES)}")
    return found
