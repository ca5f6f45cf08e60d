"""One line for scripts, and the ledger as CSV."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.renderers.lines import title, verdict_word

if TYPE_CHECKING:
    from moesize.core.plan import Plan


def verdict_line(plan: Plan) -> str:
    """The verdict and its reason."""
    return f"{verdict_word(plan)}: {title(plan)}: {plan.verdict.reason}"


def plan_csv(plan: Plan) -> str:
    """One row for each ledger item, with a header."""
    import csv
    import io

    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ("rank", "pp_stage", "name", "category", "bytes", "low_bytes", "high_bytes", "in_budget")
    )
    for ledger in plan.gpus:
        for item in ledger.items:
            writer.writerow(
                (
                    ledger.rank,
                    ledger.pp_stage,
                    item.name,
                    item.category,
                    item.size_bytes,
                    item.low_bytes,
                    item.high_bytes,
                    str(item.in_budget).lower(),
                )
            )
    return stream.getvalue()
