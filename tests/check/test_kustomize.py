"""Kustomizations: what they make, where its pieces stand, and which files they cover.

What is expected of a merge is what `kubectl kustomize` (Kustomize 5.5.0) put out for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from check_reading import context_of, flag, only, parse, readings, text_at

from moesize.check.formats import Context
from moesize.check.readers import kubernetes, kustomize
from moesize.check.readers.kustomize import (
    Built,
    build,
    files_covered,
    fits,
    generated_config_map,
    is_kustomization,
    is_listed_patch,
)
from moesize.check.readers.merging import Budget, apply_operations, merge, operations_of

DEPLOYMENT = """
    apiVersion: apps/v1
    kind: Deployment
    metadata: {name: web, labels: {app: vllm}}
    spec:
      replicas: 1
      template:
        spec:
          nodeSelector: {cloud.google.com/gke-accelerator: nvidia-l4}
          containers:
          - name: main
            image: vllm/vllm-openai:v0.10.0
            args: [--model=$(MODEL_ID), --max-model-len=4096]
            env: [{name: MODEL_ID, value: org/base}, {name: OTHER, value: "1"}]
            envFrom: [{configMapRef: {name: cfg}}]
            resources: {limits: {nvidia.com/gpu: 1, memory: 16Gi}}
          - {name: side, image: "side:1"}
          volumes: [{name: shm, emptyDir: {medium: Memory}}]
"""
BASE = {
    "base/web.yaml": DEPLOYMENT,
    "base/kustomization.yaml": "resources: [web.yaml]\n",
}


def overlay(root: Path, text: str, more: dict[str, str] | None = None) -> Context:
    """The context of over/kustomization.yaml above the base."""
    files = {**BASE, **(more or {}), "over/kustomization.yaml": text}
    return context_of(root, files, "over/kustomization.yaml")


def built(root: Path, text: str, more: dict[str, str] | None = None) -> Built:
    context = overlay(root, text, more)
    return build(context.documents[0], context)


def pod(result: Built) -> dict[str, Any]:
    """The pod spec of the first object, as plain data."""
    spec: dict[str, Any] = result.documents[0].plain()["spec"]["template"]["spec"]
    return spec


PATCH = """
resources: [../base]
patches:
- patch: |-
    apiVersion: apps/v1
    kind: Deployment
    metadata: {name: web}
    spec:
      template:
        spec:
"""


def patched(root: Path, text: str) -> dict[str, Any]:
    """The pod spec after a strategic merge patch of it."""
    body = "".join(f"          {line}\n" for line in text.strip().split("\n"))
    return pod(built(root, PATCH + body))


# --- strategic merge --------------------------------------------------------------------------


def test_containers_and_variables_merge_by_name_arguments_are_replaced(tmp_path: Path) -> None:
    spec = patched(
        tmp_path,
        """
containers:
- name: new
  image: new:1
- name: main
  args: [--model=x]
  env: [{name: NEW, value: n}, {name: MODEL_ID, value: org/over}]
  envFrom: [{secretRef: {name: s}}]
  resources: {limits: {nvidia.com/gpu: 4}}
volumes: [{name: shm, emptyDir: {sizeLimit: 1Gi}}]
        """,
    )
    assert [container["name"] for container in spec["containers"]] == ["new", "main", "side"]
    main = spec["containers"][1]
    assert main == {
        "name": "main",
        "image": "vllm/vllm-openai:v0.10.0",
        "args": ["--model=x"],
        "env": [
            {"name": "NEW", "value": "n"},
            {"name": "MODEL_ID", "value": "org/over"},
            {"name": "OTHER", "value": "1"},
        ],
        "envFrom": [{"secretRef": {"name": "s"}}],
        "resources": {"limits": {"nvidia.com/gpu": 4, "memory": "16Gi"}},
    }
    assert spec["volumes"] == [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}
    ]


def test_null_takes_away_and_so_does_delete(tmp_path: Path) -> None:
    spec = patched(
        tmp_path,
        """
nodeSelector: null
containers:
- {name: side, $patch: delete}
- {name: main, resources: {limits: {memory: null}}}
        """,
    )
    assert "nodeSelector" not in spec
    assert [container["name"] for container in spec["containers"]] == ["main"]
    assert spec["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": 1}}


def test_replace_replaces_mappings_and_lists(tmp_path: Path) -> None:
    spec = patched(
        tmp_path,
        """
nodeSelector: {$patch: replace, a: b}
containers: [{$patch: replace}, {name: only, image: o}]
        """,
    )
    assert spec["nodeSelector"] == {"a": "b"}
    assert spec["containers"] == [{"name": "only", "image": "o"}]


def test_lists_of_custom_resources_are_replaced(tmp_path: Path) -> None:
    group = """
        apiVersion: leaderworkerset.x-k8s.io/v1
        kind: LeaderWorkerSet
        metadata: {name: big}
        spec: {leaderWorkerTemplate: {size: 2, workerTemplate: {spec: {containers: [
          {name: w, image: "a:1", env: [{name: A, value: "1"}]}, {name: x}]}}}}
    """
    text = """
        resources: [big.yaml]
        patches:
        - patch: |
            apiVersion: leaderworkerset.x-k8s.io/v1
            kind: LeaderWorkerSet
            metadata: {name: big}
            spec: {leaderWorkerTemplate: {size: 4, workerTemplate: {spec: {containers: [
              {name: w, image: "b:2"}]}}}}
    """
    result = built(tmp_path, text, {"over/big.yaml": group})
    template = result.documents[0].plain()["spec"]["leaderWorkerTemplate"]
    assert template == {
        "size": 4,
        "workerTemplate": {"spec": {"containers": [{"name": "w", "image": "b:2"}]}},
    }


def test_a_patch_can_delete_an_object(tmp_path: Path) -> None:
    text = """
        resources: [../base]
        patches:
        - patch: |
            apiVersion: apps/v1
            kind: Deployment
            metadata: {name: web}
            $patch: delete
    """
    assert built(tmp_path, text).documents == []


# --- JSON patches -----------------------------------------------------------------------------


def test_operations(tmp_path: Path) -> None:
    text = """
        resources: [../base]
        patches:
        - target: {kind: Deployment, name: web}
          patch: |-
            - {op: replace, path: /spec/template/spec/containers/0/args/1, value: --max-model-len=8}
            - {op: add, path: /spec/template/spec/containers/0/args/-, value: --enforce-eager}
            - {op: add, path: /spec/template/spec/containers/0/env/0, value: {name: FIRST}}
            - {op: remove, path: /spec/template/spec/nodeSelector}
            - {op: replace, path: /spec/template/spec/containers/0/resources/limits/nvidia.com~1gpu,
               value: 2}
            - {op: test, path: /spec/replicas, value: 1}
            - {op: copy, from: /spec/replicas, path: /spec/minReadySeconds}
    """
    result = built(tmp_path, text)
    main = pod(result)["containers"][0]
    assert main["args"] == ["--model=$(MODEL_ID)", "--max-model-len=8", "--enforce-eager"]
    assert main["env"][0] == {"name": "FIRST"}
    assert main["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert "nodeSelector" not in pod(result)
    assert result.documents[0].plain()["spec"]["minReadySeconds"] == 1


@pytest.mark.parametrize(
    "operation",
    [
        "{op: replace, path: /spec/none, value: 1}",
        "{op: remove, path: /a/9}",
        "{op: add, path: /a/9, value: 1}",
        "{op: add, path: /a/x, value: 1}",
        "{op: add, path: /none/below, value: 1}",
        "{op: copy, from: /none, path: /b}",
        "{op: remove, path: ''}",
    ],
)
def test_operations_that_do_not_fit_change_nothing(operation: str) -> None:
    node = parse("{a: [1], spec: {}}")[0]
    operations = operations_of(parse(f"[{operation}]")[0])
    assert operations is not None
    assert apply_operations(node, operations, Budget()) is None


def test_paths_without_end_are_no_json_patch() -> None:
    path = "/a" * 100
    assert operations_of(parse(f"[{{op: add, path: {path}, value: 1}}]")[0]) is None
    assert operations_of(parse("[{op: add, path: nonsense}]")[0]) is None
    assert operations_of(parse("{op: add}")[0]) is None


def test_legacy_fields(tmp_path: Path) -> None:
    text = """
        bases: [../base]
        patchesStrategicMerge: [p.yaml]
        patchesJson6902:
        - target: {group: apps, version: v1, kind: Deployment, name: web}
          path: p.json
    """
    more = {
        "over/p.yaml": """
            apiVersion: apps/v1
            kind: Deployment
            metadata: {name: web}
            spec: {template: {spec: {nodeSelector: {a: b}}}}
        """,
        "over/p.json": '[{"op": "replace", "path": "/spec/replicas", "value": 9}]',
    }
    result = built(tmp_path, text, more)
    assert result.documents[0].plain()["spec"]["replicas"] == 9
    assert pod(result)["nodeSelector"]["a"] == "b"


@pytest.mark.parametrize(
    ("target", "hit"),
    [
        ("{kind: Deployment}", True),
        ("{kind: StatefulSet|Deployment, name: w.*}", True),
        ("{name: ^web$}", True),
        ("{labelSelector: 'app=vllm'}", True),
        ("{labelSelector: 'app=other'}", False),
        ("{kind: StatefulSet}", False),
        ("{group: batch, kind: Deployment}", False),
        ("{name: we}", False),
    ],
)
def test_targets(tmp_path: Path, target: str, hit: bool) -> None:
    text = f"""
        resources: [../base]
        patches:
        - target: {target}
          patch: |-
            - {{op: replace, path: /spec/replicas, value: 7}}
    """
    result = built(tmp_path, text)
    assert result.documents[0].plain()["spec"]["replicas"] == (7 if hit else 1)
    assert result.changes is hit


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("a", "a", True),
        ("a", "ab", False),
        (".*", "anything", True),
        ("a.*c", "abc", True),
        ("a.*c", "ab", False),
        ("a.*a", "a", False),
        ("(a|b)", "b", True),
        ("a.*b.*c", "a1b2c", True),
        ("a.*b.*c", "acb", False),
        ("x" * 2000, "x" * 2000, False),
    ],
)
def test_patterns_are_not_run_as_regular_expressions(
    pattern: str, text: str, expected: bool
) -> None:
    assert fits(pattern, text) is expected


# --- generators, images, components, replacements ---------------------------------------------


def test_generated_config_maps_fill_variables(tmp_path: Path) -> None:
    text = """
        resources: [../base]
        configMapGenerator:
        - name: cfg
          literals: [MODEL_ID=org/generated, "QUOTED='a b'"]
          envs: [my.env]
          files: [start.sh, named=start.sh]
        patches:
        - patch: |
            apiVersion: apps/v1
            kind: Deployment
            metadata: {name: web}
            spec: {template: {spec: {containers: [{name: main,
              env: [{name: MODEL_ID, $patch: delete}]}]}}}
    """
    more = {"over/my.env": "# c\nA=1\n\nB=two words\n", "over/start.sh": "vllm serve x\n"}
    context = overlay(tmp_path, text, more)
    (reading,) = readings(context, kustomize)
    server = only(reading.servers)
    assert flag(server, "--model") == "org/generated"
    assert text_at(tmp_path, server.environment["MODEL_ID"]) == "org/generated"
    data = generated_config_map("cfg", context)
    assert data.plain() == {
        "MODEL_ID": "org/generated",
        "QUOTED": "a b",
        "A": "1",
        "B": "two words",
        "start.sh": "vllm serve x\n",
        "named": "vllm serve x\n",
    }
    word = data.get("B").word
    assert text_at(tmp_path, word) == "two words"
    assert not generated_config_map("other", context)


def test_generators_merge_and_replace(tmp_path: Path) -> None:
    more = {
        "base/kustomization.yaml": """
            resources: [web.yaml]
            configMapGenerator: [{name: cfg, literals: [A=1, B=2]}]
        """
    }
    text = (
        "resources: [../base]\nconfigMapGenerator:\n- {name: cfg, behavior: HOW, literals: [B=3]}\n"
    )
    for how, expected in (("merge", {"A": "1", "B": "3"}), ("replace", {"B": "3"})):
        result = built(tmp_path, text.replace("HOW", how), more)
        assert result.documents[-1].plain()["data"] == expected
        assert result.changes


def test_images(tmp_path: Path) -> None:
    text = """
        resources: [../base]
        images:
        - {name: vllm/vllm-openai, newName: registry.local/vllm, newTag: v0.11.0}
        - {name: side, digest: "sha256:0"}
        - {name: vllm, newTag: unused}
    """
    result = built(tmp_path, text)
    assert [one["image"] for one in pod(result)["containers"]] == [
        "registry.local/vllm:v0.11.0",
        "side@sha256:0",
    ]
    image = result.documents[0].get("spec", "template", "spec", "containers", 0, "image").word
    assert text_at(tmp_path, image) == "v0.11.0"


def test_components_come_before_patches(tmp_path: Path) -> None:
    component = """
        apiVersion: kustomize.config.k8s.io/v1alpha1
        kind: Component
        resources: [extra.yaml]
        patches:
        - target: {kind: Deployment}
          patch: |-
            - {op: add, path: /spec/template/spec/runtimeClassName, value: first}
            - {op: add, path: /spec/template/spec/priorityClassName, value: first}
    """
    more = {
        "comp/kustomization.yaml": component,
        "comp/extra.yaml": DEPLOYMENT.replace("name: web", "name: extra"),
    }
    text = """
        resources: [../base]
        components: [../comp]
        patches:
        - target: {name: web}
          patch: |-
            - {op: replace, path: /spec/template/spec/runtimeClassName, value: last}
    """
    result = built(tmp_path, text, more)
    specs = [one.plain()["spec"]["template"]["spec"] for one in result.documents]
    assert [spec["runtimeClassName"] for spec in specs] == ["last", "first"]
    assert [spec["priorityClassName"] for spec in specs] == ["first", "first"]
    context = context_of(tmp_path, {}, "comp/kustomization.yaml")
    (reading,) = readings(context, kustomize)
    assert "component" in reading.skipped


def test_replacements(tmp_path: Path) -> None:
    text = """
        resources: [../base]
        configMapGenerator: [{name: cfg, literals: [LEN=123]}]
        replacements:
        - source: {kind: ConfigMap, name: cfg, fieldPath: data.LEN}
          targets:
          - select: {kind: Deployment, name: web}
            fieldPaths: ["spec.template.spec.containers.[name=main].args.1"]
            options: {delimiter: "=", index: 1}
    """
    assert pod(built(tmp_path, text))["containers"][0]["args"][1] == "--max-model-len=123"


def test_prefixes_are_names_for_outer_patches(tmp_path: Path) -> None:
    more = {"mid/kustomization.yaml": "resources: [../base]\nnamePrefix: prod-\n"}
    patch = PATCH.replace("../base", "../mid") + "          nodeSelector: {a: b}\n"
    for name in ("web", "prod-web"):
        text = patch.replace("{name: web}", f"{{name: {name}}}")
        assert pod(built(tmp_path, text, more))["nodeSelector"]["a"] == "b"


# --- readings ---------------------------------------------------------------------------------


def test_servers_of_an_overlay_point_into_the_files_that_say_it(tmp_path: Path) -> None:
    text = """
        resources: [../base]
        patches: [{path: gpu.yaml}]
    """
    patch = """
        apiVersion: apps/v1
        kind: Deployment
        metadata: {name: web}
        spec: {template: {spec: {containers: [{name: main,
          env: [{name: MODEL_ID, value: org/over}],
          resources: {limits: {nvidia.com/gpu: 8}}}]}}}
    """
    context = overlay(tmp_path, text, {"over/gpu.yaml": patch})
    (reading,) = readings(context, kustomize)
    assert (reading.kind, reading.skipped) == ("kustomization", "")
    server = only(reading.servers)
    assert flag(server, "--model") == "org/over"
    assert server.gpus_per_node is not None
    assert server.gpus_per_node.at.span is not None
    assert server.gpus_per_node.at.span.path == "over/gpu.yaml"
    assert text_at(tmp_path, server.gpus_per_node.at) == "8"
    length = flag(server, "--max-model-len")
    assert length is not None
    assert length.span is not None
    assert (length.span.path, text_at(tmp_path, length)) == ("base/web.yaml", "4096")


def test_files_that_are_covered(tmp_path: Path) -> None:
    text = "resources: [../base]\npatches: [{path: p.yaml}]\n"
    patch = """
        apiVersion: apps/v1
        kind: Deployment
        metadata: {name: NAME}
        spec: {replicas: 2}
    """
    context = overlay(tmp_path, text, {"over/p.yaml": patch.replace("NAME", "web")})
    covered = files_covered(context.documents[0], context)
    assert sorted(path.relative_to(tmp_path.resolve()).as_posix() for path in covered) == [
        "base/kustomization.yaml",
        "base/web.yaml",
        "over/p.yaml",
    ]
    context = overlay(tmp_path, text, {"over/p.yaml": patch.replace("NAME", "other")})
    assert files_covered(context.documents[0], context) == set()


def test_a_kustomization_that_changes_nothing_leaves_files_alone(tmp_path: Path) -> None:
    text = "resources: [../base]\nnamespace: prod\ncommonLabels: {a: b}\n"
    context = overlay(tmp_path, text)
    (reading,) = readings(context, kustomize)
    assert reading.servers == []
    assert "changes nothing" in reading.skipped
    assert files_covered(context.documents[0], context) == set()


def test_what_is_elsewhere_is_said_and_not_followed(tmp_path: Path) -> None:
    text = """
        resources: ["https://example.com/b.yaml", "github.com/o/r//b?ref=v1", ../../x, ../base]
        components: ["https://github.com/o/r//c"]
        patches:
        - patch: |-
            apiVersion: apps/v1
            kind: Deployment
            metadata: {name: web}
            spec: {replicas: 3}
        - patch: |-
            apiVersion: apps/v1
            kind: Deployment
            metadata: {name: remote}
            spec: {replicas: 3}
    """
    result = built(tmp_path, text)
    assert len(result.documents) == 1
    assert [note.split(" ")[0] for note in result.notes] == [
        "https://example.com/b.yaml",
        "github.com/o/r//b?ref=v1",
        "../../x",
        "https://github.com/o/r//c",
        "a",
    ]
    assert "'remote' met nothing" in result.notes[-1]


def test_nothing_outside_of_the_root_is_opened(tmp_path: Path) -> None:
    (tmp_path / "secret.yaml").write_text("apiVersion: v1\nkind: Pod\nmetadata: {name: s}\n")
    root = tmp_path / "repo"
    text = "resources: [../../secret.yaml, /etc/passwd, ../base]\n"
    context = overlay(root, text)
    result = build(context.documents[0], context)
    assert [one.get("kind").word for one in result.documents] == ["Deployment"]


def test_circles_end(tmp_path: Path) -> None:
    more = {"a/kustomization.yaml": "resources: [../over]\n"}
    assert "swells" in built(tmp_path, "resources: [../a]\n", more).failed
    itself = built(tmp_path, "resources: [.]\n")
    assert "swells" in itself.failed


def test_folders_of_folders_do_not_multiply(tmp_path: Path) -> None:
    more = {
        f"n{level}/kustomization.yaml": f"resources: [../n{level + 1}, ../n{level + 1}]\n"
        for level in range(12)
    }
    more["n12/kustomization.yaml"] = "resources: [../base]\n"
    assert "swells" in built(tmp_path, "resources: [../n0]\n", more).failed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n", True),
        ("kind: Kustomization\nresources: [a.yaml]\n", True),
        ("resources: [a.yaml]\nnamePrefix: x\n", True),
        ("resources: {accelerators: A100}\nrun: x\n", False),
        ("resources: [a.yaml]\nrun: x\n", False),
        ("apiVersion: kustomize.toolkit.fluxcd.io/v1\nkind: Kustomization\n", False),
        ("[1]", False),
    ],
)
def test_kustomizations_are_told_by_their_fields(text: str, expected: bool) -> None:
    assert is_kustomization(parse(text)[0]) is expected


def test_patches_are_listed_by_kustomizations_above(tmp_path: Path) -> None:
    files = {
        "kustomization.yaml": "patches: [{path: parts/p.yaml}]\n",
        "parts/p.yaml": "a: b\n",
        "parts/q.yaml": "a: b\n",
    }
    assert is_listed_patch(context_of(tmp_path, files, "parts/p.yaml"))
    assert not is_listed_patch(context_of(tmp_path, files, "parts/q.yaml"))


def test_merging_leaves_both_sides_as_they_were() -> None:
    base, patch = parse("{a: {b: [1], c: 2}}\n---\n{a: {b: [3], d: 4}}")
    before = (base.plain(), patch.plain())
    assert merge(base, patch, Budget()).plain() == {"a": {"b": [3], "c": 2, "d": 4}}
    assert (base.plain(), patch.plain()) == before


def test_the_bare_files_are_still_read_where_nothing_covers_them(tmp_path: Path) -> None:
    context = context_of(tmp_path, BASE, "base/web.yaml")
    (reading,) = readings(context, kubernetes)
    assert flag(only(reading.servers), "--model") == "org/base"
