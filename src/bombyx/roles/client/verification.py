# SPDX-License-Identifier: Apache-2.0
"""`/verification`: what this client checked, for people (HTML) and programs (JSON). It shows no prompt and no answer.

Every value that came from outside is escaped; the page loads nothing from anywhere.
"""

from __future__ import annotations

import html
from typing import Any, Final

from bombyx.roles.client.core import Client
from bombyx.roles.client.evidence import Appraised
from bombyx.roles.client.problem import step_row
from bombyx.roles.client.receipts import summary

SIMULATED: Final = "simulated enclaves: the host of a worker can read everything it computes"
RECEIPTS: Final = 20
CSP: Final = "default-src 'none'; style-src 'unsafe-inline'"


async def verification(client: Client) -> dict[str, Any]:
    """Everything, as one JSON value."""
    receipts = [summary(kept) for kept in await client.book.newest(RECEIPTS)]
    return {
        **checked(client),
        "alarms": client.watch.as_rows(),
        "candidates": client.tally.as_rows(),
        "budget": {"limit": client.settings.budget, "used": client.wallet.spent},
        "channels": [
            {
                "id": channel.id.hex(),
                "proxy": str(channel.config.receiver),
                "agreed": int(channel.agreed),
                "ceiling": int(channel.ceiling),
                "in_flight": len(channel.in_flight),
                "worst_loss": channel.worst_loss,
                "frozen": channel.frozen,
            }
            for channel in client.wallet.channels()
        ],
        "receipts": receipts,
    }


def checked(client: Client) -> dict[str, Any]:
    """The part of it that is nobody's business in particular: what may be shown to strangers."""
    appraisals = [_appraisal(entry) for entry in reversed(client.evidence.all())]
    classes = sorted({str(a["trust_class"]) for a in appraisals if a["trust_class"]})
    return {
        "trust_classes": classes,
        "warning": SIMULATED if "simulated" in classes else None,
        "proxies": [_proxy(client, view) for view in client.network.known_views()],
        "appraisals": appraisals,
        "distrusted": client.distrusted,
    }


def _appraisal(entry: Appraised) -> dict[str, Any]:
    result = entry.result
    return {
        "operator": str(entry.offer.operator),
        "bundle": entry.offer.bundle.hex(),
        "at": int(entry.at),
        "trust_class": str(result.trust_class) if result else None,
        "until": int(result.until) if result else None,
        "models": [manifest.name for manifest in result.manifests] if result else [],
        "error": str(entry.error) if entry.error else None,
        "steps": [step_row(step) for step in entry.steps],
    }


def _proxy(client: Client, view: Any) -> dict[str, Any]:
    report = view.report
    return {
        "address": str(view.line.address),
        "url": view.line.url,
        "commission_bps": view.commission_bps,
        "listed": len(report.fit),
        "invented": [str(who) for who in report.invented],
        "hidden": [str(who) for who in report.hidden],
        "expired": [str(who) for who in report.expired],
    }


_TABLES: Final = (
    (
        "Receipts",
        "receipts",
        ("request_id", "trust_class", "outcome", "output_units", "charge", "paid", "text", "audit", "fault"),
    ),
    ("Candidates drawn", "candidates", ("operator", "drawn", "absent", "offered", "answered", "failed")),
    ("Proxies", "proxies", ("address", "url", "commission_bps", "listed", "invented", "hidden")),
    ("Channels", "channels", ("proxy", "agreed", "ceiling", "in_flight", "worst_loss", "frozen")),
)


def page(value: dict[str, Any]) -> bytes:
    """The same for people."""
    parts = [_HEAD, "<h1>What this client checked</h1>"]
    parts += [f"<p class=warn>{_e(value[name])}</p>" for name in ("hop", "warning") if value.get(name)]
    alarms = value.get("alarms", ())
    parts += [f"<p class=warn>{_e(a['proxy'])} {_e(a['kind'])}: it {_e(a['text'])}</p>" for a in alarms]
    parts.append("<h2>Workers appraised</h2>")
    parts += [_worker(entry) for entry in value["appraisals"]] or ["<p>None yet: ask something first.</p>"]
    for title, name, columns in _TABLES:
        if name in value:
            parts += [f"<h2>{title}</h2>", _table(columns, value[name])]
    if budget := value.get("budget"):
        parts.append(f"<p>{_e(budget['used'])} of a budget of {_e(budget['limit'])} is used.</p>")
    parts.append("<p><a href='/verification?format=json'>the same as JSON</a></p>")
    return "".join(parts).encode()


def _worker(entry: dict[str, Any]) -> str:
    verdict = entry["trust_class"] or "refused"
    models = ", ".join(entry["models"])
    head = f"<h3>{_e(entry['operator'])} <span class=tag>{_e(verdict)}</span> {_e(models)}</h3>"
    return head + _table(("number", "name", "status", "detail"), entry["steps"])


def _table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "<p>None.</p>"
    head = "".join(f"<th>{_e(name.replace('_', ' '))}</th>" for name in columns)
    lines = ("".join(f"<td>{_cell(row.get(name))}</td>" for name in columns) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: object) -> str:
    if isinstance(value, list):
        value = ", ".join(str(item) for item in value)
    return "" if value is None else _e(str(value))


def _e(text: object) -> str:
    return html.escape(str(text))


_HEAD: Final = """<!doctype html><html lang=en><meta charset=utf-8><title>bombyx: verification</title><style>
body{font:15px/1.45 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b;background:#fff}
table{border-collapse:collapse;margin:.4rem 0 1.2rem}td,th{padding:.25rem .7rem;border-bottom:1px solid #ddd;
text-align:left;vertical-align:top;overflow-wrap:anywhere}
th{font-weight:600;color:#555}h3{font-size:1rem;margin:.8rem 0 .2rem}
.tag{background:#eee;border-radius:.3rem;padding:.05rem .4rem}
.warn{background:#fff3cd;padding:.6rem .9rem;border-radius:.3rem}
@media(prefers-color-scheme:dark){body{background:#161616;color:#e6e6e6}td,th{border-color:#333}.tag{background:#333}
.warn{background:#4a3c00}a{color:#8ab4f8}}</style>"""
