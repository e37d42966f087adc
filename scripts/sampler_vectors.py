# SPDX-License-Identifier: Apache-2.0
"""Write tests/vectors/sampler.json: what every implementation of `gumbel-splitmix64-v1` must give (spec AUD-2, AUD-4).

The cases' logits come from the noise itself, so that nothing but the sampler is needed to make them again.

    python scripts/sampler_vectors.py           # write
    python scripts/sampler_vectors.py --check   # compare
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bombyx.protocol.audit.prf import gumbel, uniform
from bombyx.protocol.audit.sampler import choose, nucleus, penalise
from bombyx.protocol.audit.seed import application_root, choice_seed, joint_root
from bombyx.protocol.primitives import Address, Digest
from bombyx.protocol.wire.audit import ALGORITHM, MILLION, SamplerBlock, SeedSource

PLACE = Path(__file__).parent.parent / "tests" / "vectors" / "sampler.json"
SETTINGS = (  # temperature, top_p, top_k, presence, frequency; in millionths but for top_k
    (700_000, 950_000, 50, 0, 0),
    (700_000, 1_000_000, 64, 0, 0),
    (1_000_000, 500_000, 64, 0, 0),
    (2_000_000, 950_000, 3, 0, 0),
    (100_000, 990_000, 1, 0, 0),
    (700_000, 950_000, 50, 1_500_000, 0),
    (700_000, 950_000, 50, 200_000, 700_000),
    (0, 950_000, 50, 0, 0),
    (0, 1_000_000, 64, 2_000_000, 2_000_000),
)


def vectors() -> dict[str, Any]:
    return {"algorithm": ALGORITHM, "noise": _noise(), "seeds": _seeds(), "choices": _choices()}


def _noise() -> list[dict[str, Any]]:
    cases = [(42, 0, 0), (42, 0, 1), (42, 0, 49_151), (42, 7, 5), (42, 7, 6), (0, 0, 0), (2**64 - 1, 2**31, 2**18)]
    return [
        {"seed": str(s), "position": p, "token": t, "uniform": uniform(s, p, t), "gumbel": gumbel(s, p, t)}
        for s, p, t in cases
    ]


def _seeds() -> list[dict[str, Any]]:
    request, nonce, operator = Digest(bytes(range(32))), bytes(range(32, 64)), Address(bytes(range(20)))
    roots = {"joint": joint_root(request, nonce, operator), "application 1234": application_root(1234)}
    roots["application -1"] = application_root(-1)
    return [
        {"of": name, "root": root.hex(), "choices": [str(choice_seed(root, choice)) for choice in range(3)]}
        for name, root in roots.items()
    ]


def _choices() -> list[dict[str, Any]]:
    cases = []
    for number, (temperature, top_p, top_k, presence, frequency) in enumerate(SETTINGS):
        sampler = SamplerBlock(
            algorithm=ALGORITHM,
            temperature_e6=temperature,
            top_p_e6=top_p,
            top_k=top_k,
            presence_e6=presence,
            frequency_e6=frequency,
            max_output=100,
            seed_source=SeedSource.JOINT if temperature else SeedSource.GREEDY,
            stop=(),
        )
        # Eighths are exact in binary, and many tokens share one: ties are part of the test.
        logits = [(token, round(8 * 0.75 * gumbel(number, 0, token)) / 8) for token in range(70)]
        counts = {logits[place][0]: place % 3 + 1 for place in range(0, 70, 7)}
        seed = 1_000_003 * number + 17
        ordered = penalise(logits, counts, sampler)
        kept = nucleus(ordered, temperature=temperature / MILLION, top_k=top_k, top_p=top_p / MILLION)
        cases.append(
            {
                "temperature_e6": temperature,
                "top_p_e6": top_p,
                "top_k": top_k,
                "presence_e6": presence,
                "frequency_e6": frequency,
                "seed": str(seed),
                "logits": [[token, logit] for token, logit in logits],
                "counts": [[token, count] for token, count in sorted(counts.items())],
                "kept": [token for token, _ in kept],
                "chosen": [
                    choose(logits, sampler, seed=seed, position=position, counts=counts) for position in range(16)
                ],
            }
        )
    return cases


def _text(found: dict[str, Any]) -> str:
    """JSON, one case a line."""
    parts = []
    for name, cases in found.items():
        listed = cases if isinstance(cases, str) else [json.dumps(case) for case in cases]
        shown = json.dumps(cases) if isinstance(listed, str) else "[\n" + ",\n".join(listed) + "\n]"
        parts.append(f"{json.dumps(name)}: {shown}")
    return "{" + ",\n".join(parts) + "}\n"


def main() -> int:
    text = _text(vectors())
    if "--check" in sys.argv:
        return int(PLACE.read_text(encoding="utf-8") != text)
    PLACE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
