"""Moves a rank's part of a checkpoint's tensors to a device, at the pace of disk and link.

Several reader threads fill chunks of a few MiB, of one large tensor or of many small ones; a rank's
slices are cut while reading. Long runs of a file are read straight into their place (preadv: no
page is mapped, the interpreter's lock is not held); rows of which only a short part is wanted go
through a memory map. For CUDA and ROCm every reader has two page-locked buffers and a stream of its
own, so that one buffer is filled while the other is copied; memory of the device is taken while the
first chunks are on their way. Nothing is unpickled, and nothing is moved before every tensor has
been checked against what the spec says.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections import deque
from contextlib import ExitStack, suppress
from functools import cache
from math import prod
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple, Protocol

from moesize.core.errors import InvalidInputError, UnsupportedError
from moesize.core.units import GIB, KIB, MIB, ceil_div, round_up
from moesize.files import listed
from moesize.verify.safetensors_files import CODES, DTYPES, CheckpointFiles, Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import torch
    from torch import Tensor

    from moesize.verify.file_tensors import FileTensor
    from moesize.verify.report import Speed

# Long enough for the link to run at its pace, short enough that page-locking two of them for each
# reader costs little beside the load.
CHUNK_BYTES = 4 * MIB
# Tensors that share a chunk; a system call takes 1,024 buffers at the most (IOV_MAX).
_MOST_PIECES = 256
# Parts of rows below this are copied out of a memory map: a system call for each would hold the
# interpreter's lock for longer than the copy takes.
_SHORT_RUN_BYTES = 128 * KIB
# Page-locked buffers of one reader: one is filled while the other is copied.
_BUFFERS = 2
# Below this torch copies in the calling thread (its grain is 32,768 elements): readers are many
# already, and each would start a team of threads of its own.
_GRAIN = 32_000
# Memory above this is asked for in huge pages.
_HUGE_BYTES = 4 * MIB
_PROGRESS_SECONDS = 0.1
# Places of the files that are looked up in the page cache.
_SAMPLES = 64
# bitsandbytes keeps the size of a matrix in a small JSON text beside it.
_COMPANION = ".quant_state.bitsandbytes__"
_MAX_COMPANION_BYTES = 4096


class Loaded(NamedTuple):
    """A rank's tensors on the device, by the spec's names.

    requested_bytes  of all tensors; read_bytes: taken from files (no more than a rank's ranges)
    companions       texts beside the tensors that forward passes need, on the CPU
    cached_share     of the bytes, as sampled before: what was in the page cache; None: unknown
    """

    state: dict[str, Tensor]
    requested_bytes: int
    read_bytes: int
    seconds: float
    companions: dict[str, Tensor]
    cached_share: float | None = None

    @property
    def gb_per_s(self) -> float:
        """Speed over allocation, reading and copying; not of the checks before."""
        return self.read_bytes / max(self.seconds, 1e-9) / 1e9


class CopyLimit(NamedTuple):
    """What this machine can do at most, in GB/s.

    to_device   from page-locked memory to the device; on a CPU from memory into new memory, whose
                pages the system has to clear and map first, as it has to for tensors
    page_cache  from a cached file to memory that is there, with as many readers as the load has
    """

    to_device_gb_per_s: float
    page_cache_gb_per_s: float | None


def default_readers() -> int:
    """Reader threads: one for each core that this process may use, 4 to 16.

    A reader copies at 5 to 10 GB/s, a link takes up to 55; a disk wants a few requests at a time.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # neither on Windows nor on a Mac
        cores = os.cpu_count() or 1
    # torchrun says how many processes share the machine.
    text = os.environ.get("LOCAL_WORLD_SIZE", "1")
    ranks = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 1
    return min(16, max(4, cores // max(1, ranks)))


def load(
    files: CheckpointFiles,
    tensors: Iterable[FileTensor],
    device: str | torch.device = "cpu",
    *,
    rank: int = 0,
    size: int = 1,
    readers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Loaded:
    """Load a rank's part of the given tensors.

    progress  called in this thread with the bytes that have arrived since the last call
    Raises InvalidInputError for a missing, misdescribed or cut-off tensor, UnsupportedError for a
    cut that is not possible; torch's own out-of-memory error passes through.
    """
    import torch

    jobs = plan_load(files, tensors, rank, size)
    companions = _companions(files, jobs)
    cached = cached_share(jobs)
    begin = time.perf_counter()
    state = load_jobs(jobs, torch.device(device), readers=readers, progress=progress)
    seconds = time.perf_counter() - begin
    requested = sum(job.size_bytes for job in jobs)
    return Loaded(state, requested, requested, seconds, companions, cached)


def load_jobs(
    jobs: Sequence[Job],
    device: torch.device,
    *,
    readers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Tensors on the device, by name, made in the order of the jobs. Raises InvalidInputError."""
    import torch

    state: dict[str, Tensor] = {}
    types = {code: torch_dtype(code) for code in {job.code for job in jobs}}
    # Memory that the allocator kept may still be in use by work that runs on the device.
    _wait(device)
    total = sum(job.size_bytes for job in jobs)
    count = min(readers or default_readers(), ceil_div(total, CHUNK_BYTES))
    with ExitStack() as stack:
        sources = {
            path: stack.enter_context(_Source(path)) for path in {job.place.path for job in jobs}
        }
        crew = stack.enter_context(_Crew(sources, max(1, count), progress))

        def pieces() -> Iterator[_Piece]:
            for job in jobs:
                tensor = torch.empty(job.shape, dtype=types[job.code], device=device)
                _in_huge_pages(tensor)
                state[job.name] = tensor
                yield from job.pieces(tensor)

        # Tensors are made as they come: taking memory from a driver takes time, too.
        for chunk in _chunks(pieces()):
            crew.put(chunk)
        crew.finish()
    return state


def _in_huge_pages(tensor: Tensor) -> None:
    """On a CPU, ask for huge pages under a large tensor that nothing has been written to.

    Clearing and mapping pages of 4 KiB one by one takes several times as long as the copy. Where
    the system has none, or uses them anyway, nothing changes; where the host of a virtual machine
    has to give the memory first, that takes longer than either.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or tensor.device.type != "cpu" or tensor.nbytes < _HUGE_BYTES:
        return
    begin = round_up(tensor.data_ptr(), mmap.PAGESIZE)
    length = (tensor.data_ptr() + tensor.nbytes - begin) // mmap.PAGESIZE * mmap.PAGESIZE
    _c_library().madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), advice)


@cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def torch_dtype(code: str) -> torch.dtype:
    """The torch type of a safetensors code. Raises UnsupportedError."""
    import torch

    names = {
        "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32",
        "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
        "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    }  # fmt: skip
    known = getattr(torch, names.get(code, ""), None)
    if not isinstance(known, torch.dtype):
        raise UnsupportedError(f"this torch {torch.__version__} has no type for {code}")
    return known


# --- What is to be read ---------------------------------------------------------------------------


class Job(NamedTuple):
    """One tensor: where it stands and what of it a rank holds.

    rows   how often the runs repeat, row_bytes apart; runs: (first, end) bytes within a row
    """

    name: str
    code: str
    shape: tuple[int, ...]
    place: Place
    rows: int
    row_bytes: int
    runs: tuple[tuple[int, int], ...]

    @property
    def width(self) -> int:
        """Bytes of a row that are read."""
        return sum(end - first for first, end in self.runs)

    @property
    def size_bytes(self) -> int:
        """Bytes that are read."""
        return self.rows * self.width

    def pieces(self, tensor: Tensor) -> Iterator[_Piece]:
        """The reads that fill a tensor, in its own order, each of at most a chunk."""
        offset, rows, runs = self.place.offset, self.rows, self.runs
        if not self.size_bytes:
            return
        if self.width == self.row_bytes:
            rows, runs = 1, ((0, rows * self.row_bytes),)
        at = 0
        if rows > 1 and self.width <= min(CHUNK_BYTES, len(runs) * _SHORT_RUN_BYTES):
            step = CHUNK_BYTES // self.width
            for row in range(0, rows, step):
                count = min(step, rows - row)
                length = count * self.width
                yield _Piece(self, tensor, at, length, offset + row * self.row_bytes, count)
                at += length
            return
        for row in range(offset, offset + rows * self.row_bytes, self.row_bytes):
            for first, end in runs:
                for start in range(row + first, row + end, CHUNK_BYTES):
                    length = min(CHUNK_BYTES, row + end - start)
                    yield _Piece(self, tensor, at, length, start, 0)
                    at += length


class _Piece(NamedTuple):
    """One read: bytes `at` to `at + length` of a tensor, from `offset` of the job's file on.

    rows  0: they lie there as they are; else the job's runs of so many rows
    """

    job: Job
    tensor: Tensor
    at: int
    length: int
    offset: int
    rows: int


# Pieces of one file, together at most CHUNK_BYTES.
_Chunk = list[_Piece]


def _chunks(pieces: Iterable[_Piece]) -> Iterator[_Chunk]:
    """Small tensors go together: each chunk has a price of its own."""
    chunk: _Chunk = []
    used = 0
    for piece in pieces:
        full = used + piece.length > CHUNK_BYTES or len(chunk) == _MOST_PIECES
        if chunk and (full or piece.job.place.path != chunk[0].job.place.path):
            yield chunk
            chunk, used = [], 0
        chunk.append(piece)
        used += piece.length
    if chunk:
        yield chunk


def plan_load(
    files: CheckpointFiles, tensors: Iterable[FileTensor], rank: int = 0, size: int = 1
) -> list[Job]:
    """What is to be read for a rank, every tensor checked. Raises InvalidInputError.

    In the order of the files, so that readers move forward through them.
    """
    wanted = list(tensors)
    names = files.aligned(tensor.name for tensor in wanted)
    jobs = [_job(files.place(names[tensor.name]), tensor, rank, size) for tensor in wanted]
    return sorted(jobs, key=lambda job: (job.place.path, job.place.offset))


def _job(place: Place, tensor: FileTensor, rank: int, size: int) -> Job:
    stored = place.tensor
    _check(place, tensor)
    ranges = tensor.ranges(rank, size)
    if ranges is None or tensor.dim is None:
        whole = ((0, stored.size_bytes),)
        return Job(tensor.name, stored.dtype, stored.shape, place, 1, stored.size_bytes, whole)
    # Files may have dimensions of 1 that the spec leaves out, or the other way round.
    item_bits = DTYPES[stored.dtype][1]
    if item_bits % 8:
        raise UnsupportedError(f"{tensor.name}: {stored.dtype} is not cut")
    inner = prod(tensor.shape[tensor.dim + 1 :]) * item_bits // 8
    rows = prod(tensor.shape[: tensor.dim])
    runs = tuple((first * inner, end * inner) for first, end in ranges if end > first)
    shape = _cut_shape(stored.shape, tensor, sum(end - first for first, end in ranges))
    return Job(
        tensor.name, stored.dtype, shape, place, rows, tensor.shape[tensor.dim] * inner, runs
    )


def _cut_shape(stored: tuple[int, ...], tensor: FileTensor, held: int) -> tuple[int, ...]:
    """The file's shape with the cut dimension shortened; the spec's where that is not clear."""
    assert tensor.dim is not None
    if stored == tensor.shape:
        return (*stored[: tensor.dim], held, *stored[tensor.dim + 1 :])
    wide = [axis for axis, length in enumerate(stored) if length != 1]
    place = sum(length != 1 for length in tensor.shape[: tensor.dim])
    if tensor.shape[tensor.dim] == 1:
        return stored
    axis = wide[place]
    return (*stored[:axis], held, *stored[axis + 1 :])


def _check(place: Place, tensor: FileTensor) -> None:
    stored = place.tensor
    accepted = [CODES.get(tensor.dtype, "")]
    if tensor.dtype == "float8_e8m0":
        # Exponents are published as plain bytes as well.
        accepted.append("U8")
    if stored.dtype not in accepted:
        raise InvalidInputError(
            f"{place.path}: {listed([tensor.name])} is of type {stored.dtype}, and the spec says "
            f"{tensor.dtype}",
            "is it the model (and the quantization) that the spec describes?",
        )
    if _without_ones(stored.shape) != _without_ones(tensor.shape):
        raise InvalidInputError(
            f"{place.path}: {listed([tensor.name])} has shape {list(stored.shape)}, and the spec "
            f"says {list(tensor.shape)}",
            "is it the model that the spec describes?",
        )


def _without_ones(shape: Sequence[int]) -> list[int]:
    """Dimensions of one element say nothing about where bytes stand."""
    return [length for length in shape if length != 1]


def _companions(files: CheckpointFiles, jobs: Sequence[Job]) -> dict[str, Tensor]:
    import torch

    out: dict[str, Tensor] = {}
    quantized = {job.name for job in jobs if job.code == "U8" and job.name.endswith(".weight")}
    if not quantized:
        return out
    for name in files.holders:
        owner, mark, kind = name.partition(_COMPANION)
        if not mark or owner not in quantized:
            continue
        place = files.place(name)
        if place.tensor.dtype != "U8" or place.tensor.size_bytes > _MAX_COMPANION_BYTES:
            raise InvalidInputError(f"{place.path}: {name} is no quantization state")
        out[owner + mark + kind] = tensor = torch.empty(place.tensor.size_bytes, dtype=torch.uint8)
        with _Source(place.path) as source:
            source.read(place.offset, [tensor])
    return out


# --- Reading --------------------------------------------------------------------------------------


class _Source:
    """An open file: runs by preadv, rows through a memory map made when it is first needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = -1
        self.mapping: mmap.mmap | None = None
        self.lock = threading.Lock()

    def __enter__(self) -> _Source:
        try:
            self.descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise InvalidInputError(f"{self.path}: cannot be read ({error.strerror})") from error
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self.descriptor)
        # The mapping goes with the last tensor that looks at it.
        self.mapping = None

    def fill(self, chunk: _Chunk, into: Sequence[Tensor]) -> None:
        """Read each piece into its own bytes in the memory of the CPU."""
        first = 0
        while first < len(chunk):
            if chunk[first].rows:
                self._read_rows(chunk[first], into[first])
                first += 1
                continue
            # Tensors that follow one another in the file are read at once.
            end = chunk[first].offset
            last = first
            while last < len(chunk) and not chunk[last].rows and chunk[last].offset == end:
                end += chunk[last].length
                last += 1
            self.read(chunk[first].offset, into[first:last])
            first = last

    def read(self, offset: int, into: Sequence[Tensor]) -> None:
        """Fill tensors of bytes, one after the other, from `offset` on."""
        if not hasattr(os, "preadv"):  # Windows
            for tensor in into:
                tensor.copy_(self._mapped()[offset : offset + tensor.numel()])
                offset += tensor.numel()
            return
        windows = _windows(into)
        while windows:
            try:
                count = os.preadv(self.descriptor, windows, offset)
            except OSError as error:
                raise InvalidInputError(
                    f"{self.path}: cannot be read ({error.strerror})"
                ) from error
            if count == 0:
                missing = sum(map(len, windows))
                raise InvalidInputError(
                    f"{self.path}: ended while it was read, {missing:,} bytes too early"
                )
            offset += count
            while windows and count >= len(windows[0]):
                count -= len(windows.pop(0))
            if count:
                windows[0] = windows[0][count:]

    def _read_rows(self, piece: _Piece, into: Tensor) -> None:
        """Fill `into` with the job's runs of `piece.rows` rows."""
        job = piece.job
        end = piece.offset + piece.rows * job.row_bytes
        mapped = self._mapped()
        if mapped.numel() < end:
            raise InvalidInputError(
                f"{self.path}: ended while it was read, {end - mapped.numel():,} bytes too early"
            )
        rows = mapped[piece.offset : end].view(piece.rows, job.row_bytes)
        wanted = into.view(piece.rows, job.width)
        at = 0
        for first, last in job.runs:
            _copy_columns(rows[:, first:last], wanted[:, at : at + last - first])
            at += last - first

    def _mapped(self) -> Tensor:
        import torch

        with self.lock:
            if self.mapping is None:
                # A copy-on-write map: torch warns of memory that cannot be written to.
                try:
                    self.mapping = mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_COPY)
                except (OSError, ValueError) as error:  # ValueError: the file is empty by now
                    raise InvalidInputError(f"{self.path}: cannot be mapped ({error})") from error
            return torch.frombuffer(self.mapping, dtype=torch.uint8)


def _windows(tensors: Iterable[Tensor]) -> list[memoryview]:
    """The memory of tensors of bytes, which must outlive this; neighbours make one."""
    spans: list[list[int]] = []
    for tensor in tensors:
        begin = tensor.data_ptr()
        if spans and spans[-1][1] == begin:
            spans[-1][1] += tensor.numel()
        else:
            spans.append([begin, begin + tensor.numel()])
    return [
        memoryview((ctypes.c_char * (end - begin)).from_address(begin)).cast("B")
        for begin, end in spans
    ]


def _copy_columns(source: Tensor, target: Tensor) -> None:
    """A strided copy in this thread, in words of 8 bytes where everything is aligned to them."""
    import torch

    def fits(tensor: Tensor) -> bool:
        facts = (tensor.storage_offset(), tensor.stride(0), tensor.shape[1], tensor.data_ptr())
        return all(fact % 8 == 0 for fact in facts)

    if source.shape[0] > 1 and fits(source) and fits(target):
        source, target = source.view(torch.int64), target.view(torch.int64)
    step = max(1, _GRAIN // source.shape[1])
    for row in range(0, source.shape[0], step):
        target[row : row + step].copy_(source[row : row + step])


class _Crew:
    """Threads that read chunks as they are given; the first error stops them all."""

    def __init__(
        self,
        sources: dict[Path, _Source],
        readers: int,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.sources, self.progress = sources, progress
        self.chunks: SimpleQueue[_Chunk | None] = SimpleQueue()
        # How each thread ended: None, or with an error.
        self.ends: SimpleQueue[BaseException | None] = SimpleQueue()
        self.stop = threading.Event()
        self.left = readers
        self.arrived = [0] * readers
        self.shown = 0
        self.next_look = 0.0
        self.threads = [
            threading.Thread(target=self._work, args=(number,), name=f"reader-{number}")
            for number in range(readers)
        ]

    def __enter__(self) -> _Crew:
        try:
            for thread in self.threads:
                thread.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # Ctrl-C arrives here too: readers end after the chunk that they are at.
        self.stop.set()
        self._close()
        for thread in self.threads:
            if thread.ident is not None:
                thread.join()
        # After an error chunks are left, and they hold tensors.
        self.chunks = SimpleQueue()

    def put(self, chunk: _Chunk) -> None:
        """Let a chunk be read. Raises what a reader has raised."""
        self.chunks.put(chunk)
        if time.monotonic() >= self.next_look:
            self.next_look = time.monotonic() + _PROGRESS_SECONDS
            if not self.ends.empty():
                self._ended()
            self._show()

    def finish(self) -> None:
        """Wait until all is read. Raises what a reader has raised."""
        self._close()
        while self.left:
            with suppress(Empty):
                self._ended(_PROGRESS_SECONDS)
            self._show()

    def _close(self) -> None:
        for _ in self.threads:
            self.chunks.put(None)

    def _ended(self, timeout: float | None = None) -> None:
        error = self.ends.get(timeout=timeout)
        self.left -= 1
        if error is not None:
            raise error

    def _show(self) -> None:
        """Readers only add to a figure of theirs: waking this thread for each chunk takes time."""
        arrived = sum(self.arrived)
        if self.progress is not None and arrived > self.shown:
            self.progress(arrived - self.shown)
            self.shown = arrived

    def _work(self, number: int) -> None:
        reader: _Reader | None = None
        try:
            try:
                while (chunk := self.chunks.get()) is not None and not self.stop.is_set():
                    reader = reader or _reader(chunk[0].tensor.device)
                    reader.take(chunk, self.sources[chunk[0].job.place.path])
                    self.arrived[number] += sum(piece.length for piece in chunk)
            finally:
                # After an error too: nothing may be freed while it is copied to.
                if reader is not None:
                    reader.finish()
            self.ends.put(None)
        except BaseException as error:
            # The others need not wait until this one has been heard of.
            self.stop.set()
            self.ends.put(error)


class _Reader(Protocol):
    """What a thread does with a chunk."""

    def take(self, chunk: _Chunk, source: _Source) -> None:
        """Read a chunk; its copies may still run when this returns."""

    def finish(self) -> None:
        """Wait for the copies."""


def _reader(device: torch.device) -> _Reader:
    if device.type == "cpu":
        return _ToMemory()
    return _ToCuda(device) if device.type == "cuda" else _ToOther()


def _targets(chunk: _Chunk) -> list[Tensor]:
    """The bytes of the tensors that the pieces fill."""
    import torch

    out = []
    for piece in chunk:
        flat = piece.tensor.view(-1).view(torch.uint8)
        whole = flat.numel() == piece.length
        out.append(flat if whole else flat[piece.at : piece.at + piece.length])
    return out


class _ToMemory:
    """Straight into the tensors."""

    def take(self, chunk: _Chunk, source: _Source) -> None:
        """Read a chunk."""
        source.fill(chunk, _targets(chunk))

    def finish(self) -> None:
        """Nothing is pending."""


class _ToOther:
    """Through a buffer, one step after the other: devices whose streams are not known here."""

    def __init__(self) -> None:
        import torch

        self.buffer = torch.empty(CHUNK_BYTES, dtype=torch.uint8)

    def take(self, chunk: _Chunk, source: _Source) -> None:
        """Read a chunk."""
        parts = _parts(self.buffer, chunk)
        source.fill(chunk, parts)
        for target, part in zip(_targets(chunk), parts, strict=True):
            target.copy_(part)

    def finish(self) -> None:
        """Nothing is pending."""


class _ToCuda:
    """Through two page-locked buffers, on a stream of its own.

    Everything is made in the reader's own thread, whose current device and stream are its own: of
    a new thread the device is the first one, and touching that would make a context there.
    """

    def __init__(self, device: torch.device) -> None:
        import torch

        torch.cuda.set_device(device)
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        torch.cuda.set_stream(self.stream)
        # Page-locked bytes, and when the last copy out of them is done.
        self.buffers: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def take(self, chunk: _Chunk, source: _Source) -> None:
        """Read a chunk; its copies may still run when this returns."""
        buffer, copied = self._buffer()
        parts = _parts(buffer, chunk)
        source.fill(chunk, parts)
        for target, part in zip(_targets(chunk), parts, strict=True):
            target.copy_(part, non_blocking=True)
        copied.record(self.stream)
        self.buffers.append((buffer, copied))

    def _buffer(self) -> tuple[Tensor, torch.cuda.Event]:
        """The one that was copied longest ago, once that is done."""
        import torch

        if len(self.buffers) < _BUFFERS:
            # Page-locking takes milliseconds: a second buffer only when there is work for it.
            buffer = torch.empty(CHUNK_BYTES, dtype=torch.uint8, pin_memory=True)
            # A thread that waits leaves its core to one that reads.
            return buffer, torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        buffer, copied = self.buffers[0]
        copied.synchronize()
        return self.buffers.popleft()

    def finish(self) -> None:
        """Wait for the copies."""
        self.stream.synchronize()


def _parts(buffer: Tensor, chunk: _Chunk) -> Sequence[Tensor]:
    """A buffer's bytes for each piece, one after the other."""
    lengths = [piece.length for piece in chunk]
    return buffer[: sum(lengths)].split_with_sizes(lengths)


# --- What the machine can do ----------------------------------------------------------------------


def copy_limit(
    device: str | torch.device = "cpu",
    path: Path | None = None,
    *,
    readers: int | None = None,
    measured_bytes: int = 512 * MIB,
) -> CopyLimit:
    """The device's own copy rate, and that of reading `path` once it is cached.

    Needs `measured_bytes` of free memory on the device and of the host. The best of three rounds.
    """
    import torch

    target = torch.device(device)
    pinned = target.type == "cuda"
    source = torch.ones(measured_bytes, dtype=torch.uint8, pin_memory=pinned)
    known = None
    if target.type != "cpu":
        known = torch.zeros(measured_bytes, dtype=torch.uint8, device=target)

    def copy() -> Tensor:
        into = known
        if into is None:
            into = torch.empty(measured_bytes, dtype=torch.uint8)
            _in_huge_pages(into)
        into.copy_(source, non_blocking=pinned)
        _wait(target)
        return into

    to_device = measured_bytes / _best_of(3, copy) / 1e9
    cached = None if path is None else _cache_rate(path, source, readers or default_readers())
    return CopyLimit(to_device, cached)


def speed_of(
    loaded_bytes: int,
    gb_per_s: float,
    cached: float | None,
    device: torch.device,
    path: Path,
    free_bytes: int,
) -> Speed:
    """A load's pace beside what the device can do, measured now. Little data says nothing.

    gb_per_s, cached  of the load; path: a file that was loaded
    free_bytes        of the device; the limits are measured where there is room for it
    """
    from moesize.verify.report import Speed

    pace = Speed(round(gb_per_s, 3), None, None, None if cached is None else round(cached, 3))
    # Page-locking buffers and starting threads takes some 50 ms: as much as 2 GiB on a fast link.
    enough = GIB if device.type == "cpu" else 8 * GIB
    if loaded_bytes < enough or free_bytes < 2 * GIB:
        return pace
    try:
        limit = copy_limit(device, path)
    except (RuntimeError, MemoryError, InvalidInputError):
        # No room for it in the host's memory, a file that is gone: the measurement stands.
        return pace
    found = limit.page_cache_gb_per_s
    return pace._replace(
        to_device_gb_per_s=round(limit.to_device_gb_per_s, 3),
        page_cache_gb_per_s=None if found is None else round(found, 3),
    )


def cached_share(jobs: Sequence[Job]) -> float | None:
    """How much of what is to be read is in the page cache; None where the system does not say.

    Single bytes at even distances are read on the condition that nothing is waited for
    (RWF_NOWAIT, Linux): what a disk would have to bring is refused.
    """
    flag = getattr(os, "RWF_NOWAIT", None) if hasattr(os, "preadv") else None
    total = sum(job.size_bytes for job in jobs)
    if flag is None or not total:
        return None
    places: dict[Path, list[int]] = {}
    passed, due = 0, 0
    for job in jobs:
        # As if the runs of a row lay together: this is a sample.
        while due < passed + job.size_bytes:
            row, rest = divmod(due - passed, job.width)
            within = row * job.row_bytes + job.runs[0][0] + rest
            places.setdefault(job.place.path, []).append(job.place.offset + within)
            due += ceil_div(total, _SAMPLES)
        passed += job.size_bytes
    there = 0
    for path, offsets in places.items():
        with _Source(path) as source:
            for offset in offsets:
                try:
                    there += os.preadv(source.descriptor, [bytearray(1)], offset, flag)
                except BlockingIOError:
                    pass
                except OSError:
                    return None
    return there / sum(map(len, places.values()))


def _wait(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        torch.accelerator.synchronize()


def _cache_rate(path: Path, into: Tensor, readers: int) -> float:
    """Reading the first bytes of a file into memory that is there already."""
    length = min(into.numel(), path.stat().st_size)
    step = min(CHUNK_BYTES, ceil_div(length, readers))
    with _Source(path) as source:

        def once() -> None:
            starts = deque(range(0, length, step))

            def work() -> None:
                while True:
                    try:
                        start = starts.popleft()
                    except IndexError:
                        return
                    source.read(start, [into[start : min(start + step, length)]])

            threads = [threading.Thread(target=work) for _ in range(readers)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        # The first round brings the file into the cache.
        once()
        return length / _best_of(3, once) / 1e9


def _best_of(rounds: int, run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        made = run()
        seconds.append(time.perf_counter() - begin)
        # Giving memory back is not part of it.
        del made
    return max(min(seconds), 1e-9)
