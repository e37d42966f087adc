# SPDX-License-Identifier: Apache-2.0
"""One request through `bombyx.connect`, then its appraisal, its receipt, and the receipt checked again from what is
kept.
"""

import asyncio
import json

import bombyx


async def main() -> None:
    client = await bombyx.connect()
    try:
        model = (await client.models())[0].manifest.name
        body = {"model": model, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16}
        response = await client.request("POST", "/v1/chat/completions", body=json.dumps(body).encode())
        answer = json.loads(await response.read())
        if response.status != 200:
            raise SystemExit(answer["error"]["message"])
        print(answer["choices"][0]["message"]["content"])
        for step in response.steps:
            print(f"  step {step['number']:>2} {step['status']:<15} {step['name']}")
        receipt = await response.receipt()
        assert receipt is not None
        print(f"  {receipt['output_units']} output units, paid {receipt['paid']}, text {receipt['text']}")
        for check in await client.book.verify(receipt["request_id"], policy=client.policy):
            print(f"  {check.name}: {check.ok}")
    finally:
        await client.close()


asyncio.run(main())
