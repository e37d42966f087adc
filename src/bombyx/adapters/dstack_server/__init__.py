# SPDX-License-Identifier: Apache-2.0
"""dstack's guest agent, simulated: the calls code inside a dstack enclave makes, served for development."""

from bombyx.adapters.dstack_server.guest import SimulatedGuest
from bombyx.adapters.dstack_server.serve import DEFAULT_PORT, AgentServer

__all__ = ["AgentServer", "SimulatedGuest", "DEFAULT_PORT"]
