"""`--engine vllm` with a package that stands in for vLLM (standin_vllm.py): no GPU is needed.

What is passed is checked against names that released vLLM knows (fixtures/verify/vllm-names.json).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, Result, call, environment

from moesize.verify import engine_vllm
from moesize.verify.report import Device
from verify.configs import write_config

NAMES = ROOT / "tests" / "fixtures" / "verify" / "vllm-names.json"
GIB = 1 << 30
# 79.19 GiB: what torch's message of an OOM calls the capacity of this card.
H100 = Device("cuda", "NVIDIA H100 80GB HBM3", 85_029_615_370, "580, CUDA 13.0", "2.11.0")
SMALL = ("--tokens", "24", "--sequences", "2", "--decode-steps", "3")


class Standin:
    """The package in a folder on the path, and what it was given."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        package = folder / "site" / "vllm"
        package.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("standin_vllm.py"), package / "__init__.py")
        self.metadata = folder / "site" / "vllm-0.33.0.dist-info"
        self.metadata.mkdir()
        (self.metadata / "METADATA").write_text("Name: vllm\nVersion: 0.33.0\n")
        self.file = folder / "given.json"
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.variables = {
            "PYTHONPATH": os.pathsep.join([str(folder / "site"), str(ROOT)]),
            "STANDIN_FILE": str(self.file),
            "STANDIN_NAMES": str(NAMES),
            "TMPDIR": str(self.scratch),
        }
        for name, value in self.variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.syspath_prepend(str(folder / "site"))
        monkeypatch.setattr("tempfile.tempdir", str(self.scratch))
        monkeypatch.setattr(
            engine_vllm, "find_place", lambda _: engine_vllm.Place(H100, 84 * 10**9)
        )

    @property
    def given(self) -> Any:
        """What it was called with."""
        return json.loads(self.file.read_text())

    def nothing_is_left(self) -> bool:
        """No folder, and none of its processes."""
        pids = [self.given[name] for name in ("pid", "engine_pid") if name in self.given]
        return not list(self.scratch.iterdir()) and not any(map(alive, pids))


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Standin:
    return Standin(tmp_path, monkeypatch)


def model(folder: Path, **changes: Any) -> Path:
    """34 MB of bfloat16: enough to be seen in a log that prints 0.01 GiB."""
    return write_config("dense GQA", folder / "model", vocab_size=65_536, **changes)


def verify(folder: Path, *more: str) -> Result:
    return call("verify", str(folder), *SMALL, "--engine", "vllm", *more)


def test_a_start_and_its_terms(
    standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.92 of the card are 72.85 GiB; weights, activations and others leave a little less."""
    monkeypatch.setenv("STANDIN_KV_GIB", "72.50")
    result = verify(model(tmp_path), "--format", "json")
    assert result.code == 0, result.out + result.err
    document = result.json()
    assert (document["engine"], document["engine_version"]) == ("vllm", "0.33.0")
    assert document["device"]["name"] == H100.name
    assert document["layers"] == [0, 1]
    terms = {term["name"]: term for term in document["terms"]}
    assert set(terms) == {"vllm.weights", "vllm.kv_cache"}
    # 2 x 65,536 x 128 numbers of embedding and head, and two layers of 295,168.
    tensors = 2 * (2 * 65_536 * 128 + 2 * 147_840 + 128)
    assert abs(terms["vllm.weights"]["predicted_bytes"] - tensors) < 0.01 * tensors
    assert abs(terms["vllm.weights"]["measured_bytes"] - tensors) <= 0.005 * GIB
    assert terms["vllm.kv_cache"]["measured_bytes"] == round(72.5 * GIB)
    assert standin.nothing_is_left()


def test_what_vllm_is_told(standin: Standin, tmp_path: Path) -> None:
    result = verify(model(tmp_path), "--limit-memory", "40GiB")
    assert result.code == 0, result.out + result.err
    given = standin.given
    llm, env = given["llm"], given["environment"]
    assert llm["trust_remote_code"] is False
    assert llm["skip_tokenizer_init"] is True
    assert (llm["max_model_len"], llm["max_num_seqs"]) == (28, 2)
    assert llm["gpu_memory_utilization"] == pytest.approx(40 * GIB / H100.total_bytes, abs=1e-4)
    prompts = [one["prompt_token_ids"] for one in given["prompts"]]
    assert [len(one) for one in prompts] == [24, 24]
    assert prompts[0][0] != prompts[1][0]
    assert given["sampling"]["max_tokens"] == 3
    assert (env["HF_HUB_OFFLINE"], env["VLLM_NO_USAGE_STATS"]) == ("1", "1")
    assert given["cwd"].startswith(str(standin.scratch))
    # Those of all releases; two came later, and older ones do not look at them.
    later = {"VLLM_LOGGING_COLOR", "VLLM_ENGINE_READY_TIMEOUT_S"}
    ours = {name for name in env if name.startswith("VLLM_")} - later
    assert ours <= set(json.loads(NAMES.read_text())["environment"])


def test_a_figure_that_differs(
    standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_MORE_GIB", "1")
    result = verify(model(tmp_path))
    assert result.code == 1
    assert "DIFFERS" in result.out
    assert "vllm 0.33.0" in result.out
    assert verify(model(tmp_path), "--tolerance", "1").code == 1  # a GiB is 30 times the model


def test_shards_of_a_folder(standin: Standin, tmp_path: Path) -> None:
    """They are linked by name; nothing else of the folder is there to be found."""
    folder = model(tmp_path)
    kept = tmp_path / "kept"
    cpu = ("--device", "cpu", "--tokens", "4", "--sequences", "1", "--decode-steps", "1")
    assert call("verify", str(folder), *cpu, "--keep-shards", str(kept)).code == 0
    config = {**json.loads((folder / "config.json").read_text())}
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    (kept / "config.json").write_text(json.dumps(config))
    (kept / "modeling_evil.py").write_text("raise SystemExit('code of a stranger')\n")
    (kept / "pytorch_model.bin").write_bytes(b"\x80\x04")
    result = verify(kept, "--format", "json")
    assert result.code == 0, result.err
    assert result.json()["shards"] == "folder"
    assert "auto_map" not in standin.given["config"]
    assert any("auto_map" in note for note in result.json()["notes"])
    shard = next(kept.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    cut = verify(kept)
    assert (cut.code, "truncated" in cut.err) == (2, True)


def test_fewer_layers_are_a_config_with_fewer(standin: Standin, tmp_path: Path) -> None:
    folder = model(tmp_path, num_hidden_layers=6, layer_types=["full_attention"] * 6)
    result = verify(folder, "--layers", "0-2", "--format", "json")
    assert result.code == 0, result.err
    config = standin.given["config"]
    assert (config["num_hidden_layers"], len(config["layer_types"])) == (3, 3)
    assert (result.json()["layers"], result.json()["num_layers"]) == ([0, 1, 2], 6)
    whole = verify(folder, "--format", "json").json()
    assert whole["spec_sha256"] == result.json()["spec_sha256"]
    # 33.55 MB stand outside of the layers and each of them takes 0.31: two fit 90 % of 38 MB.
    some = verify(folder, "--limit-memory", "38000000B", "--format", "json")
    assert some.json()["layers"] == [0, 1], some.err
    middle = verify(folder, "--layers", "1-2")
    assert (middle.code, "--layers 0-1" in middle.err) == (3, True)


@pytest.mark.parametrize(
    ("mode", "phase"), [("oom", "vLLM's start"), ("oom_later", "vLLM's passes")]
)
def test_memory_that_runs_out_is_a_result(
    mode: str, phase: str, standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", mode)
    result = verify(model(tmp_path), "--format", "json")
    assert result.code == 1, result.err
    failure = result.json()["failure"]
    assert failure["phase"] == phase
    assert failure["asked_bytes"] == 1.5 * GIB
    assert standin.nothing_is_left()
    shown = verify(model(tmp_path))
    assert "OUT OF MEMORY" in shown.out
    assert "Traceback" not in shown.out + shown.err


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("crash", "ValueError: There is no module named 'layers.7.mixer'"),
        ("garbage", "without a start-up log"),
        ("hang", "did not end within 2 s"),
    ],
)
def test_another_end(
    mode: str, words: str, standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", mode)
    monkeypatch.setenv("MOESIZE_VERIFY_TIMEOUT", "2" if mode == "hang" else "60")
    monkeypatch.setattr("moesize.verify.child_process._GRACE_S", 0.5)
    result = verify(model(tmp_path))
    assert result.code == 3
    assert words in result.err
    assert result.err.isprintable() or "\x00" not in result.err
    assert "Traceback" not in result.err
    assert standin.nothing_is_left()


def test_endless_output_is_cut(
    standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 MB before the figures: the end of the log is kept, and they are in it."""
    monkeypatch.setenv("STANDIN", "flood")
    result = verify(model(tmp_path), "--format", "json")
    assert result.code == 0, result.err
    assert any("left out" in note for note in result.json()["notes"])
    assert [term["name"] for term in result.json()["terms"]] == ["vllm.weights"]


def test_a_record_names_the_release(
    standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOESIZE_RECEIPTS", str(tmp_path / "records"))
    saved = verify(model(tmp_path), "--save", "--format", "json").json()["saved_to"]
    record = json.loads(Path(saved).read_text())
    assert (record["engine"], record["engine_version"]) == ("vllm", "0.33.0")


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_a_stopped_run(sign: int, standin: Standin, tmp_path: Path) -> None:
    """Ctrl-C ends vLLM's processes and takes the folder away; being killed ends them too."""
    code = (
        "import sys\n"
        "from moesize.verify import engine_vllm\n"
        "from moesize.verify.report import Device\n"
        f"place = engine_vllm.Place(Device(*{tuple(H100)!r}), 84 * 10**9)\n"
        "engine_vllm.find_place = lambda _: place\n"
        "from moesize.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "verify", str(model(tmp_path)), *SMALL, "--engine", "vllm"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment(**standin.variables, STANDIN="hang"),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (standin.file.exists() and "engine_pid" in standin.file.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(sign)
    _, err = process.communicate(timeout=60)
    assert b"Traceback" not in err
    while any(alive(standin.given[name]) for name in ("pid", "engine_pid")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if sign == signal.SIGINT:
        assert process.returncode == 130
        assert standin.nothing_is_left()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tp-rank", "0/2"), "leave --tp-rank"),
        (("--dtype", "float32"), "leave --dtype out"),
        (("--quant", "fp8"), "not from --quant"),
        (("--keep-shards", "x"), "--engine torch"),
        (("--limit-memory", "16MiB"), "do not fit"),
        (("--limit-memory", "16MiB", "--layers", "all"), "nothing was done"),
        (("--shards", "hub"), "fetches nothing"),
    ],
)
def test_what_is_refused(
    arguments: tuple[str, ...], words: str, standin: Standin, tmp_path: Path
) -> None:
    result = verify(model(tmp_path), *arguments)
    assert (result.code, words in result.err) == (3, True), result.err
    assert not standin.file.exists()


def test_old_releases_are_refused(standin: Standin, tmp_path: Path) -> None:
    (standin.metadata / "METADATA").write_text("Name: vllm\nVersion: 0.9.2\n")
    result = verify(model(tmp_path))
    assert (result.code, "0.10" in result.err) == (3, True), result.err


def test_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is asked in another process; this machine has none, or it would be measured."""
    import torch

    if torch.accelerator.is_available():
        pytest.skip("a GPU is here")
    monkeypatch.setattr("moesize.verify.other_engines._installed", lambda _: "0.33.0")
    result = verify(model(tmp_path))
    assert (result.code, "CUDA or ROCm" in result.err) == (3, True), result.err
    named = verify(model(tmp_path), "--device", "cuda:1")
    assert (named.code, "no cuda device" in named.err) == (3, True), named.err
