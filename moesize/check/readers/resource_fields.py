"""What readers of operators' resources share: flags out of mappings, other files, GPUs by name.

An operator's resource says in fields of its own what a pod says in containers. Readers bring such
fields into the form of a pod (`made`), so that one reader understands both, and options into the
engine's flags (`flag_words`), so that one table knows what they mean.
"""

from __future__ import annotations

from functools import cache, lru_cache
from itertools import chain, islice
from typing import TYPE_CHECKING

from moesize.check.folder import inner_yaml
from moesize.check.source import Word
from moesize.check.yaml_tree import ABSENT, Mapping, Node

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from moesize.check.formats import Context
    from moesize.engine_args.table import Flag, FlagTable
    from moesize.gpus import GpuMatch

_MOST_OPTIONS = 500
_LONGEST_NAME = 120
_MOST_MOUNTS = 64
_MOST_JSON = 16_000
# Looked through for each resource that names another one.
_MOST_DOCUMENTS = 1_000


def names_kind(document: Node, group: str, kinds: Iterable[str]) -> bool:
    """Whether a document is one of an API group's kinds, whatever the version."""
    version = document.get("apiVersion").word
    return version.partition("/")[0] == group and document.get("kind").word in tuple(kinds)


def title_of(document: Node, kind: str) -> Word:
    """What findings about a whole resource point at: its name, else where it begins."""
    return document.get("metadata", "name").text or Word(kind, document.span)


def is_open_word(word: str) -> bool:
    """Whether a value is a place to fill in: `<your-sku>`, `$MODEL`, `{{ .Values.x }}`."""
    from moesize.engine_args.words import is_open

    return not word.strip() or is_open(word.strip())


def overlaid(*nodes: Node) -> Mapping:
    """A new mapping with the entries of several; those of later ones win."""
    made = Mapping(next((each.span for each in nodes if each), None))
    for each in nodes:
        if isinstance(each, Mapping):
            made.entries.update(each.entries)
            made.keys.update(each.keys)
    return made


# --- flags ------------------------------------------------------------------------------------


def flag_words(options: Node, engine: str, *, only_known: bool = False) -> list[Word]:
    """Keys and values of a mapping as the engine's flags, each where it stands.

    Keys are long flag names in underscores or dashes. Booleans become switches, mappings JSON;
    null is the default. `only_known` leaves out keys that are no flags of any release: for
    mappings whose vocabulary is wider than the command line's.
    """
    from moesize.engine_args.table import flag_table

    table = flag_table(engine)
    words: list[Word] = []
    for count, (key, value) in enumerate(options.items()):
        if count >= _MOST_OPTIONS:
            break
        name = "--" + key.strip().lstrip("-").replace("_", "-")
        found = table.find(name, None)
        flag = None if isinstance(found, list) else found.flag
        if flag is not None or not only_known:
            words += _flag(Word(name, key.span), value, flag, table)
    return words


def _flag(name: Word, value: Node, flag: Flag | None, table: FlagTable) -> list[Word]:
    kind = flag.kind if flag is not None else ""
    if value.is_sequence and kind == "list" and all(e.text for e in value.elements()):
        return [name, *value.words()]
    if value.is_sequence or value.is_mapping:
        return [name, json_word(value)]
    text = value.text
    if text is None:
        return []
    truth = value.boolean()
    if kind == "switch" or (kind == "" and isinstance(value.plain(), bool)):
        if truth is None and text:
            # Not the truth of a switch: the engine will say what it thinks of it.
            return [name, text]
        return _switch(name, on=truth is not False, table=table)
    return [name, text] if text else []


def _switch(name: Word, *, on: bool, table: FlagTable) -> list[Word]:
    if on:
        return [name]
    negative = name.becomes("--no-" + name[2:])
    return [negative] if negative in table.names else []


def json_word(node: Node) -> Word:
    """A mapping or sequence as JSON text, at its place."""
    import json

    text = json.dumps(node.plain(), ensure_ascii=False)
    return Word(text if len(text) <= _MOST_JSON else "{}", node.span)


def known_flags(words: Iterable[Word], engine: str) -> tuple[Word, ...]:
    """Words without the flags that are not the engine's: those of a program around it."""
    from moesize.engine_args.table import flag_table

    table = flag_table(engine)
    kept: list[Word] = []
    keeping = True
    for word in words:
        if word.startswith("-") and len(word) > 1 and not word[1].isdigit():
            name = word.partition("=")[0].partition(".")[0]
            name = name.replace("_", "-") if name.startswith("--") else name
            keeping = not isinstance(table.find(name, None), list) or word.startswith("-O")
        if keeping:
            kept.append(word)
    return tuple(kept)


def value_of(words: Iterable[Word], *names: str) -> Word | None:
    """The value of the last flag of these names, `--flag=value` too."""
    found: Word | None = None
    waiting = False
    for word in words:
        name, equals, _ = word.partition("=")
        if waiting:
            found, waiting = word, False
        elif name.replace("_", "-") in names:
            if equals:
                found = word.cut(len(name) + 1)
            else:
                waiting = True
    return found


def number_of(words: Iterable[Word], *names: str) -> int:
    """The whole number that a flag is given; 1 without it."""
    found = value_of(words, *names)
    if found is None or not found.isascii() or not found.isdigit() or len(found) > 6:
        return 1
    return max(1, int(found))


def without_flag(words: Iterable[Word], *names: str) -> tuple[Word, ...]:
    """Words without the flags of these names and their values."""
    kept: list[Word] = []
    skip = False
    for word in words:
        name, equals, _ = word.partition("=")
        if skip:
            skip = False
        elif name.replace("_", "-") in names:
            skip = not equals
        else:
            kept.append(word)
    return tuple(kept)


# --- GPUs -------------------------------------------------------------------------------------


@lru_cache(maxsize=2048)
def _match(text: str, kind: str) -> GpuMatch | None:
    """What a name stands for. Files repeat names, and to refuse one takes long."""
    from moesize.core.errors import MoesizeError
    from moesize.gpus import find_gpu

    known = kind if kind in ("driver", "gke", "karpenter", "kubernetes") else None
    try:
        return find_gpu(text, kind=known)  # type: ignore[arg-type]
    except MoesizeError:
        return None


def find_match(text: str, kind: str = "typed") -> GpuMatch | None:
    """The GPU or machine type of a name in a vocabulary (`GpuClaim.kind`); None: not known."""
    return _match(str(text), kind) if len(text) <= _LONGEST_NAME else None


def gpu_id(text: str) -> str | None:
    """The catalogue's id of a GPU's name; None for names that it does not know."""
    match = find_match(text)
    return match.spec.id if match is not None else None


def gpu_ids(text: str, kind: str) -> set[str]:
    """Every part that a name may mean."""
    match = find_match(text, kind)
    return {match.spec.id, *match.candidates} if match is not None else set()


def gpus_of_machine(text: str) -> int | None:
    """GPUs of a cloud's machine type; None for names that are not in the catalogue."""
    match = find_match(text)
    return match.count if match is not None else None


@cache
def _gpu_names() -> frozenset[str]:
    from moesize.gpus import list_gpus

    names = (name for spec in list_gpus() for name in (spec.id, spec.name, *spec.aliases))
    return frozenset(map(_squeezed, names))


def _squeezed(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")


def gpu_in_name(name: str) -> str:
    """The GPU that a name made of words with dashes ends in (`team-gpu-h100`); else empty."""
    parts = name[:_LONGEST_NAME].split("-")[-6:]
    for start in range(len(parts)):
        tail = "-".join(parts[start:])
        if not tail.isdigit() and _squeezed(tail) in _gpu_names():
            return tail
    return ""


# --- files ------------------------------------------------------------------------------------


def documents_around(context: Context) -> Iterator[Node]:
    """The documents of the file, then those of the folder, as far as is worth looking."""
    yield from islice(chain(context.documents, context.folder.siblings()), _MOST_DOCUMENTS)


def resource(context: Context, group: str, kind: str, name: str) -> Node:
    """The resource of that kind and name; ABSENT where no file has it."""
    if name:
        for document in documents_around(context):
            if document.get("metadata", "name").word == name and names_kind(
                document, group, (kind,)
            ):
                return document
    return ABSENT


def mounted_file(path: str, container: Node, pod: Node, context: Context) -> Node:
    """The text of a ConfigMap that a container sees under a path; ABSENT where it is none."""
    for mount in container.get("volumeMounts").elements()[:_MOST_MOUNTS]:
        at = mount.get("mountPath").word.rstrip("/")
        sub = mount.get("subPath").word
        if not at or not (path == at if sub else path.startswith(at + "/")):
            continue
        volume = _named(pod.get("volumes"), mount.get("name").word)
        source = volume.get("configMap")
        key = sub or path[len(at) + 1 :]
        for item in source.get("items").elements()[:_MOST_MOUNTS]:
            if item.get("path").word == key:
                key = item.get("key").word
                break
        found = config_map(source.get("name").word, context).get(str(key))
        if found:
            return found
    return ABSENT


def config_map(name: str, context: Context) -> Node:
    """`data` of a ConfigMap, as it stands or as a kustomization makes it; else ABSENT."""
    from moesize.check.readers.kustomize import generated_config_map

    if not name:
        return ABSENT
    for document in documents_around(context):
        named = document.get("metadata", "name").word == name
        if named and document.get("kind").word == "ConfigMap":
            return document.get("data")
    return generated_config_map(name, context)


def options_in(node: Node) -> Node:
    """The mapping that a YAML text in a YAML string holds; ABSENT where it is none."""
    for document in inner_yaml(node):
        if document.is_mapping:
            return document
    return ABSENT


def _named(nodes: Node, name: str) -> Node:
    for node in nodes.elements()[:_MOST_MOUNTS]:
        if name and node.get("name").word == name:
            return node
    return ABSENT
