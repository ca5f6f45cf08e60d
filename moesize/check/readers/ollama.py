"""Ollama Modelfiles: the model of FROM, and the parameters that change what it takes.

Parameters become the flags of llama.cpp that mean the same, which is what Ollama runs on.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from moesize.check.formats import TextFormat
from moesize.check.server import Reading, Server
from moesize.check.source import Word

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moesize.check.formats import Context
    from moesize.check.source import SourceText

_LINE = re.compile(r"[ \t]*([A-Za-z]{3,12})[ \t]+(\S[^\n]*)")
_KEYWORDS = frozenset(
    ("FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE", "REQUIRES")
)
# Instructions of a Dockerfile, which begins with FROM too.
_OF_DOCKER = frozenset(
    ("RUN", "CMD", "COPY", "ADD", "ENTRYPOINT", "WORKDIR", "EXPOSE", "ENV", "ARG", "USER", "VOLUME")
)
# Flags of llama-server of the same meaning (ollama docs/modelfile.md and api/types.go).
_FLAGS = {
    "num_ctx": "--ctx-size",
    "num_gpu": "--n-gpu-layers",
    "num_batch": "--batch-size",
    "main_gpu": "--main-gpu",
}
_MOST_LINES = 20_000


def _instructions(source: SourceText) -> Iterator[tuple[str, int, int]]:
    """(keyword, start, end of what follows) of each line; texts in triple quotes passed over."""
    text, position = source.value, 0
    for _ in range(_MOST_LINES):
        if position >= len(text):
            return
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        match = _LINE.match(text, position, end)
        if match is not None:
            start, stop = match.span(2)
            if text.startswith('"""', start):
                close = text.find('"""', start + 3)
                stop = len(text) if close < 0 else close + 3
                end = text.find("\n", stop)
                end = len(text) if end < 0 else end
            yield match[1].upper(), start, stop
        position = end + 1


def _matches(path: str, text: str) -> bool:
    name = path.rpartition("/")[2]
    is_named = name.startswith("modelfile") or name.endswith(".modelfile")
    seen: set[str] = set()
    from_lines = 0
    for line in text[: 1 << 16].split("\n")[:2000]:
        match = _LINE.match(line)
        if match is None:
            continue
        keyword = match[1].upper()
        if keyword in _OF_DOCKER:
            return False
        if not seen and keyword not in _KEYWORDS:
            return False
        seen.add(keyword)
        from_lines += keyword == "FROM"
        if '"""' in line:
            break  # free text follows
    return from_lines == 1 and (is_named or len(seen & _KEYWORDS) > 1)


def _read(source: SourceText, context: Context) -> Reading:
    model: Word | None = None
    words: list[Word] = []
    notes: list[str] = []
    for keyword, start, end in _instructions(source):
        value = _unquoted(source, start, end)
        if keyword == "FROM":
            model = value
        elif keyword == "PARAMETER":
            name = value.split(None, 1)[0] if value.split() else ""
            flag = _FLAGS.get(name.lower())
            if flag is None:
                continue
            rest = len(value) - len(value[len(name) :].lstrip())
            number = value.cut(rest)
            if len(number) > 1 and number[0] == number[-1] == '"':
                number = number.cut(1, len(number) - 1)
            words += [Word(flag, value.cut(0, len(name)).span), number]
        elif keyword == "ADAPTER":
            notes.append(f"the adapter {str(value)[:80]!r} is not counted")
    if model is None:
        return Reading(kind="ollama_modelfile", skipped="has no FROM")
    server = Server(
        name=context.path.rpartition("/")[2],
        place=model,
        engine="ollama",
        model=model,
        words=tuple(words),
        notes=tuple(notes),
    )
    return Reading(kind="ollama_modelfile", servers=[server])


def _unquoted(source: SourceText, start: int, end: int) -> Word:
    """A value without the quotes and blanks around it."""
    text = source.value
    while end > start and text[end - 1].isspace():
        end -= 1
    if end - start >= 2 and text[start] == text[end - 1] == '"':
        start, end = start + 1, end - 1
    return source.word(start, end)


TEXT_FORMATS = [TextFormat("ollama_modelfile", _matches, _read)]
