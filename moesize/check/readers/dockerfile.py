"""Dockerfiles: what an image starts, by ENTRYPOINT, CMD, ENV, ARG and the image it is built from.

RUN lines are not looked at: what they start has ended when the image is done.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

from moesize.check.installed import installed_version
from moesize.check.readers.launched import given_variables, names_engine, servers_of, title_of
from moesize.check.server import Reading
from moesize.check.shell import launches_in, launches_of, words_in
from moesize.check.shell_values import Piece, PiecesText

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from moesize.check.formats import Context
    from moesize.check.shell import Launch
    from moesize.check.source import SourceText, Word

_NAMES = ("dockerfile", "containerfile")
_KEYWORDS = frozenset(
    (
        "FROM", "RUN", "CMD", "LABEL", "MAINTAINER", "EXPOSE", "ENV", "ADD", "COPY", "ENTRYPOINT",
        "VOLUME", "USER", "WORKDIR", "ARG", "ONBUILD", "STOPSIGNAL", "HEALTHCHECK", "SHELL",
    )
)  # fmt: skip
# Those that an Ollama Modelfile does not have.
_TELLING = _KEYWORDS - {"FROM"}
_INSTRUCTION = re.compile(r"[ \t]*([A-Za-z]{2,20})(?=[ \t]|\\?\r?$)[ \t]*", re.MULTILINE)
_ESCAPE = re.compile(r"#[ \t]*escape[ \t]*=[ \t]*([\\`])[ \t]*\r?$", re.MULTILINE | re.IGNORECASE)
_HERE = re.compile(r"<<-?[\"']?([A-Za-z_]\w{0,60})")
_MOST_INSTRUCTIONS = 2_000
_MOST_STAGES = 200


class Instruction(NamedTuple):
    """A keyword in upper case and what follows it, continued lines joined."""

    keyword: str
    text: PiecesText


class Stage(NamedTuple):
    """What one stage of a Dockerfile makes of an image.

    image       what it is built from, other stages of the file seen through
    entry, command  ENTRYPOINT and CMD
    """

    image: Word
    environment: dict[str, Word]
    entry: Command | None = None
    command: Command | None = None


class Command(NamedTuple):
    """ENTRYPOINT or CMD: the words of the exec form, or the text that a shell runs."""

    words: list[Word]
    text: PiecesText | None


def instructions(source: SourceText) -> Iterator[Instruction]:
    """The instructions of a Dockerfile."""
    text = source.value
    escape = "\\"
    position = count = 0
    while position < len(text) and count < _MOST_INSTRUCTIONS:
        line_end = _line_end(text, position)
        match = _INSTRUCTION.match(text, position, line_end)
        if match is None:
            directive = _ESCAPE.match(text, position, line_end) if not count else None
            escape = directive[1] if directive is not None else escape
            position = line_end + 1
            continue
        count += 1
        pieces, position = _joined_lines(source, match.end(), escape)
        found = Instruction(match[1].upper(), PiecesText(pieces))
        if found.keyword in ("RUN", "COPY", "ADD"):
            for here in list(_HERE.finditer(found.text.value[:2000]))[:20]:
                position = _after_here(text, position, here[1])
        yield found


def _line_end(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end


def _joined_lines(source: SourceText, position: int, escape: str) -> tuple[list[Piece], int]:
    """The rest of an instruction in pieces, and where the next one begins."""
    text, pieces = source.value, []
    is_first = True
    while position < len(text):
        end = _line_end(text, position)
        line = text[position:end]
        # Comments and empty lines between continued lines are not there.
        if not is_first and (not line.strip() or line.lstrip().startswith("#")):
            position = end + 1
            continue
        is_first = False
        stripped = line.rstrip()
        is_continued = stripped.endswith(escape)
        kept = stripped[:-1] if is_continued else stripped
        pieces.append(Piece(kept, source, position, position + len(kept)))
        position = end + 1
        if not is_continued:
            break
    return pieces, position


def _after_here(text: str, position: int, delimiter: str) -> int:
    """Pass over a here-document."""
    while position < len(text):
        end = _line_end(text, position)
        is_end = end - position < 200 and text[position:end].strip() == delimiter
        position = end + 1
        if is_end:
            break
    return position


def last_stage(source: SourceText, arguments: Mapping[str, Word]) -> Stage | None:
    """What the image of a Dockerfile is in the end; `arguments` win over ARG lines."""
    before: dict[str, Word] = {}  # of ARG lines before the first FROM
    known: dict[str, Word] = {}
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    current: tuple[str, ...] = ()  # the names of the stage
    for keyword, text in instructions(source):
        if keyword == "FROM":
            words = [word for word in words_in(text, before) if not word.startswith("--")]
            if not words or len(stages) > _MOST_STAGES:
                continue
            base = stages.get(words[0].lower())
            known = dict(base.environment) if base is not None else {}
            stage = base or Stage(words[0], {})
            number = sum(name.isdigit() for name in stages)
            name = words[2].lower() if len(words) > 2 and words[1].lower() == "as" else ""
            stages[str(number)] = stage
            stages[name or str(number)] = stage
            current = (str(number), name or str(number))
        elif keyword == "ARG":
            for word in words_in(text, known if stage is not None else before)[:50]:
                name, equals, _ = word.partition("=")
                value = arguments.get(name) or (
                    word.cut(len(name) + 1) if equals else before.get(name)
                )
                if value is not None:
                    (known if stage is not None else before)[name] = value
        elif stage is not None and keyword in ("ENV", "ENTRYPOINT", "CMD"):
            if keyword == "ENV":
                found = _variables(text, known)
                known = {**known, **found}
                stage = stage._replace(environment={**stage.environment, **found})
            elif keyword == "ENTRYPOINT":
                # An ENTRYPOINT takes the CMD of the image below away.
                stage = stage._replace(entry=_command(text), command=None)
            else:
                stage = stage._replace(command=_command(text))
            for name in current:
                stages[name] = stage
    return stage


def _variables(text: PiecesText, known: Mapping[str, Word]) -> dict[str, Word]:
    """`ENV A=1 B=2`, and the older `ENV A the rest of the line`."""
    words = words_in(text, known)
    if not words:
        return {}
    if "=" not in words[0]:
        start = text.value.find(words[0]) + len(words[0])
        rest = text.value[start:]
        start += len(rest) - len(rest.lstrip())
        end = len(text.value.rstrip())
        return {str(words[0]): text.word(start, max(start, end))}
    found: dict[str, Word] = {}
    for word in words:
        name, equals, _ = word.partition("=")
        if equals and name:
            found[name] = word.cut(len(name) + 1)
    return found


def _command(text: PiecesText) -> Command:
    """The exec form where the text is a JSON list of strings, as Docker decides it."""
    value = text.value
    start = len(value) - len(value.lstrip())
    if value[start : start + 1] != "[" or len(value) > 1 << 17:
        return Command([], text)
    words: list[Word] = []
    position = start + 1
    while True:
        while value[position : position + 1].isspace():
            position += 1
        if value[position : position + 1] == "]" and not words:
            break
        if value[position : position + 1] != '"':
            return Command([], text)
        end = position + 1
        while end < len(value) and value[end] != '"':
            end += 2 if value[end] == "\\" else 1
        try:
            read = json.loads(value[position : end + 1])
        except ValueError:
            return Command([], text)
        words.append(text.word(position + 1, end, read))
        position = end + 1
        while value[position : position + 1].isspace():
            position += 1
        if value[position : position + 1] == "]":
            break
        if value[position : position + 1] != ",":
            return Command([], text)
        position += 1
    return Command(words, None)


def launches_of_stage(stage: Stage, given: Mapping[str, Word]) -> list[Launch]:
    """What a container of an image starts."""
    environment = {**stage.environment, **given}
    entry, command = stage.entry, stage.command
    for one in (entry, command):
        if one is not None and one.text is not None:
            # The shell form; an ENTRYPOINT in it takes no CMD.
            found = launches_in(one.text, environment, fixed=tuple(given))
            if found or one is entry:
                return [launch._replace(image=launch.image or stage.image) for launch in found]
    words = [*(entry.words if entry else ()), *(command.words if command else ())]
    if not words:
        return []
    image = stage.image if entry is None else None
    launches = launches_of(words, environment, image=image, fixed=tuple(given))
    return [launch._replace(image=launch.image or stage.image) for launch in launches]


def matches(path: str, text: str) -> bool:
    """Whether a text is a Dockerfile that names an engine."""
    name = path.rpartition("/")[2]
    is_named = name.startswith(_NAMES) or name.endswith(tuple(f".{each}" for each in _NAMES))
    if "from" not in text[: 1 << 16].lower() or not names_engine(text):
        return False
    keywords: list[str] = []
    position = 0
    # The first instructions tell; a shell script or a Modelfile has others.
    while position < len(text) and len(keywords) < 30:
        end = _line_end(text, position)
        match = _INSTRUCTION.match(text, position, end)
        if match is not None and match[1].upper() in _KEYWORDS:
            keywords.append(match[1].upper())
        elif not keywords and text[position:end].strip() and text[position] != "#":
            return False
        position = end + 1
    if not keywords or keywords[0] not in ("FROM", "ARG") or "FROM" not in keywords:
        return False
    return is_named or bool(_TELLING.intersection(keywords))


def read(source: SourceText, context: Context) -> Reading:
    """The servers that an image starts."""
    given = given_variables(context)
    stage = last_stage(source, given)
    if stage is None:
        return Reading(kind="dockerfile", skipped="has no FROM")
    launches = launches_of_stage(stage, given)
    name = title_of(context.path)
    servers = servers_of(launches, name, "dockerfile", context.path)
    for server in servers:
        server.version = installed_version(source, server.engine)
    skipped = "" if servers else "its ENTRYPOINT and CMD start no model server"
    return Reading(kind="dockerfile", servers=servers, skipped=skipped)
