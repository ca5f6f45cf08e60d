"""How fast: roofline times from FLOPs and bytes, with efficiencies calibrated on benchmarks.

    step time = bytes / (bandwidth * memory efficiency) + layers * overhead

The constants and their evidence are in `data/performance.json`; docs/how-we-count-compute.md says
how they were fitted and how far off they are.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

from moesize.core.compute import at_least
from moesize.core.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Mapping

# --- Calibrated efficiencies --------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """An estimate and the range that most observations fell in."""

    low: float
    best: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """For JSON; four significant digits, since no estimate here has more."""
        return {name: float(f"{getattr(self, name):.4g}") for name in ("low", "best", "high")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """How a kind of engine on a kind of GPU turns bytes into time, calibrated on benchmarks.

    step time = bytes / (bandwidth * memory_efficiency) + layers * layer_overhead_us
    time_factor_low, time_factor_high   10th and 90th percentile of observed / predicted, on data
                                        that the fit had not seen
    mixed_prefill_efficiency            of peak, for prompts computed between decode steps
    high_bandwidth_memory               HBM as against GDDR, LPDDR and unified memory
    Empty `vendors` and None mean any.
    """

    name: str
    engines: tuple[str, ...]
    vendors: tuple[str, ...]
    high_bandwidth_memory: bool | None
    weight_only_int4: bool | None
    sparse_attention: bool | None
    memory_efficiency: float
    layer_overhead_us: float
    mixed_prefill_efficiency: float | None
    time_factor_low: float
    time_factor_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillRegime:
    """Part of peak FLOP/s that a prompt reaches, and what the first token waits besides.

    time_factor_*   where a factor on the whole time was measured; otherwise the band of
                    `efficiency` is the band of the answer
    """

    name: str
    engines: tuple[str, ...]
    mixture_of_experts: bool | None
    integrated: bool | None
    efficiency: Band
    first_token_overhead_ms: float
    time_factor_low: float | None
    time_factor_high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PerformanceConstants:
    """Everything calibrated about speed: `data/performance.json`. The first match counts."""

    date: str
    decode: tuple[Regime, ...]
    prefill: tuple[PrefillRegime, ...]


def performance_constants(document: Mapping[str, Any]) -> PerformanceConstants:
    """The constants of a parsed `data/performance.json`; provenance stays in the file."""

    def pick(row: Mapping[str, Any], kind: type[Any]) -> dict[str, Any]:
        values = {field.name: row[field.name] for field in fields(kind)}
        return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}

    return PerformanceConstants(
        date=document["date"],
        decode=tuple(Regime(**pick(row, Regime)) for row in document["decode"]),
        prefill=tuple(
            PrefillRegime(**{**pick(row, PrefillRegime), "efficiency": Band(**row["efficiency"])})
            for row in document["prefill"]
        ),
    )


# Schemes whose multiplications run in a narrow format where the GPU has it; all others hold
# weights only and multiply in 16 bits. MXFP4 weights meet FP8 activations on GPUs with FP4
# (FlashInfer), 16-bit ones elsewhere (Triton, Marlin).
_NARROW = {
    "fp8": "fp8",
    "fp8-block": "fp8",
    "fp8-dynamic": "fp8",
    "mxfp8": "fp8",
    "w8a8": "int8",
    "nvfp4": "fp4",
}
_INT4_SCHEMES = ("gptq-4bit", "awq-4bit", "w4a16", "nf4", "nf4-dq")


def matmul_format(scheme: str, peaks: Mapping[str, int | None]) -> str | None:
    """Number format whose peak rate counts for weights in `scheme`; None when it is unknown.

    Narrow formats need a GPU that has them: FP8 weights on an A100 multiply in bf16. A 16-bit
    model runs in the fastest of bf16, fp16 and fp32, provided that one of the first two is known:
    GPUs before Ampere lack bf16, Pascal is slow in fp16.
    """
    if scheme == "fp32":
        return "fp32" if peaks.get("fp32") else None
    narrow = _NARROW.get(scheme, "")
    if scheme == "mxfp4" and peaks.get("fp4"):
        narrow = "fp8"
    if narrow and peaks.get(narrow):
        return narrow
    wide = {name: peaks.get(name) or 0 for name in ("bf16", "fp16", "fp32")}
    if not wide["bf16"] and not wide["fp16"]:
        return None
    return max(wide, key=lambda name: wide[name])


# --- Roofline -----------------------------------------------------------------------------------

# No accelerator of the catalogue has a ridge point below this many FLOPs per byte, so a step
# under it waits for memory whatever the peak is.
_SURELY_MEMORY_BOUND = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """How fast, and why; None where a fact is missing, with the reason in `unknown`."""

    arithmetic_intensity: float
    ridge_point: float | None
    bound: Literal["memory", "compute"] | None
    peak_format: str | None
    regime: str | None
    decode_tokens_per_s: Band | None
    decode_tokens_per_s_per_sequence: Band | None
    time_per_output_token_ms: Band | None
    time_to_first_token_ms: Band | None
    unknown: tuple[str, ...] = ()

    def performance_dict(self) -> dict[str, Any]:
        """The `performance` object."""
        bands = {
            "decode_tokens_per_s": self.decode_tokens_per_s,
            "decode_tokens_per_s_per_sequence": self.decode_tokens_per_s_per_sequence,
            "time_per_output_token_ms": self.time_per_output_token_ms,
            "time_to_first_token_ms": self.time_to_first_token_ms,
        }
        shown = {name: None if band is None else band.to_dict() for name, band in bands.items()}
        return {**shown, "regime": self.regime, "unknown": list(self.unknown)}

    def compute_dict(self) -> dict[str, Any]:
        """Its part of the `compute` object."""
        ridge = self.ridge_point
        return {
            "arithmetic_intensity": round(self.arithmetic_intensity, 3),
            "ridge_point": None if ridge is None else round(ridge, 3),
            "bound": self.bound,
            "peak_format": self.peak_format,
        }


def roofline(
    constants: PerformanceConstants,
    *,
    engine: str,
    vendor: str,
    memory_type: str,
    bandwidth_bytes_per_s: int | None,
    peak_flops_per_s: Mapping[str, int | None],
    scheme: str,
    step_bytes: int,
    step_flops: int,
    sequences: int,
    num_layers: int,
    prefill_flops: int,
    prefill_bytes: int = 0,
    mixture_of_experts: bool = False,
    sparse_attention: bool = False,
    integrated: bool = False,
    pipeline_parallel_size: int = 1,
    mixed_prefill_flops: int = 0,
) -> Roofline:
    """Times of decode and of the first token on one rank.

    step_bytes, step_flops   of one decode step on the limiting rank; under pipeline parallelism
                             those of its stage for the sequences it takes at once
    sequences                of the whole deployment, all served at once
    num_layers               of the stage
    prefill_flops            of one prompt on the rank; prefill_bytes: weights it reads at least
    mixed_prefill_flops      prompt FLOPs that fall between two decode steps when prompts keep
                             coming: (sequences - 1) * prefill_flops / output tokens; 0 = none
    integrated               the GPU shares its memory with the processor

    Decode: pp * (max(bytes / (bandwidth * efficiency), flops / (peak * efficiency))
    + layers * overhead). First token: overhead + max of the same two for the prompt.
    Raises InvalidInputError for numbers below 1.
    """
    for name, value in (
        ("step_bytes", step_bytes),
        ("sequences", sequences),
        ("num_layers", num_layers),
        ("pipeline_parallel_size", pipeline_parallel_size),
    ):
        at_least(name, value, 1)
    number_format = matmul_format(scheme, peak_flops_per_s)
    peak = peak_flops_per_s.get(number_format) if number_format else None
    intensity = step_flops / step_bytes
    unknown: list[str] = []
    if bandwidth_bytes_per_s is None:
        unknown.append("the memory bandwidth of this GPU is not known")
    if peak is None:
        unknown.append(f"the peak FLOP/s of this GPU for {scheme} is not known")
    ridge = None
    if peak is not None and bandwidth_bytes_per_s is not None:
        ridge = peak / bandwidth_bytes_per_s
    bound: Literal["memory", "compute"] | None = None
    if ridge is not None:
        bound = "memory" if intensity < ridge else "compute"
    elif intensity < _SURELY_MEMORY_BOUND:
        bound = "memory"
    regime = _decode_regime(constants, engine, vendor, memory_type, scheme, sparse_attention)
    prefill = _prefill_regime(constants, engine, mixture_of_experts, integrated)
    if bandwidth_bytes_per_s is not None and regime is None:
        unknown.append(f"speed of {engine} on {vendor} GPUs was never calibrated")
    step = first = None
    if bandwidth_bytes_per_s is not None and regime is not None and bound is not None:
        flops_rate = None if peak is None or prefill is None else peak * prefill.efficiency.best
        memory = bandwidth_bytes_per_s * regime.memory_efficiency
        overhead = num_layers * regime.layer_overhead_us * 1e-6
        step = _longest(step_bytes / memory, step_flops, flops_rate) + overhead
        if mixed_prefill_flops and peak is not None and regime.mixed_prefill_efficiency:
            step += mixed_prefill_flops / (peak * regime.mixed_prefill_efficiency)
        step *= pipeline_parallel_size
        if prefill is not None and peak is not None:
            floor = prefill_bytes / memory + overhead
            first = _first_token(prefill, prefill_flops / peak, floor, pipeline_parallel_size)
    per_token = None
    if step is not None and regime is not None:
        per_token = Band(
            low=step * regime.time_factor_low, best=step, high=step * regime.time_factor_high
        )
    return Roofline(
        arithmetic_intensity=intensity,
        ridge_point=ridge,
        bound=bound,
        peak_format=number_format,
        regime=None if regime is None else regime.name,
        decode_tokens_per_s=None if per_token is None else _rate(per_token, sequences),
        decode_tokens_per_s_per_sequence=None if per_token is None else _rate(per_token, 1),
        time_per_output_token_ms=None if per_token is None else _milliseconds(per_token),
        time_to_first_token_ms=None if first is None else _milliseconds(first),
        unknown=tuple(unknown),
    )


def _longest(memory_s: float, flops: int, flops_per_s: float | None) -> float:
    return memory_s if flops_per_s is None else max(memory_s, flops / flops_per_s)


def _first_token(regime: PrefillRegime, peak_seconds: float, floor_s: float, stages: int) -> Band:
    """Seconds until the first token of a prompt that nothing else holds up."""
    fixed = regime.first_token_overhead_ms * 1e-3

    def at(efficiency: float) -> float:
        return fixed + stages * max(peak_seconds / efficiency, floor_s)

    best = at(regime.efficiency.best)
    if regime.time_factor_low is not None and regime.time_factor_high is not None:
        return Band(
            low=best * regime.time_factor_low, best=best, high=best * regime.time_factor_high
        )
    return Band(low=at(regime.efficiency.high), best=best, high=at(regime.efficiency.low))


def _rate(seconds: Band, tokens: int) -> Band:
    return Band(low=tokens / seconds.high, best=tokens / seconds.best, high=tokens / seconds.low)


def _milliseconds(seconds: Band) -> Band:
    return Band(low=seconds.low * 1e3, best=seconds.best * 1e3, high=seconds.high * 1e3)


def _decode_regime(
    constants: PerformanceConstants,
    engine: str,
    vendor: str,
    memory_type: str,
    scheme: str,
    sparse_attention: bool,
) -> Regime | None:
    int4 = scheme in _INT4_SCHEMES
    hbm = memory_type.upper().startswith("HBM")
    for regime in constants.decode:
        if (
            engine in regime.engines
            and (not regime.vendors or vendor in regime.vendors)
            and regime.high_bandwidth_memory in (None, hbm)
            and regime.weight_only_int4 in (None, int4)
            and regime.sparse_attention in (None, sparse_attention)
        ):
            return regime
    return None


def _prefill_regime(
    constants: PerformanceConstants, engine: str, mixture_of_experts: bool, integrated: bool
) -> PrefillRegime | None:
    for regime in constants.prefill:
        if (
            engine in regime.engines
            and regime.mixture_of_experts in (None, mixture_of_experts)
            and regime.integrated in (None, integrated)
        ):
            return regime
    return None
