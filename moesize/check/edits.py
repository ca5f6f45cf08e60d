"""Fixes made: edits of safe fixes on texts, and files rewritten with nothing else changed.

Everything outside the edited spans stays byte for byte: line ends, a byte-order mark, a missing
last line end. A file that changed since it was read, or would no longer be read, is left alone.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, NamedTuple

from moesize.check.files import write_whole
from moesize.check.source import SourceFile
from moesize.core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from moesize.check.findings import CheckReport, Edit, Finding, Fix

_BOM = codecs.BOM_UTF8
_MOST_FIXES = 2_000
# A fix may make another one possible; no chain is longer.
_ROUNDS = 5


class Fixed(NamedTuple):
    """A text after its fixes: `made` are the findings that they were for."""

    path: str
    before: str
    after: str
    made: tuple[Finding, ...]


def fix_texts(report: CheckReport) -> list[Fixed]:
    """Every file of the report that safe fixes change, in the order of paths.

    Of fixes that touch the same characters the first wins; a further round makes the others.
    """
    wanted: dict[str, list[tuple[Finding, Fix]]] = {}
    for finding in report.findings:
        fix = finding.fix
        if fix is None or not fix.safe or not fix.edits:
            continue
        paths = {edit.span.path for edit in fix.edits}
        if len(paths) == 1:
            wanted.setdefault(paths.pop(), []).append((finding, fix))
    out = []
    for path, fixes in sorted(wanted.items()):
        text = report.texts.get(path)
        if text is None:
            continue
        after, made = apply_fixes(SourceFile(path, text), fixes)
        if after != text and _is_still_read(path, text, after):
            out.append(Fixed(path, text, after, tuple(made)))
    return out


def apply_fixes(
    file: SourceFile, fixes: Iterable[tuple[Finding, Fix]]
) -> tuple[str, list[Finding]]:
    """The text with the fixes made that do not touch each other, and whose they were."""
    newline = "\r\n" if "\r\n" in file.text else "\n"
    taken: dict[tuple[int, int], str] = {}
    made: list[Finding] = []
    for finding, fix in fixes:
        if len(made) >= _MOST_FIXES:  # the others are for the next round
            break
        edits = [_as_offsets(file, edit, newline) for edit in fix.edits]
        known = [edit for edit in edits if edit is not None]
        if len(known) < len(edits) or not _are_free(known, taken):
            continue
        taken.update({(start, end): text for start, end, text in known})
        made.append(finding)
    pieces: list[str] = []
    position = 0
    for (start, end), text in sorted(taken.items()):
        pieces += (file.text[position:start], text)
        position = end
    return "".join(pieces) + file.text[position:], made


def _as_offsets(file: SourceFile, edit: Edit, newline: str) -> tuple[int, int, str] | None:
    """An edit by offsets; None where its place is not in the text."""
    span = edit.span
    starts = file.starts
    if not 1 <= span.line <= span.end_line <= len(starts):
        return None
    start = starts[span.line - 1] + span.column - 1
    end = starts[span.end_line - 1] + span.end_column - 1
    if not 0 <= start <= end <= len(file.text) or span.column < 1 or span.end_column < 1:
        return None
    return start, end, edit.text.replace("\r\n", "\n").replace("\n", newline)


def _are_free(edits: list[tuple[int, int, str]], taken: dict[tuple[int, int], str]) -> bool:
    """Whether edits touch nothing that is taken; the same edit twice is one."""
    new = []
    for start, end, text in edits:
        known = taken.get((start, end))
        if known is not None and known == text:
            continue
        new.append((start, end))
    others = list(taken)
    for index, (start, end) in enumerate(new):
        for other_start, other_end in (*others, *new[:index]):
            if start < other_end and other_start < end:
                return False
            if start == other_start or end == other_end:
                return False
    return True


def _is_still_read(path: str, before: str, after: str) -> bool:
    """Whether a YAML text is still one, with as many documents as before."""
    from moesize.check.discovery import YAML_SUFFIXES
    from moesize.check.source import SourceText
    from moesize.check.yaml_tree import YamlError, parse_stream

    if not path.lower().endswith(YAML_SUFFIXES):
        return True
    try:
        old = parse_stream(SourceText.of_file(SourceFile(path, before)))
    except YamlError:
        return True  # it was none
    try:
        new = parse_stream(SourceText.of_file(SourceFile(path, after)))
    except YamlError:
        return False
    return len(new.documents) == len(old.documents)


def write_fixed(fixed: Fixed, path: Path, root: Path) -> None:
    """Write a fixed text in the place of the file it was read from. Raises InvalidInputError."""
    target = path.resolve()
    if path.is_symlink() and not target.is_relative_to(root.resolve()):
        raise InvalidInputError(f"{fixed.path}: is a link that leads out of {root}: not changed")
    try:
        raw = target.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"{fixed.path}: cannot be read ({error.strerror})") from error
    mark = _BOM if raw.startswith(_BOM) else b""
    if raw != mark + fixed.before.encode():
        raise InvalidInputError(f"{fixed.path}: changed while it was checked: not fixed")
    write_whole(target, mark + fixed.after.encode())


def diff_of(fixed: Fixed) -> str:
    """The change as a unified diff."""
    import difflib

    out = []
    for line in difflib.unified_diff(
        _lines(fixed.before), _lines(fixed.after), f"a/{fixed.path}", f"b/{fixed.path}"
    ):
        if line.endswith("\n"):
            out.append(line)
        else:
            out.append(f"{line}\n\\ No newline at end of file\n")
    return "".join(out)


def _lines(text: str) -> list[str]:
    """Lines with their ends, cut at line feeds only, as diff and patch do."""
    lines = text.split("\n")
    return [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


class Outcome(NamedTuple):
    """What `fix_files` did: the report of what remains, and what could not be written."""

    report: CheckReport
    num_fixes: int
    num_files: int
    problems: tuple[str, ...]


def fix_files(check: Callable[[], CheckReport], here: Path) -> Outcome:
    """Make the safe fixes of a report and check again, until none is left.

    `here` is the folder that paths of the report are relative to.
    """
    from moesize.check.discovery import find_repository

    report = check()
    files: set[str] = set()
    refused: dict[str, str] = {}
    num_fixes = 0
    for _ in range(_ROUNDS):
        todo = [fixed for fixed in fix_texts(report) if fixed.path not in refused]
        for fixed in todo:
            path = here / fixed.path
            try:
                write_fixed(fixed, path, find_repository(path.parent) or path.parent)
            except InvalidInputError as error:
                refused[fixed.path] = error.message
                continue
            files.add(fixed.path)
            num_fixes += len(fixed.made)
        if all(fixed.path in refused for fixed in todo):
            break
        report = check()
    return Outcome(report, num_fixes, len(files), tuple(refused.values()))


def fix_text(check: Callable[[bytes], CheckReport], raw: bytes) -> tuple[bytes, CheckReport]:
    """The same for a text that is in no file."""
    mark = _BOM if raw.startswith(_BOM) else b""
    report = check(raw)
    for _ in range(_ROUNDS):
        todo = fix_texts(report)
        if len(todo) != 1:
            break
        raw = mark + todo[0].after.encode()
        report = check(raw)
    return raw, report
