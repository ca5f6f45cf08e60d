"""MS107, MS109, MS110, MS601: the machine around the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from moesize.check.advice import replace_value
from moesize.check.findings import Fix
from moesize.core.units import GIB, MIB, ceil_div, format_gib

if TYPE_CHECKING:
    from moesize.check.devices import Device
    from moesize.check.judging import Bench
    from moesize.check.planning import Case
    from moesize.core.plan import Plan

# What one process of an engine takes of the host for Python, PyTorch and the CUDA libraries.
# Stated, not calibrated: MS109 counts it apart and says so.
PROCESS_BYTES = 2 * GIB
# From here on nothing is said about /dev/shm: vLLM's message queue between ranks alone is 10 chunks
# of 10 or 24 MiB each way (vLLM 0.6.6 to 0.33.0, device_communicators/shm_broadcast.py).
SHM_BYTES = 512 * MIB
_DEFAULT_SHM = 64 * MIB
# Loading faster than this per machine is rare: a network disk gives a fraction of it, a hub less.
LOAD_BYTES_PER_SECOND = 1_000_000_000
START_SECONDS = 30


def judge_pod(bench: Bench, case: Case, plan: Plan) -> None:
    """Host memory, shared memory and probes."""
    _judge_host(bench, case, plan)
    _judge_shm(bench, case)
    _judge_deadlines(bench, case, plan)


def _ranks_per_node(case: Case) -> int:
    nodes = case.server.nodes.value if case.server.nodes else 1
    return max(1, ceil_div(case.num_gpus, nodes))


def _judge_host(bench: Bench, case: Case, plan: Plan) -> None:
    limit = bench.server.memory_limit
    if limit is None:
        return
    ranks = _ranks_per_node(case)
    named = [(item.name, item.size_bytes) for item in plan.host if item.size_bytes]
    own = sum(size for _, size in named)
    needed = own + ranks * PROCESS_BYTES
    if needed <= limit.value:
        return
    details = [f"{name}: {format_gib(size)}" for name, size in named[:6]]
    details.append(f"{ranks} x {format_gib(PROCESS_BYTES)} for the processes (assumed)")
    # Compose writes 96g where Kubernetes writes 96Gi.
    unit = "g" if limit.at.lower().endswith(("g", "gb", "m", "mb")) else "Gi"
    wanted = f"{ceil_div(needed, GIB)}{unit}"
    bench.add(
        "MS109",
        f"the container may use {format_gib(limit.value)} of host memory; {format_gib(needed)} are "
        "needed",
        limit.at,
        details=details,
        fix=replace_value(limit.at, wanted, f"a limit of {wanted} or more", safe=False),
        key=(str(limit.value),),
    )


def _judge_shm(bench: Bench, case: Case) -> None:
    server = bench.server
    ranks = _ranks_per_node(case)
    if ranks < 2 or case.engine in ("llama.cpp", "ik_llama.cpp"):
        return
    if server.shm is not None:
        size, at = server.shm.value, server.shm.at
    elif server.shm_is_default:
        size, at = _DEFAULT_SHM, case.flags.place("request:tensor_parallel_size")
    else:
        return
    if size >= SHM_BYTES:
        return
    what = "the runtime's default" if server.shm is None else "stated"
    bench.add(
        "MS110",
        f"/dev/shm has {size // MIB} MiB ({what}) for {ranks} ranks in one container",
        at,
        label=f"{ranks} ranks share {size // MIB} MiB",
        fix=Fix(
            text="mount an emptyDir with medium: Memory at /dev/shm (sizeLimit: 8Gi or more); "
            "with Docker shm_size or ipc: host"
        ),
        key=(str(size),),
    )


def _judge_deadlines(bench: Bench, case: Case, plan: Plan) -> None:
    nodes = case.server.nodes.value if case.server.nodes else 1
    weight_bytes = plan.quantization.weight_bytes // nodes
    loading = ceil_div(weight_bytes, LOAD_BYTES_PER_SECOND) + START_SECONDS
    for deadline in bench.server.deadlines:
        if deadline.seconds >= loading:
            continue
        fix = None
        if deadline.what == "startupProbe" or deadline.at.isdigit():
            fix = _longer(deadline.at, deadline.seconds, loading)
        bench.add(
            "MS601",
            f"the {deadline.what} kills the server after {deadline.seconds} s; loading "
            f"{format_gib(weight_bytes)} takes {loading} s or more",
            deadline.at,
            label=f"{deadline.seconds} s from the start",
            details=[
                f"{weight_bytes / 1e9:.0f} GB at {LOAD_BYTES_PER_SECOND / 1e9:g} GB/s, which a "
                f"download or network disk rarely gives, and {START_SECONDS} s to start"
            ],
            fix=fix or Fix(text="a startupProbe that allows for the load"),
            key=(deadline.what, str(deadline.seconds)),
        )


def _longer(at: object, seconds: int, loading: int) -> Fix | None:
    from moesize.check.source import Word

    if not isinstance(at, Word) or not at.isdigit() or not seconds:
        return None
    value = int(at)
    # Twice the time at that rate: the disk of the day may be slower.
    wanted = max(value + 1, ceil_div(max(1, value) * 2 * loading, seconds))
    return replace_value(at, str(wanted), f"{wanted} instead of {value}", safe=True)


# --- servers that share GPUs ----------------------------------------------------------------------


class Sharer(NamedTuple):
    """A judged server with what it claims of its GPUs.

    share   of each GPU, by the engine's own setting; None: it takes what it needs
    stated  the file says so
    """

    bench: Bench
    case: Case
    device: Device | None
    plan: Plan | None
    share: float | None
    stated: bool


def judge_sharing(sharers: list[Sharer]) -> None:
    """MS107: servers on the same GPUs of one machine whose claims add up to more than it has."""
    groups: dict[str, list[Sharer]] = {}
    for sharer in sharers:
        name = sharer.bench.server.shares_with
        if name:
            groups.setdefault(name, []).append(sharer)
    for group in groups.values():
        _judge_group(group)


def _judge_group(group: list[Sharer]) -> None:
    by_gpu: dict[str, list[Sharer]] = {}
    for sharer in group:
        for gpu in _gpus_of(sharer):
            by_gpu.setdefault(gpu, []).append(sharer)
    said: set[tuple[str, ...]] = set()
    for gpu, members in sorted(by_gpu.items()):
        together = _together(members)
        names = tuple(sorted(member.bench.server.name for member in together))
        if len(together) < 2 or names in said:
            continue
        shares = [member.share for member in together if member.share is not None]
        total = sum(shares)
        if len(shares) < 2 or total <= 1.0:
            continue
        said.add(names)
        last = together[-1]
        listed = ", ".join(
            f"{member.bench.server.name} {member.share:g}"
            for member in together
            if member.share is not None
        )
        stated = all(member.stated for member in together if member.share is not None)
        last.bench.add(
            "MS107",
            f"GPU {gpu} is claimed by {len(shares)} servers: {listed}, together {total:.2f} of it",
            last.case.flags.place("request:gpu_memory_utilization"),
            severity="error" if stated else "warning",
            also=[
                (member.case.flags.place("request:gpu_memory_utilization"), f"{member.share:g}")
                for member in together[:-1]
                if member.share is not None
            ],
            fix=Fix(text="shares that add up to less than 1, or GPUs of their own (device_ids)"),
            key=names,
        )


def _gpus_of(sharer: Sharer) -> list[str]:
    server = sharer.bench.server
    if server.device_ids:
        return list(server.device_ids)
    if server.gpus_per_node is not None:
        return [str(index) for index in range(min(server.gpus_per_node.value, 64))]
    return [str(index) for index in range(min(sharer.case.num_gpus, 64))]


def _together(members: list[Sharer]) -> list[Sharer]:
    """Those that can run at the same time: of each exclusive set only the largest."""
    chosen: dict[str, Sharer] = {}
    kept: list[Sharer] = []
    for member in members:
        name = member.bench.server.exclusive
        if not name:
            kept.append(member)
        elif name not in chosen or (member.share or 0) > (chosen[name].share or 0):
            chosen[name] = member
    return kept + list(chosen.values())
