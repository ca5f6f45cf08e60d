"""Baselines: what is known does not count, what is new does, and lines may move."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moesize.check.baseline import Entry, apply_baseline, read_baseline, write_baseline
from moesize.check.findings import FileResult, Finding
from moesize.check.source import Span
from moesize.core.errors import InvalidInputError


def finding(line: int = 1, rule: str = "MS101", server: str = "a", key: str = "8") -> Finding:
    return Finding(
        rule=rule,
        severity="error",
        message="m",
        span=Span("x.yaml", line, 1, line, 2),
        server=server,
        key=(key,),
    )


def in_file(*findings: Finding, path: str = "x.yaml") -> FileResult:
    return FileResult(path=path, kind="k", findings=list(findings))


def test_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "known.json"
    files = [in_file(finding(9), finding(2), finding(3, rule="MS102")), in_file(path="y.yaml")]
    assert write_baseline(path, files) == 3
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {
        "schema": "moesize.baseline/1",
        "findings": [
            {"rule": "MS101", "path": "x.yaml", "server": "a", "key": ["8"], "count": 2},
            {"rule": "MS102", "path": "x.yaml", "server": "a", "key": ["8"], "count": 1},
        ],
    }
    write_baseline(path, list(reversed(files)))
    assert path.read_text(encoding="utf-8") == text
    assert read_baseline(path) == {
        Entry("MS101", "x.yaml", "a", ("8",)): 2,
        Entry("MS102", "x.yaml", "a", ("8",)): 1,
    }
    assert [one.name for one in tmp_path.iterdir() if one.name != "calibration.jsonl"] == [
        "known.json"
    ]


def test_what_is_known_does_not_count_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "known.json"
    write_baseline(path, [in_file(finding(1), finding(2, key="9"))])
    moved, third, other = finding(70), finding(71), finding(1, server="b")
    assert apply_baseline(read_baseline(path), [in_file(moved, third, other)], tmp_path) == 1
    assert [one.suppressed for one in (moved, third, other)] == ["baseline", None, None]


def test_what_a_comment_silences_is_not_written(tmp_path: Path) -> None:
    silent = finding()
    silent.suppressed = "reason"
    assert write_baseline(tmp_path / "known.json", [in_file(silent)]) == 0


def test_paths_are_those_from_the_baseline_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that is started in another folder knows the same findings."""
    path = tmp_path / "ci/known.json"
    path.parent.mkdir()
    (tmp_path / "deploy").mkdir()
    monkeypatch.chdir(tmp_path)
    write_baseline(path, [in_file(finding(), path="deploy/x.yaml")])
    assert next(iter(read_baseline(path))).path == "../deploy/x.yaml"
    monkeypatch.chdir(tmp_path / "deploy")
    known = finding()
    assert apply_baseline(read_baseline(path), [in_file(known)], path.parent) == 0
    assert known.suppressed == "baseline"


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"schema": "moesize.baseline/2", "findings": []},
        {"schema": "moesize.baseline/1"},
        {"schema": "moesize.baseline/1", "findings": {}},
        {"schema": "moesize.baseline/1", "findings": [1]},
        {"schema": "moesize.baseline/1", "findings": [{"rule": "MS101"}]},
        *(
            {
                "schema": "moesize.baseline/1",
                "findings": [
                    {"rule": "MS101", "path": "x", "server": "", "key": [], "count": 1} | change
                ],
            }
            for change in ({"count": 0}, {"count": True}, {"key": "x"}, {"key": [1]}, {"path": 1})
        ),
    ],
)
def test_what_is_no_baseline(tmp_path: Path, document: Any) -> None:
    path = tmp_path / "known.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InvalidInputError, match=r"known\.json"):
        read_baseline(path)


def test_a_baseline_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be written"):
        write_baseline(tmp_path / "no/folder.json", [])
