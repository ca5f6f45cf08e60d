"""Runs any of a model's layers on any device: a prompt, then token by token.

Nothing of a checkpoint is executed; only its numbers are read. B sequences of equal length, T new
tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

import torch
import torch.nn.functional as f
from torch import Tensor

from moesize.core.attention import CompressedAttention, GroupedQueryAttention, LatentAttention
from moesize.core.errors import InvalidInputError, UnsupportedError
from moesize.core.feed_forward import DenseMlp, FeedForward
from moesize.core.naming import names_of
from moesize.core.recurrent import (
    GatedDeltaNet,
    KimiDeltaAttention,
    LightningAttention,
    Mamba1,
    Mamba2,
    ShortConv,
)
from moesize.core.tensors import Shard
from moesize.verify.forward.altup import ALTUP_ROLES, AltUp, join, laurel, spread
from moesize.verify.forward.attention import GroupedQuery
from moesize.verify.forward.caches import CacheKind, LayerCache
from moesize.verify.forward.compressed import Compressed
from moesize.verify.forward.delta import GatedDelta, KimiDelta
from moesize.verify.forward.feed_forward import Dense, ExpertPath, Experts
from moesize.verify.forward.hyper import HC_NAMES, HyperConnection, collapse
from moesize.verify.forward.latent import Latent
from moesize.verify.forward.lightning import Lightning
from moesize.verify.forward.mamba import SelectiveScan, StateSpaceDual
from moesize.verify.forward.norms import normalize
from moesize.verify.forward.per_layer import per_layer_inputs, per_layer_update
from moesize.verify.forward.short_conv import GatedShortConv
from moesize.verify.forward.step import Step
from moesize.verify.forward.weights import LayerWeights, Weights

if TYPE_CHECKING:
    from moesize.core.mixers import Mixer
    from moesize.core.model_spec import ModelSpec
    from moesize.verify.forward.numerics import Numerics

MixerRunner = Callable[[Tensor, Step, LayerCache], Tensor]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a pass is computed; the result does not depend on it.

    query_block  rows of queries whose scores are held at once
    """

    experts: ExpertPath = "looped"
    cache: CacheKind = "growing"
    max_tokens: int = 4096
    query_block: int = 128


class ForwardModel:
    """A model's chosen layers over a checkpoint's own tensors.

    state      tensors by the names of the checkpoint (`moesize.core.naming`), on any device
    layers     indices to run, in this order; None = all
    tp         (rank, size): this rank's slices only
    cut        the state holds the rank's slices, as `loading` reads them; False: whole tensors, of
               which the rank takes its slices
    reduce     how parts are summed over ranks; without it the sums are left out
    on_phase   called with `embedding`, `layer 3`, `final norm`, `logits` as each begins
    """

    def __init__(
        self,
        spec: ModelSpec,
        numerics: Numerics,
        state: Mapping[str, Tensor],
        *,
        layers: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        tp: tuple[int, int] = (0, 1),
        cut: bool = True,
        options: RunOptions | None = None,
        on_phase: Callable[[str], None] | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.spec = spec
        self.numerics = numerics
        self.options = options or RunOptions()
        self.device = torch.device(device)
        self.layers = list(range(spec.num_layers) if layers is None else layers)
        if any(not 0 <= index < spec.num_layers for index in self.layers):
            raise InvalidInputError(f"the model has layers 0..{spec.num_layers - 1}")
        if not 0 <= tp[0] < tp[1]:
            raise InvalidInputError(f"rank {tp[0]} is not one of {tp[1]}")
        self.weights = Weights(spec, state, self.device, dtype, tp, cut=cut)
        self.on_phase = on_phase or (lambda name: None)
        self.reduce = reduce or (lambda x: x)
        self._blocks = {index: _Layer(self, index) for index in self.layers}
        self._kv_sources = kv_sources(spec, self.layers)
        self.reset()

    def reset(self) -> None:
        """Forget all sequences."""
        self.length = 0
        options = self.options
        self.caches = {i: LayerCache(options.cache, options.max_tokens) for i in self.layers}

    @property
    def cache_bytes(self) -> int:
        """Bytes of all caches and states."""
        return sum(cache.bytes_held for cache in self.caches.values())

    @torch.no_grad()
    def prefill(self, tokens: Tensor) -> Tensor:
        """tokens (B, T), appended to every sequence -> hidden states (B, T, H), normed."""
        return self._run(tokens)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """tokens (B), one more for every sequence -> hidden states (B, 1, H)."""
        return self._run(tokens[:, None])

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., H) -> logits (..., V), or the rank's part of V."""
        self.on_phase("logits")
        num, embedding = self.numerics, self.spec.embedding
        head = self._head()
        bias = self.weights.outside("lm_head.bias", "final")
        rows = embedding.head_vocab_size or embedding.vocab_size
        if bias is not None:
            bias = self.weights.own(bias, Shard(0, rows))
        out = f.linear(hidden, head, bias).float() * num.factor("logits")
        if num.logit_softcap:
            out = num.logit_softcap * torch.tanh(out / num.logit_softcap)
        return out

    # --- The pass -------------------------------------------------------------------------------

    def _run(self, tokens: Tensor) -> Tensor:
        tokens = tokens.to(self.device)
        step = Step(
            self.numerics,
            tokens,
            self.length,
            query_block=self.options.query_block,
            reduce=self.reduce,
            kv_sources=self._kv_sources,
        )
        self.on_phase("embedding")
        x = self._embed(tokens, step)
        if self.spec.embedding.per_layer_size:
            step.per_layer = per_layer_inputs(self.spec, self.numerics, self.weights, step, x)
        if self.numerics.streams:
            x = x[:, :, None].repeat(1, 1, self.numerics.streams, 1)
        if self.numerics.alternates:
            x = spread(x, self.weights)
        for index in self.layers:
            self.on_phase(f"layer {index}")
            x = self._blocks[index](x, step, self.caches[index])
        self.length += tokens.shape[1]
        self.on_phase("final norm")
        if self.numerics.streams:
            x = collapse(x, self.numerics, self.weights)
        if self.numerics.alternates:
            x = join(x, self.weights)
        return self._final_norm(x)

    def _table(self) -> Tensor:
        table = self.weights.outside("embedding.tokens", "embedding")
        if table is None:
            raise InvalidInputError("the checkpoint has no token embedding")
        return table

    def _local_table(self) -> Tensor:
        return self.weights.rows(self._table(), self.spec.embedding.vocab_size)

    def _head(self) -> Tensor:
        head = self.weights.outside("lm_head.weight", "final")
        if head is None:
            if not self.spec.embedding.tied:
                raise InvalidInputError("the checkpoint has no head")
            return self._local_table()
        embedding = self.spec.embedding
        return self.weights.rows(head, embedding.head_vocab_size or embedding.vocab_size)

    def _embed(self, tokens: Tensor, step: Step) -> Tensor:
        """(B, T) -> (B, T, H); a rank looks up its part of the vocabulary."""
        num, embedding = self.numerics, self.spec.embedding
        x = self.weights.look_up(self._local_table(), tokens, self.reduce)
        if embedding.size not in (0, self.spec.hidden_size):
            x = f.linear(x, self._projection("in"))
        if embedding.positions:
            positions = self.weights.outside("embedding.positions", "embedding")
            assert positions is not None
            x = x + positions[step.positions + num.positions_offset]
        if num.multipliers.get("embedding"):
            # The factor has the type of the weights, as in the released code.
            x = x * torch.tensor(num.factor("embedding"), dtype=x.dtype, device=x.device)
        if num.embedding_norm:
            x = normalize(x, num.embedding_norm, *self._embedding_norm(), num.eps)
        return x

    def _projection(self, way: str) -> Tensor:
        """Between the width of the table and that of the layers (OPT-350M)."""
        found = self.weights.outside(f"other.project_{way}", "final")
        if found is None:
            raise UnsupportedError("embeddings of another width than the layers are not projected")
        return found

    def _embedding_norm(self) -> tuple[Tensor | None, Tensor | None]:
        if not self.spec.embedding.norm:
            return None, None
        weight = self.weights.outside("norms.embedding", "embedding")
        return weight, self.weights.outside("norms.embedding.bias", "embedding")

    def _final_norm(self, x: Tensor) -> Tensor:
        num = self.numerics
        weight = self.weights.outside("norms.final", "final")
        bias = self.weights.outside("norms.final.bias", "final")
        # Of some families norms have no weight, and some models have no norm here.
        if weight is not None or num.norm.endswith("plain"):
            x = normalize(x, num.norm, weight, bias, num.eps)
        narrow = self.spec.embedding.size not in (0, self.spec.hidden_size)
        return f.linear(x, self._projection("out")) if narrow else x


def kv_sources(spec: ModelSpec, layers: Sequence[int]) -> dict[int, int]:
    """Which layer's cache each layer without one of its own reads.

    The last of its kind before it that has its own; of some of a model's layers, the last that is
    run. Raises UnsupportedError where none is.
    """
    out: dict[int, int] = {}
    last: dict[tuple[int | None, int], int] = {}
    for index in layers:
        for mixer in spec.block(spec.layout[index]).mixers:
            if not isinstance(mixer, GroupedQueryAttention):
                continue
            kind = (mixer.window, mixer.head_dim)
            if not mixer.shares_kv:
                last[kind] = index
            elif kind in last:
                out[index] = last[kind]
            else:
                raise UnsupportedError(
                    f"layer {index} reads the cache of an earlier layer of its kind, and none of "
                    "those is run"
                )
    return out


class _Layer:
    """One layer: norms, mixers, feed-forwards, and how they are added up."""

    def __init__(self, model: ForwardModel, index: int) -> None:
        self.spec = model.spec
        self.numerics = model.numerics
        self.reduce = model.reduce
        self.block = model.spec.block(model.spec.layout[index])
        self.w = model.weights.layer(index)
        self.mixers = [(m, mixer_runner(m, model.numerics, self.w)) for m in self.block.mixers]
        self.feed_forwards = [
            self._feed_forward(part, model.options.experts) for part in self.block.feed_forwards
        ]
        self.norms = self._norm_names()
        unknown = sorted(e.role for e in self.block.extra if e.role not in _KNOWN_EXTRA)
        if unknown:
            raise UnsupportedError(
                f"{model.spec.model_type} has {', '.join(unknown)}, which no forward pass knows"
            )
        roles = [tensor.role for tensor in model.spec.block_tensors[self.block.name]]
        if len(set(roles)) < len(roles):
            # LongCat: which of two equal tensors belongs to which half, nothing says.
            raise UnsupportedError(
                f"{model.spec.model_type} has two mixers of one kind in a layer, which no forward "
                "pass knows"
            )

    def _feed_forward(self, part: FeedForward, path: ExpertPath) -> Dense | Experts:
        if isinstance(part, DenseMlp):
            return Dense(part, self.numerics, self.w)
        return Experts(part, self.numerics, self.w, path)

    def _norm_names(self) -> dict[str, str]:
        """Name of the norm in each slot that this layer has."""
        names = self.numerics.norm_names.get(self.block.name) or names_of(self.spec.naming).norms
        slots = self.numerics.norm_slots_of.get(self.block.name) or self.numerics.norm_slots
        pairs = list(zip(slots, names, strict=False))
        if not self.block.mixers or not self.block.feed_forwards:
            # A layer with one half of the usual two has the norms of that half.
            part = "mixer" if self.block.mixers else "mlp"
            own = [pair for pair in pairs if pair[0].endswith(part)]
            pairs = own or [("pre_mixer" if self.block.mixers else "pre_mlp", names[0])]
        return dict(pairs[: self.block.num_norms])

    def __call__(self, x: Tensor, step: Step, cache: LayerCache) -> Tensor:
        num = self.numerics
        if num.streams:
            return self._over_streams(x, step, cache)
        if num.alternates:
            own = None if step.per_layer is None else step.per_layer[:, :, self.w.index]
            return AltUp(num, self.w)(x, own, lambda y: self._with_laurel(y, step, cache))
        if num.parallel and self.mixers and self.feed_forwards:
            return self._parallel(x, step, cache)
        if self.mixers:
            x = self._add("mixer", x, lambda y: self._mix(y, step, cache))
        if self.feed_forwards:
            x = self._add("mlp", x, lambda y: self._feed(y, step, x))
        if step.per_layer is not None:
            x = x + per_layer_update(x, step.per_layer[:, :, self.w.index], num, self.w)
        scaled = num.layer_scalar and self.w.has_named("layer_scalar")
        return x * self.w.named("layer_scalar") if scaled else x

    def _over_streams(self, x: Tensor, step: Step, cache: LayerCache) -> Tensor:
        """x (B, T, m, H): hyper-connections before and behind each half."""
        before = HyperConnection("attn", self.numerics, self.w)
        inside = before.enter(x)
        x = before.leave(x, self._mix(self._norm("pre_mixer", inside), step, cache))
        before = HyperConnection("ffn", self.numerics, self.w)
        inside = before.enter(x)
        return before.leave(x, self._feed(self._norm("pre_mlp", inside), step, inside))

    def _with_laurel(self, x: Tensor, step: Step, cache: LayerCache) -> Tensor:
        """Gemma 3n on one stream: beside the attention a low-rank residual."""
        normed = self._norm("pre_mixer", x)
        beside = laurel(normed, lambda y: self._norm("post_laurel", y), self.w)
        mixed = self._norm("post_mixer", self._mix(normed, step, cache))
        x = (x + mixed + beside) * 2**-0.5
        return self._add("mlp", x, lambda y: self._feed(y, step, x))

    def _add(self, part: str, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        num = self.numerics
        normed = self._norm(f"pre_{part}", x)
        out = self._norm(f"post_{part}", run(normed))
        if num.residual_after_norm:
            x = normed
        kept, added = self._factors(part)
        x = x * kept + out * added if kept != 1.0 or added != 1.0 else x + out
        return self._norm(f"sum_{part}", x)

    def _factors(self, part: str) -> tuple[float, float]:
        """Of the residual stream and of what is added to it."""
        factors = self.numerics.multipliers
        name = part
        if part == "mixer" and isinstance(self.block.mixers[0], LightningAttention):
            name = "lightning"
        kept, added = factors.get(f"{name}_residual", (1.0, 1.0))
        return kept, added * self.numerics.factor("residual")

    def _parallel(self, x: Tensor, step: Step, cache: LayerCache) -> Tensor:
        normed = self._norm("pre_mixer", x)
        beside = self._norm("pre_mlp", x) if "pre_mlp" in self.norms else normed
        return x + self._mix(normed, step, cache) + self._feed(beside, step, x)

    def _mix(self, x: Tensor, step: Step, cache: LayerCache) -> Tensor:
        """The sum of the layer's mixers."""
        num, out = self.numerics, None
        for mixer, run in self.mixers:
            attends = isinstance(mixer, (GroupedQueryAttention, LatentAttention))
            into = x * num.factor("attention_in") if attends else x
            mixed = self.reduce(run(into, step, cache))
            mixed = mixed * num.factor("attention_out") if attends else mixed
            out = mixed if out is None else out + mixed
        assert out is not None
        return out

    def _feed(self, x: Tensor, step: Step, before: Tensor) -> Tensor:
        """The sum of the layer's feed-forwards of x; `before`: x before its norm."""
        if "pre_experts" in self.norms:
            return self._side_by_side(x, step, before)
        out = self.feed_forwards[0](x, step)
        for part in self.feed_forwards[1:]:
            out = out + part(x, step)
        return self.reduce(out)

    def _side_by_side(self, x: Tensor, step: Step, before: Tensor) -> Tensor:
        """Gemma 4: the dense MLP and the experts with norms of their own; the router sees none."""
        dense, experts = self.feed_forwards
        assert isinstance(experts, Experts)
        out = self._norm("post_dense", self.reduce(dense(x, step)))
        routed = experts(self._norm("pre_experts", before), step, before)
        return out + self._norm("post_experts", self.reduce(routed))

    def _norm(self, slot: str, x: Tensor) -> Tensor:
        num = self.numerics
        if slot not in self.norms:
            # Families whose norms have no weights list none.
            plain = num.norm.endswith("plain") and slot in num.norm_slots
            return normalize(x, num.norm, None, None, num.eps) if plain else x
        name = self.norms[slot]
        bias = self.w.named(name + ".bias") if self.block.norm_bias else None
        return normalize(x, num.norm, self.w.named(name + ".weight"), bias, num.eps)


# Extra tensors that a mixer or an MLP takes care of itself.
_KNOWN_EXTRA = frozenset(
    {
        "norms.attention_inner",
        "norms.mlp_inner",
        "norms.per_layer",
        "other.alpha_p",
        "other.alpha_n",
        "router.scale",
        "router.expert_scale",
        "other.per_layer_gate",
        "other.per_layer_projection",
        *ALTUP_ROLES,
        *(f"other.hc_{part}_{name}" for part in ("attn", "ffn") for name in HC_NAMES),
    }
)


def mixer_runner(mixer: Mixer, numerics: Numerics, weights: LayerWeights) -> MixerRunner:
    """The forward pass of a kind of mixer; UnsupportedError where there is none."""
    match mixer:
        case GroupedQueryAttention():
            return GroupedQuery(mixer, numerics, weights)
        case LatentAttention():
            return Latent(mixer, numerics, weights)
        case GatedDeltaNet():
            return GatedDelta(mixer, numerics, weights)
        case KimiDeltaAttention():
            return KimiDelta(mixer, numerics, weights)
        case Mamba2():
            return StateSpaceDual(mixer, numerics, weights)
        case Mamba1():
            return SelectiveScan(mixer, numerics, weights)
        case LightningAttention():
            return Lightning(mixer, numerics, weights)
        case ShortConv():
            return GatedShortConv(mixer, numerics, weights)
        case CompressedAttention():
            return Compressed(mixer, numerics, weights)
        case _:
            assert_never(mixer)
