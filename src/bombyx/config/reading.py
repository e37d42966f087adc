# SPDX-License-Identifier: Apache-2.0
"""A role's settings from where they may stand: defaults, a TOML file, the environment, the command line."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from bombyx.config.files import read_file
from bombyx.config.roles import C, RoleConfig
from bombyx.errors import ConfigError


def load(kind: type[C], *, file: Path | None = None, overrides: Mapping[str, Any] | None = None) -> C:
    """The settings of one role. `overrides` holds command-line options; None in it means "not given"."""
    return explain(kind, file=file, overrides=overrides)[0]


def explain(
    kind: type[C], *, file: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> tuple[C, dict[str, str]]:
    """The settings of one role, and for each name where its value came from."""
    values: dict[str, Any] = {}
    origin = dict.fromkeys(_names(kind), "default")
    for source, given in (
        (f"file {file}" if file else "", _from_file(kind, file)),
        ("environment", _from_environment(kind)),
        ("command line", {k: v for k, v in (overrides or {}).items() if v is not None}),
    ):
        for name, value in given.items():
            values[name] = _checked(kind, name, value, source)
            origin[name] = source
    settings = kind(**values)
    settings.check()
    return settings, origin


def shown(settings: RoleConfig) -> dict[str, Any]:
    """Every value, as anybody may see it."""
    hidden = {f.name for f in dataclasses.fields(settings) if f.metadata["secret"]}
    values = dataclasses.asdict(settings)
    return {name: _without_password(value) if name in hidden else value for name, value in values.items()}


def _without_password(url: str) -> str:
    """Everything up to the last @ may be a user and a password; so may what follows a question mark."""
    scheme, found, rest = url.partition("://")
    if not found:
        return url
    place = rest.rpartition("@")[2].partition("?")[0]
    return f"{scheme}://{'***@' if '@' in rest else ''}{place}"


def help_of(kind: type[RoleConfig], name: str) -> str:
    """The sentence that explains one setting."""
    return next(str(f.metadata["help"]) for f in dataclasses.fields(kind) if f.name == name)


def _names(kind: type[RoleConfig]) -> list[str]:
    return [f.name for f in dataclasses.fields(kind)]


def _from_file(kind: type[RoleConfig], file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        table = tomllib.loads(read_file(file)).get(kind.ROLE, {})
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None
    if not isinstance(table, dict):
        raise ConfigError(f"{file}: [{kind.ROLE}] must be a table")
    return table


def _from_environment(kind: type[RoleConfig]) -> dict[str, str]:
    prefix = f"BOMBYX_{kind.ROLE.upper()}_"
    return {n: os.environ[prefix + n.upper()] for n in _names(kind) if prefix + n.upper() in os.environ}


def _checked(kind: type[RoleConfig], name: str, value: Any, source: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if name not in fields:
        raise ConfigError(f"{source}: {kind.ROLE} has no setting {name!r}; it has {', '.join(fields)}")
    wanted = get_type_hints(kind)[name]
    try:
        typed = _typed(wanted, value)
    except (TypeError, ValueError):
        raise ConfigError(f"{source}: {kind.ROLE}.{name} takes a {wanted.__name__}, not {value!r}") from None
    least, most = fields[name].metadata["least"], fields[name].metadata["most"]
    if (least is not None and typed < least) or (most is not None and typed > most):
        raise ConfigError(f"{source}: {kind.ROLE}.{name} = {typed} is outside {least} .. {most or 'any'}")
    return typed


def _typed(wanted: type, value: Any) -> Any:
    if wanted is bool and isinstance(value, str):
        return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[value.lower()]
    if isinstance(value, str) and wanted in (int, float):
        return wanted(value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted:
        raise TypeError
    return value
