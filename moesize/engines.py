"""What is known about engines by version: `data/engines/*.json`, read once and cached.

Facts are read off the engine's code; constants are measured and carry a band (core's Constant).
Each holds for a range of versions: `from` inclusive, `before` exclusive, null = no end known. A
constant with an `architecture` holds on GPUs of that one, in place of the one without.
Adding an engine: a data file, a core module with `rules_of` and a plan function, a row below.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from moesize.core.errors import MoesizeError, UnknownNameError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from moesize.calibration import Record
    from moesize.core.engine import EngineAnswer, EngineProfile
    from moesize.core.vllm import VllmProfile

# `b9999` is a build of llama.cpp.
_VERSION = re.compile(r"[vb]?(\d+(?:\.\d+)*)")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


class _Planner(NamedTuple):
    """Where the code of an engine lies: `module.function`, imported when it is asked for."""

    module: str
    function: str


_ENGINES = {
    "vllm": _Planner("moesize.core.vllm", "plan_vllm"),
    "sglang": _Planner("moesize.core.sglang", "plan_sglang"),
    "llama.cpp": _Planner("moesize.core.llamacpp", "plan_llamacpp"),
    "ik_llama.cpp": _Planner("moesize.core.llamacpp", "plan_llamacpp"),
    "transformers": _Planner("moesize.core.hf_transformers", "plan_transformers"),
    "tensorrt-llm": _Planner("moesize.core.documented_pools", "plan_pool"),
    "tgi": _Planner("moesize.core.documented_pools", "plan_pool"),
}
_ALIASES: dict[str, str] = {
    "llamacpp": "llama.cpp",
    "llama-cpp": "llama.cpp",
    "llama-server": "llama.cpp",
    "ik-llama.cpp": "ik_llama.cpp",
    "ik_llama": "ik_llama.cpp",
    "ik-llama": "ik_llama.cpp",
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


def engine_profile(
    engine: str, version: str | None = None, gpu: str = "", kind: str = ""
) -> EngineProfile:
    """The profile of an engine, at its default version if none is given.

    With a GPU's id (and what kind of model: moe, hybrid, dense) constants that `audit --save`
    measured there take the place of the shipped ones. Raises UnknownNameError for an engine that is
    not listed, UnsupportedError for a version that cannot be read or is older than everything
    known.
    """
    return _profile(engine, version, _measured(engine, gpu, kind), _architecture(engine, gpu))


@cache
def _profile(
    engine: str, version: str | None, measured: tuple[Record, ...], architecture: str
) -> EngineProfile:
    from moesize.core.engine import Constant, EngineProfile

    engine = engine_id(engine)
    known = _data(engine)
    version = str(known["default_version"]) if version is None else version
    version = _build_of_day(version, known.get("builds", ()))
    release = release_of(version)
    oldest = str(known["oldest_version"])
    if release is None or (*release, 0, 0) < (release_of(oldest) or ()):
        raise UnsupportedError(
            f"{engine} version {version!r} is not known", f"use {oldest} or later"
        )
    release += (0,) * (3 - len(release))
    newest = release_of(str(known["newest_version"])) or ()
    facts = {row["name"]: row["value"] for row in known["facts"] if _covers(row, release)}
    rows = [row for row in known["constants"] if _covers(row, release)]
    rows = [row for row in rows if row.get("architecture", "") in ("", architecture)]
    rows.sort(key=lambda row: "architecture" in row)  # the later of two stands
    constants = {
        row["name"]: Constant(**{field: row[field] for field in Constant._fields}) for row in rows
    }
    if measured:
        from moesize.calibration import override

        ranges = {
            row["name"]: (release_of(row["from"]) or (), release_of(row["before"] or ""))
            for row in rows
        }
        constants = override(constants, measured, release, ranges)
    return EngineProfile(
        engine=engine,
        title=str(known["title"]),
        version=version,
        is_newer_than_known=release > newest + (0,) * (3 - len(newest)),
        facts=facts,
        constants=constants,
    )


def oldest_version(engine: str) -> str:
    """The oldest version of an engine that is known. Raises UnknownNameError."""
    return str(_data(engine_id(engine))["oldest_version"])


def engine_rules(engine: str, version: str | None = None, gpu: str = "", kind: str = "") -> Any:
    """What the engine's own planner needs to know about a version. Raises as `engine_profile`."""
    return _rules(engine, version, _measured(engine, gpu, kind), _architecture(engine, gpu))


@cache
def _rules(
    engine: str, version: str | None, measured: tuple[Record, ...], architecture: str
) -> Any:
    profile = _profile(engine, version, measured, architecture)
    return import_module(_ENGINES[profile.engine].module).rules_of(profile)


# --- the user's own measurements ------------------------------------------------------------------

# How the source of a constant begins that the user measured.
YOURS = "your "
# None: all records count; else the hash of the log whose records do not, or "off" for all.
_LEFT_OUT: ContextVar[str | None] = ContextVar("calibration_left_out", default=None)


_TRIED: ContextVar[Record | None] = ContextVar("calibration_tried", default=None)


@contextmanager
def calibration_trying(record: Record) -> Iterator[None]:
    """Plan as if this record were the only one of its constant."""
    token = _TRIED.set(record)
    try:
        yield
    finally:
        _TRIED.reset(token)


@contextmanager
def calibration_without(log: str | None) -> Iterator[None]:
    """Plan without the records of one log (its hash), or without any ("off")."""
    token = _LEFT_OUT.set(log if log is not None else _LEFT_OUT.get())
    try:
        yield
    finally:
        _LEFT_OUT.reset(token)


def own_figures_left_out() -> bool:
    """Whether nothing that the user measured counts (--no-calibration)."""
    return _LEFT_OUT.get() == "off"


def _measured(engine: str, gpu: str, kind: str) -> tuple[Record, ...]:
    """Records that hold for this engine, GPU and kind of model."""
    tried = _TRIED.get()
    found = _from_file(engine, gpu, kind)
    if tried is None or tried.gpu != gpu:
        return found
    return (*(record for record in found if record.constant != tried.constant), tried)


def _from_file(engine: str, gpu: str, kind: str) -> tuple[Record, ...]:
    """The user's records; one look at the file system where there is no such file."""
    left_out = _LEFT_OUT.get()
    if not gpu or left_out == "off":
        return ()
    path = os.environ.get("MOESIZE_CALIBRATION")
    if path is None:
        home = os.environ.get("XDG_CONFIG_HOME") or f"{os.environ.get('HOME', '')}/.config"
        path = f"{home}/moesize/calibration.jsonl"
    elif path.strip().lower() in ("", "off", "0", "none"):
        return ()
    try:
        found = os.stat(path)  # noqa: PTH116  (in every plan)
    except (OSError, ValueError):
        return ()
    from moesize.calibration import records_for

    stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
    return records_for(path, stamp, engine_id(engine), gpu, kind, left_out)


def engine_planner(engine: str) -> Callable[..., EngineAnswer]:
    """`plan(spec, stored, gpu, request, rules)` of an engine. Raises UnknownNameError."""
    planner = _ENGINES[engine_id(engine)]
    found: Callable[..., EngineAnswer] = getattr(import_module(planner.module), planner.function)
    return found


def engine_module(engine: str) -> str | None:
    """The core module of an engine; None for an engine that is not planned here."""
    planner = _ENGINES.get(engine)
    return None if planner is None else planner.module


def planned_fields(engine: str) -> frozenset[str]:
    """Names of the Request fields that an engine's planner looks at; none for other engines."""
    planner = _ENGINES.get(engine)
    if planner is None:
        return frozenset()
    found: frozenset[str] = import_module(planner.module).PLANS
    return found


# Options whose name is not that of their Request field.
_OPTIONS = {
    "tensor_parallel_size": "--tp",
    "pipeline_parallel_size": "--pp",
    "data_parallel_size": "--dp",
    "expert_parallel": "--ep",
    "context_tokens": "--context",
    "block_tokens": "--block-size",
    "kv_cache_bytes": "--kv-cache-memory",
    "decode_context_parallel_size": "--dcp",
    "data_parallel_attention": "--dp-attention",
    "num_redundant_experts": "--redundant-experts",
    "cpu_offload_bytes": "--cpu-offload-gib",
    "num_spec_tokens": "--spec-tokens",
    "engine_settings": "--engine-args",
}


def option_of(field: str) -> str:
    """The option that sets a Request field: `--tp` for `tensor_parallel_size`."""
    return _OPTIONS.get(field) or f"--{field.replace('_', '-')}"


def refuse_unplanned(engine: str, given: set[str]) -> None:
    """Raise UnsupportedError for a Request field that the engine's planner does not look at."""
    key = engine_id(engine)
    left = sorted(option_of(field) for field in given - planned_fields(key))
    if "--mtp" in left and "--spec-tokens" in left:
        left.remove("--spec-tokens")  # --mtp sets both
    if left:
        raise UnsupportedError(
            f"{' and '.join(left)} cannot be planned for {_data(key)['title']}",
            "leave it out: the answer then holds for a server without it",
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


def _build_of_day(version: str, builds: Sequence[Sequence[str]]) -> str:
    """A build for a day such as `2026-06-30`, between the known builds around it."""
    if not builds or not _DAY.fullmatch(version.strip()):
        return version
    from datetime import date

    try:
        day = date.fromisoformat(version.strip()).toordinal()
    except ValueError:
        return version
    known = [(date.fromisoformat(when).toordinal(), int(build)) for when, build in builds]
    if not known[0][0] <= day:
        return version
    for (first, build), (last, later) in pairwise(known):
        if day <= last:
            return f"b{build + (later - build) * (day - first) // (last - first)}"
    return f"b{known[-1][1]}"


def _covers(row: Mapping[str, Any], release: tuple[int, ...]) -> bool:
    first, end = release_of(row["from"]), row["before"]
    return (first or ()) <= release and (end is None or release < (release_of(end) or ()))


@cache
def _architecture(engine: str, gpu: str) -> str:
    """Of a GPU, where an engine's constants ask for it; empty where none does."""
    if not gpu or not any("architecture" in row for row in _data(engine_id(engine))["constants"]):
        return ""
    from moesize.gpus import find_gpu

    try:
        return find_gpu(gpu).spec.architecture
    except MoesizeError:  # made for a test, or by a caller: no card of the catalogue
        return ""


@cache
def _data(engine: str) -> dict[str, Any]:
    import json
    from pathlib import Path

    path = Path(__file__).parent / "data" / "engines" / f"{engine}.json"
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def list_engines() -> list[dict[str, Any]]:
    """Every engine that can be planned: its versions and what is said about them."""
    from moesize.calibration import all_records

    own = [record.engine for record in all_records()]
    rows = []
    for name in _ENGINES:
        known = _data(name)
        count = own.count(name)
        yours = (
            "" if not count else f" {count} calibration records of yours are used on their GPUs."
        )
        rows.append(
            {
                "name": name,
                "default_version": known["default_version"],
                "versions": f"{known['oldest_version']} to {known['newest_version']}",
                "oldest_version": known["oldest_version"],
                "newest_version": known["newest_version"],
                "calibration_records": count,
                "note": known["note"] + yours,
            }
        )
    return rows
