"""Every command in every format, exit codes, and errors as people and programs see them."""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import ROOT, call, environment, run

from moesize.__main__ import main
from moesize.catalog import spec_folder

# A question with the answer no, and one with yes: 46.7 B parameters at 16 bits need 93.4 GB
# (https://huggingface.co/mistralai/Mixtral-8x7B-v0.1), so one 80 GB card cannot hold them.
NO = ("plan", "mixtral-8x7b", "--gpu", "h100")
YES = ("plan", "mixtral-8x7b", "--gpu", "h100", "--gpus", "4")
PLAN = ("plan", "mixtral-8x7b", "--gpu", "a10g")
LISTS = ("models", "gpus", "quants", "engines")


def test_exit_code_is_the_answer() -> None:
    assert call(*YES).code == 0
    assert call(*NO).code == 1


@pytest.mark.parametrize("form", ["table", "json", "markdown", "csv"])
def test_the_answer_is_the_same_in_every_format(form: str) -> None:
    for question, code in ((YES, 0), (NO, 1)):
        result = call(*question, "--format", form)
        assert (result.code, result.err) == (code, "")
        assert result.out.strip()


def test_every_sum_agrees_between_formats() -> None:
    document = call(*NO, "--format", "json").json()
    rows = list(csv.DictReader(io.StringIO(call(*NO, "--format", "csv").out)))
    items = [item for gpu in document["gpus"] for item in gpu["items"]]
    assert [row["name"] for row in rows] == [item["name"] for item in items]
    assert [int(row["bytes"]) for row in rows] == [item["bytes"] for item in items]
    gib = f"{document['gpus'][0]['used_bytes'] / 2**30:,.2f}"
    assert f"| **sum** | **{gib}** |" in call(*NO, "--format", "markdown").out


def test_quiet_prints_one_line() -> None:
    result = call(*NO, "--quiet")
    assert result.code == 1
    assert result.out.startswith("DOES NOT FIT: ")
    assert result.out.count("\n") == 1


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_explain_names_every_item_with_its_source(form: str) -> None:
    items = call(*NO, "--format", "json").json()["gpus"][0]["items"]
    shown = " ".join(call(*NO, "--explain", "--format", form, columns=400).out.split())
    for item in items:
        assert item["name"] in shown
        assert " ".join(item["source"].split()) in shown.replace("\\", "")


@pytest.mark.parametrize("command", LISTS)
def test_lists(command: str) -> None:
    document = call(command, "--format", "json").json()
    rows = document[command]
    assert document["schema"] == f"moesize.{command}/1"
    assert rows
    table = call(command, columns=200).out
    for row in rows:
        assert row.get("id", row.get("name")) in table


@pytest.mark.parametrize("command", ["models", "gpus", "quants"])
def test_a_word_filters_lists_and_no_match_is_no(command: str) -> None:
    everything = call(command, "--format", "json").json()[command]
    word = {"models": "mixtral", "gpus": "h100", "quants": "q4_k"}[command]
    found = call(command, word, "--format", "json").json()[command]
    assert 0 < len(found) < len(everything)
    for form in ("table", "json"):
        assert call(command, "no such thing", "--format", form).code == 1


def test_show_counts_tensors_to_the_total() -> None:
    document = call("show", "mixtral-8x7b", "--tensors", "--format", "json").json()
    assert sum(row["elements"] for row in document["tensors"]) == 46_702_792_704
    assert "46,702,792,704" in call("show", "mixtral-8x7b").out


def test_import_writes_what_plan_reads(tmp_path: Path) -> None:
    source = spec_folder() / "mixtral-8x7b.yaml"
    target = tmp_path / "mine.yaml"
    result = call("import", str(source), "--output", str(target), "--id", "mine")
    assert (result.code, result.out) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
    assert call("import", str(target)).out == target.read_text(encoding="utf-8")
    document = call("show", str(target), "--format", "json").json()
    assert (document["model"]["id"], document["model"]["source"]) == ("mine", "spec")


def test_import_to_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    result = call("import", "mixtral-8x7b", "--output", str(tmp_path / "no" / "x.yaml"))
    assert result.code == 2
    assert "cannot be written" in result.err


def test_version_and_help() -> None:
    assert call("--version").out == call("-V").out
    assert call("--version").out.startswith("moesize ")
    assert call().out == call("--help").out
    assert call("plan", "-h").out == call("plan", "--help").out


@pytest.mark.parametrize(
    ("arguments", "code", "kind", "said"),
    [
        (("plan", "mixtrl-8x7b", "--gpu", "a10g"), 2, "unknown_name", "mixtral-8x7b"),
        (("plan", "mixtral-8x7b", "--gpu", "a10h"), 2, "unknown_name", "a10"),
        ((*PLAN, "--quant", "awq-4bi"), 2, "unknown_name", "awq-4bit"),
        (("plan", "mixtral-8x7b"), 2, "usage", "--gpu"),
        ((*PLAN, "--gpuz", "2"), 2, "usage", "--gpu"),
        ((*PLAN, "--gpus", "0"), 2, "usage", "gpus"),
        ((*PLAN, "--context", "lots"), 2, "invalid_input", "lots"),
        (("plan", "mixtral-8x7b", "--gpu", "24"), 2, "", "24"),
        ((*PLAN, "--gpu-memory-utilization", "1.5"), 2, "invalid_deployment", "1.5"),
        ((*PLAN, "--gpus", "4", "--tp", "3"), 2, "invalid_deployment", "3"),
        ((*PLAN, "--engine-args", "--max-model-len"), 2, "invalid_input", "--max-model-len"),
        ((*PLAN, "--engine-args", "'"), 2, "invalid_input", "quot"),
        ((*PLAN, "--engine", "vlm"), 2, "unknown_name", "vllm"),
        (("plan", "gpt-4", "--gpu", "h100"), 3, "unsupported", "GPT-4"),
        (("show", "openai/gpt-4o"), 3, "unsupported", "GPT-4o"),
        (("show", "./nowhere.json"), 2, "invalid_input", "no such file"),
        (("plann", "mixtral-8x7b"), 2, "usage", "plan"),
        (("schema", "plam"), 2, "unknown_name", "plan"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)  # fmt: skip
def test_errors(arguments: tuple[str, ...], code: int, kind: str, said: str) -> None:
    result = call(*arguments)
    assert (result.code, result.out) == (code, "")
    lines = result.err.splitlines()
    assert lines[0].startswith("error: ")
    assert not lines[0].endswith(".")
    assert said in result.err
    assert len(lines) in (1, 3)
    assert len(lines) == 1 or (lines[1], lines[2][:6]) == ("", "hint: ")
    if arguments[0] in ("plan", "show"):
        result = call(*arguments, "--format", "json")
        error = result.json()["error"]
        assert (result.code, set(error)) == (code, {"kind", "message", "hint"})
        assert lines[0] == "error: " + error["message"]
        assert kind in ("", error["kind"])


def test_help_ends_with_examples_that_run() -> None:
    """Every command's help shows two; each is run, but those that need files or the hub."""
    from moesize.cli import main

    for name, command in main.commands.items():
        text = call(name, "--help").out
        examples = [line.strip() for line in text.splitlines() if line.startswith("  moesize ")]
        assert len(examples) == 2, name
        for example in examples:
            if name not in ("import", "audit", "check", "verify"):
                assert call(*example.split()[1:]).code in (0, 1), example
        assert command.help


def test_python_dash_m_and_the_installed_script_agree() -> None:
    script = Path(sys.executable).with_name("moesize")
    assert script.is_file(), "moesize is not installed beside this Python: see CONTRIBUTING.md"
    by_script = subprocess.run(
        [script, *NO, "--quiet"], capture_output=True, text=True, check=False
    )
    by_module = run(*NO, "--quiet")
    assert (by_script.returncode, by_script.stdout) == (by_module.code, by_module.out)


def test_no_colour_without_a_terminal_and_none_with_no_color() -> None:
    assert "\x1b[" in run(*NO, FORCE_COLOR="1").out
    assert "\x1b" not in run(*NO).out
    assert "\x1b[3" not in run(*NO, FORCE_COLOR="1", NO_COLOR="1").out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_terminals_that_are_not_utf8(encoding: str) -> None:
    for arguments in (NO, ("show", "deepseek-v3"), ("gpus",), ("plan", "ж", "--gpu", "a10g")):
        result = run(*arguments, PYTHONIOENCODING=encoding, LC_ALL="C", PYTHONUTF8="0")
        assert result.code in (0, 1, 2)
        assert "Traceback" not in result.err
        assert (result.out + result.err).strip()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((*NO, "--format", "json"), 1),
        (("gpus", "--format", "json"), 0),
        (("show", "deepseek-v3", "--tensors"), 0),
    ],
)
def test_a_pipe_that_closes_early_changes_no_exit_code(
    arguments: tuple[str, ...], code: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "moesize", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        cwd=ROOT,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    "arguments", [NO, ("--version",), ("--help",), ("show", "no-such-model", "-f", "json")]
)
def test_a_full_disk_is_no_traceback(arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "moesize", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(),
            cwd=ROOT,
            check=False,
            timeout=60,
        )
    assert process.returncode == 3
    assert b"Traceback" not in process.stderr
    assert b"cannot be written" in process.stderr


@pytest.mark.parametrize("arguments", [NO, ("--version",), (*NO, "-f", "json")])
def test_closed_standard_streams(arguments: tuple[str, ...]) -> None:
    words = " ".join([sys.executable, "-m", "moesize", *arguments])
    process = subprocess.run(
        ["/bin/sh", "-c", f"exec {words} >&- 2>&-"],
        env=environment(),
        cwd=ROOT,
        check=False,
        timeout=60,
    )
    assert process.returncode == (0 if "--version" in arguments else 1)


def test_interrupt_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while a command works: a real SIGINT to this process."""
    from moesize import api

    def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    monkeypatch.setattr(api, "show", interrupted)
    assert main(["show", "mixtral-8x7b"]) == 130
    out, err = capsys.readouterr()
    assert (out, err.split()) == ("", ["interrupted"])


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "config.json"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "moesize", "show", str(pipe)]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 2
    assert "not a regular file" in result.stderr
