"""Meters: what a device says about its memory, in one form for all kinds.

    cuda   torch.cuda.memory_stats and mem_get_info; ROCm answers under the same names
    xpu    torch.xpu, the same names
    mps    torch.mps keeps no peak: storages counted by `LiveBytes`, what Metal holds beside it
    cpu    storages counted by `LiveBytes`, exact; the peak of the process beside it

requested   bytes of the tensors; allocated: the allocator's blocks; reserved: its segments.
"""

from __future__ import annotations

import gc
import os
import platform
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from moesize.core.errors import EnvironmentProblem, InvalidInputError, UnsupportedError
from moesize.core.units import MIB, format_bytes
from moesize.verify.live_bytes import LiveBytes
from moesize.verify.owners import History, Listener

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

KINDS = ("cuda", "xpu", "mps", "cpu")
# What errors of drivers and libraries hold, beside torch's own class for them (2.8 and later).
_DRIVER_WORDS = (
    "CUDA error", "CUDA driver", "CUDA-capable", "CUDA unknown error", "CUBLAS_STATUS", "CUSOLVER",
    "cuDNN error", "NVML", "HIP error", "hipError", "ROCm", "MPS backend", "MPS device",
    "Level Zero", "level_zero", "UR_RESULT", "SYCL", "available free memory",
)  # fmt: skip


@contextmanager
def device_problems(where: str = "") -> Iterator[None]:
    """What a driver or a kernel refuses is an EnvironmentProblem of one line.

    Memory that runs out where nothing is measured yet is one, too.
    """
    try:
        yield
    except (RuntimeError, TypeError) as error:
        kind = getattr(torch, "AcceleratorError", torch.OutOfMemoryError)
        text = str(error)
        known = any(word in text for word in _DRIVER_WORDS)
        if not known and not isinstance(error, (kind, torch.OutOfMemoryError)):
            raise
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        first = lines[0][:300].rstrip(".") if lines else type(error).__name__
        # Frames would keep tensors alive.
        error.__traceback__ = None
        raise EnvironmentProblem(f"{where or 'the device'}: {first}", _advice(text)) from None


def _advice(text: str) -> str:
    if "no kernel image" in text:
        return "this torch build has no kernels for this device: install one that names its class"
    if "out of memory" in text:
        return "something else holds the device's memory"
    if "busy" in text or "unavailable" in text:
        return "is another process using the device alone?"
    return "does the vendor's own tool (nvidia-smi, rocm-smi, xpu-smi) show a device in order?"


class Reading(NamedTuple):
    """Bytes of this process on the device."""

    requested: int
    allocated: int
    reserved: int


class LimitReached(MemoryError):  # noqa: N818  (a bound, no bug)
    """More than --limit-memory was asked for."""

    def __init__(self, asked_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"{format_bytes(asked_bytes)} more would exceed the limit of "
            f"{format_bytes(limit_bytes)}"
        )
        self.asked_bytes = asked_bytes


class Meter(Protocol):
    """One device.

    counts_blocks   `allocated` is blocks of the caching allocator, not bytes of tensors
    watch        what runs inside is counted
    limit        bound what this process may allocate on the device
    free_bytes   of the whole device, as the driver says: other processes count
    """

    kind: str
    name: str
    driver: str
    device: torch.device
    counts_blocks: bool

    def total_bytes(self) -> int:
        """Memory of the device."""

    def free_bytes(self) -> int:
        """What is free of it now."""

    def reading(self) -> Reading:
        """What is live now."""

    def peak(self) -> Reading:
        """The most since `reset_peak`."""

    def reset_peak(self) -> None:
        """Count peaks from here on."""

    def owners(self) -> dict[str, int] | None:
        """Bytes of tensors by owner (`moesize.verify.owners`) at the peak; None: not known."""

    def synchronize(self) -> None:
        """Wait until the device has done everything."""

    def watch(self) -> Any:
        """A context in which allocations are counted."""

    def limit(self, size_bytes: int) -> None:
        """Bound the process."""

    def release(self) -> None:
        """Give back what nothing holds."""


def find_meter(device: str = "auto") -> Meter:
    """The meter of `auto` (the accelerator, else the CPU), `cuda`, `cuda:1`, `xpu`, `mps` or `cpu`.

    Raises EnvironmentProblem when there is no such device, InvalidInputError for another word.
    """
    kind, _, index = device.strip().lower().partition(":")
    if kind == "auto":
        kind = _accelerator() or "cpu"
    if kind in ("rocm", "hip"):
        kind = "cuda"
    if kind not in KINDS or (index and not (index.isascii() and index.isdigit())):
        raise InvalidInputError(
            f"--device {device[:40]!r} is no device", f"one of auto, {', '.join(KINDS)}, cuda:1"
        )
    if kind != "cpu" and _accelerator() != kind:
        raise EnvironmentProblem(
            f"no {kind} device is here (torch {torch.__version__})",
            "take --device cpu, or install the torch build for this device",
        )
    number = int(index) if index else _local_rank()
    if kind == "cpu":
        return CpuMeter()
    if kind == "mps":
        return MpsMeter(torch.mps)
    count = torch.accelerator.device_count()
    if number >= count:
        raise EnvironmentProblem(f"there is no {kind}:{number}; {count} devices are visible")
    if number:
        # What names no device, such as page-locked memory, would make a context on the first one.
        torch.accelerator.set_device_index(number)
    if kind == "cuda":
        # Releases after 2.13 take cuBLAS's workspace anew for each product: 32 MiB on top of every
        # small peak (pytorch aten/src/ATen/cuda/CublasHandlePool.cpp). It is kept as it was.
        os.environ.setdefault(_KEPT_WORKSPACE, "1")
    api = getattr(torch, kind)
    _check_counting(api)
    return TorchMeter(kind, number, api)


def _check_counting(api: Any) -> None:
    """The caching allocator is there, and counts. Raises EnvironmentProblem."""
    for name in ("PYTORCH_NO_CUDA_MEMORY_CACHING", "PYTORCH_NO_HIP_MEMORY_CACHING"):
        if os.environ.get(name):
            raise EnvironmentProblem(f"with {name} torch counts no memory", f"unset {name}")
    backend = getattr(api, "get_allocator_backend", lambda: "native")()
    if backend != "native":
        raise EnvironmentProblem(
            f"torch's allocator is {str(backend)[:40]}, which counts no bytes of tensors",
            "take `backend:...` out of PYTORCH_ALLOC_CONF (or PYTORCH_CUDA_ALLOC_CONF)",
        )


_KEPT_WORKSPACE = "TORCH_CUBLAS_WORKSPACE_CACHE"
_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
# Of pytorch c10/core/AllocatorConfig.h and c10/cuda/CUDAAllocatorConfig.h: those that leave blocks
# and segments as they are. Any other setting may change them.
_HARMLESS = (
    "backend", "per_process_memory_fraction", "throw_on_cudamalloc_oom",
    "release_lock_on_cudamalloc", "release_lock_on_hipmalloc", "graph_capture_record_stream_reuse",
)  # fmt: skip


def allocator_settings() -> tuple[str, ...]:
    """Names of settings in the environment that make blocks others than predicted."""
    found: dict[str, None] = {}
    for variable in _SETTINGS:
        text = os.environ.get(variable, "").replace("[", ",").replace("]", ",")
        for part in text.split(","):
            name, _, value = (word.strip() for word in part.partition(":"))
            # A list of divisions has lost its brackets above.
            off = value.lower() in ("", "false", "0") and name != "roundup_power2_divisions"
            plain = name.isascii() and name.isidentifier()
            harmless = name in _HARMLESS or name.startswith("pinned_")
            if plain and not off and not harmless:
                found[name[:40]] = None
    if os.environ.get(_KEPT_WORKSPACE, "1") != "1":
        found[_KEPT_WORKSPACE] = None
    return tuple(found)


def _local_rank() -> int:
    """Under torchrun every process of a node has a device of its own."""
    text = os.environ.get("LOCAL_RANK") or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise InvalidInputError(f"LOCAL_RANK is {text[:40]!r}, which is no number")
    return int(text)


def _accelerator() -> str:
    if not torch.accelerator.is_available():
        return ""
    found = torch.accelerator.current_accelerator()
    return "" if found is None else found.type


# --- CUDA, ROCm, XPU ------------------------------------------------------------------------------


class TorchMeter:
    """A device whose torch module has memory_stats and mem_get_info.

    api   `torch.cuda` or `torch.xpu`; tests give a double
    """

    def __init__(self, kind: str, index: int, api: Any) -> None:
        self.kind = kind
        self.counts_blocks = True
        self.api = api
        self.device = torch.device(kind, index)
        self.history = History(getattr(api, "memory", None), index)
        self.name = str(api.get_device_name(index))
        self.driver = _driver_version(api)

    def total_bytes(self) -> int:
        """`mem_get_info()[1]`."""
        return int(self.api.mem_get_info(self.device)[1])

    def free_bytes(self) -> int:
        """`mem_get_info()[0]`."""
        return int(self.api.mem_get_info(self.device)[0])

    def reading(self) -> Reading:
        """`*.all.current` of memory_stats."""
        return self._stats("current")

    def peak(self) -> Reading:
        """`*.all.peak`; each of the three at its own moment."""
        return self._stats("peak")

    def _stats(self, which: str) -> Reading:
        stats = self.api.memory_stats(self.device)
        allocated = int(stats.get(f"allocated_bytes.all.{which}", 0))
        # XPU and old releases count no requested bytes.
        requested = int(stats.get(f"requested_bytes.all.{which}", allocated))
        return Reading(requested, allocated, int(stats.get(f"reserved_bytes.all.{which}", 0)))

    def reset_peak(self) -> None:
        """reset_peak_memory_stats."""
        self.history.reset_peak()
        self.api.reset_peak_memory_stats(self.device)

    def owners(self) -> dict[str, int] | None:
        """Out of the allocator's history, since `watch` began."""
        return self.history.peak()

    def synchronize(self) -> None:
        """Wait for all streams."""
        self.api.synchronize(self.device)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """The allocator counts by itself; its history says for whom."""
        self.history.start()
        try:
            yield
        finally:
            self.history.stop()

    def limit(self, size_bytes: int) -> None:
        """set_per_process_memory_fraction; the context of the driver is not part of it."""
        setter = getattr(self.api, "set_per_process_memory_fraction", None)
        if setter is None:
            raise EnvironmentProblem(f"this torch cannot bound the memory of {self.kind}")
        setter(min(1.0, size_bytes / self.total_bytes()), self.device)

    def release(self) -> None:
        """Collect cycles and give cached segments back to the driver."""
        gc.collect()
        self.api.empty_cache()

    def segments(self) -> list[dict[str, int]]:
        """Segments of the allocator from its snapshot: size, allocated and active bytes."""
        snapshot = getattr(self.api, "memory_snapshot", None)
        names = ("total_size", "allocated_size", "active_size")
        return [] if snapshot is None else [{n: int(s[n]) for n in names} for s in snapshot()]


def _driver_version(api: Any) -> str:
    """The driver's version by NVML (extra `nvidia-ml-py`); else what torch was built for."""
    built = torch.version.cuda or getattr(torch.version, "hip", None) or ""
    if torch.version.cuda is None or api is not getattr(torch, "cuda", None):
        return str(built)
    try:
        import pynvml  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        return f"CUDA {built}"
    try:
        pynvml.nvmlInit()
        return f"{pynvml.nvmlSystemGetDriverVersion()}, CUDA {built}"
    except pynvml.NVMLError:
        return f"CUDA {built}"


def process_bytes(meter: Meter) -> int | None:
    """What NVML says that this process holds on the device; None without NVML or its answer.

    Context, segments and everything that torch does not see, of this process alone.
    """
    if meter.kind != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        # NVML counts all cards; torch those that CUDA_VISIBLE_DEVICES shows.
        uuid = str(torch.cuda.get_device_properties(meter.device).uuid)
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid() and process.usedGpuMemory is not None:
                return int(process.usedGpuMemory)
    except (pynvml.NVMLError, AttributeError):
        return None
    return None


# --- MPS ------------------------------------------------------------------------------------------


class MpsMeter:
    """Apple's GPU: memory is the machine's own, and torch keeps no peak of it."""

    def __init__(self, api: Any) -> None:
        self.kind = "mps"
        self.counts_blocks = False
        self.api = api
        self.device = torch.device("mps")
        self.name = platform.processor() or platform.machine()
        self.driver = platform.mac_ver()[0]
        self._owners = Listener()
        self._live = LiveBytes("mps", self._owners)

    def total_bytes(self) -> int:
        """What Metal recommends as the most."""
        return int(self.api.recommended_max_memory())

    def free_bytes(self) -> int:
        """The recommended most, less what this process holds: other processes are not seen."""
        return self.total_bytes() - int(self.api.driver_allocated_memory())

    def reading(self) -> Reading:
        """Live tensors; driver_allocated_memory is what Metal holds for them."""
        live = self._live.live_bytes
        return Reading(live, live, int(self.api.driver_allocated_memory()))

    def peak(self) -> Reading:
        """The peak of live tensors; Metal's memory as it is now, which is a lower bound."""
        most = self._live.peak_bytes
        return Reading(most, most, max(most, int(self.api.driver_allocated_memory())))

    def reset_peak(self) -> None:
        """Of live tensors."""
        self._live.reset_peak()
        self._owners.owners.reset_peak()

    def owners(self) -> dict[str, int] | None:
        """Who asked for them."""
        return self._owners.owners.peak

    def synchronize(self) -> None:
        """Wait."""
        self.api.synchronize()

    def watch(self) -> LiveBytes:
        """Tensors are counted op by op."""
        return self._live

    def limit(self, size_bytes: int) -> None:
        """set_per_process_memory_fraction."""
        self.api.set_per_process_memory_fraction(min(1.0, size_bytes / self.total_bytes()))

    def release(self) -> None:
        """Collect cycles, empty the cache."""
        gc.collect()
        self.api.empty_cache()


# --- CPU ------------------------------------------------------------------------------------------


class _Limited(LiveBytes):  # type: ignore[no-untyped-call]
    """`LiveBytes` that does not count beyond a bound."""

    limit_bytes: int | None = None

    def see(self, tensor: torch.Tensor) -> None:
        before = self.live_bytes
        super().see(tensor)
        if self.limit_bytes is not None and before < self.live_bytes > self.limit_bytes:
            raise LimitReached(self.live_bytes - before, self.limit_bytes)


class CpuMeter:
    """This machine's memory; tensors are counted op by op, to the byte."""

    def __init__(self) -> None:
        self.kind = "cpu"
        self.counts_blocks = False
        self.device = torch.device("cpu")
        self.name = _processor()
        self.driver = platform.system()
        self._owners = Listener()
        self.live = _Limited("cpu", self._owners)

    def total_bytes(self) -> int:
        """Physical memory, or the bound of the container where that is less."""
        return min(_meminfo("MemTotal"), _cgroup_limit())

    def free_bytes(self) -> int:
        """What can be had without swapping: MemAvailable."""
        return min(_meminfo("MemAvailable"), _cgroup_limit() - _cgroup_used())

    def reading(self) -> Reading:
        """Live storages; there are no blocks and segments."""
        return Reading(*(self.live.live_bytes,) * 3)

    def peak(self) -> Reading:
        """The same at its most."""
        return Reading(*(self.live.peak_bytes,) * 3)

    def reset_peak(self) -> None:
        """Count from here on."""
        self.live.reset_peak()
        self._owners.owners.reset_peak()

    def owners(self) -> dict[str, int] | None:
        """Who asked for the storages that were live at the peak."""
        return self._owners.owners.peak

    def synchronize(self) -> None:
        """Nothing runs beside."""

    def watch(self) -> LiveBytes:
        """Count what runs inside."""
        return self.live

    def limit(self, size_bytes: int) -> None:
        """Raise LimitReached beyond it, where tensors are counted."""
        self.live.limit_bytes = size_bytes

    def release(self) -> None:
        """Collect cycles."""
        gc.collect()


def process_peak_bytes() -> int:
    """The most memory that this process has had resident, Python and libraries included."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "CPU"


def _meminfo(name: str) -> int:
    """A figure of /proc/meminfo; elsewhere what sysconf says."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 1 << 40


def _cgroup(name: str, otherwise: int) -> int:
    try:
        text = Path("/sys/fs/cgroup", name).read_text(encoding="utf-8").strip()
    except OSError:
        return otherwise
    return int(text) if text.isdigit() else otherwise


def _cgroup_limit() -> int:
    return _cgroup("memory.max", 1 << 62)


def _cgroup_used() -> int:
    """Without the page cache, which gives way."""
    used = _cgroup("memory.current", 0)
    try:
        stat = Path("/sys/fs/cgroup/memory.stat").read_text(encoding="utf-8")
    except OSError:
        return used
    cached = sum(int(line.split()[1]) for line in stat.splitlines() if line.startswith("file "))
    return max(0, used - cached)


# --- Types ----------------------------------------------------------------------------------------


def check_types(device: torch.device, types: Iterable[torch.dtype], *, computes: bool) -> None:
    """The device holds tensors of these types, and with `computes` turns them into float32.

    Raises UnsupportedError: Metal has no 8-bit floats, old releases of it no bfloat16.
    """
    for dtype in types:
        try:
            one = torch.empty(1, dtype=dtype, device=device)
            if computes and dtype.is_floating_point:
                one.float()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError) as error:
            if isinstance(error, getattr(torch, "AcceleratorError", ())):
                raise
            name = str(dtype).removeprefix("torch.")
            raise UnsupportedError(
                f"{device.type} devices have no {name} in torch {torch.__version__}",
                "take --device cpu, --dtype float16 or another scheme with --quant",
            ) from None


# --- The context ----------------------------------------------------------------------------------


class ContextCost(NamedTuple):
    """Driver memory that torch does not count: free before anything, and what went since.

    known  free memory before this process was asked for; else the whole device's was taken, and
           what other processes hold is counted too
    workspace_bytes  what libraries (cuBLAS) keep in the allocator since the first product
    """

    first_call_bytes: int
    first_product_bytes: int
    known: bool = True
    workspace_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Both."""
        return self.first_call_bytes + self.first_product_bytes


def context_cost(meter: Meter, free_before: int | None = None) -> ContextCost | None:
    """What the first call and the first matrix product take of the device; None on a CPU.

    free_before  the driver's free memory before this process touched the device (`free_before`):
                 torch itself cannot ask without making a context
    """
    if meter.kind in ("cpu", "mps"):
        return None
    total = meter.total_bytes() if free_before is None else free_before
    meter.synchronize()
    before = meter.reading()
    first = max(0, total - meter.free_bytes() - before.reserved)
    matrix = torch.ones(64, 64, device=meter.device, dtype=torch.bfloat16)
    product = matrix @ matrix
    meter.synchronize()
    after = max(0, total - meter.free_bytes() - meter.reading().reserved)
    # A product with a bias goes another way (cuBLASLt, hipBLASLt), which may keep a workspace of
    # its own: not to be taken for one of the first pass.
    product = torch.nn.functional.linear(matrix, matrix, matrix[0])
    meter.synchronize()
    del matrix, product
    workspace = max(0, meter.reading().allocated - before.allocated)
    return ContextCost(first, max(0, after - first), free_before is not None, workspace)


class Card(NamedTuple):
    """Memory of a card as the driver's tools say."""

    free_bytes: int
    total_bytes: int


# What the driver keeps for itself is in the tools' total and not in CUDA's: 0.5 % of 80 GB, 5 % of
# 4 GB. More is another card: a part of one (MIG), or CUDA counts cards in another order.
_SAME_CARD = 0.10


def free_of(meter: Meter, card: Card | None) -> int | None:
    """What was free on the meter's device, if `card` is that device."""
    if card is None or meter.kind != "cuda":
        return None
    total = meter.total_bytes()
    return card.free_bytes if abs(card.total_bytes - total) <= _SAME_CARD * total else None


def free_before(device: str) -> Card | None:
    """Memory of the card that `device` means, asked of the driver before CUDA is touched.

    By NVML (extra `nvidia-ml-py`), else by nvidia-smi, which says whole MiB; None without both.
    """
    kind, _, number = device.strip().lower().partition(":")
    if kind not in ("auto", "cuda") or (number and not _is_number(number)):
        return None
    index = int(number) if number else _local_rank()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    name = visible[index].strip() if index < len(visible) else ""
    name = name or str(index)
    found = _nvml_card(name)
    return _smi_card(name) if found is None else found


def _nvml_card(name: str) -> Card | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        if _is_number(name):
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(name))
        else:
            handle = pynvml.nvmlDeviceGetHandleByUUID(name)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return Card(int(memory.free), int(memory.total))
    except (pynvml.NVMLError, ValueError, TypeError, AttributeError):
        return None


def _smi_card(name: str) -> Card | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    asked = "--query-gpu=memory.free,memory.total"
    command = [tool, asked, "--format=csv,noheader,nounits", f"--id={name}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    said = [word.strip() for word in answer.stdout.strip().split(",")]
    if len(said) != 2 or not all(map(_is_number, said)):
        return None
    return Card(int(said[0]) * MIB, int(said[1]) * MIB)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10
