"""Write moesize/data/field_reports.jsonl: the facts of field reports, without anybody's words.

    python scripts/build_field_reports.py --reports FILE... [--output FILE]

Kept: id, address, date, settings, observed figures. Left out: quotations, remarks, and settings
that nobody stated. A doubt is kept as true or false, an outcome as one word, SGLang's line about
its recurrent pool as the numbers in it. The result is read back and compared figure by figure.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from moesize.accuracy.reports import FieldReport, read_reports, shipped_reports
from moesize.accuracy.runs import GIVEN_BLOCKS
from moesize.accuracy.terms import figures_of
from moesize.documents import Report

_PROSE = ("quote", "model_note", "unit_note", "source_group", "moe", "suspect", "observed")
_POOL = re.compile(
    r"max_mamba_cache_size: (\d+), conv_state size: ([\d.]+)GB, ssm_state size: ([\d.]+)GB"
)
_OUTCOMES = ("ok", "loaded", "fits", "kv_too_small")


def compact(report: FieldReport) -> dict[str, Any]:
    """A report as it ships: the fields of `Report` in their order, stated ones only."""
    kept = {
        name: _value(report.settings[name])
        for name in Report.__annotations__
        if name not in _PROSE and _said(report.settings.get(name))
    }
    if report.suspect:
        kept["suspect"] = True
    observed = {
        name: _value(value)
        for name, value in report.observed.items()
        if name in _observed_names() and _said(value)
    }
    if "outcome" in observed:
        observed["outcome"] = outcome(str(observed["outcome"]))
    if "kv_detail" in observed:
        observed["kv_detail"] = "a part of the cache"
    pool = _POOL.search(str(observed.get("mamba_cache", "")))
    if pool is not None:
        observed["mamba_cache"] = {
            "slots": int(pool[1]),
            "conv_gib": float(pool[2]),
            "ssm_gib": float(pool[3]),
        }
    return {**kept, "observed": observed}


def outcome(text: str) -> str:
    """One word for what happened; `other` says nothing about fitting."""
    if text in _OUTCOMES or text.startswith("oom_"):
        return text
    return "oom" if text.startswith("OOM") or "out of memory" in text else "other"


def _observed_names() -> frozenset[str]:
    from moesize.documents import Observed

    return frozenset(Observed.__annotations__)


def _said(value: Any) -> bool:
    return value is not None and value not in ("", [], {})


def _value(value: Any) -> Any:
    """Sums of printed figures without the noise of their addition."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _value(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_value(item) for item in value]
    return value


def main() -> int:
    """Write the file, read it back, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--reports", nargs="+", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=shipped_reports())
    options = parser.parse_args()
    found: list[FieldReport] = []
    for path in options.reports:
        file = read_reports(path)
        for problem in file.problems:
            print(f"{path}:{problem.line}: {problem.message}", file=sys.stderr)
        found += file.reports
    lines = [json.dumps(compact(report), ensure_ascii=False) for report in found]
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    written = read_reports(options.output).reports
    for before, after in zip(found, written, strict=True):
        if _figures(before) != _figures(after):
            print(f"{before.id}: figures differ after writing", file=sys.stderr)
            return 1
    print(f"{options.output}: {len(written)} reports")
    return 0


def _figures(report: FieldReport) -> list[tuple[str, str, float]]:
    return [
        (figure.term, figure.device, round(figure.observed, 2))
        for figure in figures_of(report, given_blocks=GIVEN_BLOCKS)
    ]


if __name__ == "__main__":
    sys.exit(main())
