"""What `moesize verify` says: terms, phases, how it ended. Needs no torch."""

from __future__ import annotations

from dataclasses import field
from typing import Any, NamedTuple

from moesize._version import __version__
from moesize.core.records import dataclass

SCHEMA = "moesize.verify/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One figure on both sides, in bytes.

    predicted   None where nothing predicts it; `why` says so. measured None: it was not reached
    tolerance   share of the prediction by which the measurement may differ; 0 = to the byte
    low, high   a prediction that is a band counts as met inside of it
    rank        of which rank, under torchrun
    """

    name: str
    predicted_bytes: int | None
    measured_bytes: int | None
    tolerance: float
    why: str
    low_bytes: int | None = None
    high_bytes: int | None = None
    rank: int = 0

    @property
    def error(self) -> float | None:
        """(predicted - measured) / measured; None where one is missing or nothing was measured."""
        if self.predicted_bytes is None or self.measured_bytes is None:
            return None
        if self.measured_bytes == 0:
            return 0.0 if self.predicted_bytes == 0 else None
        return (self.predicted_bytes - self.measured_bytes) / self.measured_bytes

    @property
    def ok(self) -> bool | None:
        """Whether they agree; None where one of them is missing."""
        if self.predicted_bytes is None or self.measured_bytes is None:
            return None
        best = self.predicted_bytes
        slack = self.tolerance * best
        low = best if self.low_bytes is None else self.low_bytes
        high = best if self.high_bytes is None else self.high_bytes
        return low - slack <= self.measured_bytes <= high + slack

    def to_dict(self) -> dict[str, Any]:
        """The row of the JSON document."""
        return {
            "name": self.name,
            "predicted_bytes": self.predicted_bytes,
            "measured_bytes": self.measured_bytes,
            "error": None if self.error is None else round(self.error, 8),
            "tolerance": self.tolerance,
            "ok": self.ok,
            "low_bytes": self.low_bytes,
            "high_bytes": self.high_bytes,
            "rank": self.rank,
            "why": self.why,
        }


class Flops(NamedTuple):
    """Operations of a prompt and of a decode step: formula, and torch's own counter.

    unseen   part of the formula that no counter of matrix products can see (decays, scans)
    """

    phase: str
    predicted: int
    measured: int
    unseen: int
    tolerance: float

    @property
    def error(self) -> float:
        """As a share of what was counted, what it cannot see added."""
        seen = self.measured + self.unseen
        return (self.predicted - seen) / seen if seen else 0.0

    @property
    def ok(self) -> bool:
        """Within the tolerance."""
        return abs(self.error) <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """One phase of the `flops` object."""
        return {**self._asdict(), "error": round(self.error, 8), "ok": self.ok}


class PhaseRecord(NamedTuple):
    """Allocated bytes before, at most during, and after a part of a run.

    owners  bytes of tensors by the part of the pass that made them, when most was live; empty where
            the device does not tell
    """

    name: str
    begin_bytes: int
    peak_bytes: int
    end_bytes: int
    seconds: float
    owners: dict[str, int] = {}  # noqa: RUF012  (never changed)


class Owned(NamedTuple):
    """Bytes of one owner at the peak of a phase, on shapes alone and on the device."""

    phase: str
    owner: str
    predicted_bytes: int | None
    measured_bytes: int


class Failure(NamedTuple):
    """Memory ran out: where, how much was asked for, and what was live then, by phase."""

    phase: str
    asked_bytes: int | None
    live: dict[str, int]
    message: str


class Extrapolation(NamedTuple):
    """A term of the whole model out of two runs with different layers; not a measurement.

    whole = fixed + scale * predicted, with fixed and scale from the two runs
    """

    name: str
    predicted_bytes: int
    extrapolated_bytes: int
    fixed_bytes: int
    scale: float


class Speed(NamedTuple):
    """How fast shards were loaded, beside what the device and the page cache can do; GB/s.

    to_device     copies from page-locked memory; on a CPU from memory into new memory
    cached_share  of the bytes, what was in the page cache before; None where that is not known
    """

    load_gb_per_s: float
    to_device_gb_per_s: float | None
    page_cache_gb_per_s: float | None
    cached_share: float | None = None


class Device(NamedTuple):
    """Where it was measured."""

    kind: str
    name: str
    total_bytes: int
    driver: str
    torch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """The answer.

    layers        indices that were loaded, of `num_layers`
    extrapolated  terms of the whole model, when not all layers were loaded
    attribution   whose bytes the highest peak and that of the prompt are
    failure       None, or how memory ran out
    engine_version  release of transformers or vLLM; torch's own is the device's
    """

    model: str
    model_source: str
    spec_sha256: str
    revision: str
    quantization: str
    device: Device
    engine: str
    shards: str
    layers: tuple[int, ...]
    num_layers: int
    tokens: int
    sequences: int
    decode_steps: int
    dtype: str
    rank: int
    ranks: int
    seed: int
    date: str
    command: str
    terms: tuple[Term, ...] = ()
    flops: tuple[Flops, ...] = ()
    phases: tuple[PhaseRecord, ...] = ()
    extrapolated: tuple[Extrapolation, ...] = ()
    speed: Speed | None = None
    attribution: tuple[Owned, ...] = ()
    failure: Failure | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)
    saved_to: str = ""
    engine_version: str = ""

    @property
    def agrees(self) -> bool:
        """Something was compared, nothing is outside its tolerance, and memory sufficed."""
        judged = [term.ok for term in self.terms if term.ok is not None]
        judged += [row.ok for row in self.flops]
        return bool(judged) and all(judged) and self.failure is None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document `moesize.verify/1`."""
        rows = {row.phase: row for row in self.flops}
        return {
            "schema": SCHEMA,
            "moesize_version": __version__,
            "model": self.model,
            "model_source": self.model_source,
            "spec_sha256": self.spec_sha256,
            "revision": self.revision or None,
            "quantization": self.quantization,
            "device": self.device._asdict(),
            "engine": self.engine,
            "engine_version": self.engine_version or None,
            "shards": self.shards,
            "layers": list(self.layers),
            "num_layers": self.num_layers,
            "settings": {
                "tokens": self.tokens,
                "sequences": self.sequences,
                "decode_steps": self.decode_steps,
                "dtype": self.dtype,
                "rank": self.rank,
                "ranks": self.ranks,
                "seed": self.seed,
            },
            "terms": [term.to_dict() for term in self.terms],
            "flops": {
                "predicted": sum(row.predicted for row in self.flops),
                "measured": sum(row.measured + row.unseen for row in self.flops),
                "phases": [row.to_dict() for row in rows.values()],
            },
            "phases": [phase._asdict() for phase in self.phases],
            "extrapolated": [item._asdict() for item in self.extrapolated],
            "speed": None if self.speed is None else self.speed._asdict(),
            "attribution": [item._asdict() for item in self.attribution],
            "failure": None if self.failure is None else self.failure._asdict(),
            "agrees": self.agrees,
            "date": self.date,
            "command": self.command,
            "notes": list(self.notes),
            "saved_to": self.saved_to or None,
        }


def term_from_dict(row: dict[str, Any]) -> Term:
    """The inverse of `Term.to_dict`."""
    names = (
        "name", "predicted_bytes", "measured_bytes", "tolerance", "why", "low_bytes",
        "high_bytes", "rank",
    )  # fmt: skip
    return Term(**{name: row[name] for name in names})
