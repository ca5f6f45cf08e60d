"""What one accelerator offers: memory, bandwidth, peak FLOP/s, and what "one device" means.

Units: memory in bytes, bandwidth in bytes/s, rates in FLOP/s (dense, never sparse).
Three totals must not be mixed up: what is printed on the box (`advertised_gb`), what the driver
shows (`driver_total_bytes`), and what a program can allocate (`usable_memory`, the total of
`torch.cuda.mem_get_info()` on Linux). Only the last one decides whether a model fits.
"""

from __future__ import annotations

from typing import Literal

from moesize.core.records import dataclass

GIB_BYTES = 1 << 30

Basis = Literal["observed", "estimated", "given"]
DeviceKind = Literal["card", "die", "chip", "superchip", "soc", "partition", "hypothetical"]
PEAK_FORMATS = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8", "fp4")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReading:
    """Usable memory of one device in bytes, with the range it may lie in.

    `basis` says how it is known: `observed` (read on such a device), `estimated` (from a rule)
    or `given` (the user's own number). Raises ValueError unless 0 < low <= best <= high.
    """

    best_bytes: int
    low_bytes: int
    high_bytes: int
    basis: Basis
    source: str

    def __post_init__(self) -> None:
        if self.low_bytes <= 0:
            raise ValueError(f"low_bytes ({self.low_bytes}) must be above 0")
        if self.low_bytes > self.best_bytes:
            raise ValueError(
                f"low_bytes ({self.low_bytes}) is above best_bytes ({self.best_bytes})"
            )
        if self.best_bytes > self.high_bytes:
            raise ValueError(
                f"best_bytes ({self.best_bytes}) is above high_bytes ({self.high_bytes})"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRule:
    """A measured relation that predicts usable memory where nobody has read it.

    `unit` "bytes": usable = base - value; "fraction": usable = base * value. `base` is the driver
    total or the advertised size. `low` and `high` are the extremes of `value` over `observations`
    devices. Raises ValueError when low <= value <= high does not hold.
    """

    name: str
    base: Literal["driver_total", "advertised"]
    unit: Literal["bytes", "fraction"]
    value: float
    low: float
    high: float
    observations: int
    date: str
    source: str

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ValueError(
                f"{self.name}: value ({self.value}) is outside low..high ({self.low}..{self.high})"
            )
        if self.observations < 1:
            raise ValueError(f"{self.name}: observations ({self.observations}) must be at least 1")

    def estimate(self, base_bytes: int) -> MemoryReading:
        """Usable bytes of a device whose base total is `base_bytes`, marked as estimated.

        Raises ValueError when nothing is left (the rule hides more than the device has).
        """
        if self.unit == "bytes":
            best, low, high = (base_bytes - int(x) for x in (self.value, self.high, self.low))
        else:
            best, low, high = (int(base_bytes * x) for x in (self.value, self.low, self.high))
        return MemoryReading(
            best_bytes=best,
            low_bytes=low,
            high_bytes=high,
            basis="estimated",
            source=f"rule {self.name} ({self.observations} observations, {self.date}): "
            f"{self.source}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakFlops:
    """Dense peak rate of one device in FLOP/s (operations/s for int8) per number format.

    None: the hardware lacks the format, or its rate is not known. Raises ValueError for a rate
    that is not positive.
    """

    fp32: int | None = None
    tf32: int | None = None
    fp16: int | None = None
    bf16: int | None = None
    fp8: int | None = None
    int8: int | None = None
    fp4: int | None = None

    def __post_init__(self) -> None:
        for name in PEAK_FORMATS:
            rate = self.of(name)
            if rate is not None and rate <= 0:
                raise ValueError(f"peak {name} ({rate}) must be above 0")

    def of(self, number_format: str) -> int | None:
        """Rate of one of PEAK_FORMATS. Raises ValueError for any other name."""
        if number_format not in PEAK_FORMATS:
            raise ValueError(
                f"no peak rate is kept for {number_format!r}, only for {', '.join(PEAK_FORMATS)}"
            )
        rate: int | None = getattr(self, number_format)
        return rate

    def scaled(self, numerator: int, denominator: int) -> PeakFlops:
        """Rates of a part of the device: each one times numerator / denominator."""
        rates = {name: self.of(name) for name in PEAK_FORMATS}
        return PeakFlops(
            **{k: None if v is None else v * numerator // denominator for k, v in rates.items()}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSources:
    """Where each kind of fact comes from; None where there is no such fact."""

    memory: str | None = None
    driver: str | None = None
    torch: str | None = None
    bandwidth: str | None = None
    flops: str | None = None
    interconnect: str | None = None
    tdp: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """One device as a program sees it: a card, a die, a partition, ...

    Usable memory is either read (`torch_total`) or follows from `memory_rule`; exactly one of the
    two is set. None elsewhere: does not exist or is not known (`notes` says which where it
    matters). Raises ValueError when totals contradict each other.
    """

    id: str
    vendor: str
    name: str
    architecture: str
    compute_capability: str | None
    one_device_is: DeviceKind
    advertised_gb: int | None
    memory_type: str
    driver_total_bytes: int | None
    torch_total: MemoryReading | None
    memory_rule: MemoryRule | None
    memory_bandwidth_bytes_per_s: int | None
    peak_flops: PeakFlops
    tflops_basis: str
    nvlink_bytes_per_s_per_direction: int | None
    interconnect: str | None
    pcie: str | None
    tdp_w: int | None
    ecc_note: str | None
    sources: GpuSources
    confidence: str
    checked: str
    notes: str | None
    aliases: tuple[str, ...] = ()
    mig_profiles: tuple[str, ...] = ()
    parent_id: str | None = None

    def __post_init__(self) -> None:
        for name in ("advertised_gb", "driver_total_bytes", "memory_bandwidth_bytes_per_s"):
            value: int | None = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{self.id}: {name} ({value}) must be above 0")
        if (self.torch_total is None) == (self.memory_rule is None):
            raise ValueError(
                f"{self.id}: give either torch_total ({self.torch_total}) or memory_rule "
                f"({self.memory_rule}), not both and not neither"
            )
        if (
            self.torch_total is not None
            and self.driver_total_bytes is not None
            and self.torch_total.high_bytes > self.driver_total_bytes
        ):
            raise ValueError(
                f"{self.id}: torch total ({self.torch_total.high_bytes}) is above the driver "
                f"total ({self.driver_total_bytes})"
            )
        if self.memory_rule is not None and self._rule_base_bytes(self.memory_rule) is None:
            raise ValueError(
                f"{self.id}: rule {self.memory_rule.name} needs {self.memory_rule.base}, "
                "which is not known"
            )

    @property
    def advertised_bytes(self) -> int | None:
        """Size on the box in bytes. Memory is made in powers of two: an "80 GB" card has 80 GiB."""
        return None if self.advertised_gb is None else self.advertised_gb * GIB_BYTES

    def usable_memory(self) -> MemoryReading:
        """What a program can allocate on this device, in bytes: best value, range and source.

        The observed total of `torch.cuda.mem_get_info()` where there is one, else the memory rule
        applied to the driver total or the advertised size. Linux; Windows and WSL report the
        driver total itself. Leaves out what other processes and the CUDA context take.
        """
        if self.torch_total is not None:
            return self.torch_total
        assert self.memory_rule is not None  # __post_init__ guarantees it
        base_bytes = self._rule_base_bytes(self.memory_rule)
        assert base_bytes is not None
        return self.memory_rule.estimate(base_bytes)

    def peak_flops_per_s(self, number_format: str) -> int | None:
        """Dense peak in FLOP/s for fp32, tf32, fp16, bf16, fp8, int8 (ops/s) or fp4.

        None when the hardware lacks the format or the rate is not known. Raises ValueError for
        any other format name.
        """
        return self.peak_flops.of(number_format)

    def _rule_base_bytes(self, rule: MemoryRule) -> int | None:
        return self.driver_total_bytes if rule.base == "driver_total" else self.advertised_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudInstance:
    """A machine type that a cloud rents out.

    `gpu_count` is None when not known. `gpu_share` (numerator, denominator) is the part of one
    GPU that the instance gets, None when it gets whole ones. Prices are US dollars per hour, on
    demand, as read at `price_date`; None when not found. Raises ValueError for a count below 1
    or a share outside 0..1.
    """

    cloud: str
    name: str
    aliases: tuple[str, ...]
    gpu_id: str
    gpu_count: int | None
    gpu_share: tuple[int, int] | None
    vcpu: int | None
    ram_bytes: int | None
    cloud_api_gpu_memory_bytes: int | None
    interconnect: str | None
    network_bits_per_s: int | None
    price_usd_per_hour: float | None
    price_region: str | None
    price_date: str | None
    specs_source: str
    price_source: str | None
    notes: str | None

    def __post_init__(self) -> None:
        if self.gpu_count is not None and self.gpu_count < 1:
            raise ValueError(f"{self.name}: gpu_count ({self.gpu_count}) must be at least 1")
        if self.gpu_share is not None and not 0 < self.gpu_share[0] < self.gpu_share[1]:
            raise ValueError(
                f"{self.name}: gpu_share ({self.gpu_share[0]}/{self.gpu_share[1]}) must lie "
                "between 0 and 1"
            )
        if self.price_usd_per_hour is not None and not self.price_date:
            raise ValueError(
                f"{self.name}: a price ({self.price_usd_per_hour}) needs a date "
                f"({self.price_date!r})"
            )
