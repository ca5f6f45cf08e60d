"""Compute buffers of llama.cpp: what one batch needs beside weights and caches.

No architecture's graph is stated here yet, so every answer is an estimate by
`moesize.core.llamacpp_estimate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.core.errors import UnsupportedError
from moesize.core.records import dataclass

if TYPE_CHECKING:
    from moesize.core.model_spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeSettings:
    """What the graph that llama.cpp plans depends on.

    n_ubatch         tokens of a physical batch, at most the context
    cells_full       cells of one stream of the cache, after padding
    cells_swa        the same of the cache of layers with a sliding window; 0 = none
    streams          parts of the cache: sequences, or 1 when it is unified
    sequences        n_seq_max
    n_outputs        outputs that a batch is planned for
    layers_by_device layers of each GPU; none = everything on the CPU
    output_device    the GPU with the output matrix
    experts_on_host  layers whose routed experts lie in host memory
    host_expert_tensors  bytes of gate, up and down of every layer in experts_on_host
    host_tensors     with some layers on no GPU: bytes of the largest weight of each kind of theirs,
                     by GGUF's name without block and ending
    pipeline_copies  4 with pipeline parallelism over several GPUs, else 1
    snapshots        states kept for roll-back per sequence (n_rs_seq)
    wide_mask        the mask is F32 even with flash attention
    two_inputs       room for tokens and for embeddings as input
    cache_copies     16-bit copies of a quantized cache lie in this buffer
    """

    n_ubatch: int
    cells_full: int
    cells_swa: int = 0
    streams: int = 1
    sequences: int = 1
    n_outputs: int
    flash_attn: bool = True
    type_k: str = "f16"
    type_v: str = "f16"
    layers_by_device: tuple[tuple[int, ...], ...] = ()
    output_device: int = 0
    experts_on_host: tuple[int, ...] = ()
    pipeline_copies: int = 1
    host_expert_bytes: int = 0
    host_expert_tensors: tuple[tuple[int, int, int], ...] = ()
    host_tensors: tuple[tuple[str, int], ...] = ()
    snapshots: int = 0
    wide_mask: bool = False
    two_inputs: bool = True
    cache_copies: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeBuffers:
    """Bytes of the compute buffers: of every GPU, and in host memory."""

    device_bytes: tuple[int, ...]
    host_bytes: int
    exact: bool
    formulas: tuple[str, ...]


def compute_buffers(spec: ModelSpec, settings: ComputeSettings) -> ComputeBuffers:
    """Compute buffers of the host and of every GPU. Raises UnsupportedError."""
    del settings
    raise UnsupportedError(f"the graph of {spec.title} in llama.cpp is not known")
