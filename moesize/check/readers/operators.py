"""Operators with few fields of their own: llmaz (OpenModel, Playground, Service).

Fields as in InftyAI/llmaz api/core/v1alpha1 and api/inference/v1alpha1 at 3c13ff3 (October 2025);
what its backends run, in chart/templates/backends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from moesize.check.formats import Context, Format
from moesize.check.readers.made import made_mapping
from moesize.check.readers.pod_resources import gpu_claims, gpu_request, stated_bytes
from moesize.check.readers.pods import environment_of, servers_of_pod
from moesize.check.readers.resource_fields import (
    gpu_id,
    names_kind,
    resource,
    title_of,
)
from moesize.check.server import GpuClaim, Reading, Server, Stated, Unresolved
from moesize.check.source import Word

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from moesize.check.yaml_tree import Node

_MODELS = "llmaz.io"
_SERVING = "inference.llmaz.io"
# backendName -> (our engine, the image that the backend runs).
_BACKENDS = {
    "vllm": ("vllm", "vllm/vllm-openai"),
    "sglang": ("sglang", "lmsysorg/sglang"),
    "tgi": ("tgi", "ghcr.io/huggingface/text-generation-inference"),
    "llamacpp": ("llama.cpp", "ghcr.io/ggml-org/llama.cpp"),
    "ollama": ("ollama", "ollama/ollama"),
    "tensorrt-llm": ("tensorrt-llm", "nvcr.io/nvidia/tensorrt-llm/release"),
    "tensorrtllm": ("tensorrt-llm", "nvcr.io/nvidia/tensorrt-llm/release"),
}
_MOST = 64


def _is_model(document: Node) -> bool:
    return names_kind(document, _MODELS, ("OpenModel",))


def _is_playground(document: Node) -> bool:
    return names_kind(document, _SERVING, ("Playground",))


def _is_service(document: Node) -> bool:
    return names_kind(document, _SERVING, ("Service", "BackendRuntime"))


class _Flavors(NamedTuple):
    """GPUs that a model may run on; `each` where all flavors ask for the same number."""

    claims: tuple[GpuClaim, ...] = ()
    each: Stated[int] | None = None
    vendor: str = ""


def _read_model(document: Node, context: Context) -> Reading:
    """A model alone serves nothing; a Playground or Service that claims it does."""
    name = title_of(document, "OpenModel")
    skipped = "a model definition: a Playground or Service serves it"
    server = Server(name=str(name), place=name, skipped=skipped)
    _name_model(server, document)
    _add_flavors(server, _flavors(document, ()))
    del context
    return Reading(kind="llmaz", servers=[server], skipped=skipped)


def _read_playground(document: Node, context: Context) -> Reading:
    spec = document.get("spec")
    name = title_of(document, "Playground")
    config = spec.get("backendRuntimeConfig") or spec.get("backendConfig")
    backend = config.get("backendName").word or config.get("name").word
    engine, repository = _BACKENDS.get(backend or "vllm", (None, ""))
    server = Server(name=str(name), place=name, engine=engine)
    if engine is None:
        server.skipped = f"the backend {backend[:40]!r} is not known"
    words = _claim_models(server, spec, context)
    server.words = (*words, *config.get("args").words())
    server.environment = environment_of(made_mapping({"env": config.get("envs")}), context)
    version = config.get("version").text
    if version is not None and repository:
        server.image = version.becomes(f"{repository}:{version}")
    asked = gpu_request(config.get("resources"))
    if asked.number is not None:
        server.gpus_per_node, server.vendor = asked.number, asked.vendor
    server.memory_limit = stated_bytes(config.get("resources", "limits", "memory"))
    server.shm = stated_bytes(config.get("sharedMemorySize"))
    return Reading(kind="llmaz", servers=[server])


def _read_service(document: Node, context: Context) -> Reading:
    """`workloadTemplate`: a LeaderWorkerSet of one's own."""
    if document.get("kind").word != "Service":
        return Reading(kind="llmaz", skipped="a backend: a Playground runs it")
    template = document.get("spec", "workloadTemplate")
    name = title_of(document, "Service")
    size = template.get("size").integer()
    nodes = Stated(size, template.get("size").word) if size and 1 < size <= 10_000 else None
    servers: list[Server] = []
    for key in ("leaderTemplate", "workerTemplate"):
        pod = template.get(key)
        servers = servers_of_pod(
            pod.get("spec"), context, kind="llmaz", nodes=nodes, owner=str(name)
        )
        servers = [server for server in servers if not server.skipped]
        if servers:
            break
    return Reading(kind="llmaz", servers=servers, skipped="" if servers else "no model server")


# --- models -----------------------------------------------------------------------------------


def _claimed(spec: Node) -> Iterator[tuple[Word, str]]:
    """(name, role) of the models that a resource claims."""
    one = spec.get("modelClaim", "modelName").text
    if one is not None:
        yield one, "main"
    for model in spec.get("modelClaims", "models").elements()[:_MOST]:
        if model.get("name").text is not None:
            yield model.get("name").word, model.get("role").word or "main"


def _claim_models(server: Server, spec: Node, context: Context) -> list[Word]:
    """The main model and its GPUs, and a draft model as flags."""
    wanted = [
        str(word)
        for key in ("modelClaim", "modelClaims")
        for word in spec.get(key, "inferenceFlavors").words()[:_MOST]
    ]
    words: list[Word] = []
    for name, role in list(_claimed(spec))[:_MOST]:
        model = resource(context, _MODELS, "OpenModel", str(name))
        if not model:
            server.unresolved += (Unresolved(f"OpenModel {name[:80]}", name),)
            continue
        if role == "main" and server.model is None:
            _name_model(server, model)
            words += _file_words(server, model)
            _add_flavors(server, _flavors(model, wanted))
        elif role == "draft" and server.engine == "vllm":
            draft = model.get("spec", "source", "modelHub", "modelID").text
            if draft is not None:
                # chart/templates/backends/vllm.yaml, speculative-decoding.
                words += [Word("--speculative-model", draft.span), draft]
                words += [Word("--num-speculative-tokens"), Word("5")]
    return words


def _name_model(server: Server, model: Node) -> None:
    source = model.get("spec", "source")
    server.model = source.get("modelHub", "modelID").text
    address = source.get("uri").text
    if server.model is None and address is not None:
        scheme, found, rest = address.partition("://")
        hub = scheme.lower() in ("ollama", "hf", "huggingface")
        server.model = address.cut(len(scheme) + 3) if found and hub and rest else address
        server.fallback_model = model.get("metadata", "name").text


def _file_words(server: Server, model: Node) -> list[Word]:
    """The GGUF file of a repository, which llama.cpp is started with."""
    file = model.get("spec", "source", "modelHub", "filename").text
    if file is None or server.engine != "llama.cpp":
        return []
    server.fallback_model, server.model = server.model, None
    return [Word("--model", file.span), file]


def _flavors(model: Node, wanted: Sequence[str]) -> _Flavors:
    """Kinds of GPU of the flavors: alternatives, of which the scheduler takes one."""
    spec = model.get("spec")
    nodes = spec.get("inferenceConfig", "flavors") or spec.get("inferenceFlavors")
    claims: list[GpuClaim] = []
    numbers: list[Stated[int]] = []
    vendor = ""
    for flavor in nodes.elements()[:_MOST]:
        name = flavor.get("name").word
        if wanted and name not in wanted:
            continue
        asked = gpu_request(flavor)
        number = asked.number.value if asked.number is not None else None
        vendor = vendor or asked.vendor
        if asked.number is not None:
            numbers.append(asked.number)
        found = gpu_claims(made_mapping({"nodeSelector": flavor.get("nodeSelector")}), asked.mig)
        if not found and name and gpu_id(name) is not None:
            found = (GpuClaim(name, "flavor"),)
        claims += [claim._replace(num_gpus=number) for claim in found]
    same = {stated.value for stated in numbers}
    return _Flavors(tuple(claims), numbers[0] if len(same) == 1 else None, vendor)


def _add_flavors(server: Server, flavors: _Flavors) -> None:
    server.gpus, server.vendor = flavors.claims, flavors.vendor
    server.gpus_per_node = flavors.each


FORMATS = [
    Format("llmaz", _is_model, _read_model),
    Format("llmaz", _is_playground, _read_playground),
    Format("llmaz", _is_service, _read_service),
]
