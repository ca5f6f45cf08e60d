"""A baseline: findings that an old repository starts with, which no longer count.

A finding is known by rule, file, server and the values involved, never by its line. Paths are
relative to the folder of the baseline, so that it means the same wherever the check is started.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from moesize.check.files import write_whole
from moesize.core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moesize.check.findings import FileResult, Finding

SCHEMA = "moesize.baseline/1"
_HINT = "`moesize check --write-baseline FILE` makes one"


class Entry(NamedTuple):
    """What makes a finding the same one."""

    rule: str
    path: str
    server: str
    key: tuple[str, ...]


def read_baseline(path: Path) -> Counter[Entry]:
    """The entries of a baseline, with how often each occurs. Raises InvalidInputError."""
    from moesize.files import read_json

    data = read_json(path)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise InvalidInputError(f"{path}: is no baseline", _HINT)
    rows = data.get("findings")
    if not isinstance(rows, list):
        raise InvalidInputError(f"{path}: is no baseline (no list of findings)", _HINT)
    found: Counter[Entry] = Counter()
    for number, row in enumerate(rows):
        entry, count = _entry(row)
        if entry is None:
            raise InvalidInputError(f"{path}: findings[{number}] is not an entry", _HINT)
        found[entry] += count
    return found


def _entry(row: Any) -> tuple[Entry | None, int]:
    if not isinstance(row, dict):
        return None, 0
    rule, path, server = (row.get(name) for name in ("rule", "path", "server"))
    key, count = row.get("key"), row.get("count", 1)
    if not isinstance(rule, str) or not isinstance(path, str) or not isinstance(server, str):
        return None, 0
    if not isinstance(key, list) or not all(isinstance(part, str) for part in key):
        return None, 0
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        return None, 0
    return Entry(rule, path, server, tuple(key)), count


def apply_baseline(known: Counter[Entry], files: Iterable[FileResult], folder: Path) -> int:
    """Mark the findings that are known; returns how many entries no longer occur."""
    left = Counter(known)
    checked: set[str] = set()
    for file in files:
        path = _relative(file.path, folder)
        checked.add(path)
        for finding in file.counted:
            entry = _entry_of(finding, path)
            if left[entry] > 0:
                left[entry] -= 1
                finding.suppressed = "baseline"
    # Of a file that was not checked this time (pre-commit names but the changed ones) nobody knows.
    return sum(
        count
        for entry, count in left.items()
        if count > 0 and (entry.path in checked or not (folder / entry.path).exists())
    )


def write_baseline(path: Path, files: Iterable[FileResult]) -> int:
    """Write all findings that count as a baseline; returns how many. Raises InvalidInputError."""
    folder = path.absolute().parent
    found: Counter[Entry] = Counter()
    for file in files:
        relative = _relative(file.path, folder)
        found.update(_entry_of(finding, relative) for finding in file.counted)
    rows = [
        {
            "rule": entry.rule,
            "path": entry.path,
            "server": entry.server,
            "key": list(entry.key),
            "count": count,
        }
        for entry, count in sorted(found.items())
    ]
    document = {"schema": SCHEMA, "findings": rows}
    text = json.dumps(document, indent=2, ensure_ascii=True) + "\n"
    write_whole(path, text.encode())
    return found.total()


def _entry_of(finding: Finding, path: str) -> Entry:
    return Entry(finding.rule, path, finding.server, finding.key)


def _relative(shown: str, folder: Path) -> str:
    try:
        return Path(os.path.relpath(shown, folder)).as_posix()
    except ValueError:  # another drive
        return shown
