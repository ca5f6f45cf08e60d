"""Several ranks under torchrun: each loads its own slices, rank 0 gathers one report.

torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) start them. Three
parts of torch.distributed carry all there is:

    sums    a group of the device's backend: nccl (on ROCm RCCL under that name), xccl, gloo
    store   torchrun's key-value store: texts of JSON, where ranks meet, how the run ended
    ring    gloo: each rank listens to the next one, so that a connection that closes is noticed
            whatever the rank itself is doing

The first rank whose part ends early writes down why, and the news goes round the ring. The others
leave their sums and say the same; memory that ran out is gathered like any result.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import socket
import threading
import time
import weakref
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from moesize.core.errors import (
    CannotAnswerError,
    EnvironmentProblem,
    InvalidInputError,
    MoesizeError,
    UnsupportedError,
)
from moesize.core.units import MIB
from moesize.verify.report import Failure, Flops, SaidByFirst, Term, term_from_dict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor
    from torch._C._distributed_c10d import Store

    from moesize.core.engine import Constant
    from moesize.verify.devices import Meter
    from moesize.verify.phases import Progress
    from moesize.verify.report import VerifyReport

_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_MOST_RANKS = 1 << 14
# Shards of hundreds of GB are read between two meetings.
_TIMEOUT_S = 1800
# Ranks start together; what takes longer than this to come has not been started.
_START_S = 300
_LISTEN = datetime.timedelta(days=30)
_POLL_S = 0.05
# How long a rank waits for those that have heard of an end: they let go of memory first.
_GATHER_S, _HEARD_S, _NEWS_S, _JOIN_S = 120.0, 10.0, 5.0, 2.0
# Gloo's worker lets go of a tensor in microseconds, once it is scheduled.
_RELEASE_S = 10.0
_SUM_BYTES = 8 * MIB
_DONE, _ENDED = 1, 2

_RUNS = itertools.count()
_T = TypeVar("_T")


class End(NamedTuple):
    """How the part of one rank ended before the others'.

    why   memory: it ran out, which is a result. error: the rank refused. lost: it is gone
    code  exit code of the process
    """

    rank: int
    why: Literal["memory", "error", "lost"]
    message: str = ""
    hint: str = ""
    code: int = 3

    def problem(self) -> MoesizeError:
        """The same as an error of this process."""
        if self.why == "lost":
            hint = self.hint or "look at the output of that rank for its first error"
            return EnvironmentProblem(f"rank {self.rank} is gone: {self.message}", hint)
        kind = InvalidInputError if self.code == InvalidInputError.exit_code else CannotAnswerError
        return kind(f"rank {self.rank}: {self.message}", self.hint)


class EndedEarly(Exception):  # noqa: N818  (news, no bug)
    """Another rank's part has ended, so that nothing comes of going on here."""

    def __init__(self, end: End) -> None:
        super().__init__(end.message)
        self.end = end


class Group:
    """The ranks of one run.

    ranks_of_host       how many share the memory of this host
    communicator_bytes  what the driver lost to their communicator; None on a CPU
    """

    def __init__(self, rank: int, size: int, store: Store) -> None:
        self.rank, self.size = rank, size
        self.local_rank = _number("LOCAL_RANK", 0)
        # Torchrun says how many share a host; without it, all may.
        self.ranks_of_host = max(1, _number("LOCAL_WORLD_SIZE", size))
        self.communicator_bytes: int | None = None
        self.end: End | None = None
        self._store = store
        self._sums: Any = None
        self._ring: Any = dist.group.WORLD
        self._told = False
        self._meetings = 0
        self._lock = threading.Lock()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    # --- Sums -----------------------------------------------------------------------------------

    def connect(self, meter: Meter) -> None:
        """The communicator of the devices, and what it takes. Raises EnvironmentProblem."""
        backend = backend_of(meter.kind)
        # A rank without a device has said so by now; without the others, no group can start.
        self.barrier("start")
        counts = meter.kind != "cpu"
        if counts:
            torch.accelerator.set_device_index(meter.device.index or 0)
        # Torch's watchdog would end the process with a signal, and leave folders behind.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
        free, held = (meter.free_bytes(), meter.reading().reserved) if counts else (0, 0)
        timeout = datetime.timedelta(seconds=timeout_s())
        try:
            self._sums = dist.new_group(backend=backend, timeout=timeout)
            # NCCL allocates its buffers when it is first used.
            self.sum(torch.zeros(_SUM_BYTES // 4, device=meter.device))
            meter.synchronize()
        except (RuntimeError, ValueError) as error:
            raise EnvironmentProblem(f"{backend} does not start: {_first_line(error)}") from None
        if counts:
            taken = free - meter.free_bytes()
            self.communicator_bytes = max(0, taken - (meter.reading().reserved - held))

    def sum(self, x: Tensor) -> Tensor:
        """The sum of all ranks' parts, in place. Raises EndedEarly."""
        self.check()
        # Gloo's worker thread holds the tensor that it was given a moment longer than the sum takes
        # (pytorch ProcessGroupGloo.cpp runLoop): memory that would be measured. It is given a view.
        view = x.detach()
        given, problem = weakref.ref(view), None
        try:
            dist.all_reduce(view, group=self._sums)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # Its frames hold the group, whose connections have to close for the others' sake.
            problem = error.with_traceback(None)
        if problem is not None:
            end = self._news(problem)
            self._leave_sums()
            raise EndedEarly(end)
        del view
        deadline = time.monotonic() + _RELEASE_S
        while given() is not None and time.monotonic() < deadline:
            time.sleep(1e-5)
        return x

    def _leave_sums(self) -> None:
        """Close the connections of the sums: those who wait in one wake up."""
        sums, self._sums = self._sums, None
        if sums is None:
            return
        if self.ended:
            _abort(sums)
        try:
            dist.destroy_process_group(sums)
        except (RuntimeError, ValueError, AssertionError):
            return

    # --- Meetings -------------------------------------------------------------------------------

    def barrier(self, where: str) -> None:
        """Wait for all; not when memory ran out on one. Raises EndedEarly, EnvironmentProblem."""
        try:
            self.all_of(where, None)
        except EndedEarly as news:
            if news.end.why != "memory":
                raise

    def shared_path(self, path: Path) -> Path:
        """The folder that the first rank of this host has made. Raises EnvironmentProblem."""
        # Two agents of torchrun on one machine are two hosts.
        mine = [socket.gethostname(), os.environ.get("GROUP_RANK", ""), self.local_rank, str(path)]
        for host, agent, local_rank, text in self.all_of("shards", mine):
            if [host, agent] == mine[:2] and local_rank == 0:
                if Path(text).is_dir():
                    return Path(text)
                raise EnvironmentProblem(
                    f"rank {self.rank} does not see {text}, which rank 0 of its host has written",
                    "ranks of one host need one TMPDIR",
                )
        raise EnvironmentProblem(f"no rank of the host {mine[0]} has written shards")

    def gathered(self, report: VerifyReport) -> VerifyReport:
        """On rank 0 the report of all; on the others their own."""
        own = {
            "terms": [term.to_dict() for term in report.terms],
            "flops": [row._asdict() for row in report.flops],
            "failure": None if report.failure is None else report.failure._asdict(),
        }
        self._give("report", own)
        if self.rank != 0:
            self._came("gathered", 0)
            return report
        ranks = range(self.size)
        rows = {
            rank: json.loads(self._store.get(f"report {rank}"))
            for rank in ranks
            if self._came("report", rank)
        }
        self._give("gathered", None)
        failed = {rank: row["failure"] for rank, row in rows.items() if row["failure"]}
        first = self.end.rank if self.end is not None and self.end.rank in failed else None
        failure = Failure(**failed[min(failed) if first is None else first]) if failed else None
        notes = [f"rank {rank}: out of memory in {f['phase']}" for rank, f in failed.items()]
        notes += [f"rank {rank} has not reported" for rank in ranks if rank not in rows]
        terms = tuple(term_from_dict(term) for row in rows.values() for term in row["terms"])
        flops = worst_flops([[Flops(**one) for one in row["flops"]] for row in rows.values()])
        return replace(
            report, terms=terms, flops=flops, failure=failure, notes=(*report.notes, *notes)
        )

    def _give(self, what: str, value: Any) -> None:
        self._guarded(lambda: self._store.set(f"{what} {self.rank}", json.dumps(value)))

    def _came(self, what: str, rank: int) -> bool:
        """Whether a rank gives it; when memory ran out on one, all soon do."""
        try:
            return self._wait_for(what, (rank,))
        except EndedEarly as news:
            if news.end.why != "memory":
                raise
        return self._wait_for(what, (rank,), _GATHER_S)

    def all_of(self, what: str, value: Any) -> list[Any]:
        """Everybody's value; JSON, so that nothing is ever unpickled but a text."""
        self._meetings += 1
        key = f"{self._meetings} {what}"
        self._give(key, value)
        self._wait_for(key, range(self.size))
        return [
            json.loads(text)
            for text in self._guarded(
                lambda: [self._store.get(f"{key} {rank}") for rank in range(self.size)]
            )
        ]

    def _wait_for(self, what: str, ranks: Sequence[int], seconds: float | None = None) -> bool:
        """Whether all have given it in `seconds`; without them, news of an end end the waiting."""
        keys = [f"{what} {rank}" for rank in ranks]
        limit = timeout_s() if seconds is None else seconds
        deadline = time.monotonic() + limit
        while not self._guarded(lambda: self._store.check(keys)):
            if seconds is None:
                self.check()
            if time.monotonic() > deadline:
                if seconds is not None:
                    return False
                raise EnvironmentProblem(
                    f"not all ranks came to {what!r} in {limit:.0f} s",
                    "MOESIZE_VERIFY_TIMEOUT sets how many seconds they wait",
                )
            time.sleep(_POLL_S)
        return True

    def _guarded(self, run: Callable[[], _T]) -> _T:
        """Something of the store, which rank 0 or torchrun's agent keeps."""
        try:
            return run()
        except RuntimeError as error:
            raise EndedEarly(self._news(error)) from None

    # --- Ends -----------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises EndedEarly when another rank's part has ended."""
        if self.end is not None and self.end.rank != self.rank:
            # Others may wait for this rank's part of a sum.
            self._leave_sums()
            raise EndedEarly(self.end)

    @property
    def out_of_memory_elsewhere(self) -> bool:
        """Whether it was another rank that ran out of memory first."""
        end = self.end
        return end is not None and end.why == "memory" and end.rank != self.rank

    @property
    def ended(self) -> bool:
        """Whether any rank's part has ended early, this one's included."""
        return self.end is not None

    def checking(self, progress: Progress) -> Progress:
        """Progress of this rank's work that hears of the others' ends."""

        def step(what: str, done: int, total: int) -> None:
            self.check()
            progress(what, done, total)

        return step

    def tell(self, end: End) -> End:
        """Tell all ranks; returns the first end of all, which may be another's."""
        first = end
        try:
            found = self._store.compare_set("end", "", json.dumps(end))
            first = End(*json.loads(found))
        except (RuntimeError, ValueError, TypeError):
            pass  # the store went with rank 0: the ring is left
        self.end = self.end or first
        self._pass_on(_ENDED)
        return self.end

    def out_of_memory(self) -> None:
        """The others need not wait for this rank's part of a sum."""
        self.tell(End(self.rank, "memory", "memory ran out", code=1))
        self._leave_sums()

    def _news(self, error: BaseException) -> End:
        """Why something failed: the end of another rank, which may still be on its way."""
        deadline = time.monotonic() + _NEWS_S
        while self.end is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if self.end is None and not _is_connection(error):
            raise error
        return self.end or self.tell(End((self.rank + 1) % self.size, "lost", _first_line(error)))

    def _listen(self) -> None:
        """Until the next rank is done, or the run has ended, or its connection closes."""
        neighbour, byte = (self.rank + 1) % self.size, torch.zeros(1, dtype=torch.uint8)
        try:
            work = dist.irecv(byte, src=neighbour, group=self._ring)
            assert work is not None
            work.wait(_LISTEN)
            if int(byte) == _DONE:
                return
            self.tell(End(neighbour, "lost", "its part ended"))
        except (RuntimeError, AssertionError):
            if self._told:
                return
            self.tell(End(neighbour, "lost", "its connection closed"))
        if self.end is not None and self.end.rank != self.rank:
            # What waits for a sum on a device wakes up only so; gloo's connections close anyway.
            _abort(self._sums)

    def _pass_on(self, news: int) -> None:
        """One byte to the rank that listens to this one."""
        with self._lock:
            if self._told:
                return
            self._told = True
        byte = torch.full((1,), news, dtype=torch.uint8)
        try:
            dist.send(byte, dst=(self.rank - 1) % self.size, group=self._ring)
        except RuntimeError:
            return  # it is gone as well

    def close(self) -> None:
        """Leave all groups, whatever has become of them."""
        self._pass_on(_DONE)
        self._leave_sums()
        self._listener.join(_JOIN_S)
        try:
            dist.destroy_process_group()
        except (RuntimeError, ValueError, AssertionError):
            return

    def heard(self, end: End) -> bool:
        """Whether rank 0 says it, so that nobody else need; rank 0 tells the others so."""
        try:
            if self.rank == 0:
                self._store.set("heard", "1")
                return False
            deadline = time.monotonic() + _HEARD_S
            while not self._store.check(["heard"]) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
            return bool(self._store.check(["heard"]))
        except RuntimeError:
            # The store went with rank 0: it has ended, unless that was what this is about.
            return not (end.why == "lost" and end.rank == 0)

    def terms(self, meter: Meter) -> list[Term]:
        """What the communicator takes of the device; a CPU has none."""
        if self.communicator_bytes is None:
            return []
        band = _communicator_band(meter.kind, self.size)
        why = f"free memory before and after the group of {self.size} and its first sum"
        best = low = high = None
        if band is not None:
            best, low, high = round(band.value), 0, round(band.high)
            why += f"; {band.observations} logs of vLLM, {band.spread}"
        return [
            Term(
                name="communicator", predicted_bytes=best, tolerance=0.0, why=why, rank=self.rank,
                measured_bytes=self.communicator_bytes, low_bytes=low, high_bytes=high,
            )
        ]  # fmt: skip


def _communicator_band(kind: str, size: int) -> Constant | None:
    """What NCCL takes in engines' logs; None where nobody has looked (RCCL, oneCCL).

    NCCL has 4 MiB + 4.7 MiB + 512 KiB of buffers (one for each protocol) for each channel and peer
    (NVIDIA/nccl src/init.cc DEFAULT_BUFFSIZE, DEFAULT_LL128_BUFFSIZE, DEFAULT_LL_BUFFSIZE); it
    finds channels out of the links that it meets, and where it goes through the host's memory the
    device has almost none. So the lower end of the band is 0, whatever the logs say.
    """
    if kind != "cuda" or torch.version.cuda is None:
        return None
    from moesize.engines import engine_profile

    name = "nccl_8_ranks" if size >= 8 else "nccl_2_to_7_ranks"
    return engine_profile("vllm", None).constants.get(name)


def worst_flops(ranks: Sequence[Sequence[Flops]]) -> tuple[Flops, ...]:
    """Of each phase the row of the rank whose count is farthest from the formula."""
    phases = {row.phase: row for rows in ranks for row in rows}
    return tuple(
        max((row for rows in ranks for row in rows if row.phase == phase), key=_distance)
        for phase in phases
    )


def _distance(row: Flops) -> float:
    return abs(row.error)


def _is_connection(error: BaseException) -> bool:
    text = str(error).lower()
    words = ("connection", "gloo", "ccl", "peer", "timed out", "timeout", "socket", "abort")
    return isinstance(error, dist.DistError) or any(word in text for word in words)


def _abort(sums: Any) -> None:
    """End the sums in flight of NCCL, whose kernels would wait for a rank that is gone."""
    if sums is None or dist.get_backend(sums) == "gloo":
        return
    try:
        sums.abort()
    except (RuntimeError, AttributeError):
        return


def backend_of(kind: str) -> str:
    """The backend of sums between devices of a kind. Raises UnsupportedError for MPS."""
    backend = {"cuda": "nccl", "xpu": "xccl", "cpu": "gloo"}.get(kind)
    if backend is None:
        raise UnsupportedError(
            f"torch.distributed has no backend between {kind} devices",
            "start one process, or take --device cpu",
        )
    return backend


@contextmanager
def session() -> Iterator[Group | None]:
    """The group of this process under torchrun; None when it is alone.

    Raises InvalidInputError for variables that make no sense, EnvironmentProblem when ranks do not
    come or are gone; an error of another rank is raised here as well.
    """
    if world_size() == 1:
        yield None
        return
    group = _start()
    try:
        yield group
    except BaseException as error:
        end = group.tell(_end_of(group.rank, error))
        group.close()
        mine = end.rank == group.rank
        if isinstance(error, KeyboardInterrupt):
            raise
        if mine and not isinstance(error, (MoesizeError, EndedEarly)):
            raise
        problem = error if mine and isinstance(error, MoesizeError) else end.problem()
        if group.heard(end):
            raise SaidByFirst(problem) from None
        raise problem from None
    group.close()


def _end_of(rank: int, error: BaseException) -> End:
    if isinstance(error, EndedEarly):
        return error.end
    if isinstance(error, MoesizeError):
        return End(rank, "error", error.message, error.hint, error.exit_code)
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return End(rank, "lost", "it was stopped")
    return End(rank, "lost", f"{type(error).__name__}: {_first_line(error)}")


def world_size() -> int:
    """Ranks of the run. Raises InvalidInputError when the variables of torchrun make no sense."""
    size = _number("WORLD_SIZE", 1)
    if not 1 <= size <= _MOST_RANKS:
        raise InvalidInputError(f"WORLD_SIZE is {size}, not 1..{_MOST_RANKS}")
    if size == 1:
        return 1
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    if missing:
        raise InvalidInputError(
            f"WORLD_SIZE is {size} but {', '.join(missing)} is not set", "start it with torchrun"
        )
    for name, most in (("RANK", size - 1), ("LOCAL_RANK", size - 1), ("MASTER_PORT", 65535)):
        if _number(name, 0) > most:
            raise InvalidInputError(
                f"{name} is {_number(name, 0)}, not 0..{most} (WORLD_SIZE is {size})",
                "start it with torchrun",
            )
    return size


def _start() -> Group:
    seconds = min(_START_S, timeout_s())
    timeout = datetime.timedelta(seconds=seconds)

    def meet() -> Group:
        store, rank, size = next(rendezvous("env://", timeout=timeout))
        # A second run of one process must not read what the first has written.
        own = PrefixStore(f"moesize {next(_RUNS)}", store)
        dist.init_process_group("gloo", store=own, rank=rank, world_size=size, timeout=timeout)
        return Group(rank, size, PrefixStore("verify", own))

    try:
        return _patiently(meet)
    except (RuntimeError, ValueError) as error:
        raise EnvironmentProblem(
            f"rank {_number('RANK', 0)} did not meet the others in {seconds} s: "
            f"{_first_line(error)}",
            "start all ranks with torchrun; see MASTER_ADDR and MASTER_PORT",
        ) from None


def _patiently(run: Callable[[], _T]) -> _T:
    """Run it in a thread, so that Ctrl-C is heard: torch's waiting for ranks does not hear it."""
    found: list[_T] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            found.append(run())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
    if errors:
        raise errors[0]
    return found[0]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def timeout_s() -> int:
    """Seconds that are waited for another process: MOESIZE_VERIFY_TIMEOUT, else 1800."""
    return _number("MOESIZE_VERIFY_TIMEOUT", _TIMEOUT_S)


def _number(name: str, otherwise: int) -> int:
    """A variable of the environment. Raises InvalidInputError for what is no number."""
    text = os.environ.get(name, "")
    if not text:
        return otherwise
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidInputError(f"{name} is {text[:40]!r}, which is no number")
    return int(text)
