"""FLOPs as torch counts them, to be held against the formulas of `moesize.core.compute`.

torch counts matrix products and convolutions. What a formula counts beside them, and torch cannot
see, is listed by `unseen`: decays of recurrent states, and the scan of Mamba-1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from moesize.core.recurrent import (
    GatedDeltaNet,
    KimiDeltaAttention,
    LightningAttention,
    Mamba1,
    Mamba2,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from moesize.core.compute import Phase
    from moesize.core.mixers import Mixer
    from moesize.core.model_spec import ModelSpec


def _grouped_flops(rows: Any, matrices: Any, *_: Any, **__: Any) -> int:
    """(R, in) x (E, in, out): every row passes one matrix."""
    return 2 * int(rows[0]) * int(rows[1]) * int(matrices[-1])


def count_flops(run: Callable[[], object]) -> int:
    """FLOPs of all matrix products and convolutions that `run()` executes."""
    from torch.utils.flop_counter import FlopCounterMode

    mapping = {}
    grouped = getattr(torch.ops.aten, "_grouped_mm", None)
    if grouped is not None:
        mapping[grouped] = _grouped_flops
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter, torch.no_grad():
        run()
    return int(counter.get_total_flops())


def unseen(spec: ModelSpec, layers: Sequence[int], tokens: int, phase: Phase) -> int:
    """FLOPs that the formula counts for `tokens` tokens and torch's counter does not."""
    return tokens * sum(
        _elementwise(mixer, phase)
        for layer in layers
        for mixer in spec.block(spec.layout[layer]).mixers
    )


def _elementwise(mixer: Mixer, phase: Phase) -> int:
    """Per token: one multiplication for each state element that decays; Mamba-1 four."""
    if isinstance(mixer, Mamba1):
        # Decay, its scale for the step, and the outer product: a scan is no matrix product.
        return 4 * mixer.inner_size * mixer.state_size
    if phase == "prefill":
        return 0
    if isinstance(mixer, GatedDeltaNet):
        return mixer.num_v_heads * mixer.k_head_dim * mixer.v_head_dim
    if isinstance(mixer, (KimiDeltaAttention, LightningAttention)):
        return mixer.num_heads * mixer.head_dim**2
    if isinstance(mixer, Mamba2):
        return mixer.inner_size * mixer.state_size
    return 0
