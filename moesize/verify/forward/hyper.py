"""Hyper-connections: m residual streams, joined before each half of a layer and mixed behind it.

Their weights follow from the streams themselves; the mixing matrix is made doubly stochastic by
Sinkhorn's rounds (arXiv 2512.24880).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as f
from torch import Tensor

from moesize.verify.forward.norms import normalize

if TYPE_CHECKING:
    from moesize.verify.forward.numerics import Numerics
    from moesize.verify.forward.weights import LayerWeights, Weights

HC_NAMES = ("fn", "base", "scale")


class HyperConnection:
    """Around one half of a layer: `attn` or `ffn`."""

    def __init__(self, part: str, numerics: Numerics, weights: LayerWeights) -> None:
        self.numerics = numerics
        self.fn, self.base, self.scale = (
            weights.get(f"other.hc_{part}_{name}").float() for name in HC_NAMES
        )

    def enter(self, x: Tensor) -> Tensor:
        """x (B, T, m, H) -> what the half sees (B, T, H); keeps what `leave` needs."""
        m, eps = x.shape[2], self.numerics.stream_eps
        flat = normalize(x.flatten(2).float(), "rms_plain", None, None, self.numerics.eps)
        sizes = [m, m, m * m]
        joins, spreads, mixes = f.linear(flat, self.fn).split(sizes, dim=-1)
        bases = self.base.split(sizes)
        join = torch.sigmoid(joins * self.scale[0] + bases[0]) + eps
        self.spread = 2 * torch.sigmoid(spreads * self.scale[1] + bases[1])
        mix = (mixes * self.scale[2] + bases[2]).unflatten(-1, (m, m)).softmax(-1) + eps
        mix = mix / (mix.sum(-2, keepdim=True) + eps)
        for _ in range(self.numerics.stream_rounds - 1):
            mix = mix / (mix.sum(-1, keepdim=True) + eps)
            mix = mix / (mix.sum(-2, keepdim=True) + eps)
        self.mix = mix
        return (join[..., None] * x).sum(2).to(x.dtype)

    def leave(self, x: Tensor, out: Tensor) -> Tensor:
        """x (B, T, m, H) and the half's output (B, T, H) -> (B, T, m, H).

        Stream by stream: no matrix product, which no formula counts, and one product at a time.
        """
        mix = self.mix.to(x.dtype)
        mixed = self.spread.to(x.dtype)[..., None] * out[:, :, None]
        for j in range(x.shape[2]):
            mixed = mixed + mix[:, :, j, :, None] * x[:, :, j, None]
        return mixed


def collapse(x: Tensor, numerics: Numerics, weights: Weights) -> Tensor:
    """The streams (B, T, m, H) joined before the head."""
    fn, base, scale = (weights.outside(f"other.hc_head_{name}", "final") for name in HC_NAMES)
    assert fn is not None
    assert base is not None
    assert scale is not None
    flat = normalize(x.flatten(2).float(), "rms_plain", None, None, numerics.eps)
    join = f.linear(flat, fn.float()) * scale.float() + base.float()
    join = torch.sigmoid(join) + numerics.stream_eps
    return (join[..., None] * x).sum(2).to(x.dtype)
