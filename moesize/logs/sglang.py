"""What SGLang prints while it starts, 0.4.6 to 0.5.23.

Read in the releases 0.4.6, 0.5.2, 0.5.5 and 0.5.23: srt/entrypoints/engine.py,
srt/model_executor/model_runner.py, srt/mem_cache/memory_pool.py,
srt/mem_cache/kv_cache_configurator.py, srt/managers/scheduler.py,
srt/model_executor/model_runner_components/cuda_graph_setup.py. Its GB are 2^30 bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.logs.facts import pairs_of
from moesize.logs.patterns import COUNT, NUMBER, Table, count_of, gpu_name
from moesize.logs.vllm import out_of_memory

if TYPE_CHECKING:
    import re

    from moesize.logs.clean import Line
    from moesize.logs.facts import Start

TABLE = Table("sglang")

# Arguments that change memory; the rest of the two hundred is passed over.
_ARGUMENTS = frozenset(
    (
        "tp_size",
        "pp_size",
        "dp_size",
        "ep_size",
        "mem_fraction_static",
        "max_running_requests",
        "max_total_tokens",
        "chunked_prefill_size",
        "max_prefill_tokens",
        "page_size",
        "context_length",
        "kv_cache_dtype",
        "dtype",
        "quantization",
        "swa_full_tokens_ratio",
        "disable_hybrid_swa_memory",
        "enable_dp_attention",
        "enable_dp_lm_head",
        "moe_dense_tp_size",
        "moe_a2a_backend",
        "ep_num_redundant_experts",
        "attention_backend",
        "speculative_algorithm",
        "speculative_draft_model_path",
        "speculative_num_steps",
        "speculative_eagle_topk",
        "speculative_num_draft_tokens",
        "max_mamba_cache_size",
        "mamba_ssm_dtype",
        "mamba_full_memory_ratio",
        "disable_radix_cache",
        "disable_cuda_graph",
        "cuda_graph_max_bs",
        "cpu_offload_gb",
        "enable_symm_mem",
        "enable_lora",
        "max_lora_rank",
        "max_loras_per_batch",
    )
)


@TABLE.on("server_args=ServerArgs(", r"server_args=ServerArgs\((.*)", begins=True)
def _arguments(start: Start, match: re.Match[str], line: Line) -> None:
    del line
    found = pairs_of(match[1])
    model = found.get("model_path")
    if isinstance(model, str):
        start.model = model[:300]
    if isinstance(found.get("quantization"), str):
        start.quantization = str(found["quantization"])[:40]
    if isinstance(found.get("device"), str):
        start.settings["device"] = found["device"][:20]
    for name in sorted(_ARGUMENTS & found.keys()):
        value = found[name]
        if value not in (None, False, "auto", "none"):
            start.flags[name] = value


TABLE.setting("sglang version", r"sglang version[: =]{1,3}([\w.+]{1,40})", "version_line")


@TABLE.on("SGLang", r"SGLang(?: version)? v?(0\.\d{1,3}\.\d{1,3}[\w.+]{0,40})")
def _version(start: Start, match: re.Match[str], line: Line) -> None:
    del line
    start.version = start.version or match[1]


TABLE.size(
    "Load weight begin", rf"Load weight begin\. avail mem={NUMBER} GB", "free_before_load", "GB"
)


@TABLE.on(
    "Load weight end", rf"Load weight end\. .{{0,400}}?avail mem={NUMBER} GB, mem usage={NUMBER} GB"
)
def _weights(start: Start, match: re.Match[str], line: Line) -> None:
    draft = any(s.rank == line.rank for s in start.all("weights"))
    start.size("draft_weights" if draft else "weights", match[2], "GB", line.rank, line.number)
    if not draft:
        start.size("free_after_load", match[1], "GB", line.rank, line.number)


@TABLE.on(
    "KV Cache is allocated",
    rf"KV Cache is allocated\. .{{0,80}}?#tokens: {COUNT}, (?:K size: {NUMBER} GB, V "
    rf"size: {NUMBER} GB|KV size: {NUMBER} GB)",
)
def _pool(start: Start, match: re.Match[str], line: Line) -> None:
    tokens = count_of(match[1])
    draft = start.settings.get("pool_end", "") == "yes" and start.last("draft_weights") is not None
    name = "draft_kv_cache" if draft else "kv_pool"
    for text in match.groups()[1:]:
        if text:
            start.size(name, text, "GB", line.rank, line.number)
    if not draft:
        start.add("pool_tokens", tokens, 1, line.rank, line.number)


@TABLE.on(
    "Mamba Cache is allocated",
    rf"Mamba Cache is allocated\. (?:max_mamba_cache_size: (\d{{1,9}}), )?conv_state "
    rf"size: {NUMBER}GB, ssm_state size: {NUMBER}GB",
)
def _mamba(start: Start, match: re.Match[str], line: Line) -> None:
    if match[1]:
        start.add("state_slots", int(match[1]), 1, line.rank, line.number)
    for text in (match[2], match[3]):
        start.size("state", text, "GB", line.rank, line.number)


@TABLE.on("Memory pool end", rf"Memory pool end\. avail mem={NUMBER} GB")
def _pool_end(start: Start, match: re.Match[str], line: Line) -> None:
    start.settings["pool_end"] = "yes"
    start.size("free_after_pool", match[1], "GB", line.rank, line.number)


@TABLE.on(
    "graph end",
    rf"Capture (?!draft)[\w -]{{0,40}}(?:cuda|CUDA|npu|NPU)? ?graph end\. .{{0,200}}?mem "
    rf"usage={NUMBER} GB",
)
def _graphs(start: Start, match: re.Match[str], line: Line) -> None:
    start.size("cuda_graphs", match[1], "GB", line.rank, line.number)


@TABLE.on(
    "max_total_num_tokens=",
    rf"max_total_num_tokens={COUNT}, chunked_prefill_size=(-?\d{{1,9}}|None), "
    rf"max_prefill_tokens=\d{{1,9}}, max_running_requests=(\d{{1,9}}), context_len=(\d{{1,9}})",
)
def _totals(start: Start, match: re.Match[str], line: Line) -> None:
    start.add("kv_tokens", count_of(match[1]), 1, line.rank, line.number)
    start.settings["max_running_requests"] = int(match[3])
    start.flags.setdefault("max_running_requests", int(match[3]))
    start.flags.setdefault("context_length", int(match[4]))


@TABLE.on("device_name=", r"device_name=([\w. -]{2,80}?)(?:,|\.json)", anywhere=True)
def _device(start: Start, match: re.Match[str], line: Line) -> None:
    start.gpu, start.gpu_line = gpu_name(match[1]), line.number


TABLE.failure("Not enough memory. Please try", "no_kv_memory")
TABLE.failure("Not enough GPU memory for hybrid", "no_kv_memory")


@TABLE.on(
    "out of memory", r"(?:CUDA|HIP|XPU|NPU) out of memory|CUDA error: out of memory", anywhere=True
)
def _oom(start: Start, match: re.Match[str], line: Line) -> None:
    del match
    out_of_memory(start, line)


TABLE.failure("apture cuda graph failed", "graphs_failed")
TABLE.ready("The server is fired up and ready to roll")
