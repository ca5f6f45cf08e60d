"""NVIDIA Dynamo: DynamoGraphDeployment and its components, v1alpha1 and v1beta1.

Fields as in ai-dynamo/dynamo deploy/operator/api: v1alpha1 has `spec.services.<name>` with
`extraPodSpec.mainContainer` and `resources.limits.gpu`, v1beta1 `spec.components[]` with a
`podTemplate` whose container `main` is the server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.check.formats import Context, Format
from moesize.check.readers.engine_config import Options, words_of_options
from moesize.check.readers.made import made_mapping, made_scalar, made_sequence
from moesize.check.readers.pod_resources import stated_bytes
from moesize.check.readers.pods import servers_of_container
from moesize.check.readers.resource_fields import (
    known_flags,
    mounted_file,
    names_kind,
    options_in,
    overlaid,
    title_of,
    value_of,
    without_flag,
)
from moesize.check.server import Reading, Server, Stated
from moesize.check.source import SourceText, Word
from moesize.check.yaml_tree import ABSENT, Node

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_GROUP = "nvidia.com"
_KINDS = ("DynamoGraphDeployment", "DynamoComponentDeployment")
_ASKING = ("DynamoGraphDeploymentRequest",)
_OTHER = (
    "DynamoCheckpoint",
    "DynamoGraphDeploymentScalingAdapter",
    "DynamoModel",
    "DynamoWorkerMetadata",
)
# Components that hold no model (ComponentType in v1beta1/common.go and its older spellings).
_NO_SERVERS = ("frontend", "planner", "router", "epp", "processor", "operator", "gateway", "proxy")
_ENGINES = {"vllm": "vllm", "sglang": "sglang", "trtllm": "tensorrt-llm"}
# Files of options: flag -> whether what it says wins over the command line.
_FILES = {
    "vllm": {"--config": False},
    "sglang": {"--config": False},
    "tensorrt-llm": {
        "--extra-engine-args": True,
        "--extra-llm-api-options": True,
        "--config": True,
    },
}
_MOST_COMPONENTS = 100


def _is_dynamo(document: Node) -> bool:
    return names_kind(document, _GROUP, (*_KINDS, *_ASKING, *_OTHER))


def _read(document: Node, context: Context) -> Reading:
    kind = document.get("kind").word
    name = title_of(document, str(kind))
    spec = document.get("spec")
    if kind in _ASKING:
        return _read_request(spec, name)
    if kind in _OTHER:
        return Reading(kind="dynamo", skipped="no workers of its own")
    engine = _ENGINES.get(spec.get("backendFramework").word)
    servers: list[Server] = []
    components = _components(spec) if kind == "DynamoGraphDeployment" else [(name, spec)]
    for title, component in components:
        servers += _servers(title, component, spec, engine, context)
    skipped = "" if servers else "no worker whose engine is known"
    return Reading(kind="dynamo", servers=servers, skipped=skipped)


def _read_request(spec: Node, name: Word) -> Reading:
    """A request: Dynamo's profiler chooses the deployment."""
    skipped = "a request: Dynamo chooses workers and flags by itself"
    server = Server(name=str(name), place=name, skipped=skipped)
    server.engine = _ENGINES.get(spec.get("backend").word)
    server.model = spec.get("model").text or spec.get("modelName").text
    return Reading(kind="dynamo", servers=[server], skipped=skipped)


def _components(spec: Node) -> Iterator[tuple[Word, Node]]:
    for count, (key, component) in enumerate(spec.get("services").items()):
        if count < _MOST_COMPONENTS:
            yield key, component
    for component in spec.get("components").elements()[:_MOST_COMPONENTS]:
        yield component.get("name").word, component


def _servers(
    name: Word, component: Node, spec: Node, engine: str | None, context: Context
) -> list[Server]:
    role = component.get("type").word or component.get("componentType").word
    if role.lower() in _NO_SERVERS:
        return []
    container, pod = _container(component, name)
    if not container.is_mapping:
        return []
    shared = spec.get("envs").elements() + spec.get("env").elements()
    own = component.get("envs").elements()
    if component is spec:
        shared = []
    if shared or own:
        variables = [*shared, *own, *container.get("env").elements()]
        container = overlaid(container, made_mapping({"env": made_sequence(variables)}))
    servers = servers_of_container(
        container,
        pod,
        context,
        kind="dynamo",
        nodes=_nodes(component),
        owner=str(name),
        engine=engine,
        gpu_keys=("gpu",),
    )
    for server in servers:
        server.place = name
        _add_files(server, container, pod, context)
        server.fallback_model = server.fallback_model or value_of(
            server.words, "--served-model-name"
        )
        if server.engine is not None:
            server.words = known_flags(server.words, server.engine)
        server.shm = _shared_memory(component) or server.shm
        # Without a size, the operator mounts 8 GiB.
        server.shm_is_default = component.get("sharedMemory", "disabled").boolean() is True
    return servers


def _container(component: Node, name: Word) -> tuple[Node, Node]:
    """The worker's container and its pod, as Kubernetes would have them."""
    template = component.get("podTemplate", "spec")
    if template.is_mapping:
        containers = template.get("containers").elements()[:_MOST_COMPONENTS]
        for each in containers:
            if each.get("name").word == "main":
                return overlaid(each, made_mapping({"name": made_scalar(name)})), template
        return (containers[0] if len(containers) == 1 else ABSENT), template
    pod = component.get("extraPodSpec")
    main = pod.get("mainContainer")
    parts = [main, made_mapping({"name": made_scalar(name)})]
    for key in ("resources", "livenessProbe"):
        if component.get(key):
            parts.append(made_mapping({key: component.get(key)}))
    return overlaid(*parts), pod


def _nodes(component: Node) -> Stated[int] | None:
    node = component.get("multinode", "nodeCount")
    number = node.integer()
    return Stated(number, node.word) if number is not None and 1 < number <= 10_000 else None


def _shared_memory(component: Node) -> Stated[int] | None:
    return stated_bytes(component.get("sharedMemory", "size")) or stated_bytes(
        component.get("sharedMemorySize")
    )


# --- options ----------------------------------------------------------------------------------


def _add_files(server: Server, container: Node, pod: Node, context: Context) -> None:
    """Options that mounted files and JSON arguments hold, in the order in which they count."""
    engine = server.engine or ""
    for flag, wins in _FILES.get(engine, {}).items():
        path = value_of(server.words, flag)
        if path is None:
            continue
        options = options_in(mounted_file(str(path), container, pod, context))
        if not options:
            continue
        read = words_of_options(options, engine)
        rest = without_flag(server.words, flag)
        server.words = (*rest, *read.words) if wins else (*read.words, *rest)
        server.notes += read.notes
    if engine == "tensorrt-llm":
        _override(server)
        server.words = tuple(_dotted(server.words))


def _override(server: Server) -> None:
    """--override-engine-args '{"kv_cache_config": {...}}': applied last."""
    from moesize.check.yaml_tree import YamlError, parse_stream

    text = value_of(server.words, "--override-engine-args")
    if text is None:
        return
    try:
        documents = parse_stream(SourceText.of_word(text)).documents
    except YamlError:
        return
    read = words_of_options(documents[0], "tensorrt-llm") if documents else Options(())
    # Places inside the text are those of the text.
    found = [Word(word, text.span) for word in read.words]
    server.words = (*without_flag(server.words, "--override-engine-args"), *found)
    server.notes += read.notes


def _dotted(words: Iterable[Word]) -> Iterator[Word]:
    """--trtllm.kv_cache_config.free_gpu_memory_fraction 0.8: a key of the options as a flag."""
    for word in words:
        if not word.startswith("--trtllm."):
            yield word
            continue
        name, equals, _ = word.partition("=")
        key = name.rpartition(".")[2].replace("_", "-")
        yield word.becomes(f"--{key}")
        if equals:
            yield word.cut(len(name) + 1)


FORMATS = [Format("dynamo", _is_dynamo, _read)]
