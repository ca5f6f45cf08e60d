"""A verification as text: rows of a table, markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.core.units import format_bytes
from moesize.renderers.lines import flops_text, plural

if TYPE_CHECKING:
    from moesize.verify.report import Extrapolation, Flops, Term, VerifyReport

HEADINGS = ("term", "predicted", "measured", "error", "tolerance", "", "why")
_TOLERANCE = HEADINGS.index("tolerance")
_PREDICTED = HEADINGS.index("predicted")
# Columns of a terminal from which on reasons, tolerances, predictions are shown: the error and the
# verdict tell what was predicted where there is no room for it.
_WITH_WHY = 100
_WITH_TOLERANCE = 70
_WITH_PREDICTED = 60


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
    if any(term.rank != report.rank for term in report.terms):
        rank = f", {report.ranks} ranks"
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
    parts = [f"{label(name)} {format_bytes(size)}" for name, size in failure.live.items() if size]
    live = ", ".join(parts) or ("nothing" if failure.live else "")
    rest = f"live: {live}" if live else failure.message
    where = f" on rank {failure.rank}" if report.ranks > 1 else ""
    return f"memory ran out{where} in {failure.phase}{asked}; {rest}"


def setting_line(report: VerifyReport) -> str:
    """What was run."""
    if not report.sequences:  # block formats are loaded, not computed with
        return f"{_shards(report)}, loaded as they are, torch {report.device.torch}"
    engine = f"torch {report.device.torch}"
    if report.engine != "torch":
        engine = f"{report.engine} {report.engine_version}, {engine}"
    return (
        f"{plural(report.sequences, 'sequence')} x {plural(report.tokens, 'token')} and "
        f"{plural(report.decode_steps, 'decode step')}, {report.dtype}, {_shards(report)}, "
        f"{engine}"
    )


def _shards(report: VerifyReport) -> str:
    words = {
        "synthetic": "synthetic shards",
        "folder": "the folder's shards",
        "hub": "shards of the hub",
    }
    return words.get(report.shards, f"{report.shards} shards")


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


# Parts of a peak that are smaller than this share of what it has beyond weights are summed up, and
# predictions shown beside parts that are off by this share of all of it.
_LEAST_SHARE = 0.05
_LEAST_OFF = 0.002


def peak_lines(report: VerifyReport) -> list[tuple[str, str]]:
    """(phase, whose bytes its peak is) of the prompt and of the highest; predicted if otherwise."""
    out = []
    for phase in dict.fromkeys(item.phase for item in report.attribution):
        items = [item for item in report.attribution if item.phase == phase]
        total = sum(item.measured_bytes for item in items)
        beyond = sum(item.measured_bytes for item in items if item.owner != "weights")
        shown, rest = [], 0
        for item in items:
            predicted = item.predicted_bytes
            off = 0 if predicted is None else abs(item.measured_bytes - predicted)
            small = item.measured_bytes < _LEAST_SHARE * beyond
            if small and off < _LEAST_OFF * total:
                rest += item.measured_bytes
                continue
            text = f"{label(item.owner)} {format_bytes(item.measured_bytes)}"
            if predicted is not None and off >= _LEAST_OFF * total:
                text += f" ({format_bytes(predicted)} predicted)"
            shown.append(text)
        if rest:
            shown.append(f"others {format_bytes(rest)}")
        out.append((phase, ", ".join(shown)))
    return out


def label(name: str) -> str:
    """The name of a term in words: kv_cache.static -> KV cache, static."""
    words = name.replace("_", " ").replace("kv cache", "KV cache")
    # Names of an engine's own figures begin with its name.
    return words if words.startswith("vllm.") else words.replace(".", ", ")


def mark(ok: bool | None) -> str:
    """ok, off, or nothing."""
    return "" if ok is None else "ok" if ok else "off"


def error_text(error: float | None) -> str:
    """Signed error in percent; 0 when equal to the byte."""
    return "" if error is None else "0" if error == 0 else f"{error:+.2%}"


def tolerance_text(term: Term) -> str:
    """Share by which the measurement may differ; 0: to the byte; nothing without a prediction."""
    if term.predicted_bytes is None:
        return ""
    if {term.low_bytes, term.high_bytes} - {None, term.predicted_bytes}:
        return "band"
    return f"{100 * term.tolerance:g} %" if term.tolerance else "0"


def _why(term: Term) -> str:
    """What the prediction rests on, with the band where there is one."""
    if tolerance_text(term) != "band":
        return term.why
    low, high = term.low_bytes or 0, term.high_bytes
    band = f"at least {format_bytes(low)}"
    if high is not None:
        band = f"{format_bytes(low)} to {format_bytes(high)}" if low else f"up to {_size(high)}"
    return f"{term.why}; {band}"


def term_cells(term: Term, ranks: int) -> tuple[str, ...]:
    """One row."""
    name = label(term.name)
    return (
        f"{name} [{term.rank}]" if ranks > 1 else name,
        _size(term.predicted_bytes),
        _size(term.measured_bytes),
        error_text(term.error),
        tolerance_text(term),
        mark(term.ok),
        _why(term),
    )


def flops_cells(row: Flops) -> tuple[str, ...]:
    """FLOPs of one phase."""
    seen = row.measured + row.unseen
    why = "one sequence, by torch's counter"
    if row.unseen:
        why += f", and {flops_text(row.unseen)} that it cannot see"
    return (
        f"FLOPs of {row.phase}", flops_text(row.predicted, 2), flops_text(seen, 2),
        error_text(row.error), f"{100 * row.tolerance:g} %", mark(row.ok), why,
    )  # fmt: skip


def extrapolated_line(item: Extrapolation) -> str:
    """A term of the whole model."""
    return (
        f"{format_bytes(item.extrapolated_bytes)} = {format_bytes(item.fixed_bytes)} + "
        f"{item.scale:.6f} x {format_bytes(item.predicted_bytes)} predicted"
    )


def record_line(report: VerifyReport) -> str:
    """Where the record is, and whether plans will speak of it."""
    if report.saved_to and report.device.kind == "cpu":
        return f"{report.saved_to} (plans quote records of GPUs only)"
    return report.saved_to


def _size(value: int | None) -> str:
    return "?" if value is None else format_bytes(value)


def rows(report: VerifyReport) -> list[tuple[str, ...]]:
    """All terms, then FLOPs."""
    return [
        *(term_cells(term, report.ranks) for term in report.terms),
        *(flops_cells(row) for row in report.flops),
    ]


def cells(report: VerifyReport, width: int) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows for a terminal of so many columns."""
    left_out = {len(HEADINGS) - 1} if width < _WITH_WHY else set()
    if width < _WITH_TOLERANCE:
        left_out.add(_TOLERANCE)
    if width < _WITH_PREDICTED:
        left_out.add(_PREDICTED)
    kept = [i for i in range(len(HEADINGS)) if i not in left_out]
    first = "term [rank]" if report.ranks > 1 else HEADINGS[0]
    headings = (first, *(HEADINGS[i] for i in kept[1:]))
    return headings, [tuple(row[i] for i in kept) for row in rows(report)]


def verify_markdown(report: VerifyReport) -> str:
    """Headline, terms, the whole model, notes."""
    from moesize.renderers.markdown import _escape

    out = [f"### {verdict_word(report)}: {_escape(title(report))}", "", setting_line(report), ""]
    if report.failure is not None:
        out += [_escape(failure_line(report)), ""]
    out += ["| " + " | ".join(HEADINGS) + " |", "|---|---:|---:|---:|---:|---|---|"]
    out += ["| " + " | ".join(_escape(cell) for cell in row) + " |" for row in rows(report)]
    if report.attribution:
        out += ["", "Whose bytes the peaks are:", ""]
        out += [f"- {_escape(phase)}: {_escape(text)}" for phase, text in peak_lines(report)]
    if speed_line(report):
        out += ["", f"Shards {speed_line(report)}."]
    if report.extrapolated:
        out += ["", "The whole model, extrapolated from two runs:", ""]
        out += [
            f"- {_escape(f'{label(item.name)}: {extrapolated_line(item)}')}"
            for item in report.extrapolated
        ]
    if report.notes:
        out += ["", *(f"> {_escape(note)}" for note in report.notes)]
    return "\n".join(out)
