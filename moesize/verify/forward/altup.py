"""Gemma 3n's layer: alternating updates over m streams (AltUp, arXiv 2301.13310), low-rank
residuals (LAuReL, arXiv 2411.07501), and inputs of its own for every layer.

A layer computes on one stream; the others are predicted from all of them before, and corrected by
how far the prediction was off behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as f
from torch import Tensor

from moesize.verify.forward.norms import normalize
from moesize.verify.forward.per_layer import per_layer_update

if TYPE_CHECKING:
    from collections.abc import Callable

    from moesize.verify.forward.numerics import Numerics
    from moesize.verify.forward.weights import LayerWeights, Weights

ALTUP_ROLES = (
    "other.altup_correction",
    "other.altup_prediction",
    "other.altup_router",
    "other.altup_scale",
    "other.laurel_left",
    "other.laurel_right",
    "norms.altup_router",
)
_LEAST = 1e-5


def spread(x: Tensor, weights: Weights) -> Tensor:
    """x (B, T, H) -> streams (B, T, m, H), each of the magnitude of the first."""
    made = [f.linear(x, one) for one in weights.outside_all("other.altup_projections", "final")]
    return torch.stack([x, *(_as_large(one, x) for one in made)], dim=2)


def join(x: Tensor, weights: Weights) -> Tensor:
    """Streams (B, T, m, H) -> their mean (B, T, H), each of the magnitude of the first."""
    first, *others = x.unbind(2)
    back = weights.outside_all("other.altup_unembed_projections", "final")
    made = [f.linear(own, matrix) for own, matrix in zip(others, back, strict=True)]
    return torch.stack([first, *(_as_large(one, first) for one in made)]).mean(0)


def _as_large(x: Tensor, like: Tensor) -> Tensor:
    target = like.square().mean(-1, keepdim=True).sqrt()
    own = x.square().mean(-1, keepdim=True).clamp(min=_LEAST).sqrt()
    return x * target / own


class AltUp:
    """The streams of one layer."""

    def __init__(self, numerics: Numerics, weights: LayerWeights) -> None:
        self.numerics = numerics
        self.w = weights

    def __call__(self, x: Tensor, own: Tensor | None, inner: Callable[[Tensor], Tensor]) -> Tensor:
        """x (B, T, m, H); inner: the layer on one stream; own (B, T, P): the layer's input."""
        num, w, active = self.numerics, self.w, self.numerics.active_stream
        guesses = self._predicted(x)
        done = inner(guesses[:, :, active])
        shares = f.linear(self._modes(done), w.get("other.altup_correction")) + 1.0
        off = done - guesses[:, :, active]
        x = guesses + shares[..., None] * off[:, :, None]
        if own is None:
            return x
        first = x[:, :, active]
        if num.scaled_correction:
            first = first * w.get("other.altup_scale")
        x[:, :, 1:] += per_layer_update(first, own, num, w)[:, :, None]
        return x

    def _modes(self, x: Tensor) -> Tensor:
        """(B, T, m): how much of each stream there is in x (B, T, H)."""
        num, w = self.numerics, self.w
        normed = normalize(x, num.norm, w.get("norms.altup_router"), None, num.eps)
        return torch.tanh(f.linear(normed / x.shape[-1], w.get("other.altup_router")))

    def _predicted(self, x: Tensor) -> Tensor:
        """Every stream plus a mixture of all, one at a time: no matrix product."""
        m = x.shape[2]
        modes = self._modes(x[:, :, self.numerics.active_stream])
        shares = f.linear(modes, self.w.get("other.altup_prediction")).unflatten(-1, (m, m))
        out = x
        for i in range(m):
            out = out + shares[..., i, None] * x[:, :, i, None]
        return out


def laurel(x: Tensor, norm: Callable[[Tensor], Tensor], w: LayerWeights) -> Tensor:
    """x (B, T, H) plus a low-rank map of it."""
    inner = f.linear(x, w.get("other.laurel_left"))
    return x + norm(f.linear(inner, w.get("other.laurel_right")))
