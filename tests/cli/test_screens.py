"""Whole screens at fixed widths, compared with the text files in screens/.

    MOESIZE_WRITE_SCREENS=1 pytest tests/cli/test_screens.py     writes them anew

The numbers on them are checked elsewhere; here it is about what a person sees.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from running import call

SCREENS = Path(__file__).parent / "screens"
COMMANDS: dict[str, tuple[str, ...]] = {
    "plan-no": ("plan", "mixtral-8x7b", "--gpu", "a10g", "--quant", "4bit"),
    "plan-yes": ("plan", "deepseek-v3", "--gpu", "h200", "--gpus", "8", "--context", "32k"),
    "show": ("show", "deepseek-v3"),
    "plan-help": ("plan", "--help"),
    "gpus": ("gpus", "l40"),
    "check-help": ("check", "--help"),
}
WIDTHS = (40, 80, 120)


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("name", COMMANDS)
def test_screen(name: str, columns: int) -> None:
    path = SCREENS / f"{name}-{columns}.txt"
    screen = call(*COMMANDS[name], columns=columns).out
    if os.environ.get("MOESIZE_WRITE_SCREENS"):
        path.write_text(screen, encoding="utf-8")
    assert screen == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("name", COMMANDS)
def test_no_line_is_wider_than_the_terminal(name: str, columns: int) -> None:
    screen = call(*COMMANDS[name], columns=columns).out
    # Commands to paste and names of options are never broken.
    lines = [line for line in screen.splitlines() if not line.startswith(("  moesize ", "  -"))]
    if "help" in name:
        columns = max(columns, 50)  # click does not wrap text below that
    widest = max(lines, key=len)
    assert len(widest) <= columns, widest
    assert all(line == line.rstrip() for line in screen.splitlines())


def test_every_screen_has_its_command() -> None:
    names = {f"{name}-{columns}.txt" for name in COMMANDS for columns in WIDTHS}
    assert {path.name for path in SCREENS.iterdir()} == names
