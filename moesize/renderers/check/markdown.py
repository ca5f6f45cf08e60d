"""A comment on a pull request: the verdict, a table of servers, findings that unfold.

Names and messages are strangers' texts: nothing in them becomes a table cell, HTML, a link, a
mention of a person or of an issue.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

from moesize.renderers.check.lines import (
    by_severity,
    engine_words,
    fits_words,
    gpu_words,
    memory_words,
    plural,
    rule_name,
    server_of,
    shown_findings,
    summary_line,
    visible,
)
from moesize.renderers.check.rules import fenced
from moesize.renderers.check.text import Page

if TYPE_CHECKING:
    from moesize.check.findings import CheckReport, FileResult, ServerResult
    from moesize.renderers.check.lines import Shown

# GitHub refuses a comment of more than 65,536 characters.
MOST_CHARACTERS = 60_000
_MOST_FOR_TABLE, _FOR_NOTE = 20_000, 100
_LONGEST_CELL, _LONGEST_TEXT = 100, 1_000
# A program that renews its comment instead of adding one finds it by this line.
MARKER = "<!-- moesize check -->"
_MARKUP = re.compile(r"[\\`*_{}\[\]|~!#]")
# What would begin a list or a rule inside a list item.
_OPENING = re.compile(r"\A(?:[-+=]|\d{1,9}(?=[.)]))")
# What GitHub and GitLab turn into links, whatever marks stand around it.
_LINKED = re.compile(r"[@#](?=\w)|(?<=http):|(?<=https):|(?<=ftp):|(?<=www)\.", re.IGNORECASE)
_BREAK = "\u200b"


def render_markdown(report: CheckReport, *, verbose: bool = False) -> str:
    """Verdict, table, findings; what is past the limit is counted instead of shown."""
    verdict = "fails" if report.fails else "passes"
    if report.found_nothing:
        verdict = "found nothing to check"
    head = [MARKER, f"### moesize check {verdict}", "", f"{_prose(summary_line(report))}."]
    parts = ["\n".join(head), *_table(report)]
    room = MOST_CHARACTERS - _FOR_NOTE - sum(len(part) + 2 for part in parts)
    parts += _details(report, verbose, room)
    return "\n\n".join(parts)


def _table(report: CheckReport) -> list[str]:
    """Servers, those that do not fit first."""
    order = {"does not fit": 0, "unknown": 1, "fits": 2, "skipped": 3}
    rows = [(file, server) for file in report.files for server in file.servers]
    rows.sort(key=lambda row: order[fits_words(row[1])])
    if not rows:
        return []
    lines = [
        "| server | file | model | engine | GPUs | fits | needed of usable |",
        "|---|---|---|---|---|---|---:|",
    ]
    size = sum(map(len, lines))
    for position, (file, server) in enumerate(rows):
        line = _row(file, server)
        size += len(line) + 1
        if size > _MOST_FOR_TABLE:
            return ["\n".join(lines), f"{plural(len(rows) - position, 'more server')}."]
        lines.append(line)
    return ["\n".join(lines)]


def _row(file: FileResult, server: ServerResult) -> str:
    fits = fits_words(server)
    cells = (
        server.name,
        f"{file.path}:{server.span.line}",
        server.model_id or server.model or "",
        engine_words(server),
        gpu_words(server),
        fits,
        memory_words(server),
    )
    shown = [_prose(_short(cell, _LONGEST_CELL)) for cell in cells]
    if fits == "does not fit":
        shown[5] = f"**{fits}**"
    return f"| {' | '.join(shown)} |"


def _details(report: CheckReport, verbose: bool, room: int) -> list[str]:
    found = by_severity(shown_findings(report, verbose=verbose))
    page = Page(report)
    parts: list[str] = []
    for position, shown in enumerate(found):
        part = _finding(page, shown)
        room -= len(part) + 2
        if room < 0:
            left = plural(len(found) - position, "more finding")
            parts.append(f"{left}: too many for a comment; the log of the check has all.")
            break
        parts.append(part)
    return parts


def _finding(page: Page, shown: Shown) -> str:
    file, finding = shown
    span = finding.span
    name = rule_name(finding.rule)
    title = f"{finding.severity} {finding.rule}" + (f" ({name})" if name else "")
    message = _html(_short(finding.message, _LONGEST_TEXT))
    place = _html(f"{span.path}:{span.line}")
    lines = [
        f"<details><summary><b>{_html(title)}</b>: {message} &mdash; {place}</summary>",
        "",
    ]
    server = server_of(file, finding)
    if server is not None:
        lines.append(f"- server: {_prose(_short(server.name, _LONGEST_CELL))}")
    lines += [f"- {_item(_short(text, _LONGEST_TEXT))}" for text in finding.details]
    if finding.fix is not None:
        lines.append(f"- fix: {_prose(_short(finding.fix.text, _LONGEST_TEXT))}")
    excerpt = page.excerpt(finding)
    if excerpt:
        lines += ["", fenced("\n".join(excerpt))]
    return "\n".join([*lines, "", "</details>"])


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _prose(text: str) -> str:
    """Text that stays text in markdown."""
    escaped = _MARKUP.sub(r"\\\g<0>", html.escape(_unlinked(text), quote=False))
    return escaped.replace("$", "&#36;")  # two of them would be a formula


def _item(text: str) -> str:
    """Text that stays text, and one item, in a list."""
    text = _prose(text).strip()
    opening = _OPENING.match(text)
    if opening is None:
        return text
    sign = opening[0]
    return f"{sign}\\{text[len(sign) :]}" if sign.isdigit() else f"\\{text}"


def _html(text: str) -> str:
    """Text that stays text in HTML."""
    return html.escape(_unlinked(text)).replace("[", "&#91;").replace("$", "&#36;")


def _unlinked(text: str) -> str:
    return _LINKED.sub(rf"\g<0>{_BREAK}", visible(text))
