"""The run itself: what an OOM is, what stays, how runs are extrapolated, how terms are judged."""

from __future__ import annotations

import gc

import pytest
import torch
from running import call

from moesize.core.units import GIB, MIB
from moesize.verify import run as verify_run
from moesize.verify.devices import CpuMeter, LimitReached
from moesize.verify.passes import Stopwatch
from moesize.verify.phases import out_of_memory
from moesize.verify.report import Flops, Term
from moesize.verify.terms import extrapolate


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (LimitReached(77, 100), 77),
        (MemoryError(), 0),
        (
            # torch 2.13, c10/cuda/CUDACachingAllocator.cpp
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of "
                "79.10 GiB of which 1.20 GiB is free."
            ),
            5 * GIB // 2,
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), 20 * MIB),
        (
            # c10/core/impl/alloc_cpu.cpp
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
                "memory: you tried to allocate 4096 bytes. Error code 12 (Cannot allocate memory)"
            ),
            4096,
        ),
        (RuntimeError("shapes do not match"), None),
        # The driver and cuBLAS say it in words of their own (c10/cuda/CUDAException.cpp,
        # aten/src/ATen/cuda/Exceptions.h).
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), 0),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
            0,
        ),
        (ValueError("error: out of memory"), None),
        (ValueError("x"), None),
    ],
)
def test_errors_that_mean_that_memory_ran_out(error: Exception, asked: int | None) -> None:
    assert out_of_memory(error) == asked


def test_a_stopwatch_records_phases() -> None:
    meter = CpuMeter()
    names: list[str] = []
    with meter.watch():
        watch = Stopwatch(meter, names.append)
        assert watch.begin("one") == 0
        x = torch.zeros(1000, dtype=torch.uint8)
        y = x.clone()
        del y
        record = watch.end()
    assert (record.name, record.begin_bytes, record.peak_bytes, record.end_bytes) == (
        "one", 0, 2000, 1000,
    )  # fmt: skip
    assert names == ["one"]
    assert watch.most == 2000
    del x
    gc.collect()


def term(name: str, predicted: int | None, measured: int | None, **more: object) -> Term:
    return Term(
        name=name, predicted_bytes=predicted, measured_bytes=measured, why="",
        **{"tolerance": 0.01, **more},
    )  # type: ignore[arg-type]  # fmt: skip


def test_how_terms_are_judged() -> None:
    assert term("x", 100, 101).ok is True
    assert term("x", 100, 102).ok is False
    assert term("x", None, 5).ok is None
    assert term("x", 5, None).ok is None
    assert term("x", 100, 130, low_bytes=90, high_bytes=140).ok is True
    assert term("x", 0, 0, tolerance=0.0).ok is True
    assert term("x", 110, 100).error == pytest.approx(0.1)
    assert term("x", 0, 0).error == 0.0
    assert term("x", 1, 0).error is None


def test_what_no_counter_sees_is_added_to_what_it_counts() -> None:
    row = Flops("decode", 1000, 900, 100, 0.005)
    assert (row.error, row.ok) == (0.0, True)
    assert Flops("decode", 1000, 900, 0, 0.005).ok is False


def test_fixed_cost_and_cost_by_layer_are_told_apart() -> None:
    """Two runs of a device that adds 7 bytes, and 1 % to every byte: the whole follows."""
    small = (term("weights", 1000, 1017), term("peak", 5, 5))
    large = (term("weights", 3000, 3037), term("peak", 5, 5))
    (found,) = extrapolate(small, large, {"weights": 10_000, "peak": 9})
    assert found.name == "weights"
    assert found.scale == pytest.approx(1.01)
    assert found.fixed_bytes == 7
    assert found.extrapolated_bytes == 10_107
    assert extrapolate(small, small, {"weights": 10_000}) == ()


def test_memory_that_runs_out_before_the_run_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise RuntimeError("can't allocate memory: you tried to allocate 4096 bytes.")

    monkeypatch.setattr(verify_run, "free_before", no_memory)
    result = call("verify", "qwen3-0.6b", "--device", "cpu")
    assert (result.code, "4.00 KiB more" in result.err) == (3, True), result.err
    assert "Traceback" not in result.err
