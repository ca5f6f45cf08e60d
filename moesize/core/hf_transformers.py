"""transformers with accelerate: weights by module, a cache that grows, one forward pass.

There is no budget and no pool: whatever a sequence needs is allocated while it runs. The ledger
holds a prompt of the whole planned context, because that is when memory is fullest. Formulas were
read in transformers 4.57.6 to 5.23.0 (`modeling_utils.py`, `cache_utils.py`, `integrations/moe.py`,
`integrations/accelerate.py`) and accelerate 1.15.0 (`utils/modeling.py`).

Symbols: B sequences, n tokens of a sequence, H hidden size, F feed-forward width, k experts per
token, N query heads, d head size, V vocabulary, b bytes per element.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Literal

from moesize.core.allocator import allocated_bytes
from moesize.core.attention import GroupedQueryAttention, LatentAttention
from moesize.core.checkpoint import keep
from moesize.core.deployment import COMMON_FIELDS
from moesize.core.engine import Constant, Constants, EngineAnswer, EngineProfile, RankCost
from moesize.core.errors import InvalidDeploymentError, UnsupportedError
from moesize.core.feed_forward import DenseMlp
from moesize.core.inventory import moe_of
from moesize.core.ledger import GpuLedger, MemoryItem, exact_item
from moesize.core.plan import KvSummary, Note
from moesize.core.records import dataclass
from moesize.core.units import format_bytes, format_gib, largest_that
from moesize.core.weight_formats import number_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moesize.core.checkpoint import StoredEntry
    from moesize.core.deployment import Request
    from moesize.core.gpu import GpuSpec
    from moesize.core.mixers import Mixer
    from moesize.core.model_spec import Block, ModelSpec

Attention = Literal["sdpa", "eager", "flash_attention_2"]
Experts = Literal["grouped_mm", "eager"]
LatentCache = Literal["expanded", "latent"]

# integrations/accelerate.py:get_balanced_memory: room for the largest module on every GPU.
_BALANCE_NUMERATOR, _BALANCE_DENOMINATOR = 5, 4
# The same: a single GPU is filled to 90 % when the user gives no max_memory.
_SINGLE_GPU_PERCENT = 90
_FLOAT_BYTES = 4
_INDEX_BYTES = 8
_SOURCE = "transformers 5.23.0 "
# Constants that every GPU pays.
_RUNTIME = ("cuda_context", "library_workspaces")

PLANS = COMMON_FIELDS


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersSettings:
    """What `from_pretrained` and `generate` are told; None = their default.

    device_map     "auto" lets accelerate share layers out over GPUs and then the host; "cuda" puts
                   the whole model on one GPU
    all_logits     logits of every position (a plain forward call), not of the last (`generate`)
    """

    attn_implementation: Attention = "sdpa"
    experts_implementation: Experts | None = None
    device_map: Literal["auto", "cuda"] | None = None
    all_logits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersRules:
    """What differs between versions.

    stacks_experts   the experts of a layer are one tensor (5.0) instead of one per expert
    latent_cache     MLA caches the latent (5.15) or the keys and values of all heads
    """

    version: str
    constants: Constants
    stacks_experts: bool
    latent_cache: LatentCache
    experts_implementation: Experts


def rules_of(profile: EngineProfile) -> TransformersRules:
    """The planner's view of what the data files say about a version."""
    facts = profile.facts
    return TransformersRules(
        version=profile.version,
        constants=profile.constants,
        stacks_experts=facts["stacks_experts"],
        latent_cache=facts["latent_cache"],
        experts_implementation=facts["experts_implementation"],
    )


class _Module:
    """A piece that accelerate places as a whole: the embedding, a layer, the head, a tower."""

    __slots__ = ("allocated", "by_group", "layer", "name", "scales", "weights")

    def __init__(self, name: str, layer: int | None = None) -> None:
        self.name, self.layer = name, layer
        self.allocated = self.weights = self.scales = 0
        self.by_group: dict[str, int] = {}

    def add(self, group: str, weight_bytes: int, scale_bytes: int, allocated: int) -> None:
        self.weights += weight_bytes + scale_bytes
        self.scales += scale_bytes
        self.allocated += allocated
        self.by_group[group] = self.by_group.get(group, 0) + weight_bytes


def plan_transformers(
    spec: ModelSpec,
    stored: tuple[StoredEntry, ...],
    gpu: GpuSpec,
    request: Request,
    rules: TransformersRules,
) -> EngineAnswer:
    """Plan `model.generate` on `num_gpus` equal GPUs.

    Raises InvalidDeploymentError for settings that transformers refuses, UnsupportedError for what
    is not known.
    """
    settings = request.engine_settings or TransformersSettings()
    if not isinstance(settings, TransformersSettings):
        raise UnsupportedError("these engine settings are not those of transformers")
    if request.kv_dtype not in (None, "auto"):
        raise UnsupportedError(
            "transformers keeps its cache in the model's dtype; quantized caches are not planned",
            "leave --kv-dtype out",
        )
    context = request.context_tokens or spec.max_context
    if context > spec.max_context:
        raise InvalidDeploymentError(
            f"context {context:,} is longer than the {spec.max_context:,} tokens of {spec.title}",
            f"use --context {spec.max_context} or less",
        )
    sequences = request.concurrency or 1
    usable = gpu.usable_memory()
    constants = rules.constants
    device_context = constants["cuda_context"]
    modules = keep(
        spec,
        stored,
        ("transformers_modules", rules.stacks_experts),
        lambda: _modules(spec, stored, rules),
    )
    device_map = settings.device_map or ("auto" if request.num_gpus > 1 else "cuda")
    free = usable.best_bytes - round(device_context.value)
    places, host = _place(modules, request.num_gpus, free, device_map)
    forward = _Forward(spec, rules, settings)
    weights = [_weight_items(held) for held in places]
    ledgers = tuple(
        GpuLedger(
            rank=rank,
            pp_stage=rank,
            usable_bytes=usable.best_bytes,
            budget_bytes=usable.best_bytes,
            items=tuple(
                weights[rank]
                + _items(held, forward, rules, context, sequences, last=_is_last(rank, places))
            ),
        )
        for rank, held in enumerate(places)
    )
    limiting = min(range(len(ledgers)), key=lambda rank: ledgers[rank].headroom_bytes)
    ledger, held = ledgers[limiting], places[limiting]
    needed = ledger.category_bytes("kv_cache")
    beside = [item for item in ledger.items if item.category != "kv_cache"]
    available = usable.best_bytes - sum(item.size_bytes for item in beside)
    per_token, fixed = forward.cache_bytes(held)

    rooms = _rooms(places, weights, spec, usable.best_bytes)

    def fits(tokens: int) -> bool:
        return all(
            _beside_bytes(dict(kinds), forward, rules, tokens, sequences, last=last) <= room
            for (kinds, last), room in rooms.items()
        )

    longest = largest_that(fits, spec.max_context)
    capacity = max(0, available - fixed * sequences) // per_token if per_token else 0
    by_group: dict[str, int] = {}
    for module in held:
        for group, size in module.by_group.items():
            by_group[group] = by_group.get(group, 0) + size
    layers = {module.layer for module in held if module.layer is not None}
    return EngineAnswer(
        deployment={
            "engine": "transformers",
            "engine_version": rules.version,
            "gpu": gpu.id,
            "gpu_name": gpu.name,
            "gpu_count": request.num_gpus,
            "tp": 1,
            "pp": len(places),
            "dp": 1,
            "ep": False,
            "context": context,
            "concurrency": sequences,
            "kv_dtype": forward.dtype,
            "gpu_memory_utilization": None,
            "max_num_seqs": None,
            "max_num_batched_tokens": None,
            "block_size": None,
            "enforce_eager": True,
            "kv_cache_memory_bytes": None,
            "attention_backend": settings.attn_implementation,
            "moe_backend": forward.experts if forward.has_experts else None,
            "engine_settings": {
                "device_map": device_map,
                "all_logits": settings.all_logits,
                "mla_cache": rules.latent_cache if forward.has_latent else None,
            },
        },
        defaulted=tuple(
            name
            for name, value in (
                ("engine_version", request.engine_version),
                ("context", request.context_tokens),
                ("concurrency", request.concurrency),
                ("kv_dtype", request.kv_dtype),
            )
            if value is None
        ),
        ledgers=ledgers,
        kv=KvSummary(
            bytes_per_token=per_token,
            state_bytes_per_sequence=fixed,
            block_tokens=1,
            blocks=capacity,
            available_bytes=available,
            available_low_bytes=usable.best_bytes - sum(item.high_bytes for item in beside),
            available_high_bytes=usable.best_bytes - sum(item.low_bytes for item in beside),
            needed_bytes=needed,
            capacity_tokens=capacity,
            max_concurrency=capacity / context,
            max_context=longest,
            dtype=forward.dtype,
            backend=settings.attn_implementation,
        ),
        limiting_rank=limiting,
        limiting=RankCost(
            weights_by_group=by_group,
            scale_bytes=sum(module.scales for module in held),
            parameter_bytes=sum(module.weights for module in held),
            num_layers=len(layers),
            recurrent_bytes=forward.recurrent_bytes(layers),
        ),
        warnings=tuple(_warnings(places, host, request)),
        host=_host_items(host),
    )


def _is_last(rank: int, places: list[list[_Module]]) -> bool:
    return rank == len(places) - 1


def prompt_peak(
    spec: ModelSpec, rules: TransformersRules, tokens: int, sequences: int, *, eager: bool
) -> tuple[int, int, int, str]:
    """(best, low, high, moment) bytes of the worst moment of a prompt beside weights and cache.

    The item `activations.peak` of a plan, for all layers on one GPU. eager: attention makes the
    whole matrix of scores, which some classes do whatever is asked for.
    """
    settings = TransformersSettings(attn_implementation="eager" if eager else "sdpa")
    forward = _Forward(spec, rules, settings)
    peak, moment = forward.peak(set(spec.layout), tokens, sequences, last=True)
    return (*_band(rules.constants["forward_activation_factor"], peak), moment)


def state_sizes(mixer: Mixer, element_bytes: int) -> list[int]:
    """Bytes of the tensors that a recurrent layer keeps of a sequence.

    A convolution of k keeps k inputs in the model's type, where engines keep k - 1; the recurrent
    state is float32, as its kernels leave it (cache_utils.py:LinearAttentionLayer). Measured equal
    on classes of ten families with transformers 5.23.0.
    """
    return [
        (part.shape[0] + 1) * prod(part.shape[1:]) * element_bytes
        if part.name.startswith("conv")
        else prod(part.shape) * _FLOAT_BYTES
        for part in mixer.state()
    ]


def _modules(
    spec: ModelSpec, stored: tuple[StoredEntry, ...], rules: TransformersRules
) -> list[_Module]:
    """What the model class allocates, in the order in which accelerate places it."""
    embedding = _Module("embedding")
    layers = [_Module(f"layer {index}", index) for index in range(spec.num_layers)]
    head = _Module("head")
    towers = _Module("towers")
    encoder = _Module("encoder")
    for item in stored:
        entry, tensor = item.entry, item.entry.tensor
        if entry.section in ("mtp", "stored"):
            continue
        whole, scales = item.file_bytes // entry.count, item.scale_bytes // entry.count
        if tensor.expert and rules.stacks_experts and not item.is_quantized:
            allocated = allocated_bytes(whole)
        else:
            allocated = allocated_bytes(whole // tensor.copies) * tensor.copies
        if entry.section == "layers":
            for index in entry.layers:
                layers[index].add(tensor.group, whole - scales, scales, allocated)
        else:
            place = {"embedding": embedding, "tower": towers, "encoder": encoder}
            module = place.get(entry.section, head)
            for _ in range(entry.count):
                module.add(tensor.group, whole - scales, scales, allocated)
    rotary = sum(allocated_bytes(table.rotary_dim // 2 * _FLOAT_BYTES) * 2 for table in spec.rotary)
    # The model keeps inverse frequencies only; tables are made anew in every pass.
    embedding.allocated += rotary
    return [m for m in (towers, encoder, embedding, *layers, head) if m.allocated]


def _place(
    modules: list[_Module], num_gpus: int, free_bytes: int, device_map: str
) -> tuple[list[list[_Module]], list[_Module]]:
    """Modules on every GPU and on the host.

    `per_gpu = total / GPUs + 1.25 * largest module`, the last GPU takes what it has free; the first
    keeps room for the largest module still to come (accelerate 1.15.0 `infer_auto_device_map`).
    """
    if device_map != "auto":
        if num_gpus > 1:
            raise InvalidDeploymentError(
                "a model on one device does not use several GPUs", "use device_map auto"
            )
        return [modules], []
    largest = max(module.weights for module in modules)
    share = sum(module.weights for module in modules) // num_gpus
    share += largest * _BALANCE_NUMERATOR // _BALANCE_DENOMINATOR
    budgets = [min(share, free_bytes)] * (num_gpus - 1) + [free_bytes]
    if num_gpus == 1:
        budgets = [free_bytes * _SINGLE_GPU_PERCENT // 100]
    places: list[list[_Module]] = [[] for _ in range(num_gpus)]
    host: list[_Module] = []
    used = [0] * num_gpus
    rank = 0
    for position, module in enumerate(modules):
        while rank < num_gpus:
            room = budgets[rank] - used[rank]
            if rank == 0:
                room -= max((later.weights for later in modules[position + 1 :]), default=0)
            if module.weights <= room:
                break
            rank += 1
        if rank == num_gpus:
            host.append(module)
        else:
            places[rank].append(module)
            used[rank] += module.weights
    return places, host


class _Forward:
    """Sizes of one forward pass and of the cache it leaves, by layer."""

    def __init__(
        self, spec: ModelSpec, rules: TransformersRules, settings: TransformersSettings
    ) -> None:
        self.spec, self.rules, self.settings = spec, rules, settings
        self.dtype = spec.dtype
        self.element = number_bytes(spec.dtype, 1)
        self.experts: Experts = settings.experts_implementation or rules.experts_implementation
        self.has_experts = any(moe_of(block) is not None for block in spec.blocks)
        self.has_latent = any(
            isinstance(mixer, LatentAttention) for block in spec.blocks for mixer in block.mixers
        )
        self._caches = {block.name: self._cache(block) for block in spec.blocks}

    def _cache(self, block: Block) -> list[int]:
        """Bytes per token of the tensors that a layer keeps while a prompt runs.

        Of a window too: the slice of its last w - 1 tokens is a view (DynamicSlidingWindowLayer),
        which holds on to the keys and values of the whole prompt until the next token is added.
        """
        out: list[int] = []
        for mixer in block.mixers:
            if isinstance(mixer, LatentAttention) and self.rules.latent_cache == "expanded":
                key = mixer.qk_nope_head_dim + mixer.qk_rope_head_dim
                out.append(mixer.num_heads * key * self.element)
                out.append(mixer.num_heads * mixer.v_head_dim * self.element)
                continue
            for cache in mixer.cache():
                if cache.ratio > 1:
                    raise UnsupportedError(
                        f"{self.spec.title}: the cache of compressed attention in transformers "
                        "is not known",
                        "plan it with --engine vllm",
                    )
                heads = max(1, cache.heads)
                out.append(heads * cache.key_size * self.element)
                if cache.value_size:
                    out.append(heads * cache.value_size * self.element)
        return out

    def layer_cache(self, name: str, tokens: int, sequences: int) -> list[int]:
        """Allocated bytes of every cache tensor of a layer of that block."""
        block = self.spec.block(name)
        sizes = [sequences * size * tokens for size in self._caches[block.name]]
        for mixer in block.mixers:
            sizes += [sequences * size for size in state_sizes(mixer, self.element)]
        return [allocated_bytes(size) for size in sizes]

    def cache_bytes(self, held: list[_Module]) -> tuple[int, int]:
        """(bytes per further token, bytes of a sequence that do not grow) on one GPU."""
        layers = {module.layer for module in held if module.layer is not None}
        per_token = sum(sum(self._caches[self.spec.layout[layer]]) for layer in layers)
        return per_token, self.recurrent_bytes(layers)

    def recurrent_bytes(self, layers: set[int]) -> int:
        """States of linear attention and Mamba of one sequence."""
        return sum(
            size
            for layer in layers
            for mixer in self.spec.block(self.spec.layout[layer]).mixers
            for size in state_sizes(mixer, self.element)
        )

    def cache_sizes(self, kinds: dict[str, int], tokens: int, sequences: int) -> tuple[int, int]:
        """(bytes of the caches of so many layers of each block, the largest tensor of them)."""
        total = largest = 0
        for name, count in kinds.items():
            sizes = self.layer_cache(name, tokens, sequences)
            total += sum(sizes) * count
            largest = max(largest, *sizes, 0)
        return total, largest

    def peak(
        self, kinds: Iterable[str], tokens: int, sequences: int, *, last: bool
    ) -> tuple[int, str]:
        """Live tensors of a prompt at the worst moment, and which moment that is."""
        found = (0, "nothing")
        for name in sorted(kinds):
            for moment in self._moments(self.spec.block(name), tokens, sequences):
                found = max(found, moment)
        if last:
            rows = sequences * (tokens if self.settings.all_logits else 1)
            vocab = self.spec.embedding.vocab_size
            kept = sequences * tokens * self.spec.hidden_size * self.element
            size = kept + rows * vocab * (self.element + _FLOAT_BYTES)
            found = max(found, (size, f"logits of {rows:,} positions x {vocab:,} entries"))
        return found

    def _moments(self, block: Block, tokens: int, sequences: int) -> list[tuple[int, str]]:
        rows, hidden, b = sequences * tokens, self.spec.hidden_size, self.element
        # The residual stream and the normed copy that the module works on.
        stream = 2 * rows * hidden * b
        out: list[tuple[int, str]] = []
        for mixer in block.mixers:
            if isinstance(mixer, GroupedQueryAttention | LatentAttention):
                if isinstance(mixer, LatentAttention):
                    key = mixer.qk_nope_head_dim + mixer.qk_rope_head_dim
                    value, kv_heads = mixer.v_head_dim, mixer.num_heads
                else:
                    key, value, kv_heads = mixer.head_dim, mixer.v_head_dim, mixer.num_kv_heads
                heads = mixer.num_heads
                # Query and key before and after rotation, value, output.
                size = rows * b * (2 * heads * key + kv_heads * (2 * key + value) + heads * value)
                text = f"attention of {rows:,} tokens"
                if self.settings.attn_implementation == "eager":
                    # Scores, masked scores, float32 softmax, cast back; repeated keys and values.
                    size += sequences * heads * tokens * tokens * (3 * b + _FLOAT_BYTES)
                    size += rows * b * heads * (key + value)
                    text = f"score matrix of {heads} heads x {tokens:,} x {tokens:,}"
                out.append((stream + size, text))
        for feed_forward in block.feed_forwards:
            if isinstance(feed_forward, DenseMlp):
                out.append(self._mlp(stream, rows, feed_forward.intermediate_size))
        moe = moe_of(block)
        if moe is None:
            return out
        chosen, width = rows * moe.experts_per_token, moe.intermediate_size
        inner = moe.latent_size or hidden
        if moe.shared is not None:
            # The routed result is alive while the shared experts run.
            size, text = self._mlp(stream, rows, moe.shared.intermediate_size)
            out.append((size + rows * hidden * b, text))
        if self.experts == "grouped_mm":
            gathered = chosen * inner * b
            up = chosen * width * b * (4 if moe.gated else 2)
            combined = gathered + chosen * inner * 2 * _FLOAT_BYTES
            size = gathered + max(up, combined)
            text = f"{chosen:,} token-expert pairs, all experts at once"
        else:
            mask = (moe.num_experts + 1) * moe.experts_per_token * rows * _INDEX_BYTES
            busiest = rows  # an expert may be chosen by every token
            size = mask + rows * hidden * b + busiest * b * (3 * width + 2 * inner)
            text = f"one-hot mask of {moe.num_experts} experts and one expert's {busiest:,} tokens"
        out.append((stream + size, text))
        return out

    def _mlp(self, stream: int, rows: int, width: int) -> tuple[int, str]:
        size = stream + 3 * rows * width * self.element
        return size, f"MLP of {rows:,} tokens: gate, up and product, {width:,} wide"


def _items(
    held: list[_Module],
    forward: _Forward,
    rules: TransformersRules,
    tokens: int,
    sequences: int,
    *,
    last: bool,
) -> list[MemoryItem]:
    """What lies beside the weights when the prompt has so many tokens."""
    items: list[MemoryItem] = []
    kinds = _kinds(held, forward.spec)
    total, largest = forward.cache_sizes(kinds, tokens, sequences)
    if total:
        text = (
            f"{sequences} x {tokens:,} tokens in {sum(kinds.values())} layers, every tensor "
            "rounded as the allocator does; windows hold on to the whole prompt"
        )
        if forward.has_latent:
            text += f"; MLA: {rules.latent_cache} form"
        items.append(
            exact_item("kv_cache", "kv_cache", total, text, _SOURCE + "cache_utils.py:DynamicLayer")
        )
        growth = _band(rules.constants["cache_fragmentation"], total)
        items.append(
            MemoryItem(
                name="activations.cache_growth",
                category="activations",
                size_bytes=largest + growth[0],
                low_bytes=largest + growth[1],
                high_bytes=largest + growth[2],
                formula=(
                    f"{format_bytes(largest)}: a tensor is copied when a token is appended; "
                    "segments of outgrown copies stay with the allocator"
                ),
                source=rules.constants["cache_fragmentation"].source,
            )
        )
    peak, moment = forward.peak(kinds, tokens, sequences, last=last)
    best, low, high = _band(rules.constants["forward_activation_factor"], peak)
    items.append(
        MemoryItem(
            name="activations.peak",
            category="activations",
            size_bytes=best,
            low_bytes=low,
            high_bytes=high,
            formula=f"worst moment of a prompt of {sequences} x {tokens:,} tokens: {moment}",
            source=rules.constants["forward_activation_factor"].source,
        )
    )
    for name in _RUNTIME:
        constant = rules.constants[name]
        best, low, high = _band(constant, 1)
        items.append(
            MemoryItem(
                name=f"runtime.{name}",
                category="runtime",
                size_bytes=best,
                low_bytes=low,
                high_bytes=high,
                formula=f"{format_bytes(best)}, {constant.spread}",
                source=constant.source,
            )
        )
    return items


# What a GPU needs beside its weights depends on its layers by block, and on being the last.
_Place = tuple[tuple[tuple[str, int], ...], bool]


def _rooms(
    places: list[list[_Module]],
    weights: list[list[MemoryItem]],
    spec: ModelSpec,
    usable_bytes: int,
) -> dict[_Place, int]:
    """What the weights leave of a GPU, the least of those that hold the same kinds of layers."""
    rooms: dict[_Place, int] = {}
    for rank, held in enumerate(places):
        key = (tuple(_kinds(held, spec).items()), _is_last(rank, places))
        room = usable_bytes - sum(item.size_bytes for item in weights[rank])
        rooms[key] = min(room, rooms.get(key, room))
    return rooms


def _beside_bytes(
    kinds: dict[str, int],
    forward: _Forward,
    rules: TransformersRules,
    tokens: int,
    sequences: int,
    *,
    last: bool,
) -> int:
    """The sum of `_items`, without their words."""
    total, largest = forward.cache_sizes(kinds, tokens, sequences)
    constants = rules.constants
    beside = sum(_band(constants[name], 1)[0] for name in _RUNTIME)
    if total:
        beside += total + largest + _band(constants["cache_fragmentation"], total)[0]
    peak, _ = forward.peak(kinds, tokens, sequences, last=last)
    return beside + _band(constants["forward_activation_factor"], peak)[0]


def _kinds(held: list[_Module], spec: ModelSpec) -> dict[str, int]:
    """How many layers of each block a GPU holds."""
    kinds: dict[str, int] = {}
    for module in held:
        if module.layer is not None:
            name = spec.layout[module.layer]
            kinds[name] = kinds.get(name, 0) + 1
    return kinds


def _weight_items(held: list[_Module]) -> list[MemoryItem]:
    source = "tensor inventory; " + _SOURCE + "modeling_utils.py"
    by_group: dict[str, int] = {}
    for module in held:
        for group, size in module.by_group.items():
            by_group[group] = by_group.get(group, 0) + size
    scales = sum(module.scales for module in held)
    rounding = sum(module.allocated - module.weights for module in held)
    rows = [
        (f"weights.{group}", size, f"elements x element width of {len(held)} modules on this GPU")
        for group, size in by_group.items()
    ]
    rows += [
        ("weights.scales", scales, "scales, zero points and tables of quantized matrices"),
        (
            "weights.allocator_rounding",
            rounding,
            "each tensor rounded as torch's caching allocator does",
        ),
    ]
    return [
        exact_item(name, "weights", size, formula, source) for name, size, formula in rows if size
    ]


def _host_items(host: list[_Module]) -> tuple[MemoryItem, ...]:
    size = sum(module.weights for module in host)
    if not size:
        return ()
    formula = f"{len(host)} modules that no GPU has room for"
    return (
        exact_item(
            "weights.offloaded", "weights", size, formula, "accelerate 1.15.0 utils/modeling.py"
        ),
    )


def _warnings(places: list[list[_Module]], host: list[_Module], request: Request) -> list[Note]:
    out = []
    if len(places) > 1:
        shares = ", ".join(str(sum(module.layer is not None for module in held)) for held in places)
        message = (
            f"device_map auto shares whole layers out over {request.num_gpus} GPUs ({shares}); "
            "they work one after the other"
        )
        out.append(Note(code="layout", message=message))
    if host:
        size = format_gib(sum(module.weights for module in host))
        message = (
            f"accelerate keeps {size} on the host: every pass copies them to a GPU, which is slow"
        )
        out.append(Note(code="offload", message=message))
    return out


def _band(constant: Constant, factor: float) -> tuple[int, int, int]:
    return (
        round(constant.value * factor),
        round(constant.low * factor),
        round(constant.high * factor),
    )
