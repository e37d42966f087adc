# SPDX-License-Identifier: Apache-2.0
"""Which device stands behind a worker's evidence: the simulator, a dstack agent, or Linux configfs-tsm.

Not here: any judgement of it; a worker's own word on its trust class counts for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import aiohttp

from bombyx.adapters.clock import SystemClock
from bombyx.adapters.configfs_tsm import ConfigfsEnclave
from bombyx.adapters.dstack import DstackEnclave
from bombyx.adapters.endorsements import CachedEndorsements
from bombyx.adapters.endorsements_http import AmdEndorsements, AnyEndorsements, Fetcher, IntelEndorsements
from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.simulator import SimulatedEnclave, SimulatedEndorsements, SimulatedPlatform
from bombyx.adapters.tappd import TappdEnclave
from bombyx.config import NetworkDescriptor, WorkerConfig
from bombyx.errors import ConfigError
from bombyx.ports import EndorsementSource, EvidenceSource


class Kind(StrEnum):
    SIMULATED = "simulated"
    DSTACK = "dstack"
    TAPPD = "tappd"
    CONFIGFS = "configfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The enclave device and who vouches for it. Without an endorser, verifiers fetch endorsements themselves."""

    source: EvidenceSource
    endorser: EndorsementSource | None
    shown_as: str  # for people; the trust class is what a verifier computes


def enclave_device(config: WorkerConfig, network: NetworkDescriptor, vendor: EndorsementSource | None = None) -> Device:
    """Raises `ConfigError` when this machine has no such device. `vendor`: who endorses real hardware."""
    kind, entropy = _kind(config.enclave), SystemEntropy()
    platform = SimulatedPlatform.load(network.simulated) if network.simulated is not None else None
    endorser = SimulatedEndorsements(platform=platform, clock=SystemClock()) if platform is not None else None
    shown_as = "simulated" if platform is not None else f"{kind}, as appraised"
    if kind is Kind.SIMULATED:
        if platform is None:
            raise ConfigError("this network has no simulated platform: name a device with worker.enclave")
        source = SimulatedEnclave(platform=platform, instance=entropy.bytes(16))
        return Device(source=source, endorser=endorser, shown_as=shown_as)
    if kind is Kind.CONFIGFS:
        device = ConfigfsEnclave(entropy)
        return Device(source=device, endorser=endorser or device, shown_as=shown_as)
    agent = (DstackEnclave if kind is Kind.DSTACK else TappdEnclave)(config.enclave_endpoint)
    return Device(source=agent, endorser=endorser or vendor, shown_as=shown_as)


def vendor_endorsements(http: aiohttp.ClientSession, pccs: str, folder: Path) -> EndorsementSource:
    """Intel's and AMD's services, asked once per platform until what they said expires."""
    fetcher = Fetcher(http)
    intel = IntelEndorsements(fetcher)
    if pccs:  # a PCCS caches the root's list as well, so a worker needs to reach nobody else
        intel = IntelEndorsements(fetcher, pccs, f"{pccs.rstrip('/')}/sgx/certification/v4/rootcacrl")
    return CachedEndorsements(AnyEndorsements(intel, AmdEndorsements(fetcher)), folder, SystemClock())


def _kind(name: str) -> Kind:
    try:
        return Kind(name)
    except ValueError:
        raise ConfigError(f"worker.enclave is one of {', '.join(Kind)}, not {name!r}") from None
