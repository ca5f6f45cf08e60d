"""The run on a device: load, passes, FLOPs, free; every figure that a term needs.

Memory that runs out is a result: the phase, what was asked for, what was live.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch

from moesize.core.units import parse_bytes
from moesize.verify.devices import ContextCost, LimitReached, Meter, process_bytes
from moesize.verify.dry_run import RoutingRecorder
from moesize.verify.forward import count_flops
from moesize.verify.loading import load
from moesize.verify.passes import PassPeaks, Stopwatch, Workload, run_passes
from moesize.verify.predict import CACHE_KINDS, Routings, Subject, flop_tokens
from moesize.verify.report import Failure, PhaseRecord

if TYPE_CHECKING:
    from moesize.verify.distributed import Group
    from moesize.verify.forward import ForwardModel
    from moesize.verify.forward.caches import CacheKind
    from moesize.verify.safetensors_files import CheckpointFiles

# Called with what is done, bytes done since the last call, and bytes to do (0: no count).
Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """No progress is shown."""
    del what, done, total


class Measured(NamedTuple):
    """Bytes as the device counted them; None where a run did not get there.

    weights_*        after loading, beyond what was live before; load_peak: while loading
    driver           free memory of the device that loading took; process: what NVML says
    passes, routings by kind of cache
    flops            counted, of a prompt and of a step
    left             still live after everything was let go
    stopped          memory ran out on another rank: what comes after is missing
    """

    context: ContextCost | None = None
    weights_requested: int | None = None
    weights_allocated: int | None = None
    weights_reserved: int | None = None
    driver: int | None = None
    process: int | None = None
    load_peak: int | None = None
    load_gb_per_s: float = 0.0
    cached_share: float | None = None
    static: PassPeaks | None = None
    growing: PassPeaks | None = None
    routings: Routings | None = None
    flops: tuple[int, int] | None = None
    left: int | None = None
    peak: int | None = None
    phases: tuple[PhaseRecord, ...] = ()
    failure: Failure | None = None
    stopped: bool = False


def measure(
    subject: Subject,
    files: CheckpointFiles,
    meter: Meter,
    work: Workload,
    *,
    context: ContextCost | None = None,
    progress: Progress | None = None,
    with_passes: bool = True,
    with_flops: bool = True,
    group: Group | None = None,
) -> Measured:
    """Load, and run what is to run.

    group  the ranks that sum their parts; without one the sums are left out
    Raises MoesizeError for shards that are not what they should be.
    """
    say = progress or silent
    session = _Session(subject, meter, work, say, group)
    with meter.watch():
        start = meter.reading()
        try:
            session.load(files)
            for kind in CACHE_KINDS if with_passes else ():
                session.passes(kind)
            if with_passes and with_flops:
                session.count()
        except Exception as error:
            asked = out_of_memory(error)
            if asked is None and not (group is not None and group.out_of_memory_elsewhere):
                raise
            # The traceback of the error would keep every tensor of the pass alive.
            message = str(error).splitlines()[0][:300]
            error.__traceback__ = None
            session.failed(asked, message)
        session.let_go(start.allocated)
    found = session.found
    if found.peak is not None:
        # What was live before is no part of it: a workspace, or tensors of the caller.
        found = found._replace(peak=found.peak - start.allocated)
    return found._replace(context=context)


def out_of_memory(error: BaseException) -> int | None:
    """Bytes that were asked for when an error says that memory ran out; 0: it does not say.

    Besides torch's own error: the driver's ("CUDA error: out of memory", which page-locked buffers
    and contexts give as well), and that of cuBLAS, which has no memory left for its handle.
    """
    if isinstance(error, LimitReached):
        return error.asked_bytes
    text = str(error)
    typed = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if not typed and not (isinstance(error, RuntimeError) and any(t in text for t in _NO_MEMORY)):
        return None
    said = re.search(r"(?:[Tt]ried to allocate|[Aa]llocate) ([\d.]+) ?([KMG]iB|bytes)", text)
    if said is None:
        return 0
    return parse_bytes(said[1] + said[2].replace("bytes", "B"))


# The CPU's allocator (c10/core/impl/alloc_cpu.cpp; on Windows the second), CUDA's driver, cuBLAS.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "error: out of memory", "_ALLOC_FAILED")


class _Session:
    """State of one run: what is held, and what was found so far."""

    def __init__(
        self, subject: Subject, meter: Meter, work: Workload, say: Progress, group: Group | None
    ) -> None:
        self.subject, self.meter, self.work, self.say = subject, meter, work, say
        self.group = group
        self.watch = Stopwatch(meter, lambda name: say(name, 0, 0))
        self.found = Measured()
        self.state: dict[str, torch.Tensor] = {}
        self.model: ForwardModel | None = None

    def load(self, files: CheckpointFiles) -> None:
        """The rank's tensors onto the device."""
        meter, own = self.meter, self.subject.selection
        meter.release()
        tensors = list(own.tensors(self.subject.spec, self.subject.stored))
        total = sum(tensor.rank_bytes(own.rank, own.size) for tensor in tensors)
        free = meter.free_bytes()
        before = meter.reading()
        begin = self.watch.begin("load")
        loaded = load(
            files,
            tensors,
            meter.device,
            rank=own.rank,
            size=own.size,
            progress=lambda done: self.say("load", done, total),
        )
        self.state = {**loaded.state, **loaded.companions}
        record = self.watch.end()
        now = meter.reading()
        # Texts of bitsandbytes are no weights; they stay in the host's memory.
        texts = sum(t.untyped_storage().nbytes() for t in loaded.companions.values())
        texts = texts if meter.kind == "cpu" else 0
        counts = meter.kind != "cpu"
        self.found = self.found._replace(
            weights_requested=now.requested - before.requested - texts,
            weights_allocated=now.allocated - before.allocated if counts else None,
            weights_reserved=now.reserved - before.reserved if counts else None,
            driver=free - meter.free_bytes() if counts else None,
            process=process_bytes(meter),
            load_peak=record.peak_bytes - begin - texts,
            load_gb_per_s=loaded.gb_per_s,
            cached_share=loaded.cached_share,
        )

    def _model(self, kind: CacheKind, work: Workload) -> ForwardModel:
        reduce = None if self.group is None else self.group.sum
        return self.subject.model(self.state, self.meter.device, kind, work, reduce)

    def passes(self, kind: CacheKind) -> None:
        """A prompt and decode steps with one kind of cache."""
        # Segments that the last pass left would serve this one, which is predicted without them.
        self.meter.release()
        self.model = self._model(kind, self.work)
        recorder = RoutingRecorder()
        with recorder:
            peaks = run_passes(
                self.model, self.work, self.watch, name=kind, sample=kind == "static"
            )
        self.model = None
        seen = self.found.routings or Routings((), ())
        found = self.found._replace(peak=self.watch.most)
        if kind == "static":
            routings = seen._replace(static=(recorder.routing,))
            self.found = found._replace(static=peaks, routings=routings)
        else:
            routings = seen._replace(growing=(recorder.routing,))
            self.found = found._replace(growing=peaks, routings=routings)

    def count(self) -> None:
        """FLOPs of one sequence; scores are taken row by row, so that none is thrown away."""
        tokens = flop_tokens(self.subject)
        work = Workload(tokens=tokens, sequences=1, decode_steps=1, query_block=1)
        self.model = self._model("static", work)
        rows = self.subject.spec.embedding.vocab_size
        generator = torch.Generator().manual_seed(self.work.seed)
        ids = torch.randint(rows, (1, tokens + 1), generator=generator).to(self.meter.device)
        model = self.model
        self.watch.begin("flops")
        prompt = count_flops(lambda: model.logits(model.prefill(ids[:, :tokens])[:, -1:]))
        step = count_flops(lambda: model.logits(model.decode(ids[:, tokens])))
        self.watch.end()
        self.model = None
        self.found = self.found._replace(flops=(prompt, step))

    def failed(self, asked: int | None, message: str) -> None:
        """Memory ran out: here (0 bytes asked for: it does not say), or with None elsewhere."""
        if asked is None:
            self.found = self.found._replace(stopped=True)
            return
        parts = {name: size for name, size in (self.meter.owners() or {}).items() if size}
        if not parts:
            weights = sum(tensor.untyped_storage().nbytes() for tensor in self.state.values())
            cache = self.model.cache_bytes if self.model is not None else 0
            live = self.meter.reading().allocated
            parts = {"weights": weights, "kv_cache": cache, "other": max(0, live - weights - cache)}
        rank = self.subject.selection.rank
        failure = Failure(self.watch.current, asked or None, parts, message, rank)
        self.found = self.found._replace(failure=failure)
        if self.group is not None:
            self.group.out_of_memory()

    def let_go(self, begin: int) -> None:
        """Free everything and see what stays."""
        self.model = None
        self.state = {}
        self.meter.release()
        self.meter.synchronize()
        self.found = self.found._replace(
            left=self.meter.reading().allocated - begin, phases=tuple(self.watch.records)
        )
