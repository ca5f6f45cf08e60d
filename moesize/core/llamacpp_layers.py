"""The operations of llama.cpp's layers, as far as their tensors take room in a compute buffer.

Each function puts the operations of one part of a layer into a `Graph`, in the order in which
llama.cpp states them; weights and constants do not appear, and neither do operations that always
overwrite their input without changing what lives when (biases, scales by a constant).
Sources, llama.cpp commit 0c1e57098: src/llama-graph.cpp (build_qkv, build_attn, build_attn_mha,
build_ffn, build_moe_ffn, build_rs), src/llama-kv-cache.cpp (cpy_k, cpy_v) and src/models/*.cpp.

Symbols: T tokens of a batch, D hidden size, N query heads, K KV heads, d head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from moesize.core.feed_forward import DenseMlp, MoeMlp
from moesize.core.ik_llamacpp import decompressed
from moesize.core.llamacpp_graph import HOST, Graph, Node
from moesize.core.records import dataclass

if TYPE_CHECKING:
    from moesize.core.attention import GroupedQueryAttention, LatentAttention


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """What sets one architecture's graph apart from Llama's.

    layer_norm    LayerNorm, which needs a tensor of its own; RMSNorm overwrites its input
    parallel      attention and feed-forward read the layer's input, the variants by their norms
                  and the order of their sums
    fused_qkv     one matrix for queries, keys and values; the parts are copied out where a norm
                  or a window needs it
    fused_gate_up gate and up are one matrix: the activation reads both halves
    fused_experts the same for routed experts
    keeps_hidden  the normalized hidden state of all tokens is an output of the graph, for drafting
    late_outputs  all tokens pass the last layer; rows of the outputs are picked behind it
    pick_first    ... and before the last norm (gpt-oss)
    weight_first  the router's weights multiply the input of the experts (Llama 4)
    no_positions  no rotary embedding
    hybrid        the layer begins with a norm that is computed before anything else
    scaled_input  the embeddings are multiplied by a constant on the GPU
    window_cache  layers with a sliding window have a cache of their own
    residual_first  the residual is the first summand behind the feed-forward
    post_norm_only  no norm before attention and feed-forward, one behind each (OLMo 2)
    renormalizes  of the router's weights, where the graph does not follow the model's config
    """

    layer_norm: bool = False
    parallel: Literal["", "falcon", "command-r", "phi2", "neox"] = ""
    fused_qkv: bool = False
    fused_gate_up: bool = False
    fused_experts: bool = False
    keeps_hidden: bool = False
    late_outputs: bool = False
    pick_first: bool = False
    weight_first: bool = False
    no_positions: bool = False
    scaled_input: bool = False
    window_cache: bool = False
    residual_first: bool = False
    renormalizes: bool | None = None
    post_norm_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSparse:
    """Inputs of block-sparse attention (MiniMax-M3).

    positions    positions that the plan is made for: 256 whatever the context, as the planned cache
                 is empty (llama-kv-cache-msa.cpp, get_n_pos); blocks: of 128 positions
    bias, position_mask   (blocks, T) and (positions, T); slots, block_of: rows of the cache
    wide_mask    the mask as F32, made once for all layers
    """

    positions: int
    blocks: int
    bias: Node
    position_mask: Node
    slots: Node
    block_of: Node
    rows: Node
    wide_mask: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all layers of one graph read.

    tokens, sequences, streams   of the planned batch; streams: parts that the cache is cut into
    cells, window_cells          of one stream
    k_bits, v_bits               of 64 elements in the cache
    snapshots                    states that a recurrent layer keeps for roll-back
    cuda                         CUDA's kernels, which copy a quantized cache to 16 bits first
    decompresses                 ik_llama.cpp makes keys and values of MLA for prompts: bytes of
                                 -amb, 0 = no limit; None = it does not
    """

    tokens: int
    sequences: int
    streams: int
    cells: int
    window_cells: int
    flash: bool
    cuda: bool
    snapshots: int = 0
    quantized_k: bool
    quantized_v: bool
    k_bits: int = 1024
    v_bits: int = 1024
    positions: Node | None
    k_rows: Node
    v_rows: Node | None
    mask: Node
    window_k_rows: Node | None = None
    window_v_rows: Node | None = None
    window_mask: Node | None = None
    k_rotation: Node | None = None
    v_rotation: Node | None = None
    window_k_rotation: Node | None = None
    window_v_rotation: Node | None = None
    index_rows: Node | None = None
    index_mask: Node | None = None
    index_rotation: Node | None = None
    state_rows: Node | None = None
    state_others: Node | None = None
    temperature: Node | None = None
    block_sparse: BlockSparse | None = None
    decompresses: int | None = None
    on_gpu: bool = True


# Smaller batches are computed on the latent cache (ikawrakow/ik_llama.cpp pull request 273).
_DECOMPRESSED_BATCH = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class HostExperts:
    """Routed experts of a layer in host memory: bytes of gate, up and down of all experts."""

    bytes: tuple[int, int, int]


def norm(g: Graph, x: Node, style: Style, device: int | None = None) -> Node:
    """Norm with a weight; device: where it runs, if not where its weight lies."""
    own = g.device
    g.device = own if device is None else device
    normed = g.op(x.shape, x, inplace=not style.layer_norm)
    g.device = own
    return _weighted(g, normed)


def _weighted(g: Graph, x: Node) -> Node:
    weight = () if g.host_tensors is None else (4 * x.shape[0],)
    return g.map(x, host_weights=weight)


def rms_norm(g: Graph, x: Node) -> Node:
    """RMSNorm with a weight."""
    return _weighted(g, g.map(x))


def _rope(g: Graph, x: Node, shared: Shared) -> Node:
    """Rotary embedding; its factors are a weight in some files (rope_freqs)."""
    if shared.positions is None:
        return x
    factors = 0 if g.host_tensors is None else g.host_tensors.get("rope_freqs", 0)
    return g.map(x, shared.positions, host_weights=(factors,) if factors else ())


def _rotate(g: Graph, x: Node, rotation: Node | None) -> Node:
    """Hadamard rotation of heads, which quantized caches get."""
    if rotation is None:
        return x
    n = rotation.shape[0]
    elements = 1
    for extent in x.shape:
        elements *= extent
    flat = g.view(x, n, elements // n) if x.packed else g.op((n, elements // n), x)
    turned = g.op((n, elements // n), rotation, flat)
    return g.view(turned, *x.shape)


# --- Attention ----------------------------------------------------------------------------------


def _split_qkv(
    g: Graph, x: Node, attention: GroupedQueryAttention, style: Style, flat: bool
) -> tuple[Node, Node, Node]:
    """Queries, keys and values; flat: not yet cut into heads."""
    t = x.shape[1] if len(x.shape) > 1 else 1
    n, k, d, dv = (
        attention.num_heads,
        attention.num_kv_heads,
        attention.head_dim,
        attention.v_head_dim,
    )
    wide = 2 if attention.gate == "elementwise" else 1
    if style.fused_qkv:
        qkv = g.matmul("attn_qkv", (n * d + k * d + k * dv, t), x)
        parts = (
            g.view(qkv, d, n, t, packed=False),
            g.view(qkv, d, k, t, packed=False),
            g.view(qkv, dv, k, t, packed=False),
        )
        if flat:
            q, key, value = (g.op(part.shape, part) for part in parts)
            return q, key, value
        return parts
    # Biases are added in place, and so change nothing.
    q = g.matmul("attn_q", (wide * n * d, t), x)
    key = g.matmul("attn_k", (k * d, t), x)
    value = key if attention.key_is_value else g.matmul("attn_v", (k * dv, t), x)
    if flat:
        return q, key, value
    return g.view(q, d, n, t), g.view(key, d, k, t), g.view(value, dv, k, t)


def _window(shared: Shared, windowed: bool) -> tuple[int, Node, Node, Node | None]:
    if windowed and shared.window_mask is not None and shared.window_k_rows is not None:
        return (
            shared.window_cells,
            shared.window_mask,
            shared.window_k_rows,
            shared.window_v_rows,
        )
    return shared.cells, shared.mask, shared.k_rows, shared.v_rows


def _cached(
    g: Graph, shared: Shared, kv_heads: int, d: int, dv: int, cells: int
) -> tuple[Node, ...]:
    """Keys and values in host memory, where the layer's weights lie there; else nothing."""
    if g.host_tensors is None:
        return ()
    rows = cells * shared.streams
    parts = ((kv_heads * d, shared.k_bits), (kv_heads * dv, shared.v_bits))
    return tuple(
        g.cache(width, rows, nbytes=rows * width * bits // 512) for width, bits in parts if width
    )


def _flash(
    g: Graph,
    q: Node,
    mask: Node,
    shared: Shared,
    *,
    heads: int,
    d: int,
    dv: int,
    kv_heads: int,
    cells: int,
    value_is_key: bool = False,
    cached: tuple[Node, ...] = (),
) -> Node:
    t = shared.tokens
    size = 4 * dv * heads * t
    extra = 0
    if shared.cuda:
        rows = cells * shared.streams * kv_heads
        if shared.quantized_k:
            extra = -(-(size + extra) // 128) * 128 - size + 2 * rows * d
        if shared.quantized_v and not value_is_key:
            extra = -(-(size + extra) // 128) * 128 - size + 2 * rows * dv
    per_stream = t // shared.streams
    q = g.view(q, d, heads, per_stream, shared.streams, packed=False)
    q = g.view(q, d, per_stream, heads, shared.streams, packed=False)
    return g.op((dv, heads, per_stream, shared.streams), q, *cached, mask, extra=extra)


def _scores(
    g: Graph,
    q: Node,
    mask: Node,
    shared: Shared,
    *,
    heads: int,
    d: int,
    dv: int,
    cells: int,
    value_heads: int = 0,
    cached: tuple[Node, ...] = (),
) -> Node:
    """Attention without flash attention; value_heads: values must be copied transposed first."""
    t, s = shared.tokens, shared.streams
    q = g.view(q, d, heads, t // s, s, packed=False)
    q = g.view(q, d, t // s, heads, s, packed=False)
    kq = g.op((cells, t // s, heads, s), *cached[:1], q)
    kq = g.map(kq, mask)
    if value_heads:
        values = g.op((cells, dv, value_heads, s), dtype="f16")
        return g.op((dv, t // s, heads, s), values, kq)
    return g.op((dv, t // s, heads, s), *cached[1:], kq)


def attend(
    g: Graph,
    q: Node,
    key: Node | None,
    value: Node | None,
    attention: GroupedQueryAttention,
    shared: Shared,
    *,
    windowed: bool,
    split_cache: bool,
) -> Node:
    """Writes keys and values into the cache and attends; (N*dv, T) before the output matrix."""
    n, k, d, dv = (
        attention.num_heads,
        attention.num_kv_heads,
        attention.head_dim,
        attention.v_head_dim,
    )
    t = shared.tokens
    cells, mask, k_rows, v_rows = _window(shared, windowed)
    in_window = windowed and shared.window_mask is not None
    k_rotation = shared.window_k_rotation if in_window else shared.k_rotation
    v_rotation = shared.window_v_rotation if in_window else shared.v_rotation
    q = _rotate(g, q, k_rotation)
    g.expand(q)
    if key is not None and value is not None:
        key = _rotate(g, key, k_rotation)
        value = _rotate(g, value, v_rotation)
        for part in (key, value) if split_cache else (value, key):
            g.expand(part)
        own = g.device
        if g.host_tensors is not None:
            g.device = HOST
        g.expand(g.store(g.view(key, k * d, t), k_rows))
        flat = g.view(value, k * dv, t)
        if v_rows is not None:
            if not shared.flash:
                if not value.packed:
                    flat = g.op((k * dv, t), value)
                flat = g.view(flat, 1, k * dv * t)
            g.expand(g.store(flat, v_rows))
        g.device = own
    cached = _cached(g, shared, k, d, dv, cells)
    if shared.flash:
        out = _flash(
            g, q, mask, shared, heads=n, d=d, dv=dv, kv_heads=k, cells=cells, cached=cached
        )
        out = g.view(out, n * dv, t)
    else:
        out = _scores(g, q, mask, shared, heads=n, d=d, dv=dv, cells=cells, cached=cached)
        out = g.op((n * dv, t), g.view(out, dv, n, t, packed=False))
    g.expand(out)
    return _rotate(g, out, v_rotation)


def grouped_query(
    g: Graph, x: Node, attention: GroupedQueryAttention, style: Style, shared: Shared, hidden: int
) -> Node:
    """Attention of one layer, its output matrix included; (D, T)."""
    t = shared.tokens
    n, k, d, dv = (
        attention.num_heads,
        attention.num_kv_heads,
        attention.head_dim,
        attention.v_head_dim,
    )
    windowed = style.window_cache and (attention.window is not None or attention.chunk is not None)
    if attention.gate == "elementwise":
        return _gated_query(g, x, attention, style, shared, hidden)
    flat = attention.qk_norm in ("projection", "per_head") and not style.fused_qkv
    key: Node | None
    value: Node | None
    if attention.shares_kv:
        q = g.view(g.matmul("attn_q", (n * d, t), x), d, n, t)
        key = value = None
    else:
        q, key, value = _split_qkv(g, x, attention, style, flat)
    if flat and key is not None and value is not None:
        q, key = rms_norm(g, q), rms_norm(g, key)
        q, key, value = g.view(q, d, n, t), g.view(key, d, k, t), g.view(value, dv, k, t)
    elif attention.qk_norm == "head":
        q = rms_norm(g, q)
        key = None if key is None else rms_norm(g, key)
    if attention.v_norm and value is not None:
        value = g.map(value)
    if not style.no_positions:
        q = _rope(g, q, shared)
        key = None if key is None else _rope(g, key, shared)
    elif shared.temperature is not None:
        q = g.map(q, shared.temperature)
    if attention.index_heads and shared.block_sparse is not None:
        assert key is not None
        assert value is not None
        out = _block_sparse(g, x, q, key, value, attention, shared)
        return g.matmul("attn_output", (hidden, t), out)
    gate = None
    if attention.gate == "projection":
        gate = g.matmul("attn_gate", (n * dv, t), x)
    elif attention.gate == "per_head":
        gate = g.matmul("attn_gate", (n, t), x)
    out = attend(
        g, q, key, value, attention, shared, windowed=windowed, split_cache=style.window_cache
    )
    if gate is not None and attention.gate == "per_head":
        out = g.map(g.view(out, dv, n, t), g.view(g.map(gate), 1, n, t))
        out = g.view(out, n * dv, t)
    elif gate is not None:
        out = g.map(out, g.map(gate))
    return g.matmul("attn_output", (hidden, t), out)


def _block_sparse(
    g: Graph,
    x: Node,
    q: Node,
    key: Node,
    value: Node,
    attention: GroupedQueryAttention,
    shared: Shared,
) -> Node:
    """Attention to the blocks that an indexer picks for each KV head (MiniMax-M3); (N*d, T)."""
    sparse = shared.block_sparse
    assert sparse is not None
    assert shared.v_rows is not None
    t, n_streams, cells = shared.tokens, shared.streams, shared.cells
    n, k, d = attention.num_heads, attention.num_kv_heads, attention.head_dim
    heads, size = attention.index_heads, attention.index_head_dim
    index_q = rms_norm(g, g.view(g.matmul("index_q_proj", (heads * size, t), x), size, heads, t))
    index_k = rms_norm(g, g.view(g.matmul("index_k_proj", (size, t), x), size, 1, t))
    index_q, index_k = _rope(g, index_q, shared), _rope(g, index_k, shared)
    g.expand(g.store(g.view(index_k, size, t), sparse.rows))
    q = _rotate(g, q, shared.k_rotation)
    key = _rotate(g, key, shared.k_rotation)
    value = _rotate(g, value, shared.v_rotation)
    for part in (q, key, value):
        g.expand(part)
    g.expand(g.store(g.view(key, k * d, t), shared.k_rows))
    g.expand(g.store(g.view(value, k * d, t), shared.v_rows))
    each = t // n_streams
    best = min(attention.index_top_k, sparse.blocks)
    outs = []
    for _ in range(n_streams):
        keys = g.op((size, sparse.positions), g.view(sparse.slots, sparse.positions, packed=False))
        picked_q = g.view(
            g.view(index_q, size, heads, each, packed=False), size, heads * each, packed=False
        )
        score = g.op((sparse.positions, heads * each), keys, picked_q)
        score = g.view(score, sparse.positions, heads, each)
        allowed = g.view(sparse.position_mask, sparse.positions, 1, each, packed=False)
        score = _add_in_place(g, score, allowed)
        bias = g.view(sparse.bias, sparse.blocks, 1, each, packed=False)
        block = g.map(g.op((sparse.blocks, heads, each), score), bias)
        chosen = g.op((best, heads, each), block, dtype="i32")
        never = g.op((sparse.blocks, 1, each), g.op((sparse.blocks, 1, each), bias), dtype="f16")
        never = g.op((sparse.blocks, heads, each), never, dtype="f16")
        zero = g.map(g.op((best, heads, each), chosen))
        mask = g.overwrite(
            g.view(never, 1, sparse.blocks, heads * each),
            g.view(zero, 1, best, heads * each),
            g.view(chosen, best, heads * each),
        )
        mask = g.view(mask, sparse.blocks, each, heads, packed=False)
        mask = g.op((sparse.blocks, each, heads), mask, dtype="f16")
        mask = g.view(g.view(mask, sparse.blocks, each * heads), each * heads, sparse.blocks)
        mask = g.op((each * heads, sparse.blocks), mask, dtype="f16")
        mask = g.op((each * heads, cells), mask, g.view(sparse.block_of, cells, packed=False))
        mask = g.op((cells, each * heads), g.view(mask, cells, each * heads, packed=False))
        own = g.view(sparse.wide_mask, cells, each, 1, packed=False)
        mask = _add_in_place(g, g.view(mask, cells, each, heads), own)
        mask = g.op((cells, each, 1, heads), g.view(mask, cells, each, 1, heads), dtype="f16")
        part = g.view(q, d, n, each, packed=n_streams == 1)
        part = g.view(g.view(part, d, n // k, k, each), d, each, n // k, k, packed=False)
        out_bytes, extra = 4 * d * n * each, 0
        if shared.cuda and shared.quantized_k:
            extra = -(-out_bytes // 128) * 128 - out_bytes + 2 * cells * k * d
        if shared.cuda and shared.quantized_v:
            extra = -(-(out_bytes + extra) // 128) * 128 - out_bytes + 2 * cells * k * d
        out = g.op((d, n // k, each, k), part, mask, extra=extra)
        out = g.op((d, n // k, k, each), g.view(out, d, n // k, k, each, packed=False))
        outs.append(g.view(out, d * n, each))
    total = outs[0]
    for count, part in enumerate(outs[1:], start=2):
        total = g.op((d * n, each * count), total, part)
    return _rotate(g, total, shared.v_rotation)


def _add_in_place(g: Graph, target: Node, other: Node) -> Node:
    node = Node(target.shape, target.dtype, 0, (target, other), g.device)
    node.root = target.root or target
    return node


def _gated_query(
    g: Graph, x: Node, attention: GroupedQueryAttention, style: Style, shared: Shared, hidden: int
) -> Node:
    """Queries and a gate of the same width from one matrix (Qwen3-Next, Qwen3.5)."""
    t = shared.tokens
    n, k, d, dv = (
        attention.num_heads,
        attention.num_kv_heads,
        attention.head_dim,
        attention.v_head_dim,
    )
    full, key, value = _split_qkv(g, x, attention, style, flat=True)
    q = rms_norm(g, g.view(full, d, n, t, packed=False))
    key = rms_norm(g, g.view(key, d, k, t))
    window = g.view(full, d, n, t, packed=False)
    gate = g.op((n * dv, t), window)
    q, key = _rope(g, q, shared), _rope(g, key, shared)
    out = attend(
        g,
        q,
        key,
        g.view(value, dv, k, t),
        attention,
        shared,
        windowed=False,
        split_cache=False,
    )
    return g.matmul("attn_output", (hidden, t), g.map(out, g.map(gate)))


def latent(
    g: Graph,
    x: Node,
    attention: LatentAttention,
    shared: Shared,
    hidden: int,
    chosen: Node | None,
) -> tuple[Node, Node | None]:
    """MLA on its latent cache, with the token choice of an indexer where there is one.

    chosen: what the last layer with an indexer picked. Returns (D, T) and the choice.
    """
    t = shared.tokens
    n, r = attention.num_heads, attention.kv_lora_rank
    nope, rope, v = (
        attention.qk_nope_head_dim,
        attention.qk_rope_head_dim,
        attention.v_head_dim,
    )
    sparse = attention.indexer is not None or attention.index_shared
    query_latent = None
    if attention.q_lora_rank is not None:
        query_latent = rms_norm(g, g.matmul("attn_q_a", (attention.q_lora_rank, t), x))
    if attention.indexer is not None and query_latent is not None:
        chosen = _choose(g, x, query_latent, attention, shared)
    if query_latent is not None:
        q = g.matmul("attn_q_b", (n * (nope + rope), t), query_latent)
    else:
        q = g.matmul("attn_q", (n * (nope + rope), t), x)
    if not sparse:
        q = g.view(q, nope + rope, n, t)
    compressed = g.matmul("attn_kv_a_mqa", (r + rope, t), x)
    q_rope = _rope(g, g.view(q, rope, n, t, packed=False), shared)
    k_rope = _rope(g, g.view(compressed, rope, 1, t, packed=False), shared)
    kv = rms_norm(g, g.view(compressed, r, t, packed=False))
    q_nope = g.view(g.view(q, nope, n, t, packed=False), nope, t, n, packed=False)
    if shared.decompresses is not None and t >= _DECOMPRESSED_BATCH:
        key = g.op((r + rope, t), g.view(k_rope, rope, t), kv)
        g.expand(q_rope)
        g.expand(g.store(key))
        out = decompressed(
            g,
            q_nope,
            g.view(q_rope, rope, t, n, packed=False),
            attention,
            shared.mask,
            tokens=t,
            cells=shared.cells,
            quantized=shared.quantized_k,
            bits=1024 if shared.on_gpu else shared.k_bits,
            limit_bytes=shared.decompresses,
        )
        g.expand(out)
        return g.matmul("attn_output", (hidden, t), out), chosen
    absorbed = g.view(g.matmul("attn_k_b", (r, t, n), q_nope), r, n, t, packed=False)
    q = g.op((r + rope, n, t), absorbed, q_rope)
    kv = g.view(kv, r, 1, t)
    key = g.op((r + rope, 1, t), kv, k_rope)
    g.expand(q)
    g.expand(kv)
    g.expand(key)
    own = g.device
    if g.host_tensors is not None:
        g.device = HOST
    g.expand(g.store(g.view(key, r + rope, t), shared.k_rows))
    g.device = own
    cached = _cached(g, shared, 1, r + rope, 0, shared.cells)
    mask = shared.mask
    if sparse and chosen is not None:
        mask = _pick(g, mask, chosen, shared)
    if shared.flash:
        out = _flash(
            g,
            q,
            mask,
            shared,
            heads=n,
            d=r + rope,
            dv=r,
            kv_heads=1,
            cells=shared.cells,
            value_is_key=True,
            cached=cached,
        )
        out = g.matmul("attn_v_b", (v, t, n), g.view(out, r, t, n, packed=False))
        out = g.op((v, n, t), g.view(out, v, n, t, packed=False))
        out = g.view(out, n * v, t)
    else:
        out = _scores(
            g,
            q,
            mask,
            shared,
            heads=n,
            d=r + rope,
            dv=r,
            cells=shared.cells,
            value_heads=1,
            cached=cached,
        )
        out = g.matmul("attn_v_b", (v, t, n), out)
        out = g.op((n * v, t), g.view(out, v, n, t, packed=False))
    g.expand(out)
    if attention.output_gate:
        out = g.map(out, g.map(g.op((n * v, t), x)))
    return g.matmul("attn_output", (hidden, t), out), chosen


def _choose(
    g: Graph, x: Node, query_latent: Node, attention: LatentAttention, shared: Shared
) -> Node:
    """The lightning indexer: a score for every cached token, and the best `top_k` of them."""
    indexer = attention.indexer
    assert indexer is not None
    t, s = shared.tokens, shared.streams
    heads, d = indexer.num_heads, indexer.head_dim
    q = g.view(g.op((heads * d, t), query_latent), d, heads, t)
    q = _rope(g, q, shared)
    key = g.op((d, t), x)
    key = g.map(g.op((d, t), key))
    key = _rope(g, g.view(key, d, 1, t), shared)
    rotation = shared.index_rotation
    mask = shared.index_mask
    rows = shared.index_rows
    assert mask is not None
    assert rows is not None
    if rotation is not None:
        q, key = g.op((d, heads, t), rotation, q), g.op((d, 1, t), rotation, key)
    g.expand(g.store(g.view(key, d, t), rows))
    weights = g.op((heads, t), x)
    q = g.view(q, d, heads, t // s, s, packed=False)
    # The window over the weights is as packed as they are.
    weights = g.map(g.view(weights, heads, t // s, 1, s))
    score = g.op((shared.cells, t // s, 1, s), q, weights, mask)
    best = min(shared.cells, indexer.top_k)
    picked = g.op((best, t // s, 1, s), score, dtype="i32")
    return g.op((best, t // s, 1, s), picked, dtype="i32")


def _pick(g: Graph, mask: Node, chosen: Node, shared: Shared) -> Node:
    """A mask that lets the chosen tokens through only."""
    t, s = shared.tokens, shared.streams
    cells, best = shared.cells, chosen.shape[0]
    everything = g.op(mask.shape, mask, dtype=mask.dtype, inplace=True)
    everything = g.view(everything, 1, cells, t // s, s)
    zeros = g.map(g.leaf(1, best, t // s, s))
    rows = g.view(chosen, best, t // s, s)
    written = g.overwrite(everything, zeros, rows)
    window = g.view(written, cells, t // s, 1, s)
    return g.op(mask.shape, window, mask, dtype=mask.dtype, inplace=True)


# --- Feed-forward -------------------------------------------------------------------------------


def dense(
    g: Graph,
    x: Node,
    hidden: int,
    width: int,
    *,
    gated: bool,
    fused: bool = False,
    suffix: str = "",
) -> Node:
    """down(act(gate) * up); (D, T). suffix: of the names of its weights."""
    t = x.shape[1] if len(x.shape) > 1 else 1
    if fused:
        out = g.op((width, t), g.matmul("ffn_up" + suffix, (2 * width, t), x))
    elif gated and g.fused:
        out = g.matmul("ffn_gate" + suffix, (width, t), x)
    elif gated:
        up = g.matmul("ffn_up" + suffix, (width, t), x)
        out = g.op((width, t), g.matmul("ffn_gate" + suffix, (width, t), x), up)
    else:
        out = g.map(g.matmul("ffn_up" + suffix, (width, t), x))
    return g.matmul("ffn_down" + suffix, (hidden, t), out)


def _padded(nbytes: int, shape: tuple[int, int, int]) -> int:
    """Bytes of a quantized matrix on CUDA: the row is filled up to 512 elements once."""
    elements = shape[0] * shape[1] * shape[2]
    if not shape[0] % 512 or nbytes >= 2 * elements:
        return nbytes
    return nbytes + (512 - shape[0] % 512) * nbytes // elements


def experts_of(
    g: Graph,
    x: Node,
    moe: MoeMlp,
    style: Style,
    width: int,
    *,
    logits: Node | None = None,
    host: HostExperts | None = None,
    chosen: Node | None = None,
) -> Node:
    """Router and routed experts; (width, T). chosen: experts that a table gives, not the router."""
    t = x.shape[1] if len(x.shape) > 1 else 1
    e, k, f = moe.num_experts, moe.experts_per_token, moe.intermediate_size
    if logits is None:
        logits = g.matmul("ffn_gate_inp", (e, t), x)
    # Softmax and sigmoid overwrite the scores; Llama 4 sorts the scores themselves.
    softmax_last = moe.router_bias == "bias"
    probs = logits if softmax_last else g.map(logits)
    if chosen is not None:
        order = chosen
    elif style.weight_first:
        order = g.op((e, t), logits, dtype="i32")
    elif moe.router_bias == "correction":
        order = g.op((e, t), g.map(probs), dtype="i32")
    else:
        order = g.op((e, t), probs, dtype="i32")
    ids = order if chosen is not None else g.view(order, k, t, packed=False)
    weights = g.op((1, k, t), g.view(probs, 1, e, t), ids)
    if softmax_last:
        weights = g.view(g.map(g.view(weights, k, t)), 1, k, t)
    renormalizes = moe.renormalizes if style.renormalizes is None else style.renormalizes
    if renormalizes and not softmax_last and not style.weight_first:
        flat = g.view(weights, k, t)
        total = g.map(g.op((1, t), flat))
        weights = g.view(g.map(flat, total), 1, k, t)
    g.expand(weights)
    cur = g.view(x, width, 1, t)
    if style.weight_first:
        cur = g.map(g.op((width, k, t), cur), weights)

    own = g.device
    if host is not None:
        # Work on weights in host memory goes to the first GPU, whatever the layer's is.
        g.device = HOST if g.experts_stay else 1
    if g.experts_stay:
        host = None
    bias = moe.bias

    def product(shape: tuple[int, int], src: Node, nbytes: int) -> Node:
        """One matrix of every chosen expert, and its bias."""
        weight = (_padded(nbytes, (*shape, e)),) if host is not None else ()
        out = g.op((shape[1], k, t), src, ids, host_weights=weight)
        if bias:
            added = (4 * shape[1] * e,) if host is not None else ()
            out = g.map(out, ids, host_weights=added)
        return out

    gate_bytes, up_bytes, down_bytes = host.bytes if host is not None else (0, 0, 0)
    if style.fused_experts and moe.gated:
        both = product((width, 2 * f), cur, gate_bytes + up_bytes)
        out = g.op(
            (f, k, t),
            g.view(both, f, k, t, packed=False),
            g.view(both, f, k, t, packed=False),
        )
    elif g.fused and moe.gated:
        out = product((width, f), cur, gate_bytes + up_bytes)
    else:
        up = product((width, f), cur, up_bytes)
        if moe.gated:
            out = g.op((f, k, t), product((width, f), cur, gate_bytes), up)
        else:
            out = g.map(g.map(up))
    out = product((f, width), out, down_bytes)
    if not style.weight_first:
        out = g.map(out, weights)
    g.expand(out)
    if g.fused and k > 1:
        total = g.op((width, t), out)
        g.device = own
        return total
    parts = [g.view(out, width, t, packed=k == 1) for _ in range(k)]
    for part in parts:
        g.expand(part)
    total = parts[0]
    for part in parts[1:]:
        total = g.map(total, part)
        g.expand(total)
    if k == 1:
        total = g.op((width, t), total)
    g.device = own
    return total


def mixture(
    g: Graph,
    x: Node,
    moe: MoeMlp,
    style: Style,
    hidden: int,
    *,
    host: HostExperts | None = None,
) -> Node:
    """Routed and shared experts; (D, T)."""
    t = x.shape[1] if len(x.shape) > 1 else 1
    inner, width, logits = x, hidden, None
    if moe.latent_size is not None:
        width = moe.latent_size
        inner = g.op((width, t), x)
        logits = g.op((moe.num_experts, t), x)
    elif not moe.gated:
        logits = g.op((moe.num_experts, t), x)
    out = experts_of(g, inner, moe, style, width, logits=logits, host=host)
    if moe.latent_size is not None:
        out = g.op((hidden, t), out)
    shared = moe.shared
    if shared is None:
        return out
    extra = dense(g, x, hidden, shared.intermediate_size, gated=shared.gated, suffix="_shexp")
    if shared.gate:
        extra = g.map(extra, g.map(g.op((1, t), x)))
    return g.map(out, extra)


def feed_forward(
    g: Graph,
    x: Node,
    layer: DenseMlp | MoeMlp,
    style: Style,
    hidden: int,
    host: HostExperts | None = None,
) -> Node:
    """The channel mixer of one layer; (D, T)."""
    if isinstance(layer, MoeMlp):
        return mixture(g, x, layer, style, hidden, host=host)
    return dense(
        g, x, hidden, layer.intermediate_size, gated=layer.gated, fused=style.fused_gate_up
    )
