"""`audit --save`: what is kept, how plans use it, and that nothing gets lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, call, environment

from moesize.calibration import MOST_RECORDS, Record, all_records, save
from moesize.engines import engine_profile

LOGS = ROOT / "tests" / "fixtures" / "logs"
H100 = LOGS / "vllm-qwen3-30b-fp8-h100.log"
GIB = 1 << 30
PLAN = ("plan", "qwen3-30b-a3b", "--gpu", "h100", "--quant", "fp8", "--format", "json")


def record(**changes: Any) -> Record:
    base = Record(
        gpu="h100-80gb-sxm",
        engine="vllm",
        version="0.30.0",
        kind="",
        constant="non_torch_growth",
        term="non_torch",
        value=float(GIB),
        unit="byte",
        date="2026-11-22",
        log="a" * 64,
    )
    return base._replace(**changes)


def item(name: str, *options: str) -> Any:
    items = call(*PLAN, "--engine-version", "0.30.0", *options).json()["gpus"][0]["items"]
    return next(row for row in items if row["name"] == name)


def test_saved_and_used(calibration_file: Path) -> None:
    before = item("runtime.cuda_graphs")
    result = call("audit", str(H100), "--engine-version", "0.30.0", "--save", "--format", "json")
    saved = {row["constant"]: row for row in result.json()["saved"]}
    assert set(saved) == {"cuda_graph_bytes_per_graph_and_layer"}
    kept = saved["cuda_graph_bytes_per_graph_and_layer"]
    assert kept["term"] == "cuda_graphs_estimated"
    assert kept["kind"] == "moe"
    assert (kept["gpu"], kept["engine"], kept["version"]) == ("h100-80gb-sxm", "vllm", "0.30.0")
    assert calibration_file.is_file()
    # 64 sequences as in the log: the item is what the log printed, 0.14 GiB.
    after = item("runtime.cuda_graphs", "--max-num-seqs", "64", "--max-num-batched-tokens", "8192")
    assert after["bytes"] == pytest.approx(0.14 * GIB, rel=0.01)
    assert after["low_bytes"] < after["bytes"] < after["high_bytes"]
    assert "audit --save" in after["source"]
    assert "your log of" in after["source"]
    warnings = {
        w["code"]: w["message"]
        for w in call(*PLAN, "--engine-version", "0.30.0").json()["warnings"]
    }
    assert warnings["calibration"].endswith(": cuda_graph_bytes_per_graph_and_layer")
    # The default plan changes as well; without calibration it is what it was.
    assert item("runtime.cuda_graphs")["bytes"] != before["bytes"]
    assert item("runtime.cuda_graphs", "--no-calibration") == before


def test_the_same_log_is_not_compared_with_itself(calibration_file: Path) -> None:
    options = ("--engine-version", "0.30.0", "--format", "json")
    first = call("audit", str(H100), *options, "--save").json()
    again = call("audit", str(H100), *options, "--save").json()
    assert first["terms"] == again["terms"]
    assert first["saved"] == again["saved"]
    assert len(all_records()) == len(first["saved"])  # replaced, not added


def test_other_gpus_kinds_and_engines_keep_the_shipped_constants() -> None:
    shipped = engine_profile("vllm", "0.30.0").constants["non_torch_growth"]
    save([record(kind="moe")])

    def used(gpu: str, kind: str, version: str = "0.30.0") -> Any:
        return engine_profile("vllm", version, gpu, kind).constants["non_torch_growth"]

    assert used("h100-80gb-sxm", "moe").value == GIB
    assert used("h100-80gb-sxm", "dense") == shipped
    assert used("a100-80gb-sxm", "moe") == shipped
    assert engine_profile("vllm", "0.30.0").constants["non_torch_growth"] == shipped


def test_the_nearest_release_counts_and_several_logs_make_a_band() -> None:
    save(
        [
            record(version="0.28.0", value=1e9, log="1" * 64),
            record(version="0.32.0", value=3e9, log="2" * 64),
            record(version="0.32.0", value=4e9, log="3" * 64),
            record(version="0.32.0", value=5e9, log="4" * 64, date="2026-12-01"),
        ]
    )
    near = engine_profile("vllm", "0.31.0", "h100-80gb-sxm").constants["non_torch_growth"]
    assert (near.value, near.low, near.high, near.observations) == (4e9, 3e9, 5e9, 3)
    assert "2026-11-22 to 2026-12-01" in near.source
    old = engine_profile("vllm", "0.28.1", "h100-80gb-sxm").constants["non_torch_growth"]
    assert old.value == 1e9
    assert old.low < old.value < old.high


def test_releases_in_which_the_constant_means_something_else_do_not_count() -> None:
    shipped = engine_profile("vllm", "0.30.0").constants["non_torch_growth"]
    save([record(version="0.1.0")])
    used = engine_profile("vllm", "0.30.0", "h100-80gb-sxm").constants["non_torch_growth"]
    assert used == shipped


def test_a_changed_file_is_read_again() -> None:
    save([record(value=1e9)])
    assert item("runtime.non_torch")["bytes"] == 1_000_000_000
    save([record(value=2e9)])
    assert item("runtime.non_torch")["bytes"] == 2_000_000_000


@pytest.mark.parametrize(
    "junk",
    [
        b"not json\n",
        b"\x00\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b'{"schema": "moesize.calibration/1"}\n',
        b'{"schema": "moesize.calibration/1", "value": NaN}\n',
        json.dumps(
            {"schema": "moesize.calibration/1", **record()._asdict(), "value": True}
        ).encode(),
        json.dumps({"schema": "moesize.calibration/1", **record()._asdict(), "value": -1}).encode(),
        json.dumps(
            {"schema": "moesize.calibration/1", **record()._asdict(), "gpu": "a\x1bb"}
        ).encode(),
        b"x" * (9 << 20),
    ],
    ids=lambda junk: str(junk[:20]),
)
def test_a_damaged_file_is_one_warning(
    calibration_file: Path, junk: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moesize.calibration._complained", set())
    calibration_file.write_bytes(junk)
    result = call(*PLAN)
    assert result.code in (0, 1)
    assert result.err.count("warning: calibration file") == 1
    assert result.json()["schema"] == "moesize.plan/1"


def test_good_records_beside_bad_lines_are_used_and_both_are_kept(calibration_file: Path) -> None:
    calibration_file.write_text("garbage \udc80\n", encoding="utf-8", errors="surrogateescape")
    save([record(value=1e9)])
    text = calibration_file.read_bytes()
    assert text.startswith(b"garbage \x80\n")
    assert item("runtime.non_torch")["bytes"] == 1_000_000_000


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = item("runtime.non_torch")
    save([record()])
    assert item("runtime.non_torch") != shipped
    for word in ("off", "OFF", "", "0"):
        monkeypatch.setenv("MOESIZE_CALIBRATION", word)
        assert item("runtime.non_torch") == shipped
        result = call("audit", str(H100), "--engine-version", "0.30.0", "--save")
        assert result.code == 3
        assert "switched off" in result.err


def test_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOESIZE_CALIBRATION")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    save([record(value=1e9)])
    assert (tmp_path / "config" / "moesize" / "calibration.jsonl").is_file()
    assert item("runtime.non_torch")["bytes"] == 1_000_000_000


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("MOESIZE_CALIBRATION", str(tmp_path / "file" / "below"))
    result = call("audit", str(H100), "--engine-version", "0.30.0", "--save")
    assert result.code == 3
    assert "cannot be kept" in result.err


def test_the_file_is_bounded(calibration_file: Path) -> None:
    save([record(log=f"{n:064d}") for n in range(MOST_RECORDS)])
    _, dropped = save([record(log="f" * 64, value=7e9)])
    assert dropped == 1
    kept = all_records()
    assert len(kept) == MOST_RECORDS
    assert kept[-1].value == 7e9
    assert kept[0].log == f"{1:064d}"


def test_a_failed_write_leaves_the_old_file(
    calibration_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save([record(value=1e9)])
    before = calibration_file.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    result = call("audit", str(H100), "--engine-version", "0.30.0", "--save")
    assert result.code == 3
    assert "No space left" in result.err
    assert calibration_file.read_bytes() == before
    left = [path.name for path in calibration_file.parent.iterdir() if path.name.startswith(".")]
    assert left == [f".{calibration_file.name}.lock"]


def test_writers_at_the_same_time_lose_nothing(calibration_file: Path) -> None:
    code = (
        "import sys; from moesize.calibration import Record, save\n"
        "for n in range(20):\n"
        "    save([Record('g', 'vllm', '0.30.0', '', 'c', 't', float(n), 'byte', '2026-11-22', "
        "f'{sys.argv[1]}-{n}')])"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(n)],
            env=environment(MOESIZE_CALIBRATION=str(calibration_file)),
            cwd=ROOT,
        )
        for n in range(3)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert len({r.log for r in all_records()}) == 60


def test_engines_say_how_many_are_used() -> None:
    assert call("engines", "--format", "json").json()["engines"][0]["calibration_records"] == 0
    save([record(), record(constant="cuda_context")])
    rows = {r["name"]: r for r in call("engines", "--format", "json").json()["engines"]}
    assert rows["vllm"]["calibration_records"] == 2
    assert "2 calibration records" in " ".join(call("engines").out.split())


def test_python(calibration_file: Path) -> None:
    import moesize

    save([record(value=1e9)])

    def sizes(**options: Any) -> list[int]:
        plan = moesize.plan("qwen3-8b", gpu="h100", engine_version="0.30.0", **options)
        return [i.size_bytes for i in plan.gpus[0].items if i.name == "runtime.non_torch"]

    assert sizes() == [1_000_000_000]
    assert sizes(calibration=False) != [1_000_000_000]


def test_figures_of_a_shared_gpu_are_not_kept(tmp_path: Path, calibration_file: Path) -> None:
    path = tmp_path / "log"
    line = (
        "(EngineCore pid=4270) INFO 06-18 10:04:30 [gpu_worker.py:1066] Free memory on device "
        "(60.11/79.19 GiB) on startup. Desired GPU memory utilization is (0.92, 72.85 GiB).\n"
    )
    path.write_text(H100.read_text(encoding="utf-8") + line, encoding="utf-8")
    found = call(
        "audit", str(path), "--engine-version", "0.30.0", "--save", "--format", "json"
    ).json()
    assert "cuda_context" not in {row["constant"] for row in found["saved"]}
    assert any("does another process use the GPU" in note for note in found["notes"])
