"""srt-slurm recipes: both layouts, colocated workers, variants over a base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from operator_files import in_file, one_server, read, texts

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = """\
name: job
model:
  path: alias
  container: lmsysorg/sglang:v0.5.3
  precision: fp4
resources:
  gpu_type: gb200
  gpus_per_node: 4
  prefill_nodes: 2
  prefill_workers: 4
  decode_nodes: 4
  decode_workers: 1
backend:
  prefill_environment: {A: "1"}
  sglang_config:
    prefill:
      served-model-name: deepseek-ai/DeepSeek-R1
      model-path: /model/
      tp-size: 2
    decode:
      served-model-name: deepseek-ai/DeepSeek-R1
      tensor_parallel_size: 16
      enable-dp-attention: true
      disable-radix-cache: false
"""


def test_workers(tmp_path: Path) -> None:
    [reading] = read("truss", tmp_path, RECIPE)
    assert reading.kind == "srt_slurm"
    prefill, decode = reading.servers
    assert (prefill.name, decode.name) == ("prefill", "decode")
    assert prefill.gpus_per_node is not None
    assert (prefill.gpus_per_node.value, prefill.nodes) == (2, None)
    assert decode.gpus_per_node is not None
    assert decode.nodes is not None
    assert (decode.gpus_per_node.value, decode.nodes.value) == (4, 4)
    # What the tool sets itself, such as where the model is mounted, is left out.
    assert texts(prefill.words)[2:] == ["--tp-size", "2"]
    assert texts(decode.words)[2:] == ["--tensor-parallel-size", "16", "--enable-dp-attention"]
    assert in_file(decode.words[3], RECIPE) == "16"
    assert prefill.environment == {"A": "1"}
    assert [claim.text for claim in prefill.gpus] == ["gb200"]
    assert prefill.image == "lmsysorg/sglang:v0.5.3"


def test_the_served_name_tells_the_model(tmp_path: Path) -> None:
    # DeepSeek-R1 is published in FP8: at fp4 the weights are another checkpoint's.
    server = read("truss", tmp_path, RECIPE)[0].servers[0]
    assert (server.model, server.fallback_model) == ("alias", "deepseek-ai/DeepSeek-R1-NVFP4")
    own = RECIPE.replace("precision: fp4", "precision: fp8")
    server = read("truss", tmp_path, own)[0].servers[0]
    assert server.fallback_model == "deepseek-ai/DeepSeek-R1"
    hub = RECIPE.replace("path: alias", 'path: "hf:some-org/Model"')
    server = read("truss", tmp_path, hub)[0].servers[0]
    assert (server.model, server.fallback_model) == ("some-org/Model", None)


def test_aliases_of_the_cluster(tmp_path: Path) -> None:
    cluster = "model_paths: {alias: /models/DeepSeek-R1}\n"
    server = read("truss", tmp_path, RECIPE, srtslurm=cluster)[0].servers[0]
    assert server.model == "/models/DeepSeek-R1"


def test_decode_workers_on_the_nodes_of_prefill(tmp_path: Path) -> None:
    text = RECIPE.replace("decode_nodes: 4", "decode_nodes: 0")
    decode = read("truss", tmp_path, text)[0].servers[1]
    assert decode.gpus_per_node is not None
    assert (decode.gpus_per_node.value, decode.nodes) == (2, None)


def test_tensorrt_llm_and_stated_gpus(tmp_path: Path) -> None:
    text = """\
name: job
model: {path: "hf:some-org/Model", container: c, precision: fp4}
resources: {gpu_type: b200, gpus_per_node: 8, agg_nodes: 1, agg_workers: 2, gpus_per_agg: 4}
backend:
  type: trtllm
  trtllm_config:
    aggregated:
      tensor_parallel_size: 4
      kv_cache_config: {free_gpu_memory_fraction: 0.5}
"""
    server = one_server("truss", tmp_path, text)
    assert server.gpus_per_node is not None
    assert (server.engine, server.gpus_per_node.value) == ("tensorrt-llm", 4)
    assert [word.replace("_", "-") for word in texts(server.words)] == [
        "--tensor-parallel-size",
        "4",
        "--free-gpu-memory-fraction",
        "0.5",
    ]


def test_the_second_layout(tmp_path: Path) -> None:
    text = """\
schema: 2
name: job
model: {path: "hf:some-org/Model", container: c, precision: bf16}
resources: {gpu_type: h100, gpus_per_node: 8}
engine: vllm
roles:
  agg:
    nodes: 2
    workers: 1
    args: {tensor-parallel-size: 16}
    env: {B: "2"}
"""
    server = one_server("truss", tmp_path, text)
    assert server.nodes is not None
    assert (server.engine, server.name, server.nodes.value) == ("vllm", "agg", 2)
    assert texts(server.words) == ["--tensor-parallel-size", "16"]
    assert server.environment == {"B": "2"}


def test_variants(tmp_path: Path) -> None:
    base = "base:\n" + "".join(f"  {line}\n" for line in RECIPE.splitlines())
    text = (
        base
        + """\
override_big:
  resources: {prefill_workers: 1}
  backend: {sglang_config: {prefill: {tp-size: 8, model-path: null}}}
zip_override_sweep:
  resources: {decode_nodes: [2, 4]}
  backend: {sglang_config: {decode: {tensor_parallel_size: [8, 16]}}}
"""
    )
    [reading] = read("truss", tmp_path, text)
    sizes = {
        server.name: (texts(server.words)[3], server.nodes and server.nodes.value)
        for server in reading.servers
    }
    # Workers that a variant leaves as they are in another are judged once.
    assert sizes == {
        "big/prefill": ("8", 2),
        "big/decode": ("16", 4),
        "sweep[0]/prefill": ("2", None),
        "sweep[0]/decode": ("8", 2),
    }


def test_what_is_no_recipe(tmp_path: Path) -> None:
    assert read("truss", tmp_path, "model: {path: x}\nresources: {gpu_type: h100}\n") == []
    [reading] = read("truss", tmp_path, RECIPE.replace("_workers: ", "_others: ", 2))
    assert [server.name for server in reading.servers] == ["prefill", "decode"]
