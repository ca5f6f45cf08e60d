"""Containers of pods: what all Kubernetes kinds share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moesize.check.formats import Context
    from moesize.check.server import Server, Stated
    from moesize.check.yaml_tree import Node


def servers_of_pod(
    pod: Node,
    context: Context,
    *,
    kind: str,
    nodes: Stated[int] | None = None,
    extra_environment: dict[str, str] | None = None,
) -> list[Server]:
    """The model servers among the containers of a pod spec (`containers`, `volumes`, ...)."""
    raise NotImplementedError
