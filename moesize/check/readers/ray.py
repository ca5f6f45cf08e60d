"""Ray Serve: RayService, RayCluster and RayJob of KubeRay, serve configs and LLM configs alone.

An LLM config says model, flags and kind of GPU; the worker groups of the cluster say how many
GPUs a pod has. Fields as in Ray Serve LLM's LLMConfig (python/ray/llm/_internal/serve), and in its
forerunners: RayLLM's `tensor_parallelism`, and `engine_config` with `scaling_config` before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from moesize.check.folder import inner_yaml
from moesize.check.formats import Context, Format
from moesize.check.readers.pod_resources import gpu_claims, gpu_request, stated_bytes
from moesize.check.readers.pods import environment_of, servers_of_pod
from moesize.check.readers.resource_fields import (
    flag_words,
    gpu_ids,
    gpus_of_machine,
    is_open_word,
    names_kind,
    number_of,
    title_of,
)
from moesize.check.server import GpuClaim, Reading, Server, Stated, Unresolved
from moesize.check.source import Word
from moesize.check.yaml_tree import ABSENT, Node, Scalar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_GROUP = "ray.io"
_MOST = 200
_MOST_PODS = 100_000
# llm_engine, and engine_config.type before, in lower case -> our engine; empty: none of ours.
_ENGINES = {
    "": "vllm",
    "vllm": "vllm",
    "vllmengine": "vllm",
    "sglang": "sglang",
    "sglangengine": "sglang",
    "trtllmengine": "tensorrt-llm",
    "embeddingengine": "",
}
# Variables by which applications of people's own name the model and its parallel sizes.
_MODEL_VARIABLES = (
    "MODEL_ID",
    "HF_MODEL_ID",
    "HF_MODEL",
    "HF_MODEL_NAME",
    "MODEL_NAME",
    "MODEL",
    "MODEL_PATH",
    "LLM_MODEL",
)
_MODEL_ARGUMENTS = ("model", "model_id", "model_name", "model_path", "hf_model", "model_source")
_RENAMED = {
    "TENSOR_PARALLELISM": "tensor_parallel_size",
    "TENSOR_PARALLEL": "tensor_parallel_size",
    "TP_SIZE": "tensor_parallel_size",
    "PIPELINE_PARALLELISM": "pipeline_parallel_size",
    "PIPELINE_PARALLEL": "pipeline_parallel_size",
    "PP_SIZE": "pipeline_parallel_size",
}
_CLUSTER = "a Ray cluster: what it serves is started elsewhere"


class _Wanted(NamedTuple):
    """A server and how many copies of it the configuration asks for."""

    server: Server
    replicas: Stated[int] | None = None


class _Group(NamedTuple):
    """Pods (or machines) of one kind: how many, and what each has."""

    pods: int
    at: Word
    gpus: Stated[int] | None
    claims: tuple[GpuClaim, ...] = ()
    vendor: str = ""
    image: Word | None = None
    memory: Stated[int] | None = None
    pod: Node = ABSENT


# --- Kubernetes -------------------------------------------------------------------------------


def _is_service(document: Node) -> bool:
    return names_kind(document, _GROUP, ("RayService",))


def _is_cluster(document: Node) -> bool:
    return names_kind(document, _GROUP, ("RayCluster",))


def _is_job(document: Node) -> bool:
    return names_kind(document, _GROUP, ("RayJob", "RayCronJob"))


def _read_service(document: Node, context: Context) -> Reading:
    name = title_of(document, "RayService")
    spec = document.get("spec")
    text = spec.get("serveConfigV2")
    configs = inner_yaml(text) if isinstance(text, Scalar) else [text]
    groups = _groups(spec.get("rayClusterConfig"))
    wanted: list[_Wanted] = []
    missing: list[Word] = []
    for config in configs[:_MOST]:
        for app in config.get("applications").elements()[:_MOST]:
            wanted += _of_application(app, name, context, missing, _variables(groups, context))
    return _reading("rayservice", wanted, groups, missing)


def _read_cluster(document: Node, context: Context) -> Reading:
    name = title_of(document, "RayCluster")
    servers = _servers_of_cluster(document.get("spec"), name, context, "raycluster")
    return Reading(kind="raycluster", servers=servers, skipped="" if servers else _CLUSTER)


def _read_job(document: Node, context: Context) -> Reading:
    """A job's entrypoint is a command that may start an engine."""
    name = title_of(document, "RayJob")
    spec = document.get("spec")
    if document.get("kind").word == "RayCronJob":
        spec = spec.get("jobTemplate")
    cluster = spec.get("rayClusterSpec")
    groups = _groups(cluster)
    wanted = [_Wanted(server) for server in _started_by(spec.get("entrypoint"), name)]
    if wanted:
        return _reading("rayjob", wanted, groups, [])
    servers = _servers_of_cluster(cluster, name, context, "rayjob")
    skipped = "" if servers else "a Ray job that starts no model server"
    return Reading(kind="rayjob", servers=servers, skipped=skipped)


def _started_by(entrypoint: Node, name: Word) -> Iterator[Server]:
    from moesize.check.shell import launches_in

    if not isinstance(entrypoint, Scalar) or not entrypoint.value:
        return
    for launch in launches_in(entrypoint.source_text(), {}):
        yield Server(
            name=str(name),
            place=launch.place,
            engine=launch.engine,
            words=launch.words,
            environment=dict(launch.environment),
            unresolved=launch.unresolved,
        )


def _servers_of_cluster(spec: Node, name: Word, context: Context, kind: str) -> list[Server]:
    """Engines that containers of the head or the workers start themselves."""
    groups = _groups(spec)
    for group in groups:
        servers = servers_of_pod(group.pod, context, kind=kind, owner=str(name))
        servers = [server for server in servers if not server.skipped]
        if servers:
            _place([_Wanted(server) for server in servers], groups)
            return servers
    return []


def _groups(cluster: Node) -> list[_Group]:
    """The head, then the worker groups."""
    found: list[_Group] = []
    head = cluster.get("headGroupSpec")
    if head.is_mapping:
        found.append(_group(head, 1, Word("head", head.span)))
    for worker in cluster.get("workerGroupSpecs").elements()[:_MOST]:
        at = worker.get("replicas").text or worker.get("groupName").word
        counts = [
            number
            for key in ("replicas", "minReplicas", "maxReplicas")
            if (number := worker.get(key).integer()) is not None and 0 <= number <= _MOST_PODS
        ]
        hosts = worker.get("numOfHosts").integer() or 1
        # An autoscaler may go up to maxReplicas; a group without numbers has one pod.
        pods = max(counts, default=1) * (hosts if 0 < hosts <= _MOST_PODS else 1)
        found.append(_group(worker, pods, at))
    return found


def _group(group: Node, pods: int, at: Word) -> _Group:
    pod = group.get("template", "spec")
    container: Node = ABSENT
    asked = gpu_request(ABSENT)
    for each in pod.get("containers").elements()[:_MOST]:
        found = gpu_request(each.get("resources"))
        if not container or (asked.number is None and found.number is not None):
            container, asked = each, found
    gpus = asked.number
    declared = group.get("rayStartParams", "num-gpus")
    number = declared.integer()
    if gpus is None and number is not None and 0 < number <= 1000:
        gpus = Stated(number, declared.word)
    if gpus is not None and gpus.value <= 0:
        gpus = None
    return _Group(
        pods=pods,
        at=at,
        gpus=gpus,
        claims=gpu_claims(pod, asked.mig),
        vendor=asked.vendor,
        image=container.get("image").text,
        memory=stated_bytes(container.get("resources", "limits", "memory")),
        pod=pod,
    )


def _variables(groups: Sequence[_Group], context: Context) -> dict[str, Word]:
    """Variables of the containers that run the application's replicas."""
    found: dict[str, Word] = {}
    for group in groups:
        for container in group.pod.get("containers").elements()[:1]:
            found.update(environment_of(container, context))
    return found


# --- serve configs ----------------------------------------------------------------------------


def _of_application(
    app: Node,
    name: Word,
    context: Context,
    missing: list[Word],
    variables: dict[str, Word],
) -> list[_Wanted]:
    """The servers of an application: by its LLM configs, else by what it calls its settings."""
    args = app.get("args")
    configs = list(_configs(args, context, missing))
    found = [_of_config(config, app) for config in configs]
    if found or missing:
        return found
    own = _of_own_code(app, args, name, variables)
    return [own] if own is not None else []


def _configs(args: Node, context: Context, missing: list[Word]) -> Iterator[Node]:
    """LLM configs where builders take them; a text is the path of a file with one."""
    for key in ("llm_configs", "models"):
        for config in args.get(key).elements()[:_MOST]:
            if _is_config(config):
                yield config
            elif config.text is not None and config.text.endswith((".yaml", ".yml")):
                yield from _in_file(config.text, context, missing)
    for key in ("llm_config", "prefill_config", "decode_config"):
        if _is_config(args.get(key)):
            yield args.get(key)


def _in_file(path: Word, context: Context, missing: list[Word]) -> Iterator[Node]:
    for document in context.folder.yaml(str(path)):
        if _is_config(document):
            yield document
            return
    missing.append(path)


def _is_config(node: Node) -> bool:
    return node.get("model_loading_config").is_mapping or node.get("engine_config").is_mapping


def _of_config(config: Node, app: Node = ABSENT) -> _Wanted:
    """One LLM config."""
    loading = config.get("model_loading_config")
    engine_config = config.get("engine_config")
    named = loading.get("model_id").text or engine_config.get("model_id").text
    place = named or Word("LLM config", config.span)
    server = Server(name=str(place), place=place)
    source = loading.get("model_source")
    server.model = (
        (source.get("bucket_uri").text if source.is_mapping else source.text)
        or engine_config.get("hf_model_id").text
        or named
    )
    server.fallback_model = named if named is not server.model else None
    kind = config.get("llm_engine").word or engine_config.get("type").word
    engine = _ENGINES.get(kind.lower())
    server.engine = engine or None
    if engine == "":
        server.skipped = "an embedding model"
    elif engine is None:
        server.skipped = f"the engine {kind[:40]!r} is not known"
    server.words = tuple(_words(config, engine or "vllm"))
    server.environment = _environment(config.get("runtime_env"), app.get("runtime_env"))
    claim = _accelerator(config)
    server.gpus = (claim,) if claim is not None else ()
    deployment = config.get("deployment_config")
    server.concurrency = _concurrency(deployment)
    return _Wanted(server, _replicas(deployment))


def _words(config: Node, engine: str) -> Iterator[Word]:
    """engine_kwargs, and what older forms say beside them."""
    older = config.get("engine_config")
    pairs = (
        (config.get("tensor_parallelism", "degree"), "--tensor-parallel-size"),
        (config.get("scaling_config", "num_workers"), "--tensor-parallel-size"),
        # LLMConfig.max_request_context_length is engine_kwargs["max_model_len"].
        (config.get("max_request_context_length"), "--max-model-len"),
        (older.get("max_total_tokens"), "--max-model-len"),
    )
    for node, flag in pairs:
        if node.integer() is not None:
            yield Word(flag, node.span)
            yield node.word
    yield from flag_words(older.get("engine_kwargs"), engine)
    yield from flag_words(config.get("engine_kwargs"), engine)


def _accelerator(config: Node) -> GpuClaim | None:
    """`accelerator_type: H100`, or the resource `accelerator_type:L4` of a worker."""
    given = config.get("accelerator_type").text
    via = "accelerator_type"
    if given is None:
        given = config.get("scaling_config", "accelerator").text
        via = "accelerator"
    if given is None:
        for key, _ in config.get("scaling_config", "resources_per_worker").items():
            if key.startswith("accelerator_type:"):
                given, via = key.cut(len("accelerator_type:")), "resources_per_worker"
    if given is None or is_open_word(given):
        return None
    # Ray's names (ray/util/accelerators): AMD-Instinct-MI300X-OAM; A10 is made A10G.
    text = given.removeprefix("AMD-Instinct-").removesuffix("-OAM").removesuffix("-HF")
    return GpuClaim(given.becomes("A10G" if text == "A10" else text), via)


def _environment(*runtimes: Node) -> dict[str, Word]:
    found: dict[str, Word] = {}
    for runtime in reversed(runtimes):
        for key, value in runtime.get("env_vars").items():
            if value.text is not None and len(found) < _MOST:
                found[str(key)] = value.word
    return found


def _concurrency(deployment: Node) -> Stated[int] | None:
    """Requests that a replica is meant to take at once."""
    scaling = deployment.get("autoscaling_config")
    for node in (
        scaling.get("target_ongoing_requests"),
        scaling.get("target_num_ongoing_requests_per_replica"),
        deployment.get("max_ongoing_requests"),
        deployment.get("max_concurrent_queries"),
    ):
        number = node.integer()
        if number is not None and 0 < number < 1_000_000:
            return Stated(number, node.word)
    return None


def _replicas(deployment: Node) -> Stated[int] | None:
    """The most replicas that run at once."""
    scaling = deployment.get("autoscaling_config")
    for node in (deployment.get("num_replicas"), scaling.get("max_replicas")):
        number = node.integer()
        if number is not None and 0 < number <= _MOST_PODS:
            return Stated(number, node.word)
    return None


# --- applications of people's own -------------------------------------------------------------


def _of_own_code(app: Node, args: Node, name: Word, variables: dict[str, Word]) -> _Wanted | None:
    """An application whose code is not here: its variables and arguments say what they can."""
    environment = {**variables, **_environment(app.get("runtime_env"))}
    inner = [args, args.get("engine_args"), args.get("engine_kwargs")]
    evidence = _evidence(app, environment)
    engine = next((known for known in ("vllm", "sglang") if known in evidence), None)
    options: list[Word] = []
    for variable, value in environment.items():
        options += _variable_words(variable, value, engine or "vllm")
    for node in inner:
        options += flag_words(node, engine or "vllm", only_known=True)
    model = next((environment[key] for key in _MODEL_VARIABLES if key in environment), None)
    for node in inner:
        model = next((found for key in _MODEL_ARGUMENTS if (found := node.get(key).text)), model)
    if model is None or not (engine or options or "llm" in evidence):
        return None
    place = app.get("name").text or name
    server = Server(name=str(place), place=place, engine=engine)
    if is_open_word(model):
        server.unresolved = (Unresolved(model.strip("${}() ") or "the model", model),)
    else:
        server.model = model
    server.words = tuple(word for word in options if not is_open_word(word))
    server.environment = environment
    replicas: Stated[int] | None = None
    for deployment in app.get("deployments").elements()[:_MOST]:
        server.concurrency = server.concurrency or _concurrency(deployment)
        replicas = replicas or _replicas(deployment)
    return _Wanted(server, replicas)


def _evidence(app: Node, environment: dict[str, Word]) -> str:
    """What an application is called and needs, in lower case: it may name an engine."""
    runtime = app.get("runtime_env")
    pip = runtime.get("pip")
    texts: list[str] = [app.get("import_path").word, app.get("name").word]
    texts += pip.words()[:_MOST] or pip.get("packages").words()[:_MOST]
    texts += [each.get("name").word for each in app.get("deployments").elements()[:_MOST]]
    texts += list(environment)
    return " ".join(text[:200] for text in texts).lower()


def _variable_words(variable: str, value: Word, engine: str) -> list[Word]:
    """MAX_MODEL_LEN=8192: a variable called like a flag that is planned."""
    from moesize.engine_args.table import flag_table

    name = _RENAMED.get(variable, variable.lower()).replace("_", "-")
    found = flag_table(engine).names.get(f"--{name}")
    if found is None or found.flag.effect != "planned" or found.flag.kind == "switch":
        return []
    if any(target.startswith("command:model") for target in found.flag.targets):
        return []
    return [Word(f"--{name}", value.span), value] if not is_open_word(value) else []


# --- GPUs for servers -------------------------------------------------------------------------


def _reading(
    kind: str, wanted: Sequence[_Wanted], groups: Sequence[_Group], missing: Sequence[Word]
) -> Reading:
    _place(wanted, groups)
    servers = [each.server for each in wanted]
    if servers:
        return Reading(kind=kind, servers=servers)
    if missing:
        names = ", ".join(str(path)[:80] for path in missing[:4])
        return Reading(
            kind=kind, skipped=f"the LLM configs are in files that are not here: {names}"
        )
    return Reading(kind=kind, skipped="no application that serves a language model")


def _place(wanted: Sequence[_Wanted], groups: Sequence[_Group]) -> None:
    """Which pods a server runs in, and how many of them one replica needs."""
    having = [group for group in groups if group.gpus is not None and group.pods > 0]
    alone = len(wanted) == 1
    for each in wanted:
        server = each.server
        group = _group_for(server, having)
        if group is None or group.gpus is None:
            continue
        server.gpus = group.claims or server.gpus
        server.vendor = server.vendor or group.vendor
        server.image = server.image or group.image
        server.memory_limit = server.memory_limit or group.memory
        # KubeRay mounts a volume in memory at /dev/shm.
        server.shm_is_default = False
        alike = [one.pods for one in having if one.gpus and one.gpus.value == group.gpus.value]
        _allot(each, group, group.gpus, pods=sum(alike), alone=alone)


def _group_for(server: Server, groups: Sequence[_Group]) -> _Group | None:
    """The group whose GPUs are of the kind that the server names; else the first with any."""
    wanted = [gpu_ids(claim.text, claim.kind) for claim in server.gpus]
    if any(wanted) and len(groups) > 1:
        for group in groups:
            have = [gpu_ids(claim.text, claim.kind) for claim in group.claims]
            if any(mine & theirs for mine in wanted for theirs in have):
                return group
    return groups[0] if groups else None


def _allot(each: _Wanted, group: _Group, gpus: Stated[int], *, pods: int, alone: bool) -> None:
    """The pods that one replica takes out of `pods`, or the replicas that share one."""
    server, words = each.server, each.server.words
    needed = (
        number_of(words, "--tensor-parallel-size", "-tp", "--tp-size", "--tp")
        * number_of(words, "--pipeline-parallel-size", "-pp", "--pp-size")
        * number_of(words, "--data-parallel-size", "-dp")
    )
    server.gpus_per_node = gpus
    if needed > gpus.value:
        # Pods that there are: with fewer than needed, that is what is wrong with the file.
        pods = min(-(-needed // gpus.value), pods)
        server.nodes = Stated(pods, group.at) if pods > 1 else None
        return
    share = gpus.value // needed
    if alone:
        copies = each.replicas.value if each.replicas is not None else 1
        share = min(share, copies)
    if share > 1 or not alone:
        at = each.replicas.at if each.replicas is not None else gpus.at
        server.replicas_share = Stated(share, at)


# --- plain files ------------------------------------------------------------------------------


def _is_plain(document: Node) -> bool:
    if document.get("apiVersion"):
        return False
    if _is_llm_config(document) or any(map(_is_config, document.get("llm_configs").elements())):
        return True
    apps = document.get("applications").elements()
    return any(app.get("import_path").text and app.is_mapping for app in apps[:_MOST])


def _is_llm_config(document: Node) -> bool:
    """A config alone: with its loading or engine section, it has another that only it has."""
    keys = ("engine_kwargs", "accelerator_type", "scaling_config", "deployment_config")
    return _is_config(document) and any(document.key(key) is not None for key in keys)


def _read_plain(document: Node, context: Context) -> Reading:
    missing: list[Word] = []
    wanted: list[_Wanted] = []
    if _is_config(document):
        wanted.append(_of_config(document))
    else:
        wanted += [_of_config(config) for config in _configs(document, context, missing)]
    name = document.get("name").text or Word("Ray Serve", document.span)
    for app in document.get("applications").elements()[:_MOST]:
        wanted += _of_application(app, name, context, missing, {})
    return _reading("rayserve_llm_config", wanted, _machines(document), missing)


def _machines(document: Node) -> list[_Group]:
    """`compute_config.worker_nodes` of an Anyscale service: machine types, and how many."""
    compute = document.get("compute_config")
    found: list[_Group] = []
    for node in _some(compute.get("worker_nodes"), compute.get("worker_node_types")):
        machine = node.get("instance_type").text
        count = gpus_of_machine(machine) if machine is not None else None
        if machine is None or not count:
            continue
        most = node.get("max_nodes").integer() or node.get("max_workers").integer() or 1
        claim = GpuClaim(machine, "instance_type", "instance")
        pods = most if 0 < most <= _MOST_PODS else 1
        found.append(_Group(pods, machine, Stated(count, machine), (claim,)))
    return found


def _some(*nodes: Node) -> Iterable[Node]:
    for node in nodes:
        yield from node.elements()[:_MOST]


FORMATS = [
    Format("rayservice", _is_service, _read_service),
    Format("raycluster", _is_cluster, _read_cluster),
    Format("rayjob", _is_job, _read_job),
    Format("rayserve_llm_config", _is_plain, _read_plain),
]
