"""The ledger: named memory items on one GPU, and their sum."""

from __future__ import annotations

from typing import Literal

from moesize.core.records import dataclass

Category = Literal["weights", "kv_cache", "activations", "runtime", "draft", "lora", "reserve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryItem:
    """One reason why memory is in use.

    size_bytes    best estimate; equal to low and high where it is exact
    formula       in words, with the numbers put in
    source        where the formula or its constant comes from
    in_budget     charged to what the engine allows itself, not to the rest of the card
    """

    name: str
    category: Category
    size_bytes: int
    low_bytes: int
    high_bytes: int
    formula: str
    source: str
    in_budget: bool = True

    @property
    def exact(self) -> bool:
        """True when there is nothing to estimate."""
        return self.low_bytes == self.high_bytes


def exact_item(
    name: str,
    category: Category,
    size_bytes: int,
    formula: str,
    source: str,
    *,
    in_budget: bool = True,
) -> MemoryItem:
    """An item without a band."""
    return MemoryItem(
        name=name,
        category=category,
        size_bytes=size_bytes,
        low_bytes=size_bytes,
        high_bytes=size_bytes,
        formula=formula,
        source=source,
        in_budget=in_budget,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLedger:
    """What one rank's GPU must hold.

    usable_bytes   what the driver hands out; budget_bytes what the engine allows itself of it
    count          GPUs that hold the same; None = not said
    """

    rank: int
    pp_stage: int
    usable_bytes: int
    budget_bytes: int
    items: tuple[MemoryItem, ...]
    count: int | None = None

    @property
    def used_bytes(self) -> int:
        """Sum of all items, KV cache at the planned context and concurrency."""
        return sum(item.size_bytes for item in self.items)

    @property
    def in_budget_bytes(self) -> int:
        """Sum of the items that the engine charges to its budget."""
        return sum(item.size_bytes for item in self.items if item.in_budget)

    @property
    def outside_bytes(self) -> int:
        """Sum of the items outside the engine's budget."""
        return self.used_bytes - self.in_budget_bytes

    @property
    def headroom_bytes(self) -> int:
        """What is left of the budget, or of the card where that is less; negative = too much."""
        return min(self.budget_bytes - self.in_budget_bytes, self.usable_bytes - self.used_bytes)

    def category_bytes(self, category: Category) -> int:
        """Sum of one category."""
        return sum(item.size_bytes for item in self.items if item.category == category)
