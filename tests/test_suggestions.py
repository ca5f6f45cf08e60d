"""Every suggestion, pasted behind the command it answers, fits."""

from __future__ import annotations

import json
import shlex

import pytest

from moesize.__main__ import main

CASES = [
    "mixtral-8x7b --gpu a10g --quant 4bit",
    "llama-3.1-70b --gpu g5.12xlarge",
    "llama-3.1-70b --gpu g5.12xlarge --tp 4",
    "deepseek-v3 --gpu p5.48xlarge",
    "deepseek-v3 --gpu h100 --engine-args '-tp 4 -pp 2'",
    "deepseek-v3 --gpu h100 --gpus 2 --pp 2 -c 4k",
    "llama-3.1-70b --gpu h100 --gpus 2 --tp 2 --pp 1 -c 128k --concurrency 8",
    "llama-3.1-8b --gpu h100 --kv-cache-memory 1GiB",
    "llama-3.1-8b --gpu l4",
    "kimi-k2 --gpu h200 --gpus 8 --tp 8",
    "qwen3.5-35b-a3b --gpu h100 --context 64k --concurrency 16",
    "gpt-oss-120b --gpu l40s --ep",
    "gpt-oss-120b --engine llama.cpp --gpu rtx-4090 --context 32k",
    "mixtral-8x7b --engine llama.cpp --gpu rtx-4090 --quant Q6_K --context 16k --concurrency 4",
    "qwen3-32b --engine llama.cpp --gpu rtx-4090 --quant Q8_0 --kv-dtype q8_0",
    "qwen3.5-27b --engine ik_llama.cpp --gpu l4 --quant Q4_K_M",
    "llama-3.1-8b --engine sglang --gpu a10g",
    "minimax-m2.5 --engine sglang --gpu h100 --gpus 4",
    "mixtral-8x7b --engine transformers --gpu a10g",
    "llama-3.1-8b --engine tgi --gpu a10g",
    "llama-3.1-70b --engine tensorrt-llm --gpu h100",
]


@pytest.mark.parametrize("case", CASES)
def test_suggestions_fit_when_pasted(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Later options win, so appending the suggestion's options is what a user does."""
    command = ["plan", *shlex.split(case), "--format", "json"]
    assert main(command) == 1
    suggestions = json.loads(capsys.readouterr().out)["suggestions"]
    assert suggestions
    for suggestion in suggestions:
        code = main([*command, *suggestion["options"]])
        answer = json.loads(capsys.readouterr().out)
        assert code == 0, (suggestion, answer.get("error") or answer["verdict"])
        assert answer["verdict"]["reason"] == suggestion["verdict"]["reason"]


def test_a_shorter_context_is_suggested_where_that_is_enough(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Llama 3.1 8B on an L4: some 30,000 tokens fit by the best estimate, fewer beyond doubt."""
    main(["plan", "llama-3.1-8b", "--gpu", "l4", "--format", "json"])
    options = [item["options"] for item in json.loads(capsys.readouterr().out)["suggestions"]]
    lengths = [int(option[1]) for option in options if option[0] == "--context"]
    assert lengths
    assert 4096 <= lengths[0] <= 40960


def test_full_utilization_cannot_start(capsys: pytest.CaptureFixture[str]) -> None:
    """vLLM compares what it asks for with what is free beside the CUDA context."""
    command = ["plan", "llama-3.1-8b", "--gpu", "h100", "-c", "8k", "--quiet"]
    assert main([*command, "--gpu-memory-utilization", "0.9"]) == 0
    assert main([*command, "--gpu-memory-utilization", "1.0"]) == 1
    assert "does not start" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--tensor-par 2", ""),
        ("vllm serve some/model -tp 2 --port 8000", ""),
        ("-tp 2 --foo bar", "--foo"),
        ("-tp 2 --config x.yaml", "--config"),
        ("-tp 2 --max-model-len auto", "--max-model-len auto"),
    ],
)
def test_pasted_flags(flags: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "llama-3.1-8b", "--gpu", "h100", "--engine-args", flags, "-f", "json"]
    assert main(command) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["deployment"]["tp"], answer["deployment"]["gpu_count"]) == (2, 2)
    named = [note["message"] for note in answer["warnings"] if note["code"] == "engine-args"]
    assert (part in "".join(named)) if part else not named
