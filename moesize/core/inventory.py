"""The list of a model's tensors, and the parameter counts that follow from it.

Trunk layers, MTP blocks, head, towers and what only the published files hold are separate
sections, so that each is counted once and none is mixed into another.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from moesize.core.errors import InvalidSpecError
from moesize.core.feed_forward import MoeMlp
from moesize.core.records import dataclass
from moesize.core.tensors import GROUPS, Shard, Tensor, matrix, vector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moesize.core.model_spec import (
        Block,
        Embedding,
        ExtraTensor,
        ModelSpec,
        MultiTokenPrediction,
    )

# Far above any number of experts; keeps nonsense from becoming a list of that length.
_MOST_COPIES = 1 << 16

Section = Literal["embedding", "encoder", "layers", "final", "tower", "mtp", "stored"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor and where it stands.

    section   "stored" holds what the published files contain and engines do not load twice
    layers    indices of the layers that have it; empty outside of layers
    name      tower tensors carry their checkpoint name; others get theirs from `naming`
    """

    tensor: Tensor
    section: Section
    layers: tuple[int, ...] = ()
    block: str = ""
    name: str = ""

    @property
    def count(self) -> int:
        """In how many layers it occurs; 1 outside of layers."""
        return len(self.layers) or 1

    @property
    def elements(self) -> int:
        """Logical elements in the whole model."""
        return self.tensor.elements * self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCounts:
    """Parameters by group, in logical elements (no scales).

    total    what an engine loads by default: everything but MTP blocks; a tied head counts once
    active   total less the routed experts that one token does not visit
    stored   what the published checkpoint holds: MTP blocks and repeated tensors included
    """

    total: int
    active: int
    mtp: int
    stored: int
    by_group: dict[str, int]

    @property
    def active_without_embeddings(self) -> int:
        """`active` less the embedding look-up tables."""
        return self.active - self.by_group["embedding"]


def tensors_of_block(block: Block, hidden_size: int) -> tuple[Tensor, ...]:
    """Every tensor of one layer of this kind."""
    out: list[Tensor] = []
    for mixer in block.mixers:
        out.extend(mixer.tensors(hidden_size))
    for feed_forward in block.feed_forwards:
        out.extend(feed_forward.tensors(hidden_size))
    if block.num_norms:
        out.append(vector("norms.hidden", hidden_size, copies=block.num_norms))
        if block.norm_bias:
            out.append(vector("norms.hidden.bias", hidden_size, copies=block.num_norms))
    out.extend(_extra(extra) for extra in block.extra)
    return tuple(out)


@lru_cache(maxsize=64)
def _cached(key: SpecKey) -> tuple[Entry, ...]:
    entries = tuple(_entries(key.spec))
    for entry in entries:
        if entry.tensor.copies > _MOST_COPIES:
            raise InvalidSpecError(
                f"{key.spec.id}: {entry.tensor.copies:,} tensors {entry.tensor.role} in one layer"
            )
    return entries


class SpecKey:
    """A spec as a cache key by identity: hashing a whole spec costs more than a plan."""

    __slots__ = ("spec",)

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def __hash__(self) -> int:
        return id(self.spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SpecKey) and other.spec is self.spec


def inventory(spec: ModelSpec) -> tuple[Entry, ...]:
    """All tensors of the model, section by section. Cached per spec object."""
    return _cached(SpecKey(spec))


def _entries(spec: ModelSpec) -> Iterator[Entry]:
    for tensor in _embedding_tensors(spec.embedding, spec.hidden_size, spec.num_layers):
        yield Entry(tensor, "embedding")
    yield from _stack(spec, spec.encoder_layout, "encoder")
    yield from _stack(spec, spec.layout, "layers")
    for tensor in _final_tensors(spec):
        yield Entry(tensor, "final")
    for tower in spec.towers:
        for item in tower.tensors:
            split = item.split if tower.tensor_parallel else ""
            shard = None
            if split:
                dim = 0 if split == "out" else 1
                shard = Shard(dim, item.units or item.shape[dim])
            tensor = Tensor(
                f"towers.{tower.kind}", item.shape, item.copies, shard, matmul=len(item.shape) > 1
            )
            yield Entry(tensor, "tower", name=item.name)
    if spec.mtp is not None:
        yield from _mtp_entries(spec, spec.mtp)
    if spec.embedding.tied and spec.embedding.stored_tied_head:
        yield Entry(_head(spec.embedding, spec.hidden_size), "stored")
    for extra in spec.stored_extra:
        yield Entry(_extra(extra), "stored")


def _stack(spec: ModelSpec, layout: tuple[str, ...], section: Section) -> Iterator[Entry]:
    for block in spec.blocks:
        layers = tuple(i for i, name in enumerate(layout) if name == block.name)
        if layers:
            for tensor in spec.block_tensors[block.name]:
                yield Entry(tensor, section, layers, block.name)


def _embedding_tensors(embedding: Embedding, hidden_size: int, num_layers: int) -> list[Tensor]:
    tokens = (embedding.vocab_size, embedding.size or hidden_size)
    out = [Tensor("embedding.tokens", tokens, shard=Shard(0, embedding.vocab_size))]
    if embedding.positions:
        out.append(Tensor("embedding.positions", (embedding.positions, hidden_size)))
    if embedding.token_types:
        out.append(Tensor("embedding.token_types", (embedding.token_types, hidden_size)))
    if embedding.per_layer_size:
        shape = (embedding.per_layer_vocab_size, num_layers * embedding.per_layer_size)
        out.append(
            Tensor("embedding.per_layer", shape, shard=Shard(0, embedding.per_layer_vocab_size))
        )
    if embedding.norm:
        out.append(vector("norms.embedding", hidden_size))
        if embedding.norm_bias:
            out.append(vector("norms.embedding.bias", hidden_size))
    return out


def _head(embedding: Embedding, hidden_size: int) -> Tensor:
    rows = embedding.head_vocab_size or embedding.vocab_size
    return matrix("lm_head.weight", rows, embedding.size or hidden_size, split="out")


def _final_tensors(spec: ModelSpec) -> list[Tensor]:
    embedding, h = spec.embedding, spec.hidden_size
    out = []
    if spec.num_final_norms:
        out.append(vector("norms.final", h, copies=spec.num_final_norms))
        if spec.final_norm_bias:
            out.append(vector("norms.final.bias", h, copies=spec.num_final_norms))
    if embedding.has_head and not embedding.tied:
        out.append(_head(embedding, h))
    if embedding.head_bias:
        rows = embedding.head_vocab_size or embedding.vocab_size
        out.append(vector("lm_head.bias", rows, units=rows))
    out.extend(_extra(extra) for extra in spec.extra)
    return out


def _mtp_entries(spec: ModelSpec, mtp: MultiTokenPrediction) -> Iterator[Entry]:
    h, first = spec.hidden_size, spec.num_layers
    all_layers = tuple(range(first, first + len(mtp.layers)))
    for block in spec.blocks:
        layers = tuple(first + i for i, name in enumerate(mtp.layers) if name == block.name)
        if layers:
            for tensor in spec.block_tensors[block.name]:
                yield Entry(tensor, "mtp", layers, block.name)
    if mtp.norms:
        yield Entry(vector("norms.mtp", h, copies=mtp.norms), "mtp", all_layers)
    if mtp.projection_inputs:
        projection = matrix("other.mtp_projection", h, mtp.projection_inputs * h)
        yield Entry(projection, "mtp", all_layers)
    for extra in mtp.extra:
        yield Entry(_extra(extra), "mtp", all_layers)
    if mtp.stores_embedding:
        tokens = Tensor("embedding.tokens", (spec.embedding.vocab_size, h))
        yield Entry(tokens, "stored", all_layers)
    if mtp.stores_head:
        yield Entry(_head(spec.embedding, h), "stored", all_layers)


def _extra(extra: ExtraTensor) -> Tensor:
    shard = None
    if extra.split:
        dim = 0 if extra.split == "out" else 1
        shard = Shard(dim, extra.shape[dim])
    return Tensor(
        extra.role, extra.shape, extra.copies, shard, dtype=extra.dtype, matmul=extra.matmul
    )


def count_parameters(spec: ModelSpec) -> ParameterCounts:
    """Totals by group; active parameters visit A of E routed experts in every MoE layer.

    Kept by the spec: sweeps ask for it in every plan.
    """
    kept: ParameterCounts | None = spec.__dict__.get("_parameter_counts")
    if kept is None:
        kept = spec.__dict__["_parameter_counts"] = _count(spec)
    return kept


def _count(spec: ModelSpec) -> ParameterCounts:
    by_group = dict.fromkeys(GROUPS, 0)
    mtp = stored_only = 0
    for entry in inventory(spec):
        if entry.section == "mtp":
            mtp += entry.elements
        elif entry.section == "stored":
            stored_only += entry.elements
        else:
            by_group[entry.tensor.group] += entry.elements
    total = sum(by_group.values())
    return ParameterCounts(
        total=total,
        active=total - _unvisited(spec),
        mtp=mtp,
        stored=total + mtp + stored_only,
        by_group=by_group,
    )


def _unvisited(spec: ModelSpec) -> int:
    """Elements of the routed experts that one token does not pass."""
    skipped = 0
    for entry in inventory(spec):
        if entry.section in ("layers", "encoder") and entry.tensor.expert:
            moe = moe_of(spec.block(entry.block))
            if moe is not None:
                per_expert = entry.tensor.elements // entry.tensor.copies
                visited = min(moe.experts_per_token, moe.num_experts)
                skipped += per_expert * (moe.num_experts - visited) * entry.count
    return skipped


def moe_of(block: Block) -> MoeMlp | None:
    """The mixture of experts of a block, if it has one."""
    for feed_forward in block.feed_forwards:
        if isinstance(feed_forward, MoeMlp):
            return feed_forward
    return None
