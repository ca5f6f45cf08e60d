"""JUnit XML: a test case for each server, those that fit too, so that CI shows what was checked."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

from moesize.renderers.check.lines import (
    engine_words,
    gpu_words,
    memory_words,
    reaches,
    server_of,
    shown_findings,
    visible,
)
from moesize.renderers.check.text import Page

if TYPE_CHECKING:
    from moesize.check.findings import CheckReport, FileResult, ServerResult
    from moesize.renderers.check.lines import Shown

_HEADER = '<?xml version="1.0" encoding="UTF-8"?>\n'
# Findings of this family are about the file: nothing in it could be tested.
_UNREADABLE = "MS001"
_COUNTED = ("failure", "error", "skipped")


def render_junit(report: CheckReport) -> str:
    """A suite for each file. What reaches --fail-on is a failure, the rest is output.

    A server whose fit is not known is skipped: neither passed nor failed.
    """
    page = Page(report)
    by_file: dict[str, list[Shown]] = {}
    for shown in shown_findings(report, verbose=True):
        by_file.setdefault(shown.file.path, []).append(shown)
    root = ElementTree.Element("testsuites", name="moesize check")
    for file in report.files:
        suite = _suite(page, file, by_file.get(file.path, []))
        if len(suite):
            root.append(suite)
    _count(root, [*root.iter("testcase")])
    ElementTree.indent(root)
    return _HEADER + ElementTree.tostring(root, encoding="unicode")


def _suite(page: Page, file: FileResult, found: list[Shown]) -> ElementTree.Element:
    path = _text(file.path)
    suite = ElementTree.Element("testsuite", name=path)
    of_server: dict[int, list[Shown]] = {}
    of_file: list[Shown] = []
    for shown in found:
        server = server_of(file, shown.finding)
        if server is None:
            of_file.append(shown)
        else:
            of_server.setdefault(id(server), []).append(shown)
    if of_file or file.skipped:
        line = of_file[0].finding.span.line if of_file else 1
        case = _case(suite, path, "the file", line)
        _outcome(case, page, of_file, skipped=file.skipped)
    names: dict[str, int] = {}
    for server in file.servers:
        number = names[server.name] = names.get(server.name, 0) + 1
        name = server.name if number == 1 else f"{server.name} ({number})"
        case = _case(suite, path, _text(name), server.span.line)
        _properties(case, server)
        own = of_server.get(id(server), [])
        skipped = server.skipped
        if server.fits is None:
            reasons = (skipped, server.verdict, *(shown.finding.message for shown in own))
            skipped = next(filter(None, reasons), "not judged")
        _outcome(case, page, own, skipped=skipped)
    _count(suite, list(suite))
    return suite


def _case(suite: ElementTree.Element, path: str, name: str, line: int) -> ElementTree.Element:
    return ElementTree.SubElement(
        suite, "testcase", classname=path, name=name, file=path, line=str(line), time="0"
    )


def _properties(case: ElementTree.Element, server: ServerResult) -> None:
    known = {
        "model": server.model_id or server.model or "",
        "engine": engine_words(server),
        "gpu": gpu_words(server),
        "needed of usable": memory_words(server),
    }
    holder = ElementTree.SubElement(case, "properties")
    for name, value in known.items():
        if value:
            ElementTree.SubElement(holder, "property", name=name, value=_text(value))


def _outcome(
    case: ElementTree.Element, page: Page, found: list[Shown], *, skipped: str = ""
) -> None:
    """One result at most, as readers of JUnit expect; all findings of it in one text."""
    failing: list[Shown] = []
    rest: list[Shown] = []
    for shown in found:
        (failing if reaches(page.report, shown.finding) else rest).append(shown)
    if failing:
        first = failing[0].finding
        tag = "error" if first.rule == _UNREADABLE else "failure"
        result = ElementTree.SubElement(
            case, tag, message=_text(first.message), type=_text(first.rule)
        )
        result.text = _blocks(page, failing)
    elif skipped:
        ElementTree.SubElement(case, "skipped", message=_text(skipped))
    if rest:
        ElementTree.SubElement(case, "system-out").text = _blocks(page, rest)


def _blocks(page: Page, found: list[Shown]) -> str:
    return "\n\n".join("\n".join(page.block(shown)) for shown in found)


def _count(element: ElementTree.Element, cases: list[ElementTree.Element]) -> None:
    element.set("tests", str(len(cases)))
    for tag, name in zip(_COUNTED, ("failures", "errors", "skipped"), strict=True):
        element.set(name, str(sum(case.find(tag) is not None for case in cases)))
    element.set("time", "0")


def _text(text: str) -> str:
    """Characters that XML 1.0 allows: what it does not is no printable character either."""
    return visible(text)
