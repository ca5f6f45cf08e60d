"""A CUDA device that is not there: tensors on the CPU, counted as CUDA's allocator would give them.

What a real device does besides is played: a context, the workspace that cuBLAS keeps from its first
product on, scratch of the sort, free memory that falls by segments.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from moesize.core.units import GIB, MIB
from moesize.verify.caching_allocator import CachingAllocator
from moesize.verify.devices import Reading
from moesize.verify.live_bytes import LiveBytes

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTEXT_BYTES = 500 * MIB
# Hopper: 4,096 KiB eight times (pytorch aten/src/ATen/cuda/CublasHandlePool.cpp).
WORKSPACE_BYTES = 32 * MIB


class _Counted(LiveBytes):  # type: ignore[no-untyped-call]
    """Every storage in a block; scratch while a sort runs."""

    def __init__(self, meter: StandIn) -> None:
        super().__init__("cpu", meter.allocator)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if func is torch.ops.aten.sort.default and args[0].shape[-1] > 4096:
            rows, count = args[0].shape[0], args[0].numel()
            assert 1 < rows < 128, "only this way of sorting is played"
            # SortStable.cu, segmented_sort_pairs_by_full_sort of float32: int2 twice, keys, copies.
            for key, size in ((-1, 8), (-2, 8), (-3, 4), (-4, 12)):
                self._count(size * count, key)
            for key, size in ((-1, 8), (-2, 8), (-3, 4), (-4, 12)):
                self._count(-size * count, key)
        return out


class StandIn:
    """In the place of `TorchMeter`."""

    def __init__(self, total_bytes: int = 8 * GIB) -> None:
        self.kind = "cuda"
        self.name = "NVIDIA H100 80GB HBM3"
        self.driver = "580.65.06, CUDA 13.0"
        self.device = torch.device("cpu")
        self.counts_blocks = True
        self.total = total_bytes
        self.allocator = CachingAllocator()
        self.live = _Counted(self)
        # The first product, with which the context is measured, leaves it behind.
        self.allocator.allocate(WORKSPACE_BYTES, -100)

    def total_bytes(self) -> int:
        return self.total

    def free_bytes(self) -> int:
        return self.total - CONTEXT_BYTES - self.allocator.reserved

    def reading(self) -> Reading:
        a = self.allocator
        return Reading(self.live.live_bytes + WORKSPACE_BYTES, a.allocated, a.reserved)

    def peak(self) -> Reading:
        a = self.allocator
        return Reading(self.live.peak_bytes + WORKSPACE_BYTES, a.peak_allocated, a.peak_reserved)

    def reset_peak(self) -> None:
        self.live.reset_peak()
        self.allocator.reset_peak()

    def synchronize(self) -> None: ...

    @contextmanager
    def watch(self) -> Iterator[None]:
        with self.live:
            yield

    def limit(self, size_bytes: int) -> None:
        raise NotImplementedError

    def release(self) -> None:
        gc.collect()
        self.allocator.release_free()
