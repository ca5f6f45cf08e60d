"""The operations of llama.cpp's recurrent layers: see `llamacpp_layers`.

Sources, llama.cpp commit 0c1e57098: src/llama-graph.cpp (build_rs), src/models/mamba-base.cpp,
delta-net-base.cpp, qwen3next.cpp, qwen35.cpp, kimi-linear.cpp and lfm2.cpp.

Symbols: T tokens of a batch, S sequences, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.core.llamacpp_layers import Shared, rms_norm

if TYPE_CHECKING:
    from moesize.core.llamacpp_graph import Graph, Node
    from moesize.core.recurrent import (
        GatedDeltaNet,
        KimiDeltaAttention,
        Mamba1,
        Mamba2,
        ShortConv,
    )


def _states(g: Graph, size: int, shared: Shared) -> Node:
    """Rows of the states that this batch continues; the others are moved along."""
    copy = shared.state_rows
    assert copy is not None
    s = shared.sequences
    rows = g.op((size, s), copy)
    g.expand(rows)
    _move_others(g, size, shared)
    return rows


def _move_others(g: Graph, size: int, shared: Shared) -> None:
    """States of other sequences: none, but tensors without elements have an address as well."""
    others = shared.state_others
    assert others is not None
    g.expand(g.store(g.op((size, 0), others)))


def gated_delta_net(
    g: Graph, x: Node, mixer: GatedDeltaNet, shared: Shared, hidden: int, *, repeats: bool
) -> Node:
    """Linear attention of Qwen3-Next and Qwen3.5; repeats: keys are repeated to value heads."""
    t, s = shared.tokens, shared.sequences
    key, value = mixer.key_size, mixer.value_size
    heads = mixer.num_v_heads
    wide = 2 * key + value
    qkv = g.view(g.matmul("attn_qkv", (wide, t), x), wide, t // s, s)
    z = g.matmul("attn_gate", (value, t), x)
    if mixer.split_projections:
        beta = g.map(g.view(g.op((heads, t), x), 1, heads, t // s, s))
        alpha = g.view(g.op((heads, t), x), heads, t // s, s)
        gate = g.view(g.map(g.map(g.map(alpha))), 1, heads, t // s, s)
    else:
        mixed = g.op((2 * heads, t), x)
        mixed = g.view(mixed, 2 * heads // mixer.num_k_heads, mixer.num_k_heads, t // s, s)
        part = (heads // mixer.num_k_heads, mixer.num_k_heads, t // s, s)
        beta = g.map(g.op(part, g.view(mixed, *part, packed=False)))
        alpha = g.op((heads, t // s, s), g.view(mixed, *part, packed=False))
        gate = g.map(g.map(g.map(alpha)))
        beta = g.view(beta, 1, heads, t // s, s)
        gate = g.view(gate, 1, heads, t // s, s)
    kernel = mixer.conv_kernel
    conv = g.view(_states(g, (kernel - 1) * wide, shared), kernel - 1, wide, s)
    turned = g.view(qkv, t // s, wide, s, packed=False)
    conv_input = g.op((kernel - 1 + t // s, wide, s), conv, turned)
    g.expand(g.store(g.view(conv_input, kernel - 1, wide, s, packed=False)))
    size = mixer.v_head_dim * mixer.v_head_dim * heads
    state = g.view(_states(g, size, shared), mixer.v_head_dim, mixer.v_head_dim, heads, s)
    mixed = g.map(g.op((wide, t // s, s), conv_input))
    k_shape = (mixer.k_head_dim, mixer.num_k_heads, t // s, s)
    q = g.map(g.map(g.view(mixed, *k_shape, packed=False)))
    k = g.map(g.map(g.view(mixed, *k_shape, packed=False)))
    v = g.view(mixed, mixer.v_head_dim, heads, t // s, s, packed=False)
    if repeats and mixer.num_k_heads != heads:
        shape = (mixer.k_head_dim, heads, t // s, s)
        q = g.view(g.op(shape, g.view(q, *k_shape)), *shape)
        k = g.view(g.op(shape, g.view(k, *k_shape)), *shape)
    rows = t + mixer.v_head_dim * s * (1 + shared.snapshots)
    out = g.op((value, rows), q, k, v, gate, beta, state)
    new_state = g.view(out, mixer.v_head_dim, mixer.v_head_dim, heads, s, packed=False)
    g.expand(g.store(new_state))
    out = g.view(out, mixer.v_head_dim, heads, t // s, s)
    out = rms_norm(g, out)
    z = g.map(g.view(z, mixer.v_head_dim, heads, t // s, s))
    out = g.view(g.map(out, z), value, t // s, s)
    return g.view(g.matmul("ssm_out", (hidden, t // s, s), out), hidden, t)


def kimi_delta(g: Graph, x: Node, mixer: KimiDeltaAttention, shared: Shared, hidden: int) -> Node:
    """Kimi delta attention (Kimi-Linear): three convolutions, a gate per channel."""
    t, s = shared.tokens, shared.sequences
    n, d = mixer.num_heads, mixer.head_dim
    wide, rows = n * d, mixer.conv_kernel - 1
    states = _states(g, 3 * rows * wide, shared)
    parts = []
    for name in ("attn_q", "attn_k", "attn_v"):
        state = g.view(states, rows, wide, s, packed=False)
        projected = g.view(g.matmul(name, (wide, t), x), wide, t // s, s)
        turned = g.view(projected, t // s, wide, s, packed=False)
        joined = g.op((rows + t // s, wide, s), state, turned)
        g.expand(g.store(g.view(joined, rows, wide, s, packed=False)))
        mixed = g.map(g.view(g.op((wide, t // s, s), joined), wide, t))
        parts.append(g.view(mixed, d, n, t // s, s))
    if mixer.full_rank_decay:
        decay = g.matmul("ssm_f", (wide, t), x)
    else:
        decay = g.matmul("ssm_f_b", (wide, t), g.matmul("ssm_f_a", (d, t), x))
    decay = g.map(g.view(g.map(g.map(decay)), d, n, t))
    decay = g.view(decay, d, n, t // s, s)
    beta = g.map(g.view(g.matmul("ssm_beta", (n, t), x), 1, n, t // s, s))
    state = g.view(_states(g, d * d * n, shared), d, d, n, s)
    q, k = (g.map(g.map(part)) for part in parts[:2])
    scanned = g.op((wide, t + d * s * (1 + shared.snapshots)), q, k, parts[2], decay, beta, state)
    out = g.op((d, n, t // s, s), g.view(scanned, d, n, t // s, s, packed=False))
    # The new state is written first: both are views of one result.
    g.expand(g.store(g.view(scanned, d, d, n, s, packed=False)))
    if mixer.full_rank_gate:
        gate = g.matmul("ssm_g", (wide, t), x)
    else:
        gate = g.matmul("ssm_g_b", (wide, t), g.matmul("ssm_g_a", (d, t), x))
    gate = g.map(g.view(gate, d, n, t))
    out = g.map(rms_norm(g, g.view(out, d, n, t)), gate)
    return g.matmul("attn_output", (hidden, t), g.op((wide, t), out))


def _late(g: Graph, gate: Node) -> Node:
    """The gate made contiguous: by the next GPU, if that has read its first states by then."""
    own = g.device
    g.device = own if g.late_device is None else g.late_device
    out = g.op(gate.shape, gate)
    g.device = own
    return out


def mamba1(g: Graph, x: Node, mixer: Mamba1, shared: Shared, hidden: int) -> Node:
    """Mamba (Jamba)."""
    t, s = shared.tokens, shared.sequences
    inner, kernel = mixer.inner_size, mixer.conv_kernel
    conv = g.view(_states(g, (kernel - 1) * inner, shared), kernel - 1, inner, s)
    xz = g.matmul("ssm_in", (2 * inner, t // s, s), g.view(x, hidden, t // s, s))
    z = g.view(xz, inner, t // s, s, packed=False)
    turned = g.view(g.view(xz, inner, t // s, s, packed=False), t // s, inner, s, packed=False)
    conv_x = g.op((kernel - 1 + t // s, inner, s), conv, turned)
    g.expand(g.store(g.view(conv_x, kernel - 1, inner, s, packed=False)))
    mixed = g.map(g.map(g.op((inner, t // s, s), conv_x)))
    x_db = g.op((mixer.dt_rank + 2 * mixer.state_size, t // s, s), mixed)
    dt = g.view(x_db, mixer.dt_rank, t // s, s, packed=False)
    b = g.view(x_db, mixer.state_size, 1, t // s, s, packed=False)
    c = g.view(x_db, mixer.state_size, 1, t // s, s, packed=False)
    if mixer.inner_norms:
        dt, b, c = rms_norm(g, dt), rms_norm(g, b), rms_norm(g, c)
    else:
        dt = g.op(dt.shape, dt)
    dt = g.map(g.op((inner, t // s, s), dt))
    current = mixed
    wide = g.view(mixed, 1, inner, t // s, s)
    ids = shared.state_rows
    assert ids is not None
    scanned = g.op((inner * t + mixer.state_size * inner * s,), wide, dt, b, c, ids)
    g.expand(scanned)
    _move_others(g, mixer.state_size * inner, shared)
    g.expand(g.store(g.view(scanned, mixer.state_size * inner * s, packed=False)))
    y = g.view(scanned, inner, t // s, s, packed=False)
    y = g.map(y, g.op(current.shape, current, inplace=True))
    z.nbytes = 4 * ((t - 1) * 2 * inner + inner)
    y = g.op((inner, t // s, s), _late(g, z), y)
    return g.view(g.matmul("ssm_out", (hidden, t // s, s), y), hidden, t)


def mamba2(g: Graph, x: Node, mixer: Mamba2, shared: Shared, hidden: int) -> Node:
    """Mamba-2 (Nemotron-H, Granite 4, Falcon-H1)."""
    t, s = shared.tokens, shared.sequences
    inner, kernel, heads = mixer.inner_size, mixer.conv_kernel, mixer.num_heads
    head, wide = mixer.head_dim, mixer.conv_size
    conv = g.view(_states(g, (kernel - 1) * wide, shared), kernel - 1, wide, s)
    mixed = g.matmul("ssm_in", (inner + wide + heads, t), x)
    mixed = g.view(mixed, inner + wide + heads, t // s, s)
    z = g.view(mixed, head, heads, t // s, s, packed=False)
    xbc = g.view(mixed, wide, t // s, s, packed=False)
    dt = g.view(mixed, heads, t // s, s, packed=False)
    turned = g.view(xbc, t // s, wide, s, packed=False)
    conv_x = g.op((kernel - 1 + t // s, wide, s), conv, turned)
    g.expand(g.store(g.view(conv_x, kernel - 1, wide, s, packed=False)))
    xbc = g.map(g.map(g.op((wide, t // s, s), conv_x)))
    xs = g.view(xbc, head, heads, t // s, s, packed=False)
    b = g.view(xbc, mixer.state_size, mixer.num_groups, t // s, s, packed=False)
    c = g.view(xbc, mixer.state_size, mixer.num_groups, t // s, s, packed=False)
    dt = g.map(g.op((heads, t // s, s), dt))
    ids = shared.state_rows
    assert ids is not None
    scanned = g.op(
        (inner * t + mixer.state_size * inner * s * (1 + shared.snapshots),), xs, dt, b, c, ids
    )
    g.expand(scanned)
    _move_others(g, mixer.state_size * inner, shared)
    g.expand(g.store(g.view(scanned, mixer.state_size * inner, s, packed=False)))
    y = g.view(scanned, head, heads, t // s, s, packed=False)
    y = g.map(y, g.map(xs))
    z.nbytes = 4 * ((t - 1) * (inner + wide + heads) + inner)
    y = g.op((head, heads, t // s, s), _late(g, z), y)
    if mixer.gate_norm:
        y = g.view(y, inner // mixer.num_groups, mixer.num_groups, t // s, s)
        y = rms_norm(g, y)
    return g.matmul("ssm_out", (hidden, t), g.view(y, inner, t))


def short_conv(g: Graph, x: Node, mixer: ShortConv, shared: Shared, hidden: int) -> Node:
    """Gated short convolution (LFM2)."""
    t, s = shared.tokens, shared.sequences
    parts = g.matmul("shortconv.in_proj", (3 * hidden, t // s, s), g.view(x, hidden, t // s, s))
    b, c, wide = (g.view(parts, hidden, t // s, s, packed=False) for _ in range(3))
    product = g.view(g.map(b, wide), t // s, hidden, s, packed=False)
    rows = mixer.kernel - 1
    state = g.view(_states(g, rows * hidden, shared), rows, hidden, s)
    joined = g.op((rows + t // s, hidden, s), state, product)
    g.expand(g.store(g.view(joined, rows, hidden, s, packed=False)))
    out = g.map(c, g.op((hidden, t // s, s), joined))
    out = g.matmul("shortconv.out_proj", (hidden, t // s, s), out)
    return g.view(out, hidden, t)
