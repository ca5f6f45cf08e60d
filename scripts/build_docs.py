"""Fill the generated parts of README.md and docs/*.md from the program itself.

    python scripts/build_docs.py            writes them
    python scripts/build_docs.py --check    says which are out of date; exit code 1 if any is

A generated part stands between `<!-- generated: NAME -->` and `<!-- end of NAME -->`. The pages of
docs/rules are generated whole.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesize.__main__ import main as run_command
from moesize.catalog import index, load_spec, spec_folder
from moesize.cli import main as command_group
from moesize.core.inventory import count_parameters
from moesize.core.kv_cache import sequence_cost
from moesize.core.units import format_count
from moesize.engines import list_engines, option_of, planned_fields
from moesize.schemas import document_names, find_schema
from moesize.verify.neutral import paths_in
from moesize.verify.observations import ratios
from moesize.verify.receipts import parse

if TYPE_CHECKING:
    from collections.abc import Callable

    import click

    from moesize.accuracy.summary import Accuracy
    from moesize.verify.receipts import Figure, Receipt

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(
    r"(?P<head><!-- generated: (?P<name>[\w-]+) -->\n).*?(?P<tail><!-- end of (?P=name) -->)",
    re.DOTALL,
)


def output_of(*arguments: str, columns: int = 88) -> str:
    """What a command prints to a terminal of this width."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="utf-8", write_through=True)
    os.environ["COLUMNS"] = str(columns)
    with contextlib.redirect_stdout(stream):
        run_command(list(arguments))
    stream.detach()
    return "\n".join(line.rstrip() for line in raw.getvalue().decode().splitlines()).strip("\n")


def _screen(*arguments: str, columns: int = 88) -> str:
    shown = output_of(*arguments, columns=columns)
    return f"```console\n$ moesize {' '.join(arguments)}\n{shown}\n```\n"


def plan_example() -> str:
    """The first thing that a reader sees."""
    return _screen("plan", "mixtral-8x7b", "--gpu", "a10g", "--quant", "4bit")


def verdict_examples() -> str:
    """One line for scripts."""
    return _screen(
        "plan", "deepseek-v3", "--gpu", "h200", "--gpus", "8", "--context", "32k", "--quiet"
    )


def audit_example() -> str:
    """A log beside its plan."""
    log = Path("tests/fixtures/logs/vllm-qwen3-30b-fp8-h100.log")
    os.environ["MOESIZE_CALIBRATION"] = "off"
    shown = output_of("audit", str(ROOT / log), "--engine-version", "0.30.0", columns=120)
    command = f"moesize audit {log.name} --engine-version 0.30.0"
    return f"```console\n$ {command}\n{shown}\n```\n"


def _check_screen(*arguments: str) -> str:
    """`moesize check` where its example files lie, so that paths are short."""
    with contextlib.chdir(ROOT / "tests" / "fixtures" / "check"):
        return _screen("check", *arguments)


def check_example() -> str:
    """A manifest whose server does not start."""
    return _check_screen("gpt-oss.yaml")


def check_unknown_example() -> str:
    """A compose file that names no GPU."""
    return _check_screen("compose.yaml")


def catalogue_size() -> str:
    """How many models, and how many of them are checked against a published count."""
    models = index()["models"]
    checked = sum(model["exact"] for model in models)
    return (
        f"The catalogue holds {len(models)} models; the tensor lists of {checked} of them were "
        "checked against a\npublished element count.\n"
    )


# What any plan may be asked; the rest of what an engine plans is worth a column.
_COMMON = frozenset(("context_tokens", "concurrency", "kv_dtype", "num_gpus"))


def engine_table() -> str:
    """Engines, their versions, and the options that each of them plans."""
    lines = ["| engine | versions | options planned |", "|---|---|---|"]
    for row in list_engines():
        fields = planned_fields(row["name"]) - _COMMON - {"engine", "engine_version"}
        if row["name"] == "vllm":  # looked at there to say what takes its place
            fields -= {"data_parallel_attention"}
        named = {option_of(field) for field in fields} - {"--engine-args"}
        options = sorted(named, key=lambda name: (len(name) > 5, name))
        shown = ", ".join(f"`{name}`" for name in options)
        lines.append(f"| {row['name']} | {row['versions']} | {shown} |")
    return "\n".join(lines) + "\n"


def cli_reference() -> str:
    """Every command with its help."""
    parts = [_help("moesize", command_group, [])]
    parts += [
        _help(f"moesize {name}", command, [name])
        for name, command in command_group.commands.items()
    ]
    return "\n".join(parts)


def _help(title: str, command: click.Command, words: list[str]) -> str:
    assert command.help, f"{title} has no help"
    return f"## {title}\n\n```text\n{output_of(*words, '--help', columns=100)}\n```\n"


def catalogue_table() -> str:
    """One row for each model: counts, cache per token, and what vouches for it."""
    lines = [
        "| model | hub id | parameters | active | KV bytes per token | per sequence "
        "| as published | checked against |",
        "|---|---|---:|---:|---:|---:|---|---|",
    ]
    for path in sorted(spec_folder().glob("*.yaml")):
        spec = load_spec(path)
        counts, cost = count_parameters(spec), sequence_cost(spec)
        stored = spec.quantization.method if spec.quantization else spec.dtype
        exact = spec.source.total_elements
        checked = f"{exact:,} elements" if exact is not None else "its config only"
        fixed = f"{cost.state_bytes_per_sequence:,}" if cost.state_bytes_per_sequence else ""
        lines.append(
            f"| `{spec.id}` | {spec.hub_id} | {format_count(counts.total)} "
            f"| {format_count(counts.active)} | {cost.bytes_per_token:,} | {fixed} "
            f"| {stored} | {checked} |"
        )
    return "\n".join(lines) + "\n"


def json_fields() -> str:
    """Every document with every field, from the schemas."""
    parts = []
    for name in document_names():
        if name == "spec":
            continue
        schema = find_schema(name)
        parts.append(f"### `{name}`\n\n{schema.get('description', '')}\n")
        parts.append(
            "| field | type |\n|---|---|\n" + "\n".join(_fields(schema, schema, "")) + "\n"
        )
    return "\n".join(parts)


def _fields(schema: dict[str, Any], root: dict[str, Any], prefix: str) -> list[str]:
    lines = []
    for name, field in schema.get("properties", {}).items():
        here = f"{prefix}{name}"
        kind, inner = _kind(field, root)
        lines.append(f"| `{here}` | {kind} |")
        if inner is not None:
            lines += _fields(inner, root, here + ("[]." if kind.startswith("list") else "."))
    return lines


def _kind(field: dict[str, Any], root: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    if "$ref" in field:
        inner = root["$defs"][field["$ref"].rpartition("/")[2]]
        return "object", inner
    if "anyOf" in field:
        kinds = [_kind(choice, root) for choice in field["anyOf"]]
        inner = next((found for _, found in kinds if found is not None), None)
        return " or ".join(kind for kind, _ in kinds), inner
    if "const" in field:
        return f"`{field['const']!r}`".replace("'", '"'), None
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"]), None
    if field.get("type") == "array":
        kind, inner = _kind(field["items"], root)
        return f"list of {kind}", inner
    if field.get("type") == "object":
        return "object of numbers by name", None
    return {"null": "null", "boolean": "true or false"}.get(field["type"], field["type"]), None


def accuracy_table() -> str:
    """Errors of the shipped field reports by engine and term."""
    from moesize.renderers.accuracy import summary_markdown

    return summary_markdown(_accuracy()) + "\n"


def accuracy_report() -> str:
    """The same with outcomes, coverage and the rows that are furthest off."""
    from moesize.renderers.accuracy import accuracy_markdown

    return accuracy_markdown(_accuracy(), worst=20) + "\n"


@cache
def _accuracy() -> Accuracy:
    from moesize.accuracy import measure
    from moesize.accuracy.reports import read_reports, shipped_reports

    return measure(read_reports(shipped_reports()))


NO_MEASUREMENT = "No measurement yet: `moesize verify` has not been run on a GPU so far.\n"


def records_of(folder: Path) -> list[Receipt]:
    """The records of GPUs in a folder that anybody may read.

    Raises ValueError for a file that is no record, and for one that says where something lay on
    the machine that wrote it.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        text = path.read_bytes()
        record = parse(text, path.name)
        if record is None:
            raise ValueError(f"{path.name}: no record of `moesize verify --save`")
        places = list(paths_in(json.loads(text)))
        if places:
            raise ValueError(f"{path.name}: {', '.join(places[:5])} holds a path; write PATH there")
        found.append(record)
    return sorted(
        (one for one in found if one.kind != "cpu"),
        key=lambda one: (one.model, one.quantization, one.gpu, one.date, one.file),
    )


def measured_table(folder: Path = ROOT / "measurements") -> str:
    """Errors of what was measured on GPUs: (predicted - measured) / measured, in percent."""
    records = records_of(folder)
    if not records:
        return NO_MEASUREMENT
    lines = [
        "| model | scheme | GPU | of it | weights | KV cache | prefill | sampling | whole peak "
        "| context | load speed | date, torch |",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for one in records:
        cache = one.figure("kv_cache.static") or one.figure("kv_cache.growing")
        names = ("prefill_peak", "sampling_peak", "peak", "context")
        figures = (one.weights(), cache, *(one.figure(name) for name in names))
        pace = "" if one.speed_share is None else f"{one.speed_share:.0%}"
        cells = (
            f"`{one.model}`", one.quantization, one.gpu, one.part or f"all {one.layers} layers",
            *map(_percent, figures), pace, f"{one.date}, {one.torch}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    about = (
        "Predicted against measured, in percent of what was measured; bold: outside of its "
        "tolerance. Of several\nranks the one furthest off. Load speed: share of what the device "
        "copies."
    )
    return "\n".join([*lines, "", about]) + "\n"


def _percent(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return f"**{figure.percent}**" if figure.off else figure.percent


def measured_ratios(folder: Path = ROOT / "measurements") -> str:
    """How far predictions are off over all records that count."""
    rows = ratios(records_of(folder))
    if not rows:
        return NO_MEASUREMENT
    lines = ["| term | n | measured / predicted | nine tenths within | worst |"]
    lines.append("|---|---:|---:|---:|---:|")
    lines += [
        f"| `{row.term}` | {row.n} | {row.median:.4f} | {row.p90:.2%} | {row.worst:.2%} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


BLOCKS: dict[str, Callable[[], str]] = {
    "plan-example": plan_example,
    "verdict-example": verdict_examples,
    "audit-example": audit_example,
    "check-example": check_example,
    "check-unknown-example": check_unknown_example,
    "catalogue-size": catalogue_size,
    "engine-table": engine_table,
    "cli-reference": cli_reference,
    "catalogue-table": catalogue_table,
    "json-fields": json_fields,
    "accuracy-table": accuracy_table,
    "accuracy-report": accuracy_report,
    "measured-table": measured_table,
    "measured-ratios": measured_ratios,
}


def filled(text: str) -> str:
    """The text with every generated part made anew. Raises KeyError for a part nobody makes."""
    return _BLOCK.sub(
        lambda match: f"{match['head']}\n{BLOCKS[match['name']]()}\n{match['tail']}", text
    )


def pages() -> list[Path]:
    """Every page that may hold generated parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def rule_pages() -> dict[Path, str]:
    """Every page of docs/rules: the index, and one for each rule of `moesize check`."""
    from moesize.check.rules import RULES
    from moesize.renderers.check.rules import rule_page, rules_index

    folder = ROOT / "docs" / "rules"
    made = {folder / f"{rule.id}.md": rule_page(rule) for rule in RULES}
    return {folder / "README.md": rules_index(RULES), **made}


def _wanted() -> dict[Path, str]:
    made = {page: filled(page.read_text(encoding="utf-8")) for page in pages()}
    return {**made, **rule_pages()}


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    wanted = _wanted()
    stale = []
    for page, new in wanted.items():
        if not page.exists() or page.read_text(encoding="utf-8") != new:
            stale.append(page.relative_to(ROOT))
            if not options.check:
                page.parent.mkdir(exist_ok=True)
                page.write_text(new, encoding="utf-8")
    for page in sorted((ROOT / "docs" / "rules").glob("*.md")):
        if page not in wanted:  # of a rule that is no more
            stale.append(page.relative_to(ROOT))
            if not options.check:
                page.unlink()
    what = "out of date; run python scripts/build_docs.py" if options.check else "written"
    for name in stale:
        print(f"{name}: {what}")
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
