"""Values of Helm charts, wherever they stand: files, objects of Flux and Argo CD, subcharts.

Charts whose templates were read are told by their own keys (`helm_charts`); in the values of
others, model servers are searched for (`helm_search`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from moesize.check.folder import Folder, Library, inner_yaml
from moesize.check.formats import Context, Format
from moesize.check.readers import helm_charts as charts
from moesize.check.readers.helm_search import find_servers, is_other
from moesize.check.server import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from moesize.check.source import SourceText
    from moesize.check.yaml_tree import Node

_MOST = 32


# --- where values stand -----------------------------------------------------------------------


def _bodies(document: Node) -> Iterator[Node]:
    """Mappings of values: the document, or those inside an object of Flux, Argo CD or K3s."""
    found: list[Node] = []
    if document.get("apiVersion") and document.get("kind"):
        spec = document.get("spec")
        kind = document.get("kind").word
        if kind == "HelmRelease":
            found.append(spec.get("values"))
        elif kind == "Application":
            sources = [spec.get("source"), *spec.get("sources").elements()[:_MOST]]
            for source in sources:
                found.append(source.get("helm", "valuesObject"))
                found += inner_yaml(source.get("helm", "values"))[:1]
        elif kind == "HelmChart":
            found += inner_yaml(spec.get("valuesContent"))[:1]
    elif document.is_mapping and not is_other(document):
        found.append(document)
    for body in found:
        if body.is_mapping:
            yield body


def _with_subcharts(document: Node) -> Iterator[Node]:
    """Values, and those one key deeper: charts that depend on a chart pass them under its name."""
    for body in _bodies(document):
        yield body
        for _, inner in list(body.items())[:_MOST]:
            if inner.is_mapping:
                yield inner


# --- formats ----------------------------------------------------------------------------------


def _known(
    matches: Callable[[Node], bool], read: Callable[[Node, Context], Reading]
) -> tuple[Callable[[Node], bool], Callable[[Node, Context], Reading]]:
    """A chart wherever its values stand."""

    def has(document: Node) -> bool:
        return any(matches(body) for body in _with_subcharts(document))

    def read_all(document: Node, context: Context) -> Reading:
        readings = [read(body, context) for body in _with_subcharts(document) if matches(body)]
        first = readings[0]
        for other in readings[1:]:
            first.servers += other.servers
            first.skipped = first.skipped and other.skipped
        return first

    return has, read_all


class _Nowhere(Folder):
    """A folder without files: what a document is does not depend on those beside it."""

    def __init__(self) -> None:
        here = Path()
        super().__init__(here, here, Library(here))

    def read(self, name: str) -> SourceText | None:
        """Nothing."""
        del name
        return None

    def yaml(self, name: str) -> list[Node]:
        """Nothing."""
        del name
        return []

    def siblings(self) -> Iterator[Node]:
        """Nothing."""
        return iter(())


def _is_generic(document: Node) -> bool:
    context = Context(path="", folder=_Nowhere())
    return any(find_servers(body, context) for body in _bodies(document))


def _read_generic(document: Node, context: Context) -> Reading:
    reading = Reading(kind="custom_helm_values")
    for body in _bodies(document):
        reading.servers += find_servers(body, context)
    if any(server.engine == "tgi" for server in reading.servers):
        reading.kind = "tgi_helm"
    if not reading.servers:
        reading.skipped = "names no model server"
    elif all(server.skipped for server in reading.servers):
        reading.skipped = reading.servers[0].skipped
    return reading


FORMATS = [
    Format(
        "production_stack_helm",
        *_known(charts.is_production_stack, charts.read_production_stack),
    ),
    Format("llmd_modelservice_helm", *_known(charts.is_modelservice, charts.read_modelservice)),
    Format("llmd_modelservice_helm", *_known(charts.is_deployer, charts.read_deployer)),
    Format("llmd_modelservice_helm", charts.is_model_service, charts.read_model_service),
    Format("ollama", *_known(charts.is_ollama_chart, charts.read_ollama)),
    Format("custom_helm_values", _is_generic, _read_generic),
]
