"""Which catalogue model a deployment file means, and how its weights are stored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from moesize.core.errors import MoesizeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moesize.core.model_spec import ModelSpec

# hf://owner/name, ollama://name:tag, s3://bucket/path, pvc://claim/path, oci://registry/image
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,20})://", re.IGNORECASE)
_HUBS = ("hf", "huggingface", "ollama", "nim", "modelscope")


class Named(NamedTuple):
    """A model that was found.

    quant   the scheme that its name states; "checkpoint" when it states none
    note    what was assumed, in words
    """

    spec: ModelSpec
    source: str
    quant: str
    note: str = ""


class NotNamed(NamedTuple):
    """A model that was not found, and why."""

    why: str
    hint: str = ""


def plain_name(text: str) -> str:
    """A reference to a model without its scheme, query and surrounding blanks."""
    name = text.strip().strip("\"'")
    match = _SCHEME.match(name)
    if match is not None and match[1].lower() in _HUBS:
        name = name[match.end() :].partition("?")[0]
    return name.rstrip("/")


def is_storage(text: str) -> bool:
    """Whether a reference names a place (a volume, a bucket, a path) and not a published model."""
    match = _SCHEME.match(text.strip())
    if match is not None:
        return match[1].lower() not in _HUBS
    return text.startswith(("/", "./", "~"))


def find_model(
    text: str,
    fallback: str | None,
    known: Mapping[str, str],
    *,
    online: bool = False,
    ollama: bool = False,
) -> Named | NotNamed:
    """The model that a file names; `known` is the user's own map, `fallback` mere evidence.

    `ollama`: the name is one of Ollama's library, whose tags are sizes and types.
    """
    from moesize.catalog import catalogue_id, resolve_model

    for name in (text, plain_name(text)):
        if name in known:
            mapped = known[name]
            if not online and catalogue_id(mapped) is None and not Path(mapped).exists():
                return NotNamed(
                    f"[models] {name[:80]}: {mapped[:80]!r} is not in the catalogue",
                    "add --online to read its config.json from the hub",
                )
            try:
                spec, source = resolve_model(mapped)
            except MoesizeError as error:
                return NotNamed(f"[models] {name[:80]}: {error.message}", error.hint)
            return Named(spec, source, "checkpoint", f"{name[:80]} is {mapped} ([models])")
    name = plain_name(text)
    if name:
        library = ollama or text.strip().lower().startswith("ollama://")
        found = _by_name(f"ollama://{name}" if library and not is_storage(name) else name)
        if found is not None:
            return _assumed(found, text, name)
    if fallback:
        found = _by_name(plain_name(fallback))
        if found is not None:
            note = f"assumed {found.spec.id}, by the name {fallback[:80]!r} beside {text[:80]!r}"
            return found._replace(note=note)
    if online and name and not is_storage(text):
        try:
            spec, source = resolve_model(name)
        except MoesizeError as error:
            return NotNamed(error.message, error.hint)
        return Named(spec, source, "checkpoint")
    return _not_found(text, name)


def _by_name(name: str) -> Named | None:
    from moesize.model_names import is_published, resolve_name, scheme_name, spec_of

    # meta-llama--Llama-3.1-8B is how people write owner and name into one folder.
    for spelling in dict.fromkeys((name, name.rpartition("/")[2].replace("--", "/"))):
        named = resolve_name(spelling)
        if named is None:
            continue
        spec = spec_of(named.id)
        words = tuple(word for word in named.words if word not in ("gguf", "safetensors"))
        if not words or is_published(spec, words):
            return Named(spec, "catalogue", "checkpoint")
        scheme = scheme_name(words, owner=named.owner)
        if scheme == "":
            return Named(spec, "catalogue", "checkpoint")
        if scheme is None:
            # Of a GGUF file: its type is read from the name by the engine's own rules.
            return Named(spec, "catalogue", "checkpoint", f"weights as {'-'.join(words)}")
        return Named(spec, "catalogue", scheme, f"{name[:80]} is {spec.id} in {scheme}")
    return None


def _assumed(found: Named, text: str, name: str) -> Named:
    if not is_storage(text):
        return found
    note = f"{name[:80]!r} is taken to be {found.spec.id}, by its name"
    return found._replace(note=note if not found.note else f"{note}; {found.note}")


def _not_found(text: str, name: str) -> NotNamed:
    if is_storage(text):
        return NotNamed(
            f"{text[:120]!r} names a place and no model",
            "map it in the configuration: [models]",
        )
    from moesize.model_names import nearest

    near = nearest(name)
    hint = "add --online to read its config.json, or map it in the configuration: [models]"
    if near:
        hint = f"did you mean {' or '.join(near[:2])}? Otherwise {hint}"
    return NotNamed(f"{name[:120]!r} is not in the catalogue", hint)
