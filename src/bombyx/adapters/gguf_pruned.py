# SPDX-License-Identifier: Apache-2.0
"""A copy of a GGUF file in which some layers do nothing: a cheaper model under a better one's name, for demonstrations.

The file keeps its size, its tokenizer and its template; zeros take the place of what chosen blocks would add to the
residual stream. Nothing but a prefill of the real weights tells the two apart.
"""

from __future__ import annotations

import mmap
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bombyx.adapters.gguf import tensor_places
from bombyx.errors import ConfigError

OUTPUTS: Final = ("attn_output.weight", "ffn_down.weight")  # all that a block adds goes through these two


def prune(source: Path, target: Path, blocks: Sequence[int]) -> None:
    """Write `source` to `target` without the work of `blocks`. Raises `ConfigError` for blocks it does not have."""
    shutil.copyfile(source, target)
    with target.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        places = tensor_places(data)
        for block in blocks:
            for name in OUTPUTS:
                place = places.get(f"blk.{block}.{name}")
                if place is None:
                    raise ConfigError(f"{source.name} has no block {block}")
                data[place[0] : place[1]] = bytes(place[1] - place[0])
