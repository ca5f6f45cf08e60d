"""Predicted against observed: one row for each figure, and what the rows come to.

    error          (predicted - observed) / observed; 0 where the observation is what the
                   prediction prints as
    error_of_card  (predicted - observed) / usable memory of one GPU, for sizes in GiB
    in_band        low <= observed <= high, give or take half of the last printed digit (of every
                   figure that a sum has)

An error that is measured "given" another logged figure is 0 where the observation lies inside what
the rounding of that figure allows, else its distance from there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, Literal

from moesize._version import __version__
from moesize.accuracy.reports import ReportFile
from moesize.accuracy.terms import MAIN_TERMS, TERMS, Unit
from moesize.core.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


Verdict = Literal["fits", "does_not_fit"]
# What adding and dividing floats may lose.
_FLOAT = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure of one report."""

    id: str
    line: int
    engine: str
    engine_version: str
    version_assumed: bool
    model: str
    model_id: str
    gpu: str
    term: str
    device: str
    unit: Unit
    observed: float
    suspect: str
    notes: tuple[str, ...] = ()
    predicted: float | None = None
    low: float | None = None
    high: float | None = None
    exact_given: bool = False
    rounding: float = 0.0
    card: float | None = None
    not_covered: str | None = None

    @property
    def error(self) -> float | None:
        """Signed, a fraction of what was observed; None without a prediction.

        Of a figure that is not above 0 (memory that capturing freed, a KV cache that is short)
        there is no fraction; `error_of_card` says how far it is off.
        """
        off = self._off()
        return None if off is None or self.observed <= 0 else off / self.observed

    @property
    def error_of_card(self) -> float | None:
        """Signed, a fraction of the card's memory."""
        off = self._off()
        return None if off is None or not self.card else off / self.card

    @property
    def band_of_card(self) -> float | None:
        """Width of the band as a fraction of the card's memory."""
        if self.low is None or self.high is None or not self.card:
            return None
        return (self.high - self.low) / self.card

    @property
    def in_band(self) -> bool | None:
        """Whether the observation lies between low and high."""
        if self.low is None or self.high is None:
            return None
        return self._within(self.low, self.high)

    def _within(self, low: float, high: float) -> bool:
        slack = self.rounding + _FLOAT * abs(self.observed)
        return low - slack <= self.observed <= high + slack

    def _off(self) -> float | None:
        if self.predicted is None or self.low is None or self.high is None:
            return None
        if not self.exact_given:
            met = self._within(self.predicted, self.predicted)
            return 0.0 if met else self.predicted - self.observed
        if self._within(self.low, self.high):
            return 0.0
        nearest = self.low if self.observed < self.low else self.high
        return nearest - self.observed

    def to_dict(self) -> dict[str, Any]:
        """A row of the JSON document."""
        return {
            "id": self.id,
            "line": self.line,
            "engine": self.engine,
            "engine_version": self.engine_version,
            "version_assumed": self.version_assumed,
            "model": self.model,
            "model_id": self.model_id,
            "gpu": self.gpu,
            "term": self.term,
            "device": self.device,
            "unit": self.unit,
            "predicted": _rounded(self.predicted),
            "low": _rounded(self.low),
            "high": _rounded(self.high),
            "observed": self.observed,
            "error": _rounded(self.error),
            "error_of_card": _rounded(self.error_of_card),
            "in_band": self.in_band,
            "suspect": bool(self.suspect),
            "suspect_reason": self.suspect,
            "not_covered": self.not_covered,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeRow:
    """What happened to a report, and what the plan says: None with why when there is no plan."""

    id: str
    line: int
    engine: str
    model: str
    observed: str
    started: bool
    suspect: bool
    fits: bool | None = None
    certain: bool = False
    reason: str = ""

    @property
    def agrees(self) -> bool:
        """Whether plan and outcome are the same."""
        return self.fits == self.started

    def to_dict(self) -> dict[str, Any]:
        """A case of the JSON document."""
        predicted: Verdict = "fits" if self.fits else "does_not_fit"
        return {
            "id": self.id,
            "line": self.line,
            "engine": self.engine,
            "model": self.model,
            "predicted": predicted,
            "observed": self.observed,
            "certain": self.certain,
            "suspect": self.suspect,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Covered:
    """Whether the main figures of a report were predicted, and if not, why."""

    engine: str
    public: bool
    covered: bool
    fully: bool
    reason: str
    version_assumed: bool
    suspect: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Everything that `moesize accuracy` says."""

    source: ReportFile
    rows: tuple[Row, ...]
    outcomes: tuple[OutcomeRow, ...]
    reports: tuple[Covered, ...]

    @property
    def any_covered(self) -> bool:
        """Whether anything at all was predicted."""
        predicted = any(row.predicted is not None for row in self.rows)
        return predicted or any(row.fits is not None for row in self.outcomes)

    def summary(self, *, suspect: bool = False) -> list[dict[str, Any]]:
        """One row for each engine and term; of reports that nobody doubts, or of the others."""
        groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in self.rows:
            if bool(row.suspect) == suspect:
                groups[row.engine, row.term].append(row)
        engines = list(dict.fromkeys(row.engine for row in self.rows))
        order = sorted(groups, key=lambda key: (engines.index(key[0]), TERMS.index(key[1])))
        return [summarize(engine, term, groups[engine, term]) for engine, term in order]

    def coverage(self) -> list[dict[str, Any]]:
        """One row for each engine: reports, public ones, covered ones, and why the rest is not."""
        rows = []
        for engine in dict.fromkeys(report.engine for report in self.reports):
            own = [report for report in self.reports if report.engine == engine]
            public = [report for report in own if report.public]
            covered = sum(report.covered for report in public)
            reasons = Counter(_kind(r.reason) for r in own if not r.covered)
            rows.append(
                {
                    "engine": engine,
                    "reports": len(own),
                    "public": len(public),
                    "covered": covered,
                    "fully_covered": sum(report.fully for report in public),
                    "share": covered / len(public) if public else None,
                    "version_assumed": sum(report.version_assumed for report in own),
                    "suspect": sum(report.suspect for report in own),
                    "reasons": dict(reasons.most_common()),
                }
            )
        return rows

    def outcome_summary(self) -> dict[str, Any]:
        """The `outcomes` object."""
        plain = [row for row in self.outcomes if not row.suspect]
        planned = [row for row in plain if row.fits is not None]
        false_fits = [row for row in planned if row.fits and not row.started]
        reasons = Counter(_kind(row.reason) for row in plain if row.fits is None)
        cases = [row for row in self.outcomes if row.fits is not None and not row.agrees]
        return {
            "n": len(plain),
            "covered": len(planned),
            "agree": sum(row.agrees for row in planned),
            "false_fits": len(false_fits),
            "false_fits_without_warning": sum(row.certain for row in false_fits),
            "false_does_not_fit": sum(not row.fits and row.started for row in planned),
            "suspect": len(self.outcomes) - len(plain),
            "not_covered": dict(reasons.most_common()),
            "cases": [row.to_dict() for row in cases],
        }

    def worst(self, count: int) -> list[Row]:
        """The rows with the largest errors, suspect ones left out."""
        rows = [row for row in self.rows if row.error is not None and not row.suspect]
        return sorted(rows, key=lambda row: -abs(row.error or 0))[:count]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document `moesize.accuracy/1`."""
        return {
            "schema": "moesize.accuracy/1",
            "moesize_version": __version__,
            "file": self.source.file,
            "reports": len(self.reports),
            "problems": [
                {"line": problem.line, "message": problem.message}
                for problem in self.source.problems
            ],
            "unread_fields": dict(self.source.unread.most_common()),
            "summary": self.summary(),
            "summary_suspect": self.summary(suspect=True),
            "coverage": self.coverage(),
            "outcomes": self.outcome_summary(),
            "rows": [row.to_dict() for row in self.rows],
        }


def summarize(engine: str, term: str, rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of one engine and term."""
    covered = [row for row in rows if row.predicted is not None]
    errors = [row.error for row in covered if row.error is not None]
    sizes = [abs(error) for error in errors]
    of_card = [abs(row.error_of_card) for row in covered if row.error_of_card is not None]
    bands = [row.band_of_card for row in covered if row.band_of_card is not None]
    inside = [row.in_band for row in covered if row.in_band is not None]
    return {
        "engine": engine,
        "term": term,
        "n": len(rows),
        "covered": len(covered),
        "version_assumed": sum(row.version_assumed for row in covered),
        "median_abs_error": _rounded(quantile(sizes, 0.5)),
        "p90_abs_error": _rounded(quantile(sizes, 0.9)),
        "worst_abs_error": _rounded(max(sizes, default=None)),
        "median_error": _rounded(quantile(errors, 0.5)),
        "in_band": _rounded(sum(inside) / len(inside)) if inside else None,
        "median_abs_error_of_card": _rounded(quantile(of_card, 0.5)),
        "p90_abs_error_of_card": _rounded(quantile(of_card, 0.9)),
        "median_band_of_card": _rounded(quantile(bands, 0.5)),
    }


def quantile(values: Iterable[float], share: float) -> float | None:
    """The quantile of a list by linear interpolation between its members; None for none."""
    ordered = sorted(values)
    if not ordered:
        return None
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


# What a report itself leaves open is no failure of the plan: how a mixed file stores its weights, a
# figure of a mapped file, the card, a command line that an excerpt does not show.
_COMMAND_LINE = "settings not stated"
_LEFT_OPEN = ("weights not known", "mapped file", "gpu not known", _COMMAND_LINE)


def why_not_covered(rows: Sequence[Row], *, fully: bool = False) -> str | None:
    """Why a report is not covered; None: it is.

    Covered: one of its main figures is predicted, and those that are not are left open by the
    report itself (`fully`: all of them are). A report without a main figure, or with none that
    does not hang on settings it does not show, is covered when any of its figures is.
    """
    main = [row for row in rows if row.term in MAIN_TERMS]
    if not fully:
        # Counts that an unstated command line decides: what is estimated beside them stands alone.
        main = [row for row in main if not (row.not_covered or "").startswith(_COMMAND_LINE)]
    if not main:
        missing = [row.not_covered for row in rows if row.predicted is None]
        return None if len(missing) < len(rows) else next((r for r in missing if r), "")
    failed = [row.not_covered or "" for row in main if row.predicted is None]
    if len(failed) == len(main) or (fully and failed):
        return failed[0]
    return next((reason for reason in failed if not reason.startswith(_LEFT_OPEN)), None)


def _kind(reason: str) -> str:
    return reason.partition(":")[0] or "nothing to compare"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
