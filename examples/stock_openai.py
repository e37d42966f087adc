# SPDX-License-Identifier: Apache-2.0
"""The stock OpenAI client against the local endpoint: only `base_url` differs. Start `bombyx up` or `bombyx client`
first.
"""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("BOMBYX_ENDPOINT", "http://127.0.0.1:10000/v1"), api_key="unused")
model = client.models.list().data[0].id
answer = client.chat.completions.with_raw_response.create(
    model=model,
    messages=[{"role": "user", "content": "What is the capital of France?"}],
    max_tokens=32,
    temperature=0,
)
print(answer.parse().choices[0].message.content)
print("trust class:", answer.headers["x-bombyx-trust-class"], " receipt:", answer.headers["x-bombyx-receipt"])
