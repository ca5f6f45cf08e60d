"""The passes that are measured, and that a dry run predicts: the same code for both.

S sequences of T tokens: a prompt, decode steps, logits and a sample of S rows.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from moesize.core.allocator import allocated_bytes
from moesize.verify.cuda_scratch import sort_scratch
from moesize.verify.report import PhaseRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from moesize.verify.devices import Reading
    from moesize.verify.forward import ForwardModel

_TEMPERATURE = 0.8
_TOP_P = 0.95


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is run. query_block: rows of a prompt that are scored at once."""

    tokens: int
    sequences: int
    decode_steps: int
    seed: int = 0
    query_block: int = 128

    @property
    def longest(self) -> int:
        """Tokens of a sequence at the end."""
        return self.tokens + self.decode_steps


class Probe(Protocol):
    """What a pass asks of a device; a meter or a dry run."""

    device: torch.device
    counts_blocks: bool

    def reading(self) -> Reading:
        """What is live now."""

    def peak(self) -> Reading:
        """The most since `reset_peak`."""

    def reset_peak(self) -> None:
        """Count peaks from here on."""

    def owners(self) -> dict[str, int] | None:
        """Bytes by owner at the peak."""

    def synchronize(self) -> None:
        """Wait until all is done."""


class PassPeaks(NamedTuple):
    """Bytes of blocks for passes, of tensors for what a formula of shapes is held against.

    prefill, decode   blocks, the most beyond what was live before and beyond the cache that stays
    cache             requested: what the sequences leave behind after the last step
    logits, sampling  requested: the most beyond what was live before
    total             blocks, the most of all, everything included
    phases            what was live in each
    """

    prefill: int
    decode: int
    cache: int
    logits: int
    sampling: int
    total: int
    phases: tuple[PhaseRecord, ...] = ()


class Stopwatch:
    """Phases of a run in order, with what was live; also what an OOM is explained with.

    requested_peak  of the last phase: bytes of tensors beyond those that were live before
    """

    def __init__(self, probe: Probe, on_phase: Callable[[str], None] | None = None) -> None:
        self.probe = probe
        self.records: list[PhaseRecord] = []
        self.current = "start"
        self.most = 0
        self._on_phase = on_phase
        self._begin = (0, 0.0)
        self._requested = 0
        self.requested_peak = 0

    def begin(self, name: str) -> int:
        """A phase begins; returns what is live."""
        gc.collect()  # cycles would live on until the collector happens to run
        self.probe.synchronize()
        self.probe.reset_peak()
        self.current = name
        if self._on_phase is not None:
            self._on_phase(name)
        reading = self.probe.reading()
        self._requested = reading.requested
        self._begin = (reading.allocated, time.perf_counter())
        return reading.allocated

    def end(self) -> PhaseRecord:
        """It ends; its record."""
        self.probe.synchronize()
        gc.collect()
        begin, since = self._begin
        most, live = self.probe.peak(), self.probe.reading().allocated
        peak = most.allocated
        self.most = max(self.most, peak)
        self.requested_peak = most.requested - self._requested
        owners = self.probe.owners() or {}
        held = {name: size for name, size in sorted(owners.items()) if size}
        record = PhaseRecord(self.current, begin, peak, live, time.perf_counter() - since, held)
        self.records.append(record)
        return record


def run_passes(
    model: ForwardModel, work: Workload, watch: Stopwatch, *, name: str, sample: bool
) -> PassPeaks:
    """Prompt, decode steps, and with `sample` logits and a choice for every sequence."""
    device = watch.probe.device
    rows = model.spec.embedding.vocab_size
    generator = None
    if device.type != "meta":
        generator = torch.Generator(device="cpu").manual_seed(work.seed)
    shape = (work.sequences, work.longest)
    ids = torch.randint(rows, shape, generator=generator).to(device)
    first = len(watch.records)
    begin = watch.begin(f"{name} prefill")
    before = watch.probe.reading().requested
    hidden = model.prefill(ids[:, : work.tokens])
    last = hidden[:, -1:].clone()
    del hidden
    record = watch.end()
    kept = max(0, record.end_bytes - begin - _block_of(last, watch.probe))
    prefill = record.peak_bytes - begin - kept
    decode = 0
    for step in range(work.decode_steps):
        start = watch.begin(f"{name} decode {step}")
        out = model.decode(ids[:, work.tokens + step])
        del out
        record = watch.end()
        decode = max(decode, record.peak_bytes - start)
    # Tensors, not blocks: what a formula of shapes is held against.
    cache = watch.probe.reading().requested - before - last.untyped_storage().nbytes()
    logits = sampling = 0
    if sample:
        logits, sampling = _sampled(model, last, watch, name)
    phases = tuple(watch.records[first:])
    return PassPeaks(prefill, decode, cache, logits, sampling, watch.most, phases)


def _block_of(tensor: Tensor, probe: Probe) -> int:
    size = tensor.untyped_storage().nbytes()
    return allocated_bytes(size) if probe.counts_blocks else size


def _sampled(model: ForwardModel, last: Tensor, watch: Stopwatch, name: str) -> tuple[int, int]:
    watch.begin(f"{name} logits")
    scores = model.logits(last)[:, 0]
    watch.end()
    logits = watch.requested_peak
    watch.begin(f"{name} sampling")
    sample_tokens(scores)
    watch.end()
    return logits, watch.requested_peak


def logits_bytes(sequences: int, rows: int, *, softcap: bool = False, copied_head: int = 0) -> int:
    """Peak of logits: `8 * S * V` bytes, with a softcap `12 * S * V`.

    The product as float32 stands beside its scaled copy (in 16 bits beside the product itself,
    which is less). A softcap holds three. copied_head: bytes of a head that is stored in another
    type than the computation's, and copied.
    """
    return copied_head + (12 if softcap else 8) * sequences * rows


def sampling_bytes(sequences: int, rows: int, kind: str = "cpu") -> int:
    """Peak of top-p sampling beyond the logits, `24 * S * V` bytes plus S * 4 or 8.

    Sorted scores (4), their order (8 bytes each), probabilities, cumulated ones, and those before
    each (4 each) stand side by side. On CUDA the sort itself holds more: scaled scores (4), results
    (4 + 8) and its scratch (`cuda_scratch.sort_scratch`), which makes 36 to 48 bytes.
    """
    after = 24 * sequences * rows
    if kind != "cuda":
        return after
    return max(after, 16 * sequences * rows + sum(sort_scratch(sequences * rows, rows, 4)))


@torch.no_grad()
def sample_tokens(logits: Tensor) -> Tensor:
    """logits (S, V) float32 -> tokens (S): temperature, top-p over sorted scores, a random choice.

    The choice is the largest of p / q with q exponential (the Gumbel trick), as engines do.
    """
    scaled = logits / _TEMPERATURE
    ordered, order = scaled.sort(dim=-1, descending=True)
    del scaled
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    del ordered
    probabilities.masked_fill_(before > _TOP_P, 0.0)
    del before
    noise = torch.empty_like(probabilities).exponential_(1.0)
    best = (probabilities / noise).argmax(-1, keepdim=True)
    return order.gather(-1, best)[:, 0]
