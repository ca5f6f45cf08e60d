"""Ranks of tensor parallelism as threads of one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from threading import Barrier, Thread

import torch

from moesize.core.model_spec import ModelSpec
from moesize.verify.forward import ForwardModel, Numerics


class Meeting:
    """Sums tensors of several threads, as all-reduce does."""

    def __init__(self, size: int) -> None:
        self.barrier = Barrier(size, timeout=60)
        self.parts: dict[int, torch.Tensor] = {}

    def reduce(self, rank: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(part: torch.Tensor) -> torch.Tensor:
            self.parts[rank] = part
            self.barrier.wait()
            total = sum(self.parts[r] for r in sorted(self.parts))
            self.barrier.wait()
            assert isinstance(total, torch.Tensor)
            return total

        return run


def logits_of_ranks(
    spec: ModelSpec,
    numerics: Numerics,
    states: Sequence[Mapping[str, torch.Tensor]],
    ids: torch.Tensor,
    *,
    cut: bool,
) -> list[torch.Tensor]:
    """Each rank's part of the logits, of a prompt and a decode step; `states`: what each holds."""
    size = len(states)
    meeting = Meeting(size)
    out: dict[int, torch.Tensor] = {}
    errors: list[Exception] = []

    def run(rank: int) -> None:
        try:
            reduce = meeting.reduce(rank)
            model = ForwardModel(
                spec, numerics, states[rank], tp=(rank, size), cut=cut, reduce=reduce
            )
            first = model.logits(model.prefill(ids[:, :-1]))
            out[rank] = torch.cat((first, model.logits(model.decode(ids[:, -1]))), 1)
        except Exception as error:
            # The others would wait for this one.
            errors.append(error)
            meeting.barrier.abort()

    threads = [Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [out[rank] for rank in range(size)]
