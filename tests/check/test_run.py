"""`check_files`: options, configuration, comments and baselines together, over several files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import moesize
from moesize.check import assess, run
from moesize.check.findings import CheckReport
from moesize.check.server import Reading
from moesize.core.errors import InvalidInputError, UnknownNameError

pytestmark = pytest.mark.usefixtures("stubs", "repository")
HUGE = "server: vllm\nflags: [--huge]\n"
FINE = "server: vllm\nflags: [--ok]\n"


def write(name: str, text: str) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def rules(report: CheckReport) -> dict[str, list[str]]:
    """Rules of the findings that count, by file."""
    return {file.path: [one.rule for one in file.counted] for file in report.files}


def silent(report: CheckReport) -> list[tuple[str, str]]:
    return [
        (one.rule, one.suppressed)
        for file in report.files
        for one in file.findings
        if one.suppressed is not None
    ]


# --- files ----------------------------------------------------------------------------------------


def test_every_file_is_checked_and_the_others_are_named() -> None:
    write("b/x.yaml", HUGE)
    write("a.yaml", FINE)
    write("note.yaml", "model: car\n")
    write("nginx.yaml", "image: nginx\n")
    write("c.md", HUGE)
    report = moesize.check_files(gpu="h100")
    assert rules(report) == {"a.yaml": [], "b/x.yaml": ["MS101"]}
    assert report.fails
    assert dict(report.ignored) == {
        "note.yaml": "no deployment format that is known",
        "nginx.yaml": "no word of a model server in it",
    }
    assert report.texts == {"b/x.yaml": HUGE}
    assert report.to_dict()["summary"]["files"] == 2


def test_paths_are_shown_from_here() -> None:
    write("deploy/x.yaml", HUGE)
    for paths in ("deploy", ["deploy/x.yaml"], str(Path("deploy").absolute()), Path("./deploy")):
        assert [file.path for file in moesize.check_files(paths).files] == ["deploy/x.yaml"]


def test_paths_outside_are_shown_whole(tmp_path: Path) -> None:
    write("../elsewhere/x.yaml", HUGE)
    report = moesize.check_files("../elsewhere")
    assert [file.path for file in report.files] == [(tmp_path / "elsewhere/x.yaml").as_posix()]


def test_a_file_with_trouble_stops_no_other() -> None:
    write("a.yaml", "server: vllm\nflags: [\n")
    write("b.yaml", "server: vllm\nboom: 1\n---\n" + HUGE)
    write("c.yaml", HUGE + "---\nserver: vllm\nboom_judge: 1\n")
    write("d.yaml", HUGE)
    Path("e.yaml").write_bytes(b"server: vllm \xff\n")
    report = moesize.check_files(gpu="h100")
    assert rules(report) == {
        "a.yaml": ["MS001"],
        "b.yaml": ["MS001", "MS101"],
        "c.yaml": ["MS001", "MS101"],
        "d.yaml": ["MS101"],
        "e.yaml": ["MS001"],
    }
    messages = [one.message for one in report.findings if one.rule == "MS001"]
    assert "AttributeError" in messages[1]
    assert "KeyError at check_stubs.py" in messages[2]
    assert messages[3] == "not a UTF-8 text (byte 13)"


def test_a_file_of_others_that_is_no_text_is_none_of_ours() -> None:
    Path("model.sh").write_bytes(b"echo model \xff\n")
    Path("vllm.sh").write_bytes(b"vllm serve \xff\n")
    for paths in (".", ["model.sh", "vllm.sh"]):
        report = moesize.check_files(paths)
        assert rules(report) == {"vllm.sh": ["MS001"]}
        assert [path for path, _ in report.ignored] == ["model.sh"]


def test_comments_of_a_file_that_cannot_be_read_are_not_idle() -> None:
    write("a.yaml", "server: vllm # moesize: ignore[MS101] known\nflags: [\n")
    assert rules(moesize.check_files(".")) == {"a.yaml": ["MS001"]}
    assert rules(moesize.check_files(".", select=["MS1"])) == {"a.yaml": ["MS001"]}
    text = "server: vllm # moesize: ignore-file[MS001] a draft\nflags: [\n"
    assert silent(moesize.check_files("-", stdin=text.encode())) == [("MS001", "a draft")]


def test_a_file_that_cannot_be_read_is_a_finding_if_it_was_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write("a.yaml", HUGE)

    def refuse(*_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(run, "read_candidate", refuse)
    report = moesize.check_files(".")
    assert (report.files, report.ignored) == (
        [], [("a.yaml", "cannot be read (Permission denied)")],
    )  # fmt: skip
    assert rules(moesize.check_files("a.yaml")) == {"a.yaml": ["MS001"]}


def test_a_file_that_is_too_large() -> None:
    """Hooks name every changed file, data too: it is passed over, and nothing else is found."""
    write("a.yaml", "server: vllm\n" * 400_000)
    for paths in (".", "a.yaml"):
        report = moesize.check_files(paths)
        assert (report.ignored, report.found_nothing) == ([("a.yaml", "larger than 4 MiB")], True)


def test_more_servers_than_any_file_has_are_not_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_MOST_SERVERS", 2)
    seen: list[str] = []
    judged = assess.judge_file

    def spy(readings: list[Reading], *rest: object) -> object:
        seen.extend(server.skipped for one in readings for server in one.servers)
        return judged(readings, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(assess, "judge_file", spy)
    write("a.yaml", "---\n".join([FINE] * 3))
    moesize.check_files(".")
    assert seen == ["", "", "more than 2 servers in one file"]


def test_an_empty_folder_is_nothing_to_check() -> None:
    assert moesize.check_files(".").found_nothing
    assert not moesize.check_files(".", allow_empty=True).found_nothing
    write("moesize.toml", "[check]\nallow-empty = true\n")
    assert not moesize.check_files(".").found_nothing


def test_progress_is_told() -> None:
    for name in "abc":
        write(f"{name}.yaml", FINE)
    steps: list[tuple[int, int]] = []
    moesize.check_files(".", progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_what_is_not_there_is_an_error() -> None:
    with pytest.raises(InvalidInputError, match="nowhere: no such file or folder"):
        moesize.check_files("nowhere")


# --- rules ----------------------------------------------------------------------------------------


def test_rules_are_chosen() -> None:
    write("a.yaml", "server: vllm\nflags: [--huge, --close]\n")
    assert rules(moesize.check_files(".")) == {"a.yaml": ["MS501", "MS101", "MS104"]}
    assert rules(moesize.check_files(".", select=["MS1"], ignore=["MS104"])) == {
        "a.yaml": ["MS101"]
    }
    with pytest.raises(UnknownNameError):
        moesize.check_files(".", select=["MS9"])


def test_what_fails() -> None:
    write("a.yaml", "server: vllm\nflags: [--close]\n")
    assert not moesize.check_files(".").fails
    assert moesize.check_files(".", fail_on="warning").fails
    assert moesize.check_files(".", strict=True).fails
    assert not moesize.check_files(".", strict=True, fail_on="never").fails
    write("moesize.toml", "[check]\nfail-on = 'warning'\n")
    assert moesize.check_files(".").fails
    assert not moesize.check_files(".", fail_on="error").fails
    assert not moesize.check_files(".", use_config=False).fails


def test_the_configuration_counts() -> None:
    write("old/a.yaml", HUGE)
    write("tests/a.yaml", HUGE)
    write("prod/a.yaml", HUGE)
    write(
        "moesize.toml",
        "[check]\nexclude = ['old']\n[check.per-file-ignores]\n'tests/**' = ['MS1']\n"
        "[check.severity]\nMS101 = 'warning'\n[gpu]\ndefault = 'l4'\n"
        "[gpu.paths]\n'prod/**' = 'h100'\n",
    )
    report = moesize.check_files(".")
    assert rules(report) == {"prod/a.yaml": ["MS101"], "tests/a.yaml": []}
    assert [file.servers[0].gpu for file in report.files] == ["h100", "l4"]
    assert not report.fails
    # Globs are relative to the configuration, wherever the check is started.
    os.chdir("prod")
    assert moesize.check_files(".").files[0].servers[0].gpu == "h100"


def test_an_option_goes_before_the_configuration() -> None:
    write("prod/a.yaml", FINE)
    write("moesize.toml", "[gpu.paths]\n'prod/**' = 'h100'\n")
    assert moesize.check_files(".", gpu="l4").files[0].servers[0].gpu == "l4"


def test_another_configuration() -> None:
    write("a.yaml", FINE)
    write("moesize.toml", "[gpu]\ndefault = 'h100'\n")
    write("ci/other.toml", "[gpu]\ndefault = 'l4'\n")
    assert moesize.check_files(".", config="ci/other.toml").files[0].servers[0].gpu == "l4"
    assert moesize.check_files(".", use_config=False).files[0].servers[0].gpu is None


def test_a_gpu_that_is_none_is_an_error_at_once() -> None:
    with pytest.raises(UnknownNameError):
        moesize.check_files(".", gpu="h1000")


def test_variables_of_options_go_before_those_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    write("a.yaml", FINE)
    write("moesize.toml", "[set]\nA = 1\nB = 1\nC = 1\n")
    write(".env.ci", "B=2\nC=2\n")
    seen = {}
    read = run.read_file

    def spy(source: object, context: object) -> object:
        seen.update(context.variables)  # type: ignore[attr-defined]
        return read(source, context)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "read_file", spy)
    moesize.check_files(".", set=["C=3"], env_file=".env.ci")
    assert seen == {"A": "1", "B": "2", "C": "3"}
    moesize.check_files(".", set={"A": 4})  # type: ignore[dict-item]
    assert seen["A"] == "4"


# --- comments and baselines -----------------------------------------------------------------------


def test_comments_silence_and_idle_ones_are_said() -> None:
    write(
        "a.yaml",
        "server: vllm\nflags:\n- --huge  # moesize: ignore[MS101] known\n"
        "- --ok  # moesize: ignore[MS102] old\n",
    )
    report = moesize.check_files(".", gpu="h100")
    assert rules(report) == {"a.yaml": ["MS004"]}
    assert silent(report) == [("MS101", "known")]
    assert rules(moesize.check_files(".", gpu="h100", select=["MS1"])) == {"a.yaml": []}


def test_a_comment_names_gpu_and_model() -> None:
    write("a.yaml", "# moesize: gpu=l4 model=org/m\nserver: vllm\n---\nserver: b\n")
    servers = moesize.check_files(".", gpu="h100").files[0].servers
    assert [(one.gpu, one.model) for one in servers] == [("l4", "org/m"), ("l4", "org/m")]


def test_labels_of_the_configuration_name_the_gpu() -> None:
    write("a.yaml", "server: vllm\nnodeSelector: {pool: a}\n")
    write("moesize.toml", "[gpu]\ndefault = 'l4'\n[gpu.labels]\n'pool=a' = 'h100'\n")
    assert moesize.check_files(".").files[0].servers[0].gpu == "h100"


def test_a_baseline() -> None:
    from moesize.check.baseline import write_baseline

    write("a.yaml", HUGE)
    write_baseline(Path("known.json"), moesize.check_files(".", gpu="h100").files)
    write("a.yaml", "# moved\n" + HUGE)
    write("b.yaml", HUGE)
    report = moesize.check_files(".", gpu="h100", baseline="known.json")
    assert rules(report) == {"a.yaml": [], "b.yaml": ["MS101"]}
    assert (silent(report), report.stale) == ([("MS101", "baseline")], 0)
    write("moesize.toml", "[check]\nbaseline = 'known.json'\n")
    write("a.yaml", FINE)
    report = moesize.check_files(".", gpu="h100")
    assert report.stale == report.summary()["baseline_stale"] == 1
    assert moesize.check_files(".", gpu="h100", use_baseline=False).stale == 0
    Path("known.json").write_text(json.dumps({}), encoding="utf-8")
    with pytest.raises(InvalidInputError, match="is no baseline"):
        moesize.check_files(".")


# --- pipes ----------------------------------------------------------------------------------------


def test_a_pipe() -> None:
    report = moesize.check_files("-", stdin=b"\xef\xbb\xbf" + HUGE.encode(), gpu="h100")
    assert rules(report) == {"<stdin>": ["MS101"]}
    assert report.texts == {"<stdin>": HUGE}
    report = moesize.check_files("-", stdin=HUGE.encode(), stdin_filename="prod/x.yaml")
    assert rules(report) == {"prod/x.yaml": ["MS501", "MS101"]}
    assert rules(moesize.check_files("-", stdin=b"\xff")) == {"<stdin>": ["MS001"]}
    assert moesize.check_files("-", stdin=b"").found_nothing
    with pytest.raises(InvalidInputError, match="together with other paths"):
        moesize.check_files(["-", "."])


def test_a_pipe_takes_the_configuration_of_its_name() -> None:
    write("moesize.toml", "[gpu]\ndefault = 'h100'\n")
    write("prod/moesize.toml", "[gpu]\ndefault = 'l4'\n")
    for name, gpu in ((None, "h100"), ("x.yaml", "h100"), ("prod/x.yaml", "l4")):
        report = moesize.check_files("-", stdin=FINE.encode(), stdin_filename=name)
        assert report.files[0].servers[0].gpu == gpu
