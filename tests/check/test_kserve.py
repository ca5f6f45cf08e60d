"""KServe: services, their runtimes and configs, joined where they stand in the same folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_reading import context_of, flag, only, readings, text_at

from moesize.check.readers import kserve
from moesize.check.readers.kserve import uri_model
from moesize.check.server import Reading
from moesize.check.source import Word


def read(root: Path, text: str, **others: str) -> list[Reading]:
    files = {"a.yaml": text, **{f"{name}.yaml": other for name, other in others.items()}}
    return readings(context_of(root, files, "a.yaml"), kserve)


SERVICE = """
    apiVersion: serving.kserve.io/v1beta1
    kind: InferenceService
    metadata:
      name: chat
      annotations: {autoscaling.knative.dev/target: "10"}
    spec:
      predictor:
        nodeSelector: {node.kubernetes.io/instance-type: g5.8xlarge}
        model:
          modelFormat: {name: huggingface}
          args: [--model_name=chat, --max-model-len=1024]
          storageUri: hf://org/model:main
          resources: {limits: {nvidia.com/gpu: 1, memory: 24Gi}}
"""


def test_a_service_of_kserves_own_runtime(tmp_path: Path) -> None:
    (reading,) = read(tmp_path, SERVICE)
    assert (reading.kind, reading.skipped) == ("kserve_isvc", "")
    server = only(reading.servers)
    assert (server.name, server.engine, server.model) == ("chat", "vllm", "org/model")
    assert server.model is not None
    assert text_at(tmp_path, server.model) == "org/model"
    assert server.words == ("--max-model-len=1024",)
    assert [str(claim.text) for claim in server.gpus] == ["g5.8xlarge"]
    assert server.gpus_per_node is not None
    assert server.gpus_per_node.value == 1
    assert server.concurrency is not None
    assert (server.concurrency.value, server.shm_is_default) == (10, False)


def test_a_model_id_wins_over_nothing_and_is_the_engines_model(tmp_path: Path) -> None:
    text = SERVICE.replace("--model_name=chat", "--model_id=org/other").replace(
        "storageUri: hf://org/model:main", "runtimeVersion: v1"
    )
    server = only(read(tmp_path, text)[0].servers)
    assert server.model is None
    assert flag(server, "--model") == "org/other"


RUNTIME = """
    apiVersion: serving.kserve.io/v1alpha1
    kind: ServingRuntime
    metadata: {name: my-vllm}
    spec:
      supportedModelFormats: [{name: vLLM, autoSelect: true}]
      containers:
      - name: kserve-container
        image: vllm/vllm-openai:v0.9.2
        command: [python, -m, vllm.entrypoints.openai.api_server]
        args: [--model=/mnt/models, --dtype=half]
        env: [{name: A, value: runtime}, {name: B, value: runtime}]
        volumeMounts: [{name: shm, mountPath: /dev/shm}]
      volumes: [{name: shm, emptyDir: {medium: Memory, sizeLimit: 2Gi}}]
"""
JOINED = """
    apiVersion: serving.kserve.io/v1beta1
    kind: InferenceService
    metadata: {name: chat}
    spec:
      predictor:
        containerConcurrency: 4
        model:
          modelFormat: {name: vLLM}
          RUNTIME
          args: [--max-model-len=2048]
          env: [{name: B, value: service}]
          storageUri: s3://bucket/models/Org--Model
          resources: {limits: {nvidia.com/gpu: "2"}}
"""


@pytest.mark.parametrize("named", ["runtime: my-vllm", "protocolVersion: v1"])
def test_a_runtime_of_the_folder_is_joined(tmp_path: Path, named: str) -> None:
    (reading,) = read(tmp_path, JOINED.replace("RUNTIME", named), runtime=RUNTIME)
    server = only(reading.servers)
    assert (server.engine, server.image) == ("vllm", "vllm/vllm-openai:v0.9.2")
    assert server.words == ("--model=/mnt/models", "--dtype=half", "--max-model-len=2048")
    assert server.model == "s3://bucket/models/Org--Model"
    assert (server.environment["A"], server.environment["B"]) == ("runtime", "service")
    assert server.shm is not None
    assert server.shm.value == 2 << 30
    assert server.concurrency is not None
    assert server.concurrency.value == 4
    assert text_at(tmp_path, server.words[1]) == "--dtype=half"


def test_a_runtime_alone_has_no_model(tmp_path: Path) -> None:
    (reading,) = read(tmp_path, RUNTIME)
    assert reading.kind == "kserve_servingruntime"
    assert "InferenceService" in reading.skipped
    assert only(reading.servers).skipped == reading.skipped


def test_runtimes_that_nobody_shows(tmp_path: Path) -> None:
    text = JOINED.replace("RUNTIME", "runtime: house-server").replace("vLLM", "secret")
    (reading,) = read(tmp_path, text)
    assert "house-server" in reading.skipped
    (reading,) = read(tmp_path, text.replace("secret", "sklearn").replace("runtime: ", "x: "))
    assert "no language model" in reading.skipped
    (reading,) = read(tmp_path, text.replace("house-server", "sglang-runtime"))
    server = only(reading.servers)
    assert (server.engine, server.skipped) == ("sglang", "")


def test_workers_are_pods_of_one_server(tmp_path: Path) -> None:
    text = SERVICE.replace(
        "        model:\n",
        "        workerSpec: {pipelineParallelSize: 2, tensorParallelSize: 8}\n        model:\n",
    )
    server = only(read(tmp_path, text)[0].servers)
    assert server.nodes is not None
    assert server.nodes.value == 2
    assert flag(server, "--pipeline-parallel-size") == "2"
    assert flag(server, "--tensor-parallel-size") == "8"


def test_containers_of_ones_own(tmp_path: Path) -> None:
    text = """
        apiVersion: serving.kserve.io/v1beta1
        kind: InferenceService
        metadata: {name: own}
        spec:
          predictor:
            containers:
            - name: kserve-container
              image: vllm/vllm-openai:v0.9.2
              args: [--max-model-len=64]
              env: [{name: STORAGE_URI, value: "hf://org/model"}]
    """
    server = only(read(tmp_path, text)[0].servers)
    assert (server.name, server.model) == ("own/kserve-container", "org/model")


@pytest.mark.parametrize(
    ("runtime", "model_format", "model"),
    [
        ("nvidia-nim-llama-3.1-70b-instruct-1.1.0", "nvidia-nim-x", "llama-3.1-70b-instruct"),
        ("mixtral-8x7b-v1_2xgpu_1.8.2", "nvidia-nim-mixtral", "mixtral-8x7b-v1"),
        ("", "nvidia-nim-qwen3-32b", "qwen3-32b"),
    ],
)
def test_the_model_of_a_nim_runtime(
    tmp_path: Path, runtime: str, model_format: str, model: str
) -> None:
    named = f"runtime: {runtime}" if runtime else "x: y"
    text = JOINED.replace("RUNTIME", named).replace("vLLM", model_format)
    server = only(read(tmp_path, text)[0].servers)
    assert (server.engine, server.model) == ("nim", model)
    assert server.model is not None
    assert text_at(tmp_path, server.model) == model


@pytest.mark.parametrize(
    ("uri", "model"),
    [
        ("hf://org/model", "org/model"),
        ("hf://org/model:rev", "org/model"),
        ("s3://b/k", "s3://b/k"),
        ("pvc://claim/path", "pvc://claim/path"),
        ("oci://r/m:1", "oci://r/m:1"),
    ],
)
def test_models_of_storage_addresses(uri: str, model: str) -> None:
    assert uri_model(Word(uri)) == model


# --- LLMInferenceService ----------------------------------------------------------------------

LLM = """
    apiVersion: serving.kserve.io/v1alpha2
    kind: LLMInferenceService
    metadata: {name: big}
    spec:
      model: {uri: "pvc://weights", name: org/model}
      BASE
      parallelism: {data: 32, dataLocal: 8, expert: true, tensor: 1}
      template:
        containers:
        - name: main
          env:
          - name: VLLM_ADDITIONAL_ARGS
            value: >-
              --max-model-len 8192
              --kv-transfer-config '{"a": "b c"}'
          resources: {limits: {nvidia.com/gpu: "8"}}
        - {name: helper, image: busybox, command: [sleep, "1"]}
      worker:
        containers: [{name: main, resources: {limits: {nvidia.com/gpu: "8"}}}]
"""


def test_parallelism_and_additional_arguments_are_flags(tmp_path: Path) -> None:
    (reading,) = read(tmp_path, LLM.replace("BASE", "replicas: 1"))
    assert (reading.kind, reading.skipped) == ("kserve_llmisvc", "")
    server = only(reading.servers)
    assert (server.engine, server.model, server.fallback_model) == (
        "vllm",
        "pvc://weights",
        "org/model",
    )
    assert flag(server, "--data-parallel-size") == "32"
    assert flag(server, "--data-parallel-size-local") == "8"
    assert flag(server, "--tensor-parallel-size") == "1"
    assert "--enable-expert-parallel" in server.words
    length = flag(server, "--max-model-len")
    assert length is not None
    assert (length, text_at(tmp_path, length)) == ("8192", "8192")
    assert flag(server, "--kv-transfer-config") == '{"a": "b c"}'
    assert server.nodes is not None
    assert (server.nodes.value, text_at(tmp_path, server.nodes.at)) == (4, "32")


def test_prefill_is_a_server_of_its_own(tmp_path: Path) -> None:
    text = (
        LLM.replace("BASE", "replicas: 1")
        + """
      prefill:
        parallelism: {tensor: 2}
        template:
          nodeSelector: {cloud.google.com/gke-accelerator: nvidia-l4}
          containers: [{name: main, resources: {limits: {nvidia.com/gpu: 2}}}]
"""
    )
    decode, prefill = read(tmp_path, text)[0].servers
    assert (decode.name, prefill.name) == ("big", "big/prefill")
    assert flag(prefill, "--tensor-parallel-size") == "2"
    assert prefill.model == "pvc://weights"
    assert [str(claim.text) for claim in prefill.gpus] == ["nvidia-l4"]
    assert decode.gpus == ()


CONFIG = """
    apiVersion: serving.kserve.io/v1alpha2
    kind: LLMInferenceServiceConfig
    metadata: {name: base}
    spec:
      template:
        containers:
        - name: main
          image: ghcr.io/llm-d/llm-d-cuda:v0.9.0
          command: [/bin/sh, -c]
          args:
          - >
            vllm serve /mnt/models
            --served-model-name "{{ .Spec.Model.Name }}"
            --max-num-seqs 64
            $VLLM_ADDITIONAL_ARGS
          livenessProbe: {initialDelaySeconds: 1200}
"""


def test_configs_of_the_folder_are_laid_under(tmp_path: Path) -> None:
    text = LLM.replace("BASE", "baseRefs: [{name: base}]")
    server = only(read(tmp_path, text, config=CONFIG)[0].servers)
    assert server.image == "ghcr.io/llm-d/llm-d-cuda:v0.9.0"
    assert "/mnt/models" not in server.words
    assert flag(server, "--max-num-seqs") == "64"
    assert flag(server, "--max-model-len") == "8192"
    # The command is the config's own, which asks for no parallel sizes.
    assert flag(server, "--data-parallel-size") is None
    assert server.deadlines[0].seconds == 1230
    assert server.gpus_per_node is not None
    assert server.gpus_per_node.value == 8


def test_a_config_has_no_model(tmp_path: Path) -> None:
    (reading,) = read(tmp_path, CONFIG)
    assert "without a model" in reading.skipped
    assert only(reading.servers).engine == "vllm"


def test_devices_by_annotation(tmp_path: Path) -> None:
    text = """
        apiVersion: serving.kserve.io/v1alpha2
        kind: LLMInferenceService
        metadata:
          name: dra
          annotations:
            serving.kserve.io/exp-dra-device-class: gpu.nvidia.com
            serving.kserve.io/exp-dra-device-count: "2"
            serving.kserve.io/exp-dra-cel-selector: |
              device.attributes['gpu.nvidia.com']['type'] == 'H200'
              device.capacity['gpu.nvidia.com']['memory'].compareTo(quantity('40Gi')) >= 0
        spec:
          model: {uri: "hf://org/model", name: org/model}
          template: {containers: [{name: main}]}
    """
    server = only(read(tmp_path, text)[0].servers)
    assert server.gpus_per_node is not None
    assert (server.gpus_per_node.value, server.vendor) == (2, "nvidia")
    assert [(str(claim.text), claim.via) for claim in server.gpus] == [("H200", "DRA")]


def test_without_a_template_there_is_still_a_server(tmp_path: Path) -> None:
    text = """
        apiVersion: serving.kserve.io/v1alpha1
        kind: LLMInferenceService
        metadata: {name: least}
        spec: {model: {uri: "hf://org/model"}}
    """
    server = only(read(tmp_path, text)[0].servers)
    assert (server.engine, server.model, server.words) == ("vllm", "org/model", ())
