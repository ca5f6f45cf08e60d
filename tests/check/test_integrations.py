"""Where `moesize check` is used: the GitHub Action, the pre-commit hook, the pages that say how."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import ROOT, environment

from moesize.check.configuration import read_configuration
from moesize.renderers.check import FORMATS

ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS = {step["id"]: step for step in ACTION["runs"]["steps"]}
PAGE = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
BASH = shutil.which("bash") or "bash"

# 47 billion parameters in 16 bits, on a card of 24 GB.
TOO_LARGE = """\
apiVersion: v1
kind: Pod
metadata: {name: chat}
spec:
  nodeSelector: {cloud.google.com/gke-accelerator: nvidia-l4}
  containers:
    - name: vllm
      image: vllm/vllm-openai:v0.19.0
      args: [--model=mistralai/Mixtral-8x7B-Instruct-v0.1]
      resources: {limits: {nvidia.com/gpu: 1}}
"""
FITS = TOO_LARGE.replace(
    "mistralai/Mixtral-8x7B-Instruct-v0.1]", "Qwen/Qwen3-0.6B, --max-model-len=4096]"
)


# --- the action -----------------------------------------------------------------------------------


def test_scripts_take_nothing_from_expressions() -> None:
    """An input that is pasted into a script could run anything."""
    assert ACTION["runs"]["using"] == "composite"
    for step in STEPS.values():
        assert "${{" not in step["run"], step["id"]
        assert step["shell"] == "bash"


def test_every_input_reaches_a_step_and_every_output_comes_from_one() -> None:
    given = " ".join(value for step in STEPS.values() for value in step["env"].values())
    for name in ACTION["inputs"]:
        assert f"inputs.{name} }}}}" in given
        variable = "INPUT_" + name.upper().replace("-", "_")
        assert any(variable in step["run"] for step in STEPS.values())
    for name, output in ACTION["outputs"].items():
        assert output["value"] == f"${{{{ steps.check.outputs.{name} }}}}"
        assert f"{name}=" in STEPS["check"]["run"]


def test_every_input_and_output_is_described_and_documented() -> None:
    for name, value in [*ACTION["inputs"].items(), *ACTION["outputs"].items()]:
        assert value["description"]
        assert f"`{name}`" in PAGE


class Runner:
    """A step as GitHub's runner starts it: bash, a fresh environment, files for what it says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        self.temporary = folder / "temp dir"  # runners of people have blanks in their paths
        self.output = folder / "output"
        self.summary = folder / "summary"
        for path in (self.work, self.temporary):
            path.mkdir()

    def run(self, step: str, **variables: str) -> subprocess.CompletedProcess[str]:
        script = self.folder / f"{step}.sh"
        script.write_text(STEPS[step]["run"], encoding="utf-8")
        self.output.write_text("")
        self.summary.write_text("")
        given = dict.fromkeys(STEPS[step]["env"], "")
        known = {
            "GITHUB_ACTIONS": "true",
            "GITHUB_ACTION_PATH": str(ROOT),
            "GITHUB_OUTPUT": str(self.output),
            "GITHUB_STEP_SUMMARY": str(self.summary),
            "RUNNER_TEMP": str(self.temporary),
        }
        return subprocess.run(
            [BASH, "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.work,
            env=environment(**known, **{**given, **variables}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def check(self, **variables: str) -> subprocess.CompletedProcess[str]:
        """The second step, with this checkout in the place of an installation."""
        bin_ = self.folder / "bin"
        bin_.mkdir(exist_ok=True)
        for name, words in (("python", ""), ("moesize", "-m moesize ")):
            path = bin_ / name
            path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
            path.chmod(0o755)
        return self.run("check", MOESIZE_BIN=str(bin_), **variables)

    @property
    def said(self) -> dict[str, str]:
        lines = self.output.read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def test_the_action_reports_a_server_that_does_not_fit(runner: Runner) -> None:
    (runner.work / "pod.yaml").write_text(TOO_LARGE)
    result = runner.check(INPUT_PATHS=".")
    assert result.returncode == 1, result.stderr
    assert runner.said["exit-code"] == "1"
    assert "error[MS101]" in result.stdout
    assert re.search(r"^::error file=pod.yaml,line=9,col=\d+,", result.stdout, re.MULTILINE)
    report = json.loads(Path(runner.said["sarif"]).read_text(encoding="utf-8"))
    assert [r["ruleId"] for r in report["runs"][0]["results"]] == ["MS101"]
    comment = Path(runner.said["comment"]).read_text(encoding="utf-8")
    assert "### moesize check fails" in comment
    assert runner.summary.read_text(encoding="utf-8") == comment


def test_the_action_passes_where_all_fits(runner: Runner) -> None:
    (runner.work / "pod.yaml").write_text(FITS)
    result = runner.check(INPUT_PATHS="pod.yaml\n")
    assert result.returncode == 0, result.stdout + result.stderr
    assert runner.said["exit-code"] == "0"
    assert "### moesize check passes" in runner.summary.read_text(encoding="utf-8")


def test_inputs_become_options_and_nothing_else(runner: Runner) -> None:
    """Blanks, quotes and signs of a shell stay text; args are split as a shell would."""
    names = ["a b.yaml", "$(touch owned).yaml", "-x.yaml"]
    for name in names:
        (runner.work / name).write_text(TOO_LARGE)
    target = runner.folder / "out put.sarif"
    result = runner.check(
        INPUT_PATHS="a b.yaml\n$(touch owned).yaml\n\n-x.yaml",
        INPUT_GPU="h100",
        INPUT_FAIL_ON="never",
        INPUT_ARGS="--ignore 'MS1' --exclude='; touch owned' --set \"A=$(touch owned)\"",
        INPUT_SARIF_FILE=str(target),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 servers in 3 files" in result.stdout
    assert "MS101" not in result.stdout
    assert sorted(path.name for path in runner.work.iterdir()) == sorted(names)
    assert runner.said["sarif"] == str(target)
    assert json.loads(target.read_text(encoding="utf-8"))["version"] == "2.1.0"


def test_the_action_hands_on_what_is_no_verdict(runner: Runner) -> None:
    assert runner.check(INPUT_PATHS=".").returncode == 3
    assert runner.said["exit-code"] == "3"
    assert runner.check(INPUT_PATHS=".", INPUT_ARGS="--allow-empty").returncode == 0
    wrong = runner.check(INPUT_PATHS=".", INPUT_GPU="no such card")
    assert wrong.returncode == 2
    assert runner.said == {"exit-code": "2"}
    assert "no such card" in wrong.stderr


def fake_python(folder: Path, version: str) -> Path:
    """A python3 that notes what it is asked, and makes environments of itself."""
    folder.mkdir()
    log = folder / "log"
    script = folder / "python3"
    script.write_text(
        "#!/bin/sh\n"
        f'echo "$*" >> "{log}"\n'
        'if [ "$1" = -c ]; then\n'
        f'  exec "{sys.executable}" -c "import sys; sys.version_info = {version}; $2"\n'
        "fi\n"
        f'if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "{script}" "$3/bin/python"; fi\n'
    )
    script.chmod(0o755)
    return log


@pytest.mark.parametrize(
    ("version", "wanted"),
    [("", str(ROOT)), ("git+https://example.org/x@v1", "git+https://example.org/x@v1")],
)
def test_the_action_installs_its_own_checkout_or_what_is_asked(
    runner: Runner, version: str, wanted: str
) -> None:
    log = fake_python(runner.folder / "fake", "(3, 11)")
    result = runner.run(
        "install", INPUT_VERSION=version, PATH=f"{log.parent}{os.pathsep}{os.environ['PATH']}"
    )
    assert result.returncode == 0, result.stderr
    folder = runner.temporary / "moesize-venv"
    assert log.read_text().splitlines()[1:] == [
        f"-m venv {folder}",
        f"-m pip install --quiet --disable-pip-version-check {wanted}",
    ]
    assert runner.said == {"bin": f"{folder}/bin"}


@pytest.mark.parametrize(
    ("python", "version", "why"),
    [("(3, 10)", "", "Python 3.11"), ("(3, 12)", "--index-url=http://x", "a dash")],
)
def test_the_action_refuses_old_pythons_and_options_as_version(
    runner: Runner, python: str, version: str, why: str
) -> None:
    log = fake_python(runner.folder / "fake", python)
    result = runner.run(
        "install", INPUT_VERSION=version, PATH=f"{log.parent}{os.pathsep}{os.environ['PATH']}"
    )
    assert result.returncode == 2
    assert why in result.stdout
    assert "pip" not in log.read_text()


# --- pre-commit -----------------------------------------------------------------------------------

(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))


def test_the_hook_is_what_pre_commit_reads() -> None:
    assert HOOK["id"] == "moesize-check"
    assert HOOK["language"] == "python"
    assert HOOK["entry"].split() == ["moesize", "check", "--allow-empty"]
    assert HOOK["pass_filenames"] is True
    assert HOOK["require_serial"] is True


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("k8s/deploy.yaml", True),
        ("compose.YML", True),
        ("serve.sh", True),
        ("Dockerfile", True),
        ("docker/Dockerfile.gpu", True),
        ("Modelfile", True),
        ("vllm.service", True),
        ("main.py", False),
        ("README.md", False),
        ("dockerfile_parser.py/x.rs", False),
        ("a.yaml.bak", False),
    ],
)
def test_the_hook_takes_files_that_may_hold_a_server(name: str, wanted: bool) -> None:
    assert bool(re.search(HOOK["files"], name)) == wanted


def test_the_hook_takes_every_name_that_a_walk_takes() -> None:
    from moesize.check import discovery

    names = [f"x{suffix}" for suffix in discovery._SUFFIXES]
    names += [f"deploy/{name}" for name in discovery._BEGINNINGS]
    assert [name for name in names if not re.search(HOOK["files"], name)] == []


# --- the page -------------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_configuration_of_the_page_is_read(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    path = tmp_path / "moesize.toml"
    path.write_text(text, encoding="utf-8")
    read = read_configuration(path)
    tables: dict[str, Any] = tomllib.loads(text)
    assert read.gpu == "h100"
    assert read.gpu_by_path == tables["gpu"]["paths"]
    assert read.models == tables["models"]
    assert read.variables == {"TP": "4"}
    assert read.severities == {"MS105": "error"}


def test_the_workflows_of_the_page_are_yaml_and_use_what_there_is() -> None:
    parsed = [yaml.safe_load(text) for text in blocks("yaml")]
    (hooks,) = [one for one in parsed if "repos" in one]
    assert hooks["repos"][0]["hooks"][0]["id"] == HOOK["id"]
    (workflow,) = [one for one in parsed if "jobs" in one]
    steps = workflow["jobs"]["moesize"]["steps"]
    (own,) = [step for step in steps if step.get("id") == "moesize"]
    assert set(own["with"]) <= set(ACTION["inputs"])
    used = set(re.findall(r"steps\.moesize\.outputs\.([\w-]+)", str(workflow)))
    assert used
    assert used <= set(ACTION["outputs"])
    assert all("${{" not in step.get("run", "") for step in steps)
    (job,) = [one["moesize"] for one in parsed if "moesize" in one]
    assert "--report gitlab=" + job["artifacts"]["reports"]["codequality"] in job["script"][1]


def test_every_format_is_on_the_page() -> None:
    table = PAGE.split("| format | for |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(FORMATS)


def test_the_python_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "k8s").mkdir()
    (tmp_path / "k8s" / "pod.yaml").write_text(TOO_LARGE)
    (tmp_path / "compose.yaml").write_text("services: {}\n")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    exec(compile(code, "check.md", "exec"), {})
    first, finding = capsys.readouterr().out.splitlines()
    assert first == "True 1"
    assert finding.startswith("k8s/pod.yaml 9 MS101 ")
