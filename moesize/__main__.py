"""`moesize` and `python -m moesize`: run the command line, turn trouble into exit codes."""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code (interface: 0, 1, 2, 3, 130)."""
    argv = sys.argv[1:] if arguments is None else arguments
    if argv in (["--version"], ["-V"]):
        from moesize._version import __version__

        print(f"moesize {__version__}")
        return 0
    from moesize.cli import run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
