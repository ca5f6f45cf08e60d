"""The short causal convolution that linear attention, Mamba and LFM2 begin with."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as f
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moesize.verify.forward.caches import LayerCache


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, cache: LayerCache, name: str = "conv"
) -> Tensor:
    """x (B, T, C) convolved with weight (C, 1, kernel) over T; keeps the last kernel - 1 inputs."""
    channels, kernel = weight.shape[0], weight.shape[-1]
    columns = x.transpose(1, 2)
    state = cache.states.get(name)
    if state is None:
        state = columns.new_zeros(columns.shape[0], channels, kernel - 1)
    joined = torch.cat((state, columns), dim=-1)
    cache.states[name] = joined[..., joined.shape[-1] - (kernel - 1) :].clone()
    weight = weight.reshape(channels, 1, kernel)
    with _torch_kernels():
        return f.conv1d(joined, weight, bias, groups=channels).transpose(1, 2)


@contextmanager
def _torch_kernels() -> Iterator[None]:
    """Without cuDNN and MIOpen, which take a workspace of a size that they choose themselves.

    torch's own kernel for a channel by itself takes none (pytorch DepthwiseConv2d.cu).
    """
    cudnn = torch.backends.cudnn
    before = cudnn.enabled
    cudnn.enabled = False
    try:
        yield
    finally:
        cudnn.enabled = before
