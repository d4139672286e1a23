"""The story of a drill on a throw-away job: one uninterrupted run, then rounds of the same training with faults."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ckptd.ckpt.errors import UsageError
from ckptd.daemon.demo.linked import LinkedStage
from ckptd.daemon.demo.options import DemoOptions, Model
from ckptd.daemon.demo.report import Comparison, compare
from ckptd.daemon.demo.run import INTERRUPTED, follow_trainers, interruptible, start_nodes, uninterrupted, workspace
from ckptd.daemon.demo.stage import DemoFailed
from ckptd.daemon.demo.watch import Event
from ckptd.daemon.drill.faults import Campaign, Fault, draw, promise
from ckptd.daemon.drill.job import DrillJob, small_tmpfs
from ckptd.daemon.drill.judge import Outcome, first_step, judge, new_seal
from ckptd.daemon.drill.strikes import Strikes

PACE_S = 0.2
"""Seconds of a step: the faults should meet a job that trains, not one that has finished."""
STEPS_BEFORE, STEPS_AFTER = 10, 10
"""Steps before the first fault and after the last one's recovery."""
BETWEEN_S = 8.0
"""Seconds of training that a fault may take until the next one; a launcher's restart takes ten more, without training."""
PROTECTED_S = 90.0
"""How long the job may take to be protected again."""
DRAWN = 4
"""Faults of a round whose faults are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillOptions:
    """One drill on a throw-away job."""

    campaign: Campaign
    minutes: float = 0.0
    """Go on with rounds of random faults until so many minutes are over. 0: one round."""
    workdir: Path | None = None
    keep: bool = False
    report: Path | None = None
    segments_root: Path = Path("/dev/shm")  # noqa: S108  (the tmpfs that every Linux has)

    @property
    def demo(self) -> DemoOptions:
        """The job. Its length follows from the faults."""
        campaign = self.campaign
        faults = campaign.faults or draw(Random(campaign.seed), campaign.nodes, DRAWN)
        seconds = sum(BETWEEN_S + fault.seconds for fault in faults)
        if not campaign.faults:
            seconds = DRAWN * (BETWEEN_S + 5.0)  # the same for all rounds, whatever they draw
        steps = STEPS_BEFORE + STEPS_AFTER + round(seconds / PACE_S)
        return DemoOptions(
            nodes=campaign.nodes,
            parity=campaign.parity,
            kill_ranks=(0,),
            launcher="torchrun",  # `ckptd run` would start the daemons that are killed here
            steps=steps,
            seed=campaign.seed,
            workdir=self.workdir,
            keep=self.keep,
            segments_root=self.segments_root,
            timeout_s=120.0 + 3 * steps * PACE_S + PROTECTED_S * len(faults),
            model=Model(layers=2, width=64),
            pace_s=PACE_S,
        )


def run_drill(options: DrillOptions, console: Console) -> int:
    """Run the drill; return 0 when every promise was kept, 1 when not, 130 when interrupted.

    Whatever happens, no process and no shared memory of it is left. Raises UsageError when the work directory is bad.
    """
    if options.report and not options.report.absolute().parent.is_dir():
        raise UsageError(f"--report {options.report}: no such directory; make it first")
    demo = options.demo
    deadline = time.monotonic() + options.minutes * 60.0
    rounds: list[dict[str, Any]] = []
    reference: Sequence[Event] = ()
    with workspace(demo) as layout, small_tmpfs(layout.segments), interruptible():
        number = 0
        while not number or time.monotonic() < deadline:
            rng = Random(f"{options.campaign.seed}/{number}")
            faults = options.campaign.faults if not number else ()
            job = DrillJob(demo, layout)
            stage = LinkedStage(console, job)
            try:
                stage.cluster.start_store()
                reference = reference or uninterrupted(demo, stage)
                faults = faults or draw(rng, demo.nodes, DRAWN)
                rounds.append(perform_round(stage, job, reference, faults, rng))
                code = 0
            except DemoFailed as error:
                stage.say(f"failed: {error}", "bold red")
                stage.show_logs()
                rounds.append(
                    {"faults": [], "drawn": [str(fault) for fault in faults], "failed": str(error), "kept": False}
                )
                code = 1
            except KeyboardInterrupt:
                stage.say("interrupted: everything is being ended", "bold red")
                code = INTERRUPTED
            finally:
                job.stop()
            number += 1
            write_report(options, rounds)
            if code:
                return code
            clear(layout.workdir, layout.segments)
    kept = all(round_["kept"] for round_ in rounds)
    struck = sum(len(round_["faults"]) for round_ in rounds)
    verdict = "every promise was kept, and every run ended with the same bits" if kept else "NOT every promise was kept"
    console.print(
        f"drill: {struck} faults in {len(rounds)} rounds: {verdict}", style="bold green" if kept else "bold red"
    )
    return 0 if kept else 1


def perform_round(
    stage: LinkedStage, job: DrillJob, reference: Sequence[Event], faults: Sequence[Fault], rng: Random
) -> dict[str, Any]:
    """One training with these faults, each after the job has recovered from the one before."""
    demo = job.options
    stage.begin_run("faulty", demo.timeout_s, demo.steps)
    follow_trainers(stage, "faulty")
    start_nodes(stage, range(demo.nodes))
    stage.until("the first steps", lambda: stage.progress.step >= STEPS_BEFORE)
    strikes = Strikes(stage, job, rng)
    outcomes = [perform(stage, strikes, fault) for fault in faults]
    stage.until("the end of the training", lambda: all(agent.code == 0 for agent in job.agents.values()))
    stage.poll()
    comparison = compare(reference, stage.watch.events, ranks=demo.nodes, steps=demo.steps)
    stage.console.print(table_of(outcomes, comparison))
    kept = comparison.bit_exact and not any(outcome.broken for outcome in outcomes)
    return {
        "faults": [outcome.as_json() for outcome in outcomes],
        "bit_exact": comparison.bit_exact,
        "different": list(comparison.different),
        "losses_compared": comparison.losses,
        "digest": comparison.digest,
        "kept": kept,
    }


def perform(stage: LinkedStage, strikes: Strikes, fault: Fault) -> Outcome:
    """Strike one fault, and wait until the job trains and is protected again."""
    demo = stage.cluster.options
    promised = promise(fault, demo.nodes, demo.parity)
    if stage.progress.finished:
        raise DemoFailed(f"the training was over before {fault}: its recovery took longer than planned for")
    stage.say(f"FAULT {fault}: promised is {promised.text}", "bold")
    struck = strikes.strike(fault)
    calm = time.time()

    def recovered() -> bool:
        events = stage.watch.events
        trains = promised.sources is None or first_step(events, struck, demo.nodes) is not None
        persisted = fault.kind != "disk" or bool(stage.seen("persisted", "step", calm))
        return trains and persisted and new_seal(events, calm) is not None

    try:
        stage.until(f"the job to be protected again after {fault}", recovered, PROTECTED_S)
    except DemoFailed as error:
        stage.say(str(error), "red")
    outcome = judge(fault, promised, stage.watch.events, struck, new_seal(stage.watch.events, calm), demo.nodes)
    for problem in outcome.broken:
        stage.say(f"BROKEN: {problem}", "bold red")
    if not outcome.broken:
        stage.say(f"kept: {outcome.happened}", "green")
    return outcome


def table_of(outcomes: Sequence[Outcome], comparison: Comparison) -> Table:
    """What was promised and what happened, for people."""
    table = Table(title="the drill", title_justify="left", box=box.SIMPLE_HEAD, caption_justify="left")
    for heading in ("fault", "promised", "happened", "noticed", "trains", "protected", "kept"):
        table.add_column(heading)
    for outcome in outcomes:
        times = (outcome.t_noticed, outcome.t_first_step, outcome.t_sealed)
        table.add_row(
            str(outcome.fault),
            outcome.promise.brief,
            outcome.happened,
            *("-" if when is None else f"{when:.1f} s" for when in times),
            f"[red]{'; '.join(outcome.broken)}[/]" if outcome.broken else "[green]yes[/]",
        )
    same = "[green]bit-identical to the uninterrupted run[/]" if comparison.bit_exact else "[red]different[/]"
    table.caption = f"{comparison.losses} losses and the final parameters: {same}"
    return table


def write_report(options: DrillOptions, rounds: Sequence[dict[str, Any]]) -> None:
    """The report so far: a drill that ends early has one, too."""
    if options.report:
        campaign = options.campaign
        content = {
            "nodes": campaign.nodes,
            "parity": campaign.parity,
            "seed": campaign.seed,
            "kept": bool(rounds) and all(round_["kept"] for round_ in rounds),
            "rounds": list(rounds),
        }
        options.report.write_text(json.dumps(content, indent=2) + "\n")


def clear(*directories: Path) -> None:
    """Empty the directories of a round for the next one."""
    for directory in directories:
        directory.mkdir(mode=0o700, exist_ok=True)
        for entry in directory.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
