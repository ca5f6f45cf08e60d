"""Parameter bytes of one rank against vLLM 0.32.0's own model classes.

Expected figures: the sum of all `nn.Parameter`s of one rank after vLLM built the model from the
repository's config.json on PyTorch's meta device (before weights are repacked), with the CUDA
platform class told that it runs on the named GPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moesize.api import stored_entries
from moesize.core.errors import InvalidDeploymentError
from moesize.core.vllm_kv import KvSettings, group_layers, plan_kv
from moesize.core.vllm_layers import CacheOptions, vllm_layers
from moesize.core.vllm_weights import mxfp4_padding, pipeline_stages, rank_weights
from moesize.readers.hf.read import spec_from_config

Config = dict[str, Any]
H100, B200, A100 = "9.0", "10.0", "8.0"
TILES = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def base(
    kind: str, layers: int, hidden: int, heads: int, groups: int, vocab: int, **facts: Any
) -> Config:
    return {
        "model_type": kind,
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


MISTRAL_AWQ = base(
    "mistral",
    32,
    4096,
    32,
    8,
    32000,
    intermediate_size=14336,
    quantization_config={
        "quant_method": "awq",
        "bits": 4,
        "group_size": 128,
        "zero_point": True,
        "version": "gemm",
    },
)
LLAMA_70B_FP8 = base(
    "llama",
    80,
    8192,
    64,
    8,
    128256,
    intermediate_size=28672,
    quantization_config={"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]},
)
MIXTRAL_GPTQ = base(
    "mixtral",
    32,
    4096,
    32,
    8,
    32000,
    intermediate_size=14336,
    num_local_experts=8,
    num_experts_per_tok=2,
    torch_dtype="float16",
    quantization_config={
        "quant_method": "gptq",
        "bits": 4,
        "group_size": -1,
        "desc_act": True,
        "sym": True,
    },
)
MIXTRAL = {
    **{key: value for key, value in MIXTRAL_GPTQ.items() if key != "quantization_config"},
    "torch_dtype": "bfloat16",
}
QWEN3_235B = base(
    "qwen3_moe",
    94,
    4096,
    64,
    4,
    151936,
    intermediate_size=12288,
    head_dim=128,
    num_experts=128,
    num_experts_per_tok=8,
    moe_intermediate_size=1536,
)
QWEN3_8B = base("qwen3", 36, 4096, 32, 8, 151936, intermediate_size=12288, head_dim=128)
QWEN3_30B = {
    **QWEN3_235B,
    "num_hidden_layers": 48,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
}
QWEN3_FP8 = {**QWEN3_235B, "quantization_config": TILES}
QWEN3_NVFP4 = {
    **QWEN3_235B,
    "quantization_config": {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "ignore": ["lm_head", *(f"model.layers.{i}.mlp.gate" for i in range(94))],
    },
}
QWEN3_06B = base(
    "qwen3",
    28,
    1024,
    16,
    8,
    151936,
    intermediate_size=3072,
    head_dim=128,
    tie_word_embeddings=True,
)
OLMOE = base(
    "olmoe",
    16,
    2048,
    16,
    16,
    50304,
    intermediate_size=1024,
    num_experts=64,
    num_experts_per_tok=8,
)
GPT_OSS = base(
    "gpt_oss",
    24,
    2880,
    64,
    8,
    201088,
    intermediate_size=2880,
    head_dim=64,
    attention_bias=True,
    num_local_experts=32,
    num_experts_per_tok=4,
    sliding_window=128,
    layer_types=["sliding_attention", "full_attention"] * 12,
    quantization_config={"quant_method": "mxfp4"},
)


def compressed(
    config: Config, layout: str, weights: Config, inputs: Config | None = None
) -> Config:
    """`config` as llm-compressor would write it, heads and routers left out."""
    groups = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    ignored = ["lm_head", *(f"model.layers.{i}.mlp.gate" for i in range(48))]
    quantization = {
        "quant_method": "compressed-tensors",
        "format": layout,
        "ignore": ignored,
        "config_groups": {"group_0": groups},
    }
    return {**config, "quantization_config": quantization}


def quantized(config: Config, method: str, **facts: Any) -> Config:
    return {**config, "quantization_config": {"quant_method": method, **facts}}


FP8 = {"num_bits": 8, "type": "float"}
FP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
FOUR = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
EIGHT = {"num_bits": 8, "type": "int", "strategy": "channel"}
AWQ = {"bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
STATIC = {**FP8, "strategy": "tensor", "dynamic": False}
# Configs of Qwen3-8B and Qwen3-30B-A3B with a quantization_config of each kind, at (TP).
MADE_UP = [
    (compressed(QWEN3_8B, "pack-quantized", FOUR), 1, 6071350152),
    (compressed(QWEN3_8B, "float-quantized", {**FP8, "strategy": "block"}, FP8), 4, 2359812744),
    (compressed(QWEN3_8B, "int-quantized", EIGHT, EIGHT), 4, 2361674376),
    (compressed(QWEN3_8B, "nvfp4-pack-quantized", FP4, FP4), 1, 6396932712),
    (quantized(QWEN3_8B, "gptq", bits=8, group_size=128, sym=True), 4, 2400086016),
    (quantized(QWEN3_8B, "mxfp8"), 1, 9652758816),
    (compressed(QWEN3_30B, "pack-quantized", EIGHT), 4, 7841257824),
    (compressed(QWEN3_30B, "float-quantized", STATIC, STATIC), 1, 31167371616),
    (compressed(QWEN3_30B, "nvfp4-pack-quantized", FP4), 4, 4541167200),
    # 192 columns a rank do not divide into groups of 128: smaller groups in another kernel
    (quantized(QWEN3_30B, "awq", **AWQ), 4, 4361416704),
]


@pytest.mark.parametrize(("config", "tp", "parameter_bytes"), MADE_UP)
def test_every_kind_of_checkpoint(config: Config, tp: int, parameter_bytes: int) -> None:
    spec = spec_from_config(config, file="config.json")
    weights = rank_weights(
        spec,
        stored_entries(spec, None, "vllm"),
        tensor_parallel_size=tp,
        compute_capability=H100,
    )
    assert weights.parameter_bytes == parameter_bytes


@pytest.mark.parametrize(
    ("config", "gpu", "tp", "ep", "parameter_bytes"),
    [
        pytest.param(MISTRAL_AWQ, H100, 1, 1, 4150796288, id="AWQ"),
        pytest.param(MISTRAL_AWQ, H100, 8, 1, 519315456, id="AWQ at TP 8"),
        pytest.param(LLAMA_70B_FP8, H100, 1, 1, 72656376832, id="FP8, static scales"),
        pytest.param(LLAMA_70B_FP8, H100, 8, 1, 9084359680, id="FP8 at TP 8"),
        pytest.param(MIXTRAL_GPTQ, H100, 1, 1, 23785152512, id="GPTQ experts with biases"),
        pytest.param(MIXTRAL_GPTQ, H100, 8, 1, 2979860480, id="GPTQ at TP 8"),
        pytest.param(MIXTRAL_GPTQ, H100, 8, 8, 2975731712, id="GPTQ at EP 8"),
        pytest.param(QWEN3_FP8, H100, 1, 1, 236445456112, id="FP8 tiles"),
        pytest.param(QWEN3_FP8, H100, 8, 1, 29713411312, id="FP8 tiles cut by TP"),
        pytest.param(QWEN3_FP8, H100, 8, 8, 29692620016, id="FP8 tiles at EP 8"),
        pytest.param(QWEN3_NVFP4, H100, 8, 8, 16878073776, id="NVFP4 at EP 8, Hopper"),
        pytest.param(QWEN3_NVFP4, B200, 8, 8, 16878200112, id="NVFP4 at EP 8, Blackwell"),
        pytest.param(QWEN3_NVFP4, B200, 8, 1, 16878326448, id="NVFP4 at TP 8"),
        pytest.param(OLMOE, H100, 8, 1, 1733693440, id="whole norms of q and k"),
        pytest.param(GPT_OSS, H100, 1, 1, 13761264768, id="MXFP4, Triton"),
        pytest.param(GPT_OSS, H100, 8, 1, 1812945408, id="MXFP4 padded by TP"),
        pytest.param(GPT_OSS, A100, 1, 1, 14679227520, id="MXFP4 padded for Marlin"),
    ],
)
def test_parameters_are_those_of_the_engine(
    config: Config, gpu: str, tp: int, ep: int, parameter_bytes: int
) -> None:
    spec = spec_from_config(config, file="config.json")
    weights = rank_weights(
        spec,
        stored_entries(spec, None, "vllm"),
        tensor_parallel_size=tp,
        expert_parallel_size=ep,
        compute_capability=gpu,
    )
    assert weights.parameter_bytes == parameter_bytes
    assert weights.resident_bytes >= parameter_bytes


@pytest.mark.parametrize(
    ("config", "parameter_bytes"),
    [
        # A tied embedding is the head of the last stage as well; Mixtral holds both everywhere.
        pytest.param(QWEN3_06B, (751631360, 751633408), id="tied"),
        pytest.param(MIXTRAL, (46964940800, 46964940800), id="no stage asked"),
    ],
)
def test_pipeline_stages_hold_what_the_engine_gives_them(
    config: Config, parameter_bytes: tuple[int, int]
) -> None:
    spec = spec_from_config(config, file="config.json")
    for stage, expected in zip(pipeline_stages(spec.num_layers, 2), parameter_bytes, strict=True):
        weights = rank_weights(
            spec, stored_entries(spec, None, "vllm"), tensor_parallel_size=1, stage=stage
        )
        assert weights.parameter_bytes == expected


def test_heads_that_do_not_divide_are_refused() -> None:
    spec = spec_from_config(MIXTRAL, file="config.json")
    with pytest.raises(InvalidDeploymentError, match="does not divide"):
        rank_weights(spec, stored_entries(spec, None, "vllm"), tensor_parallel_size=3)


GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "vllm_weights.json").read_text())
CAPABILITIES = {"h100": (9, 0), "b200": (10, 0), "a100": (8, 0), "l4": (8, 9)}


def golden_id(row: dict[str, Any]) -> str:
    layout = f"tp{row['tp']}-pp{row['pp']}" + "-ep" * row["ep"]
    return f"{row['model']}-{row['gpu']}-{layout}-{row['kv_dtype']}"


@pytest.mark.parametrize("row", GOLDEN["rows"], ids=golden_id)
def test_a_whole_deployment_equals_the_engine(row: dict[str, Any]) -> None:
    """Parameters of every stage, attention backend, KV blocks and tokens."""
    spec = spec_from_config(
        GOLDEN["configs"][row["model"]], file="config.json", hub_id=row["model"]
    )
    capability = CAPABILITIES[row["gpu"]]
    stages = pipeline_stages(spec.num_layers, row["pp"])
    found = [
        rank_weights(
            spec,
            stored_entries(spec, None, "vllm"),
            tensor_parallel_size=row["tp"],
            expert_parallel_size=row["tp"] if row["ep"] else 1,
            compute_capability="{}.{}".format(*capability),
            stage=stage,
        ).parameter_bytes
        for stage in stages
    ]
    assert found == row["parameter_bytes"]
    options = CacheOptions(
        tensor_parallel_size=row["tp"],
        compute_capability=capability,
        kv_dtype=row["kv_dtype"],
        dtype="bfloat16" if spec.dtype == "float32" else "",
    )
    cache = vllm_layers(spec, options, [stage.layers for stage in stages])
    assert cache.backend in row["backends"]
    if "blocks" not in row:  # the engine refused: too little memory for one request
        return
    settings = KvSettings(
        max_model_len=row["max_model_len"],
        max_num_batched_tokens=row["max_num_batched_tokens"],
        max_concurrent_batches=row["max_concurrent_batches"],
        block_outermost=cache.block_outermost,
    )
    plan = plan_kv(group_layers(cache.stages, settings), settings, row["available_bytes"])
    assert (plan.num_blocks, plan.tokens_logged) == (row["blocks"], row["tokens"])


@pytest.mark.parametrize(
    ("ranks", "expected"), [(1, 14_912_613_120), (2, 9_336_365_312), (4, 6_548_241_408)]
)
def test_intern_vit_6b_keeps_its_25_heads_whole_and_splits_the_rest(
    ranks: int, expected: int
) -> None:
    """OpenGVLab/InternVL2-2B with the vision_config of InternViT-6B, as vLLM builds it."""
    config = GOLDEN["configs"]["OpenGVLab/InternVL2-2B"]
    vision = {
        **config["vision_config"],
        "hidden_size": 3200,
        "intermediate_size": 12800,
        "num_attention_heads": 25,
        "num_hidden_layers": 45,
        "qk_normalization": True,
        "norm_type": "rms_norm",
        "qkv_bias": False,
    }
    assert parameter_bytes({**config, "vision_config": vision}, ranks) == expected


def test_a_tower_that_does_not_divide_is_refused() -> None:
    # Qwen/Qwen2.5-VL-3B-Instruct: 3420 columns; vLLM 0.32.0 stops with an AssertionError.
    text = base("qwen2_5_vl", 36, 2048, 16, 2, 151936, intermediate_size=11008)
    vision = {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 2048}
    with pytest.raises(InvalidDeploymentError, match="does not divide the 3,420"):
        parameter_bytes({**text, "vision_config": vision}, 8)


def parameter_bytes(config: Config, ranks: int) -> int:
    spec = spec_from_config(config, file="config.json")
    stored = stored_entries(spec, None, "vllm")
    return rank_weights(
        spec, stored, tensor_parallel_size=ranks, compute_capability=H100
    ).parameter_bytes


def test_mxfp4_padding_by_platform() -> None:
    """vLLM 0.32.0 fused_moe/oracle/mxfp4.py: 256 in both dimensions on ROCm for gpt-oss."""
    rocm, marlin = mxfp4_padding(None, rocm=True), mxfp4_padding(A100)
    assert (rocm.intermediate, rocm.hidden) == (256, 256)
    assert (marlin.intermediate, marlin.hidden) == (128, 256)
