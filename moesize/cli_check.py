"""`moesize check`: its options, and from a report to output and exit code."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from moesize.cli_parts import (
    EXIT_NO,
    EXIT_YES,
    emit,
    one_line,
    option,
    options,
    print_json,
)
from moesize.core.errors import CannotAnswerError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from moesize.check.findings import CheckReport

FORMATS = ("human", "concise", "json", "sarif", "junit", "github", "gitlab", "markdown")
FAIL_ON = ("error", "warning", "info", "never")
# Programs read these whole, so they are written even when there was nothing to check.
_FOR_PROGRAMS = ("sarif", "junit", "gitlab", "markdown")
# A walk that is over before a bar is read shows none.
_BAR_AFTER_S = 0.5
_MOST_STDIN_BYTES = 4 << 20

_CHECK_OPTIONS = options(
    option(
        "GPUs",
        "--gpu",
        "-g",
        "gpu",
        metavar="NAME",
        help="For files that name no GPU: h100, g5.12xlarge, local, ...",
    ),
    option(
        "GPUs",
        "--gpus",
        "-n",
        "gpus",
        type=click.IntRange(1, 4096),
        metavar="N",
        help="How many, where a file does not say.",
    ),
    option(
        "Values",
        "--engine-version",
        "engine_version",
        multiple=True,
        metavar="[ENGINE=]V",
        help="Release where no image names one: 0.10.2 (vLLM), sglang=0.5.10.",
    ),
    option(
        "Values",
        "--set",
        "set_",
        multiple=True,
        metavar="NAME=VALUE",
        help="A variable that no file defines; may be repeated.",
    ),
    option(
        "Values",
        "--env-file",
        "env_file",
        type=click.Path(),
        metavar="FILE",
        help="Variables of an .env file.",
    ),
    option("Values", "--online", "online", is_flag=True, help="Ask the hub for unknown models."),
    option(
        "Rules",
        "--select",
        "select",
        multiple=True,
        metavar="RULES",
        help="Only these: ids, names, beginnings (MS1), with commas.",
    ),
    option(
        "Rules", "--ignore", "ignore", multiple=True, metavar="RULES", help="All rules but these."
    ),
    option(
        "Rules",
        "--fail-on",
        "fail_on",
        type=click.Choice(FAIL_ON),
        help="The least severity that fails; default: error.",
    ),
    option(
        "Rules",
        "--strict",
        "strict",
        is_flag=True,
        help="Warnings fail too, so that an unknown GPU or model does.",
    ),
    option("Rules", "--list-rules", "list_rules", is_flag=True, help="List all rules."),
    option("Rules", "--explain", "explain", metavar="RULE", help="What a rule is about."),
    option(
        "Files",
        "--exclude",
        "exclude",
        multiple=True,
        metavar="GLOB",
        help="Pass over such files; may be repeated.",
    ),
    option(
        "Files",
        "--no-gitignore",
        "gitignore",
        is_flag=True,
        flag_value=False,
        default=True,
        help="Read what .gitignore names too.",
    ),
    option(
        "Files",
        "--stdin-filename",
        "stdin_filename",
        metavar="NAME",
        help="What - is called in the answer.",
    ),
    option(
        "Files",
        "--allow-empty",
        "allow_empty",
        is_flag=True,
        help="Exit code 0 where there is nothing to check.",
    ),
    option(
        "Configuration",
        "--config",
        "config",
        type=click.Path(),
        metavar="FILE",
        help="Instead of moesize.toml or pyproject.toml of the repository.",
    ),
    option("Configuration", "--no-config", "no_config", is_flag=True, help="Read none."),
    option(
        "Configuration",
        "--baseline",
        "baseline",
        type=click.Path(),
        metavar="FILE",
        help="Findings of this file do not count.",
    ),
    option(
        "Configuration",
        "--write-baseline",
        "new_baseline",
        type=click.Path(),
        metavar="FILE",
        help="Write all findings that count to such a file.",
    ),
    option("Fixes", "--fix", "fix", is_flag=True, help="Make the safe fixes in the files."),
    option("Fixes", "--diff", "diff", is_flag=True, help="Only show what --fix would change."),
    option(
        "Output",
        "--format",
        "-f",
        "output",
        type=click.Choice(FORMATS),
        help="How to print the answer; default: human (in GitHub Actions with annotations).",
    ),
    option(
        "Output",
        "--output-file",
        "-o",
        "output_file",
        type=click.Path(),
        metavar="FILE",
        help="Write the answer to a file.",
    ),
    option(
        "Output",
        "--report",
        "reports",
        multiple=True,
        metavar="FORMAT=FILE",
        help="Write another report beside; may be repeated.",
    ),
    option(
        "Output", "--verbose", "-v", "verbose", is_flag=True, help="Also what is well or unread."
    ),
    option("Output", "--quiet", "quiet", is_flag=True, help="The summary line only."),
)


@click.command()
@click.argument("paths", nargs=-1, type=click.Path())
@_CHECK_OPTIONS
def command() -> None:
    """Holds the options of `check`, which the command line takes from here."""


def run_check(paths: tuple[str, ...], list_rules: bool, explain: str | None, **given: Any) -> int:
    """`moesize check` with its options; returns the exit code."""
    if list_rules:
        return _list_rules(given["output"] == "json")
    if explain is not None:
        from moesize.check.rules import find_rule
        from moesize.renderers.check.rules import rule_text

        emit(print, rule_text(find_rule(explain)))
        return EXIT_YES
    return _Run(paths or (".",), given).run()


def _list_rules(as_json: bool) -> int:
    from moesize.check.rules import RULES
    from moesize.renderers.check.rules import rules_list

    if as_json:
        rows = [rule._asdict() for rule in RULES]
        emit(print_json, {"schema": "moesize.rules/1", "rules": rows})
    else:
        emit(print, rules_list(RULES))
    return EXIT_YES


class _Run:
    """One `moesize check`, from its options to its exit code."""

    def __init__(self, paths: tuple[str, ...], given: dict[str, Any]) -> None:
        self.paths = list(paths)
        self.given = given
        self.verbose: bool = given["verbose"]
        self.format: str = given["output"] or "human"
        self.reports = [_report_option(text) for text in given["reports"]]
        self.pipe = _read_stdin() if "-" in self.paths else b""
        # Where the fixed text or the diff takes stdout, the findings go to stderr.
        self.stdout_is_taken = False

    def run(self) -> int:
        """Check, fix, write."""
        report = self.fixed() if self.given["fix"] or self.given["diff"] else self.check()
        if self.given["new_baseline"] is not None:
            self.write_baseline(report)
        if report.stale:
            count = "1 entry" if report.stale == 1 else f"{report.stale:,} entries"
            _tell(f"{count} of the baseline no longer occur: --write-baseline makes it anew")
        if not report.found_nothing or self.format in self.shown_when_empty():
            self.write(report)
        for name, path in self.reports:
            _write_file(path, _render(report, name, verbose=self.verbose))
        if report.found_nothing:
            raise _nothing(report, verbose=self.verbose)
        return EXIT_NO if report.fails else EXIT_YES

    def shown_when_empty(self) -> tuple[str, ...]:
        """Formats that say something of nothing."""
        return (*_FOR_PROGRAMS, "human") if self.verbose else _FOR_PROGRAMS

    def check(self, raw: bytes | None = None) -> CheckReport:
        """The report."""
        from moesize.check.run import check_files

        given = self.given
        with _Bar() as bar:
            return check_files(
                self.paths,
                gpu=given["gpu"],
                gpus=given["gpus"],
                engine_version=given["engine_version"],
                set=given["set_"],
                env_file=given["env_file"],
                select=_names(given["select"]) or None,
                ignore=_names(given["ignore"]),
                fail_on=given["fail_on"],
                strict=given["strict"],
                allow_empty=given["allow_empty"],
                config=given["config"],
                use_config=not given["no_config"],
                baseline=given["baseline"],
                use_baseline=given["new_baseline"] is None,
                exclude=given["exclude"],
                gitignore=given["gitignore"],
                online=given["online"],
                stdin=self.pipe if raw is None else raw,
                stdin_filename=given["stdin_filename"],
                progress=bar.step,
            )

    # --- fixes ------------------------------------------------------------------------------------

    def fixed(self) -> CheckReport:
        """The report after fixes were made, or before them with --diff."""
        from pathlib import Path

        from moesize.check.edits import diff_of, fix_files, fix_text, fix_texts

        if self.given["diff"]:
            report = self.check()
            self.stdout_is_taken = True
            diffs = [diff_of(fixed) for fixed in fix_texts(report)]
            emit(_write_bytes, "".join(diffs).encode())
            return report
        if self.paths == ["-"]:
            text, report = fix_text(self.check, self.pipe)
            self.stdout_is_taken = True
            emit(_write_bytes, text)
            return report
        outcome = fix_files(self.check, Path.cwd())
        for problem in outcome.problems:
            _tell(problem)
        fixes = "1 finding" if outcome.num_fixes == 1 else f"{outcome.num_fixes:,} findings"
        files = "1 file" if outcome.num_files == 1 else f"{outcome.num_files:,} files"
        if outcome.num_fixes:
            _tell(f"fixed {fixes} in {files}")
        return outcome.report

    # --- output -----------------------------------------------------------------------------------

    def write(self, report: CheckReport) -> None:
        """The answer, where it belongs."""
        quiet = self.given["quiet"]
        target = self.given["output_file"]
        if target is not None:
            text = _render(report, self.format, verbose=self.verbose, quiet=quiet)
            _write_file(target, text)
        elif self.stdout_is_taken:
            text = _render(report, self.format, verbose=self.verbose, quiet=quiet)
            print(text, file=sys.stderr)
        elif self.format == "human":
            from moesize.renderers.check.text import use_color, use_width

            text = _render(
                report,
                "human",
                color=use_color(),
                width=use_width(),
                verbose=self.verbose,
                quiet=quiet,
            )
            emit(print, text)
            if self.given["output"] is None and os.environ.get("GITHUB_ACTIONS") == "true":
                from moesize.renderers.check.github import annotation_lines

                for line in annotation_lines(report, verbose=self.verbose):
                    emit(print, line)
        else:
            text = _render(report, self.format, verbose=self.verbose, quiet=quiet)
            emit(print, text, end="\n" if text else "")

    def write_baseline(self, report: CheckReport) -> None:
        """All findings that count become the baseline, and count no longer."""
        from pathlib import Path

        from moesize.check.baseline import write_baseline

        path = Path(self.given["new_baseline"])
        number = write_baseline(path, report.files)
        for finding in report.findings:
            finding.suppressed = "baseline"
        count = "1 finding" if number == 1 else f"{number:,} findings"
        _tell(f"wrote {count} to {path}")


def _nothing(report: CheckReport, *, verbose: bool) -> CannotAnswerError:
    count = len(report.ignored)
    looked_at = "1 file or folder" if count == 1 else f"{count:,} files and folders"
    return CannotAnswerError(
        f"nothing to check: nothing that deploys a model in {looked_at}"
        if count
        else "nothing to check: no file that could deploy a model",
        "--allow-empty makes this no error"
        + ("" if verbose or not count else "; --verbose says why each was passed over"),
    )


def _render(report: CheckReport, name: str, **how: Any) -> str:
    from moesize.renderers.check import render

    return render(report, name, **how)


def _write_file(path: str, text: str) -> None:
    from pathlib import Path

    from moesize.check.files import write_whole

    write_whole(Path(path), (text.rstrip("\n") + "\n" if text else "").encode(errors="replace"))


def _write_bytes(raw: bytes) -> None:
    """Bytes to stdout as they are: the text of a file, in its own encoding."""
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:
        sys.stdout.write(raw.decode("utf-8", errors="replace"))
        return
    sys.stdout.flush()
    buffer.write(raw)
    buffer.flush()


def _read_stdin() -> bytes:
    if sys.stdin is None:
        raise InvalidInputError("- is given, but standard input is closed")
    return sys.stdin.buffer.read(_MOST_STDIN_BYTES + 1)


def _names(texts: Iterable[str]) -> list[str]:
    """Comma lists as one list."""
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]


def _report_option(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not path or name not in FORMATS:
        raise click.BadParameter(
            f"{one_line(text)[:60]!r} is to be FORMAT=FILE with one of {', '.join(FORMATS)}",
            param_hint="--report",
        )
    return name, path


def _tell(text: str) -> None:
    print(f"note: {one_line(text)}", file=sys.stderr)


class _Bar:
    """A bar on a terminal's stderr for checks that take their time."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self.move: Callable[[], None] | None = None
        self.shown = 0
        self.begin = 0.0

    def __enter__(self) -> _Bar:
        from time import monotonic

        self.begin = monotonic()
        return self

    def __exit__(self, *trouble: object) -> None:
        self.stack.close()

    def step(self, done: int, total: int) -> None:
        """`done` of `total` files are done."""
        if self.move is None:
            from time import monotonic

            if monotonic() - self.begin < _BAR_AFTER_S or not sys.stderr.isatty():
                return
            from moesize.renderers.table import counting

            self.move = self.stack.enter_context(counting(total, "files"))
        while self.shown < done:
            self.move()
            self.shown += 1
