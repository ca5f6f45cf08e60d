"""Finds a layer's matrices in a checkpoint's own tensors: names, joins, experts, ranks, formats.

A checkpoint may hold q, k and v in one tensor, all experts in one tensor, transposed or
interleaved, quantized or not; it may be whole, or what `loading` read of it for one rank. Callers
ask for a role of the inventory and get their rank's part of one matrix, out by in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moesize.core.checkpoint import published
from moesize.core.errors import InvalidInputError, UnsupportedError
from moesize.core.naming import module_name, names_of, tensor_name
from moesize.core.tensors import Shard
from moesize.core.tensors import Tensor as SpecTensor
from moesize.verify.file_tensors import is_cut, least_cut
from moesize.verify.forward.dequantize import dequantize, parts_of
from moesize.verify.layouts import (
    TRANSPOSED,
    Section,
    Woven,
    expert_layout,
    local_units,
    sections_of,
    stored_apart,
    woven,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from moesize.core.checkpoint import StoredEntry
    from moesize.core.model_spec import ModelSpec
    from moesize.core.weight_formats import WeightFormat


# Parts of a quantized matrix that stacked experts have once.
_FOR_ALL = ("quant_state", "reciprocal")


class Weights:
    """A checkpoint's tensors on a device, as seen by one rank of tensor parallelism.

    cut  the state holds the rank's slices as `file_tensors` cuts them; else whole tensors
    """

    def __init__(
        self,
        spec: ModelSpec,
        state: Mapping[str, Tensor],
        device: torch.device,
        dtype: torch.dtype,
        tp: tuple[int, int],
        *,
        cut: bool,
    ) -> None:
        self.spec = spec
        self.state = _as_named(spec, state)
        self.device = device
        self.dtype = dtype
        self.rank, self.size = tp
        self.holds_slices = cut and self.size > 1
        self.family = spec.naming.partition("@")[0]
        self.formats = {} if spec.quantization is None else formats_of(published(spec))

    def layer(self, index: int) -> LayerWeights:
        """The weights of one decoder layer."""
        return LayerWeights(self, index)

    def outside(self, role: str, section: str) -> Tensor | None:
        """A tensor that stands outside the layers, or None."""
        weight_format = self.formats.get((role, None))
        if weight_format is not None:
            module = module_name(self.spec.naming, role, section)
            parts = parts_of(self.state, module)
            return self.put(dequantize(parts, weight_format, self.device))
        raw = self.state.get(tensor_name(self.spec.naming, role, section))
        return None if raw is None else self.put(raw)

    def outside_all(self, role: str, section: str) -> list[Tensor]:
        """Equal tensors that stand outside the layers, numbered from 0 on."""
        name = tensor_name(self.spec.naming, role, section)
        found: list[Tensor] = []
        while (own := name.replace("{index}", str(len(found)))) in self.state and own != name:
            found.append(self.put(self.state[own]))
        return found

    def put(self, raw: Tensor) -> Tensor:
        """On the device; real numbers in the type of the computation."""
        if raw.is_floating_point():
            return raw.to(self.device, self.dtype)
        return raw.to(self.device)

    def own(self, tensor: Tensor, shard: Shard | None) -> Tensor:
        """This rank's slice of a tensor of the state."""
        return tensor if self.holds_slices else self.cut(tensor, shard)

    def cut(self, tensor: Tensor, shard: Shard | None) -> Tensor:
        """This rank's slice of a whole tensor."""
        if shard is None or self.size == 1:
            return tensor
        units = local_units(shard.units, self.size, replicate=shard.replicate)
        width = tensor.shape[shard.dim] // shard.units
        first = (
            self.rank * shard.units // self.size if shard.units < self.size else self.rank * units
        )
        return tensor.narrow(shard.dim, first * width, units * width)

    def rows(self, table: Tensor, rows: int) -> Tensor:
        """This rank's part of a vocabulary of `rows`."""
        if rows % self.size:
            # Engines pad it.
            raise UnsupportedError(f"a vocabulary of {rows} does not divide into {self.size} ranks")
        return self.own(table, Shard(0, rows))

    def look_up(self, table: Tensor, tokens: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        """Rows of a vocabulary that ranks share: each finds its own, and their sum is all."""
        if self.size == 1:
            return table[tokens]
        local = tokens - self.rank * table.shape[0]
        inside = (local >= 0) & (local < table.shape[0])
        return reduce(table[local.clamp(0, table.shape[0] - 1)] * inside[..., None])

    def gather(self, x: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        """The parts of all ranks side by side in the last dimension, out of this rank's."""
        if self.size == 1:
            return x
        width = x.shape[-1]
        wide = x.new_zeros(*x.shape[:-1], width * self.size)
        wide[..., self.rank * width : (self.rank + 1) * width] = x
        return reduce(wide)


# What wraps a language model in some files and not in others.
_WRAPPERS = ("model.language_model.", "language_model.model.", "model.", "")


def _as_named(spec: ModelSpec, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors under the names that `naming` gives, whatever wrapper the files put before."""
    tokens = tensor_name(spec.naming, "embedding.tokens", "embedding")
    if tokens in state:
        return state
    ours = next(wrapper for wrapper in _WRAPPERS if tokens.startswith(wrapper))
    for theirs in _WRAPPERS:
        if theirs + tokens.removeprefix(ours) in state:
            return {
                ours + name.removeprefix(theirs) if name.startswith(theirs) else name: tensor
                for name, tensor in state.items()
            }
    return state


class LayerWeights:
    """One layer's matrices by role."""

    def __init__(self, weights: Weights, index: int) -> None:
        self.all = weights
        self.index = index
        self.block = weights.spec.layout[index]
        self.mixers = weights.spec.block(self.block).mixers
        self.tensors = {t.role: t for t in weights.spec.block_tensors[self.block]}

    def has(self, role: str) -> bool:
        """Whether the layer has such a tensor."""
        return role in self.tensors

    def get(self, role: str) -> Tensor:
        """The rank's slice of a tensor of the inventory."""
        wanted = self.tensors[role]
        raw = self._split(role, self.stored(role))
        if len(wanted.shape) == 1:
            raw = raw.flatten()  # some files keep dimensions of one: A_log of Kimi
        return self._own(role, raw)

    def _own(self, role: str, raw: Tensor) -> Tensor:
        return raw if self._is_slice(role) else self.all.cut(raw, self.tensors[role].shard)

    def _is_slice(self, role: str) -> bool:
        """Whether the state holds the rank's slice: of some formats even it holds all."""
        return self.all.holds_slices and is_cut(self.all.formats.get((role, self.index)))

    def _rows(self, tensor: SpecTensor) -> int:
        """Rows that the state holds of a tensor of the inventory."""
        shard = tensor.shard
        if shard is None or shard.dim != 0 or not self._is_slice(tensor.role):
            return tensor.shape[0]
        section = Section(tensor.shape[0], shard.units, shard.replicate)
        return section.rows_of_rank(self.all.size)

    def maybe(self, role: str) -> Tensor | None:
        """`get`, or None when the layer has no such tensor."""
        return self.get(role) if self.has(role) else None

    def stored(self, role: str) -> Tensor:
        """The tensor of the state that holds a role, unpacked and on the device."""
        naming = self.all.spec.naming
        name = self._fill(tensor_name(naming, role))
        module = self._fill(module_name(naming, role))
        raw = self._unpacked(role, name, module)
        plain = self.all.formats.get((role, self.index)) is None
        if self.all.family in TRANSPOSED and plain and raw.dim() == 2 and self.tensors[role].matmul:
            return raw.T
        return raw

    def named(self, suffix: str) -> Tensor:
        """A tensor of the layer by its own name: norms, which a role does not tell apart."""
        name = self._fill(names_of(self.all.spec.naming).layers) + suffix
        return self.all.put(self._find(name))

    def has_named(self, suffix: str) -> bool:
        """Whether the files hold it."""
        return self._fill(names_of(self.all.spec.naming).layers) + suffix in self.all.state

    def _find(self, name: str) -> Tensor:
        if name not in self.all.state:
            raise InvalidInputError(f"the checkpoint has no tensor {name!r}")
        return self.all.state[name]

    def _fill(self, template: str) -> str:
        return template.replace("{layer}", str(self.index))

    def _unpacked(self, role: str, name: str, module: str) -> Tensor:
        weight_format = self.all.formats.get((role, self.index))
        if weight_format is None:
            return self.all.put(self._find(name))
        parts = parts_of(self.all.state, module)
        return self._dequantized(role, parts, weight_format)

    def _dequantized(
        self, role: str, parts: dict[str, Tensor], weight_format: WeightFormat
    ) -> Tensor:
        if self._is_slice(role):
            self._check_slice(role, weight_format)
            if "g_idx" in parts:
                parts["g_idx"] = parts["g_idx"] - self._first_group(role, weight_format)
        return self.all.put(dequantize(parts, weight_format, self.all.device))

    def _check_slice(self, role: str, weight_format: WeightFormat) -> None:
        """Refuses parts of words, tiles and groups, whose other part another rank holds."""
        sections = sections_of(self.all.family, self.mixers, role)
        for tensor in self._members(role):
            shard = tensor.shard
            if shard is None:
                continue
            whole = tensor.shape[min(shard.dim, 1)]
            own = [Section(whole, shard.units, shard.replicate)]
            least = least_cut(weight_format, tensor)
            for section in sections or own:
                if section.rows_of_rank(self.all.size) % least:
                    raise UnsupportedError(
                        f"{tensor.role}: ranks of {self.all.size} would share a group of {least} "
                        "quantized weights",
                        "engines fill such parts up with zeros, which is not measured here; choose "
                        "a smaller tensor parallel size",
                    )

    def _first_group(self, role: str, weight_format: WeightFormat) -> int:
        """Number of the group in which the rank's inputs begin: the files count from the first."""
        shard = self.tensors[role].shard
        size = getattr(weight_format, "group_size", -1)
        if shard is None or shard.dim == 0 or size == -1:
            return 0
        if getattr(weight_format, "act_order", False):
            raise UnsupportedError(
                f"{role}: inputs of a rank belong to groups of all ranks with act_order"
            )
        inputs = self.tensors[role].shape[1]
        return self.all.rank * (inputs // self.all.size) // size

    def sections(self, role: str) -> list[Tensor]:
        """A joined tensor in the parts that ranks cut each by itself, each the rank's own."""
        raw = self._whole(role)
        parts = sections_of(self.all.family, self.mixers, role)
        if self._is_slice(role):
            return list(raw.split([part.rows_of_rank(self.all.size) for part in parts]))
        return [
            self.all.cut(piece, Shard(0, part.units, part.replicate))
            for piece, part in zip(raw.split([part.rows for part in parts]), parts, strict=True)
        ]

    def _whole(self, role: str) -> Tensor:
        """A tensor that most families join and one may store apart."""
        apart = stored_apart(self.all.family, role)
        if not apart:
            return self.stored(role)
        prefix = self._fill(names_of(self.all.spec.naming).layers)
        return torch.cat(
            [self._unpacked(role, f"{prefix}{one}.weight", prefix + one) for one in apart]
        )

    # --- Joined projections ---------------------------------------------------------------------

    def _members(self, role: str) -> list[SpecTensor]:
        naming = self.all.spec.naming
        name = tensor_name(naming, role)
        return [t for t in self.tensors.values() if tensor_name(naming, t.role) == name]

    def _split(self, role: str, raw: Tensor) -> Tensor:
        members = self._members(role)
        if len(members) == 1:
            return raw
        key = members[1].shard
        found = None if key is None else woven(self.all.family, role, key.units)
        if found is not None:
            return self._from_groups(role, raw, members, found)
        rows = [self._rows(member) for member in members]
        return raw.split(rows)[[member.role for member in members].index(role)]

    def _from_groups(
        self, role: str, raw: Tensor, members: Sequence[SpecTensor], layout: Woven
    ) -> Tensor:
        """q, k or v out of rows that stand group by group."""
        rows = {
            part: member.shape[0] // layout.groups
            for part, member in zip("qkv", members, strict=True)
        }
        parts = raw.unflatten(0, (-1, sum(rows.values()))).split(
            [rows[part] for part in layout.order], dim=1
        )
        wanted = role.removesuffix(".bias").rpartition(".")[2]
        return parts[layout.order.index(wanted)].reshape(-1, *raw.shape[1:])

    # --- Experts --------------------------------------------------------------------------------

    def expert(self, part: str, index: int) -> Tensor:
        """Matrix (out, in) of one routed expert: part `gate`, `up` or `down`, or its bias (out)."""
        role = f"routed_experts.{part}"
        naming = self.all.spec.naming
        module = self._fill(module_name(naming, role))
        if "{expert}" in module:
            module = module.replace("{expert}", str(index))
            name = self._fill(tensor_name(naming, role)).replace("{expert}", str(index))
            raw = self._unpacked(role, name, module)
        else:
            raw = self._stacked_expert(role, part, index, module)
        return self._own(role, raw)

    def experts(self, part: str) -> Tensor:
        """(E, out, in) of all routed experts, or (E, out) of their biases."""
        copies = self.tensors[f"routed_experts.{part}"].copies
        return torch.stack([self.expert(part, i) for i in range(copies)])

    def _stacked_expert(self, role: str, part: str, index: int, module: str) -> Tensor:
        wanted = self.tensors[role]
        layout = expert_layout(self.all.family)
        weight_format = self.all.formats.get((role, self.index))
        if part.endswith(".bias"):
            raw = self.all.put(self._first_of(module + ".bias", module + "_bias")[index])
        elif weight_format is not None:
            found = parts_of(self.all.state, module)
            parts = {
                key: value if key in _FOR_ALL else value[index] for key, value in found.items()
            }
            raw = self._dequantized(role, parts, weight_format)
        else:
            whole = self._first_of(module, module + ".weight")
            if layout.flat:
                rows = whole.shape[0] // wanted.copies
                raw = self.all.put(whole[index * rows : (index + 1) * rows])
                return raw.T if part == "down" else raw
            raw = self.all.put(whole[index])
            if layout.transposed:
                raw = raw.T
        if len(self._members(role)) == 1:
            return raw
        side = 0 if part.startswith("gate") else 1
        return raw[side::2] if layout.interleaved else raw.chunk(2, dim=0)[side]

    def _first_of(self, *names: str) -> Tensor:
        for name in names:
            if name in self.all.state:
                return self.all.state[name]
        return self._find(names[0])


def formats_of(stored: Iterable[StoredEntry]) -> dict[tuple[str, int | None], WeightFormat]:
    """How each quantized matrix is stored, by role and layer; None outside of layers."""
    return {
        (item.entry.tensor.role, layer): item.weight_format
        for item in stored
        if item.is_quantized
        and item.weight_format is not None
        and item.entry.section in ("layers", "final")
        for layer in (item.entry.layers or (None,))
    }
