"""Wrappers and towers: published element counts, engine bytes per rank, names, refusals.

Published counts are the `safetensors.total` of each hub repository (as the catalogue embedded in
the PyPI package llmfit 1.1.17 lists them) unless a row says otherwise. Config facts are restated
from the repositories' config.json.
"""

from __future__ import annotations

import contextlib
from math import prod
from typing import TYPE_CHECKING, Any

import pytest

from moesize.core.errors import InvalidSpecError, MoesizeError, UnsupportedError
from moesize.core.inventory import count_parameters, inventory
from moesize.core.naming import tensor_name
from moesize.readers.hf import towers
from moesize.readers.hf.read import spec_from_config
from moesize.readers.hf.registry import MODULES, READERS, find_reader
from moesize.readers.hf.view import ConfigView

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moesize.core.model_spec import ModelSpec, Tower

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def read(config: dict[str, Any]) -> ModelSpec:
    return spec_from_config(config, file="config.json")


def view(**facts: Any) -> ConfigView:
    return ConfigView(facts, "config.json", "vision_config")


def elements(*found: Tower) -> int:
    return sum(prod(item.shape) * item.copies for tower in found for item in tower.tensors)


def qwen3_vl(moe: bool = False, **text: Any) -> dict[str, Any]:
    kind = "qwen3_vl_moe" if moe else "qwen3_vl"
    tied = text.pop("tied")
    vision = text.pop("vision")
    return {
        "model_type": kind,
        "tie_word_embeddings": tied,
        "text_config": {
            "model_type": kind + "_text",
            "head_dim": 128,
            "vocab_size": 151936,
            "max_position_embeddings": 262144,
            "rope_theta": 5000000,
            **text,
        },
        "vision_config": vision,
    }


SMALL_VISION = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16}
TINY_VISION = {"depth": 12, "hidden_size": 768, "intermediate_size": 3072, "num_heads": 12}

QWEN3_VL_2B = qwen3_vl(
    tied=True,
    vision={**SMALL_VISION, "out_hidden_size": 2048, "deepstack_visual_indexes": [5, 11, 17]},
    hidden_size=2048,
    intermediate_size=6144,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
)
QWEN3_VL_8B = qwen3_vl(
    tied=False,
    vision={"out_hidden_size": 4096},
    hidden_size=4096,
    intermediate_size=12288,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
)
QWEN3_VL_30B = qwen3_vl(
    moe=True,
    tied=False,
    vision={"out_hidden_size": 2048},
    hidden_size=2048,
    intermediate_size=6144,
    moe_intermediate_size=768,
    num_experts=128,
    num_experts_per_tok=8,
    num_hidden_layers=48,
    num_attention_heads=32,
    num_key_value_heads=4,
)


def qwen3_5(moe: bool = False, **text: Any) -> dict[str, Any]:
    kind = "qwen3_5_moe" if moe else "qwen3_5"
    vision = text.pop("vision", {})
    return {
        "model_type": kind,
        "tie_word_embeddings": text.pop("tied", False),
        "text_config": {
            "model_type": kind + "_text",
            "head_dim": 256,
            "vocab_size": 248320,
            "max_position_embeddings": 262144,
            "mamba_ssm_dtype": "float32",
            "mtp_num_hidden_layers": 1,
            "linear_num_key_heads": 16,
            **text,
        },
        "vision_config": {**vision, "out_hidden_size": text["hidden_size"]},
    }


QWEN35_08B = qwen3_5(
    tied=True,
    vision=TINY_VISION,
    hidden_size=1024,
    intermediate_size=3584,
    num_hidden_layers=24,
    num_attention_heads=8,
    num_key_value_heads=2,
    linear_num_value_heads=16,
)
QWEN35_2B = qwen3_5(
    tied=True,
    vision=SMALL_VISION,
    hidden_size=2048,
    intermediate_size=6144,
    num_hidden_layers=24,
    num_attention_heads=8,
    num_key_value_heads=2,
    linear_num_value_heads=16,
)
QWEN35_4B = qwen3_5(
    tied=True,
    vision=SMALL_VISION,
    hidden_size=2560,
    intermediate_size=9216,
    num_hidden_layers=32,
    num_attention_heads=16,
    num_key_value_heads=4,
    linear_num_value_heads=32,
)
QWEN35_9B = qwen3_5(
    hidden_size=4096,
    intermediate_size=12288,
    num_hidden_layers=32,
    num_attention_heads=16,
    num_key_value_heads=4,
    linear_num_value_heads=32,
)
QWEN35_27B = qwen3_5(
    hidden_size=5120,
    intermediate_size=17408,
    num_hidden_layers=64,
    num_attention_heads=24,
    num_key_value_heads=4,
    linear_num_value_heads=48,
)
QWEN35_35B = qwen3_5(
    moe=True,
    hidden_size=2048,
    num_hidden_layers=40,
    num_attention_heads=16,
    num_key_value_heads=2,
    num_experts=256,
    linear_num_value_heads=32,
)
QWEN35_397B = qwen3_5(
    moe=True,
    hidden_size=4096,
    num_hidden_layers=60,
    num_attention_heads=32,
    num_key_value_heads=2,
    num_experts=512,
    num_experts_per_tok=10,
    moe_intermediate_size=1024,
    shared_expert_intermediate_size=1024,
    linear_num_value_heads=64,
)

_SIGLIP_SO = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 896,
    "vision_use_head": False,
}


def gemma3(**text: Any) -> dict[str, Any]:
    return {
        "model_type": "gemma3",
        "text_config": {"model_type": "gemma3_text", "sliding_window": 1024, **text},
        "vision_config": _SIGLIP_SO,
        "torch_dtype": "bfloat16",
    }


GEMMA3_4B = gemma3(hidden_size=2560, intermediate_size=10240, num_hidden_layers=34)
GEMMA3_12B = gemma3(
    hidden_size=3840,
    intermediate_size=15360,
    num_hidden_layers=48,
    num_attention_heads=16,
    num_key_value_heads=8,
)
GEMMA3_27B = gemma3(
    hidden_size=5376,
    intermediate_size=21504,
    num_hidden_layers=62,
    num_attention_heads=32,
    num_key_value_heads=16,
    head_dim=128,
    query_pre_attn_scalar=168,
)
GEMMA4_26B: dict[str, Any] = {
    "model_type": "gemma4",
    "audio_config": None,
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "gemma4_text",
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "global_head_dim": 512,
        "head_dim": 256,
        "hidden_size": 2816,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": 2112,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5,
        "max_position_embeddings": 262144,
        "moe_intermediate_size": 704,
        "num_attention_heads": 16,
        "num_experts": 128,
        "num_global_key_value_heads": 2,
        "num_hidden_layers": 30,
        "num_key_value_heads": 8,
        "num_kv_shared_layers": 0,
        "sliding_window": 1024,
        "tie_word_embeddings": True,
        "top_k_experts": 8,
        "vocab_size": 262144,
        "vocab_size_per_layer_input": 262144,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_type": "proportional"},
            "sliding_attention": {"rope_type": "default"},
        },
    },
    "vision_config": {
        "model_type": "gemma4_vision",
        "head_dim": 72,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_hidden_layers": 27,
        "position_embedding_size": 10240,
        "standardize": True,
    },
}
_LLAMA4_VISION = {
    "model_type": "llama4_vision_model",
    "hidden_size": 1408,
    "image_size": 336,
    "intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_hidden_layers": 34,
    "projector_input_dim": 4096,
    "projector_output_dim": 4096,
    "vision_output_dim": 4096,
}
SCOUT: dict[str, Any] = {
    "model_type": "llama4",
    "torch_dtype": "bfloat16",
    "text_config": {
        "model_type": "llama4_text",
        "attention_chunk_size": 8192,
        "head_dim": 128,
        "hidden_size": 5120,
        "interleave_moe_layer_step": 1,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "max_position_embeddings": 10485760,
        "num_attention_heads": 40,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "num_local_experts": 16,
        "vocab_size": 202048,
    },
    "vision_config": _LLAMA4_VISION,
}
MAVERICK: dict[str, Any] = {
    **SCOUT,
    "text_config": {
        **SCOUT["text_config"],
        "interleave_moe_layer_step": 2,
        "num_local_experts": 128,
    },
}
MISTRAL_SMALL: dict[str, Any] = {
    "model_type": "mistral3",
    "spatial_merge_size": 2,
    "vision_feature_layer": -1,
    "text_config": {
        "model_type": "mistral",
        "head_dim": 128,
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "max_position_embeddings": 131072,
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "vocab_size": 131072,
    },
    "vision_config": {
        "model_type": "pixtral",
        "head_dim": 64,
        "image_size": 1540,
        "patch_size": 14,
    },
}
KIMI_K25: dict[str, Any] = {
    "model_type": "kimi_k25",
    "tie_word_embeddings": False,
    "text_config": {
        "model_type": "kimi_k2",
        "first_k_dense_replace": 1,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "kv_lora_rank": 512,
        "max_position_embeddings": 262144,
        "moe_intermediate_size": 2048,
        "n_group": 1,
        "n_routed_experts": 384,
        "n_shared_experts": 1,
        "num_attention_heads": 64,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 61,
        "num_key_value_heads": 64,
        "num_nextn_predict_layers": 0,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "topk_method": "noaux_tc",
        "v_head_dim": 128,
        "vocab_size": 163840,
    },
    "vision_config": {
        "init_pos_emb_height": 64,
        "init_pos_emb_width": 64,
        "merge_kernel_size": [2, 2],
        "mm_projector_type": "patchmerger",
        "patch_size": 14,
        "vt_hidden_size": 1152,
        "vt_intermediate_size": 4304,
        "vt_num_attention_heads": 16,
        "vt_num_hidden_layers": 27,
    },
}
GLM41V: dict[str, Any] = {
    "model_type": "glm4v",
    "attention_bias": True,
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "max_position_embeddings": 65536,
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.5,
    "rope_scaling": {"type": "default", "mrope_section": [8, 12, 12]},
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 151552,
    "vision_config": {"intermediate_size": 13696},
}
GLM45V: dict[str, Any] = {
    "model_type": "glm4v_moe",
    "text_config": {
        "model_type": "glm4v_moe_text",
        "attention_bias": True,
        "first_k_dense_replace": 1,
        "head_dim": 128,
        "hidden_size": 4096,
        "intermediate_size": 10944,
        "max_position_embeddings": 65536,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "num_attention_heads": 96,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 46,
        "num_key_value_heads": 8,
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"rope_type": "default", "mrope_section": [8, 12, 12]},
        "vocab_size": 151552,
    },
    "vision_config": {"intermediate_size": 10944},
    "torch_dtype": "bfloat16",
}

MINIMAX_M3: dict[str, Any] = {
    "model_type": "minimax_m3_vl",
    "text_config": {
        "model_type": "minimax_m3_vl_text",
        "dense_intermediate_size": 12288,
        "head_dim": 128,
        "hidden_size": 6144,
        "intermediate_size": 3072,
        "max_position_embeddings": 1048576,
        "moe_layer_freq": [0] * 3 + [1] * 57,
        "n_shared_experts": 1,
        "num_attention_heads": 64,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 60,
        "num_key_value_heads": 4,
        "num_local_experts": 128,
        "partial_rotary_factor": 0.5,
        "qk_norm_type": "per_head",
        "rope_theta": 5000000,
        "rotary_dim": 64,
        "shared_intermediate_size": 3072,
        "sparse_attention_config": {
            "sparse_attention_freq": [0] * 3 + [1] * 57,
            "sparse_block_size": 128,
            "sparse_disable_index_value": [0] * 3 + [1] * 57,
            "sparse_index_dim": 128,
            "sparse_num_index_heads": 4,
            "sparse_topk_blocks": 16,
            "use_sparse_attention": True,
        },
        "tie_word_embeddings": False,
        "use_qk_norm": True,
        "use_routing_bias": True,
        "vocab_size": 200064,
    },
    "vision_config": {},
}
STEP3: dict[str, Any] = {
    "model_type": "step3_vl",
    "text_config": {
        "model_type": "step3_text",
        "head_dim": 256,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "max_position_embedding": 65536,
        "moe_intermediate_size": 5120,
        "moe_num_experts": 48,
        "moe_top_k": 3,
        "num_attention_heads": 64,
        "num_hidden_layers": 61,
        "share_expert_dim": 5120,
        "share_q_dim": 2048,
        "vocab_size": 128815,
    },
    "vision_config": {"intermediate_size": 15360},
}
VL2_SMALL: dict[str, Any] = {
    "model_type": "deepseek_vl_v2",
    "language_config": {
        "model_type": "deepseek_v2",
        "first_k_dense_replace": 1,
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "kv_lora_rank": 512,
        "max_position_embeddings": 4096,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_attention_heads": 16,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 27,
        "num_key_value_heads": 16,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "vocab_size": 102400,
    },
    "projector_config": {"n_embed": 2048},
    "vision_config": {"layers": 27, "mlp_ratio": 3.7362, "patch_size": 14, "width": 1152},
}
VL2_TINY: dict[str, Any] = {
    **VL2_SMALL,
    "language_config": {
        **VL2_SMALL["language_config"],
        "hidden_size": 1280,
        "intermediate_size": 6848,
        "kv_lora_rank": None,
        "moe_intermediate_size": 896,
        "num_attention_heads": 10,
        "num_hidden_layers": 12,
        "num_key_value_heads": 10,
        "use_mla": False,
        "vocab_size": 129280,
    },
    "projector_config": {"n_embed": 1280},
}
PHI3_MINI: dict[str, Any] = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "tie_word_embeddings": False,
    "vocab_size": 32064,
}
PHI4MM: dict[str, Any] = {
    **PHI3_MINI,
    "model_type": "phi4mm",
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "speech_lora": {"r": 320},
    "tie_word_embeddings": True,
    "vision_lora": {"r": 256},
    "vocab_size": 200064,
}


def gemma3n(**text: Any) -> dict[str, Any]:
    return {
        "model_type": "gemma3n",
        "text_config": {"model_type": "gemma3n_text", **text},
        "vision_config": {"architecture": "mobilenetv5_300m_enc"},
        "audio_config": {"hidden_size": 1536},
    }


TOTALS = {
    "Qwen/Qwen3-VL-2B-Instruct": (QWEN3_VL_2B, 2_127_532_032),
    "Qwen/Qwen3-VL-8B-Instruct": (QWEN3_VL_8B, 8_767_123_696),
    "Qwen/Qwen3-VL-30B-A3B-Instruct": (QWEN3_VL_30B, 31_070_754_032),
    "google/gemma-3-12b-it": (GEMMA3_12B, 12_187_325_040),
    "google/gemma-3-27b-it": (GEMMA3_27B, 27_432_406_640),
    # total_size 54,864,813,280 of the index / 2 bytes; its total_parameters counts the tied
    # table of 262208 x 5376 a second time
    "google/medgemma-27b-it": (GEMMA3_27B, 28_842_036_848 - 262208 * 5376),
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": (SCOUT, 108_641_793_536),
    # The fp8 files hold a scale per row of every expert: 24 layers, 128 experts.
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8": (
        MAVERICK,
        401_649_841_664 - 24 * 128 * (2 * 8192 + 5120),
    ),
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": (MISTRAL_SMALL, 24_011_361_280),
    "moonshotai/Kimi-K2.5": (KIMI_K25, 1_026_879_376_368),
    "zai-org/GLM-4.1V-9B-Thinking": (GLM41V, 10_292_777_472),
    "zai-org/GLM-4.5V": (GLM45V, 107_710_933_120),
    "MiniMaxAI/MiniMax-M3": (MINIMAX_M3, 427_040_140_160),
    "stepfun-ai/step3": (STEP3, 320_969_912_832),
    "deepseek-ai/deepseek-vl2-small": (VL2_SMALL, 16_148_349_504),
    "deepseek-ai/deepseek-vl2-tiny": (VL2_TINY, 3_370_501_440),
}


@pytest.mark.parametrize("hub_id", TOTALS)
def test_total_is_the_published_count(hub_id: str) -> None:
    config, published = TOTALS[hub_id]
    assert count_parameters(read(config)).total == published


STORED = {
    "Qwen/Qwen3.5-0.8B": (QWEN35_08B, 873_438_784),
    "Qwen/Qwen3.5-2B": (QWEN35_2B, 2_274_069_824),
    "Qwen/Qwen3.5-4B": (QWEN35_4B, 4_659_865_088),
    "Qwen/Qwen3.5-9B": (QWEN35_9B, 9_653_104_368),
    "Qwen/Qwen3.6-27B": (QWEN35_27B, 27_781_427_952),
    "Qwen/Qwen3.6-35B-A3B": (QWEN35_35B, 35_951_822_704),
    "Qwen/Qwen3.5-397B-A17B": (QWEN35_397B, 403_397_928_944),
    # with the buffers std_bias and std_scale of the tower and a scalar per layer
    "google/gemma-4-26B-A4B-it": (GEMMA4_26B, 25_805_936_206),
    # with the keys and values of the layers that use those of others
    "google/gemma-3n-E4B": (gemma3n(), 7_849_978_192),
    "google/gemma-3n-E2B": (
        gemma3n(num_hidden_layers=30, num_kv_shared_layers=10, intermediate_size=[8192] * 30),
        5_439_438_272,
    ),
    # with two LoRA adapters
    "microsoft/Phi-4-multimodal-instruct": (PHI4MM, 5_574_460_384),
}


@pytest.mark.parametrize("hub_id", STORED)
def test_stored_is_the_published_count(hub_id: str) -> None:
    config, published = STORED[hub_id]
    assert count_parameters(read(config)).stored == published


def test_base_gemma_4_stores_its_tied_head_instead_of_the_buffers() -> None:
    # google/gemma-4-26B-A4B: 26,544,131,376 elements
    total = count_parameters(read(GEMMA4_26B)).total
    assert total + 262144 * 2816 == 26_544_131_376


# Elements outside the language model in what Transformers 5.19 builds on the meta device from
# class defaults and these facts.
def _tower_cases() -> dict[str, tuple[int, int]]:
    plain = view()
    siglip = view(**{key: value for key, value in _SIGLIP_SO.items() if key != "vision_use_head"})
    large = view(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    e4b = {"hidden_size": 1024, "num_attention_heads": 8, "output_proj_dims": 1536}
    six_b = view(
        hidden_size=3200,
        num_attention_heads=25,
        intermediate_size=12800,
        use_qk_norm=True,
        norm_type="rms_norm",
        use_mean_pooling=False,
    )
    return {
        "qwen2_vl": (elements(towers.qwen2_vision(plain)), 675_759_104),
        "qwen2_5_vl": (elements(towers.qwen2_5_vision(plain)), 3_083_025_152),
        "qwen3_vl": (elements(towers.qwen3_vision(plain)), 566_949_104),
        "qwen3_5": (elements(towers.qwen3_vision(plain, deepstack=False)), 453_650_672),
        "gemma3 with a pooling head": (
            elements(towers.siglip(plain, ""), towers.gemma3_projector(768, 2304)),
            94_654_464,
        ),
        "gemma3": (
            elements(towers.siglip(view(vision_use_head=False), ""))
            + elements(towers.gemma3_projector(768, 2304)),
            87_567_360,
        ),
        "gemma3-4b": (
            elements(towers.siglip(siglip, "", head=False), towers.gemma3_projector(1152, 2560)),
            419_816_304,
        ),
        "gemma4 E4B": (
            elements(*towers.gemma4_vision(plain, 2560), *towers.gemma4_audio(view(**e4b), 2560)),
            478_087_456,
        ),
        "gemma4 12B": (
            elements(
                *towers.gemma4_unified(
                    view(mm_embed_dim=3840, mm_posemb_size=1120), view(audio_embed_dim=640), 3840
                )
            ),
            52_379_904,
        ),
        "gemma3n": (
            elements(*towers.gemma3n_vision(plain, 2048), *towers.gemma3n_audio(plain, 2048)),
            983_281_504,
        ),
        "llama4": (elements(*towers.llama4_vision(plain, 5120)), 455_178_240),
        "mllama": (elements(*towers.mllama_vision(plain, 4096)), 867_749_395),
        "mllama 11B": (elements(*towers.mllama_vision(view(image_size=560), 4096)), 895_028_755),
        "mistral3": (
            elements(
                towers.pixtral(view(patch_size=14)), towers.mistral3_projector(plain, 1024, 5120)
            ),
            438_958_080,
        ),
        "llava": (
            elements(towers.clip(large, ""), towers.two_layer_projector(1024, 4096, 4096)),
            324_487_168,
        ),
        "glm4v": (elements(towers.glm4v_vision(plain)), 892_498_432),
        "kimi_k25": (
            elements(
                towers.moonvit(plain),
                towers.kimi_projector(plain, 1152, 7168, names=("a", "b"), prefix=""),
            ),
            471_143_920,
        ),
        # less the projector: a norm of 4 * 3200 and two matrices
        "internvl 6B": (
            elements(towers.internvl_vision(six_b)),
            3_024_455_808 - (2 * 12800 + (12800 + 1) * 4096 + (4096 + 1) * 4096),
        ),
        "minimax_m3_vl": (elements(*towers.minimax_m3_vision(plain, plain, 6144)), 865_567_232),
        "qwen3_asr": (
            elements(
                towers.qwen_audio(
                    view(
                        d_model=1024,
                        encoder_layers=24,
                        encoder_attention_heads=16,
                        encoder_ffn_dim=4096,
                    ),
                    "",
                )
            ),
            319_051_904,
        ),
    }


@pytest.mark.parametrize("case", _tower_cases())
def test_towers_are_what_transformers_builds(case: str) -> None:
    found, built = _tower_cases()[case]
    assert found == built


def test_step_3_7_tower_is_what_its_files_hold_beyond_step_3_5() -> None:
    # stepfun-ai/Step-3.7-Flash less stepfun-ai/Step-3.5-Flash
    found = towers.step3p7_vision(view(), view(), 4096)
    assert elements(*found) == 201_365_316_160 - 199_384_301_376


def test_phi_3_5_vision_is_phi_3_5_mini_and_clip() -> None:
    # microsoft/Phi-3.5-mini-instruct; CLIP-L/14 at 336 pixels as Transformers builds it; norms
    # in front of the projector and its two matrices.
    mini, clip, marks = 3_821_079_552, 303_507_456, 8192
    projector = (4096 + 1) * 3072 + (3072 + 1) * 3072
    spec = read(
        {**PHI3_MINI, "model_type": "phi3_v", "img_processor": {"name": "clip_vision_model"}}
    )
    counts = count_parameters(spec)
    assert counts.stored == mini + clip + marks + projector
    # The features come from the last layer but one: engines load neither the last nor the norm
    # behind it. vLLM 0.32.0 model code on the meta device (microsoft/Phi-3.5-vision-instruct):
    # 8,465,047,552 bytes, with the token embedding twice.
    assert counts.total == 8_465_047_552 // 2 - 32064 * 3072


def test_internvl_chat_tower_equals_the_one_of_transformers() -> None:
    # The same network under other names; Transformers has no `qkv` and no class for the 6B's use.
    chat = view(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=448,
        norm_type="layer_norm",
        qk_normalization=False,
        qkv_bias=True,
    )
    hf = view(attention_bias=True)
    assert elements(towers.intern_vit(chat)) == elements(towers.internvl_vision(hf))


# Parameter bytes of one rank, as vLLM 0.32.0's own model code allocates them on the meta device.
QWEN2_VL_7B: dict[str, Any] = {
    "model_type": "qwen2_vl",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 2048,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 152064,
    "vision_config": {"embed_dim": 1280, "hidden_size": 3584, "in_chans": 3},
}
QWEN25_VL_3B: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_position_embeddings": 8192,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
    "vision_config": {"hidden_size": 1280, "out_hidden_size": 2048, "in_chans": 3},
}
INTERNVL2_2B: dict[str, Any] = {
    "model_type": "internvl_chat",
    "downsample_ratio": 0.5,
    "torch_dtype": "bfloat16",
    "llm_config": {
        "model_type": "internlm2",
        "bias": False,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 512,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
        "vocab_size": 92553,
    },
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 448,
        "intermediate_size": 4096,
        "norm_type": "layer_norm",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "qk_normalization": False,
        "qkv_bias": True,
    },
}
QWEN3_ASR: dict[str, Any] = {
    "model_type": "qwen3_asr",
    "thinker_config": {
        "text_config": {
            "model_type": "qwen3_asr_text",
            "head_dim": 128,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "max_position_embeddings": 65536,
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20]},
            "tie_word_embeddings": True,
            "vocab_size": 151936,
        },
        "audio_config": {
            "d_model": 896,
            "encoder_attention_heads": 14,
            "encoder_ffn_dim": 3584,
            "encoder_layers": 18,
            "output_dim": 1024,
        },
    },
}

MROPE = {"rope_type": "default", "mrope_section": [16, 24, 24]}
QWEN25_OMNI: dict[str, Any] = {
    "model_type": "qwen2_5_omni",
    "thinker_config": {
        "text_config": {
            "model_type": "qwen2_5_omni_text",
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "max_position_embeddings": 32768,
            "num_attention_heads": 28,
            "num_hidden_layers": 28,
            "num_key_value_heads": 4,
            "rope_scaling": MROPE,
            "tie_word_embeddings": False,
            "vocab_size": 152064,
        },
        "audio_config": {"d_model": 1280, "output_dim": 3584},
        "vision_config": {"hidden_size": 1280, "out_hidden_size": 3584},
    },
}
EXAONE45: dict[str, Any] = {
    "model_type": "exaone4_5",
    "tie_word_embeddings": False,
    "text_config": {
        "model_type": "exaone4_5_text",
        "hidden_size": 5120,
        "intermediate_size": 27392,
        "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 16,
        "max_position_embeddings": 262144,
        "num_attention_heads": 40,
        "num_hidden_layers": 64,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "vocab_size": 153600,
    },
    "vision_config": {
        "depth": 28,
        "hidden_size": 2048,
        "intermediate_size": 5120,
        "num_heads": 32,
        "num_key_value_heads": 8,
        "out_hidden_size": 5120,
    },
}
VOXTRAL: dict[str, Any] = {
    "model_type": "voxtral",
    "text_config": {
        "model_type": "llama",
        "head_dim": 128,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "num_attention_heads": 32,
        "num_hidden_layers": 30,
        "num_key_value_heads": 8,
        "vocab_size": 131072,
    },
    "audio_config": {"hidden_size": 1280, "intermediate_size": 5120, "num_mel_bins": 128},
}


# Parameters that Transformers 5.19 builds on the meta device from these repositories' configs.
@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (QWEN25_OMNI, 8_931_813_888),  # the thinker of Qwen/Qwen2.5-Omni-7B
        (EXAONE45, 33_813_987_328),  # LGAI-EXAONE/EXAONE-4.5-33B
        (VOXTRAL, 4_676_271_104),  # mistralai/Voxtral-Mini-3B-2507
    ],
)
def test_whole_models_are_what_transformers_builds(config: dict[str, Any], parameters: int) -> None:
    assert count_parameters(read(config)).total == parameters


RANK_BYTES = {
    "Qwen/Qwen3-VL-2B-Instruct": (QWEN3_VL_2B, {1: 4_255_064_064, 2: 2_131_771_392}),
    "Qwen/Qwen3-VL-30B-A3B-Instruct": (QWEN3_VL_30B, {1: 62_141_508_064, 8: 7_823_380_380}),
    "Qwen/Qwen3.5-0.8B": (QWEN35_08B, {1: 1_705_972_416, 2: 856_049_504, 4: 434_233_776}),
    "Qwen/Qwen3.5-397B-A17B": (QWEN35_397B, {1: 793_604_727_392, 8: 99_477_379_980}),
    "Qwen/Qwen2-VL-7B-Instruct": (QWEN2_VL_7B, {1: 16_582_751_232, 2: 8_293_337_088}),
    "Qwen/Qwen2.5-VL-3B-Instruct": (QWEN25_VL_3B, {1: 7_509_245_952, 2: 3_756_444_928}),
    "google/gemma-3-4b-it": (GEMMA3_4B, {1: 8_600_158_944, 2: 4_308_983_920}),
    "google/gemma-3-27b-it": (GEMMA3_27B, {1: 54_864_813_280, 2: 27_445_541_488, 8: 6_881_087_644}),
    "zai-org/GLM-4.1V-9B-Thinking": (GLM41V, {1: 20_585_554_944, 2: 10_321_384_448}),
    "zai-org/GLM-4.5V": (GLM45V, {1: 215_469_063_680, 2: 107_810_057_728}),
    "OpenGVLab/InternVL2-2B": (INTERNVL2_2B, {1: 4_411_959_296, 2: 2_220_525_568}),
    "Qwen/Qwen3-ASR-0.6B": (QWEN3_ASR, {1: 1_564_852_224, 2: 795_346_688}),
    "Qwen/Qwen2.5-Omni-7B": (QWEN25_OMNI, {1: 17_863_627_776, 2: 9_573_339_392}),
    "LGAI-EXAONE/EXAONE-4.5-33B": (EXAONE45, {1: 67_627_974_656, 2: 33_817_309_184}),
}


def rank_bytes(spec: ModelSpec, ranks: int) -> int:
    """Bytes of one rank: units shared out, replicated where there are fewer than ranks."""
    total = 0
    for entry in inventory(spec):
        tensor = entry.tensor
        if entry.section in ("mtp", "stored"):
            continue
        shape = list(tensor.shape)
        if tensor.role in ("embedding.tokens", "lm_head.weight"):
            # vLLM pads the vocabulary to a multiple of 64.
            shape[0] = -(-shape[0] // 64) * 64 // ranks
        elif tensor.shard is not None and ranks > 1:
            units = tensor.shard.units
            assert units >= ranks or tensor.shard.replicate, tensor
            shape[tensor.shard.dim] //= min(units, ranks)
        total += prod(shape) * tensor.copies * entry.count * BYTES[tensor.dtype or spec.dtype]
    return total


@pytest.mark.parametrize("hub_id", RANK_BYTES)
def test_bytes_of_a_rank_are_those_of_vllm(hub_id: str) -> None:
    config, by_ranks = RANK_BYTES[hub_id]
    spec = read(config)
    assert {ranks: rank_bytes(spec, ranks) for ranks in by_ranks} == by_ranks


# cos/sin and position buffers that vLLM 0.32.0 registers: positions, width, bytes per number.
@pytest.mark.parametrize(
    ("config", "tables"),
    [
        (QWEN3_VL_2B, [(262144, 128, 2), (8192, 32, 2)]),
        (QWEN35_08B, [(262144, 64, 2), (8192, 32, 2)]),
        (QWEN35_27B, [(262144, 64, 2), (8192, 36, 2)]),
        # four times the context, for videos
        (QWEN2_VL_7B, [(8192, 128, 2), (8192, 40, 2)]),
        (QWEN25_VL_3B, [(32768, 128, 2), (8192, 40, 2)]),
        (GLM41V, [(262144, 64, 2), (8192, 64, 2)]),
        (QWEN3_ASR, [(262144, 128, 2), (1500, 896, 4)]),
        # complex numbers for 24 x 24 patches and the class token: 203,104 bytes
        (SCOUT, [(10485760, 128, 2), (577, 88, 4)]),
    ],
)
def test_position_tables_are_those_of_vllm(
    config: dict[str, Any], tables: list[tuple[int, int, int]]
) -> None:
    spec = read(config)
    found = [
        (table.positions, table.rotary_dim, BYTES[table.dtype or spec.dtype])
        for table in spec.rotary
    ]
    assert found == tables


# Tower tensors in the safetensors index of google/medgemma-27b-it (351f31d of its mirror), and
# how many there are.
MEDGEMMA_TOWER = {
    "multi_modal_projector.mm_input_projection_weight": 1,
    "multi_modal_projector.mm_soft_emb_norm.weight": 1,
    "vision_tower.vision_model.embeddings.patch_embedding.bias": 1,
    "vision_tower.vision_model.embeddings.patch_embedding.weight": 1,
    "vision_tower.vision_model.embeddings.position_embedding.weight": 1,
    "vision_tower.vision_model.encoder.layers.{layer}.layer_norm1.bias": 27,
    "vision_tower.vision_model.encoder.layers.{layer}.layer_norm1.weight": 27,
    "vision_tower.vision_model.encoder.layers.{layer}.layer_norm2.bias": 27,
    "vision_tower.vision_model.encoder.layers.{layer}.layer_norm2.weight": 27,
    "vision_tower.vision_model.encoder.layers.{layer}.mlp.fc1.bias": 27,
    "vision_tower.vision_model.encoder.layers.{layer}.mlp.fc1.weight": 27,
    "vision_tower.vision_model.encoder.layers.{layer}.mlp.fc2.bias": 27,
    "vision_tower.vision_model.encoder.layers.{layer}.mlp.fc2.weight": 27,
    "vision_tower.vision_model.encoder.layers.{layer}.self_attn.k_proj.bias": 27,
    "vision_tower.vision_model.encoder.layers.{layer}.self_attn.k_proj.weight": 27,
    "vision_tower.vision_model.encoder.layers.{layer}.self_attn.out_proj.bias": 27,
    "vision_tower.vision_model.encoder.layers.{layer}.self_attn.out_proj.weight": 27,
    "vision_tower.vision_model.encoder.layers.{layer}.self_attn.q_proj.bias": 27,
    "vision_tower.vision_model.encoder.layers.{layer}.self_attn.q_proj.weight": 27,
    "vision_tower.vision_model.encoder.layers.{layer}.self_attn.v_proj.bias": 27,
    "vision_tower.vision_model.encoder.layers.{layer}.self_attn.v_proj.weight": 27,
    "vision_tower.vision_model.post_layernorm.bias": 1,
    "vision_tower.vision_model.post_layernorm.weight": 1,
}


def test_tower_names_are_those_of_a_real_index() -> None:
    entries = [entry for entry in inventory(read(GEMMA3_27B)) if entry.section == "tower"]
    assert {entry.name: entry.tensor.copies for entry in entries} == MEDGEMMA_TOWER


# From the same index, and from those of Qwen/Qwen3-VL, moonshotai/Kimi-K2.5 and Scout as their
# quantization configs name modules.
@pytest.mark.parametrize(
    ("config", "role", "name"),
    [
        (GEMMA3_27B, "attention.q", "language_model.model.layers.{layer}.self_attn.q_proj.weight"),
        (GEMMA3_27B, "embedding.tokens", "language_model.model.embed_tokens.weight"),
        (GEMMA3_27B, "norms.final", "language_model.model.norm.weight"),
        (QWEN35_35B, "embedding.tokens", "model.language_model.embed_tokens.weight"),
        (QWEN35_35B, "lm_head.weight", "lm_head.weight"),
        (QWEN3_VL_8B, "attention.q", "model.language_model.layers.{layer}.self_attn.q_proj.weight"),
        (QWEN3_VL_8B, "lm_head.weight", "lm_head.weight"),
        (QWEN2_VL_7B, "attention.q", "model.layers.{layer}.self_attn.q_proj.weight"),
        (KIMI_K25, "lm_head.weight", "language_model.lm_head.weight"),
    ],
)
def test_text_stands_where_the_wrapper_puts_it(
    config: dict[str, Any], role: str, name: str
) -> None:
    spec = read(config)
    assert tensor_name(spec.naming, role) == name


def test_trimmed_config_reads_as_text_and_says_so() -> None:
    trimmed = {key: value for key, value in GEMMA3_27B.items() if key != "vision_config"}
    spec = read(trimmed)
    assert spec.towers == ()
    assert any("vision_config" in note for note in spec.notes)
    whole = count_parameters(read(GEMMA3_27B))
    assert count_parameters(spec).total == whole.total - whole.by_group["towers"]


def test_trimmed_scout_gets_the_default_tower() -> None:
    """vLLM 0.32.0 allocates 216,450,078,720 bytes for it, 910,356,480 beyond the text model."""
    trimmed = {key: value for key, value in SCOUT.items() if key != "vision_config"}
    spec = read(trimmed)
    assert any("vision_config" in note for note in spec.notes)
    assert count_parameters(spec).by_group["towers"] * 2 == 910_356_480


def test_flag_of_the_wrapper_counts_where_the_text_has_none() -> None:
    assert read(QWEN3_VL_2B).embedding.tied
    assert not read(QWEN3_VL_8B).embedding.tied


def test_gemma_4_towers_are_whole_on_every_rank() -> None:
    # vLLM 0.32.0 allocates the same tensors for 1 and 2 ranks.
    assert not any(tower.tensor_parallel for tower in read(GEMMA4_26B).towers)


def test_mllama_crosses_at_the_listed_layers() -> None:
    # meta-llama/Llama-3.2-11B-Vision-Instruct: Transformers 5.19 builds 10,670,220,835 parameters.
    at = [3, 8, 13, 18, 23, 28, 33, 38]
    spec = read(
        {
            "model_type": "mllama",
            "text_config": {
                "model_type": "mllama_text_model",
                "cross_attention_layers": at,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "max_position_embeddings": 131072,
                "num_attention_heads": 32,
                "num_hidden_layers": 40,
                "num_key_value_heads": 8,
                "tie_word_embeddings": False,
                "vocab_size": 128256,
            },
            "vision_config": {"image_size": 560},
        }
    )
    assert [i for i, name in enumerate(spec.layout) if name == "cross"] == at
    assert count_parameters(spec).total == 10_670_220_835


def test_unknown_language_model_is_refused() -> None:
    config = {**SCOUT, "text_config": {"model_type": "llama9_text"}}
    with pytest.raises(UnsupportedError, match="llama9_text"):
        read(config)


def test_unknown_vision_tower_is_refused() -> None:
    config = {
        "model_type": "llava",
        "text_config": {**SCOUT["text_config"]},
        "vision_config": {"model_type": "squid_vision"},
    }
    with pytest.raises(UnsupportedError, match="squid_vision"):
        read(config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vision_config": ["depth"]}, "must be an object"),
        ({"vision_config": {"depth": 10**9}}, "vision_config.depth"),
        ({"vision_config": {"hidden_size": "wide"}}, "vision_config.hidden_size"),
        ({"vision_config": {"deepstack_visual_indexes": [1] * 300}}, "more than 256"),
        ({"vision_config": {"patch_size": [14, 16]}}, "two equal"),
    ],
)
def test_contradictions_are_refused_with_the_field_named(
    change: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidSpecError, match=words):
        read({**QWEN3_VL_8B, **change})


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"image_size": 337}, "multiple of patch_size"),
        ({"image_size": 0}, "image_size"),
    ],
)
def test_pictures_that_patches_do_not_tile_are_refused(facts: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSpecError, match=words):
        read({**SCOUT, "vision_config": {**_LLAMA4_VISION, **facts}})


def test_pixel_shuffle_must_merge_whole_squares() -> None:
    with pytest.raises(InvalidSpecError, match="downsample_ratio"):
        read({**INTERNVL2_2B, "downsample_ratio": 0.3})


HOSTILE = (None, True, -1, float("inf"), "auto", [], [None], {"a": 1}, 2**80)


def _mutants(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The config with each of its fields replaced by each hostile value."""
    for key, value in config.items():
        for bad in HOSTILE:
            yield {**config, key: bad}
        if isinstance(value, dict):
            for inner in _mutants(value):
                yield {**config, key: inner}


CONFIGS = {
    name: value
    for name, value in list(globals().items())
    if isinstance(value, dict) and "model_type" in value and not name.startswith("_")
}


@pytest.mark.parametrize("name", CONFIGS)
def test_hostile_fields_end_in_a_message(name: str) -> None:
    for mutant in _mutants(CONFIGS[name]):
        with contextlib.suppress(MoesizeError):
            assert count_parameters(read(mutant)).total > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_has_a_name(name: str) -> None:
    spec = read(CONFIGS[name])
    for entry in inventory(spec):
        assert entry.name or tensor_name(spec.naming, entry.tensor.role, entry.section)


def test_table_of_modules_is_what_the_module_registers() -> None:
    for name in MODULES["multimodal"]:
        reader = find_reader(name)
        assert reader is not None
        assert reader.__module__ == "moesize.readers.hf.multimodal"
    registered = {
        name
        for name, reader in READERS.items()
        if reader.__module__ == "moesize.readers.hf.multimodal"
    }
    assert registered == set(MODULES["multimodal"])
