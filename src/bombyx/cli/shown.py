# SPDX-License-Identifier: Apache-2.0
"""What `bombyx up` shows: who runs where, what was appraised, the receipt, and what the proxy saw."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from bombyx.compose.network import RunningNetwork

WIDTH = 110
_VERDICT = {True: "checked", False: "FAILED", None: "not checked"}
_CHAINS = {"memory": "in memory, play money", "evm": "EVM node with our contracts, play money"}
SIMULATED = "Enclaves here are SIMULATED: they protect from nobody who owns this machine."


def wide_console(*, stderr: bool) -> Console:
    """A console that does not fold our tables when it is no terminal or a narrow one."""
    console = Console(stderr=stderr, highlight=False)
    return console if console.width >= WIDTH else Console(stderr=stderr, highlight=False, width=WIDTH)


def show_ready(console: Console, network: RunningNetwork, seconds: float) -> None:
    """The ready table."""
    table = _table("role", "where", "who", "what")
    table.add_row("chain", network.devnet.ready["url"], "", _CHAINS[network.devnet.ready["kind"]])
    bps = network.proxy.ready["commission_bps"]
    table.add_row("proxy", network.proxy_url, _short(network.proxy.ready["address"]), f"commission {bps / 100:g} %")
    for child in network.workers:
        ready = child.ready
        what = f"{ready['model']}, {ready['engine']}, {ready['trust_class']} enclave"
        table.add_row(child.name, "dials out", _short(ready["operator"]), what)
    table.add_row("client", network.endpoint, "", "OpenAI endpoint")
    console.print(f"\nready in {seconds:.1f} s\n")
    console.print(table)
    console.print(f"\n{SIMULATED}", style="bold")


def show_answer(console: Console, facts: dict[str, Any]) -> None:
    """Appraisal, receipt, and the proxy's view of one answered request."""
    _show_appraisal(console, facts["appraisal"])
    _show_receipt(console, facts["receipt"], facts["checks"])
    _show_view(console, facts["view"])


def _show_appraisal(console: Console, appraisal: dict[str, Any]) -> None:
    table = _table("step", "", "result", "detail")
    for step in appraisal["steps"]:
        table.add_row(str(step["number"]), step["name"], step["status"], step["detail"])
    console.print(f"\nappraisal of the worker that answered: trust class {appraisal['trust_class']}", style="bold")
    console.print(table)


def _show_receipt(console: Console, receipt: dict[str, Any], checks: list[dict[str, Any]]) -> None:
    usage = receipt["usage"]
    table = _table("", "")
    table.add_row("request", receipt["request_id"])
    table.add_row("worker", receipt["operator"])
    table.add_row("units", f"{receipt['input_units']} in, {receipt['output_units']} out, {receipt['frames']} frames")
    table.add_row("exactly", f"{usage['input']} in, {usage['output']} out (only client and enclave know)")
    table.add_row("text", f"{receipt['text']}: output ids against the text")
    table.add_row(
        "paid", f"{receipt['paid']} = {receipt['charge']} worker + {receipt['paid'] - receipt['charge']} proxy"
    )
    table.add_row("signature", receipt["signature"][:32] + "...")
    for check in checks:
        table.add_row(_VERDICT[check["ok"]], f"{check['name']}: {check['detail']}")
    console.print(f"\nreceipt: {receipt['outcome']}", style="bold")
    console.print(table)


def _show_view(console: Console, view: dict[str, Any]) -> None:
    sent, answer, known = view["sent"], view["answer"], view["known"]
    sizes = ", ".join(f"{count} of {size} bytes" for size, count in answer["frame_sizes"].items())
    table = _table("", "")
    table.add_row("sealed body", f"{sent['body_bytes']} bytes: {sent['ciphertext_start'][:48]}...")
    table.add_row("payment", f"{sent['payment_bytes']} bytes, stripped before forwarding")
    table.add_row("wraps", f"{len(sent['wrap_bytes'])} of {sent['wrap_bytes'][0] if sent['wrap_bytes'] else 0} bytes")
    table.add_row("knows", f"model {known['model'][:16]}..., at most {known['max_output_units']} output units")
    table.add_row("chose", view["choice"]["why"])
    table.add_row("sealed frames", f"{sizes} in {answer['seconds']:.2f} s ({known['shape']} shape)")
    table.add_row("booked", f"{view['booked']['charge']}, of which {view['booked']['worker_charge']} for the worker")
    console.print("\nwhat the proxy saw", style="bold")
    console.print(table)


def show_settlement(console: Console, steps: list[dict[str, Any]]) -> None:
    """What the chain says was deposited, claimed, paid out and given back; and that it adds up."""
    if not steps:
        return
    table = _table("step", "amount", "channel or receiver", "transaction", "gas")
    for step in steps:
        table.add_row(
            step["step"], str(step["amount"]), step["subject"][:18] + "...", step["transaction"][:18] + "...",
            str(step["gas"]),
        )  # fmt: skip
    sums = {kind: sum(s["amount"] for s in steps if s["step"] == kind) for kind in ("deposit", "claim", "refund")}
    left = sums["deposit"] - sums["claim"] - sums["refund"]
    commission = sum(s["amount"] for s in steps if s["step"] == "commission")
    console.print("\nsettlement, as the chain tells it", style="bold")
    console.print(table)
    console.print(
        f"deposited {sums['deposit']} = claimed {sums['claim']} + refunded {sums['refund']} + still in channels {left}"
    )
    console.print(f"of what the client paid, {commission} is the proxy's commission; the rest went to workers")


def _short(address: str) -> str:
    return f"{address[:8]}...{address[-6:]}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, show_header=any(columns), padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, overflow="fold")
    return table
