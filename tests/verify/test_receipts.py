"""Records of measurements: kept safely, quoted by plans that match, never trusted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from running import call

from moesize.core.errors import EnvironmentProblem
from moesize.renderers.verify import speed_line
from moesize.verify.receipts import Quote, quote_of, quotes, read_folder, receipts_folder, save
from moesize.verify.report import Device, Speed, Term, VerifyReport

REPORT = VerifyReport(
    model="mixtral-8x7b",
    model_source="catalogue",
    spec_sha256="0" * 64,
    revision="",
    quantization="checkpoint",
    device=Device("cuda", "NVIDIA H100 80GB HBM3", 85_000_000_000, "570.86", "2.13.0"),
    engine="torch",
    shards="synthetic",
    layers=(0, 1),
    num_layers=32,
    tokens=512,
    sequences=4,
    decode_steps=4,
    dtype="bfloat16",
    rank=0,
    ranks=1,
    seed=0,
    date="2026-11-22",
    command="moesize verify mixtral-8x7b",
    terms=(
        Term(name="weights", predicted_bytes=10002, measured_bytes=10000, tolerance=0.0, why=""),
        Term(name="peak", predicted_bytes=None, measured_bytes=10000, tolerance=0.0, why=""),
    ),
)
PLAN = ("plan", "mixtral-8x7b", "--gpu", "h100", "--gpus", "2", "--format", "json")


def notes(*arguments: str) -> list[str]:
    return [n["message"] for n in call(*arguments).json()["warnings"] if n["code"] == "measured"]


def test_a_plan_quotes_what_was_measured_on_its_gpu() -> None:
    assert notes(*PLAN) == []
    path = save(REPORT)
    (note,) = notes(*PLAN)
    assert note.startswith("measured on NVIDIA H100 80GB HBM3: weights +0.02%")
    assert "2 of 32 layers" in note
    assert notes(*PLAN, "--quant", "fp8") == []
    assert (
        notes("plan", "mixtral-8x7b", "--gpu", "a100-80gb", "--gpus", "2", "--format", "json") == []
    )
    assert notes("plan", "mixtral-8x22b", "--gpu", "h100", "--gpus", "8", "--format", "json") == []
    assert path.stat().st_mode & 0o077 == 0


def test_the_same_measurement_replaces_its_record() -> None:
    one = save(REPORT)
    assert save(REPORT) == one
    other = save(replace(REPORT, layers=(0,)))
    assert other != one
    folder = receipts_folder()
    assert folder is not None
    assert len(read_folder(folder)) == 2
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_where_records_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESIZE_RECEIPTS", str(tmp_path / "mine"))
    assert save(REPORT).parent == tmp_path / "mine"
    for name in ("MOESIZE_RECEIPTS", "MOESIZE_CALIBRATION"):
        monkeypatch.setenv(name, "off")
        assert receipts_folder() is None
        assert quotes("mixtral-8x7b", "checkpoint", "h100-80gb-sxm") == ()
        with pytest.raises(EnvironmentProblem):
            save(REPORT)
        monkeypatch.delenv(name)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOESIZE_RECEIPTS", str(tmp_path / "file" / "folder"))
    with pytest.raises(EnvironmentProblem) as caught:
        save(REPORT)
    assert "cannot be kept" in caught.value.message


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{", "null", "[" * 10_000, '{"schema": "moesize.receipt/1"}',
    ],
)  # fmt: skip
def test_files_that_are_no_records_are_passed_over(content: str) -> None:
    path = save(REPORT)
    path.with_name("other.json").write_text(content)
    folder = receipts_folder()
    assert folder is not None
    assert len(read_folder(folder)) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("model", "a\x1b[31m"), ("date", 5), ("layers", "x"), ("num_layers", True), ("terms", [1]),
     ("terms", [{"name": "weights", "error": "x"}]), ("device", {"name": 1})],
)  # fmt: skip
def test_a_record_with_a_field_of_another_kind_is_none(name: str, value: Any) -> None:
    path = save(REPORT)
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    assert read_folder(path.parent) == []
    assert call(*PLAN).code in (0, 1)


def test_a_quote_in_words() -> None:
    quote = Quote("NVIDIA L4", "2026-11-22", {"weights": 0.0002, "KV cache": -0.001}, 32, 32)
    assert quote.text == (
        "measured on NVIDIA L4: weights +0.02%, KV cache -0.10% (2026-11-22; predicted against "
        "measured)"
    )
    document = {**REPORT.to_dict(), "schema": "moesize.receipt/1"}
    assert quote_of(document).errors == {"weights": 0.0002}


@pytest.mark.parametrize(
    ("kind", "speed", "words"),
    [
        ("cuda", None, ""),
        ("cuda", Speed(40.0, None, None), "loaded at 40.00 GB/s"),
        (
            "cuda",
            Speed(40.0, 50.0, 60.0, 1.0),
            "loaded at 40.00 GB/s, 80% of the 50.00 GB/s that the device copies",
        ),
        (
            "cpu",
            Speed(2.0, 10.0, 20.0, 0.25),
            "loaded at 2.00 GB/s, 20% of the 10.00 GB/s at which this machine copies into new "
            "memory; 25% of the bytes were in the page cache",
        ),
    ],
)
def test_the_pace_in_words(kind: str, speed: Speed | None, words: str) -> None:
    device = REPORT.device._replace(kind=kind)
    assert speed_line(replace(REPORT, device=device, speed=speed)) == words
