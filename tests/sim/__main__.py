"""Attack the promises: `python -m tests.sim --seeds 1000 --jobs 2`. The last line is a summary; exit code 1 on a failure.

A failing seed is shrunk to the faults that it needs and printed with the command that replays it and its trace.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.sim.runs import Failure, Tally, attempt, readable, run_many
from tests.sim.scenario import Scenario, draw
from tests.sim.shrink import shrink

TRACE_LINES = 60


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.seed is not None:
        kept = None if options.keep is None else {int(number) for number in options.keep.split(",") if number}
        return replay(options.seed, kept, whole=options.trace)
    return search(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__.split("\n")[0])
    many = parser.add_argument_group("run many seeds")
    many.add_argument("--seeds", type=int, default=1000, help="how many (default 1000)")
    many.add_argument("--start", type=int, default=0, help="the first one (default 0)")
    many.add_argument("--minutes", type=float, default=60.0, help="begin no new ones after this time (default 60)")
    many.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    many.add_argument("--failures", type=int, default=3, help="stop after so many (default 3)")
    one = parser.add_argument_group("replay one seed")
    one.add_argument("--seed", type=int, help="the seed")
    one.add_argument("--keep", help="only these faults of it, as numbers with commas (an empty text: none)")
    one.add_argument("--trace", action="store_true", help="print the whole trace, also of a run that passes")
    return parser


def search(options: argparse.Namespace) -> int:
    """Run many seeds; shrink and print what fails."""
    started, said, told, tally = time.monotonic(), time.monotonic(), 0, Tally()
    for tally in run_many(
        options.start, options.seeds, minutes=options.minutes, jobs=options.jobs, stop_after=options.failures
    ):
        for failure in tally.failures[told:]:
            print(f"FAILED: {failure.problem}\nreplay: {command(failure.scenario)}", flush=True)
        told = len(tally.failures)
        if time.monotonic() - said > 10.0:
            said = time.monotonic()
            print(_summary(tally, options.start, said - started), flush=True)
    for failure in tally.failures:
        scenario = failure.scenario
        tell(shrink(failure, lambda kept, scenario=scenario: attempt(scenario.keeping(kept))[0]))  # type: ignore[misc]
    print(_summary(tally, options.start, time.monotonic() - started))
    return 1 if tally.failures else 0


def _summary(tally: Tally, start: int, seconds: float) -> str:
    return (
        f"sim: {tally.runs} seeds from {start}, {len(tally.failures)} failed, "
        f"{tally.simulated_s / 3600:.2f} simulated hours, "
        f"{tally.events} events, {tally.seals} seals, {tally.restores} restores, {seconds:.0f} s"
    )


def command(scenario: Scenario) -> str:
    """The command that replays a scenario."""
    kept = ",".join(str(fault.number) for fault in scenario.faults)
    keep = "" if len(scenario.faults) == len(draw(scenario.seed).faults) else f" --keep {kept or chr(39) * 2}"
    return f"python -m tests.sim --seed {scenario.seed}{keep}"


def tell(failure: Failure, lines: int | None = TRACE_LINES) -> None:
    """Print a failure with its command and the end of its trace."""
    _, chaos = attempt(failure.scenario)
    trace = readable(chaos.world.trace, lines)
    print(f"\n{failure.scenario}\n{trace}\n{failure.problem}\nreplay: {command(failure.scenario)}\n")


def replay(seed: int, kept: set[int] | None, *, whole: bool) -> int:
    """Run one seed (with some of its faults only) and print what happened."""
    scenario = draw(seed) if kept is None else draw(seed).keeping(kept)
    failure, chaos = attempt(scenario)
    if failure:
        tell(failure, None if whole else TRACE_LINES)
        return 1
    if whole:
        print(readable(chaos.world.trace))
    world = chaos.world
    held = f"{len(scenario.faults)} faults, {world.now:.1f} simulated s, {world.events} events: all promises held"
    print(f"{scenario}\n{held}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
