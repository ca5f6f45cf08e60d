"""What `moesize accuracy` says, as plain strings: shared by the table, markdown and CSV."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moesize.accuracy.summary import Accuracy, Row

HEADINGS = ("term", "n", "covered", "median", "p90", "worst", "bias", "in band", "of card")
_CSV = (
    "id",
    "engine",
    "engine_version",
    "version_assumed",
    "model",
    "model_id",
    "gpu",
    "term",
    "device",
    "unit",
    "predicted",
    "low",
    "high",
    "observed",
    "error",
    "error_of_card",
    "in_band",
    "suspect",
    "not_covered",
)


def percent(value: float | None, *, signed: bool = False) -> str:
    """A fraction in per cent with the digits that say something; empty for none."""
    if value is None:
        return ""
    share = value * 100
    digits = 0 if abs(share) >= 100 else 1 if abs(share) >= 10 else 2
    text = f"{share:+.{digits}f}" if signed else f"{share:.{digits}f}"
    return "0 %" if not float(text) else f"{text} %"


def summary_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One engine and term in the order of HEADINGS; nothing predicted leaves the errors empty."""
    card = ""
    if row["median_abs_error_of_card"] is not None:
        card = (
            f"{percent(row['median_abs_error_of_card'])} / {percent(row['p90_abs_error_of_card'])}"
        )
    inside = row["in_band"]
    return (
        row["term"],
        str(row["n"]),
        str(row["covered"]),
        percent(row["median_abs_error"]),
        percent(row["p90_abs_error"]),
        percent(row["worst_abs_error"]),
        percent(row["median_error"], signed=True),
        "" if inside is None else f"{inside * 100:.0f} %",
        card,
    )


def coverage_line(row: dict[str, Any]) -> str:
    """Reports of one engine in words."""
    share = "" if row["share"] is None else f" ({row['share'] * 100:.0f} %)"
    text = (
        f"{row['engine']}: {row['reports']} reports, {row['public']} of public models, "
        f"{row['covered']} of these covered{share}"
    )
    if row["version_assumed"]:
        text += f"; version assumed in {row['version_assumed']}"
    if row["suspect"]:
        text += f"; {row['suspect']} suspect"
    return text


def unread_line(answer: Accuracy, most: int = 6) -> str:
    """Fields that nothing was read from, so that a misspelt name shows; empty if there is none."""
    unread = list(answer.source.unread.most_common())
    if not unread:
        return ""
    names = ", ".join(f"{name} ({count})" for name, count in unread[:most])
    more = f" and {len(unread) - most} more" if len(unread) > most else ""
    return f"fields that are not read: {names}{more}"


def reason_lines(reasons: dict[str, int], most: int = 8) -> list[str]:
    """Why reports are not covered, the most frequent first."""
    lines = [f"{count} x {reason}" for reason, count in list(reasons.items())[:most]]
    left = sum(list(reasons.values())[most:])
    return [*lines, f"{left} x other reasons"] if left else lines


def outcome_line(outcomes: dict[str, Any]) -> str:
    """Fits or not, in one line."""
    return (
        f"{outcomes['covered']} of {outcomes['n']} planned, {outcomes['agree']} agree; "
        f'false "fits" {outcomes["false_fits"]} '
        f"({outcomes['false_fits_without_warning']} without a warning that it is close), "
        f'false "does not fit" {outcomes["false_does_not_fit"]}'
    )


def case_line(case: dict[str, Any]) -> str:
    """A report whose outcome the plan got wrong."""
    predicted = "fits" if case["predicted"] == "fits" else "does not fit"
    close = "" if case["certain"] else " (said to be close)"
    return (
        f"{case['id']} {case['model'][:48]}: planned as {predicted}{close}, was "
        f"{case['observed'][:60]}; {case['reason']}"
    )


def figure(value: float | None) -> str:
    """A predicted or observed figure."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 10_000 or value == int(value) else f"{value:,.2f}"


def row_cells(row: Row) -> tuple[str, ...]:
    """One figure of one report: id, model, term, predicted, observed, error, remark."""
    term = f"{row.term} {row.device}" if row.device else row.term
    remark = row.not_covered or ("suspect" if row.suspect else "")
    return (
        row.id,
        f"{row.engine} {row.engine_version}".strip(),
        (row.model_id or row.model)[:40],
        term,
        figure(row.predicted),
        f"{figure(row.observed)} {row.unit}",
        percent(row.error, signed=True),
        remark,
    )


ROW_HEADINGS = ("report", "engine", "model", "term", "predicted", "observed", "error", "")


def accuracy_markdown(answer: Accuracy, *, worst: int = 10, rows: bool = False) -> str:
    """Tables for a page or a pull request."""
    parts = [summary_markdown(answer)]
    suspect = [row for row in answer.summary(suspect=True) if row["covered"]]
    if suspect:
        parts.append(
            "Reports that their collector doubts, counted apart:\n\n" + _summary_table(suspect)
        )
    parts.append("Outcomes: " + outcome_line(answer.outcome_summary()) + ".")
    parts.append("\n".join(_coverage_item(row) for row in answer.coverage()))
    shown = answer.rows if rows else answer.worst(worst)
    if shown:
        title = "All rows" if rows else "Worst rows"
        parts.append(f"{title}:\n\n" + _table(ROW_HEADINGS, [row_cells(row) for row in shown]))
    return "\n\n".join(parts)


def _coverage_item(row: dict[str, Any]) -> str:
    text = f"- {_escape(coverage_line(row))}."
    if row["reasons"]:
        text += f" Not covered: {_escape('; '.join(reason_lines(row['reasons'])))}."
    return text


def summary_markdown(answer: Accuracy) -> str:
    """The table of engines and terms; engines of which nothing is covered are left out."""
    found = [row for row in answer.summary() if row["covered"]]
    return _summary_table(found) if found else "No report is covered."


def _summary_table(found: list[dict[str, Any]]) -> str:
    cells = [(row["engine"], *summary_cells(row)) for row in found]
    return _table(("engine", *HEADINGS), cells)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    lines += ["| " + " | ".join(_escape(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _escape(text: str) -> str:
    # Names come from strangers: no control characters, no cell of their own.
    plain = "".join(char if char.isprintable() else " " for char in text)
    return plain.replace("|", "\\|").replace("<", "&lt;")


def accuracy_csv(answer: Accuracy) -> str:
    """Every row, with a header."""
    import csv
    import io

    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_CSV)
    for row in answer.rows:
        data = row.to_dict()
        writer.writerow([_csv_cell(data[name]) for name in _CSV])
    return stream.getvalue()


def _csv_cell(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return ""
    if isinstance(value, str):
        text = "".join(char if char.isprintable() else " " for char in value)
        # A spreadsheet would take it for a formula.
        return "'" + text if text.startswith(("=", "+", "-", "@")) else text
    return value
