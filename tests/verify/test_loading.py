"""Loading: exact contents, slices of ranks, checks before a byte moves, errors of threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from moesize.core.checkpoint import published
from moesize.core.errors import InvalidInputError, UnsupportedError
from moesize.core.model_spec import ModelSpec
from moesize.verify import loading
from moesize.verify.file_tensors import FileTensor, Piece
from moesize.verify.loading import copy_limit, load, plan_load
from moesize.verify.safetensors_files import open_checkpoint
from moesize.verify.selection import Selection
from moesize.verify.synthetic import write_synthetic
from verify.small import entry, scratch, small, write_file


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In the place of pytest's: see `scratch`."""
    with scratch() as folder:
        yield folder


def plain(name: str, shape: tuple[int, ...], dtype: str = "bfloat16") -> FileTensor:
    """A tensor that every rank holds."""
    return FileTensor(name, dtype, shape, "layers", 0, ("r",))


@st.composite
def stored_tensors(draw: st.DrawFn) -> tuple[FileTensor, int]:
    """A tensor cut along any dimension in several pieces, and a number of ranks."""
    size = draw(st.sampled_from([1, 2, 4]))
    pieces = []
    for _ in range(draw(st.integers(1, 3))):
        units = size * draw(st.integers(1, 3))
        width = draw(st.sampled_from([1, 3, 4]))
        pieces.append(Piece(units * width, units * width, units))
    dim = draw(st.integers(0, 2))
    shape = [draw(st.integers(1, 4)) for _ in range(3)]
    shape[dim] = sum(piece.length for piece in pieces)
    dtype = draw(st.sampled_from(["bfloat16", "float32", "uint8"]))
    return FileTensor("x", dtype, tuple(shape), "layers", 0, ("r",), dim, tuple(pieces)), size


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=stored_tensors(), chunk=st.sampled_from([7, 64, 1 << 20]))
def test_ranks_put_together_are_the_whole(
    case: tuple[FileTensor, int], chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a cut by torch; chunks of a few bytes exercise every boundary."""
    tensor, size = case
    monkeypatch.setattr(loading, "CHUNK_BYTES", chunk)
    values = torch.randint(0, 256, tensor.shape).to(getattr(torch, tensor.dtype))
    # A file starts with a tensor of odd length, so that nothing is aligned.
    save_file({"x": values, "odd": torch.ones(3, dtype=torch.uint8)}, tmp_path / "x.safetensors")
    files = open_checkpoint(tmp_path)
    assert tensor.dim is not None
    parts: list[list[torch.Tensor]] = [[] for _ in tensor.pieces]
    for rank in range(size):
        loaded = load(files, [tensor], rank=rank, size=size, readers=2)
        mine = loaded.state["x"]
        assert loaded.read_bytes == mine.nbytes == tensor.rank_bytes(rank, size)
        assert tuple(mine.shape) == tensor.rank_shape(rank, size)
        lengths = [piece.length // size for piece in tensor.pieces]
        for own, part in zip(parts, mine.split(lengths, tensor.dim), strict=True):
            own.append(part)
    whole = torch.cat([torch.cat(own, tensor.dim) for own in parts], tensor.dim)
    assert torch.equal(whole, values)


def made(tmp_path: Path, name: str = "qwen3-30b-a3b-fp8") -> tuple[ModelSpec, Selection, Path]:
    """A synthetic checkpoint of one layer."""
    spec, selection = small(name, experts=4), Selection((0,))
    write_synthetic(spec, published(spec), selection, tmp_path / "c")
    return spec, selection, tmp_path / "c"


@pytest.mark.parametrize("readers", [1, 3, 100])
def test_every_number_of_readers_loads_the_same(readers: int, tmp_path: Path) -> None:
    spec, selection, folder = made(tmp_path)
    expected = load_file(folder / "model-00001-of-00001.safetensors")
    arrived: list[int] = []
    loaded = load(
        open_checkpoint(folder),
        selection.tensors(spec, published(spec)),
        readers=readers,
        progress=arrived.append,
    )
    assert sum(arrived) == loaded.read_bytes == loaded.requested_bytes
    assert loaded.gb_per_s > 0
    for name, tensor in expected.items():
        own = loaded.state[name]
        assert own.dtype == tensor.dtype
        assert torch.equal(own.view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize("name", ["qwen3-30b-a3b-fp8", "gpt-oss-20b", "deepseek-v2-lite"])
def test_only_the_bytes_of_a_rank_are_read(name: str, tmp_path: Path) -> None:
    spec, selection, folder = made(tmp_path, name)
    tensors = list(selection.tensors(spec, published(spec)))
    files = open_checkpoint(folder)
    for rank in (0, 3):
        loaded = load(files, tensors, rank=rank, size=4)
        assert loaded.read_bytes == sum(tensor.rank_bytes(rank, 4) for tensor in tensors)
        assert all(
            tuple(loaded.state[tensor.name].shape) == tensor.rank_shape(rank, 4)
            for tensor in tensors
        )


def test_a_machine_without_preadv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, selection, folder = made(tmp_path, "smollm2-135m")
    tensors = list(selection.tensors(spec, published(spec)))
    expected = load(open_checkpoint(folder), tensors).state
    monkeypatch.delattr(os, "preadv")
    for name, tensor in load(open_checkpoint(folder), tensors).state.items():
        assert torch.equal(tensor, expected[name])


def test_tensors_outlive_the_files(tmp_path: Path) -> None:
    """They are copies, not views: what is on the disk may go."""
    spec, selection, folder = made(tmp_path, "smollm2-135m")
    loaded = load(open_checkpoint(folder), selection.tensors(spec, published(spec)))
    before = loaded.state["model.norm.weight"].clone()
    for path in folder.iterdir():
        path.write_bytes(b"")
    assert torch.equal(loaded.state["model.norm.weight"], before)
    loaded.state["model.norm.weight"].zero_()


def test_the_names_are_those_of_the_spec(tmp_path: Path) -> None:
    save_file({"language_model.model.norm.weight": torch.ones(4)}, tmp_path / "x.safetensors")
    tensor = plain("model.norm.weight", (4,), "float32")
    assert set(load(open_checkpoint(tmp_path), [tensor]).state) == {"model.norm.weight"}


def test_dimensions_of_one_do_not_matter(tmp_path: Path) -> None:
    """A file's (C, 1, K) is the spec's (C, K); the file's shape is kept, and cut alike."""
    values = torch.arange(24, dtype=torch.float32).reshape(8, 1, 3)
    save_file({"a": values, "b": torch.tensor(2.0)}, tmp_path / "x.safetensors")
    files = open_checkpoint(tmp_path)
    cut = FileTensor("a", "float32", (8, 3), "layers", 0, ("r",), 0, (Piece(8, 8, 8),))
    loaded = load(files, [cut, plain("b", (1,), "float32")], rank=1, size=2)
    assert torch.equal(loaded.state["a"], values[4:])
    assert loaded.state["b"].shape == ()


# --- Checks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (plain("a", (4, 2), "float16"), "is of type F32, and the spec says float16"),
        (plain("a", (4, 2), "int32"), "is of type F32, and the spec says int32"),
        (plain("a", (2, 4), "float32"), r"has shape \[4, 2\], and the spec says \[2, 4\]"),
        (plain("a", (8,), "float32"), "has shape"),
        (plain("b", (4, 2), "float32"), "lacks b"),
    ],
)
def test_nothing_is_moved_before_all_is_checked(
    tensor: FileTensor, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"a": torch.ones(4, 2), "good": torch.ones(2)}, tmp_path / "x.safetensors")
    monkeypatch.setattr(loading, "_run", lambda *_: pytest.fail("bytes were moved"))
    with pytest.raises(InvalidInputError, match=words):
        load(open_checkpoint(tmp_path), [plain("good", (2,), "float32"), tensor])


def test_exponents_are_published_as_plain_bytes_too(tmp_path: Path) -> None:
    save_file({"a": torch.full((4,), 127, dtype=torch.uint8)}, tmp_path / "x.safetensors")
    loaded = load(open_checkpoint(tmp_path), [plain("a", (4,), "float8_e8m0")])
    assert loaded.state["a"].dtype == torch.uint8


def test_a_cut_that_does_not_divide(tmp_path: Path) -> None:
    save_file({"a": torch.ones(6, 2)}, tmp_path / "x.safetensors")
    tensor = FileTensor("a", "float32", (6, 2), "layers", 0, ("r",), 0, (Piece(6, 6, 3),))
    with pytest.raises(UnsupportedError, match="do not divide"):
        load(open_checkpoint(tmp_path), [tensor], rank=0, size=2)


def test_a_type_that_torch_does_not_have(tmp_path: Path) -> None:
    write_file(tmp_path / "x.safetensors", {"a": entry("F4", [4], 0, 2)}, bytes(2))
    with pytest.raises(UnsupportedError, match="no type for F4"):
        load(open_checkpoint(tmp_path), [plain("a", (4,), "float4_e2m1")])


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    """Headers are read when a folder is opened; the data later."""
    save_file({"a": torch.ones(1000)}, tmp_path / "x.safetensors")
    files = open_checkpoint(tmp_path)
    os.truncate(tmp_path / "x.safetensors", 2000)
    with pytest.raises(InvalidInputError, match="ended while it was read"):
        load(files, [plain("a", (1000,), "float32")])


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4)}, tmp_path / "x.safetensors")
    files = open_checkpoint(tmp_path)
    (tmp_path / "x.safetensors").unlink()
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load(files, [plain("a", (4,), "float32")])


def test_an_error_of_one_reader_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, selection, folder = made(tmp_path)

    def broken(*_: object) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(loading, "_fill", broken)
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="the device is gone"):
        load(open_checkpoint(folder), selection.tensors(spec, published(spec)))
    assert threading.active_count() == before


def test_ctrl_c_stops_the_readers(tmp_path: Path) -> None:
    spec, selection, folder = made(tmp_path)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        load(
            open_checkpoint(folder),
            selection.tensors(spec, published(spec)),
            progress=interrupt,
        )
    assert threading.active_count() == before


def test_reads_go_forward_through_the_files(tmp_path: Path) -> None:
    spec, selection, folder = made(tmp_path)
    jobs = plan_load(open_checkpoint(folder), selection.tensors(spec, published(spec)))
    assert [job.place.offset for job in jobs] == sorted(job.place.offset for job in jobs)


def test_the_state_of_bitsandbytes_stands_beside(tmp_path: Path) -> None:
    text = torch.tensor(list(b'{"shape": [4, 4]}'), dtype=torch.uint8)
    name = "a.weight.quant_state.bitsandbytes__nf4"
    tensors = {"a.weight": torch.ones(8, 1, dtype=torch.uint8), name: text}
    save_file(tensors, tmp_path / "x.safetensors")
    loaded = load(open_checkpoint(tmp_path), [plain("a.weight", (8, 1), "uint8")])
    assert loaded.requested_bytes == 8
    assert torch.equal(loaded.companions[name], text)
    save_file({**tensors, name: text.repeat(500)}, tmp_path / "x.safetensors")
    with pytest.raises(InvalidInputError, match="no quantization state"):
        load(open_checkpoint(tmp_path), [plain("a.weight", (8, 1), "uint8")])


def test_limits_are_measured(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(1 << 20))
    limit = copy_limit("cpu", tmp_path / "x", measured_bytes=1 << 22)
    assert limit.to_device_gb_per_s > 0
    assert limit.page_cache_gb_per_s is not None
    assert limit.page_cache_gb_per_s > 0
    assert copy_limit("cpu", measured_bytes=1 << 20).page_cache_gb_per_s is None


def test_the_way_through_a_buffer_for_other_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Metal and XPU take, run on a CPU; CUDA's way needs a GPU."""
    spec, selection, folder = made(tmp_path)
    monkeypatch.setattr(loading, "_reader", lambda _: loading._ToOther())
    monkeypatch.setattr(loading, "CHUNK_BYTES", 1000)
    tensors = [t for t in selection.tensors(spec, published(spec)) if t.size_bytes < 1 << 18]
    expected = load_file(folder / "model-00001-of-00001.safetensors")
    loaded = load(open_checkpoint(folder), tensors, size=2, rank=1)
    for tensor in tensors:
        if tensor.ranges(1, 2) is None:
            own = loaded.state[tensor.name]
            assert torch.equal(own.view(torch.uint8), expected[tensor.name].view(torch.uint8))


class _Fake:
    """Streams and events of a device that is not there; says what was asked of them."""

    log: list[tuple[str, int]] = []  # noqa: RUF012  (emptied by the test)

    def __init__(self, *_: object) -> None:
        self.recorded = 0

    def record(self, _: object) -> None:
        """An event."""
        self.recorded += 1
        self.log.append(("record", id(self)))

    def synchronize(self) -> None:
        """An event or a stream."""
        self.log.append(("wait", id(self)))

    def __enter__(self) -> None:
        """torch.cuda.stream(...)"""

    def __exit__(self, *_: object) -> None:
        """torch.cuda.stream(...)"""


def test_the_two_buffers_of_cuda_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of waits and copies, on a CPU; that they overlap takes a GPU to see."""
    spec, selection, folder = made(tmp_path, "smollm2-135m")
    empty = torch.empty
    for name in ("Stream", "Event", "stream"):
        monkeypatch.setattr(torch.cuda, name, _Fake)
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: empty(*a, **k))
    monkeypatch.setattr(loading, "_reader", loading._ToCuda)
    monkeypatch.setattr(loading, "CHUNK_BYTES", 1 << 18)
    _Fake.log.clear()
    tensors = list(selection.tensors(spec, published(spec)))
    found = load(open_checkpoint(folder), tensors, readers=1).state
    expected = load_file(folder / "model-00001-of-00001.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    # Each event is waited for before its buffer is filled again, and they alternate.
    *turns, last = _Fake.log
    assert last[0] == "wait"
    waits, records = turns[::2], turns[1::2]
    assert [event for _, event in waits] == [event for _, event in records]
    assert {kind for kind, _ in waits} == {"wait"}
    assert all(a != b for a, b in pairwise(waits))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
@pytest.mark.parametrize("chunk", [1000, 1 << 20])
def test_cuda_loads_the_same(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # pragma: no cover
    spec, selection, folder = made(tmp_path, "smollm2-135m")
    monkeypatch.setattr(loading, "CHUNK_BYTES", chunk)
    # Three KV heads; a vocabulary of 512 does not divide by three.
    tensors = [t for t in selection.tensors(spec, published(spec)) if t.layer is not None]
    files = open_checkpoint(folder)
    for rank, size in ((0, 1), (1, 3)):
        expected = load(files, tensors, rank=rank, size=size).state
        found = load(files, tensors, "cuda", rank=rank, size=size).state
        for name, tensor in expected.items():
            assert torch.equal(found[name].cpu().view(torch.uint8), tensor.view(torch.uint8)), name
