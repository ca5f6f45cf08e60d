"""moesize.toml and pyproject.toml: where they are found, what they say, what is wrong in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from moesize.check.configuration import (
    Configuration,
    Settings,
    active_rules,
    find_configuration,
    line_of_key,
    parse_variables,
    read_configuration,
    read_env_file,
)
from moesize.check.rules import RULES
from moesize.core.errors import InvalidInputError, UnknownNameError

WHOLE = """
[check]
select = ["MS1", "gpu-unknown"]
ignore = ["MS104"]
fail-on = "warning"
strict = true
allow-empty = true
exclude = ["old/"]
include = "*.tmpl"
headroom = 0.1
concurrency = 8
baseline = "known.json"
online = true
[check.per-file-ignores]
"tests/**" = ["MS5"]
[check.severity]
MS105 = "error"
[gpu]
default = "h100"
count = 2
[gpu.names]
"big-one" = "h200"
[gpu.paths]
"clusters/a/**" = "a100-80gb"
[gpu.labels]
"pool=a" = "l4"
[models]
"/mnt/models" = "mixtral-8x7b"
[set]
TP = 4
NAME = "x"
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_every_key(tmp_path: Path) -> None:
    found = read_configuration(write(tmp_path / "moesize.toml", WHOLE))
    assert found == Configuration(
        file=str(tmp_path / "moesize.toml"),
        folder=tmp_path,
        select=[rule.id for rule in RULES if rule.id[:3] == "MS1"] + ["MS501"],
        ignore=["MS104"],
        fail_on="warning",
        strict=True,
        allow_empty=True,
        exclude=["old/"],
        include=["*.tmpl"],
        headroom=0.1,
        concurrency=8,
        baseline=tmp_path / "known.json",
        online=True,
        per_file_ignores={"tests/**": ["MS501", "MS502"]},
        severities={"MS105": "error"},
        gpu="h100",
        gpus=2,
        gpu_names={"big-one": "h200"},
        gpu_by_path={"clusters/a/**": "a100-80gb"},
        gpu_labels={"pool=a": "l4"},
        models={"/mnt/models": "mixtral-8x7b"},
        variables={"TP": "4", "NAME": "x"},
    )
    assert found.ignored_rules("tests/x.yaml") == {"MS501", "MS502"}
    assert found.ignored_rules("x.yaml") == set()


def test_pyproject_says_the_same_below_tool_moesize(tmp_path: Path) -> None:
    text = "[project]\nname = 'x'\n[tool.moesize.gpu]\ndefault = 'l4'\n"
    assert read_configuration(write(tmp_path / "pyproject.toml", text)).gpu == "l4"


def test_the_nearest_one_up_to_the_repository_counts(tmp_path: Path) -> None:
    write(tmp_path / "moesize.toml", "[gpu]\ndefault = 't4'\n")  # above the repository
    repository = tmp_path / "repository"
    (repository / ".git").mkdir(parents=True)
    write(repository / "a/b/x.yaml", "")
    assert find_configuration(repository / "a/b").gpu is None
    write(repository / "pyproject.toml", "[tool.moesize.gpu]\ndefault = 'l4'\n")
    assert find_configuration(repository / "a/b/x.yaml").gpu == "l4"
    write(repository / ".moesize.toml", "[gpu]\ndefault = 'h100'\n")
    assert find_configuration(repository / "a/b").gpu == "h100"
    write(repository / "a/moesize.toml", "[gpu]\ndefault = 'h200'\n")
    assert find_configuration(repository / "a/b").gpu == "h200"


def test_a_pyproject_of_others_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    write(tmp_path / "a/pyproject.toml", "not TOML at all, but it says moesize")
    write(tmp_path / "b/pyproject.toml", "[tool.other]\nmoesize = true\n")
    write(tmp_path / "moesize.toml", "[gpu]\ndefault = 'h100'\n")
    assert find_configuration(tmp_path / "a").gpu == "h100"
    assert find_configuration(tmp_path / "b").gpu == "h100"


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("[check]\nselct = []\n", ":2: check.selct: no such key", "select"),
        ("\n[chek]\n", ":2: chek: no such key", "check"),
        ("[check]\nstrict = 1\n", ":2: check.strict: is to be true or false", ""),
        ("[check]\nheadroom = 5\n", ":2: check.headroom: is to be a share", ""),
        ("[check]\nconcurrency = true\n", ":2: check.concurrency: is to be a whole number", ""),
        ("[check]\nfail-on = 'no'\n", ":2: check.fail-on: is to be one of error,", ""),
        ("[check]\nfail-on = []\n", ":2: check.fail-on: is to be one of error,", ""),
        ("[check]\n\nignore = ['MS999']\n", ":3: check.ignore: unknown rule 'MS999'", "MS"),
        ("[check]\nexclude = [1]\n", ":2: check.exclude: is to be a list of texts", ""),
        ("[check.severity]\nMS101 = 'off'\n", ":2: check.severity.MS101: is to be", "ignore"),
        ("[check.severity]\nMS1 = 'info'\n", ":2: check.severity.MS1: unknown rule", ""),
        ("check = 1\n", ":1: check: is to be a table", ""),
        ("[gpu]\ndefault = 'h1000'\n", ":2: gpu.default: unknown GPU 'h1000'", "h100"),
        ("[gpu.names]\n'x.y' = 'zzz'\n", ":2: gpu.names.x.y: unknown GPU", ""),
        ("[gpu]\nnames = 3\n", ":2: gpu.names: is to be a table", ""),
        ("[models]\na = 1\n", ":2: models.a: is to be a text", ""),
        ("[set]\na = []\n", ":2: set.a: is to be a text or a number", ""),
        ("[check\n", ": not valid TOML", ""),
        ("a = " + "[" * 5000, ": not valid TOML", ""),
    ],
)
def test_what_is_wrong_is_named_with_its_line(
    tmp_path: Path, text: str, said: str, hint: str
) -> None:
    path = write(tmp_path / "moesize.toml", text)
    with pytest.raises(InvalidInputError) as caught:
        read_configuration(path)
    assert caught.value.message.startswith(f"{path}{said}")
    assert hint in caught.value.hint


def test_pyproject_names_the_whole_key(tmp_path: Path) -> None:
    path = write(tmp_path / "pyproject.toml", "[tool.moesize.check]\n\nonline = 'yes'\n")
    with pytest.raises(InvalidInputError, match=r":3: tool\.moesize\.check\.online: is to be true"):
        read_configuration(path)


def test_an_empty_configuration_is_one(tmp_path: Path) -> None:
    path = write(tmp_path / "moesize.toml", "\n")
    assert read_configuration(path) == Configuration(file=str(path), folder=tmp_path)


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no such file"):
        read_configuration(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("key", "line"), [("a.b", 2), ("a.c", 1), ("x", 0), ("q.r.s", 3), ("q.r s.t", 4)]
)
def test_lines_of_keys(key: str, line: int) -> None:
    text = "[a]\nb = 1\n[q.r]\n[q.'r s']\n# x = 1\n"
    assert line_of_key(text, key) == line


def test_rules_that_are_looked_for() -> None:
    everything = {rule.id for rule in RULES}
    assert active_rules(None, []) == everything
    assert active_rules(None, ["MS1"]) == {rule for rule in everything if rule[:3] != "MS1"}
    assert active_rules(["weights-do-not-fit", "MS5"], ["MS502"]) == {
        "MS001",
        "MS101",
        "MS501",
    }
    assert active_rules(["MS1"], ["MS0", "MS1"]) == set()
    with pytest.raises(UnknownNameError):
        active_rules(["MS9"], [])


def test_the_gpu_of_a_path() -> None:
    settings = Settings(gpu="h100", gpu_by_path=(("prod/**", "h200"), ("*.yaml", "l4")))
    assert settings.gpu_for("prod/a/x.yaml") == "h200"
    assert settings.gpu_for("x.yaml") == "l4"
    assert settings.gpu_for("x.sh") == "h100"
    assert settings.for_file("prod/x").gpu_for("anything") == "h200"


def test_variables() -> None:
    assert parse_variables(["A=1", "B=x=y", "C="]) == {"A": "1", "B": "x=y", "C": ""}
    for wrong in ("A", "=1"):
        with pytest.raises(InvalidInputError, match="NAME=VALUE"):
            parse_variables([wrong])


def test_an_env_file(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text(
        "# comment\n\nA=1\nexport B='x y'\nC=\"z\" \nD=a # note\nE=\n", encoding="utf-8"
    )
    assert read_env_file(path) == {"A": "1", "B": "x y", "C": "z", "D": "a", "E": ""}
    path.write_text("A=1\nnot a line\n", encoding="utf-8")
    with pytest.raises(InvalidInputError, match=":2: is to be NAME=VALUE"):
        read_env_file(path)
