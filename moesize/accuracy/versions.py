"""Which version a report ran: as stated, or the release that was current on its date.

Rules, none of them a guess that goes unsaid:
- A release number is taken as it stands.
- A build of the main branch that carries its day (0.11.2.dev690+g67475a6e8.d20251209) is planned
  as the first release that came out after that day: what it was to become. vLLM numbers such builds
  after a tag of a release branch, which may be many releases behind.
- No version, but a date: the release current on that date; a month or a year means all the releases
  of that time, and only what they agree in is predicted. Engines that number their builds by day
  (llama.cpp) are planned as of the day.
- Neither: every range of versions that the engine's data file knows, and again only what they
  agree in.
- A container of NVIDIA's (nvcr.io/nvidia/vllm:25.10-py3) is planned as the release that its
  release notes name; an official image called latest as the release current on the date, a nightly
  one as the next release.
- A text that names no release (a fork, a container of somebody else): not covered.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesize.core.records import dataclass
from moesize.engines import release_of

if TYPE_CHECKING:
    from moesize.accuracy.reports import FieldReport

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_PERIOD = re.compile(r"\d{4}(-\d{2})?")
_BUILD_DAY = re.compile(r"\.d(\d{4})(\d{2})(\d{2})")
_RELEASE = re.compile(r"v?\d+\.\d+")
_BUILD = re.compile(r"b?(\d{1,6})\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """Versions that a report may have run, oldest first; more than one when it did not say.

    `assumed` when the report named none; `note` says which rule was used, `problem` why there is
    no version at all.
    """

    names: tuple[str, ...] = ()
    assumed: bool = False
    note: str = ""
    problem: str = ""


def versions_of(report: FieldReport, engine: str) -> Versions:
    """The versions to plan a report with."""
    stated = report.text("engine_version") or report.text("build")
    date = report.text("date")
    if _has_builds(engine):
        return _build(stated, date)
    if stated:
        return _image(stated, date, engine) or _stated(stated, engine)
    if _DAY.fullmatch(date):
        current = release_on(engine, date)
        if current is None:
            return Versions(
                problem=f"version not planned: no {engine} release is known on or before {date}"
            )
        return Versions(
            names=(current,),
            assumed=True,
            note=f"no version stated: {engine} {current} was current on {date}",
        )
    if _PERIOD.fullmatch(date):
        first, last = _ends(date)
        between = releases_between(engine, first, last)
        if not between:
            return Versions(problem=f"version not planned: no {engine} release is known in {date}")
        return Versions(names=between, assumed=True, note=f"no version stated, only {date}")
    ranges = known_ranges(engine)
    if not ranges:
        return Versions(problem="version not known: neither version nor date stated")
    return Versions(names=ranges, assumed=True, note="neither version nor date stated")


def _build(stated: str, date: str) -> Versions:
    """A build by its number, or the day of the report where it has none that counts."""
    match = _BUILD.match(stated)
    # Built without its history, a build calls itself number 1.
    if match is not None and int(match[1]) > 1:
        return Versions(names=(match[1],))
    if _DAY.fullmatch(date):
        return Versions(names=(date,), assumed=True, note=f"no build stated: as of {date}")
    if _PERIOD.fullmatch(date):
        first, last = _ends(date)
        return Versions(names=(first, last), assumed=True, note=f"no build stated, only {date}")
    return Versions(problem="version not known: neither build nor date stated")


def _ends(period: str) -> tuple[str, str]:
    """First and last day of a month or a year."""
    return (
        (f"{period}-01", f"{period}-28")
        if len(period) == 7
        else (f"{period}-01-01", f"{period}-12-31")
    )


def _image(text: str, date: str, engine: str) -> Versions | None:
    """The release in a container image whose tag names none; None where no rule covers it."""
    name, colon, tag = text.strip().rpartition(":")
    if not colon:
        return None
    listed = _images(engine)
    release = listed.get(name, {}).get(tag)
    if release is not None:
        note = f"{name} {tag} is planned as {engine} {release}, which its release notes name"
        return Versions(names=(release,), assumed=True, note=note)
    if name not in listed or not _DAY.fullmatch(date):
        return None
    if tag == "latest":
        found = release_on(engine, date)
    elif tag.startswith("nightly"):
        found = release_after(engine, date) or release_on(engine, date)
    else:
        return None
    if found is None:
        return None
    note = f"{name}:{tag} of {date} is planned as {engine} {found}"
    return Versions(names=(found,), assumed=True, note=note)


def _stated(text: str, engine: str) -> Versions:
    tag = text.rpartition(":")[2]
    if not _RELEASE.match(tag) or ("/" in text and "vllm-openai" not in text and engine == "vllm"):
        return Versions(problem=f"version names no release: {text[:40]}")
    day = _BUILD_DAY.search(tag)
    if "dev" in tag and day is not None:
        date = "-".join(day.groups())
        later = release_after(engine, date)
        if later is not None:
            return Versions(
                names=(later,),
                assumed=True,
                note=f"built from the main branch on {date}: planned as {later}, the next release",
            )
    return Versions(names=(tag,))


def release_on(engine: str, date: str) -> str | None:
    """The newest release on or before a day (YYYY-MM-DD); None before the first that is known."""
    found = [version for version, day in _releases(engine) if day <= date]
    return max(found, key=_order) if found else None


def release_after(engine: str, date: str) -> str | None:
    """The first release after a day; None when none is known."""
    return next((version for version, day in _releases(engine) if day > date), None)


def releases_between(engine: str, first: str, last: str) -> tuple[str, ...]:
    """The release current on the first day and those that came out up to the last one."""
    current = release_on(engine, first)
    new = [version for version, day in _releases(engine) if first < day <= last]
    return tuple(dict.fromkeys([current, *new] if current else new))


@cache
def known_ranges(engine: str) -> tuple[str, ...]:
    """One version for each range in which the engine's data file says the same."""
    data = _facts(engine)
    if not data:
        return ()
    oldest = release_of(str(data["oldest_version"])) or ()
    rows = [*data["facts"], *data["constants"]]
    starts = {str(row["from"]) for row in rows} | {str(data["oldest_version"])}
    return tuple(sorted((v for v in starts if (release_of(v) or ()) >= oldest), key=_order))


def _has_builds(engine: str) -> bool:
    return bool(_facts(engine).get("builds"))


@cache
def _facts(engine: str) -> dict[str, Any]:
    path = Path(__file__).resolve().parent.parent / "data" / "engines" / f"{engine}.json"
    if not path.is_file():
        return {}
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def _order(version: str) -> tuple[int, ...]:
    return release_of(version) or ()


@cache
def _releases(engine: str) -> tuple[tuple[str, str], ...]:
    return tuple((version, day) for version, day in _known(engine).get("releases", ()))


def _images(engine: str) -> dict[str, dict[str, str]]:
    """Releases by tag, of each container image that is looked into."""
    return {name: row["tags"] for name, row in _known(engine).get("images", {}).items()}


@cache
def _known(engine: str) -> dict[str, Any]:
    path = Path(__file__).resolve().parent.parent / "data" / "releases.json"
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    known: dict[str, Any] = data["engines"].get(engine, {})
    return known
