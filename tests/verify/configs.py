"""Tiny configs of each family, as config.json files: real names and formats, small shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_BASE: dict[str, Any] = {
    "dtype": "bfloat16",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 256,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
_FP8 = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "weight_block_size": [128, 128],
}
_MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
    ],
}  # fmt: skip

# Family of the issue -> what its config says beyond the base.
FAMILIES: dict[str, dict[str, Any]] = {
    "dense GQA": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "MLA MoE": {
        "model_type": "deepseek_v3",
        "architectures": ["DeepseekV3ForCausalLM"],
        "num_key_value_heads": 4,
        "q_lora_rank": 64,
        "kv_lora_rank": 48,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 64,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.5,
        "num_nextn_predict_layers": 0,
        "moe_layer_freq": 1,
        "norm_topk_prob": True,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    },
    "gated-delta hybrid": {
        "model_type": "qwen3_next",
        "architectures": ["Qwen3NextForCausalLM"],
        "num_hidden_layers": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4,
        "full_attention_interval": 4,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "partial_rotary_factor": 0.25,
    },
    "sliding window": {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "sliding_window": 16,
    },
    "gpt-oss MXFP4": {
        "model_type": "gpt_oss",
        "architectures": ["GptOssForCausalLM"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "experts_per_token": 2,
        "sliding_window": 16,
        "attention_bias": True,
        "layer_types": ["sliding_attention", "full_attention"],
        "swiglu_limit": 7.0,
        "quantization_config": _MXFP4,
    },
    "GPTQ": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "dtype": "float16",
        "quantization_config": _GPTQ,
    },
    "FP8 block": {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "quantization_config": _FP8,
    },
}


def write_config(family: str, folder: Path, **changes: Any) -> Path:
    """A folder with the family's config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**_BASE, **FAMILIES[family], **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
