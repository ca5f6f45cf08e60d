"""Several ranks under torchrun: each loads its own slices, rank 0 gathers one report.

torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) start a group: NCCL
between CUDA devices, gloo between CPUs. Figures travel as JSON through a gloo group of their own.
A rank that dies ends the others with an error: its connections close, or the timeout passes.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from moesize.core.errors import EnvironmentProblem, InvalidInputError, MoesizeError
from moesize.core.units import MIB
from moesize.verify.report import Failure, Term, term_from_dict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from moesize.verify.devices import Meter
    from moesize.verify.report import VerifyReport

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Shards of hundreds of GB are read between two meetings.
_TIMEOUT_S = 1800
_SUM_BYTES = 8 * MIB

_T = TypeVar("_T")


class Group:
    """The ranks of one run; `communicator_bytes`: what the driver lost to their communicator."""

    def __init__(self, rank: int, size: int, local_rank: int, control: Any) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.control = control
        self.communicator_bytes: int | None = None

    def barrier(self, where: str) -> None:
        """Wait for all. Raises EnvironmentProblem when one is gone."""
        self._guarded(where, lambda: dist.barrier(group=self.control))

    def shared_path(self, path: Path) -> Path:
        """The folder that the first rank of this host has made."""
        mine = (socket.gethostname(), self.local_rank, str(path))
        for host, local_rank, text in self._all(mine):
            if host == mine[0] and local_rank == 0:
                return Path(text)
        raise EnvironmentProblem("no rank of this host has written shards")

    def gathered(self, report: VerifyReport) -> VerifyReport:
        """On rank 0 the report of all; on the others their own."""
        own = {
            "terms": [term.to_dict() for term in report.terms],
            "failure": None if report.failure is None else report.failure._asdict(),
        }
        rows = self._all(own)
        failed = {rank: row["failure"] for rank, row in enumerate(rows) if row["failure"]}
        notes = [f"rank {rank}: out of memory" for rank in failed]
        failure = Failure(**next(iter(failed.values()))) if failed else None
        terms = tuple(term_from_dict(term) for row in rows for term in row["terms"])
        if self.rank != 0:
            return report
        return replace(report, terms=terms, failure=failure, notes=(*report.notes, *notes))

    def terms(self, meter: Meter) -> list[Term]:
        """What the communicator takes."""
        if self.communicator_bytes is None:
            return []
        why = (
            f"before and after the group of {self.size} and its first sum; nothing predicts it yet"
        )
        del meter
        return [
            Term(
                name="communicator", predicted_bytes=None, tolerance=0.0, why=why, rank=self.rank,
                measured_bytes=self.communicator_bytes,
            )
        ]  # fmt: skip

    def _all(self, value: Any) -> list[Any]:
        """Everybody's value; JSON, so that nothing is ever unpickled but a text."""
        texts: list[Any] = [None] * self.size
        self._guarded(
            "gather", lambda: dist.all_gather_object(texts, json.dumps(value), group=self.control)
        )
        return [json.loads(text) for text in texts]

    def _guarded(self, where: str, run: Callable[[], _T]) -> _T:
        try:
            return run()
        except (RuntimeError, dist.DistError) as error:
            raise lost(self.rank, where, error) from None


def lost(rank: int, where: str, error: BaseException) -> EnvironmentProblem:
    """Another rank is gone."""
    first = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
    return EnvironmentProblem(
        f"rank {rank} lost another rank ({where}): {first}",
        "look at the output of the other ranks for the first error",
    )


@contextmanager
def session(meter: Meter) -> Iterator[Group | None]:
    """The group of this process under torchrun; None when it is alone."""
    size = _number("WORLD_SIZE", 1)
    if size < 2:
        yield None
        return
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    if missing:
        raise InvalidInputError(
            f"WORLD_SIZE is {size} but {', '.join(missing)} is not set", "start it with torchrun"
        )
    rank, local_rank = _number("RANK", 0), _number("LOCAL_RANK", 0)
    timeout = datetime.timedelta(seconds=timeout_s())
    free = meter.free_bytes() if meter.kind != "cpu" else 0
    held = meter.reading().reserved
    backend = "nccl" if meter.kind == "cuda" else "xccl" if meter.kind == "xpu" else "gloo"
    try:
        if meter.kind != "cpu":
            torch.accelerator.set_device_index(meter.device.index or 0)
        dist.init_process_group(backend, timeout=timeout)
        control = dist.group.WORLD
        if backend != "gloo":
            control = dist.new_group(backend="gloo", timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise lost(rank, "start", error) from None
    group = Group(rank, size, local_rank, control)
    try:
        _first_sum(meter)
        if meter.kind != "cpu":
            taken = free - meter.free_bytes()
            group.communicator_bytes = max(0, taken - (meter.reading().reserved - held))
        yield group
        group.barrier("end")
    except MoesizeError:
        raise
    except (RuntimeError, dist.DistError) as error:
        if not _is_connection(error):
            raise
        raise lost(rank, "sum over ranks", error) from None
    finally:
        # An abort, not a farewell: the others may be gone.
        dist.destroy_process_group()


def _first_sum(meter: Meter) -> None:
    """NCCL allocates its buffers when it is first used."""
    row = torch.zeros(_SUM_BYTES // 4, device=meter.device)
    dist.all_reduce(row)
    meter.synchronize()


def _is_connection(error: BaseException) -> bool:
    text = str(error).lower()
    words = ("connection", "gloo", "nccl", "peer", "timed out", "timeout", "socket")
    return isinstance(error, dist.DistError) or any(word in text for word in words)


def timeout_s() -> int:
    """Seconds that are waited for another process: MOESIZE_VERIFY_TIMEOUT, else 1800."""
    return _number("MOESIZE_VERIFY_TIMEOUT", _TIMEOUT_S)


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else otherwise
