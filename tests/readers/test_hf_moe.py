"""Mixture-of-experts and latent-attention families: published counts, engine bytes, refusals.

Published counts are the `safetensors.total` of each hub repository (as the catalogue embedded in
the PyPI package llmfit 1.1.17 lists them). Engine figures come from building the model with
vLLM 0.32.0 or transformers 5.19 on the meta device. Config facts are restated from the
repositories' config.json, without what does not touch a size.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from moesize.core.errors import InvalidSpecError, MoesizeError
from moesize.core.inventory import count_parameters, inventory
from moesize.core.naming import tensor_name
from moesize.readers.hf.read import spec_from_config
from moesize.readers.hf.registry import MODULES, READERS

if TYPE_CHECKING:
    from moesize.core.model_spec import ModelSpec

Config = dict[str, Any]
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int32": 4}


def read(config: Config) -> ModelSpec:
    return spec_from_config(config, file="config.json")


def base(
    model_type: str, layers: int, hidden: int, heads: int, groups: int, vocab: int, **facts: Any
) -> Config:
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocab,
        "max_position_embeddings": 32768,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        **facts,
    }


def mla(
    rank: int | None, nope: int = 128, rope: int = 64, value: int = 128, kv: int = 512
) -> Config:
    return {
        "q_lora_rank": rank,
        "kv_lora_rank": kv,
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": rope,
        "v_head_dim": value,
    }


def experts(routed: int, top_k: int, width: int, shared: int = 1, first: int = 1) -> Config:
    return {
        "n_routed_experts": routed,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": width,
        "n_shared_experts": shared,
        "first_k_dense_replace": first,
    }


def qwen(routed: int, top_k: int, width: int) -> Config:
    return {
        "num_experts": routed,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": width,
        "intermediate_size": 6144,
    }


def local(routed: int, top_k: int, width: int) -> Config:
    return {
        "num_local_experts": routed,
        "num_experts_per_tok": top_k,
        "intermediate_size": width,
    }


def ling(
    layers: int, hidden: int, heads: int, groups: int, width: int, dense: int, **f: Any
) -> Config:
    return base("bailing_moe", layers, hidden, heads, groups, 157184) | {
        "head_dim": 128,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "num_shared_experts": 1,
        "moe_intermediate_size": width,
        "intermediate_size": dense,
        "first_k_dense_replace": 1,
        "use_qk_norm": True,
        "use_bias": False,
        "use_qkv_bias": False,
        "moe_router_enable_expert_bias": True,
        "router_dtype": "fp32",
        **f,
    }


YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}

MIXTRAL = base("mixtral", 32, 4096, 32, 8, 32000, **local(8, 2, 14336))
PHI = base(
    "phimoe", 32, 4096, 32, 8, 32064, attention_bias=True, lm_head_bias=True, **local(16, 2, 6400)
)
GRANITE = base(
    "granitemoe", 24, 1024, 16, 8, 49155, **local(32, 8, 512) | {"tie_word_embeddings": True}
)
OLMOE = base(
    "olmoe", 16, 2048, 16, 16, 50304, num_experts=64, num_experts_per_tok=8, intermediate_size=1024
)
MINIMAX_M1 = base(
    "minimax_m1",
    80,
    6144,
    64,
    8,
    200064,
    head_dim=128,
    rotary_dim=64,
    attn_type_list=([0] * 7 + [1]) * 10,
    shared_intermediate_size=0,
    **local(32, 2, 9216),
)
MINIMAX_M2 = base(
    "minimax_m2",
    62,
    3072,
    48,
    8,
    200064,
    head_dim=128,
    rotary_dim=64,
    use_qk_norm=True,
    qk_norm_type="per_layer",
    use_routing_bias=True,
    num_mtp_modules=3,
    **local(256, 8, 1536),
)
MINIMAX_M3 = base(
    "minimax_m3",
    60,
    6144,
    64,
    4,
    200064,
    head_dim=128,
    rotary_dim=64,
    dense_intermediate_size=12288,
    n_shared_experts=1,
    use_routing_bias=True,
    moe_layer_freq=[0] * 3 + [1] * 57,
    num_nextn_predict_layers=1,
    sparse_attention_config={
        "sparse_attention_freq": [0] * 3 + [1] * 57,
        "sparse_disable_index_value": [0] * 3 + [1] * 57,
        "sparse_index_dim": 128,
        "sparse_num_index_heads": 4,
        "sparse_topk_blocks": 16,
    },
    **local(128, 4, 3072),
)
GPT_OSS = base(
    "gpt_oss",
    24,
    2880,
    64,
    8,
    201088,
    head_dim=64,
    attention_bias=True,
    sliding_window=128,
    layer_types=["sliding_attention", "full_attention"] * 12,
    **local(32, 4, 2880),
)
LLAMA4 = base(
    "llama4_text",
    48,
    5120,
    40,
    8,
    202048,
    head_dim=128,
    intermediate_size_mlp=16384,
    interleave_moe_layer_step=1,
    attention_chunk_size=8192,
    **local(16, 1, 8192),
)
GLM45 = base(
    "glm4_moe",
    92,
    5120,
    96,
    8,
    151552,
    head_dim=128,
    intermediate_size=12288,
    use_qk_norm=True,
    attention_bias=True,
    partial_rotary_factor=0.5,
    num_nextn_predict_layers=1,
    **experts(160, 8, 1536, first=3),
)
GLM47_FLASH = base(
    "glm4_moe_lite",
    47,
    2048,
    20,
    20,
    154880,
    intermediate_size=10240,
    num_nextn_predict_layers=1,
    **mla(768, 192, 64, 256),
    **experts(64, 4, 1536),
)
GLM5 = base(
    "glm_moe_dsa",
    78,
    6144,
    64,
    64,
    154880,
    intermediate_size=12288,
    num_nextn_predict_layers=1,
    index_n_heads=32,
    index_head_dim=128,
    index_topk=2048,
    indexer_rope_interleave=True,
    max_position_embeddings=202752,
    **mla(2048, 192, 64, 256),
    **experts(256, 8, 2048, first=3),
)
GLM52 = GLM5 | {
    "indexer_types": ["full"] * 3 + (["shared"] * 3 + ["full"]) * 18 + ["shared"] * 3,
    "max_position_embeddings": 1048576,
}
DEEPSEEK_V1 = base(
    "deepseek", 28, 2048, 16, 16, 102400, intermediate_size=10944, **experts(64, 6, 1408, shared=2)
)
DEEPSEEK_V2_LITE = base(
    "deepseek_v2",
    27,
    2048,
    16,
    16,
    102400,
    intermediate_size=10944,
    topk_method="greedy",
    rope_scaling=YARN,
    max_position_embeddings=163840,
    **mla(None),
    **experts(64, 6, 1408, shared=2),
)
DEEPSEEK_V3 = base(
    "deepseek_v3",
    61,
    7168,
    128,
    128,
    129280,
    intermediate_size=18432,
    topk_method="noaux_tc",
    num_nextn_predict_layers=1,
    rope_scaling=YARN,
    max_position_embeddings=163840,
    **mla(1536),
    **experts(256, 8, 2048, first=3),
)
DEEPSEEK_V32 = DEEPSEEK_V3 | {
    "model_type": "deepseek_v32",
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 2048,
}
KIMI_K2 = DEEPSEEK_V3 | {
    "model_type": "kimi_k2",
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "vocab_size": 163840,
    "num_nextn_predict_layers": 0,
    **experts(384, 8, 2048),
}
DEEPSEEK_V4_FLASH = base(
    "deepseek_v4",
    43,
    4096,
    64,
    1,
    129280,
    head_dim=512,
    hc_mult=4,
    num_hash_layers=3,
    moe_intermediate_size=2048,
    n_routed_experts=256,
    n_shared_experts=1,
    num_experts_per_tok=6,
    q_lora_rank=1024,
    o_lora_rank=1024,
    o_groups=8,
    qk_rope_head_dim=64,
    index_head_dim=128,
    index_n_heads=64,
    index_topk=512,
    sliding_window=128,
    num_nextn_predict_layers=1,
    max_position_embeddings=1048576,
    compress_ratios=[0, 0] + [4, 128] * 20 + [4, 0],
)
DEEPSEEK_V4_PRO = DEEPSEEK_V4_FLASH | {
    "num_hidden_layers": 61,
    "hidden_size": 7168,
    "num_attention_heads": 128,
    "o_groups": 16,
    "moe_intermediate_size": 3072,
    "n_routed_experts": 384,
    "q_lora_rank": 1536,
    "index_topk": 1024,
    "compress_ratios": [128] + [128, 4] * 30 + [0],
}
KIMI_LINEAR = base(
    "kimi_linear",
    27,
    2304,
    32,
    32,
    163840,
    intermediate_size=9216,
    num_experts=256,
    num_experts_per_token=8,
    num_shared_experts=1,
    moe_intermediate_size=1024,
    first_k_dense_replace=1,
    mla_use_nope=True,
    **mla(None),
    linear_attn_config={
        "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
        "kda_layers": [i for i in range(1, 27) if i % 4],
        "head_dim": 128,
        "num_heads": 32,
        "short_conv_kernel_size": 4,
    },
)
KIMI_K3 = base(
    "kimi_linear",
    93,
    7168,
    96,
    96,
    163840,
    intermediate_size=33792,
    num_experts=896,
    num_experts_per_token=16,
    num_shared_experts=2,
    moe_intermediate_size=3072,
    first_k_dense_replace=1,
    mla_use_nope=True,
    mla_use_output_gate=True,
    attn_res_block_size=12,
    routed_expert_hidden_size=3584,
    latent_moe_use_norm=True,
    **mla(1536),
    linear_attn_config={
        "full_attn_layers": [*range(4, 93, 4), 93],
        "kda_layers": [i for i in range(1, 93) if i % 4],
        "head_dim": 128,
        "num_heads": 96,
        "short_conv_kernel_size": 4,
        "use_full_rank_gate": True,
    },
)
STEP35 = base(
    "step3p5",
    45,
    4096,
    64,
    8,
    128896,
    head_dim=128,
    intermediate_size=11264,
    sliding_window=512,
    num_attention_groups=8,
    moe_num_experts=288,
    moe_top_k=8,
    moe_intermediate_size=1280,
    share_expert_dim=1280,
    num_nextn_predict_layers=3,
    use_head_wise_attn_gate=True,
    moe_layers_enum=",".join(map(str, range(3, 45))),
    layer_types=(["full_attention"] + ["sliding_attention"] * 3) * 12,
    attention_other_setting={
        "attention_type": "sliding_attention",
        "num_attention_heads": 96,
        "num_attention_groups": 8,
        "head_dim": 128,
    },
)
STEP3 = base(
    "step3_text",
    61,
    7168,
    64,
    1,
    128815,
    head_dim=256,
    share_q_dim=2048,
    moe_num_experts=48,
    moe_top_k=3,
    moe_intermediate_size=5120,
    share_expert_dim=5120,
    intermediate_size=18432,
    moe_layers_enum=",".join(map(str, range(4, 60))),
)
ERNIE_21B = base(
    "ernie4_5_moe",
    28,
    2560,
    20,
    4,
    103424,
    intermediate_size=12288,
    moe_intermediate_size=1536,
    moe_k=6,
    moe_num_experts=64,
    moe_num_shared_experts=2,
    moe_layer_start_index=1,
    num_nextn_predict_layers=1,
    tie_word_embeddings=True,
)
ERNIE_300B = base(
    "ernie4_5_moe",
    54,
    8192,
    64,
    8,
    103424,
    intermediate_size=28672,
    moe_intermediate_size=3584,
    moe_k=8,
    moe_num_experts=64,
    moe_num_shared_experts=0,
    moe_layer_start_index=3,
    num_nextn_predict_layers=1,
)
HY3 = base(
    "hy_v3",
    80,
    4096,
    64,
    8,
    120832,
    head_dim=128,
    intermediate_size=13312,
    num_experts=192,
    num_experts_per_tok=8,
    num_shared_experts=1,
    expert_hidden_dim=1536,
    first_k_dense_replace=1,
    num_nextn_predict_layers=1,
    qk_norm=True,
)
LING_25 = ling(80, 8192, 64, 64, 2048, 18432) | {
    "model_type": "bailing_hybrid",
    "first_k_dense_replace": 4,
    "layer_group_size": 8,
    **mla(1536),
}
MIMO_V2 = base(
    "mimo_v2_flash",
    48,
    4096,
    64,
    4,
    152576,
    head_dim=192,
    v_head_dim=128,
    intermediate_size=16384,
    moe_intermediate_size=2048,
    n_routed_experts=256,
    num_experts_per_tok=8,
    moe_layer_freq=[0] + [1] * 47,
    partial_rotary_factor=0.334,
    hybrid_layer_pattern=[0, 1, 1, 1, 1] + [0, 1, 1, 1, 1, 1] * 7 + [0],
    swa_num_attention_heads=64,
    swa_num_key_value_heads=8,
    swa_head_dim=192,
    swa_v_head_dim=128,
    sliding_window_size=128,
    add_swa_attention_sink_bias=True,
    max_position_embeddings=262144,
)
TRINITY_NANO = base(
    "afmoe",
    56,
    1024,
    8,
    2,
    200192,
    head_dim=128,
    intermediate_size=3072,
    num_dense_layers=2,
    moe_intermediate_size=256,
    num_experts=128,
    num_experts_per_tok=8,
    num_shared_experts=1,
    global_attn_every_n_layers=4,
    sliding_window=2048,
)
LONGCAT = {
    "model_type": "longcat_flash",
    "num_layers": 28,
    "hidden_size": 6144,
    "vocab_size": 131072,
    "num_attention_heads": 64,
    "max_position_embeddings": 131072,
    "ffn_hidden_size": 12288,
    "n_routed_experts": 512,
    "zero_expert_num": 256,
    "moe_topk": 12,
    "expert_ffn_hidden_size": 2048,
    "torch_dtype": "bfloat16",
    **mla(1536),
}
DBRX = {
    "model_type": "dbrx",
    "d_model": 6144,
    "n_heads": 48,
    "n_layers": 40,
    "max_seq_len": 32768,
    "vocab_size": 100352,
    "attn_config": {"kv_n_heads": 8},
    "torch_dtype": "bfloat16",
    "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4},
}
QWEN3_30B = base("qwen3_moe", 48, 2048, 32, 4, 151936, head_dim=128, **qwen(128, 8, 768))
QWEN3_235B = base("qwen3_moe", 94, 4096, 64, 4, 151936, head_dim=128, **qwen(128, 8, 1536))
QWEN15_MOE = base(
    "qwen2_moe",
    24,
    2048,
    16,
    16,
    151936,
    shared_expert_intermediate_size=5632,
    **qwen(60, 4, 1408),
)

# Hub repository, config, published element count, MTP layers and stored copies included.
PUBLISHED: list[tuple[str, Config, int]] = [
    ("mistralai/Mixtral-8x7B-Instruct-v0.1", MIXTRAL, 46702792704),
    (
        "mistralai/Mixtral-8x22B-Instruct-v0.1",
        base("mixtral", 56, 6144, 48, 8, 32768, **local(8, 2, 16384)),
        140630071296,
    ),
    ("Qwen/Qwen1.5-MoE-A2.7B", QWEN15_MOE, 14315784192),
    ("Qwen/Qwen3-30B-A3B", QWEN3_30B, 30532122624),
    ("Qwen/Qwen3-235B-A22B", QWEN3_235B, 235093634560),
    ("allenai/OLMoE-1B-7B-0924", OLMOE, 6919161856),
    ("microsoft/Phi-3.5-MoE-instruct", PHI, 41873153344),
    (
        "microsoft/Phi-mini-MoE-instruct",
        PHI | {"intermediate_size": 960, "head_dim": 128},
        7647632704,
    ),
    ("ibm-granite/granite-3.1-1b-a400m-instruct", GRANITE, 1334628352),
    (
        "ibm-granite/granite-3.1-3b-a800m-instruct",
        GRANITE
        | {
            "hidden_size": 1536,
            "num_hidden_layers": 32,
            "num_attention_heads": 24,
            "num_local_experts": 40,
        },
        3298793472,
    ),
    ("MiniMaxAI/MiniMax-M1-80k", MINIMAX_M1, 456089655296),
    ("MiniMaxAI/MiniMax-Text-01", MINIMAX_M1 | {"model_type": "minimax_text_01"}, 456089655296),
    # The Hub counts MXFP4 experts unpacked and without their scales.
    ("openai/gpt-oss-20b", GPT_OSS, 20914757184),
    ("zai-org/GLM-4.5", GLM45, 358337791296),
    ("zai-org/GLM-4.7-Flash", GLM47_FLASH, 31221488576),
    ("zai-org/GLM-5", GLM5, 753864139008),
    ("zai-org/GLM-5.2", GLM52, 753329940480),
    ("deepseek-ai/deepseek-moe-16b-chat", DEEPSEEK_V1, 16375728128),
    ("deepseek-ai/DeepSeek-V2-Lite", DEEPSEEK_V2_LITE, 15706484224),
    ("deepseek-ai/DeepSeek-V3.2", DEEPSEEK_V32, 685355329792),
    ("deepseek-ai/DeepSeek-V4-Flash", DEEPSEEK_V4_FLASH, 290944616402),
    (
        "deepseek-ai/DeepSeek-V4-Flash-0731",
        DEEPSEEK_V4_FLASH
        | {
            "compress_ratios": [0, 0] + [4, 128] * 20 + [4, 0, 0, 0],
            "dspark_target_layer_ids": [40, 41, 42],
            "dspark_markov_rank": 256,
        },
        304180418494,
    ),
    ("moonshotai/Kimi-Linear-48B-A3B-Instruct", KIMI_LINEAR, 49122681728),
    ("stepfun-ai/Step-3.5-Flash", STEP35, 199384301376),
    ("baidu/ERNIE-4.5-21B-A3B-PT", ERNIE_21B, 21948655808),
    ("baidu/ERNIE-4.5-21B-A3B-Thinking", ERNIE_21B | {"num_nextn_predict_layers": 0}, 21825437888),
    ("baidu/ERNIE-4.5-300B-A47B-Paddle", ERNIE_300B, 300474051776),
    ("tencent/Hy3", HY3, 298786155776),
    (
        "inclusionAI/Ling-1T",
        ling(80, 8192, 64, 8, 2048, 18432, first_k_dense_replace=4),
        999705328640,
    ),
    ("inclusionAI/Ling-flash-2.0", ling(32, 4096, 32, 4, 1024, 9216), 102889705216),
    ("inclusionAI/Ling-mini-2.0", ling(20, 2048, 16, 4, 512, 5120), 16255643392),
    (
        "inclusionAI/Ling-lite",
        ling(28, 2048, 16, 4, 1408, 5632)
        | {
            "vocab_size": 126464,
            "num_experts": 64,
            "num_experts_per_tok": 6,
            "num_shared_experts": 2,
            "first_k_dense_replace": 0,
            "use_qk_norm": False,
            "moe_router_enable_expert_bias": False,
        },
        16801974272,
    ),
    ("inclusionAI/Ling-2.5-1T", LING_25, 1012231160320),
    ("inclusionAI/Ling-2.6-1T", LING_25 | {"num_nextn_predict_layers": 1}, 1025414425344),
]


@pytest.mark.parametrize(
    ("hub_id", "config", "published"), PUBLISHED, ids=[p[0] for p in PUBLISHED]
)
def test_stored_elements_equal_the_published_count(
    hub_id: str, config: Config, published: int
) -> None:
    assert count_parameters(read(config)).stored == published


# What vLLM 0.32.0 allocates on one rank for a model without quantization: elements, bytes of all
# parameters, bytes of the rotary tables; vocabularies here are multiples of 64 rows.
ENGINE: list[tuple[str, Config, int, int, int]] = [
    ("mixtral", MIXTRAL, 46702792704, 93405585408, 8388608),
    ("dbrx", DBRX, 131596523520, 263193047040, 8388608),
    ("minimax-m2.5", MINIMAX_M2, 228689764864, 457477079040, 4194304),
    ("minimax-m3", MINIMAX_M3, 426174572928, 852438813696, 4194304),
    (
        "gpt-oss-120b",
        GPT_OSS
        | {
            "num_hidden_layers": 36,
            "num_local_experts": 128,
            "layer_types": ["sliding_attention", "full_attention"] * 18,
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
            },
        },
        116829156672,
        233658313344,
        33554432,
    ),
    ("glm-4.5", GLM45 | {"max_position_embeddings": 131072}, 352797829024, 705741504128, 16777216),
    ("glm-4.7-flash", GLM47_FLASH, 29943393920, 59898852352, 4194304),
    ("glm-5", GLM5, 743911218432, 1487822515200, 25952256),
    ("glm-5.2", GLM52, 743377019904, 1486754088960, 134217728),
    ("deepseek-v2-lite", DEEPSEEK_V2_LITE, 15706484224, 31412968448, 20971520),
    ("deepseek-v3", DEEPSEEK_V3, 671026419200, 1342052868096, 20971520),
    # Its indexer rotates by halves and has a table of its own; both are float32.
    ("deepseek-v3.2", DEEPSEEK_V32, 671877944064, 1343755949056, 83886080),
    ("kimi-k2", KIMI_K2, 1026408232448, 2052816510976, 20971520),
    ("deepseek-v4-flash", DEEPSEEK_V4_FLASH, 284334567511, 568744420444, 536870912),
    # No layer without compression, so one table.
    ("deepseek-v4-pro", DEEPSEEK_V4_PRO, 1572999528803, 3146176281484, 268435456),
    ("kimi-linear", KIMI_LINEAR, 49122681728, 98247507968, 0),
    ("hy3", HY3 | {"max_position_embeddings": 131072}, 295033543488, 590191373568, 33554432),
    ("ernie-21b", ERNIE_21B, 21825437888, 43659726592, 8388608),
    ("mimo-v2-flash", MIMO_V2, 308778780864, 617656151936, 67108864),
    ("longcat-flash", LONGCAT, 560664980480, 1121594245120, 16777216),
    # Tables for the rope part of the latent heads and for half of every lightning head.
    (
        "ling-2.5-1t",
        LING_25 | {"partial_rotary_factor": 0.5},
        1012231160320,
        2024781126656,
        8388608,
    ),
    ("ling-flash-2.0", ling(32, 4096, 32, 4, 1024, 9216), 102889705216, 205844438016, 8388608),
]


@pytest.mark.parametrize(
    ("config", "elements", "size_bytes", "table_bytes"),
    [row[1:] for row in ENGINE],
    ids=[row[0] for row in ENGINE],
)
def test_trunk_equals_what_the_engine_allocates(
    config: Config, elements: int, size_bytes: int, table_bytes: int
) -> None:
    spec = read(config)
    trunk = [entry for entry in inventory(spec) if entry.section not in ("mtp", "stored")]
    assert count_parameters(spec).total == elements
    assert sum(e.elements * BYTES[e.tensor.dtype or spec.dtype] for e in trunk) == size_bytes
    tables = sum(
        table.positions * table.rotary_dim * table.copies * BYTES[table.dtype or spec.dtype]
        for table in spec.rotary
    )
    assert tables == table_bytes


def test_text_models_of_multimodal_checkpoints() -> None:
    """Language-model tensors of vLLM 0.32.0's Llama4ForConditionalGeneration and
    KimiK3ForConditionalGeneration, Step3 with its vocabulary of 128,815 rows unpadded."""
    assert count_parameters(read(LLAMA4)).total == 107769861120
    assert count_parameters(read(KIMI_K3)).total == 2779931834976 - 447358976
    assert count_parameters(read(STEP3)).total == 316294781952 - 2 * 17 * 7168
    assert count_parameters(read(TRINITY_NANO)).total == 6120003328


# Small variants of a configuration class, counted by transformers 5.19 on the meta device.
VARIANTS: list[tuple[str, Config, int]] = [
    (
        "qwen2_moe, every second layer, one of them dense",
        base("qwen2_moe", 6, 2048, 16, 4, 151936, shared_expert_intermediate_size=5632)
        | qwen(60, 4, 1408)
        | {
            "intermediate_size": 5632,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "qkv_bias": False,
        },
        1931229184,
    ),
    (
        "ernie with biases",
        ERNIE_21B
        | {
            "num_hidden_layers": 6,
            "moe_layer_start_index": 2,
            "moe_layer_end_index": 4,
            "use_bias": True,
            "num_nextn_predict_layers": 0,
        },
        2978728640,
    ),
    (
        "mistral4 with a dense first layer",
        base("mistral4", 3, 4096, 32, 32, 131072, intermediate_size=12288)
        | mla(1024, 64, 64, 128, kv=256)
        | experts(128, 4, 2048),
        7802748672,
    ),
    (
        "deepseek_v3 without a query latent",
        DEEPSEEK_V3 | {"num_hidden_layers": 4, "q_lora_rank": None, "num_nextn_predict_layers": 0},
        15620703488,
    ),
    (
        "granitemoeshared",
        base("granitemoeshared", 2, 4096, 32, 32, 32000, **local(8, 2, 11008))
        | {"shared_intermediate_size": 777},
        2579804160,
    ),
    (
        "axk1",
        DEEPSEEK_V3
        | {
            "model_type": "axk1",
            "num_hidden_layers": 3,
            "num_attention_heads": 64,
            "vocab_size": 163840,
            "num_nextn_predict_layers": 0,
            **experts(192, 8, 2048),
        },
        20050875776,
    ),
    (
        "laguna with heads per layer",
        base("laguna", 3, 2048, 48, 8, 100352, head_dim=128, intermediate_size=8192)
        | {
            "num_attention_heads_per_layer": [8, 16, 24],
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "sliding_window": 512,
            "attention_bias": True,
            "num_experts": 256,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
        },
        2117207296,
    ),
    (
        "glm5_next",
        base("glm5_next_text", 4, 4096, 64, 64, 154880, intermediate_size=12288)
        | mla(1536, 256, 0, 256)
        | experts(288, 8, 2048, first=3),
        9537160504,
    ),
    (
        "hy_v4 with two streams",
        base("hy_v4", 4, 2816, 32, 32, 120832, intermediate_size=6912, hc_mult=2)
        | mla(1536, 192, 64, 256)
        | experts(256, 8, 768),
        6038738099,
    ),
    (
        "hunyuan_v1_moe",
        base("hunyuan_v1_moe", 2, 4096, 32, 4, 290943, head_dim=64, intermediate_size=11008)
        | {"num_experts": 4, "moe_topk": 2},
        3773870336,
    ),
]


@pytest.mark.parametrize(("name", "config", "total"), VARIANTS, ids=[v[0] for v in VARIANTS])
def test_variants_equal_transformers(name: str, config: Config, total: int) -> None:
    assert count_parameters(read(config)).total == total


# Block-FP8 repositories, whose published count includes one scale per 128 x 128 tile of every
# projection; embedding, head, router, norms and the indexer's weights_proj stay unquantized.
FP8: list[tuple[str, Config, int]] = [
    ("deepseek-ai/DeepSeek-V3", DEEPSEEK_V3, 684531386000),
    ("deepseek-ai/DeepSeek-V3.2-Exp", DEEPSEEK_V32, 685396921376),
    ("Qwen/Qwen3-235B-A22B-FP8", QWEN3_235B, 235107904512),
    ("zai-org/GLM-5-FP8", GLM5, 753910024032),
    ("MiniMaxAI/MiniMax-M2.5", MINIMAX_M2, 228703644928),
]


@pytest.mark.parametrize(("hub_id", "config", "published"), FP8, ids=[row[0] for row in FP8])
def test_fp8_counts_are_the_elements_and_their_scales(
    hub_id: str, config: Config, published: int
) -> None:
    spec = read(config)
    scales = sum(
        -(-rows // 128) * -(-columns // 128) * entry.tensor.copies * entry.count
        for entry in inventory(spec)
        if entry.tensor.matmul
        and entry.tensor.group in ("attention", "routed_experts", "shared_experts", "dense_mlp")
        and entry.tensor.role != "attention.indexer.weights"
        for rows, columns in [entry.tensor.shape]
    )
    assert count_parameters(spec).stored + scales == published


def test_mtp_is_apart_from_the_total() -> None:
    """DeepSeek-V3, README_WEIGHTS.md: 671B main model, 11.5B of its own in the MTP module; the
    embedding and the head of 0.9B each are stored there a second time."""
    counts = count_parameters(read(DEEPSEEK_V3))
    assert round(counts.mtp / 1e9, 1) == 11.6
    assert counts.stored - counts.total - counts.mtp == 2 * 129280 * 7168
    # DeepSeek-V3 technical report: 37B activated.
    assert round(counts.active / 1e9, 1) == 37.6


LAYER = "model.layers.{layer}."


@pytest.mark.parametrize(
    ("config", "role", "section", "name"),
    [
        (
            MIXTRAL,
            "routed_experts.down",
            "layers",
            LAYER + "block_sparse_moe.experts.{expert}.w2.weight",
        ),
        (
            MINIMAX_M2,
            "router.bias",
            "layers",
            LAYER + "block_sparse_moe.e_score_correction_bias",
        ),
        (GPT_OSS, "router.bias", "layers", LAYER + "mlp.router.bias"),
        (GPT_OSS, "routed_experts.gate", "layers", LAYER + "mlp.experts.gate_up_proj"),
        (GPT_OSS, "attention.sinks", "layers", LAYER + "self_attn.sinks"),
        (DEEPSEEK_V3, "router.bias", "layers", LAYER + "mlp.gate.e_score_correction_bias"),
        (DEEPSEEK_V3, "attention.kv_a", "mtp", LAYER + "self_attn.kv_a_proj_with_mqa.weight"),
        (DEEPSEEK_V4_FLASH, "router.hash", "layers", "layers.{layer}.ffn.gate.tid2eid"),
        (DEEPSEEK_V4_FLASH, "attention.sinks", "layers", "layers.{layer}.attn.attn_sink"),
        (KIMI_K3, "attention.linear.q_conv", "layers", LAYER + "self_attn.q_conv1d.weight"),
        (
            DBRX,
            "attention.k",
            "layers",
            "transformer.blocks.{layer}.norm_attn_norm.attn.Wqkv.weight",
        ),
        (LING_25, "embedding.tokens", "embedding", "model.word_embeddings.weight"),
    ],
)
def test_checkpoint_names(config: Config, role: str, section: str, name: str) -> None:
    """Names as the published indexes and vLLM's weight loaders spell them."""
    assert tensor_name(read(config).naming, role, section) == name


@pytest.mark.parametrize("module", ["moe", "latent"])
def test_the_registry_lists_what_the_module_reads(module: str) -> None:
    import_module(f"moesize.readers.hf.{module}")
    here = f"moesize.readers.hf.{module}"
    decorated = {name for name, reader in READERS.items() if reader.__module__ == here}
    assert set(MODULES[module]) == decorated


def test_layers_are_told_apart() -> None:
    """Windows, chunks, indexers and compression fall on the layers that the config names."""
    assert read(GPT_OSS).layout[:2] == ("sliding_moe", "full_moe")
    assert [i for i, name in enumerate(read(LLAMA4).layout) if name == "full_moe"] == [
        *range(3, 48, 4)
    ]
    assert sum(name.startswith("shared_") for name in read(GLM52).layout) == 57
    assert read(DEEPSEEK_V4_FLASH).layout[2:5] == ("ratio4_hash_moe", "ratio128_moe", "ratio4_moe")
    assert read(MINIMAX_M3).layout[2:4] == ("full_dense", "indexed_moe")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MINIMAX_M3 | {"moe_layer_freq": [0] * 3 + [1] * 56}, "moe_layer_freq has 59 entries"),
        (MINIMAX_M3 | {"moe_layer_freq": [0] * 3 + [2] * 57}, "must hold 0 or 1"),
        (MIMO_V2 | {"hybrid_layer_pattern": [0, 1]}, "hybrid_layer_pattern has 2 entries"),
        (MIXTRAL | {"num_experts_per_tok": 9}, r"experts_per_token \(9\)"),
        (MIXTRAL | {"num_local_experts": 0}, "num_local_experts is 0"),
        (MIXTRAL | {"num_local_experts": "8"}, "must be an integer"),
        (GPT_OSS | {"layer_types": ["full_attention"]}, "layer_types has 1 entries for 24 layers"),
        (GPT_OSS | {"layer_types": ["full_attention"] * 23 + ["x"]}, "layer_types holds 'x'"),
        (GLM52 | {"indexer_types": ["full"] * 77 + ["half"]}, "holds 'half'"),
        (GLM5 | {"index_topk_pattern": "FS"}, "one F or S for every layer"),
        (GLM5 | {"q_lora_rank": None}, "q_lora_rank is missing"),
        (DEEPSEEK_V4_FLASH | {"compress_ratios": [4] * 10}, "compress_ratios has 10 entries"),
        (DEEPSEEK_V4_FLASH | {"compress_ratios": [8] * 43}, "must hold 0, 4 or 128"),
        (DEEPSEEK_V4_FLASH | {"vision_n_layers": 24}, "vision_n_layers"),
        (DEEPSEEK_V3 | {"num_nextn_predict_layers": 10**6}, "must lie in 0..64"),
        (DEEPSEEK_V3 | {"rope_scaling": YARN | {"factor": float("inf")}}, "factor"),
        (KIMI_LINEAR | {"linear_attn_config": {"full_attn_layers": [4, 4]}}, "exactly once"),
        (QWEN3_30B | {"mlp_only_layers": [-1]}, "must hold layer numbers"),
        (QWEN3_30B | {"mlp_only_layers": [10**30]}, "must hold layer numbers"),
        (QWEN3_30B | {"decoder_sparse_step": 0}, "decoder_sparse_step is 0"),
        (STEP35 | {"moe_layers_enum": "3,four"}, "must hold layer numbers"),
        (STEP35 | {"attention_other_setting": {"attention_type": "sliding_attention"}}, "heads"),
        (STEP35 | {"layer_types": ["full_attention"] * 46}, "layer_types has 46 entries"),
        (GLM45 | {"partial_rotary_factor": 0}, "must lie in 0..1"),
        (DBRX | {"n_heads": 7}, "not a multiple of n_heads"),
        (DBRX | {"ffn_config": None}, "ffn_config is missing"),
        (MINIMAX_M2 | {"qk_norm_type": "per_moon"}, "qk_norm_type"),
        (ERNIE_21B | {"moe_layer_interval": 0}, "moe_layer_interval is 0"),
        (HY3 | {"num_key_value_heads": 7}, "must divide num_attention_heads"),
    ],
)
def test_malformed_configs_are_refused(config: Config, message: str) -> None:
    with pytest.raises(InvalidSpecError, match=message):
        read(config)


HOSTILE = [None, -1, 0, True, "x", [], {}, [None], ["a"], 1.5, float("inf"), float("nan"), 10**30]


@pytest.mark.parametrize(
    "config",
    [MINIMAX_M3, GPT_OSS, GLM52, DEEPSEEK_V4_FLASH, KIMI_K3, STEP35, LONGCAT, LING_25, MIMO_V2],
    ids=lambda config: config["model_type"],
)
def test_no_value_of_a_config_escapes_the_checks(config: Config) -> None:
    """Whatever stands under a key, the answer is a spec or an error about the file."""
    outcomes = set()
    for key in config:
        for value in HOSTILE:
            try:
                count_parameters(read(config | {key: value}))
                outcomes.add("spec")
            except MoesizeError:
                outcomes.add("error")
    assert outcomes == {"spec", "error"}
