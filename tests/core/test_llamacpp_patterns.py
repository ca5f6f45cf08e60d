"""Patterns of tensor overrides against Python's own engine."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesize.core.errors import InvalidDeploymentError
from moesize.core.llamacpp_patterns import Pattern
from moesize.core.llamacpp_weights import DENSE_PATTERN, EXPERTS_PATTERN

# From commands in field reports, and the forms that the syntax has.
PATTERNS = (
    "exps",
    EXPERTS_PATTERN,
    DENSE_PATTERN,
    r"blk\.(3)\.ffn_.*",
    r"\.attn_.*\.weight|\.ffn_.*_shexp\.|blk\.0\.ffn|output\.weight",
    r"blk\.1[4-9]\.ffn.*",
    r"blk\.([0-9]|1[0-2])\.ffn_(up|down|gate|gate_up)_(ch|)exps",
    "^token_embd",
    "weight$",
    "^$",
    r"blk\.\d{2,3}\.",
    r"blk\.\d{2}\.",
    "(a|b)*c",
    r"[^a-z]+\.w",
    r"blk\.[0-9]?[02468]\.",
    "ffn_(?:gate|up)??_exps",
    "x{0}blk",
    r"\W\w+_norm",
    "(up|down){1,}_",
)
NAMES = (
    *(
        f"blk.{layer}.{name}"
        for layer in (0, 1, 3, 9, 10, 14, 19, 35, 60, 100)
        for name in (
            "attn_q.weight",
            "attn_norm.weight",
            "ffn_up_exps.weight",
            "ffn_gate_exps.bias",
            "ffn_down_shexp.weight",
            "ffn_down.weight",
            "ffn_gate_up_exps.weight",
        )
    ),
    "token_embd.weight",
    "output.weight",
    "output_norm.weight",
    "",
)


@pytest.mark.parametrize("text", PATTERNS)
def test_finds_what_a_regular_expression_finds(text: str) -> None:
    pattern = Pattern(text)
    found = {name for name in NAMES if pattern.found_in(name)}
    assert found == {name for name in NAMES if re.search(text, name)}


@given(st.text("ab.*+?|()[]^${}1,\\", max_size=12), st.text("ab.1", max_size=8))
@settings(max_examples=400, deadline=None)
def test_hostile_patterns_are_refused_or_understood(text: str, name: str) -> None:
    try:
        pattern = Pattern(text)
    except InvalidDeploymentError:
        return
    try:
        wanted = re.compile(text)
    except (re.error, OverflowError, FutureWarning):
        return  # Python refuses more than std::regex does
    if "[]" in text or "[^]" in text:
        return  # a ] that comes first is a member for Python, and ends the class for ECMAScript
    assert pattern.found_in(name) == bool(wanted.search(name))


@pytest.mark.parametrize(
    "text",
    ["(", ")", "a{", "*a", "[a", "\\", "(?=a)", "a{2000}", "((((a{99}){99}){99}){99})", "a" * 5000],
)
def test_unreadable_patterns(text: str) -> None:
    with pytest.raises(InvalidDeploymentError):
        Pattern(text)


def test_time_is_linear() -> None:
    start = time.process_time()
    assert not Pattern("(.*)*(.*)*(a|a)*x").found_in("a" * 5000)
    assert time.process_time() - start < 2
