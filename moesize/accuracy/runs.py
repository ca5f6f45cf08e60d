"""A report -> the plans of its run: engine, version, GPUs, layout, settings, as it said.

What a report leaves out is never filled in by hand. Settings take the engine's default of that
version. A GPU or a version that nobody stated becomes several candidates, and only what all the
candidates agree in is predicted (`terms`). A vLLM report with neither version nor flags is an
excerpt that does not show its command line: what people switch on for models with MTP blocks or
recurrent states is planned beside the defaults (`Run.variants`).
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from moesize.accuracy.models import is_latent
from moesize.accuracy.versions import Versions, versions_of
from moesize.core.deployment import Request
from moesize.core.errors import InvalidInputError, MoesizeError, UnknownNameError, UnsupportedError
from moesize.core.gpu import GpuSpec, MemoryReading
from moesize.core.records import dataclass
from moesize.core.units import GIB
from moesize.engines import engine_id
from moesize.gpus import find_gpu

if TYPE_CHECKING:
    from moesize.accuracy.models import Resolved
    from moesize.accuracy.reports import FieldReport
    from moesize.core.plan import Plan

# An engine that is a fork or a wrapper of one that is planned, and what it has in common with it.
_FORKS = {"ik_llama.cpp": "llama.cpp"}
_GGUF_ENGINES = ("llama.cpp", "ik_llama.cpp")
# One card of each generation whose kernels store weights differently, for reports without a GPU.
_STAND_INS = ("a100-80gb-sxm", "l40s", "h100-80gb-sxm", "rtx-5090", "b200", "mi300x")
# Cards whose memory differs by less are one card: a bus or a form factor.
_SAME_MEMORY = 0.02
# What engines print with two decimals may be off by half of the last one.
_HALF_UNIT_GIB = 0.005
# Block sizes that vLLM takes from the command line; others it made itself (hybrid models).
GIVEN_BLOCKS = (16, 32, 64, 128)
# Flags that change what is beside weights and caches (buffers of communication, graphs, the profile
# run), but neither of these: where they are not planned, both can still be compared.
_BESIDE_WEIGHTS_AND_CACHES = frozenset(
    (
        "--chunked-prefill-size",
        "--cuda-graph-max-bs",
        "--deepep-mode",
        "--disaggregation-mode",
        "--kv-transfer-config",
        "--moe-a2a-backend",
        "--speculative-config.moe_backend",
    )
)
_OTHER_KERNELS = ("Vulkan", "SYCL")
_DECOMPRESSED_SINCE = "2025-03-13"
# ik_llama.cpp's types with rows side by side: IQ4_K_R4, Q8_0_R8.
_INTERLEAVED = re.compile(r"_[Rr][48](?![0-9A-Za-z])")
# A flag whose value the excerpt cuts off: planned like one that may or may not be there.
_CUT_OFF = ("speculative_config (truncated)",)
# Flags of a log that are settings of the report anyway, or change no memory.
_PASSED_OVER = ("device", "dist_timeout", "tokenizer_path")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way in which the report may have run."""

    gpu: GpuSpec
    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a report ran, ready to be planned.

    engine        the engine whose planner is used; `report.engine` may be a fork of it
    candidates    more than one where GPU or version were not stated
    variants      the first candidate with settings that decide and that nobody stated
    problem       why nothing can be planned; no candidates then
    gpu           what is shown: the card's id, or empty when it is not known
    devices_problem  why caches and weights cannot be told apart by device (llama.cpp); totals can
    unplanned        flags that are not planned and change what lies beside weights and caches
    split_problem    why it is not known which layers lie on which GPU (llama.cpp)
    context_problem  why the length of the context is not known (llama.cpp)
    graph_problem    why what a batch needs is not known (llama.cpp)
    host_graph_problem  the same for the host's part
    sequences_problem  why it is not known for how many sequences logits are kept (llama.cpp)
    weights_moved    why it is not known which weights lie where (llama.cpp)
    """

    engine: str
    candidates: tuple[Candidate, ...] = ()
    variants: tuple[Candidate, ...] = ()
    problem: str = ""
    gpu: str = ""
    gpu_known: bool = False
    version: str = ""
    version_assumed: bool = False
    notes: tuple[str, ...] = ()
    devices_problem: str = ""
    split_problem: str = ""
    context_problem: str = ""
    graph_problem: str = ""
    host_graph_problem: str = ""
    sequences_problem: str = ""
    weights_moved: str = ""
    unplanned: str = ""

    @property
    def ways(self) -> tuple[Candidate, ...]:
        """Candidates and variants."""
        return self.candidates + self.variants


def run_of(report: FieldReport, model: Resolved) -> Run:
    """The candidates for a report whose model is known."""
    engine = _engine(report.engine)
    if engine is None:
        return Run(engine=report.engine, problem=f"engine not planned: {report.engine[:40]}")
    versions = _versions(report, engine, model)
    if versions.problem:
        return Run(engine=engine, problem=versions.problem)
    shown = versions.names[0] if len(versions.names) == 1 else ""
    base = Run(engine=engine, version=shown, version_assumed=versions.assumed)
    notes = [versions.note] if versions.note else []
    try:
        gpus, gpu, gpu_notes = _gpus(report)
        requests, unplanned = _requests(report, engine, versions.names)
    except (_NotCoveredError, MoesizeError) as error:
        kind = "" if isinstance(error, _NotCoveredError) else "settings refused: "
        return replace(base, problem=f"{kind}{error}", notes=tuple(notes))
    if not requests:
        oldest = versions.names[-1]
        return replace(base, problem=f"version not planned: {engine} {oldest}")
    candidates = tuple(Candidate(gpu=g, request=r) for r in requests for g in gpus)
    variants = _variants(report, model, candidates[0])
    if variants:
        notes.append("command line not stated: planned with and without MTP and prefix caching")
    return replace(
        base,
        candidates=candidates,
        variants=variants,
        gpu=gpu,
        gpu_known=bool(gpu),
        notes=(*notes, *gpu_notes),
        unplanned=unplanned,
        split_problem=_split_problem(report) if engine in _GGUF_ENGINES else "",
        context_problem=_context_problem(report) if engine in _GGUF_ENGINES else "",
        graph_problem=_graph_problem(report, model) if engine in _GGUF_ENGINES else "",
        host_graph_problem=_host_graph_problem(report),
        sequences_problem=_sequences_problem(report) if engine in _GGUF_ENGINES else "",
        devices_problem=_devices_problem(report) if engine in _GGUF_ENGINES else "",
        weights_moved=_weights_moved(report) if engine in _GGUF_ENGINES else "",
    )


# Tokens guessed by MTP: the fewest, and the most that recipes of models with MTP blocks use.
_GUESSES = (1, 3)


def _variants(report: FieldReport, model: Resolved, first: Candidate) -> tuple[Candidate, ...]:
    """The candidate with MTP and with prefixes cached, where the command line is not shown."""
    from moesize.core.vllm_settings import VllmSettings

    request, spec = first.request, model.spec
    if request.engine != "vllm" or spec is None:
        return ()
    cut = _is_cut_off(report)
    if not cut and (report.text("engine_version") or report.settings.get("other_flags")):
        return ()
    own = request.engine_settings
    settings = own if isinstance(own, VllmSettings) else VllmSettings()
    made = [request]
    # Prefixes are cached anyway, except where finding them costs states of their own.
    recurrent = any(mixer.state() for block in spec.blocks for mixer in block.mixers)
    if recurrent and settings.enable_prefix_caching is None:
        cached = replace(settings, enable_prefix_caching=True)
        made.append(replace(request, engine_settings=cached))
    if spec.mtp is not None and not request.num_spec_tokens:
        made += [replace(r, mtp=True, num_spec_tokens=k) for r in made for k in _GUESSES]
    return tuple(Candidate(gpu=first.gpu, request=r) for r in made[1:])


def _is_cut_off(report: FieldReport) -> bool:
    flags = report.settings.get("other_flags") or ()
    return any(flag.strip() in _CUT_OFF for flag in flags)


def plan_run(model: Resolved, candidate: Candidate, **changes: Any) -> Plan:
    """Plan a candidate, with other settings where `changes` says so. Raises MoesizeError."""
    from moesize.api import make_plan

    assert model.spec is not None
    request = replace(candidate.request, **changes) if changes else candidate.request
    return make_plan(model.spec, "catalogue", model.scheme, "", candidate.gpu, request)


class _NotCoveredError(Exception):
    """Why a report cannot be planned."""


def _engine(name: str) -> str | None:
    """The engine whose planner is used: its own, or of a fork the one it was forked from."""
    for known in (name, _FORKS.get(name, name)):
        try:
            return engine_id(known)
        except UnknownNameError:
            continue
    return None


# --- versions -------------------------------------------------------------------------------------


def _versions(report: FieldReport, engine: str, model: Resolved) -> Versions:
    if report.engine == engine or report.engine not in _FORKS:
        return versions_of(report, engine)
    # A fork has numbers of its own. What it shares with llama.cpp is taken from the newest rules.
    if model.spec is not None and is_latent(model.spec) and _latent_is_off(report):
        return Versions(
            problem=f"setting not planned: {report.engine} without MLA keeps a cache of its own"
        )
    from moesize.engines import engine_profile

    newest = engine_profile(engine).version
    return Versions(
        names=(newest,), note=f"{report.engine} planned as {engine} {newest}, its newest rules"
    )


def _latent_is_off(report: FieldReport) -> bool:
    # With MLA in use the log says that no V is kept: the keys hold everything.
    return "MLA" not in report.text("type_v")


# --- GPUs -----------------------------------------------------------------------------------------


def _gpus(report: FieldReport) -> tuple[tuple[GpuSpec, ...], str, tuple[str, ...]]:
    """(candidates, what to show, notes). Nothing to show: the GPU is not known."""
    stated = report.settings.get("gpu")
    names = [stated] if isinstance(stated, str) else list(stated or ())
    total = report.settings.get("gpu_total_gib")
    kinds = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not kinds:
        if isinstance(total, (int, float)) and total > 0:
            spec = find_gpu(f"{total:g}GiB").spec
            stand_ins = tuple(_with_total(gpu, total) for gpu in _stand_ins())
            return stand_ins, spec.id, ("no GPU stated, only its memory",)
        return _stand_ins(), "", ()
    if len(kinds) > 1:
        return _stand_ins(), "", ("GPUs of different kinds: planned without their memory",)
    try:
        match = find_gpu(kinds[0])
    except (UnknownNameError, InvalidInputError):
        return _stand_ins(), "", (f"GPU {kinds[0][:60]!r} is not in the catalogue",)
    if isinstance(total, (int, float)) and total > 0:
        return (_with_total(match.spec, total),), match.spec.id, ()
    alike = _memory_variants(match.spec, match.candidates)
    if len(alike) == 1:
        return (match.spec,), match.spec.id, ()
    held = _held_gib(report)
    share = report.settings.get("gpu_memory_utilization")
    share = share if isinstance(share, float) else 0.92
    if held:
        fitting = [g for g in alike if g.usable_memory().best_bytes * share >= held * GIB * 0.99]
        if fitting:
            said = f"{kinds[0]}: the smallest that holds the reported weights and KV cache"
            return (fitting[0],), fitting[0].id, (said,)
    return tuple(alike), "", (f"GPU {kinds[0]} comes with different memories",)


def _memory_variants(spec: GpuSpec, candidates: tuple[str, ...]) -> list[GpuSpec]:
    """The card and those that its name may also mean, one for each memory size, smallest first."""
    found = [spec]
    for name in candidates:
        other = find_gpu(name).spec
        size = other.usable_memory().best_bytes
        if all(abs(size / g.usable_memory().best_bytes - 1) > _SAME_MEMORY for g in found):
            found.append(other)
    return sorted(found, key=lambda gpu: gpu.usable_memory().best_bytes)


def _held_gib(report: FieldReport) -> float:
    weights, kv = report.observed.get("weights_gib"), report.observed.get("kv_cache_gib")
    return weights + kv if weights and kv and kv > 0 else 0.0


@cache
def _stand_ins() -> tuple[GpuSpec, ...]:
    return tuple(find_gpu(name).spec for name in _STAND_INS)


def _with_total(gpu: GpuSpec, total_gib: float) -> GpuSpec:
    """The card with the memory that the report says the driver handed out."""
    best = int(total_gib * GIB)
    half = int(_HALF_UNIT_GIB * GIB)
    reading = MemoryReading(
        best_bytes=best,
        low_bytes=max(1, best - half),
        high_bytes=best + half,
        basis="observed",
        source="the report",
    )
    return replace(gpu, torch_total=reading, memory_rule=None, driver_total_bytes=None)


# --- settings -------------------------------------------------------------------------------------


def _requests(
    report: FieldReport, engine: str, versions: tuple[str, ...]
) -> tuple[tuple[Request, ...], str]:
    """A request for each version that is planned, and the flags that are not."""
    from moesize.engines import engine_profile

    made = []
    left: dict[str, None] = {}
    for version in versions:
        try:
            engine_profile(engine, version)
        except UnsupportedError:
            continue
        words = (
            _llamacpp_words(report) if engine in _GGUF_ENGINES else _serving_words(report, engine)
        )
        request = Request(engine=engine, engine_version=version, num_gpus=_num_gpus(report, engine))
        request, unplanned = read_flags(request, words)
        left.update(dict.fromkeys(unplanned))
        made.append(_with_mtp(_with_fork_settings(request, report), report))
    text = f"flag not planned: {', '.join(left)[:120]}" if left else ""
    if any(flag.partition(" ")[0] not in _BESIDE_WEIGHTS_AND_CACHES for flag in left):
        raise _NotCoveredError(text)
    return tuple(made), text


def _with_fork_settings(request: Request, report: FieldReport) -> Request:
    """ik_llama.cpp's own flags, which llama-server does not have."""
    flags = report.settings.get("flags") or {}
    settings: Any = request.engine_settings
    if request.engine != "ik_llama.cpp" or not hasattr(settings, "mla"):
        return request

    def number(*names: str) -> int | None:
        found = (str(flags.get(name, "")) for name in names)
        return next((int(text) for text in found if text.isdigit() and len(text) < 9), None)

    made = replace(
        settings,
        mla=number("mla_attn", "mla"),
        amb=number("attn_max_batch_mib", "amb"),
        rtr=True if flags.get("rtr") is True or _rows_for_the_cpu(report) else None,
    )
    return replace(request, engine_settings=made)


def _with_mtp(request: Request, report: FieldReport) -> Request:
    """llama.cpp's --spec-type draft-mtp: the model's own MTP blocks guess."""
    flags = report.settings.get("flags") or {}
    if request.engine not in _GGUF_ENGINES or flags.get("spec_type") != "draft-mtp":
        return request
    guessed = flags.get("n_rs_seq")
    return replace(request, mtp=True, num_spec_tokens=guessed if isinstance(guessed, int) else None)


def _rows_for_the_cpu(report: FieldReport) -> bool:
    """Whether rows of the file are interleaved, in a type that no GPU computed with at that time.

    ikawrakow/ik_llama.cpp pull request 461 (end of May 2025) brought the first CUDA kernels.
    """
    if not "" < report.text("date") < "2025-05-28":
        return False
    counts = report.settings.get("tensor_type_counts")
    names = [report.text("gguf_type"), report.text("gguf_file"), *(counts or ())]
    return any(_INTERLEAVED.search(name) for name in names)


def read_flags(request: Request, words: list[str]) -> tuple[Request, tuple[str, ...]]:
    """The engine's own flags, as they were typed, put into a request.

    Returns the flags too that may change memory and are not planned.
    """
    from moesize.engine_args import apply_engine_arguments

    made, notes = apply_engine_arguments(request, words)
    unplanned = [
        flag
        for note in notes
        if "may change memory" in note.message
        for flag in note.message.partition("memory: ")[2].split(", ")
    ]
    return made, tuple(unplanned)


def _num_gpus(report: FieldReport, engine: str) -> int:
    if engine in _GGUF_ENGINES:
        return max(1, len(_devices(report)))
    tp, pp, dp = (_size(report, name) for name in ("tp", "pp", "dp"))
    inside = engine == "sglang" and _switched_on(report, "enable_dp_attention")
    return tp * pp * (1 if inside else dp)


def _size(report: FieldReport, name: str) -> int:
    value = report.number(name)
    if value is None:
        if name == "tp" and (report.number("gpu_count") or 1) > 1 and not report.number("pp"):
            raise _NotCoveredError("layout not stated: several GPUs, but no tensor parallel size")
        return 1
    if not 1 <= value <= 4096:
        raise _NotCoveredError(f"setting not planned: {name} is {value}")
    return value


def _serving_words(report: FieldReport, engine: str) -> list[str]:
    """The report's settings as flags of vLLM or SGLang."""
    name = _SERVING_FLAGS[engine] if engine in _SERVING_FLAGS else _SERVING_FLAGS["vllm"]
    words: list[str] = []
    for field in ("tp", "pp", "dp"):
        size = _size(report, field)
        if size > 1:
            words += [name[field], str(size)]
    parallel = report.settings.get("ep")
    ranks = _size(report, "tp") * (1 if engine == "sglang" else _size(report, "dp"))
    if parallel is True:
        words.append("--enable-expert-parallel")
    elif parallel not in (None, False, 0, 1):
        if engine == "vllm" and parallel != ranks:
            raise _NotCoveredError(
                f"setting not planned: expert parallel over {parallel} of {ranks} ranks"
            )
        words += ["--enable-expert-parallel"] if engine == "vllm" else [name["ep"], str(parallel)]
    for field in ("max_num_seqs", "max_num_batched_tokens", "max_model_len"):
        value = report.number(field)
        if value is not None and (value > 0 or (engine == "sglang" and value == -1)):
            words += [name[field], str(value)]
    if report.number("max_model_len") is None:
        at = report.observed.get("max_concurrency_at_tokens")
        if at:
            words += [name["max_model_len"], str(at)]
    share = _utilization(report)
    if share is not None:
        words += [name["gpu_memory_utilization"], f"{share:g}"]
    kv_dtype = report.text("kv_cache_dtype")
    if kv_dtype and kv_dtype.lower() != "auto":
        words += ["--kv-cache-dtype", kv_dtype]
    block = report.number("block_size")
    if block is not None and (engine == "sglang" or block in GIVEN_BLOCKS):
        words += [name["block_size"], str(block)]
    if report.settings.get("enforce_eager"):
        words.append(name["enforce_eager"])
    return words + _other_words(report)


_SERVING_FLAGS = {
    "vllm": {
        "tp": "--tensor-parallel-size",
        "pp": "--pipeline-parallel-size",
        "dp": "--data-parallel-size",
        "ep": "--enable-expert-parallel",
        "max_num_seqs": "--max-num-seqs",
        "max_num_batched_tokens": "--max-num-batched-tokens",
        "max_model_len": "--max-model-len",
        "gpu_memory_utilization": "--gpu-memory-utilization",
        "block_size": "--block-size",
        "enforce_eager": "--enforce-eager",
    },
    "sglang": {
        "tp": "--tp-size",
        "pp": "--pp-size",
        "dp": "--dp-size",
        "ep": "--ep-size",
        "max_num_seqs": "--max-running-requests",
        "max_num_batched_tokens": "--chunked-prefill-size",
        "max_model_len": "--context-length",
        "gpu_memory_utilization": "--mem-fraction-static",
        "block_size": "--page-size",
        "enforce_eager": "--disable-cuda-graph",
    },
}


def _utilization(report: FieldReport) -> float | None:
    """`default` is the engine's own; "default (0.9)" is what the source says it was."""
    value = report.settings.get("gpu_memory_utilization")
    if isinstance(value, (int, float)):
        return float(value)
    text = report.text("gpu_memory_utilization")
    inside = text.partition("(")[2].rstrip(") ")
    try:
        return float(inside) if inside else None
    except ValueError:
        return None


def _other_words(report: FieldReport) -> list[str]:
    """`name=value` of a log as flags; NAME=value stands for an environment variable."""
    words: list[str] = []
    for item in report.settings.get("other_flags") or ():
        name, equals, value = item.partition("=")
        name = name.strip()
        if name in _CUT_OFF:
            continue
        if not equals:
            raise _NotCoveredError(f"flag not planned: {item[:60]}")
        if name in _PASSED_OVER:
            continue
        if name.isupper():
            words.insert(0, f"{name}={value}")
            continue
        flag = "--" + name.replace("_", "-")
        if value == "True":
            words.append(flag)
        elif value == "False":
            words.append("--no-" + flag[2:])
        elif value not in ("None", "null", ""):
            words += [flag, _as_json(value)]
    return words


def _as_json(value: str) -> str:
    """A dictionary as Python prints it, as JSON, which is how it is typed."""
    if not (value.startswith("{") and "'" in value and '"' not in value):
        return value
    return value.replace("'", '"').replace("True", "true").replace("False", "false")


def _switched_on(report: FieldReport, name: str) -> bool:
    return f"{name}=True" in (report.settings.get("other_flags") or ())


# --- llama.cpp ------------------------------------------------------------------------------------


def _devices(report: FieldReport) -> list[str]:
    """Names of the accelerators that hold something: CUDA0, CUDA1, Metal, Vulkan0, ..."""
    found: dict[str, None] = {}
    for name in ("model_buffer_mib", "kv_buffer_mib", "compute_buffer_mib", "rs_buffer_mib"):
        for device in report.observed.get(name) or ():
            if is_accelerator(device) and not device.endswith("_Split"):
                found[device] = None
    return list(found)


def is_accelerator(device: str) -> bool:
    """Whether llama.cpp's name of a buffer is one of an accelerator, not of the host."""
    return device not in ("CPU", "AMX", "BLAS") and not device.endswith(("_Host", "_Mapped"))


def is_mapped(report: FieldReport) -> bool:
    """Whether host and devices both hold weights and the host's figure is of a mapped file.

    Then the log gives the range from the first to the last tensor on the host, with what lies on
    devices between them, or weights that were copied into another form as well (llama.cpp
    src/llama-model-loader.cpp:get_mapping_range).
    """
    sizes = report.observed.get("model_buffer_mib") or {}
    flags = report.settings.get("flags") or {}
    if not any(is_accelerator(name) for name in sizes) and "AMX" not in sizes:
        return False
    if any(name.endswith("_Mapped") for name in sizes):
        return True
    # Pinned host memory takes the place of the mapping, as does repacking while loading.
    read = any(name.endswith("_Host") for name in sizes) or flags.get("no-mmap") or flags.get("rtr")
    return "CPU" in sizes and not read


def moves_tensors(report: FieldReport) -> bool:
    """Whether tensors were placed by hand."""
    flags = report.settings.get("flags") or {}
    return any(flags.get(n) for n in ("override_tensor", "n_cpu_moe", "n_tensors_overridden"))


def _weights_moved(report: FieldReport) -> str:
    flags = report.settings.get("flags") or {}
    if flags.get("n_tensors_overridden") and not (
        flags.get("override_tensor") or flags.get("n_cpu_moe")
    ):
        return "tensors were moved by hand, and the report does not say which"
    return ""


def _devices_problem(report: FieldReport) -> str:
    if any(name.endswith("_Split") for name in report.observed.get("model_buffer_mib") or ()):
        return "rows are split over GPUs, and the log counts them together"
    return ""


def _split_problem(report: FieldReport) -> str:
    flags = report.settings.get("flags") or {}
    devices = _devices(report)
    # Equal cards have unequal free memory: a screen, or another program.
    free = report.settings.get("gpu_free_mib") or {}
    if report.engine in _FORKS:
        free = {}  # ik_llama.cpp of 2026 shares layers out in a way of its own
    if len(devices) > 1 and not flags.get("tensor_split") and not set(devices) <= set(free):
        return "the model is shared out by free memory, which is not stated for each GPU"
    return ""


def _context_problem(report: FieldReport) -> str:
    return "" if report.number("n_ctx") else "the report does not state it"


def _graph_problem(report: FieldReport, model: Resolved) -> str:
    buffers = report.observed.get("compute_buffer_mib") or {}
    if any(name.startswith(_OTHER_KERNELS) for name in buffers):
        return "what Vulkan and SYCL lack is computed on the host"
    if report.engine not in _FORKS or model.spec is None:
        return ""
    flags = report.settings.get("flags") or {}
    mode = str(flags.get("mla_attn", ""))
    if is_latent(model.spec) and mode == "0":
        return "with -mla 0 keys and values are made in another way"
    early = "" < report.text("date") < _DECOMPRESSED_SINCE
    if is_latent(model.spec) and mode in ("2", "3") and early and _flash_stated(report):
        return "-mla 2 of before 13 March 2025 (pull request 253) made other temporaries"
    if flags.get("rtr") is True and model.weights_problem and report.text("date") > "2025-05-28":
        return "whether a GPU computes with repacked rows depends on their type"
    return ""


def _host_graph_problem(report: FieldReport) -> str:
    done, slash, all_layers = report.text("offloaded_layers").partition("/")
    if report.engine in _FORKS and slash and done != all_layers:
        return f"what {report.engine} computes on the host of the layers there is not known"
    return ""


def _flash_stated(report: FieldReport) -> bool:
    return str(report.settings.get("flash_attn", "")).lower() in ("1", "on", "true", "enabled")


def _sequences_problem(report: FieldReport) -> str:
    if report.engine not in _FORKS:
        return ""
    # One by one in ik_llama.cpp: its server adds a sequence for a system prompt, llama-bench and
    # llama-cli do not, and llama-perplexity takes as many as a batch holds chunks of 512 tokens.
    return "the log does not say which program ran; each keeps another number"


def _llamacpp_words(report: FieldReport) -> list[str]:
    """The report's settings as flags of llama-server."""
    words: list[str] = []
    for field, flag in (
        ("n_ctx", "--ctx-size"),
        ("n_batch", "--batch-size"),
        ("n_ubatch", "--ubatch-size"),
        ("n_parallel", "--parallel"),
    ):
        value = report.number(field)
        if value is not None and value > 0:
            words += [flag, str(value)]
    for field, flag in (("type_k", "--cache-type-k"), ("type_v", "--cache-type-v")):
        kind = report.text(field)
        if field == "type_v" and "MLA" in kind:
            kind = report.text("type_k")  # the keys hold everything; no V is kept
        if kind and "(" not in kind:
            words += [flag, kind]
    attention = str(report.settings.get("flash_attn", "")).lower()
    if _flash_stated(report):
        words += ["--flash-attn", "on"]
    elif attention in ("0", "off", "false", "disabled"):
        words += ["--flash-attn", "off"]
    layers = report.settings.get("n_gpu_layers")
    offloaded, _, most = report.text("offloaded_layers").partition("/")
    if offloaded.isdigit() and most.isdigit() and int(offloaded) < int(most):
        # What the engine did, where it did less than it was asked for (a build without GPU code).
        layers = None
    if layers is not None:
        words += ["--n-gpu-layers", str(layers)]
    elif offloaded.isdigit():
        words += ["--n-gpu-layers", offloaded]
    elif not _devices(report):
        words += ["--n-gpu-layers", "0"]
    used = layers if layers is not None else offloaded
    if not _devices(report) and str(used) in ("", "0"):
        words.append("--no-op-offload")  # no GPU is in the log: a build or a machine without one
    return words + _llamacpp_flags(report.settings.get("flags") or {})


# Remarks of a report and switches of ik_llama.cpp that move no cache and no weights.
_SILENT_FLAGS = frozenset(
    (
        "amb", "attn_max_batch_mib", "binding", "fmoe", "kv_unified", "mla", "mla_attn",
        "n_cpu_moe", "n_rs_seq", "n_tensors_overridden", "nkvo", "no-mmap", "override_tensor",
        "rtr", "spec_type", "sweep", "tensor_split", "fit", "fit-target",
    )
)  # fmt: skip


def _llamacpp_flags(flags: dict[str, Any]) -> list[str]:
    unknown = sorted(set(flags) - _SILENT_FLAGS)
    if unknown:
        raise _NotCoveredError(f"flag not planned: {', '.join(unknown)[:100]}")
    words: list[str] = []
    if flags.get("spec_type") and flags["spec_type"] != "draft-mtp":
        words += ["--spec-type", str(flags["spec_type"])]
        if flags.get("n_rs_seq"):  # states kept to go back to, one for each guessed token
            words += ["--spec-draft-n-max", str(flags["n_rs_seq"])]
    for name in ("fit", "fit-target"):
        if flags.get(name) is not None:
            words += [f"--{name}", str(flags[name])]
    overrides = flags.get("override_tensor") or []
    if not isinstance(overrides, (str, list)):
        raise _NotCoveredError("setting not planned: override_tensor is no pattern")
    patterns = [overrides] if isinstance(overrides, str) else overrides
    if patterns:  # one flag for all: of repeated ones the last may count alone
        words += ["--override-tensor", ",".join(str(p).strip('"') for p in patterns)]
    if flags.get("n_cpu_moe"):
        words += ["--n-cpu-moe", str(flags["n_cpu_moe"])]
    if flags.get("tensor_split"):
        words += ["--tensor-split", str(flags["tensor_split"]).rstrip("`. ")]
    unified = str(flags.get("kv_unified", "")).partition(" ")[0].lower()
    if unified in ("true", "1"):
        words.append("--kv-unified")
    elif unified in ("false", "0"):
        words.append("--no-kv-unified")
    if flags.get("nkvo") is True:
        words.append("--no-kv-offload")
    if flags.get("no-mmap") is True:
        words.append("--no-mmap")
    return words
