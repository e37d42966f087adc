# SPDX-License-Identifier: Apache-2.0
"""The specification, running: bytes and values in, values out. No I/O, clock, randomness or logging lives here."""
