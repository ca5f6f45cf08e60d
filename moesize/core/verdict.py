"""Yes or no, in words, with how sure that is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from moesize.core.plan import Confidence, Verdict
from moesize.core.units import ceil_div, format_gib

if TYPE_CHECKING:
    from moesize.core.engine import EngineAnswer
    from moesize.core.gpu import GpuSpec
    from moesize.core.ledger import GpuLedger


def judge(answer: EngineAnswer, gpu: GpuSpec) -> Verdict:
    """The verdict on the limiting rank.

    It fits when the KV cache left by the best estimates holds what was asked for. `certain` says
    whether it stays so at either end of the estimates and of the card's usable memory. A "no" is
    exact when weights and KV cache alone, which are counted and not estimated, exceed the budget.
    An engine that fills a budget of its own leaves the rest of the card to what it does not
    charge (context, communication, graphs): a "yes" is not certain where these may need more.
    """
    ledger = next(item for item in answer.ledgers if item.rank == answer.limiting_rank)
    kv = answer.kv
    spread = gpu.usable_memory()
    share = ledger.budget_bytes / ledger.usable_bytes
    low = kv.available_low_bytes - int((spread.best_bytes - spread.low_bytes) * share)
    high = kv.available_high_bytes + int((spread.high_bytes - spread.best_bytes) * share)
    if answer.deployment.get("kv_cache_memory_bytes") is not None:
        return _fixed_cache(answer, ledger)
    taken = sum(item.low_bytes for item in ledger.items if item.name in answer.held_before_start)
    if taken and ledger.budget_bytes > ledger.usable_bytes - taken:
        return _no_room_to_start(answer, ledger, taken)
    fits = kv.needed_bytes <= kv.available_bytes and not answer.refusal
    weights = ledger.category_bytes("weights")
    counted = weights + kv.needed_bytes
    certain = kv.needed_bytes <= low if fits else kv.needed_bytes > high
    peak = _device_peak(answer, ledger)
    runs_over = fits and peak > ledger.usable_bytes
    confidence: Confidence = "calibrated" if certain else "estimated"
    if not fits and counted > ledger.budget_bytes and spread.basis != "estimated":
        confidence, certain = "exact", True
    if spread.basis == "estimated":
        confidence = "estimated"
    reason = answer.refusal or _reason(answer, ledger, weights, fits, certain)
    if runs_over:
        reason += _beyond_budget(ledger, peak)
        confidence, certain = "estimated", False
    return Verdict(
        fits=fits,
        reason=reason,
        shortfall_bytes=max(0, kv.needed_bytes - kv.available_bytes),
        limiting_rank=answer.limiting_rank,
        confidence=confidence,
        certain=certain,
    )


def _device_peak(answer: EngineAnswer, ledger: GpuLedger) -> int:
    """What the device may hold at most: the budget, which a cache fills, and what lies outside.

    The items outside do not all come out high at once: their reaches above the best estimate are
    added as squares. 0 for engines that take what they are asked for and no more.
    """
    if answer.deployment["gpu_memory_utilization"] is None:
        return 0
    outside = [item for item in ledger.items if not item.in_budget]
    reach = math.hypot(*(item.high_bytes - item.size_bytes for item in outside))
    return ledger.budget_bytes + sum(item.size_bytes for item in outside) + int(reach)


def _beyond_budget(ledger: GpuLedger, peak: int) -> str:
    best = sum(item.size_bytes for item in ledger.items if not item.in_budget)
    return (
        f" (close: the budget of {format_gib(ledger.budget_bytes)} is filled; what lies outside it "
        f"takes some {format_gib(best)}, up to {format_gib(peak - ledger.budget_bytes)}; "
        f"the card hands out {format_gib(ledger.usable_bytes)}: it may run out of memory when it "
        "runs)"
    )


def _no_room_to_start(answer: EngineAnswer, ledger: GpuLedger, taken_bytes: int) -> Verdict:
    """vLLM stops when less is free than utilization x memory (v1/worker/utils.py)."""
    share = answer.deployment["gpu_memory_utilization"]
    free = ledger.usable_bytes - taken_bytes
    return Verdict(
        fits=False,
        reason=(
            f"vLLM does not start: utilization {share:g} asks for "
            f"{format_gib(ledger.budget_bytes)}, at most {format_gib(free)} are free beside the "
            "CUDA context"
        ),
        shortfall_bytes=ledger.budget_bytes - free,
        limiting_rank=answer.limiting_rank,
        confidence="calibrated",
        certain=True,
    )


def _reason(
    answer: EngineAnswer, ledger: GpuLedger, weights: int, fits: bool, certain: bool
) -> str:
    kv, settings = answer.kv, answer.deployment
    context, sequences = settings["context"], ceil_div(settings["concurrency"], kv.replicas)
    what = f"{sequences} x {context:,} tokens" if sequences > 1 else f"{context:,} tokens"
    if kv.replicas > 1:
        what += f" on each of {kv.replicas} data-parallel ranks"
    if settings["gpu_memory_utilization"] is None:
        return _reason_without_budget(answer, ledger, weights, what, fits, certain)
    if fits and not kv.needed_bytes:
        left = format_gib(max(0, kv.available_bytes))
        return f"the model keeps no KV cache; {left} of the budget are left"
    if fits:
        text = (
            f"{format_gib(kv.available_bytes)} are left for the KV cache, "
            f"{format_gib(kv.needed_bytes)} are needed for {what}"
        )
        return text if certain else text + " (close: within the estimates' band it may not)"
    if weights > ledger.budget_bytes:
        if weights > ledger.usable_bytes:
            return (
                f"the weights alone need {format_gib(weights)} per GPU; the card hands out "
                f"{format_gib(ledger.usable_bytes)}"
            )
        return (
            f"the weights alone need {format_gib(weights)} of a budget of "
            f"{format_gib(ledger.budget_bytes)} per GPU"
        )
    if kv.available_bytes <= 0:
        return (
            f"weights ({format_gib(weights)}), activations and runtime leave nothing of the "
            f"{format_gib(ledger.budget_bytes)} budget for the KV cache"
        )
    text = (
        f"the KV cache for {what} needs {format_gib(kv.needed_bytes)}; "
        f"{format_gib(kv.available_bytes)} are left after weights and activations"
    )
    return text if certain else text + " (close: within the estimates' band it may fit)"


def _reason_without_budget(
    answer: EngineAnswer, ledger: GpuLedger, weights: int, what: str, fits: bool, certain: bool
) -> str:
    """The engine allocates what it is asked for: every GPU holds its part, or it does not start."""
    gpu = f"GPU {ledger.rank}" if len(answer.ledgers) > 1 else "the card"
    usable, used = format_gib(ledger.usable_bytes), format_gib(ledger.used_bytes)
    if weights > ledger.usable_bytes:
        return f"the weights on {gpu} alone need {format_gib(weights)}; it hands out {usable}"
    text = f"{gpu} needs {used} of {usable} with a context of {what}"
    if fits:
        left = format_gib(max(0, ledger.usable_bytes - ledger.used_bytes))
        text += f"; {left} are left"
        return text if certain else text + " (close: within the estimates' band it may not fit)"
    if answer.kv.available_bytes > 0 and answer.kv.needed_bytes:
        text += (
            f": {format_gib(answer.kv.available_bytes)} are left for a KV cache of "
            f"{format_gib(answer.kv.needed_bytes)}"
        )
    return text if certain else text + " (close: within the estimates' band it may fit)"


def _fixed_cache(answer: EngineAnswer, ledger: GpuLedger) -> Verdict:
    """With --kv-cache-memory the engine takes what it is told: the card itself is the limit."""
    kv = answer.kv
    used = ledger.used_bytes - ledger.category_bytes("kv_cache") + kv.available_bytes
    estimated = sum(item.high_bytes - item.size_bytes for item in ledger.items)
    over = used - ledger.usable_bytes
    short = max(kv.needed_bytes - kv.available_bytes, over, 0)
    if over > 0:
        reason = (
            f"weights, runtime and the given KV cache need {format_gib(used)}; the card hands out "
            f"{format_gib(ledger.usable_bytes)}"
        )
    elif short:
        reason = (
            f"the given KV cache holds {format_gib(kv.available_bytes)}, "
            f"{format_gib(kv.needed_bytes)} are needed"
        )
    else:
        reason = f"the given KV cache of {format_gib(kv.available_bytes)} and the rest fit the card"
    certain = over + estimated <= 0 if not short else True
    return Verdict(
        fits=not short,
        reason=reason,
        shortfall_bytes=short,
        limiting_rank=answer.limiting_rank,
        confidence="calibrated" if certain else "estimated",
        certain=certain,
    )
