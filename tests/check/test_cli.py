"""`moesize check` as people and programs start it: options, outputs, exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import ROOT, Result, call, environment, run

from moesize import cli_check
from moesize.check.configuration import FAIL_ON
from moesize.check.rules import RULES
from moesize.renderers import table
from moesize.renderers.check import FORMATS

HUGE = "server: vllm\nflags: [--huge]\n"
FINE = "server: vllm\nflags: [--ok]\n"
LONG = "server: vllm\nflags: [--ctx=9]\n"
LONGER = "server: vllm\nflags: [--ctx=4]\n"


@pytest.fixture
def here(repository: Path, monkeypatch: pytest.MonkeyPatch, stubs: None) -> Path:
    """An empty repository to stand in, with the stub format and judge."""
    for name in ("GITHUB_ACTIONS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return repository


def pipe(monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))


def check(*arguments: str) -> Result:
    return call("check", *arguments)


# --- the answer -----------------------------------------------------------------------------------


def test_exit_codes(here: Path) -> None:
    path = here / "a.yaml"
    path.write_text(FINE, encoding="utf-8")
    assert check("--gpu", "h100").code == 0
    assert check().code == 0  # nobody says which GPU: a warning
    assert check("--strict").code == 1
    assert check("--fail-on", "warning").code == 1
    path.write_text(HUGE, encoding="utf-8")
    assert check().code == 1
    assert check("--fail-on", "never").code == 0
    assert check("--ignore", "MS101,gpu-unknown").code == 0
    assert check("--ignore", "MS5", "--ignore", "MS1").code == 0
    assert check("--select", "MS5").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "kind", "said"),
    [
        (("nowhere",), 2, "invalid_input", "nowhere: no such file or folder"),
        (("--gpu", "h1000"), 2, "unknown_name", "h100"),
        (("--select", "MS9"), 2, "unknown_name", "--list-rules"),
        (("--explain", "MS9"), 2, "unknown_name", "unknown rule"),
        (("--config", "nowhere.toml"), 2, "invalid_input", "nowhere.toml: no such file"),
        (("--baseline", "nowhere.json"), 2, "invalid_input", "nowhere.json: no such file"),
        (("--env-file", "nowhere"), 2, "invalid_input", "nowhere: no such file"),
        (("--set", "A"), 2, "invalid_input", "NAME=VALUE"),
        (("--report", "sarif"), 2, "usage", "FORMAT=FILE"),
        (("--report", "pdf=x"), 2, "usage", "FORMAT=FILE"),
        (("--fail-on", "fatal"), 2, "usage", "fatal"),
        (("--gpuz", "h100"), 2, "usage", "--gpu"),
        ((".",), 3, "cannot_answer", "nothing to check"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_errors(here: Path, arguments: tuple[str, ...], code: int, kind: str, said: str) -> None:
    result = check(*arguments)
    assert (result.code, result.out) == (code, "")
    assert said in result.err
    assert result.err.startswith("error: ")
    result = check(*arguments, "--format", "json")
    assert result.code == code
    assert result.json()["error"]["kind"] == kind


def test_a_configuration_that_is_wrong(here: Path) -> None:
    (here / "moesize.toml").write_text("[check]\nselct = 1\n", encoding="utf-8")
    (here / "a.yaml").write_text(FINE, encoding="utf-8")
    result = check()
    assert result.code == 2
    assert "moesize.toml:2: check.selct: no such key" in result.err
    assert "did you mean select?" in result.err
    assert check("--no-config").code == 0


def test_nothing_to_check(here: Path) -> None:
    (here / "nginx.yaml").write_text("image: nginx\n", encoding="utf-8")
    result = check(".")
    assert (result.code, result.out) == (3, "")
    assert "nothing that deploys a model in 1 file" in result.err
    assert check("nginx.yaml").code == 3
    assert check("nginx.yaml", "--allow-empty").code == 0
    assert "nginx.yaml" in check("--verbose").out
    # Steps that upload what programs read still find it.
    result = check("--format", "sarif")
    assert result.code == 3
    assert json.loads(result.out)["runs"][0]["results"] == []
    assert check("--report", "junit=x.xml").code == 3
    assert "<testsuites" in (here / "x.xml").read_text(encoding="utf-8")


# --- outputs --------------------------------------------------------------------------------------


def test_names_are_those_of_the_renderers() -> None:
    assert cli_check.FORMATS == FORMATS
    assert cli_check.FAIL_ON == FAIL_ON


@pytest.mark.parametrize("form", FORMATS)
def test_every_format(here: Path, form: str) -> None:
    (here / "a.yaml").write_text(HUGE, encoding="utf-8")
    result = check("--format", form, "--gpu", "h100")
    assert (result.code, result.err) == (1, "")
    assert "MS101" in result.out
    assert result.out.endswith("\n")
    if form in ("json", "sarif", "gitlab"):
        json.loads(result.out)
    check("--format", form, "--gpu", "h100", "--output-file", "out")
    assert (here / "out").read_text(encoding="utf-8") == result.out


def test_json_is_the_document_of_the_interface(here: Path) -> None:
    (here / "a.yaml").write_text(HUGE, encoding="utf-8")
    document = check("--format", "json", "--gpu", "h100").json()
    assert document["schema"] == "moesize.check/1"
    (file,) = document["files"]
    assert (file["path"], file["kind"]) == ("a.yaml", "stub")
    assert file["servers"][0]["gpu"] == "h100"
    finding = file["findings"][0]
    assert (finding["rule"], finding["line"], finding["column"]) == ("MS101", 2, 9)
    assert document["summary"]["errors"] == 1


def test_several_reports_at_once(here: Path) -> None:
    (here / "a.yaml").write_text(HUGE, encoding="utf-8")
    result = check(
        "-f", "concise", "--report", "sarif=r.sarif", "--report", "json=r.json", "-o", "log"
    )
    assert (result.code, result.out) == (1, "")
    assert "a.yaml:2:9" in (here / "log").read_text(encoding="utf-8")
    for name in ("r.sarif", "r.json"):
        assert "MS101" in json.dumps(json.loads((here / name).read_text(encoding="utf-8")))


def test_a_report_that_cannot_be_written(here: Path) -> None:
    (here / "a.yaml").write_text(FINE, encoding="utf-8")
    result = check("-o", "no/folder.txt")
    assert result.code == 2
    assert "no/folder.txt: cannot be written" in result.err


def test_in_github_actions_annotations_follow_the_text(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "a.yaml").write_text(HUGE, encoding="utf-8")
    plain = check().out
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert check().out.startswith(plain)
    assert "::error file=a.yaml,line=2" in check().out
    assert "::error" not in check("--format", "human").out


def test_quiet_is_one_line_and_verbose_names_what_was_passed_over(here: Path) -> None:
    (here / "a.yaml").write_text(HUGE, encoding="utf-8")
    (here / "nginx.yaml").write_text("image: nginx\n", encoding="utf-8")
    assert check("--quiet").out.count("\n") == 1
    assert "nginx.yaml" not in check().out
    assert "nginx.yaml" in check("--verbose").out


def test_rules_are_listed_and_explained() -> None:
    listed = check("--list-rules")
    assert listed.code == 0
    assert all(rule.id in listed.out and rule.name in listed.out for rule in RULES)
    document = check("--list-rules", "--format", "json").json()
    assert [row["id"] for row in document["rules"]] == [rule.id for rule in RULES]
    for name in ("MS102", "ms102", "kv-cache-below-one-request"):
        explained = check("--explain", name)
        assert explained.code == 0
        assert explained.out.startswith("MS102 kv-cache-below-one-request")


class Terminal(io.StringIO):
    """A stderr that somebody looks at."""

    def isatty(self) -> bool:
        return True


def test_a_bar_is_shown_for_checks_that_take_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []

    @contextlib.contextmanager
    def counting(total: int, what: str) -> Iterator[Callable[[], None]]:
        moved.append(f"{total} {what}")
        yield lambda: moved.append("on")

    def steps() -> list[str]:
        moved.clear()
        with cli_check._Bar() as bar:
            bar.step(2, 3)
            bar.step(3, 3)
        return list(moved)

    monkeypatch.setattr(table, "counting", counting)
    monkeypatch.setattr(cli_check, "_BAR_AFTER_S", 0)
    assert steps() == []  # no terminal
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert steps() == ["3 files", "on", "on", "on"]
    monkeypatch.setattr(cli_check, "_BAR_AFTER_S", 60)
    assert steps() == []


# --- baselines and fixes --------------------------------------------------------------------------


def test_a_baseline_is_written_and_used(here: Path) -> None:
    (here / "a.yaml").write_text(HUGE, encoding="utf-8")
    result = check("--write-baseline", "known.json")
    assert (result.code, result.err) == (0, "note: wrote 2 findings to known.json\n")
    assert check("--baseline", "known.json").code == 0
    (here / "b.yaml").write_text(HUGE, encoding="utf-8")
    assert check("--baseline", "known.json").code == 1
    (here / "a.yaml").write_text(FINE, encoding="utf-8")
    assert "1 entry of the baseline" in check("--baseline", "known.json").err
    # Writing it anew starts from nothing, whatever the configuration says.
    (here / "moesize.toml").write_text("[check]\nbaseline = 'known.json'\n", encoding="utf-8")
    assert "wrote 3 findings" in check("--write-baseline", "known.json").err


def test_fixes_are_made_and_what_remains_is_told(here: Path) -> None:
    path = here / "a.yaml"
    path.write_text(LONG + "---\nserver: b\n", encoding="utf-8")
    (here / "b.yaml").write_text(HUGE, encoding="utf-8")
    result = check("--fix", "--gpu", "h100")
    assert path.read_text(encoding="utf-8") == LONGER + "---\nserver: b\n"
    assert result.err == "note: fixed 1 finding in 1 file\n"
    assert result.code == 1
    assert "MS102" not in result.out
    assert "MS101" in result.out
    (here / "b.yaml").unlink()
    assert check("--fix", "--gpu", "h100").code == 0


def test_a_diff_changes_nothing(here: Path) -> None:
    path = here / "a.yaml"
    path.write_text(LONG, encoding="utf-8")
    for arguments in (("--diff",), ("--diff", "--fix")):
        result = check(*arguments, "--gpu", "h100")
        assert result.code == 1
        assert result.out.splitlines() == [
            "--- a/a.yaml", "+++ b/a.yaml", "@@ -1,2 +1,2 @@", " server: vllm",
            "-flags: [--ctx=9]", "+flags: [--ctx=4]",
        ]  # fmt: skip
        assert "MS102" in result.err
        assert path.read_text(encoding="utf-8") == LONG
    patched = subprocess.run(
        ["git", "apply"], input=result.out, text=True, cwd=here, check=False, capture_output=True
    )
    assert patched.returncode == 0, patched.stderr
    assert path.read_text(encoding="utf-8") == LONGER


def test_a_pipe(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, HUGE.encode())
    result = check("-", "--stdin-filename", "prod/x.yaml", "-f", "concise")
    assert result.code == 1
    assert result.out.startswith("prod/x.yaml:")
    pipe(monkeypatch, b"")
    assert check("-").code == 3


def test_a_pipe_is_fixed_to_stdout(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, b"\xef\xbb\xbf" + LONG.replace("\n", "\r\n").encode())
    result = check("-", "--fix", "--gpu", "h100")
    assert result.code == 0
    assert result.out == "\ufeff" + LONGER.replace("\n", "\r\n")
    pipe(monkeypatch, HUGE.encode())
    result = check("-", "--fix")
    assert (result.code, result.out) == (1, HUGE)
    assert "MS101" in result.err


# --- the real thing -------------------------------------------------------------------------------

DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: mixtral}
spec:
  selector: {matchLabels: {app: mixtral}}
  template:
    metadata: {labels: {app: mixtral}}
    spec:
      nodeSelector:
        cloud.google.com/gke-accelerator: nvidia-l4
      containers:
        - name: server
          image: vllm/vllm-openai:v0.11.0
          args: [--model=mistralai/Mixtral-8x7B-Instruct-v0.1]
          resources: {limits: {nvidia.com/gpu: 1}}
"""


def test_a_deployment_that_does_not_fit(tmp_path: Path) -> None:
    """46.7 B parameters at 16 bits are 93.4 GB; an L4 has 24."""
    (tmp_path / "mixtral.yaml").write_text(DEPLOYMENT, encoding="utf-8")
    result = run("check", str(tmp_path), "--format", "json", "--no-config")
    assert result.code == 1
    (file,) = result.json()["files"]
    assert file["kind"] == "k8s_deployment"
    assert (file["servers"][0]["fits"], file["servers"][0]["gpu"]) == (False, "l4")
    assert "MS101" in [finding["rule"] for finding in file["findings"]]


def test_a_plan_loads_nothing_of_the_check() -> None:
    code = (
        "import sys; from moesize.__main__ import main; "
        "main(['plan', 'mixtral-8x7b', '--gpu', 'h100', '--quiet']); "
        "print(*[name for name in sys.modules if name.startswith('moesize.check')])"
    )
    assert run(command=("-c", code)).out.splitlines()[-1] == ""


def test_a_check_that_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moesize.check import run as module

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "a.yaml").write_text(DEPLOYMENT, encoding="utf-8")
    monkeypatch.setattr(module, "read_file", interrupted)
    assert call("check", str(tmp_path)).code == 130


def test_a_reader_that_leaves_early_changes_no_exit_code(tmp_path: Path) -> None:
    (tmp_path / "mixtral.yaml").write_text(DEPLOYMENT, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "moesize", "check", str(tmp_path), "--no-config"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        cwd=ROOT,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, b"")
