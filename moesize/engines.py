"""What is known about engines by version: `data/engines.json`, read once and cached.

Facts are read off the engine's code; constants are measured and carry a band (core's Constant).
Each holds for a range of versions: `from` inclusive, `before` exclusive, null = no end known.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from moesize.core.errors import UnknownNameError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moesize.core.vllm import VllmProfile
    from moesize.core.vllm_budget import Constant

_VERSION = re.compile(r"v?(\d+(?:\.\d+)*)")


class EngineProfile(NamedTuple):
    """Facts and constants of one engine at one version.

    `is_newer_than_known` when the version is above the newest one that was looked at: the facts
    of that one are used.
    """

    engine: str
    version: str
    is_newer_than_known: bool
    facts: Mapping[str, Any]
    constants: Mapping[str, Constant]


@cache
def engine_profile(engine: str, version: str | None = None) -> EngineProfile:
    """The profile of an engine, at its default version if none is given.

    Raises UnknownNameError for an engine that is not listed, UnsupportedError for a version that
    cannot be read or is older than everything known.
    """
    from moesize.core.vllm_budget import Constant

    data = _data()
    if engine not in data["engines"]:
        raise UnknownNameError("engine", engine, tuple(data["engines"]), "moesize engines")
    known = data["engines"][engine]
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
        for row in data["constants"]
        if row["engine"] == engine and _covers(row, release)
    }
    return EngineProfile(
        engine=engine,
        version=version,
        is_newer_than_known=release > (release_of(str(known["newest_version"])) or ()),
        facts=facts,
        constants=constants,
    )


def vllm_profile(version: str | None = None) -> VllmProfile:
    """Everything the vLLM planner needs to know about a version. Raises as `engine_profile`."""
    return _vllm_profile(version)


@cache
def _vllm_profile(version: str | None) -> VllmProfile:
    from moesize.core.vllm import VllmProfile
    from moesize.core.vllm_kv import KvRules

    profile = engine_profile("vllm", version)
    facts = profile.facts
    return VllmProfile(
        version=profile.version,
        constants=profile.constants,
        kv_rules=KvRules(
            widen_below_percent=facts["kv_widen_below_percent"],
            packs_mixed_pages=facts["kv_packs_mixed_pages"],
            reserves_null_block=facts["kv_reserves_null_block"],
        ),
        checkpoint_kinds=tuple(facts["checkpoint_kinds"]),
        default_utilization=facts["gpu_memory_utilization"],
        v2_dense_only=facts["model_runner"] != "v2",
        v2_moe_model_types=tuple(facts.get("v2_moe_model_types", ())),
        min_compute_capability=tuple(facts["min_compute_capability"]),
        schemes_not_loaded=tuple(facts["schemes_not_loaded"]),
        methods_not_loaded=tuple(facts["methods_not_loaded"]),
    )


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
def _data() -> dict[str, Any]:
    import json
    from pathlib import Path

    path = Path(__file__).parent / "data" / "engines.json"
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def list_engines() -> list[dict[str, Any]]:
    """Every engine that can be planned: its versions and what is said about them."""
    return [
        {
            "name": name,
            "default_version": known["default_version"],
            "versions": f"{known['oldest_version']} to {known['newest_version']}",
            "oldest_version": known["oldest_version"],
            "newest_version": known["newest_version"],
            "note": known["note"],
        }
        for name, known in _data()["engines"].items()
    ]
