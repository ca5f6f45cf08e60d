"""Bytes of a log -> lines of text without what lies around them, in bounded memory and time.

Taken off: ANSI colours, progress bars (carriage returns), timestamps, prefixes of docker compose,
kubectl, CRI, journald, GitHub Actions, JSON-lines wrappers, and the frame of the engine's logger,
of which the rank is kept. Read: UTF-8, UTF-16, gzip. Lines that hold none of the words asked for
are counted, not looked at: a log may hold gigabytes of requests after a second of start-up.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from moesize.core.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# A line that says something is below 20 kB (SGLang prints all of its arguments in one).
MAX_LINE_BYTES = 64 << 10
# Larger than any start-up; what comes after is named as not read.
MAX_LOG_BYTES = 1 << 30
_BLOCK_BYTES = 1 << 20
_MOST_PREFIXES = 8

_PACKED = {
    b"\x28\xb5\x2f\xfd": ("zstd", "zstdcat"),
    b"\xfd7zX\x00": ("xz", "xzcat"),
    b"BZh": ("bzip2", "bzcat"),
    b"PK\x03\x04": ("zip", "unzip -p"),
}
_GZIP = b"\x1f\x8b"
# Of these a server prints millions after its start, with words that start-up lines hold as well.
_TRAFFIC = (b"Avg prompt throughput", b" batch. #", b" HTTP/1.1", b"update_slots: id")


class Line(NamedTuple):
    """One message.

    source   the container that wrote it, "" when the log names none
    rank     such as "TP0" or "PP1 TP0", "" when it names none
    framed   the engine's own logger frame was found: the message begins where the text begins
    """

    number: int
    source: str
    rank: str
    text: str
    framed: bool


class LogReader:
    """Reads one log once. `sha256`, `size_bytes` and `cut_short` hold after the last line."""

    def __init__(self, name: str, stream: BinaryIO | None = None) -> None:
        self.name = name
        self.cut_short = False
        self.size_bytes = 0
        self._hash = hashlib.sha256()
        self._stream = stream

    @property
    def sha256(self) -> str:
        """Hash of what was read, before unpacking."""
        return self._hash.hexdigest()

    def lines(self, words: Sequence[str]) -> Iterator[Line]:
        """Every line that holds one of `words`. Raises InvalidInputError."""
        wanted = tuple(word.encode() for word in words)
        partial: dict[str, str] = {}
        for number, raw in self._raw_lines(wanted, partial):
            wanted_here = any(word in raw for word in wanted)
            if partial or (wanted_here and not any(word in raw for word in _TRAFFIC)):
                yield from _clean(number, raw, partial)
        for source, text in partial.items():  # cut off in the middle of a record
            yield from _pieces(0, source, text)

    def _raw_lines(
        self, wanted: tuple[bytes, ...], partial: dict[str, str]
    ) -> Iterator[tuple[int, bytes]]:
        number, tail = 1, b""
        for block in self._text_blocks():
            data = tail + block
            cut = data.rfind(b"\n")
            if cut < 0:
                tail = data[:MAX_LINE_BYTES]
                continue
            body, tail = data[:cut], data[cut + 1 :][:MAX_LINE_BYTES]
            if b"\x1b" in body:  # colours may stand inside the words
                body = _ANSI_BYTES.sub(b"", body)
            if not partial and not any(word in body for word in wanted):
                number += body.count(b"\n") + 1
                continue
            for raw in body.split(b"\n"):
                yield number, raw[:MAX_LINE_BYTES]
                number += 1
        if tail:
            yield number, tail

    def _text_blocks(self) -> Iterator[bytes]:
        """Blocks of UTF-8, whatever the file is written in."""
        blocks = self._unpacked_blocks()
        first = next(blocks, b"")
        encoding = _utf_16(first[:512])
        if encoding is None:
            yield first.removeprefix(codecs.BOM_UTF8)
            yield from blocks
            return
        decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
        yield decoder.decode(first).encode(errors="replace").removeprefix(codecs.BOM_UTF8)
        for block in blocks:
            yield decoder.decode(block).encode(errors="replace")

    def _unpacked_blocks(self) -> Iterator[bytes]:
        blocks = self._blocks()
        first = next(blocks, b"")
        for magic, (kind, tool) in _PACKED.items():
            if first.startswith(magic):
                raise InvalidInputError(
                    f"{self.name}: is packed with {kind}", f"{tool} {self.name} | moesize audit -"
                )
        if not first.startswith(_GZIP):
            yield first
            yield from blocks
            return
        total = 0
        unpack = zlib.decompressobj(wbits=31)
        for block in _chain(first, blocks):
            rest = block
            while rest:
                try:
                    out = unpack.decompress(rest, _BLOCK_BYTES)
                except zlib.error as error:
                    raise InvalidInputError(
                        f"{self.name}: a gzip file that is damaged", "unpack what is left: zcat -f"
                    ) from error
                total += len(out)
                if total > MAX_LOG_BYTES:
                    self.cut_short = True
                    return
                if out:
                    yield out
                rest = unpack.unconsumed_tail
                if unpack.eof:  # gzip files may be appended to each other
                    rest = unpack.unused_data
                    unpack = zlib.decompressobj(wbits=31)
                    if not rest.startswith(_GZIP):
                        rest = b""

    def _blocks(self) -> Iterator[bytes]:
        if self._stream is not None or self.name == "-":
            yield from self._read(self._stream or sys.stdin.buffer)
            return
        path = Path(self.name)
        try:
            if path.exists() and not path.is_file() and not path.is_fifo() and not path.is_dir():
                raise InvalidInputError(f"{path}: is not a regular file")
            with path.open("rb") as stream:
                yield from self._read(stream)
        except FileNotFoundError as error:
            raise InvalidInputError(
                f"{path}: no such file", "name a log file, or - to read from a pipe"
            ) from error
        except IsADirectoryError as error:
            raise InvalidInputError(f"{path}: is a folder, not a log") from error
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            reason = getattr(error, "strerror", None) or str(error)
            raise InvalidInputError(f"{self.name[:80]}: cannot be read ({reason})") from error

    def _read(self, stream: BinaryIO) -> Iterator[bytes]:
        while block := stream.read(_BLOCK_BYTES):
            self.size_bytes += len(block)
            self._hash.update(block)
            yield block
            if self.size_bytes >= MAX_LOG_BYTES:
                self.cut_short = bool(stream.read(1))
                return


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _utf_16(head: bytes) -> str | None:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # Windows, without a mark: of nearly every character the second byte is zero, never the first.
    odd = head[1::2].count(0)
    if len(head) >= 16 and odd * 10 >= len(head) * 3 and head[::2].count(0) * 50 <= odd:
        return "utf-16-le"
    return None


# --- what lies around a message -------------------------------------------------------------------

_ANSI = re.compile(r"\x1b(?:\[[0-?]{0,40}[ -/]{0,8}[@-~]|\][^\x07\x1b]{0,200}\x07?|[@-Z\\-_])")
_ANSI_BYTES = re.compile(_ANSI.pattern.encode())
_STAMP = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z| ?[+-]\d\d:?\d\d)?"
# Each takes a prefix off; a group is the container.
_PREFIXES = tuple(
    re.compile(text)
    for text in (
        rf"{_STAMP} (?:stdout|stderr) [FP] ",  # containerd, CRI-O
        rf"\[?{_STAMP}\]?(?:\s{{1,4}}\||\t|\s{{1,4}})",  # docker -t, kubectl --timestamps, Actions
        r"\[pod/([^\]\s]{1,200})\] ?",  # kubectl logs --prefix
        r"([A-Za-z0-9][\w.-]{0,99}) {0,60}\| ",  # docker compose
        r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \S{1,80} ([\w./@-]{1,80})(?:\[\d{1,10}\])?: ",
        r"\d{1,6}\.\d\d\.\d{3}\.\d{3} [IWEDT] ",  # llama.cpp --log-timestamps --log-prefix
        r"[>#] ",  # quoted in an issue
        r"\[\d+,\d+\]<std(?:out|err)>:",  # mpirun
        r"\s{1,8}",
    )
)
_CRI_PARTIAL = re.compile(rf"{_STAMP} (?:stdout|stderr) P ")
# (EngineCore_DP0 pid=12), (Worker_PP0_TP1 pid=3), (VllmWorker rank=0 pid=3), (RayWorkerWrapper ..)
_PROCESS = re.compile(
    r"\(([A-Za-z][\w ]{0,60}?)?(?: ?rank=(\d{1,6}))?(?: ?pid=(\d{1,10}))?(?:, ip=[\w.:]{1,60})?\) "
)
_PARALLEL = re.compile(r"(DP|PP|TP|PCP)_?(\d{1,5})(?![A-Za-z])")
_ENGINE = re.compile(r"EngineCore_(\d{1,5})$")
_VLLM_FRAME = re.compile(
    r"(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d (?:\[[^\]]{1,120}\]|"
    r"[\w.]{1,80}:\d{1,6}\]) "
)
_SGLANG_FRAME = re.compile(
    rf"\[{_STAMP}((?: (?:DP|PP|TP|EP|ATTN_\w+|MOE_\w+|\w{{1,12}})\d{{0,4}}){{0,6}})\] "
)
_JSON_KEYS = ("log", "message", "msg", "MESSAGE", "textPayload", "line", "body")


def _clean(number: int, raw: bytes, partial: dict[str, str]) -> Iterator[Line]:
    text = raw.decode("utf-8", "replace")
    wrapped = text.lstrip()[:1] == "{"
    if wrapped:
        found = _unwrap(text)
        if found is not None:
            source, text, whole = found
            text = partial.pop(source, "") + text
            if not whole and len(text) < MAX_LINE_BYTES:
                partial[source] = text
            else:
                yield from _pieces(number, source, text)
            return
    elif _CRI_PARTIAL.match(text):
        text = partial.pop("", "") + _CRI_PARTIAL.sub("", text, count=1)
        if len(text) < MAX_LINE_BYTES:
            partial[""] = text
            return
    elif partial.get(""):
        # The last part of a line that the container runtime cut: only its stamp is taken off.
        text = partial.pop("") + _PREFIXES[0].sub("", text, count=1)
    yield from _pieces(number, "", text)


def _pieces(number: int, source: str, text: str) -> Iterator[Line]:
    """A line, or each state of a progress bar: written over itself, behind the same prefix."""
    if "\r" not in text:
        yield _framed(number, source, text)
        return
    for piece in text.split("\r"):
        if piece.strip():
            line = _framed(number, source, piece)
            source = line.source
            yield line


def _unwrap(text: str) -> tuple[str, str, bool] | None:
    """(container, message, whole) of a JSON record; docker cuts messages at 16 KiB."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    for key in _JSON_KEYS:
        message = record.get(key)
        if isinstance(message, str):
            whole = key != "log" or "stream" not in record or message.endswith("\n")
            source = record.get("container_name") or record.get("_SYSTEMD_UNIT") or ""
            return (source if isinstance(source, str) else "")[:80], message, whole
    return None


def _framed(number: int, source: str, text: str) -> Line:
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    rank, position = "", 0
    for _ in range(_MOST_PREFIXES):
        frame = _SGLANG_FRAME.match(text, position)
        if frame is not None:
            names = _PARALLEL.findall(frame[1])
            rank = " ".join(f"{kind}{index}" for kind, index in names) or rank
            return Line(number, source, rank, text[frame.end() :].strip(), framed=True)
        frame = _VLLM_FRAME.match(text, position)
        if frame is not None:
            return Line(number, source, rank, text[frame.end() :].strip(), framed=True)
        process = _PROCESS.match(text, position)
        if process is not None and process.end() - position > 4:
            rank = _rank(process) or rank
            position = process.end()
            continue
        for prefix in _PREFIXES:
            match = prefix.match(text, position)
            if match is not None and match.end() > position:
                if prefix.groups and not source:
                    source = match[1]
                position = match.end()
                break
        else:
            break
    return Line(number, source, rank, text[position:].strip(), framed=False)


def _rank(process: re.Match[str]) -> str:
    name, rank, pid = process[1] or "", process[2], process[3]
    parallel = _PARALLEL.findall(name)
    if parallel:
        return " ".join(f"{kind}{index}" for kind, index in parallel)
    engine = _ENGINE.match(name)
    if engine is not None:
        return f"DP{engine[1]}"
    if rank is not None:
        return f"rank {rank}"
    if "Worker" in name and pid:
        return f"pid {pid}"
    return ""
