"""llama-swap configurations: a command line for each model, of which mostly one runs at a time.

After llama-swap's proxy/config (September 2026): macros are put in as text, comment lines taken out
and the rest split as a shell splits, but no shell runs it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from moesize.check.formats import Format
from moesize.check.readers.launched import given_variables, server_of
from moesize.check.server import Deadline, Reading, Server
from moesize.check.shell import launches_of, words_in
from moesize.check.shell_values import Piece, PiecesText
from moesize.check.yaml_tree import Scalar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from moesize.check.formats import Context
    from moesize.check.source import Word
    from moesize.check.yaml_tree import Node

_MACRO = re.compile(r"\$\{([A-Za-z0-9_-]{1,64}|env\.[A-Za-z_][A-Za-z0-9_]{0,100})\}")
_DEFAULT_PORT = "5800"
_DEFAULT_GROUP = "(default)"
_MOST_TEXT = 1 << 17
_MOST_PIECES = 20_000
_MOST_MODELS = 2_000
_MOST_SETS = 200
_DEEPEST = 5
_TOKEN = re.compile(r"\s*([&|()]|\+?[\w.-]+)")


def _is_llama_swap(document: Node) -> bool:
    models = document.get("models")
    return models.is_mapping and any(
        model.is_mapping and (model.get("cmd").is_sequence or model.get("cmd").text is not None)
        for _, model in models.items()
    )


# --- commands ---------------------------------------------------------------------------------


class _Macros:
    """Texts that stand for others in the command of one model."""

    def __init__(self, layers: Iterable[Node], name: Word, given: Mapping[str, Word]) -> None:
        self.given = given
        self.nodes: dict[str, Scalar] = {}
        for layer in layers:
            for key, node in layer.items():
                if isinstance(node, Scalar):
                    self.nodes[str(key)] = node
        self.name = name
        self.length = 0

    def filled(self, node: Scalar) -> PiecesText:
        """The text of a scalar, macros put in."""
        self.length = 0
        return PiecesText(self._pieces(node, 0))

    def _pieces(self, node: Scalar, depth: int) -> list[Piece]:
        text = node.source_text()
        found: list[Piece] = []
        position = 0
        for match in _MACRO.finditer(text.value):
            start, end = match.span()
            found.append(Piece(text.value[position:start], text, position, start))
            found += self._value(match, Piece(match[0], text, start, end), depth)
            position = end
            if self.length > _MOST_TEXT or len(found) > _MOST_PIECES:
                break
        found.append(Piece(text.value[position:], text, position, len(text.value)))
        self.length += len(text.value)
        return found

    def _value(self, match: re.Match[str], written: Piece, depth: int) -> list[Piece]:
        name = match[1]
        if name.startswith("env."):
            given = self.given.get(name[4:])
            return [written._replace(text=str(given))] if given is not None else [written]
        if name == "PORT":
            return [written._replace(text=_DEFAULT_PORT)]
        if name == "MODEL_ID":
            return [written._replace(text=str(self.name))]
        node = self.nodes.get(name)
        if node is None or depth >= _DEEPEST or self.length > _MOST_TEXT:
            return [written]
        return self._pieces(node, depth + 1)


def _without_comments(text: PiecesText) -> PiecesText:
    """A command without the lines that begin with a number sign."""
    if "#" not in text.value:
        return text
    kept: list[Piece] = []
    is_comment = False
    at_start = True  # only blanks since the line began
    for piece in text.pieces:
        begin = 0
        for position, char in enumerate(piece.text):
            if at_start and char == "#":
                kept.append(piece.cut(begin, position))
                is_comment = True
            at_start = char == "\n" or (at_start and char.isspace())
            if char == "\n" and is_comment:
                is_comment, begin = False, position
        if not is_comment:
            kept.append(piece.cut(begin, len(piece.text)))
    return PiecesText(kept)


def _command(node: Node, macros: _Macros) -> list[Word]:
    """The words of `cmd`."""
    scalars = [node] if isinstance(node, Scalar) else node.elements()[:200]
    words: list[Word] = []
    for scalar in scalars:
        if isinstance(scalar, Scalar):
            words += words_in(_without_comments(macros.filled(scalar)))
    return words


def _environment(node: Node, macros: _Macros) -> dict[str, Word]:
    """`env: [NAME=value]`."""
    found: dict[str, Word] = {}
    for element in node.elements()[:500]:
        if isinstance(element, Scalar):
            text = macros.filled(element)
            name, equals, _ = text.value.partition("=")
            if equals:
                found[name.strip()] = text.word(len(name) + 1, len(text.value))
    return found


# --- what runs beside what --------------------------------------------------------------------


class _Place(NamedTuple):
    """Server.shares_with and Server.exclusive of a model."""

    shares_with: str
    exclusive: str


class _Group(NamedTuple):
    """Models of a group; `swap`: one of them at a time."""

    name: str
    members: tuple[str, ...]
    swap: bool = True
    exclusive: bool = True
    persistent: bool = False

    def stands_beside(self, other: _Group) -> bool:
        """Whether both can be loaded at the same time, whichever comes first."""
        return (not other.exclusive or self.persistent) or (not self.exclusive or other.persistent)


def _places(document: Node, names: list[str], path: str) -> dict[str, _Place]:
    """How each model stands to the others."""
    alone = _Place("", f"llama-swap:{path}")
    found = dict.fromkeys(names, alone)
    if document.get("matrix", "sets").is_mapping:
        found.update(_by_matrix(document.get("matrix"), path))
    elif document.get("groups").is_mapping:
        found.update(_by_groups(_groups(document, names), path))
    # Lists of models that older versions ran together.
    for key, members in document.get("profiles").items():
        for member in members.words()[:_MOST_MODELS]:
            if str(member) in found:
                found[str(member)] = _Place(f"llama-swap:{path}:{key}", "")
    return found


def _groups(document: Node, names: list[str]) -> list[_Group]:
    groups: list[_Group] = []
    grouped: set[str] = set()
    for key, node in document.get("groups").items():
        members = tuple(str(word) for word in node.get("members").words()[:_MOST_MODELS])
        grouped.update(members)
        groups.append(
            _Group(
                str(key),
                members,
                swap=node.get("swap").boolean() is not False,
                exclusive=node.get("exclusive").boolean() is not False,
                persistent=node.get("persistent").boolean() is True,
            )
        )
        if len(groups) >= _MOST_SETS:
            break
    others = tuple(name for name in names if name not in grouped)
    return [*groups, _Group(_DEFAULT_GROUP, others)]


def _by_groups(groups: list[_Group], path: str) -> dict[str, _Place]:
    # Sets of groups of which each can stand beside each other one.
    sets: list[list[_Group]] = []
    for group in groups:
        for together in sets:
            if all(group.stands_beside(other) for other in together):
                together.append(group)
                break
        else:
            sets.append([group])
    found: dict[str, _Place] = {}
    for together in sets:
        first = together[0]
        shared = len(together) > 1 or not first.swap
        name = f"llama-swap:{path}:{first.name}" if shared else ""
        for group in together:
            alone = f"llama-swap:{path}" + (f":{group.name}" if shared else "")
            for member in group.members:
                found[member] = _Place(name, alone if group.swap else "")
    return found


def _by_matrix(matrix: Node, path: str) -> dict[str, _Place]:
    """Sets such as `(a | b) & c`: parts of the largest one first, a model counts once."""
    names = {str(key): str(node.word) for key, node in matrix.get("vars").items()}
    texts = {str(key): str(node.word) for key, node in matrix.get("sets").items()}
    sets = []
    for key in list(texts)[:_MOST_SETS]:
        parts = _parts_of(key, texts, 0)
        if len(parts) > 1:
            sets.append((key, parts))
    found: dict[str, _Place] = {}
    for key, parts in sorted(sets, key=lambda one: -len(one[1])):
        shared = f"llama-swap:{path}:{key}"
        for number, part in enumerate(parts):
            for short in part:
                alone = f"{shared}:{number}" if len(part) > 1 else ""
                found.setdefault(names.get(short, short), _Place(shared, alone))
    return found


def _parts_of(key: str, texts: Mapping[str, str], depth: int) -> list[list[str]]:
    """The names between the `&` of a set, alternatives together; empty for one of alternatives."""
    if depth > _DEEPEST:
        return []
    parts: list[list[str]] = [[]]
    nested, has_outer_or = 0, False
    for match in _TOKEN.finditer(texts.get(key, "")[:2000]):
        token = match[1]
        if token == "(":
            nested += 1
        elif token == ")":
            nested -= 1
        elif token == "&" and nested == 0:
            parts.append([])
        elif token == "|":
            has_outer_or = has_outer_or or nested == 0
        elif token.startswith("+"):
            inner = _parts_of(token[1:], texts, depth + 1)
            if len(inner) > 1 and nested == 0 and not parts[-1]:
                parts[-1:] = inner
            else:
                parts[-1] += [name for part in inner for name in part]
        elif token != "&":
            parts[-1].append(token)
        if len(parts) > _MOST_SETS:
            break
    parts = [part for part in parts if part]
    if has_outer_or:
        return [[name for part in parts for name in part]] if parts else []
    return parts


# --- servers ----------------------------------------------------------------------------------


def _read(document: Node, context: Context) -> Reading:
    given = given_variables(context)
    models = document.get("models")
    names = [str(key) for key, _ in models.items()][:_MOST_MODELS]
    places = _places(document, names, context.path)
    deadlines = _deadlines(document)
    servers: list[Server] = []
    for key, model in models.items():
        if len(servers) >= _MOST_MODELS:
            break
        for server in _servers(key, model, document, given):
            server.shares_with, server.exclusive = places.get(str(key), _Place("", ""))
            server.deadlines = deadlines
            servers.append(server)
    judged = any(not server.skipped for server in servers)
    skipped = "" if judged else "no model's command starts an engine that is known"
    return Reading(kind="llama_swap", servers=servers, skipped=skipped)


def _servers(key: Word, model: Node, document: Node, given: Mapping[str, Word]) -> list[Server]:
    macros = _Macros((document.get("macros"), model.get("macros")), key, given)
    words = _command(model.get("cmd"), macros)
    environment = {**_environment(model.get("env"), macros), **given}
    launches = launches_of(words, environment, fixed=tuple(given))
    servers = [server_of(launch, str(key)) for launch in launches]
    if servers:
        return servers
    program = words[0].rpartition("/")[2][:60] if words else ""
    why = f"{program} serves no language model that can be planned" if program else "has no command"
    return [Server(name=str(key), place=words[0] if words else key, skipped=why)]


def _deadlines(document: Node) -> tuple[Deadline, ...]:
    """A server that is not ready by then is ended; never before 15 seconds."""
    node = document.get("healthCheckTimeout")
    seconds = node.integer()
    if seconds is None or not 0 <= seconds < 10**9:
        return ()
    return (Deadline(max(seconds, 15), node.word, "healthCheckTimeout"),)


FORMATS = [Format("llama_swap", _is_llama_swap, _read)]
