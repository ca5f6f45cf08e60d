"""Shell scripts, Dockerfiles and systemd units that start model servers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from moesize.check.formats import TextFormat
from moesize.check.installed import installed_version
from moesize.check.readers import dockerfile, systemd
from moesize.check.readers.launched import (
    given_variables,
    names_engine,
    servers_of,
    size_in,
    title_of,
)
from moesize.check.server import GpuClaim, Reading, Stated
from moesize.check.shell import launches_in
from moesize.check.source import Word

if TYPE_CHECKING:
    from moesize.check.formats import Context
    from moesize.check.server import Server
    from moesize.check.source import SourceText

_ENDINGS = (".sh", ".bash", ".zsh", ".ksh", ".sbatch", ".slurm")
_SHEBANG = re.compile(r"#![^\n]{0,200}\b(?:ba|z|da|k|a)?sh\b")
_SBATCH = re.compile(r"#SBATCH[ \t]+(-\w|--[\w-]{1,40})(?:[ \t]*=[ \t]*|[ \t]+|)(\"[^\"\n]*\"|\S*)")
_GPUS = re.compile(r"(?:gres/)?gpu(?::([A-Za-z][\w.+-]{0,60}))?(?:[:=](\d{1,4}))?")
_MOST_HEADER_LINES = 500


class _Header(NamedTuple):
    """What the #SBATCH lines of a script ask for."""

    gpus_per_node: Stated[int] | None = None
    nodes: Stated[int] | None = None
    gpus: tuple[GpuClaim, ...] = ()
    memory: Stated[int] | None = None

    def environment(self) -> dict[str, Word]:
        """Variables that SLURM sets for the script."""
        found: dict[str, Word] = {}
        if self.nodes is not None:
            for name in ("SLURM_NNODES", "SLURM_JOB_NUM_NODES"):
                found[name] = self.nodes.at
        if self.gpus_per_node is not None:
            for name in ("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE"):
                found[name] = self.gpus_per_node.at
        return found


def _is_shell(path: str, text: str) -> bool:
    if not path.endswith(_ENDINGS) and not _SHEBANG.match(text):
        return False
    return names_engine(text)


def _read_shell(source: SourceText, context: Context) -> Reading:
    header = _slurm_header(source)
    given = given_variables(context)
    launches = launches_in(
        source,
        {**header.environment(), **given},
        fixed=tuple(given),
        read_file=context.folder.read,
    )
    servers = servers_of(launches, title_of(context.path), "shell", context.path)
    for server in servers:
        _on_cluster(server, header)
        server.version = installed_version(source, server.engine)
    skipped = "" if servers else "starts no model server"
    return Reading(kind="shell", servers=servers, skipped=skipped)


def _on_cluster(server: Server, header: _Header) -> None:
    """What the job's header says of the machine, where the command says nothing."""
    server.gpus_per_node = server.gpus_per_node or header.gpus_per_node
    server.nodes = header.nodes
    server.gpus = header.gpus
    server.memory_limit = server.memory_limit or header.memory


def _slurm_header(source: SourceText) -> _Header:
    """The #SBATCH lines before the first command."""
    text, position, header = source.value, 0, _Header()
    if "#SBATCH" not in text[: 1 << 16]:
        return header
    total: Stated[int] | None = None
    for _ in range(_MOST_HEADER_LINES):
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        line = text[position : min(end, position + 1000)].strip()
        if line and not line.startswith("#"):
            break
        match = _SBATCH.match(text, position, end)
        if match is not None:
            start, stop = match.span(2)
            if text[start : start + 1] == '"':
                start, stop = start + 1, stop - 1
            header, total = _option(header, total, match[1], source.word(start, max(start, stop)))
        if end >= len(text):
            break
        position = end + 1
    nodes = header.nodes.value if header.nodes is not None else 1
    if header.gpus_per_node is None and total is not None and total.value % nodes == 0:
        at = total.at if nodes == 1 else Word(total.at, total.at.span)
        header = header._replace(gpus_per_node=Stated(total.value // nodes, at))
    return header


def _option(
    header: _Header, total: Stated[int] | None, name: str, value: Word
) -> tuple[_Header, Stated[int] | None]:
    """One option of sbatch."""
    if name in ("--nodes", "-N"):
        first = value.partition("-")[0]
        number = _number(value.cut(0, len(first)))
        return (header._replace(nodes=number) if number else header), total
    if name == "--mem":
        size = size_in(value)
        if size is not None and value.strip().isdigit():
            size = Stated(size.value << 20, value)  # MiB, where no unit is given
        return header._replace(memory=size), total
    if name in ("--gres", "--gpus-per-node"):
        text = value if name == "--gres" else value.becomes(f"gpu:{value}")
        kind, number = _gpus(text, value)
        if kind is not None:
            header = header._replace(gpus=(GpuClaim(kind, name, "typed"),))
        return (header._replace(gpus_per_node=number) if number else header), total
    if name in ("--gpus", "-G"):
        kind, number = _gpus(value.becomes(f"gpu:{value}"), value)
        if kind is not None:
            header = header._replace(gpus=(GpuClaim(kind, name, "typed"),))
        return header, number or total
    return header, total


def _gpus(text: str, written: Word) -> tuple[Word | None, Stated[int] | None]:
    """Kind and number of `gpu:h100:8`; `written` is the word that the file has."""
    part = next((each for each in text[:500].split(",") if each.lstrip().startswith("gpu")), "")
    match = _GPUS.match(part.strip())
    if match is None:
        return None, None
    kind = _inside(written, match[1]) if match[1] else None
    number = _number(_inside(written, match[2])) if match[2] else None
    return kind, number


def _inside(word: Word, text: str) -> Word:
    """A piece of a word, where it stands in it."""
    start = word.rfind(text) if text.isdigit() else word.find(text)
    return word.cut(start, start + len(text)) if start >= 0 else Word(text, word.span)


def _number(word: Word) -> Stated[int] | None:
    is_number = word.isascii() and word.isdigit() and len(word) < 6
    return Stated(int(word), word) if is_number and int(word) > 0 else None


TEXT_FORMATS = [
    TextFormat("dockerfile", dockerfile.matches, dockerfile.read),
    TextFormat("systemd", systemd.matches, systemd.read),
    TextFormat("shell", _is_shell, _read_shell),
]
