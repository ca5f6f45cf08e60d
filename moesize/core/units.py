"""Byte counts and their text forms, and exact integer rounding.

Inside moesize memory is an int number of bytes. GiB (2^30) exists for people only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

_UNITS = {
    "b": 1,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": TIB,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
# Longer than any number that means something; keeps int() away from hostile strings.
_MAX_DIGITS = 24


def ceil_div(numerator: int, denominator: int) -> int:
    """Smallest integer not below numerator / denominator (denominator > 0)."""
    return -(-numerator // denominator)


def round_up(value: int, multiple: int) -> int:
    """Smallest multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple


def parse_bytes(text: str) -> int:
    """Read a size such as `24GiB`, `24 GB` or `24576MiB` into bytes.

    GB is 10^9 and GiB is 2^30. A bare number is refused, because 24 can mean either.
    Raises InvalidInputError.
    """
    cleaned = text.strip().replace(" ", "").lower()
    number = cleaned.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = cleaned[len(number) :]
    hint = "write it like 24GiB (2^30 bytes), 24GB (10^9 bytes) or 24576MiB"
    if not unit and number:
        raise InvalidInputError(f"size {_short(text)!r} has no unit", hint)
    whole, _, fraction = number.partition(".")
    digits = whole + fraction
    if unit not in _UNITS or not digits.isascii() or not digits.isdigit():
        raise InvalidInputError(f"cannot read the size {_short(text)!r}", hint)
    if len(digits) > _MAX_DIGITS:
        raise InvalidInputError(f"size {_short(text)!r} is out of range", hint)
    # Exact: 1.5GiB is an integer number of bytes, 0.1GB too; what is left over is cut.
    scale: int = 10 ** len(fraction)
    return int(digits) * _UNITS[unit] // scale


def parse_count(text: str) -> int:
    """Read a count such as `8192`, `32k` (32,768), `1m` (1,048,576) or `10_000`.

    `k` and `m` are powers of 1024, as context lengths are spoken of. Raises InvalidInputError.
    """
    cleaned = text.strip().lower().replace("_", "").replace(",", "")
    factor = 1
    if cleaned.endswith(("k", "m")):
        factor = KIB if cleaned.endswith("k") else MIB
        cleaned = cleaned[:-1]
    whole, _, fraction = cleaned.partition(".")
    digits = whole + fraction
    good = digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS and bool(whole)
    if not good or (fraction and factor == 1):
        raise InvalidInputError(
            f"cannot read the number {_short(text)!r}", "write it like 32768 or 32k (= 32768)"
        )
    scale: int = 10 ** len(fraction)
    return int(digits) * factor // scale


def format_gib(size_bytes: int, decimals: int = 2) -> str:
    """`12.34 GiB`; for people only."""
    return f"{size_bytes / GIB:,.{decimals}f} GiB"


def format_bytes(size_bytes: int) -> str:
    """Shortest readable binary form: `512 B`, `12.00 KiB`, `3.50 GiB`."""
    magnitude = abs(size_bytes)
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if magnitude >= unit:
            return f"{size_bytes / unit:,.2f} {name}"
    return f"{size_bytes} B"


def format_count(count: int | float) -> str:
    """`46.70 B`, `12.9 M` or the number itself: counts of parameters and operations."""
    for unit, name in ((10**15, "P"), (10**12, "T"), (10**9, "B"), (10**6, "M")):
        if abs(count) >= unit:
            return f"{count / unit:,.2f} {name}"
    return f"{count:,}"


def largest_that(fits: Callable[[int], bool], most: int) -> int:
    """The largest whole number up to `most` that fits, if all smaller ones do; 0 if none."""
    if fits(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
