"""The GPU and instance catalogue: integrity of the data, and names -> parts.

Expected values are from vendor and cloud documentation, not from our own output.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import moesize.gpus
from moesize.core.errors import InvalidInputError, UnknownNameError
from moesize.gpus import (
    AliasKind,
    find_gpu,
    list_gpus,
    list_instances,
    memory_rules,
)

MIB = 1 << 20
GIB = 1 << 30
DATA = Path(moesize.gpus.__file__).parent / "data"
DOCUMENT: dict[str, Any] = json.loads((DATA / "gpus.json").read_text(encoding="utf-8"))
ENTRIES: list[dict[str, Any]] = DOCUMENT["gpus"]
IDS = [e["id"] for e in ENTRIES]
PROFILES = [
    (e["id"], p) for e in ENTRIES for p in e.get("mig_profiles", ())
]  # (parent id, MIG profile)


def each_entry(argument: str = "entry") -> pytest.MarkDecorator:
    return pytest.mark.parametrize(argument, ENTRIES, ids=IDS)


def normalised(name: str) -> str:
    """The documented normalisation, written out again on purpose."""
    for part in (" ", "-", "_", "nvidia", "geforce", "tesla"):
        name = name.lower().replace(part, "")
    return name


# --- integrity --------------------------------------------------------------------------------


def test_entries_are_sorted_and_unique() -> None:
    assert sorted(set(IDS)) == IDS


@each_entry()
def test_every_entry_has_memory_sources_and_a_date(entry: dict[str, Any]) -> None:
    assert entry["advertised_gb"] > 0
    assert entry["memory_bandwidth_bytes_per_s"] > 10**10
    for what in ("memory", "bandwidth", "flops"):
        assert entry["sources"][what], what
    assert (entry["driver_total_bytes"] is None) == (entry["sources"]["driver"] is None)
    assert (entry["torch_total_bytes"] is None) == (entry["sources"]["torch"] is None)
    assert (entry["nvlink_bytes_per_s_per_direction"] is None) or entry["sources"]["interconnect"]
    assert entry["checked"].startswith("20")
    assert len(entry["checked"]) == len("2026-11-22")


@each_entry()
def test_driver_total_is_whole_mib_and_near_the_advertised_size(entry: dict[str, Any]) -> None:
    total = entry["driver_total_bytes"]
    if total is not None:
        assert total % MIB == 0
        # Below 100 %: ECC and the driver's own part. 85 % leaves room for inline ECC (15/16)
        # and for the B300, sold as 288 GB with 268.6 GiB.
        assert 0.85 <= total / (entry["advertised_gb"] * GIB) <= 1.01


@each_entry()
def test_torch_total_lies_below_the_driver_total(entry: dict[str, Any]) -> None:
    low, best, high = (entry[f"torch_total{k}_bytes"] for k in ("_low", "", "_high"))
    if best is None:
        assert low is None
        assert high is None
        assert entry["usable_rule"] in DOCUMENT["calibration"]
    else:
        assert low <= best <= high
        assert entry["usable_rule"] is None
        assert high <= (entry["driver_total_bytes"] or 1.01 * entry["advertised_gb"] * GIB)


@each_entry()
def test_peaks_are_plausible(entry: dict[str, Any]) -> None:
    peak = entry["peak_flops"]
    known = {k: v for k, v in peak.items() if v is not None}
    assert known
    assert all(isinstance(v, int) and 10**11 <= v <= 2 * 10**16 for v in known.values())
    # Narrower floating point is never slower. Pascal's P40 is the known exception: fp16 is a
    # 1/64-rate afterthought there.
    ladder = [peak[f] for f in ("fp32", "tf32", "fp16", "fp8", "fp4") if peak[f] is not None]
    if entry["id"] != "p40" and entry["vendor"] not in ("intel", "aws"):
        assert ladder == sorted(ladder)


@each_entry()
def test_formats_match_the_generation(entry: dict[str, Any]) -> None:
    """bf16 tensor cores from compute capability 8.0, fp8 from 8.9, fp4 from 10.0 (NVIDIA)."""
    if entry["vendor"] != "nvidia":
        assert entry["compute_capability"] is None
        return
    capability = tuple(int(x) for x in entry["compute_capability"].split("."))
    peak = entry["peak_flops"]
    assert peak["bf16"] is None or capability >= (8, 0)
    assert peak["fp8"] is None or capability >= (8, 9)
    assert peak["fp4"] is None or capability >= (10, 0)


def test_every_entry_builds_a_spec_that_is_found_by_its_own_id() -> None:
    specs = list_gpus()
    assert len(specs) >= len(ENTRIES)
    for spec in specs:
        match = find_gpu(spec.id)
        assert match.spec == spec
        assert match.note == ""
        assert match.count is None
        assert spec.usable_memory().best_bytes > 0


def test_aliases_are_unique_after_normalisation_or_declared_ambiguous() -> None:
    owners: dict[str, set[str]] = {}
    for entry in ENTRIES:
        names = [entry["id"], *(n for group in entry["aliases"].values() for n in group)]
        for name in names:
            owners.setdefault(normalised(name), set()).add(entry["id"])
    declared = {normalised(row["name"]) for row in DOCUMENT["ambiguous"]}
    assert {k: v for k, v in owners.items() if len(v) > 1 and k not in declared} == {}


def test_ambiguous_names_list_existing_parts_once() -> None:
    seen = set()
    for row in DOCUMENT["ambiguous"]:
        parts = [row["picks"], *row["others"]]
        assert len(parts) > 1, row
        assert len(set(parts)) == len(parts), row
        assert set(parts) <= set(IDS), row
        key = (row["kind"], row["name"].lower())
        assert key not in seen
        seen.add(key)


@pytest.mark.parametrize("row", DOCUMENT["ambiguous"], ids=lambda r: f"{r['kind']}-{r['name']}")
def test_ambiguous_names_say_so(row: dict[str, Any]) -> None:
    match = find_gpu(row["name"], kind=row["kind"])
    assert match.spec.id == row["picks"]
    assert set(match.candidates) == set(row["others"])
    for other in row["others"]:
        assert other in match.note


def test_every_alias_finds_its_entry() -> None:
    wrong = []
    for entry in ENTRIES:
        for kind, names in entry["aliases"].items():
            for name in names:
                spec = find_gpu(name, kind=kind).spec
                if not spec.id.startswith(entry["id"]):
                    wrong.append((name, kind, spec.id, entry["id"]))
    assert wrong == []


def hidden_class(entry: dict[str, Any]) -> str | None:
    """The rule that covers an NVIDIA part, by its driver total and generation."""
    if entry["vendor"] != "nvidia" or entry["driver_total_bytes"] is None:
        return None
    gib = entry["driver_total_bytes"] / GIB
    if gib <= 32:
        return "nvidia_hidden_up_to_32_gib"
    if gib <= 64:
        return "nvidia_hidden_32_to_64_gib"
    if entry["architecture"] == "Ampere":
        return "nvidia_hidden_ampere_80_gib"
    if entry["architecture"] == "Hopper":
        return "nvidia_hidden_hopper"
    return "nvidia_hidden_blackwell_hbm" if entry["memory_type"].startswith("HBM") else None


@pytest.mark.parametrize("name", [n for n in DOCUMENT["calibration"] if "hidden" in n])
def test_hidden_memory_constants_agree_with_the_entries(name: str) -> None:
    """A new reading must be worked into the constant that was derived from all of them."""
    rule = memory_rules()[name]
    members = [e for e in ENTRIES if hidden_class(e) == name and e["torch_total_bytes"]]
    hidden = sorted(e["driver_total_bytes"] - e["torch_total_bytes"] for e in members)
    assert rule.observations == len(members)
    assert hidden[(len(hidden) - 1) // 2] <= rule.value <= hidden[len(hidden) // 2]
    driver_minus = [
        e["driver_total_bytes"] - e[k]
        for e in members
        for k in ("torch_total_low_bytes", "torch_total_high_bytes")
    ]
    assert rule.low == min(driver_minus)
    assert rule.high == max(driver_minus)


@each_entry()
def test_estimated_parts_use_the_rule_of_their_class(entry: dict[str, Any]) -> None:
    wanted = hidden_class(entry)
    if entry["torch_total_bytes"] is None and wanted is not None:
        assert entry["usable_rule"] == wanted


def test_every_rule_is_dated_sourced_and_used() -> None:
    used = {e["usable_rule"] for e in ENTRIES} | {"mig_share_fraction"}
    used |= {r for e in ENTRIES for r in e.get("memory_options_gb", {}).values()}
    for name, rule in memory_rules().items():
        assert rule.name == name
        assert rule.date.startswith("20")
        assert rule.source
    assert set(memory_rules()) == used - {None}


@pytest.mark.parametrize(
    ("parent", "profile"), PROFILES, ids=[f"{g}:{p['name']}" for g, p in PROFILES]
)
def test_mig_profiles_are_smaller_than_their_parent(parent: str, profile: dict[str, Any]) -> None:
    spec = find_gpu(f"{parent}:{profile['name']}").spec
    whole = find_gpu(parent).spec
    slices = int(profile["name"][0])
    assert profile["compute_share"][0] == slices
    assert spec.one_device_is == "partition"
    assert spec.parent_id == parent
    assert spec.usable_memory().high_bytes <= (whole.driver_total_bytes or 0)
    # "1g.10gb" says 10 GB: the real size is a little less, and never by more than a fifth.
    nominal = int(profile["name"].split(".")[1].removesuffix("gb")) * GIB
    assert 0.8 * nominal <= spec.usable_memory().best_bytes <= nominal
    assert spec.memory_bandwidth_bytes_per_s is not None
    assert whole.memory_bandwidth_bytes_per_s is not None
    assert spec.memory_bandwidth_bytes_per_s <= whole.memory_bandwidth_bytes_per_s


def test_instances_reference_known_gpus_and_are_found_by_name() -> None:
    instances = list_instances()
    assert len({i.name for i in instances}) == len(instances)
    for instance in instances:
        assert instance.gpu_id in IDS, instance.name
        assert instance.specs_source, instance.name
        assert (instance.price_usd_per_hour is None) == (instance.price_source is None)
        if instance.price_usd_per_hour is not None:
            assert 0.1 < instance.price_usd_per_hour < 500, instance.name
            assert instance.price_region, instance.name


def test_instance_names_do_not_shadow_gpu_names() -> None:
    for instance in list_instances():
        if instance.cloud == "runpod":  # sold under the GPU's own name
            continue
        match = find_gpu(instance.name)
        assert match.instance == instance
        assert match.count == instance.gpu_count
        parent = match.spec.parent_id or match.spec.id
        assert parent == instance.gpu_id


def test_no_local_paths_or_unfinished_text_in_the_data() -> None:
    for file in ("gpus.json", "instances.json"):
        text = (DATA / file).read_text(encoding="utf-8")
        assert text.isascii()
        for word in ("/home/", "/tmp/", "file://", "TODO", "file id"):
            assert word not in text, (file, word)


# --- facts that vendors and clouds state ---------------------------------------------------------

# Vendor datasheets: bandwidth GB/s, dense bf16 (fp16 before Ampere) TFLOP/s, advertised GB.
DATASHEETS = [
    ("t4", 320, 65, 16),
    ("v100-16gb-sxm2", 900, 125, 16),
    ("a10", 600, 125, 24),
    ("a30", 933, 165, 24),
    ("a100-40gb-sxm", 1555, 312, 40),
    ("a100-80gb-sxm", 2039, 312, 80),
    ("a100-80gb-pcie", 1935, 312, 80),
    ("l4", 300, 121, 24),
    ("l40s", 864, 362, 48),
    ("h100-80gb-sxm", 3350, 989.5, 80),
    ("h100-80gb-pcie", 2000, 756, 80),
    ("h200-141gb-sxm", 4800, 989.5, 141),
    ("mi300x", 5300, 1307.4, 192),
]


@pytest.mark.parametrize(("name", "gb_per_s", "tflops", "gb"), DATASHEETS)
def test_datasheet_figures(name: str, gb_per_s: float, tflops: float, gb: int) -> None:
    spec = find_gpu(name).spec
    rate = spec.peak_flops_per_s("bf16") or spec.peak_flops_per_s("fp16")
    assert spec.advertised_gb == gb
    assert spec.memory_bandwidth_bytes_per_s == pytest.approx(gb_per_s * 1e9, rel=0.002)
    assert rate == pytest.approx(tflops * 1e12, rel=0.002)


# Totals in GiB that torch prints in out-of-memory messages and engines in their logs.
PRINTED_TOTALS = [
    ("NVIDIA A10", 22.18),  # OpenBMB/MiniCPM-V issue 640
    ("NVIDIA A30", 23.53),  # google/RB-Modulation issue 5
    ("NVIDIA A100-SXM4-40GB", 39.50),  # TianheWu/CoSeR issue 10
    ("NVIDIA A100 80GB PCIe", 79.14),  # lianqi1008/Control-GIC issue 6
    ("NVIDIA H100 80GB HBM3", 79.10),  # stas00/ml-engineering debug/pytorch.md
    ("NVIDIA H200", 139.80),  # stas00/ml-engineering debug/pytorch.md
    ("NVIDIA B200", 178.35),  # pytorch/ao pull 4002
    ("NVIDIA GeForce RTX 3090", 23.56),  # noonghunna/club-3090
]


@pytest.mark.parametrize(("name", "gib"), PRINTED_TOTALS)
def test_printed_totals_lie_in_the_range(name: str, gib: float) -> None:
    usable = find_gpu(name).spec.usable_memory()
    assert usable.basis == "observed"
    half_a_digit = 0.005 * GIB
    assert usable.low_bytes - half_a_digit <= gib * GIB <= usable.high_bytes + half_a_digit
    assert usable.best_bytes == pytest.approx(gib * GIB, rel=0.005)


def test_a10g_is_sold_as_24_gb_and_hands_out_22_gib() -> None:
    spec = find_gpu("NVIDIA A10G").spec
    assert spec.advertised_gb == 24
    assert spec.driver_total_bytes == 23028 * MIB  # nvidia-smi in NVIDIA/TensorRT-LLM issue 7818
    assert spec.usable_memory().low_bytes > 22.0 * GIB
    assert spec.usable_memory().high_bytes < 22.25 * GIB
    # 80 SMs at the GeForce half rate: not the A10's 125.
    assert spec.peak_flops_per_s("bf16") == 70 * 10**12


# `nvidia-smi mig -lgip` of an H100 80 GB (jbarrow.ai/field_notes/nvidia-mig) and NVIDIA's table.
@pytest.mark.parametrize(
    ("profile", "gib", "sevenths", "eighths"),
    [("1g.10gb", 9.75, 1, 1), ("2g.20gb", 19.62, 2, 2), ("3g.40gb", 39.5, 3, 4)],
)
def test_h100_mig_profiles(profile: str, gib: float, sevenths: int, eighths: int) -> None:
    spec = find_gpu(f"h100-sxm:{profile}").spec
    assert spec.usable_memory().best_bytes == pytest.approx(gib * GIB, abs=0.005 * GIB)
    assert spec.memory_bandwidth_bytes_per_s == 3_350_000_000_000 * eighths // 8
    assert spec.peak_flops_per_s("bf16") == 989_500_000_000_000 * sevenths // 7
    assert spec.nvlink_bytes_per_s_per_direction is None


# --- names ------------------------------------------------------------------------------------

UNAMBIGUOUS = [
    ("a10g", "a10g"),
    ("A10G", "a10g"),
    ("  nvidia a10g ", "a10g"),
    ("NVIDIA-A10G", "a10g"),
    ("NVIDIA H100 80GB HBM3", "h100-80gb-sxm"),
    ("NVIDIA-H100-80GB-HBM3", "h100-80gb-sxm"),
    ("NVIDIA H100 PCIe", "h100-80gb-pcie"),
    ("NVIDIA H100 NVL", "h100-94gb-nvl"),
    ("NVIDIA H200", "h200-141gb-sxm"),
    ("NVIDIA A100-SXM4-40GB", "a100-40gb-sxm"),
    ("NVIDIA A100-SXM4-80GB", "a100-80gb-sxm"),
    ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"),
    ("A100-SXM4-80GB", "a100-80gb-sxm"),
    ("Tesla T4", "t4"),
    ("Tesla-T4", "t4"),
    ("Tesla V100-SXM2-32GB", "v100-32gb-sxm2"),
    ("nvidia-l4", "l4"),
    ("nvidia-tesla-t4", "t4"),
    # On GKE this label means the 40 GB part; the 80 GB one is nvidia-a100-80gb.
    ("nvidia-tesla-a100", "a100-40gb-sxm"),
    ("nvidia-a100-80gb", "a100-80gb-sxm"),
    ("nvidia-h100-80gb", "h100-80gb-sxm"),
    ("nvidia-h100-mega-80gb", "h100-80gb-sxm"),
    ("nvidia-h200-141gb", "h200-141gb-sxm"),
    ("rtx 4090", "rtx-4090"),
    ("4090", "rtx-4090"),
    ("NVIDIA GeForce RTX 3090", "rtx-3090"),
    ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
    ("NVIDIA GH200 480GB", "gh200-96gb"),
    ("AMD Instinct MI300X", "mi300x"),
    ("dgx-spark", "gb10-dgx-spark"),
    ("0x1EB810DE", "t4"),
    ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "a100-80gb-sxm:1g.10gb"),
    ("NVIDIA-A100-SXM4-40GB-MIG-3g.20gb", "a100-40gb-sxm:3g.20gb"),
    ("a30:1g.6gb", "a30:1g.6gb"),
    ("h100-pcie 2g.20gb", "h100-80gb-pcie:2g.20gb"),
    ("b200:1g.23gb+me", "b200-180gb-sxm:1g.23gb"),
    ("m1 max 64gb", "apple-m1-max-64gb"),
    ("Apple M1 Max 64 GB", "apple-m1-max-64gb"),
    ("m1-8gb", "apple-m1-8gb"),
]


@pytest.mark.parametrize(("name", "gpu_id"), UNAMBIGUOUS)
def test_names_that_mean_one_part(name: str, gpu_id: str) -> None:
    match = find_gpu(name)
    assert match.spec.id == gpu_id
    assert match.note == ""
    assert match.candidates == ()
    assert match.count is None


# What AWS, Azure and Google list for these machine types.
INSTANCES = [
    ("g4dn.xlarge", "t4", 1),
    ("g5.xlarge", "a10g", 1),
    ("g5.12xlarge", "a10g", 4),
    ("g5.48xlarge", "a10g", 8),
    ("G5.12XLARGE", "a10g", 4),
    ("ml.g5.12xlarge", "a10g", 4),
    ("g6.12xlarge", "l4", 4),
    ("g6e.48xlarge", "l40s", 8),
    ("p4d.24xlarge", "a100-40gb-sxm", 8),
    ("p4de.24xlarge", "a100-80gb-sxm", 8),
    ("p5.48xlarge", "h100-80gb-sxm", 8),
    ("p5en.48xlarge", "h200-141gb-sxm", 8),
    ("Standard_NC24ads_A100_v4", "a100-80gb-pcie", 1),
    ("NC24ads_A100_v4", "a100-80gb-pcie", 1),
    ("Standard_ND96isr_H100_v5", "h100-80gb-sxm", 8),
    ("Standard_ND96isr_MI300X_v5", "mi300x", 8),
    ("a2-highgpu-8g", "a100-40gb-sxm", 8),
    ("a2-ultragpu-1g", "a100-80gb-sxm", 1),
    ("a3-highgpu-8g", "h100-80gb-sxm", 8),
    ("g2-standard-24", "l4", 2),
]


@pytest.mark.parametrize(("name", "gpu_id", "count"), INSTANCES)
def test_cloud_instances(name: str, gpu_id: str, count: int) -> None:
    match = find_gpu(name)
    assert (match.spec.id, match.count) == (gpu_id, count)
    assert match.instance is not None
    assert gpu_id in match.note


def test_g5_12xlarge_has_48_vcpus_and_192_gib() -> None:
    instance = find_gpu("g5.12xlarge").instance
    assert instance is not None
    assert instance.vcpu == 48
    assert instance.ram_bytes == 192 * GIB


def test_a_part_of_a_gpu_is_a_partition_with_a_part_of_its_memory() -> None:
    """AWS g6f.large: one eighth of an L4; its API says 2861 MiB."""
    match = find_gpu("g6f.large")
    assert match.count == 1
    assert match.spec.one_device_is == "partition"
    usable = match.spec.usable_memory()
    assert usable.basis == "estimated"
    assert usable.best_bytes == pytest.approx(2861 * MIB, rel=0.05)
    assert match.spec.memory_bandwidth_bytes_per_s == 300_000_000_000 // 8


def test_an_unknown_number_of_gpus_is_not_guessed() -> None:
    match = find_gpu("Standard_NC8ads_A10_v4")
    assert match.spec.id == "a10"
    assert match.count is None
    assert "not known" in match.note


def test_h100_alone_is_the_sxm_part_and_says_so() -> None:
    match = find_gpu("h100")
    assert match.spec.id == "h100-80gb-sxm"
    assert set(match.candidates) == {"h100-80gb-pcie", "h100-94gb-nvl"}
    assert "h100-94gb-nvl" in match.note


@pytest.mark.parametrize(
    ("name", "kind", "gpu_id"),
    [
        # AWS has A100 40 GB in p4d and 80 GB in p4de; both carry the label a100.
        ("a100", "karpenter", "a100-40gb-sxm"),
        ("a100", None, "a100-80gb-sxm"),
        # AWS has no other H100 than the SXM one.
        ("h100", "karpenter", "h100-80gb-sxm"),
    ],
)
def test_the_vocabulary_decides(name: str, kind: AliasKind | None, gpu_id: str) -> None:
    assert find_gpu(name, kind=kind).spec.id == gpu_id


def test_a_name_that_its_vocabulary_lacks_is_still_found() -> None:
    assert find_gpu("NVIDIA A10G", kind="karpenter").spec.id == "a10g"


def test_the_karpenter_label_h100_is_not_ambiguous() -> None:
    assert find_gpu("h100", kind="karpenter").note == ""


def test_the_driver_name_of_the_4090_warns_of_the_48_gb_mod() -> None:
    assert find_gpu("NVIDIA GeForce RTX 4090").candidates == ("rtx-4090-48gb",)


@pytest.mark.parametrize(
    "name", ["1g.10gb", "mig-1g.10gb", "nvidia.com/mig-1g.10gb", "nvidia.com/mig-1g.10gb.me"]
)
def test_a_mig_profile_alone_is_ambiguous_by_its_parent(name: str) -> None:
    match = find_gpu(name)
    assert match.spec.id.endswith(":1g.10gb")
    assert {"h100-80gb-sxm:1g.10gb", "a100-40gb-sxm:1g.10gb"} <= set(match.candidates)
    best = match.spec.usable_memory().best_bytes
    for other in match.candidates:
        assert best <= find_gpu(other).spec.usable_memory().best_bytes
        assert other in match.note


def test_a_mig_profile_of_one_part_alone_names_that_part() -> None:
    """1g.6gb exists on the A30 only (NVIDIA MIG user guide)."""
    match = find_gpu("nvidia.com/mig-1g.6gb")
    assert match.spec.id == "a30:1g.6gb"
    assert match.candidates == ()
    assert "a30" in match.note


def test_a_mig_profile_narrows_an_ambiguous_parent() -> None:
    """1g.5gb exists on the 40 GB A100 only (NVIDIA MIG user guide)."""
    match = find_gpu("a100:1g.5gb")
    assert match.spec.id == "a100-40gb-sxm:1g.5gb"
    assert match.candidates == ("a100-40gb-pcie:1g.5gb",)


def test_a_profile_that_the_gpu_lacks_names_those_that_it_has() -> None:
    with pytest.raises(UnknownNameError) as caught:
        find_gpu("a30:1g.10gb")
    assert caught.value.suggestions == ("a30:1g.6gb", "a30:2g.12gb", "a30:4g.24gb")


def test_a_gpu_without_mig_has_no_profiles() -> None:
    with pytest.raises(UnknownNameError):
        find_gpu("l4:1g.10gb")


@pytest.mark.parametrize(
    ("name", "gpu_id"),
    [
        ("NVIDIA-A10G-SHARED", "a10g"),
        ("Tesla-T4-SHARED", "t4"),
        ("NVIDIA-A100-SXM4-80GB-MIG-1g.10gb-SHARED", "a100-80gb-sxm:1g.10gb"),
    ],
)
def test_time_sliced_labels_say_that_memory_is_shared(name: str, gpu_id: str) -> None:
    match = find_gpu(name)
    assert match.spec.id == gpu_id
    assert "share the memory" in match.note


def test_a_chip_with_several_memory_sizes_assumes_the_smallest_and_says_so() -> None:
    match = find_gpu("m1-max")
    assert match.spec.id == "apple-m1-max-32gb"
    assert match.candidates == ("apple-m1-max-64gb",)
    assert "64" in match.note


@pytest.mark.parametrize(
    ("gb", "mib"),
    # recommendedMaxWorkingSetSize: exo pull 1672, ollama issue 434
    [(16, 10926), (32, 21845)],
)
def test_apple_gpus_may_use_two_thirds_of_small_memory(gb: int, mib: int) -> None:
    chip = {16: "m1", 32: "m2-max"}[gb]
    usable = find_gpu(f"{chip}-{gb}gb").spec.usable_memory()
    assert usable.basis == "estimated"
    assert usable.best_bytes == pytest.approx(mib * MIB, rel=0.001)


@pytest.mark.parametrize(
    ("name", "size_bytes"),
    [("24GiB", 24 * GIB), ("24 GB", 24 * 10**9), ("81559MiB", 81559 * MIB)],
)
def test_a_size_is_a_hypothetical_device_with_exactly_that(name: str, size_bytes: int) -> None:
    match = find_gpu(name)
    usable = match.spec.usable_memory()
    assert (usable.low_bytes, usable.best_bytes, usable.high_bytes) == (size_bytes,) * 3
    assert usable.basis == "given"
    assert match.spec.one_device_is == "hypothetical"
    assert match.spec.memory_bandwidth_bytes_per_s is None
    assert match.spec.peak_flops_per_s("bf16") is None
    assert "not known" in match.note


def test_a_size_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no memory"):
        find_gpu("0GiB")


BAD_NAMES = [
    "",
    "   ",
    "x" * 10_000,
    "9" * 10_000,
    "1g." * 3_000 + "gb",
    "h100" * 49,
    "gpu",
    "a11g",
    "a1",
    "NVIDIA",
    "nvidia.com/gpu",
    ":",
    ":1g.10gb:",
    "mig",
    "a100-80gb:",
    "0g.0gb",
    "h100:0g.0gb",
    "no-such-gpu:1g.10gb",
    "no-such-gpu-SHARED",
    "1g.11gb",
    "\u2603",
    "\uff41\uff11\uff10\uff10",  # full-width a100
    "\u0661\u0660GiB",  # Arabic-Indic digits
    "\u00b2g.\u00b2gb",
    "a10g\x00",
    "\x1b[31ma10g\x1b[0m",
    "a10g\na10g",
    "1e3GiB",
    "-24GiB",
    "24",
    "../../etc/passwd",
    "{}",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_bad_names_are_refused_quickly_and_printably(name: str) -> None:
    find_gpu("a10g")  # the data is read once per process: not part of this measurement
    start = time.process_time()
    with pytest.raises(UnknownNameError) as caught:
        find_gpu(name)
    assert time.process_time() - start < 10
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("a11g", "a10g"),
        ("rtx-309O", "rtx-3090"),
        ("g5.12xlarg", "g5.12xlarge"),
        ("24", "24GiB"),
        ("apple-m1-mx-64gb", "apple-m1-max-64gb"),
    ],
)
def test_near_names_are_suggested_and_work(name: str, wanted: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        find_gpu(name)
    assert wanted in caught.value.suggestions
    for suggestion in caught.value.suggestions:
        find_gpu(suggestion)


def test_list_gpus_filters_by_a_word_in_any_name() -> None:
    assert {s.id for s in list_gpus("H100")} == {
        "h100-80gb-sxm",
        "h100-80gb-pcie",
        "h100-94gb-nvl",
    }
    assert {s.id for s in list_gpus("trillium")} == {"tpu-v6e"}
    assert list_gpus("no such thing") == []
    assert {s.vendor for s in list_gpus("amd instinct")} == {"amd"}


def test_list_instances_filters_by_gpu_cloud_and_word() -> None:
    g5 = list_instances("g5.")
    assert {i.name for i in g5} >= {"g5.xlarge", "g5.48xlarge"}
    assert {i.gpu_id for i in g5} == {"a10g"}
    assert {i.cloud for i in list_instances(cloud="azure")} == {"azure"}
    assert {i.gpu_id for i in list_instances(gpu_id="mi300x")} == {"mi300x"}
    assert list_instances("g5.", cloud="gcp") == []


def test_a_look_up_loads_nothing_heavy() -> None:
    """`plan` must start at once: nothing but the standard library, and difflib not at all."""
    code = (
        "import sys; from moesize.gpus import find_gpu; find_gpu('g5.12xlarge'); "
        "print(*sorted(m for m in ('difflib', 'importlib.resources', 'pydantic', 'yaml', "
        "'numpy', 'torch', 'rich') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(moesize.gpus.__file__).parent.parent,
    )
    assert done.stdout.split() == []
