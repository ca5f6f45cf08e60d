"""A rank computes the same from the slices that loading reads as from whole tensors it cuts itself.

Every family; both ranks meet in every sum, so that a wrong row of one shows in both.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from moesize.core.checkpoint import published
from moesize.core.model_spec import ModelSpec
from moesize.readers.hf.read import spec_from_config
from moesize.verify.file_tensors import file_tensors
from moesize.verify.forward import ForwardModel, Numerics
from moesize.verify.loading import load
from moesize.verify.safetensors_files import open_checkpoint
from verify import tiny
from verify.ranks import logits_of_ranks

State = dict[str, torch.Tensor]


def slices(spec: ModelSpec, state: State, size: int) -> list[State]:
    """What each rank loads of a checkpoint."""
    tensors = [
        tensor._replace(dtype="float32") if tensor.dtype == "bfloat16" else tensor
        for tensor in file_tensors(spec, published(spec))
    ]
    out = []
    with TemporaryDirectory() as folder:
        save_file({k: v.contiguous() for k, v in state.items()}, Path(folder) / "model.safetensors")
        files = open_checkpoint(Path(folder))
        for rank in range(size):
            own = load(files, tensors, rank=rank, size=size).state
            out.append({**constants(state), **own})
    return out


def constants(state: State) -> State:
    """What the inventory counts as stored only, and no rank cuts."""
    return {name: tensor for name, tensor in state.items() if name.endswith("layer_scalar")}


def check(spec: ModelSpec, config: dict[str, Any], state: State, size: int) -> None:
    ids = torch.randint(3, 96, (2, 8))
    cut = logits_of_ranks(spec, config, slices(spec, state, size), ids, cut=True)
    own = logits_of_ranks(spec, config, [state] * size, ids, cut=False)
    model = ForwardModel(spec, Numerics.from_config(config, spec), state)
    first = model.logits(model.prefill(ids[:, :-1]))
    whole = torch.cat((first, model.logits(model.decode(ids[:, -1]))), 1)
    for a, b in zip(cut, own, strict=True):
        assert (a - b).abs().max() <= 1e-6 * b.abs().max()
    assert (torch.cat(cut, -1) - whole).abs().max() < 1e-4 * whole.abs().max()


@pytest.mark.parametrize("family", tiny.FAMILIES, ids=lambda family: family.id)
def test_slices_and_whole_tensors_give_the_same(family: tiny.Family) -> None:
    with TemporaryDirectory() as folder:
        _, config = tiny.save(family, Path(folder))
        state = tiny.state_of(Path(folder))
    check(spec_from_config(config, file="config.json"), config, state, 2)
