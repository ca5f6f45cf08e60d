"""Names that logs, reports and serve commands print -> a catalogue model and how it is stored.

A name counts only whole: a catalogue name, an alias, a hub id, the last part of a hub id or of a
path, each with or without words at its end that say how weights are stored (-FP8, -AWQ-4bit,
-Q4_K_M, -GGUF). A name with any other word (a fine-tune, a merge, a date that no alias vouches
for) is nobody's unless `data/derived_names.json` has it: no model is guessed. A GGUF file's own
numbers are evidence of another kind: `by_hparams` knows the one catalogue model that they describe.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from moesize.catalog import index, load_spec, nearest_names, normal_form, spec_folder
from moesize.core.inventory import moe_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moesize.core.model_spec import ModelSpec

# Words after a name that say how weights are stored, not which weights they are.
_STORAGE_WORDS = frozenset(
    (
        "fp8", "bf16", "f16", "fp16", "f32", "fp32", "int4", "int8", "4bit", "8bit", "fp4",
        "nvfp4", "mxfp4", "awq", "gptq", "autoround", "w4a16", "w8a16", "w8a8", "w4a8", "nf4",
        "bnb", "dynamic", "per", "tensor", "block", "static", "channel", "quarot", "mindie",
        "quantized", "quantized.w4a16", "quantized.w8a8", "quantized.w8a16", "gguf", "qat",
        "safetensors", "ud", "imat", "imatrix", "i1", "mix", "moe", "g128", "g32", "gs128", "gs32",
        "marlin", "cpu", "sym", "asym", "auto", "round", "ct", "kv", "torchao", "w8a8kv8", "w4a4",
        "unsloth",
    )
)  # fmt: skip
# Words that count only behind one of these.
_BEFORE = {
    "bit": ("4", "8"),
    "preview": ("fp8", "mxfp4", "nvfp4", "fp4"),
}
# A GGUF type's name in parts: q4-k-m, iq4-ks-r4, q8-0.
_GGUF_HEAD = re.compile(r"(i?q[1-8]|t?q[12])")
_GGUF_TAIL = frozenset(
    ("k", "m", "s", "l", "xl", "xs", "xxs", "nl", "ks", "kss", "kt", "r4", "r8", "0", "1")
)
_SPLIT = re.compile(r"-\d{5}-of-\d{5}$")
# What stands between two figures, and what stands between other letters (and is no mark of ours).
_PARTS_FIGURES = re.compile(r"(?<=\d)[^\w/]+(?=\d)")
_APART = re.compile(r"[^\w/\0]+")
# A version's dot, which people leave out (qwen25-7b, v01); a size's is never left out (1.7b), but
# for what begins with 0 (05b).
_FREE_DOT = re.compile(r"(?<=\d)\.(?=\d)(?!\d+[bm](?![a-z0-9]))|(?<=(?<![\d.])0)\.(?=\d)")
# Tags that say nothing about which model: an image's version, the newest.
_VERSION_TAG = re.compile(r"latest|v?\d+(\.\d+)+([-+].*)?", re.IGNORECASE)
_SIZE_IN_TAG = re.compile(r"\d[bm](?![a-z0-9])", re.IGNORECASE)
# Where Ollama keeps its own models, and words of its tags that change no size.
_OLLAMA_OWNERS = frozenset(("", "library", "ollama.com/library", "registry.ollama.ai/library"))
_OLLAMA_WORDS = frozenset(("instruct", "chat", "text", "it", "base", "code", "python"))
_HUB_CACHE = re.compile(r"models--([\w.-]{1,90}?)--([\w.-]{1,120})")
_LONGEST_NAME = 300
# Publishers whose -FP8 has one scale for each matrix (AutoFP8, llm-compressor's FP8 preset, NVIDIA
# ModelOpt's FP8); model makers' own -FP8 has DeepSeek-V3's tiles.
_PER_TENSOR_FP8 = frozenset(
    ("redhatai", "neuralmagic", "nm-testing", "nvidia", "amd", "ibm-granite")
)


class NamedModel(NamedTuple):
    """What a name says.

    id      the catalogue model
    words   the words after its name that say how weights are stored, in lower case
    owner   who published it, in lower case; empty when the name does not say
    exact   the name is whole; else only its beginning is (see `resolve_name`)
    """

    id: str
    words: tuple[str, ...]
    owner: str
    exact: bool = True


@cache
def spec_of(key: str) -> ModelSpec:
    """A catalogue model's spec."""
    return load_spec(spec_folder() / f"{key}.yaml")


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
    for name, key in _derived().items():
        names.setdefault(name, key)
        names.setdefault(name.rpartition("/")[2], key)
    # Meta calls some of its models Meta-Llama, everybody else Llama.
    for name in [name for name in names if "meta-llama-" in name]:
        names.setdefault(name.replace("meta-llama-", "llama-"), names[name])
    for name in [name for name in names if name.startswith("llama-")]:
        names.setdefault(f"meta-{name}", names[name])
    # "-hf" is how some publishers call the copy that transformers reads.
    for name in [name for name in names if name.endswith("-hf")]:
        names.setdefault(name.removesuffix("-hf"), names[name])
    squashed = {_squash(name): key for name, key in names.items()}
    for name, key in names.items():
        if "." in name:
            squashed.setdefault(_squash(_FREE_DOT.sub("", name)), key)
    return squashed


def _derived() -> dict[str, str]:
    """Public fine-tunes -> the catalogue model whose shape they have.

    Not guesses: architecture, layers, width, heads, vocabulary and the exact element count that
    the hub states of each are the catalogue model's; or a publisher says so (the file names the
    source of each list).
    """
    path = Path(__file__).parent / "data" / "derived_names.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, str] = dict(document["names"])
    for more in document["more"]:
        for name, key in more["names"].items():
            names.setdefault(name, key)
    return names


@cache
def _ollama_names() -> dict[str, dict[str, str]]:
    """Ollama's library: name -> tag without its storage words -> catalogue id."""
    path = Path(__file__).parent / "data" / "ollama_names.json"
    names: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))["names"]
    return names


def _squash(name: str) -> str:
    """llama-3-1-8b and llama-3.1-8b are one name: the same letters and figures in order.

    What parts two figures still does, as one dash: qwen2-57b is not qwen2.5-7b.
    """
    return _APART.sub("", _PARTS_FIGURES.sub("\0", normal_form(name))).replace("\0", "-")


def _known(name: str) -> str | None:
    """The catalogue id of a whole name, with or without "-hf" behind it."""
    squashed = _squash(name)
    return _names().get(squashed) or _names().get(squashed.removesuffix("hf"))


def resolve_name(*texts: str, beginnings: bool = False) -> NamedModel | None:
    """The catalogue model that the first of these texts names which names one, else None.

    `beginnings` also takes a known name followed by other words (`exact` is False then): only for
    callers that have other evidence, such as a file's numbers, which they must compare.
    """
    for text in texts:
        named = _ollama_model(text)
        if named is not None:
            return named
    found = [spelling for text in texts for spelling in _spellings(text)]
    for owner, spelling in found:
        parts = normal_form(spelling).split("-")
        core = _without_storage(parts)
        # The whole name first: the catalogue may have the quantized checkpoint itself.
        for kept in dict.fromkeys((len(parts), len(core))):
            key = _known("-".join(parts[:kept]))
            plain = kept < len(parts) or core == parts
            if key is not None and (plain or not _of_another(owner, key)):
                return NamedModel(key, tuple(parts[kept:]), owner)
    if beginnings:
        for owner, spelling in found:
            parts = normal_form(spelling).split("-")
            for kept in range(len(parts) - 1, 1, -1):
                key = _known("-".join(parts[:kept]))
                if key is not None:
                    return NamedModel(key, tuple(parts[kept:]), owner, exact=False)
    return None


def resolve_ollama(name: str) -> NamedModel | None:
    """The catalogue model that Ollama serves under this name; without a tag its `latest`."""
    return resolve_name("ollama://" + name.strip().removeprefix("ollama://"))


def _ollama_model(text: str) -> NamedModel | None:
    """`deepseek-r1:14b`: a name and tag of Ollama's own library, whose sizes are other models."""
    bare = text[:_LONGEST_NAME].strip().strip("\"'`")
    place, _, last = bare.removeprefix("ollama://").rpartition("/")
    name, _, tag = last.partition(":")
    if not tag and bare.startswith("ollama://"):
        tag = "latest"
    tags = _ollama_names().get(name.lower())
    if not tag or tags is None or place.lower() not in _OLLAMA_OWNERS:
        return None
    # `_without_storage` always keeps the first part: the name.
    parts = [name, *normal_form(tag).split("-")]
    core = _without_storage(parts)
    plain = [word for word in core[1:] if word not in _OLLAMA_WORDS]
    for words in (core[1:], plain):
        key = tags.get("-".join(words))
        if key is not None:
            return NamedModel(key, tuple(parts[len(core) :]), "")
    return None


def nearest(*texts: str) -> list[str]:
    """Catalogue ids that look like these names, for an error message; at most three."""
    for text in texts:
        for _, spelling in reversed(_spellings(text)):
            core = "-".join(_without_storage(normal_form(spelling).split("-")))
            near = nearest_names(core)
            if near:
                return near
    return []


def _of_another(owner: str, key: str) -> bool:
    """Whether a quantized checkpoint is called alike but was published by somebody else.

    RedHatAI's Qwen3-14B-FP8 is not Qwen's: each has scales of its own kind.
    """
    if not owner or spec_of(key).quantization is None:
        return False
    return spec_of(key).hub_id.partition("/")[0].lower() != owner


def _spellings(text: str) -> list[tuple[str, str]]:
    """(owner, name) to look up: as written, the hub cache's id, the last part of a path."""
    bare = text[:_LONGEST_NAME].partition(" (")[0].strip().strip("\"'*`$ ")
    bare = bare.replace("\\", "/").rstrip("/").partition("@")[0]
    if not bare:
        return []
    names = [bare]
    cached = _HUB_CACHE.search(bare)
    if cached is not None:
        names = [f"{cached[1]}/{cached[2]}"]
    elif bare.count("/") > 1:
        names.append("/".join(bare.split("/")[-2:]))
    owner = names[-1].rpartition("/")[0].rpartition("/")[2].lower() if _is_hub_id(names[0]) else ""
    names.append(names[-1].rpartition("/")[2])
    found: list[str] = []
    for name in dict.fromkeys(names):
        # REPO:QUANT of llama.cpp, name:tag of Ollama.
        head, colon, tag = name.partition(":")
        spellings = (f"{head}-{tag}", head) if colon else (name,)
        if colon and not _says_nothing(head, tag):
            spellings = spellings[:1]
        for spelled in spellings:
            plain = _SPLIT.sub("", spelled.removesuffix(".gguf").removesuffix(".GGUF"))
            found += [plain, plain.replace("___", ".")]
            # Converters join owner and name: unsloth_DeepSeek R1; files, name and type: V3.Q8.
            found.append(plain.partition("_")[2])
            found.append(plain.rpartition(".")[0] + "-" + plain.rpartition(".")[2])
    return [(owner, name) for name in dict.fromkeys(found) if len(name) > 2]


def _says_nothing(head: str, tag: str) -> bool:
    """Whether a tag names no other model: 1.8.0, latest; a file of a repository, but no size."""
    if not tag or _VERSION_TAG.fullmatch(tag):
        return True
    return "/" in head and _SIZE_IN_TAG.search(tag) is None


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _without_storage(parts: list[str]) -> list[str]:
    """The parts of a name without the words at its end that say how weights are stored."""
    end = len(parts)
    while end > 1:
        if parts[end - 1] in _STORAGE_WORDS:
            end -= 1
            continue
        # 4-bit; and what is said of a way of storing, not of a model: MXFP4-Preview.
        if end > 2 and parts[end - 2] in _BEFORE.get(parts[end - 1], ()):
            end -= 2
            continue
        start = end
        while start > 1 and parts[start - 1] in _GGUF_TAIL:
            start -= 1
        if start > 1 and _GGUF_HEAD.fullmatch(parts[start - 1]):
            end = start - 1
            continue
        break
    return parts[:end]


# --- how weights are stored -----------------------------------------------------------------------


def scheme_name(words: tuple[str, ...], *, stated: str = "", owner: str = "") -> str | None:
    """The scheme that a name's words and the engine's word for the method both describe.

    Empty when nobody says that the weights are quantized; None when what is said is no known
    scheme. `stated` is what the engine printed: `fp8`, `compressed-tensors`, `awq_marlin`.
    """
    text = "-".join((*words, stated.lower()))
    said = {word for word in re.split(r"[-_. ]", text) if word} - {"none", "unsloth"}
    if not said - {"bf16", "fp16", "f16", "gguf", "safetensors"}:
        return ""
    if said & {"fp32", "f32", "float32"} and not stated:
        return "fp32"
    if said & {"modelslim", "mixed", "quarot", "mindie", "torchao", "w4a8"}:
        return None
    for wanted, found in _SCHEMES:
        if wanted <= said:
            return found
    if "fp8" in said:
        return _fp8(said, words, stated.lower(), owner)
    four = bool(said & {"4bit", "int4", "w4a16", "awq", "gptq", "autoround"})
    if "compressed" in said:  # compressed-tensors
        return "w8a8" if said & {"int8", "w8a8"} else "w4a16" if four else None
    if said & {"autoround"} or {"auto", "round"} <= said:
        return "gptq-4bit" if said & {"int4", "4bit", "w4a16"} else None
    if "awq" in said:
        return "awq-4bit"
    if "gptq" in said:
        return "gptq-8bit" if said & {"8bit", "int8", "w8a16"} else "gptq-4bit"
    return None


def is_published(spec: ModelSpec, words: tuple[str, ...]) -> bool:
    """Whether these words describe the catalogue model's own files: DeepSeek-V3-FP8."""
    own = {"bf16", "safetensors"}
    if spec.quantization is not None:
        own = {"safetensors", spec.quantization.method}
    return not set(words) - own


# Words that decide by themselves, the most telling first.
_SCHEMES: tuple[tuple[frozenset[str], str], ...] = tuple(
    (frozenset(words.split()), scheme)
    for words, scheme in (
        ("nvfp4", "nvfp4"),
        ("fp4 modelopt", "nvfp4"),
        ("mxfp4", "mxfp4"),
        ("fp4", "nvfp4"),
        ("fp8 dynamic", "fp8-dynamic"),
        ("fp8 per channel", "fp8-dynamic"),
        ("fp8 block", "fp8-block"),
        ("bnb", "nf4"),
        ("nf4", "nf4"),
        ("bitsandbytes 8bit", "int8"),
        ("bitsandbytes", "nf4"),
        ("w8a8", "w8a8"),
        ("quantized w4a16", "w4a16"),
    )
)


def _fp8(said: set[str], words: tuple[str, ...], stated: str, owner: str) -> str:
    if "compressed" in said or "fp8" not in words or owner in _PER_TENSOR_FP8 or not stated:
        # vLLM's own --quantization fp8 of a 16-bit checkpoint, and per-tensor checkpoints.
        return "fp8"
    return "fp8-block"


# --- a GGUF file's own numbers --------------------------------------------------------------------


def contradiction(spec: ModelSpec, hparams: Mapping[str, Any]) -> str:
    """Where the numbers that a file's log prints are not the model's; empty when none differs.

    Numbers are called as llama.cpp prints them: n_layer, n_embd, n_head, n_expert, ...
    """
    for name, values in _hparams(spec, str(hparams.get("arch", ""))).items():
        theirs = hparams.get(name)
        if isinstance(theirs, int) and not isinstance(theirs, bool) and theirs not in values:
            return f"{name} is {theirs}, not {values[0]}"
    return ""


def _hparams(spec: ModelSpec, arch: str) -> dict[str, tuple[int, ...]]:
    """What llama.cpp prints of this model; several values where files differ."""
    moe = next((found for block in spec.blocks if (found := moe_of(block))), None)
    # A VL model's text input carries the tower's deep features beside the token's vector, and
    # llama.cpp counts them all (src/llama-model.cpp: n_embd * (n_deepstack_layers + 1)).
    deep = 4 if arch.startswith("qwen3vl") else 1
    return {
        # Files count MTP blocks as layers where they hold them.
        "n_layer": (spec.num_layers, spec.num_layers + (len(spec.mtp.layers) if spec.mtp else 0)),
        "n_embd": (spec.hidden_size, spec.hidden_size * deep),
        "n_vocab": (spec.embedding.vocab_size,),
        "n_expert": (moe.num_experts if moe else 0,),
    }


# Without these a file's numbers describe too many models.
_EVIDENCE = frozenset(("n_layer", "n_embd", "n_vocab", "n_head", "n_expert"))


def by_hparams(hparams: Mapping[str, Any]) -> str | None:
    """The catalogue model whose every number is the file's, when all that match are built alike.

    Compared are layers, width, vocabulary, experts and experts used, feed-forward widths, heads,
    KV heads and the latent's width, as far as printed; the first five must be. None when no model
    or models of different shapes match.
    """
    if not hparams.keys() >= _EVIDENCE:
        return None
    layers = hparams["n_layer"]
    matching: list[str] = []
    for row in index()["models"]:
        if row["layers"] not in (layers, layers - 1):
            continue
        spec = spec_of(row["id"])
        if not contradiction(spec, hparams) and not _width_differs(spec, hparams):
            matching.append(row["id"])
    if not matching or len({_shape(spec_of(key)) for key in matching}) > 1:
        return None
    # The plainest: a converter starts from what is not quantized where both were published.
    return min(matching, key=lambda key: (spec_of(key).quantization is not None, len(key), key))


def _width_differs(spec: ModelSpec, hparams: Mapping[str, Any]) -> bool:
    widths: dict[str, set[int]] = {}
    for block in spec.blocks:
        moe = moe_of(block)
        for layer in block.feed_forwards:
            name = "n_ff_exp" if layer is moe else "n_ff"
            widths.setdefault(name, set()).add(layer.intermediate_size)
        if moe is not None:
            widths.setdefault("n_expert_used", set()).add(moe.experts_per_token)
        for mixer in block.mixers:
            for name, value in (
                ("n_head", getattr(mixer, "num_heads", None)),
                ("n_head_kv", getattr(mixer, "num_kv_heads", None)),
                ("n_lora_kv", getattr(mixer, "kv_lora_rank", None)),
            ):
                if value is not None:
                    widths.setdefault(name, set()).add(value)
    # llama.cpp prints the heads of a latent cache once for keys and once for values, and a
    # model's only feed-forward width as n_ff, dense or not.
    if "n_lora_kv" in widths:
        widths.pop("n_head_kv", None)
    if "n_ff" not in widths and "n_ff_exp" in widths:
        widths["n_ff"] = widths["n_ff_exp"] | {0}
    for name, values in widths.items():
        theirs = hparams.get(name)
        if isinstance(theirs, int) and not isinstance(theirs, bool) and theirs not in values:
            return True
    return False


def _shape(spec: ModelSpec) -> tuple[object, ...]:
    """What a plan's sizes follow from, context and names left out."""
    return (spec.blocks, spec.layers, spec.hidden_size, spec.embedding, spec.mtp)
