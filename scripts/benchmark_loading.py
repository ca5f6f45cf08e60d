"""How fast `moesize verify` loads shards, beside safetensors' own loader and the machine's limits.

    python scripts/benchmark_loading.py [CASE ...] [--device cpu] [--readers 4,8] [--rounds 5]
        [--folder DIR]

A case is MODEL:LAYERS, or MODEL:LAYERS/N for rank 0 of N. Its checkpoint is written once (random
numbers) and loaded in turns by all ways, so that a busy machine disturbs all alike; the first
round, which warms the page cache, is not counted. A virtual machine that gives free memory back to
its host (free page reporting) has it again at a tenth of the pace: there the medians say more.

On a CPU safetensors maps its files and reads nothing before it is used: `+ touch` reads a byte of
every page, `+ clone` copies into memory of its own, which is what `load` does. For a rank,
safetensors cuts by `safe_open(...).get_slice`.

Shares are of the device's own limit (`copy_limit`, measured in the same run): copies from
page-locked memory, on a CPU into new memory. Host: the most that a way had resident beyond what
was there before, mapped pages of files included (Linux).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from moesize.catalog import resolve_model
from moesize.core.checkpoint import published
from moesize.verify.loading import cached_share, copy_limit, default_readers, load, plan_load
from moesize.verify.safetensors_files import CheckpointFiles, open_checkpoint
from moesize.verify.selection import Selection, parse_layers
from moesize.verify.synthetic import write_synthetic

if TYPE_CHECKING:
    from moesize.verify.file_tensors import FileTensor

# Few large tensors; thousands of small ones; slices of a rank; rows of which a part is wanted.
CASES = ("smollm2-1.7b:0-11", "qwen3-30b-a3b-fp8:0-2", "smollm2-1.7b:0-11/4")
PAGE_BYTES = 4096

# A way to load gives what it holds, and the bytes of the tensors.
Way = Callable[[], tuple[Any, int]]


class Run(NamedTuple):
    """One load."""

    gb_per_s: float
    host_bytes: int | None


def library(folder: Path, device: str, *, clone: bool = False, touch: bool = False) -> Way:
    """safetensors' own function."""

    def run() -> tuple[Any, int]:
        total = 0
        kept: list[dict[str, torch.Tensor]] = []
        for path in sorted(folder.glob("*.safetensors")):
            state = load_file(path, device=device)
            total += sum(tensor.nbytes for tensor in state.values())
            for tensor in state.values() if touch else ():
                tensor.reshape(-1).view(torch.uint8)[::PAGE_BYTES].sum()
            kept.append({name: t.clone() for name, t in state.items()} if clone else state)
        return kept, total

    return run


def library_slices(
    files: CheckpointFiles, tensors: list[FileTensor], size: int, device: str
) -> Way:
    """Rank 0's part by safetensors' slices; on a CPU copied, since they only look into a map."""

    def run() -> tuple[Any, int]:
        state = {}
        opened: dict[Path, Any] = {
            path: safe_open(path, "pt", device=device) for path in files.headers
        }
        for tensor in tensors:
            source = opened[files.holders[tensor.name]]
            ranges = tensor.ranges(0, size)
            if ranges is None or tensor.dim is None:
                state[tensor.name] = source.get_tensor(tensor.name)
                continue
            lead = (slice(None),) * tensor.dim
            whole = source.get_slice(tensor.name)
            parts = [whole[(*lead, slice(first, end))] for first, end in ranges]
            state[tensor.name] = parts[0] if len(parts) == 1 else torch.cat(parts, tensor.dim)
        if device == "cpu":
            state = {name: tensor.clone() for name, tensor in state.items()}
        return state, sum(tensor.nbytes for tensor in state.values())

    return run


def timed(way: Way, device: torch.device) -> Run:
    """One load, and the host's memory that it had at its peak."""
    gc.collect()
    with suppress(AttributeError, OSError):  # glibc: what was freed before is no help
        ctypes.CDLL(None).malloc_trim(0)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    before = _resident(reset=True)
    begin = time.perf_counter()
    held, total = way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - begin
    peak = _resident()
    del held
    known = before is not None and peak is not None
    return Run(total / seconds / 1e9, peak - before if known else None)  # type: ignore[operator]


def _resident(*, reset: bool = False) -> int | None:
    """The peak of this process's memory since it was reset; what it is now when it is reset."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def one_case(text: str, options: argparse.Namespace) -> None:
    """Write, load in turns, print a table."""
    model, _, rest = text.partition(":")
    layers, _, ranks = rest.partition("/")
    size = int(ranks or 1)
    device = torch.device(options.device)
    spec, _ = resolve_model(model)
    stored = published(spec)
    selection = Selection(parse_layers(layers, spec))
    tensors = list(selection.tensors(spec, stored))
    with TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name) / "checkpoint"
        written = write_synthetic(spec, stored, selection, folder)
        files = open_checkpoint(folder)
        jobs = plan_load(files, tensors, 0, size)
        wanted = sum(job.size_bytes for job in jobs)
        begin = time.perf_counter()
        plan_load(files, tensors, 0, size)
        planned = time.perf_counter() - begin
        print(
            f"\n{text} on {device}: {len(jobs):,} tensors, {wanted / 1e9:.2f} GB, of files of "
            f"{written.size_bytes / 1e9:.2f} GB written at {written.gb_per_s:.2f} GB/s; planned in "
            f"{1000 * planned:.0f} ms"
        )
        ways: dict[str, Way] = {}

        def own(readers: int) -> Way:
            def run() -> tuple[Any, int]:
                loaded = load(files, tensors, device, size=size, readers=readers)
                return loaded, loaded.read_bytes

            return run

        for readers in options.readers or [default_readers()]:
            ways[f"load, {readers} readers"] = own(readers)
        if size > 1:
            ways["safe_open, slices"] = library_slices(files, tensors, size, options.device)
        else:
            ways["load_file"] = library(folder, options.device)
        if device.type == "cpu" and size == 1:
            ways["load_file + touch"] = library(folder, options.device, touch=True)
            ways["load_file + clone"] = library(folder, options.device, clone=True)
        runs: dict[str, list[Run]] = {name: [] for name in ways}
        names = list(ways)
        for number in range(options.rounds + 1):
            # Each comes first in its turn: memory that another has just freed is quicker to have.
            first = number % len(names)
            for way in names[first:] + names[:first]:
                found = timed(ways[way], device)
                if number:
                    runs[way].append(found)
        limit = copy_limit(device, next(iter(files.headers)))
        share = cached_share(jobs)
    print(f"{'':24}{'best':>8}{'median':>8} GB/s{'share':>8}{'host':>10}")
    for way, some in runs.items():
        best = max(run.gb_per_s for run in some)
        middle = statistics.median(run.gb_per_s for run in some)
        hosts = [run.host_bytes for run in some if run.host_bytes is not None]
        host = f"{max(hosts) / 1e6:7.0f} MB" if hosts else "?"
        print(
            f"{way:24}{best:8.2f}{middle:8.2f}     {best / limit.to_device_gb_per_s:8.0%}{host:>10}"
        )
    what = "into new memory" if device.type == "cpu" else "to the device"
    print(f"{'copies ' + what:24}{limit.to_device_gb_per_s:8.2f}")
    print(f"{'page cache to memory':24}{limit.page_cache_gb_per_s or 0:8.2f}")
    print(f"{'in the page cache':24}{'?' if share is None else format(share, '8.0%')}")


def main() -> None:
    """A table for each case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", default=CASES, metavar="CASE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--readers", type=lambda text: [int(word) for word in text.split(",")], default=None
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="where the files are written")
    options = parser.parse_args()
    for case in options.cases:
        one_case(case, options)


if __name__ == "__main__":
    main()
