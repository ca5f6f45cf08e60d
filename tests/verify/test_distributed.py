"""Real processes over gloo: one report of all; a rank that dies, refuses or runs out of memory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, call, environment

from moesize.core.errors import InvalidInputError, UnsupportedError
from moesize.core.units import GIB, MIB
from moesize.verify import distributed
from moesize.verify.devices import CpuMeter, find_meter
from moesize.verify.report import Flops
from verify.configs import write_config

SMALL = ("--device", "cpu", "--tokens", "24", "--sequences", "2", "--decode-steps", "2")
# Python and torch start in seconds; waiting for a rank that is gone would take half an hour.
SOON_S = 30


class Ranks:
    """Two ranks with the variables that torchrun sets, and one temporary folder."""

    def __init__(self, tmp_path: Path) -> None:
        self.scratch = tmp_path / "scratch"
        self.scratch.mkdir()
        self.port = free_port()
        self.processes: list[subprocess.Popen[str]] = []

    def start(
        self, rank: int, folder: Path, *more: str, fault: str = "none", **changes: str
    ) -> Any:
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port)}
        own = {"TMPDIR": str(self.scratch), "OMP_NUM_THREADS": "1"}
        options = (*SMALL, "--format", "json", *more)
        if "--layers" not in options:
            options = (*options, "--layers", "all")
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/verify/faulty_rank.py"), fault,
             "verify", str(folder), *options],
            cwd=ROOT,
            env=environment(**{**ranks, **address, **own, **changes}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def leaves_nothing(self) -> bool:
        return list(self.scratch.glob("moesize-verify-*")) == []

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


@pytest.fixture
def ranks(tmp_path: Path) -> Any:
    both = Ranks(tmp_path)
    yield both
    both.end()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_config("dense GQA", tmp_path / "model")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ended(process: subprocess.Popen[str], code: int, since: float | None = None) -> tuple[str, str]:
    """Output of a rank that ends soon, with an exit code and without a traceback."""
    out, err = process.communicate(timeout=180)
    if since is not None:
        assert time.monotonic() - since < SOON_S
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out, err


def error_of(out: str) -> str:
    return str(json.loads(out)["error"]["message"])


# --- Reports --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["dense GQA", "gpt-oss MXFP4"])
def test_two_ranks_make_one_report(family: str, ranks: Ranks, tmp_path: Path) -> None:
    """Every term of both ranks to the byte, as for one process."""
    folder = write_config(family, tmp_path / "model")
    first, second = (ranks.start(rank, folder) for rank in (0, 1))
    out, err = ended(first, 0)
    assert ended(second, 0) == ("", err) == ("", "")
    document = json.loads(out)
    assert document["agrees"] is True
    assert document["settings"]["ranks"] == 2
    by_rank = [
        {t["name"]: t["error"] for t in document["terms"] if t["rank"] == rank} for rank in (0, 1)
    ]
    assert by_rank[0] == by_rank[1]
    assert set(by_rank[0].values()) == {0}
    assert {"weights", "prefill_peak", "decode_peak", "decode_peak.growing"} <= set(by_rank[0])
    assert ranks.leaves_nothing()


def test_sums_over_gloo_give_the_logits_of_one_process(ranks: Ranks) -> None:
    for rank in (0, 1):
        variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ranks.port)}
        paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
        ranks.processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "verify.gloo_logits"],
                cwd=ROOT,
                env=environment(**variables, **address, OMP_NUM_THREADS="1", PYTHONPATH=paths),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in ranks.processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        found = json.loads(out.splitlines()[-1])
        assert len(found) == 7
        assert max(found.values()) < 1e-4, found


def test_what_one_rank_counts_otherwise_is_shown() -> None:
    good, bad = Flops("prefill", 100, 100, 0, 0.005), Flops("prefill", 100, 90, 0, 0.005)
    step = Flops("decode", 7, 7, 0, 0.005)
    assert distributed.worst_flops([[good, step], [bad, step]]) == (bad, step)
    assert distributed.worst_flops([[], []]) == ()


# --- A rank that is gone --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", ["killed before the communicator", "killed in load", "killed in prefill"]
)
def test_a_rank_that_dies_ends_the_other(fault: str, ranks: Ranks, folder: Path) -> None:
    first = ranks.start(0, folder)
    second = ranks.start(1, folder, fault=fault)
    second.communicate(timeout=180)
    assert second.returncode == -signal.SIGKILL
    out, err = ended(first, 3, time.monotonic())
    assert "rank 1 is gone" in error_of(out)
    assert err.count("error:") == 1
    assert ranks.leaves_nothing()


def test_rank_0_may_die_as_well(ranks: Ranks, folder: Path) -> None:
    """It keeps the store and has written the shards: the other says so, and cleans up."""
    first = ranks.start(0, folder, fault="killed in prefill")
    second = ranks.start(1, folder)
    first.communicate(timeout=180)
    out, _ = ended(second, 3, time.monotonic())
    assert "rank 0 is gone" in error_of(out)
    assert ranks.leaves_nothing()


def test_a_rank_that_never_starts(ranks: Ranks, folder: Path) -> None:
    out, _ = ended(ranks.start(0, folder, MOESIZE_VERIFY_TIMEOUT="6"), 3)
    assert "did not meet the others in 6 s" in error_of(out)


def test_ctrl_c_while_others_are_awaited(ranks: Ranks, folder: Path) -> None:
    first = ranks.start(0, folder)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", ranks.port)) == 0:
                break
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    ended(first, 130, time.monotonic())


_SUMS = """
import sys, time, torch
from moesize.core.errors import InvalidInputError
from moesize.verify import distributed
from moesize.verify.devices import CpuMeter
try:
    with distributed.session() as group:
        group.connect(CpuMeter())
        assert group.sum(torch.ones(8)).tolist() == [4.0] * 8
        if group.rank == 2:
            raise InvalidInputError("rank 2 has had enough")
        group.sum(torch.ones(8))
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def test_the_news_goes_round_the_ring(ranks: Ranks) -> None:
    """Of four ranks only two have a connection of the sum to the one that leaves it."""
    for rank in range(4):
        variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "4"}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ranks.port)}
        process = subprocess.Popen(
            [sys.executable, "-c", _SUMS],
            cwd=ROOT,
            env=environment(**variables, **address, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        ranks.processes.append(process)
    said = [process.communicate(timeout=120)[1].splitlines()[-1] for process in ranks.processes]
    news = "rank 2: rank 2 has had enough"
    assert said == [
        f"InvalidInputError: {news}",
        f"SaidByFirst: {news}",
        "SaidByFirst: rank 2 has had enough",
        f"SaidByFirst: {news}",
    ]


# --- A rank that refuses, or runs out of memory ---------------------------------------------------


def test_ranks_run_the_layers_that_fit_all_of_them(ranks: Ranks, tmp_path: Path) -> None:
    """One rank may use less: both load what fits it, twice, and extrapolate."""
    folder = write_config("dense GQA", tmp_path / "model", num_hidden_layers=8)
    # No less than the 64 tokens on which FLOPs are counted.
    long = ("--tokens", "80")
    one = call("verify", str(folder), *SMALL, *long, "--tp-rank", "1/2", "--format", "json")
    alone = one.json()
    known = {t["name"]: t["measured_bytes"] for t in alone["terms"]}
    assert len(alone["layers"]) == 8
    first = ranks.start(0, folder, *long, "--layers", "auto")
    limit = ("--limit-memory", f"{known['peak'] * 7 // 10}B")
    second = ranks.start(1, folder, *long, "--layers", "auto", *limit)
    out, _ = ended(first, 0)
    ended(second, 0)
    document = json.loads(out)
    assert 2 <= len(document["layers"]) < 8
    found = {item["name"]: item["extrapolated_bytes"] for item in document["extrapolated"]}
    assert found["weights"] == known["weights"]


def test_ranks_with_different_options_are_refused(ranks: Ranks, folder: Path) -> None:
    first, second = ranks.start(0, folder), ranks.start(1, folder, "--decode-steps", "3")
    out, _ = ended(first, 2)
    assert "different options" in error_of(out)
    ended(second, 2)


def test_too_little_memory_on_one_rank(ranks: Ranks, folder: Path) -> None:
    first = ranks.start(0, folder)
    second = ranks.start(1, folder, "--limit-memory", "64KiB")
    out, err = ended(first, 3)
    assert error_of(out).startswith("rank 1: ")
    assert "are predicted" in error_of(out)
    # Said once: rank 0 has said it.
    assert ended(second, 3) == ("", "")
    assert err.count("error:") == 1
    assert ranks.leaves_nothing()


def test_a_bad_shard_on_one_rank(ranks: Ranks, tmp_path: Path) -> None:
    config = write_config("dense GQA", tmp_path / "config")
    good = tmp_path / "good"
    made = call("verify", str(config), *SMALL, "--keep-shards", str(good), "--layers", "all")
    assert made.code == 0, made.err
    shutil.copy(config / "config.json", good)
    bad = tmp_path / "bad"
    shutil.copytree(good, bad)
    for shard in bad.glob("*.safetensors"):
        os.truncate(shard, shard.stat().st_size - 100)
    first, second = ranks.start(0, good), ranks.start(1, bad)
    out, _ = ended(first, 2)
    assert error_of(out).startswith("rank 1: ")
    assert ".safetensors" in error_of(out)
    ended(second, 2)


def test_memory_that_runs_out_on_one_rank_is_a_result(ranks: Ranks, folder: Path) -> None:
    """In the midst of a prompt, while the other waits for its part of a sum."""
    alone = call("verify", str(folder), *SMALL, "--layers", "all", "--tp-rank", "1/2",
                 "--format", "json").json()  # fmt: skip
    weights = next(t for t in alone["terms"] if t["name"] == "weights")["measured_bytes"]
    first = ranks.start(0, folder)
    second = ranks.start(
        1, folder, "--limit-memory", f"{weights + 30_000}B", fault="no check before the run"
    )
    out, err = ended(first, 1)
    assert ended(second, 0) == ("", "")
    document = json.loads(out)
    failure = document["failure"]
    assert (failure["rank"], failure["phase"]) == (1, "static prefill")
    assert failure["asked_bytes"] > 0
    assert failure["live"]["weights"] == weights
    assert document["agrees"] is False
    assert "rank 1: out of memory in static prefill" in document["notes"]
    measured = {(t["name"], t["rank"]): t["measured_bytes"] for t in document["terms"]}
    for rank in (0, 1):
        assert measured["weights", rank] == weights
        assert measured["after_free", rank] == 0
        assert measured["prefill_peak", rank] is None
    assert "Traceback" not in err
    assert ranks.leaves_nothing()


# --- torchrun -------------------------------------------------------------------------------------


def torchrun(scratch: Path, *arguments: str, fault: str = "none") -> subprocess.Popen[str]:
    script = str(ROOT / "tests/verify/faulty_rank.py")
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *arguments[:-1], script, fault, "verify",
         arguments[-1], *SMALL, "--layers", "all", "--format", "json"],
        cwd=ROOT,
        env=environment(TMPDIR=str(scratch), OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def test_two_hosts_of_torchrun(ranks: Ranks, folder: Path) -> None:
    """Two agents on one machine: each first rank writes the shards of its host."""
    where = f"127.0.0.1:{ranks.port}"
    agents = [
        torchrun(
            ranks.scratch, "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(node),
            "--master-addr", "127.0.0.1", "--master-port", where.partition(":")[2], str(folder),
        )
        for node in (0, 1)
    ]  # fmt: skip
    ranks.processes += agents
    (out, err), (other, _) = (agent.communicate(timeout=240) for agent in agents)
    assert [agent.returncode for agent in agents] == [0, 0], err
    assert json.loads(out)["agrees"] is True
    assert other == ""
    assert ranks.leaves_nothing()


def test_ctrl_c_on_torchrun_leaves_nothing(ranks: Ranks, folder: Path) -> None:
    agent = torchrun(
        ranks.scratch, "--standalone", "--nproc-per-node", "2", str(folder), fault="slow in prefill"
    )
    ranks.processes.append(agent)
    deadline = time.monotonic() + 120
    while ranks.leaves_nothing() and time.monotonic() < deadline:
        time.sleep(0.05)
        assert agent.poll() is None
    time.sleep(2)
    agent.send_signal(signal.SIGINT)
    _, err = agent.communicate(timeout=60)
    assert agent.returncode != 0
    assert ranks.leaves_nothing(), err


# --- Variables ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK is not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0"),
        ({"WORLD_SIZE": "9" * 40}, "no number"),
        ({"RANK": "2"}, "RANK is 2, not 0..1"),
        ({"RANK": "x"}, "RANK is 'x'"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT is 70000"),
    ],
)
def test_variables_that_make_no_sense(
    changes: dict[str, str], word: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**good, "MASTER_PORT": "1", **changes}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInputError, match=word.replace(".", r"\.")):
        distributed.world_size()
    if changes.keys() & {"RANK", "WORLD_SIZE"}:
        # The terminal reads RANK as well.
        result = call("verify", str(folder), *SMALL)
        assert (result.code, word in result.err) == (2, True), result.err


def test_a_local_rank_that_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "one")
    with pytest.raises(InvalidInputError, match="LOCAL_RANK is 'one'"):
        find_meter("cpu")


def test_backends() -> None:
    assert [distributed.backend_of(kind) for kind in ("cuda", "xpu", "cpu")] == [
        "nccl", "xccl", "gloo",
    ]  # fmt: skip
    with pytest.raises(UnsupportedError, match="no backend between mps devices"):
        distributed.backend_of("mps")


# --- The communicator -----------------------------------------------------------------------------


def lone_group(taken: int | None, size: int) -> distributed.Group:
    """A group that has not met."""
    group = object.__new__(distributed.Group)
    group.rank, group.size, group.communicator_bytes = 1, size, taken
    return group


def test_the_communicator_is_held_against_the_band_of_the_engines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """0 to 0.8 GiB for two ranks (data/engines/vllm.json); unknown for RCCL and oneCCL."""
    monkeypatch.setattr(distributed.torch.version, "cuda", "13.0")
    few, many = 300 * MIB, 3 * GIB
    for taken, size, ok in ((few, 2, True), (many, 2, False), (2 * GIB, 8, True), (0, 2, True)):
        (term,) = lone_group(taken, size).terms(StandIn("cuda"))
        assert (term.name, term.rank) == ("communicator", 1)
        assert (term.measured_bytes, term.ok) == (taken, ok)
    (unknown,) = lone_group(few, 2).terms(StandIn("xpu"))
    assert unknown.ok is None
    monkeypatch.setattr(distributed.torch.version, "cuda", None)
    (rocm,) = lone_group(few, 2).terms(StandIn("cuda"))
    assert rocm.ok is None
    assert lone_group(None, 2).terms(StandIn("cpu")) == []


class StandIn(CpuMeter):
    """A meter of another kind, which is all that is asked of it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
