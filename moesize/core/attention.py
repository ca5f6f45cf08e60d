"""Attention over cached tokens: one frozen class per kind.

Each kind answers the same questions: which tensors it has (`tensors`), what a stored token costs
in the cache (`cache`), and what one sequence costs however long it is (`state`). Callers never
ask which kind it is. The kinds without a growing cache are in `recurrent`; `mixers.Mixer` is the
union of all.

Symbols: H hidden size, N query heads, K KV heads, d head size, r latent rank.
"""

from __future__ import annotations

from typing import Literal

from moesize.core.cache import StatePart, TokenCache
from moesize.core.records import dataclass
from moesize.core.tensors import Shard, Tensor, matrix, vector

QkNorm = Literal["none", "head", "projection", "per_head"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexer:
    """Lightning indexer of sparse attention: scores every cached token, keeps `top_k`.

    pool    tokens whose keys are joined into one before they are scored (GLM-5.3); 1 = none
    """

    num_heads: int
    head_dim: int
    top_k: int
    query_rank: int
    key_norm_bias: bool = True
    pool: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedQueryAttention:
    """MHA, GQA and MQA, with or without a sliding window; K heads of keys and values.

    gate          "none"; "elementwise": the query projection is twice as wide (Qwen3-Next);
                  "per_head": N x H extra (Step); "projection": N*d x H extra
    key_is_value  one projection serves as both; the cache still stores both
    shares_kv     the layer reads another layer's cache and has no k/v projections
    qk_norm       "head": d weights; "projection": N*d and K*d; "per_head": N x d and K x d
    index         block-sparse indexer (MiniMax-M3): own small q and k projections
    query_rank    the query goes through a latent of this width with a norm (Step-3); 0 = no latent
    cross         attends to an encoder's output: cache length is the encoder's
    """

    kind: Literal["gqa"] = "gqa"
    num_heads: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int | None = None
    chunk: int | None = None
    qk_norm: QkNorm = "none"
    qk_norm_bias: bool = False
    v_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    key_bias: bool = True
    sinks: bool = False
    gate: Literal["none", "elementwise", "per_head", "projection"] = "none"
    key_is_value: bool = False
    shares_kv: bool = False
    index_heads: int = 0
    index_head_dim: int = 0
    index_top_k: int = 0
    relative_buckets: int = 0
    query_rank: int = 0
    cross: bool = False

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads ({self.num_kv_heads}) must divide num_heads ({self.num_heads})"
            )

    def tensors(self, hidden_size: int) -> tuple[Tensor, ...]:
        """q (N*d, H), k (K*d, H), v (K*dv, H), o (H, N*dv) and their small companions."""
        n, k, d, dv, h = (
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            self.v_head_dim,
            hidden_size,
        )
        role = "attention.cross." if self.cross else "attention."
        fuse = role + "qkv"
        wide = 2 if self.gate == "elementwise" else 1
        if self.query_rank:
            out = [
                matrix(role + "q_a", self.query_rank, h, fused=fuse),
                vector("norms.q_a", self.query_rank),
                matrix(role + "q_b", n * d, self.query_rank, split="out", units=n),
            ]
        else:
            out = [matrix(role + "q", wide * n * d, h, split="out", units=n, fused=fuse)]
        if not self.shares_kv:
            out.append(
                matrix(role + "k", k * d, h, split="out", units=k, replicate=True, fused=fuse)
            )
            if not self.key_is_value:
                out.append(
                    matrix(role + "v", k * dv, h, split="out", units=k, replicate=True, fused=fuse)
                )
        out.append(matrix(role + "o", h, n * dv, split="in", units=n))
        if self.qkv_bias:
            bias = role + "qkv.bias"
            out.append(vector(role + "q.bias", wide * n * d, units=n, fused=bias))
            if not self.shares_kv:
                if self.key_bias:
                    out.append(vector(role + "k.bias", k * d, units=k, replicate=True, fused=bias))
                out.append(vector(role + "v.bias", k * dv, units=k, replicate=True, fused=bias))
        if self.out_bias:
            out.append(vector(role + "o.bias", h))
        out.extend(self._norms())
        if self.sinks:
            out.append(vector(role + "sinks", n, units=n))
        if self.gate == "per_head":
            out.append(matrix(role + "gate", n, h, split="out", units=n))
        if self.gate == "projection":
            out.append(matrix(role + "gate", n * dv, h, split="out", units=n))
        if self.index_heads:
            ih, di = self.index_heads, self.index_head_dim
            out.append(
                matrix(
                    role + "indexer.q",
                    ih * di,
                    h,
                    split="out",
                    units=ih,
                    replicate=True,
                    fused=fuse,
                )
            )
            out.append(matrix(role + "indexer.k", di, h, fused=fuse))
            out.append(vector("norms.indexer_q", di))
            out.append(vector("norms.indexer_k", di))
        if self.relative_buckets:
            out.append(Tensor(role + "relative_bias", (self.relative_buckets, n), 1, Shard(1, n)))
        return tuple(out)

    def _norms(self) -> list[Tensor]:
        n, k, d = self.num_heads, self.num_kv_heads, self.head_dim
        norms = []
        if self.qk_norm == "head":
            norms.append(vector("norms.q", d))
            if not self.shares_kv:
                norms.append(vector("norms.k", d))
            if self.qk_norm_bias:
                norms += [vector("norms.q.bias", d), vector("norms.k.bias", d)]
        elif self.qk_norm in ("projection", "per_head"):
            norms.append(vector("norms.q", n * d, units=n))
            if not self.shares_kv:
                norms.append(vector("norms.k", k * d, units=k, replicate=True))
        return norms

    def cache(self) -> tuple[TokenCache, ...]:
        """Keys and values of K heads; nothing when another layer's cache is read."""
        if self.shares_kv:
            return ()
        kv = TokenCache(
            "cross" if self.cross else "kv",
            self.num_kv_heads,
            self.head_dim,
            self.v_head_dim,
            self.window,
            self.chunk,
        )
        if self.index_heads:
            return (kv, TokenCache("index", 0, self.index_head_dim, 0))
        return (kv,)

    def state(self) -> tuple[StatePart, ...]:
        """No recurrent state."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2 on): the cache holds one latent per token.

    Cache per token and layer: (kv_lora_rank + qk_rope_head_dim) elements on every rank,
    whatever the number of heads or ranks. q_lora_rank None = a plain query projection.
    output_gate: N*v x H extra; head_gate: N x H extra (Ling 3.0).
    index_shared: sparse layer that re-uses the token choice of an earlier layer (GLM-5.2).
    """

    kind: Literal["mla"] = "mla"
    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    qkv_bias: bool = False
    out_bias: bool = False
    output_gate: bool = False
    head_gate: bool = False
    sinks: bool = False
    indexer: Indexer | None = None
    index_shared: bool = False

    def tensors(self, hidden_size: int) -> tuple[Tensor, ...]:
        """q_a (r_q, H), q_b (N*(nope+rope), r_q), kv_a (r+rope, H), kv_b (N*(nope+v), r), o."""
        n, h, r = self.num_heads, hidden_size, self.kv_lora_rank
        qk = self.qk_nope_head_dim + self.qk_rope_head_dim
        out = []
        if self.q_lora_rank is None:
            out.append(matrix("attention.q", n * qk, h, split="out", units=n))
        else:
            out.append(matrix("attention.q_a", self.q_lora_rank, h, fused="attention.qkv_a"))
            out.append(vector("norms.q_a", self.q_lora_rank))
            out.append(matrix("attention.q_b", n * qk, self.q_lora_rank, split="out", units=n))
            if self.qkv_bias:
                out.append(vector("attention.q_a.bias", self.q_lora_rank))
        fuse = "attention.qkv_a" if self.q_lora_rank is not None else ""
        out.append(matrix("attention.kv_a", r + self.qk_rope_head_dim, h, fused=fuse))
        if self.qkv_bias:
            out.append(vector("attention.kv_a.bias", r + self.qk_rope_head_dim))
        out.append(vector("norms.kv_a", r))
        out.append(
            matrix(
                "attention.kv_b",
                n * (self.qk_nope_head_dim + self.v_head_dim),
                r,
                split="out",
                units=n,
            )
        )
        out.append(matrix("attention.o", h, n * self.v_head_dim, split="in", units=n))
        if self.out_bias:
            out.append(vector("attention.o.bias", h))
        if self.output_gate:
            out.append(matrix("attention.gate", n * self.v_head_dim, h, split="out", units=n))
        if self.head_gate:
            out.append(matrix("attention.gate", n, h, split="out", units=n))
        if self.sinks:
            out.append(vector("attention.sinks", n, units=n, dtype="float32"))
        if self.indexer is not None:
            out.extend(_indexer_tensors(self.indexer, h))
        return tuple(out)

    def cache(self) -> tuple[TokenCache, ...]:
        """One latent and one rope key per token; one index key where the layer has an indexer."""
        latent = TokenCache("latent", 0, self.kv_lora_rank + self.qk_rope_head_dim, 0)
        if self.indexer is None:
            return (latent,)
        pool = self.indexer.pool
        return (latent, TokenCache("index", 0, self.indexer.head_dim, 0, ratio=pool))

    def state(self) -> tuple[StatePart, ...]:
        """No recurrent state."""
        return ()


def _indexer_tensors(indexer: Indexer, hidden_size: int) -> list[Tensor]:
    heads, dim = indexer.num_heads, indexer.head_dim
    tensors = [
        matrix("attention.indexer.q_b", heads * dim, indexer.query_rank),
        matrix("attention.indexer.k", dim, hidden_size, fused="attention.indexer.kw"),
        matrix("attention.indexer.weights", heads, hidden_size, fused="attention.indexer.kw"),
        vector("norms.indexer_k", dim, dtype="float32"),
    ]
    if indexer.key_norm_bias:
        tensors.append(vector("norms.indexer_k.bias", dim, dtype="float32"))
    if indexer.pool > 1:
        tensors.append(Tensor("attention.indexer.pool_ape", (indexer.pool, dim), dtype="float32"))
        tensors.append(matrix("attention.indexer.pool_gate", dim, hidden_size))
    return tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedAttention:
    """DeepSeek-V4 attention: one shared key-value head, a sliding window of raw tokens, and for
    `compress_ratio` > 1 a cache of compressed states, with an indexer at ratio 4.

    Output goes through `output_groups` low-rank projections of rank `output_rank`.
    """

    kind: Literal["compressed"] = "compressed"
    num_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    output_groups: int
    output_rank: int
    window: int
    compress_ratio: int = 0
    index_heads: int
    index_head_dim: int
    index_top_k: int

    @property
    def overlap(self) -> int:
        """2 when neighbouring compression windows overlap (ratio 4), else 1."""
        return 2 if self.compress_ratio == 4 else 1

    @property
    def has_indexer(self) -> bool:
        """Only layers of ratio 4 pick among their compressed states."""
        return self.compress_ratio == 4

    def tensors(self, hidden_size: int) -> tuple[Tensor, ...]:
        """q_a, q_b, kv (d, H), o_a (groups*rank, N*d/groups), o_b (H, groups*rank), compressor."""
        n, d, h = self.num_heads, self.head_dim, hidden_size
        groups, rank = self.output_groups, self.output_rank
        out = [
            matrix("attention.q_a", self.q_lora_rank, h, fused="attention.qkv_a"),
            vector("norms.q_a", self.q_lora_rank),
            matrix("attention.q_b", n * d, self.q_lora_rank, split="out", units=n),
            matrix("attention.kv", d, h, fused="attention.qkv_a"),
            vector("norms.kv_a", d),
            matrix("attention.o_a", groups * rank, n * d // groups, split="out", units=groups),
            matrix("attention.o_b", h, groups * rank, split="in", units=groups),
            vector("attention.sinks", n, units=n, dtype="float32"),
        ]
        if self.compress_ratio > 1:
            out.extend(self._compressor("attention.compressor", d, h))
        if self.has_indexer:
            ih, di = self.index_heads, self.index_head_dim
            out.append(matrix("attention.indexer.q_b", ih * di, self.q_lora_rank))
            out.append(matrix("attention.indexer.weights", ih, h))
            out.extend(self._compressor("attention.indexer.compressor", di, h))
        return tuple(out)

    def _compressor(self, role: str, size: int, hidden_size: int) -> list[Tensor]:
        wide = self.overlap * size
        return [
            matrix(f"{role}.kv", wide, hidden_size, fused=role),
            matrix(f"{role}.gate", wide, hidden_size, fused=role),
            Tensor(f"{role}.ape", (self.compress_ratio, wide), dtype="float32"),
            vector(f"norms.{role.removeprefix('attention.')}", size),
        ]

    def cache(self) -> tuple[TokenCache, ...]:
        """Raw window, compressed states and their index keys; one head for all ranks."""
        caches = [TokenCache("latent", 0, self.head_dim, 0, window=self.window)]
        if self.compress_ratio > 1:
            caches.append(TokenCache("compressed", 0, self.head_dim, 0, ratio=self.compress_ratio))
        if self.has_indexer:
            caches.append(TokenCache("index", 0, self.index_head_dim, 0, ratio=self.compress_ratio))
        return tuple(caches)

    def state(self) -> tuple[StatePart, ...]:
        """Running sums of the compressors: values and gates of the open windows, float32."""
        parts = []
        if self.compress_ratio > 1:
            wide = self.overlap * self.head_dim
            shape = (2, self.overlap * self.compress_ratio, wide)
            parts.append(StatePart("compressor", shape, 0, 0, "float32"))
        if self.has_indexer:
            wide = self.overlap * self.index_head_dim
            shape = (2, self.overlap * self.compress_ratio, wide)
            parts.append(StatePart("indexer_compressor", shape, 0, 0, "float32"))
        return tuple(parts)
