"""PyTorch's CUDA caching allocator on numbers: what a sequence of allocations reserves.

Rules and constants: pytorch `c10/cuda/CUDACachingAllocator.cpp` and `c10/core/AllocatorConfig.h`.
Blocks are multiples of 512 B. Those of at most 1 MiB come from segments of 2 MiB, those below
10 MiB from segments of 20 MiB, larger ones from segments of their own, rounded up to 2 MiB. The
smallest free block that is large enough is taken, and what is left of it is split off when it is
at least 512 B (small) or more than 1 MiB (large). Neighbours that are free are joined again.
Expandable segments and several streams are not modelled.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from moesize.core.units import MIB, round_up

_UNIT = 512
_SMALL = MIB
_SMALL_SEGMENT = 2 * MIB
_LARGE = 10 * MIB
_LARGE_SEGMENT = 20 * MIB
_ROUNDING = 2 * MIB


class _Block:
    """A part of a segment; `before` and `after` are its neighbours there."""

    __slots__ = ("address", "after", "before", "free", "size", "small")

    def __init__(self, address: int, size: int, *, small: bool) -> None:
        self.address, self.size, self.small = address, size, small
        self.free = True
        self.before: _Block | None = None
        self.after: _Block | None = None


class CachingAllocator:
    """Allocated and reserved bytes, now and at their most."""

    def __init__(self) -> None:
        self.allocated = self.reserved = 0
        self.peak_allocated = self.peak_reserved = 0
        self._next_address = 0
        self._live: dict[int, _Block] = {}
        self._by_address: dict[int, _Block] = {}
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}

    def __call__(self, size: int, key: int) -> None:
        """An event of `LiveBytes`: above zero an allocation, below zero a release."""
        if size > 0:
            self.allocate(size, key)
        elif key in self._live:
            self.release(key)

    def reset_peak(self) -> None:
        """Count peaks from here on."""
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved

    def allocate(self, size: int, key: int) -> None:
        """`size` bytes under a key."""
        wanted = round_up(size, _UNIT)
        block = self._take(wanted, small=wanted <= _SMALL)
        rest = block.size - wanted
        if rest >= _UNIT if block.small else rest > _SMALL:
            self._split(block, wanted)
        block.free = False
        self._live[key] = block
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)

    def release(self, key: int) -> None:
        """Give back what stands under a key."""
        block = self._live.pop(key)
        self.allocated -= block.size
        block.free = True
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.free:
                self._drop(neighbour)
                block = self._join(block, neighbour)
        self._offer(block)

    def release_free(self) -> None:
        """Give segments that hold nothing back to the driver, as `empty_cache` does."""
        for pool in self._free.values():
            for size, address in list(pool):
                block = self._by_address[address]
                if block.before is None and block.after is None:
                    pool.remove((size, address))
                    del self._by_address[address]
                    self.reserved -= size

    def _take(self, wanted: int, *, small: bool) -> _Block:
        pool = self._free[small]
        place = bisect_left(pool, (wanted, -1))
        if place < len(pool):
            _, address = pool.pop(place)
            return self._by_address[address]
        size = _SMALL_SEGMENT if small else _LARGE_SEGMENT
        if wanted >= _LARGE:
            size = round_up(wanted, _ROUNDING)
        block = _Block(self._next_address, size, small=small)
        self._by_address[block.address] = block
        # Segments never touch: their blocks are not joined.
        self._next_address += size + 1
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return block

    def _split(self, block: _Block, wanted: int) -> None:
        rest = _Block(block.address + wanted, block.size - wanted, small=block.small)
        rest.before, rest.after = block, block.after
        if block.after is not None:
            block.after.before = rest
        block.after, block.size = rest, wanted
        self._by_address[rest.address] = rest
        self._offer(rest)

    def _offer(self, block: _Block) -> None:
        insort(self._free[block.small], (block.size, block.address))

    def _drop(self, block: _Block) -> None:
        pool = self._free[block.small]
        del pool[bisect_left(pool, (block.size, block.address))]

    def _join(self, one: _Block, other: _Block) -> _Block:
        first, second = (one, other) if one.address < other.address else (other, one)
        first.size += second.size
        first.after = second.after
        if second.after is not None:
            second.after.before = first
        del self._by_address[second.address]
        first.free = True
        return first
