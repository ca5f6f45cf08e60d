"""Readers of dense decoders and encoders, against what was published and what engines build.

fixtures/dense_models.jsonl, one model a line:
  config         the facts of the hub repository's config.json that the reader looks at
  restated       true: the config was written down from general knowledge of the model, not from its
                 file; only the published total vouches for it, and its context is a stand-in
  published      element count of the published files (the hub's safetensors.total, or the index
                 metadata), and `how` it is made up; see `test_published_total`
  vllm_*         what vLLM 0.32.0 builds for it on one rank, unquantized: parameter elements,
                 buffer bytes, KV cache as [layers, window or 0, head size, KV heads]
  index_*        total_size and tensor names of the repository's model.safetensors.index.json
fixtures/dense_classes.jsonl: parameter totals, and some tensor names, of transformers 5.19 models
built from small made-up configs on the meta device.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from moesize.core.errors import InvalidSpecError, UnsupportedError
from moesize.core.inventory import count_parameters, inventory
from moesize.core.naming import names_of, tensor_name
from moesize.readers.hf.read import spec_from_config
from moesize.readers.hf.registry import MODULES, READERS, find_reader

if TYPE_CHECKING:
    from moesize.core.model_spec import ModelSpec

FIXTURES = Path(__file__).parent / "fixtures"
MY_MODULES = ("dense", "llama_like", "dense_hub", "nas", "gemma", "classic", "encoder")


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FIXTURES / name).read_text().splitlines()]


MODELS = _rows("dense_models.jsonl")
CLASSES = _rows("dense_classes.jsonl")

BASE = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 704,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
}


def read(config: dict[str, Any]) -> ModelSpec:
    """The spec of a config."""
    return spec_from_config(config, file="config.json")


def having(key: str) -> list[Any]:
    """Models that state a key, as parameters of a test."""
    return [pytest.param(row, id=row["hub_id"]) for row in MODELS if key in row]


def stored_names(spec: ModelSpec) -> Counter[str]:
    """Tensor names with indices replaced by `*`, and how many there are of each.

    Parts of a fused projection have one name and count once.
    """
    names = names_of(spec.naming)
    full = set()
    for entry in inventory(spec):
        role = entry.tensor.role
        if entry.section in ("stored", "mtp"):
            continue
        patterns = [tensor_name(spec.naming, role, entry.section)]
        if role in ("norms.hidden", "norms.hidden.bias"):
            own = (names.encoder_norms if entry.section == "encoder" else ()) or names.norms
            patterns = [patterns[0].replace("{norm}", own[i]) for i in range(entry.tensor.copies)]
        for pattern in patterns:
            many = "{expert}" in pattern or "{index}" in pattern
            for layer in entry.layers or (0,):
                for copy in range(entry.tensor.copies if many else 1):
                    full.add(pattern.format(layer=layer, expert=copy, index=copy))
    return Counter(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in full)


@pytest.mark.parametrize("row", having("published"))
def test_published_total(row: dict[str, Any]) -> None:
    """total: nothing else is stored. stored: with MTP layers or registered buffers.

    tied_head: files (or the index's own count) hold the tied head a second time, which a config
    cannot tell. buffers: conversions of 2023 stored d/2 inverse frequencies in every layer.
    """
    spec = read(row["config"])
    counts = count_parameters(spec)
    block = spec.block(spec.layout[0])
    expected = {
        "total": counts.total,
        "stored": counts.stored,
        "tied_head": counts.total + spec.embedding.vocab_size * spec.hidden_size,
        "buffers": counts.total + spec.num_layers * getattr(block.mixers[0], "head_dim", 0) // 2,
    }
    assert expected[row["how"]] == row["published"]
    assert row["how"] != "tied_head" or spec.embedding.tied


@pytest.mark.parametrize("row", having("vllm_elements"))
def test_elements_as_vllm_builds_them(row: dict[str, Any]) -> None:
    """vLLM pads the vocabulary to a multiple of 64, in the embedding and in an untied head."""
    spec = read(row["config"])
    tables = 1 if spec.embedding.tied else 2
    padding = -spec.embedding.vocab_size % 64 * spec.hidden_size * tables
    assert count_parameters(spec).total + padding == row["vllm_elements"]


@pytest.mark.parametrize("row", having("vllm_kv"))
def test_cache_as_vllm_builds_it(row: dict[str, Any]) -> None:
    """Layers, windows, head sizes and KV heads of every group."""
    spec = read(row["config"])
    groups: Counter[tuple[int, int, int]] = Counter()
    for name in spec.layout:
        for mixer in spec.block(name).mixers:
            for cache in mixer.cache():
                groups[(cache.window or 0, cache.key_size, cache.heads)] += 1
    assert sorted([count, *key] for key, count in groups.items()) == row["vllm_kv"]


@pytest.mark.parametrize("row", having("vllm_buffer_bytes"))
def test_rotary_tables_as_vllm_allocates_them(row: dict[str, Any]) -> None:
    """What is left of the buffers is four float32 scales per layer with attention.

    Beyond them: Gemma's 2-byte embedding scale; the inverse frequencies (float32) of models that
    run through vLLM's transformers backend.
    """
    spec = read(row["config"])
    tables = sum(table.positions * table.rotary_dim * table.copies for table in spec.rotary)
    attention = sum(1 for name in spec.layout if spec.block(name).mixers)
    beyond = {"gemma": 2, "smollm3": 512, "olmo2": 512}.get(spec.model_type, 0)
    assert 2 * tables + 16 * attention + beyond == row["vllm_buffer_bytes"]


@pytest.mark.parametrize("row", having("index_tensors"))
def test_names_and_bytes_as_in_the_index_file(row: dict[str, Any]) -> None:
    """Every stored tensor is found under its name, as often as it occurs, and none is left over."""
    spec = read(row["config"])
    names = stored_names(spec)
    if spec.embedding.tied and "lm_head.weight" in row["index_tensors"]:
        names["lm_head.weight"] = 1
    assert names == row["index_tensors"]
    element_bytes = 4 if row["hub_id"] == "mattshumer/Reflection-Llama-3.1-70B" else 2
    assert element_bytes * count_parameters(spec).total == row["index_bytes"]


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=f"{row['model_type']}-{i}") for i, row in enumerate(CLASSES)]
)
def test_totals_of_transformers_classes(row: dict[str, Any]) -> None:
    """Parameters, and for some the tensor names, of the class that transformers builds."""
    spec = read({**row["config"], "model_type": row["model_type"]})
    assert count_parameters(spec).total == row["total"]
    if "tensors" in row:
        assert stored_names(spec) == row["tensors"]


def test_unused_shared_weights_of_gemma_3n_are_stored() -> None:
    """E4B and E2B have the same towers: their published totals differ by the text parts alone."""
    large = read({"model_type": "gemma3n_text"})
    small = read(
        {
            "model_type": "gemma3n_text",
            "num_hidden_layers": 30,
            "intermediate_size": 8192,
            "num_kv_shared_layers": 10,
        }
    )
    stored = [count_parameters(spec).stored for spec in (large, small)]
    assert stored[0] - stored[1] == 7_849_978_192 - 5_439_438_272


def test_unused_shared_weights_of_gemma_4_are_stored() -> None:
    """google/gemma-4-E4B-it: published 7,996,156,490; transformers 5.19 builds 7,941,100,832."""
    spec = read(
        {
            "model_type": "gemma4_text",
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 7,
            "num_hidden_layers": 42,
            "num_key_value_heads": 2,
            "num_kv_shared_layers": 18,
        }
    )
    counts = count_parameters(spec)
    assert counts.stored - counts.total == 7_996_156_490 - 7_941_100_832


def test_gemma_4_with_experts_beside_the_mlp() -> None:
    """Text part of google/gemma-4-26B-A4B as transformers 5.19 builds it, and its 30 scalars."""
    spec = read(
        {
            "model_type": "gemma4_text",
            "attention_k_eq_v": True,
            "enable_moe_block": True,
            "global_head_dim": 512,
            "head_dim": 256,
            "hidden_size": 2816,
            "hidden_size_per_layer_input": 0,
            "intermediate_size": 2112,
            "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5,
            "max_position_embeddings": 262144,
            "moe_intermediate_size": 704,
            "num_attention_heads": 16,
            "num_experts": 128,
            "num_global_key_value_heads": 2,
            "num_hidden_layers": 30,
            "num_key_value_heads": 8,
            "sliding_window": 1024,
            "top_k_experts": 8,
            "vocab_size": 262144,
        }
    )
    counts = count_parameters(spec)
    assert counts.total == 25_233_141_760
    assert counts.stored == counts.total + 30
    # vLLM 0.32.0: one table of 256 for local layers, one of 512 for global ones
    assert [table.rotary_dim for table in spec.rotary] == [256, 512]


def test_bert_base_is_the_bare_model_with_its_pooler() -> None:
    """109,482,240 parameters, as transformers' BertModel counts them; no cache at all."""
    spec = read(
        {
            "model_type": "bert",
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "vocab_size": 30522,
            "max_position_embeddings": 512,
        }
    )
    assert count_parameters(spec).total == 109_482_240
    assert spec.layout == ()
    assert spec.max_context == 512


def test_roberta_cannot_use_its_first_positions() -> None:
    """FacebookAI/roberta-base has 514 rows and takes 512 tokens."""
    config = {**BASE, "model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}
    assert read(config).max_context == 512


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        # A stated window holds for every layer; null and 0 are none.
        ({"sliding_window": 64}, [64] * 4),
        ({"sliding_window": None}, [None] * 4),
        ({"sliding_window": 0}, [None] * 4),
        # MistralConfig's own default is 4096
        ({"model_type": "mistral"}, [4096] * 4),
        ({"model_type": "mistral", "sliding_window": None}, [None] * 4),
        # Qwen2Config: only with use_sliding_window, from max_window_layers on
        ({"model_type": "qwen2", "sliding_window": 64}, [None] * 4),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 64,
                "use_sliding_window": True,
                "max_window_layers": 3,
            },
            [None, None, None, 64],
        ),
        # Cohere2: the newest token and 64 before it
        ({"model_type": "cohere2", "sliding_window": 64}, [65, 65, 65, None]),
        ({"model_type": "gemma2", "sliding_window": 64}, [64, None, 64, None]),
        ({"model_type": "gemma3_text", "sliding_window": 64}, [64] * 4),
        (
            {"model_type": "exaone4", "sliding_window": 64, "sliding_window_pattern": "LG"},
            [64, None, 64, None],
        ),
        ({"model_type": "exaone4", "sliding_window": None}, [None] * 4),
        (
            {
                "model_type": "olmo3",
                "sliding_window": 64,
                "layer_types": ["full_attention"] * 3 + ["sliding_attention"],
            },
            [None, None, None, 64],
        ),
    ],
)
def test_windows(config: dict[str, Any], windows: list[int | None]) -> None:
    """As the config classes of transformers 5.19 and vLLM 0.32.0 derive them."""
    spec = read({**BASE, **config})
    got = [spec.block(name).mixers[0].cache()[0].window for name in spec.layout]
    assert got == windows


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({}, 512),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 512),
        ({"rope_scaling": {"type": "linear", "factor": 2.5}}, 1280),
        (
            {
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 128,
                }
            },
            512,
        ),
        # Phi-3 128k: a table of the original length, and one of the long length
        (
            {
                "model_type": "phi3",
                "original_max_position_embeddings": 64,
                "rope_scaling": {"type": "longrope"},
            },
            576,
        ),
    ],
)
def test_rotary_positions(config: dict[str, Any], positions: int) -> None:
    """Rows of the cos/sin cache: vLLM 0.32.0 model_executor/layers/rotary_embedding."""
    (table,) = read({**BASE, **config}).rotary
    assert table.positions == positions


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"model_type": "qwen", "visual": {"layers": 48}}, UnsupportedError),
        ({"model_type": "chatglm", "inner_hidden_size": 1024}, UnsupportedError),
        ({"model_type": "bert", "is_decoder": True}, UnsupportedError),
        ({"model_type": "minicpm", "num_experts": 8}, InvalidSpecError),
        ({"layer_types": ["full_attention"]}, InvalidSpecError),
        ({"layer_types": ["linear_attention"] * 4}, InvalidSpecError),
        ({"num_key_value_heads": 3}, InvalidSpecError),
        ({"sliding_window": -1}, InvalidSpecError),
        ({"rope_scaling": {"type": "linear", "factor": 1e30}}, InvalidSpecError),
        ({"model_type": "stablelm", "partial_rotary_factor": 7}, InvalidSpecError),
        ({"model_type": "nemotron-nas", "block_configs": [{}]}, InvalidSpecError),
        ({"model_type": "nemotron-nas", "block_configs": [[]] * 4}, InvalidSpecError),
        ({"model_type": "deci", "num_key_value_heads_per_layer": [4, "4", 4, 4]}, InvalidSpecError),
        ({"model_type": "gemma3n_text", "intermediate_size": [1, 2]}, InvalidSpecError),
        ({"model_type": "gemma4_text", "num_kv_shared_layers": 4}, InvalidSpecError),
        ({"model_type": "exaone4", "sliding_window_pattern": "LXG"}, InvalidSpecError),
    ],
)
def test_refusals(config: dict[str, Any], error: type[Exception]) -> None:
    """What is not understood, or cannot be, is refused with a message."""
    with pytest.raises(error, match=r"config\.json"):
        read({**BASE, **config})


@pytest.mark.parametrize("module", MY_MODULES)
def test_registry_lists_what_the_module_reads(module: str) -> None:
    """The table that decides which module to import equals the decorators in it."""
    for name in MODULES[module]:
        find_reader(name)
    full = f"moesize.readers.hf.{module}"
    assert {name for name, reader in READERS.items() if reader.__module__ == full} == set(
        MODULES[module]
    )
