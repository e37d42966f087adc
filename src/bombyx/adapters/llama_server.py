# SPDX-License-Identifier: Apache-2.0
"""The embedded model server's process: llama.cpp behind HTTP on loopback. Run by `engine_embedded`, not by people.

    python -m bombyx.adapters.llama_server --model FILE --name NAME --port 0 --threads 1 --parallel 4 --context 4096

Reads one line of JSON, {"api_key": ...}, from standard input, prints one line of JSON, {"port": ..., "pid": ...}, once
it serves, and ends when its standard input closes: a worker that is killed leaves no server behind.

Always: listens on 127.0.0.1 only and for the key only; keeps no prompt cache outside its slots; once it serves, its log
goes nowhere, because llama.cpp writes parts of requests into it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any
from urllib.parse import urlsplit


def main() -> int:
    options = _options()
    # The library may write to standard output: keep that for our one line, send the rest to standard error.
    announce = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    api_key = json.loads(sys.stdin.readline())["api_key"]
    server = _serve(options, api_key)
    print(json.dumps({"port": urlsplit(server.listening_address).port, "pid": os.getpid()}), file=announce, flush=True)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    while sys.stdin.read(4096):
        pass
    os._exit(0)  # not a clean shutdown: that would wait for running answers nobody reads any more


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bombyx.adapters.llama_server")
    parser.add_argument("--model", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--embeddings", action="store_true")
    return parser.parse_args()


def _serve(options: argparse.Namespace, api_key: str) -> Any:
    import xllamacpp  # 34 MB of native code: only this process loads it

    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.model_alias = {options.name}
    params.hostnames = ["127.0.0.1"]
    params.port = options.port
    params.api_keys = [api_key]
    params.cors_origins = ""
    params.n_ctx = options.context * options.parallel  # llama.cpp divides it among its slots
    params.n_parallel = options.parallel
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads
    params.embedding = options.embeddings
    params.cache_ram_mib = 0  # would share prompts between slots, hence between conversations
    params.cache_idle_slots = False
    params.endpoint_slots = False
    params.ui = False
    params.verbosity = 1
    return xllamacpp.Server(params)


if __name__ == "__main__":
    sys.exit(main())
