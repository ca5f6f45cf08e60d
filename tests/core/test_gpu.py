"""GpuSpec and its parts: small numbers worked by hand."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest

from moesize.core.gpu import (
    PEAK_FORMATS,
    CloudInstance,
    GpuSources,
    GpuSpec,
    MemoryReading,
    MemoryRule,
    PeakFlops,
)

MIB = 1 << 20


def reading(low_mib: int, best_mib: int, high_mib: int) -> MemoryReading:
    return MemoryReading(
        low_bytes=low_mib * MIB,
        best_bytes=best_mib * MIB,
        high_bytes=high_mib * MIB,
        basis="observed",
        source="a log",
    )


HIDES_400_MIB = MemoryRule(
    name="hides_400",
    base="driver_total",
    unit="bytes",
    value=400 * MIB,
    low=300 * MIB,
    high=500 * MIB,
    observations=3,
    date="2026-01-01",
    source="three logs",
)
NINE_TENTHS = replace(
    HIDES_400_MIB,
    name="nine_tenths",
    base="advertised",
    unit="fraction",
    value=0.75,
    low=0.5,
    high=1.0,
)


def card(
    *,
    torch_total: MemoryReading | None = None,
    memory_rule: MemoryRule | None = None,
    driver_total_mib: int | None = 24000,
    advertised_gb: int | None = 24,
    bandwidth: int | None = 600,
) -> GpuSpec:
    return GpuSpec(
        id="card",
        vendor="nvidia",
        name="A card",
        architecture="Ampere",
        compute_capability="8.6",
        one_device_is="card",
        advertised_gb=advertised_gb,
        memory_type="GDDR6",
        driver_total_bytes=None if driver_total_mib is None else driver_total_mib * MIB,
        torch_total=torch_total,
        memory_rule=memory_rule,
        memory_bandwidth_bytes_per_s=bandwidth,
        peak_flops=PeakFlops(fp16=70, bf16=70, int8=141),
        tflops_basis="dense",
        nvlink_bytes_per_s_per_direction=None,
        interconnect=None,
        pcie=None,
        tdp_w=None,
        ecc_note=None,
        sources=GpuSources(memory="a page"),
        confidence="high",
        checked="2026-01-01",
        notes=None,
    )


def test_usable_memory_is_the_observed_total_when_there_is_one() -> None:
    observed = reading(22500, 22600, 22700)
    assert card(torch_total=observed).usable_memory() == observed


def test_usable_memory_is_estimated_from_the_driver_total_otherwise() -> None:
    usable = card(memory_rule=HIDES_400_MIB).usable_memory()
    assert usable.basis == "estimated"
    assert (usable.low_bytes, usable.best_bytes, usable.high_bytes) == (
        23500 * MIB,
        23600 * MIB,
        23700 * MIB,
    )
    assert "hides_400" in usable.source
    assert "3 observations" in usable.source


def test_a_fraction_rule_uses_the_advertised_size_in_powers_of_two() -> None:
    usable = card(memory_rule=NINE_TENTHS, driver_total_mib=None).usable_memory()
    assert usable.best_bytes == 18 * 1024 * MIB
    assert usable.low_bytes == 12 * 1024 * MIB
    assert usable.high_bytes == 24 * 1024 * MIB


def test_advertised_bytes_are_gib() -> None:
    assert card(memory_rule=HIDES_400_MIB).advertised_bytes == 25_769_803_776


def test_peak_of_a_format_that_the_hardware_lacks_is_none() -> None:
    spec = card(memory_rule=HIDES_400_MIB)
    assert spec.peak_flops_per_s("bf16") == 70
    assert spec.peak_flops_per_s("fp8") is None


def test_peak_of_an_unknown_format_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"fp7.*bf16"):
        card(memory_rule=HIDES_400_MIB).peak_flops_per_s("fp7")


@pytest.mark.parametrize("name", ["of", "scaled", "__class__", ""])
def test_a_format_name_never_reaches_another_attribute(name: str) -> None:
    with pytest.raises(ValueError, match="no peak rate"):
        PeakFlops(fp16=1).of(name)


def test_scaled_rates_are_whole_and_keep_what_is_missing() -> None:
    part = PeakFlops(fp16=70, int8=141).scaled(1, 7)
    assert {name: part.of(name) for name in PEAK_FORMATS} == {
        "fp32": None,
        "tf32": None,
        "fp16": 10,
        "bf16": None,
        "fp8": None,
        "int8": 20,
        "fp4": None,
    }


def test_specs_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        card(memory_rule=HIDES_400_MIB).id = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("low", "best", "high", "both"),
    [(0, 1, 2, "0"), (3, 2, 4, "3145728.*2097152"), (1, 5, 4, "5242880.*4194304")],
)
def test_a_reading_out_of_order_is_refused(low: int, best: int, high: int, both: str) -> None:
    with pytest.raises(ValueError, match=both):
        reading(low, best, high)


def test_a_rule_out_of_order_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.3.*0\.5"):
        replace(NINE_TENTHS, value=0.3)


def test_a_rule_without_observations_is_refused() -> None:
    with pytest.raises(ValueError, match="observations \\(0\\)"):
        replace(NINE_TENTHS, observations=0)


def test_a_rule_that_hides_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="low_bytes"):
        HIDES_400_MIB.estimate(450 * MIB)


def test_a_torch_total_above_the_driver_total_is_refused() -> None:
    with pytest.raises(ValueError, match=f"{24001 * MIB}.*{24000 * MIB}"):
        card(torch_total=reading(1, 2, 24001))


def test_a_spec_needs_exactly_one_origin_of_usable_memory() -> None:
    with pytest.raises(ValueError, match="either"):
        card()
    with pytest.raises(ValueError, match="either"):
        card(torch_total=reading(1, 2, 3), memory_rule=HIDES_400_MIB)


@pytest.mark.parametrize(
    ("rule", "missing"), [(HIDES_400_MIB, "driver_total"), (NINE_TENTHS, "advertised")]
)
def test_a_rule_whose_base_is_unknown_is_refused(rule: MemoryRule, missing: str) -> None:
    with pytest.raises(ValueError, match=f"needs {missing}"):
        card(memory_rule=rule, driver_total_mib=None, advertised_gb=None)


@pytest.mark.parametrize("field", ["driver_total_mib", "advertised_gb", "bandwidth"])
def test_a_size_of_zero_is_refused(field: str) -> None:
    kwargs: dict[str, int] = {field: 0}
    with pytest.raises(ValueError, match="must be above 0"):
        card(memory_rule=HIDES_400_MIB, **kwargs)  # type: ignore[arg-type]


def test_a_peak_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="fp8 \\(0\\)"):
        PeakFlops(fp8=0)


def instance() -> CloudInstance:
    return CloudInstance(
        cloud="aws",
        name="x1.large",
        aliases=(),
        gpu_id="card",
        gpu_count=1,
        gpu_share=None,
        vcpu=4,
        ram_bytes=1,
        cloud_api_gpu_memory_bytes=None,
        interconnect=None,
        network_bits_per_s=None,
        price_usd_per_hour=1.0,
        price_region="here",
        price_date="2026-01-01",
        specs_source="a page",
        price_source="a page",
        notes=None,
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"gpu_count": 0}, "gpu_count \\(0\\)"),
        ({"gpu_share": (1, 1)}, "1/1"),
        ({"gpu_share": (0, 4)}, "0/4"),
        ({"price_date": None}, "needs a date"),
    ],
)
def test_an_instance_that_contradicts_itself_is_refused(
    change: dict[str, object], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        replace(instance(), **change)  # type: ignore[arg-type]
