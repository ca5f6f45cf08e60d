"""Log beside plan. Logged figures are published ones (fixtures/logs/README.md); bands are ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from running import ROOT, call, run

from moesize.audit import audit
from moesize.core.errors import MoesizeError
from moesize.engines import list_engines

LOGS = ROOT / "tests" / "fixtures" / "logs"
H100 = LOGS / "vllm-qwen3-30b-fp8-h100.log"
TOO_LONG = LOGS / "vllm-minimax-too-long.log"
PLANNED = {row["name"] for row in list_engines()}
GIB = 1 << 30


def document(name: str | Path, *options: str) -> Any:
    path = name if isinstance(name, Path) else LOGS / name
    return call("audit", str(path), *options, "--format", "json").json()


def terms(found: Any) -> dict[str, Any]:
    return {term["name"]: term for term in found["terms"]}


def test_a_start_beside_its_plan() -> None:
    """vLLM 0.22.1 on an H100; planned by the rules of 0.30, which count KV tokens alike."""
    found = document(H100, "--engine-version", "0.30.0")
    assert found["engine"] == "vllm"
    assert found["engine_version"] == "0.22.1"
    assert found["model"] == "qwen3-30b-a3b-2507"
    assert found["quantization"] == "fp8"
    assert found["gpu"] == "h100-80gb-sxm"
    assert found["settings"]["max_num_seqs"] == 64
    rows = terms(found)
    assert rows["weights"]["logged"] == round(29.08 * GIB)
    assert rows["weights"]["ok"]
    assert rows["weights"]["line"] == 12
    assert abs(rows["weights"]["error"]) < 0.005
    # 42.54 GiB is printed with two decimals: 465 blocks of 16 tokens are one digit.
    assert abs(rows["kv_tokens_given_kv"]["predicted"] - 464_656) <= 64
    assert rows["concurrency"]["predicted"] == pytest.approx(56.72, abs=0.02)
    assert rows["kv_cache"]["low"] <= rows["kv_cache"]["logged"] <= rows["kv_cache"]["high"]
    assert found["outcome"] == {
        "logged": "started",
        "predicted": "fits",
        "agrees": True,
        "cause": "",
        "line": None,
    }
    assert found["agrees"]
    assert any("0.22.1" in note for note in found["notes"])


def test_errors_are_shares_of_what_was_logged() -> None:
    for term in document(H100, "--engine-version", "0.30.0")["terms"]:
        expected = (term["predicted"] - term["logged"]) / term["logged"]
        assert term["error"] == pytest.approx(expected, abs=1e-3)


def test_the_wrong_model_is_outside() -> None:
    result = call(
        "audit",
        str(H100),
        "--engine-version",
        "0.30",
        "--model",
        "qwen3-8b",
        "--quant",
        "checkpoint",
    )
    assert result.code == 1
    assert "DIFFERS" in result.out
    found = document(
        H100, "--engine-version", "0.30", "--model", "qwen3-8b", "--quant", "checkpoint"
    )
    assert terms(found)["weights"]["ok"] is False
    assert terms(found)["kv_tokens_given_kv"]["ok"] is False
    assert not found["agrees"]


def test_without_a_gpu_only_terms_that_need_none(tmp_path: Path) -> None:
    path = tmp_path / "log"
    text = H100.read_text(encoding="utf-8")
    path.write_text(text.replace("device_name=", "no_such="), encoding="utf-8")
    rows = terms(document(path, "--engine-version", "0.30"))
    assert rows["weights"]["ok"]
    assert rows["kv_tokens_given_kv"]["ok"]
    assert rows["kv_cache"]["predicted"] is None
    assert "--gpu" in rows["kv_cache"]["why"]
    with_gpu = terms(document(path, "--engine-version", "0.30", "--gpu", "h100"))
    assert with_gpu == terms(document(H100, "--engine-version", "0.30"))


def test_memory_that_the_log_prints_is_planned_with(tmp_path: Path) -> None:
    """A V0 log prints the total: 39.56 GiB, a card of that size where no name is printed."""
    found = document("vllm-v0-phi-4-mini.log", "--engine-version", "0.28", "--gpu", "a100-40gb-sxm")
    assert terms(found)["kv_tokens_given_kv"]["logged"] == 13_618 * 16
    assert terms(found)["weights"]["ok"]
    assert any("39.56 GiB" in note for note in document("vllm-v0-phi-4-mini.log")["notes"])
    other = document("vllm-v0-phi-4-mini.log", "--engine-version", "0.28", "--gpu", "h100")
    assert any("another GPU" in note for note in other["notes"])


def test_a_context_too_long_is_explained_and_cured() -> None:
    """eugr/spark-vllm-docker issue 396: 0.8 left 22.5 of 23.25 GiB; 190,272 tokens would fit."""
    found = document(TOO_LONG, "--gpu", "gb10")
    assert found["outcome"]["logged"] == "failed"
    assert "23.25 GiB needed, 22.50 GiB left" in found["outcome"]["cause"]
    advice = {item["options"][0]: item for item in found["advice"]}
    length = int(advice["--max-model-len"]["options"][1])
    assert 188_000 <= length <= 190_272
    assert all(item["fits"] for item in found["advice"])


def test_advice_is_the_difference_of_two_plans() -> None:
    options = ("--engine-version", "0.30", "--quant", "fp8")
    base = document(H100, *options, "--engine-args", "--max-num-seqs 1024")
    changed = document(H100, *options, "--engine-args", "--max-num-seqs 256")
    advice = {tuple(item["options"]): item for item in base["advice"]}
    found = advice["--max-num-seqs", "256"]
    difference = terms(changed)["kv_tokens"]["predicted"] - terms(base)["kv_tokens"]["predicted"]
    assert found["gain_tokens"] == difference > 0
    assert "1,024 costs" in found["what"]
    eager = document(H100, *options, "--engine-args", "--max-num-seqs 1024 --enforce-eager")
    found = advice["--enforce-eager",]
    difference = terms(eager)["kv_tokens"]["predicted"] - terms(base)["kv_tokens"]["predicted"]
    assert found["gain_tokens"] == difference > 0


def test_memory_of_other_processes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log"
    line = (
        "(EngineCore pid=4270) INFO 06-18 10:04:30 [gpu_worker.py:1066] Free memory on device "
        "(70.11/79.19 GiB) on startup. Desired GPU memory utilization is (0.92, 72.85 GiB). Actual "
        "usage is 29.30 GiB for consumed memory (weights + non-torch), 0.9 GiB for peak "
        "activation, and 0.22 GiB for CUDAGraph memory.\n"
    )
    path.write_text(H100.read_text(encoding="utf-8") + line, encoding="utf-8")
    found = document(path, "--engine-version", "0.30")
    assert any("another process holds" in note for note in found["notes"])
    rows = terms(found)
    assert rows["held_before_start"]["logged"] == pytest.approx(9.08 * GIB, abs=0.02 * GIB)
    assert rows["held_before_start"]["ok"] is False
    assert rows["consumed"]["logged"] == round(29.30 * GIB)
    assert rows["activation_peak"]["logged"] == round(0.9 * GIB)


@pytest.mark.parametrize("path", sorted(LOGS.glob("*.log")), ids=lambda path: path.stem)
def test_every_log_gives_a_whole_document(path: Path) -> None:
    found = document(path)
    assert found["schema"] == "moesize.audit/1"
    assert found["terms"] or found["outcome"]["logged"] == "failed"
    for term in found["terms"]:
        assert term["why"]
        assert (term["predicted"] is None) == (term["ok"] is None)
    if found["engine"] not in PLANNED:
        assert all(term["predicted"] is None for term in found["terms"])
        assert all("not planned yet" in term["why"] for term in found["terms"])


@pytest.mark.parametrize("output", ["table", "markdown", "csv"])
def test_other_formats_hold_every_term(output: str) -> None:
    result = call("audit", str(H100), "--engine-version", "0.30", "--format", output, columns=140)
    assert result.code == 0
    for words in ("weights", "29.08", "464,656"):
        assert words in result.out or output == "csv"
    if output == "csv":
        assert len(result.out.splitlines()) == 1 + len(
            document(H100, "--engine-version", "0.30")["terms"]
        )


def test_narrow_terminals_keep_the_figures() -> None:
    result = call("audit", str(H100), "--engine-version", "0.30", columns=80)
    assert "29.08 GiB" in result.out
    assert max(map(len, result.out.splitlines())) <= 80


def test_from_a_pipe() -> None:
    import subprocess
    import sys

    with H100.open("rb") as stream:
        process = subprocess.run(
            [sys.executable, "-m", "moesize", "audit", "-", "--engine-version", "0.30"],
            stdin=stream,
            capture_output=True,
            cwd=ROOT,
            check=False,
        )
    assert process.returncode == 0, process.stderr
    assert b"AGREES" in process.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("no-such.log",), "no such file"),
        ((str(H100), "--model", "no such model"), "unknown model"),
        ((str(H100), "--gpu", "no such gpu"), "unknown GPU"),
        ((str(H100), "--quant", "no such scheme"), "no such scheme"),
        ((str(H100), "--engine-args", "'"), "quot"),
    ],
)
def test_wrong_questions(arguments: tuple[str, ...], words: str) -> None:
    result = call("audit", *arguments)
    assert result.code == 2
    assert words in result.err
    assert not result.out


def test_an_unknown_model_is_never_guessed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    text = H100.read_text(encoding="utf-8").replace("Qwen3-30B-A3B-Instruct-2507", "Qwen3-31B-Mine")
    path.write_text(text, encoding="utf-8")
    found = document(path, "--engine-version", "0.30")
    assert all(term["predicted"] is None for term in found["terms"])
    assert "Qwen3-31B-Mine" in found["terms"][0]["why"]
    assert not found["agrees"]


def test_a_path_in_a_log_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}", encoding="utf-8")
    path = tmp_path / "log"
    text = H100.read_text(encoding="utf-8").replace("Qwen/Qwen3-30B-A3B-Instruct-2507", str(model))
    path.write_text(text, encoding="utf-8")
    found = document(path, "--engine-version", "0.30")
    assert "does not know" in found["terms"][0]["why"]


@pytest.mark.parametrize(
    ("name", "model", "quant"),
    [
        ("/mnt/models/Qwen3-30B-A3B/", "qwen3-30b-a3b", "checkpoint"),
        (
            "/root/.cache/huggingface/hub/models--Qwen--Qwen3-30B-A3B/snapshots/0a1b2c3d",
            "qwen3-30b-a3b",
            "checkpoint",
        ),
        ("someone/Llama-3.1-8B-GPTQ-Int4", "llama-3.1-8b", "gptq-4bit"),
        ("someone/Qwen3-30B-A3B-AWQ", "qwen3-30b-a3b", "awq-4bit"),
        ("RedHatAI/Qwen3-30B-A3B-quantized.w4a16", "qwen3-30b-a3b", "w4a16"),
    ],
)
def test_names_of_models(tmp_path: Path, name: str, model: str, quant: str) -> None:
    path = tmp_path / "log"
    text = H100.read_text(encoding="utf-8").replace("Qwen/Qwen3-30B-A3B-Instruct-2507", name)
    path.write_text(
        text.replace("quantization=fp8", "quantization=None").replace(
            "'quantization': 'fp8', ", ""
        ),
        encoding="utf-8",
    )
    found = document(path, "--engine-version", "0.30")
    assert (found["model"], found["quantization"]) == (model, quant)


def test_200_mb_in_bounded_memory_and_time(tmp_path: Path) -> None:
    import os

    path = tmp_path / "log"
    with path.open("wb") as stream:
        stream.write(H100.read_bytes())
        traffic = b"(APIServer pid=1) INFO 06-18 10:05:00 [loggers.py:248] Engine 000: Avg prompt "
        traffic += b"throughput: 1.0 tokens/s, Running: 3 reqs, GPU KV cache usage: 1.2%\n"
        for _ in range(80):
            stream.write(traffic * 10_000)
        for _ in range(32):
            stream.write(os.urandom(1 << 20))
        stream.write(b"x" * (64 << 20))
    assert path.stat().st_size > 200_000_000
    result = run(
        "audit", str(path), "--engine-version", "0.30", memory_bytes=400 << 20, timeout_s=120
    )
    assert result.code == 0, result.err
    assert result.cpu_s < 60


def test_the_function() -> None:
    found = audit(str(H100), engine_version="0.30")
    assert found.agrees
    assert found.to_dict()["compared"] == len(found.terms) == found.compared
    with pytest.raises(MoesizeError):
        audit("no such file")
    json.dumps(found.to_dict())


def test_flags_are_those_that_the_log_shows() -> None:
    """As they would be typed: what `plan --engine-args` is given."""
    from moesize.audit import _flags
    from moesize.logs.detect import read_log

    def flags(name: str) -> str:
        return " ".join(_flags(read_log(str(LOGS / name)).start))

    assert "--tensor-parallel-size 4" in flags("vllm-qwen2.5-14b-tp4.log")
    assert "--max-model-len 16384" in flags("vllm-qwen2.5-14b-tp4.log")
    v0 = flags("vllm-v0-llama-3.1-8b.log")
    assert "--max-num-seqs 256" in v0
    assert "--enforce-eager" in v0
    assert "--tensor-parallel-size" not in v0
    sglang = flags("sglang-qwen3.5-9b-tp2.log")
    assert "--tp-size 2" in sglang
    assert "--mem-fraction-static 0.8" in sglang
    assert "--disable-cuda-graph" in sglang
    llama = flags("llama-server-gpt-oss-20b.log")
    for words in ("--ctx-size 131072", "--n-gpu-layers 25", "--parallel 1", "--cache-type-k f16"):
        assert words in llama


def test_speculative_settings_are_passed_on_as_json(tmp_path: Path) -> None:
    from moesize.audit import _flags
    from moesize.logs.detect import read_log

    path = tmp_path / "log"
    text = H100.read_text(encoding="utf-8").replace(
        "'max_num_seqs': 64", "'speculative_config': {'method': 'mtp', 'num_speculative_tokens': 2}"
    )
    path.write_text(text, encoding="utf-8")
    found = _flags(read_log(str(path)).start)
    value = found[found.index("--speculative-config") + 1]
    assert json.loads(value) == {"method": "mtp", "num_speculative_tokens": 2}


def test_out_of_memory_beside_the_cache(tmp_path: Path) -> None:
    """Lines of a log of vLLM 0.13 (github.com/kyuz0/amd-r9700-vllm-toolboxes, Qwen3-14B TP2)."""
    path = tmp_path / "log"
    lines = [
        x for x in H100.read_text(encoding="utf-8").splitlines() if "startup complete" not in x
    ]
    lines = [x for x in lines if "init engine" not in x]
    lines.append(
        "(Worker_TP1 pid=75617) ERROR 12-19 17:09:52 [multiproc_executor.py:826] "
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 76.00 MiB. GPU 1 has a "
        "total capacity of 79.19 GiB of which 20.00 MiB is free."
    )
    path.write_text("\n".join(lines), encoding="utf-8")
    found = document(path, "--engine-version", "0.30", "--engine-args", "--max-num-seqs 64")
    assert found["outcome"]["logged"] == "failed"
    assert found["outcome"]["agrees"] is False
    assert "after the KV cache was there" in found["outcome"]["cause"]
    first = found["advice"][0]
    assert first["options"][0] == "--gpu-memory-utilization"
    assert 0.85 < float(first["options"][1]) < 0.92
    # What fails after the start is no failed start.
    path.write_text(H100.read_text(encoding="utf-8") + lines[-1], encoding="utf-8")
    assert document(path, "--engine-version", "0.30")["outcome"]["logged"] == "started"


def test_a_reason_is_said_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    text = H100.read_text(encoding="utf-8").replace("Qwen3-30B-A3B-Instruct-2507", "Qwen3-31B-Mine")
    path.write_text(text, encoding="utf-8")
    for columns in (80, 140):
        out = call("audit", str(path), "--engine-version", "0.30", columns=columns).out
        assert " ".join(out.split()).count("the catalogue does not know") == 1
