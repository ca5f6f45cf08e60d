"""Patterns of `--override-tensor`, matched in time linear in the name.

llama.cpp searches them with std::regex (ECMAScript). Python's `re` backtracks, and patterns come
from strangers; here a pattern is a set of states that are followed at once. Understood: literals,
`.`, classes, `\\d \\w \\s` and escapes, groups, `|`, `* + ? {m,n}` (lazy ones too), `^` and `$`.
"""

from __future__ import annotations

import string
from functools import lru_cache
from typing import NoReturn

from moesize.core.errors import InvalidDeploymentError

_LONGEST = 4096
_MOST_STATES = 20_000
_MOST_REPEATS = 1000
_CLASSES = {
    "d": frozenset(string.digits),
    "w": frozenset(string.ascii_letters + string.digits + "_"),
    "s": frozenset(string.whitespace),
}
_ALPHABET = frozenset(map(chr, range(32, 127)))
_START, _END = "start", "end"


class Pattern:
    """A compiled pattern. Raises InvalidDeploymentError for one that cannot be read."""

    __slots__ = ("_accept", "_edges", "_empty", "_known", "_start", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._edges, self._empty, self._start, self._accept = _compile(text)
        self._known: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def found_in(self, name: str) -> bool:
        """Whether some part of the name matches."""
        states = self._closure(frozenset((self._start,)), at_start=True, at_end=not name)
        for position, char in enumerate(name):
            if self._accept in states:
                return True
            last = position == len(name) - 1
            states = self._step(states, char, last)
        return self._accept in states

    def _step(self, states: frozenset[int], char: str, last: bool) -> frozenset[int]:
        key = (states, char + "$" if last else char)
        found = self._known.get(key)
        if found is None:
            reached = {
                target
                for state in states
                for allowed, target in self._edges.get(state, ())
                if char in allowed
            }
            reached.add(self._start)  # a match may begin at every character
            found = self._closure(frozenset(reached), at_start=False, at_end=last)
            self._known[key] = found
        return found

    def _closure(self, states: frozenset[int], *, at_start: bool, at_end: bool) -> frozenset[int]:
        seen = set(states)
        stack = list(states)
        while stack:
            for condition, target in self._empty.get(stack.pop(), ()):
                allowed = condition == "" or (at_start if condition == _START else at_end)
                if allowed and target not in seen:
                    seen.add(target)
                    stack.append(target)
        return frozenset(seen)


_Edges = dict[int, list[tuple[frozenset[str], int]]]
_Empty = dict[int, list[tuple[str, int]]]


@lru_cache(maxsize=256)
def _compile(text: str) -> tuple[_Edges, _Empty, int, int]:
    if len(text) > _LONGEST:
        raise InvalidDeploymentError(
            f"a tensor override of {len(text):,} characters", f"at most {_LONGEST:,} are read"
        )
    builder = _Builder(text)
    start, end = builder.alternatives(0)
    if builder.position < len(text):
        builder.fail("a ) without its (")
    return builder.edges, builder.empty, start, end


class _Builder:
    """Reads a pattern from left to right; every part becomes a (first, last) pair of states."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.states = 0
        self.edges: _Edges = {}
        self.empty: _Empty = {}

    def fail(self, why: str) -> NoReturn:
        raise InvalidDeploymentError(
            f"tensor override {self.text[:60]!r}: {why}",
            r"write it like 'blk\.[0-9]\.ffn_.*_exps=CPU'",
        )

    def alternatives(self, depth: int) -> tuple[int, int]:
        if depth > 50:
            self.fail("groups are nested too deeply")
        first, last = self._state(), self._state()
        while True:
            start, end = self._sequence(depth)
            self._link(first, start)
            self._link(end, last)
            if self._peek() != "|":
                return first, last
            self.position += 1

    def _sequence(self, depth: int) -> tuple[int, int]:
        first = last = self._state()
        while self._peek() not in ("", "|", ")"):
            begin = self.position
            start, end = self._atom(depth)
            start, end = self._repeated(begin, start, end, depth)
            self._link(last, start)
            last = end
        return first, last

    def _repeated(self, begin: int, start: int, end: int, depth: int) -> tuple[int, int]:
        char = self._peek()
        if char in ("*", "+", "?"):
            self.position += 1
            low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        elif char == "{":
            low, high = self._bounds()
        else:
            return start, end
        if self._peek() == "?":
            self.position += 1  # lazy: the same set of matches
        if self._peek() in ("*", "+", "{"):
            self.fail("two repetitions in a row")
        after = self.position
        copies = [(start, end)]
        for _ in range(max(low, high or 0, 1) - 1):
            self.position = begin
            copies.append(self._atom(depth))
        self.position = after
        first = last = self._state()
        for index, (one, other) in enumerate(copies):
            self._link(last, one)
            if index >= low:
                self._link(last, other)
            last = other
        if high is None:
            self._link(copies[-1][1], copies[-1][0])
        if high == 0:
            return first, first
        return first, last

    def _bounds(self) -> tuple[int, int | None]:
        close = self.text.find("}", self.position)
        low, comma, high = self.text[self.position + 1 : close].partition(",")
        good = close > 0 and low.isdigit() and (high.isdigit() or not high) and len(low + high) < 9
        if not good:
            self.fail("a { that is no repetition")
        self.position = close + 1
        most = int(high) if high else None if comma else int(low)
        if max(int(low), most or 0) > _MOST_REPEATS or (most is not None and most < int(low)):
            self.fail("a repetition that makes no sense")
        return int(low), most

    def _atom(self, depth: int) -> tuple[int, int]:
        char = self._next()
        match char:
            case "(":
                if self.text.startswith("?:", self.position):
                    self.position += 2
                elif self._peek() == "?":
                    self.fail("look-ahead is not understood")
                pair = self.alternatives(depth + 1)
                if self._peek() != ")":
                    self.fail("a ( without its )")
                self.position += 1
                return pair
            case "[":
                return self._chars(self._class())
            case ".":
                return self._chars(_ALPHABET)
            case "^" | "$":
                first, last = self._state(), self._state()
                self.empty.setdefault(first, []).append((_START if char == "^" else _END, last))
                return first, last
            case "\\":
                return self._chars(self._escape())
            case "*" | "+" | "?" | "{":
                self.fail("a repetition of nothing")
            case _:
                pass
        return self._chars(frozenset(char))

    def _escape(self) -> frozenset[str]:
        char = self._next()
        if char.lower() in _CLASSES:
            found = _CLASSES[char.lower()]
            return found if char.islower() else _ALPHABET - found
        if char.isalnum():
            self.fail(f"\\{char} is not understood")
        return frozenset(char)

    def _class(self) -> frozenset[str]:
        negated = self._peek() == "^"
        self.position += negated
        found: set[str] = set()
        while self._peek() != "]":
            char = self._next()
            chars = self._escape() if char == "\\" else frozenset(char)
            ahead = self.text[self.position + 1 : self.position + 2]
            if self._peek() == "-" and len(chars) == 1 and ahead not in ("]", "", "\\"):
                self.position += 1
                last = self._next()
                low, high = ord(next(iter(chars))), ord(last)
                if high < low or high - low > 256:
                    self.fail("a range that goes backwards")
                chars = frozenset(map(chr, range(low, high + 1)))
            found |= chars
        self.position += 1
        return _ALPHABET - found if negated else frozenset(found)

    def _chars(self, allowed: frozenset[str]) -> tuple[int, int]:
        first, last = self._state(), self._state()
        self.edges.setdefault(first, []).append((allowed, last))
        return first, last

    def _state(self) -> int:
        self.states += 1
        if self.states > _MOST_STATES:
            self.fail("it repeats too much")
        return self.states

    def _link(self, first: int, second: int) -> None:
        self.empty.setdefault(first, []).append(("", second))

    def _peek(self) -> str:
        return self.text[self.position : self.position + 1]

    def _next(self) -> str:
        char = self._peek()
        if not char:
            self.fail("it ends too early")
        self.position += 1
        return char
