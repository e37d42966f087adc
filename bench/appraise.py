# SPDX-License-Identifier: Apache-2.0
"""How long does it take to verify a provider's whole report, offline? Beside what others' verifiers check of it.

Evidence: a captured report of one H100 with its collateral and NVIDIA tokens where captured evidence lies beside the
repository (BOMBYX_CAPTURED names another place); the simulator's otherwise, which others' verifiers do not accept.
Others are installed on demand, each into an environment of its own under build/; what cannot be installed is skipped,
and the row says why. Rows name what is checked, since nobody else checks all of it offline.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from _machine import Goal, options, per_call, report

from bombyx.adapters.simulator import SimulatedPlatform
from bombyx.adapters.simulator.gpu import SimulatedGpus
from bombyx.adapters.simulator.provider import NODE_IMAGE, SimulatedProvider
from bombyx.protocol.attest import (
    AppraisalPolicy,
    AtHand,
    ReferenceValue,
    Report,
    TrustClass,
    TrustedRoot,
    Verdict,
    examine,
    preset,
    recognise,
)
from bombyx.protocol.attest.tdx import check_attributes, check_chain, check_endorsements, parse_collateral, parse_quote
from bombyx.protocol.primitives import Instant, Secret

REPO = Path(__file__).parents[1]
BUILD = REPO / "build" / "bench"
CAPTURE = "attestation/phala_vllmproxy_1xH100_via_nanogpt"
GOAL_MS = 10.0
TINFOIL = "tinfoil"
DCAP_JS = "@phala/dcap-qvl"


@dataclass(frozen=True)
class Evidence:
    """One report with one GPU, and all that verifies it."""

    kind: str
    raw: bytes
    policy: AppraisalPolicy
    at_hand: AtHand
    now: Instant

    @property
    def quote(self) -> bytes:
        found = recognise(self.raw)
        assert isinstance(found, Report)
        return found.parts[0].quote

    def whole(self) -> None:
        """Parse, then every step: quote, collateral, event log, image, keys, nonce, GPU, NVIDIA's tokens."""
        found = recognise(self.raw)
        assert isinstance(found, Report)
        outcome = examine(found, self.policy, now=self.now, at_hand=self.at_hand)
        assert outcome.verdict is Verdict.VERIFIED, outcome.outcomes[0].why

    def quote_only(self) -> None:
        """Steps 1 to 4: what a quote verifier does."""
        chain = check_chain(
            parse_quote(self.quote_), parse_collateral(self.at_hand.endorsements[0]), self.any, self.now
        )
        check_attributes(chain.value, check_endorsements(chain.value).value)

    @property
    def quote_(self) -> bytes:
        return _QUOTES.setdefault(self.raw[:64], self.quote)

    @property
    def any(self) -> AppraisalPolicy:
        return replace(self.policy, trust_classes=frozenset(TrustClass))


_QUOTES: dict[bytes, bytes] = {}


def captured() -> Evidence | None:
    named = os.environ.get("BOMBYX_CAPTURED")
    folder = (Path(named) if named else REPO.parent / "shared" / "vectors") / CAPTURE
    if not folder.is_dir():
        return None
    manifest = json.loads((folder / "manifest.json").read_bytes())
    at = dt.datetime.fromisoformat(re.sub(r"\.\d+", "", manifest["captured_at"]))
    at_hand = AtHand(
        endorsements=((folder / "collateral.json").read_bytes(),),
        tokens=((folder / "nras_response.json").read_bytes(),),
        jwks=(folder / "nras_jwks.json").read_bytes(),
        nonce=bytes.fromhex(manifest["nonce_hex"]),
    )
    raw, now = (folder / "report.json").read_bytes(), Instant.from_seconds(at.timestamp())
    base = preset("production-tdx-h100")
    found = recognise(raw)
    assert isinstance(found, Report)
    claims = examine(found, base, now=now, at_hand=at_hand).outcomes[0].claims
    assert claims is not None
    image = ReferenceValue(
        name="captured", trust_class=TrustClass.TDX, compose_hash=claims.boot.compose_hash, measurements=(), gpu=True
    )
    policy = replace(base, reference_values=(image,))
    return Evidence("captured, 1 H100", raw, policy, at_hand, now)


def simulated() -> Evidence:
    now, nonce = Instant.from_seconds(1_790_000_000), bytes(range(32))
    platform = SimulatedPlatform.create(seed=b"a seed for benches, no secret!!!", now=now)
    gpus = SimulatedGpus(seed=Secret(b"a seed for benches, no secret!!!"), created=now)
    document = SimulatedProvider(platform=platform, gpus=gpus).phala(nonce)
    policy = AppraisalPolicy(
        roots=(TrustedRoot(name="simulator", certificate=platform.root_certificate),),
        trust_classes=frozenset({TrustClass.SIMULATED}),
        reference_values=(NODE_IMAGE.reference_value(),),
        gpu_roots=(gpus.root.root,),
        token_roots=(gpus.service.root,),
        require_gpu=True,
    )
    at_hand = AtHand(
        endorsements=(platform.endorsements(now),), tokens=(gpus.tokens(nonce, now),), jwks=gpus.jwks(), nonce=nonce
    )
    return Evidence("simulated, 1 GPU", json.dumps(document).encode(), policy, at_hand, now)


# OTHERS

_TINFOIL = """
import sys, time
from tinfoil.attestation.abi_tdx import parse_quote
from tinfoil.attestation.verify_tdx import verify_tdx_quote
raw, seconds = open(sys.argv[1], "rb").read(), float(sys.argv[2])
verify_tdx_quote(parse_quote(raw), raw)
best = 9e9
end = time.perf_counter() + seconds
while time.perf_counter() < end:
    start = time.process_time(); verify_tdx_quote(parse_quote(raw), raw); best = min(best, time.process_time() - start)
print(best * 1e3)
"""
_DCAP_JS = """
const {verify} = require("@phala/dcap-qvl");
const fs = require("fs");
const raw = fs.readFileSync(process.argv[2]);
const now = Number(process.argv[4]), seconds = Number(process.argv[5]);
const text = fs.readFileSync(process.argv[3], "utf8");
const once = () => verify(raw, JSON.parse(text), now);
if (!once().status) throw new Error("not verified");
let best = 9e9;
const end = Date.now() + seconds * 1000;
while (Date.now() < end) {
  const start = process.cpuUsage(); once(); const used = process.cpuUsage(start);
  best = Math.min(best, (used.user + used.system) / 1e3);
}
console.log(best);
"""


def tinfoil(evidence: Evidence, seconds: float) -> float:
    home = BUILD / "tinfoil"
    python = home / "bin" / "python"
    if not python.exists():
        _run(sys.executable, "-m", "venv", str(home))
        _run(str(python), "-m", "pip", "install", "-q", TINFOIL)
    return float(_run(str(python), "-c", _TINFOIL, str(_quote_file(evidence)), str(seconds)))


def dcap_js(evidence: Evidence, seconds: float) -> float:
    home = BUILD / "dcap-qvl"
    if not (home / "node_modules").is_dir():
        if shutil.which("npm") is None:
            raise OSError("npm is not installed")
        home.mkdir(parents=True, exist_ok=True)
        _run("npm", "install", "--silent", "--prefix", str(home), DCAP_JS)
    script, collateral = home / "bench.js", home / "collateral.json"
    script.write_text(_DCAP_JS)
    collateral.write_bytes(evidence.at_hand.endorsements[0])
    quote = _quote_file(evidence)
    return float(_run("node", str(script), str(quote), str(collateral), str(evidence.now.seconds), str(seconds)))


def _quote_file(evidence: Evidence) -> Path:
    BUILD.mkdir(parents=True, exist_ok=True)
    file = BUILD / "quote.bin"
    file.write_bytes(evidence.quote)
    return file


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "Error" in line] or ["failed"]
        raise OSError(said[-1][:120])
    return done.stdout.strip()


def other(
    name: str, checks: str, measure: Callable[[Evidence, float], float], evidence: Evidence, seconds: float
) -> dict[str, object]:
    if not evidence.kind.startswith("captured"):
        return {"verifier": name, "evidence": evidence.kind, "checks": checks, "ms": "skipped: knows only Intel's root"}
    try:
        return {"verifier": name, "evidence": evidence.kind, "checks": checks, "ms": measure(evidence, seconds)}
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return {"verifier": name, "evidence": evidence.kind, "checks": checks, "ms": f"skipped: {error}"}


def main() -> None:
    arguments = options(__doc__)
    seconds = 0.3 if arguments.quick else 2.0
    evidence = captured() or simulated()
    quote_checks = "quote, chain, collateral, revocation lists, TCB"
    start = time.perf_counter()
    evidence.whole()
    first = (time.perf_counter() - start) * 1e3
    whole = per_call(evidence.whole, seconds=seconds) * 1e3
    quote = per_call(evidence.quote_only, seconds=seconds) * 1e3
    rows = [
        {"verifier": "bombyx", "evidence": evidence.kind, "checks": "whole report, GPU and tokens", "ms": whole},
        {"verifier": "bombyx, first in a process", "evidence": evidence.kind, "checks": "the same", "ms": first},
        {"verifier": "bombyx", "evidence": evidence.kind, "checks": quote_checks, "ms": quote},
        other("tinfoil (PyPI)", "quote and chain; no collateral", tinfoil, evidence, seconds),
        other("@phala/dcap-qvl (npm)", quote_checks, dcap_js, evidence, seconds),
    ]
    goals = [Goal("whole report with one GPU, ms", whole, "<", GOAL_MS)]
    theirs = rows[-1]["ms"]
    if isinstance(theirs, float):
        goals.append(Goal("quote with collateral, times faster than @phala/dcap-qvl", theirs / quote, ">", 1.0))
    report("appraise", rows, goals, as_json=arguments.json)


if __name__ == "__main__":
    main()
