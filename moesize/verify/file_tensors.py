"""The tensors of a checkpoint's files, one by one: name, dtype, shape, and how ranks cut them.

The inventory counts equal tensors together; files hold each under its own name, several
projections joined into one, all experts stacked into one, a quantized matrix as several. What
stands here is checked against the inventory: the bytes of all file tensors are the bytes that
`checkpoint.published` counts.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import ceil, floor, lcm, prod
from typing import TYPE_CHECKING, NamedTuple

from moesize.core.checkpoint import StoredEntry, matrix_shape
from moesize.core.errors import UnsupportedError
from moesize.core.naming import module_name, names_of, tensor_name
from moesize.core.tensors import Shard, Tensor
from moesize.core.units import ceil_div
from moesize.core.weight_formats import (
    BitsAndBytes4Bit,
    BitsAndBytesInt8,
    Fp8Block,
    GroupInt,
    Mxfp4,
    Mxfp8,
    Nvfp4,
    PackQuantized,
    WeightFormat,
    number_bytes,
)
from moesize.verify.layouts import (
    BLOCK_NORMS,
    TRANSPOSED,
    Section,
    expert_layout,
    sections_of,
    stored_apart,
    woven,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from moesize.core.model_spec import ModelSpec


class Piece(NamedTuple):
    """A run of indices of one dimension that belongs to one tensor of the inventory.

    length   stored indices; `logical` elements that they hold
    units    indivisible pieces that ranks share out; 0 = every rank holds all
    per      elements of an index, of which the last may hold fewer; 0 = all hold the same
    """

    length: int
    logical: int
    units: int = 0
    replicate: bool = False
    per: Fraction = Fraction(0)

    def cut(self, rank: int, size: int) -> tuple[int, int]:
        """(first, end) of a rank's stored indices. Raises UnsupportedError."""
        if size == 1 or not self.units:
            return 0, self.length
        if self.units % size == 0:
            share = self.units // size
            first, end = rank * share, (rank + 1) * share
        elif self.replicate and size % self.units == 0:
            first = rank * self.units // size
            end = first + 1
        else:
            raise UnsupportedError(f"{self.units} pieces do not divide into {size} ranks")
        width = self.logical // self.units
        per = self.per or Fraction(self.logical, self.length)
        return floor(first * width / per), min(self.length, ceil(end * width / per))


class FileTensor(NamedTuple):
    """One tensor of a checkpoint's files.

    dtype    a number format of `weight_formats`
    section  of the inventory; layer: index of the layer, None outside of layers
    roles    of the inventory tensors that it holds
    dim      dimension that tensor parallelism cuts, None: every rank holds all
    pieces   what lies along `dim`, in order
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    section: str
    layer: int | None
    roles: tuple[str, ...]
    dim: int | None = None
    pieces: tuple[Piece, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return number_bytes(self.dtype, prod(self.shape))

    def ranges(self, rank: int, size: int) -> list[tuple[int, int]] | None:
        """Runs of indices along `dim` that a rank holds; None: all of the tensor."""
        if self.dim is None or size == 1 or not any(piece.units for piece in self.pieces):
            return None
        out = []
        start = 0
        for piece in self.pieces:
            try:
                first, end = piece.cut(rank, size)
            except UnsupportedError as problem:
                raise UnsupportedError(f"{self.name}: {problem.message}", problem.hint) from None
            out.append((start + first, start + end))
            start += piece.length
        return out

    def rank_shape(self, rank: int, size: int) -> tuple[int, ...]:
        """The shape that a rank holds."""
        ranges = self.ranges(rank, size)
        if ranges is None or self.dim is None:
            return self.shape
        held = sum(end - first for first, end in ranges)
        return (*self.shape[: self.dim], held, *self.shape[self.dim + 1 :])

    def rank_bytes(self, rank: int, size: int) -> int:
        """Bytes that a rank holds."""
        return number_bytes(self.dtype, prod(self.rank_shape(rank, size)))


def file_tensors(
    spec: ModelSpec,
    stored: Iterable[StoredEntry],
    *,
    layers: Iterable[int] | None = None,
    outside: bool = True,
    towers: bool = False,
) -> Iterator[FileTensor]:
    """The file tensors of the chosen layers (None = all), and of what stands outside the layers.

    MTP blocks and tensors that only the files hold are left out, as engines leave them out.
    Raises UnsupportedError for a layout that is not known.
    """
    wanted = None if layers is None else frozenset(layers)
    groups: dict[tuple[str, int | None], list[_Member]] = {}
    for item in stored:
        section = item.entry.section
        if section in ("mtp", "stored") or (section == "tower" and not towers):
            continue
        if section in ("layers", "encoder"):
            for layer in item.entry.layers:
                if wanted is None or layer in wanted:
                    for member in _members(spec, item, layer):
                        groups.setdefault((member.name, layer), []).append(member)
        elif outside:
            for member in _members(spec, item, None):
                groups.setdefault((member.name, None), []).append(member)
    for (name, place), members in groups.items():
        yield _joined(spec.naming.partition("@")[0], name, place, members)


class _Member(NamedTuple):
    """A tensor of the inventory (or a part of its quantized form) inside a file tensor.

    along     dimension in which members of one name follow each other
    dim       dimension that ranks cut, with the piece
    repeat    how often the piece lies there
    sections  of the whole tensor, where ranks cut each by itself
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    section: str
    role: str
    along: int
    dim: int | None
    piece: Piece | None
    once: bool = False
    repeat: int = 1
    sections: tuple[Section, ...] = ()


def _members(spec: ModelSpec, item: StoredEntry, layer: int | None) -> Iterator[_Member]:
    tensor, section = item.entry.tensor, item.entry.section
    if section == "tower":
        for index in range(tensor.copies):
            name = item.entry.name.replace("{layer}", str(index))
            yield _plain(name, item, tensor.shape, section)
        return
    if tensor.role in ("norms.hidden", "norms.hidden.bias") and section != "final":
        yield from _norms(spec, item, layer)
        return
    name = _fill(tensor_name(spec.naming, tensor.role, section), layer)
    module = _fill(module_name(spec.naming, tensor.role, section), layer)
    stacked = tensor.expert and tensor.copies > 1 and "{expert}" not in name
    if stacked:
        yield from _stacked(spec, item, name, module)
        return
    family = spec.naming.partition("@")[0]
    mixers = spec.block(item.entry.block).mixers if layer is not None else ()
    sections = sections_of(family, mixers, tensor.role)
    apart = stored_apart(family, tensor.role)
    if apart and layer is not None:
        prefix = _fill(names_of(spec.naming).layers, layer)
        yield from _apart(spec, item, [prefix + one for one in apart], sections)
        return
    for index in range(tensor.copies):
        own = name.replace("{expert}", str(index))
        inside = module.replace("{expert}", str(index))
        if "{index}" in own:
            own, inside = (text.replace("{index}", str(index)) for text in (own, inside))
        elif tensor.copies > 1 and "{expert}" not in name:
            own, inside = f"{own}.{index}", f"{inside}.{index}"
        if not item.is_quantized:
            shape = tensor.shape
            if family in TRANSPOSED and len(shape) == 2 and tensor.matmul and layer is not None:
                yield _transposed(own, item, section)
            else:
                yield _plain(own, item, shape, section)._replace(sections=sections)
        else:
            assert item.weight_format is not None
            for part in _quantized(spec, item, inside, item.weight_format):
                yield part._replace(sections=sections)


def _apart(
    spec: ModelSpec, item: StoredEntry, modules: Sequence[str], sections: Sequence[Section]
) -> Iterator[_Member]:
    """A tensor of the inventory whose sections the files hold apart."""
    tensor = item.entry.tensor
    for module, section in zip(modules, sections, strict=True):
        shape = (section.rows, *tensor.shape[1:])
        shard = Shard(0, section.units, section.replicate)
        entry = replace(item.entry, tensor=replace(tensor, shape=shape, shard=shard))
        own = replace(item, entry=entry)
        if item.is_quantized:
            assert item.weight_format is not None
            yield from _quantized(spec, own, module, item.weight_format)
        else:
            yield _plain(module + ".weight", own, shape, item.entry.section)


def _fill(template: str, layer: int | None) -> str:
    return template if layer is None else template.replace("{layer}", str(layer))


def _norms(spec: ModelSpec, item: StoredEntry, layer: int | None) -> Iterator[_Member]:
    """The norms over the hidden size, which one role counts together."""
    tensor, section = item.entry.tensor, item.entry.section
    names = names_of(spec.naming)
    known = names.norms
    prefix = names.layers
    if section == "encoder":
        known, prefix = names.encoder_norms or names.norms, names.encoder_layers
    block = spec.block(item.entry.block)
    known = BLOCK_NORMS.get(spec.naming.partition("@")[0], {}).get(block.name, known)
    if tensor.copies < len(known) and not block.mixers:
        known = known[-tensor.copies :]
    suffix = ".bias" if tensor.role.endswith(".bias") else ".weight"
    for index in range(tensor.copies):
        module = known[index] if index < len(known) else f"norm_{index}"
        yield _plain(_fill(prefix, layer) + module + suffix, item, tensor.shape, section)


def _plain(name: str, item: StoredEntry, shape: tuple[int, ...], section: str) -> _Member:
    tensor = item.entry.tensor
    dim, piece = _piece(tensor.shard, shape)
    return _Member(name, item.dtype, shape, section, tensor.role, 0, dim, piece)


def _transposed(name: str, item: StoredEntry, section: str) -> _Member:
    """(in, out) where others hold (out, in)."""
    tensor = item.entry.tensor
    shape = (tensor.shape[1], tensor.shape[0])
    shard = tensor.shard
    if shard is not None:
        shard = Shard(1 - shard.dim, shard.units, shard.replicate)
    dim, piece = _piece(shard, shape)
    return _Member(name, item.dtype, shape, section, tensor.role, 1, dim, piece)


def _piece(shard: Shard | None, shape: tuple[int, ...]) -> tuple[int | None, Piece | None]:
    """The cut of a tensor that is stored as it is."""
    if shard is None or shard.dim >= len(shape):
        return None, None
    length = shape[shard.dim]
    return shard.dim, Piece(length, length, shard.units, shard.replicate)


def _stacked(spec: ModelSpec, item: StoredEntry, name: str, module: str) -> Iterator[_Member]:
    """All experts of a layer in one tensor, gate and up joined where they have one name."""
    tensor, section = item.entry.tensor, item.entry.section
    layout = expert_layout(spec.naming.partition("@")[0])
    experts = tensor.copies
    if item.is_quantized:
        assert item.weight_format is not None
        for part in _quantized(spec, item, module, item.weight_format):
            shift = None if part.dim is None else part.dim + 1
            yield part._replace(shape=(experts, *part.shape), along=part.along + 1, dim=shift)
        return
    if len(tensor.shape) == 1:
        dim, piece = _piece(tensor.shard, tensor.shape)
        if tensor.role.removesuffix(".bias") in names_of(spec.naming).bare:
            # A bare parameter has no module whose `.bias` it could be: `gate_up_proj_bias`.
            name = name.removesuffix(".bias") + "_bias"
        yield _Member(
            name, item.dtype, (experts, *tensor.shape), section, tensor.role, 1,
            None if dim is None else dim + 1, piece,
        )  # fmt: skip
        return
    out_features, in_features = matrix_shape(tensor)
    shard = tensor.shard
    if layout.flat:
        down = tensor.role.endswith(".down")
        rows, columns = (in_features, out_features) if down else (out_features, in_features)
        own = None
        if shard is not None:
            # Its width is the expert's rows, of `down` too.
            own = Piece(rows, rows, shard.units, shard.replicate)
        yield _Member(
            name, item.dtype, (experts * rows, columns), section, tensor.role, 0,
            None if own is None else 0, own, repeat=experts,
        )  # fmt: skip
        return
    shape = (out_features, in_features)
    if layout.transposed:
        shape = (in_features, out_features)
        shard = None if shard is None else Shard(1 - shard.dim, shard.units, shard.replicate)
    dim, piece = _piece(shard, shape)
    along = 2 if layout.transposed else 1
    yield _Member(
        name, item.dtype, (experts, *shape), section, tensor.role, along,
        None if dim is None else dim + 1, piece,
    )  # fmt: skip


# --- quantized matrices -------------------------------------------------------------------------


class _Names(NamedTuple):
    """What a packer calls the parts of a matrix."""

    weight: str = ".weight"
    scale: str = ".weight_scale"
    zero_point: str = ".qzeros"
    global_scale: str = ".weight_scale_2"
    input_scale: str = ".input_scale"


_BY_METHOD = {
    "gptq": _Names(weight=".qweight", scale=".scales"),
    "awq": _Names(weight=".qweight", scale=".scales"),
    "compressed-tensors": _Names(
        zero_point=".weight_zero_point", global_scale=".weight_global_scale",
        input_scale=".input_global_scale",
    ),
    "gpt_oss": _Names(weight="_blocks", scale="_scales"),
}  # fmt: skip
_PACKED = (PackQuantized, Nvfp4, Mxfp4)


def _names(spec: ModelSpec, weight_format: WeightFormat) -> _Names:
    method = spec.quantization.method if spec.quantization is not None else ""
    if isinstance(weight_format, GroupInt):
        return _BY_METHOD["gptq"]
    if method == "mxfp4" and isinstance(weight_format, Mxfp4):
        return _BY_METHOD["gpt_oss"]
    found = _BY_METHOD["compressed-tensors"] if method == "compressed-tensors" else _Names()
    if isinstance(weight_format, PackQuantized) or (
        method == "compressed-tensors" and isinstance(weight_format, _PACKED)
    ):
        found = _BY_METHOD["compressed-tensors"]._replace(weight=".weight_packed")
    if isinstance(weight_format, Fp8Block) and method != "compressed-tensors":
        found = found._replace(scale=".weight_scale_inv")
    return found


def _quantized(
    spec: ModelSpec, item: StoredEntry, module: str, weight_format: WeightFormat
) -> Iterator[_Member]:
    """The stored tensors of one matrix of (out, in), named as its packer names them."""
    tensor, section = item.entry.tensor, item.entry.section
    out_features, in_features = matrix_shape(tensor)
    names = _names(spec, weight_format)
    shapes = _shapes(weight_format, out_features, in_features, names)
    for part in item.components(out_features, in_features):
        suffix, shape, axes = shapes.get(part.name) or (f".{part.name}", (part.elements,), {})
        if part.name == "zero_bias":
            suffix, shape, axes = ".bias", (out_features,), {0: (0, 1)}
        if prod(shape) != part.elements:
            raise UnsupportedError(
                f"{module}{suffix}: {shape} is not {part.elements} elements of {part.name}"
            )
        dim, piece = _cut_of_part(tensor, shape, axes, (out_features, in_features))
        along = next((axis for axis, (logical, _) in axes.items() if logical == 0), 0)
        yield _Member(
            module + suffix, part.dtype, shape, section, tensor.role, along, dim, piece,
            once=part.name not in _FLAT and 0 not in {logical for logical, _ in axes.values()},
        )  # fmt: skip


# Parts that follow the flat matrix, and grow with what is joined though they have no such axis.
_FLAT = ("weight", "absmax", "nested_absmax")
# Stored axis -> (logical dimension, logical elements that one index holds).
_Axes = dict[int, tuple[int, int | Fraction]]


def _shapes(
    weight_format: WeightFormat, out_features: int, in_features: int, names: _Names
) -> dict[str, tuple[str, tuple[int, ...], _Axes]]:
    """Suffix, shape and axes of every part of a format."""
    o, i = out_features, in_features
    plain: _Axes = {0: (0, 1), 1: (1, 1)}
    found: dict[str, tuple[str, tuple[int, ...], _Axes]] = {
        "weight": (names.weight, (o, i), plain),
        "scale": (names.scale, (o, 1), {0: (0, 1)}),
        "input_scale": (names.input_scale, (1,), {}),
        "global_scale": (names.global_scale, (1,), {}),
        "weight_shape": (".weight_shape", (2,), {}),
    }
    match weight_format:
        case Fp8Block():
            rows, cols = weight_format.block_rows, weight_format.block_cols
            shape = (ceil_div(o, rows), ceil_div(i, cols))
            found["scale"] = (names.scale, shape, {0: (0, rows), 1: (1, cols)})
        case GroupInt():
            found.update(_group_int(weight_format, o, i, names))
        case PackQuantized():
            per = Fraction(32, weight_format.bits)
            size = i if weight_format.group_size == -1 else weight_format.group_size
            words = ceil_div(i * weight_format.bits, 32)
            groups = ceil_div(i, size)
            found["weight"] = (names.weight, (o, words), {0: (0, 1), 1: (1, per)})
            found["scale"] = (names.scale, (o, groups), {0: (0, 1), 1: (1, size)})
            zero = (ceil_div(o * weight_format.bits, 32), groups)
            found["zero_point"] = (names.zero_point, zero, {0: (0, per), 1: (1, size)})
        case BitsAndBytes4Bit():
            block, nested = weight_format.block_elements, weight_format.nested_block_elements
            blocks = ceil_div(o * i, block)
            found["weight"] = (".weight", (ceil_div(o * i, 2), 1), {})
            found["absmax"] = (".weight.absmax", (blocks,), {})
            found["quant_map"] = (".weight.quant_map", (16,), {})
            found["nested_absmax"] = (".weight.nested_absmax", (ceil_div(blocks, nested),), {})
            found["nested_quant_map"] = (".weight.nested_quant_map", (256,), {})
        case BitsAndBytesInt8():
            found["scale"] = (".SCB", (o,), {0: (0, 1)})
            found["weight_format"] = (".weight_format", (1,), {})
        case Mxfp4() if names.weight == "_blocks":
            found["weight"] = (names.weight, (o, ceil_div(i, 32), 16), {0: (0, 1), 1: (1, 32)})
            found["scale"] = (names.scale, (o, ceil_div(i, 32)), {0: (0, 1), 1: (1, 32)})
        case Mxfp4():
            found["weight"] = (names.weight, (o, ceil_div(i, 2)), {0: (0, 1), 1: (1, 2)})
            found["scale"] = (names.scale, (o, ceil_div(i, 32)), {0: (0, 1), 1: (1, 32)})
        case Mxfp8():
            found["scale"] = (names.scale, (o, ceil_div(i, 32)), {0: (0, 1), 1: (1, 32)})
        case Nvfp4():
            found["weight"] = (names.weight, (o, ceil_div(i, 2)), {0: (0, 1), 1: (1, 2)})
            found["scale"] = (names.scale, (o, ceil_div(i, 16)), {0: (0, 1), 1: (1, 16)})
        case _ if len(weight_format.components(o, i)) > 1:
            scale = weight_format.components(o, i)[1]
            if scale.elements == 1:
                found["scale"] = (names.scale, (1,), {})
        case _:
            pass
    return found


def _group_int(
    weight_format: GroupInt, o: int, i: int, names: _Names
) -> dict[str, tuple[str, tuple[int, ...], _Axes]]:
    bits = weight_format.bits
    per = Fraction(32, bits)
    size = i if weight_format.group_size == -1 else weight_format.group_size
    groups = ceil_div(i, size)
    words_out, words_in = ceil_div(o * bits, 32), ceil_div(i * bits, 32)
    if weight_format.packed_along == "out":
        weight: tuple[tuple[int, ...], _Axes] = ((i, words_out), {0: (1, 1), 1: (0, per)})
    else:
        weight = ((words_in, o), {0: (1, per), 1: (0, 1)})
    return {
        "weight": (names.weight, *weight),
        "scale": (names.scale, (groups, o), {0: (1, size), 1: (0, 1)}),
        "zero_point": (names.zero_point, (groups, words_out), {0: (1, size), 1: (0, per)}),
        "g_idx": (".g_idx", (i,), {0: (1, 1)}),
    }


def _cut_of_part(
    tensor: Tensor, shape: tuple[int, ...], axes: _Axes, logical: tuple[int, int]
) -> tuple[int | None, Piece | None]:
    """Where ranks cut a stored part: the axis of the dimension that the matrix is cut in."""
    shard = tensor.shard
    if shard is None:
        return None, None
    for axis, (dimension, per) in axes.items():
        if dimension == min(shard.dim, 1):
            elements = logical[dimension]
            return axis, Piece(shape[axis], elements, shard.units, shard.replicate, Fraction(per))
    return None, None


def is_cut(weight_format: WeightFormat | None) -> bool:
    """Whether ranks hold slices of a matrix: blocks of the flat matrix are left whole."""
    return not isinstance(weight_format, BitsAndBytes4Bit)


def least_cut(weight_format: WeightFormat, tensor: Tensor) -> int:
    """Elements that a rank's part must be a multiple of, or a word, tile or group is cut.

    1 where one group holds all.
    """
    if tensor.shard is None or not is_cut(weight_format):
        return 1
    out_features, in_features = matrix_shape(tensor)
    dimension = min(tensor.shard.dim, 1)
    shapes = _shapes(weight_format, out_features, in_features, _Names())
    whole = (out_features, in_features)[dimension]
    least = 1
    for part in weight_format.components(out_features, in_features):
        for logical, per in shapes[part.name][2].values() if part.name in shapes else ():
            if logical == dimension and per < whole:
                # A fraction of a word, three bits: as many elements as fill whole words.
                least = lcm(least, Fraction(per).numerator)
    return least


# --- joining --------------------------------------------------------------------------------------


def _joined(family: str, name: str, layer: int | None, members: list[_Member]) -> FileTensor:
    """The file tensor that holds these members, one after another or woven."""
    first = members[0]
    if len(members) > 1 and not first.once:
        along = first.along
        length = sum(member.shape[along] for member in members)
        shape = (*first.shape[:along], length, *first.shape[along + 1 :])
    else:
        along, shape = first.along, first.shape
        members = members[:1]
    dim: int | None = None
    pieces: tuple[Piece, ...] = ()
    cut = [member for member in members if member.dim is not None]
    if cut:
        dim = cut[0].dim
        if first.sections and dim == along:
            pieces = _by_section(first, shape[along])
        elif dim == along or len(members) == 1:
            pieces = tuple(
                member.piece or _whole(member, dim)
                for member in members
                for _ in range(member.repeat)
            )
            units = _woven_units(family, members) if len(pieces) > 1 else 0
            if units:
                pieces = (_woven(pieces, units),)
        elif cut[0].piece is not None:
            pieces = (cut[0].piece,)
    return FileTensor(
        name, first.dtype, shape, first.section, layer,
        tuple(dict.fromkeys(member.role for member in members)), dim, pieces,
    )  # fmt: skip


def _by_section(member: _Member, length: int) -> tuple[Piece, ...]:
    """The pieces of a tensor that is cut section by section, `length` indices in all."""
    assert member.piece is not None
    per = member.piece.per or Fraction(1)
    pieces = tuple(
        Piece(ceil(part.rows / per), part.rows, part.units, part.replicate, per)
        for part in member.sections
    )
    aligned = all(part.rows % per == 0 for part in member.sections[:-1])
    if aligned and sum(piece.length for piece in pieces) == length:
        return pieces
    # A tile or a word holds the end of one section and the beginning of the next: in one unit
    # that cannot be shared out.
    return (Piece(length, sum(part.rows for part in member.sections), 1, per=per),)


def _woven_units(family: str, members: Sequence[_Member]) -> int:
    """Most units that members share whose rows alternate; 0 where they follow each other."""
    role = members[0].role
    least = min((member.piece.units for member in members if member.piece is not None), default=0)
    if role.startswith("routed_experts."):
        return least if expert_layout(family).interleaved else 0
    key = members[1].piece
    found = None if key is None else woven(family, role, key.units)
    return 0 if found is None else min(least, found.groups)


def _woven(pieces: tuple[Piece, ...], units: int) -> Piece:
    """One run, whose units hold a share of every member.

    More ranks than groups would share a group's key, and not its queries: no run is a rank's own.
    """
    return Piece(
        sum(piece.length for piece in pieces),
        sum(piece.logical for piece in pieces),
        units,
        per=pieces[0].per,
    )


def _whole(member: _Member, dim: int | None) -> Piece:
    length = member.shape[dim or 0]
    return Piece(length, length)
