"""The model that a report names -> a catalogue model and how its weights were stored.

Names are looked up by `moesize.model_names`: whole or not at all. Where a GGUF file's own numbers
(layers, width, experts, vocabulary) are in the report, they may confirm a name that only begins
like a known one, they refuse one that they contradict, and they tell which model a file is whose
name is nobody's when exactly one shape has them all.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from moesize.core.attention import LatentAttention
from moesize.core.model_spec import ModelSpec
from moesize.core.quantization import Scheme, find_scheme
from moesize.core.records import dataclass
from moesize.core.units import GIB
from moesize.model_names import (
    NamedModel,
    by_hparams,
    contradiction,
    is_published,
    resolve_name,
    scheme_name,
    spec_of,
)

if TYPE_CHECKING:
    from moesize.accuracy.reports import FieldReport

_SPLIT = re.compile(r"-\d{5}-of-\d{5}$")
# A model name that only describes a model.
_NOT_PUBLIC = (
    "unknown",
    "inferred",
    "-class",
    "-series",
    "fine-tun",
    "finetun",
    "merged",
    "distill-merged",
)
_LONGEST_NAME = 300
# llama.cpp's own name of a type -> the scheme's.
_GGUF_TYPES = {
    "q2_k": "Q2_K", "q3_k": "Q3_K_M", "q4_k": "Q4_K_M", "q5_k": "Q5_K_M", "q6_k": "Q6_K",
    "mxfp4 moe": "MXFP4_MOE", "mxfp4": "MXFP4_MOE", "all f32": "fp32", "f16": "fp16",
    "bf16": "bf16",
}  # fmt: skip
_GRADES = {"small": "S", "medium": "M", "large": "L"}
# A file may hold what its type says only if it is as large as such a file: metadata, a few more
# quantized norms and other rounding stay below this.
_SIZE_TOLERANCE = 0.004


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What a report's model is.

    scheme           how its weights were stored; None = as the catalogue model is published
    weights_problem  why nothing that depends on the weights' size can be predicted; KV can
    problem          why the model is not covered at all; `spec` is None then
    public           nobody says that the model is private or unknown
    """

    spec: ModelSpec | None = None
    scheme: Scheme | None = None
    weights_problem: str = ""
    problem: str = ""
    note: str = ""
    public: bool = True


def resolve_report(report: FieldReport) -> Resolved:
    """The catalogue model that a report names, or why it is not covered."""
    stated = report.settings.get("model_public")
    lower = report.model.lower()
    public = stated if isinstance(stated, bool) else not any(w in lower for w in _NOT_PUBLIC)
    hparams = report.settings.get("hparams") or {}
    is_gguf = report.engine not in ("vllm", "sglang", "transformers")
    found = resolve_name(
        report.model,
        _path_in(report.model),
        report.text("gguf_file"),
        beginnings=bool(hparams.get("n_layer") and hparams.get("n_embd")),
    )
    notes: list[str] = []
    if is_gguf and (found is None or contradiction(spec_of(found.id), hparams)):
        evident = by_hparams(hparams)
        if evident is not None:
            found = NamedModel(evident, (), "")
            notes.append(f"not named: layers, widths, heads and experts are those of {evident}")
    if found is None:
        reason = "model not in the catalogue" if public else "model not public"
        return Resolved(problem=f"{reason}: {report.model[:80]}", public=public)
    key = found.id
    spec = spec_of(key)
    wrong = contradiction(spec, hparams)
    if wrong:
        return Resolved(
            problem=f"file contradicts its name: not {spec.id}, {wrong}",
            public=public,
        )
    if not found.exact:
        notes.append(f"name completed to {spec.id}; the file's own numbers confirm it")
    if is_gguf:
        scheme, problem = _gguf_scheme(report, spec)
        if problem and spec.mtp is not None:
            # Converted with --no-mtp: the file's size tells.
            without = _without_mtp(key)
            other, left = _gguf_scheme(report, without)
            if not left and report.settings.get("file_size_gib"):
                spec, scheme, problem = without, other, ""
                notes.append("the file's size is that of a conversion without MTP blocks")
    else:
        scheme, problem, said = _scheme(report, spec, found)
        notes += [said] if said else []
    return Resolved(
        spec=spec, scheme=scheme, weights_problem=problem, note="; ".join(notes), public=public
    )


@cache
def _without_mtp(key: str) -> ModelSpec:
    """The model as llama.cpp's converter makes it with --no-mtp."""
    spec = spec_of(key)
    used = {name for run in (*spec.layers, *spec.encoder_layers) for name in run.blocks}
    blocks = tuple(block for block in spec.blocks if block.name in used)
    return replace(spec, mtp=None, blocks=blocks)


def _path_in(model: str) -> str:
    """The folder that a report names beside a model: `X fine-tune (path gemma3-27b-it)`."""
    for word in ("(path ", "(local dir "):
        _, found, rest = model[:_LONGEST_NAME].partition(word)
        if found:
            return rest.partition(")")[0]
    return ""


# --- how weights are stored -----------------------------------------------------------------------


def _scheme(
    report: FieldReport, spec: ModelSpec, found: NamedModel
) -> tuple[Scheme | None, str, str]:
    """(scheme, why the weights cannot be sized, note) of a serving engine's report."""
    stated = report.text("quantization").lower()
    words = found.words
    if stated in ("", "none"):
        if words and any(w not in ("bf16", "fp16", "f16") for w in words):
            return None, f"stored as {'-'.join(words)}, but the report states no quantization", ""
        if report.text("dtype").lower() in ("float32", "fp32") and spec.quantization is None:
            return find_scheme("fp32"), "", "served in float32"
        return None, "", ""
    if spec.quantization is not None and is_published(spec, words):
        return None, "", ""
    name = scheme_name(words, stated=stated, owner=found.owner)
    if not name:
        return None, f"quantization {stated[:30]} of {'-'.join(words) or spec.id} is not known", ""
    return find_scheme(name), "", f"{spec.id} planned as {name}; the report says {stated}"


def _gguf_scheme(report: FieldReport, spec: ModelSpec) -> tuple[Scheme | None, str]:
    """(scheme, why the weights cannot be sized) of a report that ran a GGUF file.

    The file's type is what most of it holds; mixtures carry the same label. Its size must agree
    with what llama.cpp's quantizer makes of the model at that type.
    """
    from moesize.core.errors import MoesizeError
    from moesize.core.gguf_view import gguf_entries

    name = _gguf_type(report.text("gguf_type")) or _type_in_name(report)
    if name is None:
        stated = report.text("gguf_type")
        what = f"GGUF type {stated[:40]!r} is not known" if stated else "no GGUF type stated"
        # A cache does not depend on how weights are stored; the plan needs some type all the same.
        return find_scheme("Q8_0"), what
    try:
        scheme = find_scheme(name)
        entries = gguf_entries(spec, scheme)
    except MoesizeError as error:
        return None, error.message
    ours = sum(entry.file_bytes for entry in entries)
    size = report.settings.get("file_size_gib")
    if isinstance(size, (int, float)) and size > 0:
        theirs = size * GIB
        if abs(ours - theirs) > _SIZE_TOLERANCE * theirs:
            return scheme, (
                f"the file is no plain {name}: {size:g} GiB, llama.cpp's quantizer makes "
                f"{ours / GIB:.2f} GiB"
            )
    counts = report.settings.get("tensor_type_counts") or {}
    odd = sorted(t for t in counts if not _is_known_type(t))
    if odd:
        return scheme, f"tensor types {', '.join(odd)[:60]} are not llama.cpp's"
    if not size and not counts and (report.text("gguf_type") or name.lower() not in _ONE_TYPE):
        return scheme, "neither the file's size nor its tensor types are stated"
    return scheme, ""


# Files of these types are the same whoever made them.
_ONE_TYPE = ("f32", "fp32", "f16", "fp16", "bf16", "q8_0")


def _is_known_type(name: str) -> bool:
    from moesize.core.weight_formats import BLOCK_TYPES

    return name.upper() in BLOCK_TYPES


def _gguf_type(text: str) -> str | None:
    """The scheme of llama.cpp's words: `Q4_K - Medium`, `IQ3_S - 3.4375 bpw`, `Q8_0`."""
    from moesize.core.weight_formats import GGUF_FILE_TYPES

    head, _, rest = text.strip().partition(" - ")
    grade = _GRADES.get(rest.strip().lower())
    if grade is not None:
        graded = f"{head.upper()}_{grade}"
        return graded if graded in GGUF_FILE_TYPES else _GGUF_TYPES.get(head.lower())
    key = head.strip().lower()
    if key in _GGUF_TYPES and key not in ("q2_k", "q3_k", "q4_k", "q5_k"):
        return _GGUF_TYPES[key]
    return head.upper() if head.upper() in GGUF_FILE_TYPES else None


def _type_in_name(report: FieldReport) -> str | None:
    """The type that a GGUF file is named after, when the log did not print one."""
    from moesize.core.weight_formats import GGUF_FILE_TYPES

    if report.text("gguf_type"):
        return None
    for text in (report.text("gguf_file"), report.model):
        name = _SPLIT.sub("", text.strip("\"'*`$ ").removesuffix(".gguf")).upper()
        if "UD-" in name:
            return None
        for kind in sorted(GGUF_FILE_TYPES, key=len, reverse=True):
            if name.endswith(("-" + kind, "." + kind)):
                return _GGUF_TYPES.get(kind.lower(), kind) if kind in ("F16", "BF16") else kind
    return None


def is_latent(spec: ModelSpec) -> bool:
    """Whether the model's attention keeps one compressed vector a token (MLA)."""
    return any(
        isinstance(mixer, LatentAttention) for block in spec.blocks for mixer in block.mixers
    )
