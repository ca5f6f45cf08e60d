"""Norms over the last dimension, in float32 as all families compute them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moesize.core.errors import UnsupportedError
from moesize.core.tensors import Shard

if TYPE_CHECKING:
    from collections.abc import Callable

    from moesize.verify.forward.numerics import NormKind
    from moesize.verify.forward.step import Step
    from moesize.verify.forward.weights import LayerWeights


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


def normalize_inside(
    x: Tensor, kind: NormKind, role: str, eps: float, w: LayerWeights, step: Step
) -> Tensor:
    """A norm between two projections: ranks share its input, and each holds its whole weight."""
    weight = w.get(role)
    if w.all.size == 1:
        return normalize(x, kind, weight, None, eps)
    if kind != "rms":
        raise UnsupportedError(f"{role}: a norm of kind {kind} is not taken over ranks")
    own = w.all.cut(weight, Shard(0, len(weight)))
    return normalize_over_ranks(x, own, eps, step.reduce, w.all.size)


def group_normalize(x: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    """RMS norm of each of `groups` equal parts of the last dimension; weight (size)."""
    parts = x.float().unflatten(-1, (groups, -1))
    parts = parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + eps)
    return (parts.flatten(-2) * weight.float()).to(x.dtype)


def unit_length(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / |x| over the last dimension, as linear attention scales queries and keys."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)
