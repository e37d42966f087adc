# SPDX-License-Identifier: Apache-2.0
"""The auditable engine's process: weights, key-value cache and sampler. Run by `engine_auditable`, not by people.

    python -m bombyx.adapters.llama_process --model FILE --threads 1 --parallel 4 --context 4096

Prints one line of JSON once it is ready, then reads and writes a line of JSON per message: {"run": ...} and
{"cancel": NUMBER} in, one line per step out (`told`, `started`, `refused`; an empty one is a sign of life). Ends when
its standard input closes: a worker that is killed leaves nothing behind.

Always: nothing but these lines is ever written anywhere; a failure of the library ends the process, and its parent
starts another.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO, Final

from bombyx.adapters.llama_api import DEFAULT_BATCH, Item, LlamaContext, LlamaModel
from bombyx.adapters.llama_batching import Batcher, Event, Job, Refused, Started
from bombyx.errors import BombyxError
from bombyx.protocol.wire.audit import SamplerBlock

Commands = queue.SimpleQueue[dict[str, Any] | None]
_STOP: Final = None


def main() -> int:
    options = _options()
    # The library may write to standard output: keep that for our lines, send the rest to standard error.
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    try:
        batcher = _load(options)
    except BombyxError as error:
        print(error.message, file=sys.stderr)
        return 1
    _send(
        out,
        {
            "pid": os.getpid(),
            "chats": batcher.chats if batcher is not None else False,
            "auditable": batcher is not None,
        },
    )
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    commands: Commands = queue.SimpleQueue()
    threading.Thread(target=_read, args=(commands,), daemon=True).start()
    if batcher is not None:
        _serve(batcher, commands, out)
    else:
        while commands.get() is not _STOP:
            pass
    os._exit(0)  # not a clean shutdown: nobody reads what is still being computed


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bombyx.adapters.llama_process")
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--context", type=int, default=4096)
    return parser.parse_args()


def _load(options: argparse.Namespace) -> Batcher | None:
    """None: a model whose sequences cannot be cut and copied, which is nothing we could audit."""
    model = LlamaModel(Path(options.model))
    if not model.causal:
        return None
    context = LlamaContext(
        model,
        context=options.context,
        sequences=options.parallel,
        threads=options.threads,
        batch=max(DEFAULT_BATCH, options.parallel),
    )
    for _ in context.decode([Item(0, 0, 0, True)]):  # the weights come into memory now, not with the first request
        pass
    context.clear()
    return Batcher(model, context, sequences=options.parallel, room=options.context)


def _read(commands: Commands) -> None:
    for line in sys.stdin.buffer:
        commands.put(json.loads(line))
    commands.put(_STOP)


def _serve(batcher: Batcher, commands: Commands, out: BinaryIO) -> None:
    while True:
        while batcher.idle or not commands.empty():
            command = commands.get()
            if command is _STOP:
                return
            _obey(batcher, command)
            if batcher.idle:
                break  # it was refused at once: say so
        _send(out, _message(batcher.step()))


def _obey(batcher: Batcher, command: dict[str, Any]) -> None:
    if "cancel" in command:
        batcher.cancel(command["cancel"])
        return
    asked = command["run"]
    job = Job(
        number=asked["number"],
        path=asked["path"],
        asked=asked["asked"],
        sampler=SamplerBlock.decode(bytes.fromhex(asked["sampler"])),
        seeds=tuple(asked["seeds"]),
        salt=bytes.fromhex(asked["salt"]),
        logprobs=asked["logprobs"],
    )
    batcher.add(job)


def _message(events: list[Event]) -> dict[str, Any]:
    message: dict[str, Any] = {}
    for event in events:
        if isinstance(event, Started):
            message.setdefault("started", []).append((event.number, event.prompt, event.cached))
        elif isinstance(event, Refused):
            message.setdefault("refused", []).append((event.number, event.status, event.code, event.message))
        else:
            told = (event.number, event.choice, event.token, event.text, event.logprob, event.finish)
            message.setdefault("told", []).append(told)
    return message


def _send(out: BinaryIO, message: dict[str, Any]) -> None:
    data = memoryview(json.dumps(message, separators=(",", ":")).encode() + b"\n")
    while data:
        data = data[out.write(data) :]


if __name__ == "__main__":
    sys.exit(main())
