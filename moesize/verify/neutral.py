"""Paths taken out of texts: a record of a measurement is shown to others."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PLACE = "PATH"
# Where a path begins: a root, `./`, `~user/`, a drive or a share, not inside of a word, of a
# formula (`S*V/2`) or of an address (`https://`); then all of it up to a blank or a quote.
_PATH = re.compile(
    r"(?:file:[\\/]+|(?<![\w.~)\]*/\\])(?:\.{1,2}|~\w*|[A-Za-z]:)?(?:(?<!:)//|/|\\{1,2}))"
    r"(?=[\w.~])[^\s'\",;<>|)\]}]*"
)
_OPTIONS = ("--shards", "--keep-shards")
_NO_PATHS = ("synthetic", "hub")


def neutral(text: str) -> str:
    """The text with `PATH` in place of each path, and of the home folder whatever is in its name.

    A path with blanks in it ends at the first, unless it is in the home folder.
    """
    home = str(Path("~").expanduser())
    if len(home) > 1:
        text = text.replace(home, "~")
    return _PATH.sub(PLACE, text)


def neutral_command(words: Sequence[str], model: str = "") -> str:
    """A command line of `moesize` that says where nothing lies: its folders are `PATH`.

    model  the word that names the model; a folder of that name stands for a path
    """
    out = []
    option = ""
    for word in words:
        name, equals, value = word.partition("=")
        if not (equals and name in _OPTIONS):
            name, equals, value = option, "", word
        is_folder = name in _OPTIONS and value not in _NO_PATHS
        is_folder |= not equals and word == model and os.path.exists(word)  # noqa: PTH110  (speaks of any word, NUL too)
        shown = PLACE if is_folder else neutral(value)
        out.append(f"{name}={shown}" if equals else shown)
        option = word
    return shlex.join(out)


def neutral_document(value: Any) -> Any:
    """The same document with every text of it neutral."""
    if isinstance(value, str):
        return neutral(value)
    if isinstance(value, dict):
        return {name: neutral_document(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [neutral_document(inner) for inner in value]
    return value


def paths_in(value: Any, where: str = "") -> Iterator[str]:
    """Fields of a document, `notes[0]`, whose text holds a path."""
    if isinstance(value, str):
        if neutral(value) != value:
            yield where
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from paths_in(inner, f"{where}.{name}" if where else str(name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from paths_in(inner, f"{where}[{number}]")
