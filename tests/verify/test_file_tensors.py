"""File tensors against the inventory, and how ranks share them out."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import ROOT

from moesize.catalog import load_spec
from moesize.core.checkpoint import published
from moesize.core.errors import InvalidInputError, UnsupportedError
from moesize.readers.hf.read import spec_from_config
from moesize.verify.file_tensors import FileTensor, Piece, file_tensors
from moesize.verify.loading import plan_load
from moesize.verify.safetensors_files import open_checkpoint
from verify import tiny

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
    # Three bits: 32 numbers in three words. The last of five groups holds 64 of 128 inputs.
    assert Piece(384, 4096, 4096, per=Fraction(32, 3)).cut(1, 2) == (192, 384)
    assert Piece(5, 576, 576, per=Fraction(128)).cut(2, 3) == (3, 5)


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


@pytest.mark.parametrize(
    ("name", "suffix", "width"),
    [
        # Rows of gate and up alternate: rank 1 of 4 has the second quarter, of both.
        ("gpt-oss-20b", "gate_up_proj_blocks", 2 * 2880),
        ("gpt-oss-20b", "gate_up_proj_bias", 2 * 2880),
        # Query, key and value of a head, then of the next: 16 heads of 3 x 128 rows.
        ("bloom-1b7", "query_key_value.weight", 16 * 3 * 128),
        # Groups of sixteen queries, a key and a value: eight of them.
        ("falcon-40b", "query_key_value.weight", 8 * 18 * 64),
    ],
)
def test_members_that_are_woven_are_cut_in_one_run(name: str, suffix: str, width: int) -> None:
    spec = load_spec(ROOT / "model_specs" / f"{name}.yaml")
    tensors = file_tensors(spec, published(spec), layers=(0,))
    found = next(tensor for tensor in tensors if tensor.name.endswith(suffix))
    assert found.ranges(1, 4) == [(width // 4, width // 2)]


def test_members_that_follow_each_other_are_cut_each_on_its_own() -> None:
    """Phi-3 joins gate and up: rank 1 of 2 has the second half of each."""
    spec = load_spec(ROOT / "model_specs" / "phi-4.yaml")
    tensors = file_tensors(spec, published(spec), layers=(0,))
    found = next(tensor for tensor in tensors if "gate_up_proj" in tensor.name)
    half = found.shape[0] // 4
    assert found.ranges(1, 2) == [(half, 2 * half), (3 * half, 4 * half)]


def test_parts_of_a_recurrent_projection_are_cut_each_on_its_own() -> None:
    """vLLM 0.32.0 mamba_mixer2.py: gate, x, B, C, steps; gdn_linear_attn.py: q, k, v."""
    tensors = {
        tensor.name.rpartition("layers.0.")[2]: tensor
        for name in ("nemotron-nano-9b-v2", "granite-4.0-h-small", "qwen3-next-80b-a3b")
        for tensor in _first_layer(name)
    }
    # 128 heads of 80, eight groups of 128: rank 1 of 8 has one of them.
    runs = tensors["mixer.in_proj.weight"].ranges(1, 8)
    assert runs is not None
    assert [end - first for first, end in runs] == [1280, 1280, 128, 128, 16]
    assert [first for first, _ in runs] == [1280, 11520, 20608, 21632, 22544]
    # A single group of 128: all of B and C on every rank.
    runs = tensors["mamba.conv1d.weight"].ranges(1, 8)
    assert runs == [(1024, 2048), (8192, 8320), (8320, 8448)]
    # 16 key heads and 32 value heads of 128.
    runs = tensors["linear_attn.conv1d.weight"].ranges(1, 2)
    assert runs == [(1024, 2048), (3072, 4096), (6144, 8192)]


def _first_layer(name: str) -> list[FileTensor]:
    spec = load_spec(ROOT / "model_specs" / f"{name}.yaml")
    return list(file_tensors(spec, published(spec), layers=(0,), outside=False))


# What the library's classes save and the file tensors leave out.
BUFFERS = {
    # Constants, which the inventory counts as stored only.
    "gemma4_text": ".layer_scalar",
    "gemma4-moe": ".layer_scalar",
    "apertus": ".mlp.act_fn.",
    # Tables that the published files do not have.
    "minimax": ".self_attn.",
}
LACKING = {
    # transformers 5.23 stacks the experts of what is no part of a wrapper (see tiny.py).
    "mistral4": "experts.0.gate_proj",
    # transformers 5.23 restores the published names for the wrapper only (see tiny.py).
    "minimax_m3_vl_text": "index_q_proj",
    # transformers 5.23 does not restore all of the published names when it saves (see tiny.py).
    "deepseek_v4": "embed.weight",
    # transformers 5.23 saves the norms of its attention layers under other names (see tiny.py).
    "olmo_hybrid": "layers.3.post_attention_layernorm.weight",
    # transformers 5.23 saves the dense layer under the name of experts (see tiny.py).
    "kimi_linear": "layers.0.mlp.gate_proj.weight",
}


@pytest.mark.parametrize("family", tiny.FAMILIES, ids=lambda family: family.id)
def test_names_and_shapes_are_those_of_the_library(family: tiny.Family, tmp_path: Path) -> None:
    """Against files that transformers' own classes wrote: every tensor is found, in its shape."""
    _, config = tiny.save(family, tmp_path)
    spec = spec_from_config(config, file="config.json")
    files = open_checkpoint(tmp_path)
    tensors = [
        tensor._replace(dtype="float32") if tensor.dtype == "bfloat16" else tensor
        for tensor in file_tensors(spec, published(spec))
    ]
    if family.id in LACKING:
        with pytest.raises(InvalidInputError, match=LACKING[family.id]):
            plan_load(files, tensors)
        return
    found = {(job.place.path, job.place.offset) for job in plan_load(files, tensors)}
    places = {name: files.place(name) for name in files.holders}
    left = [name for name, place in places.items() if (place.path, place.offset) not in found]
    assert [name for name in left if BUFFERS.get(family.id, "nothing") not in name] == []
