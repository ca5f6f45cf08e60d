"""What several formats say in the same words: names, counts, text made visible, fingerprints."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from moesize.check.findings import SEVERITIES
from moesize.check.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from moesize.check.findings import CheckReport, FileResult, Finding, ServerResult
    from moesize.check.rules import Rule

_RULES = {rule.id: rule for rule in RULES}
# What a CI system takes for a command wherever it stands in a line: `##[error]`, `##vso[...]`.
_COMMAND = re.compile(r"##\w{0,20}\[")
_COMMAND_BRACKET = re.compile(_COMMAND.pattern + r"\Z")
_BEFORE_BRACKET = 22


class Shown(NamedTuple):
    """A finding and the file that it belongs to."""

    file: FileResult
    finding: Finding


def rule_of(rule_id: str) -> Rule | None:
    """The rule of an id."""
    return _RULES.get(rule_id)


def rule_name(rule_id: str) -> str:
    """Its name in words-with-dashes; empty for an id that is none."""
    rule = _RULES.get(rule_id)
    return rule.name if rule else ""


def all_findings(report: CheckReport) -> list[Shown]:
    """Every finding, suppressed ones too, by file, line and column."""
    found = [Shown(file, finding) for file in report.files for finding in file.findings]
    return sorted(found, key=_place)


def shown_findings(report: CheckReport, *, verbose: bool = False) -> list[Shown]:
    """Findings that people are shown: suppressed ones never, information when it matters.

    Information counts where it can fail the check, and is listed for whoever asks for more.
    """
    information = verbose or report.fail_on == "info"
    return [
        shown
        for shown in all_findings(report)
        if shown.finding.suppressed is None and (information or shown.finding.severity != "info")
    ]


def by_severity(found: Iterable[Shown]) -> list[Shown]:
    """Errors first; among equals the order stays."""
    return sorted(found, key=lambda shown: SEVERITIES.index(shown.finding.severity))


def reaches(report: CheckReport, finding: Finding) -> bool:
    """Whether this finding makes the answer a no."""
    if finding.suppressed is not None or report.fail_on == "never":
        return False
    return SEVERITIES.index(finding.severity) <= SEVERITIES.index(report.fail_on)


def _place(shown: Shown) -> tuple[str, str, int, int, str]:
    span = shown.finding.span
    return (shown.file.path, span.path, span.line, span.column, shown.finding.rule)


def server_of(file: FileResult, finding: Finding) -> ServerResult | None:
    """The server that a finding is about; of several of one name the nearest above it."""
    if not finding.server:
        return None
    named = [server for server in file.servers if server.name == finding.server]
    above = [server for server in named if server.span.line <= finding.span.line]
    if above and finding.span.path == file.path:
        return max(above, key=lambda server: server.span.line)
    return named[0] if named else None


def engine_words(server: ServerResult) -> str:
    """`vllm 0.10.2`; empty where the engine is not known."""
    return " ".join(text for text in (server.engine, server.engine_version) if text)


def gpu_words(server: ServerResult) -> str:
    """`2 x h100-80gb-sxm`, or what is known of it."""
    name = server.gpu_id or server.gpu
    if server.gpu_count is None:
        return name or "GPU not stated"
    if not name:
        return f"{plural(server.gpu_count, 'GPU')}, kind not stated"
    return f"{server.gpu_count} x {name}"


def about_server(server: ServerResult) -> str:
    """Name, engine and GPUs in a few words."""
    return ", ".join(
        text
        for text in (f'server "{server.name}"', engine_words(server), gpu_words(server))
        if text
    )


def fits_words(server: ServerResult) -> str:
    """`fits`, `does not fit`, `unknown`, `skipped`."""
    if server.skipped:
        return "skipped"
    return {True: "fits", False: "does not fit", None: "unknown"}[server.fits]


def memory_words(server: ServerResult) -> str:
    """`61.20 of 72.00 GiB` per GPU; empty where nothing was planned."""
    if server.needed_bytes is None:
        return ""
    needed = f"{server.needed_bytes / 2**30:,.2f}"
    if server.budget_bytes is None:
        return f"{needed} GiB"
    return f"{needed} of {server.budget_bytes / 2**30:,.2f} GiB"


def plural(count: int, word: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def headline(report: CheckReport) -> str:
    """Servers by verdict: `12 servers in 9 files: 8 fit, 1 does not, 3 unknown (...)`."""
    judged = [(file, s) for file in report.files for s in file.servers if not s.skipped]
    if not judged:
        looked_at = len(report.files) + len(report.ignored)
        return f"no model server found in {plural(looked_at, 'file')}"
    files = len({file.path for file, _ in judged})
    fit = sum(server.fits is True for _, server in judged)
    bad = sum(server.fits is False for _, server in judged)
    unknown = [server for _, server in judged if server.fits is None]
    parts = []
    if fit:
        parts.append(f"{fit:,} {'fits' if fit == 1 else 'fit'}")
    if bad:
        verb = "does not" if bad == 1 else "do not"
        parts.append(f"{bad:,} {verb}" if fit else f"{bad:,} {verb} fit")
    if unknown:
        parts.append(f"{len(unknown):,} unknown{_why_unknown(unknown)}")
    return f"{plural(len(judged), 'server')} in {plural(files, 'file')}: {', '.join(parts)}"


def _why_unknown(servers: Sequence[ServerResult]) -> str:
    no_gpu = sum(not server.gpu and not server.gpu_id for server in servers)
    no_model = sum(not server.model_id for server in servers)
    reasons = [
        "GPU not stated" if no_gpu == len(servers) else f"GPU not stated in {no_gpu:,}",
        "model not known" if no_model == len(servers) else f"model not known in {no_model:,}",
    ]
    shown = [text for text, count in zip(reasons, (no_gpu, no_model), strict=True) if count]
    return f" ({', '.join(shown)})" if shown else ""


def summary_line(report: CheckReport) -> str:
    """One line: servers by verdict, findings by severity, what was passed over."""
    counts = report.summary()
    words = (("errors", "error"), ("warnings", "warning"), ("infos", "note"))
    found = [plural(counts[key], word) for key, word in words if counts[key]]
    parts = [headline(report), ", ".join(found) or "no findings"]
    if counts["suppressed"]:
        parts.append(f"{counts['suppressed']:,} suppressed")
    servers = sum(bool(server.skipped) for file in report.files for server in file.servers)
    skipped = [
        plural(count, word)
        for count, word in ((counts["files_skipped"], "file"), (servers, "server"))
        if count
    ]
    if skipped:
        parts.append(f"{' and '.join(skipped)} skipped")
    return "; ".join(parts)


def fixable(report: CheckReport) -> int:
    """Findings that `--fix` would mend."""
    return sum(bool(f.fix and f.fix.safe and f.fix.edits) for f in report.findings)


def message_lines(finding: Finding) -> list[str]:
    """What a finding says, line by line, where no excerpt is shown: message, details, fix."""
    lines = [finding.message]
    if finding.label and finding.label not in finding.message:
        lines.append(finding.label)
    lines += finding.details
    if finding.fix is not None:
        lines.append(f"fix: {finding.fix.text}")
    return [visible(line) for line in lines]


# --- text of strangers ----------------------------------------------------------------------------


def visible(text: str) -> str:
    """The text with nothing in it that a terminal or a CI log would act on.

    Control characters, escapes, marks of writing direction and lone surrogates are spelled out;
    the words that CI systems take for commands are broken.
    """
    if not text.isprintable():
        text = "".join(spelled(char) for char in text)
    if "##" in text:
        text = _COMMAND.sub(lambda match: match[0][:-1] + r"\x5b", text)
    return text


def spelled(char: str) -> str:
    """A character as it may be printed: itself, or its escape."""
    if char.isprintable():
        return char
    if char == "\t":
        return " "
    if char == "\n":
        return r"\n"
    if char == "\r":
        return r"\r"
    code = ord(char)
    if code in (0xA0, 0x202F, 0x3000) or 0x2000 <= code <= 0x200A:
        return " "
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def opens_command(line: str, index: int) -> bool:
    """Whether the bracket at `index` would open a command of a CI system."""
    return bool(_COMMAND_BRACKET.search(line[max(0, index - _BEFORE_BRACKET) : index + 1]))


# --- identity -------------------------------------------------------------------------------------


def fingerprints(found: Sequence[Shown]) -> list[str]:
    """What makes each finding the same after lines moved: rule, path, server and values.

    Findings that are equal in all of these are numbered in their order.
    """
    import hashlib
    import json

    seen: dict[str, int] = {}
    out = []
    for file, finding in found:
        known = [finding.rule, file.path, finding.server, *finding.key]
        digest = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]
        number = seen[digest] = seen.get(digest, 0) + 1
        out.append(digest if number == 1 else f"{digest}:{number}")
    return out
