"""Rotary position embedding and its scalings, from the papers that name them.

Linear and dynamic (NTK) scaling, Llama 3's bands, YaRN (arXiv 2309.00071), LongRoPE
(arXiv 2402.13753), and the proportional one of Gemma 4.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from moesize.verify.forward.numerics import Rope, RopeScaling


def frequencies(rope: Rope, length: int) -> tuple[Tensor, float]:
    """Frequencies (size / 2) for a context of `length` tokens, and the factor of cos and sin."""
    theta, scaling = rope.theta, rope.scaling
    exponents = torch.arange(0, rope.size, 2, dtype=torch.float32) / rope.size
    if scaling is None:
        return theta**-exponents, 1.0
    if scaling.kind == "linear":
        return theta**-exponents / scaling.factor, 1.0
    if scaling.kind == "dynamic":
        stretch = max(length, scaling.longest) / scaling.longest
        grown = scaling.factor * stretch - (scaling.factor - 1)
        theta = theta * grown ** (rope.size / (rope.size - 2))
        return theta**-exponents, 1.0
    if scaling.kind == "llama3":
        return _llama3(theta**-exponents, scaling), 1.0
    if scaling.kind == "yarn":
        return _yarn(theta, exponents, rope.size, scaling), _yarn_factor(scaling)
    if scaling.kind == "longrope":
        stretched = scaling.long if length > scaling.original else scaling.short
        return theta**-exponents / torch.tensor(stretched), _longrope_factor(scaling)
    if scaling.kind == "proportional":
        plain = theta**-exponents / scaling.factor
        plain[int(scaling.low * rope.size // 2) :] = 0.0
        return plain, 1.0
    raise AssertionError(scaling.kind)


def _llama3(plain: Tensor, scaling: RopeScaling) -> Tensor:
    turns = scaling.original * plain / (2 * math.pi)
    smooth = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return (1 - smooth) * plain / scaling.factor + smooth * plain


def _yarn(theta: float, exponents: Tensor, size: int, scaling: RopeScaling) -> Tensor:
    def dimension(turns: float) -> float:
        return size * math.log(scaling.original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(size // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    plain = theta**-exponents
    return plain / scaling.factor * ramp + plain * (1 - ramp)


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's correction of the attention temperature."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn_factor(scaling: RopeScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all:
        return yarn_mscale(scaling.factor, scaling.mscale) / yarn_mscale(
            scaling.factor, scaling.mscale_all
        )
    return yarn_mscale(scaling.factor, 1.0)


def _longrope_factor(scaling: RopeScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original))


def angles(rope: Rope, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (T, size / 2) at `positions` (T), float32."""
    plain, factor = frequencies(rope, int(positions[-1]) + 1)
    turned = positions.float()[:, None] * plain.to(positions.device)[None, :]
    return turned.cos() * factor, turned.sin() * factor


def rotate(x: Tensor, rope: Rope, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """x (B, heads, T, d) with its first `size` elements turned."""
    cos, sin = cos_sin
    sin = -sin if rope.backwards else sin
    rest = x.shape[-1] - rope.size
    turning, passed = x.split([rope.size, rest], dim=-1)
    wide = turning.float()
    if rope.interleaved:
        first, second = wide[..., 0::2], wide[..., 1::2]
    else:
        first, second = wide.chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    if rope.interleaved:
        out = torch.stack(turned, dim=-1).flatten(-2).to(x.dtype)
    else:
        out = torch.cat(turned, dim=-1).to(x.dtype)
    if not rest:
        return out
    return torch.cat((out, passed), dim=-1)
