"""Plans, models and lists in a terminal; the only user of rich."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moesize.core.units import KIB, format_bytes, format_count, format_gib
from moesize.renderers import lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console
    from rich.table import Table

    from moesize.accuracy.summary import Accuracy
    from moesize.api import ModelReport
    from moesize.audit import Audit
    from moesize.core.ledger import GpuLedger, MemoryItem
    from moesize.core.plan import Plan
    from moesize.verify.report import VerifyReport

_BAR_WIDTH = 64
_LABEL_WIDTH = 9
_NARROWEST = 16
_NARROW = 76
# Fewer steps are over before a bar is read.
_LEAST_FOR_A_BAR = 50


# With more distinct GPUs than this only the limiting one is shown in full.
_MOST_WHOLE = 2
# From here on an audit has room for its reasons beside the figures.
_WIDE = 100


def print_plan(plan: Plan, *, explain: bool = False) -> None:
    """Verdict first, then what fills the GPU, then what would fit instead."""
    with _page() as console:
        _write_plan(console, plan, explain)


def _write_plan(console: Console, plan: Plan, explain: bool) -> None:
    from rich.text import Text

    style = "bold white on red"
    if plan.fits:
        style = "bold black on green" if plan.verdict.certain else "bold black on yellow"
    console.print(Text.assemble((f" {lines.verdict_word(plan)} ", style), f" {lines.title(plan)}"))
    console.print(Text(plan.verdict.reason, style="bold"))
    facts = [
        ("model", lines.model_line(plan)),
        ("weights", lines.weights_line(plan)),
        ("", plan.quantization.resolved),
        ("setting", lines.setting_line(plan)),
    ]
    console.print()
    console.print(_facts(facts))
    whole = [
        ledger
        for ledger in plan.gpus
        if len(plan.gpus) <= _MOST_WHOLE or ledger.rank == plan.verdict.limiting_rank
    ]
    names = dict(zip([ledger.rank for ledger in plan.gpus], lines.ledger_names(plan), strict=True))
    for ledger in whole:
        console.print()
        _print_ledger(console, names[ledger.rank], ledger)
    if len(whole) < len(plan.gpus):
        console.print()
        grid = _grid()
        grid.add_column(justify="right")
        for ledger in plan.gpus:
            if ledger not in whole:
                left = f"{ledger.headroom_bytes / 2**30:,.2f} left"
                grid.add_row(names[ledger.rank], format_gib(ledger.used_bytes), left)
        console.print(grid)
    facts = [
        ("KV cache", lines.kv_line(plan)),
        ("", lines.longest_line(plan)),
        ("experts", lines.experts_line(plan)),
        ("host", lines.host_line(plan)),
    ]
    costs = lines.cost_lines(plan)
    facts += [("a token" if not i else "", text) for i, text in enumerate(costs)]
    facts += [("note" if not i else "", note.message) for i, note in enumerate(plan.warnings)]
    facts += [
        ("" if plan.warnings or i else "note", note) for i, note in enumerate(plan.model.notes)
    ]
    console.print()
    console.print(_facts(facts))
    if plan.suggestions:
        console.print()
        console.print(Text("what would fit instead (each was planned)", style="bold"))
        grid = _grid()
        for options, what in lines.suggestion_rows(plan):
            grid.add_row(Text("  " + options, style="green"), Text(what))
        console.print(grid)
    if explain:
        for ledger in plan.gpus:
            console.print()
            _print_explanation(console, f"every item on rank {ledger.rank}", ledger.items)
        if plan.host:
            console.print()
            _print_explanation(console, "every item on the host", plan.host)


def _print_ledger(console: Console, name: str, ledger: GpuLedger) -> None:
    from rich.text import Text

    parts = lines.shares(ledger)
    budget = ""
    if ledger.budget_bytes != ledger.usable_bytes:
        budget = f", budget {format_gib(ledger.budget_bytes)}"
    console.print(
        Text.assemble((name, "bold"), f": {format_gib(ledger.usable_bytes)} usable{budget}")
    )
    console.print(_bar(parts, ledger, min(_BAR_WIDTH, console.width - 4)))
    grid = _grid()
    grid.add_column(justify="right", no_wrap=True)
    grid.columns[1].justify = "right"
    grid.columns[1].no_wrap = True
    # On a narrow terminal the band goes below its label; sizes are never cut off.
    narrow = console.width < _NARROW
    if not narrow:
        grid.columns[0].no_wrap = True
        grid.add_column(style="dim")
    for part in parts:
        percent = part.size_bytes * 100 / ledger.usable_bytes
        label = Text.assemble(("  " + _square() + " ", part.style), part.label)
        row: list[Text | str] = [label, f"{part.size_bytes / 2**30:,.2f} GiB", f"{percent:.0f} %"]
        band = f"estimate, {part.band}" if part.band else ""
        if not narrow:
            row.append(band)
        elif band:
            label.append(f"\n    {part.band}", style="dim")
        grid.add_row(*row)
    over = -ledger.headroom_bytes
    if over > 0:
        rest, style = "short by", "bold red"
    else:
        rest, style, over = ("left in the budget" if budget else "left"), "bold green", -over
    grid.add_row(Text("    " + rest, style=style), Text(f"{over / 2**30:,.2f} GiB", style=style))
    console.print(grid)


def _square() -> str:
    return "■" if _unicode() else "#"


def _bar(parts: list[lines.Share], ledger: GpuLedger, width: int) -> Any:
    """Parts to scale; a mark where the budget ends, and one where the card ends."""
    from rich.text import Text

    full = max(ledger.usable_bytes, ledger.used_bytes)
    block, empty = ("█", "░") if _unicode() else ("#", ".")
    cells: list[tuple[str, str]] = []
    total = 0
    for part in parts:
        total += part.size_bytes
        cells += [(block, part.style)] * (round(total * width / full) - len(cells))
    cells += [(empty, "dim")] * (width - len(cells))
    for mark_bytes, mark in (
        (ledger.budget_bytes, "┆" if _unicode() else "|"),
        (ledger.usable_bytes, "┃" if _unicode() else "!"),
    ):
        position = round(mark_bytes * width / full)
        if 0 < position < width:
            cells[position] = (mark, "bold")
    return Text.assemble("  ", *cells)


def _print_explanation(console: Console, heading: str, items: Sequence[MemoryItem]) -> None:
    from rich.text import Text

    console.print(Text(heading, style="bold"))
    for row in lines.explain_rows(items):
        band = (
            f"  (estimated between {row['band'].replace(' to ', ' and ')})" if row["band"] else ""
        )
        console.print(Text.assemble((row["item"], "bold"), f"  {row['size']}", (band, "yellow")))
        console.print(Text(f"    = {row['formula']}"))
        console.print(Text(f"    source: {row['source']}", style="dim"))


def print_model(report: ModelReport, *, tensors: bool = False) -> None:
    """What a model is."""
    with _page() as console:
        _write_model(console, report, tensors)


def _write_model(console: Console, report: ModelReport, tensors: bool) -> None:
    from rich.text import Text

    model, params = report.model, report.model.params
    console.print(Text.assemble((model.title, "bold"), f"  ({model.id}, {report.spec.model_type})"))
    console.print()
    rows = [("total", params.total, "")]
    names = {
        "routed_experts": "routed experts",
        "shared_experts": "shared experts",
        "dense_mlp": "dense MLP",
        "lm_head": "output head",
    }
    rows += [
        (f"  {names.get(group, group)}", count, f"{count * 100 / params.total:.1f} %")
        for group, count in params.by_group.items()
        if count
    ]
    rows.append(("active per token", params.active, f"{params.active * 100 / params.total:.1f} %"))
    rows.append(("  without embeddings", params.active_without_embeddings, ""))
    if params.mtp:
        rows.append(("MTP blocks (not in the total)", params.mtp, ""))
    if params.stored != params.total:
        rows.append(("stored in the checkpoint", params.stored, ""))
    grid = _grid()
    grid.columns[1].justify = "right"
    grid.add_column(justify="right")
    grid.add_column(justify="right", style="dim")
    for label, count, share in rows:
        grid.add_row("  " + label, f"{count:,}", format_count(count), share)
    console.print(grid)
    quantization = report.quantization
    facts = [
        ("layers", f"{model.num_layers}, context up to {model.max_context:,} tokens"),
        (
            "weights",
            f"{quantization.format}: {format_gib(quantization.weight_bytes)}, "
            f"{quantization.bits_per_weight:.2f} bits per weight",
        ),
        ("file size", f"{format_gib(report.stored_bytes)} of tensors {_of_files(report)}"),
        (
            "KV cache",
            f"{report.kv_bytes_per_token:,} bytes ({report.kv_bytes_per_token / KIB:,.1f} KiB) per "
            f"token in {report.kv_dtype}"
            + (
                f" + {format_bytes(fixed)} per sequence"
                if (fixed := report.kv_window_bytes + report.kv_recurrent_bytes)
                else ""
            ),
        ),
        ("source", _source(report)),
    ]
    facts += [("note" if not i else "", note) for i, note in enumerate(model.notes)]
    console.print()
    console.print(_facts(facts))
    if tensors:
        console.print()
        _print_rich_rows(console, _tensor_rows(report))


def _of_files(report: ModelReport) -> str:
    own = report.spec.quantization
    return "in the GGUF file" if own is not None and own.method == "gguf" else "as published"


def _source(report: ModelReport) -> str:
    source = report.spec.source
    text = f"{source.config}" + (f", read {source.checked}" if source.checked else "")
    if source.total_elements is not None:
        text += f"; checked against {source.total_elements:,} elements ({source.total_source})"
    return text


def _tensor_rows(report: ModelReport) -> list[dict[str, Any]]:
    return [
        {
            "tensor": row["name"],
            "shape": " x ".join(map(str, row["shape"])),
            "count": row["copies_per_layer"] * max(1, row["layers"]),
            "format": row["format"],
            "size": format_bytes(row["bytes"]),
        }
        for row in report.tensor_rows()
    ]


def print_audit(audit: Audit) -> None:
    """Log and plan side by side, why they differ, what to change."""
    with _page() as console:
        _write_audit(console, audit)


def _write_audit(console: Console, audit: Audit) -> None:
    from rich.text import Text

    from moesize.renderers import audit as words

    verdict, what = words.headline(audit)
    styles = {"AGREES": "bold black on green", "DIFFERS": "bold white on red"}
    style = styles.get(verdict, "bold black on yellow")
    console.print(Text.assemble((f" {verdict} ", style), f" {what}"))
    console.print(Text(words.outcome_line(audit), style="bold"))
    console.print()
    grid = _grid()
    for column in range(1, 4):
        if column > 1:
            grid.add_column()
        grid.columns[column].justify = "right"
        grid.columns[column].no_wrap = True
    wide = console.width >= _WIDE
    if wide:
        grid.add_column(overflow="fold", style="dim")
    head = ["term", "logged", "predicted", "error", *(("why",) if wide else ())]
    grid.add_row(*(Text(text, style="bold") for text in head))
    said: set[str] = set()
    for term in audit.terms:
        # Why nothing is predicted is mostly the same for every term.
        why = "as above" if term.ok is None and term.why in said else term.why
        said.add(term.why)
        colour = {True: "green", False: "bold red", None: "yellow"}[term.ok]
        row = [
            Text("  " + words.label(term)),
            Text(words.figure(term.logged, term.unit)),
            Text(words.figure(term.predicted, term.unit), style=colour),
            Text(words.error_text(term), style=colour),
        ]
        grid.add_row(*row, *((Text(why),) if wide else ()))
    console.print(grid)
    if not wide and audit.terms:
        console.print()
        console.print(
            _facts(
                [
                    (words.label(term), term.why)
                    for term in {t.why: t for t in reversed(audit.terms)}.values()
                    if term.ok is not True
                ]
            )
        )
    if audit.advice:
        console.print()
        console.print(Text("what to change (each was planned)", style="bold"))
        grid = _grid()
        for item in audit.advice:
            options = Text("  " + " ".join(item.options), style="green")
            grid.add_row(options, Text(item.what + (f": {item.detail}" if item.detail else "")))
        console.print(grid)
    facts = [("note" if not i else "", note) for i, note in enumerate(audit.notes)]
    if audit.saved:
        kept = ", ".join(words.saved_constant(row) for row in audit.saved)
        facts.append(("saved", f"{kept} in {audit.saved_to}"))
    if facts:
        console.print()
        console.print(_facts(facts))


def print_rows(what: str, rows: list[dict[str, Any]]) -> None:
    """A list of the catalogue; long columns wrap, nothing is cut off."""
    shown = [{key: value for key, value in row.items() if key in _COLUMNS[what]} for row in rows]
    with _page() as console:
        _print_rich_rows(console, [{k: _cell(k, v) for k, v in row.items()} for row in shown])
        console.print(f"{len(rows)} {what}", style="dim")


_COLUMNS: dict[str, tuple[str, ...]] = {
    "models": ("id", "total", "active", "context", "layers", "quantization"),
    "gpus": (
        "id",
        "name",
        "usable_bytes",
        "memory_bandwidth_bytes_per_s",
        "bf16_flops_per_s",
        "compute_capability",
    ),
    "quants": ("name", "bits_per_weight", "title", "leaves_out"),
    "engines": ("name", "default_version", "versions", "note"),
}


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "?"
    if key in ("total", "active"):
        return format_count(value)
    if key == "usable_bytes":
        return format_gib(value)
    if key.endswith("bytes_per_s"):
        return f"{value / 1e9:,.0f} GB/s"
    if key.endswith("flops_per_s"):
        return f"{value / 1e12:,.0f} TFLOP/s"
    return f"{value:,}" if isinstance(value, int) else str(value)


_HEADERS = {
    "usable_bytes": "usable",
    "memory_bandwidth_bytes_per_s": "bandwidth",
    "bf16_flops_per_s": "bf16",
    "compute_capability": "capability",
    "bits_per_weight": "bits",
    "leaves_out": "leaves out",
    "default_version": "default",
}
_SHORT = 16


def _print_rich_rows(console: Console, rows: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for key in rows[0]:
        right = all(str(row[key])[:1].isdigit() for row in rows if row[key] not in ("", "?"))
        widest = max(len(str(row[key])) for row in rows)
        table.add_column(
            _HEADERS.get(key, key.replace("_", " ")),
            justify="right" if right and key != "id" else "left",
            overflow="fold",
            # Figures stay whole where there is room; names and sentences wrap.
            no_wrap=console.width >= 70 and (key == "id" or widest <= _SHORT),
        )
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row.values()))
    console.print(table)


def _facts(rows: list[tuple[str, str]]) -> Table:
    from rich.text import Text

    grid = _grid()
    grid.columns[0].min_width = _LABEL_WIDTH
    for label, text in rows:
        if text:
            grid.add_row(Text(label, style="dim"), Text(text))
    return grid


def _grid() -> Table:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column()
    grid.add_column(overflow="fold")
    return grid


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    if console.width < _NARROWEST:  # COLUMNS=0, or a terminal that does not know its width
        console.width = 80
    return console


@contextmanager
def _page() -> Iterator[Console]:
    """A console whose output is written at the end, in one piece and without trailing blanks."""
    console = _console()
    with console.capture() as capture:
        yield console
    text = "\n".join(line.rstrip() for line in capture.get().splitlines())
    if not _unicode():
        encoding = sys.stdout.encoding or "ascii"
        text = text.encode(encoding, errors="replace").decode(encoding)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _unicode() -> bool:
    return "utf" in (sys.stdout.encoding or "").lower()


# --- verify ---------------------------------------------------------------------------------------


def print_verify(report: VerifyReport) -> None:
    """Predicted beside measured, the whole model, notes."""
    from rich.text import Text

    from moesize.renderers import verify as words

    with _page() as console:
        word = words.verdict_word(report)
        styles = {"AGREES": "bold black on green", "NOTHING COMPARED": "bold black on yellow"}
        style = styles.get(word, "bold white on red")
        console.print(Text.assemble((f" {word} ", style), f" {_plain(words.title(report))}"))
        if report.failure is not None:
            console.print(Text(_plain(words.failure_line(report)), style="bold"))
        console.print()
        headings, shown = words.cells(report, console.width)
        _print_cells(console, headings, [tuple(map(_plain, row)) for row in shown])
        if report.extrapolated:
            console.print()
            console.print(Text("the whole model, extrapolated from two runs", style="bold"))
            whole = [(words.label(i.name), words.extrapolated_line(i)) for i in report.extrapolated]
            console.print(_facts(whole))
        facts = [(f"peak of {phase}", text) for phase, text in words.peak_lines(report)]
        facts += [("run", words.setting_line(report)), ("speed", words.speed_line(report))]
        facts += [("note" if not i else "", note) for i, note in enumerate(report.notes)]
        facts += [("record", words.record_line(report))]
        console.print()
        console.print(_facts([(label, _plain(text)) for label, text in facts]))


# --- accuracy -------------------------------------------------------------------------------------


def print_accuracy(answer: Accuracy, *, worst: int, rows: bool) -> None:
    """Errors by engine and term, outcomes, coverage, and the rows that are furthest off."""
    from rich.text import Text

    from moesize.renderers import accuracy as words

    with _page() as console:
        for suspect in (False, True):
            found = answer.summary(suspect=suspect)
            covered = [row for row in found if row["covered"]]
            for engine in dict.fromkeys(row["engine"] for row in covered):
                title = f"{engine}, reports that their collector doubts" if suspect else engine
                console.print(Text(title, style="bold"))
                own = [row for row in covered if row["engine"] == engine]
                _print_cells(console, words.HEADINGS, [words.summary_cells(row) for row in own])
                console.print()
        outcomes = answer.outcome_summary()
        console.print(_facts([("outcomes", words.outcome_line(outcomes))]))
        for case in outcomes["cases"]:
            console.print(Text("  " + _plain(words.case_line(case))))
        console.print()
        for row in answer.coverage():
            console.print(Text(_plain(words.coverage_line(row))))
            for line in words.reason_lines(row["reasons"]):
                console.print(Text("    " + _plain(line), style="dim"))
        unread = words.unread_line(answer)
        if unread:
            console.print(Text(_plain(unread), style="dim"))
        shown = list(answer.rows) if rows else answer.worst(worst)
        if shown:
            console.print()
            console.print(Text("all rows" if rows else "furthest off", style="bold"))
            cells = [tuple(_plain(cell) for cell in words.row_cells(row)) for row in shown]
            _print_cells(console, words.ROW_HEADINGS, cells)


def _plain(text: str) -> str:
    # Names come from strangers; control characters must not reach a terminal.
    return "".join(char if char.isprintable() else " " for char in text)


_RIGHT = (
    "n",
    "covered",
    "median",
    "p90",
    "worst",
    "bias",
    "in band",
    "predicted",
    "measured",
    "error",
    "tolerance",
)


def _print_cells(console: Console, headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    for heading in headings:
        right = heading in _RIGHT
        grid.add_column(justify="right" if right else "left", no_wrap=right, overflow="fold")
    grid.add_row(*(Text(heading, style="dim") for heading in headings))
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    console.print(grid)


@contextmanager
def counting(total: int, what: str) -> Iterator[Callable[[], None]]:
    """A bar on a terminal's stderr; calls of what it gives move it on. Silent elsewhere."""
    if not sys.stderr.isatty() or total < _LEAST_FOR_A_BAR:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)
