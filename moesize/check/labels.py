"""GPUs by the labels of node pools, as the configuration maps them (`[gpu.labels]`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from moesize.check.server import GpuClaim
from moesize.check.source import Word

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from moesize.check.server import Server
    from moesize.check.yaml_tree import Node

_MOST_VISITED = 50_000


class _Labelled(NamedTuple):
    """A selector that the configuration knows, and the lines of the mapping that it is for."""

    claim: GpuClaim
    first: int
    last: int


def claim_by_labels(
    servers: Sequence[Server], documents: Sequence[Node], labels: Mapping[str, str]
) -> None:
    """Give servers without a GPU the one that the selector of their pod stands for."""
    waiting = [server for server in servers if not server.gpus and server.place.span is not None]
    if not labels or not waiting:
        return
    found = [one for document in documents for one in _in_document(document, labels)]
    for server in waiting:
        assert server.place.span is not None
        line = server.place.span.line
        around = [one for one in found if one.first <= line <= one.last]
        if around:
            nearest = min(around, key=lambda one: one.last - one.first)
            server.gpus = (nearest.claim,)


def _in_document(document: Node, labels: Mapping[str, str]) -> Iterator[_Labelled]:
    """Selectors anywhere in a document; each is for the mapping that holds it."""
    seen: set[int] = set()
    waiting = [document]
    while waiting and len(seen) < _MOST_VISITED:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        claims = [*_selected(node.get("nodeSelector"), labels), *_by_affinity(node, labels)]
        if claims:
            first, last = _lines(node)
            yield from (_Labelled(claim, first, last) for claim in claims)
        waiting.extend(child for _, child in node.items())
        waiting.extend(node.elements())


def _selected(selector: Node, labels: Mapping[str, str]) -> Iterator[GpuClaim]:
    for key, value in selector.items():
        if value.text is not None:
            yield from _claim(key, value.text, labels)


def _by_affinity(node: Node, labels: Mapping[str, str]) -> Iterator[GpuClaim]:
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    terms = node.get("affinity", "nodeAffinity", required, "nodeSelectorTerms")
    for term in terms.elements():
        for expression in term.get("matchExpressions").elements():
            if expression.get("operator").word == "In":
                for value in expression.get("values").words():
                    yield from _claim(expression.get("key").word, value, labels)


def _claim(key: Word, value: Word, labels: Mapping[str, str]) -> Iterator[GpuClaim]:
    gpu = labels.get(f"{key}={value}")
    if gpu is not None:
        yield GpuClaim(text=Word(gpu, value.span), via=f"{key}={value}")


def _lines(node: Node) -> tuple[int, int]:
    """The first and last line that anything below a node begins on."""
    lines: list[int] = []
    seen: set[int] = set()
    waiting = [node]
    while waiting and len(seen) < _MOST_VISITED:
        here = waiting.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        if here.span is not None:
            lines += (here.span.line, here.span.end_line)
        for key, child in here.items():
            if key.span is not None:
                lines.append(key.span.line)
            waiting.append(child)
        waiting.extend(here.elements())
    return min(lines, default=0), max(lines, default=0)
