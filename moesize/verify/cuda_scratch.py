"""What kernels of CUDA take of the caching allocator while one operation runs, beyond its result.

A pass on shapes alone sees results and no scratch. Of the operations of the passes sorting takes
most; some kernels copy an operand whose strides they cannot work with, and indices of 32 bits are
copied as 64. What else there is stays below a few hundred KiB (nonzero, unique, reductions over one
row) or uses the workspace that cuBLAS keeps. Sources: pytorch `aten/src/ATen/native/cuda/Sort.h`,
`Sort.cpp` and `SortStable.cu`, `ATen/cuda/cub-RadixSortPairs.cuh`; `ATen/native/cuda/Blas.cpp` and
`cuBlasCommonArgs.h` (prepare_matrix_for_cublas, prepare_batch_matrix_for_cublas), `ScanUtils.cuh`,
`SoftMax.cu`, `TensorTopK.cpp`, `ATen/native/TensorAdvancedIndexingUtils.h` (make_info); CUB
`dispatch_radix_sort.cuh` (CCCL of CUDA 13.0). hipCUB follows the same interface on ROCm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
    if func is _ATEN.mm.default:
        return tuple(_copy(x) for x in args[:2] if _is_copied(x))
    if func is _ATEN.addmm.default:
        return tuple(_copy(x) for x in args[1:3] if _is_copied(x))
    if func is _ATEN.bmm.default:
        return tuple(map(_copy, copied_batches(args[0], args[1])))
    if func in _CONTIGUOUS:
        return () if args[0].is_contiguous() else (_copy(args[0]),)
    if func is _ATEN.index.Tensor:
        narrow = [i for i in args[1] if i is not None and i.dtype == torch.int32]
        return tuple(_INDEX_BYTES * i.numel() for i in narrow)
    return ()


_ATEN = torch.ops.aten
_SORT = _ATEN.sort.default
_SORT_STABLE = _ATEN.sort.stable
# Kernels that begin with input.contiguous().
_CONTIGUOUS = (_ATEN.cumsum.default, _ATEN._softmax.default, _ATEN.topk.default)


def _copy(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _is_copied(x: Tensor) -> bool:
    """Whether a matrix is copied before a product: neither rows nor columns lie side by side."""
    if x.is_contiguous() or x.T.is_contiguous():
        return False
    (rows, cols), (down, right) = x.shape, x.stride()
    return not ((down == 1 and right >= max(1, rows)) or (right == 1 and down >= max(1, cols)))


def copied_batches(first: Tensor, second: Tensor) -> list[Tensor]:
    """Operands (B, m, k) and (B, k, n) that a batched product copies."""
    rows, inner, cols = first.shape[1], first.shape[2], second.shape[2]
    if not first.numel() or not second.numel():
        return []
    # The result is contiguous: of one column as it is, else computed as its transpose.
    if cols == 1:
        asked = ((first, 1, 2, rows, inner), (second, 1, 2, inner, cols))
    else:
        asked = ((second, 2, 1, cols, inner), (first, 2, 1, inner, rows))
    out = []
    for x, fast, leading, least, other in asked:
        strides = x.stride()
        fits = (strides[fast] == 1 and strides[leading] >= max(1, least)) or (
            strides[leading] == 1 and strides[fast] >= max(1, other)
        )
        if not fits and not x.is_contiguous():
            out.append(x)
    return out


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
