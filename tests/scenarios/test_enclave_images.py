# SPDX-License-Identifier: Apache-2.0
"""The worker's image is the same twice. Needs the Debian archive, a package registry, and root: never run by make."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = ("mmdebstrap", "umoci", "git", "tar")


@pytest.mark.live
@pytest.mark.timeout(900)
def test_two_builds_of_the_worker_image_are_equal(repo: Path, tmp_path: Path) -> None:
    """ENC-9: what is measured can be made again by anybody."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and {', '.join(missing) or 'nothing else'}")
    environment = {**os.environ, "PYTHON": sys.executable}
    ran = subprocess.run(
        [repo / "images" / "check.sh", tmp_path], capture_output=True, text=True, timeout=850, env=environment
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "the same" in ran.stdout and "bombyx starts in it" in ran.stdout
