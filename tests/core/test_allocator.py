"""The allocator rule against sizes that engines logged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesize.core.allocator import allocated_bytes, total_allocated_bytes
from moesize.core.units import GIB, KIB, MIB


@pytest.mark.parametrize(
    ("tensor_bytes", "block_bytes"),
    [
        (0, 0),
        (1, 512),
        (513, 1024),
        (MIB, MIB),
        (MIB + 1, MIB + 512),
        (10 * MIB - 512, 10 * MIB - 512),
        (10 * MIB, 10 * MIB),
        # Segments of 2 MiB steps: a rest of 1 MiB or less stays in the block.
        (10 * MIB + 512 * KIB, 10 * MIB + 512 * KIB),
        (11 * MIB, 12 * MIB),
        (11 * MIB + 512 * KIB, 12 * MIB),
        (12 * MIB, 12 * MIB),
    ],
)
def test_block_of_one_tensor(tensor_bytes: int, block_bytes: int) -> None:
    assert allocated_bytes(tensor_bytes) == block_bytes


def _qwen2_rank(
    hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int
) -> list[int]:
    """Tensors in bytes of one bf16 rank of a Qwen2 model (heads are per rank)."""
    layer = [
        (heads + 2 * kv_heads) * 128 * hidden,
        (heads + 2 * kv_heads) * 128,
        hidden * heads * 128,
        2 * inner * hidden,
        hidden * inner,
        hidden,
        hidden,
    ]
    return [2 * count for count in [vocab * hidden, *layer * layers, hidden, vocab * hidden]]


def test_extra_of_deepseek_r1_distill_qwen_32b() -> None:
    """vllm issue 12865, TP2: 30.7293 GiB logged; 192 MiB of it is rounding (64 layers x 3 MiB)."""
    tensors = _qwen2_rank(5120, 13824, 64, 20, 4, 76032)
    rope = 131072 * 128 * 2
    extra = total_allocated_bytes(tensors) - sum(tensors)
    assert 192 * MIB <= extra <= 193 * MIB
    logged = 30.7293 * GIB
    assert total_allocated_bytes([*tensors, rope]) == pytest.approx(logged, rel=5e-4)


def test_llama_3_1_8b() -> None:
    """vllm issue 10517: 14.9888 GiB logged, 32 MiB of it the rotary table."""
    layer = [6144 * 4096, 4096 * 4096, 28672 * 4096, 4096 * 14336, 4096, 4096]
    tensors = [2 * count for count in [128256 * 4096, *layer * 32, 4096, 128256 * 4096]]
    total = total_allocated_bytes([*tensors, 131072 * 128 * 2])
    assert round(total / GIB, 4) == 14.9888


@given(st.integers(1, 1 << 34))
def test_block_is_not_smaller_and_at_most_one_mib_larger(tensor_bytes: int) -> None:
    extra = allocated_bytes(tensor_bytes) - tensor_bytes
    assert 0 <= extra < MIB + 512
    assert allocated_bytes(tensor_bytes) % 512 == 0
