"""Findings and their fixes: what was found where, by which rule, and what to write instead."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from moesize.check.source import Span

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


class Edit(NamedTuple):
    """Replace what stands at `span` by `text`."""

    span: Span
    text: str


class Label(NamedTuple):
    """A second place that a finding points at, with a few words."""

    span: Span
    text: str


@dataclass(slots=True, kw_only=True)
class Fix:
    """What to change: in words, and as edits where the place is known.

    safe    the edits change nothing but what was found: `check --fix` makes only such
    """

    text: str
    edits: tuple[Edit, ...] = ()
    safe: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The `fix` object of the JSON document."""
        return {
            "text": self.text,
            "safe": self.safe and bool(self.edits),
            "edits": [
                {
                    "path": edit.span.path,
                    "line": edit.span.line,
                    "column": edit.span.column,
                    "end_line": edit.span.end_line,
                    "end_column": edit.span.end_column,
                    "text": edit.text,
                }
                for edit in self.edits
            ],
        }


@dataclass(slots=True, kw_only=True)
class Finding:
    """One finding.

    rule        its id, MS101
    message     one line: what is wrong, with the figures
    span        the value at fault
    label       a few words under the caret; empty: the message is enough
    details     further lines: what was computed, what the engine will say
    labels      second places: the GPU's line, the TP's
    server      name of the server, empty for findings about a file
    confidence  of the plan behind it: exact, calibrated, estimated; empty where none was made
    key         what makes it the same finding after lines moved (baselines): the values involved
    suppressed  why it does not count: an inline comment's reason, or "baseline"; None: it counts
    """

    rule: str
    severity: Severity
    message: str
    span: Span
    label: str = ""
    details: tuple[str, ...] = ()
    labels: tuple[Label, ...] = ()
    fix: Fix | None = None
    server: str = ""
    confidence: str = ""
    key: tuple[str, ...] = ()
    suppressed: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """One element of `findings` in the JSON document."""
        return {
            "rule": self.rule,
            "severity": self.severity,
            "message": self.message,
            "line": self.span.line,
            "column": self.span.column,
            "end_line": self.span.end_line,
            "end_column": self.span.end_column,
            "path": self.span.path,
            "server": self.server,
            "details": list(self.details),
            "related": [
                {
                    "path": label.span.path,
                    "line": label.span.line,
                    "column": label.span.column,
                    "message": label.text,
                }
                for label in self.labels
            ],
            "confidence": self.confidence or None,
            "fix": self.fix.to_dict() if self.fix else None,
            "suppressed": self.suppressed,
        }


@dataclass(slots=True, kw_only=True)
class ServerResult:
    """A server after it was judged: the fields of `servers[]` in the JSON document."""

    name: str
    span: Span
    engine: str | None = None
    engine_version: str | None = None
    model: str | None = None
    model_id: str | None = None
    gpu: str | None = None
    gpu_id: str | None = None
    vendor: str = ""
    gpu_count: int | None = None
    gpus_per_node: int | None = None
    nodes: int | None = None
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    data_parallel_size: int | None = None
    quantization: str | None = None
    max_model_len: int | str | None = None
    gpu_memory_utilization: float | None = None
    fits: bool | None = None
    verdict: str = ""
    needed_bytes: int | None = None
    budget_bytes: int | None = None
    usable_bytes: int | None = None
    alternatives: list[dict[str, Any]] = field(default_factory=list)
    skipped: str = ""
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """One element of `servers`."""
        return {
            "name": self.name,
            "line": self.span.line,
            "column": self.span.column,
            "engine": self.engine,
            "engine_version": self.engine_version,
            "model": self.model,
            "model_id": self.model_id,
            "gpu": self.gpu_id or self.gpu,
            "gpu_as_written": self.gpu,
            "vendor": self.vendor or None,
            "gpu_count": self.gpu_count,
            "gpus_per_node": self.gpus_per_node,
            "nodes": self.nodes,
            "tensor_parallel_size": self.tensor_parallel_size,
            "pipeline_parallel_size": self.pipeline_parallel_size,
            "data_parallel_size": self.data_parallel_size,
            "quantization": self.quantization,
            "max_model_len": self.max_model_len,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "fits": self.fits,
            "verdict": self.verdict,
            "needed_bytes": self.needed_bytes,
            "budget_bytes": self.budget_bytes,
            "usable_bytes": self.usable_bytes,
            "alternatives": self.alternatives,
            "skipped": self.skipped or None,
            "notes": self.notes,
        }


@dataclass(slots=True, kw_only=True)
class FileResult:
    """A file after the check. `skipped` says why there is nothing to judge in it."""

    path: str
    kind: str | None
    servers: list[ServerResult] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    skipped: str = ""

    @property
    def counted(self) -> list[Finding]:
        """Findings that are not suppressed."""
        return [finding for finding in self.findings if finding.suppressed is None]

    def to_dict(self) -> dict[str, Any]:
        """One element of `files`."""
        return {
            "path": self.path,
            "kind": self.kind,
            "servers": [server.to_dict() for server in self.servers],
            "findings": [finding.to_dict() for finding in self.findings],
            "skipped": self.skipped or None,
        }


@dataclass(slots=True, kw_only=True)
class CheckReport:
    """Everything that `moesize check` says.

    fail_on   the severity from which findings make the answer a no
    ignored   files looked at that hold no deployment, with the reason (--verbose)
    texts     files that findings point into, for excerpts: path -> text
    stale     entries of the baseline that no longer occur
    allow_empty  finding no deployment file at all is fine
    """

    files: list[FileResult] = field(default_factory=list)
    fail_on: Literal["error", "warning", "info", "never"] = "error"
    ignored: list[tuple[str, str]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    version: str = ""
    stale: int = 0
    allow_empty: bool = False

    @property
    def findings(self) -> list[Finding]:
        """All findings that count, file by file."""
        return [finding for file in self.files for finding in file.counted]

    @property
    def found_nothing(self) -> bool:
        """Whether there was nothing to check, where there should have been."""
        return not self.files and not self.allow_empty

    @property
    def num_servers(self) -> int:
        """Servers found, those that were skipped left out."""
        return sum(not server.skipped for file in self.files for server in file.servers)

    @property
    def fails(self) -> bool:
        """Whether any finding reaches `fail_on`."""
        if self.fail_on == "never":
            return False
        reach = SEVERITIES[: SEVERITIES.index(self.fail_on) + 1]
        return any(finding.severity in reach for finding in self.findings)

    def summary(self) -> dict[str, Any]:
        """Counts: files, servers by verdict, findings by severity, suppressed ones."""
        servers = [s for file in self.files for s in file.servers if not s.skipped]
        findings = self.findings
        return {
            "files": len(self.files),
            "files_skipped": sum(bool(file.skipped) for file in self.files),
            "files_ignored": len(self.ignored),
            "servers": len(servers),
            "fit": sum(server.fits is True for server in servers),
            "do_not_fit": sum(server.fits is False for server in servers),
            "unknown": sum(server.fits is None for server in servers),
            **{
                f"{severity}s" if severity != "info" else "infos": sum(
                    finding.severity == severity for finding in findings
                )
                for severity in SEVERITIES
            },
            "suppressed": sum(
                finding.suppressed is not None for file in self.files for finding in file.findings
            ),
            "baseline_stale": self.stale,
            "fail_on": self.fail_on,
            "passed": not self.fails,
        }

    def to_dict(self) -> dict[str, Any]:
        """The JSON document `moesize.check/1`."""
        return {
            "schema": "moesize.check/1",
            "moesize_version": self.version,
            "files": [file.to_dict() for file in self.files],
            "summary": self.summary(),
        }
