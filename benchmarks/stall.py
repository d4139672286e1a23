"""What a snapshot costs the training, by system: the same loop, state and machine, taking turns.

    python -m benchmarks.stall [--state 256MiB,1GiB] [--step-ms 10,200] [--steps 30] [--every 5] [--rounds 3]
                               [--peers all] [--report DIR] [--quick] [--gpu]

Of each system, median and spread over the rounds:
* blocked_ms: the training thread inside the system's calls and hooks, per snapshot, its wait before the next update too.
* added_ms: how much longer the steps from one snapshot to the next take than the same steps without snapshots, per snapshot.
  It contains blocked_ms.
* first_ms: the first snapshot, its wait included; setup_ms: making the system's objects, before it.
* cpu_s_per_gb: CPU seconds beyond the training's own, of all processes, per GB of snapshots; trainer_cpu_s_per_gb: of
  these the trainer's. What the kernel does for the page cache later is nobody's.
* memory_bytes: memory beyond the training's own while a snapshot is on its way, of all processes; no files on a disk.
* survives: by the state in which the system calls the snapshot complete.
* restored_ok: a trainer was killed after its last snapshot, and what the snapshot claims to survive was lost; a new
  trainer restored it, and every byte is that of the snapshot's step. Where it survives nothing: restored in the same one.

A step is forward and backward of the given length, and a real update of all of the state.
Reports: DIR/stall-STATE-STEP.json, one of each size and length.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.cluster import NotInTimeError
from benchmarks.peers import BASELINE, System, chosen
from benchmarks.report import machine, measured, write
from benchmarks.runs import ROOT, Outcome, Plan, RunFailedError, end_tidily, measure
from benchmarks.sizes import parse_size, size_name
from benchmarks.venvs import Ready, UnavailableError, prepare
from benchmarks.workload import calibrate

VENVS = ROOT / "build" / "bench-venvs"
GB = 1e9


@dataclass(slots=True)
class Runs:
    """What came of each system, round by round. A system that failed once is not run again."""

    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, outcome: Outcome) -> None:
        self.outcomes.setdefault(name, []).append(outcome)

    def drop(self, name: str, reason: str) -> None:
        self.outcomes.pop(name, None)
        self.unavailable[name] = reason


def intervals(measured: dict[str, Any], every: int) -> list[float]:
    """Seconds from the step of one snapshot to the step before the next."""
    steps: list[float] = measured["steps_s"]
    return [sum(steps[at : at + every]) for at in measured["at"]]


def added_ms(outcome: Outcome, baseline: Outcome, every: int) -> float:
    """Of one round: medians, so that one hiccup of the machine is not taken for the system's."""
    ours, theirs = (statistics.median(intervals(one.measured, every)) for one in (outcome, baseline))
    return (ours - theirs) * 1e3


def row(
    system: System, version: str, outcomes: Sequence[Outcome], baseline: Sequence[Outcome], plan: Plan
) -> dict[str, Any]:
    """What the report says of one system."""
    pairs = list(zip(outcomes, baseline, strict=True))
    per_gb = [GB / (len(one.measured["at"]) * plan.state_bytes) for one in outcomes]
    own = [
        (one.measured["cpu_s"] - base.measured["cpu_s"]) * scale
        for (one, base), scale in zip(pairs, per_gb, strict=True)
    ]
    rest = [one.measured["other_cpu_s"] * scale for one, scale in zip(outcomes, per_gb, strict=True)]
    return {
        "version": version,
        **measured("blocked_ms", [1e3 * statistics.median(one.measured["blocked_s"]) for one in outcomes]),
        **measured("added_ms", [added_ms(one, base, plan.every) for one, base in pairs]),
        **measured("first_ms", [1e3 * one.measured["first_s"] for one in outcomes]),
        **measured("setup_ms", [1e3 * one.measured["setup_s"] for one in outcomes]),
        **measured("cpu_s_per_gb", [mine + others for mine, others in zip(own, rest, strict=True)]),
        **measured("trainer_cpu_s_per_gb", own),
        **measured("memory_bytes", [one.memory_bytes - base.memory_bytes for one, base in pairs]),
        "survives": list(system.survives),
        "restored_ok": all(one.restored_ok for one in outcomes),
        "skipped": sum(one.measured["skipped"] for one in outcomes),
        "timeline": {
            "step_ms": [1e3 * s for s in outcomes[0].measured["steps_s"]],
            "snapshots": outcomes[0].measured["at"],
        },
    }


def compare(systems: Sequence[tuple[System, Ready]], plan: Plan, rounds: int, runs: Runs) -> None:
    """All systems in turns: A B C, A B C."""
    for turn in range(rounds):
        for system, ready in systems:
            if system.name in runs.unavailable:
                continue
            try:
                outcome = measure(system, ready, plan)
            except (RunFailedError, NotInTimeError) as error:
                runs.drop(system.name, str(error))
                print(f"  {turn + 1}/{rounds} {system.name:24} failed: {error}", flush=True)
                continue
            runs.add(system.name, outcome)
            blocked = 1e3 * statistics.median(outcome.measured["blocked_s"])
            right = "" if system.name == BASELINE else ", restored" if outcome.restored_ok else ", NOT RESTORED"
            print(f"  {turn + 1}/{rounds} {system.name:24} blocked {blocked:9.2f} ms{right}", flush=True)


def report(
    systems: Sequence[tuple[System, Ready]], plan: Plan, step_ms: float, rounds: int, runs: Runs
) -> dict[str, Any]:
    """One report: of one size and one length of step."""
    baseline = runs.outcomes[BASELINE]
    rows = {
        system.name: row(system, ready.version, runs.outcomes[system.name], baseline, plan)
        for system, ready in systems
        if system.name in runs.outcomes and system.name != BASELINE
    }
    usual = [statistics.median(one.measured["steps_s"]) * 1e3 for one in baseline]
    return {
        "date": date.today().isoformat(),
        "state_bytes": plan.state_bytes,
        "step_ms": step_ms,
        **measured("whole_step_ms", usual),
        "steps": plan.steps,
        "every": plan.every,
        "rounds": rounds,
        "threads": plan.threads,
        "baseline": {"step_ms": [1e3 * seconds for seconds in baseline[0].measured["steps_s"]]},
        "systems": rows,
        "unavailable": runs.unavailable,
    }


def show(found: dict[str, Any]) -> None:
    """The report for a person at a terminal."""
    print(
        f"{machine()}; {size_name(found['state_bytes'])}, forward+backward {found['step_ms']:g} ms, "
        f"whole step {found['whole_step_ms']:.0f} ms, a snapshot every {found['every']} steps, {found['rounds']} rounds"
    )
    print(f"{'':24} blocked ms   added ms   first ms  CPU-s/GB  memory MiB  survives")
    for name, one in found["systems"].items():
        notes = ["NOT RESTORED"] * (not one["restored_ok"]) + [f"{one['skipped']} skipped"] * bool(one["skipped"])
        print(
            f"{name:24} {one['blocked_ms']:10.2f} {one['added_ms']:10.1f} {one['first_ms']:10.1f} {one['cpu_s_per_gb']:9.2f}"
            f" {one['memory_bytes'] / (1 << 20):11.0f}  {', '.join(one['survives']) or 'nothing'}  {', '.join(notes)}"
        )
    for name, reason in found["unavailable"].items():
        print(f"{name:24} not to be had here: {reason}")


def prepared(names: str, runs: Runs) -> list[tuple[System, Ready]]:
    """The systems that can be had here; the others are noted."""
    found = []
    for system in chosen(names):
        try:
            found.append((system, prepare(system, VENVS)))
        except UnavailableError as error:
            runs.drop(system.name, str(error))
            print(f"{system.name}: {error}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", default="256MiB", help="sizes of the state, commas between (default 256MiB)")
    parser.add_argument("--step-ms", default="10,200", help="lengths of forward+backward in ms (default 10,200)")
    parser.add_argument("--steps", type=int, default=30, help="measured steps of a run (default 30)")
    parser.add_argument("--every", type=int, default=5, help="a snapshot every so many steps (default 5)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each system (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads in the trainer (default 1)")
    parser.add_argument("--peers", default="all", help="all, or names with commas between")
    parser.add_argument("--quick", action="store_true", help="32 MiB, 10 ms, 10 steps, one round: does it work at all?")
    parser.add_argument("--gpu", action="store_true", help="the GPU section instead: python -m benchmarks.gpu")
    parser.add_argument("--report", type=Path, metavar="DIR", help="also write the results here, as JSON")
    options = parser.parse_args()
    end_tidily()
    if options.gpu:
        from benchmarks import gpu

        gpu.run(options.report)
        return
    if options.quick:
        options.state, options.step_ms, options.steps, options.rounds = "32MiB", "10", 10, 1
    if options.steps % options.every:
        parser.error(f"found {options.steps} steps, expected a multiple of --every {options.every}")
    runs = Runs()
    systems = prepared(options.peers, runs)
    plan = Plan(state_bytes=0, matmuls=0, steps=options.steps, every=options.every, threads=options.threads)
    for size in (parse_size(text) for text in options.state.split(",")):
        for step_ms in (float(text) for text in options.step_ms.split(",")):
            here = Runs(unavailable=dict(runs.unavailable))
            plan = replace(plan, state_bytes=size, matmuls=calibrate(step_ms, options.threads))
            print(f"{size_name(size)}, {step_ms:g} ms", flush=True)
            compare(systems, plan, options.rounds, here)
            found = report(systems, plan, step_ms, options.rounds, here)
            show(found)
            if options.report:
                options.report.mkdir(parents=True, exist_ok=True)
                write(options.report / f"stall-{size_name(size)}-{step_ms:g}ms.json", found)


if __name__ == "__main__":
    main()
