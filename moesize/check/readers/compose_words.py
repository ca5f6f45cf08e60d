"""Texts of compose files: variables filled in, `.env` files, commands split into words.

Written after the Compose Specification (interpolation) and Docker's syntax of `.env` files. Every
character keeps its place: that of a default stands where the default stands.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from moesize.check.server import Unresolved
from moesize.check.source import SourceText, Word
from moesize.check.yaml_tree import Node, Scalar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MOST_FILLED = 1 << 17
_MOST_VARIABLES = 2_000
_MOST_IN_BRACES = 4_096
_DEEPEST = 16
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


# --- variables --------------------------------------------------------------------------------


class Filled(NamedTuple):
    """A text with its variables filled in.

    text     each character with its place: a default's where the default stands
    whole    (start, end) in the text -> the value of one variable, with a place of its own
    missing  variables that nothing defines; they stay in the text as they were written
    """

    text: SourceText
    whole: dict[tuple[int, int], Word]
    missing: tuple[Unresolved, ...] = ()

    def word(self, start: int = 0, end: int | None = None) -> Word:
        """A piece of the text as a word."""
        end = len(self.text.value) if end is None else end
        return self.whole.get((start, end)) or self.text.word(start, end)


class Filler:
    """Fills in `$V`, `${V}`, `${V:-d}`, `${V-d}`, `${V:?e}`, `${V:+x}`; `$$` is a dollar sign."""

    def __init__(self, lookup: Callable[[str], Word | None]) -> None:
        self.lookup = lookup

    def node(self, node: Node) -> Filled | None:
        """A scalar; None for what is no scalar, and for null."""
        if not isinstance(node, Scalar) or node.text is None or len(node.value) > MOST_FILLED:
            return None
        if "$" not in node.value:
            return Filled(node.source_text(), {(0, len(node.value)): node.word})
        return self.text(node.source_text())

    def word(self, node: Node) -> Word | None:
        """A scalar as one word."""
        filled = self.node(node)
        return None if filled is None else filled.word()

    def text(self, source: SourceText) -> Filled:
        """A text."""
        run = _Run(source, self.lookup)
        run.fill(0, len(source.value), 0)
        value = "".join(run.parts)
        if len(value) > MOST_FILLED:
            return Filled(source, {})
        made = SourceText(source.file, value, offsets=run.offsets)
        return Filled(made, run.whole, tuple(run.missing))


class _Run:
    """One pass of a filler over a text."""

    def __init__(self, source: SourceText, lookup: Callable[[str], Word | None]) -> None:
        self.source = source
        self.lookup = lookup
        self.parts: list[str] = []
        # (index in the source, length, whether each character stands in the source)
        self.places: list[tuple[int, int, bool]] = []
        self.whole: dict[tuple[int, int], Word] = {}
        self.missing: list[Unresolved] = []
        self.length = 0
        self.seen = 0

    def offsets(self) -> list[int]:
        """File offsets of the characters of the filled text."""
        found: list[int] = []
        for start, length, literal in self.places:
            if literal:
                found.extend(self.source.offset(start + index) for index in range(length))
            else:
                found.extend([self.source.offset(start)] * length)
        found.append(self.source.offset(len(self.source.value)))
        return found

    def put(self, text: str, start: int, *, literal: bool) -> None:
        if text:
            self.parts.append(text)
            self.places.append((start, len(text), literal))
            self.length += len(text)

    def fill(self, start: int, end: int, depth: int) -> None:
        raw = self.source.value
        while start < end:
            dollar = raw.find("$", start, end)
            if dollar < 0 or depth > _DEEPEST or self.seen > _MOST_VARIABLES:
                self.put(raw[start:end], start, literal=True)
                return
            self.put(raw[start:dollar], start, literal=True)
            self.seen += 1
            following = raw[dollar + 1 : dollar + 2]
            if following == "$":
                self.put("$", dollar, literal=True)
                start = dollar + 2
                continue
            if following == "{":
                start = self.braces(dollar, end, depth)
                continue
            name = _NAME.match(raw, dollar + 1, end)
            if name is None:
                self.put("$", dollar, literal=True)
                start = dollar + 1
                continue
            self.variable(name[0], dollar, name.end())
            start = name.end()

    def braces(self, dollar: int, end: int, depth: int) -> int:
        """`${...}`: where the text goes on behind it."""
        raw = self.source.value
        close = _closing(raw, dollar + 2, min(end, dollar + _MOST_IN_BRACES))
        name = _NAME.match(raw, dollar + 2, end)
        if close < 0 or name is None:
            self.put("$", dollar, literal=True)
            return dollar + 1
        rest = name.end()
        operator = ""
        for known in (":-", ":?", ":+", "-", "?", "+"):
            if raw.startswith(known, rest, close):
                operator = known
                break
        if rest != close and not operator:
            self.put("$", dollar, literal=True)
            return dollar + 1
        inner = rest + len(operator)
        found = self.lookup(name[0])
        given = found is not None and (bool(found) or not operator.startswith(":"))
        if operator.endswith("+"):
            if given:
                self.fill(inner, close, depth + 1)
        elif operator.endswith("-") and not given:
            self.fill(inner, close, depth + 1)
        else:
            self.variable(name[0], dollar, close + 1)
        return close + 1

    def variable(self, name: str, start: int, end: int) -> None:
        found = self.lookup(name)
        place = self.source.word(start, end)
        if found is None:
            self.missing.append(Unresolved(name, place))
            self.put(self.source.value[start:end], start, literal=True)
            return
        here = self.length
        self.put(str(found), start, literal=False)
        # A value that no file states is pointed at where it is used.
        self.whole[here, self.length] = found if found.span is not None else place.becomes(found)


def _closing(raw: str, start: int, end: int) -> int:
    """Where the brace opened before `start` is closed; -1: nowhere."""
    depth = 1
    position = start
    while position < end:
        char = raw[position]
        if char == "{" and raw[position - 1] == "$":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return -1


# --- .env files -------------------------------------------------------------------------------


def read_env_file(source: SourceText, known: Mapping[str, Word] | None = None) -> dict[str, Word]:
    """The variables of an `.env` file; values may use those above, and `known` ones."""
    found: dict[str, Word] = {}

    def lookup(name: str) -> Word | None:
        if known and name in known:
            return known[name]
        return found.get(name)

    filler = Filler(lookup)
    position, text = 0, source.value
    while position < len(text) and len(found) < _MOST_VARIABLES:
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        line = text[position:end]
        entry = _env_line(line)
        if entry is not None:
            name, start, stop, literal = entry
            word = source.word(position + start, position + stop)
            if "$" in word and not literal:
                inner = SourceText(
                    source.file,
                    str(word),
                    offsets=places_of(source, position + start, position + stop),
                )
                filled = filler.text(inner)
                if not filled.missing and len(filled.text.value) < _MOST_IN_BRACES:
                    word = filled.word()
            found[name] = word
        position = end + 1
    return found


def places_of(source: SourceText, start: int, stop: int) -> Callable[[], list[int]]:
    return lambda: [source.offset(index) for index in range(start, stop + 1)]


def _env_line(line: str) -> tuple[str, int, int, bool] | None:
    """(name, start and end of the value, whether it is taken literally) of a line."""
    start = len(line) - len(line.lstrip())
    if line.startswith("export ", start):
        start += 7
        start += len(line[start:]) - len(line[start:].lstrip())
    match = _NAME.match(line, start)
    if match is None:
        return None
    after = match.end()
    while after < len(line) and line[after] in " \t":
        after += 1
    if line[after : after + 1] != "=":
        return None
    after += 1
    while after < len(line) and line[after] in " \t":
        after += 1
    quote = line[after : after + 1]
    if quote in ("'", '"') and quote:
        close = line.find(quote, after + 1)
        if close > 0:
            return match[0], after + 1, close, quote == "'"
    comment = line.find(" #", after)
    stop = len(line) if comment < 0 else comment
    return match[0], after, max(after, len(line[:stop].rstrip())), False


# --- words of a command -----------------------------------------------------------------------


def split_command(filled: Filled) -> list[tuple[Word, SourceText]]:
    """A command string into words, quotes taken off, as Compose does it."""
    source, text = filled.text, filled.text.value
    found: list[tuple[Word, SourceText]] = []
    position, length = 0, len(text)
    while position < length:
        if text[position].isspace():
            position += 1
            continue
        kept: list[int] = []
        quote = ""
        start = position
        while position < length and (quote or not text[position].isspace()):
            char = text[position]
            following = text[position + 1 : position + 2]
            if char == "\\" and quote != "'" and following:
                if not quote or following in '"\\$`\n':
                    position += 1
                    if following != "\n":
                        kept.append(position)
                else:
                    kept.append(position)
            elif quote:
                if char == quote:
                    quote = ""
                else:
                    kept.append(position)
            elif char in "'\"":
                quote = char
            else:
                kept.append(position)
            position += 1
        if not kept and text[start:position].strip("\\\n") == "":
            continue  # a line continuation by itself
        found.append(_collected(filled, source, start, position, kept))
    return found


def _collected(
    filled: Filled, source: SourceText, start: int, end: int, kept: list[int]
) -> tuple[Word, SourceText]:
    value = "".join(source.value[index] for index in kept)
    if kept and kept[-1] - kept[0] + 1 == len(kept):
        word = filled.word(kept[0], kept[-1] + 1)
    else:
        word = source.word(start, end, value)
    places = [*kept, end]
    return word, SourceText(
        source.file, value, offsets=lambda: [source.offset(index) for index in places]
    )
