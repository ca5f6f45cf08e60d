"""JSON Schemas of the documents and of spec files, generated; the only user of pydantic.

Nothing is defined here a second time: documents come from the types in `documents`, specs from
the dataclasses of `core`, with the same strictness as `structure`.
"""

from __future__ import annotations

import types
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

from moesize.core.errors import UnknownNameError
from moesize.structure import MAX_INTEGER, sizes

if TYPE_CHECKING:
    from pydantic import BaseModel

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def document_names() -> list[str]:
    """Every name that `find_schema` knows."""
    from moesize.documents import DOCUMENTS

    return [*DOCUMENTS, "spec"]


def find_schema(name: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a document. Raises UnknownNameError."""
    key = name.strip().lower()
    if key == "spec":
        return {"$schema": _DIALECT, **spec_model().model_json_schema()}
    from moesize.documents import DOCUMENTS

    if key not in DOCUMENTS:
        from difflib import get_close_matches

        near = get_close_matches(key[:80], document_names(), n=2)
        raise UnknownNameError("document", name, near, "moesize schema --help")
    from pydantic import TypeAdapter

    return {"$schema": _DIALECT, **TypeAdapter(DOCUMENTS[key]).json_schema(mode="serialization")}


@cache
def spec_model() -> type[BaseModel]:
    """A pydantic model of the spec files: it accepts what `catalog.load_spec` accepts."""
    from moesize.core.model_spec import ModelSpec

    return _model(ModelSpec)


@cache
def _model(cls: Any) -> type[BaseModel]:
    """The pydantic twin of a dataclass: strict, no unknown keys, defaults where it has them."""
    from pydantic import ConfigDict, create_model

    hints = get_type_hints(cls)
    members: dict[str, Any] = {}
    for item in fields(cls):
        default = ... if item.default is MISSING or item.name == "kind" else item.default
        least = 1 if item.name in sizes(cls) else 0
        members[item.name] = (_hint(hints[item.name], least), default)
    config = ConfigDict(extra="forbid", strict=True)
    model: type[BaseModel] = create_model(
        cls.__name__, __config__=config, __doc__=cls.__doc__, **members
    )
    return model


def _hint(hint: Any, least: int = 0) -> Any:
    """A field's type with dataclasses, unions and integers as pydantic should see them."""
    from pydantic import Field

    if hint is int:
        return Annotated[int, Field(ge=least, lt=MAX_INTEGER)]
    if isinstance(hint, type) and is_dataclass(hint):
        return _model(hint)
    origin, members = get_origin(hint), get_args(hint)
    if origin is tuple:
        return tuple[_hint(members[0]), ...]  # type: ignore[misc]
    if origin is Union or origin is types.UnionType:
        rest = [member for member in members if member is not type(None)]
        twin: Any = Union[tuple(_hint(member, least) for member in rest)]  # noqa: UP007  (at run time)
        if len(rest) > 1:
            twin = Annotated[twin, Field(discriminator="kind")]
        return twin if len(rest) == len(members) else twin | None
    return hint
