"""Annotations of GitHub Actions: workflow commands on stdout, most severe first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.renderers.check.lines import (
    by_severity,
    message_lines,
    rule_name,
    shown_findings,
    summary_line,
    visible,
)

if TYPE_CHECKING:
    from moesize.check.findings import CheckReport, Finding

_COMMANDS = {"error": "error", "warning": "warning", "info": "notice"}


def render_github(report: CheckReport, *, verbose: bool = False) -> str:
    """One command for each finding, and the summary line.

    GitHub shows ten errors and ten warnings of a step, the first ones: hence the order.
    """
    return "\n".join([*annotation_lines(report, verbose=verbose), summary_line(report)])


def annotation_lines(report: CheckReport, *, verbose: bool = False) -> list[str]:
    """The commands alone, for a run that has said the rest to people."""
    shown = by_severity(shown_findings(report, verbose=verbose))
    return [_annotation(finding) for _, finding in shown]


def _annotation(finding: Finding) -> str:
    span = finding.span
    name = rule_name(finding.rule)
    fields: dict[str, str | int] = {"file": visible(span.path), "line": span.line}
    if span.line == span.end_line:  # columns are refused where the lines differ
        fields |= {"col": span.column, "endLine": span.end_line}
        if span.end_column > span.column:
            fields["endColumn"] = span.end_column
    else:
        fields["endLine"] = span.end_line
    fields["title"] = f"moesize {finding.rule} ({name})" if name else f"moesize {finding.rule}"
    said = ",".join(f"{key}={_property(str(value))}" for key, value in fields.items())
    message = _data("\n".join(message_lines(finding)))
    return f"::{_COMMANDS[finding.severity]} {said}::{message}"


def _data(text: str) -> str:
    """As the runner reads the text of a command; the percent sign comes first."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
