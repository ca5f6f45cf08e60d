"""Where things stand in a file: words that remember their place, texts inside texts.

A deployment file is a text in which other texts are quoted: a YAML string holds a shell script,
which holds JSON. `SourceText` is such a text together with where each of its characters stands in
the file; `Word` is a piece of it: a `str` that knows its `Span`. Findings point at spans, edits
replace them.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Span(NamedTuple):
    """A piece of a file: lines and columns from 1, in characters; the end is exclusive."""

    path: str
    line: int
    column: int
    end_line: int
    end_column: int


class SourceFile:
    """A file as read: its path as shown to users, its text, and the starts of its lines."""

    __slots__ = ("_starts", "path", "text")

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text
        self._starts: list[int] | None = None

    @property
    def starts(self) -> list[int]:
        """Offset of the first character of each line."""
        if self._starts is None:
            starts = [0]
            find = self.text.find
            position = find("\n")
            while position >= 0:
                starts.append(position + 1)
                position = find("\n", position + 1)
            self._starts = starts
        return self._starts

    def place(self, offset: int) -> tuple[int, int]:
        """(line, column) of an offset, both from 1."""
        line = bisect_right(self.starts, offset)
        return line, offset - self.starts[line - 1] + 1

    def span(self, start: int, end: int) -> Span:
        """The span of text[start:end]."""
        return Span(self.path, *self.place(start), *self.place(max(start, end)))

    def line(self, number: int) -> str:
        """A line without its end; empty for a line that does not exist."""
        starts = self.starts
        if not 1 <= number <= len(starts):
            return ""
        end = starts[number] if number < len(starts) else len(self.text)
        return self.text[starts[number - 1] : end].rstrip("\r\n")

    @property
    def num_lines(self) -> int:
        """How many lines there are."""
        return len(self.starts)


class Word(str):
    """A piece of text that knows where it stands.

    span    where; None for what no file says (a default, a value computed)
    exact   the file holds just these characters there, so that they can be replaced
    """

    __slots__ = ("exact", "span")
    span: Span | None
    exact: bool

    def __new__(cls, text: str, span: Span | None = None, *, exact: bool = False) -> Word:
        """A word of this text at this place."""
        word = super().__new__(cls, text)
        word.span = span
        word.exact = exact and span is not None
        return word

    def cut(self, start: int, end: int | None = None) -> Word:
        """The characters from `start` to `end` as a word of their own."""
        end = len(self) if end is None else end
        text = self[start:end]
        span = self.span
        if span is None or not self.exact or span.line != span.end_line:
            return Word(text, span)
        return Word(
            text,
            span._replace(column=span.column + start, end_column=span.column + end),
            exact=True,
        )

    def becomes(self, text: str) -> Word:
        """Another text for the same place: a variable's value, a path without its scheme."""
        return self if text == self else Word(text, self.span)


class SourceText:
    """A text and where its characters stand in a file.

    `offsets` gives, when asked for the first time, the file offset of every character and of the
    end; without it the text is the file from offset `start` on.
    """

    __slots__ = ("_make", "_offsets", "file", "start", "value")

    def __init__(
        self,
        file: SourceFile,
        value: str,
        *,
        start: int = 0,
        offsets: Callable[[], Sequence[int]] | None = None,
    ) -> None:
        self.file = file
        self.value = value
        self.start = start
        self._make = offsets
        self._offsets: Sequence[int] | None = None

    @classmethod
    def of_file(cls, file: SourceFile) -> SourceText:
        """The whole text of a file."""
        return cls(file, file.text)

    @classmethod
    def of_word(cls, word: Word, file: SourceFile | None = None) -> SourceText:
        """A word as a text: exact ones keep the place of each character, others that of the word.

        `file` is the one it stands in; without it, places inside the word are those of the word.
        """
        span = word.span
        if span is None or file is None:
            return cls(file or SourceFile(span.path if span else "", ""), str(word))
        start = file.starts[min(span.line, file.num_lines) - 1] + span.column - 1
        if word.exact:
            return cls(file, str(word), start=start)
        return cls(file, str(word), offsets=lambda: [start] * (len(word) + 1))

    def offset(self, index: int) -> int:
        """File offset of a character of the text."""
        if self._make is not None:
            if self._offsets is None:
                self._offsets = self._make()
            offsets = self._offsets
            return offsets[min(max(index, 0), len(offsets) - 1)]
        return self.start + index

    def span(self, start: int, end: int) -> Span:
        """The span of value[start:end] in the file."""
        first = self.offset(start)
        last = self.offset(end - 1) + 1 if end > start else first
        return self.file.span(first, max(first, last))

    def word(self, start: int, end: int, text: str | None = None) -> Word:
        """value[start:end] as a Word; `text` where quotes or escapes make it read otherwise."""
        first = self.offset(start)
        last = self.offset(end - 1) + 1 if end > start else first
        read = self.value[start:end] if text is None else text
        exact = self.file.text[first:last] == read
        return Word(read, self.file.span(first, max(first, last)), exact=exact)
