"""Strict, bounded reading of files written by strangers, and the only user of yaml.

YAML is read by its events: duplicate keys, anchors and deep nesting are refused, and plain
scalars follow YAML 1.2 (`no` is a word, `1e3` is a number, `12:30` is a word).
"""

from __future__ import annotations

import json
import stat
from dataclasses import field
from typing import TYPE_CHECKING, Any

from moesize.core.errors import InvalidInputError
from moesize.core.records import dataclass

if TYPE_CHECKING:
    from pathlib import Path

# A real config.json is below 1 MB even with thousands of module names in it.
MAX_JSON_BYTES = 16 << 20
# The longest shipped spec is below 10 kB.
MAX_YAML_BYTES = 1 << 20
MAX_DEPTH = 64


def read_text(path: Path, max_bytes: int) -> str:
    """Read a UTF-8 text file of bounded size. Raises InvalidInputError."""
    try:
        # A pipe would be waited for, a device never ends.
        if path.exists() and not path.is_file() and not path.is_dir():
            raise InvalidInputError(f"{path}: is not a regular file")
        with path.open("rb") as stream:
            raw = stream.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise InvalidInputError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise InvalidInputError(f"{path}: is a folder, not a file") from error
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read ({error.strerror})") from error
    if len(raw) > max_bytes:
        raise InvalidInputError(
            f"{path}: larger than {max_bytes >> 20} MiB, which no such file is",
            "is this the right file? weights are never read as text",
        )
    if not raw.strip():
        raise InvalidInputError(f"{path}: the file is empty")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path}: not a UTF-8 text file (byte {error.start})") from error


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises InvalidInputError naming line and column."""
    return parse_json(read_text(path, MAX_JSON_BYTES), str(path))


def parse_json(text: str, file: str) -> Any:
    """Parse JSON text; duplicate keys, bad syntax and hostile nesting are errors."""
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _object(pairs, file))
    except json.JSONDecodeError as error:
        raise InvalidInputError(
            f"{file}:{error.lineno}:{error.colno}: not valid JSON ({error.msg.lower()})",
            "is the file truncated?" if error.pos >= len(text.rstrip()) else "",
        ) from error
    except RecursionError as error:
        raise InvalidInputError(f"{file}: nested too deeply to be a real file") from error
    except ValueError as error:  # an integer with more digits than Python converts
        raise InvalidInputError(f"{file}: holds a number that is out of range") from error


def _object(pairs: list[tuple[str, Any]], file: str) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InvalidInputError(f"{file}: the key {key[:60]!r} stands twice in one object")
            seen.add(key)
    return out


@dataclass(slots=True)
class YamlDocument:
    """Parsed data, and the line of every key by its dotted path."""

    data: Any
    file: str
    lines: dict[str, int] = field(default_factory=dict)

    def line(self, path: str) -> int:
        """Line of a path, or of its nearest ancestor."""
        while path and path not in self.lines:
            path = path.rpartition(".")[0]
        return self.lines.get(path, 1)


def read_yaml(path: Path) -> YamlDocument:
    """Read one YAML document. Raises InvalidInputError naming the line."""
    return parse_yaml(read_text(path, MAX_YAML_BYTES), str(path))


def parse_yaml(text: str, file: str) -> YamlDocument:
    """Parse one YAML document of plain data."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document = YamlDocument(None, file)
    try:
        events = iter(yaml.parse(text, Loader=loader))
        builder = _YamlBuilder(events, document)
        document.data = builder.document()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark is not None else file
        problem = getattr(error, "problem", None) or getattr(error, "reason", "unreadable")
        raise InvalidInputError(f"{where}: not valid YAML ({problem})") from error
    return document


class _YamlBuilder:
    def __init__(self, events: Any, target: YamlDocument) -> None:
        self.events = events
        self.target = target

    def fail(self, event: Any, message: str) -> InvalidInputError:
        line = event.start_mark.line + 1
        return InvalidInputError(f"{self.target.file}:{line}: {message}")

    def document(self) -> Any:
        value: Any = None
        found = False
        for event in self.events:
            kind = type(event).__name__
            if kind in ("StreamStartEvent", "StreamEndEvent", "DocumentEndEvent"):
                continue
            if kind == "DocumentStartEvent":
                if found:
                    raise self.fail(event, "more than one document in the file")
                continue
            value = self.node(event, "", 0)
            found = True
        if not found:
            raise InvalidInputError(f"{self.target.file}: the file holds no data")
        return value

    def node(self, event: Any, path: str, depth: int) -> Any:
        kind = type(event).__name__
        if kind == "AliasEvent" or getattr(event, "anchor", None):
            raise self.fail(event, "anchors and aliases (& and *) are not allowed here")
        if getattr(event, "tag", None) not in (None, "!"):
            raise self.fail(event, f"tags such as {event.tag[:40]!r} are not allowed here")
        if depth > MAX_DEPTH:
            raise self.fail(event, "nested too deeply to be a real file")
        if kind == "ScalarEvent":
            return self.scalar(event)
        if kind == "SequenceStartEvent":
            return self.sequence(path, depth)
        return self.mapping(path, depth)

    def sequence(self, path: str, depth: int) -> list[Any]:
        out: list[Any] = []
        for event in self.events:
            kind = type(event).__name__
            if kind == "SequenceEndEvent":
                break
            here = f"{path}.{len(out)}" if path else str(len(out))
            if kind != "ScalarEvent":  # a list of a million words needs no million lines
                self.target.lines[here] = event.start_mark.line + 1
            out.append(self.node(event, here, depth + 1))
        return out

    def mapping(self, path: str, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for event in self.events:
            kind = type(event).__name__
            if kind == "MappingEndEvent":
                break
            if kind != "ScalarEvent":
                raise self.fail(event, "a key must be a plain word")
            key = event.value
            if key in out:
                raise self.fail(event, f"the key {key[:60]!r} stands twice")
            here = f"{path}.{key}" if path else key
            self.target.lines[here] = event.start_mark.line + 1
            out[key] = self.node(next(self.events), here, depth + 1)
        return out

    def scalar(self, event: Any) -> Any:
        text = event.value
        if not event.implicit[0]:  # quoted
            return text
        if text in ("", "~", "null"):
            return None
        if text in ("true", "false"):
            return text == "true"
        body = text[1:] if text[0] in "+-" else text
        if body.isascii() and body.isdigit():
            if len(body) > 24:
                raise self.fail(event, "number out of range")
            return int(text)
        if (body[:1].isdigit() or body[:1] == ".") and "_" not in body:
            try:
                return float(text)
            except ValueError:
                return text
        return text


# --- Files that are read in part, and what errors show of them -----------------------------------

# How many names an error lists.
_SHOWN = 5


def regular_size(path: Path) -> int:
    """Size of a regular file. Raises InvalidInputError."""
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise InvalidInputError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path}: cannot be read ({error})") from error
    # A pipe would be waited for, a device never ends.
    if not stat.S_ISREG(found.st_mode):
        raise InvalidInputError(f"{path}: is not a regular file")
    return found.st_size


def opened(path: Path) -> Any:
    """The file's bytes as a stream. Raises InvalidInputError."""
    try:
        return path.open("rb")
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read ({error.strerror})") from error


def short(value: Any) -> str:
    """A stranger's value in an error: ASCII and not long."""
    shown = ascii(value) if isinstance(value, str) else type(value).__name__
    return shown if len(shown) <= 80 else shown[:76] + "...'"


def inside(folder: Path, name: str) -> Path:
    """The path of a file of a folder; a link must not lead out of it.

    A folder of a stranger could otherwise make any file of this machine be read. The hub's own
    cache is the exception: snapshots/<revision>/file is a link to ../../blobs/<hash>.
    """
    path = folder / name
    target = path.resolve()
    if target.parent == folder:
        return path
    cache = folder.parent.parent
    if folder.parent.name == "snapshots" and target.parent == cache / "blobs":
        return path
    raise InvalidInputError(
        f"{path}: is a link that leads out of its folder, to {target}",
        "only the links of a hub cache (snapshots/<revision> to blobs) are followed; "
        "copy the file, or give the folder that it is in",
    )


def listed(names: list[str]) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(map(_plain, names[:_SHOWN])) + more


def _plain(name: str) -> str:
    return name if name.isprintable() and name.isascii() and len(name) <= 200 else short(name)
