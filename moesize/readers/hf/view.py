"""A config.json as strangers write it, behind checked getters.

Every getter names the file and the key when something is wrong, accepts the several names that
families use for one thing, and bounds what it returns: a config is hostile input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moesize.core.errors import InvalidSpecError

if TYPE_CHECKING:
    import builtins

# Far above any model that exists, far below what makes arithmetic or loops slow.
MAX_DIMENSION = 1 << 26
MAX_LAYERS = 4096
MAX_CONTEXT = 1 << 40

_MISSING: Any = object()


class ConfigView:
    """Read-only view of one JSON object of a config, remembering where it stands."""

    __slots__ = ("data", "file", "where")

    def __init__(self, data: Mapping[str, Any], file: str, where: str = "") -> None:
        self.data = data
        self.file = file
        self.where = where

    def __contains__(self, key: str) -> bool:
        return self.data.get(key) is not None

    def path(self, key: str) -> str:
        """Dotted name of a key, for messages."""
        return f"{self.where}.{key}" if self.where else key

    def fail(self, message: str, hint: str = "") -> InvalidSpecError:
        """An error about this file; raise it."""
        return InvalidSpecError(f"{self.file}: {message}", hint)

    def _find(self, keys: Sequence[str]) -> tuple[str, Any]:
        for key in keys:
            if self.data.get(key) is not None:
                return key, self.data[key]
        return keys[0], None

    def int(
        self,
        *keys: str,
        default: Any = _MISSING,
        low: builtins.int = 1,
        high: builtins.int = MAX_DIMENSION,
    ) -> builtins.int:
        """The first of `keys` that is present, as an integer in low..high.

        Raises InvalidSpecError when it is missing (without a default), no integer, or out of range.
        """
        key, value = self._find(keys)
        if value is None:
            if default is _MISSING:
                names = " or ".join(self.path(k) for k in keys)
                raise self.fail(f"{names} is missing", "the size of the model depends on it")
            return default  # type: ignore[no-any-return]
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(f"{self.path(key)} must be an integer, not {_show(value)}")
        if not low <= value <= high:
            raise self.fail(f"{self.path(key)} is {_show(value)}; it must lie in {low}..{high}")
        return value

    def count(
        self, *keys: str, default: Any = _MISSING, high: builtins.int = MAX_DIMENSION
    ) -> builtins.int:
        """Like `int`, zero allowed."""
        return self.int(*keys, default=default, low=0, high=high)

    def layers(self, *keys: str, default: Any = _MISSING) -> builtins.int:
        """Number of layers, 1..4096."""
        return self.int(*(keys or ("num_hidden_layers",)), default=default, high=MAX_LAYERS)

    def flag(self, *keys: str, default: bool | None = None) -> bool:
        """A boolean; missing without a default is an error."""
        key, value = self._find(keys)
        if value is None:
            if default is None:
                raise self.fail(f"{self.path(key)} is missing")
            return default
        if not isinstance(value, bool):
            raise self.fail(f"{self.path(key)} must be true or false, not {_show(value)}")
        return value

    def text(self, *keys: str, default: str | None = None) -> str:
        """A string; missing without a default is an error."""
        key, value = self._find(keys)
        if value is None:
            if default is None:
                raise self.fail(f"{self.path(key)} is missing")
            return default
        if not isinstance(value, str):
            raise self.fail(f"{self.path(key)} must be a string, not {_show(value)}")
        return value

    def number(self, *keys: str, default: float | None = None) -> float:
        """A finite number; missing without a default is an error."""
        key, value = self._find(keys)
        if value is None:
            if default is None:
                raise self.fail(f"{self.path(key)} is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
            raise self.fail(f"{self.path(key)} must be a number, not {_show(value)}")
        return float(value)

    def list(self, *keys: str, max_length: builtins.int = 1 << 16) -> builtins.list[Any]:
        """A list, empty when the key is missing."""
        key, value = self._find(keys)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.fail(f"{self.path(key)} must be a list, not {_show(value)}")
        if len(value) > max_length:
            raise self.fail(f"{self.path(key)} has {len(value)} entries, more than {max_length}")
        return value

    def sub(self, *keys: str) -> ConfigView | None:
        """A nested object, or None when the key is missing."""
        key, value = self._find(keys)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.fail(f"{self.path(key)} must be an object, not {_show(value)}")
        return ConfigView(value, self.file, self.path(key))

    def need_sub(self, *keys: str) -> ConfigView:
        """A nested object; missing is an error."""
        view = self.sub(*keys)
        if view is None:
            raise self.fail(f"{self.path(keys[0])} is missing")
        return view


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
