"""A GGUF file of random blocks with a model's names, shapes and types. Needs no torch.

It is a real file, but it has no vocabulary, and scales are as random as everything else: it is
made to be measured, not to be run.
"""

from __future__ import annotations

import random
import struct
import time
from typing import TYPE_CHECKING

from moesize.core.errors import InvalidInputError
from moesize.core.gguf import TENSOR_ALIGNMENT_BYTES
from moesize.core.gguf_view import gguf_architecture, gguf_tensors
from moesize.core.units import MIB, round_up
from moesize.readers.gguf.header import FILE_TYPES, GGML_NUMBERS, MAGIC, STRING, VERSIONS
from moesize.readers.gguf.tensors import ExpectedTensor, expected_tensors, of_layers
from moesize.verify.synthetic import Synthetic, new_files

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from moesize.core.model_spec import ModelSpec
    from moesize.core.quantization import Scheme

_POOL_BYTES = 8 * MIB
_UINT32 = 4
# GGML_QNT_VERSION of ggml.h.
_QUANTIZATION_VERSION = 2


def write_synthetic_gguf(
    spec: ModelSpec,
    scheme: Scheme | None,
    layers: Collection[int],
    folder: Path,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Synthetic:
    """Write the layers and what stands outside of them as one file into `folder`; all or nothing.

    scheme    None: the types that the spec has of its own, of the GGUF file it was read from
    progress  called with the bytes written since the last call
    Raises EnvironmentProblem when the disk is full, InvalidInputError for a folder with weights.
    """
    tensors = of_layers(expected_tensors(spec, scheme), layers)
    if not tensors:
        raise InvalidInputError("no tensors are selected")
    header = _header(spec, scheme, tensors)
    total = sum(tensor.size_bytes for tensor in tensors)
    name = file_name(spec, scheme)
    begin = time.perf_counter()
    with new_files(folder, total + len(header), "*.gguf") as written:
        path = folder / name
        partial = path.with_name(path.name + ".partial")
        written.append(partial)
        pool = _Pool(seed)
        with partial.open("wb", buffering=MIB) as stream:
            stream.write(header)
            for tensor in tensors:
                for piece in pool.pieces(tensor.size_bytes):
                    stream.write(piece)
                    if progress is not None:
                        progress(len(piece))
                padded = round_up(tensor.size_bytes, TENSOR_ALIGNMENT_BYTES)
                stream.write(bytes(padded - tensor.size_bytes))
        written.append(path)
        partial.replace(path)
    return Synthetic(folder, (name,), total, time.perf_counter() - begin)


def file_type(spec: ModelSpec, scheme: Scheme | None) -> str:
    """`Q4_K_M`; empty for types of a file that says of itself nothing that is known."""
    if scheme is not None:
        return scheme.gguf_file_type
    return spec.quantization.file_type if spec.quantization is not None else ""


def file_name(spec: ModelSpec, scheme: Scheme | None) -> str:
    """`mixtral-8x7b-Q4_K_M.gguf`."""
    model = "".join(c if c.isalnum() or c in "-._" else "-" for c in spec.id).strip(".")[:200]
    return f"{model or 'model'}-{file_type(spec, scheme) or 'own'}.gguf"


def _header(spec: ModelSpec, scheme: Scheme | None, tensors: Sequence[ExpectedTensor]) -> bytes:
    architecture = gguf_architecture(spec)
    # Of the whole model: the types of its tensors depend on it.
    num_blocks = gguf_tensors(spec)[0].num_layers
    pairs = [
        _pair_text("general.architecture", architecture),
        _pair_text("general.name", spec.title),
        _pair_number("general.quantization_version", _QUANTIZATION_VERSION),
        _pair_number(f"{architecture}.block_count", num_blocks),
    ]
    if number := FILE_TYPES.get(file_type(spec, scheme)):
        pairs.append(_pair_number("general.file_type", number))
    out = MAGIC + struct.pack("<IQQ", VERSIONS[-1], len(tensors), len(pairs)) + b"".join(pairs)
    offset = 0
    infos = []
    for tensor in tensors:
        shape = tensor.shape
        infos.append(
            _text(tensor.name)
            + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            + struct.pack("<IQ", GGML_NUMBERS[tensor.type.name], offset)
        )
        offset += round_up(tensor.size_bytes, TENSOR_ALIGNMENT_BYTES)
    out += b"".join(infos)
    return out.ljust(round_up(len(out), TENSOR_ALIGNMENT_BYTES), b"\0")


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _pair_text(key: str, value: str) -> bytes:
    return _text(key) + struct.pack("<I", STRING) + _text(value)


def _pair_number(key: str, value: int) -> bytes:
    return _text(key) + struct.pack("<II", _UINT32, value)


class _Pool:
    """Random bytes, made once, and written again and again from random places on."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.block = memoryview(self.random.randbytes(_POOL_BYTES))

    def pieces(self, size: int) -> Iterator[memoryview]:
        """So many bytes."""
        while size:
            at = self.random.randrange(_POOL_BYTES // 2)
            piece = self.block[at : at + size]
            size -= len(piece)
            yield piece
