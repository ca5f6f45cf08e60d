"""NVIDIA NIM: the operator's NIMService, NIMPipeline and NIMCache, and the NIM Helm chart's values.

Fields as in NVIDIA/k8s-nim-operator api/apps/v1alpha1 at f63f74d (August 2026).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.check.formats import Context, Format
from moesize.check.readers.made import made_mapping, made_scalar, made_sequence
from moesize.check.readers.pod_resources import cel_claims, dra_vendor, quantity, stated_bytes
from moesize.check.readers.pods import nim_model, other_nim, servers_of_container
from moesize.check.readers.resource_fields import (
    names_kind,
    overlaid,
    resource,
    title_of,
)
from moesize.check.server import GpuClaim, Reading, Server, Stated
from moesize.check.source import Word
from moesize.check.yaml_tree import ABSENT, Node

if TYPE_CHECKING:
    from collections.abc import Iterator

_GROUP = "apps.nvidia.com"
_REGISTRY = "/nim/"
_MOST_SERVICES = 64
_MOST_CLAIMS = 16


def _is_resource(document: Node) -> bool:
    return names_kind(document, _GROUP, ("NIMService", "NIMPipeline", "NIMCache", "NIMBuild"))


def _read(document: Node, context: Context) -> Reading:
    kind = document.get("kind").word
    name = title_of(document, str(kind))
    if kind == "NIMService":
        return _reading(_servers(document.get("spec"), name, context))
    if kind == "NIMPipeline":
        return _read_pipeline(document, context)
    return _read_cache(document, name, what="build" if kind == "NIMBuild" else "cache")


def _reading(servers: list[Server]) -> Reading:
    return Reading(kind="nim", servers=servers, skipped="" if servers else "no NIM image is named")


def _read_pipeline(document: Node, context: Context) -> Reading:
    """Services that are enabled (`enabled` is optional: spec.services[].enabled)."""
    servers: list[Server] = []
    for service in document.get("spec", "services").elements()[:_MOST_SERVICES]:
        if service.get("enabled").boolean() is not False:
            name = service.get("name").text or title_of(document, "NIMPipeline")
            servers += _servers(service.get("spec"), name, context)
    return _reading(servers)


def _read_cache(document: Node, name: Word, *, what: str) -> Reading:
    """A cache serves nothing, but says which model it holds."""
    skipped = f"a NIM {what}: a NIMService serves from it"
    server = Server(name=str(name), place=name, engine="nim", skipped=skipped)
    server.model = _cached_model(document.get("spec", "source"))
    return Reading(kind="nim", servers=[server], skipped=skipped)


def _cached_model(source: Node) -> Word | None:
    """The model of a cache: the hub's, a registry address, or that of the image that pulls it."""
    for kind in ("hf", "dataStore"):
        given = source.get(kind, "modelName").text
        if given is not None:
            owner = source.get(kind, "namespace").word
            return given.becomes(f"{owner}/{given}") if owner and "/" not in given else given
    endpoint = source.get("ngc", "modelEndpoint").text
    if endpoint is not None:
        # ngc://nim/meta/llama-3.1-8b:profile
        scheme, found, _ = endpoint.partition("://")
        return endpoint.cut(len(scheme) + 3) if found else endpoint
    puller = source.get("ngc", "modelPuller").text
    return nim_model(puller) or None if puller is not None else None


# --- services ---------------------------------------------------------------------------------


def _servers(spec: Node, name: Word, context: Context) -> list[Server]:
    """The server of a NIMService: its fields are those of a container and its pod."""
    image = spec.get("image", "repository")
    cache = _cache_of(spec, context)
    multi = spec.get("multiNode", "parallelism")
    probes = {
        kind: probe
        for kind in ("startupProbe", "livenessProbe")
        if (probe := spec.get(kind, "probe")) and spec.get(kind, "enabled").boolean() is not False
    }
    container = made_mapping(
        {
            "name": made_scalar(name),
            "image": image,
            "command": spec.get("command"),
            "args": spec.get("args"),
            "env": spec.get("env"),
            "resources": overlaid(spec.get("resources"), _claims_asked(spec)),
            **probes,
        }
    )
    pod = made_mapping(
        {
            "nodeSelector": spec.get("nodeSelector"),
            "affinity": spec.get("affinity"),
            "resourceClaims": _resource_claims(spec),
        }
    )
    servers = servers_of_container(
        container, pod, context, kind="nim", nodes=_nodes(multi), engine="nim"
    )
    for server in servers:
        _complete(server, spec, cache, multi)
    return servers


def _complete(server: Server, spec: Node, cache: Node, multi: Node) -> None:
    """What the operator adds to the container."""
    image, tag = spec.get("image", "repository").text, spec.get("image", "tag").text
    if image is not None and tag is not None and server.image is image:
        server.image = image.becomes(f"{image}:{tag}")
    server.shm = stated_bytes(spec.get("storage", "sharedMemorySizeLimit"))
    server.shm_is_default = False
    if server.model is None:
        server.model = _cached_model(cache.get("spec", "source"))
        server.skipped = server.skipped or other_nim(str(server.model or ""))
    words = list(server.words)
    for key, flag in (
        ("tensor", "--tensor-parallel-size"),
        ("pipeline", "--pipeline-parallel-size"),
    ):
        if multi.get(key).integer() is not None:
            words += [Word(flag, multi.get(key).span), multi.get(key).word]
    server.words = tuple(words)
    if not server.gpus and server.gpus_per_node is None:
        _devices(server, spec)
    if server.gpus_per_node is None:
        # The operator asks for as many as the cached profile shards the model over.
        asked = cache.get("spec", "source", "ngc", "model", "tensorParallelism")
        number = asked.integer()
        if number is not None and 0 < number <= 1000:
            server.gpus_per_node = Stated(number, asked.word)
    server.vendor = server.vendor or "nvidia"


def _nodes(multi: Node) -> Stated[int] | None:
    """Pods of a multi-node service: as many as pipeline stages (GetLWSSize)."""
    number = multi.get("pipeline").integer()
    if number is None or not 1 < number <= 1000:
        return None
    return Stated(number, multi.get("pipeline").word)


def _cache_of(spec: Node, context: Context) -> Node:
    name = spec.get("storage", "nimCache", "name").word
    return resource(context, _GROUP, "NIMCache", name) if name else ABSENT


def _resource_claims(spec: Node) -> Node:
    """`draResources` that name a claim, as a pod names it."""
    claims = []
    for number, dra in enumerate(spec.get("draResources").elements()[:_MOST_CLAIMS]):
        named = {
            key: dra.get(key)
            for key in ("resourceClaimName", "resourceClaimTemplateName")
            if dra.get(key)
        }
        if named:
            claims.append(made_mapping({"name": made_scalar(Word(f"claim-{number}")), **named}))
    return made_sequence(claims) if claims else ABSENT


def _claims_asked(spec: Node) -> Node:
    names = [claim.get("name") for claim in _resource_claims(spec).elements()]
    if not names:
        return ABSENT
    return made_mapping({"claims": made_sequence(made_mapping({"name": name}) for name in names)})


def _devices(server: Server, spec: Node) -> None:
    """`draResources[].claimCreationSpec`: devices that the operator writes the claim for."""
    total = 0
    at: Word | None = None
    for device in _created(spec):
        count = device.get("count")
        number = count.integer() if count else 1
        if number is None or not 0 < number <= 1000:
            return
        total += number
        at = at or (count.word if count else device.get("name").word)
        server.vendor = server.vendor or dra_vendor(device.get("deviceClassName").word)
        server.gpus += tuple(_device_claims(device))
    if at is not None:
        server.gpus_per_node = Stated(total, at)


def _created(spec: Node) -> Iterator[Node]:
    for dra in spec.get("draResources").elements()[:_MOST_CLAIMS]:
        yield from dra.get("claimCreationSpec", "devices").elements()[:_MOST_CLAIMS]


def _device_claims(device: Node) -> list[GpuClaim]:
    found = cel_claims(device.get("celExpressions").words()[:_MOST_CLAIMS])
    for selector in device.get("attributeSelectors").elements()[:_MOST_CLAIMS]:
        key = selector.get("key").word.rpartition("/")[2]
        value = selector.get("value", "stringValue").text
        if key == "productName" and value and selector.get("op").word in ("", "Equal"):
            found.append(GpuClaim(value, "draResources", "driver"))
    if not found:
        for selector in device.get("capacitySelectors").elements()[:_MOST_CLAIMS]:
            value = selector.get("value").text
            size = quantity(value) if value is not None else None
            if value is None or selector.get("key").word != "memory":
                continue
            if size and selector.get("op").word in ("Equal", "GreaterThanOrEqual", "GreaterThan"):
                found.append(GpuClaim(value.becomes(f"{int(size) >> 20}MiB"), "draResources"))
    return found[:_MOST_CLAIMS]


# --- chart values -----------------------------------------------------------------------------


def _is_values(document: Node) -> bool:
    return not document.get("kind") and any(True for _ in _charts(document))


def _charts(document: Node) -> Iterator[tuple[Word, Node]]:
    """The values themselves, and those of subcharts, that run a NIM image."""
    if _runs_nim(document):
        key = document.get("image").get("repository").word
        yield key, document
        return
    for count, (key, value) in enumerate(document.items()):
        if count >= 500:
            return
        if value.get("enabled").boolean() is not False and _runs_nim(value):
            yield key, value


def _runs_nim(values: Node) -> bool:
    repository = values.get("image", "repository").text
    if repository is None or not ("/" + repository).count(_REGISTRY):
        return False
    return nim_model(repository) is not None


def _read_values(document: Node, context: Context) -> Reading:
    servers: list[Server] = []
    for key, values in _charts(document):
        if len(servers) < _MOST_SERVICES:
            servers += _chart_servers(values, key, context)
    return _reading(servers)


def _chart_servers(values: Node, name: Word, context: Context) -> list[Server]:
    """nim-llm's values.yaml: a container and its pod in the usual keys of charts."""
    container = made_mapping(
        {
            "name": made_scalar(name),
            "image": values.get("image", "repository"),
            "command": values.get("customCommand"),
            "args": values.get("customArgs"),
            "env": values.get("env"),
            "resources": values.get("resources"),
            **{
                kind: values.get(kind)
                for kind in ("startupProbe", "livenessProbe")
                if values.get(kind, "enabled").boolean() is not False
            },
        }
    )
    pod = made_mapping(
        {"nodeSelector": values.get("nodeSelector"), "affinity": values.get("affinity")}
    )
    multi = values.get("multiNode")
    on = multi.get("enabled").boolean() is True
    nodes = None
    if on:
        workers = multi.get("workers").integer()
        if workers is not None and 0 < workers <= 1000:
            nodes = Stated(workers, multi.get("workers").word)
    servers = servers_of_container(container, pod, context, kind="nim", nodes=nodes, engine="nim")
    for server in servers:
        image, tag = values.get("image", "repository").text, values.get("image", "tag").text
        if image is not None and tag is not None and server.image is image:
            server.image = image.becomes(f"{image}:{tag}")
        server.shm_is_default = False
        each = multi.get("gpusPerNode").integer()
        if on and each is not None and 0 < each <= 1000:
            server.gpus_per_node = Stated(each, multi.get("gpusPerNode").word)
        if server.model is None:
            server.model = values.get("model", "name").text
    return servers


FORMATS = [Format("nim", _is_resource, _read), Format("nim", _is_values, _read_values)]
