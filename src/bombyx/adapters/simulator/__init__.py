# SPDX-License-Identifier: Apache-2.0
"""A software TDX for development and tests: real formats, a root of its own, always of trust class `simulated`."""

from bombyx.adapters.simulator.enclave import (
    WORKER_IMAGE,
    SimulatedEnclave,
    SimulatedEndorsements,
    SimulatedImage,
    development_policy,
)
from bombyx.adapters.simulator.platform import PlatformSettings, SimulatedPlatform, TdReport

__all__ = [
    "SimulatedPlatform",
    "PlatformSettings",
    "SimulatedEnclave",
    "SimulatedImage",
    "WORKER_IMAGE",
    "SimulatedEndorsements",
    "development_policy",
    "TdReport",
]
