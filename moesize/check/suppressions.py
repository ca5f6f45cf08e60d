"""What a file says to moesize: comments that silence findings, name the GPU or the model.

    # moesize: ignore[MS101] reason        on the line of the value, or alone above it
    # moesize: ignore[MS101,MS202] reason  on or above a server's first line: all of the server
    # moesize: ignore reason               every rule
    # moesize: ignore-file[MS501] reason   the whole file
    # moesize: gpu=h100 model=org/name     for the server it stands in, and those after it

On or above the first line of a Kubernetes object an ignore counts for all of it, as does the
annotation `moesize.dev/ignore: "MS101: reason"`, which survives programs that drop comments.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from moesize.check.findings import Edit, Finding, Fix
from moesize.check.rules import RULES, find_rule
from moesize.check.source import Span, Word
from moesize.core.errors import UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from moesize.check.source import SourceFile
    from moesize.check.yaml_tree import Node

ANNOTATION = "moesize.dev/ignore"
_COMMENT = re.compile(r"#[ \t]{0,8}moesize:[ \t]*([^\r\n]*)")
_IGNORE = re.compile(r"ignore(-file)?(?:[ \t]*\[([^\]]*)\]|(?![\w=-]))[ \t:]*")
_GIVEN = re.compile(r"(\w[\w-]*)=([^\s,;]+)")
_WORDS = ("ignore", "ignore-file", "gpu", "model")
_ALL = frozenset(rule.id for rule in RULES)
_MOST_COMMENTS = 2_000
_MOST_LINES_UP = 200
_LAST_LINE = 1 << 60


@dataclass(slots=True)
class Ignore:
    """One ignore comment or annotation.

    rules      ids it is for; None: every rule
    target     the line it is about; 0 for whole files and annotations
    first, last  lines that it covers whatever the server
    span       of the comment, from # to the end of its line
    alone      nothing else stands on its line
    used       rules that it has silenced
    names      the rules as written, for comments that name some
    """

    rules: frozenset[str] | None
    reason: str
    target: int
    first: int
    last: int
    span: Span
    alone: bool = False
    removable: bool = True
    names: list[tuple[str, str]] = field(default_factory=list)
    used: set[str] = field(default_factory=set)


class Given(NamedTuple):
    """A `gpu=` or `model=` of a comment, with the line that it is about."""

    name: str
    value: Word
    line: int


class ServerPlace(NamedTuple):
    """Where a server begins, for comments about all of it."""

    name: str
    line: int


class FileNotes:
    """Everything that one file says to moesize."""

    def __init__(self, file: SourceFile, documents: Sequence[Node] = (), *, yaml: bool) -> None:
        self.path = file.path
        self.ignores: list[Ignore] = []
        self.given: list[Given] = []
        self.wrong: list[Finding] = []
        self.file = file if self._is_addressed(file.text) else None
        self._documents: list[tuple[int, int]] = [(1, _LAST_LINE)]
        if self.file is None:
            return
        self._yaml = yaml
        self._read_comments(file)
        if documents and ANNOTATION in file.text:
            self._read_annotations(documents)

    @staticmethod
    def _is_addressed(text: str) -> bool:
        return "moesize:" in text or ANNOTATION in text

    # --- reading ----------------------------------------------------------------------------------

    def _read_comments(self, file: SourceFile) -> None:
        found = []
        quoted = _quoted_places(file.text) if self._yaml else []
        for match in _COMMENT.finditer(file.text):
            before = file.text[match.start() - 1 : match.start()]
            if (before and not before.isspace()) or _inside(match.start(), quoted):
                continue
            found.append(match)
            if len(found) >= _MOST_COMMENTS:
                break
        targets, self._documents, objects = self._lines(file)
        for match in found:
            line, column = file.place(match.start())
            alone = not file.line(line)[: column - 1].strip()
            target = targets.get(line, line) if alone else line
            self._directive(file, match, target, alone=alone, objects=objects)

    def _lines(
        self, file: SourceFile
    ) -> tuple[dict[int, int], list[tuple[int, int]], dict[int, tuple[int, int]]]:
        """For comment lines the next line of content; documents; objects by their first line."""
        targets: dict[int, int] = {}
        separators = []
        first_of_document = content = file.num_lines + 1
        objects: dict[int, tuple[int, int]] = {}
        end = file.num_lines
        for number in range(file.num_lines, 0, -1):
            text = file.line(number)
            stripped = text.lstrip()
            if self._yaml and (text == "---" or text.startswith(("--- ", "---\t"))):
                separators.append(number)
                objects[first_of_document] = (number, end)
                end = number - 1
                first_of_document = content = number
            elif not stripped:
                continue
            elif stripped.startswith("#"):
                targets[number] = content
            else:
                first_of_document = content = number
        objects[first_of_document] = (1, end)
        starts = [1, *reversed(separators)]
        documents = list(zip(starts, [n - 1 for n in starts[1:]] + [_LAST_LINE], strict=True))
        return (
            targets,
            documents,
            {
                line: lines
                for line, lines in objects.items()
                if file.line(line).startswith(("apiVersion:", "kind:"))
            },
        )

    def _directive(
        self,
        file: SourceFile,
        match: re.Match[str],
        target: int,
        *,
        alone: bool,
        objects: dict[int, tuple[int, int]],
    ) -> None:
        text = match[1].rstrip()
        start = match.start(1)
        span = file.span(match.start(), start + len(text))
        ignore = _IGNORE.match(text)
        if ignore is not None:
            names = _names(ignore[2]) if ignore[2] is not None else []
            rules = self._rules(names, span) if ignore[2] is not None else None
            if rules is not None and not rules:
                return
            first = last = target
            if ignore[1]:
                first, last, target = 1, _LAST_LINE, 0
            elif self._yaml and target in objects:
                first, last = objects[target]
            self.ignores.append(
                Ignore(
                    rules,
                    text[ignore.end() :].strip() or "ignored",
                    target,
                    first,
                    last,
                    span,
                    alone,
                    names=[(name, rule) for name, rule in _known(names)],
                )
            )
            return
        given = [one for one in _GIVEN.finditer(text) if one[1].lower() in ("gpu", "model")]
        for one in given:
            word = Word(one[2], file.span(start + one.start(2), start + one.end(2)), exact=True)
            self.given.append(Given(one[1].lower(), word, target))
        if not given:
            self._unknown_directive(text, span)

    def _rules(self, names: Iterable[str], span: Span) -> frozenset[str]:
        """Ids of the rules that a comment names; the unknown ones become findings."""
        found = set()
        for name in names:
            try:
                found.add(find_rule(name).id)
            except UnknownNameError as error:
                hint = f"; {error.hint}" if error.hint else ""
                self.wrong.append(_finding(f"{error.message}{hint}", span, (name,)))
        if not found and not names:
            self.wrong.append(_finding("ignore[] names no rule", span, ()))
        return frozenset(found)

    def _unknown_directive(self, text: str, span: Span) -> None:
        """What looks like a misspelled directive is said; prose is left alone."""
        match = re.match(r"([\w-]{1,40})[ \t]*([\[=])?", text)
        if match is None:
            return
        from difflib import get_close_matches

        near = get_close_matches(match[1].lower(), _WORDS, n=1, cutoff=0.75)
        if near or match[2]:
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(_WORDS)}"
            self.wrong.append(_finding(f"no directive {match[1]!r}; {hint}", span, (match[1],)))

    def _read_annotations(self, documents: Sequence[Node]) -> None:
        for key, value in _annotations(documents):
            span = value.span or key.span
            if span is None or span.path != self.path:
                continue
            first, last = self._document_of(span.line)
            for part in re.split(r"[;\n]", str(value)):
                named, _, reason = part.partition(":")
                if not named.strip():
                    continue
                every = named.strip().lower() == "all"
                rules = None if every else self._rules(_names(named), span)
                if rules is None or rules:
                    self.ignores.append(
                        Ignore(
                            rules, reason.strip() or "ignored", 0, first, last, span,
                            removable=False,
                        )
                    )  # fmt: skip

    def _document_of(self, line: int) -> tuple[int, int]:
        return self._documents[bisect_right(self._documents, (line, _LAST_LINE)) - 1]

    # --- what it is for ---------------------------------------------------------------------------

    def value_for(self, name: str, line: int, servers: Sequence[ServerPlace]) -> Word | None:
        """`gpu` or `model` for the server that begins at a line: in it, before it, or on top."""
        given = [one for one in self.given if one.name == name]
        if not given:
            return None
        first, last = self._document_of(line)
        after = min((s.line for s in servers if line < s.line <= last), default=None)
        until = last + 1 if after is None else self._first_line(after)
        begin = self._first_line(line)
        inside = [one for one in given if begin <= one.line < until]
        before = [one for one in given if first <= one.line < begin]
        if inside or before:
            return (inside or before[-1:])[0].value
        on_top = self._documents[0]
        head = [one for one in given if one.line <= on_top[1] and self._is_head(one.line)]
        return head[0].value if head else None

    def _is_head(self, line: int) -> bool:
        """Whether a line is at most the first one of content in the file."""
        assert self.file is not None
        return not any(
            text and not text.startswith(("#", "---"))
            for text in (self.file.line(number).strip() for number in range(1, min(line, 100)))
        )

    def silence(self, findings: Sequence[Finding], servers: Sequence[ServerPlace]) -> None:
        """Mark the findings of this file that a comment covers."""
        if not self.ignores:
            return
        by_name: dict[str, list[int]] = {}
        for server in sorted(servers, key=lambda one: one.line):
            by_name.setdefault(server.name, []).append(server.line)
        for finding in findings:
            if finding.suppressed is not None or finding.span.path != self.path:
                continue
            begins = self._begins(finding, by_name)
            for ignore in self.ignores:
                if ignore.rules is not None and finding.rule not in ignore.rules:
                    continue
                covers = ignore.first <= finding.span.end_line and finding.span.line <= ignore.last
                if covers or (ignore.target and ignore.target in begins):
                    finding.suppressed = ignore.reason
                    ignore.used.add(finding.rule)
                    break

    def _begins(self, finding: Finding, by_name: dict[str, list[int]]) -> tuple[int, ...]:
        """Lines that the server of a finding begins on: of one name the last one before it."""
        lines = by_name.get(finding.server, []) if finding.server else []
        if not lines:
            return ()
        line = lines[max(0, bisect_right(lines, finding.span.line) - 1)]
        return line, self._first_line(line)

    def _first_line(self, line: int) -> int:
        """The line that the list item begins with in which a server's place stands."""
        if self.file is None or not self._yaml:
            return line
        text = self.file.line(line)
        indent = len(text) - len(text.lstrip())
        if text.lstrip().startswith("- "):
            return line
        for number in range(line - 1, max(0, line - _MOST_LINES_UP), -1):
            text = self.file.line(number)
            stripped = text.lstrip()
            if not stripped or stripped.startswith("#"):
                continue
            here = len(text) - len(stripped)
            if here < indent:
                begins = stripped.startswith("- ") and here + 2 == indent
                return number if begins else line
        return line

    def unused(self, active: frozenset[str]) -> list[Finding]:
        """MS004 for comments that silenced nothing, as far as their rules were looked for."""
        out = list(self.wrong)
        for ignore in self.ignores:
            wanted = _ALL if ignore.rules is None else ignore.rules
            if ignore.rules is None:
                idle = wanted if not ignore.used and wanted <= active else frozenset()
            else:
                idle = (wanted - ignore.used) & active
            if not idle:
                continue
            whole = ignore.rules is None or idle == wanted
            names = "" if ignore.rules is None else f"[{','.join(sorted(idle))}]"
            out.append(
                _finding(
                    f"ignore{names} silences nothing",
                    ignore.span,
                    tuple(sorted(idle)) if ignore.rules is not None else (),
                    self._without(ignore, idle, whole=whole) if ignore.removable else None,
                )
            )
        return out

    def _without(self, ignore: Ignore, idle: frozenset[str], *, whole: bool) -> Fix:
        """The edit that takes a comment away, or the rules in it that it is not needed for."""
        assert self.file is not None
        span = ignore.span
        text = self.file.line(span.line)
        if whole and ignore.alone and span.line < self.file.num_lines:
            cut = Span(span.path, span.line, 1, span.line + 1, 1)
            return Fix(text="remove the comment", edits=(Edit(cut, ""),), safe=True)
        if whole:
            column = len(text[: span.column - 1].rstrip()) + 1
            cut = span._replace(column=column, end_column=len(text) + 1)
            return Fix(text="remove the comment", edits=(Edit(cut, ""),), safe=True)
        start = text.index("[", span.column - 1) + 1
        end = text.index("]", start)
        kept = ",".join(name for name, rule in ignore.names if rule not in idle)
        cut = span._replace(column=start + 1, end_column=end + 1)
        return Fix(text=f"ignore only {kept}", edits=(Edit(cut, kept),), safe=True)


def _finding(message: str, span: Span, key: tuple[str, ...], fix: Fix | None = None) -> Finding:
    rule = find_rule("MS004")
    return Finding(
        rule=rule.id, severity=rule.severity, message=message, span=span, key=key, fix=fix
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")[:100] if name.strip()]


def _known(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in names:
        try:
            yield name, find_rule(name).id
        except UnknownNameError:
            continue


def _quoted_places(text: str) -> list[tuple[int, int]]:
    """Where quoted and folded YAML strings stand: a # in them begins no comment.

    In a literal one (`|`) it may: that is how scripts are written.
    """
    import yaml

    out: list[tuple[int, int]] = []
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        for token in yaml.scan(text, Loader=loader):
            if not isinstance(token, yaml.ScalarToken) or token.style not in ("'", '"', ">"):
                continue
            start, end = token.start_mark.index, token.end_mark.index
            if token.style == ">":  # what follows the mark on its own line is a comment
                start = max(start, text.find("\n", start, end))
            out.append((start, end))
    except (yaml.YAMLError, ValueError, RecursionError):
        pass  # what was read before the trouble counts
    return out


def _inside(offset: int, places: list[tuple[int, int]]) -> bool:
    index = bisect_right(places, (offset, _LAST_LINE)) - 1
    return index >= 0 and places[index][0] < offset < places[index][1]


def _annotations(documents: Sequence[Node]) -> Iterable[tuple[Word, Word]]:
    """All values of the annotation, wherever objects are nested."""
    seen: set[int] = set()
    waiting = list(documents)
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        waiting.extend(node.elements())
        for key, value in node.items():
            if key == ANNOTATION and value.text is not None:
                yield key, value.text
            else:
                waiting.append(value)
