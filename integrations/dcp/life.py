"""This process's dealings with its daemon for DCP: one rank's epoch and slots, and the versions that can be read.

There is one `Life` for each job in a process, whoever saves: DCP's process executor sends it a new writer for every save.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from ckptd.ckpt.client import Channel, Client, Stretch
from ckptd.ckpt.errors import CkptdError, MemoryBudgetError, Unrecoverable, UsageError
from ckptd.ckpt.image import Layout
from ckptd.ckpt.model import Version
from ckptd.ckpt.settings import read
from ckptd.integrations import ranks, tensors
from ckptd.integrations.dcp.berths import Berths, Course, Staging, staging_of, stand
from ckptd.integrations.dcp.names import Address
from ckptd.integrations.images import Bring, Opened, bringing, open_images
from ckptd.integrations.journal import logger

LEVELS = ("captured", "sealed", "persisted")
_HEARD_S = 3.0
"""How long it may take until a node has heard what another one sealed; usually far less."""
_POLL_S = 0.05


class Life:
    """One call at a time: the channel belongs to whichever thread is inside."""

    def __init__(self, channel: Channel, job: str) -> None:
        self.job = job
        self._channel = channel
        self._lock = threading.Lock()
        self._given: Version | None = None
        """The last version that was given out here, as the coordinator."""
        self._given_world = 0
        self._finished = True
        self._place: tuple[int, int] | None = None
        self._joined: Version | None = None
        """The last version that this rank was to write."""
        self._reserved = 0
        self._berths = Berths()

    # ---- saving ---------------------------------------------------------------------------------------

    def give(self, step: int, world: int) -> Version:
        """The coordinator's choice of the version to save `step` as.

        A new epoch begins where the step is not newer than the last one, the last save was not finished or of another
        number of ranks, or another process has begun an epoch since: so what two saves under one id have written is never
        mixed.
        """
        with self._lock:
            last = self._given
            stale = last is None or not self._finished or world != self._given_world
            stale = stale or (last is not None and self._channel.newest_epoch() > last.epoch)
            if last is None or stale or step <= last.step:
                if self._place is not None:  # another process may be this rank now, and only the rank is answered
                    self._attach(*self._place)
                self._given = Version(self._channel.decide(world=world, fresh=True).epoch, step)
            else:
                self._given = Version(last.epoch, step)
            self._finished, self._given_world = False, world
            return self._given

    def enter(self, rank: int, world: int, assigned: Version, step: int) -> Version:
        """Be that rank in the epoch of the version that the plan assigns; return the version to write.

        A planner that caches plans brings the version of an earlier save: its epoch, with the step of this one.
        """
        version = Version(assigned.epoch, step)
        with self._lock:
            # Anew in each epoch: another process of this rank, as DCP's, may have been the rank meanwhile.
            if self._place != (rank, world) or self._joined is None or self._joined.epoch != version.epoch:
                self._attach(rank, world)
                self._channel.join(version.epoch)
                self._place = rank, world
            self._joined = version
        return version

    def _attach(self, rank: int, world: int) -> None:
        self._channel.attach(rank=rank, world=world, local_world=min(world, ranks.local_world()))

    def put(self, version: Version, layout: Layout, parts: Mapping[str, torch.Tensor], wait_s: float) -> None:
        """Write and commit this rank's image: `parts` by the names of the layout's entries.

        Those that were staged in a lent file, where the image has them, are left there: the file becomes the slot's. Waits
        up to `wait_s` for a slot. Raises MemoryBudgetError when none comes free, and what the channel raises.
        """
        staging = staging_of(parts.values())
        berth = None if staging is None else staging.berth
        there = None if berth is None else stand(layout, parts, berth.mapping)
        with self._lock:
            if layout.size != self._reserved:
                self._channel.reserve(layout.size)
                self._reserved = layout.size
            slot = self._channel.begin(version, layout.size, wait_s, berth.path if berth and there else None)
            if slot is None:
                raise MemoryBudgetError(
                    f"{version}: every slot was in use for {wait_s:.0f} s, the daemons can't keep up; save less often, or "
                    "raise the setting slots"
                )
            try:
                if berth is not None and there and slot.path == berth.path:
                    _fill(berth.mapping, version, layout, {name: parts[name] for name in parts.keys() - there})
                else:
                    _fill(tensors.Mapping(slot.path, slot.size, write=True), version, layout, parts)
            except (CkptdError, OSError, RuntimeError, ValueError) as error:
                self._channel.abort(slot, version, f"{type(error).__name__}: {error}")
                raise
            self._channel.commit(slot, version)
            if staging is not None:
                self._prepare(staging, layout, parts)

    def _prepare(self, staging: Staging, layout: Layout, parts: Mapping[str, torch.Tensor]) -> None:
        """Have the next copy of this state made where its image will be; without a file for that, beside it as ever."""
        spans = staging.spans(layout, parts)
        if not spans:
            return
        try:
            path = self._channel.lend(layout.size)
            berth = self._berths.open(path, layout.size, pinned=staging.from_device and torch.cuda.is_available())
        except (CkptdError, OSError) as error:
            logger.debug("ckptd: the next save is copied twice: %s", error)
            return
        if berth is not None:
            staging.next = Course(berth, spans)

    def finish(self, version: Version, level: str, timeout_s: float) -> None:
        """The coordinator's last image is committed: wait until the version has reached `level`."""
        with self._lock:
            self._finished = True
            if level == "persisted" and not self._channel.persist(version):
                raise UsageError(f"{version} is in memory, and there is no storage; start the daemons with --storage")
            began = time.monotonic()
            reached = self._channel.wait(version, level, timeout_s)
            waited_s = time.monotonic() - began
        if reached not in LEVELS or LEVELS.index(reached) < LEVELS.index(level):
            why = (
                "a rank has not saved it, or too many nodes were lost since; save once more"
                if waited_s < timeout_s
                else "`ckptd status` says which node is late"
            )
            raise Unrecoverable(f"{version} is {reached} after {waited_s:.1f} s, expected {level}; {why}")

    # ---- loading --------------------------------------------------------------------------------------

    def find(self, address: Address) -> Version:
        """The newest version that can be restored and is meant. Raises Unrecoverable, naming what there is.

        What has just been saved, this node may hear of a moment later: that is waited for.
        """
        known = self._wait(lambda versions: self._is_heard(address, versions))
        fitting = [version for version in known if address.fits(version)]
        if not fitting:
            have = ", ".join(map(str, known[:5])) or "none"
            raise Unrecoverable(f"{address} of job {self.job} is neither in memory nor on storage; there is: {have}")
        return max(fitting)

    def newest(self, address: Address) -> Version | None:
        """The same, or None at once where nothing of that kind is there; only what this process has saved is waited for."""
        wrote = self._joined
        waits = wrote is not None and address.fits(wrote)
        known = self._wait(lambda versions: not waits or self._is_heard(address, versions))
        return max((version for version in known if address.fits(version)), default=None)

    def _wait(self, enough: Callable[[list[Version]], bool]) -> list[Version]:
        """What can be restored, once there is enough of it or it has taken too long."""
        deadline = time.monotonic() + _HEARD_S
        while not enough(known := self.restorable()) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return known

    def _is_heard(self, address: Address, known: list[Version]) -> bool:
        wrote = self._joined
        expected = wrote if wrote is not None and address.fits(wrote) else Version(0, 0)
        return any(address.fits(version) and version >= expected for version in known)

    def restorable(self) -> list[Version]:
        """What can be restored now, the newest first."""
        with self._lock:
            return self._channel.restorable()

    def open_parts(self, version: Version) -> tuple[list[Opened], Bring]:
        """Every rank's image, mapped, and what brings the bytes that are read of it; then `shut`.

        Raises Unrecoverable, CorruptionError.
        """
        with self._lock:
            found = self._channel.open(version)

        def ask(wanted: Sequence[Stretch]) -> None:
            with self._lock:
                self._channel.bring(version, wanted)

        bring = bringing(found, ask)
        try:
            return open_images(found, version, self.job, len(found), bring), bring
        except CkptdError:
            self.shut(version)
            raise

    def shut(self, version: Version) -> None:
        """Nothing more of it is brought; what is mapped stays."""
        with self._lock:
            self._channel.shut(version)

    def open(self, version: Version) -> list[Opened]:
        """Every rank's image on this node, mapped; lost ones are decoded. Raises Unrecoverable, CorruptionError.

        `release` belongs after it: until all ranks of a node have opened a version, so that it is brought there once.
        """
        with self._lock:
            found = self._channel.gather(version)
            try:
                return open_images(found, version, self.job, len(found))
            except CkptdError:
                self._channel.release(version)
                raise

    def release(self, version: Version) -> None:
        """No more ranks of this process will open it; what is mapped stays."""
        with self._lock:
            self._channel.release(version)


def _fill(memory: tensors.Mapping, version: Version, layout: Layout, parts: Mapping[str, torch.Tensor]) -> None:
    """Write the header and these parts."""
    memory.memory[: layout.data_start] = layout.header_for(version)  # first: who reads an older image sees it
    targets = [memory.tensor(entry, layout.spans[entry.name]) for entry in layout.entries if entry.name in parts]
    if targets:
        torch._foreach_copy_(targets, [parts[entry.name] for entry in layout.entries if entry.name in parts])


_lives: dict[str, Life] = {}
_guard = threading.Lock()


def life_of(job: str | None) -> Life:
    """This process's life in a job (None: that of the settings); connects to the node's daemon, or starts one."""
    name = read(job=job).job
    with _guard:
        if name not in _lives:
            from ckptd.ckpt.embedded import connect  # it starts processes: load it only if needed

            _lives[name] = Life(connect(job=name), name)
        return _lives[name]


def running(job: str) -> Life:
    """The same beside a daemon that runs: nothing is started for a name that may be mistyped. Raises DaemonUnavailable."""
    settings = read(job=job)
    with _guard:
        if job not in _lives:
            client = Client(settings.where(), job)
            try:
                client.document("Status")
            except CkptdError:
                client.close()
                raise
            _lives[job] = Life(client, job)
        return _lives[job]
