# SPDX-License-Identifier: Apache-2.0
"""The hardware makers' root certificates, pinned, and the trust class each may give.

Always: a root that does not stand here can only ever give `simulated`. A policy cannot promote it: the class is
computed from the certificate's bytes, so no setting and no peer can present a simulator as hardware (spec ATT).
"""

from __future__ import annotations

import base64
from enum import StrEnum
from typing import Final

from bombyx.protocol.attest.roots_amd import AMD_ROOTS
from bombyx.protocol.primitives import Digest, sha256


class TrustClass(StrEnum):
    """What stands behind an enclave. Computed by the verifier; never stated by the peer."""

    TDX = "tdx"
    TDX_GPU = "tdx+gpu"
    SNP = "snp"
    SGX = "sgx"
    SIMULATED = "simulated"  # protects from nobody who owns the host


# Intel SGX Root CA, valid 2018-05-21 .. 2049-12-31, as published in Intel's Provisioning Certification Service.
INTEL_ROOT: Final = base64.b64decode(
    "MIICjzCCAjSgAwIBAgIUImUM1lqdNInzg7SVUr9QGzknBqwwCgYIKoZIzj0EAwIwaDEaMBgGA1UEAwwRSW50ZWwgU0dYIFJvb3QgQ0ExGjAYBgNV"
    "BAoMEUludGVsIENvcnBvcmF0aW9uMRQwEgYDVQQHDAtTYW50YSBDbGFyYTELMAkGA1UECAwCQ0ExCzAJBgNVBAYTAlVTMB4XDTE4MDUyMTEwNDUx"
    "MFoXDTQ5MTIzMTIzNTk1OVowaDEaMBgGA1UEAwwRSW50ZWwgU0dYIFJvb3QgQ0ExGjAYBgNVBAoMEUludGVsIENvcnBvcmF0aW9uMRQwEgYDVQQH"
    "DAtTYW50YSBDbGFyYTELMAkGA1UECAwCQ0ExCzAJBgNVBAYTAlVTMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEC6nEwMDIYZOj/iPWsCzaEKi7"
    "1OiOSLRFhWGjbnBVJfVnkY4u3IjkDYYL0MxO4mqsyYjlBalTVYxFP2sJBK5zlKOBuzCBuDAfBgNVHSMEGDAWgBQiZQzWWp00ifODtJVSv1AbOScG"
    "rDBSBgNVHR8ESzBJMEegRaBDhkFodHRwczovL2NlcnRpZmljYXRlcy50cnVzdGVkc2VydmljZXMuaW50ZWwuY29tL0ludGVsU0dYUm9vdENBLmRl"
    "cjAdBgNVHQ4EFgQUImUM1lqdNInzg7SVUr9QGzknBqwwDgYDVR0PAQH/BAQDAgEGMBIGA1UdEwEB/wQIMAYBAf8CAQEwCgYIKoZIzj0EAwIDSQAw"
    "RgIhAOW/5QkR+S9CiSDcNoowLuPRLsWGf/Yi7GSX94BgwTwgAiEA4J0lrHoMs+Xo5o/sX6O9QWxHRAvZUGOdRQ7cvqRXaqI="
)

# NVIDIA Device Identity CA, valid from 2021-11-05, as shipped in NVIDIA's own verifier.
NVIDIA_ROOT: Final = base64.b64decode(
    "MIICCzCCAZCgAwIBAgIQLTZwscoQBBHB/sDoKgZbVDAKBggqhkjOPQQDAzA1MSIwIAYDVQQDDBlOVklESUEgRGV2aWNlIElkZW50aXR5IENBMQ8w"
    "DQYDVQQKDAZOVklESUEwIBcNMjExMTA1MDAwMDAwWhgPOTk5OTEyMzEyMzU5NTlaMDUxIjAgBgNVBAMMGU5WSURJQSBEZXZpY2UgSWRlbnRpdHkg"
    "Q0ExDzANBgNVBAoMBk5WSURJQTB2MBAGByqGSM49AgEGBSuBBAAiA2IABA5MFKM7+KViZljbQSlgfky/RRnEQScW9NDZF8SXgAW96r6u/Ve8Zggt"
    "cYpPi2BS4VFu6KfEIrhN6FcHG7WP05W+oM+hxj7nyA1r1jkB2Ry70YfThX3Ba1zOryOP+MJ9vaNjMGEwDwYDVR0TAQH/BAUwAwEB/zAOBgNVHQ8B"
    "Af8EBAMCAQYwHQYDVR0OBBYEFFeF/4PyY8xlfWi3Olv0jUrL+0lfMB8GA1UdIwQYMBaAFFeF/4PyY8xlfWi3Olv0jUrL+0lfMAoGCCqGSM49BAMD"
    "A2kAMGYCMQCPeFM3TASsKQVaT+8S0sO9u97PVGCpE9d/I42IT7k3UUOLSR/qvJynVOD1vQKVXf0CMQC+EY55WYoDBvs2wPAH1Gw4LbcwUN8QCff8"
    "bFmV4ZxjCRr4WXTLFHBKjbfneGSBWwA="
)

HARDWARE_ROOTS: Final[dict[tuple[Digest, str], TrustClass]] = {
    (sha256(INTEL_ROOT), "tdx"): TrustClass.TDX,
    (sha256(INTEL_ROOT), "sgx"): TrustClass.SGX,  # one root vouches for both; the technology tells them apart
    **{(sha256(root), "snp"): TrustClass.SNP for root in AMD_ROOTS.values()},
}


def trust_class_of(root: bytes, technology: str = "tdx") -> TrustClass:
    """The class a chain of this technology that ends in this root certificate (DER) may give."""
    return HARDWARE_ROOTS.get((sha256(root), technology), TrustClass.SIMULATED)
