"""The one list of file formats, and how a text finds its reader: by content, never by name alone.

A reader module under `readers/` exports FORMATS (YAML documents) or TEXT_FORMATS (other texts).
Adding a format is adding a module and its line in `_MODULES`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from moesize.check.folder import Folder
    from moesize.check.server import Reading
    from moesize.check.source import SourceText
    from moesize.check.yaml_tree import Node


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
