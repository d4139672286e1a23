"""One process's part in the saves of files to a job: what has been written and is not committed, and the commits."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.model import Version
from ckptd.integrations.dcp.life import Life, life_of
from ckptd.integrations.dcp.names import Address
from ckptd.integrations.files.images import files_of, packed
from ckptd.integrations.files.names import METADATA
from ckptd.integrations.files.together import Calls
from ckptd.integrations.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Terms:
    """What a commit waits for."""

    level: str
    """`captured`, `sealed` or `persisted`."""
    timeout_s: float


@dataclass(slots=True)
class Draft:
    """The files of a save by DCP that this rank has written so far."""

    step: int
    files: dict[str, memoryview] = field(default_factory=dict)
    calls: Calls | None = None
    """Where there are several ranks."""
    ended: threading.Event = field(default_factory=threading.Event)


class Saving:
    """There is one for each job in a process. One save at a time: another that begins ends the one before."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._lock = threading.RLock()
        self._draft = Draft(-1)

    def begin(self, step: int, terms: Terms) -> None:
        """The step's directory is made: forget what an earlier save has left; where rank 0 says when to commit, listen."""
        ranks = Ranks.detect()
        draft = Draft(step, calls=Calls(self._job, step) if ranks.world > 1 else None)
        with self._lock:
            self._draft.ended.set()
            self._draft = draft
        if draft.calls is not None and ranks.rank:
            number = draft.calls.made + 1
            threading.Thread(
                target=draft.calls.answer, name="ckptd-files", daemon=True,
                args=(number, lambda epoch: self._follow(draft, epoch, ranks, terms), draft.ended, f"rank {ranks.rank}"),
            ).start()  # fmt: skip

    def add(self, step: int, name: str, content: memoryview, terms: Terms) -> None:
        """One file of a save by DCP is written. It waits for `.metadata`."""
        if self._draft.step != step:
            self.begin(step, terms)
        self._draft.files[name] = content

    def waiting(self, step: int) -> dict[str, memoryview]:
        """The files of the step that are not committed yet."""
        return self._draft.files if self._draft.step == step else {}

    def finish(self, step: int, metadata: memoryview, terms: Terms) -> None:
        """`.metadata` is there: commit every rank's files as the step. Raises CkptdError; then nothing is saved."""
        ranks = Ranks.detect()
        if ranks.rank:
            raise UsageError(f"rank {ranks.rank} wrote .metadata, expected rank 0 of the default process group to")
        with self._lock:
            draft = self._draft if self._draft.step == step else Draft(step)
            self._draft = Draft(-1)
            files = {name: content for name, content in draft.files.items() if name != f"{METADATA}.tmp"}
            life = life_of(self._job)
            version = life.give(step, ranks.world)
            if ranks.world > 1:
                calls = draft.calls or Calls(self._job, step)
                calls.call(version.epoch, ranks.world - 1, terms.timeout_s)
            self._put(life, version, files | {METADATA: metadata}, ranks, terms)
            life.finish(version, terms.level, terms.timeout_s)

    def change(
        self, step: int, put: Mapping[str, memoryview], remove: Collection[str], terms: Terms
    ) -> None:  # fmt: skip
        """Commit the step with these files beside those that it has, and without those. Raises CkptdError.

        By rank 0 alone: the other ranks have no part in such a snapshot.
        """
        refuse_rank()
        with self._lock:
            life = life_of(self._job)
            kept = {
                name: memoryview(bytearray(content)) for name, content in _contents(life, step, {*put, *remove}).items()
            }
            version = life.give(step, 1)
            self._put(life, version, kept | dict(put), Ranks(), terms)
            life.finish(version, terms.level, terms.timeout_s)

    def _follow(self, draft: Draft, epoch: int, ranks: Ranks, terms: Terms) -> None:
        """As another rank than the first, when that has called."""
        self._put(life_of(self._job), Version(epoch, draft.step), draft.files, ranks, terms)
        draft.files = {}

    def _put(self, life: Life, version: Version, files: Mapping[str, memoryview], ranks: Ranks, terms: Terms) -> None:
        life.enter(ranks.rank, ranks.world, version, version.step)
        layout, parts = packed(files, job=self._job, rank=ranks.rank, world=ranks.world)
        life.put(version, layout, parts, terms.timeout_s)


def refuse_rank() -> None:
    """Raise UsageError where another rank than the first would write a file that is no part of a save by DCP."""
    ranks = Ranks.detect()
    if ranks.rank:
        raise UsageError(
            f"rank {ranks.rank} of {ranks.world} would write a file by itself: only of saves by torch.distributed.checkpoint"
            " it is known when all files are there; write it on rank 0, or save by DCP"
        )


def _contents(life: Life, step: int, without: Collection[str]) -> dict[str, bytes]:
    """The files of the step as it is in memory or on storage. Raises UsageError where others have a part in it."""
    version = life.newest(Address(life.job, step))
    if version is None:
        return {}
    images = life.open(version)
    try:
        files = files_of(images)
        if files is None or len(images) > 1:
            what = "tensors, of a Checkpointer or ckptd.dcp" if files is None else f"the files of {len(images)} ranks"
            raise UsageError(f"{version} is {what}: no single file of it can be changed; write to another step")
        return {name: stored.read() for name, stored in files.items() if name not in without}
    finally:
        life.release(version)


_savings: dict[str, Saving] = {}
_guard = threading.Lock()


def saving_of(job: str) -> Saving:
    """This process's part in a job. Nothing is asked or started yet."""
    with _guard:
        return _savings.setdefault(job, Saving(job))
