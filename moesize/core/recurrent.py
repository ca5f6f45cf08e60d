"""Mixers whose memory does not grow with context: linear attention, Mamba, short convolutions.

They answer the same questions as the kinds in `attention`.

Symbols: H hidden size, N heads, K KV heads, d head size.
"""

from __future__ import annotations

from typing import Literal

from moesize.core.cache import StatePart, TokenCache
from moesize.core.records import dataclass
from moesize.core.tensors import Shard, Tensor, matrix, vector

_STATE_DTYPES = ("", "float32", "bfloat16", "float16")


def _check_state_dtype(name: str) -> None:
    """An engine keeps a state in one of these; empty = the model's dtype."""
    if name not in _STATE_DTYPES:
        raise ValueError(f"state_dtype {name!r} is not one of {', '.join(_STATE_DTYPES[1:])}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDeltaNet:
    """Gated delta rule (Qwen3-Next, Qwen3.5): a matrix state per value head, a short convolution.

    split_projections: Qwen3.5 stores qkv, z, a, b apart; Qwen3-Next stores qkvz and ba fused.
    decay_dtype: of the logarithm of the decay; empty = the model's (OLMo-Hybrid).
    """

    kind: Literal["gated_delta_net"] = "gated_delta_net"
    num_k_heads: int
    num_v_heads: int
    k_head_dim: int
    v_head_dim: int
    conv_kernel: int
    state_dtype: str = ""
    split_projections: bool = False
    decay_dtype: str = "float32"

    def __post_init__(self) -> None:
        _check_state_dtype(self.state_dtype)
        _check_state_dtype(self.decay_dtype)

    @property
    def key_size(self) -> int:
        """Width of all keys (or queries)."""
        return self.num_k_heads * self.k_head_dim

    @property
    def value_size(self) -> int:
        """Width of all values."""
        return self.num_v_heads * self.v_head_dim

    def tensors(self, hidden_size: int) -> tuple[Tensor, ...]:
        """in (2*key + 2*value, H), b and a (heads, H), convolution, decay, norm, out (H, value)."""
        h, key, value, heads = hidden_size, self.key_size, self.value_size, self.num_v_heads
        role = "attention.linear."
        if self.split_projections:
            projections = [
                matrix(
                    role + "qkv",
                    2 * key + value,
                    h,
                    split="out",
                    units=self.num_k_heads,
                    fused=role + "qkvz",
                ),
                matrix(role + "z", value, h, split="out", units=heads, fused=role + "qkvz"),
                matrix(role + "b", heads, h, split="out", units=heads, fused=role + "ba"),
                matrix(role + "a", heads, h, split="out", units=heads, fused=role + "ba"),
            ]
        else:
            projections = [
                matrix(role + "qkvz", 2 * (key + value), h, split="out", units=self.num_k_heads),
                matrix(role + "ba", 2 * heads, h, split="out", units=self.num_k_heads),
            ]
        conv = 2 * key + value
        return (
            *projections,
            Tensor(role + "conv", (conv, 1, self.conv_kernel), 1, Shard(0, self.num_k_heads)),
            vector(role + "dt_bias", heads, units=heads),
            vector(role + "a_log", heads, units=heads, dtype=self.decay_dtype),
            vector("norms.linear", self.v_head_dim),
            matrix(role + "out", h, value, split="in", units=heads),
        )

    def cache(self) -> tuple[TokenCache, ...]:
        """Nothing grows with context."""
        return ()

    def state(self) -> tuple[StatePart, ...]:
        """Last conv_kernel - 1 inputs and one (v, k) matrix per value head."""
        conv = 2 * self.key_size + self.value_size
        return (
            StatePart("conv", (self.conv_kernel - 1, conv), 1, self.num_k_heads),
            StatePart(
                "recurrent",
                (self.num_v_heads, self.v_head_dim, self.k_head_dim),
                0,
                self.num_v_heads,
                self.state_dtype,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KimiDeltaAttention:
    """Kimi delta attention: gated delta rule with a gate per channel.

    full_rank_gate: the output gate is one H x N*d matrix (Kimi-K3) instead of two low-rank ones;
    full_rank_decay: so is the decay (Ling 3.0).
    """

    kind: Literal["kimi_delta"] = "kimi_delta"
    num_heads: int
    head_dim: int
    conv_kernel: int
    full_rank_gate: bool = False
    full_rank_decay: bool = False

    def tensors(self, hidden_size: int) -> tuple[Tensor, ...]:
        """q, k, v (N*d, H) with a convolution each, decay f_a/f_b, beta, gate, norm, out."""
        n, d, h = self.num_heads, self.head_dim, hidden_size
        wide = n * d
        role = "attention.linear."
        out = [
            matrix(role + part, wide, h, split="out", units=n, fused=role + "qkv")
            for part in ("q", "k", "v")
        ]
        out += [
            Tensor(
                f"{role}{part}_conv", (wide, 1, self.conv_kernel), 1, Shard(0, n), dtype="float32"
            )
            for part in ("q", "k", "v")
        ]
        if self.full_rank_decay:
            out.append(matrix(role + "f", wide, h, split="out", units=n))
        else:
            out.append(matrix(role + "f_a", d, h))
            out.append(matrix(role + "f_b", wide, d, split="out", units=n))
        out += [
            vector(role + "dt_bias", wide, units=n, dtype="float32"),
            vector(role + "a_log", n, units=n, dtype="float32"),
            matrix(role + "b", n, h, split="out", units=n),
        ]
        if self.full_rank_gate:
            out.append(matrix(role + "g", wide, h, split="out", units=n))
        else:
            out.append(matrix(role + "g_a", d, h))
            out.append(matrix(role + "g_b", wide, d, split="out", units=n))
        out.append(vector("norms.linear", d))
        out.append(matrix(role + "out", h, wide, split="in", units=n))
        return tuple(out)

    def cache(self) -> tuple[TokenCache, ...]:
        """Nothing grows with context."""
        return ()

    def state(self) -> tuple[StatePart, ...]:
        """Three convolutions and one d x d matrix per head, kept in float32."""
        n, d = self.num_heads, self.head_dim
        return (
            StatePart("conv", (self.conv_kernel - 1, 3 * n * d), 1, n),
            StatePart("recurrent", (n, d, d), 0, n, "float32"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2:
    """Mamba-2 (Nemotron-H, Granite 4, Bamba, Falcon-H1): heads share `num_groups` B and C.

    gate_norm False: no norm before the output projection.
    """

    kind: Literal["mamba2"] = "mamba2"
    num_heads: int
    head_dim: int
    num_groups: int
    state_size: int
    conv_kernel: int
    conv_bias: bool = True
    projection_bias: bool = False
    gate_norm: bool = True
    state_dtype: str = ""

    def __post_init__(self) -> None:
        _check_state_dtype(self.state_dtype)

    @property
    def inner_size(self) -> int:
        """Width of the inner stream."""
        return self.num_heads * self.head_dim

    @property
    def conv_size(self) -> int:
        """Width of the convolution: inner + 2 * groups * state."""
        return self.inner_size + 2 * self.num_groups * self.state_size

    @property
    def _group_size(self) -> int:
        """Width of B and C together: 2 * groups * state."""
        return 2 * self.num_groups * self.state_size

    def tensors(self, hidden_size: int) -> tuple[Tensor, ...]:
        """in (2*inner + 2*groups*state + heads, H), convolution, A, D, dt, norm, out (H, inner).

        Published files hold `in` and the convolution as one tensor each. They are listed in two
        parts because ranks split heads, but share a single group: each keeps its own copy of it
        (vLLM 0.32.0 model_executor/layers/mamba/mamba_mixer2.py).
        """
        h, inner, heads, groups = hidden_size, self.inner_size, self.num_heads, self.num_groups
        wide, kernel, one = self._group_size, self.conv_kernel, self.num_groups == 1
        role = "attention.linear."
        fuse = role + "in"
        out = [
            matrix(role + "in", 2 * inner + heads, h, split="out", units=heads, fused=fuse),
            matrix(
                role + "in_groups", wide, h, split="out", units=groups, replicate=one, fused=fuse
            ),
            Tensor(role + "conv", (inner, 1, kernel), 1, Shard(0, heads), role + "conv"),
            Tensor(
                role + "conv_groups", (wide, 1, kernel), 1, Shard(0, groups, one), role + "conv"
            ),
            vector(role + "dt_bias", heads, units=heads),
            vector(role + "a_log", heads, units=heads, dtype="float32"),
            vector(role + "d", heads, units=heads),
            matrix(role + "out", h, inner, split="in", units=heads),
        ]
        if self.conv_bias:
            fuse = role + "conv.bias"
            out.append(vector(role + "conv.bias", inner, units=heads, fused=fuse))
            out.append(
                vector(role + "conv_groups.bias", wide, units=groups, replicate=one, fused=fuse)
            )
        if self.projection_bias:
            fuse = role + "in.bias"
            out.append(vector(role + "in.bias", 2 * inner + heads, units=heads, fused=fuse))
            out.append(
                vector(role + "in_groups.bias", wide, units=groups, replicate=one, fused=fuse)
            )
            out.append(vector(role + "out.bias", h))
        if self.gate_norm:
            out.append(vector("norms.linear", inner, units=heads))
        return tuple(out)

    def cache(self) -> tuple[TokenCache, ...]:
        """Nothing grows with context."""
        return ()

    def state(self) -> tuple[StatePart, ...]:
        """Last inputs of the convolution and one (head_dim, state) matrix per head."""
        rows, one = self.conv_kernel - 1, self.num_groups == 1
        return (
            StatePart("conv", (rows, self.inner_size), 1, self.num_heads),
            StatePart("conv_groups", (rows, self._group_size), 1, self.num_groups, "", one),
            StatePart(
                "recurrent",
                (self.num_heads, self.head_dim, self.state_size),
                0,
                self.num_heads,
                self.state_dtype,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba1:
    """Mamba (Jamba, Falcon-Mamba): one state vector per inner channel."""

    kind: Literal["mamba1"] = "mamba1"
    inner_size: int
    state_size: int
    dt_rank: int
    conv_kernel: int
    conv_bias: bool = True
    projection_bias: bool = False
    inner_norms: bool = False

    def tensors(self, hidden_size: int) -> tuple[Tensor, ...]:
        """in (2*inner, H), x (dt + 2*state, inner), dt (inner, dt), A (inner, state), D, out."""
        h, inner, state = hidden_size, self.inner_size, self.state_size
        role = "attention.linear."
        out = [
            matrix(role + "in", 2 * inner, h, split="out"),
            Tensor(role + "conv", (inner, 1, self.conv_kernel), 1, Shard(0, inner)),
            matrix(role + "x", self.dt_rank + 2 * state, inner, split="in"),
            matrix(role + "dt", inner, self.dt_rank, split="out"),
            vector(role + "dt.bias", inner, units=inner),
            Tensor(role + "a_log", (inner, state), 1, Shard(0, inner), dtype="float32"),
            vector(role + "d", inner, units=inner),
            matrix(role + "out", h, inner, split="in"),
        ]
        if self.conv_bias:
            out.append(vector(role + "conv.bias", inner, units=inner))
        if self.projection_bias:
            out.append(vector(role + "in.bias", 2 * inner, units=inner))
            out.append(vector(role + "out.bias", h))
        if self.inner_norms:
            out.append(vector("norms.linear_dt", self.dt_rank))
            out.append(vector("norms.linear_b", state))
            out.append(vector("norms.linear_c", state))
        return tuple(out)

    def cache(self) -> tuple[TokenCache, ...]:
        """Nothing grows with context."""
        return ()

    def state(self) -> tuple[StatePart, ...]:
        """Last inputs of the convolution and `state_size` values per channel."""
        return (
            StatePart("conv", (self.conv_kernel - 1, self.inner_size), 1, self.inner_size),
            StatePart("recurrent", (self.inner_size, self.state_size), 0, self.inner_size),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LightningAttention:
    """Linear attention with a decay per head (MiniMax-01, Bailing hybrids).

    state_dtype: "float32" for MiniMax-01; Bailing's state has the model's type (vLLM 0.32.0).
    """

    kind: Literal["lightning"] = "lightning"
    num_heads: int
    head_dim: int
    num_kv_heads: int
    gate: bool = True
    output_norm: bool = True
    norm_size: int = 0
    qk_norm: bool = False
    state_dtype: str = "float32"

    def __post_init__(self) -> None:
        _check_state_dtype(self.state_dtype)

    def tensors(self, hidden_size: int) -> tuple[Tensor, ...]:
        """qkv ((N + 2K)*d, H), output gate (N*d, H), norm, out (H, N*d)."""
        n, k, d, h = self.num_heads, self.num_kv_heads, self.head_dim, hidden_size
        role = "attention.linear."
        out = [
            matrix(role + "qkv", (n + 2 * k) * d, h, split="out", units=k),
            matrix(role + "out", h, n * d, split="in", units=n),
        ]
        if self.gate:
            out.append(matrix(role + "g", n * d, h, split="out", units=n))
        if self.output_norm:
            size = self.norm_size or n * d
            out.append(vector("norms.linear", size, units=0 if self.norm_size else n))
        if self.qk_norm:
            out += [vector("norms.q", d), vector("norms.k", d)]
        return tuple(out)

    def cache(self) -> tuple[TokenCache, ...]:
        """Nothing grows with context."""
        return ()

    def state(self) -> tuple[StatePart, ...]:
        """One d x d matrix per head."""
        n, d = self.num_heads, self.head_dim
        return (StatePart("recurrent", (n, d, d), 0, n, self.state_dtype),)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConv:
    """Gated short convolution (LFM2): the only state is its last inputs."""

    kind: Literal["short_conv"] = "short_conv"
    size: int
    kernel: int
    bias: bool = False

    def tensors(self, hidden_size: int) -> tuple[Tensor, ...]:
        """in (3*size, H), convolution (size, 1, kernel), out (H, size)."""
        role = "attention.linear."
        out = [
            matrix(role + "in", 3 * self.size, hidden_size, split="out", units=self.size),
            Tensor(role + "conv", (self.size, 1, self.kernel), 1, Shard(0, self.size)),
            matrix(role + "out", hidden_size, self.size, split="in"),
        ]
        if self.bias:
            out.append(vector(role + "in.bias", 3 * self.size, units=self.size))
            out.append(vector(role + "conv.bias", self.size, units=self.size))
            out.append(vector(role + "out.bias", hidden_size))
        return tuple(out)

    def cache(self) -> tuple[TokenCache, ...]:
        """Nothing grows with context."""
        return ()

    def state(self) -> tuple[StatePart, ...]:
        """Last kernel - 1 inputs."""
        return (StatePart("conv", (self.kernel - 1, self.size), 1, self.size),)
