"""Constants measured on the user's own machines: `moesize audit --save` keeps them, plans use them.

One file of JSON lines, `$MOESIZE_CALIBRATION` or `~/.config/moesize/calibration.jsonl`. A record is
one constant of one engine version on one GPU, from one log, or from a run of `moesize verify
--save` (its term begins with `verify `). Plans for the same GPU and engine take
the median of the records in place of the shipped constant and name it as their source.
`MOESIZE_CALIBRATION=off`, or --no-calibration, leaves them out.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from moesize.core.errors import EnvironmentProblem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from moesize.core.engine import Constant, Constants

SCHEMA = "moesize.calibration/1"
# Older records go when there are more: five terms of a log each, of a thousand logs.
MOST_RECORDS = 5000
_MAX_FILE_BYTES = 8 << 20
# A band around few observations, as a share of the value on either side.
_ONE_LOG, _SEVERAL_LOGS = 0.15, 0.05


class Record(NamedTuple):
    """One measured constant.

    kind    "moe", "dense" or "hybrid" for constants that depend on the model; "" for others
    log     hash of the log that it was read from; the same log replaces its own records
    """

    gpu: str
    engine: str
    version: str
    kind: str
    constant: str
    term: str
    value: float
    unit: str
    date: str
    log: str


class Target(NamedTuple):
    """A constant that decides a logged term; `by_kind`: it depends on the kind of model."""

    constant: str
    by_kind: bool


# Terms and the constant that each measures, surest first. A constant that an engine's data file
# lacks, or that does not move the term in this plan, is passed over.
TARGETS: Mapping[str, tuple[Target, ...]] = {
    "non_torch": (Target("non_torch_growth", by_kind=False),),
    "consumed": (Target("non_torch_growth", by_kind=False),),
    "held_before_start": (Target("cuda_context", by_kind=False),),
    "cuda_graphs_estimated": (Target("cuda_graph_bytes_per_graph_and_layer", by_kind=True),),
    "cuda_graphs": (Target("cuda_graph_bytes_per_graph_and_layer", by_kind=True),),
    "activation_peak": (Target("forward_activation_factor", by_kind=True),),
}


def calibration_path() -> Path | None:
    """The file, whether it exists or not; None when calibration is switched off."""
    named = os.environ.get("MOESIZE_CALIBRATION")
    if named is not None:
        return None if named.strip().lower() in ("", "off", "0", "none") else Path(named)
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(  # noqa: PTH118  (speed)
        os.environ.get("HOME", ""), ".config"
    )
    return Path(home) / "moesize" / "calibration.jsonl"


# --- reading --------------------------------------------------------------------------------------

_loaded: tuple[object, tuple[Record, ...]] = (None, ())
_complained: set[str] = set()


def records(path: str, stamp: object) -> tuple[Record, ...]:
    """Records of a file whose time and size are `stamp`; read again when those change."""
    global _loaded
    key = (path, stamp)
    if _loaded[0] != key:
        _loaded = (key, _read(Path(path)))
    return _loaded[1]


@lru_cache(maxsize=512)
def records_for(
    path: str, stamp: object, engine: str, gpu: str, kind: str, left_out: str | None
) -> tuple[Record, ...]:
    """Records that hold for an engine, a GPU and a kind of model, less those of one log."""
    return tuple(
        record
        for record in records(path, stamp)
        if record.gpu == gpu
        and record.engine == engine
        and record.kind in ("", kind)
        and record.log != left_out
    )


def all_records() -> tuple[Record, ...]:
    """Every record of the user's file; none when it does not exist or is switched off."""
    path = calibration_path()
    if path is None:
        return ()
    try:
        found = path.stat()
    except OSError:
        return ()
    return records(str(path), (found.st_mtime_ns, found.st_size, found.st_ino))


def _read(path: Path) -> tuple[Record, ...]:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        _complain(path, "is not a regular file")
        return ()
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        _complain(path, f"cannot be read ({error.strerror})")
        return ()
    if len(raw) > _MAX_FILE_BYTES:
        _complain(path, f"is larger than {_MAX_FILE_BYTES >> 20} MiB")
        return ()
    out, broken = [], 0
    for text in raw.decode("utf-8", "replace").splitlines():
        if not text.strip():
            continue
        record = _record(text)
        if record is None:
            broken += 1
        else:
            out.append(record)
    if broken:
        _complain(path, f"{broken} of {broken + len(out)} lines are no calibration records")
    return tuple(out)


def _record(text: str) -> Record | None:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        return None
    values: list[Any] = []
    for name in Record._fields:
        value = data.get(name)
        if name == "value":
            if isinstance(value, bool) or not isinstance(value, int | float):
                return None
            value = float(value)
            if not 0 <= value < 1e15:  # NaN and infinity as well
                return None
        elif not isinstance(value, str) or len(value) > 200 or not value.isprintable():
            return None
        values.append(value)
    return Record(*values)


def _complain(path: Path, what: str) -> None:
    """Once per process, on stderr: a plan is still a plan."""
    text = f"warning: calibration file {path}: {what}; those constants are left out"
    if text not in _complained:
        _complained.add(text)
        print(text, file=sys.stderr)


# --- use ------------------------------------------------------------------------------------------


def override(
    constants: Constants,
    found: Iterable[Record],
    release: tuple[int, ...],
    ranges: Mapping[str, tuple[tuple[int, ...], tuple[int, ...] | None]],
) -> dict[str, Constant]:
    """Constants with those replaced that records measure.

    `release` is planned; `ranges` says for which releases each constant means the same. Of the
    releases in that range the one nearest to the planned one is used: value = median, band = least
    to greatest, and not narrower than 15 % around one log or 5 % around several.
    """
    from moesize.engines import release_of

    by_name: dict[str, dict[tuple[int, ...], list[Record]]] = {}
    for record in found:
        of = release_of(record.version)
        if record.constant not in constants or of is None:
            continue
        first, end = ranges[record.constant]
        if of < first or (end is not None and of >= end):
            continue
        by_name.setdefault(record.constant, {}).setdefault(of, []).append(record)
    out = dict(constants)
    for name, releases in by_name.items():
        nearest = min(releases, key=lambda of: (_distance(of, release), of))
        out[name] = _measured(constants[name], releases[nearest])
    return out


def _distance(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    longest = max(len(one), len(other))
    pad_one = one + (0,) * (longest - len(one))
    pad_other = other + (0,) * (longest - len(other))
    return tuple(abs(a - b) for a, b in zip(pad_one, pad_other, strict=True))


def _measured(constant: Constant, found: list[Record]) -> Constant:
    from moesize.engines import YOURS

    values = [record.value for record in found]
    value = statistics.median(values)
    margin = _ONE_LOG if len(values) == 1 else _SEVERAL_LOGS
    low = min(min(values), value * (1 - margin))
    high = max(max(values), value * (1 + margin))
    dates = sorted({record.date for record in found})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    newest = max(found, key=lambda record: record.date)
    what, way = "log", "audit --save"
    if newest.term.startswith("verify "):
        what, way = "measurement", "verify --save"
    log = what if len(found) == 1 else f"{len(found)} {what}s"
    return constant._replace(
        value=value,
        low=low,
        high=high,
        observations=len(found),
        spread=f"{min(values):g} to {max(values):g}" if len(values) > 1 else f"{value:g}",
        date=dates[-1],
        source=f"{YOURS}{log} of {when} ({newest.engine} {newest.version} on {newest.gpu}), {way}",
        note=f"in place of {constant.value:g} ({constant.low:g} to {constant.high:g})",
    )


# --- keeping --------------------------------------------------------------------------------------


def save(new: list[Record]) -> tuple[Path, int]:
    """Add records, replacing those of the same log; (file, records dropped because it is full).

    The whole file is written anew beside the old one and moved over it, under a lock, so that
    neither a crash nor a second process loses a record. Lines that cannot be read are kept.
    Raises EnvironmentProblem.
    """
    path = calibration_path()
    if path is None:
        raise EnvironmentProblem(
            "calibration is switched off (MOESIZE_CALIBRATION)", "unset it to keep records"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path = path.resolve()  # a link stays a link
        with _locked(path):
            return path, _rewrite(path, new)
    except OSError as error:
        raise EnvironmentProblem(
            f"{path}: the calibration records cannot be kept ({error.strerror})",
            "name another file in MOESIZE_CALIBRATION",
        ) from error


def _rewrite(path: Path, new: list[Record]) -> int:
    lines: list[str] = []
    if path.exists():
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise EnvironmentProblem(
                f"{path}: is larger than {_MAX_FILE_BYTES >> 20} MiB, which no such file is",
                "move it away, or name another in MOESIZE_CALIBRATION",
            )
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    replaced = {_identity(record) for record in new}
    kept = []
    for text in lines:
        record = _record(text)
        if text.strip() and (record is None or _identity(record) not in replaced):
            kept.append(text)
    kept += [json.dumps({"schema": SCHEMA, **record._asdict()}) for record in new]
    dropped = max(0, len(kept) - MOST_RECORDS)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as stream:
            stream.write("\n".join(kept[dropped:]) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(name, path)  # noqa: PTH105
    except BaseException:
        with suppress(OSError):
            os.unlink(name)  # noqa: PTH108
        raise
    return dropped


def _identity(record: Record) -> tuple[str, ...]:
    return (record.log, record.gpu, record.engine, record.version, record.kind, record.constant)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time, where the system has locks."""
    try:
        import fcntl
    except ImportError:  # Windows: os.replace is atomic there as well
        yield
        return
    with path.with_name(f".{path.name}.lock").open("w") as stream:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
