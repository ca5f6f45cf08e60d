"""Helm charts: rendered with the `helm` program where it is installed, never guessed at.

`helm template` writes what the chart would install, without a cluster and without the network:
dependencies that are not in the chart's folder are an error of the chart, and said so.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MOST_BYTES = 8 << 20
_MOST_UP = 12
_SOURCE = re.compile(r"^# Source: (\S{1,500})[ \t]*$", re.MULTILINE)
_WITHOUT_HELM = "the `helm` program is not installed"


class Rendered(NamedTuple):
    """What `helm template` wrote; or, in words, why it wrote nothing."""

    text: str | None
    reason: str = ""


class Source(NamedTuple):
    """The template that a part of the rendered text comes from: text[start:end]."""

    path: str
    start: int
    end: int


def render_chart(
    chart_dir: Path, *, values: Sequence[Path] = (), timeout: float = 60.0
) -> Rendered:
    """Render a chart with its own values and these over them.

    Nothing is asked of a cluster; the text is bounded, and so is the time.
    """
    import shutil

    program = shutil.which("helm")
    if program is None:
        return Rendered(None, _WITHOUT_HELM)
    if not (chart_dir / "Chart.yaml").is_file():
        return Rendered(None, "there is no Chart.yaml")
    command = [program, "template", "moesize", str(chart_dir.resolve())]
    for path in values:
        command += ["--values", str(path.resolve())]
    return _run(command, timeout)


def _run(command: list[str], timeout: float) -> Rendered:
    import os
    import subprocess
    import tempfile
    import threading

    # Neither a cluster of the user's nor the repositories that they know are looked at.
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    with tempfile.TemporaryDirectory(prefix="moesize-helm-") as folder:
        environment = {
            **kept,
            "KUBECONFIG": os.devnull,
            "HELM_CACHE_HOME": folder,
            "HELM_CONFIG_HOME": folder,
            "HELM_DATA_HOME": folder,
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "HTTP_PROXY": "http://127.0.0.1:9",
        }
        with tempfile.TemporaryFile() as errors:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=environment,
                )
            except OSError as error:
                return Rendered(None, f"helm cannot be started: {error.strerror or error}")
            late = threading.Event()

            def end() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(timeout, end)
            timer.start()
            try:
                assert process.stdout is not None
                with process.stdout as stream:
                    raw = stream.read(MOST_BYTES + 1)
                if len(raw) > MOST_BYTES:
                    process.kill()
                code = process.wait()
            finally:
                timer.cancel()
            errors.seek(0)
            said = errors.read(4_000).decode("utf-8", "replace")
    if late.is_set():
        return Rendered(None, f"helm template took longer than {timeout:g} s")
    if len(raw) > MOST_BYTES:
        return Rendered(None, f"helm template wrote more than {MOST_BYTES >> 20} MiB")
    if code != 0:
        return Rendered(None, f"helm template failed: {_first_line(said)}")
    return Rendered(raw.decode("utf-8", "replace"))


def _first_line(said: str) -> str:
    """What helm says went wrong, on one line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("WARNING", "walk.go"))]
    text = lines[0].removeprefix("Error: ") if lines else "it gave no reason"
    return "".join(char if char.isprintable() else " " for char in text)[:300]


def chart_of(path: Path, root: Path) -> Path | None:
    """The folder of the chart whose template a file is; None: it is no template of one.

    `templates` may be `root` or the folder above it (of a file or folder that was given alone).
    """
    here = path.parent
    for _ in range(_MOST_UP):
        if here.name == "templates" and (here.parent / "Chart.yaml").is_file():
            return here.parent
        if here in (root.parent, here.parent):
            return None
        here = here.parent
    return None


def is_chart_template(path: Path, root: Path) -> bool:
    """Whether a file lies under `templates/` of a folder with a Chart.yaml (see `chart_of`)."""
    return chart_of(path, root) is not None


def sources_of(rendered: str) -> list[Source]:
    """The parts of a rendered text, by the `# Source:` lines that helm writes before each."""
    marks = [(match.start(), match[1]) for match in _SOURCE.finditer(rendered)]
    ends = [start for start, _ in marks[1:]] + [len(rendered)]
    return [Source(name, start, end) for (start, name), end in zip(marks, ends, strict=True)]


def source_of(sources: Sequence[Source], offset: int) -> Source | None:
    """The part that an offset lies in; None before the first `# Source:` line."""
    from bisect import bisect_right

    index = bisect_right([source.start for source in sources], offset) - 1
    return sources[index] if index >= 0 else None


def is_template_text(text: str) -> bool:
    """Whether a text holds actions of Go templates."""
    return "{{" in text and "}}" in text
