"""KubeAI: `Model` resources, the values of its `models` chart, and resource profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from moesize.check.formats import Context, Format
from moesize.check.readers.pod_resources import gpu_claims, gpu_request
from moesize.check.readers.resource_fields import (
    documents_around,
    gpu_ids,
    gpu_in_name,
    is_open_word,
    names_kind,
    title_of,
)
from moesize.check.server import GpuClaim, Reading, Server, Stated
from moesize.check.source import Word

if TYPE_CHECKING:
    from moesize.check.yaml_tree import Node

_GROUP = "kubeai.org"
_VIA = "resourceProfile"
# spec.engine (api/k8s/v1/model_types.go) -> our engine; empty: serves no language model.
_ENGINES = {"vllm": "vllm", "ollama": "ollama", "fasterwhisper": "", "infinity": ""}
# The profiles that the chart brings (substratusai/kubeai charts/kubeai/values*.yaml at 2f32ef4,
# July 2025), one GPU each: profile -> (GPU as we call it, vendor). A cluster may define others.
_PROFILES = {
    "nvidia-gpu-t4": ("t4", "nvidia"),
    "nvidia-gpu-l4": ("l4", "nvidia"),
    "nvidia-gpu-l40s": ("l40s", "nvidia"),
    "nvidia-gpu-h100": ("h100", "nvidia"),
    "nvidia-gpu-gh200": ("gh200", "nvidia"),
    "nvidia-gpu-a100-80gb": ("a100-80gb", "nvidia"),
    "nvidia-gpu-a100-40gb": ("a100-40gb", "nvidia"),
    "nvidia-gpu-a16": ("a16", "nvidia"),
    "nvidia-gpu-rtx4070-8gb": ("rtx4070-8gb", "nvidia"),
    "nvidia-gpu-rtx4090-24gb": ("rtx4090", "nvidia"),
    "amd-gpu-mi300x": ("mi300x", "amd"),
    "google-tpu-v5e-1x1": ("tpu-v5e", "google"),
    "google-tpu-v5e-2x2": ("tpu-v5e", "google"),
    "google-tpu-v5e-2x4": ("tpu-v5e", "google"),
    "gaudi-for-text-generation": ("", "intel"),
}
_VENDORS = {"nvidia": "nvidia", "amd": "amd", "google": "google", "gaudi": "intel"}
_ELSEWHERE = ("pvc", "s3", "gs", "oss")
_MOST_MODELS = 500


class _Profile(NamedTuple):
    """What a resource profile gives: kinds of GPU, and GPUs in one unit of it."""

    claims: tuple[GpuClaim, ...] = ()
    each: int = 1
    vendor: str = ""
    skipped: str = ""
    note: str = ""


def _is_model(document: Node) -> bool:
    return names_kind(document, _GROUP, ("Model",))


def _read_model(document: Node, context: Context) -> Reading:
    server = _server(document.get("spec"), title_of(document, "Model"), context)
    return Reading(kind="kubeai", servers=[server])


def _server(spec: Node, name: Word, context: Context) -> Server:
    engine = _ENGINES.get(spec.get("engine").word.lower())
    server = Server(name=str(name), place=name, engine=engine or None)
    server.image = spec.get("image").text
    _name_model(server, spec.get("url").word)
    words = [word for word in spec.get("args").words() if word]
    if engine == "vllm" and spec.get("adapters").elements():
        words.append(Word("--enable-lora", (spec.key("adapters") or name).span))
    server.words = tuple(words)
    server.environment = _environment(spec.get("env"))
    wanted = spec.get("targetRequests").integer()
    if wanted is not None and 0 < wanted < 1_000_000:
        server.concurrency = Stated(wanted, spec.get("targetRequests").word)
    _add_gpus(server, spec.get("resourceProfile").word, context)
    features = [str(word) for word in spec.get("features").words()]
    if engine == "":
        server.skipped = f"{spec.get('engine').word[:40]} serves no language model"
    elif engine is None:
        server.skipped = f"the engine {spec.get('engine').word[:40]!r} is not known"
    elif features and "TextGeneration" not in features:
        server.skipped = f"generates no text ({', '.join(features[:4])[:80]})"
    return server


def _name_model(server: Server, url: Word) -> None:
    """hf://owner/name, ollama://name:tag, pvc://claim/path?model=name, s3://bucket/path."""
    scheme, found, rest = url.partition("://")
    if not found or not rest:
        server.model = url if url and not found else None
        return
    start = len(scheme) + 3
    end = url.find("?", start)
    path = url.cut(start, end if end >= 0 else None)
    named = _parameter(url, "model")
    if named is not None:
        server.model = named
    elif scheme.lower() in _ELSEWHERE:
        # A place; what its path is called is no more than evidence.
        server.model = url.cut(0, end) if end >= 0 else url
        server.fallback_model = server.place
    else:
        server.model = path


def _parameter(url: Word, name: str) -> Word | None:
    """The value of `?name=value` in an address."""
    start = url.find("?")
    while start >= 0:
        end = url.find("&", start + 1)
        piece = url.cut(start + 1, end if end >= 0 else None)
        key, equals, value = piece.partition("=")
        if equals and key == name and value:
            return piece.cut(len(key) + 1)
        start = end
    return None


def _environment(node: Node) -> dict[str, Word]:
    found: dict[str, Word] = {}
    for key, value in node.items():
        if value.text is not None and len(found) < _MOST_MODELS:
            found[str(key)] = value.word
    return found


# --- resource profiles ------------------------------------------------------------------------


def _add_gpus(server: Server, text: Word, context: Context) -> None:
    """`nvidia-gpu-l4:8`: a profile, and how many units of it."""
    cut = text.rfind(":")
    name = text.cut(0, cut) if cut >= 0 else text
    count = text.cut(cut + 1) if cut >= 0 else None
    if not name:
        return
    profile = _defined(name, context) or _known(name)
    server.gpus, server.vendor = profile.claims, profile.vendor
    server.notes += (profile.note,) if profile.note else ()
    server.skipped = profile.skipped
    if profile.skipped:
        return
    if count is None or not count.isascii() or not count.isdigit() or len(count) > 4:
        return
    server.gpus_per_node = Stated(int(count) * profile.each, count)


def _known(name: Word) -> _Profile:
    """A profile of the chart, or one whose name ends in the name of a GPU."""
    if name == "cpu" or name.startswith("cpu-"):
        return _Profile(skipped="runs on the processor, not on a GPU")
    if is_open_word(name):
        return _Profile()
    gpu, vendor = _PROFILES.get(str(name), ("", ""))
    if not gpu:
        vendor = vendor or next((v for k, v in _VENDORS.items() if name.startswith(k)), "")
        gpu = gpu_in_name(name)
    if gpu:
        return _Profile((GpuClaim(name.becomes(gpu), _VIA),), vendor=vendor)
    note = f"the resource profile {str(name)[:60]!r} is defined elsewhere"
    return _Profile(vendor=vendor, note=note)


def _defined(name: Word, context: Context) -> _Profile | None:
    """The profile as values in the same folder define it, where they say what it is."""
    for values in documents_around(context):
        node = values.get("resourceProfiles", str(name))
        if not node.is_mapping:
            continue
        known = _known(name)
        claims = tuple(
            GpuClaim(name.becomes(claim.text), f"{_VIA}: {claim.via}", claim.kind)
            for claim in gpu_claims(node)
        )
        if claims and known.claims and _is_one_of(known.claims[0], claims[0]):
            claims = known.claims
        asked = gpu_request(node)
        if not claims and asked.number is None:
            return None
        each = asked.number.value if asked.number is not None else 1
        return known._replace(
            claims=claims or known.claims,
            each=max(1, each),
            vendor=asked.vendor or known.vendor,
            note="" if claims else known.note,
            skipped="" if claims or asked.number else known.skipped,
        )
    return None


def _is_one_of(known: GpuClaim, claim: GpuClaim) -> bool:
    """Whether a profile's name says what its selector says, or which of several parts it is.

    Karpenter's label `a100` is either size, the profile nvidia-gpu-a100-80gb is not.
    """
    parts, narrow = gpu_ids(claim.text, claim.kind), gpu_ids(known.text, known.kind)
    return bool(parts & narrow) and len(narrow) <= len(parts)


def _is_profiles(document: Node) -> bool:
    profiles = document.get("resourceProfiles")
    if not profiles.is_mapping or document.get("kind"):
        return False
    known = ("limits", "requests", "nodeSelector", "imageName", "tolerations", "affinity")
    return any(value.key(name) is not None for _, value in profiles.items() for name in known)


def _read_profiles(document: Node, context: Context) -> Reading:
    del document, context
    return Reading(kind="kubeai", skipped="resource profile definitions, no model server")


# --- the models chart -------------------------------------------------------------------------


def _is_catalog(document: Node) -> bool:
    catalog = document.get("catalog")
    if not catalog.is_mapping or document.get("kind"):
        return False
    return any(
        model.get("url").text or model.get("resourceProfile").text for _, model in catalog.items()
    )


def _read_catalog(document: Node, context: Context) -> Reading:
    """Entries that are enabled; an entry without a URL changes one of the chart's own."""
    everything = document.get("all", "enabled").boolean() is True
    servers: list[Server] = []
    for key, model in document.get("catalog").items():
        wanted = everything or model.get("enabled").boolean() is True
        if wanted and model.get("url").text and len(servers) < _MOST_MODELS:
            servers.append(_server(model, key, context))
    if servers:
        return Reading(kind="kubeai", servers=servers)
    return Reading(kind="kubeai", skipped="no model of this catalogue is enabled")


FORMATS = [
    Format("kubeai", _is_model, _read_model),
    Format("kubeai", _is_profiles, _read_profiles),
    Format("kubeai", _is_catalog, _read_catalog),
]
