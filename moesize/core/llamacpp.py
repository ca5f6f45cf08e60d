"""llama.cpp: from a model, its GGUF tensors, GPUs and a request to ledgers and capacity.

llama-server allocates what it is asked for and nothing else: weights, caches for the whole context
and compute buffers, all at start. It keeps no budget, so it fits when every GPU holds its part.
Sources are named by each item; "llama.cpp" without a build is 0c1e57098 (libllama 0.5.0).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from moesize.core.attention import GroupedQueryAttention, LatentAttention
from moesize.core.deployment import COMMON_FIELDS
from moesize.core.engine import Constants, EngineAnswer, EngineProfile, RankCost
from moesize.core.errors import InvalidDeploymentError, UnsupportedError
from moesize.core.feed_forward import MoeMlp
from moesize.core.gguf_view import has_undivided_kv_b
from moesize.core.ledger import GpuLedger, MemoryItem, exact_item
from moesize.core.llamacpp_compute import ComputeBuffers, ComputeSettings, compute_buffers
from moesize.core.llamacpp_estimate import estimate_buffers, growth_bytes
from moesize.core.llamacpp_kv import (
    KvPlan,
    KvRules,
    KvSettings,
    LatentCache,
    LayerBytes,
    LayerCache,
    LayerState,
    ModelCaches,
    cache_type,
    check_types,
    model_caches,
    mtp_layers,
    plan_cells,
)
from moesize.core.llamacpp_weights import (
    DENSE_PATTERN,
    EXPERTS_PATTERN,
    HOST,
    Placement,
    Split,
    place,
)
from moesize.core.plan import KvSummary, Note
from moesize.core.records import dataclass
from moesize.core.units import MIB, ceil_div, format_gib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moesize.core.checkpoint import StoredEntry
    from moesize.core.deployment import Request
    from moesize.core.gpu import GpuSpec
    from moesize.core.model_spec import ModelSpec

FlashAttention = Literal["auto", "on", "off"]
_CODE = "llama.cpp 0c1e57098 "
# Shares of the best estimate: by closed formulas, by the graph of a similar architecture, and by
# this build's graph for another build.
_ESTIMATED, _SIMILAR, _OTHER_BUILD = (0.5, 1.6), (0.75, 1.35), (0.7, 1.5)
# With layers on the host: by the same code, but not compared with the engine.
_PARTLY = (0.9, 1.15)
_STEP = 256
# LLAMA_MAX_SEQ, src/llama-cparams.h.
_MOST_SLOTS = 256
_MOST_OVERRIDES = 1024
_MOST_TOKENS = 1 << 34
_MOST_LAYERS = 1 << 16
_DEVICE = re.compile(r"[A-Za-z]{1,16}([0-9]{1,3})")
_HOST_BUFFER = re.compile(r"CPU(_[A-Za-z]{1,16})?|[A-Za-z]{1,16}_Host")
# Head sizes (K, V) that CUDA's flash attention has (ggml-cuda/fattn.cu); "auto" leaves it off
# for others.
_FLASH_HEADS = frozenset(
    {(size, size) for size in (40, 64, 72, 80, 96, 112, 128, 256, 512)}
    | {(192, 128), (320, 256), (576, 512)}
)
# common/common.h: what --fit keeps free on every device.
_FIT_MARGIN = 1024 * MIB
# fit_params_min_ctx
_FIT_CONTEXT = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppSettings:
    """llama-server's own settings, named as its long options; None = not given.

    n_gpu_layers      last layers on GPUs, the output counting as one; "all", "auto" or None = all
    n_cpu_moe         routed experts of the first N layers on the host; cpu_moe: of all layers
    n_cpu_ffn         dense feed-forwards of the first N layers on the host
    override_tensor   "PATTERN=BUFFER,...", or pairs: (r"\\.ffn_.*_exps", "CPU"); the first pattern
                      found in a tensor's name counts
    tensor_split      shares of the GPUs; without it, their free memory
    ctx_size          tokens of all sequences together; None = as the planned context and
                      concurrency need
    parallel          slots; None = as many as planned sequences, or the server's default
    load_mode         "none": the file is not mapped into memory
    embeddings        logits or embeddings of every token, not of the last ones only
    fit_target        MiB that --fit keeps free on each GPU
    free_bytes        free memory of each GPU before the start; None = all that the card hands out
    mla               ik_llama.cpp's -mla
    """

    n_gpu_layers: int | str | None = None
    n_cpu_moe: int | None = None
    cpu_moe: bool | None = None
    n_cpu_ffn: int | None = None
    override_tensor: str | tuple[tuple[str, str], ...] | None = None
    tensor_split: tuple[float, ...] | None = None
    split_mode: str | None = None
    main_gpu: int | None = None
    ctx_size: int | None = None
    batch_size: int | None = None
    ubatch_size: int | None = None
    parallel: int | None = None
    kv_unified: bool | None = None
    flash_attn: str | None = None
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    cache_type_k_draft: str | None = None
    cache_type_v_draft: str | None = None
    swa_full: bool | None = None
    no_kv_offload: bool | None = None
    no_op_offload: bool | None = None
    load_mode: str | None = None
    embeddings: bool | None = None
    fit: str | None = None
    fit_target: str | None = None
    free_bytes: tuple[int, ...] | None = None
    mla: int | None = None
    amb: int | None = None
    rtr: bool | None = None
    fmoe: bool | None = None

    def __post_init__(self) -> None:
        for name in ("n_cpu_moe", "n_cpu_ffn", "main_gpu", "mla", "amb"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= _MOST_LAYERS:
                raise InvalidDeploymentError(f"{name} is {value}; it must lie in 0..{_MOST_LAYERS}")
        for name in ("ctx_size", "batch_size", "ubatch_size", "parallel"):
            value = getattr(self, name)
            if value is not None and not -1 <= value <= _MOST_TOKENS:
                raise InvalidDeploymentError(f"{name} is {value}, which no server takes")
        layers = self.n_gpu_layers
        if isinstance(layers, str) and layers not in ("all", "auto"):
            raise InvalidDeploymentError(
                f"n_gpu_layers is {layers[:40]!r}", "a number of layers, all or auto"
            )
        for name, allowed in (
            ("split_mode", ("layer", "row", "none", "tensor")),
            ("flash_attn", ("on", "off", "auto")),
        ):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise InvalidDeploymentError(
                    f"{name} is {str(value)[:40]!r}", f"one of {', '.join(allowed)}"
                )
        if len(self.overrides()) > _MOST_OVERRIDES:
            raise InvalidDeploymentError(f"more than {_MOST_OVERRIDES:,} tensor overrides")

    def overrides(self) -> tuple[tuple[str, str], ...]:
        """(pattern, buffer type) pairs."""
        if not self.override_tensor:
            return ()
        if not isinstance(self.override_tensor, str):
            return self.override_tensor
        pairs = []
        for part in self.override_tensor.split(","):  # as common/arg.cpp does
            pattern, equals, buffer = part.strip().rpartition("=")
            if not equals or not pattern:
                raise InvalidDeploymentError(
                    f"tensor override {part[:60]!r} has no buffer type",
                    r"write it like 'blk\.[0-9]\.ffn_.*_exps=CPU'",
                )
            pairs.append((pattern.strip("\"'"), buffer.strip("\"'")))
        return tuple(pairs)

    @property
    def gpu_layers(self) -> int | None:
        """-ngl as a number; None = all."""
        layers = self.n_gpu_layers
        return None if layers is None or isinstance(layers, str) or layers < 0 else layers

    @property
    def n_batch(self) -> int:
        """Tokens of a logical batch."""
        return self.batch_size if self.batch_size and self.batch_size > 0 else 2048

    @property
    def n_ubatch(self) -> int:
        """Tokens of a physical batch."""
        return self.ubatch_size if self.ubatch_size and self.ubatch_size > 0 else 512

    @property
    def slots(self) -> int | None:
        """-np; None where the server chooses."""
        return self.parallel if self.parallel and self.parallel > 0 else None

    @property
    def n_ctx(self) -> int | None:
        """-c; None = the model's own, or what is planned."""
        return self.ctx_size if self.ctx_size and self.ctx_size > 0 else None

    @property
    def fit_margin_bytes(self) -> int:
        """What --fit keeps free: the first number of --fit-target, in MiB."""
        first = (self.fit_target or "").split(",")[0].strip()
        return int(first) * MIB if first.isdigit() and len(first) < 9 else _FIT_MARGIN

    def given(self) -> dict[str, Any]:
        """The settings that were given."""
        values = ((name, getattr(self, name)) for name in self.__dataclass_fields__)
        return {name: value for name, value in values if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppRules:
    """What is known about a build.

    default_slots, default_unified   what the server starts with when no -np is given
    few_outputs      the server reserves logits for a token of each slot; else for every token
    graph            what the compute buffers of this build hold, and whether its code was read
    """

    engine: str
    title: str
    version: str
    constants: Constants
    streams: bool
    window_cache: bool
    window_sum_first: bool
    latent: LatentCache
    latent_by_mode: Mapping[str, LatentCache]
    indexer_cache: bool
    mtp_layers: bool
    rows_of_heads: bool
    output_last: bool
    multiple_flash: int
    multiple_plain: int
    default_slots: int
    default_unified: bool
    default_flash: FlashAttention
    few_outputs: bool
    fits_itself: bool
    plans_mtp: bool
    loads_mtp: bool
    pipeline_copies: int
    graph: Mapping[str, Any]

    def kv_rules(self, *, flash: bool, mla: int | None) -> KvRules:
        """The cache's rules with or without flash attention."""
        latent = self.latent
        if mla is not None:
            if str(mla) not in self.latent_by_mode:
                raise InvalidDeploymentError(
                    f"{self.title} has no -mla {mla}",
                    f"it has {', '.join(self.latent_by_mode) or 'no such option'}",
                )
            latent = self.latent_by_mode[str(mla)]
        if latent == "key_and_value" and flash and self.latent_by_mode:
            latent = "key_only"  # ik_llama.cpp: with flash attention V is read from K
        return KvRules(
            context_multiple=self.multiple_flash if flash else self.multiple_plain,
            streams=self.streams,
            window_cache=self.window_cache,
            window_sum_first=self.window_sum_first,
            latent=latent,
            indexer_cache=self.indexer_cache,
            mtp_layers=self.mtp_layers,
            rows_of_heads=self.rows_of_heads,
        )


# Fields of a Request that this engine plans; others are refused, never ignored.
PLANS = COMMON_FIELDS | {
    "max_num_seqs",
    "offload_experts",
    "num_spec_tokens",
    "mtp",
}


def rules_of(profile: EngineProfile) -> LlamaCppRules:
    """The planner's view of what the data files say about a build."""
    facts = profile.facts
    return LlamaCppRules(
        engine=profile.engine,
        title=profile.title,
        version=profile.version,
        constants=profile.constants,
        streams=facts["kv_streams"],
        window_cache=facts["kv_window_cache"],
        window_sum_first=facts["kv_window_sum_first"],
        latent=facts["kv_latent"],
        latent_by_mode=facts.get("kv_latent_by_mode", {}),
        indexer_cache=facts["kv_indexer"],
        mtp_layers=facts["kv_mtp_layers"],
        rows_of_heads=facts["kv_rows_of_heads"],
        output_last=facts["output_last"],
        multiple_flash=facts["context_multiple"]["flash_attention"],
        multiple_plain=facts["context_multiple"]["otherwise"],
        default_slots=facts["default_slots"]["slots"],
        default_unified=facts["default_slots"]["unified"],
        default_flash=facts["flash_attention"],
        few_outputs=facts["reserved_outputs"] == "slots",
        fits_itself=facts["fit"],
        plans_mtp=facts["mtp_context"],
        loads_mtp=facts["loads_mtp_always"],
        pipeline_copies=facts["pipeline_copies"],
        graph=facts["compute_graph"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slots:
    """Sequences and tokens as the server is started."""

    slots: int
    unified: bool
    n_ctx: int
    context: int
    concurrency: int
    why: str


def plan_llamacpp(
    spec: ModelSpec,
    stored: tuple[StoredEntry, ...],
    gpu: GpuSpec,
    request: Request,
    rules: LlamaCppRules,
) -> EngineAnswer:
    """Plan one llama-server on equal GPUs.

    Where no context is given the server lowers its own until a margin stays free on every GPU
    (common/fit.cpp, step 2); what it would move to the host after that is not planned. Raises
    InvalidDeploymentError for settings that llama.cpp refuses, UnsupportedError for what is not
    planned.
    """
    if not spec.num_layers or spec.encoder_layout:
        raise UnsupportedError(
            "encoders in llama.cpp are not modelled", "plan it with --engine vllm or transformers"
        )
    settings = _settings(request)
    answer, world = _plan(spec, stored, gpu, request, rules, None)
    open_choice = request.context_tokens is None and settings.ctx_size is None
    if not open_choice or not world.fits_itself() or world.left() >= settings.fit_margin_bytes:
        return answer
    full: int = answer.deployment["context"]
    shorter = max(world.longest(settings.fit_margin_bytes), min(full, _FIT_CONTEXT))
    if shorter >= full:
        return answer
    fitted, _ = _plan(spec, stored, gpu, replace(request, context_tokens=shorter), rules, full)
    return replace(fitted, defaulted=answer.defaulted)


def _plan(
    spec: ModelSpec,
    stored: tuple[StoredEntry, ...],
    gpu: GpuSpec,
    request: Request,
    rules: LlamaCppRules,
    lowered_from: int | None,
) -> tuple[EngineAnswer, _World]:
    settings = _settings(request)
    ranks = _ranks(settings, request.num_gpus)
    flash = _flash(spec, settings, rules)
    kv_rules = rules.kv_rules(flash=flash, mla=settings.mla)
    if has_undivided_kv_b(spec):
        kv_rules = replace(kv_rules, latent="decompressed")
    caches = model_caches(spec, kv_rules)
    slots = _slots(spec, request, settings, rules)
    guessed = _guessed(spec, request, rules, caches)
    kv_settings = _kv_settings(request, settings, slots, flash=flash, guessed=guessed)
    check_types(caches, kv_settings, spec.title)
    kv = plan_cells(caches, kv_settings, kv_rules)
    usable = _usable(gpu, settings, ranks)
    split = _split(spec, request, settings, rules, usable)
    placement = place(spec, stored, split)
    copies = _copies(placement, split, settings, rules)
    world = _World(
        spec,
        rules,
        settings,
        request,
        caches,
        kv_settings,
        kv_rules,
        placement,
        copies,
        flash,
        slots,
    )
    buffers = world.compute(kv)
    context_item = _context_item(rules)
    ledgers = []
    for device, rank in enumerate(ranks):
        items = [
            *_weight_items(placement, device),
            *world.cache_items(kv, device),
            *world.mtp_items(kv, device, buffers),
            buffers.on(device),
            context_item,
        ]
        ledgers.append(
            GpuLedger(
                rank=rank,
                pp_stage=device,
                usable_bytes=usable[device],
                budget_bytes=usable[device],
                items=tuple(item for item in items if item.high_bytes),
            )
        )
    world.ledgers, world.kv = ledgers, kv
    limiting = min(range(len(ledgers)), key=lambda i: ledgers[i].headroom_bytes)
    summary = world.summary(limiting)
    type_text = kv_settings.type_k
    if kv_settings.type_v != kv_settings.type_k:
        type_text += "/" + kv_settings.type_v
    deployment = {
        "engine": rules.engine,
        "engine_version": rules.version,
        "gpu": gpu.id,
        "gpu_name": gpu.name,
        "gpu_count": request.num_gpus,
        "tp": 1,
        "pp": len(ranks),
        "dp": 1,
        "ep": False,
        "context": slots.context,
        "concurrency": slots.concurrency,
        "kv_dtype": type_text,
        "gpu_memory_utilization": None,
        "max_num_seqs": slots.slots,
        "max_num_batched_tokens": settings.n_batch,
        "block_size": None,
        "enforce_eager": False,
        "kv_cache_memory_bytes": None,
        "attention_backend": "flash attention" if flash else "no flash attention",
        "moe_backend": None,
        "engine_settings": _shown_settings(settings, placement, kv, slots, kv_settings),
    }
    held = placement.gpus[limiting]
    layers = sum(device == limiting for device in placement.layer_device[: spec.num_layers])
    answer = EngineAnswer(
        deployment=deployment,
        defaulted=_defaulted(request, settings),
        ledgers=tuple(ledgers),
        kv=summary,
        limiting_rank=ledgers[limiting].rank,
        limiting=RankCost(
            weights_by_group=held.by_group,
            scale_bytes=0,
            parameter_bytes=held.tensor_bytes,
            num_layers=layers,
            recurrent_bytes=sum(
                item.logged_bytes
                for item in kv.layers
                if item.name == "state" and placement.layer_device[item.layer] == limiting
            )
            // slots.slots,
        ),
        warnings=tuple(
            _warnings(spec, gpu, settings, slots, placement, world, summary, request, lowered_from)
        ),
        host=tuple(world.host_items(kv, buffers, slots)),
    )
    return answer, world


# --- Settings -----------------------------------------------------------------------------------


def _settings(request: Request) -> LlamaCppSettings:
    settings = request.engine_settings
    if settings is None:
        return LlamaCppSettings()
    if not isinstance(settings, LlamaCppSettings):
        raise InvalidDeploymentError(
            f"settings of another engine ({type(settings).__name__}) were given to llama.cpp"
        )
    if settings.split_mode in ("row", "tensor"):
        raise UnsupportedError(
            f"--split-mode {settings.split_mode} is not planned",
            "--split-mode layer, the default, gives every GPU whole layers",
        )
    return settings


def _ranks(settings: LlamaCppSettings, num_gpus: int) -> tuple[int, ...]:
    """The GPUs that are used."""
    if settings.split_mode == "none" or num_gpus == 1:
        main = settings.main_gpu or 0
        if main >= num_gpus:
            raise InvalidDeploymentError(
                f"--main-gpu {main}, but there are {num_gpus}", "count from 0"
            )
        return (main,)
    return tuple(range(num_gpus))


def _flash(spec: ModelSpec, settings: LlamaCppSettings, rules: LlamaCppRules) -> bool:
    """Whether flash attention is used; "auto" looks whether the GPU has the head sizes."""
    wanted: str = settings.flash_attn or rules.default_flash
    if wanted != "auto":
        return wanted == "on"
    for block in spec.blocks:
        for mixer in block.mixers:
            if isinstance(mixer, GroupedQueryAttention):
                if (mixer.head_dim, mixer.v_head_dim) not in _FLASH_HEADS:
                    return False
            elif isinstance(mixer, LatentAttention):
                rank, rope = mixer.kv_lora_rank, mixer.qk_rope_head_dim
                sizes = (rank + rope, rank)
                if has_undivided_kv_b(spec):
                    sizes = (mixer.qk_nope_head_dim + rope, mixer.v_head_dim)
                if sizes not in _FLASH_HEADS:
                    return False
    return True


def _slots(
    spec: ModelSpec, request: Request, settings: LlamaCppSettings, rules: LlamaCppRules
) -> _Slots:
    """Slots, and the tokens that they share.

    N planned sequences of C tokens need N x C tokens. Without -np the server makes as many slots
    as sequences are planned; when neither is given, its own default.
    """
    given = settings.slots or request.max_num_seqs
    concurrency = request.concurrency or 1
    if given is not None:
        slots, unified = given, bool(settings.kv_unified)
        why = f"{given} slots as given"
    elif request.concurrency is not None:
        slots, unified = request.concurrency, bool(settings.kv_unified)
        why = f"-np {slots}: a slot for each planned sequence"
    else:
        slots, unified = rules.default_slots, rules.default_unified
        if settings.kv_unified is not None:
            unified = settings.kv_unified
        why = f"{slots} slots" + (" that share one context" if unified else "") + ", the default"
    if slots > _MOST_SLOTS:
        raise InvalidDeploymentError(
            f"{slots} sequences; llama.cpp holds at most {_MOST_SLOTS} (LLAMA_MAX_SEQ)",
            f"use --concurrency {_MOST_SLOTS} or less, or more servers",
        )
    if not rules.streams:
        unified = True
    if concurrency > slots:
        raise InvalidDeploymentError(
            f"{concurrency} sequences need as many slots; there are {slots}",
            f"use -np {concurrency}, or leave it out",
        )
    context = request.context_tokens
    if settings.n_ctx is not None:
        n_ctx = settings.n_ctx
        share = n_ctx if unified else n_ctx // slots
        most = min(share, n_ctx // concurrency) if unified else share
        if context is None:
            context = max(1, most)
        elif context > _round(share) or context * concurrency > _round(n_ctx):
            raise InvalidDeploymentError(
                f"-c {n_ctx:,} holds no {concurrency} x {context:,} tokens in {slots} slots",
                f"use -c {context * (concurrency if unified else slots)}",
            )
    else:
        context = spec.max_context if context is None else context
        n_ctx = context * (concurrency if unified else slots)
    return _Slots(
        slots=slots,
        unified=unified,
        n_ctx=n_ctx,
        context=context,
        concurrency=concurrency,
        why=why,
    )


def _round(tokens: int) -> int:
    return ceil_div(tokens, _STEP) * _STEP


def _guessed(spec: ModelSpec, request: Request, rules: LlamaCppRules, caches: ModelCaches) -> int:
    if not request.mtp:
        if request.num_spec_tokens is not None:
            raise UnsupportedError(
                "guessed tokens are planned with the model's own MTP blocks only",
                "use --mtp N, or leave --spec-tokens out",
            )
        return 0
    if not rules.plans_mtp:
        raise UnsupportedError(
            f"{rules.title} {rules.version} does not use MTP blocks", "use a later build"
        )
    if not caches.mtp:
        missing = "has none" if spec.mtp is None else "has them; llama.cpp's converter drops them"
        raise InvalidDeploymentError(
            f"a GGUF file of {spec.title} has no MTP blocks (the model {missing})",
            "leave --mtp out",
        )
    return request.num_spec_tokens or 1


def _kv_settings(
    request: Request, settings: LlamaCppSettings, slots: _Slots, *, flash: bool, guessed: int
) -> KvSettings:
    own = cache_type(request.kv_dtype or "f16")
    n_batch = min(settings.n_batch, slots.n_ctx)
    return KvSettings(
        n_ctx=slots.n_ctx,
        n_seq_max=slots.slots,
        unified=slots.unified,
        n_ubatch=min(settings.n_ubatch, n_batch),
        type_k=cache_type(settings.cache_type_k or own),
        type_v=cache_type(settings.cache_type_v or own),
        flash_attention=flash,
        full_window=bool(settings.swa_full),
        guessed_tokens=guessed,
    )


def _usable(gpu: GpuSpec, settings: LlamaCppSettings, ranks: tuple[int, ...]) -> tuple[int, ...]:
    card = gpu.usable_memory().best_bytes
    if not settings.free_bytes:
        return (card,) * len(ranks)
    if len(settings.free_bytes) <= max(ranks):
        raise InvalidDeploymentError(
            f"free memory of {len(settings.free_bytes)} GPUs is given, {max(ranks) + 1} are used"
        )
    return tuple(min(card, settings.free_bytes[rank]) for rank in ranks)


def _split(
    spec: ModelSpec,
    request: Request,
    settings: LlamaCppSettings,
    rules: LlamaCppRules,
    usable: tuple[int, ...],
) -> Split:
    overrides = [(text, _buffer_device(name)) for text, name in settings.overrides()]
    n_cpu_moe: int | None = settings.n_cpu_moe
    everything = bool(settings.cpu_moe) or request.offload_experts == "all"
    if isinstance(request.offload_experts, int):
        n_cpu_moe = request.offload_experts
    if everything:
        overrides.append((EXPERTS_PATTERN, HOST))
    elif n_cpu_moe:
        overrides.append((_first_layers(n_cpu_moe, spec, EXPERTS_PATTERN), HOST))
    if settings.n_cpu_ffn:
        overrides.append((_first_layers(settings.n_cpu_ffn, spec, DENSE_PATTERN), HOST))
    fractions = settings.tensor_split or tuple(float(size) for size in usable)
    if settings.split_mode == "none":
        fractions = (1.0,)
    return Split(
        num_gpus=len(usable),
        gpu_layers=settings.gpu_layers,
        fractions=fractions[: len(usable)],
        overrides=tuple(overrides),
        load_mtp=bool(request.mtp) or rules.loads_mtp,
        mapped=settings.load_mode != "none",
        output_last=rules.output_last,
    )


def _first_layers(count: int, spec: ModelSpec, pattern: str) -> str:
    """One pattern for the tensors of the first layers (common.h:llm_add_n_cpu_ffn_overrides)."""
    layers = "|".join(map(str, range(min(count, spec.num_layers + 8))))
    return rf"blk\.({layers}){pattern}"


def _buffer_device(name: str) -> int:
    """The device of a buffer type: CUDA0 is 0, CPU and CUDA_Host are the host."""
    if _HOST_BUFFER.fullmatch(name):
        return HOST
    match = _DEVICE.fullmatch(name)
    if match is None:
        raise InvalidDeploymentError(
            f"tensor override to {name[:40]!r}, which is no buffer type", "write CPU or CUDA0"
        )
    return int(match[1])


def _copies(
    placement: Placement, split: Split, settings: LlamaCppSettings, rules: LlamaCppRules
) -> int:
    """Copies of the inputs that pipeline parallelism keeps (llama-context.cpp)."""
    parallel = (
        split.num_gpus > 1
        and HOST not in placement.layer_device
        and placement.output_device != HOST
        and not settings.no_kv_offload
        and not split.overrides
    )
    return rules.pipeline_copies if parallel else 1


# --- Memory -------------------------------------------------------------------------------------

_CACHE_TITLES = {
    "full": "every token",
    "window": "sliding window",
    "indexer": "index keys",
    "compressed_4": "one state in 4 tokens",
    "compressed_128": "one state in 128 tokens",
    "compressed_index": "index keys of compressed states",
    "state": "recurrent state",
    "compressor": "open compression windows",
}


@dataclass(frozen=True, slots=True)
class _Compute:
    """Compute buffers with the band of all of them, as shares of the best estimate."""

    devices: tuple[int, ...]
    host: int
    formulas: tuple[str, ...]
    host_formula: str
    low: float
    high: float
    planned: tuple[int, ...]
    planned_host: int

    @classmethod
    def of(
        cls, found: ComputeBuffers, low: float, high: float, planned: ComputeBuffers | None = None
    ) -> _Compute:
        """Formulas come with the host's first.

        planned: what llama.cpp expects before it allocates, with --fit; up to 5 % more on the GPUs
        behind the first.
        """
        texts = found.formulas
        most = planned or found
        return cls(
            found.device_bytes,
            found.host_bytes,
            texts[1:],
            texts[0],
            low,
            high,
            most.device_bytes,
            most.host_bytes,
        )

    def on(self, device: int, name: str = "activations.compute_buffer") -> MemoryItem:
        """The buffer of a GPU, or of the host, as a ledger item."""
        if device == HOST:
            size, most, formula = self.host, self.planned_host, self.host_formula
        else:
            size, most, formula = (
                self.devices[device],
                self.planned[device],
                self.formulas[device],
            )
        if most > size:
            formula += f"; --fit expects {most:,}"
        return MemoryItem(
            name=name,
            category="activations",
            size_bytes=size,
            low_bytes=round(size * self.low),
            high_bytes=max(most, round(size * self.high)),
            formula=formula,
            source=_CODE + "src/llama-graph.cpp, ggml/src/ggml-alloc.c",
        )


class _World:
    """Everything that a context is made of; asked again for other lengths."""

    def __init__(
        self,
        spec: ModelSpec,
        rules: LlamaCppRules,
        settings: LlamaCppSettings,
        request: Request,
        caches: ModelCaches,
        kv_settings: KvSettings,
        kv_rules: KvRules,
        placement: Placement,
        copies: int,
        flash: bool,
        slots: _Slots,
    ) -> None:
        self.spec, self.rules, self.settings, self.request = spec, rules, settings, request
        self.caches, self.kv_settings, self.kv_rules = caches, kv_settings, kv_rules
        self.placement, self.copies, self.flash = placement, copies, flash
        self.num_gpus, self.slots = len(placement.gpus), slots
        self.ledgers: list[GpuLedger] = []
        self.kv = KvPlan(n_ctx=0, n_ctx_seq=0, streams=1, sizes={}, layers=())

    def home(self, layer: int) -> int:
        """The device of a layer's cache."""
        return HOST if self.settings.no_kv_offload else self.placement.layer_device[layer]

    def cache_bytes(self, kv: KvPlan) -> list[int]:
        """Bytes of the caches on every GPU."""
        out = [0] * self.num_gpus
        for item in kv.layers:
            device = self.home(item.layer)
            if device != HOST:
                out[device] += item.gpu_bytes
        return out

    def compute(self, kv: KvPlan) -> _Compute:
        """The compute buffers of a context: the one place that asks for them."""
        asked = self._asked(kv)
        if not self.spec.num_layers:
            return _Compute.of(estimate_buffers(self.spec, asked), *_ESTIMATED)
        try:
            found = compute_buffers(self.spec, asked)
        except UnsupportedError:
            return _Compute.of(estimate_buffers(self.spec, asked), *_ESTIMATED)
        if not asked.layers_by_device:  # no GPU takes part
            found = replace(
                found,
                device_bytes=(0,) * self.num_gpus,
                formulas=found.formulas + ("not used",) * self.num_gpus,
            )
        if self._decompressed_cache():
            return _Compute.of(found, *_ESTIMATED)
        if not found.exact:
            return _Compute.of(found, *_SIMILAR)
        if not self.rules.graph["read"]:
            return _Compute.of(found, *self.rules.graph.get("band", _OTHER_BUILD))
        if HOST in (*self.placement.layer_device, self.placement.output_device) and (
            asked.layers_by_device
        ):
            return _Compute.of(found, *_PARTLY)
        planned = None
        if len(asked.layers_by_device) > 1:
            planned = compute_buffers(self.spec, replace(asked, fit_estimate=True))
        return _Compute.of(found, 1.0, 1.0, planned)

    def _asked(self, kv: KvPlan) -> ComputeSettings:
        full, window = kv.sizes.get("full"), kv.sizes.get("window")
        # DeepSeek-V4 has no such cache; its graph counts the tokens that were compressed.
        cells_full = full.cells if full else kv.n_ctx_seq if "compressed_4" in kv.sizes else 0
        settings = self.settings
        outputs = self.kv_settings.n_ubatch
        if self.rules.few_outputs and not settings.embeddings:
            per_slot = 1 + self.kv_settings.guessed_tokens
            outputs = min(outputs, settings.n_batch, self.kv_settings.n_seq_max * per_slot)
        layers = tuple(
            tuple(
                layer
                for layer in range(self.spec.num_layers)
                if self.placement.layer_device[layer] == device
            )
            for device in range(self.num_gpus)
        )
        on_host = self.placement.experts_on_host
        blocks = (
            *self.placement.layer_device[: self.spec.num_layers],
            self.placement.output_device,
        )
        if settings.no_op_offload and all(device == HOST for device in blocks):
            layers = ()
        graph = self.rules.graph
        return ComputeSettings(
            n_ubatch=self.kv_settings.n_ubatch,
            # A model of states alone has no cells.
            cells_full=max(1, cells_full),
            cells_swa=window.cells if window else 0 if self.rules.window_cache else cells_full,
            streams=kv.streams,
            sequences=self.kv_settings.n_seq_max,
            n_outputs=outputs,
            flash_attn=self.flash,
            type_k=self.kv_settings.type_k,
            type_v=self.kv_settings.type_v,
            layers_by_device=layers,
            output_device=self.placement.output_device,
            experts_on_host=on_host,
            host_expert_tensors=self.placement.host_expert_tensors,
            pipeline_copies=self.copies,
            host_tensors=self.placement.host_tensors,
            offloads=not settings.no_op_offload,
            experts_stay=self._experts_stay(),
            fused=bool(graph.get("fused")) and settings.fmoe is not False,
            one_logit_pass=bool(graph.get("fused")),
            decompresses=self._decompresses(),
            snapshots=self.kv_settings.guessed_tokens if self.caches.rolls_back else 0,
            wide_mask=self.rules.graph["wide_mask"],
            two_inputs=self.rules.graph["two_inputs"],
            cache_copies=self.rules.graph["cache_copies"],
        )

    def _decompressed_cache(self) -> bool:
        """Whether a model with MLA is run as one without: graphs of another kind."""
        latent = any(isinstance(m, LatentAttention) for b in self.spec.blocks for m in b.mixers)
        return latent and self.kv_rules.latent == "decompressed"

    def _experts_stay(self) -> bool:
        """Whether experts in host memory are computed there, whatever the batch.

        ik_llama.cpp moves them for batches of 32 tokens for each expert that is used, and not
        at all where rows were repacked for the CPU.
        """
        if self.settings.no_op_offload or self.settings.rtr:
            return True
        if not self.rules.graph.get("tokens_per_expert"):
            return False
        mixtures = (f for block in self.spec.blocks for f in block.feed_forwards)
        shares = [f.num_experts / f.experts_per_token for f in mixtures if isinstance(f, MoeMlp)]
        return bool(shares) and self.kv_settings.n_ubatch < 32 * max(shares)

    def _decompresses(self) -> int | None:
        """Bytes of -amb where prompts make keys and values of the latent cache, else None."""
        mode = self.settings.mla if self.settings.mla is not None else 3
        latent = self.kv_rules.latent == "key_only"
        if not self.rules.graph.get("decompresses") or not self.flash or mode < 2 or not latent:
            return None
        return (self.settings.amb or 0) * MIB

    def cache_items(self, kv: KvPlan, device: int) -> Iterator[MemoryItem]:
        """One item for each kind of cache on a device (HOST too)."""
        groups: dict[str, list[LayerBytes]] = {}
        for item in kv.layers:
            if self.home(item.layer) == device:
                groups.setdefault(item.name, []).append(item)
        for name, layers in groups.items():
            field = "host_bytes" if device == HOST else "gpu_bytes"
            total = sum(getattr(item, field) for item in layers)
            yield exact_item(
                ("host." if device == HOST else "") + f"kv_cache.{name}",
                "kv_cache",
                total,
                self._formula(name, layers, kv),
                _CODE + ("llama-memory-recurrent.cpp" if name == "state" else "llama-kv-cache.cpp"),
            )

    def _formula(self, name: str, layers: list[LayerBytes], kv: KvPlan) -> str:
        many, title = len(layers), _CACHE_TITLES[name]
        if name in ("state", "compressor"):
            rows = self.kv_settings.n_seq_max
            if self.caches.rolls_back and self.kv_settings.guessed_tokens:
                rows *= 1 + self.kv_settings.guessed_tokens
            return (
                f"{title}: {many} layers x {rows} x {layers[0].logged_bytes // rows:,} bytes, "
                "float32"
            )
        size = kv.sizes[name]
        types = self.kv_settings.type_k
        if layers[0].value_bytes and self.kv_settings.type_v != types:
            types = f"K {types}, V {self.kv_settings.type_v}"
        cells = f"{size.streams} x {size.cells:,}" if size.streams > 1 else f"{size.cells:,}"
        per_cell = layers[0].logged_bytes // (size.cells * size.streams)
        text = f"{title}: {cells} cells x {many} layers x {per_cell:,} bytes ({types})"
        if any(item.logged_bytes != layers[0].logged_bytes for item in layers):
            text = f"{title}: {cells} cells x {many} layers of different widths ({types})"
        return text

    def mtp_items(self, kv: KvPlan, device: int, buffers: _Compute) -> Iterator[MemoryItem]:
        """Weights, cache and compute buffer of the context that MTP blocks have of their own."""
        held = self.placement.gpus[device]
        if held.mtp_bytes:
            yield exact_item(
                "draft.mtp_weights",
                "draft",
                held.mtp_bytes,
                "tensors of the MTP blocks",
                _CODE + "src/llama-model.cpp:load_tensors",
            )
        if not self.request.mtp or self.placement.layer_device[-1] != device:
            return
        layers = mtp_layers(
            self.caches,
            kv,
            self.kv_rules,
            type_k=cache_type(self.settings.cache_type_k_draft or "f16"),
            type_v=cache_type(self.settings.cache_type_v_draft or "f16"),
        )
        yield exact_item(
            "draft.mtp_kv_cache",
            "draft",
            sum(item.gpu_bytes for item in layers),
            f"{len(layers)} MTP layers x {kv.n_ctx:,} cells, a context of their own",
            _CODE + "src/llama-model.cpp:create_memory",
        )
        best = buffers.devices[device]
        yield MemoryItem(
            name="draft.mtp_compute_buffer",
            category="draft",
            size_bytes=best,
            low_bytes=best // 4,
            high_bytes=round(best * max(1.2, buffers.high)),
            formula="about the compute buffer of the model itself",
            source="planned by llama.cpp 0c1e57098 for Qwen3.5-27B, GLM-4.5, GLM-4.7-Flash",
        )

    def host_weights(self) -> Iterator[MemoryItem]:
        """Weights of layers that the host holds, beside the input embedding."""
        held = self.placement.host
        rest = held.buffer_bytes - held.input_bytes
        if not rest:
            return
        experts = len(self.placement.experts_on_host)
        layers = sum(device == HOST for device in self.placement.layer_device)
        what = [f"routed experts of {experts} layers"] * bool(experts)
        what += [f"{layers} whole layers"] * bool(layers)
        mapped = "; mapped from the file, in the page cache"
        if self.settings.load_mode == "none":
            mapped = ""
        yield exact_item(
            "host.weights.layers",
            "weights",
            rest,
            (" and ".join(what) or "tensors moved by overrides") + mapped,
            _CODE + "src/llama-model.cpp:load_tensors",
        )

    def host_items(self, kv: KvPlan, buffers: _Compute, slots: _Slots) -> Iterator[MemoryItem]:
        """What lies in the host's memory."""
        held = self.placement.host
        source = _CODE + "src/llama-model.cpp:load_tensors"
        if held.input_bytes:
            yield exact_item(
                "host.weights.embedding",
                "weights",
                held.input_bytes,
                "look-up tables of the input stay on the host, whatever is offloaded",
                source,
            )
        yield from self.host_weights()
        yield from self.cache_items(kv, HOST)
        logits = 4 * self.spec.embedding.vocab_size * slots.slots
        if self.spec.embedding.has_head:
            yield exact_item(
                "host.output_buffer",
                "runtime",
                logits,
                f"4 x {self.spec.embedding.vocab_size:,} x {slots.slots} sequences",
                _CODE + "src/llama-context.cpp:output_reserve",
            )
        yield buffers.on(HOST, "host.compute_buffer")

    def fits_itself(self) -> bool:
        """Whether --fit is on."""
        return self.rules.fits_itself and self.settings.fit not in ("off", "0")

    def left(self) -> int:
        """Free memory of the GPU that has least of it."""
        return min(ledger.headroom_bytes for ledger in self.ledgers)

    def summary(self, limiting: int) -> KvSummary:
        """Capacity: what is allocated, and what there would be room for."""
        kv, slots = self.kv, self.slots
        ledger, needed = self.ledgers[limiting], self.cache_bytes(kv)[limiting]
        others = [item for item in ledger.items if item.category != "kv_cache"]
        available = ledger.usable_bytes - sum(item.size_bytes for item in others)
        low = ledger.usable_bytes - sum(item.high_bytes for item in others)
        high = ledger.usable_bytes - sum(item.low_bytes for item in others)
        per_token, per_sequence = self._steady_state(kv, limiting, slots)
        return KvSummary(
            bytes_per_token=per_token,
            state_bytes_per_sequence=per_sequence,
            block_tokens=1,
            blocks=kv.n_ctx,
            available_bytes=available,
            available_low_bytes=low,
            available_high_bytes=high,
            needed_bytes=needed,
            capacity_tokens=kv.n_ctx,
            max_concurrency=min(float(slots.slots), kv.n_ctx / slots.context),
            max_context=self.longest(),
            dtype=self.kv_settings.type_k,
            backend="flash attention" if self.flash else "no flash attention",
            groups=tuple(
                {
                    "kind": name,
                    "layers": sum(item.name == name for item in kv.layers),
                    "block_tokens": 1,
                    "page_bytes": sum(
                        item.logged_bytes
                        for item in kv.layers
                        if item.name == name and self.home(item.layer) == limiting
                    ),
                }
                for name in dict.fromkeys(item.name for item in kv.layers)
            ),
        )

    def _kinds(self) -> tuple[ModelCaches, list[list[int]]]:
        """One layer of each kind, and how many of them every GPU has."""
        caches: dict[object, LayerCache] = {}
        states: dict[object, LayerState] = {}
        counts: dict[object, list[int]] = {}

        def count(key: object, layer: int) -> None:
            homes = counts.setdefault(key, [0] * self.num_gpus)
            device = self.home(layer)
            if device != HOST:
                homes[device] += 1

        for cache in self.caches.caches:
            shape = (cache.name, cache.key_size, cache.value_size, cache.key_head)
            caches.setdefault(shape, cache)
            count(shape, cache.layer)
        for state in self.caches.states:
            states.setdefault(state.tensors, state)
            count(state.tensors, state.layer)
        kinds = replace(self.caches, caches=tuple(caches.values()), states=tuple(states.values()))
        return kinds, [counts[key] for key in (*caches, *states)]

    def _steady_state(self, kv: KvPlan, device: int, slots: _Slots) -> tuple[int, int]:
        """(bytes of one more token, bytes of a sequence that do not grow) on a device."""
        per_token = per_sequence = 0
        ratios = {"full": 1, "indexer": 1, "compressed_4": 4, "compressed_index": 4}
        ratios["compressed_128"] = 128
        for item in kv.layers:
            if self.home(item.layer) != device:
                continue
            if item.name in ratios:
                size = kv.sizes[item.name]
                cell = item.logged_bytes // (size.cells * size.streams)
                per_token += cell // ratios[item.name]
            else:
                per_sequence += item.logged_bytes // slots.slots
        return per_token, per_sequence

    def longest(self, margin_bytes: int = 0) -> int:
        """The longest context of which as many sequences fit on every GPU, with a margin left.

        Compute buffers are taken to grow with every cell by what they can grow at most.
        """
        kv, slots, ledgers = self.kv, self.slots, self.ledgers
        rest = [
            ledger.usable_bytes - margin_bytes - (ledger.used_bytes - need)
            for ledger, need in zip(ledgers, self.cache_bytes(kv), strict=True)
        ]
        draft = sum(
            item.size_bytes
            for ledger in ledgers
            for item in ledger.items
            if item.name == "draft.mtp_kv_cache"
        )
        growth = growth_bytes(self.spec, self._asked(kv))
        sequences = slots.concurrency if slots.unified else slots.slots

        kinds, counts = self._kinds()

        def fits(context: int) -> bool:
            settings = replace(self.kv_settings, n_ctx=context * sequences)
            longer = plan_cells(kinds, settings, self.kv_rules)
            more = growth * (longer.n_ctx_seq - kv.n_ctx_seq)
            more += draft * (longer.n_ctx - kv.n_ctx) // kv.n_ctx
            sizes = [0] * self.num_gpus
            for item, homes in zip(longer.layers, counts, strict=True):
                for device, count in enumerate(homes):
                    sizes[device] += item.gpu_bytes * count
            return all(size + more <= left for size, left in zip(sizes, rest, strict=True))

        most = self.spec.max_context
        if fits(most):
            return most
        low, high = 0, ceil_div(most, _STEP)
        while high - low > 1:
            middle = (low + high) // 2
            if fits(middle * _STEP):
                low = middle
            else:
                high = middle
        return low * _STEP


def _weight_items(placement: Placement, device: int) -> Iterator[MemoryItem]:
    held = placement.gpus[device]
    source = _CODE + "src/llama-model.cpp:load_tensors"
    blocks = sum(home == device for home in placement.layer_device)
    where = f"{blocks} of {len(placement.layer_device)} blocks"
    if placement.output_device == device:
        where += " and the output"
    for group, size in held.by_group.items():
        if size:
            yield exact_item(
                f"weights.{group}",
                "weights",
                size,
                f"bytes of the GGUF tensors of {where}",
                source,
            )
    padding = held.buffer_bytes - held.mtp_bytes - held.tensor_bytes
    if padding:
        yield exact_item(
            "weights.padding",
            "weights",
            padding,
            "each tensor to 128 bytes; rows of quantized ones to 512 elements",
            "llama.cpp 0c1e57098 ggml/src/ggml-cuda/ggml-cuda.cu",
        )


def _context_item(rules: LlamaCppRules) -> MemoryItem:
    """CUDA context, libraries and kernels: in no line of the log."""
    constant = rules.constants["cuda_context"]
    return MemoryItem(
        name="runtime.cuda_context",
        category="runtime",
        size_bytes=round(constant.value),
        low_bytes=round(constant.low),
        high_bytes=round(constant.high),
        formula=f"measured: {constant.spread}",
        source=f"{constant.source} ({constant.date}, n={constant.observations})",
    )


# --- Words --------------------------------------------------------------------------------------


def _shown_settings(
    settings: LlamaCppSettings,
    placement: Placement,
    kv: KvPlan,
    slots: _Slots,
    kv_settings: KvSettings,
) -> dict[str, Any]:
    blocks = (*placement.layer_device, placement.output_device)
    shown = {
        "n_gpu_layers": sum(device != HOST for device in blocks),
        "n_layers": len(blocks),
        "layers_by_gpu": [
            sum(home == device for home in placement.layer_device)
            for device in range(len(placement.gpus))
        ],
        "experts_on_host": len(placement.experts_on_host),
        "ctx_size": kv.n_ctx,
        "ctx_size_per_sequence": kv.n_ctx_seq,
        "parallel": slots.slots,
        "kv_unified": slots.unified,
        "kv_streams": kv.streams,
        "ubatch_size": kv_settings.n_ubatch,
        "flash_attn": "on" if kv_settings.flash_attention else "off",
        "cache_type_k": kv_settings.type_k,
        "cache_type_v": kv_settings.type_v,
        "slots_note": slots.why,
    }
    for name, value in settings.given().items():
        shown.setdefault(name, list(value) if isinstance(value, tuple) else value)
    return shown


def _defaulted(request: Request, settings: LlamaCppSettings) -> tuple[str, ...]:
    given = request.given()
    names = ["tp", "pp", "dp", "ep", "enforce_eager"]
    for field, shown in (
        ("engine_version", "engine_version"),
        ("context_tokens", "context"),
        ("concurrency", "concurrency"),
        ("kv_dtype", "kv_dtype"),
        ("max_num_seqs", "max_num_seqs"),
    ):
        own = {
            "context_tokens": settings.n_ctx,
            "kv_dtype": settings.cache_type_k,
            "max_num_seqs": settings.slots,
        }.get(field)
        if field not in given and own is None:
            names.append(shown)
    return tuple(names)


def _warnings(
    spec: ModelSpec,
    gpu: GpuSpec,
    settings: LlamaCppSettings,
    slots: _Slots,
    placement: Placement,
    world: _World,
    summary: KvSummary,
    request: Request,
    lowered_from: int | None,
) -> Iterator[Note]:
    if slots.slots > 1 or request.concurrency is not None:
        yield Note(code="slots", message=f"{slots.why}; {slots.n_ctx:,} tokens in all (-c)")
    if slots.context > spec.max_context:
        yield Note(
            code="context",
            message=(
                f"{slots.context:,} tokens are more than the {spec.max_context:,} that "
                f"{spec.title} was trained for; the server caps a slot at that"
            ),
        )
    margin = format_gib(settings.fit_margin_bytes)
    if lowered_from is not None:
        why = f"so that {margin} stay free on every GPU"
        if slots.context <= _FIT_CONTEXT:
            why = "the least it takes"
        yield Note(
            code="fit",
            message=(
                f"no context was given: --fit, on by default, lowers it from {lowered_from:,} to "
                f"{slots.context:,} tokens, {why}"
            ),
        )
    lowered = lowered_from is not None and slots.context > _FIT_CONTEXT
    if world.fits_itself() and world.left() < settings.fit_margin_bytes and not lowered:
        yield Note(
            code="fit",
            message=(
                "planned with the layers and experts as asked for; --fit, on by default, would "
                f"move some to the host, until {margin} stay free on every GPU"
            ),
        )
    if gpu.vendor.lower() != "nvidia" and gpu.vendor:
        yield Note(
            code="backend",
            message="buffers are planned as for CUDA and HIP; Metal and Vulkan align otherwise",
        )
    if gpu.one_device_is == "soc":
        yield Note(
            code="shared-memory",
            message="host and GPU share one memory: what lies on the host comes out of it too",
        )
    if HOST in placement.layer_device or placement.output_device == HOST:
        on_host = sum(device == HOST for device in placement.layer_device)
        yield Note(
            code="layers-on-host",
            message=f"{on_host} of {len(placement.layer_device)} layers run on the CPU",
        )
    on_host = sum(item.size_bytes for item in world.host_weights())
    if on_host:
        yield Note(
            code="host-memory",
            message=(
                f"the host must hold {format_gib(on_host)} of weights; whether it has that much "
                "memory is not known"
            ),
        )
    if not summary.needed_bytes and settings.no_kv_offload:
        yield Note(code="kv-on-host", message="the KV cache lies in the memory of the host")
