"""KubeAI: models, resource profiles, the values of the models chart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from operator_files import in_file, one_server, place, read, texts

from moesize.gpus import find_gpu

if TYPE_CHECKING:
    from pathlib import Path

MODEL = """\
apiVersion: kubeai.org/v1
kind: Model
metadata:
  name: big-model
spec:
  features: [TextGeneration]
  url: hf://some-org/Big-Model?pull=false
  engine: VLLM
  args:
    - --tensor-parallel-size=4
    - --max-model-len
    - "8192"
  env:
    VLLM_USE_V1: "1"
  targetRequests: 64
  resourceProfile: nvidia-gpu-l4:4
"""


def test_a_model_with_its_places(tmp_path: Path) -> None:
    server = one_server("kubeai", tmp_path, MODEL)
    assert (server.name, server.engine, server.model) == ("big-model", "vllm", "some-org/Big-Model")
    assert in_file(server.model, MODEL) == "some-org/Big-Model"
    assert texts(server.words) == ["--tensor-parallel-size=4", "--max-model-len", "8192"]
    assert place(server.words[2]) == (12, 8)
    assert server.environment == {"VLLM_USE_V1": "1"}
    assert server.concurrency is not None
    assert server.concurrency.value == 64
    [claim] = server.gpus
    assert (claim.text, claim.kind, server.vendor) == ("l4", "typed", "nvidia")
    assert server.gpus_per_node is not None
    assert server.gpus_per_node.value == 4
    # A fix may change the count alone.
    assert in_file(server.gpus_per_node.at, MODEL) == "4"
    assert not server.shm_is_default


@pytest.mark.parametrize(
    ("url", "engine", "model", "fallback"),
    [
        ("ollama://gemma3:27b", "OLlama", "gemma3:27b", None),
        ("pvc://models?model=qwen2:0.5b", "OLlama", "qwen2:0.5b", None),
        ("s3://bucket/Some-Model-7B", "VLLM", "s3://bucket/Some-Model-7B", "big-model"),
        ("pvc://claim/path/m?x=y", "VLLM", "pvc://claim/path/m", "big-model"),
    ],
)
def test_addresses(tmp_path: Path, url: str, engine: str, model: str, fallback: str | None) -> None:
    text = MODEL.replace("hf://some-org/Big-Model?pull=false", url).replace("VLLM\n", engine + "\n")
    server = one_server("kubeai", tmp_path, text)
    assert (server.model, server.fallback_model) == (model, fallback)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("engine: VLLM", "engine: FasterWhisper", "FasterWhisper serves no language model"),
        ("[TextGeneration]", "[TextEmbedding]", "generates no text (TextEmbedding)"),
        ("nvidia-gpu-l4:4", "cpu:4", "runs on the processor, not on a GPU"),
    ],
)
def test_what_is_no_server_of_ours(tmp_path: Path, old: str, new: str, why: str) -> None:
    assert one_server("kubeai", tmp_path, MODEL.replace(old, new)).skipped == why


def test_a_profile_that_the_folder_defines_wins(tmp_path: Path) -> None:
    values = """\
resourceProfiles:
  nvidia-gpu-l4:
    limits:
      nvidia.com/gpu: "2"
    nodeSelector:
      cloud.google.com/gke-accelerator: nvidia-h100-80gb
"""
    server = one_server("kubeai", tmp_path, MODEL, values=values)
    assert [(claim.text, claim.kind) for claim in server.gpus] == [("nvidia-h100-80gb", "gke")]
    assert server.gpus_per_node is not None
    assert server.gpus_per_node.value == 8


def test_a_name_that_says_more_than_its_selector_stays(tmp_path: Path) -> None:
    values = """\
resourceProfiles:
  nvidia-gpu-a100-80gb:
    nodeSelector:
      karpenter.k8s.aws/instance-gpu-name: a100
"""
    text = MODEL.replace("nvidia-gpu-l4", "nvidia-gpu-a100-80gb")
    assert one_server("kubeai", tmp_path, text, values=values).gpus[0].text == "a100-80gb"


def test_profiles_of_ones_own(tmp_path: Path) -> None:
    server = one_server("kubeai", tmp_path, MODEL.replace("nvidia-gpu-l4", "nvidia-gpu-h200"))
    assert find_gpu(str(server.gpus[0].text)).spec.id == "h200-141gb-sxm"
    server = one_server("kubeai", tmp_path, MODEL.replace("nvidia-gpu-l4", "team-pool"))
    assert not server.gpus
    assert server.notes == ("the resource profile 'team-pool' is defined elsewhere",)
    assert server.gpus_per_node is not None


def test_adapters_turn_lora_on(tmp_path: Path) -> None:
    text = MODEL + "  adapters:\n    - name: one\n      url: hf://a/b\n"
    server = one_server("kubeai", tmp_path, text)
    assert texts(server.words)[-1] == "--enable-lora"
    assert place(server.words[-1])[0] == 17


def test_values_with_profiles_alone(tmp_path: Path) -> None:
    text = "resourceProfiles:\n  mine:\n    nodeSelector: {a: b}\n"
    [reading] = read("kubeai", tmp_path, text)
    assert reading.kind == "kubeai"
    assert reading.skipped == "resource profile definitions, no model server"
    assert read("kubeai", tmp_path, "resourceProfiles: {a: b}\n") == []


def test_the_models_chart(tmp_path: Path) -> None:
    text = """\
catalog:
  on:
    enabled: true
    url: hf://a/b
    engine: VLLM
    features: [TextGeneration]
    resourceProfile: nvidia-gpu-h100:1
  off:
    enabled: false
    url: hf://c/d
    engine: VLLM
"""
    server = one_server("kubeai", tmp_path, text)
    assert (server.name, server.model, server.gpus[0].text) == ("on", "a/b", "h100")
    [reading] = read("kubeai", tmp_path, text.replace("true", "false"))
    assert reading.skipped == "no model of this catalogue is enabled"
    [reading] = read("kubeai", tmp_path, "all: {enabled: true}\n" + text)
    assert [server.name for server in reading.servers] == ["on", "off"]
