"""Catalogue models cut down to what a test can write: few layers, few experts, a small vocabulary.

Hidden sizes, heads, formats and names stay those of the published model.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from running import ROOT

from moesize.catalog import load_spec
from moesize.core.feed_forward import FeedForward, MoeMlp
from moesize.core.model_spec import ModelSpec

VOCABULARY = 512
_MEMORY = Path("/dev/shm")
_ENOUGH_BYTES = 4 << 30


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards, in memory where the system has such a place.

    Tests write hundreds of MB; pytest would keep those of its last three runs on the disk.
    """
    fast = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ENOUGH_BYTES
    with TemporaryDirectory(dir=_MEMORY if fast else None) as folder:
        yield Path(folder)


def small(name: str, *, experts: int = 8) -> ModelSpec:
    """A model of the catalogue with so many experts and a vocabulary of 512."""
    spec = load_spec(ROOT / "model_specs" / f"{name}.yaml")
    embedding = replace(
        spec.embedding,
        vocab_size=VOCABULARY,
        head_vocab_size=VOCABULARY if spec.embedding.head_vocab_size else 0,
    )
    blocks = tuple(
        replace(b, feed_forwards=tuple(_fewer(part, experts) for part in b.feed_forwards))
        for b in spec.blocks
    )
    return replace(spec, embedding=embedding, blocks=blocks)


def _fewer(part: FeedForward, experts: int) -> FeedForward:
    if not isinstance(part, MoeMlp):
        return part
    return replace(
        part, num_experts=experts, experts_per_token=min(part.experts_per_token, experts)
    )


def header_bytes(entries: Any) -> bytes:
    """Length and text of a header, whatever it says."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    """One tensor of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write_file(path: Path, entries: Any, data: bytes = b"") -> Path:
    """A file with that header and data, lying or not."""
    path.write_bytes(header_bytes(entries) + data)
    return path
