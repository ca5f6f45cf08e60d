"""llmaz: models, the playgrounds and services that claim them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from operator_files import in_file, one_server, read, texts

if TYPE_CHECKING:
    from pathlib import Path

MODEL = """\
apiVersion: llmaz.io/v1alpha1
kind: OpenModel
metadata: {name: model}
spec:
  source: {modelHub: {modelID: some-org/Model}}
  inferenceConfig:
    flavors:
      - {name: a10, limits: {nvidia.com/gpu: 2}}
      - name: big
        limits: {nvidia.com/gpu: 1}
        nodeSelector: {nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3}
"""
PLAYGROUND = """\
apiVersion: inference.llmaz.io/v1alpha1
kind: Playground
metadata: {name: play}
spec:
  modelClaim: {modelName: model}
  backendRuntimeConfig:
    backendName: vllm
    version: v0.10.0
    args: [--max-model-len, "4096"]
    envs: [{name: A, value: b}]
"""


def test_a_playground_and_its_model(tmp_path: Path) -> None:
    text = MODEL + "---\n" + PLAYGROUND
    [_, reading] = read("operators", tmp_path, text)
    [server] = reading.servers
    assert (server.engine, server.model) == ("vllm", "some-org/Model")
    assert in_file(server.model, text) == "some-org/Model"
    assert texts(server.words) == ["--max-model-len", "4096"]
    assert server.image == "vllm/vllm-openai:v0.10.0"
    # Flavors are alternatives, each with a number of its own.
    assert [(claim.text, claim.num_gpus) for claim in server.gpus] == [
        ("a10", 2),
        ("NVIDIA-H100-80GB-HBM3", 1),
    ]
    assert server.gpus_per_node is None
    assert server.environment["A"] == "b"


def test_the_model_in_a_file_beside_it(tmp_path: Path) -> None:
    chosen = PLAYGROUND.replace("modelName: model", "modelName: model, inferenceFlavors: [a10]")
    server = one_server("operators", tmp_path, chosen, model=MODEL)
    assert [claim.text for claim in server.gpus] == ["a10"]
    assert server.gpus_per_node is not None
    assert server.gpus_per_node.value == 2


def test_a_model_that_is_not_here(tmp_path: Path) -> None:
    server = one_server("operators", tmp_path, PLAYGROUND)
    assert [unresolved.name for unresolved in server.unresolved] == ["OpenModel model"]


def test_a_model_alone_serves_nothing(tmp_path: Path) -> None:
    server = one_server("operators", tmp_path, MODEL)
    assert (server.model, bool(server.skipped)) == ("some-org/Model", True)


def test_a_gguf_file(tmp_path: Path) -> None:
    model = MODEL.replace("some-org/Model", "some-org/Model-GGUF, filename: model-q5_k_m.gguf")
    play = PLAYGROUND.replace("backendName: vllm", "backendName: llamacpp")
    server = one_server("operators", tmp_path, play, model=model)
    assert (server.engine, server.fallback_model) == ("llama.cpp", "some-org/Model-GGUF")
    assert texts(server.words)[:2] == ["--model", "model-q5_k_m.gguf"]


def test_a_draft(tmp_path: Path) -> None:
    play = PLAYGROUND.replace(
        "modelClaim: {modelName: model}",
        "modelClaims: {models: [{name: model, role: main}, {name: small, role: draft}]}",
    )
    small = MODEL.replace("name: model", "name: small").replace("some-org/Model", "some-org/Small")
    server = one_server("operators", tmp_path, play, model=MODEL, small=small)
    assert server.model == "some-org/Model"
    assert texts(server.words)[:2] == ["--speculative-model", "some-org/Small"]


def test_a_service_with_a_workload_of_its_own(tmp_path: Path) -> None:
    text = """\
apiVersion: inference.llmaz.io/v1alpha1
kind: Service
metadata: {name: big}
spec:
  workloadTemplate:
    size: 2
    leaderTemplate:
      spec:
        containers:
          - name: leader
            image: lmsysorg/sglang:v0.5.3
            command: [python3, -m, sglang.launch_server, --model-path, some-org/Model, --tp, "16"]
            resources: {limits: {nvidia.com/gpu: 8}}
"""
    server = one_server("operators", tmp_path, text)
    assert server.nodes is not None
    assert (server.engine, server.nodes.value) == ("sglang", 2)
