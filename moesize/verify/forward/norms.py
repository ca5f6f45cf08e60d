"""Norms over the last dimension, in float32 as all families compute them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from moesize.verify.forward.numerics import NormKind


def normalize(
    x: Tensor, kind: NormKind, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """x (..., size), weight (size) or None; returns the type of x."""
    wide = x.float()
    if kind.startswith("layer"):
        wide = wide - wide.mean(-1, keepdim=True)
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if weight is not None and not kind.endswith("plain"):
        scale = weight.float()
        wide = wide * (1.0 + scale if kind.endswith("offset") else scale)
    if bias is not None:
        wide = wide + bias.float()
    return wide.to(x.dtype)


def normalize_over_ranks(
    x: Tensor, weight: Tensor, eps: float, reduce: Callable[[Tensor], Tensor], ranks: int
) -> Tensor:
    """RMS norm of a dimension that `ranks` ranks hold in equal parts: the squares meet first."""
    wide = x.float()
    squares = wide.square().sum(-1, keepdim=True)
    mean = (reduce(squares) if ranks > 1 else squares) / (x.shape[-1] * ranks)
    return (wide * torch.rsqrt(mean + eps) * weight.float()).to(x.dtype)


def group_normalize(x: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    """RMS norm of each of `groups` equal parts of the last dimension; weight (size)."""
    parts = x.float().unflatten(-1, (groups, -1))
    parts = parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + eps)
    return (parts.flatten(-2) * weight.float()).to(x.dtype)


def unit_length(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / |x| over the last dimension, as linear attention scales queries and keys."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)
