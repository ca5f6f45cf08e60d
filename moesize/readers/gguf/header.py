"""Strict, bounded reading of GGUF headers. Needs no torch.

A file is a magic word, a version, two counts, metadata (keys, types, values), a table of tensors
(name, dimensions, ggml type, offset), and after padding the tensors' bytes, each tensor padded to
the alignment: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Versions 2 and 3, little
endian, are read; whatever contradicts the format, or is larger than any real file's, is refused
before a byte of a tensor is touched. Nothing of a file is executed: templates are passed over.
"""

from __future__ import annotations

import re
import struct
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from moesize.core.errors import InvalidInputError
from moesize.core.gguf import TENSOR_ALIGNMENT_BYTES
from moesize.core.units import round_up
from moesize.core.weight_formats import BLOCK_TYPES, BlockType
from moesize.files import inside, listed, opened, regular_size, short

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# Vocabularies of published files take up to 20 MB.
MAX_HEADER_BYTES = 256 << 20
MAX_KEYS = 4096
# One tensor for each expert, as before 2024, makes tens of thousands.
MAX_TENSORS = 1 << 17
# Texts, and lists within lists; plain numbers are passed over at once.
MAX_VALUES = 1 << 21
MAX_LISTS = 1 << 16
MAX_STRING_BYTES = 16 << 20
MAX_KEY_BYTES = 1024
# GGML_MAX_NAME and GGML_MAX_DIMS of ggml.h; a name ends in a zero there.
MAX_NAME_BYTES = 63
MAX_RANK = 4
# ggml itself takes no lists of lists.
MAX_DEPTH = 4
MAX_ALIGNMENT = 1 << 20
MAX_PARTS = 4096
_AGAIN = "fetch the file again; if that changes nothing, convert the model again"
_MAX_ELEMENTS = 1 << 60
# The longest text of the metadata that is kept.
_MAX_KEPT_BYTES = 1024
_CHUNK_BYTES = 1 << 20

# Numbers of `enum ggml_type`, ggml.h; 4, 5, 31-33 and 36-38 were removed. The widths of the types
# that no planner counts stand beside.
_NUMBERS = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
    41: "Q1_0", 42: "Q2_0",
}  # fmt: skip
_PLAIN = {24: ("I8", 1), 25: ("I16", 2), 26: ("I32", 4), 27: ("I64", 8), 28: ("F64", 8)}
GGML_TYPES: Mapping[int, BlockType] = {
    **{number: BLOCK_TYPES[name] for number, name in _NUMBERS.items()},
    **{
        number: BlockType(name=name, elements_per_block=1, bytes_per_block=size)
        for number, (name, size) in _PLAIN.items()
    },
}
GGML_NUMBERS: Mapping[str, int] = {kind.name: number for number, kind in GGML_TYPES.items()}
_REMOVED = (4, 5, 31, 32, 33, 36, 37, 38)

# `general.file_type`: `enum llama_ftype`, llama.h.
_FILE_TYPE_NUMBERS = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10,
    "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16,
    "Q5_K_M": 17, "Q6_K": 18, "IQ2_XXS": 19, "IQ2_XS": 20, "Q2_K_S": 21, "IQ3_XS": 22,
    "IQ3_XXS": 23, "IQ1_S": 24, "IQ4_NL": 25, "IQ3_S": 26, "IQ3_M": 27, "IQ2_S": 28, "IQ2_M": 29,
    "IQ4_XS": 30, "IQ1_M": 31, "BF16": 32, "TQ1_0": 36, "TQ2_0": 37, "MXFP4_MOE": 38, "NVFP4": 39,
    "Q1_0": 40, "Q2_0": 41,
}  # fmt: skip
FILE_TYPES: Mapping[str, int] = _FILE_TYPE_NUMBERS

# Types of values: number in the file -> struct code.
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
STRING, ARRAY = 8, 9

# Vocabularies, templates: nothing there concerns tensors.
_PASSED_OVER = ("tokenizer.",)
# Numbers in the lists that are kept: of one, and of all.
_MAX_KEPT_LIST = 4096
_MAX_KEPT_NUMBERS = 1 << 16

Value: TypeAlias = "int | float | str | tuple[int | float, ...]"

_PART_NAME = re.compile(r"(?P<stem>.{1,240})-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")
_BLOCK_NAME = re.compile(r"blk\.([0-9]{1,6})\.")


class GgufTensor(NamedTuple):
    """A tensor as a header describes it.

    shape  ne0, the dimension of rows, first
    start  bytes from the begin of its file
    """

    path: Path
    type: BlockType
    shape: tuple[int, ...]
    start: int
    size_bytes: int


class GgufFile(NamedTuple):
    """The tensors of a model, of all parts, and of the metadata what concerns them.

    paths  of the parts, in order
    """

    paths: tuple[Path, ...]
    version: int
    tensors: dict[str, GgufTensor]
    metadata: dict[str, Value]

    @property
    def architecture(self) -> str:
        """GGUF's name of it; empty where the file does not say."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def name(self) -> str:
        """What the file calls its model."""
        return str(self.metadata.get("general.name", ""))

    @property
    def block_count(self) -> int | None:
        """Blocks that the model has, MTP blocks included; the file may hold fewer."""
        found = self.metadata.get(f"{self.architecture}.block_count")
        return found if isinstance(found, int) else None

    @property
    def file_type(self) -> str:
        """`Q4_K_M`; empty where the file says none that is known."""
        number = self.metadata.get("general.file_type")
        return next((name for name, known in FILE_TYPES.items() if known == number), "")

    @property
    def has_imatrix(self) -> bool:
        """Whether an importance matrix was used."""
        return "quantize.imatrix.file" in self.metadata

    @property
    def blocks(self) -> tuple[int, ...]:
        """Indices of the blocks that have tensors in the file."""
        found = {block_of(name) for name in self.tensors}
        return tuple(sorted(block for block in found if block is not None))

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors, without padding."""
        return sum(tensor.size_bytes for tensor in self.tensors.values())


def block_of(name: str) -> int | None:
    """The block that a tensor's name says; None outside of blocks."""
    found = _BLOCK_NAME.match(name)
    return None if found is None else int(found[1])


# --- Files ----------------------------------------------------------------------------------------


def open_gguf(path: Path) -> GgufFile:
    """A model's GGUF file, with the other parts of a divided one; or the only one of a folder.

    Raises InvalidInputError, which names the file and what is missing or wrong.
    """
    try:
        return _opened(path)
    except InvalidInputError as error:
        if not path.exists():
            raise type(error)(error.message, "is the path right?") from error
        raise with_advice(error) from error


def with_advice(error: InvalidInputError) -> InvalidInputError:
    """The error with something to do, where it has nothing better."""
    return error if error.hint else type(error)(error.message, _AGAIN)


def _opened(path: Path) -> GgufFile:
    if path.is_dir():
        path = _only_model(path)
    first = read_header(path)
    count = _whole(first, "split.count", path, 1)
    if count <= 1:
        return GgufFile((path,), first.version, first.tensors, first.metadata)
    return _with_parts(path, first, count)


def _only_model(folder: Path) -> Path:
    """The GGUF file of a folder; a projector beside it (mmproj) is a model of its own."""
    folder = folder.resolve()
    names = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.name.endswith(".gguf") and not entry.name.startswith("mmproj")
    )
    if not names:
        raise InvalidInputError(f"{folder}: holds no *.gguf file")
    parts = [_PART_NAME.fullmatch(name) for name in names]
    stems = {found["stem"] if found else name for name, found in zip(names, parts, strict=True)}
    if len(stems) > 1:
        raise InvalidInputError(
            f"{folder}: holds {len(stems)} models ({listed(names)})", "name one of the files"
        )
    return inside(folder, names[0])


def _with_parts(path: Path, first: Part, count: int) -> GgufFile:
    """All parts, by the names that llama.cpp gives them."""
    named = _PART_NAME.fullmatch(path.name)
    if named is None or int(named["count"]) != count:
        raise InvalidInputError(
            f"{path}: says that it is one of {count:,} parts, which its name does not",
            "parts are called NAME-00001-of-00003.gguf",
        )
    if count > MAX_PARTS:
        raise InvalidInputError(f"{path}: {count:,} parts are more than any model has")
    folder = path.parent.resolve()
    names = [f"{named['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise InvalidInputError(
            f"{folder}: {len(missing)} of {count} parts are missing: {listed(missing)}",
            "fetch them; a link whose target is gone counts as missing",
        )
    tensors: dict[str, GgufTensor] = {}
    metadata: dict[str, Value] = {}
    paths = []
    for number, name in enumerate(names):
        own = inside(folder, name)
        part = first if name == path.name else read_header(own)
        says = _whole(part, "split.no", own, -1), _whole(part, "split.count", own, -1)
        if says != (number, count):
            raise InvalidInputError(
                f"{own}: says that it is part {says[0] + 1} of {says[1]}", "are parts mixed up?"
            )
        twice = tensors.keys() & part.tensors.keys()
        if twice:
            raise InvalidInputError(f"{own}: {listed(sorted(twice))} stand in an earlier part too")
        tensors |= part.tensors
        metadata = part.metadata | metadata
        paths.append(own)
        _check_total(part, own, len(tensors), last=number == count - 1)
    return GgufFile(tuple(paths), first.version, tensors, metadata)


def _check_total(part: Part, path: Path, found: int, *, last: bool) -> None:
    total = _whole(part, "split.tensors.count", path, -1)
    if total >= 0 and (found > total or (last and found != total)):
        raise InvalidInputError(
            f"{path}: all parts together have {total:,} tensors, it says, and {found:,} were found"
        )


def _whole(part: Part, key: str, path: Path, default: int) -> int:
    value = part.metadata.get(key, default)
    if not isinstance(value, int):
        raise InvalidInputError(f"{path}: {key} is no whole number")
    return value


# --- One header -----------------------------------------------------------------------------------


class Part(NamedTuple):
    """One file's header."""

    version: int
    tensors: dict[str, GgufTensor]
    metadata: dict[str, Value]


def read_header(path: Path) -> Part:
    """The header of one file, checked against itself and the file's size.

    Raises InvalidInputError.
    """
    size = regular_size(path)
    with opened(path) as stream:
        source = _Source(path, stream, size)
        version = _version(source)
        num_tensors = source.count("Q")
        num_keys = source.count("Q")
        _check_count(path, "tensors", num_tensors, MAX_TENSORS)
        _check_count(path, "keys of metadata", num_keys, MAX_KEYS)
        metadata = _metadata(source, num_keys)
        alignment = _alignment(path, metadata)
        infos = _infos(source, num_tensors)
    data_start = round_up(source.position, alignment)
    tensors = _placed(path, infos, data_start, alignment, size)
    return Part(version, tensors, metadata)


def _version(source: _Source) -> int:
    path = source.path
    if source.size < 24:
        raise InvalidInputError(
            f"{path}: {source.size} bytes are no GGUF file",
            "a Git LFS pointer or a broken download? fetch the file again",
        )
    magic = source.take(4)
    if magic != MAGIC:
        raise InvalidInputError(
            f"{path}: begins with {magic.decode('latin-1')!a}, not with 'GGUF'",
            "files of before August 2023 (ggml, ggjt) are not read; a Git LFS pointer is no model",
        )
    version = source.count("I")
    if version not in VERSIONS:
        big = version & 0xFFFF == 0 and version >> 24 in VERSIONS
        raise InvalidInputError(
            f"{path}: is a big-endian GGUF file" if big else f"{path}: is GGUF version {version}",
            "little-endian files of version 2 and 3 are read: convert it again",
        )
    return version


def _check_count(path: Path, what: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidInputError(f"{path}: claims {count:,} {what}; no model has more than {most:,}")


def _metadata(source: _Source, count: int) -> dict[str, Value]:
    """What may concern tensors; every value is walked through."""
    kept: dict[str, Value] = {}
    seen: set[str] = set()
    for _ in range(count):
        key = _text(source, source.string(MAX_KEY_BYTES, "a key"), "a key")
        if key in seen:
            raise InvalidInputError(f"{source.path}: the key {short(key)} stands twice")
        seen.add(key)
        source.what = f"the value of {short(key)}"
        kind = source.count("I")
        value = _value(source, kind, key)
        if value is not None:
            kept[key] = value
    return kept


def _value(source: _Source, kind: int, key: str) -> Value | None:
    """A value that is kept; None for one that is passed over."""
    if key.startswith(_PASSED_OVER):
        _pass_over(source, kind, 0)
        return None
    if kind == STRING:
        raw = source.string(MAX_STRING_BYTES, key)
        return _text(source, raw, key) if len(raw) <= _MAX_KEPT_BYTES else None
    if kind in _SCALARS:
        return source.number(_SCALARS[kind])
    if kind == ARRAY:
        return _list(source)
    _pass_over(source, kind, 0)
    return None


def _list(source: _Source) -> tuple[int | float, ...] | None:
    """A list with a number for each layer, at most; None for any other."""
    inner, count = source.count("I"), source.count("Q")
    code = _SCALARS.get(inner)
    kept = code is not None and count <= _MAX_KEPT_LIST
    if code is None or not kept or source.numbers + count > _MAX_KEPT_NUMBERS:
        _pass_over_list(source, inner, count, 0)
        return None
    source.numbers += count
    source.expect(count, struct.calcsize(code))
    return struct.unpack(f"<{count}{code}", source.take(count * struct.calcsize(code)))


def _pass_over(source: _Source, kind: int, depth: int) -> None:
    code = _SCALARS.get(kind)
    if code is not None:
        source.skip(struct.calcsize(code))
    elif kind == STRING:
        source.skip_strings(1)
    elif kind == ARRAY:
        if depth >= MAX_DEPTH:
            raise InvalidInputError(f"{source.path}: {source.what} is nested too deeply")
        _pass_over_list(source, source.count("I"), source.count("Q"), depth)
    else:
        raise InvalidInputError(f"{source.path}: {source.what} is of the unknown type {kind}")


def _pass_over_list(source: _Source, inner: int, count: int, depth: int) -> None:
    code = _SCALARS.get(inner)
    if code is not None:
        source.skip(count * struct.calcsize(code))
    elif inner == STRING:
        source.skip_strings(count)
    else:
        source.claim(count, 12, MAX_LISTS)
        for _ in range(count):
            _pass_over(source, inner, depth + 1)


def _alignment(path: Path, metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", TENSOR_ALIGNMENT_BYTES)
    if not isinstance(value, int) or not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
        shown = value if isinstance(value, int | float) else short(value)
        raise InvalidInputError(f"{path}: an alignment of {shown} is no power of two below 1 MiB")
    return value


class _Info(NamedTuple):
    """A row of the table of tensors; offset: bytes from the begin of the data."""

    name: str
    type: BlockType
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


def _infos(source: _Source, count: int) -> list[_Info]:
    source.what = "the table of tensors"
    # Lengths, type and offset alone.
    source.expect(count, 24)
    out = []
    seen: set[str] = set()
    for _ in range(count):
        name = _text(source, source.string(MAX_NAME_BYTES, "a tensor's name"), "a tensor's name")
        if not name or not name.isprintable() or set(name) & set("/\\"):
            raise InvalidInputError(f"{source.path}: {short(name)} is no name of a tensor")
        if name in seen:
            raise InvalidInputError(f"{source.path}: the tensor {short(name)} stands twice")
        seen.add(name)
        out.append(_info(source, name))
    return out


def _info(source: _Source, name: str) -> _Info:
    where = f"{source.path}: tensor {short(name)}"
    rank = source.count("I")
    if rank > MAX_RANK:
        raise InvalidInputError(f"{where} has {rank:,} dimensions; {MAX_RANK} are the most")
    shape = tuple(source.count("Q") for _ in range(rank))
    number, offset = source.count("I"), source.count("Q")
    kind = GGML_TYPES.get(number)
    if kind is None:
        known = "was removed from ggml" if number in _REMOVED else "is unknown"
        raise InvalidInputError(
            f"{where} is of ggml type {number}, which {known}", "convert the model again"
        )
    if any(length >= _MAX_ELEMENTS for length in shape) or prod(shape) > _MAX_ELEMENTS:
        raise InvalidInputError(f"{where} has more elements than any memory holds")
    row = shape[0] if shape else 1
    if row % kind.elements_per_block:
        raise InvalidInputError(
            f"{where}: rows of {row:,} elements do not divide into {kind.name} blocks of "
            f"{kind.elements_per_block}"
        )
    return _Info(name, kind, shape, offset, kind.row_bytes(row) * prod(shape[1:]))


def _placed(
    path: Path, infos: Iterable[_Info], data_start: int, alignment: int, size: int
) -> dict[str, GgufTensor]:
    """Tensors lie one after another in the order of the table, each padded; ggml asks for it."""
    out = {}
    at, before = 0, ""
    for info in infos:
        if info.offset != at:
            what = (
                f"overlaps {short(before)}" if info.offset < at and before else "leaves a gap"
            ) + f": it begins at byte {info.offset:,} of the data, and {at:,} is next"
            raise InvalidInputError(f"{path}: tensor {short(info.name)} {what}")
        out[info.name] = GgufTensor(path, info.type, info.shape, data_start + at, info.size_bytes)
        end = at + info.size_bytes
        at, before = round_up(end, alignment), info.name
        if end > _MAX_ELEMENTS:
            raise InvalidInputError(f"{path}: has more bytes of tensors than any disk holds")
    # Padding after the last tensor may be left out.
    needed = max((tensor.start + tensor.size_bytes for tensor in out.values()), default=0)
    if needed > size:
        raise InvalidInputError(
            f"{path}: truncated: {needed - size:,} of {needed - data_start:,} bytes of tensors are "
            "missing",
            "fetch the file again",
        )
    return out


def _text(source: _Source, raw: bytes, what: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{source.path}: {what[:80]} is not UTF-8") from error


# --- Bytes ----------------------------------------------------------------------------------------


class _Source:
    """Bounded reading forward through a header.

    what     is being read, for errors
    numbers  in lists that are kept
    """

    def __init__(self, path: Path, stream: Any, size: int) -> None:
        self.path, self.stream, self.size = path, stream, size
        self.what = "the header"
        self.values = 0
        self.numbers = 0
        self._data = b""
        self._at = 0
        self._base = 0

    @property
    def position(self) -> int:
        """Bytes from the begin of the file."""
        return self._base + self._at

    def expect(self, count: int, width: int = 1) -> None:
        """Refuse when the file cannot hold `count` things of at least `width` bytes from here on.

        Counts are lies as long as nothing bounds them.
        """
        end = self.position + count * width
        if end > self.size:
            raise InvalidInputError(
                f"{self.path}: truncated within {self.what}: at least {end - self.size:,} bytes "
                "are missing, or a count in it is wrong",
                "fetch the file again",
            )
        if end > MAX_HEADER_BYTES:
            raise InvalidInputError(
                f"{self.path}: {self.what} ends beyond {MAX_HEADER_BYTES >> 20} MiB; no header is "
                "that long"
            )

    def _fill(self, count: int) -> None:
        """At least `count` bytes from here on in the buffer."""
        self.expect(count)
        left = self._data[self._at :]
        more = self.stream.read(max(count - len(left), _CHUNK_BYTES))
        self._base += self._at
        self._at, self._data = 0, left + more
        if len(self._data) < count:
            raise InvalidInputError(
                f"{self.path}: truncated while it was read", "fetch the file again"
            )

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if self._at + count > len(self._data):
            self._fill(count)
        found = self._data[self._at : self._at + count]
        self._at += count
        return found

    def number(self, code: str) -> int | float:
        """The next number; `code` is struct's."""
        found: int | float = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]
        return found

    def count(self, code: str) -> int:
        """The next whole number."""
        return int(self.number(code))

    def string(self, most: int, what: str) -> bytes:
        """The next text, of at most so many bytes."""
        length = self.count("Q")
        if length > most:
            raise InvalidInputError(
                f"{self.path}: {what[:80]} has {length:,} bytes; {most:,} are the most"
            )
        return self.take(length)

    def skip(self, count: int) -> None:
        """Pass over bytes."""
        self.expect(count)
        at = self._at + count
        if at <= len(self._data):
            self._at = at
            return
        self._base += at
        self._at, self._data = 0, b""
        self.stream.seek(self._base)

    def claim(self, count: int, width: int, most: int = MAX_VALUES) -> None:
        """Bound how many texts and lists are walked through; each takes at least `width` bytes."""
        self.values += count
        if self.values > most:
            raise InvalidInputError(
                f"{self.path}: {self.what} claims {count:,} entries; no vocabulary has that many"
            )
        self.expect(count, width)

    def skip_strings(self, count: int) -> None:
        """Pass over texts: a vocabulary has hundreds of thousands of them."""
        self.claim(count, 8)
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if self._at + 8 > len(self._data):
                self._fill(8)
            (length,) = unpack(self._data, self._at)
            if length > MAX_STRING_BYTES:
                raise InvalidInputError(
                    f"{self.path}: a text in {self.what} has {length:,} bytes; "
                    f"{MAX_STRING_BYTES:,} are the most"
                )
            self._at += 8
            if self._at + length <= len(self._data):
                self._at += length
            else:
                self.skip(length)
