"""Lightning attention (MiniMax-01, arXiv 2501.08313): linear attention with a decay per head."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as f
from torch import Tensor

from moesize.core.compute import LIGHTNING_CHUNK
from moesize.core.errors import UnsupportedError
from moesize.verify.forward.activations import activation
from moesize.verify.forward.norms import normalize_over_ranks
from moesize.verify.layouts import local_units

if TYPE_CHECKING:
    from moesize.core.recurrent import LightningAttention
    from moesize.verify.forward.caches import LayerCache
    from moesize.verify.forward.numerics import Numerics
    from moesize.verify.forward.step import Step
    from moesize.verify.forward.weights import LayerWeights


class Lightning:
    """One layer of lightning attention, as MiniMax has it."""

    def __init__(
        self, mixer: LightningAttention, numerics: Numerics, weights: LayerWeights
    ) -> None:
        if mixer.norm_size or mixer.qk_norm or mixer.num_kv_heads != mixer.num_heads:
            raise UnsupportedError("lightning attention of the Bailing hybrids has no forward pass")
        self.whole = mixer
        heads = local_units(mixer.num_heads, weights.all.size)
        self.mixer = replace(mixer, num_heads=heads, num_kv_heads=heads)
        self.numerics = numerics
        self.w = weights

    def __call__(self, x: Tensor, step: Step, cache: LayerCache) -> Tensor:
        """x (B, T, H) -> (B, T, H), this rank's part of the sum."""
        m, w = self.mixer, self.w
        joined = f.linear(x, w.get("attention.linear.qkv"))
        joined = activation(self.numerics.activation)(joined)
        by_head = joined.unflatten(-1, (m.num_heads, -1)).transpose(1, 2).float()
        q, k, v = by_head.chunk(3, dim=-1)
        state = cache.states.get("recurrent")
        if state is None:
            state = q.new_zeros(q.shape[0], m.num_heads, m.head_dim, m.head_dim)
        out, state = decayed(q, k, v, self._slopes().to(x.device), state)
        cache.states["recurrent"] = state
        out = out.transpose(1, 2).flatten(2).to(x.dtype)
        if m.output_norm:
            weight = w.get("norms.linear")
            eps = self.numerics.latent_eps
            out = normalize_over_ranks(out, weight, eps, step.reduce, w.all.size)
        if m.gate:
            out = torch.sigmoid(f.linear(x, w.get("attention.linear.g"))) * out
        return f.linear(out, w.get("attention.linear.out"))

    def _slopes(self) -> Tensor:
        """Decay of each head; deeper layers forget less."""
        whole, w = self.whole.num_heads, self.w
        depth = 1 - w.index / (max(self.numerics.num_layers, 2) - 1 + 1e-5) + 1e-5
        slopes = 2.0 ** (-8.0 / whole * torch.arange(1, whole + 1, dtype=torch.float32)) * depth
        first = w.all.rank * self.mixer.num_heads
        return slopes[first : first + self.mixer.num_heads]


def decayed(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """q, k, v (B, N, T, d), slopes (N), state (B, N, d, d); S = exp(-slope) S + k v^T, o = q S."""
    if q.shape[2] == 1:
        state = state * torch.exp(-slopes)[:, None, None] + k.transpose(-1, -2) @ v
        return q @ state, state
    out = []
    for a in range(0, q.shape[2], LIGHTNING_CHUNK):
        qs, ks, vs = (y[:, :, a : a + LIGHTNING_CHUNK] for y in (q, k, v))
        size = qs.shape[2]
        age = torch.arange(1, size + 1, device=q.device, dtype=q.dtype)
        between = torch.exp(-slopes[:, None, None] * (age[:, None] - age[None, :]).tril()).tril()
        inside = ((qs @ ks.transpose(-1, -2)) * between) @ vs
        fade = torch.exp(-slopes[:, None, None] * age[:, None])
        out.append(inside + (qs * fade) @ state)
        rest = torch.exp(-slopes[:, None, None] * (size - age)[:, None])
        state = state * torch.exp(-slopes * size)[:, None, None]
        state = state + (ks * rest).transpose(-1, -2) @ vs
    return torch.cat(out, dim=2), state
