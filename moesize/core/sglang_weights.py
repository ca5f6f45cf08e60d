"""Weights of one rank as SGLang lays them out.

Tensors are split as vLLM splits them (SGLang's layers descend from vLLM's), but by different
numbers of ranks: attention by its group, experts by --ep-size and the ranks that are left, dense
layers, embedding and head by groups of their own once attention is data-parallel. Each class of
tensors is handed to `rank_weights` with its own number of ranks.

SGLang 0.5.23 `srt/layers/dp_attention.py`, `srt/layers/moe/fused_moe_triton/layer.py`,
`srt/models/deepseek_v2.py`, `srt/distributed/utils.py`.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from moesize.core.errors import InvalidDeploymentError
from moesize.core.inventory import moe_of
from moesize.core.records import dataclass
from moesize.core.units import MIB, ceil_div, round_up
from moesize.core.vllm_weights import RankWeights, Stage, rank_weights

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moesize.core.checkpoint import StoredEntry
    from moesize.core.inventory import Entry
    from moesize.core.model_spec import ModelSpec

# Model classes that create the head on every pipeline stage (srt/models/*.py, 0.5.23).
_HEAD_ON_EVERY_STAGE = (
    "apertus",
    "arcee",
    "bailing_moe",
    "exaone4",
    "exaone_moe",
    "glm4_moe",
    "glm4_moe_lite",
    "gpt_oss",
    "granitemoehybrid",
    "llama",
    "mixtral",
    "nemotron-nas",
    "opt",
    "phi",
    "qwen2_moe",
    "qwen3_moe",
    "qwen3_next",
    "starcoder2",
)
_CUDA_ROTARY_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRanks:
    """Over how many ranks each class of tensors is split.

    experts            ranks that share out whole experts; expert_width those that split each
    redundant_experts  copies beyond one of each expert, over all ranks
    """

    attention: int
    dense: int
    shared_experts: int
    embedding: int
    head: int
    experts: int = 1
    expert_width: int = 1
    redundant_experts: int = 0


def sglang_stages(
    num_layers: int, pipeline_parallel_size: int, *, rest_last: bool
) -> tuple[Stage, ...]:
    """Layers of every pipeline stage: L // p each, one more on the last L % p stages.

    `rest_last`: the whole remainder on the last stage (up to 0.5.5). Raises InvalidDeploymentError.
    """
    if pipeline_parallel_size > num_layers:
        raise InvalidDeploymentError(
            f"pipeline parallel size {pipeline_parallel_size} exceeds the {num_layers} layers"
        )
    each, rest = divmod(num_layers, pipeline_parallel_size)
    stages, start = [], 0
    for index in range(pipeline_parallel_size):
        last = index == pipeline_parallel_size - 1
        extra = (rest if last else 0) if rest_last else int(index >= pipeline_parallel_size - rest)
        layers = range(start, start + each + extra)
        stages.append(Stage(index, layers, first=index == 0, last=last))
        start = layers.stop
    return tuple(stages)


def sglang_weights(
    spec: ModelSpec,
    stored: tuple[StoredEntry, ...],
    ranks: WeightRanks,
    stage: Stage,
    *,
    compute_capability: str | None = None,
    rocm: bool = False,
    latent_copy_bytes: int = 2,
) -> RankWeights:
    """Bytes on the fullest rank of a stage.

    Attention with latents keeps its up-projection and, beside it, both absorbed matrices as copies
    of `latent_copy_bytes` per element (1 where they stay FP8).
    Raises InvalidDeploymentError when a size does not divide the model.
    """
    whole = Stage(0, stage.layers, first=True, last=True)
    here = [item for item in stored if _is_here(spec, item.entry, stage)]
    return _sum(spec, here, ranks, whole, compute_capability, rocm, latent_copy_bytes)


def mtp_weights(
    spec: ModelSpec,
    stored: tuple[StoredEntry, ...],
    ranks: WeightRanks,
    *,
    compute_capability: str | None = None,
    rocm: bool = False,
    latent_copy_bytes: int = 2,
) -> RankWeights:
    """The model's own MTP blocks on one rank; embedding and head are the model's.

    SGLang 0.5.23 models/deepseek_nextn.py and others: set_embed_and_head.
    """
    layers = range(spec.num_layers, spec.num_layers + len(spec.mtp.layers if spec.mtp else ()))
    here = [
        replace(item, entry=replace(item.entry, section="layers", layers=item.entry.layers))
        for item in stored
        if item.entry.section == "mtp"
    ]
    stage = Stage(0, layers, first=True, last=True)
    return _sum(spec, here, ranks, stage, compute_capability, rocm, latent_copy_bytes)


def rotary_bytes(spec: ModelSpec) -> int:
    """cos/sin tables of a rank: positions x rotary size x 4, kept in float32 on CUDA.

    SGLang 0.5.23 srt/layers/rotary_embedding: `cache` is converted on other devices only.
    """
    return sum(
        table.positions * table.rotary_dim * _CUDA_ROTARY_BYTES * table.copies
        for table in spec.rotary
    )


def _is_here(spec: ModelSpec, entry: Entry, stage: Stage) -> bool:
    match entry.section:
        case "layers":
            return any(layer in stage.layers for layer in entry.layers)
        case "embedding" | "encoder":
            return stage.first or (stage.last and spec.embedding.tied)
        case "final":
            everywhere = entry.tensor.group == "lm_head" and any(
                kind in _HEAD_ON_EVERY_STAGE for kind in (spec.model_type, spec.text_type)
            )
            return stage.last or everywhere
        case "tower":
            return True
        case _:
            return False


def _sum(
    spec: ModelSpec,
    items: Iterable[StoredEntry],
    ranks: WeightRanks,
    stage: Stage,
    compute_capability: str | None,
    rocm: bool,
    latent_copy_bytes: int,
) -> RankWeights:
    """Sum over groups of tensors that become one allocation, each with its own ranks."""
    groups: dict[tuple[str, tuple[int, ...], str, int], list[StoredEntry]] = {}
    total = RankWeights()
    for item in items:
        tensor = item.entry.tensor
        split = _split(item.entry, ranks)
        if tensor.expert:
            local = ceil_div(tensor.copies + _redundant(spec, item, ranks), ranks.experts)
            entry = replace(item.entry, tensor=replace(tensor, copies=local))
            item = replace(item, entry=entry)
        # Biases of MXFP4 experts are padded by what their matrices are: keep a layer's together.
        name = "experts" if tensor.expert else tensor.fused or tensor.role
        key = (item.entry.block, item.entry.layers, name, split)
        groups.setdefault(key, []).append(item)
        if tensor.role == "attention.kv_b":
            times = sum(layer in stage.layers for layer in item.entry.layers)
            width = latent_copy_bytes if item.weight_format is not None else 2
            total.latent_copy_bytes += prod(tensor.shape) // split * width * times
    for (_, layers, _, split), members in groups.items():
        part = rank_weights(
            spec,
            tuple(members),
            tensor_parallel_size=split,
            compute_capability=compute_capability,
            rocm=rocm,
            stage=stage,
        )
        count = sum(layer in stage.layers for layer in layers) or 1
        if len({item.entry.tensor.fused or item.entry.tensor.role for item in members}) == 1:
            # Free memory is what the engine looks at, so that whole segments count.
            size = (part.parameter_bytes - part.scale_bytes) // count
            part.rounding_bytes = (segment_bytes(size) - size) * count
        _add(total, part)
    return total


_SEGMENT_BYTES = 20 * MIB


def segment_bytes(tensor_bytes: int) -> int:
    """Device memory behind a tensor: its share of a segment of torch's caching allocator.

    Up to 1 MiB as allocated; below 10 MiB as many as fit share 20 MiB; from there on a segment of
    its own in steps of 2 MiB. pytorch `c10/core/AllocatorConfig.h`.
    """
    if tensor_bytes <= MIB:
        return round_up(tensor_bytes, 512)
    if tensor_bytes < _SEGMENT_BYTES // 2:
        return _SEGMENT_BYTES // (_SEGMENT_BYTES // round_up(tensor_bytes, 512))
    return round_up(tensor_bytes, 2 * MIB)


def _redundant(spec: ModelSpec, item: StoredEntry, ranks: WeightRanks) -> int:
    """Redundant copies of one of an expert's tensors (an expert may have several of a kind)."""
    moe = moe_of(spec.block(item.entry.block))
    if moe is None or not ranks.redundant_experts:
        return 0
    return ranks.redundant_experts * item.entry.tensor.copies // moe.num_experts


def _split(entry: Entry, ranks: WeightRanks) -> int:
    group = entry.tensor.group
    if entry.tensor.expert:
        return ranks.expert_width
    if entry.section == "embedding":
        return ranks.embedding
    if entry.section == "final":
        return ranks.head if group == "lm_head" else ranks.attention
    if group == "dense_mlp":
        return ranks.dense
    if group == "shared_experts":
        return ranks.shared_experts
    return ranks.attention


def _add(total: RankWeights, part: RankWeights) -> None:
    for group, size in part.by_group.items():
        total.by_group[group] += size
    total.scale_bytes += part.scale_bytes
    total.padding_bytes += part.padding_bytes
    total.rounding_bytes += part.rounding_bytes
    total.largest_module_bytes = max(total.largest_module_bytes, part.largest_module_bytes)
