"""Commands: flags in, exit code out. No arithmetic; nothing heavy is imported before its use."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

import click

from moesize._version import __version__
from moesize.cli_parts import (
    EXIT_NO,
    EXIT_WRONG_QUESTION,
    EXIT_YES,
    Command,
    PanelCommand,
    emit,
    one_line,
    option,
    options,
    print_json,
)
from moesize.core.errors import MoesizeError

if TYPE_CHECKING:
    from collections.abc import Callable


def run(argv: list[str]) -> int:
    """Run the command line and return its exit code; no traceback for foreseeable trouble."""
    as_json = _wants_json(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character gets ?
    try:
        code = main.main(args=argv, prog_name="moesize", standalone_mode=False)
        return code if isinstance(code, int) else EXIT_YES
    except MoesizeError as error:
        return _report(error.kind, error.message, error.hint, error.exit_code, as_json)
    except click.UsageError as error:
        hint = error.ctx.command_path + " --help" if error.ctx is not None else "moesize --help"
        message = error.format_message().rstrip(".")
        return _report("usage", message, f"see `{hint}`", EXIT_WRONG_QUESTION, as_json)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    except SystemExit:  # how click ends when the reader of a pipe has left
        return EXIT_YES


def _report(kind: str, message: str, hint: str, exit_code: int, as_json: bool) -> int:
    message, hint = one_line(message), one_line(hint)
    if as_json:
        emit(print_json, {"error": {"kind": kind, "message": message, "hint": hint}})
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"\nhint: {hint}", file=sys.stderr)
    return exit_code


def _wants_json(argv: list[str]) -> bool:
    pairs = zip(argv, [*argv[1:], ""], strict=False)
    return any(a == "--format=json" or (a in ("--format", "-f") and b == "json") for a, b in pairs)


class _Group(click.Group):
    """Suggests near command names, and lists commands in the order of their use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(name, self.commands, n=2)
            text = f"no command {name[:60]!r}"
            raise click.UsageError(
                text + (f"; did you mean {' or '.join(near)}?" if near else ""), ctx=ctx
            )
        return super().resolve_command(ctx, args)


_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=_Group, context_settings=_SETTINGS, invoke_without_command=True)
@click.version_option(__version__, "-V", "--version", message="moesize %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Does this model fit that GPU, what fills the memory, what does a token cost, and what would
    fit instead.

    \b
    moesize plan mixtral-8x7b --gpu a10g --quant 4bit
    moesize show deepseek-v3
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _format_option(*choices: str) -> Callable[[Command], Command]:
    return option(
        "Output",
        "--format",
        "-f",
        "output",
        type=click.Choice(choices),
        default=choices[0],
        help="How to print the answer.",
        show_default=True,
    )


_MODEL = click.argument("model")
_ONLINE = option("Model", "--online", is_flag=True, help="Ask the hub even for catalogue models.")
_QUANT = option(
    "Model",
    "--quant",
    "--quantization",
    "-q",
    "quant",
    default="checkpoint",
    metavar="Q",
    help="Scheme (awq-4bit, fp8, ...), 4bit, 8bit, or checkpoint: as published.",
    show_default=True,
)
_KV_DTYPE = option(
    "Workload", "--kv-dtype", "--kv-cache-dtype", "kv_dtype", metavar="D", help="auto, fp8, ..."
)

_NO_CALIBRATION = option(
    "Engine",
    "--no-calibration",
    "calibration",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Leave out what `audit --save` and `verify --save` measured.",
)

_PLAN_OPTIONS = options(
    option(
        "GPUs",
        "--gpu",
        "-g",
        "gpu",
        metavar="NAME",
        required=True,
        help='a10g, h100, "NVIDIA L4", g5.12xlarge, 24GiB, local, ...',
    ),
    option(
        "GPUs",
        "--gpus",
        "-n",
        "gpus",
        type=click.IntRange(1, 4096),
        metavar="N",
        help="How many; default 1, or what an instance has.",
    ),
    _QUANT,
    _ONLINE,
    option(
        "Workload",
        "--context",
        "--max-model-len",
        "-c",
        "context",
        metavar="N",
        help="Tokens of one sequence (32k); default: the model's longest.",
    ),
    option(
        "Workload",
        "--concurrency",
        "concurrency",
        metavar="N",
        help="Sequences held at once; default 1.",
    ),
    _KV_DTYPE,
    option(
        "Engine",
        "--engine",
        "engine",
        metavar="E",
        help="Inference engine; default: vllm, llama.cpp for a GGUF file, or that of the pasted "
        "command.",
    ),
    option(
        "Engine", "--engine-version", "engine_version", metavar="V", help="Default: newest known."
    ),
    option(
        "Engine",
        "--tp",
        "--tensor-parallel-size",
        "tp",
        type=click.IntRange(1, 1024),
        metavar="N",
        help="Tensor parallel; default: all GPUs.",
    ),
    option(
        "Engine",
        "--pp",
        "--pipeline-parallel-size",
        "pp",
        type=click.IntRange(1, 1024),
        metavar="N",
        help="Pipeline stages.",
    ),
    option(
        "Engine",
        "--dp",
        "--data-parallel-size",
        "dp",
        type=click.IntRange(1, 1024),
        metavar="N",
        help="Data-parallel replicas.",
    ),
    option(
        "Engine",
        "--ep/--no-ep",
        "--enable-expert-parallel/--no-enable-expert-parallel",
        "ep",
        default=None,
        help="Whole experts per GPU instead of slices.",
    ),
    option(
        "Engine",
        "--gpu-memory-utilization",
        "gpu_memory_utilization",
        type=float,
        metavar="F",
        help="Share of the GPU the engine allows itself.",
    ),
    option("Engine", "--max-num-seqs", "max_num_seqs", metavar="N", help="Sequences per step."),
    option(
        "Engine",
        "--max-num-batched-tokens",
        "max_num_batched_tokens",
        metavar="N",
        help="Tokens per step.",
    ),
    option(
        "Engine",
        "--enforce-eager",
        "enforce_eager",
        is_flag=True,
        default=None,
        help="No CUDA graphs.",
    ),
    option(
        "Engine",
        "--block-size",
        "block_size",
        type=click.IntRange(1, 1 << 20),
        metavar="N",
        help="Tokens of a KV block.",
    ),
    option(
        "Engine",
        "--kv-cache-memory",
        "kv_cache_memory",
        metavar="SIZE",
        help="KV bytes per GPU instead of the budget arithmetic.",
    ),
    option(
        "Engine",
        "--dcp",
        "--decode-context-parallel-size",
        "dcp",
        type=click.IntRange(1, 1024),
        metavar="N",
        help="Ranks of a TP group that share out the tokens of the KV cache.",
    ),
    option(
        "Engine",
        "--dp-attention/--no-dp-attention",
        "--enable-dp-attention",
        "dp_attention",
        default=None,
        help="Attention data-parallel inside the TP group (SGLang).",
    ),
    option(
        "Engine",
        "--redundant-experts",
        "redundant_experts",
        type=click.IntRange(0, 1 << 16),
        metavar="N",
        help="Extra copies of experts (EPLB).",
    ),
    option(
        "Engine",
        "--expert-skew",
        "expert_skew",
        type=float,
        metavar="F",
        help="Tokens of the busiest EP rank / mean over ranks.",
    ),
    option(
        "Engine",
        "--offload-experts",
        "offload_experts",
        metavar="N|all",
        help="Layers whose experts stay on the host.",
    ),
    option(
        "Engine",
        "--cpu-offload-gib",
        "--cpu-offload-gb",
        "cpu_offload_gib",
        type=float,
        metavar="F",
        help="Weights of each rank kept on the host.",
    ),
    option("Engine", "--draft", "draft", metavar="MODEL", help="Draft model for speculation."),
    option(
        "Engine",
        "--spec-tokens",
        "--num-speculative-tokens",
        "spec_tokens",
        type=click.IntRange(1, 64),
        metavar="N",
        help="Tokens guessed per step by the draft.",
    ),
    option(
        "Engine",
        "--mtp",
        "mtp",
        type=click.IntRange(1, 64),
        metavar="N",
        help="Tokens guessed per step by the model's MTP blocks.",
    ),
    option(
        "Engine",
        "--lora-rank",
        "--max-lora-rank",
        "lora_rank",
        type=click.IntRange(1, 1024),
        metavar="R",
        help="Adapter rank.",
    ),
    option(
        "Engine",
        "--max-loras",
        "max_loras",
        type=click.IntRange(1, 4096),
        metavar="N",
        help="Adapters held at once.",
    ),
    option(
        "Engine",
        "--engine-args",
        "engine_args",
        metavar='"..."',
        help="The engine's own flags, or a whole serve command, verbatim.",
    ),
    _format_option("table", "json", "markdown", "csv"),
    option("Output", "--explain", is_flag=True, help="Every item with formula and source."),
    option("Output", "--quiet", is_flag=True, help="The verdict line only."),
    _NO_CALIBRATION,
)


@main.command(cls=PanelCommand)
@_MODEL
@_PLAN_OPTIONS
def plan(model: str, output: str, explain: bool, quiet: bool, **options: Any) -> int:
    """Does MODEL fit these GPUs, what uses the memory, and what would fit instead.

    MODEL is a catalogue name, a hub id, a folder, a config.json, a GGUF file or a model-spec YAML.

    \b
    moesize plan mixtral-8x7b --gpu a10g --quant 4bit
    moesize plan deepseek-v3 --gpu h200 --gpus 8 --context 32k --format json
    """
    from moesize.api import plan as make_plan

    answer = make_plan(model, **options)
    if quiet and output != "json":
        from moesize.renderers.text import verdict_line

        emit(print, verdict_line(answer))
        for note in answer.warnings:
            # What was assumed stands in the line itself; the rest must not vanish.
            if note.code not in ("gpu", "layout"):
                print(f"note: {one_line(note.message)}", file=sys.stderr)
    elif output == "json":
        emit(print_json, answer.to_dict())
    elif output == "markdown":
        from moesize.renderers.markdown import plan_markdown

        emit(print, plan_markdown(answer, explain=explain))
    elif output == "csv":
        from moesize.renderers.text import plan_csv

        emit(print, plan_csv(answer), end="")
    else:
        from moesize.renderers.table import print_plan

        emit(print_plan, answer, explain=explain)
    return EXIT_YES if answer.fits else EXIT_NO


@main.command(cls=PanelCommand)
@_MODEL
@options(
    _QUANT,
    _ONLINE,
    _KV_DTYPE,
    _format_option("table", "json"),
    option("Output", "--tensors", is_flag=True, help="List every tensor."),
)
def show(model: str, output: str, tensors: bool, **options: Any) -> int:
    """What MODEL is: parameters by role, active parameters, KV bytes per token, layers.

    \b
    moesize show qwen3-30b-a3b
    moesize show deepseek-v3 --tensors --format json
    """
    from moesize.api import show as make_report

    report = make_report(model, **options)
    if output == "json":
        emit(print_json, report.to_dict(tensors=tensors))
    else:
        from moesize.renderers.table import print_model

        emit(print_model, report, tensors=tensors)
    return EXIT_YES


@main.command(cls=PanelCommand)
@click.argument("word", required=False)
@_format_option("table", "json")
def models(word: str | None, output: str) -> int:
    """The models of the catalogue; WORD filters by name.

    \b
    moesize models
    moesize models qwen --format json
    """
    from moesize.catalog import list_models

    return _print_list("models", list_models(word), word, output)


@main.command(cls=PanelCommand)
@click.argument("word", required=False)
@_format_option("table", "json")
def gpus(word: str | None, output: str) -> int:
    """The GPUs of the catalogue; WORD filters by name.

    \b
    moesize gpus
    moesize gpus h100 --format json
    """
    from moesize.listings import gpu_rows

    return _print_list("gpus", gpu_rows(word), word, output)


@main.command(cls=PanelCommand)
@click.argument("word", required=False)
@_format_option("table", "json")
def quants(word: str | None, output: str) -> int:
    """The quantization schemes, what they leave out, and what they cost.

    \b
    moesize quants
    moesize quants Q4 --format json
    """
    from moesize.listings import quant_rows

    return _print_list("quants", quant_rows(word), word, output)


@main.command(cls=PanelCommand)
@_format_option("table", "json")
def engines(output: str) -> int:
    """The inference engines that can be planned, and their versions.

    \b
    moesize engines
    moesize engines --format json
    """
    from moesize.listings import engine_rows

    return _print_list("engines", engine_rows(), None, output)


def _print_list(what: str, rows: list[dict[str, Any]], word: str | None, output: str) -> int:
    if output == "json":
        emit(print_json, {"schema": f"moesize.{what}/1", what: rows})
        return EXIT_YES if rows else EXIT_NO
    if not rows:
        emit(print, f"no {what} match {one_line(word or '')!r}")
        return EXIT_NO
    from moesize.renderers.table import print_rows

    emit(print_rows, what, rows)
    return EXIT_YES


@main.command(cls=PanelCommand)
@click.argument("log")
@options(
    option("Model", "--model", "model", metavar="MODEL", help="Instead of what the log names."),
    option(
        "Model",
        "--quant",
        "--quantization",
        "-q",
        "quant",
        metavar="Q",
        help="Instead of what the log says.",
    ),
    _ONLINE,
    option("GPUs", "--gpu", "-g", "gpu", metavar="NAME", help="Instead of what the log names."),
    option(
        "GPUs", "--gpus", "-n", "gpus", type=click.IntRange(1, 4096), metavar="N", help="How many."
    ),
    option(
        "Engine", "--engine-version", "engine_version", metavar="V", help="Instead of the log's."
    ),
    option(
        "Engine",
        "--engine-args",
        "engine_args",
        metavar='"..."',
        help="Flags that the log does not show, verbatim.",
    ),
    _NO_CALIBRATION,
    option("Output", "--save", is_flag=True, help="Keep what was measured, for later plans."),
    _format_option("table", "json", "markdown", "csv"),
)
def audit(log: str, output: str, **options: Any) -> int:
    """Start-up LOG of vLLM, SGLang or llama.cpp beside the plan of the same deployment.

    LOG is a file, or - for a pipe: raw, or as kubectl, docker and journald print it.

    \b
    moesize audit server.log
    moesize audit - --gpu h100 --save < server.log
    """
    from moesize.audit import audit as make_audit

    found = make_audit(log, **options)
    if output == "json":
        emit(print_json, found.to_dict())
    elif output == "markdown":
        from moesize.renderers.audit import audit_markdown

        emit(print, audit_markdown(found))
    elif output == "csv":
        from moesize.renderers.audit import audit_csv

        emit(print, audit_csv(found), end="")
    else:
        from moesize.renderers.table import print_audit

        emit(print_audit, found)
    return EXIT_YES if found.agrees else EXIT_NO


@main.command(cls=PanelCommand)
@_MODEL
@options(
    option(
        "Device",
        "--device",
        "device",
        default="auto",
        metavar="D",
        help="auto, cuda, cuda:1, xpu, mps or cpu.",
        show_default=True,
    ),
    option(
        "Device",
        "--limit-memory",
        "limit_memory",
        metavar="SIZE",
        help="Most that it may use of the device: 20GiB.",
    ),
    option(
        "Device",
        "--tp-rank",
        "tp_rank",
        metavar="R/N",
        help="Slices of rank R of N, on one device: 0/8. Under torchrun every process has its own.",
    ),
    option(
        "Shards",
        "--shards",
        "shards",
        metavar="PATH",
        help="A folder of safetensors, a GGUF file, hub, or synthetic; default: MODEL's own, else "
        "synthetic.",
    ),
    option(
        "Shards", "--synthetic", "synthetic", is_flag=True, help="Random shards of the same form."
    ),
    option(
        "Shards",
        "--keep-shards",
        "keep_shards",
        type=click.Path(),
        metavar="DIR",
        help="Write synthetic shards there and leave them.",
    ),
    option(
        "Shards",
        "--layers",
        "layers",
        default="auto",
        metavar="L",
        help="auto (as many as fit), all, or 0-3,40.",
        show_default=True,
    ),
    _QUANT,
    option(
        "Workload",
        "--tokens",
        "tokens",
        default="512",
        metavar="N",
        help="Tokens of a prompt.",
        show_default=True,
    ),
    option(
        "Workload",
        "--sequences",
        "sequences",
        default="4",
        metavar="N",
        help="Sequences at once.",
        show_default=True,
    ),
    option(
        "Workload",
        "--decode-steps",
        "decode_steps",
        type=click.IntRange(1, 1 << 16),
        default=4,
        metavar="N",
        help="Tokens generated by each.",
        show_default=True,
    ),
    option(
        "Workload",
        "--dtype",
        "dtype",
        default="auto",
        metavar="D",
        help="bfloat16, float16 or float32 of computation and cache; default: the model's.",
    ),
    option(
        "Workload",
        "--seed",
        "seed",
        type=click.IntRange(0),
        default=0,
        metavar="N",
        help="Of shards and tokens.",
        show_default=True,
    ),
    option(
        "Engine",
        "--engine",
        "engine",
        type=click.Choice(("torch", "transformers", "vllm")),
        default="torch",
        help="What runs the layers.",
        show_default=True,
    ),
    option(
        "Output",
        "--tolerance",
        "tolerance",
        type=click.FloatRange(0, 1),
        metavar="F",
        help="Share by which any term may differ; default: by term.",
    ),
    option("Output", "--save", is_flag=True, help="Keep the record; later plans quote it."),
    _format_option("table", "json", "markdown"),
)
def verify(model: str, output: str, **options: Any) -> int:
    """Load real shards of MODEL on a real device, run its layers, and compare every term of
    memory with its prediction.

    Needs torch: pip install '.[verify]' in the checkout. What does not fit is measured by layers.

    \b
    moesize verify mixtral-8x7b --layers 0-3
    moesize verify ./checkpoint --device cpu --tokens 64 --format json
    torchrun --nproc-per-node 2 -m moesize verify qwen3-0.6b --layers 0-1
    """
    from moesize.cli_verify import execute

    return execute(model, output, **options)


class _CheckCommand(PanelCommand):
    """Takes its options from where they are defined, when somebody asks for them."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        from moesize.cli_check import command

        return command.get_params(ctx)


@main.command(cls=_CheckCommand)
def check(**options: Any) -> int:
    """Do the deployment files below PATHS fit their GPUs: Kubernetes, Helm values, compose, ...

    PATHS are files and folders, or - for a pipe; without any, this folder. Exit code 0: nothing
    fails, 1: findings, 2: a wrong option or configuration, 3: no deployment file was found.

    \b
    moesize check . --gpu h100
    moesize check --explain MS102
    """
    from moesize.cli_check import run_check

    return run_check(**options)


@main.command("import", cls=PanelCommand)
@click.argument("source")
@options(
    option(
        "Output",
        "--output",
        "-o",
        "target",
        type=click.Path(),
        help="File to write; default: stdout.",
    ),
    option("Model", "--id", "spec_id", help="Catalogue id of the new spec."),
    _ONLINE,
)
def import_(source: str, target: str | None, spec_id: str | None, online: bool) -> int:
    """Write a model spec (YAML) from a hub id, a checkpoint folder, a config.json or a GGUF file.

    \b
    moesize import ./config.json
    moesize import org/model --output my-model.yaml
    """
    from moesize.importer import spec_yaml, write_spec

    text = spec_yaml(source, spec_id=spec_id, online=online)
    if target is None:
        emit(print, text, end="")
    else:
        write_spec(target, text)
        print(f"wrote {target}", file=sys.stderr)
    return EXIT_YES


@main.command(cls=PanelCommand)
@click.argument("reports", required=False, type=click.Path())
@options(
    option("Reports", "--engine", "engine", metavar="E", help="Reports of this engine only."),
    option(
        "Reports",
        "--term",
        "terms",
        multiple=True,
        metavar="T",
        help="This term only (weights, kv_gib, ...); may be repeated.",
    ),
    _format_option("table", "json", "markdown", "csv"),
    option(
        "Output",
        "--worst",
        "worst",
        type=click.IntRange(0, 10_000),
        default=10,
        metavar="N",
        help="How many of the rows that are furthest off to list.",
        show_default=True,
    ),
    option("Output", "--rows", is_flag=True, help="List every row."),
)
def accuracy(
    reports: str | None,
    engine: str | None,
    terms: tuple[str, ...],
    output: str,
    worst: int,
    rows: bool,
) -> int:
    """How far plans lie from what engines logged on real machines.

    REPORTS is a file of field reports, one JSON object a line, or - for a pipe; without it, the
    reports that come with moesize are taken.

    \b
    moesize accuracy
    moesize accuracy --engine vllm --term kv_gib --worst 20 --format markdown
    """
    from pathlib import Path

    from moesize.accuracy import check_names, measure
    from moesize.accuracy.reports import read_reports, shipped_reports
    from moesize.renderers.table import counting

    file = read_reports(shipped_reports() if reports is None else Path(reports))
    chosen, wanted = check_names(file, engine, terms)
    with counting(len(file.reports), "reports") as step:
        answer = measure(file, engine=chosen, terms=wanted, progress=step)
    if output == "json":
        emit(print_json, answer.to_dict())
    elif output == "markdown":
        from moesize.renderers.accuracy import accuracy_markdown

        emit(print, accuracy_markdown(answer, worst=worst, rows=rows))
    elif output == "csv":
        from moesize.renderers.accuracy import accuracy_csv

        emit(print, accuracy_csv(answer), end="")
    else:
        from moesize.renderers.table import print_accuracy

        emit(print_accuracy, answer, worst=worst, rows=rows)
    for problem in file.problems[:20]:
        print(f"{file.file}:{problem.line}: {one_line(problem.message)}", file=sys.stderr)
    if len(file.problems) > 20:
        print(f"{file.file}: {len(file.problems) - 20} more lines like these", file=sys.stderr)
    return EXIT_YES if answer.any_covered else EXIT_NO


@main.command(cls=PanelCommand)
@click.argument("document")
def schema(document: str) -> int:
    """The JSON Schema of a document: plan, audit, accuracy, report, model, spec, models, gpus, ...

    \b
    moesize schema plan
    moesize schema spec
    """
    from moesize.schemas import find_schema

    emit(print_json, find_schema(document))
    return EXIT_YES
