"""Mutated deployment files through every reader and judge of `moesize check`.

    python scripts/fuzz_check.py --files DIR [--inputs 100000] [--seed 1]

Each input is a file of DIR (or of the examples below) with bytes or lines changed, repeated, cut
or swapped between files. Nothing may be raised, no reader may report a bug of its own, no input
may take longer than --slow seconds. Prints what went wrong with the seed that repeats it.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

import benchmark_check

from moesize.check.run import check_files

EXAMPLES = tuple(
    template.format(number=1, model="mistralai/Mixtral-8x7B-v0.1", tp=2, length=8192, selector="")
    for template in (
        benchmark_check.DEPLOYMENT,
        benchmark_check.COMPOSE,
        benchmark_check.VALUES,
        benchmark_check.SCRIPT,
    )
)
NAMES = ("k8s.yaml", "compose.yaml", "values.yaml", "serve.sh", "Dockerfile", "a.service",
         "Modelfile")  # fmt: skip
PIECES = (
    b"{{", b"}}", b"${", b"$(", b"$((", b"\\\n", b"'", b'"', b"\t", b"\0", b"\xff", b"&a ", b"*a",
    b"<<: *a", b"- ", b": ", b"|\n", b">\n", b"---\n", b"!!python/object:os.system ", b"#", b"\r\n",
    b"99999999999999999999", b"-1", b"1e999", b"nan", b"null", b"[", b"]", b"{", b"}", b",",
    "\u202e\u4f60".encode(),
)  # fmt: skip


def mutated(chosen: random.Random, seeds: list[bytes]) -> bytes:
    """One input."""
    data = bytearray(chosen.choice(seeds))
    for _ in range(chosen.randint(1, 8)):
        position = chosen.randrange(len(data) + 1)
        match chosen.randrange(7):
            case 0:
                data[position : position + chosen.randint(1, 20)] = b""
            case 1:
                data[position:position] = chosen.choice(PIECES)
            case 2:
                end = position + chosen.randint(1, 200)
                data[position:position] = data[position:end] * chosen.randint(1, 4)
            case 3 if position < len(data):
                data[position] = chosen.randrange(256)
            case 4:
                lines = bytes(data).split(b"\n")
                chosen.shuffle(lines[: chosen.randint(1, len(lines))])
                first = chosen.randrange(len(lines))
                lines[first] = chosen.choice(lines)
                data = bytearray(b"\n".join(lines))
            case 5:
                other = chosen.choice(seeds)
                cut = chosen.randrange(len(other) + 1)
                data[position:] = other[cut : cut + 4096]
            case _:
                data[:] = data[:position]
    return bytes(data[: 1 << 16])


def main() -> int:
    """Mutate, check, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=Path)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--slow", type=float, default=2.0)
    options = parser.parse_args()
    seeds = [text.encode() for text in EXAMPLES]
    if options.files is not None:
        seeds += [path.read_bytes() for path in sorted(options.files.rglob("*")) if path.is_file()]
    read = servers = bad = 0
    slowest = 0.0
    begin = time.monotonic()
    for number in range(options.inputs):
        chosen = random.Random(f"{options.seed}/{number}")
        raw, name = mutated(chosen, seeds), chosen.choice(NAMES)
        started = time.process_time()
        try:
            report = check_files("-", stdin=raw, stdin_filename=name, use_config=False, gpu="h100")
        except Exception as error:  # what this script is there to find
            bad += 1
            print(f"seed {options.seed}/{number} ({name}): {type(error).__name__}: {error}")
            continue
        taken = time.process_time() - started
        slowest = max(slowest, taken)
        if taken > options.slow:
            bad += 1
            print(f"seed {options.seed}/{number} ({name}): {taken:.1f} s")
        read += bool(report.files)
        servers += report.num_servers
        for finding in report.findings:
            if "internal error" in finding.message:
                bad += 1
                print(f"seed {options.seed}/{number} ({name}): {finding.message}")
    seconds = time.monotonic() - begin
    print(
        f"{options.inputs:,} inputs in {seconds:.0f} s: {read:,} with a deployment, {servers:,} "
        f"servers, slowest {slowest:.2f} s CPU, {bad} failures"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
