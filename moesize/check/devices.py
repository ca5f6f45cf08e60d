"""Which GPUs a server runs on: claims of the file, the user's word for it, or nobody's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from moesize.check.source import Word
from moesize.core.errors import MoesizeError
from moesize.gpus import GpuMatch, find_gpu

if TYPE_CHECKING:
    from moesize.check.configuration import Settings
    from moesize.check.server import GpuClaim, Server

_KINDS = ("typed", "driver", "torch", "kubernetes", "gke", "karpenter", "metal", "pci")
# Vendors by what resources, images and charts call them.
_VENDORS = {"nvidia": "nvidia", "amd": "amd", "intel": "intel"}


class Device(NamedTuple):
    """One kind of GPU that a server may run on.

    at       the word that says so; empty when the user said it
    stated   GPUs that the claim itself states (`A100:8`, an instance with 4), else None
    machine  GPUs of the machine type, where the claim names one
    """

    match: GpuMatch
    at: Word
    via: str
    stated: int | None = None
    machine: int | None = None

    @property
    def title(self) -> str:
        """The GPU in words."""
        return self.match.spec.name


class Unknown(NamedTuple):
    """A claim that names no GPU that we know."""

    at: Word
    via: str
    hint: str


def devices_of(
    server: Server, settings: Settings, given: str | None
) -> tuple[list[Device], list[Unknown]]:
    """Devices that a server's file claims; else `given` (an option, the configuration, a comment).

    Several claims are alternatives. A claim that the configuration maps is what it says there.
    """
    found: list[Device] = []
    unknown: list[Unknown] = []
    for claim in server.gpus:
        device = _claimed(claim, settings)
        if isinstance(device, Unknown):
            unknown.append(device)
        else:
            found.append(device)
    if not found and given:
        match = find_gpu(given)
        found.append(Device(match, Word(given), "--gpu", None, None))
    return found, unknown


def _claimed(claim: GpuClaim, settings: Settings) -> Device | Unknown:
    names = settings.gpu_names
    text = names.get(str(claim.text)) or names.get(f"{claim.via}={claim.text}")
    kind: Any = claim.kind if claim.kind in _KINDS else None
    if text is not None:
        kind = None
    try:
        match = find_gpu(text or str(claim.text), kind=kind)
    except MoesizeError as error:
        return Unknown(claim.text, claim.via, error.hint)
    return Device(match, claim.text, claim.via, claim.num_gpus or match.count, match.count)


def vendor_of(server: Server) -> str:
    """nvidia, amd, intel, ... where the file says at least that; else empty."""
    return _VENDORS.get(server.vendor.lower(), server.vendor.lower())
