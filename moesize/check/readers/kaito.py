"""KAITO: Workspace, InferenceSet, MultiRoleInference; what KAITO itself adds to vLLM's flags.

What the operator decides was read in kaito-project/kaito at 056b828 (August 2026):
pkg/model/interface.go (flags), pkg/workspace/inference/preset_inferences.go (max-model-len),
pkg/workspace/estimator (machines), presets/workspace/inference/vllm/inference_api.py (the config
file, whose flags come last and win).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from moesize.check.formats import Context, Format
from moesize.check.readers.made import made_mapping
from moesize.check.readers.pod_resources import gpu_claims
from moesize.check.readers.pods import servers_of_pod
from moesize.check.readers.resource_fields import (
    config_map,
    find_match,
    flag_words,
    gpu_id,
    gpus_of_machine,
    is_open_word,
    names_kind,
    options_in,
    title_of,
    value_of,
)
from moesize.check.server import GpuClaim, Reading, Server, Stated, Unresolved
from moesize.check.source import Word
from moesize.check.yaml_tree import ABSENT, Node

if TYPE_CHECKING:
    from collections.abc import Sequence

_GROUP = "kaito.sh"
_KINDS = ("Workspace", "InferenceSet", "MultiRoleInference", "RAGEngine", "ModelMirror")
_RUNTIME = "kaito.sh/runtime"
_CONFIG = "inference_config.yaml"
# --gpu-memory-utilization unless the config file says one (pkg/model/interface.go).
_UTILIZATION = "0.84"
_UTILIZATION_OF = {"a10": "0.82"}
# Presets whose names are not the last part of a hub id (supported_models.yaml).
_PRESETS = {
    "mistral-7b": "mistralai/Mistral-7B-v0.3",
    "mistral-7b-instruct": "mistralai/Mistral-7B-Instruct-v0.3",
    "ministral-3-3b-instruct": "mistralai/Ministral-3-3B-Instruct-2512",
    "ministral-3-8b-instruct": "mistralai/Ministral-3-8B-Instruct-2512",
    "ministral-3-14b-instruct": "mistralai/Ministral-3-14B-Instruct-2512",
    "mistral-large-3-675b-instruct": "mistralai/Mistral-Large-3-675B-Instruct-2512",
    "gemma-3-4b-instruct": "google/gemma-3-4b-it",
    "gemma-3-27b-instruct": "google/gemma-3-27b-it",
}
# kaito-project/kaito#2156 (June 2026), after #2132, where the estimate was too high.
_OWN_ESTIMATE = "KAITO before 0.11 estimates --max-model-len itself, and may ask for more than fits"
_MOST_ROLES = 16


def _is_kaito(document: Node) -> bool:
    return names_kind(document, _GROUP, _KINDS)


def _read(document: Node, context: Context) -> Reading:
    kind = document.get("kind").word
    if kind == "MultiRoleInference":
        return _read_roles(document, context)
    if kind == "RAGEngine":
        return Reading(kind="kaito", skipped="a RAG engine: it embeds, and asks a model elsewhere")
    if kind == "ModelMirror":
        return Reading(kind="kaito", skipped="copies a model, serves none")
    body = document.get("spec", "template") if kind == "InferenceSet" else document
    inference = body.get("inference")
    if not inference.is_mapping:
        tuning = bool(body.get("tuning"))
        why = "a fine-tuning job, no model server" if tuning else "no inference is described"
        return Reading(kind="kaito", skipped=why)
    name = title_of(document, str(kind))
    template = inference.get("template")
    if template.is_mapping:
        return _read_template(template, body.get("resource"), name, context)
    preset = inference.get("preset", "name").word
    if not preset:
        return Reading(kind="kaito", skipped="no model preset is named")
    server = Server(name=str(name), place=name)
    wanted = document.get("metadata", "annotations").get(_RUNTIME).word
    _fill(
        server,
        preset,
        _machines(body.get("resource")),
        inference.get("config").word,
        context,
        runtime=wanted or "vllm",
        adapters=inference.get("adapters"),
    )
    return Reading(kind="kaito", servers=[server])


def _read_roles(document: Node, context: Context) -> Reading:
    """Prefill and decode, each on machines of its own."""
    spec = document.get("spec")
    model = spec.get("model", "name").word
    name = title_of(document, "MultiRoleInference")
    servers: list[Server] = []
    for role in spec.get("roles").elements()[:_MOST_ROLES]:
        kind = role.get("type").word
        server = Server(name=f"{name}/{kind}" if kind else str(name), place=kind or name)
        config = role.get("runtimeConfig").word
        _fill(server, model, _machines(role), config, context)
        servers.append(server)
    if not servers or not model:
        return Reading(kind="kaito", skipped="no roles or no model are named")
    return Reading(kind="kaito", servers=servers)


def _read_template(template: Node, resource: Node, name: Word, context: Context) -> Reading:
    """A pod template instead of a preset: the pod's own command, on KAITO's machines."""
    machines = _machines(resource)
    servers = servers_of_pod(
        template.get("spec"),
        context,
        kind="kaito",
        nodes=machines.nodes,
        labels=template.get("metadata", "labels"),
        owner=str(name),
    )
    for server in servers:
        server.gpus = server.gpus or machines.claims
        server.gpus_per_node = server.gpus_per_node or machines.each
    skipped = "" if servers else "no model server in the pod template"
    return Reading(kind="kaito", servers=servers, skipped=skipped)


# --- machines ---------------------------------------------------------------------------------


class _Machines(NamedTuple):
    """What a resource asks for: `each` is stated only where it is not the whole machine."""

    claims: tuple[GpuClaim, ...] = ()
    each: Stated[int] | None = None
    nodes: Stated[int] | None = None


def _machines(resource: Node) -> _Machines:
    claims: tuple[GpuClaim, ...] = ()
    machine = resource.get("instanceType").word
    if not is_open_word(machine):
        claims = (GpuClaim(machine, "instanceType", "instance"),)
    else:
        labels = resource.get("labelSelector", "matchLabels")
        claims = gpu_claims(_as_pod(labels))
    each: Stated[int] | None = None
    partition = resource.get("partition")
    profile, wanted = partition.get("profile").word, partition.get("count").integer()
    if partition.get("mode").word == "mig" and profile:
        claims, each = (_of_partition(profile, claims),), Stated(1, profile)
    elif partition.get("mode").word == "accelerator" and wanted is not None and 0 < wanted < 1000:
        each = Stated(wanted, partition.get("count").word)
    return _Machines(claims, each, _count(resource))


def _as_pod(labels: Node) -> Node:
    return made_mapping({"nodeSelector": labels})


def _of_partition(profile: Word, claims: Sequence[GpuClaim]) -> GpuClaim:
    """A MIG profile of the machine's GPU, or of whichever GPU has it."""
    for claim in claims:
        parent = gpu_id(claim.text)
        if parent is not None and gpu_id(f"{parent}:{profile}") is not None:
            return GpuClaim(profile.becomes(f"{parent}:{profile}"), "partition", "kubernetes")
    return GpuClaim(profile, "partition", "kubernetes")


def _count(resource: Node) -> Stated[int] | None:
    for key in ("count", "instanceCount"):
        number = resource.get(key).integer()
        if number is not None and 0 < number <= 1000:
            return Stated(number, resource.get(key).word)
    return None


# --- flags ------------------------------------------------------------------------------------


def _fill(
    server: Server,
    preset: Word,
    machines: _Machines,
    config: Word,
    context: Context,
    *,
    runtime: str = "vllm",
    adapters: Node = ABSENT,
) -> None:
    """Model, machines and flags of a preset."""
    server.model = preset.becomes(_PRESETS.get(preset.lower(), str(preset)))
    server.gpus, server.gpus_per_node = machines.claims, machines.each
    server.nodes = machines.nodes
    server.vendor = "nvidia" if machines.each is not None else ""
    if runtime != "vllm":
        server.engine = "transformers" if runtime == "transformers" else None
        server.notes = (f"KAITO runs it with {runtime[:40]}",)
        return
    server.engine = "vllm"
    written = _written(server, config, context)
    added = _added(server, machines, written)
    if adapters.elements():
        added.append(Word("--enable-lora", adapters.span))
    server.words = (*added, *written)


def _written(server: Server, config: Word, context: Context) -> list[Word]:
    """The flags of the ConfigMap that `inference.config` names."""
    if not config:
        return []
    text = config_map(config, context).get(_CONFIG)
    if not text:
        server.unresolved += (Unresolved(f"ConfigMap {config[:80]}", config),)
        return []
    return flag_words(options_in(text).get("vllm"), "vllm")


def _added(server: Server, machines: _Machines, written: list[Word]) -> list[Word]:
    """Flags that KAITO sets where the config file does not, and a note that says so."""
    words: list[Word] = []
    claim = machines.claims[0] if machines.claims else None
    count = machines.each.value if machines.each else None
    if count is None and claim is not None and claim.kind == "instance":
        count = gpus_of_machine(claim.text)
    nodes = machines.nodes.value if machines.nodes else 1
    at = machines.each.at if machines.each else claim.text if claim is not None else server.place
    given = [
        name
        for name in ("--tensor-parallel-size", "-tp", "--data-parallel-size", "-dp")
        if value_of(written, name) is not None
    ]
    if count is not None and count > 1 and not given:
        alone = nodes == 1 and claim is not None and _fits_half(server.model, claim)
        flag = "--data-parallel-size" if alone else "--tensor-parallel-size"
        words += [Word(flag, at.span), Word(str(count), at.span)]
    if nodes > 1 and value_of(written, "--pipeline-parallel-size", "-pp") is None:
        pods = machines.nodes.at if machines.nodes else at
        words += [Word("--pipeline-parallel-size", pods.span), Word(str(nodes), pods.span)]
    if value_of(written, "--gpu-memory-utilization") is None:
        gpu = gpu_id(claim.text) if claim is not None else None
        words += [
            Word("--gpu-memory-utilization"),
            Word(_UTILIZATION_OF.get(gpu or "", _UTILIZATION)),
        ]
    if value_of(written, "--max-model-len") is None:
        words += [Word("--max-model-len"), Word("auto")]
        server.notes += (_OWN_ESTIMATE,)
    flags = [str(word) for word in words]
    if flags:
        server.notes += (f"KAITO adds {' '.join(flags)}",)
    if machines.nodes is None and machines.each is None:
        server.notes += ("judged on one machine: newer KAITO adds machines until the weights fit",)
    return words


def _fits_half(model: Word | None, claim: GpuClaim) -> bool:
    """Whether the files of a model are smaller than half of one GPU: then KAITO runs copies."""
    match, size = find_match(claim.text), _size_of_files(str(model or "")[:200])
    if match is None or size is None or match.spec.advertised_gb is None:
        return False
    return size * 2 < match.spec.advertised_gb << 30


@lru_cache(maxsize=256)
def _size_of_files(model: str) -> int | None:
    from moesize.core.checkpoint import stored_bytes
    from moesize.core.errors import MoesizeError
    from moesize.model_names import resolve_name, spec_of

    named = resolve_name(model)
    if named is None or named.words:
        return None
    try:
        return stored_bytes(spec_of(named.id))
    except MoesizeError:
        return None


FORMATS = [Format("kaito", _is_kaito, _read)]
