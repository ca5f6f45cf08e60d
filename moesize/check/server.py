"""What a deployment file says of one model server: facts with their places, nothing computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from moesize.check.source import Span, Word

T = TypeVar("T")


class Stated(NamedTuple, Generic[T]):
    """A value and the word that states it."""

    value: T
    at: Word


class GpuClaim(NamedTuple):
    """What a file says of the kind of GPU.

    text    as written: `nvidia-l4`, `g5.8xlarge`, `A100-80GB`, `nvidia.com/mig-1g.10gb`
    via     the key or selector that says it, for messages
    kind    the vocabulary, as in `gpus.find_gpu`: driver, gke, karpenter, kubernetes, typed; or
            `instance` for the name of a machine type
    num_gpus  GPUs where the claim itself has a number (`A100:8`), else None
    """

    text: Word
    via: str
    kind: str = "typed"
    num_gpus: int | None = None


class Deadline(NamedTuple):
    """A probe that ends a server which is not ready in time.

    seconds   from the start of the container to the kill
    at        the word to change (failureThreshold, initialDelaySeconds)
    what      `startupProbe`, `livenessProbe`
    """

    seconds: int
    at: Word
    what: str


class Unresolved(NamedTuple):
    """A value that the files do not define: `name` of the variable, and where it is used."""

    name: str
    at: Word


@dataclass(slots=True, kw_only=True)
class Server:
    """One model server of a file.

    name            of the container, service or entry
    place           what findings about the whole server point at
    engine          vllm, sglang, llama.cpp, tgi, tensorrt-llm, ollama, nim, ...; None: not known
    words           what follows the engine's program, or what keys of the file stand for, as flags
                    of the engine: each Word where it stands
    environment     variables that the engine sees
    image           the container image
    version         the engine's release where the file states it beside the image (pip install)
    model           the model where the file names it outside of `words`
    fallback_model  a name that is only evidence (a label, the served name beside a pvc:// path)
    gpus            kinds of GPU that are named; several are alternatives that must each do
    gpus_per_node   GPUs of one pod, container or machine; nodes: pods or machines of one replica
    replicas_share  servers inside the GPUs of one replica (Ray Serve with TP 1 on 8 GPUs)
    device_ids      which GPUs of the machine, where the file says so
    shares_with     servers of equal non-empty value run beside each other on the same machine
    exclusive       servers of equal non-empty value never run at the same time (llama-swap)
    vendor          nvidia, amd, intel, ... where only that is known
    memory_limit    host memory that the container may use, in bytes
    shm             /dev/shm in bytes; None: not stated
    shm_is_default  the container gets its runtime's default /dev/shm
    deadlines       probes
    concurrency     requests at once that the file itself promises
    unresolved      values that no file defines
    skipped         why there is nothing to judge; empty: judge it
    notes           what a reader had to assume, in words
    """

    name: str
    place: Word
    engine: str | None = None
    words: tuple[Word, ...] = ()
    environment: dict[str, Word] = field(default_factory=dict)
    image: Word | None = None
    version: Word | None = None
    model: Word | None = None
    fallback_model: Word | None = None
    gpus: tuple[GpuClaim, ...] = ()
    gpus_per_node: Stated[int] | None = None
    nodes: Stated[int] | None = None
    replicas_share: Stated[int] | None = None
    device_ids: tuple[str, ...] = ()
    shares_with: str = ""
    exclusive: str = ""
    vendor: str = ""
    memory_limit: Stated[int] | None = None
    shm: Stated[int] | None = None
    shm_is_default: bool = False
    deadlines: tuple[Deadline, ...] = ()
    concurrency: Stated[int] | None = None
    unresolved: tuple[Unresolved, ...] = ()
    skipped: str = ""
    notes: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Reading:
    """What one document of a file is, and the servers in it.

    kind      as in docs/check.md: `k8s_deployment`, `docker_compose`, ...
    skipped   why there is no server to judge, in words; empty when there is one
    """

    kind: str
    servers: list[Server] = field(default_factory=list)
    skipped: str = ""
    problems: list[Problem] = field(default_factory=list)


class Problem(NamedTuple):
    """Something wrong with the file itself, by rule."""

    rule: str
    message: str
    span: Span
