"""Writing to `ckptd://`, by one process and without a daemon."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.registry import _registry
from tests.fakes import FakeChannel
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

import ckptd.dcp
from ckptd.ckpt.errors import CorruptionError, MemoryBudgetError, StateError, UsageError
from ckptd.ckpt.image import PAGE, Layout, parse
from ckptd.ckpt.model import Version
from ckptd.integrations.dcp.life import Life
from ckptd.integrations.files import images, saving
from ckptd.integrations.files.names import PREFIX, UNIT
from ckptd.integrations.filesystem import CkptdFileSystem
from ckptd.integrations.images import Opened
from ckptd.integrations.tensors import Mapping, entry

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.distributed is disabled", "ignore:Detected an existing checkpoint"
)


@pytest.fixture
def channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeChannel:
    channel = FakeChannel(tmp_path)
    life = Life(channel, "job")
    monkeypatch.setenv("CKPTD_JOB", "job")
    monkeypatch.setattr("ckptd.integrations.filesystem.running", lambda job: life)
    monkeypatch.setattr("ckptd.integrations.files.saving.life_of", lambda job: life)
    monkeypatch.setattr(saving, "_savings", {})
    monkeypatch.setitem(_registry, "ckptd", CkptdFileSystem)
    CkptdFileSystem.clear_instance_cache()
    return channel


@pytest.fixture
def fs(channel: FakeChannel) -> CkptdFileSystem:
    return CkptdFileSystem()


def test_a_closed_file_is_a_snapshot_of_its_step(fs: CkptdFileSystem, channel: FakeChannel) -> None:
    """`torch.save` to a file object; another file of the step leaves the first one where it is."""
    with fsspec.open("ckptd://job/step-5/model.pt", "wb") as file:
        torch.save({"a": torch.arange(5)}, file)
    assert channel.recorded() == [Version(1, 5)]
    with fsspec.open("ckptd://job/step-5/more/notes.txt", "w") as file:
        file.write("text")
    assert fs.find("job") == ["job/step-5/model.pt", "job/step-5/more/notes.txt"]
    assert [entry["type"] for entry in fs.ls("job/step-5")] == ["file", "directory"]
    with fsspec.open("ckptd://job/step-5/model.pt") as file:
        assert torch.load(file)["a"].tolist() == [0, 1, 2, 3, 4]
    assert fs.cat("job/step-5/more/notes.txt") == b"text"
    assert channel.recorded()[-1] == Version(2, 5)


def test_the_image_is_a_safetensors_file_of_whole_mib(fs: CkptdFileSystem, channel: FakeChannel) -> None:
    """What is persisted can be read without ckptd, and a few bytes more fit into the same slot."""
    import safetensors.torch

    for step, size in ((1, 100), (2, 120)):
        fs.pipe_file(f"job/step-{step}/x", bytes([step]) * size)
        found = safetensors.torch.load_file(channel.image(Version(1, step)))
        assert bytes(found[f"{PREFIX}x"].numpy()) == bytes([step]) * size
    assert len(channel.reserved) == 1
    assert channel.reserved[0] % UNIT == channel.reserved[0] - UNIT


def test_a_transaction_is_one_snapshot_or_none(fs: CkptdFileSystem, channel: FakeChannel) -> None:
    """What is left by an exception was never written, with a transaction and without."""
    with fs.transaction:
        fs.pipe({"job/step-5/a": b"1", "job/step-5/b": b"22"})
        with fs.open("job/step-5/c", "wb") as file:
            file.write(b"333")
        assert not fs.exists("job/step-5")
    assert channel.recorded() == [Version(1, 5)]
    assert fs.du("job/step-5", total=False) == {"job/step-5/a": 1, "job/step-5/b": 2, "job/step-5/c": 3}

    def fail(path: str) -> None:
        with fs.open(path, "wb") as file:
            file.write(b"half")
            raise ValueError(path)

    def fail_together() -> None:
        with fs.transaction:
            fs.pipe_file("job/step-5/a", b"new")
            fail("job/step-5/e")

    with pytest.raises(ValueError, match="d"):
        fail("job/step-5/d")
    with pytest.raises(ValueError, match="e"):
        fail_together()
    fs.open("job/step-5/f", "wb").write(b"forgotten")
    assert channel.recorded() == [Version(1, 5)]
    assert fs.cat("job/step-5/a") == b"1"


def test_files_are_renamed_and_removed_in_one_commit(fs: CkptdFileSystem, channel: FakeChannel) -> None:
    """There is no moment at which the step has both names or none."""
    fs.pipe({"job/step-5/a": b"1", "job/step-5/d/b": b"2", "job/step-5/d/c": b""})
    fs.mv("job/step-5/a", "job/step-5/z")
    assert len(channel.recorded()) == 2
    fs.rm("job/step-5/d", recursive=True)
    assert len(channel.recorded()) == 3
    assert fs.find("job/step-5") == ["job/step-5/z"]
    fs.mv("job/step-5/z", "job/step-6/z")
    assert (fs.cat("job/step-6/z"), fs.find("job/step-5")) == (b"1", [])
    with pytest.raises(FileNotFoundError):
        fs.rm("job/step-6/a")


def test_stock_dcp_saves_and_loads_by_url(fs: CkptdFileSystem, channel: FakeChannel) -> None:
    """Nothing can be seen of a save before its `.metadata`; under the id of another one it replaces that as a whole."""
    for value in (1.0, 2.0):
        dcp_save({"a": torch.full((4,), value), "n": value}, checkpoint_id="ckptd://job/step-5")
        state: dict[str, Any] = {"a": torch.zeros(4), "n": 0.0}
        dcp_load(state, checkpoint_id="ckptd://job/step-5")
        assert (state["a"].tolist(), state["n"]) == ([value] * 4, value)
    assert channel.recorded() == [Version(1, 5), Version(2, 5)]
    with fs.open("job/step-5/__0_0.distcp", "wb") as file:
        file.write(b"the file of a save that never ends")
    assert fs.size("job/step-5/__0_0.distcp") > 100
    with pytest.raises(FileNotFoundError, match="no save by DCP has written it"):
        fs.mv("job/step-5/.metadata.tmp", "job/step-5/.metadata")
    dcp_save({"b": torch.ones(1)}, checkpoint_id="ckptd://job/step-6")
    assert fs.find("job/step-6") == ["job/step-6/.metadata", "job/step-6/__0_0.distcp"]


def test_a_failed_save_changes_nothing_and_is_an_error(fs: CkptdFileSystem, channel: FakeChannel) -> None:
    """Of a file as of a save by DCP, whose step stays as it was."""
    dcp_save({"a": torch.ones(4)}, checkpoint_id="ckptd://job/step-5")
    channel.fail["begin"] = MemoryBudgetError("no room")
    with pytest.raises(CheckpointException, match="no room"):
        dcp_save({"a": torch.zeros(4)}, checkpoint_id="ckptd://job/step-5")
    with pytest.raises(OSError, match="no room") as raised:
        fs.pipe_file("job/step-6/x", b"1")
    assert raised.value.errno == errno.EIO
    channel.fail.clear()
    state = {"a": torch.zeros(4)}
    dcp_load(state, checkpoint_id="ckptd://job/step-5")
    assert state["a"].tolist() == [1, 1, 1, 1]


def test_every_rank_for_itself_is_refused(fs: CkptdFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of another rank than the first would be a snapshot in which nobody knows what belongs together."""
    monkeypatch.setattr("ckptd.integrations.ranks.dist.is_initialized", lambda: True)
    monkeypatch.setattr("ckptd.integrations.ranks.dist.get_rank", lambda: 3)
    monkeypatch.setattr("ckptd.integrations.ranks.dist.get_world_size", lambda: 8)
    with pytest.raises(OSError, match=r"rank 3 of 8 would write a file by itself.*write it on rank 0") as raised:
        fs.open("job/step-5/x", "wb")
    assert raised.value.errno == errno.EROFS


def test_a_step_of_files_is_no_checkpoint_of_tensors(fs: CkptdFileSystem, channel: FakeChannel) -> None:
    """`ckptd.dcp` and a Checkpointer say what it is instead of loading something else."""
    fs.pipe_file("job/step-5/x", b"1")
    with pytest.raises(StateError, match="is files that were written to ckptd://"):
        ckptd.dcp.load({"a": torch.zeros(1)}, storage_reader=ckptd.dcp.StorageReader(channel=channel))


@pytest.mark.parametrize("name", ["ckptd.files/../x", "ckptd.files//x", "ckptd.files/", "x", "ckptd.files/a/./b"])
def test_names_in_a_forged_image_lead_nowhere(tmp_path: Path, name: str) -> None:
    """Names come from storage, too: each is checked before anybody uses it as a path."""
    layout, _ = images.packed({"a": memoryview(b"1")}, job="job", rank=0, world=1)
    forged = [entry(name, torch.zeros(1, dtype=torch.uint8)), *layout.entries]
    made = Layout.of(forged, job="job", rank=0, world=1)
    with pytest.raises(CorruptionError, match="image of files"):
        images.files_of([opened(tmp_path, made)])


def test_images_that_disagree_are_corrupt(tmp_path: Path) -> None:
    """Two ranks with one name, and files beside tensors."""
    first = opened(tmp_path, images.packed({"a": memoryview(b"1")}, job="job", rank=0, world=2)[0])
    with pytest.raises(CorruptionError, match="two ranks wrote 'a'"):
        images.files_of([first, first])
    tensors = opened(tmp_path, Layout.of([entry("w", torch.zeros(1))], job="job", rank=1, world=2))
    with pytest.raises(CorruptionError, match="1 of 2 images are files"):
        images.files_of([first, tensors])
    assert images.files_of([tensors]) is None


def test_what_a_commit_waits_for_is_checked(channel: FakeChannel) -> None:
    """Named as they are given."""
    with pytest.raises(UsageError, match="level='written'"):
        CkptdFileSystem(level="written")
    with pytest.raises(UsageError, match="timeout_s=0"):
        CkptdFileSystem(timeout_s=0)


def opened(folder: Path, layout: Layout) -> Opened:
    """An image of zeros."""
    path = folder / f"image-{len(list(folder.iterdir()))}"
    path.write_bytes(layout.header_for(Version(1, 1)).ljust(layout.size, b"\0"))
    mapping = Mapping(path, layout.size, write=False)
    return Opened(parse(memoryview(mapping.memory)), mapping, mapping.memory[:PAGE])
