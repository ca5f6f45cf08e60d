"""One object laid over another, as Kubernetes and Kustomize do; nodes keep their own places.

Nothing is changed in place: what differs is built anew, what does not is shared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from moesize.check.source import SourceText, Span, Word
from moesize.check.yaml_tree import ABSENT, Mapping, Node, Scalar, Sequence

if TYPE_CHECKING:
    from collections.abc import Iterable

# Lists of Kubernetes' own kinds whose elements are told apart by a key; others are replaced.
MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "resourceClaims": "name",
    "claims": "name",
    "schedulingGates": "name",
    "topologySpreadConstraints": "topologyKey",
}
_DIRECTIVE = "$patch"


class TooMuch(Exception):  # noqa: N818  (never leaves the readers)
    """Merging has swelled beyond what real files need."""


class Budget:
    """How many nodes may be looked at in all."""

    __slots__ = ("left",)

    def __init__(self, nodes: int = 2_000_000) -> None:
        self.left = nodes

    def take(self, nodes: int = 1) -> None:
        """Spend; raises TooMuch when nothing is left."""
        self.left -= nodes
        if self.left < 0:
            raise TooMuch


# --- nodes ------------------------------------------------------------------------------------


class _Text(Scalar):
    """A scalar that no YAML file wrote: a file's content, a value put together."""

    __slots__ = ("_content",)

    def __init__(self, content: SourceText, word: Word) -> None:
        # Quoted, so that no text of it is read as null.
        super().__init__(content, 0, len(content.value), content.value, '"')
        self._content = content
        self._text = word

    def source_text(self) -> SourceText:
        return self._content


def text_node(word: Word) -> Scalar:
    """A scalar of this text, at the word's place."""
    return _Text(SourceText.of_word(word), word)


def file_node(content: SourceText) -> Scalar:
    """A whole file as a scalar."""
    return _Text(content, Word(content.value, content.span(0, 0)))


def mapping_node(entries: Iterable[tuple[Word, Node]], span: Span | None = None) -> Mapping:
    """A mapping of these entries; absent values are left out."""
    node = Mapping(span)
    for key, value in entries:
        if value:
            node.entries[str(key)] = value
            node.keys[str(key)] = key
    return node


def sequence_node(children: Iterable[Node], span: Span | None = None) -> Sequence:
    """A sequence of these elements."""
    node = Sequence(span)
    node.children = list(children)
    return node


# --- strategic merge --------------------------------------------------------------------------


def merge(base: Node, patch: Node, budget: Budget, *, keyed: bool = True) -> Node:
    """`patch` laid over `base`; ABSENT where it deletes the whole.

    keyed   lists of MERGE_KEYS are merged by key (Kubernetes' own kinds), not replaced
    """
    budget.take()
    if not patch.is_mapping:
        return patch
    directive = patch.get(_DIRECTIVE).word
    if directive == "delete":
        return ABSENT
    if directive == "replace" or not base.is_mapping:
        return _without_directives(patch, budget)
    changed = dict(patch.items())
    entries: list[tuple[Word, Node]] = []
    budget.take(len(changed))
    for key, value in base.items():
        laid = changed.pop(key, None)
        if laid is None:
            entries.append((key, value))
            continue
        merged = _merge_entry(str(key), value, laid, budget, keyed)
        entries.append((patch.key(str(key)) or key, merged))
    for key, value in changed.items():
        if not key.startswith("$"):
            entries.append((key, _merge_entry(str(key), ABSENT, value, budget, keyed)))
    budget.take(len(entries))
    return mapping_node(entries, base.span)


def _merge_entry(key: str, base: Node, patch: Node, budget: Budget, keyed: bool) -> Node:
    if isinstance(patch, Scalar) and patch.text is None and not patch.style:
        return ABSENT  # null takes an entry away
    if patch.is_sequence:
        name = MERGE_KEYS.get(key) if keyed else None
        return _merge_list(base, patch, name, budget)
    return merge(base, patch, budget, keyed=keyed)


def _merge_list(base: Node, patch: Node, name: str | None, budget: Budget) -> Node:
    """Elements of the patch first, merged with those of the same key; then the other ones."""
    elements = patch.elements()
    budget.take(len(elements))
    replaces = any(element.get(_DIRECTIVE).word == "replace" for element in elements)
    if name is None or replaces or not base.is_sequence:
        kept = [
            _without_directives(element, budget)
            for element in elements
            if not (element.is_mapping and element.get(_DIRECTIVE).word in ("replace", "delete"))
        ]
        return sequence_node(kept, patch.span)
    if name == "containerPort" and any(element.get("port") for element in elements):
        name = "port"  # of a Service
    known: dict[str, Node] = {}
    for element in base.elements():
        known.setdefault(_key_of(element, name), element)
    budget.take(len(known))
    laid: list[Node] = []
    seen: set[str] = set()
    for element in elements:
        key = _key_of(element, name)
        merged = merge(known.get(key, ABSENT) if key else ABSENT, element, budget)
        if key:
            seen.add(key)
        if merged:
            laid.append(merged)
    laid += [element for element in base.elements() if _key_of(element, name) not in seen]
    return sequence_node(laid, base.span)


def _key_of(element: Node, name: str) -> str:
    return str(element.get(name).word)


def _without_directives(node: Node, budget: Budget) -> Node:
    """A patch that meets nothing: its directives, and what they or null take away, are gone."""
    budget.take()
    if node.is_mapping:
        entries = [
            (key, _without_directives(value, budget))
            for key, value in node.items()
            if not key.startswith("$")
            and not (isinstance(value, Scalar) and value.text is None and not value.style)
        ]
        return mapping_node(entries, node.span)
    if node.is_sequence:
        kept = [
            _without_directives(element, budget)
            for element in node.elements()
            if not (element.is_mapping and element.get(_DIRECTIVE).word == "delete")
        ]
        return sequence_node(kept, node.span)
    return node


# --- JSON patch -------------------------------------------------------------------------------

_MOST_STEPS = 64


class Operation(NamedTuple):
    """One operation of RFC 6902."""

    op: str
    path: tuple[str, ...]
    value: Node
    origin: tuple[str, ...]


def operations_of(patch: Node) -> list[Operation] | None:
    """The operations of a JSON patch; None for a text that is none."""
    found = []
    for element in patch.elements():
        path, origin = element.get("path").text, element.get("from").text
        if not element.is_mapping or path is None or element.get("op").text is None:
            return None
        steps, source = _steps(path), _steps(origin or "")
        if steps is None or source is None:
            return None
        found.append(Operation(str(element.get("op").word), steps, element.get("value"), source))
    return found or None


def _steps(path: str) -> tuple[str, ...] | None:
    if path == "":
        return ()
    steps = path.split("/", _MOST_STEPS + 1)
    if not path.startswith("/") or len(steps) > _MOST_STEPS:
        return None
    return tuple(step.replace("~1", "/").replace("~0", "~") for step in steps[1:])


def apply_operations(node: Node, operations: Iterable[Operation], budget: Budget) -> Node | None:
    """A node after the operations; None where one of them has nothing to work on."""
    for operation in operations:
        value = operation.value
        if operation.op in ("copy", "move"):
            value = node.get(*_typed(node, operation.origin))
            if not value:
                return None
            if operation.op == "move":
                moved = _set(node, operation.origin, ABSENT, "remove", budget)
                if moved is None:
                    return None
                node = moved
        elif operation.op == "test":
            continue
        op = "remove" if operation.op == "remove" else operation.op
        changed = _set(node, operation.path, value, op, budget)
        if changed is None:
            return None
        node = changed
    return node


def _typed(node: Node, path: tuple[str, ...]) -> list[str | int]:
    """A path with numbers where the way leads through lists."""
    typed: list[str | int] = []
    for step in path:
        here: str | int = step
        if node.is_sequence:
            here = int(step) if step.isascii() and step.isdigit() and len(step) < 10 else -1 << 30
        typed.append(here)
        node = node.child(here)
    return typed


def _set(node: Node, path: tuple[str, ...], value: Node, op: str, budget: Budget) -> Node | None:
    if not path:
        return value if op != "remove" else None
    step, rest = path[0], path[1:]
    if node.is_mapping:
        budget.take(1 + len(list(node.items())))
        if rest:
            child = _set(node.child(step), rest, value, op, budget) if node.child(step) else None
            return None if child is None else with_entry(node, step, child)
        if op in ("remove", "replace") and not node.child(step) and node.key(step) is None:
            return None
        return with_entry(node, step, ABSENT if op == "remove" else value)
    if not node.is_sequence:
        return None
    children = list(node.elements())
    budget.take(1 + len(children))
    if step == "-":
        index = len(children)
    elif step.isascii() and step.isdigit() and len(step) < 10:
        index = int(step)
    else:
        return None
    if rest:
        if index >= len(children):
            return None
        child = _set(children[index], rest, value, op, budget)
        if child is None:
            return None
        children[index] = child
    elif op in ("add", "copy", "move"):
        if index > len(children):
            return None
        children.insert(index, value)
    elif index >= len(children):
        return None
    elif op == "remove":
        del children[index]
    else:
        children[index] = value
    return sequence_node(children, node.span)


def with_entry(node: Node, key: str, child: Node) -> Mapping:
    """A mapping with one entry set in its place, or taken away where it is absent."""
    entries = [(name, child if name == key else value) for name, value in node.items()]
    if node.key(key) is None:
        entries.append((Word(key, child.span), child))
    return mapping_node(entries, node.span)
