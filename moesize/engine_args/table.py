"""The flags of an engine: `data/flags/<engine>.json`, read when --engine-args is given."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, NamedTuple

Effect = Literal["planned", "memory", "none"]
Kind = Literal["value", "switch", "optional", "list", "json", "two values"]


class Flag(NamedTuple):
    """One flag of an engine.

    names      the long name first, in dashes
    kind       what follows it
    negates    has a --no- form (and, in vLLM, --disable- for --enable-)
    negative   further names that turn it off
    env        the variable it is read from too
    first      the first release with it that was read; None: all that were read
    end        the first later release without it
    targets    what it sets: request:FIELD, setting:NAME or command:NAME, the first that is planned
    read       how the value is read (`values.READERS`)
    effect     planned; memory: may change memory and is not planned; none: cannot change it
    harmless   values of a `memory` flag that change nothing
    """

    names: tuple[str, ...]
    kind: Kind
    negates: bool
    negative: tuple[str, ...]
    env: str | None
    first: str | None
    end: str | None
    targets: tuple[str, ...]
    read: str
    effect: Effect
    harmless: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.names[0]


class Found(NamedTuple):
    """A flag that a word names; `on` is False for its negative form."""

    flag: Flag
    on: bool = True


class FlagTable(NamedTuple):
    """All flags and variables of an engine.

    names          every spelling, negative forms included
    exact_only     spellings that no shorter form stands for
    variables      environment variable -> its flag (a row of its own for variables alone)
    silent         variables that cannot change memory
    versions       releases whose source was read, oldest first
    prefixes       a long flag may be shortened as far as it stays unique (argparse)
    """

    engine: str
    flags: tuple[Flag, ...]
    names: dict[str, Found]
    exact_only: frozenset[str]
    variables: dict[str, Flag]
    silent: frozenset[str]
    versions: tuple[str, ...]
    prefixes: bool
    lora_defaults: dict[str, int]

    def find(self, word: str, version: str | None) -> Found | list[str]:
        """The flag that a word names, or the names that it may be short for."""
        exact = self.names.get(word)
        if exact is not None:
            return exact
        if not self.prefixes or not word.startswith("--") or len(word) < 4:
            return []
        fits = {
            name: found
            for name, found in self.names.items()
            if name.startswith(word) and name not in self.exact_only
        }
        there = {n: f for n, f in fits.items() if version is None or self.has(f.flag, version)}
        fits = there or fits
        different = {(found.flag.name, found.on) for found in fits.values()}
        return next(iter(fits.values())) if len(different) == 1 else sorted(fits)

    def has(self, flag: Flag, version: str) -> bool:
        """Whether a release has a flag: no, only if the releases read around it both lack it."""
        from moesize.engines import release_of

        here = release_of(version)
        if here is None or not self.versions or (flag.first is None and flag.end is None):
            return True
        read = [release_of(each) or () for each in self.versions]
        below = [each for each in read if each <= here] or read[:1]
        above = [each for each in read if each >= here] or read[-1:]
        first = (release_of(flag.first) or ()) if flag.first else ()
        end = release_of(flag.end) if flag.end else None
        return any(first <= each and (end is None or each < end) for each in (below[-1], above[0]))

    def last_with(self, flag: Flag) -> str:
        """The last release read that has a flag which was removed; empty for others."""
        if flag.end is None or flag.end not in self.versions:
            return ""
        return self.versions[self.versions.index(flag.end) - 1]


@cache
def flag_table(engine: str) -> FlagTable:
    """The table of an engine; an engine without flags has an empty one."""
    import json
    from pathlib import Path

    path = Path(__file__).parent.parent / "data" / "flags" / f"{engine}.json"
    known: dict[str, Any] = {}
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
    flags = [_flag(row) for row in known.get("flags", ())]
    names: dict[str, Found] = {}
    for flag in flags:
        for name in flag.names:
            names[name] = Found(flag)
    for flag in flags:
        for name in _negative_names(flag):
            names.setdefault(name, Found(flag, on=False))
    inverse = {name: Found(flag, on=False) for flag in flags for name in _inverse_names(flag)}
    exact_only = frozenset(inverse) - frozenset(names)
    names = inverse | names
    variables = {flag.env: flag for flag in flags if flag.env}
    for flag in flags:
        if flag.env and flag.negative and flag.env.startswith("LLAMA_ARG_"):
            variables[flag.env.replace("LLAMA_ARG_", "LLAMA_ARG_NO_", 1)] = flag
    for row in known.get("environment", ()):
        variables[row["name"]] = _flag({"names": [row["name"]], "kind": "value", **row})
    return FlagTable(
        engine=engine,
        flags=tuple(flags),
        names=names,
        exact_only=exact_only,
        variables=variables,
        silent=frozenset(known.get("environment_without_effect", ())),
        versions=tuple(known.get("versions_read", ())),
        prefixes=bool(known.get("prefixes", False)),
        lora_defaults=dict(known.get("lora_defaults", {})),
    )


def _flag(row: dict[str, Any]) -> Flag:
    targets = row.get("sets", ())
    return Flag(
        names=tuple(row["names"]),
        kind=row["kind"],
        negates=bool(row.get("no", False)),
        negative=tuple(row.get("negative", ())),
        env=row.get("env"),
        first=row.get("from"),
        end=row.get("before"),
        targets=(targets,) if isinstance(targets, str) else tuple(targets),
        read=row.get("read", "text"),
        effect=row["effect"],
        harmless=tuple(row.get("harmless", ())),
    )


def _negative_names(flag: Flag) -> list[str]:
    """--no-x of a two-way switch, and the names of its own."""
    found = list(flag.negative)
    if flag.negates:
        found += ["--no-" + name[2:] for name in flag.names if name.startswith("--")]
    return found


def _inverse_names(flag: Flag) -> list[str]:
    """--disable-x for --enable-x and the other way round: vLLM 0.33.0 utils/argparse_utils.py."""
    if flag.negates and flag.name.startswith("--enable-"):
        return [flag.name.replace("--enable-", "--disable-", 1)]
    if flag.negates and flag.name.startswith("--disable-"):
        return [flag.name.replace("--disable-", "--enable-", 1)]
    return []
