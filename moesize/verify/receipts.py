"""Records of what was measured: `verify --save` keeps them, plans quote them. Needs no torch.

One JSON file for each record in `$MOESIZE_RECEIPTS`, else `receipts/` beside the calibration file
of `audit --save`; MOESIZE_RECEIPTS=off, or MOESIZE_CALIBRATION=off, leaves them out. A file is
written beside its name and moved there, readable by its owner alone. Its name begins with the
model's: a plan opens the records of its own model and no others.

A file is input like any other: one that is no record in every field is passed over, and errors are
computed from the bytes of both sides, never taken from it.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

from moesize.core.errors import EnvironmentProblem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moesize.core.model_spec import ModelSpec
    from moesize.verify.report import Term, VerifyReport

SCHEMA = "moesize.receipt/1"
# A folder with more was not filled by this program.
_MOST_FILES = 2000
_MAX_FILE_BYTES = 4 << 20
_MAX_FOLDER_BYTES = 64 << 20
_OFF = ("", "off", "0", "none")


def receipts_folder() -> Path | None:
    """Where records are kept, whether it exists or not; None when that is switched off."""
    named = os.environ.get("MOESIZE_RECEIPTS")
    if named is not None:
        off = named.strip().lower() in _OFF
        # Path.expanduser raises for a user that there is not.
        return None if off else Path(os.path.expanduser(named))  # noqa: PTH111
    # The place of `calibration.calibration_path`, which a plan without records does not load.
    beside = os.environ.get("MOESIZE_CALIBRATION")
    if beside is not None:
        off = beside.strip().lower() in _OFF
        return None if off else Path(beside).parent / "receipts"
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(  # noqa: PTH118  (speed)
        os.environ.get("HOME", ""), ".config"
    )
    return Path(home) / "moesize" / "receipts"


# --- Keeping --------------------------------------------------------------------------------------


def save(report: VerifyReport) -> Path:
    """Keep a report, its texts without paths; the same measurement of a day replaces its record.

    What it measured of the card itself goes to the user's calibration file as well, where there
    can be one. Raises EnvironmentProblem.
    """
    from moesize.verify.neutral import neutral_document
    from moesize.verify.observations import keep_constants

    document = neutral_document({**report.to_dict(), "schema": SCHEMA, "saved_to": None})
    text = json.dumps(document, indent=1) + "\n"
    path = _write(_file_name(document), text)
    record = parse(text, path.name)
    if record is not None:
        keep_constants(record)
    return path


def check_writable() -> None:
    """Before a run that takes long. Raises EnvironmentProblem where `save` would.

    Of several ranks the first one keeps the record, and the others may have no such folder.
    """
    if os.environ.get("RANK", "0") in ("", "0"):
        _write(".probe", "").unlink(missing_ok=True)


def _write(name: str, text: str) -> Path:
    import tempfile

    folder = receipts_folder()
    if folder is None:
        raise EnvironmentProblem(
            "records are switched off (MOESIZE_RECEIPTS or MOESIZE_CALIBRATION)",
            "unset it to keep them",
        )
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, beside = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            Path(beside).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(beside).unlink()
            raise
    except OSError as error:
        raise EnvironmentProblem(
            f"{folder}: the record cannot be kept ({error.strerror})",
            "name another folder in MOESIZE_RECEIPTS",
        ) from error
    return path


def _file_name(document: dict[str, Any]) -> str:
    """Model and a hash of what makes a measurement another one."""
    import hashlib

    same = ("spec_sha256", "quantization", "layers", "settings", "engine", "shards", "date")
    facts = [document[name] for name in same] + [document["device"]["name"]]
    if document.get("engine_version"):
        facts.append(document["engine_version"])
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    return f"{_prefix(document['model'])}{digest}.json"


def _prefix(model: str) -> str:
    """What the names of a model's records begin with."""
    kept = "".join(c if c.isalnum() or c in "-._" else "-" for c in model)[:80]
    return f"{kept.lstrip('.')}-"


# Words about a model that no figure depends on.
_ABOUT = ("id", "title", "hub_id", "aliases", "source", "notes")


def spec_hash(spec: ModelSpec) -> str:
    """SHA-256 of what a spec says about shapes and formats.

    What is as it is by default says nothing: a field that a later release adds does not change the
    hash of the models that do without it.
    """
    import hashlib

    facts = {name: value for name, value in _said(spec).items() if name not in _ABOUT}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _said(value: Any) -> Any:
    """Dataclasses as objects without their defaults, but with the word that tells their kind."""
    from dataclasses import MISSING, fields, is_dataclass

    if isinstance(value, tuple | list):
        return [_said(inner) for inner in value]
    if not is_dataclass(value):
        return value
    out = {}
    for field in fields(value):
        inner = getattr(value, field.name)
        made = field.default_factory
        default = field.default if made is MISSING else made()
        if field.name == "kind" or inner != default:
            out[field.name] = _said(inner)
    return out


# --- What a record holds --------------------------------------------------------------------------


class Figure(NamedTuple):
    """(predicted - measured) / measured, and whether that is outside of its tolerance."""

    error: float
    off: bool

    @property
    def percent(self) -> str:
        """`+0.02%`."""
        return f"{self.error:+.2%}"


class Receipt(NamedTuple):
    """A record of which every field has its type and bounds.

    kind         of the device: cuda, xpu, mps, cpu
    ranks        how many a layer is cut for; rank: the one that was measured, or that gathered
    failed       phase in which memory ran out; empty when it sufficed
    speed_share  pace of loading over the device's own copies; None where one was not measured
    """

    file: str
    model: str
    spec_sha256: str
    quantization: str
    engine: str
    kind: str
    gpu: str
    driver: str
    torch: str
    layers: int
    num_layers: int
    dtype: str
    rank: int
    ranks: int
    date: str
    failed: str
    speed_share: float | None
    terms: tuple[Term, ...]

    def of(self, name: str) -> list[Term]:
        """A term, of every rank that has it."""
        return [term for term in self.terms if term.name == name]

    def measured(self, name: str) -> int | None:
        """What was measured; of several ranks the most."""
        sizes = [t.measured_bytes for t in self.of(name) if t.measured_bytes is not None]
        return max(sizes, default=None)

    def figure(self, name: str) -> Figure | None:
        """Of the rank that is furthest off; None where nothing was compared."""
        found = [Figure(t.error, t.ok is False) for t in self.of(name) if t.error is not None]
        return max(found, key=lambda one: abs(one.error), default=None)

    def weights(self) -> Figure | None:
        """The tensors' bytes, which plans count, against what the device took for them.

        That is the allocator's blocks where it has such; off where tensors or blocks are.
        """
        blocks = {term.rank: term for term in self.of("weights.blocks")}
        found = []
        for term in self.of("weights"):
            taken = blocks.get(term.rank, term)
            if term.predicted_bytes and taken.measured_bytes:
                error = (term.predicted_bytes - taken.measured_bytes) / taken.measured_bytes
                found.append(Figure(error, False in (term.ok, taken.ok)))
        return max(found, key=lambda one: abs(one.error), default=None)

    @property
    def part(self) -> str:
        """`2 of 32 layers, rank 0 of 8`, what of it is not a whole model; may be empty."""
        words = []
        if self.layers != self.num_layers:
            words.append(f"{self.layers} of {self.num_layers} layers")
        if self.ranks > 1:
            several = len({term.rank for term in self.terms}) > 1
            words.append(f"{self.ranks} ranks" if several else f"rank {self.rank} of {self.ranks}")
        if self.failed:
            words.append(f"memory ran out in {self.failed}")
        return ", ".join(words)


# --- Reading --------------------------------------------------------------------------------------


def read_folder(folder: Path, model: str | None = None) -> list[Receipt]:
    """The records of a folder, or of one model, by file name; what is none is passed over."""
    begin = "" if model is None else _prefix(model)
    try:
        names = sorted(
            name
            for name in islice(os.listdir(folder), 100 * _MOST_FILES)  # noqa: PTH208  (speed)
            if name.startswith(begin) and name.endswith(".json") and not name.startswith(".")
        )
    except (OSError, ValueError):
        return []
    found, left = [], _MAX_FOLDER_BYTES
    for name in names[:_MOST_FILES]:
        text = _text_of(folder / name, left)
        left -= len(text)
        record = parse(text, name)
        if record is not None and model in (None, record.model):
            found.append(record)
    return found


def _text_of(path: Path, most_bytes: int) -> bytes:
    """What a regular file holds; nothing of one that is larger than a record can be."""
    try:
        if not path.is_file() or path.stat().st_size > min(_MAX_FILE_BYTES, most_bytes):
            return b""
        with path.open("rb") as stream:
            return stream.read(_MAX_FILE_BYTES)
    except (OSError, ValueError):
        return b""


def parse(text: bytes | str, file: str = "") -> Receipt | None:
    """A record of a JSON text; None when it is none."""
    try:
        data = json.loads(text, parse_constant=_no_number)
        if data["schema"] != SCHEMA:
            return None
        return _receipt(data, file)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _receipt(data: dict[str, Any], file: str) -> Receipt:
    """Raises ValueError, KeyError, TypeError or AttributeError for what is no record."""
    from datetime import date

    device, settings, failure = data["device"], data["settings"], data["failure"]
    count = _whole(data["num_layers"], 1, 1 << 16)
    layers = {_whole(layer, 0, count - 1) for layer in _listed(data["layers"], count)}
    ranks = _whole(settings["ranks"], 1, 1 << 16)
    day = _word(data["date"])
    if not day.isascii() or date.fromisoformat(day).isoformat() != day or not layers:
        raise ValueError("no date or no layers")
    return Receipt(
        file=file,
        model=_word(data["model"]),
        spec_sha256=_word(data["spec_sha256"]),
        quantization=_word(data["quantization"]),
        engine=_word(data["engine"]),
        kind=_word(device["kind"]),
        gpu=_word(device["name"]),
        driver=_word(device["driver"]),
        torch=_word(device["torch"]),
        layers=len(layers),
        num_layers=count,
        dtype=_word(settings["dtype"]),
        rank=_whole(settings["rank"], 0, ranks - 1),
        ranks=ranks,
        date=day,
        failed="" if failure is None else _word(failure["phase"]) or "?",
        speed_share=_share(data["speed"]),
        terms=tuple(_term(row) for row in _listed(data["terms"], 1 << 16)),
    )


def _term(row: dict[str, Any]) -> Term:
    from moesize.verify.report import Term

    sizes = {
        name: None if row[name] is None else _whole(row[name], -(1 << 60), 1 << 60)
        for name in ("predicted_bytes", "measured_bytes", "low_bytes", "high_bytes")
    }
    tolerance = row["tolerance"]
    if type(tolerance) not in (int, float) or not 0 <= tolerance <= 1e6:
        raise ValueError("tolerance")
    if not isinstance(row["why"], str):
        raise TypeError("why")
    term = Term(
        name=_word(row["name"]), tolerance=tolerance, why=row["why"],
        rank=_whole(row["rank"], 0, 1 << 16), **sizes,
    )  # fmt: skip
    if term.error is not None and abs(term.error) > 1e6:
        raise ValueError("error")
    return term


def _share(speed: dict[str, Any] | None) -> float | None:
    if speed is None:
        return None
    loaded, limit = speed["load_gb_per_s"], speed["to_device_gb_per_s"]
    for pace in (loaded, limit):
        if pace is not None and (type(pace) not in (int, float) or not 0 <= pace < 1e6):
            raise ValueError("speed")
    return loaded / limit if loaded and limit else None


def _word(value: Any) -> str:
    """A text of one line that can be printed."""
    if not isinstance(value, str) or len(value) > 200 or not value.isprintable():
        raise ValueError("no word")
    return value


def _whole(value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError("no count")
    return value


def _listed(value: Any, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError("no list")
    return value


@lru_cache(maxsize=256)
def catalogue_gpu(name: str) -> str:
    """Catalogue id of a driver's or torch's name; empty when it is none, or of several cards."""
    from moesize.core.errors import MoesizeError
    from moesize.gpus import find_gpu

    kinds: tuple[Literal["driver", "torch"], ...] = ("driver", "torch")
    for kind in kinds:
        try:
            return find_gpu(name, kind=kind).spec.id
        except MoesizeError:
            continue
    return ""


# --- Quoting --------------------------------------------------------------------------------------


class Planned(NamedTuple):
    """What of a deployment a record must share, or say that it does not.

    ranks     that each layer is cut for; 0: as no record is (expert parallelism)
    kv_dtype  of the cache; empty where plans count caches that `verify` does not keep (states)
    """

    engine: str
    ranks: int
    kv_dtype: str


class Quote(NamedTuple):
    """What a plan says of a record: figures by name, and where it is of something else."""

    receipt: Receipt
    figures: dict[str, Figure]
    unlike: str

    @property
    def text(self) -> str:
        """`measured on NVIDIA H100 80GB HBM3: weights +0.02% (2026-11-22, 4 of 32 layers; ...)`."""
        one = self.receipt
        shown = ", ".join(
            f"{name} {figure.percent}{', which is outside its tolerance' if figure.off else ''}"
            for name, figure in self.figures.items()
        )
        about = ", ".join(text for text in (one.date, one.part, self.unlike) if text)
        return f"measured on {one.gpu}: {shown} ({about}; predicted against measured)"


def quotes(spec: ModelSpec, scheme: str, gpu: str, planned: Planned) -> tuple[Quote, ...]:
    """What was measured of a model in a scheme on a GPU of the catalogue, the nearest first.

    That is: cut for as many ranks, of more layers, not ended by memory, newer. The spec is hashed
    only where there is a record of its name.
    """
    folder = receipts_folder()
    if folder is None:
        return ()
    try:
        stamp = os.stat(folder).st_mtime_ns  # noqa: PTH116  (in every plan)
    except (OSError, ValueError):
        return ()
    records = [
        record
        for record in _records(str(folder), stamp, spec.id)
        if record.quantization == scheme
        and record.engine in ("torch", planned.engine)
        and record.kind != "cpu"
        and catalogue_gpu(record.gpu) == gpu
    ]
    if not records:
        return ()
    kept: str = spec.__dict__.get("_sha256") or spec_hash(spec)
    spec.__dict__["_sha256"] = kept
    found = (quote_of(record, planned) for record in records if record.spec_sha256 == kept)
    return _nearest_first(quote for quote in found if quote.figures)


@lru_cache(maxsize=64)
def _records(folder: str, stamp: int, model: str) -> tuple[Receipt, ...]:
    del stamp
    return tuple(read_folder(Path(folder), model))


def quote_of(record: Receipt, planned: Planned) -> Quote:
    """The terms of a record that the plan has too; passes of engines are not those of `verify`."""
    figures = {"weights": record.weights()}
    if record.dtype == planned.kv_dtype:
        figures["KV cache"] = record.figure("kv_cache.static") or record.figure("kv_cache.growing")
    unlike = ""
    if planned.ranks != record.ranks:
        here = f"TP{planned.ranks}" if planned.ranks else "expert parallelism"
        unlike = f"{'not as cut' if record.ranks > 1 else 'uncut layers'}, {here} here"
    return Quote(record, {name: one for name, one in figures.items() if one is not None}, unlike)


def _nearest_first(found: Iterable[Quote]) -> tuple[Quote, ...]:
    def order(quote: Quote) -> tuple[bool, int, bool, str]:
        one = quote.receipt
        return (not quote.unlike, one.layers, not one.failed, one.date)

    return tuple(sorted(found, key=order, reverse=True))
