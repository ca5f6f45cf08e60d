"""MS003, MS4xx: flags that the engine lacks, values it cannot read, variables nobody defines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.check.findings import Fix
from moesize.check.flags import value_word
from moesize.check.source import Word
from moesize.engine_args.words import is_open

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


def judge_unresolved(bench: Bench, flags: Flags) -> bool:
    """MS003 for values that no file states and that matter; True when one of them is the model."""
    names = {str(item.at): item.name for item in bench.server.unresolved}
    model = bench.server.model
    if model is None and flags.command.model is not None:
        model = flags.model_place().becomes(str(flags.command.model))
    model = model or flags.value("command:model")
    if model is not None and is_open(str(model)) and not _ends_in_a_name(str(model)):
        _undefined(bench, names, model, f"the model is {str(model)[:120]}")
        return True
    used: set[int] = set()
    for typed in flags.command.typed:
        used.add(id(typed.word))
        used.update(id(value) for value in typed.values)
        value = value_word(typed, bench.server)
        if typed.flag is None or typed.flag.effect == "none" or not is_open(str(value)):
            continue
        _undefined(bench, names, value, f"{typed.word.partition('=')[0]} is {str(value)[:80]}")
    for word in bench.server.words:
        if id(word) not in used and "$" in word and not word.startswith("-"):
            _undefined(bench, names, word, f"{str(word)[:80]} may hold further flags")
    return False


def _ends_in_a_name(model: str) -> bool:
    """s3://$BUCKET/models/Mixtral-8x7B: only the place is open, not which model it is."""
    last = model.rstrip("/").rpartition("/")[2]
    if is_open(last) or "/" not in model:
        return False
    from moesize.check.naming import Named, find_model

    return isinstance(find_model(last, None, {}), Named)


def _undefined(bench: Bench, names: dict[str, str], at: Word, what: str) -> None:
    name = names.get(str(at), str(at))[:80]
    bench.add(
        "MS003",
        f"{what}, which no file here defines",
        at,
        fix=Fix(text=f"--set {name.strip('${}()')}=VALUE, or define it in the file"),
        key=(name,),
    )


def judge_version(bench: Bench, version: str | None, profile: EngineProfile) -> None:
    """MS404: no release named, so that the newest known was taken."""
    if version is not None or bench.server.image is None:
        return
    bench.add(
        "MS404",
        f"the image names no release of {profile.title}: judged as {profile.version}",
        bench.server.image,
    )
