"""Strict, bounded reading of safetensors headers, and of a folder of them. Needs no torch.

A file is 8 bytes with the length of its header (little endian), the header (JSON), and the bytes
of its tensors without a gap: <https://huggingface.co/docs/safetensors>. Whatever contradicts that
is refused before a byte of a tensor is touched; pickles are refused by their names, since
unpickling runs what is in them.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from moesize.core.errors import InvalidInputError, UnsupportedError
from moesize.files import inside, listed, opened, parse_json, read_text, regular_size, short

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

INDEX_NAME = "model.safetensors.index.json"
# The format's own limit; the widest published header is below 10 MB.
MAX_HEADER_BYTES = 100_000_000
MAX_NAME_LENGTH = 1024
# No tensor of a language model has more than five dimensions.
MAX_RANK = 16
_MAX_ELEMENTS = 1 << 60
_LENGTH_BYTES = 8
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_CONVERT = (
    "pickle files run code when they are opened: convert them to safetensors "
    "(https://huggingface.co/spaces/safetensors/convert), or take a revision that has them"
)

# safetensors code -> (number format of `weight_formats`, "" = it has none there; bits)
DTYPES: Mapping[str, tuple[str, int]] = {
    "BOOL": ("bool", 8),
    "F4": ("float4_e2m1", 4),
    "F6_E2M3": ("", 6),
    "F6_E3M2": ("", 6),
    "U8": ("uint8", 8),
    "I8": ("int8", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3": ("float8_e4m3", 8),
    "F8_E8M0": ("float8_e8m0", 8),
    "F8_E4M3FNUZ": ("", 8),
    "F8_E5M2FNUZ": ("", 8),
    "I16": ("int16", 16),
    "U16": ("", 16),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "I32": ("int32", 32),
    "U32": ("", 32),
    "F32": ("float32", 32),
    "I64": ("int64", 64),
    "U64": ("", 64),
    "F64": ("float64", 64),
    "C64": ("", 64),
}
# Number format -> safetensors code.
CODES: Mapping[str, str] = {name: code for code, (name, _) in DTYPES.items() if name}


class StoredTensor(NamedTuple):
    """A tensor as a header describes it.

    dtype       code of the header, `BF16`
    start, end  bytes, counted from the header's end
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return self.end - self.start


class Header(NamedTuple):
    """What stands before the tensors; `data_start` is where they begin in the file."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    data_start: int


class Place(NamedTuple):
    """Where a tensor stands: `offset` bytes from the begin of the file."""

    path: Path
    tensor: StoredTensor
    offset: int


def read_header(path: Path) -> Header:
    """The header of a safetensors file, checked against itself and the file's size.

    Raises InvalidInputError.
    """
    refuse_pickle(path.name)
    size = regular_size(path)
    with opened(path) as stream:
        first = stream.read(_LENGTH_BYTES)
        if len(first) < _LENGTH_BYTES:
            raise InvalidInputError(
                f"{path}: {size} bytes are no safetensors file",
                "a Git LFS pointer or a broken download? fetch the file again",
            )
        length = int.from_bytes(first, "little")
        if length > MAX_HEADER_BYTES:
            raise InvalidInputError(
                f"{path}: says that its header has {length:,} bytes; the format allows "
                f"{MAX_HEADER_BYTES:,}",
                "is this a safetensors file?",
            )
        if length > size - _LENGTH_BYTES:
            raise InvalidInputError(
                f"{path}: truncated within its header: "
                f"{length - (size - _LENGTH_BYTES):,} bytes of it are missing",
                "fetch the file again",
            )
        raw = stream.read(length)
    if len(raw) < length:
        raise InvalidInputError(f"{path}: truncated while it was read", "fetch the file again")
    return _parse(raw, path, size)


def refuse_pickle(name: str) -> None:
    """Raises InvalidInputError when a file's name says that it is a pickle."""
    if Path(name).suffix.lower() in _PICKLES:
        raise InvalidInputError(f"{name}: pickled weights are never read", _CONVERT)


def _parse(raw: bytes, path: Path, size: int) -> Header:
    if not raw.startswith(b"{"):
        raise InvalidInputError(f"{path}: its header is no JSON object", "is this safetensors?")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{path}: its header is not UTF-8 (byte {_LENGTH_BYTES + error.start})"
        ) from error
    data = parse_json(text, f"{path} (header)")
    metadata = _metadata(data.pop("__metadata__", {}), path)
    data_start = _LENGTH_BYTES + len(raw)
    tensors = {name: _tensor(name, entry, path) for name, entry in data.items()}
    _check_layout(tensors, path, size - data_start)
    return Header(tensors, metadata, data_start)


def _metadata(data: Any, path: Path) -> dict[str, str]:
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        raise InvalidInputError(f"{path}: __metadata__ of its header is not texts by name")
    return data


def _tensor(name: str, entry: Any, path: Path) -> StoredTensor:
    """One entry of a header. Raises InvalidInputError."""
    if not _is_plain_name(name):
        raise InvalidInputError(f"{path}: {short(name)} is no name of a tensor")
    where = f"{path}: tensor {short(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise InvalidInputError(f"{where} has not just a dtype, a shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InvalidInputError(
            f"{where} has the unknown dtype {short(dtype)}", f"known: {', '.join(DTYPES)}"
        )
    if not isinstance(shape, list) or not all(_is_count(size) for size in shape):
        raise InvalidInputError(f"{where} has no shape of whole numbers")
    if len(shape) > MAX_RANK:
        raise InvalidInputError(f"{where} has {len(shape):,} dimensions; {MAX_RANK} are the most")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise InvalidInputError(f"{where} has no data_offsets of two whole numbers")
    start, end = offsets
    elements = prod(shape)
    bits = elements * DTYPES[dtype][1]
    if elements > _MAX_ELEMENTS:
        raise InvalidInputError(f"{where} has more elements than any memory holds")
    if bits % 8 or end - start != bits // 8:
        raise InvalidInputError(
            f"{where}: {dtype} of shape {shape} takes {bits / 8:,g} bytes, and its data_offsets "
            f"[{start}, {end}] give it {end - start:,}"
        )
    return StoredTensor(dtype, tuple(shape), start, end)


def _is_plain_name(name: str) -> bool:
    """Printable, of sane length, and no path: nothing may be taken for a file's name later."""
    return 0 < len(name) <= MAX_NAME_LENGTH and name.isprintable() and not set(name) & set("/\\")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_ELEMENTS


def _check_layout(tensors: Mapping[str, StoredTensor], path: Path, data_bytes: int) -> None:
    """The tensors lie one after another, from the first byte of the data to its last."""
    at, before = 0, ""
    in_order = sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end))
    for name, tensor in in_order:
        if tensor.start < at:
            raise InvalidInputError(
                f"{path}: tensors {short(before)} and {short(name)} overlap at byte "
                f"{tensor.start:,} of the data"
            )
        if tensor.start > at:
            raise InvalidInputError(
                f"{path}: {tensor.start - at:,} bytes before tensor {short(name)} belong to no "
                "tensor, which the format forbids"
            )
        at, before = tensor.end, name
    if data_bytes < at:
        raise InvalidInputError(
            f"{path}: truncated: {at - data_bytes:,} of {at:,} bytes of tensors are missing",
            "fetch the file again",
        )
    if data_bytes > at:
        raise InvalidInputError(
            f"{path}: {data_bytes - at:,} bytes after the last tensor belong to no tensor, "
            "which the format forbids"
        )


# --- Folders --------------------------------------------------------------------------------------

# What wraps a language model in some files and not in others.
_WRAPPERS = ("model.language_model.", "language_model.model.", "model.", "")


class CheckpointFiles:
    """The safetensors files of a checkpoint, their headers read and checked.

    headers  by path
    holders  path of the file that holds each tensor
    """

    def __init__(self, headers: Mapping[Path, Header], holders: Mapping[str, Path]) -> None:
        self.headers = headers
        self.holders = holders

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(self.place(name).tensor.size_bytes for name in self.holders)

    def place(self, name: str) -> Place:
        """Where a tensor stands. Raises InvalidInputError."""
        path = self.holders.get(name)
        if path is None:
            raise InvalidInputError(f"the checkpoint has no tensor {short(name)}")
        header = self.headers[path]
        tensor = header.tensors[name]
        return Place(path, tensor, header.data_start + tensor.start)

    def aligned(self, expected: Iterable[str]) -> dict[str, str]:
        """The files' own name of each expected tensor. Raises InvalidInputError for a missing one.

        Published files disagree on what wraps a language model (`model.language_model.layers.0`).
        """
        wanted = list(expected)
        found = align_names(wanted, self.holders)
        missing = [name for name in wanted if name not in found]
        if missing:
            raise InvalidInputError(
                f"the checkpoint lacks {listed(missing)}",
                "is it the model that the spec describes?",
            )
        return found


def align_names(expected: Iterable[str], there: Iterable[str]) -> dict[str, str]:
    """Expected name -> name in the files, under the wrapper that fits most of them."""
    wanted, known = list(expected), frozenset(there)
    found = {name: name for name in wanted if name in known}
    rest = [name for name in wanted if name not in found]
    best: dict[str, str] = {}
    for ours in _WRAPPERS:
        for theirs in _WRAPPERS:
            if ours == theirs or not rest:
                continue
            renamed = {
                name: theirs + name.removeprefix(ours) for name in rest if name.startswith(ours)
            }
            fits = {name: other for name, other in renamed.items() if other in known}
            if len(fits) > len(best):
                best = fits
    return {**found, **best}


def says_weights(folder: Path) -> bool:
    """Whether a folder's names say that weights are in it: shards, their index, or pickles.

    Such a folder is opened, and what is wrong with it said; random shards in its place would pass
    for its own.
    """
    return any(
        entry.name.endswith((".safetensors", INDEX_NAME)) or entry.suffix.lower() in _PICKLES
        for entry in folder.iterdir()
    )


def open_checkpoint(path: Path, needed: Iterable[str] | None = None) -> CheckpointFiles:
    """The files of a folder (or one file) of safetensors, by its index where there is one.

    needed  names of the tensors that will be asked for: only their shards have to be there.
    Raises InvalidInputError, which names what is missing or wrong.
    """
    if path.is_file() or (path.is_symlink() and not path.exists()):
        return _opened_files({path: read_header(path)})
    if not path.is_dir():
        raise InvalidInputError(f"{path}: no such folder")
    folder = path.resolve()
    index = folder / INDEX_NAME
    if index.exists() or index.is_symlink():
        return _by_index(folder, index, needed)
    names = sorted(entry.name for entry in folder.iterdir())
    shards = [name for name in names if name.endswith(".safetensors")]
    if not shards:
        raise _nothing_to_read(folder, names)
    return _opened_files({inside(folder, name): read_header(folder / name) for name in shards})


def _nothing_to_read(folder: Path, names: list[str]) -> Exception:
    pickles = [name for name in names if Path(name).suffix.lower() in _PICKLES]
    if pickles:
        return InvalidInputError(
            f"{folder}: holds pickled weights only ({listed(pickles)}), which are never read",
            _CONVERT,
        )
    if any(name.endswith(".gguf") for name in names):
        return UnsupportedError(
            f"{folder}: GGUF files are not loaded", "take the safetensors files of the model"
        )
    return InvalidInputError(f"{folder}: holds no *.safetensors file")


def _opened_files(headers: Mapping[Path, Header]) -> CheckpointFiles:
    holders: dict[str, Path] = {}
    for path, header in headers.items():
        for name in header.tensors:
            if name in holders:
                raise InvalidInputError(
                    f"tensor {short(name)} is in {holders[name].name} and in {path.name}",
                    f"a folder without {INDEX_NAME} holds one checkpoint only",
                )
            holders[name] = path
    return CheckpointFiles(headers, holders)


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> file name of a shard, from an index file. Raises InvalidInputError."""
    data = parse_json(read_text(path, MAX_HEADER_BYTES), str(path))
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidInputError(f"{path}: has no weight_map")
    for name, file in weight_map.items():
        if not _is_plain_name(name):
            raise InvalidInputError(f"{path}: {short(name)} is no name of a tensor")
        if not isinstance(file, str) or not _is_plain_name(file) or file.startswith("."):
            raise InvalidInputError(
                f"{path}: {short(name)} is said to be in {short(file)}, which is no file's name"
            )
        refuse_pickle(file)
        if not file.endswith(".safetensors"):
            raise InvalidInputError(f"{path}: {short(file)} is no safetensors file")
    return weight_map


def _by_index(folder: Path, index: Path, needed: Iterable[str] | None) -> CheckpointFiles:
    weight_map = read_index(inside(folder, index.name))
    if needed is not None:
        wanted = frozenset(align_names(needed, weight_map).values())
        files = {file for name, file in weight_map.items() if name in wanted}
        weight_map = {name: file for name, file in weight_map.items() if file in files}
    shards = sorted(set(weight_map.values()))
    missing = [name for name in shards if not (folder / name).exists()]
    if missing:
        raise InvalidInputError(
            f"{folder}: {len(missing)} of {len(shards)} shards are missing: {listed(missing)}",
            "fetch them; a link whose target is gone counts as missing",
        )
    headers = {inside(folder, name): read_header(folder / name) for name in shards}
    held_by = {name: path for path, header in headers.items() for name in header.tensors}
    holders: dict[str, Path] = {}
    for name, file in weight_map.items():
        path = folder / file
        if name not in headers[path].tensors:
            found = f"it is in {held_by[name].name}" if name in held_by else "it is in none of them"
            raise InvalidInputError(
                f"{index}: says that {short(name)} is in {file}; {found}",
                "index and shards are of different revisions?",
            )
        holders[name] = path
    return CheckpointFiles(headers, holders)
