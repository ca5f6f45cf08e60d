"""Run moesize in tests: in this process where that is enough, in a fresh one where it is not."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesize.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
_BYTE_CODE = Path(tempfile.gettempdir()) / f"moesize-tests-bytecode-{os.getuid()}"


@dataclass(frozen=True)
class Result:
    """What a command gave."""

    code: int
    out: str
    err: str
    cpu_s: float = 0.0

    def json(self) -> Any:
        """stdout as one JSON document."""
        return json.loads(self.out)


@contextlib.contextmanager
def _streams(encoding: str) -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    raw_out, raw_err = io.BytesIO(), io.BytesIO()
    out = io.TextIOWrapper(raw_out, encoding=encoding, write_through=True)
    err = io.TextIOWrapper(raw_err, encoding=encoding, write_through=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield raw_out, raw_err
        out.flush()
        err.flush()
    # Detached, or closing the wrapper would close what the caller still reads.
    out.detach()
    err.detach()


def call(*arguments: str, columns: int = 100, encoding: str = "utf-8") -> Result:
    """Run a command in this process."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(columns)
    try:
        with _streams(encoding) as (out, err):
            code = main(list(arguments))
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return Result(code, out.getvalue().decode(encoding), err.getvalue().decode(encoding))


def environment(**changes: str) -> dict[str, str]:
    """The environment of a fresh process: byte code is kept outside the checkout."""
    out = {**os.environ, "PYTHONPYCACHEPREFIX": str(_BYTE_CODE), "PYTHONPATH": str(ROOT)}
    for name in ("PYTHONDONTWRITEBYTECODE", "COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        out.pop(name, None)
    return {**out, **changes}


def run(
    *arguments: str,
    memory_bytes: int | None = None,
    timeout_s: float = 60,
    command: Sequence[str] = ("-m", "moesize"),
    **changes: str,
) -> Result:
    """Run a command in a fresh process, in bounded address space if wanted."""

    def limit() -> None:
        if memory_bytes is not None:
            resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.run(
        [sys.executable, *command, *arguments],
        capture_output=True,
        env=environment(**changes),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        timeout=timeout_s,
        preexec_fn=limit,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    encoding = changes.get("PYTHONIOENCODING", "utf-8")
    return Result(
        process.returncode, process.stdout.decode(encoding), process.stderr.decode(encoding), spent
    )
