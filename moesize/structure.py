"""Plain data -> frozen dataclasses, strictly: no unknown key, no missing key, no wrong type.

One path serves shipped specs and those that users write. pydantic would do the same for 100 ms
more at every start; a test checks that both accept and refuse the same data.
"""

from __future__ import annotations

import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

# No size, count or total of a model comes near it; what follows stays within 64 bits.
MAX_INTEGER = 1 << 50


class StructureError(ValueError):
    """What is wrong and at which dotted path."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path or 'document'}: {message}")
        self.path = path
        self.message = message


def build(hint: Any, data: Any, path: str = "") -> Any:
    """Make a value of type `hint` from plain data. Raises StructureError."""
    if is_dataclass(hint):
        return _dataclass(hint, data, path)
    origin = get_origin(hint)
    if origin is Union or origin is types.UnionType:
        return _union(get_args(hint), data, path)
    if origin is tuple:
        if not isinstance(data, list):
            raise StructureError(path, f"must be a list, not {_show(data)}")
        item = get_args(hint)[0]
        return tuple(build(item, value, f"{path}.{i}") for i, value in enumerate(data))
    if origin is dict:
        if not isinstance(data, dict):
            raise StructureError(path, f"must be a mapping, not {_show(data)}")
        item = get_args(hint)[1]
        return {key: build(item, value, f"{path}.{key}") for key, value in data.items()}
    if origin is Literal:
        if data not in get_args(hint) or isinstance(data, bool):
            choices = ", ".join(repr(choice) for choice in get_args(hint))
            raise StructureError(path, f"must be one of {choices}, not {_show(data)}")
        return data
    return _plain(hint, data, path)


def _plain(hint: Any, data: Any, path: str) -> Any:
    # bool is an int in Python; a size of `true` is a mistake all the same.
    good = isinstance(data, hint) and not (hint is int and isinstance(data, bool))
    if not good and hint is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not good:
        names = {int: "an integer", str: "a string", bool: "true or false", float: "a number"}
        raise StructureError(path, f"must be {names[hint]}, not {_show(data)}")
    if hint is int and not 0 <= data < MAX_INTEGER:
        raise StructureError(path, f"is {_show(data)}, out of range")
    return data


def _union(members: tuple[Any, ...], data: Any, path: str) -> Any:
    if data is None and type(None) in members:
        return None
    rest = [member for member in members if member is not type(None)]
    if len(rest) == 1:
        return build(rest[0], data, path)
    by_kind = {get_args(_hints(member)["kind"])[0]: member for member in rest}
    kind = data.get("kind") if isinstance(data, dict) else data
    if not isinstance(data, dict) or not isinstance(kind, str) or kind not in by_kind:
        kinds = ", ".join(sorted(by_kind))
        raise StructureError(path, f"kind must be one of {kinds}; found {_show(kind)}")
    return build(by_kind[kind], data, path)


def _dataclass(cls: Any, data: Any, path: str) -> Any:
    if not isinstance(data, dict):
        raise StructureError(path, f"must be a mapping, not {_show(data)}")
    hints = _hints(cls)
    unknown = [key for key in data if key not in hints]
    if unknown:
        from difflib import get_close_matches

        near = get_close_matches(str(unknown[0]), hints, n=1)
        text = f"unknown key {str(unknown[0])[:60]!r}"
        text += f" (did you mean {near[0]!r}?)" if near else f"; known: {', '.join(hints)}"
        raise StructureError(_join(path, str(unknown[0])), text)
    values = {key: build(hints[key], value, _join(path, key)) for key, value in data.items()}
    for name in sizes(cls):
        if values.get(name, 1) == 0:
            raise StructureError(_join(path, name), "must be at least 1")
    missing = [
        item.name
        for item in fields(cls)
        if item.name not in values and item.default is MISSING and item.default_factory is MISSING
    ]
    if missing:
        raise StructureError(path, f"{', '.join(missing)} missing")
    try:
        return cls(**values)
    except ValueError as error:
        raise StructureError(path, str(error)) from error


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


@cache
def sizes(cls: Any) -> tuple[str, ...]:
    """Integers that are sizes or counts, never 0.

    Those are the ones that have to be stated, and those for which None says "does not exist".
    """
    hints = _hints(cls)
    return tuple(
        item.name
        for item in fields(cls)
        if hints[item.name] == int | None or (hints[item.name] is int and item.default is MISSING)
    )


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def plain(value: Any) -> Any:
    """The inverse of `build`: dataclasses to dicts, without fields that equal their default."""
    if is_dataclass(value) and not isinstance(value, type):
        out: dict[str, Any] = {}
        for item in fields(value):
            current = getattr(value, item.name)
            if item.name != "kind" and item.default is not MISSING and current == item.default:
                continue
            out[item.name] = plain(current)
        return out
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value
