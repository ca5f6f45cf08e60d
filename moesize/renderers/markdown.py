"""A plan as markdown, for pull requests and notes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.core.units import format_gib
from moesize.renderers import lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moesize.core.ledger import MemoryItem
    from moesize.core.plan import Plan


def plan_markdown(plan: Plan, *, explain: bool = False) -> str:
    """Verdict, settings, one table per distinct rank, suggestions, warnings."""
    out = [
        f"### {lines.verdict_word(plan)}: {_escape(lines.title(plan))}",
        "",
        _escape(plan.verdict.reason),
        "",
        f"- model: {_escape(lines.model_line(plan))}",
        f"- weights: {_escape(lines.weights_line(plan))}",
        f"- setting: {_escape(lines.setting_line(plan)).replace('*', chr(92) + '*')}",
        f"- KV cache: {_escape(lines.kv_line(plan))}",
    ]
    out += [
        f"- {name}: {_escape(text)}"
        for name, text in (("experts", lines.experts_line(plan)), ("host", lines.host_line(plan)))
        if text
    ]
    out += [f"- cost: {_escape(line)}" for line in lines.cost_lines(plan)]
    for ledger in plan.gpus:
        out += [
            "",
            f"| rank {ledger.rank} | GiB | estimated between |",
            "|---|---:|---|",
        ]
        out += [
            f"| {share.label} | {share.size_bytes / 2**30:,.2f} | {share.band} |"
            for share in lines.shares(ledger)
        ]
        out += [
            f"| **sum** | **{ledger.used_bytes / 2**30:,.2f}** | |",
            f"| budget of {format_gib(ledger.usable_bytes)} usable | "
            f"{ledger.budget_bytes / 2**30:,.2f} | |"
            if ledger.budget_bytes != ledger.usable_bytes
            else f"| usable | {ledger.usable_bytes / 2**30:,.2f} | |",
        ]
        if explain:
            out += _explanation(ledger.items)
    if plan.host and explain:
        out += ["", "host memory:", *_explanation(plan.host)]
    rows = lines.suggestion_rows(plan)
    if rows:
        out += ["", "What would fit instead:", ""]
        out += [f"- `{options}`: {_escape(what)}" for options, what in rows]
    if plan.warnings:
        out += ["", *(f"> {_escape(warning.message)}" for warning in plan.warnings)]
    return "\n".join(out)


def _explanation(items: Sequence[MemoryItem]) -> list[str]:
    return [
        "",
        "| item | size | formula | source |",
        "|---|---|---|---|",
        *(
            f"| {row['item']} | {row['size']} | {_escape(row['formula'])} "
            f"| {_escape(row['source'])} |"
            for row in lines.explain_rows(items)
        ),
    ]


def _escape(text: str) -> str:
    # Model names come from strangers: nothing in them may open a table cell, a link or HTML.
    for char in "|<>[]`":
        text = text.replace(char, "\\" + char)
    return text
