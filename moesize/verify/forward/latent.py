"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434) and its lightning indexer (V3.2).

A prompt expands the latent into keys and values; a decode step absorbs the expansion into the
query and the output, so that only the latent is read. Sparse layers stay absorbed.
r latent rank, N heads; cache rows are (r + rope) wide.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as f
from torch import Tensor

from moesize.core.errors import UnsupportedError
from moesize.verify.forward.attention import Reach, attend
from moesize.verify.forward.norms import normalize
from moesize.verify.forward.rotary import rotate
from moesize.verify.layouts import local_units

if TYPE_CHECKING:
    from moesize.core.attention import Indexer, LatentAttention
    from moesize.verify.forward.caches import LayerCache
    from moesize.verify.forward.numerics import Numerics
    from moesize.verify.forward.step import Step
    from moesize.verify.forward.weights import LayerWeights


class Latent:
    """One layer's latent attention."""

    def __init__(self, mixer: LatentAttention, numerics: Numerics, weights: LayerWeights) -> None:
        if mixer.sinks:
            raise UnsupportedError("latent attention with sinks has no forward pass yet")
        self.mixer = replace(mixer, num_heads=local_units(mixer.num_heads, weights.all.size))
        self.numerics = numerics
        self.w = weights
        self.lightning = None
        if mixer.indexer is not None:
            self.lightning = LightningIndexer(mixer, mixer.indexer, numerics, weights)

    def __call__(self, x: Tensor, step: Step, cache: LayerCache) -> Tensor:
        """x (B, T, H) -> (B, T, H), this rank's part of the sum."""
        m, w, num = self.mixer, self.w, self.numerics
        query_in = self._query_latent(x)
        q = f.linear(query_in, w.get("attention.q" if m.q_lora_rank is None else "attention.q_b"))
        q = q.unflatten(-1, (m.num_heads, -1)).transpose(1, 2)
        q_nope, q_rope = q.split([m.qk_nope_head_dim, m.qk_rope_head_dim], dim=-1)
        q_rope = self._turn(q_rope, step)
        if num.temperature is not None:
            factor = step.temperature(*num.temperature).to(q.dtype)
            q_nope, q_rope = q_nope * factor, q_rope * factor
        latent = self._latent(x, step, cache)
        chosen = self._chosen(x, query_in, step, cache)
        if chosen is not None:
            out = self._sparse(q_nope, q_rope, latent, chosen, step)
        elif step.count == 1:
            out = self._absorbed(q_nope, q_rope, latent, step)
        else:
            out = self._expanded(q_nope, q_rope, latent, step)
        out = out.transpose(1, 2)
        if m.output_gate or m.head_gate:
            gate = f.linear(x, w.get("attention.gate")).unflatten(-1, (m.num_heads, -1))
            out = out * torch.sigmoid(gate)
        bias = w.maybe("attention.o.bias") if w.all.rank == 0 else None
        return f.linear(out.flatten(2), w.get("attention.o"), bias)

    def _query_latent(self, x: Tensor) -> Tensor:
        w, num = self.w, self.numerics
        if self.mixer.q_lora_rank is None:
            return x
        down = f.linear(x, w.get("attention.q_a"), w.maybe("attention.q_a.bias"))
        return normalize(down, num.norm, w.get("norms.q_a"), None, num.latent_eps)

    def _turn(self, x: Tensor, step: Step) -> Tensor:
        rope = self.numerics.rope(self.w.index)
        return x if rope is None else rotate(x, rope, step.angles(rope))

    def _latent(self, x: Tensor, step: Step, cache: LayerCache) -> Tensor:
        """All latents and rope keys so far, (B, S, r + rope)."""
        m, w, num = self.mixer, self.w, self.numerics
        joined = f.linear(x, w.get("attention.kv_a"), w.maybe("attention.kv_a.bias"))
        latent, key = joined.split([m.kv_lora_rank, m.qk_rope_head_dim], dim=-1)
        latent = normalize(latent, num.norm, w.get("norms.kv_a"), None, num.latent_eps)
        key = self._turn(key[:, None], step)
        store = cache.store("latent")
        rows = store.append(torch.cat((latent[:, None], key), dim=-1))
        store.trim(rows)
        return rows[:, 0]

    def _up(self) -> tuple[Tensor, Tensor]:
        """kv_b by head: keys (N, nope, r), values (N, v, r)."""
        m = self.mixer
        by_head = self.w.get("attention.kv_b").unflatten(0, (m.num_heads, -1))
        return by_head[:, : m.qk_nope_head_dim], by_head[:, m.qk_nope_head_dim :]

    def _scale(self) -> float:
        m = self.mixer
        if self.numerics.attention_scale is not None:
            return self.numerics.attention_scale
        return (m.qk_nope_head_dim + m.qk_rope_head_dim) ** -0.5

    def _reach(self, step: Step) -> Reach:
        return Reach(scale=self._scale(), query_block=step.query_block)

    def _expanded(self, q_nope: Tensor, q_rope: Tensor, rows: Tensor, step: Step) -> Tensor:
        m = self.mixer
        latent, key = rows.split([m.kv_lora_rank, m.qk_rope_head_dim], dim=-1)
        up = f.linear(latent, self.w.get("attention.kv_b"))
        up = up.unflatten(-1, (m.num_heads, -1)).transpose(1, 2)
        k_nope, v = up.split([m.qk_nope_head_dim, m.v_head_dim], dim=-1)
        k = torch.cat((k_nope, key[:, None].expand(-1, m.num_heads, -1, -1)), dim=-1)
        q = torch.cat((q_nope, q_rope), dim=-1)
        return attend(q, k, v, self._reach(step), start=step.start)

    def _absorb(self, q_nope: Tensor, q_rope: Tensor) -> Tensor:
        """Queries against the cache rows, (B, N, T, r + rope)."""
        keys, _ = self._up()
        return torch.cat((q_nope @ keys, q_rope), dim=-1)

    def _absorbed(self, q_nope: Tensor, q_rope: Tensor, rows: Tensor, step: Step) -> Tensor:
        q = self._absorb(q_nope, q_rope)
        latent = rows[..., : self.mixer.kv_lora_rank]
        mixed = attend(q, rows[:, None], latent[:, None], self._reach(step), start=step.start)
        return mixed @ self._up()[1].transpose(-1, -2)

    # --- Sparse choice --------------------------------------------------------------------------

    def _chosen(self, x: Tensor, latent: Tensor, step: Step, cache: LayerCache) -> Tensor | None:
        """Positions that each new token attends to, (B, T, k), -1 for none; None = all."""
        if self.lightning is not None:
            step.topk = self.lightning(x, latent, step, cache)
            return step.topk
        return step.topk if self.mixer.index_shared else None

    def _sparse(
        self, q_nope: Tensor, q_rope: Tensor, rows: Tensor, chosen: Tensor, step: Step
    ) -> Tensor:
        """Every token with rows of its own choice."""
        q = self._absorb(q_nope, q_rope)
        rank = self.mixer.kv_lora_rank
        out = []
        for a in range(0, step.count, step.query_block):
            picks = chosen[:, a : a + step.query_block]
            # No column that none of these tokens fills.
            picks = picks[..., : min(picks.shape[-1], step.start + a + picks.shape[1])]
            own = _gather(rows, picks)
            queries = q[:, :, a : a + step.query_block].transpose(1, 2)
            scores = (queries @ own.transpose(-1, -2)).float() * self._scale()
            scores = scores.masked_fill((picks < 0)[:, :, None], float("-inf"))
            out.append((scores.softmax(-1).to(own.dtype) @ own[..., :rank]).transpose(1, 2))
        mixed = torch.cat(out, dim=2)
        return mixed @ self._up()[1].transpose(-1, -2)


def _gather(rows: Tensor, picks: Tensor) -> Tensor:
    """rows (B, S, w), picks (B, T, k) -> (B, T, k, w)."""
    batch = torch.arange(rows.shape[0], device=rows.device)[:, None, None]
    return rows[batch, picks.clamp(min=0)]


class LightningIndexer:
    """Scores every cached token with a few small heads and keeps the best."""

    def __init__(
        self, mixer: LatentAttention, indexer: Indexer, numerics: Numerics, weights: LayerWeights
    ) -> None:
        if indexer.pool > 1:
            raise UnsupportedError("an indexer with pooled keys has no forward pass yet")
        self.indexer = indexer
        self.rope_size = mixer.qk_rope_head_dim
        self.numerics = numerics
        self.w = weights

    def __call__(self, x: Tensor, latent: Tensor, step: Step, cache: LayerCache) -> Tensor:
        """Chosen positions (B, T, k), best first; -1 where there are fewer.

        The Hadamard turn of the released kernel leaves dot products as they are and is left out.
        """
        ix, w = self.indexer, self.w
        q = f.linear(latent, w.get("attention.indexer.q_b"))
        q = self._turn(q.unflatten(-1, (ix.num_heads, -1)).transpose(1, 2), step)
        k = f.linear(x, w.get("attention.indexer.k"))
        k = normalize(k, "layer", w.get("norms.indexer_k"), w.maybe("norms.indexer_k.bias"), 1e-6)
        store = cache.store("index")
        keys = store.append(self._turn(k[:, None], step))
        store.trim(keys)
        weights = f.linear(x, w.get("attention.indexer.weights")).float()
        weights = weights * (ix.num_heads * ix.head_dim) ** -0.5
        most = min(ix.top_k, keys.shape[2])
        out = []
        for a in range(0, step.count, step.query_block):
            b = min(a + step.query_block, step.count)
            seen = keys[:, :, : step.start + b]
            scores = f.relu((q[:, :, a:b] @ seen.transpose(-1, -2)).float())
            # Weighted over heads element by element: no matrix product that a formula would count.
            scores = (scores * weights[:, a:b].transpose(1, 2)[..., None]).sum(1)
            position = torch.arange(step.start + a, step.start + b, device=x.device)
            future = torch.arange(seen.shape[2], device=x.device) > position[:, None]
            scores = scores.masked_fill(future, float("-inf"))
            best = scores.topk(min(most, seen.shape[2]), dim=-1)
            picks = best.indices.masked_fill(best.values == float("-inf"), -1)
            out.append(f.pad(picks, (0, most - picks.shape[-1]), value=-1))
        return torch.cat(out, dim=1)

    def _turn(self, x: Tensor, step: Step) -> Tensor:
        rope = self.numerics.rope(self.w.index)
        if rope is None:
            return x
        interleaved = bool(self.numerics.multipliers.get("indexer_interleaved"))
        rope = replace(rope, size=self.rope_size, interleaved=interleaved)
        return rotate(x, rope, step.angles(rope))
