"""The reader of field reports: strict by line, bounded, and clear about what to fix."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from running import ROOT, call

from moesize.accuracy import reports
from moesize.accuracy.reports import read_reports, shipped_reports
from moesize.core.errors import InvalidInputError
from moesize.schemas import find_schema

GOOD: dict[str, Any] = {
    "id": "a",
    "engine": "vLLM",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "observed": {"weights_gib": 14.9889},
}


def write(path: Path, *lines: object) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def test_a_bad_line_loses_only_itself(tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.jsonl",
        GOOD,
        "{not json",
        "",
        [1, 2],
        {**GOOD, "id": "b", "tp": "two"},
        {**GOOD, "id": "c", "observed": {"weights_gib": "14 GiB"}},
        {"id": "d", "engine": "vllm", "observed": {}},
        {**GOOD, "id": "e", "tp": True},
        {**GOOD, "id": "f"},
    )
    found = read_reports(path)
    assert [(report.id, report.line) for report in found.reports] == [("a", 1), ("f", 9)]
    said = {problem.line: problem.message for problem in found.problems}
    assert sorted(said) == [2, 4, 5, 6, 7, 8]
    assert "not valid JSON at column 2" in said[2]
    assert said[4] == "is not a JSON object; one object a line is expected"
    assert said[5] == '`tp` must be a whole number or null, not "two"'
    assert said[6] == '`observed.weights_gib` must be a number or null, not "14 GiB"'
    assert "the field `model` is missing; name the model" in said[7]
    assert said[8] == "`tp` must be a whole number or null, not true"


def test_names_are_read_and_nulls_are_nothing(tmp_path: Path) -> None:
    row = {**GOOD, "suspect": True, "observed": {"weights_gib": None, "outcome": "ok"}}
    (report,) = read_reports(write(tmp_path / "r.jsonl", row)).reports
    assert report.engine == "vllm"
    assert report.observed == {"outcome": "ok"}
    assert report.suspect


def test_fields_that_nobody_reads_are_counted(tmp_path: Path) -> None:
    row = {**GOOD, "colour": "red", "observed": {"weights_gib": 1.0, "heat": 3}}
    found = read_reports(write(tmp_path / "r.jsonl", row, {**row, "id": "b"}))
    assert found.unread == {"colour": 2, "observed.heat": 2}
    assert not found.problems


def test_an_id_that_stands_twice_is_named_and_both_count(tmp_path: Path) -> None:
    found = read_reports(write(tmp_path / "r.jsonl", GOOD, GOOD))
    assert len(found.reports) == 2
    assert [(p.line, "line 1" in p.message) for p in found.problems] == [(2, True)]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ('{"id": "a", "engine": "v", "model": "m", "observed": {"weights_gib": NaN}}', "finite"),
        ('{"id": "a", "engine": "v", "model": "m", "observed": {"weights_gib": 1e999}}', "number"),
        (
            '{"id": "a", "engine": "v", "model": "m", "tp": 1' + "0" * 400 + ', "observed": {}}',
            "tp",
        ),
        (
            '{"id": "a", "engine": "v", "model": "m", "tp": ' + "9" * 5000 + ', "observed": {}}',
            "range",
        ),
        ("[" * 100_000, "nested"),
        (
            '{"id": "a", "engine": "v", "model": "m", "observed": {}, "other_flags": ['
            + ",".join(['"x=1"'] * 5000)
            + "]}",
            "at most",
        ),
    ],
    ids=["nan", "infinity", "huge", "digits", "deep", "many"],
)
def test_hostile_values_end_in_one_line(tmp_path: Path, value: str, kind: str) -> None:
    found = read_reports(write(tmp_path / "r.jsonl", GOOD, value))
    (problem,) = found.problems
    assert problem.line == 2
    assert kind in problem.message
    assert "\n" not in problem.message
    assert len(problem.message) < 300


def test_files_that_are_no_reports_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInputError, match="no such file"):
        read_reports(tmp_path / "none.jsonl")
    with pytest.raises(InvalidInputError, match="is a folder"):
        read_reports(tmp_path)
    with pytest.raises(InvalidInputError, match="the file is empty"):
        read_reports(write(tmp_path / "empty.jsonl", ""))
    (tmp_path / "bad.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(InvalidInputError, match=r"bad.jsonl:1: not UTF-8 \(byte 0\)"):
        read_reports(tmp_path / "bad.jsonl")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInputError, match="not a regular file"):
        read_reports(tmp_path / "pipe")
    monkeypatch.setattr(reports, "MAX_LINE_BYTES", 50)
    with pytest.raises(InvalidInputError, match=r"r.jsonl:1: the line is longer than"):
        read_reports(write(tmp_path / "r.jsonl", GOOD))
    monkeypatch.setattr(reports, "MAX_FILE_BYTES", 10)
    with pytest.raises(InvalidInputError, match="larger than"):
        read_reports(tmp_path / "r.jsonl")


def test_a_pipe_is_read_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "r.jsonl", GOOD, "no report", {**GOOD, "id": "b"})
    from_pipe = subprocess.run(
        [sys.executable, "-m", "moesize", "accuracy", "-", "--format", "json"],
        input=path.read_bytes(),
        capture_output=True,
        cwd=ROOT,
        check=False,
    )
    assert b"-:2: " in from_pipe.stderr
    from_file = call("accuracy", str(path), "--format", "json")
    assert from_pipe.returncode == from_file.code == 0
    answers = [json.loads(text) for text in (from_pipe.stdout, from_file.out)]
    assert answers[0]["rows"]
    assert answers[0]["rows"] == answers[1]["rows"]
    monkeypatch.setattr(reports, "MAX_FILE_BYTES", 10)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    with pytest.raises(InvalidInputError, match="-: larger than"):
        read_reports(Path("-"))


def test_too_many_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "MAX_ROWS", 2)
    path = write(tmp_path / "r.jsonl", GOOD, {**GOOD, "id": "b"}, {**GOOD, "id": "c"})
    with pytest.raises(InvalidInputError, match=r":3: more than 2 reports"):
        read_reports(path)


def test_shipped_reports_are_facts_without_words() -> None:
    """Each has an address, and the schema that is printed accepts what the reader accepts."""
    found = read_reports(shipped_reports())
    assert not found.problems
    assert not found.unread
    validator = jsonschema.Draft202012Validator(find_schema("report"))
    lines = shipped_reports().read_text(encoding="utf-8").splitlines()
    for line in lines:
        row = json.loads(line)
        validator.validate(row)
        assert row["source_url"], row["id"]
        assert not {"quote", "model_note", "unit_note"} & set(row)
        assert row.get("suspect") in (None, True)
    assert len(found.reports) == len(lines) > 200


@pytest.mark.parametrize("change", [{"tp": "2"}, {"engine": 3}, {"observed": []}, {"date": 2026}])
def test_the_schema_refuses_what_the_reader_refuses(tmp_path: Path, change: dict[str, Any]) -> None:
    row = {**GOOD, **change}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(row, find_schema("report"))
    assert read_reports(write(tmp_path / "r.jsonl", GOOD, {**row, "id": "b"})).problems
