"""Per-layer inputs of Gemma 3n and 4: every layer adds a small embedding of the token, gated.

L layers, P size of the embedding of one layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as f
from torch import Tensor

from moesize.core.tensors import Shard
from moesize.verify.forward.activations import activation
from moesize.verify.forward.norms import normalize

if TYPE_CHECKING:
    from moesize.core.model_spec import ModelSpec
    from moesize.verify.forward.numerics import Numerics
    from moesize.verify.forward.step import Step
    from moesize.verify.forward.weights import LayerWeights, Weights


def per_layer_inputs(
    spec: ModelSpec, numerics: Numerics, weights: Weights, step: Step, x: Tensor
) -> Tensor:
    """A step's tokens (B, T) and their embeddings x (B, T, H) -> (B, T, L, P)."""
    size = spec.embedding.per_layer_size
    table = _needed(weights, "embedding.per_layer", "embedding")
    table = weights.rows(table, spec.embedding.per_layer_vocab_size)
    # Of tokens that the table does not have the first row is taken.
    known = step.tokens.masked_fill(step.tokens >= spec.embedding.per_layer_vocab_size, 0)
    looked_up = weights.look_up(table, known, step.reduce)
    looked_up = (looked_up * size**0.5).unflatten(-1, (-1, size))
    projection = _needed(weights, "other.per_layer_model_projection", "final")
    own = weights.own(projection, Shard(0, spec.num_layers * size))
    made = weights.gather(f.linear(x, own), step.reduce)
    made = (made * spec.hidden_size**-0.5).unflatten(-1, (-1, size))
    norm = _needed(weights, "norms.per_layer_projection", "final")
    made = normalize(made, numerics.norm, norm, None, numerics.eps)
    return (made + looked_up) * 2**-0.5


def _needed(weights: Weights, role: str, section: str) -> Tensor:
    found = weights.outside(role, section)
    assert found is not None, role
    return found


def per_layer_update(x: Tensor, own: Tensor, numerics: Numerics, w: LayerWeights) -> Tensor:
    """What the layer's own input (B, T, P), gated by x (B, T, H), adds to x."""
    gate = activation(numerics.activation)(f.linear(x, w.get("other.per_layer_gate")))
    out = f.linear(gate * own, w.get("other.per_layer_projection"))
    return normalize(out, numerics.norm, w.get("norms.per_layer"), None, numerics.eps)
