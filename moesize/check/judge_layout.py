"""MS2xx: numbers of GPUs, parallel sizes, latent caches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moesize.check.advice import replace_value
from moesize.check.findings import Fix
from moesize.check.planning import available_gpus
from moesize.check.source import Word

if TYPE_CHECKING:
    from moesize.check.devices import Device
    from moesize.check.judging import Bench
    from moesize.check.planning import Case
    from moesize.core.plan import Plan

_SIZES = (
    "request:tensor_parallel_size",
    "request:pipeline_parallel_size",
    "request:data_parallel_size",
)
# Files of these kinds are read on a machine whose GPUs nobody lists.
_NO_COUNT_IS_FINE = (
    "shell",
    "systemd",
    "dockerfile",
    "ollama_modelfile",
    "llama_swap",
    "vllm_config_yaml",
    "sglang_config_yaml",
    "trtllm_options_yaml",
    "docker_compose",
)


def judge_counts(bench: Bench, case: Case, kind: str, device: Device | None) -> bool:
    """GPUs asked for against GPUs used and those of the machine; False: too few to start."""
    server = bench.server
    used = case.num_gpus
    there = available_gpus(server, device)
    _judge_machine(bench, device)
    if there is None:
        _judge_missing(bench, case, kind, device)
        return True
    at, words = _place_of_count(bench, device)
    sizes = _sizes(case)
    also = [(at, words)] if at.span is not None else []
    if used > there:
        fix = None
        gpus = server.gpus_per_node
        nodes = server.nodes.value if server.nodes else 1
        if gpus is not None and used % nodes == 0 and device is None:
            each = used // nodes
            fix = replace_value(gpus.at, str(each), f"ask for {each} GPUs per pod", safe=False)
        elif there in (1, 2, 4, 8, 16):
            fix = Fix(text=f"{case.flags.name(_SIZES[0]) or 'tensor parallel size'} {there}")
        bench.add(
            "MS202",
            f"{sizes} needs {used} GPUs; {there} {'is' if there == 1 else 'are'} asked for",
            case.flags.place(*_SIZES),
            label=f"{used} GPUs",
            also=also,
            fix=fix,
            key=(str(used), str(there)),
        )
        return False
    if used < there and server.replicas_share is None:
        name = case.flags.name("request:tensor_parallel_size")
        fix = Fix(text=f"ask for {used} GPUs")
        if name and there % used == 0:
            fix = Fix(text=f"{name} {there // (used // _tensor(case))}, or ask for {used} GPUs")
        target = at if at.span is not None else server.place
        bench.add(
            "MS203",
            f"{there} GPUs are asked for, {sizes} uses {used}: {there - used} stay idle",
            target,
            label=f"{used} of {there} used",
            also=[(case.flags.place(*_SIZES), sizes)] if case.flags.find(_SIZES[0]) else [],
            fix=fix,
            key=(str(used), str(there)),
        )
    return True


def _tensor(case: Case) -> int:
    return case.request.tensor_parallel_size or 1


def _sizes(case: Case) -> str:
    request = case.request
    parts = [f"tensor parallel size {request.tensor_parallel_size or 1}"]
    if request.pipeline_parallel_size and request.pipeline_parallel_size > 1:
        parts.append(f"pipeline {request.pipeline_parallel_size}")
    data = request.data_parallel_size
    if data and data > 1 and not request.data_parallel_attention:
        parts.append(f"data {data}")
    return " x ".join(parts)


def _place_of_count(bench: Bench, device: Device | None) -> tuple[Word, str]:
    server = bench.server
    if server.gpus_per_node is not None:
        each = server.gpus_per_node.value
        nodes = f" on each of {server.nodes.value}" if server.nodes else ""
        return server.gpus_per_node.at, f"{each} GPUs{nodes}"
    if device is not None and device.stated:
        return device.at, f"{device.stated} GPUs ({device.via})"
    return Word(""), ""


def _judge_machine(bench: Bench, device: Device | None) -> None:
    gpus = bench.server.gpus_per_node
    if device is None or device.machine is None or gpus is None or gpus.value <= device.machine:
        return
    bench.add(
        "MS206",
        f"{gpus.value} GPUs are asked for; {device.at} has {device.machine}",
        gpus.at,
        also=[(device.at, f"{device.machine} x {device.title}")],
        key=(str(gpus.value), str(device.at)),
    )


def _judge_missing(bench: Bench, case: Case, kind: str, device: Device | None) -> None:
    """A pod of a GPU engine without a GPU in its resources."""
    if device is not None or kind in _NO_COUNT_IS_FINE or not kind.startswith("k8s_"):
        return
    if kind == "k8s_custom" or bench.server.vendor == "cpu":
        return
    bench.add(
        "MS205",
        f"no GPU in the resources of this container; {case.named.spec.title} needs {case.num_gpus}",
        bench.server.place,
        fix=Fix(text=f"resources.limits: nvidia.com/gpu: {case.num_gpus}"),
    )


def judge_latent(bench: Bench, case: Case, plan: Plan) -> None:
    """MS204: a latent cache under tensor parallelism without data-parallel attention."""
    tensor = plan.deployment.get("tp") or 1
    if tensor < 2 or case.engine not in ("vllm", "sglang") or case.request.data_parallel_attention:
        return
    if case.request.decode_context_parallel_size and case.request.decode_context_parallel_size > 1:
        return
    spec = case.named.spec
    if not any(getattr(m, "kv_lora_rank", None) for block in spec.blocks for m in block.mixers):
        return
    instead = (
        f"--dp-size {tensor} --enable-dp-attention"
        if case.engine == "sglang"
        else f"--tensor-parallel-size 1 --data-parallel-size {tensor} --enable-expert-parallel"
    )
    bench.add(
        "MS204",
        f"each of the {tensor} tensor-parallel ranks holds the whole latent cache: "
        f"{plan.kv_cache.capacity_tokens:,} tokens in all; data-parallel attention keeps as many "
        "on every rank",
        case.flags.place("request:tensor_parallel_size"),
        fix=Fix(text=instead),
        key=(str(tensor),),
    )
