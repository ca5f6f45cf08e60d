"""What commands are made of: options in panels, and output that survives a closed pipe."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

EXIT_YES, EXIT_NO, EXIT_WRONG_QUESTION = 0, 1, 2


def emit(render: Callable[..., None], *args: Any, **options: Any) -> None:
    """Print. A reader that has seen enough (head, less) changes no exit code."""
    try:
        render(*args, **options)
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()


def silence_stdout() -> None:
    """Send what is still to be printed nowhere: Python would try, and complain, again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document, indent=2))


def one_line(text: str) -> str:
    """Text for one line of a terminal."""
    # Names and files come from strangers; control characters must not reach a terminal.
    return "".join(char if char.isprintable() else " " for char in text).strip()


class PanelCommand(click.Command):
    """Shows its options in panels (Model, GPUs, Workload, ...) and runnable examples last."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            # Arguments stand in the usage line and are explained in the text.
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                panel = getattr(param, "panel", "Output")  # --help itself
                panels.setdefault(panel, []).append(record)
        for panel, records in panels.items():
            with formatter.section(panel):
                formatter.write_dl(records)


class _Option(click.Option):
    """An option that knows its help panel."""

    def __init__(self, *args: Any, panel: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.panel = panel


def option(panel: str, *names: str, **kwargs: Any) -> Callable[[Command], Command]:
    """`click.option` in a help panel."""
    return click.option(*names, cls=_Option, panel=panel, **kwargs)


def options(*decorators: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Several options as one decorator."""

    def decorate(function: Command) -> Command:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate
