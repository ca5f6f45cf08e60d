"""The gated short convolution of LFM2: y = out(C * conv(B * x))."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as f
from torch import Tensor

from moesize.verify.forward.convolution import causal_conv

if TYPE_CHECKING:
    from moesize.core.recurrent import ShortConv
    from moesize.verify.forward.caches import LayerCache
    from moesize.verify.forward.numerics import Numerics
    from moesize.verify.forward.step import Step
    from moesize.verify.forward.weights import LayerWeights


class GatedShortConv:
    """One layer's short convolution."""

    def __init__(self, mixer: ShortConv, numerics: Numerics, weights: LayerWeights) -> None:
        self.mixer = mixer
        self.w = weights

    def __call__(self, x: Tensor, step: Step, cache: LayerCache) -> Tensor:
        """x (B, T, H) -> (B, T, H), this rank's part of the sum."""
        w, role = self.w, "attention.linear."
        weight = torch.cat(w.sections(role + "in"))
        bias = None
        if w.has(role + "in.bias"):
            bias = torch.cat(w.sections(role + "in.bias"))
        b, c, inner = f.linear(x, weight, bias).chunk(3, dim=-1)
        mixed = causal_conv(b * inner, w.get(role + "conv"), w.maybe(role + "conv.bias"), cache)
        bias = w.maybe(role + "out.bias") if w.all.rank == 0 else None
        return f.linear(c * mixed, w.get(role + "out"), bias)
