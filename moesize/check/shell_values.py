"""Values of a shell: texts in pieces, each of which knows where it stands.

`--max-model-len=$LEN` is made of what stands there and of what stands where LEN is set. Kept in
pieces, the number is found at its definition, which is where it has to be changed.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from moesize.check.source import Word

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moesize.check.source import SourceText

MOST_FIELDS = 8_192
MOST_DEPTH = 6
_MOST_FILLED = 1 << 14
_KUBERNETES = re.compile(r"\$\(([A-Za-z_][\w.-]{0,200})\)")
_OPEN_NAME = re.compile(
    r"\$\{([A-Za-z_][\w.]{0,100})|\$\(?([A-Za-z_]\w{0,100})|\{\{[-\s]*([^{}]{1,100}?)[-\s]*\}\}"
)
_BLANKS = re.compile(r"\s+")

# What a variable holds: a value, the values of an array, UNKNOWN, or UNSET where nothing is said.
UNKNOWN = None
UNSET = object()


class Origin(Protocol):
    """Something that tells where its characters stand."""

    def word(self, start: int, end: int, text: str | None = None) -> Word:
        """Characters start to end as a Word."""


class Text(Origin, Protocol):
    """A text that can be read as a script."""

    @property
    def value(self) -> str:
        """Its characters."""


class WordOrigin:
    """A word that came from somewhere else: a variable of the container, an argument."""

    __slots__ = ("whole",)

    def __init__(self, whole: Word) -> None:
        self.whole = whole

    def word(self, start: int, end: int, text: str | None = None) -> Word:
        """Characters start to end as a Word; all of them are the word itself."""
        if start == 0 and end == len(self.whole) and (text is None or text == self.whole):
            return self.whole
        cut = self.whole.cut(start, end)
        return cut if text is None or text == cut else Word(text, cut.span)


class Piece(NamedTuple):
    """Characters start to end of an origin; where `text` is not as long, they stand as a whole.

    open    the name of the variable whose value is not known; the text is as written
    """

    text: str
    origin: Origin
    start: int
    end: int
    open: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether each character of the text has a place of its own."""
        return len(self.text) == self.end - self.start

    def cut(self, start: int, end: int) -> Piece:
        """Characters start to end of the text."""
        if not self.is_exact:
            return self._replace(text=self.text[start:end])
        first = self.start + start
        return self._replace(text=self.text[start:end], start=first, end=self.start + end)

    def word(self) -> Word:
        """The piece as a word."""
        return self.origin.word(self.start, self.end, self.text)


Value = tuple[Piece, ...]
Variable = Any  # Value | list[Value] | None | UNSET


class MixedWord(Word):
    """A word of several pieces: what lies inside one of them keeps that piece's own place."""

    __slots__ = ("pieces",)
    pieces: Sequence[Piece]

    def cut(self, start: int, end: int | None = None) -> Word:
        """The characters from `start` to `end`, at the place of the piece that holds them."""
        stop = len(self) if end is None else end
        inside = cut_value(self.pieces, start, stop)
        used = Word(self[start:stop], self.span)
        return joined(inside, used) if inside else used


def text_of(value: Sequence[Piece]) -> str:
    """The text of a value."""
    return "".join(piece.text for piece in value)


def cut_value(value: Sequence[Piece], start: int, end: int) -> Value:
    """Characters start to end of a value."""
    found: list[Piece] = []
    begin = 0
    for piece in value:
        first, last = max(start, begin), min(end, begin + len(piece.text))
        if first < last:
            found.append(piece.cut(first - begin, last - begin))
        begin += len(piece.text)
    return tuple(found)


def joined(value: Sequence[Piece], used: Word) -> Word:
    """Pieces (at least one, none empty) as one word; `used` is that text where it is used."""
    first = value[0]
    if len(value) == 1:
        return first.word()
    stand_together = all(
        piece.origin is first.origin and piece.start == before.end and before.is_exact
        for before, piece in pairwise(value)
    )
    if stand_together and value[-1].is_exact:
        return first.origin.word(first.start, value[-1].end, text_of(value))
    word = MixedWord(used, used.span)
    word.pieces = value
    return word


def as_word(value: Sequence[Piece], used: Word) -> Word:
    """A value as one word; `used` gives the place where no piece does."""
    kept = [piece for piece in value if piece.text]
    return joined(kept, Word(text_of(kept), used.span)) if kept else Word("", used.span)


class Field(NamedTuple):
    """A word of a command, variables filled in, and what it was made of."""

    word: Word
    value: Value

    def open_names(self) -> list[str]:
        """Variables in it that nothing defines."""
        return [piece.open for piece in self.value if piece.open]


def plain_field(word: Word, open_name: str = "") -> Field:
    """A word as a field."""
    return Field(word, (Piece(str(word), WordOrigin(word), 0, len(word), open_name),))


class PiecesText:
    """A text made of pieces, to be read as a script (`bash -c`, `eval`)."""

    __slots__ = ("_starts", "pieces", "value")

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = tuple(piece for piece in pieces if piece.text)
        self.value = text_of(self.pieces)
        self._starts: list[int] = []
        begin = 0
        for piece in self.pieces:
            self._starts.append(begin)
            begin += len(piece.text)

    def word(self, start: int, end: int, text: str | None = None) -> Word:
        """value[start:end] as a Word, at the place of the pieces that it lies in."""
        read = self.value[start:end] if text is None else text
        inside = self._inside(start, max(start, end))
        if not inside:
            return Word(read)
        first, last = inside[0], inside[-1]
        together = all(piece.is_exact and piece.origin is first.origin for piece in inside)
        if together and first.start <= last.end:
            return first.origin.word(first.start, last.end, read)
        at = first.word()
        return at if at == read else Word(read, at.span)

    def _inside(self, start: int, end: int) -> list[Piece]:
        index = max(0, bisect_right(self._starts, start) - 1)
        found: list[Piece] = []
        while index < len(self.pieces) and (not found or self._starts[index] < end):
            piece, begin = self.pieces[index], self._starts[index]
            found.append(piece.cut(max(start - begin, 0), min(end - begin, len(piece.text))))
            index += 1
        return found


class Budget:
    """What one text may swell to: characters filled in, commands run, engines found."""

    __slots__ = ("characters", "commands", "launches")

    def __init__(self, length: int) -> None:
        self.characters = (1 << 20) + length // 2
        self.commands = 100_000
        self.launches = 10_000

    @property
    def is_spent(self) -> bool:
        """Whether nothing more is filled in."""
        return self.characters <= 0

    def take(self, characters: int) -> bool:
        """Whether so many more characters may be filled in."""
        self.characters -= characters
        return self.characters >= 0


def open_name(text: str) -> str:
    """The variable that a text still asks for; empty when it asks for none."""
    if "$" not in text and "{{" not in text:
        return ""
    match = _OPEN_NAME.search(text[:1000])
    return (match[1] or match[2] or match[3]) if match else ""


class Names:
    """Variables of a container; one may use others as $(NAME), which Kubernetes fills in."""

    def __init__(self, environment: Mapping[str, Word]) -> None:
        self.environment = environment
        self._filled: dict[str, Value] = {}
        self._all: dict[str, Word] | None = None

    def get(self, name: str, depth: int = 0) -> Value | None:
        """The value of a variable, others filled in; None where it is not set."""
        known = self._filled.get(name)
        if known is None:
            word = self.environment.get(name)
            if word is None:
                return None
            known = self._filled[name] = self.fill(_placed(word), depth)
        return known

    def fill(self, word: Word, depth: int = 0) -> Value:
        """A word with $(NAME) filled in."""
        origin = WordOrigin(word)
        text = str(word)
        if "$(" not in text or depth >= MOST_DEPTH:
            return (Piece(text, origin, 0, len(text), open_name(text)),)
        found: list[Piece] = []
        position = length = 0
        for match in _KUBERNETES.finditer(text):
            if length > _MOST_FILLED:
                break
            start, end = match.span()
            if start > position:
                part = text[position:start]
                found.append(Piece(part, origin, position, start, open_name(part)))
            value = self.get(match[1], depth + 1)
            if value is None or len(found) > 200:
                found.append(Piece(match[0], origin, start, end, match[1]))
            else:
                found += value
            length = sum(len(piece.text) for piece in found)
            position = end
        if position < len(text) or not found:
            part = text[position:]
            found.append(Piece(part, origin, position, len(text), open_name(part)))
        return tuple(found)

    def all(self) -> dict[str, Word]:
        """Every variable, filled in; a dictionary of the caller's own."""
        if self._all is None:
            self._all = {}
            for name, word in self.environment.items():
                self._all[name] = as_word(self.get(name) or (), _placed(word))
        return dict(self._all)


def _placed(word: str) -> Word:
    return word if isinstance(word, Word) else Word(str(word))


def argument(word: Word, text: SourceText | None, names: Names, budget: Budget) -> Field:
    """A word of an argument list, with $(NAME) filled in."""
    if text is not None and text.value == word:
        return Field(word, (Piece(text.value, text, 0, len(text.value)),))
    value = names.fill(word)
    if not budget.take(sum(len(piece.text) for piece in value)):
        return plain_field(word, open_name(word))
    return Field(as_word(value, word), value)


def split_at_blanks(piece: Piece) -> list[tuple[Piece | None, bool]]:
    """A piece without quotes at its blanks: (piece or None, whether a new word begins there)."""
    if piece.open or not has_blank(piece.text):
        return [(piece, False)]
    found: list[tuple[Piece | None, bool]] = []
    position, starts = 0, False
    for match in _BLANKS.finditer(piece.text):
        if match.start() > position:
            found.append((piece.cut(position, match.start()), starts))
        position, starts = match.end(), True
        if len(found) > MOST_FIELDS:
            break
    if position < len(piece.text):
        found.append((piece.cut(position, len(piece.text)), starts))
    else:
        found.append((None, True))
    return found


def has_blank(text: str) -> bool:
    """Whether an unquoted value of this text is several words."""
    return any(char in text for char in " \t\n")


def compared(value: Variable) -> Any:
    """What of a variable two branches are compared by."""
    if isinstance(value, list):
        return tuple(text_of(item) for item in value)
    return text_of(value) if isinstance(value, tuple) else value
