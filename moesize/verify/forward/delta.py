"""The gated delta rule: one decay per head (Gated DeltaNet) or per channel (Kimi).

S (dk, dv) is a head's state. A token decays it, replaces what the key holds, and reads it:

    S = decay * S;  S += k (beta * (v - S^T k))^T;  o = S^T q

A prompt takes DELTA_CHUNK tokens at once in the WY form (arXiv 2412.06464, section 3): the tokens'
corrections u solve (I + A) u = beta (v - K' S), A strictly lower triangular.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as f
from torch import Tensor

from moesize.core.compute import DELTA_CHUNK
from moesize.verify.forward.convolution import causal_conv
from moesize.verify.forward.norms import normalize, unit_length
from moesize.verify.layouts import local_units

if TYPE_CHECKING:
    from moesize.core.recurrent import GatedDeltaNet, KimiDeltaAttention
    from moesize.verify.forward.caches import LayerCache
    from moesize.verify.forward.numerics import Numerics
    from moesize.verify.forward.step import Step
    from moesize.verify.forward.weights import LayerWeights


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """q, k (B, N, T, dk), v (B, N, T, dv), log_decay (B, N, T, 1 or dk), beta (B, N, T, 1).

    Returns (B, N, T, dv) and the state (B, N, dk, dv) after the last token.
    """
    if q.shape[2] == 1:
        return _one_token(q, k, v, log_decay, beta, state)
    out = []
    for a in range(0, q.shape[2], DELTA_CHUNK):
        rows = slice(a, a + DELTA_CHUNK)
        mixed, state = _chunk(
            q[:, :, rows],
            k[:, :, rows],
            v[:, :, rows],
            log_decay[:, :, rows],
            beta[:, :, rows],
            state,
        )
        out.append(mixed)
    return torch.cat(out, dim=2), state


def _one_token(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    state = state * log_decay.exp().transpose(-1, -2)
    correction = beta * (v - k @ state)
    state = state + k.transpose(-1, -2) @ correction
    return q @ state, state


def _chunk(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    total = log_decay.cumsum(2)
    size = q.shape[2]
    own = total.exp()
    if log_decay.shape[-1] == 1:
        # Differences first: exp of a difference of sums never overflows below the diagonal.
        between = (total - total.transpose(-1, -2)).exp().tril()
        scores = (k @ k.transpose(-1, -2)) * between
        reads = (q @ k.transpose(-1, -2)) * between
    else:
        # One decay per channel cannot be taken out of the product; float64 holds both factors.
        # Apple's devices have none; there a decay below exp(-88) over a chunk would overflow.
        wide = torch.float32 if q.device.type == "mps" else torch.float64
        ahead, right = total.to(wide).exp(), k.to(wide) * (-total.to(wide)).exp()
        scores = ((k.to(wide) * ahead) @ right.transpose(-1, -2)).tril().to(k.dtype)
        reads = ((q.to(wide) * ahead) @ right.transpose(-1, -2)).tril().to(k.dtype)
    lower = (scores * beta).tril(-1)
    unit = torch.eye(size, dtype=lower.dtype, device=lower.device).expand_as(lower)
    inverse = torch.linalg.solve_triangular(lower + unit, unit, upper=False, unitriangular=True)
    values = inverse @ (v * beta)
    keys = inverse @ (k * own * beta)
    correction = values - keys @ state
    out = (q * own) @ state + reads @ correction
    rest = (total[:, :, -1:] - total).exp()
    last = own[:, :, -1:].transpose(-1, -2)
    return out, state * last + (k * rest).transpose(-1, -2) @ correction


class GatedDelta:
    """Qwen3-Next, Qwen3.5, OLMo-Hybrid."""

    def __init__(self, mixer: GatedDeltaNet, numerics: Numerics, weights: LayerWeights) -> None:
        size = weights.all.size
        self.whole = mixer
        self.mixer = replace(
            mixer,
            num_k_heads=local_units(mixer.num_k_heads, size),
            num_v_heads=local_units(mixer.num_v_heads, size),
        )
        self.numerics = numerics
        self.w = weights

    def __call__(self, x: Tensor, step: Step, cache: LayerCache) -> Tensor:
        """x (B, T, H) -> (B, T, H), this rank's part of the sum."""
        m, w, num = self.mixer, self.w, self.numerics
        qkv, z, b, a = self._split(x) if self.whole.split_projections else self._fused(x)
        qkv = f.silu(causal_conv(qkv, self._conv(), None, cache))
        q, k, v = qkv.split([m.key_size, m.key_size, m.value_size], dim=-1)
        groups = m.num_v_heads // m.num_k_heads
        q, k = (
            unit_length(
                y.unflatten(-1, (m.num_k_heads, -1)).transpose(1, 2).float()
            ).repeat_interleave(groups, 1)
            for y in (q, k)
        )
        v = v.unflatten(-1, (m.num_v_heads, -1)).transpose(1, 2).float()
        beta = torch.sigmoid(b).float().transpose(1, 2)[..., None]
        if num.negative_eigenvalues:
            beta = 2 * beta
        rate = -w.get("attention.linear.a_log").float().exp()
        decay = rate * f.softplus(a.float() + w.get("attention.linear.dt_bias").float())
        decay = decay.transpose(1, 2)[..., None]
        state = cache.states.get("recurrent")
        if state is None:
            state = q.new_zeros(q.shape[0], m.num_v_heads, m.k_head_dim, m.v_head_dim)
        out, state = delta_rule(q * m.k_head_dim**-0.5, k, v, decay, beta, state)
        cache.states["recurrent"] = state
        out = out.transpose(1, 2).to(x.dtype)
        eps = num.eps if num.linear_eps is None else num.linear_eps
        normed = normalize(out, "rms", w.get("norms.linear"), None, eps)
        gate = f.silu(z.unflatten(-1, (m.num_v_heads, -1)).float())
        mixed = (normed.float() * gate).to(x.dtype)
        return f.linear(mixed.flatten(2), w.get("attention.linear.out"))

    def _fused(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Qwen3-Next: rows of one key head's q, k, v and z stand together."""
        m, w = self.mixer, self.w
        per = m.num_v_heads // m.num_k_heads
        by_head = f.linear(x, w.get("attention.linear.qkvz")).unflatten(-1, (m.num_k_heads, -1))
        sizes = [m.k_head_dim, m.k_head_dim, per * m.v_head_dim, per * m.v_head_dim]
        q, k, v, z = (part.flatten(2) for part in by_head.split(sizes, dim=-1))
        by_head = f.linear(x, w.get("attention.linear.ba")).unflatten(-1, (m.num_k_heads, -1))
        b, a = (part.flatten(2) for part in by_head.split([per, per], dim=-1))
        return torch.cat((q, k, v), dim=-1), z, b, a

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        w = self.w
        qkv = torch.cat(w.sections("attention.linear.qkv"))
        z, b, a = (f.linear(x, w.get(f"attention.linear.{part}")) for part in "zba")
        return f.linear(x, qkv), z, b, a

    def _conv(self) -> Tensor:
        return torch.cat(self.w.sections("attention.linear.conv"))


class KimiDelta:
    """Kimi delta attention: a decay per channel, three convolutions, a sigmoid gate."""

    def __init__(
        self, mixer: KimiDeltaAttention, numerics: Numerics, weights: LayerWeights
    ) -> None:
        self.mixer = replace(mixer, num_heads=local_units(mixer.num_heads, weights.all.size))
        self.numerics = numerics
        self.w = weights

    def __call__(self, x: Tensor, step: Step, cache: LayerCache) -> Tensor:
        """x (B, T, H) -> (B, T, H), this rank's part of the sum."""
        m, w, num = self.mixer, self.w, self.numerics
        q, k, v = (self._stream(x, part, cache) for part in "qkv")
        q, k = unit_length(q), unit_length(k)
        beta = torch.sigmoid(f.linear(x, w.get("attention.linear.b")).float())
        beta = beta.transpose(1, 2)[..., None]
        state = cache.states.get("recurrent")
        if state is None:
            state = q.new_zeros(q.shape[0], m.num_heads, m.head_dim, m.head_dim)
        out, state = delta_rule(q * m.head_dim**-0.5, k, v, self._decay(x), beta, state)
        cache.states["recurrent"] = state
        normed = normalize(
            out.transpose(1, 2).to(x.dtype), "rms", w.get("norms.linear"), None, num.eps
        )
        gate = torch.sigmoid(self._low_rank(x, "g").unflatten(-1, (m.num_heads, -1)).float())
        mixed = (normed.float() * gate).to(x.dtype)
        return f.linear(mixed.flatten(2), w.get("attention.linear.out"))

    def _stream(self, x: Tensor, part: str, cache: LayerCache) -> Tensor:
        """q, k or v: (B, N, T, d) in float32."""
        w = self.w
        projected = f.linear(x, w.get(f"attention.linear.{part}"))
        kernel = w.get(f"attention.linear.{part}_conv").to(projected.dtype)
        mixed = f.silu(causal_conv(projected, kernel, None, cache, f"{part}_conv"))
        return mixed.unflatten(-1, (self.mixer.num_heads, -1)).transpose(1, 2).float()

    def _low_rank(self, x: Tensor, part: str) -> Tensor:
        w = self.w
        role = f"attention.linear.{part}"
        if w.has(role):
            return f.linear(x, w.get(role))
        return f.linear(f.linear(x, w.get(role + "_a")), w.get(role + "_b"))

    def _decay(self, x: Tensor) -> Tensor:
        """Logarithm of the decay, (B, N, T, d)."""
        w, m = self.w, self.mixer
        raw = self._low_rank(x, "f").float() + w.get("attention.linear.dt_bias").float().flatten()
        raw = raw.unflatten(-1, (m.num_heads, -1))
        rate = w.get("attention.linear.a_log").float().flatten().exp()[:, None]
        bound = self.numerics.decay_bound
        if bound:
            return (bound * torch.sigmoid(rate * raw)).transpose(1, 2)
        return (-rate * f.softplus(raw)).transpose(1, 2)
