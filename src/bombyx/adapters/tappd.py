# SPDX-License-Identifier: Apache-2.0
"""dstack's older guest agent, tappd, as the enclave's device (`ports.EvidenceSource`).

Always: report data goes in raw: what the legacy call hashes and prefixes by default would bind something else. This
agent attests no GPU, so an image that can open one is refused by verifiers (spec ENC-1).
"""

from __future__ import annotations

from typing import Any, Final

from bombyx.adapters.dstack import AgentSocket, check_echo, compose_of, find_endpoint, hex_of, text_of
from bombyx.errors import Unavailable
from bombyx.ports import Quote

SOCKETS: Final = ("/var/run/tappd.sock", "/run/tappd.sock", "/var/run/dstack/tappd.sock", "/run/dstack/tappd.sock")
ENDPOINT_VARIABLE: Final = "TAPPD_SIMULATOR_ENDPOINT"


class TappdEnclave:
    """One machine with a legacy agent, seen from inside."""

    def __init__(self, endpoint: str = "") -> None:
        self._socket = AgentSocket(endpoint or find_endpoint(ENDPOINT_VARIABLE, SOCKETS))
        self._compose: bytes | None = None

    async def quote(self, report_data: bytes) -> Quote:
        arguments = {"report_data": report_data.hex(), "hash_algorithm": "raw"}
        answer = await self._asked("/prpc/Tappd.TdxQuote", arguments)
        quote, events = hex_of(answer, "quote"), text_of(answer, "event_log")
        check_echo(quote, report_data)
        if self._compose is None:
            self._compose = compose_of(await self._asked("/prpc/Tappd.Info", {}))
        return Quote(technology="tdx", quote=quote, event_log=events.encode(), compose=self._compose)

    async def gpu(self, nonce: bytes) -> bytes | None:
        return None

    async def _asked(self, path: str, arguments: dict[str, Any]) -> dict[str, Any]:
        answer = await self._socket.call(path, arguments)
        if answer is None:
            raise Unavailable(f"the agent at {self._socket.endpoint} does not know {path}")
        return answer
