"""Compare moesize with published numbers and with what engines reported.

    python scripts/check_facts.py --facts FOLDER --configs FOLDER

FOLDER of facts: checkpoints.csv (parameter counts of the Hugging Face hub) and vllm_oracle.csv
(parameter bytes of vLLM's own model classes). FOLDER of configs: OWNER__NAME.json files, with
`index/` (digests of safetensors indexes) and `hf_quant_config/` beside them where there are any.
Several folders of configs may be given; the first that has a model counts.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesize.api import stored_entries
from moesize.core.attention import GroupedQueryAttention
from moesize.core.checkpoint import hub_elements, published, stored_bytes
from moesize.core.errors import MoesizeError
from moesize.core.inventory import count_parameters
from moesize.core.vllm_kv import KvSettings, group_layers, plan_kv
from moesize.core.vllm_layers import CacheOptions, vllm_layers
from moesize.core.vllm_weights import pipeline_stages, rank_weights
from moesize.engines import vllm_profile
from moesize.readers.hf.read import spec_from_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moesize.core.model_spec import ModelSpec

_CAPABILITIES = {"l4": "8.9", "a100": "8.0", "h100": "9.0", "b200": "10.0"}
_CLOSE = 0.001
_UNQUANTISED = "weights as if unquantised"


@dataclass(slots=True)
class Tally:
    """How often an answer was right, and the worst of the rest."""

    title: str
    outcomes: Counter[str] = field(default_factory=Counter)
    misses: list[tuple[float, str]] = field(default_factory=list)

    def add(self, name: str, got: int, want: int, explained: str = "") -> None:
        """Count one comparison of integers; `explained` says what else the number counts."""
        error = abs(got - want) / want
        outcome = "exact" if got == want else "within 0.1 %" if error <= _CLOSE else "worse"
        if explained and got == want:
            outcome = f"explained ({explained})"
        self.outcomes[outcome] += 1
        if got != want:
            self.misses.append((error, f"{name}: {got:,} for {want:,} ({got - want:+,})"))

    def show(self, most: int) -> None:
        """Print shares and the `most` worst misses."""
        total = self.outcomes.total()
        shares = ", ".join(f"{key} {count}" for key, count in self.outcomes.most_common())
        print(f"{self.title}: {total} compared; {shares}")
        for error, text in sorted(self.misses, reverse=True)[:most]:
            print(f"    {error:9.4%}  {text}")


class Configs:
    """Specs of the config files in some folders, each read once."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders
        self._specs: dict[tuple[str, bool], ModelSpec | None] = {}
        self.refused: dict[str, str] = {}

    def spec(self, name: str, *, quantized: bool = True) -> ModelSpec | None:
        """The spec of OWNER__NAME; None without a config, or when it cannot be read.

        `quantized` False leaves hf_quant_config.json out.
        """
        key = name, quantized
        if key not in self._specs:
            self._specs[key] = self._read(name, quantized)
        return self._specs[key]

    def _read(self, name: str, quantized: bool) -> ModelSpec | None:
        for folder in self._folders:
            path = folder / f"{name}.json"
            if not path.is_file():
                continue
            beside = folder / "hf_quant_config" / path.name
            quant = _load(beside) if quantized and beside.is_file() else None
            try:
                spec = spec_from_config(
                    _load(path), file=path.name, hub_id=name.replace("__", "/"), quant_config=quant
                )
                published(spec)
            except MoesizeError as error:
                self.refused[name] = error.message
                return None
            return spec
        return None

    def indexes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Digests of safetensors indexes by name."""
        for folder in self._folders:
            for path in sorted((folder / "index").glob("*.json")):
                yield path.stem, _load(path)


def _load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def check_totals(configs: Configs, facts: Path) -> Tally:
    """Elements of the published files against the hub's counts."""
    tally = Tally("stored elements and hub counts")
    for row in _rows(facts / "checkpoints.csv"):
        if row["exactness"] != "exact" or not row["params_total"]:
            continue
        spec = configs.spec(row["model_id"].replace("/", "__"))
        if spec is None:
            continue
        want = int(row["params_total"])
        readings = _readings(spec)
        nearest = min(readings, key=lambda name: abs(readings[name] - want))
        trimmed = next((note for note in spec.notes if "without its" in note), "")
        if trimmed and readings[nearest] < want:
            tally.outcomes["explained (config without its vision tower)"] += 1
            continue
        tally.add(row["model_id"], readings[nearest], want, nearest)
    return tally


def _readings(spec: ModelSpec) -> dict[str, int]:
    """What the hub's number may mean, by what the config does not tell; the plain meaning is ""."""
    elements = hub_elements(spec)
    readings = {"": elements}
    mtp = sum(item.stored_elements for item in published(spec) if item.entry.section == "mtp")
    if mtp:
        readings["files without the MTP block"] = elements - mtp
    if spec.embedding.tied:
        head = spec.embedding.vocab_size * spec.hidden_size
        readings["files with a second copy of the tied head"] = elements + head
        total = count_parameters(spec).total
        readings["a second copy of the tied head, no buffers"] = total + head
    if spec.quantization is not None:
        readings["weights only, unpacked"] = hub_elements(spec, scales=False)
        readings["weights only, packed"] = _packed_only(spec)
    mixer = next((mixer for block in spec.blocks for mixer in block.mixers), None)
    if isinstance(mixer, GroupedQueryAttention):
        rows = mixer.head_dim // 2 * spec.num_layers
        readings["files with rotary frequencies in every layer"] = elements + rows
    biases = sum(
        item.entry.elements for item in published(spec) if item.entry.tensor.role == "router.bias"
    )
    if biases:
        without = {f"{name}; router biases not counted": n for name, n in readings.items()}
        readings |= {name.removeprefix("; "): n - biases for name, n in without.items()}
    return readings


def _packed_only(spec: ModelSpec) -> int:
    """Weights as packed, without scales."""
    return sum(
        sum(part.elements for part in item.parts if part.name == "weight") * item.matrices
        if item.is_quantized
        else item.entry.elements
        for item in published(spec)
    )


def check_file_bytes(configs: Configs) -> Tally:
    """Bytes of the published files against `total_size` of their index."""
    tally = Tally("file bytes and safetensors indexes")
    for name, digest in configs.indexes():
        spec = configs.spec(name)
        if spec is not None:
            tally.add(name, stored_bytes(spec), int(digest["metadata"]["total_size"]))
    return tally


def check_vllm_weights(configs: Configs, facts: Path) -> list[Tally]:
    """Parameter bytes of one rank against vLLM's model classes, by parallel layout."""
    tallies: dict[str, Tally] = {}
    done = set()
    for row in _rows(facts / "vllm_oracle.csv"):
        found = re.search(r"gpu=(\w+)", row["note"])
        gpu = found.group(1) if found else "h100"
        key = tuple(row[k] for k in ("config", "tp", "pp", "pp_rank", "ep", "param_bytes"))
        if (key, gpu) in done or not row["param_bytes"]:
            continue
        done.add((key, gpu))
        # Where the engine was not given hf_quant_config.json, it saw a model that is not quantized.
        spec = configs.spec(row["config"], quantized=_UNQUANTISED not in row["note"])
        if spec is None:
            continue
        tp, pp, experts = int(row["tp"]), int(row["pp"]), row["ep"] == "true"
        layout = f"TP {tp}" + (f" x PP {pp}" if pp > 1 else "") + (" with EP" if experts else "")
        tally = tallies.setdefault(layout, Tally(f"vLLM parameter bytes, {layout}"))
        try:
            weights = rank_weights(
                spec,
                stored_entries(spec, None, "vllm"),
                tensor_parallel_size=tp,
                expert_parallel_size=tp if experts else 1,
                compute_capability=_CAPABILITIES.get(gpu),
                stage=pipeline_stages(spec.num_layers, pp)[int(row["pp_rank"])],
            )
        except MoesizeError as error:
            tally.outcomes["refused"] += 1
            tally.misses.append((1.0, f"{row['config']}: {error.message}"))
            continue
        name = f"{row['config']} rank {row['pp_rank']} on {gpu}"
        tally.add(name, weights.parameter_bytes, int(row["param_bytes"]))
    return [tallies[key] for key in sorted(tallies)]


def check_vllm_cache(configs: Configs, facts: Path) -> list[Tally]:
    """Blocks and tokens against vLLM's own cache planner, for the memory the row gives."""
    blocks, tokens = Tally("vLLM KV blocks"), Tally("vLLM KV tokens as logged")
    profile = vllm_profile("0.32.0")
    for row in _rows(facts / "vllm_oracle.csv"):
        quantized = _UNQUANTISED not in row["note"]
        spec = configs.spec(row["config"], quantized=quantized) if row["num_blocks"] else None
        if spec is None:
            continue
        note = dict(re.findall(r"(gpu|in_flight|max_num_batched_tokens)=(\w+)", row["note"]))
        batched = int(note["max_num_batched_tokens"])
        major, _, minor = _CAPABILITIES[note["gpu"]].partition(".")
        options = CacheOptions(
            tensor_parallel_size=int(row["tp"]),
            compute_capability=(int(major), int(minor)),
            kv_dtype=row["kv_dtype"] or "auto",
            dtype="bfloat16" if spec.dtype == "float32" else "",
            checkpoint_kinds=profile.checkpoint_kinds,
        )
        stages = pipeline_stages(spec.num_layers, int(row["pp"]))
        cache = vllm_layers(spec, options, [stage.layers for stage in stages])
        settings = KvSettings(
            max_model_len=int(row["max_model_len"]),
            max_num_batched_tokens=batched,
            max_concurrent_batches=int(note["in_flight"]) // batched,
            block_outermost=cache.block_outermost,
        )
        layout = group_layers(cache.stages, settings, profile.kv_rules)
        plan = plan_kv(layout, settings, int(row["available_bytes"]), profile.kv_rules)
        name = f"{row['config']} TP {row['tp']} PP {row['pp']} KV {row['kv_dtype']}"
        blocks.add(name, plan.num_blocks, int(row["num_blocks"]))
        tokens.add(name, plan.tokens_logged, int(row["tokens_logged"]))
    return [blocks, tokens]


def main() -> int:
    """Print all shares; the exit code is 1 when a comparison is off by more than 0.1 %."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--configs", type=Path, required=True, action="append")
    parser.add_argument("--worst", type=int, default=5, help="misses shown for each comparison")
    options = parser.parse_args()
    configs = Configs(options.configs)
    tallies = [
        check_totals(configs, options.facts),
        check_file_bytes(configs),
        *check_vllm_weights(configs, options.facts),
        *check_vllm_cache(configs, options.facts),
    ]
    for tally in tallies:
        tally.show(options.worst)
    for name, message in sorted(configs.refused.items()):
        print(f"refused: {name}: {message}")
    return int(any(tally.outcomes["worse"] for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
