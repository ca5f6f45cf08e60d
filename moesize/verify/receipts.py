"""Records of what was measured: `verify --save` keeps them, plans quote them. Needs no torch.

One JSON file for each record in `$MOESIZE_RECEIPTS`, else `receipts/` beside the calibration file
of `audit --save`; MOESIZE_RECEIPTS=off, or MOESIZE_CALIBRATION=off, leaves them out. A file is
written beside its name and moved there, readable by its owner alone.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from moesize.core.errors import EnvironmentProblem

if TYPE_CHECKING:
    from moesize.verify.report import VerifyReport

SCHEMA = "moesize.receipt/1"
# A folder with more was not filled by this program.
_MOST_FILES = 2000
_MAX_FILE_BYTES = 4 << 20
_OFF = ("", "off", "0", "none")


class Quote(NamedTuple):
    """What a plan says of a record."""

    gpu: str
    date: str
    errors: dict[str, float]
    layers: int
    num_layers: int

    @property
    def text(self) -> str:
        """`weights measured on NVIDIA H100 80GB HBM3: +0.02 % (2026-11-22, 4 of 32 layers)`."""
        figures = ", ".join(f"{name} {error:+.2%}" for name, error in self.errors.items())
        part = (
            "" if self.layers == self.num_layers else f", {self.layers} of {self.num_layers} layers"
        )
        return f"measured on {self.gpu}: {figures} ({self.date}{part}; predicted against measured)"


def receipts_folder() -> Path | None:
    """Where records are kept, whether it exists or not; None when that is switched off."""
    named = os.environ.get("MOESIZE_RECEIPTS")
    if named is not None:
        return None if named.strip().lower() in _OFF else Path(named).expanduser()
    # The place of `calibration.calibration_path`, which a plan without records does not load.
    beside = os.environ.get("MOESIZE_CALIBRATION")
    if beside is not None:
        off = beside.strip().lower() in _OFF
        return None if off else Path(beside).with_name("receipts")
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(  # noqa: PTH118  (speed)
        os.environ.get("HOME", ""), ".config"
    )
    return Path(home) / "moesize" / "receipts"


def save(report: VerifyReport) -> Path:
    """Keep a report; the same measurement on the same day replaces its record.

    Raises EnvironmentProblem.
    """
    import tempfile

    folder = receipts_folder()
    if folder is None:
        raise EnvironmentProblem(
            "records are switched off (MOESIZE_RECEIPTS or MOESIZE_CALIBRATION)",
            "unset it to keep them",
        )
    document = {**report.to_dict(), "schema": SCHEMA, "saved_to": None}
    path = folder / _file_name(document)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump(document, stream, indent=1)
                stream.write("\n")
                stream.flush()
                os.fsync(stream.fileno())
            Path(name).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
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
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    model = "".join(c if c.isalnum() or c in "-._" else "-" for c in document["model"])[:80]
    return f"{model.lstrip('.')}-{digest}.json"


# --- Reading --------------------------------------------------------------------------------------


def read_folder(folder: Path) -> list[dict[str, Any]]:
    """The records of a folder, by file name; what is none is passed over."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    except OSError:
        return []
    found = (_read(path) for path in paths[:_MOST_FILES] if not path.name.startswith("."))
    return [record for record in found if record is not None]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        if not path.is_file() or path.stat().st_size > _MAX_FILE_BYTES:
            return None
        data = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) and _is_record(data) else None


def _is_record(data: dict[str, Any]) -> bool:
    """Everything that is looked at later has its type, and texts can be printed."""
    device, terms = data.get("device"), data.get("terms")
    if data.get("schema") != SCHEMA or not isinstance(device, dict) or not isinstance(terms, list):
        return False
    texts = [data.get("model"), data.get("quantization"), data.get("date"), device.get("name")]
    if not all(isinstance(t, str) and len(t) <= 200 and t.isprintable() for t in texts):
        return False
    if not isinstance(data.get("layers"), list) or type(data.get("num_layers")) is not int:
        return False
    return all(isinstance(term, dict) and _is_term(term) for term in terms)


def _is_term(term: dict[str, Any]) -> bool:
    name, error = term.get("name"), term.get("error")
    if not isinstance(name, str) or not name.isprintable() or len(name) > 80:
        return False
    return error is None or (type(error) in (int, float) and abs(error) < 1e6)


# --- Quoting --------------------------------------------------------------------------------------

# What a plan has as well: the passes of an engine are not those of `verify`.
_QUOTED = (("weights.blocks", "weights"), ("weights", "weights"), ("kv_cache.static", "KV cache"))


def quotes(model: str, scheme: str, gpu: str) -> tuple[Quote, ...]:
    """What was measured of a model in a scheme on a GPU of the catalogue, newest first."""
    folder = receipts_folder()
    if folder is None:
        return ()
    try:
        stamp = folder.stat().st_mtime_ns
    except OSError:
        return ()
    return _quotes(str(folder), stamp, model, scheme, gpu)


@lru_cache(maxsize=256)
def _quotes(folder: str, stamp: int, model: str, scheme: str, gpu: str) -> tuple[Quote, ...]:
    del stamp
    found = [
        quote_of(record)
        for record in read_folder(Path(folder))
        if record["model"] == model
        and record["quantization"] == scheme
        and _gpu_id(record["device"]["name"]) == gpu
    ]
    return tuple(sorted((q for q in found if q.errors), key=lambda q: q.date, reverse=True))


def quote_of(record: dict[str, Any]) -> Quote:
    """The terms of a record that a plan has too."""
    errors: dict[str, float] = {}
    by_name = {term["name"]: term.get("error") for term in record["terms"]}
    for name, shown in _QUOTED:
        error = by_name.get(name)
        if error is not None:
            errors.setdefault(shown, float(error))
    device = record["device"]["name"]
    return Quote(device, record["date"], errors, len(record["layers"]), record["num_layers"])


@lru_cache(maxsize=256)
def _gpu_id(name: str) -> str:
    """Catalogue id of a driver's name; empty when it is none."""
    from moesize.core.errors import MoesizeError
    from moesize.gpus import find_gpu

    kinds: tuple[Literal["driver", "torch"], ...] = ("driver", "torch")
    for kind in kinds:
        try:
            return find_gpu(name, kind=kind).spec.id
        except MoesizeError:
            continue
    return ""
