# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for what vLLM hands a logits processor: its BatchUpdate, and the parts of a torch tensor that are used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


class Tensor:
    """The four things of torch.Tensor that are used."""

    def __init__(self, data: Any) -> None:
        self.data = data

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    def __getitem__(self, key: Any) -> Tensor:
        return Tensor(self.data[key])

    def __setitem__(self, key: Any, value: float) -> None:
        self.data[key] = value

    def topk(self, count: int) -> tuple[Tensor, Tensor]:
        order = np.argsort(-self.data, axis=-1)[..., :count]
        return Tensor(np.take_along_axis(self.data, order, -1)), Tensor(order)

    def tolist(self) -> Any:
        return self.data.tolist()


@dataclass
class Batch:
    """vLLM's BatchUpdate."""

    batch_size: int = 0
    removed: list[int] = field(default_factory=list)
    added: list[Any] = field(default_factory=list)
    moved: list[Any] = field(default_factory=list)
