"""Speculative decoding in vLLM: weights, cache groups and states, against vLLM and against logs.

Golden figures: see test_layouts.py. Logs are public reports, cited by repository and number.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moesize import plan
from moesize.catalog import resolve_model
from moesize.core.checkpoint import published
from moesize.core.deployment import DraftModel, Request
from moesize.core.errors import InvalidDeploymentError, UnsupportedError
from moesize.core.plan import Plan
from moesize.core.units import GIB
from moesize.core.vllm import VllmSettings
from moesize.core.vllm_kv import KvSettings, LayerPages, group_layers

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "vllm_parallel.json").read_text())
ROWS = [dict(zip(GOLDEN["mtp"]["columns"], row, strict=True)) for row in GOLDEN["mtp"]["rows"]]


def planned(model: str, **options: Any) -> Plan:
    options = {"gpu": "h100", "suggest": False, "pp": 1, **options}
    return plan(model, **options)


def draft_bytes(found: Plan, *names: str) -> int:
    names = names or ("weights", "scales", "padding")
    return sum(
        item.size_bytes
        for item in found.gpus[-1].items
        if item.name in [f"draft.{name}" for name in names]
    )


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda row: f"{row['model']}-tp{row['tp']}-{row['kv_dtype']}-{row['guesses']}"
)
def test_mtp_is_that_of_the_engine(row: dict[str, Any]) -> None:
    found = planned(
        row["model"],
        tp=row["tp"],
        mtp=row["guesses"],
        context=row["max_model_len"],
        kv_dtype=None if row["kv_dtype"] == "auto" else row["kv_dtype"],
        kv_cache_memory=40_000_000_000,
        engine_version="0.32.0",
    )
    assert draft_bytes(found) == row["parameter_bytes"]
    assert (found.kv_cache.blocks, found.kv_cache.capacity_tokens) == (row["blocks"], row["tokens"])


# 17 layers of full attention with the MTP layer: a block is 17 pages of 1600 tokens x 2 heads x
# (256 + 256) bytes of FP8.
BLOCK_BYTES = 17 * 1600 * 2 * 512


@pytest.mark.parametrize(
    ("memory_bytes", "blocks", "tokens", "concurrency"),
    [
        pytest.param(int(5.33 * GIB), 205, 300_220, 1.15, id="noonghunna/club-3090 594"),
        # The memory is not logged: it is that of so many blocks.
        pytest.param(424 * BLOCK_BYTES, 424, 620_944, 2.37, id="noonghunna/club-3090 295"),
        pytest.param(425 * BLOCK_BYTES, 425, 622_408, 2.37, id="noonghunna/club-3090 294"),
    ],
)
def test_logged_cache_with_mtp(
    memory_bytes: int, blocks: int, tokens: int, concurrency: float
) -> None:
    found = planned(
        "qwen3.6-27b",
        gpu="rtx-3090",
        tp=2,
        mtp=3,
        context=262144,
        kv_dtype="fp8",
        kv_cache_memory=memory_bytes,
        max_num_seqs=2,
        max_num_batched_tokens=8192,
    ).kv_cache
    assert (found.block_tokens, found.blocks, found.capacity_tokens) == (1600, blocks, tokens)
    assert round(found.max_concurrency, 2) == concurrency


@pytest.mark.parametrize(
    ("model", "options", "block_tokens"),
    [
        pytest.param(
            "qwen3.6-27b", {"tp": 1, "kv_dtype": "fp8"}, 1568, id="noonghunna/club-3090 1047"
        ),
        pytest.param(
            "qwen3.6-27b",
            {"tp": 2, "kv_dtype": "fp8", "spec_tokens": 7},
            1648,
            id="noonghunna/club-3090 1107",
        ),
        pytest.param(
            "qwen3.5-122b-a10b",
            {"tp": 8, "mtp": 3},
            544,
            id="Sandermage/genesis-vllm-patches 24",
        ),
    ],
)
def test_logged_block_size(model: str, options: dict[str, Any], block_tokens: int) -> None:
    # Logged by releases before 0.33, which keeps one more state of gated delta nets.
    options = {"engine_version": "0.32.0", **options}
    found = planned(model, kv_cache_memory=10 * GIB, context=131072, **options)
    assert found.kv_cache.block_tokens == block_tokens


def test_padding_layers_beside_a_draft_of_five() -> None:
    """noonghunna/club-3090 PR 96: 48 recurrent, 16 full, 5 draft layers; 2 and 4 padding layers."""
    page = 1600 * 1024
    kinds = [
        LayerPages(kind="mamba", num_layers=48, block_tokens=1600, state_bytes=page - 512),
        LayerPages(kind="full", num_layers=16, block_tokens=1600, state_bytes=1024, variant="own"),
        LayerPages(kind="full", num_layers=5, block_tokens=1600, state_bytes=1024, variant="draft"),
    ]
    settings = KvSettings(max_model_len=131072, max_num_batched_tokens=8192)
    layout = group_layers([kinds], settings)
    padding = []
    for kind, layers in (("mamba", 48), ("full", 16)):
        groups = [group for group in layout.groups if group.kind == kind and group.num_layers <= 5]
        padding.append(len(groups) * 5 - layers - (5 if kind == "full" else 0))
    assert padding == [2, 4]


@pytest.mark.parametrize(
    ("model", "draft", "tp", "guesses", "parameter_bytes", "layers", "blocks"),
    [
        # vLLM 0.32.0 on the meta device, 40,000,000,000 bytes of cache: both models' layers share
        # one group, for their heads and blocks are alike.
        ("qwen3-32b", "qwen3-0.6b", 2, 3, 596115456, 92, 13268),
        ("llama-3.1-70b", "llama-3.1-8b", 4, 5, 4015529984, 112, 21798),
    ],
)
def test_draft_model_is_that_of_the_engine(
    model: str, draft: str, tp: int, guesses: int, parameter_bytes: int, layers: int, blocks: int
) -> None:
    found = planned(
        model,
        tp=tp,
        draft=draft,
        spec_tokens=guesses,
        context=32768,
        kv_cache_memory=40_000_000_000,
    )
    assert draft_bytes(found) == parameter_bytes
    assert [group["layers"] for group in found.kv_cache.groups] == [layers]
    assert found.kv_cache.blocks == blocks
    assert found.deployment["speculation"]["method"] == "draft_model"


def test_mtp_on_the_last_stage_keeps_an_embedding_of_its_own() -> None:
    found = planned("qwen3.5-27b", tp=2, pp=2, mtp=3)
    first, last = found.gpus
    assert not any(item.category == "draft" for item in first.items)
    # 248,320 rows x 5,120 x 2 bytes over two ranks, as the draft of vLLM 0.32.0 holds it.
    assert draft_bytes(found, "embedding") == 1_271_398_400
    assert last.category_bytes("draft") > draft_bytes(found)


def test_every_guess_has_a_row_of_logits_and_more_graphs() -> None:
    plain = planned("deepseek-v3", gpu="h200", tp=8)
    guessing = planned("deepseek-v3", gpu="h200", tp=8, mtp=1)
    sizes = [
        {item.name: item.high_bytes for item in found.gpus[0].items} for found in (plain, guessing)
    ]
    assert sizes[1]["activations.peak"] > sizes[0]["activations.peak"]
    assert sizes[1]["runtime.cuda_graphs"] >= sizes[0]["runtime.cuda_graphs"]


def test_n_gram_guesses_hold_nothing_but_states() -> None:
    found = planned("llama-3.1-8b", spec_tokens=4)
    assert found.gpus[0].category_bytes("draft") == 0
    assert "speculation" in [note.code for note in found.warnings]
    assert found.deployment["speculation"] == {"method": "ngram", "num_tokens": 4, "draft": None}


@pytest.mark.parametrize(
    ("model", "options", "error", "word"),
    [
        ("llama-3.1-8b", {"mtp": 1}, InvalidDeploymentError, "no MTP blocks"),
        ("gemma-3-27b", {"draft": "gemma-2b", "spec_tokens": 3}, InvalidDeploymentError, "vocab"),
        ("qwen3.5-27b", {"draft": "qwen3.5-0.8b", "spec_tokens": 3}, UnsupportedError, "MTP"),
        ("qwen3-32b", {"draft": "qwen3-0.6b"}, InvalidDeploymentError, "how many tokens"),
        ("qwen3.5-27b", {"draft": "qwen3-0.6b", "mtp": 1}, InvalidDeploymentError, "exclude"),
    ],
)
def test_what_cannot_guess(
    model: str, options: dict[str, Any], error: type[Exception], word: str
) -> None:
    with pytest.raises(error, match=word):
        planned(model, tp=1, **options)


def test_drafts_of_other_methods_are_refused() -> None:
    from moesize.api import make_plan
    from moesize.gpus import find_gpu

    spec, source = resolve_model("qwen3-32b", online=False)
    small, _ = resolve_model("qwen3-0.6b", online=False)
    draft = DraftModel(spec=small, stored=published(small), method="eagle3")
    gpu = find_gpu("h100").spec
    with pytest.raises(UnsupportedError, match="eagle3"):
        make_plan(spec, source, None, "", gpu, Request(draft=draft, num_spec_tokens=3))
    # A head is known by its name: to a reader of configs it is a model of one layer.
    from dataclasses import replace

    head = replace(small, hub_id="somebody/Qwen3-32B_eagle3")
    with pytest.raises(UnsupportedError, match="eagle3"):
        plan("qwen3-32b", gpu="h100", draft=head, spec_tokens=3, suggest=False)
    draft = DraftModel(spec=small, stored=published(small))
    options = VllmSettings(draft_tensor_parallel_size=2)
    with pytest.raises(InvalidDeploymentError, match="draft tensor-parallel size"):
        make_plan(
            spec,
            source,
            None,
            "",
            gpu,
            Request(draft=draft, num_spec_tokens=3, engine_settings=options),
        )
