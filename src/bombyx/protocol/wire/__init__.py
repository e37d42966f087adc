# SPDX-License-Identifier: Apache-2.0
"""Messages, and their one canonical encoding.

Deterministic CBOR (RFC 8949 section 4.2), or EIP-712 where a contract reads it.
"""
