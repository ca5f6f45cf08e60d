"""A rank computes the same from the slices that loading reads as from whole tensors it cuts itself.

Every family; both ranks meet in every sum, so that a wrong row of one shows in both.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from moesize.core.checkpoint import published
from moesize.core.errors import UnsupportedError
from moesize.core.model_spec import ModelSpec
from moesize.readers.hf.read import spec_from_config
from moesize.verify.file_tensors import file_tensors
from moesize.verify.forward import ForwardModel, Numerics
from moesize.verify.loading import load
from moesize.verify.safetensors_files import open_checkpoint
from verify import tiny
from verify.ranks import logits_of_ranks
from verify.test_quantized_models import Packer, fp8_block, gptq, is_projection, packed_state

State = dict[str, torch.Tensor]


def slices(spec: ModelSpec, state: State, size: int) -> list[State]:
    """What each rank loads of a checkpoint."""
    tensors = [
        tensor._replace(dtype="float32") if tensor.dtype == "bfloat16" else tensor
        for tensor in file_tensors(spec, published(spec))
    ]
    out = []
    with TemporaryDirectory() as folder:
        save_file({k: v.contiguous() for k, v in state.items()}, Path(folder) / "model.safetensors")
        files = open_checkpoint(Path(folder))
        for rank in range(size):
            loaded = load(files, tensors, rank=rank, size=size)
            out.append({**constants(state), **loaded.companions, **loaded.state})
    return out


def constants(state: State) -> State:
    """What the inventory counts as stored only, and no rank cuts."""
    return {name: tensor for name, tensor in state.items() if name.endswith("layer_scalar")}


def made(family: tiny.Family) -> tuple[ModelSpec, dict[str, Any], State]:
    with TemporaryDirectory() as folder:
        _, config = tiny.save(family, Path(folder))
        state = tiny.state_of(Path(folder))
    return spec_from_config(config, file="config.json"), config, state


def check(spec: ModelSpec, config: dict[str, Any] | Numerics, state: State, size: int) -> None:
    numerics = config
    if not isinstance(config, Numerics):
        numerics = Numerics.from_config(config, spec)
    assert isinstance(numerics, Numerics)
    ids = torch.randint(3, 96, (2, 8))
    cut = logits_of_ranks(spec, numerics, slices(spec, state, size), ids, cut=True)
    own = logits_of_ranks(spec, numerics, [state] * size, ids, cut=False)
    model = ForwardModel(spec, numerics, state)
    first = model.logits(model.prefill(ids[:, :-1]))
    whole = torch.cat((first, model.logits(model.decode(ids[:, -1]))), 1)
    for a, b in zip(cut, own, strict=True):
        assert (a - b).abs().max() <= 1e-6 * b.abs().max()
    assert (torch.cat(cut, -1) - whole).abs().max() < 1e-4 * whole.abs().max()


@pytest.mark.parametrize("family", tiny.FAMILIES, ids=lambda family: family.id)
def test_slices_and_whole_tensors_give_the_same(family: tiny.Family) -> None:
    check(*made(family), 2)


# --- What the library's classes do not write ------------------------------------------------------

# Joined projections of published files; numbers are neutral, only places matter.
HUB = {
    "chatglm2: q, k, v and gate, up one after another": {
        "model_type": "chatglm",
        "hidden_size": 32,
        "num_layers": 2,
        "num_attention_heads": 4,
        "kv_channels": 8,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "ffn_hidden_size": 48,
        "padded_vocab_size": 96,
        "seq_length": 64,
        "add_qkv_bias": True,
    },
    "internlm2: group by group": {
        "model_type": "internlm2",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 96,
        "max_position_embeddings": 64,
        "bias": False,
    },
    "falcon-7b: one key head, which all ranks hold": {
        "model_type": "falcon",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "multi_query": True,
        "vocab_size": 96,
    },
    "falcon-rw: head by head": {
        "model_type": "falcon",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "multi_query": False,
        "parallel_attn": False,
        "alibi": True,
        "bias": True,
        "vocab_size": 96,
    },
    "falcon-11b: group by group, one norm": {
        "model_type": "falcon",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "num_ln_in_parallel_attn": 1,
        "vocab_size": 96,
    },
    "baichuan: all heads alike": {
        "model_type": "baichuan",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "vocab_size": 96,
        "model_max_length": 64,
    },
}


def random_state(spec: ModelSpec) -> State:
    torch.manual_seed(0)
    return {
        tensor.name: torch.randn(tensor.shape) * tensor.shape[-1] ** -0.5
        if len(tensor.shape) > 1
        else 1 + 0.2 * torch.randn(tensor.shape)
        for tensor in file_tensors(spec, published(spec))
    }


@pytest.mark.parametrize("name", HUB)
def test_joined_projections_of_other_files(name: str) -> None:
    spec = spec_from_config({"torch_dtype": "float32", **HUB[name]}, file="config.json")
    check(spec, Numerics.neutral(spec), random_state(spec), 2)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        # A single group of B and C, of which every rank has a copy.
        ("granitemoehybrid", {"mamba_n_groups": 1}),
        ("bamba", {"mamba_n_groups": 1}),
        ("nemotron_h", {"n_groups": 1}),
        # Fewer key heads than ranks.
        ("llama", {"num_key_value_heads": 1}),
        ("phi3", {"num_key_value_heads": 1}),
        ("granite", {"num_key_value_heads": 1}),
    ],
)
def test_what_ranks_do_not_share_out_is_repeated(name: str, facts: dict[str, Any]) -> None:
    family = next(family for family in tiny.FAMILIES if family.id == name)
    check(*made(tiny.Family(name, {**family.config, **facts})), 2)


def test_four_ranks() -> None:
    for name in ("granite", "gpt_oss", "dbrx", "bloom"):
        check(*made(next(family for family in tiny.FAMILIES if family.id == name)), 4)


def test_more_ranks_than_groups_of_a_woven_projection_are_refused() -> None:
    """A rank would hold a half of a group's queries and all of its key: no run of rows."""
    spec = spec_from_config(
        {"torch_dtype": "float32", **HUB["internlm2: group by group"]}, file="config.json"
    )
    with pytest.raises(UnsupportedError, match="2 pieces do not divide into 4 ranks"):
        slices(spec, random_state(spec), 4)


# --- Packed matrices ------------------------------------------------------------------------------


def awq(weight: torch.Tensor) -> tuple[State, torch.Tensor]:
    """Four bits in groups of 16, packed along the outputs."""
    groups = weight.shape[1] // 16
    parts = {
        ".qweight": torch.randint(-(2**31), 2**31, (weight.shape[1], weight.shape[0] // 8)),
        ".qzeros": torch.randint(-(2**31), 2**31, (groups, weight.shape[0] // 8)),
        ".scales": (torch.rand(groups, weight.shape[0]) * 0.02).half(),
    }
    return {k: v if k == ".scales" else v.to(torch.int32) for k, v in parts.items()}, weight


def packed_int4(weight: torch.Tensor) -> tuple[State, torch.Tensor]:
    """compressed-tensors: four bits in groups of 16."""
    out_features, in_features = weight.shape
    words = torch.randint(-(2**31), 2**31, (out_features, in_features // 8))
    return {
        ".weight_packed": words.to(torch.int32),
        ".weight_scale": torch.rand(out_features, in_features // 16) * 0.02,
        ".weight_shape": torch.tensor(weight.shape),
    }, weight


def nf4(weight: torch.Tensor) -> tuple[State, torch.Tensor]:
    """bitsandbytes: blocks of 64 of the flat matrix, which every rank holds whole."""
    facts = {"blocksize": 64, "shape": list(weight.shape)}
    return {
        ".weight": torch.randint(0, 256, (weight.numel() // 2, 1), dtype=torch.uint8),
        ".weight.absmax": torch.rand(weight.numel() // 64) * 0.3,
        ".weight.quant_map": torch.linspace(-1, 1, 16),
        ".weight.quant_state.bitsandbytes__nf4": torch.tensor(
            list(json.dumps(facts).encode()), dtype=torch.uint8
        ),
    }, weight


PACKED: dict[str, tuple[Packer, dict[str, Any]]] = {
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 16, "sym": True}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}),
    "fp8-block": (fp8_block, {"quant_method": "fp8", "weight_block_size": [16, 16]}),
    "nf4": (
        nf4,
        {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": False,
        },
    ),
    "pack": (
        packed_int4,
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {
                        "num_bits": 4,
                        "type": "int",
                        "strategy": "group",
                        "group_size": 16,
                        "symmetric": True,
                    },
                }
            },
            "ignore": ["lm_head"],
        },
    ),
}


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("name", ["llama", "mixtral", "phi3"])
def test_packed_matrices(name: str, kind: str) -> None:
    """Rows and columns of ranks begin in the middle of a file's words, tiles and groups."""
    family = next(family for family in tiny.FAMILIES if family.id == name)
    family = tiny.Family(name, {**family.config, "head_dim": 16, "intermediate_size": 64})
    _, config, state = made(family)
    pack, quantization = PACKED[kind]
    packed, _ = packed_state(state, pack, lambda one: is_projection(one) and "moe.gate." not in one)
    spec = spec_from_config({**config, "quantization_config": quantization}, file="config.json")
    check(spec, config, packed, 2)


def mxfp4_gpt_oss(**changes: Any) -> tuple[ModelSpec, dict[str, Any], State]:
    """gpt-oss: rows of gate and up alternate, inputs of down in blocks of 32."""
    family = next(family for family in tiny.FAMILIES if family.id == "gpt_oss")
    family = tiny.Family("gpt_oss", {**family.config, "intermediate_size": 64, **changes})
    _, config, state = made(family)
    for name in [n for n in state if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = state.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        state[name + "_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
        state[name + "_scales"] = torch.randint(122, 126, shape, dtype=torch.uint8)
    quantization = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
    }
    spec = spec_from_config({**config, "quantization_config": quantization}, file="config.json")
    return spec, config, state


def test_packed_experts_in_one_tensor() -> None:
    check(*mxfp4_gpt_oss(), 2)


def test_groups_that_two_ranks_would_share_are_refused() -> None:
    """48 inputs in groups of 16: a rank of 24 begins in the middle of one."""
    _, config, state = made(next(family for family in tiny.FAMILIES if family.id == "llama"))
    pack, quantization = PACKED["gptq"]
    packed, _ = packed_state(state, pack, is_projection)
    spec = spec_from_config({**config, "quantization_config": quantization}, file="config.json")
    with pytest.raises(UnsupportedError, match="share a group of 16 quantized weights"):
        check(spec, config, packed, 2)


def test_inputs_in_the_order_of_activations_are_refused() -> None:
    family = next(family for family in tiny.FAMILIES if family.id == "llama")
    _, config, state = made(tiny.Family("llama", {**family.config, "intermediate_size": 64}))
    pack, quantization = PACKED["gptq"]
    packed, _ = packed_state(state, pack, is_projection)
    quantization = {**quantization, "desc_act": True}
    spec = spec_from_config({**config, "quantization_config": quantization}, file="config.json")
    with pytest.raises(UnsupportedError, match="act_order"):
        check(spec, config, packed, 2)
