"""Stop real daemons before every primitive step: `python -m tests.crash`. It ends with a summary; exit code 1 on a failure.

Each scene is played once to learn the victim's steps; each step is then a cut, for each signal. After a cut the job is
restarted and must get the old or the new version, whole; storage must offer whole steps only; and a further version must
be sealed and persisted.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter

from tests.crash.scenes import SCENES, Cut, Outcome, Stage, close_to

SIGNALS = ("SIGKILL", "SIGTERM", "SIGSTOP")


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    stage = Stage(options.seed)
    with stage.open():
        cuts = [parse(options.cut)] if options.cut else enumerate_cuts(stage, options.scene, options.signal)
        steps = len({(cut.scene, cut.victim, cut.name, cut.occurrence) for cut in cuts})
        if options.sample:
            cuts = random.Random(options.seed).sample(cuts, min(options.sample, len(cuts)))
        outcomes = play(stage, cuts, minutes=options.minutes, seed=options.seed)
    states = Counter(outcome.state for outcome in outcomes if outcome.state)
    failures = sum(bool(outcome.problem) for outcome in outcomes)
    reached = sum(outcome.reached for outcome in outcomes)
    print(
        f"crash: {steps} steps, {len(outcomes)} cuts, {reached} reached, "
        f"restored {states['old']} old and {states['new']} new, {failures} failed"
    )
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__.split(":")[0])
    parser.add_argument("--scene", choices=SCENES, help="this scene only")
    parser.add_argument("--signal", choices=SIGNALS, help="this signal only")
    parser.add_argument("--sample", type=int, default=0, help="only so many cuts, drawn by the seed")
    parser.add_argument("--seed", type=int, default=0, help="draws the sample and the second faults (default 0)")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no new cut after this time (default 60)")
    parser.add_argument("--cut", help="replay one cut, as printed: scene:victim:step:occurrence:signal")
    return parser


def enumerate_cuts(stage: Stage, scene: str | None, signal: str | None) -> list[Cut]:
    """Every step of every scene (the first few of the heartbeats), for the collector and for another node."""
    cuts = []
    for name in [scene] if scene else SCENES:
        for victim in (0, 1):
            steps = [step for step in stage.steps_of(name, victim) if close_to(step)]
            cuts += [Cut(name, victim, *step, way) for step in steps for way in ([signal] if signal else SIGNALS)]
    return cuts


def parse(text: str) -> Cut:
    scene, victim, *name, occurrence, signal = text.split(":")
    if scene not in SCENES or signal not in SIGNALS:
        raise SystemExit(f"--cut {text!r}: expected scene:victim:step:occurrence:signal with {', '.join(SCENES)}")
    return Cut(scene, int(victim), ":".join(name), int(occurrence), signal)


def play(stage: Stage, cuts: list[Cut], *, minutes: float, seed: int) -> list[Outcome]:
    """Run the cuts one after another on the same cluster; stop at the first failure, after which nothing is sure."""
    outcomes: list[Outcome] = []
    started = said = time.monotonic()
    for cut in cuts:
        if time.monotonic() - started > minutes * 60:
            break
        outcome = stage.run(cut)
        outcomes.append(outcome)
        if outcome.problem:
            print(f"FAILED {cut}: {outcome.problem}\nreplay: python -m tests.crash --seed {seed} --cut '{cut}'")
            break
        if time.monotonic() - said > 10.0:
            said = time.monotonic()
            print(f"{len(outcomes)} of {len(cuts)} cuts, {said - started:.0f} s", flush=True)
    return outcomes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
