"""How routers choose: scores, groups, corrections, weights. T tokens, E experts, A chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as f
from torch import Tensor

if TYPE_CHECKING:
    from moesize.verify.forward.numerics import Routing


def choose(
    logits: Tensor, count: int, routing: Routing, correction: Tensor | None, table: Tensor | None
) -> tuple[Tensor, Tensor]:
    """logits (T, E) -> chosen experts (T, A), their weights (T, A), float32.

    correction (E) is added for the choice only; table (T, A) makes the choice itself.
    """
    if routing.softcap:
        logits = routing.softcap * torch.tanh(logits / routing.softcap)
    if routing.jitter:
        return _sparse_mixer(logits, routing.jitter)
    if routing.scoring.endswith("of_chosen"):
        values, chosen = logits.topk(count, dim=-1)
        if routing.scoring == "softmax_of_chosen":
            return chosen, values.softmax(-1) * routing.scale
        weight = torch.sigmoid(values)
        if routing.renormalize:
            weight = weight / weight.sum(-1, keepdim=True)
        return chosen, weight * routing.scale
    scores = _scores(logits, routing)
    ranking = scores if correction is None else scores + correction
    if table is not None:
        chosen = table.long()
    else:
        if routing.groups > 1:
            ranking = _only_best_groups(ranking, routing)
        chosen = ranking.topk(count, dim=-1).indices
    weight = scores.gather(-1, chosen)
    if routing.renormalize:
        total = weight.sum(-1, keepdim=True) + routing.epsilon
        weight = weight / total.clamp(min=routing.least)
    return chosen, weight * routing.scale


def _scores(logits: Tensor, routing: Routing) -> Tensor:
    if routing.scoring == "sigmoid":
        return torch.sigmoid(logits)
    if routing.scoring == "sqrt_softplus":
        return f.softplus(logits).sqrt()
    return logits.softmax(-1)


def _only_best_groups(ranking: Tensor, routing: Routing) -> Tensor:
    """Experts of closed groups get a rank below all others."""
    grouped = ranking.unflatten(-1, (routing.groups, -1))
    if routing.group_score == "two_best":
        worth = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
    else:
        worth = grouped.amax(-1)
    best = worth.topk(routing.top_groups, dim=-1).indices
    open_groups = torch.zeros_like(worth, dtype=torch.bool).scatter_(-1, best, True)
    return grouped.masked_fill(~open_groups[..., None], float("-inf")).flatten(-2)


def _sparse_mixer(logits: Tensor, jitter: float) -> tuple[Tensor, Tensor]:
    """PhiMoE (arXiv 2409.12136): twice the best expert, weighed among those close to it."""
    chosen, weights = [], []
    left = logits
    for _ in range(2):
        best, index = left.max(-1, keepdim=True)
        far = (best - left) / logits.abs().clamp(min=best) > 2 * jitter
        chosen.append(index)
        weights.append(left.masked_fill(far, float("-inf")).softmax(-1).gather(-1, index))
        left = left.scatter(-1, index, float("-inf"))
    return torch.cat(chosen, dim=-1), torch.cat(weights, dim=-1)
