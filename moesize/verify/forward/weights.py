"""Finds a layer's matrices in a checkpoint's own tensors: names, joins, experts, ranks, formats.

A checkpoint may hold q, k and v in one tensor, all experts in one tensor, transposed or
interleaved, quantized or not. Callers ask for a role of the inventory and get one matrix of its
logical shape, cut for their rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moesize.core.checkpoint import published
from moesize.core.errors import InvalidInputError, UnsupportedError
from moesize.core.naming import module_name, names_of, tensor_name
from moesize.core.tensors import Shard
from moesize.core.tensors import Tensor as SpecTensor
from moesize.verify.forward.dequantize import dequantize, parts_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moesize.core.model_spec import ModelSpec
    from moesize.core.weight_formats import WeightFormat

# How joined projections lie in their tensor, by family of names; "parts": one after another.
_PER_HEAD = ("gpt_neox", "bloom", "persimmon")
_PER_GROUP = ("internlm2", "falcon_new")
# GPT-2 stores (in, out).
_TRANSPOSED = ("gpt2", "gpt_bigcode")


@dataclass(frozen=True)
class ExpertLayout:
    """How a family stacks its experts.

    transposed    (E, in, out) instead of (E, out, in)
    interleaved   rows of gate and up alternate
    flat          (E * F, H): the experts' rows one after another, down transposed
    """

    transposed: bool = False
    interleaved: bool = False
    flat: bool = False


_EXPERT_LAYOUTS = {
    "gpt_oss": ExpertLayout(transposed=True, interleaved=True),
    "llama4": ExpertLayout(transposed=True),
    "dbrx": ExpertLayout(flat=True),
}

# What the inventory lists as one tensor and the family stores in pieces.
_PIECES: dict[str, dict[str, tuple[str, ...]]] = {
    "olmo_hybrid": {
        "attention.linear.qkv": tuple(f"linear_attn.{p}_proj.weight" for p in "qkv"),
        "attention.linear.conv": tuple(f"linear_attn.{p}_conv1d.weight" for p in "qkv"),
    },
}


class Weights:
    """A checkpoint's tensors on a device, as seen by one rank of tensor parallelism."""

    def __init__(
        self,
        spec: ModelSpec,
        state: Mapping[str, Tensor],
        device: torch.device,
        dtype: torch.dtype,
        tp: tuple[int, int],
    ) -> None:
        self.spec = spec
        self.state = _as_named(spec, state)
        self.device = device
        self.dtype = dtype
        self.rank, self.size = tp
        self.family = spec.naming.partition("@")[0]
        self.formats = _formats(spec)

    def layer(self, index: int) -> LayerWeights:
        """The weights of one decoder layer."""
        return LayerWeights(self, index)

    def outside(self, role: str, section: str) -> Tensor | None:
        """A tensor that stands outside the layers, or None."""
        raw = self.state.get(tensor_name(self.spec.naming, role, section))
        return None if raw is None else self.put(raw)

    def put(self, raw: Tensor) -> Tensor:
        """On the device; real numbers in the type of the computation."""
        if raw.is_floating_point():
            return raw.to(self.device, self.dtype)
        return raw.to(self.device)

    def cut(self, tensor: Tensor, shard: Shard | None, logical: Sequence[int]) -> Tensor:
        """This rank's slice of a tensor of the logical shape; one that was cut before stays."""
        if shard is None or self.size == 1 or tensor.shape[shard.dim] != logical[shard.dim]:
            return tensor
        units = local_units(shard.units, self.size, replicate=shard.replicate)
        width = tensor.shape[shard.dim] // shard.units
        first = (
            self.rank * shard.units // self.size if shard.units < self.size else (self.rank * units)
        )
        return tensor.narrow(shard.dim, first * width, units * width)


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


def local_units(units: int, size: int, *, replicate: bool = False) -> int:
    """Units of one rank; with more ranks than units every rank repeats one, where it may."""
    if units % size == 0:
        return units // size
    if replicate and size % units == 0:
        return 1
    raise UnsupportedError(f"{units} heads or rows do not divide into {size} ranks")


class LayerWeights:
    """One layer's matrices by role."""

    def __init__(self, weights: Weights, index: int) -> None:
        self.all = weights
        self.index = index
        self.block = weights.spec.layout[index]
        self.tensors = {t.role: t for t in weights.spec.block_tensors[self.block]}

    def has(self, role: str) -> bool:
        """Whether the layer has such a tensor."""
        return role in self.tensors

    def get(self, role: str) -> Tensor:
        """The rank's slice of a tensor of the inventory, in its logical shape."""
        wanted = self.tensors[role]
        raw = self._split(role, self.stored(role))
        if len(wanted.shape) == 1:
            raw = raw.flatten()  # some files keep dimensions of one: A_log of Kimi
        return self.all.cut(raw, wanted.shard, wanted.shape)

    def maybe(self, role: str) -> Tensor | None:
        """`get`, or None when the layer has no such tensor."""
        return self.get(role) if self.has(role) else None

    def stored(self, role: str) -> Tensor:
        """The whole tensor of the files that holds a role, unpacked and on the device."""
        naming = self.all.spec.naming
        name = self._fill(tensor_name(naming, role))
        module = self._fill(module_name(naming, role))
        raw = self._unpacked(role, name, module)
        if self.all.family in _TRANSPOSED and raw.dim() == 2 and self.tensors[role].matmul:
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
        return self.all.put(dequantize(parts, weight_format, self.all.device))

    def sections(self, role: str, parts: Sequence[tuple[int, int, bool]]) -> list[Tensor]:
        """A joined tensor in parts of (rows, units, replicate), each cut for the rank.

        For tensors whose parts split apart from each other: q, k and v of a convolution.
        """
        raw = self._whole(role)
        rows = [part[0] for part in parts]
        if raw.shape[0] != sum(rows):
            # Cut before: what is there is the rank's own.
            size = self.all.size
            rows = [
                part[0] // part[1] * local_units(part[1], size, replicate=part[2]) for part in parts
            ]
            return list(raw.split(rows))
        return [
            self.all.cut(piece, Shard(0, units, replicate), piece.shape)
            for piece, (_, units, replicate) in zip(raw.split(rows), parts, strict=True)
        ]

    def _whole(self, role: str) -> Tensor:
        """A tensor that most families join and one may store in pieces."""
        pieces = _PIECES.get(self.all.family, {}).get(role)
        if pieces is None:
            return self.stored(role)
        return torch.cat([self.named(piece) for piece in pieces])

    # --- Joined projections ---------------------------------------------------------------------

    def _members(self, role: str) -> list[SpecTensor]:
        naming = self.all.spec.naming
        name = tensor_name(naming, role)
        return [t for t in self.tensors.values() if tensor_name(naming, t.role) == name]

    def _split(self, role: str, raw: Tensor) -> Tensor:
        members = self._members(role)
        if len(members) == 1 or raw.shape[0] == self.tensors[role].shape[0]:
            return raw
        family = self.all.family
        if role.startswith("attention.") and family in (*_PER_HEAD, *_PER_GROUP):
            return self._from_heads(role, raw, members)
        # A file of one rank holds as many rows of each part less.
        total = sum(t.shape[0] for t in members)
        first = 0
        for member in members:
            rows = member.shape[0] * raw.shape[0] // total
            if member.role == role:
                return raw[first : first + rows]
            first += rows
        raise AssertionError(role)

    def _from_heads(self, role: str, raw: Tensor, members: Sequence[SpecTensor]) -> Tensor:
        """q, k or v out of rows that stand group by group: queries, one key, one value."""
        query, key = members[0], members[1]
        assert key.shard is not None
        groups = key.shard.units
        size = key.shape[0] // groups
        per_group = query.shape[0] // key.shape[0]
        rows = raw.unflatten(0, (groups, per_group + 2, size))
        part = role.removesuffix(".bias").rpartition(".")[2]
        chosen = {
            "q": rows[:, :per_group],
            "k": rows[:, per_group : per_group + 1],
            "v": rows[:, per_group + 1 :],
        }[part]
        return chosen.reshape(-1, *raw.shape[1:])

    # --- Experts --------------------------------------------------------------------------------

    def expert(self, part: str, index: int) -> Tensor:
        """Matrix (out, in) of one routed expert: part `gate`, `up` or `down`, or its bias (out)."""
        role = f"routed_experts.{part}"
        naming = self.all.spec.naming
        module = self._fill(module_name(naming, role))
        wanted = self.tensors[role]
        if "{expert}" in module:
            module = module.replace("{expert}", str(index))
            name = self._fill(tensor_name(naming, role)).replace("{expert}", str(index))
            raw = self._unpacked(role, name, module)
        else:
            raw = self._stacked_expert(role, part, index, module)
        return self.all.cut(raw, wanted.shard, wanted.shape)

    def experts(self, part: str) -> Tensor:
        """(E, out, in) of all routed experts, or (E, out) of their biases."""
        copies = self.tensors[f"routed_experts.{part}"].copies
        return torch.stack([self.expert(part, i) for i in range(copies)])

    def _stacked_expert(self, role: str, part: str, index: int, module: str) -> Tensor:
        wanted = self.tensors[role]
        layout = _EXPERT_LAYOUTS.get(self.all.family, ExpertLayout())
        weight_format = self.all.formats.get((role, self.index))
        if part.endswith(".bias"):
            raw = self.all.put(self._first_of(module + ".bias", module + "_bias")[index])
        elif weight_format is not None:
            parts = {key: value[index] for key, value in parts_of(self.all.state, module).items()}
            raw = self.all.put(dequantize(parts, weight_format, self.all.device))
        else:
            whole = self._first_of(module, module + ".weight")
            if layout.flat:
                rows = whole.shape[0] // wanted.copies
                raw = self.all.put(whole[index * rows : (index + 1) * rows])
                return raw.T if part == "down" else raw
            raw = self.all.put(whole[index])
            if layout.transposed:
                raw = raw.T
        if part.startswith("down") or raw.shape[0] == wanted.shape[0]:
            return raw
        side = 0 if part.startswith("gate") else 1
        return raw[side::2] if layout.interleaved else raw.chunk(2, dim=0)[side]

    def _first_of(self, *names: str) -> Tensor:
        for name in names:
            if name in self.all.state:
                return self.all.state[name]
        return self._find(names[0])


def _formats(spec: ModelSpec) -> dict[tuple[str, int], WeightFormat]:
    """How each quantized matrix is stored, by role and layer."""
    if spec.quantization is None:
        return {}
    return {
        (item.entry.tensor.role, layer): item.weight_format
        for item in published(spec)
        if item.is_quantized and item.weight_format is not None and item.entry.section == "layers"
        for layer in item.entry.layers
    }
