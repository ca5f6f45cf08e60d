"""Fixes made: the edited characters change and no others, in files whole or not at all."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from moesize.check.edits import (
    Fixed,
    apply_fixes,
    diff_of,
    fix_files,
    fix_text,
    fix_texts,
    write_fixed,
)
from moesize.check.files import write_whole
from moesize.check.findings import CheckReport, Edit, FileResult, Finding, Fix
from moesize.check.source import SourceFile, Span
from moesize.core.errors import InvalidInputError


def edit(line: int, column: int, end: int, text: str, *, end_line: int = 0) -> Edit:
    return Edit(Span("x.yaml", line, column, end_line or line, end), text)


def finding(*edits: Edit, safe: bool = True) -> Finding:
    fix = Fix(text="so", edits=edits, safe=safe)
    return Finding(rule="MS102", severity="error", message="m", span=edits[0].span, fix=fix)


def applied(text: str, *findings: Finding) -> tuple[str, list[int]]:
    """The text, and which findings were fixed."""
    pairs = [(one, one.fix) for one in findings]
    after, made = apply_fixes(SourceFile("x.yaml", text), pairs)  # type: ignore[arg-type]
    numbers = {id(one): number for number, one in enumerate(findings)}
    return after, [numbers[id(one)] for one in made]


def report_of(text: str, *findings: Finding) -> CheckReport:
    file = FileResult(path="x.yaml", kind="k", findings=list(findings))
    return CheckReport(files=[file], texts={"x.yaml": text})


def test_edits_from_all_over_a_text() -> None:
    text = "a: 111\nb: 222\nc: 333\n"
    found = (finding(edit(3, 4, 7, "3")), finding(edit(1, 4, 7, "one")))
    assert applied(text, *found) == ("a: one\nb: 222\nc: 3\n", [0, 1])


def test_lines_taken_away_and_put_in() -> None:
    text = "a: 1\n# note\nb: 2\n"
    assert applied(text, finding(edit(2, 1, 1, "", end_line=3)))[0] == "a: 1\nb: 2\n"
    assert applied(text, finding(edit(3, 1, 1, "x: 0\n")))[0] == "a: 1\n# note\nx: 0\nb: 2\n"


def test_of_edits_that_touch_the_first_wins() -> None:
    text = "a: 12345\n"
    for other in (edit(1, 5, 7, "x"), edit(1, 4, 9, "x"), edit(1, 4, 4, "x"), edit(1, 3, 9, "x")):
        assert applied(text, finding(edit(1, 4, 6, "y")), finding(other)) == ("a: y345\n", [0])
    assert applied(text, finding(edit(1, 4, 6, "y")), finding(edit(1, 6, 7, "z"))) == (
        "a: yz45\n",
        [0, 1],
    )


def test_the_same_edit_twice_is_one_and_fixes_both() -> None:
    same = edit(1, 4, 5, "9")
    assert applied("a: 1\n", finding(same), finding(same)) == ("a: 9\n", [0, 1])


def test_a_fix_is_made_whole_or_not_at_all() -> None:
    text = "a: 1\nb: 2\n"
    both = finding(edit(1, 4, 5, "x"), edit(2, 4, 5, "x"))
    assert applied(text, finding(edit(2, 4, 5, "y")), both) == ("a: 1\nb: y\n", [0])


@pytest.mark.parametrize(
    "span",
    [
        (0, 1, 1, 2),
        (9, 1, 9, 2),
        (1, 4, 1, 99),
        (1, 5, 1, 4),
        (2, 1, 1, 1),
        (1, 0, 1, 1),
    ],
)
def test_places_that_are_not_in_the_text_are_left_alone(span: tuple[int, int, int, int]) -> None:
    wrong = Edit(Span("x.yaml", *span), "x")
    assert applied("a: 1\n", finding(wrong)) == ("a: 1\n", [])


def test_line_ends_stay_what_they_are() -> None:
    text = "a: 1\r\nb: 2"
    assert applied(text, finding(edit(1, 4, 5, "x\ny: 3")))[0] == "a: x\r\ny: 3\r\nb: 2"


def test_only_safe_fixes_and_only_where_the_text_is_known() -> None:
    good = finding(edit(1, 4, 5, "2"))
    assert [one.after for one in fix_texts(report_of("a: 1\n", good))] == ["a: 2\n"]
    assert fix_texts(report_of("a: 1\n", finding(edit(1, 4, 5, "2"), safe=False))) == []
    silent = finding(edit(1, 4, 5, "2"))
    silent.suppressed = "reason"
    assert fix_texts(report_of("a: 1\n", silent)) == []
    report = report_of("a: 1\n", good)
    report.texts.clear()
    assert fix_texts(report) == []


def test_a_fix_that_would_break_the_file_is_not_made() -> None:
    for text in ("[", "1\n---\nb: 2"):
        assert fix_texts(report_of("a: 1\n", finding(edit(1, 4, 5, text)))) == []


def test_a_diff() -> None:
    assert diff_of(Fixed("d/x.yaml", "a: 1\nb: 2", "a: 1\nb: 3", ())) == (
        "--- a/d/x.yaml\n+++ b/d/x.yaml\n@@ -1,2 +1,2 @@\n a: 1\n"
        "-b: 2\n\\ No newline at end of file\n+b: 3\n\\ No newline at end of file\n"
    )


def test_written_with_its_mode_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2")
    path.chmod(0o640)
    write_fixed(Fixed("x.yaml", "a: 1\r\nb: 2", "a: 9\r\nb: 2", ()), path, tmp_path)
    assert path.read_bytes() == b"\xef\xbb\xbfa: 9\r\nb: 2"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [one.name for one in tmp_path.iterdir()] == ["x.yaml"]  # no temporary file is left


def test_a_file_that_changed_meanwhile_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"a: 5\n")
    with pytest.raises(InvalidInputError, match="changed while it was checked"):
        write_fixed(Fixed("x.yaml", "a: 1\n", "a: 9\n", ()), path, tmp_path)
    assert path.read_bytes() == b"a: 5\n"


def test_a_link_stays_one_and_leads_not_out(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside.yaml"
    root.mkdir()
    for target in (root / "real.yaml", outside):
        target.write_bytes(b"a: 1\n")
    (root / "in.yaml").symlink_to("real.yaml")
    (root / "out.yaml").symlink_to(outside)
    fixed = Fixed("x", "a: 1\n", "a: 9\n", ())
    write_fixed(fixed, root / "in.yaml", root)
    assert (root / "in.yaml").is_symlink()
    assert (root / "real.yaml").read_bytes() == b"a: 9\n"
    with pytest.raises(InvalidInputError, match="leads out"):
        write_fixed(fixed, root / "out.yaml", root)
    assert outside.read_bytes() == b"a: 1\n"


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InvalidInputError, match="No space left"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["x.yaml"]


def stub_check(text: str) -> CheckReport:
    """`one` is to be `two`, and `two` is to be `three`."""
    found = []
    for old, new in (("one", "two"), ("two", "three")):
        if old in text:
            column = text.index(old) + 1
            found.append(finding(edit(1, column, column + len(old), new)))
    return report_of(text, *found)


def test_rounds_until_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: one\n", encoding="utf-8")
    outcome = fix_files(lambda: stub_check(path.read_text(encoding="utf-8")), tmp_path)
    assert path.read_text(encoding="utf-8") == "a: three\n"
    assert (outcome.num_fixes, outcome.num_files, outcome.problems) == (2, 1, ())
    assert outcome.report.findings == []


def test_a_file_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: other\n", encoding="utf-8")
    outcome = fix_files(lambda: stub_check("a: one\n"), tmp_path)
    assert outcome.problems == ("x.yaml: changed while it was checked: not fixed",)
    assert (outcome.num_fixes, len(outcome.report.findings)) == (0, 1)


def test_a_text_from_a_pipe() -> None:
    raw, report = fix_text(
        lambda raw: stub_check(raw.decode("utf-8-sig")), b"\xef\xbb\xbfa: one\r\n"
    )
    assert raw == b"\xef\xbb\xbfa: three\r\n"
    assert report.findings == []
