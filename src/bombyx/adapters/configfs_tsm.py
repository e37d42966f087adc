# SPDX-License-Identifier: Apache-2.0
"""Linux's own attestation interface, configfs-tsm, as the enclave's device (`ports.EvidenceSource`): TDX and SEV-SNP.

Kernel 6.7 and later; Documentation/ABI/testing/configfs-tsm-report. One report: make a folder, write `inblob`, read
`outblob`; `generation` counts writes, so that a report for somebody else's input is noticed.
The kernel has no event log of the runtime: the image's init leaves it, and the compose file, in two files.

Not here: GPU evidence. A machine with a GPU is refused, not passed off as one without.
Always: each report has a folder of its own, removed afterwards; a report made while another wrote is thrown away and
asked for again; a report that does not carry our 64 bytes is never used (spec ENC-1, ENC-6).
"""

from __future__ import annotations

import asyncio
import errno
import struct
from base64 import encodebytes
from pathlib import Path
from typing import Final

from bombyx.adapters.dstack import check_echo
from bombyx.errors import ConfigError, MalformedMessage, Peer, Unavailable
from bombyx.ports import Entropy, Quote

REPORTS: Final = Path("/sys/kernel/config/tsm/report")
EVENT_LOG: Final = Path("/run/bombyx/event-log.json")
COMPOSE: Final = Path("/run/bombyx/app-compose.json")
GPU_DEVICE: Final = Path("/dev/nvidiactl")
TECHNOLOGIES: Final = {"tdx_guest": "tdx", "sev_guest": "snp"}
ATTEMPTS: Final = 5
MAX_BLOB: Final = 1 << 20  # bytes; a quote has 8 kB, AMD's certificates 6 kB
SNP_REPORT: Final = 1184  # bytes
SNP_REPORT_DATA_AT: Final = 0x50
_AGAIN: Final = (errno.EWOULDBLOCK, errno.EBUSY, errno.EINTR, errno.ETIMEDOUT)
_CERTIFICATES: Final = {  # SEV-ES GHCB standardization, 4.1.8.1: GUIDs in their byte order on disk
    bytes.fromhex("63da758de6644564adc5f4b93be8accd"): 0,  # VCEK
    bytes.fromhex("a8074bc2a25a483eaae639c045a0b8a1"): 0,  # VLEK
    bytes.fromhex("4ab7b379bbac4fe4a02f05aef327c782"): 1,  # ASK
    bytes.fromhex("c0b406a4a803495297433fb6014cd0ae"): 2,  # ARK
}
_ENTRY: Final = struct.Struct("<16sII")


class Reports:
    """The kernel's folder. A class of its own, so that tests put a tree of files in its place."""

    def __init__(self, root: Path = REPORTS) -> None:
        self.root = root

    def make(self, name: str) -> None:
        (self.root / name).mkdir()

    def write(self, name: str, attribute: str, data: bytes) -> None:
        (self.root / name / attribute).write_bytes(data)

    def read(self, name: str, attribute: str) -> bytes:
        with (self.root / name / attribute).open("rb") as file:
            return file.read(MAX_BLOB)

    def remove(self, name: str) -> None:
        (self.root / name).rmdir()


class ConfigfsEnclave:
    """This machine, seen from inside (`ports.EvidenceSource`; for SEV-SNP also `ports.EndorsementSource`)."""

    def __init__(
        self,
        entropy: Entropy,
        *,
        reports: Reports | None = None,
        event_log: Path = EVENT_LOG,
        compose: Path = COMPOSE,
        gpu_device: Path = GPU_DEVICE,
    ) -> None:
        self._entropy = entropy
        self._reports = reports or Reports()
        if not self._reports.root.is_dir():
            raise ConfigError(f"no configfs-tsm here: {self._reports.root} is missing (kernel 6.7, configfs mounted)")
        self._event_log, self._compose, self._gpu_device = event_log, compose, gpu_device
        self._certificates = b""

    async def quote(self, report_data: bytes) -> Quote:
        return await asyncio.to_thread(self._quote, report_data)

    async def gpu(self, nonce: bytes) -> bytes | None:
        if self._gpu_device.exists():
            raise Unavailable("this machine has a GPU, and configfs-tsm attests none: run the worker under dstack")
        return None

    async def endorsements(self, quote: bytes) -> bytes:
        """SEV-SNP: the certificates the host handed in with the last report (VCEK, ASK, ARK), PEM, leaf first."""
        if not self._certificates:
            raise Unavailable("the host handed in no certificates with the report", rule="ATT-11")
        return self._certificates

    def _quote(self, report_data: bytes) -> Quote:
        if len(report_data) != 64:
            raise MalformedMessage(f"report data of {len(report_data)} bytes, expected 64", rule="ENC-1")
        for _ in range(ATTEMPTS):
            found = self._attempt(report_data)
            if found is not None:
                return found
        raise Unavailable("the report was disturbed each time it was asked for", rule="ENC-6")

    def _attempt(self, report_data: bytes) -> Quote | None:
        """One report in a folder of its own; None when somebody else wrote there, or the device was busy."""
        name = f"bombyx-{self._entropy.bytes(8).hex()}"
        try:
            self._reports.make(name)
        except OSError as error:
            raise Unavailable(f"cannot ask for a report: {error.strerror} ({self._reports.root})") from None
        try:
            return self._read(name, report_data)
        except OSError as error:
            if error.errno in _AGAIN:
                return None
            raise Unavailable(f"the enclave device failed: {error.strerror}") from None
        finally:
            self._remove(name)

    def _read(self, name: str, report_data: bytes) -> Quote | None:
        technology = self._technology(name)
        before = self._generation(name)
        self._reports.write(name, "inblob", report_data)
        report = self._reports.read(name, "outblob")
        auxiliary = self._reports.read(name, "auxblob") if technology == "snp" else b""
        if self._generation(name) != before + 1:  # ours is the one write there may be
            return None
        if technology == "snp":
            _check_snp_echo(report, report_data)
            self._certificates = certificates_of(auxiliary)
            return Quote(technology="snp", quote=report, event_log=b"[]", compose=_file(self._compose))
        check_echo(report, report_data)
        return Quote(technology="tdx", quote=report, event_log=_file(self._event_log), compose=_file(self._compose))

    def _technology(self, name: str) -> str:
        provider = self._reports.read(name, "provider").strip().decode("ascii", "replace")
        if provider not in TECHNOLOGIES:
            raise Unavailable(f"configfs-tsm's provider is {provider[:40]!r}; known: {', '.join(TECHNOLOGIES)}")
        return TECHNOLOGIES[provider]

    def _generation(self, name: str) -> int:
        try:
            return int(self._reports.read(name, "generation"))
        except ValueError:
            raise MalformedMessage("configfs-tsm's generation is no number", peer=Peer.HOST, rule="ENC-6") from None

    def _remove(self, name: str) -> None:
        try:
            self._reports.remove(name)
        except OSError as error:
            raise Unavailable(f"cannot give a report's folder back: {error.strerror}") from None


def _check_snp_echo(report: bytes, report_data: bytes) -> None:
    if len(report) != SNP_REPORT or report[SNP_REPORT_DATA_AT : SNP_REPORT_DATA_AT + 64] != report_data:
        raise MalformedMessage("the report does not carry our report data", peer=Peer.HOST, rule="ENC-1")


def certificates_of(table: bytes) -> bytes:
    """AMD's certificates in the GHCB's table, PEM, leaf first; empty where the host handed in none."""
    found: list[tuple[int, bytes]] = []
    for position in range(0, min(len(table), 32 * _ENTRY.size), _ENTRY.size):
        if len(table) < position + _ENTRY.size:
            break
        guid, start, size = _ENTRY.unpack_from(table, position)
        if not any(guid):
            break
        if start + size > len(table):
            raise MalformedMessage("the table of certificates points outside itself", peer=Peer.HOST, rule="ENC-6")
        if guid in _CERTIFICATES:
            found.append((_CERTIFICATES[guid], table[start : start + size]))
    return b"".join(_pem(certificate) for _, certificate in sorted(found))


def _pem(der: bytes) -> bytes:
    body = encodebytes(der).replace(b"\n", b"")
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return b"\n".join([b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""])


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unavailable(f"the image's init left no {path} ({error.strerror})") from None
