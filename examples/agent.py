# SPDX-License-Identifier: Apache-2.0
"""An agent whose wallet nobody can touch: its keys are derived from its own code inside an enclave. It opens a channel,
pays for its inference, and publishes a statement that proves which model said it, and to whom.

    bombyx enclave run examples/agent.py "What is the capital of France?" --out statement
    bombyx enclave policy examples/agent.py > policy.toml
    bombyx verify statement --policy policy.toml

Change a byte of this file and it is another agent, with another wallet. Outside an enclave it starts a simulated one
around itself: that protects from nobody who owns the machine.
"""

import argparse
import asyncio
import os
import subprocess
import sys
from pathlib import Path

import bombyx
from bombyx.errors import ConfigError
from bombyx.protocol.attest.statement import read_statement

MODEL = "SmolLM2-135M-Instruct"


async def main(question: str, out: Path | None) -> None:
    agent = await bombyx.agent()
    try:
        statement = await agent.say(question, model=MODEL)
    finally:
        await agent.close()
    data = statement.encode()
    _, body = read_statement(data)
    print(f"agent {agent.address} asked: {body.asked}")
    print(f"the model said: {body.said}")
    print(f"statement of {len(data)} bytes about request {body.request_id.hex()}")
    if out is not None:
        await asyncio.to_thread(out.write_bytes, data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("question", nargs="?", default="What is the capital of France?")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    try:
        asyncio.run(main(asked.question, asked.out))
    except ConfigError as outside:
        if "BOMBYX_AGENT_WRAPPED" in os.environ or "no agent of an enclave" not in str(outside):
            raise SystemExit(str(outside)) from None
        again = [sys.executable, "-m", "bombyx", "enclave", "run", __file__, *sys.argv[1:]]
        sys.exit(subprocess.call(again, env=os.environ | {"BOMBYX_AGENT_WRAPPED": "1"}))
