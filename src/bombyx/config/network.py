# SPDX-License-Identifier: Apache-2.0
"""The network a role belongs to, as a file `bombyx up` and operators write: chain, contracts, proxies, policy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bombyx.config.files import read_file
from bombyx.config.places import default_descriptor_path
from bombyx.errors import ConfigError
from bombyx.protocol.primitives import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyAddress:
    """One proxy of a network: its account on chain and where it answers."""

    address: Address
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkDescriptor:
    """How to join a network: its chain, its proxies, and the policy its clients appraise evidence with.

    A descriptor is a starting point, not a source of trust: policies are the reader's own choice. `simulated` is set
    for a network whose enclaves are simulated.
    """

    chain_url: str  # several JSON-RPC nodes of one chain: separated by commas
    proxies: tuple[ProxyAddress, ...]
    policy: Path
    simulated: Path | None  # folder of the simulated platform, for workers that join on this machine
    contracts: dict[str, Any] | None = None  # an EVM chain's address book; none: the in-memory chain

    def to_json(self) -> str:
        return json.dumps(
            {
                "version": 1,
                "chain": {"url": self.chain_url, "contracts": self.contracts},
                "proxies": [{"address": str(p.address), "url": p.url} for p in self.proxies],
                "policy": str(self.policy),
                "simulated_platform": str(self.simulated) if self.simulated else None,
            },
            indent=2,
        )

    @classmethod
    def from_json(cls, text: str, *, where: str = "network descriptor") -> NetworkDescriptor:
        """Raises `ConfigError` that names the missing or ill-typed part."""
        try:
            raw = json.loads(text)
            if raw["version"] != 1:
                raise ConfigError(f"{where}: version {raw['version']} is not 1")
            return cls(
                chain_url=str(raw["chain"]["url"]),
                proxies=tuple(
                    ProxyAddress(address=Address.parse(p["address"]), url=str(p["url"])) for p in raw["proxies"]
                ),
                policy=Path(raw["policy"]),
                simulated=Path(raw["simulated_platform"]) if raw.get("simulated_platform") else None,
                contracts=dict(raw["chain"]["contracts"]) if raw["chain"].get("contracts") else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"{where}: {type(error).__name__}: {error}") from None

    @classmethod
    def load(cls, file: Path | None = None) -> NetworkDescriptor:
        """From `file`, or from where a running `bombyx up` left its own."""
        path = file or default_descriptor_path()
        if not path.exists():
            raise ConfigError(f"no network here: {path} does not exist. Start one with `bombyx up`, or name a file")
        return cls.from_json(read_file(path), where=str(path))
