"""Which models of the catalogue `moesize verify` can run: each on shapes alone, nothing is loaded.

    python scripts/check_verify_models.py [--only WORD]

One layer of every kind of each model, a short prompt and a step. Bytes of caches that the pass
leaves behind are held against the formula of the core. Models of one spec are run once. Exit code
1 when a cache differs, or a model is refused.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections import Counter
from typing import TYPE_CHECKING

from moesize.catalog import list_models, resolve_model
from moesize.core.checkpoint import published
from moesize.core.errors import MoesizeError, UnsupportedError
from moesize.verify import predict
from moesize.verify.forward import Numerics
from moesize.verify.passes import Workload
from moesize.verify.predict import Subject
from moesize.verify.receipts import spec_hash
from moesize.verify.selection import Selection, layer_kinds

if TYPE_CHECKING:
    from moesize.core.model_spec import ModelSpec

WORK = Workload(tokens=8, sequences=2, decode_steps=1)
WHOLE, WEIGHTS = "run whole", "weights only"


def main() -> int:
    """Run them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="models whose name holds this")
    options = parser.parse_args()
    gc.freeze()
    known: dict[str, str] = {}
    found: Counter[str] = Counter()
    for name in sorted(row["id"] for row in list_models()):
        if options.only not in name:
            continue
        spec, _ = resolve_model(name)
        key = spec_hash(spec)
        if key not in known:
            known[key] = outcome(spec)
        found[known[key].partition(":")[0]] += 1
        if known[key] != WHOLE:
            print(f"{name}: {known[key]}", flush=True)
    print(f"{sum(found.values())} models of {len(known)} specs: {dict(found)}")
    return 0 if set(found) <= {WHOLE, WEIGHTS} else 1


def outcome(spec: ModelSpec) -> str:
    """What becomes of a model: WHOLE, WEIGHTS and why, or what is wrong."""
    try:
        stored = published(spec)
        kinds = layer_kinds(spec, stored)
        first = tuple(sorted(kinds.index(kind) for kind in set(kinds)))
        subject = Subject(
            spec=spec, stored=stored, numerics=Numerics.neutral(spec),
            selection=Selection(first, True), dtype=spec.dtype,
        )  # fmt: skip
        predict.weights(subject)
    except MoesizeError as problem:
        return f"refused: {problem.message}"
    try:
        predict.check_passes(subject)
        peaks = predict.dry_peaks(subject, WORK, predict.even(subject, WORK))
    except UnsupportedError as problem:
        return f"{WEIGHTS}: {problem.message}"
    for kind, passes in zip(predict.CACHE_KINDS, peaks, strict=True):
        expected = predict.cache_bytes(subject, WORK, kind)
        if passes.cache != expected:
            return f"cache differs: {kind} {passes.cache:,} instead of {expected:,} bytes"
    return WHOLE


if __name__ == "__main__":
    sys.exit(main())
