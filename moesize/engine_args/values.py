"""How the value of a flag is read: one function for each `read` of the flags data.

Every reader takes a text and gives a value, or raises InvalidInputError without naming the flag
(the caller adds it). None means: the engine's default.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from moesize.core.errors import InvalidInputError
from moesize.core.units import GIB

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_DIGITS = 18
_MOST_ITEMS = 1 << 12
_MOST_JSON_DEPTH = 32
_SUFFIXED = re.compile(r"(\d{1,18})(?:\.(\d{1,9}))?([kKmMgGtT])", re.ASCII)
_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_YES = ("1", "true", "yes", "y", "on", "enabled", "t")
_NO = ("0", "false", "no", "n", "off", "disabled", "f")


def _wrong(text: str, expected: str) -> InvalidInputError:
    shown = "".join(char if char.isprintable() else "?" for char in text[:40])
    return InvalidInputError(f"{shown!r} is not {expected}")


def whole(text: str) -> int | None:
    """`8192`, `10_000`, -1 and below as typed."""
    cleaned = text.strip()
    if cleaned in ("None", "none", ""):
        return None
    digits = cleaned.removeprefix("-").removeprefix("+").replace("_", "")
    if not digits.isascii() or not digits.isdigit() or len(digits) > _MOST_DIGITS:
        raise _wrong(text, f"a whole number of at most {_MOST_DIGITS} digits")
    return -int(digits) if cleaned.startswith("-") else int(digits)


def not_negative(text: str) -> int | None:
    """A whole number of at least 0."""
    value = whole(text)
    if value is not None and value < 0:
        raise _wrong(text, "a number of at least 0")
    return value


def human(text: str) -> int | None:
    """vLLM utils/argparse_utils.py:human_readable_int: 1k = 1000, 1K = 1024, 1.5k = 1500."""
    match = _SUFFIXED.fullmatch(text.strip())
    if match is None:
        return not_negative(text)
    number, fraction, suffix = match.groups()
    if suffix in _BINARY:
        if fraction is not None:
            raise _wrong(text, f"a number: no decimals with {suffix}, use {suffix.lower()} (1000)")
        return int(number) * _BINARY[suffix]
    fraction = fraction or ""
    scale: int = 10 ** len(fraction)
    return int(number + fraction) * _DECIMAL[suffix] // scale


def length(text: str) -> int | str | None:
    """--max-model-len: a human number; -1 and auto: as long as the memory allows."""
    if text.strip() == "-1" or text.strip().lower() == "auto":
        return "auto"
    return human(text)


def number(text: str) -> float | None:
    """A finite decimal number."""
    if text.strip() in ("None", "none", ""):
        return None
    try:
        value = float(text) if len(text) <= 64 else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _wrong(text, "a number")
    return value


def gib(text: str) -> int | None:
    """GiB into bytes."""
    value = number(text)
    if value is None:
        return None
    if not 0 <= value <= 1 << 20:
        raise _wrong(text, "a size in GiB")
    return round(value * GIB)


def word(text: str) -> str | None:
    """A name as typed; None and an empty text are the default."""
    cleaned = text.strip()
    if not cleaned or cleaned == "None":
        return None
    if not cleaned.isprintable() or len(cleaned) > 4096:
        raise _wrong(text, "a name")
    return cleaned


def truth(text: str) -> bool:
    """true, 1, on, ... or false, 0, off, ..."""
    lowered = text.strip().lower()
    if lowered in _YES:
        return True
    if lowered in _NO:
        return False
    raise _wrong(text, "true or false")


def unmapped(text: str) -> str | None:
    """llama.cpp --no-mmap of builds before --load-mode: the file is not mapped into memory."""
    return "none" if truth(text) else None


def variable_truth(text: str) -> bool:
    """bool(int(value)), as vLLM reads its variables."""
    return truth(text)


def not_truth(text: str) -> bool:
    """The opposite of what is typed: --kv-offload off is no_kv_offload."""
    return not truth(text)


def wholes(text: str) -> tuple[int, ...]:
    """Whole numbers with commas or blanks between, JSON brackets allowed."""
    items = _items(text.strip().removeprefix("[").removesuffix("]"), ", \t\n")
    return tuple(value for item in items if (value := not_negative(item)) is not None)


def numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas or slashes between (llama.cpp --tensor-split)."""
    found = []
    for item in _items(text, ",/"):
        value = number(item)
        if value is None or value < 0:
            raise _wrong(item, "a proportion")
        found.append(value)
    return tuple(found)


def texts(text: str) -> tuple[str, ...]:
    """Names with commas or blanks between."""
    return tuple(found for item in _items(text, ", \t\n") if (found := word(item)) is not None)


def _items(text: str, separators: str) -> list[str]:
    for separator in separators[1:]:
        text = text.replace(separator, separators[0])
    items = [item for item in text.split(separators[0]) if item]
    if len(items) > _MOST_ITEMS:
        raise _wrong(text, f"a list of at most {_MOST_ITEMS:,} items")
    return items


def layers(text: str) -> int | str | None:
    """llama.cpp -ngl: a number, auto or all."""
    lowered = text.strip().lower()
    return lowered if lowered in ("auto", "all") else whole(text)


def on_off(text: str) -> str:
    """llama.cpp -fa and -fit: on, off or auto (and their other spellings)."""
    lowered = text.strip().lower()
    if lowered in ("auto", "-1"):
        return "auto"
    return "on" if truth(text) else "off"


def json_value(text: str) -> Any:
    """JSON of bounded depth and size, with vLLM's bare 80g and 32k as numbers."""
    import json

    depth = 0
    quoted = escaped = False
    for char in text:
        if quoted:
            escaped, quoted = (False, True) if escaped else (char == "\\", char != '"')
        elif char == '"':
            quoted = True
        elif char in "[{":
            depth += 1
            if depth > _MOST_JSON_DEPTH:
                raise _wrong(text, f"JSON of at most {_MOST_JSON_DEPTH} levels")
        elif char in "]}":
            depth -= 1
    try:
        return json.loads(text, parse_constant=_no_constant, parse_int=_json_int)
    except (ValueError, RecursionError):
        pass
    import ast

    # Python's own way of writing it, which some charts print: {'method': 'mtp'}.
    try:
        return ast.literal_eval(text.strip()) if len(text) <= 4096 else _fail(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        raise _wrong(text, "JSON") from None


def _fail(text: str) -> Any:
    raise ValueError(text[:40])


def _no_constant(text: str) -> Any:
    raise ValueError(text)


def _json_int(text: str) -> int:
    if len(text) > _MOST_DIGITS + 1:
        raise ValueError(text[:40])
    return int(text)


def table(text: str) -> dict[str, Any]:
    """A JSON object."""
    value = json_value(text)
    if not isinstance(value, dict):
        raise _wrong(text, "a JSON object")
    return value


def speculative(text: str) -> dict[str, Any]:
    """--speculative-config: method, model, num_speculative_tokens, ... checked."""
    config = table(text)
    for key in ("num_speculative_tokens", "draft_tensor_parallel_size"):
        _check_count(config, key)
    for key in ("method", "model"):
        if config.get(key) is not None and not isinstance(config[key], str):
            raise _wrong(text, f"a table whose {key} is a name")
    return config


def eplb(text: str) -> dict[str, Any]:
    """--eplb-config: num_redundant_experts, ... checked."""
    config = table(text)
    _check_count(config, "num_redundant_experts")
    return config


def compilation(text: str) -> dict[str, Any]:
    """--compilation-config: a JSON object, or the bare level of old releases (-O3)."""
    if text.strip().isdigit():
        return {"level": not_negative(text)}
    config = table(text)
    sizes = config.get("cudagraph_capture_sizes")
    if sizes is not None:
        good = isinstance(sizes, list) and len(sizes) <= _MOST_ITEMS
        if not good or not all(type(size) is int and 0 < size < 1 << 20 for size in sizes):
            raise _wrong(text, "a table whose cudagraph_capture_sizes are whole numbers")
    _check_count(config, "max_cudagraph_capture_size")
    return config


def _check_count(config: dict[str, Any], key: str) -> None:
    value = config.get(key)
    if isinstance(value, str):  # the engines' own checks turn "32" into 32
        value = config[key] = not_negative(value)
    if value is not None and (type(value) is not int or not 0 <= value < 1 << 20):
        raise InvalidInputError(f"{key} is {value!r:.40}, not a number of at least 0")


def limits(text: str) -> tuple[tuple[str, int], ...]:
    """--limit-mm-per-prompt: {"image": 2}, {"image": {"count": 2, ...}} or the old image=2,video=1.

    Gives (modality, items) pairs in the order typed.
    """
    if "{" in text:
        config = table(text)
    else:
        config = {}
        for item in _items(text, ", "):
            name, equals, typed = item.partition("=")
            if not equals:
                raise _wrong(text, "a limit such as image=2")
            config[name] = not_negative(typed)
    found: list[tuple[str, int]] = []
    for name, value in config.items():
        count = value.get("count") if isinstance(value, dict) else value
        if count is None:
            continue
        if (
            not isinstance(count, int)
            or isinstance(count, bool)
            or not 0 <= count < 1 << 20
            or not str(name).isprintable()
        ):
            raise _wrong(text, "a limit such as image=2")
        found.append((str(name)[:40], count))
    return tuple(found)


READERS: dict[str, Callable[[str], Any]] = {
    "int": whole,
    "vllm_human": human,
    "vllm_length": length,
    "float": number,
    "gib": gib,
    "text": word,
    "texts": texts,
    "bool": truth,
    "not_bool": not_truth,
    "llama_unmapped": unmapped,
    "env_bool": variable_truth,
    "ints": wholes,
    "floats": numbers,
    "json": json_value,
    "llama_layers": layers,
    "llama_onoff": on_off,
    "vllm_speculative": speculative,
    "vllm_eplb": eplb,
    "vllm_compilation": compilation,
    "vllm_limits": limits,
}
