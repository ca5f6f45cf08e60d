"""The pages of the rules are made from the list of rules, and say what the list says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from running import ROOT

from moesize.check.rules import RULES, Rule
from moesize.renderers.check.rules import (
    FAMILIES,
    family_of,
    fenced,
    rule_page,
    rule_text,
    rules_index,
    rules_list,
)

FOLDER = ROOT / "docs" / "rules"
EVERY = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)


def build_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_docs", ROOT / "scripts" / "build_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_a_page_for_each_rule_and_no_other() -> None:
    pages = {path.name for path in FOLDER.iterdir()}
    assert pages == {"README.md", *(f"{rule.id}.md" for rule in RULES)}


@EVERY
def test_the_page_of_a_rule_is_current(rule: Rule) -> None:
    text = (FOLDER / f"{rule.id}.md").read_text(encoding="utf-8")
    assert text == rule_page(rule), "run: python scripts/build_docs.py"


def test_the_index_is_current_and_leads_to_every_page() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert text == rules_index(RULES), "run: python scripts/build_docs.py"
    linked = re.findall(r"^\| \[(MS\d{3})\]\((MS\d{3})\.md\) \| `([\w-]+)` \|", text, re.MULTILINE)
    assert linked == [(rule.id, rule.id, rule.name) for rule in RULES]


def test_building_writes_what_is_missing_and_removes_what_is_of_no_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = build_docs()
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "pages", list)
    folder = tmp_path / "docs" / "rules"
    folder.mkdir(parents=True)
    (folder / "MS999.md").write_text("gone")
    monkeypatch.setattr("sys.argv", ["build_docs.py", "--check"])
    assert build.main() == 1
    assert [path.name for path in folder.iterdir()] == ["MS999.md"]
    monkeypatch.setattr("sys.argv", ["build_docs.py"])
    assert build.main() == 0
    assert {path.name for path in folder.iterdir()} == {path.name for path in FOLDER.iterdir()}
    monkeypatch.setattr("sys.argv", ["build_docs.py", "--check"])
    capsys.readouterr()
    assert build.main() == 0
    assert capsys.readouterr().out == ""


@EVERY
def test_a_page_says_what_why_and_how(rule: Rule) -> None:
    page = rule_page(rule)
    assert page.startswith(f"# {rule.id}: {rule.name}\n")
    assert f"Severity: {rule.severity}." in page
    assert ("`moesize check --fix`" in page) == rule.fixable
    assert rule.why in page
    assert f"# moesize: ignore[{rule.id}] " in page
    for example in (rule.bad, rule.good):
        assert not example or f"\n{example}\n```" in page
    assert page.count("```") % 2 == 0


@EVERY
def test_every_rule_has_a_family(rule: Rule) -> None:
    assert rule.id.startswith(family_of(rule).prefix)


def test_families_have_one_tag_each() -> None:
    assert len({family.tag for family in FAMILIES}) == len(FAMILIES)
    assert rules_index(RULES).count("\n## ") == len({rule.id[:3] for rule in RULES})


@EVERY
def test_the_text_for_a_terminal_fits_it(rule: Rule) -> None:
    text = rule_text(rule)
    assert text.startswith(f"{rule.id} {rule.name} ({rule.severity}")
    examples = {f"    {line}" for part in (rule.bad, rule.good) for line in part.split("\n")}
    prose = [line for line in text.splitlines() if line not in examples]
    assert max(map(len, prose)) <= 80
    assert " ".join(rule.why.split()) in " ".join(text.split())


def test_the_list_has_a_line_for_each_rule() -> None:
    lines = rules_list(RULES).splitlines()
    assert [line.split()[0] for line in lines] == [rule.id for rule in RULES]
    assert len({line.index(rule.summary) for line, rule in zip(lines, RULES, strict=True)}) == 1


def test_a_code_block_is_longer_than_the_fences_in_it() -> None:
    assert fenced("a") == "```text\na\n```"
    assert fenced("```` x", "yaml") == "`````yaml\n```` x\n`````"
