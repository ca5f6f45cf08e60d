"""What `moesize check` prints in each format, of reports made by hand."""

from __future__ import annotations

import json
import re
import time
import unicodedata
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import jsonschema
import pytest
from check_reports import (
    HOSTILE,
    MANIFEST,
    PATH,
    finding,
    hostile_report,
    one_line_report,
    report,
    server,
    span_of,
)
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from running import run

from moesize.check.findings import CheckReport, Edit, FileResult, Fix, Label
from moesize.check.rules import RULES
from moesize.check.source import Span
from moesize.renderers.check import FORMATS, render
from moesize.renderers.check.excerpt import wrap
from moesize.renderers.check.sarif import render_sarif
from moesize.renderers.check.text import use_color, use_width
from moesize.schemas import find_schema

# --- for people ----------------------------------------------------------------------------------

EXPECTED = """\
error[MS102]: the KV cache cannot hold one request of 131072 tokens
  --> k8s/gptoss.yaml:12:27  (server "inference-server", vllm 0.10.2, 1 x h100-80gb-sxm)
   |
 8 |           nvidia.com/gpu: 1
   |                           - 1 GPU: 72.0 GiB usable
...
12 |         - --max-model-len=131072
   |                           ^^^^^^ needs 4.50 GiB, 2.10 GiB are left
   |
   = weights 65.9 GiB + KV 4.5 GiB + other 3.6 GiB = 74.0 GiB of 72.0 GiB
   = fix: --max-model-len=65536  [--fix]
   = see: moesize check --explain MS102

1 server in 1 file: 1 does not fit; 1 error
1 can be fixed with --fix"""

NARROW = """\
error[MS102]: the KV cache cannot hold
  one request of 131072 tokens
  --> k8s/gptoss.yaml:12:27
       (server "inference-server", vllm
       0.10.2, 1 x h100-80gb-sxm)
   |
 8 |           nvidia.com/gpu: 1
   |                           -
   |    1 GPU: 72.0 GiB usable
...
12 |         - --max-model-len=131072
   |                           ^^^^^^
   |    needs 4.50 GiB, 2.10 GiB are
   |    left
   |
   = weights 65.9 GiB + KV 4.5 GiB +
     other 3.6 GiB = 74.0 GiB of 72.0
     GiB
   = fix: --max-model-len=65536  [--fix]
   = see: moesize check --explain MS102

1 server in 1 file: 1 does not fit; 1
  error
1 can be fixed with --fix"""


def test_a_finding_as_a_person_reads_it() -> None:
    assert render(report(finding()), "human") == EXPECTED


def test_on_a_narrow_terminal_no_line_is_longer() -> None:
    text = render(report(finding()), "human", width=40)
    assert text == NARROW
    assert max(map(len, text.splitlines())) <= 40


def test_colours_change_nothing_but_colours() -> None:
    plain = render(report(finding()), "human", width=80)
    painted = render(report(finding()), "human", width=80, color=True)
    assert painted.count("\x1b[") > 10
    assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == plain
    assert "\x1b" not in plain


def test_colours_and_width_are_those_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        def __init__(self, terminal: bool) -> None:
            self.isatty = lambda: terminal

    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "55")
    monkeypatch.setattr("sys.stdout", Stream(True))
    assert use_color()
    assert use_width() == 55
    monkeypatch.setenv("NO_COLOR", "1")
    assert not use_color()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not use_color()
    monkeypatch.delenv("TERM")
    monkeypatch.setattr("sys.stdout", Stream(False))
    assert not use_color()
    assert use_width() == 55
    monkeypatch.delenv("COLUMNS")
    assert use_width() is None
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert use_color()


def marks_of(text: str) -> tuple[str, str]:
    """The one line of an excerpt, and what stands under it."""
    line, mark = [row.partition(" | ")[2] for row in text.splitlines() if " | " in row]
    return line, mark


@pytest.mark.parametrize(
    ("line", "needle", "shown", "offset"),
    [
        ("\t- --tp=4", "4", "    - --tp=4", 11),  # a tab is four places
        ("a:\t\tb", "b", "a:        b", 10),
        ("模型: x", "x", "模型: x", 6),  # East Asian wide: two places each
        ("e\u0301: x", "x", "e\u0301: x", 3),  # a combining accent takes no place
        ("\U0001f600 x", "x", "\U0001f600 x", 3),
        ("\x1b[31m x", "x", "\\x1b[31m x", 9),  # an escape is spelled out
        ("\u202e x", "x", "\\u202e x", 7),
        ("a\u3000x", "x", "a x", 2),
        ("##[error] x", "x", "##\\x5berror] x", 13),
    ],
)
def test_carets_stand_under_the_value(line: str, needle: str, shown: str, offset: int) -> None:
    start = line.index(needle)
    text = render(one_line_report(line, start, start + 1, label=""), "human")
    assert marks_of(text) == (shown, " " * offset + "^")


def test_a_wide_value_has_wide_carets() -> None:
    text = render(one_line_report("a: 模型", 3, 5, label="this"), "human")
    assert marks_of(text) == ("a: 模型", "   ^^^^ this")


def test_a_long_line_is_cut_around_the_caret() -> None:
    line = "x" * 500 + " --tp=4 " + "y" * 500
    start = line.index("4")
    text = render(one_line_report(line, start, start + 1, label="four"), "human")
    shown, mark = marks_of(text)
    assert len(shown) <= 120
    assert shown.startswith("...xxx")
    assert shown.endswith("yyy...")
    assert shown[mark.index("^")] == "4"
    assert mark.endswith("^ four")


def test_marks_far_apart_on_a_long_line_are_both_shown() -> None:
    line = "--tp=4 " + "x" * 500 + " --pp=2"
    far = line.index("2")
    labels = (Label(Span("a.yaml", 1, far + 1, 1, far + 2), "pipelines"),)
    made = one_line_report(line, 5, 6, label="ranks")
    made.files[0].findings[0].labels = labels
    rows = [row for row in render(made, "human").splitlines() if row.startswith(("1 |", "  |  "))]
    assert [row.strip()[:5] for row in rows] == ["1 | -", "|    ", "1 | .", "|    "]
    assert rows[1].endswith("^ ranks")
    assert rows[3].endswith("- pipelines")
    assert rows[2][rows[3].index("-")] == "2"


def test_a_file_of_one_endless_line_costs_no_time() -> None:
    line = "x\u0301" * 500_000 + "4" + "模" * 500_000
    begin = time.monotonic()
    text = render(one_line_report(line, 1_000_000, 1_000_001), "human")
    assert time.monotonic() - begin < 2
    assert len(text) < 3_000


def test_a_span_of_several_lines_is_marked_on_its_first() -> None:
    place = span_of(MANIFEST, "args:\n        - --model")
    text = render(report(finding(span=place, label="", labels=(), details=())), "human")
    assert "9 |       args:\n  |       ^^^^^\n" in text


def test_a_line_between_two_marks_is_shown_and_more_are_left_out() -> None:
    labels = (Label(span_of(MANIFEST, "gpt-oss-120b"), "model"),)
    text = render(report(finding(labels=labels)), "human")
    assert "11 |         - --tensor-parallel-size=1\n12 |" in text
    assert "..." not in text


def test_places_in_other_files_have_an_excerpt_of_their_own() -> None:
    other = "data:\n  length: 131072\n"
    labels = (Label(span_of(other, "131072", "k8s/config.yaml"), "set here"),)
    made = report(finding(labels=labels), texts={PATH: MANIFEST, "k8s/config.yaml": other})
    text = render(made, "human")
    assert "   ::: k8s/config.yaml:2:11\n   |\n 2 |   length: 131072\n" in text
    assert "   |           ------ set here\n" in text


def test_without_the_text_of_a_file_the_places_are_named() -> None:
    text = render(report(finding(), texts={}), "human")
    assert f"   = {PATH}:12: needs 4.50 GiB, 2.10 GiB are left\n" in text
    assert f"   = {PATH}:8: 1 GPU: 72.0 GiB usable\n" in text


@pytest.mark.parametrize("line", [0, 99])
def test_a_place_that_the_file_does_not_have_breaks_nothing(line: int) -> None:
    place = Span(PATH, line, 999, line, 1000)
    for name in FORMATS:
        assert render(report(finding(span=place)), name)


def test_findings_stand_by_file_and_line_and_a_rule_is_explained_once() -> None:
    first = finding(span=span_of(MANIFEST, "gpt-oss-120b"), message="earlier")
    text = render(report(finding(), first), "human")
    assert text.index("earlier") < text.index("the KV cache")
    assert text.count("--explain MS102") == 1


def test_a_fix_without_edits_is_not_offered_to_fix() -> None:
    text = render(report(finding(fix=Fix(text="use 2 GPUs"))), "human")
    assert "= fix: use 2 GPUs\n" in text
    assert "--fix]" not in text
    assert "can be fixed" not in text


def test_information_is_counted_and_shown_to_whoever_asks() -> None:
    note = finding("MS404", severity="info", message="no release", fix=None)
    quiet = render(report(note), "human")
    assert "info[MS404]" not in quiet
    assert quiet.endswith("1 note\n1 note shown with --verbose only")
    assert "info[MS404]: no release" in render(report(note), "human", verbose=True)
    # It must be seen where it makes the check fail.
    assert "info[MS404]" in render(report(note, fail_on="info"), "human")


def test_verbose_lists_servers_and_what_was_passed_over() -> None:
    made = report(
        finding(suppressed="known, OPS-1"),
        files=[
            FileResult(
                path=PATH,
                kind="k8s_deployment",
                servers=[server(), server("other", skipped="no model is named")],
                findings=[finding(suppressed="known, OPS-1")],
            ),
            FileResult(path="chart/deploy.yaml", kind="helm", skipped="helm is not installed"),
        ],
        ignored=[("notes.yaml", "no deployment")],
    )
    text = render(made, "human", verbose=True)
    assert (
        '  does not fit  k8s/gptoss.yaml:4  server "inference-server", vllm 0.10.2, '
        "1 x h100-80gb-sxm; gpt-oss-120b; 74.00 of 72.00 GiB; does not fit: 2.10 GiB" in text
    )
    assert "  skipped       k8s/gptoss.yaml:4" in text
    assert f"suppressed:\n  - {PATH}:12: MS102 (known, OPS-1)\n" in text
    assert "skipped:\n  - chart/deploy.yaml: helm is not installed\n" in text
    assert "ignored:\n  - notes.yaml: no deployment\n" in text
    assert "error[" not in text
    assert text.endswith(
        "1 server in 1 file: 1 does not fit; no findings; 1 suppressed; 1 file and 1 server skipped"
    )
    assert "notes.yaml" not in render(made, "human")


def several(fits: list[bool | None], **changes: Any) -> CheckReport:
    servers = [server(str(number), fits=fit, **changes) for number, fit in enumerate(fits)]
    files = [FileResult(path=f"{s.name}.yaml", kind="shell", servers=[s]) for s in servers]
    return CheckReport(files=files)


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (several([True, True, False]), "3 servers in 3 files: 2 fit, 1 does not; no findings"),
        (several([False, False]), "2 servers in 2 files: 2 do not fit; no findings"),
        (several([True]), "1 server in 1 file: 1 fits; no findings"),
        (
            several([True, None], gpu=None, gpu_id=None),
            "2 servers in 2 files: 1 fits, 1 unknown (GPU not stated); no findings",
        ),
        (
            several([None], model_id=None),
            "1 server in 1 file: 1 unknown (model not known); no findings",
        ),
        (several([None]), "1 server in 1 file: 1 unknown; no findings"),
        (CheckReport(), "no model server found in 0 files; no findings"),
        (
            CheckReport(ignored=[("a", "b")]),
            "no model server found in 1 file; no findings",
        ),
    ],
)
def test_the_summary_counts_honestly(made: CheckReport, line: str) -> None:
    assert render(made, "human", quiet=True) == line


@given(st.text(max_size=60), st.integers(8, 40))
def test_wrapping_loses_no_word_and_keeps_to_the_room(text: str, room: int) -> None:
    words = "".join(char for char in text if char.isprintable() and char != ":")
    lines = wrap(words, room)
    assert "".join(lines).replace(" ", "") == words.replace(" ", "")
    wide = ("W", "F")
    for line in lines:
        narrow = sum(unicodedata.east_asian_width(char) not in wide for char in line)
        assert narrow + 2 * (len(line) - narrow) <= room or unicodedata.normalize("NFC", line)


def test_no_wrapped_line_begins_as_a_command_of_a_runner() -> None:
    made = report(finding(details=("x" * 60 + " ::add-mask::secret",)))
    text = render(made, "human", width=70)
    assert "\\::add-mask::secret" in text
    assert not re.search(r"^\s*::", text, re.MULTILINE)
    for length in range(1, 80):
        text = render(report(finding(details=("x" * length + "::add-mask::y",))), "human", width=70)
        assert not re.search(r"^\s*::", text, re.MULTILINE)


def test_concise_is_one_line_for_each_finding_and_the_summary() -> None:
    warning = finding("MS501", severity="warning", message="no GPU", fix=None)
    assert render(report(finding(), warning), "concise").splitlines() == [
        f"{PATH}:12:27: MS102 error the KV cache cannot hold one request of 131072 tokens",
        f"{PATH}:12:27: MS501 warning no GPU",
        "1 server in 1 file: 1 does not fit; 1 error, 1 warning",
    ]
    assert len(render(report(finding()), "concise", quiet=True).splitlines()) == 1


# --- for programs ---------------------------------------------------------------------------------


def test_json_is_valid_and_has_no_field_that_the_schema_lacks() -> None:
    schema = _closed(find_schema("check"))
    validator = jsonschema.Draft202012Validator(schema)
    document = json.loads(render(report(finding(), finding("MS501", fix=None)), "json"))
    validator.validate(document)
    assert document["files"][0]["findings"][0]["fix"]["edits"][0]["text"] == "65536"
    assert document["summary"]["do_not_fit"] == 1
    for part in (document, document["summary"], document["files"][0]["findings"][0]):
        for key in list(part):
            kept = part.pop(key)
            assert not validator.is_valid(document), key
            part[key] = kept


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: _closed(value) for key, value in schema.items()}
    return {**out, "additionalProperties": False} if "properties" in out else out


def sarif(made: CheckReport, *, verbose: bool = False) -> Any:
    """The run, after what GitHub requires of a file was looked at."""
    document = json.loads(render(made, "sarif", verbose=verbose))
    assert document["version"] == "2.1.0"
    assert document["$schema"] == "https://json.schemastore.org/sarif-2.1.0.json"
    (run_,) = document["runs"]
    driver = run_["tool"]["driver"]
    assert driver["name"] == "moesize"
    for rule in driver["rules"]:
        texts = (rule["shortDescription"]["text"], rule["fullDescription"]["text"])
        assert all(0 < len(text) <= 1024 for text in texts)
        assert rule["help"]["text"]
        assert rule["defaultConfiguration"]["level"] in ("error", "warning", "note")
        assert len(rule["properties"]["tags"]) <= 10
    for result in run_["results"]:
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note")
        assert result["message"]["text"]
        assert result["partialFingerprints"]
        assert len(result["locations"]) == 1
        for location in [*result["locations"], *result.get("relatedLocations", [])]:
            physical = location["physicalLocation"]
            uri = physical["artifactLocation"]["uri"]
            assert re.fullmatch(r"[\w.~/%-]+", uri, re.ASCII)
            assert not uri.startswith(("/", "./"))
            region = physical["region"]
            start = (region["startLine"], region["startColumn"])
            assert start < (region["endLine"], region["endColumn"])
            assert min(start) >= 1
    return run_


def test_sarif_says_where_and_what_and_how_to_fix_it() -> None:
    result = sarif(report(finding()))["results"][0]
    assert result["ruleId"] == "MS102"
    assert result["message"]["text"].splitlines() == [
        "the KV cache cannot hold one request of 131072 tokens.",
        "needs 4.50 GiB, 2.10 GiB are left",
        "weights 65.9 GiB + KV 4.5 GiB + other 3.6 GiB = 74.0 GiB of 72.0 GiB",
        "fix: --max-model-len=65536",
    ]
    (location,) = result["locations"]
    region = {"startLine": 12, "startColumn": 27, "endLine": 12, "endColumn": 33}
    assert location["physicalLocation"] == {
        "artifactLocation": {"uri": PATH, "uriBaseId": "%SRCROOT%"},
        "region": region,
    }
    assert location["logicalLocations"] == [{"name": "inference-server", "kind": "resource"}]
    (related,) = result["relatedLocations"]
    assert related["message"]["text"] == "1 GPU: 72.0 GiB usable"
    assert related["physicalLocation"]["region"]["startLine"] == 8
    (fix,) = result["fixes"]
    (change,) = fix["artifactChanges"]
    assert change["replacements"] == [
        {"deletedRegion": region, "insertedContent": {"text": "65536"}}
    ]


def test_sarif_has_every_rule_with_its_own_severity_and_name() -> None:
    rules = sarif(report())["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [rule.id for rule in RULES]
    named = {rule["id"]: rule for rule in rules}
    assert named["MS102"]["name"] == "KvCacheBelowOneRequest"
    assert named["MS404"]["defaultConfiguration"]["level"] == "note"
    assert named["MS404"]["properties"]["problem.severity"] == "recommendation"
    assert sarif(report())["tool"]["driver"]["version"] == "1.2.3"


def test_sarif_columns_count_utf16_units() -> None:
    line = "a: \U0001f600\U0001f600 模型 4"  # two of two units each, two of one
    start = line.index("4")
    run_ = sarif(one_line_report(line, start, start + 1))
    assert run_["columnKind"] == "utf16CodeUnits"
    region = run_["results"][0]["locations"][0]["physicalLocation"]["region"]
    units = len(line[:start].encode("utf-16-le")) // 2
    assert region["startColumn"] == units + 1 == start + 3
    assert region["endColumn"] == units + 2


def test_sarif_paths_are_relative_and_encoded() -> None:
    path = "k8s/a b#ü%.yaml"
    made = one_line_report("a: 4", 3, 4)
    made.files[0].path = path
    made.files[0].findings[0].span = Span(path, 1, 4, 1, 5)
    uri = sarif(made)["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == "k8s/a%20b%23%C3%BC%25.yaml"
    assert unquote(uri) == path


def test_a_file_elsewhere_has_an_absolute_uri() -> None:
    made = one_line_report("a: 4", 3, 4)
    made.files[0].findings[0].span = Span("/etc/a b.yaml", 1, 4, 1, 5)
    document = json.loads(render_sarif(made))
    location = document["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert location["artifactLocation"] == {"uri": "file:///etc/a%20b.yaml"}


def fingerprints_of(made: CheckReport) -> list[str]:
    return [r["partialFingerprints"]["moesizeFinding/v1"] for r in sarif(made)["results"]]


def test_fingerprints_survive_moved_lines_and_tell_findings_apart() -> None:
    (known,) = fingerprints_of(report(finding()))
    moved = finding(span=span_of(MANIFEST, "131072")._replace(line=40, end_line=40))
    assert fingerprints_of(report(moved)) == [known]
    different = [
        finding("MS103"),
        finding(server="another"),
        finding(key=("262144",)),
    ]
    for other in different:
        assert fingerprints_of(report(other)) != [known]
    twice = fingerprints_of(report(finding(), moved))
    assert len(set(twice)) == 2
    assert known in twice


def test_sarif_suppressions_say_who_and_why() -> None:
    made = report(finding(suppressed="fits since June"), finding(suppressed="baseline"))
    assert sarif(made)["results"] == []  # GitHub would open alerts for them
    run_ = sarif(made, verbose=True)
    said = [result["suppressions"] for result in run_["results"]]
    assert [row[0]["kind"] for row in said] == ["inSource", "external"]
    assert said[0][0]["justification"] == "fits since June"
    assert "suppressions" not in sarif(report(finding()))["results"][0]


def test_sarif_keeps_the_worst_and_says_what_it_leaves_out() -> None:
    found = [finding("MS404", severity="info", fix=None, labels=()) for _ in range(4)]
    found += [finding(), finding(suppressed="known")]
    (run_,) = json.loads(render_sarif(report(*found), verbose=True, most=2))["runs"]
    assert [result["level"] for result in run_["results"]] == ["error", "note"]
    assert not any("suppressions" in result for result in run_["results"])
    (said,) = run_["invocations"][0]["toolExecutionNotifications"]
    assert said["message"]["text"].startswith("4 of 6 findings are left out")
    assert run_["invocations"][0]["executionSuccessful"]


def test_sarif_messages_hold_no_link_of_a_stranger() -> None:
    text = sarif(report(finding(message="see [here](https://evil.example)")))["results"][0]
    assert "](" not in text["message"]["text"]


def junit(made: CheckReport) -> ElementTree.Element:
    text = render(made, "junit")
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n')
    root = ElementTree.fromstring(text)
    for holder in [root, *root.iter("testsuite")]:
        cases = list(holder.iter("testcase"))
        assert holder.get("tests") == str(len(cases))
        for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert holder.get(name) == str(sum(case.find(tag) is not None for case in cases))
    return root


def test_junit_has_a_case_for_each_server_those_that_fit_too() -> None:
    files = [
        FileResult(
            path=PATH,
            kind="k8s_deployment",
            servers=[
                server(),
                server("fine", fits=True),
                server("unknown", fits=None, verdict="", gpu=None, gpu_id=None),
                server("passed over", fits=None, skipped="no model is named"),
            ],
            findings=[
                finding(),
                finding("MS105", severity="warning", server="fine", message="few requests"),
                finding("MS501", severity="warning", server="unknown", message="no GPU"),
            ],
        )
    ]
    (suite,) = junit(report(files=files))
    cases = {case.get("name"): case for case in suite}
    assert {case.get("classname") for case in suite} == {PATH}
    failure = cases["inference-server"].find("failure")
    assert failure is not None
    assert failure.get("type") == "MS102"
    assert failure.get("message") == "the KV cache cannot hold one request of 131072 tokens"
    assert "^^^^^^ needs 4.50 GiB" in (failure.text or "")
    assert [child.tag for child in cases["fine"]] == ["properties", "system-out"]
    assert "few requests" in (cases["fine"].findtext("system-out") or "")
    for name, why in (("unknown", "no GPU"), ("passed over", "no model is named")):
        skipped = cases[name].find("skipped")
        assert skipped is not None
        assert skipped.get("message") == why
    properties = {p.get("name"): p.get("value") for p in cases["fine"].iter("property")}
    assert properties["gpu"] == "1 x h100-80gb-sxm"


def test_junit_fails_exactly_what_fails_the_check() -> None:
    warning = finding("MS105", severity="warning")
    assert junit(report(warning)).get("failures") == "0"
    assert junit(report(warning, fail_on="warning")).get("failures") == "1"
    assert junit(report(finding(), fail_on="never")).get("failures") == "0"
    assert junit(report(finding(suppressed="known"))).get("failures") == "0"


def test_junit_names_are_unique_and_files_have_a_case_of_their_own() -> None:
    unreadable = finding("MS001", server="", message="not YAML")
    made = report()
    made.files[0].servers = [server("vllm"), server("vllm"), server("vllm")]
    made.files[0].findings = [unreadable]
    (suite,) = junit(made)
    assert [case.get("name") for case in suite] == ["the file", "vllm", "vllm (2)", "vllm (3)"]
    assert suite[0].find("error") is not None
    assert junit(made).get("errors") == "1"


def test_github_escapes_as_the_runner_reads() -> None:
    made = one_line_report("a: 4", 3, 4, message="90 % of: a, b\nnext", label="")
    made.files[0].findings[0].span = Span("a,b:c.yaml", 1, 4, 1, 5)
    first, summary = render(made, "github").splitlines()
    assert first == (
        "::error file=a%2Cb%3Ac.yaml,line=1,col=4,endLine=1,endColumn=5,"
        "title=moesize MS102 (kv-cache-below-one-request)::90 %25 of: a, b\\nnext"
    )
    assert summary == "no model server found in 1 file; 1 error"


def test_github_sorts_by_severity_and_joins_the_lines_of_a_message() -> None:
    early = finding("MS501", severity="warning", span=span_of(MANIFEST, "kind"), fix=None)
    lines = render(report(early, finding()), "github").splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["::error", "::warning", "1"]
    assert "%0Afix: --max-model-len=65536" in lines[0]
    note = finding("MS404", severity="info")
    assert render(report(note), "github").startswith("1 server")
    assert render(report(note), "github", verbose=True).startswith("::notice ")


def test_github_gives_no_columns_where_lines_differ() -> None:
    place = span_of(MANIFEST, "args:\n        - --model")
    line = render(report(finding(span=place)), "github")
    assert ",line=9,endLine=10,title=" in line


def test_gitlab_has_what_gitlab_reads() -> None:
    found = [
        finding(),
        finding(),
        finding("MS501", severity="warning"),
        finding("MS404", severity="info"),
        finding(suppressed="known"),
    ]
    rows = json.loads(render(report(*found), "gitlab"))
    assert [row["severity"] for row in rows] == ["critical", "critical", "major", "info"]
    assert len({row["fingerprint"] for row in rows}) == 4
    assert rows[0]["check_name"] == "MS102"
    assert rows[0]["location"] == {"path": PATH, "lines": {"begin": 12}}
    assert rows[0]["description"].startswith("MS102: the KV cache cannot hold one request")
    assert json.loads(render(CheckReport(), "gitlab")) == []


# --- a comment on a pull request ------------------------------------------------------------------


_PIECES = r"a*_`[]()<>|\#!~$&:+=-1. "
_WORDS = (
    "](",
    "<b>",
    "</details>",
    "<!--",
    "&lt;",
    "http://x.y",
    "@me",
    "\n\n",
    "    ",
    "---",
    "1. ",
)
_STRANGE = st.lists(st.sampled_from([*_PIECES, *_WORDS, "\n"]), max_size=12).map("".join)


def test_markdown_has_a_verdict_a_table_and_findings_that_unfold() -> None:
    lines = render(report(finding()), "markdown").splitlines()
    assert lines[:2] == ["<!-- moesize check -->", "### moesize check fails"]
    (row,) = [line for line in lines if line.startswith("| inference-server")]
    assert row == (
        "| inference-server | k8s/gptoss.yaml:4 | gpt-oss-120b | vllm 0.10.2 "
        "| 1 x h100-80gb-sxm | **does not fit** | 74.00 of 72.00 GiB |"
    )
    assert (
        "<details><summary><b>error MS102 (kv-cache-below-one-request)</b>: the KV cache cannot "
        "hold one request of 131072 tokens &mdash; k8s/gptoss.yaml:12</summary>" in lines
    )
    assert "- fix: --max-model-len=65536" in lines
    assert "### moesize check passes" in render(report(), "markdown")
    empty = CheckReport(ignored=[("a.yaml", "no deployment")])
    assert "### moesize check found nothing to check" in render(empty, "markdown")
    empty.allow_empty = True
    assert "### moesize check passes" in render(empty, "markdown")


def test_markdown_is_cut_at_its_end_and_says_so() -> None:
    many = [finding(message=f"number {n} " + "x" * 900) for n in range(400)]
    made = report(*many)
    made.files[0].servers = [server(f"s{n}") for n in range(2_000)]
    text = render(made, "markdown")
    assert 30_000 < len(text) <= 60_000
    shown = text.count("<details>")
    assert f"{400 - shown:,} more findings: too many for a comment" in text
    rows = len(re.findall(r"\n\| s\d", text))
    assert f"{2_000 - rows:,} more servers." in text


@pytest.mark.parametrize(
    ("text", "item"),
    [
        ("- a", "- \\- a"),
        ("     1. a", "- 1\\. a"),
        ("12. a", "- 12\\. a"),
        ("+1", "- \\+1"),
        ("# a", "- \\# a"),
        ("a <b> & *c*", "- a &lt;b&gt; &amp; \\*c\\*"),
        ("31.5 GiB", "- 31\\.5 GiB"),
        ("$A and $B", "- &#36;A and &#36;B"),  # no formula
    ],
)
def test_details_are_items_and_nothing_else(text: str, item: str) -> None:
    assert item in render(report(finding(details=(text,))), "markdown").splitlines()


def test_markdown_of_strangers_stays_text() -> None:
    text = render(hostile_report(), "markdown")
    outside = re.sub(r"^(`{3,})text$.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert "<img" not in outside
    for known in ("@octocat", "#1", "https://evil", "www.evil"):
        assert known not in outside
    rows = [line for line in outside.splitlines() if line.startswith("| ")]
    assert len(rows) == 2  # the head and one server: no cell, no row of its own
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {8}
    assert not re.search(r"(?<!\\)\[click\]", outside)


@given(_STRANGE, _STRANGE)
def test_a_parser_of_markdown_finds_no_markup_of_strangers(text: str, name: str) -> None:
    """markdown-it is what rich reads markdown with."""
    made = report(finding(message=text, details=(text,), server=name, fix=Fix(text=text)))
    made.files[0].servers = [server(name, model=text, model_id=None)]
    tokens = MarkdownIt("commonmark").enable("table").parse(render(made, "markdown"))
    kinds = [token.type for token in tokens]
    assert kinds.count("heading_open") == 1
    assert kinds.count("tr_open") == 2
    assert kinds.count("td_open") == kinds.count("th_open") == 7
    assert kinds.count("fence") == 1
    assert kinds.count("bullet_list_open") == 1
    assert "ordered_list_open" not in kinds
    html = "".join(token.content for token in tokens if token.type == "html_block")
    tags = re.findall(r"</?\w+|<!", html)
    assert tags == ["<!", "<details", "<summary", "<b", "</b", "</summary", "</details"]
    inner = [child for token in tokens for child in token.children or ()]
    found = {child.type for child in inner}
    assert found <= {"text", "text_special", "strong_open", "strong_close", "softbreak"}
    assert sum(child.type == "strong_open" for child in inner) == 1


def test_an_excerpt_cannot_close_its_code_block() -> None:
    made = one_line_report("a: ```` </details>", 3, 7)
    text = render(made, "markdown")
    assert "\n`````text\n" in text
    assert text.count("\n`````\n") == 1


# --- hostile texts --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("verbose", [False, True])
def test_no_format_passes_on_what_acts(name: str, verbose: bool) -> None:
    text = render(hostile_report(), name, verbose=verbose, width=60 if verbose else None)
    text.encode("utf-8")  # no lone surrogate
    raw = [char for char in text if unicodedata.category(char) in ("Cc", "Cs", "Cn", "Zl", "Zp")]
    assert set(raw) <= {"\n"}
    assert "\u202e" not in text
    if name in ("human", "concise", "github"):
        commands = [line for line in text.splitlines() if re.match(r"\s*::", line)]
        own = r"\s*:::|::error file=" if name == "github" else r"\s*::: "
        assert all(re.match(own, line) for line in commands)
        assert not re.search(r"##\w*\[", text)


def test_hostile_reports_are_read_by_their_readers() -> None:
    made = hostile_report()
    json.loads(render(made, "json"))
    junit(made)
    assert sarif_of_strangers(made)["results"][0]["level"] == "error"
    path = json.loads(render(made, "gitlab"))[0]["location"]["path"]
    assert path.isprintable()


def sarif_of_strangers(made: CheckReport) -> Any:
    return json.loads(render(made, "sarif"))["runs"][0]


_ANY = st.text(st.characters(), max_size=30) | st.sampled_from([HOSTILE, "", "\t", "模型\x1b[0m"])


@given(_ANY, _ANY, _ANY, st.integers(0, 40), st.integers(0, 40), st.integers(20, 130))
def test_any_text_is_rendered(
    message: str, line: str, name: str, start: int, length: int, width: int
) -> None:
    made = one_line_report(line, start, start + length, message=message, label=name)
    found = made.files[0].findings[0]
    found.server = name
    found.fix = Fix(text=message, edits=(Edit(found.span, line),), safe=True)
    made.files[0].servers = [server(name)]
    for format_name in FORMATS:
        for size in (None, width):
            text = render(made, format_name, width=size, verbose=True)
            text.encode("utf-8")
            assert not {char for char in text if char < " "} - {"\n"}
    junit(made)
    for row in render(made, "human", width=width).splitlines():
        if row.lstrip().startswith("1 |"):
            assert sum(not unicodedata.combining(char) for char in row) <= max(width, 40)


def test_human_output_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from moesize.check.findings import CheckReport\n"
        "from moesize.renderers.check import render\n"
        "render(CheckReport(), 'human'); render(CheckReport(), 'github')\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = set(run(command=("-c", code)).out.split())
    assert "moesize" in loaded
    assert not loaded & {"rich", "yaml", "pydantic", "click", "hashlib", "xml", "textwrap"}
