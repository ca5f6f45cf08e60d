"""Templates of Helm charts: rendered once per chart, findings led back to the template's lines.

A rendered line is looked for in its template: as it is, else by what stands before the value. Where
it cannot be found the finding points at the template's first line. Nothing is edited in templates.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from typing import TYPE_CHECKING

from moesize.check.findings import Label
from moesize.check.source import SourceFile, Span

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from moesize.check.findings import Finding, ServerResult
    from moesize.check.helm import Source

# A key, or a flag up to its value.
_LEAST_PREFIX = 4


class RenderedChart:
    """The rendered text of a chart, and the way back from it.

    file   the rendered text; its path is that of the chart's Chart.yaml
    """

    def __init__(
        self, chart: Path, shown: Callable[[Path], str], text: str, sources: list[Source]
    ) -> None:
        self.chart = chart
        self.shown = shown
        self.file = SourceFile(shown(chart / "Chart.yaml"), text)
        self.sources = sources
        self.templates: dict[str, SourceFile | None] = {}

    def place(self, span: Span) -> Span:
        """A span of the rendered text as one of a template; others stay."""
        if span.path != self.file.path:
            return span
        start = self.file.starts[min(span.line, self.file.num_lines) - 1]
        index = bisect_right([source.start for source in self.sources], start) - 1
        if index < 0:
            return Span(self.file.path, 1, 1, 1, 1)
        template = self.template(self.sources[index].path)
        if template is None:
            return Span(self.file.path, 1, 1, 1, 1)
        number = line_in(template, self.file.line(span.line))
        text = template.line(number)
        column = len(text) - len(text.lstrip()) + 1
        return Span(template.path, number, column, number, max(column, len(text) + 1))

    def template(self, source: str) -> SourceFile | None:
        """A template by what helm calls it: `chart/templates/x.yaml`."""
        if source not in self.templates:
            self.templates[source] = self._read(source)
        return self.templates[source]

    def _read(self, source: str) -> SourceFile | None:
        from moesize.check.discovery import Candidate, Unread, read_candidate

        path = self.chart / source.partition("/")[2]
        if ".." in path.parts:
            return None
        try:
            text = read_candidate(Candidate(path, self.chart, given=True))
        except (OSError, ValueError):
            return None
        return None if isinstance(text, Unread) else SourceFile(self.shown(path), text)

    def lead_back(self, finding: Finding) -> None:
        """Let a finding point into the template."""
        if finding.span.path != self.file.path:
            return
        rendered = self.file.line(finding.span.line).strip()
        finding.span = self.place(finding.span)
        finding.label = finding.label or f"rendered: {rendered[:80]}"
        finding.labels = tuple(
            Label(self.place(label.span), label.text) for label in finding.labels
        )
        if finding.fix is not None:
            finding.fix = replace(finding.fix, edits=(), safe=False)

    def lead_server_back(self, server: ServerResult) -> None:
        """The same for where a server begins."""
        server.span = self.place(server.span)

    def texts(self) -> dict[str, str]:
        """Templates that something was led back to."""
        return {file.path: file.text for file in self.templates.values() if file is not None}


def line_in(template: SourceFile, rendered: str) -> int:
    """The line of a template that a rendered line was made from; 1 when none looks like it."""
    wanted = rendered.strip()
    prefix = _prefix(wanted)
    by_prefix = 0
    for number in range(1, template.num_lines + 1):
        line = template.line(number).strip()
        if line == wanted and wanted:
            return number
        if prefix and not by_prefix and line.lstrip("\"'- ").startswith(prefix):
            by_prefix = number
    return by_prefix or 1


def _prefix(line: str) -> str:
    """What stands before the value: `nvidia.com/gpu:`, `--max-model-len=`."""
    bare = line.lstrip("\"'- ")
    ends = [index for index in (bare.find(":"), bare.find("=")) if index >= 0]
    prefix = bare[: min(ends) + 1] if ends else bare.partition(" ")[0]
    return prefix if len(prefix) >= _LEAST_PREFIX else ""
