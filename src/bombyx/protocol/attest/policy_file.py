# SPDX-License-Identifier: Apache-2.0
"""An appraisal policy as TOML that people can read, and back.

    trust_classes = ["simulated"]
    require_chain = true
    publishers = ["0x..."]     # whose lists on chain admit further images
    publishers_agree = 1       # how many of them must hold an image good
    [[root]]
    name = "development"
    certificate = "base64 of the DER certificate, or intel, amd-milan, amd-genoa, amd-turin"
    tcb_statuses = ["UpToDate"]
    [[reference_value]]
    name = "worker image"
    trust_class = "simulated"
    compose_hash = "64 hex digits"

Always: unknown keys are refused, so a misspelt restriction cannot vanish; `policy_from_toml(policy_to_toml(p)) == p`.
"""

from __future__ import annotations

import base64
import binascii
import json
import tomllib
from typing import Any, Final

from bombyx.errors import ConfigError
from bombyx.protocol.attest.policy import AppraisalPolicy, ReferenceValue, TrustedRoot
from bombyx.protocol.attest.roots import INTEL_ROOT, NVIDIA_ROOT, NVIDIA_TOKEN_AUTHORITY, TrustClass
from bombyx.protocol.attest.roots_amd import AMD_ROOTS
from bombyx.protocol.primitives import Address, Digest

MAX_POLICY: Final = 262_144  # characters
MAX_PUBLISHERS: Final = 32  # as many as the contract can be asked about at once
_TOP: Final = {
    "trust_classes",
    "models",
    "require_gpu",
    "gpu_roots",
    "token_roots",
    "require_nonce",
    "require_chain",
    "max_beacon_age",
    "publishers",
    "publishers_agree",
    "root",
    "reference_value",
}
_ROOT: Final = {"name", "certificate", "tcb_statuses", "minimum_tcb"}
_NAMED: Final = {  # certificates that need not be spelt out
    "intel": INTEL_ROOT,
    **{f"amd-{family}": root for family, root in AMD_ROOTS.items()},
    "nvidia": NVIDIA_ROOT,
    "nvidia-nras": NVIDIA_TOKEN_AUTHORITY,
}
_REFERENCE: Final = {"name", "trust_class", "compose_hash", "measurements", "gpu"}


def policy_from_toml(text: str) -> AppraisalPolicy:
    """Read a policy. Raises `ConfigError` that names the place."""
    if len(text) > MAX_POLICY:
        raise ConfigError(f"policy of {len(text)} characters, at most {MAX_POLICY}", rule="ATT-10")
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"policy: {error}", rule="ATT-10") from None
    _known(table, _TOP, "policy")
    models = (
        None if "models" not in table else frozenset(_digest(m, "models") for m in _list(table, "models", "policy"))
    )
    return AppraisalPolicy(
        roots=tuple(_root(entry) for entry in _tables(table, "root")),
        trust_classes=frozenset(_trust_class(c, "trust_classes") for c in _list(table, "trust_classes", "policy")),
        reference_values=tuple(_reference(entry) for entry in _tables(table, "reference_value")),
        models=models,
        require_gpu=_typed(table, "require_gpu", bool, False, "policy"),
        gpu_roots=_certificates({"gpu_roots": ["nvidia"], **table}, "gpu_roots"),
        token_roots=_certificates(table, "token_roots"),
        require_nonce=_typed(table, "require_nonce", bool, True, "policy"),
        require_chain=_typed(table, "require_chain", bool, True, "policy"),
        max_beacon_age=_typed(table, "max_beacon_age", int, 7200, "policy"),
        publishers=_publishers(table),
        publishers_agree=_typed(table, "publishers_agree", int, 0, "policy"),
    )


def _publishers(table: dict[str, Any]) -> tuple[Address, ...]:
    try:
        found = tuple(Address.parse(text) for text in _strings(table, "publishers", "policy"))
    except ValueError:
        raise ConfigError("policy: publishers are addresses, 0x and 40 hex digits each", rule="ATT-14") from None
    if len(set(found)) != len(found) or len(found) > MAX_PUBLISHERS:
        raise ConfigError(f"policy: publishers are named once each, at most {MAX_PUBLISHERS}", rule="ATT-14")
    return found


def _root(entry: dict[str, Any]) -> TrustedRoot:
    _known(entry, _ROOT, "root")
    name = _typed(entry, "name", str, None, "root")
    certificate = _typed(entry, "certificate", str, None, f"root {name!r}")
    return TrustedRoot(
        name=name,
        certificate=_certificate(certificate, f"root {name!r}: certificate"),
        tcb_statuses=frozenset(_strings({"tcb_statuses": ["UpToDate"], **entry}, "tcb_statuses", f"root {name!r}")),
        minimum_tcb=_levels(_typed(entry, "minimum_tcb", dict, {}, f"root {name!r}"), f"root {name!r}"),
    )


def _levels(table: dict[str, Any], where: str) -> tuple[tuple[str, int], ...]:
    for name in table:
        if name not in ("fmc", "bootloader", "tee", "snp", "microcode"):
            raise ConfigError(f"{where}: no firmware level {name!r}", rule="ATT-10")
        _typed(table, name, int, None, where)
    return tuple(sorted(table.items()))


def _certificates(table: dict[str, Any], key: str) -> tuple[bytes, ...]:
    return tuple(_certificate(value, key) for value in _strings(table, key, "policy"))


def _certificate(value: str, where: str) -> bytes:
    return _NAMED[value] if value in _NAMED else _base64(value, where)


def _spelt(certificate: bytes) -> str:
    named = {known: name for name, known in _NAMED.items()}
    return named.get(certificate) or base64.b64encode(certificate).decode()


def _reference(entry: dict[str, Any]) -> ReferenceValue:
    _known(entry, _REFERENCE, "reference_value")
    name = _typed(entry, "name", str, None, "reference_value")
    where = f"reference_value {name!r}"
    measurements = _typed(entry, "measurements", dict, {}, where)
    compose = _typed(entry, "compose_hash", str, "", where)
    return ReferenceValue(
        name=name,
        trust_class=_trust_class(_typed(entry, "trust_class", str, None, where), where),
        compose_hash=_digest(compose, where) if compose else None,
        measurements=tuple((key, _hex(value, f"{where}: {key}")) for key, value in sorted(measurements.items())),
        gpu=_typed(entry, "gpu", bool, False, where),
    )


def policy_to_toml(policy: AppraisalPolicy) -> str:
    """Write a policy, in an order that does not change."""
    lines = [
        f"trust_classes = {_quoted(sorted(policy.trust_classes))}",
        f"require_gpu = {str(policy.require_gpu).lower()}",
        f"require_chain = {str(policy.require_chain).lower()}",
        f"max_beacon_age = {policy.max_beacon_age}",
    ]
    if policy.gpu_roots != (NVIDIA_ROOT,):
        lines.append(f"gpu_roots = {_quoted([_spelt(root) for root in policy.gpu_roots])}")
    if policy.token_roots:
        lines.append(f"token_roots = {_quoted([_spelt(root) for root in policy.token_roots])}")
    if not policy.require_nonce:
        lines.append("require_nonce = false")
    if policy.models is not None:
        lines.append(f"models = {_quoted(sorted(model.hex() for model in policy.models))}")
    if policy.publishers:
        lines.append(f"publishers = {_quoted([str(one) for one in policy.publishers])}")
    if policy.publishers_agree:
        lines.append(f"publishers_agree = {policy.publishers_agree}")
    for root in policy.roots:
        lines += ["", "[[root]]", f"name = {_quoted(root.name)}", f"certificate = {_quoted(_spelt(root.certificate))}"]
        lines.append(f"tcb_statuses = {_quoted(sorted(root.tcb_statuses))}")
        if root.minimum_tcb:
            levels = ", ".join(f"{name} = {level}" for name, level in root.minimum_tcb)
            lines.append(f"minimum_tcb = {{ {levels} }}")
    for value in policy.reference_values:
        lines += ["", "[[reference_value]]", *_reference_lines(value)]
    return "\n".join(lines) + "\n"


def _reference_lines(value: ReferenceValue) -> list[str]:
    lines = [f"name = {_quoted(value.name)}", f"trust_class = {_quoted(str(value.trust_class))}"]
    if value.compose_hash is not None:
        lines.append(f"compose_hash = {_quoted(value.compose_hash.hex())}")
    if value.gpu:
        lines.append("gpu = true")
    if value.measurements:
        pairs = ", ".join(f"{key} = {_quoted(data.hex())}" for key, data in value.measurements)
        lines.append(f"measurements = {{ {pairs} }}")
    return lines


def _quoted(value: str | list[Any]) -> str:
    """JSON's strings are TOML's, but for surrogate pairs and DEL."""
    plain = value if isinstance(value, str) else [str(item) for item in value]
    return json.dumps(plain, ensure_ascii=False).replace("\x7f", "\\u007f")


def _known(table: dict[str, Any], names: set[str], where: str) -> None:
    unknown = sorted(set(table) - names)
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(names))}", rule="ATT-10")


def _typed(table: dict[str, Any], key: str, kind: type, default: Any, where: str) -> Any:
    value = table.get(key, default)
    wrong = not isinstance(value, kind) or (kind is int and isinstance(value, bool))
    if wrong or (isinstance(value, int) and value < 0):
        raise ConfigError(f"{where}: {key} must be a {kind.__name__}", rule="ATT-10")
    return value


def _list(table: dict[str, Any], key: str, where: str) -> list[Any]:
    return list(_typed(table, key, list, [], where))


def _tables(table: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = _list(table, key, "policy")
    if not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"policy: {key} must be written as [[{key}]]", rule="ATT-10")
    return entries


def _strings(table: dict[str, Any], key: str, where: str) -> list[str]:
    values = _list(table, key, where)
    if not all(isinstance(value, str) for value in values):
        raise ConfigError(f"{where}: {key} must be a list of strings", rule="ATT-10")
    return values


def _trust_class(value: Any, where: str) -> TrustClass:
    try:
        return TrustClass(value)
    except ValueError:
        raise ConfigError(f"{where}: no trust class {value!r}; known: {', '.join(TrustClass)}", rule="ATT-10") from None


def _digest(value: Any, where: str) -> Digest:
    try:
        return Digest.parse(value)
    except (ValueError, TypeError, AttributeError):
        raise ConfigError(f"{where}: a digest is 64 hex digits", rule="ATT-10") from None


def _hex(value: Any, where: str) -> bytes:
    try:
        return bytes.fromhex(value)
    except (ValueError, TypeError):
        raise ConfigError(f"{where} is not hex", rule="ATT-10") from None


def _base64(value: str, where: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"{where} is not base64", rule="ATT-10") from None
