"""Records written by hand, field by field: what a reader takes is not what the writer makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MIB = 1 << 20
H100 = "NVIDIA H100 80GB HBM3"
RTX_3090 = "NVIDIA GeForce RTX 3090"


def term(name: str, predicted: int | None, measured: int | None, **more: Any) -> dict[str, Any]:
    row = {
        "name": name, "predicted_bytes": predicted, "measured_bytes": measured, "tolerance": 0.01,
        "low_bytes": None, "high_bytes": None, "rank": 0, "why": "",
    }  # fmt: skip
    return {**row, **more}


def context(total: int, product: int, *, known: bool = True) -> list[dict[str, Any]]:
    """512 MiB (358 to 819) are what plans take. Not known: other processes were counted."""
    best, low, high = (512 * MIB, 375809638, 858993459) if known else (None, None, None)
    return [
        term("context", best, total, tolerance=0.0, low_bytes=low, high_bytes=high),
        term("context.first_product", None, product),
    ]


def document(*terms: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A record of 2 of Mixtral's 32 layers."""
    device = {
        "kind": "cuda", "name": H100, "total_bytes": 85_017_493_504,
        "driver": "570.86.15, CUDA 12.8", "torch": "2.13.0+cu128",
    }  # fmt: skip
    settings = {
        "tokens": 512, "sequences": 4, "decode_steps": 4, "dtype": "bfloat16", "rank": 0,
        "ranks": 1, "seed": 0,
    }  # fmt: skip
    device |= {name: changes.pop(name) for name in tuple(changes) if name in device}
    settings |= {name: changes.pop(name) for name in tuple(changes) if name in settings}
    return {
        "schema": "moesize.receipt/1", "moesize_version": "0.1.0", "model": "mixtral-8x7b",
        "model_source": "catalogue", "spec_sha256": "0" * 64, "revision": None,
        "quantization": "checkpoint", "device": device, "engine": "torch", "shards": "synthetic",
        "layers": [0, 1], "num_layers": 32, "settings": settings, "terms": list(terms),
        "flops": {"predicted": 0, "measured": 0, "phases": []}, "phases": [], "extrapolated": [],
        "speed": None, "failure": None, "agrees": True, "date": "2026-11-22",
        "command": "moesize verify mixtral-8x7b --layers 0-1 --save", "notes": [],
        "saved_to": None, **changes,
    }  # fmt: skip


def keep(folder: Path, name: str, found: dict[str, Any]) -> Path:
    """As `--save` lays them: the file's name begins with the model's."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{found['model']}-{name}.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    return path
