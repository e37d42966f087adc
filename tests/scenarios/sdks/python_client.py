# SPDX-License-Identifier: Apache-2.0
"""Run by another interpreter that holds the real dstack-sdk: makes every call and prints what came back as JSON.

Arguments: dstack endpoint, tappd endpoint.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import warnings
from typing import Any

import httpx
from dstack_sdk import (  # type: ignore[import-not-found]  # not of our environment, by intent
    AsyncDstackClient,
    DstackClient,
    TappdClient,
    get_compose_hash,
)

warnings.simplefilter("ignore")
dstack, tappd = sys.argv[1:3]
client = DstackClient(dstack)
told: dict[str, Any] = {"reachable": client.is_reachable(), "version": client.version().version}

info = client.info()
told["compose_hash"] = info.compose_hash
told["compose_hash_by_sdk"] = get_compose_hash(json.loads(info.tcb_info.app_compose))
told["app_id"] = info.app_id

for name, curve in (("secp256k1", "secp256k1"), ("k256", "k256"), ("ed25519", "ed25519")):
    key = client.get_key("wallet", "pay", curve)
    told[f"key_{name}"] = [key.decode_key().hex(), *(link.hex() for link in key.decode_signature_chain())]

client.emit_event("said", "hello")
quote = client.get_quote(b"hello")
told["quote"] = quote.decode_quote().hex()
told["event_log"] = quote.event_log
told["replayed"] = [quote.replay_rtmrs()[n] for n in range(4)]
told["events"] = [event.event for event in quote.decode_event_log()]
told["attestation"] = client.attest(b"x").decode_attestation().hex()

told["signatures"] = {}
for algorithm, data in (
    ("ed25519", b"hi"),
    ("secp256k1", b"hi"),
    ("secp256k1_prehashed", hashlib.sha256(b"hi").digest()),
):
    signed = client.sign(algorithm, data)
    told["signatures"][algorithm] = [
        client.verify(algorithm, data, signed.decode_signature(), signed.decode_public_key()).valid,
        client.verify(algorithm, data[::-1], signed.decode_signature(), signed.decode_public_key()).valid,
        len(signed.signature_chain),
    ]

tls = client.get_tls_key("svc", ["a.local"], usage_ra_tls=True, not_before=1, not_after=4102444800)
told["tls"] = [tls.key.splitlines()[0], len(tls.certificate_chain), len(tls.as_uint8array(32))]
told["certificate"] = tls.certificate_chain[0]

legacy = TappdClient(tappd)
told["derived"] = [hashlib.sha256(legacy.derive_key(path, "solana").as_uint8array()).hexdigest() for path in "aab"]
told["tdx_quote"] = legacy.tdx_quote("some data", "sha512").quote
told["tdx_quote_raw"] = legacy.tdx_quote(b"r" * 64, "raw").quote
told["legacy_app_id"] = legacy.info().app_id

try:
    client.sign("rot13", "hi")
    told["refused"] = 0
except httpx.HTTPStatusError as error:
    told["refused"] = error.response.status_code


async def in_a_loop() -> str:
    async with AsyncDstackClient(dstack) as mine:
        return str((await mine.get_key("wallet", "pay")).key)


told["async_key"] = asyncio.run(in_a_loop())
print(json.dumps(told))
