"""How a text finds its reader, and what becomes of texts and readers with something wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from moesize.check import formats
from moesize.check.folder import Folder, Library
from moesize.check.formats import Context, FileReading, Format, TextFormat, read_file
from moesize.check.server import Reading, Server
from moesize.check.source import SourceFile, SourceText
from moesize.check.yaml_tree import Node


def kinds_of(found: FileReading) -> list[str]:
    return [one.kind for one in found.readings]


def read(text: str, path: str = "x.yaml") -> FileReading:
    folder = Folder(Path("/nowhere"), Path("/nowhere"), Library(Path("/nowhere")))
    return read_file(
        SourceText.of_file(SourceFile(path, text)), Context(path=path, folder=folder)
    )  # fmt: skip


def _reader(kind: str) -> Format:
    def read_one(document: Node, context: Context) -> Reading:
        name = document.get("name").word
        return Reading(
            kind=f"{kind} of {len(context.documents)}", servers=[Server(name=name, place=name)]
        )

    return Format(kind, lambda document: bool(document.get(kind)), read_one)


def _fails(*_: object) -> Reading:
    raise TypeError("a bug")


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    yaml = (
        _reader("one"),
        _reader("two"),
        Format("bad", lambda document: bool(document.get("bad")), _fails),
        Format("worse", lambda document: bool(document.get("worse")) and _fails(), _fails),
    )
    text = (
        TextFormat(
            "shell",
            lambda path, text: path.endswith(".sh") and "serve" in text,
            lambda source, context: Reading(
                kind="shell", servers=[Server(name="s", place=source.word(0, 5))]
            ),
        ),
        TextFormat("bad", lambda path, _: path.endswith("modelfile"), _fails),
    )
    monkeypatch.setattr(formats, "yaml_formats", lambda: yaml)
    monkeypatch.setattr(formats, "text_formats", lambda: text)


def test_each_document_finds_the_first_format_that_matches() -> None:
    found = read("two: 1\none: 1\n---\nnothing: 1\n---\ntwo: 1\n--- text\n")
    assert kinds_of(found) == ["one of 4", "two of 4"]
    assert (found.problems, found.skipped) == ([], "")


def test_lists_of_objects_are_read_one_by_one() -> None:
    text = "kind: List\nitems:\n- one: 1\n- kind: PodList\n  items: [{two: 1}]\n---\none: 1\n"
    assert kinds_of(read(text)) == ["one of 3", "two of 3", "one of 3"]


def test_a_list_that_holds_itself_many_times_ends() -> None:
    lists = "".join(
        f"- &a{n} {{kind: List, items: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 5)
    )
    text = f"kind: List\nitems:\n- &a0 {{kind: List, items: [{{one: 1}}]}}\n{lists}"
    found = read(text)
    assert len(found.readings) <= 20_000
    assert found.readings


def test_what_nobody_knows_is_skipped() -> None:
    for text in ("a: 1\n", "- 1\n", "text", ""):
        assert read(text) == FileReading([], [], "no deployment format that is known")


def test_a_bug_of_a_reader_is_a_finding_of_this_document_only() -> None:
    found = read("bad: 1\n---\none: 1\n---\nworse: 1\n")
    assert kinds_of(found) == ["one of 3"]
    assert [(one.rule, one.span.line) for one in found.problems] == [("MS001", 1), ("MS001", 5)]
    assert found.problems[0].message.startswith("internal error, please report: TypeError at ")
    (problem,) = read("x", "Modelfile").problems
    assert (problem.rule, problem.span.path) == ("MS001", "Modelfile")


def test_keys_that_stand_twice_are_said_in_files_of_ours_only() -> None:
    (problem,) = read("one: 1\nname: a\nname: b\n").problems
    assert (problem.rule, problem.span.line) == ("MS005", 3)
    assert read("a: 1\na: 2\n").problems == []


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("image: vllm\na: [\n", "MS001"),
        ("image: nginx\na: [\n", None),
        ("image: vllm\n{{- if .Values.x }}\na: b\n", "MS002"),
        ("image: nginx\n{{- if .Values.x }}\na: b\n", None),
        ("image: vllm\na: !!python/object:os.system x\n", "MS001"),
    ],
)
def test_what_is_no_yaml_is_a_finding_where_it_is_about_a_model(
    text: str, rule: str | None
) -> None:
    found = read(text)
    assert [one.rule for one in found.problems] == ([rule] if rule else [])
    assert bool(found.skipped) is (rule is None)


def test_other_texts() -> None:
    assert kinds_of(read("serve x", "run.sh")) == ["shell"]
    assert read("echo", "run.sh").skipped == "starts no model server"
    assert read("FROM x", "Dockerfile").skipped == "starts no model server"
    assert kinds_of(read("one: 1", "<stdin>")) == ["one of 1"]


def test_the_list_of_formats_holds_readers() -> None:
    """Of the real ones: each module is there, and says kinds and functions."""
    for one in (*formats._MODULES,):
        module = formats._module(one)
        found = [*getattr(module, "FORMATS", ()), *getattr(module, "TEXT_FORMATS", ())]
        assert found, one
        for item in found:
            assert item.kind
            assert callable(item.matches)
            assert callable(item.read)
