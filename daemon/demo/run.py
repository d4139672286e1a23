"""The story of the demo: an uninterrupted run, the same run with a fault in the middle, and the comparison."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from ckptd.ckpt.errors import CkptdError, UsageError
from ckptd.daemon.demo.cluster import Cluster
from ckptd.daemon.demo.faulty import FAULTS
from ckptd.daemon.demo.judged import Injected, teller
from ckptd.daemon.demo.linked import LinkedCluster, LinkedStage
from ckptd.daemon.demo.options import DemoOptions, Layout
from ckptd.daemon.demo.report import build_report, table_of
from ckptd.daemon.demo.stage import DemoFailed, Stage
from ckptd.daemon.demo.watch import Event
from ckptd.daemon.demo.wires import LINKS

INTERRUPTED = 130
"""The exit code after Ctrl-C or SIGTERM, as shells expect it."""

READY_S = 30.0
DETECTED_S = 60.0
INCIDENTS_MAX = 9
"""Records that are followed: one fault makes one, and a busy machine may have made some before."""


def run_demo(options: DemoOptions, console: Console) -> int:
    """Run the demo and return its exit code: 0 only when the recovered run has the same bits as the uninterrupted one, and,
    with a fault that is to be judged, the verdict is right.

    Whatever happens, no process and no shared memory of it is left. Raises UsageError when the work directory is bad.
    """
    if options.report and not options.report.absolute().parent.is_dir():
        raise UsageError(f"--report {options.report}: no such directory; make it first")
    with workspace(options) as layout, interruptible():
        stage = open_stage(options, layout, console)
        cluster = stage.cluster
        try:
            code = perform(options, stage)
        except DemoFailed as error:
            stage.say(f"failed: {error}", "bold red")
            stage.show_logs()
            if not options.keep:
                stage.say("--keep leaves all logs and states")
            code = 1
        except KeyboardInterrupt:
            stage.say("interrupted: everything is being ended", "bold red")
            code = INTERRUPTED
        finally:
            strays = cluster.stop()
        if strays:
            stage.say(f"{len(strays)} stray processes had to be killed", "yellow")
        if options.keep:
            stage.say(f"kept: {layout.workdir} (persisted steps in {layout.storage}, logs in {layout.logs})")
        return code


def open_stage(options: DemoOptions, layout: Layout, console: Console) -> Stage:
    """The cluster that the fault needs, nothing of it started yet, and its stage."""
    if options.link:
        return LinkedStage(console, LinkedCluster(options, layout))
    return Stage(console, Cluster(options, layout))


def perform(options: DemoOptions, stage: Stage) -> int:
    """Both runs, then the report."""
    model = f"a byte-level GPT of {options.model.layers} layers, {options.model.width} wide"
    stage.say(f"{model}, learns the standard library's sources for {options.steps} steps", "bold")
    nodes = f"{options.nodes} nodes with parity {options.parity}" if options.nodes > 1 else "one node"
    stage.say(f"{nodes}; a snapshot at every step, every {options.persist_every} steps one goes to storage", "bold")
    if options.launcher == "torchrun":
        stage.cluster.start_store()
    reference = uninterrupted(options, stage)
    faulty, statuses, t_fault = recovered(options, stage)
    report = build_report(
        reference, faulty, statuses, steps=options.steps, t_start=stage.t_start, t_fault=t_fault, nodes=options.nodes,
        injected=injected(options), launched=launched(options),
    )  # fmt: skip
    stage.console.print(table_of(report))
    if options.report:
        options.report.write_text(json.dumps(report.as_json(), indent=2) + "\n")
        stage.say(f"report: {options.report}")
    wrong = bool(options.fault) and report.judged is not None and not report.judged.right
    if wrong:
        stage.say("the verdict is not what was injected", "bold red")
    if report.comparison.bit_exact:
        stage.say("the recovered run is bit-identical to the uninterrupted one", "bold green")
        return int(wrong)
    stage.say("the recovered run differs from the uninterrupted one", "bold red")
    return 1


def injected(options: DemoOptions) -> Injected | None:
    """The truth about the fault, where it is one of those that have a name and somebody is left to tell; rank I lives on
    node I."""
    mixed, nobody = bool(options.lost and options.killed), len(options.lost) == options.nodes
    if options.launcher != "ckptd" or mixed or nobody:
        return None
    struck = tuple(sorted(options.lost or options.killed))
    return Injected(options.fault or ("kill-node" if options.lost else "kill-rank"), struck, struck, options.link)


def launched(options: DemoOptions) -> str:
    """How the trainers are started and started again, in words."""
    if options.launcher == "torchrun":
        return "torchrun"
    return f"`ckptd run`, {'warm' if options.warm_workers else 'cold'} trainers"


def uninterrupted(options: DemoOptions, stage: Stage) -> Sequence[Event]:
    """Train without checkpoints and without faults; returns what the trainers told."""
    stage.begin_run("reference", options.timeout_s, options.steps)
    stage.say("the uninterrupted run: one torchrun, no checkpoints", "bold")
    follow_trainers(stage, "reference")
    process = stage.cluster.start_reference()
    stage.until("the end of the training", lambda: process.code == 0)
    stage.poll()
    return stage.watch.events


def recovered(options: DemoOptions, stage: Stage) -> tuple[Sequence[Event], Sequence[Mapping[str, Any]], float]:
    """Train with checkpoints and the fault; returns all events, what each node says at the end, and when it struck."""
    stage.begin_run("faulty", options.timeout_s, options.steps)
    stage.say(f"the same with checkpoints: on each node a daemon and {launched(options)}", "bold")
    nodes = range(options.nodes)
    follow_trainers(stage, "faulty")
    follow_incidents(stage, nodes, "node")
    start_nodes(stage, nodes)
    stage.until(f"step {options.fault_step} on every rank", lambda: stage.progress.step >= options.fault_step)
    if stage.progress.finished:
        raise DemoFailed("the training was over before the fault: take more --steps or an earlier --at-step")

    t_fault = strike(options, stage)
    if options.lost:
        follow_incidents(stage, options.lost, "the new node")
        start_nodes(stage, options.lost)
    stage.until("the end of the training", lambda: all(agent.code == 0 for agent in stage.cluster.agents.values()))
    stage.poll()
    try:
        return stage.watch.events, [stage.cluster.status(node) for node in nodes], t_fault
    except CkptdError as error:
        raise DemoFailed(str(error)) from error


def follow_trainers(stage: Stage, run: str) -> None:
    for rank in range(stage.cluster.options.nodes):
        stage.watch.follow(stage.cluster.layout.trainer_log(run, rank), "trainer")


def follow_incidents(stage: Stage, nodes: Iterable[int], what: str) -> None:
    """The records of these nodes: of the collector's, node 0, and of who follows it should that one be lost."""
    for node in nodes:
        directory = stage.cluster.layout.run_dir(node) / "incidents"
        for number in range(1, INCIDENTS_MAX + 1):
            stage.watch.follow(directory / f"{number:06d}.jsonl", teller(number, f"{what} {node}"))


def start_nodes(stage: Stage, nodes: Sequence[int]) -> None:
    """Start the daemons of these nodes with empty memories, then their agents."""
    cluster = stage.cluster
    begun = time.monotonic()
    for node in nodes:
        cluster.start_daemon(node)
        stage.watch.follow(cluster.layout.run_dir(node) / "events.jsonl", "daemon")
    stage.until("the daemons' sockets", lambda: all(map(cluster.daemon_ready, nodes)), READY_S)
    agent = "`ckptd run`" if cluster.options.launcher == "ckptd" else "torchrun"
    stage.say(f"{named(nodes)}: daemon ready after {time.monotonic() - begun:.2f} s, starting {agent}")
    if cluster.options.launcher == "torchrun":
        stage.until("the rendezvous store", cluster.store_ready, READY_S)
    for node in nodes:
        cluster.start_agent(node)


def strike(options: DemoOptions, stage: Stage) -> float:
    """The fault; returns its time when the survivors, or, if there are none, the launcher, have noticed it."""
    cluster = stage.cluster
    pids = {event.fields["rank"]: event.fields["pid"] for event in stage.watch.events if event.name == "start"}
    if options.fault in FAULTS:
        t_fault = cluster.mislead(pids[rank] for rank in options.killed)
        text = f"FAULT: {options.fault} of {named(options.killed, 'rank')}; nobody is told"
        stage.tell("fault", t_fault, text, ranks=list(options.killed))
        return t_fault
    if isinstance(cluster, LinkedCluster):
        return strike_link(options, stage, cluster, pids)
    t_fault = cluster.strike(options.lost, [pids[rank] for rank in options.killed])
    if options.lost:
        text = f"FAULT: {named(options.lost)} lost: trainer and daemon killed, memory and directory deleted"
        stage.tell("fault", t_fault, text, nodes=list(options.lost))
    if options.killed:
        text = f"FAULT: trainer of {named(options.killed, 'rank')} killed"
        stage.tell("fault", t_fault, text, ranks=list(options.killed))
    stage.poll()  # the last words of the daemons, before their files are deleted
    for node in options.lost:
        cluster.forget(node)
    if len(options.lost) > options.parity:
        stage.say(f"that is more than the parity of {options.parity} can give back: storage has to help", "yellow")
    if len(options.lost) == options.nodes:
        # No daemon is left to notice. On a real cluster it is the scheduler that sees its jobs end and starts new ones.
        stage.tell("node_lost", time.time(), "no node is left: the launcher notices", lost=list(options.lost))
        return t_fault

    def noticed() -> bool:
        # One of each kind will do: when several nodes are gone, the next to tell of it may be gone as well.
        lost, killed = stage.seen("node_lost", "lost", t_fault), stage.seen("rank_lost", "rank", t_fault)
        return bool(lost.intersection(options.lost) or not options.lost) and bool(
            killed.intersection(options.killed) or not options.killed
        )

    stage.until("the daemons to notice", noticed, DETECTED_S)
    return t_fault


def strike_link(options: DemoOptions, stage: Stage, cluster: LinkedCluster, pids: Mapping[int, int]) -> float:
    """The fault of a link. One that is cut is mended when it has a verdict; returns when it struck."""
    a, b = options.link
    t_fault = cluster.spoil_link(LINKS[options.fault], a, b, pids)
    text = f"FAULT: {options.fault} between nodes {a} and {b}, for daemons and trainers; nobody is told"
    stage.tell("fault", t_fault, text, link=[a, b])
    if options.fault == "cut-link":
        stage.until("a verdict", lambda: bool(stage.seen("opened", "t_detected", t_fault)), DETECTED_S)
        cluster.links.set(a, b, None)
        stage.say(f"the link between nodes {a} and {b} is mended")
    return t_fault


def named(indices: Sequence[int], kind: str = "node") -> str:
    """`node 1`, or `nodes 1, 2`."""
    return f"{kind}{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"


@contextlib.contextmanager
def workspace(options: DemoOptions) -> Iterator[Layout]:
    """The directories of one demo, removed at its end (the work directory unless it is to be kept)."""
    if options.workdir is None:
        workdir, ours = Path(tempfile.mkdtemp(prefix="ckptd-demo-")), True
    else:
        workdir, ours = options.workdir.absolute(), not options.workdir.exists()
        if not ours and (not workdir.is_dir() or any(workdir.iterdir())):
            raise UsageError(f"--workdir {workdir}: expected a new or an empty directory; choose another")
        workdir.mkdir(parents=True, exist_ok=True)
    if not options.segments_root.is_dir():
        raise UsageError(f"{options.segments_root}: no such directory; the nodes' memory needs a tmpfs")
    segments = Path(tempfile.mkdtemp(prefix="ckptd-demo-", dir=options.segments_root))
    try:
        layout = Layout(segments.name, workdir, segments)
        layout.check()
        yield layout
    finally:
        shutil.rmtree(segments, ignore_errors=True)
        if not options.keep:
            for entry in [workdir] if ours else list(workdir.iterdir()):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGTERM an interruption like Ctrl-C, so that it cleans up too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
