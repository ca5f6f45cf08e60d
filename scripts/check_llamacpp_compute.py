"""Compare compute buffers with what llama.cpp planned.

    python scripts/check_llamacpp_compute.py --facts FILE --configs FOLDER [FOLDER ...]

FILE: llamacpp_oracle.csv, compute buffers in bytes that llama.cpp 0c1e57098 planned on the CPU and
on simulated CUDA devices. FOLDER of configs: OWNER__NAME.json files; the first folder that has a
model counts. Every buffer counts once: the host's and each device's. Those rows were planned
without allocation, so that they are compared with `fit_estimate`; --allocated compares with what a
server allocates.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from moesize.core.errors import MoesizeError
from moesize.core.gguf import assign_types, find_file_type, tensor_bytes
from moesize.core.gguf_view import gguf_tensors
from moesize.core.llamacpp_compute import ComputeSettings, compute_buffers
from moesize.readers.hf.read import spec_from_config

if TYPE_CHECKING:
    from moesize.core.model_spec import ModelSpec

_EXPERTS = re.compile(r"blk\.(\d{1,4})\.ffn_(gate_up|gate|up|down)_exps\.weight")
_PARTS = {"gate": 0, "gate_up": 0, "up": 1, "down": 2}
_SKIPPED = ("refused", "aborts")


def _pad(cells: int) -> int:
    return -(-cells // 256) * 256


class _Models:
    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders
        self.spec = cache(self._read)
        self.experts = cache(self._expert_bytes)

    def _read(self, name: str) -> ModelSpec:
        for folder in self._folders:
            path = folder / f"{name}.json"
            if path.exists():
                data = json.loads(path.read_text())
                return spec_from_config(data, file=str(path), hub_id=name.replace("__", "/"))
        raise SystemExit(f"no config for {name} in the folders given")

    def _expert_bytes(self, name: str, file_type: str) -> dict[int, tuple[int, int, int]]:
        model, tensors = gguf_tensors(self.spec(name))
        out: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0])
        types = assign_types(tensors, model, find_file_type(file_type))
        for tensor, block_type in zip(tensors, types, strict=True):
            found = _EXPERTS.fullmatch(tensor.name)
            if found and int(found[1]) < self.spec(name).num_layers:
                out[int(found[1])][_PARTS[found[2]]] += tensor_bytes(tensor, block_type)
        return {layer: (sizes[0], sizes[1], sizes[2]) for layer, sizes in sorted(out.items())}


def settings_of(row: dict[str, str], models: _Models, allocated: bool) -> ComputeSettings:
    """The settings of one row, as llama.cpp derives them from its parameters."""
    spec = models.spec(row["config"])
    context = _pad(int(row["n_ctx"]))
    sequences, unified = int(row["n_seq_max"]), row["kv_unified"] == "1"
    ubatch = min(int(row["n_ubatch"]), context)
    cells = context if unified else _pad(context // sequences)
    windows = [
        getattr(mixer, "window", None) or getattr(mixer, "chunk", None)
        for block in spec.blocks
        for mixer in block.mixers
    ]
    window = next((size for size in windows if size), 0)
    cells_swa = 0
    if window:
        # DeepSeek-V4 keeps the window of each sequence apart.
        joint = unified and row["arch"] != "deepseek4"
        reach = window * (sequences if joint else 1) + ubatch
        cells_swa = cells if row["swa_full"] == "1" else _pad(min(cells, reach))
    devices, count = int(row["n_devices"]), spec.num_layers
    layers: tuple[tuple[int, ...], ...] = ()
    if devices == 1:
        layers = (tuple(range(count)),)
    elif devices == 2:
        # Equal devices; blocks for drafting and the output count as layers.
        extra = max(0, gguf_tensors(spec)[0].num_layers - count)
        first = (count + extra + 2) // 2
        layers = (tuple(range(first)), tuple(range(first, count)))
    host = models.experts(row["config"], row["gguf_types"].split()[0]) if row["override"] else {}
    outputs = int(row["n_outputs_max"]) or ubatch
    return ComputeSettings(
        n_ubatch=ubatch,
        cells_full=cells,
        cells_swa=cells_swa,
        streams=1 if unified else sequences,
        sequences=sequences,
        n_outputs=min(outputs, ubatch),
        flash_attn=row["flash_attn"] != "off",
        type_k=row["type_k"],
        type_v=row["type_v"],
        layers_by_device=layers,
        output_device=max(0, devices - 1),
        experts_on_host=tuple(host),
        host_expert_tensors=tuple(host.values()),
        pipeline_copies=4 if "pipeline" in row["note"] else 1,
        snapshots=int(row["n_rs_seq"]),
        fit_estimate=not allocated,
    )


def _observed(row: dict[str, str]) -> list[int]:
    sizes = json.loads(row["compute_bytes"])
    devices = int(row["n_devices"])
    if not devices:
        return [sizes["CPU"]]
    return [sizes["SIM_Host"], *(sizes[f"SIM{device}"] for device in range(devices))]


def _line(title: str, errors: list[float]) -> str:
    ordered = sorted(errors)
    exact = sum(error == 0 for error in ordered)
    p90 = ordered[int(0.9 * len(ordered))]
    return (
        f"{title:44s} {len(ordered):5d} {exact:6d} {median(ordered):9.3%} {p90:9.3%}"
        f" {ordered[-1]:9.3%}"
    )


def main() -> None:
    """Print errors by kind of row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--configs", type=Path, nargs="+", required=True)
    parser.add_argument("--allocated", action="store_true")
    parser.add_argument("--worst", type=int, default=10)
    arguments = parser.parse_args()
    models = _Models(arguments.configs)
    groups: dict[str, list[float]] = defaultdict(list)
    misses: list[tuple[float, str]] = []
    refused: Counter[str] = Counter()
    with arguments.facts.open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    for row in rows:
        if not row["compute_bytes"] or any(word in row["note"] for word in _SKIPPED):
            refused["engine refuses"] += 1
            continue
        try:
            answer = compute_buffers(
                models.spec(row["config"]), settings_of(row, models, arguments.allocated)
            )
        except MoesizeError as refusal:
            refused[str(refusal).splitlines()[0][:70]] += 1
            continue
        predicted = [answer.host_bytes, *answer.device_bytes]
        for place, (mine, theirs) in enumerate(zip(predicted, _observed(row), strict=True)):
            error = abs(mine / theirs - 1)
            where = "host" if not place else f"device {place - 1}"
            kinds = (
                "all",
                f"backend {row['backend']}, {where}",
                f"flash attention {row['flash_attn']}",
                f"cache {row['type_k']}/{row['type_v']}",
                f"devices {row['n_devices']}",
                f"override {row['override'] or 'none'}",
                f"outputs {'one' if row['n_outputs_max'] != '0' else 'all'}",
                f"arch {row['arch']}",
            )
            for kind in kinds:
                groups[kind].append(error)
            if error:
                what = (
                    f"{row['config']} {row['backend']} {where} ctx {row['n_ctx']} "
                    f"ub {row['n_ubatch']} fa {row['flash_attn']} {row['type_k']} "
                    f"devices {row['n_devices']} outputs {row['n_outputs_max']}"
                )
                misses.append((error, f"{what}: {mine:,} for {theirs:,}"))
    print(f"{'':44s} {'n':>5s} {'exact':>6s} {'median':>9s} {'p90':>9s} {'worst':>9s}")
    for kind in sorted(groups):
        print(_line(kind, groups[kind]))
    for reason, count in refused.most_common():
        print(f"not compared: {count} rows, {reason}")
    for error, what in sorted(misses, reverse=True)[: arguments.worst]:
        print(f"{error:9.3%} {what}")


if __name__ == "__main__":
    main()
