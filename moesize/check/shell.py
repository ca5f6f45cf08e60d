"""Shell text and argument lists into started engines, each word with its place.

Nothing is run. A text is read as a shell would: assignments in their order, quotes, defaults,
arrays, functions where they are called, loops over words that are known. It is read as it runs
when its caller gives nothing: `${X:-4}` is 4, `[ -n "$1" ]` is not true. What depends on what a
program prints, or on a variable without a default, keeps its dollar and is named in
`Launch.unresolved`; so does a variable that branches set to different values when no test tells
which of them is taken.

Two things are read as people mean them, not as a shell takes them: a backslash with blanks before
the line end continues the line, and a line that begins with a flag belongs to the command before.

`shell_syntax` finds the commands, `shell_expand` fills in their words, `shell_walk` goes through
them, `programs` knows what starts an engine, `shell_values` keeps the place of every character.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.check.programs import Container, Launch, join_ollama, started
from moesize.check.shell_syntax import Part, Raw
from moesize.check.shell_values import MOST_FIELDS, Budget, Names, argument
from moesize.check.shell_walk import Shell, run_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from moesize.check.shell_values import Text
    from moesize.check.source import SourceText, Word
    from moesize.check.yaml_tree import Node

__all__ = [
    "Container",
    "Launch",
    "launches_in",
    "launches_of",
    "words_and_texts",
    "words_in",
]


def launches_in(
    text: Text,
    environment: Mapping[str, Word],
    arguments: Sequence[Word] = (),
    *,
    fixed: Collection[str] = (),
    read_file: Callable[[str], SourceText | None] | None = None,
) -> list[Launch]:
    """The engines that a shell text starts; `arguments` are its $1, $2, ... and "$@".

    `fixed` are variables of the environment that the text does not change: the user gave them.
    `read_file` opens what `source FILE` names. Everything that may start is given, both branches
    of an `if` too; `Launch.alternative` and `Launch.background` tell how they stand to each other.
    """
    budget = Budget(len(text.value))
    return run_text(
        text, environment, arguments, budget, fixed=frozenset(fixed), read_file=read_file
    )


def launches_of(
    words: Sequence[Word],
    environment: Mapping[str, Word],
    *,
    image: Word | None = None,
    texts: Mapping[Word, SourceText] | None = None,
    fixed: Collection[str] = (),
) -> list[Launch]:
    """The engines that an argument list (exec form) starts.

    `words` are command + args of a container; without a program in them the image's own entrypoint
    decides (vllm/vllm-openai: `vllm serve`). `sh -c TEXT` is read as a shell text. `texts` gives
    words of several lines the place of each of their characters (see `words_and_texts`); words
    are looked up in it by their text.
    """
    known = texts or {}
    words = words[:MOST_FIELDS]
    budget = Budget(sum(len(word) for word in words))
    names = Names(environment)
    fields = [argument(word, known.get(word), names, budget) for word in words]
    return join_ollama(started(fields, names.all(), image, budget, fixed=frozenset(fixed)))


def words_and_texts(nodes: Iterable[Node]) -> tuple[list[Word], dict[Word, SourceText]]:
    """Scalars of YAML (elements of command and args) as words and texts for `launches_of`."""
    from moesize.check.yaml_tree import Scalar

    words: list[Word] = []
    texts: dict[Word, SourceText] = {}
    for node in nodes:
        if isinstance(node, Scalar):
            words.append(node.word)
            if any(char in node.word for char in " \n\t"):
                texts[node.word] = node.source_text()
    return words, texts


def words_in(text: Text, environment: Mapping[str, Word] | None = None) -> list[Word]:
    """The words of a text that is split as a shell splits, without operators and commands.

    For texts that no shell runs: `command:` of compose, further arguments in a variable. Line ends
    are blanks; `;`, `|` and `#` are characters like others; variables of `environment` are filled
    in.
    """
    value, end = text.value, len(text.value)
    shell = Shell(text, environment or {}, (), Budget(end))
    found: list[Word] = []
    position = 0
    while position < end and len(found) < MOST_FIELDS:
        if value[position].isspace():
            position += 1
            continue
        if value.startswith(("\\\n", "\\\r\n"), position):
            position += 2
            continue
        start = position
        parts: list[Part] = []
        while position < end and not value[position].isspace():
            raw = shell.reader.word(position, end)
            parts += raw.parts
            position = raw.end
            if position < end and not value[position].isspace():
                # An operator of a shell, which is text here.
                parts.append(Part("text", value[position], position, position + 1, False))
                position += 1
        found += [field.word for field in shell.fields(Raw(start, position, tuple(parts)))]
    return found
