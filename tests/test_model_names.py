"""Names that logs, reports and commands print."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import moesize
from moesize.catalog import index
from moesize.model_names import by_hparams, nearest, resolve_name, scheme_name


@pytest.mark.parametrize(
    ("name", "model", "scheme"),
    [
        ("meta-llama/Llama-3.3-70B-Instruct", "llama-3.3-70b", ""),
        ("unsloth/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b", ""),
        ("RedHatAI/Qwen3-14B-FP8-dynamic", "qwen3-14b", "fp8-dynamic"),
        # llm-compressor's FP8 preset, not the publisher's tiles.
        ("RedHatAI/Qwen3-14B-FP8", "qwen3-14b", "fp8"),
        ("Qwen/Qwen3-14B-FP8", "qwen3-14b-fp8", ""),
        ("RedHatAI/Qwen3-14B-quantized.w4a16", "qwen3-14b", "w4a16"),
        ("neuralmagic/Meta-Llama-3.1-8B-Instruct-quantized.w8a8", "llama-3.1-8b", "w8a8"),
        ("/models/llama-3.1-70b-instruct-awq-int4/", "llama-3.1-70b", "awq-4bit"),
        ("someone/Qwen3-32B-GPTQ-Int8", "qwen3-32b", "gptq-8bit"),
        ("Intel/Qwen3-8B-int4-AutoRound", "qwen3-8b", "gptq-4bit"),
        ("unsloth/Qwen3-8B-unsloth-bnb-4bit", "qwen3-8b", "nf4"),
        ("nvidia/Llama-3.3-70B-Instruct-FP4", "llama-3.3-70b", "nvfp4"),
        ("/root/.cache/hub/models--openai--gpt-oss-20b/snapshots/0a1b", "gpt-oss-20b", ""),
        ("gpt-oss:20b", "gpt-oss-20b", ""),
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek-r1", ""),
        # A fine-tune whose element count is the base model's to the last weight.
        ("NousResearch/Hermes-3-Llama-3.1-8B", "llama-3.1-8b", ""),
        # Weights in a format that no scheme has.
        ("someone/Qwen3-32B-W4A8", "qwen3-32b", None),
    ],
)
def test_known_names(name: str, model: str, scheme: str | None) -> None:
    found = resolve_name(name)
    assert found is not None
    assert found.id == model
    assert scheme_name(found.words, owner=found.owner) == scheme


@pytest.mark.parametrize(
    "name",
    [
        "someone/Llama-3.1-8B-Medical",
        "DeepSeek-V3-0325",
        "Qwen3-15B-FP8",
        "FP8-dynamic",
        "-",
        "/" * 500,
        "q4-k-m-" * 200,
        "models--",
        "",
    ],
)
def test_other_names_are_nobodys(name: str) -> None:
    start = time.perf_counter()
    assert resolve_name(name) is None
    assert time.perf_counter() - start < 10


def test_near_names_are_offered() -> None:
    assert "qwen3-14b" in nearest("someone/Qwen3-15B-FP8-dynamic")


def test_the_engines_word_decides_between_checkpoints_called_alike() -> None:
    words = ("awq", "4bit")
    assert scheme_name(words, stated="compressed-tensors") == "w4a16"
    assert scheme_name(words, stated="awq_marlin") == "awq-4bit"
    assert scheme_name((), stated="modelslim") is None
    assert scheme_name(("fp8",), stated="fp8") == "fp8-block"
    assert scheme_name((), stated="fp8") == "fp8"


# https://github.com/ikawrakow/ik_llama.cpp/pull/333: llm_load_print_meta of GLM-Z1-Rumination.
RUMINATION = {
    "arch": "chatglm", "n_layer": 61, "n_embd": 6144, "n_head": 48, "n_head_kv": 8,
    "n_ff": 23040, "n_expert": 0, "n_expert_used": 0, "n_vocab": 151552,
}  # fmt: skip


def test_a_files_numbers_name_the_one_model_that_has_them_all() -> None:
    assert by_hparams(RUMINATION) == "glm-z1-rumination-32b-0414"
    assert by_hparams({**RUMINATION, "n_ff": 23041}) is None
    # GLM-4-32B-0414 differs in its KV heads alone; without that number both match.
    assert by_hparams({k: v for k, v in RUMINATION.items() if k != "n_head_kv"}) is None
    assert by_hparams({"n_layer": 61, "n_embd": 6144}) is None


def test_derived_names_are_models_of_the_catalogue() -> None:
    path = Path(moesize.__file__).parent / "data" / "derived_names.json"
    names = json.loads(path.read_text(encoding="utf-8"))["names"]
    ids = {row["id"] for row in index()["models"]}
    assert set(names.values()) <= ids
    assert not names.keys() & index()["names"].keys()
    assert len(names) > 100


def test_row_scales_are_counted() -> None:
    """kyuz0/amd-r9700-vllm-toolboxes, log of an RTX 5000 Ada: vLLM 0.12.0 loads 15.3388 GiB."""
    plan = moesize.plan(
        "qwen3-14b", gpu="rtx-5000-ada", quant="fp8-dynamic", engine_version="0.12.0"
    )
    weights = plan.gpus[0].category_bytes("weights") / 2**30
    assert weights == pytest.approx(15.3388, abs=0.001)


def test_a_pasted_commands_model_says_how_it_is_stored() -> None:
    serve = "vllm serve RedHatAI/Qwen3-14B-FP8-dynamic"
    plan = moesize.plan("qwen3-14b", gpu="h100", engine_args=serve)
    assert plan.quantization.scheme == "fp8-dynamic"
    assert any("fp8-dynamic" in note.message for note in plan.warnings)
