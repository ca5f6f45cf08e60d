"""Files beside the one that is read: ConfigMaps, .env files, files that a configuration names.

Only regular files below the root of the check are opened, of bounded size and number, and each
once. Nothing that such a file says is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from moesize.check.source import SourceFile, SourceText
from moesize.check.yaml_tree import (
    ABSENT,
    MAX_BYTES,
    Node,
    Scalar,
    YamlError,
    YamlStream,
    parse_stream,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_FILES = 2_000
_YAML = (".yaml", ".yml", ".json")


class Folder:
    """A folder as the readers see it; `documents` are those of the file that is being read."""

    def __init__(self, path: Path, root: Path, library: Library) -> None:
        self.path = path
        self.root = root
        self.library = library

    def read(self, name: str) -> SourceText | None:
        """A file by its path relative to this folder; None: not there, or not below the root."""
        if not name or "\0" in name or len(name) > 500 or Path(name).is_absolute():
            return None
        return self.library.text(self.path / name, self.root)

    def yaml(self, name: str) -> list[Node]:
        """The documents of a YAML file beside this one; empty when it cannot be read."""
        return self.library.documents(self.path / name, self.root)

    def siblings(self) -> Iterator[Node]:
        """The documents of all YAML files of this folder."""
        for path in self.library.yaml_files(self.path):
            yield from self.library.documents(path, self.root)

    def config_map(self, name: str, own: list[Node]) -> Node:
        """`data` of the ConfigMap of that name, in the same file or folder; ABSENT if none is."""
        if not name:
            return ABSENT
        mine = self.library.config_maps(own)
        if name in mine:
            return mine[name]
        for path in self.library.yaml_files(self.path):
            theirs = self.library.config_maps(self.library.documents(path, self.root))
            if name in theirs:
                return theirs[name]
        return ABSENT


class Library:
    """Files already read, and how they are shown."""

    def __init__(self, shown_from: Path) -> None:
        self.shown_from = shown_from
        self._texts: dict[Path, SourceText | None] = {}
        self._documents: dict[Path, list[Node]] = {}
        self._listed: dict[Path, list[Path]] = {}
        # By identity of the list of documents, which is kept beside it.
        self._config_maps: dict[int, tuple[list[Node], dict[str, Node]]] = {}

    def shown(self, path: Path) -> str:
        """The path as users see it: relative to where they are, with forward slashes."""
        try:
            return path.relative_to(self.shown_from).as_posix()
        except ValueError:
            return path.as_posix()

    def text(self, path: Path, root: Path) -> SourceText | None:
        """A text file below `root`."""
        try:
            real = path.resolve()
            if real in self._texts:
                return self._texts[real]
            if len(self._texts) > _MOST_FILES or not real.is_relative_to(root.resolve()):
                return None
            self._texts[real] = None
            if not real.is_file():
                return None
            with real.open("rb") as stream:
                raw = stream.read(MAX_BYTES + 1)
        except (OSError, ValueError, RuntimeError):
            return None
        if len(raw) > MAX_BYTES:
            return None
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            return None
        found = SourceText.of_file(SourceFile(self.shown(path), text))
        self._texts[real] = found
        return found

    def documents(self, path: Path, root: Path) -> list[Node]:
        """The documents of a YAML file; empty when it cannot be read or is none."""
        known = self._documents.get(path)
        if known is None:
            source = self.text(path, root)
            stream = YamlStream()
            if source is not None:
                try:
                    stream = parse_stream(source)
                except YamlError:
                    stream = YamlStream()
            known = self._documents[path] = stream.documents
        return known

    def config_maps(self, documents: list[Node]) -> dict[str, Node]:
        """`data` of the ConfigMaps among documents, by name; the first of a name."""
        known = self._config_maps.get(id(documents))
        if known is None:
            found: dict[str, Node] = {}
            for document in documents:
                if document.get("kind").word == "ConfigMap":
                    found.setdefault(
                        str(document.get("metadata", "name").word), document.get("data")
                    )
            known = self._config_maps[id(documents)] = (documents, found)
        return known[1]

    def yaml_files(self, folder: Path) -> list[Path]:
        """YAML files of a folder, by name."""
        known = self._listed.get(folder)
        if known is None:
            try:
                known = sorted(
                    path for path in folder.iterdir() if path.suffix in _YAML and path.is_file()
                )[:200]
            except OSError:
                known = []
            self._listed[folder] = known
        return known


def inner_yaml(node: Node) -> list[Node]:
    """The documents of a YAML text in a YAML string (serveConfigV2, a ConfigMap's file)."""
    if not isinstance(node, Scalar):
        return []
    try:
        return parse_stream(node.source_text()).documents
    except YamlError:
        return []
