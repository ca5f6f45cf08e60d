"""The release of an engine that a script installs: `pip install vllm==0.10.2`.

Found in the text itself, whatever runs it: SkyPilot's setup, a Dockerfile's RUN, a start script.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moesize.check.source import SourceText, Word

_PACKAGES = {"vllm": "vllm", "sglang": "sglang", "tensorrt-llm": "tensorrt[-_]llm"}
_MOST_CHARACTERS = 1 << 20


def installed_version(text: SourceText, engine: str | None) -> Word | None:
    """`0.10.2` of `pip install "vllm[audio]==0.10.2"`, where it stands; None where none is."""
    package = _PACKAGES.get(engine or "")
    value = text.value[:_MOST_CHARACTERS]
    if package is None or "install" not in value:
        return None
    extras = r"(?:\[[\w, -]{0,60}\])?"
    release = r"(\d+\.\d+(?:\.\d+)?(?:\.?post\d+)?)"
    pattern = rf"(?<![\w.-]){package}{extras}==v?{release}"
    found = None
    for match in re.finditer(pattern, value):
        line = value.rfind("\n", 0, match.start()) + 1
        # A comment, or a line of a list of requirements that continues an install command.
        if value[line : match.start()].lstrip().startswith("#"):
            continue
        found = match
    return None if found is None else text.word(found.start(1), found.end(1))
