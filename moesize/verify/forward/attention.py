"""Grouped-query attention: full, windowed, chunked, with sinks, gates and shared caches.

B sequences, N query heads, K KV heads, T new tokens, S cached ones, d head size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as f
from torch import Tensor

from moesize.core.compute import INDEX_BLOCK_TOKENS
from moesize.core.errors import UnsupportedError
from moesize.core.tensors import Shard
from moesize.core.units import ceil_div
from moesize.verify.forward.norms import normalize, normalize_inside, normalize_over_ranks
from moesize.verify.forward.rotary import rotate
from moesize.verify.layouts import local_units

if TYPE_CHECKING:
    from moesize.core.attention import GroupedQueryAttention
    from moesize.verify.forward.caches import LayerCache
    from moesize.verify.forward.numerics import NormKind, Numerics
    from moesize.verify.forward.step import Step
    from moesize.verify.forward.weights import LayerWeights


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Which cached tokens a position sees, and how scores are treated.

    query_block   rows of queries that are scored at once: bounds the memory of a prompt, and with
                  1 nothing is scored that a causal mask would throw away
    masked_window   like a window, but what lies before it is scored all the same (GPT-Neo)
    """

    scale: float
    window: int | None = None
    chunk: int | None = None
    softcap: float = 0.0
    query_block: int = 128
    causal: bool = True
    masked_window: int = 0

    def first(self, position: int) -> int:
        """Oldest position that `position` sees."""
        if self.chunk:
            return position - position % self.chunk
        return max(0, position - self.window + 1) if self.window else 0


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    reach: Reach,
    *,
    start: int,
    first_key: int = 0,
    sinks: Tensor | None = None,
    bias: Tensor | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """q (B, N, T, d) at positions start.., k (B, K, S, d), v (B, K, S, dv) -> (B, N, T, dv).

    first_key: position of k's first row. sinks (N): a logit that takes part in the softmax only.
    bias (N): slope of ALiBi. kept (B, G, T, blocks): blocks of keys that each of G groups of heads
    attends to; the others are scored and hidden.
    """
    out = []
    for a in range(0, q.shape[2], reach.query_block):
        b = a + reach.query_block
        own = None if kept is None else kept[:, :, a:b]
        out.append(_attend_rows(q[:, :, a:b], k, v, reach, start + a, first_key, sinks, bias, own))
    return out[0] if len(out) == 1 else torch.cat(out, dim=2)


def _attend_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    reach: Reach,
    start: int,
    first_key: int,
    sinks: Tensor | None,
    slopes: Tensor | None,
    kept: Tensor | None,
) -> Tensor:
    b, n, t, d = q.shape
    end = start + t if reach.causal else first_key + k.shape[2]
    low = max(reach.first(start), first_key) if reach.causal else first_key
    keys, values = (x[:, :, low - first_key : end - first_key] for x in (k, v))
    groups = k.shape[1]
    grouped = q.reshape(b, groups, n // groups * t, d)
    scores = (grouped @ keys.transpose(-1, -2)).reshape(b, n, t, -1).float() * reach.scale
    if reach.softcap:
        scores = reach.softcap * torch.tanh(scores / reach.softcap)
    if slopes is not None:
        scores = scores + slopes[:, None, None] * torch.arange(low, end, device=q.device)
    masked = t > 1 or reach.first(start) > low or reach.masked_window
    if reach.causal and masked:
        scores = scores.masked_fill(~_visible(start, t, low, end, reach, q.device), float("-inf"))
    if kept is not None:
        by_key = kept.repeat_interleave(INDEX_BLOCK_TOKENS, dim=-1)[..., low:end]
        by_head = by_key.repeat_interleave(n // kept.shape[1], dim=1)
        scores = scores.masked_fill(~by_head, float("-inf"))
    if sinks is None:
        weights = scores.softmax(-1)
    else:
        column = sinks.float()[None, :, None, None].expand(b, n, t, 1)
        weights = torch.cat((scores, column), dim=-1).softmax(-1)[..., :-1]
    mixed = weights.to(v.dtype).reshape(b, groups, n // groups * t, -1) @ values
    return mixed.reshape(b, n, t, -1)


def _visible(
    start: int, count: int, low: int, end: int, reach: Reach, device: torch.device
) -> Tensor:
    """(count, end - low): which keys each of `count` positions sees."""
    position = torch.arange(start, start + count, device=device)[:, None]
    key = torch.arange(low, end, device=device)[None, :]
    seen = key <= position
    for window in (reach.window, reach.masked_window):
        if window:
            seen &= key > position - window
    if reach.chunk:
        seen &= key >= position - position % reach.chunk
    return seen


def local(mixer: GroupedQueryAttention, size: int) -> GroupedQueryAttention:
    """The mixer as one of `size` ranks sees it."""
    if size == 1:
        return mixer
    heads = local_units(mixer.num_heads, size)
    groups = local_units(mixer.num_kv_heads, size, replicate=True)
    index = local_units(mixer.index_heads, size, replicate=True) if mixer.index_heads else 0
    return replace(mixer, num_heads=heads, num_kv_heads=groups, index_heads=index)


class GroupedQuery:
    """One layer's grouped-query attention."""

    def __init__(
        self, mixer: GroupedQueryAttention, numerics: Numerics, weights: LayerWeights
    ) -> None:
        if mixer.relative_buckets or mixer.cross:
            raise UnsupportedError("attention of encoder-decoder models has no forward pass yet")
        self.mixer = local(mixer, weights.all.size)
        self.numerics = numerics
        self.w = weights

    def __call__(self, x: Tensor, step: Step, cache: LayerCache) -> Tensor:
        """x (B, T, H) -> (B, T, H), this rank's part of the sum."""
        num, w = self.numerics, self.w
        q, gate = self._queries(x)
        q = self._place(self._normed(q, "q", step), step, "q")
        if num.temperature is not None and self._tempered():
            q = q * step.temperature(*num.temperature).to(q.dtype)
        k, v, first = self._cached(x, step, cache)
        mixed = attend(
            q,
            k,
            v,
            self._reach(step),
            start=step.start,
            first_key=first,
            sinks=w.maybe("attention.sinks"),
            bias=self._slopes(x.device) if num.alibi else None,
            kept=self._blocks(x, step, cache) if self.mixer.index_heads else None,
        )
        out = mixed.transpose(1, 2)
        if gate is not None:
            out = out * gate.to(out.dtype)
        out = out.flatten(2)
        if w.has("norms.attention_inner"):
            out = normalize_inside(out, num.norm, "norms.attention_inner", num.eps, w, step)
        bias = w.maybe("attention.o.bias") if w.all.rank == 0 else None
        return f.linear(out, w.get("attention.o"), bias)

    def _blocks(self, x: Tensor, step: Step, cache: LayerCache) -> Tensor:
        """Blocks of keys that each token attends to, (B, index heads, T, blocks).

        A block is worth its best key; the newest ones are always among the chosen (MiniMax-M3).
        """
        m, w, num = self.mixer, self.w, self.numerics
        rope = num.rope(w.index)

        def placed(part: str, heads: int) -> Tensor:
            y = f.linear(x, w.get(f"attention.indexer.{part}")).unflatten(-1, (heads, -1))
            y = normalize(y, num.norm, w.get(f"norms.indexer_{part}"), None, num.eps)
            y = y.transpose(1, 2)
            return y if rope is None else rotate(y, rope, step.angles(rope))

        q = placed("q", m.index_heads)
        store = cache.store("index")
        keys = store.append(placed("k", 1))
        store.trim(keys)
        blocks = ceil_div(keys.shape[2], INDEX_BLOCK_TOKENS)
        out = []
        for a in range(0, step.count, step.query_block):
            b = min(a + step.query_block, step.count)
            seen = step.start + b
            scores = (q[:, :, a:b] @ keys[:, :, :seen].transpose(-1, -2)).float()
            position = torch.arange(step.start + a, seen, device=x.device)[:, None]
            later = torch.arange(seen, device=x.device) > position
            scores = scores.masked_fill(later, float("-inf"))
            scores = f.pad(scores, (0, blocks * INDEX_BLOCK_TOKENS - seen), value=float("-inf"))
            worth = scores.unflatten(-1, (blocks, -1)).amax(-1)
            number = torch.arange(blocks, device=x.device)
            newest = position // INDEX_BLOCK_TOKENS
            local = (number <= newest) & (number > newest - num.local_blocks)
            worth = worth.masked_fill(local, float("inf"))
            best = worth.topk(min(m.index_top_k, blocks), dim=-1).indices
            out.append(torch.zeros_like(worth, dtype=torch.bool).scatter_(-1, best, True))
        return torch.cat(out, dim=2)

    def _slopes(self, device: torch.device) -> Tensor:
        """Of the rank's heads among all of them."""
        slopes = _slopes(self.mixer.num_heads * self.w.all.size).to(device)
        return self.w.all.cut(slopes, Shard(0, len(slopes)))

    def _reach(self, step: Step) -> Reach:
        m, num, w = self.mixer, self.numerics, self.w.index
        scale = m.head_dim**-0.5 if num.attention_scale is None else num.attention_scale
        return Reach(
            scale=scale,
            window=m.window + num.window_shift if m.window else None,
            chunk=m.chunk,
            softcap=num.attention_softcap,
            query_block=step.query_block,
            masked_window=num.masked_windows[w] if num.masked_windows else 0,
        )

    def _tempered(self) -> bool:
        return self.numerics.temperature_everywhere or self._rope() is None

    def _rope(self) -> object:
        return self.numerics.rope(self.w.index)

    def _queries(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """q (B, N, T, d) and the output gate (B, T, N, dv or 1)."""
        m, w = self.mixer, self.w
        if m.query_rank:
            latent = f.linear(x, w.get("attention.q_a"))
            latent = normalize(
                latent, self.numerics.norm, w.get("norms.q_a"), None, self.numerics.eps
            )
            q = f.linear(latent, w.get("attention.q_b"))
        else:
            q = f.linear(x, w.get("attention.q"), w.maybe("attention.q.bias"))
        q = self._clipped(q).unflatten(-1, (m.num_heads, -1))
        gate = None
        if m.gate == "elementwise":
            q, gate = q.chunk(2, dim=-1)
            gate = torch.sigmoid(gate)
        elif m.gate != "none":
            gate = f.linear(x, w.get("attention.gate")).unflatten(-1, (m.num_heads, -1))
            gate = self._gate(gate)
        return q.transpose(1, 2), gate

    def _gate(self, gate: Tensor) -> Tensor:
        if self.numerics.multipliers.get("softplus_gate"):
            return f.softplus(gate.float())
        return torch.sigmoid(gate)

    def _clipped(self, x: Tensor) -> Tensor:
        limit = self.numerics.clip_qkv
        return x.clamp(-limit, limit) if limit else x

    def _normed(self, x: Tensor, which: str, step: Step) -> Tensor:
        """The norm of queries or keys that comes before the rotation."""
        return x if self.numerics.qk_norm_after_rope else self._qk_norm(x, which, step)

    def _qk_norm(self, x: Tensor, which: str, step: Step) -> Tensor:
        """x (B, heads, T, d)."""
        num, m, w = self.numerics, self.mixer, self.w
        kind: NormKind = num.qk_norm or num.norm
        eps = num.eps
        if kind.endswith("plain") and num.qk_norm:
            on = not num.qk_norm_layers or num.qk_norm_layers[w.index]
            return normalize(x, kind, None, None, eps) if on else x
        if m.qk_norm == "none":
            return x
        weight = w.get(f"norms.{which}")
        if m.qk_norm == "head":
            return normalize(x, kind, weight, w.maybe(f"norms.{which}.bias"), eps)
        if m.qk_norm == "per_head":
            weight = weight.reshape(-1, m.head_dim)[:, None, :]
            return normalize(x, kind, weight, None, eps)
        joined = x.transpose(1, 2).flatten(2)
        joined = normalize_over_ranks(joined, weight, eps, step.reduce, w.all.size)
        return joined.unflatten(-1, (-1, m.head_dim)).transpose(1, 2)

    def _place(self, x: Tensor, step: Step, which: str) -> Tensor:
        rope = self.numerics.rope(self.w.index)
        if rope is not None:
            x = rotate(x, rope, step.angles(rope))
        return self._qk_norm(x, which, step) if self.numerics.qk_norm_after_rope else x

    def _cached(self, x: Tensor, step: Step, cache: LayerCache) -> tuple[Tensor, Tensor, int]:
        """All keys and values that the new tokens may see, and the position of the first."""
        m, num, w = self.mixer, self.numerics, self.w
        if m.shares_kv:
            return step.shared_kv(w.index)
        k = f.linear(x, w.get("attention.k"), w.maybe("attention.k.bias")) * num.factor("key")
        v = k
        if not m.key_is_value:
            v = f.linear(x, w.get("attention.v"), w.maybe("attention.v.bias"))
            v = v * num.factor("value") if num.factor("value") != 1.0 else v
        k, v = (
            self._clipped(y).unflatten(-1, (m.num_kv_heads, -1)).transpose(1, 2) for y in (k, v)
        )
        if num.v_norm:
            v = normalize(v, num.v_norm, None, None, num.eps)
        k = self._place(self._normed(k, "k", step), step, "k")
        window = m.window or m.chunk
        keys, values = cache.store("key", window), cache.store("value", window)
        first = keys.first
        all_k, all_v = keys.append(k), values.append(v)
        step.publish_kv(w.index, all_k, all_v, first)
        keys.trim(all_k)
        values.trim(all_v)
        return all_k, all_v, first


def _slopes(heads: int) -> Tensor:
    """ALiBi (arXiv 2108.12409): a power of two of heads; others take every second of the next."""
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    slopes += [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(heads - power)]
    return torch.tensor(slopes)
