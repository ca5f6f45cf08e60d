"""Fit the measured constants of an engine to field reports, and say how well they hold.

    python scripts/calibrate.py --reports FILE --engine vllm [--configs FOLDER] [--write]

FILE has one report a line (JSON: docs of `moesize accuracy`). Rows of data/engines/<engine>.json
with a `fit` object say which observations they are made of: adding a version range is adding a row.
The value is the median, low and high are quantiles; `--write` puts them into the data file. For
every constant the error on groups of sources that were left out is printed beside the error on all.

Kinds of `fit`: activations_sampler (bytes per logit), activations_forward (factor), non_torch,
communication, graphs (bytes for each captured graph and layer), context. `vendor` restricts a row
to GPUs.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import moesize
from moesize.api import plan
from moesize.catalog import resolve_model
from moesize.core.errors import MoesizeError
from moesize.core.units import GIB
from moesize.engines import release_of
from moesize.gpus import find_gpu
from moesize.readers.hf.read import spec_from_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from moesize.core.model_spec import ModelSpec

_QUANTILES = (0.05, 0.95)
_FEWEST = 5
_ENOUGH = 10
# A share of the card beyond which what a log leaves unexplained is not activations and runtime: the
# card is another one, or somebody else uses it.
_MOST_UNEXPLAINED = 0.3
_SUFFIXES = re.compile(
    r"[-_](fp8(-dynamic|-block|-static)?|nvfp4|awq|gptq|(awq|gptq)-?[48]bit|int[48]|w4a16|w8a8)$"
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One observation of a constant: its value, and whose it is."""

    group: str
    url: str
    value: float


@dataclass(slots=True)
class Samples:
    """Observations by kind of fit, vendor and release."""

    rows: list[tuple[str, str, tuple[int, ...] | None, Sample]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, kind: str, vendor: str, release: tuple[int, ...] | None, sample: Sample) -> None:
        self.rows.append((kind, vendor, release, sample))

    def of(self, row: dict[str, Any]) -> list[Sample]:
        """Those that a constant is made of."""
        fit = row["fit"]
        first = release_of(fit.get("from", row["from"]))
        end = row["before"] and release_of(row["before"])
        found = []
        for kind, vendor, release, sample in self.rows:
            if kind != fit["kind"] or fit.get("vendor", vendor) != vendor:
                continue
            if release is None:
                if fit.get("any_release"):
                    found.append(sample)
                continue
            if (first or ()) <= release and (end is None or release < end):
                found.append(sample)
        return found


class Architectures:
    """Specs by name; quantized variants count as their base, for their sizes alone."""

    def __init__(self, folders: list[Path]) -> None:
        self._files = {
            path.stem.replace("__", "/").lower(): path
            for folder in reversed(folders)
            for path in folder.glob("*.json")
        }
        self._specs: dict[str, ModelSpec | None] = {}

    def spec(self, name: str) -> ModelSpec | None:
        if name not in self._specs:
            self._specs[name] = next(
                (spec for key in _names(name) if (spec := self._read(key)) is not None), None
            )
        return self._specs[name]

    def _read(self, name: str) -> ModelSpec | None:
        path = self._files.get(name.lower())
        try:
            if path is not None:
                loaded = json.loads(path.read_text(encoding="utf-8"))
                return spec_from_config(loaded, file=path.name, hub_id=name)
            return resolve_model(name)[0]
        except (MoesizeError, OSError):
            return None


def _names(name: str) -> list[str]:
    """The name, then the one without the words that only say how the weights are stored."""
    base = name.lower().rpartition("/")[2].removeprefix("meta-")
    names = [name, base]
    while (shorter := _SUFFIXES.sub("", base)) != base:
        base = shorter
        names.append(base)
    return [*names, base.removesuffix("-instruct"), base.replace("coder-", "")]


def collect(
    reports: list[dict[str, Any]], known: Architectures, versions: dict[str, str]
) -> Samples:
    """Every observation of a constant that the reports hold."""
    samples = Samples()
    for report in reports:
        spec = known.spec(report["model"])
        why = _unusable(report, spec)
        if why:
            samples.left_out.append(f"{report['id']}: {why}")
            continue
        assert spec is not None
        version = report["engine_version"] or versions.get(report["source_group"])
        release = release_of(version) if version else None
        try:
            card = find_gpu(report["gpu"]).spec
            planned = _plan(report, spec, version if release else None)
        except (MoesizeError, ValueError) as error:
            samples.left_out.append(f"{report['id']}: {error}")
            continue
        _add(samples, report, planned, card.vendor.lower(), release)
    return samples


def _unusable(report: dict[str, Any], spec: ModelSpec | None) -> str:
    if (
        report["observed"].get("outcome") != "ok"
        and "activation_peak_gib" not in report["observed"]
    ):
        return "did not start"
    if report.get("suspect"):
        return f"suspect: {report['suspect']}"
    if spec is None:
        return "model not known"
    if report["gpu"] is None:
        return "GPU not stated"
    return ""


def _plan(report: dict[str, Any], spec: ModelSpec, version: str | None) -> dict[str, Any]:
    share = report["gpu_memory_utilization"]
    tp, pp = report["tp"] or 1, report["pp"] or 1
    length = report["max_model_len"]
    answer = plan(
        spec,
        gpu=report["gpu"],
        gpus=tp * pp,
        tp=tp,
        pp=pp,
        ep=report["ep"] or None,
        engine=report["engine"],
        engine_version=version,
        context=min(length, spec.max_context) if isinstance(length, int) else None,
        gpu_memory_utilization=share if isinstance(share, int | float) else None,
        max_num_seqs=report["max_num_seqs"],
        max_num_batched_tokens=report["max_num_batched_tokens"],
        enforce_eager=report["enforce_eager"] or None,
        suggest=False,
    )
    return answer.to_dict()


def _add(
    samples: Samples,
    report: dict[str, Any],
    planned: dict[str, Any],
    vendor: str,
    release: tuple[int, ...] | None,
) -> None:
    observed, settings = report["observed"], planned["deployment"]
    rank = planned["verdict"]["limiting_rank"]
    ledger = next(item for item in planned["gpus"] if item["rank"] == rank)
    items = {item["name"]: item for item in ledger["items"]}

    def sample(kind: str, value: float) -> None:
        found = Sample(report["source_group"], report["source_url"], value)
        samples.add(kind, vendor, release, found)

    peak = items["activations.peak"]
    terms = {name: float(text.replace(",", "")) for name, text in _TERM.findall(peak["formula"])}
    seen_peak = observed.get("activation_peak_gib")
    if seen_peak is not None:
        seen = seen_peak * GIB
        # The larger of the two made the peak, by the constants as they are now.
        if terms["logits"] and peak["bytes"] > terms["forward"] + terms["scratch"]:
            sample("activations_sampler", (seen - terms["kept"]) / terms["logits"])
        elif terms["forward"]:
            sample("activations_forward", (seen - terms["scratch"]) / terms["forward"])
    seen_other = observed.get("non_torch_gib")
    single = settings["tp"] * settings["pp"] == 1
    if seen_other is not None and single:
        sample("non_torch", seen_other * GIB)
    total = (report["gpu_total_gib"] or 0) * GIB or ledger["usable_bytes"]
    if observed.get("free_at_start_gib") is not None and report["gpu_total_gib"]:
        sample("context", (report["gpu_total_gib"] - observed["free_at_start_gib"]) * GIB)
    weights, cache = observed.get("weights_gib"), observed.get("kv_cache_gib")
    if weights is not None and cache is not None and seen_other is None:
        left = total * settings["gpu_memory_utilization"] - (weights + cache) * GIB
        if not 0 <= left <= _MOST_UNEXPLAINED * total:
            samples.left_out.append(f"{report['id']}: {left / GIB:.2f} GiB unexplained")
        else:
            charged = {i["name"]: i["bytes"] for i in ledger["items"] if i["in_budget"]}
            kind = "communication" if "runtime.communication" in charged else "non_torch"
            charged.pop(f"runtime.{kind}", None)
            rest = sum(
                size
                for name, size in charged.items()
                if name.startswith(("activations.", "runtime."))
            )
            sample(kind, left - rest)
    if _states_its_weights(report, planned):
        _add_loading(sample, observed, items, ledger)
    formula = items.get("runtime.cuda_graphs", {}).get("formula", "")
    graphs = re.match(r"(\d+) graphs \([^)]*\) \* (\d+) layers", formula)
    pieces = int(graphs[1]) * int(graphs[2]) if graphs else 0
    if pieces and observed.get("cuda_graph_gib") is not None:
        sample("graphs", observed["cuda_graph_gib"] * GIB / pieces)
    if pieces and observed.get("cuda_graph_estimated_gib") is not None:
        sample("graphs_estimated", observed["cuda_graph_estimated_gib"] * GIB / pieces)


def _states_its_weights(report: dict[str, Any], planned: dict[str, Any]) -> bool:
    """Whether the plan is of the model's own weights, not of those its sizes were taken from."""
    weights = report["observed"].get("weights_gib")
    rank = planned["verdict"]["limiting_rank"]
    ledger = next(item for item in planned["gpus"] if item["rank"] == rank)
    counted = sum(i["bytes"] for i in ledger["items"] if i["category"] == "weights") / GIB
    return weights is not None and abs(weights / counted - 1) < _MOST_UNEXPLAINED / 3


def _add_loading(
    sample: Callable[[str, float], None],
    observed: dict[str, Any],
    items: dict[str, Any],
    ledger: dict[str, Any],
) -> None:
    """What loading leaves on the device beyond the tensors, where the engine counts it."""
    use = items.get("weights.device_use")
    if use is None or "weights_gib" not in observed:
        return
    parts = {name: float(text.replace(",", "")) for name, text in _LOAD.findall(use["formula"])}
    tensors = sum(i["bytes"] for i in ledger["items"] if i["category"] == "weights") - use["bytes"]
    left = observed["weights_gib"] * GIB - tensors - parts["segments"]
    if parts["experts"]:
        sample("load_repacked", (left - parts["libraries"]) / parts["experts"])
    else:
        sample("load_growth", left)


_LOAD = re.compile(r"(segments|libraries|experts) = ([\d,]+)")
# `forward 123, scratch 0, ...`: the parts of the activation peak, at the end of its formula.
_TERM = re.compile(r"(forward|scratch|logits|kept) = ([\d,]+)")


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """(median, low, high); few observations get a band wider than what was seen."""
    ordered = sorted(values)
    middle = statistics.median(ordered)
    if len(ordered) < _ENOUGH:
        reach = max(abs(middle) * 0.1, (ordered[-1] - ordered[0]) / len(ordered))
        return middle, ordered[0] - reach, ordered[-1] + reach
    cuts = statistics.quantiles(ordered, n=20, method="inclusive")
    return middle, cuts[round(_QUANTILES[0] * 20) - 1], cuts[round(_QUANTILES[1] * 20) - 1]


def left_out_errors(found: list[Sample]) -> tuple[float, float, float]:
    """(median error on all, on groups left out, share of left-out values inside the band)."""
    by_group = defaultdict(list)
    for sample in found:
        by_group[sample.group].append(sample.value)
    middle = statistics.median(s.value for s in found)
    inside_all = [abs(s.value - middle) for s in found]
    outside: list[float] = []
    covered: list[bool] = []
    for group, values in by_group.items():
        rest = [s.value for s in found if s.group != group]
        if not rest:
            continue
        best, low, high = quantiles(rest)
        outside += [abs(value - best) for value in values]
        covered += [low <= value <= high for value in values]
    if not outside:
        return statistics.median(inside_all), float("nan"), float("nan")
    share = sum(covered) / len(covered)
    return statistics.median(inside_all), statistics.median(outside), share


def main() -> int:
    """Fit, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--reports", type=Path, required=True)
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--configs", type=Path, action="append", default=[])
    parser.add_argument(
        "--version-of",
        action="append",
        default=[],
        metavar="GROUP=VERSION",
        help="release of a source group whose reports do not state it",
    )
    today = datetime.now(tz=UTC).date().isoformat()
    parser.add_argument("--date", default=today, help="day of the fit, today if not given")
    parser.add_argument("--write", action="store_true", help="put the values into the data file")
    options = parser.parse_args()
    lines = options.reports.read_text(encoding="utf-8").splitlines()
    reports = [row for line in lines if (row := json.loads(line))["engine"] == options.engine]
    versions = dict(pair.rsplit("=", 1) for pair in options.version_of)
    samples = collect(reports, Architectures(options.configs), versions)
    path = Path(moesize.__file__).parent / "data" / "engines" / f"{options.engine}.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    print(f"{len(reports)} reports, {len(samples.rows)} observations")
    for row in data["constants"]:
        if "fit" in row:
            _fit(row, samples.of(row), options.date)
    for line in samples.left_out:
        print(f"left out: {line}")
    if options.write:
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return 0


def _fit(row: dict[str, Any], found: list[Sample], today: str) -> None:
    name = f"{row['name']} {row['from']} to {row['before'] or 'now'}"
    if len(found) < _FEWEST:
        print(f"{name}: {len(found)} observations, kept as it is")
        return
    value, low, high = quantiles([sample.value for sample in found])
    fit = row["fit"]
    low = max(low, fit.get("least", 0))
    whole = row["unit"].startswith("byte") and "logit" not in row["name"]
    groups = sorted({sample.group for sample in found})
    here, elsewhere, share = left_out_errors(found)
    scale, unit = (GIB, "GiB") if whole and value > GIB / 32 else (1, row["unit"])
    if whole and value <= GIB / 32:
        scale, unit = 1 << 20, "MiB"
    print(
        f"{name}: {value / scale:.3f} ({low / scale:.3f} to {high / scale:.3f}) {unit}, "
        f"n = {len(found)} from {len(groups)} groups; median error {here / scale:.3f}, "
        f"left-out groups {elsewhere / scale:.3f}, {share:.0%} of those in the band"
    )
    digits = None if whole else 3
    row["value"], row["low"], row["high"] = (round(x, digits) for x in (value, low, high))
    row["observations"] = len(found)
    ordered = sorted(sample.value / scale for sample in found)
    row["spread"] = (
        f"{ordered[0]:.3g} to {ordered[-1]:.3g} {unit}, quartiles "
        f"{_at(ordered, 0.25):.3g} and {_at(ordered, 0.75):.3g}; {len(groups)} sources; median "
        f"error {here / scale:.2g}, on left-out sources {elsewhere / scale:.2g}"
    )
    row["date"] = today
    urls = sorted({_short(sample.url) for sample in found})
    row["source"] = "; ".join(urls[:6]) + (f"; and {len(urls) - 6} more" if len(urls) > 6 else "")


def _at(ordered: list[float], share: float) -> float:
    return ordered[round(share * (len(ordered) - 1))]


def _short(url: str) -> str:
    """The repository, or the thread, that an address belongs to."""
    found = re.match(r"https?://github\.com/([^/]+/[^/]+)(?:/(issues|pull)/(\d+))?", url)
    if found is None:
        return url.split("?")[0]
    if found[2]:
        return f"{found[1]} {'issue' if found[2] == 'issues' else 'PR'} {found[3]}"
    commit = re.search(r"/blob/([0-9a-f]{7})", url)
    return f"github.com/{found[1]}" + (f" at {commit[1]}" if commit else "")


if __name__ == "__main__":
    sys.exit(main())
