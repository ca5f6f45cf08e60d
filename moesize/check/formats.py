"""The one list of file formats, and how a text finds its reader: by content, never by name alone.

A reader module under `readers/` exports FORMATS (YAML documents) or TEXT_FORMATS (other texts).
Adding a format is adding a module and its line in `_MODULES`.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from moesize.check.discovery import YAML_SUFFIXES, names_an_engine
from moesize.check.server import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from moesize.check.folder import Folder
    from moesize.check.server import Reading
    from moesize.check.source import SourceText, Span
    from moesize.check.yaml_tree import Node, YamlError


@dataclass(slots=True, kw_only=True)
class Context:
    """What a reader may look at beside its document.

    path        of the file, as shown
    folder      files beside it
    documents   all documents of the file
    variables   what the user gave with --set: wins over what files say
    """

    path: str
    folder: Folder
    documents: list[Node] = field(default_factory=list)
    variables: Mapping[str, str] = field(default_factory=dict)


class Format(NamedTuple):
    """A kind of YAML document: `matches` looks at its content, `read` finds the servers."""

    kind: str
    matches: Callable[[Node], bool]
    read: Callable[[Node, Context], Reading]


class TextFormat(NamedTuple):
    """A kind of text that is no YAML; `matches` sees the path (lower case) and the text."""

    kind: str
    matches: Callable[[str, str], bool]
    read: Callable[[SourceText, Context], Reading]


class FileReading(NamedTuple):
    """What a file holds.

    skipped   why no format claims it; empty when one does
    """

    readings: list[Reading]
    problems: list[Problem]
    skipped: str = ""


# Tried in this order, the first match wins. Narrow ones come first; Kustomize, whose patches look
# like the objects that they change, and files of nothing but flags come last.
_MODULES = (
    "kserve",
    "kubeai",
    "kaito",
    "dynamo",
    "nim",
    "ray",
    "operators",
    "kubernetes",
    "compose",
    "skypilot",
    "llama_swap",
    "truss",
    "helm_values",
    "engine_config",
    "scripts",
    "ollama",
    "kustomize",
)
_TEXT_ONLY = (".sh", ".bash", ".zsh", ".ksh", ".sbatch", ".slurm", ".service", ".container")
_MOST_ITEMS = 20_000


@cache
def yaml_formats() -> tuple[Format, ...]:
    """All formats of YAML documents, in the order in which they are tried."""
    return tuple(one for name in _MODULES for one in getattr(_module(name), "FORMATS", ()))


@cache
def text_formats() -> tuple[TextFormat, ...]:
    """All formats of other texts."""
    return tuple(one for name in _MODULES for one in getattr(_module(name), "TEXT_FORMATS", ()))


def _module(name: str) -> Any:
    from importlib import import_module

    return import_module(f"moesize.check.readers.{name}")


def read_file(source: SourceText, context: Context) -> FileReading:
    """The servers of a file. No trouble in it, or in a reader, is raised: it becomes a problem."""
    path = context.path.lower()
    name = path.rpartition("/")[2]
    if not path.endswith(YAML_SUFFIXES):
        for text_format in text_formats():
            if _matches_text(text_format, path, source.value):
                return _read_text(text_format, source, context)
        if name.endswith(_TEXT_ONLY) or name.startswith(("dockerfile", "containerfile")):
            return FileReading([], [], "starts no model server")
    return _read_yaml(source, context)


def _matches_text(text_format: TextFormat, path: str, text: str) -> bool:
    try:
        return text_format.matches(path, text)
    except Exception:  # a bug of ours; the other formats are still tried
        return False


def _read_text(text_format: TextFormat, source: SourceText, context: Context) -> FileReading:
    try:
        return FileReading([text_format.read(source, context)], [])
    except Exception as error:
        problem = internal_error(text_format.kind, error, source.span(0, 0))
        return FileReading([], [problem])


def _read_yaml(source: SourceText, context: Context) -> FileReading:
    from moesize.check.yaml_tree import YamlError, parse_stream

    try:
        stream = parse_stream(source)
    except YamlError as error:
        return _unreadable(source, error)
    context.documents = _flattened(stream.documents)
    readings: list[Reading] = []
    problems: list[Problem] = []
    for document in context.documents:
        if not document.is_mapping:
            continue
        for one in yaml_formats():
            try:
                if not one.matches(document):
                    continue
                readings.append(one.read(document, context))
            except Exception as error:
                place = document.span or source.span(0, 0)
                problems.append(internal_error(one.kind, error, place))
            break
    if not readings and not problems:
        return FileReading([], [], "no deployment format that is known")
    problems += [
        Problem("MS005", f"the key {str(key)[:80]!r} stands twice in one mapping", key.span)
        for key in stream.duplicates
        if key.span is not None
    ]
    return FileReading(readings, problems)


def _flattened(documents: list[Node]) -> list[Node]:
    """The documents, those inside `kind: List` objects one by one."""
    out: list[Node] = []
    waiting = list(reversed(documents))
    while waiting and len(out) < _MOST_ITEMS:
        document = waiting.pop()
        items = document.get("items")
        if items.is_sequence and str(document.get("kind").word).endswith("List"):
            waiting.extend(reversed(items.elements()))
        else:
            out.append(document)
    return out


def _unreadable(source: SourceText, error: YamlError) -> FileReading:
    """A file that is no YAML: a finding where it is about a model server, else nothing of ours."""
    text = source.value
    if not names_an_engine(text):
        return FileReading([], [], f"line {error.span.line}: {error.problem}")
    if "{{" in text or "{%" in text:
        message = "a template, which only the program that fills it in can turn into a deployment"
        return FileReading([], [Problem("MS002", message, error.span)])
    return FileReading([], [Problem("MS001", error.problem, error.span)])


def internal_error(kind: str, error: Exception, span: Span) -> Problem:
    """A bug of moesize as a finding: the file was not checked, and nobody is to think it was."""
    where = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" at {Path(frame.filename).name}:{frame.lineno}" for frame in where)
    message = f"internal error, please report: {type(error).__name__}{place} ({kind})"
    return Problem("MS001", message, span)
