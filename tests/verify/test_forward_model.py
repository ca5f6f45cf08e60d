"""The model as a whole: ranks, subsets of layers, phases, caches, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from running import ROOT

from moesize.catalog import load_spec
from moesize.core.errors import InvalidInputError, InvalidSpecError, UnsupportedError
from moesize.core.model_spec import ModelSpec
from moesize.readers.hf.read import spec_from_config
from moesize.readers.hf.registry import known_model_types
from moesize.verify.forward import ForwardModel, Numerics
from moesize.verify.forward.families import known_families
from moesize.verify.forward.model import RunOptions
from verify import tiny
from verify.ranks import logits_of_ranks

Made = tuple[ModelSpec, dict[str, Any], dict[str, torch.Tensor]]


def made(name: str) -> Made:
    """Spec, config and tensors of a tiny model."""
    family = next(f for f in tiny.FAMILIES if f.id == name)
    with TemporaryDirectory() as folder:
        _, config = tiny.save(family, Path(folder))
        state = tiny.state_of(Path(folder))
    return spec_from_config(config, file="config.json"), config, state


@pytest.fixture(scope="module")
def llama() -> Made:
    return made("llama")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("llama", 2),
        ("llama", 4),  # more ranks than KV heads: two ranks share one
        ("mixtral", 2),
        ("phi3", 2),
        ("gpt_oss", 2),
        ("deepseek_v3", 2),
        ("qwen3_next", 2),
        ("qwen3_5_text", 2),
        ("olmo2", 2),
        ("bamba", 2),
        ("nemotron_h", 2),
        ("jamba", 2),
        ("minimax", 2),
        ("kimi_linear", 2),
        ("lfm2", 2),
        ("gemma3_text", 2),
        ("starcoder2", 2),
        ("gemma4_text", 2),
        ("glm_moe_dsa", 2),
        ("granitemoehybrid", 2),
        ("deepseek_v4", 2),
        ("minimax_m3_vl_text", 2),
        ("bailing_hybrid", 2),
        ("mimo_v2_flash", 2),
        ("granite_swa", 2),
        ("gpt_bigcode", 2),
        ("codegen", 2),
    ],
)
def test_ranks_together_make_the_whole_model(name: str, size: int) -> None:
    spec, config, state = made(name)
    ids = torch.randint(3, 96, (2, 8))
    model = ForwardModel(spec, Numerics.from_config(config, spec), state)
    whole = model.logits(model.prefill(ids))
    numerics = Numerics.from_config(config, spec)
    parts = logits_of_ranks(spec, numerics, [state] * size, ids, cut=False)
    together = torch.cat(parts, dim=-1)
    assert (together - whole).abs().max() < 1e-4 * whole.abs().max()


def test_a_rank_alone_computes_its_share(llama: Made) -> None:
    spec, config, state = llama
    model = ForwardModel(spec, Numerics.from_config(config, spec), state, tp=(0, 2), cut=False)
    assert model.logits(model.prefill(torch.ones(1, 3, dtype=torch.long))).shape == (1, 3, 48)


def test_a_subset_of_layers_runs_in_the_order_given(llama: Made) -> None:
    spec, config, state = llama
    phases: list[str] = []
    numerics = Numerics.from_config(config, spec)
    model = ForwardModel(spec, numerics, state, layers=(2, 0), on_phase=phases.append)
    hidden = model.prefill(torch.ones(1, 4, dtype=torch.long))
    model.logits(hidden)
    assert hidden.shape == (1, 4, 32)
    assert phases == ["embedding", "layer 2", "layer 0", "final norm", "logits"]


def test_a_layer_that_is_not_there_is_refused(llama: Made) -> None:
    spec, config, state = llama
    with pytest.raises(InvalidInputError, match=r"layers 0\.\.2"):
        ForwardModel(spec, Numerics.from_config(config, spec), state, layers=(3,))
    with pytest.raises(InvalidInputError, match="rank 2"):
        ForwardModel(spec, Numerics.from_config(config, spec), state, tp=(2, 2))


def test_a_missing_tensor_is_named(llama: Made) -> None:
    spec, config, state = llama
    left = {k: v for k, v in state.items() if k != "model.layers.1.mlp.up_proj.weight"}
    model = ForwardModel(spec, Numerics.from_config(config, spec), left)
    with pytest.raises(InvalidInputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        model.prefill(torch.ones(1, 2, dtype=torch.long))


@pytest.mark.parametrize("kind", ["static", "growing"])
def test_the_cache_holds_what_the_spec_says(llama: Made, kind: Any) -> None:
    """16 tokens of 2 sequences: K and V of 2 heads of 8 in float32, in 3 layers."""
    spec, config, state = llama
    options = RunOptions(cache=kind, max_tokens=16)
    model = ForwardModel(spec, Numerics.from_config(config, spec), state, options=options)
    model.prefill(torch.ones(2, 16, dtype=torch.long))
    assert model.cache_bytes == 16 * 2 * (2 * 2 * 8) * 4 * 3
    model.reset()
    assert model.cache_bytes == 0


def test_a_window_forgets(tmp_path: Path) -> None:
    spec, config, state = made("mistral")
    model = ForwardModel(spec, Numerics.from_config(config, spec), state)
    model.prefill(torch.ones(1, 30, dtype=torch.long))
    assert model.cache_bytes == 5 * (2 * 2 * 8) * 4 * 3


def test_a_full_cache_is_refused(llama: Made) -> None:
    spec, config, state = llama
    options = RunOptions(cache="static", max_tokens=4)
    model = ForwardModel(spec, Numerics.from_config(config, spec), state, options=options)
    with pytest.raises(InvalidInputError, match="holds 4 tokens, not 5"):
        model.prefill(torch.ones(1, 5, dtype=torch.long))


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "deepseek_v3", "qwen3_next", "phi"])
def test_neutral_numerics_run_without_a_config(name: str) -> None:
    spec, _, state = made(name)
    model = ForwardModel(spec, Numerics.neutral(spec), state)
    logits = model.logits(model.prefill(torch.ones(1, 5, dtype=torch.long)))
    assert logits.shape == (1, 5, 96)
    assert bool(logits.isfinite().all())


def test_half_precision_runs(llama: Made) -> None:
    spec, config, state = llama
    numerics = Numerics.from_config(config, spec)
    exact = ForwardModel(spec, numerics, state)
    rounded = ForwardModel(spec, numerics, state, dtype=torch.bfloat16)
    ids = torch.randint(3, 96, (1, 6))
    expected = exact.logits(exact.prefill(ids))
    found = rounded.logits(rounded.prefill(ids))
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()


# --- What a stranger's config may say -----------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps"),
        ({"rms_norm_eps": 7.0}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"hidden_act": 3}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": -1}}, "rope_theta"),
        (
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "short_factor": [1.0],
                    "long_factor": [1.0],
                }
            },
            "short_factor",
        ),
    ],
)
def test_nonsense_is_refused_by_key(llama: Made, change: dict[str, Any], message: str) -> None:
    spec, config, _ = llama
    with pytest.raises(InvalidSpecError, match=message):
        Numerics.from_config({**config, **change}, spec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_group": 3}, "3 groups of 8 experts"),
        ({"n_group": 2, "topk_group": 3}, "3 of 2 groups"),
        ({"n_group": 8, "topk_group": 1}, "hold no 2 to choose"),
    ],
)
def test_groups_of_experts_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    spec, config, _ = made("deepseek_v3")
    with pytest.raises(InvalidSpecError, match=message):
        Numerics.from_config({**config, **change}, spec)


def test_what_is_not_known_is_refused_by_name(llama: Made) -> None:
    spec, config, state = llama
    with pytest.raises(UnsupportedError, match="how strange computes"):
        Numerics.from_config({**config, "model_type": "strange"}, spec)
    rope = {"rope_type": "spiral", "rope_theta": 1e4}
    with pytest.raises(UnsupportedError, match="'spiral'"):
        Numerics.from_config({**config, "rope_parameters": rope}, spec)
    numerics = replace(Numerics.from_config(config, spec), activation="cosine")
    model = ForwardModel(spec, numerics, state)
    with pytest.raises(UnsupportedError, match="'cosine'"):
        model.prefill(torch.ones(1, 2, dtype=torch.long))


def test_families_are_types_that_have_a_reader() -> None:
    """Or the text part of a wrapper that has one."""
    inner = {"qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"}
    assert set(known_families()) <= {*known_model_types(), *inner}


def test_every_model_of_the_catalogue_runs_or_says_what_is_missing() -> None:
    """The second list is the work that is left; it may only grow shorter."""
    refused: dict[str, list[str]] = {}
    for path in sorted((ROOT / "model_specs").glob("*.yaml")):
        spec = load_spec(path)
        try:
            ForwardModel(spec, Numerics.neutral(spec), {})
        except UnsupportedError as error:
            refused.setdefault(error.args[0].split(" has ")[0], []).append(spec.id)
    assert {reason: len(ids) for reason, ids in refused.items()} == {
        "attention of encoder-decoder models": 4,
        "kimi_k3": 1,
    }
