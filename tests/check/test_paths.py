"""Patterns of ignore files. What is expected was asked of `git check-ignore` 2.39."""

from __future__ import annotations

import time

import pytest

from moesize.check.paths import decide, parse_pattern, parse_patterns, path_matches


def is_ignored(lines: list[str], path: str) -> bool:
    """As git has it: what is in an ignored folder is ignored."""
    patterns = parse_patterns(lines)
    folder = path.endswith("/")
    parts = path.rstrip("/").split("/")
    return any(
        decide(patterns, parts[:length], is_folder=folder or length < len(parts))
        for length in range(1, len(parts) + 1)
    )


@pytest.mark.parametrize(
    ("lines", "path", "expected"),
    [
        (["*.yaml"], "a/b.yaml", True),
        (["*.yaml"], "a/b.yml", False),
        (["build"], "a/build/x.yaml", True),
        (["build/"], "a/build/x.yaml", True),
        (["build/"], "a/build", False),
        (["/build"], "a/build/x.yaml", False),
        (["/build"], "build/x.yaml", True),
        (["a/b"], "x/a/b", False),
        (["a/b"], "a/b", True),
        (["**/b"], "x/y/b", True),
        (["a/**/b"], "a/b", True),
        (["a/**/b"], "a/x/y/b", True),
        (["a/**"], "a/x", True),
        (["a/**"], "b/a/x", False),
        (["*", "!*.yaml"], "x.yaml", False),
        (["*", "!*.yaml"], "x.yml", True),
        (["a/", "!a/x.yaml"], "a/x.yaml", True),
        (["!x", "x"], "x", True),
        (["a?c"], "abc", True),
        (["a?c"], "ac", False),
        (["[a-c]x"], "bx", True),
        (["[!a-c]x"], "bx", False),
        (["[^a-c]x"], "dx", True),
        (["[z-a]x"], "bx", False),
        (["[]a]"], "]", True),
        ([r"\#x"], "#x", True),
        (["#x"], "#x", False),
        ([r"\!x"], "!x", True),
        (["x  "], "x", True),
        (["x\\ "], "x ", True),
        (["a*b*c"], "axbxbc", True),
        (["a*b*c"], "axbxb", False),
        (["a*"], "a\nb", True),
        (["***/x"], "a/b/x", True),
    ],
)
def test_what_git_ignores(lines: list[str], path: str, expected: bool) -> None:
    assert is_ignored(lines, path) is expected


def test_lines_that_are_no_pattern() -> None:
    for line in ("", "   ", "# a comment", "/", "!", "x" * 5000):
        assert parse_pattern(line) is None


def test_no_pattern_makes_matching_slow() -> None:
    many = "*a" * 200 + "b"
    deep = "**/a/" * 200 + "b"
    begin = time.process_time()
    assert not is_ignored([many], "a" * 255)
    assert not is_ignored([deep], "/".join("a" * 1000))
    assert time.process_time() - begin < 2


@pytest.mark.parametrize(
    ("glob", "path", "expected"),
    [
        ("clusters/prod-a/**", "clusters/prod-a/x/y.yaml", True),
        ("clusters/prod-a", "clusters/prod-a/x/y.yaml", True),
        ("clusters/prod-a/", "clusters/prod-b/y.yaml", False),
        ("*.yaml", "deep/y.yaml", True),
        ("y.yaml", "./y.yaml", True),
        ("", "y.yaml", False),
    ],
)
def test_globs_of_the_configuration(glob: str, path: str, expected: bool) -> None:
    assert path_matches(glob, path) is expected
