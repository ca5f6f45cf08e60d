"""Predicted beside measured: the terms of a report, and the whole model out of two runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moesize.core.units import KIB, MIB, format_bytes
from moesize.verify import predict
from moesize.verify.passes import logits_bytes, sampling_bytes
from moesize.verify.report import Extrapolation, Flops, Owned, Term

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moesize.core.engine import Constant
    from moesize.verify.devices import Meter
    from moesize.verify.forward.caches import CacheKind
    from moesize.verify.passes import PassPeaks, Workload
    from moesize.verify.phases import Measured
    from moesize.verify.predict import DryPeaks, Subject

# Share of the prediction by which a term may differ where --tolerance says nothing.
TOLERANCES = {
    "weights": 0.0,
    "weights.blocks": 0.001,
    "weights.reserved": 0.01,
    "load_peak": 0.01,
    "kv_cache": 0.001,
    "prefill_peak": 0.05,
    "decode_peak": 0.05,
    "logits_peak": 0.05,
    "sampling_peak": 0.05,
    "peak": 0.01,
    "flops": 0.005,
}
# cuBLAS keeps a workspace once it has multiplied: 8 MiB, and 32 MiB on Hopper and later
# (pytorch aten/src/ATen/cuda/CublasHandlePool.cpp).
WORKSPACE_BYTES = 32 * MIB
# What was reserved before may serve a tensor, or the last segment be hardly begun.
SEGMENT_BYTES = 20 * MIB
# Temporary storage of CUB (unique, nonzero) and of reductions that several blocks share: some KiB
# each, which are no part of the prediction. Of a step of a model in 16 bits, whose peak is less
# than 1 MiB, that is more than 5 %.
_KERNEL_BYTES = 128 * KIB


def terms_of(
    subject: Subject,
    meter: Meter,
    work: Workload,
    found: Measured,
    peaks: DryPeaks | None,
    *,
    even: DryPeaks | None = None,
    context: Constant | None = None,
    tolerance: float | None = None,
    no_peaks: str = "",
    with_passes: bool = True,
) -> tuple[Term, ...]:
    """Every figure of a run.

    peaks  predicted with what the routers chose; even: before the run, with an even choice
    no_peaks  says why passes are not predicted
    """
    rank = subject.selection.rank

    def term(
        name: str, predicted: int | None, measured: int | None, why: str, **band: int | None
    ) -> Term:
        share = TOLERANCES.get(name) if name in TOLERANCES else TOLERANCES[name.partition(".")[0]]
        assert share is not None
        return Term(
            name=name,
            predicted_bytes=predicted,
            measured_bytes=measured,
            tolerance=share if tolerance is None else tolerance,
            why=why,
            rank=rank,
            **band,
        )

    out = _context_terms(found, context, rank)
    held = predict.weights(subject)
    out.append(
        term(
            "weights", held.requested_bytes, found.weights_requested,
            f"bytes of {held.tensors:,} tensors of the rank",
        )
    )  # fmt: skip
    loading = held.requested_bytes
    if meter.counts_blocks:
        allocator = predict.weights_in_allocator(subject)
        loading, reserved = allocator.allocated, allocator.reserved
        blocks, segments = "the allocator's blocks", "the allocator's segments"
        out.append(term("weights.blocks", loading, found.weights_allocated, blocks))
        out.append(
            term(
                "weights.reserved", reserved, found.weights_reserved, segments,
                low_bytes=max(0, reserved - SEGMENT_BYTES), high_bytes=reserved + SEGMENT_BYTES,
            )
        )  # fmt: skip
        out.append(_beside("weights.driver", found.driver, "free memory that loading took", rank))
        out.append(_beside("process", found.process, "NVML: this process, context included", rank))
    why = "tensors are made once; shards pass through buffers of the host"
    out.append(term("load_peak", loading, found.load_peak, why))
    if with_passes:
        out += _cache_terms(term, subject, work, found)
        out += _peak_terms(term, subject, work, found, peaks, even, no_peaks, meter.kind)
    if found.left is not None:
        high = WORKSPACE_BYTES if meter.counts_blocks else 0
        why = "still live after everything was let go"
        out.append(
            Term(
                name="after_free", predicted_bytes=0, measured_bytes=found.left, tolerance=0.0,
                why=why, low_bytes=0, high_bytes=high, rank=rank,
            )
        )  # fmt: skip
    return tuple(one for one in out if one.measured_bytes is not None or one.predicted_bytes)


# Terms that are counted in blocks of the caching allocator and in its segments.
_IN_BLOCKS = (
    "weights.blocks", "weights.reserved", "load_peak", "prefill_peak", "decode_peak",
    "decode_peak.growing", "peak",
)  # fmt: skip


def blocks_note(settings: Sequence[str]) -> str:
    """Why they are not predicted."""
    return (
        f"torch's allocator is set otherwise than its default ({', '.join(settings)}): blocks and "
        "segments are shown and not judged, nor the peaks that are counted in them"
    )


def without_blocks(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    """The terms, those in blocks without a prediction."""
    return tuple(
        replace(term, predicted_bytes=None, low_bytes=None, high_bytes=None)
        if term.name in _IN_BLOCKS
        else term
        for term in terms
    )


def _beside(name: str, measured: int | None, why: str, rank: int) -> Term:
    """A figure that stands beside the others and is not predicted."""
    return Term(
        name=name, predicted_bytes=None, measured_bytes=measured, tolerance=0.0, why=why, rank=rank
    )


def _context_terms(found: Measured, constant: Constant | None, rank: int) -> list[Term]:
    cost = found.context
    if cost is None:
        return []
    best = low = high = None
    why = "the driver's memory that no allocator sees: first call and first product"
    if not cost.known:
        why += ", and what other processes hold: the driver was not asked before"
    elif constant is not None:
        best, low, high = (round(x) for x in (constant.value, constant.low, constant.high))
        why += f"; {constant.observations} observations"
    first = format_bytes(cost.first_call_bytes)
    product = format_bytes(cost.first_product_bytes)
    return [
        Term(
            name="context", predicted_bytes=best, measured_bytes=cost.total_bytes, tolerance=0.0,
            why=f"{why}; {first} and {product}", low_bytes=low, high_bytes=high, rank=rank,
        ),
        _beside("context.first_product", cost.first_product_bytes, "of it the product", rank),
        _beside("workspace", cost.workspace_bytes, "in the allocator since the product", rank),
    ]  # fmt: skip


def _cache_terms(term: object, subject: Subject, work: Workload, found: Measured) -> list[Term]:
    assert callable(term)
    kinds: tuple[tuple[CacheKind, PassPeaks | None], ...] = (
        ("static", found.static),
        ("growing", found.growing),
    )
    return [
        term(
            f"kv_cache.{kind}",
            predict.cache_bytes(subject, work, kind),
            None if measured is None else measured.cache,
            _cache_why(subject, work, kind),
        )
        for kind, measured in kinds
    ]


def _cache_why(subject: Subject, work: Workload, kind: str) -> str:
    several = "" if work.sequences == 1 else "s"
    tokens = f"{work.sequences} sequence{several} of {work.longest:,} tokens in {subject.dtype}"
    how = "whole blocks of 16 tokens" if kind == "static" else "rows so far, windows cut"
    recurrent = any(
        mixer.state()
        for layer in subject.selection.layers
        for mixer in subject.spec.block(subject.spec.layout[layer]).mixers
    )
    states = "; recurrent states in float32, as this pass keeps them" if recurrent else ""
    return f"{tokens}, {how}{states}"


def _peak_terms(
    term: object,
    subject: Subject,
    work: Workload,
    found: Measured,
    peaks: DryPeaks | None,
    even: DryPeaks | None,
    no_peaks: str,
    kind: str,
) -> list[Term]:
    assert callable(term)
    own, embedding = subject.selection, subject.spec.embedding
    rows = (embedding.head_vocab_size or embedding.vocab_size) // own.size
    width = embedding.size or subject.spec.hidden_size
    static, growing = found.static, found.growing
    shapes = no_peaks or "the same pass on shapes alone"
    routed = ""
    if found.routings is not None and found.routings.static:
        busiest = max(routing.busiest for routing in found.routings.static)
        if busiest and even is not None:
            before = format_bytes(even.static.prefill)
            routed = f"; {busiest:,} tokens at the busiest expert ({before} with an even choice)"

    def step(best: int | None) -> dict[str, int | None]:
        """What kernels may take beside a step."""
        if best is None or kind not in ("cuda", "xpu"):
            return {}
        return {"low_bytes": best, "high_bytes": best + _KERNEL_BYTES}

    decode, growth = peaks and peaks.static.decode, peaks and peaks.growing.decode
    sampled = sampling_bytes(work.sequences, rows, kind)
    scratch = ", scratch of the sort included" if kind == "cuda" else ""
    out = [
        term(
            "prefill_peak", peaks and peaks.static.prefill, static and static.prefill,
            f"beyond weights and cache, {shapes}{routed}",
        ),
        term(
            "decode_peak", decode, static and static.decode,
            f"beyond weights and cache, {shapes}", **step(decode),
        ),
        term(
            "decode_peak.growing", growth, growing and growing.decode,
            f"the cache of one layer is copied to grow, {shapes}", **step(growth),
        ),
        term(
            "logits_peak", peaks and peaks.static.logits, static and static.logits,
            f"the head unpacked, {shapes}",
        )
        if subject.unpacks_head
        else term(
            "logits_peak",
            logits_bytes(
                work.sequences, rows, softcap=bool(subject.numerics.logit_softcap),
                copied_head=0 if subject.dtype == subject.spec.dtype
                else rows * width * subject.torch_dtype.itemsize,
            ),
            static and static.logits,
            f"{'12' if subject.numerics.logit_softcap else '8'} * S * V with V = {rows:,}",
        ),
        term(
            "sampling_peak", sampled, static and static.sampling,
            f"{sampled / (work.sequences * rows):.0f} * S * V with V = {rows:,}{scratch}",
        ),
        term("peak", peaks and peaks.total, found.peak, "weights, cache and the highest pass"),
    ]  # fmt: skip
    return list(out)


def attribution(found: Measured, peaks: DryPeaks | None) -> tuple[Owned, ...]:
    """Whose bytes two peaks are: that of the prompt, and the highest of all passes."""
    measured = {
        record.name: record
        for passes in (found.static, found.growing)
        if passes is not None
        for record in passes.phases
        if record.owners
    }
    if not measured:
        return ()
    dry = () if peaks is None else (peaks.static, peaks.growing)
    expected = {record.name: record.owners for passes in dry for record in passes.phases}
    highest = max(measured.values(), key=lambda record: record.peak_bytes).name
    out = []
    for phase in dict.fromkeys(("static prefill", highest)):
        if phase not in measured:
            continue
        here, there = measured[phase].owners, expected.get(phase)
        for owner in sorted({*here, *(there or {})}, key=lambda name: -here.get(name, 0)):
            predicted = None if there is None else there.get(owner, 0)
            out.append(Owned(phase, owner, predicted, here.get(owner, 0)))
    return tuple(out)


def flops_of(
    subject: Subject, found: Measured, tolerance: float | None = None
) -> tuple[Flops, ...]:
    """The formula against the counter, for a prompt and a step."""
    if found.flops is None:
        return ()
    share = TOLERANCES["flops"] if tolerance is None else tolerance
    return tuple(
        Flops(formula.phase, formula.predicted, counted, formula.unseen, share)
        for formula, counted in zip(predict.flops(subject), found.flops, strict=True)
    )


# What a whole model has more of than some of its layers; peaks of passes do not add up over layers.
_ADDS_UP = ("weights", "weights.blocks", "kv_cache.static", "kv_cache.growing")


def extrapolate(
    small: tuple[Term, ...], large: tuple[Term, ...], whole: dict[str, int]
) -> tuple[Extrapolation, ...]:
    """The whole model out of two runs: scale = (m2 - m1) / (p2 - p1), fixed = m2 - scale * p2.

    `whole` predicts the whole model; the slope over the predicted bytes of the layers that the
    runs differ in is what one predicted byte costs, what is left of it the fixed cost.
    """
    first = {term.name: term for term in small}
    out = []
    for term in large:
        before = first.get(term.name)
        if term.name not in _ADDS_UP or term.name not in whole or before is None:
            continue
        p1, m1 = before.predicted_bytes, before.measured_bytes
        p2, m2 = term.predicted_bytes, term.measured_bytes
        if p1 is None or p2 is None or m1 is None or m2 is None or p1 == p2:
            continue
        scale = (m2 - m1) / (p2 - p1)
        fixed = m2 - scale * p2
        predicted = whole[term.name]
        found = round(fixed + scale * predicted)
        out.append(Extrapolation(term.name, predicted, found, round(fixed), round(scale, 9)))
    return tuple(out)
