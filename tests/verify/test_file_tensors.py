"""File tensors against the inventory, and how ranks share them out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import ROOT

from moesize.catalog import load_spec
from moesize.core.checkpoint import published
from moesize.core.errors import UnsupportedError
from moesize.verify.file_tensors import FileTensor, Piece, file_tensors

# Every twelfth model of the catalogue; all of them agree, which takes minutes.
SPREAD = sorted(path.stem for path in (ROOT / "model_specs").glob("*.yaml"))[::12]


@pytest.mark.parametrize("name", SPREAD)
def test_file_tensors_hold_the_bytes_of_the_inventory(name: str) -> None:
    """By layer: the first and the last of every block, so that a test takes no minutes."""
    spec = load_spec(ROOT / "model_specs" / f"{name}.yaml")
    stored = published(spec)
    chosen = set()
    for block in spec.blocks:
        of_block = [
            i
            for layout in (spec.layout, spec.encoder_layout)
            for i, own in enumerate(layout)
            if own == block.name
        ]
        chosen.update(of_block[:1] + of_block[-1:])
    expected = 0
    for item in stored:
        if item.entry.section in ("mtp", "stored", "tower"):
            continue
        once = item.file_bytes // item.entry.count
        layers = item.entry.layers
        expected += once * (sum(i in chosen for i in layers) if layers else 1)
    tensors = list(file_tensors(spec, stored, layers=chosen))
    assert sum(tensor.size_bytes for tensor in tensors) == expected
    assert len({tensor.name for tensor in tensors}) == len(tensors)


@st.composite
def cut_tensors(draw: st.DrawFn) -> tuple[FileTensor, int]:
    """A tensor of several pieces that divide among the ranks, and the number of ranks."""
    size = draw(st.sampled_from([1, 2, 4, 8]))
    pieces = []
    for _ in range(draw(st.integers(1, 3))):
        units = size * draw(st.integers(1, 4))
        width = draw(st.integers(1, 3))
        pieces.append(Piece(units * width, units * width, units))
    dim = draw(st.integers(0, 2))
    shape = [draw(st.integers(1, 3)) for _ in range(3)]
    shape[dim] = sum(piece.length for piece in pieces)
    return FileTensor("x", "bfloat16", tuple(shape), "layers", 0, ("r",), dim, tuple(pieces)), size


@settings(max_examples=60, deadline=None)
@given(cut_tensors())
def test_the_slices_of_all_ranks_are_the_whole(case: tuple[FileTensor, int]) -> None:
    tensor, size = case
    assert tensor.dim is not None
    seen: list[int] = []
    for rank in range(size):
        ranges = tensor.ranges(rank, size)
        held = [i for a, b in ranges for i in range(a, b)] if ranges is not None else None
        seen += held if held is not None else list(range(tensor.shape[tensor.dim]))
    assert sorted(seen) == list(range(tensor.shape[tensor.dim]))
    assert sum(tensor.rank_bytes(rank, size) for rank in range(size)) == tensor.size_bytes


def test_key_heads_are_repeated_where_ranks_outnumber_them() -> None:
    piece = Piece(256, 256, 2, replicate=True)
    assert [piece.cut(rank, 4) for rank in range(4)] == [(0, 128), (0, 128), (128, 256), (128, 256)]
    with pytest.raises(UnsupportedError, match="do not divide"):
        Piece(256, 256, 2).cut(0, 4)
    with pytest.raises(UnsupportedError, match="do not divide"):
        Piece(30, 30, 10).cut(0, 4)


def test_packed_words_are_cut_where_their_numbers_are() -> None:
    """Eight numbers of four bits stand in one word: 1,024 inputs are 128 words, 32 a rank."""
    assert Piece(128, 1024, 1024).cut(1, 4) == (32, 64)
    # One scale for 128 inputs: a rank of 256 has two of eight.
    assert Piece(8, 1024, 1024).cut(3, 4) == (6, 8)


@pytest.mark.parametrize("name", ["mixtral-8x7b", "deepseek-v2-lite", "qwen3-30b-a3b"])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_bytes_of_all_ranks_add_up(name: str, size: int) -> None:
    """Of what is cut and not repeated; what is not cut stands in every rank."""
    spec = load_spec(ROOT / "model_specs" / f"{name}.yaml")
    for tensor in file_tensors(spec, published(spec), layers=(0, 1)):
        held = [tensor.rank_bytes(rank, size) for rank in range(size)]
        if tensor.ranges(0, size) is None:
            assert held == [tensor.size_bytes] * size
        elif not any(piece.replicate and piece.units < size for piece in tensor.pieces):
            assert sum(held) == tensor.size_bytes
