# SPDX-License-Identifier: Apache-2.0
"""dstack's configuration id: what the host told a machine to run, fixed at its launch, in three forms (step 6).

TDX carries it in mr_config_id: 1 || compose hash; 2 || keccak256(compose hash || app id || kind || key provider id);
3 || SHA-256("dstack-mr-config-v3:" || 0 || document). SEV-SNP carries the third form's hash alone, in host data.

Not here: what was measured after the launch (`events.py`), which every form is compared with.
Always: a form that contradicts what was measured is refused; one that cannot be compared is `not checked`, and why.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson

from bombyx.errors import MalformedMessage
from bombyx.protocol.attest.claims import BootClaims, QuoteClaims
from bombyx.protocol.attest.findings import Finding
from bombyx.protocol.attest.steps import Refused
from bombyx.protocol.primitives import Digest, keccak256, sha256

SIZE: Final = 48  # bytes of mr_config_id
MAX_DOCUMENT: Final = 8_192  # bytes; a full one has 700
MAX_SCRIPTS: Final = 5  # init scripts a document may name
_DOMAIN: Final = b"dstack-mr-config-v3:\0"
_KINDS: Final = {"none": 0, "local": 1, "kms": 2, "tpm": 3, "snp_derived": 4}
_NAMES: Final = {"local-sgx": "local", "amd-snp-derived": "snp_derived"}  # as the measured event spells them
_SIZES: Final = {"app_id": 20, "compose_hash": 32, "gpu_policy_hash": 32, "instance_id": 20, "key_provider_id": None}
_FIELDS: Final = frozenset({*_SIZES, "version", "key_provider", "init_script_hashes"})


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyProvider:
    """Who gives the application its keys, as the event `key-provider` says it."""

    kind: str  # one of dstack's; empty: another's, or nothing was said
    identity: bytes = b""  # the authority's public key (DER), an enclave's measurement, or nothing


def key_provider(event: bytes) -> KeyProvider:
    """Never raises: an event nobody can read names no provider."""
    try:
        said = orjson.loads(event)
        name, identity = said["name"], bytes.fromhex(said["id"])
    except (ValueError, KeyError, TypeError):
        return KeyProvider(kind="")
    kind = _NAMES.get(name, name) if isinstance(name, str) else ""
    return KeyProvider(kind=kind if kind in _KINDS else "", identity=identity)


def form_1(compose_hash: bytes) -> bytes:
    return (b"\x01" + compose_hash).ljust(SIZE, b"\0")


def form_2(compose_hash: bytes, app_id: bytes, provider: KeyProvider) -> bytes:
    """Raises `KeyError` for a kind that dstack does not know."""
    digest = keccak256(compose_hash, app_id, bytes([_KINDS[provider.kind]]), provider.identity)
    return (b"\x02" + digest).ljust(SIZE, b"\0")


def form_3(document: bytes) -> bytes:
    """Of the document's bytes as they stand: another spelling of the same JSON is another document."""
    return (b"\x03" + host_data(document)).ljust(SIZE, b"\0")


def host_data(document: bytes) -> Digest:
    """What SEV-SNP carries."""
    return sha256(_DOMAIN, document)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigDocument:
    """The third form's document. None: it pins no such thing."""

    compose_hash: Digest
    key_provider: str
    app_id: bytes | None = None
    key_provider_id: bytes | None = None
    instance_id: bytes | None = None
    gpu_policy_hash: bytes | None = None
    init_script_hashes: tuple[bytes, ...] | None = None

    def encode(self) -> bytes:
        """As dstack's hosts write it: canonical JSON (RFC 8785), hex, nothing that is absent."""
        values = {name: getattr(self, name) for name in _SIZES}
        fields: dict[str, Any] = {name: value.hex() for name, value in values.items() if value is not None}
        if self.init_script_hashes is not None:
            fields["init_script_hashes"] = [one.hex() for one in self.init_script_hashes]
        fields |= {"key_provider": self.key_provider, "version": 3}
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

    def boot(self) -> BootClaims:
        """What it says was to be started; on SEV-SNP nothing else says it."""
        return BootClaims(
            compose_hash=self.compose_hash, app_id=self.app_id or b"", instance_id=self.instance_id or b""
        )


def parse_document(raw: bytes) -> ConfigDocument:
    """Raises `MalformedMessage` for anything with a field missing, wrong or unknown."""
    if len(raw) > MAX_DOCUMENT:
        raise _malformed(f"{len(raw)} bytes, at most {MAX_DOCUMENT}")
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise _malformed("not JSON") from None
    if not isinstance(fields, dict) or not set(fields) <= _FIELDS or fields.get("version", 3) != 3:
        raise _malformed("not an object of version 3, or with a field nobody knows")
    values = {name: _hexed(fields.get(name), name, size) for name, size in _SIZES.items()}
    compose, kind, scripts = values.pop("compose_hash"), fields.get("key_provider"), fields.get("init_script_hashes")
    if compose is None or not isinstance(kind, str) or kind not in _KINDS:
        raise _malformed("no compose_hash, or no key_provider of a known kind")
    if scripts is not None and (not isinstance(scripts, list) or len(scripts) > MAX_SCRIPTS or None in scripts):
        raise _malformed(f"init_script_hashes is not a list of at most {MAX_SCRIPTS}")
    hashes = None if scripts is None else tuple(_hexed(one, "init_script_hashes", 32) or b"" for one in scripts)
    return ConfigDocument(compose_hash=Digest(compose), key_provider=kind, init_script_hashes=hashes, **values)


def _hexed(value: Any, name: str, size: int | None) -> bytes | None:
    if value is None:
        return None
    try:
        data = bytes.fromhex(value)
    except (TypeError, ValueError):
        raise _malformed(f"{name} is not hex") from None
    if size is not None and len(data) != size:
        raise _malformed(f"{name} has {len(data)} bytes")
    return data


def _malformed(what: str) -> MalformedMessage:
    return MalformedMessage(f"configuration document: {what}", rule="ATT-6.6")


# CHECK


def check_config_id(quoted: QuoteClaims, boot: BootClaims, document: bytes | None = None) -> Finding | None:
    """Step 6: what the machine was told to run is what it measured. None: it was told nothing, or carries no such id.

    `document` is the third form's, where it was shown. Raises the step's refusal.
    """
    config = quoted.measurement("mr_config_id")
    if not any(config):
        return None
    form = config[0]
    if boot.compose_hash is None:
        return Finding(f"mr_config_id of form {form} (no event log says what was measured)")
    if form == 1:
        expected = {form_1(boot.compose_hash)}
    elif form == 2:
        return _check_second(config, boot, boot.compose_hash)
    elif form == 3:
        return _check_third(config, boot, document)
    else:
        return Finding(f"mr_config_id of form {form}, which this version does not know")
    if config not in expected:
        raise Refused("mr_config_id is not the compose file's hash")
    return Finding("mr_config_id is the compose file's hash", True)


def _check_second(config: bytes, boot: BootClaims, compose: Digest) -> Finding:
    provider = key_provider(boot.key_provider)
    if not provider.kind:
        return Finding("mr_config_id of form 2 (no event names a key provider this version knows)")
    unnamed = KeyProvider(kind=provider.kind)  # a kind without an identity of its own leaves it empty
    if config not in (form_2(compose, boot.app_id, one) for one in (provider, unnamed)):
        raise Refused("mr_config_id is not that of the compose file, app id and key provider that were measured")
    return Finding("mr_config_id binds compose file, app id and key provider", True)


def _check_third(config: bytes, boot: BootClaims, document: bytes | None) -> Finding:
    if document is not None:
        if form_3(document) != config:
            raise Refused("the configuration document shown is not the one in mr_config_id")
        check_document(parse_document(document), boot)
        return Finding("mr_config_id's document says what was measured", True)
    if any(form_3(one.encode()) == config for one in _rebuilt(boot)):
        return Finding("mr_config_id is that of a document of what was measured", True)
    return Finding("mr_config_id of form 3 (its document is not shown, and none of what was measured fits)")


def check_document(found: ConfigDocument, boot: BootClaims) -> None:
    """Whatever it pins is what was measured. Raises the step's refusal."""
    provider = key_provider(boot.key_provider)
    pins: tuple[tuple[str, Any, Any], ...] = (
        ("compose hash", found.compose_hash, boot.compose_hash),
        ("app id", found.app_id, boot.app_id),
        ("instance id", found.instance_id, boot.instance_id),
        ("kind of key provider", found.key_provider, provider.kind),
        ("key provider", found.key_provider_id, provider.identity),
        ("GPU policy", found.gpu_policy_hash, boot.gpu_policy),
        ("list of init scripts", found.init_script_hashes, boot.init_scripts),
    )
    for name, pinned, measured in pins:
        if pinned is not None and pinned != measured:
            raise Refused(f"the configuration document pins another {name} than was measured")


def _rebuilt(boot: BootClaims) -> Iterator[ConfigDocument]:
    """Every document a host could have written of what was measured: each optional pin there, or not."""
    provider = key_provider(boot.key_provider)
    if boot.compose_hash is None or not provider.kind:
        return
    measured = {
        "app_id": boot.app_id,
        "instance_id": boot.instance_id,
        "key_provider_id": provider.identity,
        "gpu_policy_hash": boot.gpu_policy,
    }
    choices = [(value, None) if value else (None,) for value in measured.values()]
    for scripts in (None, boot.init_scripts):
        for values in itertools.product(*choices):
            yield ConfigDocument(
                compose_hash=boot.compose_hash,
                key_provider=provider.kind,
                init_script_hashes=scripts,
                **dict(zip(measured, values, strict=True)),
            )
