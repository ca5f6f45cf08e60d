"""Lines of a file with marks under them, as wide on the terminal as they are shown.

A line is cut around its mark where there is no room for all of it; a tab takes four places, wide
characters two, combining ones none.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, NamedTuple

from moesize.renderers.check.lines import opens_command, spelled

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moesize.check.source import SourceFile, Span

TAB = "    "
DOTS = "..."
# Characters that take no place: a line of nothing else is cut as well.
_MOST_PER_PLACE = 4


class Mark(NamedTuple):
    """A place to point at, and what to say there."""

    span: Span
    text: str
    primary: bool


class Row(NamedTuple):
    """A line of an excerpt.

    number   of the line in the file; None for a row of marks, 0 for lines left out
    indent   places before `text`
    style    "source", "primary" or "secondary"
    """

    number: int | None
    indent: int
    text: str
    style: str


def width_of(text: str) -> int:
    """Places that a printable text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(_width(char) for char in text)


def _width(char: str) -> int:
    if char < "\x7f":
        return 1
    if unicodedata.category(char) in ("Mn", "Me") or "\u1160" <= char <= "\u11ff":
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def wrap(text: str, room: int) -> list[str]:
    """Words on lines of at most `room` places; a word that is longer is cut.

    No line but the first begins with `::`, which GitHub's runner would take for a command.
    """
    room = max(room, 8)
    if width_of(text) <= room:
        return [text]
    lines: list[str] = []
    line, used = "", 0
    for number, part in enumerate(text.split(" ")):
        word = _no_command(part) if number else part
        size = width_of(word)
        if line and used + 1 + size <= room:
            line, used = f"{line} {word}", used + 1 + size
            continue
        if line.strip():
            lines.append(line.rstrip())
        while size > room:
            cut = _fitting(word, room)
            lines.append(word[:cut])
            word = _no_command(word[cut:])
            size = width_of(word)
        line, used = word, size
    return [*lines, line] if line.strip() else lines


def _no_command(text: str) -> str:
    return f"\\{text}" if text.startswith("::") else text


def _fitting(word: str, room: int) -> int:
    used = 0
    for index, char in enumerate(word):
        used += _width(char)
        if used > room:
            return max(index, 1)
    return len(word)


def excerpt(
    source: SourceFile, marks: Iterable[Mark], room: int, label_room: int | None
) -> list[Row]:
    """The marked lines, each followed by its marks.

    room        places for a line of the file
    label_room  places for a line of marks with what is said there; None: as it comes
    """
    by_line: dict[int, list[Mark]] = {}
    for mark in marks:
        by_line.setdefault(min(mark.span.line, source.num_lines), []).append(mark)
    rows: list[Row] = []
    last = 0
    for number in sorted(by_line):
        if last and number == last + 2:
            shown, _ = _cut(source.line(last + 1), 0, room)
            rows.append(Row(last + 1, 0, shown, "source"))
        elif last and number > last + 2:
            rows.append(Row(0, 0, DOTS, "source"))
        rows += _marked_line(source.line(number), number, by_line[number], room, label_room)
        last = number
    return rows


def _marked_line(
    line: str, number: int, marks: list[Mark], room: int, label_room: int | None
) -> list[Row]:
    """A line and its marks; marks that lie outside of what is shown get the line once more."""
    rows: list[Row] = []
    left = sorted(marks, key=lambda mark: (not mark.primary, mark.span.column))
    while left:
        start = min(left[0].span.column - 1, len(line))
        shown, places = _cut(line, start, room)
        inside = [mark for mark in left if min(mark.span.column - 1, len(line)) in places]
        rows.append(Row(number, 0, shown, "source"))
        for mark in sorted(inside, key=lambda mark: mark.span.column):
            rows += _mark_rows(line, mark, places, label_room)
        left = [mark for mark in left if mark not in inside]
    return rows


def _mark_rows(line: str, mark: Mark, places: dict[int, int], label_room: int | None) -> list[Row]:
    start = min(mark.span.column - 1, len(line))
    end = mark.span.end_column - 1 if mark.span.end_line == mark.span.line else len(line.rstrip())
    first, last = places[start], places.get(end, max(places.values()))
    carets = ("^" if mark.primary else "-") * max(1, last - first)
    style = "primary" if mark.primary else "secondary"
    if not mark.text:
        return [Row(None, first, carets, style)]
    together = f"{carets} {mark.text}"
    if label_room is None or first + width_of(together) <= label_room:
        return [Row(None, first, together, style)]
    indent = min(first, max(0, label_room - 32))
    said = wrap(mark.text, label_room - indent)
    return [Row(None, first, carets, style), *(Row(None, indent, text, style) for text in said)]


def _cut(line: str, start: int, room: int) -> tuple[str, dict[int, int]]:
    """What is shown of a line, and the place at which each shown character (and the end) begins.

    Everything if there is room; else the part around `start`.
    """
    first, last = _window(line, start, max(room, 16))
    shown = [DOTS] if first else []
    place = len(DOTS) if first else 0
    places = {}
    for index in range(first, last):
        text = _cell(line, index)
        places[index] = place
        shown.append(text)
        place += width_of(text)
    places[last] = place
    if last < len(line):
        shown.append(DOTS)
    return "".join(shown), places


def _window(line: str, start: int, room: int) -> tuple[int, int]:
    if len(line) <= room and sum(width_of(_cell(line, i)) for i in range(len(line))) <= room:
        return 0, len(line)
    room -= 2 * len(DOTS)
    first = last = start
    used = 0
    first, used = _grow_left(line, first, used, room // 3, room)
    while last < len(line) and last - first < room * _MOST_PER_PLACE:
        size = width_of(_cell(line, last))
        if used + size > room:
            break
        last, used = last + 1, used + size
    if last == len(line):
        first, used = _grow_left(line, first, used, room, room)
    return first, max(last, min(start + 1, len(line)))


def _grow_left(line: str, first: int, used: int, most: int, room: int) -> tuple[int, int]:
    steps = 0
    while first > 0 and steps < room * _MOST_PER_PLACE:
        size = width_of(_cell(line, first - 1))
        if used + size > most:
            break
        first, used, steps = first - 1, used + size, steps + 1
    return first, used


def _cell(line: str, index: int) -> str:
    """A character of a line as it is shown."""
    char = line[index]
    if char == "\t":
        return TAB
    if char == "[" and opens_command(line, index):
        return r"\x5b"
    return spelled(char)
