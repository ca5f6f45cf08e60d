"""Compute buffers of llama.cpp by closed formulas: a wide estimate.

The scheduler plans the largest graph with an allocator that reuses memory, so a buffer is the peak
of tensors that live at once on a device. llama.cpp 0c1e57098 src/llama-graph.cpp,
ggml/src/ggml-alloc.c.

Symbols: u = n_ubatch, c = cells of one stream, D = hidden size, V = vocabulary, A = floats that
one token of the widest layer has alive at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.core.attention import CompressedAttention, GroupedQueryAttention, LatentAttention
from moesize.core.feed_forward import DenseMlp, MoeMlp
from moesize.core.llamacpp_compute import ComputeBuffers, ComputeSettings
from moesize.core.weight_formats import BLOCK_TYPES

if TYPE_CHECKING:
    from moesize.core.model_spec import Block, ModelSpec


def estimate_buffers(spec: ModelSpec, settings: ComputeSettings) -> ComputeBuffers:
    """The compute buffers of a context by closed formulas, for graphs that are not known."""
    u, hidden = settings.n_ubatch, spec.hidden_size
    cells = settings.cells_full + settings.cells_swa
    mask, live = 2 * u * cells, 4 * u * _widest(spec)
    base = mask + live
    what = f"mask 2 x {u} x {cells:,} + live tensors {live:,}"
    if not settings.flash_attn:
        scores = 4 * u * settings.cells_full * _heads(spec)
        base += scores + mask
        what += f" + scores {scores:,}"
    copy = _copy_bytes(spec, settings)
    if copy > base:
        base, what = copy, f"f16 copies of one layer's quantized K and V, {copy:,}"
    if settings.pipeline_copies > 1:
        base += settings.pipeline_copies * mask
        what += f" + {settings.pipeline_copies} copies of the mask"
    if settings.experts_on_host:
        largest = max((max(part) for part in settings.host_expert_tensors), default=0)
        base += largest
        what += f" + one expert tensor copied from the host, {largest:,}"
    outputs = min(u, settings.n_outputs)
    logits = 4 * outputs * (spec.embedding.vocab_size + hidden)
    sizes, formulas = [], []
    for device, layers in enumerate(settings.layers_by_device):
        has_output = device == settings.output_device
        size, text = (base if layers or has_output else 0), what
        if has_output and logits > size:
            size, text = logits, f"logits 4 x {outputs} x (V + D)"
        sizes.append(size)
        formulas.append(text)
    host = settings.pipeline_copies * mask + (1 + settings.pipeline_copies) * 4 * u * hidden
    return ComputeBuffers(
        device_bytes=tuple(sizes),
        host_bytes=host,
        exact=False,
        formulas=("mask + twice the input embeddings", *formulas),
    )


def growth_bytes(spec: ModelSpec, settings: ComputeSettings) -> int:
    """Bytes that a GPU's buffer grows by for one more cell of a stream, at most.

    Masks (with copies, and twice with an indexer, whose scores grow too), score rows without flash
    attention, 16-bit copies of a quantized cache.
    """
    u = settings.n_ubatch
    indexed = any(
        isinstance(mixer, LatentAttention) and mixer.indexer is not None
        for block in spec.blocks
        for mixer in block.mixers
    )
    mask = (2 if settings.flash_attn and not settings.wide_mask else 4) * u
    copies = 1 + (settings.pipeline_copies if settings.pipeline_copies > 1 else 0)
    growth = mask * copies * (2 if indexed else 1)
    if indexed:
        growth += 4 * u
    if not settings.flash_attn:
        growth += 4 * u * _heads(spec)
    elif settings.cache_copies:
        growth += 2 * settings.streams * _copied_width(spec, settings)
    return growth


def _widest(spec: ModelSpec) -> int:
    return max(
        (_live_floats(spec, spec.block(name)) for name in dict.fromkeys(spec.layout)), default=0
    )


def _live_floats(spec: ModelSpec, block: Block) -> int:
    """2D + attention output + three feed-forward widths, k x D more where that is wider."""
    hidden = spec.hidden_size
    output = feed = 0
    for mixer in block.mixers:
        match mixer:
            case GroupedQueryAttention():
                output = max(output, mixer.num_heads * mixer.v_head_dim)
            case LatentAttention():
                rank, rope = mixer.kv_lora_rank, mixer.qk_rope_head_dim
                heads = mixer.num_heads
                wide = heads * (mixer.qk_nope_head_dim + 3 * rope + 2 * rank) + hidden
                output = max(output, wide)
            case CompressedAttention():
                output = max(output, 2 * mixer.num_heads * mixer.head_dim)
            case _:
                state = sum(part.shape[0] * part.shape[-1] for part in mixer.state())
                output = max(output, 3 * min(state, 4 * hidden))
    for feed_forward in block.feed_forwards:
        if isinstance(feed_forward, MoeMlp):
            used, width = feed_forward.experts_per_token, feed_forward.intermediate_size
            extra = used * hidden if hidden > 2 * width else 0
            feed = max(feed, 3 * used * width + extra)
        elif isinstance(feed_forward, DenseMlp):
            feed = max(feed, 3 * feed_forward.intermediate_size)
    return 2 * hidden + output + feed


def _heads(spec: ModelSpec) -> int:
    return max(
        (
            mixer.num_heads
            for block in spec.blocks
            for mixer in block.mixers
            if isinstance(mixer, (GroupedQueryAttention, LatentAttention, CompressedAttention))
        ),
        default=0,
    )


def _copy_bytes(spec: ModelSpec, settings: ComputeSettings) -> int:
    """Flash attention on CUDA reads f16: a quantized cache of a layer is copied as a whole."""
    width = _copied_width(spec, settings)
    if not width or not settings.flash_attn or not settings.cache_copies:
        return 0
    u, cells = settings.n_ubatch, settings.cells_full
    heads = 4 * u * 4 * spec.hidden_size
    return 2 * cells * settings.streams * width + 2 * u * cells + heads


def _copied_width(spec: ModelSpec, settings: ComputeSettings) -> int:
    """Elements of a cell of the widest layer that are quantized."""
    quantized_k = BLOCK_TYPES[settings.type_k.upper()].elements_per_block > 1
    quantized_v = BLOCK_TYPES[settings.type_v.upper()].elements_per_block > 1
    width = 0
    for block in spec.blocks:
        for mixer in block.mixers:
            if isinstance(mixer, GroupedQueryAttention):
                k, v = mixer.num_kv_heads * mixer.head_dim, mixer.num_kv_heads * mixer.v_head_dim
            elif isinstance(mixer, LatentAttention):
                k, v = mixer.kv_lora_rank + mixer.qk_rope_head_dim, 0
            elif isinstance(mixer, CompressedAttention):
                k, v = mixer.head_dim, 0
            else:
                continue
            width = max(width, k * quantized_k + v * quantized_v)
    return width
