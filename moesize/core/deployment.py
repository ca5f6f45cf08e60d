"""What the user chose, and what it became once every default was resolved."""

from __future__ import annotations

from dataclasses import fields
from typing import Literal

from moesize.core.checkpoint import StoredEntry
from moesize.core.errors import InvalidDeploymentError, UnsupportedError
from moesize.core.model_spec import ModelSpec
from moesize.core.records import dataclass

_MOST_TOKENS = 1 << 34
_MOST_SEQUENCES = 1 << 24


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
        return {item.name for item in fields(self) if getattr(self, item.name) is not None}


def _positive(request: Request, name: str, most: int) -> None:
    value = getattr(request, name)
    if value is not None and not 1 <= value <= most:
        raise InvalidDeploymentError(
            f"{name.replace('_', ' ')} is {value}; it must lie between 1 and {most:,}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the GPUs are used: t x p ranks make a replica."""

    tensor_parallel_size: int
    pipeline_parallel_size: int
    expert_parallel: bool
    note: str = ""

    @property
    def expert_parallel_size(self) -> int:
        """Ranks that share out whole experts; 1 without expert parallelism."""
        return self.tensor_parallel_size if self.expert_parallel else 1


def choose_layout(request: Request, valid_sizes: list[int], model: str) -> Layout:
    """Tensor and pipeline sizes that use all GPUs.

    Without --tp and --pp all GPUs are tensor parallel; where that does not divide the model, the
    largest size that does is combined with pipeline stages. Raises InvalidDeploymentError when the
    sizes that were given do not multiply to the number of GPUs.
    """
    if request.data_parallel_size not in (None, 1):
        raise UnsupportedError(
            "data parallelism is not planned yet",
            "plan one replica: --dp 1 with the GPUs of one replica",
        )
    n, t, p = request.num_gpus, request.tensor_parallel_size, request.pipeline_parallel_size
    expert_parallel = bool(request.expert_parallel)
    if t is not None or p is not None:
        t = t or max(1, n // (p or 1))
        p = p or max(1, n // t)
        if t * p != n:
            raise InvalidDeploymentError(
                f"--tp {t} x --pp {p} uses {t * p} GPUs, but there are {n}",
                f"use --gpus {t * p}, or sizes that multiply to {n}",
            )
        return Layout(
            tensor_parallel_size=t, pipeline_parallel_size=p, expert_parallel=expert_parallel
        )
    if n in valid_sizes:
        note = f"all {n} GPUs are used as tensor parallel" if n > 1 else ""
        return Layout(
            tensor_parallel_size=n,
            pipeline_parallel_size=1,
            expert_parallel=expert_parallel,
            note=note,
        )
    sizes = [size for size in valid_sizes if n % size == 0]
    if not sizes:
        raise InvalidDeploymentError(
            f"{n} GPUs cannot be shared out: no tensor parallel size of {model} divides {n}",
            f"sizes that work: {', '.join(map(str, valid_sizes)) or 'none'}",
        )
    t = max(sizes)
    note = f"{n} does not divide {model}; used as tensor parallel {t} x {n // t} pipeline stages"
    return Layout(
        tensor_parallel_size=t,
        pipeline_parallel_size=n // t,
        expert_parallel=expert_parallel,
        note=note,
    )
