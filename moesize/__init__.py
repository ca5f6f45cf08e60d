"""moesize: does this model fit that GPU, what fills the memory, and what would fit instead.

    >>> import moesize
    >>> answer = moesize.plan("mixtral-8x7b", gpu="a10g", quant="4bit")
    >>> answer.fits
    False

Importing the package loads nothing heavy; names are resolved when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesize._version import __version__

if TYPE_CHECKING:
    from moesize.api import plan, show
    from moesize.check.findings import CheckReport
    from moesize.check.run import check_files
    from moesize.core.errors import (
        CannotAnswerError,
        EnvironmentProblem,
        InvalidDeploymentError,
        InvalidInputError,
        InvalidSpecError,
        MoesizeError,
        UnknownNameError,
        UnsupportedError,
    )
    from moesize.core.gpu import GpuSpec
    from moesize.core.model_spec import ModelSpec
    from moesize.core.plan import Plan

__all__ = [
    "CannotAnswerError",
    "CheckReport",
    "EnvironmentProblem",
    "GpuSpec",
    "InvalidDeploymentError",
    "InvalidInputError",
    "InvalidSpecError",
    "ModelSpec",
    "MoesizeError",
    "Plan",
    "UnknownNameError",
    "UnsupportedError",
    "__version__",
    "check_files",
    "plan",
    "show",
]

_HOMES = {
    "plan": "moesize.api",
    "show": "moesize.api",
    # Not `check`: that is the name of the package, which importing it would put in its place.
    "check_files": "moesize.check.run",
    "CheckReport": "moesize.check.findings",
    "GpuSpec": "moesize.core.gpu",
    "ModelSpec": "moesize.core.model_spec",
    "Plan": "moesize.core.plan",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'moesize' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES.get(name, "moesize.core.errors")), name)


def __dir__() -> list[str]:
    return __all__
