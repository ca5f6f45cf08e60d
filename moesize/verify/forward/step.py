"""One pass over the layers: the positions of its tokens, their angles, and shared caches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moesize.verify.forward.rotary import angles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from moesize.verify.forward.numerics import Numerics, Rope


class Step:
    """`count` new tokens of every sequence, the first at position `start`."""

    def __init__(
        self,
        numerics: Numerics,
        tokens: Tensor,
        start: int,
        *,
        query_block: int,
        reduce: Callable[[Tensor], Tensor],
        kv_sources: Mapping[int, int],
    ) -> None:
        self.numerics = numerics
        self.tokens = tokens
        self.start = start
        self.count = tokens.shape[1]
        self.positions = torch.arange(start, start + self.count, device=tokens.device)
        self.query_block = query_block
        self.reduce = reduce
        self.kv_sources = kv_sources
        self.topk: Tensor | None = None  # choice of the last indexer, for layers that share it
        self.per_layer: Tensor | None = None  # inputs of every layer of its own (Gemma 4)
        self._angles: dict[Rope, tuple[Tensor, Tensor]] = {}
        self._kv: dict[int, tuple[Tensor, Tensor, int]] = {}

    def angles(self, rope: Rope) -> tuple[Tensor, Tensor]:
        """cos and sin (T, size / 2), computed once per step."""
        if rope not in self._angles:
            self._angles[rope] = angles(rope, self.positions)
        return self._angles[rope]

    def temperature(self, scale: float, floor: float) -> Tensor:
        """(T, 1): queries grow with the logarithm of their position (Llama 4)."""
        whole = torch.floor((self.positions.float() + self.numerics.positions_offset) / floor)
        return (1.0 + scale * torch.log1p(whole))[:, None]

    def publish_kv(self, layer: int, keys: Tensor, values: Tensor, first: int) -> None:
        """What layers without a cache of their own may read."""
        if layer in self.kv_sources.values():
            self._kv[layer] = (keys, values, first)

    def shared_kv(self, layer: int) -> tuple[Tensor, Tensor, int]:
        """The cache that `layer` reads."""
        return self._kv[self.kv_sources[layer]]
