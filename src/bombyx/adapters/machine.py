# SPDX-License-Identifier: Apache-2.0
"""What this machine has of what bombyx needs: Python, libraries, engine, model, enclave device, chain node, ports."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

LIBRARIES: Final = {
    "cryptography": "sealing",
    "coincurve": "signatures",
    "dcap_qvl": "TDX quotes",
    "picows": "worker links",
    "httptools": "HTTP",
    "uvloop": "the event loop",
}
ENCLAVE_DEVICES: Final = (
    Path("/var/run/dstack.sock"),
    Path("/run/dstack.sock"),
    Path("/var/run/tappd.sock"),
    Path("/sys/kernel/config/tsm/report"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report. `needed`: without it the default run does not work."""

    what: str
    ok: bool
    needed: bool
    found: str
    mend: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(model_file: Callable[[], Path | None], port: int, state: Path) -> list[Finding]:
    """Every finding, the needed ones first."""
    return [
        _python(),
        *(_library(name, use) for name, use in LIBRARIES.items()),
        _library("xllamacpp", "the embedded engine"),
        _model(model_file),
        _folder(state),
        _port(port),
        _enclave(),
        chain_node(),
    ]


def _python() -> Finding:
    return Finding(
        what="Python 3.11 or newer",
        ok=sys.version_info >= (3, 11),
        needed=True,
        found=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        mend="install Python 3.11 or newer",
    )


def _library(name: str, use: str) -> Finding:
    there = importlib.util.find_spec(name) is not None
    return Finding(
        what=f"{name} ({use})", ok=there, needed=True, found="installed" if there else "not there", mend="make setup"
    )


def _model(model_file: Callable[[], Path | None]) -> Finding:
    path = model_file()
    found = f"{path.name}, {path.stat().st_size >> 20} MiB" if path else "not there"
    return Finding(what="embedded model", ok=path is not None, needed=True, found=found, mend="make setup")


def _folder(state: Path) -> Finding:
    nearest = next(p for p in (state, *state.parents) if p.exists())
    free = shutil.disk_usage(nearest).free >> 20
    return Finding(
        what="room for state", ok=free > 200, needed=True, found=f"{free} MiB free", mend=f"make room in {nearest}"
    )


def _port(port: int) -> Finding:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        taken = probe.connect_ex(("127.0.0.1", port)) == 0
    return Finding(
        what=f"port {port} for the endpoint",
        ok=not taken,
        needed=False,
        found="in use" if taken else "free",
        mend="stop what listens there, or choose another with --port",
    )


def _enclave() -> Finding:
    device = next((d for d in ENCLAVE_DEVICES if d.exists()), None)
    return Finding(
        what="enclave device",
        ok=device is not None,
        needed=False,
        found=str(device) if device else "none: enclaves here are simulated and protect from nobody who owns this host",
        mend="run the worker in a TDX or SEV-SNP guest to be able to offer more than `simulated`",
    )


def chain_node() -> Finding:
    """The EVM node of the development chain."""
    here = Path(sys.executable).with_name("anvil")
    found = str(here) if here.exists() else shutil.which("anvil") or ""
    return Finding(
        what="chain node (anvil)",
        ok=bool(found),
        needed=False,
        found="installed" if found else "not there",
        mend="make setup (it needs npm, or brings it along)",
    )
