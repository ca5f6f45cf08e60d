"""What a layer keeps for a sequence: per token of context, and however long it is."""

from __future__ import annotations

from moesize.core.records import dataclass


@dataclass(frozen=True, slots=True)
class TokenCache:
    """What one layer keeps per token of context.

    part      "kv" (keys and values), "latent" (MLA), "index" (sparse indexer), "compressed"
    heads     how many heads it is split over; 0 = not split over ranks (latents)
    key_size, value_size   elements per head; value_size 0 when values live in the key part
    window    tokens kept behind the newest one; None = all of them
    chunk     tokens of an attention chunk (Llama 4); None = none
    ratio     tokens per stored state (DeepSeek-V4 compression); 1 = every token
    """

    part: str
    heads: int
    key_size: int
    value_size: int
    window: int | None = None
    chunk: int | None = None
    ratio: int = 1


@dataclass(frozen=True, slots=True)
class StatePart:
    """A recurrent state per sequence and layer.

    `shape` in elements, `units` pieces that ranks can share out along `dim`; dtype empty = model's.
    `replicate`: ranks beyond the last unit hold a copy of it (the B and C of a Mamba-2 group).
    """

    name: str
    shape: tuple[int, ...]
    dim: int
    units: int
    dtype: str = ""
    replicate: bool = False
