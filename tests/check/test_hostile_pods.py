"""Kubernetes objects of strangers: whatever stands where, nothing raises and nothing takes long."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesize.check.folder import Folder, Library
from moesize.check.formats import Context
from moesize.check.readers import kserve, kubernetes, kustomize
from moesize.check.server import Reading
from moesize.check.source import SourceFile, SourceText
from moesize.check.yaml_tree import MAX_BYTES, YamlError, parse_stream

_KEYS = [
    "apiVersion", "kind", "metadata", "name", "labels", "annotations", "spec", "template",
    "containers", "initContainers", "image", "command", "args", "env", "envFrom", "value",
    "valueFrom", "configMapKeyRef", "configMapRef", "key", "resources", "limits", "requests",
    "claims", "nvidia.com/gpu", "nvidia.com/mig-1g.10gb", "memory", "volumes", "volumeMounts",
    "mountPath", "emptyDir", "sizeLimit", "nodeSelector", "affinity", "nodeAffinity",
    "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms", "matchExpressions",
    "operator", "values", "startupProbe", "livenessProbe", "failureThreshold", "predictor",
    "model", "modelFormat", "runtime", "storageUri", "workerSpec", "parallelism", "data",
    "dataLocal", "prefill", "worker", "leader", "runner", "baseRefs", "leaderWorkerTemplate",
    "leaderTemplate", "workerTemplate", "size", "headGroupSpec", "workerGroupSpecs", "replicas",
    "patches", "patch", "path", "target", "op", "from", "components", "configMapGenerator",
    "literals", "images", "newTag", "replacements", "source", "targets", "fieldPath", "fieldPaths",
    "$patch", "resourceClaims", "cloud.google.com/gke-accelerator",
    "node.kubernetes.io/instance-type", "nvidia.com/gpu.memory",
]  # fmt: skip
_TEXTS = [
    "apps/v1", "v1", "Deployment", "LeaderWorkerSet", "leaderworkerset.x-k8s.io/v1",
    "serving.kserve.io/v1beta1", "InferenceService", "LLMInferenceService", "ServingRuntime",
    "kustomize.config.k8s.io/v1beta1", "Kustomization", "ome.io/v1beta1", "example.com/v1",
    "vllm/vllm-openai:v0.10.0", "nvcr.io/nim/a/b:1", "ollama/ollama", "--model", "--nnodes=2",
    "--model=$(A)", "$(A)", "${B}", "vllm serve $A --max-model-len $((1/0))", "sh", "-c", "A", "B",
    "main", "hf://a/b", "8", "-1", "1e99", "16Gi", "nvidia-l4", "/dev/shm", "In", "Gt", "Always",
    "delete", "replace", "/spec/0/~1", "spec.[name=a].0", "https://x", "..", ".", "\0", "{{ x }}",
]  # fmt: skip
_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from(_TEXTS), st.sampled_from(_TEXTS),
)  # fmt: skip
_TREES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(_KEYS), inner, max_size=5),
    ),
    max_leaves=25,
)

_CONTAINER = {
    "name": "main",
    "image": "vllm/vllm-openai:v0.10.0",
    "command": ["bash", "-c"],
    "args": ["vllm serve $(A) --tensor-parallel-size ${B} --max-model-len=4096"],
    "env": [
        {"name": "A", "value": "org/model"},
        {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "B"}}},
    ],
    "envFrom": [{"configMapRef": {"name": "cm"}}],
    "resources": {"limits": {"nvidia.com/gpu": "2", "memory": "16Gi"}, "claims": [{"name": "g"}]},
    "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    "startupProbe": {"failureThreshold": 30, "periodSeconds": 10},
}
_POD = {
    "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L4"},
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}
                ]
            }
        }
    },
    "containers": [_CONTAINER],
    "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}}],
    "resourceClaims": [{"name": "g", "resourceClaimTemplateName": "t"}],
}
_TEMPLATE = {"metadata": {"labels": {"ai.gke.io/model": "gemma"}}, "spec": _POD}
_OBJECTS: list[dict[str, Any]] = [
    {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
     "spec": {"template": _TEMPLATE}},
    {"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet",
     "spec": {"leaderWorkerTemplate": {"size": 2, "leaderTemplate": _TEMPLATE,
                                       "workerTemplate": _TEMPLATE}}},
    {"apiVersion": "orchestration.aibrix.ai/v1alpha1", "kind": "RayClusterFleet",
     "spec": {"template": {"spec": {"headGroupSpec": {"template": _TEMPLATE}, "workerGroupSpecs": [
         {"replicas": 1, "numOfHosts": 1, "template": _TEMPLATE}]}}}},
    {"apiVersion": "ome.io/v1beta1", "kind": "ClusterServingRuntime", "metadata": {"name": "rt"},
     "spec": {"engineConfig": {"leader": {"runner": _CONTAINER},
                               "worker": {"size": 1, "runner": _CONTAINER}}}},
    {"apiVersion": "ome.io/v1beta1", "kind": "InferenceService",
     "spec": {"model": {"name": "m"}, "runtime": {"name": "rt"}}},
    {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
     "spec": {"predictor": {"workerSpec": {"pipelineParallelSize": 2}, "model": {
         "modelFormat": {"name": "huggingface"}, "args": ["--model_id=a/b"], "runtime": "kr",
         "storageUri": "hf://a/b", "resources": {"limits": {"nvidia.com/gpu": 1}}}}}},
    {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "ServingRuntime",
     "metadata": {"name": "kr"}, "spec": _POD},
    {"apiVersion": "serving.kserve.io/v1alpha2", "kind": "LLMInferenceService",
     "metadata": {"annotations": {"serving.kserve.io/exp-dra-device-count": "2"}},
     "spec": {"model": {"uri": "hf://a/b"}, "parallelism": {"data": 4, "dataLocal": 2},
              "baseRefs": [{"name": "c"}], "template": _POD, "prefill": {"template": _POD}}},
    {"apiVersion": "serving.kserve.io/v1alpha2", "kind": "LLMInferenceServiceConfig",
     "metadata": {"name": "c"}, "spec": {"template": _POD}},
    {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate",
     "metadata": {"name": "t"}, "spec": {"spec": {"devices": {"requests": [
         {"exactly": {"deviceClassName": "gpu.nvidia.com", "count": 1}}]}}}},
    {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm"}, "data": {"B": "2"}},
    {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
     "resources": ["a.yaml"], "images": [{"name": "vllm/vllm-openai", "newTag": "v1"}],
     "configMapGenerator": [{"name": "cm", "literals": ["B=3"], "behavior": "merge"}],
     "patches": [{"patch": "kind: Deployment\napiVersion: apps/v1\nmetadata: {name: d}\nspec: {}"},
                 {"target": {"kind": "Deployment"},
                  "patch": "- {op: add, path: /spec/x, value: 1}"}],
     "replacements": [{"source": {"kind": "ConfigMap", "fieldPath": "data.B"}, "targets": [
         {"select": {"kind": "Deployment"}, "fieldPaths": ["spec.template.spec.x"]}]}]},
]  # fmt: skip


@pytest.fixture(autouse=True)
def _own_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kustomizations read what they make through these formats."""
    formats = (*kserve.FORMATS, *kubernetes.FORMATS)
    monkeypatch.setattr("moesize.check.formats.yaml_formats", lambda: formats)


def read_all(text: str, root: Path) -> list[Reading]:
    """Every document of a text, by every format that takes it."""
    library = Library(root)
    try:
        documents = parse_stream(SourceText.of_file(SourceFile("a.yaml", text))).documents
    except YamlError:  # characters that YAML forbids
        return []
    context = Context(path="a.yaml", folder=Folder(root, root, library), documents=documents)
    found = []
    for document in documents:
        for module in (kserve, kubernetes, kustomize):
            for one in module.FORMATS:
                if one.matches(document):
                    found.append(one.read(document, context))
    return found


def stream(objects: list[Any]) -> str:
    return "\n---\n".join(json.dumps(one, ensure_ascii=False) for one in objects)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the sound objects stand, for readers that look beside the file."""
    root = tmp_path_factory.mktemp("folder")
    (root / "a.yaml").write_text(stream(_OBJECTS), encoding="utf-8")
    return root


def test_the_sound_objects_are_read(folder: Path) -> None:
    servers = [server for one in read_all(stream(_OBJECTS), folder) for server in one.servers]
    assert len([server for server in servers if not server.skipped]) >= 8
    assert {server.engine for server in servers} == {"vllm"}


@settings(max_examples=300, deadline=None)
@given(tree=_TREES)
def test_trees_of_known_words_never_raise(folder: Path, tree: Any) -> None:
    read_all(stream([tree]), folder)


@settings(max_examples=300, deadline=None)
@given(number=st.integers(0, len(_OBJECTS) - 1), seed=st.integers(0, 2**32), tree=_TREES)
def test_objects_with_anything_anywhere_never_raise(
    folder: Path, number: int, seed: int, tree: Any
) -> None:
    changed = json.loads(json.dumps(_OBJECTS[number], default=str))
    read_all(stream([mutated(changed, random.Random(seed), tree)]), folder)


def mutated(tree: Any, chance: random.Random, other: Any) -> Any:
    """A tree with one of its places taken by another tree, taken away, doubled or cut."""
    here = tree
    while True:
        if isinstance(here, dict) and here:
            key: Any = chance.choice(list(here))
        elif isinstance(here, list) and here:
            key = chance.randrange(len(here))
        else:
            return tree
        below = here[key]
        if isinstance(below, (dict, list)) and below and chance.random() < 0.8:
            here = below
            continue
        what = chance.randrange(4)
        if what == 0:
            here[key] = other
        elif what == 1:
            del here[key]
        elif what == 2:
            here[key] = [below, below]
        else:
            here[key] = str(below)[: chance.randrange(5)]
        return tree


# --- sizes ------------------------------------------------------------------------------------


def seconds(text: str, root: Path) -> float:
    start = time.process_time()
    read_all(text, root)
    return time.process_time() - start


def test_many_containers_variables_and_terms_take_no_more_than_a_moment(tmp_path: Path) -> None:
    variables = [{"name": f"V{n}", "value": "$(V0)" * 50} for n in range(400)]
    term = {"matchExpressions": [{"key": "gpu", "operator": "In", "values": ["b"] * 200}] * 50}
    affinity = {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term] * 20}
        }
    }
    container = {**_CONTAINER, "env": variables}
    pod = {**_POD, "containers": [container] * 4, "affinity": affinity}
    text = stream([{**_OBJECTS[0], "spec": {"template": {"spec": pod}}}])
    assert len(text) < MAX_BYTES
    assert seconds(text, tmp_path) < 30


def test_patches_of_everything_swell_no_further_than_the_budget(tmp_path: Path) -> None:
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"p{n}"}, "spec": {"a": [1] * 50}}
        for n in range(1000)
    ]
    (tmp_path / "pods.yaml").write_text(stream(pods), encoding="utf-8")
    patch = "- {op: add, path: /spec/a/0, value: 1}\n" * 50
    patches = [{"target": {"kind": "Pod"}, "patch": patch}] * 300
    text = stream([{"kind": "Kustomization", "resources": ["pods.yaml"], "patches": patches}])
    assert seconds(text, tmp_path) < 60


def test_deep_trees_are_read(tmp_path: Path) -> None:
    tree: Any = {"containers": [_CONTAINER]}
    for _ in range(20):
        tree = {"x": [tree]}
    found = read_all(stream([{"apiVersion": "e.com/v1", "kind": "Deep", "spec": tree}]), tmp_path)
    assert [server.engine for server in found[0].servers] == ["vllm"]
