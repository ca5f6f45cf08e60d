"""Compare GGUF sizes with what llama.cpp planned and with published files.

    python scripts/check_gguf.py --facts FOLDER --configs FOLDER [FOLDER ...]

FOLDER of facts: llamacpp_oracle.csv (model size, parameters and tensors that llama.cpp 0c1e57098
counted) and gguf_file_sizes.csv (sizes that model cards state). FOLDER of configs:
OWNER__NAME.json files; the first folder that has a model counts.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections import Counter
from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from moesize.core.errors import MoesizeError, UnknownNameError
from moesize.core.gguf import list_file_types
from moesize.core.gguf_view import gguf_file_bytes, gguf_model_bytes, gguf_tensors
from moesize.readers.hf.read import spec_from_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moesize.core.model_spec import ModelSpec

_UNITS = {"bytes": 1, "GB": 10**9, "GiB": 2**30}
_CLOSE = 0.005
# Repositories hold the head a second time although it is tied.
_REPEATS_HEAD = ("tiiuae__falcon-40b",)
# Model names of the table -> config.
_MODELS = {
    "Mixtral-8x7B-Instruct-v0.1": "mistralai__Mixtral-8x7B-v0.1",
    "Mixtral-8x7B-v0.1": "mistralai__Mixtral-8x7B-v0.1",
    "dolphin-2.7-mixtral-8x7b": "mistralai__Mixtral-8x7B-v0.1",
    "Mixtral-8x22B-v0.1": "mistralai__Mixtral-8x22B-v0.1",
    "dolphin-2.9.2-mixtral-8x22b": "mistralai__Mixtral-8x22B-v0.1",
    "DeepSeek-V2-Lite": "deepseek-ai__DeepSeek-V2-Lite",
    "DeepSeek-V2-Lite-Chat": "deepseek-ai__DeepSeek-V2-Lite",
    "DeepSeek-V4-Flash": "deepseek-ai__DeepSeek-V4-Flash",
    "Meta-Llama-3-8B-Instruct": "meta-llama__Meta-Llama-3-8B-Instruct",
    "Meta-Llama-3.1-8B-Instruct": "meta-llama__Llama-3.1-8B-Instruct",
    "gpt-oss-20b": "openai__gpt-oss-20b",
    "gpt-oss-120b": "openai__gpt-oss-120b",
    "gemma-2b-it": "google__gemma-2b-it",
    "gemma-7b-it": "google__gemma-7b-it",
    "glm-4-9b-chat": "THUDM__glm-4-9b-chat",
    "glm-4-9b": "THUDM__glm-4-9b-chat",
    "glm-4-9b-chat-1m": "THUDM__glm-4-9b-chat-1m",
    "Qwen1.5-32B": "Qwen__Qwen1.5-32B",
    "Qwen-7B": "Qwen__Qwen-7B-Chat",
    "Qwen3-8B": "Qwen__Qwen3-8B",
    "Qwen3-4B-Instruct-2507": "Qwen__Qwen3-4B",
    "Qwen3-4B-Thinking-2507": "Qwen__Qwen3-4B",
    "GLM-4.7-Flash": "zai-org__GLM-4.7-Flash",
    "Qwen3.5-0.8B": "Qwen__Qwen3.5-0.8B",
    "Qwen3.5-9B": "Qwen__Qwen3.5-9B",
    "Qwen3.5-27B": "Qwen__Qwen3.5-27B",
    "Qwen3.6-27B": "Qwen__Qwen3.5-27B",
    "Qwen3.8-27B": "Qwen__Qwen3.5-27B",
    "Qwen3.5-35B-A3B": "Qwen__Qwen3.5-35B-A3B",
    "Qwen3.6-35B-A3B": "Qwen__Qwen3.5-35B-A3B",
    "Qwen3.5-122B-A10B": "Qwen__Qwen3.5-122B-A10B",
    "Qwen3.5-397B-A17B": "Qwen__Qwen3.5-397B-A17B",
    "gemma-4-31B-it": "google__gemma-4-31B-it",
}


def _spec(name: str, folders: list[Path]) -> ModelSpec:
    hub_id = name.replace("__", "/")
    for folder in folders:
        path = folder / f"{name}.json"
        if path.is_file():
            spec = spec_from_config(json.loads(path.read_text()), file=name, hub_id=hub_id)
            break
    else:
        raise UnknownNameError("config", name, (), "--configs")
    if name in _REPEATS_HEAD:
        spec = replace(spec, embedding=replace(spec.embedding, stored_tied_head=True))
    return spec


def _without_formats(spec: ModelSpec) -> ModelSpec:
    """As if published in 16 bits: the engine was asked about such files only."""
    return replace(spec, quantization=None)


def check_engine(path: Path, folders: list[Path]) -> None:
    """Model bytes, parameters and tensors against llama.cpp's own counts."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["model_size_bytes"]:
                rows.setdefault((row["config"], row["gguf_types"].split()[0]), row)
    outcomes: Counter[str] = Counter()
    for (config, file_type), row in rows.items():
        try:
            spec = _without_formats(_spec(config, folders))
            model, tensors = gguf_tensors(spec)
            got = (
                gguf_model_bytes(spec, file_type),
                sum(prod(tensor.shape) for tensor in tensors),
                len(tensors),
                model.architecture,
            )
        except MoesizeError as error:
            outcomes["refused"] += 1
            print(f"    {config} {file_type}: {error}")
            continue
        want = (
            int(row["model_size_bytes"]),
            int(row["n_params"]),
            int(row["n_tensors"]),
            row["arch"],
        )
        outcomes["equal" if got == want else "differs"] += 1
        if got != want:
            print(f"    {config} {file_type}: {got} for {want} ({got[0] - want[0]:+,} bytes)")
    print(f"llama.cpp's counts: {dict(outcomes)}")


def check_files(path: Path, folders: list[Path]) -> None:
    """File sizes against published ones, as exact as these are stated."""
    outcomes: Counter[str] = Counter()
    for name, quant, size, unit, url in _published(path):
        base = re.split(r" \(", name)[0]
        file_type = quant.split("-")[0].upper() if quant.count("-") else quant.upper()
        if base not in _MODELS or file_type not in list_file_types() or "+" in quant:
            outcomes["not comparable"] += 1
            print(f"    {name} {quant}: not comparable")
            continue
        stated = float(size) * _UNITS[unit]
        try:
            spec = _spec(_MODELS[base], folders)
            loader = "model size" in name
            sizes: dict[int, str] = {}
            for imatrix, mtp in product((False, True), (True, False)):
                file = gguf_file_bytes(spec, file_type, imatrix=imatrix, mtp=mtp)
                exact = gguf_model_bytes(spec, file_type, imatrix=imatrix, mtp=mtp)
                variant = "imatrix" * imatrix + " no MTP" * (not mtp)
                sizes.setdefault(exact if loader else file.estimate, variant)
        except MoesizeError as error:
            outcomes["refused"] += 1
            print(f"    {name} {quant}: {error}")
            continue
        nearest = min(sizes, key=lambda got: abs(got - stated))
        error_share = nearest / stated - 1
        # A figure of three digits can itself be off by more than the limit.
        digits = size.partition(".")[2]
        rounding = 0.5 * 10 ** -len(digits) * _UNITS[unit] / stated if unit != "bytes" else 0.0
        if abs(error_share) <= _CLOSE:
            outcomes["within 0.5 %"] += 1
            outcomes[f"of these {sizes[nearest].strip() or 'as is'}"] += 1
            outcomes["of these within rounding"] += abs(error_share) <= rounding
        elif abs(error_share) <= rounding:
            outcomes["within rounding"] += 1
        else:
            outcomes["off"] += 1
            print(f"    {name} {quant}: {nearest:,} for {size} {unit} ({error_share:+.2%}) {url}")
    print(f"published files: {dict(outcomes)}")


def _published(path: Path) -> Iterator[tuple[str, str, str, str, str]]:
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["unit"] in _UNITS:
                yield row["model"], row["quant"], row["size"], row["unit"], row["source_url"]


def main() -> None:
    """Run both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--configs", type=Path, required=True, action="append")
    arguments = parser.parse_args()
    check_engine(arguments.facts / "llamacpp_oracle.csv", arguments.configs)
    check_files(arguments.facts / "gguf_file_sizes.csv", arguments.configs)


if __name__ == "__main__":
    main()
