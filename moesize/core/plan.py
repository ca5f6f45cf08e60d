"""The answer: what was planned, what fills each GPU, and the verdict.

`Plan.to_dict` is the JSON document `moesize.plan/1`; renderers read the same object.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

from moesize.core.inventory import ParameterCounts
from moesize.core.ledger import GpuLedger, MemoryItem
from moesize.core.records import dataclass

Confidence = Literal["exact", "calibrated", "estimated"]
SCHEMA = "moesize.plan/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary:
    """Which model, where its facts come from, and its parameters."""

    id: str
    title: str
    source: str
    params: ParameterCounts
    params_exact: bool
    num_layers: int
    max_context: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The `model` object."""
        params, groups = self.params, self.params.by_group
        return {
            "id": self.id,
            "title": self.title,
            "source": self.source,
            "params": {
                "total": params.total,
                "mtp": params.mtp,
                "stored": params.stored,
                "active": params.active,
                "active_without_embeddings": params.active_without_embeddings,
                **groups,
            },
            "params_exact": self.params_exact,
            "num_layers": self.num_layers,
            "max_context": self.max_context,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationSummary:
    """The weights as a whole: all ranks together, nothing replicated.

    scheme       `checkpoint` stays that; `format` says in words what it means for this model
    resolved     why a family word such as 4bit became this scheme; empty otherwise
    """

    scheme: str
    format: str
    weight_bytes: int
    scale_bytes: int
    elements: int
    resolved: str = ""

    @property
    def bits_per_weight(self) -> float:
        """Bits per logical element over the whole checkpoint, scales included."""
        return self.weight_bytes * 8 / self.elements

    def to_dict(self) -> dict[str, Any]:
        """The `quantization` object."""
        return {
            "scheme": self.scheme,
            "format": self.format,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "weight_bytes": self.weight_bytes,
            "scale_bytes": self.scale_bytes,
            "resolved": self.resolved,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSummary:
    """The KV cache of the limiting rank.

    bytes_per_token            one more token of one sequence, all layers that keep every token
    state_bytes_per_sequence   what does not grow with context
    capacity_tokens, max_concurrency   exactly what the engine of that version logs
    max_context                longest context of which `concurrency` sequences fit; 0 = none
    replicas                   data-parallel ranks, each with a cache of its own like this
    """

    bytes_per_token: int
    state_bytes_per_sequence: int
    block_tokens: int
    blocks: int
    available_bytes: int
    needed_bytes: int
    capacity_tokens: int
    max_concurrency: float
    max_context: int
    dtype: str
    backend: str = ""
    available_low_bytes: int = 0
    available_high_bytes: int = 0
    groups: tuple[dict[str, Any], ...] = ()
    replicas: int = 1

    def to_dict(self) -> dict[str, Any]:
        """The `kv_cache` object."""
        return {
            "bytes_per_token": self.bytes_per_token,
            "state_bytes_per_sequence": self.state_bytes_per_sequence,
            "block_tokens": self.block_tokens,
            "blocks": self.blocks,
            "available_bytes": self.available_bytes,
            "available_low_bytes": self.available_low_bytes,
            "available_high_bytes": self.available_high_bytes,
            "needed_bytes": self.needed_bytes,
            "capacity_tokens": self.capacity_tokens,
            "max_concurrency": round(self.max_concurrency, 4),
            "replicas": self.replicas,
            "total_capacity_tokens": self.capacity_tokens * self.replicas,
            "max_context": self.max_context,
            "dtype": self.dtype,
            "attention_backend": self.backend,
            "groups": [dict(group) for group in self.groups],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Yes or no, why, and how sure.

    shortfall_bytes   what is missing on the limiting rank; 0 when it fits
    likely            False when the answer would turn over inside the estimates' band
    """

    fits: bool
    reason: str
    shortfall_bytes: int
    limiting_rank: int
    confidence: Confidence
    certain: bool

    def to_dict(self) -> dict[str, Any]:
        """The `verdict` object."""
        return {
            "fits": self.fits,
            "reason": self.reason,
            "shortfall_bytes": self.shortfall_bytes,
            "limiting_rank": self.limiting_rank,
            "confidence": self.confidence,
            "certain": self.certain,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something the reader should know that is no verdict."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A change that was itself planned and fits."""

    what: str
    options: tuple[str, ...]
    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything `moesize plan` says."""

    model: ModelSummary
    quantization: QuantizationSummary
    deployment: dict[str, Any]
    defaulted: tuple[str, ...]
    gpus: tuple[GpuLedger, ...]
    kv_cache: KvSummary
    compute: dict[str, Any]
    performance: dict[str, Any]
    verdict: Verdict
    warnings: tuple[Note, ...] = ()
    suggestions: tuple[Suggestion, ...] = ()
    host: tuple[MemoryItem, ...] = ()
    engine_title: str = ""
    expert_parallel: dict[str, Any] | None = None
    version: str = ""
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def fits(self) -> bool:
        """The verdict in one word."""
        return self.verdict.fits

    def to_dict(self) -> dict[str, Any]:
        """The JSON document; its schema is printed by `moesize schema plan`."""
        return {
            "schema": SCHEMA,
            "moesize_version": self.version,
            "model": self.model.to_dict(),
            "quantization": self.quantization.to_dict(),
            "deployment": {
                "engine_settings": {},
                **self.deployment,
                "defaulted": list(self.defaulted),
            },
            "gpus": [_ledger_dict(ledger) for ledger in self.gpus],
            "host": {
                "items": [_item_dict(item) for item in self.host],
                "used_bytes": sum(item.size_bytes for item in self.host),
            },
            "kv_cache": self.kv_cache.to_dict(),
            "expert_parallel": self.expert_parallel,
            "compute": self.compute,
            "performance": self.performance,
            "verdict": self.verdict.to_dict(),
            "suggestions": [
                {
                    "what": item.what,
                    "options": list(item.options),
                    "detail": item.detail,
                    "verdict": item.verdict.to_dict(),
                }
                for item in self.suggestions
            ],
            "warnings": [{"code": w.code, "message": w.message} for w in self.warnings],
        }


def _ledger_dict(ledger: GpuLedger) -> dict[str, Any]:
    return {
        "rank": ledger.rank,
        "pp_stage": ledger.pp_stage,
        "count": ledger.count,
        "usable_bytes": ledger.usable_bytes,
        "budget_bytes": ledger.budget_bytes,
        "items": [_item_dict(item) for item in ledger.items],
        "used_bytes": ledger.used_bytes,
        "headroom_bytes": ledger.headroom_bytes,
    }


def _item_dict(item: MemoryItem) -> dict[str, Any]:
    return {
        "name": item.name,
        "category": item.category,
        "bytes": item.size_bytes,
        "low_bytes": item.low_bytes,
        "high_bytes": item.high_bytes,
        "formula": item.formula,
        "source": item.source,
        "in_budget": item.in_budget,
    }
