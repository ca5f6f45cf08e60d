"""Compute buffers of llama.cpp: what one batch needs beside weights and caches.

llama.cpp plans its largest graph before it serves (llama-context.cpp, sched_reserve): a batch of
`n_ubatch` tokens against a full cache, with as many outputs as may be asked for. The peak of
simultaneously live tensors on each device is the size of that device's compute buffer. The same
planning is done here (`llamacpp_graph`) over the operations of the model's layers
(`llamacpp_layers`). Written for llama.cpp commit 0c1e57098 (libllama 0.5.0).
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from moesize.core.attention import CompressedAttention, GroupedQueryAttention, LatentAttention
from moesize.core.errors import UnsupportedError
from moesize.core.feed_forward import MoeMlp
from moesize.core.gguf_view import gguf_architecture
from moesize.core.inventory import SpecKey
from moesize.core.llamacpp_graph import HOST, Graph, Node, plan_buffers
from moesize.core.llamacpp_layers import (
    BlockSparse,
    HostExperts,
    Shared,
    Style,
    dense,
    experts_of,
    feed_forward,
    grouped_query,
    latent,
    norm,
    rms_norm,
)
from moesize.core.llamacpp_recurrent import (
    gated_delta_net,
    kimi_delta,
    mamba1,
    mamba2,
    short_conv,
)
from moesize.core.records import dataclass
from moesize.core.recurrent import (
    GatedDeltaNet,
    KimiDeltaAttention,
    Mamba1,
    Mamba2,
    ShortConv,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from moesize.core.model_spec import Block, ModelSpec

_RECURRENT = (GatedDeltaNet, KimiDeltaAttention, Mamba1, Mamba2, ShortConv)
# Weights in host memory are copied to a GPU for batches of this many tokens (ggml-cuda.cu).
_OFFLOAD_BATCH = 32
_16_BIT = ("f16", "bf16")
# Bits of 64 elements, scales included (ggml-common.h).
_BITS_OF_64 = {
    "f32": 2048, "f16": 1024, "bf16": 1024, "q8_0": 544, "q5_1": 384, "q5_0": 352,
    "q4_1": 320, "q4_0": 288, "iq4_nl": 288,
}  # fmt: skip
_NOT_QUANTIZED = (*_16_BIT, "f32")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeSettings:
    """What the graph that llama.cpp plans depends on.

    n_ubatch         tokens of a physical batch, at most the context
    cells_full       cells of one stream of the cache, after padding; 0 = recurrent layers only
    cells_swa        the same of the cache of layers with a sliding window; 0 = none
    streams          parts of the cache: sequences, or 1 when it is unified
    sequences        n_seq_max
    n_outputs        outputs that a batch is planned for
    layers_by_device layers of each GPU; none = everything on the CPU
    output_device    the GPU with the output matrix
    experts_on_host  layers whose routed experts lie in host memory
    host_expert_bytes    the largest expert tensor among them (one of gate, up, down, all experts)
    host_expert_tensors  instead of it, gate, up and down of every layer in experts_on_host
    host_tensors     with some layers on no GPU: the bytes of a weight of theirs, the largest of its
                     kind, by GGUF's name without block and ending (attn_q, ffn_down, output).
                     For 32 tokens and more they are copied to the first GPU one by one
    pipeline_copies  4 with pipeline parallelism over several GPUs, else 1
    snapshots        states kept for roll-back per sequence (n_rs_seq)
    fit_estimate     as `--fit` and other planning without allocation estimate it: they reset the
                     scheduler first (ggml-backend.cpp, ggml_backend_sched_reserve_size), which
                     forgets that the first norm of a layer runs on the layer's own GPU, so that
                     two tensors instead of one cross to the next GPU. A server allocates less
    The rest tells builds apart; the defaults are those of 2026:
    wide_mask        the mask is F32 even with flash attention, and cast on the device (2025)
    two_inputs       room for tokens and for embeddings as input (2026, pull request 18550)
    cache_copies     CUDA's 16-bit copies of a quantized cache lie in this buffer (2026; before in
                     the hidden pool)
    fused            ik_llama.cpp: up, gate and their product are one operation (-fmoe)
    experts_stay     routed experts in host memory are computed on the CPU, for batches of this size
    decompresses     ik_llama.cpp with -mla 2 or 3 makes keys and values for prompts: bytes of -amb,
                     0 = no limit; None = it does not
    offloads         weights in host memory are copied to a GPU for large batches (--op-offload)
    one_logit_pass   ik_llama.cpp: the output layer holds its input once or twice, nothing else
    """

    n_ubatch: int
    cells_full: int
    cells_swa: int = 0
    streams: int = 1
    sequences: int = 1
    n_outputs: int
    flash_attn: bool = True
    type_k: str = "f16"
    type_v: str = "f16"
    layers_by_device: tuple[tuple[int, ...], ...] = ()
    output_device: int = 0
    experts_on_host: tuple[int, ...] = ()
    pipeline_copies: int = 1
    host_expert_bytes: int = 0
    host_expert_tensors: tuple[tuple[int, int, int], ...] = ()
    host_tensors: tuple[tuple[str, int], ...] = ()
    snapshots: int = 0
    fit_estimate: bool = False
    wide_mask: bool = False
    two_inputs: bool = True
    cache_copies: bool = True
    fused: bool = False
    experts_stay: bool = False
    decompresses: int | None = None
    offloads: bool = True
    one_logit_pass: bool = False

    def __post_init__(self) -> None:
        for name in ("n_ubatch", "streams", "sequences", "n_outputs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")
        if self.cells_full < 0:
            raise ValueError(f"cells_full ({self.cells_full}) must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeBuffers:
    """Bytes of the compute buffers.

    host_bytes   in host memory: the inputs of a batch; everything when no GPU is used
    exact        the operations of this architecture were stated one by one; otherwise they are
                 those of the most similar one
    formulas     in words, one for the host and one for each GPU
    """

    device_bytes: tuple[int, ...]
    host_bytes: int
    exact: bool
    formulas: tuple[str, ...]


# By GGUF architecture: src/models/ of llama.cpp at the commit above. Every one of them gives the
# bytes that llama.cpp itself plans, with and without flash attention, on the CPU and on a GPU.
_STYLES: dict[str, Style] = {
    **dict.fromkeys(
        (
            *("llama", "mistral3", "smollm3", "arcee", "seed_oss", "ernie4_5", "ernie4_5-moe"),
            *("exaone", "internlm2", "xverse", "hunyuan-dense", "qwen2", "qwen2vl", "qwen3"),
            *("qwen3vl", "qwen3moe", "qwen3vlmoe", "glm4moe", "minimax-m2", "deepseek2"),
            *("deepseek32", "glm-dsa", "deepseek", "dots1", "bailingmoe", "hunyuan-moe"),
        ),
        Style(),
    ),
    **dict.fromkeys(("qwen2moe", "olmoe"), Style(renormalizes=False)),
    **dict.fromkeys(("gemma", "granite", "granitemoe", "minicpm"), Style(scaled_input=True)),
    **dict.fromkeys(("gemma2", "gemma3"), Style(scaled_input=True, window_cache=True)),
    **dict.fromkeys(("mellum", "exaone-moe"), Style(window_cache=True)),
    "afmoe": Style(window_cache=True),
    "gemma4": Style(
        scaled_input=True,
        window_cache=True,
        late_outputs=True,
        keeps_hidden=True,
        fused_experts=True,
    ),
    **dict.fromkeys(
        ("orion", "nemotron", "starcoder2", "stablelm", "olmo", "jais2"), Style(layer_norm=True)
    ),
    "deepseek4": Style(),
    "falcon": Style(layer_norm=True, parallel="falcon", fused_qkv=True),
    "command-r": Style(layer_norm=True, parallel="command-r"),
    "cohere2": Style(layer_norm=True, parallel="command-r", window_cache=True),
    "phi2": Style(layer_norm=True, parallel="phi2"),
    "phi3": Style(fused_qkv=True, fused_gate_up=True, residual_first=True),
    "phimoe": Style(residual_first=True),
    "gptneox": Style(layer_norm=True, parallel="neox", fused_qkv=True),
    **dict.fromkeys(
        ("gpt2", "starcoder", "bloom", "mpt"),
        Style(layer_norm=True, fused_qkv=True, no_positions=True),
    ),
    "qwen": Style(fused_qkv=True),
    "chatglm": Style(fused_gate_up=True),
    "glm4": Style(fused_gate_up=True),
    "olmo2": Style(window_cache=True, post_norm_only=True),
    "dbrx": Style(layer_norm=True, fused_qkv=True),
    "bailingmoe2": Style(fused_qkv=True),
    "gpt-oss": Style(window_cache=True, late_outputs=True, keeps_hidden=True, pick_first=True),
    "llama4": Style(window_cache=True, weight_first=True),
    "laguna": Style(window_cache=True),
    "mimo2": Style(window_cache=True),
    "hy_v3": Style(late_outputs=True, keeps_hidden=True),
    "step35": Style(window_cache=True, late_outputs=True, keeps_hidden=True),
    "cohere2moe": Style(
        parallel="command-r", window_cache=True, late_outputs=True, keeps_hidden=True
    ),
    "minimax-m3": Style(),
    "kimi-linear": Style(no_positions=True),
    "lfm2": Style(residual_first=True),
    "lfm2moe": Style(residual_first=True),
    "falcon-h1": Style(),
    "mamba": Style(no_positions=True),
    "mamba2": Style(no_positions=True),
    "granitehybrid": Style(scaled_input=True, no_positions=True),
    "jamba": Style(no_positions=True, residual_first=True, renormalizes=False),
    **dict.fromkeys(
        ("nemotron_h", "nemotron_h_moe"),
        Style(no_positions=True, late_outputs=True, keeps_hidden=True),
    ),
    **dict.fromkeys(
        ("qwen3next", "qwen35", "qwen35moe"), Style(late_outputs=True, keeps_hidden=True)
    ),
}
_STATES_FIRST = frozenset(
    {"jamba", "nemotron_h", "nemotron_h_moe", "granitehybrid", "mamba", "mamba2"}
)
# Rotary embeddings in layers with a sliding window only.
_ROPE_IN_WINDOWS = frozenset({"cohere2", "exaone-moe", "afmoe", "cohere2moe"})
# The residual is the first summand behind the mixer as well.
_RESIDUAL_BEFORE = frozenset({"jamba", "lfm2", "lfm2moe"})
# Graphs stated but for details: values within a few percent in some settings.
_NEARLY = frozenset({"smollm3", "cohere2moe"})
# ik_llama.cpp: see `logit_bytes`.
_CAPPED_LOGITS = frozenset({"gemma2", "gemma4"})
_TWO_INPUTS_OF_LOGITS = frozenset({"qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe", "qwen35"})
_FOUR_POSITIONS = frozenset({"qwen35", "qwen35moe", "qwen2vl", "qwen3vl", "qwen3vlmoe"})


def compute_buffers(spec: ModelSpec, settings: ComputeSettings) -> ComputeBuffers:
    """Compute buffers of the host and of every GPU.

    Raises UnsupportedError for an architecture whose graph is not known.
    """
    return _compute_buffers(SpecKey(spec), settings)


@lru_cache(maxsize=256)
def _compute_buffers(key: SpecKey, settings: ComputeSettings) -> ComputeBuffers:
    spec = key.spec
    arch = gguf_architecture(spec)
    style = _STYLES.get(arch) or _likely_style(spec)
    one_pass = settings.one_logit_pass and settings.pipeline_copies == 1
    asked = replace(settings, n_outputs=1) if one_pass else settings
    graph = _build(spec, asked, arch, style)
    sizes = plan_buffers(graph, len(settings.layers_by_device), settings.pipeline_copies)
    held = [sizes.host, *sizes.devices]
    if one_pass:
        size, place = logit_bytes(spec, arch, settings), 0
        if settings.layers_by_device:
            place = settings.output_device + 1
        offloads = settings.offloads and settings.n_ubatch >= _OFFLOAD_BATCH
        if not place and settings.layers_by_device and offloads:
            copied = dict(settings.host_tensors).get("output", 0)
            place, size = 1, size + copied + 4 * settings.n_ubatch * spec.hidden_size
        held[place] = max(held[place], size)
    return ComputeBuffers(
        device_bytes=tuple(held[1:]),
        host_bytes=held[0],
        exact=arch in _STYLES and arch not in _NEARLY,
        formulas=_formulas(settings),
    )


def logit_bytes(spec: ModelSpec, arch: str, settings: ComputeSettings) -> int:
    """What ik_llama.cpp's output layer holds: 4 x outputs x (V + m x D).

    m is 1, or 2 for Qwen3 and dense Qwen3.5; capping logits keeps a second copy of them. Read from
    field logs of 13 models (ikawrakow/ik_llama.cpp discussions 258, 395, issue 1607 and others).
    """
    outputs = min(settings.n_outputs, settings.n_ubatch)
    vocab = spec.embedding.head_vocab_size or spec.embedding.vocab_size
    copies = 2 if arch in _CAPPED_LOGITS else 1
    inputs = 2 if arch in _TWO_INPUTS_OF_LOGITS else 1
    return 4 * outputs * (copies * vocab + inputs * spec.hidden_size)


def _likely_style(spec: ModelSpec) -> Style:
    """For an architecture whose source was not read: Llama's order, with the model's own norms."""
    return Style(
        layer_norm=any(block.norm_bias for block in spec.blocks),
        window_cache=True,
        late_outputs=spec.mtp is not None,
        keeps_hidden=spec.mtp is not None,
        fused_experts=False,
    )


def _formulas(s: ComputeSettings) -> tuple[str, ...]:
    """What was planned, in words; one for the host and one for each GPU."""
    batch = f"a batch of {s.n_ubatch:,} tokens, {min(s.n_outputs, s.n_ubatch):,} outputs"
    cells = f"{s.cells_full:,} cells"
    if s.cells_swa:
        cells += f" ({s.cells_swa:,} with a sliding window)"
    if s.streams > 1:
        cells += f" in each of {s.streams:,} streams"
    whole = f"peak of the tensors alive at once while {batch}, meets {cells}"
    if not s.layers_by_device:
        return (whole,)
    inputs = f"masks, positions and embeddings of {batch}, {cells}"
    if s.pipeline_copies > 1:
        inputs += f", {s.pipeline_copies} copies"
    out = [inputs]
    for device, layers in enumerate(s.layers_by_device):
        text = f"{whole} in {len(layers):,} layers"
        if device == s.output_device:
            text += " and the output"
        if s.experts_on_host and device == 0:
            text += ", with room for expert weights of the host"
        out.append(text)
    return tuple(out)


def _inputs(spec: ModelSpec, style: Style, s: ComputeSettings, tokens: int, arch: str) -> Shared:
    g = Graph(HOST)
    per_stream = tokens // s.streams
    mask_type = "f16" if s.flash_attn and not s.wide_mask else "f32"
    mixers = [mixer for block in spec.blocks for mixer in block.mixers]
    recurrent = any(isinstance(m, _RECURRENT) for m in mixers)
    grouped = [m for m in mixers if isinstance(m, GroupedQueryAttention)]
    sparse = any(isinstance(m, LatentAttention) and m.indexer is not None for m in mixers)
    quantized_k = s.type_k not in _NOT_QUANTIZED
    quantized_v = s.type_v not in _NOT_QUANTIZED
    v_width = max((m.num_kv_heads * m.v_head_dim for m in grouped), default=0)
    v_rows = 1 if s.flash_attn else v_width
    windowed = style.window_cache and s.cells_swa > 0

    def rows(width: int = 1) -> Node:
        return g.input(tokens * width, dtype="i64")

    def mask(cells: int, dtype: str = mask_type) -> Node:
        return g.input(cells, per_stream, 1, s.streams, dtype=dtype)

    def rotation(sizes: list[int], grows: bool) -> Node | None:
        if not sizes or len(set(sizes)) > 1 or sizes[0] % 64:
            return None
        size = 64
        while grows and sizes[0] % (2 * size) == 0:
            size *= 2
        return g.input(size, size)

    full = [m for m in grouped if not (windowed and (m.window or m.chunk))]
    swa = [m for m in grouped if windowed and (m.window or m.chunk)]
    index_dim = next(
        (m.indexer.head_dim for m in mixers if isinstance(m, LatentAttention) and m.indexer), 0
    )
    state_copy = g.input(s.sequences, dtype="i32")
    many = 4 if arch in _FOUR_POSITIONS else 1
    return Shared(
        tokens=tokens,
        sequences=s.sequences,
        streams=s.streams,
        cells=s.cells_full,
        window_cells=s.cells_swa,
        flash=s.flash_attn,
        decompresses=s.decompresses,
        on_gpu=bool(s.layers_by_device),
        cuda=bool(s.layers_by_device) and s.cache_copies,
        snapshots=0 if arch == "qwen3next" else s.snapshots,
        quantized_k=quantized_k,
        quantized_v=quantized_v,
        k_bits=_BITS_OF_64.get(s.type_k, 1024),
        v_bits=_BITS_OF_64.get(s.type_v, 1024),
        positions=None if style.no_positions else g.input(tokens * many, dtype="i32"),
        k_rows=rows(),
        v_rows=rows(v_rows) if grouped else None,
        mask=mask(s.cells_full),
        window_k_rows=rows() if windowed else None,
        window_v_rows=rows(v_rows) if windowed else None,
        window_mask=mask(s.cells_swa) if windowed else None,
        k_rotation=rotation([m.head_dim for m in full], True) if quantized_k else None,
        v_rotation=rotation([m.v_head_dim for m in full], False) if quantized_v else None,
        window_k_rotation=rotation([m.head_dim for m in swa], True) if quantized_k else None,
        window_v_rotation=rotation([m.v_head_dim for m in swa], False) if quantized_v else None,
        index_rows=rows() if sparse else None,
        index_mask=mask(s.cells_full, "f16") if sparse else None,
        index_rotation=rotation([index_dim], True) if sparse else None,
        state_rows=g.view(state_copy, s.sequences) if recurrent else None,
        state_others=g.view(state_copy, 0) if recurrent else None,
        temperature=g.input(1, 1, tokens) if arch == "llama4" else None,
    )


def _host_experts(tensors: Mapping[str, int]) -> HostExperts:
    both = tensors.get("ffn_gate_up_exps", 0)
    gate, up = tensors.get("ffn_gate_exps", both), tensors.get("ffn_up_exps", 0)
    return HostExperts(bytes=(gate, up, tensors.get("ffn_down_exps", 0)))


def _block_sparse_inputs(g: Graph, shared: Shared) -> Shared:
    positions = 256
    blocks = positions // 128
    streams, tokens = shared.streams, shared.tokens
    sparse = BlockSparse(
        positions=positions,
        blocks=blocks,
        bias=g.input(blocks, tokens),
        position_mask=g.input(positions, tokens),
        slots=g.input(positions, streams, dtype="i32"),
        block_of=g.input(shared.cells, streams, dtype="i32"),
        rows=g.input(tokens, dtype="i64"),
        wide_mask=g.op(shared.mask.shape, shared.mask),
    )
    return replace(shared, block_sparse=sparse)


def _per_layer_inputs(g: Graph, x: Node, spec: ModelSpec, tokens: int) -> Node:
    """A second look-up that every layer gets a part of (Gemma 4)."""
    size, count = spec.embedding.per_layer_size, spec.num_layers
    where, g.device = g.device, HOST
    rows = g.op((size * count, tokens), g.input(tokens, dtype="i32"))
    g.device = where
    rows = g.map(g.view(rows, size, count, tokens))
    g.expand(rows)
    projected = g.map(g.op((size * count, tokens), x))
    projected = rms_norm(g, g.view(projected, size, count, tokens))
    joined = g.map(g.map(projected, rows))
    return g.op((size, tokens, count), g.view(joined, size, tokens, count, packed=False))


def _cast_masks(g: Graph, shared: Shared) -> Shared:
    """The masks as 16-bit tensors on the device."""
    wide = shared.window_mask
    return replace(
        shared,
        mask=g.op(shared.mask.shape, shared.mask, dtype="f16"),
        window_mask=None if wide is None else g.op(wide.shape, wide, dtype="f16"),
    )


def _build(spec: ModelSpec, s: ComputeSettings, arch: str, style: Style) -> Graph:
    if arch == "deepseek4":
        return _build_deepseek4(spec, s)
    hidden = spec.hidden_size
    tokens = -(-s.n_ubatch // s.sequences) * s.sequences
    outputs = min(s.n_outputs, s.n_ubatch)
    shared = _inputs(spec, style, s, tokens, arch)
    device_of = {
        layer: device
        for device, layers in enumerate(s.layers_by_device, start=1)
        for layer in layers
    }
    g = Graph(HOST)
    g.fused, g.experts_stay = s.fused, s.experts_stay
    ids = g.input(tokens, dtype="i32")
    given = g.input(hidden, tokens)
    g.expand(ids)
    if s.two_inputs:
        g.expand(given)
    x = g.op((hidden, tokens), ids)
    g.expand(x)
    offloads = s.offloads and bool(s.layers_by_device) and tokens >= _OFFLOAD_BATCH
    first = device_of.get(0, 1 if offloads else HOST)
    g.device = first
    if style.scaled_input:
        x = g.map(x)
        if arch.startswith("granite"):
            g.expand(x)
    if spec.embedding.positions and shared.positions is None:
        where, g.device = g.device, HOST
        rows = g.op((hidden, tokens), g.input(tokens, dtype="i32"))
        g.device = where
        x = g.map(x, rows)
    per_layer = None
    if spec.embedding.per_layer_size:
        per_layer = _per_layer_inputs(g, x, spec, tokens)
    if spec.embedding.norm:
        x = norm(g, x, style)
    if s.wide_mask and s.flash_attn:
        shared = _cast_masks(g, shared)
    if arch == "minimax-m3" and s.flash_attn and (s.sequences == 1 or s.streams > 1):
        shared = _block_sparse_inputs(g, shared)
    picked = g.input(outputs, dtype="i32")
    last = spec.num_layers - 1
    chosen: Node | None = None
    sizes = s.host_expert_tensors or ((s.host_expert_bytes,) * 3,) * len(s.experts_on_host)
    on_host = dict(zip(s.experts_on_host, sizes, strict=True))
    before = first
    kinds = [
        (name, device_of.get(index, HOST), on_host.get(index))
        for index, name in enumerate(spec.layout)
    ]
    before_index = -1
    for index in _representative(kinds):
        _pass_over(g, spec, range(before_index + 1, index), shared)
        before_index = index
        name, where, _ = kinds[index]
        g.host_tensors = None
        g.device = where
        if where == HOST and offloads:
            g.device, g.host_tensors = 1, dict(s.host_tensors)
        block = spec.block(name)
        if index and _reads_states_first(arch, block) and _is_early(spec.layout[index - 1], spec):
            # States are read before the sum that ends the layer before, which runs where the
            # operation before it does: here.
            x.device = g.device
        g.late_device = None
        if index < last and not _is_early(name, spec):
            following = spec.block(spec.layout[index + 1])
            if _reads_states_first(arch, following):
                g.late_device = device_of.get(index + 1, HOST)
        picks = picked if index == last and not style.late_outputs else None
        host = None
        if g.host_tensors is not None:
            host = _host_experts(g.host_tensors)
        elif index in on_host and g.device != HOST:
            host = HostExperts(bytes=on_host[index])
        x, chosen = _layer(
            g,
            x,
            block,
            style,
            shared,
            hidden,
            picks,
            host,
            chosen,
            arch,
            per_layer,
            before if s.fit_estimate else g.device,
        )
        before = g.device
    g.host_tensors = None
    g.device = s.output_device + 1 if s.layers_by_device else HOST
    if g.device == HOST and offloads and outputs >= _OFFLOAD_BATCH:
        g.device, g.host_tensors = 1, dict(s.host_tensors)
    if style.late_outputs:
        if style.pick_first:
            x.is_output = True
            x = norm(g, g.op((hidden, outputs), x, picked), style)
        else:
            x = norm(g, x, style)
            x.is_output = True
            x = g.op((hidden, outputs), x, picked)
    else:
        x = norm(g, x, style)
    x.is_output = True
    vocab = spec.embedding.head_vocab_size or spec.embedding.vocab_size
    logits = g.matmul("output", (vocab, outputs), x)
    logits.is_output = True
    g.expand(logits)
    return g


def _build_deepseek4(spec: ModelSpec, s: ComputeSettings) -> Graph:
    from moesize.core import llamacpp_deepseek4 as v4

    hidden, style = spec.hidden_size, Style()
    tokens = -(-s.n_ubatch // s.sequences) * s.sequences
    device_of = {
        layer: device
        for device, layers in enumerate(s.layers_by_device, start=1)
        for layer in layers
    }
    blocks = [spec.block(name) for name in spec.layout]
    first = blocks[0].mixers[0]
    width = next(each.shape[1] for each in blocks[0].extra if each.role == "other.hc_attn_fn")
    if not isinstance(first, CompressedAttention) or width % hidden:
        raise UnsupportedError(f"{spec.id} is no DeepSeek-V4 as llama.cpp knows it", "")
    g = Graph(HOST)
    ids, given = g.input(tokens, dtype="i32"), g.input(hidden, tokens)
    inputs = v4.inputs_of(
        g,
        first,
        ids,
        tokens=tokens,
        sequences=s.sequences,
        cells=s.cells_full,
        raw_cells=s.cells_swa,
        flash=s.flash_attn,
        quantized=s.type_k not in _NOT_QUANTIZED,
        cuda=bool(s.layers_by_device),
        bits=_BITS_OF_64.get(s.type_k, 1024),
        streams=width // hidden,
    )
    g.expand(ids)
    g.expand(given)
    x = g.op((hidden, tokens), ids)
    g.expand(x)
    g.expand(inputs.raw_mask)
    g.device = device_of.get(0, HOST)
    x = g.op((hidden, inputs.streams, tokens), g.view(x, hidden, 1, tokens))
    sizes = s.host_expert_tensors or ((s.host_expert_bytes,) * 3,) * len(s.experts_on_host)
    on_host = dict(zip(s.experts_on_host, sizes, strict=True))
    kinds = [
        (name, device_of.get(index, HOST), on_host.get(index))
        for index, name in enumerate(spec.layout)
    ]
    before_index = -1
    # Over several GPUs the pattern of ratios is cut, and all layers are planned.
    alone = len(s.layers_by_device) < 2
    for index in _representative(kinds) if alone else range(len(kinds)):
        passed = [blocks[each].mixers[0] for each in range(before_index + 1, index)]
        v4.pass_over(g, passed, inputs)
        before_index = index
        block = blocks[index]
        g.device = device_of.get(index, HOST)
        mixer, moe = block.mixers[0], block.feed_forwards[0]
        if not isinstance(mixer, CompressedAttention) or not isinstance(moe, MoeMlp):
            raise UnsupportedError(f"{spec.id} is no DeepSeek-V4 as llama.cpp knows it", "")
        host = None
        if index in on_host and g.device != HOST:
            host = HostExperts(bytes=on_host[index])
        x = v4.layer(g, x, mixer, moe, style, inputs, hidden, host)
    g.device = s.output_device + 1 if s.layers_by_device else HOST
    outputs = min(s.n_outputs, s.n_ubatch)
    picked = g.input(outputs, dtype="i32")
    x = norm(g, v4.head(g, x, picked, inputs.streams, hidden), style)
    x.is_output = True
    logits = g.op((spec.embedding.vocab_size, outputs), x)
    logits.is_output = True
    g.expand(logits)
    return g


_MAX_PERIOD = 8
_KEPT_PERIODS = 6


def _pass_over(g: Graph, spec: ModelSpec, layers: range, shared: Shared) -> None:
    """What layers that are not planned still need: room of sparse attention's zeros.

    It is taken at the beginning of the graph for every layer, and free behind the layer.
    """
    best = 0
    zeros = []
    for index in layers:
        for mixer in spec.block(spec.layout[index]).mixers:
            if isinstance(mixer, LatentAttention) and (mixer.indexer or mixer.index_shared):
                best = best or _top_k(spec, shared.cells)
                zeros.append(g.leaf(1, best, shared.tokens // shared.streams, shared.streams))
    if zeros:
        g.expand(g.store(*zeros))


def _top_k(spec: ModelSpec, cells: int) -> int:
    mixers = (mixer for block in spec.blocks for mixer in block.mixers)
    sizes = (m.indexer.top_k for m in mixers if isinstance(m, LatentAttention) and m.indexer)
    return min(cells, next(sizes, 0))


def _reads_states_first(arch: str, block: Block) -> bool:
    """Whether a layer reads its states before anything that the layer before left for later."""
    return arch in _STATES_FIRST and any(isinstance(m, Mamba1 | Mamba2) for m in block.mixers)


def _is_early(name: str, spec: ModelSpec) -> bool:
    """Whether all of a layer but its last sum is in the graph when the next one begins."""
    layers = spec.block(name).feed_forwards
    return bool(layers) and isinstance(layers[-1], MoeMlp) and layers[-1].shared is None


def _representative(kinds: Sequence[Hashable]) -> list[int]:
    """Layers that stand for all: of every stretch that repeats, its first periods, and the last.

    What lives when repeats from layer to layer, and soon the allocator's choices with it; they may
    alternate, so that an even number of periods is left out.
    """
    kept: list[int] = []
    index, end = 0, len(kinds) - 1
    while index < end:
        best, repeats = 1, 1
        for period in range(1, _MAX_PERIOD + 1):
            stop = index + period
            while stop < end and kinds[stop] == kinds[stop - period]:
                stop += 1
            times = (stop - index) // period
            if times * period > best * repeats and times > 1:
                best, repeats = period, times
        left = repeats
        if repeats > _KEPT_PERIODS + 1:
            left = _KEPT_PERIODS + repeats % 2
        kept.extend(range(index, index + left * best))
        index += repeats * best
    kept.append(end)
    return kept


def _layer(
    g: Graph,
    x: Node,
    block: Block,
    style: Style,
    shared: Shared,
    hidden: int,
    picked: Node | None,
    host: HostExperts | None,
    chosen: Node | None,
    arch: str,
    per_layer: Node | None,
    norm_device: int,
) -> tuple[Node, Node | None]:
    """One layer: (D, T) to (D, T), or (D, outputs) where rows are picked."""
    if per_layer is not None:
        bare = _layer(
            g, x, block, style, shared, hidden, picked, host, chosen, arch, None, norm_device
        )[0]
        width = per_layer.shape[0]
        inner = g.map(g.matmul("inp_gate", (width, shared.tokens), bare))
        inner = g.map(inner, g.view(per_layer, width, shared.tokens))
        inner = rms_norm(g, g.matmul("proj", (hidden, shared.tokens), inner))
        return g.map(bare, inner), chosen
    residual = x
    normed = norm(g, x, style, norm_device)
    after = normed
    if style.post_norm_only:
        normed = after = x
    if arch == "falcon" and block.num_norms == 2:
        after = norm(g, x, style)
    if arch in ("qwen3next", "qwen35", "qwen35moe", "kimi-linear"):
        g.expand(normed)
    current = normed
    if arch == "falcon-h1":
        return _side_by_side(g, x, block, style, shared, hidden, picked), chosen
    for mixer in block.mixers:
        if isinstance(mixer, GroupedQueryAttention):
            used = style
            far = not (mixer.window or mixer.chunk)
            if far and (shared.temperature is not None or arch in _ROPE_IN_WINDOWS):
                used = replace(style, no_positions=True)
            current = grouped_query(g, normed, mixer, used, shared, hidden)
        elif isinstance(mixer, LatentAttention):
            current, chosen = latent(g, normed, mixer, shared, hidden, chosen)
        elif isinstance(mixer, GatedDeltaNet):
            current = gated_delta_net(g, normed, mixer, shared, hidden, repeats=arch == "qwen3next")
        elif isinstance(mixer, Mamba2):
            current = mamba2(g, normed, mixer, shared, hidden)
        elif isinstance(mixer, Mamba1):
            current = mamba1(g, normed, mixer, shared, hidden)
        elif isinstance(mixer, KimiDeltaAttention):
            current = kimi_delta(g, normed, mixer, shared, hidden)
        elif isinstance(mixer, ShortConv):
            current = short_conv(g, normed, mixer, shared, hidden)
        else:
            raise UnsupportedError(
                f"the compute buffers of llama.cpp for layers of kind {mixer.kind!r} "
                f"({arch}) are not known to moesize",
                "take the size from the engine's log (compute buffer size)",
            )
    layers = block.feed_forwards
    if not block.mixers:
        # Nemotron-H: a layer is either a mixer or a feed-forward.
        current = feed_forward(g, normed, layers[0], style, hidden, host)
        return g.map(current, residual), chosen
    if picked is not None:
        rows = (hidden, picked.shape[0])
        current, residual = g.op(rows, current, picked), g.op(rows, residual, picked)
        if style.parallel:
            after = g.op(rows, after, picked)
    if style.parallel == "neox":
        after = norm(g, residual, style)
    if style.parallel:
        out = feed_forward(g, after, layers[0], style, hidden, host)
        if style.parallel == "falcon":
            return g.map(g.map(out, current), residual), chosen
        if style.parallel == "phi2":
            return g.map(g.map(current, out), residual), chosen
        return g.map(g.map(out, residual), current), chosen
    if style.post_norm_only or arch.startswith("gemma"):
        current = rms_norm(g, current)
    first = arch in _RESIDUAL_BEFORE
    current = g.map(residual, current) if first else g.map(current, residual)
    if not layers:
        return current, chosen
    if len(layers) == 2:
        return _both(g, current, block, style, hidden, host), chosen
    inner = current if style.post_norm_only else norm(g, current, style)
    out = feed_forward(g, inner, layers[0], style, hidden, host)
    if style.residual_first:
        return g.map(current, out), chosen
    return g.map(out, current), chosen


def _side_by_side(
    g: Graph,
    x: Node,
    block: Block,
    style: Style,
    shared: Shared,
    hidden: int,
    picked: Node | None,
) -> Node:
    """Attention and Mamba-2 on the same input, each with a norm of its own (Falcon-H1)."""
    attention = next(m for m in block.mixers if isinstance(m, GroupedQueryAttention))
    mamba = next(m for m in block.mixers if isinstance(m, Mamba2))
    current = grouped_query(g, norm(g, x, style), attention, style, shared, hidden)
    current = g.map(current, mamba2(g, norm(g, x, style), mamba, shared, hidden))
    residual = g.map(current, x)
    if picked is not None:
        residual = g.op((hidden, picked.shape[0]), residual, picked)
    inner = norm(g, residual, style)
    return g.map(feed_forward(g, inner, block.feed_forwards[0], style, hidden), residual)


def _both(
    g: Graph,
    x: Node,
    block: Block,
    style: Style,
    hidden: int,
    host: HostExperts | None,
) -> Node:
    """A dense MLP and experts side by side (Gemma 4)."""
    moe = next(each for each in block.feed_forwards if isinstance(each, MoeMlp))
    mlp = next(each for each in block.feed_forwards if not isinstance(each, MoeMlp))
    t = x.shape[1]
    small = rms_norm(g, dense(g, rms_norm(g, x), hidden, mlp.intermediate_size, gated=True))
    inner = rms_norm(g, x)
    logits = g.op((moe.num_experts, t), g.map(g.map(g.map(x))))
    large = experts_of(g, inner, moe, style, hidden, logits=logits, host=host)
    return g.map(rms_norm(g, g.map(small, rms_norm(g, large))), x)
