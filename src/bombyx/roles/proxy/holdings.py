# SPDX-License-Identifier: Apache-2.0
"""What this process may write, where several share one store: a lease for each client's channel, one for its slot.

A slot is a small number. It is the salt of the channels this process pays workers from, so that each replica has its
own channel to each worker, and a replica that starts takes over those of one that is gone.

Always: a row is written under the lease that is held when it is made, not when it is sent; a row without a lease gets
one that nobody can hold, so the store refuses it. A process that has the store alone has no leases (`shared` False).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from bombyx.ports import Lease
from bombyx.protocol.primitives import Digest

PAYEE, PAYER, RECEIPT, DEBT = "proxy_payee", "proxy_payer", "proxy_receipt", "proxy_debt"  # tables
NEVER: Final = 0  # a token no lease has
_CHANNEL: Final = b"channel:"
_SLOT: Final = b"slot:"


def channel_name(channel: bytes) -> bytes:
    return _CHANNEL + channel


def slot_name(slot: int) -> bytes:
    return _SLOT + slot.to_bytes(2)


def channel_of(name: bytes) -> Digest | None:
    return Digest(name.removeprefix(_CHANNEL)) if name.startswith(_CHANNEL) else None


class Holdings:
    """One per proxy process."""

    def __init__(self, *, shared: bool) -> None:
        self.shared = shared
        self.slot = 0
        self.on_lost: Callable[[bytes], None] = lambda name: None
        self._leases: dict[bytes, Lease] = {}

    def add(self, lease: Lease) -> None:
        self._leases[lease.name] = lease

    def remove(self, name: bytes) -> Lease | None:
        """We give it back."""
        return self._leases.pop(name, None)

    def lost(self, leases: Iterable[tuple[bytes, int]]) -> None:
        """The store says that these have a successor."""
        for name, token in leases:
            held = self._leases.get(name)
            if held is not None and held.token == token:
                del self._leases[name]
                self.on_lost(name)
            elif held is None and token == NEVER:
                self.on_lost(name)  # it was written to without a lease: whoever did must let go

    def taken(self, names: Iterable[bytes]) -> None:
        """These were taken from us, whatever token we had."""
        self.lost([(name, self._leases[name].token) for name in names if name in self._leases])

    def has(self, name: bytes) -> bool:
        return not self.shared or name in self._leases

    def fence(self, table: str, key: bytes) -> Lease | None:
        """The lease a row is written under."""
        if not self.shared or table == DEBT:  # a debt is a fact whoever notes it; its reader checks it
            return None
        if table == PAYER:
            name = slot_name(self.slot)
        else:
            name = channel_name(key[1:33] if table == PAYEE else key[:32])
        return self._leases.get(name) or Lease(name=name, token=NEVER)
