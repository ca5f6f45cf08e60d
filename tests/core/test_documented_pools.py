"""TGI and TensorRT-LLM: the rules of their sources, with the numbers put in."""

from __future__ import annotations

import pytest

import moesize
from moesize.core.errors import InvalidDeploymentError, UnsupportedError

ENGINES = ("tgi", "tensorrt-llm")


def plan(model: str, engine: str, **options: object) -> moesize.Plan:
    return moesize.plan(model, engine=engine, suggest=False, **options)  # type: ignore[arg-type]


def test_tgi_keeps_a_tenth_of_the_card_free() -> None:
    """flash_causal_lm.py:warmup: free - (1 - 1.0 x 0.9) x total, all of it for blocks."""
    answer = plan("llama-3.1-8b", "tgi", gpu="l4", context=8192)
    ledger = answer.gpus[0]
    assert ledger.budget_bytes == int(ledger.usable_bytes * 0.9)
    charged = sum(i.size_bytes for i in ledger.items if i.in_budget and i.category != "kv_cache")
    assert answer.kv_cache.available_bytes == ledger.budget_bytes - charged
    # 32 layers x 8 heads x 128 x keys and values x 2 bytes, blocks of one token (flashinfer).
    assert answer.kv_cache.bytes_per_token == 32 * 8 * 128 * 2 * 2
    assert answer.kv_cache.capacity_tokens == answer.kv_cache.available_bytes // 131_072


def test_tensorrt_llm_takes_nine_tenths_of_what_is_free() -> None:
    """_util.py:_cal_max_memory: (total - peak) x 0.9, blocks of 32 tokens."""
    answer = plan("deepseek-v3", "tensorrt-llm", gpu="h200", gpus=8, context=8192)
    ledger = answer.gpus[0]
    held = sum(i.size_bytes for i in ledger.items if i.category not in ("kv_cache", "reserve"))
    free = ledger.usable_bytes - held
    assert answer.kv_cache.available_bytes == int(free * 0.9)
    assert answer.kv_cache.bytes_per_token == 61 * (512 + 64) * 2
    assert answer.kv_cache.capacity_tokens % 32 == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_more_memory_never_holds_fewer_tokens(engine: str) -> None:
    tokens = [
        plan("llama-3.1-8b", engine, gpu=gpu, context=4096).kv_cache.capacity_tokens
        for gpu in ("24GiB", "40GiB", "80GiB", "141GiB")
    ]
    assert tokens == sorted(tokens)
    assert tokens[0] < tokens[-1]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_plan_says_that_the_rule_was_not_compared(engine: str) -> None:
    answer = plan("llama-3.1-8b", engine, gpu="l4", context=4096)
    assert any(note.code == "documented-rule" for note in answer.warnings)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_without_keys_and_values_is_refused(engine: str) -> None:
    with pytest.raises(UnsupportedError, match="keeps no keys and values"):
        plan("bert-base", engine, gpu="h100")


def test_refusals() -> None:
    with pytest.raises(UnsupportedError, match="not documented"):
        plan("qwen3-next-80b-a3b", "tgi", gpu="h100", gpus=4)
    with pytest.raises(UnsupportedError, match="not documented"):
        plan("deepseek-v3", "tgi", gpu="h200", gpus=8)
    with pytest.raises(InvalidDeploymentError, match="pipeline"):
        plan("llama-3.1-8b", "tgi", gpu="l4", gpus=2, pp=2)
    with pytest.raises(UnsupportedError, match="does not run"):
        plan("llama-3.1-8b", "tensorrt-llm", gpu="mi300x")
