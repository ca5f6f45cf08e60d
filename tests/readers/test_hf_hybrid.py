"""Hybrid families: published element counts, engine bytes per rank, names, refusals.

Published counts are the `safetensors.total` of each hub repository (as the catalogue embedded in
the PyPI package llmfit 1.1.17 lists them) unless a row says otherwise. Config facts are restated
from the repositories' config.json.
"""

from __future__ import annotations

import contextlib
from math import prod
from typing import TYPE_CHECKING, Any

import pytest

from moesize.core.errors import InvalidSpecError, MoesizeError
from moesize.core.inventory import count_parameters, inventory
from moesize.core.naming import module_name, tensor_name
from moesize.core.recurrent import GatedDeltaNet, Mamba1, Mamba2
from moesize.readers.hf.read import spec_from_config
from moesize.readers.hf.registry import MODULES, READERS, find_reader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moesize.core.model_spec import ModelSpec

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def read(config: dict[str, Any]) -> ModelSpec:
    return spec_from_config(config, file="config.json")


def mamba_at(num_layers: int, attention: set[int]) -> list[str]:
    return ["attention" if i in attention else "mamba" for i in range(num_layers)]


QWEN3_NEXT: dict[str, Any] = {
    "model_type": "qwen3_next",
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "num_hidden_layers": 48,
    "vocab_size": 151936,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "max_position_embeddings": 262144,
    "torch_dtype": "bfloat16",
}
QWEN35_REAP: dict[str, Any] = {
    "model_type": "qwen3_5_moe_text",
    "dtype": "float16",
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "vocab_size": 248320,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "mamba_ssm_dtype": "float32",
    "max_position_embeddings": 262144,
    "mtp_num_hidden_layers": 1,
    "partial_rotary_factor": 0.25,
}
NANO_PATTERN = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
NANO: dict[str, Any] = {
    "model_type": "nemotron_h",
    "hidden_size": 2688,
    "num_hidden_layers": 52,
    "hybrid_override_pattern": NANO_PATTERN,
    "vocab_size": 131072,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "mamba_num_heads": 64,
    "mamba_head_dim": 64,
    "n_groups": 8,
    "ssm_state_size": 128,
    "n_routed_experts": 128,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712,
    "max_position_embeddings": 262144,
}
SUPER: dict[str, Any] = {
    **NANO,
    "hidden_size": 4096,
    "num_hidden_layers": 88,
    "hybrid_override_pattern": "MEMEMEM*"
    + "EMEMEMEM*" * 2
    + "EMEMEMEMEM*" * 4
    + "EMEMEMEM*EMEMEMEME",
    "mamba_num_heads": 128,
    "n_routed_experts": 512,
    "num_experts_per_tok": 22,
    "moe_intermediate_size": 2688,
    "moe_latent_size": 1024,
    "moe_shared_expert_intermediate_size": 5376,
    "mtp_hybrid_override_pattern": "*E",
    "num_nextn_predict_layers": 1,
}
NEMOTRON_56B: dict[str, Any] = {
    "model_type": "nemotron_h",
    "hidden_size": 8192,
    "num_hidden_layers": 118,
    "hybrid_override_pattern": "M-M-M-M*-" + "M-M-M-M-M*-" * 9 + "M-M-M-M-M-",
    "intermediate_size": 32768,
    "vocab_size": 131072,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "attention_head_dim": 128,
    "mamba_num_heads": 256,
    "mamba_head_dim": 64,
    "n_groups": 8,
    "ssm_state_size": 256,
    "max_position_embeddings": 8192,
}
NANO_4B: dict[str, Any] = {
    "model_type": "nemotron_h",
    "hidden_size": 3136,
    "hybrid_override_pattern": "M-M-M-MM-M-M*-M-M*-M-M-M*-M-M-MM*-MMM-M-M-",
    "intermediate_size": 12544,
    "vocab_size": 131072,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "mamba_num_heads": 96,
    "mamba_head_dim": 80,
}
JAMBA: dict[str, Any] = {
    "model_type": "jamba",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 65536,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "mamba_dt_rank": 256,
    "tie_word_embeddings": False,
}
JAMBA_3B: dict[str, Any] = {
    **JAMBA,
    "hidden_size": 2560,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 20,
    "num_key_value_heads": 1,
    "num_experts": 1,
    "num_experts_per_tok": 1,
    "attn_layer_period": 14,
    "attn_layer_offset": 7,
    "mamba_dt_rank": 160,
    "tie_word_embeddings": True,
}
_GRANITE: dict[str, Any] = {
    "model_type": "granitemoehybrid",
    "vocab_size": 100352,
    "tie_word_embeddings": True,
    "num_hidden_layers": 40,
    "layer_types": mamba_at(40, {5, 15, 25, 35}),
    "mamba_n_groups": 1,
    "mamba_d_state": 128,
    "mamba_d_head": 64,
    "position_embedding_type": "nope",
    "max_position_embeddings": 131072,
}
GRANITE_SMALL: dict[str, Any] = {
    **_GRANITE,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 72,
    "num_experts_per_tok": 10,
    "intermediate_size": 768,
    "shared_intermediate_size": 1536,
    "mamba_n_heads": 128,
}
GRANITE_TINY: dict[str, Any] = {
    **_GRANITE,
    "hidden_size": 1536,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "num_local_experts": 64,
    "num_experts_per_tok": 6,
    "intermediate_size": 512,
    "shared_intermediate_size": 1024,
    "mamba_n_heads": 48,
}
GRANITE_MICRO: dict[str, Any] = {
    **_GRANITE,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "shared_intermediate_size": 8192,
    "mamba_n_heads": 64,
}
GRANITE_DENSE: dict[str, Any] = {
    **_GRANITE,
    "hidden_size": 2560,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "shared_intermediate_size": 8192,
    "layer_types": ["attention"] * 40,
    "position_embedding_type": "rope",
}
FALCON_MAMBA: dict[str, Any] = {
    "model_type": "falcon_mamba",
    "hidden_size": 4096,
    "intermediate_size": 8192,
    "num_hidden_layers": 64,
    "vocab_size": 65024,
    "state_size": 16,
    "time_step_rank": 256,
    "expand": 16,
    "tie_word_embeddings": False,
}

# Elements of the e_score_correction_bias of Nemotron's routers, which the published counts of
# that family leave out (a buffer in its modelling code): experts * layers with experts.
NANO_BIAS = 128 * 23
SUPER_BIAS = 512 * (40 + 1)

TOTALS = {
    "nvidia/Nemotron-H-56B-Base-8K": (NEMOTRON_56B, 56_324_350_464),
    "nvidia/NVIDIA-Nemotron-3-Nano-4B-BF16": (NANO_4B, 3_973_556_832),
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (NANO, 31_577_937_344 + NANO_BIAS),
    "ai21labs/Jamba-v0.1": (JAMBA, 51_570_323_328),
    "ai21labs/AI21-Jamba-Large-1.6": (
        {
            **JAMBA,
            "hidden_size": 8192,
            "intermediate_size": 24576,
            "num_hidden_layers": 72,
            "num_attention_heads": 64,
            "mamba_dt_rank": 512,
        },
        398_555_145_696,
    ),
    "ai21labs/AI21-Jamba2-3B": (JAMBA_3B, 3_029_337_472),
    "ai21labs/AI21-Jamba-Reasoning-3B": (
        {**JAMBA_3B, "tie_word_embeddings": False},
        3_197_109_632,
    ),
    "ibm-granite/granite-4.0-h-small": (GRANITE_SMALL, 32_207_337_984),
    "ibm-granite/granite-4.0-h-tiny": (GRANITE_TINY, 6_939_037_248),
    "ibm-granite/granite-4.0-tiny-preview": (
        {**GRANITE_TINY, "vocab_size": 49160, "num_local_experts": 62},
        6_671_539_776,
    ),
    "ibm-granite/granite-4.0-h-micro": (GRANITE_MICRO, 3_191_396_096),
    "ibm-granite/granite-4.0-h-1b": (
        {
            **GRANITE_MICRO,
            "hidden_size": 1536,
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "shared_intermediate_size": 4096,
            "mamba_n_heads": 48,
        },
        1_461_538_368,
    ),
    "ibm-granite/granite-4.0-micro": (GRANITE_DENSE, 3_402_836_480),
    "ibm-granite/granite-4.0-1b": (
        {
            **GRANITE_DENSE,
            "hidden_size": 2048,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "shared_intermediate_size": 4096,
        },
        1_631_750_144,
    ),
    "tiiuae/falcon-mamba-7b": (FALCON_MAMBA, 7_272_665_088),
    # total_size 37,087,995,136 of the index / 2 bytes: the pruned model kept no MTP block
    "bryce-hoehn/Qwen3.5-18B-REAP-A3B-Coding": (QWEN35_REAP, 18_543_997_568),
}


@pytest.mark.parametrize("hub_id", TOTALS)
def test_total_is_the_published_count(hub_id: str) -> None:
    config, published = TOTALS[hub_id]
    assert count_parameters(read(config)).total == published


STORED = {
    # The MTP block is in the files, but in no field of the config.
    "Qwen/Qwen3-Next-80B-A3B-Instruct": (
        {**QWEN3_NEXT, "num_nextn_predict_layers": 1},
        81_324_862_720,
    ),
    "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16": (SUPER, 123_611_012_096 + SUPER_BIAS),
}


@pytest.mark.parametrize("hub_id", STORED)
def test_stored_is_the_published_count_with_its_mtp_block(hub_id: str) -> None:
    config, published = STORED[hub_id]
    counts = count_parameters(read(config))
    assert counts.stored == published
    assert counts.mtp > 0
    assert counts.total == published - counts.mtp


def test_qwen3_next_says_that_an_mtp_block_may_be_stored() -> None:
    assert any("MTP" in note for note in read(QWEN3_NEXT).notes)


# Parameters of the models that Transformers 5.19 builds on the meta device, buffers not counted.
TRANSFORMERS = {
    "bamba": ({"num_hidden_layers": 32, "intermediate_size": 14336}, 9_992_765_440),
    "bamba with attention": (
        {"num_hidden_layers": 2, "intermediate_size": 14336, "attn_layer_indices": [1]},
        1_546_197_888,
    ),
    "falcon_h1": (
        {
            "num_hidden_layers": 32,
            "intermediate_size": 14336,
            "mamba_d_ssm": 1024,
            "mamba_n_heads": 128,
            "mamba_d_head": 8,
        },
        8_514_961_408,
    ),
    "mamba2": ({"num_hidden_layers": 64, "vocab_size": 32768}, 7_285_403_648),
    "mamba": (
        {"hidden_size": 768, "num_hidden_layers": 32, "vocab_size": 50280, "time_step_rank": 48},
        159_308_544,
    ),
    "lfm2": (
        {
            "hidden_size": 2560,
            "num_hidden_layers": 3,
            "vocab_size": 65536,
            "layer_types": ["conv", "full_attention", "conv"],
        },
        425_362_080,
    ),
    # 2 layers with 32 experts: `expert_bias` is a buffer there
    "lfm2_moe": (
        {
            "hidden_size": 2048,
            "num_hidden_layers": 4,
            "vocab_size": 65536,
            "layer_types": ["conv", "conv", "full_attention", "conv"],
        },
        987_926_656 + 64,
    ),
    # 8 experts: `e_score_correction_bias` is a buffer there
    "nemotron_h": (
        {
            "num_hidden_layers": 4,
            "hybrid_override_pattern": "M*-E",
            "moe_latent_size": 512,
            "vocab_size": 131072,
        },
        1_531_689_344 + 8,
    ),
    "olmo_hybrid": (
        {
            "hidden_size": 3840,
            "intermediate_size": 11008,
            "num_hidden_layers": 4,
            "vocab_size": 100352,
            "num_attention_heads": 30,
            "num_key_value_heads": 30,
            "linear_key_head_dim": 96,
        },
        1_603_227_636,
    ),
    "qwen3_next with a dense layer": (
        {
            "hidden_size": 2048,
            "num_hidden_layers": 4,
            "vocab_size": 151936,
            "num_attention_heads": 16,
            "mlp_only_layers": [1],
        },
        5_629_797_440,
    ),
    "qwen3_5_moe_text": (
        {
            "hidden_size": 2048,
            "num_hidden_layers": 4,
            "vocab_size": 248320,
            "num_attention_heads": 16,
        },
        4_381_469_760,
    ),
}


@pytest.mark.parametrize("case", TRANSFORMERS)
def test_class_defaults_give_what_transformers_builds(case: str) -> None:
    facts, parameters = TRANSFORMERS[case]
    heads = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}
    heads["vocab_size"] = 128000
    if case.startswith("qwen"):
        heads["num_key_value_heads"] = 2
    config = {**heads, **facts, "model_type": case.split()[0]}
    assert count_parameters(read(config)).total == parameters


# Parameter bytes of one rank, as vLLM 0.32.0's own model code allocates them on the meta device.
RANK_BYTES = {
    "bryce-hoehn/Qwen3.5-18B-REAP-A3B-Coding": (
        QWEN35_REAP,
        {1: 37_087_997_056, 2: 18_554_741_056, 8: 4_670_527_696},
    ),
    "QuantTrio/Qwen3-Coder-Next-E336": (
        {**QWEN3_NEXT, "num_experts": 336},
        {1: 106_163_961_600, 2: 53_115_318_656, 8: 13_347_710_816},
    ),
    "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-FP8 (as if unquantized)": (
        SUPER,
        {1: 241_337_466_880, 2: 121_088_569_344, 8: 30_914_479_104},
    ),
    "nvidia/Nemotron-H-56B-Base-8K": (NEMOTRON_56B, {1: 112_648_728_576, 8: 14_082_797_056}),
    "ai21labs/Jamba-v0.1": (JAMBA, {1: 103_147_986_688, 2: 51_575_316_224, 8: 12_895_813_376}),
    # One group of B and C for all heads: every rank keeps it whole.
    "ibm-granite/granite-4.0-h-tiny": (GRANITE_TINY, {1: 13_878_077_952, 2: 6_957_297_408}),
    "tiiuae/falcon-mamba-7b": (FALCON_MAMBA, {1: 14_562_107_392, 2: 7_281_319_936}),
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


def test_rotary_table_covers_a_quarter_of_each_head() -> None:
    # vLLM 0.32.0 registers one buffer of 262144 x 64 for both.
    for config in (QWEN3_NEXT, QWEN35_REAP):
        (table,) = read(config).rotary
        assert (table.positions, table.rotary_dim) == (262144, 64)


@pytest.mark.parametrize("config", [NANO, JAMBA, GRANITE_TINY, FALCON_MAMBA])
def test_families_without_positions_have_no_rotary_table(config: dict[str, Any]) -> None:
    assert read(config).rotary == ()


def test_dense_granite_has_a_rotary_table() -> None:
    (table,) = read(GRANITE_DENSE).rotary
    assert (table.positions, table.rotary_dim) == (131072, 64)


# Tensor name patterns and counts of the safetensors index of
# bryce-hoehn/Qwen3.5-18B-REAP-A3B-Coding at commit 1dfb29a (norms without a name of their own
# in the inventory left out).
INDEX = {
    "lm_head.weight": 1,
    "model.language_model.embed_tokens.weight": 1,
    "model.language_model.layers.{layer}.linear_attn.A_log": 30,
    "model.language_model.layers.{layer}.linear_attn.conv1d.weight": 30,
    "model.language_model.layers.{layer}.linear_attn.dt_bias": 30,
    "model.language_model.layers.{layer}.linear_attn.in_proj_a.weight": 30,
    "model.language_model.layers.{layer}.linear_attn.in_proj_b.weight": 30,
    "model.language_model.layers.{layer}.linear_attn.in_proj_qkv.weight": 30,
    "model.language_model.layers.{layer}.linear_attn.in_proj_z.weight": 30,
    "model.language_model.layers.{layer}.linear_attn.norm.weight": 30,
    "model.language_model.layers.{layer}.linear_attn.out_proj.weight": 30,
    "model.language_model.layers.{layer}.mlp.experts.{expert}.down_proj.weight": 5120,
    "model.language_model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight": 5120,
    "model.language_model.layers.{layer}.mlp.experts.{expert}.up_proj.weight": 5120,
    "model.language_model.layers.{layer}.mlp.gate.weight": 40,
    "model.language_model.layers.{layer}.mlp.shared_expert.down_proj.weight": 40,
    "model.language_model.layers.{layer}.mlp.shared_expert.gate_proj.weight": 40,
    "model.language_model.layers.{layer}.mlp.shared_expert.up_proj.weight": 40,
    "model.language_model.layers.{layer}.mlp.shared_expert_gate.weight": 40,
    "model.language_model.layers.{layer}.self_attn.k_norm.weight": 10,
    "model.language_model.layers.{layer}.self_attn.k_proj.weight": 10,
    "model.language_model.layers.{layer}.self_attn.o_proj.weight": 10,
    "model.language_model.layers.{layer}.self_attn.q_norm.weight": 10,
    "model.language_model.layers.{layer}.self_attn.q_proj.weight": 10,
    "model.language_model.layers.{layer}.self_attn.v_proj.weight": 10,
    "model.language_model.norm.weight": 1,
}


def test_qwen3_5_names_and_counts_are_those_of_a_real_index() -> None:
    spec = read(QWEN35_REAP)
    found: dict[str, int] = {}
    for entry in inventory(spec):
        if entry.section in ("mtp", "stored") or entry.tensor.role == "norms.hidden":
            continue
        name = tensor_name(spec.naming, entry.tensor.role, entry.section)
        found[name] = found.get(name, 0) + entry.count * entry.tensor.copies
    assert found == INDEX


# Modules that nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4 excludes in its hf_quant_config.json.
@pytest.mark.parametrize(
    ("role", "module"),
    [
        ("attention.linear.in", "backbone.layers.{layer}.mixer.in_proj"),
        ("attention.linear.in_groups", "backbone.layers.{layer}.mixer.in_proj"),
        ("attention.linear.out", "backbone.layers.{layer}.mixer.out_proj"),
        ("attention.q", "backbone.layers.{layer}.mixer.q_proj"),
        ("attention.o", "backbone.layers.{layer}.mixer.o_proj"),
    ],
)
def test_nemotron_modules_have_their_published_names(role: str, module: str) -> None:
    assert module_name("nemotron_h", role) == module


def test_mtp_projection_of_qwen_stands_beside_its_layers() -> None:
    assert module_name("qwen3_5", "other.mtp_projection", "mtp") == "mtp.fc"


def test_states_are_float32_where_the_config_says_so() -> None:
    # vLLM 0.32.0 plans ["bfloat16", "float32"] pages for these and ["bfloat16", "bfloat16"] below.
    delta = read(QWEN35_REAP).block("linear").mixers[0]
    assert isinstance(delta, GatedDeltaNet)
    assert delta.state_dtype == "float32"
    # Nemotron's class default, which Nemotron-H-56B leaves out.
    mamba = read(NEMOTRON_56B).block("mamba").mixers[0]
    assert isinstance(mamba, Mamba2)
    assert mamba.state_dtype == "float32"
    plain = read(QWEN3_NEXT).block("linear").mixers[0]
    assert isinstance(plain, GatedDeltaNet)
    assert plain.state_dtype == ""


def test_state_shapes_are_those_vllm_plans() -> None:
    # Page shapes of nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16: [3, 6144] and [64, 64, 128].
    conv, groups, recurrent = read(NANO).block("mamba").mixers[0].state()
    assert (conv.shape[0], conv.shape[1] + groups.shape[1]) == (3, 6144)
    assert recurrent.shape == (64, 64, 128)
    # ai21labs/Jamba-v0.1: [3, 8192] and [8192, 16].
    mixer = read(JAMBA).block("mamba_dense").mixers[0]
    assert isinstance(mixer, Mamba1)
    assert [part.shape for part in mixer.state()] == [(3, 8192), (8192, 16)]


def test_pattern_places_every_layer() -> None:
    layout = read(NANO).layout
    letters = {"mamba": "M", "moe": "E", "attention": "*", "mlp": "-"}
    assert "".join(letters[name] for name in layout) == NANO_PATTERN


def test_listed_layers_read_like_the_pattern() -> None:
    words = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}
    listed = {key: value for key, value in NANO.items() if key != "hybrid_override_pattern"}
    listed["layers_block_type"] = [words[letter] for letter in NANO_PATTERN]
    del listed["num_hidden_layers"]
    assert read(listed).layout == read(NANO).layout


def test_jamba_layers_stand_where_its_periods_put_them() -> None:
    layout = read(JAMBA).layout
    assert [i for i, name in enumerate(layout) if name.startswith("attention")] == [4, 12, 20, 28]
    assert [i for i, name in enumerate(layout) if name.endswith("moe")] == list(range(1, 32, 2))


def test_attention_free_model_says_that_its_context_is_assumed() -> None:
    # vLLM 0.32.0 derives max_model_len 2048 for tiiuae/falcon-mamba-7b.
    spec = read(FALCON_MAMBA)
    assert spec.max_context == 2048
    assert spec.notes


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**NANO, "hybrid_override_pattern": NANO_PATTERN + "Q"}, "unknown letters"),
        ({**NANO, "hybrid_override_pattern": NANO_PATTERN[:-1]}, "51 layers"),
        ({**NANO, "hybrid_override_pattern": "M" * 5000}, "more than 4096"),
        ({k: v for k, v in NANO.items() if k != "hybrid_override_pattern"}, "missing"),
        ({**NANO, "mamba_ssm_cache_dtype": "int3"}, "int3"),
        ({**NANO, "num_nextn_predict_layers": 1000}, "at most 16"),
        ({**QWEN3_NEXT, "layer_types": ["linear_attention"]}, "1 entries for 48"),
        ({**QWEN3_NEXT, "layer_types": [7] * 48}, "unknown kind"),
        ({**QWEN3_NEXT, "layer_types": ["sliding_attention"] * 48}, "sliding_attention"),
        ({**QWEN3_NEXT, "mlp_only_layers": [48]}, "indices of 48"),
        ({**QWEN3_NEXT, "partial_rotary_factor": 7}, "partial_rotary_factor"),
        ({**QWEN35_REAP, "mtp_num_hidden_layers": 99}, "at most 16"),
        ({**JAMBA, "attn_layer_offset": 8}, "smaller than"),
        ({**JAMBA, "expert_layer_period": 0}, "expert_layer_period"),
        ({**GRANITE_TINY, "mamba_d_head": 32}, "have 64"),
        ({**GRANITE_TINY, "mamba_n_heads": 7}, "do not divide"),
        ({**GRANITE_TINY, "layer_types": mamba_at(39, set())}, "39 entries"),
        ({"model_type": "mamba2", "num_heads": 3}, "expand"),
        (
            {
                "model_type": "lfm2",
                "hidden_size": 2048,
                "num_attention_heads": 32,
                "vocab_size": 9,
                "num_hidden_layers": 2,
            },
            "layer_types is missing",
        ),
    ],
)
def test_contradictions_are_refused_with_the_field_named(
    config: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidSpecError, match=words):
        read(config)


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
    for name in MODULES["hybrid"]:
        reader = find_reader(name)
        assert reader is not None
        assert reader.__module__ == "moesize.readers.hf.hybrid"
    registered = {
        name for name, reader in READERS.items() if reader.__module__ == "moesize.readers.hf.hybrid"
    }
    assert registered == set(MODULES["hybrid"])
