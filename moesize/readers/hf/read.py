"""config.json -> ModelSpec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moesize.core.errors import InvalidSpecError, UnsupportedError
from moesize.core.feed_forward import MoeMlp
from moesize.core.model_spec import ModelSpec, Source
from moesize.readers.hf.common import model_dtype
from moesize.readers.hf.quantization import read_quantization
from moesize.readers.hf.registry import SpecFields, find_reader, known_model_types
from moesize.readers.hf.view import ConfigView


def spec_from_config(
    data: Mapping[str, Any],
    *,
    file: str,
    name: str = "",
    hub_id: str = "",
    source: str = "",
    checked: str = "",
    quant_config: Mapping[str, Any] | None = None,
) -> ModelSpec:
    """Read a parsed config.json.

    `name` titles a model without a hub id; `quant_config` is a parsed hf_quant_config.json.
    Raises InvalidSpecError for a malformed config and UnsupportedError for a model type without
    a reader or a quantization that is not known.
    """
    if not isinstance(data, Mapping):
        raise InvalidSpecError(f"{file}: a config.json must hold one JSON object")
    config = ConfigView(data, file)
    model_type = config.text("model_type", default="")
    if not model_type:
        raise config.fail("model_type is missing", "every transformers config names its model type")
    reader = find_reader(model_type)
    if reader is None:
        raise _unknown_type(config, model_type)
    try:
        fields = _with_routing(reader(config), config)
        text = config.sub("text_config", "llm_config", "language_config")
        fields.setdefault("dtype", model_dtype(text or config, config))
        fields.setdefault("quantization", read_quantization(config, quant_config))
        identity = hub_id or name or config.text("_name_or_path", default="") or model_type
        return ModelSpec(
            id=slug(identity),
            title=identity.rpartition("/")[2],
            model_type=model_type,
            hub_id=hub_id,
            source=Source(config=source or file, checked=checked),
            **fields,
        )
    except ValueError as error:
        raise config.fail(str(error)) from error


# Names of the flag, and the families whose config class leaves it out as false (transformers 5.19).
_RENORMALIZES = ("norm_topk_prob", "route_norm", "norm_expert_weight", "norm_expert_prob")
_PLAIN_ROUTING = (
    "deepseek",
    "deepseek_v2",
    "deepseek_vl_v2",
    "dots1",
    "flex_olmo",
    "olmoe",
    "qwen2_moe",
    "qwen3_moe",
    "step3_text",
    "step3_vl",
)


def _with_routing(fields: SpecFields, config: ConfigView) -> SpecFields:
    """Notes in every mixture of experts whether its router scales the chosen weights."""
    text = config.sub("text_config", "llm_config", "language_config") or config
    kind = text.text("model_type", default="") or config.text("model_type")
    if text.flag(*_RENORMALIZES, default=kind not in _PLAIN_ROUTING):
        return fields
    blocks = [
        replace(
            block,
            feed_forwards=tuple(
                replace(part, renormalizes=False) if isinstance(part, MoeMlp) else part
                for part in block.feed_forwards
            ),
        )
        for block in fields["blocks"]
    ]
    return {**fields, "blocks": tuple(blocks)}


def slug(name: str) -> str:
    """Catalogue-style id of a hub id or title: lower case, last path element."""
    tail = name.rpartition("/")[2].lower()
    return "".join(char if char.isalnum() or char in ".-" else "-" for char in tail) or "model"


def _unknown_type(config: ConfigView, model_type: str) -> UnsupportedError:
    from difflib import get_close_matches

    shown = model_type if len(model_type) <= 60 else model_type[:57] + "..."
    known = []
    inner = config.sub("text_config", "llm_config", "language_config") or config
    for key in ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads"):
        value = inner.data.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            known.append(f"{key} {value:,}")
    near = get_close_matches(shown, known_model_types(), n=3)
    message = (
        f"{config.file}: model type {shown!r} is not known, so its tensors cannot be listed"
        + (f" (the config states {', '.join(known)})" if known else "")
    )
    hint = (
        "moesize does not guess an architecture; write a model spec (see `moesize import --help`)"
    )
    if near:
        hint += f" - near types with a reader: {', '.join(near)}"
    return UnsupportedError(message, hint)
