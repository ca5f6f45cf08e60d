"""What the pages say is true: commands run, generated parts are current, links lead somewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType

import click
import pytest
from gguf_headers import header, write_with_package
from running import ROOT, call

from moesize.cli import main
from moesize.schemas import document_names

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# The fields of https://huggingface.co/mistralai/Mistral-7B-v0.3 that sizes depend on.
CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32768,
}


def build_docs() -> ModuleType:
    path = ROOT / "scripts" / "build_docs.py"
    spec = importlib.util.spec_from_file_location("build_docs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_generated_parts_are_current(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert build_docs().filled(text) == text, "run: python scripts/build_docs.py"


def test_every_generated_part_stands_somewhere() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert set(re.findall(r"<!-- generated: ([\w-]+) -->", text)) == set(build_docs().BLOCKS)


def test_every_command_and_option_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
    for name, command in main.commands.items():
        section = sections[f"moesize {name}"]
        for param in command.get_params(click.Context(command)):
            if param.param_type_name == "option":
                assert any(option in section for option in param.opts), (name, param.opts)
                assert getattr(param, "help", ""), (name, param.opts)


def test_every_document_is_documented() -> None:
    text = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in document_names())


def test_readme_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `moesize ...` line of the shell blocks, in order, beside the files that they name."""
    write_with_package(header("qwen3_moe"), tmp_path / "model.gguf")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    lines = [line for block in code_blocks(README, "sh") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("moesize ")]
    assert len(commands) >= 5
    for words in commands:
        if "org/name" in words:
            continue  # a placeholder for a hub id
        result = call(*words)
        assert result.code in (0, 1), (words, result.err)
        assert result.err == "" or result.err.startswith("wrote ")


def test_readme_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = code_blocks(README, "python")
    assert len(code.strip().splitlines()) == 5
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("True ")


def test_continuous_integration_runs_what_the_readme_says() -> None:
    lines = [line for block in code_blocks(README, "sh") for line in block.splitlines()]
    (check,) = [line for line in lines if line.endswith("scripts/check.py")]
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert check in script.read_text(encoding="utf-8").splitlines()
    install = check.split(" && ")[1].replace(".venv/bin", "$(BIN)")
    assert f"\t{install}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_readme_names_every_exit_code() -> None:
    table = README.split("| exit code |")[1].split("\n\n")[0]
    assert re.findall(r"^\| (\d+) \|", table, re.MULTILINE) == ["0", "1", "2", "3", "130"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    for name in re.findall(r"`((?:moesize|tests|scripts|docs|model_specs)/[\w./-]+)`", text):
        assert (ROOT / name).exists() or name == "model_specs/name.yaml", name


def test_contributing_has_a_page_for_each_thing_to_add() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## An? (.+)$", text, re.MULTILINE)
    assert headings == [
        "model",
        "GPU",
        "quantization format",
        "attention kind",
        "engine",
        "engine version",
        "flag",
        "field report",
        "measurement",
        "deployment format",
        "rule of `moesize check`",
        "config family",
        "GGUF architecture",
        "file format",
    ]


def test_constraints_hold_a_version_of_everything_that_is_required() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][\w.]*", pin) for pin in pins)
    pinned = {_normal(pin.partition("==")[0]) for pin in pins}
    assert {_normal(re.split("[<>=~!]", name)[0]) for name in wanted} <= pinned


def _normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def test_changelog_keeps_its_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert sections[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d{2}-\d{2}", name) for name in sections[1:])
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
