# SPDX-License-Identifier: Apache-2.0
"""`bombyx up --with-cheater`: what validators, juries and the chain make of a worker that lies, told as it happens."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from rich.console import Console

from bombyx.compose.network import RunningNetwork
from bombyx.compose.watching import Seen, Watcher

QUIET = frozenset({"plan committed", "root posted"})  # every epoch has them
LOUD = frozenset({"case opened", "round decided", "appealed", "slashed", "ejected", "refund paid"})


async def show_trial(network: RunningNetwork, console: Console, stop: asyncio.Event) -> dict[str, Any]:
    """Tell the story until the clients have their money back. Gives it as plain data."""
    assert network.cheater is not None
    console.print("\none of the workers LIES: it says the good model and runs a pruned copy of it.", style="bold red")
    console.print("Only a SIMULATED enclave signs that; a real one would have to be broken first.", style="bold red")
    console.print(f"nobody here knows that it is {network.cheater.name}; validators have to find out.\n")
    watcher, began, planned = Watcher(network), time.monotonic(), 0
    async for seen in watcher.watch(stop):
        if seen.what in QUIET:
            planned += seen.what == "plan committed"
            continue
        _tell(console, seen, time.monotonic() - began)
    _conclude(console, watcher, planned)
    return {
        "steps": [step.as_dict() for step in watcher.steps],
        "reports": watcher.reports,
        "answers": watcher.answers,
        "failed": watcher.failed,
        "bought_of_the_liar": len(watcher.bought),
        "over": watcher.over,
    }


def _tell(console: Console, seen: Seen, seconds: float) -> None:
    transaction = f"  tx {str(seen.step.transaction)[:18]}..." if seen.step is not None else ""
    line = f"[{seconds:5.0f} s] {seen.what:<24} {seen.who:<12} {seen.detail}{transaction}"
    console.print(line, markup=False, soft_wrap=True, style="bold" if seen.what in LOUD else "dim")


def _conclude(console: Console, watcher: Watcher, planned: int) -> None:
    facts = {name: [s for s in watcher.steps if s.step == name] for name in ("slashed", "ejected", "refund paid")}
    if not watcher.over:
        console.print("\nthe trial was not seen to its end", style="bold")
        return
    slashed = sum(step.facts["amount"] for step in facts["slashed"])
    paid = sum(step.facts["amount"] for step in facts["refund paid"])
    gone = ", ".join(watcher.name(str(step.who)) for step in facts["ejected"])
    console.print(f"\nslashed {slashed}; ejected {gone}; {paid} paid back to clients", style="bold")
    told = f"{planned} plans of canaries were committed; clients got {watcher.answers} answers meanwhile"
    console.print(f"{told}, {len(watcher.bought)} of the liar's")
