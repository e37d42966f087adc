# SPDX-License-Identifier: Apache-2.0
"""Compile contracts/*.vy into src/bombyx/contracts/*.json: ABI and creation code, so that running needs no compiler.

    python scripts/compile_contracts.py           write what changed
    python scripts/compile_contracts.py --check   change nothing; fail if a file is not what its source gives

The compiler is pinned to one version; the same source gives the same bytes on every machine.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
SOURCES: Final = ROOT / "contracts"
ARTIFACTS: Final = ROOT / "src" / "bombyx" / "contracts"


def compiled(source: Path) -> dict[str, Any]:
    """What is published of one contract."""
    import vyper
    from vyper.cli.vyper_compile import compile_files

    output = compile_files([source], ["abi", "bytecode", "bytecode_runtime"], paths=[SOURCES])[source]
    return {
        "name": source.stem,
        "license": "Apache-2.0",
        "compiler": f"vyper {vyper.__version__}",
        "runtime_bytes": (len(output["bytecode_runtime"]) - 2) // 2,
        "abi": output["abi"],
        "bytecode": output["bytecode"],
    }


def as_text(artifact: dict[str, Any]) -> str:
    """One ABI entry a line, so that a change of interface shows in a diff."""
    abi = ",\n".join("  " + json.dumps(entry) for entry in artifact["abi"])
    head = ",\n".join(f' "{key}": {json.dumps(artifact[key])}' for key in artifact if key not in ("abi", "bytecode"))
    return f'{{\n{head},\n "abi": [\n{abi}\n ],\n "bytecode": "{artifact["bytecode"]}"\n}}\n'


def main() -> int:
    """Write or check every artifact."""
    check = "--check" in sys.argv[1:]
    stale = []
    ARTIFACTS.mkdir(exist_ok=True)
    for source in sorted(SOURCES.glob("*.vy")):
        target = ARTIFACTS / f"{source.stem}.json"
        text = as_text(compiled(source))
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            stale.append(target.name)
            if not check:
                target.write_text(text, encoding="utf-8")
    if stale:
        sys.stdout.write(f"{'stale' if check else 'written'}: {', '.join(stale)}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
