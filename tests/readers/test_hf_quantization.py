"""quantization_config of published checkpoints: which matrices it leaves out, and what it refuses.

The configs restate those of the named repositories; lists that repeat one name for every layer are
built from it. What a list means is how the engines match it: transformers 5.19.0
`quantizers_utils.should_convert_module`, vLLM 0.32.0 `quant_utils.is_layer_skipped` and ModelOpt's
fnmatch patterns.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesize.core.checkpoint import compile_pattern, plain_name
from moesize.core.errors import InvalidSpecError, MoesizeError, UnsupportedError
from moesize.readers.hf.quantization import read_quantization
from moesize.readers.hf.view import ConfigView

Config = dict[str, Any]
GROUP = {"weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}}
PACKED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], **GROUP}},
}


def read(quantization: Any, beside: Config | None = None, **facts: Any) -> Any:
    config = {"model_type": "llama", "num_hidden_layers": 4, **facts}
    if quantization is not None:
        config["quantization_config"] = quantization
    return read_quantization(ConfigView(config, "config.json"), beside)


def format_of(quantization: Any, name: str) -> str:
    """Format that the rules give a module, as checkpoint.py applies them; "" = no rule."""
    for rule in quantization.rules:
        pattern = compile_pattern("|".join(f"(?:{p})" for p in rule.modules))
        if pattern.search(plain_name(name)) or pattern.search(name):
            return str(rule.format)
    return ""


def patterns(quantization: Any) -> tuple[str, ...]:
    return tuple(p for rule in quantization.rules for p in rule.modules)


def test_a_config_without_quantization_has_none() -> None:
    assert read(None) is None
    assert read({}) is None


# --- What is left out ---------------------------------------------------------------------------


def test_names_for_every_layer_become_one_pattern() -> None:
    # Qwen/Qwen3-235B-A22B-FP8 lists 283 names; its norms and routers are never quantized anyway.
    kept = ["lm_head"]
    for layer in range(94):
        kept += [f"model.layers.{layer}.{part}" for part in ("input_layernorm", "mlp.gate")]
        kept.append(f"model.layers.{layer}.self_attn.q_proj")
    found = read({"quant_method": "fp8", "modules_to_not_convert": kept}, num_hidden_layers=94)
    assert len(patterns(found)) == 2
    assert format_of(found, "model.layers.93.self_attn.q_proj") == "keep"
    assert format_of(found, "model.layers.93.self_attn.k_proj") == "fp8"


def test_a_name_of_one_layer_is_not_that_of_ten() -> None:
    found = read(
        {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.1.mlp.down_proj"]},
        num_hidden_layers=20,
    )
    assert format_of(found, "model.layers.1.mlp.down_proj") == "keep"
    assert format_of(found, "model.layers.10.mlp.down_proj") == "fp8"
    assert format_of(found, "model.layers.11.mlp.down_proj") == "fp8"


def test_most_layers_are_told_by_the_others() -> None:
    # nvidia/DeepSeek-V3.1-NVFP4: attention of all but the MTP layer, and the MTP layer as a whole.
    kept = [f"model.layers.{layer}.self_attn.q_a_proj" for layer in range(61)]
    found = read(
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": [*kept, "model.layers.61*"]},
        num_hidden_layers=61,
        num_nextn_predict_layers=1,
    )
    assert max(map(len, patterns(found))) < 80
    assert format_of(found, "model.layers.60.self_attn.q_a_proj") == "keep"
    assert format_of(found, "model.layers.60.self_attn.o_proj") == "nvfp4"
    assert format_of(found, "model.layers.61.self_attn.o_proj") == "keep"


def test_wrappers_of_the_language_model_do_not_matter() -> None:
    # nvidia/Kimi-K2.6-NVFP4 says `language_model.model.layers`.
    ignored = ["language_model.model.layers.0*", "language_model.model.layers.1.self_attn*"]
    found = read({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ignored})
    for prefix in ("model.", "language_model.model.", "model.language_model."):
        assert format_of(found, f"{prefix}layers.0.mlp.down_proj") == "keep"
        assert format_of(found, f"{prefix}layers.1.self_attn.q_proj") == "keep"
        assert format_of(found, f"{prefix}layers.1.mlp.down_proj") == "nvfp4"
    assert format_of(found, "mtp.layers.0.mlp.down_proj") == "nvfp4"


def test_a_wildcard_behind_a_number_means_all_that_begin_with_it() -> None:
    found = read(
        {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["model.layers.1*"]},
        num_hidden_layers=21,
    )
    kept = [n for n in range(21) if format_of(found, f"model.layers.{n}.mlp.up_proj") == "keep"]
    assert kept == [1, *range(10, 20)]


def test_short_names_match_whole_words() -> None:
    # MiniMaxAI/MiniMax-M2.5 names its routers `gate`; openbmb/MiniCPM-V-4_6-AWQ single projections.
    found = read({"quant_method": "awq", "modules_to_not_convert": ["gate", "out_proj", "mlp.up"]})
    assert format_of(found, "model.layers.0.mlp.gate_proj") == "awq"
    assert format_of(found, "model.layers.0.mlp.up_proj") == "awq"
    assert format_of(found, "model.layers.0.linear_attn.out_proj") == "keep"


def test_a_star_in_front_frees_a_name_from_its_place() -> None:
    found = read(
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["*.mlp.shared_expert.*"]}
    )
    assert format_of(found, "model.layers.3.mlp.shared_expert.up_proj") == "keep"
    assert format_of(found, "model.layers.3.mlp.experts.0.up_proj") == "nvfp4"


def test_regular_expressions_match_from_the_start() -> None:
    # moonshotai/Kimi-K2.5, inside text_config.
    ignored = ["lm_head", "re:.*self_attn.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*", "re:mtp"]
    quantization = {**PACKED, "ignore": ignored}
    config = {"model_type": "kimi_k25", "text_config": {"quantization_config": quantization}}
    found = read_quantization(ConfigView(config, "config.json"))
    prefix = "language_model.model.layers"
    assert format_of(found, f"{prefix}.1.mlp.experts.5.up_proj") == "pack"
    assert format_of(found, f"{prefix}.0.mlp.up_proj") == "keep"
    assert format_of(found, f"{prefix}.1.self_attn.kv_b_proj") == "keep"
    assert format_of(found, "mtp.layers.0.mlp.experts.0.up_proj") == "keep"
    assert format_of(found, f"{prefix}.1.mlp.experts.0.up_proj.mtp") == "pack"
    assert found is not None
    assert not found.towers
    assert not found.quantized_head


@given(st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11)))
def test_collapsed_names_match_the_same_modules(first: set[int], second: set[int]) -> None:
    kept = [f"model.layers.{n}.self_attn.o_proj" for n in first]
    kept += [f"model.layers.{n}.mlp" for n in second]
    found = read(
        {"quant_method": "fp8", "modules_to_not_convert": kept},
        num_hidden_layers=11,
        num_nextn_predict_layers=1,
    )
    for layer in range(12):
        attention = format_of(found, f"model.layers.{layer}.self_attn.o_proj")
        assert (attention == "keep") is (layer in first)
        assert (format_of(found, f"model.layers.{layer}.mlp.up_proj") == "keep") is (
            layer in second
        )
        assert format_of(found, f"model.layers.{layer}.self_attn.q_proj") == "fp8"


def test_all_experts_or_none() -> None:
    kept = [f"model.layers.2.mlp.experts.{n}.up_proj" for n in range(8)]
    found = read({"quant_method": "awq", "modules_to_not_convert": kept}, num_experts=8)
    assert format_of(found, "model.layers.2.mlp.experts.5.up_proj") == "keep"
    assert format_of(found, "model.layers.2.mlp.experts.5.down_proj") == "awq"
    with pytest.raises(UnsupportedError, match="some experts"):
        read({"quant_method": "awq", "modules_to_not_convert": kept[:-1]}, num_experts=8)


# --- Methods ------------------------------------------------------------------------------------


def test_gptq_with_rules_of_its_own() -> None:
    # GPTQModel's `dynamic`: `-:` leaves out, anything else overrides.
    dynamic = {"-:.*attn.*": {}, r"+:.*\.(?:0|1)\..*down_proj": {"bits": 8, "group_size": 64}}
    found = read({"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": dynamic})
    assert format_of(found, "model.layers.0.self_attn.q_proj") == "keep"
    eight, four = found.rules[-2:]
    assert (eight.bits, eight.group_size) == (8, 64)
    assert compile_pattern(eight.modules[0]).search("model.layers.1.mlp.down_proj")
    assert not compile_pattern(eight.modules[0]).search("model.layers.2.mlp.down_proj")
    assert (four.bits, four.group_size, four.modules) == (4, 128, ())


def test_gptq_of_some_modules_only() -> None:
    inside = [["self_attn.q_proj", "self_attn.k_proj"], ["mlp.down_proj"]]
    found = read({"quant_method": "gptq", "bits": 4, "modules_in_block_to_quantize": inside})
    assert format_of(found, "model.layers.0.self_attn.q_proj") == "gptq"
    assert format_of(found, "model.layers.0.self_attn.v_proj") == ""


def test_gptq_and_awq_leave_mtp_layers_out() -> None:
    found = read({"quant_method": "awq"}, num_hidden_layers=61, num_nextn_predict_layers=1)
    assert format_of(found, "model.layers.61.mlp.down_proj") == "keep"
    assert format_of(found, "model.layers.60.mlp.down_proj") == "awq"


def test_deepseek_v4_stores_experts_in_mxfp4_and_scales_in_a_byte() -> None:
    quantization = {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "scale_fmt": "ue8m0",
        "activation_scheme": "dynamic",
    }
    found = read(quantization, model_type="deepseek_v4", expert_dtype="fp4")
    assert format_of(found, "layers.0.ffn.experts.3.w1") == "mxfp4"
    assert format_of(found, "layers.0.attn.wq_b") == "fp8-block"
    assert found.rules[-1].scale_dtype == "float8_e8m0"
    # V3.2 says the same of its scales; vLLM 0.32.0 makes them float32.
    assert read(quantization, model_type="deepseek_v32").rules[-1].scale_dtype == "float32"


def test_modelopt_beside_the_config() -> None:
    # nvidia/Llama-3.1-70B-Instruct-FP8: hf_quant_config.json
    algorithm = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    beside = {"producer": {"name": "modelopt", "version": "0.23.0"}, "quantization": algorithm}
    found = read(None, beside)
    assert found.method == "modelopt"
    assert found.kv_dtype == "fp8_e4m3"
    assert not found.quantized_head
    assert found.rules[-1].format == "fp8"
    assert found.rules[-1].static_input_scale


def test_mixed_precision_names_what_it_quantizes() -> None:
    # nvidia/Qwen3.6-35B-A3B-NVFP4
    prefix = "model.language_model.layers"
    layers = {f"{prefix}.{n}.self_attn.q_proj": {"quant_algo": "FP8"} for n in range(4)}
    layers |= {f"{prefix}.{n}.mlp.experts": {"quant_algo": "W4A16_NVFP4"} for n in range(4)}
    layers["lm_head"] = {"quant_algo": "W4A16_NVFP4"}
    found = read(
        {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    )
    assert format_of(found, "model.language_model.layers.3.self_attn.q_proj") == "fp8"
    assert format_of(found, "model.language_model.layers.3.mlp.experts.17.up_proj") == "nvfp4"
    assert format_of(found, "model.language_model.layers.3.self_attn.o_proj") == "keep"
    assert found.quantized_head
    assert not found.towers


@pytest.mark.parametrize(
    ("bits", "kind", "strategy", "layout", "expected"),
    [
        (4, "int", "group", "pack-quantized", "pack"),
        (8, "int", "channel", "int-quantized", "int8-channel"),
        (8, "float", "channel", "float-quantized", "fp8-channel"),
        (8, "float", "tensor", "float-quantized", "fp8"),
        (8, "float", "block", "float-quantized", "fp8-block"),
        (4, "float", "tensor_group", "nvfp4-pack-quantized", "nvfp4"),
        (4, "float", "group", "mxfp4-pack-quantized", "mxfp4"),
    ],
)
def test_compressed_tensors_layouts(
    bits: int, kind: str, strategy: str, layout: str, expected: str
) -> None:
    weights = {"num_bits": bits, "type": kind, "strategy": strategy, "group_size": 32}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    found = read({"quant_method": "compressed-tensors", "format": layout, "config_groups": groups})
    assert [rule.format for rule in found.rules] == [expected]
    assert found.quantized_head


def test_compressed_tensors_targets_by_name_come_before_classes() -> None:
    eight = {"num_bits": 8, "type": "float", "strategy": "channel"}
    four = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
    groups = {
        "group_0": {"targets": ["Linear"], "weights": eight, "format": "float-quantized"},
        "group_1": {"targets": ["re:.*experts.*"], "weights": four, "format": "pack-quantized"},
    }
    found = read({"quant_method": "compressed-tensors", "format": "mixed", "config_groups": groups})
    assert format_of(found, "model.layers.0.mlp.experts.0.up_proj") == "pack"
    assert format_of(found, "model.layers.0.self_attn.q_proj") == "fp8-channel"


def test_towers_are_converted_unless_the_list_names_them() -> None:
    vision: Config = {"vision_config": {}}
    assert read({**PACKED, "ignore": ["lm_head"]}, **vision).towers
    assert not read(
        {**PACKED, "ignore": ["lm_head", "model.visual.blocks.0.attn"]}, **vision
    ).towers
    assert not read({**PACKED, "ignore": ["lm_head"]}).towers


# --- Refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "hqq", "quant_config": {}},
        {"quant_method": "aqlm", "nbits_per_codebook": 16},
        {"quant_method": "torchao", "quant_type": {}},
        {"quant_method": "vptq"},
        {"quant_method": "eetq"},
        {"bits": 4, "group_size": 64},
        {"quant_method": "awq", "version": "gemv"},
        {"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"},
        {"quant_method": "auto-round", "packing_format": "auto_round:llm_compressor"},
        {**PACKED, "format": "marlin-24"},
        {"quant_method": "x" * 10_000},
    ],
)
def test_unknown_layouts_are_refused(quantization: Config) -> None:
    with pytest.raises(UnsupportedError) as caught:
        read(quantization)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    "quantization",
    [
        "fp8",
        {"quant_method": 7},
        {"quant_method": "gptq", "bits": "four"},
        {"quant_method": "gptq", "bits": 1 << 40},
        {"quant_method": "gptq", "group_size": 0},
        {"quant_method": "fp8", "weight_block_size": [0, 128]},
        {"quant_method": "fp8", "weight_block_size": [128]},
        {"quant_method": "fp8", "modules_to_not_convert": [7]},
        {"quant_method": "fp8", "modules_to_not_convert": ["x" * 1000]},
        {"quant_method": "fp8", "modules_to_not_convert": ["a"] * (1 << 17)},
        {"quant_method": "fp8", "modules_to_not_convert": "lm_head"},
        {"quant_method": "bitsandbytes"},
        {**PACKED, "ignore": ["re:(a+)+$"]},
        {**PACKED, "ignore": ["re:["]},
        {**PACKED, "ignore": [f"re:name{n}" for n in range(1000)]},
        {"quant_method": "compressed-tensors", "config_groups": {"g": 7}},
    ],
)
def test_malformed_configs_say_so(quantization: Any) -> None:
    with pytest.raises(InvalidSpecError, match=r"config\.json"):
        read(quantization)


_WORDS = st.sampled_from(
    ["", "*", "re:", "re:(", "re:.*", "model.layers.0*", "a.3.experts.0.b", "-:x", "Linear", "FP8"]
)
_SCALARS = st.none() | st.booleans() | st.integers(-5, 200) | _WORDS
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=3),
    max_leaves=6,
)
# fmt: off
_KEYS = st.sampled_from(
    [
        "bits", "group_size", "sym", "desc_act", "dynamic", "lm_head", "modules_to_not_convert",
        "version", "zero_point", "weight_block_size", "activation_scheme", "ignore",
        "config_groups", "format", "load_in_4bit", "load_in_8bit", "llm_int8_skip_modules",
        "quant_algo", "exclude_modules", "quantized_layers", "kv_cache_scheme", "extra_config",
        "packing_format", "global_quant_config", "exclude", "modules_in_block_to_quantize",
    ]
)
_METHODS = st.sampled_from(
    [
        "gptq", "awq", "fp8", "fbgemm_fp8", "compressed-tensors", "bitsandbytes", "mxfp4",
        "mxfp8", "modelopt", "quark", "auto-round",
    ]
)
# fmt: on


@given(_METHODS, st.dictionaries(_KEYS, _JSON, max_size=6))
def test_no_input_ends_in_anything_but_an_answer_or_an_error(method: str, facts: Config) -> None:
    try:
        found = read({"quant_method": method, **facts})
    except MoesizeError:
        return
    assert found.rules
    for pattern in patterns(found):
        compile_pattern(pattern)


def test_the_longest_list_is_read_in_a_moment() -> None:
    # Processor time: how long others keep the machine busy is no matter of ours.
    names = [f"model.layers.{n % 4096}.part{n}.proj" for n in range(1 << 16)]
    start = time.process_time()
    with pytest.raises(MoesizeError):
        read({"quant_method": "fp8", "modules_to_not_convert": names}, num_hidden_layers=4096)
    assert time.process_time() - start < 5
