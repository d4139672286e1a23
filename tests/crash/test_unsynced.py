"""A power cut at every step of persisting: what was published before is there, what is offered is whole, and all goes on."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptd.ckpt import disk
from ckptd.ckpt.errors import CkptdError
from ckptd.ckpt.model import Image, Version
from ckptd.ckpt.pieces import digest_of, sums_of
from ckptd.ckpt.storage import Storage
from tests.crash.unsynced import Disk, Recorder, Tree, lay_out

pytestmark = pytest.mark.slow
OLD, NEW = Version(1, 10), Version(1, 20)
SIZES = (3 * 4096 + 100, 700)
"""Bytes of the two ranks' images: one goes past the page cache and ends within a block, one is written the ordinary way."""


def payload(version: Version, rank: int) -> memoryview:
    """What a rank holds, on a page's boundary as a slot is."""
    pages = mmap.mmap(-1, SIZES[rank])
    pages[:] = bytes((version.step + rank + i) % 251 + 1 for i in range(SIZES[rank]))
    return memoryview(pages)


def no_sync(_: int) -> None:
    """Does nothing."""


def persist(storage: Storage, version: Version) -> None:
    images = []
    for rank in range(len(SIZES)):
        data = payload(version, rank)
        images.append(Image(rank, len(data), digest_of(sums_of(data), len(data))))
        storage.write(version, images[-1], data)
    storage.publish(version, images)


def loadable(storage: Storage) -> set[Version]:
    """The steps that are offered, each of which must be whole."""
    offered = set()
    for step in storage.steps()[0]:
        for rank in range(len(SIZES)):
            into = memoryview(bytearray(SIZES[rank]))
            storage.read(step, rank, into)
            assert into == payload(step.manifest.version, rank), (
                f"{step.path.name}: rank {rank} is not what was written"
            )
        offered.add(step.manifest.version)
    return offered


def attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Persist OLD, then NEW; cut the power after every step; return how many different states were looked at."""
    monkeypatch.setattr(disk, "CHUNK", 4096)
    recorder, marks = Recorder(tmp_path / "run"), []
    (tmp_path / "run").mkdir()
    with monkeypatch.context() as patch:
        recorder.install(patch)
        storage = Storage(tmp_path / "run" / "root", "job")
        for version in (OLD, NEW):
            persist(storage, version)
            marks.append((len(recorder.steps), version))
    state, seen = Disk(), set[tuple[int, Tree]]()
    for done, step in enumerate(recorder.steps, 1):
        state.do(*step)  # type: ignore[arg-type]
        published = {version for mark, version in marks if done >= mark}
        for name, tree in state.states():
            if (len(published), tree) in seen:  # an earlier cut may leave the same, and had as much to keep
                continue
            seen.add((len(published), tree))
            into = tmp_path / f"state-{len(seen)}"
            into.mkdir()
            lay_out(tree, into)
            survivor = Storage(into / "root", "job")
            where = f"cut after step {done}, {' '.join(map(str, step[:2]))}; {name}"
            try:
                offered = loadable(survivor)
            except CkptdError as error:
                raise AssertionError(f"{where}: a step is offered that can't be loaded: {error}") from error
            assert published <= offered, f"{where}: {published - offered} was published and is gone"
            with monkeypatch.context() as patch:
                patch.setattr("os.fsync", no_sync)  # nothing cuts this one
                persist(survivor, NEW)
            assert NEW in loadable(survivor), f"{where}: the step can't be persisted after the cut"
    return len(seen)


def test_every_cut_leaves_whole_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each primitive step, with every choice of what the disk had taken of what was not synced."""
    assert attack(tmp_path, monkeypatch) > 60


def forget_data(patch: pytest.MonkeyPatch) -> None:
    """Files get their names before their bytes are synced."""
    real = disk._write_buffered

    def unsynced(path: Path, data: memoryview, progress: Callable[[int], None] | None) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr("os.fsync", no_sync)
            real(path, data, progress)

    patch.setattr(disk, "_write_buffered", unsynced)
    patch.setattr(disk, "_write_direct", lambda *_: False)


def forget_names(patch: pytest.MonkeyPatch) -> None:
    """No directory is ever synced."""
    patch.setattr(disk, "sync_dir", lambda _: None)


def forget_order(patch: pytest.MonkeyPatch) -> None:
    """The manifest is committed before the images' names are durable: the last sync of the step's directory is missing."""
    real = disk.sync_dir
    patch.setattr(disk, "sync_dir", lambda path: None if path.name.startswith(".writing-") else real(path))


def forget_the_root(patch: pytest.MonkeyPatch) -> None:
    """Only the job's directory is synced, not the one that it was made in."""
    real = disk.sync_dir
    patch.setattr(disk, "sync_dir", lambda path: None if path.name == "root" else real(path))


@pytest.mark.parametrize("plant", [forget_data, forget_names, forget_order, forget_the_root])
def test_a_planted_bug_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """What the test above looks for is found where it is put in."""
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=r"published and is gone|can't be loaded|not what was written"):
        attack(tmp_path, monkeypatch)
