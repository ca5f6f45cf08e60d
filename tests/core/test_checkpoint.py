"""Stored bytes and elements against published checkpoints.

Bytes are `total_size` of the safetensors index of a repository. Elements are what the Hugging Face
hub shows for it (`safetensors.total`, as the catalogue embedded in the PyPI package llmfit 1.1.17
lists them). Config facts are restated from the repositories' config.json, where it was to be had;
the quantization_config is then that of the file too. MADE_UP rows join the config of the plain
model with a quantization_config of the usual form: they check the arithmetic, not the reading.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from moesize.core.checkpoint import (
    compile_pattern,
    hub_elements,
    plain_name,
    published,
    stored_bytes,
    with_scheme,
)
from moesize.core.errors import InvalidInputError, UnsupportedError
from moesize.core.model_spec import CheckpointQuantization, QuantizationRule
from moesize.core.quantization import find_scheme
from moesize.readers.hf.read import spec_from_config

Config = dict[str, Any]


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


LLAMA_8B = base("llama", 32, 4096, 32, 8, 128256, intermediate_size=14336, torch_dtype="float32")
LLAMA_70B = base("llama", 80, 8192, 64, 8, 128256, intermediate_size=28672)
LLAMA_405B = base("llama", 126, 16384, 128, 8, 128256, intermediate_size=53248)
MISTRAL_7B = base("mistral", 32, 4096, 32, 8, 32000, intermediate_size=14336)
QWEN2_7B = base("qwen2", 28, 3584, 28, 4, 152064, intermediate_size=18944)
QWEN3_8B = base("qwen3", 36, 4096, 32, 8, 151936, intermediate_size=12288, head_dim=128)
GRANITE_8B = base(
    "granite", 40, 4096, 32, 8, 49159, intermediate_size=12800, tie_word_embeddings=True
)
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
DEEPSEEK_V3 = base(
    "deepseek_v3",
    61,
    7168,
    128,
    128,
    129280,
    intermediate_size=18432,
    first_k_dense_replace=3,
    kv_lora_rank=512,
    q_lora_rank=1536,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    moe_intermediate_size=2048,
    n_routed_experts=256,
    n_shared_experts=1,
    num_experts_per_tok=8,
    num_nextn_predict_layers=1,
    topk_method="noaux_tc",
    moe_layer_freq=1,
)
QWEN_7B: Config = {
    "model_type": "qwen",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "kv_channels": 128,
    "intermediate_size": 22016,
    "vocab_size": 151936,
    "seq_length": 8192,
    "max_position_embeddings": 32768,
    "no_bias": True,
    "fp16": True,
    "tie_word_embeddings": False,
}
TILES = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AUTO_GPTQ = {**GPTQ, "model_file_base_name": "model"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": None}
CHANNELS = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "dynamic": False},
            "input_activations": {"num_bits": 8, "type": "float", "dynamic": True},
        }
    },
}
NVFP4 = {
    "quant_method": "modelopt",
    "quant_algo": "NVFP4",
    "ignore": ["lm_head", *(f"model.layers.{i}.mlp.gate" for i in range(94))],
}
# Not Meta's own list, which was not to be had: the choice that explains the published count, with
# attention and the MLP of the first and the last layer kept.
FBGEMM = {
    "quant_method": "fbgemm_fp8",
    "modules_to_not_convert": [
        "lm_head",
        *(f"model.layers.{i}.self_attn" for i in range(126)),
        *(f"model.layers.{i}.mlp" for i in (0, 125)),
    ],
}


def read(config: Config, quantization: Config | None) -> Any:
    if quantization is not None:
        config = {**config, "quantization_config": quantization}
    return spec_from_config(config, file="config.json")


@pytest.mark.parametrize(
    ("config", "quantization", "total_size"),
    [
        # IrfanUruchi/Llama-3.1-8B-Computer-Networks-LLM: int8, the rest in float32
        pytest.param(LLAMA_8B, INT8, 11188584672, id="bitsandbytes int8"),
        # Qwen/Qwen-7B-Chat-Int4: joined q, k and v; zero biases
        pytest.param(QWEN_7B, AUTO_GPTQ, 5860564992, id="AutoGPTQ"),
        # meta-llama/Llama-3.1-8B in the half precision of YouriLalain/1PARAMMYL-8B-ModelStock
        pytest.param({**LLAMA_8B, "torch_dtype": "float16"}, None, 16060522496, id="plain"),
    ],
)
def test_stored_bytes_are_the_total_size_of_the_index(
    config: Config, quantization: Config | None, total_size: int
) -> None:
    assert stored_bytes(read(config, quantization)) == total_size


@pytest.mark.parametrize(
    ("config", "quantization", "total"),
    [
        pytest.param(DEEPSEEK_V3, TILES, 684531386000, id="deepseek-ai/DeepSeek-V3"),
        pytest.param(QWEN3_235B, TILES, 235107904512, id="Qwen/Qwen3-235B-A22B-FP8"),
        pytest.param(QWEN3_8B, TILES, 8191159296, id="MADE_UP Qwen/Qwen3-8B-FP8"),
        pytest.param(QWEN3_235B, NVFP4, 132806618624, id="nvidia/Qwen3-235B-A22B-NVFP4"),
        pytest.param(LLAMA_405B, FBGEMM, 405868625920, id="MADE_UP meta-llama/Llama-3.1-405B-FP8"),
        pytest.param(
            GRANITE_8B, CHANNELS, 8172462080, id="ibm-granite/granite-3.3-8b-instruct-FP8"
        ),
    ],
)
def test_stored_elements_are_the_hubs_count(
    config: Config, quantization: Config, total: int
) -> None:
    assert hub_elements(read(config, quantization)) == total


@pytest.mark.parametrize(
    ("config", "quantization", "total"),
    [
        pytest.param(MISTRAL_7B, AWQ, 7241732096, id="TheBloke/Mistral-7B-Instruct-v0.1-AWQ"),
        pytest.param(QWEN2_7B, AWQ, 7615616512, id="MADE_UP Qwen/Qwen2-7B-Instruct-AWQ"),
        pytest.param(
            QWEN2_7B, AUTO_GPTQ, 7616878080, id="MADE_UP Qwen/Qwen2-7B-Instruct-GPTQ-Int4"
        ),
        pytest.param(QWEN2_7B, GPTQ, 7615616512, id="MADE_UP Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4"),
    ],
)
def test_packed_words_count_as_weights(config: Config, quantization: Config, total: int) -> None:
    assert hub_elements(read(config, quantization), scales=False) == total


def test_what_has_a_type_of_its_own_is_not_quantized() -> None:
    spec = read(QWEN3_8B, TILES)
    formats = {item.entry.tensor.role: item.is_quantized for item in published(spec)}
    assert formats["attention.q"]
    assert formats["dense_mlp.down"]
    assert not formats["embedding.tokens"]
    assert not formats["lm_head.weight"]
    assert not formats["norms.hidden"]


def test_layers_of_other_formats_become_entries_of_their_own() -> None:
    kept = {**TILES, "modules_to_not_convert": ["model.layers.0", "model.layers.35.mlp"]}
    spec = read(QWEN3_8B, kept)
    layers = {
        (item.entry.tensor.role, item.is_quantized): item.entry.layers for item in published(spec)
    }
    assert layers["attention.q", False] == (0,)
    assert layers["attention.q", True] == tuple(range(1, 36))
    assert layers["dense_mlp.up", False] == (0, 35)
    assert layers["dense_mlp.up", True] == tuple(range(1, 35))


def test_results_are_kept_with_the_spec() -> None:
    spec = read(QWEN3_8B, TILES)
    assert published(spec) is published(spec)
    scheme = find_scheme("fp8")
    assert with_scheme(spec, scheme) is with_scheme(spec, scheme)
    assert with_scheme(spec, scheme) is not published(spec)


def test_an_unknown_format_is_refused() -> None:
    rules = (QuantizationRule(format="int3-magic"),)
    spec = replace(
        read(QWEN3_8B, None), quantization=CheckpointQuantization(method="x", rules=rules)
    )
    with pytest.raises(UnsupportedError, match="int3-magic"):
        published(spec)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("model.layers.0.mlp.gate", "layers.0.mlp.gate"),
        ("language_model.model.layers.3.self_attn", "layers.3.self_attn"),
        ("model.language_model.layers.3.mlp", "layers.3.mlp"),
        ("backbone.layers.1.mixer", "layers.1.mixer"),
        ("model.visual.blocks.0.attn", "visual.blocks.0.attn"),
        ("vision_model.model.layers.0", "vision_model.model.layers.0"),
        ("mtp.layers.0.mlp", "mtp.layers.0.mlp"),
    ],
)
def test_wrappers_are_left_out_of_names(name: str, plain: str) -> None:
    assert plain_name(name) == plain


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+$",
        r"(.*)*x",
        r"(?:a|a)*x",
        r"(a|b){1000}",
        r".*.*.*x",
        r"\w*\w*\w*!",
        r"[^.]*[^.]*[^.]*!",
        r"(?:x|.*.*y)(?:z|.*w)",
        ".?" * 25 + "!",
        "x" * (1 << 18),
        "(" * 5000,
        r"a{1,1000}{1,1000}",
        r"\d{1,99999999999}",
        "[",
    ],
)
def test_patterns_that_could_take_long_are_refused_at_once(pattern: str) -> None:
    start = time.process_time()
    with pytest.raises(InvalidInputError):
        compile_pattern(pattern)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        (r"layers\.\d+\.mlp\.experts\.\d+\..*_proj", "layers.3.mlp.experts.7.up_proj", True),
        (r"mlp\.(gate|up|gate_up|down)_proj", "layers.0.mlp.gate_proj", True),
        (r"mlp\.(gate|up|gate_up|down)_proj", "layers.0.mlp.experts.0.gate_proj", False),
        (r"^layers\.(?!(?:61)\.)\d+\.self_attn", "layers.61.self_attn", False),
        (r"^layers\.(?!(?:61)\.)\d+\.self_attn", "layers.60.self_attn", True),
        (r"(?!.*experts).*mlp", "layers.1.mlp.up_proj", True),
    ],
)
def test_patterns_of_real_checkpoints_are_taken(pattern: str, name: str, matches: bool) -> None:
    assert bool(compile_pattern(pattern).search(name)) is matches
