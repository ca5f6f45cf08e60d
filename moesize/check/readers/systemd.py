"""systemd units (`ExecStart=`) and Podman's units for containers (`[Container]`)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from moesize.check.readers.launched import (
    given_variables,
    names_engine,
    servers_of,
    size_in,
    title_of,
)
from moesize.check.server import Reading, Unresolved
from moesize.check.shell import Container, launches_of, words_in
from moesize.check.shell_values import Piece, PiecesText

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from moesize.check.formats import Context
    from moesize.check.server import Server
    from moesize.check.shell import Launch
    from moesize.check.source import SourceText, Word

_SECTION = re.compile(r"^\[(Service|Container)\][ \t]*\r?$", re.MULTILINE)
_RUNS = re.compile(r"^[ \t]*(ExecStart|Image)[ \t]*=", re.MULTILINE)
# The instance and its name; others (%h) are places that a unit is not called after.
_SPECIFIER = re.compile(r"(?<!%)%[iIjJ]")
_MOST_LINES = 5_000


class _Setting(NamedTuple):
    """`key=value` of a section, continued lines joined."""

    section: str
    key: str
    text: PiecesText

    @property
    def word(self) -> Word:
        """The value as one word."""
        value = self.text.value
        start = len(value) - len(value.lstrip())
        return self.text.word(start, max(start, len(value.rstrip())))


def matches(path: str, text: str) -> bool:
    """Whether a text is a unit that names an engine."""
    del path
    return bool(_SECTION.search(text) and _RUNS.search(text) and names_engine(text))


def _settings(source: SourceText) -> Iterator[_Setting]:
    text, position, section = source.value, 0, ""
    for _ in range(_MOST_LINES):
        if position >= len(text):
            return
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        line = text[position:end].strip()
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif line and line[0] not in "#;" and "=" in line:
            equals = text.index("=", position)
            key = text[position:equals].strip()
            pieces, end = _value(source, equals + 1)
            yield _Setting(section, key, PiecesText(pieces))
        position = end + 1


def _value(source: SourceText, position: int) -> tuple[list[Piece], int]:
    """A value that a backslash at the end of a line goes on, and where it ends."""
    text = source.value
    pieces: list[Piece] = []
    while True:
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        stripped = text[position:end].rstrip()
        is_comment = bool(pieces) and stripped.lstrip()[:1] in ("#", ";")
        is_continued = stripped.endswith("\\")
        # The backslash stands for a blank.
        kept = stripped[:-1] + " " if is_continued else stripped
        if not is_comment:
            pieces.append(Piece(kept, source, position, position + len(kept)))
        if end >= len(text) or not (is_continued or is_comment):
            return pieces, end
        position = end + 1


class _Unit:
    """What a unit says."""

    def __init__(self, source: SourceText, context: Context) -> None:
        self.context = context
        self.given = given_variables(context)
        self.environment: dict[str, Word] = {}
        self.from_files: dict[str, Word] = {}
        self.starts: list[PiecesText] = []
        self.image: Word | None = None
        self.exec: PiecesText | None = None
        self.memory: Word | None = None
        self.said = Container(detached=True)
        self.is_service = False
        for setting in _settings(source):
            if setting.section == "Service":
                self.of_service(setting)
            elif setting.section == "Container":
                self.of_container(setting)

    def of_service(self, setting: _Setting) -> None:
        if setting.key == "ExecStart":
            # An empty one takes those before it back.
            self.starts = [*self.starts, setting.text] if setting.word else []
        elif setting.key in ("MemoryMax", "MemoryLimit"):
            self.memory = setting.word
        else:
            self.of_both(setting)

    def of_container(self, setting: _Setting) -> None:
        if setting.key == "Image":
            self.image = setting.word
        elif setting.key == "Exec":
            self.exec = setting.text
        elif setting.key == "ShmSize":
            self.said = self.said._replace(shm=setting.word)
        elif setting.key == "ContainerName":
            self.said = self.said._replace(name=setting.word)
        elif setting.key == "AddDevice" and setting.word.startswith("nvidia.com/gpu="):
            which = setting.word.cut(len("nvidia.com/gpu="))
            if which != "all":
                devices = (*self.said.devices, str(which))
                self.said = self.said._replace(gpus=which, devices=devices)
        else:
            self.of_both(setting)

    def of_both(self, setting: _Setting) -> None:
        if setting.key == "Environment":
            if not setting.word:
                self.environment.clear()
            for word in words_in(setting.text):
                name, equals, _ = word.partition("=")
                if equals and name:
                    self.environment[name] = word.cut(len(name) + 1)
        elif setting.key == "EnvironmentFile":
            from moesize.check.readers.compose_words import read_env_file

            name = setting.word.removeprefix("-")
            text = self.context.folder.read(name.rpartition("/")[2] if name[:1] == "/" else name)
            if text is not None:
                self.from_files.update(read_env_file(text))

    def launches(self) -> list[Launch]:
        """What the unit starts."""
        environment = {**self.environment, **self.from_files, **self.given}
        found: list[Launch] = []
        for text in self.starts:
            found += self._started(words_in(_without_prefix(text), environment), environment)
        if self.image is not None:
            words = words_in(self.exec, environment) if self.exec is not None else []
            launches = self._started(words, environment, self.image)
            devices = self.said.devices
            found += [
                launch._replace(
                    container=self.said,
                    visible=launch.visible or len(devices) or None,
                    devices=launch.devices or devices,
                )
                for launch in launches
            ]
        return [_with_specifiers(launch) for launch in found]

    def _started(
        self, words: list[Word], environment: Mapping[str, Word], image: Word | None = None
    ) -> list[Launch]:
        fixed = tuple(self.given)
        return launches_of(words, environment, image=image, fixed=fixed)


def _without_prefix(text: PiecesText) -> PiecesText:
    """A command line without the signs before the program (`-`, `@`, `+`, `!`, `:`)."""
    value = text.value
    start = len(value) - len(value.lstrip(" \t-@+!:"))
    pieces: list[Piece] = []
    for piece in text.pieces:
        cut = min(start, len(piece.text))
        start -= cut
        pieces.append(piece.cut(cut, len(piece.text)))
    return PiecesText(pieces)


def _with_specifiers(launch: Launch) -> Launch:
    """`%i` is known when the unit is started."""
    found = [
        Unresolved(match[0], word)
        for word in launch.words
        if (match := _SPECIFIER.search(word)) is not None
    ]
    return launch._replace(unresolved=(*launch.unresolved, *found))


def read(source: SourceText, context: Context) -> Reading:
    """The servers that a unit starts."""
    unit = _Unit(source, context)
    servers: list[Server] = servers_of(
        unit.launches(), title_of(context.path), "systemd", context.path
    )
    for server in servers:
        server.memory_limit = size_in(unit.memory) or server.memory_limit
    skipped = "" if servers else "starts no model server"
    return Reading(kind="systemd", servers=servers, skipped=skipped)
