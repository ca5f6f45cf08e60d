"""The distinct ranks of a vLLM deployment: which there are, what each holds, what vLLM refuses.

Ranks of a pipeline stage hold the same, except where experts do not divide over expert-parallel
ranks: the first ones hold one more. Data-parallel ranks repeat them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from moesize.core.attention import GroupedQueryAttention, LatentAttention
from moesize.core.errors import InvalidDeploymentError, UnsupportedError
from moesize.core.inventory import moe_of
from moesize.core.ledger import MemoryItem, exact_item
from moesize.core.plan import Note
from moesize.core.records import dataclass
from moesize.core.units import MIB, format_bytes
from moesize.core.vllm_encoder import towers_left_out, whole_towers
from moesize.core.vllm_weights import (
    RankWeights,
    Sharding,
    Stage,
    WeightRules,
    pipeline_stages,
    rank_weights,
)

if TYPE_CHECKING:
    from moesize.core.checkpoint import StoredEntry
    from moesize.core.deployment import Layout, Request
    from moesize.core.model_spec import ModelSpec
    from moesize.core.vllm_settings import VllmSettings

# config/parallel.py:use_sequence_parallel_moe, 0.28.0 to 0.33.0.
_SEQUENCE_PARALLEL_BACKENDS = frozenset(
    (
        "allgather_reducescatter",
        "deepep_high_throughput",
        "deepep_low_latency",
        "deepep_v2",
        "flashinfer_nvlink_one_sided",
        "mori_high_throughput",
        "mori_low_latency",
        "nixl_ep",
        "passthrough",
    )
)
_NEWEST = WeightRules()
DEFAULT_ALL2ALL = "allgather_reducescatter"
# Kernels that send a token only to the ranks of its experts; the batched ones give every expert a
# buffer of fixed size (config/parallel.py:use_batched_dp_moe, 0.20.2 to 0.33.0). pplx became the
# all-gather by 0.18, and is planned as that in every release.
_BATCHED_KERNELS = frozenset(("deepep_low_latency", "nixl_ep"))
_SENDING_KERNELS = _BATCHED_KERNELS | {"deepep_high_throughput", "deepep_v2"}
_DEEPEP_BUFFER_BYTES = 1024 * MIB
_GPUS_PER_HOST = 8
# Model classes of 0.32.0 that take redundant experts (`num_redundant_experts` in models/*.py).
_BALANCED = frozenset(
    (
        "afmoe",
        "bailing_moe_linear",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "deepseek_v4",
        "ernie4_5_moe",
        "exaone_moe",
        "gemma4",
        "gemma4_text",
        "gemma4_unified",
        "glm4_moe",
        "glm4_moe_lite",
        "glm4v_moe_text",
        "glm_moe_dsa",
        "gpt_oss",
        "hy_v3",
        "kimi_k2",
        "kimi_k25",
        "lfm2_moe",
        "llama4",
        "llama4_text",
        "mimo_v2",
        "mimo_v2_flash",
        "mixtral",
        "nemotron_h",
        "qwen3_5_moe",
        "qwen3_5_moe_text",
        "qwen3_moe",
        "qwen3_next",
        "qwen3_vl_moe",
        "qwen3_vl_moe_text",
        "step3p5",
        "step3p7",
    )
)
# config/parallel.py:EPLBConfig.window_size.
_LOAD_WINDOW_STEPS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One distinct rank; `number` is its global rank: data-parallel, then stage, then tensor.

    count   GPUs that hold the same
    """

    number: int
    count: int
    stage: Stage
    sharding: Sharding
    weights: RankWeights
    items: tuple[MemoryItem, ...] = ()

    @property
    def item_bytes(self) -> int:
        """What the items beside the model's own weights take."""
        return sum(item.size_bytes for item in self.items)


def check_layout(spec: ModelSpec, request: Request, layout: Layout, settings: VllmSettings) -> None:
    """Raise for what vLLM refuses about the sizes. 0.33.0 config/parallel.py, config/model.py."""
    tp, context_ranks = layout.tensor_parallel_size, layout.decode_context_parallel_size
    experts = most_experts(spec)
    if request.data_parallel_attention:
        raise UnsupportedError(
            "--dp-attention is an option of SGLang",
            "with vLLM: --dp N --ep, one data-parallel rank per GPU",
        )
    if layout.expert_parallel and not experts:
        raise InvalidDeploymentError(
            f"{spec.title} has no experts: vLLM refuses expert parallelism", "drop --ep"
        )
    redundant = request.num_redundant_experts or 0
    if redundant:
        _check_redundant(spec, layout, experts, redundant)
    if request.expert_skew is not None and layout.expert_parallel_size == 1:
        raise InvalidDeploymentError(
            "an expert skew needs expert parallelism over several GPUs",
            "add --ep, or drop --expert-skew",
        )
    if settings.prefill_context_parallel_size not in (None, 1):
        raise UnsupportedError("prefill context parallelism is not planned")
    if tp % context_ranks:
        raise InvalidDeploymentError(
            f"--dcp {context_ranks} does not divide --tp {tp}",
            "decode context parallelism uses the ranks of tensor parallelism",
        )
    if context_ranks > 1:
        _check_context_ranks(spec, tp, context_ranks)


def _check_redundant(spec: ModelSpec, layout: Layout, experts: int, redundant: int) -> None:
    if layout.expert_parallel_size == 1:
        raise InvalidDeploymentError(
            "redundant experts need expert parallelism over several GPUs",
            "add --ep with --tp or --dp, or drop --redundant-experts",
        )
    if not {spec.model_type, spec.text_type} & _BALANCED:
        raise UnsupportedError(
            f"vLLM has no expert load balancing for {spec.title} ({spec.model_type})",
            "drop --redundant-experts",
        )
    ranks = layout.expert_parallel_size
    if (experts + redundant) % ranks:
        fits = redundant + -(experts + redundant) % ranks
        raise InvalidDeploymentError(
            f"{experts} experts + {redundant} redundant ones do not divide over {ranks} ranks",
            f"use --redundant-experts {fits}",
        )


def _check_context_ranks(spec: ModelSpec, tp: int, context_ranks: int) -> None:
    for block in spec.blocks:
        for mixer in block.mixers:
            if not isinstance(mixer, GroupedQueryAttention):
                continue
            heads = mixer.num_kv_heads
            if tp <= heads:
                raise InvalidDeploymentError(
                    f"--dcp needs a --tp ({tp}) above the {heads} KV heads of {spec.title}",
                    f"use --tp {2 * heads} or more, or drop --dcp",
                )
            if context_ranks > tp // heads:
                raise InvalidDeploymentError(
                    f"--dcp {context_ranks} exceeds --tp {tp} / {heads} KV heads",
                    f"use --dcp {tp // heads} or less",
                )
            if mixer.num_heads // heads % context_ranks:
                raise InvalidDeploymentError(
                    f"--dcp {context_ranks} does not divide the {mixer.num_heads // heads} query "
                    f"heads per KV head of {spec.title}",
                    "choose another --dcp",
                )


def most_experts(spec: ModelSpec) -> int:
    """Routed experts of the widest mixture; 0 for a dense model."""
    return max((moe.num_experts for block in spec.blocks if (moe := moe_of(block))), default=0)


def sequence_parallel(layout: Layout, settings: VllmSettings) -> bool:
    """Whether tokens are split over tensor-parallel ranks before they reach the experts."""
    backend = settings.all2all_backend or DEFAULT_ALL2ALL
    return (
        layout.expert_parallel
        and layout.tensor_parallel_size > 1
        and layout.data_parallel_size > 1
        and backend in _SEQUENCE_PARALLEL_BACKENDS
    )


def distinct_ranks(
    spec: ModelSpec,
    stored: tuple[StoredEntry, ...],
    request: Request,
    layout: Layout,
    settings: VllmSettings,
    *,
    compute_capability: str,
    rocm: bool,
    rules: WeightRules | None = None,
    towers_on_first_stage: bool = False,
) -> tuple[Rank, ...]:
    """A rank of every kind, stage by stage; kept by the spec, for sweeps ask for them again."""
    rules = rules or _NEWEST
    partition = settings.pp_layer_partition
    stages = pipeline_stages(
        spec.num_layers, layout.pipeline_parallel_size, partition, rules.pipeline_remainder
    )
    sharding = Sharding(
        tensor_parallel_size=layout.tensor_parallel_size,
        data_parallel_size=layout.data_parallel_size,
        pipeline_parallel_size=layout.pipeline_parallel_size,
        expert_parallel=layout.expert_parallel_size > 1,
        redundant_experts=request.num_redundant_experts or 0,
        sequence_parallel=sequence_parallel(layout, settings),
        adapters=request.lora_rank is not None or request.max_loras is not None,
        whole_towers=whole_towers(spec, settings),
        without_towers=towers_left_out(spec, settings),
    )
    kept: dict[tuple[object, ...], tuple[object, tuple[Rank, ...]]]
    kept = spec.__dict__.setdefault("_ranks", {})
    # `stored` and `rules` stand beside the ranks, so that their identities stay taken.
    first_only = towers_on_first_stage and bool(spec.towers)
    key = (id(stored), sharding, stages, compute_capability, rocm, id(rules), first_only)
    kinds = tuple(dict.fromkeys(tower.kind for tower in spec.towers if tower.kind != "projector"))
    later = replace(sharding, without_towers=kinds) if first_only else sharding
    if key not in kept:
        ranks = tuple(
            Rank(
                number=number,
                count=count,
                stage=stage,
                sharding=variant,
                weights=rank_weights(
                    spec,
                    stored,
                    sharding=variant,
                    stage=stage,
                    compute_capability=compute_capability,
                    rocm=rocm,
                    rules=rules,
                ),
            )
            for stage in stages
            for number, count, variant in _variants(spec, sharding if stage.first else later, stage)
        )
        kept[key] = ((stored, rules), ranks)
    return kept[key][1]


def _variants(spec: ModelSpec, sharding: Sharding, stage: Stage) -> list[tuple[int, int, Sharding]]:
    """(global rank, how many are alike, sharding) of the first rank of each kind of a stage."""
    tp, pp = sharding.tensor_parallel_size, sharding.pipeline_parallel_size
    variants = [(stage.index * tp, sharding.expert_ranks, sharding)]
    if not sharding.expert_parallel:
        return variants
    blocks = {spec.layout[layer] for layer in stage.layers}
    remainders = {
        (moe.num_experts + sharding.redundant_experts) % sharding.expert_ranks
        for name in blocks
        if (moe := moe_of(spec.block(name)))
    }
    first = max(remainders, default=0)
    if first:
        replica, rank = divmod(first, tp)
        number = (replica * pp + stage.index) * tp + rank
        variants = [
            (stage.index * tp, first, sharding),
            (number, sharding.expert_ranks - first, replace(sharding, fullest=False)),
        ]
    return variants


def balancer_items(spec: ModelSpec, rank: Rank, *, enabled: bool) -> list[MemoryItem]:
    """What expert load balancing keeps on a GPU: counts of a window of steps, and one layer's copy.

    0.33.0 distributed/eplb/eplb_state.py: window_size x layers x physical experts int32, and a
    buffer like the experts of one layer.
    """
    if not enabled:
        return []
    experts = most_experts(spec)
    layers = sum(
        1 for index in rank.stage.layers if moe_of(spec.block(spec.layout[index])) is not None
    )
    if not layers:
        return []
    physical = experts + rank.sharding.redundant_experts
    counts = _LOAD_WINDOW_STEPS * layers * physical * 4
    copy = rank.weights.expert_bytes // layers
    return [
        exact_item(
            "runtime.expert_balancer",
            "runtime",
            counts + copy,
            f"{_LOAD_WINDOW_STEPS} steps x {layers} layers x {physical} experts x 4 bytes"
            f" + a copy of one layer's experts, {format_bytes(copy)}",
            "vLLM 0.33.0 distributed/eplb/eplb_state.py",
        )
    ]


def all2all_items(layout: Layout, settings: VllmSettings) -> list[MemoryItem]:
    """Buffers of the kernels that send tokens to experts; the all-gather needs none of its own.

    DeepEP's high-throughput kernels: VLLM_DEEPEP_BUFFER_SIZE_MB (1024) for NVLink, and as much
    again between hosts. 0.33.0 distributed/device_communicators/all2all.py.
    """
    if not uses_all2all(layout) or settings.all2all_backend != "deepep_high_throughput":
        return []
    hosts = 2 if layout.expert_ranks > _GPUS_PER_HOST else 1
    return [
        exact_item(
            "runtime.all2all",
            "runtime",
            hosts * _DEEPEP_BUFFER_BYTES,
            f"{hosts} x VLLM_DEEPEP_BUFFER_SIZE_MB (1024 MiB): NVLink"
            + (" and between hosts" if hosts > 1 else ""),
            "vLLM 0.33.0 distributed/device_communicators/all2all.py:DeepEPHTAll2AllManager",
        )
    ]


def uses_all2all(layout: Layout) -> bool:
    """Whether tokens are sent to the ranks of their experts. fused_moe/config.py."""
    return layout.expert_parallel_size > 1 and layout.data_parallel_size > 1


def sends_to_experts(layout: Layout, settings: VllmSettings) -> bool:
    """Whether a token reaches only the ranks of its experts, and not every rank."""
    return uses_all2all(layout) and settings.all2all_backend in _SENDING_KERNELS


def batches_experts(layout: Layout, settings: VllmSettings) -> bool:
    """Whether every expert has a buffer of fixed size for the tokens sent to it."""
    return uses_all2all(layout) and settings.all2all_backend in _BATCHED_KERNELS


def all2all_notes(layout: Layout, settings: VllmSettings) -> list[Note]:
    """Kernels whose buffers are not planned."""
    backend = settings.all2all_backend
    if not uses_all2all(layout) or backend in (None, DEFAULT_ALL2ALL, "deepep_high_throughput"):
        return []
    message = (
        f"the buffers of the all-to-all kernels {backend} are not planned: leave room for them"
    )
    return [Note(code="all2all", message=message)]


def kv_copies(spec: ModelSpec, layout: Layout) -> int:
    """Ranks of a tensor-parallel group that hold the same keys and values; 1 = none twice."""
    copies = 1
    for block in spec.blocks:
        for mixer in block.mixers:
            if isinstance(mixer, LatentAttention):
                copies = max(copies, layout.tensor_parallel_size)
            elif isinstance(mixer, GroupedQueryAttention) and not mixer.shares_kv:
                copies = max(copies, layout.tensor_parallel_size // mixer.num_kv_heads)
    return max(1, copies // layout.decode_context_parallel_size)
