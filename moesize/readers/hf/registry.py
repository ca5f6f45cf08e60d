"""Which function reads which model type.

A family module decorates its functions with `@family("model_type", ...)`; the table below says
which module to import for a type, so that reading one config imports one module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moesize.readers.hf.view import ConfigView

# What a family function returns: ModelSpec fields; the caller adds identity, source, quantization.
SpecFields = dict[str, Any]
FamilyReader = Callable[[ConfigView], SpecFields]

READERS: dict[str, FamilyReader] = {}

# Module -> model types that it reads. A test keeps it equal to the decorators.
MODULES: dict[str, tuple[str, ...]] = {
    "dense": (
        "Yi",
        "apertus",
        "aquila",
        "cohere",
        "cohere2",
        "cwm",
        "exaone4",
        "glm",
        "glm4",
        "granite",
        "granite_swa",
        "llama",
        "mimo",
        "ministral",
        "ministral3",
        "mistral",
        "nemotron",
        "olmo",
        "olmo2",
        "olmo3",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
        "solar",
        "stablelm",
        "stablelm_epoch",
        "starcoder2",
        "xverse",
    ),
    "llama_like": (
        "arcee",
        "bitnet",
        "ernie4_5",
        "helium",
        "hunyuan_v1_dense",
        "hyperclovax",
        "jais2",
        "nanochat",
        "seed_oss",
    ),
    "dense_hub": (
        "baichuan",
        "chatglm",
        "exaone",
        "hf_olmo",
        "internlm",
        "internlm2",
        "internlm3",
        "minicpm",
        "orion",
        "phi-msft",
        "phi3small",
        "phi4flash",
        "qwen",
    ),
    "nas": (
        "deci",
        "nemotron-nas",
    ),
    "gemma": (
        "gemma",
        "gemma2",
        "gemma3_text",
        "gemma3n_text",
        "gemma4_text",
        "vaultgemma",
    ),
    "classic": (
        "RefinedWeb",
        "RefinedWebModel",
        "bloom",
        "codegen",
        "falcon",
        "gpt2",
        "gpt_bigcode",
        "gpt_neo",
        "gpt_neox",
        "gptj",
        "mpt",
        "opt",
        "persimmon",
        "xglm",
    ),
    "moe": (
        "afmoe",
        "bailing_moe",
        "bailing_moe_v2",
        "cohere2_moe",
        "dbrx",
        "deepseek",
        "dots1",
        "ernie4_5_moe",
        "ernie4_5_moe_text",
        "exaone_moe",
        "flex_olmo",
        "glm4_moe",
        "glm4v_moe_text",
        "gpt_oss",
        "granitemoe",
        "granitemoe_swa",
        "granitemoeshared",
        "hunyuan",
        "hunyuan_v1_moe",
        "hy_v3",
        "laguna",
        "llama4_text",
        "mellum",
        "mimo_v2",
        "mimo_v2_flash",
        "minimax",
        "minimax_m1",
        "minimax_m2",
        "minimax_m3",
        "minimax_m3_vl_text",
        "minimax_text_01",
        "mixtral",
        "grok-1",
        "olmoe",
        "phimoe",
        "qwen2_moe",
        "qwen3_moe",
        "qwen3_omni_moe_text",
        "qwen3_vl_moe_text",
        "solar_open",
        "step3_text",
        "step3p5",
    ),
    "latent": (
        "axk1",
        "bailing_hybrid",
        "deepseek_ref",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "deepseek_v4",
        "glm4_moe_lite",
        "glm5_next_text",
        "glm_moe_dsa",
        "hy_v4",
        "kimi_k2",
        "kimi_linear",
        "longcat_flash",
        "mistral4",
    ),
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
    "multimodal": (
        "cohere2_vision",
        "deepseek_vl_v2",
        "exaone4_5",
        "gemma3",
        "gemma3n",
        "gemma4",
        "gemma4_unified",
        "glm4v",
        "glm4v_moe",
        "internvl",
        "internvl_chat",
        "kimi_k25",
        "kimi_k3",
        "kimi_vl",
        "lfm2_vl",
        "llama4",
        "llava",
        "llava_next",
        "llava_onevision",
        "minicpmv",
        "minimax_m3_vl",
        "mistral3",
        "mllama",
        "mllama_text_model",
        "molmo",
        "paligemma",
        "phi3_v",
        "phi4mm",
        "qwen2_5_omni",
        "qwen2_5_vl",
        "qwen2_vl",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_asr",
        "qwen3_omni_moe",
        "qwen3_vl",
        "qwen3_vl_moe",
        "step3_vl",
        "step3p7",
        "voxtral",
    ),
    "encoder": (
        "bart",
        "bert",
        "camembert",
        "mbart",
        "modernbert",
        "mt5",
        "roberta",
        "switch_transformers",
        "t5",
        "umt5",
        "whisper",
        "xlm-roberta",
    ),
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
