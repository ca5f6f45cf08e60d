"""Kustomizations: bases, components, patches, generators and images, built in memory.

What `kubectl kustomize` would put out, as nodes that keep the places of the files that they came
from, so that findings about an overlay point into the base, the patch or the generator that says
it. Nothing is fetched: bases elsewhere are named in a note.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from moesize.check.folder import inner_yaml
from moesize.check.formats import Context, Format
from moesize.check.readers.merging import (
    Budget,
    Operation,
    TooMuch,
    apply_operations,
    file_node,
    mapping_node,
    merge,
    operations_of,
    sequence_node,
    text_node,
    with_entry,
)
from moesize.check.server import Problem, Reading, Server
from moesize.check.source import Word
from moesize.check.yaml_tree import ABSENT, Mapping, Node, Scalar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from moesize.check.source import SourceText

_FILES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
_GROUP = "kustomize.config.k8s.io"
# Fields of a kustomization; a document without a kind is one if it has no others.
_FIELDS = frozenset(
    (
        "apiVersion", "kind", "metadata", "resources", "bases", "components", "crds", "patches",
        "patchesStrategicMerge", "patchesJson6902", "configMapGenerator", "secretGenerator",
        "generatorOptions", "generators", "transformers", "validators", "images", "imageTags",
        "replicas", "replacements", "vars", "configurations", "commonLabels", "labels",
        "commonAnnotations", "namespace", "namePrefix", "nameSuffix", "helmCharts",
        "helmChartInflationGenerator", "helmGlobals", "openapi", "buildMetadata", "sortOptions",
    )
)  # fmt: skip
_LISTS = ("resources", "bases", "components", "patches", "patchesStrategicMerge", "images")
_CHANGES = (
    "patches", "patchesStrategicMerge", "patchesJson6902", "components", "configMapGenerator",
    "images", "imageTags", "replacements",
)  # fmt: skip
_MOST_DEEP = 16
_MOST_FOLDERS = 200
_MOST_RESOURCES = 2_000
_MOST_ENTRIES = 500
_MOST_NAMES = 16
_MOST_VISITED = 100_000
_REMOTE = ("://", "git@", "github.com/", "gitlab.com/", "bitbucket.org/", "?ref=")


def is_kustomization(document: Node) -> bool:
    """Whether a document is a kustomization (or a component of them)."""
    group, kind = document.get("apiVersion").word, document.get("kind").word
    if group.startswith(_GROUP + "/"):
        return kind in ("Kustomization", "Component", "")
    if group or kind not in ("", "Kustomization") or not document.is_mapping:
        return False
    names = [str(key) for key, _ in document.items()]
    return all(name in _FIELDS for name in names) and any(
        document.get(name).is_sequence for name in _LISTS
    )


def _read(document: Node, context: Context) -> Reading:
    if document.get("kind").word == "Component":
        why = "a component: read through the kustomizations that use it"
        return Reading(kind="kustomization", skipped=why)
    nothing = "it changes nothing: the files that it lists are read on their own"
    if not _may_change(document):
        return Reading(kind="kustomization", skipped=nothing)
    built = build(document, context)
    if built.failed:
        return Reading(kind="kustomization", skipped=built.failed)
    if not built.changes:
        return Reading(kind="kustomization", skipped=_with_notes(nothing, built.notes))
    servers, problems = _servers_of(built.documents, context)
    for server in servers:
        server.notes += tuple(built.notes)
    why = "" if any(not server.skipped for server in servers) else "none of it serves a model"
    return Reading(
        kind="kustomization",
        servers=servers,
        skipped=_with_notes(why, built.notes) if why else "",
        problems=problems,
    )


def _may_change(document: Node) -> bool:
    """Whether a kustomization has anything that could change what its resources say."""
    return any(document.get(name).elements() for name in _CHANGES)


def _with_notes(why: str, notes: list[str]) -> str:
    return "; ".join([why, *notes[:5]])


def _servers_of(documents: list[Node], context: Context) -> tuple[list[Server], list[Problem]]:
    """What the other formats read in the documents that a kustomization makes."""
    from moesize.check.formats import yaml_formats

    inside = Context(
        path=context.path,
        folder=context.folder,
        documents=documents,
        variables=context.variables,
    )
    formats = [one for one in yaml_formats() if one.read is not _read]
    servers: list[Server] = []
    problems: list[Problem] = []
    for document in documents:
        one = next((each for each in formats if each.matches(document)), None)
        if one is not None:
            reading = one.read(document, inside)
            servers += reading.servers
            problems += reading.problems
    return servers, problems


def files_covered(document: Node, context: Context) -> set[Path]:
    """Files that a kustomization rewrites and reads again: not to be judged on their own.

    Empty when it changes nothing. Resolved paths of resources, patches, bases and components.
    """
    if not is_kustomization(document) or document.get("kind").word == "Component":
        return set()
    if not _may_change(document):
        return set()
    built = build(document, context)
    return set() if built.failed or not built.changes else built.covered


def is_listed_patch(context: Context) -> bool:
    """Whether a kustomization of this folder, or of one above it, names the file as a patch."""
    folder = context.folder
    try:
        own = (folder.path / context.path.rpartition("/")[2]).resolve()
        top = folder.root.resolve()
        above = [folder.path, *folder.path.parents][:4]
        for path in above:
            if not path.resolve().is_relative_to(top):
                break
            if own in _patch_files(_kustomization_in(path, context), path):
                return True
    except (OSError, ValueError, RuntimeError):
        return False
    return False


def generated_config_map(name: str, context: Context) -> Node:
    """`data` of a ConfigMap that the kustomization of this folder makes; ABSENT if none does."""
    folder = context.folder.path
    document = _kustomization_in(folder, context)
    for entry in _some(document.get("configMapGenerator")):
        if entry.get("name").word == name:
            return _data_of(entry, folder, context)
    return ABSENT


def _some(node: Node) -> list[Node]:
    return node.elements()[:_MOST_ENTRIES]


def _kustomization_in(folder: Path, context: Context) -> Node:
    library, root = context.folder.library, context.folder.root
    for name in _FILES:
        for document in library.documents(folder / name, root):
            if document.is_mapping:
                return document
    return ABSENT


def _patch_files(document: Node, folder: Path) -> set[Path]:
    """Files that a kustomization lays over others."""
    names = [entry.get("path").text for entry in _some(document.get("patches"))]
    names += [entry.get("path").text for entry in _some(document.get("patchesJson6902"))]
    names += [entry.text for entry in _some(document.get("patchesStrategicMerge"))]
    found = set()
    for name in names:
        if name and len(name) < 500 and "\n" not in name and "\0" not in name:
            found.add((folder / name).resolve())
    return found


# --- building ---------------------------------------------------------------------------------


@dataclass(slots=True)
class _Resource:
    """An object on its way through the kustomizations.

    names   what it is called, and was called before prefixes
    path    the file that it is from
    """

    node: Node
    names: list[str]
    path: Path


@dataclass(slots=True)
class Built:
    """What a kustomization makes.

    changes   it lays something over what its resources say on their own
    covered   files that went in
    failed    why nothing was built
    """

    documents: list[Node] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    covered: set[Path] = field(default_factory=set)
    changes: bool = False
    failed: str = ""


def build(document: Node, context: Context) -> Built:
    """The objects that a kustomization makes out of files below the root of the check."""
    builder = _Builder(context)
    try:
        resources = builder.resources_of(document, context.folder.path, frozenset())
    except TooMuch:
        return Built(failed="it swells beyond what is read", notes=builder.notes)
    except (OSError, ValueError, RuntimeError):  # paths of strangers
        return Built(failed="a path in it cannot be followed", notes=builder.notes)
    return Built(
        documents=[resource.node for resource in resources],
        notes=list(dict.fromkeys(builder.notes)),
        covered=builder.covered,
        changes=builder.changes,
    )


class _Builder:
    """Builds one kustomization; `changes` is about the outermost."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.library = context.folder.library
        self.root = context.folder.root
        self.top = context.folder.root.resolve()
        self.budget = Budget()
        self.notes: list[str] = []
        self.covered: set[Path] = set()
        self.changes = False
        self.num_folders = 0

    def resources_of(
        self, document: Node, folder: Path, opened: frozenset[Path]
    ) -> list[_Resource]:
        """The objects of a kustomization that stands in a folder."""
        self.num_folders += 1
        real = folder.resolve()
        if real in opened or len(opened) >= _MOST_DEEP or self.num_folders > _MOST_FOLDERS:
            raise TooMuch
        inside = opened | {real}
        is_top = not opened
        resources: list[_Resource] = []
        for name in ("resources", "bases"):
            for entry in _some(document.get(name)):
                resources += self.listed(entry.word, folder, inside)
        if len(resources) > _MOST_RESOURCES:
            raise TooMuch
        for entry in _some(document.get("components")):
            changed = self.component(entry.word, folder, inside, resources)
            self.changes |= is_top and changed
        self.generate(document, folder, resources, is_top)
        changed = self.transform(document, folder, resources)
        self.changes |= is_top and changed
        return resources

    # -- what goes in

    def listed(self, name: Word, folder: Path, opened: frozenset[Path]) -> list[_Resource]:
        """The objects of one line of `resources`: a file, or a folder with a kustomization."""
        if any(mark in name for mark in _REMOTE):
            self.notes.append(f"{name[:100]} is elsewhere and was not followed")
            return []
        path = self.path_of(name, folder)
        if path is None:
            self.notes.append(f"{name[:100]} was not found below the checked folder")
            return []
        if path.is_dir():
            document = _kustomization_in(path, self.context)
            if not document:
                self.notes.append(f"{name[:100]} has no kustomization")
                return []
            self.cover_folder(path)
            return self.resources_of(document, path, opened)
        documents = self.library.documents(path, self.root)
        self.covered.add(path.resolve())
        found: list[_Resource] = []
        for one in _flattened(documents):
            if one.is_mapping and one.get("kind").text is not None:
                found.append(_Resource(one, [_name_of(one)], path))
        return found

    def path_of(self, name: str, folder: Path) -> Path | None:
        if not name or len(name) > 500 or "\0" in name or name.startswith("/"):
            return None
        path = folder / name
        real = path.resolve()
        plain = Path(os.path.normpath(path))
        # base/a.yaml, not over/../base/a.yaml, unless a link makes them differ.
        path = plain if plain.resolve() == real else path
        return path if real.is_relative_to(self.top) and real.exists() else None

    def cover_folder(self, folder: Path) -> None:
        for name in _FILES:
            if (folder / name).is_file():
                self.covered.add((folder / name).resolve())

    def component(
        self, name: Word, folder: Path, opened: frozenset[Path], resources: list[_Resource]
    ) -> bool:
        """A component: resources of its own, and changes to those that are there already."""
        if any(mark in name for mark in _REMOTE):
            self.notes.append(f"{name[:100]} is elsewhere and was not followed")
            return False
        path = self.path_of(name, folder)
        document = _kustomization_in(path, self.context) if path is not None else ABSENT
        if path is None or not document:
            self.notes.append(f"{name[:100]} was not found below the checked folder")
            return False
        self.num_folders += 1
        real = path.resolve()
        if real in opened or len(opened) >= _MOST_DEEP or self.num_folders > _MOST_FOLDERS:
            raise TooMuch
        inside = opened | {real}
        self.cover_folder(path)
        changed = False
        for key in ("resources", "bases"):
            for entry in _some(document.get(key)):
                resources += self.listed(entry.word, path, inside)
        for entry in _some(document.get("components")):
            changed |= self.component(entry.word, path, inside, resources)
        self.generate(document, path, resources, False)
        return self.transform(document, path, resources) or changed

    def generate(
        self, document: Node, folder: Path, resources: list[_Resource], is_top: bool
    ) -> None:
        """ConfigMaps of `configMapGenerator`, new or laid over those of a base."""
        for entry in _some(document.get("configMapGenerator")):
            name = entry.get("name").text
            if name is None:
                continue
            data: Node = _data_of(entry, folder, self.context)
            known = next(
                (
                    r
                    for r in resources
                    if name in r.names and r.node.get("kind").word == "ConfigMap"
                ),
                None,
            )
            behavior = entry.get("behavior").word
            if known is not None and behavior in ("merge", "replace"):
                if behavior == "merge":
                    data = merge(known.node.get("data"), data, self.budget)
                known.node = with_entry(known.node, "data", data)
                self.changes |= is_top
                continue
            node = _config_map(name, data)
            here = folder.resolve()
            own = [r for r in resources if not r.path.resolve().is_relative_to(here)]
            self.changes |= is_top and bool(own)
            resources.append(_Resource(node, [str(name)], folder / _FILES[0]))
        for key in ("generators", "transformers", "helmCharts", "helmChartInflationGenerator"):
            if document.get(key):
                self.notes.append(f"`{key}` of the kustomization is not followed")

    # -- what is done to it

    def transform(self, document: Node, folder: Path, resources: list[_Resource]) -> bool:
        """Patches, names, replicas, images, in the order in which kustomize applies them."""
        changed = False
        for entry in _some(document.get("patchesStrategicMerge")):
            changed |= self.strategic(entry, ABSENT, folder, resources)
        for entry in _some(document.get("patches")):
            content = entry.get("patch") if entry.get("patch") else entry.get("path")
            changed |= self.strategic(content, entry.get("target"), folder, resources)
        _rename(document, resources)
        for entry in _some(document.get("patchesJson6902")):
            content = entry.get("patch") if entry.get("patch") else entry.get("path")
            changed |= self.strategic(content, entry.get("target"), folder, resources)
        for entry in _some(document.get("replicas")):
            _set_replicas(entry, resources, self.budget)
        for name in ("images", "imageTags"):
            for entry in _some(document.get(name)):
                changed |= _set_image(entry, resources, self.budget)
        for entry in _some(document.get("replacements")):
            changed |= self.replace_values(entry, folder, resources)
        resources[:] = [resource for resource in resources if resource.node]
        return changed

    def strategic(
        self, content: Node, target: Node, folder: Path, resources: list[_Resource]
    ) -> bool:
        """A patch of either form, by its text or its file."""
        patches = self.texts_of(content, folder)
        changed = False
        for patch in patches:
            operations = operations_of(patch)
            selected = self.selected(patch, target, resources)
            for resource in selected:
                self.budget.take()
                node = self.patched(resource.node, patch, operations)
                if node is not None:
                    changed = True
                    resource.node = node
            if not selected and patch:
                called = _name_of(patch) or target.get("name").word or target.get("kind").word
                self.notes.append(f"a patch for {called[:80]!r} met nothing that was read")
        return changed

    def patched(self, node: Node, patch: Node, operations: list[Operation] | None) -> Node | None:
        if operations is not None:
            changed = apply_operations(node, operations, self.budget)
            if changed is None:
                self.notes.append(f"a JSON patch does not fit {_name_of(node)[:80]!r}")
            return changed
        if not patch.is_mapping:
            return None
        keyed = _is_built_in(node)
        merged = merge(node, patch, self.budget, keyed=keyed)
        if not merged:
            return ABSENT
        # The patch selects by kind and name; what it is called stays as it was.
        for key in ("apiVersion", "kind", "metadata"):
            if key != "metadata" and node.get(key):
                merged = with_entry(merged, key, node.get(key))
        metadata = merged.get("metadata")
        if node.get("metadata", "name") and metadata.is_mapping:
            metadata = with_entry(metadata, "name", node.get("metadata", "name"))
            merged = with_entry(merged, "metadata", metadata)
        return merged

    def texts_of(self, content: Node, folder: Path) -> list[Node]:
        """The documents of a patch: its own text, or those of the file that it names."""
        text = content.text
        if text is None:
            return []
        if "\n" in text or ":" in text or text.lstrip().startswith(("{", "[")):
            return inner_yaml(content)
        path = self.path_of(text, folder)
        if path is None:
            self.notes.append(f"{text[:100]} was not found below the checked folder")
            return []
        self.covered.add(path.resolve())
        return self.library.documents(path, self.root)

    def selected(self, patch: Node, target: Node, resources: list[_Resource]) -> list[_Resource]:
        self.budget.take(len(resources))
        if target.is_mapping:
            return [resource for resource in resources if _is_target(resource, target)]
        kind, name = patch.get("kind").word, _name_of(patch)
        group = _group_of(patch)
        return [
            resource
            for resource in resources
            if name in resource.names
            and resource.node.get("kind").word == kind
            and _group_of(resource.node) == group
        ]

    # -- replacements

    def replace_values(self, entry: Node, folder: Path, resources: list[_Resource]) -> bool:
        """One of `replacements`: a value of one object put into fields of others."""
        if entry.get("path").text is not None:
            changed = False
            for document in self.texts_of(entry.get("path"), folder):
                for one in _some(document) or [document]:
                    if one.get("source").is_mapping:
                        changed |= self.replace_values(
                            mapping_node([(k, v) for k, v in one.items() if k != "path"]),
                            folder,
                            resources,
                        )
            return changed
        source = entry.get("source")
        origin = next((r for r in resources if _is_target(r, source)), None)
        if origin is None:
            return False
        path = _field_path(source.get("fieldPath").word or "metadata.name")
        value = next(iter(_at_path(origin.node, path)), ABSENT)
        value = _part_of(value, source.get("options"))
        if not isinstance(value, Scalar):
            return False
        changed = False
        for one in _some(entry.get("targets")):
            for resource in resources:
                self.budget.take()
                rejected = any(_is_target(resource, r) for r in _some(one.get("reject")))
                if rejected or not _is_target(resource, one.get("select")):
                    continue
                for field_path in _some(one.get("fieldPaths")):
                    put = _putting(value, one.get("options"))
                    steps = _field_path(field_path.word)
                    node = _replace_at(resource.node, steps, put, self.budget)
                    if node is not None:
                        resource.node = node
                        changed = True
        return changed


def _flattened(documents: list[Node]) -> Iterator[Node]:
    """Documents, those of `kind: List` one by one."""
    for document in documents:
        items = document.get("items")
        if items.is_sequence and document.get("kind").word.endswith("List"):
            yield from items.elements()
        else:
            yield document


def _name_of(node: Node) -> str:
    return str(node.get("metadata", "name").word)


def _group_of(node: Node) -> str:
    group, slash, _ = node.get("apiVersion").word.partition("/")
    return group if slash else ""


def _is_built_in(node: Node) -> bool:
    """Whether kustomize knows the lists of a kind: those of custom resources it replaces."""
    group = _group_of(node)
    return "." not in group or (group.endswith(".k8s.io") and not group.endswith(".x-k8s.io"))


def _rename(document: Node, resources: list[_Resource]) -> None:
    """Names with prefix and suffix: outer patches may use them."""
    prefix, suffix = document.get("namePrefix").word, document.get("nameSuffix").word
    if not prefix and not suffix:
        return
    for resource in resources:
        for name in list(resource.names):
            if len(resource.names) < _MOST_NAMES and len(name) < 500:
                resource.names.append(f"{prefix[:200]}{name}{suffix[:200]}")


# --- targets ----------------------------------------------------------------------------------


def _is_target(resource: _Resource, target: Node) -> bool:
    node = resource.node
    group, version = _group_of(node), node.get("apiVersion").word.rpartition("/")[2]
    fields = (("group", group), ("version", version), ("kind", str(node.get("kind").word)))
    for key, value in fields:
        wanted = target.get(key).text
        if wanted is not None and not fits(wanted, value):
            return False
    wanted = target.get("name").text
    if wanted is not None and not any(fits(wanted, name) for name in resource.names):
        return False
    for key, field_name in (("labelSelector", "labels"), ("annotationSelector", "annotations")):
        wanted = target.get(key).text
        if wanted is not None and not _has_labels(node.get("metadata", field_name), wanted):
            return False
    return target.is_mapping


def fits(pattern: str, text: str) -> bool:
    """Whether a target's pattern fits a whole name.

    Kustomize takes regular expressions. Strangers' ones are not run: alternatives, `.*` and plain
    text are what people write, and anything else has to be equal.
    """
    if len(pattern) > 1_000:
        return False
    pattern = pattern.removeprefix("^").removesuffix("$")
    if pattern.startswith("(") and pattern.endswith(")"):
        pattern = pattern[1:-1]
    return any(_fits_one(each, text) for each in pattern.split("|")[:64])


def _fits_one(pattern: str, text: str) -> bool:
    first, *others = pattern.replace("\\.", ".").split(".*")
    if not others:
        return first == text
    last = others.pop()
    if not text.startswith(first) or len(text) < len(first) + len(last):
        return False
    position, end = len(first), len(text) - len(last)
    for part in others:
        found = text.find(part, position, end)
        if found < 0:
            return False
        position = found + len(part)
    return text.endswith(last)


def _has_labels(labels: Node, selector: str) -> bool:
    """`a=b,c=d` and bare keys; sets are taken for met."""
    for part in selector[:2_000].split(","):
        key, equals, value = part.replace("==", "=").partition("=")
        key = key.strip()
        if not key or " " in key or key.startswith("!") or key.endswith("!"):
            continue
        found = labels.get(key)
        if not found or (equals and found.word != value.strip()):
            return False
    return True


# --- generators, images, replicas -------------------------------------------------------------


def _config_map(name: Word, data: Node) -> Mapping:
    metadata = mapping_node([(Word("name"), text_node(name))], name.span)
    entries = [
        (Word("apiVersion"), text_node(Word("v1"))),
        (Word("kind"), text_node(Word("ConfigMap"))),
        (Word("metadata"), metadata),
        (Word("data"), data),
    ]
    return mapping_node(entries, name.span)


def _data_of(entry: Node, folder: Path, context: Context) -> Mapping:
    """`data` of a generated ConfigMap."""
    found: dict[str, tuple[Word, Node]] = {}
    library, root = context.folder.library, context.folder.root

    def text_at(name: str) -> SourceText | None:
        if not name or len(name) > 500 or "\0" in name or name.startswith("/"):
            return None
        return library.text(folder / name, root)

    for file in _some(entry.get("files")):
        key, equals, name = file.word.partition("=")
        name = name if equals else key
        key = key if equals else name.rpartition("/")[2]
        content = text_at(name)
        if content is not None:
            found[key] = (file.word.becomes(key), file_node(content))
    files = [*_some(entry.get("envs")), *([entry.get("env")] if entry.get("env") else [])]
    for file in files:
        content = text_at(file.word)
        if content is not None:
            for word in _lines_of(content):
                _add_pair(found, word)
    for literal in _some(entry.get("literals")):
        _add_pair(found, literal.word)
    return mapping_node(found.values(), entry.span)


def _lines_of(content: SourceText) -> Iterator[Word]:
    """Lines of an env file that state something."""
    start = 0
    for line in content.value.split("\n")[:5_000]:
        bare = line.strip()
        if bare and not bare.startswith("#"):
            begin = start + line.index(bare)
            yield content.word(begin, begin + len(bare))
        start += len(line) + 1


def _add_pair(found: dict[str, tuple[Word, Node]], pair: Word) -> None:
    equals = pair.find("=")
    if equals > 0:
        key, value = pair.cut(0, equals), pair.cut(equals + 1)
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value.cut(1, len(value) - 1)
        found[str(key)] = (key, text_node(value))


def _set_replicas(entry: Node, resources: list[_Resource], budget: Budget) -> None:
    name, count = entry.get("name").word, entry.get("count")
    for resource in resources:
        budget.take()
        spec = resource.node.get("spec")
        kinds = ("Deployment", "ReplicaSet", "StatefulSet", "ReplicationController")
        if name in resource.names and count and resource.node.get("kind").word in kinds:
            spec = with_entry(spec, "replicas", count)
            resource.node = with_entry(resource.node, "spec", spec)


def _set_image(entry: Node, resources: list[_Resource], budget: Budget) -> bool:
    """Other names and tags for images, wherever containers stand."""
    name = entry.get("name").text
    if name is None:
        return False
    new_name, tag, digest = (entry.get(key).text for key in ("newName", "newTag", "digest"))
    if new_name is None and tag is None and digest is None:
        return False

    def renamed(image: Word) -> Word:
        known, rest = _split_image(image)
        if known != name:
            return image
        text = str(new_name or known)
        if digest is not None:
            text += f"{':' + tag if tag else ''}@{digest}"
        elif tag is not None:
            text += f":{tag}"
        else:
            text += rest
        return (tag or digest or new_name or image).becomes(text)

    changed = False
    for resource in resources:
        node = _with_images(resource.node, renamed, budget, 0)
        changed |= node is not resource.node
        resource.node = node
    return changed


def _split_image(image: str) -> tuple[str, str]:
    """(name, `:tag` or `@digest`) of an image."""
    at = image.find("@")
    if at >= 0:
        return image[:at].rpartition(":")[0] or image[:at], image[at:]
    colon = image.rfind(":")
    if colon > image.rfind("/"):
        return image[:colon], image[colon:]
    return image, ""


def _with_images(node: Node, renamed: Callable[[Word], Word], budget: Budget, depth: int) -> Node:
    budget.take()
    if depth > 128:
        raise TooMuch
    if node.is_mapping:
        entries = []
        changed = False
        for key, value in node.items():
            if key in ("containers", "initContainers") and value.is_sequence:
                new: Node = _renamed_list(value, renamed, budget)
            elif value.is_mapping or value.is_sequence:
                new = _with_images(value, renamed, budget, depth + 1)
            else:
                new = value
            changed |= new is not value
            entries.append((key, new))
        return mapping_node(entries, node.span) if changed else node
    if node.is_sequence:
        children = [_with_images(child, renamed, budget, depth + 1) for child in node.elements()]
        if any(new is not old for new, old in zip(children, node.elements(), strict=True)):
            return sequence_node(children, node.span)
    return node


def _renamed_list(containers: Node, renamed: Callable[[Word], Word], budget: Budget) -> Node:
    children = []
    changed = False
    for container in containers.elements():
        budget.take()
        image = container.get("image").text
        new = renamed(image) if image is not None else None
        if new is None or new is image:
            children.append(container)
        else:
            changed = True
            children.append(with_entry(container, "image", text_node(new)))
    return sequence_node(children, containers.span) if changed else containers


# --- fields of replacements -------------------------------------------------------------------


class _Choice(NamedTuple):
    """A step `[name=value]` into the elements of a list."""

    key: str
    value: str


_Step = str | _Choice


def _field_path(text: str) -> list[_Step]:
    """Steps of `spec.template.spec.containers.[name=main].resources.limits.[nvidia.com/gpu]`."""
    steps: list[_Step] = []
    current = ""
    inside = False
    position = 0
    text = text[:1_000]
    while position < len(text):
        char = text[position]
        if char == "\\" and text[position + 1 : position + 2] == ".":
            current += "."
            position += 1
        elif char == "[" and not current:
            inside = True
        elif char == "]" and inside:
            key, equals, value = current.partition("=")
            steps.append(_Choice(key, value) if equals else key)
            current, inside = "", False
        elif char == "." and not inside:
            if current:
                steps.append(current)
            current = ""
        else:
            current += char
        position += 1
    if current:
        steps.append(current)
    return steps[:64]


def _chosen(node: Node, step: _Step) -> list[str | int]:
    """The children that a step leads to."""
    if isinstance(step, _Choice):
        return [
            index
            for index, child in enumerate(node.elements())
            if child.get(step.key).word == step.value
        ]
    if node.is_sequence:
        if step == "*":
            return list(range(len(node.elements())))
        return [int(step)] if step.isascii() and step.isdigit() and len(step) < 6 else []
    return [step] if node.get(step) else []


def _at_path(node: Node, path: list[_Step]) -> list[Node]:
    found = [node]
    for step in path:
        found = [each.child(child) for each in found for child in _chosen(each, step)][:64]
    return found


def _part_of(value: Node, options: Node) -> Node:
    """One of the pieces that `delimiter` cuts a value into."""
    delimiter = options.get("delimiter").word
    if not delimiter or value.text is None:
        return value
    parts = value.word.split(delimiter)
    index = options.get("index").integer() or 0
    return text_node(value.word.becomes(parts[index])) if 0 <= index < len(parts) else ABSENT


def _putting(value: Scalar, options: Node) -> Callable[[Node], Node]:
    """How a value is put in the place of another: whole, or as one of its pieces."""
    delimiter = options.get("delimiter").word
    index = options.get("index").integer() or 0

    def put(old: Node) -> Node:
        if not delimiter:
            return value
        if len(old.word) > 10_000:
            return old
        parts = old.word.split(delimiter)
        if index < 0:
            parts.insert(0, str(value.word))
        elif index >= len(parts):
            parts.append(str(value.word))
        else:
            parts[index] = str(value.word)
        return text_node(value.word.becomes(delimiter.join(parts)))

    return put


def _replace_at(
    node: Node, path: list[_Step], put: Callable[[Node], Node], budget: Budget
) -> Node | None:
    """A node with what stands at a path replaced; None where the path leads nowhere."""
    budget.take()
    if not path:
        return put(node)
    changed = None
    for child in _chosen(node, path[0])[:_MOST_ENTRIES]:
        new = _replace_at(node.child(child), path[1:], put, budget)
        if new is None:
            continue
        if isinstance(child, int):
            children = list(node.elements())
            budget.take(len(children))
            children[child] = new
            node = sequence_node(children, node.span)
        else:
            node = with_entry(node, child, new)
        changed = node
    return changed


FORMATS = (Format("kustomization", is_kustomization, _read),)
