"""KAITO: presets, machines, the config file, and what the operator adds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from operator_files import in_file, one_server, place, read, texts

if TYPE_CHECKING:
    from pathlib import Path

WORKSPACE = """\
apiVersion: kaito.sh/v1beta1
kind: Workspace
metadata:
  name: ws
resource:
  instanceType: Standard_NC48ads_A100_v4
  labelSelector:
    matchLabels: {apps: ws}
inference:
  preset:
    name: llama-3.3-70b-instruct
  config: params
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: params
data:
  inference_config.yaml: |
    vllm:
      max-model-len: 16384
      gpu-memory-utilization: 0.9
"""
DEFAULTS = ["--gpu-memory-utilization", "0.84", "--max-model-len", "auto"]


def test_flags_of_the_config_file_have_their_places(tmp_path: Path) -> None:
    server = one_server("kaito", tmp_path, WORKSPACE)
    assert server.model == "llama-3.3-70b-instruct"
    assert texts(server.words) == [
        "--tensor-parallel-size",
        "2",
        "--max-model-len",
        "16384",
        "--gpu-memory-utilization",
        "0.9",
    ]
    assert place(server.words[3]) == (21, 22)
    assert in_file(server.words[3], WORKSPACE) == "16384"
    # What KAITO adds points at the machine that it follows from.
    assert place(server.words[1])[0] == 6
    assert "KAITO adds --tensor-parallel-size 2" in server.notes
    assert [(claim.text, claim.kind) for claim in server.gpus] == [
        ("Standard_NC48ads_A100_v4", "instance")
    ]
    assert server.gpus_per_node is None


def test_the_file_wins_over_what_kaito_adds(tmp_path: Path) -> None:
    text = WORKSPACE.replace("gpu-memory-utilization: 0.9", "tensor-parallel-size: 1")
    words = texts(one_server("kaito", tmp_path, text).words)
    assert words.count("--tensor-parallel-size") == 1
    assert words[:2] == ["--gpu-memory-utilization", "0.84"]


def test_defaults_without_a_config_file(tmp_path: Path) -> None:
    text = WORKSPACE.partition("  config:")[0]
    server = one_server("kaito", tmp_path, text)
    assert texts(server.words) == ["--tensor-parallel-size", "2", *DEFAULTS]
    assert any("before 0.11 estimates --max-model-len" in note for note in server.notes)
    stated = one_server("kaito", tmp_path, WORKSPACE)
    assert not any("before 0.11" in note for note in stated.notes)
    a10 = text.replace("Standard_NC48ads_A100_v4", "Standard_NV36ads_A10_v5")
    assert texts(one_server("kaito", tmp_path, a10).words)[:2] == [
        "--gpu-memory-utilization",
        "0.82",
    ]


def test_a_small_model_runs_as_copies(tmp_path: Path) -> None:
    # pkg/model/interface.go: data parallel where the files are below half of one GPU.
    text = WORKSPACE.partition("  config:")[0].replace("llama-3.3-70b", "llama-3.1-8b")
    assert texts(one_server("kaito", tmp_path, text).words)[:2] == ["--data-parallel-size", "2"]


def test_several_machines_make_a_pipeline(tmp_path: Path) -> None:
    text = WORKSPACE.replace("resource:\n", "resource:\n  count: 3\n")
    server = one_server("kaito", tmp_path, text)
    assert texts(server.words)[:4] == [
        "--tensor-parallel-size",
        "2",
        "--pipeline-parallel-size",
        "3",
    ]
    assert server.nodes is not None
    assert server.nodes.value == 3


def test_a_config_map_that_is_not_there(tmp_path: Path) -> None:
    server = one_server("kaito", tmp_path, WORKSPACE.partition("---")[0])
    assert [unresolved.name for unresolved in server.unresolved] == ["ConfigMap params"]


def test_a_place_to_fill_in_is_no_claim(tmp_path: Path) -> None:
    text = WORKSPACE.replace("Standard_NC48ads_A100_v4", "<your-sku>")
    server = one_server("kaito", tmp_path, text)
    assert not server.gpus
    assert "--tensor-parallel-size" not in texts(server.words)


def test_a_partition(tmp_path: Path) -> None:
    text = """\
apiVersion: kaito.sh/v1beta1
kind: InferenceSet
metadata: {name: small}
spec:
  replicas: 2
  template:
    inference:
      preset: {name: phi-4-mini-instruct}
    resource:
      partition: {mode: mig, profile: 2g.24gb}
"""
    server = one_server("kaito", tmp_path, text)
    assert [(claim.text, claim.kind) for claim in server.gpus] == [("2g.24gb", "kubernetes")]
    assert server.gpus_per_node is not None
    assert server.gpus_per_node.value == 1
    assert texts(server.words) == DEFAULTS
    whole = text.replace("mode: mig, profile: 2g.24gb", "mode: accelerator, count: 2")
    server = one_server("kaito", tmp_path, whole)
    assert texts(server.words)[:2] == ["--tensor-parallel-size", "2"]
    assert server.nodes is None


def test_presets_that_are_not_called_like_their_repository(tmp_path: Path) -> None:
    text = WORKSPACE.replace("llama-3.3-70b-instruct", "gemma-3-27b-instruct")
    server = one_server("kaito", tmp_path, text)
    assert server.model == "google/gemma-3-27b-it"
    assert place(server.model) == (11, 11)


def test_roles(tmp_path: Path) -> None:
    text = """\
apiVersion: kaito.sh/v1alpha1
kind: MultiRoleInference
metadata: {name: pd}
spec:
  model: {name: some-org/Model}
  roles:
    - type: prefill
      instanceType: Standard_NC24ads_A100_v4
    - type: decode
      instanceType: Standard_NC80adis_H100_v5
"""
    [reading] = read("kaito", tmp_path, text)
    assert [(server.name, server.gpus[0].text) for server in reading.servers] == [
        ("pd/prefill", "Standard_NC24ads_A100_v4"),
        ("pd/decode", "Standard_NC80adis_H100_v5"),
    ]


def test_a_pod_template(tmp_path: Path) -> None:
    text = """\
apiVersion: kaito.sh/v1beta1
kind: Workspace
metadata: {name: own}
resource: {instanceType: Standard_NC24ads_A100_v4}
inference:
  template:
    spec:
      containers:
        - name: server
          image: vllm/vllm-openai:v0.10.0
          args: [--model, some-org/Model]
          resources: {limits: {nvidia.com/gpu: 1}}
"""
    server = one_server("kaito", tmp_path, text)
    assert (server.engine, server.gpus[0].text) == ("vllm", "Standard_NC24ads_A100_v4")
    assert texts(server.words) == ["--model", "some-org/Model"]


@pytest.mark.parametrize(
    ("kind", "body", "why"),
    [
        ("Workspace", "tuning: {method: lora}", "a fine-tuning job, no model server"),
        ("Workspace", "inference: {preset: {}}", "no model preset is named"),
        ("RAGEngine", "spec: {}", "a RAG engine: it embeds, and asks a model elsewhere"),
    ],
)
def test_what_serves_nothing(tmp_path: Path, kind: str, body: str, why: str) -> None:
    text = f"apiVersion: kaito.sh/v1beta1\nkind: {kind}\nmetadata: {{name: x}}\n{body}\n"
    [reading] = read("kaito", tmp_path, text)
    assert (reading.servers, reading.skipped) == ([], why)


def test_another_runtime(tmp_path: Path) -> None:
    text = WORKSPACE.replace(
        "name: ws\n", "name: ws\n  annotations: {kaito.sh/runtime: transformers}\n"
    )
    server = one_server("kaito", tmp_path, text)
    assert (server.engine, server.words) == ("transformers", ())
