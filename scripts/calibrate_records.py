"""Make calibration data out of records of `moesize verify --save`.

    python scripts/calibrate_records.py                     prints what the records give
    python scripts/calibrate_records.py --write             puts constants into data/engines
    python scripts/calibrate_records.py --check             exit code 1 where --write would change

Records are those of measurements/, or of the folder that --records names (yours, for example).
A constant of data/engines/<engine>.json with `measured_by` gets a row of its own for each GPU
architecture of which there are enough records; the row without `architecture` stands for all
others. Rows change only where there are enough: what is printed says so. --json prints everything,
with measured / predicted of every term and the size of communicators, of which no constant is made:
engines make several, and a record knows one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import moesize
from moesize.verify.observations import (
    FEWEST,
    FIGURES,
    Fit,
    communicators,
    fit,
    measurements,
    observed,
    ratios,
    summary,
)
from moesize.verify.receipts import read_folder

if TYPE_CHECKING:
    from moesize.verify.receipts import Receipt

ROOT = Path(__file__).resolve().parent.parent
ENGINES = Path(moesize.__file__).parent / "data" / "engines"


def calibrated(data: dict[str, Any], records: list[Receipt], say: list[str]) -> dict[str, Any]:
    """An engine's data with the rows that the records give; what was done is added to `say`."""
    old = data["constants"]
    made = {
        (row["name"], row["from"], row["architecture"]): row for row in old if "architecture" in row
    }
    constants: list[dict[str, Any]] = []
    for row in old:
        if "architecture" in row:
            continue
        constants.append(row)
        word = row.get("measured_by")
        if word is None:
            continue
        name = f"{data['engine']} {row['name']}"
        found = observed(records, FIGURES[word])
        if not found:
            say.append(f"{name}: no record, unchanged")
        for architecture, values in found.items():
            one = fit(architecture, values)
            if one is None:
                count = f"{len(values)} records, {FEWEST} are needed"
                say.append(f"{name}, {architecture}: {count}, unchanged")
                continue
            made[row["name"], row["from"], architecture] = _row(row, one)
            shown = (f"{size / (1 << 20):.1f}" for size in (one.value, one.low, one.high))
            say.append(
                "{}, {}: {} ({} to {}) MiB, n = {}".format(
                    name, architecture, *shown, one.observations
                )
            )
        own = sorted(key for key in made if key[:2] == (row["name"], row["from"]))
        constants += [made[key] for key in own]
    return {**data, "constants": constants}


def _row(general: dict[str, Any], one: Fit) -> dict[str, Any]:
    return {
        "name": general["name"],
        "architecture": one.architecture,
        "from": general["from"],
        "before": general["before"],
        "value": one.value,
        "low": one.low,
        "high": one.high,
        "unit": general["unit"],
        "observations": one.observations,
        "spread": one.spread,
        "date": one.date,
        "source": one.source,
        "note": f"Of {one.architecture} cards, in place of {general['value']:,} for any.",
    }


def main() -> int:
    """Print, check or write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--records", type=Path, default=ROOT / "measurements", metavar="FOLDER")
    parser.add_argument("--engines", type=Path, default=ENGINES, help=argparse.SUPPRESS)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true")
    what.add_argument("--check", action="store_true")
    what.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.records.is_dir():
        parser.error(f"{options.records} is no folder")
    records = read_folder(options.records)
    if options.json:
        print(json.dumps(summary(records), indent=2))
        return 0
    say = [f"{len(records)} records, {len(measurements(records))} of GPUs that ended well"]
    stale = False
    for path in sorted(options.engines.glob("*.json")):
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
        if not any("measured_by" in row for row in data["constants"]):
            continue
        made = calibrated(data, records, say)
        if made == data:
            continue
        if options.write:
            path.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
        elif options.check:
            stale = True
            say.append(f"{path.name}: out of date; run python scripts/calibrate_records.py --write")
    for row in ratios(records):
        say.append(
            f"{row.term}: measured / predicted, median {row.median:.4f}, nine tenths within "
            f"{row.p90:.2%}, worst {row.worst:.2%}, n = {row.n}"
        )
    for size in communicators(records):
        say.append(
            f"communicator of {size.ranks} ranks on {size.gpu}: {size.median_bytes / (1 << 20):.1f}"
            f" ({size.low_bytes / (1 << 20):.1f} to {size.high_bytes / (1 << 20):.1f}) MiB, "
            f"n = {size.n}"
        )
    print("\n".join(say))
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
