# SPDX-License-Identifier: Apache-2.0
"""The honest evidence fuzzing starts from: a simulated platform, GPUs, provider, chip, and a policy for them."""

from __future__ import annotations

import orjson

from bombyx.adapters.simulator import WORKER_IMAGE, SimulatedEnclave, SimulatedPlatform
from bombyx.adapters.simulator.gpu import SimulatedGpus
from bombyx.adapters.simulator.provider import GATEWAY_IMAGE, NODE_IMAGE, SimulatedProvider
from bombyx.adapters.simulator.snp import SimulatedSnp
from bombyx.protocol.attest import (
    AppraisalPolicy,
    Archive,
    AtHand,
    TrustClass,
    TrustedRoot,
)
from bombyx.protocol.primitives import Instant, Secret

NOW = Instant.from_seconds(1_790_000_000)
NONCE = bytes(range(32))
SEED = b"a seed for fuzzing, no secret!!!"
PLATFORM = SimulatedPlatform.create(seed=SEED, now=NOW)
GPUS = SimulatedGpus(seed=Secret(SEED), created=NOW)
PROVIDER = SimulatedProvider(platform=PLATFORM, gpus=GPUS)
CHIP = SimulatedSnp(seed=Secret(SEED), created=NOW)
ENCLAVE = SimulatedEnclave(platform=PLATFORM)
ENDORSEMENTS = PLATFORM.endorsements(NOW)
POLICY = AppraisalPolicy(
    roots=(
        TrustedRoot(name="simulator", certificate=PLATFORM.root_certificate),
        TrustedRoot(name="chips", certificate=CHIP.root_certificate, minimum_tcb=(("snp", 20),)),
    ),
    trust_classes=frozenset({TrustClass.SIMULATED}),
    reference_values=tuple(image.reference_value() for image in (NODE_IMAGE, GATEWAY_IMAGE, WORKER_IMAGE)),
    gpu_roots=(GPUS.root.root,),
    token_roots=(GPUS.service.root,),
)
AT_HAND = AtHand(
    endorsements=(ENDORSEMENTS, CHIP.endorsements(NOW)),
    tokens=(GPUS.tokens(NONCE, NOW),),
    jwks=GPUS.jwks(),
    nonce=NONCE,
)
ARCHIVE = Archive(
    report=orjson.dumps(PROVIDER.phala(NONCE)),
    captured=NOW,
    nonce=NONCE,
    endorsements=(ENDORSEMENTS,),
    jwks=GPUS.jwks(),
)
XML = b'<a xmlns="u" xmlns:p="v" p:x="1" y="2"><p:b>t &amp; u</p:b><!-- c --><c/></a>'
