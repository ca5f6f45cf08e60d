"""Values of charts that are known: what their templates make of them, as pods.

Read in the charts' own templates: vllm-project/production-stack helm/ (a6c01db, 2026-08),
llm-d-incubation/llm-d-modelservice (2026-04), llm-d/llm-d-deployer (2025-06), otwld/ollama-helm.
A chart is not run; the pods that its templates would write are built as nodes, whose words keep
their places in the values file.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from moesize.check.readers.made import made_mapping, made_scalar, made_sequence, merged
from moesize.check.readers.pod_resources import cel_claims
from moesize.check.readers.pods import servers_of_pod
from moesize.check.server import GpuClaim, Reading, Server, Stated
from moesize.check.source import Word
from moesize.check.yaml_tree import ABSENT, Node, Scalar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moesize.check.formats import Context

_MOST = 200
_VALUE = re.compile(
    r"\{\{-?[ \t]{0,8}\.Values\.([A-Za-z0-9_.-]{1,200})[ \t]{0,8}"
    r"(?:\|[ \t]{0,8}quote[ \t]{0,8})?-?\}\}"
)


# --- templates inside values ------------------------------------------------------------------


def fill_values(word: Word, values: Node) -> Word:
    """`{{ .Values.a.b }}` in a value that the chart renders once more, from the same values.

    What the values do not say stays as it is.
    """
    if "{{" not in word or len(word) > 4_000:
        return word
    whole = _VALUE.fullmatch(word.strip().strip("\"'"))
    if whole is not None:
        return values.get(*whole[1].split(".")).text or word

    def known(match: re.Match[str]) -> str:
        found = values.get(*match[1].split(".")).text
        return match[0] if found is None or "{{" in found else str(found)

    filled = _VALUE.sub(known, word)
    return word.becomes(filled) if len(filled) < 8_000 else word


# --- production-stack -------------------------------------------------------------------------

# Keys of vllmConfig that the chart turns into flags, as it spells them.
_VLLM_CONFIG = {
    "maxModelLen": "--max-model-len",
    "dtype": "--dtype",
    "tensorParallelSize": "--tensor-parallel-size",
    "pipelineParallelSize": "--pipeline-parallel-size",
    "maxNumSeqs": "--max-num-seqs",
    "gpuMemoryUtilization": "--gpu-memory-utilization",
    "maxLoras": "--max-loras",
    "runner": "--runner",
    "convert": "--convert",
}
_VLLM_CONFIG_OTHER = (
    "enableChunkedPrefill",
    "enablePrefixCaching",
    "extraArgs",
    "prometheusMultiprocDir",
    "v0",
    "v1",
)
# The chart's own probes: (initialDelaySeconds, periodSeconds, failureThreshold).
_STACK_PROBES = {"startupProbe": ("15", "10", "60"), "livenessProbe": ("15", "10", "3")}
_STACK_SHM = "20Gi"


def is_production_stack(values: Node) -> bool:
    """Whether these are values of the vLLM production stack."""
    spec = values.get("servingEngineSpec")
    return spec.is_mapping and bool(spec.get("modelSpec").elements())


def read_production_stack(values: Node, context: Context) -> Reading:
    """One server per entry of `modelSpec`."""
    reading = Reading(kind="production_stack_helm")
    spec = values.get("servingEngineSpec")
    for model in spec.get("modelSpec").elements()[:_MOST]:
        if model.is_mapping:
            reading.servers += _stack_servers(model, spec, context)
    if spec.get("enableEngine").boolean() is False:
        reading.skipped = "servingEngineSpec.enableEngine is false"
        for server in reading.servers:
            server.skipped = reading.skipped
    elif not reading.servers:
        reading.skipped = "modelSpec names no model"
    elif all(server.skipped for server in reading.servers):
        reading.skipped = reading.servers[0].skipped
    return reading


def _stack_servers(model: Node, spec: Node, context: Context) -> list[Server]:
    ray = model.get("raySpec", "enabled").boolean() is True
    name = model.get("name").text or model.get("modelURL").text or Word("vllm", model.span)
    url = model.get("modelURL")
    config = model.get("vllmConfig")
    container = made_mapping(
        {
            "name": made_scalar(name),
            "image": _image(model.get("repository"), model.get("tag")),
            "command": made_sequence([made_scalar("vllm", name), made_scalar("serve", name), url]),
            "args": made_sequence(_stack_flags(model, config, ray=ray)),
            "env": made_sequence(_stack_environment(model, spec, config, ray=ray)),
            "resources": model.get("resources") or _stack_resources(model),
            "volumeMounts": made_sequence(
                [
                    *_stack_mounts(config, name),
                    *model.get("extraVolumeMounts").elements()[:_MOST],
                ]
            ),
            **({} if ray else _stack_probes(spec)),
        },
        at=name,
    )
    lmcache = model.get("lmcacheConfig")
    pod = made_mapping(
        {
            "containers": made_sequence([container]),
            "volumes": made_sequence(
                [
                    *_stack_volumes(model, config, name),
                    *model.get("extraVolumes").elements()[:_MOST],
                ]
            ),
            "affinity": model.get("affinity") or _terms(model.get("nodeSelectorTerms")),
            "nodeSelector": model.get("nodeSelector"),
            "hostIPC": lmcache.get("enablePD"),
        },
        at=name,
    )
    nodes = _stack_nodes(model, name) if ray else None
    servers = servers_of_pod(pod, context, kind="production_stack_helm", nodes=nodes)
    for server in servers:
        server.notes += _stack_notes(config, ray=ray)
        if not server.gpus:
            server.gpus = _hami_claims(model)
        if model.get("enabled").boolean() is False:
            server.skipped = "enabled is false"
        elif not url.word:
            server.skipped = "modelURL is empty"
    return servers


def _stack_flags(model: Node, config: Node, *, ray: bool) -> Iterator[Node]:
    """What the chart adds behind the model, in its order."""
    if model.get("enableLoRA").boolean():
        yield made_scalar("--enable-lora", model.key("enableLoRA"))
    chunked = config.get("enableChunkedPrefill")
    if chunked:
        on = "" if chunked.boolean() else "no-"
        yield made_scalar(f"--{on}enable-chunked-prefill", config.key("enableChunkedPrefill"))
    if config.get("enablePrefixCaching").boolean():
        yield made_scalar("--enable-prefix-caching", config.key("enablePrefixCaching"))
    elif config.is_mapping and not ray:
        key = config.key("enablePrefixCaching") or model.key("vllmConfig")
        yield made_scalar("--no-enable-prefix-caching", key)
    for name, flag in _VLLM_CONFIG.items():
        value = config.get(name)
        if value.text is None or (name == "pipelineParallelSize" and not ray):
            continue
        yield made_scalar(flag, config.key(name))
        yield value
    yield from config.get("extraArgs").elements()[:_MOST]
    if model.get("modelRevision").text:
        yield made_scalar("--revision", model.key("modelRevision"))
        yield model.get("modelRevision")
    lmcache = model.get("lmcacheConfig")
    if lmcache.get("enabled").boolean():
        key = model.key("lmcacheConfig")
        role = lmcache.get("kvRole").text or "kv_both"
        yield made_scalar("--kv-transfer-config", key)
        yield made_scalar(
            f'{{"kv_connector":"LMCacheConnectorV1","kv_role":"{role}"}}', lmcache.key("enabled")
        )


def _stack_environment(model: Node, spec: Node, config: Node, *, ray: bool) -> Iterator[Node]:
    for key, value in spec.get("configs").items():
        yield _variable(str(key), value)
    for switch, text in (("v1", None), ("v0", "0")):
        given = config.get(switch)
        if given.text is not None and (ray or switch == "v0"):
            if switch == "v0" and given.word != "1":
                continue
            yield _variable("VLLM_USE_V1", given if text is None else made_scalar(text, given.word))
    yield from spec.get("env").elements()[:_MOST]
    yield from model.get("env").elements()[:_MOST]
    visible = model.get("lmcacheConfig", "cudaVisibleDevices")
    if visible.text is not None:
        yield _variable("CUDA_VISIBLE_DEVICES", visible)


def _variable(name: str, value: Node) -> Node:
    return made_mapping({"name": made_scalar(name, value.text), "value": value})


def _stack_resources(model: Node) -> Node:
    """`requestGPU` and the limits of memory, as resources of a container."""
    count = model.get("requestGPU")
    kind = model.get("requestGPUType").text or Word("nvidia.com/gpu")
    keys = {str(kind): kind if kind.span else (model.key("requestGPU") or kind)}
    gpu = count if count.text is not None and count.integer() != 0 else ABSENT
    if gpu and not kind.span:
        keys[str(kind)] = Word(kind, keys[str(kind)].span)
    return made_mapping(
        {
            "limits": made_mapping({str(kind): gpu, "memory": model.get("limitMemory")}, keys=keys),
            "requests": made_mapping({"memory": model.get("requestMemory")}),
        }
    )


def _stack_mounts(config: Node, name: Word) -> list[Node]:
    """The chart mounts /dev/shm for servers whose tensor-parallel size is set."""
    if not config.get("tensorParallelSize"):
        return []
    return [
        made_mapping({"name": made_scalar("shm", name), "mountPath": made_scalar("/dev/shm", name)})
    ]


def _stack_volumes(model: Node, config: Node, name: Word) -> list[Node]:
    if not config.get("tensorParallelSize"):
        return []
    size = model.get("shmSize")
    stated = size if size.text is not None else made_scalar(_STACK_SHM, name)
    memory = made_mapping({"medium": made_scalar("Memory"), "sizeLimit": stated})
    return [made_mapping({"name": made_scalar("shm", name), "emptyDir": memory})]


def _stack_probes(spec: Node) -> dict[str, Node]:
    """Probes of the values over the chart's own; `null` takes a probe away."""
    found: dict[str, Node] = {}
    for name, defaults in _STACK_PROBES.items():
        given = spec.get(name)
        if isinstance(given, Scalar):
            continue
        fields = ("initialDelaySeconds", "periodSeconds", "failureThreshold")
        at = spec.key(name)
        own = made_mapping(
            {field: made_scalar(text, at) for field, text in zip(fields, defaults, strict=True)},
            at=at,
        )
        found[name] = merged(given, own) if given else own
    return found


def _terms(terms: Node) -> Node:
    if not terms.elements():
        return ABSENT
    required = made_mapping({"nodeSelectorTerms": terms})
    return made_mapping(
        {"nodeAffinity": made_mapping({"requiredDuringSchedulingIgnoredDuringExecution": required})}
    )


def _stack_nodes(model: Node, name: Word) -> Stated[int]:
    """Pods of a Ray cluster: `replicaCount` workers, and the head if it has GPUs."""
    workers = model.get("replicaCount")
    number = workers.integer()
    number = number if number is not None and 0 <= number < 10_000 else 1
    head = model.get("raySpec", "headNode")
    asked = head.get("requestGPU").integer() or 0
    limits = head.get("resources", "limits", "nvidia.com/gpu").integer() or 0
    at = workers.text or name
    return Stated(max(1, number + (1 if asked > 0 or limits > 0 else 0)), Word(at, at.span))


def _hami_claims(model: Node) -> tuple[GpuClaim, ...]:
    """A share of a GPU's memory, which HAMi grants in MiB."""
    for name in ("limitGPUMem", "requestGPUMem"):
        node = model.get(name)
        size = node.integer()
        if size is not None and 0 < size < 10**8:
            return (GpuClaim(node.word.becomes(f"{size}MiB"), name),)
    return ()


def _stack_notes(config: Node, *, ray: bool) -> tuple[str, ...]:
    """Keys that people write and the chart does not read."""
    known = {*_VLLM_CONFIG, *_VLLM_CONFIG_OTHER}
    ignored = [str(key)[:60] for key, _ in config.items() if str(key) not in known]
    if not ray and config.get("pipelineParallelSize"):
        ignored.append("pipelineParallelSize (without raySpec)")
    if not ignored:
        return ()
    return (f"the chart does not read vllmConfig.{', '.join(ignored[:10])}",)


# --- llm-d modelservice -----------------------------------------------------------------------

_ROLES = ("decode", "prefill")
_ACCELERATORS = {
    "nvidia": "nvidia.com/gpu",
    "intel-i915": "gpu.intel.com/i915",
    "intel-xe": "gpu.intel.com/xe",
    "intel-gaudi": "habana.ai/gaudi",
    "amd": "amd.com/gpu",
    "google": "google.com/tpu",
}
_MODEL_FOLDER = "/model-cache"
_SIMULATOR = "inference-sim"


def is_modelservice(values: Node) -> bool:
    """Whether these are values of the llm-d modelservice chart."""
    if not values.get("modelArtifacts").is_mapping:
        return False
    return any(values.get(role).is_mapping for role in (*_ROLES, "routing", "accelerator"))


def read_modelservice(values: Node, context: Context) -> Reading:
    """A server for decode and one for prefill."""
    reading = Reading(kind="llmd_modelservice_helm")
    for role in _ROLES:
        if values.get(role).is_mapping:
            reading.servers += _role_servers(values, role, context)
    return _with_reason(reading, "neither decode nor prefill starts a model server")


def _with_reason(reading: Reading, nothing: str) -> Reading:
    if not reading.servers:
        reading.skipped = nothing
    elif all(server.skipped for server in reading.servers):
        reading.skipped = reading.servers[0].skipped
    return reading


def _role_servers(values: Node, role: str, context: Context) -> list[Server]:
    part = values.get(role)
    size = _Parallelism(part.get("parallelism"), values.key(role))
    kind = (part.get("accelerator", "type").text or values.get("accelerator", "type").text) or Word(
        "nvidia"
    )
    dra = part.get("accelerator", "dra").boolean()
    dra = values.get("accelerator", "dra").boolean() if dra is None else dra
    containers = [
        _role_container(container, values, size, kind, dra=bool(dra))
        for container in part.get("containers").elements()[:_MOST]
        if container.is_mapping
    ]
    pod = merged(
        made_mapping(
            {
                "containers": made_sequence(containers),
                "volumes": part.get("volumes"),
                "nodeSelector": part.get("nodeSelector"),
                "affinity": part.get("affinity")
                or _accelerator_types(part.get("acceleratorTypes")),
                "hostIPC": part.get("hostIPC"),
            },
            at=values.key(role),
        ),
        part.get("extraConfig"),
    )
    nodes = None
    if values.get("multinode").boolean():
        nodes = size.workers
    servers = servers_of_pod(pod, context, kind="llmd_modelservice_helm", nodes=nodes, owner=role)
    name = values.get("modelArtifacts", "name").text
    for server in servers:
        server.fallback_model = server.fallback_model or name
        server.vendor = server.vendor or _vendor(kind)
        if dra and not server.gpus:
            server.gpus = _dra_claims(values, kind)
        server.skipped = server.skipped or _role_skipped(part, server)
    if not servers and any(
        _SIMULATOR in container.get("image").word for container in part.get("containers").elements()
    ):
        servers = [_simulated(part, values, role, size, kind)]
    return servers


def _simulated(part: Node, values: Node, role: str, size: _Parallelism, kind: Word) -> Server:
    container = part.get("containers", 0)
    place = container.get("name").text or values.key(role) or Word(role)
    return Server(
        name=f"{role}/{place}",
        place=place,
        engine="vllm",
        image=container.get("image").text,
        gpus_per_node=size.gpus,
        vendor=_vendor(kind),
        skipped="llm-d-inference-sim only imitates an engine",
    )


def _role_skipped(part: Node, server: Server) -> str:
    if part.get("create").boolean() is False:
        return "create is false"
    if _SIMULATOR in (server.image or ""):
        return "llm-d-inference-sim only imitates an engine"
    return ""


def _vendor(kind: str) -> str:
    return kind.partition("-")[0].lower()


class _Parallelism:
    """`parallelism` of a role, with what the chart takes where a size is not given."""

    def __init__(self, node: Node, key: Word | None) -> None:
        self.node = node
        self.key = key
        tensor, data = self._size("tensor"), self._size("data")
        local, workers = self._size("dataLocal"), self._size("workers")
        self.tensor = tensor or 1
        self.data = data or (local or 1) * (workers or 1)
        self.local = local or max(1, self.data // (workers or 1))
        count = workers or max(1, self.data // self.local)
        self.workers = Stated(count, self._at("workers", "data", "dataLocal"))
        self.gpus = Stated(self.tensor * self.local, self._at("tensor", "dataLocal", "data"))

    def _size(self, name: str) -> int | None:
        found = self.node.get(name).integer()
        return found if found is not None and 0 < found < 10_000 else None

    def _at(self, *names: str) -> Word:
        """Where the first of these stands; not as text to be changed: others depend on it."""
        for name in names:
            word = self.node.get(name).text
            if word is not None:
                return Word(word, word.span)
        return Word("1", self.key.span if self.key is not None else None)

    def flags(self) -> Iterator[Node]:
        """The flags that the chart adds, those of sizes above one."""
        for name, flag, size in (
            ("tensor", "--tensor-parallel-size", self.tensor),
            ("data", "--data-parallel-size", self.data),
            ("dataLocal", "--data-parallel-size-local", self.local),
        ):
            if size > 1:
                stated = self.node.get(name)
                yield made_scalar(flag, self.node.key(name) or self.key)
                yield stated if stated.integer() == size else made_scalar(str(size), self._at(name))

    def environment(self) -> Iterator[Node]:
        """TP_SIZE, DP_SIZE, DP_SIZE_LOCAL."""
        for variable, name, size in (
            ("DP_SIZE", "data", self.data),
            ("TP_SIZE", "tensor", self.tensor),
            ("DP_SIZE_LOCAL", "dataLocal", self.local),
        ):
            stated = self.node.get(name)
            same = stated if stated.integer() == size else made_scalar(str(size), self._at(name))
            yield _variable(variable, same)


def _role_container(
    container: Node, values: Node, size: _Parallelism, kind: Word, *, dra: bool
) -> Node:
    command = container.get("modelCommand").text or "custom"
    args = container.get("args").elements()[:_MOST]
    model, served = _artifact(values), values.get("modelArtifacts", "name")
    program: Node = container.get("command")
    place = container.get("name").text or size.key
    if command in ("vllmServe", "imageDefault"):
        program = ABSENT
        first = [made_scalar("--model", place)] if command == "imageDefault" else []
        if command == "vllmServe":
            program = made_sequence([made_scalar("vllm", place), made_scalar("serve", place)])
        names = (
            [made_scalar("--served-model-name", place), served] if served.text is not None else []
        )
        args = [*first, model, *size.flags(), *names, *args]
    made = made_mapping(
        {
            "name": container.get("name"),
            "image": container.get("image"),
            "command": program,
            "args": made_sequence(args),
            "env": made_sequence(
                [
                    *(_filled(entry, values) for entry in container.get("env").elements()[:_MOST]),
                    *size.environment(),
                ]
            ),
            "resources": _role_resources(container, values, size, kind, dra=dra),
            "volumeMounts": container.get("volumeMounts"),
            "startupProbe": container.get("startupProbe"),
            "livenessProbe": container.get("livenessProbe"),
        },
        at=place,
    )
    return merged(made, container.get("extraConfig"))


def _filled(entry: Node, values: Node) -> Node:
    value = entry.get("value").text
    if value is None or "{{" not in value:
        return entry
    return made_mapping(
        {"name": entry.get("name"), "value": made_scalar(fill_values(value, values))}
    )


def _artifact(values: Node) -> Node:
    """The model that the chart hands to the engine, by the scheme of its address."""
    artifacts = values.get("modelArtifacts")
    uri = artifacts.get("uri").text or artifacts.get("name").text
    if uri is None:
        return ABSENT
    scheme, has, rest = uri.partition("://")
    if not has:
        return made_scalar(uri)
    model = fill_values(uri.cut(len(scheme) + 3), values)
    if scheme == "pvc":
        folder = artifacts.get("mountPath").text or _MODEL_FOLDER
        path = rest.partition("/")[2]
        return made_scalar(uri.becomes(f"{folder}/{path}"))
    if scheme == "pvc+hf":
        parts = model.rsplit("/", 2)
        start = len(model) - len("/".join(parts[-2:]))
        return made_scalar(model.cut(start) if len(parts) > 2 else model)
    return made_scalar(model if scheme == "hf" else uri)


def _role_resources(
    container: Node, values: Node, size: _Parallelism, kind: Word, *, dra: bool
) -> Node:
    """Resources of a container with the accelerators that the chart fills in."""
    given = container.get("resources")
    named = values.get("accelerator", "resources", str(kind)).text
    resource = named or Word(_ACCELERATORS.get(str(kind), "nvidia.com/gpu"))
    count = size.gpus
    if dra:
        stated = values.get("accelerator", "resourceClaimTemplates", str(kind), "count")
        number = stated.integer()
        if number is not None and 0 < number < 10_000:
            count = Stated(number, stated.word)
    asked = given.get("limits", str(resource)) or given.get("requests", str(resource))
    if kind == "cpu" or asked or _SIMULATOR in container.get("image").word:
        return given
    at = count.at
    key = {str(resource): Word(resource, at.span)}
    own = made_mapping({str(resource): made_scalar(Word(str(count.value), at.span))}, keys=key)
    limits = merged(given.get("limits"), own)
    return merged(made_mapping({"limits": limits}), given)


def _accelerator_types(types: Node) -> Node:
    """`acceleratorTypes`: a node label and the values that will do."""
    label = types.get("labelKey").text
    if not label:
        return ABSENT
    expression = made_mapping(
        {
            "key": types.get("labelKey"),
            "operator": made_scalar("In", label),
            "values": types.get("labelValues"),
        }
    )
    term = made_mapping({"matchExpressions": made_sequence([expression])})
    return _terms(made_sequence([term]))


def _dra_claims(values: Node, kind: Word) -> tuple[GpuClaim, ...]:
    template = values.get("accelerator", "resourceClaimTemplates", str(kind))
    texts = [
        found
        for selector in template.get("selectors").elements()[:_MOST]
        if (found := selector.get("cel", "expression").text) is not None
    ]
    return tuple(cel_claims(texts))


# --- llm-d deployer, and the ModelService that it makes ---------------------------------------


def is_deployer(values: Node) -> bool:
    """Whether these are values of the older llm-d chart (`sampleApplication`)."""
    model = values.get("sampleApplication", "model")
    return bool(model.get("modelArtifactURI") or model.get("modelName"))


def read_deployer(values: Node, context: Context) -> Reading:
    """Prefill and decode of the sample application."""
    sample = values.get("sampleApplication")
    reading = Reading(kind="llmd_modelservice_helm")
    resources = sample.get("resources")
    if not resources:
        # The chart's own: one GPU.
        one = made_mapping({"nvidia.com/gpu": made_scalar("1", values.key("sampleApplication"))})
        resources = made_mapping({"limits": one})
    image = values.get("modelservice", "vllm", "image")
    for role in ("prefill", "decode"):
        part = sample.get(role)
        container = made_mapping(
            {
                "name": made_scalar("vllm", sample.key(role)),
                "image": _registry_image(image) or made_scalar("ghcr.io/llm-d/llm-d"),
                "args": part.get("extraArgs"),
                "resources": resources,
            },
            at=sample.key(role),
        )
        reading.servers += _service_role(
            container,
            role,
            sample.get("model", "modelArtifactURI").text,
            sample.get("model", "modelName").text,
            values.get("modelservice", role),
            context,
        )
    if sample.get("enabled").boolean() is False:
        for server in reading.servers:
            server.skipped = "sampleApplication.enabled is false"
    return _with_reason(reading, "the sample application starts no model server")


def is_model_service(document: Node) -> bool:
    """Whether a document is a ModelService of llm-d."""
    return document.get("kind").word == "ModelService" and document.get(
        "apiVersion"
    ).word.startswith("llm-d.ai/")


def read_model_service(document: Node, context: Context) -> Reading:
    """A ModelService: its base ConfigMap adds `vllm serve MODEL` before the arguments."""
    spec = document.get("spec")
    reading = Reading(kind="llmd_modelservice_helm")
    for role in ("prefill", "decode"):
        part = spec.get(role)
        for container in part.get("containers").elements()[:_MOST]:
            if container.is_mapping:
                reading.servers += _service_role(
                    container,
                    role,
                    spec.get("modelArtifacts", "uri").text,
                    spec.get("routing", "modelName").text,
                    part,
                    context,
                )
    return _with_reason(reading, "neither decode nor prefill starts a model server")


def _service_role(
    container: Node,
    role: str,
    uri: Word | None,
    name: Word | None,
    part: Node,
    context: Context,
) -> list[Server]:
    at = container.get("name").text
    address = made_mapping({"uri": made_scalar(uri) if uri else None})
    artifact = _artifact(made_mapping({"modelArtifacts": address}))
    model = artifact if artifact else (made_scalar(name) if name else ABSENT)
    given = container.get("command")
    command = given or made_sequence([made_scalar("vllm", at), made_scalar("serve", at), model])
    shm = made_mapping({"name": made_scalar("dshm"), "mountPath": made_scalar("/dev/shm")})
    one = made_mapping({"sizeLimit": made_scalar("1Gi", at), "medium": made_scalar("Memory")})
    pod = made_mapping(
        {
            "containers": made_sequence(
                [
                    merged(
                        made_mapping({"command": command, "volumeMounts": made_sequence([shm])}),
                        container,
                    )
                ]
            ),
            "volumes": made_sequence(
                [made_mapping({"name": made_scalar("dshm"), "emptyDir": one})]
            ),
            "nodeSelector": part.get("nodeSelector"),
            "affinity": part.get("affinity") or _accelerator_types(part.get("acceleratorTypes")),
        },
        at=at,
    )
    servers = servers_of_pod(pod, context, kind="llmd_modelservice_helm", owner=role, engine="vllm")
    for server in servers:
        server.fallback_model = server.fallback_model or name
        if not model:
            server.skipped = server.skipped or "modelArtifacts.uri is empty"
    return servers


# --- Ollama -----------------------------------------------------------------------------------


def is_ollama_chart(values: Node) -> bool:
    """Whether these are values of the Ollama chart."""
    ollama = values.get("ollama")
    return any(ollama.get(key) for key in ("gpu", "models", "defaultModel"))


def read_ollama(values: Node, context: Context) -> Reading:
    """A server per model that the chart pulls or runs; they take turns on the GPU."""
    ollama = values.get("ollama")
    gpu = ollama.get("gpu")
    key = values.key("ollama") or Word("ollama")
    image = values.get("image")
    container = made_mapping(
        {
            "name": made_scalar("ollama", key),
            "image": _image(image.get("repository"), image.get("tag"))
            or made_scalar("ollama/ollama", key),
            "env": values.get("extraEnv"),
            "resources": _ollama_resources(values, gpu, key),
        },
        at=key,
    )
    pod = made_mapping(
        {
            "containers": made_sequence([container]),
            "nodeSelector": values.get("nodeSelector"),
            "affinity": values.get("affinity"),
            "hostIPC": values.get("hostIPC"),
        },
        at=key,
    )
    reading = Reading(kind="ollama")
    models = _ollama_models(ollama)
    for server in servers_of_pod(pod, context, kind="ollama")[:1]:
        for number, model in enumerate(models[:8] or [None]):
            each = replace(
                server, model=model, notes=(), name="ollama" if not number else str(model)
            )
            if len(models) > 1:
                each.exclusive = f"ollama:{context.path}:{key.span.line if key.span else 0}"
            if model is None:
                each.skipped = "no model is named: Ollama pulls them while it runs"
            elif gpu.get("enabled").boolean() is not True and each.gpus_per_node is None:
                each.skipped = "runs on the processor: ollama.gpu.enabled is not set"
            reading.servers.append(each)
    return _with_reason(reading, "Ollama without a model")


def _ollama_models(ollama: Node) -> list[Word]:
    models = ollama.get("models")
    found = [*models.words(), *ollama.get("defaultModel").words()]
    for key in ("run", "pull"):
        found += models.get(key).words()
    for entry in models.get("create").elements()[:_MOST]:
        template = entry.get("template")
        source = template.word.strip()
        if isinstance(template, Scalar) and source.upper().startswith("FROM "):
            start = template.value.upper().find("FROM ") + 5
            end = template.value.find("\n", start)
            end = len(template.value) if end < 0 else end
            found.append(template.source_text().word(start, end))
    plain: dict[str, Word] = {}
    for word in found:
        if word.strip() and not word.startswith("<"):
            plain.setdefault(word.removesuffix(":latest"), word)
    return list(plain.values())


def _ollama_resources(values: Node, gpu: Node, key: Word) -> Node:
    given = values.get("resources")
    if gpu.get("enabled").boolean() is not True:
        return given
    vendor = gpu.get("type").text or "nvidia"
    name = gpu.get("nvidiaResource").text if vendor == "nvidia" else None
    resource = name or Word("amd.com/gpu" if vendor == "amd" else "nvidia.com/gpu")
    number = gpu.get("number")
    count = number if number.text is not None else made_scalar("1", gpu.key("enabled") or key)
    if gpu.get("mig", "enabled").boolean():
        for profile, amount in gpu.get("mig", "devices").items():
            resource, count = profile.becomes(f"nvidia.com/mig-{profile}"), amount
            break
    own = made_mapping({str(resource): count}, keys={str(resource): resource})
    return merged(made_mapping({"limits": merged(given.get("limits"), own)}), given)


# --- images -----------------------------------------------------------------------------------


def _image(repository: Node, tag: Node) -> Node:
    """`repository:tag`, where the values give one."""
    name = repository.text
    if not name:
        return ABSENT
    if not tag.word or ":" in name.rpartition("/")[2]:
        return made_scalar(name)
    return made_scalar(name.becomes(f"{name}:{tag.word}"))


def _registry_image(image: Node) -> Node:
    name = image.get("repository").text
    registry = image.get("registry").text
    if not name or registry is None:
        return _image(image.get("repository"), image.get("tag"))
    whole = made_scalar(name.becomes(f"{registry}/{name}"))
    return _image(whole, image.get("tag"))


def image_of(node: Node) -> Node:
    """An image as a text, or as registry, repository and tag."""
    if node.is_mapping:
        named = (
            node
            if node.get("repository")
            else merged(made_mapping({"repository": node.get("name") or node.get("image")}), node)
        )
        return _registry_image(named)
    return node if node.text else ABSENT
