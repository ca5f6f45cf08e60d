"""How the tokens of a step and the routed experts meet on expert-parallel ranks.

Balanced: every expert is chosen equally often. A skew F says that the busiest rank gets F times
the mean; what one token's k choices and a rank's experts allow bounds it.

Symbols: E routed experts, R redundant copies, n ranks, k experts per token, B tokens of a step over
all ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesize.core.inventory import moe_of
from moesize.core.records import dataclass
from moesize.core.units import ceil_div

if TYPE_CHECKING:
    from moesize.core.model_spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLoad:
    """What one step brings to a rank.

    rows               (token, expert) pairs that it computes
    tokens             tokens with at least one of their experts on it, expected
    distinct_experts   experts of a layer that it reads, expected
    """

    rows: float
    tokens: float
    distinct_experts: float

    def to_dict(self) -> dict[str, float]:
        """Ready for JSON."""
        return {
            "rows": round(self.rows, 3),
            "tokens": round(self.tokens, 3),
            "distinct_experts": round(self.distinct_experts, 3),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertBalance:
    """Experts and load of every rank of a pipeline stage; `skew` as asked for, 1 = balanced."""

    ranks: int
    experts: int
    experts_per_token: int
    redundant: int
    most_experts: int
    least_experts: int
    ranks_with_most: int
    skew: float
    decode_tokens: int
    prefill_tokens: int

    def load(self, tokens: int, skew: float = 1.0) -> RankLoad:
        """Load of a rank in a step of `tokens` tokens over all ranks, `skew` times the mean.

        `rows = F B k / n`, at most `B min(k, experts of the rank)`; each of the rank's experts is
        chosen by a token with probability `p = rows / (B experts)`, so `experts (1 - (1 - p)^B)`
        are read and `B (1 - (1 - p)^experts)` tokens come.
        """
        if not tokens:
            return RankLoad(rows=0.0, tokens=0.0, distinct_experts=0.0)
        most = tokens * min(self.experts_per_token, self.most_experts)
        rows = min(skew * tokens * self.experts_per_token / self.ranks, most)
        chance = min(1.0, rows / (tokens * self.most_experts))
        return RankLoad(
            rows=rows,
            tokens=min(tokens * (1 - (1 - chance) ** self.most_experts), rows),
            distinct_experts=self.most_experts * (1 - (1 - chance) ** tokens),
        )

    @property
    def busiest_factor(self) -> float:
        """Rows of the busiest rank / mean, after the bounds."""
        mean = self.load(self.decode_tokens).rows
        return self.load(self.decode_tokens, self.skew).rows / mean if mean else 1.0

    def to_dict(self) -> dict[str, Any]:
        """The `expert_parallel` object, without what a step costs."""
        decode, prefill = self.decode_tokens, self.prefill_tokens
        return {
            "ranks": self.ranks,
            "experts": self.experts,
            "redundant": self.redundant,
            "experts_per_rank": {"min": self.least_experts, "max": self.most_experts},
            "ranks_with_most": self.ranks_with_most,
            "skew": self.skew,
            "decode": {
                "tokens": decode,
                "balanced": self.load(decode).to_dict(),
                "busiest": self.load(decode, self.skew).to_dict(),
            },
            "prefill": {
                "tokens": prefill,
                "balanced": self.load(prefill).to_dict(),
                "busiest": self.load(prefill, self.skew).to_dict(),
            },
        }


def expert_balance(
    spec: ModelSpec,
    *,
    ranks: int,
    redundant: int = 0,
    skew: float | None = None,
    decode_tokens: int,
    prefill_tokens: int,
) -> ExpertBalance | None:
    """The balance of a model's widest mixture of experts over `ranks`; None for a dense model."""
    layers = [moe for block in spec.blocks if (moe := moe_of(block)) is not None]
    if not layers:
        return None
    moe = max(layers, key=lambda item: item.num_experts)
    physical = moe.num_experts + redundant
    return ExpertBalance(
        ranks=ranks,
        experts=moe.num_experts,
        experts_per_token=min(moe.experts_per_token, moe.num_experts),
        redundant=redundant,
        most_experts=ceil_div(physical, ranks),
        least_experts=physical // ranks,
        ranks_with_most=physical % ranks or ranks,
        skew=skew or 1.0,
        decode_tokens=decode_tokens,
        prefill_tokens=prefill_tokens,
    )
