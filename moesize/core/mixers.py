"""The union of all token mixers; a new kind is added to it and to nothing else."""

from __future__ import annotations

from moesize.core.attention import CompressedAttention, GroupedQueryAttention, LatentAttention
from moesize.core.recurrent import (
    GatedDeltaNet,
    KimiDeltaAttention,
    LightningAttention,
    Mamba1,
    Mamba2,
    ShortConv,
)

Mixer = (
    GroupedQueryAttention
    | LatentAttention
    | CompressedAttention
    | GatedDeltaNet
    | KimiDeltaAttention
    | Mamba2
    | Mamba1
    | LightningAttention
    | ShortConv
)
