"""Activations by the names that configs use."""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as f
from torch import Tensor

from moesize.core.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable


def _gelu_tanh(x: Tensor) -> Tensor:
    return f.gelu(x, approximate="tanh")


def _relu2(x: Tensor) -> Tensor:
    return f.relu(x).square()


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": f.silu,
    "swish": f.silu,
    "gelu": f.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_tanh": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": f.relu,
    "relu2": _relu2,
    "sigmoid": torch.sigmoid,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function called `name`; UnsupportedError if there is none."""
    if name not in _ACTIVATIONS:
        raise UnsupportedError(
            f"activation {name!r} is not known", f"known: {', '.join(sorted(_ACTIVATIONS))}"
        )
    return _ACTIVATIONS[name]


def clamped_swiglu(gate: Tensor, up: Tensor, limit: float, alpha: float) -> Tensor:
    """gpt-oss: both sides clamped, a steeper sigmoid, and up + 1."""
    gate = gate.clamp(max=limit)
    up = up.clamp(-limit, limit)
    return (up + 1) * gate * torch.sigmoid(alpha * gate)


def cut_off(gate: Tensor, share: float, reduce: Callable[[Tensor], Tensor], ranks: int) -> Tensor:
    """Gemma 3n: what lies above the quantile of a normal distribution with its mean and spread.

    gate (..., F / ranks): the mean is that of all ranks' parts.
    """
    count = gate.shape[-1] * ranks

    def mean(x: Tensor) -> Tensor:
        total = x.sum(-1, keepdim=True)
        return (reduce(total) if ranks > 1 else total) / count

    middle = mean(gate)
    spread = mean((gate - middle).square()).sqrt()
    return f.relu(gate - (middle + spread * NormalDist().inv_cdf(share)))


def xielu(x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: float, eps: float) -> Tensor:
    """Apertus: a parabola above zero, an exponential below (arXiv 2411.13010)."""
    positive = f.softplus(alpha_p)
    negative = beta + f.softplus(alpha_n)
    below = (torch.expm1(x.clamp(max=eps)) - x) * negative + beta * x
    return torch.where(x > 0, positive * x * x + beta * x, below)
