"""What all judges share: where a finding goes, how sizes and GPUs are called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.check.findings import Finding, Label
from moesize.check.rules import find_rule
from moesize.check.source import Span, Word

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moesize.check.configuration import Settings
    from moesize.check.devices import Device
    from moesize.check.findings import Fix, Severity
    from moesize.check.planning import Case
    from moesize.check.server import Server
    from moesize.check.source import SourceFile
    from moesize.core.plan import Plan


class Bench:
    """Takes the findings about one server."""

    def __init__(self, server: Server, file: SourceFile, settings: Settings) -> None:
        self.server = server
        self.file = file
        self.settings = settings
        self.findings: list[Finding] = []
        self.plans: dict[str, Plan] = {}

    def add(
        self,
        rule: str,
        message: str,
        at: Word,
        *,
        severity: Severity | None = None,
        label: str = "",
        details: Sequence[str] = (),
        also: Sequence[tuple[Word, str]] = (),
        fix: Fix | None = None,
        confidence: str = "",
        key: Sequence[str] = (),
    ) -> None:
        """One finding; `also` are second places with a few words."""
        known = find_rule(rule)
        span = self.span(at)
        # Alternatives fail for the same reason more often than not: it is said once.
        if any((f.rule, f.message, f.span) == (known.id, message, span) for f in self.findings):
            return
        labels = tuple(
            Label(word.span, text)
            for word, text in also
            if word.span is not None and word.span != span
        )
        self.findings.append(
            Finding(
                rule=known.id,
                severity=severity or known.severity,
                message=message,
                span=span,
                label=label,
                details=tuple(details),
                labels=labels,
                fix=fix,
                server=self.server.name,
                confidence=confidence,
                key=tuple(key),
            )
        )

    def span(self, at: Word) -> Span:
        """Where a finding points: the word, else the server, else the first line."""
        return at.span or self.server.place.span or Span(self.file.path, 1, 1, 1, 1)


def gpus_word(count: int, name: str) -> str:
    """`4 x NVIDIA L4`."""
    return f"{count} x {name}"


def where_gpu(device: Device, count: int) -> tuple[Word, str]:
    """The second place of a finding that is about memory: the GPU that the file names."""
    return device.at, f"{gpus_word(count, device.title)} ({device.via})"


def tokens_word(case: Case, context: int) -> str:
    """`131,072 tokens`, with where the number is from when the file does not say it."""
    if case.flags.find(case.flags.context) is not None:
        return f"{context:,} tokens"
    return f"{context:,} tokens (the default: no {case.flags.name('request:context_tokens')})"
