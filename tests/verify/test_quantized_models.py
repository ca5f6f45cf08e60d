"""Tiny checkpoints in packed formats: the forward pass sees the numbers that the packages mean.

Expected logits are those of transformers' class with the unpacked matrices in place; the values
of the unpacked matrices are held against the packages in test_dequantize.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from moesize.readers.hf.read import spec_from_config
from moesize.verify.forward import ForwardModel, Numerics
from moesize.verify.forward.model import RunOptions
from verify import tiny

State = dict[str, torch.Tensor]
# A matrix (out, in) -> its packed tensors by suffix, and its values after unpacking.
Packer = Callable[[torch.Tensor], tuple[State, torch.Tensor]]


def pack_words(codes: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Numbers of `bits` into int32 words along a dimension, the lowest bits first."""
    per_word = 32 // bits
    grouped = codes.long().movedim(dim, -1).unflatten(-1, (-1, per_word))
    words = (grouped << (torch.arange(per_word) * bits)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32).movedim(-1, dim)


def gptq(weight: torch.Tensor) -> tuple[State, torch.Tensor]:
    """Symmetric 4-bit groups of 16, as GPTQModel writes them."""
    groups = weight.unflatten(1, (-1, 16))
    scale = (groups.abs().amax(-1, keepdim=True) / 7).half().float()
    codes = (groups / scale).round().clamp(-8, 7)
    values = (codes * scale).flatten(1)
    zero = torch.full((groups.shape[1], weight.shape[0]), 7)
    parts = {
        ".qweight": pack_words((codes + 8).flatten(1).T, 4, 0),
        ".scales": scale[..., 0].T.half(),
        ".qzeros": pack_words(zero, 4, 1),
        ".g_idx": (torch.arange(weight.shape[1]) // 16).to(torch.int32),
    }
    return parts, values


def fp8_block(weight: torch.Tensor) -> tuple[State, torch.Tensor]:
    """Tiles of 16 x 16 with an inverse scale, as DeepSeek-V3 writes them."""
    rows, cols = -(-weight.shape[0] // 16), -(-weight.shape[1] // 16)
    scale = torch.rand(rows, cols) * 0.01 + 0.005
    wide = scale.repeat_interleave(16, 0).repeat_interleave(16, 1)
    wide = wide[: weight.shape[0], : weight.shape[1]]
    packed = (weight / wide).clamp(-448, 448).to(torch.float8_e4m3fn)
    return {".weight": packed, ".weight_scale_inv": scale}, packed.float() * wide


def packed_state(state: State, pack: Packer, chosen: Callable[[str], bool]) -> tuple[State, State]:
    """The checkpoint with chosen matrices packed, and the same in plain numbers."""
    packed, plain = dict(state), dict(state)
    for name, tensor in state.items():
        module = name.removesuffix(".weight")
        if tensor.dim() == 2 and module != name and chosen(name):
            parts, values = pack(tensor)
            del packed[name]
            packed |= {module + suffix: part for suffix, part in parts.items()}
            plain[name] = values
    return packed, plain


def is_projection(name: str) -> bool:
    kept = ("embed", "lm_head", "norm", "mlp.gate.weight", "conv1d", "in_proj_ba")
    return not any(part in name for part in kept)


CASES: dict[str, tuple[str, Packer, dict[str, Any]]] = {
    "llama-gptq": (
        "llama",
        gptq,
        {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": True},
    ),
    "mixtral-gptq": (
        "mixtral",
        gptq,
        {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": True},
    ),
    "deepseek_v3-fp8-block": (
        "deepseek_v3",
        fp8_block,
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 16]},
    ),
    "qwen3_moe-fp8-block": (
        "qwen3_moe",
        fp8_block,
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 16]},
    ),
}


def expected_logits(model: torch.nn.Module, plain: State, tokens: torch.Tensor) -> torch.Tensor:
    """The library's logits with the given matrices, loaded through its own files."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    with TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        contiguous = {name: tensor.contiguous() for name, tensor in plain.items()}
        save_file(contiguous, Path(folder) / "model.safetensors", {"format": "pt"})
        again = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
    with torch.no_grad():
        return again.eval()(tokens, use_cache=False).logits


@pytest.mark.parametrize("name", sorted(CASES))
def test_logits_of_a_packed_checkpoint(name: str) -> None:
    model_type, pack, quantization = CASES[name]
    family = next(f for f in tiny.FAMILIES if f.id == model_type)
    with TemporaryDirectory() as folder:
        model, config = tiny.save(family, Path(folder))
        state = tiny.state_of(Path(folder))
    chosen = (
        is_projection
        if "mixtral" not in name
        else (lambda name: is_projection(name) and "block_sparse_moe.gate" not in name)
    )
    packed, plain = packed_state(state, pack, chosen)
    tokens = torch.randint(3, 96, (2, 11))
    expected = expected_logits(model, plain, tokens)
    spec = spec_from_config({**config, "quantization_config": quantization}, file="config.json")
    check(spec, config, packed, tokens, expected)


def test_logits_of_gpt_oss_with_packed_experts() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    # Widths of whole groups of 32.
    family = next(f for f in tiny.FAMILIES if f.id == "gpt_oss")
    family = tiny.Family("gpt_oss", {**family.config, "intermediate_size": 64, "hidden_size": 32})
    with TemporaryDirectory() as folder:
        model, config = tiny.save(family, Path(folder))
        state = tiny.state_of(Path(folder))
    packed, plain = dict(state), dict(state)
    for name, tensor in state.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, inputs, outputs = tensor.shape
            blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
            scales = torch.randint(122, 126, (experts, outputs, inputs // 32), dtype=torch.uint8)
            del packed[name]
            packed |= {name + "_blocks": blocks, name + "_scales": scales}
            plain[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
            assert plain[name].shape == tensor.shape
    tokens = torch.randint(3, 96, (2, 11))
    expected = expected_logits(model, plain, tokens)
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
    check(spec, config, packed, tokens, expected)


def check(
    spec: Any, config: dict[str, Any], packed: State, tokens: torch.Tensor, expected: torch.Tensor
) -> None:
    for path in ("looped", "grouped"):
        options = RunOptions(experts=path)
        numerics = Numerics.from_config(config, spec)
        model = ForwardModel(spec, numerics, packed, options=options)
        found = model.logits(model.prefill(tokens))
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
