"""SARIF 2.1.0, as GitHub's code scanning and editors read it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from moesize.check.rules import RULES
from moesize.check.source import SourceFile
from moesize.renderers.check.lines import (
    Shown,
    all_findings,
    by_severity,
    fingerprints,
    message_lines,
    visible,
)
from moesize.renderers.check.rules import as_sentence, family_of, rule_markdown, rule_text

if TYPE_CHECKING:
    from moesize.check.findings import CheckReport, Edit, Finding, Fix
    from moesize.check.rules import Rule
    from moesize.check.source import Span

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {"error": "error", "warning": "warning", "info": "note"}
_PROBLEMS = {"error": "error", "warning": "warning", "info": "recommendation"}
# What GitHub takes of a run, what it shows of one, and related locations of a result.
MOST_RESULTS, MOST_SHOWN, _MOST_RELATED = 25_000, 5_000, 100
_MOST_DESCRIPTION = 1_000
_INDEX = {rule.id: position for position, rule in enumerate(RULES)}


def render_sarif(report: CheckReport, *, verbose: bool = False, most: int = MOST_RESULTS) -> str:
    """One run with `most` results at most: of too many the most severe.

    Suppressed findings are in it with `verbose` only, marked as such: GitHub's code scanning does
    not look at the mark and opens an alert for each (github/codeql-action, issue 1230).
    """
    everything = all_findings(report)
    marks = dict(zip(map(id, everything), fingerprints(everything), strict=True))
    found = [shown for shown in everything if verbose or shown.finding.suppressed is None]
    kept = found
    if len(found) > most:
        ranked = sorted(by_severity(found), key=lambda s: s.finding.suppressed is not None)
        wanted = {id(shown) for shown in ranked[:most]}
        kept = [shown for shown in found if id(shown) in wanted]
    places = _Places(report)
    run = {
        "tool": {"driver": _driver(report.version)},
        "automationDetails": {"id": "moesize-check/"},
        "columnKind": "utf16CodeUnits",
        "invocations": [
            {
                "executionSuccessful": True,
                "toolExecutionNotifications": _notifications(len(found), len(kept)),
            }
        ],
        "results": [_result(shown, places, marks[id(shown)]) for shown in kept],
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _driver(version: str) -> dict[str, Any]:
    driver: dict[str, Any] = {"name": "moesize", "rules": [_rule(rule) for rule in RULES]}
    if version:
        driver["version"] = version
    return driver


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "name": "".join(part.capitalize() for part in rule.name.split("-")),
        "shortDescription": {"text": as_sentence(rule.summary)},
        "fullDescription": {"text": f"{as_sentence(rule.summary)} {rule.why}"[:_MOST_DESCRIPTION]},
        "help": {"text": rule_text(rule), "markdown": rule_markdown(rule)},
        "defaultConfiguration": {"level": _LEVELS[rule.severity]},
        "properties": {
            "tags": [family_of(rule).tag, "deployment"],
            "precision": "high",
            "problem.severity": _PROBLEMS[rule.severity],
        },
    }


def _notifications(found: int, kept: int) -> list[dict[str, Any]]:
    """What a reader of the file should know of what it does not show."""
    texts = []
    if kept < found:
        texts.append(
            f"{found - kept:,} of {found:,} findings are left out: the most severe {kept:,} stand "
            "here. Check fewer files at a time, or a rule at a time (--select)."
        )
    if kept > MOST_SHOWN:
        texts.append(f"{kept:,} findings: GitHub shows the most severe {MOST_SHOWN:,} of a file.")
    return [{"level": "warning", "message": {"text": text}} for text in texts]


def _result(shown: Shown, places: _Places, fingerprint: str) -> dict[str, Any]:
    finding = shown.finding
    location: dict[str, Any] = {"physicalLocation": places.physical(finding.span)}
    if finding.server:
        location["logicalLocations"] = [{"name": visible(finding.server), "kind": "resource"}]
    out: dict[str, Any] = {
        "ruleId": finding.rule,
        "level": _LEVELS[finding.severity],
        "message": {"text": _message(finding)},
        "locations": [location],
        "partialFingerprints": {"moesizeFinding/v1": fingerprint},
    }
    if finding.rule in _INDEX:
        out["ruleIndex"] = _INDEX[finding.rule]
    if finding.confidence:
        out["properties"] = {"confidence": finding.confidence}
    if finding.labels:
        out["relatedLocations"] = [
            {
                "id": number,
                "physicalLocation": places.physical(label.span),
                "message": {"text": _unlinked(visible(label.text)) or "see here"},
            }
            for number, label in enumerate(finding.labels[:_MOST_RELATED], 1)
        ]
    if finding.fix is not None and finding.fix.edits:
        out["fixes"] = [_fix(finding.fix, places)]
    if finding.suppressed is not None:
        out["suppressions"] = [_suppression(finding.suppressed)]
    return out


def _message(finding: Finding) -> str:
    # Where there is little room only the first sentence is shown: it ends with a full stop.
    first, *rest = message_lines(finding)
    return _unlinked("\n".join([first if first.endswith(".") else f"{first}.", *rest]))


def _unlinked(text: str) -> str:
    """`[words](place)` is a link in a SARIF message; no stranger's text may hold one."""
    return text.replace("](", "] (")


def _suppression(why: str) -> dict[str, Any]:
    baseline = why == "baseline"
    return {
        "kind": "external" if baseline else "inSource",
        "status": "accepted",
        "justification": visible(why) or "no reason is given",
    }


def _fix(fix: Fix, places: _Places) -> dict[str, Any]:
    by_path: dict[str, list[Edit]] = {}
    for edit in fix.edits:
        by_path.setdefault(edit.span.path, []).append(edit)
    return {
        "description": {"text": _unlinked(visible(fix.text)) or "Replace the value."},
        "artifactChanges": [
            {
                "artifactLocation": _artifact(path),
                "replacements": [
                    {
                        "deletedRegion": places.region(edit.span),
                        "insertedContent": {"text": _plain(edit.text)},
                    }
                    for edit in edits
                ],
            }
            for path, edits in by_path.items()
        ],
    }


def _artifact(path: str) -> dict[str, Any]:
    raw = path.encode("utf-8", errors="surrogateescape" if _escaped(path) else "replace")
    if path.startswith("/"):
        return {"uri": f"file://{quote(raw)}"}
    return {"uri": quote(raw.removeprefix(b"./")), "uriBaseId": "%SRCROOT%"}


def _escaped(path: str) -> bool:
    """Whether bytes of a file name that are no UTF-8 stand in it as Python writes them."""
    try:
        path.encode("utf-8", errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _plain(text: str) -> str:
    """Without lone surrogates, which JSON readers refuse."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


class _Places:
    """Spans as SARIF regions: columns count UTF-16 code units instead of characters."""

    def __init__(self, report: CheckReport) -> None:
        self._texts = report.texts
        self._files: dict[str, SourceFile | None] = {}

    def physical(self, span: Span) -> dict[str, Any]:
        region = self.region(span)
        if span.line == span.end_line and region["endColumn"] <= region["startColumn"]:
            region["endColumn"] = region["startColumn"] + 1  # an alert needs something to mark
        return {"artifactLocation": _artifact(span.path), "region": region}

    def region(self, span: Span) -> dict[str, int]:
        return {
            "startLine": span.line,
            "startColumn": self._column(span.path, span.line, span.column),
            "endLine": span.end_line,
            "endColumn": self._column(span.path, span.end_line, span.end_column),
        }

    def _column(self, path: str, line: int, column: int) -> int:
        if path not in self._files:
            text = self._texts.get(path)
            # Where all characters are of the first 65,536, both counts are the same.
            wide = text is not None and not text.isascii() and max(text) > "\uffff"
            self._files[path] = SourceFile(path, text) if wide and text is not None else None
        source = self._files[path]
        if source is None:
            return column
        before = source.line(line)[: column - 1]
        return column + sum(char > "\uffff" for char in before)
