"""transformers and accelerate: placement, cache and verdicts against the libraries themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest

import moesize
from moesize.catalog import resolve_model
from moesize.core.checkpoint import published
from moesize.core.deployment import Request
from moesize.core.errors import InvalidDeploymentError, UnsupportedError
from moesize.core.hf_transformers import TransformersSettings, _modules, _place
from moesize.core.units import GIB
from moesize.engines import engine_planner, engine_rules
from moesize.gpus import find_gpu

# Decoder layers on each GPU, then on the host: `_get_device_map(model, "auto")` of transformers
# 5.19.0 with accelerate 1.15.0 on the meta device, bfloat16, so much free on every GPU.
PLACED = [
    ("mixtral-8x7b", 2, 78.6, (16, 16), 0),
    ("mixtral-8x7b", 4, 23, (7, 8, 8, 8), 1),
    ("mixtral-8x7b", 4, 30, (8, 9, 9, 6), 0),
    ("qwen3-30b-a3b", 4, 23.1, (12, 13, 13, 10), 0),
    ("llama-3.1-8b", 2, 23, (16, 16), 0),
    ("llama-3.1-8b", 3, 10, (10, 15, 7), 0),
    ("mixtral-8x7b", 1, 78.6, (25,), 7),
    ("llama-3.1-8b", 1, 23, (32,), 0),
]


@pytest.mark.parametrize(("model", "gpus", "free", "layers", "host_layers"), PLACED)
def test_layers_are_placed_as_accelerate_does(
    model: str, gpus: int, free: float, layers: tuple[int, ...], host_layers: int
) -> None:
    spec, _ = resolve_model(model)
    modules = _modules(spec, published(spec), engine_rules("transformers"))
    places, host = _place(modules, gpus, int(free * GIB), "auto")
    counted = tuple(sum(module.layer is not None for module in held) for held in places)
    assert counted == layers
    assert sum(module.layer is not None for module in host) == host_layers


def plan(model: str, **options: object) -> moesize.Plan:
    return moesize.plan(model, engine="transformers", suggest=False, **options)  # type: ignore[arg-type]


def test_latent_attention_was_cached_expanded_before_5_15() -> None:
    """DeepSeek-V3: 128 heads x (192 + 128) elements, from 5.15.0 512 + 64, bfloat16, 61 layers."""
    new = plan("deepseek-v3", gpu="24TiB", context=4096, engine_version="5.15.0")
    old = plan("deepseek-v3", gpu="24TiB", context=4096, engine_version="5.14.1")
    assert new.kv_cache.bytes_per_token == 61 * (512 + 64) * 2
    assert old.kv_cache.bytes_per_token == 61 * 128 * (192 + 128) * 2


def test_sliding_layers_hold_the_whole_prompt() -> None:
    """gpt-oss-20b: 24 layers, 8 heads x 64, keys and values, bfloat16; 12 have windows of 128.

    `torch.cat(...)[:, :, -w + 1 :]` is a view: after a prompt of 200 tokens, a Mistral with windows
    of 16 was measured to hold 200 of them (tests/verify/test_engine_transformers.py).
    """
    answer = plan("gpt-oss-20b", gpu="h100", context=32768)
    assert answer.kv_cache.state_bytes_per_sequence == 0
    assert answer.kv_cache.bytes_per_token == 24 * 8 * 64 * 2 * 2


def test_recurrent_states_are_float32() -> None:
    """Qwen3-Next: 36 layers, 32 heads x 128 x 128 in 4 bytes, 4 inputs of 8192 channels in 2."""
    answer = plan("qwen3-next-80b-a3b", gpu="24TiB", context=4096)
    fixed = 36 * (32 * 128 * 128 * 4 + 4 * 8192 * 2)
    assert answer.kv_cache.state_bytes_per_sequence == fixed


def test_eager_attention_holds_the_score_matrix() -> None:
    """32 heads x 8192 x 8192 x (2 + 2 + 4 + 2) bytes live at once (modeling_mixtral.py)."""
    spec, gpu = resolve_model("mixtral-8x7b")[0], find_gpu("h200").spec
    rules, planner = engine_rules("transformers"), engine_planner("transformers")
    request = Request(engine="transformers", context_tokens=8192)
    peaks = []
    for attention in ("sdpa", "eager"):
        settings = TransformersSettings(attn_implementation=attention)  # type: ignore[arg-type]
        asked = replace(request, engine_settings=settings)
        answer = planner(spec, published(spec), gpu, asked, rules)
        items = {item.name: item for item in answer.ledgers[0].items}
        peaks.append(items["activations.peak"].size_bytes)
    assert peaks[1] > 32 * 8192 * 8192 * 10 > peaks[0]


def test_what_the_gpus_cannot_hold_goes_to_the_host() -> None:
    answer = plan("mixtral-8x7b", gpu="rtx-4090", gpus=2, context=2048)
    host = sum(item.size_bytes for item in answer.host)
    held = sum(ledger.category_bytes("weights") for ledger in answer.gpus)
    assert host > 40 * GIB
    assert host + held >= 46_702_792_704 * 2
    assert any(note.code == "offload" for note in answer.warnings)


def test_longest_context_is_where_it_stops_fitting() -> None:
    answer = plan("llama-3.1-8b", gpu="24GiB", context=2048)
    longest = answer.kv_cache.max_context
    assert answer.fits
    assert 2048 < longest < 131_072
    assert plan("llama-3.1-8b", gpu="24GiB", context=longest).fits
    assert not plan("llama-3.1-8b", gpu="24GiB", context=longest + 1).fits


def test_refusals() -> None:
    with pytest.raises(UnsupportedError, match="--tp cannot be planned for transformers"):
        plan("mixtral-8x7b", gpu="h100", gpus=2, tp=2)
    with pytest.raises(UnsupportedError, match="cache"):
        plan("mixtral-8x7b", gpu="h100", kv_dtype="fp8")
    with pytest.raises(InvalidDeploymentError, match="longer"):
        plan("mixtral-8x7b", gpu="h100", context=1 << 20)
    with pytest.raises(UnsupportedError, match="not known"):
        plan("mixtral-8x7b", gpu="h100", engine_version="4.20")
