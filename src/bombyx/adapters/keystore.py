# SPDX-License-Identifier: Apache-2.0
"""Account keys encrypted at rest: Web3 Secret Storage, version 3, as every Ethereum wallet writes and reads it.

Written: scrypt, AES-128-CTR, Keccak-256 MAC. Read: also PBKDF2-HMAC-SHA-256. Always: a file's cost parameters are
bounded before they are obeyed; the MAC is checked before anything is decrypted; the address in a file is a hint until
its key is open, and must then be right; files are 0600 and never overwritten.

Not here: where a passphrase comes from (`cli/passphrase.py`); keys that lie open (`adapters/keys.py`).
Source: Ethereum wiki, "Web3 Secret Storage Definition" (its two test wallets are in tests/vectors/keystore).
"""

from __future__ import annotations

import hmac
import json
import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from bombyx.errors import ConfigError
from bombyx.ports import Entropy
from bombyx.protocol.primitives import Address, Secret, keccak256
from bombyx.protocol.wire.signing import SigningKey

MAX_FILE: Final = 65_536  # bytes; a wallet has 500
MAX_MEMORY: Final = 512 << 20  # bytes scrypt may take; geth's standard takes 256 MiB
MAX_WORK: Final = 1 << 25  # n * r * p; geth's standard is 2^21
MAX_ROUNDS: Final = 10_000_000  # of PBKDF2
MAX_SALT: Final = 1_024  # bytes
_KEY: Final = 32  # bytes derived: 16 encrypt, 16 go into the MAC
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """scrypt's cost. The default is geth's: 256 MiB and about a second."""

    n: int = 1 << 18
    r: int = 8
    p: int = 1


QUICK: Final = Work(n=1 << 12, p=6)  # geth's "light": 4 MiB; for tests and small machines


class WrongPassphrase(ConfigError):
    """The MAC does not fit: another passphrase, or a damaged file."""


class Keystore:
    """A folder of encrypted keys, `<name>.json` each."""

    def __init__(self, folder: Path, entropy: Entropy, *, work: Work | None = None) -> None:
        self._folder = folder
        self._entropy = entropy
        self._work = work or Work()

    def accounts(self) -> dict[str, Address]:
        """Every name with the address its file states, in order of name. Other JSON files are passed over."""
        found: dict[str, Address] = {}
        for path in sorted(self._folder.glob("*.json")):
            try:
                found[path.stem] = address_in(_read(path))
            except ConfigError:
                continue
        return found

    def has(self, name: str) -> bool:
        return self.path(name).exists()

    def create(self, name: str, passphrase: Secret) -> SigningKey:
        """A fresh key. Raises `ConfigError` when the name is taken or unusable."""
        return self.store(name, SigningKey(Secret(self._entropy.bytes(32))), passphrase)

    def store(self, name: str, key: SigningKey, passphrase: Secret) -> SigningKey:
        """Keep a key that came from elsewhere."""
        write_new(self.path(name), seal(key, passphrase, entropy=self._entropy, work=self._work))
        return key

    def load(self, name: str, passphrase: Secret) -> SigningKey:
        """Open a key. Raises `WrongPassphrase`, or `ConfigError` when it is missing, damaged or readable by others."""
        path = self.path(name)
        if not path.exists():
            raise ConfigError(f"no wallet named {name!r} in {self._folder}: make one with `bombyx wallet new`")
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path} can be read by others: chmod 600 it")
        return unseal(_read(path), passphrase)

    def text(self, name: str) -> str:
        """The file as it is: encrypted."""
        return _read(self.path(name))

    def path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ConfigError("a wallet's name is made of a-z, 0-9, dot, dash and underscore, at most 64")
        return self._folder / f"{name}.json"


def write_new(path: Path, text: str) -> None:
    """A file only its owner can read; an existing one is left alone. Raises `ConfigError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} exists already and is not overwritten") from None
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


# --- one file --------------------------------------------------------------------------------------------------------


def seal(key: SigningKey, passphrase: Secret, *, entropy: Entropy, work: Work | None = None) -> str:
    """The JSON of an encrypted key."""
    cost = work or Work()
    salt, iv = entropy.bytes(32), entropy.bytes(16)
    derived = _scrypt(passphrase, salt, cost)
    ciphertext = _cipher(derived, iv, key.secret().reveal())
    return json.dumps(
        {
            "version": 3,
            "id": str(uuid.UUID(bytes=entropy.bytes(16), version=4)),
            "address": key.address.hex(),
            "crypto": {
                "cipher": "aes-128-ctr",
                "cipherparams": {"iv": iv.hex()},
                "ciphertext": ciphertext.hex(),
                "kdf": "scrypt",
                "kdfparams": {"dklen": _KEY, "n": cost.n, "r": cost.r, "p": cost.p, "salt": salt.hex()},
                "mac": _mac(derived, ciphertext).hex(),
            },
        },
        indent=1,
    )


def unseal(text: str, passphrase: Secret) -> SigningKey:
    """The key a file holds. Raises `WrongPassphrase`, or `ConfigError` for what is no wallet."""
    wallet = _parse(text)
    # what the cipher works on comes first, so that a damaged file costs no key derivation
    crypto = wallet["crypto"]
    ciphertext, iv = _hex(crypto, "ciphertext"), _hex(_dict(crypto, "cipherparams"), "iv", 16)
    if not 0 < len(ciphertext) <= _KEY:
        raise ConfigError(f"the wallet holds {len(ciphertext)} bytes, a key has {_KEY}")
    stated = _hex(crypto, "mac", 32)
    derived = _derive(str(crypto.get("kdf")), _dict(crypto, "kdfparams"), passphrase)
    if not hmac.compare_digest(_mac(derived, ciphertext), stated):
        raise WrongPassphrase("the passphrase does not open this wallet")
    try:
        key = SigningKey(Secret(_cipher(derived, iv, ciphertext).rjust(_KEY, b"\x00")))  # early wallets drop zeros
    except ValueError:
        raise ConfigError("the wallet holds no secp256k1 key") from None
    if "address" in wallet and address_in(text) != key.address:
        raise ConfigError(f"the wallet says {address_in(text)} and holds the key of {key.address}")
    return key


def address_in(text: str) -> Address:
    """The address a file states. Raises `ConfigError`."""
    try:
        return Address.parse(str(_parse(text).get("address")))
    except ValueError:
        raise ConfigError("the wallet does not say whose key it holds") from None


def _parse(text: str) -> dict[str, Any]:
    if len(text) > MAX_FILE:
        raise ConfigError(f"a wallet has at most {MAX_FILE} bytes")
    try:
        wallet = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError("not a wallet: not JSON") from None
    if not isinstance(wallet, dict) or wallet.get("version") != 3:
        raise ConfigError("not a wallet of version 3 (Web3 Secret Storage)")
    crypto = wallet.get("crypto", wallet.get("Crypto"))  # early geth wrote a capital letter
    if not isinstance(crypto, dict) or crypto.get("cipher") != "aes-128-ctr":
        raise ConfigError("the wallet is not encrypted with aes-128-ctr")
    return {**wallet, "crypto": crypto}


def _derive(kdf: str, parameters: dict[str, Any], passphrase: Secret) -> bytes:
    salt = _hex(parameters, "salt")
    if _number(parameters, "dklen", _KEY) != _KEY:
        raise ConfigError(f"the wallet derives another length than {_KEY} bytes")
    if kdf == "scrypt":
        work = Work(**{name: _number(parameters, name, MAX_WORK) for name in ("n", "r", "p")})
        if work.n & (work.n - 1) or 128 * work.n * work.r > MAX_MEMORY or work.n * work.r * work.p > MAX_WORK:
            raise ConfigError("the wallet asks for more work than a wallet needs")
        return _scrypt(passphrase, salt, work)
    if kdf == "pbkdf2" and parameters.get("prf") == "hmac-sha256":
        rounds = _number(parameters, "c", MAX_ROUNDS)
        derive = PBKDF2HMAC(algorithm=hashes.SHA256(), length=_KEY, salt=salt, iterations=rounds)
        return derive.derive(passphrase.reveal())
    raise ConfigError("the wallet's key derivation is neither scrypt nor pbkdf2 with hmac-sha256")


def _scrypt(passphrase: Secret, salt: bytes, work: Work) -> bytes:
    if work.n >= 1 << min(64, 16 * work.r):  # some early wallets; OpenSSL keeps to the RFC
        raise ConfigError("RFC 7914 forbids this n with this r, and our scrypt refuses it")
    try:
        return Scrypt(salt=salt, length=_KEY, n=work.n, r=work.r, p=work.p).derive(passphrase.reveal())
    except (ValueError, MemoryError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"scrypt cannot be carried out: {error}") from None


def _cipher(derived: bytes, iv: bytes, data: bytes) -> bytes:
    """AES-128-CTR, either way."""
    context = Cipher(algorithms.AES(derived[:16]), modes.CTR(iv)).encryptor()
    return context.update(data) + context.finalize()


def _mac(derived: bytes, ciphertext: bytes) -> bytes:
    return keccak256(derived[16:32], ciphertext)


def _dict(raw: dict[str, Any], name: str) -> dict[str, Any]:
    found = raw.get(name)
    if not isinstance(found, dict):
        raise ConfigError(f"the wallet has no {name}")
    return found


def _hex(raw: dict[str, Any], name: str, size: int | None = None) -> bytes:
    try:
        found = bytes.fromhex(raw[name])
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"the wallet's {name} is not hex") from None
    if len(found) > MAX_SALT or (size is not None and len(found) != size):
        raise ConfigError(f"the wallet's {name} has {len(found)} bytes")
    return found


def _number(raw: dict[str, Any], name: str, most: int) -> int:
    found = raw.get(name)
    if not isinstance(found, int) or isinstance(found, bool) or not 0 < found <= most:
        raise ConfigError(f"the wallet's {name} is not a number from 1 to {most}")
    return found


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE:
            raise ConfigError(f"{path} is too large for a wallet")
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the wallet {path}: {type(error).__name__}") from None
