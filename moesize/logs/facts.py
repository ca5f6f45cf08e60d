"""What one start of an engine said about itself."""

from __future__ import annotations

import re
from dataclasses import field
from typing import Any, NamedTuple

from moesize.core.records import dataclass
from moesize.core.units import GIB, MIB

# More figures than any start prints: a hostile log must not fill the memory.
_MOST_SEEN = 20_000
_MOST_TEXT = 400


class Seen(NamedTuple):
    """A figure of the log.

    value   bytes, tokens, sequences or blocks
    step    distance of two values that the log prints alike (0.01 GiB, 1 token, ...)
    rank    rank or device that it is about, "" when the log does not say
    """

    name: str
    value: float
    step: float
    rank: str
    line: int


class Failure(NamedTuple):
    """How a start failed: kind is one of the names in `moesize.audit`."""

    kind: str
    message: str
    line: int


@dataclass(slots=True)
class Start:
    """One start of one engine in one container.

    settings    the engine's own names of what it was started with or what it chose
    flags       those that can be given again, as the engine spells them
    checks      facts about the model that the log prints (layers, experts, ...)
    host_experts   layers whose routed experts llama.cpp was told to keep on the host
    """

    engine: str
    source: str
    first_line: int
    last_line: int = 0
    version: str = ""
    model: str = ""
    quantization: str = ""
    gpu: str = ""
    gpu_line: int = 0
    num_devices: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    flags: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)
    host_experts: set[int] = field(default_factory=set)
    seen: list[Seen] = field(default_factory=list)
    failure: Failure | None = None
    ready: bool = False
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, value: float, step: float, rank: str, line: int) -> None:
        """Keep a figure."""
        if len(self.seen) < _MOST_SEEN:
            self.seen.append(Seen(name, value, step, rank[:40], line))

    def size(self, name: str, text: str, unit: str, rank: str, line: int) -> None:
        """Keep a size that is printed with decimals."""
        value, step = size_of(text, unit)
        self.add(name, value, step, rank, line)

    def fail(self, kind: str, message: str, line: int) -> None:
        """Keep the first failure: what follows is its echo."""
        if self.failure is None:
            self.failure = Failure(kind, message[:_MOST_TEXT], line)

    def note(self, text: str) -> None:
        """Say something once."""
        if text not in self.notes and len(self.notes) < 40:
            self.notes.append(text)

    def all(self, name: str) -> list[Seen]:
        """Every figure of that name, in the order of the log."""
        return [item for item in self.seen if item.name == name]

    def last(self, name: str) -> Seen | None:
        """The last figure of that name."""
        return next((item for item in reversed(self.seen) if item.name == name), None)


_UNITS = {"GiB": GIB, "GB": GIB, "MiB": MIB, "MB": MIB, "KiB": 1 << 10, "B": 1}


def size_of(text: str, unit: str) -> tuple[int, float]:
    """(bytes, step) of a printed size. Engines write GB and divide by 2^30."""
    whole, _, fraction = text.partition(".")
    scale = 10 ** len(fraction)
    units = _UNITS[unit]
    digits = int((whole + fraction) or "0")
    return round(digits * units / scale), units / scale


_OPEN, _CLOSE = "([{<", ")]}>"
_BARE = re.compile(r"-?\d{1,18}$")
_REAL = re.compile(r"-?\d{1,18}\.\d{0,18}(?:e-?\d{1,3})?$")


def pairs_of(text: str) -> dict[str, Any]:
    """`a=1, b='x', c=Config(d=2)` or `'a': 1, 'b': 'x'` -> {"a": 1, "b": "x", "c": "Config(d=2)"}.

    Reads up to the end or an unmatched closing bracket; linear, and never evaluates anything.
    """
    out: dict[str, Any] = {}
    for part in _parts(text):
        head, mark, value = _halves(part)
        key = head.strip().strip("'\"")
        if mark and key.isidentifier() and len(key) <= 80:
            out[key] = value_of(value.strip())
    return out


def value_of(text: str) -> Any:
    """A printed Python value: None, booleans, numbers, strings; anything else stays text."""
    if text in ("None", "True", "False"):
        return {"None": None, "True": True, "False": False}[text]
    if _BARE.match(text):
        return int(text)
    if _REAL.match(text):
        return float(text)
    if len(text) >= 2 and text[0] in "'\"" and text[-1] == text[0]:
        return text[1:-1]
    return text


def _parts(text: str) -> list[str]:
    """The text cut at commas outside brackets and quotes."""
    parts, depth, quote, start, position = [], 0, "", 0, 0
    while position < len(text):
        char = text[position]
        if quote:
            if char == "\\":
                position += 1
            elif char == quote:
                quote = ""
        elif char in "'\"":
            # An apostrophe inside a word opens nothing.
            if position == start or not text[position - 1].isalnum():
                quote = char
        elif char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            # `->` and comparison signs are no brackets.
            if char == ">" and depth == 0:
                position += 1
                continue
            depth -= 1
            if depth < 0:
                break
        elif char == "," and not depth:
            parts.append(text[start:position])
            start = position + 1
        position += 1
    parts.append(text[start:position])
    return parts


def _halves(part: str) -> tuple[str, str, str]:
    equals, colon = part.find("="), part.find(":")
    if colon >= 0 and (equals < 0 or colon < equals):
        return part[:colon], ":", part[colon + 1 :]
    return part.partition("=")
