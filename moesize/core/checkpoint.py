"""How the files of a published checkpoint store each tensor.

Joins the inventory with the checkpoint's quantization rules (by module name and layer), or with a
what-if scheme (by role). The result is a list of entries with a weight format each, from which
file bytes and resident bytes both follow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod

from moesize.core.errors import InvalidInputError, UnsupportedError
from moesize.core.inventory import Entry, inventory
from moesize.core.model_spec import ModelSpec, QuantizationRule
from moesize.core.naming import module_name
from moesize.core.quantization import (
    BitsAndBytes4Bit,
    BitsAndBytesInt8,
    Component,
    Fp8Block,
    Fp8PerChannel,
    Fp8PerTensor,
    GroupInt,
    Int8PerChannel,
    Mxfp4,
    Mxfp8,
    Nvfp4,
    PackQuantized,
    Plain,
    Scheme,
    WeightFormat,
    number_bytes,
    scheme_format_for,
)
from moesize.core.tensors import Tensor

# A rule's `format` -> the weight format it stands for.
FORMATS: dict[str, Callable[[QuantizationRule], WeightFormat]] = {
    "fp8": lambda rule: Fp8PerTensor(static_input_scale=rule.static_input_scale),
    "fp8-channel": lambda rule: Fp8PerChannel(scale_dtype=rule.scale_dtype or "float32"),
    "fp8-block": lambda rule: Fp8Block(
        block_rows=rule.block_rows or 128,
        block_cols=rule.block_cols or 128,
        scale_dtype=rule.scale_dtype or "float32",
    ),
    "int8-channel": lambda rule: Int8PerChannel(scale_dtype=rule.scale_dtype or "float32"),
    "gptq": lambda rule: GroupInt(
        bits=rule.bits,
        group_size=rule.group_size,
        symmetric=rule.symmetric,
        act_order=rule.act_order,
    ),
    # AutoRound's own packing of the GPTQ layout leaves g_idx out.
    "auto-round": lambda rule: GroupInt(
        bits=rule.bits,
        group_size=rule.group_size,
        symmetric=rule.symmetric,
        g_idx_stored=False,
    ),
    "awq": lambda rule: GroupInt(
        bits=rule.bits,
        group_size=rule.group_size,
        symmetric=False,
        g_idx_stored=False,
        packed_along="out",
    ),
    "pack": lambda rule: PackQuantized(
        bits=rule.bits,
        group_size=rule.group_size,
        symmetric=rule.symmetric,
        scale_dtype=rule.scale_dtype or "bfloat16",
    ),
    "bnb-4bit": lambda rule: BitsAndBytes4Bit(nested=rule.nested),
    "bnb-int8": lambda _: BitsAndBytesInt8(),
    "mxfp4": lambda _: Mxfp4(),
    "mxfp8": lambda _: Mxfp8(),
    "nvfp4": lambda rule: Nvfp4(static_input_scale=rule.static_input_scale),
}

# Matrices that no published method quantizes, whatever its list says: engines build them without a
# quantization method (vLLM 0.32.0: gates are ReplicatedLinear with quant_config=None).
_NEVER = (
    "embedding",
    "router",
    "norms",
    "shared_experts.sigmoid_gate",
    "attention.indexer.weights",
    "other.mtp_projection",
    "other.attention_residual",
    "attention.indexer.compressor",
    "attention.compressor",
    "attention.linear.conv",
    "attention.linear.ba",
    "attention.linear.a",
    "attention.linear.b",
)


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An inventory entry and how it is stored.

    weight_format  None: element by element in `dtype`
    """

    entry: Entry
    weight_format: WeightFormat | None
    dtype: str

    def components(self, out_features: int, in_features: int) -> tuple[Component, ...]:
        """What one matrix of this entry is stored as in a file."""
        assert self.weight_format is not None
        return self.weight_format.components(out_features, in_features)

    @property
    def file_bytes(self) -> int:
        """Bytes of all its copies in all layers, scales included."""
        tensor, count = self.entry.tensor, self.entry.count
        if self.weight_format is None or isinstance(self.weight_format, Plain):
            return number_bytes(self.dtype, tensor.elements) * count
        rows, columns = matrix_shape(tensor)
        return self.weight_format.matrix_bytes(rows, columns) * tensor.copies * count

    @property
    def stored_elements(self) -> int:
        """Elements of all its stored tensors: packed words, scales, zero points."""
        tensor, count = self.entry.tensor, self.entry.count
        if self.weight_format is None or isinstance(self.weight_format, Plain):
            return tensor.elements * count
        parts = self.weight_format.components(*matrix_shape(tensor))
        return sum(part.elements for part in parts) * tensor.copies * count

    @property
    def scale_bytes(self) -> int:
        """The part of `file_bytes` that is not the packed weight itself."""
        if self.weight_format is None or isinstance(self.weight_format, Plain):
            return 0
        tensor = self.entry.tensor
        rows, columns = matrix_shape(tensor)
        parts = self.weight_format.components(rows, columns)
        extra = sum(part.size_bytes for part in parts if part.name != "weight")
        return extra * tensor.copies * self.entry.count


def matrix_shape(tensor: Tensor) -> tuple[int, int]:
    """(out_features, in_features); further dimensions count as inputs."""
    return tensor.shape[0], prod(tensor.shape[1:])


def published(spec: ModelSpec) -> tuple[StoredEntry, ...]:
    """The checkpoint as published. Raises UnsupportedError for an unknown format."""
    return _remember(spec, "checkpoint", lambda: tuple(_published(spec)))


def stored_bytes(spec: ModelSpec) -> int:
    """Bytes of all tensors of the published files: `total_size` of a safetensors index."""
    return sum(item.file_bytes for item in published(spec))


def hub_elements(spec: ModelSpec, *, scales: bool = True) -> int:
    """Parameters of the published files as the Hugging Face hub counts them.

    `scales` True: elements of all stored tensors of at least one dimension. False: weights only,
    packed ones unpacked. The hub has done both, depending on method and date: the second for GPTQ,
    AWQ, gpt-oss and DeepSeek-V4, the first for most FP8 and NVFP4 files.
    """
    if not scales:
        return sum(item.entry.elements for item in published(spec))
    # compressed-tensors writes single scales as vectors of one element, other tools as scalars.
    scalars = spec.quantization is not None and spec.quantization.method != "compressed-tensors"
    total = 0
    for item in published(spec):
        total += item.stored_elements
        if scalars and item.weight_format is not None:
            parts = item.weight_format.components(*matrix_shape(item.entry.tensor))
            single = sum(part.elements == 1 and part.name != "weight" for part in parts)
            total -= single * item.entry.tensor.copies * item.entry.count
    return total


def with_scheme(spec: ModelSpec, scheme: Scheme, engine: str = "") -> tuple[StoredEntry, ...]:
    """The model as `scheme` would store it (a what-if; the published format plays no part)."""
    return _remember(
        spec, f"{engine}/{scheme.name}", lambda: tuple(_with_scheme(spec, scheme, engine))
    )


def _remember(
    spec: ModelSpec, key: str, make: Callable[[], tuple[StoredEntry, ...]]
) -> tuple[StoredEntry, ...]:
    # The spec carries its own results: a global cache would have to hash it or keep it alive.
    cache: dict[str, tuple[StoredEntry, ...]] = spec.__dict__.setdefault("_stored", {})
    if key not in cache:
        cache[key] = make()
    return cache[key]


def _published(spec: ModelSpec) -> Iterator[StoredEntry]:
    quantization = spec.quantization
    rules = [] if quantization is None else [_CompiledRule(rule) for rule in quantization.rules]
    for entry in inventory(spec):
        tensor = entry.tensor
        dtype = tensor.dtype or spec.dtype
        if quantization is None or not _may_be_quantized(entry, quantization.quantized_head):
            yield StoredEntry(entry, None, dtype)
        elif entry.section == "tower":
            weight_format = rules[-1].weight_format if quantization.towers else None
            if quantization.towers:
                weight_format = _first_match(rules, entry.name.removesuffix(".weight"))
            yield StoredEntry(entry, weight_format, dtype)
        else:
            yield from _by_layer(spec, entry, rules, dtype)


def _may_be_quantized(entry: Entry, quantized_head: bool) -> bool:
    tensor = entry.tensor
    # What has a type of its own (float32 mixing matrices of DeepSeek-V4) was left alone on purpose.
    if not tensor.matmul or tensor.dtype or len(tensor.shape) < 2:
        return False
    if tensor.group == "lm_head":
        return quantized_head
    return not any(tensor.role == role or tensor.role.startswith(role + ".") for role in _NEVER)


def _by_layer(
    spec: ModelSpec, entry: Entry, rules: list[_CompiledRule], dtype: str
) -> Iterator[StoredEntry]:
    """One entry for each format that its layers have."""
    template = module_name(spec.naming, entry.tensor.role, entry.section).replace("{expert}", "0")
    if not entry.layers:
        yield StoredEntry(entry, _first_match(rules, template), dtype)
        return
    by_format: dict[WeightFormat | None, list[int]] = {}
    for layer in entry.layers:
        name = template.replace("{layer}", str(layer))
        by_format.setdefault(_first_match(rules, name), []).append(layer)
    for weight_format, layers in by_format.items():
        yield StoredEntry(replace(entry, layers=tuple(layers)), weight_format, dtype)


class _CompiledRule:
    """A rule with its patterns compiled once."""

    def __init__(self, rule: QuantizationRule) -> None:
        self.pattern = compile_pattern("|".join(f"(?:{p})" for p in rule.modules))
        if rule.format == "keep":
            self.weight_format: WeightFormat | None = None
        elif rule.format in FORMATS:
            self.weight_format = FORMATS[rule.format](rule)
        else:
            raise UnsupportedError(
                f"checkpoint format {rule.format!r} is not known",
                f"known formats: keep, {', '.join(FORMATS)}",
            )


def _first_match(rules: list[_CompiledRule], name: str) -> WeightFormat | None:
    plain = plain_name(name)
    for rule in rules:
        if rule.pattern.search(plain) or rule.pattern.search(name):
            return rule.weight_format
    return None


# Modules that only wrap the language model. Configs, engines and files disagree about them.
_WRAPPER = re.compile(r"(?:(?:model|language_model|text_model|llm|backbone|transformer)\.)+")


def plain_name(name: str) -> str:
    """A module name without the wrappers in front: `layers.0.mlp`, whatever file it comes from."""
    found = _WRAPPER.match(name)
    return name[found.end() :] if found else name


_MAX_PATTERN_LENGTH = 1 << 17
_MAX_OPEN_QUANTIFIERS = 3
_CHARACTER_CLASS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]")


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern of a checkpoint, which may be hostile.

    Only patterns that cannot blow up are taken: no repeated group, and at most three open-ended
    quantifiers in one alternative. Raises InvalidInputError.
    """
    shown = pattern if len(pattern) <= 60 else pattern[:57] + "..."
    if len(pattern) > _MAX_PATTERN_LENGTH:
        raise InvalidInputError(f"the pattern {shown!r} is {len(pattern):,} characters long")
    bare = _CHARACTER_CLASS.sub("x", pattern)
    if re.search(r"\)[*+{]", bare) or _open_quantifiers(bare) > _MAX_OPEN_QUANTIFIERS:
        raise InvalidInputError(
            f"the pattern {shown!r} could take very long to match",
            "repeated groups and more than three of * + {} in a row are not taken",
        )
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InvalidInputError(
            f"the pattern {shown!r} is no regular expression: {error}"
        ) from error


def _with_scheme(spec: ModelSpec, scheme: Scheme, engine: str) -> Iterator[StoredEntry]:
    for entry in inventory(spec):
        tensor = entry.tensor
        dtype = tensor.dtype or _serving_dtype(spec, scheme)
        if isinstance(scheme.weight_format, Plain) or not tensor.matmul:
            yield StoredEntry(entry, None, dtype)
        else:
            weight_format = scheme_format_for(scheme, tensor.role, tensor.shape, engine=engine)
            yield StoredEntry(entry, weight_format, dtype)


def _serving_dtype(spec: ModelSpec, scheme: Scheme) -> str:
    """What stays unquantized is held in this type; a plain scheme names it."""
    if isinstance(scheme.weight_format, Plain):
        return scheme.weight_format.dtype
    return "bfloat16" if spec.dtype == "float32" else spec.dtype


def _open_quantifiers(pattern: str) -> int:
    """Most quantifiers that one path through the alternatives of a pattern can pass."""
    stack = [(0, 0)]  # (on the current alternative, most on an earlier one) of each open group
    for char in pattern:
        here, most = stack[-1]
        if char == "(":
            stack.append((0, 0))
        elif char == "|":
            stack[-1] = (0, max(here, most))
        elif char == ")" and len(stack) > 1:
            stack.pop()
            stack[-1] = (stack[-1][0] + max(here, most), stack[-1][1])
        elif char in "*+{":
            stack[-1] = (here + 1, most)
    return max(stack[-1])
