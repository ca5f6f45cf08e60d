"""NIM: services of the operator, pipelines, caches, chart values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from operator_files import in_file, one_server, read, texts

if TYPE_CHECKING:
    from pathlib import Path

SERVICE = """\
apiVersion: apps.nvidia.com/v1alpha1
kind: NIMService
metadata: {name: llama}
spec:
  image:
    repository: nvcr.io/nim/meta/llama-3.1-8b-instruct
    tag: "1.3.3"
  storage: {nimCache: {name: cache}, sharedMemorySizeLimit: 16Gi}
  nodeSelector: {nvidia.com/gpu.product: NVIDIA-L40S}
  resources:
    limits: {nvidia.com/gpu: 1, memory: 32Gi}
  startupProbe:
    probe: {initialDelaySeconds: 60, periodSeconds: 10, failureThreshold: 30}
"""


def test_a_service(tmp_path: Path) -> None:
    server = one_server("nim", tmp_path, SERVICE)
    assert (server.name, server.engine) == ("llama", "nim")
    assert server.model == "meta/llama-3.1-8b-instruct"
    assert in_file(server.model, SERVICE) == "meta/llama-3.1-8b-instruct"
    assert server.image == "nvcr.io/nim/meta/llama-3.1-8b-instruct:1.3.3"
    assert [(claim.text, claim.kind) for claim in server.gpus] == [("NVIDIA-L40S", "driver")]
    assert server.gpus_per_node is not None
    assert server.gpus_per_node.value == 1
    assert server.shm is not None
    assert server.shm.value == 16 << 30
    assert [deadline.seconds for deadline in server.deadlines] == [360]


def test_a_service_of_any_model(tmp_path: Path) -> None:
    text = SERVICE.replace("meta/llama-3.1-8b-instruct", "nvidia/llm-nim")
    cache = """\
apiVersion: apps.nvidia.com/v1alpha1
kind: NIMCache
metadata: {name: cache}
spec:
  source:
    hf: {namespace: some-org, modelName: Model}
"""
    assert one_server("nim", tmp_path, text, cache=cache).model == "some-org/Model"
    env = text + "  env: [{name: NIM_MODEL_NAME, value: hf://other/Model}]\n"
    assert one_server("nim", tmp_path, env, cache=cache).model == "other/Model"


def test_gpus_by_the_profile_that_is_cached(tmp_path: Path) -> None:
    cache = """\
apiVersion: apps.nvidia.com/v1alpha1
kind: NIMCache
metadata: {name: cache}
spec:
  source:
    ngc:
      modelPuller: nvcr.io/nim/meta/llama-3.1-8b-instruct:1.3.3
      model: {tensorParallelism: "2"}
"""
    text = SERVICE.replace("nvidia.com/gpu: 1, ", "")
    server = one_server("nim", tmp_path, text, cache=cache)
    assert server.gpus_per_node is not None
    assert server.gpus_per_node.value == 2
    [reading] = read("nim", tmp_path, cache)
    assert reading.servers[0].model == "meta/llama-3.1-8b-instruct"
    assert reading.servers[0].skipped == "a NIM cache: a NIMService serves from it"


def test_several_nodes(tmp_path: Path) -> None:
    text = SERVICE + "  multiNode: {parallelism: {pipeline: 2, tensor: 8}}\n"
    server = one_server("nim", tmp_path, text)
    assert server.nodes is not None
    assert server.nodes.value == 2
    assert texts(server.words) == ["--tensor-parallel-size", "8", "--pipeline-parallel-size", "2"]


def test_devices_that_the_operator_claims(tmp_path: Path) -> None:
    text = (
        SERVICE.partition("  nodeSelector")[0]
        + """\
  draResources:
    - claimCreationSpec:
        devices:
          - name: gpu
            count: 2
            deviceClassName: gpu.nvidia.com
            capacitySelectors: [{key: memory, op: GreaterThanOrEqual, value: 40Gi}]
"""
    )
    server = one_server("nim", tmp_path, text)
    assert server.gpus_per_node is not None
    assert server.gpus_per_node.value == 2
    assert [claim.text for claim in server.gpus] == ["40960MiB"]


def test_a_pipeline(tmp_path: Path) -> None:
    text = """\
apiVersion: apps.nvidia.com/v1alpha1
kind: NIMPipeline
metadata: {name: rag}
spec:
  services:
    - name: llm
      enabled: true
      spec: {image: {repository: nvcr.io/nim/meta/llama-3.1-8b-instruct}}
    - name: embed
      spec: {image: {repository: nvcr.io/nim/nvidia/llama-3.2-nv-embedqa-1b-v2}}
    - name: off
      enabled: false
      spec: {image: {repository: nvcr.io/nim/meta/llama-3.1-70b-instruct}}
"""
    [reading] = read("nim", tmp_path, text)
    assert [server.name for server in reading.servers] == ["llm", "embed"]
    assert not reading.servers[0].skipped
    assert "no text" in reading.servers[1].skipped


VALUES = """\
image:
  repository: nvcr.io/nim/meta/llama-3.1-70b-instruct
  tag: 1.2.1
resources:
  limits:
    nvidia.com/gpu: 4
startupProbe: {enabled: false, failureThreshold: 1}
multiNode: {enabled: false, workers: 2, gpusPerNode: 8}
"""


def test_chart_values(tmp_path: Path) -> None:
    server = one_server("nim", tmp_path, VALUES)
    assert server.model == "meta/llama-3.1-70b-instruct"
    assert server.image == "nvcr.io/nim/meta/llama-3.1-70b-instruct:1.2.1"
    assert (server.nodes, server.deadlines) == (None, ())
    assert server.gpus_per_node is not None
    assert server.gpus_per_node.value == 4
    several = one_server("nim", tmp_path, VALUES.replace("{enabled: false, w", "{enabled: true, w"))
    assert several.nodes is not None
    assert several.gpus_per_node is not None
    assert (several.nodes.value, several.gpus_per_node.value) == (2, 8)


def test_values_of_a_subchart(tmp_path: Path) -> None:
    below = "nim-llm:\n  enabled: true\n" + "".join(f"  {line}\n" for line in VALUES.splitlines())
    assert one_server("nim", tmp_path, below).name == "nim-llm"
    assert read("nim", tmp_path, below.replace("enabled: true", "enabled: false", 1)) == []
    assert read("nim", tmp_path, "image: {repository: vllm/vllm-openai}\n") == []
