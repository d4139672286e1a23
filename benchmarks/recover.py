"""What comes back after a kill, and how fast: by system and size.

    python -m benchmarks.recover [--state 256MiB] [--rounds 3] [--kills 100] [--kill-state 32MiB] [--peers all]
                                 [--kill-peers NAMES] [--report DIR]

1. A trainer takes a snapshot, is killed, and what the snapshot claims to survive is lost; a new trainer restores it. Of each
   system: restore_ms until the state is ready in the model and the optimizer (the process is there and has the library
   imported), bytes_s, and times_memcpy against one plain copy of the same bytes in that process.
2. A trainer is killed at a random instant of a save, again and again, and goes on from what it finds. Of each system: how
   often the newest complete snapshot came back, right to the last byte, and how many steps were lost to it; and how often a
   trainer could not go on after the kill at all, so that everything had to be begun anew (at most 5 times).

Systems whose snapshots do not survive a trainer are left out. Report: DIR/recover.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import kills as kills_module
from benchmarks.cluster import NotInTimeError
from benchmarks.peers import System, chosen
from benchmarks.report import machine, measured, write
from benchmarks.runs import (
    ROOT,
    Outcome,
    Plan,
    RunFailedError,
    end_tidily,
    environment,
    folder_of_a_run,
    last_word,
    measure,
)
from benchmarks.services import serving
from benchmarks.sizes import parse_size, size_name
from benchmarks.stall import Runs, prepared
from benchmarks.venvs import Ready

_STEPS, _EVERY = 2, 2
_KILL_S = 30.0
"""The most that one life with its kill may take."""
_STUCK_MAX = 5


def row(version: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What the report says of one system and size."""
    found = [one.restored for one in outcomes]
    copies = [statistics.median(one["copies_s"]) for one in found]
    return {
        "version": version,
        **measured("restore_ms", [1e3 * one["restore_s"] for one in found]),
        **measured("bytes_s", [one["state_bytes"] / one["restore_s"] for one in found]),
        **measured("memcpy_ms", [1e3 * seconds for seconds in copies]),
        **measured("times_memcpy", [one["restore_s"] / seconds for one, seconds in zip(found, copies, strict=True)]),
        "restored_ok": all(one.restored_ok for one in outcomes),
    }


def restores(systems: Sequence[tuple[System, Ready]], plan: Plan, rounds: int, runs: Runs) -> dict[str, Any]:
    """The first part, of one size."""
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
            print(f"  {turn + 1}/{rounds} {system.name:24} {1e3 * outcome.restored['restore_s']:9.1f} ms", flush=True)
    return {
        system.name: row(ready.version, runs.outcomes[system.name])
        for system, ready in systems
        if system.name in runs.outcomes
    }


def killed(system: System, ready: Ready, state_bytes: int, kills: int) -> dict[str, Any]:
    """The second part, of one system: after it got stuck everything is begun anew. Raises RunFailedError, NotInTimeError."""
    reports: list[dict[str, Any]] = []
    while (left := kills - sum(report["kills"] for report in reports)) > 0 and len(reports) <= _STUCK_MAX:
        reports.append(_campaign(system, ready, state_bytes, left))
    found = kills_module.summed(reports)
    if not found["kills"]:
        raise RunFailedError(found["stuck"][0])
    return {"version": ready.version, **found}


def _campaign(system: System, ready: Ready, state_bytes: int, kills: int) -> dict[str, Any]:
    with (
        folder_of_a_run() as folder,
        serving(system, ready.python, folder, state_bytes=state_bytes, every=1) as service,
    ):
        command = [str(ready.python), "-m", "benchmarks.kills", str(folder), "--system", system.name]
        command += ["--memory", str(service.memory), "--bytes", str(state_bytes), "--kills", str(kills)]
        log = folder / "kills.log"
        with log.open("w") as err:
            driver = subprocess.Popen(
                command, cwd=ROOT, env=environment() | dict(service.environment), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=err, text=True,
            )  # fmt: skip
        try:
            out, _ = driver.communicate(timeout=_KILL_S * (kills + 2))
        except subprocess.TimeoutExpired as error:
            raise RunFailedError(f"{kills} kills were not done within {_KILL_S * (kills + 2):.0f} s") from error
        finally:
            driver.terminate()
            driver.wait()
        if driver.returncode:
            raise RunFailedError(last_word(log.read_text()))
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        return found


def show(found: dict[str, Any]) -> None:
    """The report for a person at a terminal."""
    print(machine())
    for size, rows in found["restores"].items():
        print(f"{size:24} restore ms      GB/s  times memcpy")
        for name, one in rows.items():
            wrong = "" if one["restored_ok"] else "  NOT RESTORED"
            print(f"{name:24} {one['restore_ms']:10.1f} {one['bytes_s'] / 1e9:9.2f} {one['times_memcpy']:13.2f}{wrong}")
    if found["kills"]:
        print(f"{'killed during a save':24}      kills    loads     torn    stuck  lost steps (mean)")
    for name, one in found["kills"].items():
        print(
            f"{name:24} {one['kills']:10} {one['loads']:8} {one['torn']:8} {len(one['stuck']):8} "
            f"{one['lost_steps_mean']:10.2f}"
        )
    for name, reason in found["unavailable"].items():
        print(f"{name:24} not to be had here: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", default="256MiB", help="sizes of the state, commas between (default 256MiB)")
    parser.add_argument("--rounds", type=int, default=3, help="restores of each system and size (default 3)")
    parser.add_argument("--kills", type=int, default=100, help="kills of each system, 0: none (default 100)")
    parser.add_argument("--kill-state", default="32MiB", help="the size of the state that is killed (default 32MiB)")
    parser.add_argument("--peers", default="all", help="all, or names with commas between")
    parser.add_argument("--kill-peers", help="those that are killed during a save (default: all of --peers)")
    parser.add_argument("--report", type=Path, metavar="DIR", help="also write the results here, as JSON")
    options = parser.parse_args()
    end_tidily()
    runs = Runs()
    systems = [(system, ready) for system, ready in prepared(options.peers, runs) if system.survives]
    found: dict[str, Any] = {"date": date.today().isoformat(), "restores": {}, "kills": {}}
    for size in (parse_size(text) for text in options.state.split(",")):
        runs.outcomes.clear()
        plan = Plan(state_bytes=size, matmuls=1, steps=_STEPS, every=_EVERY, threads=1)
        print(size_name(size), flush=True)
        found["restores"][size_name(size)] = restores(systems, plan, options.rounds, runs)
    wanted = {system.name for system in chosen(options.kill_peers or options.peers)} if options.kills else set()
    for system, ready in systems:
        if system.name in runs.unavailable or system.name not in wanted:
            continue
        try:
            found["kills"][system.name] = killed(system, ready, parse_size(options.kill_state), options.kills)
            print(f"  {system.name:24} {found['kills'][system.name]}", flush=True)
        except (RunFailedError, NotInTimeError) as error:
            runs.drop(system.name, str(error))
            print(f"  {system.name:24} failed: {error}", file=sys.stderr, flush=True)
    found |= {"kill_state": options.kill_state, "unavailable": runs.unavailable}
    show(found)
    if options.report:
        options.report.mkdir(parents=True, exist_ok=True)
        write(options.report / "recover.json", found)


if __name__ == "__main__":
    main()
