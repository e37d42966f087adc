# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of every parser of foreign bytes (`make fuzz`): a value or a typed refusal, nothing else.

    python fuzz/parsers.py list             the targets
    python fuzz/parsers.py TARGET [libFuzzer options]
    python fuzz/parsers.py all SECONDS [TARGET ...]    each in a process of its own, for so long

Seeds are honest evidence of the simulator's, so that mutation starts deep inside. Where a parser's value is also
verified, the oracle is stronger: what verifies must say what the honest one said.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import atheris

REPO = Path(__file__).parents[1]
BUILD = REPO / "build" / "fuzz"
MAX_LENGTH = 65_536  # bytes of one input


def one(name: str, options: list[str]) -> None:
    """Run one target until libFuzzer ends it. Does not return."""
    with atheris.instrument_imports(
        include=["bombyx.protocol", "bombyx.adapters", "bombyx.roles"], enable_loader_override=False
    ):
        from targets import TARGETS
    if name not in TARGETS:
        sys.exit(f"no target {name!r}; there are: {', '.join(TARGETS)}")
    seeds, run = TARGETS[name]
    corpus = BUILD / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    settings = [f"-max_len={MAX_LENGTH}", "-timeout=20", "-rss_limit_mb=3072", f"-artifact_prefix={BUILD}/{name}-"]
    atheris.Setup([sys.argv[0], *settings, *options, str(corpus)], run)
    atheris.Fuzz()


def every(seconds: int, names: list[str]) -> int:
    """The named targets (none named: all), one after another; the number of those that found something."""
    from targets import TARGETS

    failed = []
    names = names or list(TARGETS)
    for name in names:
        start = time.monotonic()
        command = [sys.executable, __file__, name, f"-max_total_time={seconds}", "-print_final_stats=1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        runs = next((line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line), "?")
        verdict = "nothing found" if done.returncode == 0 else "FOUND SOMETHING"
        print(f"{name:18} {time.monotonic() - start:6.0f} s  {runs:>9} inputs  {verdict}", flush=True)
        if done.returncode:
            failed.append(name)
            (BUILD / f"{name}.log").write_text(done.stderr)
            print("\n".join(done.stderr.splitlines()[-25:]), flush=True)
    print(f"{len(names)} parsers, {len(failed)} with findings" + (f": {', '.join(failed)}" if failed else ""))
    return len(failed)


def main() -> None:
    match sys.argv[1:]:
        case ["list"]:
            from targets import TARGETS

            print("\n".join(TARGETS))
        case ["all", seconds, *names]:
            BUILD.mkdir(parents=True, exist_ok=True)
            sys.exit(1 if every(int(seconds), names) else 0)
        case [name, *options]:
            BUILD.mkdir(parents=True, exist_ok=True)
            os.chdir(BUILD)
            one(name, options)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
