"""What the Dockerfile of a compose service says: its image, ENTRYPOINT, CMD and ENV.

Only the last stage counts, and those that it is made from. RUN lines are not looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from moesize.check.readers.compose_words import Filled, Filler, places_of, split_command
from moesize.check.source import SourceText, Word
from moesize.check.yaml_tree import YamlError, parse_stream

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MOST_INSTRUCTIONS = 2_000


class Build(NamedTuple):
    """What the Dockerfile of a service that is built here says."""

    image: Word | None
    entry: tuple[list[Word], dict[Word, SourceText]] | None
    command: tuple[list[Word], dict[Word, SourceText]] | None
    environment: dict[str, Word]


def read_dockerfile(source: SourceText, arguments: Mapping[str, Word]) -> Build:
    """The last stage of a Dockerfile: image, ENTRYPOINT, CMD and ENV."""
    known: dict[str, Word] = {}
    stages: dict[str, Build] = {}
    stage = ""
    filler = Filler(known.get)
    build = Build(None, None, None, {})
    for start, end in _instructions(source.value):
        text = source.value[start:end]
        keyword = text.split(None, 1)[0].upper() if text.strip() else ""
        at = start + len(keyword)
        at += len(source.value[at:end]) - len(source.value[at:end].lstrip())
        filled = filler.text(_part(source, at, end))
        words = [word for word, _ in split_command(filled)]
        if keyword == "ARG" and words:
            name, equals, value = words[0].partition("=")
            if name in arguments:
                known[name] = arguments[name]
            elif equals:
                known[name] = words[0].becomes(value)
        elif keyword == "FROM" and words:
            images = [word for word in words if not word.startswith("--")]
            if not images:
                continue
            stages[stage] = build
            build = stages.get(str(images[0]).lower(), Build(images[0], None, None, {}))
            named = len(images) == 3 and images[1].lower() == "as"
            stage = images[2].lower() if named else f"#{len(stages)}"
        elif keyword in ("ENTRYPOINT", "CMD"):
            read = _exec_form(filled)
            build = (
                build._replace(entry=read, command=None)
                if keyword == "ENTRYPOINT"
                else build._replace(command=read)
            )
        elif keyword == "ENV":
            found = {
                name: word.cut(len(name) + 1)
                for word in words
                if (name := word.partition("=")[0]) != word
            }
            if not found and len(words) > 1:
                found = {str(words[0]): words[1]}
            known.update(found)
            build = build._replace(environment={**build.environment, **found})
    return build


def _part(source: SourceText, start: int, end: int) -> SourceText:
    return SourceText(source.file, source.value[start:end], offsets=places_of(source, start, end))


def _instructions(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of the instructions of a Dockerfile, continued lines joined."""
    position, count = 0, 0
    while position < len(text) and count < _MOST_INSTRUCTIONS:
        count += 1
        end = position
        while True:
            newline = text.find("\n", end)
            if newline < 0:
                end = len(text)
                break
            line = text[end:newline].rstrip()
            end = newline + 1
            if not line.endswith("\\"):
                end = newline
                break
        start = position + len(text[position:end]) - len(text[position:end].lstrip())
        if start < end and text[start] != "#":
            yield start, end
        position = end + 1


def _exec_form(filled: Filled) -> tuple[list[Word], dict[Word, SourceText]]:
    """`["vllm", "serve"]`, or the shell text that `CMD vllm serve` stands for."""
    if filled.text.value.lstrip().startswith("["):
        text = filled.text
        # Continued lines as one, every character at its place.
        joined = SourceText(
            text.file,
            text.value.replace("\\\n", "  "),
            offsets=lambda: [text.offset(index) for index in range(len(text.value) + 1)],
        )
        try:
            nodes = parse_stream(joined).documents
        except YamlError:
            nodes = []
        if nodes:
            return nodes[0].words(), {}
    shell = filled.text.word(0, len(filled.text.value))
    return [Word("/bin/sh"), Word("-c"), shell], {shell: filled.text}
