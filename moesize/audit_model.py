"""Which model a log is about: a catalogue spec and a quantization, or a refusal that says why.

Names are looked up as printed; a quantized copy of a catalogue model is planned as that model with
the scheme that its name or the log states. Paths of the machine that wrote the log are never
opened. A GGUF file that nobody named is recognised by its printed sizes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from moesize.catalog import index
from moesize.core.errors import MoesizeError, UnsupportedError
from moesize.core.inventory import count_parameters, moe_of
from moesize.model_names import is_published, nearest, resolve_name, scheme_name, spec_of

if TYPE_CHECKING:
    from moesize.core.model_spec import ModelSpec
    from moesize.logs.facts import Start


class LoggedModel(NamedTuple):
    """A spec, the `--quant` that the log means, and what was assumed."""

    spec: ModelSpec
    source: str
    quant: str
    note: str


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
        return LoggedModel(spec, source, quant or _scheme(spec, start), "")
    if not start.model:
        raise UnsupportedError("the log does not name the model", "give --model")
    named = resolve_name(start.model)
    if named is not None:
        spec = spec_of(named.id)
        if quant is None and is_published(spec, named.words):
            return LoggedModel(spec, "catalogue", _scheme(spec, start), "")
        stated = start.quantization if spec.quantization is None else ""
        scheme = quant or scheme_name(named.words, stated=stated, owner=named.owner)
        if scheme is None:
            raise UnsupportedError(
                f"how {start.model[:120]!r} stores its weights is not known",
                "give --quant, for example fp8, w4a16 or awq-4bit",
            )
        if not named.words or not scheme:
            return LoggedModel(spec, "catalogue", scheme or "checkpoint", "")
        note = (
            f"{start.model} is planned as {spec.title} in {scheme}; what its "
            "publisher left in full precision is not in the log: --model config.json has it"
        )
        return LoggedModel(spec, "catalogue", scheme, note)
    if online:
        spec, source = resolve_model(start.model, online=False)
        return LoggedModel(spec, source, quant or "checkpoint", "")
    near = nearest(start.model)
    raise UnsupportedError(
        f"the catalogue does not know {start.model[:120]!r}, which the log names",
        "give --model (a catalogue name or a config.json) or --online"
        + (f"; names like it: {', '.join(near)}" if near else ""),
    )


def _scheme(spec: ModelSpec, start: Start) -> str:
    method = start.quantization.lower()
    if not method or spec.quantization is not None:
        return "checkpoint"
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
        if source == "gguf" and quant is None:  # the file has the type of every tensor
            kind = "checkpoint"
        return LoggedModel(spec, source, kind or "checkpoint", "")
    if not kind:
        raise UnsupportedError(
            "the log does not name the GGUF type", "give --quant, such as Q4_K_M"
        )
    base = _GGUF_TYPE.sub("", stem)
    for name in (start.model, base):
        named = resolve_name(name)
        found = None if named is None else spec_of(named.id)
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
            spec = spec_of(row["id"])
            try:
                if not _differences(spec, start):
                    found.append(spec)
            except MoesizeError:
                continue
    return found
