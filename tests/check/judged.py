"""Files as texts, read and judged: what the tests of the rules share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from moesize.check.assess import judge_file
from moesize.check.configuration import Settings
from moesize.check.findings import Finding, ServerResult
from moesize.check.folder import Folder, Library
from moesize.check.formats import Context, read_file
from moesize.check.source import SourceFile, SourceText


class Judged(NamedTuple):
    """What a text holds and what was found in it."""

    text: str
    servers: list[ServerResult]
    findings: list[Finding]

    @property
    def rules(self) -> set[str]:
        """Ids of the findings; the remark on unpinned images left out."""
        return {finding.rule for finding in self.findings} - {"MS404"}

    def one(self, rule: str) -> Finding:
        """The only finding of a rule."""
        found = [finding for finding in self.findings if finding.rule == rule]
        assert len(found) == 1, [(f.rule, f.message) for f in self.findings]
        return found[0]

    def at(self, rule: str) -> str:
        """The text that a finding points at."""
        span = self.one(rule).span
        line = self.text.splitlines()[span.line - 1]
        return line[span.column - 1 : span.end_column - 1]

    def fixed(self, rule: str) -> str:
        """The text after the edits of a finding's fix."""
        fix = self.one(rule).fix
        assert fix is not None
        assert fix.edits
        lines = self.text.splitlines(keepends=True)
        for edit in fix.edits:
            span = edit.span
            assert span.line == span.end_line
            line = lines[span.line - 1]
            lines[span.line - 1] = line[: span.column - 1] + edit.text + line[span.end_column - 1 :]
        return "".join(lines)


def judge(text: str, path: str = "server.yaml", **settings: Any) -> Judged:
    """A text judged as the file `path`."""
    here = Path("/nowhere-at-all")
    file = SourceFile(path, text)
    context = Context(path=path, folder=Folder(here, here, Library(here)))
    read = read_file(SourceText.of_file(file), context)
    assert read.readings, read
    servers, findings = judge_file(read.readings, file, Settings(**settings))
    return Judged(text, servers, findings)


def pod(
    *arguments: str,
    gpu: str = "nvidia-h100-80gb",
    count: int | None = 1,
    image: str = "vllm/vllm-openai:v0.20.0",
    extra: str = "",
    limits: str = "",
) -> str:
    """A Deployment with one vLLM container; `gpu` empty: no node selector."""
    selector = f"      nodeSelector: {{cloud.google.com/gke-accelerator: {gpu}}}\n" if gpu else ""
    listed = "".join(f"        - {argument}\n" for argument in arguments)
    gpus = f"            nvidia.com/gpu: {count}\n" if count is not None else ""
    resources = f"        resources:\n          limits:\n{gpus}{limits}" if gpus or limits else ""
    return (
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: server}\nspec:\n  template:\n"
        f"    spec:\n{selector}      containers:\n      - name: vllm\n        image: {image}\n"
        f"        args:\n{listed}{resources}{extra}"
    )
