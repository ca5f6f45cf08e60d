"""What was asked of SGLang, with every default in its place.

Layout, kernels, pages, the static fraction and the pools' settings, in the order in which the
engine resolves them (0.5.23 `srt/arg_groups`; before 0.5.20 `srt/server_args.py:__post_init__`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moesize.core.attention import GroupedQueryAttention, LatentAttention
from moesize.core.deployment import Layout, Request
from moesize.core.engine import Constants
from moesize.core.errors import (
    InvalidDeploymentError,
    InvalidInputError,
    UnknownNameError,
    UnsupportedError,
)
from moesize.core.inventory import moe_of
from moesize.core.plan import Note
from moesize.core.records import dataclass
from moesize.core.recurrent import ShortConv
from moesize.core.sglang_budget import (
    CapacityDefaults,
    ReserveSettings,
    capacity_defaults,
    memory_fraction,
)
from moesize.core.sglang_pool import (
    FP4_KV,
    KV_ELEMENT_BYTES,
    CellOptions,
    PoolOptions,
    PoolRules,
    is_windowed,
)
from moesize.core.sglang_settings import SglangSettings
from moesize.core.sglang_weights import (
    WeightRanks,
)
from moesize.core.units import MIB, ceil_div
from moesize.core.vllm_weights import valid_tensor_parallel_sizes

if TYPE_CHECKING:
    from moesize.core.gpu import GpuSpec
    from moesize.core.mixers import Mixer
    from moesize.core.model_spec import ModelSpec
_KV_ALIASES = {"bf16": "bfloat16", "fp16": "float16", "fp8": "fp8_e4m3", "fp4": "fp4_e2m1"}
_REPLICATING_A2A = ("deepep", "mooncake", "pplx", "nixl", "mori", "ascend_fuseep", "flashinfer")
# Pages that a backend insists on (srt/arg_groups/overrides.py); the first is what others become.
_BACKEND_PAGES = {
    "flashmla": (64,),
    "trtllm_mla": (64, 32),
    "cutedsl_mla": (64, 32),
    "trtllm_mha": (64, 16, 32, 128),
    "cutlass_mla": (128,),
    "hpc_ops": (64,),
    "dsa": (64,),
    "nsa": (64,),
    "ascend": (128,),
}
_FA4_PAGE = 128
# Algorithms that need no draft model, and the requests that speculation allows unless told
# otherwise (srt/arg_groups/speculative_hook.py).
_DRAFT_FREE = ("NGRAM",)
_SPECULATIVE_RUNNING = 48
# Vision configs that do not name layers and width as the heuristic reads them; it takes 24 and 1024
# instead (adjust_mem_fraction_for_vlm: num_hidden_layers, hidden_size).
_UNREAD_DEPTH = ("qwen", "glm", "minimax", "paddle", "ernie")
_UNREAD_VISION = ("kimi",)
_DEFAULT_VISION_LAYERS, _DEFAULT_VISION_SIZE = 24, 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SglangProfile:
    """What is known about one SGLang version; `rules_of` makes it from the data files."""

    version: str
    constants: Constants
    facts: Mapping[str, Any]
    pool_rules: PoolRules


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A request with every default in its place.

    replicas            servers that --dp-size makes; attention_dp: groups of attention in one
    per_rank_sequences  planned sequences of one attention group
    fraction            mem_fraction_static, given or by formula
    draft_layers        layers whose cache the draft keeps
    """

    layout: Layout
    replicas: int
    attention_dp: int
    weight_ranks: WeightRanks
    context: int
    concurrency: int
    per_rank_sequences: int
    kv_dtype: str
    backend: str
    page: int
    fraction: float
    fraction_given: bool
    capacity: CapacityDefaults
    reserve: ReserveSettings
    cell_options: CellOptions
    pool_options: PoolOptions
    algorithm: str
    draft_layers: int
    settings: SglangSettings
    notes: tuple[Note, ...]

    @property
    def attention_ranks(self) -> int:
        return self.layout.tensor_parallel_size // self.attention_dp


def resolve(spec: ModelSpec, gpu: GpuSpec, request: Request, profile: SglangProfile) -> Resolved:
    """Settings of the server. Raises InvalidDeploymentError, UnknownNameError, UnsupportedError."""
    settings = _settings(request)
    facts = profile.facts
    notes: list[Note] = []
    latent = any(isinstance(mixer, LatentAttention) for mixer in _mixers(spec))
    sparse = any(_is_sparse(mixer) for mixer in _mixers(spec))
    layout, replicas, attention_dp = _layout(spec, request, facts, sparse, notes)
    ranks = _weight_ranks(spec, request, settings, layout, attention_dp, facts, latent=latent)
    major = _capability_major(gpu)
    algorithm, draft_layers = _speculation(spec, request, settings, notes)
    topk = settings.speculative_eagle_topk or 1
    rocm = gpu.vendor.lower() == "amd"
    hybrid = any(mixer.state() for mixer in _mixers(spec))
    backend = settings.attention_backend or _default_backend(
        spec, facts, major, latent=latent, sparse=sparse, branching=topk > 1, rocm=rocm
    )
    strategy = _state_strategy(spec, settings, facts) if hybrid else ""
    if hybrid and not settings.attention_backend and backend == "trtllm_mha":
        # Pages need more than one token per state only with the extra buffer.
        caches = not settings.disable_radix_cache
        if strategy != "extra_buffer" and caches and not algorithm:
            backend = "triton"
    page = _page(backend, request.block_tokens, latent=latent, major=major, notes=notes)
    kv_dtype = _kv_dtype(spec, request, facts, major, sparse=sparse)
    context = _context(spec, request)
    spec_tokens = _verified_tokens(request, settings, algorithm)
    running = request.max_num_seqs
    if algorithm and running is None:
        running = _SPECULATIVE_RUNNING
    reserve = ReserveSettings(
        driver_mib=_driver_mib(gpu),
        tensor_parallel_size=layout.tensor_parallel_size,
        pipeline_parallel_size=layout.pipeline_parallel_size,
        attention_data_parallel_size=attention_dp,
        chunked_prefill_size=request.max_num_batched_tokens,
        max_prefill_tokens=settings.max_prefill_tokens or 16384,
        graph_max_sequences=settings.cuda_graph_max_bs,
        decode_graphs=not request.enforce_eager,
        max_running=request.max_num_seqs,
        speculation=algorithm,
        num_draft_tokens=spec_tokens or 1,
        latent=latent,
        prefill_graphs=_prefill_graphs(
            spec, gpu, request, settings, facts, layout, attention_dp, algorithm, latent=latent
        ),
        deepep=settings.moe_a2a_backend == "deepep",
        vision_size=0 if settings.language_only else _vision_size(spec, facts),
        disaggregation=_disaggregation(settings),
    )
    capacity = capacity_defaults(reserve, facts)
    fraction = request.gpu_memory_utilization or memory_fraction(reserve, facts)
    if facts["vision_factor"] == "always" and reserve.vision_size:
        fraction *= 0.9
    hybrid_windows = (
        spec.model_type in facts["hybrid_window_types"]
        and not settings.disable_hybrid_swa_memory
        and any(is_windowed(mixer) for mixer in _mixers(spec))
    )
    concurrency = request.concurrency or 1
    caches_prefixes = not settings.disable_radix_cache
    slots = 1
    if hybrid and caches_prefixes:
        slots = facts["state_slots_per_request"]
        if strategy.startswith("extra_buffer") and facts["state_slots_per_request"] > 1:
            one = strategy == "extra_buffer_lazy" or settings.disable_overlap_schedule
            slots += 1 if one else 2
    per_rank_running = None if running is None else max(1, running // attention_dp)
    state_slots = settings.max_mamba_cache_size
    if state_slots is not None:
        state_slots = max(1, state_slots // attention_dp)
    elif hybrid and (not caches_prefixes or facts["state_slots_per_request"] == 1):
        state_slots = per_rank_running or facts["state_slots_without_caching"]
    windows = [_window(mixer) for mixer in _mixers(spec) if is_windowed(mixer)]
    headroom = 0
    if algorithm and algorithm not in _DRAFT_FREE and facts["speculation_headroom"]:
        steps = settings.speculative_num_steps or max(1, spec_tokens - 1)
        headroom = steps * topk + spec_tokens
    return Resolved(
        layout=layout,
        replicas=replicas,
        attention_dp=attention_dp,
        weight_ranks=ranks,
        context=context,
        concurrency=concurrency,
        per_rank_sequences=ceil_div(concurrency, attention_dp * replicas),
        kv_dtype=kv_dtype,
        backend=backend,
        page=page,
        fraction=fraction,
        fraction_given=request.gpu_memory_utilization is not None,
        capacity=capacity,
        reserve=reserve,
        cell_options=CellOptions(
            ranks=layout.tensor_parallel_size // attention_dp,
            kv_dtype=kv_dtype,
            hybrid_windows=hybrid_windows,
            state_dtype=settings.mamba_ssm_dtype or "",
            # Blackwell's TRT-LLM kernels read the plain layout.
            sparse_fp8_packed=profile.pool_rules.packed_sparse and major < 10,
        ),
        pool_options=PoolOptions(
            context_tokens=context,
            page_tokens=page,
            window_tokens=max(windows, default=0) if hybrid_windows else 0,
            window_ratio=settings.swa_full_tokens_ratio or 0.8,
            state_ratio=settings.mamba_full_memory_ratio or 0.9,
            max_total_tokens=settings.max_total_tokens,
            max_running=per_rank_running,
            num_spec_tokens=spec_tokens,
            slots_per_request=slots,
            state_slots=state_slots,
            prefix_caching=caches_prefixes,
            chunked_prefill_tokens=capacity.chunked_prefill_size // attention_dp,
            spec_headroom=headroom,
        ),
        algorithm=algorithm,
        draft_layers=draft_layers,
        settings=settings,
        notes=tuple(notes),
    )


def _settings(request: Request) -> SglangSettings:
    found = request.engine_settings or SglangSettings()
    if not isinstance(found, SglangSettings):
        raise InvalidInputError(f"engine_settings of SGLang is a {type(found).__name__}")
    return found


def _mixers(spec: ModelSpec) -> list[Mixer]:
    return [mixer for block in spec.blocks for mixer in block.mixers]


def _is_sparse(mixer: Mixer) -> bool:
    return isinstance(mixer, LatentAttention) and (mixer.indexer is not None or mixer.index_shared)


def _window(mixer: Mixer) -> int:
    assert isinstance(mixer, GroupedQueryAttention)
    return mixer.window or mixer.chunk or 0


def _layout(
    spec: ModelSpec,
    request: Request,
    facts: Mapping[str, Any],
    sparse: bool,
    notes: list[Note],
) -> tuple[Layout, int, int]:
    """(layout of one replica, replicas, data-parallel ranks of attention).

    Without --enable-dp-attention, --dp-size makes replicas of --tp-size ranks each; with it, it
    divides the attention of one.
    """
    d = request.data_parallel_size or 1
    attention = bool(request.data_parallel_attention)
    if sparse and facts["sparse_forces_dp_attention"] and request.data_parallel_attention is None:
        attention, d = True, 0
        notes.append(
            Note(
                code="dp-attention",
                message="this version runs sparse attention data-parallel over all ranks",
            )
        )
    replicas = 1 if attention else d
    n, t, p = request.num_gpus, request.tensor_parallel_size, request.pipeline_parallel_size
    if n % replicas:
        raise InvalidDeploymentError(
            f"--dp {d} replicas do not divide {n} GPUs", f"use --gpus {d * (t or 1) * (p or 1)}"
        )
    each = n // replicas
    note = ""
    if t is None and p is None:
        t, p, note = _all_tensor_parallel(spec, each)
    else:
        t = t or max(1, each // (p or 1))
        p = p or max(1, each // t)
    if t * p != each:
        raise InvalidDeploymentError(
            f"--tp {t} x --pp {p} uses {t * p} GPUs, but there are {each}",
            f"use --gpus {t * p * replicas}, or sizes that multiply to {each}",
        )
    if note:
        notes.append(Note(code="layout", message=note))
    attention_dp = 1
    if attention:
        attention_dp = d or t
        if attention_dp == 1 and t > 1:
            if facts["dp_attention_of_one"] == "refused":
                raise InvalidDeploymentError(
                    "SGLang refuses --enable-dp-attention with a data-parallel size of 1",
                    f"add --dp {t}, or a divisor of it",
                )
            message = (
                "SGLang switches data-parallel attention off while --dp is 1; "
                f"--dp {t} gives every rank sequences of its own"
            )
            notes.append(Note(code="dp-attention", message=message))
        if t % attention_dp:
            raise InvalidDeploymentError(
                f"SGLang refuses --dp {attention_dp} for attention: it does not divide --tp {t}",
                "use a --dp that divides it",
            )
    layout = Layout(
        tensor_parallel_size=t,
        pipeline_parallel_size=p,
        expert_parallel=bool(request.expert_parallel),
        note=note,
    )
    return layout, replicas, attention_dp


def _all_tensor_parallel(spec: ModelSpec, each: int) -> tuple[int, int, str]:
    valid = valid_tensor_parallel_sizes(spec)
    if each in valid:
        return each, 1, f"all {each} GPUs are used as tensor parallel" if each > 1 else ""
    sizes = [size for size in valid if each % size == 0]
    if not sizes:
        raise InvalidDeploymentError(
            f"{each} GPUs cannot be shared out: no tensor parallel size of {spec.title} divides it",
            f"sizes that work: {', '.join(map(str, valid)) or 'none'}",
        )
    t = max(sizes)
    note = f"{each} does not divide {spec.title}; used as tensor parallel {t} x {each // t} "
    return t, each // t, note + "pipeline stages"


def _weight_ranks(
    spec: ModelSpec,
    request: Request,
    settings: SglangSettings,
    layout: Layout,
    attention_dp: int,
    facts: Mapping[str, Any],
    *,
    latent: bool,
) -> WeightRanks:
    t = layout.tensor_parallel_size
    replicates = settings.moe_a2a_backend in _REPLICATING_A2A
    ep = settings.ep_size or (t if layout.expert_parallel else 1)
    if replicates:
        ep = t
    if t % ep:
        raise InvalidDeploymentError(
            f"SGLang refuses --ep-size {ep}: it does not divide --tp {t}", "use a divisor of it"
        )
    redundant = request.num_redundant_experts or 0
    for block in spec.blocks:
        moe = moe_of(block)
        if moe is not None and (moe.num_experts + redundant) % ep:
            raise InvalidDeploymentError(
                f"{moe.num_experts + redundant} experts do not divide over --ep-size {ep}",
                "add redundant experts, or choose another size",
            )
    attention = t // attention_dp
    if settings.moe_dense_tp_size not in (None, 1):
        raise InvalidDeploymentError("SGLang takes --moe-dense-tp-size 1 only")
    embedding = t
    if attention_dp > 1:
        splits = facts["dp_embedding_split"]
        embedding = attention if splits == "all" or (splits == "latent" and latent) else 1
    head = attention if attention_dp > 1 and settings.enable_dp_lm_head else t
    if spec.embedding.tied:
        head = embedding
    return WeightRanks(
        attention=attention,
        dense=1 if settings.moe_dense_tp_size == 1 and attention_dp > 1 else t,
        shared_experts=1 if replicates else t,
        embedding=embedding,
        head=head,
        experts=ep,
        expert_width=t // ep,
        redundant_experts=redundant,
    )


def _speculation(
    spec: ModelSpec, request: Request, settings: SglangSettings, notes: list[Note]
) -> tuple[str, int]:
    """(algorithm in upper case or empty, layers of the draft's cache)."""
    algorithm = (settings.speculative_algorithm or "").upper()
    if not algorithm and request.draft is not None:
        algorithm = {"draft_model": "STANDALONE", "eagle3": "EAGLE3"}.get(
            request.draft.method, "EAGLE"
        )
    if not algorithm and request.mtp:
        algorithm = "EAGLE"
    if algorithm == "NEXTN":
        algorithm = "EAGLE"
    if not algorithm or algorithm in _DRAFT_FREE:
        return algorithm, 0
    if request.draft is not None:
        return algorithm, request.draft.spec.num_layers
    if spec.mtp is not None and algorithm == "EAGLE":
        return algorithm, len(spec.mtp.layers)
    if spec.mtp is None and request.mtp:
        raise InvalidDeploymentError(f"{spec.title} has no MTP blocks", "leave --mtp out")
    notes.append(
        Note(
            code="draft",
            message=f"{algorithm}: the draft model is not given, so its weights are not counted",
        )
    )
    return algorithm, 1 if algorithm.startswith("EAGLE") else 0


def _verified_tokens(request: Request, settings: SglangSettings, algorithm: str) -> int:
    """Tokens verified per step: guessed ones and one more, as a chain."""
    if not algorithm:
        return 0
    if settings.speculative_num_draft_tokens is not None:
        return settings.speculative_num_draft_tokens
    if algorithm in _DRAFT_FREE:
        return 12
    steps = settings.speculative_num_steps or request.num_spec_tokens
    # auto_choose_speculative_params: 3 steps and 4 tokens for DeepSeek and most others.
    return 4 if steps is None else steps + 1


def _capability_major(gpu: GpuSpec) -> int:
    if gpu.compute_capability is None:
        return 9 if gpu.vendor.lower() == "amd" else 8
    return int(gpu.compute_capability.partition(".")[0])


def _driver_mib(gpu: GpuSpec) -> float:
    """memory.total as nvidia-smi shows it; from what torch sees where nobody has read it."""
    if gpu.driver_total_bytes is not None:
        return gpu.driver_total_bytes // MIB
    return gpu.usable_memory().best_bytes // MIB


def _default_backend(
    spec: ModelSpec,
    facts: Mapping[str, Any],
    major: int,
    *,
    latent: bool,
    sparse: bool,
    branching: bool,
    rocm: bool,
) -> str:
    """What SGLang picks, as far as it decides pages and workspaces."""
    if sparse:
        return "dsa"
    if rocm:
        return "aiter"
    kind = spec.model_type
    if latent:
        if major == 10 and kind in facts["trtllm_mla_types"]:
            return "trtllm_mla"
        return {9: "fa3", 10: "flashinfer"}.get(major, "triton")
    if major == 9 and not branching:
        return "fa3"
    trtllm = facts["trtllm_mha"] == "all" or kind in facts["trtllm_mha"]
    if major == 10 and trtllm and not branching:
        heads = [mixer for mixer in _mixers(spec) if isinstance(mixer, GroupedQueryAttention)]
        uneven = any(mixer.v_head_dim not in (0, mixer.head_dim) for mixer in heads)
        return "fa4" if uneven else "trtllm_mha"
    sinks = any(isinstance(mixer, GroupedQueryAttention) and mixer.sinks for mixer in _mixers(spec))
    return "triton" if sinks else "flashinfer"


def _page(backend: str, asked: int | None, *, latent: bool, major: int, notes: list[Note]) -> int:
    sizes = _BACKEND_PAGES.get(backend)
    if backend == "fa4" and not latent and major == 10:
        sizes = (_FA4_PAGE,)
    if sizes is None:
        return asked or 1
    if asked in sizes:
        return asked or sizes[0]
    if asked is not None:
        notes.append(
            Note(
                code="page-size",
                message=f"SGLang changes pages of {asked} tokens to {sizes[0]} for {backend}",
            )
        )
    return sizes[0]


def _state_strategy(spec: ModelSpec, settings: SglangSettings, facts: Mapping[str, Any]) -> str:
    """How prefix caching keeps recurrent states: extra_buffer, extra_buffer_lazy or no_buffer."""
    asked = settings.mamba_radix_cache_strategy or "auto"
    if asked != "auto":
        return asked
    kinds = {mixer.kind for mixer in _mixers(spec) if mixer.state()}
    if settings.disable_overlap_schedule or any(isinstance(m, ShortConv) for m in _mixers(spec)):
        return "no_buffer"
    return "extra_buffer" if kinds <= set(facts["extra_buffer_kinds"]) else "no_buffer"


def _kv_dtype(
    spec: ModelSpec, request: Request, facts: Mapping[str, Any], major: int, *, sparse: bool
) -> str:
    asked = (request.kv_dtype or "auto").lower()
    name = _KV_ALIASES.get(asked, asked)
    own = "bfloat16" if spec.dtype == "float32" else spec.dtype
    if name == "auto":
        if sparse:
            return "fp8_e4m3" if major >= 10 else "bfloat16"
        quantized = spec.quantization.kv_dtype if spec.quantization is not None else ""
        # Only ModelOpt's checkpoints set it by themselves (srt/mem_cache/kv_cache_dtype.py).
        method = spec.quantization.method if spec.quantization is not None else ""
        if quantized.startswith("fp8") and method.startswith("modelopt"):
            return "fp8_e4m3"
        return own
    choices = tuple(facts["kv_dtypes"])
    if name not in choices and name != own:
        raise UnknownNameError("KV-cache dtype of SGLang", request.kv_dtype or "", choices)
    if name not in KV_ELEMENT_BYTES and name not in FP4_KV:
        raise UnsupportedError(f"a KV cache in {name} is not modelled for SGLang", "use auto")
    if sparse and name not in ("bfloat16", "fp8_e4m3"):
        raise InvalidDeploymentError(
            f"SGLang refuses a KV cache in {name} for sparse attention", "use bfloat16 or fp8"
        )
    return name


def _context(spec: ModelSpec, request: Request) -> int:
    context = request.context_tokens or spec.max_context
    if context > spec.max_context:
        raise InvalidDeploymentError(
            f"context {context:,} is longer than the {spec.max_context:,} tokens of {spec.title}",
            f"use --context {spec.max_context} or less",
        )
    return context


def _disaggregation(settings: SglangSettings) -> Any:
    mode = settings.disaggregation_mode or ""
    if mode in ("null", "none"):
        return ""
    if mode not in ("", "prefill", "decode"):
        raise InvalidDeploymentError(f"disaggregation mode {mode[:40]!r}", "prefill or decode")
    return mode


def is_multimodal(spec: ModelSpec, facts: Mapping[str, Any]) -> bool:
    """Whether the engine treats a model as multimodal by default."""
    return bool(spec.towers) and spec.model_type not in facts["multimodal_off_types"]


def _vision_size(spec: ModelSpec, facts: Mapping[str, Any]) -> int:
    """Layers x hidden size squared of the vision tower as the heuristic reads its config."""
    if not is_multimodal(spec, facts):
        return 0
    tower = next((tower for tower in spec.towers if tower.kind == "vision"), None)
    if tower is None:
        return 0
    layers, size = tower.num_layers, tower.hidden_size
    if spec.model_type.startswith(_UNREAD_DEPTH + _UNREAD_VISION) or not layers:
        layers = _DEFAULT_VISION_LAYERS
    if spec.model_type.startswith(_UNREAD_VISION) or not size:
        size = _DEFAULT_VISION_SIZE
    return layers * size**2


def _prefill_graphs(
    spec: ModelSpec,
    gpu: GpuSpec,
    request: Request,
    settings: SglangSettings,
    facts: Mapping[str, Any],
    layout: Layout,
    attention_dp: int,
    algorithm: str,
    *,
    latent: bool,
) -> bool:
    """Whether prefill runs in CUDA graphs by default; each release has other exceptions."""
    rule = facts["prefill_graphs"]
    if not rule["default"] or request.enforce_eager or settings.disable_prefill_cuda_graph:
        return False
    if gpu.vendor.lower() != "nvidia" or (layout.pipeline_parallel_size > 1 and rule["not_pp"]):
        return False
    multimodal = is_multimodal(spec, facts) and spec.model_type not in rule["multimodal_types"]
    kimi = any(mixer.kind == "kimi_delta" for mixer in _mixers(spec))
    a2a = settings.moe_a2a_backend not in (None, "none", *rule["a2a_backends"])
    excluded = (
        (multimodal, True),
        (a2a, True),
        (latent, rule["not_latent"]),
        (attention_dp > 1, rule["not_dp_attention"]),
        (bool(algorithm), rule["not_speculative"]),
        (kimi, rule["not_kimi_delta"]),
    )
    return not any(found and forbidden for found, forbidden in excluded)


def capability_text(gpu: GpuSpec) -> str:
    """Compute capability that kernels are chosen for; assumed where the GPU has none."""
    if gpu.compute_capability is not None:
        return gpu.compute_capability
    return "9.0" if gpu.vendor.lower() == "amd" else "8.0"
