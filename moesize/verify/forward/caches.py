"""What a sequence leaves behind: keys and values (fixed or growing) and recurrent states."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from moesize.core.errors import InvalidInputError
from moesize.core.units import ceil_div

CacheKind = Literal["growing", "static"]
BLOCK_TOKENS = 16


class TokenStore:
    """Rows of one layer's cache, (B, K, tokens, width), appended in order.

    static: one tensor of whole blocks, allocated at once as engines do; growing: concatenated as
    `transformers` does, where a window keeps only its newest rows.
    """

    def __init__(self, kind: CacheKind, max_tokens: int, window: int | None = None) -> None:
        self.kind = kind
        self.max_tokens = max_tokens
        self.window = window
        self.first = 0  # position of the first row that is kept
        self.rows: Tensor | None = None
        self.length = 0

    def append(self, new: Tensor) -> Tensor:
        """Store new (B, K, T, width); returns all rows from position `first` on."""
        end = self.length + new.shape[2]
        if self.kind == "static":
            if self.rows is None:
                self.rows = self._allocate(new)
            if end > self.max_tokens:
                raise InvalidInputError(f"the cache holds {self.max_tokens} tokens, not {end}")
            self.rows[:, :, self.length : end] = new
            self.length = end
            return self.rows[:, :, :end]
        rows = new if self.rows is None else torch.cat((self.rows, new), dim=2)
        self.length = end
        return rows

    def trim(self, rows: Tensor) -> None:
        """Keep what later tokens can see; a no-op for a static cache."""
        if self.kind == "static":
            return
        if self.window is not None and rows.shape[2] > self.window:
            rows = rows[:, :, -self.window :].clone()
        self.rows = rows
        self.first = self.length - rows.shape[2]

    def _allocate(self, like: Tensor) -> Tensor:
        blocks = ceil_div(self.max_tokens, BLOCK_TOKENS)
        shape = (like.shape[0], like.shape[1], blocks * BLOCK_TOKENS, like.shape[3])
        return torch.empty(shape, dtype=like.dtype, device=like.device)


class LayerCache:
    """All that one layer keeps: token stores and states by name."""

    def __init__(self, kind: CacheKind, max_tokens: int) -> None:
        self.kind = kind
        self.max_tokens = max_tokens
        self.stores: dict[str, TokenStore] = {}
        self.states: dict[str, Tensor] = {}

    def store(self, name: str, window: int | None = None, ratio: int = 1) -> TokenStore:
        """The store of that name, made on first use; ratio: tokens that one row stands for."""
        if name not in self.stores:
            self.stores[name] = TokenStore(self.kind, self.max_tokens // ratio, window)
        return self.stores[name]

    @property
    def bytes_held(self) -> int:
        """Bytes of all tensors of the cache."""
        rows = [store.rows for store in self.stores.values() if store.rows is not None]
        return sum(t.numel() * t.element_size() for t in (*rows, *self.states.values()))
