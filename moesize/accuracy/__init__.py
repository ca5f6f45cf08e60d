"""How far plans lie from what engines logged on real machines, report by report.

reports    the file: one JSON object a line, checked
models     the model that a report names, exactly or not at all
versions   the engine's version, stated or current on the date
runs       the settings of the run, as the engine's own flags
terms      which observed figure is compared with which planned one
summary    errors, bands, coverage, outcomes
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.accuracy.models import resolve_report
from moesize.accuracy.runs import GIVEN_BLOCKS, run_of
from moesize.accuracy.summary import Accuracy, Covered, OutcomeRow, Row, why_not_covered
from moesize.accuracy.terms import TERMS, Plans, figures_of
from moesize.core.errors import UnknownNameError
from moesize.core.units import GIB

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from moesize.accuracy.reports import FieldReport, ReportFile

# What happened, by how the collector's word begins; other words say nothing about fitting.
_STARTED = ("ok", "loaded", "fits")
_FAILED = ("kv_too_small", "oom", "OOM", "does_not_fit")
_FAILED_WITHIN = ("out of memory",)


def check_names(
    file: ReportFile, engine: str | None, terms: tuple[str, ...]
) -> tuple[str | None, frozenset[str]]:
    """An engine and terms as asked for, in the spelling of the reports.

    Raises UnknownNameError for an engine that no report of the file names, or an unknown term.
    """
    engines = sorted({report.engine for report in file.reports})
    chosen = None
    if engine is not None:
        chosen = engine.strip().lower()
        if chosen not in engines:
            raise UnknownNameError(
                "engine in this file", engine, _near(chosen, engines) or engines[:3]
            )
    wanted = frozenset(term.strip().lower().replace("-", "_") for term in terms)
    for term in sorted(wanted - set(TERMS)):
        raise UnknownNameError("term", term, _near(term, TERMS) or TERMS)
    return chosen, wanted


def _near(name: str, names: Sequence[str]) -> list[str]:
    from difflib import get_close_matches  # only on the way to an error

    return get_close_matches(name[:80], names, n=2)


def measure(
    file: ReportFile,
    *,
    engine: str | None = None,
    terms: frozenset[str] = frozenset(),
    progress: Callable[[], None] | None = None,
) -> Accuracy:
    """Plan every report of a file as it was run and put its figures beside the plan's.

    `engine` and `terms` leave out the rest; `progress` is called after each report.
    """
    rows: list[Row] = []
    outcomes: list[OutcomeRow] = []
    covered: list[Covered] = []
    for report in file.reports:
        if engine is None or report.engine == engine:
            found, outcome, summary = _measure(report, terms)
            rows += found
            outcomes += [outcome] if outcome is not None else []
            covered.append(summary)
        if progress is not None:
            progress()
    return Accuracy(source=file, rows=tuple(rows), outcomes=tuple(outcomes), reports=tuple(covered))


def _measure(
    report: FieldReport, terms: frozenset[str]
) -> tuple[list[Row], OutcomeRow | None, Covered]:
    model = resolve_report(report)
    run = run_of(report, model)
    plans = Plans(report, model, run)
    notes = tuple(note for note in (*run.notes, model.note) if note)
    rows: list[Row] = []
    card = None
    if run.gpu_known:
        card = run.candidates[0].gpu.usable_memory().best_bytes / GIB
    for figure in figures_of(report, given_blocks=GIVEN_BLOCKS):
        found = plans.predict(figure)
        row = Row(
            id=report.id,
            line=report.line,
            engine=report.engine,
            engine_version=run.version,
            version_assumed=run.version_assumed,
            model=report.model,
            model_id=model.spec.id if model.spec is not None else "",
            gpu=run.gpu,
            term=figure.term,
            device=figure.device,
            unit=figure.unit,
            observed=figure.observed,
            suspect=report.suspect,
            notes=notes,
            predicted=None if isinstance(found, str) else found.value,
            low=None if isinstance(found, str) else found.low,
            high=None if isinstance(found, str) else found.high,
            exact_given=not isinstance(found, str) and found.exact_given,
            rounding=figure.rounding,
            card=card if figure.unit == "GiB" else None,
            not_covered=found if isinstance(found, str) else None,
        )
        rows.append(row)
    outcome = _outcome(report, plans)
    missing, partly = why_not_covered(rows), why_not_covered(rows, fully=True)
    if not rows and outcome is not None:
        missing = partly = None if outcome.fits is not None else outcome.reason
    elif not rows:
        missing = partly = "nothing to compare"
    summary = Covered(
        engine=report.engine,
        public=model.public and bool(rows or outcome is not None),
        covered=missing is None,
        fully=partly is None,
        reason=missing or "",
        version_assumed=run.version_assumed,
        suspect=bool(report.suspect),
    )
    return [row for row in rows if not terms or row.term in terms], outcome, summary


def _outcome(report: FieldReport, plans: Plans) -> OutcomeRow | None:
    stated = str(report.observed.get("outcome") or "")
    started = stated in _STARTED
    failed = stated.startswith(_FAILED) or any(word in stated for word in _FAILED_WITHIN)
    if not started and not failed:
        return None
    found = plans.verdict()
    planned = None if isinstance(found, str) else found.fits
    return OutcomeRow(
        id=report.id,
        line=report.line,
        engine=report.engine,
        model=report.model,
        observed=stated[:120],
        started=started,
        suspect=bool(report.suspect),
        fits=planned,
        certain=not isinstance(found, str) and found.certain,
        reason=found if isinstance(found, str) else found.reason,
    )
