"""Tiny models of transformers' own classes, with random weights, saved as a checkpoint would be."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 12,
}
_DEEPSEEK_MOE: dict[str, Any] = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
}
_DELTA: dict[str, Any] = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "num_hidden_layers": 4,
}
_QWEN_MOE: dict[str, Any] = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
}
_MAMBA2: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}


@dataclass(frozen=True)
class Family:
    """A model type and what its tiny config says beyond SMALL; `name` tells variants apart.

    tokens      of the prompt and of the steps after it
    class_name  where no config of the model stands for its causal language model
    """

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    tokens: int = 13
    class_name: str = ""

    @property
    def id(self) -> str:
        """Name of the test."""
        return self.name or self.model_type


def save(family: Family, folder: Path, *, seed: int = 0) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A model of the library and the config.json it was saved with."""
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    facts = {k: v for k, v in {**SMALL, **family.config}.items() if v != "absent"}
    config = AutoConfig.for_model(family.model_type, **facts)
    config._attn_implementation = "eager"
    if family.class_name:
        # A language model that the library registers as a part of a wrapper only.
        model = getattr(transformers, family.class_name)(config)
    else:
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = model.float().eval()
    scramble(model)
    model.save_pretrained(folder)
    return model, json.loads((folder / "config.json").read_text())


def scramble(model: torch.nn.Module) -> None:
    """Random values everywhere: a norm of ones or a bias of zeros would hide a mistake."""
    with torch.no_grad():
        # Of the buffers only corrections of routers are learned; tables of angles are not.
        named = [
            *model.named_parameters(),
            *((name, buffer) for name, buffer in model.named_buffers() if "bias" in name),
        ]
        for name, tensor in named:
            if not tensor.is_floating_point() or "inv_freq" in name or "scal" in name:
                continue
            if tensor.dim() > 1 and "A_log" not in name:
                tensor.copy_(torch.randn_like(tensor) * 1.2 / tensor.shape[-1] ** 0.5)
            elif tensor.numel() > 1 or tensor.dim():
                tensor.add_(torch.randn_like(tensor) * 0.2)


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the saved files."""
    from safetensors.torch import load_file

    state: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        state |= load_file(path)
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    state |= _published_convolutions(state)
    if kind in _PUBLISHED:
        return _PUBLISHED[kind](state)
    return {_published_name(name, state): tensor for name, tensor in state.items()}


def _minimax_m3(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """MiniMax-M3's own names: transformers 5.23 restores them for the wrapper only."""
    out: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        name = re.sub(r"indexer\.([qk])_", r"index_\1_", name)
        if re.search(r"mlp\.(experts|gate\.|shared_experts)", name):
            name = name.replace(".mlp.", ".block_sparse_moe.")
        name = name.replace("moe.gate.e_score", "moe.e_score")
        if "gate_up_proj.weight" in name:
            for part, half in zip(("gate", "up"), tensor.chunk(2), strict=True):
                out[name.replace("gate_up", part)] = half
        else:
            out[name] = tensor
    return _one_by_one(out, ("w1", "w3", "w2"))


def _one_by_one(
    state: dict[str, torch.Tensor], names: tuple[str, str, str]
) -> dict[str, torch.Tensor]:
    """Experts apart, and their gate and up, which the library stacks."""
    out: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        stack, _, part = name.rpartition(".")
        if not stack.endswith(".experts"):
            out[name] = tensor
            continue
        for index, expert in enumerate(tensor):
            parts = (*expert.chunk(2),) if part == "gate_up_proj" else (expert,)
            own = names[:2] if part == "gate_up_proj" else names[2:]
            for matrix, what in zip(parts, own, strict=True):
                out[f"{stack}.{index}.{what}.weight"] = matrix.contiguous()
    return out


def _deepseek_v4(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """DeepSeek-V4's own names, of which transformers 5.23 does not restore all when it saves."""
    out = {}
    for name, tensor in state.items():
        name = name.removeprefix("model.").replace("embed_tokens.", "embed.")
        tensor = tensor.int() if name.endswith("tid2eid") else tensor
        out[name.replace("hc_head.hc_", "hc_head_").replace(".attn.norm.", ".attn.kv_norm.")] = (
            tensor
        )
    return out


_PUBLISHED = {
    "deepseek_v4": _deepseek_v4,
    "minimax_m3_vl_text": _minimax_m3,
    "mistral4": lambda state: _one_by_one(state, ("gate_proj", "up_proj", "down_proj")),
}


def _published_convolutions(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OLMo-Hybrid's convolutions, each as wide as its projection.

    transformers 5.23 splits the joined one into three equal parts when it saves.
    """
    out: dict[str, torch.Tensor] = {}
    for name in state:
        layer = name.removesuffix("q_conv1d.weight")
        if layer == name or "linear_attn" not in name:
            continue
        names = [f"{layer}{part}_conv1d.weight" for part in "qkv"]
        rows = [len(state[f"{layer}{part}_proj.weight"]) for part in "qkv"]
        joined = torch.cat([state[one] for one in names])
        out |= dict(zip(names, joined.split(rows), strict=True))
    return out


def _published_name(name: str, state: dict[str, torch.Tensor]) -> str:
    """Undoes what transformers 5.23 renames too much when it saves.

    Kimi-Linear's dense layers get the name of its experts; OLMo-Hybrid's attention layers that of
    its linear ones. The published files have the names on the right.
    """
    name = re.sub(r"block_sparse_moe\.(gate_proj|up_proj|down_proj)", r"mlp.\1", name)
    layer = name.removesuffix("feedforward_layer_norm.weight")
    if layer != name and layer + "post_feedforward_layernorm.weight" in state:
        return layer + "post_attention_layernorm.weight"
    return name


_F = Family
FAMILIES: tuple[Family, ...] = (
    _F("llama"),
    _F(
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
        "llama-llama3-rope",
    ),
    _F(
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
        "llama-linear-rope",
    ),
    _F(
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
        "llama-dynamic-rope",
    ),
    _F(
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            }
        },
        "llama-yarn-rope",
    ),
    _F("mistral", {"sliding_window": 5}),
    _F("ministral", {"sliding_window": 5, "head_dim": 8}),
    _F("ministral3", {"head_dim": 8, "sliding_window": None}),
    _F("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    _F("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    _F("qwen3", {"head_dim": 12}),
    _F(
        "qwen3_moe",
        {
            **_QWEN_MOE,
            "head_dim": 12,
            "norm_topk_prob": True,
            "mlp_only_layers": [0],
            "decoder_sparse_step": 1,
        },
    ),
    _F("qwen2_moe", {**_QWEN_MOE, "decoder_sparse_step": 1}),
    _F(
        "qwen3_next",
        {**_DELTA, **_QWEN_MOE, "partial_rotary_factor": 0.25, "decoder_sparse_step": 1},
    ),
    _F("qwen3_5_text", _DELTA),
    _F("qwen3_5_moe_text", {**_DELTA, **_QWEN_MOE}),
    _F("gemma", {"head_dim": 12, "tie_word_embeddings": True}),
    _F(
        "gemma2",
        {
            "head_dim": 12,
            "query_pre_attn_scalar": 9,
            "sliding_window": 5,
            "num_hidden_layers": 4,
            "tie_word_embeddings": True,
        },
    ),
    _F(
        "gemma3_text",
        {
            "head_dim": 12,
            "query_pre_attn_scalar": 9,
            "sliding_window": 5,
            "num_hidden_layers": 6,
            "tie_word_embeddings": True,
        },
    ),
    _F(
        "gemma4_text",
        {
            "head_dim": 16,
            "global_head_dim": 32,
            "sliding_window": 5,
            "num_hidden_layers": 8,
            "tie_word_embeddings": True,
            "vocab_size_per_layer_input": 96,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 2,
        },
    ),
    _F(
        "gemma4_text",
        {
            "head_dim": 16,
            "global_head_dim": 32,
            "sliding_window": 5,
            "num_hidden_layers": 6,
            "tie_word_embeddings": True,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 16,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
        },
        "gemma4-moe",
    ),
    _F(
        "vaultgemma",
        {
            "head_dim": 12,
            "query_pre_attn_scalar": 9,
            "sliding_window": 5,
            "tie_word_embeddings": True,
        },
    ),
    _F("phi", {"partial_rotary_factor": 0.5, "qk_layernorm": False}),
    _F("phi3", {"sliding_window": None}),
    _F(
        "phi3",
        {
            "sliding_window": None,
            "original_max_position_embeddings": 32,
            "max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [1.0, 2.0, 3.0, 4.0],
                "original_max_position_embeddings": 32,
            },
        },
        "phi3-longrope",
    ),
    _F(
        "granite",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
    ),
    _F(
        "granitemoe",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
            "embedding_multiplier": 3.0,
        },
    ),
    _F(
        "granitemoeshared",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 24,
            "attention_multiplier": 0.2,
        },
    ),
    _F(
        "granitemoehybrid",
        {
            **_MAMBA2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 24,
            "layer_types": ["mamba", "attention", "mamba"],
            "attention_multiplier": 0.2,
            "position_embedding_type": "rope",
        },
    ),
    _F("deepseek_v2", {**_MLA, **_DEEPSEEK_MOE, "topk_method": "group_limited_greedy"}),
    _F(
        "deepseek_v2",
        {**_MLA, **_DEEPSEEK_MOE, "q_lora_rank": None, "topk_method": "greedy"},
        "deepseek_v2-lite",
    ),
    _F("deepseek_v3", {**_MLA, **_DEEPSEEK_MOE}),
    _F(
        "deepseek_v3",
        {
            **_MLA,
            **_DEEPSEEK_MOE,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "beta_fast": 32,
                "beta_slow": 1,
            },
        },
        "deepseek_v3-yarn",
    ),
    _F(
        "deepseek_v32",
        {**_MLA, **_DEEPSEEK_MOE, "index_n_heads": 16, "index_head_dim": 8, "index_topk": 6},
    ),
    _F(
        "glm_moe_dsa",
        {
            **_MLA,
            **_DEEPSEEK_MOE,
            "index_n_heads": 16,
            "index_head_dim": 8,
            "index_topk": 6,
            "mlp_layer_types": ["dense", "sparse", "sparse"],
        },
    ),
    _F("glm", {"head_dim": 8}),
    _F("glm4", {"head_dim": 8}),
    _F("glm4_moe", {**_DEEPSEEK_MOE, "head_dim": 8, "use_qk_norm": True}),
    _F("glm4_moe_lite", {**_MLA, **_DEEPSEEK_MOE}),
    _F(
        "gpt_oss",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 5},
    ),
    _F("olmo", {"clip_qkv": 1.0}),
    _F("olmo2"),
    _F("olmo3", {"sliding_window": 5, "num_hidden_layers": 4}),
    _F("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    _F("olmo_hybrid", {**_DELTA, "linear_value_head_dim": 16}),
    _F("flex_olmo", {"num_experts": 4, "num_experts_per_tok": 2}),
    _F("cohere", {"logit_scale": 0.25, "tie_word_embeddings": True}),
    _F(
        "cohere2",
        {
            "logit_scale": 0.25,
            "sliding_window": 5,
            "num_hidden_layers": 4,
            "tie_word_embeddings": True,
        },
    ),
    _F(
        "cohere2_moe",
        {"num_hidden_layers": 4, "head_dim": 8, "sliding_window": 5, "num_shared_experts": 1},
    ),
    _F(
        "llama4_text",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "head_dim": 8,
            "intermediate_size_mlp": 40,
            "num_hidden_layers": 4,
            "attention_chunk_size": 6,
            "interleave_moe_layer_step": 2,
            "floor_scale": 4,
        },
    ),
    _F(
        "minimax",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 8,
            "block_size": 4,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
    ),
    _F(
        "minimax_m2",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "rotary_dim": 4},
    ),
    _F("mamba", {"state_size": 8, "expand": 2, "time_step_rank": 4, "tie_word_embeddings": True}),
    _F(
        "falcon_mamba",
        {"state_size": 8, "expand": 2, "time_step_rank": 4, "tie_word_embeddings": True},
    ),
    _F(
        "mamba2",
        {
            "num_heads": 8,
            "head_dim": 8,
            "state_size": 16,
            "n_groups": 2,
            "chunk_size": 8,
            "expand": 2,
        },
    ),
    _F("bamba", {**_MAMBA2, "attn_layer_indices": [1]}),
    _F(
        "nemotron_h",
        {
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "ssm_state_size": 16,
            "chunk_size": 8,
            "head_dim": 8,
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "moe", "attention", "mamba"],
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "n_shared_experts": 1,
            "moe_shared_expert_intermediate_size": 24,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    _F(
        "falcon_h1",
        {
            "mamba_d_ssm": 64,
            **_MAMBA2,
            "head_dim": 8,
            "key_multiplier": 0.7,
            "attention_in_multiplier": 0.9,
            "attention_out_multiplier": 1.1,
            "ssm_in_multiplier": 0.8,
            "ssm_out_multiplier": 1.2,
            "embedding_multiplier": 1.5,
            "lm_head_multiplier": 0.6,
            "mlp_multipliers": [0.9, 1.3],
            "ssm_multipliers": [0.9, 0.8, 1.1, 1.2, 0.7],
        },
    ),
    _F(
        "jamba",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_d_conv": 4,
            "mamba_expand": 2,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    _F(
        "lfm2",
        {
            "layer_types": ["conv", "full_attention", "conv"],
            "block_auto_adjust_ff_dim": False,
            "conv_L_cache": 3,
        },
    ),
    _F(
        "lfm2_moe",
        {
            "layer_types": ["conv", "full_attention", "conv"],
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "num_dense_layers": 1,
            "conv_L_cache": 3,
            "use_expert_bias": True,
        },
    ),
    _F(
        "kimi_linear",
        {
            **_MLA,
            "head_dim": 8,
            "q_lora_rank": None,
            "num_hidden_layers": 4,
            "linear_num_heads": 4,
            "linear_head_dim": 8,
            "linear_conv_kernel_dim": 4,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "num_shared_experts": 1,
            "n_shared_experts": 1,
            "n_group": 2,
            "topk_group": 1,
            "layer_types": [
                "linear_attention",
                "linear_attention",
                "full_attention",
                "linear_attention",
            ],
        },
    ),
    _F(
        "dbrx",
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 128,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
            "ffn_config": {
                "ffn_hidden_size": 24,
                "moe_num_experts": 4,
                "moe_top_k": 2,
                "hidden_size": 32,
            },
        },
    ),
    _F("ernie4_5"),
    _F(
        "ernie4_5_moe",
        {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 16,
            "moe_layer_start_index": 1,
            "moe_num_shared_experts": 1,
        },
    ),
    _F("hunyuan_v1_dense", {"head_dim": 8}),
    _F("hunyuan_v1_moe", {"head_dim": 8, "num_experts": 4, "moe_topk": 2}),
    _F("exaone4", {"sliding_window": 5, "sliding_window_pattern": 2, "num_hidden_layers": 4}),
    _F("exaone_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    _F("smollm3", {"num_hidden_layers": 4}),
    _F("starcoder2", {"use_bias": True, "sliding_window": None}),
    _F("stablelm", {"partial_rotary_factor": 0.5}),
    _F("arcee"),
    _F("seed_oss", {"head_dim": 8}),
    _F("apertus"),
    _F("helium", {"head_dim": 8}),
    _F("nanochat"),
    _F("nemotron", {"partial_rotary_factor": 0.5}),
    _F("cwm", {"head_dim": 8, "sliding_window": 5}),
    _F("jais2"),
    _F("bitnet"),
    _F("dots1", {**_DEEPSEEK_MOE, "head_dim": 8}),
    _F("phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    _F(
        "hy_v3",
        {
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "num_shared_experts": 1,
        },
    ),
    _F(
        "laguna",
        {
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 5,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 24,
            "num_hidden_layers": 4,
        },
    ),
    _F("solar_open", {"head_dim": 8, **_DEEPSEEK_MOE}),
    _F(
        "afmoe",
        {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    _F(
        "gpt2",
        {"intermediate_size": "absent", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    ),
    _F("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4}),
    _F("gpt_neox", {"rotary_pct": 0.5}),
    _F("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    _F("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    _F(
        "opt",
        {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
        "opt-narrow",
    ),
    _F("bloom", {"n_layer": 2, "n_head": 4}),
    _F(
        "gemma3n_text",
        {
            "head_dim": 12,
            "sliding_window": 5,
            "num_hidden_layers": 10,
            "num_kv_shared_layers": 5,
            "vocab_size_per_layer_input": 90,  # of tokens beyond it the first row is taken
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 2,
            "activation_sparsity_pattern": [0.95] * 3 + [0.0] * 7,
            "tie_word_embeddings": True,
        },
    ),
    _F(
        "minimax_m3_vl_text",
        {
            "rotary_dim": 4,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            },
            "index_n_heads": 2,
            "index_head_dim": 8,
            "index_topk_blocks": 2,
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "dense_intermediate_size": 40,
            "shared_intermediate_size": 48,
            "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
            "mlp_layer_types": ["dense", "sparse", "sparse"],
        },
        tokens=400,  # four blocks of keys, of which two are kept
    ),
    _F(
        "mistral4",
        {
            **_MLA,
            **_DEEPSEEK_MOE,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 4,
                "llama_4_scaling_beta": 0.1,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "beta_fast": 32,
                "beta_slow": 1,
            },
        },
        class_name="Mistral4ForCausalLM",
    ),
    _F(
        "bailing_hybrid",
        {
            **_MLA,
            **_DEEPSEEK_MOE,
            "q_lora_rank": "absent",
            "n_routed_experts": "absent",
            "num_experts": 8,
            "head_dim": 8,
            "num_hidden_layers": 4,
            "layer_group_size": 2,
            "no_kda_lora": True,
            "gated_attention_proj_granularity_type": "head_wise",
            "num_nextn_predict_layers": 0,
        },
    ),
    _F("axk1", {**_MLA, **_DEEPSEEK_MOE}),
    _F(
        "deepseek_v4",
        {
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "intermediate_size": "absent",
            "num_key_value_heads": 1,
            "head_dim": 16,
            "qk_rope_head_dim": 8,
            "q_lora_rank": 16,
            "o_groups": 2,
            "o_lora_rank": 8,
            # Many, or scores of zero would be equal and the choice among them anybody's.
            "index_n_heads": 16,
            "index_head_dim": 16,
            "index_topk": 2,
            "sliding_window": 5,
            "num_hidden_layers": 4,
            "compress_ratios": [0, 128, 4, 4],
            "num_hash_layers": 2,
            "hc_mult": 3,
            "num_nextn_predict_layers": 0,
        },
        tokens=140,  # one window of 128
    ),
    _F("codegen", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4}),
    _F(
        "gpt_bigcode",
        {"intermediate_size": "absent", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    ),
    _F(
        "gpt_bigcode",
        {
            "intermediate_size": "absent",
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "multi_query": False,
        },
        "gpt_bigcode-all-heads",
    ),
    _F(
        "gpt_neo",
        {
            "num_layers": 2,
            "num_hidden_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 5,
        },
    ),
    _F(
        "hyperclovax",
        {
            "head_dim": 8,
            "attention_multiplier": 0.2,
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
            "use_post_norm": True,
        },
    ),
    _F("internlm3", {"head_dim": 8}),
    _F("granite_swa", {"sliding_window": 5, "layer_rope_theta": [0, 1e4, 2e4]}),
    _F(
        "granitemoe_swa",
        {"sliding_window": 5, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    _F(
        "mellum",
        {
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    ),
    _F(
        "mimo_v2_flash",
        {
            "head_dim": 12,
            "v_head_dim": 8,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "sliding_window": 5,
        },
    ),
    _F("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}),
    _F("persimmon", {"num_key_value_heads": 4}),
)
