"""The dense MLP and the mixture of experts, routed as each family routes.

Two interchangeable ways through the experts: `looped` takes one after another, `grouped` sorts
the tokens by expert and passes all experts at once. T tokens, E experts, A chosen ones.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as f
from torch import Tensor

from moesize.verify.forward.activations import activation, clamped_swiglu, cut_off, xielu
from moesize.verify.forward.norms import normalize, normalize_inside
from moesize.verify.forward.routing import choose

if TYPE_CHECKING:
    from moesize.core.feed_forward import DenseMlp, MoeMlp
    from moesize.verify.forward.numerics import Numerics
    from moesize.verify.forward.step import Step
    from moesize.verify.forward.weights import LayerWeights

ExpertPath = Literal["looped", "grouped"]


def _activated(
    gate: Tensor | None, up: Tensor, numerics: Numerics, weights: LayerWeights
) -> Tensor:
    if gate is not None and numerics.swiglu_alpha:
        return clamped_swiglu(gate, up, numerics.swiglu_limit, numerics.swiglu_alpha)
    if numerics.swiglu_limit and gate is not None:
        up = up.clamp(-numerics.swiglu_limit, numerics.swiglu_limit)
        gate = gate.clamp(max=numerics.swiglu_limit)
    if numerics.activation == "xielu":
        p, n = (weights.get(f"other.alpha_{side}") for side in "pn")
        return xielu(up, p, n, numerics.factor("xielu_beta"), numerics.factor("xielu_eps"))
    function = activation(numerics.activation)
    return function(up) if gate is None else function(gate * numerics.factor("mlp_gate")) * up


class Dense:
    """One layer's MLP."""

    def __init__(self, mlp: DenseMlp, numerics: Numerics, weights: LayerWeights) -> None:
        self.mlp = mlp
        self.numerics = numerics
        self.w = weights

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        """x (B, T, H) -> (B, T, H), this rank's part of the sum."""
        return _dense(x, "dense_mlp", self.mlp.gated, self.numerics, self.w, step)


def _dense(
    x: Tensor, group: str, gated: bool, numerics: Numerics, w: LayerWeights, step: Step
) -> Tensor:
    gate = None
    if gated:
        gate = f.linear(x, w.get(f"{group}.gate"), w.maybe(f"{group}.gate.bias"))
    if numerics.sparsity and gate is not None and numerics.sparsity[w.index]:
        gate = cut_off(gate, numerics.sparsity[w.index], step.reduce, w.all.size)
    up = f.linear(x, w.get(f"{group}.up"), w.maybe(f"{group}.up.bias"))
    inner = _activated(gate, up, numerics, w)
    if group == "dense_mlp" and w.has("norms.mlp_inner"):
        inner = normalize_inside(inner, numerics.norm, "norms.mlp_inner", numerics.eps, w, step)
    bias = w.maybe(f"{group}.down.bias") if w.all.rank == 0 else None
    return f.linear(inner, w.get(f"{group}.down"), bias) * numerics.factor("mlp_down")


class Experts:
    """One layer's mixture of experts."""

    def __init__(
        self, moe: MoeMlp, numerics: Numerics, weights: LayerWeights, path: ExpertPath
    ) -> None:
        self.moe = moe
        self.numerics = numerics
        self.w = weights
        self.path = path

    def __call__(self, x: Tensor, step: Step, router_input: Tensor | None = None) -> Tensor:
        """x (B, T, H) -> (B, T, H), this rank's part of the sum."""
        moe, w = self.moe, self.w
        tokens = x.flatten(0, 1)
        seen = tokens if router_input is None else router_input.flatten(0, 1)
        chosen, weight = self.route(seen, step)
        inner = tokens
        if moe.latent_size is not None:
            inner = f.linear(tokens, w.get("other.latent_in"))
            if moe.latent_norm:
                inner = normalize(
                    inner, self.numerics.norm, w.get("norms.latent"), None, self.numerics.eps
                )
        out = (
            self._grouped(inner, chosen, weight)
            if self.path == "grouped"
            else (self._looped(inner, chosen, weight))
        )
        if moe.extra_routes:
            # Zero-compute experts hand the token through; one rank does it for all.
            kept = (weight * (chosen >= moe.num_experts)).sum(-1, keepdim=True)
            out = out + (inner * kept.to(inner.dtype) if w.all.rank == 0 else 0)
        if moe.latent_size is not None:
            out = f.linear(out, w.get("other.latent_out"))
        if moe.shared is not None:
            out = out + self._shared(tokens, step)
        return (out * self.numerics.factor("experts")).view_as(x)

    def route(self, tokens: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Chosen experts (T, A) and their weights (T, A), float32."""
        moe, w, num = self.moe, self.w, self.numerics
        if w.has("router.scale"):
            # Gemma 4: a norm, a learned scale of each input, and one of each expert's weight.
            scale = w.get("router.scale").float() * tokens.shape[-1] ** -0.5
            tokens = normalize(tokens, "rms_plain", None, None, num.eps).float() * scale
        bias = w.maybe("router.bias") if moe.router_bias == "bias" else None
        weight = w.get("router.weight").float()
        logits = f.linear(tokens.float(), weight, None if bias is None else bias.float())
        correction = None
        if moe.router_bias == "correction":
            correction = w.get("router.bias").float().flatten()
        table = None
        if moe.hash_vocab_size:
            table = w.stored("router.hash")[step.tokens.flatten().to(w.all.device)]
        chosen, shares = choose(logits, moe.experts_per_token, num.routing, correction, table)
        if w.has("router.expert_scale"):
            shares = shares * w.get("router.expert_scale").float()[chosen]
        return chosen, shares

    def _one(self, x: Tensor, index: int) -> Tensor:
        """x (t, H) through expert `index`."""
        moe, w = self.moe, self.w

        def bias(part: str) -> Tensor | None:
            return w.expert(f"{part}.bias", index) if moe.bias else None

        gate = f.linear(x, w.expert("gate", index), bias("gate")) if moe.gated else None
        up = f.linear(x, w.expert("up", index), bias("up"))
        down_bias = bias("down") if w.all.rank == 0 else None
        return f.linear(_activated(gate, up, self.numerics, w), w.expert("down", index), down_bias)

    def _looped(self, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for index in chosen.unique().tolist():
            if index >= self.moe.num_experts:
                continue
            token, slot = torch.where(chosen == index)
            factor = weight[token, slot, None].to(x.dtype)
            if self.numerics.routing.weigh_input:
                out.index_add_(0, token, self._one(x[token] * factor, index))
            else:
                out.index_add_(0, token, self._one(x[token], index) * factor)
        return out

    def _grouped(self, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        """Tokens sorted by expert; one grouped product for each of gate, up and down."""
        moe, w = self.moe, self.w
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        order = order[flat[order] < moe.num_experts]
        expert = flat[order]
        token = order // chosen.shape[1]
        factor = weight.flatten()[order, None].to(x.dtype)
        ends = torch.bincount(expert, minlength=moe.num_experts).cumsum(0).to(torch.int32)

        def product(rows: Tensor, part: str, *, add: bool = True) -> Tensor:
            matrices = w.experts(part)
            out = grouped_product(rows, matrices, ends)
            return out + w.experts(f"{part}.bias")[expert] if moe.bias and add else out

        rows = x[token] * factor if self.numerics.routing.weigh_input else x[token]
        gate = product(rows, "gate") if moe.gated else None
        inner = _activated(gate, product(rows, "up"), self.numerics, w)
        out = product(inner, "down", add=w.all.rank == 0)
        if not self.numerics.routing.weigh_input:
            out = out * factor
        return torch.zeros_like(x).index_add_(0, token, out)

    def _shared(self, tokens: Tensor, step: Step) -> Tensor:
        shared, w = self.moe.shared, self.w
        assert shared is not None
        out = _dense(tokens, "shared_experts", shared.gated, self.numerics, w, step)
        if shared.gate:
            out = out * torch.sigmoid(f.linear(tokens, w.get("shared_experts.sigmoid_gate")))
        return out


def grouped_product(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """rows (R, in) sorted by expert, matrices (E, out, in), ends (E): rows before each group's end.

    One kernel where torch has one for the type and the widths; else a product for each group.
    """
    kernel = getattr(f, "grouped_mm", None)
    # The kernel wants rows of whole 16 bytes.
    whole = rows.shape[1] % 8 == 0 and matrices.shape[1] % 8 == 0
    if kernel is not None and rows.dtype == torch.bfloat16 and rows.is_cuda and whole:
        return kernel(rows, matrices.transpose(1, 2), offs=ends)
    starts = [0, *ends.tolist()]
    out = rows.new_empty(rows.shape[0], matrices.shape[1])
    for index, (a, b) in enumerate(pairwise(starts)):
        if b > a:
            torch.mm(rows[a:b], matrices[index].T, out=out[a:b])
    return out
