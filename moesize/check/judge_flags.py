"""MS003, MS4xx: flags that the engine lacks, values it cannot read, variables nobody defines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.check.flags import value_word
from moesize.check.source import Word

if TYPE_CHECKING:
    from moesize.check.flags import Flags
    from moesize.check.judging import Bench
    from moesize.core.engine import EngineProfile

# Programs that wrap an engine and have flags of their own.
_WRAPPERS = ("dynamo", "truss", "kserve_isvc")


def judge_flags(bench: Bench, flags: Flags, kind: str, title: str, *, official: bool) -> None:
    """Flags by what the engine of that version makes of them.

    `official`: the image is the engine's own (or there is none), so that no patch adds flags.
    """
    wrapped = kind in _WRAPPERS or "dynamo" in (bench.server.image or "")
    for typed in flags.command.typed:
        at = typed.word if isinstance(typed.word, Word) else value_word(typed, bench.server)
        name = typed.word.partition("=")[0]
        if typed.state == "bad":
            value = value_word(typed, bench.server)
            bench.add("MS403", f"{title} cannot read {typed.problem}", value, key=(name,))
        elif typed.state == "absent":
            bench.add(
                "MS401",
                f"{title} has no {typed.problem}",
                at,
                severity=None if official else "warning",
                key=(name,),
            )
        elif typed.state == "unknown" and not wrapped and name.startswith("--"):
            bench.add(
                "MS402",
                f"no known release of {title} has {typed.problem}",
                at,
                severity=None if official else "warning",
                key=(name,),
            )


def judge_unresolved(bench: Bench, flags: Flags | None) -> bool:
    """MS003 for values that no file states; True when one of them is the model."""
    server = bench.server
    from moesize.engine_args.words import is_open

    blocks = False
    seen: set[tuple[str, str]] = set()
    for item in server.unresolved:
        if (item.name, str(item.at)) in seen:
            continue
        seen.add((item.name, str(item.at)))
        bench.add(
            "MS003",
            f"the value of {item.name[:80]} is not in the file or its folder",
            item.at,
            key=(item.name,),
        )
    model = server.model
    if model is None and flags is not None:
        model = flags.model_place()
        if model is server.place:
            model = None
    if model is not None and is_open(str(model)):
        blocks = True
        if not any(finding.rule == "MS003" for finding in bench.findings):
            bench.add(
                "MS003",
                f"the model is {str(model)[:120]}, which no file here defines",
                model,
                key=("model",),
            )
    return blocks


def judge_version(bench: Bench, version: str | None, profile: EngineProfile) -> None:
    """MS404: no release named, so that the newest known was taken."""
    if version is not None or bench.server.image is None:
        return
    bench.add(
        "MS404",
        f"the image names no release of {profile.title}: judged as {profile.version}",
        bench.server.image,
    )
