"""`moesize` and `python -m moesize`: run the command line, turn trouble into exit codes."""

from __future__ import annotations

import gc
import os
import sys

# Containers alive before unreachable ones are looked for. A plan makes 20,000, and looking through
# them again and again at Python's own 700 took an eighth of its time.
_GARBAGE_AFTER = 200_000


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code (interface: 0, 1, 2, 3, 130)."""
    if arguments is not None:
        return _main(arguments)
    gc.set_threshold(_GARBAGE_AFTER)  # the process is ours, and short
    try:
        return _main(sys.argv[1:])
    finally:
        gc.freeze()  # nothing is looked through once more at exit


def _main(argv: list[str]) -> int:
    if sys.stdout is None or sys.stderr is None:  # closed by whoever started us
        nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  (kept open)
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    try:
        return _run(argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OSError as error:  # files are read with errors of their own: this is stdout
        from moesize.cli_parts import silence_stdout

        silence_stdout()
        if isinstance(error, BrokenPipeError):
            return 0
        print(f"error: the output cannot be written ({error.strerror})", file=sys.stderr)
        return 3


def _run(argv: list[str]) -> int:
    if argv in (["--version"], ["-V"]):
        from moesize._version import __version__

        print(f"moesize {__version__}", flush=True)
        return 0
    from moesize.cli import run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
