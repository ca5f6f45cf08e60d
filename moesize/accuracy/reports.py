"""Reading field reports: one JSON object a line, checked, bounded; a bad line loses only itself.

The fields and their types are those of `moesize.documents.Report`; docs/field-reports.md says what
they mean. A field that is not listed there is passed over and counted.
"""

from __future__ import annotations

import json
import sys
import types
from collections import Counter
from collections.abc import Mapping
from dataclasses import field
from functools import cache
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from moesize.core.errors import InvalidInputError
from moesize.core.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterator

# A report with a long quotation is below 10 kB; ten thousand of them would be below 100 MiB.
MAX_LINE_BYTES = 1 << 20
MAX_FILE_BYTES = 256 << 20
MAX_ROWS = 200_000
_MAX_TEXT = 1 << 16
_MAX_ITEMS = 4096
_MAX_NUMBER = 1e15
_MAX_PROBLEMS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldReport:
    """What one person's engine logged, and the settings it ran with.

    `settings` are the fields of the line as they stand, `observed` the figures. `suspect` is why
    the collector doubts the row; empty when nobody does.
    """

    id: str
    line: int
    engine: str
    model: str
    settings: Mapping[str, Any]
    observed: Mapping[str, Any]
    suspect: str = ""

    def text(self, name: str) -> str:
        """A setting that is a text; empty when it was not stated."""
        value = self.settings.get(name)
        return value.strip() if isinstance(value, str) else ""

    def number(self, name: str) -> int | None:
        """A setting that is a whole number; None when it was not stated or is a word."""
        value = self.settings.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A line that could not be used, and why."""

    line: int
    message: str


@dataclass(slots=True, kw_only=True)
class ReportFile:
    """What a file holds: reports, lines that could not be used, and fields nobody reads."""

    file: str
    reports: list[FieldReport] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)


def shipped_reports() -> Path:
    """The field reports that come with the package."""
    return Path(__file__).resolve().parent.parent / "data" / "field_reports.jsonl"


def read_reports(path: Path) -> ReportFile:
    """Read a file of reports. Lines that are wrong are listed in `problems`, with what to fix.

    Raises InvalidInputError when the file cannot be read, is too large, or holds no report at all.
    """
    found = ReportFile(file=str(path))
    lines: dict[str, int] = {}
    for number, raw in _lines(path):
        try:
            report = _report(raw, number, found.unread)
        except _LineError as error:
            if len(found.problems) < _MAX_PROBLEMS:
                found.problems.append(Problem(line=number, message=str(error)))
            continue
        if report.id in lines:
            first = lines[report.id]
            message = f"id {report.id[:60]!r} stands on line {first} too; both are counted"
            found.problems.append(Problem(line=number, message=message))
        lines.setdefault(report.id, number)
        found.reports.append(report)
    if not found.reports:
        if found.problems:
            first_problem = found.problems[0]
            raise InvalidInputError(
                f"{path}:{first_problem.line}: {first_problem.message}",
                "no line of the file is a field report; docs/field-reports.md describes the format",
            )
        raise InvalidInputError(f"{path}: the file is empty", "one JSON object a line is expected")
    return found


class _LineError(ValueError):
    """What is wrong with a line, and what to do about it, in one sentence."""


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    if str(path) == "-":
        yield from _read_lines("-", sys.stdin.buffer)
        return
    try:
        if path.is_dir():
            raise InvalidInputError(f"{path}: is a folder, not a file of reports")
        # A named pipe would be waited for, a device never ends.
        if path.exists() and not path.is_file():
            raise InvalidInputError(f"{path}: is not a regular file")
        with path.open("rb") as stream:
            yield from _read_lines(str(path), stream)
    except FileNotFoundError as error:
        raise InvalidInputError(
            f"{path}: no such file", "name a file of reports, or - to read from a pipe"
        ) from error
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read ({error.strerror})") from error


def _read_lines(name: str, stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers. Bounded; a stream says no size beforehand."""
    number = rows = size_bytes = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        size_bytes += len(raw)
        if size_bytes > MAX_FILE_BYTES:
            raise InvalidInputError(
                f"{name}: larger than {MAX_FILE_BYTES >> 20} MiB", "split the file into parts"
            )
        if len(raw) > MAX_LINE_BYTES:
            raise InvalidInputError(
                f"{name}:{number}: the line is longer than {MAX_LINE_BYTES >> 20} MiB",
                "is this a file of field reports, one JSON object a line?",
            )
        if not raw.strip():
            continue
        rows += 1
        if rows > MAX_ROWS:
            raise InvalidInputError(
                f"{name}:{number}: more than {MAX_ROWS:,} reports", "split the file into parts"
            )
        yield number, raw


def _report(raw: bytes, line: int, unread: Counter[str]) -> FieldReport:
    data = _object(raw)
    hints = _hints()
    for name, required in hints.required:
        if name not in data:
            raise _LineError(f"the field `{name}` is missing; {required}")
    for name, value in data.items():
        hint = hints.fields.get(name)
        if hint is None:
            unread[name[:60]] += 1
        else:
            _check(value, hint, name, unread)
    suspect = data.get("suspect") or ""
    return FieldReport(
        id=data["id"],
        line=line,
        engine=data["engine"].strip().lower(),
        model=data["model"].strip(),
        settings={k: v for k, v in data.items() if k in hints.fields and k != "observed"},
        observed={k: v for k, v in data["observed"].items() if v is not None},
        suspect="marked as suspect by the collector" if suspect is True else suspect,
    )


def _object(raw: bytes) -> dict[str, Any]:
    try:
        data = json.loads(raw.decode("utf-8-sig"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise _LineError(f"not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise _LineError(
            f"not valid JSON at column {error.colno} ({error.msg.lower()}); "
            "one whole JSON object a line is expected"
        ) from error
    except RecursionError as error:
        raise _LineError("nested too deeply to be a report") from error
    except ValueError as error:  # NaN, or an integer with more digits than Python converts
        raise _LineError("holds a number that is not finite or out of range") from error
    if not isinstance(data, dict):
        raise _LineError("is not a JSON object; one object a line is expected")
    return data


def _no_constant(name: str) -> float:
    raise ValueError(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hints:
    fields: dict[str, Any]
    required: tuple[tuple[str, str], ...]


@cache
def _hints() -> _Hints:
    from moesize.documents import Report

    return _Hints(
        fields=get_type_hints(Report, include_extras=True),
        required=(
            ("id", "give every report a name of its own"),
            ("engine", "say which engine ran: vllm, sglang or llama.cpp"),
            ("model", "name the model: a hub id, a catalogue name or a GGUF file"),
            ("observed", "put what the engine logged into it"),
        ),
    )


_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _check(value: Any, hint: Any, path: str, unread: Counter[str]) -> None:
    """Raise _LineError unless `value` is what the annotation says."""
    if not _fits(value, hint, path, unread):
        raise _LineError(f"`{path[:80]}` must be {_words(hint)}, not {_show(value)}")


def _fits(value: Any, hint: Any, path: str, unread: Counter[str]) -> bool:
    origin, members = get_origin(hint), get_args(hint)
    if origin in (Required, NotRequired):
        return _fits(value, members[0], path, unread)
    if origin is Union or origin is types.UnionType:
        return any(_fits(value, member, path, unread) for member in members)
    if origin is Literal:
        return value in members and not isinstance(value, bool)
    if origin is list:
        return (
            isinstance(value, list)
            and len(value) <= _MAX_ITEMS
            and all(_fits(item, members[0], f"{path}[]", unread) for item in value)
        )
    if origin is dict:
        return (
            isinstance(value, dict)
            and len(value) <= _MAX_ITEMS
            and all(_fits(item, members[1], f"{path}.{key}", unread) for key, item in value.items())
        )
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is str:
        return isinstance(value, str) and len(value) <= _MAX_TEXT
    if hint is int or hint is float:
        kinds = (int,) if hint is int else (int, float)
        # Not finite, or an integer that no float holds, fails the comparison.
        good = isinstance(value, kinds) and not isinstance(value, bool)
        return good and abs(value) <= _MAX_NUMBER
    if isinstance(value, dict):  # a typed dictionary
        for name, item in value.items():
            inner = _annotations(hint).get(name)
            if inner is None:
                unread[f"{path}.{name[:60]}"] += 1
            else:
                _check(item, inner, f"{path}.{name}", unread)
        return True
    return False


@cache
def _annotations(typed: Any) -> dict[str, Any]:
    """Annotations of a typed dictionary; asked for with every value of every line."""
    return get_type_hints(typed, include_extras=True)


def _words(hint: Any) -> str:
    origin, members = get_origin(hint), get_args(hint)
    if origin in (Required, NotRequired):
        return _words(members[0])
    if origin is Union or origin is types.UnionType:
        rest = [_words(member) for member in members if member is not type(None)]
        return " or ".join([*rest, "null"] if type(None) in members else rest)
    if origin is Literal:
        return " or ".join(repr(member) for member in members)
    if origin is list:
        return f"a list of at most {_MAX_ITEMS} items, each {_words(members[0])}"
    if origin is dict:
        return f"an object whose values are each {_words(members[1])}"
    return _NAMES.get(hint, "an object")


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else text[:57] + "..."
