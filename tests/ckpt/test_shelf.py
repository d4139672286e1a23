"""A storage root looked at without daemons: what is whole is told from what is broken, unfinished or somebody else's."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptd.ckpt import disk, manifest
from ckptd.ckpt.errors import StorageError
from ckptd.ckpt.model import Image, Version
from ckptd.ckpt.pieces import digest_of, sums_of
from ckptd.ckpt.shelf_files import FileShelf
from ckptd.ckpt.storage import Storage

JOB = "gpt"


def persist(root: Path, *steps: int, job: str = JOB, epoch: int = 1, size: int = 1000) -> list[Path]:
    """Steps of two ranks, published; their directories."""
    storage = Storage(root, job)
    paths = []
    for step in steps:
        version = Version(epoch, step)
        data = [bytes([rank]) * size for rank in range(2)]
        images = [Image(rank, size, digest_of(sums_of(raw), size)) for rank, raw in enumerate(data)]
        for image, raw in zip(images, data, strict=True):
            storage.write(version, image, memoryview(raw))
        storage.publish(version, images)
        paths.append(Path(storage.where) / manifest.dir_name(version))
    return paths


def begun(root: Path, step: int, size: int = 500, name: str = "writing", job: str = JOB) -> Path:
    """A step that is being written."""
    path = root / job / f".{name}-{manifest.dir_name(Version(1, step))}"
    path.mkdir(parents=True)
    (path / "rank-00000.safetensors.0a.tmp").write_bytes(bytes(size))
    return path


def test_steps_are_listed_with_size_ranks_and_age(tmp_path: Path) -> None:
    """Newest first: by epoch, then by step."""
    (path, _) = persist(tmp_path, 10, 20)
    persist(tmp_path, 15, epoch=2)
    os.utime(path / "manifest.json", (1000.0, 1000.0))
    found = FileShelf(tmp_path).published(JOB)
    assert [(step.version.epoch, step.version.step) for step in found] == [(2, 15), (1, 20), (1, 10)]
    assert {(step.world, step.problem) for step in found} == {(2, "")}
    assert all(2000 < step.nbytes < 4000 for step in found)
    assert found[-1].written_at == 1000.0


def _cut(path: Path) -> None:
    os.truncate(path / "rank-00001.safetensors", 999)


def _link(path: Path) -> None:
    file = path / "rank-00001.safetensors"
    file.rename(path / "elsewhere")
    file.symlink_to("elsewhere")


def _renamed(path: Path) -> None:
    path.rename(path.with_name(manifest.dir_name(Version(1, 99))))


def _linked_whole(path: Path) -> None:
    path.rename(path.parent / "kept")
    path.symlink_to("kept")


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file is missing": (lambda path: (path / "rank-00001.safetensors").unlink(), "rank-00001.safetensors is missing"),
    "a file was cut": (_cut, "has 999 bytes, expected 1000"),
    "a file is a link": (_link, "rank-00001.safetensors is missing"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "cannot read"),
    "a damaged manifest": (lambda path: (path / "manifest.json").write_bytes(b"{"), "the step is not offered"),
    "another step's manifest": (_renamed, "renamed or mixed up"),
    "another job's step": (lambda path: path.rename(path.parents[1] / "other" / path.name), "belongs to job"),
    "a link to a step": (_linked_whole, "is no directory"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_broken_steps_say_why(tmp_path: Path, what: str) -> None:
    """Without opening an image."""
    (path,) = persist(tmp_path, 10)
    (tmp_path / "other").mkdir()
    hurt, message = BREAKS[what]
    hurt(path)
    (step,) = FileShelf(tmp_path).published("other" if "another job" in what else JOB)
    assert message in step.problem
    assert not step.kept(0.0).complete
    assert step.is_link == (what == "a link to a step")


def test_a_manifest_that_can_not_be_read_now_is_not_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ckptd gc` removes what is broken: a file server's bad moment must not cost a step."""
    persist(tmp_path, 10, 20)

    def read(path: Path, _: int) -> bytes:
        raise StorageError(f"cannot read {path}") from OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(disk, "read_small", read)
    with pytest.raises(StorageError, match="cannot read"):
        FileShelf(tmp_path).published(JOB)


def test_what_is_unfinished_is_told_by_when_it_was_touched(tmp_path: Path) -> None:
    """The newest of a directory and its files counts; files of dead writers in a published step are found too."""
    (published,) = persist(tmp_path, 10)
    (published / "rank-00000.safetensors.ff.tmp").write_bytes(bytes(7))
    writing, removing = begun(tmp_path, 20), begun(tmp_path, 5, name="removing")
    os.utime(removing / "rank-00000.safetensors.0a.tmp", (5000.0, 5000.0))
    os.utime(removing, (4000.0, 4000.0))
    found = {Path(item.where): item for item in FileShelf(tmp_path).leftovers(JOB)}
    assert set(found) == {writing, removing, published / "rank-00000.safetensors.ff.tmp"}
    assert found[removing].touched_at == 5000.0
    assert [found[writing].nbytes, found[removing].nbytes] == [500, 500]


def test_leftovers_are_discarded_and_links_are_not_followed(tmp_path: Path) -> None:
    """A directory with all that is in it, a file, one that is gone already; what a link names stays."""
    writing = begun(tmp_path, 20)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (writing / "link").symlink_to(tmp_path / "precious")
    (tmp_path / JOB / f".writing-{manifest.dir_name(Version(1, 21))}").symlink_to(tmp_path / "precious")
    shelf = FileShelf(tmp_path)
    found = shelf.leftovers(JOB)
    assert [Path(item.where) for item in found] == [writing]
    for _ in range(2):
        shelf.discard(found[0])
    assert (tmp_path / "precious" / "file").exists()
    assert [path.name for path in (tmp_path / JOB).iterdir()] == [f".writing-{manifest.dir_name(Version(1, 21))}"]


def test_jobs_are_what_has_steps(tmp_path: Path) -> None:
    """Other directories and files below the root are not."""
    persist(tmp_path, 1)
    begun(tmp_path, 1, job="starting")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert FileShelf(tmp_path).jobs() == [JOB, "starting"]


def test_a_root_or_job_that_is_not_there_is_said(tmp_path: Path) -> None:
    """It may be a mount that is missing, or a name mistyped: nothing is shown as empty."""
    with pytest.raises(StorageError, match="does not exist; is the storage mounted"):
        FileShelf(tmp_path / "nowhere").jobs()
    with pytest.raises(StorageError, match="does not exist"):
        FileShelf(tmp_path).published("gtp")
