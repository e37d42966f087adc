# SPDX-License-Identifier: Apache-2.0
"""The blind path: what a client seals so that a proxy can carry it, price it and choose, and never read it.

    hpke      RFC 9180 contexts          envelope  k candidates, one body: seal and parse
    ohttp     RFC 9458 keys, capsules    opening   the enclave's checks, in their order
    chunked   chunked OHTTP framing      replay    once only
    bhttp     RFC 9292 messages          response  sealed frames, and the chain of their hashes
    fields    names of inner fields      shape     sizes and times of frames (padding: of requests)

Rules (docs/spec): SEAL-1 layout and bounds of an envelope; SEAL-2 META is bound by its hash; SEAL-3 wraps; SEAL-4 the
body is bound by its hash; SEAL-5 not_after and proxy id; SEAL-6 replay and finished ids; SEAL-7 framing, a final
frame or an error; SEAL-8 shape; SEAL-9 k = 1 as a plain chunked request; SEAL-10 keys; SEAL-11 HPKE; SEAL-12 BHTTP;
SEAL-13 padding.

NOT here: whether a key deserves to be sealed to (`protocol/attest`, joined in `protocol/session`).
"""

from bombyx.protocol.seal.bhttp import Request, Response, decode_request, decode_response, encode_request
from bombyx.protocol.seal.bhttp_reader import BhttpResponseReader, Body, Head, Trailers
from bombyx.protocol.seal.envelope import (
    Envelope,
    SealedRequest,
    check_layout,
    parse_envelope,
    payload_hash,
    request_hash,
    seal_plain,
    seal_request,
)
from bombyx.protocol.seal.hpke import Kem, PrivateKey, Randomness
from bombyx.protocol.seal.ohttp import (
    SESSION_LABEL,
    GatewayKey,
    KeyConfig,
    decapsulate_request,
    encapsulate_request,
    encode_key_configs,
    parse_key_configs,
)
from bombyx.protocol.seal.opening import OpenedRequest, open_request
from bombyx.protocol.seal.padding import pad_request, padme
from bombyx.protocol.seal.replay import ReplayGuard
from bombyx.protocol.seal.response import ResponseChain, ResponseOpener, ResponseSealer, chain_next, chain_start
from bombyx.protocol.seal.shape import TICK, Frame, Shaper

__all__ = [
    "SESSION_LABEL",
    "TICK",
    "BhttpResponseReader",
    "Body",
    "Envelope",
    "Frame",
    "GatewayKey",
    "Head",
    "Kem",
    "KeyConfig",
    "OpenedRequest",
    "PrivateKey",
    "Randomness",
    "ReplayGuard",
    "Request",
    "Response",
    "ResponseChain",
    "ResponseOpener",
    "ResponseSealer",
    "SealedRequest",
    "Shaper",
    "Trailers",
    "chain_next",
    "chain_start",
    "check_layout",
    "decapsulate_request",
    "decode_request",
    "decode_response",
    "encapsulate_request",
    "encode_key_configs",
    "encode_request",
    "open_request",
    "pad_request",
    "padme",
    "parse_envelope",
    "parse_key_configs",
    "payload_hash",
    "request_hash",
    "seal_plain",
    "seal_request",
]
