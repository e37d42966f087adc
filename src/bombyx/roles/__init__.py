# SPDX-License-Identifier: Apache-2.0
"""The shells: client, proxy, worker. Each drives the protocol through ports and knows the others by their messages."""
