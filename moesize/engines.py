"""What is known about engines by version: `data/engines/*.json`, read once and cached.

Facts are read off the engine's code; constants are measured and carry a band (core's Constant).
Each holds for a range of versions: `from` inclusive, `before` exclusive, null = no end known.
Adding an engine: a data file, a core module with `rules_of` and a plan function, a row below.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from moesize.core.errors import UnknownNameError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from moesize.core.engine import EngineAnswer, EngineProfile
    from moesize.core.vllm import VllmProfile

_VERSION = re.compile(r"v?(\d+(?:\.\d+)*)")


class _Planner(NamedTuple):
    """Where the code of an engine lies: `module.function`, imported when it is asked for."""

    module: str
    function: str


_ENGINES = {
    "vllm": _Planner("moesize.core.vllm", "plan_vllm"),
    "transformers": _Planner("moesize.core.hf_transformers", "plan_transformers"),
    "tensorrt-llm": _Planner("moesize.core.documented_pools", "plan_pool"),
    "tgi": _Planner("moesize.core.documented_pools", "plan_pool"),
}
_ALIASES: dict[str, str] = {
    "llamacpp": "llama.cpp",
    "llama-cpp": "llama.cpp",
    "llama-server": "llama.cpp",
    "hf": "transformers",
    "trtllm": "tensorrt-llm",
    "trt-llm": "tensorrt-llm",
    "text-generation-inference": "tgi",
}


def engine_id(name: str) -> str:
    """The id of an engine by name or alias. Raises UnknownNameError."""
    key = name.strip().lower()
    key = _ALIASES.get(key, key)
    if key not in _ENGINES:
        raise UnknownNameError("engine", name, tuple(_ENGINES), "moesize engines")
    return key


@cache
def engine_profile(engine: str, version: str | None = None) -> EngineProfile:
    """The profile of an engine, at its default version if none is given.

    Raises UnknownNameError for an engine that is not listed, UnsupportedError for a version that
    cannot be read or is older than everything known.
    """
    from moesize.core.engine import Constant, EngineProfile

    engine = engine_id(engine)
    known = _data(engine)
    version = str(known["default_version"]) if version is None else version
    release = release_of(version)
    oldest = str(known["oldest_version"])
    if release is None or release < (release_of(oldest) or ()):
        raise UnsupportedError(
            f"{engine} version {version!r} is not known", f"use {oldest} or later"
        )
    facts = {row["name"]: row["value"] for row in known["facts"] if _covers(row, release)}
    constants = {
        row["name"]: Constant(**{field: row[field] for field in Constant._fields})
        for row in known["constants"]
        if _covers(row, release)
    }
    return EngineProfile(
        engine=engine,
        title=str(known["title"]),
        version=version,
        is_newer_than_known=release > (release_of(str(known["newest_version"])) or ()),
        facts=facts,
        constants=constants,
    )


@cache
def engine_rules(engine: str, version: str | None = None) -> Any:
    """What the engine's own planner needs to know about a version. Raises as `engine_profile`."""
    profile = engine_profile(engine, version)
    return import_module(_ENGINES[profile.engine].module).rules_of(profile)


def engine_planner(engine: str) -> Callable[..., EngineAnswer]:
    """`plan(spec, stored, gpu, request, rules)` of an engine. Raises UnknownNameError."""
    planner = _ENGINES[engine_id(engine)]
    found: Callable[..., EngineAnswer] = getattr(import_module(planner.module), planner.function)
    return found


def refuse_unplanned(engine: str, given: set[str]) -> None:
    """Raise UnsupportedError for a Request field that the engine's planner does not look at."""
    key = engine_id(engine)
    planned: frozenset[str] = import_module(_ENGINES[key].module).PLANS
    left = sorted(given - planned)
    if left:
        raise UnsupportedError(
            f"{key}: {', '.join(name.replace('_', ' ') for name in left)} cannot be planned",
            "leave the option out; the answer then holds for the model without it",
        )


def vllm_profile(version: str | None = None) -> VllmProfile:
    """`engine_rules` of vLLM, typed."""
    rules: VllmProfile = engine_rules("vllm", version)
    return rules


def release_of(version: str) -> tuple[int, ...] | None:
    """(0, 29, 1) of `0.29.1rc1.dev17`; None if the text does not start with numbers."""
    match = _VERSION.match(version.strip())
    if match is None:
        return None
    return tuple(int(part) for part in match[1].split(".") if len(part) < 10)


def _covers(row: Mapping[str, Any], release: tuple[int, ...]) -> bool:
    first, end = release_of(row["from"]), row["before"]
    return (first or ()) <= release and (end is None or release < (release_of(end) or ()))


@cache
def _data(engine: str) -> dict[str, Any]:
    import json
    from pathlib import Path

    path = Path(__file__).parent / "data" / "engines" / f"{engine}.json"
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def list_engines() -> list[dict[str, Any]]:
    """Every engine that can be planned: its versions and what is said about them."""
    rows = []
    for name in _ENGINES:
        known = _data(name)
        rows.append(
            {
                "name": name,
                "default_version": known["default_version"],
                "versions": f"{known['oldest_version']} to {known['newest_version']}",
                "oldest_version": known["oldest_version"],
                "newest_version": known["newest_version"],
                "note": known["note"],
            }
        )
    return rows
