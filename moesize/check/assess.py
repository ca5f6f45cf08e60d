"""Servers judged: model, engine and GPUs looked up, planned, and what follows from it.

    Server -> flags -> model -> version -> Case -> devices -> Plan -> findings

Each `judge_*` module holds one family of rules; this one only knows the order.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from moesize.check.devices import Device, devices_of, vendor_of
from moesize.check.findings import Finding, Fix, ServerResult
from moesize.check.flags import Flags
from moesize.check.judge_flags import judge_flags, judge_unresolved, judge_version
from moesize.check.judge_layout import judge_counts, judge_latent
from moesize.check.judge_memory import judge_memory, judge_unknown_gpu, limiting
from moesize.check.judge_model import (
    judge_context,
    judge_dtype,
    judge_quantization,
    judge_refusal,
    judge_unnamed,
)
from moesize.check.judge_pod import Sharer, judge_pod, judge_sharing
from moesize.check.judging import Bench
from moesize.check.naming import NotNamed, find_model
from moesize.check.planning import (
    STAND_INS,
    Case,
    Refused,
    available_gpus,
    known_version,
    make_case,
    needs,
    ollama_context,
    version_of,
)
from moesize.core.errors import MoesizeError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moesize.check.configuration import Settings
    from moesize.check.naming import Named
    from moesize.check.server import Reading, Server
    from moesize.check.source import SourceFile
    from moesize.core.plan import Plan
    from moesize.engine_args import ServeCommand


def judge_file(
    readings: Sequence[Reading], file: SourceFile, settings: Settings
) -> tuple[list[ServerResult], list[Finding]]:
    """Judge every server of a file. What goes wrong with one server does not touch the others."""
    results: list[ServerResult] = []
    findings: list[Finding] = []
    benches: list[Bench] = []
    sharers: list[Sharer] = []
    for reading in readings:
        for server in reading.servers:
            bench = Bench(server, file, settings)
            judge = _Judge(bench, reading.kind)
            results.append(judge.run())
            benches.append(bench)
            sharers += judge.sharers
    judge_sharing(sharers)
    for bench in benches:
        findings += bench.findings
    return results, findings


class _Judge:
    """The way of one server through the rules."""

    def __init__(self, bench: Bench, kind: str) -> None:
        self.bench = bench
        self.server: Server = bench.server
        self.settings = bench.settings
        self.kind = kind
        self.sharers: list[Sharer] = []
        self.result = ServerResult(
            name=self.server.name,
            span=bench.span(self.server.place),
            engine=self.server.engine,
            skipped=self.server.skipped,
            notes=list(self.server.notes),
        )

    def run(self) -> ServerResult:
        """The server as judged; findings are on the bench."""
        server, result = self.server, self.result
        called = server.engine or "vllm"
        engine, remark = STAND_INS.get(called, (called, ""))
        if remark:
            result.notes.append(remark)
        version, older = _version(engine, server, self.settings)
        if older:
            result.notes.append(older)
        command = _command(engine, server, version)
        flags = Flags(server, command, engine)
        self._state(flags)
        if server.skipped:
            return result
        if not _is_planned(engine):
            self.bench.add(
                "MS306",
                f"{engine} is not planned: nothing was judged",
                server.place,
                key=(engine,),
            )
            return result
        from moesize.engines import engine_profile

        profile = engine_profile(engine, version)
        # Rules of another engine are no version of this one.
        result.engine_version = (version or profile.version) if called == engine else None
        if not (_model_of(flags) or server.fallback_model):
            result.skipped = "no model is named"
            return result
        judge_flags(
            self.bench, flags, self.kind, _title(profile, version), official=_is_official(server)
        )
        judge_version(self.bench, version, profile)
        if judge_unresolved(self.bench, flags):
            return result
        named = self._named(flags)
        if named is None:
            return result
        judge_quantization(self.bench, flags, named)
        online = self.settings.online
        case = make_case(
            server,
            flags,
            engine,
            called,
            version,
            named,
            online=online,
            by_later_rules=bool(older),
        )
        if isinstance(case, Refused):
            self.bench.add("MS403", case.error.message, flags.model_place())
            return result
        self._judge_case(case)
        return result

    def _state(self, flags: Flags) -> None:
        """What the file states, judged or not."""
        server, result, command = self.server, self.result, flags.command
        model = _model_of(flags) or server.fallback_model
        result.model = None if model is None else str(model)
        stated = {
            target.partition(":")[2]: setting.value
            for setting in command.settings
            for target in setting.targets
        }
        result.tensor_parallel_size = stated.get("tensor_parallel_size")
        result.pipeline_parallel_size = stated.get("pipeline_parallel_size")
        result.data_parallel_size = stated.get("data_parallel_size")
        result.quantization = command.quant
        length = stated.get("context_tokens") or stated.get("ctx_size")
        result.max_model_len = length or None
        result.gpu_memory_utilization = stated.get("gpu_memory_utilization")
        result.vendor = vendor_of(server)
        result.gpu_count = available_gpus(server)
        result.gpus_per_node = server.gpus_per_node.value if server.gpus_per_node else None
        result.nodes = server.nodes.value if server.nodes else None
        if server.gpus:
            result.gpu = " | ".join(dict.fromkeys(str(claim.text) for claim in server.gpus))

    def _named(self, flags: Flags) -> Named | None:
        server = self.server
        text = str(_model_of(flags) or "")
        fallback = None if server.fallback_model is None else str(server.fallback_model)
        found = find_model(
            text or str(fallback),
            fallback,
            self.settings.models,
            online=self.settings.online,
            ollama=self.server.engine == "ollama",
        )
        if isinstance(found, NotNamed):
            judge_unnamed(self.bench, flags, found)
            return None
        self.result.model_id = found.spec.id
        if found.note and not found.note.startswith("weights as"):
            self.result.notes.append(found.note)
        return found

    def _judge_case(self, case: Case) -> None:
        result, settings = self.result, self.settings
        if result.quantization is None:
            result.quantization = _quantization(case)
        result.notes += [note.message.removeprefix("--engine-args: ") for note in case.notes]
        if judge_context(self.bench, case):
            # Said, and judged as if it were put right.
            case.request = replace(case.request, context_tokens=case.named.spec.max_context)
        given = _given_gpu(settings, self.bench)
        try:
            devices, unknown = devices_of(self.server, settings, given)
        except UnknownNameError as error:
            raise UnknownNameError("GPU", str(given), error.suggestions, "moesize gpus") from error
        if not devices:
            self._without_gpu(case, unknown)
            return
        answers = [self._on_device(case, device) for device in devices]
        judged = [fits for fits in answers if fits is not None]
        result.fits = None if len(judged) < len(answers) else all(judged)
        result.gpu_id = " | ".join(dict.fromkeys(device.match.spec.id for device in devices))
        if result.gpu is None:
            result.gpu = given
        if len(devices) == 1:
            self._pod(case, devices[0])

    def _pod(self, case: Case, device: Device) -> None:
        plan = self._plans.get(device.match.spec.id)
        share = case.request.gpu_memory_utilization
        stated = share is not None
        if plan is not None:
            judge_latent(self.bench, case, plan)
            judge_pod(self.bench, case, plan)
            share = share or plan.deployment.get("gpu_memory_utilization")
        self.sharers.append(Sharer(self.bench, case, device, plan, share, stated))

    @property
    def _plans(self) -> dict[str, Plan]:
        return self.bench.plans

    def _without_gpu(self, case: Case, unknown: list[Any]) -> None:
        """No GPU is named, or none that is known."""
        result = self.result
        for claim in unknown:
            self.bench.add(
                "MS502",
                f"GPU {str(claim.at)[:80]!r} ({claim.via}) is not in the catalogue",
                claim.at,
                fix=Fix(text=claim.hint) if claim.hint else None,
                key=(str(claim.at),),
            )
        judge_counts(self.bench, case, self.kind, None)
        try:
            from moesize.gpus import find_gpu

            plan = case.plan(find_gpu("2048GiB").spec)
        except MoesizeError as error:
            judge_refusal(self.bench, case, None, error)
            return
        self._effective(plan)
        vendor = vendor_of(self.server)
        if vendor not in ("", "nvidia", "amd"):
            self.bench.add(
                "MS502",
                f"{vendor} accelerators are not in the catalogue: nothing was judged",
                self.server.gpus_per_node.at if self.server.gpus_per_node else self.server.place,
                key=(vendor,),
            )
            return
        found = needs(case, vendor)
        result.needed_bytes = found.least_bytes
        judge_unknown_gpu(self.bench, case, found)
        judge_pod(self.bench, case, plan)
        share = case.request.gpu_memory_utilization
        stated = share is not None
        share = share or plan.deployment.get("gpu_memory_utilization")
        self.sharers.append(Sharer(self.bench, case, None, None, share, stated))

    def _on_device(self, case: Case, device: Device) -> bool | None:
        """Judge on one kind of GPU; None when it cannot be planned there."""
        result = self.result
        if device.stated and self.server.gpus_per_node is None:
            case.available = available_gpus(self.server, device)
            result.gpu_count = case.available
        elif self.settings_gpus and case.available is None:
            case.available = result.gpu_count = self.settings_gpus
        enough = judge_counts(self.bench, case, self.kind, device)
        judge_dtype(self.bench, case, device)
        changes: dict[str, Any] = {}
        context = ollama_context(case, device.match.spec)
        if context is not None:
            changes["context_tokens"] = context
        try:
            plan = case.plan(device.match.spec, **changes)
        except MoesizeError as error:
            judge_refusal(self.bench, case, device, error)
            return None
        self._plans[device.match.spec.id] = plan
        self._effective(plan)
        ledger = limiting(plan)
        fits = enough and (plan.fits or case.called == "ollama")
        result.verdict = plan.verdict.reason
        # What the engine charges to its budget; the rest of the card is the runtime's.
        result.needed_bytes, result.budget_bytes = ledger.in_budget_bytes, ledger.budget_bytes
        result.usable_bytes = ledger.usable_bytes
        result.alternatives.append(
            {
                "gpu": device.match.spec.id,
                "gpu_count": plan.deployment["gpu_count"],
                "fits": fits,
                "confidence": plan.verdict.confidence,
                "needed_bytes": ledger.in_budget_bytes,
                "budget_bytes": ledger.budget_bytes,
                "usable_bytes": ledger.usable_bytes,
                "verdict": plan.verdict.reason,
            }
        )
        if device.match.note:
            result.notes.append(device.match.note)
        judge_memory(self.bench, case, device, plan)
        return fits

    @property
    def settings_gpus(self) -> int | None:
        """GPUs that the user says there are, where the file does not."""
        return self.settings.gpus

    def _effective(self, plan: Plan) -> None:
        """Settings after the engine's defaults, where the file states none."""
        result, deployment = self.result, plan.deployment
        if result.max_model_len is None:
            result.max_model_len = deployment.get("context")
        if result.tensor_parallel_size is None:
            result.tensor_parallel_size = deployment.get("tp")
        if result.gpu_count is None:
            result.gpu_count = deployment.get("gpu_count")


def _model_of(flags: Flags) -> str | None:
    """The model as the file names it, also where its name is a variable."""
    return flags.server.model or flags.command.model or flags.value("command:model")


def _version(engine: str, server: Server, settings: Settings) -> tuple[str | None, str]:
    """(release, remark): of the image, the file's own word for it, or the user's."""
    if not _is_planned(engine):
        return None, ""
    if server.image is not None:
        found, remark = version_of(engine, str(server.image))
        if found is not None:
            return found, remark
    if server.version is not None:
        return known_version(engine, str(server.version))
    return settings.engine_versions.get(engine), ""


def _is_planned(engine: str) -> bool:
    from moesize.engines import engine_module

    return engine_module(engine) is not None


def _command(engine: str, server: Server, version: str | None) -> ServeCommand:
    from moesize.engine_args import read_engine_words

    return read_engine_words(
        engine, server.words, version=version, env=server.environment, lenient=True
    )


def _title(profile: Any, version: str | None) -> str:
    return f"{profile.title} {version}" if version else str(profile.title)


def _is_official(server: Server) -> bool:
    """Whether the engine's own image runs, or its own program without a container."""
    if server.image is None:
        return True
    from moesize.engine_args.words import version_of_image

    engine = server.engine or "vllm"
    image = str(server.image).partition("@")[0]
    name, colon, tag = image.rpartition("/")[2].partition(":")
    pinned = f"{image[: len(image) - len(tag) - len(colon)]}:v0.0.1"
    return bool(name) and version_of_image(engine, pinned) is not None


def _given_gpu(settings: Settings, bench: Bench) -> str | None:
    """The GPU that the user names for files that name none."""
    return settings.gpu_for(bench.file.path)


def _quantization(case: Case) -> str | None:
    if case.scheme is not None:
        return case.scheme.name
    published = case.named.spec.quantization
    return published.method if published is not None else None
