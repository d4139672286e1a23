"""Real faults of four gloo ranks beside four real daemons: what ckptd says, beside the truth, and how soon.

    python -m benchmarks.verdicts [--faults hang,slow-link] [--rounds 3] [--report FILE.json]

Each trial is the first half of a `ckptd demo --fault ...`: a job of its own, launched by `ckptd run`, that trains until the
fault strikes, and is ended some seconds after the verdict. `none` is a job that nothing happens to. Nobody but the daemons
notices anything; their incident records are held against what was injected. Links are bad by what the kernel gives
everybody (`ckptd.daemon.demo.wires`), for trainers and daemons alike; no root and no netem are needed.
Bounds: those of BOUNDS; exit code 1 when one is not kept, a fault is missed or somebody innocent is blamed.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from benchmarks.report import add_report, machine, measured, write
from ckptd.daemon.demo.judged import CLASSES, NOBODY, Injected, Judged, judged, records, summed
from ckptd.daemon.demo.options import DemoOptions, training_for
from ckptd.daemon.demo.run import (
    follow_incidents,
    follow_trainers,
    injected,
    open_stage,
    start_nodes,
    strike,
    workspace,
)
from ckptd.daemon.demo.stage import DemoFailed, Stage
from ckptd.daemon.incidents_command import suspects

NODES = 4
STRUCK_AT = 24
"""The step of the fault: the links have been measured, and the first steps of a life are never slow."""
VERDICT_S = 60.0
"""How long a verdict is waited for, and a healthy job is watched."""
SETTLE_S = 3.0
"""How long a job goes on after its verdict: what is said next counts, too."""
NONE = "none"
HANG_S = 15.0
BOUNDS = {"kill-rank": 1.0, "kill-node": 5.0, **dict.fromkeys(("hang", "gil", "loader", "stop", "cut-link"), HANG_S)}
"""Seconds from the fault to the verdict, at most."""
STEPS_MAX = {"slow-rank": 20}
"""Steps, at most."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One fault, or one healthy job."""

    fault: str
    seconds: float | None = None
    """From the fault to the first verdict that is not about nobody; None: there was none."""
    steps: int = 0
    """Steps that rank 0 finished meanwhile."""
    said: str = ""
    found: bool = False
    """Whether the class is right."""
    right: bool = False
    """Whether the culprits are, too."""
    made_up: tuple[str, ...] = ()
    """Verdicts on the innocent, of all that was said."""
    failed: str = ""
    """Why the trial came to nothing, if it did: it counts as missed."""


def attempt(fault: str, seed: int) -> Trial:
    """Train, strike, and wait for the verdict."""
    model, pace_s = training_for(fault)
    options = DemoOptions(
        nodes=NODES, fault="hang" if fault == NONE else fault, steps=100_000, at_step=STRUCK_AT, seed=seed, model=model,
        pace_s=pace_s, timeout_s=180.0, persist_every=1000,
    )  # fmt: skip
    told = io.StringIO()
    with workspace(options) as layout:
        stage = open_stage(options, layout, Console(file=told, width=200))
        try:
            return _attempt(fault, options, stage)
        except DemoFailed as error:
            stage.show_logs()
            print(told.getvalue(), file=sys.stderr)
            return Trial(fault, failed=str(error))
        finally:
            stage.cluster.stop()


def _attempt(fault: str, options: DemoOptions, stage: Stage) -> Trial:
    stage.begin_run("faulty", options.timeout_s, options.steps)
    follow_trainers(stage, "faulty")
    follow_incidents(stage, range(NODES), "node")
    start_nodes(stage, range(NODES))
    stage.until(f"step {STRUCK_AT}", lambda: stage.progress.step >= STRUCK_AT)
    if fault == NONE:
        _pause(stage, VERDICT_S)
        return Trial(fault, made_up=_made_up(Injected(NONE, (), ()), stage, time.time()))
    truth = injected(options)
    assert truth is not None
    t_fault = strike(options, stage)
    end = time.monotonic() + VERDICT_S

    def found() -> Judged:
        return judged(truth, stage.watch.events, t_fault)

    stage.until("a verdict", lambda: found().verdict is not None or time.monotonic() > end)
    _pause(stage, SETTLE_S)
    last = found()
    seconds = last.since(t_fault).get("t_detected")
    steps = [e for e in stage.watch.events if e.name == "step" and e.told_by == "trainer" and e.fields["rank"] == 0]
    verdict = last.verdict or {"class": "", "reason": "nothing"}
    return Trial(
        fault,
        seconds,
        sum(t_fault <= step.t <= t_fault + (seconds or 0.0) for step in steps),
        f"{verdict['class']}, {suspects(verdict)}: {verdict['reason']}" if last.verdict else "nothing",
        verdict["class"] == CLASSES[fault],
        last.right,
        _made_up(truth, stage, t_fault),
    )


def _pause(stage: Stage, seconds: float) -> None:
    """Let the job go on, also if it is one that has lost a process of its launcher's by now."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        stage.poll()
        time.sleep(0.05)


def _made_up(truth: Injected, stage: Stage, t_fault: float) -> tuple[str, ...]:
    """What was said that is not true. A cut link may be called slow before the job stands; and the job may stand for a while
    where a lossy one loses the same again and again."""
    wrong = []
    for told_by, entries in records(stage.watch.events).items():
        said = Judged(truth, summed(told_by, entries))
        verdict = said.verdict
        if verdict is None or verdict["class"] == NOBODY:
            continue
        links = {frozenset(link) for link in verdict["suspects"]["links"]}
        of_the_link = bool(truth.link) and links == {frozenset(truth.link)}
        if entries[0]["t"] < t_fault or not ((truth.fault != NONE and said.right) or of_the_link):
            wrong.append(f"{verdict['class']}, {suspects(verdict)}: {verdict['reason']}")
    return tuple(wrong)


def score(fault: str, trials: Sequence[Trial]) -> dict[str, Any]:
    """What came of one kind of fault."""
    found = [trial for trial in trials if trial.found]
    result: dict[str, Any] = {
        "fault": fault,
        "class": CLASSES.get(fault, NONE),
        "trials": len(trials),
        "found": len(found),
        "right": sum(trial.right for trial in found),
        "made_up": sum(len(trial.made_up) for trial in trials),
    }
    times = [trial.seconds for trial in found if trial.seconds is not None]
    if times:
        result |= measured("seconds", times) | {"steps": statistics.median(trial.steps for trial in found)}
    result["kept"] = not result["made_up"] and (fault == NONE or result["right"] == len(trials))
    if times and max(times) > BOUNDS.get(fault, VERDICT_S):
        result["kept"] = False
    if fault in STEPS_MAX and any(trial.steps > STEPS_MAX[fault] for trial in found):
        result["kept"] = False
    return result


def totals(scores: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Precision: how many verdicts were true. Recall: how many faults were found. Accuracy: of those, with whom."""
    faults = [row for row in scores if row["fault"] != NONE]
    struck, found, right = (sum(row[name] for row in faults) for name in ("trials", "found", "right"))
    made_up = sum(row["made_up"] for row in scores)
    return {
        "precision": right / (right + made_up) if right + made_up else 1.0,
        "recall": found / struck if struck else 1.0,
        "accuracy": right / found if found else 1.0,
    }


def table(scores: Sequence[dict[str, Any]]) -> list[str]:
    """In Markdown, for people."""
    lines = [
        "| fault | class | trials | found | right culprit | made up | seconds to the verdict | steps |",
        "|" + "---|" * 8,
    ]
    for row in scores:
        seconds, steps = "-", "-"
        if "seconds" in row:
            low, high = row["seconds_spread"]
            seconds, steps = f"{row['seconds']:.1f} ({low:.1f} to {high:.1f})", f"{row['steps']:g}"
        shown = [row["fault"], row["class"], row["trials"], row["found"], row["right"], row["made_up"], seconds, steps]
        lines.append("| " + " | ".join(map(str, shown)) + " |")
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdicts", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    known = [NONE, *CLASSES]
    parser.add_argument("--faults", default=",".join(known), help="which, with commas (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="trials of each (default: %(default)s)")
    add_report(parser)
    options = parser.parse_args(argv)
    faults = options.faults.split(",")
    for fault in faults:
        if fault not in known:
            parser.error(f"--faults {fault}: expected some of {', '.join(known)}")
    trials: dict[str, list[Trial]] = {fault: [] for fault in faults}
    for turn in range(options.rounds):
        for fault in faults:
            trial = attempt(fault, seed=turn + 1)
            trials[fault].append(trial)
            took = f"{trial.seconds:.1f} s" if trial.seconds is not None else "-"
            print(f"{fault}: {took}: {trial.said or trial.failed} {' '.join(trial.made_up)}", flush=True)
    scores = [score(fault, made) for fault, made in trials.items()]
    total = totals(scores)
    print("\n".join(["", *table(scores), ""]))
    print(", ".join(f"{name} {value:.3f}" for name, value in total.items()), machine())
    content = {"nodes": NODES, "rounds": options.rounds, "scores": scores, **total}
    write(options.report, {**content, "trials": [asdict(trial) for made in trials.values() for trial in made]})
    return 0 if all(row["kept"] for row in scores) else 1


if __name__ == "__main__":
    sys.exit(main())
