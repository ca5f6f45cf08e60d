"""Which layers are taken, and what a rank holds of them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from running import ROOT

from moesize.catalog import load_spec
from moesize.core.checkpoint import published, stored_bytes
from moesize.core.errors import EnvironmentProblem, InvalidInputError
from moesize.core.model_spec import ModelSpec
from moesize.core.units import GIB
from moesize.verify.selection import (
    Selection,
    choose_layers,
    held_by_rank,
    held_by_section,
    layer_kinds,
    parse_layers,
)


def catalogue(name: str) -> ModelSpec:
    """A spec as shipped."""
    return load_spec(ROOT / "model_specs" / f"{name}.yaml")


def test_files_have_to_fit_the_disk() -> None:
    """A rank of eight holds little of what its files hold."""
    spec = catalogue("mixtral-8x7b")
    stored = published(spec)
    plenty = choose_layers(spec, stored, 70 * GIB, rank=7, size=8)
    assert plenty.whole
    # 93.4 GB in 32 equal layers of 2.70 GiB, and 0.49 GiB for the embedding and the head.
    few = choose_layers(spec, stored, 70 * GIB, rank=7, size=8, disk_bytes=20 * GIB)
    assert len(few.large.layers) == 7
    with pytest.raises(EnvironmentProblem, match="of the disk may be used"):
        choose_layers(spec, stored, 70 * GIB, disk_bytes=2 * GIB)


def test_layers_as_people_write_them() -> None:
    spec = catalogue("smollm2-135m")
    assert parse_layers("all", spec) == tuple(range(30))
    assert parse_layers("0-3, 20", spec) == (0, 1, 2, 3, 20)
    assert parse_layers("5,5,4-6", spec) == (4, 5, 6)
    for wrong in ("", "a", "3-1", "30", "0-99999", "-1", "1.5", "9" * 5000, "١"):  # noqa: RUF001
        with pytest.raises(InvalidInputError):
            parse_layers(wrong, spec)


def test_a_selection_checks_itself() -> None:
    for arguments in ((((1, 1)), True, 0, 1), ((2, 1), True, 0, 1), ((0,), True, 2, 2)):
        with pytest.raises(InvalidInputError):
            Selection(*arguments)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("smollm2-135m", 1),
        # One dense layer, then experts.
        ("deepseek-v2-lite", 2),
        # Three gated-delta layers, then one with full attention.
        ("qwen3-next-80b-a3b", 2),
        # Sliding windows and full attention take turns; their tensors are alike.
        ("gemma-3-1b", 2),
        ("gpt-oss-20b", 2),
    ],
)
def test_kinds_of_layers(name: str, kinds: int) -> None:
    spec = catalogue(name)
    assert len(set(layer_kinds(spec, published(spec)))) == kinds


def test_layers_whose_format_differs_are_of_different_kinds() -> None:
    """NVIDIA's checkpoint leaves some layers as they are: same block, other bytes."""
    spec = catalogue("nemotron-3-nano-nvfp4")
    kinds = layer_kinds(spec, published(spec))
    assert len(set(kinds)) > len(set(spec.layout))


def test_the_whole_model_where_it_fits() -> None:
    spec = catalogue("smollm2-135m")
    stored = published(spec)
    choice = choose_layers(spec, stored, GIB)
    assert choice.whole
    assert choice.large.layers == tuple(range(30))
    # The smaller set is one layer of every kind.
    assert choice.small is not None
    assert choice.small.layers == (0,)
    held = held_by_rank(choice.large.tensors(spec, stored))
    # transformers, and the published index: 269,030,016 bytes in bfloat16.
    assert held.requested_bytes == stored_bytes(spec) == 269_030_016


@pytest.mark.parametrize("budget_gib", [40, 141])
def test_as_many_layers_as_fit_and_one_of_every_kind(budget_gib: int) -> None:
    spec = catalogue("deepseek-v3")
    stored = published(spec)
    budget = budget_gib * GIB
    cost = 100_000_000
    choice = choose_layers(spec, stored, budget, fixed_bytes=GIB, layer_cost=lambda _: cost)
    layers = choice.large.layers
    assert {choice.kinds[layer] for layer in layers} == set(choice.kinds)
    used = held_by_rank(choice.large.tensors(spec, stored)).allocated_bytes
    used += GIB + cost * len(layers)
    assert used <= budget
    # Not one more of any kind.
    left = {choice.kinds[layer]: layer for layer in set(range(61)) - set(layers)}
    for layer in left.values():
        more = Selection((layer,), outside=False).tensors(spec, stored)
        assert used + held_by_rank(more).allocated_bytes + cost > budget
    assert choice.small is not None
    assert set(choice.small.layers) < set(layers)


def test_a_device_that_is_too_small_for_one_layer_of_every_kind() -> None:
    spec = catalogue("deepseek-v3")
    with pytest.raises(EnvironmentProblem, match="one layer of each of 2 kinds"):
        choose_layers(spec, published(spec), 14 * GIB)


def test_a_rank_of_eight_holds_more_layers() -> None:
    spec = catalogue("deepseek-v3")
    stored = published(spec)
    whole = choose_layers(spec, stored, 70 * GIB)
    rank = choose_layers(spec, stored, 70 * GIB, rank=7, size=8)
    assert len(rank.large.layers) > 5 * len(whole.large.layers)
    assert (rank.large.rank, rank.large.size) == (7, 8)


def test_one_layer_less_where_nothing_can_be_spared() -> None:
    spec = catalogue("deepseek-v2-lite")
    stored = published(spec)
    least = held_by_rank(Selection((0, 1)).tensors(spec, stored)).allocated_bytes
    choice = choose_layers(spec, stored, least)
    assert choice.large.layers == (0, 1)
    assert choice.small is not None
    assert choice.small.layers == (0,)
    with pytest.raises(EnvironmentProblem):
        choose_layers(spec, stored, least - 1)


def test_what_sections_hold() -> None:
    spec = catalogue("smollm2-135m")
    stored = published(spec)
    sections = held_by_section(Selection((0, 1)).tensors(spec, stored))
    # 49,152 tokens of 576 in bfloat16; one norm of 576.
    assert sections["embedding"].requested_bytes == 49_152 * 576 * 2
    assert sections["final"] == (1, 1152, 1536, 1536)
    total = held_by_rank(Selection((0, 1)).tensors(spec, stored))
    assert sum(held.requested_bytes for held in sections.values()) == total.requested_bytes
    assert total.requested_bytes <= total.blocks_bytes <= total.allocated_bytes


def test_planning_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import moesize.verify.selection, moesize.verify.synthetic, moesize.verify.hub_files\n"
        "import moesize.verify.safetensors_files, moesize.verify.loading\n"
        "assert 'huggingface_hub' not in sys.modules and 'safetensors' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
