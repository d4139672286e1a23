"""Judge the judge: `python -m tests.watch --seeds 1000 --ranks 8..2048`. The last line is a summary; exit code 1 below
the bar.

A seed that goes wrong is printed with the command that replays it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tests.watch.campaign import Outcome, Tally, attempt, judge_seed, table
from tests.watch.faults import Ill, named
from tests.watch.month import watch_day
from tests.watch.scenario import draw

RECALL_MIN, ACCURACY_MIN, PRECISION_MIN = 0.99, 0.95, 0.99
SHOWN = 20


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    low, high = (int(word) for word in options.ranks.split(".."))
    if options.seed is not None:
        return replay(options.seed, (low, high))
    if options.days:
        return month(range(options.start, options.start + options.days), options.period, options.jobs)
    return search(options, (low, high))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.watch", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--start", type=int, default=0, help="the first one (default 0)")
    parser.add_argument("--ranks", default="8..2048", help="sizes of jobs (default 8..2048)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument(
        "--ill",
        action="append",
        default=[],
        choices=[ill.value for ill in Ill],
        help="only seeds with one of these faults",
    )
    parser.add_argument("--seed", type=int, help="replay this one only")
    parser.add_argument(
        "--days", type=int, default=0, help="instead: so many healthy days of 1,024 ranks, from --start on"
    )
    parser.add_argument(
        "--period", type=float, default=1.0, help="of those: how often the judge looks, in s (default 1)"
    )
    return parser


def search(options: argparse.Namespace, ranks: tuple[int, int]) -> int:
    """Judge many seeds and print the score."""
    started, tally = time.monotonic(), Tally()
    seeds: Sequence[int] = range(options.start, options.start + options.seeds)
    if options.ill:
        ills = {Ill(name) for name in options.ill}
        seeds = [seed for seed in seeds if any(fault.ill in ills for fault in draw(seed, ranks).ills)]
    if options.jobs == 1:
        for seed in seeds:
            tally.add(judge_seed(seed, ranks))
    else:
        with ProcessPoolExecutor(
            options.jobs, mp_context=get_context("spawn"), initializer=os.nice, initargs=(5,)
        ) as pool:
            for outcome in pool.map(judge_seed, seeds, [ranks] * len(seeds), chunksize=8):
                tally.add(outcome)
    for seed, said in tally.made_up[:SHOWN]:
        print(f"MADE UP at {said.at_s:.0f} s: {said.verdict.reason}\nreplay: {command(seed, options.ranks)}")
    for seed, fault, found in tally.missed[:SHOWN]:
        what = f"named {sorted(named(found.verdict))[:8]}: {found.verdict.reason}" if found else "not found"
        print(
            f"MISSED {fault.ill.value} of {sorted(fault.suspects)[:8]}: {what}\nreplay: {command(seed, options.ranks)}"
        )
    print("\n".join(["", *table(tally.classes), "", *table(tally.syndromes), ""]))
    total = tally.total()
    print(
        f"watch: {tally.runs} seeds from {options.start}, {tally.healthy} of them healthy, {total.faults} faults, "
        f"precision {tally.precision:.4f}, recall {tally.recall:.4f}, culprit accuracy {tally.accuracy:.4f}, "
        f"{tally.restarts} false restarts, "
        f"{tally.simulated_s / 3600:.1f} simulated hours, {time.monotonic() - started:.0f} s"
    )
    good = tally.recall >= RECALL_MIN and tally.accuracy >= ACCURACY_MIN and tally.precision >= PRECISION_MIN
    return 0 if good and not tally.restarts else 1


def month(seeds: range, period_s: float, jobs: int) -> int:
    """Watch healthy days of a job of 1,024 ranks; exit code 1 when one of them would have been restarted."""
    started, restarts, said, seconds = time.monotonic(), 0, 0, 0.0
    for day in _days(seeds, period_s, jobs):
        restarts, said, seconds = restarts + len(day.acts), said + len(day.said), seconds + day.seconds
        kinds = Counter(verdict.verdict.syndrome.value for verdict in day.said)
        for act in day.acts[:SHOWN]:
            print(f"day {day.scenario.seed}: FALSE RESTART: {act.reason}")
        print(
            f"day {day.scenario.seed}: {dict(kinds)}, {len(day.acts)} false restarts, {time.monotonic() - started:.0f} s",
            flush=True,
        )
    print(
        f"watch: {len(seeds)} days from {seeds.start}, {seconds / 86400:.2f} simulated days of 1024 ranks, "
        f"judged every {period_s:g} s, {said} verdicts, "
        f"{restarts} false restarts, {time.monotonic() - started:.0f} s"
    )
    return 1 if restarts else 0


def _days(seeds: range, period_s: float, jobs: int) -> Iterator[Outcome]:
    """Each day as soon as it and those before it are over."""
    if jobs == 1:
        yield from (watch_day(seed, period_s) for seed in seeds)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=os.nice, initargs=(10,)) as pool:
        yield from pool.map(watch_day, seeds, [period_s] * len(seeds))


def command(seed: int, ranks: str) -> str:
    """The command that replays a seed."""
    return f"python -m tests.watch --seed {seed} --ranks {ranks}"


def replay(seed: int, ranks: tuple[int, int]) -> int:
    """Judge one seed and print what was done and what was said."""
    scenario = draw(seed, ranks)
    outcome = attempt(scenario)
    print(f"{scenario.job}\n{scenario.calm}")
    for fault in outcome.faults:
        print(
            f"{fault.ill.value} of {sorted(fault.suspects)[:8]} from {fault.at_s:.1f} s, struck at {fault.struck_s:.1f} s"
        )
    for said in outcome.said:
        print(f"{said.at_s:6.0f} s  {said.verdict.syndrome.value}: {said.verdict.reason}")
    missed = [fault for fault in outcome.struck if not (told := outcome.found(fault)) or not outcome.names(told, fault)]
    wrong = bool(outcome.made_up or missed)
    print(f"{outcome.seconds:.0f} simulated s: {'wrong' if wrong else 'right'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
