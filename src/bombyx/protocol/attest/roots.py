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

# NVIDIA CoRIM signing Root CA, valid 2023-03-16 .. 2053-03-08, as shipped in NVIDIA's own verifier.
NVIDIA_RIM_ROOT: Final = base64.b64decode(
    "MIICKTCCAbCgAwIBAgIQRdrjoA5QN73fh1N17LXicDAKBggqhkjOPQQDAzBFMQswCQYDVQQGEwJVUzEPMA0GA1UECgwGTlZJRElBMSUwIwYDVQQDDBxO"
    "VklESUEgQ29SSU0gc2lnbmluZyBSb290IENBMCAXDTIzMDMxNjE1MzczNFoYDzIwNTMwMzA4MTUzNzM0WjBFMQswCQYDVQQGEwJVUzEPMA0GA1UECgwG"
    "TlZJRElBMSUwIwYDVQQDDBxOVklESUEgQ29SSU0gc2lnbmluZyBSb290IENBMHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEuECyi9vNM+Iw2lfUzyBldHAw"
    "aC1HF7TCgp12QcEyUTm3Tagxwr48d55+K2VIlWYIDk7NlAIQdcV/Ff7euGLI+Qauj93HsSI4WX298PpW54RTgz9tC+Q684caR/BXWEeZo2MwYTAdBgNV"
    "HQ4EFgQUpaXrOPK4ZDAk08DBskn594zeZjAwHwYDVR0jBBgwFoAUpaXrOPK4ZDAk08DBskn594zeZjAwDwYDVR0TAQH/BAUwAwEB/zAOBgNVHQ8BAf8E"
    "BAMCAQYwCgYIKoZIzj0EAwMDZwAwZAIwHGDyscDP6ihHqRvZlI3eqZ4YkvjE1duaN84tAHRVgxVMvNrp5Tnom3idHYGW/dskAjATvjIx6VzHm/4e2GiZ"
    "AyZEIUBDOKPzp5ei/A0iUZpdvngenDwV8Qa/wGdiTmJ7Bp4="
)

# NVIDIA Attestation Service GPU Intermediate 004, valid 2025-12-08 .. 2029-12-08: issues the keys of the Remote
# Attestation Service's tokens, as found in every entry of its published key set.
NVIDIA_TOKEN_AUTHORITY: Final = base64.b64decode(
    "MIIDjjCCAxWgAwIBAgIUX+djej7sXIvcZ8Ym8KJF8WsI3UMwCgYIKoZIzj0EAwMwVjELMAkGA1UEBhMCVVMxGzAZBgNVBAoMEk5WSURJQSBDb3Jwb3Jh"
    "dGlvbjEqMCgGA1UEAwwhTlZJRElBIEF0dGVzdGF0aW9uIFNlcnZpY2UgQ0EgMDAxMB4XDTI1MTIwODAwMDAwMFoXDTI5MTIwODAwMDAwMFowZDE4MDYG"
    "A1UEAwwvTlZJRElBIEF0dGVzdGF0aW9uIFNlcnZpY2UgR1BVIEludGVybWVkaWF0ZSAwMDQxGzAZBgNVBAoMEk5WSURJQSBDb3Jwb3JhdGlvbjELMAkG"
    "A1UEBhMCVVMwggEiMA0GCSqGSIb3DQEBAQUAA4IBDwAwggEKAoIBAQDCmOUQzlKU+iKzdXwJZBpjIwkO2ZhrbeevIScmqL6QdkZMdj9FKxFResOdPoJA"
    "0IxMDwYFMy87MIJYV/hRAo9ut6q0OZiZwPFSfxqN+ZcDyFMkYEnHvMgFaSuYxMiNWm9WcOcOih8FdX0s8qmkHq+NM48l8R7VNhX0HB2IZ2mxp4nH/dxp"
    "FcbpRavaECEvLqbUSvSNAmg+xNCCVsihKPF/rksGZK1wky6E8HcydYxydK2MP95dc5Ovqq80COxCPgsjgUN/JT9Gr9iNXaof9W2ZKqasCjADRfITS7N9"
    "SQsp7Jv6UudT5tFbFKp7gCKwpjjUgQEUo3JkWTHiBuRrBZWFAgMBAAGjgecwgeQwDwYDVR0TAQH/BAUwAwEB/zAOBgNVHQ8BAf8EBAMCAQYwSAYDVR0f"
    "BEEwPzA9oDugOYY3aHR0cDovL2NybC5uZGlzLm52aWRpYS5jb20vY3JsLW5yYXMvbnYtbnJhcy1sMS1yb290LmNybDA3BggrBgEFBQcBAQQrMCkwJwYI"
    "KwYBBQUHMAGGG2h0dHA6Ly9vY3NwLm5kaXMubnZpZGlhLmNvbTAdBgNVHQ4EFgQU+qgA049NpzpcZ2zfUTukavKMrt0wHwYDVR0jBBgwFoAUvgpv7XnC"
    "SKqKNwsm9oU3MWxyBL8wCgYIKoZIzj0EAwMDZwAwZAIwEaF8qbwlAoAWNm7WNnqdECSs9uQxqQkl1eQLKJIVEC+XsHTL2SGBrbUGlLX89zf/AjAL0Xav"
    "/uW7dMhqSqqE86RiojGbZR5jRNtWAJIw/YH9yBAJ5ktCAqSSfrJ4qjzf48U="
)

HARDWARE_ROOTS: Final[dict[tuple[Digest, str], TrustClass]] = {
    (sha256(INTEL_ROOT), "tdx"): TrustClass.TDX,
    (sha256(INTEL_ROOT), "sgx"): TrustClass.SGX,  # one root vouches for both; the technology tells them apart
    **{(sha256(root), "snp"): TrustClass.SNP for root in AMD_ROOTS.values()},
}


def trust_class_of(root: bytes, technology: str = "tdx") -> TrustClass:
    """The class a chain of this technology that ends in this root certificate (DER) may give."""
    return HARDWARE_ROOTS.get((sha256(root), technology), TrustClass.SIMULATED)
