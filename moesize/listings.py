"""Rows of `moesize gpus`, `quants` and `engines`; JSON prints them whole, tables pick columns."""

from __future__ import annotations

from typing import Any

# A matrix large enough that rounding to groups and blocks plays no part in the average.
_SAMPLE = (8192, 8192)


def gpu_rows(word: str | None) -> list[dict[str, Any]]:
    """Every accelerator whose name or alias holds `word`."""
    from moesize.core.gpu import PEAK_FORMATS
    from moesize.gpus import list_gpus

    rows = []
    for gpu in list_gpus(word):
        memory = gpu.usable_memory()
        rows.append(
            {
                "id": gpu.id,
                "name": gpu.name,
                "vendor": gpu.vendor,
                "architecture": gpu.architecture,
                "compute_capability": gpu.compute_capability,
                "one_device_is": gpu.one_device_is,
                "advertised_gb": gpu.advertised_gb,
                "driver_total_bytes": gpu.driver_total_bytes,
                "usable_bytes": memory.best_bytes,
                "usable_low_bytes": memory.low_bytes,
                "usable_high_bytes": memory.high_bytes,
                "usable_basis": memory.basis,
                "memory_bandwidth_bytes_per_s": gpu.memory_bandwidth_bytes_per_s,
                **{f"{name}_flops_per_s": gpu.peak_flops_per_s(name) for name in PEAK_FORMATS},
                "nvlink_bytes_per_s_per_direction": gpu.nvlink_bytes_per_s_per_direction,
                "interconnect": gpu.interconnect,
                "tdp_w": gpu.tdp_w,
                "aliases": list(gpu.aliases),
                "mig_profiles": list(gpu.mig_profiles),
                "confidence": gpu.confidence,
                "notes": gpu.notes,
            }
        )
    return rows


def quant_rows(word: str | None) -> list[dict[str, Any]]:
    """Every scheme whose name or title holds `word`."""
    from moesize.core.quantization import list_schemes

    wanted = (word or "").lower()
    rows = []
    for scheme in list_schemes():
        if wanted not in scheme.name.lower() and wanted not in scheme.title.lower():
            continue
        size_bytes = scheme.weight_format.matrix_bytes(*_SAMPLE)
        rows.append(
            {
                "name": scheme.name,
                "title": scheme.title,
                "bits_per_weight": round(size_bytes * 8 / (_SAMPLE[0] * _SAMPLE[1]), 4),
                "leaves_out": scheme.leaves_out,
                "min_compute_capability": None
                if scheme.min_compute_capability is None
                else ".".join(map(str, scheme.min_compute_capability)),
                "is_gguf": scheme.is_gguf,
            }
        )
    return rows


def engine_rows() -> list[dict[str, Any]]:
    """Every engine that can be planned."""
    from moesize.engines import list_engines

    return list_engines()
