"""Patterns of paths as .gitignore has them, of strangers: no pattern can make matching slow.

A path is matched segment by segment, and a segment by a regular expression whose groups never go
back, so that time grows with the length of the path and not with the number of stars in it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Real files have hundreds of lines.
_MOST_PATTERNS = 20_000
_LONGEST_PATTERN = 1_000
_ANY_DEPTH = "**"


class PathPattern(NamedTuple):
    """One line of an ignore file.

    segments  its parts between slashes; `**` stands for any number of folders
    negated   a `!` line: takes back what earlier lines say
    folder    ends in a slash: matches folders only
    """

    segments: tuple[str, ...]
    negated: bool
    folder: bool

    def matches(self, parts: Sequence[str], *, is_folder: bool) -> bool:
        """Whether it matches the path with these parts, relative to the pattern's folder."""
        return (is_folder or not self.folder) and _match_parts(self.segments, parts)


def parse_pattern(line: str) -> PathPattern | None:
    """A line of an ignore file as a pattern; None for blank lines and comments."""
    text = line.rstrip("\r\n")
    if text.startswith("#") or len(text) > _LONGEST_PATTERN:
        return None
    stripped = text.rstrip(" ")
    if stripped.endswith("\\") and len(stripped) < len(text):
        stripped += " "  # "\ " at the end: the blank belongs to the name
    text = stripped
    negated = text.startswith("!")
    if negated:
        text = text[1:]
    folder = text.endswith("/")
    text = text[:-1] if folder else text
    if not text.strip("/"):
        return None
    anchored = "/" in text
    segments = [
        _ANY_DEPTH if len(part) > 1 and not part.strip("*") else part
        for part in text.removeprefix("/").split("/")
        if part
    ]
    if not anchored:
        segments.insert(0, _ANY_DEPTH)
    elif segments[-1] == _ANY_DEPTH:
        segments.append("*")  # `a/**` is what is in a, not a itself
    return PathPattern(tuple(segments), negated, folder)


def parse_patterns(lines: Iterable[str]) -> list[PathPattern]:
    """All patterns of an ignore file, in their order."""
    found: list[PathPattern] = []
    for line in lines:
        pattern = parse_pattern(line)
        if pattern is not None:
            found.append(pattern)
            if len(found) >= _MOST_PATTERNS:
                break
    return found


def decide(
    patterns: Sequence[PathPattern], parts: Sequence[str], *, is_folder: bool
) -> bool | None:
    """True: ignored, False: taken back by a `!` line, None: no pattern says anything."""
    for pattern in reversed(patterns):
        if pattern.matches(parts, is_folder=is_folder):
            return not pattern.negated
    return None


def path_matches(glob: str, path: str) -> bool:
    """Whether a glob of the configuration matches a path or a folder above it."""
    pattern = parse_pattern(glob)
    if pattern is None:
        return False
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return any(
        pattern.matches(parts[:length], is_folder=length < len(parts))
        for length in range(1, len(parts) + 1)
    )


def _match_parts(segments: Sequence[str], parts: Sequence[str]) -> bool:
    """Segments against parts; only the last `**` is ever gone back to, which is enough."""
    at, position = 0, 0
    star, resume = -1, 0
    while position < len(parts):
        if at < len(segments) and segments[at] == _ANY_DEPTH:
            star, resume = at, position
            at += 1
        elif at < len(segments) and _segment_matches(segments[at], parts[position]):
            at += 1
            position += 1
        elif star >= 0:
            resume += 1
            at, position = star + 1, resume
        else:
            return False
    return all(segment == _ANY_DEPTH for segment in segments[at:])


def _segment_matches(segment: str, part: str) -> bool:
    if not any(char in segment for char in "*?[\\"):
        return segment == part
    return _expression(segment).fullmatch(part) is not None


@lru_cache(maxsize=4096)
def _expression(segment: str) -> re.Pattern[str]:
    """One segment as an expression; what stands between two stars is found once and kept."""
    pieces: list[str] = [""]
    index = 0
    while index < len(segment):
        char = segment[index]
        index += 1
        if char == "*":
            if len(pieces) == 1 or pieces[-1]:
                pieces.append("")
        elif char == "?":
            pieces[-1] += "."
        elif char == "\\" and index < len(segment):
            pieces[-1] += re.escape(segment[index])
            index += 1
        elif char == "[":
            made, index = _character_class(segment, index)
            pieces[-1] += made
        else:
            pieces[-1] += re.escape(char)
    first, *rest = pieces
    if not rest:
        return re.compile(first, re.DOTALL)
    middle = "".join(f"(?>.*?{piece})" for piece in rest[:-1])
    return re.compile(f"{first}{middle}.*{rest[-1]}", re.DOTALL)


def _character_class(segment: str, index: int) -> tuple[str, int]:
    """[a-z] and [!a-z] from after the bracket; without an end the bracket is a character."""
    end = segment.find("]", index + 2 if segment[index : index + 1] in ("!", "^") else index + 1)
    if end < 0:
        return r"\[", index
    body = segment[index:end]
    negated = body[:1] in ("!", "^")
    body = body[1:] if negated else body
    made: list[str] = []
    position = 0
    while position < len(body):
        low = body[position]
        if position + 2 < len(body) and body[position + 1] == "-":
            high = body[position + 2]
            position += 3
            if low <= high:
                made.append(f"{re.escape(low)}-{re.escape(high)}")
        else:
            made.append(re.escape(low))
            position += 1
    if not made:  # nothing is in [z-a]
        return ("." if negated else r"(?!)"), end + 1
    return f"[{'^' if negated else ''}{''.join(made)}]", end + 1
