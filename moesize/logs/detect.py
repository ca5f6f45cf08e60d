"""A whole log -> the start that counts: the last one, of the container that says most."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from moesize.core.errors import InvalidInputError
from moesize.logs import llamacpp, sglang, vllm
from moesize.logs.clean import MAX_LOG_BYTES, LogReader
from moesize.logs.facts import Start
from moesize.logs.patterns import gpu_name

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import BinaryIO

    from moesize.logs.clean import Line

TABLES = (vllm.TABLE, sglang.TABLE, llamacpp.TABLE)
# A log with more starts than this is a crash loop; the last ones are kept.
_MOST_STARTS = 64
# Words of which every line that matters holds one: tests check it against the tables.
WORDS = (
    "took",
    "memory",
    "graph",
    "Graph capturing",
    "concurrency",
    "KV ",
    "args",
    "LLM engine (v",
    "server version",
    " blocks: ",
    "block size to",
    "mamba page",
    "padding layers",
    "backend",
    "device_name=",
    "Model Runner",
    "To serve at least",
    "stored in KV",
    "Not enough",
    "rchitecture",
    "max_num_",
    "Engine core",
    "tartup complete",
    "Starting vLLM",
    "init engine",
    "SGLang",
    "sglang version",
    "Load weight",
    "Mamba Cache",
    "Memory pool",
    "max_total_num",
    "fired up",
    "print_",
    "buffer size",
    "buffer type overrid",
    "build",
    "go runner",
    "ggml_cuda_init",
    "Device ",
    "using device ",
    "meta data",
    "- type ",
    "layers to GPU",
    "llama_",
    "failed to",
    " cells, ",
    "listening",
    "model loaded",
    "slots are idle",
    "runner started",
    "n_ctx",
    "NVIDIA",
    "Tesla",
)
_BANNER = re.compile(
    r"\|\s{1,6}\d{1,3}\s{1,4}((?:NVIDIA|Tesla|Quadro|GeForce)[\w "
    r".+-]{1,60}?)\s{1,30}(?:On|Off|TCC|WDDM)\s"
    r"|GPU \d{1,3}: ((?:NVIDIA|Tesla|Quadro|GeForce)[\w .+-]{1,60}?) \(UUID"
)


class Reading(NamedTuple):
    """The start that is audited, and what to say about the file."""

    start: Start
    sha256: str
    size_bytes: int
    notes: tuple[str, ...]


def read_log(name: str, stream: BinaryIO | None = None) -> Reading:
    """Read a log from a file or `-`. Raises InvalidInputError when no engine started in it."""
    reader = LogReader(name, stream)
    book = _Book()
    for line in reader.lines(WORDS):
        book.take(line)
    if not reader.size_bytes:
        raise InvalidInputError(f"{name}: is empty", "save the start-up log of the server first")
    start = book.choose()
    if start is None:
        raise InvalidInputError(
            f"{name}: holds no start-up lines of vLLM, SGLang or llama.cpp",
            "the lines from the start of the server are needed, such as 'Model loading took', "
            "'Load weight end' or 'load_tensors: ... buffer size'",
        )
    notes = [*book.notes(start), *start.notes]
    if reader.cut_short:
        notes.append(f"only the first {MAX_LOG_BYTES >> 30} GiB of the log were read")
    return Reading(start, reader.sha256, reader.size_bytes, tuple(notes))


class _Book:
    """Starts by engine and container."""

    def __init__(self) -> None:
        self.current: dict[tuple[str, str], Start] = {}
        self.counts: dict[tuple[str, str], int] = {}
        self.earlier: dict[tuple[str, str], Start] = {}
        self.gpu: tuple[str, int] = ("", 0)

    def take(self, line: Line) -> None:
        """Hand a line to the table that knows it."""
        if (
            not self.gpu[0]
            and "GPU" in line.text + "|"
            and ("NVIDIA" in line.text or "|" in line.text)
        ):
            banner = _BANNER.search(line.text)
            if banner is not None:
                self.gpu = (gpu_name(banner[1] or banner[2]), line.number)
                return
        for table in TABLES:
            # A line that several engines print alike goes to one that has begun.
            found = table.match(line)
            if found is None:
                continue
            key = (table.engine, line.source)
            start = self.current.get(key)
            rule, match = found
            if start is None:
                if not rule.begins and self._other(table.engine, line.source):
                    continue
                if len(self.current) >= _MOST_STARTS:
                    return
                start = self._begin(key, line)
            elif rule.begins and _is_over(start, line):
                start = self._begin(key, line)
            rule.take(start, match, line)
            start.last_line = line.number
            return

    def _other(self, engine: str, source: str) -> bool:
        """Another engine has begun in this container."""
        return any(e != engine and s == source for e, s in self.current)

    def _begin(self, key: tuple[str, str], line: Line) -> Start:
        if key in self.current:
            self.earlier[key] = self.current[key]
        start = Start(engine=key[0], source=key[1], first_line=line.number)
        self.current[key] = start
        self.counts[key] = self.counts.get(key, 0) + 1
        return start

    def choose(self) -> Start | None:
        """The start with most figures; of equal ones the last. A start without any is none."""
        found = [s for s in self.current.values() if s.seen or s.failure or s.model]
        if not found:
            return None
        best = max(found, key=lambda s: (bool(s.seen or s.failure), _weight(s), s.first_line))
        if not best.gpu and self.gpu[0]:
            best.gpu, best.gpu_line = self.gpu
        return best

    def notes(self, chosen: Start) -> Iterable[str]:
        """What was left out of the audit."""
        key = (chosen.engine, chosen.source)
        if self.counts[key] > 1:
            yield (
                f"{self.counts[key]} starts in this log: the last one is audited, from line "
                f"{chosen.first_line:,}"
            )
        others = [s for s in self.current.values() if s is not chosen and (s.seen or s.failure)]
        if others:
            names = ", ".join(
                sorted({f"{s.engine} in {s.source or 'the log'}" for s in others})[:4]
            )
            yield f"other servers in this log are not audited: {names}"


def _weight(start: Start) -> int:
    return min(len({item.name for item in start.seen}), 4)


def _is_over(start: Start, line: Line) -> bool:
    """Whether a line that may begin a start does: this one has got further than that line."""
    if start.engine == "vllm":
        # The server's line comes before the engine's line of the same start; the engines of
        # data-parallel ranks print theirs at nearly the same time.
        if "API server version" in line.text:
            return bool(start.settings.get("engine_line") or start.seen or start.failure)
        return bool(
            start.failure or start.ready or start.last("kv_tokens") or start.last("kv_cache")
        ) and bool(start.settings.get("engine_line"))
    if start.engine == "llama.cpp":
        # Devices and build are printed in either order before anything is loaded.
        return bool(start.last("model") or start.last("kv") or start.failure or start.ready)
    return bool(start.seen or start.failure or start.ready)
