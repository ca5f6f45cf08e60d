"""What records say about constants, and about how good predictions are. Needs no torch.

Only measurements count: of a GPU of the catalogue, by the plain pass or block formats (engine
`torch`), and not ended by memory. Terms of whole models that were extrapolated are no terms of a
record, and are never looked at.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from moesize.core.errors import EnvironmentProblem
from moesize.verify.receipts import catalogue_gpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from moesize.verify.receipts import Receipt

# Fewer records of a kind of card say nothing about the next one.
FEWEST = 5
# Half the width of a band at the least, as a share of the value: what one card, driver and torch
# gave may be another's by that much; calibration.py takes the same for one log.
_ONE_SETUP, _SEVERAL_SETUPS = 0.15, 0.05
_TERMS = (
    "weights", "weights.blocks", "weights.reserved", "load_peak", "kv_cache.static",
    "kv_cache.growing", "prefill_peak", "decode_peak", "decode_peak.growing", "logits_peak",
    "sampling_peak", "peak",
)  # fmt: skip


def measurements(records: Iterable[Receipt]) -> list[Receipt]:
    """Those that count."""
    return [
        one
        for one in records
        if one.kind in ("cuda", "xpu")
        and one.engine == "torch"
        and not one.failed
        and catalogue_gpu(one.gpu)
    ]


# --- Constants ------------------------------------------------------------------------------------


def _context(record: Receipt) -> int | None:
    """All of it, where the driver was asked before the process touched the card.

    Else what other processes held is in the figure, and nothing was predicted for it. In a group of
    ranks their communicator is.
    """
    known = [term for term in record.of("context") if term.predicted_bytes is not None]
    return record.measured("context") if known and not record.of("communicator") else None


def _first_call(record: Receipt) -> int | None:
    """The context before anything was multiplied."""
    whole, product = _context(record), record.of("context.first_product")
    if whole is None or not product or product[0].measured_bytes is None:
        return None
    return whole - product[0].measured_bytes


def _workspace(record: Receipt) -> int | None:
    """What cuBLAS keeps in the allocator."""
    return record.measured("workspace")


# By the word of `measured_by` in data/engines/*.json.
FIGURES: dict[str, Callable[[Receipt], int | None]] = {
    "context": _context,
    "context.first_call": _first_call,
    "workspace": _workspace,
}


class Fit(NamedTuple):
    """A constant of one kind of card.

    value = median over setups (card, driver, torch) of the median of a setup's records; the band
    is what was seen, and at least 15 % of the value either way for one setup, 5 % for several.
    """

    architecture: str
    value: int
    low: int
    high: int
    observations: int
    spread: str
    date: str
    source: str


def architecture_of(record: Receipt) -> str:
    """Of the card, as the catalogue writes it."""
    from moesize.gpus import find_gpu

    return find_gpu(catalogue_gpu(record.gpu)).spec.architecture


def observed(
    records: Iterable[Receipt], figure: Callable[[Receipt], int | None]
) -> dict[str, list[tuple[Receipt, int]]]:
    """Records that hold a figure, by architecture."""
    found = defaultdict(list)
    for record in measurements(records):
        value = figure(record)
        if value is not None and value > 0:
            found[architecture_of(record)].append((record, value))
    return dict(sorted(found.items()))


def fit(architecture: str, found: list[tuple[Receipt, int]]) -> Fit | None:
    """The constant that records of one architecture give; None where they are too few."""
    if len(found) < FEWEST:
        return None
    by_setup = defaultdict(list)
    for record, value in found:
        by_setup[record.gpu, record.driver, record.torch].append(value)
    middle = statistics.median(statistics.median(values) for values in by_setup.values())
    margin = _ONE_SETUP if len(by_setup) == 1 else _SEVERAL_SETUPS
    values = sorted(value for _, value in found)
    setups = [
        f"{gpu}, driver {driver}, torch {torch}: {_mib(own)}"
        for (gpu, driver, torch), own in sorted(by_setup.items())
    ]
    shown = "; ".join(setups[:6]) + (f"; and {len(setups) - 6} more" if len(setups) > 6 else "")
    files = sorted(record.file for record, _ in found)
    named = ", ".join(files[:6]) + (f" and {len(files) - 6} more" if len(files) > 6 else "")
    return Fit(
        architecture=architecture,
        value=round(middle),
        low=min(values[0], math.floor(middle * (1 - margin))),
        high=max(values[-1], math.ceil(middle * (1 + margin))),
        observations=len(found),
        spread=shown,
        date=max(record.date for record, _ in found),
        source=f"moesize verify --save: {named}",
    )


def _mib(values: list[int]) -> str:
    low, high = (f"{value / (1 << 20):.1f}" for value in (min(values), max(values)))
    return f"{low} MiB" if low == high else f"{low} to {high} MiB"


# Of `transformers`, whose own code holds nothing beside the tensors: its constants are just these.
_OWN = {"cuda_context": "context", "library_workspaces": "workspace"}


def keep_constants(record: Receipt) -> None:
    """Add what a run measured of its card to the user's calibration file, if that can be written.

    Later plans of `transformers` on such a card use it. One measurement counts for each card,
    driver and torch: the newest. Constants of vLLM and SGLang are measured in their own logs, by
    `audit --save`: what their context is taken as differs by release.
    """
    import hashlib

    from moesize.calibration import Record, calibration_path, save
    from moesize.engines import engine_profile

    if not measurements([record]) or calibration_path() is None:
        return
    setup = f"{record.gpu}, driver {record.driver}, torch {record.torch}"
    found = [
        Record(
            gpu=catalogue_gpu(record.gpu), engine="transformers",
            version=engine_profile("transformers").version, kind="", constant=constant,
            term=f"verify {word}", value=float(value), unit="byte", date=record.date,
            log=hashlib.sha256(setup.encode()).hexdigest(),
        )
        for constant, word in _OWN.items()
        if (value := FIGURES[word](record))
    ]  # fmt: skip
    if found:
        with suppress(EnvironmentProblem):  # the record itself is kept
            save(found)


# --- How good predictions are ---------------------------------------------------------------------


class Ratio(NamedTuple):
    """measured / predicted of a term over all records and ranks.

    p90, worst   of |ratio - 1|: nine tenths are within the first (nearest rank), all in the second
    """

    term: str
    n: int
    median: float
    p90: float
    worst: float


def ratios(records: Iterable[Receipt]) -> list[Ratio]:
    """One row for each term that was measured and predicted."""
    kept = measurements(records)
    out = []
    for name in _TERMS:
        found = [
            term.measured_bytes / term.predicted_bytes
            for record in kept
            for term in record.of(name)
            if term.predicted_bytes and term.measured_bytes is not None
        ]
        if found:
            off = sorted(abs(ratio - 1) for ratio in found)
            p90 = off[math.ceil(0.9 * len(off)) - 1]
            out.append(Ratio(name, len(found), statistics.median(found), p90, off[-1]))
    return out


class Communicator(NamedTuple):
    """Driver memory of a group's communicator by number of ranks and card, over all ranks."""

    ranks: int
    gpu: str
    n: int
    median_bytes: float
    low_bytes: int
    high_bytes: int


def communicators(records: Iterable[Receipt]) -> list[Communicator]:
    """One row for each size of group and card."""
    found: dict[tuple[int, str], list[int]] = defaultdict(list)
    for record in measurements(records):
        for term in record.of("communicator"):
            if term.measured_bytes is not None:
                found[record.ranks, record.gpu].append(term.measured_bytes)
    return [
        Communicator(ranks, gpu, len(sizes), statistics.median(sizes), min(sizes), max(sizes))
        for (ranks, gpu), sizes in sorted(found.items())
    ]


def summary(records: Iterable[Receipt]) -> dict[str, Any]:
    """Everything that is made of records, as JSON."""
    kept = list(records)
    return {
        "records": len(kept),
        "counted": len(measurements(kept)),
        "constants": {
            word: [one._asdict() for arch, rows in observed(kept, figure).items()
                   if (one := fit(arch, rows))]
            for word, figure in FIGURES.items()
        },
        "ratios": [row._asdict() for row in ratios(kept)],
        "communicators": [row._asdict() for row in communicators(kept)],
    }  # fmt: skip
