"""Every check and test of the project, one after the other; stops at the first that fails.

python scripts/check.py            all of them
python scripts/check.py lint       without the tests
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_BIN = Path(sys.executable).parent
LINT: tuple[tuple[str, ...], ...] = (
    (str(_BIN / "ruff"), "check", "."),
    (str(_BIN / "ruff"), "format", "--check", "."),
    (sys.executable, "-m", "mypy"),
    (str(_BIN / "lint-imports"),),
    (sys.executable, "scripts/build_docs.py", "--check"),
    (sys.executable, "scripts/calibrate_records.py", "--check"),
)
TESTS: tuple[tuple[str, ...], ...] = ((sys.executable, "-m", "pytest", "-n", "auto"),)


def main() -> int:
    """Run them; the last thing printed is pytest's own summary."""
    only_lint = sys.argv[1:] == ["lint"]
    for command in LINT if only_lint else (*LINT, *TESTS):
        shown = " ".join([Path(command[0]).name, *command[1:]])
        print(f"== {shown}", flush=True)
        begin = time.monotonic()
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code:
            print(f"error: {shown} failed with {code}", file=sys.stderr)
            return 1
        if command not in TESTS:
            print(f"   {time.monotonic() - begin:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
