# SPDX-License-Identifier: Apache-2.0
"""An agent inside an enclave: a wallet nobody else can touch, and statements that prove who said them (spec ENC-4)."""

from bombyx.roles.agent.core import Agent, AgentWallet, Answered

__all__ = ["Agent", "AgentWallet", "Answered"]
