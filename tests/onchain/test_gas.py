# SPDX-License-Identifier: Apache-2.0
"""What each step costs in gas, compared with gas.json: a change that costs more has to say so in its diff.

Measured by bench/gas.py on a real node; the same on every machine. Written anew with BOMBYX_GAS=write.
"""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path

from tests.onchain.devnet import need_anvil

SNAPSHOT = Path(__file__).resolve().parent / "gas.json"
CASES = "case: "  # test_case_gas.py's
BENCH = Path(__file__).resolve().parents[2] / "bench" / "gas.py"


async def test_gas_is_as_written_down() -> None:
    """Equal, step by step; anything else belongs into the snapshot. A thousand requests stay under 100 gas each."""
    need_anvil()
    bench = runpy.run_path(str(BENCH))
    found = await bench["measure"]()
    written = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    cases = {name: gas for name, gas in written.items() if name.startswith(CASES)}
    if os.environ.get("BOMBYX_GAS") == "write":
        written = found | cases
        SNAPSHOT.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    assert found | cases == written
    assert bench["LIVES"][0].a_request(found) < 100
