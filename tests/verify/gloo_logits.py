"""One of two ranks over gloo: its logits of several families beside those of one process.

Prints {family: largest difference over largest logit} as JSON.
"""

from __future__ import annotations

import json

import torch

from moesize.core.model_spec import ModelSpec
from moesize.verify import distributed
from moesize.verify.devices import CpuMeter
from moesize.verify.forward import ForwardModel, Numerics
from verify import tiny
from verify.test_rank_slices import State, made, mxfp4_gpt_oss, slices

FAMILIES = ("llama", "deepseek_v3", "qwen3_next", "mixtral", "bamba", "gpt_oss")
MXFP4 = "gpt_oss in MXFP4"


Made = tuple[ModelSpec, Numerics, State, list[State]]


def made_alike(name: str) -> Made:
    """The same on both ranks; the library writes files on one rank only once there is a group."""
    torch.manual_seed(7)
    if name == MXFP4:
        spec, config, state = mxfp4_gpt_oss()
    else:
        spec, config, state = made(next(f for f in tiny.FAMILIES if f.id == name))
    return spec, Numerics.from_config(config, spec), state, slices(spec, state, 2)


def difference(model: Made, group: distributed.Group) -> float:
    """Of this rank's part of the vocabulary."""
    spec, numerics, state, parts = model
    ids = torch.randint(3, 96, (2, 8), generator=torch.Generator().manual_seed(1))
    tp = (group.rank, group.size)
    rank = ForwardModel(spec, numerics, parts[group.rank], tp=tp, reduce=group.sum)
    part, whole = (
        torch.cat((one.logits(one.prefill(ids[:, :-1])), one.logits(one.decode(ids[:, -1]))), 1)
        for one in (rank, ForwardModel(spec, numerics, state))
    )
    mine = whole.chunk(group.size, -1)[group.rank]
    return float((part - mine).abs().max() / whole.abs().max())


def main() -> None:
    """All families in one group."""
    models = {name: made_alike(name) for name in (*FAMILIES, MXFP4)}
    with distributed.session() as group:
        assert group is not None
        group.connect(CpuMeter())
        print(json.dumps({name: difference(model, group) for name, model in models.items()}))


if __name__ == "__main__":
    main()
