"""GitLab's Code Quality report: one object for each finding, the fields that GitLab reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from moesize.renderers.check.lines import (
    all_findings,
    by_severity,
    fingerprints,
    message_lines,
    visible,
)

if TYPE_CHECKING:
    from moesize.check.findings import CheckReport

_SEVERITIES = {"error": "critical", "warning": "major", "info": "info"}


def render_gitlab(report: CheckReport) -> str:
    """The artifact of `artifacts: reports: codequality`."""
    # Numbered in the order of the files, so that a fingerprint does not depend on severities.
    found = all_findings(report)
    marks = dict(zip(map(id, found), fingerprints(found), strict=True))
    out: list[dict[str, Any]] = []
    for shown in by_severity(found):
        finding = shown.finding
        if finding.suppressed is not None:
            continue
        out.append(
            {
                "description": f"{finding.rule}: {'; '.join(message_lines(finding))}",
                "check_name": finding.rule,
                "fingerprint": marks[id(shown)],
                "severity": _SEVERITIES[finding.severity],
                "location": {
                    "path": visible(finding.span.path).removeprefix("./"),
                    "lines": {"begin": finding.span.line},
                },
            }
        )
    return json.dumps(out, indent=2)
