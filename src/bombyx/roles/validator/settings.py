# SPDX-License-Identifier: Apache-2.0
"""What a validator is told at its start. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from bombyx.protocol.audit.rate import FLOOR
from bombyx.protocol.primitives import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidatorSettings:
    """Everything a validator needs to know besides its ports and keys."""

    canaries: int = 4  # per worker, model and epoch
    canaries_new: int = 8  # of a worker with few judged answers; twice as many under suspicion
    most_canaries: int = 64  # per worker, model and epoch, however much it serves
    audited: float = FLOOR  # share of a worker's answers that all validators together ask for again, as canaries
    known_after: int = 16  # judged answers after which a worker is no longer new
    most_tokens: int = 256  # of a canary's answer, at most
    k: int = 3  # candidates of a canary that is not for one worker alone
    single_bps: int = 5_000  # share of canaries for one worker alone, in 1/10 000
    at_once: int = 2  # canaries under way
    judged_at_once: int = 1  # answers re-run side by side; each takes a core
    reserve: float = 0.15  # of an epoch at its end in which nothing is asked any more
    watch_seconds: float = 2.0  # between looks at the chain's cases
    plants: int = 0  # accusations of the innocent, in 1 000 epochs, shown afterwards; each costs its bond
    decoy: Address | None = None  # a worker of ours that answers wrongly; convicted, it is shown to be a sample
    figures: bool = False  # tell everybody what we found of each worker: also jurors who would rather not look
    appeal: bool = True  # acquittals of whom we accused, if the evidence still says guilty when it is re-run
    accuse: bool = True  # open cases, or only watch and sit on juries
    max_opt_in: int = 1 << 20  # bytes of one package a client hands over
    opt_ins_kept: int = 256  # handed over and not yet judged
    share: float = 1.0  # of opted-in answers that are judged; more of new and suspected workers
