# SPDX-License-Identifier: Apache-2.0
"""Verified answers: what is sampled, how it is judged, and what a judgement does. Pure; the chain and roles call it."""
