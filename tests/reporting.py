"""Reports for tests."""

from __future__ import annotations

from typing import Any

from moesize.accuracy.reports import FieldReport


def report(engine: str = "vllm", model: str = "llama-3.1-8b", **fields: Any) -> FieldReport:
    """A report with these settings; `observed` and `suspect` are taken out."""
    observed = fields.pop("observed", {})
    suspect = fields.pop("suspect", "")
    return FieldReport(
        id=fields.pop("id", "r"),
        line=1,
        engine=engine,
        model=model,
        settings={"model": model, **fields},
        observed=observed,
        suspect=suspect,
    )
