# SPDX-License-Identifier: Apache-2.0
"""Evidence with nothing around it: a TDX, SGX or SEV-SNP quote, NVIDIA GPU evidence, or NVIDIA's tokens.

Not bound to anything by itself: what the report data is for, only whoever asked can say.
"""

from __future__ import annotations

from bombyx.protocol.attest import fields as read
from bombyx.protocol.attest import snp
from bombyx.protocol.attest.fields import Fields
from bombyx.protocol.attest.report import NONCE_SIZE, Part, Report


def technology_of(raw: bytes) -> str:
    """tdx, sgx or snp by the header alone; empty when it is none of them."""
    if len(raw) == snp.REPORT_SIZE and raw[1:4] == bytes(3) and 2 <= raw[0] <= 5:
        return snp.TECHNOLOGY
    version, tee = int.from_bytes(raw[:2], "little"), int.from_bytes(raw[4:8], "little")
    return {(4, 0x81): "tdx", (5, 0x81): "tdx", (3, 0): "sgx"}.get((version, tee), "")


def quote(raw: bytes) -> Report:
    """A quote of a known technology."""
    technology = technology_of(raw)
    return Report(form=f"bare {technology} quote", parts=(Part(name="quote", technology=technology, quote=raw),))


def gpu(document: Fields, raw: bytes) -> Report:
    """NVIDIA's evidence list, as its tools and APIs write it."""
    nonce = read.hexed(document, "nonce", NONCE_SIZE)
    return Report(form="NVIDIA GPU evidence", parts=(Part(name="GPUs", gpu_evidence=raw, gpu_nonce=nonce),))


def tokens(raw: bytes) -> Report:
    """A detached EAT of NVIDIA's."""
    return Report(form="NVIDIA attestation token", parts=(Part(name="tokens"),), tokens=raw)
