"""The project's own measurements on a GPU: runs `moesize verify` for each and keeps the records.

    python scripts/measure.py [--only WORD] [--list] [--folder measurements] [--minutes N]
        [-- --device cpu --tokens 64]

Every run is a process of its own, so that each begins on an empty device; one that fails, or takes
longer than the time that is left, is named at the end (exit code 1). What follows `--` is passed on
to each run. `scripts/build_docs.py` then makes the table of README out of the records.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

# How long a run may take to remove its shards.
_GRACE_S = 60.0
ROOT = Path(__file__).resolve().parent.parent
# One layer of every kind and a few more where a model is larger than a card; a whole model where
# one card of 80 GB holds it.
RUNS = (
    "mixtral-8x7b --layers 0-7",
    "mixtral-8x7b --layers 0-7 --quant fp8",
    "mixtral-8x7b --layers 0-7 --quant gptq-4bit",
    "mixtral-8x7b --layers 0-7 --tp-rank 0/2",
    "deepseek-v3 --layers 0,3-4",
    "deepseek-v3 --layers 0,3-4 --tp-rank 0/8",
    "qwen3-next-80b-a3b --layers 0-7",
    "gpt-oss-120b --layers 0-7",
    "gemma-3-27b --layers 0-11",
    "llama-3.1-8b --layers all --tokens 2048 --sequences 8",
    "qwen3-30b-a3b --layers all",
    "mixtral-8x7b --layers all --quant gptq-4bit",
    "mixtral-8x7b --layers auto",
)


def main() -> int:
    """Run them."""
    own, passed_on = _split(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="runs whose line holds this")
    parser.add_argument("--list", action="store_true", help="name the runs and stop")
    parser.add_argument("--folder", type=Path, default=ROOT / "measurements")
    parser.add_argument("--minutes", type=float, default=120.0, help="for all of them together")
    options = parser.parse_args(own)
    runs = [line for line in RUNS if options.only in line]
    if options.list:
        print("\n".join(runs))
        return 0
    until = time.monotonic() + 60 * options.minutes
    failed = [line for line in runs if not _measured(line, passed_on, options.folder, until)]
    for line in failed:
        print(f"not measured, or not as predicted: {line}", file=sys.stderr)
    return 1 if failed else 0


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def _measured(line: str, passed_on: list[str], folder: Path, until: float) -> bool:
    left = until - time.monotonic()
    if left <= 0:
        return False
    command = [sys.executable, "-m", "moesize", "verify", *line.split(), *passed_on, "--save"]
    begin = time.monotonic()
    child = subprocess.Popen(command, env={**os.environ, "MOESIZE_RECEIPTS": str(folder.resolve())})
    try:
        code = child.wait(left)
    except subprocess.TimeoutExpired:
        code = -1
    finally:
        _end(child)
    print(f"exit code {code}, {time.monotonic() - begin:.0f} s: {line}", flush=True)
    return code == 0


def _end(child: subprocess.Popen[bytes]) -> None:
    """Politely first: a run that is killed leaves its shards behind, tens of GB."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


if __name__ == "__main__":
    sys.exit(main())
