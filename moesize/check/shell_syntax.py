"""Shell text into commands of raw words: quotes, operators, here-documents; nothing is filled in.

Every function walks forward over the text once: what has no end (a quote, a bracket) reaches to the
end of the text, so that no text makes it look twice at the same characters.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# More commands or words than any script that a person wrote; the rest of the text is not read.
MOST_COMMANDS = 50_000
MOST_WORDS = 200_000
MOST_PARTS = 2_000
MOST_ELEMENTS = 20_000

_BLANK = re.compile(r"[ \t\r\f\v]+")
# A backslash before a line end, blanks after it or not; or PowerShell's backtick.
_CONTINUATION = re.compile(r"[\\`][ \t\r]*\n")
_PLAIN = re.compile(r"[^\s\\'\"$`;&|<>(){]+")
# A whole word without anything special in it, by far the most frequent kind.
_WHOLE = re.compile(r"[^\s\\'\"$`;&|<>(){]++(?=[\s;&|)])")
_IN_QUOTES = re.compile(r"[^\"\\$`]+")
_IN_BRACES = re.compile(r"[^\"'\\$`]+")
_TEMPLATE = re.compile(r"\{\{[^{}\n]{0,200}\}\}")
_BRACES = re.compile(r"\{+(?=\{\{[^{])|\{+")
_OPERATOR = re.compile(r";;&|;;|;&|&&|\|\||\|&|[;&|]")
_REDIRECTION = re.compile(r"&>>?|<<<|<<-|<<|<>|<&|>&|>>|>\||[<>]")
# `vllm serve <model>`: a place to fill in, no redirection.
_PLACEHOLDER = re.compile(r"<[\w.-]{1,60}>(?=\s|$)")
_ASSIGNED = re.compile(r"([A-Za-z_][A-Za-z0-9_]{0,200})(\[[^\]\n]{0,80}\])?(\+?=)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PARAMETER = re.compile(
    r"(?P<mark>[#!]?)(?P<name>[A-Za-z_][A-Za-z0-9_]*|\d{1,9}|[@*#?$!-])(?:\[(?P<index>[@*]|\d{1,6})\])?"
)
_SPECIAL = re.compile(r"[\\'\"`$(){}#<]")
_HERE = re.compile(r"<<-?[ \t]*(?:'([^'\n]{1,100})'|\"([^\"\n]{1,100})\"|\\?([\w.-]{1,100}))")
_RUN_OF_DOLLARS = re.compile(r"\$\$+")


class Part(NamedTuple):
    """A piece of a word.

    kind      text; name: a variable; sum: $((...)); command: $(...) or `...`; open: nothing known
    text      what a text reads as; the name of a variable; the inside of the others
    quoted    blanks in it do not end the word
    operator  of ${NAME:-rest}, and `rest` the place of what follows it
    subscript of ${NAME[@]}
    """

    kind: str
    text: str
    start: int
    end: int
    quoted: bool
    operator: str = ""
    rest: tuple[int, int] = (0, 0)
    subscript: str = ""


class Raw(NamedTuple):
    """A word as it is written; `elements` of NAME=(...)."""

    start: int
    end: int
    parts: tuple[Part, ...]
    elements: tuple[Raw, ...] | None = None

    @property
    def plain(self) -> str:
        """The text of a word without quotes and variables; empty for others."""
        parts = self.parts
        if len(parts) == 1 and parts[0].kind == "text" and not parts[0].quoted:
            return parts[0].text
        return ""

    @property
    def literal(self) -> str | None:
        """The text of a word without variables."""
        if any(part.kind != "text" for part in self.parts):
            return None
        return "".join(part.text for part in self.parts)


class Command:
    """A simple command: its words, the operators around it, its here-documents.

    function  the name that a definition `name()` gives; it has no words then
    """

    __slots__ = ("after", "before", "function", "here", "words")

    def __init__(self, before: str) -> None:
        self.words: list[Raw] = []
        self.before = before
        self.after = ""
        self.here: list[tuple[int, int]] = []
        self.function = ""


class Reader:
    """Reads value[start:end]."""

    def __init__(self, value: str) -> None:
        self.value = value

    # --- commands ---------------------------------------------------------------------------------

    def commands(self, start: int, end: int) -> list[Command]:
        """The commands of a piece of text, in order."""
        value = self.value
        found: list[Command] = []
        command = Command("")
        position = start
        waiting: list[tuple[str, bool, Command]] = []  # here-documents that begin on the next line
        skipping = False  # the next word is the target of a redirection
        num_words = 0

        def finish(operator: str) -> None:
            nonlocal command, skipping
            skipping = False
            is_empty = not command.words and not command.function
            if is_empty and operator == "\n" and command.before in ("\n", "&&", "||", "|", "|&"):
                return
            command.after = operator
            found.append(command)
            command = Command(operator)

        while position < end and len(found) < MOST_COMMANDS and num_words < MOST_WORDS:
            char = value[position]
            if char in " \t\r\f\v":
                match = _BLANK.match(value, position, end)
                position = match.end() if match else position + 1
            elif char == "\n":
                position += 1
                for delimiter, strips, owner in waiting:
                    first = position
                    last, position = self._here_end(position, end, delimiter, strips)
                    owner.here.append((first, last))
                waiting.clear()
                finish("\n")
            elif char in "\\`" and (match := _CONTINUATION.match(value, position, end)):
                position = match.end()
            elif char == "#":
                newline = value.find("\n", position, end)
                position = end if newline < 0 else newline
            elif char in "<>" or value.startswith("&>", position):
                if char == "<" and (match := _PLACEHOLDER.match(value, position, end)):
                    part = Part("text", match[0], position, match.end(), False)
                    command.words.append(Raw(position, match.end(), (part,)))
                    position = match.end()
                    continue
                if char != "&" and value[position + 1 : position + 2] == "(":
                    last = min(self.skip(position + 2, end, "("), end)
                    part = Part(
                        "open", value[position : min(last, position + 80)], position, last, False
                    )
                    command.words.append(Raw(position, last, (part,)))
                    position = last
                    continue
                last_word = command.words[-1] if command.words else None
                if last_word and last_word.end == position and last_word.plain.isdigit():
                    command.words.pop()  # the 2 of 2>&1
                match = _REDIRECTION.match(value, position, end)
                operator = match[0] if match else char
                here = _HERE.match(value, position, end) if operator in ("<<", "<<-") else None
                if here is not None:
                    delimiter = here[1] or here[2] or here[3]
                    waiting.append((delimiter, operator == "<<-", command))
                    position = here.end()
                else:
                    position += len(operator)
                    skipping = True
            elif char in ";&|":
                match = _OPERATOR.match(value, position, end)
                operator = match[0] if match else char
                position += len(operator)
                finish(operator)
            elif char == "(":
                after = _BLANK.match(value, position + 1, end)
                closing = after.end() if after else position + 1
                name = command.words[-1].plain if command.words else ""
                is_first = len(command.words) == 1 or (
                    len(command.words) == 2 and command.words[0].plain == "function"
                )
                if name and is_first and value[closing : closing + 1] == ")" and closing < end:
                    command.function, command.words = name, []
                    position = closing + 1
                    finish("()")
                elif value.startswith("((", position) and name == "for":
                    last = self.skip(position + 1, end, "(")
                    text = value[position : min(last, position + 80)]
                    command.words.append(
                        Raw(position, last, (Part("open", text, position, last, True),))
                    )
                    position = last
                else:
                    position += 1
                    finish("(")
            elif char == ")":
                position += 1
                finish(")")
            else:
                raw = self.word(position, end)
                position = max(raw.end, position + 1)
                num_words += 1
                if skipping:
                    skipping = False
                else:
                    command.words.append(raw)
                    num_words += len(raw.elements or ())
        finish("")
        return found

    def _here_end(self, start: int, end: int, delimiter: str, strips: bool) -> tuple[int, int]:
        """(end of the body, start of what follows) of a here-document."""
        value, position = self.value, start
        while position < end:
            newline = value.find("\n", position, end)
            last = end if newline < 0 else newline
            # Only lines that may be the delimiter are copied.
            if last - position <= len(delimiter) + 200:
                line = value[position:last].rstrip("\r")
                if (line.lstrip("\t") if strips else line) == delimiter:
                    return position, last
            position = last + 1
        return end, end

    # --- words ------------------------------------------------------------------------------------

    def word(self, start: int, end: int, *, arrays: bool = True) -> Raw:
        """The word that begins at `start`; NAME=(...) is one word where arrays may stand."""
        value = self.value
        whole = _WHOLE.match(value, start, end)
        if whole:
            position = whole.end()
            return Raw(start, position, (Part("text", whole[0], start, position, False),))
        parts: list[Part] = []
        position = start
        while position < end:
            char = value[position]
            if char in " \t\n\r\f\v;&|<>)":
                if char == "<" and value[position - 1] == "=":
                    match = _PLACEHOLDER.match(value, position, end)
                    if match:
                        parts.append(Part("text", match[0], position, match.end(), False))
                        position = match.end()
                        continue
                break
            if char == "(":
                elements = self._elements(parts, position, end) if arrays else None
                if elements is None:
                    break
                return Raw(start, elements[1], tuple(parts), tuple(elements[0]))
            if len(parts) >= MOST_PARTS:
                parts = [Part("open", value[start : start + 80], start, position + 1, True)]
                position += 1
                continue
            position = self._part(parts, position, end, braces=False)
        return Raw(start, position, tuple(parts))

    def rest(self, start: int, end: int, *, quoted: bool) -> tuple[Part, ...]:
        """The parts of what follows an operator in ${...}: blanks belong to it."""
        parts: list[Part] = []
        position = start
        while position < end and len(parts) < MOST_PARTS:
            if quoted:
                position = self._quoted_part(parts, position, end)
            else:
                position = self._part(parts, position, end, braces=True)
        return tuple(parts)

    def _elements(self, parts: list[Part], position: int, end: int) -> tuple[list[Raw], int] | None:
        """The words of an array: NAME=( ... ), with comments and line ends between them."""
        if len(parts) != 1 or parts[0].kind != "text" or parts[0].quoted:
            return None
        match = _ASSIGNED.fullmatch(parts[0].text)
        if match is None:
            return None
        value = self.value
        found: list[Raw] = []
        position += 1
        while position < end and len(found) < MOST_ELEMENTS:
            char = value[position]
            if char == ")":
                return found, position + 1
            if char.isspace():
                position += 1
            elif char in "\\`" and (match := _CONTINUATION.match(value, position, end)):
                position = match.end()
            elif char == "#":
                newline = value.find("\n", position, end)
                position = end if newline < 0 else newline
            elif char in ";&|<>(":
                position += 1
            else:
                raw = self.word(position, end, arrays=False)
                found.append(raw)
                position = max(raw.end, position + 1)
        return found, end

    def _part(self, parts: list[Part], position: int, end: int, *, braces: bool) -> int:
        """Read one part outside double quotes; gives the position after it."""
        value = self.value
        char = value[position]
        if char == "'":
            close = value.find("'", position + 1, end)
            close = end if close < 0 else close
            parts.append(Part("text", value[position + 1 : close], position + 1, close, True))
            return min(close + 1, end)
        if char == '"':
            return self._quoted(parts, position + 1, end)
        if char == "\\":
            match = _CONTINUATION.match(value, position, end)
            if match:
                return match.end()
            last = min(position + 2, end)
            parts.append(Part("text", value[position + 1 : last], position + 1, last, True))
            return last
        if char == "$":
            follows = value[position + 1 : position + 2]
            if follows == "'" and position + 1 < end:
                return self._ansi(parts, position + 2, end)
            if follows == '"' and position + 1 < end:
                return self._quoted(parts, position + 2, end)
            return self._dollar(parts, position, end, quoted=False)
        if char == "`":
            match = _CONTINUATION.match(value, position, end)
            if match:
                return match.end()
            return self._backticks(parts, position, end, quoted=False)
        if char == "{":
            match = _TEMPLATE.match(value, position, end)
            run = match or _BRACES.match(value, position, end)
            last = run.end() if run else position + 1
            kind = "open" if match else "text"
            parts.append(Part(kind, value[position:last], position, last, bool(match)))
            return last
        match = (_IN_BRACES if braces else _PLAIN).match(value, position, end)
        last = match.end() if match else position + 1
        parts.append(Part("text", value[position:last], position, last, False))
        return last

    def _quoted(self, parts: list[Part], position: int, end: int) -> int:
        """Read the inside of double quotes and the quote that ends it."""
        value = self.value
        num_before = len(parts)
        start = position
        while position < end:
            if value[position] == '"':
                if len(parts) == num_before:
                    parts.append(Part("text", "", start, start, True))
                return position + 1
            if len(parts) >= MOST_PARTS:
                # Too many to be real: pass over the rest of the quotes unread.
                parts.append(Part("open", value[start : start + 80], start, position, True))
                return self.skip(position, end, '"')
            position = self._quoted_part(parts, position, end)
        return end

    def _quoted_part(self, parts: list[Part], position: int, end: int) -> int:
        value = self.value
        char = value[position]
        if char == "\\":
            if value[position + 1 : position + 2] == "\n":
                return min(position + 2, end)
            escaped = value[position + 1 : position + 2]
            if escaped and escaped in '"\\$`' and position + 1 < end:
                parts.append(Part("text", escaped, position + 1, position + 2, True))
                return position + 2
            parts.append(Part("text", char, position, position + 1, True))
            return position + 1
        if char == "$":
            return self._dollar(parts, position, end, quoted=True)
        if char == "`":
            return self._backticks(parts, position, end, quoted=True)
        match = _IN_QUOTES.match(value, position, end)
        last = match.end() if match else position + 1
        parts.append(Part("text", value[position:last], position, last, True))
        return last

    def _ansi(self, parts: list[Part], position: int, end: int) -> int:
        """The inside of $'...': a text with escapes."""
        value, start = self.value, position
        read: list[str] = []
        while position < end and value[position] != "'":
            char = value[position]
            if char == "\\" and position + 1 < end:
                following = value[position + 1]
                read.append({"n": "\n", "t": "\t", "r": "\r"}.get(following, following))
                position += 2
            else:
                read.append(char)
                position += 1
        parts.append(Part("text", "".join(read), start, min(position, end), True))
        return min(position + 1, end)

    def _backticks(self, parts: list[Part], position: int, end: int, *, quoted: bool) -> int:
        value = self.value
        close = value.find("`", position + 1, end)
        while close > 0 and value[close - 1] == "\\":
            close = value.find("`", close + 1, end)
        last = end if close < 0 else close + 1
        parts.append(Part("command", value[position + 1 : last - 1], position, last, quoted))
        return last

    def _dollar(self, parts: list[Part], position: int, end: int, *, quoted: bool) -> int:
        """Read what begins with a dollar."""
        value = self.value
        follows = value[position + 1 : position + 2] if position + 1 < end else ""
        if follows == "(":
            last = self.skip(position + 2, end, "(")
            inner = position + 2
            if value.startswith("((", position + 1) and value[last - 2 : last] == "))":
                parts.append(
                    Part(
                        "sum",
                        "",
                        position,
                        last,
                        quoted,
                        rest=(position + 3, max(last - 2, position + 3)),
                    )
                )
                return last
            text = value[inner : max(last - 1, inner)] if last - inner < 1000 else ""
            parts.append(Part("command", text, position, last, quoted))
            return last
        if follows == "{":
            return self._braces(parts, position, end, quoted=quoted)
        match = _NAME.match(value, position + 1, end)
        if match and len(match[0]) <= 200:
            parts.append(Part("name", match[0], position, match.end(), quoted))
            return match.end()
        if follows and (follows in "@*#?!-" or follows.isdigit()):
            parts.append(Part("name", follows, position, position + 2, quoted))
            return position + 2
        match = _RUN_OF_DOLLARS.match(value, position, end)
        last = match.end() if match else position + 1
        kind = "open" if match else "text"
        parts.append(Part(kind, value[position:last], position, last, quoted))
        return last

    def _braces(self, parts: list[Part], position: int, end: int, *, quoted: bool) -> int:
        """Read ${...}."""
        value = self.value
        last = self.skip(position + 2, end, "{", in_quotes=quoted)
        inner_end = last - 1 if value[last - 1 : last] == "}" else last
        match = _PARAMETER.match(value, position + 2, inner_end)
        if match is None:
            text = value[position : min(last, position + 80)]
            parts.append(Part("open", text, position, last, quoted))
            return last
        mark, name, index = match["mark"], match["name"], match["index"] or ""
        after = match.end()
        operator = ""
        if after < inner_end:
            two = value[after : after + 2]
            operator = (
                two
                if two in (":-", ":=", ":+", ":?", "##", "%%", ",,", "^^", "//")
                else value[after]
            )
            after += len(operator)
        if mark and not (mark == "#" and index and not operator):
            name, operator = mark + name, "?" + operator
        parts.append(
            Part("name", name, position, last, quoted, operator, (after, inner_end), index)
        )
        return last

    # --- brackets ---------------------------------------------------------------------------------

    def skip(self, position: int, end: int, opened: str, *, in_quotes: bool = False) -> int:
        """The position after the end of what `opened` opened: "(", "{" or a double quote."""
        value = self.value
        stack = [opened]
        num_quotes = int(in_quotes) + (opened == '"')
        while position < end:
            match = _SPECIAL.search(value, position, end)
            if match is None:
                return end
            at = match.start()
            char = value[at]
            top = stack[-1]
            position = at + 1
            if char == "\\":
                position = at + 2
            elif char == '"':
                if top == '"':
                    stack.pop()
                    num_quotes -= 1
                    if not stack:
                        return position
                else:
                    stack.append('"')
                    num_quotes += 1
            elif char == "$":
                follows = value[position : position + 1]
                if follows and follows in "({":
                    stack.append(follows)
                    position += 1
            elif char == "`" or top == '"':
                continue
            elif char == "'":
                if top == "{" and num_quotes:
                    continue
                close = value.find("'", position, end)
                position = end if close < 0 else close + 1
            elif char == "(" and top == "(":
                stack.append("(")
            elif (char == ")" and top == "(") or (char == "}" and top == "{"):
                stack.pop()
                if not stack:
                    return position
            elif char == "#" and top == "(" and value[at - 1].isspace():
                newline = value.find("\n", position, end)
                position = end if newline < 0 else newline
            elif char == "<" and top == "(":
                found = _HERE.match(value, at, end)
                if found is not None and value[at - 1] != "<" and value[found.start() + 2] != "<":
                    position = self._skip_here(found.end(), end, found[1] or found[2] or found[3])
        return end

    def _skip_here(self, position: int, end: int, delimiter: str) -> int:
        """Pass over a here-document inside brackets."""
        newline = self.value.find("\n", position, end)
        if newline < 0:
            return end
        return self._here_end(newline + 1, end, delimiter, strips=True)[1]


def assignment(raw: Raw) -> tuple[str, str, str, tuple[Part, ...]] | None:
    """(name, index, operator, parts of the value) of NAME=value; None for other words."""
    first = raw.parts[0] if raw.parts else None
    if first is None or first.kind != "text" or first.quoted:
        return None
    match = _ASSIGNED.match(first.text)
    if match is None:
        return None
    cut = match.end()
    rest = first._replace(text=first.text[cut:], start=first.start + cut)
    parts = (rest, *raw.parts[1:]) if rest.text else raw.parts[1:]
    return match[1], match[2] or "", match[3], parts
