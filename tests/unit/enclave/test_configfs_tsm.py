# SPDX-License-Identifier: Apache-2.0
"""configfs-tsm, against a tree of files that behaves like the kernel's (ENC-1, ENC-6)."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bombyx.adapters.configfs_tsm import ATTEMPTS, ConfigfsEnclave, Reports, certificates_of
from bombyx.adapters.entropy import SystemEntropy
from bombyx.adapters.simulator import SimulatedEnclave, SimulatedPlatform
from bombyx.errors import ConfigError, MalformedMessage, Unavailable
from bombyx.protocol.attest.tdx import parse_quote

DATA = bytes(range(64))
ATTRIBUTES = ("provider", "generation", "inblob", "outblob", "auxblob")


@dataclass
class KernelTree(Reports):
    """A folder whose files change as the kernel's would; `disturb` runs while a report is read."""

    folder: Path
    make_report: Callable[[bytes], bytes]
    provider: bytes = b"tdx_guest\n"
    auxiliary: bytes = b""
    disturb: Callable[[KernelTree, Path], None] | None = None
    made: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.folder)

    def make(self, name: str) -> None:
        super().make(name)
        self.made.append(name)
        entry = self.root / name
        for attribute in ATTRIBUTES:
            (entry / attribute).write_bytes(b"")
        (entry / "provider").write_bytes(self.provider)
        (entry / "auxblob").write_bytes(self.auxiliary)
        (entry / "generation").write_bytes(b"0\n")

    def write(self, name: str, attribute: str, data: bytes) -> None:
        super().write(name, attribute, data)
        bump(self.root / name)

    def read(self, name: str, attribute: str) -> bytes:
        entry = self.root / name
        if attribute == "outblob":
            if self.disturb is not None:
                self.disturb(self, entry)
            (entry / "outblob").write_bytes(self.make_report((entry / "inblob").read_bytes()))
        return super().read(name, attribute)

    def remove(self, name: str) -> None:
        for attribute in ATTRIBUTES:  # configfs removes attributes with their folder
            (self.root / name / attribute).unlink()
        super().remove(name)


def bump(entry: Path) -> None:
    file = entry / "generation"
    file.write_bytes(b"%d\n" % (int(file.read_bytes()) + 1))


@pytest.fixture
def left(tmp_path: Path) -> dict[str, Path]:
    """What the image's init leaves."""
    (tmp_path / "event-log.json").write_bytes(b"[]")
    (tmp_path / "app-compose.json").write_bytes(b"{}")
    return {
        "event_log": tmp_path / "event-log.json",
        "compose": tmp_path / "app-compose.json",
        "gpu_device": tmp_path / "nvidiactl",
    }


@pytest.fixture
def tdx(tmp_path: Path, platform: SimulatedPlatform) -> KernelTree:
    enclave = SimulatedEnclave(platform=platform)
    (tmp_path / "report").mkdir()
    return KernelTree(tmp_path / "report", lambda data: platform.quote(enclave.report(data)))


def snp_report(data: bytes) -> bytes:
    return bytes(0x50) + data + bytes(1184 - 0x90)


async def test_a_tdx_quote(tdx: KernelTree, left: dict[str, Path]) -> None:
    """ENC-1: our bytes, the files of the init, and nothing left behind."""
    made = await ConfigfsEnclave(SystemEntropy(), reports=tdx, **left).quote(DATA)
    assert (made.technology, made.event_log, made.compose) == ("tdx", b"[]", b"{}")
    assert parse_quote(made.quote).body[520:584] == DATA
    assert list(tdx.root.iterdir()) == []


async def test_an_snp_report_brings_its_certificates(tmp_path: Path, left: dict[str, Path]) -> None:
    """ENC-1: report of AMD, and the chain the host handed in, leaf first."""
    certificates = {"c0b406a4a803495297433fb6014cd0ae": b"ark", "63da758de6644564adc5f4b93be8accd": b"vcek"}
    start, table, blob = 24 * (len(certificates) + 1), b"", b""
    for guid, body in certificates.items():
        table += struct.pack("<16sII", bytes.fromhex(guid), start + len(blob), len(body))
        blob += body
    (tmp_path / "report").mkdir()
    tree = KernelTree(tmp_path / "report", snp_report, provider=b"sev_guest", auxiliary=table + bytes(24) + blob)
    source = ConfigfsEnclave(SystemEntropy(), reports=tree, **left)
    with pytest.raises(Unavailable):
        await source.endorsements(b"")
    made = await source.quote(DATA)
    assert (made.technology, len(made.quote)) == ("snp", 1184)
    chain = await source.endorsements(made.quote)
    assert chain.count(b"BEGIN CERTIFICATE") == 2
    assert chain.index(b"dmNlaw==") < chain.index(b"YXJr")  # "vcek", "ark"


async def test_somebody_else_writes_between_our_write_and_our_read(tdx: KernelTree, left: dict[str, Path]) -> None:
    """ENC-6: the report for their input is thrown away, and ours asked for again."""

    def once(tree: KernelTree, entry: Path) -> None:
        if len(tree.made) == 1:
            (entry / "inblob").write_bytes(bytes(64))
            bump(entry)

    tdx.disturb = once
    made = await ConfigfsEnclave(SystemEntropy(), reports=tdx, **left).quote(DATA)
    assert parse_quote(made.quote).body[520:584] == DATA
    assert len(tdx.made) == 2


async def test_somebody_who_never_stops_writing(tdx: KernelTree, left: dict[str, Path]) -> None:
    """ENC-6: given up, not given in."""
    tdx.disturb = lambda tree, entry: bump(entry)
    with pytest.raises(Unavailable, match="ENC-6"):
        await ConfigfsEnclave(SystemEntropy(), reports=tdx, **left).quote(DATA)
    assert len(tdx.made) == ATTEMPTS
    assert list(tdx.root.iterdir()) == []


async def test_a_busy_device_is_asked_again_a_broken_one_is_not(tdx: KernelTree, left: dict[str, Path]) -> None:
    """ENC-6."""
    codes = iter([errno.EBUSY, errno.EINTR])

    def busy(tree: KernelTree, entry: Path) -> None:
        code = next(codes, 0)
        if code:
            raise OSError(code, "busy")

    tdx.disturb = busy
    source = ConfigfsEnclave(SystemEntropy(), reports=tdx, **left)
    await source.quote(DATA)
    assert len(tdx.made) == 3
    codes = iter([errno.EIO])
    with pytest.raises(Unavailable, match="failed"):
        await source.quote(DATA)
    assert list(tdx.root.iterdir()) == []


async def test_a_quote_for_other_data_under_an_honest_counter(tdx: KernelTree, left: dict[str, Path]) -> None:
    """ENC-1: the counter is not believed alone."""

    def swap(tree: KernelTree, entry: Path) -> None:
        (entry / "inblob").write_bytes(bytes(64))

    tdx.disturb = swap
    with pytest.raises(MalformedMessage, match="ENC-1"):
        await ConfigfsEnclave(SystemEntropy(), reports=tdx, **left).quote(DATA)


@pytest.mark.parametrize("provider", [b"arm_cca_guest", b"", b"\xff"])
async def test_a_provider_we_do_not_know(provider: bytes, tdx: KernelTree, left: dict[str, Path]) -> None:
    """ENC-1: its report would be bytes without meaning."""
    tdx.provider = provider
    with pytest.raises(Unavailable, match="provider"):
        await ConfigfsEnclave(SystemEntropy(), reports=tdx, **left).quote(DATA)


async def test_a_machine_with_a_gpu_is_not_passed_off_as_one_without(tdx: KernelTree, left: dict[str, Path]) -> None:
    """ENC-1."""
    source = ConfigfsEnclave(SystemEntropy(), reports=tdx, **left)
    assert await source.gpu(bytes(32)) is None
    left["gpu_device"].touch()
    with pytest.raises(Unavailable, match="GPU"):
        await source.gpu(bytes(32))


async def test_no_tsm_and_no_init(tmp_path: Path, tdx: KernelTree, left: dict[str, Path]) -> None:
    """ENC-6: what is missing is named."""
    with pytest.raises(ConfigError, match="configfs"):
        ConfigfsEnclave(SystemEntropy(), reports=Reports(tmp_path / "none"), **left)
    left["compose"].unlink()
    with pytest.raises(Unavailable, match=r"app-compose\.json"):
        await ConfigfsEnclave(SystemEntropy(), reports=tdx, **left).quote(DATA)


@pytest.mark.parametrize("table", [b"", bytes(24), b"x", b"\x01" * 23])
def test_tables_without_certificates(table: bytes) -> None:
    """ENC-6: nothing handed in is nothing."""
    assert certificates_of(table) == b""


def test_a_table_that_points_outside_itself() -> None:
    """ENC-6."""
    with pytest.raises(MalformedMessage):
        certificates_of(struct.pack("<16sII", b"\x01" * 16, 24, 1))
