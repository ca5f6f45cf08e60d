"""Name -> accelerator: the catalogue of GPUs and cloud instances in `data/`.

A name is matched exactly after normalisation, never by substring: a driver that says
"NVIDIA A100" must not become an A10. Order: the exact spelling of a driver, label or PCI id;
the normalised name; a MIG profile; a size such as 24GiB; a cloud instance.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from moesize.core.errors import InvalidInputError, UnknownNameError
from moesize.core.gpu import (
    CloudInstance,
    GpuSources,
    GpuSpec,
    MemoryReading,
    MemoryRule,
    PeakFlops,
)
from moesize.core.records import dataclass
from moesize.core.units import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

AliasKind = Literal["typed", "driver", "torch", "kubernetes", "gke", "karpenter", "metal", "pci"]

_DATA = Path(__file__).parent / "data"
_LIST_COMMAND = "moesize gpus"
# No accelerator is called by a longer name; longer text is not worth comparing.
_MAX_NAME_CHARACTERS = 200
_NUM_SUGGESTIONS = 3
_SHARED_SUFFIX = "-shared"
# Short words that people use loosely: they never count as the exact spelling of a device name.
_LOOSE_KINDS = ("typed", "karpenter")
_MIG_RESOURCE_PREFIX = "nvidia.com/"
# Variants of a MIG profile that differ in media engines only, not in memory or SMs.
_MIG_VARIANTS = ("+me.all", "+gfx", "+me", ".me", "-me")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMatch:
    """What a name stands for.

    `count` is the number of GPUs when the name was a cloud instance, else None. `note` says what
    was assumed ("" when nothing was). `candidates` are the ids that the name could also mean.
    """

    spec: GpuSpec
    count: int | None = None
    note: str = ""
    candidates: tuple[str, ...] = ()
    instance: CloudInstance | None = None


def find_gpu(name: str, *, kind: AliasKind | None = None) -> GpuMatch:
    """The accelerator that `name` stands for.

    Accepts a catalogue id, an alias, a driver or torch device name, a Kubernetes, GKE or Karpenter
    label value, a MIG profile with or without its GPU (`h100:1g.10gb`), a cloud instance and a
    size (`24GiB`: a hypothetical device with exactly that much usable memory). `kind` says which
    vocabulary the name is from, where one word means different parts ("a100" in a Karpenter
    label). Raises UnknownNameError, and InvalidInputError for a size of 0.
    """
    text = name.strip()
    if not text or len(text) > _MAX_NAME_CHARACTERS:
        raise UnknownNameError("GPU", name, (), _LIST_COMMAND)
    match = (
        _find_whole(text, kind)
        or _find_shared(text, kind)
        or _find_mig(text, kind)
        or _find_size(text)
        or _find_instance(text)
    )
    if match is None:
        raise UnknownNameError("GPU", name, _suggest(text), _LIST_COMMAND)
    return match


def list_gpus(word: str | None = None) -> list[GpuSpec]:
    """All accelerators in the order of their ids, or those that `word` occurs in.

    Chips sold with several memory sizes appear once per size. MIG profiles are not listed; each
    spec names its own.
    """
    specs = [spec for entry in _entries() for spec in _variants(entry)]
    if word is None:
        return specs
    wanted = _normalise(word)
    return [
        s
        for s in specs
        if any(
            wanted in _normalise(t) for t in (s.id, s.name, s.vendor, s.architecture, *s.aliases)
        )
    ]


def list_instances(
    word: str | None = None, *, gpu_id: str | None = None, cloud: str | None = None
) -> list[CloudInstance]:
    """Cloud instances by cloud and name, all or those that fit every condition given."""
    wanted = None if word is None else _normalise(word)
    return [
        i
        for i in map(_instance, _instance_rows())
        if (gpu_id is None or i.gpu_id == gpu_id)
        and (cloud is None or i.cloud == cloud)
        and (
            wanted is None
            or any(wanted in _normalise(t) for t in (i.name, i.cloud, i.gpu_id, *i.aliases))
        )
    ]


def memory_rules() -> Mapping[str, MemoryRule]:
    """The calibration constants: rules that estimate usable memory where nobody has read it."""
    return _rules()


# --- reading the data files -------------------------------------------------------------------


@cache
def _document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((_DATA / "gpus.json").read_bytes())
    return document


def _entries() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = _document()["gpus"]
    return entries


@cache
def _entry_by_id() -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in _entries()}


@cache
def _rules() -> dict[str, MemoryRule]:
    return {key: MemoryRule(**value) for key, value in _document()["calibration"].items()}


@cache
def _instance_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((_DATA / "instances.json").read_bytes())["instances"]
    return rows


def _instance(row: dict[str, Any]) -> CloudInstance:
    fields = dict(row)
    sources = fields.pop("sources")
    share = fields.pop("gpu_share")
    return CloudInstance(
        gpu_id=fields.pop("gpu"),
        gpu_share=(share[0], share[1]) if share else None,
        aliases=tuple(fields.pop("aliases")),
        specs_source=sources["specs"],
        price_source=sources["price"],
        **fields,
    )


@cache
def _spec(gpu_id: str) -> GpuSpec:
    return _build(_entry_by_id()[gpu_id])


def _build(entry: dict[str, Any]) -> GpuSpec:
    fields = dict(entry)
    best, low, high = (fields.pop(f"torch_total{part}_bytes") for part in ("", "_low", "_high"))
    sources = GpuSources(**fields.pop("sources"))
    rule_name = fields.pop("usable_rule")
    fields.pop("memory_options_gb", None)
    return GpuSpec(
        torch_total=None
        if best is None
        else MemoryReading(
            best_bytes=best,
            low_bytes=low,
            high_bytes=high,
            basis="observed",
            source=sources.torch or "",
        ),
        memory_rule=_rules()[rule_name] if rule_name else None,
        peak_flops=PeakFlops(**fields.pop("peak_flops")),
        sources=sources,
        aliases=tuple(a for names in fields.pop("aliases").values() for a in names),
        mig_profiles=tuple(p["name"] for p in fields.pop("mig_profiles", ())),
        **fields,
    )


def _variants(entry: dict[str, Any]) -> Iterator[GpuSpec]:
    """The spec of an entry, or one per memory size where the chip comes with several."""
    sizes = entry.get("memory_options_gb")
    if sizes is None:
        yield _spec(entry["id"])
    else:
        for size in sizes:
            yield _with_memory(entry, size)


def _with_memory(entry: dict[str, Any], size_gb: str) -> GpuSpec:
    return replace(
        _spec(entry["id"]),
        id=f"{entry['id']}-{size_gb}gb",
        name=f"{entry['name']} {size_gb} GB",
        advertised_gb=int(size_gb),
        memory_rule=_rules()[entry["memory_options_gb"][size_gb]],
    )


# --- the index of names -----------------------------------------------------------------------


class _Index:
    """Names to gpu ids, and names to rows of the list of ambiguous names.

    A plain class: a dataclass would cost start-up time and give nothing here.
    """

    def __init__(self) -> None:
        self.exact: dict[str, str] = {}  # lower-cased driver names, labels and PCI ids
        self.by_kind: dict[tuple[str, str], str] = {}  # (kind, lower-cased name)
        self.normalised: dict[str, str] = {}  # normalised names of every kind
        self.ambiguous: dict[tuple[str, str], dict[str, Any]] = {}  # (kind, lower-cased name)
        self.ambiguous_exact: dict[str, dict[str, Any]] = {}  # as `exact`
        self.ambiguous_typed: dict[str, dict[str, Any]] = {}  # normalised typed names


def _normalise(text: str) -> str:
    """Lower case without spaces, '-', '_' and the words nvidia, geforce and tesla."""
    text = text.lower().replace(" ", "").replace("-", "").replace("_", "")
    return text.replace("nvidia", "").replace("geforce", "").replace("tesla", "")


@cache
def _index() -> _Index:
    index = _Index()
    for entry in _entries():
        gpu_id = entry["id"]
        index.exact[gpu_id] = gpu_id
        index.normalised[_normalise(gpu_id)] = gpu_id
        for kind, names in entry["aliases"].items():
            for name in names:
                lower = name.lower()
                index.by_kind[kind, lower] = gpu_id
                if kind not in _LOOSE_KINDS:
                    index.exact.setdefault(lower, gpu_id)
                index.normalised.setdefault(_normalise(name), gpu_id)
    for row in _document()["ambiguous"]:
        kind, lower = row["kind"], row["name"].lower()
        index.ambiguous[kind, lower] = row
        if kind == "typed":
            index.ambiguous_typed[_normalise(lower)] = row
        elif kind not in _LOOSE_KINDS:
            index.ambiguous_exact[lower] = row
    return index


def _find_whole(text: str, kind: AliasKind | None) -> GpuMatch | None:
    index = _index()
    lower = " ".join(text.lower().split())
    key = _normalise(lower)
    if kind is not None:
        if (row := index.ambiguous.get((kind, lower))) is not None:
            return _ambiguous(text, row)
        if (gpu_id := index.by_kind.get((kind, lower))) is not None:
            return _whole(text, gpu_id)
    if (row := index.ambiguous_exact.get(lower)) is not None:
        return _ambiguous(text, row)
    if (gpu_id := index.exact.get(lower)) is not None:
        return _whole(text, gpu_id)
    if (row := index.ambiguous_typed.get(key)) is not None:
        return _ambiguous(text, row)
    if (gpu_id := index.normalised.get(key)) is not None:
        return _whole(text, gpu_id)
    return _find_memory_variant(key)


def _whole(text: str, gpu_id: str) -> GpuMatch:
    entry = _entry_by_id()[gpu_id]
    sizes = list(entry.get("memory_options_gb", ()))
    if not sizes:
        return GpuMatch(spec=_spec(gpu_id))
    # The smallest: what fits there fits every other size.
    ids = tuple(f"{gpu_id}-{size}gb" for size in sizes)
    return GpuMatch(
        spec=_with_memory(entry, sizes[0]),
        note=f"{text!r} comes with {', '.join(sizes)} GB; assumed {ids[0]}",
        candidates=ids[1:],
    )


def _ambiguous(text: str, row: dict[str, Any]) -> GpuMatch:
    others = tuple(row["others"])
    return GpuMatch(
        spec=_spec(row["picks"]),
        note=f"{text!r} can mean several parts; assumed {row['picks']}, "
        f"could also be {', '.join(others)}",
        candidates=others,
    )


def _find_memory_variant(key: str) -> GpuMatch | None:
    """`m1max64gb`: a chip that comes with several sizes, followed by one of them."""
    head = key.removesuffix("b").removesuffix("g")
    chip = head.rstrip("0123456789")
    size = head[len(chip) :]
    # "m164gb" ends in three digits: the chip's own number comes first.
    for cut in range(len(size)):
        entry = _entry_by_id().get(_index().normalised.get(chip + size[:cut], ""))
        if entry is not None and size[cut:] in entry.get("memory_options_gb", ()):
            return GpuMatch(spec=_with_memory(entry, size[cut:]))
    return None


def _find_shared(text: str, kind: AliasKind | None) -> GpuMatch | None:
    """`NVIDIA-A10G-SHARED`: the device plugin's name for a GPU that pods take turns on."""
    if not text.lower().endswith(_SHARED_SUFFIX):
        return None
    unshared = text[: -len(_SHARED_SUFFIX)]
    match = _find_whole(unshared, kind) or _find_mig(unshared, kind)
    if match is None:
        return None
    note = "time-sliced: several pods share the memory of this GPU"
    return replace(match, note=f"{match.note}; {note}" if match.note else note)


# --- MIG --------------------------------------------------------------------------------------


def _find_mig(text: str, kind: AliasKind | None) -> GpuMatch | None:
    split = _split_mig(text)
    if split is None:
        return None
    head, profile = split
    if not head:
        return _bare_mig(text, profile)
    parent = _find_whole(head, kind)
    if parent is None:
        return None
    ids = (parent.spec.id, *parent.candidates)
    fitting = [i for i in ids if i in _entry_by_id() and _profile(i, profile) is not None]
    if not fitting:
        known = [f"{parent.spec.id}:{p}" for p in parent.spec.mig_profiles]
        raise UnknownNameError("MIG profile", text, known, _LIST_COMMAND)
    others = tuple(f"{i}:{profile}" for i in fitting[1:])
    note = ""
    if len(ids) > 1:
        note = f"{head!r} can mean several parts; assumed {fitting[0]}"
        note += f", could also be {', '.join(others)}" if others else f", which has {profile}"
    return GpuMatch(spec=_partition(fitting[0], profile), note=note, candidates=others)


def _split_mig(text: str) -> tuple[str, str] | None:
    """(`h100`, `1g.10gb`) from `h100:1g.10gb`, `NVIDIA H100 MIG 1g.10gb`, `h100-MIG-1g.10gb`.

    The first part is empty for a profile alone or a resource such as `nvidia.com/mig-1g.10gb`.
    """
    lower = text.lower()
    for variant in _MIG_VARIANTS:
        lower = lower.removesuffix(variant)
    start = max(lower.rfind(c) for c in " :-/_") + 1
    profile = lower[start:]
    slices, _, memory = profile.partition("g.")
    size = memory.removesuffix("gb")
    if size == memory or not (slices.isascii() and slices.isdigit() and size.isdigit()):
        return None
    head = lower[:start].rstrip(" :-/_")
    if head.removeprefix(_MIG_RESOURCE_PREFIX) in ("mig", "") or head + "/" == _MIG_RESOURCE_PREFIX:
        return "", profile
    for separator in " :-_":
        head = head.removesuffix(f"{separator}mig")
    return head.rstrip(" :-/_"), profile


def _profile(gpu_id: str, name: str) -> dict[str, Any] | None:
    profiles: list[dict[str, Any]] = _entry_by_id()[gpu_id].get("mig_profiles", [])
    return next((p for p in profiles if p["name"] == name), None)


def _bare_mig(text: str, name: str) -> GpuMatch | None:
    specs = [_partition(e["id"], name) for e in _entries() if _profile(e["id"], name) is not None]
    if not specs:
        return None
    # The one with the least memory: what fits there fits on every other parent.
    specs.sort(key=lambda s: (s.usable_memory().best_bytes, not str(s.parent_id).endswith("sxm")))
    others = tuple(s.id for s in specs[1:])
    note = f"{text!r} does not name its GPU; assumed {specs[0].id}"
    if others:
        note += f", the one with the least memory; could also be {', '.join(others)}"
    return GpuMatch(spec=specs[0], note=note, candidates=others)


def _partition(gpu_id: str, name: str) -> GpuSpec:
    """A MIG instance: the shares of memory, bandwidth and SMs that its profile grants."""
    profile = _profile(gpu_id, name)
    assert profile is not None
    memory_bytes = profile["memory_bytes"]
    reading = None
    if memory_bytes is not None:
        reading = MemoryReading(
            best_bytes=memory_bytes,
            low_bytes=memory_bytes,
            high_bytes=memory_bytes,
            basis="observed",
            source=profile["source"],
        )
    return _part_of(
        _spec(gpu_id),
        suffix=f":{name}",
        reading=reading,
        memory_share=(profile["memory_share"][0], profile["memory_share"][1]),
        compute_share=(profile["compute_share"][0], profile["compute_share"][1]),
        notes="MIG instance: peak FLOP/s by SM slices, bandwidth by memory slices; no NVLink",
    )


def _part_of(
    parent: GpuSpec,
    *,
    suffix: str,
    reading: MemoryReading | None,
    memory_share: tuple[int, int],
    compute_share: tuple[int, int],
    notes: str,
) -> GpuSpec:
    base_bytes = parent.driver_total_bytes or parent.advertised_bytes
    assert base_bytes is not None  # every catalogue entry has an advertised size
    numerator, denominator = memory_share
    if reading is None:
        share_bytes = base_bytes * numerator // denominator
        reading = _rules()["mig_share_fraction"].estimate(share_bytes)
    bandwidth = parent.memory_bandwidth_bytes_per_s
    return replace(
        parent,
        id=parent.id + suffix,
        name=f"{parent.name} {suffix.lstrip(':')}",
        one_device_is="partition",
        advertised_gb=None,
        driver_total_bytes=None,
        torch_total=reading,
        memory_rule=None,
        memory_bandwidth_bytes_per_s=None
        if bandwidth is None
        else bandwidth * numerator // denominator,
        peak_flops=parent.peak_flops.scaled(*compute_share),
        nvlink_bytes_per_s_per_direction=None,
        interconnect=None,
        notes=notes,
        aliases=(),
        mig_profiles=(),
        parent_id=parent.id,
    )


# --- cloud instances and sizes ----------------------------------------------------------------


@cache
def _instance_row_by_name() -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for row in _instance_rows():
        for name in (row["name"], *row["aliases"]):
            key = _normalise(name)
            rows[key] = row
            # Azure's own tools leave the tier out of the name.
            rows.setdefault(key.removeprefix("standard"), row)
    return rows


def _find_instance(text: str) -> GpuMatch | None:
    key = _normalise(text)
    # SageMaker calls the same machines ml.g5.12xlarge.
    rows = _instance_row_by_name()
    row = rows.get(key) or rows.get(key.removeprefix("ml."))
    if row is None:
        return None
    instance = _instance(row)
    spec = _spec(instance.gpu_id)
    note = f"{instance.name}: "
    if instance.gpu_share is not None:
        numerator, denominator = instance.gpu_share
        spec = _part_of(
            spec,
            suffix=f":{numerator}/{denominator}",
            reading=None,
            memory_share=instance.gpu_share,
            compute_share=instance.gpu_share,
            notes="part of a GPU, rented as vGPU: bandwidth and FLOP/s taken in proportion",
        )
        note += f"{numerator}/{denominator} of one {instance.gpu_id}"
    elif instance.gpu_count is None:
        note += f"{instance.gpu_id}, number of GPUs not known"
    else:
        note += f"{instance.gpu_count} x {instance.gpu_id}"
    return GpuMatch(spec=spec, count=instance.gpu_count, note=note, instance=instance)


def _find_size(text: str) -> GpuMatch | None:
    if not text[0].isdigit():
        return None
    try:
        size_bytes = parse_bytes(text)
    except InvalidInputError:
        return None
    if size_bytes <= 0:
        raise InvalidInputError(f"a GPU with {text} has no memory", "give a size above 0")
    reading = MemoryReading(
        best_bytes=size_bytes,
        low_bytes=size_bytes,
        high_bytes=size_bytes,
        basis="given",
        source="given by the user as a size",
    )
    spec = GpuSpec(
        id=text,
        vendor="any",
        name=f"hypothetical GPU with {text} usable",
        architecture="any",
        compute_capability=None,
        one_device_is="hypothetical",
        advertised_gb=None,
        memory_type="any",
        driver_total_bytes=None,
        torch_total=reading,
        memory_rule=None,
        memory_bandwidth_bytes_per_s=None,
        peak_flops=PeakFlops(),
        tflops_basis="not known",
        nvlink_bytes_per_s_per_direction=None,
        interconnect=None,
        pcie=None,
        tdp_w=None,
        ecc_note=None,
        sources=GpuSources(memory="given by the user as a size"),
        confidence="given",
        checked="",
        notes="bandwidth and FLOP/s are not known",
    )
    return GpuMatch(
        spec=spec, note=f"{text}: taken as usable memory, bandwidth and FLOP/s not known"
    )


# --- suggestions ------------------------------------------------------------------------------


def _suggest(text: str) -> list[str]:
    """The names nearest to a name that nothing goes by."""
    if text.isascii() and text.isdigit() and len(text) <= 3:
        return [f"{text}GiB"]
    # Only needed on the way out, and dear to import.
    from difflib import get_close_matches

    shown: dict[str, str] = {}
    for entry in _entries():
        for spec in _variants(entry):
            shown.setdefault(_normalise(spec.id), spec.id)
        for names in (entry["aliases"].get(k, ()) for k in ("typed", "driver")):
            for name in names:
                shown.setdefault(_normalise(name), name)
    for row in _document()["ambiguous"]:
        shown.setdefault(_normalise(row["name"]), row["name"])
    for row in _instance_rows():
        shown.setdefault(_normalise(row["name"]), row["name"])
    close = get_close_matches(_normalise(text), list(shown), n=_NUM_SUGGESTIONS)
    return [shown[key] for key in close]
