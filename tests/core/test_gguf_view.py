"""GGUF files against llama.cpp itself and against published files.

`tests/golden/gguf_sizes.json` says where its numbers come from: what llama.cpp counted after
loading a file, what its converter and quantizer make of tensors of these shapes, and sizes that
model cards state. Published sizes are stated with few digits, and their metadata depends on the
tokenizer, so they must lie in the band that `gguf_file_bytes` gives, widened by half a digit.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from moesize.api import show
from moesize.core.errors import UnsupportedError
from moesize.core.gguf import assign_types
from moesize.core.gguf_view import (
    count_types,
    gguf_architecture,
    gguf_entries,
    gguf_file_bytes,
    gguf_model_bytes,
    gguf_tensors,
)
from moesize.core.quantization import find_scheme
from moesize.readers.hf.read import spec_from_config

if TYPE_CHECKING:
    from moesize.core.model_spec import ModelSpec

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "gguf_sizes.json").read_text())
UNITS = {"GB": 10**9, "GiB": 2**30}


def read(row: dict[str, Any]) -> ModelSpec:
    """The spec of a row's config facts."""
    name = row.get("hub_id") or row["model"]
    spec = spec_from_config(row["config"], file=name, hub_id=name)
    if row.get("repeats_head"):
        return replace(spec, embedding=replace(spec.embedding, stored_tied_head=True))
    return spec


def spec_of(hub_id: str) -> ModelSpec:
    """The spec of one model of the table."""
    rows = [*GOLDEN["engine"], *GOLDEN["converter"]]
    return read(next(row for row in rows if row["hub_id"] == hub_id))


def named(row: dict[str, Any]) -> str:
    """Test id of a row."""
    return str(row.get("hub_id") or row["model"])


@pytest.mark.parametrize("row", GOLDEN["engine"], ids=named)
def test_what_llama_cpp_counts_after_loading(row: dict[str, Any]) -> None:
    spec = read(row)
    model, tensors = gguf_tensors(spec)
    assert model.architecture == row["architecture"]
    assert sum(prod(tensor.shape) for tensor in tensors) == row["params"]
    assert len(tensors) == row["tensors"]
    got = {file_type: gguf_model_bytes(spec, file_type) for file_type in row["model_bytes"]}
    assert got == row["model_bytes"]


@pytest.mark.parametrize("row", GOLDEN["converter"], ids=named)
def test_what_converter_and_quantizer_make(row: dict[str, Any]) -> None:
    spec = read(row)
    model, tensors = gguf_tensors(spec)
    assert model.architecture == row["architecture"]
    assert len(tensors) == row["tensors"]
    got = {file_type: gguf_model_bytes(spec, file_type) for file_type in row["model_bytes"]}
    assert got == row["model_bytes"]


@pytest.mark.parametrize("row", GOLDEN["published"], ids=named)
def test_published_files(row: dict[str, Any]) -> None:
    spec = read(row)
    for file in row["files"]:
        unit = UNITS[file["unit"]]
        digits = len(str(file["size"]).partition(".")[2])
        half = 0.5 * 10**-digits * unit
        variant = {"imatrix": file.get("imatrix", False), "mtp": file.get("mtp", True)}
        if file.get("is_model_size"):
            low = high = gguf_model_bytes(spec, file["file_type"], **variant)
        else:
            size = gguf_file_bytes(spec, file["file_type"], **variant)
            low, high = size.low, size.high
        assert low - half <= file["size"] * unit <= high + half, file


@pytest.mark.parametrize("file_type", ["Q4_K_M", "IQ3_XS", "bf16", "MXFP4_MOE"])
@pytest.mark.parametrize(
    "hub_id",
    [
        "mistralai/Mixtral-8x7B-v0.1",
        "deepseek-ai/DeepSeek-V3",
        "deepseek-ai/DeepSeek-V4-Flash",
        "zai-org/GLM-4.5",
        "Qwen/Qwen3.5-35B-A3B",
        "google/gemma-4-E4B-it",
        "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    ],
)
def test_entries_are_the_file(hub_id: str, file_type: str) -> None:
    spec = spec_of(hub_id)
    scheme = find_scheme(file_type)
    entries = gguf_entries(spec, scheme)
    model, tensors = gguf_tensors(spec)
    assert sum(item.file_bytes for item in entries) == gguf_model_bytes(spec, scheme.gguf_file_type)
    assert sum(item.entry.elements for item in entries) == sum(prod(t.shape) for t in tensors)
    types = Counter(t.name for t in assign_types(tensors, model, scheme.gguf_file_type))
    counted = Counter(count_types(entries))
    assert counted["F32"] + counted.pop("I32", 0) == types["F32"]
    assert {**counted, "F32": types["F32"]} == types


def test_entries_are_divided_by_type_and_kept() -> None:
    spec = spec_of("mistralai/Mixtral-8x7B-v0.1")
    scheme = find_scheme("Q4_K_M")
    entries = gguf_entries(spec, scheme)
    assert gguf_entries(spec, scheme) is entries
    # ffn_down: Q6_K in the first and last eighth and every third layer between, else Q4_K.
    down = {
        item.dtype: item.entry.layers
        for item in entries
        if item.entry.name == "blk.{layer}.ffn_down_exps.weight"
    }
    assert sorted(down) == ["Q4_K", "Q6_K"]
    assert down["Q6_K"] == (0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31)
    assert sorted(down["Q4_K"] + down["Q6_K"]) == list(range(32))


def test_show_gives_the_exact_size() -> None:
    report = show(spec_of("mistralai/Mixtral-8x7B-v0.1"), quant="Q4_K_M")
    assert report.quantization.weight_bytes == 28_447_727_616
    formats = {row["name"]: row["format"] for row in report.tensor_rows()}
    assert formats["blk.{layer}.attn_v.weight"] == "Q8_0"
    assert formats["blk.{layer}.ffn_gate_inp.weight"] == "float32"
    assert formats["model.norm.weight"] == "float32"


def test_mtp_blocks_can_be_left_out() -> None:
    # The loader's "model size" of GLM-4.7-Flash without its MTP block is 55.786 GiB; see the table.
    row = next(row for row in GOLDEN["published"] if row["model"] == "GLM-4.7-Flash")
    spec = read(row)
    with_block, _ = gguf_tensors(spec)
    without, _ = gguf_tensors(spec, mtp=False)
    assert (with_block.num_layers, without.num_layers) == (48, 47)
    assert gguf_model_bytes(spec, "BF16") > gguf_model_bytes(spec, "BF16", mtp=False)
    scheme = find_scheme("bf16")
    assert sum(item.file_bytes for item in gguf_entries(spec, scheme, mtp=False)) == (
        gguf_model_bytes(spec, "BF16", mtp=False)
    )


def test_published_mxfp4_experts_stay() -> None:
    # unsloth/gpt-oss-20b-GGUF: Q4_K_M 11.6 GB. From a 16-bit copy llama.cpp makes 15.8 GB.
    row = next(row for row in GOLDEN["published"] if row["model"] == "gpt-oss-20b")
    spec = read(row)
    assert round(gguf_file_bytes(spec, "Q4_K_M").estimate / 1e9, 1) == 11.6
    plain = replace(spec, quantization=None)
    assert gguf_model_bytes(plain, "Q4_K_M") == 15_792_128_256


def test_importance_matrix_matters_where_llama_cpp_says() -> None:
    spec = spec_of("Qwen/Qwen3-30B-A3B")
    plain, weighted = (gguf_model_bytes(spec, "IQ4_XS", imatrix=flag) for flag in (False, True))
    assert plain > weighted
    assert gguf_model_bytes(spec, "Q4_K_M", imatrix=True) == gguf_model_bytes(spec, "Q4_K_M")


@pytest.mark.parametrize("hub_id", ["meta-llama/Llama-2-7b-hf", "google/gemma-2b-it"])
def test_file_size_holds_padding_and_metadata(hub_id: str) -> None:
    spec = spec_of(hub_id)
    size = gguf_file_bytes(spec, "Q4_K_M")
    _, tensors = gguf_tensors(spec)
    padding = size.tensor_bytes - gguf_model_bytes(spec, "Q4_K_M")
    assert 0 <= padding < 32 * len(tensors)
    assert size.tensor_bytes < size.low < size.estimate < size.high


@pytest.mark.parametrize(
    ("inner", "architecture"),
    [
        ({"model_type": "llama"}, "llama"),
        ({"model_type": "qwen2"}, "qwen2"),
        ({"model_type": "qwen3", "head_dim": 128}, "qwen3"),
        (
            {
                "model_type": "qwen3_moe",
                "head_dim": 128,
                "num_experts": 8,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 256,
            },
            "qwen3moe",
        ),
    ],
)
def test_wrappers_are_what_they_wrap(inner: dict[str, Any], architecture: str) -> None:
    text = {
        "vocab_size": 32064,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 2,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        **inner,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    }
    config = {
        "model_type": "llava",
        "text_config": text,
        "vision_config": vision,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    spec = spec_from_config(config, file="config.json")
    assert gguf_architecture(spec) == architecture
    _, tensors = gguf_tensors(spec)
    assert not [tensor for tensor in tensors if "vision" in tensor.name]


def test_a_wrapper_says_what_it_wraps_by_its_names() -> None:
    spec = spec_of("internlm/internlm2-chat-7b")
    wrapped = replace(spec, model_type="internvl_chat", naming="internlm2@language_model.")
    assert gguf_architecture(wrapped) == "internlm2"


def test_a_repeated_head_is_kept_but_for_gemma() -> None:
    # conversion/gemma.py leaves lm_head out; llama.cpp loads output.weight where a file has it.
    for hub_id, added in (("Qwen/Qwen3.5-0.8B", 1), ("google/gemma-2b-it", 0)):
        spec = spec_of(hub_id)
        repeated = replace(spec, embedding=replace(spec.embedding, stored_tied_head=True))
        names = [tensor.name for tensor in gguf_tensors(repeated)[1]]
        assert names.count("output.weight") == added


def test_what_llama_cpp_lacks_is_refused() -> None:
    spec = spec_of("mistralai/Mixtral-8x7B-v0.1")
    with pytest.raises(UnsupportedError, match="no converter for model type 'mllama'"):
        gguf_model_bytes(replace(spec, model_type="mllama"), "Q4_K_M")
    with pytest.raises(UnsupportedError, match="awq-4bit is no GGUF file type"):
        gguf_entries(spec, find_scheme("awq-4bit"))


def test_unknown_wrappers_are_refused() -> None:
    experts = replace(spec_of("mistralai/Mixtral-8x7B-v0.1"), model_type="llava", naming="default")
    with pytest.raises(UnsupportedError, match="llava"):
        gguf_architecture(experts)
    state_space = replace(
        spec_of("mistralai/Mamba-Codestral-7B-v0.1"), model_type="llava", naming="default"
    )
    with pytest.raises(UnsupportedError, match="llava"):
        gguf_architecture(state_space)


def test_a_large_mixture_takes_milliseconds() -> None:
    times = []
    for _ in range(3):
        spec = spec_of("deepseek-ai/DeepSeek-V3")
        start = time.process_time()
        gguf_entries(spec, find_scheme("Q4_K_M"))
        times.append(time.process_time() - start)
    assert min(times) < 0.1  # about 4 ms on an idle core
