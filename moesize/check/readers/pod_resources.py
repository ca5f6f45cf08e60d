"""What pods ask for: quantities, GPUs, kinds of GPU by selectors, and DRA claims."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from moesize.check.server import GpuClaim, Stated
from moesize.check.yaml_tree import ABSENT, Node

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from moesize.check.formats import Context
    from moesize.check.source import Word

_QUANTITY = re.compile(
    r"([0-9]{1,18}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})(?:[eE](\d{1,2}))?([a-zA-Z]{0,2})"
)
_UNITS = {
    "": 1,
    "m": 0.001,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "P": 10**15,
    "E": 10**18,
    "Ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
    "Pi": 1 << 50,
    "Ei": 1 << 60,
}
_MOST_BYTES = 1 << 62

# Extended resources that are GPUs: key -> vendor. Those that end in "*" are beginnings.
_GPU_KEYS = {
    "nvidia.com/gpu": "nvidia",
    "nvidia.com/gpu.shared": "nvidia",
    "nvidia.com/mig-*": "nvidia",
    "nvidia.com/pgpu": "nvidia",
    "amd.com/gpu": "amd",
    "habana.ai/gaudi": "intel",
    "gpu.intel.com/*": "intel",
    "google.com/tpu": "google",
    "aws.amazon.com/neuron*": "aws",
    "huawei.com/*": "huawei",
    "qualcomm.com/qaic": "qualcomm",
    "deviceclass.resource.kubernetes.io/gpu.nvidia.com": "nvidia",
    "deviceclass.resource.kubernetes.io/gpu.amd.com": "amd",
}
# Parts of a GPU, or figures about it, under the same beginnings.
_NO_COUNT = ("memory", "millicores", "tiles", "cores", "percentage", "monitoring")

# Selector key -> vocabulary of its values, the most telling first.
_SELECTORS = {
    "nvidia.com/gpu.product": "driver",
    "amd.com/gpu.product-name": "driver",
    "beta.amd.com/gpu.product-name": "driver",
    "cloud.google.com/gke-accelerator": "gke",
    "cloud.google.com/gke-tpu-accelerator": "gke",
    "karpenter.k8s.aws/instance-gpu-name": "karpenter",
    "eks.amazonaws.com/instance-gpu-name": "karpenter",
    "karpenter.k8s.aws/instance-accelerator-name": "karpenter",
    "eks.amazonaws.com/instance-accelerator-name": "karpenter",
    "karpenter.azure.com/sku-gpu-name": "typed",
    "gpu.nvidia.com/class": "typed",
    "gpu.nvidia.com/model": "typed",
    "doks.digitalocean.com/gpu-model": "typed",
    "aliyun.accelerator/nvidia_name": "driver",
    "node.kubernetes.io/instance-type": "instance",
    "beta.kubernetes.io/instance-type": "instance",
    "karpenter.azure.com/sku-name": "instance",
    "karpenter.k8s.aws/instance-family": "family",
    "eks.amazonaws.com/instance-family": "family",
}
# Selectors that give memory in MiB and no name.
_MEMORY_SELECTORS = (
    "nvidia.com/gpu.memory",
    "karpenter.k8s.aws/instance-gpu-memory",
    "eks.amazonaws.com/instance-gpu-memory",
)
# Selectors of home-made labels count only when their value is the name of a GPU.
_GPU_WORDS = ("gpu", "accelerator")
_NEVER_NAMES = ("count", "present", "memory", "driver", "replicas", "partition", "deploy")
_MOST_TERMS = 64
_MOST_CLAIMS = 16


def quantity(text: str) -> float | None:
    """The number that a Kubernetes quantity stands for: 4, 1500m, 80Gi, 1.5G, 1e9."""
    match = _QUANTITY.fullmatch(text.strip()) if len(text) <= 40 else None
    if match is None or match[3] not in _UNITS:
        return None
    return float(match[1]) * 10.0 ** int(match[2] or 0) * _UNITS[match[3]]


def stated_bytes(node: Node) -> Stated[int] | None:
    """The bytes that a scalar states as a quantity."""
    text = node.text
    found = quantity(text) if text is not None else None
    if text is None or found is None or not 0 < found < _MOST_BYTES:
        return None
    return Stated(int(found), text)


class GpuRequest(NamedTuple):
    """GPUs that a container asks for.

    number   None: not stated, or by an expression, which `open_word` then is
    vendor   nvidia, amd, ...; empty: not known
    mig      the word that names a MIG profile (`nvidia.com/mig-1g.10gb`)
    """

    number: Stated[int] | None = None
    vendor: str = ""
    mig: Word | None = None
    open_word: Word | None = None


def gpu_request(resources: Node, more_keys: Iterable[str] = ()) -> GpuRequest:
    """GPUs under `limits`, else `requests`; `more_keys` are names of GPUs in this kind of file."""
    extra = tuple(more_keys)
    for section in ("limits", "requests"):
        for key, value in resources.get(section).items():
            vendor = _vendor_of(key, extra)
            if vendor is None:
                continue
            mig = key if key.startswith("nvidia.com/mig-") else None
            number = value.integer()
            if number is not None and 0 <= number <= 100_000:
                return GpuRequest(Stated(number, value.word), vendor, mig)
            if value.text is not None:
                return GpuRequest(None, vendor, mig, value.word)
    return GpuRequest()


def _vendor_of(key: str, more_keys: tuple[str, ...]) -> str | None:
    """The vendor of a resource that is GPUs ("" where it is not said); None for others."""
    name = key.strip()
    if name in more_keys:
        return ""
    if any(part in name for part in _NO_COUNT):
        return None
    found = _GPU_KEYS.get(name)
    if found is None:
        for known, vendor in _GPU_KEYS.items():
            if known.endswith("*") and name.startswith(known[:-1]):
                return vendor
    return found


# --- selectors --------------------------------------------------------------------------------


class _Selected(NamedTuple):
    key: str
    operator: str
    values: tuple[Word, ...]


def gpu_claims(pod: Node, mig: Word | None = None) -> tuple[GpuClaim, ...]:
    """Kinds of GPU that the node selectors of a pod spec promise; alternatives, best first.

    `mig` is the resource that names a MIG profile: a partition of the GPU that is selected.
    """
    selectors = [
        _Selected(str(key), "In", (value.text,))
        for key, value in pod.get("nodeSelector").items()
        if value.text is not None
    ]
    claims = _claims_of(selectors)
    if not claims:
        terms = pod.get(
            "affinity",
            "nodeAffinity",
            "requiredDuringSchedulingIgnoredDuringExecution",
            "nodeSelectorTerms",
        )
        claims = claims_of_terms(terms)
    if mig is not None:
        return tuple(_partitions(claims, mig))
    partition = next(
        (s.values[0] for s in selectors if s.key == "cloud.google.com/gke-gpu-partition-size"), None
    )
    if partition is not None:
        return tuple(_partitions(claims, partition))
    return tuple(claims)


def claims_of_terms(terms: Node) -> list[GpuClaim]:
    """Claims of `nodeSelectorTerms`: any one of the terms is enough for the scheduler."""
    found: list[GpuClaim] = []
    for term in terms.elements()[:_MOST_TERMS]:
        selectors = []
        for expression in term.get("matchExpressions").elements()[:_MOST_TERMS]:
            key, operator = expression.get("key").word, expression.get("operator").word
            if key and operator in ("In", "Gt"):
                values = tuple(expression.get("values").words()[:_MOST_CLAIMS])
                selectors.append(_Selected(str(key), str(operator), values))
        for claim in _claims_of(selectors):
            if claim.text not in [known.text for known in found]:
                found.append(claim)
    return found[:_MOST_CLAIMS]


def _claims_of(selectors: list[_Selected]) -> list[GpuClaim]:
    """Claims of selectors that hold at once: those of the most telling key.

    A machine type that is known says more than a label, its number of GPUs too.
    """
    named = [s for s in selectors if s.operator == "In" and s.values]
    by_key: dict[str, list[_Selected]] = {}
    for selected in named:
        by_key.setdefault(selected.key, []).append(selected)
    claims: list[GpuClaim] = []
    for key, kind in _SELECTORS.items():
        for selected in by_key.get(key, ()):
            found = [
                claim
                for value in selected.values
                if value and (claim := _claim(value, key, kind)) is not None
            ]
            if found and kind == "instance" and all(_is_gpu(c.text, c.kind) for c in found):
                return found
            claims = claims or found
    return claims or _home_made(named) or _by_memory(selectors)


def _claim(value: Word, key: str, kind: str) -> GpuClaim | None:
    if kind == "family":
        gpu_id = _gpu_of_family(value)
        return GpuClaim(value.becomes(gpu_id), key) if gpu_id else None
    if kind == "instance" and not _is_gpu(value, kind) and not _looks_like_gpu_machine(value):
        return None
    return GpuClaim(value, key, kind)


def _looks_like_gpu_machine(name: str) -> bool:
    """A machine type that is not in the catalogue: it counts where its name hints at GPUs."""
    lowered = name.lower()
    return lowered.startswith(
        ("p3", "p4", "p5", "p6", "g4", "g5", "g6", "a2-", "a3-", "a4", "g2-")
    ) or (
        "gpu" in lowered or lowered.startswith(("standard_nc", "standard_nd", "bm.gpu", "vm.gpu"))
    )


def _home_made(selectors: list[_Selected]) -> list[GpuClaim]:
    """`accelerator: h100`, `gpu-type: l40s`: labels that people invent, by their values."""
    for selected in selectors:
        name = selected.key.rpartition("/")[2].lower()
        if not any(word in selected.key.lower() for word in _GPU_WORDS):
            continue
        if any(word in name for word in _NEVER_NAMES):
            continue
        values = [value for value in selected.values if _is_gpu(value, "typed")]
        # A size or a number is no name: gpu: "1" means that there is one.
        values = [value for value in values if not value[:1].isdigit()]
        if values:
            return [GpuClaim(value, selected.key) for value in values]
    return []


def _by_memory(selectors: list[_Selected]) -> list[GpuClaim]:
    for selected in selectors:
        if selected.key in _MEMORY_SELECTORS and selected.values:
            sizes = [v for v in selected.values if v.isascii() and v.isdigit() and len(v) <= 8]
            if sizes:
                least = min(sizes, key=int)
                return [GpuClaim(least.becomes(f"{int(least)}MiB"), selected.key)]
    return []


def _partitions(claims: Iterable[GpuClaim], mig: Word) -> Iterator[GpuClaim]:
    """A MIG profile of each GPU that is selected, or of whichever has it."""
    profile = mig.rpartition("/")[2].removeprefix("mig-")
    known = False
    for claim in claims:
        name = _gpu_id(claim.text, claim.kind)
        if name and _is_gpu(f"{name}:{profile}", "kubernetes"):
            known = True
            yield GpuClaim(mig.becomes(f"{name}:{profile}"), claim.via, "kubernetes")
        elif "mig-" in claim.text.lower() and name:
            known = True
            yield claim
    if not known:
        via = "resources" if mig.startswith("nvidia.com/") else "gke-gpu-partition-size"
        yield GpuClaim(mig, via, "kubernetes")


def _gpu_id(text: str, kind: str) -> str | None:
    """The catalogue's id of a name; None for names that it does not know."""
    from moesize.core.errors import MoesizeError
    from moesize.gpus import find_gpu

    try:
        if kind in ("driver", "gke", "karpenter", "kubernetes"):
            return find_gpu(text, kind=kind).spec.id  # type: ignore[arg-type]
        return find_gpu(text).spec.id
    except MoesizeError:
        return None


def _is_gpu(text: str, kind: str) -> bool:
    return _gpu_id(text, kind) is not None


def _gpu_of_family(family: str) -> str | None:
    """The one GPU that all machine types of a family have (g6 -> l4)."""
    from moesize.gpus import list_instances

    if not family or len(family) > 20:
        return None
    rows = [row for row in list_instances() if row.name.startswith(family.lower() + ".")]
    ids = {row.gpu_id for row in rows if row.gpu_share is None}
    return ids.pop() if len(ids) == 1 else None


# --- dynamic resource allocation --------------------------------------------------------------

_CEL_NAME = re.compile(
    r"""attributes\[["']([\w.-]{1,60})["']\]\s{0,3}"""
    r"""(?:\.|\[["'])(productName|type|model|name|profile)(?:["']\])?"""
    r"""(?:\.lowerAscii\(\))?\s{0,3}(?:==\s{0,3}["']([^"']{1,80})["']"""
    r"""|\.(?:matches|contains|startsWith)\(["']([^"']{1,80})["']\))"""
)
_CEL_MEMORY = re.compile(
    r"""capacity\[["'][\w.-]{1,60}["']\]\s{0,3}(?:\.memory|\[["']memory["']\])\s{0,3}"""
    r"""\.(?:compareTo|isGreaterThan)\(quantity\(["']([\w.]{1,20})["']\)\)"""
)
_MOST_CEL = 4_000


class DraRequest(NamedTuple):
    """Devices that a claim asks for."""

    number: Stated[int] | None
    claims: tuple[GpuClaim, ...]
    vendor: str


def dra_request(container: Node, pod: Node, context: Context) -> DraRequest | None:
    """What the resource claims of a container ask for; None: it has none that is found."""
    names = {str(claim.get("name").word) for claim in _some(container.get("resources", "claims"))}
    if not names:
        return None
    asked: DraRequest | None = None
    for claim in _some(pod.get("resourceClaims")):
        if str(claim.get("name").word) not in names:
            continue
        template = claim.get("resourceClaimTemplateName").text
        plain = claim.get("resourceClaimName").text
        spec: Node = ABSENT
        if template is not None:
            spec = _resource(context, "ResourceClaimTemplate", template).get("spec", "spec")
        elif plain is not None:
            spec = _resource(context, "ResourceClaim", plain).get("spec")
        found = _of_claim(spec, claim)
        asked = found if asked is None else _together(asked, found)
    return asked


def _some(node: Node) -> list[Node]:
    return node.elements()[:_MOST_TERMS]


def _together(first: DraRequest, second: DraRequest) -> DraRequest:
    if first.number is None or second.number is None:
        count = first.number or second.number
    else:
        count = Stated(first.number.value + second.number.value, first.number.at)
    return DraRequest(count, first.claims or second.claims, first.vendor or second.vendor)


def _resource(context: Context, kind: str, name: str) -> Node:
    """A document of that kind and name, in the same file or folder."""
    for documents in (context.documents, context.folder.siblings()):
        for document in documents:
            if document.get("kind").word == kind and document.get("metadata", "name").word == name:
                return document
    return ABSENT


def _of_claim(spec: Node, place: Node) -> DraRequest:
    total: int | None = 0
    at = place.get("name").word
    claims: list[GpuClaim] = []
    vendor = ""
    requests = _some(spec.get("devices", "requests"))
    for request in requests:
        either = _some(request.get("firstAvailable"))
        exact = request.get("exactly") if request.get("exactly") else request
        for each in either or [exact]:
            vendor = vendor or dra_vendor(each.get("deviceClassName").word)
            texts = [
                selector.get("cel", "expression").word for selector in _some(each.get("selectors"))
            ]
            claims += cel_claims(texts)
        first = either[0] if either else exact
        count = first.get("count")
        number = count.integer() if count else 1
        if first.get("allocationMode").word == "All" or number is None or not 0 < number < 10_000:
            total = None
        elif total is not None:
            total += number
            at = count.word if count else at
    stated = Stated(total, at) if total and requests else None
    return DraRequest(stated, tuple(claims[:_MOST_CLAIMS]), vendor)


def dra_vendor(device_class: str) -> str:
    """The vendor whose driver a device class is of."""
    for vendor in ("nvidia", "amd", "intel", "google"):
        if vendor in device_class.lower():
            return vendor
    return ""


def cel_claims(expressions: Iterable[Word]) -> list[GpuClaim]:
    """What selectors of device attributes say: a name, a partition, or the least memory."""
    names: list[Word] = []
    least: tuple[float, Word] | None = None
    for expression in expressions:
        text = expression[:_MOST_CEL]
        for match in _CEL_NAME.finditer(text):
            group = 3 if match[3] else 4
            name = match[group].strip("^$.*")
            if name and name not in ("gpu", "mig"):
                names.append(expression.becomes(name))
        for match in _CEL_MEMORY.finditer(text):
            size = quantity(match[1])
            if size and 0 < size < _MOST_BYTES and (least is None or size > least[0]):
                least = size, expression
    known = [name for name in names if _is_gpu(name, "driver")]
    if known:
        return [_with_memory(name, least) for name in known]
    if least is not None:
        mebibytes = int(least[0]) >> 20
        text = f"{mebibytes >> 10}GiB" if mebibytes % 1024 == 0 else f"{mebibytes}MiB"
        return [GpuClaim(least[1].becomes(text), "DRA")]
    return [GpuClaim(name, "DRA", "driver") for name in names]


def _with_memory(name: Word, least: tuple[float, Word] | None) -> GpuClaim:
    """Of the parts that a name may mean, the one with the least memory that is enough."""
    from moesize.gpus import find_gpu

    if least is None:
        return GpuClaim(name, "DRA", "driver")
    match = find_gpu(name, kind="driver")
    parts = [match.spec, *(find_gpu(other).spec for other in match.candidates)]
    enough = [
        part
        for part in parts
        if part.advertised_gb is not None and part.advertised_gb << 30 >= least[0]
    ]
    if len(parts) < 2 or not enough:
        return GpuClaim(name, "DRA", "driver")
    smallest = min(enough, key=lambda part: part.advertised_gb or 0)
    if smallest is match.spec:
        return GpuClaim(name, "DRA", "driver")
    return GpuClaim(name.becomes(smallest.id), "DRA")
