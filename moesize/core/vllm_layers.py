"""From a model's mixers to the pages that vLLM stores for them on one rank.

Chooses what vLLM chooses on NVIDIA GPUs: attention backend, block size, number format of the
cache, padding of recurrent states. Follows vLLM 0.32.0: `platforms/cuda.py` (backends by compute
capability), `platforms/interface.py` (`_align_hybrid_block_size`), `layers/mamba/mamba_utils.py`
(state shapes), `layers/attention/mla_attention.py` and `models/deepseek_v4/` (latent caches).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import lcm
from typing import TYPE_CHECKING, NamedTuple, assert_never

from moesize.core.attention import CompressedAttention, GroupedQueryAttention, LatentAttention
from moesize.core.errors import InvalidDeploymentError, UnknownNameError, UnsupportedError
from moesize.core.records import dataclass
from moesize.core.recurrent import (
    GatedDeltaNet,
    KimiDeltaAttention,
    LightningAttention,
    Mamba1,
    Mamba2,
    ShortConv,
)
from moesize.core.units import ceil_div
from moesize.core.vllm_kv import LayerKind, LayerPages

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from moesize.core.mixers import Mixer
    from moesize.core.model_spec import ModelSpec

# v1/attention/backends/mla/flashmla_sparse.py: 512 fp8 + 4 fp32 scales + 64 bf16 rope values.
_FP8_DS_MLA_BYTES = 656
_NVFP4_DS_MLA_BYTES = 352
# models/deepseek_v4/attention.py: 448 fp8 + 64 bf16 rope values + 8 scale bytes, pages of 576.
_DEEPSEEK_V4_STATE_BYTES = 584
_DEEPSEEK_V4_ALIGNMENT_BYTES = 576
_DEEPSEEK_V4_BLOCK_TOKENS = 256
_DEEPSEEK_V4_WINDOW_BLOCK_TOKENS = 64
# models/deepseek_v4/compressor.py: block of the running sums by compression ratio.
_COMPRESSOR_BLOCK_TOKENS = {4: 4, 128: 8}
# One fp32 scale per 128 fp8 values of an index key.
_INDEX_SCALE_ELEMENTS = 128
_DEFAULT_BLOCK_TOKENS = 16
# models/deepseek_v2.py before there was a latent cache: heads are padded for the kernels.
_PADDED_LATENT_HEAD = 256

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp32": 4, "bf16": 2, "fp16": 2}
_FP8_NAMES = frozenset(("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_ds_mla"))
_PER_TOKEN_HEAD = {"int8_per_token_head": 8, "fp8_per_token_head": 8, "int4_per_token_head": 4}
_NVFP4_NAMES = frozenset(("nvfp4", "nvfp4_4over6", "nvfp4_ds_mla"))
_KV_DTYPES = ("auto", *_DTYPE_BYTES, *sorted(_FP8_NAMES), *_PER_TOKEN_HEAD, *sorted(_NVFP4_NAMES))


# models/config.py:GlmMoeDsaForCausalLM: an automatic cache dtype becomes FP8 on Blackwell.
_FP8_ON_BLACKWELL = frozenset(("glm_moe_dsa",))
# models/falcon.py: attention is built without the cache settings, so the dtype asked for is lost.
_IGNORE_KV_DTYPE = frozenset(("falcon", "RefinedWeb", "RefinedWebModel"))


# Model types whose images are seen in both directions, and the head sizes for which vLLM 0.32.0 has
# kernels that join two backends then (v1/attention/backends/triton_flashinfer.py).
_IMAGE_PREFIX = frozenset(("gemma3", "gemma4", "gemma4_unified", "paligemma"))
_COMPOSITE_HEADS = frozenset((256, 512))
_FLASHINFER_HEADS = frozenset((64, 128, 256, 512))


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRules:
    """What differs between vLLM releases; the defaults are those of 0.32.

    latent_backends          name and block of the latent-attention backend by the major compute
                             capability, `9_quantized` with a quantized cache, `other` for the rest
    latent_cache             latent attention keeps latents; else whole keys and values, padded
    latent_hybrid_tokens     least block of latent caches next to recurrent states
    delta_net_checkpoint_majors, _tokens   major compute capabilities whose kernel exports states of
                             gated delta nets while it prefills, at multiples of so many tokens
    paged_states             recurrent states lie in the blocks of the cache (not in the V0 engine)
    """

    latent_backends: Mapping[str, tuple[str, int]] | None = None
    latent_cache: bool = True
    latent_hybrid_tokens: int = 128
    paged_states: bool = True
    delta_net_checkpoint_majors: tuple[int, ...] = ()
    delta_net_checkpoint_tokens: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions:
    """What the user and the GPU decide about the cache.

    compute_capability   (major, minor) as the driver reports it
    kv_dtype             as `--kv-cache-dtype`; "auto" is the checkpoint's, else the model's dtype
    dtype                as `--dtype`; "" is the model's own
    block_tokens         as `--block-size`; None = the backend's
    num_mtp_layers       MTP layers that speculation loads, on the last stage
    checkpoint_kinds     recurrent kinds that hold one more state in `align` mode (by release)
    aligned_states       recurrent states are kept at block ends, so that prefixes are found
    state_dtype          as `--mamba-ssm-cache-dtype`; "" is the model's own
    rules                what else differs between releases
    """

    tensor_parallel_size: int
    compute_capability: tuple[int, int]
    kv_dtype: str = "auto"
    dtype: str = ""
    block_tokens: int | None = None
    num_spec_tokens: int = 0
    num_mtp_layers: int = 0
    checkpoint_kinds: tuple[str, ...] = ("mamba2", "kimi_delta")
    aligned_states: bool = True
    state_dtype: str = ""
    rules: CacheRules = CacheRules()


class Backend(NamedTuple):
    """An attention backend: its name in vLLM's log and the blocks that it works with."""

    name: str
    block_tokens: int
    sparse_fp8_packed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmLayers:
    """Pages of every pipeline stage, and what was chosen on the way.

    loose_state_bytes   recurrent states of one sequence that lie beside the paged cache, by stage
    """

    stages: tuple[tuple[LayerPages, ...], ...]
    backend: str
    block_tokens: int
    kv_dtype: str
    block_outermost: bool
    loose_state_bytes: tuple[int, ...]


def vllm_layers(
    model: ModelSpec, options: CacheOptions, stages: Sequence[range] | None = None
) -> VllmLayers:
    """Pages of the model's layers on one rank of every stage (default: one stage with all).

    `stages` are ranges of layer indices. Layers that read another layer's cache store nothing.
    Raises UnknownNameError for an unknown KV dtype, UnsupportedError for what vLLM refuses or what
    this function does not know.
    """
    stages = stages or (range(model.num_layers),)
    mixers = {block.name: block.mixers for block in model.blocks}
    names = [[model.layout[index] for index in stage] for stage in stages]
    if options.num_mtp_layers and model.mtp is not None:
        # The published MTP layers run in turn when more tokens are guessed than there are layers.
        names[-1] += model.mtp.layers[: options.num_mtp_layers]
    order = dict.fromkeys(name for stage in names for name in stage)
    used = [mixer for name in order for mixer in mixers[name]]
    kv_dtype = resolve_kv_dtype(model, options)
    backend = attention_backend(
        used,
        options.compute_capability,
        kv_dtype,
        image_prefix=_sees_whole_images(model),
        latent_backends=options.rules.latent_backends,
    )
    chooser = _Chooser(options, kv_dtype, options.dtype or model.dtype, backend, used)
    pages = {name: chooser.block_pages(mixers[name]) for name in order}
    loose = (0,) * len(names)
    if not options.rules.paged_states:
        states = {name: chooser.state_bytes(mixers[name]) for name in order}
        loose = tuple(sum(states[name] for name in stage) for stage in names)
    return VllmLayers(
        stages=tuple(tuple(_counted(stage, pages)) for stage in names),
        backend=backend.name,
        block_tokens=chooser.block_tokens,
        kv_dtype=kv_dtype,
        block_outermost=any(isinstance(mixer, CompressedAttention) for mixer in used),
        loose_state_bytes=loose,
    )


def resolve_kv_dtype(model: ModelSpec, options: CacheOptions) -> str:
    """Number format of the cache: what was asked for, else the checkpoint's, else the model's."""
    asked = options.kv_dtype
    if asked not in _KV_DTYPES:
        from difflib import get_close_matches

        near = get_close_matches(asked[:40], _KV_DTYPES) or ("auto", "bfloat16", "fp8")
        raise UnknownNameError("KV-cache dtype of vLLM", asked, near)
    own = options.dtype or model.dtype
    if model.model_type in _IGNORE_KV_DTYPE:
        return own
    if asked != "auto":
        return asked
    if model.quantization is not None and model.quantization.kv_dtype:
        return model.quantization.kv_dtype
    if model.model_type in _FP8_ON_BLACKWELL and options.compute_capability[0] == 10:
        return "fp8_e4m3"
    return own


def attention_backend(
    mixers: Iterable[Mixer],
    compute_capability: tuple[int, int],
    kv_dtype: str,
    *,
    image_prefix: bool = False,
    latent_backends: Mapping[str, tuple[str, int]] | None = None,
) -> Backend:
    """The backend that vLLM picks, as far as it decides block size and packing.

    `image_prefix`: the tokens of an image see each other in both directions.
    vLLM 0.32.0, `platforms/cuda.py:_get_backend_priorities` and each backend's supported sizes.
    """
    major, minor = compute_capability
    quantized = kv_dtype not in _DTYPE_BYTES
    head_dims: set[int] = set()
    latent = sparse = block_sparse = compressed = uneven = sinks = False
    recurrent = ""
    for mixer in mixers:
        if mixer.state() and not recurrent:
            recurrent = mixer.kind
        if isinstance(mixer, LatentAttention):
            latent = True
            sparse = sparse or mixer.indexer is not None or mixer.index_shared
        elif isinstance(mixer, CompressedAttention):
            compressed = True
        elif isinstance(mixer, GroupedQueryAttention):
            head_dims.add(mixer.head_dim)
            block_sparse = block_sparse or mixer.index_heads > 0
            uneven = uneven or mixer.head_dim != mixer.v_head_dim
            sinks = sinks or mixer.sinks
    if (compressed or sparse) and major < 9:
        raise UnsupportedError(
            f"vLLM has no kernel for this sparse attention on compute capability {major}.{minor}",
            "choose a GPU of compute capability 9.0 (Hopper) or above",
        )
    if compressed:
        return Backend("FLASHMLA_SPARSE_DSV4", _DEEPSEEK_V4_BLOCK_TOKENS)
    if sparse:
        if major == 10:
            return Backend("FLASHINFER_MLA_SPARSE", 64)
        if major == 12:
            return Backend("FLASHINFER_MLA_SPARSE_SM120", 64, sparse_fp8_packed=True)
        name = "FLASHMLA_SPARSE" if quantized else "FLASH_ATTN_MLA_SPARSE"
        return Backend(name, 64, sparse_fp8_packed=quantized)
    if latent and latent_backends is not None:
        keys = (f"{major}_quantized" if quantized else "", str(major), "other")
        return Backend(*next(latent_backends[key] for key in keys if key in latent_backends))
    if latent:
        if major == 10:
            return Backend("FLASHINFER_MLA", 32)
        if major == 9:
            return Backend("FLASHMLA", 64) if quantized else Backend("FLASH_ATTN_MLA", 16)
        return Backend("TRITON_MLA", 16)
    if block_sparse:
        return Backend("MINIMAX_M3_SPARSE", 128)
    if recurrent and not head_dims:
        return Backend(f"{recurrent.upper()}_ATTN", _DEFAULT_BLOCK_TOKENS)
    if uneven:
        # models/mimo_v2.py; its kernels need Hopper.
        name = "FLASH_ATTN_DIFFKV" if major >= 9 else "TRITON_ATTN_DIFFKV"
        return Backend(name, _DEFAULT_BLOCK_TOKENS)
    name, older = "FLASH_ATTN", major < 9
    # FlashAttention reads an FP8 cache of one kind, and on Hopper only; version 2 knows no sinks
    # and no heads of 512 (Gemma 4).
    reads_cache = not quantized or (not older and kv_dtype in ("fp8", "fp8_e4m3"))
    if kv_dtype in _PER_TOKEN_HEAD:
        name = "TRITON_ATTN"
    elif major == 10 or not reads_cache:
        name = "FLASHINFER"
        if not head_dims <= _FLASHINFER_HEADS:
            name = "TRITON_ATTN" if older else "FLASH_ATTN"
    if older and (sinks or head_dims >= _COMPOSITE_HEADS):
        name = "TRITON_ATTN"
    # On Hopper an FP8 cache for heads of 512 (Gemma 4) has blocks of 64.
    wide = 512 in head_dims and major == 9 and kv_dtype in _FP8_NAMES
    if image_prefix:
        if head_dims <= _COMPOSITE_HEADS and major in (9, 10):
            name, wide = f"TRITON_{name}", wide or major == 10
        else:
            name = "FLASH_ATTN" if major == 10 else "TRITON_ATTN"
    return Backend(name, 64 if wide else _DEFAULT_BLOCK_TOKENS)


def _sees_whole_images(model: ModelSpec) -> bool:
    # Gemma 4 E2B and E4B, the ones with embeddings per layer, do without.
    return model.model_type in _IMAGE_PREFIX and not model.embedding.per_layer_size


def _counted(names: Sequence[str], pages: dict[str, tuple[LayerPages, ...]]) -> list[LayerPages]:
    layers: dict[str, int] = {}
    for name in names:
        layers[name] = layers.get(name, 0) + 1
    counts: dict[LayerPages, int] = {}
    for name, count in layers.items():
        for kind in pages[name]:
            counts[kind] = counts.get(kind, 0) + count
    return [replace(kind, num_layers=count) for kind, count in counts.items()]


class _Chooser:
    """Turns mixers into pages; `block_tokens` and the padding of states hold for all of them."""

    def __init__(
        self,
        options: CacheOptions,
        kv_dtype: str,
        dtype: str,
        backend: Backend,
        mixers: Sequence[Mixer],
    ) -> None:
        if dtype not in _DTYPE_BYTES:
            raise UnsupportedError(f"unknown model dtype {dtype!r}", "use bfloat16 or float16")
        self.options = options
        self.ranks = options.tensor_parallel_size
        self.kv_dtype = kv_dtype
        self.dtype_bytes = _DTYPE_BYTES[dtype]
        self.backend = backend
        self.block_tokens = options.block_tokens or backend.block_tokens
        self.padded_state_bytes: int | None = None
        # Prefix caching is off for models without attention (config/model.py:is_attention_free).
        self.has_attention = any(mixer.cache() for mixer in mixers)
        self._align_states(mixers)

    @property
    def _exports_delta_net(self) -> bool:
        """Whether gated delta nets export states while they prefill (0.33, FlashInfer's kernel)."""
        options = self.options
        majors = options.rules.delta_net_checkpoint_majors
        return options.aligned_states and options.compute_capability[0] in majors

    def _align_states(self, mixers: Sequence[Mixer]) -> None:
        """Blocks long enough that one attention page holds a recurrent state; states padded to it.

        `block = A * ceil(state / (A * bytes per token))`, A the least block, 128 beside latents.
        """
        if not self.options.rules.paged_states:
            return
        states = [self._state_bytes(mixer) for mixer in mixers]
        tokens = [self._bytes_per_token(mixer) for mixer in mixers]
        state_bytes = max(states, default=0)
        per_token = next((size for size in tokens if size), 0)
        if not state_bytes or not per_token:
            return
        alignment = max(self.backend.block_tokens, self.block_tokens)
        if any(isinstance(mixer, LatentAttention) for mixer in mixers):
            alignment = max(alignment, self.options.rules.latent_hybrid_tokens)
        if self._exports_delta_net and any(isinstance(mixer, GatedDeltaNet) for mixer in mixers):
            alignment = lcm(alignment, self.options.rules.delta_net_checkpoint_tokens)
        needed = alignment * ceil_div(state_bytes, alignment * per_token)
        self.block_tokens = max(self.block_tokens, needed)
        self.padded_state_bytes = self.block_tokens * per_token

    def block_pages(self, mixers: Sequence[Mixer]) -> tuple[LayerPages, ...]:
        """Pages of one layer."""
        return tuple(pages for mixer in mixers for pages in self._pages(mixer))

    def state_bytes(self, mixers: Sequence[Mixer]) -> int:
        """Recurrent states of one sequence in one layer."""
        return sum(self._state_bytes(mixer) for mixer in mixers)

    def _pages(self, mixer: Mixer) -> list[LayerPages]:
        match mixer:
            case GroupedQueryAttention():
                return self._grouped_query_pages(mixer)
            case LatentAttention():
                return self._latent_pages(mixer)
            case CompressedAttention():
                return self._compressed_pages(mixer)
            case GatedDeltaNet() | KimiDeltaAttention() | LightningAttention():
                return self._state_pages(mixer)
            case Mamba1() | Mamba2() | ShortConv():
                return self._state_pages(mixer)
            case _:  # pragma: no cover
                assert_never(mixer)

    def _bytes_per_token(self, mixer: Mixer) -> int:
        """Bytes that a layer of plain attention keeps per token on this rank; 0 for the others."""
        match mixer:
            case GroupedQueryAttention() if not mixer.shares_kv:
                heads = max(1, mixer.num_kv_heads // self.ranks)
                return heads * self._head_bytes(mixer.head_dim, mixer.v_head_dim)
            case LatentAttention():
                return self._latent_bytes(mixer)
            case _:
                return 0

    def _head_bytes(self, key_size: int, value_size: int) -> int:
        """Keys and values of one head and token."""
        if self.kv_dtype in _DTYPE_BYTES:
            return (key_size + value_size) * _DTYPE_BYTES[self.kv_dtype]
        if self.kv_dtype in _PER_TOKEN_HEAD:
            # Two fp32 scales behind the packed values.
            return (key_size + value_size) * _PER_TOKEN_HEAD[self.kv_dtype] // 8 + 8
        if self.kv_dtype in _NVFP4_NAMES:
            return 2 * (key_size // 2 + key_size // 16)
        return key_size + value_size

    def _latent_bytes(self, mixer: LatentAttention) -> int:
        size = mixer.kv_lora_rank + mixer.qk_rope_head_dim
        if self.kv_dtype == "nvfp4_ds_mla":
            return _NVFP4_DS_MLA_BYTES
        if self.backend.sparse_fp8_packed or self.kv_dtype == "fp8_ds_mla":
            return _FP8_DS_MLA_BYTES
        if self.kv_dtype in _PER_TOKEN_HEAD or self.kv_dtype in _NVFP4_NAMES:
            raise UnsupportedError(
                f"vLLM has no latent-attention cache in {self.kv_dtype}", "use auto or fp8"
            )
        return size * _DTYPE_BYTES.get(self.kv_dtype, 1)

    def _grouped_query_pages(self, mixer: GroupedQueryAttention) -> list[LayerPages]:
        if mixer.cross:
            raise UnsupportedError(
                "the cache of encoder-decoder models in vLLM is not modelled",
                "plan it with --engine transformers; `moesize show` counts weights and cache",
            )
        if mixer.shares_kv:
            return []
        kind: LayerKind = "full"
        if mixer.window is not None:
            kind = "sliding"
        elif mixer.chunk is not None:
            kind = "chunked"
        heads = max(1, mixer.num_kv_heads // self.ranks)
        pages = [
            LayerPages(
                kind=kind,
                num_layers=1,
                block_tokens=self.block_tokens,
                state_bytes=heads * self._head_bytes(mixer.head_dim, mixer.v_head_dim),
                window_tokens=mixer.window or mixer.chunk,
                variant=f"{heads}x{mixer.head_dim}+{mixer.v_head_dim}",
            )
        ]
        if mixer.index_heads:
            # The block-sparse index keeps the model's dtype whatever the cache has.
            pages.append(self._latent_kind("index", mixer.index_head_dim * self.dtype_bytes))
        return pages

    def _latent_pages(self, mixer: LatentAttention) -> list[LayerPages]:
        if not self.options.rules.latent_cache:
            heads = max(1, mixer.num_heads // self.ranks)
            size = max(
                _PADDED_LATENT_HEAD,
                mixer.qk_nope_head_dim + mixer.qk_rope_head_dim,
                mixer.v_head_dim,
            )
            return [
                LayerPages(
                    kind="full",
                    num_layers=1,
                    block_tokens=self.block_tokens,
                    state_bytes=heads * self._head_bytes(size, size),
                    variant=f"{heads}x{size}+{size}",
                )
            ]
        pages = [self._latent_kind("latent", self._latent_bytes(mixer))]
        if mixer.indexer is not None:
            pages.append(self._latent_kind("index", _index_bytes(mixer.indexer.head_dim)))
        return pages

    def _latent_kind(self, variant: str, state_bytes: int) -> LayerPages:
        return LayerPages(
            kind="mla",
            num_layers=1,
            block_tokens=self.block_tokens,
            state_bytes=state_bytes,
            variant=variant,
        )

    def _compressed_pages(self, mixer: CompressedAttention) -> list[LayerPages]:
        """Raw window, compressed states, index keys, and the compressors' running sums (fp32)."""
        pages = [
            _deepseek_v4_window(
                _DEEPSEEK_V4_WINDOW_BLOCK_TOKENS, _DEEPSEEK_V4_STATE_BYTES, mixer.window, "window"
            )
        ]
        ratio = mixer.compress_ratio
        if ratio <= 1:
            return pages
        if ratio not in _COMPRESSOR_BLOCK_TOKENS:
            raise UnsupportedError(f"vLLM has no compressor of ratio {ratio}")
        pages.append(self._compressed_kind(ratio, _DEEPSEEK_V4_STATE_BYTES, "compressed"))
        sums = [("compressor", mixer.head_dim)]
        if mixer.has_indexer:
            index_bytes = _index_bytes(mixer.index_head_dim)
            pages.append(self._compressed_kind(ratio, index_bytes, "index"))
            sums.append(("index compressor", mixer.index_head_dim))
        pages += [
            _deepseek_v4_window(
                _COMPRESSOR_BLOCK_TOKENS[ratio],
                2 * mixer.overlap * size * _DTYPE_BYTES["float32"],
                mixer.overlap * ratio,
                name,
            )
            for name, size in sums
        ]
        return pages

    def _compressed_kind(self, ratio: int, state_bytes: int, variant: str) -> LayerPages:
        return LayerPages(
            kind="mla",
            num_layers=1,
            block_tokens=self.block_tokens,
            state_bytes=state_bytes,
            tokens_per_state=ratio,
            page_alignment_bytes=_DEEPSEEK_V4_ALIGNMENT_BYTES,
            variant=variant,
        )

    def _state_pages(self, mixer: Mixer) -> list[LayerPages]:
        if not self.options.rules.paged_states:
            return []
        exports = mixer.kind in self.options.checkpoint_kinds
        if isinstance(mixer, GatedDeltaNet):
            exports = self._exports_delta_net
        if isinstance(mixer, KimiDeltaAttention):
            # Kimi-K3's layers do, Kimi-Linear's do not; the full-rank gate tells them apart.
            exports = exports and mixer.full_rank_gate
        return [
            LayerPages(
                kind="mamba",
                num_layers=1,
                block_tokens=self.block_tokens,
                state_bytes=self._state_bytes(mixer),
                padded_page_bytes=self.padded_state_bytes,
                num_spec_states=self.options.num_spec_tokens,
                num_checkpoint_states=int(exports),
                caches_prefixes=self.has_attention,
                variant=mixer.kind,
            )
        ]

    def _state_bytes(self, mixer: Mixer) -> int:
        """Recurrent state of one sequence and layer on this rank; 0 for attention.

        `conv width / t * (kernel - 1 + guessed tokens) * dtype + recurrent elements / t * dtype`.
        """
        history = self.options.num_spec_tokens - 1
        match mixer:
            case GatedDeltaNet():
                conv = self._share(2 * mixer.key_size + mixer.value_size)
                heads = self._share(mixer.num_v_heads)
                recurrent = heads * mixer.v_head_dim * mixer.k_head_dim
                conv *= mixer.conv_kernel + history
                return self._both(conv, recurrent, self.options.state_dtype or mixer.state_dtype)
            case KimiDeltaAttention():
                conv = self._share(3 * mixer.num_heads * mixer.head_dim)
                recurrent = self._share(mixer.num_heads) * mixer.head_dim**2
                conv *= mixer.conv_kernel + history
                return self._both(conv, recurrent, "float32")
            case Mamba2():
                # Groups that do not divide over the ranks are stored again where heads need them.
                groups = mixer.num_groups
                if groups % self.ranks:
                    groups = self.ranks
                conv = self._share(mixer.inner_size + 2 * groups * mixer.state_size)
                recurrent = self._share(mixer.num_heads) * mixer.head_dim * mixer.state_size
                conv *= mixer.conv_kernel + history
                return self._both(conv, recurrent, self.options.state_dtype or mixer.state_dtype)
            case Mamba1():
                inner = self._share(mixer.inner_size)
                return self._both(inner * (mixer.conv_kernel - 1), inner * mixer.state_size, "")
            case LightningAttention():
                return self._both(0, self._share(mixer.num_heads) * mixer.head_dim**2, "")
            case ShortConv():
                return self._both(self._share(mixer.size) * (mixer.kernel + history), 0, "")
            case GroupedQueryAttention() | LatentAttention() | CompressedAttention():
                return 0
            case _:  # pragma: no cover
                assert_never(mixer)

    def _both(self, conv_elements: int, recurrent_elements: int, state_dtype: str) -> int:
        state_bytes = _DTYPE_BYTES[state_dtype] if state_dtype else self.dtype_bytes
        return conv_elements * self.dtype_bytes + recurrent_elements * state_bytes

    def _share(self, size: int) -> int:
        if size % self.ranks:
            raise InvalidDeploymentError(
                f"vLLM cannot split {size} recurrent channels or heads over {self.ranks} ranks",
                "choose another --tensor-parallel-size",
            )
        return size // self.ranks


def _index_bytes(head_dim: int) -> int:
    """One fp8 index key with its scales."""
    return head_dim + head_dim // _INDEX_SCALE_ELEMENTS * 4


def _deepseek_v4_window(
    block_tokens: int, state_bytes: int, window: int, variant: str
) -> LayerPages:
    return LayerPages(
        kind="sliding_mla",
        num_layers=1,
        block_tokens=block_tokens,
        state_bytes=state_bytes,
        page_alignment_bytes=_DEEPSEEK_V4_ALIGNMENT_BYTES,
        window_tokens=window,
        variant=variant,
    )
