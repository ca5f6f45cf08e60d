"""Answers of every engine and layout hold together, however they are printed.

Only what must be true of any answer: sums, signs, order, exit codes, the schema. Whether the
figures are right is the business of the other tests.
"""

from __future__ import annotations

import csv
import io
import re
import shlex
from typing import Any

import jsonschema
import pytest
from running import call

from moesize.schemas import find_schema

_ONE_OF_EACH = [
    "llama-3.1-8b --gpu a10g",
    "llama-3.1-8b --gpu a10g --engine-version 0.6.6 --context 8k",
    "qwen3-30b-a3b --gpu h100 --gpus 2 --ep --engine-version 0.10.2",
    "deepseek-v3 --gpu h200 --gpus 16 --tp 8 --dp 2 --ep --redundant-experts 16 --expert-skew 2",
    "deepseek-v3 --gpu h200 --gpus 8 --dcp 8 --mtp 1 --context 64k",
    "llama-3.1-70b --gpu h100 --gpus 3 --pp 3 --context 16k",
    "llama-3.1-70b --gpu h100 --gpus 2 --draft llama-3.2-1b --spec-tokens 5 --context 4k",
    "llama-3.1-8b --gpu l4 --lora-rank 64 --max-loras 4 --context 8k",
    "mixtral-8x7b --gpu a10g --quant 4bit --offload-experts all",
    "jamba-1.5-mini --gpu h100 --gpus 2 --context 32k",
    "bge-m3 --gpu t4",
    "smollm2-135m --gpu 1GiB",
    "llama-3.1-8b --engine sglang --gpu a10g",
    "llama-3.1-8b --engine sglang --gpu h100 --gpus 4 --dp 4 --concurrency 9",
    "deepseek-v3 --engine sglang --gpu h200 --gpus 8 --dp-attention --dp 4 --concurrency 64",
    "qwen3-next-80b-a3b --engine sglang --gpu h100 --gpus 4 --mtp 2",
    "llama-3.1-8b --engine llama.cpp --gpu a10g --quant Q4_K_M",
    "gpt-oss-120b --engine llama.cpp --gpu 4090 --gpus 2 --offload-experts 20",
    "falcon-mamba-7b --engine llama.cpp --gpu l4 --quant Q8_0",
    "llama-3.1-8b --engine llama.cpp --gpu 'm3 max' --quant Q4_K_M --context 16k",
    "deepseek-v3 --engine ik_llama.cpp --gpu 4090 --quant Q4_K_M --offload-experts all -c 32k",
    "mixtral-8x7b --engine transformers --gpu a100 --gpus 2 --context 8k",
    "llama-3.1-8b --engine transformers --gpu a10g",
    "llama-3.1-8b --engine tgi --gpu a10g",
    "deepseek-v3 --engine tensorrt-llm --gpu h200 --gpus 8 --ep",
]
_VALIDATOR = jsonschema.Draft202012Validator(find_schema("plan"))


def _document(case: str) -> tuple[int, dict[str, Any]]:
    found = call("plan", *shlex.split(case), "--format", "json")
    return found.code, found.json()


@pytest.mark.parametrize("case", _ONE_OF_EACH)
def test_an_answer_holds_together(case: str) -> None:
    code, answer = _document(case)
    assert not [error.message for error in _VALIDATOR.iter_errors(answer)]
    verdict, kv, settings = answer["verdict"], answer["kv_cache"], answer["deployment"]
    assert code == (0 if verdict["fits"] else 1)
    for gpu in answer["gpus"]:
        assert gpu["used_bytes"] == sum(item["bytes"] for item in gpu["items"])
        assert gpu["budget_bytes"] <= gpu["usable_bytes"]
        for item in gpu["items"]:
            assert 0 <= item["low_bytes"] <= item["bytes"] <= item["high_bytes"], item["name"]
            assert item["formula"], item["name"]
            assert item["source"], item["name"]
    headroom = {gpu["rank"]: gpu["headroom_bytes"] for gpu in answer["gpus"]}
    assert headroom[verdict["limiting_rank"]] == min(headroom.values())
    if verdict["fits"]:
        assert min(headroom.values()) >= 0
        assert kv["needed_bytes"] <= kv["available_bytes"]
    else:
        assert verdict["shortfall_bytes"] > 0
    assert kv["total_capacity_tokens"] == kv["capacity_tokens"] * kv["replicas"]
    assert set(settings["defaulted"]) <= set(settings)
    notes = [note["message"] for note in answer["warnings"]]
    assert len(notes) == len(set(notes))
    assert not [note for note in notes if "newer than what is known" in note]


@pytest.mark.parametrize("case", _ONE_OF_EACH)
def test_every_form_says_the_same(case: str) -> None:
    words = ["plan", *shlex.split(case)]
    code, _ = _document(case)
    for columns in (40, 80, 120):
        screen = call(*words, columns=columns)
        assert screen.code == code
        assert all(len(line) <= columns for line in screen.out.splitlines())
        assert not re.search(r"\b(nan|inf|None)\b|-0\.00|\{\w+\}", screen.out)
    table = call(*words, "--format", "csv")
    assert table.code == code
    assert len({len(row) for row in csv.reader(io.StringIO(table.out))}) == 1
    assert call(*words, "--format", "markdown", "--explain").code == code
    quiet = call(*words, "--quiet")
    assert quiet.code == code
    assert len(quiet.out.splitlines()) == 1


@pytest.mark.parametrize(
    ("case", "code", "said"),
    [
        ("bge-m3 --gpu t4 --engine llama.cpp", 3, "--engine vllm or transformers"),
        ("llama-3.1-8b --gpu 'm3 max'", 3, "--engine llama.cpp"),
        ("t5-v1-1-xxl --gpu h100", 3, "--engine transformers"),
        ("llama-3.1-8b --gpu a10g --quant Q4_K_M", 3, "--engine llama.cpp"),
        ("llama-3.1-8b --gpu a10g --engine llama.cpp --quant Q8_0 --tp 2 -n 2", 3, "--tp cannot"),
        ("deepseek-v3 --gpu h200 --gpus 8 --engine sglang --dcp 8", 3, "--dcp cannot"),
        ("deepseek-v3 --gpu h200 --gpus 8 --dcp 8 --engine-version 0.9.2", 2, "no decode context"),
        ("llama-3.1-8b --gpu a10g --cpu-offload-gib nan", 2, "--cpu-offload-gib"),
        ("llama-3.1-8b --gpu a10g --cpu-offload-gib 1e300", 2, "--cpu-offload-gib"),
    ],
)
def test_refusals_say_what_can_be_done(case: str, code: int, said: str) -> None:
    found = call("plan", *shlex.split(case), "--format", "json")
    error = found.json()["error"]
    assert found.code == code
    assert said in f"{error['message']} {error['hint']}"


def _notes(case: str) -> str:
    return " ".join(note["message"] for note in _document(case)[1]["warnings"])


def test_notes_do_not_contradict_each_other() -> None:
    turing = _notes("bge-m3 --gpu t4")
    assert "as float16" in turing
    assert "as bfloat16" not in turing
    # gpt-oss has sliding windows, with which vLLM refuses --dcp; 0.9.2 has no such option.
    assert "--dcp" not in _notes("gpt-oss-120b --gpu h100 --gpus 16")
    assert "--dcp" not in _notes("deepseek-v3 --gpu h200 --gpus 8 --engine-version 0.9.2")
    assert "--dcp 8" in _notes("deepseek-v3 --gpu h200 --gpus 8")


def test_options_that_a_release_lacks_are_named() -> None:
    """vLLM 0.7.3 has no --enable-expert-parallel; 0.8.5 has."""
    case = "qwen3-30b-a3b --gpu h200 --gpus 2 --ep --engine-version "
    assert "--enable-expert-parallel" in _notes(case + "0.7.3")
    assert "--enable-expert-parallel" not in _notes(case + "0.8.5")


def test_a_given_cache_is_compared_with_the_card() -> None:
    """2 GiB of cache beside 15 GiB of weights fit a card of 22; they hold no 131,072 tokens."""
    for engine in ("vllm", "sglang"):
        case = f"llama-3.1-8b --gpu a10g --kv-cache-memory 2GiB --engine {engine}"
        _, answer = _document(case)
        assert answer["verdict"]["reason"].startswith("the given KV cache holds 2.00 GiB")
