"""The operations of DeepSeek-V4's layers in llama.cpp: `llamacpp_layers` for one architecture.

The hidden state is four streams wide (hyper-connections). Attention reads a window of raw tokens
and, in layers with a ratio, states that are compressed 4 or 128 to 1; at ratio 4 an indexer
chooses among them. Sources, llama.cpp commit 0c1e57098: src/models/deepseek4.cpp,
src/llama-kv-cache-dsv4.cpp (dsv4_build_reserve_comp_plan) and src/llama-graph.cpp (build_inp_dsv4).

Symbols: T tokens of a batch, S sequences, D hidden size, M streams of the hidden state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.core.attention import CompressedAttention
from moesize.core.llamacpp_graph import Node
from moesize.core.llamacpp_layers import dense, experts_of, rms_norm
from moesize.core.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moesize.core.feed_forward import MoeMlp
    from moesize.core.llamacpp_graph import Graph
    from moesize.core.llamacpp_layers import HostExperts, Style
    from moesize.core.mixers import Mixer

WINDOW_RATIO, INDEXED_RATIO = 128, 4


def padded(cells: int) -> int:
    """Caches are multiples of 256 cells."""
    return -(-cells // 256) * 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """Inputs of the layers of one ratio.

    blocks   compressed states that a batch can complete: T / ratio + S
    rows     of the running state of all sequences
    cells    compressed states in the cache of one sequence
    """

    ratio: int
    blocks: int
    rows: int
    cells: int
    positions: Node
    read_rows: Node
    write_positions: Node
    write_rows: Node
    keep_from: Node
    keep_to: Node
    mask: Node
    rotation: Node | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What all layers read."""

    tokens: int
    sequences: int
    flash: bool
    quantized: bool
    cuda: bool
    bits: int
    streams: int
    raw_cells: int
    token_ids: Node
    positions: Node
    raw_rows: Node
    raw_mask: Node
    raw_rotation: Node | None
    wide: Compression
    indexed: Compression
    index: Compression


def _compression(
    g: Graph,
    tokens: int,
    sequences: int,
    cells: int,
    ratio: int,
    *,
    overlap: bool,
    mask: str,
    rotation: Node | None,
) -> Compression:
    size = 2 * ratio if overlap else ratio
    blocks = tokens // ratio + sequences
    rows = size * sequences
    kept = min(tokens, rows)
    compressed = padded(-(-cells // ratio))

    def index(count: int, dtype: str = "i32") -> Node:
        return g.input(count, dtype=dtype)

    return Compression(
        ratio=ratio,
        blocks=blocks,
        rows=rows,
        cells=compressed,
        positions=index(tokens),
        read_rows=index((2 if overlap else 1) * ratio * blocks),
        write_positions=index(blocks),
        write_rows=index(blocks, "i64"),
        keep_from=index(kept),
        keep_to=index(kept),
        mask=g.input(compressed, tokens // sequences, 1, sequences, dtype=mask),
        rotation=rotation,
    )


def inputs_of(
    g: Graph,
    attention: CompressedAttention,
    token_ids: Node,
    *,
    tokens: int,
    sequences: int,
    cells: int,
    raw_cells: int,
    flash: bool,
    quantized: bool,
    cuda: bool,
    bits: int,
    streams: int,
) -> Inputs:
    """Inputs of the graph; cells: of one sequence."""
    mask = "f16" if flash else "f32"
    ratio = INDEXED_RATIO

    def rotation(size: int, needed: bool) -> Node | None:
        return g.input(size, size) if needed else None

    def compression(ratio: int, size: int, mask: str, *, rotated: bool) -> Compression:
        return _compression(
            g,
            tokens,
            sequences,
            cells,
            ratio,
            overlap=ratio == INDEXED_RATIO,
            mask=mask,
            rotation=rotation(size, rotated),
        )

    head = attention.head_dim
    return Inputs(
        tokens=tokens,
        sequences=sequences,
        flash=flash,
        quantized=quantized,
        cuda=cuda,
        bits=bits,
        streams=streams,
        raw_cells=raw_cells,
        token_ids=token_ids,
        positions=g.input(tokens, dtype="i32"),
        raw_rows=g.input(tokens, dtype="i64"),
        raw_mask=g.input(raw_cells, tokens // sequences, 1, sequences, dtype=mask),
        raw_rotation=rotation(head, quantized),
        wide=compression(WINDOW_RATIO, head, mask, rotated=quantized),
        indexed=compression(ratio, head, mask, rotated=quantized),
        # Queries and keys of the indexer are always rotated.
        index=compression(ratio, attention.index_head_dim, "f16", rotated=True),
    )


def _window(g: Graph, src: Node, *shape: int) -> Node:
    return g.view(src, *shape, packed=False)


def _narrow(g: Graph, x: Node, mixes: Node, streams: int, hidden: int) -> Node:
    """The streams joined to one, with weights for each."""
    t = x.shape[2] if len(x.shape) > 2 else 1
    weights = g.map(g.map(g.map(g.map(_window(g, mixes, streams, t)))))
    return g.op((hidden, t), x, weights)


def _mixes(g: Graph, x: Node, streams: int, hidden: int) -> Node:
    t = x.shape[2] if len(x.shape) > 2 else 1
    flat = g.map(g.view(x, streams * hidden, t))
    return g.op(((2 + streams) * streams, t), flat)


def _widen(g: Graph, t: int, mixes: Node, streams: int) -> tuple[Node, Node]:
    """Weights of the result in each stream, and of the streams in each other."""
    post = g.map(g.map(g.map(g.map(_window(g, mixes, streams, t)))))
    comb = g.op((streams, streams, t), mixes)
    return post, comb


def _compress(
    g: Graph,
    x: Node,
    inputs: Inputs,
    part: Compression,
    size: int,
) -> None:
    """Running sums of one compressor, and the states that this batch completes."""
    t = inputs.tokens
    overlap = part.ratio == INDEXED_RATIO
    wide = 2 * size if overlap else size
    kv = g.op((wide, t), x)
    score = g.op((wide, t), x)
    score = g.map(score, g.op((wide, t), part.positions))

    def gathered(state: Node) -> Node:
        all_rows = g.op((wide, part.rows + t), state)
        if not overlap:
            rows = g.op((size, part.ratio * part.blocks), all_rows, part.read_rows)
            rows = g.view(rows, size, part.ratio, part.blocks)
            turned = _window(g, rows, part.ratio, size, part.blocks)
            return g.op((part.ratio, size, part.blocks), turned)
        nothing = g.view(g.map(_window(g, all_rows, wide, 1)), wide, 1)
        all_rows = g.op((wide, part.rows + t + 1), all_rows, nothing)
        count = part.ratio * part.blocks
        rows = g.op((wide, 2 * count), all_rows, part.read_rows)
        before = g.op((size, count), _window(g, rows, size, count))
        current = g.op((size, count), _window(g, rows, size, count))
        shape = (size, part.ratio, part.blocks)
        joined = g.op(
            (size, 2 * part.ratio, part.blocks), g.view(before, *shape), g.view(current, *shape)
        )
        turned = _window(g, joined, 2 * part.ratio, size, part.blocks)
        return g.op((2 * part.ratio, size, part.blocks), turned)

    values = gathered(kv)
    weights = g.map(gathered(score))
    total = g.op((1, size, part.blocks), g.map(values, weights))
    state = g.op((size, 1, part.blocks), _window(g, total, size, 1, part.blocks))
    state = g.map(rms_norm(g, state), part.write_positions)
    if part.rotation is not None:
        turned = g.op((size, part.blocks), part.rotation, g.view(state, size, part.blocks))
        state = g.view(turned, size, 1, part.blocks)
    g.expand(g.store(g.view(state, size, part.blocks), part.write_rows))
    kept = part.keep_from.shape[0]
    for source in (kv, score):
        g.expand(g.store(g.op((wide, kept), source, part.keep_from), part.keep_to))


def attend(g: Graph, x: Node, attention: CompressedAttention, inputs: Inputs, hidden: int) -> Node:
    """Attention of one layer, its two output matrices included; (D, T)."""
    t, s = inputs.tokens, inputs.sequences
    n, d, r = attention.num_heads, attention.head_dim, attention.q_lora_rank
    query_latent = rms_norm(g, g.op((r, t), x))
    q = g.map(g.view(g.op((n * d, t), query_latent), d, n, t))
    q = g.map(q, inputs.positions)
    kv = g.view(rms_norm(g, g.op((d, t), x)), d, 1, t)
    kv = g.map(kv, inputs.positions)
    ratio = attention.compress_ratio
    if ratio == INDEXED_RATIO:
        _compress(g, x, inputs, inputs.indexed, d)
        _compress(g, x, inputs, inputs.index, attention.index_head_dim)
    elif ratio:
        _compress(g, x, inputs, inputs.wide, d)
    rotation = inputs.raw_rotation
    if rotation is not None:
        q = g.view(g.op((d, n * t), rotation, g.view(q, d, n * t)), d, n, t)
        kv = g.view(g.op((d, t), rotation, g.view(kv, d, t)), d, 1, t)
    g.expand(q)
    g.expand(kv)
    g.expand(g.store(g.view(kv, d, t), inputs.raw_rows))
    q = _window(g, _window(g, q, d, n, t // s, s), d, t // s, n, s)
    mask = inputs.raw_mask
    cells = inputs.raw_cells
    keys: tuple[Node, ...] = ()
    if ratio:
        part = inputs.indexed if ratio == INDEXED_RATIO else inputs.wide
        cells += part.cells
        extra = cells * s * d * (inputs.bits - 1024) // 512
        keys = (g.op((d, 1, cells, s), dtype="f16", extra=extra),)
        other = part.mask
        if ratio == INDEXED_RATIO:
            other = _chosen(g, x, query_latent, attention, inputs)
        mask = g.op((cells, t // s, 1, s), mask, other, dtype=mask.dtype)
    if inputs.flash:
        size = 4 * d * n * t
        copies = -(-size // 128) * 128 - size + 2 * cells * s * d
        extra = copies if inputs.quantized and inputs.cuda else 0
        out = g.op((d, n, t // s, s), q, *keys, mask, extra=extra)
        out = g.view(out, n * d, t)
    else:
        scores = g.map(g.op((cells, t // s, n, s), *keys, q), mask)
        values = g.op((cells, d, 1, s), *keys, dtype="f16")
        out = g.op((d, t // s, n, s), values, scores)
        out = g.op((n * d, t), _window(g, out, d, n, t // s, s))
    g.expand(out)
    if rotation is not None:
        out = g.op((d, n * t), rotation, g.view(out, d, n * t))
    out = g.map(g.view(out, d, n, t), inputs.positions)
    groups, rank = attention.output_groups, attention.output_rank
    out = _window(g, g.view(out, n * d // groups, groups, t), n * d // groups, t, groups)
    out = g.op((rank, t, groups), out)
    out = g.op((rank * groups, t), _window(g, out, rank, groups, t))
    return g.op((hidden, t), out)


def _chosen(
    g: Graph, x: Node, query_latent: Node, attention: CompressedAttention, inputs: Inputs
) -> Node:
    """The mask of the compressed states that the indexer picks."""
    t, s, part = inputs.tokens, inputs.sequences, inputs.index
    heads, size = attention.index_heads, attention.index_head_dim
    q = g.map(g.view(g.op((heads * size, t), query_latent), size, heads, t), inputs.positions)
    assert part.rotation is not None
    q = g.op((size, heads * t), part.rotation, g.view(q, size, heads * t))
    q = _window(g, g.view(q, size, heads, t), size, heads, t // s, s)
    weights = g.view(g.map(g.op((heads, t), x)), heads, t // s, 1, s)
    score = g.op((part.cells, t // s, 1, s), q, weights, part.mask)
    best = min(part.cells, attention.index_top_k)
    picked = g.op((best, t // s, 1, s), score, dtype="i32")
    picked = g.op((best, t // s, 1, s), picked, dtype="i32")
    mask = inputs.indexed.mask
    everything = g.view(
        g.op(mask.shape, mask, dtype=mask.dtype, inplace=True), 1, part.cells, t // s, s
    )
    zeros = g.leaf(1, best, t // s, s, dtype=mask.dtype)
    zeros = g.op(zeros.shape, zeros, dtype=mask.dtype, inplace=True)
    written = g.overwrite(everything, zeros, g.view(picked, best, t // s, s))
    window = g.view(written, part.cells, t // s, 1, s)
    return g.op(mask.shape, window, mask, dtype=mask.dtype, inplace=True)


def pass_over(g: Graph, mixers: Sequence[Mixer], inputs: Inputs) -> None:
    """What layers that are not planned still need: the zeros of their indexers."""
    part, s = inputs.index, inputs.sequences
    zeros = [
        g.leaf(
            1,
            min(part.cells, mixer.index_top_k),
            inputs.tokens // s,
            s,
            dtype=inputs.indexed.mask.dtype,
        )
        for mixer in mixers
        if isinstance(mixer, CompressedAttention) and mixer.compress_ratio == INDEXED_RATIO
    ]
    if zeros:
        g.expand(g.store(*zeros))


def layer(
    g: Graph,
    x: Node,
    attention: CompressedAttention,
    moe: MoeMlp,
    style: Style,
    inputs: Inputs,
    hidden: int,
    host: HostExperts | None,
) -> Node:
    """One layer: (D, M, T) to (D, M, T)."""
    t, m = inputs.tokens, inputs.streams
    residual = x
    mixes = _mixes(g, x, m, hidden)
    out = attend(g, rms_norm(g, _narrow(g, x, mixes, m, hidden)), attention, inputs, hidden)
    post, comb = _widen(g, t, mixes, m)
    x = residual = g.op((hidden, m, t), out, residual, post, comb)
    mixes = _mixes(g, x, m, hidden)
    narrow = _narrow(g, x, mixes, m, hidden)
    post, comb = _widen(g, t, mixes, m)
    g.expand(residual)
    g.expand(post)
    g.expand(comb)
    inner = rms_norm(g, narrow)
    chosen = None
    if moe.hash_vocab_size:
        chosen = g.op((moe.experts_per_token, t), inputs.token_ids, dtype="i32")
    out = experts_of(g, inner, moe, style, hidden, host=host, chosen=chosen)
    if moe.shared is not None:
        size = moe.shared.intermediate_size
        out = g.map(out, dense(g, inner, hidden, size, gated=True, suffix="_shexp"))
    return g.op((hidden, m, t), out, residual, post, comb)


def head(g: Graph, x: Node, picked: Node, streams: int, hidden: int) -> Node:
    """The streams of the picked rows joined; (D, outputs)."""
    t, outputs = x.shape[2], picked.shape[0]
    rows = g.op((streams * hidden, outputs), g.view(x, streams * hidden, t), picked)
    wide = g.view(rows, hidden, streams, outputs)
    mixes = g.op((streams, outputs), g.map(g.view(wide, streams * hidden, outputs)))
    weights = g.map(g.map(g.map(g.map(mixes))))
    total: Node | None = None
    for _ in range(streams):
        part = g.op(
            (hidden, outputs),
            _window(g, wide, hidden, outputs),
            _window(g, weights, 1, outputs),
            inplace=True,
        )
        total = part if total is None else g.map(total, part)
    assert total is not None
    return total
