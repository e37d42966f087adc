# SPDX-License-Identifier: Apache-2.0
"""Draws what bench/game.py found. Run by it: series as JSON on standard input, the folder as the one argument."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

PAGES: Final = {
    "rate": ("share of answers audited", "cheating, more than honesty: dollars in half a year", "log"),
    "stake": ("stake, dollars", "cheating, more than honesty: dollars in half a year", "log"),
    "colluders": ("share of validators that collude", "dollars in half a year", "linear"),
    "cheaters": ("share of workers that cheat", "validator's income: dollars in half a year", "linear"),
}


def main() -> None:
    import matplotlib as mpl  # type: ignore[import-not-found,unused-ignore]

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # type: ignore[import-not-found,unused-ignore]

    folder, series = Path(sys.argv[1]), json.load(sys.stdin)
    folder.mkdir(parents=True, exist_ok=True)
    for name, (across, up, scale) in PAGES.items():
        draw(plt, series[name], across, up, scale, folder / f"incentives-{name}.png")


def draw(plt: Any, lines: dict[str, list[list[float]]], across: str, up: str, scale: str, file: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), dpi=110)
    for label, points in lines.items():
        axes.plot([at for at, _ in points], [value for _, value in points], marker="o", label=label)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xscale(scale)
    axes.set_xlabel(across)
    axes.set_ylabel(up, fontsize=8)
    axes.legend(fontsize=8)
    axes.grid(visible=True, alpha=0.3)
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)


if __name__ == "__main__":
    main()
