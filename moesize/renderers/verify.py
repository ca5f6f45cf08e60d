"""A verification as text: rows of a table, markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.core.units import format_bytes, format_count

if TYPE_CHECKING:
    from moesize.verify.report import Extrapolation, Flops, Term, VerifyReport

HEADINGS = ("term", "predicted", "measured", "error", "", "why")


def verdict_word(report: VerifyReport) -> str:
    """AGREES, DIFFERS, OUT OF MEMORY, or NOTHING COMPARED."""
    if report.failure is not None:
        return "OUT OF MEMORY"
    if not any(term.ok is not None for term in report.terms):
        return "NOTHING COMPARED"
    return "AGREES" if report.agrees else "DIFFERS"


def title(report: VerifyReport) -> str:
    """What was measured where."""
    layers = f"{len(report.layers)} of {report.num_layers} layers"
    rank = f", rank {report.rank} of {report.ranks}" if report.ranks > 1 else ""
    return (
        f"{report.model} ({report.quantization}, {layers}{rank}) on {report.device.name}, "
        f"{report.device.kind}"
    )


def failure_line(report: VerifyReport) -> str:
    """Where memory ran out; empty when it did not."""
    failure = report.failure
    if failure is None:
        return ""
    asked = (
        "" if not failure.asked_bytes else f", {format_bytes(failure.asked_bytes)} more asked for"
    )
    live = ", ".join(f"{name} {format_bytes(size)}" for name, size in failure.live.items())
    rest = f"live: {live}" if live else failure.message
    return f"memory ran out in {failure.phase}{asked}; {rest}"


def setting_line(report: VerifyReport) -> str:
    """What was run."""
    if not report.sequences:  # block formats are loaded, not computed with
        return f"{report.shards} shards, loaded as they are, torch {report.device.torch}"
    engine = f"torch {report.device.torch}"
    if report.engine != "torch":
        engine = f"{report.engine} {report.engine_version}, {engine}"
    return (
        f"{report.sequences:,} sequences x {report.tokens:,} tokens and {report.decode_steps:,} "
        f"steps, {report.dtype}, {report.shards} shards, {engine}"
    )


def speed_line(report: VerifyReport) -> str:
    """How fast shards were loaded."""
    speed = report.speed
    if speed is None or not speed.load_gb_per_s:
        return ""
    text = f"loaded at {speed.load_gb_per_s:.2f} GB/s"
    if speed.to_device_gb_per_s:
        share = speed.load_gb_per_s / speed.to_device_gb_per_s
        what = (
            "at which this machine copies into new memory"
            if report.device.kind == "cpu"
            else "that the device copies"
        )
        text += f", {share:.0%} of the {speed.to_device_gb_per_s:.2f} GB/s {what}"
    if speed.cached_share is not None and speed.cached_share < 1:
        text += f"; {speed.cached_share:.0%} of the bytes were in the page cache"
    return text


# Parts of a peak that are smaller than this share of it are summed up.
_LEAST_SHARE = 0.002


def peak_lines(report: VerifyReport) -> list[tuple[str, str]]:
    """(phase, whose bytes its peak is) of the prompt and of the highest; predicted if otherwise."""
    out = []
    for phase in dict.fromkeys(item.phase for item in report.attribution):
        items = [item for item in report.attribution if item.phase == phase]
        total = sum(item.measured_bytes for item in items)
        shown, rest = [], 0
        for item in items:
            predicted = item.predicted_bytes
            off = 0 if predicted is None else abs(item.measured_bytes - predicted)
            if max(item.measured_bytes, off) < _LEAST_SHARE * total:
                rest += item.measured_bytes
                continue
            text = f"{item.owner.replace('_', ' ')} {format_bytes(item.measured_bytes)}"
            if predicted is not None and off >= _LEAST_SHARE * total:
                text += f" ({format_bytes(predicted)} predicted)"
            shown.append(text)
        if rest:
            shown.append(f"others {format_bytes(rest)}")
        out.append((phase, ", ".join(shown)))
    return out


def mark(ok: bool | None) -> str:
    """ok, off, or nothing."""
    return "" if ok is None else "ok" if ok else "off"


def error_text(error: float | None) -> str:
    """Signed error in percent; 0 when equal to the byte."""
    return "" if error is None else "0" if error == 0 else f"{error:+.2%}"


def term_cells(term: Term, ranks: int) -> tuple[str, ...]:
    """One row."""
    name = term.name.replace("_", " ")
    return (
        f"{name} [{term.rank}]" if ranks > 1 else name,
        _size(term.predicted_bytes),
        _size(term.measured_bytes),
        error_text(term.error),
        mark(term.ok),
        term.why,
    )


def flops_cells(row: Flops) -> tuple[str, ...]:
    """FLOPs of one phase."""
    seen = row.measured + row.unseen
    why = "one sequence, by torch's counter"
    if row.unseen:
        why += f", and {format_count(row.unseen)} that it cannot see"
    return (
        f"flops {row.phase}", format_count(row.predicted), format_count(seen),
        error_text(row.error), mark(row.ok), why,
    )  # fmt: skip


def extrapolated_line(item: Extrapolation) -> str:
    """A term of the whole model."""
    return (
        f"{item.name.replace('_', ' ')}: {format_bytes(item.extrapolated_bytes)} extrapolated, "
        f"{format_bytes(item.predicted_bytes)} predicted; fixed {format_bytes(item.fixed_bytes)}, "
        f"{item.scale:.6f} a predicted byte"
    )


def _size(value: int | None) -> str:
    return "?" if value is None else format_bytes(value)


def rows(report: VerifyReport) -> list[tuple[str, ...]]:
    """All terms, then FLOPs."""
    return [
        *(term_cells(term, report.ranks) for term in report.terms),
        *(flops_cells(row) for row in report.flops),
    ]


def verify_markdown(report: VerifyReport) -> str:
    """Headline, terms, the whole model, notes."""
    from moesize.renderers.markdown import _escape

    out = [f"### {verdict_word(report)}: {_escape(title(report))}", "", setting_line(report), ""]
    if report.failure is not None:
        out += [_escape(failure_line(report)), ""]
    out += ["| term | predicted | measured | error | | why |", "|---|---:|---:|---:|---|---|"]
    out += ["| " + " | ".join(_escape(cell) for cell in row) + " |" for row in rows(report)]
    if report.attribution:
        out += ["", "Whose bytes the peaks are:", ""]
        out += [f"- {_escape(phase)}: {_escape(text)}" for phase, text in peak_lines(report)]
    if report.extrapolated:
        out += ["", "The whole model, extrapolated from two runs:", ""]
        out += [f"- {_escape(extrapolated_line(item))}" for item in report.extrapolated]
    if report.notes:
        out += ["", *(f"> {_escape(note)}" for note in report.notes)]
    return "\n".join(out)
