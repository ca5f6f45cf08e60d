"""Names that deployment files give to models, and what the catalogue says of those models.

Expected values are the publishers' own: their repositories, model cards and config files, as far as
the comment beside a row does not say otherwise.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import moesize
from moesize.catalog import index
from moesize.core.checkpoint import stored_bytes
from moesize.core.inventory import count_parameters
from moesize.model_names import resolve_name, resolve_ollama, spec_of

GIB = 1 << 30
DATA = Path(moesize.__file__).parent / "data"


@pytest.mark.parametrize(
    ("name", "billions", "words"),
    [
        ("facebook/opt-125m", 0.125, ()),
        ("facebook/opt-66b", 65.7, ()),
        ("distilbert/distilgpt2", 0.082, ()),
        ("google/gemma-7b-it", 8.54, ()),
        ("google/gemma-7b-AWQ", 8.54, ("awq",)),
        ("Open-Orca/Mistral-7B-OpenOrca", 7.24, ()),
        ("TheBloke/Mistral-7B-OpenOrca-GGUF", 7.24, ("gguf",)),
        ("HuggingFaceH4/zephyr-7b-beta", 7.24, ()),
        ("mistralai/Mistral-Small-4-119B-2603", 119.4, ()),
        ("hf://RedHatAI/NVIDIA-Nemotron-3-Ultra-550B-A55B-FP8-block", 549.3, ("fp8", "block")),
        ("unsloth/Qwen3.8-27B-NVFP4", 27.4, ("nvfp4",)),
        ("Qwen/Qwen3-4B-Instruct-2507", 4.02, ()),
        ("bigcode/starcoder", 15.5, ()),
        ("EleutherAI/gpt-neox-20b", 20.6, ()),
        ("tiiuae/Falcon-H1-34B-Instruct", 33.6, ()),
        ("amd/Llama-3.3-70B-Instruct-MXFP4-Preview", 70.6, ("mxfp4", "preview")),
        ("astronomer/Llama-3-8B-Instruct-GPTQ-4-Bit", 8.03, ("gptq", "4", "bit")),
        # NVIDIA NIM's names.
        ("nvcr.io/nim/meta/llama-3.1-8b-instruct:1.8.0", 8.03, ()),
        ("mistralai/mixtral-8x7b-instruct-v01", 46.7, ()),
        ("nvidia/llama-3.3-nemotron-super-49b-v1.5", 49.9, ()),
        ("nv-mistralai/mistral-nemo-12b-instruct", 12.2, ()),
        # KAITO's.
        ("mistral-7b-instruct", 7.25, ()),
        ("ministral-3-8b-instruct", 8.92, ()),
    ],
)
def test_names_in_deployment_files(name: str, billions: float, words: tuple[str, ...]) -> None:
    named = resolve_name(name)
    assert named is not None
    assert named.words == words
    assert count_parameters(spec_of(named.id)).total / 1e9 == pytest.approx(billions, rel=0.006)


@pytest.mark.parametrize(
    ("name", "billions", "words"),
    [
        ("llama3.2:3b", 3.21, ()),
        ("llama3.2:1b-instruct-fp16", 1.24, ("fp16",)),
        ("ollama://llama3.3:70b", 70.6, ()),
        ("ollama://phi4", 14.7, ()),
        ("deepseek-r1:1.5b", 1.54, ()),
        ("deepseek-r1:14b", 14.8, ()),
        ("deepseek-r1:70b-llama-distill-q4_K_M", 70.6, ("q4", "k", "m")),
        ("deepseek-r1:671b", 671.0, ()),
        ("deepseek-coder-v2:16b", 15.7, ()),
        ("registry.ollama.ai/library/gemma3:27b-it-qat", 27.4, ("qat",)),
        # Ollama's `qwen` is Qwen 1.5: its 72B, not the first Qwen's 7B.
        ("qwen:72b", 72.3, ()),
        ("mixtral:8x22b", 140.6, ()),
        ("gpt-oss:20b", 20.9, ()),
    ],
)
def test_ollama_tags_name_models(name: str, billions: float, words: tuple[str, ...]) -> None:
    named = resolve_name(name)
    assert named is not None
    assert named.words == words
    assert count_parameters(spec_of(named.id)).total / 1e9 == pytest.approx(billions, rel=0.006)


def test_ollama_without_a_tag_is_its_latest() -> None:
    for name, size in (("llama3.2", "3b"), ("mistral", "7b"), ("deepseek-r1", "8b")):
        assert resolve_ollama(name) == resolve_name(f"{name}:{size}")
    # Elsewhere a bare family name says nothing of the size.
    assert resolve_name("llama3.2") is None


@pytest.mark.parametrize(
    "name",
    [
        # A tag's size is never dropped.
        "deepseek-r1:9b",
        "llama3.2:70b",
        "huihui_ai/qwen2.5-abliterate:7b",
        # The figures of a version and of a size are not run together.
        "Qwen/Qwen2-57B",
        "Qwen3-17B",
        "Qwen2.5-15B",
        # Not models that generate text.
        "BAAI/bge-small-en-v1.5",
        "intfloat/e5-mistral-7b-instruct",
        "openai/whisper-large-v3",
        "Qwen/Qwen3-Reranker-8B",
        "nvidia/llama-3.2-nv-embedqa-1b-v2",
        "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2",
        "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B",
        # Names of nothing.
        "vllm/vllm-openai:v0.6.3",
        "my-model:latest",
        "base-model",
        ":",
        "ollama://",
    ],
)
def test_names_of_no_model_here(name: str) -> None:
    named = resolve_name(name)
    # Qwen2-57B exists, as a mixture: what it must not be is Qwen2.5-7B.
    assert named is None or (name.endswith("57B") and named.id == "qwen2-57b-a14b")


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("qwen25-7b-instruct", "qwen2.5-7b"),
        ("qwen-2-5-7b-instruct", "qwen2.5-7b"),
        ("llama-31-8b-instruct", "llama-3.1-8b"),
        ("qwen3-06b", "qwen3-0.6b"),
        ("smollm2-1-7b-instruct", "smollm2-1.7b-instruct"),
    ],
)
def test_dots_may_be_dashes_and_a_versions_may_be_left_out(name: str, model: str) -> None:
    named = resolve_name(name)
    assert named is not None
    assert named.id == model


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("mistralai/Mistral-7B-Instruct-v0.2", 32_768),
        ("mistralai/Mistral-7B-Instruct-v0.3", 32_768),
        ("Qwen/Qwen3-30B-A3B", 40_960),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", 262_144),
        ("Qwen/Qwen3-235B-A22B-Thinking-2507", 262_144),
        ("Qwen/Qwen2.5-72B", 131_072),
        ("Qwen/Qwen2.5-72B-Instruct", 32_768),
        ("Qwen/Qwen2.5-32B-Instruct", 32_768),
        ("Qwen/QwQ-32B", 40_960),
        ("Qwen/Qwen2-VL-7B-Instruct", 32_768),
        ("Qwen/Qwen2.5-VL-3B-Instruct", 128_000),
        ("Qwen/Qwen2.5-Math-7B-Instruct", 4_096),
        ("microsoft/Phi-3-mini-4k-instruct", 4_096),
        ("microsoft/Phi-3-mini-128k-instruct", 131_072),
        ("microsoft/Phi-3-medium-128k-instruct", 131_072),
        ("google/gemma-4-31B-it", 262_144),
        ("01-ai/Yi-6B-Chat", 4_096),
        ("THUDM/glm-4-9b-chat", 131_072),
        ("huggyllama/llama-7b", 2_048),
        ("moonshotai/Kimi-K2-Instruct-0905", 262_144),
    ],
)
def test_contexts_are_those_of_the_published_configs(name: str, tokens: int) -> None:
    """`max_position_embeddings` of each: siblings of one shape differ in it."""
    named = resolve_name(name)
    assert named is not None
    assert spec_of(named.id).max_context == tokens


# The sizes that KAITO's model catalogue gives (presets/workspace/models/model_catalog.yaml), and of
# Nemotron 3 Super what vLLM printed as "Checkpoint size".
@pytest.mark.parametrize(
    ("name", "gib", "within"),
    [
        ("mistralai/Mistral-Small-4-119B-2603", 112.63, 0.001),
        ("mistralai/Mistral-Medium-3.5-128B", 124.43, 0.001),
        ("mistralai/Ministral-3-8B-Instruct-2512", 9.70, 0.001),
        ("mistralai/Ministral-3-14B-Instruct-2512", 14.65, 0.001),
        ("nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-NVFP4", 328.13, 0.002),
        ("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4", 74.80, 0.02),
    ],
)
def test_files_are_as_large_as_published(name: str, gib: float, within: float) -> None:
    named = resolve_name(name)
    assert named is not None
    assert named.words == ()
    assert stored_bytes(spec_of(named.id)) / GIB == pytest.approx(gib, rel=within)


def test_a_model_called_quantized_is() -> None:
    for row in index()["models"]:
        words = row["id"].replace("_", "-").split("-")
        if {"fp8", "nvfp4", "awq", "gptq"} & set(words):
            assert row["quantization"], row["id"]


def test_every_other_name_is_of_a_model_here() -> None:
    ids = {row["id"] for row in index()["models"]}
    derived = json.loads((DATA / "derived_names.json").read_text(encoding="utf-8"))
    seen = set(derived["names"])
    for more in derived["more"]:
        assert more["source"]
        assert set(more["names"].values()) <= ids
        assert not seen & more["names"].keys()
        assert not more["names"].keys() & index()["names"].keys()
        seen |= more["names"].keys()
    ollama = json.loads((DATA / "ollama_names.json").read_text(encoding="utf-8"))
    assert ollama["source"]
    for name, tags in ollama["names"].items():
        assert name == name.lower()
        assert set(tags.values()) <= ids, name


def test_long_names_are_no_work() -> None:
    start = time.perf_counter()
    for name in ("a:" * 500, "1." * 500, "ollama://" * 100, "4-bit-" * 200, "0.0." * 400):
        assert resolve_name(name) is None
    assert time.perf_counter() - start < 10
