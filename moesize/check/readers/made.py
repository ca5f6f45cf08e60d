"""Nodes that no file holds as such: what a chart makes of its values, for the readers of pods.

A word of a made node keeps the place of the value that it stands for, so that findings point into
the values file and fixes change it there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.check.source import SourceFile, SourceText, Span, Word
from moesize.check.yaml_tree import Mapping, Node, Scalar, Sequence

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Mapping as MappingType


class _PlacedText(SourceText):
    """A text whose pieces all stand where the whole does."""

    __slots__ = ("whole",)

    def __init__(self, whole: Word) -> None:
        path = whole.span.path if whole.span is not None else ""
        super().__init__(SourceFile(path, str(whole)), str(whole))
        self.whole = whole

    def span(self, start: int, end: int) -> Span:
        """The span of the whole."""
        return self.whole.span or super().span(start, end)

    def word(self, start: int, end: int, text: str | None = None) -> Word:
        """A piece, at the place of the whole unless the file holds just these characters."""
        if text is None:
            return self.whole.cut(start, end)
        return Word(text, self.whole.span)


class MadeScalar(Scalar):
    """A scalar of a text that is not in the file as it stands."""

    __slots__ = ()

    def __init__(self, word: Word) -> None:
        super().__init__(_PlacedText(word), 0, len(word), str(word), "'")
        self._text = word

    def source_text(self) -> SourceText:
        """The text, every piece at the place of the whole."""
        return self.source


def made_scalar(text: str, at: Word | None = None) -> Scalar:
    """A scalar; `at` is the word whose place it has, unless the text is a word itself."""
    if isinstance(text, Word) and at is None:
        return MadeScalar(text)
    return MadeScalar(Word(text, at.span if at is not None else None))


def made_mapping(
    entries: MappingType[str, Node | None],
    *,
    keys: MappingType[str, Word] | None = None,
    at: Word | None = None,
) -> Mapping:
    """A mapping of nodes; entries that are None or absent are left out."""
    span: Span | None = at.span if at is not None else None
    made = Mapping(span)
    for name, node in entries.items():
        if node is None or not node:
            continue
        made.entries[name] = node
        known = (keys or {}).get(name)
        made.keys[name] = known if known is not None else Word(name, span)
    return made


def made_sequence(nodes: Iterable[Node]) -> Sequence:
    """A sequence of nodes."""
    made = Sequence(None)
    made.children = [node for node in nodes if node]
    return made


def merged(first: Node, second: Node) -> Node:
    """Two mappings as one; entries of the first win. Others: the first that is there."""
    if not (first.is_mapping and second.is_mapping):
        return first or second
    made = Mapping(first.span)
    for node in (second, first):
        for key, value in node.items():
            made.entries[str(key)] = value
            made.keys[str(key)] = key
    return made
