"""Ledger items and summaries of a vLLM plan, made of what the other modules computed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moesize.core.attention import GroupedQueryAttention, LatentAttention
from moesize.core.ledger import MemoryItem, exact_item
from moesize.core.plan import KvSummary
from moesize.core.units import ceil_div
from moesize.core.vllm_kv import max_context_tokens

if TYPE_CHECKING:
    from moesize.core.deployment import Layout
    from moesize.core.model_spec import ModelSpec
    from moesize.core.vllm_budget import BudgetItem
    from moesize.core.vllm_kv import KvLayout, KvPlan, KvSettings
    from moesize.core.vllm_layers import VllmLayers
    from moesize.core.vllm_weights import RankWeights


def rotary_bytes(spec: ModelSpec, fourfold_types: tuple[str, ...] = ()) -> int:
    """cos/sin tables that stay on every rank; for `fourfold_types` positions of long videos too."""
    element = {"float32": 4, "bfloat16": 2, "float16": 2}
    model = "bfloat16" if spec.dtype == "float32" else spec.dtype
    sizes = [
        table.positions * table.rotary_dim * element[table.dtype or model] * table.copies
        for table in spec.rotary
    ]
    if sizes and spec.model_type in fourfold_types:
        sizes[0] *= 4
    return sum(sizes)


# A scalar takes a whole block of the caching allocator.
_SCALAR_BYTES = 512


def attention_scalar_bytes(spec: ModelSpec, layers: range, scalars: int) -> int:
    """Scales of queries, keys, values, ... that every attention layer keeps, 512 bytes each.

    vLLM 0.32.0 model_executor/layers/attention/attention.py:set_default_quant_scales.
    """
    if not scalars:
        return 0
    kept: dict[tuple[int, int], int] = spec.__dict__.setdefault("_attention_layers", {})
    key = (layers.start, layers.stop)
    if key not in kept:
        kinds = {
            block.name: sum(
                isinstance(mixer, GroupedQueryAttention | LatentAttention) for mixer in block.mixers
            )
            for block in spec.blocks
        }
        kept[key] = sum(kinds[spec.layout[layer]] for layer in layers)
    return kept[key] * scalars * _SCALAR_BYTES


def weight_items(weights: RankWeights, buffer_bytes: int, layout: Layout) -> list[MemoryItem]:
    source = "tensor inventory; vLLM 0.32.0 model_executor/layers"
    split = f"1/{layout.tensor_parallel_size} of what tensor parallelism splits"
    if layout.expert_parallel_size > 1:
        split += f", whole experts on {layout.expert_parallel_size} ranks"
    rows = [
        (f"weights.{group}", size, f"elements x element width, {split}")
        for group, size in weights.by_group.items()
    ]
    rows += [
        (
            "weights.scales",
            weights.scale_bytes,
            "scales, zero points and tables of quantized matrices",
        ),
        (
            "weights.padding",
            weights.padding_bytes,
            "vocabulary rows to a multiple of 64; MXFP4 experts to kernel tiles",
        ),
        (
            "weights.latent_copies",
            weights.latent_copy_bytes,
            "absorbed MLA matrices, de-quantized beside a quantized kv_b",
        ),
        (
            "weights.repacked",
            weights.repacked_bytes,
            "what loading adds for a kernel: biases in float32, scales in another order",
        ),
        (
            "weights.allocator_rounding",
            weights.rounding_bytes,
            "each tensor rounded as torch's caching allocator does",
        ),
        (
            "weights.buffers",
            buffer_bytes,
            "rotary tables: positions x rotary size x element width; scales of attention layers",
        ),
    ]
    return [
        exact_item(name, "weights", size, formula, source) for name, size, formula in rows if size
    ]


def kv_item(
    needed_bytes: int, kv: KvPlan, concurrency: int, context: int, block_bytes: int
) -> MemoryItem:
    formula = (
        f"({concurrency} x {kv.blocks_per_request:,} blocks for {context:,} tokens + 1 null block) "
        f"x {block_bytes:,} bytes"
    )
    return exact_item(
        "kv_cache", "kv_cache", needed_bytes, formula, "vLLM 0.32.0 v1/core/kv_cache_utils.py"
    )


def budget_item(item: BudgetItem) -> MemoryItem:
    return MemoryItem(
        name=item.name,
        category=item.category,
        size_bytes=item.bytes,
        low_bytes=item.low_bytes,
        high_bytes=item.high_bytes,
        formula=item.formula,
        source=item.source,
        in_budget=item.in_budget,
    )


def kv_summary(
    kv: KvPlan,
    layout: KvLayout,
    settings: KvSettings,
    cache: VllmLayers,
    stage: int,
    available: tuple[int, int, int],
    needed_bytes: int,
    concurrency: int,
    most_context: int,
    replicas: int = 1,
) -> KvSummary:
    per_token, per_sequence = _steady_state(cache, stage)
    per_token = ceil_div(per_token, settings.decode_context_parallel_size)
    usable_blocks = max(kv.num_blocks - 1, 0)
    longest = replace(settings, max_model_len=most_context)
    return KvSummary(
        bytes_per_token=per_token,
        state_bytes_per_sequence=per_sequence,
        block_tokens=layout.block_tokens or cache.block_tokens,
        blocks=kv.num_blocks,
        available_bytes=available[0],
        available_low_bytes=available[1],
        available_high_bytes=available[2],
        needed_bytes=needed_bytes,
        capacity_tokens=kv.tokens_logged,
        max_concurrency=kv.max_concurrency,
        max_context=max_context_tokens(layout, longest, usable_blocks // concurrency),
        replicas=replicas,
        dtype=cache.kv_dtype,
        backend=cache.backend,
        groups=tuple(
            {
                "kind": group.kind,
                "layers": group.num_layers,
                "block_tokens": group.block_tokens,
                "page_bytes": group.page_bytes(stage),
            }
            for group in layout.groups
        ),
    )


def _steady_state(cache: VllmLayers, stage: int) -> tuple[int, int]:
    """(bytes per further token, bytes per sequence that do not grow) on one rank of a stage."""
    per_token = per_sequence = 0
    for pages in cache.stages[stage]:
        if pages.kind in ("mamba", "ring"):
            per_sequence += pages.state_bytes * pages.num_layers
        elif pages.window_tokens is not None:
            per_sequence += (
                pages.state_bytes * pages.num_layers * pages.window_tokens // pages.tokens_per_state
            )
        else:
            per_token += pages.state_bytes * pages.num_layers // pages.tokens_per_state
    return per_token, per_sequence


def recurrent_bytes(cache: VllmLayers, stage: int) -> int:
    """States of linear attention and Mamba of one sequence: read and written in every step."""
    return sum(
        pages.state_bytes * pages.num_layers
        for pages in cache.stages[stage]
        if pages.kind == "mamba"
    )
