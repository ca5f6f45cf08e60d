"""One tensor of a model: its shape, how many there are, what it is for, how it splits.

Everything that moesize says about a model (totals, active parameters, bytes, sharding, FLOPs)
derives from the list of these; nothing is counted a second way.

Symbols: H hidden size, N query heads, K KV heads, d head size, F feed-forward width,
E routed experts, V vocabulary.
"""

from __future__ import annotations

from math import prod

from moesize.core.records import dataclass

# Groups of the model.params object; a role's first word is its group.
GROUPS = (
    "attention",
    "routed_experts",
    "shared_experts",
    "router",
    "dense_mlp",
    "embedding",
    "lm_head",
    "norms",
    "towers",
    "other",
)


@dataclass(frozen=True, slots=True)
class Shard:
    """How tensor parallelism cuts a tensor: along `dim`, in `units` indivisible pieces.

    A head is a unit of a query projection; a single row is a unit of an MLP. With more ranks
    than units, `replicate` gives several ranks the same unit (KV heads) instead of refusing.
    """

    dim: int
    units: int
    replicate: bool = False


@dataclass(frozen=True, slots=True)
class Tensor:
    """`copies` equal tensors of one layer (or of the model, outside the layers).

    shape      logical elements, (out_features, in_features) for a matrix
    copies     how many of them a layer has; E for routed experts
    role       dotted: group, then what it is; one-dimensional biases end in `.bias`
    shard      how tensor parallelism splits it; None = every rank holds all of it
    fused      engines that merge projections allocate tensors of the same key as one block
    dtype      element type when it is not the model's own, such as `float32`; else empty
    expert     True when expert parallelism hands out whole copies
    matmul     True when a token is multiplied with it (FLOPs); False for look-ups, norms, biases
    """

    role: str
    shape: tuple[int, ...]
    copies: int = 1
    shard: Shard | None = None
    fused: str = ""
    dtype: str = ""
    expert: bool = False
    matmul: bool = False

    @property
    def group(self) -> str:
        """Parameter group, one of GROUPS."""
        return self.role.partition(".")[0]

    @property
    def elements(self) -> int:
        """Logical elements of all copies."""
        return prod(self.shape) * self.copies


def matrix(
    role: str,
    out_features: int,
    in_features: int,
    *,
    split: str = "",
    units: int = 0,
    replicate: bool = False,
    fused: str = "",
    copies: int = 1,
    expert: bool = False,
    dtype: str = "",
) -> Tensor:
    """A weight that tokens are multiplied with, shape (out_features, in_features).

    `split` is "out" (column parallel), "in" (row parallel) or "" (replicated); `units` defaults
    to single rows or columns.
    """
    shard = None
    if split:
        dim = 0 if split == "out" else 1
        shard = Shard(dim, units or (out_features, in_features)[dim], replicate)
    return Tensor(
        role, (out_features, in_features), copies, shard, fused, dtype, expert, matmul=True
    )


def vector(
    role: str,
    size: int,
    *,
    units: int = 0,
    replicate: bool = False,
    dtype: str = "",
    copies: int = 1,
    expert: bool = False,
    fused: str = "",
) -> Tensor:
    """A norm, bias or other one-dimensional weight; split in `units` pieces, or not at all."""
    shard = Shard(0, units, replicate) if units else None
    return Tensor(role, (size,), copies, shard, fused, dtype, expert)
