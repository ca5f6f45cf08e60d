"""What ik_llama.cpp's graphs have of their own.

Known from its pull requests, whose text and field logs are the sources named here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moesize.core.attention import LatentAttention
    from moesize.core.llamacpp_graph import Graph, Node


def heads_at_once(attention: LatentAttention, cells: int, limit_bytes: int) -> int:
    """Heads that -amb lets decompress at once: halved until their F32 product is small enough."""
    heads = attention.num_heads
    width = attention.qk_nope_head_dim + attention.v_head_dim
    while limit_bytes and heads % 2 == 0 and 4 * width * heads * cells > limit_bytes:
        heads //= 2
    return heads


def decompressed(
    g: Graph,
    q_nope: Node,
    q_rope: Node,
    attention: LatentAttention,
    mask: Node,
    *,
    tokens: int,
    cells: int,
    quantized: bool,
    bits: int,
    limit_bytes: int,
) -> Node:
    """Attention of a prompt with -mla 2 or 3 and flash attention; (heads x v, T).

    Keys and values of the whole context are made of the latent cache, some heads at a time
    (-amb). The 16-bit copies of all heads are put into the graph before attention reads the first
    one, so that all of them live at once (ikawrakow/ik_llama.cpp pull requests 243, 253, 273).
    They are of the cache's own type where CUDA is not built in. bits: of 64 of their elements.
    """
    rope, v = attention.qk_rope_head_dim, attention.v_head_dim
    nope, heads = attention.qk_nope_head_dim, attention.num_heads

    def copy(width: int, *srcs: Node) -> Node:
        return g.op((width * bits // 1024, cells, some), *srcs, dtype="f16")

    some = heads_at_once(attention, cells, limit_bytes)
    cast = (g.op((rope, cells), dtype="f16"),) if quantized and bits == 1024 else ()
    k_rope = copy(rope, *cast)
    q = g.op((nope + rope, tokens, heads), q_nope, q_rope)
    g.expand(q)
    out = None
    parts: list[Node] = []
    for _ in range(heads // some):
        both = g.op(((nope + v) * some, cells))
        values = copy(v, g.view(both, v, cells, some, packed=False))
        keys = copy(nope, g.view(both, nope, cells, some, packed=False))
        g.expand(keys)
        g.expand(values)
        joint = copy(nope + rope, k_rope, keys)
        g.expand(joint)
        mine = g.view(q, nope + rope, tokens, some, packed=False)
        found = g.op((v, some, tokens), mine, joint, values, mask)
        flat = g.view(found, v * some, tokens)
        width = v * some * (len(parts) + 1)
        out = flat if out is None else g.op((width, tokens), out, flat)
        parts.append(flat)
    assert out is not None
    return out
