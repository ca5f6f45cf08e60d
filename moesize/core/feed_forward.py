"""Channel mixers: the dense MLP and the mixture of experts.

Symbols: H hidden size, F feed-forward width, E routed experts, A experts per token.
"""

from __future__ import annotations

from typing import Literal

from moesize.core.records import dataclass
from moesize.core.tensors import Tensor, matrix, vector


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseMlp:
    """up (F, H) and down (H, F); a gated MLP has gate (F, H) as well.

    parallel: runs beside the experts of the same layer (Gemma 4), not instead of them.
    """

    kind: Literal["dense"] = "dense"
    intermediate_size: int
    gated: bool = True
    bias: bool = False

    def tensors(self, hidden_size: int) -> tuple[Tensor, ...]:
        """(2 or 3) * H * F elements, plus biases."""
        return tuple(_mlp("dense_mlp", hidden_size, self.intermediate_size, self.gated, self.bias))


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedExperts:
    """Experts that every token passes, as one MLP of width `intermediate_size`.

    gate: a learned sigmoid of one value per token scales the output (Qwen MoE).
    """

    intermediate_size: int
    gate: bool = False
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeMlp:
    """E routed experts of which a token visits A, their router, and shared experts.

    latent_size     experts work in this smaller width (Nemotron-3 Super); two projections H <-> L
    router_bias     one score per expert added for the choice only ("correction") or a plain bias
    hash_routing    the first layers of DeepSeek-V4 choose by token id: a V x A table, no choice
    stacked         stored as one tensor over all experts instead of one per expert
    renormalizes    the weights of the chosen experts are scaled to a sum of one; decides the kernel
    extra_routes    router outputs beyond the experts: zero-compute experts (LongCat)
    """

    kind: Literal["moe"] = "moe"
    num_experts: int
    experts_per_token: int
    intermediate_size: int
    gated: bool = True
    bias: bool = False
    router_bias: Literal["none", "correction", "bias"] = "none"
    router_dtype: str = ""
    shared: SharedExperts | None = None
    latent_size: int | None = None
    latent_norm: bool = False
    stacked: bool = False
    extra_routes: int = 0
    hash_vocab_size: int = 0
    renormalizes: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.experts_per_token <= self.num_experts + self.extra_routes:
            raise ValueError(
                f"experts_per_token ({self.experts_per_token}) must lie between 1 and "
                f"num_experts ({self.num_experts})"
            )

    def tensors(self, hidden_size: int) -> tuple[Tensor, ...]:
        """router (E, H); E x (gate, up (F, L or H), down); shared experts as one dense MLP."""
        e, width = self.num_experts, self.latent_size or hidden_size
        out = [matrix("router.weight", e + self.extra_routes, hidden_size, dtype=self.router_dtype)]
        if self.router_bias == "correction":
            out.append(vector("router.bias", e + self.extra_routes, dtype="float32"))
        elif self.router_bias == "bias":
            out.append(vector("router.bias", e + self.extra_routes))
        if self.hash_vocab_size:
            table = (self.hash_vocab_size, self.experts_per_token)
            out.append(Tensor("router.hash", table, dtype="int32"))
        if self.latent_size is not None:
            out.append(matrix("other.latent_in", width, hidden_size))
            out.append(matrix("other.latent_out", hidden_size, width))
            if self.latent_norm:
                out.append(vector("norms.latent", width))
        out.extend(
            _mlp("routed_experts", width, self.intermediate_size, self.gated, self.bias, copies=e)
        )
        if self.shared is not None:
            shared = self.shared
            out.extend(
                _mlp(
                    "shared_experts",
                    hidden_size,
                    shared.intermediate_size,
                    shared.gated,
                    shared.bias,
                )
            )
            if shared.gate:
                out.append(matrix("shared_experts.sigmoid_gate", 1, hidden_size))
        return tuple(out)


FeedForward = DenseMlp | MoeMlp


def _mlp(
    group: str, hidden_size: int, width: int, gated: bool, bias: bool, *, copies: int = 1
) -> list[Tensor]:
    expert = group == "routed_experts"
    fuse = f"{group}.gate_up" if gated else ""
    ups = ("gate", "up") if gated else ("up",)
    out = [
        matrix(
            f"{group}.{up}",
            width,
            hidden_size,
            split="out",
            fused=fuse,
            copies=copies,
            expert=expert,
        )
        for up in ups
    ]
    out.append(
        matrix(f"{group}.down", hidden_size, width, split="in", copies=copies, expert=expert)
    )
    if bias:
        fuse = f"{fuse}.bias" if fuse else ""
        out += [
            vector(
                f"{group}.{up}.bias", width, units=width, fused=fuse, copies=copies, expert=expert
            )
            for up in ups
        ]
        out.append(vector(f"{group}.down.bias", hidden_size, copies=copies, expert=expert))
    return out
