"""How fast `moesize verify` loads shards, beside safetensors' own loader and the machine's limits.

    python scripts/benchmark_loading.py [--model smollm2-1.7b] [--layers 0-11] [--device cpu]
        [--readers 1,2,4] [--rounds 5] [--folder DIR] [--tp 1]

Writes a synthetic checkpoint, then loads it in turns with both, so that a busy machine disturbs
both alike; the first round, which warms the page cache, is not counted. On a CPU safetensors only
maps its files, and nothing is read before it is used: `+ clone` reads.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from moesize.catalog import resolve_model
from moesize.core.checkpoint import published
from moesize.verify.loading import copy_limit, load
from moesize.verify.safetensors_files import open_checkpoint
from moesize.verify.selection import Selection, parse_layers
from moesize.verify.synthetic import write_synthetic

if TYPE_CHECKING:
    from collections.abc import Callable


def library(folder: Path, device: str, *, clone: bool) -> Callable[[], int]:
    """A load by safetensors' own function; gives the bytes of the tensors."""

    def run() -> int:
        total = 0
        kept = []
        for path in sorted(folder.glob("*.safetensors")):
            state = load_file(path, device=device)
            kept.append({name: t.clone() for name, t in state.items()} if clone else state)
            total += sum(tensor.nbytes for tensor in state.values())
        return total

    return run


def rates(
    ways: dict[str, Callable[[], int]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """GB/s of every way in every round but the first, in turns."""
    out: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            gc.collect()
            begin = time.perf_counter()
            total = run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                out[name].append(total / (time.perf_counter() - begin) / 1e9)
    return out


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="smollm2-1.7b")
    parser.add_argument("--layers", default="0-11")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--readers", default="1,2,4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="where the files are written")
    parser.add_argument("--tp", type=int, default=1, help="rank 0 of so many, too")
    options = parser.parse_args()
    spec, _ = resolve_model(options.model)
    stored = published(spec)
    selection = Selection(parse_layers(options.layers, spec))
    tensors = list(selection.tensors(spec, stored))
    device = torch.device(options.device)
    with TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name) / "checkpoint"
        written = write_synthetic(spec, stored, selection, folder)
        files = open_checkpoint(folder)
        print(f"{written.size_bytes / 1e9:.2f} GB, {len(tensors)} tensors, {device}")
        print(f"{'written':28} {written.gb_per_s:6.2f} GB/s")
        ways: dict[str, Callable[[], int]] = {}
        for readers in map(int, options.readers.split(",")):
            ways[f"load, {readers} readers"] = lambda r=readers: (  # type: ignore[misc]
                load(files, tensors, device, readers=r).read_bytes
            )
            if options.tp > 1:
                ways[f"load, rank 0/{options.tp}, {readers} readers"] = lambda r=readers: (  # type: ignore[misc]
                    load(files, tensors, device, size=options.tp, readers=r).read_bytes
                )
        ways["load_file"] = library(folder, options.device, clone=False)
        if device.type == "cpu":
            ways["load_file + clone"] = library(folder, options.device, clone=True)
        for way, found in rates(ways, options.rounds, device).items():
            print(f"{way:28} {max(found):6.2f} GB/s best, {statistics.median(found):6.2f} median")
        limit = copy_limit(device, next(iter(files.headers)))
        print(f"{'memory to device':28} {limit.to_device_gb_per_s:6.2f} GB/s")
        print(f"{'page cache to memory':28} {limit.page_cache_gb_per_s or 0:6.2f} GB/s")


if __name__ == "__main__":
    main()
