"""Meters: the CPU's really counted, CUDA's through a double of torch.cuda."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from running import environment

from moesize.core.errors import EnvironmentProblem, InvalidInputError, UnsupportedError
from moesize.core.units import GIB, MIB
from moesize.verify import devices
from moesize.verify.caching_allocator import CachingAllocator
from moesize.verify.devices import (
    Card,
    CpuMeter,
    LimitReached,
    TorchMeter,
    context_cost,
    find_meter,
)
from moesize.verify.live_bytes import LiveBytes


def test_storages_are_counted_once_and_until_they_die() -> None:
    live = LiveBytes()
    with live:
        x = torch.zeros(1000, dtype=torch.float32)
        assert live.live_bytes == 4000
        view = x[:10].reshape(2, 5)
        assert live.live_bytes == 4000
        y = x + 1
        assert live.live_bytes == 8000
        del x
        assert live.live_bytes == 8000  # the view holds it
        del view
        assert live.live_bytes == 4000
        live.reset_peak()
        for _ in range(3):
            y = y * 2
        assert live.peak_bytes == 8000
    del y
    assert live.live_bytes == 0


def test_tensors_made_elsewhere_are_adopted() -> None:
    live = LiveBytes()
    x = torch.zeros(256, dtype=torch.uint8)
    live.adopt([x, x[:10]])
    assert live.live_bytes == 256
    del x
    assert live.live_bytes == 0


def test_the_cpu_meter_counts_and_bounds() -> None:
    meter = CpuMeter()
    assert meter.total_bytes() > meter.free_bytes() > 0
    assert meter.name
    with meter.watch():
        x = torch.ones(MIB, dtype=torch.uint8)
        assert meter.reading() == (MIB, MIB, MIB)
        assert meter.peak().allocated == MIB
        meter.limit(2 * MIB)
        with pytest.raises(LimitReached) as caught:
            torch.ones(3 * MIB, dtype=torch.uint8)
        assert caught.value.asked_bytes == 3 * MIB
    del x
    assert devices.process_peak_bytes() > 10 * MIB
    assert context_cost(meter) is None


def test_find_meter() -> None:
    assert find_meter("cpu").kind == "cpu"
    for word in ("gpu", "cuda:x", ""):
        with pytest.raises(InvalidInputError):
            find_meter(word)
    if not torch.accelerator.is_available():
        assert find_meter("auto").kind == "cpu"
        for kind in ("cuda", "rocm", "xpu", "mps"):
            with pytest.raises(EnvironmentProblem):
                find_meter(kind)


class FakeCuda:
    """What `TorchMeter` asks of torch.cuda, with a caching allocator of numbers behind it."""

    def __init__(self) -> None:
        self.allocator = CachingAllocator()
        self.requested = self.peak_requested = 0
        self.context = 500 * MIB
        self.fraction = 1.0
        self.emptied = 0

    def give(self, size: int, key: int) -> None:
        self.allocator.allocate(size, key)
        self.requested += size
        self.peak_requested = max(self.peak_requested, self.requested)

    def get_device_name(self, index: int) -> str:
        return "NVIDIA H100 80GB HBM3"

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return 80 * GIB - self.context - self.allocator.reserved, 80 * GIB

    def memory_stats(self, device: torch.device) -> dict[str, int]:
        a = self.allocator
        return {
            "requested_bytes.all.current": self.requested,
            "requested_bytes.all.peak": self.peak_requested,
            "allocated_bytes.all.current": a.allocated,
            "allocated_bytes.all.peak": a.peak_allocated,
            "reserved_bytes.all.current": a.reserved,
            "reserved_bytes.all.peak": a.peak_reserved,
        }

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.allocator.reset_peak()
        self.peak_requested = self.requested

    def synchronize(self, device: torch.device) -> None: ...

    def empty_cache(self) -> None:
        self.emptied += 1

    def set_per_process_memory_fraction(self, fraction: float, device: torch.device) -> None:
        self.fraction = fraction

    def memory_snapshot(self) -> list[dict[str, Any]]:
        size = self.allocator.reserved
        return [{"total_size": size, "allocated_size": self.allocator.allocated, "active_size": 1}]


def test_a_device_with_memory_stats() -> None:
    api = FakeCuda()
    meter = TorchMeter("cuda", 0, api)
    assert meter.name == "NVIDIA H100 80GB HBM3"
    assert meter.free_bytes() == 80 * GIB - 500 * MIB
    api.give(11 * MIB, 1)
    api.give(100, 2)
    assert meter.reading() == (11 * MIB + 100, 12 * MIB + 512, 14 * MIB)
    api.allocator.release(1)
    assert meter.peak().allocated == 12 * MIB + 512
    meter.reset_peak()
    assert meter.peak().allocated == 512
    meter.limit(20 * GIB)
    assert api.fraction == 0.25
    meter.release()
    assert api.emptied == 1
    assert meter.segments()[0]["total_size"] == 14 * MIB


def test_the_caching_allocator() -> None:
    """Segments and splits as pytorch's CUDACachingAllocator.cpp and its documentation have them."""
    a = CachingAllocator()
    a.allocate(1, 1)
    assert (a.allocated, a.reserved) == (512, 2 * MIB)
    a.allocate(MIB, 2)
    assert (a.allocated, a.reserved) == (512 + MIB, 2 * MIB)
    a.allocate(MIB + 1, 3)  # large pool: a segment of 20 MiB, of which the rest is split off
    assert a.reserved == 22 * MIB
    a.allocate(8 * MIB, 4)
    assert a.reserved == 22 * MIB
    a.allocate(64 * MIB + 1, 5)  # a segment of its own, rounded up to 2 MiB
    assert a.reserved == 88 * MIB
    for key in (3, 4):
        a.release(key)
    a.allocate(19 * MIB + 512 * 1024, 6)  # joined again; less than 1 MiB is left: not split
    assert a.reserved == 88 * MIB
    assert a.allocated == 512 + MIB + 20 * MIB + 64 * MIB + 512
    for key in (1, 2, 5, 6):
        a.release(key)
    assert (a.allocated, a.reserved) == (0, 88 * MIB)
    assert a.peak_reserved == 88 * MIB


def test_free_memory_is_asked_of_the_driver_before_cuda_is_touched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """nvidia-smi where NVML's package is not installed; the card by the number torch will use."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\ncase "$*" in *--id=3*) echo 81079, 81559;; '
        "*--id=GPU-ab*) echo x;; *) exit 9;; esac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(devices, "_nvml_card", lambda name: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3,GPU-ab")
    assert devices.free_before("cuda:1") == (81079 * MIB, 81559 * MIB)
    assert devices.free_before("cuda") is None
    assert devices.free_before("cuda:2") is None
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert devices.free_before("auto") == (81079 * MIB, 81559 * MIB)
    assert devices.free_before("cpu") is None
    assert devices.free_before("cuda:x") is None


def test_another_card_says_nothing_of_this_one() -> None:
    """MIG: the tools name the whole card, CUDA an instance of 10 GB. Or cards in another order."""
    meter = TorchMeter("cuda", 0, FakeCuda())  # 80 GiB
    assert devices.free_of(meter, Card(79 * GIB, 81 * GIB)) == 79 * GIB
    assert devices.free_of(meter, Card(79 * GIB, 141 * GIB)) is None
    assert devices.free_of(meter, Card(9 * GIB, 10 * GIB)) is None
    assert devices.free_of(meter, None) is None
    assert devices.free_of(CpuMeter(), Card(79 * GIB, 81 * GIB)) is None


def test_an_error_of_the_device_is_one_line() -> None:
    """Texts as torch 2.13 and 2.6 have them; what is no error of a device goes on as it is."""
    kernel = (
        "CUDA error: no kernel image is available for execution on the device\n"
        "Search for `cudaErrorNoKernelImageForDevice' in the documentation\n"
    )
    with pytest.raises(EnvironmentProblem) as caught, devices.device_problems("Tesla K80"):
        raise RuntimeError(kernel)
    assert caught.value.exit_code == 3
    assert caught.value.message == (
        "Tesla K80: CUDA error: no kernel image is available for execution on the device"
    )
    assert "torch build" in caught.value.hint
    with pytest.raises(EnvironmentProblem, match="illegal memory"), devices.device_problems():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(EnvironmentProblem), devices.device_problems():
        raise TypeError(
            "Trying to convert Float8_e4m3fn to the MPS backend but it does not have support for "
            "that dtype."
        )
    with pytest.raises(EnvironmentProblem, match="out of memory"), devices.device_problems():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
    with pytest.raises(RuntimeError, match="mat1 and mat2"), devices.device_problems():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(InvalidInputError), devices.device_problems():
        raise InvalidInputError("a file")


def test_settings_of_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of pytorch's c10/core/AllocatorConfig.h and its CUDA notes."""
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("TORCH_CUBLAS_WORKSPACE_CACHE", raising=False)
    assert devices.allocator_settings() == ()
    for text, names in (
        ("expandable_segments:True", ("expandable_segments",)),
        ("expandable_segments:False,pinned_use_background_threads:True", ()),
        ("backend:native, per_process_memory_fraction:0.5", ()),
        (
            "roundup_power2_divisions:[256:1,512:2,>:8],max_split_size_mb:128",
            ("roundup_power2_divisions", "max_split_size_mb"),
        ),
        ("garbage_collection_threshold:0.8", ("garbage_collection_threshold",)),
        (",,:::[[\x00", ()),
    ):
        monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", text.replace("\x00", "?"))
        assert devices.allocator_settings() == names, text
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "x" * 99 + ":1")
    assert devices.allocator_settings() == ("x" * 40,)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    monkeypatch.setenv("TORCH_CUBLAS_WORKSPACE_CACHE", "0")
    assert devices.allocator_settings() == ("TORCH_CUBLAS_WORKSPACE_CACHE",)


def test_an_allocator_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    api = FakeCuda()
    monkeypatch.setattr(devices, "_accelerator", lambda: "cuda")
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "cuda", api)
    monkeypatch.setenv("TORCH_CUBLAS_WORKSPACE_CACHE", "")
    monkeypatch.delenv("TORCH_CUBLAS_WORKSPACE_CACHE")
    assert find_meter("cuda").name == "NVIDIA H100 80GB HBM3"
    # Later releases would take 32 MiB for each product and give them back.
    assert os.environ["TORCH_CUBLAS_WORKSPACE_CACHE"] == "1"
    api.get_allocator_backend = lambda: "cudaMallocAsync"  # type: ignore[attr-defined]
    with pytest.raises(EnvironmentProblem, match="cudaMallocAsync"):
        find_meter("cuda")
    api.get_allocator_backend = lambda: "native"  # type: ignore[attr-defined]
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    with pytest.raises(EnvironmentProblem, match="counts no memory"):
        find_meter("cuda")


def test_types_that_a_device_lacks() -> None:
    types = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e8m0fnu, torch.uint8, torch.int32)
    devices.check_types(torch.device("cpu"), types, computes=True)
    if not torch.backends.mps.is_built():
        with pytest.raises(UnsupportedError, match="mps devices have no bfloat16"):
            devices.check_types(torch.device("mps"), types, computes=True)


def test_a_workspace_is_no_part_of_the_context() -> None:
    """cuBLAS's comes with the first product, out of the allocator; 100 MiB of kernels beside it."""
    api = FakeCuda()
    meter = TorchMeter("cuda", 0, api)
    meter.device = torch.device("cpu")
    calls = []

    def synchronize(device: torch.device) -> None:
        calls.append(device)
        if len(calls) == 2:
            api.give(32 * MIB, -1)
            api.context += 100 * MIB

    api.synchronize = synchronize  # type: ignore[method-assign]
    api.give(5 * MIB, -2)  # the caller's
    cost = context_cost(meter, 80 * GIB)
    assert cost is not None
    assert cost[:2] == (500 * MIB, 100 * MIB)
    assert cost.workspace_bytes == 32 * MIB


def test_a_context_beside_other_processes_is_compared_with_nothing() -> None:
    api = FakeCuda()
    meter = TorchMeter("cuda", 0, api)
    meter.device = torch.device("cpu")
    cost = context_cost(meter)
    assert cost is not None
    assert not cost.known
    assert cost.total_bytes == 500 * MIB
    known = context_cost(meter, 79 * GIB)
    assert known is not None
    assert known.known


def test_counting_imports_no_compiler() -> None:
    """torch's takes seconds to import, which the first load of a process would be charged with."""
    code = (
        "import sys, torch; from moesize.verify.live_bytes import LiveBytes\n"
        "with LiveBytes() as live: held = torch.empty(1000, dtype=torch.uint8)\n"
        "print(live.live_bytes, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1000", "False"]
