"""Names of models: exact or not at all."""

from __future__ import annotations

from typing import Any

import pytest
from reporting import report

from moesize.accuracy.models import resolve_report


@pytest.mark.parametrize(
    ("name", "fields", "spec", "scheme"),
    [
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", {}, "llama-3.1-8b", None),
        ("Meta-Llama-3.1-8B-Instruct", {}, "llama-3.1-8b", None),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", {"quantization": "fp8"}, "qwen3-30b-a3b-2507", "fp8"),
        ("My fine-tune (path models/gemma3-27b-it)", {}, "gemma-3-27b", None),
        ("openai/gpt-oss-20b", {"quantization": "mxfp4"}, "gpt-oss-20b", None),
        ("Qwen2___5-3B", {}, "qwen2.5-3b", None),
        (
            "TheBloke/Mixtral-8x7B-Instruct-v0.1-AWQ",
            {"quantization": "awq"},
            "mixtral-8x7b",
            "awq-4bit",
        ),
        (
            "Qwen3-30B-A3B NVFP4 (local dir somewhere)",
            {"quantization": "modelopt nvfp4"},
            "qwen3-30b-a3b",
            "nvfp4",
        ),
        # The publisher's own FP8 checkpoint is in the catalogue; another's of the same name is not.
        ("Qwen/Qwen3-30B-A3B-FP8", {"quantization": "fp8"}, "qwen3-30b-a3b-fp8", None),
        ("someone/Qwen3-30B-A3B-FP8", {"quantization": "fp8"}, "qwen3-30b-a3b", "fp8-block"),
        (
            "someone/Qwen3-30B-A3B-FP8-dynamic",
            {"quantization": "compressed-tensors"},
            "qwen3-30b-a3b",
            "fp8-dynamic",
        ),
    ],
)
def test_exact_names_with_words_about_storage(
    name: str, fields: dict[str, Any], spec: str, scheme: str | None
) -> None:
    found = resolve_report(report(model=name, **fields))
    assert found.spec is not None
    assert found.spec.id == spec
    assert (found.scheme.name if found.scheme else None) == scheme
    assert found.weights_problem == ""


@pytest.mark.parametrize(
    "name",
    [
        "someone/Llama-3.1-8B-Computer-Networks",
        "Llama-3.1-9B",
        "llama-3.1-8b-distill",
        "Llama-3-70B-class (inferred: 80 layers)",
        "unknown ?B (name not in log)",
        "x" * 5000,
        "../../etc/passwd",
        "",
        "\x1b[31mred",
    ],
)
def test_other_names_are_not_covered(name: str) -> None:
    found = resolve_report(report(model=name))
    assert found.spec is None
    assert found.problem.startswith(("model not in the catalogue: ", "model not public: "))
    assert found.public == found.problem.startswith("model not in")


def test_a_quantization_that_nobody_stated_is_not_guessed() -> None:
    found = resolve_report(report(model="Qwen3-32B-W8A8"))
    assert found.weights_problem == "stored as w8a8, but the report states no quantization"
    found = resolve_report(report(model="Qwen3-32B-W8A8", quantization="modelslim"))
    assert "modelslim" in found.weights_problem
    assert found.spec is not None  # what does not depend on weights is still planned


# https://github.com/ikawrakow/ik_llama.cpp/issues/380: Qwen3-30B-A3B-Q5_K_M, a plain file.
PLAIN = {
    "gguf_type": "Q5_K - Medium",
    "file_size_gib": 20.23,
    "tensor_type_counts": {"f32": 241, "q5_K": 289, "q6_K": 49},
    "hparams": {"n_layer": 48, "n_embd": 2048, "n_expert": 128, "n_vocab": 151936},
}


def test_a_gguf_file_is_its_type_if_its_size_says_so() -> None:
    found = resolve_report(report("llama.cpp", "Qwen3-30B-A3B", **PLAIN))
    assert found.scheme is not None
    assert (found.scheme.name, found.weights_problem) == ("Q5_K_M", "")
    mixed = {**PLAIN, "file_size_gib": 19.1}
    assert (
        "no plain Q5_K_M"
        in resolve_report(report("llama.cpp", "Qwen3-30B-A3B", **mixed)).weights_problem
    )
    odd = {**PLAIN, "tensor_type_counts": {"iq4_ks_r4": 3}}
    assert (
        "iq4_ks_r4" in resolve_report(report("llama.cpp", "Qwen3-30B-A3B", **odd)).weights_problem
    )
    named = report("llama.cpp", "x", gguf_file="C:\\m\\Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf")
    assert resolve_report(named).scheme.name == "Q4_K_M"  # type: ignore[union-attr]


def test_the_numbers_of_a_file_confirm_or_contradict_its_name() -> None:
    wrong = {**PLAIN, "hparams": {"n_layer": 32, "n_embd": 2048}}
    found = resolve_report(report("llama.cpp", "Qwen3-30B-A3B", **wrong))
    assert found.spec is None
    assert found.problem == ("file contradicts its name: not qwen3-30b-a3b, n_layer is 32, not 48")
    longer = resolve_report(report("llama.cpp", "Qwen3 30B A3B 128K", **PLAIN))
    assert longer.spec is not None
    assert "confirm" in longer.note
    alone = {key: value for key, value in PLAIN.items() if key != "hparams"}
    assert resolve_report(report("llama.cpp", "Qwen3 30B A3B 128K", **alone)).spec is None
