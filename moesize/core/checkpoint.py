"""How the files of a published checkpoint store each tensor.

Joins the inventory with the checkpoint's quantization rules (by module name and layer), or with a
what-if scheme (by role). The result is a list of entries with a weight format each, from which
file bytes and resident bytes both follow.
"""

from __future__ import annotations

import re
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, TypeVar

from moesize.core.errors import InvalidInputError, UnsupportedError
from moesize.core.inventory import Entry, inventory
from moesize.core.quantization import Scheme, scheme_format_for
from moesize.core.records import dataclass
from moesize.core.weight_formats import (
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
    WeightFormat,
    number_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from moesize.core.model_spec import ModelSpec, QuantizationRule
    from moesize.core.tensors import Tensor

_T = TypeVar("_T")


def _gptq(rule: QuantizationRule) -> WeightFormat:
    return GroupInt(
        bits=rule.bits,
        group_size=rule.group_size,
        symmetric=rule.symmetric,
        act_order=rule.act_order,
    )


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
    "gptq": _gptq,
    # AutoGPTQ gives every matrix a bias of zeros where the model has none.
    "gptq-bias": _gptq,
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
    "other.attention_residual",
    "attention.indexer.compressor",
    "attention.compressor",
    "attention.linear.conv",
    "attention.linear.ba",
    "attention.linear.a",
    "attention.linear.b",
)


# Parts that a matrix has once, however many projections were joined in it.
_ONCE = ("g_idx", "weight_shape", "quant_map", "nested_quant_map", "weight_format")


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An inventory entry and how it is stored.

    weight_format  None: element by element in `dtype`
    continues      the files hold it in one matrix with an earlier entry (q, k and v of Qwen)
    zero_bias      the files hold a bias of zeros that the model does not have
    """

    entry: Entry
    weight_format: WeightFormat | None
    dtype: str
    continues: bool = False
    zero_bias: bool = False

    def components(self, out_features: int, in_features: int) -> tuple[Component, ...]:
        """What one matrix of this entry is stored as in a file."""
        assert self.weight_format is not None
        parts = self.weight_format.components(out_features, in_features)
        if self.continues:
            parts = tuple(part for part in parts if part.name not in _ONCE and part.elements > 1)
        if self.zero_bias:
            size_bytes = number_bytes(_ZERO_BIAS_DTYPE, out_features)
            parts = (
                *parts,
                Component(
                    name="zero_bias",
                    dtype=_ZERO_BIAS_DTYPE,
                    elements=out_features,
                    size_bytes=size_bytes,
                ),
            )
        return parts

    @property
    def is_quantized(self) -> bool:
        """Whether it is stored as anything but plain elements."""
        return self.weight_format is not None and not isinstance(self.weight_format, Plain)

    @property
    def parts(self) -> tuple[Component, ...]:
        """The components of one of its matrices; empty when it is not quantized."""
        return self.components(*matrix_shape(self.entry.tensor)) if self.is_quantized else ()

    @property
    def matrices(self) -> int:
        """How many equal tensors it stands for."""
        return self.entry.tensor.copies * self.entry.count

    @property
    def file_bytes(self) -> int:
        """Bytes of all its copies in all layers, scales included."""
        if not self.is_quantized:
            return number_bytes(self.dtype, self.entry.tensor.elements) * self.entry.count
        return sum(part.size_bytes for part in self.parts) * self.matrices

    @property
    def stored_elements(self) -> int:
        """Elements of all its stored tensors: packed words, scales, zero points."""
        if not self.is_quantized:
            return self.entry.elements
        return sum(part.elements for part in self.parts) * self.matrices

    @property
    def scale_bytes(self) -> int:
        """The part of `file_bytes` that is not the packed weight itself."""
        extra = sum(part.size_bytes for part in self.parts if part.name != "weight")
        return extra * self.matrices


_ZERO_BIAS_DTYPE = "float16"


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
        return sum(
            item.entry.elements + item.zero_bias * item.entry.tensor.shape[0] * item.matrices
            for item in published(spec)
        )
    # compressed-tensors writes single scales as vectors of one element, other tools as scalars.
    scalars = spec.quantization is None or spec.quantization.method == "compressed-tensors"
    total = 0
    for item in published(spec):
        total += item.stored_elements
        if not scalars:
            total -= sum(part.elements == 1 for part in item.parts) * item.matrices
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


def keep(
    spec: ModelSpec, stored: tuple[StoredEntry, ...], what: Hashable, make: Callable[[], _T]
) -> _T:
    """`make()`, which depends on the spec, on `stored` and on `what` alone: found once per spec.

    Sweeps ask for the same in every plan, and looking at every entry is what takes their time.
    """
    cache: dict[Hashable, tuple[object, _T]] = spec.__dict__.setdefault("_of_stored", {})
    key = (id(stored), what)
    if key not in cache:
        # `stored` stands beside the answer, so that its identity stays taken.
        cache[key] = (stored, make())
    return cache[key][1]


def _published(spec: ModelSpec) -> Iterator[StoredEntry]:
    quantization = spec.quantization
    if quantization is None:
        for entry in inventory(spec):
            yield StoredEntry(entry, None, entry.tensor.dtype or spec.dtype)
        return
    if quantization.method == "gguf":
        from moesize.core.gguf_view import gguf_stored

        yield from gguf_stored(spec, None)
        return
    # The table of names is large; unquantized and what-if plans start without it.
    from moesize.core.naming import module_name

    rules = [_CompiledRule(rule) for rule in quantization.rules]
    biased = {
        (entry.section, entry.block, entry.tensor.role.removesuffix(".bias"))
        for entry in inventory(spec)
        if entry.tensor.role.endswith(".bias")
    }
    joined: set[tuple[str, str, tuple[int, ...]]] = set()
    for entry in inventory(spec):
        dtype = entry.tensor.dtype or spec.dtype
        if not _may_be_quantized(spec, entry, quantization.quantized_head):
            yield StoredEntry(entry, None, dtype)
            continue
        name = module_name(spec.naming, entry.tensor.role, entry.section).replace("{expert}", "0")
        if entry.section == "tower":
            name = entry.name.removesuffix(".weight")
            if not quantization.towers:
                yield StoredEntry(entry, None, dtype)
                continue
        has_bias = (entry.section, entry.block, entry.tensor.role) in biased
        for rule, part in _by_layer(spec, entry, rules, name):
            if rule is None or rule.weight_format is None:
                yield StoredEntry(part, None, dtype)
                continue
            key = (name, part.block, part.layers)
            yield StoredEntry(
                part,
                rule.weight_format,
                dtype,
                continues=key in joined,
                zero_bias=rule.zero_bias and not has_bias,
            )
            joined.add(key)


def _may_be_quantized(spec: ModelSpec, entry: Entry, quantized_head: bool) -> bool:
    tensor = entry.tensor
    # What has a type of its own (float32 mixing matrices of DeepSeek-V4) was left alone on purpose.
    if not tensor.matmul or tensor.dtype or len(tensor.shape) < 2:
        return False
    if tensor.group == "lm_head":
        return quantized_head
    if tensor.role == "other.mtp_projection":
        # Two FP8 matrices in DeepSeek-V4; in all other families it stays as it is.
        return spec.naming.partition("@")[0] == "deepseek_v4"
    return not any(tensor.role == role or tensor.role.startswith(role + ".") for role in _NEVER)


def _by_layer(
    spec: ModelSpec, entry: Entry, rules: list[_CompiledRule], template: str
) -> Iterator[tuple[_CompiledRule | None, Entry]]:
    """The rule that decides about an entry, apart for each set of layers with another one."""
    from moesize.core.naming import names_of

    if not entry.layers or "{layer}" not in template:
        yield _first_match(rules, template), entry
        return
    # Where MTP layers have a prefix of their own they count from 0.
    first = spec.num_layers if entry.section == "mtp" and names_of(spec.naming).mtp_layers else 0
    by_rule: dict[int | None, list[int]] = {}
    for layer in entry.layers:
        rule = _first_match(rules, template.replace("{layer}", str(layer - first)))
        by_rule.setdefault(None if rule is None else rules.index(rule), []).append(layer)
    for index, layers in by_rule.items():
        rule = None if index is None else rules[index]
        yield rule, replace(entry, layers=tuple(layers))


class _CompiledRule:
    """A rule with its patterns compiled once."""

    def __init__(self, rule: QuantizationRule) -> None:
        self.pattern = compile_pattern("|".join(f"(?:{p})" for p in rule.modules))
        self.zero_bias = rule.format == "gptq-bias"
        if rule.format == "keep":
            self.weight_format: WeightFormat | None = None
        elif rule.format in FORMATS:
            self.weight_format = FORMATS[rule.format](rule)
        else:
            raise UnsupportedError(
                f"checkpoint format {rule.format!r} is not known",
                f"known formats: keep, {', '.join(FORMATS)}",
            )


def _first_match(rules: list[_CompiledRule], name: str) -> _CompiledRule | None:
    plain = plain_name(name)
    for rule in rules:
        if rule.pattern.search(plain) or rule.pattern.search(name):
            return rule
    return None


# Modules that only wrap the language model. Configs, engines and files disagree about them.
_WRAPPER = re.compile(r"(?:(?:model|language_model|text_model|llm|backbone|transformer)\.)+")


def plain_name(name: str) -> str:
    """A module name without the wrappers in front: `layers.0.mlp`, whatever file it comes from."""
    found = _WRAPPER.match(name)
    return name[found.end() :] if found else name


_MAX_PATTERN_LENGTH = 1 << 17
# Matching costs at most (length of a name) ** (wide quantifiers): two, and a few narrow ones.
_MAX_WEIGHT = 7
_WIDE_WEIGHT = 3
_NARROW_CLASS = re.compile(r"\\[^wWDSsB]|\[0-9\]")
_WIDE_CLASS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]")


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern of a checkpoint, which may be hostile.

    Only patterns that cannot blow up are taken: no repeated groups, and few quantifiers one after
    another. Raises InvalidInputError.
    """
    shown = pattern if len(pattern) <= 60 else pattern[:57] + "..."
    if len(pattern) > _MAX_PATTERN_LENGTH:
        raise InvalidInputError(f"the pattern {shown!r} is {len(pattern):,} characters long")
    bare = _WIDE_CLASS.sub(".", _NARROW_CLASS.sub("x", pattern))
    if re.search(r"\)[*+{]", bare) or _quantifier_weight(bare) > _MAX_WEIGHT:
        raise InvalidInputError(
            f"the pattern {shown!r} could take very long to match",
            "repeated groups and more than two of .* in a row are not taken",
        )
    if "[[" in bare or "[[" in pattern:
        # Python warns of a future meaning, on stderr; names of modules never need it.
        raise InvalidInputError(f"the pattern {shown!r} has nested brackets, which are not taken")
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InvalidInputError(
            f"the pattern {shown!r} is no regular expression: {error}"
        ) from error


def _quantifier_weight(pattern: str) -> int:
    """Most that the quantifiers on one path through the alternatives of a pattern weigh."""
    stack = [(0, 0)]  # (on the current alternative, most on an earlier one) of each open group
    before = ""
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
            stack[-1] = (here + (_WIDE_WEIGHT if before == "." else 1), most)
        elif char == "?" and before not in "(*+}":
            stack[-1] = (here + 1, most)
        before = char
    return max(stack[-1])


def _with_scheme(spec: ModelSpec, scheme: Scheme, engine: str) -> Iterator[StoredEntry]:
    for entry in inventory(spec):
        tensor = entry.tensor
        dtype = tensor.dtype or _serving_dtype(spec, scheme)
        # What has a type of its own is left alone, as in `_may_be_quantized`.
        if isinstance(scheme.weight_format, Plain) or not tensor.matmul or tensor.dtype:
            yield StoredEntry(entry, None, dtype)
        else:
            weight_format = scheme_format_for(scheme, tensor.role, tensor.shape, engine=engine)
            yield StoredEntry(entry, weight_format, dtype)


def _serving_dtype(spec: ModelSpec, scheme: Scheme) -> str:
    """What stays unquantized is held in this type; a plain scheme names it."""
    if isinstance(scheme.weight_format, Plain):
        return scheme.weight_format.dtype
    return "bfloat16" if spec.dtype == "float32" else spec.dtype
