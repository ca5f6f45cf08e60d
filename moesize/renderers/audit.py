"""An audit as text: a table in a terminal, markdown, CSV."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesize.core.units import format_bytes

if TYPE_CHECKING:
    from moesize.audit import Audit
    from moesize.audit_terms import Term


def headline(audit: Audit) -> tuple[str, str]:
    """(verdict, what was audited)."""
    start = audit.reading.start
    engine = {"vllm": "vLLM", "sglang": "SGLang"}.get(start.engine, start.engine)
    name = f"{audit.model or 'unknown model'}"
    if audit.gpu:
        name += f" on {audit.gpus} x {audit.gpu}" if audit.gpus else f" on {audit.gpu}"
    return verdict_word(audit), f"{name}, {engine} {start.version or '(version not printed)'}"


def verdict_word(audit: Audit) -> str:
    """AGREES, DIFFERS, or NOTHING COMPARED."""
    if not audit.compared and audit.outcome.agrees is None:
        return "NOTHING COMPARED"
    return "AGREES" if audit.agrees else "DIFFERS"


def outcome_line(audit: Audit) -> str:
    """How the start ended, and what the plan says."""
    outcome = audit.outcome
    words = {"started": "started", "failed": "did not start", "unknown": "not known"}
    text = f"the log: {words[outcome.logged]}"
    if outcome.line:
        text += f" (line {outcome.line:,})"
    if outcome.cause:
        text += f", {outcome.cause}"
    if outcome.predicted:
        text += f"; the plan: {outcome.predicted}"
    return text


def figure(value: float | None, unit: str) -> str:
    """A figure with its unit."""
    if value is None:
        return "?"
    if unit == "bytes":
        if abs(value) >= 1 << 28:
            return f"{value / 2**30:,.2f} GiB"
        return format_bytes(round(value))
    if unit == "sequences":
        return f"{value:,.2f} x"
    return f"{round(value):,}"


def error_text(term: Term) -> str:
    """Signed error in percent."""
    return "" if term.error is None else f"{term.error:+.1%}"


def mark(term: Term) -> str:
    """ok, off, or nothing."""
    return "" if term.ok is None else "ok" if term.ok else "off"


def saved_constant(row: dict[str, Any]) -> str:
    """A constant that was kept, as `non_torch_growth = 120.00 MiB`, with what it is per."""
    value = row["value"]
    kind, _, per = row["unit"].partition(" ")
    size = format_bytes(round(value)) if kind == "byte" else f"{value:g} {kind}".rstrip()
    return f"{row['constant']} = {size} {per}".rstrip()


def label(term: Term) -> str:
    """The term, and its device where there is one."""
    text = term.name.replace("_", " ")
    return f"{text} {term.rank}" if term.rank else text


def audit_markdown(audit: Audit) -> str:
    """Headline, table of terms, advice, notes."""
    from moesize.renderers.markdown import _escape

    verdict, what = headline(audit)
    out = [f"### {verdict}: {_escape(what)}", "", _escape(outcome_line(audit)), ""]
    out += ["| term | logged | predicted | error | | why |", "|---|---:|---:|---:|---|---|"]
    for term in audit.terms:
        out.append(
            f"| {_escape(label(term))} | {figure(term.logged, term.unit)} "
            f"| {figure(term.predicted, term.unit)} | {error_text(term)} | {mark(term)} "
            f"| {_escape(term.why)} |"
        )
    if audit.advice:
        out += ["", "What to change:", ""]
        out += [
            f"- `{' '.join(item.options)}`: {_escape(item.what)} ({_escape(item.detail)})"
            for item in audit.advice
        ]
    if audit.notes:
        out += ["", *(f"> {_escape(note)}" for note in audit.notes)]
    return "\n".join(out)


def audit_csv(audit: Audit) -> str:
    """One row for each term."""
    import csv
    import io

    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    columns = (
        "name",
        "rank",
        "unit",
        "logged",
        "predicted",
        "low",
        "high",
        "error",
        "ok",
        "line",
        "why",
    )
    writer.writerow(columns)
    for term in audit.terms:
        row = term.to_dict()
        writer.writerow(tuple("" if row[name] is None else row[name] for name in columns))
    return stream.getvalue()
