"""The model that a report names -> a catalogue model and how its weights were stored.

Only exact names count: a catalogue name or alias, a hub id, the last part of a hub id or of a path,
each with or without words that say how weights are stored (-FP8, -AWQ, -Q4_K_M). A name that
differs in any other word is not covered. Where a GGUF file's own numbers (layers, width, experts,
vocabulary) are in the report, they may confirm a name that only begins like a known one, and they
refuse one that they contradict.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from moesize.catalog import index, load_spec, normal_form, spec_folder
from moesize.core.attention import LatentAttention
from moesize.core.inventory import moe_of
from moesize.core.model_spec import ModelSpec
from moesize.core.quantization import Scheme, find_scheme
from moesize.core.records import dataclass
from moesize.core.units import GIB

if TYPE_CHECKING:
    from moesize.accuracy.reports import FieldReport

# Words after a name that say how weights are stored, not which weights they are.
_STORAGE_WORDS = frozenset(
    (
        "fp8", "bf16", "f16", "fp16", "f32", "fp32", "int4", "int8", "4bit", "8bit", "fp4",
        "nvfp4", "mxfp4", "awq", "gptq", "autoround", "w4a16", "w8a16", "w8a8", "w4a8", "nf4",
        "bnb", "dynamic", "per", "channel", "quarot", "mindie", "quantized", "gguf",
        "safetensors", "ud", "imat", "imatrix", "i1", "mix", "moe", "g128", "g32", "marlin", "cpu",
        "qat",
    )
)  # fmt: skip
# A GGUF type's name in parts: q4-k-m, iq4-ks-r4, q8-0.
_GGUF_HEAD = re.compile(r"(i?q[1-8]|t?q[12])")
_GGUF_TAIL = frozenset(
    ("k", "m", "s", "l", "xl", "xs", "xxs", "nl", "ks", "kss", "kt", "r4", "r8", "0", "1")
)
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
    found = _find(report, confirmed=bool(hparams.get("n_layer") and hparams.get("n_embd")))
    if found is None:
        reason = "model not in the catalogue" if public else "model not public"
        return Resolved(problem=f"{reason}: {report.model[:80]}", public=public)
    key, words, exact = found
    spec = _spec(key)
    contradiction = _contradiction(spec, hparams)
    if contradiction:
        return Resolved(
            problem=f"file contradicts its name: not {spec.id}, {contradiction}",
            public=public,
        )
    notes = [] if exact else [f"name completed to {spec.id}; the file's own numbers confirm it"]
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
        scheme, problem, said = _scheme(report, spec, words)
        notes += [said] if said else []
    return Resolved(
        spec=spec, scheme=scheme, weights_problem=problem, note="; ".join(notes), public=public
    )


# --- names ----------------------------------------------------------------------------------------


@cache
def _spec(key: str) -> ModelSpec:
    return load_spec(spec_folder() / f"{key}.yaml")


@cache
def _without_mtp(key: str) -> ModelSpec:
    """The model as llama.cpp's converter makes it with --no-mtp."""
    spec = _spec(key)
    used = {name for run in (*spec.layers, *spec.encoder_layers) for name in run.blocks}
    blocks = tuple(block for block in spec.blocks if block.name in used)
    return replace(spec, mtp=None, blocks=blocks)


@cache
def _names() -> dict[str, str]:
    """Every exact name in normal form -> catalogue id; last parts of hub ids where one model."""
    names: dict[str, str] = dict(index()["names"])
    parts: dict[str, set[str]] = {}
    for name, key in index()["names"].items():
        parts.setdefault(name.rpartition("/")[2], set()).add(key)
    for part, keys in parts.items():
        if len(keys) == 1:
            names.setdefault(part, keys.copy().pop())
    return {_squash(name): key for name, key in names.items()}


def _squash(name: str) -> str:
    """llama-3-1-8b and llama-3.1-8b are one name: the same letters and figures in order."""
    return "".join(char for char in normal_form(name) if char.isalnum() or char == "/")


def _find(report: FieldReport, *, confirmed: bool) -> tuple[str, tuple[str, ...], bool] | None:
    """(catalogue id, words about storage, whether the name is exact)."""
    names = _names()
    candidates = list(_candidates(report))
    for candidate in candidates:
        parts = normal_form(candidate).split("-")
        core = _without_storage(parts)
        # The whole name first: the catalogue may have the quantized checkpoint itself.
        for kept in dict.fromkeys((len(parts), len(core))):
            key = names.get(_squash("-".join(parts[:kept])))
            if key is not None and not _of_another(report, key, kept < len(parts) or core == parts):
                return key, tuple(parts[kept:]), True
    if not confirmed:
        return None
    for candidate in candidates:
        parts = normal_form(candidate).split("-")
        for kept in range(len(parts) - 1, 1, -1):
            key = names.get(_squash("-".join(parts[:kept])))
            if key is not None:
                return key, tuple(parts[kept:]), False
    return None


def _of_another(report: FieldReport, key: str, plain: bool) -> bool:
    """Whether a quantized checkpoint is called alike but was published by somebody else.

    RedHatAI's Qwen3-14B-FP8 is not Qwen's: each has scales of its own kind.
    """
    owner, slash, _ = report.model.partition("/")
    if plain or not slash or _spec(key).quantization is None:
        return False
    return _spec(key).hub_id.partition("/")[0].lower() != owner.strip().lower()


def _candidates(report: FieldReport) -> tuple[str, ...]:
    """Spellings to look up: the model as named, its last part, and a GGUF file's name."""
    found: list[str] = []
    for text in (report.model, _path_in(report.model), report.text("gguf_file")):
        bare = text[:_LONGEST_NAME].partition(" (")[0].strip().strip("\"'*`$ ")
        if not bare:
            continue
        last = bare.replace("\\", "/").rpartition("/")[2]
        for name in (bare, last):
            plain = _SPLIT.sub("", name.removesuffix(".gguf").removesuffix(".GGUF"))
            found += [plain, plain.replace("___", ".")]
            # Converters join owner and name: unsloth_DeepSeek R1; file names, name and type: V3.Q8.
            found.append(plain.partition("_")[2])
            found.append(plain.rpartition(".")[0] + "-" + plain.rpartition(".")[2])
    return tuple(dict.fromkeys(name for name in found if len(name) > 2))


def _path_in(model: str) -> str:
    """The folder that a report names beside a model: `X fine-tune (path gemma3-27b-it)`."""
    for word in ("(path ", "(local dir "):
        _, found, rest = model[:_LONGEST_NAME].partition(word)
        if found:
            return rest.partition(")")[0]
    return ""


def _without_storage(parts: list[str]) -> list[str]:
    """The parts of a name without the words at its end that say how weights are stored."""
    end = len(parts)
    while end > 1:
        if parts[end - 1] in _STORAGE_WORDS:
            end -= 1
            continue
        start = end
        while start > 1 and parts[start - 1] in _GGUF_TAIL:
            start -= 1
        if start > 1 and _GGUF_HEAD.fullmatch(parts[start - 1]):
            end = start - 1
            continue
        break
    return parts[:end]


# --- a GGUF file's own numbers --------------------------------------------------------------------


def _contradiction(spec: ModelSpec, hparams: dict[str, Any]) -> str:
    """Where the numbers of the file are not the model's; empty when they agree or are absent."""
    moe = next((found for block in spec.blocks if (found := moe_of(block))), None)
    # A VL model's text input carries the tower's deep features beside the token's vector, and
    # llama.cpp counts them all (src/llama-model.cpp: n_embd * (n_deepstack_layers + 1)).
    deep = 4 if str(hparams.get("arch", "")).startswith("qwen3vl") else 1
    ours = {
        # Files count MTP blocks as layers where they hold them.
        "n_layer": (spec.num_layers, spec.num_layers + (len(spec.mtp.layers) if spec.mtp else 0)),
        "n_embd": (spec.hidden_size, spec.hidden_size * deep),
        "n_vocab": (spec.embedding.vocab_size,),
        "n_expert": (moe.num_experts if moe else 0,),
    }
    for name, values in ours.items():
        theirs = hparams.get(name)
        if isinstance(theirs, int) and theirs not in values:
            return f"{name} is {theirs}, not {values[0]}"
    return ""


# --- how weights are stored -----------------------------------------------------------------------


def _scheme(
    report: FieldReport, spec: ModelSpec, words: tuple[str, ...]
) -> tuple[Scheme | None, str, str]:
    """(scheme, why the weights cannot be sized, note) of a serving engine's report."""
    stated = report.text("quantization").lower()
    if stated in ("", "none"):
        if words and any(w not in ("bf16", "fp16", "f16") for w in words):
            return None, f"stored as {'-'.join(words)}, but the report states no quantization", ""
        if report.text("dtype").lower() in ("float32", "fp32") and spec.quantization is None:
            return find_scheme("fp32"), "", "served in float32"
        return None, "", ""
    if spec.quantization is not None and not set(words) - {"bf16"}:
        return None, "", ""
    name = _scheme_name(stated, words)
    if name is None:
        return None, f"quantization {stated[:30]} of {'-'.join(words) or spec.id} is not known", ""
    return find_scheme(name), "", f"{spec.id} planned as {name}; the report says {stated}"


def _scheme_name(stated: str, words: tuple[str, ...]) -> str | None:
    """The scheme that the engine's word and the name's words both describe, else None."""
    said = set(stated.replace("_", " ").replace("-", " ").split()) | set(words)
    if said & {"modelslim", "mixed"}:
        return None
    if said & {"nvfp4"} or "fp4" in said:
        return "nvfp4"
    if "compressed" in said:  # compressed-tensors
        if {"fp8", "dynamic"} <= said:
            # FP8 with one scale for each row: byte for byte what INT8 with row scales takes.
            return "w8a8"
        if "fp8" in said:
            return "fp8"
        if said & {"w8a8", "int8"}:
            return "w8a8"
        return "w4a16" if said & {"4bit", "int4", "w4a16", "awq", "gptq"} else None
    if "awq" in said:
        return "awq-4bit"
    if "gptq" in said:
        return "gptq-8bit" if said & {"8bit", "int8", "w8a16"} else "gptq-4bit"
    if {"auto", "round"} <= said or "autoround" in said:
        return "gptq-4bit" if said & {"int4", "4bit", "w4a16"} else None
    if "fp8" in said:
        # vLLM's own --quantization fp8 of a 16-bit checkpoint; a published one has tile scales.
        return "fp8-block" if "fp8" in words else "fp8"
    if said & {"nf4", "bitsandbytes", "bnb"}:
        return "nf4"
    return None


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
