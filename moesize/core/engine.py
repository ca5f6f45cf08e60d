"""What every engine planner takes and gives: profile in, ledgers and capacity out.

An engine is a module with a function `plan(spec, stored, gpu, request, rules) -> EngineAnswer`,
`rules_of(EngineProfile)`, which makes `rules` once per version, and `PLANS`, the names of the
Request fields it plans: any other that is given is refused. `moesize.engines` knows the modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from moesize.core.expert_parallel import ExpertBalance
from moesize.core.ledger import GpuLedger, MemoryItem
from moesize.core.plan import KvSummary, Note
from moesize.core.records import dataclass


class Constant(NamedTuple):
    """An empirical number with its band and where it comes from.

    `observations` 0 means unmeasured: the band is wide on purpose. `spread` says in words how far
    the observations lie apart.
    """

    name: str
    value: float
    low: float
    high: float
    unit: str
    observations: int
    spread: str
    date: str
    source: str
    note: str


Constants = Mapping[str, Constant]


class EngineProfile(NamedTuple):
    """Facts and constants of one engine at one version.

    `is_newer_than_known` when the version is above the newest one that was looked at: the facts
    of that one are used.
    """

    engine: str
    title: str
    version: str
    is_newer_than_known: bool
    facts: Mapping[str, Any]
    constants: Constants


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCost:
    """What a decode step on the limiting rank reads and computes with.

    weights_by_group   weight bytes on the rank by parameter group, without scales
    num_layers         decoder layers on the rank
    recurrent_bytes    states of linear attention and Mamba of one sequence
    attention_dp       groups inside tensor parallelism that each attend to their own sequences
    """

    weights_by_group: Mapping[str, int]
    scale_bytes: int
    parameter_bytes: int
    num_layers: int
    recurrent_bytes: int = 0
    attention_dp: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAnswer:
    """What an engine does with a request.

    kv                  of the limiting rank
    held_before_start   items that the device holds before the engine compares what is free with
                        its budget; empty where it makes no such check
    host                what lies in the host's memory, all ranks together
    expert_parallel     how experts and tokens are shared out; None without expert parallelism
    refusal             why the engine would not start, in words; empty when it does
    """

    deployment: dict[str, Any]
    defaulted: tuple[str, ...]
    ledgers: tuple[GpuLedger, ...]
    kv: KvSummary
    limiting_rank: int
    limiting: RankCost
    warnings: tuple[Note, ...]
    held_before_start: tuple[str, ...] = ()
    host: tuple[MemoryItem, ...] = ()
    expert_parallel: ExpertBalance | None = None
    refusal: str = ""
