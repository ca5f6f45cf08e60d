"""Comments that silence findings or name the GPU: where they count, and when they are idle."""

from __future__ import annotations

import random
import time

import pytest

from moesize.check.edits import apply_fixes
from moesize.check.findings import Finding
from moesize.check.rules import RULES
from moesize.check.source import SourceFile, SourceText, Span
from moesize.check.suppressions import FileNotes, ServerPlace
from moesize.check.yaml_tree import YamlError, parse_stream

EVERY = frozenset(rule.id for rule in RULES)


def notes_of(text: str, *, yaml: bool = True) -> FileNotes:
    file = SourceFile("x.yaml", text)
    documents = []
    if yaml:
        try:
            documents = parse_stream(SourceText.of_file(file)).documents
        except YamlError:
            documents = []
    return FileNotes(file, documents, yaml=yaml)


def finding(line: int, rule: str = "MS101", server: str = "", *, until: int = 0) -> Finding:
    span = Span("x.yaml", line, 1, until or line, 9)
    return Finding(rule=rule, severity="error", message="m", span=span, server=server)


def silenced(text: str, *findings: Finding, servers: tuple[ServerPlace, ...] = ()) -> list[str]:
    """Reasons by finding; "-" for those that count."""
    notes_of(text).silence(findings, servers)
    return [one.suppressed or "-" for one in findings]


def idle(text: str, *findings: Finding, active: frozenset[str] = EVERY) -> list[Finding]:
    notes = notes_of(text)
    notes.silence(findings, ())
    return notes.unused(active)


def without_idle(text: str, *findings: Finding) -> str:
    found = idle(text, *findings)
    pairs = [(one, one.fix) for one in found if one.fix is not None]
    return apply_fixes(SourceFile("x.yaml", text), pairs)[0]


# --- where a comment counts -----------------------------------------------------------------------


def test_on_the_line_of_the_value() -> None:
    text = "a: 1\nb: 2  # moesize: ignore[MS101] it fits\nc: 3\n"
    assert silenced(text, finding(1), finding(2), finding(3)) == ["-", "it fits", "-"]
    assert silenced(text, finding(2, "MS102")) == ["-"]


def test_alone_above_the_value() -> None:
    text = "a: 1\n# moesize: ignore[MS101] why\n\n# something else\nb: 2\nc: 3\n"
    assert silenced(text, finding(1), finding(5), finding(6)) == ["-", "why", "-"]


def test_inside_a_value_of_several_lines() -> None:
    text = "run: |\n  vllm serve x\n  # moesize: ignore[MS101] in the script\n  --y\n"
    assert silenced(text, finding(1, until=4), finding(4), finding(2)) == [
        "in the script", "in the script", "-",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("comment", "rule", "reason"),
    [
        ("ignore[MS101,MS102] both", "MS102", "both"),
        ("ignore[ weights-do-not-fit ] by name", "MS101", "by name"),
        ("ignore[ms101]", "MS101", "ignored"),
        ("ignore every rule", "MS404", "every rule"),
        ("ignore", "MS404", "ignored"),
        ("ignore: for now", "MS101", "for now"),
        ("ignore [MS101] blank before", "MS101", "blank before"),
    ],
)
def test_how_it_is_written(comment: str, rule: str, reason: str) -> None:
    assert silenced(f"a: 1  # moesize: {comment}\n", finding(1, rule)) == [reason]
    assert silenced(f"a: 1 #moesize:{comment}\r\n", finding(1, rule)) == [reason]


def test_a_whole_file() -> None:
    text = "a: 1\n---\nb: 2\n# moesize: ignore-file[MS501] all on our own cards\n"
    assert silenced(text, finding(1, "MS501"), finding(3, "MS501"), finding(3)) == [
        "all on our own cards", "all on our own cards", "-",
    ]  # fmt: skip


POD = """\
spec:
  containers:
  # moesize: ignore[MS101] the first
  - image: vllm/vllm-openai
    name: web
    args: [--big]
  - image: vllm/vllm-openai
    name: other
    args: [--big]
"""
PLACES = (ServerPlace("web", 5), ServerPlace("other", 8))


def test_above_the_first_line_of_a_container_it_counts_for_all_of_it() -> None:
    found = (finding(6, server="web"), finding(9, server="other"), finding(6))
    assert silenced(POD, *found, servers=PLACES) == ["the first", "-", "-"]


def test_servers_of_one_name_are_told_apart_by_their_lines() -> None:
    text = (
        "# moesize: ignore[MS101] the first\n- name: web\n  args: [--big]\n"
        "- name: web\n  args: [--big]\n"
    )
    places = (ServerPlace("web", 2), ServerPlace("web", 4))
    found = (finding(3, server="web"), finding(5, server="web"))
    assert silenced(text, *found, servers=places) == ["the first", "-"]


def test_above_the_first_line_of_an_object_it_counts_for_all_of_it() -> None:
    text = (
        "a: 1\n---\n# moesize: ignore[MS101] all\napiVersion: v1\nkind: Pod\nx: 1\n"
        "---\napiVersion: v1\n"
    )
    assert silenced(text, finding(1), finding(6), finding(8)) == ["-", "all", "-"]
    # The first line of another file is a line.
    assert silenced("a: 1  # moesize: ignore[MS101]\nb: 2\n", finding(2)) == ["-"]


def test_the_annotation_counts_for_its_object() -> None:
    text = (
        "metadata:\n  annotations:\n"
        '    moesize.dev/ignore: "MS101: known; MS5: nobody says which"\n'
        "x: 1\n---\nx: 1\n"
    )
    assert silenced(text, finding(4), finding(6), finding(4, "MS102")) == ["known", "-", "-"]
    assert silenced(text.replace("MS101", "all"), finding(4, "MS404")) == ["known"]


def test_only_comments_count() -> None:
    for text in (
        'a: "x # moesize: ignore[MS101] quoted"\n',
        "a: 'two lines\n  # moesize: ignore[MS101] quoted'\n",
        "a: >\n  folded\n  # moesize: ignore[MS101] text\n",
        "a: x#moesize: ignore[MS101]\n",
        "a: 1  # see moesize: ignore[MS101]\n",
    ):
        assert silenced(text, finding(1, until=2)) == ["-"], text


def test_beside_the_mark_of_a_folded_text() -> None:
    text = "a: >-  # moesize: ignore[MS101] all of it\n  x\n  y\n"
    assert silenced(text, finding(1, until=3)) == ["all of it"]


def test_texts_that_are_no_yaml() -> None:
    text = '#!/bin/sh\n# moesize: ignore[MS101] in a script\nvllm serve "x\n'
    notes = notes_of(text, yaml=False)
    found = finding(3)
    notes.silence([found], ())
    assert found.suppressed == "in a script"
    broken = notes_of("a: [\n# moesize: ignore-file[MS001] a draft\n")
    found = finding(1, "MS001")
    broken.silence([found], ())
    assert found.suppressed == "a draft"


def test_findings_of_other_files_are_left_alone() -> None:
    other = finding(1)
    other.span = other.span._replace(path="y.yaml")
    assert silenced("a: 1  # moesize: ignore\n", other) == ["-"]


# --- comments that do nothing ---------------------------------------------------------------------


def test_idle_comments_are_findings_that_fix_themselves() -> None:
    text = "a: 1\n# moesize: ignore[MS101] old\nb: 2  # moesize: ignore[MS102] old\nc: 3\n"
    found = idle(text)
    assert [(one.rule, one.span.line, one.span.column) for one in found] == [
        ("MS004", 2, 1), ("MS004", 3, 7),
    ]  # fmt: skip
    assert found[0].message == "ignore[MS101] silences nothing"
    assert without_idle(text) == "a: 1\nb: 2\nc: 3\n"
    assert without_idle("a: 1\n# moesize: ignore") == "a: 1\n"


def test_of_several_rules_only_the_idle_ones_go() -> None:
    text = "a: 1  # moesize: ignore[MS101, MS102,MS104] reason\n"
    assert without_idle(text, finding(1, "MS102")) == "a: 1  # moesize: ignore[MS102] reason\n"
    used = (finding(1), finding(1, "MS102"), finding(1, "MS104"))
    assert without_idle(text, *used) == text


def test_what_was_not_looked_for_is_not_idle() -> None:
    text = "a: 1  # moesize: ignore[MS101,MS102]\nb: 2  # moesize: ignore\n"
    assert idle(text, active=frozenset(["MS004"])) == []
    assert [one.message for one in idle(text, active=frozenset(["MS102"]))] == [
        "ignore[MS102] silences nothing"
    ]
    assert len(idle(text)) == 2


@pytest.mark.parametrize(
    ("comment", "said"),
    [
        ("ignore[MS999]", "unknown rule 'MS999'"),
        ("ignore[weights-dont-fit]", "weights-do-not-fit"),
        ("ignore[]", "names no rule"),
        ("ignor[MS101]", "did you mean ignore?"),
        ("ignored[MS101] x", "did you mean ignore?"),
        ("gpus=h100", "did you mean gpu?"),
        ("colour=red", "known: ignore, ignore-file, gpu, model"),
    ],
)
def test_misspelled_comments_are_said(comment: str, said: str) -> None:
    (found,) = idle(f"a: 1  # moesize: {comment}\n")
    assert found.rule == "MS004"
    assert said in found.message


def test_prose_is_left_alone() -> None:
    assert idle("a: 1  # moesize: said 61 GiB\n# moesize: https://example.org\n") == []


def test_an_idle_annotation_is_said_but_not_removed() -> None:
    (found,) = idle('metadata: {annotations: {moesize.dev/ignore: "MS101: x"}}\n')
    assert (found.rule, found.fix) == ("MS004", None)


# --- gpu and model --------------------------------------------------------------------------------


def given(text: str, line: int, *lines: int, name: str = "gpu", yaml: bool = True) -> str:
    places = [ServerPlace("s", number) for number in sorted({line, *lines})]
    return str(notes_of(text, yaml=yaml).value_for(name, line, places))


def test_a_gpu_for_the_whole_file_stands_on_top() -> None:
    text = "# moesize: gpu=h100\na: 1\n---\nb: 2\n"
    assert given(text, 2) == "h100"
    assert given(text, 4) == "h100"
    assert given("a: 1\n# moesize: gpu=h100\nb: 1\n---\nb: 2\n", 5) == "None"


def test_a_gpu_for_the_server_it_stands_in_and_those_after_it() -> None:
    text = (
        "services:\n  one:\n    x: 1\n  two:\n    x: 1  # moesize: gpu=l4, model=org/m\n"
        "  three:\n    x: 1\n"
    )
    assert given(text, 2, 4, 6) == "None"
    assert given(text, 4, 2, 6) == "l4"
    assert given(text, 6, 2, 4) == "l4"
    assert given(text, 4, 2, 6, name="model") == "org/m"


def test_above_a_list_item_it_is_for_that_item() -> None:
    text = "- image: x\n  name: one\n# moesize: gpu=l4\n- image: x\n  name: two\n"
    assert given(text, 2, 5) == "None"
    assert given(text, 5, 2) == "l4"


def test_a_gpu_in_a_script_and_its_place() -> None:
    text = "#!/bin/sh\n# moesize: gpu=a100-80gb\nvllm serve x\n"
    notes = notes_of(text, yaml=False)
    word = notes.value_for("gpu", 3, [ServerPlace("vllm", 3)])
    assert word == "a100-80gb"
    assert word is not None
    assert word.span == Span("x.yaml", 2, 16, 2, 25)
    assert word.exact


# --- hostile --------------------------------------------------------------------------------------


def test_a_file_of_nothing_but_comments_takes_no_time() -> None:
    begin = time.process_time()
    text = "# moesize: ignore[MS101] x\n" * 100_000 + "a: 1\n"
    notes = notes_of(text)
    notes.silence([finding(100_001) for _ in range(100)], ())
    assert notes.unused(EVERY)
    text = "a: 1 #" + " " * 500_000 + "#" * 500_000 + "moesize: ignore[" + "a," * 100_000 + "\n"
    notes_of(text).unused(EVERY)
    assert time.process_time() - begin < 10


WHOLE = """\
apiVersion: v1
kind: Pod
spec:
  containers:
  - name: web
    args: ["--a", '--b # no comment']
    command: |
      vllm serve x
      --y
    note: >
      folded
      text
    list:
    - 1
    - x: {y: [1, 2]}
---
kind: Pod
"""


def data_of(text: str) -> object:
    """The data of a text, comments of scripts in it taken away."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        if isinstance(value, list):
            return [plain(one) for one in value]
        if isinstance(value, str) and "--y" in value:
            lines = [line.partition("# moesize")[0].rstrip() for line in value.split("\n")]
            return [line for line in lines if line]
        return value

    stream = parse_stream(SourceText.of_file(SourceFile("x.yaml", text)))
    return [plain(document.plain()) for document in stream.documents]


@pytest.mark.parametrize("seed", range(60))
def test_taking_comments_away_changes_no_data(seed: int) -> None:
    chance = random.Random(seed)
    lines = WHOLE.split("\n")
    for _ in range(chance.randint(1, 5)):
        comment = chance.choice(["ignore[MS101] x", "ignore", "ignore-file[MS102,MS103]"])
        number = chance.randrange(len(lines) - 1)
        if chance.random() < 0.5:
            lines[number] += f"  # moesize: {comment}"
        else:
            lines.insert(number, " " * chance.randrange(9) + f"# moesize: {comment}")
    text = "\n".join(lines)
    try:
        before = data_of(text)
    except YamlError:  # a comment in front of a text's first line
        return
    assert data_of(without_idle(text)) == before
