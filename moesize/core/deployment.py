"""What the user chose, and what it became once every default was resolved."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Literal

from moesize.core.checkpoint import StoredEntry
from moesize.core.errors import InvalidDeploymentError
from moesize.core.model_spec import ModelSpec
from moesize.core.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST_TOKENS = 1 << 34
_MOST_SEQUENCES = 1 << 24


# Fields of a Request that every engine's planner looks at, and those of servers with a pool.
COMMON_FIELDS = frozenset(
    (
        "engine",
        "engine_version",
        "num_gpus",
        "context_tokens",
        "concurrency",
        "kv_dtype",
        "engine_settings",
    )
)
POOL_FIELDS = COMMON_FIELDS | {
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "expert_parallel",
    "gpu_memory_utilization",
    "max_num_seqs",
    "max_num_batched_tokens",
    "enforce_eager",
    "kv_cache_bytes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftModel:
    """A smaller model that guesses tokens: `method` is draft_model, eagle, eagle3, ..."""

    spec: ModelSpec
    stored: tuple[StoredEntry, ...]
    method: str = "draft_model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A deployment as asked for; None = not given, the engine's default applies.

    decode_context_parallel_size   ranks of a tensor-parallel group that share out the tokens of
                                   the KV cache (vLLM --decode-context-parallel-size)
    data_parallel_attention        attention data-parallel inside the tensor-parallel group (SGLang
                                   --enable-dp-attention)
    num_redundant_experts          extra copies of experts for load balancing (EPLB)
    expert_skew                    tokens of the busiest rank / mean over ranks, with EP
    cpu_offload_bytes              weights of each rank kept in host memory
    offload_experts                layers whose routed experts stay on the host, or "all"
    num_spec_tokens                guessed tokens per step, with a draft or MTP
    mtp                            the model's own MTP blocks make the guesses
    draft                          a draft model: what it is and how it is stored
    engine_settings                the engine's own settings (a dataclass of its core module)
    """

    engine: str = "vllm"
    engine_version: str | None = None
    num_gpus: int = 1
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    data_parallel_size: int | None = None
    expert_parallel: bool | None = None
    context_tokens: int | None = None
    concurrency: int | None = None
    kv_dtype: str | None = None
    gpu_memory_utilization: float | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enforce_eager: bool | None = None
    block_tokens: int | None = None
    kv_cache_bytes: int | None = None
    decode_context_parallel_size: int | None = None
    data_parallel_attention: bool | None = None
    num_redundant_experts: int | None = None
    expert_skew: float | None = None
    cpu_offload_bytes: int | None = None
    offload_experts: int | Literal["all"] | None = None
    num_spec_tokens: int | None = None
    mtp: bool | None = None
    draft: DraftModel | None = None
    lora_rank: int | None = None
    max_loras: int | None = None
    engine_settings: object | None = None

    def __post_init__(self) -> None:
        _positive(self, "context_tokens", _MOST_TOKENS)
        _positive(self, "concurrency", _MOST_SEQUENCES)
        _positive(self, "max_num_seqs", _MOST_SEQUENCES)
        _positive(self, "max_num_batched_tokens", _MOST_TOKENS)
        _positive(self, "block_tokens", 1 << 20)
        _positive(self, "num_gpus", 1 << 16)
        _positive(self, "tensor_parallel_size", 1 << 16)
        _positive(self, "pipeline_parallel_size", 1 << 16)
        _positive(self, "data_parallel_size", 1 << 16)
        _positive(self, "decode_context_parallel_size", 1 << 10)
        _positive(self, "num_spec_tokens", 64)
        _positive(self, "lora_rank", 1 << 12)
        _positive(self, "max_loras", 1 << 12)
        if self.num_redundant_experts is not None and self.num_redundant_experts < 0:
            raise InvalidDeploymentError("the number of redundant experts cannot be negative")
        if self.expert_skew is not None and not 1 <= self.expert_skew <= 1 << 16:
            raise InvalidDeploymentError(
                f"expert skew {self.expert_skew:g} must be at least 1: tokens of the busiest rank "
                "divided by the mean over ranks"
            )
        if self.cpu_offload_bytes is not None and self.cpu_offload_bytes < 0:
            raise InvalidDeploymentError("an offload of less than nothing makes no sense")
        share = self.gpu_memory_utilization
        if share is not None and not 0 < share <= 1:
            raise InvalidDeploymentError(
                f"gpu memory utilization {share:g} must lie between 0 and 1", "for example 0.92"
            )

    def given(self) -> set[str]:
        """Names of the fields that were given."""
        return {name for name in _FIELDS if getattr(self, name) is not None}


_FIELDS = tuple(item.name for item in fields(Request))


# Fields of `deployment` of engines that serve with pools, by the Request field that sets them.
_SHOWN = {
    "engine_version": "engine_version",
    "tensor_parallel_size": "tp",
    "pipeline_parallel_size": "pp",
    "data_parallel_size": "dp",
    "expert_parallel": "ep",
    "context_tokens": "context",
    "concurrency": "concurrency",
    "kv_dtype": "kv_dtype",
    "gpu_memory_utilization": "gpu_memory_utilization",
    "max_num_seqs": "max_num_seqs",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "enforce_eager": "enforce_eager",
    "block_tokens": "block_size",
}


def defaulted_names(request: Request, own: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """`deployment.defaulted`: settings that were not given; `own` are those of one engine."""
    given = request.given()
    shown = {**_SHOWN, **(own or {})}
    return tuple(name for field, name in shown.items() if field not in given)


def _positive(request: Request, name: str, most: int) -> None:
    value = getattr(request, name)
    if value is not None and not 1 <= value <= most:
        raise InvalidDeploymentError(
            f"{name.replace('_', ' ')} is {value}; it must lie between 1 and {most:,}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the GPUs are used: t x p ranks make a replica, of which there are d.

    decode_context_parallel_size   ranks of a tensor-parallel group that share out the tokens
    note                           what was chosen for the user, in words; empty = nothing
    """

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    decode_context_parallel_size: int = 1
    expert_parallel: bool = False
    note: str = ""

    @property
    def num_gpus(self) -> int:
        """GPUs in use."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size

    @property
    def expert_ranks(self) -> int:
        """Ranks of one pipeline stage, which share out the routed experts."""
        return self.tensor_parallel_size * self.data_parallel_size

    @property
    def expert_parallel_size(self) -> int:
        """Ranks that share out whole experts; 1 without expert parallelism."""
        return self.expert_ranks if self.expert_parallel else 1


def choose_layout(request: Request, valid_sizes: list[int], model: str) -> Layout:
    """Tensor, pipeline and data-parallel sizes for the GPUs.

    Without --tp and --pp all GPUs of a data-parallel rank are tensor parallel; where that does not
    divide the model, the largest size that does is combined with pipeline stages. Sizes that were
    given are taken as an engine takes them: --tp 2 on 4 GPUs leaves two idle, and the note says so.
    Raises InvalidDeploymentError when they need more GPUs than there are, or do not divide them.
    """
    n, t, p = request.num_gpus, request.tensor_parallel_size, request.pipeline_parallel_size
    d = request.data_parallel_size or 1
    context_ranks = request.decode_context_parallel_size or 1
    expert_parallel = bool(request.expert_parallel)
    if n % d:
        raise InvalidDeploymentError(
            f"--dp {d} does not divide {n} GPUs",
            f"use --gpus {d * (t or 1) * (p or 1)}, or another --dp",
        )
    each = n // d
    note = ""
    if t is not None or p is not None:
        if t is None:
            t = max(1, each // (p or 1))
        elif p is None:
            p = 1
        p = p or 1
        used = t * p * d
        if used > n or n % used or (each // (t * p) > 1 and d > 1):
            sizes = f"--tp {t} x --pp {p}" + (f" x --dp {d}" if d > 1 else "")
            raise InvalidDeploymentError(
                f"{sizes} uses {used} GPUs, but there are {n}",
                f"use --gpus {used}, or sizes that multiply to {n}",
            )
        if used < n:
            note = (
                f"--tp {t} x --pp {p} uses {used} of the {n} GPUs; --dp {n // used} makes "
                f"{n // used} replicas, --pp {p * n // used} spreads one over all of them"
            )
    elif each in valid_sizes:
        t, p = each, 1
        if each > 1:
            note = f"all {each} GPUs are used as tensor parallel"
            if d > 1:
                note = f"the {each} GPUs of each of {d} replicas are used as tensor parallel"
    else:
        sizes_that_divide = [size for size in valid_sizes if each % size == 0]
        if not sizes_that_divide:
            raise InvalidDeploymentError(
                f"{each} GPUs cannot be shared out: no tensor parallel size of {model} divides "
                f"{each}",
                f"sizes that work: {', '.join(map(str, valid_sizes)) or 'none'}",
            )
        t = max(sizes_that_divide)
        p = each // t
        note = f"{each} does not divide {model}; used as tensor parallel {t} x {p} pipeline stages"
    return Layout(
        tensor_parallel_size=t,
        pipeline_parallel_size=p,
        data_parallel_size=d,
        decode_context_parallel_size=context_ranks,
        expert_parallel=expert_parallel,
        note=note,
    )
