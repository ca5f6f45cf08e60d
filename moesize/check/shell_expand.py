"""Variables of a shell, and words filled in with them."""

from __future__ import annotations

import re
from operator import eq, ge, gt, le, lt, ne
from typing import TYPE_CHECKING

from moesize.check.shell_syntax import Part, Raw, Reader
from moesize.check.shell_values import (
    MOST_DEPTH,
    MOST_FIELDS,
    UNKNOWN,
    UNSET,
    Field,
    Names,
    Piece,
    Value,
    Variable,
    compared,
    cut_value,
    joined,
    open_name,
    plain_field,
    split_at_blanks,
    text_of,
)
from moesize.check.source import Word

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moesize.check.shell_values import Budget, Text

_MOST_NESTED = 64
_MOST_TEXT = 1 << 17
_MOST_EXPORTED = 500
_WORD_COST = 16  # characters that a word of its own counts as
_BLANK = Word(" ")
_INPUT = ("@", "*", "OPTARG")
_COMPARISONS = {
    "-eq": eq,
    "-ne": ne,
    "-lt": lt,
    "-le": le,
    "-gt": gt,
    "-ge": ge,
}
_NAMES_IN_SUMS = re.compile(r"[A-Za-z_]\w{0,100}")

# (pieces, whether they are quoted) of each part of a word; None between the words of "$@".
_Expanded = list[tuple["Sequence[Piece] | None", bool]]


class Scope:
    """Commands of which nobody may know whether they are run, and what they change.

    kind     if? and loop? (their conditions), if, loop, case, guard (behind && or ||), ( (subshell)
    first    the first launch inside
    old      what variables were before; results: what the branches made of them
    is_dead  the branch that is being read is not taken; is_decided: one before it certainly is
    is_whole  one of the branches is taken
    condition  what is known of the condition so far; `subject` of a case, `while` or `until`
    """

    __slots__ = (
        "changed",
        "condition",
        "first",
        "in_pattern",
        "is_dead",
        "is_decided",
        "is_whole",
        "kind",
        "num_arms",
        "old",
        "results",
        "subject",
    )

    def __init__(self, kind: str, first: int) -> None:
        self.kind = kind
        self.first = first
        self.old: dict[str, Variable] = {}
        self.results: dict[str, list[Variable]] = {}
        self.changed: set[str] = set()
        self.num_arms = 0
        self.is_dead = False
        self.is_decided = False
        self.is_whole = False
        self.condition: bool | None = None
        self.subject: str | None = None
        self.in_pattern = False

    def decide(self, value: bool | None) -> None:
        """A branch begins that is taken when `value` is true (None: not known)."""
        self.is_dead = self.is_decided or value is False
        self.is_decided = self.is_decided or value is True


class Expansion:
    """The variables of one script, and what its words become."""

    def __init__(
        self,
        text: Text,
        environment: Mapping[str, Word],
        arguments: Sequence[Word],
        budget: Budget,
        fixed: frozenset[str],
    ) -> None:
        self.text = text
        self.reader = Reader(text.value)
        self.names = Names(environment)
        self.arguments: list[Value] = [
            plain_field(word, open_name(word)).value for word in arguments
        ]
        self.variables: dict[str, Variable] = {}
        self.exported: set[str] = set(environment)
        self.budget = budget
        self.fixed = fixed
        self.scopes: list[Scope] = []

    # --- variables --------------------------------------------------------------------------------

    def value(self, name: str) -> Variable:
        """What a variable holds; UNSET where nothing is said of it."""
        if name in self.variables:
            return self.variables[name]
        if name == "#":
            return plain_field(Word(str(len(self.arguments)))).value
        if name.isdigit():
            number = int(name)
            return self.arguments[number - 1] if 0 < number <= len(self.arguments) else UNSET
        value = self.names.get(name)
        return UNSET if value is None else value

    def assign(self, name: str, value: Variable) -> None:
        """Set a variable; branches remember what it was."""
        if name in self.fixed:
            return
        if self.scopes:
            scope = self.scopes[-1]
            scope.changed.add(name)
            if name not in scope.old:
                scope.old[name] = self.variables.get(name, UNSET)
        self._put(name, value)

    def _put(self, name: str, value: Variable) -> None:
        if value is UNSET:
            self.variables.pop(name, None)
        else:
            self.variables[name] = value

    def export(self, name: str) -> None:
        """Show a variable to the programs that are started."""
        if len(self.exported) < _MOST_EXPORTED:
            self.exported.add(name)

    def open_scope(self, kind: str, first: int = 0) -> bool:
        """Enter a branch; False when that would be too deep."""
        if len(self.scopes) >= _MOST_NESTED:
            return False
        self.scopes.append(Scope(kind, first))
        return True

    def next_arm(self, scope: Scope) -> None:
        """The end of one branch: what it set is kept aside, and undone for the next one."""
        scope.num_arms += not scope.is_dead
        for name in scope.changed:
            if not scope.is_dead:
                results = scope.results.setdefault(name, [])
                results.append(self.variables.get(name, UNSET))
            self._put(name, scope.old[name])
        scope.changed.clear()

    def close_scope(self) -> None:
        """Leave the innermost construct: what its branches agree on holds, the rest is unknown."""
        scope = self.scopes[-1]
        if not scope.in_pattern:  # behind the last ;; of a case nothing more comes
            self.next_arm(scope)
        self.scopes.pop()
        if scope.kind == "(":
            return
        is_whole = scope.is_whole or scope.is_decided
        for name, results in scope.results.items():
            before = self.value(name)
            if len(results) < scope.num_arms or not is_whole:
                results.append(before)
            is_only = len(results) == 1
            self.assign(name, results[0] if is_only else self._merged(name, before, results))

    def _merged(self, name: str, before: Variable, results: list[Variable]) -> Variable:
        """What a variable holds after branches that may have been taken; `results` of each."""
        if before is not UNSET and before is not UNKNOWN:
            text = compared(before)
            others = [result for result in results if compared(result) != text]
            if all(self._is_input(result, 0) for result in others):
                return before  # the caller's, where the caller gives one
            return _maybe_longer(name, before, others)
        given = [result for result in results if result is not UNSET and result is not UNKNOWN]
        if len(given) == len(results) and len({compared(result) for result in given}) == 1:
            return given[0]
        return UNKNOWN

    def _is_input(self, value: Variable, depth: int) -> bool:
        """Whether a value is what the caller gives: `$2`, a variable that the text never sets."""
        if not isinstance(value, tuple) or depth > 3:
            return False
        names = [piece.open for piece in value if piece.open]
        return bool(names) and all(
            name.isdigit()
            or name in _INPUT
            or (name.isidentifier() and self.value(name) is UNSET)
            or self._is_input(self.value(name), depth + 1)
            for name in names
        )

    def _is_nothing(self, value: Value) -> bool:
        """Whether a value is empty when the caller gives nothing."""
        kept = [piece for piece in value if piece.text]
        return not kept or (all(piece.open for piece in kept) and self._is_input(value, 0))

    # --- tests ------------------------------------------------------------------------------------

    def test(self, words: Sequence[Raw]) -> bool | None:
        """What a command used as a condition gives; None where that cannot be known.

        What nothing sets is empty: the script is read as it runs when its caller gives nothing.
        """
        first = words[0].plain if words else ""
        if first in ("true", ":"):
            return True
        if first not in ("[", "[[", "test"):
            return False if first == "false" else None
        words = [raw for raw in words[1:] if raw.plain not in ("]", "]]")]
        turned = False
        while words and words[0].plain == "!":
            words, turned = words[1:], not turned
        result = self._tested(words, has_patterns=first == "[[")
        return result if result is None else result != turned

    def _tested(self, words: Sequence[Raw], *, has_patterns: bool) -> bool | None:
        if len(words) == 1:
            text = self.tested_text(words[0])
            return None if text is None else bool(text)
        last = self.tested_text(words[-1]) if len(words) in (2, 3) else None
        if last is None:
            return None
        operator = words[-2].plain
        if len(words) == 2:
            return bool(last) == (operator == "-n") if operator in ("-n", "-z") else None
        first = self.tested_text(words[0])
        if first is None:
            return None
        if operator in ("=", "==", "!="):
            if has_patterns and any(char in words[-1].plain for char in "*?["):
                return None
            return (first == last) == (operator != "!=")
        if operator in _COMPARISONS and _is_whole(first) and _is_whole(last):
            return bool(_COMPARISONS[operator](int(first), int(last)))
        return None

    def tested_text(self, raw: Raw) -> str | None:
        """A word as a test sees it; None where it is not known."""
        value = self.flat(raw.parts, 1)
        kept = [piece for piece in value if not piece.open]
        if len(kept) < len(value) and not self._is_input(value, 0):
            return None
        return text_of(kept)

    # --- words ------------------------------------------------------------------------------------

    def fields(self, raw: Raw) -> list[Field]:
        """A word after expansion: none, one or several."""
        return [self.field(value, raw) for value in self.values(raw)]

    def field(self, value: Value, raw: Raw) -> Field:
        """One of the values of a word as it is written, with its place."""
        if len(value) == 1 and value[0].text:
            return Field(value[0].word(), value)
        kept = tuple(piece for piece in value if piece.text)
        if not kept:
            return Field(value[0].word() if value else self.text.word(raw.end, raw.end), value)
        if len(kept) == 1:
            return Field(kept[0].word(), kept)
        return Field(joined(kept, self.text.word(raw.start, raw.end, text_of(kept))), kept)

    def values(self, raw: Raw) -> list[Value]:
        """What a word becomes, in pieces."""
        parts = raw.parts
        if len(parts) == 1 and parts[0].kind == "text":
            part = parts[0]
            return [(Piece(part.text, self.text, part.start, part.end),)]
        found: list[Value] = []
        current: list[Piece] = []
        is_word = False  # an empty word that is quoted is a word

        def finish() -> None:
            nonlocal current, is_word
            if is_word or any(piece.text for piece in current):
                found.append(tuple(current))
            current, is_word = [], False

        for value, quoted in self.expanded(parts, 0):
            if value is None:
                finish()
                is_word = True
            elif quoted:
                current += value
                is_word = True
            else:
                for piece in value:
                    for chunk, begins in split_at_blanks(piece):
                        if begins:
                            finish()
                        if chunk is not None:
                            current.append(chunk)
            if len(found) > MOST_FIELDS:
                break
        finish()
        return found

    def flat(self, parts: Sequence[Part], depth: int) -> Value:
        """Parts as one value, as the right side of an assignment is read."""
        found: list[Piece] = []
        for value, _ in self.expanded(parts, depth):
            found += plain_field(_BLANK).value if value is None else value
        return tuple(found)

    def expanded(self, parts: Sequence[Part], depth: int) -> _Expanded:
        """What each part stands for."""
        found: _Expanded = []
        for part in parts:
            if part.kind == "text":
                found.append(((Piece(part.text, self.text, part.start, part.end),), part.quoted))
            elif part.kind == "name":
                found += self.of_name(part, depth)
            elif part.kind == "sum":
                found.append(((self.of_sum(part, depth),), True))
            elif part.kind == "command":
                found.append((self.of_command(part), True))
            else:
                found.append(((self.as_written(part, open_name(part.text) or part.text),), True))
        return found

    def as_written(self, part: Part, name: str) -> Piece:
        """A part that stays as it is written, because nothing says what it is."""
        end = min(part.end, part.start + 1000)
        written = self.text.value[part.start : end]
        return Piece(written, self.text, part.start, part.end, name or written[:60])

    def of_command(self, part: Part) -> Value:
        """$(...): filled in by Kubernetes when it is the name of a variable."""
        name = part.text.strip()
        if name.isidentifier() and self.text.value[part.start] == "$":
            value = self.names.get(name)
            if value is not None and self.budget.take(len(text_of(value))):
                return value
            if name != name.lower():
                return (self.as_written(part, name),)
        return (self.as_written(part, _first_line(self.text.value, part)),)

    def of_sum(self, part: Part, depth: int) -> Piece:
        """$((...)) on whole numbers that are known."""
        from moesize.check.shell_sums import evaluate

        start, end = part.rest
        if end - start > 1000 or depth >= MOST_DEPTH:
            return self.as_written(part, "")
        pieces = self.flat(self.reader.rest(start, end, quoted=True), depth + 1)
        text = text_of(pieces)
        result = evaluate(text, self.number)
        if result is not None:
            return Piece(str(result), self.text, part.start, part.end)
        names = [piece.open for piece in pieces if piece.open]
        names += [name for name in _NAMES_IN_SUMS.findall(text[:2000]) if not self.number(name)]
        return self.as_written(part, names[0] if names else "")

    def number(self, name: str) -> int | None:
        """The whole number that a variable holds."""
        value = self.value(name)
        if not isinstance(value, tuple):
            return None
        text = text_of(value).strip()
        digits = text.removeprefix("-")
        return int(text) if digits.isascii() and digits.isdigit() and len(digits) < 19 else None

    def of_name(self, part: Part, depth: int) -> _Expanded:
        """A variable, with what ${NAME:-...} does to it."""
        name, operator, quoted = part.text, part.operator, part.quoted
        if self.budget.is_spent:
            return [((self.as_written(part, name.lstrip("#!")),), True)]
        if name in ("@", "*") or part.subscript in ("@", "*"):
            return self.of_list(part, depth)
        value = self.value(name)
        if isinstance(value, list):
            index = int(part.subscript or 0)
            value = value[index] if index < len(value) else UNSET
        elif part.subscript and part.subscript != "0":
            value = UNKNOWN
        is_known = isinstance(value, tuple)
        nothing = value is UNSET or (is_known and operator[:1] == ":" and self._is_nothing(value))
        if operator in (":-", "-", ":=", "=") and nothing:
            return self.of_default(part, depth)
        if operator in (":+", "+"):
            if nothing:
                return [((), quoted)]
            if is_known and depth < MOST_DEPTH:
                return self.expanded(self.rest_of(part), depth + 1)
        elif is_known and operator not in ("", ":-", "-", ":=", "=", ":?", "?"):
            is_open = any(piece.open for piece in value)
            value = UNKNOWN if is_open else self.changed(value, part)
            is_known = value is not UNKNOWN
        if not is_known or operator in (":+", "+") or not self.budget.take(len(text_of(value))):
            return [((self.as_written(part, name.lstrip("#!")),), True)]
        # What came from $1 or $(...) is asked for by the name of the variable that holds it.
        named = tuple(
            piece._replace(open=name) if piece.open and not piece.open.isidentifier() else piece
            for piece in value
        )
        return [(named, quoted)]

    def rest_of(self, part: Part) -> tuple[Part, ...]:
        """What follows the operator in ${NAME:-...}."""
        return self.reader.rest(*part.rest, quoted=part.quoted)

    def of_default(self, part: Part, depth: int) -> _Expanded:
        """${NAME:-default}, ${NAME:=default}."""
        if depth >= MOST_DEPTH:
            return [((self.as_written(part, part.text),), True)]
        found = self.expanded(self.rest_of(part), depth + 1)
        if not found:
            # Nothing between operator and bracket: a place for a value all the same.
            found = [((Piece("", self.text, *part.rest),), part.quoted)]
        if part.operator in (":=", "=") and not part.text.isdigit():
            value = tuple(piece for pieces, _ in found for piece in pieces or ())
            self.assign(part.text, value if _is_small(value) else UNKNOWN)
        return found

    def of_list(self, part: Part, depth: int) -> _Expanded:
        """All arguments, or all words of an array."""
        name, operator = part.text, part.operator
        items: Variable = list(self.arguments)
        if part.subscript:
            items = self.value(name)
            if items is UNSET:
                items = []
            elif isinstance(items, tuple):
                items = [items]
        if not isinstance(items, list):
            return [((self.as_written(part, name),), True)]
        if operator in (":+", "+"):
            wanted = bool(items) and depth < MOST_DEPTH
            return self.expanded(self.rest_of(part), depth + 1) if wanted else []
        if operator in (":-", "-"):
            if not items:
                return self.of_default(part, depth)
        elif operator == ":":  # "${@:2}"
            rest = self.text.value[part.rest[0] : min(part.rest[1], part.rest[0] + 8)].strip()
            if not rest.isascii() or not rest.isdigit():
                return [((self.as_written(part, name),), True)]
            items = items[max(int(rest) - (0 if part.subscript else 1), 0) :]
        elif operator:
            return [((self.as_written(part, name),), True)]
        size = sum(len(piece.text) for item in items for piece in item)
        if not self.budget.take(size + _WORD_COST * len(items)):
            return [((self.as_written(part, name),), True)]
        found: _Expanded = []
        for number, item in enumerate(items):
            if number:
                found.append((None, True))
            found.append((item, part.quoted))
        return found

    def changed(self, value: Value, part: Part) -> Value | None:
        """${X,,}, ${X^^}, ${X##*/}, ${X%/*}, ${X%.gguf}; None for what is not read."""
        text, operator = text_of(value), part.operator
        start, end = part.rest
        if end - start > 100:
            return None
        pattern = self.text.value[start:end]
        if operator in (",,", "^^") and not pattern:
            read = text.lower() if operator == ",," else text.upper()
            return (Piece(read, self.text, part.start, part.end),)
        if not pattern or any(char in pattern for char in "?[\\$'\"`"):
            return None
        if operator in ("#", "##"):
            if "*" not in pattern:
                first = len(pattern) if text.startswith(pattern) else 0
            elif pattern[0] == "*" and pattern.count("*") == 1 and len(pattern) > 1:
                mark = pattern[1:]
                at = text.find(mark) if operator == "#" else text.rfind(mark)
                first = at + len(mark) if at >= 0 else 0
            else:
                return None
            return cut_value(value, first, len(text))
        if operator in ("%", "%%"):
            if "*" not in pattern:
                last = len(text) - len(pattern) if text.endswith(pattern) else len(text)
            elif pattern[-1] == "*" and pattern.count("*") == 1 and len(pattern) > 1:
                mark = pattern[:-1]
                at = text.rfind(mark) if operator == "%" else text.find(mark)
                last = at if at >= 0 else len(text)
            else:
                return None
            return cut_value(value, 0, last)
        return None

    def assigned(
        self, raw: Raw, name: str, index: str, operator: str, parts: Sequence[Part]
    ) -> Variable:
        """What NAME=value, NAME+=value or NAME=(...) makes of a variable."""
        before = self.value(name)
        if raw.elements is not None:
            items: list[Value] = []
            for element in raw.elements:
                items += self.values(element)
                if len(items) > MOST_FIELDS:
                    return UNKNOWN
            if operator == "+=" and before is not UNSET:
                if before is UNKNOWN:
                    return UNKNOWN
                items = [*([before] if isinstance(before, tuple) else before), *items]
            small = len(items) <= MOST_FIELDS and self.budget.take(_WORD_COST * len(items))
            return items if small else UNKNOWN
        if index:
            return UNKNOWN
        value = self.flat(parts, 0)
        if operator == "+=" and before is not UNSET:
            if not isinstance(before, tuple):
                return UNKNOWN
            value = (*before, *value)
        return value if _is_small(value) and self.budget.take(len(value)) else UNKNOWN


def _is_whole(text: str) -> bool:
    digits = text.strip().removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) < 19


def _maybe_longer(name: str, before: Variable, others: list[Variable]) -> Variable:
    """What some branches only add to keeps what was there, and an open word for the rest."""
    length = len(before)
    if any(
        not isinstance(other, type(before)) or len(other) <= length or other[:length] != before
        for other in others
    ):
        return UNKNOWN
    added = others[0][length]
    if isinstance(before, tuple):
        mark = Piece(f"${name}", added.origin, added.start, added.end, name)
        if before and before[-1].open == name:
            return before
        return (*before, *plain_field(_BLANK).value, mark) if length else (mark,)
    if not added or (before and before[-1] and before[-1][-1].open == name):
        return before
    first = added[0]
    return [*before, (Piece(f"${{{name}[@]}}", first.origin, first.start, first.end, name),)]


def _is_small(value: Value) -> bool:
    return len(value) <= MOST_FIELDS and sum(len(piece.text) for piece in value) <= _MOST_TEXT


def _first_line(text: str, part: Part) -> str:
    return text[part.start : min(part.end, part.start + 60)].partition("\n")[0]
