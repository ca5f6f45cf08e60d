"""`moesize.plan` and `moesize.show`: names in, typed answers out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from moesize._version import __version__
from moesize.catalog import catalogue_id, normal_form, resolve_model
from moesize.core.checkpoint import StoredEntry, keep, published, with_scheme
from moesize.core.deployment import DraftModel, Request
from moesize.core.errors import (
    InvalidDeploymentError,
    InvalidInputError,
    UnknownNameError,
    UnsupportedError,
)
from moesize.core.inventory import count_parameters, moe_of
from moesize.core.model_spec import ModelSpec
from moesize.core.plan import (
    KvSummary,
    ModelSummary,
    Note,
    Plan,
    QuantizationSummary,
    Suggestion,
)
from moesize.core.quantization import (
    FAMILY_WORDS,
    Scheme,
    find_scheme,
    resolve_family,
)
from moesize.core.records import dataclass
from moesize.core.units import GIB, parse_bytes, parse_count
from moesize.core.verdict import judge
from moesize.core.weight_formats import (
    Gguf,
    Plain,
)
from moesize.costs import Costs, costs
from moesize.engines import (
    YOURS,
    calibration_without,
    engine_id,
    engine_planner,
    engine_profile,
    engine_rules,
    option_of,
    own_figures_left_out,
    planned_fields,
    refuse_unplanned,
)
from moesize.gpus import find_gpu

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moesize.core.engine import EngineProfile
    from moesize.core.gpu import GpuSpec
    from moesize.engine_args import ServeCommand


def plan(
    model: str | ModelSpec,
    *,
    gpu: str | GpuSpec,
    gpus: int | None = None,
    quant: str = "checkpoint",
    kv_dtype: str | None = None,
    context: int | str | None = None,
    concurrency: int | str | None = None,
    engine: str | None = None,
    engine_version: str | None = None,
    tp: int | None = None,
    pp: int | None = None,
    dp: int | None = None,
    ep: bool | None = None,
    gpu_memory_utilization: float | None = None,
    max_num_seqs: int | str | None = None,
    max_num_batched_tokens: int | str | None = None,
    enforce_eager: bool | None = None,
    block_size: int | None = None,
    kv_cache_memory: int | str | None = None,
    dcp: int | None = None,
    dp_attention: bool | None = None,
    redundant_experts: int | None = None,
    expert_skew: float | None = None,
    offload_experts: int | str | None = None,
    cpu_offload_gib: float | None = None,
    draft: str | ModelSpec | None = None,
    spec_tokens: int | None = None,
    mtp: int | None = None,
    lora_rank: int | None = None,
    max_loras: int | None = None,
    engine_args: str | None = None,
    online: bool = False,
    suggest: bool = True,
    calibration: bool = True,
) -> Plan:
    """Plan `model` on `gpus` GPUs (default: as many as tp x pp x dp); keyword names are options.

    Sizes are integers in bytes or texts such as "24GiB"; counts are integers or texts such as
    "32k". `engine` is vllm if neither it nor a command in `engine_args` names one, llama.cpp for a
    GGUF file. What stands in `engine_args` holds where the option itself is not given.
    `calibration` False leaves out what `audit --save` and `verify --save` measured. Raises
    MoesizeError: UnknownNameError, InvalidInputError, UnsupportedError, ...
    """
    if not calibration:
        arguments = {**locals(), "calibration": True}
        with calibration_without("off"):
            return plan(arguments.pop("model"), **arguments)
    _check_types(
        {
            "gpu": gpu,
            "quant": quant,
            "kv_dtype": kv_dtype,
            "engine": engine,
            "engine_version": engine_version,
            "engine_args": engine_args,
        },
        {
            "gpus": gpus,
            "tp": tp,
            "pp": pp,
            "dp": dp,
            "block_size": block_size,
            "dcp": dcp,
            "spec_tokens": spec_tokens,
            "mtp": mtp,
            "lora_rank": lora_rank,
            "max_loras": max_loras,
            "context": context,
            "concurrency": concurrency,
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": max_num_batched_tokens,
        },
        {"ep": ep, "enforce_eager": enforce_eager, "dp_attention": dp_attention},
    )
    spec, source = _spec_of(model, online)
    device, count, notes = _device(gpu, gpus)
    if gpus is None and count == 1:
        # No number anywhere: as many as the parallel sizes take.
        count = (tp or 1) * (pp or 1) * (dp or 1)
    command = None
    if engine_args:
        from moesize.engine_args import parse_serve_command

        engine = None if engine is None else engine_id(engine)
        command = parse_serve_command(engine_args, engine=engine, version=engine_version)
        engine = command.engine if engine is None else engine
        engine_version = engine_version or command.engine_version
    if engine is None:
        engine, usual = usual_engine(spec, quant)
        notes += usual
    request = Request(
        engine=engine_id(engine),
        engine_version=engine_version,
        num_gpus=count,
        tensor_parallel_size=tp,
        pipeline_parallel_size=pp,
        data_parallel_size=dp,
        expert_parallel=ep,
        context_tokens=_count(context),
        concurrency=_count(concurrency),
        kv_dtype=kv_dtype,
        gpu_memory_utilization=gpu_memory_utilization,
        max_num_seqs=_count(max_num_seqs),
        max_num_batched_tokens=_count(max_num_batched_tokens),
        enforce_eager=enforce_eager,
        block_tokens=block_size,
        kv_cache_bytes=_size(kv_cache_memory),
        decode_context_parallel_size=dcp,
        data_parallel_attention=dp_attention,
        num_redundant_experts=redundant_experts,
        expert_skew=expert_skew,
        cpu_offload_bytes=_gib(cpu_offload_gib),
        offload_experts=_offload_experts(offload_experts),
        num_spec_tokens=mtp or spec_tokens,
        mtp=True if mtp else None,
        draft=None if draft is None else _draft(draft, online),
        lora_rank=lora_rank,
        max_loras=max_loras,
    )
    if command is not None:
        request, pasted, quant = apply_serve_command(command, request, spec, model, quant, online)
        notes += pasted
    elif request.engine_version is not None:
        notes += _not_in_version(request)
    scheme, resolved = scheme_of(quant, request.engine, spec)
    answer = make_plan(spec, source, scheme, resolved, device, request, notes=notes)
    if suggest and not answer.fits:
        from moesize.suggestions import suggestions

        found = suggestions(spec, source, scheme, device, request)
        answer = replace(answer, suggestions=found)
    return answer


def is_gguf_file(spec: ModelSpec) -> bool:
    """Whether the spec was read from a GGUF file, with the type of every tensor."""
    return spec.quantization is not None and spec.quantization.method == "gguf"


def usual_engine(spec: ModelSpec, quant: str) -> tuple[str, tuple[Note, ...]]:
    """The engine where none is named: vLLM; for the types of a GGUF file, what loads such files."""
    if not is_gguf_file(spec):
        return "vllm", ()
    key = quant.strip().lower()
    if key not in ("checkpoint", "auto", *FAMILY_WORDS) and not find_scheme(quant).is_gguf:
        return "vllm", ()
    message = "a GGUF file is planned with llama.cpp; for another engine name it, and --quant"
    return "llama.cpp", (Note(code="engine", message=message),)


def _not_in_version(request: Request) -> tuple[Note, ...]:
    """Names options whose flag the asked-for release lacks (pasted flags are named by theirs)."""
    from moesize.engine_args.table import flag_table

    version = request.engine_version or ""
    table = flag_table(request.engine)
    missing = []
    for field in sorted(request.given()):
        flags = [flag for flag in table.flags if f"request:{field}" in flag.targets]
        if flags and not any(table.has(flag, version) for flag in flags):
            missing.append(f"{option_of(field)} ({flags[0].name})")
    if not missing:
        return ()
    title = engine_profile(request.engine, request.engine_version).title
    message = f"{title} {version} has no such flag, planned all the same: {', '.join(missing)}"
    return (Note(code="flag-not-in-version", message=message),)


def make_plan(
    spec: ModelSpec,
    source: str,
    scheme: Scheme | None,
    resolved: str,
    device: GpuSpec,
    request: Request,
    *,
    notes: tuple[Note, ...] = (),
    with_costs: bool = True,
) -> Plan:
    """Plan with everything looked up already; `scheme` None = as published.

    `with_costs` False leaves out compute and performance: for callers that ask for memory alone.
    """
    kind = model_kind(spec)
    profile = engine_profile(request.engine, request.engine_version, device.id, kind)
    refuse_unplanned(request.engine, request.given())
    stored = stored_entries(spec, scheme, request.engine)
    limits = _limits(spec, scheme, device, profile)
    rules = engine_rules(request.engine, request.engine_version, device.id, kind)
    answer = engine_planner(request.engine)(spec, stored, device, request, rules)
    warnings = list(notes)
    if profile.is_newer_than_known:
        warnings.append(
            Note(
                code="engine-version",
                message=(
                    f"{profile.title} {profile.version} is newer than what is known; "
                    "planned by the newest known rules"
                ),
            )
        )
    measured = {n: c for n, c in profile.constants.items() if c.source.startswith(YOURS)}
    if measured:
        ways = sorted({c.source.rpartition(", ")[2] for c in measured.values()})
        message = f"as measured on this GPU ({', '.join(ways)}): {', '.join(sorted(measured))}"
        warnings.append(Note(code="calibration", message=message))
    warnings += limits
    if with_costs:  # an answer for people: what was measured belongs to it
        warnings += _receipts(spec, scheme, device, answer.deployment)
    cost = costs(spec, stored, device, answer) if with_costs else _NO_COSTS
    return Plan(
        model=_model_summary(spec, source),
        quantization=_quantization_summary(spec, scheme, resolved, stored),
        deployment=answer.deployment,
        defaulted=answer.defaulted,
        gpus=answer.ledgers,
        kv_cache=answer.kv,
        compute=cost.compute,
        performance=cost.performance,
        verdict=judge(answer, device),
        warnings=(*warnings, *answer.warnings),
        host=answer.host,
        engine_title=profile.title,
        expert_parallel=cost.expert_parallel,
        version=__version__,
    )


def _receipts(
    spec: ModelSpec, scheme: Scheme | None, device: GpuSpec, deployment: Mapping[str, Any]
) -> list[Note]:
    """What `verify --save` measured of this model, scheme and GPU on the user's machines."""
    if own_figures_left_out():
        return []
    from moesize.verify.receipts import Planned, quotes

    name = "checkpoint" if scheme is None else scheme.name
    if scheme is None and spec.quantization is not None and spec.quantization.file_type:
        name = find_scheme(spec.quantization.file_type).name
    planned = Planned(
        engine=deployment["engine"],
        ranks=0 if deployment["ep"] else deployment["tp"],
        # The states of hybrids are kept in formats of each engine's own.
        kv_dtype="" if model_kind(spec) == "hybrid" else deployment["kv_dtype"] or "",
    )
    found = quotes(spec, name, device.id, planned)
    return [Note(code="measured", message=quote.text) for quote in found[:1]]


_NO_COSTS = Costs({}, {})


def model_kind(spec: ModelSpec) -> str:
    """hybrid, moe or dense: what measured constants may depend on; kept by the spec."""
    kept: str | None = spec.__dict__.get("_kind")
    if kept is None:
        if any(mixer.state() for block in spec.blocks for mixer in block.mixers):
            kept = "hybrid"
        else:
            kept = "moe" if any(moe_of(block) is not None for block in spec.blocks) else "dense"
        spec.__dict__["_kind"] = kept
    return kept


def stored_entries(spec: ModelSpec, scheme: Scheme | None, engine: str) -> tuple[StoredEntry, ...]:
    """Entries with their formats, as published or as a scheme would make them."""
    if engine_profile(engine).facts.get("weights") == "gguf":
        from moesize.core.gguf_view import gguf_stored

        return gguf_stored(spec, scheme)
    if scheme is None and is_gguf_file(spec):
        raise UnsupportedError(
            f"{spec.title} is a GGUF file; {engine} is planned without GGUF",
            "add --engine llama.cpp, or ask what another scheme would take: --quant bf16, fp8, ...",
        )
    if scheme is not None:
        if scheme.is_gguf:
            raise UnsupportedError(
                f"{scheme.name} is a llama.cpp format; {engine} is planned without GGUF",
                "add --engine llama.cpp, or use --quant 4bit, awq-4bit or fp8; `moesize show MODEL "
                f"--quant {scheme.name}` gives the file size",
            )
        return with_scheme(spec, scheme, engine)
    if spec.quantization is None and spec.dtype == "float32":
        # vLLM 0.32.0 config/model.py: a float32 checkpoint is served in bfloat16.
        return with_scheme(spec, find_scheme("bf16"), engine)
    return published(spec)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """What `moesize show` says."""

    spec: ModelSpec
    model: ModelSummary
    quantization: QuantizationSummary
    kv_bytes_per_token: int
    kv_window_bytes: int
    kv_recurrent_bytes: int
    kv_dtype: str
    stored_bytes: int
    stored: tuple[StoredEntry, ...]

    def to_dict(self, *, tensors: bool = False) -> dict[str, Any]:
        """The JSON document `moesize.model/1`."""
        document: dict[str, Any] = {
            "schema": "moesize.model/1",
            "moesize_version": __version__,
            "model": self.model.to_dict(),
            "quantization": self.quantization.to_dict(),
            "kv_cache": {
                "bytes_per_token": self.kv_bytes_per_token,
                "state_bytes_per_sequence": self.kv_window_bytes + self.kv_recurrent_bytes,
                "window_bytes": self.kv_window_bytes,
                "recurrent_bytes": self.kv_recurrent_bytes,
                "dtype": self.kv_dtype,
            },
            "checkpoint": {"stored_bytes": self.stored_bytes},
        }
        if tensors:
            document["tensors"] = self.tensor_rows()
        return document

    def tensor_rows(self) -> list[dict[str, Any]]:
        """One row for each entry of the inventory, as it is stored."""
        from moesize.core.naming import tensor_name

        return [
            {
                "name": item.entry.name
                or tensor_name(self.spec.naming, item.entry.tensor.role, item.entry.section),
                "role": item.entry.tensor.role,
                "section": item.entry.section,
                "shape": list(item.entry.tensor.shape),
                "copies_per_layer": item.entry.tensor.copies,
                "layers": len(item.entry.layers),
                "elements": item.entry.elements,
                "format": describe_format(item.weight_format) or item.dtype,
                "bytes": item.file_bytes,
            }
            for item in self.stored
        ]


def show(
    model: str | ModelSpec,
    *,
    quant: str = "checkpoint",
    kv_dtype: str | None = None,
    online: bool = False,
) -> ModelReport:
    """What a model is, in a quantization and KV dtype. Raises MoesizeError."""
    from moesize.core.kv_cache import sequence_cost

    spec, source = _spec_of(model, online)
    _check_types({"quant": quant, "kv_dtype": kv_dtype}, {}, {})
    scheme, resolved = scheme_of(quant, "vllm", spec)
    original = published(spec)
    if scheme is None:
        stored = original
    elif scheme.is_gguf:
        from moesize.core.gguf_view import gguf_entries

        stored = gguf_entries(spec, scheme)
    else:
        stored = with_scheme(spec, scheme)
    cost = sequence_cost(spec, kv_dtype or "auto")
    return ModelReport(
        spec=spec,
        model=_model_summary(spec, source),
        quantization=_quantization_summary(spec, scheme, resolved, stored),
        kv_bytes_per_token=cost.bytes_per_token,
        kv_window_bytes=cost.window_bytes,
        kv_recurrent_bytes=cost.recurrent_bytes,
        kv_dtype=cost.dtype,
        stored_bytes=sum(item.file_bytes for item in original),
        stored=stored,
    )


def describe_format(weight_format: object | None) -> str:
    """A weight format in a few words; empty for plain elements."""
    if weight_format is None or isinstance(weight_format, Plain):
        return ""
    if isinstance(weight_format, Gguf):
        return weight_format.block_type.name
    from dataclasses import fields

    name = type(weight_format).__name__
    facts = [
        f"{item.name}={getattr(weight_format, item.name)}"
        for item in fields(weight_format)  # type: ignore[arg-type]
        if item.name in ("bits", "group_size", "block_rows", "block_cols", "nested")
    ]
    return f"{name}({', '.join(facts)})" if facts else name


def _spec_of(model: str | ModelSpec, online: bool) -> tuple[ModelSpec, str]:
    from moesize.core.model_spec import ModelSpec

    if isinstance(model, ModelSpec):
        return model, "spec"
    if isinstance(model, PurePath):
        model = str(model)
    if not isinstance(model, str):
        raise InvalidInputError(f"model must be a name, a path or a ModelSpec, not {model!r:.60}")
    return resolve_model(model, online=online)


# Counts that may also be written as "32k".
_COUNT_TEXTS = ("context", "concurrency", "max_num_seqs", "max_num_batched_tokens")


def _check_types(texts: dict[str, Any], counts: dict[str, Any], flags: dict[str, Any]) -> None:
    """Refuse values of the wrong type by name, instead of failing somewhere inside."""
    from moesize.core.gpu import GpuSpec

    for name, value in texts.items():
        required = name in ("gpu", "quant")
        good = isinstance(value, str) or (name == "gpu" and isinstance(value, GpuSpec))
        if not good and (required or value is not None):
            raise InvalidInputError(f"{name} must be a text, not {value!r:.60}")
    for name, value in counts.items():
        text = isinstance(value, str) and name in _COUNT_TEXTS
        if value is None or text:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInputError(
                f"{name} must be a whole number of at least 1, not {value!r:.60}"
            )
    for name, value in flags.items():
        if value is not None and not isinstance(value, bool):
            raise InvalidInputError(f"{name} must be true or false, not {value!r:.60}")


def apply_serve_command(
    command: ServeCommand,
    request: Request,
    spec: ModelSpec,
    model: str | ModelSpec,
    quant: str,
    online: bool,
    *,
    offline: bool = False,
) -> tuple[Request, tuple[Note, ...], str]:
    """A pasted command put into the request: (request, notes, quantization).

    `offline`: a draft that the catalogue does not know is left out, not asked for.
    """
    from moesize.core.errors import CannotAnswerError
    from moesize.engine_args import apply_command

    own_tokens = request.num_spec_tokens
    request, found = apply_command(request, command)
    notes = list(found)
    same = bool(command.model) and _same_model(str(command.model), model, spec)
    # A file's own types, not what its name says.
    own_types = same and is_gguf_file(spec)
    if command.model and not same:
        message = (
            f"--engine-args: the pasted command serves {command.model[:120]}; planned is {spec.id}"
        )
        notes.append(Note(code="engine-args-model", message=message))
    published = spec.quantization
    if same and quant == "checkpoint" and published is None and not command.quant:
        quant = _quant_of_name(str(command.model), notes)
    wants = command.quant if not own_types else ""
    if wants and quant == "checkpoint" and (published is None or command.is_gguf):
        if command.scheme is not None:
            quant = command.scheme
        elif published is None or published.method not in wants.lower():
            message = (
                f"--engine-args: quantization {wants[:40]} is not planned: the weights are "
                "as published; name a scheme with --quant"
            )
            notes.append(Note(code="engine-args", message=message))
    if command.draft and request.draft is None and not request.mtp:
        planned = "draft" in planned_fields(request.engine)
        trouble = "speculation is not planned for this engine" if not planned else ""
        if planned:
            try:
                draft = _draft(command.draft, online, offline=offline)
                method = getattr(request.engine_settings, "spec_method", None) or draft.method
                request = replace(request, draft=replace(draft, method=method))
            except (UnknownNameError, CannotAnswerError, InvalidInputError) as error:
                trouble = error.message
        if trouble:
            request = _without_speculation(request, own_tokens)
            message = f"--engine-args: draft {command.draft[:120]} is not in the plan: {trouble}"
            notes.append(Note(code="engine-args", message=message))
    return request, tuple(notes), quant


def _without_speculation(request: Request, num_spec_tokens: int | None) -> Request:
    """Without what a pasted command says of a draft model that cannot be planned."""
    own = request.engine_settings
    names = ("spec_method", "speculative_algorithm", "spec_type", "draft_tensor_parallel_size")
    left = {name: None for name in names if getattr(own, name, None) is not None}
    if own is not None and left:
        own = replace(own, **left)  # type: ignore[type-var]
    return replace(request, num_spec_tokens=num_spec_tokens, engine_settings=own)


def _same_model(typed: str, model: str | ModelSpec, spec: ModelSpec) -> bool:
    """Whether a pasted model is the one that is planned, by name: hub id, path or catalogue."""
    from moesize.engine_args import bare_model

    names = {spec.id, spec.hub_id}
    if isinstance(model, str):
        names.add(model)
    wanted = {normal_form(bare_model(name)) for name in names if name}
    if typed in names or normal_form(bare_model(typed)) in wanted:
        return True
    if catalogue_id(typed) == spec.id:
        return True
    from moesize.model_names import resolve_name

    named = resolve_name(typed, bare_model(typed))
    return named is not None and named.id == spec.id


def _quant_of_name(typed: str, notes: list[Note]) -> str:
    """The scheme that a pasted quantized copy's name states, such as X-FP8-dynamic."""
    from moesize.model_names import resolve_name, scheme_name

    named = resolve_name(typed)
    scheme = scheme_name(named.words, owner=named.owner) if named is not None else ""
    if not named or scheme == "":
        return "checkpoint"
    if scheme is None:
        message = (
            f"--engine-args: how {typed[:120]} stores its weights is not known: planned as "
            "published; name a scheme with --quant"
        )
    else:
        message = f"--engine-args: {typed[:120]} is planned as {named.id} in {scheme}"
    notes.append(Note(code="engine-args", message=message))
    return scheme or "checkpoint"


def _draft(draft: str | ModelSpec, online: bool, *, offline: bool = False) -> DraftModel:
    if offline and isinstance(draft, str):
        found = catalogue_id(draft)
        if found is None:
            raise UnknownNameError("model", draft, (), "moesize models")
        draft = found
    spec, _ = _spec_of(draft, online)
    if is_gguf_file(spec):
        raise UnsupportedError(
            f"{spec.title} is a GGUF file, and no engine is planned with such a draft model",
            "name the draft by its catalogue or hub id",
        )
    names = f"{draft if isinstance(draft, str) else ''} {spec.id} {spec.hub_id}".lower()
    # Such a head looks like a model of one layer, and is none: it reads the target's states.
    method = next((word for word in ("eagle3", "eagle", "dflash") if word in names), "draft_model")
    return DraftModel(spec=spec, stored=published(spec), method=method)


def _offload_experts(value: int | str | None) -> int | Literal["all"] | None:
    if value is None or isinstance(value, int):
        return value
    if value.strip().lower() == "all":
        return "all"
    if not value.strip().isdigit():
        raise InvalidInputError(f"offload_experts is {value[:40]!r}", "a number of layers, or all")
    return int(value)


def _device(gpu: str | GpuSpec, gpus: int | None) -> tuple[GpuSpec, int, tuple[Note, ...]]:
    if not isinstance(gpu, str):
        return gpu, gpus or 1, ()
    if gpu.strip().lower() == "local":
        from moesize.local_gpus import local_gpu

        name, found = local_gpu()
        match = find_gpu(name, kind="driver")
        return match.spec, gpus or found, ()
    match = find_gpu(gpu)
    notes = (Note(code="gpu", message=match.note),) if match.note else ()
    return match.spec, gpus or match.count or 1, notes


def scheme_of(quant: str, engine: str, spec: ModelSpec) -> tuple[Scheme | None, str]:
    key = quant.strip().lower()
    if key in ("checkpoint", "auto"):
        return None, ""
    if key not in FAMILY_WORDS:
        return find_scheme(quant), ""
    choice = resolve_family(key, engine)
    if choice.scheme.is_gguf:
        return choice.scheme, choice.reason
    try:
        for item in with_scheme(spec, choice.scheme, engine):
            _ = item.file_bytes
    except InvalidInputError:
        # Rows that do not divide (gpt-oss): the scheme that pads them is the one people use.
        return find_scheme("w4a16"), f"{choice.scheme.name} cannot hold this model's matrices"
    return choice.scheme, choice.reason


def _count(value: int | str | None) -> int | None:
    return parse_count(value) if isinstance(value, str) else value


def _size(value: int | str | None) -> int | None:
    if isinstance(value, str):
        return int(value) if value.isdigit() else parse_bytes(value)
    if value is not None and value < 0:
        raise InvalidInputError(f"a size of {value} bytes makes no sense")
    return value


def _gib(value: float | None) -> int | None:
    """Bytes of a size in GiB."""
    if value is None:
        return None
    if not 0 <= value <= 1 << 20:  # false for NaN too
        raise InvalidInputError(
            f"--cpu-offload-gib {value:g} is no size in GiB", "for example --cpu-offload-gib 16"
        )
    return round(value * GIB)


def _limits(
    spec: ModelSpec, scheme: Scheme | None, device: GpuSpec, profile: EngineProfile
) -> list[Note]:
    """What this engine version cannot do on this GPU: refused where it would not start at all."""
    notes = []
    facts, title = profile.facts, profile.title
    if device.vendor.lower() in facts.get("vendors_not_supported", ()):
        raise UnsupportedError(
            f"{title} does not run on {device.name}",
            "plan it with --engine llama.cpp or transformers, or choose another of `moesize gpus`",
        )
    capability = device.compute_capability
    if capability is not None:
        major, _, minor = capability.partition(".")
        found = (int(major), int(minor or 0))
        needed = facts.get("min_compute_capability")
        if needed is not None:
            _check_capability(title, (needed[0], needed[1]), found, device)
        gguf = facts.get("weights") == "gguf"  # which kernels of its own dequantize anywhere
        if not gguf and scheme is not None and scheme.min_compute_capability is not None:
            _check_capability(
                f"{scheme.name} in {title}", scheme.min_compute_capability, found, device
            )
        if (
            scheme is None
            and found < (8, 0)
            and spec.dtype != "float16"
            and facts.get("weights") == "safetensors"
        ):
            message = (
                f"{device.name} has no bfloat16: {title} serves {spec.dtype} weights as float16"
            )
            notes.append(Note(code="dtype", message=message))
    left = scheme is not None and scheme.name in facts.get("schemes_not_loaded", ())
    if scheme is None and spec.quantization is not None:
        left = spec.quantization.method in facts.get("methods_not_loaded", ())
    if left:
        message = (
            f"{title} {profile.version} no longer loads bitsandbytes weights (0.27 was the last); "
            "the memory is what they take, the server will not start with them"
        )
        notes.append(Note(code="quantization-not-loaded", message=message))
    return notes


def _check_capability(
    what: str, needed: tuple[int, int], found: tuple[int, int], device: GpuSpec
) -> None:
    if found < needed:
        raise InvalidDeploymentError(
            f"{what} needs compute capability {needed[0]}.{needed[1]} or later; "
            f"{device.name} has {found[0]}.{found[1]}",
            "`moesize gpus` lists the compute capability of each GPU",
        )


def _model_summary(spec: ModelSpec, source: str) -> ModelSummary:
    return ModelSummary(
        id=spec.id,
        title=spec.title,
        source=source,
        params=count_parameters(spec),
        params_exact=spec.source.total_elements is not None,
        num_layers=spec.num_layers,
        max_context=spec.max_context,
        notes=spec.notes,
    )


def _quantization_summary(
    spec: ModelSpec, scheme: Scheme | None, resolved: str, stored: tuple[StoredEntry, ...]
) -> QuantizationSummary:
    weight_bytes, scale_bytes, elements = _totals(spec, stored)
    if scheme is not None:
        name, words = scheme.name, scheme.title
    elif spec.quantization is not None and is_gguf_file(spec):
        own = spec.quantization.file_type or "types of its own"
        name, words = "checkpoint", f"the bytes of the file's own tensors ({own})"
    elif spec.quantization is not None:
        name, words = "checkpoint", f"as published: {spec.quantization.method}"
    else:
        name, words = "checkpoint", f"as published: {spec.dtype}"
    return QuantizationSummary(
        scheme=name,
        format=words,
        weight_bytes=weight_bytes,
        scale_bytes=scale_bytes,
        elements=elements,
        resolved=resolved,
    )


def _totals(spec: ModelSpec, stored: tuple[StoredEntry, ...]) -> tuple[int, int, int]:
    """(bytes, scale bytes, elements) of what engines load."""

    def made() -> tuple[int, int, int]:
        loaded = [item for item in stored if item.entry.section not in ("mtp", "stored")]
        return (
            sum(item.file_bytes for item in loaded),
            sum(item.scale_bytes for item in loaded),
            sum(item.entry.elements for item in loaded),
        )

    return keep(spec, stored, "totals", made)


__all__ = ["KvSummary", "ModelReport", "Suggestion", "make_plan", "plan", "show"]
