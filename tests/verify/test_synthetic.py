"""Synthetic checkpoints: exact bytes, names and shapes, contents that a forward pass survives."""

from __future__ import annotations

import errno
import json
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moesize.core.checkpoint import published, with_scheme
from moesize.core.errors import EnvironmentProblem, InvalidInputError
from moesize.core.model_spec import CheckpointQuantization, ModelSpec, QuantizationRule
from moesize.core.quantization import find_scheme
from moesize.verify import synthetic
from moesize.verify.forward import ForwardModel, Numerics
from moesize.verify.forward.dequantize import dequantize, parts_of
from moesize.verify.loading import load
from moesize.verify.safetensors_files import INDEX_NAME, open_checkpoint
from moesize.verify.selection import Selection, held_by_rank
from moesize.verify.synthetic import plan_synthetic, write_synthetic
from verify.small import scratch, small


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In the place of pytest's: see `scratch`."""
    with scratch() as folder:
        yield folder


# One model of each family, with one layer of every kind.
FAMILIES: dict[str, tuple[str, tuple[int, ...]]] = {
    "dense GQA": ("smollm2-135m", (0, 1, 29)),
    "MLA MoE": ("deepseek-v2-lite", (0, 1)),
    "gated delta hybrid": ("qwen3-next-80b-a3b", (0, 3)),
    "sliding window": ("gemma-3-1b", (4, 5)),
    "MXFP4": ("gpt-oss-20b", (1,)),
    "GPTQ": ("qwen2-1.5b-instruct-gptq-int4", (0,)),
    "FP8 block": ("qwen3-1.7b-fp8", (0,)),
    "FP8 block MoE": ("qwen3-30b-a3b-fp8", (0,)),
}


def inventory_bytes(spec: ModelSpec, layers: tuple[int, ...]) -> int:
    """What the inventory counts for these layers and what stands outside of them."""
    total = 0
    for item in published(spec):
        if item.entry.section in ("mtp", "stored", "tower"):
            continue
        once = item.file_bytes // item.entry.count
        of = item.entry.layers
        total += once * (sum(layer in layers for layer in of) if of else 1)
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_written_and_loaded_bytes_are_those_of_the_inventory(family: str, tmp_path: Path) -> None:
    name, layers = FAMILIES[family]
    spec = small(name, experts=2)
    stored = published(spec)
    selection = Selection(layers)
    arrived: list[int] = []
    made = write_synthetic(spec, stored, selection, tmp_path / "c", progress=arrived.append)
    expected = inventory_bytes(spec, layers)
    assert made.size_bytes == sum(arrived) == expected
    files = open_checkpoint(tmp_path / "c")
    assert files.size_bytes == expected
    tensors = list(selection.tensors(spec, stored))
    loaded = load(files, tensors)
    assert loaded.requested_bytes == held_by_rank(tensors).requested_bytes == expected
    assert sum(tensor.nbytes for tensor in loaded.state.values()) == expected
    assert_alive(loaded.state)
    # safetensors' own loader finds the same.
    library = {k: v for shard in made.shards for k, v in load_file(tmp_path / "c" / shard).items()}
    assert library.keys() == loaded.state.keys()
    for key, tensor in library.items():
        assert torch.equal(tensor.view(torch.uint8), loaded.state[key].view(torch.uint8)), key
    model = ForwardModel(spec, Numerics.neutral(spec), loaded.state, layers=layers)
    first = model.logits(model.prefill(torch.arange(4)[None]))
    second = model.logits(model.decode(torch.tensor([5])))
    for logits in (first, second):
        assert logits.isfinite().all()
        assert 0.1 < float(logits.std()) < 30


def assert_alive(state: dict[str, torch.Tensor]) -> None:
    """Random where it can be, and never a NaN."""
    for name, tensor in state.items():
        numbers = tensor.float()
        assert numbers.isfinite().all(), name
        if tensor.numel() > 64:
            assert float(numbers.std()) > 0, name


def test_one_seed_makes_one_checkpoint(tmp_path: Path) -> None:
    spec = small("smollm2-135m")
    files = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        made = write_synthetic(spec, published(spec), Selection((0,)), folder, seed=seed)
        files.append((folder / made.shards[0]).read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_no_tensor_repeats_another(tmp_path: Path) -> None:
    spec = small("smollm2-135m")
    write_synthetic(spec, published(spec), Selection(tuple(range(6))), tmp_path / "c")
    state = load_file(tmp_path / "c" / "model-00001-of-00001.safetensors")
    starts = [bytes(t.view(torch.uint8).flatten()[:64].tolist()) for t in state.values()]
    assert len(set(starts)) == len(starts)


def test_shards_and_their_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "MAX_SHARD_BYTES", 4_000_000)
    spec = small("smollm2-135m")
    made = write_synthetic(spec, published(spec), Selection((0, 1, 2)), tmp_path / "c")
    assert len(made.shards) > 3
    index = json.loads((tmp_path / "c" / INDEX_NAME).read_text())
    assert set(index["weight_map"].values()) == set(made.shards)
    assert index["metadata"]["total_size"] == made.size_bytes
    assert open_checkpoint(tmp_path / "c").size_bytes == made.size_bytes
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == sorted([*made.shards, INDEX_NAME])


def test_group_indices_of_gptq(tmp_path: Path) -> None:
    spec = small("qwen2-1.5b-instruct-gptq-int4")
    write_synthetic(spec, published(spec), Selection((0,), outside=False), tmp_path / "c")
    state = load_file(tmp_path / "c" / "model-00001-of-00001.safetensors")
    index = state["model.layers.0.mlp.down_proj.g_idx"]
    assert torch.equal(index, torch.arange(8960, dtype=torch.int32) // 128)


FORMATS = {
    "fp8": {"format": "fp8", "static_input_scale": True},
    "fp8-channel": {"format": "fp8-channel"},
    "int8-channel": {"format": "int8-channel"},
    "pack": {"format": "pack", "bits": 4, "group_size": 32},
    "pack-asymmetric": {"format": "pack", "bits": 4, "group_size": 32, "symmetric": False},
    "awq": {"format": "awq", "bits": 4, "group_size": 64},
    "gptq-8": {"format": "gptq", "bits": 8, "group_size": 64},
    "mxfp8": {"format": "mxfp8"},
    "mxfp4": {"format": "mxfp4"},
    "nvfp4": {"format": "nvfp4", "static_input_scale": True},
    "bnb-4bit": {"format": "bnb-4bit"},
    "bnb-nested": {"format": "bnb-4bit", "nested": True},
    "bnb-int8": {"format": "bnb-int8"},
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_quantized_matrices_unpack_to_numbers_of_the_right_size(name: str, tmp_path: Path) -> None:
    """Deviation near inputs ** -0.5, as of the matrices that are not quantized."""
    method = {"nvfp4": "modelopt", "pack": "compressed-tensors", "mxfp4": "compressed-tensors"}
    rule: dict[str, Any] = FORMATS[name]
    spec = replace(
        small("smollm2-135m"),
        quantization=CheckpointQuantization(
            method=method.get(rule["format"], rule["format"]), rules=(QuantizationRule(**rule),)
        ),
    )
    stored = published(spec)
    selection = Selection((0,), outside=False)
    write_synthetic(spec, stored, selection, tmp_path / "c")
    loaded = load(open_checkpoint(tmp_path / "c"), selection.tensors(spec, stored))
    module = "model.layers.0.mlp.up_proj"
    weight_format = next(
        item.weight_format for item in stored if item.entry.tensor.role == "dense_mlp.up"
    )
    assert weight_format is not None
    matrix = dequantize(parts_of({**loaded.state, **loaded.companions}, module), weight_format)
    assert matrix.shape == (1536, 576)
    assert matrix.isfinite().all()
    assert 0.4 < float(matrix.std()) * 576**0.5 < 2.5


def test_a_what_if_scheme_is_written_too(tmp_path: Path) -> None:
    spec = small("mixtral-8x7b", experts=2)
    spec = replace(spec, layers=(replace(spec.layers[0], repeat=1),))
    stored = with_scheme(spec, find_scheme("awq"))
    plan = plan_synthetic(spec, stored, Selection((0,)))
    total = sum(tensor.size_bytes for shard in plan for tensor in shard)
    assert total == sum(item.file_bytes for item in stored)


# --- Trouble --------------------------------------------------------------------------------------

_Usage = namedtuple("_Usage", "total used free")


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic.shutil, "disk_usage", lambda _: _Usage(10**9, 10**9, 10**6))
    spec = small("smollm2-135m")
    with pytest.raises(EnvironmentProblem, match="are free"):
        write_synthetic(spec, published(spec), Selection((0,)), tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), EnvironmentProblem),
        (OSError(errno.EIO, "Input/output error"), EnvironmentProblem),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_nothing_is_left_of_a_checkpoint_that_could_not_be_finished(
    trouble: BaseException,
    expected: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The disk fills up in the middle of a later shard."""
    monkeypatch.setattr(synthetic, "MAX_SHARD_BYTES", 4_000_000)
    written = 0

    def progress(size: int) -> None:
        nonlocal written
        written += size
        if written > 6_000_000:
            raise trouble

    spec = small("smollm2-135m")
    with pytest.raises(expected):
        write_synthetic(spec, published(spec), Selection((0, 1)), tmp_path / "c", progress=progress)
    assert not (tmp_path / "c").exists()
    # A folder that was there stays, as it was.
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine.txt").touch()
    written = 0
    with pytest.raises(expected):
        write_synthetic(spec, published(spec), Selection((0, 1)), tmp_path / "d", progress=progress)
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["mine.txt"]


def test_weights_that_are_there_are_never_overwritten(tmp_path: Path) -> None:
    spec = small("smollm2-135m")
    (tmp_path / "mine.safetensors").write_bytes(b"mine")
    with pytest.raises(InvalidInputError, match="holds weights already"):
        write_synthetic(spec, published(spec), Selection((0,)), tmp_path)
    assert (tmp_path / "mine.safetensors").read_bytes() == b"mine"
