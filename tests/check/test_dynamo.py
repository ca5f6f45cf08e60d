"""Dynamo graphs of both API versions, and the option files that workers are given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from operator_files import in_file, one_server, place, read, texts

if TYPE_CHECKING:
    from pathlib import Path

GRAPH = """\
apiVersion: nvidia.com/v1alpha1
kind: DynamoGraphDeployment
metadata: {name: graph}
spec:
  envs:
    - name: MODEL
      value: some-org/Model
  services:
    Frontend:
      componentType: frontend
      extraPodSpec:
        mainContainer: {image: nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.0}
    Worker:
      componentType: worker
      subComponentType: decode
      multinode: {nodeCount: 2}
      sharedMemory: {size: 80Gi}
      resources:
        limits: {gpu: "8", memory: 100Gi}
      extraPodSpec:
        nodeSelector: {cloud.google.com/gke-accelerator: nvidia-h200-141gb}
        mainContainer:
          image: nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.0
          command: [python3, -m, dynamo.vllm]
          args:
            - --model
            - $(MODEL)
            - --migration-limit=3
            - --is-prefill-worker
            - --dyn-tool-call-parser
            - hermes
            - --tensor-parallel-size
            - "16"
"""


def test_a_worker(tmp_path: Path) -> None:
    server = one_server("dynamo", tmp_path, GRAPH)
    assert (server.name, server.engine) == ("Worker", "vllm")
    # Flags of Dynamo itself are not the engine's.
    assert texts(server.words) == ["--model", "some-org/Model", "--tensor-parallel-size", "16"]
    assert place(server.words[1]) == (7, 14)
    assert server.gpus_per_node is not None
    assert (server.gpus_per_node.value, place(server.gpus_per_node.at)[0]) == (8, 19)
    assert server.nodes is not None
    assert server.nodes.value == 2
    assert server.shm is not None
    assert server.shm.value == 80 << 30
    assert server.memory_limit is not None
    assert server.memory_limit.value == 100 << 30
    assert [claim.text for claim in server.gpus] == ["nvidia-h200-141gb"]


def test_variables_of_the_container_win(tmp_path: Path) -> None:
    own = "          env: [{name: MODEL, value: other/Model}]\n          command:"
    server = one_server("dynamo", tmp_path, GRAPH.replace("          command:", own))
    assert texts(server.words)[1] == "other/Model"


BETA = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: engine-config}
data:
  decode.yaml: |-
    model-path: some-org/Model
    tp-size: 4
    mem-fraction-static: 0.8
---
apiVersion: nvidia.com/v1beta1
kind: DynamoGraphDeployment
metadata: {name: graph}
spec:
  backendFramework: sglang
  components:
    - name: Frontend
      type: frontend
      podTemplate:
        spec:
          containers:
            - {name: main, image: nvcr.io/nvidia/ai-dynamo/sglang-runtime:1.0}
    - name: DecodeWorker
      type: decode
      sharedMemorySize: 200Gi
      podTemplate:
        spec:
          containers:
            - name: main
              image: nvcr.io/nvidia/ai-dynamo/sglang-runtime:1.0
              command: [python3, -m, dynamo.sglang]
              args: [--config, /etc/engine/decode.yaml, --mem-fraction-static, "0.7"]
              resources: {limits: {nvidia.com/gpu: "4"}}
              volumeMounts: [{name: config, mountPath: /etc/engine}]
          volumes:
            - name: config
              configMap: {name: engine-config}
"""


def test_the_beta_api_with_a_config_file(tmp_path: Path) -> None:
    server = one_server("dynamo", tmp_path, BETA)
    # The command line comes last, and wins.
    assert texts(server.words) == [
        "--model-path",
        "some-org/Model",
        "--tp-size",
        "4",
        "--mem-fraction-static",
        "0.8",
        "--mem-fraction-static",
        "0.7",
    ]
    assert in_file(server.words[3], BETA) == "4"
    assert server.shm is not None
    assert server.shm.value == 200 << 30


TRTLLM = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: options}
data:
  agg.yaml: |
    tensor_parallel_size: 4
    max_seq_len: 4096
    kv_cache_config:
      free_gpu_memory_fraction: 0.8
---
apiVersion: nvidia.com/v1alpha1
kind: DynamoGraphDeployment
metadata: {name: graph}
spec:
  backendFramework: trtllm
  services:
    Worker:
      componentType: worker
      resources: {limits: {gpu: 4}}
      extraPodSpec:
        mainContainer:
          image: nvcr.io/nvidia/ai-dynamo/tensorrtllm-runtime:1.0
          env: [{name: OPTIONS, value: /config/agg.yaml}]
          command: [/bin/sh, -c]
          args:
            - |
              python3 -m dynamo.trtllm --model-path some-org/Model \\
                --max-seq-len 8192 --extra-engine-args "${OPTIONS}" \\
                --override-engine-args '{"max_batch_size": 32}'
          volumeMounts: [{name: options, mountPath: /config}]
        volumes:
          - name: options
            configMap: {name: options}
"""


def test_option_files_of_tensorrt_llm_win(tmp_path: Path) -> None:
    server = one_server("dynamo", tmp_path, TRTLLM)
    assert server.engine == "tensorrt-llm"
    words = [text.replace("_", "-") for text in texts(server.words)]
    assert words[:4] == ["--model-path", "some-org/Model", "--max-seq-len", "8192"]
    assert words[4:] == [
        "--tensor-parallel-size",
        "4",
        "--max-seq-len",
        "4096",
        "--free-gpu-memory-fraction",
        "0.8",
        "--max-batch-size",
        "32",
    ]
    assert in_file(server.words[9], TRTLLM) == "0.8"


def test_a_request_names_its_model(tmp_path: Path) -> None:
    text = """\
apiVersion: nvidia.com/v1beta1
kind: DynamoGraphDeploymentRequest
metadata: {name: asked}
spec: {model: some-org/Model, backend: vllm}
"""
    [reading] = read("dynamo", tmp_path, text)
    [server] = reading.servers
    assert reading.skipped
    assert server.skipped
    assert (server.model, server.engine) == ("some-org/Model", "vllm")


def test_a_component_alone(tmp_path: Path) -> None:
    text = """\
apiVersion: nvidia.com/v1alpha1
kind: DynamoComponentDeployment
metadata: {name: lone}
spec:
  backendFramework: vllm
  componentType: worker
  resources: {limits: {gpu: "1"}}
  extraPodSpec:
    mainContainer:
      image: nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.0
      args: [python3 -m dynamo.vllm --model some-org/Model]
      command: [/bin/sh, -c]
"""
    server = one_server("dynamo", tmp_path, text)
    assert (server.name, texts(server.words)) == ("lone", ["--model", "some-org/Model"])
