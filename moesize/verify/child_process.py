"""Another program in a process group of its own: bounded in time and in what it may print.

Its children belong to the group (vLLM's EngineCore and workers do) and end with it: when it ends,
when time is up, on Ctrl-C, and when this process dies, which the child sees at its standard input.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

# Of what is printed the begin and the end are kept: starts say much, endless ones nothing new.
_HEAD_BYTES = 16 << 20
_TAIL_BYTES = 2 << 20
_BLOCK_BYTES = 1 << 16
_POLL_S = 0.1
# Time to end after SIGTERM, before SIGKILL.
_GRACE_S = 10.0
# The first thing that a child runs: when nobody holds its standard input, the group ends. It reads
# the descriptor itself: a lock of sys.stdin would be held in every process that is forked.
# -P: the folder that it runs in is no place to import from.
_WATCH = """
import os, signal, threading
def _watch():
    while os.read(0, 1):
        pass
    os.killpg(os.getpgid(0), signal.SIGKILL)
threading.Thread(target=_watch, daemon=True).start()
"""


class Ended(NamedTuple):
    """How it ended; `code` None: time was up."""

    code: int | None
    output: bytes
    cut: bool


def run_python(
    code: str,
    arguments: Sequence[str],
    *,
    folder: Path,
    timeout_s: float,
    environment: Mapping[str, str],
    seen: Callable[[bytes], None] | None = None,
) -> Ended:
    """Run Python code in `folder`, with everything that it prints in order.

    seen  called with each block of what is printed
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _WATCH + code, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        cwd=folder, env=dict(environment), start_new_session=True,
    )  # fmt: skip
    output = _Output(process, seen)
    try:
        deadline = time.monotonic() + timeout_s
        while not (over := _is_over(process)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    finally:
        _end(process)
        output.close()
    return Ended(process.returncode if over else None, output.text(), output.cut)


def _is_over(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended; it is not reaped, so that its number stays its group's."""
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, options) is not None


class _Output:
    """Reads what a process prints, and keeps a bounded part of it."""

    def __init__(
        self, process: subprocess.Popen[bytes], seen: Callable[[bytes], None] | None
    ) -> None:
        assert process.stdout is not None
        self.cut = False
        self._stream = process.stdout
        self._seen = seen
        self._head, self._tail = bytearray(), bytearray()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with suppress(OSError, ValueError):
            while block := os.read(self._stream.fileno(), _BLOCK_BYTES):
                room = _HEAD_BYTES - len(self._head)
                self._head += block[:room]
                self._tail += block[room:] if room > 0 else block
                if len(self._tail) > 2 * _TAIL_BYTES:
                    self.cut = True
                    del self._tail[:-_TAIL_BYTES]
                if self._seen is not None:
                    self._seen(block)

    def close(self) -> None:
        """After the group has ended: nobody writes any more."""
        self._thread.join(_GRACE_S)
        self._stream.close()

    def text(self) -> bytes:
        """The begin and the end; whole lines of the end where something was cut out."""
        tail = bytes(self._tail)
        return bytes(self._head) + (b"\n" + tail.partition(b"\n")[2] if self.cut else tail)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the group: politely, then not."""
    _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_S
    while not _is_over(process) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    _signal(process, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    # The group's number is the child's, which is not reaped before the last signal.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
