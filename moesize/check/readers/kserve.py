"""KServe: InferenceService with its serving runtime, and LLMInferenceService with its configs.

A service says what is its own, a runtime (or config) the rest; both are looked for in the same file
and folder. What only the cluster has is KServe's own default as far as it is known: the engine.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from moesize.check.formats import Format
from moesize.check.readers.kubernetes import group_of, knative_concurrency, owner_of
from moesize.check.readers.merging import (
    Budget,
    TooMuch,
    mapping_node,
    merge,
    sequence_node,
    text_node,
    with_entry,
)
from moesize.check.readers.pod_resources import cel_claims, dra_vendor
from moesize.check.readers.pods import (
    environment_of,
    flag_value,
    servers_of_container,
    servers_of_pod,
)
from moesize.check.server import Reading, Server, Stated
from moesize.check.source import Word
from moesize.check.yaml_tree import ABSENT, Node, Scalar

if TYPE_CHECKING:
    from moesize.check.formats import Context

_GROUP = "serving.kserve.io"
_RUNTIMES = ("ServingRuntime", "ClusterServingRuntime")
# Where KServe puts the model inside the container.
_MOUNT = "/mnt/models"
_NO_MODEL = "a serving runtime: the model comes from the InferenceService that uses it"
_NO_MODEL_CONFIG = "a config without a model: the services that use it name one"
# What KServe's own runtimes start for a model format; for other formats no language model.
_FORMAT_COMMANDS = {
    "huggingface": ("python3", "-m", "huggingfaceserver"),
    "vllm": ("python3", "-m", "vllm.entrypoints.openai.api_server"),
}
_OTHER_FORMATS = (
    "sklearn",
    "xgboost",
    "lightgbm",
    "catboost",
    "pmml",
    "mlflow",
    "onnx",
    "tensorflow",
    "paddle",
    "pytorch",
    "keras",
    "openvino",
    "spacy",
    "autogluon",
    "predictive",
)
# Engines by what people call runtimes that are not in the folder.
_NAMED_ENGINES = (
    ("sglang", "sglang"),
    ("tgi", "tgi"),
    ("text-generation", "tgi"),
    ("llama-cpp", "llama.cpp"),
    ("llamacpp", "llama.cpp"),
    ("llama.cpp", "llama.cpp"),
    ("gguf", "llama.cpp"),
    ("tensorrt", "tensorrt-llm"),
    ("trtllm", "tensorrt-llm"),
    ("vllm", "vllm"),
    ("huggingface", "vllm"),
)
_VERSION_END = re.compile(r"[-_]v?\d{1,4}\.\d{1,4}(?:\.\d{1,6})?$")
_GPUS_END = re.compile(r"[-_]\d{1,3}x?gpus?$")
_MOST_REFERENCES = 16
_DRA = "serving.kserve.io/exp-dra-"


def _is_kind(document: Node, *kinds: str) -> bool:
    return group_of(document) == _GROUP and document.get("kind").word in kinds


def _documents(context: Context, kinds: tuple[str, ...], name: str) -> Node:
    """An object of KServe's of that name, in the same file or folder."""
    if not name:
        return ABSENT
    for documents in (context.documents, context.folder.siblings()):
        for document in documents:
            if _is_kind(document, *kinds) and owner_of(document) == name:
                return document
    return ABSENT


# --- runtimes ---------------------------------------------------------------------------------


def _read_runtime(document: Node, context: Context) -> Reading:
    spec = document.get("spec")
    servers = servers_of_pod(
        spec,
        context,
        kind="kserve_servingruntime",
        owner=owner_of(document),
        extra_environment=_parallel_variables(spec.get("workerSpec")),
    )
    for server in servers:
        server.skipped = server.skipped or _NO_MODEL
    return Reading(kind="kserve_servingruntime", servers=servers, skipped=_NO_MODEL)


def _parallel_variables(worker: Node) -> dict[str, Word]:
    """What KServe tells the containers of a server over several pods."""
    found = {}
    for key, name in (
        ("tensorParallelSize", "TENSOR_PARALLEL_SIZE"),
        ("pipelineParallelSize", "PIPELINE_PARALLEL_SIZE"),
    ):
        text = worker.get(key).text
        if text is not None:
            found[name] = text
    return found


# --- InferenceService -------------------------------------------------------------------------


def _read_service(document: Node, context: Context) -> Reading:
    predictor = document.get("spec", "predictor")
    model = predictor.get("model")
    try:
        if model.is_mapping:
            servers = _servers_of_model(document, predictor, model, context)
        else:
            servers = servers_of_pod(
                predictor,
                context,
                kind="kserve_isvc",
                owner=owner_of(document),
                labels=document.get("metadata", "labels"),
                extra_environment=_parallel_variables(predictor.get("workerSpec")),
            )
            for server in servers:
                _name_model(server, server.environment.get("STORAGE_URI"), document)
    except TooMuch:
        return Reading(kind="kserve_isvc", skipped="larger than any real service")
    promised = knative_concurrency(
        predictor.get("containerConcurrency"), predictor, document.get("metadata")
    )
    for server in servers:
        server.concurrency = promised
    skipped = "" if any(not server.skipped for server in servers) else _why_not(servers)
    return Reading(kind="kserve_isvc", servers=servers, skipped=skipped)


def _why_not(servers: list[Server]) -> str:
    return next((server.skipped for server in servers), "its runtime serves no language model")


def _servers_of_model(
    document: Node, predictor: Node, model: Node, context: Context
) -> list[Server]:
    """`predictor.model`, joined with the runtime that it names if that is in the folder."""
    runtime_name = model.get("runtime").text
    format_name = model.get("modelFormat", "name").text
    nim = _nim_name(runtime_name, format_name)
    runtime = _documents(context, _RUNTIMES, runtime_name or "")
    if not runtime and runtime_name is None:
        runtime = _runtime_of_format(context, format_name or "", predictor)
    worker = (
        merge(runtime.get("spec", "workerSpec"), predictor.get("workerSpec"), Budget())
        if predictor.get("workerSpec").is_mapping
        else ABSENT
    )
    container, pod = _joined(runtime.get("spec"), predictor, model)
    engine = None
    if not runtime:
        container, engine = _with_default(container, runtime_name, format_name, nim)
        if engine is None and not container.get("command") and not container.get("image"):
            return [_unknown(document, model, runtime_name, format_name)]
    nodes = _nodes_of(worker)
    servers = servers_of_container(
        container,
        pod,
        context,
        kind="kserve_isvc",
        nodes=nodes,
        extra_environment=_parallel_variables(worker),
        labels=document.get("metadata", "labels"),
        engine=engine,
    )
    uri = model.get("storageUri").text or model.get("storage", "path").text
    for server in servers:
        server.name = owner_of(document) or server.name
        server.place = document.get("metadata", "name").text or server.place
        if not runtime:
            server.shm_is_default = False  # the runtime decides
        if nim is not None and (server.engine == "nim" or not runtime):
            server.engine = "nim"
            server.model = nim
            server.words = tuple(_parallel_flags(worker, server.words)) + server.words
            continue
        _name_model(server, uri, document)
        if not runtime:
            server.words = tuple(_parallel_flags(worker, server.words)) + server.words
            server.notes += ("its serving runtime is not in this folder",)
    return servers


def _runtime_of_format(context: Context, name: str, predictor: Node) -> Node:
    """The runtime that KServe would select: one that takes the format by itself.

    Runtimes over several pods are for services that ask for workers, and for no others.
    """
    if not name:
        return ABSENT
    has_workers = predictor.get("workerSpec").is_mapping
    for documents in (context.documents, context.folder.siblings()):
        for document in documents:
            spec = document.get("spec")
            if not _is_kind(document, *_RUNTIMES):
                continue
            if spec.get("workerSpec").is_mapping != has_workers:
                continue
            for one in spec.get("supportedModelFormats").elements()[:64]:
                if one.get("name").word == name and one.get("autoSelect").boolean():
                    return document
    return ABSENT


def _joined(runtime: Node, predictor: Node, model: Node) -> tuple[Node, Node]:
    """(container, pod) of a runtime with the service's own values laid over it."""
    budget = Budget()
    containers = runtime.get("containers").elements()
    base = next(
        (c for c in containers if c.get("name").word == "kserve-container"),
        containers[0] if containers else ABSENT,
    )
    own = mapping_node(
        [
            (key, value)
            for key, value in model.items()
            if key not in ("modelFormat", "runtime", "storageUri", "storage", "args")
        ],
        model.span,
    )
    container = merge(base, own, budget)
    args = [*base.get("args").elements(), *model.get("args").elements()]
    if args:
        container = with_entry(container, "args", sequence_node(args, model.get("args").span))
    pod = merge(runtime, predictor, budget) if runtime.is_mapping else predictor
    return container, pod


def _with_default(
    container: Node, runtime: Word | None, model_format: Word | None, nim: Word | None
) -> tuple[Node, str | None]:
    """A container as KServe's own runtime of the format has it, and the engine it is known by."""
    if nim is not None:
        return container, "nim"
    called = f"{(runtime or '')[:200]} {(model_format or '')[:200]}".lower()
    if any(name == (model_format or "").lower() for name in _OTHER_FORMATS):
        return container, None
    command = _FORMAT_COMMANDS.get((model_format or "").lower())
    if runtime is not None and "huggingface" in runtime.lower():
        command = _FORMAT_COMMANDS["huggingface"]
    engine = next((engine for part, engine in _NAMED_ENGINES if part in called), None)
    if command is not None and engine in (None, "vllm") and not container.get("command"):
        at = (model_format or runtime or Word("")).span
        words = sequence_node([text_node(Word(word, at)) for word in command], at)
        return with_entry(container, "command", words), "vllm"
    return container, engine


def _unknown(
    document: Node, model: Node, runtime: Word | None, model_format: Word | None
) -> Server:
    """A service of which only the cluster knows what serves it."""
    place = document.get("metadata", "name").text or Word("predictor", document.span)
    lowered = (model_format or "").lower()
    if lowered in _OTHER_FORMATS:
        why = f"models of the format {lowered} are no language models"
    else:
        named = f"{runtime!s:.80}" if runtime is not None else f"for {model_format or '?'!s:.80}"
        why = f"its serving runtime ({named}) is not in this folder"
    server = Server(name=str(place), place=place, skipped=why)
    _name_model(server, model.get("storageUri").text, document)
    return server


def _name_model(server: Server, uri: Word | None, document: Node) -> None:
    """The model by `--model_id`, else by the place that it is loaded from."""
    for flag in ("--model-id", "--model"):
        given = flag_value(server.words, flag)
        if given and not given.startswith(_MOUNT) and "{{" not in given:
            return
    if not uri:
        server.fallback_model = server.fallback_model or _served_name(server, document)
        return
    server.model = uri_model(uri)
    if "://" in server.model:
        server.fallback_model = _served_name(server, document)


def uri_model(uri: Word) -> Word:
    """The model of a storage URI: the hub's name for hf://, else the URI."""
    if not uri.startswith("hf://"):
        return uri
    name = uri.cut(len("hf://"))
    revision = name.find(":")
    return name if revision < 0 else name.cut(0, revision)


def _served_name(server: Server, document: Node) -> Word | None:
    for flag in ("--model-name", "--served-model-name"):
        given = flag_value(server.words, flag)
        if given and "{{" not in given:
            return given
    return document.get("metadata", "name").text


def _nodes_of(worker: Node) -> Stated[int] | None:
    """Pods of a server: one for each pipeline stage."""
    size = worker.get("pipelineParallelSize")
    number = size.integer()
    if number is None or not 0 < number < 10_000:
        return None
    return Stated(number, size.word)


def _parallel_flags(worker: Node, words: tuple[Word, ...]) -> list[Word]:
    """Flags that `workerSpec` stands for, where the command does not give them."""
    found: list[Word] = []
    for key, flag in (
        ("tensorParallelSize", "--tensor-parallel-size"),
        ("pipelineParallelSize", "--pipeline-parallel-size"),
    ):
        value = worker.get(key).text
        name = worker.key(key)
        if value is not None and flag_value(words, flag) is None:
            found += [Word(flag, name.span if name is not None else value.span), value]
    return found


# --- NIM runtimes -----------------------------------------------------------------------------


def _nim_name(runtime: Word | None, model_format: Word | None) -> Word | None:
    """The model in the name of a NIM runtime (`nvidia-nim-llama-3.1-8b-instruct-1.0.0`)."""
    names = [name for name in (runtime, model_format) if name is not None]
    if not any("nim-" in name.lower()[:100] for name in names):
        return None
    named = runtime if runtime is not None else model_format
    if named is None or len(named) > 200:
        return None
    start = len("nvidia-") if named.lower().startswith("nvidia-") else 0
    start += len("nim-") if named.lower().startswith("nim-", start) else 0
    end = len(named)
    for _ in range(3):
        for pattern in (_VERSION_END, _GPUS_END):
            match = pattern.search(named, start, end)
            if match is not None and match.start() > start:
                end = match.start()
    return named.cut(start, end)


# --- LLMInferenceService ----------------------------------------------------------------------


def _read_llm_service(document: Node, context: Context) -> Reading:
    kind = "kserve_llmisvc"
    is_config = document.get("kind").word == "LLMInferenceServiceConfig"
    try:
        spec = _with_configs(document, context)
        servers = _llm_servers(document, spec, spec, context, "")
        if spec.get("prefill").is_mapping:
            servers += _llm_servers(document, spec, spec.get("prefill"), context, "prefill")
    except TooMuch:
        return Reading(kind=kind, skipped="larger than any real service")
    for server in servers:
        if is_config and server.model is None and not server.skipped:
            server.skipped = _NO_MODEL_CONFIG
    if is_config and all(server.skipped for server in servers):
        return Reading(kind=kind, servers=servers, skipped=_NO_MODEL_CONFIG)
    return Reading(kind=kind, servers=servers)


def _with_configs(document: Node, context: Context) -> Node:
    """`spec` laid over those of `baseRefs` that are in the same file or folder."""
    budget = Budget(400_000)
    spec: Node = ABSENT
    for reference in document.get("spec", "baseRefs").elements()[:_MOST_REFERENCES]:
        name = reference.get("name").word
        base = _documents(context, ("LLMInferenceServiceConfig",), name).get("spec")
        if base.is_mapping and base is not document.get("spec"):
            spec = merge(spec, base, budget)
    return merge(spec, document.get("spec"), budget)


def _llm_servers(
    document: Node, spec: Node, workload: Node, context: Context, role: str
) -> list[Server]:
    """The server of one workload: the service's own (decode), or `prefill`."""
    template = workload.get("template")
    pod = template if template.is_mapping else workload.get("worker")
    container, is_default = _main_container(pod, workload, context)
    nodes = _llm_nodes(workload)
    owner = owner_of(document)
    servers = servers_of_container(
        container,
        pod,
        context,
        kind="kserve_llmisvc",
        nodes=nodes,
        extra_environment={"VLLM_ADDITIONAL_ARGS": ""},
        labels=document.get("metadata", "labels"),
    )
    for server in servers[:1]:
        server.name = f"{owner}/{role}".rstrip("/") or server.name
        place = spec.get("model", "name").text or document.get("metadata", "name").text
        server.place = (document.get("metadata", "name").text or place) or server.place
        if role:
            server.place = document.get("spec").key("prefill") or server.place
        server.words = _without_mount(server.words)
        if is_default:
            server.words = (*_llm_flags(workload, server.words), *server.words)
        _llm_model(server, spec)
        _llm_devices(server, document)
        if not any(m.get("mountPath") for m in container.get("volumeMounts").elements()[:64]):
            server.shm_is_default = False  # the cluster's config mounts one
        offload = workload.get("kvCacheOffloading", "cpu") or workload.get(
            "workload", "kvCacheOffloading", "cpu"
        )
        if offload.text is not None:
            server.notes += (f"offloads KV cache to {offload.word:.40} of host memory",)
    return servers[:1]


def _main_container(pod: Node, workload: Node, context: Context) -> tuple[Node, bool]:
    """The container `main`, and whether its command is KServe's own.

    KServe's command is the engine with the model's folder, the container's arguments and
    VLLM_ADDITIONAL_ARGS.
    """
    del workload
    containers = pod.get("containers").elements()
    main = next((c for c in containers if c.get("name").word == "main"), ABSENT)
    if not main:
        main = mapping_node([(Word("name"), text_node(Word("main")))], pod.span)
    command = main.get("command")
    written = " ".join(word[:20_000] for word in [*command.words(), *main.get("args").words()][:64])
    if command:
        return main, "Spec.Parallelism" in written
    more = _additional(main, context)
    at = main.span
    image = main.get("image").word.lower()
    program = ("python3", "-m", "sglang.launch_server") if "sglang" in image else ("vllm", "serve")
    words = [text_node(Word(word, at)) for word in program]
    args = [*main.get("args").elements(), *(text_node(word) for word in more)]
    main = with_entry(main, "command", sequence_node(words, at))
    return with_entry(main, "args", sequence_node(args, at)), True


def _additional(container: Node, context: Context) -> list[Word]:
    """The words of VLLM_ADDITIONAL_ARGS, split as the shell of KServe's command splits them."""
    from moesize.check.shell import words_in
    from moesize.check.source import SourceText

    environment = environment_of(container, context)
    given = environment.get("VLLM_ADDITIONAL_ARGS")
    if not given:
        return []
    for entry in container.get("env").elements()[:500]:
        value = entry.get("value")
        is_it = entry.get("name").word == "VLLM_ADDITIONAL_ARGS"
        if is_it and isinstance(value, Scalar) and value.word == given:
            return words_in(value.source_text(), environment)
    return words_in(SourceText.of_word(given), environment)


def _without_mount(words: tuple[Word, ...]) -> tuple[Word, ...]:
    """Words less the folder that KServe mounts the model at: `spec.model` says what is in it."""
    kept: list[Word] = []
    for word in words:
        flag, equals, value = word.partition("=")
        if (value if equals else word).startswith(_MOUNT) and (
            not equals or flag in ("--model", "--model-path", "--model_path")
        ):
            if not equals and kept and kept[-1] in ("--model", "--model-path", "--model_path"):
                kept.pop()
            continue
        kept.append(word)
    return tuple(kept)


def _llm_nodes(workload: Node) -> Stated[int] | None:
    """Pods of one server: data-parallel ranks by those of a pod, or pipeline stages."""
    parallelism = workload.get("parallelism")
    data, local = parallelism.get("data"), parallelism.get("dataLocal")
    ranks, ranks_here = data.integer(), local.integer()
    if ranks and ranks_here and 0 < ranks_here <= ranks < 100_000:
        return Stated(-(-ranks // ranks_here), data.word)
    stages = parallelism.get("pipeline").integer()
    if stages and 0 < stages < 10_000 and workload.get("worker").is_mapping:
        return Stated(stages, parallelism.get("pipeline").word)
    return None


def _llm_flags(workload: Node, words: tuple[Word, ...]) -> list[Word]:
    """Flags that `parallelism` stands for."""
    parallelism = workload.get("parallelism")
    found: list[Word] = []
    for key, flag in (
        ("tensor", "--tensor-parallel-size"),
        ("pipeline", "--pipeline-parallel-size"),
        ("data", "--data-parallel-size"),
        ("dataLocal", "--data-parallel-size-local"),
    ):
        value, name = parallelism.get(key).text, parallelism.key(key)
        if value is not None and name is not None and flag_value(words, flag) is None:
            found += [Word(flag, name.span), value]
    name = parallelism.key("expert")
    if name is not None and parallelism.get("expert").boolean():
        found.append(Word("--enable-expert-parallel", name.span))
    return found


def _llm_model(server: Server, spec: Node) -> None:
    uri, name = spec.get("model", "uri").text, spec.get("model", "name").text
    if uri:
        server.model = uri_model(uri)
    server.fallback_model = name or server.fallback_model


def _llm_devices(server: Server, document: Node) -> None:
    """Devices of DRA that annotations ask for."""
    notes = document.get("metadata", "annotations")
    device_class, count = notes.get(_DRA + "device-class"), notes.get(_DRA + "device-count")
    selector = notes.get(_DRA + "cel-selector")
    if not device_class and not count and not selector:
        return
    number = count.integer() if count else 1
    at = count.word if count else device_class.word
    if server.gpus_per_node is None and number is not None and 0 < number < 10_000:
        server.gpus_per_node = Stated(number, at)
    server.vendor = server.vendor or dra_vendor(device_class.word)
    if not server.gpus and selector.text is not None:
        server.gpus = tuple(cel_claims([selector.word]))


def _matches_service(document: Node) -> bool:
    return _is_kind(document, "InferenceService") and (document.get("spec", "predictor").is_mapping)


FORMATS = (
    Format("kserve_isvc", _matches_service, _read_service),
    Format("kserve_servingruntime", lambda document: _is_kind(document, *_RUNTIMES), _read_runtime),
    Format(
        "kserve_llmisvc",
        lambda document: _is_kind(document, "LLMInferenceService", "LLMInferenceServiceConfig"),
        _read_llm_service,
    ),
)
