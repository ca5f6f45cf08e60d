"""Compressed attention (DeepSeek-V4): a window of raw tokens, and states that stand for many each.

One head of d elements is key and value at once. Every `ratio` tokens leave one compressed state, a
softmax over the window of learned gates, element by element; at ratio 4 neighbouring windows
overlap, and an indexer picks `top_k` of the states. N query heads, W windows, r overlap.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as f
from torch import Tensor

from moesize.verify.forward.norms import normalize
from moesize.verify.forward.rotary import angles, rotate
from moesize.verify.layouts import local_units

if TYPE_CHECKING:
    from moesize.core.attention import CompressedAttention
    from moesize.verify.forward.caches import LayerCache
    from moesize.verify.forward.numerics import Numerics, Rope
    from moesize.verify.forward.step import Step
    from moesize.verify.forward.weights import LayerWeights


def _turn_end(x: Tensor, rope: Rope, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """The last `size` elements of every head turned."""
    kept, turning = x.split([x.shape[-1] - rope.size, rope.size], dim=-1)
    return torch.cat((kept, rotate(turning, rope, cos_sin)), dim=-1)


class Compressor:
    """Joins every `ratio` tokens of a stream into one state of `size` elements."""

    def __init__(
        self,
        mixer: CompressedAttention,
        part: str,
        size: int,
        numerics: Numerics,
        weights: LayerWeights,
    ) -> None:
        self.ratio, self.overlap = mixer.compress_ratio, mixer.overlap
        self.part, self.size = part, size
        self.numerics = numerics
        self.w = weights

    def __call__(self, x: Tensor, step: Step, cache: LayerCache) -> Tensor:
        """x (B, T, H) -> all states so far (B, W, size), in the type of x."""
        windows, before = self._windows(x, step, cache)
        made = self._join(windows, before).to(x.dtype)
        weight = self.w.get(f"norms.{self.part}")
        made = normalize(made, self.numerics.norm, weight, None, self.numerics.eps)
        store = cache.store(self.part, ratio=self.ratio)
        rope = self.numerics.rope(self.w.index)
        if rope is not None and made.shape[1]:
            first = step.start // self.ratio
            places = torch.arange(first, first + made.shape[1], device=x.device) * self.ratio
            made = _turn_end(made, rope, angles(rope, places))
        rows = store.append(made[:, None])
        store.trim(rows)
        return rows[:, 0]

    def _windows(self, x: Tensor, step: Step, cache: LayerCache) -> tuple[Tensor, Tensor]:
        """Whole windows (B, 2, W, ratio, r * size), and the one before the first.

        Values stand before gates. What fills no window yet, and the last whole one where windows
        overlap, stay in the state (B, 2, r * ratio, r * size), in float32.
        """
        ratio, role = self.ratio, f"attention.{self.part}"
        values = f.linear(x, self.w.get(f"{role}.kv")).float()
        gates = f.linear(x, self.w.get(f"{role}.gate")).float()
        places = (step.start + torch.arange(step.count, device=x.device)) % ratio
        gates = gates + self.w.get(f"{role}.ape").float()[places]
        state = cache.states.get(self.part)
        if state is None:
            state = values.new_zeros(x.shape[0], 2, self.overlap * ratio, values.shape[-1])
            state[:, 1] = float("-inf")  # nothing stands before the first window
        before, begun = state[:, :, :-ratio], state[:, :, -ratio:][:, :, : step.start % ratio]
        stream = torch.cat((begun, torch.stack((values, gates), dim=1)), dim=2)
        whole = stream.shape[2] // ratio
        windows = stream[:, :, : whole * ratio].unflatten(2, (whole, ratio))
        rest = stream[:, :, whole * ratio :]
        kept = state.clone()
        kept[:, :, -ratio:][:, :, : rest.shape[2]] = rest
        if self.overlap > 1 and whole:
            kept[:, :, :-ratio] = windows[:, :, -1]
        cache.states[self.part] = kept
        return windows, before

    def _join(self, windows: Tensor, before: Tensor) -> Tensor:
        """(B, W, size): values weighted by the softmax of their gates over the window.

        Overlapping windows see the first half of the elements of the one before.
        """
        if self.overlap > 1:
            earlier = torch.cat((before[:, :, None], windows[:, :, :-1]), dim=2)
            if not windows.shape[2]:
                earlier = windows
            size = self.size
            windows = torch.cat((earlier[..., :size], windows[..., size:]), dim=3)
        values, gates = windows.unbind(1)
        return (values * gates.softmax(2)).sum(2)


class _Seen(NamedTuple):
    """Compressed states (B, W, d), of which each token picks some (B, T, k); None: all so far."""

    states: Tensor
    picks: Tensor | None


class Compressed:
    """One layer's compressed attention."""

    def __init__(
        self, mixer: CompressedAttention, numerics: Numerics, weights: LayerWeights
    ) -> None:
        size = weights.all.size
        self.mixer = replace(
            mixer,
            num_heads=local_units(mixer.num_heads, size),
            output_groups=local_units(mixer.output_groups, size),
        )
        self.numerics = numerics
        self.w = weights
        self.compressor = self.index_compressor = None
        if mixer.compress_ratio > 1:
            self.compressor = Compressor(mixer, "compressor", mixer.head_dim, numerics, weights)
        if mixer.has_indexer:
            self.index_compressor = Compressor(
                mixer, "indexer.compressor", mixer.index_head_dim, numerics, weights
            )

    def __call__(self, x: Tensor, step: Step, cache: LayerCache) -> Tensor:
        """x (B, T, H) -> (B, T, H), this rank's part of the sum."""
        m, w, num = self.mixer, self.w, self.numerics
        latent = f.linear(x, w.get("attention.q_a"))
        latent = normalize(latent, num.norm, w.get("norms.q_a"), None, num.eps)
        q = f.linear(latent, w.get("attention.q_b")).unflatten(-1, (m.num_heads, -1))
        q = self._turn(normalize(q, "rms_plain", None, None, num.eps).transpose(1, 2), step)
        row = f.linear(x, w.get("attention.kv"))
        row = self._turn(normalize(row, num.norm, w.get("norms.kv_a"), None, num.eps), step)
        store = cache.store("latent", m.window)
        first, raw = store.first, store.append(row[:, None])
        store.trim(raw)
        seen = self._seen(x, latent, step, cache)
        out = torch.cat(
            [
                self._attend(q, raw, first, seen, step, a)
                for a in range(0, step.count, step.query_block)
            ],
            dim=2,
        )
        # What was turned as a key is turned back as a value, by the position of the query.
        out = self._turn(out, step, back=True).transpose(1, 2)
        grouped = out.flatten(2).unflatten(-1, (m.output_groups, -1))
        down = w.get("attention.o_a").unflatten(0, (m.output_groups, -1))
        inner = grouped.flatten(0, 1).transpose(0, 1) @ down.transpose(1, 2)
        inner = inner.transpose(0, 1).unflatten(0, x.shape[:2]).flatten(2)
        return f.linear(inner, w.get("attention.o_b"))

    def _turn(self, x: Tensor, step: Step, *, back: bool = False) -> Tensor:
        rope = self.numerics.rope(self.w.index)
        if rope is None:
            return x
        return _turn_end(x, replace(rope, backwards=back), step.angles(rope))

    def _seen(self, x: Tensor, latent: Tensor, step: Step, cache: LayerCache) -> _Seen | None:
        if self.compressor is None:
            return None
        states = self.compressor(x, step, cache)
        picks = None
        if self.index_compressor is not None:
            picks = self._picks(self.index_compressor(x, step, cache), x, latent, step)
        return _Seen(states, picks)

    def _picks(self, keys: Tensor, x: Tensor, latent: Tensor, step: Step) -> Tensor | None:
        """The best `top_k` states of each token, (B, T, k), -1 where there are fewer.

        None where no token sees more than it may pick.
        """
        m, w = self.mixer, self.w
        q = f.linear(latent, w.get("attention.indexer.q_b")).unflatten(-1, (m.index_heads, -1))
        q = self._turn(q.transpose(1, 2), step)
        weights = f.linear(x, w.get("attention.indexer.weights")).float()
        weights = weights * (m.index_heads * m.index_head_dim) ** -0.5
        many = keys.shape[1] > m.index_top_k
        out = []
        for a in range(0, step.count, step.query_block):
            b = min(a + step.query_block, step.count)
            whole = (step.start + b) // m.compress_ratio
            scores = f.relu((q[:, :, a:b] @ keys[:, None, :whole].transpose(-1, -2)).float())
            scores = (scores * weights[:, a:b].transpose(1, 2)[..., None]).sum(1)
            if not many:
                continue
            scores = scores.masked_fill(~self._whole(step, a, b, whole, x), float("-inf"))
            best = scores.topk(min(m.index_top_k, whole), dim=-1)
            picks = best.indices.masked_fill(best.values == float("-inf"), -1)
            out.append(f.pad(picks, (0, m.index_top_k - picks.shape[-1]), value=-1))
        return torch.cat(out, dim=1) if many else None

    def _whole(self, step: Step, a: int, b: int, count: int, like: Tensor) -> Tensor:
        """(b - a, count): which states are complete when each token comes."""
        position = torch.arange(step.start + a, step.start + b, device=like.device)
        return torch.arange(count, device=like.device) < (
            (position[:, None] + 1) // self.mixer.compress_ratio
        )

    def _attend(
        self, q: Tensor, raw: Tensor, first: int, seen: _Seen | None, step: Step, a: int
    ) -> Tensor:
        """q (B, N, T, d) of the tokens from `a` on over raw rows and states: (B, N, t, d)."""
        m = self.mixer
        q = q[:, :, a : a + step.query_block]
        start, count = step.start + a, q.shape[2]
        end, low = start + count, max(first, start - m.window + 1)
        near = raw[:, :, low - first : end - first]
        position = torch.arange(start, end, device=q.device)[:, None]
        key = torch.arange(low, end, device=q.device)[None, :]
        visible = (key <= position) & (key > position - m.window)
        scale = m.head_dim**-0.5
        flat = q.flatten(1, 2)
        scores = (flat @ near[:, 0].transpose(-1, -2)).unflatten(1, q.shape[1:3]).float() * scale
        parts = [scores.masked_fill(~visible, float("-inf"))]
        far = None
        if seen is not None:
            far, more = self._far(q, seen, step, a, scale)
            parts.append(more)
        sinks = self.w.get("attention.sinks").float()[None, :, None, None]
        parts.append(sinks.expand(*q.shape[:3], 1))
        sizes = [part.shape[-1] for part in parts]
        weights = torch.cat(parts, dim=-1).softmax(-1).to(q.dtype).split(sizes, dim=-1)
        mixed = (weights[0].flatten(1, 2) @ near[:, 0]).unflatten(1, q.shape[1:3])
        if far is None:
            return mixed
        if far.dim() == 4:  # every token its own
            return mixed + (weights[1].transpose(1, 2) @ far).transpose(1, 2)
        return mixed + (weights[1].flatten(1, 2) @ far).unflatten(1, q.shape[1:3])

    def _far(
        self, q: Tensor, seen: _Seen, step: Step, a: int, scale: float
    ) -> tuple[Tensor, Tensor]:
        """States that the tokens attend to, for all alike or (B, t, k, d), and their scores."""
        b = a + q.shape[2]
        if seen.picks is None:
            whole = (step.start + b) // self.mixer.compress_ratio
            far = seen.states[:, :whole]
            scores = (q.flatten(1, 2) @ far.transpose(-1, -2)).unflatten(1, q.shape[1:3])
            hidden = ~self._whole(step, a, b, whole, q)
            return far, (scores.float() * scale).masked_fill(hidden, float("-inf"))
        picks = seen.picks[:, a:b]
        # No column that none of these tokens fills.
        picks = picks[..., : (step.start + b) // self.mixer.compress_ratio]
        batch = torch.arange(q.shape[0], device=q.device)[:, None, None]
        far = seen.states[batch, picks.clamp(min=0)]
        scores = (q.transpose(1, 2) @ far.transpose(-1, -2)).transpose(1, 2).float() * scale
        return far, scores.masked_fill((picks < 0)[:, None], float("-inf"))
