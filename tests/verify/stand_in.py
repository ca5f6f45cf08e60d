"""A CUDA device that is not there: tensors on the CPU, counted as CUDA's allocator would give them.

What a real device does besides is played: a context, the workspace that cuBLAS keeps from its first
product on, scratch of the sort, of CUB and of narrow indices, free memory that falls by segments.
"""

from __future__ import annotations

import gc
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from moesize.core.units import GIB, KIB, MIB
from moesize.verify.caching_allocator import CachingAllocator
from moesize.verify.devices import Reading
from moesize.verify.live_bytes import LiveBytes
from moesize.verify.owners import History

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTEXT_BYTES = 500 * MIB
# Hopper: 4,096 KiB eight times (pytorch aten/src/ATen/cuda/CublasHandlePool.cpp).
WORKSPACE_BYTES = 32 * MIB
# Of CUB, while unique and nonzero run.
TEMPORARY_BYTES = 32 * KIB


class Memory:
    """What `History` asks of torch.cuda.memory: events with frames, innermost first."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] | None = None
        self.sizes: dict[int, int] = {}

    def _record_memory_history(self, enabled: str | None, **options: Any) -> None:
        if enabled is None:
            self.events = None
            return
        assert enabled == "all"
        assert set(options) == {"context", "stacks", "max_entries"}
        self.events = [] if self.events is None else self.events

    def _snapshot(self) -> dict[str, Any]:
        assert self.events is not None
        return {"segments": [], "device_traces": [list(self.events)]}

    def event(self, size: int, key: int) -> None:
        """An event of `LiveBytes`; addresses are the keys."""
        if size > 0:
            self.sizes[key] = size
        if self.events is None or not size:
            return
        actions = ("alloc",) if size > 0 else ("free_requested", "free_completed")
        for action in actions:
            self.events.append(
                {"action": action, "addr": key, "size": self.sizes[key], "frames": _frames()}
            )


def _frames() -> list[dict[str, Any]]:
    frame, out = sys._getframe(2), []
    while frame is not None:
        code = frame.f_code
        out.append({"filename": code.co_filename, "line": frame.f_lineno, "name": code.co_name})
        frame = frame.f_back  # type: ignore[assignment]
    return out


class _Counted(LiveBytes):  # type: ignore[no-untyped-call]
    """Every storage in a block; scratch while a sort runs."""

    def __init__(self, meter: StandIn) -> None:
        def both(size: int, key: int) -> None:
            meter.allocator(size, key)
            meter.memory.event(size, key)

        super().__init__("cpu", both)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        aten = torch.ops.aten
        if func in (aten.nonzero.default, aten._unique2.default):
            self._taken(TEMPORARY_BYTES)
        if func is aten.index.Tensor:
            # TensorAdvancedIndexingUtils.h, make_info: indices of 32 bits are copied.
            for index in args[1]:
                if index is not None and index.dtype == torch.int32:
                    self._taken(8 * index.numel())
        if func is torch.ops.aten.sort.default and args[0].shape[-1] > 4096:
            rows, count = args[0].shape[0], args[0].numel()
            assert 1 < rows < 128, "only this way of sorting is played"
            # SortStable.cu, segmented_sort_pairs_by_full_sort of float32: int2 twice, keys, copies.
            for key, size in ((-1, 8), (-2, 8), (-3, 4), (-4, 12)):
                self._count(size * count, key)
            for key, size in ((-1, 8), (-2, 8), (-3, 4), (-4, 12)):
                self._count(-size * count, key)
        return out

    def _taken(self, size: int) -> None:
        """What a kernel takes and gives back."""
        self._count(size, -9)
        self._count(-size, -9)


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
        self.memory = Memory()
        self.history = History(self.memory, 0)
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

    def owners(self) -> dict[str, int] | None:
        return self.history.peak()

    def reset_peak(self) -> None:
        self.history.reset_peak()
        self.live.reset_peak()
        self.allocator.reset_peak()

    def synchronize(self) -> None: ...

    @contextmanager
    def watch(self) -> Iterator[None]:
        self.history.start()
        with self.live:
            yield
        self.history.stop()

    def limit(self, size_bytes: int) -> None:
        self.bound = size_bytes

    def release(self) -> None:
        gc.collect()
        self.allocator.release_free()
