"""The body of `moesize verify`: options in, exit code out; torch is loaded here and not before."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moesize.core.errors import EnvironmentProblem, InvalidInputError
from moesize.core.units import parse_count

if TYPE_CHECKING:
    from moesize.verify.report import VerifyReport

# (what, bytes done since the last call, bytes to do; 0: not counted)
_Progress = Callable[[str, int, int], None]


def execute(
    model: str,
    output: str,
    *,
    synthetic: bool,
    shards: str | None,
    tokens: str,
    sequences: str,
    tp_rank: str | None,
    **options: Any,
) -> int:
    """Run it. Raises MoesizeError."""
    if synthetic and shards not in (None, "synthetic"):
        raise InvalidInputError("--synthetic and --shards name different shards")
    ranks = _ranks(tp_rank)
    verify = _loaded()
    _stop_on_signals()
    quiet = int(os.environ.get("RANK", "0") or 0) > 0
    with _bars(quiet=quiet) as progress:
        report = verify(
            model,
            shards="synthetic" if synthetic else shards,
            tokens=parse_count(tokens),
            sequences=parse_count(sequences),
            tp_rank=ranks,
            command=_command(model),
            progress=progress,
            **options,
        )
    if not quiet:
        _print(report, output)
    return 0 if report.agrees else 1


def _loaded() -> Callable[..., VerifyReport]:
    try:
        from moesize.verify.run import verify
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == "moesize":
            raise
        raise EnvironmentProblem(
            f"{error.name} is not installed, which measuring needs",
            "pip install '.[verify]' in the checkout, with the torch build for your device",
        ) from error
    return verify


def _command(model: str) -> str:
    """What was typed, without the paths in it: it goes into reports and records."""
    from moesize.verify.neutral import neutral_command

    words = sys.argv[1:]
    return f"moesize {neutral_command(words, model)}"[:1000] if words else ""


def _ranks(text: str | None) -> tuple[int, int] | None:
    """`0/8` -> (0, 8)."""
    if text is None:
        return None
    rank, slash, size = text.partition("/")
    if not (slash and rank.isascii() and rank.isdigit() and size.isascii() and size.isdigit()):
        raise InvalidInputError(f"--tp-rank {text[:40]!r} is no rank", "write it like 0/8")
    if len(size) > 4 or not int(rank) < int(size):
        raise InvalidInputError(f"--tp-rank {text[:40]}: rank {rank} is not one of {size}")
    return int(rank), int(size)


def _stop_on_signals() -> None:
    """torchrun ends its processes with SIGTERM: folders have to go then as well."""

    def stop(number: int, frame: object) -> None:
        del frame
        raise SystemExit(128 + number)

    if os.environ.get("WORLD_SIZE"):
        signal.signal(signal.SIGTERM, stop)


def _print(report: VerifyReport, output: str) -> None:
    from moesize.cli_parts import emit

    if output == "json":
        emit(print, json.dumps(report.to_dict(), indent=2))
    elif output == "markdown":
        from moesize.renderers.verify import verify_markdown

        emit(print, verify_markdown(report))
    else:
        from moesize.renderers.table import print_verify

        emit(print_verify, report)


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total


@contextmanager
def _bars(*, quiet: bool) -> Iterator[_Progress]:
    """Bars on a terminal's stderr: counts of bytes, and phases by name. Silent elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield _silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def step(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None)
            bars.update(tasks[what], advance=done)

        yield step
