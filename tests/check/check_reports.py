"""Reports made by hand, for the tests of what is printed."""

from __future__ import annotations

from typing import Any

from moesize.check.findings import (
    CheckReport,
    Edit,
    FileResult,
    Finding,
    Fix,
    Label,
    ServerResult,
)
from moesize.check.source import SourceFile, Span

GIB = 1 << 30
PATH = "k8s/gptoss.yaml"
MANIFEST = """\
kind: Deployment
spec:
  containers:
    - name: inference-server
      image: vllm/vllm-openai:v0.10.2
      resources:
        limits:
          nvidia.com/gpu: 1
      args:
        - --model=openai/gpt-oss-120b
        - --tensor-parallel-size=1
        - --max-model-len=131072
"""


def span_of(text: str, needle: str, path: str = PATH, *, past: str = "") -> Span:
    """Where `needle` stands in a text, after the first `past`."""
    start = text.index(needle, text.index(past) + len(past) if past else 0)
    return SourceFile(path, text).span(start, start + len(needle))


def server(name: str = "inference-server", **changes: Any) -> ServerResult:
    values: dict[str, Any] = {
        "name": name,
        "span": span_of(MANIFEST, "inference-server"),
        "engine": "vllm",
        "engine_version": "0.10.2",
        "model": "openai/gpt-oss-120b",
        "model_id": "gpt-oss-120b",
        "gpu": "nvidia-h100-80gb",
        "gpu_id": "h100-80gb-sxm",
        "gpu_count": 1,
        "fits": False,
        "verdict": "does not fit: 2.10 GiB for KV, 4.50 GiB needed",
        "needed_bytes": 74 * GIB,
        "budget_bytes": 72 * GIB,
        "usable_bytes": 80 * GIB,
    }
    return ServerResult(**{**values, **changes})


def finding(rule: str = "MS102", **changes: Any) -> Finding:
    value = span_of(MANIFEST, "131072")
    values: dict[str, Any] = {
        "rule": rule,
        "severity": "error",
        "message": "the KV cache cannot hold one request of 131072 tokens",
        "span": value,
        "label": "needs 4.50 GiB, 2.10 GiB are left",
        "details": ("weights 65.9 GiB + KV 4.5 GiB + other 3.6 GiB = 74.0 GiB of 72.0 GiB",),
        "labels": (Label(span_of(MANIFEST, "1", past="gpu: "), "1 GPU: 72.0 GiB usable"),),
        "fix": Fix(text="--max-model-len=65536", edits=(Edit(value, "65536"),), safe=True),
        "server": "inference-server",
        "confidence": "calibrated",
        "key": ("131072",),
    }
    return Finding(**{**values, **changes})


def report(*findings: Finding, **changes: Any) -> CheckReport:
    """One file with one server and these findings."""
    file = FileResult(path=PATH, kind="k8s_deployment", servers=[server()], findings=list(findings))
    values: dict[str, Any] = {"files": [file], "texts": {PATH: MANIFEST}, "version": "1.2.3"}
    return CheckReport(**{**values, **changes})


def one_line_report(line: str, start: int, end: int, **changes: Any) -> CheckReport:
    """A file of one line, whose characters from `start` to `end` are at fault."""
    place = Span("a.yaml", 1, start + 1, 1, end + 1)
    found = finding(span=place, labels=(), fix=None, details=(), **changes)
    file = FileResult(path="a.yaml", kind="shell", servers=[], findings=[found])
    return CheckReport(files=[file], texts={"a.yaml": line}, version="1.2.3")


HOSTILE = (
    "\x1b]0;owned\x07 \x1b[2J \r\n::add-mask::x\n##[stop-commands]y ##vso[task.complete]z "
    "\u202e\u200b\x00\x9b\ud800\ufffe `a` | <img src=x> @octocat #1 [click](https://evil.example) "
    "]]> --> & % {0} www.evil.example \u65e5\u672c e\u0301 \U0001f600"
)


def hostile_report() -> CheckReport:
    """Every text of it was written by an enemy."""
    line = HOSTILE.replace("\n", " ").replace("\r", " ")
    path = "::error::\x1b[31m/\udce9 [a](b)|`#1.yaml"
    place = Span(path, 1, 3, 1, 9)
    found = finding(
        message=HOSTILE,
        span=place,
        label=HOSTILE,
        details=(HOSTILE,),
        labels=(Label(place, HOSTILE), Label(Span(HOSTILE, 1, 1, 1, 2), HOSTILE)),
        fix=Fix(text=HOSTILE, edits=(Edit(place, HOSTILE),), safe=True),
        server=HOSTILE,
        key=(HOSTILE,),
    )
    silenced = finding(span=place, server="", suppressed=HOSTILE)
    judged = server(
        HOSTILE,
        span=place,
        engine=HOSTILE,
        engine_version=HOSTILE,
        model=HOSTILE,
        model_id=None,
        gpu=HOSTILE,
        gpu_id=None,
        verdict=HOSTILE,
        notes=[HOSTILE],
        fits=None,
    )
    return CheckReport(
        files=[
            FileResult(path=path, kind="shell", servers=[judged], findings=[found, silenced]),
            FileResult(path=HOSTILE, kind=None, skipped=HOSTILE),
        ],
        ignored=[(HOSTILE, HOSTILE)],
        texts={path: line},
        version="1.2.3",
    )
