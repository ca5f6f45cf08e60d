"""Kubernetes objects with pods in them: workloads, groups of pods, and any other kind's."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from moesize.check.formats import Format
from moesize.check.readers.pod_resources import gpu_claims, gpu_request
from moesize.check.readers.pods import environment_of, flag_value, is_hub_id, servers_of_pod
from moesize.check.server import Reading, Server, Stated
from moesize.check.source import Word
from moesize.check.yaml_tree import ABSENT, Node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moesize.check.formats import Context

# Kind -> (groups that it may be of, what files of it are called, path to the pod's template).
_WORKLOADS: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "Deployment": (("apps", "extensions"), "k8s_deployment", ("spec", "template")),
    "StatefulSet": (("apps",), "k8s_statefulset", ("spec", "template")),
    "DaemonSet": (("apps", "extensions"), "k8s_daemonset", ("spec", "template")),
    "ReplicaSet": (("apps", "extensions"), "k8s_replicaset", ("spec", "template")),
    "ReplicationController": (("",), "k8s_replicaset", ("spec", "template")),
    "Job": (("batch",), "k8s_job", ("spec", "template")),
    "CronJob": (("batch",), "k8s_cronjob", ("spec", "jobTemplate", "spec", "template")),
    "Pod": (("",), "k8s_pod", ()),
    "PodTemplate": (("",), "k8s_pod", ("template",)),
    "Rollout": (("argoproj.io",), "k8s_deployment", ("spec", "template")),
}
_NO_SERVER = "no container of it serves a model"
_MOST_VISITED = 20_000
_MOST_PODS = 200
# Kinds whose containers are schemas, steps of a pipeline, or read elsewhere.
_NO_PODS = (
    "CustomResourceDefinition",
    "ConfigMap",
    "Secret",
    "Workflow",
    "WorkflowTemplate",
    "Pipeline",
    "PipelineRun",
    "Task",
    "TaskRun",
    "Kustomization",
    "Component",
    "Service",
)
_RUNTIMES = ("ClusterServingRuntime", "ServingRuntime")
# Fields that are roles of a server in several parts.
_ROLE_KEYS = {
    "engineConfig": "engine",
    "decoderConfig": "decoder",
    "engine": "engine",
    "decoder": "decoder",
    "prefill": "prefill",
    "decode": "decode",
}
# Engines by what people call their objects, for patches that show nothing else.
_NAMED_ENGINES = (
    ("vllm", "vllm"),
    ("sglang", "sglang"),
    ("tgi", "tgi"),
    ("text-generation", "tgi"),
    ("trtllm", "tensorrt-llm"),
    ("llama-cpp", "llama.cpp"),
    ("llamacpp", "llama.cpp"),
)


def group_of(document: Node) -> str:
    """The API group of an object, "" for the core group."""
    group, slash, _ = document.get("apiVersion").word.partition("/")
    return group if slash else ""


def owner_of(document: Node) -> str:
    """The name of an object."""
    metadata = document.get("metadata")
    return str(metadata.get("name").word or metadata.get("generateName").word)


# --- workloads --------------------------------------------------------------------------------


def _matches_workload(document: Node) -> bool:
    row = _WORKLOADS.get(str(document.get("kind").word))
    if row is None or document.get("apiVersion").text is None:
        return False
    return group_of(document) in row[0] and document.get(*row[2], "spec").is_mapping


def _read_workload(document: Node, context: Context) -> Reading:
    _, kind, path = _WORKLOADS[str(document.get("kind").word)]
    template = document.get(*path)
    pod = template.get("spec")
    servers = servers_of_pod(
        pod, context, kind=kind, labels=_labels(template, document), owner=owner_of(document)
    )
    return _finished(document, context, kind, [(template, servers)])


def _labels(template: Node, document: Node) -> Node:
    return template.get("metadata", "labels") or document.get("metadata", "labels")


def _finished(
    document: Node, context: Context, kind: str, parts: list[tuple[Node, list[Server]]]
) -> Reading:
    """A reading of templates and their servers; patches are called by their own name."""
    servers = [server for _, found in parts for server in found]
    if is_patch(document, [template.get("spec") for template, _ in parts], context):
        kind = "kustomize_patch"
        if not servers:
            for template, _ in parts:
                servers += _servers_of_patch(template.get("spec"), document, context)
        for server in servers:
            _forgive(server)
        skipped = "" if _judged(servers) else "a patch: the server is in what it is applied to"
    else:
        skipped = "" if _judged(servers) else _NO_SERVER
    if servers and skipped == _NO_SERVER:
        skipped = next((server.skipped for server in servers if server.skipped), _NO_SERVER)
    return Reading(kind=kind, servers=servers, skipped=skipped)


def _judged(servers: list[Server]) -> bool:
    return any(not server.skipped for server in servers)


# --- patches ----------------------------------------------------------------------------------


def is_patch(document: Node, pods: list[Node], context: Context) -> bool:
    """Whether an object is only part of one: what a kustomization lays over another."""
    containers = [c for pod in pods for c in pod.get("containers").elements()[:_MOST_PODS]]
    if containers and not any(
        container.get(key) for container in containers for key in ("image", "command")
    ):
        return True
    folder, _, name = context.path.lower().rpartition("/")
    if "patch" in name.replace("_", ".").replace("-", ".").split("."):
        return True
    if folder.rpartition("/")[2] in ("patches", "patch"):
        return True
    if document.get("kind").word in ("Deployment", "StatefulSet", "DaemonSet") and not any(
        container.get("image") for container in containers
    ):
        return True
    from moesize.check.readers.kustomize import is_listed_patch

    return is_listed_patch(context)


def _servers_of_patch(pod: Node, document: Node, context: Context) -> list[Server]:
    """Servers of a patch that names a model in a variable and leaves the rest to the base."""
    found: list[Server] = []
    for container in pod.get("containers").elements()[:_MOST_PODS]:
        if container.get("image") or container.get("command"):
            continue
        environment = environment_of(container, context)
        model = next(
            (
                environment[name]
                for name in ("MODEL_ID", "MODEL_NAME", "MODEL", "HF_MODEL_ID")
                if name in environment and is_hub_id(environment[name])
            ),
            None,
        )
        name = container.get("name").word
        called = f"{owner_of(document)} {name}".lower()
        engine = next((engine for part, engine in _NAMED_ENGINES if part in called), None)
        if model is None or engine is None:
            continue
        found += servers_of_pod(
            pod, context, kind="kustomize_patch", owner=owner_of(document), engine=engine
        )
        break
    for server in found:
        server.model = server.model or server.fallback_model
        server.notes += ("a patch: flags and GPUs may be in what it is applied to",)
    return found


def _forgive(server: Server) -> None:
    """What a patch leaves out is not missing: the base has it, or the kind's default holds."""
    server.shm_is_default = False


# --- groups of pods ---------------------------------------------------------------------------


def _matches_lws(document: Node) -> bool:
    return (
        group_of(document).startswith("leaderworkerset.")
        and document.get("kind").word == "LeaderWorkerSet"
        and document.get("spec", "leaderWorkerTemplate").is_mapping
    )


def _read_lws(document: Node, context: Context) -> Reading:
    group = document.get("spec", "leaderWorkerTemplate")
    servers = servers_of_group(
        group,
        context,
        kind="lws",
        labels=document.get("metadata", "labels"),
        owner=owner_of(document),
    )
    templates = [group.get("leaderTemplate"), group.get("workerTemplate")]
    parts: list[tuple[Node, list[Server]]] = [(each, []) for each in templates if each.is_mapping]
    parts = parts or [(ABSENT, [])]
    return _finished(document, context, "lws", [(parts[0][0], servers), *parts[1:]])


def servers_of_group(
    group: Node, context: Context, *, kind: str, labels: Node = ABSENT, owner: str = ""
) -> list[Server]:
    """Servers of a leader and its workers (`leaderWorkerTemplate`): one over all pods of a group.

    The leader's command counts. Workers that only join are no servers, workers that start the
    engine as the leader does are parts of the same one.
    """
    size = group.get("size")
    number = size.integer()
    nodes = Stated(number, size.word) if number is not None and 0 < number < 100_000 else None
    leader, worker = group.get("leaderTemplate"), group.get("workerTemplate")
    main = leader if leader.get("spec").is_mapping else worker

    def read(template: Node) -> list[Server]:
        return servers_of_pod(
            template.get("spec"),
            context,
            kind=kind,
            nodes=nodes,
            labels=template.get("metadata", "labels") or labels,
            owner=owner,
        )

    servers = read(main)
    if main is leader and worker:
        others = read(worker)
        if not _judged(servers) and _judged(others):
            return others
        for server in servers:
            _with_workers(server, worker.get("spec"))
    return servers


def _with_workers(server: Server, pod: Node) -> None:
    """GPUs that only the workers ask for: the leader then runs none of the ranks."""
    asked = next(
        (
            found
            for container in pod.get("containers").elements()[:_MOST_PODS]
            if (found := gpu_request(container.get("resources"))).number is not None
        ),
        None,
    )
    if asked is None:
        return
    if not server.gpus:
        server.gpus = gpu_claims(pod, asked.mig)
    if server.gpus_per_node is None or server.gpus_per_node.value == 0:
        server.gpus_per_node = asked.number
        server.vendor = server.vendor or asked.vendor
        if server.nodes is not None and server.nodes.value > 1:
            server.nodes = Stated(server.nodes.value - 1, server.nodes.at)


def _matches_jobset(document: Node) -> bool:
    return group_of(document).startswith("jobset.") and document.get("kind").word == "JobSet"


def _read_jobset(document: Node, context: Context) -> Reading:
    parts = []
    for job in document.get("spec", "replicatedJobs").elements()[:_MOST_PODS]:
        template = job.get("template", "spec", "template")
        owner = f"{owner_of(document)}/{job.get('name').word}".rstrip("/")
        servers = servers_of_pod(
            template.get("spec"),
            context,
            kind="k8s_job",
            labels=_labels(template, document),
            owner=owner,
        )
        parts.append((template, servers))
    return _finished(document, context, "k8s_job", parts)


# --- Knative ----------------------------------------------------------------------------------


def _matches_knative(document: Node) -> bool:
    return group_of(document) == "serving.knative.dev" and document.get("kind").word in (
        "Service",
        "Configuration",
        "Revision",
    )


def _read_knative(document: Node, context: Context) -> Reading:
    template = document.get("spec", "template")
    pod = template.get("spec") or document.get("spec")
    servers = servers_of_pod(
        pod,
        context,
        kind="knative_service",
        labels=_labels(template, document),
        owner=owner_of(document),
    )
    promised = knative_concurrency(pod.get("containerConcurrency"), template.get("metadata"))
    for server in servers:
        server.concurrency = promised
    return _finished(document, context, "knative_service", [(template, servers)])


def knative_concurrency(limit: Node, *metadata: Node) -> Stated[int] | None:
    """Requests at once that Knative sends to a pod: its limit, else the autoscaler's target."""
    number = limit.integer()
    if number is not None and 0 < number < 1_000_000 and limit.text is not None:
        return Stated(number, limit.text)
    for each in metadata:
        notes = each.get("annotations")
        metric = notes.get("autoscaling.knative.dev/metric").word
        target = notes.get("autoscaling.knative.dev/target")
        number = target.integer()
        if number is not None and 0 < number < 1_000_000 and metric in ("", "concurrency"):
            return Stated(number, target.word)
    return None


# --- any other kind ---------------------------------------------------------------------------


class _Place(NamedTuple):
    """A pod spec inside an object, or a group of pods (`is_group`), and what surrounds it."""

    pod: Node
    labels: Node
    size: Stated[int] | None
    role: str
    shape: str = "pod"


def _pod_places(document: Node) -> Iterator[_Place]:
    """Pod specs anywhere inside an object, in the order of the file."""
    first = _Place(document, ABSENT, None, "")
    waiting = [first]
    visited = found = 0
    while waiting and visited < _MOST_VISITED and found < _MOST_PODS:
        place = waiting.pop()
        node = place.pod
        visited += 1
        if node.is_mapping:
            place = _surrounded(place)
            shape = _shape_of(node)
            if shape:
                found += 1
                yield place._replace(shape=shape)
                continue
            children = [(str(key), child) for key, child in node.items()]
        else:
            children = [("", child) for child in node.elements()]
        for key, child in reversed(children[:_MOST_VISITED]):
            if child.is_mapping or child.is_sequence:
                role = _ROLE_KEYS.get(key, place.role)
                waiting.append(place._replace(pod=child, role=role))


def _shape_of(node: Node) -> str:
    """What a mapping is: a pod spec, a group of them, or neither."""
    if node.get("headGroupSpec").is_mapping:
        return "ray"
    if node.get("workerTemplate").is_mapping:
        return "group"
    if node.get("leader", "runner").is_mapping:
        return "leader"
    for key in ("runner", "mainContainer"):
        if any(node.get(key, part) for part in ("image", "command", "args")):
            return "pod"
    containers = node.get("containers").elements()[:_MOST_PODS]
    if any(c.get(part) for c in containers for part in ("image", "command", "args", "env")):
        return "pod"
    return ""


def _surrounded(place: _Place) -> _Place:
    """A place with what its mapping says: labels, the name of the role, pods of a group."""
    node = place.pod
    labels = node.get("metadata", "labels")
    if labels:
        place = place._replace(labels=labels)
    for size in (
        node.get("podGroupSize"),
        node.get("leaderWorkerSet", "size"),
        node.get("leaderWorkerPattern", "size"),
    ):
        number = size.integer()
        if number is not None and 0 < number < 100_000:
            place = place._replace(size=Stated(number, size.word))
    name = node.get("name").text
    if name is not None and len(name) <= 100:
        place = place._replace(role=str(name))
    return place


def _matches_other(document: Node) -> bool:
    kind = document.get("kind").text
    if kind is None or document.get("apiVersion").text is None:
        return False
    if kind in _NO_PODS or str(kind).endswith("List"):
        return False
    if _is_ome_service(document):
        return True
    return next(_pod_places(document), None) is not None


def _kind_of(document: Node) -> str:
    group, kind = group_of(document), str(document.get("kind").word)
    if "aibrix" in group:
        return "aibrix"
    if group.endswith("ome.io"):
        return "ome"
    if "llmaz" in group:
        return "llmaz"
    if kind.startswith("RoleBasedGroup") or group == "workloads.x-k8s.io":
        return "rbg"
    return "k8s_custom"


def _read_other(document: Node, context: Context) -> Reading:
    kind = _kind_of(document)
    if _is_ome_service(document):
        return _read_ome_service(document, context)
    servers = _servers_inside(document, context, kind)
    if kind == "ome" and document.get("kind").word in _RUNTIMES:
        return _runtime_of_ome(servers)
    return Reading(kind=kind, servers=servers, skipped="" if _judged(servers) else _NO_SERVER)


def _servers_inside(document: Node, context: Context, kind: str) -> list[Server]:
    owner = owner_of(document)
    extra = _OME_VARIABLES if kind == "ome" else {}
    found: list[Server] = []
    for place in _pod_places(document):
        role = place.role if place.role != owner else ""
        title = f"{owner}/{role}".strip("/") if role else owner
        if place.shape == "ray":
            servers = _servers_of_ray(place, context, kind, title)
        elif place.shape == "group":
            servers = servers_of_group(
                place.pod, context, kind=kind, labels=place.labels, owner=title
            )
        elif place.shape == "leader":
            servers = _servers_of_leader(place, context, kind, title)
        else:
            servers = servers_of_pod(
                place.pod,
                context,
                kind=kind,
                nodes=place.size,
                extra_environment=extra,
                labels=place.labels,
                owner=title,
            )
        found += servers
    return found


def _servers_of_ray(place: _Place, context: Context, kind: str, owner: str) -> list[Server]:
    """The server that the head of a Ray cluster starts, over its pods with GPUs."""
    head = place.pod.get("headGroupSpec", "template")
    servers = servers_of_pod(
        head.get("spec"),
        context,
        kind=kind,
        labels=head.get("metadata", "labels") or place.labels,
        owner=owner,
    )
    workers = 0
    at: Word | None = None
    for group in place.pod.get("workerGroupSpecs").elements()[:_MOST_PODS]:
        pod = group.get("template", "spec")
        containers = pod.get("containers").elements()[:_MOST_PODS]
        asked = next((a for c in containers if (a := gpu_request(c.get("resources"))).number), None)
        replicas = group.get("replicas") or group.get("minReplicas")
        number = replicas.integer() if replicas else 1
        if asked is None or asked.number is None or not number or not 0 < number < 100_000:
            continue
        hosts = group.get("numOfHosts").integer() or 1
        workers += number * (hosts if 0 < hosts < 10_000 else 1)
        at = at or replicas.text or asked.number.at
        for server in servers:
            if not server.gpus:
                server.gpus = gpu_claims(pod, asked.mig)
            if server.gpus_per_node is None or server.gpus_per_node.value == 0:
                server.gpus_per_node = asked.number
                server.vendor = asked.vendor
                workers -= 1  # the head runs none of the ranks
    if at is not None:
        for server in servers:
            server.nodes = Stated(max(1, 1 + workers), at)
    return servers


def _servers_of_leader(place: _Place, context: Context, kind: str, owner: str) -> list[Server]:
    """OME's engine over several pods: a leader and `worker.size` workers."""
    size = place.pod.get("worker", "size")
    number = size.integer()
    nodes = None
    if number is not None and 0 <= number < 100_000 and place.pod.get("worker", "runner"):
        nodes = Stated(number + 1, size.word)
    asked = gpu_request(place.pod.get("leader", "runner", "resources")).number
    ranks = dict(_OME_VARIABLES) if kind == "ome" else {}
    if asked is not None and nodes is not None:
        # What OME's controller gives its containers: the GPUs of all pods together.
        ranks["PARALLELISM_SIZE"] = str(asked.value * nodes.value)
    return servers_of_pod(
        place.pod.get("leader"),
        context,
        kind=kind,
        nodes=nodes,
        extra_environment=ranks,
        labels=place.labels,
        owner=owner,
    )


# --- OME --------------------------------------------------------------------------------------

# What OME's controller tells its containers: a folder of the node, whichever it is.
_OME_VARIABLES = {"MODEL_PATH": "/mnt/models"}


def _runtime_of_ome(servers: list[Server]) -> Reading:
    """A runtime: made for any model of a family, or for the one whose name it serves under."""
    why = "a serving runtime: the model comes from the service that uses it"
    for server in servers:
        served = flag_value(server.words, "--served-model-name")
        if served is not None and is_hub_id(served):
            server.fallback_model = served
        else:
            server.skipped = server.skipped or why
    return Reading(kind="ome", servers=servers, skipped="" if _judged(servers) else why)


def _is_ome_service(document: Node) -> bool:
    return (
        group_of(document) == "ome.io"
        and document.get("kind").word == "InferenceService"
        and document.get("spec").is_mapping
    )


def _read_ome_service(document: Node, context: Context) -> Reading:
    """A model by name, a runtime by name: both may stand in the same folder."""
    spec = document.get("spec")
    model = spec.get("model", "name").text or spec.get("predictor", "model", "baseModel").text
    runtime_name = spec.get("runtime", "name").text
    servers = _servers_inside(document, context, "ome")
    if not servers and runtime_name is not None:
        runtime = _object(context, _RUNTIMES, runtime_name)
        servers = _servers_inside(runtime, context, "ome") if runtime else []
    stored = _object(context, ("ClusterBaseModel", "BaseModel"), model or "")
    uri = stored.get("spec", "storage", "storageUri").text
    for server in servers:
        if uri is not None and uri.startswith("hf://"):
            server.model = uri.cut(5)
        else:
            server.fallback_model = model or server.fallback_model
    if not servers:
        place = document.get("metadata", "name").text or Word("ome", document.span)
        why = "its serving runtime is not in this folder"
        servers = [Server(name=str(place), place=place, fallback_model=model, skipped=why)]
    skipped = "" if _judged(servers) else servers[0].skipped
    return Reading(kind="ome", servers=servers, skipped=skipped)


def _object(context: Context, kinds: tuple[str, ...], name: str) -> Node:
    """An object of one of these kinds and that name, in the same file or folder."""
    if not name:
        return ABSENT
    for documents in (context.documents, context.folder.siblings()):
        for document in documents:
            if document.get("kind").word in kinds and owner_of(document) == name:
                return document
    return ABSENT


FORMATS = (
    Format("k8s_workload", _matches_workload, _read_workload),
    Format("lws", _matches_lws, _read_lws),
    Format("k8s_job", _matches_jobset, _read_jobset),
    Format("knative_service", _matches_knative, _read_knative),
    Format("k8s_custom", _matches_other, _read_other),
)
