# SPDX-License-Identifier: Apache-2.0
"""Just enough DER (X.690) to write the extension Intel puts into a PCK certificate. Writes only; reads nothing."""

from __future__ import annotations

SGX_EXTENSION = "1.2.840.113741.1.13.1"  # Intel SGX PCK Certificate and CRL Specification, section 1.3.5


def _tlv(tag: int, body: bytes) -> bytes:
    if len(body) < 0x80:
        return bytes([tag, len(body)]) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + body


def _sequence(*parts: bytes) -> bytes:
    return _tlv(0x30, b"".join(parts))


def _octets(value: bytes) -> bytes:
    return _tlv(0x04, value)


def _integer(value: int, tag: int = 0x02) -> bytes:
    return _tlv(tag, value.to_bytes((value.bit_length() + 8) // 8, "big"))


def _oid(dotted: str) -> bytes:
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    return _tlv(0x06, bytes([first * 40 + second]) + b"".join(_arc(arc) for arc in rest))


def _arc(value: int) -> bytes:
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(0x80 | (value & 0x7F))
    return bytes(reversed(groups))


def sgx_extension(*, ppid: bytes, cpu_svn: bytes, pce_svn: int, fmspc: bytes, instance: bytes) -> bytes:
    """The value of the SGX extension: what platform this is, and how far it is patched."""

    def entry(suffix: str, value: bytes) -> bytes:
        return _sequence(_oid(f"{SGX_EXTENSION}.{suffix}"), value)

    levels = [entry(f"2.{index + 1}", _integer(svn)) for index, svn in enumerate(cpu_svn)]
    levels += [entry("2.17", _integer(pce_svn)), entry("2.18", _octets(cpu_svn))]
    no = _tlv(0x01, b"\x00")
    configuration = [entry("7.1", no), entry("7.2", no), entry("7.3", no)]  # dynamic, cached keys, SMT
    return _sequence(
        entry("1", _octets(ppid)),
        entry("2", _sequence(*levels)),
        entry("3", _octets(bytes(2))),
        entry("4", _octets(fmspc)),
        entry("5", _integer(1, 0x0A)),
        entry("6", _octets(instance)),
        entry("7", _sequence(*configuration)),
    )
