"""What kernels of CUDA take of the caching allocator while one operation runs, beyond its result.

A pass on shapes alone sees results and no scratch. Of the operations of the passes only sorting
takes enough to matter: everything else stays below a few MiB (nonzero, unique, reductions) or uses
the workspace that cuBLAS keeps. Sources: pytorch `aten/src/ATen/native/cuda/Sort.h`, `Sort.cpp` and
`SortStable.cu`, `ATen/cuda/cub-RadixSortPairs.cuh`; CUB `dispatch_radix_sort.cuh` (CCCL of CUDA
13.0). hipCUB follows the same interface on ROCm.
"""

from __future__ import annotations

from typing import Any

import torch

# Rows of at most this many are sorted in place.
_SMALL_ROWS = 4096
# From here on each row is sorted by itself, and rows of so many are cut into segments.
_LARGE_ROW = 1_000_000
_MANY_ROWS = 128
_INT_MAX = (1 << 31) - 1
_INDEX_BYTES = 8


def scratch(func: Any, args: tuple[Any, ...]) -> tuple[int, ...]:
    """Bytes of the blocks that live side by side while `func(*args)` runs, beside its results."""
    if func is _SORT or func is _SORT_STABLE:
        x = args[0]
        dim = _dim(func, args)
        return sort_scratch(x.numel(), x.shape[dim], x.element_size())
    return ()


_SORT = torch.ops.aten.sort.default
_SORT_STABLE = torch.ops.aten.sort.stable


def _dim(func: Any, args: tuple[Any, ...]) -> int:
    place = 1 if func is _SORT else 2
    return int(args[place]) if len(args) > place and isinstance(args[place], int) else -1


def sort_scratch(elements: int, row: int, element_bytes: int) -> tuple[int, ...]:
    """Blocks of sorting `elements` keys in rows of `row`, with their positions (8 bytes each).

    One row, or rows of a million: positions of a row, and the copies of keys and positions that a
    radix sort goes back and forth between. Up to 127 rows: pairs of row and position twice, keys
    once more, and the copies. More rows: positions of all, and the copies.
    """
    if not elements or row <= _SMALL_ROWS:
        return (_INDEX_BYTES * row,) if elements else ()
    held = min(elements, _INT_MAX // row * row)
    rows = held // row
    # A key of one byte is sorted in a single pass, which needs no copies.
    pair = element_bytes + _INDEX_BYTES if element_bytes > 1 else 0
    if rows == 1 or row >= _LARGE_ROW:
        return (_INDEX_BYTES * row, pair * row)
    if rows < _MANY_ROWS:
        return (_INDEX_BYTES * held, _INDEX_BYTES * held, element_bytes * held, pair * held)
    return (_INDEX_BYTES * held, pair * held)
