"""Compute buffers against what llama.cpp itself plans.

`tests/golden/llamacpp_compute.json`: buffers in bytes that llama.cpp (commit 0c1e57098) planned on
the CPU and on a simulated CUDA device, for published models and for small models of architectures
whose order of operations differs. All of them must be met to the byte.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesize.catalog import resolve_model
from moesize.core.attention import GroupedQueryAttention, LatentAttention
from moesize.core.errors import UnsupportedError
from moesize.core.feed_forward import DenseMlp, MoeMlp, SharedExperts
from moesize.core.llamacpp_compute import ComputeBuffers, ComputeSettings, compute_buffers
from moesize.core.model_spec import Block, Embedding, LayerRun, ModelSpec, Source
from moesize.core.recurrent import KimiDeltaAttention, Mamba1, Mamba2, ShortConv

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "llamacpp_compute.json").read_text())


def settings_of(stated: dict[str, Any]) -> ComputeSettings:
    """Settings of a golden row: layers of a GPU by number, lists for tuples."""
    values = dict(stated)
    first, layers = 0, []
    for count in values.pop("layers_by_device", ()):
        layers.append(tuple(range(first, first + count)))
        first += count
    tensors = tuple(tuple(sizes) for sizes in values.pop("host_expert_tensors", ()))
    on_host = tuple(values.pop("experts_on_host", ()))
    return ComputeSettings(
        layers_by_device=tuple(layers),
        experts_on_host=on_host,
        host_expert_tensors=tensors,
        **values,
    )


KINDS = {
    "gqa": GroupedQueryAttention,
    "mla": LatentAttention,
    "mamba1": Mamba1,
    "mamba2": Mamba2,
    "kimi_delta": KimiDeltaAttention,
    "short_conv": ShortConv,
}


def mixer_of(stated: dict[str, Any]) -> Any:
    values = dict(stated)
    return KINDS[values.pop("kind", "gqa")](**values)


def feed_forward_of(stated: dict[str, Any]) -> DenseMlp | MoeMlp:
    values = {key: value for key, value in stated.items() if key != "kind"}
    if "num_experts" not in values:
        return DenseMlp(**values)
    shared = values.pop("shared", None)
    return MoeMlp(**values, shared=SharedExperts(**shared) if shared else None)


def model_of(row: dict[str, Any], blocks: tuple[Block, ...], layout: list[str]) -> ModelSpec:
    embedding = Embedding(vocab_size=GOLDEN["vocab_size"], tied=False, **row.get("embedding", {}))
    return ModelSpec(
        id="small",
        title="small",
        model_type=row["model_type"],
        hub_id="owner/small",
        dtype="bfloat16",
        hidden_size=GOLDEN["hidden_size"],
        max_context=131072,
        embedding=embedding,
        blocks=blocks,
        layers=(LayerRun(blocks=tuple(layout)),),
        source=Source(config="", checked=""),
    )


def small_model(row: dict[str, Any]) -> ModelSpec:
    """A model of a few layers; window: size and, per layer or by period, which attend fully."""
    size, full_at = row.get("window", (None, 1))
    layout = []
    for index in range(GOLDEN["layers"]):
        full = full_at[index] if isinstance(full_at, list) else (index + 1) % full_at == 0
        layout.append("full" if full else "window")
    blocks = tuple(
        Block(
            name=name,
            mixers=(mixer_of({**row["attention"], "window": size if name == "window" else None}),),
            feed_forwards=(feed_forward_of(row["feed_forward"]),),
        )
        for name in dict.fromkeys(layout)
    )
    return model_of(row, blocks, layout)


def hybrid_model(row: dict[str, Any]) -> ModelSpec:
    """A model whose blocks are stated one by one."""
    blocks = tuple(
        Block(
            name=name,
            mixers=tuple(mixer_of(mixer) for mixer in block["mixers"]),
            feed_forwards=tuple(feed_forward_of(each) for each in block["feed_forwards"]),
        )
        for name, block in row["blocks"].items()
    )
    return model_of(row, blocks, row["layout"])


def buffers(answer: ComputeBuffers) -> list[int]:
    return [answer.host_bytes, *answer.device_bytes]


@pytest.mark.parametrize("row", GOLDEN["models"], ids=lambda row: row["model"])
def test_published_model_as_llama_cpp_plans_it(row: dict[str, Any]) -> None:
    spec, _ = resolve_model(row["model"])
    answer = compute_buffers(spec, settings_of(row["settings"]))
    assert buffers(answer) == row["buffers"]
    assert len(answer.formulas) == len(row["buffers"])


@pytest.mark.parametrize("row", GOLDEN["shapes"], ids=lambda row: row["model_type"])
def test_small_model_as_llama_cpp_plans_it(row: dict[str, Any]) -> None:
    answer = compute_buffers(small_model(row), settings_of(row["settings"]))
    assert buffers(answer) == row["buffers"]


@pytest.mark.parametrize("row", GOLDEN["hybrids"], ids=lambda row: row["model_type"])
def test_hybrid_as_llama_cpp_plans_it(row: dict[str, Any]) -> None:
    answer = compute_buffers(hybrid_model(row), settings_of(row["settings"]))
    assert buffers(answer) == row["buffers"]


@pytest.mark.parametrize("row", GOLDEN["partial"], ids=lambda row: str(row["host_layers"]))
def test_layers_on_the_host_as_llama_cpp_plans_them(row: dict[str, Any]) -> None:
    """Weights and caches of host layers are copied to the GPU, one after another."""
    on_gpu = tuple(range(row["host_layers"], GOLDEN["layers"]))
    asked = ComputeSettings(
        **row["settings"],
        layers_by_device=(on_gpu,),
        host_tensors=tuple(row["host_tensors"].items()),
    )
    assert buffers(compute_buffers(small_model(row), asked)) == row["buffers"]


def test_logged_buffers_of_released_builds() -> None:
    # gpt-oss-20b, build 6699 of October 2025: CUDA_Host compute buffer size = 263.15 MiB.
    spec, _ = resolve_model("gpt-oss-20b")
    layers = (tuple(range(spec.num_layers)),)
    old = ComputeSettings(
        n_ubatch=512,
        cells_full=131072,
        cells_swa=768,
        n_outputs=512,
        layers_by_device=layers,
        wide_mask=True,
        two_inputs=False,
        cache_copies=False,
    )
    assert round(compute_buffers(spec, old).host_bytes / 2**20, 2) == 263.15
    # Qwen3-30B-A3B on the CPU, May 2025: CPU compute buffer size = 300.75 MiB.
    spec, _ = resolve_model("qwen3-30b-a3b")
    cpu = ComputeSettings(
        n_ubatch=512, cells_full=4096, n_outputs=512, flash_attn=False, two_inputs=False
    )
    assert round(compute_buffers(spec, cpu).host_bytes / 2**20, 2) == 300.75


def test_server_needs_less_on_later_gpus_than_fit_estimates() -> None:
    # The norm of the first layer on a GPU is planned on the GPU before it: two tensors cross.
    spec, _ = resolve_model("llama-3.1-8b")
    layers = (tuple(range(17)), tuple(range(17, 32)))
    base: dict[str, Any] = {
        "n_ubatch": 512,
        "cells_full": 32768,
        "n_outputs": 1,
        "layers_by_device": layers,
        "output_device": 1,
        "pipeline_copies": 4,
    }
    # llama.cpp 0c1e57098: 281059840 when buffers are allocated, 314614272 when --fit plans.
    assert compute_buffers(spec, ComputeSettings(**base)).device_bytes[1] == 281_059_840
    planned = ComputeSettings(**base, fit_estimate=True)
    assert compute_buffers(spec, planned).device_bytes[1] == 314_614_272


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["mixtral-8x7b", "qwen3-30b-a3b", "llama-3.1-8b", "deepseek-v3"]),
    cells=st.integers(min_value=8, max_value=400),
    more=st.integers(min_value=1, max_value=200),
)
def test_mask_of_the_host_grows_by_two_bytes_per_token_and_cell(
    name: str, cells: int, more: int
) -> None:
    spec, _ = resolve_model(name)
    layers = (tuple(range(spec.num_layers)),)

    def host(count: int) -> int:
        asked = ComputeSettings(
            n_ubatch=512, cells_full=256 * count, n_outputs=4, layers_by_device=layers
        )
        return compute_buffers(spec, asked).host_bytes

    assert host(cells + more) - host(cells) == 2 * 512 * 256 * more


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["mixtral-8x7b", "qwen3-8b", "deepseek-v3.2", "gemma-3-27b"]),
    flash=st.booleans(),
    cells=st.integers(min_value=8, max_value=200),
    more=st.integers(min_value=1, max_value=200),
)
def test_device_never_shrinks_with_the_context(
    name: str, flash: bool, cells: int, more: int
) -> None:
    spec, _ = resolve_model(name)
    layers = (tuple(range(spec.num_layers)),)

    def device(count: int) -> int:
        asked = ComputeSettings(
            n_ubatch=512,
            cells_full=256 * count,
            n_outputs=1,
            flash_attn=flash,
            layers_by_device=layers,
        )
        return compute_buffers(spec, asked).device_bytes[0]

    assert device(cells) <= device(cells + more)


def test_unknown_layers_are_refused() -> None:
    spec, _ = resolve_model("minimax-text-01")
    with pytest.raises(UnsupportedError, match="lightning"):
        compute_buffers(spec, ComputeSettings(n_ubatch=512, cells_full=4096, n_outputs=1))
