# SPDX-License-Identifier: Apache-2.0
"""A simulated TDX machine and its maker: quotes v4 and v5 in Intel's format, and collateral, under a root of its own.

Not hardware: it protects from nobody who can read the seed, and no verifier calls it anything but `simulated`.
Always: seed, settings and dates determine every byte. Layouts: Intel TDX DCAP Quoting Library API, A.3 and A.4.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import json
import struct
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import orjson
from cryptography.hazmat.primitives.serialization import Encoding

from bombyx.adapters.simulator import pki
from bombyx.adapters.simulator.der import sgx_extension
from bombyx.errors import ConfigError
from bombyx.protocol.primitives import Instant, Secret

QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")  # fixed by the quote format
CPU_SVN: Final = bytes([3, 3, 2, 2, 4, 1, 0, 5]) + bytes(8)
_TEE_TCB_SVN: Final = bytes([6, 1, 3]) + bytes(13)
_PCE_SVN: Final = 11
_SEPT_VE_DISABLE: Final = 0x10  # TD attributes, fourth byte
_QE_ATTRIBUTES: Final = bytes.fromhex("1500000000000000e700000000000000")
QE_AUTH: Final = bytes(range(32))
_SEED_FILE, _SETTINGS_FILE, _ROOT_FILE = "seed.key", "platform.json", "root.pem"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformSettings:
    """What a test may want otherwise. The default is a healthy machine."""

    tcb_status: str = "UpToDate"
    revoke_pck: bool = False
    collateral_days: int = 30
    crl_days: int = 30
    fmspc: str = "f0510fffff00"  # the kind of platform; no Intel one has this


@dataclass(frozen=True, slots=True, kw_only=True)
class TdReport:
    """What the (simulated) TDX module reports of one TD."""

    mrtd: bytes
    rtmr: tuple[bytes, ...]  # four
    report_data: bytes
    mr_config_id: bytes = b""
    debug: bool = False
    version: int = 4  # of the quote

    def encode(self) -> bytes:
        attributes = bytes([self.debug, 0, 0, _SEPT_VE_DISABLE, 0, 0, 0, 0])
        parts = (
            _TEE_TCB_SVN,
            hashlib.sha384(b"bombyx simulated tdx module").digest(),
            bytes(48 + 8),
            attributes,
            bytes.fromhex("e702060000000000"),
            self.mrtd.ljust(48, b"\0"),
            self.mr_config_id.ljust(48, b"\0"),
            bytes(96),
            *self.rtmr,
            self.report_data.ljust(64, b"\0"),
        )
        return b"".join(parts) + (_TEE_TCB_SVN + bytes(48) if self.version == 5 else b"")


@dataclass(frozen=True, kw_only=True)
class SimulatedPlatform:
    """One machine, its quoting enclave, and the authority that vouches for it."""

    seed: Secret
    created: Instant
    settings: PlatformSettings = field(default_factory=PlatformSettings)

    @classmethod
    def create(cls, *, seed: bytes, now: Instant, settings: PlatformSettings | None = None) -> SimulatedPlatform:
        if len(seed) < 16:
            raise ConfigError("a simulated platform's seed has at least 16 bytes", rule="ATT-12")
        created = Instant(now - now % 1000)
        return cls(seed=Secret(seed), created=created, settings=settings or PlatformSettings())

    def with_settings(self, **changes: Any) -> SimulatedPlatform:
        """The same machine in another state: same root, same keys."""
        return replace(self, settings=replace(self.settings, **changes))

    @functools.cached_property
    def _root(self) -> pki.Issuer:
        return pki.root(self.seed.reveal(), self.created)

    @functools.cached_property
    def _authority(self) -> pki.Issuer:
        return pki.authority(self._root, self.seed.reveal(), self.created)

    @functools.cached_property
    def keys(self) -> dict[str, Any]:
        return {name: pki.derive_key(self.seed.reveal(), name) for name in ("tcb", "pck", "attestation")}

    @functools.cached_property
    def _tcb_signer(self) -> Any:
        return pki.leaf("Simulated SGX TCB Signing", self._root, self.keys["tcb"], self.created)

    @functools.cached_property
    def _pck(self) -> Any:
        extension = sgx_extension(
            ppid=self.machine_id,
            cpu_svn=CPU_SVN,
            pce_svn=_PCE_SVN,
            fmspc=bytes.fromhex(self.settings.fmspc),
            instance=self.machine_id,
        )
        return pki.leaf("Simulated SGX PCK Certificate", self._authority, self.keys["pck"], self.created, extension)

    @property
    def machine_id(self) -> bytes:
        """16 bytes: in the certificate (PPID) and, with zeros behind it, in every quote's header."""
        return hashlib.sha256(b"simulated machine" + self.root_certificate).digest()[:16]

    @functools.cached_property
    def root_certificate(self) -> bytes:
        """DER. Named in a policy, it gives the trust class `simulated`."""
        return self._root.certificate.public_bytes(Encoding.DER)

    # QUOTE

    def quote(self, report: TdReport) -> bytes:
        """A quote over `report`, in the version it asks for."""
        body, version = report.encode(), report.version
        header = struct.pack("<HHIHH", version, 2, 0x81, 0, 0) + QE_VENDOR + self.machine_id + bytes(4)
        signed = header + (struct.pack("<HI", 3, len(body)) if version == 5 else b"") + body
        certification = self._certification
        attestation = self.keys["attestation"]
        auth = pki.sign_raw(attestation, signed) + pki.public_raw(attestation)
        auth += struct.pack("<HI", 6, len(certification)) + certification
        return signed + struct.pack("<I", len(auth)) + auth

    @functools.cached_property
    def _certification(self) -> bytes:
        """The quoting enclave's own report, signed by the PCK, and the PCK's chain."""
        report = self.qe_report
        chain = self.chain_pem
        signature = pki.sign_raw(self.keys["pck"], report)
        auth = struct.pack("<H", len(QE_AUTH)) + QE_AUTH
        return report + signature + auth + struct.pack("<HI", 5, len(chain)) + chain

    @property
    def chain_pem(self) -> bytes:
        """The PCK certificate and those above it."""
        return (pki.pem(self._pck) + pki.pem(self._authority.certificate) + pki.pem(self._root.certificate)).encode()

    @property
    def qe_report(self) -> bytes:
        bound = hashlib.sha256(pki.public_raw(self.keys["attestation"]) + QE_AUTH).digest()
        enclave, signer = (hashlib.sha256(b"bombyx simulated " + part).digest() for part in (b"qe", b"qe signer"))
        versions = struct.pack("<HH", 2, 6)  # product id, security version
        return (
            CPU_SVN + bytes(32) + _QE_ATTRIBUTES + enclave + bytes(32) + signer + bytes(96) + versions + bytes(60)
        ) + (bound + bytes(32))

    # COLLATERAL

    def endorsements(self, now: Instant) -> bytes:
        """What Intel's service would answer at `now`: QuoteCollateralV3 as JSON."""
        settings, signer = self.settings, self.keys["tcb"]
        tcb_info, qe_identity = self._tcb_info(now), self._qe_identity(now)
        chain = pki.pem(self._tcb_signer) + pki.pem(self._root.certificate)
        revoked = (self._pck.serial_number,) if settings.revoke_pck else ()
        root_crl = pki.revocation_list(self._root, at=now, days=settings.crl_days)
        pck_crl = pki.revocation_list(self._authority, at=now, days=settings.crl_days, revoked=revoked)
        return orjson.dumps(
            {
                "pck_crl_issuer_chain": pki.pem(self._authority.certificate) + pki.pem(self._root.certificate),
                "root_ca_crl": root_crl.hex(),
                "pck_crl": pck_crl.hex(),
                "tcb_info_issuer_chain": chain,
                "tcb_info": tcb_info,
                "tcb_info_signature": pki.sign_raw(signer, tcb_info.encode()).hex(),
                "qe_identity_issuer_chain": chain,
                "qe_identity": qe_identity,
                "qe_identity_signature": pki.sign_raw(signer, qe_identity.encode()).hex(),
            }
        )

    def _dates(self, now: Instant) -> dict[str, Any]:
        issued = pki.moment(now)
        until = issued + dt.timedelta(days=self.settings.collateral_days)
        return {"issueDate": _iso(issued), "nextUpdate": _iso(until), "tcbEvaluationDataNumber": 20}

    def _tcb_info(self, now: Instant) -> str:
        dates, status = self._dates(now), self.settings.tcb_status
        no_signer = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
        level = {
            "tcb": {
                "sgxtcbcomponents": [{"svn": svn} for svn in CPU_SVN],
                "pcesvn": _PCE_SVN,
                "tdxtcbcomponents": [{"svn": svn} for svn in _TEE_TCB_SVN],
            },
            "tcbDate": dates["issueDate"],
            "tcbStatus": status,
        }
        if status != "UpToDate":
            level["advisoryIDs"] = ["SIMULATED-SA-00001"]
        info = {"id": "TDX", "version": 3, **dates, "fmspc": self.settings.fmspc.upper(), "pceId": "0000", "tcbType": 0}
        module_levels = [_isv_level(dates)]
        info["tdxModule"] = no_signer
        info["tdxModuleIdentities"] = [{"id": "TDX_01", **no_signer, "tcbLevels": module_levels}]
        info["tcbLevels"] = [level]
        return json.dumps(info, separators=(",", ":"))

    def _qe_identity(self, now: Instant) -> str:
        dates = self._dates(now)
        identity = {
            "id": "TD_QE",
            "version": 2,
            **dates,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11000000000000000000000000000000",
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": hashlib.sha256(b"bombyx simulated qe signer").hexdigest().upper(),
            "isvprodid": 2,
            "tcbLevels": [_isv_level(dates)],
        }
        return json.dumps(identity, separators=(",", ":"))

    # FILES

    def save(self, directory: Path) -> None:
        """Write seed (0600), settings and root. `load` gives the same platform, byte for byte."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        seed = directory / _SEED_FILE
        seed.touch(mode=0o600)
        seed.chmod(0o600)
        seed.write_text(self.seed.reveal().hex() + "\n")
        stored = {"simulated": True, "created": int(self.created), **asdict(self.settings)}
        (directory / _SETTINGS_FILE).write_text(json.dumps(stored, indent=2) + "\n")
        (directory / _ROOT_FILE).write_text(pki.pem(self._root.certificate))

    @classmethod
    def load(cls, directory: Path) -> SimulatedPlatform:
        """Raises `ConfigError` when there is no platform here, or what is here is damaged."""
        try:
            seed = bytes.fromhex((directory / _SEED_FILE).read_text().strip())
            stored = json.loads((directory / _SETTINGS_FILE).read_text())
            stored.pop("simulated")
            created = Instant(stored.pop("created"))
            return cls.create(seed=seed, now=created, settings=PlatformSettings(**stored))
        except (OSError, ValueError, KeyError, TypeError) as error:
            kind = type(error).__name__
            raise ConfigError(f"no simulated platform in {directory} ({kind})", rule="ATT-12") from None


def _iso(moment: dt.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _isv_level(dates: dict[str, Any]) -> dict[str, Any]:
    return {"tcb": {"isvsvn": 4}, "tcbDate": dates["issueDate"], "tcbStatus": "UpToDate"}
