"""The report as text: what a reader sees of it, and bars while it is made."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import pytest

from moesize.cli_verify import _bars
from moesize.renderers.verify import (
    cells,
    failure_line,
    label,
    peak_lines,
    rows,
    verify_markdown,
)
from moesize.verify.report import Device, Failure, Flops, Owned, Speed, Term, VerifyReport

REPORT = VerifyReport(
    model="m",
    model_source="catalogue",
    spec_sha256="0" * 64,
    revision="",
    quantization="checkpoint",
    device=Device("cuda", "a card", 1 << 30, "1", "2"),
    engine="torch",
    shards="synthetic",
    layers=(0,),
    num_layers=1,
    tokens=2,
    sequences=1,
    decode_steps=1,
    dtype="bfloat16",
    rank=0,
    ranks=1,
    seed=0,
    date="2026-11-22",
    command="",
    terms=(
        Term(name="weights", predicted_bytes=1024, measured_bytes=1024, tolerance=0, why="all"),
        Term(
            name="context", predicted_bytes=2048, measured_bytes=3072, tolerance=0, why="logs",
            low_bytes=1024, high_bytes=4096,
        ),
        Term(
            name="after_free", predicted_bytes=0, measured_bytes=0, tolerance=0, why="",
            low_bytes=0, high_bytes=0,
        ),
        Term(name="process", predicted_bytes=None, measured_bytes=5, tolerance=0, why="NVML"),
    ),
    flops=(Flops("prefill", 4_370_000_000, 4_370_000_000, 0, 0.005),),
    speed=Speed(1.5, None, None),
    attribution=(
        Owned("static prefill", "weights", 10**9, 10**9),
        Owned("static prefill", "kv_cache", 512 << 10, 512 << 10),
        Owned("static prefill", "norms", 1 << 10, 1 << 10),
    ),
)  # fmt: skip


def test_every_row_says_how_far_it_may_be_off() -> None:
    found = {row[0]: row for row in rows(REPORT)}
    assert {name: row[4] for name, row in found.items()} == {
        "weights": "0",
        "context": "band",
        "after free": "0",
        "process": "",
        "FLOPs of prefill": "0.5 %",
    }
    assert found["context"][-1] == "logs; 1.00 KiB to 4.00 KiB"
    assert found["FLOPs of prefill"][1] == "4.37 GFLOP"  # 4.37 B would be bytes or billions


@pytest.mark.parametrize(("width", "last"), [(160, "why"), (80, ""), (40, "")])
def test_columns_of_a_terminal(width: int, last: str) -> None:
    headings, shown = cells(REPORT, width)
    assert headings[-1] == last
    assert ("tolerance" in headings) is (width >= 80)
    assert ("predicted" in headings) is (width >= 80)
    assert {len(row) for row in shown} == {len(headings)}


def test_beside_large_weights_the_rest_of_a_peak_is_seen() -> None:
    ((_, text),) = peak_lines(REPORT)
    assert text == "weights 953.67 MiB, KV cache 512.00 KiB, others 1.00 KiB"


def test_names_of_terms_in_words() -> None:
    assert label("kv_cache.static") == "KV cache, static"
    assert label("vllm.kv_cache") == "vllm.KV cache"


def test_markdown_has_every_column_and_the_pace() -> None:
    lines = verify_markdown(REPORT).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {8}
    assert "1 sequence x 2 tokens and 1 decode step," in lines[2]
    assert "Shards loaded at 1.50 GB/s." in lines


def test_what_was_live_when_memory_ran_out() -> None:
    live = {"weights": 2048, "kv_cache": 1024, "other": 0}
    failed = replace(REPORT, failure=Failure("static prefill", 512, live, "no memory"))
    assert failure_line(failed) == (
        "memory ran out in static prefill, 512 B more asked for; live: weights 2.00 KiB, KV cache "
        "1.00 KiB"
    )


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_count_bytes_and_name_the_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """A load says of how much; a thousand decode steps take one line, not a thousand."""
    screen = _Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    with _bars(quiet=False) as step:
        step("load", 0, 0)
        step("load", 1 << 20, 2 << 20)
        step("load", 1 << 20, 2 << 20)
        for number in range(1000):
            step(f"static decode {number}", 0, 0)
    text = screen.getvalue()
    last = text.rpartition("load")[2]
    assert "2.00 MiB of 2.00 MiB" in last
    assert "static decode 999" in last
    assert last.count("static decode") == 1
    assert "? bytes" not in text
