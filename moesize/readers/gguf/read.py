"""A GGUF file -> ModelSpec: its config, every tensor compared, and the types that it stores."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moesize.core.errors import InvalidInputError, UnsupportedError
from moesize.core.gguf_view import gguf_architecture
from moesize.core.model_spec import CheckpointQuantization, Source, TensorTypes
from moesize.core.quantization import find_scheme
from moesize.core.weight_formats import BLOCK_TYPES
from moesize.files import listed
from moesize.readers.gguf.config import config_of
from moesize.readers.gguf.header import open_gguf, with_advice
from moesize.readers.gguf.tensors import expected_tensors, match_shapes
from moesize.readers.hf.read import spec_from_config

if TYPE_CHECKING:
    from pathlib import Path

    from moesize.core.model_spec import ModelSpec
    from moesize.readers.gguf.header import GgufFile
    from moesize.readers.gguf.tensors import ExpectedTensor

_MAX_TITLE = 80
_SHOWN = 4
_UNUSED_KV = "other.unused_kv"
_KV_B = "blk.0.attn_kv_b.weight"
_UNDIVIDED = (
    "a file of before April 2025, with attn_kv_b in one piece: llama.cpp caches keys and values of "
    "every head for it; converted again it keeps the latent alone"
)


def spec_from_gguf(path: Path) -> ModelSpec:
    """The model that a file (any part of a divided one) holds, with the type of every tensor.

    Raises InvalidInputError for files that are not what they should be, UnsupportedError for
    architectures that are not known and tensors that the architecture does not have.
    """
    return spec_of(open_gguf(path))


def spec_of(file: GgufFile) -> ModelSpec:
    """The same of an opened file."""
    try:
        return _spec_of(file)
    except InvalidInputError as error:
        raise with_advice(error) from error


def _spec_of(file: GgufFile) -> ModelSpec:
    path = file.paths[0]
    config = config_of(file)
    wrapper = config.pop("wrapper", "")
    spec = spec_from_config(config, file=str(path), name=_title(file))
    if wrapper:
        spec = replace(spec, model_type=wrapper, text_type=spec.model_type)
    if gguf_architecture(spec) != file.architecture:
        raise UnsupportedError(
            f"{path}: {file.architecture} is read as {spec.model_type}, which llama.cpp calls "
            f"{gguf_architecture(spec)}",
            "name the model and the type instead, such as --quant Q4_K_M",
        )
    if not _has_unused_kv(spec, file):
        rest = tuple(item for item in spec.stored_extra if item.role != _UNUSED_KV)
        spec = replace(spec, stored_extra=rest)
    if _KV_B in file.tensors:
        # How it is stored decides what else is: told before the tensors are listed.
        kept = TensorTypes(name=_KV_B.split(".", 2)[2], type=file.tensors[_KV_B].type.name)
        own = CheckpointQuantization(method="gguf", rules=(), tensor_types=(kept,))
        spec = replace(spec, quantization=own, notes=(*spec.notes, _UNDIVIDED))
    # The plainest scheme there is: names and shapes are the same in all.
    expected = list(expected_tensors(spec, find_scheme("f16")))
    pairs = _paired(file, expected)
    elements = sum(_elements(file, name) for name in file.tensors)
    return replace(
        spec,
        quantization=CheckpointQuantization(
            method="gguf",
            rules=(),
            file_type=file.file_type,
            tensor_types=tuple(_types(file, expected, pairs)),
        ),
        source=Source(
            config=path.name,
            checked="",
            total_elements=elements,
            total_source="every tensor of its header",
        ),
    )


def _has_unused_kv(spec: ModelSpec, file: GgufFile) -> bool:
    """Keys and values of layers that read another layer's cache: published, of no use."""
    for layer, name in enumerate(spec.layout):
        if any(getattr(mixer, "shares_kv", False) for mixer in spec.block(name).mixers):
            return f"blk.{layer}.attn_k.weight" in file.tensors
    return True


def _elements(file: GgufFile, name: str) -> int:
    tensor = file.tensors[name]
    total = 1
    for length in tensor.shape:
        total *= length
    return total


def _title(file: GgufFile) -> str:
    """What the file calls its model, or its own name without the number of its part."""
    said = " ".join(file.name.split())
    if said and said.isprintable() and len(said) <= _MAX_TITLE:
        return said.replace("/", " ")
    stem = file.paths[0].name.removesuffix(".gguf")
    name, _, tail = stem.rpartition("-00001-of-")
    shown = name if name and tail.isdigit() else stem
    return shown[:_MAX_TITLE] if shown.isprintable() else "model"


def _paired(file: GgufFile, expected: list[ExpectedTensor]) -> dict[str, str]:
    """Expected name -> name in the file. Raises UnsupportedError with the first differences."""
    pairs, problems = match_shapes(file, expected)
    if problems:
        more = f"; and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
        raise UnsupportedError(
            f"{file.paths[0]}: is not the {file.architecture} that moesize knows: "
            + "; ".join(problems[:_SHOWN])
            + more,
            "name the model and the type instead, such as --quant Q4_K_M; converted by another "
            "program, or by a llama.cpp of another year? convert it again",
        )
    return pairs


def _types(
    file: GgufFile, expected: list[ExpectedTensor], pairs: dict[str, str]
) -> list[TensorTypes]:
    """The type of each tensor of the inventory; equal ones of a layer must be of one type."""
    found: dict[str, dict[str, list[int]]] = {}
    seen: dict[tuple[str, int | None], str] = {}
    for tensor in expected:
        name = pairs[tensor.name]
        kind = file.tensors[name].type.name
        kind = "F32" if kind == "I32" and tensor.type.name == "I32" else kind
        if kind not in BLOCK_TYPES:
            raise UnsupportedError(
                f"{file.paths[0]}: {listed([name])} is of type {kind}, which no plan counts",
                "convert the model again",
            )
        before = seen.setdefault((tensor.stored_as, tensor.block), kind)
        if before != kind:
            raise UnsupportedError(
                f"{file.paths[0]}: {listed([name])} is of type {kind}, and its like in the same "
                f"layer of type {before}",
                "quantize the model again, with one type for both",
            )
        layers = found.setdefault(tensor.stored_as, {}).setdefault(kind, [])
        if tensor.block is not None and tensor.block not in layers[-1:]:
            layers.append(tensor.block)
    return [
        TensorTypes(name=name, type=kind, layers=tuple(sorted(set(layers))))
        for name, kinds in found.items()
        for kind, layers in kinds.items()
    ]
