"""What vLLM prints while it starts, 0.6 to 0.33.

Read in the releases 0.6.6.post1, 0.7.3, 0.8.5.post1, 0.9.2, 0.11.2, 0.22.1 and 0.33.0:
worker/worker.py, v1/worker/gpu_worker.py, v1/worker/gpu_model_runner.py, v1/core/kv_cache_utils.py,
v1/core/kv_cache_planning.py, v1/engine/core.py, config/vllm.py (`__str__`), entrypoints/.
Sizes that old releases call GB are divided by 2^30 all the same.
"""

from __future__ import annotations

import ast
import json
from typing import TYPE_CHECKING, Any

from moesize.logs.facts import pairs_of
from moesize.logs.patterns import COUNT, NUMBER, Table, count_of, gpu_name

if TYPE_CHECKING:
    import re

    from moesize.logs.clean import Line
    from moesize.logs.facts import Start

TABLE = Table("vllm")

# Names in the printed config -> flags. Only what was resolved there and may be given again.
_CONFIG_FLAGS = {
    "max_seq_len": "max_model_len",
    "max_model_len": "max_model_len",
    "tensor_parallel_size": "tensor_parallel_size",
    "pipeline_parallel_size": "pipeline_parallel_size",
    "data_parallel_size": "data_parallel_size",
    "decode_context_parallel_size": "decode_context_parallel_size",
    "enforce_eager": "enforce_eager",
    "kv_cache_dtype": "kv_cache_dtype",
    "dtype": "dtype",
    "enable_prefix_caching": "enable_prefix_caching",
}
# Arguments that change memory; of a V0 Namespace, which prints defaults as well, only these.
_ARGUMENTS = frozenset(
    (
        *_CONFIG_FLAGS,
        "gpu_memory_utilization",
        "max_num_seqs",
        "max_num_batched_tokens",
        "enable_expert_parallel",
        "block_size",
        "kv_cache_memory_bytes",
        "cpu_offload_gb",
        "quantization",
        "speculative_config",
        "enable_lora",
        "max_loras",
        "max_lora_rank",
        "limit_mm_per_prompt",
        "compilation_config",
        "cuda_graph_sizes",
        "max_seq_len_to_capture",
        "mm_encoder_tp_mode",
        "num_gpu_blocks_override",
        "enable_eplb",
        "hf_overrides",
        "enable_chunked_prefill",
        "no_enable_prefix_caching",
        "mamba_cache_mode",
        "mamba_cache_dtype",
        "mamba_ssm_cache_dtype",
        "enable_sleep_mode",
        "async_scheduling",
        "attention_backend",
        "moe_backend",
        "language_model_only",
        "skip_mm_profiling",
    )
)
_OFF: tuple[Any, ...] = (None, False, "", "auto", [], {})


@TABLE.on(
    "LLM engine (v",
    r"Initializing an? (?:V[01] )?LLM engine \(v([\w.+]{1,60})\) with config: (.*)",
    begins=True,
)
def _engine(start: Start, match: re.Match[str], line: Line) -> None:
    del line
    start.version = match[1]
    start.settings["engine_line"] = True
    _config(start, pairs_of(match[2]), defaults_too=True)


@TABLE.on("API server version", r"vLLM API server version ([\w.+]{1,60})", begins=True)
def _version(start: Start, match: re.Match[str], line: Line) -> None:
    del line
    start.version = match[1]
    start.settings["server"] = "openai"


@TABLE.on("args: ", r"non-default args: \{(.*)", begins=False)
def _non_default(start: Start, match: re.Match[str], line: Line) -> None:
    del line
    found = pairs_of(match[1])
    _config(start, found, defaults_too=False)


@TABLE.on("args: Namespace(", r"args: Namespace\((.*)")
def _namespace(start: Start, match: re.Match[str], line: Line) -> None:
    del line
    found = {
        k: v for k, v in pairs_of(match[1]).items() if k in _ARGUMENTS | {"model", "model_tag"}
    }
    _config(start, found, defaults_too=False)


def _config(start: Start, found: dict[str, Any], *, defaults_too: bool) -> None:
    model = found.get("model") or found.get("model_tag")
    if isinstance(model, str) and model:
        start.model = model[:300]
    quantization = found.get("quantization")
    if isinstance(quantization, str) and quantization:
        start.quantization = quantization[:40]
    for name, value in found.items():
        if name not in _ARGUMENTS:
            continue
        flag = _CONFIG_FLAGS.get(name, name)
        if isinstance(value, str) and value[:1] in "{[":
            value = _json(value)
        if defaults_too:
            if name not in _CONFIG_FLAGS or value is None:
                continue
            if flag == "dtype":
                value = str(value).removeprefix("torch.")
            if flag == "enforce_eager" and value is False:
                continue
            start.flags.setdefault(flag, value)
            if flag in ("max_model_len", "kv_cache_dtype"):
                start.flags[flag] = value  # resolved here: 32k, auto and -1 are not in it
        elif value not in _OFF or value is False:
            start.flags[flag] = value


def _json(text: str) -> Any:
    """A printed dict as JSON, as the flag takes it; None for what cannot be written so."""
    try:
        return json.dumps(ast.literal_eval(text))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


@TABLE.on(
    "max_num_batched_tokens=", r"Chunked prefill is enabled with max_num_batched_tokens=(\d{1,9})"
)
def _chunked(start: Start, match: re.Match[str], line: Line) -> None:
    del line
    start.flags.setdefault("max_num_batched_tokens", int(match[1]))


# --- weights --------------------------------------------------------------------------------------

TABLE.size("odel loading took", rf"Model loading took {NUMBER} GiB", "weights", "GiB")
TABLE.size("odel weights took", rf"Loading model weights took {NUMBER} GB", "weights", "GB")
TABLE.setting("esolved architecture", r"Resolved architectures?: (\w{1,80})", "architecture")

# --- memory profiling -----------------------------------------------------------------------------


@TABLE.on(
    "total_gpu_memory (",
    rf"(?:the current vLLM instance can use )?total_gpu_memory \({NUMBER}GiB\) x "
    rf"gpu_memory_utilization \({NUMBER}\)",
)
def _v0_budget(start: Start, match: re.Match[str], line: Line) -> None:
    start.size("total_memory", match[1], "GiB", line.rank, line.number)
    start.flags.setdefault("gpu_memory_utilization", float(match[2]))


@TABLE.on(
    "non_torch_memory takes",
    rf"model weights take {NUMBER}GiB; ?non_torch_memory takes {NUMBER}GiB; ?PyTorch "
    rf"activation peak memory takes {NUMBER}GiB; ?the rest of the memory reserved for KV "
    rf"Cache is {NUMBER}GiB",
)
def _v0_profile(start: Start, match: re.Match[str], line: Line) -> None:
    for name, text in zip(
        ("non_torch", "activation_peak", "kv_cache"), match.groups()[1:], strict=True
    ):
        start.size(name, text, "GiB", line.rank, line.number)


@TABLE.on(
    "total_gpu_memory=",
    rf"Memory profiling results: total_gpu_memory={NUMBER}Gi[Bb] .{{0,200}}?"
    rf"non_torch_memory={NUMBER}Gi[Bb] kv_cache_size={NUMBER}Gi[Bb] "
    rf"gpu_memory_utilization={NUMBER}",
)
def _v064_profile(start: Start, match: re.Match[str], line: Line) -> None:
    # vLLM 0.6.4 only, as quoted in its issue 10517.
    for name, text in zip(
        ("total_memory", "non_torch", "kv_cache"), match.groups()[:3], strict=True
    ):
        start.size(name, text, "GiB", line.rank, line.number)
    start.flags.setdefault("gpu_memory_utilization", float(match[4]))


TABLE.size(
    "vailable KV cache memory", rf"Available KV cache memory: {NUMBER} GiB", "kv_cache", "GiB"
)
TABLE.size(
    "CUDA graph memory: ",
    rf"Estimated CUDA graph memory: {NUMBER} GiB",
    "cuda_graphs_estimated",
    "GiB",
)
TABLE.size(
    "Graph capturing finished",
    rf"Graph capturing finished in \d{{1,7}} secs?, took {NUMBER} GiB",
    "cuda_graphs",
    "GiB",
)


@TABLE.on(
    "Free memory on device",
    rf"Free memory on device (?:\S{{1,20}} )?\({NUMBER}/{NUMBER} GiB\) on startup\.? (is less "
    rf"than|is greater|Desired)(?: desired)? ?(?:GPU memory utilization (?:is "
    rf")?\({NUMBER}, {NUMBER} GiB\))?",
    anywhere=True,
)
def _free(start: Start, match: re.Match[str], line: Line) -> None:
    start.size("free_memory", match[1], "GiB", line.rank, line.number)
    start.size("total_memory", match[2], "GiB", line.rank, line.number)
    if match[4]:
        start.flags.setdefault("gpu_memory_utilization", float(match[4]))
    if match[3] == "is less than":
        start.fail("too_little_free", line.text, line.number)
        return
    _usage(start, line)


def _usage(start: Start, line: Line) -> None:
    import re

    for name, pattern in (
        ("weights_summary", rf"usage is {NUMBER} GiB for weight"),
        ("consumed", rf"usage is {NUMBER} GiB for consumed memory"),
        ("activation_peak", rf"{NUMBER} GiB for peak activation"),
        ("non_torch", rf"{NUMBER} GiB for non-torch memory"),
        ("cuda_graphs", rf"{NUMBER} GiB for CUDAGraph memory"),
    ):
        found = re.search(pattern, line.text)
        if found is not None:
            if name == "cuda_graphs" and start.last("cuda_graphs") is not None:
                continue  # "Graph capturing finished" said it
            start.size(name, found[1], "GiB", line.rank, line.number)
    kept = re.search(rf"kv cache memory in use is {NUMBER} GiB", line.text)
    if kept is not None and start.last("kv_cache") is None:
        start.size("kv_cache", kept[1], "GiB", line.rank, line.number)


@TABLE.on(
    "graph pool memory",
    rf"CUDA graph pool memory: {NUMBER} GiB \(actual\), {NUMBER} GiB \(estimated\)",
)
def _pool(start: Start, match: re.Match[str], line: Line) -> None:
    if start.last("cuda_graphs_estimated") is None:
        start.size("cuda_graphs_estimated", match[2], "GiB", line.rank, line.number)


# --- KV cache -------------------------------------------------------------------------------------


@TABLE.on(
    "KV cache size",
    rf"GPU(?: \+ host)? KV cache size: {COUNT} tokens(?:, Maximum concurrency for {COUNT} "
    rf"tokens per request: {NUMBER}x)?",
)
def _tokens(start: Start, match: re.Match[str], line: Line) -> None:
    start.add("kv_tokens", count_of(match[1]), 1, line.rank, line.number)
    if match[2]:
        start.add("concurrency_at", count_of(match[2]), 1, line.rank, line.number)
        start.add("concurrency", float(match[3]), 0.01, line.rank, line.number)


@TABLE.on(
    "aximum concurrency for", rf"Maximum concurrency for {COUNT} tokens per request: {NUMBER}x"
)
def _concurrency(start: Start, match: re.Match[str], line: Line) -> None:
    start.add("concurrency_at", count_of(match[1]), 1, line.rank, line.number)
    start.add("concurrency", float(match[2]), 0.01, line.rank, line.number)


@TABLE.on(" blocks: ", rf"# (?:GPU|cuda) blocks: {COUNT}")
def _blocks(start: Start, match: re.Match[str], line: Line) -> None:
    start.add("kv_blocks", count_of(match[1]), 1, line.rank, line.number)


@TABLE.on("ttention block size to", r"Setting attention block size to (\d{1,9}) tokens")
def _block_size(start: Start, match: re.Match[str], line: Line) -> None:
    start.add("block_tokens", int(match[1]), 1, line.rank, line.number)


TABLE.setting(
    "mamba page size by", r"Padding mamba page size by ([\d.]{1,10}%)", "mamba_page_padding"
)
TABLE.setting("padding layers", r"Add (\d{1,5}) padding layers", "kv_padding_layers")
TABLE.setting(
    "out of potential backends",
    r"Using (\w{1,60}) (?:attention )?backend out of potential",
    "attention_backend",
)
TABLE.setting(
    " backend on V1 engine", r"Using ([\w ]{1,60}) backend on V1 engine", "attention_backend"
)
TABLE.setting("Mxfp4 backend", r"Using '?([\w .-]{1,60}?)'? Mxfp4 ", "moe_backend")
TABLE.setting("MoE backend", r"Using '?([\w .-]{1,60}?)'? (?:\w{1,20} )?MoE backend", "moe_backend")
TABLE.setting("Model Runner", r"Using (V\d) Model Runner", "model_runner")


@TABLE.on(
    "for KV Cache as specified",
    rf"Initial free memory {NUMBER} GiB, reserved {NUMBER} GiB memory for KV Cache",
)
def _reserved(start: Start, match: re.Match[str], line: Line) -> None:
    start.size("free_memory", match[1], "GiB", line.rank, line.number)
    start.size("kv_cache", match[2], "GiB", line.rank, line.number)


# --- devices --------------------------------------------------------------------------------------


@TABLE.on("device_name=", r"device_name=([\w. -]{2,80}?)(?:,|\.json)", anywhere=True)
def _device(start: Start, match: re.Match[str], line: Line) -> None:
    start.gpu, start.gpu_line = gpu_name(match[1]), line.number


# --- failures -------------------------------------------------------------------------------------


@TABLE.on(
    "To serve at least one request",
    rf"(?:ValueError: )?To serve at least one request with the model(?:s's|'s|s) max seq len "
    rf"\((\d{{1,12}})\), \(?{NUMBER} GiB KV cache is needed, which is larger than the "
    rf"available KV cache memory \({NUMBER} GiB\)",
    anywhere=True,
)
def _one_request(start: Start, match: re.Match[str], line: Line) -> None:
    import re

    start.size("kv_needed", match[2], "GiB", line.rank, line.number)
    start.size("kv_cache", match[3], "GiB", line.rank, line.number)
    start.flags.setdefault("max_model_len", int(match[1]))
    found = re.search(r"maximum model length is (\d{1,12})", line.text)
    if found is not None:
        start.add("max_context", int(found[1]), 1, line.rank, line.number)
    start.fail("context_too_long", line.text, line.number)


@TABLE.on(
    "stored in KV cache (",
    r"max seq len \((\d{1,12})\) is larger than the maximum number of tokens that can be "
    r"stored in KV cache \((\d{1,12})\)",
    anywhere=True,
)
def _too_long(start: Start, match: re.Match[str], line: Line) -> None:
    start.add("max_context", int(match[2]), 1, line.rank, line.number)
    start.flags.setdefault("max_model_len", int(match[1]))
    start.fail("context_too_long", line.text, line.number)


TABLE.failure("No available memory for the cache blocks", "no_kv_memory")


@TABLE.on(
    "out of memory", r"(?:CUDA|HIP|XPU|NPU) out of memory|CUDA error: out of memory", anywhere=True
)
def _oom(start: Start, match: re.Match[str], line: Line) -> None:
    del match
    out_of_memory(start, line)


def out_of_memory(start: Start, line: Line) -> None:
    """torch says what was asked for and what the device has; torch 2.1 spelt it "capacty"."""
    import re

    asked = re.search(rf"Tried to allocate {NUMBER} ([GMK]iB)", line.text)
    if asked is not None:
        start.size("asked", asked[1], asked[2], line.rank, line.number)
    total = re.search(rf"total capaci?ty of {NUMBER} ([GMK]iB)", line.text)
    if total is not None:
        start.size("total_memory", total[1], total[2], line.rank, line.number)
    start.fail("out_of_memory", line.text, line.number)


TABLE.failure("Engine core initialization failed", "unknown")
TABLE.ready("Application startup complete")
TABLE.ready("init engine (profile, create kv cache, warmup model) took")
TABLE.ready("Starting vLLM API server")
