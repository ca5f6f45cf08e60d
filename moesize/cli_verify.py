"""The body of `moesize verify`: options in, exit code out; torch is loaded here and not before."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moesize.core.errors import EnvironmentProblem, InvalidInputError
from moesize.core.units import format_bytes, parse_count
from moesize.verify.report import SaidByFirst

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
    _check_name(model)
    verify = _loaded()
    quiet = os.environ.get("RANK", "0").strip("0") != ""
    try:
        with _stopping_on_signals(), _bars(quiet=quiet) as progress:
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
    except SaidByFirst as end:
        return end.problem.exit_code
    except (MemoryError, RuntimeError) as error:
        # Where it runs out in a phase of the run, it is a result.
        from moesize.verify.phases import out_of_memory

        asked = out_of_memory(error)
        if asked is None:
            raise
        raise EnvironmentProblem(
            "memory ran out before anything was measured"
            + (f": {format_bytes(asked)} more were asked for" if asked else ""),
            "fewer --layers, --tokens or --sequences",
        ) from None
    except _Stopped:
        several = "torchrun sends it when another rank has failed: see its output"
        raise EnvironmentProblem(
            "stopped by SIGTERM", several if os.environ.get("WORLD_SIZE") else ""
        ) from None
    if quiet:
        # Rank 0 has this rank's figures, and its exit code is that of the run: torchrun would stop
        # it in the middle of the report if another rank said first that figures differ.
        return 0
    _print(report, output)
    return 0 if report.agrees else 1


def _check_name(model: str) -> None:
    """A name that there is not is said before torch is loaded, which takes seconds."""
    from moesize.catalog import resolve_model

    if "/" not in model and not model.lower().endswith((".gguf", ".yaml", ".yml", ".json")):
        resolve_model(model)


def _loaded() -> Callable[..., VerifyReport]:
    # Torch asks for NumPy when it is first used, and says on two lines that it does without.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
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


class _Stopped(SystemExit):
    """By a signal, in the midst of things."""


@contextmanager
def _stopping_on_signals() -> Iterator[None]:
    """SIGTERM, of torchrun or of whoever ends a job, is an error: folders have to go then too."""

    def stop(number: int, frame: object) -> None:
        del frame
        raise _Stopped(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
    """Bars on a terminal's stderr: bytes of what is written, fetched and loaded, and the phase that
    runs now. Silent elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield _silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}
        phases: list[Any] = []  # none or one: there may be thousands of decode steps

        def step(what: str, done: int, total: int) -> None:
            if not done:  # a phase begins, of loading as well
                if not phases:
                    phases.append(bars.add_task(what, total=None, amount=""))
                bars.update(phases[0], description=what)
                return
            if phases:
                bars.remove_task(phases.pop())
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=None, amount="")
            task = bars.tasks[bars.task_ids.index(tasks[what])]
            seen = int(task.completed) + done
            bars.update(
                tasks[what], advance=done, total=total or None, amount=_amount(seen, total, task)
            )

        yield step


def _amount(done: int, total: int, task: Any) -> str:
    """1.50 GiB of 2.00 GiB, 1.20 GB/s."""
    text = format_bytes(done) + (f" of {format_bytes(total)}" if total else "")
    return text + (f", {task.speed / 1e9:.2f} GB/s" if (task.speed or 0) > 1e7 else "")
