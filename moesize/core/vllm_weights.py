"""Weights of one tensor-parallel rank as vLLM creates them.

Follows vLLM 0.32.0 `model_executor/layers`: vocabulary rows padded to 64, fused projections,
whole experts under expert parallelism, latent projections and routers on every rank. Bytes are
those of `create_weights`; what loading adds or drops afterwards is an item of its own.

Symbols: t tensor-parallel ranks, ep expert-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from math import gcd, prod
from typing import TYPE_CHECKING, Literal

from moesize.core.allocator import allocated_bytes
from moesize.core.attention import CompressedAttention, GroupedQueryAttention, LatentAttention
from moesize.core.checkpoint import StoredEntry, published
from moesize.core.errors import InvalidDeploymentError, InvalidInputError
from moesize.core.inventory import Entry, Section, moe_of
from moesize.core.records import dataclass
from moesize.core.recurrent import KimiDeltaAttention
from moesize.core.tensors import GROUPS, Tensor
from moesize.core.units import ceil_div, round_up
from moesize.core.weight_formats import (
    Fp8Block,
    Fp8PerTensor,
    GroupInt,
    Mxfp4,
    Nvfp4,
    PackQuantized,
    Plain,
    WeightFormat,
    number_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Container

    from moesize.core.model_spec import ModelSpec

_VOCABULARY_ROWS = 64  # DEFAULT_VOCAB_PADDING_SIZE, layers/vocab_parallel_embedding.py
_LEAST_TILE = 32  # the smallest FP8 tile or group of integers that the Triton kernels take
_WEIGHT_SHAPE_BYTES = 16
# torch's caching allocator: tensors of 10 MiB have segments of their own, in steps of 2 MiB.
_LARGE_SEGMENT = 10 << 20
_SEGMENT_STEP = 2 << 20
_VOCABULARY_ROLES = ("embedding.tokens", "embedding.per_layer", "lm_head.weight", "lm_head.bias")


@dataclass(slots=True)
class Parameter:
    """One tensor as vLLM allocates it: what projections are joined in is one of them.

    layers     indices of the layers that have it; formats may differ between layers of a block
    is_scale   scales of the parameter `name`, a tensor of their own
    """

    name: str
    group: str
    layers: tuple[int, ...]
    size_bytes: int
    padding_bytes: int = 0
    is_scale: bool = False
    is_expert: bool = False


@dataclass(slots=True)
class RankWeights:
    """What one rank holds, in bytes.

    by_group     weights proper by parameter group; scale_bytes: scales, zero points, tables
    padding      rows and columns that only fill kernels' tiles (vocabulary, MXFP4 experts)
    rounding     what the caching allocator adds to single tensors
    latent_copy    absorbed matrices; repacked: what else loading adds (scales in a kernel's order)
    segment_bytes   what the segments of large tensors have beyond the tensors; not resident_bytes
    repacked_module_bytes   experts of a layer that loading writes anew in another order
    largest_module_bytes   the largest group of tensors that loading re-packs at once
    expert_bytes   what of it all belongs to routed experts, scales and padding included
    layer_parameters   parameters of one layer of each block, in the order of the inventory
    """

    by_group: dict[str, int] = field(default_factory=lambda: dict.fromkeys(GROUPS, 0))
    scale_bytes: int = 0
    padding_bytes: int = 0
    rounding_bytes: int = 0
    latent_copy_bytes: int = 0
    repacked_bytes: int = 0
    segment_bytes: int = 0
    repacked_module_bytes: int = 0
    largest_module_bytes: int = 0
    expert_bytes: int = 0
    layer_parameters: dict[str, list[Parameter]] = field(default_factory=dict)

    @property
    def parameter_bytes(self) -> int:
        """All parameters, as the engine would count them (vLLM: `param_bytes`)."""
        return sum(self.by_group.values()) + self.scale_bytes + self.padding_bytes

    @property
    def resident_bytes(self) -> int:
        """Parameters, allocator rounding, and copies made at load."""
        copies = self.latent_copy_bytes + self.repacked_bytes
        return self.parameter_bytes + self.rounding_bytes + copies


@dataclass(frozen=True, slots=True)
class Stage:
    """A pipeline stage: its layers, and whether it holds the embedding or the head."""

    index: int
    layers: range
    first: bool
    last: bool

    def count(self, entry: Entry, spec: ModelSpec, section: Section = "layers") -> int:
        """How many times this stage holds a tensor; of section "mtp": the MTP layers alone."""
        if section == "mtp":
            if entry.section != "mtp":
                return 0
            return sum(1 for layer in entry.layers if layer in self.layers)
        match entry.section:
            case "layers":
                return sum(1 for layer in entry.layers if layer in self.layers)
            case "tower":
                return entry.count  # built on every stage
            case "embedding" | "encoder":
                tied = spec.embedding.tied and (
                    entry.tensor.role == "embedding.tokens" or _is_one_of(spec, _UNPLANNED)
                )
                here = self.first or (self.last and tied)
                return entry.count if here or _on_every_stage(spec, entry) else 0
            case "final":
                return entry.count if self.last or _on_every_stage(spec, entry) else 0
            case "mtp" | "stored":
                return 0


# Model classes of vLLM 0.32.0 that create more than they need on the first and last pipeline stage:
# (embedding, final norm, head) without asking for the stage. `models/*.py`, the other 30 ask.
# fmt: off
_ALL_OF_THEM = (
    "bloom", "chatglm", "dbrx", "falcon", "falcon_mamba", "gemma", "gemma2", "gemma3",
    "gemma3_text", "gemma4", "gemma4_text", "gemma4_unified", "gpt2", "gpt_oss", "gptj",
    "granitemoe", "granitemoehybrid", "granitemoeshared", "hy_v3", "internlm2", "jamba", "mamba",
    "mamba2", "minicpm", "mixtral", "molmo", "nemotron_h", "olmo_hybrid", "olmoe", "opt", "orion",
    "phimoe", "qwen2_moe", "qwen3_moe", "qwen3_omni_moe_text", "qwen3_vl_moe_text", "stablelm",
    "zamba2",
)
# fmt: on
_ON_EVERY_STAGE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        _ALL_OF_THEM,
        (
            "embedding",
            "norms.final",
            "lm_head",
            "other.per_layer_model_projection",
            "norms.per_layer_projection",
        ),
    ),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe", "qwen3_5_text", "qwen3_5_moe_text"), ("embedding",)),
    **dict.fromkeys(("lfm2", "lfm2_moe"), ("embedding",)),
    **dict.fromkeys(("cohere", "cohere2"), ("embedding", "norms.final")),
    "qwen3_next": ("embedding", "lm_head"),
    "deepseek_v4": ("other.hc_head_fn", "other.hc_head_base", "other.hc_head_scale"),
}


def _on_every_stage(spec: ModelSpec, entry: Entry) -> bool:
    group, role = entry.tensor.group, entry.tensor.role.removesuffix(".bias")
    return any(
        group in names or role in names
        for names in (_ON_EVERY_STAGE.get(kind, ()) for kind in _types(spec))
    )


def _types(spec: ModelSpec) -> tuple[str, str]:
    """Model types whose rules apply: the wrapper's and that of the language model in it."""
    return spec.model_type, spec.text_type


def _is_one_of(spec: ModelSpec, model_types: Container[str]) -> bool:
    return any(kind in model_types for kind in _types(spec))


PipelineRemainder = Literal["last", "before_last"]
LatentCopies = Literal["none", "products", "values"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRules:
    """What differs between vLLM releases; the defaults are those of 0.32.

    pipeline_remainder    who takes the layers that do not divide: the last stage all of them, or
                          the stages before it one each
    head_on_every_stage   model types whose head is built on every pipeline stage
    mxfp4_backends        kernel by the major compute capability, `other` for the rest
    mxfp4_flashinfer_tile, mxfp4_rocm_tile   least multiple of an expert's width there
    latent_copies         what is made of kv_b at load: see `_latent_copies`
    mxfp4_keeps_scales    the Triton kernel's swizzled scales lie beside the loaded ones
    """

    pipeline_remainder: PipelineRemainder = "before_last"
    head_on_every_stage: tuple[str, ...] = ()
    mxfp4_backends: Mapping[str, str] | None = None
    mxfp4_flashinfer_tile: int = 128
    mxfp4_rocm_tile: int = 256
    mxfp4_keeps_scales: bool = False
    latent_copies: LatentCopies = "values"


def pipeline_stages(
    num_layers: int,
    pipeline_parallel_size: int,
    partition: tuple[int, ...] | None = None,
    remainder: PipelineRemainder = "before_last",
) -> tuple[Stage, ...]:
    """Layers of every stage: L // p each, one more from the last but one backwards.

    Up to 0.7 the last stage takes the whole remainder. `partition` is VLLM_PP_LAYER_PARTITION.
    vLLM 0.7.3 and 0.32.0 distributed/utils.py:get_pp_indices. Raises InvalidDeploymentError.
    """
    # An encoder has no decoder layers, and a single stage.
    if pipeline_parallel_size > max(num_layers, 1):
        raise InvalidDeploymentError(
            f"pipeline parallel size {pipeline_parallel_size} exceeds the {num_layers} layers"
        )
    sizes = [num_layers // pipeline_parallel_size] * pipeline_parallel_size
    left = num_layers % pipeline_parallel_size
    if remainder == "last":
        sizes[-1] += left
    else:
        for i in range(left):
            sizes[-(i + 2)] += 1
    if partition is not None:
        if len(partition) != pipeline_parallel_size or sum(partition) != num_layers:
            raise InvalidDeploymentError(
                f"VLLM_PP_LAYER_PARTITION {','.join(map(str, partition))[:60]} does not share out "
                f"{num_layers} layers over {pipeline_parallel_size} pipeline stages",
                f"for example {','.join(map(str, sizes))}",
            )
        sizes = list(partition)
    stages, start = [], 0
    for index, size in enumerate(sizes):
        layers = range(start, start + size)
        last = index == pipeline_parallel_size - 1
        stages.append(Stage(index, layers, first=index == 0, last=last))
        start += size
    return tuple(stages)


@dataclass(frozen=True, slots=True)
class KernelPadding:
    """Multiples that an MXFP4 kernel rounds expert dimensions up to; and what NVFP4 kernels read.

    vLLM 0.32.0 fused_moe/oracle/mxfp4.py: mxfp4_round_up_hidden_size_and_intermediate_size.
    """

    intermediate: int
    hidden: int
    backend: str
    all_input_scales: bool = False


def mxfp4_padding(
    compute_capability: str | None, *, rocm: bool = False, rules: WeightRules | None = None
) -> KernelPadding:
    """Padding by GPU generation: Marlin before Hopper, Triton on Hopper, TRT-LLM kernels after.

    On AMD both dimensions go up to multiples of 256 (128 up to 0.18); the kernels of Kimi-K3 and of
    single generations that take 128 are left out.
    """
    rules = rules or WeightRules()
    if rocm:
        return KernelPadding(rules.mxfp4_rocm_tile, rules.mxfp4_rocm_tile, "rocm")
    major = int(compute_capability.partition(".")[0]) if compute_capability else 9
    backend = mxfp4_backend(major, rules)
    # What NVFP4 kernels read goes by the generation, whatever runs MXFP4.
    reads_all = major >= 10
    if backend == "flashinfer":
        tile = max(rules.mxfp4_flashinfer_tile, 128)
        hidden = 256
    elif backend == "triton":
        tile, hidden = 64, 1
    else:
        tile, hidden = 128, 256
    return KernelPadding(tile, hidden, backend, all_input_scales=reads_all)


def mxfp4_backend(major: int, rules: WeightRules) -> str:
    """Kernel of MXFP4 experts by the major compute capability: flashinfer, triton or marlin."""
    table = rules.mxfp4_backends or {"10": "flashinfer", "9": "triton", "other": "marlin"}
    return table.get(str(major), table["other"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """How the tensors of a stage are shared out over its t x d ranks.

    t ranks of a data-parallel rank split everything; the routed experts are split over all t x d
    ranks, by width, or as whole experts with expert parallelism (0.33.0 fused_moe/config.py:
    FusedMoEParallelConfig.make).

    redundant_experts     copies that the load balancer adds to the experts of a layer
    fullest               the rank is one of those with an expert more where they do not divide
    sequence_parallel     tokens are split over t before the experts: shared experts are held whole
    adapters              LoRA is on: MXFP4 experts run in Marlin's kernels on every GPU
    whole_towers          --mm-encoder-tp-mode data
    without_towers        kinds of tower that are not built: no item of their modalities may come
    """

    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    expert_parallel: bool = False
    redundant_experts: int = 0
    fullest: bool = True
    sequence_parallel: bool = False
    adapters: bool = False
    whole_towers: bool = False
    without_towers: tuple[str, ...] = ()

    @property
    def expert_ranks(self) -> int:
        """Ranks that share out the routed experts."""
        return self.tensor_parallel_size * self.data_parallel_size

    def local_experts(self, experts: int) -> int:
        """Experts of a layer on the rank. 0.33.0 expert_map_manager.py:determine_expert_map."""
        total = experts + self.redundant_experts
        if not self.expert_parallel:
            return total
        return total // self.expert_ranks + (self.fullest and total % self.expert_ranks > 0)


def rank_weights(
    spec: ModelSpec,
    stored: tuple[StoredEntry, ...],
    *,
    tensor_parallel_size: int = 1,
    expert_parallel_size: int = 1,
    compute_capability: str | None = None,
    rocm: bool = False,
    stage: Stage | None = None,
    rules: WeightRules | None = None,
    sharding: Sharding | None = None,
    section: Section = "layers",
) -> RankWeights:
    """Bytes on the fullest rank of a pipeline stage (default: of a model in one stage).

    `sharding` says more than the two sizes, and goes before them. section "mtp": the bytes of the
    MTP layers alone (`stage.layers` counts on from the trunk's).
    Raises InvalidDeploymentError when t does not divide the model.
    """
    rules = rules or WeightRules()
    sharding = sharding or Sharding(
        tensor_parallel_size=tensor_parallel_size, expert_parallel=expert_parallel_size > 1
    )
    tensor_parallel_size = sharding.tensor_parallel_size
    stage = stage or pipeline_stages(spec.num_layers, 1)[0]
    weights = RankWeights()
    fused: dict[tuple[str, tuple[int, ...], str], tuple[int, list[int]]] = {}
    modules: dict[tuple[str, str], int] = {}
    # 0.32.0 fused_moe/oracle/mxfp4.py: adapters beside MXFP4 experts need Marlin's kernels.
    marlin = "8.0" if sharding.adapters else compute_capability
    padding = mxfp4_padding(marlin, rocm=rocm, rules=rules)
    joined: set[tuple[str, tuple[int, ...], str]] = set()
    mxfp4_blocks = {
        item.entry.block
        for item in stored
        if item.entry.tensor.expert and isinstance(item.weight_format, Mxfp4)
    }
    for item in stored:
        tensor = item.entry.tensor
        count = stage.count(item.entry, spec, section)
        is_head = tensor.role == "lm_head.weight" and item.entry.section == "final"
        if is_head and section != "mtp" and _is_one_of(spec, rules.head_on_every_stage):
            count = item.entry.count
        if item.entry.section == "tower" and _is_left_out(spec, tensor, sharding):
            count = 0
        if _is_one_of(spec, _DOUBLED.get(tensor.role, ())):
            count += bool(section != "mtp")
        if not count or _is_one_of(spec, _UNUSED.get(tensor.role, ())):
            continue
        if tensor.role == "router.weight" and _computes_router_in_float(spec, compute_capability):
            item = replace(item, dtype="float32")
        shape, copies = local_shape(spec, item.entry, sharding)
        if item.entry.section in ("layers", "mtp") and _is_key_and_value(spec, item.entry):
            copies *= 2
        try:
            weight, scale, pad = _matrix_bytes(item, shape, padding)
        except InvalidInputError as error:
            raise InvalidDeploymentError(
                f"tensor parallel size {tensor_parallel_size}: {error.message}", error.hint
            ) from error
        wide = shape
        if tensor.expert and tensor.shard is not None:
            is_split = not sharding.expert_parallel and sharding.expert_ranks > 1
            wide = _padded_expert(spec, item, shape, compute_capability, is_split)
        if wide != shape:
            pad = sum(_matrix_bytes(item, wide, padding)) - weight - scale
        if item.entry.block in mxfp4_blocks and tensor.expert and tensor.role.endswith(".bias"):
            pad = number_bytes(item.dtype, _padded_bias(tensor, shape, padding)) - weight
            if padding.backend == "triton":
                # The kernel takes biases in float32 (quantization/mxfp4.py).
                weights.repacked_bytes += (weight + pad) * copies * count
        if isinstance(item.weight_format, Mxfp4) and tensor.expert and padding.backend == "triton":
            swizzled = _swizzled_scale_bytes(tensor, shape, padding)
            if not rules.mxfp4_keeps_scales:
                swizzled -= _scale_bytes(tensor, shape, padding)
            weights.repacked_bytes += swizzled * copies * count
        if isinstance(item.weight_format, PackQuantized) and tensor.fused and not tensor.expert:
            # One weight_shape for the projections that are joined.
            projection = (item.entry.block, item.entry.layers, tensor.fused)
            scale -= _WEIGHT_SHAPE_BYTES if projection in joined else 0
            joined.add(projection)
        if tensor.role == "attention.linear.b":
            pad = _joined_padding(spec, item.entry, tensor_parallel_size)
        weights.by_group[tensor.group] += weight * copies * count
        if tensor.expert:
            weights.expert_bytes += (weight + scale + pad) * copies * count
        weights.scale_bytes += scale * copies * count
        weights.padding_bytes += pad * copies * count
        if padding.all_input_scales and tensor.expert and isinstance(item.weight_format, Nvfp4):
            # The kernels from Blackwell on read the input scales of all ranks' experts.
            scale_bytes = 4 if item.weight_format.static_input_scale else 0
            others = tensor.copies + sharding.redundant_experts - copies
            weights.scale_bytes += scale_bytes * others * count
        if _drops_input_scale(spec, item):
            weights.scale_bytes += number_bytes(item.dtype, 1) * copies * count
        true_rows = _unpadded_rows(tensor, tensor_parallel_size)
        if true_rows is not None and shape[0] > true_rows:
            # Padding rows are no parameters of the model; keep them apart.
            extra = weight - weight * true_rows // shape[0]
            weights.by_group[tensor.group] -= extra * count
            weights.padding_bytes += extra * count
        _list_parameters(weights, item.entry, (weight, scale, pad), copies)
        _collect(fused, item.entry, count, weight + pad, copies)
        if scale:
            _collect(fused, item.entry, count, scale, copies, "scale")
        key = (item.entry.block, tensor.group)
        modules[key] = modules.get(key, 0) + (weight + scale + pad) * copies
        if tensor.role == "attention.kv_b":
            weights.latent_copy_bytes += count * _latent_copies(
                spec, item, shape, tensor_parallel_size, rules.latent_copies
            )
    for count, sizes in fused.values():
        for size in sizes:
            allocated = allocated_bytes(size)
            weights.rounding_bytes += (allocated - size) * count
            if allocated >= _LARGE_SEGMENT:
                weights.segment_bytes += (round_up(allocated, _SEGMENT_STEP) - allocated) * count
    weights.repacked_module_bytes = max(
        (
            modules[item.entry.block, item.entry.tensor.group]
            for item in stored
            if item.entry.tensor.expert
            and isinstance(item.weight_format, GroupInt | PackQuantized | Mxfp4)
            and (item.entry.block, item.entry.tensor.group) in modules
        ),
        default=0,
    )
    weights.largest_module_bytes = max(modules.values(), default=0)
    if stored is published(spec):
        weights.scale_bytes += _cache_scale_bytes(spec, stage)
    return weights


def _latent_copies(
    spec: ModelSpec,
    item: StoredEntry,
    shape: tuple[int, ...],
    tensor_parallel_size: int,
    kind: LatentCopies,
) -> int:
    """What latent attention makes of kv_b at load, and keeps beside it, in one layer.

    `values`: a quantized kv_b is de-quantized into the two matrices that are absorbed (they are
    views of one that is not quantized). `products`: those times the query and output projections,
    heads/t * latent * (query width + H) in FP8 where kv_b is, and the rotary part of the query
    projection (vLLM 0.7.3 attention/backends/mla/utils.py).
    """
    if kind == "none" or (kind == "values" and item.weight_format is None):
        return 0
    if kind == "values":
        return prod(shape) * 2
    mixer = next(m for m in spec.block(item.entry.block).mixers if isinstance(m, LatentAttention))
    heads = ceil_div(mixer.num_heads, tensor_parallel_size)
    query = mixer.q_lora_rank or spec.hidden_size
    elements = heads * mixer.kv_lora_rank * (query + spec.hidden_size)
    is_fp8 = isinstance(item.weight_format, Fp8Block | Fp8PerTensor)
    rotary = heads * mixer.qk_rope_head_dim * query * 2
    # A quantized kv_b is de-quantized to be split, and kept.
    split = prod(shape) * 2 if item.weight_format is not None else 0
    return elements * (1 if is_fp8 else 2) + rotary + split


def _computes_router_in_float(spec: ModelSpec, compute_capability: str | None) -> bool:
    """Routers that need float32 products are held in float32 where no kernel makes those.

    vLLM 0.32.0 fused_moe/router/gate_linear.py; kernels are for 9.0 and 10.x, and only
    models/nemotron_h.py asks for it.
    """
    if compute_capability is None or compute_capability.startswith(("9.0", "10.")):
        return False
    return _is_one_of(spec, ("nemotron_h",))


def _drops_input_scale(spec: ModelSpec, item: StoredEntry) -> bool:
    """ModelOpt's weight-only NVFP4: an input scale is created, and dropped after loading.

    vLLM 0.32.0 quantization/modelopt.py. Experts have theirs in `_expert_scales`.
    """
    return (
        spec.quantization is not None
        and spec.quantization.method == "modelopt"
        and isinstance(item.weight_format, Nvfp4)
        and not item.weight_format.static_input_scale
        and not item.entry.tensor.expert
    )


# Bytes of scales for the KV cache that an attention layer gets: q, k, v and softmax in bfloat16
# (vLLM 0.32.0 quantization/kv_cache.py), for compressed-tensors q, k, v in float32 with bfloat16
# zero points. Only ModelOpt's reach latent attention.
_CACHE_SCALE_BYTES = {"fp8": 8, "mxfp8": 8, "modelopt": 8, "quark": 8, "compressed-tensors": 18}


def _cache_scale_bytes(spec: ModelSpec, stage: Stage) -> int:
    if spec.quantization is None:
        return 0
    method = spec.quantization.method
    kinds: tuple[type, ...] = (GroupedQueryAttention,)
    if method == "modelopt":
        kinds = (GroupedQueryAttention, LatentAttention)
        *_, last = spec.quantization.rules
        # Mixed precision lists what it quantizes, and has these only with a quantized cache.
        if last.format == "keep" and not spec.quantization.kv_dtype:
            return 0
    names = (*spec.layout, *(spec.mtp.layers if spec.mtp else ()))
    blocks = [spec.block(names[layer]) for layer in stage.layers]
    layers = sum(isinstance(mixer, kinds) for block in blocks for mixer in block.mixers)
    return _CACHE_SCALE_BYTES.get(method, 0) * layers


def _joined_padding(spec: ModelSpec, entry: Entry, tensor_parallel_size: int) -> int:
    """Kimi-K3 joins q, k, v, gate, decay and beta and rounds their rows up to 16.

    vLLM 0.32.0 layers/mamba/gdn/kimi_gdn_linear_attn.py.
    """
    for mixer in spec.block(entry.block).mixers:
        if isinstance(mixer, KimiDeltaAttention) and mixer.full_rank_gate:
            heads = mixer.num_heads // tensor_parallel_size
            rows = 4 * heads * mixer.head_dim + mixer.head_dim + heads
            return number_bytes(spec.dtype, -rows % 16 * spec.hidden_size)
    return 0


def _is_compressed(spec: ModelSpec, entry: Entry) -> bool:
    return any(isinstance(mixer, CompressedAttention) for mixer in spec.block(entry.block).mixers)


def _is_key_and_value(spec: ModelSpec, entry: Entry) -> bool:
    """One projection for keys and values (Gemma 4), which vLLM 0.32.0 holds twice in its qkv."""
    return entry.tensor.role == "attention.k" and any(
        isinstance(mixer, GroupedQueryAttention) and mixer.key_is_value
        for mixer in spec.block(entry.block).mixers
    )


# Least width of a routed expert on a rank that shares it out (models/kimi_k3/nvidia/model.py, which
# Kimi-Linear uses as well).
_LEAST_EXPERT_WIDTH = {"kimi_linear": 256, "kimi_k3": 256}
# Plain experts on Blackwell run in FlashInfer's TRT-LLM kernels, which take whole tiles of this
# width (fused_moe/oracle/unquantized.py)...
_BLACKWELL_TILE = 128
# ... unless their activation is no plain SiLU (or squared ReLU), or they are routed in a way of
# their own (fused_moe/config.py:get_routing_method_type, experts/trtllm_bf16_moe.py).
_OWN_KERNELS = (
    "cohere2_moe",
    "cohere2_vision",
    "deepseek_ref",
    "deepseek_v4",
    "ernie4_5_moe",
    "ernie4_5_moe_text",
    "gemma4",
    "gemma4_text",
    "gpt_oss",
    "jamba",
    "kimi_k3",
    "longcat_flash",
    "minicpm",
    "minimax_m3",
    "minimax_m3_vl",
    "olmoe",
    "phimoe",
)


def _padded_expert(
    spec: ModelSpec,
    item: StoredEntry,
    shape: tuple[int, ...],
    compute_capability: str | None,
    is_split: bool,
) -> tuple[int, ...]:
    """A rank's part of an expert as some models and kernels widen it; else the shape itself."""
    shard, moe = item.entry.tensor.shard, moe_of(spec.block(item.entry.block))
    assert shard is not None
    assert moe is not None
    width = shape[shard.dim]
    if is_split:
        width = max(width, *(_LEAST_EXPERT_WIDTH.get(kind, 0) for kind in _types(spec)))
    plain = item.weight_format is None or isinstance(item.weight_format, Plain)
    blackwell = compute_capability is not None and compute_capability.startswith("10.")
    if plain and blackwell and moe.renormalizes and not _is_one_of(spec, _OWN_KERNELS):
        width = round_up(width, _BLACKWELL_TILE)
    return (*shape[: shard.dim], width, *shape[shard.dim + 1 :])


_MXFP4_BLOCK = 32
# triton_kernels tensor_details/layout_details/hopper_scale.py with the eight warps vLLM asks for.
_SWIZZLED_ROWS = 256


def _padded_matrix(
    tensor: Tensor, shape: tuple[int, ...], padding: KernelPadding
) -> tuple[int, int]:
    """Rows and columns of an expert's matrix once a kernel's tiles are filled."""
    rows, columns = shape[0], prod(shape[1:])
    if tensor.role.endswith(".down"):
        return round_up(rows, padding.hidden), round_up(columns, padding.intermediate)
    return round_up(rows, padding.intermediate), round_up(columns, padding.hidden)


def _scale_bytes(tensor: Tensor, shape: tuple[int, ...], padding: KernelPadding) -> int:
    rows, columns = _padded_matrix(tensor, shape, padding)
    return rows * ceil_div(columns, _MXFP4_BLOCK)


def _swizzled_scale_bytes(tensor: Tensor, shape: tuple[int, ...], padding: KernelPadding) -> int:
    """Scales in the order of Hopper's Triton kernel: rows to 256, columns to an even number."""
    rows, columns = _padded_matrix(tensor, shape, padding)
    scales = round_up(ceil_div(columns, _MXFP4_BLOCK), 2)
    if tensor.role.endswith(".down"):
        return round_up(rows, _SWIZZLED_ROWS) * scales
    # Gate and up are one matrix.
    return round_up(2 * rows, _SWIZZLED_ROWS) // 2 * scales


def _padded_bias(tensor: Tensor, shape: tuple[int, ...], padding: KernelPadding) -> int:
    down = tensor.role.endswith(".down.bias")
    return round_up(shape[0], padding.hidden if down else padding.intermediate)


def local_shape(spec: ModelSpec, entry: Entry, sharding: Sharding) -> tuple[tuple[int, ...], int]:
    """Shape and number of copies that a rank holds of one tensor."""
    tensor, tensor_parallel_size = entry.tensor, sharding.tensor_parallel_size
    if entry.section == "tower" and (
        sharding.whole_towers or not _splits_tower(spec, tensor, tensor_parallel_size)
    ):
        return tensor.shape, tensor.copies
    if _is_one_of(spec, _WHOLE.get(tensor.role, ())):
        return tensor.shape, tensor.copies
    if tensor.role == "attention.sinks" and _is_compressed(spec, entry):
        heads = ceil_div(tensor.shape[0], tensor_parallel_size)
        padded = next((size for size in _COMPRESSED_HEADS if heads <= size), heads)
        return (padded,), tensor.copies
    copies = tensor.copies
    if tensor.expert:
        copies = sharding.local_experts(copies)
        if sharding.expert_parallel:
            return tensor.shape, copies
        tensor_parallel_size = sharding.expert_ranks
    if _is_held_whole(spec, tensor, sharding):
        return tensor.shape, copies
    if tensor.role == "other.mtp_projection" and _is_one_of(spec, _SPLIT_PROJECTION):
        rows, *columns = tensor.shape
        return (ceil_div(rows, tensor_parallel_size), *columns), copies
    if tensor.role in _VOCABULARY_ROLES:
        rows = round_up(tensor.shape[0], _VOCABULARY_ROWS)
        return (ceil_div(rows, tensor_parallel_size), *tensor.shape[1:]), tensor.copies
    shard = tensor.shard
    if shard is None or tensor_parallel_size == 1:
        return tensor.shape, copies
    size, units = tensor.shape[shard.dim], shard.units
    if units % tensor_parallel_size == 0:
        local = size // tensor_parallel_size
    elif shard.replicate and tensor_parallel_size % units == 0:
        local = size // units
    else:
        raise InvalidDeploymentError(
            f"tensor parallel size {tensor_parallel_size} does not divide the {units:,} "
            f"{'heads' if tensor.group == 'attention' else 'columns'} of {tensor.role} "
            f"in {spec.title}",
            f"sizes that do: {_divisors(spec)}",
        )
    return (*tensor.shape[: shard.dim], local, *tensor.shape[shard.dim + 1 :]), copies


# Model types whose shared experts every rank holds whole where the tokens are split over the
# tensor-parallel ranks, and those whose dense layers are too. vLLM 0.32.0 models/deepseek_v2.py,
# llama4.py, nemotron_h.py, qwen3_next.py, models/deepseek_v32/, deepseek_v4/; glm4_moe.py,
# qwen2_moe.py, ernie45_moe.py and the others split them as ever.
_WHOLE_SHARED_EXPERTS = (
    "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "glm_moe_dsa", "kimi_k2",
    "kimi_k25", "kimi_vl", "llama4", "llama4_text", "nemotron_h", "qwen3_5_moe",
    "qwen3_5_moe_text", "qwen3_next",
)  # fmt: skip
_WHOLE_DENSE_LAYERS = ("deepseek_v32", "glm_moe_dsa")


# MTP blocks whose joint projection of state and embedding is split by rows (vLLM 0.32.0
# models/qwen3_5_mtp.py, qwen3_next_mtp.py, nemotron_h_mtp.py); the others hold it whole.
_SPLIT_PROJECTION = (
    "nemotron_h", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next",
)  # fmt: skip


def _is_held_whole(spec: ModelSpec, tensor: Tensor, sharding: Sharding) -> bool:
    """Whether every rank holds an MLP whole because the tokens are split (sequence parallel)."""
    if not sharding.sequence_parallel:
        return False
    if tensor.group == "shared_experts":
        return _is_one_of(spec, _WHOLE_SHARED_EXPERTS)
    whole_layers = _is_one_of(spec, _WHOLE_DENSE_LAYERS) and sharding.pipeline_parallel_size == 1
    return tensor.group == "dense_mlp" and whole_layers


# What every rank holds whole in some models. Queries and keys are gathered from all ranks before
# they are normalised (vLLM 0.32.0 models/olmoe.py, olmo_hybrid.py; the plan of Transformers for the
# others). GPT-BigCode runs through Transformers, which has no plan for it: only what vLLM fuses by
# itself is split (models/transformers/base.py), and an MLP without a gate is not.
_GATHERED = ("olmo2", "olmo3", "olmoe", "olmo_hybrid", "flex_olmo")
_UNPLANNED = ("gpt_bigcode",)
_WHOLE = {
    "norms.q": _GATHERED,
    "norms.k": _GATHERED,
    "dense_mlp.up": _UNPLANNED,
    "dense_mlp.up.bias": _UNPLANNED,
    "dense_mlp.down": _UNPLANNED,
}
# Query heads of a rank that the kernels for DeepSeek-V4 take; its attention sinks are padded to
# them (vLLM 0.32.0 models/deepseek_v4/nvidia/flashmla.py).
_COMPRESSED_HEADS = (64, 128)
# Parts of the files that vLLM leaves out: Transformers models get a head without bias.
_UNUSED = {"lm_head.bias": ("phi",)}
# Tensors that vLLM creates once more, on every stage (models/phi3v.py).
_DOUBLED = {"embedding.tokens": ("phi3_v",)}


# What happens to a tower whose heads do not divide: Kimi's is held whole by every rank
# (models/kimi_k25_vit.py), of InternViT the attention alone (intern_vit.py). Audio encoders are
# held whole (qwen3_asr.py); all other towers are refused.
_WHOLE_TOWERS = ("kimi_k25", "kimi_k3")
_PARTLY_WHOLE_TOWERS = ("internvl_chat",)


def _splits_tower(spec: ModelSpec, tensor: Tensor, tensor_parallel_size: int) -> bool:
    """Whether ranks share a tensor of a tower, or every rank holds it. Raises for a misfit."""
    if tensor.shard is None or _is_one_of(spec, _PARTLY_WHOLE_TOWERS):
        return tensor.shard is not None and tensor.shard.units % tensor_parallel_size == 0
    if not (_is_one_of(spec, _WHOLE_TOWERS) or tensor.role == "towers.audio"):
        return True
    return all(units % tensor_parallel_size == 0 for units in _tower_units(spec, tensor.role))


# Their embedding of patches is no tower of its own to vLLM, and stays.
_TOWERLESS = ("gemma4_unified",)


def _is_left_out(spec: ModelSpec, tensor: Tensor, sharding: Sharding) -> bool:
    """Whether a tower, or the projector that belongs to the vision tower, is not built."""
    if not sharding.without_towers or _is_one_of(spec, _TOWERLESS):
        return False
    kind = tensor.role.removeprefix("towers.")
    return ("vision" if kind == "projector" else kind) in sharding.without_towers


def _tower_units(spec: ModelSpec, role: str) -> set[int]:
    return {
        item.units or item.shape[0 if item.split == "out" else 1]
        for tower in spec.towers
        if tower.tensor_parallel and f"towers.{tower.kind}" == role
        for item in tower.tensors
        if item.split
    }


def _divisors(spec: ModelSpec) -> str:
    return ", ".join(str(size) for size in valid_tensor_parallel_sizes(spec)) or "none"


def valid_tensor_parallel_sizes(spec: ModelSpec, most: int = 64) -> list[int]:
    """The tensor-parallel sizes up to `most` that divide every split tensor; kept by the spec."""
    kept: dict[int, list[int]] = spec.__dict__.setdefault("_tensor_parallel_sizes", {})
    if most not in kept:
        kept[most] = _dividing_sizes(spec, most)
    return list(kept[most])


def _dividing_sizes(spec: ModelSpec, most: int) -> list[int]:
    shards = {
        (entry.tensor.shard.units, entry.tensor.shard.replicate)
        for block in spec.blocks
        for entry in (Entry(tensor, "layers") for tensor in spec.block_tensors[block.name])
        if entry.tensor.shard is not None
    }
    if not _is_one_of(spec, (*_WHOLE_TOWERS, *_PARTLY_WHOLE_TOWERS)):
        for role in ("towers.vision", "towers.projector"):
            shards |= {(units, False) for units in _tower_units(spec, role)}
    return [
        size
        for size in range(1, most + 1)
        if all(
            units % size == 0 or (replicate and size % units == 0) for units, replicate in shards
        )
    ]


def _unpadded_rows(tensor: Tensor, tensor_parallel_size: int) -> int | None:
    """Rows a rank would hold of a vocabulary tensor without padding (rounded up); else None."""
    if tensor.role not in _VOCABULARY_ROLES:
        return None
    return ceil_div(tensor.shape[0], tensor_parallel_size)


def _matrix_bytes(
    item: StoredEntry, shape: tuple[int, ...], padding: KernelPadding
) -> tuple[int, int, int]:
    """(weight, scales, padding) of one local copy, as `create_weights` makes them."""
    tensor = item.entry.tensor
    weight_format = _local_format(item, shape)
    if weight_format is None or isinstance(weight_format, Plain):
        return number_bytes(item.dtype, prod(shape)), 0, 0
    rows, columns = shape[0], prod(shape[1:])
    if tensor.expert and isinstance(weight_format, GroupInt):
        group_size = _cut_group_size(weight_format, tensor, rows, columns)
        if group_size:
            return _group_bytes(item, weight_format, rows, columns, group_size)
    parts = weight_format.components(rows, columns, held="vllm_load")
    weight = sum(part.size_bytes for part in parts if part.name == "weight")
    scale = sum(part.size_bytes for part in parts) - weight
    joined = _JOINED_PARTS.get(tensor.role, 1)
    scale += (joined - 1) * sum(part.size_bytes for part in parts if part.elements == 1)
    if not tensor.expert:
        return weight, scale, 0
    scale += _expert_scales(item, weight_format, rows, columns)
    if not isinstance(weight_format, Mxfp4):
        return weight, scale, 0
    padded = weight_format.matrix_bytes(*_padded_matrix(tensor, shape, padding))
    return weight, scale, padded - weight - scale


def _expert_scales(item: StoredEntry, weight_format: WeightFormat, rows: int, columns: int) -> int:
    """Bytes that the scales of an expert's matrix take beyond (below 0: short of) the file's."""
    is_up = item.entry.tensor.role.endswith(".up")
    match weight_format:
        case GroupInt(packed_along="in"):
            # A bias of zeros each, whether or not the files have one (quantization/auto_gptq.py).
            return number_bytes(item.dtype, rows)
        case Nvfp4(static_input_scale=static):
            # A part of a block has no scale here, though it has one in the file; input scales are
            # made even where activations are not quantized.
            return (0 if static else 4) - rows * (ceil_div(columns, 16) - columns // 16)
        case Fp8PerTensor(static_input_scale=True):
            return -4 if is_up else 0  # one input scale for gate and up
        case PackQuantized():
            # weight_shape: two bfloat16 for gate and up together and two for down, not two int64.
            return -16 if is_up else -12
        case _:
            return 0


def _cut_group_size(weight_format: GroupInt, tensor: Tensor, rows: int, columns: int) -> int:
    """Group size of experts whose groups a rank's part cuts; 0 when Marlin's kernels take them.

    vLLM 0.32.0 quantization/utils/marlin_utils.py:check_moe_marlin_supports_config, moe_wna16.py.
    """
    size = weight_format.group_size
    hidden, width = (rows, columns) if tensor.role.endswith(".down") else (columns, rows)
    if size == -1 or (width % size == 0 and hidden % size == 0):
        return 0
    while width % size or hidden % size:
        size //= 2
        if size < _LEAST_TILE:
            raise InvalidDeploymentError(
                f"experts of width {width} on a rank do not divide into groups of at least "
                f"{_LEAST_TILE} weights",
                "choose a smaller tensor parallel size, or expert parallelism",
            )
    return size


def _group_bytes(
    item: StoredEntry, weight_format: GroupInt, rows: int, columns: int, group_size: int
) -> tuple[int, int, int]:
    """Experts in moe_wna16: packed bytes, scales and zero points by the smaller group."""
    groups = rows * columns // group_size
    scale = number_bytes(item.dtype, groups)
    if not weight_format.symmetric:
        scale += groups * weight_format.bits // 8
    return rows * columns * weight_format.bits // 8, scale, 0


# Joined projections have a single scale for each part: Mamba-2's for gate, x and steps, and for B
# and C; linear attention's for queries, keys and values.
_JOINED_PARTS = {
    "attention.linear.in": 3,
    "attention.linear.in_groups": 2,
    "attention.linear.qkv": 3,
}


def _local_format(item: StoredEntry, shape: tuple[int, ...]) -> WeightFormat | None:
    """The format of a rank's part where vLLM 0.32.0 departs from that of the file."""
    tensor = item.entry.tensor
    if tensor.role == "attention.indexer.k":
        return None  # joined with the indexer's weights, which are never quantized
    if not isinstance(item.weight_format, Fp8Block):
        return item.weight_format
    tile = item.weight_format
    if tile.scale_dtype == "bfloat16":
        tile = replace(tile, scale_dtype="float32")
    if not tensor.expert:
        return tile
    # Tiles that do not divide a rank's part of the experts are cut into smaller squares
    # (fused_moe/oracle/fp8.py:refine_fp8_moe_block_shape).
    width, hidden = shape if not tensor.role.endswith(".down") else shape[::-1]
    if width % tile.block_rows == 0 and width % tile.block_cols == 0:
        return tile
    side = gcd(tile.block_rows, tile.block_cols, width, hidden)
    return replace(tile, block_rows=side, block_cols=side) if side >= _LEAST_TILE else tile


def _list_parameters(
    weights: RankWeights, entry: Entry, sizes: tuple[int, int, int], copies: int
) -> None:
    """Add a tensor, and its scales, to the parameters of its block's layer."""
    tensor, (weight, scale, pad) = entry.tensor, sizes
    block = entry.block if entry.section in ("layers", "mtp") else entry.section
    listed = weights.layer_parameters.setdefault(block, [])
    for size, padding, is_scale in ((weight, pad, False), (scale, 0, True)):
        if is_scale and not size:
            continue
        found = None
        if tensor.fused:
            key = (tensor.fused, entry.layers, is_scale)
            found = next((p for p in listed if (p.name, p.layers, p.is_scale) == key), None)
        if found is not None:
            found.size_bytes += (size + padding) * copies
            found.padding_bytes += padding * copies
            continue
        # All local experts lie in one tensor.
        joined = copies if tensor.expert or tensor.fused else 1
        parameter = Parameter(
            tensor.fused or tensor.role,
            tensor.group,
            entry.layers,
            (size + padding) * joined,
            padding * joined,
            is_scale,
            tensor.expert,
        )
        listed += [replace(parameter) for _ in range(1 if joined > 1 else copies)]


def _collect(
    fused: dict[tuple[str, tuple[int, ...], str], tuple[int, list[int]]],
    entry: Entry,
    count: int,
    size: int,
    copies: int,
    part: str = "",
) -> None:
    """Add a tensor to the allocation it becomes a part of."""
    tensor = entry.tensor
    key = (entry.block, entry.layers, f"{tensor.fused or tensor.role}/{part}")
    _, sizes = fused.setdefault(key, (count, []))
    if tensor.expert:  # all local experts lie in one tensor
        size, copies = size * copies, 1
    if tensor.fused and sizes:
        sizes[0] += size
    else:
        sizes.extend([size] * copies)
