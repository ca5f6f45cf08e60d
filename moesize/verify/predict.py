"""What each term should be, before anything is allocated.

weights    sum of the bytes of the rank's file tensors: exact
blocks     each of them in a block of the caching allocator
reserved   the segments that those blocks take, in the order of loading
KV cache   2 * K * d per token and layer (or the latent, or a window), from `core`'s cache()
states     of recurrent layers, from `core`'s state()
peaks      the same passes on shapes alone (`dry_run`)
logits     8 * S * V; sampling 24 * S * V
FLOPs      `core.compute` for the chosen layers, on one rank
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import torch

from moesize.core.attention import GroupedQueryAttention
from moesize.core.compute import flops_per_token, prefill_flops
from moesize.core.errors import UnsupportedError
from moesize.core.recurrent import LightningAttention, Mamba2
from moesize.core.units import round_up
from moesize.verify.caching_allocator import CachingAllocator
from moesize.verify.cuda_scratch import scratch
from moesize.verify.devices import Reading
from moesize.verify.dry_run import DryRun, Routing, even_routing
from moesize.verify.forward import ForwardModel
from moesize.verify.forward.caches import BLOCK_TOKENS, CacheKind
from moesize.verify.forward.flops import unseen
from moesize.verify.forward.model import RunOptions
from moesize.verify.forward.weights import formats_of
from moesize.verify.loading import torch_dtype
from moesize.verify.owners import Listener
from moesize.verify.passes import PassPeaks, Stopwatch, Workload, run_passes
from moesize.verify.rank_spec import rank_mixer, rank_spec
from moesize.verify.selection import Held, Selection, held_by_rank
from moesize.verify.synthetic import plan_synthetic

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from moesize.core.checkpoint import StoredEntry
    from moesize.core.mixers import Mixer
    from moesize.core.model_spec import ModelSpec
    from moesize.verify.forward import Numerics

CACHE_KINDS: tuple[CacheKind, ...] = ("static", "growing")
# Prompts on which FLOPs are counted: whole chunks of the linear kinds, or what is counted would be
# a begun chunk and the formula a whole one.
_FLOP_TOKENS, _FLOP_TOKENS_CHUNKED = 64, 256
DTYPES: Mapping[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured: a model's chosen layers in a format, on one rank."""

    spec: ModelSpec
    stored: tuple[StoredEntry, ...]
    numerics: Numerics
    selection: Selection
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype:
        """Type of the computation."""
        return DTYPES[self.dtype]

    @property
    def unpacks_head(self) -> bool:
        """Whether the head is stored quantized."""
        return ("lm_head.weight", None) in formats_of(self.stored)

    def model(
        self,
        state: Mapping[str, torch.Tensor],
        device: torch.device,
        cache: CacheKind,
        work: Workload,
        reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> ForwardModel:
        """The forward pass over a state; `reduce` sums over ranks, in place."""
        own = self.selection
        model = ForwardModel(
            self.spec,
            self.numerics,
            state,
            layers=own.layers,
            device=device,
            dtype=self.torch_dtype,
            tp=(own.rank, own.size),
            options=RunOptions(cache=cache, max_tokens=work.longest, query_block=work.query_block),
            reduce=reduce,
        )
        # The formats of the files, which --quant may have made others than the published ones.
        model.weights.formats = formats_of(self.stored)
        return model


# --- Weights --------------------------------------------------------------------------------------


def weights(subject: Subject) -> Held:
    """Requested bytes and blocks of the rank's tensors."""
    own = subject.selection
    return held_by_rank(own.tensors(subject.spec, subject.stored), own.rank, own.size)


def weights_in_allocator(subject: Subject) -> CachingAllocator:
    """The caching allocator once the tensors have been loaded one after another.

    Its blocks are more than the tensors' bytes rounded to 512: what is left of a segment, and no
    more than 1 MiB, stays with the block that was cut from it.
    """
    own, allocator = subject.selection, CachingAllocator()
    for key, tensor in enumerate(own.tensors(subject.spec, subject.stored)):
        allocator.allocate(tensor.rank_bytes(own.rank, own.size), key)
    return allocator


# --- KV cache -------------------------------------------------------------------------------------


def cache_bytes(subject: Subject, work: Workload, kind: CacheKind) -> int:
    """Cache and states of all sequences after the last step.

    static: whole blocks of 16 tokens for the longest context, whatever the window; growing: the
    tokens so far, of a window no more than it holds. A row that stands for several tokens is there
    once they are complete. Convolutions keep the type of the
    computation, recurrent states float32.
    """
    spec, own = subject.spec, subject.selection
    element = subject.torch_dtype.itemsize
    return work.sequences * sum(
        _cache_of(rank_mixer(mixer, own.size), work.longest, kind, element)
        for layer in own.layers
        for mixer in spec.block(spec.layout[layer]).mixers
    )


def _cache_of(mixer: Mixer, tokens: int, kind: CacheKind, element: int) -> int:
    total = 0
    for cache in mixer.cache():
        held = tokens // cache.ratio
        rows = round_up(held, BLOCK_TOKENS)
        if kind == "growing":
            bound = cache.window
            if isinstance(mixer, GroupedQueryAttention):
                bound = bound or cache.chunk
            rows = min(held, bound or held)
        total += rows * max(1, cache.heads) * (cache.key_size + cache.value_size) * element
    for part in mixer.state():
        # Our pass keeps recurrences in float32, where engines may take the model's type.
        total += prod(part.shape) * (element if part.name.startswith("conv") else 4)
    return total


# --- Peaks ----------------------------------------------------------------------------------------


class DryProbe:
    """A device that only counts; blocks: as the caching allocator would give them out.

    kind  of the device that is predicted: kernels of `cuda` take scratch
    """

    def __init__(self, *, blocks: bool, kind: str = "cpu") -> None:
        self.device = torch.device("meta")
        self.counts_blocks = blocks
        self.allocator = CachingAllocator() if blocks else None
        self.listener = Listener(self.allocator)
        self.run = DryRun(self.listener, scratch if kind == "cuda" else None)

    def reading(self) -> Reading:
        """What would be live."""
        live = self.run.live_bytes
        if self.allocator is None:
            return Reading(live, live, live)
        return Reading(live, self.allocator.allocated, self.allocator.reserved)

    def peak(self) -> Reading:
        """At its most."""
        peak = self.run.peak_bytes
        if self.allocator is None:
            return Reading(peak, peak, peak)
        return Reading(peak, self.allocator.peak_allocated, self.allocator.peak_reserved)

    def reset_peak(self) -> None:
        """Count from here on."""
        self.run.reset_peak()
        self.listener.owners.reset_peak()
        if self.allocator is not None:
            self.allocator.reset_peak()

    def owners(self) -> dict[str, int] | None:
        """Bytes by owner at the peak."""
        return self.listener.owners.peak

    def synchronize(self) -> None:
        """Nothing runs."""


class DryPeaks(NamedTuple):
    """Of a run with fixed blocks of cache, and of one with a growing cache."""

    static: PassPeaks
    growing: PassPeaks

    @property
    def total(self) -> int:
        """The most that is ever allocated, weights included."""
        return max(self.static.total, self.growing.total)


class Routings(NamedTuple):
    """What routers choose in each pass: a prompt, then decode steps."""

    static: tuple[Routing, ...]
    growing: tuple[Routing, ...]


def even(subject: Subject, work: Workload) -> Routings:
    """Tokens spread evenly over experts: what is known before a run."""
    spec, layers = subject.spec, subject.selection.layers
    prompt = even_routing(spec, layers, work.tokens * work.sequences)
    step = even_routing(spec, layers, work.sequences)
    passes = (prompt, *(step for _ in range(work.decode_steps)))
    return Routings(passes, passes)


def dry_peaks(
    subject: Subject,
    work: Workload,
    routings: Routings,
    *,
    blocks: bool = False,
    device: str = "cpu",
    codes: Mapping[str, str] | None = None,
) -> DryPeaks:
    """Peaks of both runs from shapes alone.

    blocks  count the caching allocator's blocks, not the tensors' bytes
    device  its kind: what its kernels take beside their results
    codes   dtypes as the files have them, where that is known
    Raises UnsupportedError for a model without a forward pass.
    """
    found = []
    for kind, routing in zip(CACHE_KINDS, routings, strict=True):
        probe = DryProbe(blocks=blocks, kind=device)
        with probe.run:
            state = _meta_state(subject, probe.run, codes or {})
            model = subject.model(state, probe.device, kind, work)
            loads = tuple(load for one in routing for load in one.loads)
            probe.run.route(Routing(loads))
            watch = Stopwatch(probe)
            found.append(run_passes(model, work, watch, name=kind, sample=kind == "static"))
            del model, state
    return DryPeaks(*found)


def _meta_state(subject: Subject, dry: DryRun, codes: Mapping[str, str]) -> dict[str, torch.Tensor]:
    own = subject.selection
    cut = {
        tensor.name: tensor.rank_shape(own.rank, own.size)
        for tensor in own.tensors(subject.spec, subject.stored)
    }
    state = {}
    for planned in (
        p for shard in plan_synthetic(subject.spec, subject.stored, own) for p in shard
    ):
        dtype = torch_dtype(codes.get(planned.name, planned.dtype))
        shape = cut.get(planned.name, planned.shape)
        state[planned.name] = tensor = torch.empty(shape, dtype=dtype, device="meta")
        if planned.content.values:
            dry.know(tensor, planned.content.values)
    dry.adopt(state.values())
    return state


# --- FLOPs ----------------------------------------------------------------------------------------


class FlopsOf(NamedTuple):
    """A phase: the formula, and what of it no counter of matrix products sees."""

    phase: str
    predicted: int
    unseen: int


def flop_tokens(subject: Subject) -> int:
    """Length of the prompt on which FLOPs are counted."""
    spec = subject.spec
    mixers = [
        m for layer in subject.selection.layers for m in spec.block(spec.layout[layer]).mixers
    ]
    chunked = any(isinstance(mixer, (Mamba2, LightningAttention)) for mixer in mixers)
    return _FLOP_TOKENS_CHUNKED if chunked else _FLOP_TOKENS


def flops(subject: Subject) -> tuple[FlopsOf, FlopsOf]:
    """One sequence: a prompt with logits of its last token, and the decode step after it."""
    own, count = subject.selection, flop_tokens(subject)
    sub = rank_spec(as_run(subject.spec, subject.numerics), own.layers, own.size)
    layers = range(len(own.layers))
    return (
        FlopsOf("prefill", prefill_flops(sub, count).total, unseen(sub, layers, count, "prefill")),
        FlopsOf("decode", flops_per_token(sub, count + 1).total, unseen(sub, layers, 1, "decode")),
    )


def as_run(spec: ModelSpec, numerics: Numerics) -> ModelSpec:
    """The model with the windows of the pass.

    A spec counts them as vLLM allocates them; Cohere 2 computes with one token less.
    """
    shift = numerics.window_shift
    if not shift:
        return spec
    return replace(
        spec,
        blocks=tuple(
            replace(block, mixers=tuple(_shifted(mixer, shift) for mixer in block.mixers))
            for block in spec.blocks
        ),
    )


def _shifted(mixer: Mixer, shift: int) -> Mixer:
    if not isinstance(mixer, GroupedQueryAttention) or mixer.window is None:
        return mixer
    return replace(mixer, window=mixer.window + shift)


def check_passes(subject: Subject) -> None:
    """Passes need decoder layers alone and a head on this rank. Raises UnsupportedError."""
    spec = subject.spec
    if spec.encoder_layout:
        raise UnsupportedError("models with an encoder have no forward pass")
    if not spec.embedding.has_head:
        raise UnsupportedError(f"{spec.id} has no head")
