# SPDX-License-Identifier: Apache-2.0
"""One honest answer's audit block, usage, manifest and request, for tests to bend."""

from __future__ import annotations

import json
from typing import Any

from bombyx.protocol.audit.asked import CHAT, read_sampling
from bombyx.protocol.audit.commitment import ids_digest, request_digest, stream_root
from bombyx.protocol.audit.structure import Sent, manifest_weights
from bombyx.protocol.primitives import Address, Digest, sha256
from bombyx.protocol.wire.audit import AuditBlock, AuditMode
from bombyx.protocol.wire.evidence import FileDigest, ModelManifest
from bombyx.protocol.wire.receipt import ChoiceIds, UsageOpening

SALT = b"\x07" * 32
NONCE = b"\x08" * 32
CLAIMANT = Address(b"\x09" * 20)
ASKED: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 40}
BODY = json.dumps(ASKED).encode()
END = 2
IDS = (*range(100, 133), END)
PROMPT = tuple(range(20))
MANIFEST = ModelManifest(
    v=1,
    name="tiny",
    weights=(FileDigest(name="tiny.gguf", sha256=sha256(b"weights"), size=7),),
    tokenizer=sha256(b"tokens"),
    chat_template=sha256(b"template"),
    quantisation="Q4_1",
    engine="llama.cpp (test)",
    arguments=(),
    context=4096,
    parameters=0,
)
USAGE = UsageOpening(
    v=1,
    input=len(PROMPT),
    cached_input=0,
    output=len(IDS),
    choices=(ChoiceIds(ids=IDS, finish="stop"),),
    verified=True,
    note="",
)
CAP = 128
SENT = Sent(path=CHAT, body=BODY, nonce=NONCE, claimant=CLAIMANT, cap=CAP)
BLOCK = AuditBlock(
    v=1,
    mode=AuditMode.SEEDED,
    why="",
    request=request_digest(CHAT, BODY),
    claimant=CLAIMANT,
    weights=manifest_weights(MANIFEST),
    tokenizer=sha256(b"tokens"),
    template=sha256(b"template"),
    engine="llama.cpp (test)",
    sampler=read_sampling(CHAT, ASKED, cap=CAP).sampler,
    nonce=NONCE,
    beacon=Digest.zero(),
    prompt_ids=ids_digest(PROMPT),
    prompt_count=len(PROMPT),
    stream_root=stream_root(SALT, IDS),
)
