"""What moesize costs: start-up as multiples of bare Python, and plans per second by engine.

    python scripts/benchmark.py [--runs 21] [--markdown]

CPU time (user + system) of the child process; runs are interleaved, so that a busy machine
disturbs all commands alike. Trust the multiples, not the milliseconds. Byte code is cached, as it
is after the first run of any installed program. `accuracy` over all shipped reports takes seconds
and runs every seventh time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

_PLAN = ("plan", "mixtral-8x7b", "--gpu", "a10g", "--quant", "4bit")
COMMANDS: dict[str, tuple[str, ...]] = {
    "python -c pass": ("-c", "pass"),
    "moesize --version": ("-m", "moesize", "--version"),
    "moesize --help": ("-m", "moesize", "--help"),
    "moesize plan --format json": ("-m", "moesize", *_PLAN, "--format", "json"),
    "moesize plan (table)": ("-m", "moesize", *_PLAN),
}
_LOG = "tests/fixtures/logs/vllm-qwen3-30b-fp8-h100.log"
COMMANDS["moesize audit --format json"] = ("-m", "moesize", "audit", _LOG, "--format", "json")
BARE = "python -c pass"
ACCURACY = ("-m", "moesize", "accuracy")
# One of seven rounds measures the slow command too.
_ACCURACY_EVERY = 7
# (model, GPUs, what else is asked for): every engine, and what takes vLLM's longest ways.
SWEEPS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "vllm": ("deepseek-v3", 8, {}),
    "vllm, MTP": ("deepseek-v3", 8, {"mtp": True, "num_spec_tokens": 1}),
    "vllm, experts balanced": (
        "deepseek-v3",
        16,
        {"expert_parallel": True, "num_redundant_experts": 16},
    ),
    "vllm, LoRA": ("qwen3-30b-a3b", 1, {"lora_rank": 16}),
    "vllm 0.6.6": ("mixtral-8x7b", 1, {"engine_version": "0.6.6"}),
    "sglang": ("deepseek-v3", 8, {"engine": "sglang"}),
    "llama.cpp": ("mixtral-8x7b", 1, {"engine": "llama.cpp"}),
    "transformers": ("mixtral-8x7b", 2, {"engine": "transformers"}),
    "transformers, 8 GPUs": ("deepseek-v3", 8, {"engine": "transformers"}),
    "tensorrt-llm": ("deepseek-v3", 8, {"engine": "tensorrt-llm"}),
    "tgi": ("mixtral-8x7b", 2, {"engine": "tgi"}),
}


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
    seconds: dict[str, list[float]] = {name: [] for name in (*COMMANDS, "moesize accuracy")}
    with TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder, "MOESIZE_CALIBRATION": "off"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for arguments in (*COMMANDS.values(), ACCURACY):
            cpu_seconds(arguments, environment)  # byte-compiles and fills the file cache
        for turn in range(runs):
            for name, arguments in COMMANDS.items():
                seconds[name].append(cpu_seconds(arguments, environment))
            if turn % _ACCURACY_EVERY == 0:
                seconds["moesize accuracy"].append(cpu_seconds(ACCURACY, environment))
    return {name: Timing(min(row), statistics.median(row)) for name, row in seconds.items()}


def plans_per_second(
    model: str, num_gpus: int, settings: dict[str, Any], rounds: int = 15, plans: int = 50
) -> tuple[float, float]:
    """(first plan in seconds, plans per second of the best round) on H200s, in CPU time.

    Every plan differs in context length, so that no whole answer can come from a cache.
    """
    from moesize.api import make_plan
    from moesize.catalog import resolve_model
    from moesize.core.deployment import Request
    from moesize.gpus import find_gpu

    spec, source = resolve_model(model)
    device = find_gpu("h200").spec
    taken: list[float] = []
    context = 4096
    for count in (1, *[plans] * rounds):
        begin = time.process_time()
        for _ in range(count):
            request = Request(num_gpus=num_gpus, context_tokens=context, **settings)
            make_plan(spec, source, None, "", device, request)
            context += 16
        taken.append((time.process_time() - begin) / count)
    return taken[0], 1 / min(taken[1:])


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
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", end="\n\n")
    sweeps = [
        (name, model, f"{count}", f"{first * 1e3:.0f}", f"{rate:,.0f}")
        for name, (model, count, settings) in SWEEPS.items()
        for first, rate in [plans_per_second(model, count, settings)]
    ]
    columns = ("engine", "model", "H200s", "first plan, ms", "plans/s")
    if options.markdown:
        print("| " + " | ".join(columns) + " |", "|---|---" + "|---:" * 3 + "|", sep="\n")
        for line in sweeps:
            print("| " + " | ".join(line) + " |")
    else:
        for line in (columns, *sweeps):
            print(f"{line[0]:<28}{line[1]:<16}" + "".join(f"{cell:>16}" for cell in line[2:]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
