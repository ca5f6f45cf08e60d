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
    "--tp": ("tensor_parallel_size", parse_count),
    "--pipeline-parallel-size": ("pipeline_parallel_size", parse_count),
    "-pp": ("pipeline_parallel_size", parse_count),
    "--pp": ("pipeline_parallel_size", parse_count),
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
    "--config",
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


# Flags of a serve command that cannot change what a GPU holds.
_HARMLESS = (
    "--host",
    "--port",
    "--api-key",
    "--served-model-name",
    "--trust-remote-code",
    "--download-dir",
    "--tokenizer",
    "--tokenizer-mode",
    "--chat-template",
    "--tool-call-parser",
    "--enable-auto-tool-choice",
    "--reasoning-parser",
    "--seed",
    "--revision",
    "--disable-log-requests",
    "--disable-log-stats",
    "--uvicorn-log-level",
    "--root-path",
    "--ssl-keyfile",
    "--ssl-certfile",
    "--enable-prefix-caching",
    "--enable-chunked-prefill",
    "--generation-config",
    "--load-format",
    "--distributed-executor-backend",
)


def apply_vllm_arguments(request: Request, text: str) -> tuple[Request, tuple[Note, ...]]:
    """Put pasted flags into a request; what may change memory and is not planned is named.

    Options of the command itself win over pasted ones. A flag may be shortened as far as it stays
    unique, as vLLM takes it. Raises InvalidInputError for a value that cannot be read or a flag
    without its value.
    """
    from moesize.cli import read_engine_args

    words = read_engine_args(text)
    changes: dict[str, Any] = {}
    unplanned: list[str] = []
    unknown: list[str] = []
    position = 0
    while position < len(words):
        flag, equals, value = words[position].partition("=")
        position += 1
        if not flag.startswith("-") or _is_number(flag):
            continue  # the command's own words, the model, or the value of a flag passed over
        flag = _whole(flag.replace("_", "-") if flag.startswith("--") else flag)
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
            if flag == "--max-model-len" and value in ("-1", "auto"):
                unplanned.append(f"{flag} {value}")
            else:
                changes[name] = read(value)
        elif flag in _MATTERS:
            unplanned.append(flag)
        elif flag not in _HARMLESS:
            unknown.append(flag)
    given = request.given()
    changes = {name: value for name, value in changes.items() if name not in given}
    if request.num_gpus == 1 and not {"tensor_parallel_size", "pipeline_parallel_size"} & given:
        changes["num_gpus"] = (changes.get("tensor_parallel_size") or 1) * (
            changes.get("pipeline_parallel_size") or 1
        )
    notes = []
    if unplanned:
        message = f"--engine-args: not planned, though it may change memory: {', '.join(unplanned)}"
        notes.append(Note(code="engine-args", message=message))
    if unknown:
        message = f"--engine-args: not known, so not planned: {', '.join(unknown)}"
        notes.append(Note(code="engine-args", message=message))
    return replace(request, **changes), tuple(notes)


def _whole(flag: str) -> str:
    """A shortened long flag in full, when only one begins like it."""
    known = (*_VALUES, *_SWITCHES, *_MATTERS, *_HARMLESS)
    if flag in known or not flag.startswith("--") or len(flag) < 4:
        return flag
    fits = {other for other in known if other.startswith(flag)}
    return fits.pop() if len(fits) == 1 else flag


def _is_number(word: str) -> bool:
    return word.lstrip("-").replace(".", "", 1).isdigit()
