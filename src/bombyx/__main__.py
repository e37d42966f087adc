# SPDX-License-Identifier: Apache-2.0
"""`python -m bombyx` is `bombyx`."""

from bombyx.cli import main

if __name__ == "__main__":
    main()
