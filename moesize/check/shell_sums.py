"""Whole-number arithmetic of a shell, `$((A * B + 1))`, without running anything."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_TOKEN = re.compile(r"\s*(?:(0|[1-9]\d{0,17})(?!\d)|([A-Za-z_]\w{0,100})|([-+*/%()]))")
_PRIORITY = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2, "%": 2, "minus": 3, "plus": 3}
_MOST = 1 << 62


def evaluate(text: str, number: Callable[[str], int | None]) -> int | None:
    """The value of an expression of + - * / % and brackets; None for any other."""
    values: list[int] = []
    waiting: list[str] = []
    position, wants_value = 0, True
    text = text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            return None
        position = match.end()
        digits, name, sign = match.groups()
        if digits or name:
            value = int(digits) if digits else number(name)
            if value is None or not wants_value:
                return None
            values.append(value)
            wants_value = False
        elif sign == "(":
            if not wants_value:
                return None
            waiting.append(sign)
        elif sign == ")":
            if wants_value or not _reduce(values, waiting, 1) or not waiting:
                return None
            waiting.pop()
        elif wants_value:
            if sign not in "+-":
                return None
            waiting.append("minus" if sign == "-" else "plus")
        else:
            if not _reduce(values, waiting, _PRIORITY[sign]):
                return None
            waiting.append(sign)
            wants_value = True
    if wants_value or not _reduce(values, waiting, 1) or waiting:
        return None
    return values[0] if len(values) == 1 else None


def _reduce(values: list[int], waiting: list[str], least: int) -> bool:
    """Apply the operators that bind as tightly as `least`; False where that cannot be done."""
    while waiting and _PRIORITY[waiting[-1]] >= least:
        sign = waiting.pop()
        if sign in ("minus", "plus"):
            values[-1] = -values[-1] if sign == "minus" else values[-1]
            continue
        if len(values) < 2:
            return False
        right, left = values.pop(), values.pop()
        if sign in "/%" and right == 0:
            return False
        if sign == "+":
            result = left + right
        elif sign == "-":
            result = left - right
        elif sign == "*":
            result = left * right
        else:
            # A shell rounds towards zero.
            quotient = abs(left) // abs(right)
            quotient = quotient if (left < 0) == (right < 0) else -quotient
            result = quotient if sign == "/" else left - right * quotient
        if abs(result) > _MOST:
            return False
        values.append(result)
    return True
