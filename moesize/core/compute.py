"""FLOPs of a token and bytes that a decode step moves; `speed` makes times of them.

One multiply-add is 2 FLOPs. Weights come from `inventory` (what is marked `matmul`); attention
over cached tokens and recurrent states add a term per mixer kind, stated in `_attention_terms`
and `_recurrent_flops`. Formulas in words: docs/how-we-count-compute.md.

Left out: norms, activations, rotary embedding, softmax, sampling; vision and audio towers (once
per image, not per token); MTP blocks (their cost depends on speculation).

Symbols: H hidden size, N query heads, K KV heads, d head size, r latent rank, E routed experts,
A experts per token, n tokens attended to (the new one included), B sequences of a decode step.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from math import expm1, log1p
from typing import TYPE_CHECKING, Any, Literal, assert_never

from moesize.core.attention import CompressedAttention, GroupedQueryAttention, LatentAttention
from moesize.core.errors import InvalidInputError
from moesize.core.inventory import inventory, moe_of
from moesize.core.records import dataclass
from moesize.core.recurrent import (
    GatedDeltaNet,
    KimiDeltaAttention,
    LightningAttention,
    Mamba1,
    Mamba2,
    ShortConv,
)
from moesize.core.tensors import GROUPS
from moesize.core.units import ceil_div

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from moesize.core.mixers import Mixer
    from moesize.core.model_spec import Block, ModelSpec
    from moesize.core.tensors import Tensor

Phase = Literal["decode", "prefill"]

# Tokens that the prefill kernels of linear attention take at once: flash-linear-attention 0.4
# (chunk 64: gated delta rule, KDA), Mamba-2 (chunk_size 256 in mamba_ssm and its configs),
# lightning attention (blocks of 256, MiniMax-01 technical report).
DELTA_CHUNK = 64
MAMBA2_CHUNK = 256
LIGHTNING_CHUNK = 256
# MiniMax-M3 chooses blocks of this many tokens (sparse_attention_config.sparse_block_size), the
# newest one always among them (sparse_local_block).
INDEX_BLOCK_TOKENS = 128


# --- How many tokens a token attends to ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Span:
    """Tokens (or stored states) that the token at position n attends to, itself included.

    window   the newest `window`; chunk: those since the last multiple of `chunk`
    ratio    one state stands for `ratio` tokens, complete ones only; limit: at most so many
    tail     beyond the limit, also the newest tokens that fill no pool of `tail` yet
    blocks   the newest, begun block and at most blocks - 1 whole ones of INDEX_BLOCK_TOKENS
    """

    window: int = 0
    chunk: int = 0
    ratio: int = 1
    limit: int = 0
    tail: int = 1
    blocks: int = 0

    def at(self, position: int) -> int:
        """Attended states of the token at 1-based `position`."""
        n = position
        if self.blocks:
            size, most = INDEX_BLOCK_TOKENS, self.blocks * INDEX_BLOCK_TOKENS
            return n if n <= most else most - size + (n - 1) % size + 1
        if self.chunk:
            n = (n - 1) % self.chunk + 1
        n //= self.ratio
        most = self.window or self.limit
        return n if not most or n <= most else most + n % self.tail

    def total(self, tokens: int) -> int:
        """Sum of `at` over positions 1..tokens, in closed form."""
        n = tokens
        if self.blocks:
            size, most = INDEX_BLOCK_TOKENS, self.blocks * INDEX_BLOCK_TOKENS
            head = min(n, most)
            rest = n - head
            tail = rest * (most - size) + _Span(chunk=size).total(rest)
            return _triangle(head) + tail
        if self.chunk:
            whole, rest = divmod(n, self.chunk)
            inner = _Span(window=self.window)
            return whole * inner.total(self.chunk) + inner.total(rest)
        most = self.window or self.limit
        if self.ratio > 1:
            head = min(n, most * self.ratio - 1) if most else n
            q = head // self.ratio
            return (
                self.ratio * _triangle(q - 1) + q * (head - q * self.ratio + 1) + most * (n - head)
            )
        if most and n > most:
            tails = _remainders(n, self.tail) - _remainders(most, self.tail)
            return _triangle(most) + (n - most) * most + tails
        return _triangle(n)


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


def _remainders(n: int, divisor: int) -> int:
    """Sum of i % divisor over 1..n."""
    whole, rest = divmod(n, divisor)
    return whole * _triangle(divisor - 1) + _triangle(rest)


# --- FLOPs --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FlopsBreakdown:
    """FLOPs by part of the model, exact integers.

    attention_projections   q, k, v, o and their low-rank forms, gates, indexer projections
    attention_core          scores and weighted values over the attended tokens
    sparse_indexer          index scores over all cached tokens (or compressed states)
    recurrent               linear attention and Mamba: projections, convolution, state
    other                   latent-MoE projections, hyper-connections, per-layer inputs
    lm_head                 the head, for sampled positions; a pooler in an encoder-only model
    encoder                 encoder layers and the keys and values that cross attention keeps
    excluded                what this model has and the numbers leave out
    """

    attention_projections: int = 0
    attention_core: int = 0
    sparse_indexer: int = 0
    recurrent: int = 0
    router: int = 0
    routed_experts: int = 0
    shared_experts: int = 0
    dense_mlp: int = 0
    other: int = 0
    lm_head: int = 0
    encoder: int = 0
    excluded: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(getattr(self, name) for name in _PARTS)

    def to_dict(self) -> dict[str, Any]:
        """Parts that are not zero, the total, and what is left out."""
        parts = {name: getattr(self, name) for name in _PARTS if getattr(self, name)}
        return {"total": self.total, **parts, "excluded": list(self.excluded)}


_PARTS = tuple(field.name for field in fields(FlopsBreakdown) if field.name != "excluded")
# (part, FLOPs per attended state, span), for all layers together.
_Terms = tuple[tuple[str, int, _Span], ...]


@dataclass(frozen=True, slots=True)
class _Profile:
    """A model reduced to what FLOPs depend on; computed once per spec and phase.

    linear     FLOPs per token that do not depend on context, by part; no head
    terms      FLOPs that do
    cross      FLOPs per token and encoder token of cross attention
    """

    linear: dict[str, int]
    terms: _Terms
    cross: int
    head: int
    encoder_linear: int
    encoder_terms: _Terms
    routed_all: int
    excluded: tuple[str, ...]


def flops_per_token(
    spec: ModelSpec,
    context_tokens: int,
    phase: Phase = "decode",
    *,
    encoder_tokens: int = 0,
) -> FlopsBreakdown:
    """FLOPs of the token at position `context_tokens`, which attends to that many, itself included.

    The head runs in decode only; a prompt needs it once (`prefill_flops`). `encoder_tokens` is
    what cross attention sees: source or image tokens. Latent attention is absorbed in decode
    (scores against the latent) and decompressed in prefill, unless sparse. Raises
    InvalidInputError unless context_tokens >= 1.
    """
    at_least("context_tokens", context_tokens, 1)
    at_least("encoder_tokens", encoder_tokens, 0)
    profile = _profile(spec, phase)
    parts = dict(profile.linear)
    for part, flops, span in profile.terms:
        parts[part] = parts.get(part, 0) + flops * span.at(context_tokens)
    if profile.cross:
        parts["attention_core"] = parts.get("attention_core", 0) + profile.cross * encoder_tokens
    if phase == "decode":
        parts["lm_head"] = profile.head
    return FlopsBreakdown(**parts, excluded=profile.excluded)


def prefill_flops(
    spec: ModelSpec,
    prompt_tokens: int,
    *,
    encoder_tokens: int = 0,
    cached_tokens: int = 0,
    causal: bool | None = None,
) -> FlopsBreakdown:
    """FLOPs of a whole prompt: every position's own attended tokens, the head once.

    `cached_tokens` of the prompt are already in the cache (prefix caching) and cost nothing.
    `encoder_tokens` pass the encoder and its cross-attention keys and values; in a model that is
    an encoder only, the prompt does. causal False: every token attends to all, as it does by
    default in an encoder-only model. Raises InvalidInputError unless
    0 <= cached_tokens < prompt_tokens.
    """
    at_least("prompt_tokens", prompt_tokens, 1)
    at_least("encoder_tokens", encoder_tokens, 0)
    if not 0 <= cached_tokens < prompt_tokens:
        raise InvalidInputError(
            f"cached_tokens ({cached_tokens}) must lie between 0 and prompt_tokens - 1 "
            f"({prompt_tokens - 1})"
        )
    profile = _profile(spec, "prefill")
    new = prompt_tokens - cached_tokens
    parts = {part: flops * new for part, flops in profile.linear.items()}
    for part, flops, span in profile.terms:
        if causal or (causal is None and spec.layout):
            states = span.total(prompt_tokens) - span.total(cached_tokens)
        else:
            states = span.at(prompt_tokens) * new
        parts[part] = parts.get(part, 0) + flops * states
    if profile.cross:
        core = parts.get("attention_core", 0)
        parts["attention_core"] = core + profile.cross * encoder_tokens * new
    parts["lm_head"] = profile.head
    parts["encoder"] = encoder_tokens * (
        profile.encoder_linear
        + sum(flops * span.at(encoder_tokens) for _, flops, span in profile.encoder_terms)
    )
    return FlopsBreakdown(**parts, excluded=profile.excluded)


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseEquivalent:
    """What the token would cost if it passed every routed expert, and how often that is more."""

    flops: int
    ratio: float

    def to_dict(self) -> dict[str, Any]:
        """The `compute.dense_equivalent` object."""
        return {"flops": self.flops, "ratio": round(self.ratio, 4)}


def dense_equivalent(
    spec: ModelSpec, context_tokens: int, phase: Phase = "decode", *, encoder_tokens: int = 0
) -> DenseEquivalent:
    """FLOPs per token with all E experts in use instead of A; ratio 1 for a dense model."""
    flops = flops_per_token(spec, context_tokens, phase, encoder_tokens=encoder_tokens)
    everything = flops.total - flops.routed_experts + _profile(spec, phase).routed_all
    return DenseEquivalent(flops=everything, ratio=everything / flops.total)


def at_least(name: str, value: int, least: int) -> None:
    """Raise InvalidInputError for a number below `least`."""
    if value < least:
        raise InvalidInputError(f"{name} ({value}) must be at least {least}")


def _profile(spec: ModelSpec, phase: Phase) -> _Profile:
    # Kept by the spec itself, as its stored formats are: it lives as long as the spec does.
    cache: dict[Phase, _Profile] = spec.__dict__.setdefault("_compute", {})
    if phase not in cache:
        cache[phase] = _make_profile(spec, phase)
    return cache[phase]


def _make_profile(spec: ModelSpec, phase: Phase) -> _Profile:
    linear: dict[str, int] = {}
    encoder_linear = head = routed_all = 0
    encoder_only = not spec.layout
    layout = spec.encoder_layout if encoder_only else spec.layout
    for entry in inventory(spec):
        tensor = entry.tensor
        if not tensor.matmul or entry.section not in ("layers", "encoder", "final"):
            continue
        flops = 2 * tensor.elements * entry.count
        if tensor.role in _TWICE:
            flops *= 2
        if tensor.expert:
            if entry.section == "layers" or encoder_only:
                routed_all += flops
            flops = flops // tensor.copies * _visited(spec.block(entry.block))
        if tensor.group == "lm_head" or (encoder_only and entry.section == "final"):
            head += flops
        elif not encoder_only and (entry.section == "encoder" or tensor.role in _ENCODER_SIDE):
            encoder_linear += flops
        else:
            part = _part_of(tensor)
            linear[part] = linear.get(part, 0) + flops
    if spec.embedding.tied and spec.embedding.has_head:
        rows = spec.embedding.head_vocab_size or spec.embedding.vocab_size
        head += 2 * rows * (spec.embedding.size or spec.hidden_size)
    states = sum(
        _recurrent_flops(mixer, phase) * count
        for block, count in _block_counts(spec, layout)
        for mixer in block.mixers
    )
    if states:
        linear["recurrent"] = linear.get("recurrent", 0) + states
    return _Profile(
        linear=linear,
        terms=_terms(spec, layout, phase),
        cross=_cross_flops(spec),
        head=head,
        encoder_linear=encoder_linear,
        encoder_terms=() if encoder_only else _terms(spec, spec.encoder_layout, "prefill"),
        routed_all=routed_all,
        excluded=_excluded(spec),
    )


# Keys and values of cross attention are made from the encoder's output, once per request.
_ENCODER_SIDE = ("attention.cross.k", "attention.cross.v")


# Gemma 3n asks its router of streams before a layer and behind it.
_TWICE = ("other.altup_router",)


def _part_of(tensor: Tensor) -> str:
    if tensor.role.startswith("attention.linear."):
        return "recurrent"
    if tensor.group == "attention":
        return "attention_projections"
    return tensor.group if tensor.group in _PARTS else "other"


def _visited(block: Block) -> int:
    """Routed experts that one token passes; zero-compute experts count as if they were real."""
    moe = moe_of(block)
    return 1 if moe is None else min(moe.experts_per_token, moe.num_experts)


def _block_counts(spec: ModelSpec, layout: tuple[str, ...]) -> list[tuple[Block, int]]:
    return [(spec.block(name), count) for name, count in Counter(layout).items()]


def _terms(spec: ModelSpec, layout: tuple[str, ...], phase: Phase) -> _Terms:
    merged: dict[tuple[str, _Span], int] = {}
    shared = _shared_span(spec)
    for block, count in _block_counts(spec, layout):
        for mixer in block.mixers:
            for part, flops, span in _attention_terms(mixer, phase, shared):
                merged[part, span] = merged.get((part, span), 0) + flops * count
    return tuple((part, flops, span) for (part, span), flops in merged.items())


def _shared_span(spec: ModelSpec) -> _Span:
    """What a layer without an indexer of its own attends to: the choice of the one before it."""
    for block in spec.blocks:
        for mixer in block.mixers:
            if isinstance(mixer, LatentAttention) and mixer.indexer is not None:
                return _latent_span(mixer, _Span())
    return _Span()


def _latent_span(mixer: LatentAttention, shared: _Span) -> _Span:
    """All tokens; or the indexer's choice, with pooled keys also the begun pool.

    vLLM 0.32.0 v1/attention/backends/mla/flashinfer_mla_sparse_sm90.py: topk + context % kpool.
    """
    if mixer.indexer is None:
        return shared if mixer.index_shared else _Span()
    return _Span(limit=mixer.indexer.top_k, tail=mixer.indexer.pool)


def _attention_terms(mixer: Mixer, phase: Phase, shared: _Span) -> Iterable[tuple[str, int, _Span]]:
    """FLOPs per attended token of one layer.

    grouped-query   2*N*d for the score and 2*N*dv for the value
    latent          absorbed: 2*N*(r + rope) and 2*N*r; decompressed: 2*N*(nope + rope), 2*N*v
    compressed      4*N*d for raw tokens of the window and for compressed states alike
    indexer         2*heads*size per scored key
    """
    match mixer:
        case GroupedQueryAttention():
            core = 2 * mixer.num_heads * (mixer.head_dim + mixer.v_head_dim)
            if mixer.cross:
                return ()
            if not mixer.index_heads:
                span = _Span(window=mixer.window or 0, chunk=mixer.chunk or 0)
                return (("attention_core", core, span),)
            scores = 2 * mixer.index_heads * mixer.index_head_dim
            return (
                ("sparse_indexer", scores, _Span()),
                ("attention_core", core, _Span(blocks=mixer.index_top_k)),
            )
        case LatentAttention():
            # Sparse layers stay absorbed in prefill: every token has keys of its own choice.
            sparse = mixer.indexer is not None or mixer.index_shared
            n, rope = mixer.num_heads, mixer.qk_rope_head_dim
            if phase == "decode" or sparse:
                core = 2 * n * (2 * mixer.kv_lora_rank + rope)
            else:
                core = 2 * n * (mixer.qk_nope_head_dim + rope + mixer.v_head_dim)
            attended = ("attention_core", core, _latent_span(mixer, shared))
            if mixer.indexer is None:
                return (attended,)
            scores = 2 * mixer.indexer.num_heads * mixer.indexer.head_dim
            return (("sparse_indexer", scores, _Span(ratio=mixer.indexer.pool)), attended)
        case CompressedAttention():
            core = 4 * mixer.num_heads * mixer.head_dim
            ratio = mixer.compress_ratio
            terms = [("attention_core", core, _Span(window=mixer.window))]
            if ratio > 1:
                limit = mixer.index_top_k if mixer.has_indexer else 0
                terms.append(("attention_core", core, _Span(ratio=ratio, limit=limit)))
            if mixer.has_indexer:
                scores = 2 * mixer.index_heads * mixer.index_head_dim
                terms.append(("sparse_indexer", scores, _Span(ratio=ratio)))
            return terms
        case (
            GatedDeltaNet()
            | KimiDeltaAttention()
            | Mamba2()
            | Mamba1()
            | LightningAttention()
            | ShortConv()
        ):
            return ()
        case _:
            assert_never(mixer)


def _recurrent_flops(mixer: Mixer, phase: Phase) -> int:
    """FLOPs per token and layer of convolution and state, beside the projections.

    A state of s elements: decay s, update 2*s, read 2*s; the delta rule reads once more (2*s);
    Mamba-1 also scales its decay per element (s). Prefill takes chunks of C tokens: no decay per
    token, but 2*C*(dk + dv) per head inside the chunk, and 4*C*dk + 2*C*dv more for the delta rule.
    Convolution: 2*kernel per channel.
    """
    match mixer:
        case GatedDeltaNet():
            conv = 2 * mixer.conv_kernel * (2 * mixer.key_size + mixer.value_size)
            return conv + mixer.num_v_heads * _delta_rule(mixer.k_head_dim, mixer.v_head_dim, phase)
        case KimiDeltaAttention():
            conv = 2 * mixer.conv_kernel * 3 * mixer.num_heads * mixer.head_dim
            return conv + mixer.num_heads * _delta_rule(mixer.head_dim, mixer.head_dim, phase)
        case Mamba2():
            conv = 2 * mixer.conv_kernel * mixer.conv_size
            state = mixer.inner_size * mixer.state_size
            if phase == "decode":
                return conv + 5 * state
            # Scores C*B^T once per group, their product with x once per head.
            inside = 2 * MAMBA2_CHUNK * (mixer.num_groups * mixer.state_size + mixer.inner_size)
            return conv + 4 * state + inside
        case Mamba1():
            # The selective scan runs token by token in prefill as well.
            conv = 2 * mixer.conv_kernel * mixer.inner_size
            return conv + 6 * mixer.inner_size * mixer.state_size
        case LightningAttention():
            n, d = mixer.num_heads, mixer.head_dim
            if phase == "decode":
                return 5 * n * d * d
            return n * (4 * d * d + 4 * LIGHTNING_CHUNK * d)
        case ShortConv():
            return 2 * mixer.kernel * mixer.size
        case GroupedQueryAttention() | LatentAttention() | CompressedAttention():
            return 0
        case _:
            assert_never(mixer)


def _delta_rule(key_size: int, value_size: int, phase: Phase) -> int:
    state = key_size * value_size
    if phase == "decode":
        return 7 * state
    return 6 * state + DELTA_CHUNK * (6 * key_size + 4 * value_size)


def _cross_flops(spec: ModelSpec) -> int:
    """FLOPs per token and encoder token, all cross-attention layers together."""
    return sum(
        2 * mixer.num_heads * (mixer.head_dim + mixer.v_head_dim) * count
        for block, count in _block_counts(spec, spec.layout)
        for mixer in block.mixers
        if isinstance(mixer, GroupedQueryAttention) and mixer.cross
    )


def _excluded(spec: ModelSpec) -> tuple[str, ...]:
    out = ["norms, activations, rotary embedding, softmax and sampling"]
    out += [f"{tower.kind} tower (once per input, not per token)" for tower in spec.towers]
    if spec.mtp is not None:
        out.append("multi-token prediction blocks (speculation only)")
    return tuple(out)


# --- Distinct experts ---------------------------------------------------------------------------


def expected_distinct_experts(
    num_experts: int, experts_per_token: int, tokens: int, *, extra_routes: int = 0
) -> float:
    """Routed experts that `tokens` tokens visit together: D(B) = E * (1 - (1 - A/E)^B).

    Every token takes A different experts, all choices equally likely, tokens independent. Real
    routing is correlated, so this is an upper estimate. `extra_routes` zero-compute experts take
    their part of the choices. Raises InvalidInputError for numbers that make no sense.
    """
    at_least("num_experts", num_experts, 1)
    at_least("tokens", tokens, 0)
    routes = num_experts + extra_routes
    if not 1 <= experts_per_token <= routes:
        raise InvalidInputError(
            f"experts_per_token ({experts_per_token}) must lie between 1 and {routes}"
        )
    if tokens == 0:
        return 0.0
    if experts_per_token == routes:
        return float(num_experts)
    # (1 - x)^B through logarithms: exact for large B and for small x alike.
    return -num_experts * expm1(tokens * log1p(-experts_per_token / routes))


def average_distinct_experts(spec: ModelSpec, tokens: int) -> float | None:
    """Expected distinct experts per MoE layer, averaged over them; None for a dense model."""
    layers = distinct = 0.0
    for block, count in _block_counts(spec, spec.layout):
        moe = moe_of(block)
        if moe is not None:
            layers += count
            distinct += count * expected_distinct_experts(
                moe.num_experts, moe.experts_per_token, tokens, extra_routes=moe.extra_routes
            )
    return distinct / layers if layers else None


def routed_fraction(spec: ModelSpec, tokens: int) -> float:
    """Part of all routed-expert weights that a step of `tokens` tokens reads; 0 if dense."""
    read = whole = 0.0
    for block, count in _block_counts(spec, spec.layout):
        moe = moe_of(block)
        if moe is not None:
            elements = count * sum(t.elements for t in spec.block_tensors[block.name] if t.expert)
            whole += elements
            read += (
                elements
                / moe.num_experts
                * expected_distinct_experts(
                    moe.num_experts, moe.experts_per_token, tokens, extra_routes=moe.extra_routes
                )
            )
    return read / whole if whole else 0.0


# --- Bytes of a decode step ---------------------------------------------------------------------


def kv_read_elements(
    spec: ModelSpec,
    context_tokens: int,
    *,
    tensor_parallel_size: int = 1,
    encoder_tokens: int = 0,
) -> dict[str, int]:
    """Cache elements that one decode step reads for one sequence on one rank, by cache part.

    Parts as in `TokenCache`: kv, latent, index, compressed, cross. Windows, chunks and sparse
    choices count what is attended to; heads are split over ranks and repeated when too few.
    """
    at_least("context_tokens", context_tokens, 1)
    shared = _shared_span(spec)
    out: dict[str, int] = {}
    for block, count in _block_counts(spec, spec.layout):
        for mixer in block.mixers:
            for part, elements in _reads(
                mixer, context_tokens, tensor_parallel_size, encoder_tokens, shared
            ):
                out[part] = out.get(part, 0) + elements * count
    return out


def _reads(
    mixer: Mixer, position: int, ranks: int, encoder_tokens: int, shared: _Span
) -> Iterable[tuple[str, int]]:
    match mixer:
        case GroupedQueryAttention():
            per_token = ceil_div(mixer.num_kv_heads, ranks) * (mixer.head_dim + mixer.v_head_dim)
            if mixer.cross:
                return (("cross", per_token * encoder_tokens),)
            if mixer.index_heads:
                attended = _Span(blocks=mixer.index_top_k).at(position)
                return (("kv", per_token * attended), ("index", mixer.index_head_dim * position))
            span = _Span(window=mixer.window or 0, chunk=mixer.chunk or 0)
            return (("kv", per_token * span.at(position)),)
        case LatentAttention():
            per_token = mixer.kv_lora_rank + mixer.qk_rope_head_dim
            attended = per_token * _latent_span(mixer, shared).at(position)
            if mixer.indexer is None:
                return (("latent", attended),)
            keys = position // mixer.indexer.pool
            return (("latent", attended), ("index", mixer.indexer.head_dim * keys))
        case CompressedAttention():
            ratio, size = mixer.compress_ratio, mixer.head_dim
            parts = [("latent", size * min(position, mixer.window))]
            if ratio > 1:
                limit = mixer.index_top_k if mixer.has_indexer else 0
                parts.append(("compressed", size * _Span(ratio=ratio, limit=limit).at(position)))
            if mixer.has_indexer:
                parts.append(("index", mixer.index_head_dim * (position // ratio)))
            return parts
        case (
            GatedDeltaNet()
            | KimiDeltaAttention()
            | Mamba2()
            | Mamba1()
            | LightningAttention()
            | ShortConv()
        ):
            return ()
        case _:
            assert_never(mixer)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBytes:
    """Bytes that one decode step moves between memory and cores of the limiting rank.

    weights          by parameter group; routed experts scaled by `routed_fraction`
    embedding_rows   one row per token of the look-up tables
    state            recurrent states, read and written
    """

    weights: dict[str, int]
    routed_fraction: float
    embedding_rows: int
    kv_cache: int
    state: int

    @property
    def total(self) -> int:
        """Sum of all of them."""
        return sum(self.weights.values()) + self.embedding_rows + self.kv_cache + self.state

    def to_dict(self) -> dict[str, Any]:
        """Everything that is not zero, and the total."""
        parts = {f"weights.{group}": size for group, size in self.weights.items() if size}
        rest = {
            "embedding_rows": self.embedding_rows,
            "kv_cache": self.kv_cache,
            "state": self.state,
        }
        return {"total": self.total, **parts, **{name: size for name, size in rest.items() if size}}


def decode_step_bytes(
    spec: ModelSpec,
    resident_bytes: Mapping[str, int],
    *,
    sequences: int,
    kv_read_bytes: int,
    state_bytes: int = 0,
    scale_bytes: int = 0,
    routed_tokens: int | None = None,
) -> StepBytes:
    """Bytes that a decode step of `sequences` sequences moves on one rank.

    resident_bytes   weights on the rank by group (tensors.GROUPS); routed experts are read in the
                     part D(B)/E that the step visits, towers not at all, embeddings row by row,
                     except where the table is also the head
    scale_bytes      scales of quantized weights, read in the proportion of the weights
    kv_read_bytes    all sequences of the step together, as is state_bytes (counted twice: read,
                     written back)
    routed_tokens    tokens whose experts the rank serves when not `sequences`: data-parallel
                     attention with expert parallelism pools the tokens of all ranks

    Left out: activations, the write of the new token's cache, scratch of split attention.
    Raises InvalidInputError for an unknown group.
    """
    at_least("sequences", sequences, 1)
    unknown = sorted(set(resident_bytes) - set(GROUPS))
    if unknown:
        raise InvalidInputError(f"no parameter group is called {unknown[0]!r}")
    fraction = routed_fraction(spec, sequences if routed_tokens is None else routed_tokens)
    weights = {
        group: size
        for group, size in resident_bytes.items()
        if group not in ("embedding", "towers", "routed_experts")
    }
    weights["routed_experts"] = round(resident_bytes.get("routed_experts", 0) * fraction)
    table = resident_bytes.get("embedding", 0)
    embedding = spec.embedding
    if embedding.tied and embedding.has_head and not weights.get("lm_head"):
        head = embedding.vocab_size * (embedding.size or spec.hidden_size)
        tables = sum(e.elements for e in inventory(spec) if e.section == "embedding")
        weights["lm_head"] = table * min(head, tables) // tables
    resident = sum(
        size for group, size in resident_bytes.items() if group not in ("embedding", "towers")
    )
    if resident and scale_bytes:
        read = sum(
            size for group, size in weights.items() if group != "lm_head" or not embedding.tied
        )
        weights["scales"] = round(scale_bytes * read / resident)
    return StepBytes(
        weights=weights,
        routed_fraction=fraction,
        embedding_rows=min(table, ceil_div(table * sequences, embedding.vocab_size)),
        kv_cache=kv_read_bytes,
        state=2 * state_bytes,
    )
