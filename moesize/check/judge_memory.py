"""MS1xx and MS501: weights, KV cache, peaks, headroom, promises; and what an unnamed GPU needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.check.advice import of_suggestion, set_flag
from moesize.check.findings import Fix
from moesize.check.judging import gpus_word, tokens_word, where_gpu
from moesize.core.units import GIB, format_gib

if TYPE_CHECKING:
    from moesize.check.devices import Device
    from moesize.check.findings import Severity
    from moesize.check.judging import Bench
    from moesize.check.planning import Case, Needs
    from moesize.core.ledger import GpuLedger
    from moesize.core.plan import Plan, Suggestion

# Below these shares an engine's own default would have been kept; above, nothing is gained.
_USUAL_SHARES = (0.92, 0.9, 0.88, 0.85)
# Engines planned by their documented rules alone: only the card itself makes a "no" an error.
_BY_RULE = ("tgi", "tensorrt-llm")
# Engines that start with a cache smaller than one request, and refuse the longer ones.
_STARTS_ANYHOW = ("sglang", "tensorrt-llm")
# A prompt of some pages with its answer: with less for each request a promise is hollow.
_SHORT_REQUEST = 2048


def judge_memory(bench: Bench, case: Case, device: Device, plan: Plan) -> None:
    """Does it fit, how closely, and does it hold what the file promises."""
    if case.called == "ollama":
        _judge_ollama(bench, case, device, plan)
    elif not plan.fits:
        _does_not_fit(bench, case, device, plan)
    else:
        _judge_lowered(bench, case, device, plan)
        _judge_headroom(bench, case, device, plan)
        _judge_concurrency(bench, case, plan)
        _judge_offload(bench, case, plan)


def limiting(plan: Plan) -> GpuLedger:
    """The ledger of the rank that decides."""
    return next(led for led in plan.gpus if led.rank == plan.verdict.limiting_rank)


def sums(plan: Plan) -> list[str]:
    """The ledger of the limiting rank in one or two lines."""
    ledger = limiting(plan)
    names = {
        "weights": "weights",
        "kv_cache": "KV cache",
        "activations": "activations",
        "runtime": "runtime and graphs",
        "draft": "draft model",
        "lora": "adapters",
        "reserve": "reserve",
    }
    parts = []
    for category, title in names.items():
        size = ledger.category_bytes(category)  # type: ignore[arg-type]
        if size:
            parts.append(f"{title} {format_gib(size)}")
    budget = format_gib(ledger.budget_bytes)
    share = plan.deployment.get("gpu_memory_utilization")
    of = ""
    if share is not None and abs(share * ledger.usable_bytes - ledger.budget_bytes) < 1 << 20:
        of = f" = {share:g} x {format_gib(ledger.usable_bytes)}"
    return [" + ".join(parts) + f" of {budget}{of} per GPU"]


def _does_not_fit(bench: Bench, case: Case, device: Device, plan: Plan) -> None:
    ledger, kv = limiting(plan), plan.kv_cache
    weights = ledger.category_bytes("weights")
    count = plan.deployment["gpu_count"]
    what = gpus_word(count, device.title)
    also = [where_gpu(device, count)]
    suggestions = case.suggestions(device.match.spec)
    fix = _best_fix(bench, case, suggestions)
    details = [*sums(plan), *_further(case, suggestions, bench)]
    confidence = plan.verdict.confidence
    # A "no" that may turn over within the estimates is no error.
    severity: Severity | None = None if plan.verdict.certain else "warning"
    sure = "" if plan.verdict.certain else "; close: within the estimates' band it may fit"
    if "does not start: utilization" in plan.verdict.reason:
        at = case.flags.place("request:gpu_memory_utilization")
        share = case.request.gpu_memory_utilization or 0
        bench.add(
            "MS106",
            f"{plan.verdict.reason.replace('vLLM does not start: ', '')} on {what}",
            at,
            severity=severity,
            details=details,
            also=also,
            fix=_smaller_share(bench, case, device, share),
            confidence=confidence,
            key=(f"{share:g}", device.match.spec.id),
        )
        return
    if weights > ledger.budget_bytes:
        if case.engine in _BY_RULE and weights <= ledger.usable_bytes:
            severity = "warning"
        bench.add(
            "MS101",
            f"the weights of {case.named.spec.title} need {format_gib(weights)} on each of {what}; "
            f"{_may_use(case, plan, ledger)}{sure}",
            case.flags.model_place(),
            severity=severity,
            label=f"{format_gib(weights)} per GPU",
            details=details,
            also=also,
            fix=fix,
            confidence=confidence,
            key=(case.named.spec.id, device.match.spec.id, str(count)),
        )
        return
    at = case.flags.place(
        case.flags.context, "request:max_num_batched_tokens", "request:max_num_seqs"
    )
    if at is bench.server.place:
        at = case.flags.model_place()
    key = (case.named.spec.id, device.match.spec.id, str(count), str(plan.deployment["context"]))
    if kv.available_bytes <= 0:
        bench.add(
            "MS103",
            f"weights ({format_gib(weights)}), activations and runtime leave nothing of "
            f"{format_gib(ledger.budget_bytes)} on {what} for the KV cache{sure}",
            at,
            severity=severity,
            label="no room for the KV cache",
            details=details,
            also=also,
            fix=fix,
            confidence=confidence,
            key=key,
        )
        return
    context = plan.deployment["context"]
    if case.engine in _STARTS_ANYHOW:
        severity = "warning"
    bench.add(
        "MS102",
        f"one request of {tokens_word(case, context)} needs {format_gib(kv.needed_bytes)} of KV "
        f"cache; {format_gib(kv.available_bytes)} are left on {what}{sure}",
        at,
        severity=severity,
        label=f"at most {kv.max_context:,} tokens fit" if kv.max_context else "",
        details=details,
        also=also,
        fix=fix,
        confidence=confidence,
        key=key,
    )


def _may_use(case: Case, plan: Plan, ledger: GpuLedger) -> str:
    share = plan.deployment.get("gpu_memory_utilization")
    if share is None or ledger.budget_bytes >= ledger.usable_bytes:
        return f"each hands out {format_gib(ledger.usable_bytes)}"
    return (
        f"{case.flags.name('request:gpu_memory_utilization') or 'the engine'} {share:g} allows "
        f"{format_gib(ledger.budget_bytes)} of {format_gib(ledger.usable_bytes)}"
    )


def _best_fix(bench: Bench, case: Case, suggestions: tuple[Suggestion, ...]) -> Fix | None:
    return of_suggestion(case, suggestions[0], bench.file) if suggestions else None


def _further(case: Case, suggestions: tuple[Suggestion, ...], bench: Bench) -> list[str]:
    others = [of_suggestion(case, item, bench.file).text for item in suggestions[1:4]]
    if not suggestions:
        return ["nothing that was tried fits: shorter contexts, smaller weights, up to 16 GPUs"]
    return [f"also fits: {'; or '.join(others)}"] if others else []


def _smaller_share(bench: Bench, case: Case, device: Device, share: float) -> Fix | None:
    from moesize.core.errors import MoesizeError

    for smaller in _USUAL_SHARES:
        if smaller >= share:
            continue
        try:
            plan = case.plan(device.match.spec, gpu_memory_utilization=smaller)
        except MoesizeError:
            return None
        if plan.fits:
            target = "request:gpu_memory_utilization"
            return set_flag(case, target, f"{smaller:g}", bench.file, safe=True)
    return None


def _judge_headroom(bench: Bench, case: Case, device: Device, plan: Plan) -> None:
    kv, ledger = plan.kv_cache, limiting(plan)
    spare = kv.available_bytes - kv.needed_bytes
    share = spare / ledger.budget_bytes if ledger.budget_bytes else 0.0
    # A length that the engine chooses fills the cache on purpose.
    wanted = 0.0 if case.takes_what_fits else bench.settings.headroom
    if plan.verdict.certain and share >= wanted:
        return
    if case.takes_what_fits and "when it runs" not in plan.verdict.reason:
        return
    count = plan.deployment["gpu_count"]
    what = gpus_word(count, device.title)
    at = case.flags.place(case.flags.context, "request:gpu_memory_utilization")
    if at is bench.server.place:
        at = case.flags.model_place()
    context = plan.deployment["context"]
    if share < wanted:
        message = (
            f"{format_gib(max(0, spare))} ({max(0.0, share):.1%} of the budget) are left on {what} "
            f"beside one request of {tokens_word(case, context)}"
        )
    else:
        message = f"fits on {what}, but not beyond doubt: {plan.verdict.reason}"
    bench.add(
        "MS104",
        message,
        at,
        details=sums(plan),
        also=[where_gpu(device, count)],
        confidence=plan.verdict.confidence,
        key=(case.named.spec.id, device.match.spec.id, str(count), str(context)),
    )


def _judge_lowered(bench: Bench, case: Case, device: Device, plan: Plan) -> None:
    """MS102 as a warning: an engine that starts, with less than the model's own length."""
    context, longest = plan.deployment["context"], case.named.spec.max_context
    if not case.takes_what_fits or case.engine == "vllm" or not longest or context >= longest:
        return
    count = plan.deployment["gpu_count"]
    bench.add(
        "MS102",
        f"{gpus_word(count, device.title)} hold one request of {context:,} tokens; the model has "
        f"{longest:,}, and what is longer is refused",
        case.flags.model_place(),
        severity="warning",
        details=sums(plan),
        also=[where_gpu(device, count)],
        fix=Fix(text=f"{case.flags.name('request:context_tokens')} {context} says it openly"),
        confidence=plan.verdict.confidence,
        key=(case.named.spec.id, device.match.spec.id, str(count), "lowered"),
    )


def _judge_concurrency(bench: Bench, case: Case, plan: Plan) -> None:
    """Requests at once that the file promises, against what the cache holds at full length."""
    promised = bench.server.concurrency
    wanted = bench.settings.concurrency
    holds = plan.kv_cache.max_concurrency * plan.kv_cache.replicas
    context = plan.deployment["context"]
    if promised is None and wanted is None:
        return
    at = promised.at if promised is not None else bench.server.place
    number = promised.value if promised is not None else int(wanted or 0)
    if holds >= number:
        return
    capacity = plan.kv_cache.capacity_tokens * plan.kv_cache.replicas
    each = capacity // max(1, number)
    bench.add(
        "MS105",
        f"{number:,} requests at once are promised; the KV cache holds {holds:.1f} of "
        f"{tokens_word(case, context)}, or {each:,} tokens for each",
        at,
        # At full length nearly every server promises more than it holds; few requests are as long.
        severity=None if each < _SHORT_REQUEST else "info",
        label=f"{holds:.1f} at full length",
        details=[f"{capacity:,} tokens of KV cache"],
        fix=Fix(text=f"a target of {int(holds)} holds at any length") if holds >= 1 else None,
        confidence=plan.verdict.confidence,
        key=(str(number), str(context)),
    )


def _judge_offload(bench: Bench, case: Case, plan: Plan) -> None:
    weights = sum(item.size_bytes for item in plan.host if item.category == "weights")
    if not weights:
        return
    bench.add(
        "MS108",
        f"{format_gib(weights)} of weights stay in host memory and cross the link for every token",
        case.flags.place("request:cpu_offload_bytes", "request:offload_experts"),
        confidence=plan.verdict.confidence,
    )


def _judge_ollama(bench: Bench, case: Case, device: Device, plan: Plan) -> None:
    """Ollama never fails for size: what does not fit runs from host memory."""
    if plan.fits:
        return
    ledger = limiting(plan)
    needed = sum(led.used_bytes * (led.count or 1) for led in plan.gpus)
    usable = sum(led.usable_bytes * (led.count or 1) for led in plan.gpus)
    share = min(1.0, usable / needed) if needed else 1.0
    bench.add(
        "MS108",
        f"needs {format_gib(needed)} of {format_gib(usable)}: Ollama keeps some {share:.0%} on the "
        "GPU and runs the rest from host memory, much slower",
        case.flags.model_place(),
        severity="warning",
        label=f"{format_gib(ledger.category_bytes('weights'))} of weights",
        details=sums(plan),
        also=[where_gpu(device, plan.deployment["gpu_count"])],
        confidence=plan.verdict.confidence,
        key=(case.named.spec.id, device.match.spec.id),
    )


def judge_unknown_gpu(bench: Bench, case: Case, found: Needs, *, asked: str = "") -> None:
    """MS501: what each GPU must hold, and which common ones do."""
    count = found.num_gpus
    each = "each of the " + str(count) + " GPUs" if count > 1 else "the GPU"
    if found.least_bytes is None:
        message = f"does not fit on {each} of any size known"
        details: list[str] = []
    else:
        message = f"{each} must hold at least {found.least_bytes // GIB} GiB"
        details = []
    if found.fitting:
        details.append(f"fits: {', '.join(found.fitting)}")
    if found.not_fitting:
        details.append(f"does not: {', '.join(found.not_fitting)}")
    counts = bench.server.gpus_per_node
    at = counts.at if counts is not None and counts.at.span else bench.server.place
    bench.add(
        "MS501",
        f"GPU unknown{asked}: {message}",
        at,
        details=details,
        fix=Fix(text="name the GPU: --gpu, [gpu] in moesize.toml, or a comment # moesize: gpu=..."),
        key=(case.named.spec.id,),
    )
