"""Names of tensors in published checkpoints, by family.

Needed to apply a checkpoint's list of unquantized modules, to show tensors to people, and to find
them in files. `{layer}` and `{expert}` stand for indices. A family overrides what differs from
the names most families share.
"""

from __future__ import annotations

from dataclasses import field, replace
from functools import lru_cache

from moesize.core.records import dataclass

_DEFAULT = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "attention.gate": "self_attn.g_proj",
    "attention.sinks": "self_attn.sinks",
    "attention.q_a": "self_attn.q_a_proj",
    "attention.q_b": "self_attn.q_b_proj",
    "attention.kv_a": "self_attn.kv_a_proj_with_mqa",
    "attention.kv_b": "self_attn.kv_b_proj",
    "attention.indexer.q_b": "self_attn.indexer.wq_b",
    "attention.indexer.k": "self_attn.indexer.wk",
    "attention.indexer.weights": "self_attn.indexer.weights_proj",
    "attention.indexer.q": "self_attn.index_q_proj",
    "norms.indexer_k": "self_attn.indexer.k_norm",
    "norms.indexer_q": "self_attn.indexer.q_norm",
    "norms.q": "self_attn.q_norm",
    "norms.k": "self_attn.k_norm",
    "norms.q_a": "self_attn.q_a_layernorm",
    "norms.kv_a": "self_attn.kv_a_layernorm",
    "attention.linear.qkv": "linear_attn.in_proj_qkv",
    "attention.linear.z": "linear_attn.in_proj_z",
    "attention.linear.a": "linear_attn.in_proj_a",
    "attention.linear.b": "linear_attn.in_proj_b",
    "attention.linear.qkvz": "linear_attn.in_proj_qkvz",
    "attention.linear.ba": "linear_attn.in_proj_ba",
    "attention.linear.conv": "linear_attn.conv1d",
    "attention.linear.dt_bias": "linear_attn.dt_bias",
    "attention.linear.a_log": "linear_attn.A_log",
    "attention.linear.out": "linear_attn.out_proj",
    "norms.linear": "linear_attn.norm",
    "dense_mlp.gate": "mlp.gate_proj",
    "dense_mlp.up": "mlp.up_proj",
    "dense_mlp.down": "mlp.down_proj",
    "router.weight": "mlp.gate",
    "router.bias": "mlp.gate.e_score_correction_bias",
    "router.hash": "mlp.gate.tid2eid",
    "routed_experts.gate": "mlp.experts.{expert}.gate_proj",
    "routed_experts.up": "mlp.experts.{expert}.up_proj",
    "routed_experts.down": "mlp.experts.{expert}.down_proj",
    "shared_experts.gate": "mlp.shared_experts.gate_proj",
    "shared_experts.up": "mlp.shared_experts.up_proj",
    "shared_experts.down": "mlp.shared_experts.down_proj",
    "shared_experts.sigmoid_gate": "mlp.shared_expert_gate",
    "norms.hidden": "{norm}",
    "other.mtp_projection": "eh_proj",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """Where a family keeps its tensors.

    layers   prefix of a decoder layer; mtp_layers of an MTP layer (empty = goes on counting)
    roles    module name by role, relative to the layer, where it differs from the common ones; a
             leading "/" makes it a full name
    bare     roles whose tensor has no `.weight` behind the module name
    norms    the norms over the hidden size of a full layer, in order (role `norms.hidden`);
             encoder_norms of an encoder layer where they differ
    """

    layers: str = "model.layers.{layer}."
    encoder_layers: str = "encoder.layers.{layer}."
    mtp_layers: str = ""
    tokens: str = "model.embed_tokens"
    head: str = "lm_head"
    final_norm: str = "model.norm"
    roles: dict[str, str] = field(default_factory=dict)
    bare: frozenset[str] = frozenset()
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    encoder_norms: tuple[str, ...] = ()


_BARE = frozenset(
    {
        "attention.sinks",
        "attention.linear.dt_bias",
        "attention.linear.a_log",
        "attention.linear.d",
        "router.bias",
        "router.hash",
    }
)


def _mamba2_names(module: str) -> dict[str, str]:
    """Names inside a Mamba or Mamba-2 mixer, which all families share; B and C are part of `in`."""
    return {
        "attention.linear.in": f"{module}.in_proj",
        "attention.linear.in_groups": f"{module}.in_proj",
        "attention.linear.conv": f"{module}.conv1d",
        "attention.linear.conv_groups": f"{module}.conv1d",
        "attention.linear.x": f"{module}.x_proj",
        "attention.linear.dt": f"{module}.dt_proj",
        "attention.linear.dt_bias": f"{module}.dt_bias",
        "attention.linear.a_log": f"{module}.A_log",
        "attention.linear.d": f"{module}.D",
        "attention.linear.out": f"{module}.out_proj",
        "norms.linear": f"{module}.norm",
    }


_QWEN_HYBRID = {
    "shared_experts.gate": "mlp.shared_expert.gate_proj",
    "shared_experts.up": "mlp.shared_expert.up_proj",
    "shared_experts.down": "mlp.shared_expert.down_proj",
    "other.mtp_projection": "/mtp.fc",
}

_LFM2 = {
    "attention.o": "self_attn.out_proj",
    "norms.q": "self_attn.q_layernorm",
    "norms.k": "self_attn.k_layernorm",
    "attention.linear.in": "conv.in_proj",
    "attention.linear.conv": "conv.conv",
    "attention.linear.out": "conv.out_proj",
    "dense_mlp.gate": "feed_forward.w1",
    "dense_mlp.up": "feed_forward.w3",
    "dense_mlp.down": "feed_forward.w2",
}

_AFMOE_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_mlp_layernorm",
    "post_mlp_layernorm",
)

# One entry per family whose names differ; the reader of the family names it in ModelSpec.naming.
NAMES: dict[str, Naming] = {
    "default": Naming(),
    "mixtral": Naming(
        roles={
            "router.weight": "block_sparse_moe.gate",
            "routed_experts.gate": "block_sparse_moe.experts.{expert}.w1",
            "routed_experts.up": "block_sparse_moe.experts.{expert}.w3",
            "routed_experts.down": "block_sparse_moe.experts.{expert}.w2",
        }
    ),
    "qwen2_moe": Naming(
        roles={
            "shared_experts.gate": "mlp.shared_expert.gate_proj",
            "shared_experts.up": "mlp.shared_expert.up_proj",
            "shared_experts.down": "mlp.shared_expert.down_proj",
        }
    ),
    "granitemoe": Naming(
        roles={
            "router.weight": "block_sparse_moe.router.layer",
            "routed_experts.gate": "block_sparse_moe.input_linear",
            "routed_experts.up": "block_sparse_moe.input_linear",
            "routed_experts.down": "block_sparse_moe.output_linear",
            "shared_experts.gate": "shared_mlp.input_linear",
            "shared_experts.up": "shared_mlp.input_linear",
            "shared_experts.down": "shared_mlp.output_linear",
        }
    ),
    "granitemoe_swa": Naming(
        roles={
            "router.weight": "block_sparse_moe.router",
            "routed_experts.gate": "block_sparse_moe.experts.gate_up_proj",
            "routed_experts.up": "block_sparse_moe.experts.gate_up_proj",
            "routed_experts.down": "block_sparse_moe.experts.down_proj",
            "shared_experts.gate": "shared_mlp.input_linear",
            "shared_experts.up": "shared_mlp.input_linear",
            "shared_experts.down": "shared_mlp.output_linear",
        },
        bare=frozenset({"routed_experts.gate", "routed_experts.up", "routed_experts.down"}),
    ),
    "dbrx": Naming(
        norms=("norm_attn_norm.norm_1", "norm_attn_norm.norm_2"),
        layers="transformer.blocks.{layer}.",
        tokens="transformer.wte",
        final_norm="transformer.norm_f",
        roles={
            "attention.q": "norm_attn_norm.attn.Wqkv",
            "attention.k": "norm_attn_norm.attn.Wqkv",
            "attention.v": "norm_attn_norm.attn.Wqkv",
            "attention.o": "norm_attn_norm.attn.out_proj",
            "router.weight": "ffn.router.layer",
            "routed_experts.gate": "ffn.experts.mlp.w1",
            "routed_experts.up": "ffn.experts.mlp.v1",
            "routed_experts.down": "ffn.experts.mlp.w2",
        },
        bare=frozenset({"routed_experts.gate", "routed_experts.up", "routed_experts.down"}),
    ),
    "minimax_m2": Naming(
        roles={
            "router.weight": "block_sparse_moe.gate",
            "router.bias": "block_sparse_moe.e_score_correction_bias",
            "routed_experts.gate": "block_sparse_moe.experts.{expert}.w1",
            "routed_experts.up": "block_sparse_moe.experts.{expert}.w3",
            "routed_experts.down": "block_sparse_moe.experts.{expert}.w2",
        }
    ),
    "minimax_m3": Naming(
        roles={
            "attention.indexer.q": "self_attn.index_q_proj",
            "attention.indexer.k": "self_attn.index_k_proj",
            "norms.indexer_q": "self_attn.index_q_norm",
            "norms.indexer_k": "self_attn.index_k_norm",
            "router.weight": "block_sparse_moe.gate",
            "router.bias": "block_sparse_moe.e_score_correction_bias",
            "routed_experts.gate": "block_sparse_moe.experts.{expert}.w1",
            "routed_experts.up": "block_sparse_moe.experts.{expert}.w3",
            "routed_experts.down": "block_sparse_moe.experts.{expert}.w2",
            "shared_experts.gate": "block_sparse_moe.shared_experts.gate_proj",
            "shared_experts.up": "block_sparse_moe.shared_experts.up_proj",
            "shared_experts.down": "block_sparse_moe.shared_experts.down_proj",
        },
    ),
    "minimax": Naming(
        roles={
            "attention.linear.qkv": "self_attn.qkv_proj",
            "attention.linear.g": "self_attn.output_gate",
            "attention.linear.out": "self_attn.out_proj",
            "norms.linear": "self_attn.norm",
            "router.weight": "block_sparse_moe.gate",
            "routed_experts.gate": "block_sparse_moe.experts.{expert}.w1",
            "routed_experts.up": "block_sparse_moe.experts.{expert}.w3",
            "routed_experts.down": "block_sparse_moe.experts.{expert}.w2",
        }
    ),
    "gpt_oss": Naming(
        roles={
            "router.weight": "mlp.router",
            "router.bias": "mlp.router.bias",
            "routed_experts.gate": "mlp.experts.gate_up_proj",
            "routed_experts.up": "mlp.experts.gate_up_proj",
            "routed_experts.down": "mlp.experts.down_proj",
        },
        bare=frozenset({"routed_experts.gate", "routed_experts.up", "routed_experts.down"}),
    ),
    "llama4": Naming(
        roles={
            "router.weight": "feed_forward.router",
            "routed_experts.gate": "feed_forward.experts.gate_up_proj",
            "routed_experts.up": "feed_forward.experts.gate_up_proj",
            "routed_experts.down": "feed_forward.experts.down_proj",
            "shared_experts.gate": "feed_forward.shared_expert.gate_proj",
            "shared_experts.up": "feed_forward.shared_expert.up_proj",
            "shared_experts.down": "feed_forward.shared_expert.down_proj",
            "dense_mlp.gate": "feed_forward.gate_proj",
            "dense_mlp.up": "feed_forward.up_proj",
            "dense_mlp.down": "feed_forward.down_proj",
        },
        bare=frozenset({"routed_experts.gate", "routed_experts.up", "routed_experts.down"}),
    ),
    "deepseek_v4": Naming(
        layers="layers.{layer}.",
        mtp_layers="mtp.{layer}.",
        tokens="embed",
        head="head",
        final_norm="norm",
        norms=("attn_norm", "ffn_norm"),
        roles={
            "attention.q_a": "attn.wq_a",
            "attention.q_b": "attn.wq_b",
            "attention.kv": "attn.wkv",
            "attention.o_a": "attn.wo_a",
            "attention.o_b": "attn.wo_b",
            "attention.sinks": "attn.attn_sink",
            "norms.q_a": "attn.q_norm",
            "norms.kv_a": "attn.kv_norm",
            "attention.compressor.kv": "attn.compressor.wkv",
            "attention.compressor.gate": "attn.compressor.wgate",
            "attention.compressor.ape": "attn.compressor.ape",
            "norms.compressor": "attn.compressor.norm",
            "attention.indexer.q_b": "attn.indexer.wq_b",
            "attention.indexer.weights": "attn.indexer.weights_proj",
            "attention.indexer.compressor.kv": "attn.indexer.compressor.wkv",
            "attention.indexer.compressor.gate": "attn.indexer.compressor.wgate",
            "attention.indexer.compressor.ape": "attn.indexer.compressor.ape",
            "norms.indexer.compressor": "attn.indexer.compressor.norm",
            "router.weight": "ffn.gate",
            "router.bias": "ffn.gate.bias",
            "router.hash": "ffn.gate.tid2eid",
            "routed_experts.gate": "ffn.experts.{expert}.w1",
            "routed_experts.up": "ffn.experts.{expert}.w3",
            "routed_experts.down": "ffn.experts.{expert}.w2",
            "shared_experts.gate": "ffn.shared_experts.w1",
            "shared_experts.up": "ffn.shared_experts.w3",
            "shared_experts.down": "ffn.shared_experts.w2",
            "other.hc_attn_fn": "hc_attn_fn",
            "other.hc_attn_base": "hc_attn_base",
            "other.hc_attn_scale": "hc_attn_scale",
            "other.hc_ffn_fn": "hc_ffn_fn",
            "other.hc_ffn_base": "hc_ffn_base",
            "other.hc_ffn_scale": "hc_ffn_scale",
            "other.hc_head_fn": "hc_head_fn",
            "other.hc_head_base": "hc_head_base",
            "other.hc_head_scale": "hc_head_scale",
        },
        bare=frozenset(
            {
                "attention.compressor.ape",
                "attention.indexer.compressor.ape",
                "other.hc_attn_fn",
                "other.hc_attn_base",
                "other.hc_attn_scale",
                "other.hc_ffn_fn",
                "other.hc_ffn_base",
                "other.hc_ffn_scale",
                "other.hc_head_fn",
                "other.hc_head_base",
                "other.hc_head_scale",
            }
        ),
    ),
    "kimi_linear": Naming(
        roles={
            "attention.linear.q": "self_attn.q_proj",
            "attention.linear.k": "self_attn.k_proj",
            "attention.linear.v": "self_attn.v_proj",
            "attention.linear.q_conv": "self_attn.q_conv1d",
            "attention.linear.k_conv": "self_attn.k_conv1d",
            "attention.linear.v_conv": "self_attn.v_conv1d",
            "attention.linear.f_a": "self_attn.f_a_proj",
            "attention.linear.f_b": "self_attn.f_b_proj",
            "attention.linear.dt_bias": "self_attn.dt_bias",
            "attention.linear.a_log": "self_attn.A_log",
            "attention.linear.b": "self_attn.b_proj",
            "attention.linear.g": "self_attn.g_proj",
            "attention.linear.g_a": "self_attn.g_a_proj",
            "attention.linear.g_b": "self_attn.g_b_proj",
            "attention.linear.out": "self_attn.o_proj",
            "norms.linear": "self_attn.o_norm",
            "router.weight": "block_sparse_moe.gate",
            "router.bias": "block_sparse_moe.gate.e_score_correction_bias",
            "routed_experts.gate": "block_sparse_moe.experts.{expert}.w1",
            "routed_experts.up": "block_sparse_moe.experts.{expert}.w3",
            "routed_experts.down": "block_sparse_moe.experts.{expert}.w2",
            "shared_experts.gate": "block_sparse_moe.shared_experts.gate_proj",
            "shared_experts.up": "block_sparse_moe.shared_experts.up_proj",
            "shared_experts.down": "block_sparse_moe.shared_experts.down_proj",
            "other.latent_in": "block_sparse_moe.routed_expert_down_proj",
            "other.latent_out": "block_sparse_moe.routed_expert_up_proj",
            "norms.latent": "block_sparse_moe.routed_expert_norm",
        }
    ),
    "axk1": Naming(norms=("input_layernorm", "post_attention_layernorm", "post_mlp_layernorm")),
    "hy_v3": Naming(
        roles={
            "router.weight": "mlp.router.gate",
            "router.bias": "mlp.expert_bias",
            "shared_experts.gate": "mlp.shared_mlp.gate_proj",
            "shared_experts.up": "mlp.shared_mlp.up_proj",
            "shared_experts.down": "mlp.shared_mlp.down_proj",
        }
    ),
    "afmoe": Naming(
        norms=_AFMOE_NORMS,
        roles={
            "attention.gate": "self_attn.gate_proj",
            "router.weight": "mlp.router.gate",
            "router.bias": "mlp.expert_bias",
        },
    ),
    "mimo_v2": Naming(roles={"attention.sinks": "self_attn.attention_sink_bias"}),
    "step3p5": Naming(
        roles={
            "router.weight": "moe.gate",
            "router.bias": "moe.router_bias",
            "routed_experts.gate": "moe.gate_proj",
            "routed_experts.up": "moe.up_proj",
            "routed_experts.down": "moe.down_proj",
            "shared_experts.gate": "share_expert.gate_proj",
            "shared_experts.up": "share_expert.up_proj",
            "shared_experts.down": "share_expert.down_proj",
        },
    ),
    "step3": Naming(
        roles={
            "attention.q_a": "self_attn.q_proj",
            "norms.q_a": "self_attn.inter_norm",
            "attention.q_b": "self_attn.wq",
            "router.weight": "moe.gate",
            "router.bias": "moe.router_bias",
            "routed_experts.gate": "moe.gate_proj",
            "routed_experts.up": "moe.up_proj",
            "routed_experts.down": "moe.down_proj",
            "shared_experts.gate": "share_expert.gate_proj",
            "shared_experts.up": "share_expert.up_proj",
            "shared_experts.down": "share_expert.down_proj",
        },
    ),
    "bailing_moe": Naming(
        tokens="model.word_embeddings",
        roles={
            "attention.q": "attention.query_key_value",
            "attention.k": "attention.query_key_value",
            "attention.v": "attention.query_key_value",
            "attention.o": "attention.dense",
            "norms.q": "attention.query_layernorm",
            "norms.k": "attention.key_layernorm",
            "router.bias": "mlp.gate.expert_bias",
        },
    ),
    "bailing_hybrid": Naming(
        tokens="model.word_embeddings",
        roles={
            "attention.q": "attention.q_proj",
            "attention.q_a": "attention.q_a_proj",
            "attention.q_b": "attention.q_b_proj",
            "attention.kv_a": "attention.kv_a_proj_with_mqa",
            "attention.kv_b": "attention.kv_b_proj",
            "attention.o": "attention.dense",
            "attention.gate": "attention.g_proj",
            "norms.q_a": "attention.q_a_layernorm",
            "norms.kv_a": "attention.kv_a_layernorm",
            "attention.linear.qkv": "attention.query_key_value",
            "attention.linear.q": "attention.q_proj",
            "attention.linear.k": "attention.k_proj",
            "attention.linear.v": "attention.v_proj",
            "attention.linear.q_conv": "attention.q_conv1d",
            "attention.linear.k_conv": "attention.k_conv1d",
            "attention.linear.v_conv": "attention.v_conv1d",
            "attention.linear.f": "attention.f_proj",
            "attention.linear.b": "attention.b_proj",
            "attention.linear.dt_bias": "attention.dt_bias",
            "attention.linear.a_log": "attention.A_log",
            "attention.linear.g": "attention.g_proj",
            "attention.linear.out": "attention.dense",
            "norms.linear": "attention.g_norm",
            "norms.q": "attention.query_layernorm",
            "norms.k": "attention.key_layernorm",
            "router.bias": "mlp.gate.expert_bias",
        },
    ),
    "hunyuan_moe": Naming(
        roles={
            "norms.q": "self_attn.query_layernorm",
            "norms.k": "self_attn.key_layernorm",
            "router.weight": "mlp.gate.wg",
            "shared_experts.gate": "mlp.shared_mlp.gate_proj",
            "shared_experts.up": "mlp.shared_mlp.up_proj",
            "shared_experts.down": "mlp.shared_mlp.down_proj",
        }
    ),
    "longcat_flash": Naming(
        roles={
            "attention.q_a": "self_attn.0.q_a_proj",
            "attention.q_b": "self_attn.0.q_b_proj",
            "attention.kv_a": "self_attn.0.kv_a_proj_with_mqa",
            "attention.kv_b": "self_attn.0.kv_b_proj",
            "attention.o": "self_attn.0.o_proj",
            "norms.q_a": "self_attn.0.q_a_layernorm",
            "norms.kv_a": "self_attn.0.kv_a_layernorm",
            "dense_mlp.gate": "mlps.0.gate_proj",
            "dense_mlp.up": "mlps.0.up_proj",
            "dense_mlp.down": "mlps.0.down_proj",
            "router.weight": "mlp.router.classifier",
            "router.bias": "mlp.router.e_score_correction_bias",
        }
    ),
    "glm5_next": Naming(
        roles={
            "attention.linear.q": "self_attn.q_proj",
            "attention.linear.k": "self_attn.k_proj",
            "attention.linear.v": "self_attn.v_proj",
            "attention.linear.f_a": "self_attn.f_a_proj",
            "attention.linear.f_b": "self_attn.f_b_proj",
            "attention.linear.b": "self_attn.b_proj",
            "attention.linear.g_a": "self_attn.g_a_proj",
            "attention.linear.g_b": "self_attn.g_b_proj",
            "attention.linear.dt_bias": "self_attn.dt_bias",
            "attention.linear.a_log": "self_attn.A_log",
            "attention.linear.out": "self_attn.o_proj",
            "norms.linear": "self_attn.o_norm",
            "attention.indexer.pool_ape": "self_attn.indexer.index_kpool_compress_ape",
            "attention.indexer.pool_gate": "self_attn.indexer.index_kpool_compress_gate",
            "other.hc_attn_fn": "attn_hc.fn",
            "other.hc_attn_base": "attn_hc.base",
            "other.hc_attn_scale": "attn_hc.scale",
            "other.hc_ffn_fn": "ffn_hc.fn",
            "other.hc_ffn_base": "ffn_hc.base",
            "other.hc_ffn_scale": "ffn_hc.scale",
        },
    ),
    "hy_v4": Naming(
        roles={
            "attention.gate": "self_attn.gate_proj",
            "other.hc_attn_fn": "attn_hc.fn",
            "other.hc_attn_base": "attn_hc.base",
            "other.hc_attn_scale": "attn_hc.scale",
            "other.hc_ffn_fn": "ffn_hc.fn",
            "other.hc_ffn_base": "ffn_hc.base",
            "other.hc_ffn_scale": "ffn_hc.scale",
            "other.hc_head_fn": "model.hc_head.hc_fn",
            "other.hc_head_base": "model.hc_head.hc_base",
            "other.hc_head_scale": "model.hc_head.hc_scale",
        }
    ),
    "laguna": Naming(
        roles={
            "shared_experts.gate": "mlp.shared_expert.gate_proj",
            "shared_experts.up": "mlp.shared_expert.up_proj",
            "shared_experts.down": "mlp.shared_expert.down_proj",
            "router.bias": "mlp.experts.e_score_correction_bias",
        }
    ),
    "exaone_moe": Naming(
        mtp_layers="mtp.layers.{layer}.", roles={"router.bias": "mlp.e_score_correction_bias"}
    ),
    "ernie4_5_moe": Naming(
        roles={"router.bias": "mlp.moe_statics.e_score_correction_bias"},
    ),
    # Qwen3-Next, Qwen3.5: the MTP projection stands beside its layers, hence the leading "/".
    "qwen3_next": Naming(mtp_layers="mtp.layers.{layer}.", roles=_QWEN_HYBRID),
    # Text-only files of Qwen3.5 keep the names of the multimodal ones.
    "qwen3_5": Naming(
        layers="model.language_model.layers.{layer}.",
        mtp_layers="mtp.layers.{layer}.",
        tokens="model.language_model.embed_tokens",
        final_norm="model.language_model.norm",
        roles=_QWEN_HYBRID,
    ),
    "olmo_hybrid": Naming(
        roles={
            "attention.linear.z": "linear_attn.g_proj",
            "attention.linear.a": "linear_attn.a_proj",
            "attention.linear.b": "linear_attn.b_proj",
            "attention.linear.out": "linear_attn.o_proj",
            "norms.linear": "linear_attn.o_norm",
        }
    ),
    "nemotron_h": Naming(
        norms=("norm",),
        layers="backbone.layers.{layer}.",
        mtp_layers="mtp.layers.{layer}.",
        tokens="backbone.embeddings",
        final_norm="backbone.norm_f",
        roles={
            **_mamba2_names("mixer"),
            "attention.q": "mixer.q_proj",
            "attention.k": "mixer.k_proj",
            "attention.v": "mixer.v_proj",
            "attention.o": "mixer.o_proj",
            "dense_mlp.up": "mixer.up_proj",
            "dense_mlp.down": "mixer.down_proj",
            "router.weight": "mixer.gate",
            "router.bias": "mixer.gate.e_score_correction_bias",
            "routed_experts.up": "mixer.experts.{expert}.up_proj",
            "routed_experts.down": "mixer.experts.{expert}.down_proj",
            "shared_experts.up": "mixer.shared_experts.up_proj",
            "shared_experts.down": "mixer.shared_experts.down_proj",
            "other.latent_in": "mixer.fc1_latent_proj",
            "other.latent_out": "mixer.fc2_latent_proj",
        },
    ),
    "bamba": Naming(
        norms=("input_layernorm", "pre_ff_layernorm"),
        final_norm="model.final_layernorm",
        roles={
            **_mamba2_names("mamba"),
            "dense_mlp.gate": "feed_forward.gate_proj",
            "dense_mlp.up": "feed_forward.up_proj",
            "dense_mlp.down": "feed_forward.down_proj",
        },
    ),
    "falcon_h1": Naming(
        norms=("input_layernorm", "pre_ff_layernorm"),
        final_norm="model.final_layernorm",
        roles={
            **_mamba2_names("mamba"),
            "dense_mlp.gate": "feed_forward.gate_proj",
            "dense_mlp.up": "feed_forward.up_proj",
            "dense_mlp.down": "feed_forward.down_proj",
        },
    ),
    # Gate and up are one tensor; all experts of a layer are one tensor.
    "granitemoehybrid": Naming(
        roles={
            **_mamba2_names("mamba"),
            "dense_mlp.gate": "shared_mlp.input_linear",
            "dense_mlp.up": "shared_mlp.input_linear",
            "dense_mlp.down": "shared_mlp.output_linear",
            "shared_experts.gate": "shared_mlp.input_linear",
            "shared_experts.up": "shared_mlp.input_linear",
            "shared_experts.down": "shared_mlp.output_linear",
            "router.weight": "block_sparse_moe.router.layer",
            "routed_experts.gate": "block_sparse_moe.input_linear",
            "routed_experts.up": "block_sparse_moe.input_linear",
            "routed_experts.down": "block_sparse_moe.output_linear",
        }
    ),
    "mamba": Naming(
        norms=("norm",),
        layers="backbone.layers.{layer}.",
        tokens="backbone.embeddings",
        final_norm="backbone.norm_f",
        roles=_mamba2_names("mixer"),
    ),
    "jamba": Naming(
        norms=("input_layernorm", "pre_ff_layernorm"),
        final_norm="model.final_layernorm",
        roles={
            **_mamba2_names("mamba"),
            "norms.linear_dt": "mamba.dt_layernorm",
            "norms.linear_b": "mamba.b_layernorm",
            "norms.linear_c": "mamba.c_layernorm",
            "router.weight": "feed_forward.router",
            "dense_mlp.gate": "feed_forward.gate_proj",
            "dense_mlp.up": "feed_forward.up_proj",
            "dense_mlp.down": "feed_forward.down_proj",
            "routed_experts.gate": "feed_forward.experts.{expert}.gate_proj",
            "routed_experts.up": "feed_forward.experts.{expert}.up_proj",
            "routed_experts.down": "feed_forward.experts.{expert}.down_proj",
        },
    ),
    "lfm2": Naming(
        norms=("operator_norm", "ffn_norm"), final_norm="model.embedding_norm", roles=_LFM2
    ),
    "lfm2_moe": Naming(
        norms=("operator_norm", "ffn_norm"),
        final_norm="model.embedding_norm",
        roles={
            **_LFM2,
            "router.weight": "feed_forward.gate",
            "router.bias": "feed_forward.expert_bias",
            "routed_experts.gate": "feed_forward.experts.{expert}.w1",
            "routed_experts.up": "feed_forward.experts.{expert}.w3",
            "routed_experts.down": "feed_forward.experts.{expert}.w2",
        },
    ),
    "mllama": Naming(
        roles={
            "attention.cross.q": "cross_attn.q_proj",
            "attention.cross.k": "cross_attn.k_proj",
            "attention.cross.v": "cross_attn.v_proj",
            "attention.cross.o": "cross_attn.o_proj",
            "other.cross_gate": "cross_attn_attn_gate",
        },
        bare=frozenset({"other.cross_gate"}),
    ),
}


# Families whose files hold fused projections name them for every part: q, k and v are one tensor.
def _fused(qkv: str, out: str = "self_attn.o_proj", **roles: str) -> dict[str, str]:
    """Roles of an attention whose q, k and v are stored as one tensor."""
    return {
        "attention.q": qkv,
        "attention.k": qkv,
        "attention.v": qkv,
        "attention.o": out,
        **roles,
    }


_GEMMA_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_PER_LAYER_INPUT = {
    "embedding.per_layer": "model.embed_tokens_per_layer",
    "other.per_layer_gate": "per_layer_input_gate",
    "other.per_layer_projection": "per_layer_projection",
    "norms.per_layer": "post_per_layer_input_norm",
    "other.per_layer_model_projection": "model.per_layer_model_projection",
    "norms.per_layer_projection": "model.per_layer_projection_norm",
}
_BIG_H = {"dense_mlp.up": "mlp.dense_h_to_4h", "dense_mlp.down": "mlp.dense_4h_to_h"}
_FC = {"dense_mlp.up": "fc1", "dense_mlp.down": "fc2"}
_CROSS = {
    f"attention.cross.{part}": f"encoder_attn.{name}"
    for part, name in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "out_proj"))
}
_GPT2 = Naming(
    layers="transformer.h.{layer}.",
    tokens="transformer.wte",
    final_norm="transformer.ln_f",
    norms=("ln_1", "ln_2"),
    roles=_fused(
        "attn.c_attn",
        "attn.c_proj",
        **{
            "embedding.positions": "transformer.wpe",
            "dense_mlp.up": "mlp.c_fc",
            "dense_mlp.down": "mlp.c_proj",
        },
    ),
)
_GPTJ = Naming(
    layers="transformer.h.{layer}.",
    tokens="transformer.wte",
    final_norm="transformer.ln_f",
    norms=("ln_1",),
    roles={
        "attention.q": "attn.q_proj",
        "attention.k": "attn.k_proj",
        "attention.v": "attn.v_proj",
        "attention.o": "attn.out_proj",
        "dense_mlp.up": "mlp.fc_in",
        "dense_mlp.down": "mlp.fc_out",
    },
)
_FALCON = Naming(
    layers="transformer.h.{layer}.",
    tokens="transformer.word_embeddings",
    final_norm="transformer.ln_f",
    roles=_fused("self_attention.query_key_value", "self_attention.dense", **_BIG_H),
)
_OPT_ROLES = {
    "attention.o": "self_attn.out_proj",
    "embedding.positions": "model.decoder.embed_positions",
    "other.project_in": "model.decoder.project_in",
    "other.project_out": "model.decoder.project_out",
    **_FC,
}
_BART = Naming(
    layers="model.decoder.layers.{layer}.",
    encoder_layers="model.encoder.layers.{layer}.",
    tokens="model.shared",
    final_norm="model.decoder.layernorm_embedding",
    norms=("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
    encoder_norms=("self_attn_layer_norm", "final_layer_norm"),
    roles={
        "attention.o": "self_attn.out_proj",
        **_FC,
        **_CROSS,
        "embedding.positions": "model.decoder.embed_positions",
        "embedding.encoder_positions": "model.encoder.embed_positions",
        "norms.encoder_embedding": "model.encoder.layernorm_embedding",
    },
)
_T5_CROSS = {
    f"attention.cross.{part}": f"layer.1.EncDecAttention.{part}" for part in ("q", "k", "v", "o")
}
_T5_SELF = {
    f"attention.{part}": f"layer.0.SelfAttention.{part}" for part in ("q", "k", "v", "o")
} | {"attention.relative_bias": "layer.0.SelfAttention.relative_attention_bias"}
_T5_MLP = {
    "dense_mlp.gate": "layer.2.DenseReluDense.wi_0",
    "dense_mlp.up": "layer.2.DenseReluDense.wi_1",
    "dense_mlp.down": "layer.2.DenseReluDense.wo",
    "encoder/dense_mlp.gate": "layer.1.DenseReluDense.wi_0",
    "encoder/dense_mlp.up": "layer.1.DenseReluDense.wi_1",
    "encoder/dense_mlp.down": "layer.1.DenseReluDense.wo",
}
_T5_NORMS = ("layer.0.layer_norm", "layer.1.layer_norm", "layer.2.layer_norm")
_T5 = Naming(
    layers="decoder.block.{layer}.",
    encoder_layers="encoder.block.{layer}.",
    tokens="shared",
    final_norm="decoder.final_layer_norm",
    norms=_T5_NORMS,
    encoder_norms=("layer.0.layer_norm", "layer.1.layer_norm"),
    roles={
        **_T5_SELF,
        **_T5_CROSS,
        **_T5_MLP,
        "norms.encoder_final": "encoder.final_layer_norm",
    },
)

# Ling 3.0: the output norm of its Kimi delta attention.
NAMES["bailing_delta"] = replace(
    NAMES["bailing_hybrid"],
    roles={**NAMES["bailing_hybrid"].roles, "norms.linear": "attention.o_norm"},
)

NAMES |= {
    "mimo": Naming(
        mtp_layers="model.mtp_layers.{layer}.",
        roles={"other.mtp_projection": "input_proj"},
    ),
    "qwen": replace(
        _GPT2,
        roles={
            **_GPT2.roles,
            "dense_mlp.gate": "mlp.w2",
            "dense_mlp.up": "mlp.w1",
        },
    ),
    "phi": Naming(
        final_norm="model.final_layernorm",
        norms=("input_layernorm",),
        roles={
            "attention.o": "self_attn.dense",
            "norms.q": "self_attn.q_layernorm",
            "norms.k": "self_attn.k_layernorm",
            "dense_mlp.up": "mlp.fc1",
            "dense_mlp.down": "mlp.fc2",
        },
    ),
    "bitnet": Naming(
        roles={
            "norms.attention_inner": "self_attn.attn_sub_norm",
            "norms.mlp_inner": "mlp.ffn_sub_norm",
        }
    ),
    "phi_msft": Naming(
        layers="transformer.h.{layer}.",
        tokens="transformer.embd.wte",
        head="lm_head.linear",
        final_norm="lm_head.ln",
        norms=("ln",),
        roles=_fused(
            "mixer.Wqkv",
            "mixer.out_proj",
            **{"dense_mlp.up": "mlp.fc1", "dense_mlp.down": "mlp.fc2"},
        ),
    ),
    "phi4flash": Naming(
        final_norm="model.final_layernorm",
        roles=_fused(
            "attn.Wqkv",
            "attn.out_proj",
            **{
                **_mamba2_names("attn"),
                "dense_mlp.gate": "mlp.fc1",
                "dense_mlp.up": "mlp.fc1",
                "dense_mlp.down": "mlp.fc2",
                "other.memory_in": "attn.in_proj",
                "other.memory_out": "attn.out_proj",
                "norms.differential": "attn.inner_cross_attn.subln",
                "other.lambda": "attn.inner_cross_attn.lambda_{index}",
            },
        ),
        bare=frozenset({"other.lambda"}),
    ),
    "phi3": Naming(
        roles=_fused(
            "self_attn.qkv_proj",
            **{"dense_mlp.gate": "mlp.gate_up_proj", "dense_mlp.up": "mlp.gate_up_proj"},
        )
    ),
    "phi3small": Naming(
        final_norm="model.final_layernorm",
        roles=_fused(
            "self_attn.query_key_value",
            "self_attn.dense",
            **{"dense_mlp.gate": "mlp.up_proj"},
        ),
    ),
    "olmo2": Naming(norms=("post_attention_layernorm", "post_feedforward_layernorm")),
    "hf_olmo": Naming(
        layers="model.transformer.blocks.{layer}.",
        tokens="model.transformer.wte",
        head="model.transformer.ff_out",
        roles=_fused(
            "att_proj",
            "attn_out",
            **{
                "dense_mlp.gate": "ff_proj",
                "dense_mlp.up": "ff_proj",
                "dense_mlp.down": "ff_out",
            },
        ),
    ),
    "starcoder2": Naming(roles={"dense_mlp.up": "mlp.c_fc", "dense_mlp.down": "mlp.c_proj"}),
    "stablelm": Naming(
        roles={"norms.q": "self_attn.q_layernorm", "norms.k": "self_attn.k_layernorm"}
    ),
    "glm": Naming(roles={"dense_mlp.gate": "mlp.gate_up_proj", "dense_mlp.up": "mlp.gate_up_proj"}),
    "glm4": Naming(
        roles={"dense_mlp.gate": "mlp.gate_up_proj", "dense_mlp.up": "mlp.gate_up_proj"},
        norms=(
            "input_layernorm",
            "post_attention_layernorm",
            "post_self_attn_layernorm",
            "post_mlp_layernorm",
        ),
    ),
    "chatglm": Naming(
        layers="transformer.encoder.layers.{layer}.",
        tokens="transformer.embedding.word_embeddings",
        head="transformer.output_layer",
        final_norm="transformer.encoder.final_layernorm",
        roles=_fused(
            "self_attention.query_key_value",
            "self_attention.dense",
            **{**_BIG_H, "dense_mlp.gate": "mlp.dense_h_to_4h"},
        ),
    ),
    "internlm2": Naming(
        tokens="model.tok_embeddings",
        head="output",
        norms=("attention_norm", "ffn_norm"),
        roles=_fused(
            "attention.wqkv",
            "attention.wo",
            **{
                "dense_mlp.gate": "feed_forward.w1",
                "dense_mlp.up": "feed_forward.w3",
                "dense_mlp.down": "feed_forward.w2",
            },
        ),
    ),
    "baichuan": Naming(roles=_fused("self_attn.W_pack")),
    "exaone": Naming(
        layers="transformer.h.{layer}.",
        tokens="transformer.wte",
        final_norm="transformer.ln_f",
        norms=("ln_1", "ln_2"),
        roles={
            "attention.q": "attn.attention.q_proj",
            "attention.k": "attn.attention.k_proj",
            "attention.v": "attn.attention.v_proj",
            "attention.o": "attn.attention.out_proj",
            "dense_mlp.gate": "mlp.c_fc_0",
            "dense_mlp.up": "mlp.c_fc_1",
            "dense_mlp.down": "mlp.c_proj",
        },
    ),
    "hunyuan": Naming(
        roles={"norms.q": "self_attn.query_layernorm", "norms.k": "self_attn.key_layernorm"}
    ),
    "apertus": Naming(
        norms=("attention_layernorm", "feedforward_layernorm"),
        roles={"other.alpha_p": "mlp.act_fn.alpha_p", "other.alpha_n": "mlp.act_fn.alpha_n"},
        bare=frozenset({"other.alpha_p", "other.alpha_n"}),
    ),
    "hyperclovax": Naming(
        norms=("input_layernorm", "post_attention_layernorm", "post_norm1", "post_norm2")
    ),
    "nanochat": Naming(roles={"dense_mlp.up": "mlp.fc1", "dense_mlp.down": "mlp.fc2"}),
    "nemotron_nas": Naming(
        roles={
            "attention.replaced": "self_attn.linear_attn",
            "dense_mlp.replaced": "mlp.linear_mlp",
        }
    ),
    "gemma2": Naming(norms=_GEMMA_NORMS),
    "vaultgemma": Naming(norms=("input_layernorm", "pre_feedforward_layernorm")),
    "gemma3n": Naming(
        norms=(*_GEMMA_NORMS, "laurel.post_laurel_norm"),
        roles={
            **_PER_LAYER_INPUT,
            "other.altup_correction": "altup.correction_coefs",
            "other.altup_prediction": "altup.prediction_coefs",
            "other.altup_router": "altup.modality_router",
            "norms.altup_router": "altup.router_norm",
            "other.altup_scale": "altup.correct_output_scale",
            "other.laurel_left": "laurel.linear_left",
            "other.laurel_right": "laurel.linear_right",
            "other.altup_projections": "model.altup_projections.{index}",
            "other.altup_unembed_projections": "model.altup_unembed_projections.{index}",
        },
        bare=frozenset({"other.altup_scale"}),
    ),
    "gemma4": Naming(
        norms=(
            *_GEMMA_NORMS,
            "post_feedforward_layernorm_1",
            "post_feedforward_layernorm_2",
            "pre_feedforward_layernorm_2",
        ),
        roles={
            **_PER_LAYER_INPUT,
            "router.weight": "router.proj",
            "router.scale": "router.scale",
            "router.expert_scale": "router.per_expert_scale",
            "routed_experts.gate": "experts.gate_up_proj",
            "routed_experts.up": "experts.gate_up_proj",
            "routed_experts.down": "experts.down_proj",
        },
        bare=frozenset(
            {
                "router.scale",
                "router.expert_scale",
                "routed_experts.gate",
                "routed_experts.up",
                "routed_experts.down",
            }
        ),
    ),
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gptj": _GPTJ,
    "codegen": replace(_GPTJ, roles={**_GPTJ.roles, **_fused("attn.qkv_proj", "attn.out_proj")}),
    "gpt_neo": replace(
        _GPT2,
        roles={
            **_GPT2.roles,
            "attention.q": "attn.attention.q_proj",
            "attention.k": "attn.attention.k_proj",
            "attention.v": "attn.attention.v_proj",
            "attention.o": "attn.attention.out_proj",
        },
    ),
    "gpt_neox": Naming(
        layers="gpt_neox.layers.{layer}.",
        tokens="gpt_neox.embed_in",
        head="embed_out",
        final_norm="gpt_neox.final_layer_norm",
        roles=_fused("attention.query_key_value", "attention.dense", **_BIG_H),
    ),
    "opt": Naming(
        layers="model.decoder.layers.{layer}.",
        tokens="model.decoder.embed_tokens",
        final_norm="model.decoder.final_layer_norm",
        norms=("self_attn_layer_norm", "final_layer_norm"),
        roles=_OPT_ROLES,
    ),
    "bloom": replace(
        _FALCON,
        roles={**_FALCON.roles, "norms.embedding": "transformer.word_embeddings_layernorm"},
    ),
    "mpt": Naming(
        layers="transformer.blocks.{layer}.",
        tokens="transformer.wte",
        final_norm="transformer.norm_f",
        norms=("norm_1", "norm_2"),
        roles=_fused(
            "attn.Wqkv",
            "attn.out_proj",
            **{
                "embedding.positions": "transformer.wpe",
                "dense_mlp.up": "ffn.up_proj",
                "dense_mlp.down": "ffn.down_proj",
            },
        ),
    ),
    "falcon": _FALCON,
    "falcon_new": replace(_FALCON, norms=("ln_attn", "ln_mlp")),
    "persimmon": Naming(
        final_norm="model.final_layernorm",
        roles=_fused(
            "self_attn.query_key_value",
            "self_attn.dense",
            **{
                **_BIG_H,
                "norms.q": "self_attn.q_layernorm",
                "norms.k": "self_attn.k_layernorm",
            },
        ),
    ),
    "xglm": Naming(
        final_norm="model.layer_norm",
        norms=("self_attn_layer_norm", "final_layer_norm"),
        roles={"attention.o": "self_attn.out_proj", **_FC},
    ),
    "bert": Naming(
        encoder_layers="encoder.layer.{layer}.",
        tokens="embeddings.word_embeddings",
        norms=("attention.output.LayerNorm", "output.LayerNorm"),
        roles={
            "attention.q": "attention.self.query",
            "attention.k": "attention.self.key",
            "attention.v": "attention.self.value",
            "attention.o": "attention.output.dense",
            "dense_mlp.up": "intermediate.dense",
            "dense_mlp.down": "output.dense",
            "embedding.positions": "embeddings.position_embeddings",
            "embedding.token_types": "embeddings.token_type_embeddings",
            "norms.embedding": "embeddings.LayerNorm",
            "other.pooler": "pooler.dense",
        },
    ),
    "modernbert": Naming(
        encoder_layers="layers.{layer}.",
        tokens="embeddings.tok_embeddings",
        final_norm="final_norm",
        norms=("attn_norm", "mlp_norm"),
        roles=_fused(
            "attn.Wqkv",
            "attn.Wo",
            **{
                "dense_mlp.gate": "mlp.Wi",
                "dense_mlp.up": "mlp.Wi",
                "dense_mlp.down": "mlp.Wo",
                "norms.embedding": "embeddings.norm",
            },
        ),
    ),
    "t5": _T5,
    "t5_plain": replace(
        _T5,
        roles={
            **_T5.roles,
            "dense_mlp.up": "layer.2.DenseReluDense.wi",
            "encoder/dense_mlp.up": "layer.1.DenseReluDense.wi",
        },
    ),
    "switch_transformers": replace(
        _T5,
        roles={
            **_T5.roles,
            "dense_mlp.up": "layer.2.mlp.wi",
            "dense_mlp.down": "layer.2.mlp.wo",
            "router.weight": "layer.2.mlp.router.classifier",
            "router.bias": "layer.2.mlp.router.classifier.bias",
            "routed_experts.up": "layer.2.mlp.experts.expert_{expert}.wi",
            "routed_experts.down": "layer.2.mlp.experts.expert_{expert}.wo",
            "encoder/dense_mlp.up": "layer.1.mlp.wi",
            "encoder/dense_mlp.down": "layer.1.mlp.wo",
            "encoder/router.weight": "layer.1.mlp.router.classifier",
            "encoder/router.bias": "layer.1.mlp.router.classifier.bias",
            "encoder/routed_experts.up": "layer.1.mlp.experts.expert_{expert}.wi",
            "encoder/routed_experts.down": "layer.1.mlp.experts.expert_{expert}.wo",
        },
    ),
    "bart": _BART,
    "mbart": replace(
        _BART,
        final_norm="model.decoder.layer_norm",
        roles={
            **_BART.roles,
            "norms.decoder_embedding": "model.decoder.layernorm_embedding",
            "norms.encoder_final": "model.encoder.layer_norm",
        },
    ),
    "whisper": replace(
        _BART,
        tokens="model.decoder.embed_tokens",
        head="proj_out",
        final_norm="model.decoder.layer_norm",
        roles={
            **_BART.roles,
            "norms.encoder_final": "model.encoder.layer_norm",
            "other.conv1": "model.encoder.conv1",
            "other.conv2": "model.encoder.conv2",
        },
    ),
}


@lru_cache(maxsize=256)
def names_of(naming: str) -> Naming:
    """A family's names; `family@prefix` is the family as the text part of a wrapper.

    A prefix that begins with `model.` takes the place of `model.`; any other stands in front of
    every name: gemma3 has `language_model.model.layers`, qwen3_vl `model.language_model.layers`.
    """
    family, _, prefix = naming.partition("@")
    names = NAMES[family]
    if not prefix:
        return names
    inside = prefix.startswith("model.")

    def outer(name: str) -> str:
        if inside:
            return prefix + name.removeprefix("model.")
        return prefix + name

    return replace(
        names,
        layers=outer(names.layers),
        tokens=outer(names.tokens),
        final_norm=outer(names.final_norm),
        head=names.head if inside else outer(names.head),
        roles={
            role: outer(name) if name.startswith("model.") else name
            for role, name in names.roles.items()
        },
    )


def module_name(naming: str, role: str, section: str = "layers") -> str:
    """Checkpoint module of a role, with `{layer}` and `{expert}` left in; no `.weight`.

    A role without a published name is shown by itself, so that nothing is hidden.
    """
    names = names_of(naming)
    base = role if role == "router.bias" else role.removesuffix(".bias")
    if section == "stored":
        section = "embedding" if base == "embedding.tokens" else "final"
    if base == "embedding.tokens":
        return names.roles.get(base, names.tokens)
    if base == "lm_head.weight" or base == "lm_head":
        return names.head
    if base == "norms.final":
        return names.final_norm
    stacked = names.roles.get(f"{section}/{base}")  # one stack of an encoder-decoder model
    local = stacked or names.roles.get(base) or _DEFAULT.get(base) or base
    if local.startswith("/"):
        return local[1:]
    if section in ("embedding", "final"):
        return local
    prefix = names.layers
    if section == "encoder":
        prefix = names.encoder_layers
    elif section == "mtp" and names.mtp_layers:
        prefix = names.mtp_layers
    return prefix + local


def tensor_name(naming: str, role: str, section: str = "layers") -> str:
    """Checkpoint name of a role's tensor: its module and `.weight`, `.bias` or nothing."""
    module = module_name(naming, role, section)
    if role != "router.bias" and role.endswith(".bias"):
        return module + ".bias"
    if role in _BARE or role in names_of(naming).bare:
        return module
    return module + ".weight"
