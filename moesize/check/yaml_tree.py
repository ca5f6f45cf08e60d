"""YAML of strangers as a tree of nodes that know where they stand.

Nothing is constructed: scalars stay texts, and a node says what it could be read as. Anchors are
followed by reference and merge keys resolved, with a bound on what they may swell to; tags that
would build objects, deep nesting and endless documents are refused with the line. What kubectl
would take with a warning (a key that stands twice) is kept in `YamlStream.duplicates`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from moesize.check.source import SourceText, Span, Word
from moesize.core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES = 4 << 20
MAX_DEPTH = 64
# The longest real manifest of a cluster has some ten thousand nodes.
MAX_NODES = 400_000
MAX_DOCUMENTS = 5_000
_PLAIN_TAGS = ("tag:yaml.org,2002:", "!")
_BUILDS_OBJECTS = re.compile(r"(python|ruby|java|javax|perl|php|net|object|class)[/:.]", re.I)
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9_]{0,30})")
_FLOAT = re.compile(r"[-+]?(?:\d[\d_]{0,30})?\.?\d{1,30}(?:[eE][-+]?\d{1,4})?")


class YamlError(InvalidInputError):
    """A YAML text that is refused; `span` says where."""

    def __init__(self, message: str, span: Span) -> None:
        super().__init__(f"{span.path}:{span.line}: {message}")
        self.problem = message
        self.span = span


class Node:
    """A value of a YAML document. Absent values are nodes too, and false."""

    __slots__ = ("_span",)

    def __init__(self, span: Span | None) -> None:
        self._span = span

    @property
    def span(self) -> Span | None:
        """Where it begins; None for absent nodes."""
        return self._span

    def __bool__(self) -> bool:
        return True

    def get(self, *path: str | int) -> Node:
        """The node at a path of keys and indices; ABSENT where there is none."""
        node: Node = self
        for step in path:
            node = node.child(step)
        return node

    def child(self, step: str | int) -> Node:
        """One step of `get`."""
        del step
        return ABSENT

    def items(self) -> Iterator[tuple[Word, Node]]:
        """Keys and values of a mapping; nothing for other nodes."""
        return iter(())

    def elements(self) -> list[Node]:
        """The elements of a sequence; nothing for other nodes."""
        return []

    @property
    def text(self) -> Word | None:
        """The text of a scalar (null and empty: None)."""
        return None

    @property
    def word(self) -> Word:
        """The text of a scalar, or an empty word."""
        return self.text or Word("", self.span)

    def key(self, name: str) -> Word | None:
        """The key of that name as a word."""
        del name
        return None

    def integer(self) -> int | None:
        """The whole number that a scalar states, quoted or not."""
        return None

    def number(self) -> float | None:
        """The number that a scalar states, quoted or not."""
        return None

    def boolean(self) -> bool | None:
        """What a scalar states as true or false."""
        return None

    def words(self) -> list[Word]:
        """The scalars of a sequence, or the scalar itself as the only one."""
        return [self.text] if self.text is not None else []

    def plain(self) -> Any:
        """Plain data: dict, list, str, int, float, bool, None (YAML 1.2 for plain scalars)."""
        return None

    @property
    def is_mapping(self) -> bool:
        """Whether it is a mapping."""
        return False

    @property
    def is_sequence(self) -> bool:
        """Whether it is a sequence."""
        return False


class _Absent(Node):
    __slots__ = ()

    def __bool__(self) -> bool:
        return False


ABSENT = _Absent(None)


class Scalar(Node):
    """A scalar: `value` is its text, `style` its quotes ("", "'", '"', "|", ">")."""

    __slots__ = ("_text", "end", "source", "start", "style", "value")

    def __init__(self, source: SourceText, start: int, end: int, value: str, style: str) -> None:
        super().__init__(None)
        self.source = source
        self.start, self.end = start, end
        self.value = value
        self.style = style
        self._text: Word | None = None

    @property
    def span(self) -> Span:
        """Where the text stands, inside its quotes."""
        return self.word.span or self.source.span(self.start, self.end)

    @property
    def text(self) -> Word | None:
        """The text; None for null and for nothing."""
        if self.style == "" and self.value in ("", "~", "null", "Null", "NULL"):
            return None
        return self.word

    @property
    def word(self) -> Word:
        """The text as a word, empty for null."""
        if self._text is None:
            null = self.style == "" and self.value in ("~", "null", "Null", "NULL")
            value = "" if null else self.value
            inner = 1 if self.style in ("'", '"') else 0
            start, end = self.start + inner, self.end - inner
            if self.style in ("|", ">"):
                self._text = Word(value, self.source.span(start, end))
            else:
                self._text = self.source.word(start, max(start, end), value)
        return self._text

    def source_text(self) -> SourceText:
        """The text with the place of each of its characters, to be read further."""
        return SourceText(self.source.file, self.value, offsets=self._offsets)

    def _offsets(self) -> list[int]:
        """Walk over the text and its written form side by side.

        Where they differ, the written form has white space that folding or indentation takes
        away, an escape, or a doubled quote.
        """
        raw = self.source.value
        position, end = self.start, self.end
        if self.style in ("'", '"'):
            position, end = position + 1, end - 1
        elif self.style in ("|", ">"):
            newline = raw.find("\n", position, end)
            position = newline + 1 if newline >= 0 else end
        offsets: list[int] = []
        for char in self.value:
            if self.style == '"':
                while raw[position : position + 1] == "\\" and raw[position + 1 : position + 2] in (
                    "\n",
                    "\r",
                ):
                    position += 1
                    while position < end and raw[position].isspace():
                        position += 1
            if char.isspace():
                if position < end and raw[position] == char:
                    offsets.append(position)
                    position += 1
                elif position < end and raw[position] == "\\" and self.style == '"':
                    offsets.append(position)
                    position += 2
                else:
                    offsets.append(min(position, end))
                    while position < end and raw[position].isspace():
                        position += 1
                continue
            while position < end and raw[position] != char and raw[position].isspace():
                position += 1
            offsets.append(min(position, end))
            if position < end and raw[position] == char:
                step = 1
                if self.style == "'" and char == "'" and raw[position + 1 : position + 2] == "'":
                    step = 2
                position += step
            elif position < end and raw[position] == "\\":
                kind = raw[position + 1 : position + 2]
                position += {"x": 4, "u": 6, "U": 10}.get(kind, 2)
            else:
                position += 1
        offsets.append(min(position, end))
        return [self.source.offset(index) for index in offsets]

    def integer(self) -> int | None:
        text = self.value.strip()
        if len(text) <= 30 and _INTEGER.fullmatch(text):
            return int(text.replace("_", ""))
        number = self.number()
        return int(number) if number is not None and number.is_integer() else None

    def number(self) -> float | None:
        text = self.value.strip()
        if len(text) <= 60 and _FLOAT.fullmatch(text):
            found = float(text.replace("_", ""))
            return found if abs(found) < 1e18 else None
        return None

    def boolean(self) -> bool | None:
        lowered = self.value.strip().lower()
        if lowered in ("true", "yes", "on"):
            return True
        return False if lowered in ("false", "no", "off") else None

    def plain(self) -> Any:
        if self.style:
            return self.value
        if self.text is None:
            return None
        if self.value in ("true", "True", "TRUE"):
            return True
        if self.value in ("false", "False", "FALSE"):
            return False
        whole = _INTEGER.fullmatch(self.value)
        if whole is not None and "_" not in self.value:
            return int(self.value)
        found = self.number()
        return self.value if found is None or "_" in self.value else found


class Mapping(Node):
    """A mapping: `entries` by key, and the keys as words."""

    __slots__ = ("entries", "keys")

    def __init__(self, span: Span | None) -> None:
        super().__init__(span)
        self.entries: dict[str, Node] = {}
        self.keys: dict[str, Word] = {}

    def child(self, step: str | int) -> Node:
        return self.entries.get(step, ABSENT) if isinstance(step, str) else ABSENT

    def items(self) -> Iterator[tuple[Word, Node]]:
        return ((self.keys[name], node) for name, node in self.entries.items())

    def key(self, name: str) -> Word | None:
        return self.keys.get(name)

    def plain(self) -> Any:
        return {name: node.plain() for name, node in self.entries.items()}

    @property
    def is_mapping(self) -> bool:
        return True


class Sequence(Node):
    """A sequence."""

    __slots__ = ("children",)

    def __init__(self, span: Span | None) -> None:
        super().__init__(span)
        self.children: list[Node] = []

    def child(self, step: str | int) -> Node:
        if isinstance(step, int) and -len(self.children) <= step < len(self.children):
            return self.children[step]
        return ABSENT

    def elements(self) -> list[Node]:
        return self.children

    def words(self) -> list[Word]:
        return [node.word for node in self.children if isinstance(node, Scalar)]

    def plain(self) -> Any:
        return [node.plain() for node in self.children]

    @property
    def is_sequence(self) -> bool:
        return True


class YamlStream:
    """The documents of a text, with the keys that stand twice in one mapping."""

    __slots__ = ("documents", "duplicates")

    def __init__(self) -> None:
        self.documents: list[Node] = []
        self.duplicates: list[Word] = []


def parse_stream(source: SourceText) -> YamlStream:
    """The documents of a YAML (or JSON) text. Raises YamlError with the line."""
    import yaml

    if len(source.value) > MAX_BYTES:
        raise YamlError(f"larger than {MAX_BYTES >> 20} MiB", source.span(0, 0))
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    builder = _Builder(source)
    try:
        builder.read(yaml.parse(source.value, Loader=loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        index = min(mark.index, len(source.value)) if mark is not None else 0
        problem = getattr(error, "problem", None) or getattr(error, "reason", "") or "unreadable"
        raise YamlError(f"not valid YAML ({problem})", source.span(index, index)) from error
    except (RecursionError, ValueError) as error:
        raise YamlError("not valid YAML (unreadable)", source.span(0, 0)) from error
    return builder.stream


def _start_of_text(raw: str, start: int, end: int, style: str, value: str) -> int:
    """Where a scalar begins after its tag and anchor."""
    if style:
        found = raw.find(style, start, end)
        return found if found >= 0 else start
    return max(start, end - len(value))


class _Builder:
    """Events to nodes, without recursion: nesting is a stranger's choice."""

    def __init__(self, source: SourceText) -> None:
        self.source = source
        self.stream = YamlStream()
        self.anchors: dict[str, tuple[Node, int]] = {}
        self.num_nodes = 0
        # Keys that an open mapping has from `<<`; its own win over them.
        self.merged: dict[int, set[str]] = {}

    def fail(self, event: Any, message: str) -> YamlError:
        return YamlError(
            message, self.source.span(event.start_mark.index, event.start_mark.index + 1)
        )

    def read(self, events: Iterator[Any]) -> None:
        # Each open collection: (node, key waiting for its value, nodes before it, anchor).
        stack: list[list[Any]] = []
        for event in events:
            kind = type(event).__name__
            if kind in ("StreamStartEvent", "StreamEndEvent", "DocumentEndEvent"):
                continue
            if kind == "DocumentStartEvent":
                self.anchors.clear()
                if len(self.stream.documents) >= MAX_DOCUMENTS:
                    raise self.fail(event, f"more than {MAX_DOCUMENTS:,} documents in one file")
                continue
            if kind in ("MappingEndEvent", "SequenceEndEvent"):
                node, _, before, anchor = stack.pop()
                self.merged.pop(id(node), None)
                if anchor:
                    self.anchors[anchor] = (node, self.num_nodes - before)
                self.put(stack, node)
                continue
            self.num_nodes += 1
            if self.num_nodes > MAX_NODES:
                raise self.fail(event, f"more than {MAX_NODES:,} values, anchors followed")
            if kind == "AliasEvent":
                found = self.anchors.get(event.anchor)
                if found is None:
                    raise self.fail(event, f"the anchor {event.anchor[:40]!r} is not defined")
                self.num_nodes += found[1]
                self.put(stack, found[0])
                continue
            tag = event.tag
            if tag and (not tag.startswith(_PLAIN_TAGS) or _BUILDS_OBJECTS.search(tag)):
                raise self.fail(event, f"the tag {tag[:60]!r} would build an object")
            start = event.start_mark.index
            if kind == "ScalarEvent":
                style, end = event.style or "", event.end_mark.index
                if tag or event.anchor:  # which stand before the text
                    start = _start_of_text(self.source.value, start, end, style, event.value)
                scalar = Scalar(self.source, start, end, event.value, style)
                if event.anchor:
                    self.anchors[event.anchor] = (scalar, 1)
                self.put(stack, scalar)
                continue
            if len(stack) >= MAX_DEPTH:
                raise self.fail(event, "nested too deeply to be a real file")
            span = self.source.span(start, start + 1)
            opened: Node = Mapping(span) if kind == "MappingStartEvent" else Sequence(span)
            stack.append([opened, None, self.num_nodes, event.anchor])

    def put(self, stack: list[list[Any]], node: Node) -> None:
        if not stack:
            self.stream.documents.append(node)
            return
        top = stack[-1]
        parent = top[0]
        if isinstance(parent, Sequence):
            parent.children.append(node)
            return
        if top[1] is None:
            # A key that is no scalar ({{ TEMPLATE }} without quotes) is called as it is written.
            top[1] = node.word if isinstance(node, Scalar) else Word("{...}", node.span)
            return
        key: Word = top[1]
        top[1] = None
        if key == "<<" and self.merge(parent, node):
            return
        merged = self.merged.get(id(parent), set())
        if key in parent.entries and key not in merged:
            self.stream.duplicates.append(key)
        merged.discard(key)
        parent.entries[str(key)] = node
        parent.keys[str(key)] = key

    def merge(self, parent: Mapping, node: Node) -> bool:
        """Entries of `<<: *anchor`, which the mapping's own keys win over."""
        sources = node.elements() if node.is_sequence else [node]
        if not all(isinstance(source, Mapping) for source in sources):
            return False
        for source in sources:
            assert isinstance(source, Mapping)
            for name, value in source.entries.items():
                if name not in parent.entries:
                    parent.entries[name] = value
                    parent.keys[name] = source.keys[name]
                    self.merged.setdefault(id(parent), set()).add(name)
        return True
