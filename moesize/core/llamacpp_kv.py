"""Caches of llama.cpp: cells, streams and bytes of every layer.

Everything is allocated when the server starts and does not grow with use. Sources: llama.cpp
0c1e57098 (libllama 0.5.0) src/llama-kv-cache*.cpp, llama-memory-recurrent.cpp, llama-context.cpp;
`KvRules` holds what other builds do differently.

Symbols: c = cells of one stream, s = streams, row(t, w) = bytes of w elements of type t.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, Literal

from moesize.core.attention import CompressedAttention, GroupedQueryAttention, LatentAttention
from moesize.core.errors import InvalidDeploymentError, UnknownNameError
from moesize.core.gguf_view import gguf_architecture, gguf_tensors
from moesize.core.records import dataclass
from moesize.core.units import ceil_div, round_up
from moesize.core.weight_formats import BLOCK_TYPES, BlockType

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from moesize.core.mixers import Mixer
    from moesize.core.model_spec import ModelSpec

# Types that `-ctk` and `-ctv` take (common/arg.cpp:kv_cache_types).
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
CACHE_TYPE_ALIASES = {
    "auto": "f16",
    "float16": "f16",
    "fp16": "f16",
    "bfloat16": "bf16",
    "float32": "f32",
    "fp32": "f32",
}
# ggml_backend_buft_get_alignment of CUDA and of the CPU.
CUDA_ALIGNMENT, HOST_ALIGNMENT = 128, 32
# MATRIX_ROW_PADDING, ggml-cuda/common.cuh: a quantized tensor ends on a multiple of it.
CUDA_ROW_ELEMENTS = 512
_CELLS = 256
_F32 = BLOCK_TYPES["F32"]

# Architectures whose graph has sliding or chunked attention: the `swa_type` of src/models/*.cpp.
# Others ignore a `sliding_window` of the config (Mistral, Phi-3, Phi-MoE, Qwen2): all layers full.
_WINDOWED = frozenset(
    {
        "afmoe",
        "cohere2",
        "cohere2moe",
        "deepseek4",
        "exaone-moe",
        "exaone4",
        "gemma2",
        "gemma3",
        "gemma3n",
        "gemma4",
        "gpt-oss",
        "granite_swa",
        "laguna",
        "lfm2",
        "lfm2moe",
        "llama4",
        "mellum",
        "mimo2",
        "olmo2",
        "step35",
    }
)
# llm_arch_supports_rs_rollback: states are kept for every guessed token.
_ROLLBACK = frozenset(
    {
        "bailingmoe3",
        "deepseek4",
        "kimi-k3",
        "lfm2",
        "lfm2moe",
        "nemotron_h",
        "nemotron_h_moe",
        "qwen35",
        "qwen35moe",
    }
)
CacheName = Literal[
    "full", "window", "indexer", "compressed_4", "compressed_128", "compressed_index"
]
LatentCache = Literal["key_only", "key_and_value", "decompressed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KvRules:
    """What differs between builds.

    context_multiple    the context is rounded up to a multiple of it
    streams             sequences may have a part of their own (kv_unified = false)
    window_cache        sliding-window layers keep their window only
    window_sum_first    window + batch is rounded up before the minimum with the context is taken
    latent              what MLA keeps: the latent; the latent and a part of it again as V; or keys
                        and values of every head
    indexer_cache       sparse attention keeps its index keys
    mtp_layers          MTP blocks have a cache beside the trunk's layers, used or not
    rows_of_heads       a K tensor has a row for each head, which is what CUDA pads
    """

    context_multiple: int = _CELLS
    streams: bool = True
    window_cache: bool = True
    window_sum_first: bool = False
    latent: LatentCache = "key_only"
    indexer_cache: bool = True
    mtp_layers: bool = False
    rows_of_heads: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCache:
    """One layer's cache: elements of a key and a value row, all heads together.

    key_head, value_head   elements of one head, which the blocks of a type must divide
    """

    layer: int
    name: CacheName
    key_size: int
    value_size: int
    key_head: int
    value_head: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerState:
    """One layer's recurrent state of one sequence: the elements of each of its F32 tensors.

    compressor   DeepSeek-V4's open compression windows
    """

    layer: int
    tensors: tuple[int, ...]
    compressor: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCaches:
    """What the layers of a model keep: the trunk's, and those of its MTP blocks."""

    architecture: str
    window: int
    caches: tuple[LayerCache, ...]
    states: tuple[LayerState, ...]
    mtp: tuple[LayerCache, ...]
    widest_value: int
    latent: bool
    compressed: bool

    @property
    def rolls_back(self) -> bool:
        """Whether states are kept for every guessed token."""
        return self.architecture in _ROLLBACK


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSettings:
    """A context as llama.cpp makes it.

    n_ctx          tokens asked for, all sequences together
    state_copies   1 + guessed tokens, where states are rolled back
    """

    n_ctx: int
    n_seq_max: int = 1
    unified: bool = False
    n_ubatch: int = 512
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attention: bool = True
    full_window: bool = False
    guessed_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSize:
    """Cells of one stream and number of streams of one kind of cache."""

    cells: int
    streams: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBytes:
    """Bytes of one layer in one cache: as logged (K + V), and as allocated on a GPU and the host.

    name   of the cache, or "state"
    """

    layer: int
    name: str
    key_bytes: int
    value_bytes: int
    gpu_bytes: int
    host_bytes: int

    @property
    def logged_bytes(self) -> int:
        """K + V without alignment."""
        return self.key_bytes + self.value_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KvPlan:
    """Sizes of every cache of a context.

    n_ctx   cells of all sequences after rounding, as llama.cpp logs it
    """

    n_ctx: int
    n_ctx_seq: int
    streams: int
    sizes: dict[str, CacheSize]
    layers: tuple[LayerBytes, ...]


def cache_type(name: str) -> str:
    """The name llama.cpp has for a cache type. Raises UnknownNameError."""
    key = name.strip().lower()
    key = CACHE_TYPE_ALIASES.get(key, key)
    if key not in CACHE_TYPES:
        raise UnknownNameError("KV dtype", name, ("f16", "q8_0", "q4_0"), "")
    return key


def _block_type(name: str) -> BlockType:
    return BLOCK_TYPES[name.upper()]


def model_caches(spec: ModelSpec, rules: KvRules) -> ModelCaches:
    """Caches of every layer under the rules of a build. Kept by the spec.

    Raises UnsupportedError for a model that llama.cpp lacks.
    """
    kept: dict[KvRules, ModelCaches] = spec.__dict__.setdefault("_llamacpp_caches", {})
    if rules not in kept:
        kept[rules] = _model_caches(spec, rules)
    return kept[rules]


def _model_caches(spec: ModelSpec, rules: KvRules) -> ModelCaches:
    architecture = gguf_architecture(spec)
    windowed = architecture in _WINDOWED and rules.window_cache
    caches: list[LayerCache] = []
    states: list[LayerState] = []
    latent = compressed = False
    window = 0
    for layer, name in enumerate(spec.layout):
        for mixer in spec.block(name).mixers:
            caches += _caches_of(layer, mixer, rules, windowed=windowed)
            states += _states_of(layer, mixer)
            latent |= isinstance(mixer, LatentAttention)
            compressed |= isinstance(mixer, CompressedAttention)
            if windowed:
                window = max(window, _window(mixer))
    first, mtp = spec.num_layers, []
    in_file = gguf_tensors(spec)[0].num_layers - first  # converters leave some MTP blocks out
    for i, name in enumerate(spec.mtp.layers[:in_file] if spec.mtp is not None else ()):
        for mixer in spec.block(name).mixers:
            # The block attends to everything, without an indexer (llama-model.cpp:create_memory).
            mtp += [
                cache
                for cache in _caches_of(first + i, mixer, rules, windowed=False)
                if cache.name != "indexer"
            ]
    if rules.mtp_layers:
        caches += mtp
    return ModelCaches(
        architecture=architecture,
        window=window,
        caches=tuple(caches),
        states=tuple(states),
        mtp=tuple(mtp),
        widest_value=max((item.value_size for item in (*caches, *mtp)), default=0),
        latent=latent,
        compressed=compressed,
    )


def _window(mixer: Mixer) -> int:
    if isinstance(mixer, GroupedQueryAttention):
        return mixer.window or mixer.chunk or 0
    return mixer.window if isinstance(mixer, CompressedAttention) else 0


def _caches_of(layer: int, mixer: Mixer, rules: KvRules, *, windowed: bool) -> Iterator[LayerCache]:
    match mixer:
        case GroupedQueryAttention() if not mixer.shares_kv:
            k, v, heads = mixer.head_dim, mixer.v_head_dim, mixer.num_kv_heads
            name: CacheName = "window" if windowed and _window(mixer) else "full"
            yield _cache(layer, name, heads * k, heads * v, k, v)
            if mixer.index_heads and rules.indexer_cache:
                # The indexer's cache is a plain one of a single head: it has values too, which
                # nothing reads (llama-kv-cache-msa.cpp changes the key size only).
                index = mixer.index_head_dim
                yield _cache(layer, "indexer", index, v, index, v)
        case LatentAttention():
            rope, rank = mixer.qk_rope_head_dim, mixer.kv_lora_rank
            if rules.latent == "decompressed":
                k, v, heads = mixer.qk_nope_head_dim + rope, mixer.v_head_dim, mixer.num_heads
                yield _cache(layer, "full", heads * k, heads * v, k, v)
            else:
                values = rank if rules.latent == "key_and_value" else 0
                yield _cache(layer, "full", rank + rope, values, rank + rope, rank)
            if mixer.indexer is not None and rules.indexer_cache:
                index = mixer.indexer.head_dim
                yield _cache(layer, "indexer", index, 0, index, 0)
        case CompressedAttention():
            size = mixer.head_dim
            yield _cache(layer, "window", size, 0, size, size)
            if mixer.compress_ratio == 4:
                yield _cache(layer, "compressed_4", size, 0, size, size)
                index = mixer.index_head_dim
                yield _cache(layer, "compressed_index", index, 0, index, index)
            elif mixer.compress_ratio > 1:
                yield _cache(layer, "compressed_128", size, 0, size, size)
        case _:
            pass  # shares another layer's cache, or has a state instead


def _cache(
    layer: int, name: CacheName, key_size: int, value_size: int, key_head: int, value_head: int
) -> LayerCache:
    return LayerCache(
        layer=layer,
        name=name,
        key_size=key_size,
        value_size=value_size,
        key_head=key_head,
        value_head=value_head,
    )


def _states_of(layer: int, mixer: Mixer) -> Iterator[LayerState]:
    """Convolution and recurrence are a tensor each (llama-hparams.cpp:n_embd_r, n_embd_s)."""
    parts = mixer.state()
    if not parts:
        return
    if isinstance(mixer, CompressedAttention):
        # Values and gates of a compressor are a tensor each.
        tensors = tuple(prod(part.shape) // 2 for part in parts for _ in range(2))
        yield LayerState(layer=layer, tensors=tensors, compressor=True)
        return
    convolution = sum(prod(p.shape) for p in parts if p.name.startswith("conv"))
    recurrence = sum(prod(p.shape) for p in parts if not p.name.startswith("conv"))
    yield LayerState(layer=layer, tensors=(convolution, recurrence))


def check_types(caches: ModelCaches, settings: KvSettings, title: str) -> None:
    """Raise InvalidDeploymentError for what llama.cpp refuses (llama-context.cpp, end)."""
    k, v = _block_type(settings.type_k), _block_type(settings.type_v)
    if (caches.latent or caches.compressed) and k != v:
        raise InvalidDeploymentError(
            f"{title} keeps one latent: llama.cpp refuses K {settings.type_k} beside V "
            f"{settings.type_v}",
            f"use {settings.type_k} for both: --kv-dtype {settings.type_k}",
        )
    if not settings.flash_attention:
        if v.elements_per_block > 1:
            raise InvalidDeploymentError(
                f"a V cache of {settings.type_v} needs flash attention",
                "leave flash attention on, or use f16 values",
            )
        return
    for what, block_type, heads in (
        ("K", k, {item.key_head for item in caches.caches if item.name != "indexer"}),
        ("V", v, {item.value_head for item in caches.caches if item.name != "indexer"}),
    ):
        for head in sorted(heads):
            if head % block_type.elements_per_block:
                raise InvalidDeploymentError(
                    f"{what} cache type {block_type.name.lower()} has blocks of "
                    f"{block_type.elements_per_block}, which do not divide the head size {head} "
                    f"of {title}",
                    "use --kv-dtype f16",
                )


def plan_cells(caches: ModelCaches, settings: KvSettings, rules: KvRules) -> KvPlan:
    """Cells, streams and bytes of all trunk layers."""
    n_ctx = round_up(settings.n_ctx, rules.context_multiple)
    slots = settings.n_seq_max
    streams, n_ctx_seq = 1, n_ctx
    if rules.streams and not settings.unified:
        streams = slots
        n_ctx_seq = round_up(n_ctx // slots, rules.context_multiple)
        if not n_ctx_seq:
            raise InvalidDeploymentError(f"{n_ctx} tokens leave none for each of {slots} sequences")
        n_ctx = n_ctx_seq * slots
    sizes = _sizes(caches, settings, rules, n_ctx_seq, streams)
    layers = _all_bytes(caches.caches, sizes, settings, caches, rules)
    rows = slots * (1 + (settings.guessed_tokens if caches.rolls_back else 0))
    layers += [_state_bytes(item, rows) for item in caches.states]
    return KvPlan(
        n_ctx=n_ctx, n_ctx_seq=n_ctx_seq, streams=streams, sizes=sizes, layers=tuple(layers)
    )


def mtp_layers(
    caches: ModelCaches,
    plan: KvPlan,
    rules: KvRules,
    *,
    type_k: str = "f16",
    type_v: str = "f16",
) -> tuple[LayerBytes, ...]:
    """Cache of the context that MTP blocks have of their own: as many cells, types of its own."""
    settings = KvSettings(n_ctx=plan.n_ctx, type_k=type_k, type_v=type_v)
    size = CacheSize(cells=plan.n_ctx_seq, streams=plan.streams)
    sizes: dict[str, CacheSize] = dict.fromkeys((item.name for item in caches.mtp), size)
    return tuple(_all_bytes(caches.mtp, sizes, settings, caches, rules))


def _sizes(
    caches: ModelCaches, settings: KvSettings, rules: KvRules, n_ctx_seq: int, streams: int
) -> dict[str, CacheSize]:
    # DeepSeek-V4 has a stream for each sequence even where the context is unified, and then each
    # of them has all the cells (llama-kv-cache-dsv4.cpp).
    unified = settings.unified and not caches.compressed
    if caches.compressed:
        streams = settings.n_seq_max
    spread = settings.n_seq_max if unified or not rules.streams else 1
    window = caches.window * spread + settings.n_ubatch
    if rules.window_sum_first:
        window = min(n_ctx_seq, round_up(window, rules.context_multiple))
    else:
        window = round_up(min(n_ctx_seq, window), _CELLS)
    cells: dict[str, int] = {
        "full": n_ctx_seq,
        "indexer": n_ctx_seq,
        "window": n_ctx_seq if settings.full_window else window,
        "compressed_4": round_up(max(1, ceil_div(n_ctx_seq, 4)), _CELLS),
        "compressed_index": round_up(max(1, ceil_div(n_ctx_seq, 4)), _CELLS),
        "compressed_128": round_up(max(1, ceil_div(n_ctx_seq, 128)), _CELLS),
    }
    present: dict[str, None] = dict.fromkeys(item.name for item in caches.caches)
    return {name: CacheSize(cells=cells[name], streams=streams) for name in present}


def _all_bytes(
    items: tuple[LayerCache, ...],
    sizes: Mapping[Any, CacheSize],
    settings: KvSettings,
    caches: ModelCaches,
    rules: KvRules,
) -> list[LayerBytes]:
    """`_bytes` of every layer; equal layers are computed once."""
    known: dict[tuple[object, ...], LayerBytes] = {}
    out = []
    for item in items:
        key = (item.name, item.key_size, item.value_size, item.key_head)
        found = known.get(key)
        if found is None:
            found = known[key] = _bytes(item, sizes[item.name], settings, caches, rules)
            out.append(found)
        else:
            out.append(
                LayerBytes(
                    layer=item.layer,
                    name=item.name,
                    key_bytes=found.key_bytes,
                    value_bytes=found.value_bytes,
                    gpu_bytes=found.gpu_bytes,
                    host_bytes=found.host_bytes,
                )
            )
    return out


def _bytes(
    item: LayerCache,
    size: CacheSize,
    settings: KvSettings,
    caches: ModelCaches,
    rules: KvRules,
) -> LayerBytes:
    value_size = item.value_size
    if value_size and not settings.flash_attention:
        # V is stored transposed, and as wide as the widest layer.
        value_size = caches.widest_value
    k, v = _block_type(settings.type_k), _block_type(settings.type_v)
    rows = size.cells * size.streams
    keys, values = rows * _row_bytes(k, item.key_size), rows * _row_bytes(v, value_size)
    key_row, value_row = item.key_size, value_size
    if rules.rows_of_heads:
        key_row, value_row = item.key_head, CUDA_ROW_ELEMENTS
    return LayerBytes(
        layer=item.layer,
        name=item.name,
        key_bytes=keys,
        value_bytes=values,
        gpu_bytes=allocated_bytes(keys, key_row, k) + allocated_bytes(values, value_row, v),
        host_bytes=round_up(keys, HOST_ALIGNMENT) + round_up(values, HOST_ALIGNMENT),
    )


def _state_bytes(item: LayerState, rows: int) -> LayerBytes:
    tensors = [size * _F32.bytes_per_block * rows for size in item.tensors]
    return LayerBytes(
        layer=item.layer,
        name="compressor" if item.compressor else "state",
        key_bytes=sum(tensors),
        value_bytes=0,
        gpu_bytes=sum(round_up(size, CUDA_ALIGNMENT) for size in tensors),
        host_bytes=sum(round_up(size, HOST_ALIGNMENT) for size in tensors),
    )


def _row_bytes(block_type: BlockType, elements: int) -> int:
    return ceil_div(elements, block_type.elements_per_block) * block_type.bytes_per_block


def allocated_bytes(tensor_bytes: int, row_elements: int, block_type: BlockType) -> int:
    """Bytes CUDA takes for a tensor: rows of quantized ones end on 512 elements, then 128 bytes.

    ggml-cuda.cu:ggml_backend_cuda_buffer_type_get_alloc_size; the padding is added once, after the
    last row.
    """
    if not tensor_bytes:
        return 0
    rest = row_elements % CUDA_ROW_ELEMENTS
    if rest and block_type.elements_per_block > 1:
        tensor_bytes += _row_bytes(block_type, CUDA_ROW_ELEMENTS - rest)
    return round_up(tensor_bytes, CUDA_ALIGNMENT)
