# SPDX-License-Identifier: Apache-2.0
"""What an operator may set, per role; the only reader of environment variables and configuration files.

Order, later wins: the defaults below, a TOML file (one table a role), `BOMBYX_<ROLE>_<NAME>`, command-line options.
Always: an unknown name, an ill-typed value or one out of bounds is a `ConfigError` that says where it stood.
`bombyx config show` prints every value and where it came from.
"""

from bombyx.config.files import MAX_FILE
from bombyx.config.network import NetworkDescriptor, ProxyAddress
from bombyx.config.places import clock_error, crash_orders, default_descriptor_path, passphrase_file, state_home
from bombyx.config.reading import explain, help_of, load, shown
from bombyx.config.roles import (
    BEACON_AGE,
    ROLES,
    SQLITE,
    ClientConfig,
    ProxyConfig,
    RoleConfig,
    SellConfig,
    ValidatorConfig,
    WorkerConfig,
)

__all__ = [
    "BEACON_AGE",
    "ClientConfig",
    "MAX_FILE",
    "NetworkDescriptor",
    "ProxyAddress",
    "ProxyConfig",
    "ROLES",
    "RoleConfig",
    "SQLITE",
    "SellConfig",
    "ValidatorConfig",
    "WorkerConfig",
    "clock_error",
    "crash_orders",
    "default_descriptor_path",
    "explain",
    "help_of",
    "load",
    "passphrase_file",
    "shown",
    "state_home",
]
