"""Two real processes over gloo: one report of both, and one that dies."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from running import ROOT, environment

from verify.configs import write_config

SMALL = ("--device", "cpu", "--tokens", "24", "--sequences", "2", "--decode-steps", "2")


def start(folder: Path, rank: int, port: int, *more: str, **changes: str) -> subprocess.Popen[str]:
    """One rank, with the variables that torchrun sets."""
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    arguments = ("verify", str(folder), *SMALL, "--layers", "all", "--format", "json", *more)
    return subprocess.Popen(
        [sys.executable, "-m", "moesize", *arguments],
        cwd=ROOT,
        env=environment(**{**ranks, **address, **changes}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_ranks_make_one_report(tmp_path: Path) -> None:
    folder = write_config("dense GQA", tmp_path / "model")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    port = free_port()
    both = [start(folder, rank, port, TMPDIR=str(scratch)) for rank in (0, 1)]
    (out, err), (other, _) = (process.communicate(timeout=240) for process in both)
    assert other == ""
    document = json.loads(out)
    assert document["settings"]["ranks"] == 2
    by_rank = {
        rank: {t["name"]: t for t in document["terms"] if t["rank"] == rank} for rank in (0, 1)
    }
    for terms in by_rank.values():
        for name in ("weights", "kv_cache.static", "kv_cache.growing"):
            assert terms[name]["measured_bytes"] == terms[name]["predicted_bytes"] > 0, name
        # Gloo's worker may hold what it summed a moment longer: one activation more at the peak.
        peak = terms["prefill_peak"]
        assert 1 <= peak["measured_bytes"] / peak["predicted_bytes"] < 1.2
    assert list(scratch.glob("moesize-verify-*")) == [], err


def test_a_rank_that_dies_ends_the_other(tmp_path: Path) -> None:
    folder = write_config("dense GQA", tmp_path / "model", num_hidden_layers=40)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    port = free_port()
    first, second = (start(folder, rank, port, TMPDIR=str(scratch)) for rank in (0, 1))
    deadline = time.monotonic() + 180
    while not list(scratch.glob("moesize-verify-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
        assert first.poll() is None, first.communicate()
    second.send_signal(signal.SIGKILL)
    second.communicate()
    out, err = first.communicate(timeout=240)
    assert first.returncode == 3, err
    assert json.loads(out)["error"]["kind"] == "environment"
    assert "rank 0 lost another rank" in err
    assert "Traceback" not in err
    assert list(scratch.glob("moesize-verify-*")) == []


def test_half_of_torchruns_variables_are_not_enough(tmp_path: Path) -> None:
    folder = write_config("dense GQA", tmp_path / "model")
    process = start(folder, 0, 1, MASTER_ADDR="")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "torchrun" in err
