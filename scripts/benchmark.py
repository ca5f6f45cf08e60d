"""What moesize costs: start-up as multiples of bare Python, and plans per second in one process.

    python scripts/benchmark.py [--runs 21] [--markdown]

CPU time (user + system) of the child process; runs are interleaved, so that a busy machine
disturbs all commands alike. Trust the multiples, not the milliseconds. Byte code is cached, as it
is after the first run of any installed program.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from tempfile import TemporaryDirectory
from typing import NamedTuple

_PLAN = ("plan", "mixtral-8x7b", "--gpu", "a10g", "--quant", "4bit")
COMMANDS: dict[str, tuple[str, ...]] = {
    "python -c pass": ("-c", "pass"),
    "moesize --version": ("-m", "moesize", "--version"),
    "moesize --help": ("-m", "moesize", "--help"),
    "moesize plan --format json": ("-m", "moesize", *_PLAN, "--format", "json"),
    "moesize plan (table)": ("-m", "moesize", *_PLAN),
}
BARE = "python -c pass"


class Timing(NamedTuple):
    """CPU seconds of one command over all runs."""

    least_s: float
    median_s: float


def cpu_seconds(arguments: tuple[str, ...], environment: dict[str, str]) -> float:
    """CPU time of one fresh Python process."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0  # reaped here; Popen must not wait for it again
    return usage.ru_utime + usage.ru_stime


def measure(runs: int) -> dict[str, Timing]:
    """Every command `runs` times, all of them in each round."""
    with TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for arguments in COMMANDS.values():
            cpu_seconds(arguments, environment)  # byte-compiles and fills the file cache
        rounds = [
            [cpu_seconds(arguments, environment) for arguments in COMMANDS.values()]
            for _ in range(runs)
        ]
    columns = zip(*rounds, strict=True)
    return {
        name: Timing(min(column), statistics.median(column))
        for name, column in zip(COMMANDS, columns, strict=True)
    }


def plans_per_second(seconds: float = 2.0) -> tuple[float, float]:
    """(first plan in seconds, plans per second after it) for DeepSeek-V3 on 8 H200.

    Every plan differs in context length, so that no whole answer can come from a cache.
    """
    from moesize.api import make_plan
    from moesize.catalog import resolve_model
    from moesize.core.deployment import Request
    from moesize.gpus import find_gpu

    spec, source = resolve_model("deepseek-v3")
    device = find_gpu("h200").spec
    begin = time.perf_counter()
    make_plan(spec, source, None, "", device, Request(num_gpus=8, context_tokens=4096))
    first = time.perf_counter() - begin
    count, begin = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < seconds:
        request = Request(num_gpus=8, context_tokens=4096 + 16 * count)
        make_plan(spec, source, None, "", device, request)
        count += 1
    return first, count / elapsed


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument(
        "--markdown", action="store_true", help="as the table of docs/benchmarks.md"
    )
    options = parser.parse_args()
    timings = measure(options.runs)
    bare = timings[BARE]
    rows = [
        (
            name,
            f"{timing.least_s * 1e3:.0f}",
            f"{timing.median_s * 1e3:.0f}",
            f"{timing.least_s / bare.least_s:.1f}",
            f"{timing.median_s / bare.median_s:.1f}",
        )
        for name, timing in timings.items()
    ]
    head = ("command", "least, ms", "median, ms", "least, x bare", "median, x bare")
    if options.markdown:
        lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * 4 + "|"]
        lines += ["| " + " | ".join((f"`{row[0]}`", *row[1:])) + " |" for row in rows]
        print("\n".join(lines), end="\n\n")
    else:
        for row in (head, *rows):
            print(f"{row[0]:<28}" + "".join(f"{cell:>16}" for cell in row[1:]))
    first, rate = plans_per_second()
    print(f"DeepSeek-V3 on 8 x H200: first plan {first * 1e3:.1f} ms, then {rate:,.0f} plans/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
