"""Which function reads which model type.

A family module decorates its functions with `@family("model_type", ...)`; the table below says
which module to import for a type, so that reading one config imports one module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moesize.readers.hf.view import ConfigView

# What a family function returns: ModelSpec fields; the caller adds identity, source and quantization.
SpecFields = dict[str, Any]
FamilyReader = Callable[[ConfigView], SpecFields]

READERS: dict[str, FamilyReader] = {}

# Module -> model types that it reads. A test keeps it equal to the decorators.
MODULES: dict[str, tuple[str, ...]] = {
    "dense": ("llama", "mistral"),
    "moe": ("mixtral", "phimoe", "granitemoe", "granitemoeshared", "dbrx", "qwen2_moe", "qwen3_moe", "qwen3_omni_moe_text", "qwen3_vl_moe_text", "olmoe", "flex_olmo", "minimax_m2", "minimax_m3", "minimax_m3_vl_text", "minimax", "minimax_text_01", "minimax_m1", "gpt_oss", "llama4_text", "glm4_moe", "glm4v_moe_text", "dots1", "solar_open", "ernie4_5_moe", "ernie4_5_moe_text"),
    "latent": ("deepseek_v2", "deepseek_v3", "kimi_k2", "axk1", "mistral4", "glm4_moe_lite", "deepseek_v32", "glm_moe_dsa", "deepseek_v4", "deepseek_ref", "kimi_linear"),
    "hybrid": (
        "bamba",
        "falcon_h1",
        "falcon_mamba",
        "granitemoehybrid",
        "jamba",
        "lfm2",
        "lfm2_moe",
        "mamba",
        "mamba2",
        "nemotron_h",
        "olmo_hybrid",
        "qwen3_5_moe_text",
        "qwen3_5_text",
        "qwen3_next",
    ),
    "multimodal": (),
    "encoder": (),
}


def family(*model_types: str) -> Callable[[FamilyReader], FamilyReader]:
    """Register a reader for model types."""

    def register(function: FamilyReader) -> FamilyReader:
        for name in model_types:
            READERS[name] = function
        return function

    return register


def known_model_types() -> list[str]:
    """All model types with a reader."""
    return sorted(name for names in MODULES.values() for name in names)


def find_reader(model_type: str) -> FamilyReader | None:
    """The reader of a model type; imports its module on first use."""
    if model_type not in READERS:
        for module, names in MODULES.items():
            if model_type in names:
                from importlib import import_module

                import_module(f"moesize.readers.hf.{module}")
                break
    return READERS.get(model_type)
