"""`moesize accuracy`: formats, exit codes, filters, and what the shipped reports must keep."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from running import call

from moesize.accuracy import measure
from moesize.accuracy.reports import read_reports, shipped_reports
from moesize.schemas import find_schema

# The log of tests/accuracy/test_accuracy_terms.py.
ROW: dict[str, Any] = {
    "id": "a100",
    "engine": "vllm",
    "engine_version": "0.33.0",
    "model": "meta-llama/Meta-Llama-3.1-8B-Instruct",
    "gpu": "A100-SXM4-40GB",
    "tp": 1,
    "max_model_len": 65536,
    "gpu_memory_utilization": 0.95,
    "max_num_batched_tokens": 2048,
    "observed": {"weights_gib": 14.9889, "kv_cache_gib": 21.99, "outcome": "ok"},
}
OTHER = {"id": "x", "engine": "mlc", "model": "a|b\x1b[31m<i>", "observed": {"weights_gib": 1.5}}


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "r.jsonl"
    doubted = {**ROW, "id": "odd", "suspect": "adds up to more"}
    path.write_text("\n".join(map(json.dumps, [ROW, OTHER, doubted])) + "\n", encoding="utf-8")
    return str(path)


def test_the_document_holds_every_row_and_fits_its_schema(file: str) -> None:
    result = call("accuracy", file, "--format", "json")
    assert (result.code, result.err) == (0, "")
    document = result.json()
    jsonschema.validate(document, find_schema("accuracy"))
    assert [(row["id"], row["term"]) for row in document["rows"]] == [
        ("a100", "weights"),
        ("a100", "kv_gib"),
        ("x", "weights"),
        ("odd", "weights"),
        ("odd", "kv_gib"),
    ]
    weights = document["rows"][0]
    assert weights["unit"] == "GiB"
    assert weights["observed"] == 14.9889
    assert abs(weights["error"]) < 1e-4
    assert weights["suspect"] is False
    assert weights["not_covered"] is None
    other = document["rows"][2]
    assert other["predicted"] is other["error"] is other["low"] is None
    assert other["not_covered"] == "engine not planned: mlc"
    assert document["rows"][3]["suspect"] is True
    assert [(s["engine"], s["term"], s["n"], s["covered"]) for s in document["summary"]] == [
        ("vllm", "weights", 1, 1),
        ("vllm", "kv_gib", 1, 1),
        ("mlc", "weights", 1, 0),
    ]
    assert document["outcomes"]["n"] == document["outcomes"]["agree"] == 1


@pytest.mark.parametrize("form", ["table", "markdown", "csv"])
def test_strangers_names_reach_no_terminal_and_no_cell(file: str, form: str) -> None:
    result = call("accuracy", file, "--format", form, "--rows", columns=160)
    assert result.code == 0
    assert "\x1b[31m" not in result.out
    if form == "markdown":
        assert "a\\|b" in result.out
        assert "<i>" not in result.out
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(result.out)))
        assert [row["id"] for row in rows] == ["a100", "a100", "x", "odd", "odd"]
        assert float(rows[0]["observed"]) == 14.9889
        assert rows[3]["suspect"] == "true"


def test_filters(file: str) -> None:
    rows = call("accuracy", file, "--engine", "VLLM", "--term", "kv-gib", "-f", "json").json()
    assert {(r["engine"], r["term"]) for r in rows["rows"]} == {("vllm", "kv_gib")}
    wrong = call("accuracy", file, "--engine", "vlm")
    assert (wrong.code, wrong.out) == (2, "")
    assert "did you mean vllm" in wrong.err
    wrong = call("accuracy", file, "--term", "weight")
    assert wrong.code == 2
    assert "did you mean weights" in wrong.err


def test_nothing_covered_is_a_no(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(OTHER) + "\n", encoding="utf-8")
    for form in ("table", "json", "markdown", "csv"):
        result = call("accuracy", str(path), "--format", form)
        assert result.code == 1
        assert result.out


def test_bad_lines_are_named_and_the_rest_counts(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(["{", *["[]"] * 30, json.dumps(ROW)]), encoding="utf-8")
    result = call("accuracy", str(path), "--format", "json")
    assert result.code == 0
    assert len(result.json()["problems"]) == 31
    lines = result.err.splitlines()
    assert lines[0].startswith(f"{path}:1: not valid JSON")
    assert len(lines) == 21
    assert lines[-1].endswith("11 more lines like these")


@pytest.mark.parametrize("name", ["none.jsonl", ".", "bad.jsonl"])
def test_a_file_that_cannot_be_read_is_a_wrong_question(tmp_path: Path, name: str) -> None:
    (tmp_path / "bad.jsonl").write_bytes(b"\x00\x01\x02")
    result = call("accuracy", str(tmp_path / name), "--format", "json")
    assert result.code == 2
    assert result.json()["error"]["kind"] == "invalid_input"
    assert result.err.startswith("error: ")


# Figures that shipped reports reach; a change that loses one of them is a regression. Aims of
# the accuracy table in README.md that are not reached are not here.
REACHED = [
    ("vllm", "weights", "median_abs_error", 0.002),
    # Nemotron 3 Super in NVFP4 came in with 1.6 %: part of its Mamba layers is not as planned.
    ("vllm", "weights", "p90_abs_error", 0.014),
    ("vllm", "kv_gib", "median_abs_error_of_card", 0.007),
    ("vllm", "kv_gib", "p90_abs_error_of_card", 0.06),
    ("vllm", "kv_tokens_given_kv", "median_abs_error", 0.0),
    ("vllm", "kv_tokens_given_kv", "p90_abs_error", 0.002),
    ("vllm", "non_torch", "median_abs_error_of_card", 0.001),
    ("sglang", "kv_tokens_given_kv", "p90_abs_error", 0.001),
    ("ik_llama.cpp", "model_buffer", "p90_abs_error", 0.0005),
    ("ik_llama.cpp", "model_total", "p90_abs_error", 0.0005),
    ("ik_llama.cpp", "kv_buffer", "worst_abs_error", 0.0),
    ("ik_llama.cpp", "kv_total", "p90_abs_error", 0.0),
    ("ik_llama.cpp", "compute_buffer", "median_abs_error", 0.002),
    ("ik_llama.cpp", "compute_buffer", "p90_abs_error", 0.03),
    ("ik_llama.cpp", "compute_buffer_host", "p90_abs_error", 0.005),
    ("llama.cpp", "kv_total", "worst_abs_error", 0.0),
    ("llama.cpp", "output_buffer", "worst_abs_error", 0.0),
    ("llama.cpp", "compute_buffer", "p90_abs_error", 0.05),
    ("llama.cpp", "compute_buffer_host", "p90_abs_error", 0.03),
]


def test_shipped_reports_stay_as_accurate() -> None:
    answer = measure(read_reports(shipped_reports()))
    found = {(row["engine"], row["term"]): row for row in answer.summary()}
    for engine, term, figure, most in REACHED:
        row = found[engine, term]
        assert row["covered"] >= 5, (engine, term)
        assert row[figure] <= most, (engine, term, row)
    vllm = next(row for row in answer.coverage() if row["engine"] == "vllm")
    assert vllm["covered"] >= 93
    kv = found["vllm", "kv_gib"]
    assert kv["in_band"] >= 0.95
    # A "fits" that was none is acceptable only when the plan says how close it is.
    assert answer.outcome_summary()["false_fits_without_warning"] == 0
    # Nothing is dropped: every figure has a prediction or a reason.
    assert all((row.predicted is None) == bool(row.not_covered) for row in answer.rows)
