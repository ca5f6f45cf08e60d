"""What to change, from an audit: every piece of advice is the difference of two plans."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from moesize.core.errors import MoesizeError
from moesize.core.records import dataclass
from moesize.core.units import GIB, format_gib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from moesize.audit import AsRun
    from moesize.core.plan import Plan
    from moesize.logs.facts import Start

_MOST = 6
# A gain below this share of the tokens there are is not worth a line.
_LEAST_GAIN = 0.02
# Left on the card beside the budget, beyond what the estimates say lies outside it.
_SPARE_BYTES = GIB // 2
_HIGHEST_SHARE, _LOWEST_SHARE = 0.95, 0.3
_LLAMA = ("llama.cpp", "ik_llama.cpp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """A change that was planned.

    options        flags to add or to change, as the engine spells them
    gain_tokens    tokens of KV cache more than planned without the change (negative: a cost)
    fits           the changed deployment fits
    """

    what: str
    options: tuple[str, ...]
    detail: str
    gain_bytes: int
    gain_tokens: int
    fits: bool

    def to_dict(self) -> dict[str, Any]:
        """The row of the JSON document."""
        return {
            "what": self.what,
            "options": list(self.options),
            "detail": self.detail,
            "gain_bytes": self.gain_bytes,
            "gain_tokens": self.gain_tokens,
            "fits": self.fits,
        }


def advice_for(start: Start, run: AsRun, plan: Plan) -> tuple[Advice, ...]:
    """Changes that help, the cheapest kind first; for a failed start those that fit."""
    if run.gpu is None:
        return ()
    failed = start.failure is not None and not start.ready
    tries = _Tries(start, run, plan, failed=failed)
    found: list[Advice] = []
    for item in tries.failed_start() if failed else tries.running():
        if len(found) < _MOST and all(item.options != other.options for other in found):
            found.append(item)
    return tuple(found)


class _Tries:
    def __init__(self, start: Start, run: AsRun, plan: Plan, *, failed: bool) -> None:
        self.start, self.run, self.plan, self.failed = start, run, plan, failed
        self.settings = plan.deployment
        # What the log shows to be taken beyond the plan: a changed plan must leave room for it.
        self.missing = self._missing()

    def _missing(self) -> int:
        """Bytes of KV memory that the log has less than the plan (0 if it has more)."""
        kept = self.start.last("kv_cache") or self.start.last("kv_pool")
        if kept is None:
            return 0
        return max(0, round(self.plan.kv_cache.available_bytes - kept.value))

    def attempt(self, *flags: str) -> Plan | None:
        try:
            return self.run.plan(flags)
        except MoesizeError:
            return None

    def compare(self, what: str, flags: tuple[str, ...], *, cost: bool = False) -> Advice | None:
        """The change and what it gives; None when it gives nothing worth saying."""
        other = self.attempt(*flags)
        if other is None:
            return None
        old, new = self.plan.kv_cache, other.kv_cache
        bytes_more = new.available_bytes - old.available_bytes
        tokens_more = new.capacity_tokens - old.capacity_tokens
        fits = other.fits and new.available_bytes - self.missing >= new.needed_bytes
        if self.failed:
            if not fits:
                return None
        elif tokens_more < max(1, old.capacity_tokens * _LEAST_GAIN) and not cost:
            return None
        return Advice(
            what=what,
            options=flags,
            detail=self._detail(bytes_more, tokens_more, new.capacity_tokens),
            gain_bytes=bytes_more,
            gain_tokens=tokens_more,
            fits=fits,
        )

    def _detail(self, bytes_more: int, tokens_more: int, tokens: int) -> str:
        more = "more" if tokens_more >= 0 else "fewer"
        share = self.plan.kv_cache.capacity_tokens
        text = f"{abs(tokens_more):,} tokens {more} ({tokens:,} in all"
        if share > 0:
            text += f", {tokens_more / share:+.0%}"
        text += ")"
        if abs(bytes_more) >= GIB // 100:
            less = "more" if bytes_more > 0 else "less"
            text = f"{format_gib(abs(bytes_more))} {less} for KV, {text}"
        return text

    def _in_all(self, advice: Advice) -> str:
        tokens = self.plan.kv_cache.capacity_tokens
        share = f", {advice.gain_tokens / tokens:+.0%}" if tokens > 0 else ""
        return f"{tokens + advice.gain_tokens:,} tokens in all{share}"

    # --- a server that runs -----------------------------------------------------------------------

    def running(self) -> Iterator[Advice]:
        for advice in (
            self.fewer_sequences(),
            self.shorter_batches(),
            self.higher_utilization(),
            self.smaller_cache(),
            self.expert_parallel(),
            self.graphs(),
        ):
            if advice is not None:
                yield advice

    def fewer_sequences(self) -> Advice | None:
        sequences = self.settings["max_num_seqs"]
        flag = {"sglang": "--max-running-requests"}.get(self.run.engine, "--max-num-seqs")
        if not sequences or self.run.engine in _LLAMA:
            return None
        for fewer in (256, 64, 16):
            if fewer >= sequences:
                continue
            found = self.compare("", (flag, str(fewer)))
            if found is None:
                continue
            name = flag.lstrip("-")
            if self.failed:
                return _named(found, f"{name} {fewer} instead of {sequences:,}")
            return _named(
                found,
                f"{name} {sequences:,} costs {format_gib(found.gain_bytes)} here; {fewer} gives "
                f"{_thousands(found.gain_tokens)} more tokens",
                self._in_all(found),
            )
        return None

    def shorter_batches(self) -> Advice | None:
        tokens = self.settings["max_num_batched_tokens"]
        if not tokens or self.run.engine != "vllm":
            return None
        for fewer in (8192, 2048):
            if fewer >= tokens or fewer < (self.settings["max_num_seqs"] or 0):
                continue
            found = self.compare("", ("--max-num-batched-tokens", str(fewer)))
            if found is not None:
                return _named(found, f"max-num-batched-tokens {fewer:,} instead of {tokens:,}")
        return None

    def higher_utilization(self) -> Advice | None:
        share = self.settings["gpu_memory_utilization"]
        gpu = self.run.gpu
        if share is None or self.run.engine != "vllm" or gpu is None:
            return None
        if "lpddr" in gpu.memory_type.lower():
            return None  # shared with the operating system: what is free is not known
        ledger = self.plan.gpus[0]
        outside = sum(i.high_bytes for i in ledger.items if not i.in_budget)
        total, free = self.start.last("total_memory"), self.start.last("free_memory")
        if total is not None and free is not None and total.rank == free.rank:
            # What the device held before the start, whoever held it, stays.
            outside = max(outside, round(total.value - free.value))
        room = ledger.usable_bytes - outside - _SPARE_BYTES
        highest = min(math.floor(room * 100 / ledger.usable_bytes) / 100, _HIGHEST_SHARE)
        if highest < share + 0.01:
            return None
        if self.failed:
            if self.start.failure is not None and self.start.failure.kind == "out_of_memory":
                return None  # the card itself was full
            return self.least_utilization(share, highest)
        found = self.compare("", ("--gpu-memory-utilization", f"{highest:g}"))
        return found and _named(
            found, f"gpu-memory-utilization {highest:g} instead of {share:g}: the card has room"
        )

    def least_utilization(self, share: float, highest: float) -> Advice | None:
        """The first hundredth that fits."""
        short = self.plan.kv_cache.needed_bytes - (
            self.plan.kv_cache.available_bytes - self.missing
        )
        step = max(1, math.ceil(short * 100 / self.plan.gpus[0].usable_bytes))
        for hundredths in range(math.floor(share * 100 + 0.5) + step, round(highest * 100) + 1):
            found = self.compare("", ("--gpu-memory-utilization", f"{hundredths / 100:g}"))
            if found is not None:
                return _named(
                    found,
                    f"gpu-memory-utilization {hundredths / 100:g} instead of {share:g}: the least "
                    "that fits",
                )
        return None

    def smaller_cache(self) -> Advice | None:
        if self.run.engine in _LLAMA:
            flags: tuple[str, ...] = (
                "--cache-type-k",
                "q8_0",
                "--cache-type-v",
                "q8_0",
                "--flash-attn",
                "on",
            )
            what = "an 8-bit KV cache (q8_0)"
            if "q" in str(self.settings["kv_dtype"]):
                return None
        else:
            if "fp8" in str(self.settings["kv_dtype"]) or not self._has_fp8():
                return None
            name = "fp8_e5m2" if self.run.engine == "sglang" else "fp8"
            flags = ("--kv-cache-dtype", name)
            what = f"a KV cache in {name}"
        found = self.compare("", flags)
        return found and _named(found, f"{what}: costs some accuracy")

    def _has_fp8(self) -> bool:
        gpu = self.run.gpu
        if gpu is None or gpu.compute_capability is None:
            return False
        major, _, minor = gpu.compute_capability.partition(".")
        return (int(major), int(minor or 0)) >= (8, 9)

    def expert_parallel(self) -> Advice | None:
        many = self.settings["tp"] > 1 and not self.settings["ep"]
        experts = self.plan.model.params.by_group["routed_experts"] > 0
        if not (many and experts) or self.run.engine != "vllm":
            return None
        found = self.compare("", ("--enable-expert-parallel",))
        return found and _named(found, "expert parallelism: whole experts on each GPU")

    def graphs(self) -> Advice | None:
        if self.settings["enforce_eager"] or self.run.engine != "vllm":
            return None
        found = self.compare("", ("--enforce-eager",), cost=not self.failed)
        if found is None or found.gain_bytes < GIB // 50:
            return None
        if self.failed:
            return _named(found, "no CUDA graphs: decoding becomes slower")
        return _named(
            found,
            f"CUDA graphs cost {format_gib(found.gain_bytes)} here; enforce-eager gives "
            f"{_thousands(found.gain_tokens)} more tokens and slower decoding",
            self._in_all(found),
        )

    # --- a server that did not start --------------------------------------------------------------

    def failed_start(self) -> Iterator[Advice]:
        """The smallest changes that fit, by kind."""
        for advice in (
            self.free_first(),
            self.lower_utilization(),
            self.shorter_context(),
            self.experts_on_host(),
            self.layers_on_host(),
            self.fewer_sequences(),
            self.shorter_batches(),
            self.higher_utilization(),
            self.smaller_cache(),
            self.graphs(),
            *self.more_gpus(),
        ):
            if advice is not None:
                yield advice

    def free_first(self) -> Advice | None:
        """Less than the utilization is free: the utilization that what is free allows."""
        total, free = self.start.last("total_memory"), self.start.last("free_memory")
        failure = self.start.failure
        if failure is None or failure.kind != "too_little_free" or not total or not free:
            return None
        share = math.floor(free.value * 100 / total.value) / 100
        found = self.compare("", ("--gpu-memory-utilization", f"{share:g}"))
        return found and _named(
            found, f"gpu-memory-utilization {share:g}: what is free now; or end what holds the rest"
        )

    def lower_utilization(self) -> Advice | None:
        """Out of memory beside a KV cache that is there: the cache is too large for the rest."""
        failure, share = self.start.failure, self.settings["gpu_memory_utilization"]
        cached = self.start.last("kv_tokens") or self.start.last("kv_cache")
        if failure is None or failure.kind not in ("out_of_memory", "graphs_failed"):
            return None
        if share is None or cached is None or self.run.engine != "vllm":
            return None
        ledger, asked = self.plan.gpus[0], self.start.last("asked")
        more = _SPARE_BYTES + (round(asked.value) if asked is not None else 0)
        outside = sum(i.high_bytes for i in ledger.items if not i.in_budget)
        room = (ledger.usable_bytes - outside) / ledger.usable_bytes
        lower = math.floor(min(share - more / ledger.usable_bytes, room) * 100) / 100
        if lower < _LOWEST_SHARE:
            return None
        found = self.compare("", ("--gpu-memory-utilization", f"{lower:g}"))
        return found and _named(
            found,
            f"gpu-memory-utilization {lower:g} instead of {share:g}: the engine ran out of memory "
            "beside its KV cache",
        )

    def shorter_context(self) -> Advice | None:
        """The longest context that the memory of the log holds, in steps of 1024 tokens."""
        context = self.settings["context"]
        kept = self.start.last("kv_cache")
        longest = self.plan.kv_cache.max_context
        if kept is not None and kept.value > 0:
            try:
                # Half a digit less than printed: what rounds up may not be there.
                less = self.run.plan(kv_bytes=round(kept.value - kept.step / 2))
            except MoesizeError:
                return None
            longest = less.kv_cache.max_context
        said = self.start.last("max_context")
        if said is not None:
            longest = min(longest, round(said.value)) if longest else round(said.value)
        longest = longest // 1024 * 1024 if longest >= 2048 else longest // 16 * 16
        if not 0 < longest < context:
            return None
        flag = "--ctx-size" if self.run.engine in _LLAMA else "--max-model-len"
        flag = "--context-length" if self.run.engine == "sglang" else flag
        other = self.attempt(flag, str(longest))
        if other is None or (kept is None and not other.fits):
            return None
        return Advice(
            what=f"a context of {longest:,} tokens instead of {context:,}",
            options=(flag, str(longest)),
            detail="what the KV memory of the log holds" if kept is not None else "",
            gain_bytes=0,
            gain_tokens=0,
            fits=True,
        )

    def experts_on_host(self) -> Advice | None:
        """llama.cpp: the fewest layers whose experts must stay on the host."""
        if self.run.engine not in _LLAMA or not self.plan.model.params.by_group["routed_experts"]:
            return None
        return self._fewest(
            self.plan.model.num_layers,
            lambda n: ("--n-cpu-moe", str(n)),
            lambda n: f"the experts of {n} layers on the host",
        )

    def layers_on_host(self) -> Advice | None:
        """llama.cpp: the most layers that fit on the GPU."""
        if self.run.engine not in _LLAMA:
            return None
        layers = self.plan.model.num_layers
        return self._fewest(
            layers,
            lambda n: ("--n-gpu-layers", str(layers + 1 - n)),
            lambda n: f"{layers + 1 - n} of {layers + 1} layers on the GPU",
        )

    def _fewest(
        self,
        most: int,
        flags: Callable[[int], tuple[str, ...]],
        what: Callable[[int], str],
    ) -> Advice | None:
        """The least number from 1 to `most` that fits, by halving."""
        low, high = 0, most
        best = self.attempt(*flags(high))
        if best is None or not (best.fits and best.verdict.certain):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            plan = self.attempt(*flags(middle))
            if plan is not None and plan.fits and plan.verdict.certain:
                high, best = middle, plan
            else:
                low = middle
        ledger = best.gpus[0]
        return Advice(
            what=what(high),
            options=flags(high),
            detail=f"{format_gib(ledger.used_bytes)} of {format_gib(ledger.usable_bytes)} used",
            gain_bytes=0,
            gain_tokens=0,
            fits=True,
        )

    def more_gpus(self) -> Iterator[Advice]:
        from dataclasses import replace

        count = self.settings["gpu_count"]
        for more in (2, 4, 8, 16):
            if more <= count or self.run.engine != "vllm":
                continue
            flags = ("--tensor-parallel-size", str(more), "--pipeline-parallel-size", "1")
            run = replace(self.run, gpus=more)
            try:
                plan = run.plan(flags)
            except MoesizeError:
                continue
            if plan.fits and plan.verdict.certain:
                kv = plan.kv_cache
                detail = f"{format_gib(kv.available_bytes)} for KV, {kv.capacity_tokens:,} tokens"
                yield Advice(
                    what=f"{more} GPUs instead of {count}",
                    options=flags[:2],
                    detail=detail,
                    gain_bytes=kv.available_bytes - self.plan.kv_cache.available_bytes,
                    gain_tokens=kv.capacity_tokens - self.plan.kv_cache.capacity_tokens,
                    fits=True,
                )
                return


def _named(advice: Advice, what: str, detail: str = "") -> Advice:
    from dataclasses import replace

    return replace(advice, what=what, detail=detail or advice.detail)


def _thousands(count: int) -> str:
    return f"{count / 1000:,.0f}k" if count >= 10_000 else f"{count:,}"
