# SPDX-License-Identifier: Apache-2.0
"""The outside world, one file a port. Foreign exceptions end here: callers see `bombyx.errors` alone."""
