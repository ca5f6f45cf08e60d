"""One line for each finding, as compilers print them: editors and grep read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.renderers.check.lines import shown_findings, summary_line, visible

if TYPE_CHECKING:
    from moesize.check.findings import CheckReport


def render_concise(report: CheckReport, *, verbose: bool = False, quiet: bool = False) -> str:
    """`path:line:column: MS102 error message`, and the summary as the last line."""
    lines = []
    if not quiet:
        for _, finding in shown_findings(report, verbose=verbose):
            span = finding.span
            lines.append(
                f"{_path(span.path)}:{span.line}:{span.column}: "
                f"{finding.rule} {finding.severity} {visible(finding.message)}"
            )
    return "\n".join([*lines, summary_line(report)])


def _path(path: str) -> str:
    shown = visible(path)
    # At the start of a line `::` would begin a command of GitHub's runner.
    return f"./{shown}" if shown.lstrip().startswith("::") else shown
