"""Mappings as flags, flags of other programs left out, wrong shapes that raise nothing."""

from __future__ import annotations

import random
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from operator_files import read, texts

from moesize.check.readers.resource_fields import (
    flag_words,
    known_flags,
    number_of,
    value_of,
    without_flag,
)
from moesize.check.source import SourceFile, SourceText, Word
from moesize.check.yaml_tree import Node, parse_stream

if TYPE_CHECKING:
    from pathlib import Path


def node(text: str) -> Node:
    return parse_stream(SourceText.of_file(SourceFile("x.yaml", text))).documents[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_model_len: 8192", ["--max-model-len", "8192"]),
        ("max-model-len: '8k'", ["--max-model-len", "8k"]),
        ("enforce_eager: true", ["--enforce-eager"]),
        ("enforce_eager: 'True'", ["--enforce-eager"]),
        ("enforce_eager: ''", ["--enforce-eager"]),
        ("enable_prefix_caching: false", ["--no-enable-prefix-caching"]),
        ("cuda_graph_sizes: [1, 2]", ["--cuda-graph-sizes", "1", "2"]),
        ("speculative_config: {method: ngram}", ["--speculative-config", '{"method": "ngram"}']),
        ("max_model_len: null", []),
        ("not_a_flag: true", ["--not-a-flag"]),
        ("not_a_flag: false", []),
        ("not_a_flag: [a]", ["--not-a-flag", '["a"]']),
    ],
)
def test_keys_as_flags(text: str, words: list[str]) -> None:
    assert texts(tuple(flag_words(node(text), "vllm"))) == words


def test_only_known_keys() -> None:
    text = "max_model_len: 1\nmade_up: 2\n"
    assert texts(tuple(flag_words(node(text), "vllm", only_known=True))) == ["--max-model-len", "1"]


def words(text: str) -> tuple[Word, ...]:
    return tuple(Word(word) for word in text.split())


def test_flags_of_a_program_around_the_engine() -> None:
    line = words("--model m --migration-limit=3 --dyn-parser hermes -tp 2 --max_model_len 9")
    assert texts(known_flags(line, "vllm")) == ["--model", "m", "-tp", "2", "--max_model_len", "9"]


def test_values_of_flags() -> None:
    line = words("--a 1 --b=2 --a 3 --c_d 4")
    assert value_of(line, "--a") == "3"
    assert value_of(line, "--b") == "2"
    assert value_of(line, "--c-d") == "4"
    assert value_of(line, "--e") is None
    assert number_of(line, "--b") == 2
    assert number_of(line, "--e") == 1
    assert texts(without_flag(line, "--a", "--b")) == ["--c_d", "4"]


# --- wrong shapes -----------------------------------------------------------------------------

SHAPES = {
    "kubeai": """
        apiVersion: kubeai.org/v1
        kind: Model
        metadata: {name: a}
        spec: {url: "hf://a/b", engine: VLLM, features: [TextGeneration], args: [--x], env: {A: b},
               resourceProfile: "nvidia-gpu-l4:2", targetRequests: 3, adapters: [{name: c}]}
        """,
    "kaito": """
        apiVersion: kaito.sh/v1beta1
        kind: Workspace
        metadata: {name: a, annotations: {kaito.sh/runtime: vllm}}
        resource: {instanceType: Standard_NC48ads_A100_v4, count: 2,
                   partition: {mode: mig, profile: 1g.10gb, count: 1}}
        inference: {preset: {name: phi-4}, config: c, adapters: [1]}
        """,
    "dynamo": """
        apiVersion: nvidia.com/v1alpha1
        kind: DynamoGraphDeployment
        metadata: {name: a}
        spec:
          backendFramework: vllm
          envs: [{name: A, value: b}]
          services:
            W: {componentType: worker, multinode: {nodeCount: 2}, sharedMemory: {size: 1Gi},
                resources: {limits: {gpu: 2}},
                extraPodSpec: {mainContainer: {image: i, command: [python3, -m, dynamo.vllm],
                                               args: [--model, m, --config, /c/d]}}}
        """,
    "nim": """
        apiVersion: apps.nvidia.com/v1alpha1
        kind: NIMService
        metadata: {name: a}
        spec: {image: {repository: nvcr.io/nim/meta/llama, tag: 1}, storage: {nimCache: {name: c}},
               resources: {limits: {nvidia.com/gpu: 1}}, multiNode: {parallelism: {pipeline: 2}},
               draResources: [{claimCreationSpec: {devices: [{name: g, count: 1}]}}]}
        """,
    "ray": """
        model_loading_config: {model_id: a, model_source: {bucket_uri: "s3://b"}}
        engine_kwargs: {tensor_parallel_size: 2, hf_overrides: {a: [1]}}
        accelerator_type: L4
        deployment_config: {num_replicas: 2, autoscaling_config: {max_replicas: 3}}
        compute_config: {worker_nodes: [{instance_type: g5.xlarge, max_nodes: 2}]}
        applications: [{import_path: "a:b", args: {llm_configs: [x.yaml]}, runtime_env: {pip: [b]}}]
        """,
    "truss": """
        model_name: a
        base_image: {image: vllm/vllm-openai:v0.10.0}
        docker_server: {start_command: vllm serve /m}
        weights: [{source: "hf://a/b", mount_location: /m}]
        resources: {accelerator: "H100:2", node_count: 2}
        trt_llm: {build: {checkpoint_repository: {repo: a}, max_seq_len: 1}, runtime: {a: b}}
        """,
    "operators": """
        apiVersion: inference.llmaz.io/v1alpha1
        kind: Playground
        metadata: {name: a}
        spec: {modelClaims: {models: [{name: m, role: main}], inferenceFlavors: [f]},
               backendRuntimeConfig: {backendName: vllm, args: [--x], resources: {limits: {a: 1}}}}
        """,
}
ODD: list[Any] = [None, "", "x", -1, 10**25, 1.5, True, [], {}, [None], {"a": None}, [[{}]], "${A}"]


def mutated(value: Any, rng: random.Random) -> Any:
    """A copy with one or two places of another shape."""
    if rng.random() < 0.08:
        return rng.choice(ODD)
    if isinstance(value, dict):
        return {key: mutated(inner, rng) for key, inner in value.items() if rng.random() > 0.02}
    if isinstance(value, list):
        return [mutated(inner, rng) for inner in value]
    return value


@pytest.mark.parametrize("module", sorted(SHAPES))
def test_wrong_shapes_are_not_recognised_and_raise_nothing(module: str, tmp_path: Path) -> None:
    whole = yaml.safe_load(SHAPES[module])
    [reading] = read(module, tmp_path, yaml.safe_dump(whole))
    assert reading.servers
    assert import_module(f"moesize.check.readers.{module}").FORMATS
    rng = random.Random(module)
    for _ in range(150):
        read(module, tmp_path, yaml.safe_dump(mutated(whole, rng)))
