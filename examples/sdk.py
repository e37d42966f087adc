# SPDX-License-Identifier: Apache-2.0
"""Without any endpoint: the stock client class, sealing, checking and paying in this very process.

An answer that fails a check never passes as a whole one: inside a stream it is an exception whose cause is `AnswerCut`.
"""

import openai

import bombyx

with bombyx.openai() as client:  # the network that runs on this machine; or bombyx.openai("network.json")
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    try:
        for chunk in client.chat.completions.create(model=model, messages=messages, max_tokens=32, stream=True):
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        print()
    except openai.APIConnectionError as error:
        if isinstance(error.__cause__, bombyx.AnswerCut):
            raise SystemExit(f"not the whole answer: {error.__cause__.error}") from None
        raise
    except openai.APIStatusError as error:
        typed = error.response.extensions.get("bombyx_error")
        if isinstance(typed, bombyx.AttestationError):
            for step in typed.steps:
                print(step.number, step.name, step.status, step.detail)
        raise SystemExit(str(typed or error)) from None
