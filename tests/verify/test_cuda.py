"""What CUDA does otherwise than a CPU: blocks, scratch of kernels, a workspace, a context."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from moesize.core.errors import EnvironmentProblem
from moesize.core.units import MIB
from moesize.core.weight_formats import Mxfp4, Nvfp4, WeightFormat
from moesize.verify import run as verify_run
from moesize.verify.caching_allocator import CachingAllocator
from moesize.verify.cuda_scratch import scratch, sort_scratch
from moesize.verify.devices import Card
from moesize.verify.dry_run import DryRun
from moesize.verify.forward.caches import LayerCache
from moesize.verify.forward.convolution import causal_conv
from moesize.verify.forward.dequantize import dequantize
from moesize.verify.passes import sampling_bytes
from moesize.verify.report import Term, VerifyReport
from verify.configs import FAMILIES, write_config
from verify.stand_in import CONTEXT_BYTES, StandIn


def report(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> VerifyReport:
    meter = StandIn()
    monkeypatch.setattr(verify_run, "find_meter", lambda device: meter)
    monkeypatch.setattr(verify_run, "free_before", lambda device: Card(meter.total, meter.total))
    return verify_run.verify(
        str(folder), device="cuda", tokens=24, sequences=4, decode_steps=2, layers="all", **options
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_blocks(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks, segments and peaks of a run in torch agree with those of a run on shapes."""
    folder = write_config(family, tmp_path / "model", vocab_size=8192)
    found = report(folder, monkeypatch)
    terms: dict[str, Term] = {term.name: term for term in found.terms}
    assert {"context", "weights.blocks", "weights.reserved", "weights.driver"} <= set(terms)
    assert terms["context"].measured_bytes == CONTEXT_BYTES
    for name in ("weights", "weights.blocks", "kv_cache.static", "kv_cache.growing"):
        assert terms[name].error == 0, name
    for name in ("load_peak", "prefill_peak", "decode_peak", "decode_peak.growing", "peak"):
        error = terms[name].error
        assert error is not None, name
        assert abs(error) <= 0.05, (name, error)
    assert all(term.ok is not False for term in found.terms)
    # The sort's: 48 bytes for each of 4 * 8,192 scores.
    assert terms["sampling_peak"].predicted_bytes == 48 * 4 * 8192
    assert terms["after_free"].measured_bytes == 0
    # Whose bytes the peaks are, out of the allocator's history: as on shapes alone, to the byte.
    assert {item.phase for item in found.attribution} >= {"static prefill"}
    for item in found.attribution:
        assert item.measured_bytes == item.predicted_bytes, item
    held = {item.owner: item.measured_bytes for item in found.attribution[:20]}
    assert held["weights"] >= terms["weights"].measured_bytes


def test_what_a_sort_of_cuda_holds() -> None:
    """By hand from SortStable.cu: positions, pairs, keys, and CUB's second copies."""
    assert sort_scratch(0, 0, 4) == ()
    assert sort_scratch(5 * 4096, 4096, 4) == (8 * 4096,)
    assert sort_scratch(50_000, 50_000, 4) == (400_000, 600_000)
    assert sort_scratch(2 * 50_000, 50_000, 4) == (800_000, 800_000, 400_000, 1_200_000)
    assert sort_scratch(128 * 50_000, 50_000, 2) == (128 * 400_000, 128 * 500_000)
    # Cut at 2^31 - 1 numbers: 42,949 rows at once.
    assert sort_scratch(100_000 * 50_000, 50_000, 4)[0] == 42_949 * 400_000


def test_sampling_on_cuda() -> None:
    assert sampling_bytes(1, 50_000, "cuda") == 36 * 50_000
    assert sampling_bytes(4, 50_000, "cuda") == 48 * 4 * 50_000
    assert sampling_bytes(256, 50_000, "cuda") == 36 * 256 * 50_000
    assert sampling_bytes(256, 1000, "cuda") == sampling_bytes(256, 1000) == 24 * 256_000


def test_scratch_is_counted_while_an_operation_runs() -> None:
    allocator = CachingAllocator()
    with DryRun(allocator, lambda func, args: (MIB, 3 * MIB) if func is _EXP else ()) as run:
        x = torch.empty(1000, dtype=torch.float32, device="meta")
        y = x.exp()
        assert run.live_bytes == 8000
        assert run.peak_bytes == 8000 + 4 * MIB
    assert allocator.allocated == 2 * 4096
    del y


_EXP = torch.ops.aten.exp.default


def test_segments_without_blocks_go_back() -> None:
    a = CachingAllocator()
    a.allocate(MIB, 1)
    a.allocate(64 * MIB, 2)
    a.allocate(2 * MIB, 3)
    a.release(2)
    a.release(3)
    assert a.reserved == 2 * MIB + 64 * MIB + 20 * MIB
    a.release_free()
    assert a.reserved == 2 * MIB
    a.allocate(64 * MIB, 4)
    assert a.reserved == 66 * MIB
    assert a.peak_reserved == 86 * MIB


def test_operands_that_a_kernel_copies() -> None:
    """By hand from pytorch's cuBlasCommonArgs.h, Blas.cpp, ScanUtils.cuh and make_info."""
    aten = torch.ops.aten

    def taken(func: Any, *args: Any) -> tuple[int, ...]:
        return scratch(func, args)

    x = torch.empty(6, 8, device="meta", dtype=torch.bfloat16)
    w = torch.empty(10, 8, device="meta", dtype=torch.bfloat16)
    assert taken(aten.mm.default, x, w.T) == ()
    assert taken(aten.mm.default, x[::2], w.T) == ()  # every second row is as good
    assert taken(aten.mm.default, x[:, ::2], w.T[::2]) == (2 * 6 * 4, 2 * 4 * 10)
    bias = torch.empty(10, device="meta", dtype=torch.bfloat16)
    assert taken(aten.addmm.default, bias, x[:, ::2], w[:, :4].T) == (2 * 6 * 4,)
    # A cache of 16 rows of which 5 are read: transposed and cut, as it is.
    rows = torch.empty(3, 16, 8, device="meta")[:, :5]
    q = torch.empty(3, 2, 8, device="meta")
    assert taken(aten.bmm.default, q, rows.transpose(1, 2)) == ()
    assert taken(aten.bmm.default, torch.empty(3, 2, 5, device="meta"), rows) == ()
    # Every second number of a row: neither way of reading it fits.
    assert taken(aten.bmm.default, q, torch.empty(3, 5, 16, device="meta")[..., ::2].mT) == (480,)
    # Broadcast: a stride of 0.
    assert taken(aten.bmm.default, q, torch.empty(3, 8, 1, device="meta").expand(3, 8, 4)) == (384,)
    wide = torch.empty(4, 32, 64, 2, device="meta")
    assert taken(aten.cumsum.default, wide, 2) == ()
    assert taken(aten.cumsum.default, wide[:, :, ::2], 2) == (4 * wide.numel() // 2,)
    picks = torch.empty(100, device="meta", dtype=torch.int32)
    assert taken(aten.index.Tensor, wide, [None, picks]) == (800,)
    assert taken(aten.index.Tensor, wide, [None, picks.long()]) == ()


@pytest.mark.parametrize("weight_format", [Mxfp4(), Nvfp4()])
def test_unpacking_takes_no_scratch_on_cuda(weight_format: WeightFormat) -> None:
    """Four-bit numbers are unpacked without indices, of which torch would copy those of 32 bits."""
    seen: list[tuple[object, int]] = []

    def note(func: Any, args: tuple[Any, ...]) -> tuple[int, ...]:
        seen.extend((func, size) for size in scratch(func, args))
        return ()

    groups = 4 if isinstance(weight_format, Mxfp4) else 8
    parts = {
        "weight": torch.empty(64, 64, dtype=torch.uint8, device="meta"),
        "scale": torch.empty(64, groups, dtype=torch.uint8, device="meta"),
        "global_scale": torch.empty(1, device="meta"),
    }
    with DryRun(scratch=note) as run:
        out = dequantize(parts, weight_format, torch.device("meta"))
    assert out.shape == (64, 128)
    assert run.peak_bytes > 4 * out.numel()
    assert seen == []


def test_an_allocator_set_otherwise_is_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    found = report(write_config("dense GQA", tmp_path / "model"), monkeypatch)
    terms = {term.name: term for term in found.terms}
    for name in ("weights.blocks", "weights.reserved", "load_peak", "prefill_peak", "peak"):
        assert terms[name].predicted_bytes is None, name
        assert terms[name].measured_bytes, name
    for name in ("weights", "kv_cache.static", "logits_peak", "sampling_peak"):
        assert terms[name].ok is True, name
    assert any("expandable_segments" in note for note in found.notes)
    assert found.agrees


def test_a_bound_holds_for_segments_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that fits its bound to the MiB in tensors would not in segments, workspace included."""
    folder = write_config("dense GQA", tmp_path / "model")
    peak = {term.name: term.predicted_bytes for term in report(folder, monkeypatch).terms}["peak"]
    assert peak is not None
    with pytest.raises(EnvironmentProblem, match="are kept free"):
        report(folder, monkeypatch, limit_memory=peak + 33 * MIB)
    assert report(folder, monkeypatch, limit_memory=peak + 300 * MIB).agrees


def test_a_kernel_that_fails_ends_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An illegal access in the middle of a pass: no traceback, and no folder of shards stays."""

    def fails(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    folder = write_config("dense GQA", tmp_path / "model")
    monkeypatch.setattr("moesize.verify.forward.ForwardModel.logits", fails)
    # The prediction runs the same code, on shapes.
    nothing = verify_run._Expected(None, "not predicted here")
    monkeypatch.setattr(verify_run._Run, "_expected", lambda self, subject: nothing)
    monkeypatch.setattr(verify_run._Run, "_flops_total", lambda self, subject: 0)
    with pytest.raises(EnvironmentProblem, match="NVIDIA H100 80GB HBM3: CUDA error: an"):
        report(folder, monkeypatch)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_convolution_takes_no_workspace_of_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    conv1d = torch.nn.functional.conv1d

    def watched(*args: Any, **options: Any) -> torch.Tensor:
        seen.append(torch.backends.cudnn.enabled)
        return conv1d(*args, **options)

    monkeypatch.setattr(torch.nn.functional, "conv1d", watched)
    before = torch.backends.cudnn.enabled
    causal_conv(torch.ones(1, 5, 2), torch.ones(2, 1, 4), None, LayerCache("static", 16))
    assert seen == [False]
    assert torch.backends.cudnn.enabled is before
