"""Walks over the commands of a shell text, as a shell would, and collects the engines started."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from moesize.check.programs import (
    SHELL_NAMES,
    join_ollama,
    looks_like_start,
    may_start,
    program_name,
    started,
)
from moesize.check.shell_expand import Expansion
from moesize.check.shell_syntax import Command, Raw, assignment
from moesize.check.shell_values import (
    MOST_FIELDS,
    UNKNOWN,
    UNSET,
    Field,
    Piece,
    Value,
    Variable,
    as_word,
)
from moesize.check.source import Word

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from moesize.check.programs import Launch
    from moesize.check.shell_values import Budget, Text
    from moesize.check.source import SourceText

    Opener = Callable[[str], SourceText | None]

_CONTROL = frozenset(
    ("if", "then", "elif", "else", "fi", "while", "until", "do", "done", "{", "}", "!", "time")
)
_DECLARING = ("export", "declare", "typeset", "local", "readonly")
_TESTS = ("[", "[[", "test", "grep", "command", "which")
_BUILTINS = ("set", "shift", "unset", "read", "mapfile", "readarray", "getopts", "let")
# {0..7}, $(seq 0 7), $(seq 8); and the head of `for ((i = 0; i < 8; i++))`.
_RANGE = re.compile(r"\{(\d{1,4})\.\.(\d{1,4})\}|\$\(seq (?:([\w${}]{1,40}) )?([\w${}]{1,40})\)")
_COUNTED = re.compile(
    r"\(\(\s*([A-Za-z_]\w{0,40})\s*=\s*([\w${}]{1,40})\s*;\s*\1\s*(<=?)\s*([\w${}]{1,40})\s*;"
    r"\s*(?:\1\+\+|\+\+\1)"
)
_MOST_REPEATED = 32
_MOST_CALLS = 4
_MOST_NESTED_TEXTS = 3
_MOST_SOURCED = 10


class _Step(NamedTuple):
    """One thing to do: a command, or a word of control (`kind` is that word)."""

    kind: str
    command: Command
    words: list[Raw]


class _Guard(NamedTuple):
    """A test before && or ||, and what it gives where that is known."""

    value: bool | None


def _steps_of(commands: list[Command]) -> list[_Step]:
    """Commands with the words of control taken off; lines that begin with a flag are joined."""
    steps: list[_Step] = []
    for command in commands:
        words = command.words
        if words and steps and _continues(steps[-1], command):
            last = steps[-1]
            last.words.extend(words)
            last.command.here += command.here
            last.command.after = command.after
            continue
        num_control = 0
        while num_control < len(words) and words[num_control].plain in _CONTROL:
            steps.append(_Step(words[num_control].plain, command, []))
            num_control += 1
        words = words[num_control:]
        first = words[0].plain if words else ""
        if command.function:
            steps.append(_Step("function", command, []))
        elif first == "function" and len(words) > 1:
            command.function = words[1].plain
            steps.append(_Step("function", command, []))
            if len(words) > 2 and words[2].plain == "{":
                steps.append(_Step("{", command, []))
                steps.append(_Step("command", command, words[3:]))
        elif first in ("for", "select"):
            steps.append(_Step("for", command, words))
        elif first in ("case", "esac"):
            steps.append(_Step(first, command, words))
        else:
            steps.append(_Step("command", command, list(words)))
    return steps


def _continues(last: _Step, command: Command) -> bool:
    """Whether a line that begins with a flag belongs to the command before it."""
    if last.kind != "command" or not last.words or command.before != "\n":
        return False
    first = command.words[0].parts
    is_flag = bool(first) and first[0].kind == "text" and first[0].text.startswith("-")
    return is_flag and last.command.after == "\n"


class Shell(Expansion):
    """One script: its variables, functions, and what it starts."""

    def __init__(
        self,
        text: Text,
        environment: Mapping[str, Word],
        arguments: Sequence[Word],
        budget: Budget,
        *,
        depth: int = 0,
        fixed: frozenset[str] = frozenset(),
        read_file: Opener | None = None,
    ) -> None:
        super().__init__(text, environment, arguments, budget, fixed)
        self.depth = depth
        self.read_file = read_file
        self.num_sourced = 0
        self.all_exported = False
        self.steps: list[_Step] = []
        self.functions: dict[str, tuple[int, int]] = {}
        self.called: set[str] = set()
        self.found: list[Launch] = []
        self.is_negated = False  # by `!`
        self.round = 0
        self.rounds: dict[tuple[object, ...], int] = {}  # in which one a launch was seen last
        self.list_start = 0  # the first launch of the commands that one `&` would put aside

    def run(self, start: int, end: int) -> None:
        """The commands of a piece of the text, then the functions that nothing called."""
        self.steps = _steps_of(self.reader.commands(start, end))
        self.walk(0, len(self.steps), 0)
        for name, (first, last) in list(self.functions.items()):
            if name not in self.called and self.open_scope("("):
                self.called.add(name)
                self.arguments = []
                self.walk(first, last, 1)
                self.close_scope()

    def walk(self, position: int, end: int, calls: int) -> None:
        """Steps in order; what is left open at the end is closed."""
        num_scopes = len(self.scopes)
        guard: _Guard | None = None
        while position < end:
            step = self.steps[position]
            position += 1
            self.budget.commands -= 1
            if self.budget.commands < 0 or self.budget.launches <= 0:
                break
            if step.kind == "command":
                guard = self.simple(step, guard, num_scopes, calls)
                self.is_negated = False
            elif step.kind == "function":
                position = self.define(position, end)
            elif step.kind == "!":
                self.is_negated = not self.is_negated
            elif step.kind == "for" and (values := self.loop_values(step)) and calls < _MOST_CALLS:
                position = self.repeat(step, values, position, end, calls)
                self.after(self.steps[position - 1].command.after, num_scopes)
            else:
                guard = None
                if not self.control(step, position, end, num_scopes):
                    break
        while len(self.scopes) > num_scopes:
            self.close_scope()

    def top(self, num_scopes: int) -> str:
        """The kind of the innermost construct that was opened here."""
        return self.scopes[-1].kind if len(self.scopes) > num_scopes else ""

    def enter(self, kind: str) -> bool:
        """Open a construct."""
        return self.open_scope(kind, len(self.found))

    # --- control ----------------------------------------------------------------------------------

    def control(self, step: _Step, position: int, end: int, num_scopes: int) -> bool:
        """A word of control; False where the text nests too deeply to go on."""
        kind, top = step.kind, self.top(num_scopes)
        if kind == "if":
            return self.enter("if?")
        if kind in ("while", "until"):
            if not self.enter("loop?"):
                return False
            self.scopes[-1].subject = kind
            self.forget_counters(position, end)
        elif kind == "for":
            if not self.enter("loop"):
                return False
            # Over words, and not over the script's arguments: at least once.
            self.scopes[-1].is_whole = self.loop_variable(step)
            self.forget_counters(position, end)
        elif kind == "case":
            return self.open_case(step)
        elif kind == "do" and top == "loop?":
            scope = self.scopes[-1]
            ends = scope.subject == "until"
            scope.kind, scope.is_dead = "loop", scope.condition is ends
        elif kind == "then" and top == "if?":
            self.scopes[-1].kind = "if"
            self.scopes[-1].decide(self.scopes[-1].condition)
        elif kind in ("elif", "else") and top == "if":
            scope = self.scopes[-1]
            self.next_arm(scope)
            if kind == "else":
                scope.is_whole = True
                scope.decide(value=True)
            else:
                scope.kind, scope.condition, scope.is_dead = "if?", None, False
        elif (
            (kind == "fi" and top in ("if", "if?"))
            or (kind == "done" and top in ("loop", "loop?"))
            or (kind == "esac" and top == "case")
        ):
            self.list_start = self.scopes[-1].first
            self.close_scope()
            self.after(step.command.after, num_scopes)
        return True

    def open_case(self, step: _Step) -> bool:
        """`case WORD in`, maybe with the first pattern."""
        if not self.enter("case"):
            return False
        scope, words = self.scopes[-1], step.words
        scope.subject = self.tested_text(words[1]) if len(words) > 1 else None
        scope.in_pattern = True
        scope.condition = False
        if len(words) > 3:
            self.pattern(words[3:], step.command.after)
        return True

    def pattern(self, words: Sequence[Raw], after: str) -> None:
        """A pattern of a case, and the branch that begins behind the last one."""
        scope = self.scopes[-1]
        fits = _matches(words[0], scope.subject) if len(words) == 1 else None
        scope.condition = True if fits else (None if fits is None else scope.condition)
        if after == ")":
            scope.in_pattern = False
            scope.decide(scope.condition)

    def after(self, operator: str, num_scopes: int) -> None:
        """What the operator behind a command ends."""
        if operator == "&":
            for index in range(self.list_start, len(self.found)):
                self.found[index] = self.found[index]._replace(background=True)
        if operator not in ("&&", "||", "|", "|&", ")"):
            self.list_start = len(self.found)
        top = self.top(num_scopes)
        if operator == ")" and top == "(":
            self.list_start = self.scopes[-1].first
            self.close_scope()
        elif operator in (";;", ";&", ";;&") and top == "case":
            scope = self.scopes[-1]
            self.next_arm(scope)
            scope.in_pattern, scope.is_dead, scope.condition = True, False, False

    def define(self, position: int, end: int) -> int:
        """Remember a function's body; gives the step after it."""
        name = self.steps[position - 1].command.function
        while position < end and self.steps[position].kind == "command":
            if self.steps[position].words:
                return position
            position += 1
        if position >= end or self.steps[position].kind != "{":
            return position
        position += 1
        depth, first = 1, position
        while position < end and depth:
            kind = self.steps[position].kind
            depth += (kind == "{") - (kind == "}")
            position += 1
        if name and len(self.functions) < 1000:
            self.functions[name] = (first, position if depth else position - 1)
        return position

    def loop_variable(self, step: _Step) -> bool:
        """`for NAME in words` of which not all are known. Whether there certainly are any."""
        name = step.words[1].plain if len(step.words) > 1 else ""
        if not name.isidentifier():
            return False
        first = step.words[3].parts if len(step.words) > 3 else ()
        if not self.arguments and (len(step.words) == 2 or (first and first[0].text in ("@", "*"))):
            # `for NAME in "$@"`: what the caller gives.
            at = step.words[-1]
            written = self.text.value[at.start : at.end][:100]
            self.assign(name, (Piece(written, self.text, at.start, at.end, "@"),))
            return False
        self.assign(name, UNKNOWN)
        return any(raw.literal for raw in step.words[3:])

    def loop_values(self, step: _Step) -> list[Value]:
        """What the variable of a `for` holds, one after the other; empty where that is unknown."""
        words = step.words
        if len(words) == 2 and words[1].parts[0].kind == "open":
            return self.counted(words[1])
        if len(words) < 4 or words[2].plain != "in" or not words[1].plain.isidentifier():
            return []
        found: list[Value] = []
        for raw in words[3 : 4 + _MOST_REPEATED]:
            match = _RANGE.fullmatch(self.text.value[raw.start : min(raw.end, raw.start + 60)])
            if match is not None:
                first, last = (
                    self.bound(each) for each in (match[1] or match[3], match[2] or match[4])
                )
                if match[3] is None and match[4] is not None:
                    first = 1  # $(seq 8)
                if first is None or last is None:
                    return []
                found += self.numbers(first, last + 1, raw)
            else:
                found += [field.value for field in self.fields(raw)]
            if len(found) > _MOST_REPEATED:
                return []
        is_open = any(piece.open for value in found for piece in value)
        return [] if is_open else found

    def counted(self, raw: Raw) -> list[Value]:
        """`for ((i = 0; i < 8; i++))`."""
        match = _COUNTED.match(self.text.value[raw.start : min(raw.end, raw.start + 100)])
        if match is None:
            return []
        first, last = self.bound(match[2]), self.bound(match[4])
        if first is None or last is None:
            return []
        return self.numbers(first, last + (match[3] == "<="), raw)

    def bound(self, text: str | None) -> int | None:
        """A number, or a variable that holds one."""
        if text is None:
            return None
        name = text.strip("${}\"' ")
        return int(name) if name.isdigit() else self.number(name)

    def numbers(self, first: int, end: int, raw: Raw) -> list[Value]:
        """Whole numbers at the place of the word that counts them out."""
        if end - first > _MOST_REPEATED:
            return []
        return [
            (Piece(str(number), self.text, raw.start, raw.end),) for number in range(first, end)
        ]

    def repeat(self, step: _Step, values: list[Value], position: int, end: int, calls: int) -> int:
        """The body of a `for`, once for each value; gives the step after it."""
        name, first, depth = step.words[1].plain, position, 1
        if not name:
            match = _COUNTED.match(self.text.value[step.words[1].start : step.words[1].end][:100])
            name = match[1] if match is not None else ""
        while position < end and depth:
            kind = self.steps[position].kind
            depth += (kind in ("while", "until", "for")) - (kind == "done")
            position += 1
        last = position if depth else position - 1
        list_start = self.list_start
        for value in values:
            self.assign(name, value)
            self.walk(first, last, calls + 1)
        self.list_start = list_start
        return position

    def forget_counters(self, position: int, end: int) -> None:
        """Variables that a loop computes from themselves are not known inside it."""
        depth = 1
        while position < end and depth and self.budget.commands > 0:
            step = self.steps[position]
            position += 1
            self.budget.commands -= 1
            depth += (step.kind in ("while", "until", "for")) - (step.kind == "done")
            for raw in step.words[:3] if step.kind == "command" else ():
                given = assignment(raw)
                if given is None or raw.elements is not None:
                    continue
                name, _, operator, parts = given
                if operator == "+=" or any(
                    (part.kind == "name" and part.text == name and not part.operator)
                    or (part.kind == "sum" and name in self.inside(part.rest))
                    for part in parts[:50]
                ):
                    self.assign(name, UNKNOWN)

    def inside(self, place: tuple[int, int]) -> str:
        """A short piece of the text."""
        return self.text.value[place[0] : min(place[1], place[0] + 300)]

    # --- commands ---------------------------------------------------------------------------------

    def simple(
        self, step: _Step, guard: _Guard | None, num_scopes: int, calls: int
    ) -> _Guard | None:
        """A simple command; gives the test that what follows depends on."""
        command, words = step.command, step.words
        if self.top(num_scopes) == "case" and self.scopes[-1].in_pattern:
            if words:
                self.pattern(words, command.after)
            return None
        if command.before == "(" and not self.enter("("):
            return None
        value = self.test(words)
        if value is not None and self.is_negated:
            value = not value
        if self.top(num_scopes) in ("if?", "loop?") and words:
            self.add_condition(command.before, value)
        is_test = bool(words) and (value is not None or words[0].plain in _TESTS)
        depends = command.before in ("&&", "||")
        if words and depends and not is_test and (guard is not None or command.before == "||"):
            if self.enter("guard"):
                known = guard.value if guard is not None else None
                turned = known if known is None else known != (command.before == "||")
                self.scopes[-1].decide(turned)
                self.command(step, calls)
                self.close_scope()
        elif words:
            self.command(step, calls)
        self.after(command.after, num_scopes)
        if is_test:
            both = guard is not None and command.before == "&&"
            return _Guard(_both(guard.value, value) if guard is not None and both else value)
        return guard if command.after in ("&&", "||") else None

    def add_condition(self, before: str, value: bool | None) -> None:
        """One command of the condition of an `if` or a loop."""
        scope = self.scopes[-1]
        if before == "&&":
            scope.condition = _both(scope.condition, value)
        elif before == "||":
            neither = _both(
                None if scope.condition is None else not scope.condition,
                None if value is None else not value,
            )
            scope.condition = None if neither is None else not neither
        else:
            scope.condition = value

    def command(self, step: _Step, calls: int) -> None:
        """A command: assignments, then a program with its words."""
        words, position = step.words, 0
        prefix: dict[str, Variable] = {}
        first = words[0].plain
        declares = first if first in _DECLARING else ""
        if declares:
            self.declare(words[1:], is_export=declares == "export")
            return
        while position < len(words) and (given := assignment(words[position])) is not None:
            prefix[given[0]] = self.assigned(words[position], *given)
            position += 1
        if position >= len(words):
            for name, value in prefix.items():
                self.assign(name, value)
                if self.all_exported:
                    self.export(name)
            return
        fields: list[Field] = []
        for raw in words[position:]:
            fields += self.fields(raw)
            if len(fields) > MOST_FIELDS:
                break
        if fields:
            self.invoke(fields, prefix, step, calls)

    def declare(self, words: Sequence[Raw], *, is_export: bool) -> None:
        """`export A=1 B`, `declare -x C=2`, `local D=3`."""
        for raw in words:
            given = assignment(raw)
            if given is not None:
                name = given[0]
                self.assign(name, self.assigned(raw, *given))
            else:
                name = raw.plain
                if name.startswith("-"):
                    is_export = is_export or "x" in name
                    continue
            if name and (is_export or self.all_exported):
                self.export(name)

    def seen(self, prefix: Mapping[str, Variable]) -> dict[str, Word]:
        """The environment of a program that is started now."""
        found = self.names.all()
        exported = {name: self.variables[name] for name in self.exported if name in self.variables}
        for name, value in {**exported, **prefix}.items():
            if name in self.fixed:
                continue
            if isinstance(value, tuple):
                place = value[0].word().span if value else None
                found[name] = as_word(value, Word("", place))
            elif value is UNKNOWN:
                found[name] = Word(f"${name}")
        return found

    def invoke(
        self, fields: list[Field], prefix: dict[str, Variable], step: _Step, calls: int
    ) -> None:
        """A command whose words are known."""
        name = str(fields[0].word)
        if name in self.functions:
            self.call(name, fields[1:], prefix, calls)
        elif name in _BUILTINS:
            self.builtin(name, fields[1:])
        elif _ends_something(fields):
            self.round += 1
        elif name in ("source", "."):
            if len(fields) > 1:
                self.source(str(fields[1].word))
        elif step.command.here or looks_like_start(fields):
            found = self.here_documents(step, fields)
            found += started(
                fields,
                self.seen(prefix),
                None,
                self.budget,
                depth=self.depth,
                fixed=self.fixed,
                read_file=self.read_file,
            )
            in_branch = any(scope.kind in ("if", "case") for scope in self.scopes)
            self.budget.launches -= len(found)
            for launch in found:
                # What is started again at the same place is the same server, unless the first one
                # runs on beside it.
                key = (launch.place.span, launch.words, launch.image, launch.devices)
                is_beside = launch.background or step.command.after == "&"
                before = self.rounds.setdefault(key, -1)
                if before >= 0 and (before != self.round or not is_beside):
                    continue
                self.rounds[key] = self.round
                self.found.append(
                    launch._replace(
                        alternative=launch.alternative or in_branch,
                        round=self.round + launch.round,
                    )
                )

    def here_documents(self, step: _Step, fields: list[Field]) -> list[Launch]:
        """Scripts that a shell reads from a here-document."""
        if not step.command.here or self.depth >= _MOST_NESTED_TEXTS:
            return []
        names = [program_name(field.word) for field in fields[:12]]
        if names[0] not in ("sbatch", "ssh") and not SHELL_NAMES.intersection(names):
            return []
        found: list[Launch] = []
        for start, end in step.command.here:
            inner = Shell(
                self.text,
                self.seen({}),
                (),
                self.budget,
                depth=self.depth + 1,
                fixed=self.fixed,
            )
            inner.variables = dict(self.variables)
            inner.run(start, end)
            found += inner.found
        return found

    def call(self, name: str, fields: list[Field], prefix: dict[str, Variable], calls: int) -> None:
        """A function of the text."""
        self.called.add(name)
        if calls >= _MOST_CALLS:
            return
        first, last = self.functions[name]
        kept: list[Value] = self.arguments
        list_start = self.list_start
        self.arguments = [field.value for field in fields]
        for variable, value in prefix.items():
            self.assign(variable, value)
        self.walk(first, last, calls + 1)
        self.arguments, self.list_start = kept, list_start

    def builtin(self, name: str, fields: list[Field]) -> None:
        """Commands that change variables."""
        words = [str(field.word) for field in fields[:100]]
        first = words[0] if words else ""
        if name == "set":
            if first in ("-a", "+a") or words == ["-o", "allexport"]:
                self.all_exported = first != "+a"
            elif first == "--":
                self.arguments = [field.value for field in fields[1:]]
        elif name == "shift":
            self.arguments = self.arguments[int(first) if first in "123456789" and first else 1 :]
        elif name == "unset":
            for word in words:
                self.assign(word, () if word in self.names.environment else UNSET)
        else:
            for word in words:
                changed = word.partition("=")[0].strip("+-*/ ")
                if changed.isidentifier():
                    self.assign(changed, UNKNOWN)

    def source(self, name: str) -> None:
        """Variables and functions that another file defines."""
        if self.read_file is None or self.num_sourced >= _MOST_SOURCED or self.depth:
            return
        self.num_sourced += 1
        text = self.read_file(name)
        if text is None:
            return
        inner = Shell(text, self.seen({}), (), self.budget, depth=_MOST_NESTED_TEXTS)
        inner.variables = dict(self.variables)
        inner.all_exported = self.all_exported
        inner.fixed = self.fixed
        inner.steps = _steps_of(inner.reader.commands(0, len(text.value)))
        inner.walk(0, len(inner.steps), _MOST_CALLS)
        for variable, value in inner.variables.items():
            if self.variables.get(variable, UNSET) is not value:
                self.assign(variable, value)
        for variable in inner.exported:
            self.export(variable)


def _ends_something(fields: Sequence[Field]) -> bool:
    """Whether a command ends programs that were started before, or waits for their end."""
    words = [str(field.word) for field in fields[:4]]
    while words and words[0] in ("sudo", "docker", "podman", "timeout"):
        if words[0] in ("docker", "podman"):
            return len(words) > 1 and words[1] in ("stop", "rm", "kill")
        words = words[1:]
    if not words or words[0] not in ("kill", "pkill", "killall", "fuser", "wait"):
        return False
    return "-0" not in words  # which only asks whether it runs


def _both(first: bool | None, second: bool | None) -> bool | None:
    """`first && second` where either may not be known."""
    if first is False or second is False:
        return False
    return None if first is None or second is None else True


def _matches(pattern: Raw, subject: str | None) -> bool | None:
    """Whether a pattern of a case fits."""
    text = pattern.literal
    if text == "*":
        return True
    if text is None or subject is None or len(text) > 60 or len(subject) > 200:
        return None
    return fnmatchcase(subject, text) if any(char in text for char in "*?[") else text == subject


def run_text(
    text: Text,
    environment: Mapping[str, Word],
    arguments: Sequence[Word],
    budget: Budget,
    *,
    depth: int = 0,
    fixed: frozenset[str] = frozenset(),
    read_file: Opener | None = None,
) -> list[Launch]:
    """The engines that a text starts."""
    if depth > _MOST_NESTED_TEXTS or not may_start(text.value, environment, arguments):
        return []
    shell = Shell(
        text, environment, arguments, budget, depth=depth, fixed=fixed, read_file=read_file
    )
    shell.run(0, len(text.value))
    return join_ollama(shell.found)
