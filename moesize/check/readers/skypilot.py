"""SkyPilot tasks: `resources:` that name GPUs, and shell texts that start the server on them.

Written after the reference of the SkyPilot YAML (resources, envs, service) and of its environment
variables. Accelerators that are named beside each other are alternatives, of which SkyPilot takes
the cheapest that it can have: each must do. Where their numbers differ, the script sees another
$SKYPILOT_NUM_GPUS_PER_NODE with each, so every number is a server of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from moesize.check.formats import Context, Format
from moesize.check.installed import installed_version
from moesize.check.server import Deadline, GpuClaim, Reading, Server, Stated
from moesize.check.shell import launches_in
from moesize.check.source import Word
from moesize.check.yaml_tree import Node, Scalar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from moesize.check.shell import Launch

_FIELDS = frozenset(
    (
        "_metadata",
        "_policy",
        "config",
        "env",
        "envs",
        "event_callback",
        "experimental",
        "external_links",
        "file_mounts",
        "inputs",
        "job",
        "name",
        "num_nodes",
        "outputs",
        "pool",
        "resources",
        "run",
        "secrets",
        "service",
        "setup",
        "time_estimator",
        "volume_mounts",
        "volumes",
        "workdir",
    )
)
_RESOURCES = frozenset(
    (
        "accelerators",
        "any_of",
        "cloud",
        "cpus",
        "disk_size",
        "gpus",
        "image_id",
        "infra",
        "instance_type",
        "memory",
        "ordered",
        "ports",
        "region",
        "use_spot",
        "zone",
    )
)
# SkyPilot's names that mean something else, or one of several parts, elsewhere.
_CATALOGUE = {
    "a100": "A100-40GB",
    "v100": "V100-16GB",
    "rtx6000": "Quadro RTX 6000",
}
_READINESS_SECONDS = 1200  # constants.DEFAULT_INITIAL_DELAY_SECONDS of sky/serve
_MOST_ALTERNATIVES = 64
_MEMORY = re.compile(r"\d{1,4}gb\+?", re.IGNORECASE)
# Variables of a node that never decide over memory.
_PLACEHOLDERS = {
    "SKYPILOT_NODE_RANK": "0",
    "SKYPILOT_NODE_IPS": "10.0.0.1",
    "SKYPILOT_TASK_ID": "sky-task",
    "SKYPILOT_SERVE_REPLICA_ID": "1",
    "SKYPILOT_CLUSTER_INFO": "{}",
    "SKYPILOT_USER": "sky",
}


class _Alternative(NamedTuple):
    """One kind of machine: its GPU, and how many there are on a node."""

    claim: GpuClaim
    number: Stated[int] | None


def _is_skypilot(document: Node) -> bool:
    keys = {str(key) for key, _ in document.items()}
    if not keys or not keys <= _FIELDS:
        return False
    texts = [document.get(name) for name in ("run", "setup")]
    if not any(isinstance(node, Scalar) and node.text is not None for node in texts):
        return False
    resources = {str(key) for key, _ in document.get("resources").items()}
    return bool(resources & _RESOURCES) or len(keys & {"num_nodes", "file_mounts", "workdir"}) > 0


def _read(document: Node, context: Context) -> Reading:
    reading = Reading(kind="skypilot")
    groups = _by_number(_alternatives(document.get("resources")))
    for group in groups:
        reading.servers += _servers(document, context, group, several=len(groups) > 1)
    if not reading.servers:
        reading.skipped = "the task starts no model server"
    return reading


# --- accelerators -----------------------------------------------------------------------------


def _alternatives(resources: Node) -> Iterator[_Alternative]:
    """Every kind of machine that the task may run on."""
    blocks = [*resources.get("any_of").elements(), *resources.get("ordered").elements()]
    found = 0
    for block in blocks or [resources]:
        # A block adds to what stands beside the list.
        has_own = _accelerators(block) or block.get("instance_type")
        for alternative in _of_block(block if has_own else resources):
            found += 1
            if found > _MOST_ALTERNATIVES:
                return
            yield alternative


def _accelerators(block: Node) -> Node:
    return block.get("accelerators") or block.get("gpus")


def _of_block(block: Node) -> Iterator[_Alternative]:
    node = _accelerators(block)
    if node.is_mapping:
        # {H100: 8}; and {H100:8, A100:8}, which YAML reads as keys without values.
        for key, value in node.items():
            yield _named(key, value.word if value.text is not None else None)
    elif node:
        for word in node.words():
            yield _named(word, None)
    else:
        machine = block.get("instance_type").text
        if machine:
            claim = GpuClaim(machine, "instance_type", "instance")
            yield _Alternative(claim, None)


def _named(text: Word, number: Word | None) -> _Alternative:
    """`A100:8`, `A100` (one), or a name and its number."""
    name, colon, _ = text.partition(":")
    if name.strip().lower() in ("nvidia", "amd") and colon:
        # `nvidia:80GB+:2`: any GPU of that maker with so much memory.
        start = len(name) + 1
        return _named(text.cut(start), number)
    if colon and number is None:
        number = text.cut(len(name) + 1)
    name_word = text.cut(0, len(name))
    claim_word = name_word.becomes(_CATALOGUE.get(name.strip().lower(), str(name_word)))
    if _MEMORY.fullmatch(name.strip()):
        claim_word = name_word.becomes(name.strip().rstrip("+"))
    count = 1
    if number is not None:
        stated = number.strip()
        count = int(stated) if stated.isascii() and stated.isdigit() and len(stated) < 4 else 1
    claim = GpuClaim(claim_word, "accelerators", "typed", count)
    # A name alone is one GPU; it is no number that could be changed.
    at = number if number is not None else Word(name_word, name_word.span)
    return _Alternative(claim, Stated(count, at))


def _by_number(alternatives: Iterable[_Alternative]) -> list[list[_Alternative]]:
    """Alternatives with the same number of GPUs together; one empty group where there are none."""
    groups: dict[int | None, list[_Alternative]] = {}
    for each in alternatives:
        group = groups.setdefault(each.number.value if each.number else None, [])
        if each.claim.text not in [known.claim.text for known in group]:
            group.append(each)
    return list(groups.values()) or [[]]


# --- servers ----------------------------------------------------------------------------------


def _installed(document: Node, engine: str) -> Word | None:
    """The release that setup or run installs."""
    for name in ("run", "setup"):
        script = document.get(name)
        if isinstance(script, Scalar):
            found = installed_version(script.source_text(), engine)
            if found is not None:
                return found
    return None


def _servers(
    document: Node, context: Context, group: list[_Alternative], *, several: bool
) -> Iterator[Server]:
    number = next((each.number for each in group if each.number is not None), None)
    nodes = _nodes(document)
    environment = _environment(document, context, number, nodes)
    launches: list[Launch] = []
    for name in ("run", "setup"):
        script = document.get(name)
        if isinstance(script, Scalar) and not launches:
            launches = launches_in(
                script.source_text(), environment, fixed=tuple(context.variables)
            )
    title = document.get("name").text
    image = document.get("resources", "image_id").text
    image = image.cut(7) if image is not None and image.startswith("docker:") else None
    beside = Counter(launch.round for launch in launches)
    for position, launch in enumerate(launches, 1):
        shared = ""
        if beside[launch.round] > 1:
            place = launches[0].place.span
            shared = f"skypilot:{context.path}:{place.line if place else 0}:{launch.round}"
        name = str(title or launch.engine)
        name += f" ({number.value} GPUs)" if several and number is not None else ""
        server = Server(
            name=name if len(launches) == 1 else f"{name} #{position}",
            place=launch.place,
            engine=launch.engine,
            words=launch.words,
            environment=dict(launch.environment),
            image=launch.image or image,
            version=_installed(document, launch.engine),
            gpus=tuple(each.claim for each in group),
            gpus_per_node=number,
            nodes=nodes,
            device_ids=launch.devices,
            shares_with=shared,
            exclusive=shared if launch.alternative else "",
            deadlines=_deadlines(document),
            unresolved=launch.unresolved,
        )
        if shared and launch.visible:
            # Its part of the machine, whose number the claims state.
            server.gpus_per_node = Stated(launch.visible, launch.place)
            server.gpus = tuple(claim._replace(num_gpus=None) for claim in server.gpus)
        yield server


def _nodes(document: Node) -> Stated[int] | None:
    node = document.get("num_nodes")
    number = node.integer()
    return Stated(number, node.word) if number is not None and 0 < number < 10_000 else None


def _environment(
    document: Node, context: Context, number: Stated[int] | None, nodes: Stated[int] | None
) -> dict[str, Word]:
    found = {name: Word(value) for name, value in _PLACEHOLDERS.items()}
    if number is not None:
        found["SKYPILOT_NUM_GPUS_PER_NODE"] = number.at.becomes(str(number.value))
    found["SKYPILOT_NUM_NODES"] = Word("1") if nodes is None else nodes.at
    for section in ("envs", "env", "secrets"):
        for key, value in document.get(section).items():
            if value.text is not None:
                found[str(key)] = value.word
    for name, text in context.variables.items():
        found[name] = found[name].becomes(text) if name in found else Word(text)
    return found


def _deadlines(document: Node) -> tuple[Deadline, ...]:
    """SkyServe ends a replica that is not ready in its initial delay."""
    service = document.get("service")
    if not service.is_mapping or not service.get("readiness_probe"):
        return ()
    node = service.get("readiness_probe", "initial_delay_seconds")
    seconds = node.integer()
    if seconds is not None and 0 < seconds < 10**9:
        return (Deadline(seconds, node.word, "readiness_probe"),)
    key = service.key("readiness_probe")
    at = Word("", key.span) if key is not None else Word("", service.span)
    return (Deadline(_READINESS_SECONDS, at, "readiness_probe"),)


FORMATS = [Format("skypilot", _is_skypilot, _read)]
