"""Files of engine options: which engine's they are, and the flags that they stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_reading import context_of, flag, only, parse, readings, text_at

from moesize.check.readers import engine_config
from moesize.check.readers.engine_config import engine_of_flags, options_of
from moesize.check.server import Server


def kind_of(text: str) -> str | None:
    """The kind of a document, where it is an options file."""
    document = parse(text)[0]
    return next((one.kind for one in engine_config.FORMATS if one.matches(document)), None)


def server_of(root: Path, text: str, name: str = "options.yaml") -> Server:
    context = context_of(root, {name: text}, name)
    return only(readings(context, engine_config)[0].servers)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("tensor-parallel-size: 8\nenforce-eager: true\n", "vllm_config_yaml"),
        ("max_model_len: 4096\ngpu_memory_utilization: 0.9\n", "vllm_config_yaml"),
        ("max-model-len: 4096\n", "vllm_config_yaml"),
        ("tp-size: 8\nmem-fraction-static: 0.8\n", "sglang_config_yaml"),
        ("tp: 8\nenable-dp-attention: true\nattention-backend: fa3\n", "sglang_config_yaml"),
        ("kv_cache_config: {free_gpu_memory_fraction: 0.8}\n", "trtllm_options_yaml"),
        ("tp_size: 4\nllm_api_args: {enable_attention_dp: true}\n", "trtllm_options_yaml"),
        ("vllm:\n  max-model-len: 4096\n  tensor-parallel-size: 2\n", "vllm_config_yaml"),
    ],
)
def test_kinds(text: str, kind: str) -> None:
    assert kind_of(text) == kind


@pytest.mark.parametrize(
    "text",
    [
        # One flag of many programs, or none at all.
        "model: a/b\nport: 8000\nhost: 0.0.0.0\n",
        "trust-remote-code: true\n",
        "seed: 1\ndtype: bfloat16\nlearning_rate: 1.0e-4\nmax_steps: 100\n",
        # Few of many keys.
        "max_model_len: 4096\na: 1\nb: 2\nc: 3\n",
        # Objects of Kubernetes, lists, texts.
        "apiVersion: v1\nkind: ConfigMap\nmax-model-len: 4096\ntensor-parallel-size: 8\n",
        "- max-model-len\n- tensor-parallel-size\n",
        "max-model-len\n",
        "{}\n",
    ],
)
def test_other_files_are_left_alone(text: str) -> None:
    assert kind_of(text) is None


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("trtllm-configs/a.yaml", "trtllm_options_yaml"),
        ("sglang/a.yaml", "sglang_config_yaml"),
        ("a.yaml", "sglang_config_yaml"),
    ],
)
def test_flags_that_two_engines_have_are_told_by_the_path(
    tmp_path: Path, path: str, kind: str
) -> None:
    context = context_of(tmp_path, {path: "tp-size: 8\npp-size: 1\n"}, path)
    assert readings(context, engine_config)[0].kind == kind


def test_options_become_flags_where_they_stand(tmp_path: Path) -> None:
    server = server_of(
        tmp_path,
        """\
        max-model-len: 32k
        gpu_memory_utilization: "0.90"
        trust-remote-code: true
        enable-prefix-caching: false
        quantization: null
        speculative-config: {method: mtp, num_speculative_tokens: 2}
        cudagraph-capture-sizes: [1, 2, 4]
        """,
    )
    assert server.words == (
        "--max-model-len",
        "32k",
        "--gpu_memory_utilization",
        "0.90",
        "--trust-remote-code",
        "--speculative-config",
        '{"method": "mtp", "num_speculative_tokens": 2}',
        "--cudagraph-capture-sizes",
        "1",
        "2",
        "4",
    )
    share = flag(server, "--gpu_memory_utilization")
    assert share is not None
    assert share.exact
    assert text_at(tmp_path, share) == "0.90"
    assert text_at(tmp_path, server.words[0]) == "max-model-len"


def test_without_a_model_there_is_nothing_to_judge(tmp_path: Path) -> None:
    context = context_of(tmp_path, {"a.yaml": "max-model-len: 1\nenforce-eager: true\n"}, "a.yaml")
    reading = readings(context, engine_config)[0]
    assert reading.skipped == "engine options without a model"
    assert only(reading.servers).skipped == reading.skipped


@pytest.mark.parametrize(
    ("text", "model", "fallback"),
    [
        ("model: a/b\nmax-model-len: 1\n", "a/b", None),
        ("model-path: a/b\nmem-fraction-static: 0.8\n", "a/b", None),
        ("served-model-name: a/b\ntp-size: 2\nmem-fraction-static: 0.8\n", None, "a/b"),
        ("served-model-name: [a/b, c]\ntp-size: 2\nmem-fraction-static: 0.8\n", None, "a/b"),
    ],
)
def test_models(tmp_path: Path, text: str, model: str | None, fallback: str | None) -> None:
    server = server_of(tmp_path, text)
    assert not server.skipped
    assert (flag(server, "--model") or flag(server, "--model-path")) == model
    assert server.fallback_model == fallback


def test_options_of_tensorrt_llm(tmp_path: Path) -> None:
    server = server_of(
        tmp_path,
        """\
        tp_size: 8
        kv_cache_free_gpu_mem_fraction: 0.9
        llm_api_args:
          enable_attention_dp: true
          kv_cache_config: {free_gpu_memory_fraction: 0.85, dtype: fp8}
          build_config: {max_batch_size: 64}
        """,
    )
    # The fields of the LLM API are applied last: they win.
    assert server.words == (
        "--tp_size",
        "8",
        "--free_gpu_memory_fraction",
        "0.9",
        "--free_gpu_memory_fraction",
        "0.85",
        "--max_batch_size",
        "64",
    )
    assert text_at(tmp_path, server.words[5]) == "0.85"
    assert server.notes == ("not looked at: enable_attention_dp, kv_cache_config.dtype",)


def test_flags_alone_tell_the_engine() -> None:
    assert engine_of_flags(["--model", "--gpu-memory-utilization=0.9"]) == "vllm"
    assert engine_of_flags(["--mem-fraction-static", "--tp-size"]) == "sglang"
    assert engine_of_flags(["--num-shard", "--max-batch-prefill-tokens"]) == "tgi"
    assert engine_of_flags(["--host", "--port"]) is None
    assert engine_of_flags([]) is None


def test_options_in_a_file_that_something_names() -> None:
    documents = parse("max-model-len: 4096\ntensor-parallel-size: 2\n")
    found = options_of(documents, "vllm")
    assert found is not None
    assert found.words[:2] == ("--max-model-len", "4096")
    assert options_of(documents, "sglang") is None


@pytest.mark.parametrize(
    "value", ["{a: [b, {c: d}]}", "[[1], {a: b}, null]", "!!binary aGk=", "'" + "x" * 50_000 + "'"]
)
def test_wrong_shapes_raise_nothing(tmp_path: Path, value: str) -> None:
    text = f"max-model-len: {value}\ntensor-parallel-size: {value}\nmodel: {value}\n"
    assert server_of(tmp_path, text).engine == "vllm"
