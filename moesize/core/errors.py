"""What can go wrong, and the exit code that each kind of trouble ends in.

    MoesizeError                 (exit 2)
    +-- InvalidInputError        a file, value or option is wrong
    |   +-- InvalidSpecError     a model spec or config.json is wrong
    |   +-- InvalidDeploymentError   settings that cannot work together
    +-- UnknownNameError         no model, GPU, scheme or engine of that name
    +-- CannotAnswerError        (exit 3) the question is fine, the answer is not to be had here
        +-- UnsupportedError     we know that we do not know (an architecture, a format)
        +-- EnvironmentProblem   no network, no GPU, a gated repository

A message is one line without a full stop; the hint says what to do next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence


class MoesizeError(Exception):
    """Base of everything that moesize raises on purpose."""

    exit_code: ClassVar[int] = 2
    kind: ClassVar[str] = "error"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InvalidInputError(MoesizeError):
    """A file, a value or an option is not what it should be."""

    kind = "invalid_input"


class InvalidSpecError(InvalidInputError):
    """A model spec or a config.json is malformed or contradicts itself."""

    kind = "invalid_spec"


class InvalidDeploymentError(InvalidInputError):
    """Settings that cannot work together, such as a TP size that does not divide the heads."""

    kind = "invalid_deployment"


class UnknownNameError(MoesizeError):
    """No such model, GPU, scheme or engine; carries the nearest names."""

    kind = "unknown_name"

    def __init__(
        self, what: str, name: str, suggestions: Sequence[str] = (), list_command: str = ""
    ) -> None:
        shown = name if len(name) <= 80 else name[:77] + "..."
        hints = []
        if suggestions:
            hints.append("did you mean " + " or ".join(suggestions) + "?")
        if list_command:
            hints.append(f"`{list_command}` lists all")
        super().__init__(f"unknown {what} {shown!r}", " ".join(hints))
        self.suggestions = tuple(suggestions)


class CannotAnswerError(MoesizeError):
    """The question is fine, but it cannot be answered here."""

    exit_code = 3
    kind = "cannot_answer"


class UnsupportedError(CannotAnswerError):
    """An architecture, format or setting that moesize refuses to guess."""

    kind = "unsupported"


class EnvironmentProblem(CannotAnswerError):  # noqa: N818  (a state of the world, no bug)
    """No network, no GPU, or a repository that asks for a login."""

    kind = "environment"
