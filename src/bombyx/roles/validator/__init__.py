# SPDX-License-Identifier: Apache-2.0
"""The validator: asks canaries as clients do, judges the answers, accuses with evidence, sits on juries (AUD-50 ff.).

It stands on a client that it is handed as an `Asker`; no role is imported here.
"""
