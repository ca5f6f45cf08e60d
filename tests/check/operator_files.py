"""Small files written down and read by one reader, for the tests of readers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from moesize.check.folder import Folder, Library
from moesize.check.formats import Context
from moesize.check.yaml_tree import parse_stream

if TYPE_CHECKING:
    from pathlib import Path

    from moesize.check.server import Reading, Server
    from moesize.check.source import Word


def read(module: str, folder: Path, text: str, /, **others: str) -> list[Reading]:
    """The readings of a text as `main.yaml`; `others` are files beside it, by name."""
    for name, content in {"main": text, **others}.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    library = Library(folder)
    source = library.text(folder / "main.yaml", folder)
    assert source is not None
    documents = parse_stream(source).documents
    context = Context(path="main.yaml", folder=Folder(folder, folder, library), documents=documents)
    formats = import_module(f"moesize.check.readers.{module}").FORMATS
    found = []
    for document in documents:
        one = next((known for known in formats if known.matches(document)), None)
        if one is not None:
            found.append(one.read(document, context))
    return found


def one_server(module: str, folder: Path, text: str, /, **others: str) -> Server:
    """The only server of a text."""
    servers = [server for each in read(module, folder, text, **others) for server in each.servers]
    assert len(servers) == 1
    return servers[0]


def texts(words: tuple[Word, ...]) -> list[str]:
    """Words as plain texts, for comparisons that show what differs."""
    return [str(word) for word in words]


def place(word: Word | None) -> tuple[int, int]:
    """(line, column) of a word."""
    assert word is not None
    assert word.span is not None
    return word.span.line, word.span.column


def in_file(word: Word | None, text: str) -> str:
    """What the file holds at a word's place."""
    assert word is not None
    span = word.span
    assert span is not None
    assert span.line == span.end_line
    return text.splitlines()[span.line - 1][span.column - 1 : span.end_column - 1]
