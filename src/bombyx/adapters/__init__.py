# SPDX-License-Identifier: Apache-2.0
"""The outside world, one file a port (`bombyx.ports`). Foreign exceptions stop here; no adapter knows a role."""
