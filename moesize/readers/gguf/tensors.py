"""What a model's GGUF file should hold, by name, and what a file holds instead. Needs no torch.

Names, shapes and types are those of `moesize.core.gguf_view`. Norms have names of their own in
many architectures, which change no size and which core leaves out; they stand here.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, NamedTuple

from moesize.core.errors import InvalidInputError, UnsupportedError
from moesize.core.gguf_view import (
    file_tensor,
    gguf_architecture,
    gguf_entries,
    gguf_stored,
    gguf_tensors,
)
from moesize.core.quantization import Scheme, find_scheme
from moesize.files import listed, short
from moesize.readers.gguf.header import GGML_NUMBERS, GGML_TYPES, GgufFile, block_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from moesize.core.checkpoint import StoredEntry
    from moesize.core.model_spec import ModelSpec
    from moesize.core.weight_formats import BlockType


class ExpectedTensor(NamedTuple):
    """A tensor that the file should have.

    role       of the inventory; block: None outside of blocks
    shape      ne0 first
    stored_as  core's name for it, without the block
    """

    name: str
    role: str
    block: int | None
    type: BlockType
    shape: tuple[int, ...]
    size_bytes: int
    stored_as: str


# --- Names ----------------------------------------------------------------------------------------

# Role -> name in a block, gguf-py/gguf/constants.py of ggml-org/llama.cpp (gguf 0.19).
_NORMS = {
    "norms.q": "attn_q_norm",
    "norms.k": "attn_k_norm",
    "norms.q_a": "attn_q_a_norm",
    "norms.kv_a": "attn_kv_a_norm",
    "norms.linear": "ssm_norm",
    "norms.linear_b": "ssm_b_norm",
    "norms.linear_c": "ssm_c_norm",
    "norms.linear_dt": "ssm_dt_norm",
    "norms.indexer_k": "indexer.k_norm",
    "norms.per_layer": "post_norm",
    "norms.altup_router": "altup_router_norm",
    "norms.final": "output_norm",
    "norms.embedding": "token_embd_norm",
    "norms.per_layer_projection": "per_layer_proj_norm",
}
_MTP = ("nextn.enorm", "nextn.hnorm", "nextn.shared_head_norm")
# Of a layer's input and outputs, by how many there are.
_HIDDEN = {
    1: ("attn_norm",),
    2: ("attn_norm", "ffn_norm"),
    4: ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"),
    5: ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "laurel_post_norm"),
    7: (
        "attn_norm",
        "post_attention_norm",
        "ffn_norm",
        "post_ffw_norm",
        "pre_ffw_norm_2",
        "post_ffw_norm_1",
        "post_ffw_norm_2",
    ),
}
_AFTER = ("post_attention_norm", "post_ffw_norm")
_SECOND = ("attn_norm", "post_attention_norm")
_HIDDEN_OF = {
    ("bert", 2): ("attn_output_norm", "layer_output_norm"),
    ("dbrx", 2): ("attn_norm", "attn_output_norm"),
    ("exaone4", 2): _AFTER,
    ("falcon", 2): ("attn_norm", "attn_norm_2"),
    ("glm4moe", 2): _SECOND,
    ("gpt-oss", 2): _SECOND,
    ("grok", 4): ("attn_norm", "attn_output_norm", "ffn_norm", "layer_output_norm"),
    ("olmo2", 2): _AFTER,
    ("qwen35", 2): _SECOND,
    ("qwen35moe", 2): _SECOND,
    ("qwen3next", 2): _SECOND,
    ("seed_oss", 2): _SECOND,
}
_OTHERS_OF = {
    ("lfm2", "norms.final"): "token_embd_norm.weight",
    ("lfm2moe", "norms.final"): "token_embd_norm.weight",
}


def _names(architecture: str, role: str, name: str, copies: int) -> tuple[str, ...]:
    """Names, without the block, of the equal tensors that an entry stands for."""
    known = _OTHERS_OF.get((architecture, role))
    if known is not None:
        return (known,)
    base, dot, bias = role.partition(".bias")
    ending = dot + bias or ".weight"
    stems: tuple[str, ...] = ()
    if base == "norms.hidden":
        stems = _HIDDEN_OF.get((architecture, copies)) or _HIDDEN.get(copies, ())
    elif base == "norms.mtp":
        stems = _MTP[:copies]
    elif base in _NORMS:
        stems = (_NORMS[base],)
    if len(stems) == copies:
        return tuple(stem + ending for stem in stems)
    # A name that core made from the role; equal tensors are told apart by a number.
    stem, dot, end = name.rpartition(".")
    return (name, *(f"{stem}_{number}{dot}{end}" for number in range(2, copies + 1)))


def expected_tensors(
    spec: ModelSpec, scheme: Scheme | None, *, imatrix: bool = False, mtp: bool = True
) -> Iterator[ExpectedTensor]:
    """All tensors of the file, blocks in the order of the inventory; scheme None: as published.

    Raises UnsupportedError for families that llama.cpp lacks and schemes that are not its own.
    """
    architecture = gguf_architecture(spec)
    if scheme is None:
        entries = gguf_stored(spec, None)
    else:
        entries = gguf_entries(spec, scheme, imatrix=imatrix, mtp=mtp)
    for item in entries:
        entry = item.entry
        own = file_tensor(spec, item)
        shape, copies = own.shape, own.copies
        if copies > 1 and entry.tensor.group != "norms" and "altup" in own.name:
            # The converter stacks them.
            shape, copies = (*shape, copies), 1
        kind = _type_of(item, own.block_type)
        size = kind.row_bytes(shape[0])
        for length in shape[1:]:
            size *= length
        for block in entry.layers or (None,):
            for name in _names(architecture, entry.tensor.role, own.name, copies):
                full = name if block is None else f"blk.{block}.{name}"
                yield ExpectedTensor(full, entry.tensor.role, block, kind, shape, size, own.name)


def _type_of(item: StoredEntry, block_type: BlockType) -> BlockType:
    """Token tables of hash routing are I32, which core counts as F32: as wide."""
    return GGML_TYPES[GGML_NUMBERS["I32"]] if "int" in item.dtype else block_type


def of_layers(
    tensors: Iterable[ExpectedTensor], layers: Collection[int] | None
) -> list[ExpectedTensor]:
    """Those of some layers and those outside of layers; None: all."""
    return [
        tensor
        for tensor in tensors
        if layers is None or tensor.block is None or tensor.block in layers
    ]


# --- A file beside it -----------------------------------------------------------------------------


class Row(NamedTuple):
    """A role in a layer (None: outside): what was counted, what the file has, what differs.

    role  a tensor's own name where moesize counts no such tensor
    """

    role: str
    layer: int | None
    predicted_bytes: int
    file_bytes: int
    differs: str


class Comparison(NamedTuple):
    """A file beside what moesize counts for its model and type.

    pairs           expected name -> name in the file
    missing, extra  names that only one of the two has
    """

    rows: tuple[Row, ...]
    pairs: dict[str, str]
    missing: tuple[str, ...]
    extra: tuple[str, ...]

    @property
    def predicted_bytes(self) -> int:
        """Counted, of all rows."""
        return sum(row.predicted_bytes for row in self.rows)

    @property
    def file_bytes(self) -> int:
        """In the file, of all rows."""
        return sum(row.file_bytes for row in self.rows)

    @property
    def differing(self) -> tuple[Row, ...]:
        """Rows that do not agree."""
        return tuple(row for row in self.rows if row.differs)

    @property
    def summary(self) -> str:
        """One line about what differs; empty when nothing does."""
        rows = self.differing
        if not rows:
            return ""
        by_text: dict[str, int] = {}
        for row in rows:
            text = f"{_shown(row.role)}: {row.differs}"
            by_text[text] = by_text.get(text, 0) + 1
        most = sorted(by_text.items(), key=lambda item: -item[1])
        parts = [text + (f" ({count} times)" if count > 1 else "") for text, count in most[:3]]
        more = f"; and {len(most) - 3} more" if len(most) > 3 else ""
        total = self.file_bytes - self.predicted_bytes
        return f"{'; '.join(parts)}{more}; {total:+,} bytes in all"


def _shown(role: str) -> str:
    return role if role.isascii() else short(role)


def scheme_of(file: GgufFile, quant: str = "") -> Scheme:
    """The type that the file says it is of, or the one that is asked for.

    Raises InvalidInputError when it says none.
    """
    name = quant or file.file_type
    if not name:
        raise InvalidInputError(
            f"{file.paths[0]}: does not say of which type it is (general.file_type)",
            "say it with --quant, such as --quant Q4_K_M",
        )
    scheme = find_scheme(name)
    if not scheme.gguf_file_type:
        raise UnsupportedError(f"{scheme.name} is no GGUF file type", "such as --quant Q4_K_M")
    return scheme


def has_mtp(spec: ModelSpec, file: GgufFile) -> bool:
    """Whether the file was converted with MTP blocks.

    Raises InvalidInputError for a file of another model, by architecture or number of blocks.
    """
    path = file.paths[0]
    architecture = gguf_architecture(spec)
    if file.architecture != architecture:
        raise InvalidInputError(
            f"{path}: its architecture is {short(file.architecture)}, and {spec.id} is a "
            f"{architecture!r}",
            "is it the model that is named?",
        )
    counts = {mtp: gguf_tensors(spec, mtp=mtp)[0].num_layers for mtp in (True, False)}
    found = file.block_count
    for mtp, count in counts.items():
        if found == count:
            return mtp
    raise InvalidInputError(
        f"{path}: has {found} blocks, and {spec.id} has {counts[False]}",
        "is it the model that is named?",
    )


def expected_of(spec: ModelSpec, scheme: Scheme | None, file: GgufFile) -> list[ExpectedTensor]:
    """What a file should hold, given what it says of itself. Raises InvalidInputError.

    scheme  None: the spec was read from the file, and has the type of every tensor
    """
    if scheme is None:
        return list(expected_tensors(spec, None))
    mtp = has_mtp(spec, file)
    return list(expected_tensors(spec, scheme, imatrix=file.has_imatrix, mtp=mtp))


def check_against(
    spec: ModelSpec, scheme: Scheme | None, file: GgufFile, layers: Collection[int] | None = None
) -> Comparison:
    """Bytes of a file's tensors against what is counted, by role and layer.

    Tensors are found by name; what is left over, by block, type and shape, since names of norms
    differ between architectures and converters. layers: of these only, and what stands outside.
    Raises InvalidInputError for a file of another model.
    """
    wanted = of_layers(expected_of(spec, scheme, file), layers)
    names = {
        name
        for name in file.tensors
        if layers is None or (block := block_of(name)) is None or block in layers
    }
    pairs = _paired(wanted, file, names)
    rows: dict[tuple[str, int | None], tuple[int, int, list[str]]] = {}
    missing = []
    for tensor in wanted:
        predicted, found, notes = rows.get((tensor.role, tensor.block), (0, 0, []))
        name = pairs.get(tensor.name)
        if name is None:
            missing.append(tensor.name)
            notes.append(f"{tensor.name} is not in the file")
            held = 0
        else:
            held = file.tensors[name].size_bytes
            notes += _differences(tensor, file, name)
        rows[tensor.role, tensor.block] = predicted + tensor.size_bytes, found + held, notes
    extra = sorted(names - set(pairs.values()))
    for name in extra:
        rows[name, block_of(name)] = 0, file.tensors[name].size_bytes, ["is not counted"]
    return Comparison(
        tuple(
            Row(role, layer, predicted, found, ", ".join(dict.fromkeys(notes)))
            for (role, layer), (predicted, found, notes) in rows.items()
        ),
        pairs,
        tuple(missing),
        tuple(extra),
    )


def _paired(
    wanted: Iterable[ExpectedTensor], file: GgufFile, names: Collection[str]
) -> dict[str, str]:
    """Expected name -> name in the file."""
    wanted = list(wanted)
    pairs = {tensor.name: tensor.name for tensor in wanted if tensor.name in names}
    spare: dict[tuple[int | None, str, tuple[int, ...]], list[str]] = {}
    for name in sorted(set(names) - set(pairs), reverse=True):
        found = file.tensors[name]
        key = block_of(name), found.type.name, _without_ones(found.shape)
        spare.setdefault(key, []).append(name)
    for tensor in wanted:
        if tensor.name not in pairs:
            left = spare.get((tensor.block, tensor.type.name, _without_ones(tensor.shape)))
            if left:
                pairs[tensor.name] = left.pop()
    return pairs


def match_shapes(
    file: GgufFile, expected: Iterable[ExpectedTensor]
) -> tuple[dict[str, str], list[str]]:
    """Expected name -> name in the file, whatever the types; and what does not fit, in words.

    What is not found by name is looked for by block and shape, since names of norms differ between
    converters.
    """
    expected = list(expected)
    pairs = {tensor.name: tensor.name for tensor in expected if tensor.name in file.tensors}
    spare: dict[tuple[int | None, tuple[int, ...]], list[str]] = {}
    for name in sorted(file.tensors.keys() - pairs.keys(), reverse=True):
        spare.setdefault((block_of(name), _without_ones(file.tensors[name].shape)), []).append(name)
    problems = []
    for tensor in expected:
        name = pairs.get(tensor.name, "")
        if not name:
            left = spare.get((tensor.block, _without_ones(tensor.shape)))
            if left:
                pairs[tensor.name] = left.pop()
            else:
                problems.append(f"it has no {tensor.name}")
        elif not _same_shape(tensor, file.tensors[name].shape):
            problems.append(
                f"{name} has shape {list(file.tensors[name].shape)}, and "
                f"{list(tensor.shape)} follows from the metadata"
            )
    extra = sorted(name for left in spare.values() for name in left)
    problems += [f"{_shown(name)} is not known" for name in extra]
    return pairs, problems


def _differences(tensor: ExpectedTensor, file: GgufFile, name: str) -> list[str]:
    found = file.tensors[name]
    out = []
    if found.type.name != tensor.type.name:
        out.append(f"{found.type.name} for {tensor.type.name}")
    if not _same_shape(tensor, found.shape):
        out.append(f"shape {list(found.shape)} for {list(tensor.shape)}")
    return out


def _same_shape(tensor: ExpectedTensor, shape: tuple[int, ...]) -> bool:
    """A norm over groups may be stored as a row for each group (Mamba-2)."""
    if tensor.role.startswith("norms."):
        return prod(shape) == prod(tensor.shape)
    return _without_ones(shape) == _without_ones(tensor.shape)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)


def refuse_missing(comparison: Comparison, file: GgufFile) -> None:
    """Raises InvalidInputError when tensors that should be there are not."""
    if comparison.missing:
        raise InvalidInputError(
            f"{file.paths[0]}: lacks {listed(list(comparison.missing))}",
            "is it the model that is named? files of before 2024 have a tensor for each expert: "
            "convert it again",
        )
