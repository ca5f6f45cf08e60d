"""A format and a judge of a few lines, so that tests of what surrounds them need no others.

    server: web            a server of this name, which begins on this line
    flags: [--ok]          --huge: MS101, --close: MS104, --ctx=N: MS102 above 4, with a safe fix
    boom: true             the reader fails
    boom_judge: true       the judge fails

A server that nobody names a GPU for gets MS501.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from moesize.check import assess, formats
from moesize.check.findings import Edit, Finding, Fix, ServerResult, Severity
from moesize.check.formats import Context, Format
from moesize.check.rules import find_rule
from moesize.check.server import Reading, Server
from moesize.check.source import SourceFile, Word
from moesize.check.yaml_tree import Node

HEAD = "server: web\n"


def _read(document: Node, context: Context) -> Reading:
    if document.get("boom"):
        raise AttributeError("a bug of the reader")
    name = document.get("server").word
    words = tuple(document.get("flags").words())
    environment = {"BOOM": Word("1")} if document.get("boom_judge") else {}
    server = Server(name=str(name), place=name, words=words, environment=environment)
    if document.get("model").text is not None:
        server.model = document.get("model").word
    return Reading(kind="stub", servers=[server])


def _finding(rule: str, server: Server, word: Word, fix: Fix | None = None) -> Finding:
    severity: Severity = find_rule(rule).severity
    assert word.span is not None
    return Finding(
        rule=rule,
        severity=severity,
        message=f"{rule} of {word}",
        span=word.span,
        server=server.name,
        key=(str(word),),
        fix=fix,
    )


def judge(
    readings: Sequence[Reading], file: SourceFile, settings: Any
) -> tuple[list[ServerResult], list[Finding]]:
    """The judge of these tests."""
    results, findings = [], []
    for reading in readings:
        for server in reading.servers:
            if server.environment:
                raise KeyError("a bug of the judge")
            assert server.place.span is not None
            claimed = [str(claim.text) for claim in server.gpus]
            gpu = claimed[0] if claimed else settings.gpu_for(file.path)
            results.append(
                ServerResult(
                    name=server.name,
                    span=server.place.span,
                    gpu=gpu,
                    model=None if server.model is None else str(server.model),
                )
            )
            if gpu is None:
                findings.append(_finding("MS501", server, server.place))
            for word in server.words:
                findings += _about(word, server)
    return results, findings


def _about(word: Word, server: Server) -> list[Finding]:
    if word == "--huge":
        return [_finding("MS101", server, word)]
    if word == "--close":
        return [_finding("MS104", server, word)]
    if word.startswith("--ctx=") and int(word.removeprefix("--ctx=")) > 4:
        value = word.cut(len("--ctx="))
        assert value.span is not None
        fix = Fix(text="4 fits", edits=(Edit(value.span, "4"),), safe=True)
        return [_finding("MS102", server, value, fix)]
    return []


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put both in the place of the real ones."""
    made = (Format("stub", lambda document: bool(document.get("server")), _read),)
    monkeypatch.setattr(formats, "yaml_formats", lambda: made)
    monkeypatch.setattr(formats, "text_formats", lambda: ())
    monkeypatch.setattr(assess, "judge_file", judge)
