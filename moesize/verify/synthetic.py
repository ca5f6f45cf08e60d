"""A checkpoint of random numbers: real safetensors files with a model's names, shapes and types.

Planning needs no torch; filling does. Contents are such that a forward pass over them stays finite:
matrices of variance 1 / inputs, norms near 1, scales that bring quantized numbers to the same size.

Random numbers are made once, 8 MiB for each kind of content, and written again and again from
random offsets on: no tensor repeats another or itself in step, and the disk sets the pace.
"""

from __future__ import annotations

import errno
import json
import random
import shutil
import struct
import time
import zlib
from array import array
from contextlib import contextmanager, suppress
from math import log2, prod
from typing import TYPE_CHECKING, Any, NamedTuple

from moesize.core.checkpoint import matrix_shape
from moesize.core.errors import EnvironmentProblem, InvalidInputError, UnsupportedError
from moesize.core.inventory import moe_of
from moesize.core.units import MIB, format_bytes, round_up
from moesize.core.weight_formats import (
    BitsAndBytes4Bit,
    BitsAndBytesInt8,
    GroupInt,
    Int8PerChannel,
    Mxfp4,
    Mxfp8,
    Nvfp4,
    PackQuantized,
    Plain,
    WeightFormat,
)
from moesize.verify.safetensors_files import CODES, DTYPES, INDEX_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import torch

    from moesize.core.checkpoint import StoredEntry
    from moesize.core.model_spec import ModelSpec
    from moesize.verify.file_tensors import FileTensor
    from moesize.verify.selection import Selection

MAX_SHARD_BYTES = 4 * 10**9
_POOL_BYTES = 8 * MIB
# Left free on the disk beside the files.
_SPARE_BYTES = 64 * MIB
_HEADER_ALIGNMENT = 8

# Spread of what is stored, before scales: E4M3 numbers, random bytes as int8, 4-bit numbers less
# their zero point, E2M1 numbers.
_FP8_STD = 32.0
_INT8_STD = 74.0
_INT4_STD = 6.5
_E2M1_STD = 2.9
_FP8_MAX = {"F8_E4M3": 448.0, "F8_E5M2": 57344.0}


class Content(NamedTuple):
    """What fills a tensor.

    kind   normal (mean a, deviation b), uniform (a to b), bits, exponents (E8M0 near a),
           groups (index in the row // a), modulo (index % a), ramp (a to b), values
    """

    kind: str
    a: float = 0.0
    b: float = 0.0
    values: tuple[int, ...] = ()


class PlannedTensor(NamedTuple):
    """A tensor to be written; `dtype` is the code of a safetensors header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    content: Content

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * DTYPES[self.dtype][1] // 8


class Synthetic(NamedTuple):
    """What was written."""

    folder: Path
    shards: tuple[str, ...]
    size_bytes: int
    seconds: float

    @property
    def gb_per_s(self) -> float:
        """Speed of writing."""
        return self.size_bytes / max(self.seconds, 1e-9) / 1e9


# --- What is written ------------------------------------------------------------------------------


def plan_synthetic(
    spec: ModelSpec, stored: Sequence[StoredEntry], selection: Selection
) -> list[list[PlannedTensor]]:
    """The tensors of every shard, in the order in which they are written."""
    facts = _facts(stored)
    shards: list[list[PlannedTensor]] = [[]]
    used = 0
    for tensor in selection.tensors(spec, stored):
        for planned in _planned(spec, tensor, facts.get(_key(tensor), _Fact(None, 0, 0))):
            if shards[-1] and used + planned.size_bytes > MAX_SHARD_BYTES:
                shards.append([])
                used = 0
            shards[-1].append(planned)
            used += planned.size_bytes
    if not shards[0]:
        raise InvalidInputError("no tensors are selected")
    # Wide types first, as the usual writer sorts them: each tensor is aligned to its own type.
    return [sorted(shard, key=lambda t: (-DTYPES[t.dtype][1], t.name)) for shard in shards]


class _Fact(NamedTuple):
    """How a matrix of the inventory is stored, and its logical size."""

    weight_format: WeightFormat | None
    outputs: int
    inputs: int


def _facts(stored: Iterable[StoredEntry]) -> dict[tuple[str, str, int | None], _Fact]:
    out: dict[tuple[str, str, int | None], _Fact] = {}
    for item in stored:
        tensor = item.entry.tensor
        if len(tensor.shape) < 2 or item.entry.section in ("mtp", "stored"):
            continue
        fact = _Fact(item.weight_format if item.is_quantized else None, *matrix_shape(tensor))
        for layer in item.entry.layers or (None,):
            out[item.entry.section, tensor.role, layer] = fact
    return out


def _key(tensor: FileTensor) -> tuple[str, str, int | None]:
    return tensor.section, tensor.roles[0], tensor.layer


def _planned(spec: ModelSpec, tensor: FileTensor, fact: _Fact) -> Iterator[PlannedTensor]:
    weight_format = fact.weight_format
    dtype = CODES.get(tensor.dtype)
    if dtype is None:
        raise UnsupportedError(f"{tensor.name}: safetensors files hold no {tensor.dtype}")
    if tensor.dtype == "float8_e8m0" and isinstance(weight_format, (Mxfp4, Mxfp8)):
        # gpt-oss, compressed-tensors and ModelOpt store microscaling exponents as plain bytes.
        dtype = "U8"
    if weight_format is None or isinstance(weight_format, Plain):
        content = _plain_content(spec, tensor, fact)
    else:
        content = _quantized_content(tensor, fact, weight_format)
    if content.kind == "values":
        # Of stacked experts each has its own.
        content = content._replace(
            values=content.values * (prod(tensor.shape) // len(content.values))
        )
    yield PlannedTensor(tensor.name, dtype, tensor.shape, content)
    if isinstance(weight_format, BitsAndBytes4Bit) and tensor.name.endswith(".weight"):
        yield _quant_state(tensor, fact, weight_format)


_NEAR_ONE = ("attention.linear.d", "router.scale", "router.expert_scale", "other.layer_scalar")


def _plain_content(spec: ModelSpec, tensor: FileTensor, fact: _Fact) -> Content:
    role = tensor.roles[0]
    if role == "router.hash":
        return Content("modulo", _experts_of(spec, tensor))
    if role.endswith("bias"):
        # Of a state-space time step: softplus of it has to be small.
        return Content("uniform", -4.0, -1.0) if ".dt" in role else Content("normal", 0.0, 0.05)
    if role.startswith("norms.") or role in _NEAR_ONE:
        return Content("normal", 1.0, 0.05)
    if role == "attention.linear.a_log":
        return Content("uniform", 0.0, 1.5)
    if len(tensor.shape) < 2:
        # Frequencies and constants of activations are positive.
        positive = "inv" in role or role.startswith("other.a")
        return Content("uniform", 0.1, 1.0) if positive else Content("normal", 0.0, 0.05)
    return Content("normal", 0.0, (fact.inputs or tensor.shape[-1]) ** -0.5)


def _experts_of(spec: ModelSpec, tensor: FileTensor) -> int:
    assert tensor.layer is not None
    moe = moe_of(spec.block(spec.layout[tensor.layer]))
    assert moe is not None
    return moe.num_experts


# Names of scales end in one of these, whatever stands before.
_SCALES = ("scale", "scales", "scale_inv", "SCB")


def _quantized_content(tensor: FileTensor, fact: _Fact, weight_format: WeightFormat) -> Content:
    """A part of a quantized matrix, told by the end of its name."""
    size = fact.inputs**-0.5
    part = tensor.name.rpartition(".")[2]
    match part:
        case "g_idx":
            assert isinstance(weight_format, GroupInt)
            whole = weight_format.group_size == -1
            return Content("groups", fact.inputs if whole else weight_format.group_size)
        case "weight_shape":
            return Content("values", values=(fact.outputs, fact.inputs))
        case "weight_format":
            return Content("values", values=(0,))
        case "bias":
            return Content("normal", 0.0, 0.05)
        case "input_scale" | "input_global_scale":
            return Content("uniform", 0.01, 0.02)
        case "weight_scale_2":
            return Content("uniform", size / _E2M1_STD, 1.2 * size / _E2M1_STD)
        case "weight_global_scale":
            return Content("uniform", _E2M1_STD / size, 1.2 * _E2M1_STD / size)
        case "absmax" | "nested_absmax" if tensor.dtype == "float32":
            return Content("uniform", size, 2 * size)
        case "quant_map":
            return Content("ramp", -1.0, 1.0)
        case "nested_quant_map":
            return Content("ramp", 0.0, 1.0)
        case _ if part.rpartition("_")[2] in _SCALES or part.endswith("_scale_inv"):
            return _scale_content(tensor, size, weight_format)
        case _ if tensor.dtype.startswith("float"):
            return Content("normal", 0.0, _FP8_STD)
        case _:
            return Content("bits")


def _scale_content(tensor: FileTensor, size: float, weight_format: WeightFormat) -> Content:
    """Scales that bring what is stored to deviation `size`."""
    match weight_format:
        case Nvfp4():
            # The matrix has a scale of its own beside.
            return Content("uniform", 0.5, 1.5)
        case Mxfp4():
            spread = _E2M1_STD
        case BitsAndBytesInt8():
            spread = _INT8_STD / 127.0
        case Int8PerChannel():
            spread = _INT8_STD
        case GroupInt() | PackQuantized():
            spread = _INT4_STD * 2.0 ** (weight_format.bits - 4)
        case _:
            spread = _FP8_STD
    if tensor.dtype == "float8_e8m0":
        return Content("exponents", round(127 + log2(size / spread)))
    return Content("uniform", 0.5 * size / spread, 1.5 * size / spread)


def _quant_state(tensor: FileTensor, fact: _Fact, weight_format: BitsAndBytes4Bit) -> PlannedTensor:
    """The JSON text beside a matrix of bitsandbytes, which no engine keeps on the device.

    Of stacked experts one text says what each of them is.
    """
    size = prod(tensor.shape[-2:])
    state = {
        "quant_type": "nf4",
        "blocksize": weight_format.block_elements,
        "dtype": "bfloat16",
        "shape": [2 * size // fact.inputs, fact.inputs],
    }
    if weight_format.nested:
        state |= {"nested_blocksize": weight_format.nested_block_elements, "nested_offset": 0.0}
    text = json.dumps(state).encode()
    name = f"{tensor.name}.quant_state.bitsandbytes__nf4"
    return PlannedTensor(name, "U8", (len(text),), Content("values", values=tuple(text)))


# --- Writing --------------------------------------------------------------------------------------


def write_synthetic(
    spec: ModelSpec,
    stored: Sequence[StoredEntry],
    selection: Selection,
    folder: Path,
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Synthetic:
    """Write the selection's layers as a checkpoint into `folder`; all or nothing.

    progress  called with the bytes written since the last call
    Raises EnvironmentProblem when the disk is full, InvalidInputError for a folder with weights.
    """
    shards = plan_synthetic(spec, stored, selection)
    names = [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    total = sum(tensor.size_bytes for shard in shards for tensor in shard)
    begin = time.perf_counter()
    with new_files(folder, total, "*.safetensors", INDEX_NAME) as written:
        pools = _Pools(seed)
        for name, shard in zip(names, shards, strict=True):
            _write_file(folder / name, shard, pools, written, progress)
        index = {
            "metadata": {"total_size": total},
            "weight_map": {t.name: n for n, s in zip(names, shards, strict=True) for t in s},
        }
        written.append(folder / INDEX_NAME)
        written[-1].write_text(json.dumps(index), encoding="utf-8")
    return Synthetic(folder, tuple(names), total, time.perf_counter() - begin)


@contextmanager
def new_files(folder: Path, total: int, *weights: str) -> Iterator[list[Path]]:
    """Files of so many bytes go into a folder, all or nothing: what is listed is removed on errors.

    weights  patterns of names that must not be there already
    Raises EnvironmentProblem when the disk is full, InvalidInputError for a folder with weights.
    """
    created = not folder.exists()
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_room(folder, total, weights)
        yield written
    except BaseException as error:
        # Ctrl-C too: a part of a checkpoint is worth nothing and may take hundreds of GB.
        _remove(written, folder if created else None)
        if isinstance(error, OSError):
            raise _disk_problem(folder, error) from error
        raise


def _check_room(folder: Path, total: int, weights: Sequence[str]) -> None:
    if any(True for pattern in weights for _ in folder.glob(pattern)):
        raise InvalidInputError(f"{folder}: holds weights already", "name an empty folder")
    free = shutil.disk_usage(folder).free
    if free < total + _SPARE_BYTES:
        raise EnvironmentProblem(
            f"{folder}: {format_bytes(total)} are to be written and {format_bytes(free)} are free",
            "choose fewer layers with --layers, or another folder",
        )


def _disk_problem(folder: Path, error: OSError) -> EnvironmentProblem:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentProblem(
            f"{folder}: the disk is full; what had been written was removed",
            "choose fewer layers with --layers, or another folder",
        )
    return EnvironmentProblem(f"{folder}: cannot be written ({error.strerror})")


def _remove(written: list[Path], created: Path | None) -> None:
    for path in written:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    if created is not None:
        with suppress(OSError):
            created.rmdir()


def _write_file(
    path: Path,
    tensors: Sequence[PlannedTensor],
    pools: _Pools,
    written: list[Path],
    progress: Callable[[int], None] | None,
) -> None:
    """One shard, under another name until it is whole."""
    partial = path.with_name(path.name + ".partial")
    written.append(partial)
    with partial.open("wb", buffering=MIB) as stream:
        stream.write(_header(tensors))
        for tensor in tensors:
            for piece in pools.pieces(tensor):
                stream.write(piece)
                if progress is not None:
                    progress(len(piece))
    written.append(path)
    partial.replace(path)


def _header(tensors: Sequence[PlannedTensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        end = at + tensor.size_bytes
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text = text.ljust(round_up(len(text), _HEADER_ALIGNMENT))
    return struct.pack("<Q", len(text)) + text


class _Pools:
    """Blocks of random numbers by content and type, and the pieces of them that fill a tensor."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.blocks: dict[tuple[str, Content], memoryview] = {}

    def pieces(self, tensor: PlannedTensor) -> Iterator[memoryview | bytes]:
        """All bytes of a tensor, piece by piece."""
        exact = _exact(tensor)
        if exact is not None:
            yield exact
            return
        block = self._block(tensor)
        item = DTYPES[tensor.dtype][1] // 8
        left = tensor.size_bytes
        while left:
            # Any offset but the very end, so that a piece is never tiny for nothing.
            at = self.random.randrange(len(block) // item // 2) * item
            piece = block[at : at + left]
            left -= len(piece)
            yield piece

    def _block(self, tensor: PlannedTensor) -> memoryview:
        key = (tensor.dtype, tensor.content)
        if key not in self.blocks:
            seed = zlib.crc32(repr(key).encode(), self.seed & 0xFFFFFFFF)
            self.blocks[key] = _random_block(tensor.dtype, tensor.content, seed)
        return self.blocks[key]


def _exact(tensor: PlannedTensor) -> bytes | None:
    """The bytes of a tensor that is not random."""
    content, count = tensor.content, prod(tensor.shape)
    match content.kind:
        case "groups":
            row = tensor.shape[-1]
            return array("i", (i % row // int(content.a) for i in range(count))).tobytes()
        case "modulo":
            return array("i", (i % int(content.a) for i in range(count))).tobytes()
        case "values":
            code = {"U8": "B", "I64": "q"}[tensor.dtype]
            return array(code, content.values).tobytes()
        case "ramp":
            step = (content.b - content.a) / max(count - 1, 1)
            return array("f", (content.a + i * step for i in range(count))).tobytes()
        case _:
            return None


def _random_block(dtype: str, content: Content, seed: int) -> memoryview:
    import torch

    generator = torch.Generator().manual_seed(seed)
    buffer = bytearray(_POOL_BYTES)
    raw = torch.frombuffer(buffer, dtype=torch.uint8)
    match content.kind:
        case "bits":
            raw.copy_(torch.randint(0, 256, raw.shape, generator=generator, dtype=torch.uint8))
        case "exponents":
            low = max(1, int(content.a) - 1)
            shape = raw.shape
            raw.copy_(torch.randint(low, low + 3, shape, generator=generator, dtype=torch.uint8))
        case _:
            target = raw.view(_float_type(dtype))
            numbers = torch.empty(target.shape, dtype=torch.float32)
            if content.kind == "normal":
                numbers.normal_(content.a, content.b, generator=generator)
            else:
                numbers.uniform_(content.a, content.b, generator=generator)
            limit = _FP8_MAX.get(dtype)
            target.copy_(numbers if limit is None else numbers.clamp_(-limit, limit))
    return memoryview(buffer)


def _float_type(dtype: str) -> torch.dtype:
    import torch

    known = {
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
    }
    if dtype not in known:
        raise UnsupportedError(f"no random numbers of type {dtype} are made")
    return known[dtype]
