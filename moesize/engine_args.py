"""`--engine-args "..."`: the engine's own flags, so that a serve command can be pasted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from moesize.core.errors import InvalidInputError
from moesize.core.plan import Note
from moesize.core.units import parse_bytes, parse_count

if TYPE_CHECKING:
    from collections.abc import Callable

    from moesize.core.deployment import Request


def _bytes(text: str) -> int:
    return int(text) if text.isdigit() else parse_bytes(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InvalidInputError(f"--engine-args: {text[:40]!r} is not a number") from error


# vLLM flag -> Request field and how its value is read. Names from vLLM 0.32.0 engine/arg_utils.py.
_VALUES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "--tensor-parallel-size": ("tensor_parallel_size", parse_count),
    "-tp": ("tensor_parallel_size", parse_count),
    "--pipeline-parallel-size": ("pipeline_parallel_size", parse_count),
    "-pp": ("pipeline_parallel_size", parse_count),
    "--data-parallel-size": ("data_parallel_size", parse_count),
    "-dp": ("data_parallel_size", parse_count),
    "--max-model-len": ("context_tokens", parse_count),
    "--max-num-seqs": ("max_num_seqs", parse_count),
    "--max-num-batched-tokens": ("max_num_batched_tokens", parse_count),
    "--gpu-memory-utilization": ("gpu_memory_utilization", _number),
    "--kv-cache-dtype": ("kv_dtype", str),
    "--kv-cache-memory-bytes": ("kv_cache_bytes", _bytes),
    "--block-size": ("block_tokens", parse_count),
}
_SWITCHES = {
    "--enforce-eager": ("enforce_eager", True),
    "--no-enforce-eager": ("enforce_eager", False),
    "--enable-expert-parallel": ("expert_parallel", True),
    "--no-enable-expert-parallel": ("expert_parallel", False),
}
# Flags that change memory and are not planned yet: named in a warning, never passed over.
_MATTERS = (
    "--cpu-offload-gb",
    "--swap-space",
    "--enable-lora",
    "--max-loras",
    "--max-lora-rank",
    "--speculative-config",
    "--speculative-model",
    "--quantization",
    "-q",
    "--dtype",
    "--hf-overrides",
    "--limit-mm-per-prompt",
    "--skip-mm-profiling",
    "--mm-encoder-tp-mode",
    "--compilation-config",
    "-O",
    "--cuda-graph-sizes",
    "--enable-eplb",
    "--decode-context-parallel-size",
    "--mamba-cache-mode",
    "--mamba-ssm-cache-dtype",
    "--mamba-cache-dtype",
    "--no-enable-prefix-caching",
    "--performance-mode",
    "--num-gpu-blocks-override",
    "--no-async-scheduling",
)


def apply_vllm_arguments(request: Request, text: str) -> tuple[Request, tuple[Note, ...]]:
    """Put pasted flags into a request; flags that may change memory but are not planned are named.

    Raises InvalidInputError for a value that cannot be read or a flag without its value.
    """
    from moesize.cli import read_engine_args

    words = read_engine_args(text)
    changes: dict[str, Any] = {}
    unplanned: list[str] = []
    position = 0
    while position < len(words):
        flag, equals, value = words[position].partition("=")
        flag = flag.replace("_", "-") if flag.startswith("--") else flag
        position += 1
        if flag in _SWITCHES:
            name, setting = _SWITCHES[flag]
            changes[name] = setting
        elif flag in _VALUES:
            if not equals:
                if position >= len(words):
                    raise InvalidInputError(f"--engine-args: {flag} needs a value")
                value = words[position]
                position += 1
            name, read = _VALUES[flag]
            changes[name] = read(value)
        elif flag in _MATTERS:
            unplanned.append(flag)
    if "tensor_parallel_size" in changes or "pipeline_parallel_size" in changes:
        ranks = (changes.get("tensor_parallel_size") or 1) * (
            changes.get("pipeline_parallel_size") or 1
        )
        if request.num_gpus == 1:
            changes["num_gpus"] = ranks
    warnings: tuple[Note, ...] = ()
    if unplanned:
        message = f"not planned yet, though it may change memory: {', '.join(unplanned)}"
        warnings = (Note(code="engine-args", message=message),)
    return replace(request, **changes), warnings
