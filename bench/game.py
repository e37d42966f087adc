# SPDX-License-Identifier: Apache-2.0
"""Who earns most? Honest, lazy, colluding, copying and cheating seats over a simulated year, by the contracts' rules.

    python bench/game.py --quick             # one year, few seeds
    python bench/game.py                     # and the sweeps
    python bench/game.py --plots docs/images # and their pictures (matplotlib, in an environment of its own)

The rules of money come from `StakeTerms` (what is deployed) and the slasher; how well an audit sees comes from
bench/verification.py. Traffic and prices are made up, and stand in `_seats.World`. What the simulation cannot say:
how many cheaters there will be. Where there are none, nobody pays a validator for looking, and a row says so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Final

from _machine import Goal, report
from _seats import FIRST_OFFENCE, Juror, Worker, World, incomes, with_stake

from bombyx.protocol.audit.rate import rate

ROOT: Final = Path(__file__).resolve().parent.parent
ENVIRONMENT: Final = ROOT / ".venv" / "bench-plots"
WORKERS: Final = Counter({Worker.HONEST: 12, Worker.ALWAYS: 2, Worker.FIFTH: 2, Worker.TWENTIETH: 2, Worker.RUNAWAY: 2})
VALIDATORS: Final = Counter({Juror.HONEST: 9, Juror.LAZY: 2, Juror.PRIOR: 1, Juror.COPY: 1})
RATES: Final = (0.001, 0.003, 0.01, 0.03, 0.1)
COLLUDERS: Final = (0, 2, 4, 6, 8, 10)  # of 13 validators
CHEATERS: Final = (0, 1, 2, 4, 8)  # of 20 workers
Points = list[tuple[float, float]]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="no sweeps")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--plots", type=Path, help="folder for the pictures")
    return parser.parse_args()


def by_rate(world: World, seeds: int) -> dict[str, Points]:
    """What each way to cheat earns more than honesty, in dollars a year, by the share audited."""
    found: dict[str, Points] = {}
    for share in RATES:
        earned = incomes(replace(world, rate=share), seeds=seeds, workers=WORKERS, validators=VALIDATORS)
        for kind in (Worker.ALWAYS, Worker.FIFTH, Worker.TWENTIETH):
            extra = earned[f"worker: {kind}"] - earned["worker: honest"]
            found.setdefault(str(kind), []).append((share, extra))
    return found


def by_stake(world: World, seeds: int) -> dict[str, Points]:
    """The same by the stake, at the default rate."""
    found: dict[str, Points] = {}
    for dollars in (50.0, 200.0, 1_000.0, 5_000.0):
        earned = incomes(with_stake(world, dollars), seeds=seeds, workers=WORKERS, validators=VALIDATORS)
        for kind in (Worker.ALWAYS, Worker.FIFTH, Worker.TWENTIETH):
            extra = earned[f"worker: {kind}"] - earned["worker: honest"]
            found.setdefault(str(kind), []).append((dollars, extra))
    return found


def by_colluders(world: World, seeds: int) -> dict[str, Points]:
    """A cheat with friends among the validators: its extra income, and what the friends and the others earn."""
    found: dict[str, Points] = {}
    for count in COLLUDERS:
        validators = Counter({Juror.HONEST: 13 - count, Juror.COLLUDES: count})
        earned = incomes(
            world, seeds=seeds, workers=Counter({Worker.HONEST: 18, Worker.ALWAYS: 2}), validators=validators
        )
        share = count / 13
        extra = earned["worker: cheats always"] - earned["worker: honest"]
        found.setdefault("cheating worker, more than an honest one", []).append((share, extra))
        for kind in (Juror.HONEST, Juror.COLLUDES):
            if f"validator: {kind}" in earned:
                found.setdefault(f"validator: {kind}", []).append((share, earned[f"validator: {kind}"]))
    return found


def by_cheaters(world: World, seeds: int) -> dict[str, Points]:
    """Validators' incomes by how many workers cheat."""
    found: dict[str, Points] = {}
    for count in CHEATERS:
        workers = Counter({Worker.HONEST: 20 - count, Worker.ALWAYS: count})
        earned = incomes(world, seeds=seeds, workers=workers, validators=VALIDATORS)
        for kind in VALIDATORS:
            found.setdefault(f"validator: {kind}", []).append((count / 20, earned[f"validator: {kind}"]))
    return found


def rows_of(title: str, unit: str, series: dict[str, Points]) -> list[dict[str, object]]:
    return [
        {"what": f"{title}: {name}", unit: "  ".join(f"{at:.3g}: {value:,.0f}" for at, value in points)}
        for name, points in series.items()
    ]


def goals_of(earned: dict[str, float], empty: dict[str, float], world: World) -> list[Goal]:
    goals = [
        Goal(
            f"dollars a year, {name}, less an honest seat's",
            earned[name] - earned[f"{name.split(':')[0]}: honest"],
            "<",
            0,
        )
        for name in earned
        if ":" in name and not name.endswith(": honest")
    ]
    needed = rate(
        world.honest_cost - world.cheat_cost, 0.0, detection=world.caught, fee=world.fee,
        stake=world.stake * FIRST_OFFENCE / world.terms.strikes, floor=0.0,
    )  # fmt: skip
    return [
        *goals,
        Goal("honest workers convicted in a year", earned["honest workers convicted"], "<=", 0),
        Goal("default audit rate / rate that one answer's gain asks for", world.rate / needed, ">=", 1),
        Goal("honest validator where nobody cheats, dollars a year", empty["validator: honest"], ">=", 0),
    ]


def draw(series: dict[str, dict[str, Points]], folder: Path) -> None:
    """Pictures, by `_plots.py` in an environment that has matplotlib."""
    python, done = ENVIRONMENT / "bin" / "python", ENVIRONMENT / ".complete"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True, capture_output=True)
        install = [str(python), "-m", "pip", "install", "-q", "matplotlib"]
        subprocess.run(install, check=True, capture_output=True, timeout=600)
        done.touch()
    script = str(ROOT / "bench" / "_plots.py")
    subprocess.run([str(python), script, str(folder)], input=json.dumps(series), text=True, check=True)


def main() -> None:
    chosen, world = options(), World()
    seeds = 1 if chosen.quick else 4
    earned = incomes(world, seeds=seeds, workers=WORKERS, validators=VALIDATORS)
    empty = incomes(world, seeds=1, workers=Counter({Worker.HONEST: 20}), validators=VALIDATORS)
    rows: list[dict[str, object]] = [
        {"what": name, "dollars a year": round(value, 1)} for name, value in earned.items() if ":" in name
    ]
    series: dict[str, dict[str, Points]] = {}
    if not chosen.quick:
        short = replace(world, days=180)
        series = {
            "rate": by_rate(short, 1),
            "stake": by_stake(short, 1),
            "colluders": by_colluders(short, 1),
            "cheaters": by_cheaters(short, 1),
        }
        rows += rows_of("half a year, more than honesty, by share audited", "sweep", series["rate"])
        rows += rows_of("half a year, more than honesty, by stake in dollars", "sweep", series["stake"])
        rows += rows_of("half a year, by share of colluding validators", "sweep", series["colluders"])
        rows += rows_of("half a year, by share of cheating workers", "sweep", series["cheaters"])
    report("game", rows, goals_of(earned, empty, world), as_json=chosen.json)
    if chosen.plots and not chosen.quick:
        draw(series, chosen.plots)


if __name__ == "__main__":
    main()
