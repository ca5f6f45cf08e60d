"""srt-slurm recipes: workers on Slurm, with the engine's flags as mappings by role.

Fields as in NVIDIA/srt-slurm docs/config-reference.md, docs/legacy-v1.md (`resources` and
`backend`) and docs/schema-reference.md (`schema: 2`: `engine` and `roles`), August 2026.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from moesize.check.formats import Context, Format
from moesize.check.readers.engine_config import words_of_options
from moesize.check.readers.resource_fields import flag_words, is_open_word, overlaid, without_flag
from moesize.check.server import GpuClaim, Reading, Server, Stated
from moesize.check.source import Word
from moesize.check.yaml_tree import ABSENT, Node

if TYPE_CHECKING:
    from collections.abc import Iterator

_KIND = "srt_slurm"
_ENGINES = {"sglang": "sglang", "vllm": "vllm", "trtllm": "tensorrt-llm"}
# Role -> its names in keys: of workers and nodes, of flags and environment.
_ROLES = {"prefill": "prefill", "decode": "decode", "agg": "aggregated"}
_NODE_KEYS = ("prefill_nodes", "decode_nodes", "agg_nodes", "prefill_workers", "agg_workers")
# What the tool sets by itself: where the model is mounted, addresses, the place of a process.
_MANAGED = (
    "--model",
    "--model-path",
    "--host",
    "--port",
    "--nnodes",
    "--node-rank",
    "--dist-init-addr",
    "--master-addr",
)
# model.precision -> what names of such checkpoints end in.
_SUFFIXES = {"fp4": "-NVFP4", "nvfp4": "-NVFP4", "mxfp4": "-MXFP4", "fp8": "-FP8"}
_MOST = 100
_MOST_GPUS = 100_000


_MOST_VARIANTS = 24


def _is_recipe(document: Node) -> bool:
    recipe = document
    if document.get("base", "resources").is_mapping:
        recipe = next((variant for _, variant in _variants(document)), document.get("base"))
    if recipe.get("apiVersion") or not recipe.get("model").is_mapping:
        return False
    if not recipe.get("model", "container").text and not recipe.get("model", "path").text:
        return False
    resources = recipe.get("resources")
    if not resources.is_mapping:
        return False
    if any(recipe.get("roles", role).is_mapping for role in _ROLES):
        return recipe.key("engine") is not None or recipe.key("schema") is not None
    if resources.key("gpu_type") is None and resources.key("gpus_per_node") is None:
        return False
    return any(resources.key(key) is not None for key in _NODE_KEYS)


def _read(document: Node, context: Context) -> Reading:
    aliases = _aliases(context)
    variants = [("", document)]
    if document.get("base", "resources").is_mapping:
        # The base alone is submitted only when asked for.
        variants = list(islice(_variants(document), _MOST_VARIANTS))
        variants = variants or [("", document.get("base"))]
    servers: list[Server] = []
    seen: set[tuple[object, ...]] = set()
    for name, recipe in variants:
        for role in _ROLES:
            server = _server(recipe, role, aliases)
            if server is None:
                continue
            # Variants differ in numbers of workers, too: each kind of worker is judged once.
            each = server.gpus_per_node, server.nodes
            sizes = tuple(stated.value if stated is not None else 0 for stated in each)
            known = (role, server.model, server.words, sizes)
            if known not in seen:
                seen.add(known)
                server.name = f"{name}/{role}" if name else role
                servers.append(server)
    skipped = "" if servers else "no workers are described"
    return Reading(kind=_KIND, servers=servers, skipped=skipped)


# --- variants (docs/overrides.md) -------------------------------------------------------------


def _variants(document: Node) -> Iterator[tuple[str, Node]]:
    """`override_x`: laid over `base`; `zip_override_x`: the same for each place of its lists."""
    base = document.get("base")
    for made, (key, changes) in enumerate(document.items()):
        if made > _MOST:
            return
        if key.startswith("override_"):
            yield key.removeprefix("override_"), _laid_over(base, changes)
        elif key.startswith("zip_override_"):
            name = key.removeprefix("zip_override_")
            for index in range(_longest(changes)):
                yield f"{name}[{index}]", _laid_over(base, _picked(changes, index))


def _laid_over(base: Node, changes: Node) -> Node:
    """Mappings merged, lists and scalars replaced, null taken out. The tree bounds the depth."""
    if not base.is_mapping or not changes.is_mapping:
        return changes
    found = overlaid(base)
    for key, value in changes.items():
        if value.is_mapping:
            value = _laid_over(base.get(str(key)), value)
        elif not value.is_sequence and value.text is None:
            found.entries.pop(str(key), None)
            found.keys.pop(str(key), None)
            continue
        found.entries[str(key)] = value
        found.keys[str(key)] = key
    return found


def _longest(changes: Node) -> int:
    """How many variants lists make: as many as the longest has places."""
    if changes.is_sequence:
        return len(changes.elements())
    return max((_longest(value) for _, value in changes.items()), default=1)


def _picked(changes: Node, index: int) -> Node:
    """The values at one place of each list; a list of one is for all."""
    if changes.is_sequence:
        values = changes.elements()
        return values[index if index < len(values) and len(values) > 1 else 0] if values else ABSENT
    if not changes.is_mapping:
        return changes
    found = overlaid(changes)
    for key, value in changes.items():
        found.entries[str(key)] = _picked(value, index)
    return found


# --- roles ------------------------------------------------------------------------------------


def _aliases(context: Context) -> Node:
    """`model_paths` of the cluster's srtslurm.yaml, here or up to two folders above."""
    for above in ("", "../", "../../"):
        for document in context.folder.yaml(f"{above}srtslurm.yaml"):
            if document.get("model_paths").is_mapping:
                return document.get("model_paths")
    return ABSENT


def _server(recipe: Node, role: str, aliases: Node) -> Server | None:
    """The workers of one role; None where the recipe has none."""
    fields = recipe.get("roles", role)
    workers, nodes = _count(recipe, role, "workers"), _count(recipe, role, "nodes")
    options = _options(recipe, role)
    if not (workers or nodes) or workers.integer() == 0:
        return None
    kind = _engine_word(recipe, role)
    engine = _ENGINES.get(kind or "sglang")
    place = workers.text or nodes.text or Word(role, options.span)
    server = Server(name=role, place=place, engine=engine)
    if engine is None:
        server.skipped = f"the engine {kind[:40]!r} is not known"
    elif engine == "tensorrt-llm":
        read = words_of_options(options, engine)
        server.words, server.notes = read.words, read.notes
    else:
        server.words = without_flag(flag_words(options, engine), *_MANAGED)
    _name_model(server, recipe, role, options, aliases)
    _add_gpus(server, recipe, role)
    environment = fields.get("env") or recipe.get("backend", f"{_ROLES[role]}_environment")
    for key, value in environment.items():
        if value.text is not None and len(server.environment) < _MOST:
            server.environment[str(key)] = value.word
    return server


def _engine_word(recipe: Node, role: str) -> Word:
    for node in (recipe.get("roles", role, "engine"), recipe.get("engine"), recipe.get("backend")):
        found = node.get("type").text or node.text
        if found is not None:
            return found
    return Word("")


def _options(recipe: Node, role: str) -> Node:
    args = recipe.get("roles", role, "args")
    if args.is_mapping:
        return args
    for key, value in _some(recipe.get("backend")):
        if key.endswith("_config") and value.get(_ROLES[role]).is_mapping:
            return value.get(_ROLES[role])
    return ABSENT


def _some(node: Node) -> Iterator[tuple[Word, Node]]:
    for count, (key, value) in enumerate(node.items()):
        if count < _MOST:
            yield key, value


def _name_model(server: Server, recipe: Node, role: str, options: Node, aliases: Node) -> None:
    """`hf:owner/name`; else an alias or a path, which the served name says more about."""
    model = recipe.get("model")
    path = model.get("path").word
    container = recipe.get("roles", role, "container").text or model.get("container").text
    if container is not None and "/" in container and not container.endswith(".sqsh"):
        server.image = container
    named = recipe.get("identity", "model", "repo").text or model.get("name").text
    if path.startswith("hf:"):
        server.model = path.cut(3)
        return
    served = named or options.get("served-model-name").text or options.get("served_model_name").text
    known = aliases.get(str(path)).text
    server.model = None if is_open_word(path) else path.becomes(known) if known else path
    if served is None:
        return
    # An alias of the cluster says nothing; how the weights are stored, `precision` says.
    suffix = _SUFFIXES.get(model.get("precision").word.lower())
    if suffix is not None and not _is_stored_so(served, suffix):
        served = served.becomes(served + suffix)
    server.fallback_model = served


def _is_stored_so(name: str, suffix: str) -> bool:
    """Whether a name says how weights are stored, or its own checkpoint is stored that way."""
    from moesize.model_names import resolve_name, spec_of

    if any(word in name.lower() for word in ("fp4", "fp8", "int4", "awq", "gptq")):
        return True
    named = resolve_name(name)
    quantization = spec_of(named.id).quantization if named is not None else None
    if quantization is None:
        return False
    formats = [rule.format for rule in quantization.rules]
    return any(suffix[-3:].lower() in text for text in (quantization.method, *formats))


def _add_gpus(server: Server, recipe: Node, role: str) -> None:
    """GPUs of one worker, on as many nodes as they take."""
    resources = recipe.get("resources")
    gpu = resources.get("gpu_type").word
    if not is_open_word(gpu):
        server.gpus = (GpuClaim(gpu, "gpu_type"),)
    per_node = resources.get("gpus_per_node")
    size = per_node.integer()
    asked = _gpus_of_worker(recipe, role)
    if asked is None or size is None or size <= 0:
        server.gpus_per_node = asked
    elif size < asked.value and asked.value % size == 0:
        server.gpus_per_node = Stated(size, per_node.word)
        server.nodes = Stated(asked.value // size, asked.at)
    else:
        server.gpus_per_node = asked


def _gpus_of_worker(recipe: Node, role: str) -> Stated[int] | None:
    """As stated, or nodes x GPUs / workers, or a node's (srtctl/core/schema.py)."""
    resources = recipe.get("resources")
    given = recipe.get("roles", role, "gpus") or resources.get(f"gpus_per_{role}")
    number = given.integer()
    if number is not None and 0 < number <= _MOST_GPUS:
        return Stated(number, given.word)
    per_node = resources.get("gpus_per_node")
    size, nodes = per_node.integer(), _count(recipe, role, "nodes")
    if role == "decode" and (nodes.integer() == 0 or nodes.word == "colocate"):
        # Decode workers that share the nodes of prefill have as many GPUs each.
        return _gpus_of_worker(recipe, "prefill")
    if size is None or not 0 < size <= _MOST_GPUS:
        return None
    workers = _count(recipe, role, "workers").integer()
    total = (nodes.integer() or 0) * size
    if workers is None or workers <= 0 or not workers <= total <= _MOST_GPUS:
        return Stated(size, per_node.word)
    return Stated(total // workers, nodes.word)


def _count(recipe: Node, role: str, what: str) -> Node:
    return recipe.get("roles", role, what) or recipe.get("resources", f"{role}_{what}")


FORMATS = [Format(_KIND, _is_recipe, _read)]
