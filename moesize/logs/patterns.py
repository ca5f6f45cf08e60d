"""A table of patterns: an anchor that must stand in the text, an expression, and what to do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from moesize.logs.clean import Line
    from moesize.logs.facts import Start

    Taker = Callable[[Start, re.Match[str], Line], None]

NUMBER = r"(-?\d{1,12}(?:\.\d{1,8})?)"
COUNT = r"(\d[\d,]{0,20})"


class Rule(NamedTuple):
    """`begins`: the line can be the first of a new start.

    `anywhere`: the expression may match inside a message, as the text of an exception does.
    """

    anchor: str
    expression: re.Pattern[str]
    take: Taker
    begins: bool
    anywhere: bool


class Table:
    """Rules of one engine, in order; the first that matches takes the line."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.rules: list[Rule] = []

    def on(
        self, anchor: str, pattern: str, *, begins: bool = False, anywhere: bool = False
    ) -> Callable[[Taker], Taker]:
        """Register a function for lines that hold `anchor` and match `pattern`."""

        def register(take: Taker) -> Taker:
            self.rules.append(Rule(anchor, re.compile(pattern), take, begins, anywhere))
            return take

        return register

    def size(self, anchor: str, pattern: str, name: str, unit: str) -> None:
        """A size in `unit`: the first group is the number."""

        def take(start: Start, match: re.Match[str], line: Line) -> None:
            start.size(name, match[1], unit, line.rank, line.number)

        self.on(anchor, pattern)(take)

    def setting(self, anchor: str, pattern: str, name: str) -> None:
        """A setting that is worth showing: the first group is its value."""

        def take(start: Start, match: re.Match[str], line: Line) -> None:
            del line
            start.settings[name] = match[1][:120]

        self.on(anchor, pattern)(take)

    def failure(self, anchor: str, kind: str, pattern: str = "") -> None:
        """The start failed."""

        def take(start: Start, match: re.Match[str], line: Line) -> None:
            del match
            start.fail(kind, line.text, line.number)

        self.on(anchor, pattern or re.escape(anchor), anywhere=True)(take)

    def ready(self, anchor: str) -> None:
        """The server has started."""

        def take(start: Start, match: re.Match[str], line: Line) -> None:
            del match, line
            start.ready = True

        self.on(anchor, re.escape(anchor))(take)

    def match(self, line: Line) -> tuple[Rule, re.Match[str]] | None:
        """The rule that takes a line. A line in the logger's frame must begin as the rule does."""
        for rule in self.rules:
            if rule.anchor in line.text:
                found = (
                    rule.expression.match(line.text)
                    if line.framed and not rule.anywhere
                    else rule.expression.search(line.text)
                )
                if found is not None:
                    return rule, found
        return None


def count_of(text: str) -> int:
    """1,234,567 as a number."""
    return int(text.replace(",", ""))


def gpu_name(text: str) -> str:
    """A device name as the driver writes it, from a file name or a banner."""
    return text.replace("_", " ").strip()[:80]
