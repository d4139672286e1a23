"""Makes a rank's digest from what its page, its recorder and its process say. Pure; remembers what one look leaves out."""

from __future__ import annotations

import math
import zlib
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ckptd.ckpt.beat import Seen, took_s
from ckptd.ckpt.sighting import GROUPS_MAX, RUNS_MAX, Group
from ckptd.daemon.observe.processes import State
from ckptd.daemon.observe.recorder import Entry, Status
from ckptd.daemon.watch import observations as ob
from ckptd.daemon.watch.observations import GroupProgress, Phase, Process, RankDigest

OURS = "ckptd"
"""Describes ckptd's own process group, whose collectives are no part of the training's step."""
LOOKS_KEPT = 8
RUNNING = ("R", "I")
STANDING = ("T", "t")
NUMBER_MAX = (1 << 31) - 1
ENDS_NS = 86_400_000_000_000


@dataclass(frozen=True, slots=True)
class Known:
    """A process group, as a rank has written it down."""

    number: int
    backend: str
    group: Group


def groups_of(content: object, world: int) -> tuple[dict[str, Known], list[str]]:
    """The groups by name, and the remarks, out of the JSON that a trainer has written. What makes no sense is left out."""
    if not isinstance(content, dict):
        return {}, []
    remarks = content.get("remarks")
    said = [text for text in remarks if isinstance(text, str)] if isinstance(remarks, list) else []
    listed = content.get("groups")
    known = {}
    for item in listed[:GROUPS_MAX] if isinstance(listed, list) else []:
        found = _known(item, world) if isinstance(item, dict) else None
        if found is not None:
            known[found[0]] = found[1]
    return known, said


def _known(item: Mapping[str, object], world: int) -> tuple[str, Known] | None:
    name, backend, runs = item.get("name"), item.get("backend"), item.get("runs")
    if not isinstance(name, str) or not isinstance(backend, str) or not isinstance(runs, list) or len(runs) > RUNS_MAX:
        return None
    checked = []
    for run in runs:
        if not isinstance(run, list) or len(run) != 3 or not all(type(value) is int and value >= 0 for value in run):
            return None
        first, stride, count = run
        if not 0 < count <= world or not stride or first + stride * (count - 1) >= world:
            return None
        checked.append((first, stride, count))
    number = zlib.crc32(f"{name[:200]} {checked}".encode(errors="replace")) & NUMBER_MAX
    return name, Known(number, backend, Group(number, tuple(checked)))


@dataclass(slots=True)
class Life:
    """What is known of one rank in one life, from look to look."""

    rank: int
    own: OrderedDict[int, float] = field(default_factory=OrderedDict)
    """By step: the seconds in which the rank did not wait for others."""
    names: dict[int, str] = field(default_factory=dict)
    """The names of the groups by torch's numbers; an entry tells."""
    completed: dict[int, int] = field(default_factory=dict)
    progress: tuple[GroupProgress, ...] = ()
    """As its handlers last told."""
    roles: deque[int] = field(default_factory=lambda: deque(maxlen=LOOKS_KEPT))
    counters: tuple[tuple[int, tuple[int, int]], ...] = ()
    """By torch's number of the group: entered and completed, as last told."""
    last: tuple[object, str] | None = None
    """What the rank had done at the look before, and where its main thread slept."""
    unmoved: int = 0
    """Looks in a row at which nothing had changed."""
    deaf: int = 0
    """Looks in a row at which its handlers did not answer."""
    held: bool = False
    """Whether its handlers answer, and its interpreter does not."""
    idle: bool | None = None
    """What its stack says: whether its main thread is in no collective. None: not known."""


def digest(life: Life, seen: Seen, status: Status | None, state: State, known: Mapping[str, Known]) -> RankDigest:
    """The rank's digest now. `status`: None where the handlers did not answer; `known`: its groups by name."""
    entries = status.entries if status else ()
    life.names.update((entry.group, entry.name) for entry in entries)
    _measure(life, seen, [entry for entry in entries if entry.described != OURS], known)
    if status is not None:
        life.counters = tuple(sorted(status.progress.items()))
    waits = _waits(life, seen, state, known)
    process = _process(life, state)
    if status is not None:
        settled = waits == ob.NOWHERE or process is Process.HELD
        life.progress = _progress(
            life, status, known, settled=settled, step_ended=seen.marks[0][3] if seen.marks else 0
        )
    newest = seen.marks[0] if seen.marks and seen.marks[0][0] == seen.step else None
    return RankDigest(
        rank=life.rank,
        epoch=seen.epoch,
        step=seen.step,
        phase=Phase.CHECKPOINT if seen.closed else PHASE_OF[seen.phase],  # what it does at its end is its own business
        process=process,
        waits=waits,
        role=Counter(life.roles).most_common(1)[0][0] if life.roles else 0,
        step_s=took_s(newest) if newest else math.nan,
        own_s=tuple(life.own.get(seen.step - back, math.nan) for back in range(ob.OWN_KEPT)),
        groups=life.progress,
    )


PHASE_OF = (Phase.TRAINING, Phase.START, Phase.COMPILE, Phase.EVALUATION, Phase.CHECKPOINT)
"""By the number in the trainer's page: `ckptd.ckpt.beat.PHASES`."""


def _measure(life: Life, seen: Seen, entries: list[Entry], known: Mapping[str, Known]) -> None:
    """The own time of the steps that can be measured: all but the wait for the last collective before the update.

    A step's ranks wait where its last collective gathers them; what waits there are within it shifts that one for all.
    """
    for number, before, reached, done in seen.marks[: ob.OWN_KEPT]:
        if number in life.own or not done - before < ENDS_NS:
            continue
        inside = [entry for entry in entries if before < entry.created_ns <= reached]
        if not inside:
            continue
        own = (done - before) - (reached - max(entry.created_ns for entry in inside))
        life.own[number] = own / 1e9
        if entries[0].created_ns < before:
            life.roles.append(_role(inside, known))
    while len(life.own) > 2 * ob.OWN_KEPT:
        life.own.popitem(last=False)


def _role(entries: list[Entry], known: Mapping[str, Known]) -> int:
    sizes = {name: sum(run[2] for run in found.group.runs) for name, found in known.items()}
    return zlib.crc32(repr([(entry.op, sizes.get(entry.name, 0)) for entry in entries]).encode())


def _progress(
    life: Life, status: Status, known: Mapping[str, Known], *, settled: bool, step_ended: int
) -> tuple[GroupProgress, ...]:
    """The groups that were entered last, by their numbers in the job.

    `settled`: the rank waits in no collective, so all that it has entered are over for it. (Gloo's counter of the completed
    ones stands still while the interpreter is held.) `step_ended`: the end of its newest step, in ns of the wall clock; what
    gloo has begun before is over, although the counter says which one ended last, and those of one step end in any order.
    """
    order = {entry.group: place for place, entry in enumerate(status.entries)}
    ops = {(entry.group, entry.seq): entry.op for entry in status.entries}
    over = {entry.group: entry.seq for entry in status.entries if entry.created_ns <= step_ended}
    latest = {life.names[number]: number for number in sorted(status.progress) if number in life.names}
    found = []
    for (
        name,
        number,
    ) in latest.items():  # a group that was destroyed leaves its counters behind, and its name to another one
        group = known.get(name)
        if group is None:
            continue
        entered, completed = status.progress[number]
        if group.backend == "gloo":
            completed = min(entered, max(completed, over.get(number, 0)))
        done = max(entered if settled else completed, min(entered, life.completed.get(number, 0)))
        life.completed[number] = done
        progress = GroupProgress(group.number, entered, done, ops.get((number, entered), 0))
        found.append((order.get(number, -1), progress))
    newest = sorted(found, key=lambda pair: pair[0])[-ob.GROUPS_MAX :]
    return tuple(progress for _, progress in newest)


def _waits(life: Life, seen: Seen, state: State, known: Mapping[str, Known]) -> int:
    """NOWHERE where two looks at a rank that does not move show that it computes, or sleeps elsewhere than in a lock.

    That tells nothing of a rank that waits for a GPU, which looks like computing; there only its stack does.
    """
    counters = (seen.step, seen.phase, life.counters)
    before, life.last = life.last, (counters, state.asleep_in)
    same = before is not None and before[0] == counters
    life.unmoved = life.unmoved + 1 if same else 0
    if not same:
        life.held, life.idle = False, None
        return ob.UNKNOWN
    if life.idle is not None:
        return ob.NOWHERE if life.idle else ob.UNKNOWN
    on_host = all(group.backend == "gloo" for group in known.values())
    if not on_host or life.unmoved < 2 or before is None:
        return ob.UNKNOWN
    busy = state.letter in RUNNING
    elsewhere = state.letter == "S" and before[1] == state.asleep_in != "" and "futex" not in state.asleep_in
    return ob.NOWHERE if busy or elsewhere else ob.UNKNOWN


def _process(life: Life, state: State) -> Process:
    if state.letter in STANDING or (state.letter == "D" and life.unmoved > 2):
        return Process.STOPPED
    if life.held:
        return Process.HELD
    return Process.DEAF if life.deaf > 2 else Process.ALIVE


def gone(before: RankDigest, code: int, ago_s: float) -> RankDigest:
    """The last digest of a process that has ended so long ago."""
    return replace(before, process=Process.GONE, exit=max(-32768, min(code, 32767)), gone_s=max(0.0, ago_s))


WAITS_IN = ("/torch/", "/ckptd/integrations/", "/ckptd/ckpt/", "threading.py")
"""Parts of the paths of modules in which a trainer may wait for others."""


def is_idle(stack: str) -> bool | None:
    """Whether a stack's main thread, the last one of the text, is in the training's own code and not in a wait of torch's.

    None: the text does not tell.
    """
    frames = [line for line in stack.rpartition("Thread 0x")[2].splitlines() if line.strip().startswith("File ")]
    if not frames:
        return None
    inner = frames[0]
    return not any(part in inner for part in WAITS_IN)
