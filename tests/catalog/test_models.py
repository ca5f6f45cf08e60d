"""Integrity of every shipped spec, and of the index that look-ups read."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from running import ROOT, call

import moesize
from moesize.catalog import index, load_spec, nearest_names, normal_form, resolve_model, spec_folder
from moesize.core.checkpoint import hub_elements
from moesize.core.errors import MoesizeError, UnknownNameError, UnsupportedError
from moesize.core.inventory import count_parameters, inventory
from moesize.core.kv_cache import sequence_cost
from moesize.core.model_spec import ModelSpec
from moesize.core.naming import tensor_name
from moesize.importer import dump_spec

PATHS = sorted(spec_folder().glob("*.yaml"))
SPECS = {path.stem: load_spec(path) for path in PATHS}
every = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def builder() -> ModuleType:
    """scripts/build_catalogue.py as a module."""
    path = ROOT / "scripts" / "build_catalogue.py"
    loader = importlib.util.spec_from_file_location("build_catalogue", path)
    assert loader is not None
    assert loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    return module


def test_there_is_a_catalogue() -> None:
    assert len(PATHS) >= 120


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_file(path: Path) -> None:
    spec = SPECS[path.stem]
    assert spec.id == path.stem
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*[a-z0-9]", path.stem)
    assert dump_spec(spec) == path.read_text(encoding="utf-8")
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", spec.source.checked)
    assert spec.source.config
    assert spec.hub_id.count("/") == 1
    assert spec.max_context >= 512


@every
def test_counts(spec: ModelSpec) -> None:
    counts = count_parameters(spec)
    assert 0 < counts.active <= counts.total <= counts.stored
    assert counts.total == sum(counts.by_group.values())
    cost = sequence_cost(spec)
    if spec.layout:
        assert cost.bytes_per_token + cost.state_bytes_per_sequence > 0


@every
def test_published_count(spec: ModelSpec) -> None:
    """The published number of elements is ours, or the spec says in words why it is not."""
    published = spec.source.total_elements
    if published is None:
        return
    assert spec.source.total_source
    counts = count_parameters(spec)
    ours = {counts.total, counts.stored, hub_elements(spec), hub_elements(spec, scales=False)}
    if published not in ours:
        assert spec.source.note, f"published {published:,}, ours {sorted(ours)}"
        # What a note explains is a repeated head or buffers, never a layer.
        head = spec.embedding.vocab_size * spec.hidden_size
        least = min(abs(published - value) for value in ours)
        assert least <= max(head, published // 1000)


@every
def test_every_tensor_has_a_name_of_its_own(spec: ModelSpec) -> None:
    names: list[tuple[str, str]] = []
    for entry in inventory(spec):
        name = entry.name or tensor_name(spec.naming, entry.tensor.role, entry.section)
        assert name
        if entry.section in ("layers", "final", "embedding"):
            names.append((entry.block, name))
    assert names


@every
def test_it_is_planned_or_refused_with_a_reason(spec: ModelSpec) -> None:
    for gpus in (1, 8):
        problem, weights = "", 0
        try:
            plan = moesize.plan(spec, gpu="b200", gpus=gpus, suggest=False)
            weights = sum(ledger.category_bytes("weights") for ledger in plan.gpus)
        except MoesizeError as error:
            problem = error.message
        assert problem or weights > 0


def test_names_are_unique() -> None:
    owners: dict[str, str] = {}
    for spec in SPECS.values():
        for name in (spec.id, *spec.aliases):
            assert owners.setdefault(normal_form(name), spec.id) == spec.id, name


def test_index_is_current() -> None:
    assert builder().make_index() == index(), "run: python scripts/build_catalogue.py --index-only"


@pytest.mark.parametrize("name", sorted(index()["names"]))
def test_every_name_resolves(name: str) -> None:
    owner = index()["names"][name]
    spec, source = resolve_model(name)
    assert (spec.id, source) == (owner, "catalogue")


# What people type, and the model that they mean.
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("mixtral", "mixtral-8x7b"),
        ("Mixtral 8x7B", "mixtral-8x7b"),
        ("MIXTRAL_8x7B", "mixtral-8x7b"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("mixtral-8x22b", "mixtral-8x22b"),
        ("gpt-oss", "gpt-oss-120b"),
        ("openai/gpt-oss-20b", "gpt-oss-20b"),
        ("deepseek-r1", "deepseek-r1"),
        ("deepseek-ai/DeepSeek-V3-0324", "deepseek-v3"),
        ("grok", "grok-1"),
        ("grok-1", "grok-1"),
        ("switch-c", "switch-c-2048"),
        ("gpt-3", "gpt-3-175b"),
        ("llama-3.1-8b", "llama-3.1-8b"),
        ("Qwen/Qwen3-30B-A3B", "qwen3-30b-a3b"),
        ("dbrx", "dbrx"),
        ("kimi-k2", "kimi-k2"),
        ("llama-4-scout", "llama-4-scout"),
    ],
)
def test_names_that_everyone_asks_for(asked: str, expected: str) -> None:
    assert resolve_model(asked)[0].id == expected


# Published by their authors: GPT-3 (arXiv 2005.14165, table 2.1), Switch-C (arXiv 2101.03961,
# table 9: 1571B), Grok-1 (github.com/xai-org/grok-1: 314B, half a per cent below the sum of the
# shapes that were released), Mixtral (arXiv 2401.04088: 12.9B active of 46.7B), DeepSeek-V3 (arXiv
# 2412.19437: 37B active of 671B), all rounded as printed.
@pytest.mark.parametrize(
    ("name", "total_billions", "active_billions", "rounded_to"),
    [
        ("gpt-3-175b", 175, 175, 1),
        ("switch-c-2048", 1571, None, 1),
        ("grok-1", 314, None, 2),
        ("mixtral-8x7b", 46.7, 12.9, 0.1),
        ("deepseek-v3", 671, 37, 1),
    ],
)
def test_what_papers_print(
    name: str, total_billions: float, active_billions: float | None, rounded_to: float
) -> None:
    counts = count_parameters(SPECS[name])
    assert abs(counts.total / 1e9 - total_billions) <= rounded_to
    if active_billions is not None:
        assert abs(counts.active / 1e9 - active_billions) <= rounded_to


@pytest.mark.parametrize(
    "name", ["gpt-4", "GPT-4o", "gpt4", "openai/gpt-4", "gpt-5", "claude", "gemini", "o1"]
)
def test_unpublished_models_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match="never published"):
        resolve_model(name)
    assert call("plan", name, "--gpu", "h100").code == 3


def test_near_names_are_offered() -> None:
    with pytest.raises(UnknownNameError) as caught:
        resolve_model("mixtral-8x7")
    assert caught.value.suggestions[0] == "mixtral-8x7b"
    assert nearest_names("deepsek-v3")[0] == "deepseek-v3"
