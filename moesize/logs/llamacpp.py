"""What llama.cpp prints while it loads: llama-server, llama-cli, ollama's runner, ik_llama.cpp.

Read in libllama 0.5.0 (vendored by llama-cpp-python 0.3.36): src/llama-model.cpp,
src/llama-model-loader.cpp, src/llama-context.cpp, src/llama-kv-cache.cpp,
src/llama-memory-recurrent.cpp, common/fit.cpp, ggml/src/ggml-cuda/ggml-cuda.cu. Lines of older
builds (`llm_load_tensors`, `llm_load_print_meta`, `llama_new_context_with_model`) as quoted in
github.com/ikawrakow/ik_llama.cpp issues and discussions. MiB are 2^20 bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.logs.patterns import NUMBER, Table, gpu_name

if TYPE_CHECKING:
    import re

    from moesize.logs.clean import Line
    from moesize.logs.facts import Start

TABLE = Table("llama.cpp")

_DEVICE = r"([A-Za-z][\w-]{0,40})"


@TABLE.on("build", r"(?:^|: )build(?:_info)?: ?(?:b?(\d{1,6}) ?[(-]|b?(\d{1,6})-)", begins=True)
def _build(start: Start, match: re.Match[str], line: Line) -> None:
    del line
    start.version = f"b{match[1] or match[2]}"


@TABLE.on("go runner", r"starting (?:go|ollama) runner", begins=True)
def _ollama(start: Start, match: re.Match[str], line: Line) -> None:
    del match, line
    start.settings["program"] = "ollama"


@TABLE.on(
    "ggml_cuda_init: found",
    r"ggml_cuda_init: found (\d{1,4}) (?:CUDA|ROCm|MUSA) devices",
    begins=True,
)
def _devices(start: Start, match: re.Match[str], line: Line) -> None:
    del line
    start.num_devices = int(match[1])


@TABLE.on("Device ", r"Device (\d{1,4}): ([^,]{2,80}), (?:compute capability|gfx)")
def _device(start: Start, match: re.Match[str], line: Line) -> None:
    import re

    if not start.gpu:
        start.gpu, start.gpu_line = gpu_name(match[2]), line.number
    elif gpu_name(match[2]) != start.gpu:
        start.note(
            f"the log lists different GPUs ({start.gpu}, {gpu_name(match[2])}): planned on "
            f"the first"
        )
    memory = re.search(r"VRAM: (\d{1,9}) MiB", line.text)
    if memory is not None:
        start.size("total_memory", memory[1], "MiB", f"CUDA{match[1]}", line.number)


@TABLE.on(
    "using device ",
    rf"using device {_DEVICE} "
    rf"\(([^()]{{2,80}}(?:\([^()]{{0,40}}\)[^()]{{0,40}})?)\).{{0,80}}? - (\d{{1,9}}) MiB free",
)
def _using(start: Start, match: re.Match[str], line: Line) -> None:
    if not start.gpu:
        start.gpu, start.gpu_line = gpu_name(match[2]), line.number
    start.settings.setdefault("devices", []).append(match[1])
    start.size("free_memory", match[3], "MiB", match[1], line.number)


@TABLE.on(
    "loaded meta data with",
    r"loaded meta data with \d{1,9} key-value pairs and (\d{1,9}) tensors from (.{1,300}?) "
    r"\(version",
)
def _file(start: Start, match: re.Match[str], line: Line) -> None:
    del line
    if start.last("compute") is not None:
        start.settings["second_model"] = True
        start.note(
            "a second model (draft, embedding) is loaded after the first: only the first is audited"
        )
        return
    start.settings["file"] = match[2]
    start.checks["tensors"] = int(match[1])


@TABLE.on("- type ", r"- type +(\w{2,12}): +(\d{1,9}) tensors")
def _types(start: Start, match: re.Match[str], line: Line) -> None:
    del line
    if not start.settings.get("second_model"):
        start.settings.setdefault("types", {})[match[1].upper()] = int(match[2])


# --- the model ------------------------------------------------------------------------------------

_META = r"(?:print_info|llm_load_print_meta): "
_CHECKS = (
    "arch",
    "n_layer",
    "n_embd",
    "n_head",
    "n_head_kv",
    "n_expert",
    "n_expert_used",
    "n_vocab",
    "n_ctx_train",
    "n_swa",
    "n_ff",
)


@TABLE.on(
    "print_",
    rf"{_META}({'|'.join(_CHECKS)}) += +(.{{1,400}}?) *$",
)
def _check(start: Start, match: re.Match[str], line: Line) -> None:
    del line
    if start.settings.get("second_model"):
        return
    value: int | str = int(match[2]) if match[2].isdigit() and len(match[2]) < 12 else match[2][:60]
    start.checks.setdefault(match[1], value)


@TABLE.on("print_", rf"{_META}general\.name *= *(.{{1,200}}?) *$")
def _name(start: Start, match: re.Match[str], line: Line) -> None:
    del line
    if not start.settings.get("second_model"):
        start.model = start.model or match[1]


@TABLE.on("print_", rf"{_META}model params *= *{NUMBER} ([TBMK])")
def _params(start: Start, match: re.Match[str], line: Line) -> None:
    del line
    scale = {"T": 10**12, "B": 10**9, "M": 10**6, "K": 1000}[match[2]]
    decimals = len(match[1].partition(".")[2])
    start.checks.setdefault("params", round(float(match[1]) * scale))
    start.checks.setdefault("params_step", scale / 10**decimals)


@TABLE.on("print_", rf"{_META}(?:file type|model ftype) *= *(.{{1,80}}?) *$")
def _ftype(start: Start, match: re.Match[str], line: Line) -> None:
    del line
    if not start.settings.get("second_model"):
        start.quantization = start.quantization or match[1]


@TABLE.on("print_", rf"{_META}(?:file size|model size) *= *{NUMBER} (GiB|MiB)")
def _file_size(start: Start, match: re.Match[str], line: Line) -> None:
    if start.last("file_size") is None:
        start.size("file_size", match[1], match[2], "", line.number)


# --- buffers --------------------------------------------------------------------------------------


def _buffer(anchor: str, words: str, name: str) -> None:
    @TABLE.on(anchor, rf"{_DEVICE} +{words} += +{NUMBER} MiB")
    def take(start: Start, match: re.Match[str], line: Line) -> None:
        if not start.settings.get("second_model"):
            start.size(name, match[2], "MiB", match[1], line.number)


_buffer("model buffer size", "model buffer size", "model")
_buffer("KV buffer size", "KV buffer size", "kv")
_buffer("RS buffer size", "RS buffer size", "state")
_buffer("compute buffer size", "compute buffer size", "compute")
_buffer("output buffer size", "output buffer size", "output")
# Builds before April 2025 and ik_llama.cpp: "llm_load_tensors:      CUDA0 buffer size = ...".
_buffer(" buffer size", "buffer size", "model")


@TABLE.on(
    " cells, ",
    rf"size = +{NUMBER} MiB \( *(\d{{1,9}}) cells, +(\d{{1,5}}) "
    rf"layers(?:, +(\d{{1,5}})(?:/(\d{{1,5}}))? seqs)?[^)]{{0,40}}\)(?:, K "
    rf"\((\w{{1,12}})\).{{0,60}}V \((\w{{1,12}})\))?",
)
def _cells(start: Start, match: re.Match[str], line: Line) -> None:
    if start.settings.get("second_model"):
        return
    start.add("kv_cells", int(match[2]), 1, match[3], line.number)
    if match[5]:
        start.flags.setdefault("parallel", int(match[4]))
    if match[6]:
        start.flags.setdefault("cache_type_k", match[6])
        start.flags.setdefault("cache_type_v", match[7])


# ik_llama.cpp at all times, llama.cpp with -v: what -ot and --n-cpu-moe moved.
_OVERRIDDEN = r"[Tt]ensor blk\.(\d{1,5})\.ffn_(?:up|gate|down|gate_up)_exps\S{0,20}"


@TABLE.on("buffer type overrid", rf"{_OVERRIDDEN} .{{0,60}}?buffer type overrid+en to CPU")
def _overridden(start: Start, match: re.Match[str], line: Line) -> None:
    del line
    if not start.settings.get("second_model"):
        start.host_experts.add(int(match[1]))


@TABLE.on(
    "llama_",
    r"llama_(?:new_context_with_model|init_from_model): (?:mla_attn|attn_max_b|fused_moe|ser) ",
)
def _ik(start: Start, match: re.Match[str], line: Line) -> None:
    del match, line
    start.settings["program"] = "ik_llama.cpp"


@TABLE.on("KV self size", r"KV self size +=.{0,60}?K \((\w{1,12})\).{0,60}?V \((\w{1,12})\)")
def _self_size(start: Start, match: re.Match[str], line: Line) -> None:
    del line
    start.flags.setdefault("cache_type_k", match[1])
    start.flags.setdefault("cache_type_v", match[2])


@TABLE.on("layers to GPU", r"offloaded (\d{1,5})/(\d{1,5}) layers to GPU")
def _offloaded(start: Start, match: re.Match[str], line: Line) -> None:
    del line
    if not start.settings.get("second_model"):
        start.settings["offloaded"] = f"{match[1]}/{match[2]}"
        start.flags["n_gpu_layers"] = int(match[1])


_CONTEXT = {
    "n_ctx": "ctx_size",
    "n_batch": "batch_size",
    "n_ubatch": "ubatch_size",
    "n_seq_max": "parallel",
    "flash_attn": "flash_attn",
}


@TABLE.on(
    "llama_",
    r"(?:llama_context|llama_new_context_with_model|llama_init_from_model|constructing "
    r"context): "
    r"(n_ctx|n_batch|n_ubatch|n_seq_max|flash_attn|kv_unified|n_ctx_seq) += +(\w{1,20})",
)
def _context(start: Start, match: re.Match[str], line: Line) -> None:
    del line
    if start.settings.get("second_model"):
        return
    value: int | str = int(match[2]) if match[2].isdigit() else match[2]
    if match[1] in _CONTEXT:
        start.flags.setdefault(_CONTEXT[match[1]], value)
    elif match[1] == "kv_unified":
        start.settings["kv_unified"] = match[2] in ("true", "1")


@TABLE.on("llama_model_load", r"llama_model_load[\w]*: error loading model: (.{1,200})")
def _load_error(start: Start, match: re.Match[str], line: Line) -> None:
    kind = "out_of_memory" if "allocate" in match[1] else "unknown"
    start.fail(kind, line.text, line.number)


@TABLE.on(
    "out of memory",
    rf"allocating {NUMBER} MiB on device (\d{{1,3}}): \w{{1,20}} failed: out of memory",
)
def _oom(start: Start, match: re.Match[str], line: Line) -> None:
    start.size("asked", match[1], "MiB", f"CUDA{match[2]}", line.number)
    start.fail("out_of_memory", line.text, line.number)


TABLE.failure("failed to allocate buffer for kv cache", "no_kv_memory")
TABLE.failure("failed to allocate compute", "out_of_memory")
TABLE.failure("failed to create context", "unknown")
TABLE.ready("server is listening")
TABLE.ready("model loaded")
TABLE.ready("all slots are idle")
TABLE.ready("llama runner started")
TABLE.ready("generate: n_ctx")


@TABLE.on(
    "memory_breakdown_print: |",
    rf"- {_DEVICE} \(([^|]{{2,80}})\) *\| *(\d{{1,9}}) = *(\d{{1,9}}) \+",
)
def _breakdown(start: Start, match: re.Match[str], line: Line) -> None:
    start.size("total_memory", match[3], "MiB", match[1], line.number)
