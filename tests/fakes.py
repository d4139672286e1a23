"""A Channel without a daemon, and captures without a Checkpointer: everything is a file below a directory."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from ckptd.ckpt.client import Attachment, Decision, Found, Slot, Stretch
from ckptd.ckpt.errors import CkptdError, StaleStepError
from ckptd.ckpt.image import parse
from ckptd.ckpt.model import Version
from ckptd.integrations.capture import Capture, Slots
from ckptd.integrations.copying import Copying
from ckptd.integrations.ranks import Ranks
from ckptd.integrations.restore import Restore
from ckptd.integrations.roles import Roles
from ckptd.integrations.snapshot import Snapshot
from ckptd.integrations.sources import Plan
from ckptd.integrations.state import TrainingState

ALONE = Ranks()


class FakeChannel:
    """Implements `ckptd.ckpt.client.Channel` for any number of processes.

    `fail[method]` is raised by that method; `full` grants no slots, `full_s` none before so many
    seconds, which nobody really waits; `lag_s` is the sealing lag; `hang` keeps `begin` waiting.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.fail: dict[str, CkptdError] = {}
        self.full = False
        self.full_s = 0.0
        self.lag_s: float | None = None
        self.hang: threading.Event | None = None
        self.calls: list[str] = []
        self.threads: set[str] = set()
        self.aborts: list[str] = []
        self.reserved: list[int] = []
        self.lent: list[Path] = []
        self.brought = 0
        self.rank = -1
        self.world = 0
        self.epoch = -1
        self._begun = Version(-1, -1)

    def attach(self, *, rank: int, world: int, local_world: int) -> Attachment:
        self._called("attach")
        self.rank, self.world = rank, world
        return Attachment(0, 1, 0)

    def decide(self, *, world: int, fresh: bool = False) -> Decision:
        self._called("decide")
        counter = self.directory / "epoch"
        epoch = int(counter.read_text()) + 1 if counter.exists() else 1
        counter.write_text(str(epoch))
        complete = [] if fresh else self.recorded()
        if not complete:
            return Decision(epoch, None, "none", "nothing was captured")
        files = sorted(self._folder(complete[-1]).glob("rank-*.safetensors"))
        return Decision(epoch, complete[-1], "own", "all ranks captured it", len(files))

    def join(self, epoch: int) -> None:
        self._called("join")
        self.epoch = epoch

    def gather(self, version: Version) -> list[Found]:
        self._called("gather")
        return self._images(version)

    def _images(self, version: Version) -> list[Found]:
        files = sorted(self._folder(version).glob("rank-*.safetensors"))
        return [Found(int(file.stem[5:]), file, file.stat().st_size, "own") for file in files]

    def newest_epoch(self) -> int:
        counter = self.directory / "epoch"
        return int(counter.read_text()) if counter.exists() else 0

    def restorable(self) -> list[Version]:
        self._called("restorable")
        return self.recorded()[::-1]

    def release(self, version: Version) -> None:
        self._called("release")

    def open(self, version: Version) -> list[Found]:
        """Where the ranks are those that captured it, all of it is here; else nothing can be read but what was brought."""
        self._called("open")
        images, found = self._images(version), []
        if len(images) == self.world:
            return images
        for image in images:
            path = self.directory / f"opened-{self.rank}-{image.rank}"
            path.write_bytes(b"\xaa" * image.size)
            found.append(Found(image.rank, path, image.size, "none"))
        return found

    def bring(self, version: Version, stretches: Sequence[Stretch]) -> None:
        self._called("bring")
        for part in stretches:
            content = self.image(version, part.rank).read_bytes()[part.first : part.last]
            with (self.directory / f"opened-{self.rank}-{part.rank}").open("r+b") as file:
                file.seek(part.first)
                file.write(content)
        self.brought += sum(part.last - part.first for part in stretches)

    def shut(self, version: Version) -> None:
        self._called("shut")

    def reserve(self, size: int, wait_s: float = 0.0) -> list[Path]:
        self._called("reserve")
        self.reserved.append(size)
        return []

    def lend(self, size: int) -> Path:
        """A file is lent once; which it is, is made known by `lent`."""
        self._called("lend")
        path = self.directory / f"lent-{self.rank}-{len(self.lent)}"
        path.write_bytes(b"\xaa" * size)
        self.lent.append(path)
        return path

    def begin(self, version: Version, size: int, wait_s: float = 0.0, lent: Path | None = None) -> Slot | None:
        self._called("begin")
        if self.hang is not None:
            self.hang.wait(30.0)
        if version <= self._begun:
            raise StaleStepError(f"{version} after {self._begun}")
        self._begun = version
        if self.full or self.full_s > wait_s:
            return None
        if lent in self.lent:
            return Slot(version.step % 2, lent, size, min(self.full_s, wait_s))
        path = self.directory / f"slot-{self.rank}-{version.step % 2}"
        if not path.exists() or path.stat().st_size != size:
            path.unlink(missing_ok=True)
            path.write_bytes(b"\xaa" * size)
        return Slot(version.step % 2, path, size, min(self.full_s, wait_s))

    def commit(self, slot: Slot, version: Version) -> None:
        self._called("commit")
        assert version.epoch == self.epoch
        folder = self._folder(version)
        folder.mkdir(exist_ok=True)
        shutil.copyfile(slot.path, folder / f".rank-{self.rank:05d}")
        (folder / f".rank-{self.rank:05d}").rename(folder / f"rank-{self.rank:05d}.safetensors")

    def abort(self, slot: Slot, version: Version, reason: str) -> None:
        self._called("abort")
        self.aborts.append(reason)

    def persist(self, version: Version) -> bool:
        self._called("persist")
        return True

    def sealing_lag_s(self) -> float | None:
        return self.lag_s

    def wait(self, version: Version, level: str, timeout_s: float) -> str:
        self._called("wait")
        return level

    def close(self) -> None:
        self._called("close")

    @contextlib.contextmanager
    def held_up(self) -> Iterator[None]:
        """Inside, `begin` waits, so that nothing is copied."""
        self.hang = threading.Event()
        try:
            yield
        finally:
            self.hang.set()

    def recorded(self) -> list[Version]:
        """The versions that every rank committed, oldest first."""
        found = []
        for folder in self.directory.glob("version-*"):
            epoch, step = folder.name.split("-")[1:]
            files = sorted(folder.glob("rank-*.safetensors"))
            if files and len(files) == parse(files[0].read_bytes()).world:
                found.append(Version(int(epoch), int(step)))
        return sorted(found)

    def image(self, version: Version, rank: int = 0) -> Path:
        """The file of one rank's recorded image."""
        return self._folder(version) / f"rank-{rank:05d}.safetensors"

    def _folder(self, version: Version) -> Path:
        return self.directory / f"version-{version.epoch}-{version.step}"

    def _called(self, method: str) -> None:
        self.calls.append(method)
        self.threads.add(threading.current_thread().name)
        if method in self.fail:
            raise self.fail[method]


def capture_to(
    path: Path, objects: Mapping[str, object], version: Version, *, ranks: Ranks = ALONE, job: str = "job"
) -> Found:
    """Write the image of some objects to a file, without any Checkpointer or thread."""
    state = TrainingState(objects, ranks.rank)
    leaves = state.lazy()
    eager, document = state.eager()
    plan = Plan(leaves, eager, len(document), job=job, ranks=ranks)
    path.write_bytes(b"\xaa" * plan.layout.size)
    capture = Capture(version, plan, Roles(lazy=tuple(plan.sources)), [], list(eager.values()), document)
    Slots().fill(Slot(0, path, plan.layout.size), capture, Copying())
    return Found(ranks.rank, path, plan.layout.size, "own")


def restore_from(
    found: Sequence[Found], objects: Mapping[str, object], version: Version, *, ranks: Ranks = ALONE, job: str = "job"
) -> None:
    """Bring such images, one of each rank that captured the version, back into objects."""
    Restore(TrainingState(objects, ranks.rank), Snapshot(found, version, job, len(found)), ranks).apply()


def bits(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor's elements in row-major order."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
