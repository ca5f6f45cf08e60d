"""How many bytes PyTorch's CUDA caching allocator gives out for one tensor.

Engines log *allocated* bytes, which are the sizes of the allocator's blocks and not of the
tensors in them. Constants: pytorch `c10/core/AllocatorConfig.h`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.core.units import MIB, round_up

if TYPE_CHECKING:
    from collections.abc import Iterable

_BLOCK_BYTES = 512
_SMALL_BYTES = MIB
_LARGE_BYTES = 10 * MIB
_LARGE_SEGMENT_ROUNDING_BYTES = 2 * MIB


def allocated_bytes(tensor_bytes: int) -> int:
    """Bytes of the allocator's block behind a tensor of `tensor_bytes`.

    Rounded up to 512 B. From 10 MiB on a tensor has a segment of its own, rounded up to 2 MiB, of
    which a rest of at most 1 MiB is not split off. With expandable segments the rest stays usable.
    """
    if tensor_bytes <= 0:
        return 0
    block_bytes = round_up(tensor_bytes, _BLOCK_BYTES)
    if block_bytes < _LARGE_BYTES:
        return block_bytes
    segment_bytes = round_up(block_bytes, _LARGE_SEGMENT_ROUNDING_BYTES)
    return block_bytes if segment_bytes - block_bytes > _SMALL_BYTES else segment_bytes


def total_allocated_bytes(tensors_bytes: Iterable[int]) -> int:
    """Sum of the blocks of many tensors, each allocated on its own."""
    return sum(map(allocated_bytes, tensors_bytes))
