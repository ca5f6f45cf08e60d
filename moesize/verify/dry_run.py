"""The forward pass on shapes alone: what it will allocate, before anything is allocated.

Tensors live on torch's `meta` device and have no memory. The code that will run on the device runs
on them, and every storage that it would make and release is counted: peaks follow from shapes,
for every kind of layer, format and rank. Three things depend on numbers and are given instead: how
many experts are visited, how many tokens each of them gets, and small integers of the files.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves

from moesize.core.inventory import moe_of
from moesize.core.units import ceil_div
from moesize.verify.live_bytes import LiveBytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from moesize.core.model_spec import ModelSpec

_ATEN = torch.ops.aten


class Routing(NamedTuple):
    """What the routers of one pass chose: for each MoE layer, tokens of every visited expert."""

    loads: tuple[tuple[int, ...], ...]

    @property
    def busiest(self) -> int:
        """Most tokens that one expert got."""
        return max((max(loads, default=0) for loads in self.loads), default=0)


def even_routing(spec: ModelSpec, layers: Sequence[int], tokens: int) -> Routing:
    """Choices spread evenly: ceil(tokens * A / E) tokens for each expert."""
    loads = []
    for layer in layers:
        moe = moe_of(spec.block(spec.layout[layer]))
        if moe is not None:
            choices = tokens * min(moe.experts_per_token, moe.num_experts)
            visited = min(moe.num_experts, choices)
            loads.append((ceil_div(choices, visited),) * visited)
    return Routing(tuple(loads))


def decisive(loads: Sequence[int]) -> tuple[int, ...]:
    """The experts that a peak can come from: fewer visits, the same peak.

    What is live while an expert runs grows with its own tokens and, through what the loop still
    holds, with those of the expert before it. Only visits that no other exceeds in both count; each
    is kept behind its predecessor, and a visit of one token keeps them apart.
    """
    pairs = sorted(set(pairwise((0, *loads))), key=lambda pair: (-pair[1], -pair[0]))
    kept, most_before = [], -1
    for before, tokens in pairs:
        if before > most_before:
            most_before = before
            kept += [1, before, tokens] if before else [tokens]
    return tuple(kept) if len(kept) < len(loads) else tuple(loads)


class RoutingRecorder(LiveBytes):  # type: ignore[no-untyped-call]
    """Writes down what routers choose while a pass runs; the looped path asks op by op."""

    def __init__(self) -> None:
        super().__init__("none")
        self._loads: list[list[int]] = []

    @property
    def routing(self) -> Routing:
        """What was chosen so far."""
        return Routing(tuple(map(tuple, self._loads)))

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        if func in _UNIQUE:
            self._loads.append([])
        elif func is _ATEN.nonzero.default and self._loads:
            self._loads[-1].append(out.shape[0])
        return out


_UNIQUE = (_ATEN._unique2.default, _ATEN.unique_dim.default, _ATEN._unique.default)


# Bytes of blocks that an operation holds while it runs, beside its results.
Scratch = Callable[[Any, tuple[Any, ...]], tuple[int, ...]]


class DryRun(LiveBytes):  # type: ignore[no-untyped-call]
    """Counts what a pass over meta tensors would allocate, as `LiveBytes` counts it on the CPU.

    scratch  what the device's kernels take beside results
    """

    def __init__(
        self, listener: Callable[[int, int], None] | None = None, scratch: Scratch | None = None
    ) -> None:
        super().__init__("meta", listener)
        self._scratch = scratch
        self._loads: Iterator[tuple[int, ...]] = iter(())
        self._rows: Iterator[int] = iter(())
        self._known: dict[int, list[int]] = {}

    def route(self, routing: Routing) -> None:
        """The next pass chooses like this."""
        self._loads = iter(routing.loads)

    def know(self, tensor: torch.Tensor, values: Sequence[int]) -> None:
        """The numbers of a small tensor, for code that reads them."""
        self._known[tensor.untyped_storage()._cdata] = list(values)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if self._scratch is not None:
            # No storage has a key below zero.
            blocks = [(size, -1 - at) for at, size in enumerate(self._scratch(func, args)) if size]
            for size, key in blocks:
                self._count(size, key)
            for size, key in blocks:
                self._count(-size, key)
        return out

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for leaf in tree_leaves(args):
            # `torch.tensor(...)` makes one without an operation that could be watched.
            if isinstance(leaf, torch.Tensor):
                self.see(leaf)
        on_meta = bool(args) and isinstance(args[0], torch.Tensor) and args[0].is_meta
        if on_meta and func in _UNIQUE:
            loads = decisive(next(self._loads, ()))
            self._rows = iter(loads)
            found = torch.arange(len(loads))
            return found, args[0].new_empty(0), args[0].new_empty(0)
        if on_meta and func is _ATEN.nonzero.default:
            return args[0].new_empty((next(self._rows, 0), args[0].dim()), dtype=torch.int64)
        if on_meta and func is _ATEN._local_scalar_dense.default:
            known = self._known.get(args[0].untyped_storage()._cdata)
            return known[args[0].storage_offset()] if known else 1
        if on_meta and func is _ATEN._to_copy.default:
            return self._copied(func, args, kwargs)
        return func(*args, **kwargs)

    def _copied(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        known = self._known.get(args[0].untyped_storage()._cdata)
        device = kwargs.get("device")
        if known is not None and device is not None and torch.device(device).type == "cpu":
            return torch.tensor(known, dtype=args[0].dtype)
        if device is not None and torch.device(device).type != "meta":
            raise NotImplementedError("numbers of a tensor without numbers are asked for")
        return func(*args, **kwargs)
