"""Helpers of the tests of readers: files in a scratch folder, read by the formats of a module."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from types import ModuleType

from moesize.check.folder import Folder, Library
from moesize.check.formats import Context
from moesize.check.server import Reading, Server
from moesize.check.source import SourceFile, SourceText, Word
from moesize.check.yaml_tree import Node, parse_stream


def parse(text: str, path: str = "a.yaml") -> list[Node]:
    """The documents of a text."""
    return parse_stream(SourceText.of_file(SourceFile(path, dedent(text)))).documents


def context_of(
    root: Path, files: dict[str, str], name: str, variables: dict[str, str] | None = None
) -> Context:
    """Write the files; the context of the one that is called `name`."""
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(dedent(text), encoding="utf-8")
    library = Library(root)
    path = root / name
    folder = Folder(path.parent, root, library)
    return Context(
        path=name,
        folder=folder,
        documents=library.documents(path, root),
        variables=variables or {},
    )


def readings(context: Context, *modules: ModuleType) -> list[Reading]:
    """What the formats of the modules read, document by document."""
    found = []
    for document in context.documents:
        for module in modules:
            one = next((f for f in module.FORMATS if f.matches(document)), None)
            if one is not None:
                found.append(one.read(document, context))
                break
    return found


def text_at(root: Path, word: Word) -> str:
    """What stands in the file where a word says it stands."""
    span = word.span
    assert span is not None
    lines = (root / span.path).read_text(encoding="utf-8").split("\n")
    if span.line == span.end_line:
        return lines[span.line - 1][span.column - 1 : span.end_column - 1]
    return "\n".join(
        [
            lines[span.line - 1][span.column - 1 :],
            *lines[span.line : span.end_line - 1],
            lines[span.end_line - 1][: span.end_column - 1],
        ]
    )


def only(found: list[Server]) -> Server:
    """The one server of a list."""
    assert len(found) == 1, [server.name for server in found]
    return found[0]


def flag(server: Server, name: str) -> Word | None:
    """The value of a flag of a server."""
    for index, word in enumerate(server.words):
        if word == name:
            return server.words[index + 1]
        if word.startswith(name + "="):
            return word.cut(len(name) + 1)
    return None
