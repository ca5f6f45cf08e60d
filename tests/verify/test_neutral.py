"""No record says where something lay on the machine that wrote it, or who sat there."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from moesize.verify.neutral import neutral, neutral_command, neutral_document, paths_in


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shards kept in /home/anna/x", "shards kept in PATH"),
        ("see ../anna/x, ./ckpt; ~anna/y", "see PATH, PATH; PATH"),
        (r"C:\Users\anna\x and \\server\anna", "PATH and PATH"),
        ("file:///home/anna 'at:/mnt/anna'", "PATH 'at:PATH'"),
        ('File "/usr/lib/python3.12/site.py", line 5', 'File "PATH", line 5'),
        ("(//data/anna)", "(PATH)"),
    ],
)
def test_paths_go(text: str, expected: str) -> None:
    assert neutral(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "8 * S * V with V = 32,000", "24 * S*V/(a+b)/c and a / b", "3.1 GB/s, bf16/fp16",
        "mistralai/Mixtral-8x7B-v0.1@5c79a37", "--tp-rank 0/8", "https://huggingface.co/org/name",
        "570.86.15, CUDA 12.8", "2 sequences of 28 tokens in bfloat16; recurrent states",
    ],
)  # fmt: skip
def test_what_is_no_path_stays(text: str) -> None:
    assert neutral(text) == text


def test_a_home_with_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/Anna Smith")
    assert neutral("kept in /home/Anna Smith/shards") == "kept in PATH"


def test_a_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "anna").mkdir()
    words = ["verify", "anna", "--shards", "anna/x", "--keep-shards=my shards", "--tp-rank", "0/8"]
    assert neutral_command(words, "anna") == (
        "verify PATH --shards PATH --keep-shards=PATH --tp-rank 0/8"
    )
    words = ["verify", "org/name", "--shards", "hub", "--layers", "0-3"]
    assert neutral_command(words, "org/name") == "verify org/name --shards hub --layers 0-3"
    words = ["verify", "/data/m", "--limit-memory", "8GiB", "--tokens=4k"]
    assert neutral_command(words, "/data/m") == "verify PATH --limit-memory 8GiB --tokens=4k"


def test_where_a_document_holds_paths() -> None:
    found = {"notes": ["fine", "in /home/anna"], "device": {"name": "NVIDIA L4"}, "n": 1.5}
    assert list(paths_in(found)) == ["notes[1]"]
    assert list(paths_in(neutral_document(found))) == []
    assert neutral_document(found)["device"] == {"name": "NVIDIA L4"}


def test_long_texts_take_no_longer_than_they_are() -> None:
    begin = time.process_time()
    for text in ("~a" * 100_000, "/" * 200_000, "../" * 60_000, "a:/" * 60_000):
        neutral(text)
    assert time.process_time() - begin < 2
