# SPDX-License-Identifier: Apache-2.0
"""Which ids end a generation, by what models call them: for engines that do not say (vLLM's server tells nobody).

Not here: llama.cpp's models, whose runtime knows. Always: only tokens that stand for no text are taken, and the one
that ends a turn comes first, since that is what an honest chat ends with (JDG-4).
"""

from __future__ import annotations

from typing import Final

from bombyx.protocol.wire.tokens import TokenTable

NAMES: Final = (
    "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|return|>", "<|call|>", "<|eom_id|>",
    "<|END_OF_TURN_TOKEN|>", "<|eot|>",
    "<|end_of_text|>", "<|endoftext|>", "<|end_of_sentence|>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "</s>",
    "<eos>", "[EOS]", "<|EOT|>", "<EOT>", "<|eos|>",
)  # fmt: skip


def end_tokens(table: TokenTable) -> tuple[int, ...]:
    """In the order of `NAMES`; empty where the vocabulary has none of them."""
    found: dict[bytes, int] = {}
    for token in range(table.size):
        if table.is_special(token):
            found.setdefault(table.name(token), token)
    return tuple(found[name.encode()] for name in NAMES if name.encode() in found)
