"""Which model a log is about: a catalogue spec and a quantization, or a refusal that says why.

Names are looked up as printed; a quantized copy of a catalogue model is planned as that model with
the scheme that its name or the log states. Paths of the machine that wrote the log are never
opened. A GGUF file that nobody named is recognised by its printed sizes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from moesize.catalog import catalogue_id, index, load_spec, spec_folder
from moesize.core.errors import MoesizeError, UnsupportedError
from moesize.core.inventory import count_parameters, moe_of

if TYPE_CHECKING:
    from moesize.core.model_spec import ModelSpec
    from moesize.logs.facts import Start


class LoggedModel(NamedTuple):
    """A spec, the `--quant` that the log means, and what was assumed."""

    spec: ModelSpec
    source: str
    quant: str
    note: str


# What quantized copies are called -> scheme. Longest first.
_SUFFIXES = tuple(
    (re.compile(rf"[-.](?:{pattern})$"), scheme)
    for pattern, scheme in (
        (r"gptq-int4|gptq-4bit|gptq-w4a16|int4-gptq|4bit-gptq", "gptq-4bit"),
        (r"gptq-int8|gptq-8bit", "gptq-8bit"),
        (r"awq-int4|awq-4bit|int4-awq|awq-w4a16|awq-sym|awq", "awq-4bit"),
        (r"quantized\.w4a16|w4a16(?:-g128)?", "w4a16"),
        (r"quantized\.w8a8|w8a8|int8", "w8a8"),
        (r"fp8-block", "fp8-block"),
        (r"fp8-dynamic|fp8-kv|fp8", "fp8"),
        (r"nvfp4", "nvfp4"),
        (r"mxfp4", "mxfp4"),
        (r"bnb-4bit|nf4", "nf4"),
        (r"gptq", "gptq-4bit"),
    )
)
# vLLM's and SGLang's names of methods, for a model whose published checkpoint is not quantized.
_METHODS = {
    "fp8": "fp8",
    "awq": "awq-4bit",
    "awq_marlin": "awq-4bit",
    "gptq": "gptq-4bit",
    "gptq_marlin": "gptq-4bit",
    "bitsandbytes": "nf4",
    "mxfp4": "mxfp4",
    "w8a8_int8": "w8a8",
}
_HUB_CACHE = re.compile(r"models--([\w.-]{1,90}?)--([\w.-]{1,120})")
_SPLIT = re.compile(r"-\d{5}-of-\d{5}$")
_GGUF_TYPE = re.compile(
    r"[-._](?:UD-)?((?:I?Q\d_(?:K(?:_(?:S|M|L|XL|XXL))?|[01]|NL|XS|XXS|S|M)|TQ[12]_0|MXFP4(?:_MOE)?|"
    r"BF16|F16|F32|Q8_0))$",
    re.IGNORECASE,
)
_FTYPE = re.compile(
    r"(?:all |mostly )?((?:I?Q|TQ)\d_\w{1,4}|BF16|F16|F32|MXFP4)(?: - (Small|Medium|Large))?"
)


def model_of(start: Start, model: str | None, quant: str | None, online: bool) -> LoggedModel:
    """The model of a start; `model` and `quant` as given on the command line win.

    Raises UnsupportedError when the log does not say enough, MoesizeError for a bad `model`.
    """
    from moesize.catalog import resolve_model

    if start.engine == "llama.cpp":
        return _gguf(start, model, quant, online)
    if model is not None:
        spec, source = resolve_model(model, online=online)
        return LoggedModel(spec, source, quant or _scheme(spec, start, ""), "")
    if not start.model:
        raise UnsupportedError("the log does not name the model", "give --model")
    for name in _names(start.model):
        found = _catalogue_spec(name)
        if found is not None:
            return LoggedModel(found, "catalogue", quant or _scheme(found, start, ""), "")
    for name in _names(start.model):
        for expression, scheme in _SUFFIXES:
            base = expression.sub("", name.lower())
            found = _catalogue_spec(base) if base != name.lower() else None
            if found is not None:
                note = (
                    f"{start.model} is planned as {found.title} in {quant or scheme}; what its "
                    "publisher left in full precision is not in the log: --model config.json has it"
                )
                return LoggedModel(found, "catalogue", quant or scheme, note)
    if online:
        spec, source = resolve_model(start.model, online=False)
        return LoggedModel(spec, source, quant or "checkpoint", "")
    raise UnsupportedError(
        f"the catalogue does not know {start.model[:120]!r}, which the log names",
        "give --model (a catalogue name or a config.json) or --online",
    )


def _catalogue_spec(name: str) -> ModelSpec | None:
    """Never a file, never the network."""
    known = catalogue_id(name)
    return None if known is None else load_spec(spec_folder() / f"{known}.yaml")


def _names(logged: str) -> list[str]:
    """Names that a printed model may stand for: the id, the last folder, the hub cache's id."""
    text = logged.rstrip("/")
    names = [text]
    cached = _HUB_CACHE.search(text)
    if cached is not None:
        names = [f"{cached[1]}/{cached[2]}", cached[2]]
    elif text.count("/") >= 1:
        names += ["/".join(text.split("/")[-2:]), text.rsplit("/", 1)[1]]
    return [name for name in dict.fromkeys(names) if 0 < len(name) < 200]


def _scheme(spec: ModelSpec, start: Start, default: str) -> str:
    method = start.quantization.lower()
    if not method or spec.quantization is not None:
        return default or "checkpoint"
    if method in _METHODS:
        return _METHODS[method]
    raise UnsupportedError(
        f"the log says quantization {method!r}, the published {spec.title} has none",
        "give --quant, for example fp8, w4a16 or awq-4bit",
    )


# --- GGUF -----------------------------------------------------------------------------------------


def _gguf(start: Start, model: str | None, quant: str | None, online: bool) -> LoggedModel:
    from moesize.catalog import resolve_model

    file = re.split(r"[\\/]", str(start.settings.get("file", "")))[-1].removesuffix(".gguf")
    stem = _SPLIT.sub("", file)
    kind = quant or _gguf_type(stem, start.quantization)
    if model is not None:
        spec, source = resolve_model(model, online=online)
        return LoggedModel(spec, source, kind or "checkpoint", "")
    if not kind:
        raise UnsupportedError(
            "the log does not name the GGUF type", "give --quant, such as Q4_K_M"
        )
    base = _GGUF_TYPE.sub("", stem)
    for name in (start.model, start.model.replace(" ", "-"), base):
        found = _catalogue_spec(name) if name else None
        if found is not None and not _differences(found, start):
            return LoggedModel(found, "catalogue", kind, "")
    for spec in _by_sizes(start):
        note = (
            f"{start.model or base or 'the model'} is planned as {spec.title}: "
            "layers, widths, experts and parameters of the log are the same"
        )
        return LoggedModel(spec, "catalogue", kind, note)
    raise UnsupportedError(
        f"the catalogue knows no model like {start.model or base or 'the one of this log'}",
        "give --model: a catalogue name, a GGUF file or a config.json",
    )


def _gguf_type(stem: str, ftype: str) -> str:
    named = _GGUF_TYPE.search(stem)
    if named is not None:
        found = named[1].upper()
        return "MXFP4_MOE" if found == "MXFP4" else found
    match = _FTYPE.match(ftype.strip())
    if match is None:
        return ""
    size = {"Small": "_S", "Medium": "_M", "Large": "_L"}.get(match[2] or "", "")
    found = match[1].upper() + size
    return "MXFP4_MOE" if found == "MXFP4" else found


def _differences(spec: ModelSpec, start: Start) -> list[str]:
    """Printed facts that contradict a spec."""
    checks = start.checks
    ours: dict[str, int] = {
        "n_layer": spec.num_layers,
        "n_embd": spec.hidden_size,
        "n_expert": max((m.num_experts for b in spec.blocks if (m := moe_of(b))), default=0),
    }
    wrong = [
        f"{name} {checks[name]} in the log, {value} in {spec.title}"
        for name, value in ours.items()
        if isinstance(checks.get(name), int) and checks[name] != value
    ]
    # A log may count the MTP block as a layer.
    if wrong and wrong[0].startswith("n_layer") and checks["n_layer"] == spec.num_layers + 1:
        wrong = wrong[1:]
    params = checks.get("params")
    if isinstance(params, int) and not wrong:
        counts = count_parameters(spec)
        # A tied head may be stored as a second matrix, MTP blocks may be stored.
        apart = min(
            abs(params - counts.total),
            abs(params - counts.stored),
            abs(params - counts.total - counts.mtp),
        )
        if apart > max(checks.get("params_step", 0) * 2, counts.total // 200):
            wrong.append(f"{params:,} parameters in the log, {counts.total:,} in {spec.title}")
    return wrong


def _by_sizes(start: Start) -> list[ModelSpec]:
    if not {"n_layer", "n_embd", "params"} <= start.checks.keys():
        return []
    found = []
    params, layers = start.checks["params"], start.checks["n_layer"]
    for row in index()["models"]:
        if row["layers"] in (layers, layers - 1) and abs(row["total"] - params) <= params // 50:
            spec = load_spec(spec_folder() / f"{row['id']}.yaml")
            try:
                if not _differences(spec, start):
                    found.append(spec)
            except MoesizeError:
                continue
    return found
