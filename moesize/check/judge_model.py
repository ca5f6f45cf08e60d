"""MS3xx: the model's name, its quantization, number formats, its longest context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.check.advice import replace_value
from moesize.check.findings import Fix

if TYPE_CHECKING:
    from moesize.check.devices import Device
    from moesize.check.flags import Flags
    from moesize.check.judging import Bench
    from moesize.check.naming import Named, NotNamed
    from moesize.check.planning import Case
    from moesize.core.errors import MoesizeError
    from moesize.core.gpu import GpuSpec

# Made before serving, never at load (vLLM layers/quantization, SGLang, TGI docs).
_MADE_BEFORE = ("awq", "gptq", "marlin", "exl2", "compressed", "modelopt", "squeezellm", "aqlm")
# Families: words that may stand for the same stored weights.
_FAMILIES = (
    ("awq",),
    ("gptq", "marlin"),
    ("fp8", "fbgemm", "ptpc"),
    ("bitsandbytes", "bnb"),
    ("mxfp4",),
    ("nvfp4", "fp4"),
)
# What takes any stored form, or says nothing about it.
_ANY = ("auto", "none", "compressed", "modelopt", "quark", "inc", "auto-round", "moe_wna16")


def judge_unnamed(bench: Bench, flags: Flags, missing: NotNamed) -> None:
    """MS301."""
    bench.add(
        "MS301",
        f"model unknown: {missing.why}",
        flags.model_place(),
        fix=Fix(text=missing.hint) if missing.hint else None,
        key=(str(flags.model_place()),),
    )


def judge_quantization(bench: Bench, flags: Flags, named: Named) -> None:
    """MS302: a --quantization that the checkpoint is not."""
    asked = (flags.command.quant or "").lower()
    if not asked or flags.command.is_gguf or any(word in asked for word in _ANY):
        return
    stored = _stored(named)
    at = flags.place("command:quant")
    if stored is None:
        if any(word in asked for word in _MADE_BEFORE):
            bench.add(
                "MS302",
                f"{asked} is asked for, but {named.spec.title} is published in "
                f"{named.spec.dtype}: {asked} weights are made beforehand, not at load",
                at,
                label="not quantized",
                also=[(flags.model_place(), f"{named.spec.dtype} weights")],
                fix=Fix(text=f"a repository with {asked} weights, or no quantization flag"),
                key=(asked, named.spec.id),
            )
        return
    mine, theirs = _family(asked), _family(stored)
    if mine is not None and theirs is not None and mine != theirs:
        bench.add(
            "MS302",
            f"{asked} is asked for, but the checkpoint's weights are {stored}",
            at,
            also=[(flags.model_place(), f"{stored} weights")],
            fix=Fix(text="leave the flag out: engines read the method from the checkpoint"),
            key=(asked, stored),
        )


def _stored(named: Named) -> str | None:
    """How the checkpoint's weights are stored, in one word; None: not quantized."""
    if named.quant != "checkpoint":
        plain = ("bf16", "fp16", "fp32")
        return None if named.quant in plain else named.quant
    if named.note.startswith("weights as "):
        return named.note.removeprefix("weights as ")
    return named.spec.quantization.method if named.spec.quantization is not None else None


def _family(text: str) -> int | None:
    found = [i for i, words in enumerate(_FAMILIES) if any(word in text for word in words)]
    return found[0] if len(found) == 1 else None


def judge_context(bench: Bench, case: Case) -> bool:
    """MS305: longer than the model's own longest; True when it is."""
    asked, longest = case.request.context_tokens, case.named.spec.max_context
    if asked is None or not longest or asked <= longest:
        return False
    if case.engine not in ("vllm", "sglang", "tgi", "tensorrt-llm"):
        return False
    typed_overrides = ("hf-overrides", "rope", "json-model-override", "hf_overrides")
    names = [str(typed.word) for typed in case.flags.command.typed]
    if any(word in name for name in names for word in typed_overrides):
        return False
    variables = bench.server.environment
    if str(variables.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "")).lower() in ("1", "true"):
        return False
    at = case.flags.place(case.flags.context)
    bench.add(
        "MS305",
        f"{asked:,} tokens are asked for; {case.named.spec.title} was made for {longest:,}",
        at,
        label=f"the model has {longest:,}",
        fix=replace_value(at, str(longest), f"{longest}", safe=True),
        key=(str(asked), str(longest)),
    )
    return True


def judge_dtype(bench: Bench, case: Case, device: Device) -> None:
    """MS304: bfloat16 before Ampere."""
    from moesize.gpus import GpuMatch

    assert isinstance(device.match, GpuMatch)
    spec = device.match.spec
    capability = _capability(spec)
    if capability is None or case.engine not in ("vllm", "sglang", "tgi"):
        return
    dtype = getattr(case.request.engine_settings, "dtype", None)
    if dtype in ("bfloat16", "bf16") and capability < (8, 0):
        at = case.flags.place("setting:dtype")
        bench.add(
            "MS304",
            f"{spec.name} (compute capability {spec.compute_capability}) has no bfloat16",
            at,
            also=[(device.at, device.title)],
            fix=replace_value(at, "half", f"{case.flags.name('setting:dtype')} half", safe=True),
            key=(spec.id, "bfloat16"),
        )
    elif (
        capability < (8, 0)
        and dtype is None
        and case.scheme is None
        and case.named.spec.quantization is None
        and case.named.spec.dtype == "bfloat16"
        and _is_older_vllm(case)
    ):
        bench.add(
            "MS304",
            f"{case.named.spec.title} is published in bfloat16, which {spec.name} lacks",
            case.flags.model_place(),
            severity="warning",
            also=[(device.at, device.title)],
            fix=Fix(text="add --dtype half"),
            key=(spec.id, "bfloat16"),
        )


def _is_older_vllm(case: Case) -> bool:
    """vLLM up to 0.8 stopped; later releases serve such a checkpoint in float16 by themselves."""
    from moesize.engines import release_of

    release = release_of(case.version) if case.version else None
    return case.engine == "vllm" and release is not None and release < (0, 9)


def _capability(spec: GpuSpec) -> tuple[int, int] | None:
    if spec.compute_capability is None:
        return None
    major, _, minor = spec.compute_capability.partition(".")
    return int(major), int(minor or 0)


def judge_refusal(bench: Bench, case: Case, device: Device | None, error: MoesizeError) -> None:
    """MS201, MS303, MS306: what exactly the planner refuses, found by leaving things out."""
    if device is not None and not _raises(case, None):
        bench.add(
            "MS303",
            error.message,
            case.flags.place("command:quant")
            if case.flags.find("command:quant")
            else case.flags.model_place(),
            also=[(device.at, device.title)],
            fix=Fix(text=error.hint) if error.hint else None,
            key=(device.match.spec.id, case.named.spec.id),
        )
        return
    sizes = case.request
    if (sizes.tensor_parallel_size or sizes.pipeline_parallel_size) and not _raises(case, 1):
        at = case.flags.place("request:tensor_parallel_size", "request:pipeline_parallel_size")
        bench.add(
            "MS201",
            error.message,
            at,
            severity="warning" if case.by_later_rules else None,
            fix=Fix(text=error.hint) if error.hint else None,
            key=(str(sizes.tensor_parallel_size), case.named.spec.id),
        )
        return
    bench.add(
        "MS306",
        error.message,
        case.flags.model_place(),
        fix=Fix(text=error.hint) if error.hint else None,
        key=(case.named.spec.id, case.engine),
    )


def _raises(case: Case, tensor: int | None) -> bool:
    """Whether it is refused on a GPU without limits; `tensor` 1: on one of them."""
    from moesize.core.errors import MoesizeError
    from moesize.gpus import find_gpu

    huge = find_gpu("2048GiB").spec
    try:
        if tensor is None:
            case.plan(huge)
        else:
            case.plan(huge, 1, tensor_parallel_size=1, pipeline_parallel_size=1)
    except MoesizeError:
        return True
    return False
