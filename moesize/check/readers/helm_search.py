"""A search for model servers in the values of charts that are not known.

Values files of Helm charts state no kind and share no keys. What is looked for, within bounds: a
model, an engine that is named or shows in an image or in flags, and GPUs or flags beside them.
Without all of these the file is no model server's.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from moesize.check.readers import helm_charts as charts
from moesize.check.readers.engine_config import (
    engine_of_flags,
    find_flag,
    flag_words,
    options_of,
    plain_key,
)
from moesize.check.readers.made import made_mapping
from moesize.check.readers.pod_resources import GpuRequest, gpu_claims, gpu_request, stated_bytes
from moesize.check.readers.pods import is_helper, servers_of_container
from moesize.check.server import GpuClaim, Server, Stated
from moesize.check.shell import words_in
from moesize.check.source import Word
from moesize.check.yaml_tree import ABSENT, Node, Scalar
from moesize.engine_args.table import flag_table
from moesize.engine_args.words import engine_of_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from moesize.check.formats import Context

_MOST_DEPTH = 8
_MOST_ENTRIES = 4_000
_MOST_UNITS = 200
_MOST_BESIDE = 32
_MOST_WORDS = 400
_MOST_WITHOUT_MODEL = 100


# Keys that only other kinds of file have at the top: OpenAPI, workflows, compose, tasks, ...
_OTHER_KINDS = frozenset(
    (
        "$schema",
        "asyncapi",
        "dependencies",
        "jobs",
        "on",
        "openapi",
        "pipeline",
        "repos",
        "services",
        "stages",
        "steps",
        "swagger",
        "tasks",
        "workflow",
    )
)
# Words of training and evaluation: such files name models, GPUs and even engines, and serve none.
_TRAINING = frozenset(
    (
        "actorrolloutref",
        "actor",
        "datacollator",
        "dataset",
        "datasets",
        "deepspeed",
        "epochs",
        "gradientaccumulationsteps",
        "learningrate",
        "lmeval",
        "loraalpha",
        "lr",
        "lrscheduler",
        "lrschedulertype",
        "maxsteps",
        "numtrainepochs",
        "optimizer",
        "perdevicetrainbatchsize",
        "reward",
        "rewardmodel",
        "trainbatchsize",
        "trainer",
        "training",
        "trainingargs",
        "weightdecay",
    )
)


def is_other(document: Node) -> bool:
    keys = {str(key) for key, _ in document.items()}
    if keys & _OTHER_KINDS or {"resources", "run"} <= keys:
        return True
    return "run" in keys and bool(keys & {"metrics", "results", "scenario"})


def _plain(key: str) -> str:
    """A key without case, dashes and underscores."""
    return key.lower().replace("-", "").replace("_", "")


def _kebab(key: str) -> str:
    """`maxModelLen`, `max_model_len` -> `max-model-len`, as flags are called."""
    if len(key) > 80:
        return key
    parts: list[str] = []
    for index, char in enumerate(key):
        before = key[index - 1] if index else ""
        if char.isupper() and before and (before.islower() or before.isdigit()):
            parts.append("-")
        parts.append(char.lower())
    return plain_key("".join(parts))


# --- a walk over values -----------------------------------------------------------------------


class _Entry(NamedTuple):
    """A key with its value, the mapping that holds it, and the mappings above that."""

    key: Word
    value: Node
    parent: Node
    above: tuple[Node, ...]


# Parts of a chart beside its servers; what stands there says nothing about them.
_ASIDE = frozenset(
    (
        "autoscaling",
        "benchmark",
        "client",
        "embedding",
        "embeddings",
        "evaluation",
        "gateway",
        "grafana",
        "guidellm",
        "ingress",
        "initcontainers",
        "keda",
        "langfuse",
        "litellm",
        "loraadapters",
        "monitoring",
        "openwebui",
        "postgresql",
        "prometheus",
        "redis",
        "rerank",
        "reranker",
        "router",
        "routerspec",
        "servicemonitor",
        "sidecars",
        "speculative",
        "tests",
        "webui",
        "whisper",
    )
)


def _walk(
    root: Node,
    above: tuple[Node, ...],
    left_out: frozenset[int] = frozenset(),
    deepest: int = _MOST_DEPTH,
) -> Iterator[_Entry]:
    """Entries below a mapping, the nearest first; `left_out` are ids of mappings."""
    queue: deque[tuple[Node, tuple[Node, ...]]] = deque([(root, above)])
    deepest = len(above) + deepest
    count = 0
    while queue:
        node, over = queue.popleft()
        entries = node.elements() if node.is_sequence else ()
        for element in entries:
            count += 1
            deeper = element.is_mapping or element.is_sequence
            if deeper and id(element) not in left_out and len(over) < deepest:
                queue.append((element, over))
        for key, value in node.items():
            count += 1
            if count > _MOST_ENTRIES:
                return
            if _plain(key) in _ASIDE or id(value) in left_out:
                continue
            yield _Entry(key, value, node, over)
            if (value.is_mapping or value.is_sequence) and len(over) < deepest:
                queue.append((value, (node, *over)))


# --- models -----------------------------------------------------------------------------------

_MODEL_KEYS = (
    "modelid",
    "hfmodelid",
    "huggingfacemodelid",
    "hfmodel",
    "huggingfacemodel",
    "hfmodelname",
    "hfrepo",
    "hfrepoid",
    "repoid",
    "modelrepo",
    "modelrepository",
    "modelurl",
    "modeluri",
    "modelsource",
    "model",
    "modeltag",
    "modelref",
    "modelname",
    "llmmodel",
    "modelpath",
    "modelnameorpath",
)
# Inside a mapping that is called `model`.
_INNER_KEYS = ("id", "repo", "repository", "uri", "url", "source", "hf", "path", "name")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(?:[:@][\w.-]{1,95})?")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{1,20}://\S{1,300}", re.IGNORECASE)
_TO_FILL_IN = re.compile(
    r"(?i)^(?:<.*>|\{\{.*|\$\{?\w.*|\?\?\?|your[-_ /].*|changeme.*|todo.*|.*placeholder.*)$"
)


class _Unit:
    """A mapping that names a model: a server of its own."""

    def __init__(self, model: Word, rank: int, entry: _Entry) -> None:
        self.model = model
        self.rank = rank
        self.node = entry.parent
        self.above = entry.above


def _rank(word: Word, key: str) -> int:
    """How well a value names a model: 0 by hub name or address, 1 by name, 2 by path; -1 not."""
    text = word.strip()
    if not text or len(text) > 300 or any(char.isspace() for char in text):
        return -1
    if _TO_FILL_IN.match(text[:120]):
        return -1
    if _ADDRESS.fullmatch(text):
        return 0 if not text.lower().startswith(("http://", "https://")) else -1
    if text.startswith(("/", "./")):
        return 2
    if _HUB_NAME.fullmatch(text):
        return 0
    from moesize.model_names import resolve_name

    return 1 if key != "name" and resolve_name(text[:120]) is not None else -1


def _models(entries: Sequence[_Entry]) -> tuple[list[_Unit], list[_Entry]]:
    """Mappings that name a model, and keys for one that are empty."""
    best: dict[int, _Unit] = {}
    empty: list[_Entry] = []
    for entry in entries:
        candidates: list[tuple[str, Word, Node]] = []
        plain = _plain(entry.key)
        if plain in _MODEL_KEYS and not entry.value.is_mapping and not entry.value.is_sequence:
            candidates.append((plain, entry.key, entry.value))
        elif plain == "model" and entry.value.is_mapping:
            candidates += [
                ("name" if _plain(key) == "name" else "model", key, value)
                for key, value in entry.value.items()
                if _plain(key) in _INNER_KEYS and not value.is_mapping
            ]
        for name, key, value in candidates:
            word = value.text
            rank = -1 if word is None else _rank(word, name)
            if word is None or rank < 0:
                if word is None or not word.strip() or _TO_FILL_IN.match(word[:120]):
                    empty.append(entry._replace(key=key, value=value))
                continue
            unit = _Unit(word, rank, entry)
            known = best.get(id(entry.parent))
            if known is None or rank < known.rank:
                best[id(entry.parent)] = unit
    units = list(best.values())
    # `model: {modelId: ...}` is found by its own key and by that of the mapping.
    seen: set[object] = set()
    distinct = []
    for unit in units:
        place = unit.model.span or id(unit)
        if place not in seen:
            seen.add(place)
            distinct.append(unit)
    return _outermost(distinct), empty


def _outermost(units: list[_Unit]) -> list[_Unit]:
    """Without those inside another, unless they stand in a list of their own."""
    nodes = {id(unit.node): unit for unit in units}
    kept = []
    for unit in units:
        over = [nodes[id(node)] for node in unit.above if id(node) in nodes]
        same = [other for other in over if other.model == unit.model or other.rank <= unit.rank]
        if not same:
            kept.append(unit)
    return kept


# --- facts around a model ---------------------------------------------------------------------

_ENGINE_KEYS = frozenset(
    (
        "backend",
        "engine",
        "enginename",
        "enginetype",
        "framework",
        "inferencebackend",
        "inferenceengine",
        "inferenceframework",
        "llmengine",
        "runtime",
        "serverengine",
        "servingengine",
        "servingframework",
    )
)
_ENGINE_NAMES = {
    "vllm": "vllm",
    "sglang": "sglang",
    "tgi": "tgi",
    "textgenerationinference": "tgi",
    "trtllm": "tensorrt-llm",
    "tensorrtllm": "tensorrt-llm",
    "llama.cpp": "llama.cpp",
    "llamacpp": "llama.cpp",
    "llamaserver": "llama.cpp",
}
_FLAG_HOLDERS = (
    "args",
    "arguments",
    "flags",
    "options",
    "kwargs",
    "params",
    "parameters",
    "config",
)
# One word alone is a flag only beside the model.
_BESIDE_MODEL = frozenset(("dtype", "nnodes", "quantization", "quantize"))
_SIZES = {
    "tp": "tensor",
    "tp-size": "tensor",
    "tensor-parallel": "tensor",
    "tensor-parallelism": "tensor",
    "tensor-parallel-degree": "tensor",
    "tensor-parallel-size": "tensor",
    "pp": "pipeline",
    "pp-size": "pipeline",
    "pipeline-parallel": "pipeline",
    "pipeline-parallelism": "pipeline",
    "pipeline-parallel-size": "pipeline",
}
_SIZE_FLAGS = {
    "tensor": {
        "vllm": "--tensor-parallel-size",
        "sglang": "--tp-size",
        "tgi": "--num-shard",
        "tensorrt-llm": "--tp_size",
    },
    "pipeline": {
        "vllm": "--pipeline-parallel-size",
        "sglang": "--pp-size",
        "tensorrt-llm": "--pp_size",
    },
}
_GPU_COUNTS = frozenset(
    (
        "gpu",
        "gpucount",
        "gpulimit",
        "gpunum",
        "gpurequest",
        "gpus",
        "gpuspernode",
        "gpusperreplica",
        "ngpu",
        "ngpus",
        "numaccelerators",
        "numgpu",
        "numgpus",
        "requestgpu",
        "acceleratorcount",
    )
)
_GPU_TYPES = frozenset(
    ("accelerator", "acceleratortype", "gpu", "gpumodel", "gpuname", "gpuproduct", "gputype")
)
_NODE_COUNTS = frozenset(("nnodes", "numnodes", "nodecount", "lwssize"))
_ENVIRONMENTS = frozenset(
    ("env", "envs", "envvars", "environment", "extraenv", "extraenvs", "extraenvvars")
)
_SHM = frozenset(("dshm", "dshmsize", "sharedmemory", "sharedmemorysize", "shm", "shmsize"))
_NO_MODEL = "names no model: values that are given when the chart is installed"


@dataclass(slots=True)
class _Facts:
    """What values say around one model, the nearest first."""

    entries: list[_Entry]
    beside: Node = ABSENT
    named_engine: str | None = None
    images: list[tuple[str, Word]] = field(default_factory=list)
    key_engine: str | None = None
    held: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, entries: list[_Entry], beside: Node) -> _Facts:
        facts = cls(entries, beside)
        for entry in entries:
            plain = _plain(entry.key)
            if plain in _ENVIRONMENTS:
                facts.held.add(id(entry.value))  # variables are no flags
            if plain in _ENGINE_KEYS and entry.value.text is not None:
                name = _ENGINE_NAMES.get(_plain(entry.value.word.strip()))
                facts.named_engine = facts.named_engine or name
            if plain == "image" or plain.endswith("image"):
                word = charts.image_of(entry.value).text
                engine = engine_of_image(word) if word and not is_helper(word) else None
                if word and engine:
                    facts.images.append((engine, word))
            for name, engine in _ENGINE_NAMES.items():
                if plain == name or (
                    plain.startswith(name) and plain[len(name) :] in _FLAG_HOLDERS
                ):
                    facts.key_engine = facts.key_engine or engine
        return facts

    @property
    def engine(self) -> str | None:
        """The engine, by the surest evidence."""
        if self.named_engine:
            return self.named_engine
        if self.images:
            return self.images[0][0]
        if self.key_engine:
            return self.key_engine
        # Single keys of anything look like flags: it takes two that no other engine has.
        found = engine_of_flags(self._flag_names(), least=2)
        return found if found != "llama.cpp" else None

    def image(self, engine: str) -> Word | None:
        return next((word for name, word in self.images if name == engine), None)

    def _flag_names(self) -> list[str]:
        names: list[str] = []
        for entry in self.entries:
            if entry.value.is_sequence:
                names += [word for word in entry.value.words()[:_MOST_WORDS] if word[:2] == "--"]
            elif not entry.value.is_mapping and "-" in _kebab(entry.key):
                names.append("--" + _kebab(entry.key))
        return names[: 4 * _MOST_WORDS]

    # --- flags

    def flags(self, engine: str) -> list[Word]:
        """Flags of the engine: single keys first, then mappings, lists and texts of flags."""
        single: list[Word] = []
        several: list[Word] = []
        for entry in self.entries:
            if len(several) > _MOST_WORDS:
                break
            if id(entry.parent) in self.held:
                continue
            if self._holds_flags(entry, engine):
                several += self._held_flags(entry, engine)
            else:
                single += self._single_flag(entry, engine)
        return [*single, *several]

    def options_beside(self, engine: str, context: Context) -> tuple[Word, ...]:
        """Flags of an options file that the values name and that lies beside them."""
        for entry in self.entries:
            plain = _plain(entry.key)
            name = entry.value.word
            if not plain.endswith(("file", "config", "args")) or len(name) > 300:
                continue
            if name.endswith((".yaml", ".yml")):
                found = options_of(context.folder.yaml(name.rpartition("/")[2]), engine)
                if found is not None:
                    return found.words
        return ()

    def _holds_flags(self, entry: _Entry, engine: str) -> bool:
        if not _plain(entry.key).endswith(_FLAG_HOLDERS):
            return False
        value = entry.value
        if value.is_mapping:
            keys = [_kebab(key) for key, _ in value.items()]
            known = [key for key in keys if find_flag(engine, key) is not None]
            return bool(known) and 2 * len(known) >= len(keys)
        if value.is_sequence:
            return any(word.startswith("-") for word in value.words()[:_MOST_WORDS])
        return value.word.lstrip().startswith("-")

    def _held_flags(self, entry: _Entry, engine: str) -> list[Word]:
        value = entry.value
        self.held.add(id(value))
        if value.is_mapping:
            found: list[Word] = []
            for key, inner in value.items():
                found += flag_words(_spelled(key, engine), inner, find_flag(engine, _kebab(key)))
            return found[:_MOST_WORDS]
        if value.is_sequence:
            words = value.words()[:_MOST_WORDS]
            # One text per element: "--max-model-len 4096".
            return [part for word in words for part in _parts(word)]
        if isinstance(value, Scalar) and len(value.value) < 20_000:
            return words_in(value.source_text())[:_MOST_WORDS]
        return []

    def _single_flag(self, entry: _Entry, engine: str) -> list[Word]:
        if entry.value.is_mapping or entry.value.is_sequence or not entry.value.word:
            return []
        key = _kebab(entry.key)
        size = _SIZES.get(key)
        if size is not None:
            flag = _SIZE_FLAGS[size].get(engine)
            return [Word(flag, entry.key.span), entry.value.word] if flag else []
        if key in _BESIDE_MODEL and entry.parent is not self.beside:
            return []
        if "-" not in key and key not in _BESIDE_MODEL:
            return []
        named = flag_table(engine).names.get("--" + key)
        if named is None or not named.on or named.flag.effect == "none":
            return []
        found = named.flag
        if found.targets[:1] == ("command:model",):
            return []
        return flag_words(Word("--" + key, entry.key.span), entry.value, found)

    # --- GPUs

    def request(self) -> GpuRequest:
        """GPUs that a server of the chart asks for."""
        for entry in self.entries:
            if _plain(entry.key) == "resources":
                found = gpu_request(entry.value)
                if found.number is not None or found.open_word is not None:
                    return found
        for entry in self.entries:
            plain = _plain(entry.key)
            if plain not in _GPU_COUNTS:
                continue
            node = entry.value
            if node.is_mapping:
                node = next(
                    (node.get(key) for key in ("count", "number", "num", "limit") if node.get(key)),
                    ABSENT,
                )
            number = node.integer()
            if number is not None and 0 < number < 10_000:
                return GpuRequest(Stated(number, node.word), "")
        return GpuRequest()

    def claims(self, asked: GpuRequest) -> tuple[GpuClaim, ...]:
        """Kinds of GPU: node selectors, else keys that say so."""
        for name in ("nodeSelector", "affinity"):
            for entry in self.entries:
                if entry.key == name and entry.value.is_mapping:
                    pod = made_mapping({name: entry.value})
                    found = gpu_claims(pod, asked.mig)
                    if found:
                        return found
        for entry in self.entries:
            if _plain(entry.key) not in _GPU_TYPES:
                continue
            node = entry.value
            if node.is_mapping:
                node = next(
                    (
                        node.get(key)
                        for key in ("type", "product", "model", "name")
                        if node.get(key)
                    ),
                    ABSENT,
                )
            word = node.text
            if word and not word[:1].isdigit() and _is_gpu(word):
                return (GpuClaim(word, str(entry.key)),)
        return gpu_claims(ABSENT, asked.mig) if asked.mig is not None else ()

    def nodes(self) -> Stated[int] | None:
        for entry in self.entries:
            number = entry.value.integer()
            if _plain(entry.key) in _NODE_COUNTS and number is not None and 1 < number < 10_000:
                return Stated(number, entry.value.word)
        return None

    # --- the rest

    def first(self, matches: Callable[[_Entry], bool]) -> Node:
        return next((entry.value for entry in self.entries if matches(entry)), ABSENT)

    def environment(self) -> dict[str, Word]:
        found: dict[str, Word] = {}
        for entry in self.entries:
            if _plain(entry.key) not in _ENVIRONMENTS:
                continue
            for item in entry.value.elements()[:_MOST_WORDS]:
                name, value = item.get("name").text, item.get("value").text
                if name and value is not None:
                    found.setdefault(str(name), value)
            for key, value_node in entry.value.items():
                if value_node.text is not None:
                    found.setdefault(str(key), value_node.word)
        return found

    def memory(self) -> Stated[int] | None:
        for entry in self.entries:
            if _plain(entry.key) == "resources" and gpu_request(entry.value).number is not None:
                return stated_bytes(entry.value.get("limits", "memory"))
        return None

    def shm(self) -> Stated[int] | None:
        for entry in self.entries:
            if _plain(entry.key) in _SHM:
                node = entry.value
                if node.is_mapping:
                    node = node.get("sizeLimit") or node.get("size")
                found = stated_bytes(node)
                if found is not None:
                    return found
        return None

    def served_name(self) -> Word | None:
        names = ("servedmodelname", "modelname", "servedname")
        word = self.first(lambda entry: _plain(entry.key) in names).text
        return None if word is None or _TO_FILL_IN.match(word[:120]) else word


def _spelled(key: Word, engine: str) -> Word:
    """A key of a mapping of flags as the flag is called: as it stands, unless it is camelCase."""
    if key.startswith("-"):
        return key
    name = _kebab(key)
    size = _SIZES.get(name)
    if size is not None and find_flag(engine, name) is None:
        return Word(_SIZE_FLAGS[size].get(engine, f"--{name}"), key.span)
    return Word(f"--{name}", key.span)


def _parts(word: Word) -> list[Word]:
    """The flag and the value of an element such as `--max-model-len 4096`."""
    name, blank, value = word.partition(" ")
    if not (word.startswith("--") and blank and value and "=" not in name):
        return [word]
    start = len(word) - len(value.lstrip())
    return [word.cut(0, len(name)), word.cut(start)]


def _is_gpu(name: str) -> bool:
    from moesize.core.errors import MoesizeError
    from moesize.gpus import find_gpu

    try:
        find_gpu(name)
    except MoesizeError:
        return False
    return True


# --- servers of charts that are not known -----------------------------------------------------


def find_servers(body: Node, context: Context) -> list[Server]:
    """Servers that the search finds in values."""
    everything = list(_walk(body, ()))
    if any(_plain(entry.key) in _TRAINING and len(entry.above) < 3 for entry in everything):
        return []
    found = _containers(everything, body, context)
    if found:
        return found
    units, empty = _models(everything)
    nodes = frozenset(id(unit.node) for unit in units)
    for unit in units[:_MOST_UNITS]:
        entries = _around(unit, nodes - {id(unit.node)})
        server = _server(unit.model, _Facts.of(entries, unit.node), context)
        if server is not None:
            if unit.node.get("enabled").boolean() is False:
                server.skipped = "enabled is false"
            found.append(server)
    if not units and empty:
        facts = _Facts.of(everything, ABSENT)
        server = _server(None, facts, context, place=empty[0].key)
        if server is not None:
            found.append(server)
    return found


def _around(unit: _Unit, others: frozenset[int]) -> list[_Entry]:
    """Entries of a unit, then of the mappings around it, those of other units left out."""
    entries: list[_Entry] = []
    seen: set[tuple[int, str]] = set()
    for position, root in enumerate((unit.node, *unit.above)):
        if id(root) in others:
            continue
        # What several share stands right above them; what is deeper beside them is not theirs.
        deepest = _MOST_DEPTH if position == 0 or not others else 1
        for entry in _walk(root, unit.above[position:], others, deepest):
            mark = (id(entry.parent), str(entry.key))
            if mark not in seen:
                seen.add(mark)
                entries.append(entry)
        if len(entries) > _MOST_ENTRIES:
            break
    return entries


def _server(
    model: Word | None, facts: _Facts, context: Context, place: Word | None = None
) -> Server | None:
    """A server, if an engine shows and something that only servers have."""
    engine = facts.engine
    if engine is None:
        return None
    words = [*facts.options_beside(engine, context), *facts.flags(engine)]
    asked = facts.request()
    claims = facts.claims(asked)
    has_image = facts.image(engine) is not None
    if not (has_image or words or asked.number is not None):
        return None
    if not has_image and asked.number is None and not claims:
        # An engine's name alone may be that of a server elsewhere, which the chart is a client
        # of; flags alone may be those of anything that imitates an engine.
        named = facts.named_engine or facts.key_engine
        if named is None or len(words) < 2:
            return None
    served = facts.served_name()
    if model is None and (
        len(words) > _MOST_WITHOUT_MODEL or not (has_image or claims or asked.number is not None)
    ):
        return None  # settings of many models, or of none that is served here
    at = model if model is not None else place
    return Server(
        name=str(served or (model or "").rpartition("/")[2] or engine),
        place=at if at is not None else Word(engine),
        engine=engine,
        words=tuple(words),
        environment=facts.environment(),
        image=facts.image(engine),
        model=model,
        fallback_model=served if served != model else None,
        gpus=claims,
        gpus_per_node=asked.number,
        nodes=facts.nodes(),
        vendor=asked.vendor,
        memory_limit=facts.memory(),
        shm=facts.shm(),
        skipped="" if model is not None else _NO_MODEL,
        notes=("read by its keys: this chart is not known",),
    )


def _containers(entries: Sequence[_Entry], body: Node, context: Context) -> list[Server]:
    """Servers whose command stands in the values, as a container's would."""
    found: list[Server] = []
    looked_at = 0
    for node, above in _mappings(entries, body):
        if not (node.get("command").is_sequence or node.get("args").is_sequence):
            continue
        looked_at += 1
        image = charts.image_of(node.get("image")) or charts.image_of(node)
        around = [node, *above]
        container = made_mapping(
            {
                "name": node.get("name"),
                "image": image,
                "command": node.get("command"),
                "args": node.get("args"),
                "env": _nearest(around, "env"),
                "resources": _nearest(around, "resources"),
                "startupProbe": node.get("startupProbe"),
                "livenessProbe": node.get("livenessProbe"),
            },
            at=image.text or _some_key(node),
        )
        pod = made_mapping(
            {key: _nearest(around, key) for key in ("nodeSelector", "affinity", "volumes")}
        )
        for server in servers_of_container(container, pod, context, kind="custom_helm_values"):
            if _has_model(server):
                server.shm_is_default = False  # the chart may mount it
                found.append(server)
        if len(found) >= _MOST_UNITS or looked_at >= 2 * _MOST_UNITS:
            break
    return found


def _mappings(entries: Sequence[_Entry], body: Node) -> Iterator[tuple[Node, tuple[Node, ...]]]:
    yield body, ()
    for entry in entries:
        for node in [entry.value, *entry.value.elements()[:_MOST_UNITS]]:
            if node.is_mapping:
                yield node, (entry.parent, *entry.above)


def _nearest(nodes: Sequence[Node], key: str) -> Node:
    return next((node.get(key) for node in nodes if node.get(key)), ABSENT)


def _some_key(node: Node) -> Word | None:
    return next((key for key, _ in node.items()), None)


_MODEL_FLAGS = frozenset(
    ("--hf-repo", "--model", "--model-id", "--model-path", "--model-tag", "-hf", "-m")
)


def _has_model(server: Server) -> bool:
    """Whether a server's own words or variables name its model."""
    if server.skipped or server.engine is None:
        return False
    if server.model is not None or server.engine in ("ollama", "nim"):
        return True
    names = {word.partition("=")[0].replace("_", "-") for word in server.words[:_MOST_WORDS]}
    if names & _MODEL_FLAGS or server.environment.keys() & {"MODEL_ID", "LLAMA_ARG_MODEL"}:
        return True
    takes_position = server.engine in ("vllm", "tensorrt-llm")
    return takes_position and bool(server.words) and not server.words[0].startswith("-")
