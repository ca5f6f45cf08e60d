"""Mamba (arXiv 2312.00752) and Mamba-2 (arXiv 2405.21060): selective state spaces.

Mamba-2: heads of size p share B and C of their group, and one decay; a prompt takes MAMBA2_CHUNK
tokens at once (the state space dual). Mamba-1: one state of n values per channel, token by token.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as f
from torch import Tensor

from moesize.core.compute import MAMBA2_CHUNK
from moesize.verify.forward.convolution import causal_conv
from moesize.verify.forward.norms import group_normalize, normalize, normalize_over_ranks
from moesize.verify.layouts import local_units

if TYPE_CHECKING:
    from moesize.core.recurrent import Mamba1, Mamba2
    from moesize.verify.forward.caches import LayerCache
    from moesize.verify.forward.numerics import Numerics
    from moesize.verify.forward.step import Step
    from moesize.verify.forward.weights import LayerWeights


class StateSpaceDual:
    """Mamba-2."""

    def __init__(self, mixer: Mamba2, numerics: Numerics, weights: LayerWeights) -> None:
        size = weights.all.size
        self.mixer = replace(
            mixer,
            num_heads=local_units(mixer.num_heads, size),
            num_groups=local_units(mixer.num_groups, size, replicate=mixer.num_groups == 1),
        )
        self.numerics = numerics
        self.w = weights

    def __call__(self, x: Tensor, step: Step, cache: LayerCache) -> Tensor:
        """x (B, T, H) -> (B, T, H), this rank's part of the sum."""
        m, w, num = self.mixer, self.w, self.numerics
        role = "attention.linear."
        z, xs, b, c, dt = self._project(x * num.factor("ssm_in"))
        conv = torch.cat(w.sections(role + "conv"))
        bias = None
        if m.conv_bias:
            bias = torch.cat(w.sections(role + "conv.bias"))
        mixed = f.silu(causal_conv(torch.cat((xs, b, c), dim=-1), conv, bias, cache))
        wide = m.num_groups * m.state_size
        xs, b, c = mixed.split([m.inner_size, wide, wide], dim=-1)
        dt = f.softplus(dt.float() + w.get(role + "dt_bias").float()).clamp(*num.dt_limits)
        log_decay = -w.get(role + "a_log").float().exp() * dt
        heads = xs.unflatten(-1, (m.num_heads, -1)).float()
        b, c = (y.unflatten(-1, (m.num_groups, -1)).float() for y in (b, c))
        state = cache.states.get("recurrent")
        if state is None:
            state = heads.new_zeros(x.shape[0], m.num_heads, m.head_dim, m.state_size)
        out, state = state_space(heads * dt[..., None], b, c, log_decay, state)
        cache.states["recurrent"] = state
        out = out + heads * w.get(role + "d").float()[:, None]
        out = self._gate(out.flatten(2).to(x.dtype), z, step)
        bias = w.maybe(role + "out.bias") if w.all.rank == 0 else None
        return f.linear(out, w.get(role + "out"), bias) * num.factor("ssm_out")

    def _project(self, x: Tensor) -> list[Tensor]:
        """Gate, inner stream, B, C, time step."""
        w, role = self.w, "attention.linear.in"
        parts = w.sections(role)
        biases: list[Tensor] = []
        if self.mixer.projection_bias and w.has(role + ".bias"):
            biases = w.sections(role + ".bias")
        joined = f.linear(x, torch.cat(parts), torch.cat(biases) if biases else None)
        out = list(joined.split([len(part) for part in parts], dim=-1))
        factors = self.numerics.multipliers.get("ssm", ())
        return [y * k for y, k in zip(out, factors, strict=True)] if factors else out

    def _gate(self, x: Tensor, z: Tensor, step: Step) -> Tensor:
        num = self.numerics
        gate = f.silu(z.float())
        if not self.mixer.gate_norm:
            return (x.float() * gate).to(x.dtype)
        if num.linear_norm_before_gate:
            return (self._norm(x, step).float() * gate).to(x.dtype)
        return self._norm((x.float() * gate).to(x.dtype), step)

    def _norm(self, x: Tensor, step: Step) -> Tensor:
        """Over each group; a single one that ranks share is normed over all of them."""
        weight, eps, ranks = self.w.get("norms.linear"), self.numerics.eps, self.w.all.size
        groups = self.numerics.linear_norm_groups
        if groups == 1:
            return normalize_over_ranks(x, weight, eps, step.reduce, ranks)
        return group_normalize(x, weight, local_units(groups, ranks), eps)


def state_space(
    x: Tensor, b: Tensor, c: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """x (B, T, N, p), b and c (B, T, G, n), log_decay (B, T, N), state (B, N, p, n)."""
    if x.shape[1] == 1:
        return _one_token(x, b, c, log_decay, state)
    out = []
    for a in range(0, x.shape[1], MAMBA2_CHUNK):
        rows = slice(a, a + MAMBA2_CHUNK)
        mixed, state = _chunk(x[:, rows], b[:, rows], c[:, rows], log_decay[:, rows], state)
        out.append(mixed)
    return torch.cat(out, dim=1), state


def _one_token(
    x: Tensor, b: Tensor, c: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    per = x.shape[2] // b.shape[2]
    b, c = (y[:, 0].repeat_interleave(per, 1) for y in (b, c))
    state = state * log_decay[:, 0].exp()[..., None, None]
    state = state + x[:, 0, :, :, None] @ b[:, :, None]
    return (state @ c[..., None])[..., 0][:, None], state


def _chunk(
    x: Tensor, b: Tensor, c: Tensor, log_decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    per = x.shape[2] // b.shape[2]
    x = x.transpose(1, 2)
    b, c = b.transpose(1, 2), c.transpose(1, 2)
    total = log_decay.transpose(1, 2).cumsum(-1)  # (B, N, T)
    # Scores once per group, their decays once per head.
    scores = (c @ b.transpose(-1, -2)).repeat_interleave(per, 1)
    between = (total[..., :, None] - total[..., None, :]).tril().exp().tril()
    heads_b, heads_c = b.repeat_interleave(per, 1), c.repeat_interleave(per, 1)
    out = (scores * between) @ x
    out = out + (heads_c @ state.transpose(-1, -2)) * total.exp()[..., None]
    rest = (total[..., -1:] - total).exp()[..., None]
    state = state * total[..., -1].exp()[..., None, None]
    state = state + (x * rest).transpose(-1, -2) @ heads_b
    return out.transpose(1, 2), state


class SelectiveScan:
    """Mamba-1."""

    def __init__(self, mixer: Mamba1, numerics: Numerics, weights: LayerWeights) -> None:
        size = weights.all.size
        self.mixer = replace(mixer, inner_size=local_units(mixer.inner_size, size))
        self.numerics = numerics
        self.w = weights

    def __call__(self, x: Tensor, step: Step, cache: LayerCache) -> Tensor:
        """x (B, T, H) -> (B, T, H), this rank's part of the sum."""
        m, w = self.mixer, self.w
        role = "attention.linear."
        weight = torch.cat(w.sections(role + "in"))
        bias = None
        if w.has(role + "in.bias"):
            bias = torch.cat(w.sections(role + "in.bias"))
        xs, z = f.linear(x, weight, bias).chunk(2, dim=-1)
        xs = f.silu(causal_conv(xs, w.get(role + "conv"), w.maybe(role + "conv.bias"), cache))
        # Every rank holds some columns of this projection: the parts must meet before use.
        small = step.reduce(f.linear(xs, w.get(role + "x")))
        dt, b, c = small.split([m.dt_rank, m.state_size, m.state_size], dim=-1)
        dt, b, c = (self._inner_norm(y, n) for y, n in ((dt, "dt"), (b, "b"), (c, "c")))
        dt = f.softplus(f.linear(dt, w.get(role + "dt"), w.get(role + "dt.bias"))).float()
        rate = -w.get(role + "a_log").float().exp()
        out = self._scan(xs.float(), dt, b.float(), c.float(), rate, cache)
        out = out + xs.float() * w.get(role + "d").float()
        out = (out * f.silu(z.float())).to(x.dtype)
        bias = w.maybe(role + "out.bias") if w.all.rank == 0 else None
        return f.linear(out, w.get(role + "out"), bias)

    def _inner_norm(self, y: Tensor, name: str) -> Tensor:
        role = f"norms.linear_{name}"
        if self.w.has(role):
            return normalize(y, "rms", self.w.get(role), None, self.numerics.eps)
        if "mixer_rms_eps" in self.numerics.multipliers:
            return normalize(y, "rms_plain", None, None, self.numerics.factor("mixer_rms_eps"))
        return y

    def _scan(
        self, x: Tensor, dt: Tensor, b: Tensor, c: Tensor, rate: Tensor, cache: LayerCache
    ) -> Tensor:
        """x, dt (B, T, inner), b and c (B, T, n), rate (inner, n); token by token."""
        state = cache.states.get("recurrent")
        if state is None:
            state = x.new_zeros(x.shape[0], x.shape[2], b.shape[2])
        out = []
        for t in range(x.shape[1]):
            step = dt[:, t, :, None]
            state = state * (step * rate).exp() + (step * x[:, t, :, None]) * b[:, t, None, :]
            out.append((state @ c[:, t, :, None])[..., 0])
        cache.states["recurrent"] = state
        return torch.stack(out, dim=1)
