"""Findings as a person reads them: the place, an excerpt with carets, the fix, one summary line.

Plain text and, on a terminal, ANSI colours written by hand: this output is made in CI for each
commit, where loading a library for it would cost more than the check of a small repository.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

from moesize.check.source import SourceFile
from moesize.renderers.check.excerpt import Mark, Row, excerpt, width_of, wrap
from moesize.renderers.check.lines import (
    about_server,
    all_findings,
    fits_words,
    fixable,
    memory_words,
    plural,
    server_of,
    shown_findings,
    summary_line,
    visible,
)

if TYPE_CHECKING:
    from moesize.check.findings import CheckReport, FileResult, Finding
    from moesize.renderers.check.lines import Shown

_NARROWEST, _LONGEST_LINE = 40, 120
_STYLES = {
    "error": "1;31",
    "warning": "1;33",
    "info": "1;36",
    "gutter": "34",
    "secondary": "34",
    "bold": "1",
    "fix": "32",
    "dim": "2",
}


def use_color() -> bool:
    """Whether stdout is a terminal that shows colours, and nobody asked for none."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def use_width() -> int | None:
    """Columns of the terminal, or as COLUMNS says; None without either: nothing is wrapped."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit():
        return shutil.get_terminal_size().columns
    return None


def render_text(
    report: CheckReport,
    *,
    color: bool = False,
    width: int | None = None,
    verbose: bool = False,
    quiet: bool = False,
) -> str:
    """Everything, or with `quiet` the summary line only."""
    if quiet:
        return summary_line(report)
    page = Page(report, color=color, width=width)
    explained: set[str] = set()
    blocks = []
    for shown in shown_findings(report, verbose=verbose):
        rule = shown.finding.rule
        blocks.append(page.block(shown, verbose=verbose, explain=rule not in explained))
        explained.add(rule)
    if verbose:
        blocks += page.lists()
    blocks.append(page.summary(hidden=_hidden(report, verbose)))
    return "\n\n".join("\n".join(block) for block in blocks)


def _hidden(report: CheckReport, verbose: bool) -> int:
    return len(report.findings) - len(shown_findings(report, verbose=verbose))


class Page:
    """A report as text of a certain width."""

    def __init__(
        self, report: CheckReport, *, color: bool = False, width: int | None = None
    ) -> None:
        self.report = report
        self.color = color
        self.width = width if width is None else max(width, _NARROWEST)
        self._sources: dict[str, SourceFile | None] = {}

    def block(self, shown: Shown, *, verbose: bool = False, explain: bool = True) -> list[str]:
        """One finding: headline, place, excerpts, figures, fix."""
        file, finding = shown
        head = f"{finding.severity}[{finding.rule}]"
        first, *rest = self._wrapped(f"{head}: {visible(finding.message)}", 2)
        first = self._paint(head, finding.severity) + self._paint(first[len(head) :], "bold")
        lines = [first, *(f"  {self._paint(text, 'bold')}" for text in rest)]
        gutter, excerpt = self._excerpts(finding)
        lines += self._arrow(finding, gutter, self._about(file, finding))
        lines += excerpt
        notes = self._notes(finding, bool(excerpt), verbose=verbose, explain=explain)
        for text, style in notes:
            lines += self._note(text, style, gutter)
        return lines

    def excerpt(self, finding: Finding) -> list[str]:
        """The excerpts of a finding alone."""
        return self._excerpts(finding)[1]

    def lists(self) -> list[list[str]]:
        """Servers with their verdicts, what is suppressed, files passed over and why."""
        servers, skipped = [], []
        for file in self.report.files:
            if file.skipped:
                skipped.append(f"  - {visible(file.path)}: {visible(file.skipped)}")
            for server in file.servers:
                place = visible(f"{file.path}:{server.span.line}")
                words = [about_server(server), server.model_id or server.model or ""]
                words += [memory_words(server), server.skipped or server.verdict]
                said = "; ".join(visible(text) for text in words if text)
                servers.append(f"  {fits_words(server):<12}  {place}  {said}")
                servers += [f"  {'':<12}  note: {visible(note)}" for note in server.notes]
        suppressed = [
            f"  - {visible(f.span.path)}:{f.span.line}: {f.rule} "
            f"({visible(f.suppressed) or 'no reason is given'})"
            for _, f in all_findings(self.report)
            if f.suppressed is not None
        ]
        ignored = [f"  - {visible(path)}: {visible(why)}" for path, why in self.report.ignored]
        titled = (
            ("servers", servers),
            ("suppressed", suppressed),
            ("skipped", skipped),
            ("ignored", ignored),
        )
        return [[self._paint(f"{title}:", "bold"), *rows] for title, rows in titled if rows]

    def summary(self, *, hidden: int = 0) -> list[str]:
        """The last lines."""
        lines = self._wrapped(summary_line(self.report), 2)
        lines = [lines[0], *(f"  {line}" for line in lines[1:])]
        can_fix = fixable(self.report)
        if can_fix:
            lines.append(f"{can_fix:,} can be fixed with --fix")
        if hidden:
            lines.append(f"{plural(hidden, 'note')} shown with --verbose only")
        return lines

    # --- parts of a block ---

    def _about(self, file: FileResult, finding: Finding) -> str:
        server = server_of(file, finding)
        if server is not None:
            return visible(f"({about_server(server)})")
        return visible(f'(server "{finding.server}")') if finding.server else ""

    def _arrow(self, finding: Finding, gutter: int, about: str) -> list[str]:
        place = visible(f"{finding.span.path}:{finding.span.line}:{finding.span.column}")
        indent = " " * (gutter + 5)
        line = f"{' ' * gutter}{self._paint('-->', 'gutter')} {place}"
        if not about:
            return [line]
        if self.width is None or gutter + 6 + width_of(place) + width_of(about) <= self.width:
            return [f"{line}  {about}"]
        return [line, *(indent + text for text in wrap(about, self.width - len(indent)))]

    def _excerpts(self, finding: Finding) -> tuple[int, list[str]]:
        """Places for a line number, and the excerpts: of the finding's file, then of others."""
        own = finding.span.path
        grouped = {own: [Mark(finding.span, visible(finding.label), True)]}
        for label in finding.labels:
            mark = Mark(label.span, visible(label.text), False)
            grouped.setdefault(label.span.path, []).append(mark)
        highest = max(mark.span.line for marks in grouped.values() for mark in marks)
        gutter = len(str(highest))
        if self._source(own) is None:
            return gutter, []
        room = _LONGEST_LINE if self.width is None else self.width - gutter - 3
        label_room = None if self.width is None else room
        lines: list[str] = []
        for path, marks in grouped.items():
            if path != own:
                place = visible(f"{path}:{marks[0].span.line}:{marks[0].span.column}")
                lines.append(f"{' ' * gutter} {self._paint(':::', 'gutter')} {place}")
            source = self._source(path)
            if source is not None:
                rows = excerpt(source, marks, room, label_room)
                lines += self._rows(rows, gutter, finding.severity)
        return gutter, lines

    def _source(self, path: str) -> SourceFile | None:
        if path not in self._sources:
            text = self.report.texts.get(path)
            self._sources[path] = None if text is None else SourceFile(path, text)
        return self._sources[path]

    def _rows(self, rows: list[Row], gutter: int, severity: str) -> list[str]:
        bar = self._paint("|", "gutter")
        lines = [f"{' ' * gutter} {bar}"]
        for row in rows:
            if row.number == 0:
                lines.append(self._paint(row.text, "gutter"))
                continue
            number = "" if row.number is None else str(row.number)
            style = severity if row.style == "primary" else row.style
            shown = row.text if row.style == "source" else self._paint(row.text, style)
            start = f"{self._paint(f'{number:>{gutter}}', 'gutter')} {bar} {' ' * row.indent}"
            lines.append(f"{start}{shown}".rstrip())
        return [*lines, f"{' ' * gutter} {bar}"]

    def _notes(
        self, finding: Finding, excerpted: bool, *, verbose: bool, explain: bool
    ) -> list[tuple[str, str]]:
        notes = [(visible(text), "") for text in finding.details]
        if not excerpted:
            places = [(finding.span, finding.label), *finding.labels]
            notes = [
                *((visible(f"{s.path}:{s.line}: {text}"), "") for s, text in places if text),
                *notes,
            ]
        if verbose and finding.confidence:
            notes.append((f"confidence: {finding.confidence}", ""))
        if finding.fix is not None:
            mark = "  [--fix]" if finding.fix.safe and finding.fix.edits else ""
            notes.append((f"fix: {visible(finding.fix.text)}{mark}", "fix"))
        if explain:
            notes.append((f"see: moesize check --explain {finding.rule}", "dim"))
        return notes

    def _note(self, text: str, style: str, gutter: int) -> list[str]:
        sign = f"{' ' * gutter} {self._paint('=', 'gutter')} "
        indent = gutter + 3
        parts = [text] if self.width is None else wrap(text, self.width - indent)
        painted = [self._paint(part, style) for part in parts]
        return [sign + painted[0], *(" " * indent + part for part in painted[1:])]

    def _wrapped(self, text: str, indent: int) -> list[str]:
        return [text] if self.width is None else wrap(text, self.width - indent)

    def _paint(self, text: str, style: str) -> str:
        if not self.color or not style or not text:
            return text
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"
