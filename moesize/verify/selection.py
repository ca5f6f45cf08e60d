"""Which layers of a model, and which rank's part of them, are loaded and measured. No torch.

Layers of one kind hold the same tensors: the same block, stored in the same formats. Bytes of a
kind are counted once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from moesize.core.allocator import allocated_bytes
from moesize.core.errors import EnvironmentProblem, InvalidInputError
from moesize.core.records import dataclass
from moesize.core.units import format_bytes, round_up
from moesize.verify.file_tensors import FileTensor, file_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from moesize.core.checkpoint import StoredEntry
    from moesize.core.model_spec import ModelSpec

# Unit of PyTorch's CUDA caching allocator.
BLOCK_BYTES = 512


@dataclass(frozen=True, slots=True)
class Selection:
    """Layers (indices, ascending) and the rank of tensor parallelism that holds them.

    outside  embedding, final norm and head too
    """

    layers: tuple[int, ...]
    outside: bool = True
    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise InvalidInputError(f"rank {self.rank} is not one of {self.size}")
        if any(a >= b for a, b in zip(self.layers, self.layers[1:], strict=False)):
            raise InvalidInputError("layers are listed once each, in ascending order")

    def tensors(self, spec: ModelSpec, stored: Sequence[StoredEntry]) -> Iterator[FileTensor]:
        """The file tensors of the selection."""
        return file_tensors(spec, stored, layers=self.layers, outside=self.outside)


class Held(NamedTuple):
    """Bytes that a rank holds.

    requested  of the tensors themselves
    blocks     each tensor rounded up to the allocator's 512 B
    allocated  what PyTorch counts as allocated: tensors of 10 MiB and more get segments of 2 MiB
    """

    tensors: int = 0
    requested_bytes: int = 0
    blocks_bytes: int = 0
    allocated_bytes: int = 0

    def plus(self, other: Held) -> Held:
        """Both together."""
        return Held(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: int) -> Held:
        """`count` of it."""
        return Held(*(value * count for value in self))


def held_by_rank(tensors: Iterable[FileTensor], rank: int = 0, size: int = 1) -> Held:
    """What a rank holds of some tensors. Raises UnsupportedError where they do not divide."""
    total = Held()
    for tensor in tensors:
        total = total.plus(_held(tensor.rank_bytes(rank, size)))
    return total


def held_by_section(tensors: Iterable[FileTensor], rank: int = 0, size: int = 1) -> dict[str, Held]:
    """What a rank holds, section by section of the inventory."""
    out: dict[str, Held] = {}
    for tensor in tensors:
        own = _held(tensor.rank_bytes(rank, size))
        out[tensor.section] = out.get(tensor.section, Held()).plus(own)
    return out


def _held(size_bytes: int) -> Held:
    return Held(1, size_bytes, round_up(size_bytes, BLOCK_BYTES), allocated_bytes(size_bytes))


# --- Layers ---------------------------------------------------------------------------------------


def num_layers(spec: ModelSpec) -> int:
    """Layers that can be chosen; encoder and decoder count side by side."""
    return max(spec.num_layers, len(spec.encoder_layout))


def layer_kinds(spec: ModelSpec, stored: Sequence[StoredEntry]) -> list[int]:
    """The kind of every layer, numbered in the order of first appearance.

    Two layers are of one kind when they have the same block, stored in the same formats.
    """
    of_layer: list[list[int]] = [[] for _ in range(num_layers(spec))]
    for index, item in enumerate(stored):
        if item.entry.section in ("layers", "encoder"):
            for layer in item.entry.layers:
                of_layer[layer].append(index)
    numbers: dict[tuple[int, ...], int] = {}
    return [numbers.setdefault(tuple(entries), len(numbers)) for entries in of_layer]


def parse_layers(text: str, spec: ModelSpec) -> tuple[int, ...]:
    """`all`, or indices and ranges such as `0-3,40`. Raises InvalidInputError."""
    count = num_layers(spec)
    if text.strip().lower() == "all":
        return tuple(range(count))
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.strip().partition("-"))
        last = last if dash else first
        # More digits than this are no layer, and int() would try to convert them.
        if not all(p.isascii() and p.isdigit() and len(p) < 6 for p in (first, last)):
            raise InvalidInputError(
                f"{part.strip()[:40]!r} is no layer or range of layers",
                "write `auto`, `all`, or something like `0-3,40`",
            )
        begin, end = int(first), int(last)
        if begin > end or end >= count:
            raise InvalidInputError(
                f"there is no layer {part.strip()}", f"{spec.id} has layers 0-{count - 1}"
            )
        chosen.update(range(begin, end + 1))
    return tuple(sorted(chosen))


class LayerChoice(NamedTuple):
    """What `--layers auto` chose.

    large   as many layers as fit, one of every kind among them
    small   fewer of them, to tell fixed cost from cost by layer; None when `large` is one layer
            and nothing stands outside of it
    kinds   kind of every layer of the model; whole: `large` is the whole model
    """

    large: Selection
    small: Selection | None
    kinds: list[int]
    whole: bool


def choose_layers(
    spec: ModelSpec,
    stored: Sequence[StoredEntry],
    budget_bytes: int,
    *,
    rank: int = 0,
    size: int = 1,
    outside: bool = True,
    fixed_bytes: int = 0,
    layer_cost: Callable[[int], int] | None = None,
    disk_bytes: int | None = None,
) -> LayerChoice:
    """As many layers as fit `budget_bytes`, and fewer for a second run.

    fixed_bytes  what else has to fit beside the weights; layer_cost: beside those of a layer (KV
                 cache, state). One layer of every kind comes first, then the lowest indices.
    disk_bytes   what their files may take, which hold whole tensors; None: they are there already
    Raises EnvironmentProblem when not even those fit.
    """
    kinds = layer_kinds(spec, stored)
    first_of = {kind: kinds.index(kind) for kind in dict.fromkeys(kinds)}
    of_kind = {
        kind: list(file_tensors(spec, stored, layers=(layer,), outside=False))
        for kind, layer in first_of.items()
    }
    beside = list(file_tensors(spec, stored, layers=())) if outside else []
    weights = {k: held_by_rank(each, rank, size).allocated_bytes for k, each in of_kind.items()}
    files = {k: held_by_rank(each, 0, 1).requested_bytes for k, each in of_kind.items()}

    def cost(layer: int) -> int:
        return weights[kinds[layer]] + (layer_cost(layer) if layer_cost is not None else 0)

    used = fixed_bytes + held_by_rank(beside, rank, size).allocated_bytes
    written = held_by_rank(beside, 0, 1).requested_bytes
    required = list(first_of.values())
    used += sum(map(cost, required))
    written += sum(files.values())
    if used > budget_bytes:
        raise EnvironmentProblem(
            f"{_one_of_each(required)} and what stands outside of them take "
            f"{format_bytes(used)}, and {format_bytes(max(0, budget_bytes))} may be used",
            "choose layers yourself with --layers, or a rank of more with --tp-rank",
        )
    room = written if disk_bytes is None else disk_bytes
    if written > room:
        raise EnvironmentProblem(
            f"shards of {_one_of_each(required)} take {format_bytes(written)}, and "
            f"{format_bytes(max(0, room))} of the disk may be used",
            "name a folder on a larger disk with --keep-shards, or set TMPDIR",
        )
    chosen = set(required)
    for layer in range(len(kinds)):
        on_disk = 0 if disk_bytes is None else files[kinds[layer]]
        fits = used + cost(layer) <= budget_bytes and written + on_disk <= room
        if layer not in chosen and fits:
            chosen.add(layer)
            used += cost(layer)
            written += on_disk
    large = Selection(tuple(sorted(chosen)), outside, rank, size)
    fewer = _fewer(chosen, required, outside=outside)
    small = None if fewer is None else Selection(fewer, outside, rank, size)
    return LayerChoice(large, small, kinds, len(chosen) == len(kinds))


def _one_of_each(required: list[int]) -> str:
    return "one layer" if len(required) == 1 else f"one layer of each of {len(required)} kinds"


def _fewer(chosen: set[int], required: list[int], *, outside: bool) -> tuple[int, ...] | None:
    """One of every kind; when that is all there is, one less."""
    if len(chosen) > len(required):
        return tuple(sorted(required))
    if len(chosen) > 1 or outside:
        return tuple(sorted(chosen))[:-1]
    return None
