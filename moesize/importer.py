"""`moesize import`: config.json or GGUF file -> model-spec YAML."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moesize.catalog import resolve_model
from moesize.core.errors import InvalidInputError
from moesize.structure import plain

if TYPE_CHECKING:
    from moesize.core.model_spec import ModelSpec

_HEADER = "# A moesize model spec; `moesize schema spec` prints its JSON Schema.\n"


def spec_yaml(source: str, *, spec_id: str | None = None, online: bool = False) -> str:
    """The spec of a config.json, folder, GGUF file or hub id as YAML text. Raises MoesizeError."""
    spec, _ = resolve_model(source, online=online)
    if spec_id is not None:
        spec = replace(spec, id=spec_id)
    return dump_spec(spec)


def dump_spec(spec: ModelSpec) -> str:
    """YAML that `catalog.load_spec` reads back to an equal spec."""
    import yaml

    text = yaml.safe_dump(
        plain(spec), sort_keys=False, default_flow_style=None, width=100, allow_unicode=True
    )
    return _HEADER + str(text)


def write_spec(target: str, text: str) -> None:
    """Write a file whole or not at all; an existing one is replaced. Raises InvalidInputError."""
    path = Path(target)
    if path.is_symlink():  # the link stays, what it points to is written
        path = path.resolve()
    if path.exists() and not path.is_file():
        raise InvalidInputError(f"{target}: is not a regular file", "leave --output out for stdout")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InvalidInputError(f"{target}: cannot be written ({error.strerror})") from error
