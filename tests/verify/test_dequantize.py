"""Unpacked matrices against what the released packages make of the same bytes.

The fixture was made by tests/fixtures/verify/make_quantized.py, which names packages and versions.
"""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from running import ROOT
from safetensors.torch import load_file

from moesize.core.errors import InvalidInputError, UnsupportedError
from moesize.core.weight_formats import BLOCK_TYPES as BLOCKS
from moesize.core.weight_formats import (
    BitsAndBytes4Bit,
    BitsAndBytesInt8,
    Fp8Block,
    Fp8PerChannel,
    Fp8PerTensor,
    Gguf,
    GroupInt,
    Int8PerChannel,
    Mxfp4,
    Mxfp8,
    Nvfp4,
    PackQuantized,
    Plain,
    WeightFormat,
)
from moesize.verify.forward.dequantize import dequantize, parts_of

GPTQ = {"group_size": 32, "symmetric": False}
FORMATS: dict[str, WeightFormat] = {
    "awq": GroupInt(bits=4, group_size=32, symmetric=False, g_idx_stored=False, packed_along="out"),
    "bnb-fp4": BitsAndBytes4Bit(),
    "bnb-nf4": BitsAndBytes4Bit(),
    "bnb-nf4-nested": BitsAndBytes4Bit(nested=True),
    "bnb-int8": BitsAndBytesInt8(),
    "fp8": Fp8PerTensor(),
    "fp8-block": Fp8Block(block_rows=16, block_cols=16),
    "fp8-channel": Fp8PerChannel(),
    "gpt-oss": Mxfp4(),
    "gptq-2": GroupInt(bits=2, **GPTQ),
    "gptq-3": GroupInt(bits=3, **GPTQ),
    "gptq-4": GroupInt(bits=4, **GPTQ),
    "gptq-4-act": GroupInt(bits=4, act_order=True, **GPTQ),
    "gptq-8": GroupInt(bits=8, **GPTQ),
    "int8-channel": Int8PerChannel(),
    "mxfp4": Mxfp4(),
    "mxfp8": Mxfp8(),
    "nvfp4": Nvfp4(),
    "pack-4-asym": PackQuantized(bits=4, group_size=32, symmetric=False),
    "pack-4-sym": PackQuantized(bits=4, group_size=32),
    "pack-8-sym": PackQuantized(bits=8, group_size=32),
}

# What a package itself computes in float16 or bfloat16.
HALF_PRECISION = {"bnb-int8": 2**-10, "nvfp4": 2**-8}


def cases() -> dict[str, dict[str, torch.Tensor]]:
    """Tensors of each case by their names in a checkpoint, the expected matrix among them."""
    out: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, tensor in load_file(ROOT / "tests/fixtures/verify/quantized.safetensors").items():
        case, _, part = name.partition("/")
        part = part.removeprefix("parts/")
        out[case]["m" + part if part.startswith("_") else f"m.{part}"] = tensor
    return dict(out)


CASES = cases()


def test_every_case_of_the_fixture_has_a_format() -> None:
    assert sorted(CASES) == sorted(FORMATS)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_equal_to_the_released_package(name: str) -> None:
    state = dict(CASES[name])
    expected = state.pop("m.expected")
    found = dequantize(parts_of(state, "m"), FORMATS[name])
    assert found.shape == expected.shape
    tolerance = HALF_PRECISION.get(name, 1e-6)
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_an_unquantized_matrix_is_itself() -> None:
    weight = torch.randn(3, 5)
    assert torch.equal(dequantize({"weight": weight}, Plain(dtype="float32")), weight)


def test_a_missing_part_is_named() -> None:
    with pytest.raises(InvalidInputError, match="lacks its scale"):
        dequantize({"weight": torch.zeros(2, 2)}, Fp8PerTensor())
    with pytest.raises(InvalidInputError, match="no matrix 'm'"):
        parts_of({}, "m")


def test_gguf_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="GGUF"):
        dequantize({"weight": torch.zeros(2, 2)}, Gguf(block_type=BLOCKS["Q4_K"]))
