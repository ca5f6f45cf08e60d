"""LoRA in vLLM: stacked A and B matrices for every linear layer, as many as adapters at once.

    slice of a layer:  max_loras * (r * in + out * r) * 2 bytes, r = max_lora_rank

Joined projections have one pair for each part. Column-parallel layers hold A whole and their rows
of B, row-parallel ones their columns of A and B whole; with fully sharded LoRA the other matrix is
split as well. Experts have their pairs each. vLLM 0.32.0 lora/layers/, lora/model_manager.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.core.errors import InvalidDeploymentError, UnsupportedError
from moesize.core.inventory import moe_of
from moesize.core.ledger import MemoryItem, exact_item
from moesize.core.records import dataclass
from moesize.core.units import round_up
from moesize.core.vllm_ranks import DEFAULT_ALL2ALL, sequence_parallel
from moesize.core.vllm_weights import Sharding, Stage, local_shape
from moesize.core.weight_formats import Mxfp4

if TYPE_CHECKING:
    from moesize.core.checkpoint import StoredEntry
    from moesize.core.deployment import Layout, Request
    from moesize.core.inventory import Entry
    from moesize.core.model_spec import ModelSpec
    from moesize.core.tensors import Tensor
    from moesize.core.vllm_ranks import Rank
    from moesize.core.vllm_settings import VllmSettings

# config/lora.py: MaxLoRARanks, max_loras.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_DEFAULT_RANK = 16
# Parts of one tensor of the inventory that have a pair each: queries, keys and values of linear
# attention; gate, x and steps of Mamba-2, and its B and C.
_SLICES = {"attention.linear.qkv": 3, "attention.linear.in_groups": 2}
_MAMBA2_SLICES = {"attention.linear.in": 3, "attention.linear.conv": 2}
# Mamba-2's joined layers take no fully sharded adapter, and then none at all.
_UNSHARDED = ("attention.linear.in", "attention.linear.conv")
_OTHER_SLICES = {"mamba1": 2, "short_conv": 3}
# Tensors that are no linear layer of vLLM, or that it leaves alone.
_WITHOUT = ("attention.indexer", "attention.sinks", "router.bias", "other.", "norms.")
# Models whose adapters join gate and up of an expert, and share one A (is_3d_moe_weight).
_JOINED_EXPERTS = (
    "glm4_moe_lite", "gpt_oss", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_vl_moe",
    "qwen3_vl_moe_text",
)  # fmt: skip
# Models whose classes name embedding modules: embedding and head take an adapter, in others not.
_WITH_VOCABULARY = frozenset(
    (
        "apertus", "cohere", "cohere2", "exaone", "exaone4", "exaone_moe", "falcon_h1", "granite",
        "granitemoe", "granitemoehybrid", "granitemoeshared", "jamba", "lfm2", "lfm2_moe", "llama",
        "minicpm", "mixtral", "nemotron", "nemotron_h", "phimoe", "qwen3", "qwen3_5",
        "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe", "qwen3_vl",
        "qwen3_vl_moe", "qwen3_vl_moe_text", "qwen3_vl_text", "solar",
    )
)  # fmt: skip
# The kernels that take adapters beside MXFP4 experts are Marlin's, with these tiles.
_MXFP4_TILES = (128, 256)
_SOURCE = "vLLM 0.32.0 lora/layers/*.py:create_lora_weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Adapters as asked for: `rank` and `slots` are --max-lora-rank and --max-loras.

    cpu_slots   --max-cpu-loras; vLLM's default is --max-loras
    """

    rank: int
    slots: int
    cpu_slots: int
    fully_sharded: bool = False
    element_bytes: int = 2
    targets: tuple[str, ...] | None = None

    def items(
        self, spec: ModelSpec, stored: tuple[StoredEntry, ...], rank: Rank
    ) -> list[MemoryItem]:
        """What the adapters' matrices take on a rank, by group of the model."""
        totals = {"attention": 0, "experts": 0, "mlp": 0, "vocabulary": 0}
        for item in stored:
            tensor, section = item.entry.tensor, item.entry.section
            count = rank.stage.count(item.entry, spec)
            if not count or section in ("tower", "mtp", "stored") or not self._takes(spec, tensor):
                continue
            shape, copies = local_shape(spec, item.entry, rank.sharding)
            if tensor.expert and isinstance(item.weight_format, Mxfp4):
                shape = _padded(tensor, shape)
            elements = self._elements(spec, item.entry, shape, rank.sharding) * count
            totals[_group(tensor)] += elements * (copies if tensor.expert else tensor.copies)
        totals["vocabulary"] += self._vocabulary_elements(spec, rank.stage)
        bytes_each = self.slots * self.element_bytes
        words = f"{self.slots} adapters x rank {self.rank} x {self.element_bytes} bytes"
        return [
            exact_item(
                f"lora.{name}",
                "lora",
                elements * bytes_each,
                f"{words} x ({elements // self.rank:,} rows of A and columns of B)",
                _SOURCE,
            )
            for name, elements in totals.items()
            if elements
        ]

    def host_item(
        self, spec: ModelSpec, stored: tuple[StoredEntry, ...], workers: int
    ) -> MemoryItem:
        """Adapters that every worker keeps in host memory, unsplit; at most as large as `rank`."""
        whole = Sharding()
        stage = Stage(0, range(spec.num_layers), first=True, last=True)
        elements = 0
        for item in stored:
            count = stage.count(item.entry, spec)
            if count and item.entry.section == "layers" and self._takes(spec, item.entry.tensor):
                shape, copies = local_shape(spec, item.entry, whole)
                elements += self._elements(spec, item.entry, shape, whole) * copies * count
        size = elements * self.element_bytes * self.cpu_slots * workers
        return MemoryItem(
            name="lora.adapters",
            category="lora",
            size_bytes=size,
            low_bytes=0,
            high_bytes=size,
            formula=f"{self.cpu_slots} adapters x {workers} workers, each of rank {self.rank} for "
            f"every layer: {elements * self.element_bytes:,} bytes",
            source="vLLM 0.32.0 lora/model_manager.py:capacity, lora/lora_model.py",
        )

    def _takes(self, spec: ModelSpec, tensor: Tensor) -> bool:
        if tensor.group in ("embedding", "lm_head"):
            return False  # counted by `_vocabulary_elements`
        if tensor.role.startswith(_WITHOUT) or tensor.role.endswith(".bias"):
            return False
        if self.fully_sharded and tensor.fused in _UNSHARDED:
            return False
        if tensor.group == "router" and not _has_gates(spec):
            return False
        if self.targets is not None and _module(tensor) not in self.targets:
            return False
        conv = tensor.role.startswith("attention.linear.conv")
        return tensor.matmul or (conv and len(tensor.shape) > 1)

    def _elements(
        self, spec: ModelSpec, entry: Entry, shape: tuple[int, ...], sharding: Sharding
    ) -> int:
        """Elements of A and B of one copy of a tensor on a rank, for one adapter."""
        tensor = entry.tensor
        out, inner = shape[0], shape[-1]
        of_a = of_b = self.rank
        ranks = sharding.tensor_parallel_size
        if tensor.expert:
            ranks = 1 if sharding.expert_parallel else sharding.expert_ranks
        if self.fully_sharded and tensor.shard is not None:
            if tensor.shard.dim == 0:
                of_a //= ranks
            else:
                out //= ranks
        slices = _slices(spec, entry)
        if tensor.role == "routed_experts.up" and _joins(spec):
            slices = 0  # gate and up share one A
        return slices * of_a * inner + out * of_b

    def _vocabulary_elements(self, spec: ModelSpec, stage: Stage) -> int:
        """Embedding (A of V x r, B of H x r) and head (A of r x H, B of V x r), on every rank."""
        if not {spec.model_type, spec.text_type} & _WITH_VOCABULARY or self.targets is not None:
            return 0
        one = (spec.embedding.vocab_size + spec.hidden_size) * self.rank
        return one * (stage.first + (stage.last and spec.embedding.has_head))


def plan_lora(request: Request, settings: VllmSettings, layout: Layout) -> Lora | None:
    """The adapters a request asks for; None without any.

    Raises InvalidDeploymentError for what vLLM refuses.
    """
    if request.lora_rank is None and request.max_loras is None:
        return None
    rank, slots = request.lora_rank or _DEFAULT_RANK, request.max_loras or 1
    if rank not in _RANKS:
        raise InvalidDeploymentError(
            f"vLLM takes no --max-lora-rank {rank}",
            f"use one of {', '.join(map(str, _RANKS))}: the least that holds your adapters",
        )
    if settings.max_cpu_loras is not None and settings.max_cpu_loras < slots:
        raise InvalidDeploymentError(
            f"max_cpu_loras ({settings.max_cpu_loras}) is below max_loras ({slots})",
            "leave it out, or raise it",
        )
    if layout.expert_parallel and (
        sequence_parallel(layout, settings)
        or settings.all2all_backend not in (None, DEFAULT_ALL2ALL)
    ):
        raise InvalidDeploymentError(
            "vLLM takes LoRA of experts with expert parallelism only where tokens are not split "
            f"over tensor-parallel ranks, and with {DEFAULT_ALL2ALL}",
            "use --tp 1 or --dp 1, or drop --ep",
        )
    sharded = bool(settings.fully_sharded_loras)
    if sharded and layout.expert_parallel:
        raise InvalidDeploymentError(
            "vLLM takes fully sharded LoRA of experts without expert parallelism only",
            "drop --ep or --fully-sharded-loras",
        )
    if sharded and rank % layout.tensor_parallel_size:
        raise InvalidDeploymentError(
            f"--max-lora-rank {rank} does not divide over --tp {layout.tensor_parallel_size}",
            "drop --fully-sharded-loras",
        )
    for name in ("enable_tower_connector_lora", "enable_moe_shared_loras"):
        if getattr(settings, name):
            raise UnsupportedError(f"--{name.replace('_', '-')} is not planned", "leave it out")
    return Lora(
        rank=rank,
        slots=slots,
        cpu_slots=settings.max_cpu_loras or slots,
        fully_sharded=sharded,
        targets=settings.lora_target_modules,
    )


def _slices(spec: ModelSpec, entry: Entry) -> int:
    """Parts of a tensor that have an A of their own."""
    role = entry.tensor.role
    if role in _MAMBA2_SLICES and entry.tensor.fused:
        return _MAMBA2_SLICES[role]
    if role == "attention.linear.in":
        kinds = {mixer.kind for mixer in spec.block(entry.block).mixers}
        return next((count for kind, count in _OTHER_SLICES.items() if kind in kinds), 1)
    return _SLICES.get(role, 1)


def _padded(tensor: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    inner, hidden = _MXFP4_TILES
    tiles = (hidden, inner) if tensor.role.endswith(".down") else (inner, hidden)
    return tuple(round_up(size, tile) for size, tile in zip(shape, tiles, strict=True))


def _group(tensor: Tensor) -> str:
    if tensor.expert:
        return "experts"
    return "attention" if tensor.group == "attention" else "mlp"


def _joins(spec: ModelSpec) -> bool:
    return bool({spec.model_type, spec.text_type} & set(_JOINED_EXPERTS))


def _has_gates(spec: ModelSpec) -> bool:
    """Routers of experts without a gate projection (Nemotron-H) take no adapter."""
    return any(
        tensor.role == "routed_experts.gate"
        for block in spec.blocks
        if moe_of(block) is not None
        for tensor in spec.block_tensors[block.name]
    )


# Last part of a role -> module suffix of vLLM (--lora-target-modules).
_MODULES = {
    "attention.q": "qkv_proj",
    "attention.k": "qkv_proj",
    "attention.v": "qkv_proj",
    "attention.o": "o_proj",
    "attention.q_a": "fused_qkv_a_proj",
    "attention.q_b": "q_b_proj",
    "attention.kv_a": "kv_a_proj_with_mqa",
    "attention.kv_b": "kv_b_proj",
    "router.weight": "gate",
}


def _module(tensor: Tensor) -> str:
    """Module suffix of a tensor in vLLM."""
    if tensor.expert:
        return "experts"
    end = tensor.role.rpartition(".")[2]
    if end in ("gate", "up"):
        return "gate_up_proj"
    return _MODULES.get(tensor.role, f"{end}_proj")
