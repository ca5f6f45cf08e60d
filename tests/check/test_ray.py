"""Ray: services, clusters and jobs of KubeRay, serve configs, LLM configs old and new."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from operator_files import in_file, one_server, place, read, texts

if TYPE_CHECKING:
    from pathlib import Path

SERVICE = """\
apiVersion: ray.io/v1
kind: RayService
metadata: {name: service}
spec:
  serveConfigV2: |
    applications:
      - name: llms
        import_path: ray.serve.llm:build_openai_app
        args:
          llm_configs:
            - model_loading_config:
                model_id: mine
                model_source: some-org/Model
              accelerator_type: A100-80G
              engine_kwargs:
                tensor_parallel_size: TP
                max_model_len: 4096
                enable_prefix_caching: false
                trust_remote_code: true
                hf_overrides: {a: 1}
              deployment_config:
                num_replicas: COPIES
                max_ongoing_requests: 128
                autoscaling_config: {target_ongoing_requests: 64}
  rayClusterConfig:
    headGroupSpec:
      rayStartParams: {num-gpus: "0"}
      template: {spec: {containers: [{name: head, image: rayproject/ray-llm:2.52.0}]}}
    workerGroupSpecs:
      - replicas: 2
        groupName: gpus
        template:
          spec:
            nodeSelector: {cloud.google.com/gke-accelerator: nvidia-a100-80gb}
            containers:
              - name: worker
                image: rayproject/ray-llm:2.52.0
                resources: {limits: {nvidia.com/gpu: "8", memory: 500Gi}}
"""


def service(tensor: int = 8, copies: int = 1) -> str:
    return SERVICE.replace("TP", str(tensor)).replace("COPIES", str(copies))


def test_an_llm_config(tmp_path: Path) -> None:
    text = service()
    server = one_server("ray", tmp_path, text)
    assert (server.name, server.engine) == ("mine", "vllm")
    assert (server.model, server.fallback_model) == ("some-org/Model", "mine")
    assert in_file(server.model, text) == "some-org/Model"
    assert texts(server.words) == [
        "--tensor-parallel-size",
        "8",
        "--max-model-len",
        "4096",
        "--no-enable-prefix-caching",
        "--trust-remote-code",
        "--hf-overrides",
        '{"a": 1}',
    ]
    assert in_file(server.words[3], text) == "4096"
    assert server.concurrency is not None
    assert server.concurrency.value == 64
    assert [(claim.text, claim.kind) for claim in server.gpus] == [("nvidia-a100-80gb", "gke")]
    assert server.memory_limit is not None
    assert not server.shm_is_default


@pytest.mark.parametrize(
    ("tensor", "copies", "nodes", "share"),
    [
        (8, 1, None, None),  # a pod for each replica
        (16, 1, 2, None),  # two pods for a replica
        (32, 1, 2, None),  # more than there are: found by comparing
        (1, 8, None, 8),  # eight replicas in a pod
        (2, 2, None, 2),
        (2, 1, None, None),  # six GPUs idle: found by comparing
    ],
)
def test_pods_and_replicas(
    tmp_path: Path, tensor: int, copies: int, nodes: int | None, share: int | None
) -> None:
    server = one_server("ray", tmp_path, service(tensor, copies))
    assert server.gpus_per_node is not None
    assert server.gpus_per_node.value == 8
    assert (server.nodes and server.nodes.value) == nodes
    assert (server.replicas_share and server.replicas_share.value) == share


def test_models_that_share_the_pods(tmp_path: Path) -> None:
    config = """\
            - model_loading_config: {model_id: other, model_source: some-org/Other}
  rayClusterConfig:
"""
    text = service(4).replace("  rayClusterConfig:\n", config)
    [reading] = read("ray", tmp_path, text)
    assert [server.model for server in reading.servers] == ["some-org/Model", "some-org/Other"]
    assert [
        server.replicas_share and server.replicas_share.value for server in reading.servers
    ] == [
        2,
        8,
    ]


def test_settings_in_variables(tmp_path: Path) -> None:
    text = """\
apiVersion: ray.io/v1
kind: RayService
metadata: {name: old}
spec:
  serveConfigV2: |
    applications:
      - name: llm
        import_path: serve:model
        deployments: [{name: VLLMDeployment, num_replicas: 1}]
        runtime_env:
          pip: ["vllm==0.4.3"]
          env_vars:
            MODEL_ID: some-org/Model
            TENSOR_PARALLELISM: "2"
            MAX_MODEL_LEN: "2048"
            HF_TOKEN: secret
"""
    server = one_server("ray", tmp_path, text)
    assert (server.engine, server.model) == ("vllm", "some-org/Model")
    assert texts(server.words) == ["--tensor-parallel-size", "2", "--max-model-len", "2048"]
    assert in_file(server.words[1], text) == "2"
    template = text.replace("some-org/Model", '"$MODEL"')
    server = one_server("ray", tmp_path, template)
    assert server.model is None
    assert [unresolved.name for unresolved in server.unresolved] == ["MODEL"]
    other = text.replace("VLLMDeployment", "Vision").replace("vllm==", "torch==")
    other = other.replace("name: llm", "name: images").replace("TENSOR_PARALLELISM", "SIZE")
    [reading] = read("ray", tmp_path, other.replace("MAX_MODEL_LEN", "LENGTH"))
    assert reading.skipped == "no application that serves a language model"


def test_a_cluster_whose_head_starts_an_engine(tmp_path: Path) -> None:
    text = """\
apiVersion: ray.io/v1
kind: RayCluster
metadata: {name: cluster}
spec:
  headGroupSpec:
    template:
      spec:
        containers:
          - name: head
            image: vllm/vllm-openai:v0.10.0
            command: [/bin/bash, -c]
            args: ["ray start --head && vllm serve some-org/Model --tensor-parallel-size 16"]
            resources: {limits: {nvidia.com/gpu: 8}}
  workerGroupSpecs:
    - replicas: 1
      template:
        spec:
          containers:
            - {name: worker, image: i, resources: {limits: {nvidia.com/gpu: 8}}}
"""
    [reading] = read("ray", tmp_path, text)
    [server] = reading.servers
    assert reading.kind == "raycluster"
    assert server.nodes is not None
    assert (server.engine, server.nodes.value) == ("vllm", 2)
    [reading] = read("ray", tmp_path, text.replace("&& vllm serve", "&& echo serve"))
    assert reading.skipped == "a Ray cluster: what it serves is started elsewhere"


def test_a_job(tmp_path: Path) -> None:
    text = """\
apiVersion: ray.io/v1
kind: RayJob
metadata: {name: job}
spec:
  entrypoint: vllm serve some-org/Model -tp 2
  rayClusterSpec:
    workerGroupSpecs:
      - template: {spec: {containers: [{name: w, resources: {limits: {nvidia.com/gpu: 2}}}]}}
"""
    [reading] = read("ray", tmp_path, text)
    [server] = reading.servers
    assert reading.kind == "rayjob"
    assert server.gpus_per_node is not None
    assert (texts(server.words)[0], server.gpus_per_node.value) == ("some-org/Model", 2)


CONFIG = """\
model_loading_config: {model_id: some-org/Model}
accelerator_type: A10
llm_engine: VLLMEngine
tensor_parallelism: {degree: 4}
max_request_context_length: 8192
engine_kwargs: {max_num_seqs: 64, unset: null}
"""


def test_a_config_alone(tmp_path: Path) -> None:
    server = one_server("ray", tmp_path, CONFIG)
    assert (server.model, server.fallback_model) == ("some-org/Model", None)
    # Ray makes A10 an A10G.
    assert server.gpus[0].text == "A10G"
    assert texts(server.words) == [
        "--tensor-parallel-size",
        "4",
        "--max-model-len",
        "8192",
        "--max-num-seqs",
        "64",
    ]


def test_the_form_before(tmp_path: Path) -> None:
    text = """\
deployment_config:
  autoscaling_config: {target_num_ongoing_requests_per_replica: 24}
engine_config:
  model_id: mine
  hf_model_id: some-org/Model
  type: VLLMEngine
  engine_kwargs: {gpu_memory_utilization: 0.95}
  max_total_tokens: 4096
scaling_config:
  num_workers: 2
  resources_per_worker: {"accelerator_type:L4": 0.001}
"""
    server = one_server("ray", tmp_path, text)
    assert (server.model, server.gpus[0].text) == ("some-org/Model", "L4")
    assert texts(server.words)[:4] == ["--tensor-parallel-size", "2", "--max-model-len", "4096"]
    assert place(server.gpus[0].text)[0] == 11
    assert server.concurrency is not None
    assert server.concurrency.value == 24


def test_configs_in_files_of_their_own(tmp_path: Path) -> None:
    text = """\
applications:
  - name: llm
    import_path: rayllm:app
    args: {llm_configs: [./configs/one.yaml]}
"""
    [reading] = read("ray", tmp_path, text)
    assert reading.skipped == "the LLM configs are in files that are not here: ./configs/one.yaml"
    [reading] = read("ray", tmp_path, text, configs__one=CONFIG)
    [server] = reading.servers
    assert server.model == "some-org/Model"
    assert server.place.span is not None
    assert server.place.span.path.endswith("configs/one.yaml")


def test_machines_of_a_service(tmp_path: Path) -> None:
    text = """\
name: anyscale
compute_config:
  worker_nodes: [{instance_type: g6.12xlarge, max_nodes: 2}]
applications:
  - import_path: ray.serve.llm:build_openai_app
    args:
      llm_configs:
        - model_loading_config: {model_id: some-org/Model}
          engine_kwargs: {tensor_parallel_size: 4}
"""
    server = one_server("ray", tmp_path, text)
    assert [(claim.text, claim.kind) for claim in server.gpus] == [("g6.12xlarge", "instance")]
    assert server.gpus_per_node is not None
    assert server.gpus_per_node.value == 4


def test_what_is_no_language_model(tmp_path: Path) -> None:
    embedding = CONFIG.replace("VLLMEngine", "EmbeddingEngine")
    assert one_server("ray", tmp_path, embedding).skipped == "an embedding model"
    assert read("ray", tmp_path, "model_loading_config: {model_id: a}\n") == []
    assert read("ray", tmp_path, "applications: [{image: x}]\n") == []
