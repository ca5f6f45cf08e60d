"""Servers out of what a script, a unit or a command line starts."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from moesize.check.server import Server, Stated
from moesize.check.source import Word

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moesize.check.formats import Context
    from moesize.check.shell import Launch

_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s?([bkmgt]?)(?:i?b)?", re.IGNORECASE)
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")


def size_in(word: Word | None) -> Stated[int] | None:
    """`16g`, `512M`, `2GiB` of docker, systemd and SLURM, in powers of 1024; None for others."""
    if word is None or len(word) > 40:
        return None
    match = _SIZE.fullmatch(word.strip())
    if match is None:
        return None
    power = " kmgt".index(match[2].lower()) if match[2] and match[2] not in "bB" else 0
    return Stated(int(float(match[1]) * 1024**power), word)


def given_variables(context: Context) -> dict[str, Word]:
    """What the user gave with --set."""
    return {name: Word(value) for name, value in context.variables.items()}


def server_of(launch: Launch, name: str) -> Server:
    """A launch as a server."""
    # What follows `ollama run` is no flag but the model.
    is_ollama = launch.engine == "ollama"
    server = Server(
        name=name,
        place=launch.place,
        engine=launch.engine,
        words=() if is_ollama else launch.words,
        environment=dict(launch.environment),
        image=launch.image,
        model=launch.words[0] if is_ollama and launch.words else None,
        gpus_per_node=_visible(launch),
        device_ids=launch.devices,
        unresolved=launch.unresolved,
    )
    if is_ollama and len(launch.words) > 1:
        # `ollama create NAME -f Modelfile`
        server.skipped = "its model is made of a Modelfile, which is read on its own"
    said = launch.container
    if said is not None:
        server.memory_limit = size_in(said.memory)
        server.shm = size_in(said.shm)
        server.shm_is_default = said.shm is None and not said.host_ipc
    return server


def _visible(launch: Launch) -> Stated[int] | None:
    """How many GPUs the launch sees, at the word that says so."""
    if launch.visible is None:
        return None
    for name in _VISIBLE:
        word = launch.environment.get(name)
        if word:
            # A list of devices: no number that could be replaced by another.
            return Stated(launch.visible, Word(word, word.span))
    gpus = launch.container.gpus if launch.container is not None else None
    if gpus is None:
        return Stated(launch.visible, Word(launch.place, launch.place.span))
    is_number = gpus == str(launch.visible)
    return Stated(launch.visible, gpus if is_number else Word(gpus, gpus.span))


def servers_of(launches: Sequence[Launch], name: str, kind: str, path: str) -> list[Server]:
    """The servers that one text starts, and how they stand to each other."""
    servers: list[Server] = []
    last = len(launches)
    beside = Counter(
        launch.round
        for number, launch in enumerate(launches, 1)
        if launch.background or number == last
    )
    for number, launch in enumerate(launches, 1):
        said = launch.container
        own = str(said.name) if said is not None and said.name is not None else ""
        server = server_of(launch, own or (name if len(launches) == 1 else f"{name} #{number}"))
        # Each runs beside the others of the background, until they are ended; the last may wait.
        if (launch.background or number == last) and beside[launch.round] > 1:
            server.shares_with = f"{kind}:{path}:{launch.round}"
        if launch.alternative:
            server.exclusive = f"{kind}:{path}:branches"
        servers.append(server)
    return servers


def title_of(path: str) -> str:
    """The name of a file without folder and ending."""
    last = path.rpartition("/")[2]
    return last.rpartition(".")[0] or last


def names_engine(text: str, environment: Mapping[str, Word] | None = None) -> bool:
    """Whether a text names an engine at all; most do not."""
    from moesize.check.programs import may_start

    return may_start(text, environment or {}, ())
