"""Loading: exact contents, slices of ranks, checks before a byte moves, errors of threads."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from itertools import count
from math import prod
from pathlib import Path
from typing import Any

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
from moesize.verify.safetensors_files import CheckpointFiles, open_checkpoint
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
    monkeypatch.setattr(loading, "_Crew", lambda *_: pytest.fail("bytes were moved"))
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

    monkeypatch.setattr(loading._Source, "fill", broken)
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


class _Cuda:
    """A device that is not there, as lazy as one may be: a copy is done when it is waited for.

    Copies are kept as addresses, as the hardware has them, and what is read or written by then must
    still be held by somebody. `log` says in which thread what was asked for.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[tuple[int, str]] = []
        self.held: list[weakref.ref[torch.Tensor]] = []
        self.current = threading.local()
        self.queued = self.done = self.pinned_bytes = self.overlaps = 0
        real_empty, real_copy = torch.empty, torch.Tensor.copy_
        cuda = self

        class Stream:
            def __init__(self, _: object) -> None:
                cuda.say("stream")
                self.pending: deque[tuple[int, int, int] | Event] = deque()

            def synchronize(self) -> None:
                while self.pending:
                    self.step()

            def step(self) -> None:
                item = self.pending.popleft()
                if isinstance(item, tuple):
                    cuda.move(*item)

        class Event:
            def __init__(self, *, blocking: bool) -> None:
                assert blocking
                self.stream: Stream | None = None

            def record(self, stream: Stream) -> None:
                self.stream = stream
                stream.pending.append(self)

            def synchronize(self) -> None:
                # One that was recorded before counts from its last record on.
                while self.stream is not None and self in self.stream.pending:
                    self.stream.step()
                cuda.overlaps += self.stream is not None and bool(self.stream.pending)

        def empty(*args: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
            tensor = real_empty(*args, **options)
            self.held.append(weakref.ref(tensor))
            if pin_memory:
                self.say("pinned")
                self.pinned_bytes += tensor.nbytes
            return tensor

        def copy_(to: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> Any:
            if not non_blocking:
                return real_copy(to, source)
            self.queued += 1
            stream = self.current.stream
            stream.pending.append((to.data_ptr(), source.data_ptr(), source.nbytes))
            return to

        monkeypatch.setattr(loading, "_reader", loading._ToCuda)
        monkeypatch.setattr(torch, "empty", empty)
        monkeypatch.setattr(torch.Tensor, "copy_", copy_)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: self.say(f"device {device}"))
        monkeypatch.setattr(
            torch.cuda, "set_stream", lambda stream: setattr(self.current, "stream", stream)
        )

    def say(self, what: str) -> None:
        self.log.append((threading.get_ident(), what))

    def move(self, to: int, source: int, length: int) -> None:
        live = [tensor for tensor in (ref() for ref in self.held) if tensor is not None]
        spans = [(t.data_ptr(), t.data_ptr() + t.nbytes) for t in live]
        for address in (to, source):
            assert any(low <= address and address + length <= high for low, high in spans)
        ctypes.memmove(to, source, length)
        self.done += 1


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("chunk", [1000, 1 << 18])
def test_a_buffer_is_not_filled_while_it_is_copied(
    chunk: int, readers: int, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, files = few_tensors(tmp_path)
    expected = load(files, tensors, rank=size - 1, size=size).state
    cuda = _Cuda(monkeypatch)
    monkeypatch.setattr(loading, "CHUNK_BYTES", chunk)
    found = load(files, tensors, rank=size - 1, size=size, readers=readers).state
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert cuda.done == cuda.queued >= len(tensors)
    # While one buffer is filled, the other is copied.
    assert cuda.overlaps > 0 or chunk > 1000
    # No matter how much is loaded; and the thread's device is set before anything is made on it.
    assert cuda.pinned_bytes <= readers * 2 * chunk
    for thread in {thread for thread, _ in cuda.log}:
        said = [what for where, what in cuda.log if where == thread]
        assert said[:3] == ["device cpu", "stream", "pinned"]


@pytest.mark.parametrize("good", [0, 1, 2, 5])
def test_after_an_error_copies_end_before_anything_is_freed(
    good: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, files = few_tensors(tmp_path)
    cuda = _Cuda(monkeypatch)
    monkeypatch.setattr(loading, "CHUNK_BYTES", 1000)
    fill = loading._Source.fill
    calls = count()

    def broken(source: Any, chunk: Any, into: Any) -> None:
        if next(calls) >= good:
            raise RuntimeError("the disk is gone")
        fill(source, chunk, into)

    monkeypatch.setattr(loading._Source, "fill", broken)
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="the disk is gone"):
        load(files, tensors, readers=3)
    assert cuda.done == cuda.queued >= good
    assert threading.active_count() == before


def few_tensors(folder: Path) -> tuple[list[FileTensor], CheckpointFiles]:
    """Large and tiny ones, one of them cut in the middle of its rows; all numbers differ."""
    shapes = {"a": (64, 80), "b": (3,), "c": (1,), "d": (40, 8, 24), "e": (2, 5)}
    values = {
        name: torch.arange(prod(shape), dtype=torch.int32).reshape(shape) + 10**6 * number
        for number, (name, shape) in enumerate(shapes.items())
    }
    save_file(values, folder / "x.safetensors")
    cuts = {"a": (0, (Piece(64, 64, 16),)), "d": (1, (Piece(8, 8, 4),))}
    tensors = []
    for name, shape in shapes.items():
        dim, pieces = cuts.get(name, (None, ()))
        tensors.append(FileTensor(name, "int32", shape, "layers", 0, ("r",), dim, pieces))
    return tensors, open_checkpoint(folder)


def test_small_tensors_share_chunks_and_no_chunk_is_too_large(tmp_path: Path) -> None:
    """Each chunk costs a wait and a signal; those of one file only, and not more than a call takes.

    Linux takes 1,024 buffers in one preadv (IOV_MAX in <linux/uio.h>: UIO_MAXIOV).
    """
    many = {f"t{number:04d}": torch.full((2,), number) for number in range(1500)}
    save_file(many, tmp_path / "a.safetensors")
    save_file({"z": torch.arange(4)}, tmp_path / "b.safetensors")
    files = open_checkpoint(tmp_path)
    tensors = [plain(name, tuple(value.shape), "int64") for name, value in many.items()]
    jobs = plan_load(files, [*tensors, plain("z", (4,), "int64")])
    pieces = (piece for job in jobs for piece in job.pieces(torch.empty(job.shape)))
    chunks = list(loading._chunks(pieces))
    assert sum(map(len, chunks)) == 1501
    assert max(map(len, chunks)) <= 1024
    assert len(chunks) < 20
    assert all(len({piece.job.place.path for piece in chunk}) == 1 for chunk in chunks)
    state = load(files, tensors).state
    assert all(torch.equal(state[name], value) for name, value in many.items())


@pytest.mark.parametrize("most", [1, 37, 4096])
def test_a_system_that_reads_less_than_it_was_asked_for(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As file systems over a network do."""
    tensors, files = few_tensors(tmp_path)
    expected = load(files, tensors).state
    preadv = os.preadv

    def short(descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
        return preadv(descriptor, [buffers[0][:most]], offset, flags)

    monkeypatch.setattr(os, "preadv", short)
    found = load(files, tensors).state
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_file_that_shrinks_under_its_map(tmp_path: Path) -> None:
    """Rows are cut out of a map, which must not be read beyond the file's end: that is a signal."""
    save_file({"a": torch.ones(4096, 8)}, tmp_path / "x.safetensors")
    files = open_checkpoint(tmp_path)
    os.truncate(tmp_path / "x.safetensors", 2000)
    cut = FileTensor("a", "float32", (4096, 8), "layers", 0, ("r",), 1, (Piece(8, 8, 8),))
    with pytest.raises(InvalidInputError, match="ended while it was read"):
        load(files, [cut], size=2)
    os.truncate(tmp_path / "x.safetensors", 0)
    with pytest.raises(InvalidInputError, match="cannot be mapped"):
        load(files, [cut], size=2)


def test_memory_that_runs_out_while_chunks_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors are made while readers work; no reader is left behind."""
    tensors, files = few_tensors(tmp_path)
    monkeypatch.setattr(loading, "CHUNK_BYTES", 1000)
    empty, made = torch.empty, count()

    def scarce(*args: Any, **options: Any) -> torch.Tensor:
        if next(made) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return empty(*args, **options)

    monkeypatch.setattr(torch, "empty", scarce)
    before = threading.active_count()
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        load(files, tensors, readers=3)
    assert threading.active_count() == before


def test_huge_pages_are_asked_for_under_whole_pages_of_large_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """madvise(2): the address must be a multiple of the page size; MADV_HUGEPAGE is 14 on Linux."""
    asked: list[tuple[int, int, int]] = []

    class Library:
        def madvise(self, address: Any, length: Any, advice: int) -> int:
            asked.append((address.value, length.value, advice))
            return 0

    monkeypatch.setattr(loading, "_c_library", Library)
    monkeypatch.setattr(loading.mmap, "MADV_HUGEPAGE", 14, raising=False)
    large, little = torch.empty(9_000_001, dtype=torch.uint8), torch.empty(1000)
    loading._in_huge_pages(large)
    loading._in_huge_pages(little)
    loading._in_huge_pages(torch.empty(1 << 30, device="meta"))
    ((address, length, advice),) = asked
    page = loading.mmap.PAGESIZE
    assert address % page == 0 == length % page
    assert large.data_ptr() <= address < large.data_ptr() + page
    assert 9_000_001 - 2 * page < length <= 9_000_001
    assert advice == 14


@pytest.mark.parametrize(
    ("cores", "ranks", "readers"), [(1, 1, 4), (8, 1, 8), (96, 1, 16), (96, 8, 12)]
)
def test_readers_for_the_cores(
    cores: int, ranks: int, readers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert loading.default_readers() == readers


def test_what_is_in_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that would have to wait for the second half; one that cannot tell."""
    save_file({"a": torch.ones(1000), "b": torch.ones(1000)}, tmp_path / "x.safetensors")
    files = open_checkpoint(tmp_path)
    jobs = plan_load(files, [plain("a", (1000,), "float32"), plain("b", (1000,), "float32")])

    def half(_: int, buffers: Any, offset: int, flags: int) -> int:
        assert flags == 8  # RWF_NOWAIT of <linux/fs.h>
        if offset >= jobs[1].place.offset:
            raise BlockingIOError
        return len(buffers[0])

    monkeypatch.setattr(os, "RWF_NOWAIT", 8, raising=False)
    monkeypatch.setattr(os, "preadv", half, raising=False)
    assert loading.cached_share(jobs) == 0.5
    assert loading.cached_share([]) is None

    def refused(*_: object) -> int:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "preadv", refused)
    assert loading.cached_share(jobs) is None


def test_pace_beside_what_the_device_can_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gib = 1 << 30
    cpu = torch.device("cpu")
    path = tmp_path / "x"
    monkeypatch.setattr(loading, "copy_limit", lambda *_: loading.CopyLimit(10.0, 20.0))
    assert loading.speed_of(gib, 8.0, 1.0, cpu, path, 4 * gib) == (8.0, 10.0, 20.0, 1.0)
    # Little data, little room: nothing is compared.
    assert loading.speed_of(gib - 1, 8.0, 1.0, cpu, path, 4 * gib) == (8.0, None, None, 1.0)
    assert loading.speed_of(gib, 8.0, None, cpu, path, gib) == (8.0, None, None, None)
    gpu = torch.device("cuda", 0)
    assert loading.speed_of(gib, 8.0, 1.0, gpu, path, 40 * gib).to_device_gb_per_s is None

    def full(*_: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(loading, "copy_limit", full)
    assert loading.speed_of(gib, 8.0, 1.0, cpu, path, 4 * gib) == (8.0, None, None, 1.0)


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
