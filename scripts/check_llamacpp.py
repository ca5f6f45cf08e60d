"""Compare planned buffers with what llama.cpp itself planned for real GGUF layouts.

    python scripts/check_llamacpp.py --facts FILE --configs FOLDER [FOLDER ...]

FILE: one row for each model and setting, with the buffers that llama.cpp 0c1e57098 planned without
allocating them, on its CPU backend or a device that answers like CUDA. They are compared with the
parts that plan each of them, and ("plan: ...") with the ledgers of a whole plan. FOLDER of configs:
OWNER__NAME.json files; the first folder that has a model counts.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moesize.api import make_plan
from moesize.core.deployment import Request
from moesize.core.errors import MoesizeError, UnknownNameError
from moesize.core.gguf_view import gguf_entries
from moesize.core.llamacpp import LlamaCppSettings
from moesize.core.llamacpp_kv import (
    KvRules,
    KvSettings,
    check_types,
    model_caches,
    plan_cells,
)
from moesize.core.llamacpp_weights import HOST, Split, place
from moesize.core.quantization import find_scheme
from moesize.gpus import find_gpu
from moesize.readers.hf.read import spec_from_config

if TYPE_CHECKING:
    from moesize.core.model_spec import ModelSpec

_MIB = 1 << 20
# Repositories hold the head a second time although it is tied.
_REPEATS_HEAD = ("tiiuae__falcon-40b",)
_TOLERANCE_MIB = 0.0101
_WORST = 8
# The caches' names in llama.cpp's log lines.
_NAMES = {
    "kv": "full",
    "non-SWA": "full",
    "main": "full",
    "SWA": "window",
    "indexer": "indexer",
    "DSV4 CSA compressed": "compressed_4",
    "DSV4 HCA compressed": "compressed_128",
    "DSV4 lightning-indexer": "compressed_index",
}


class _Term:
    """Predicted and planned values of one kind of buffer."""

    def __init__(self) -> None:
        self.pairs: list[tuple[float, float, str]] = []

    def add(self, predicted: float, planned: float, what: str) -> None:
        self.pairs.append((predicted, planned, what))

    def report(self, name: str) -> None:
        if not self.pairs:
            return
        exact = sum(abs(got - want) < _TOLERANCE_MIB for got, want, _ in self.pairs)
        shares = sorted(abs(got - want) / want for got, want, _ in self.pairs if want)
        within = sum(share <= 0.0005 for share in shares)
        print(
            f"{name:22} n {len(self.pairs):5}  within 0.01 MiB {exact:5} "
            f"({exact / len(self.pairs):7.2%})  within 0.05 % {within / max(1, len(shares)):7.2%}  "
            f"median {shares[len(shares) // 2] if shares else 0:.4%}  "
            f"p90 {shares[int(0.9 * len(shares))] if shares else 0:.3%}  "
            f"worst {shares[-1] if shares else 0:.3%}"
        )
        worst = sorted(self.pairs, key=lambda pair: -abs(pair[0] - pair[1]))[:_WORST]
        for got, want, what in worst:
            if abs(got - want) >= _TOLERANCE_MIB:
                print(f"      {got:12.3f} for {want:12.3f}  {what}")


def _spec(name: str, folders: list[Path]) -> ModelSpec:
    for folder in folders:
        path = folder / f"{name}.json"
        if path.is_file():
            hub_id = name.replace("__", "/")
            spec = spec_from_config(json.loads(path.read_text()), file=name, hub_id=hub_id)
            break
    else:
        raise UnknownNameError("config", name, (), "--configs")
    if name in _REPEATS_HEAD:
        spec = replace(spec, embedding=replace(spec.embedding, stored_tied_head=True))
    # As if published in 16 bits: the engine was asked about such files only.
    return replace(spec, quantization=None)


def _settings(row: dict[str, str]) -> KvSettings:
    return KvSettings(
        n_ctx=int(row["n_ctx"]),
        n_seq_max=int(row["n_seq_max"]),
        unified=row["kv_unified"] == "1",
        n_ubatch=min(int(row["n_ubatch"]), int(row["n_ctx"])),
        type_k=row["type_k"],
        type_v=row["type_v"],
        flash_attention=row["flash_attn"] != "off",
        full_window=row["swa_full"] == "1",
        guessed_tokens=int(row["n_rs_seq"]),
    )


def check(path: Path, folders: list[Path]) -> None:
    """Model, KV, state and output buffers of every row."""
    terms: dict[str, _Term] = defaultdict(_Term)
    outcomes: Counter[str] = Counter()
    specs: dict[str, ModelSpec] = {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        name = row["config"]
        try:
            if name not in specs:
                specs[name] = _spec(name, folders)
            _check_row(specs[name], row, terms, outcomes)
        except MoesizeError as error:
            outcomes["moesize refuses"] += 1
            print(f"    {name}: {error}")
    print(dict(outcomes))
    for name, term in terms.items():
        term.report(name)


def _check_row(
    spec: ModelSpec, row: dict[str, str], terms: dict[str, _Term], outcomes: Counter[str]
) -> None:
    devices = int(row["n_devices"])
    file_type = row["gguf_types"].split()[0]
    what = " ".join(
        f"{key}={row[key]}"
        for key in (
            "config",
            "backend",
            "n_ctx",
            "n_seq_max",
            "kv_unified",
            "n_ubatch",
            "flash_attn",
            "type_k",
            "type_v",
            "n_devices",
            "override",
            "load_mtp",
            "n_rs_seq",
        )
    )
    rules = KvRules()
    settings = _settings(row)
    caches = model_caches(spec, rules)
    refused = row["note"].startswith("refused")
    try:
        check_types(caches, settings, spec.title)
    except MoesizeError:
        outcomes["both refuse" if refused else "only moesize refuses"] += 1
        if not refused:
            print(f"    only moesize refuses: {what}")
        return
    if refused:
        outcomes["only llama.cpp refuses"] += 1
        print(f"    only llama.cpp refuses: {what}")
        return
    if not row["context_bytes"]:
        outcomes["llama.cpp aborts"] += 1
        return
    outcomes["planned by both"] += 1
    plan = plan_cells(caches, settings, rules)
    logged: dict[str, int] = defaultdict(int)
    for layer in plan.layers:
        logged[layer.name] += layer.logged_bytes
    for cache in json.loads(row["kv_buffer_mib"]):
        found = logged[_NAMES[cache["cache"]]]
        terms["KV, " + _NAMES[cache["cache"]]].add(round(found / _MIB, 2), cache["mib"], what)
    if row["rs_buffer_mib"]:
        terms["state"].add(round(logged["state"] / _MIB, 2), float(row["rs_buffer_mib"]), what)
    field = "gpu_bytes" if devices else "host_bytes"
    context = sum(getattr(layer, field) for layer in plan.layers)
    terms["KV + state, allocated"].add(context / _MIB, int(row["context_bytes"]) / _MIB, what)
    output = 4 * spec.embedding.vocab_size * settings.n_seq_max
    _check_plan(spec, row, terms, what)
    terms["output buffer"].add(round(output / _MIB, 2), float(row["output_buffer_mib"]), what)
    override = ((row["override"], HOST),) if row["override"] else ()
    stored = gguf_entries(spec, find_scheme(_scheme_name(file_type)))
    placement = place(
        spec,
        stored,
        Split(num_gpus=devices, overrides=override, load_mtp=row["load_mtp"] == "1", mapped=False),
    )
    planned = row["model_buffer_mib"]
    buffers = json.loads(planned) if planned.startswith("{") else {"CPU": float(planned)}
    host = sum(size for buffer, size in buffers.items() if not re.fullmatch(r"SIM\d+", buffer))
    terms["model, host"].add(placement.host.buffer_bytes / _MIB, host, what)
    for device in range(devices):
        terms["model, GPU"].add(
            placement.gpus[device].buffer_bytes / _MIB, buffers.get(f"SIM{device}", 0.0), what
        )


def _check_plan(spec: ModelSpec, row: dict[str, str], terms: dict[str, _Term], what: str) -> None:
    """Every buffer again, from the ledgers of a whole plan.

    The rows were planned without allocation: of GPUs behind the first the plan's high end counts.
    """
    devices, sequences = int(row["n_devices"]), int(row["n_seq_max"])
    guessed = int(row["n_rs_seq"])
    if (devices == 2 and "pipeline" not in row["note"] and not row["override"]) or guessed:
        return  # plans of two GPUs keep four copies; states to go back to belong to --mtp
    settings = LlamaCppSettings(
        ctx_size=int(row["n_ctx"]),
        parallel=sequences,
        kv_unified=row["kv_unified"] == "1",
        batch_size=int(row["n_ctx"]),
        ubatch_size=int(row["n_ubatch"]),
        flash_attn=row["flash_attn"],
        cache_type_k=row["type_k"],
        cache_type_v=row["type_v"],
        swa_full=row["swa_full"] == "1",
        override_tensor=((row["override"], "CPU"),) if row["override"] else None,
        embeddings=row["n_outputs_max"] == "0",
        n_gpu_layers=None if devices else 0,
        no_op_offload=not devices,
        load_mode="none",
    )
    request = Request(
        engine="llama.cpp",
        num_gpus=max(1, devices),
        concurrency=None,
        engine_settings=settings,
    )
    plan = make_plan(
        spec,
        "config",
        find_scheme(_scheme_name(row["gguf_types"].split()[0])),
        "",
        find_gpu("b200").spec,
        request,
    )
    sizes = json.loads(row["compute_bytes"]) if row["compute_bytes"] else {}
    host_name = "SIM_Host" if devices else "CPU"
    for name, planned in sizes.items():
        if name == host_name:
            term, items = "plan: compute, host", plan.host
        elif re.fullmatch(r"SIM\d+", name):
            term, items = "plan: compute, GPU", plan.gpus[int(name[3:])].items
        else:
            continue
        found = [item for item in items if item.name.endswith("compute_buffer")]
        terms[term].add(sum(item.high_bytes for item in found) / _MIB, planned / _MIB, what)
    held = [item for ledger in plan.gpus for item in ledger.items] + list(plan.host)
    cached = sum(item.size_bytes for item in held if item.category == "kv_cache")
    terms["plan: KV + state"].add(cached / _MIB, int(row["context_bytes"]) / _MIB, what)


def _scheme_name(file_type: str) -> str:
    return {"F16": "fp16", "BF16": "bf16", "F32": "fp32"}.get(file_type, file_type)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--configs", type=Path, required=True, action="append")
    arguments = parser.parse_args()
    check(arguments.facts, arguments.configs)


if __name__ == "__main__":
    main()
