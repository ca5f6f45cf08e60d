"""Containers of pods: what all Kubernetes kinds share."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from moesize.check.readers.pod_resources import (
    DraRequest,
    GpuRequest,
    dra_request,
    gpu_claims,
    gpu_request,
    stated_bytes,
)
from moesize.check.server import Deadline, Server, Stated, Unresolved
from moesize.check.source import SourceText, Word
from moesize.check.yaml_tree import ABSENT, Node, Scalar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from moesize.check.formats import Context
    from moesize.check.shell import Launch

_MOST_CONTAINERS = 64
_MOST_VARIABLES = 500
_MOST_FILLED = 4096
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][\w.-]{0,200})\)")
# Variables that operators give to pods of a group: its size, and what differs by pod and never
# decides over memory. LeaderWorkerSet, RoleBasedGroup, StormService.
_GROUP_SIZES = ("LWS_GROUP_SIZE", "RBG_LWP_GROUP_SIZE", "POD_GROUP_SIZE")
_GROUP_PLACES = {
    "LWS_LEADER_ADDRESS": "leader",
    "LWS_WORKER_INDEX": "0",
    "RBG_LWP_LEADER_ADDRESS": "leader",
    "RBG_LWP_WORKER_INDEX": "0",
    "POD_GROUP_INDEX": "0",
}

# Words in the name of an image whose container serves no model, whatever else the name says.
_HELPERS = (
    "router",
    "routing",
    "sidecar",
    "proxy",
    "scheduler",
    "picker",
    "gateway",
    "exporter",
    "benchmark",
    "lmcache-server",
    "lmcache_server",
    "storage-initializer",
    "downloader",
    "embeddings-inference",
    "operator",
    "controller",
    "webui",
)
# Flags that only one engine has, for images whose name tells nothing (mirrors, own builds).
_TELLING_FLAGS = (
    ("vllm", ("--max-model-len", "--gpu-memory-utilization", "--tensor-parallel-size")),
    ("sglang", ("--mem-fraction-static", "--tp-size", "--chunked-prefill-size")),
    ("tgi", ("--num-shard", "--max-total-tokens", "--max-batch-prefill-tokens")),
    ("llama.cpp", ("--n-gpu-layers", "--ctx-size", "-ngl")),
    ("tensorrt-llm", ("--max_seq_len", "--tp_size", "--kv_cache_free_gpu_memory_fraction")),
)
# Labels that people and tools put the model's name in: evidence, no more.
_MODEL_LABELS = (
    "ai.gke.io/model",
    "llm-d.ai/model",
    "model.aibrix.ai/name",
    "modelName",
    "model",
)
# Variables that people keep the model's name in.
_MODEL_VARIABLES = ("MODEL_ID", "MODEL_NAME", "MODEL", "HF_MODEL_ID", "MODEL_PATH")
# What a kind of file serves with when nothing in it says so.
_ENGINE_OF_KIND = {"kserve_llmisvc": "vllm"}


def servers_of_pod(
    pod: Node,
    context: Context,
    *,
    kind: str,
    nodes: Stated[int] | None = None,
    extra_environment: Mapping[str, str] | None = None,
    labels: Node = ABSENT,
    owner: str = "",
    engine: str | None = None,
    gpu_keys: Sequence[str] = (),
) -> list[Server]:
    """The model servers among the containers of a pod spec (`containers`, `volumes`, ...).

    nodes              pods of one replica; known to the containers as LWS_GROUP_SIZE
    extra_environment  variables that the kind gives to every container
    labels             of the pod: one of them may name the model
    owner              name of the object, before the container's in the server's name
    engine             what serves where neither the command nor the image says it
    gpu_keys           resources that are GPUs in this kind beside those of Kubernetes (`gpu`)
    """
    found: list[Server] = []
    for container, is_main in _containers(pod):
        found += servers_of_container(
            container,
            pod,
            context,
            kind=kind,
            nodes=nodes,
            extra_environment=extra_environment,
            labels=labels,
            owner=owner,
            engine=engine if is_main else None,
            gpu_keys=gpu_keys,
            is_main=is_main,
        )
    return found


def _containers(pod: Node) -> Iterator[tuple[Node, bool]]:
    """Containers, and whether each is one that may be a server by its image alone."""
    for key in ("mainContainer", "runner"):  # of Dynamo's and OME's
        if pod.get(key).is_mapping:
            yield pod.get(key), True
    for container in pod.get("containers").elements()[:_MOST_CONTAINERS]:
        yield container, True
    for container in pod.get("initContainers").elements()[:_MOST_CONTAINERS]:
        if container.get("restartPolicy").word == "Always":
            yield container, False


def servers_of_container(
    container: Node,
    pod: Node,
    context: Context,
    *,
    kind: str,
    nodes: Stated[int] | None = None,
    extra_environment: Mapping[str, str] | None = None,
    labels: Node = ABSENT,
    owner: str = "",
    engine: str | None = None,
    gpu_keys: Sequence[str] = (),
    is_main: bool = True,
) -> list[Server]:
    """The model servers that one container runs: none, one, or several on the same GPUs."""
    if not container.is_mapping:
        return []
    image = container.get("image").text
    name = container.get("name").text
    place = name or image or Word(kind, container.span)
    if is_helper(image or "") or (image is None and is_helper(name or "")):
        return []
    environment = environment_of(container, context, nodes=nodes, extra=extra_environment)
    asked = _filled_in(gpu_request(container.get("resources"), gpu_keys), context)
    dra = dra_request(container, pod, context)
    programs = _programs(container, pod, context, environment, image)
    if not programs and is_main:
        hint = engine or _ENGINE_OF_KIND.get(kind)
        programs = _unnamed_programs(
            container, environment, image, asked, hint, tuple(context.variables)
        )
    group = ""
    if len(programs) > 1:
        line = place.span.line if place.span else 0
        group = f"{context.path}:{line}:{owner}/{name or ''}"
    # Branches of a script, and models that Ollama swaps, are never loaded beside each other.
    is_either = all(one.is_alternative or one.engine == "ollama" for one in programs)
    servers: list[Server] = []
    for number, program in enumerate(programs, 1):
        title = str(name or program.place or kind)
        if owner and title != owner:
            title = f"{owner}/{title}"
        server = Server(
            name=title if not group else f"{title}#{number}",
            place=place if not group else program.place or place,
            engine=program.engine,
            words=program.words,
            environment=dict(program.environment),
            image=program.image or image,
            model=program.model,
            fallback_model=_evident_model(program.environment, labels),
            nodes=nodes,
            device_ids=program.devices,
            shares_with="" if is_either else group,
            exclusive=group if is_either else "",
            unresolved=program.unresolved,
            skipped=program.skipped,
            notes=program.notes,
        )
        _add_gpus(server, pod, asked, dra, program)
        _add_limits(server, container, pod)
        _add_group(server)
        servers.append(server)
    return servers


# --- environment ------------------------------------------------------------------------------


def environment_of(
    container: Node,
    context: Context,
    *,
    nodes: Stated[int] | None = None,
    extra: Mapping[str, str] | None = None,
) -> dict[str, Word]:
    """Variables of a container: `envFrom`, then `env` in order, then what the user set.

    Values of secrets and of fields are left out: no file says what they are.
    """
    found: dict[str, Word] = {}
    for source in container.get("envFrom").elements()[:_MOST_CONTAINERS]:
        prefix = source.get("prefix").word
        for key, value in _config_map(source.get("configMapRef", "name").word, context).items():
            if value.text is not None and len(found) < _MOST_VARIABLES:
                found[prefix + key] = value.word
    for name, text in _GROUP_PLACES.items():
        found[name] = Word(text)
    if nodes is not None:
        for name in _GROUP_SIZES:
            found[name] = nodes.at.becomes(str(nodes.value))
    for name, text in (extra or {}).items():
        found[name] = text if isinstance(text, Word) else Word(text)
    for entry in container.get("env").elements()[:_MOST_VARIABLES]:
        variable = entry.get("name").text
        if variable is None:
            continue
        found.pop(str(variable), None)
        stated = _stated_value(entry, context)
        if stated is not None:
            found[str(variable)] = fill_references(stated, found)
    for name, text in context.variables.items():
        found[name] = found[name].becomes(text) if name in found else Word(text)
    return found


def _stated_value(entry: Node, context: Context) -> Word | None:
    """The text of an `env` entry; None for values that no file states."""
    value = entry.get("value")
    if value.text is not None:
        return value.text
    reference = entry.get("valueFrom", "configMapKeyRef")
    if reference:
        data = _config_map(reference.get("name").word, context)
        return data.get(str(reference.get("key").word)).text
    return None if entry.get("valueFrom") else value.word


def _config_map(name: str, context: Context) -> Node:
    """`data` of a ConfigMap, as it stands or as a kustomization beside the file makes it."""
    if not name:
        return ABSENT
    data = context.folder.config_map(name, context.documents)
    if data:
        return data
    from moesize.check.readers.kustomize import generated_config_map

    return generated_config_map(name, context)


def fill_references(value: Word, environment: Mapping[str, Word]) -> Word:
    """`$(NAME)` of variables that are known put in, `$$` made `$`, as Kubernetes does."""
    if "$" not in value:
        return value
    whole = _REFERENCE.fullmatch(value)
    if whole is not None and whole[1] in environment:
        return environment[whole[1]]

    def known(match: re.Match[str]) -> str:
        if match[1] is None:
            return "$"
        return environment.get(match[1], match[0])

    filled = _REFERENCE.sub(known, value)
    return value.becomes(filled) if len(filled) <= len(value) + _MOST_FILLED else value


def _evident_model(environment: Mapping[str, Word], labels: Node) -> Word | None:
    """A name that variables or labels give away: evidence, where no flag names the model."""
    for name in _MODEL_VARIABLES:
        value = environment.get(name)
        if value and is_hub_id(value):
            return value
    for key in _MODEL_LABELS:
        text = labels.get(key).text
        if text:
            return text
    return None


def is_hub_id(text: str) -> bool:
    """Whether a text looks like `org/name`."""
    return len(text) <= 200 and _HUB_ID.fullmatch(text) is not None


# --- programs ---------------------------------------------------------------------------------


class _Program(NamedTuple):
    """What a container runs, however that was found out."""

    engine: str | None
    words: tuple[Word, ...]
    environment: Mapping[str, Word]
    place: Word | None = None
    image: Word | None = None
    model: Word | None = None
    visible: int | None = None
    devices: tuple[str, ...] = ()
    unresolved: tuple[Unresolved, ...] = ()
    skipped: str = ""
    notes: tuple[str, ...] = ()
    is_alternative: bool = False


def is_helper(name: str) -> bool:
    """Whether an image (or container) is a router, proxy, exporter, ... beside the servers."""
    # The last two parts: ghcr.io/vllm-project/semantic-router/extproc.
    last = "/".join(name[:500].partition("@")[0].lower().split("/")[1:][-2:]) or name[:500].lower()
    return any(word in last for word in _HELPERS)


def _words_of(container: Node) -> list[Word]:
    return [*container.get("command").words(), *container.get("args").words()]


def _programs(
    container: Node,
    pod: Node,
    context: Context,
    environment: Mapping[str, Word],
    image: Word | None,
) -> list[_Program]:
    """The engines that command and args start, or the image with them."""
    from moesize.check.shell import launches_in, launches_of, words_and_texts

    command, args = container.get("command"), container.get("args")
    nim = nim_program(image, environment)
    if nim is not None and not command:
        return [nim]
    fixed = tuple(context.variables)
    if isinstance(command, Scalar) and " " in command.value:
        # No Kubernetes kind takes a text here; kinds of others do.
        launches = launches_in(command.source_text(), environment, args.words(), fixed=fixed)
    else:
        scalars = [
            scalar
            for node in (command, args)
            for scalar in ([node] if isinstance(node, Scalar) else node.elements())
        ]
        words, texts = words_and_texts(scalars)
        launches = launches_of(words, environment, image=image, texts=texts, fixed=fixed)
    if not launches:
        for script in _mounted_scripts(container, pod, context):
            launches = launches_in(script, environment, fixed=fixed)
            if launches:
                break
    if nim is not None and (not launches or launches[0].engine == "nim"):
        return [nim]
    programs = [_of_launch(launch) for launch in launches]
    if [one.engine for one in programs] == ["ollama"] and programs[0].model is None:
        model = _pulled_model(container, environment)
        programs = [programs[0]._replace(model=model)]
    return programs


def _of_launch(launch: Launch) -> _Program:
    words = launch.words
    # What follows `ollama run` is no flag but the model.
    model = words[0] if launch.engine == "ollama" and words else None
    return _Program(
        engine=launch.engine,
        words=() if launch.engine == "ollama" else words,
        environment=launch.environment,
        place=launch.place,
        image=launch.image,
        model=model,
        visible=launch.visible,
        devices=launch.devices,
        unresolved=launch.unresolved,
        is_alternative=launch.alternative,
    )


def _mounted_scripts(container: Node, pod: Node, context: Context) -> Iterator[SourceText]:
    """Scripts that the command names and that a ConfigMap of the same folder mounts."""
    mounts = container.get("volumeMounts").elements()[:_MOST_CONTAINERS]
    for word in _words_of(container):
        for path in (str(word), *(word.split() if len(word) < 500 else ())):
            if not path.startswith("/"):
                continue
            for mount in mounts:
                text = _mounted_file(path, mount, pod, context)
                if text is not None:
                    yield text


def _mounted_file(path: str, mount: Node, pod: Node, context: Context) -> SourceText | None:
    at = mount.get("mountPath").word.rstrip("/")
    sub = mount.get("subPath").word
    if not at or not (path == at if sub else path.startswith(at + "/")):
        return None
    volume = _named(pod.get("volumes"), mount.get("name").word)
    source = volume.get("configMap")
    key = sub or path[len(at) + 1 :]
    for item in source.get("items").elements()[:_MOST_CONTAINERS]:
        if item.get("path").word == key:
            key = item.get("key").word
            break
    node = _config_map(source.get("name").word, context).get(str(key))
    return node.source_text() if isinstance(node, Scalar) and node.value else None


def _named(nodes: Node, name: str) -> Node:
    for node in nodes.elements()[:_MOST_VARIABLES]:
        if name and node.get("name").word == name:
            return node
    return ABSENT


def _unnamed_programs(
    container: Node,
    environment: Mapping[str, Word],
    image: Word | None,
    asked: GpuRequest,
    hint: str | None,
    fixed: Sequence[str],
) -> list[_Program]:
    """A container in which no program was recognised: by its flags, its image or its kind."""
    from moesize.engine_args.words import engine_of_image

    words = _words_of(container)
    is_flags = not words or words[0].startswith("-")
    by_image = engine_of_image(image) if image is not None else None
    if is_flags and hint is not None:
        return [_as_if(by_image or hint, container, environment, fixed)]
    engine = _engine_of_flags(words) if is_flags else None
    if engine is not None:
        note = f"taken for {engine}, whose flags these are; the image does not tell"
        return [_as_if(engine, container, environment, fixed)._replace(notes=(note,))]
    if _is_ollama(image) and is_flags:
        return [_Program("ollama", (), environment, model=_pulled_model(container, environment))]
    if _starts_triton(words):
        note = "Triton with TensorRT-LLM: the engine was built beforehand, its limits with it"
        flags = _parallel_flags(container)
        return [_Program("tensorrt-llm", flags, environment, notes=(note,))]
    if by_image is None or (asked.number is None and asked.open_word is None):
        return []
    if any("ray" in word and "worker" in word for word in words) or is_joining(words):
        return []
    skipped = "its command starts no engine that is known"
    return [_Program(by_image, (), environment, skipped=skipped)]


def is_joining(words: Sequence[Word]) -> bool:
    """Whether a command only joins a group that another pod leads (`ray start --address`)."""
    text = " ".join(word[:2000] for word in words[:64])
    return ("ray start" in text or "ray_address" in text) and "--head" not in text


def _engine_of_flags(words: Sequence[Word]) -> str | None:
    names = {word.partition("=")[0] for word in words}
    scores = [(sum(flag in names for flag in flags), engine) for engine, flags in _TELLING_FLAGS]
    best = max(score for score, _ in scores)
    found = [engine for score, engine in scores if score == best]
    return found[0] if best and len(found) == 1 else None


# What starts an engine, for flags that stand without it.
_COMMANDS = {
    "vllm": ("vllm", "serve"),
    "sglang": ("python3", "-m", "sglang.launch_server"),
    "tgi": ("text-generation-launcher",),
    "llama.cpp": ("llama-server",),
    "tensorrt-llm": ("trtllm-serve", "serve"),
}


def _as_if(
    engine: str, container: Node, environment: Mapping[str, Word], fixed: Sequence[str]
) -> _Program:
    """Flags as an engine's, with the variables in them filled in."""
    from moesize.check.shell import launches_of, words_and_texts

    words, texts = words_and_texts(
        [*container.get("command").elements(), *container.get("args").elements()]
    )
    command = [Word(word) for word in _COMMANDS.get(engine, ())]
    launches = launches_of([*command, *words], environment, texts=texts, fixed=fixed)
    if command and launches and launches[0].engine == engine:
        return _of_launch(launches[0])._replace(place=None)
    return _Program(engine, tuple(words), environment)


def _starts_triton(words: Sequence[Word]) -> bool:
    """Whether a command starts Triton for TensorRT-LLM's backend, by itself or by a script."""
    text = " ".join(word[:4000] for word in words[:64]).lower()
    starts = ("tritonserver", "triton_server", "triton_model_repo", "model-repository")
    return ("tensorrtllm" in text or "trtllm" in text or "tensorrt_llm" in text) and any(
        name in text for name in starts
    )


# How scripts that start Triton call the sizes that trtllm-serve has flags for.
_PARALLEL_FLAGS = {
    "--tp": "--tp_size",
    "--tp-size": "--tp_size",
    "--tensor-parallel-size": "--tp_size",
    "--pp": "--pp_size",
    "--pp-size": "--pp_size",
    "--pipeline-parallel-size": "--pp_size",
}


def _parallel_flags(container: Node) -> tuple[Word, ...]:
    """The parallel sizes among the words of a script that is not known."""
    from moesize.check.shell import words_in

    words: list[Word] = []
    for scalar in [*container.get("command").elements(), *container.get("args").elements()]:
        if isinstance(scalar, Scalar) and len(scalar.value) <= 20_000:
            words += words_in(scalar.source_text())
    found: list[Word] = []
    for index, word in enumerate(words):
        name, equals, _ = word.partition("=")
        flag = _PARALLEL_FLAGS.get(name.replace("_", "-"))
        value = word.cut(len(name) + 1) if equals else words[index + 1 : index + 2]
        size = value if isinstance(value, Word) else (value[0] if value else None)
        if flag is not None and size is not None and integer_of(size):
            found += [word.cut(0, len(name)).becomes(flag), size]
    return tuple(found)


def _is_ollama(image: Word | None) -> bool:
    name = (image or "").partition("@")[0].lower()
    return name.rpartition("/")[2].partition(":")[0] == "ollama"


def _pulled_model(container: Node, environment: Mapping[str, Word]) -> Word | None:
    """The model that a container of Ollama pulls once it has started."""
    from moesize.check.shell import launches_of, words_and_texts

    hook = container.get("lifecycle", "postStart", "exec", "command")
    words, texts = words_and_texts(hook.elements())
    launches = launches_of(words, environment, texts=texts)
    return next((one.words[0] for one in launches if one.engine == "ollama" and one.words), None)


# --- NIM --------------------------------------------------------------------------------------

# Parts of NIM names that serve no language model by generation.
_OTHER_NIMS = (
    "embed",
    "rerank",
    "clip",
    "ocr",
    "riva",
    "asr",
    "tts",
    "parakeet",
    "canary",
    "whisper",
    "page-elements",
    "graphic-elements",
    "table-structure",
    "yolox",
    "paddle",
    "parse",
    "detect",
    "nemoguard",
    "guard",
    "safety",
    "topic-control",
    "flux",
    "diffusion",
    "cosmos",
    "fold",
    "boltz",
    "evo2",
    "audio2face",
    "maxine",
    "cuopt",
    "retriever",
)
# Images that serve whichever model NIM_MODEL_NAME says.
_ANY_MODEL_NIMS = ("llm-nim", "vllm-nim", "sglang-nim", "multi-llm")
_NIM_FLAGS = {
    "NIM_TENSOR_PARALLEL_SIZE": "--tensor-parallel-size",
    "NIM_PIPELINE_PARALLEL_SIZE": "--pipeline-parallel-size",
    "NIM_MAX_MODEL_LEN": "--max-model-len",
}


def nim_model(image: Word) -> Word | None:
    """The model in the name of a NIM image, `nvcr.io/nim/meta/llama3-8b-instruct:1.0`.

    None for images that are no NIM; an empty word for those that serve any model.
    """
    name = image.partition("@")[0]
    start = 0 if name.startswith("nim/") else name.find("/nim/") + 1
    if not start and not name.startswith("nim/"):
        return None
    start += len("nim/")
    end = name.find(":", start)
    model = image.cut(start, end if end >= 0 else len(name))
    if "/" not in model:
        return None
    return model.becomes("") if model.rpartition("/")[2] in _ANY_MODEL_NIMS else model


def nim_program(image: Word | None, environment: Mapping[str, Word]) -> _Program | None:
    """NVIDIA's NIM by the name of its image: model by image or variable, flags by variables."""
    model = nim_model(image) if image is not None else None
    if model is None or image is None:
        return None
    given = environment.get("NIM_MODEL_NAME")
    if given:
        model = given.cut(5) if given.startswith("hf://") else given
    words: list[Word] = []
    for name, flag in _NIM_FLAGS.items():
        value = environment.get(name)
        if value:
            words += [Word(flag, value.span), value]
    skipped = other_nim(model)
    return _Program(
        "nim", tuple(words), environment, place=image, model=model or None, skipped=skipped
    )


def other_nim(model: str) -> str:
    """Why a NIM of that name is no language model's; empty where it is."""
    lowered = model.lower()
    if any(part in lowered for part in _OTHER_NIMS):
        return "a NIM that generates no text (embedding, ranking, vision, speech, guard)"
    return ""


# --- GPUs, limits, probes ---------------------------------------------------------------------


def _filled_in(asked: GpuRequest, context: Context) -> GpuRequest:
    """A number of GPUs that is a variable, where the user said what it stands for."""
    if asked.open_word is None:
        return asked
    given = integer_of(Word(context.variables.get(_open_name(asked.open_word), "")))
    if given is None:
        return asked
    return asked._replace(number=Stated(given, asked.open_word), open_word=None)


def _open_name(word: Word) -> str:
    return word.strip("${}() .")[:200]


def _add_gpus(
    server: Server, pod: Node, asked: GpuRequest, dra: DraRequest | None, program: _Program
) -> None:
    """The GPUs that a container asks for, and their kind."""
    server.gpus = gpu_claims(pod, asked.mig)
    server.vendor = asked.vendor
    server.gpus_per_node = asked.number
    if asked.open_word is not None:
        server.unresolved += (Unresolved(_open_name(asked.open_word), asked.open_word),)
    if dra is not None:
        server.gpus_per_node = server.gpus_per_node or dra.number
        server.gpus = server.gpus or dra.claims
        server.vendor = server.vendor or dra.vendor
    beside = server.shares_with or server.gpus_per_node is None
    if program.visible and beside and program.place is not None:
        server.gpus_per_node = Stated(program.visible, program.place)


def _add_group(server: Server) -> None:
    """What the flags say of the other pods of a server that spans several."""
    nodes = flag_value(server.words, "--nnodes")
    number = integer_of(nodes)
    if server.nodes is None and nodes is not None and number is not None and 0 < number < 100_000:
        server.nodes = Stated(number, nodes)
    if server.skipped:
        return
    rank = integer_of(flag_value(server.words, "--node-rank"))
    if rank:
        server.skipped = f"a further pod of a server that spans several (--node-rank {rank})"
    elif any(word.replace("_", "-") == "--headless" for word in server.words):
        server.skipped = "a further pod of a server that another one leads (--headless)"


def flag_value(words: Sequence[Word], name: str) -> Word | None:
    """What follows a flag, `--flag value` or `--flag=value`; underscores count as dashes."""
    for index, word in enumerate(words):
        flag, equals, _ = word.partition("=")
        if flag.replace("_", "-") != name:
            continue
        if equals:
            return word.cut(len(flag) + 1)
        return words[index + 1] if index + 1 < len(words) else None
    return None


def integer_of(word: Word | None) -> int | None:
    """The whole number that a word is."""
    if word is None or not 0 < len(word) <= 18 or not word.isascii() or not word.isdigit():
        return None
    return int(word)


def _add_limits(server: Server, container: Node, pod: Node) -> None:
    server.memory_limit = stated_bytes(container.get("resources", "limits", "memory"))
    server.shm, server.shm_is_default = shared_memory(container, pod)
    server.deadlines = deadlines_of(container)


def shared_memory(container: Node, pod: Node) -> tuple[Stated[int] | None, bool]:
    """(/dev/shm in bytes, whether the container is left with its runtime's default)."""
    for mount in container.get("volumeMounts").elements()[:_MOST_VARIABLES]:
        if mount.get("mountPath").word.rstrip("/") != "/dev/shm":
            continue
        volume = _named(pod.get("volumes"), mount.get("name").word)
        # A volume in memory without a limit may fill half of the node; others are real disks.
        return stated_bytes(volume.get("emptyDir", "sizeLimit")), False
    return None, pod.get("hostIPC").boolean() is not True


def deadlines_of(container: Node) -> tuple[Deadline, ...]:
    """The probe that ends a container which does not come up in time.

    A startup probe holds the liveness probe back; without one, liveness counts from the start. A
    readiness probe ends nothing.
    """
    for what in ("startupProbe", "livenessProbe"):
        probe = container.get(what)
        if not probe.is_mapping:
            continue
        delay = _seconds(probe.get("initialDelaySeconds"), 0)
        period = _seconds(probe.get("periodSeconds"), 10) or 10
        failures = _seconds(probe.get("failureThreshold"), 3) or 3
        at = (
            probe.get("failureThreshold").text
            or probe.get("initialDelaySeconds").text
            or container.key(what)
            or Word(what, probe.span)
        )
        return (Deadline(delay + failures * period, at, what),)
    return ()


def _seconds(node: Node, default: int) -> int:
    found = node.integer()
    return found if found is not None and 0 <= found < 10**9 else default
