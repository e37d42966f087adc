# SPDX-License-Identifier: Apache-2.0
"""What people put in front of engines, each on one core with TLS: nginx, HAProxy, LiteLLM, and two small gateways.

nginx and HAProxy are taken from the system (`apt-get install nginx haproxy`). The Python ones live in an environment of
their own, `.venv/bench-peers`, made when it is first wanted. A peer that cannot be had is skipped, and said so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv" / "bench-peers"
PACKAGES = ("litellm[proxy]", "fastapi", "starlette", "uvicorn", "uvloop", "httptools", "httpx", "aiohttp")
READY_WITHIN = 90.0
CORE = 0  # of what is measured


class Missing(Exception):
    """This peer cannot be had here; the message says why."""


@dataclass
class Peer:
    """A gateway under test: a process of ours, and where it listens."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    notes: str = ""

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class Where:
    """What every peer is told."""

    folder: Path
    certificate: Path
    key: Path
    upstream: int
    environment: dict[str, str] = field(default_factory=dict)


def start(name: str, where: Where) -> Peer:
    """Raises `Missing`."""
    port = _free_port()
    command, notes = COMMANDS[name](where, port)
    log = (where.folder / f"{name}.log").open("wb")
    process = subprocess.Popen(
        command, stdout=log, stderr=log, cwd=where.folder, env={**os.environ, **where.environment}, preexec_fn=_pin
    )
    peer = Peer(name, process, port, notes)
    end = time.monotonic() + READY_WITHIN
    while not _listens(port):
        if process.poll() is not None or time.monotonic() > end:
            peer.stop()
            tail = (where.folder / f"{name}.log").read_text(errors="replace")[-300:]
            raise Missing(f"{name} did not start: {tail.strip()}")
        time.sleep(0.1)
    return peer


def _pin() -> None:
    pin(0, CORE)


def pin(pid: int, core: int) -> None:
    """Keep a process, all its threads, on one core, ahead of others where the system allows it."""
    threads = [int(task.name) for task in Path(f"/proc/{pid or os.getpid()}/task").iterdir()]
    for thread in threads:
        os.sched_setaffinity(thread, {core})
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(thread, os.SCHED_RR, os.sched_param(10))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


# --- the two from the system -----------------------------------------------------------------------------------------


def _nginx(where: Where, port: int) -> tuple[list[str], str]:
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if binary is None:
        raise Missing("nginx is not installed (apt-get install nginx)")
    file = where.folder / "nginx.conf"
    file.write_text(f"""
daemon off; pid {where.folder}/nginx.pid; error_log stderr error; worker_processes 1; master_process off;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_buffer_size 64k;
  client_body_temp_path {where.folder}/body; proxy_temp_path {where.folder}/proxy_temp;
  fastcgi_temp_path {where.folder}/f; uwsgi_temp_path {where.folder}/u; scgi_temp_path {where.folder}/s;
  keepalive_requests 1000000000; keepalive_timeout 600;
  upstream engine {{ server 127.0.0.1:{where.upstream}; keepalive 4096; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} ssl; ssl_protocols TLSv1.3;
    ssl_certificate {where.certificate}; ssl_certificate_key {where.key};
    location / {{ proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
                  proxy_buffering off; proxy_read_timeout 600; }}
  }}
}}
""")
    return [binary, "-c", str(file), "-p", str(where.folder)], ""


def _haproxy(where: Where, port: int) -> tuple[list[str], str]:
    binary = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if binary is None:
        raise Missing("haproxy is not installed (apt-get install haproxy)")
    pem = where.folder / "both.pem"
    pem.write_text(where.certificate.read_text() + where.key.read_text())
    file = where.folder / "haproxy.cfg"
    file.write_text(f"""
global
  nbthread 1
  maxconn 8192
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  http-reuse always
frontend front
  bind 127.0.0.1:{port} ssl crt {pem} ssl-min-ver TLSv1.3
  default_backend engine
backend engine
  server one 127.0.0.1:{where.upstream} pool-max-conn 4096
""")
    return [binary, "-f", str(file)], ""


# --- the ones in Python ----------------------------------------------------------------------------------------------


def _python() -> Path:
    """The peers' own environment, made on demand. Raises `Missing`."""
    python = ENVIRONMENT / "bin" / "python"
    done = ENVIRONMENT / ".complete"
    if not done.exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True, capture_output=True)
            subprocess.run(
                [str(python), "-m", "pip", "install", "-q", *PACKAGES], check=True, capture_output=True, timeout=900
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise Missing(f"the peers' environment cannot be made: {type(error).__name__}") from None
        done.touch()
    return python


def _uvicorn(module: str, where: Where, port: int) -> list[str]:
    where.environment["BENCH_UPSTREAM"] = f"http://127.0.0.1:{where.upstream}"
    return [
        str(_python()), "-m", "uvicorn", f"{module}:app", "--app-dir", str(ROOT / "bench" / "peers"), "--host",
        "127.0.0.1", "--port", str(port), "--loop", "uvloop", "--http", "httptools", "--no-access-log",
        "--log-level", "error", "--ssl-certfile", str(where.certificate), "--ssl-keyfile", str(where.key),
    ]  # fmt: skip


def _fastapi(where: Where, port: int) -> tuple[list[str], str]:
    return _uvicorn("fastapi_httpx", where, port), "uvicorn, uvloop, one shared httpx client"


def _starlette(where: Where, port: int) -> tuple[list[str], str]:
    return _uvicorn("starlette_aiohttp", where, port), "uvicorn, uvloop, one shared aiohttp client"


def _litellm(where: Where, port: int) -> tuple[list[str], str]:
    python = _python()
    file = where.folder / "litellm.yaml"
    file.write_text(
        "model_list:\n  - model_name: m\n    litellm_params:\n      model: openai/m\n"
        f"      api_base: http://127.0.0.1:{where.upstream}/v1\n      api_key: sk-x\n"
        "litellm_settings:\n  telemetry: false\n  num_retries: 0\n"
    )
    where.environment |= {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }  # fmt: skip
    command = [
        str(python.parent / "litellm"), "--config", str(file), "--host", "127.0.0.1", "--port", str(port),
        "--num_workers", "1", "--telemetry", "False", "--ssl_certfile_path", str(where.certificate),
        "--ssl_keyfile_path", str(where.key),
    ]  # fmt: skip
    return command, "no keys, no database, no callbacks: its best case"


COMMANDS = {
    "nginx": _nginx,
    "haproxy": _haproxy,
    "starlette+aiohttp": _starlette,
    "fastapi+httpx": _fastapi,
    "litellm": _litellm,
}


async def start_peer(name: str, where: Where) -> Peer:
    return await asyncio.to_thread(start, name, where)


def names(wanted: Sequence[str] | None = None) -> list[str]:
    return [name for name in COMMANDS if wanted is None or name in wanted]
