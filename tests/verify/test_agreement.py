"""Logits against transformers' own classes: tiny models of every family, random weights, float32.

The law of caches rides along: a prompt in one piece, a prompt and decode steps, and a prompt in
pieces must all come to the library's logits, which were computed without any cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from moesize.core.compute import flops_per_token, prefill_flops
from moesize.core.model_spec import ModelSpec
from moesize.core.recurrent import (
    GatedDeltaNet,
    KimiDeltaAttention,
    LightningAttention,
    Mamba2,
)
from moesize.readers.hf.read import spec_from_config
from moesize.verify.forward import ForwardModel, Numerics, count_flops
from moesize.verify.forward.flops import unseen
from moesize.verify.forward.model import RunOptions
from moesize.verify.predict import as_run
from verify import tiny

TOLERANCE = 1e-4
STEPS = 4


@dataclass(frozen=True)
class Reference:
    """A tiny model as the library computes it, and as we read it."""

    spec: ModelSpec
    numerics: Numerics
    state: dict[str, torch.Tensor]
    tokens: torch.Tensor
    logits: torch.Tensor

    def model(self, **options: object) -> ForwardModel:
        """Our model of the same files."""
        return ForwardModel(
            self.spec,
            self.numerics,
            self.state,
            options=RunOptions(**options),  # type: ignore[arg-type]
        )


@pytest.fixture(scope="module", params=tiny.FAMILIES, ids=lambda family: family.id)
def ref(request: pytest.FixtureRequest) -> Reference:
    """One family at a time: both tests of it run before the next is made."""
    family = request.param
    with TemporaryDirectory() as folder:
        model, config = tiny.save(family, Path(folder))
        state = tiny.state_of(Path(folder))
    spec = spec_from_config(config, file="config.json")
    torch.manual_seed(1)
    tokens = torch.randint(3, spec.embedding.vocab_size, (2, family.tokens))
    with torch.no_grad():
        logits = model(tokens, use_cache=False).logits
    return Reference(spec, Numerics.from_config(config, spec), state, tokens, logits)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, as a part of the largest logit."""
    return float((found - expected).abs().max() / expected.abs().max())


def test_logits_of_a_prompt_and_of_decode_steps(ref: Reference) -> None:
    whole = ref.model()
    assert error(whole.logits(whole.prefill(ref.tokens)), ref.logits) < TOLERANCE

    # Fixed blocks of cache, sorted experts, few rows of scores at a time.
    count = ref.tokens.shape[1]
    prompt = count - STEPS
    steps = ref.model(cache="static", max_tokens=count + 3, query_block=3, experts="grouped")
    parts = [steps.logits(steps.prefill(ref.tokens[:, :prompt]))]
    parts += [steps.logits(steps.decode(ref.tokens[:, t])) for t in range(prompt, count)]
    assert error(torch.cat(parts, 1), ref.logits) < TOLERANCE

    pieces = ref.model(query_block=1)
    cuts = [pieces.prefill(piece) for piece in ref.tokens.split([count - 8, 3, 1, 4], dim=1)]
    assert error(pieces.logits(torch.cat(cuts, 1)), ref.logits) < TOLERANCE


def flop_tokens(spec: ModelSpec) -> int:
    """Whole chunks of the linear kinds: a begun chunk costs less than the formula's."""
    mixers = [mixer for block in spec.blocks for mixer in block.mixers]
    if any(isinstance(mixer, (Mamba2, LightningAttention)) for mixer in mixers):
        return 256
    return 64 if any(isinstance(m, (GatedDeltaNet, KimiDeltaAttention)) for m in mixers) else 16


def test_flops_as_torch_counts_them(ref: Reference) -> None:
    """Equal to the formulas to the last operation."""
    count = flop_tokens(ref.spec)
    tokens = torch.randint(3, ref.spec.embedding.vocab_size, (1, count + 1))
    model = ref.model(query_block=1)
    prompt = count_flops(lambda: model.logits(model.prefill(tokens[:, :count])[:, -1:]))
    step = count_flops(lambda: model.logits(model.decode(tokens[:, count])))
    prompt += unseen(ref.spec, model.layers, count, "prefill")
    step += unseen(ref.spec, model.layers, 1, "decode")
    spec = as_run(ref.spec, ref.numerics)
    expected = prefill_flops(spec, count).total, flops_per_token(spec, count + 1).total
    assert (prompt, step) == expected
