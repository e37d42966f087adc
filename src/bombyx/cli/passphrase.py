# SPDX-License-Identifier: Apache-2.0
"""Where a passphrase comes from: a file descriptor, a file, or a question on the terminal. Never an argument or the
environment's value: other processes see both."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from bombyx.compose.wallet import MAX_PASSPHRASE, Ask, from_file, passphrase_of
from bombyx.config import passphrase_file
from bombyx.errors import ConfigError
from bombyx.protocol.primitives import Secret

FdOption = Annotated[int | None, typer.Option(help="read the passphrase from this file descriptor", min=0)]


def asking(descriptor: int | None = None, *, new: bool = False) -> Ask:
    """How to ask. `new`: on a terminal, twice. Asked again, the first answer stands."""
    known: list[Secret] = []

    def ask(question: str) -> Secret:
        if not known:
            known.append(_answer(question, descriptor, new=new))
        return known[0]

    return ask


def _answer(question: str, descriptor: int | None, *, new: bool) -> Secret:
    if descriptor is not None:
        return _from_descriptor(descriptor)
    if passphrase_file() is not None or not sys.stdin.isatty():
        return from_file(question)
    text = typer.prompt(question, hide_input=True, confirmation_prompt=new, err=True)
    return passphrase_of(str(text).encode())


def _from_descriptor(descriptor: int) -> Secret:
    data = b""
    try:
        while len(data) <= MAX_PASSPHRASE + 2 and b"\n" not in data:
            piece = os.read(descriptor, MAX_PASSPHRASE + 2 - len(data))
            if not piece:
                break
            data += piece
    except OSError as error:
        raise ConfigError(f"file descriptor {descriptor}: {error.strerror}", rule="WAL-1") from None
    return passphrase_of(data.partition(b"\n")[0])
