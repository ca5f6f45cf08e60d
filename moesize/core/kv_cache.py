"""What a sequence costs in cache memory, before any engine's blocks, on one GPU.

Engines round these up to blocks and pages; the figures here are the model's own.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from moesize.core.errors import UnknownNameError
from moesize.core.records import dataclass

if TYPE_CHECKING:
    from moesize.core.cache import TokenCache
    from moesize.core.model_spec import ModelSpec

# Element width in bits of what a cache can hold; scales per tensor are scalars and not counted.
KV_BITS = {
    "auto": 0,
    "float32": 32,
    "bfloat16": 16,
    "float16": 16,
    "fp8": 8,
    "fp8_e4m3": 8,
    "fp8_e5m2": 8,
    "int8": 8,
}
_ALIASES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
# An index key is kept as fp8 with one float32 scale per 128 values, whatever the KV dtype
# (DeepSeek-V3.2 inference code; vLLM 0.32.0 models/deepseek_v2.py).
_INDEX_SCALE_ELEMENTS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceCost:
    """Cache bytes of one sequence.

    bytes_per_token      one more token, in all layers that keep every token
    window_bytes         full sliding windows: they stop growing at the window
    recurrent_bytes      states of linear attention and Mamba layers, and open compression windows
    """

    bytes_per_token: int
    window_bytes: int
    recurrent_bytes: int
    dtype: str

    @property
    def state_bytes_per_sequence(self) -> int:
        """What does not grow with context (interface: kv_cache.state_bytes_per_sequence)."""
        return self.window_bytes + self.recurrent_bytes


def sequence_cost(spec: ModelSpec, kv_dtype: str = "auto") -> SequenceCost:
    """Sum over layers of `heads * (key + value) * element` and of the states.

    `auto` is the checkpoint's own KV format, else the model's dtype. A compressed cache keeps one
    state in `ratio` tokens; its bytes per token are rounded down. Raises UnknownNameError.
    """
    name = _ALIASES.get(kv_dtype.lower(), kv_dtype.lower())
    if name not in KV_BITS:
        raise UnknownNameError("KV dtype", kv_dtype, tuple(KV_BITS)[:4])
    if name == "auto":
        own = spec.quantization.kv_dtype if spec.quantization is not None else ""
        name = own or ("bfloat16" if spec.dtype == "float32" else spec.dtype)
    bits = KV_BITS.get(name, 8)
    per_token = window = recurrent = 0
    numerators: dict[int, int] = {}
    for block_name in spec.layout:
        for mixer in spec.block(block_name).mixers:
            for cache in mixer.cache():
                size = token_bytes(cache, bits)
                if cache.window is not None and cache.part != "cross":
                    window += size * cache.window
                elif cache.ratio > 1:
                    numerators[cache.ratio] = numerators.get(cache.ratio, 0) + size
                else:
                    per_token += size
            for part in mixer.state():
                element = {"float32": 4, "float16": 2, "bfloat16": 2}.get(
                    part.dtype or spec.dtype, 2
                )
                recurrent += prod(part.shape) * element
    per_token += sum(size // ratio for ratio, size in numerators.items())
    return SequenceCost(
        bytes_per_token=per_token, window_bytes=window, recurrent_bytes=recurrent, dtype=name
    )


def token_bytes(cache: TokenCache, bits: int) -> int:
    """Bytes of one stored token in one layer: `heads * (key + value) * bits / 8`."""
    if cache.part == "index":
        return cache.key_size + 4 * (cache.key_size // _INDEX_SCALE_ELEMENTS)
    return max(1, cache.heads) * (cache.key_size + cache.value_size) * bits // 8
