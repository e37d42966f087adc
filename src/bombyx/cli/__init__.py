# SPDX-License-Identifier: Apache-2.0
"""`bombyx ...`: one file a group of commands. Faces only: what they do stands in `compose` and the roles.

Every command takes `--help`; where a program may want to read the answer it takes `--json`. Errors go to standard
error as one sentence that says whose fault it is, with exit code 1 (a peer's or nobody's) or 2 (ours: wrong use,
wrong settings).
"""

from bombyx.cli.app import main

__all__ = ["main"]
