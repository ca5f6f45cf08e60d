"""Truss: start commands, TensorRT-LLM builds, Python models that bring an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from operator_files import in_file, one_server, place, read, texts

if TYPE_CHECKING:
    from pathlib import Path

SERVER = """\
model_name: Some Model
base_image:
  image: vllm/vllm-openai:v0.10.0
docker_server:
  start_command: sh -c "vllm serve /models/m --tensor-parallel-size 2 --port 8000"
  server_port: 8000
weights:
  - source: "hf://some-org/Model@main"
    mount_location: /models/m
environment_variables: {VLLM_USE_V1: 1}
resources:
  accelerator: H100:2
  memory: 10Gi
"""


def test_a_start_command(tmp_path: Path) -> None:
    server = one_server("truss", tmp_path, SERVER)
    assert (server.engine, server.image) == ("vllm", "vllm/vllm-openai:v0.10.0")
    # The mounted folder is the repository that was brought there.
    assert texts(server.words)[:3] == ["some-org/Model", "--tensor-parallel-size", "2"]
    assert place(server.words[0]) == (5, 36)
    assert server.environment["VLLM_USE_V1"] == "1"
    assert [claim.text for claim in server.gpus] == ["H100"]
    assert server.gpus_per_node is not None
    assert server.gpus_per_node.value == 2
    assert in_file(server.gpus_per_node.at, SERVER) == "2"
    # The memory is what the machine must have, no limit.
    assert server.memory_limit is None


@pytest.mark.parametrize(
    ("written", "gpu", "count"),
    [
        ("A10G", "A10G", 1),
        ("H100_40GB", "h100:3g.40gb", 1),
        ("A100:4", "a100-80gb", 4),
    ],
)
def test_accelerators(tmp_path: Path, written: str, gpu: str, count: int) -> None:
    server = one_server("truss", tmp_path, SERVER.replace("H100:2", written))
    assert server.gpus_per_node is not None
    assert (server.gpus[0].text, server.gpus_per_node.value) == (gpu, count)


def test_the_cache_that_is_a_volume(tmp_path: Path) -> None:
    text = """\
base_image: {image: lmsysorg/sglang:v0.5.3}
docker_server:
  start_command: >-
    truss-transfer-cli &&
    python3 -m sglang.launch_server --model-path=/app/model_cache/m
model_cache: [{repo_id: some-org/Model, use_volume: true, volume_folder: m}]
resources: {accelerator: L4}
"""
    server = one_server("truss", tmp_path, text)
    assert (server.engine, texts(server.words)) == ("sglang", ["--model-path=some-org/Model"])


def test_a_script_in_the_data_folder(tmp_path: Path) -> None:
    text = SERVER.replace('sh -c "vllm serve /models/m --tensor-parallel-size 2 --port 8000"', "S")
    text = text.replace(" S\n", " sh -c /app/data/go.yaml\n")
    # The helper writes files that end in .yaml; what is in them is a script.
    script = "vllm serve some-org/Model --max-model-len 4096\n"
    server = one_server("truss", tmp_path, text, data__go=script)
    assert texts(server.words) == ["some-org/Model", "--max-model-len", "4096"]
    (tmp_path / "data" / "go.yaml").unlink()
    named = text + "model_metadata: {repo_id: some-org/Model}\n"
    server = one_server("truss", tmp_path, named)
    assert (server.engine, server.model) == ("vllm", "some-org/Model")
    assert server.skipped == "its start command is a script that is not here"


BUILD = """\
model_name: built
resources: {accelerator: "H100:4"}
trt_llm:
  build:
    base_model: decoder
    checkpoint_repository: {source: HF, repo: some-org/Model}
    quantization_type: no_quant
    max_seq_len: 8192
    tensor_parallel_count: 4
  runtime: {kv_cache_free_gpu_mem_fraction: 0.8}
"""


def test_a_build(tmp_path: Path) -> None:
    server = one_server("truss", tmp_path, BUILD)
    assert (server.engine, server.model) == ("tensorrt-llm", "some-org/Model")
    assert texts(server.words) == [
        "--tensor-parallel-size",
        "4",
        "--max-seq-len",
        "8192",
        "--free-gpu-memory-fraction",
        "0.8",
    ]
    assert in_file(server.words[3], BUILD) == "8192"


def test_a_build_that_quantizes(tmp_path: Path) -> None:
    server = one_server("truss", tmp_path, BUILD.replace("no_quant", "fp8_kv"))
    assert server.notes == ("quantized to fp8 when the engine is built (fp8_kv)",)
    said = " ".join((*texts(server.words), str(server.model))).lower()
    assert "fp8" in said


def test_the_second_stack(tmp_path: Path) -> None:
    text = """\
model_name: built
resources: {accelerator: "B200:4"}
trt_llm:
  inference_stack: v2
  build: {checkpoint_repository: {source: HF, repo: some-org/Model-NVFP4}}
  runtime: {max_seq_len: 4096, max_batch_size: 32, tensor_parallel_size: 4}
"""
    server = one_server("truss", tmp_path, text)
    assert texts(server.words) == [
        "--tensor-parallel-size",
        "4",
        "--max-seq-len",
        "4096",
        "--max-batch-size",
        "32",
    ]


def test_input_and_output_make_the_length(tmp_path: Path) -> None:
    text = BUILD.replace("max_seq_len: 8192", "max_input_len: 6000\n    max_output_len: 2000")
    words = texts(one_server("truss", tmp_path, text).words)
    assert words[words.index("--max-seq-len") + 1] == "8000"


def test_encoders_are_left_out(tmp_path: Path) -> None:
    text = BUILD.replace("base_model: decoder", "base_model: encoder_bert")
    assert one_server("truss", tmp_path, text).skipped.startswith("a model that generates no text")


def test_the_llm_stack(tmp_path: Path) -> None:
    text = """\
resources: {accelerator: "H200:4", use_gpu: true}
bis_llm:
  config:
    engine_backend: vllm
    checkpoint_name: some-org/Model
    tensor_parallel_size: 4
    engine_config: {max_model_len: 20480}
"""
    server = one_server("truss", tmp_path, text)
    assert (server.engine, server.model) == ("vllm", "some-org/Model")
    assert texts(server.words) == ["--tensor-parallel-size", "4", "--max-model-len", "20480"]


def test_a_python_model(tmp_path: Path) -> None:
    text = """\
model_name: mine
requirements: ["vllm==0.6.1"]
model_metadata:
  repo_id: some-org/Model
  vllm_config: {max_model_len: 16384}
resources: {accelerator: A10G, use_gpu: true}
"""
    server = one_server("truss", tmp_path, text)
    assert (server.engine, server.model) == ("vllm", "some-org/Model")
    assert texts(server.words) == ["--max-model-len", "16384"]
    [reading] = read("truss", tmp_path, text.replace("vllm==0.6.1", "diffusers"))
    assert reading.skipped == "no language model server that is known"


def test_other_files_with_resources(tmp_path: Path) -> None:
    sky = "resources: {accelerators: 'H100:8'}\nrun: vllm serve m\n"
    assert read("truss", tmp_path, sky) == []
    assert read("truss", tmp_path, "resources: {accelerator: H100}\nname: x\n") == []
