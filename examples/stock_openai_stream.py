# SPDX-License-Identifier: Apache-2.0
"""Streaming through the local endpoint, with the asynchronous stock client."""

import asyncio
import os

from openai import AsyncOpenAI

ENDPOINT = os.environ.get("BOMBYX_ENDPOINT", "http://127.0.0.1:10000/v1")


async def main() -> None:
    async with AsyncOpenAI(base_url=ENDPOINT, api_key="unused") as client:
        model = (await client.models.list()).data[0].id
        messages = [{"role": "user", "content": "Name three colours."}]
        stream = await client.chat.completions.create(model=model, messages=messages, max_tokens=48, stream=True)
        async for chunk in stream:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        print()


asyncio.run(main())
