"""GGUF files as llama.cpp's converter makes them (golden/gguf_headers.json), written for tests."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np

_GOLDEN = Path(__file__).parent / "golden" / "gguf_headers.json"
_ALIGNMENT = 32


@dataclass(frozen=True)
class Header:
    """What a file says: metadata by key (type, type of entries, value), tensors by name."""

    id: str
    config: dict[str, Any]
    metadata: dict[str, tuple[int, int | None, Any]]
    tensors: dict[str, tuple[str, tuple[int, ...]]]

    @property
    def architecture(self) -> str:
        """GGUF's name of it."""
        return str(self.metadata["general.architecture"][2])


@cache
def _golden() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(_GOLDEN.read_text(encoding="utf-8"))
    return loaded


def converted() -> list[str]:
    """Ids of the tiny models that were converted."""
    return [item["id"] for item in _golden()["files"]]


def published() -> list[str]:
    """Catalogue ids of the models of whose config the metadata is known."""
    return [item["id"] for item in _golden()["published"]]


def published_metadata(model: str) -> dict[str, tuple[int, int | None, Any]]:
    """The metadata of a published config.json."""
    item = next(item for item in _golden()["published"] if item["id"] == model)
    return {key: tuple(value) for key, value in item["metadata"].items()}


def header(name: str) -> Header:
    """One converted model."""
    item = next(item for item in _golden()["files"] if item["id"] == name)
    tensors = {}
    for end, kind, shape, blocks in item["tensors"]:
        for block in blocks or (None,):
            full = end if block is None else f"blk.{block}.{end}"
            tensors[full] = (kind, tuple(shape))
    metadata = {key: tuple(value) for key, value in item["metadata"].items()}
    return Header(name, item["config"], metadata, tensors)


def write_with_package(head: Header, path: Path) -> Path:
    """The file as the gguf package writes it, of zeros."""
    writer = gguf.GGUFWriter(path, head.architecture)
    for key, (kind, inner, value) in head.metadata.items():
        if key != "general.architecture":
            of = None if inner is None else gguf.GGUFValueType(inner)
            writer.add_key_value(key, value, gguf.GGUFValueType(kind), of)
    writer.add_array("tokenizer.ggml.tokens", [f"token {i}" for i in range(96)])
    for name, (kind, shape) in head.tensors.items():
        dtype = gguf.GGMLQuantizationType[kind]
        size = gguf.quant_shape_to_byte_shape(tuple(reversed(shape)), dtype)
        writer.add_tensor(name, np.zeros(size, dtype=np.uint8), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# --- Large files: the header, and a hole in the place of the data ---------------------------------

_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def text(value: str | bytes) -> bytes:
    """A string with its length."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, inner: int | None, value: Any) -> bytes:
    """A key and its value."""
    out = text(key) + struct.pack("<I", kind)
    if kind == _STRING:
        return out + text(value)
    if kind != _ARRAY:
        return out + struct.pack("<" + _CODES[kind], value)
    inner = 5 if inner is None else inner
    out += struct.pack("<IQ", inner, len(value))
    if inner == _STRING:
        return out + b"".join(map(text, value))
    return out + struct.pack(f"<{len(value)}{_CODES[inner]}", *value)


def write_sparse(
    path: Path,
    metadata: Mapping[str, tuple[int, int | None, Any]],
    tensors: Iterable[tuple[str, tuple[int, ...], int, int]],
    *,
    vocabulary: int = 8,
) -> Path:
    """A file whose tensors (name, shape, number of the type, bytes) take no room on the disk."""
    tokens = [f"token {i}" for i in range(vocabulary)]
    pairs = [pair(key, *value) for key, value in metadata.items()]
    pairs += [
        pair("tokenizer.ggml.tokens", _ARRAY, _STRING, tokens),
        pair("tokenizer.ggml.token_type", _ARRAY, 5, [1] * vocabulary),
        pair("tokenizer.ggml.merges", _ARRAY, _STRING, [f"a {token}" for token in tokens]),
    ]
    infos = []
    at = 0
    for name, shape, kind, size in tensors:
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        infos.append(text(name) + dims + struct.pack("<IQ", kind, at))
        at += -(-size // _ALIGNMENT) * _ALIGNMENT
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(pairs)) + b"".join(pairs + infos)
    head += bytes(-len(head) % _ALIGNMENT)
    with path.open("wb") as stream:
        stream.write(head)
        stream.truncate(len(head) + at)
    return path
