"""`ckptd://` as a file system, without a daemon."""

from __future__ import annotations

import errno
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tests.fakes import FakeChannel
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

import ckptd.dcp
from ckptd.ckpt.errors import DaemonUnavailable
from ckptd.ckpt.model import Version
from ckptd.dcp import StorageWriter
from ckptd.integrations.dcp.life import Life
from ckptd.integrations.files import saving
from ckptd.integrations.filesystem import CkptdFileSystem

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
FILE = "job/step-5/rank-00000.safetensors"


@pytest.fixture
def channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeChannel:
    """A job with steps 5 and 6, and step 5 once more."""
    monkeypatch.setenv("CKPTD_JOB", "job")
    channel = FakeChannel(tmp_path)
    writer = StorageWriter(channel=channel)
    for step, value in ((5, 1.0), (6, 2.0), (5, 3.0)):
        ckptd.dcp.save({"a": torch.full((4,), value)}, checkpoint_id=step, storage_writer=writer, no_dist=True)

    def running(job: str) -> Life:
        if job != "job":
            raise DaemonUnavailable(f"no daemon of job {job}")
        return Life(channel, job)

    monkeypatch.setattr("ckptd.integrations.filesystem.running", running)
    monkeypatch.setattr("ckptd.integrations.files.saving.life_of", running)
    monkeypatch.setattr(saving, "_savings", {})
    return channel


@pytest.fixture
def fs(channel: FakeChannel) -> CkptdFileSystem:
    return CkptdFileSystem(skip_instance_cache=True)


def test_jobs_steps_and_images_are_listed(fs: CkptdFileSystem) -> None:
    """As directories and files, from the root on."""
    assert fs.ls("ckptd://", detail=False) == ["job"]
    assert fs.ls("ckptd://job/", detail=False) == ["job/step-5", "job/step-6"]
    assert fs.ls("ckptd://job/step-5", detail=False) == [FILE]
    assert fs.find("ckptd://job") == [FILE, "job/step-6/rank-00000.safetensors"]
    assert fs.glob("job/*/rank-*") == [FILE, "job/step-6/rank-00000.safetensors"]
    assert fs.isdir("job/step-6")
    assert fs.isfile(FILE)
    assert not fs.exists("job/step-7")
    assert not fs.exists("other")


def test_a_file_is_the_image_byte_for_byte(fs: CkptdFileSystem, channel: FakeChannel, tmp_path: Path) -> None:
    """Whole, by ranges, by seeking, and copied to a disk; of the epochs of a step the newest, unless one is named."""
    image = channel.image(Version(2, 5)).read_bytes()
    assert fs.cat(f"ckptd://{FILE}") == image
    assert fs.size(FILE) == len(image)
    assert fs.cat_file(FILE, 10, 20) == image[10:20]
    assert fs.cat_file(FILE, -7) == image[-7:]
    with fs.open(FILE) as file:
        file.seek(4096)
        assert file.read(100) == image[4096:4196]
        assert file.read() == image[4196:]
    fs.get(FILE, str(tmp_path / "copy"))
    assert safetensors.torch.load_file(tmp_path / "copy")["a"].tolist() == [3, 3, 3, 3]
    assert safetensors.torch.load(fs.cat("job/step-5.e1/rank-00000.safetensors"))["a"].tolist() == [1, 1, 1, 1]


def test_a_step_that_is_copied_to_a_disk_loads_without_ckptd(fs: CkptdFileSystem, tmp_path: Path) -> None:
    """As docs/dcp.md says."""
    fs.get("ckptd://job/step-6", str(tmp_path / "step-6"), recursive=True)
    found = {"a": torch.zeros(4)}
    dcp_load(found, storage_reader=HuggingFaceStorageReader(str(tmp_path / "step-6")))
    assert found["a"].tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize(
    "path", ["job/..", "job/../job/step-5", "job/step-5/..", "job/step-5/rank-00001.safetensors", "job/step-5/../" + FILE,
             "job/step-5/rank-0.safetensors", "job/step-05x", "../job", FILE + "/x", "job/.metadata"],
)  # fmt: skip
def test_other_names_are_not_there(fs: CkptdFileSystem, path: str) -> None:
    """No name leads out of a step, or to a file of another kind."""
    with pytest.raises(FileNotFoundError):
        fs.cat_file(path)
    with pytest.raises(FileNotFoundError):
        fs.ls(path)


def test_images_and_steps_cannot_be_written_or_removed(fs: CkptdFileSystem, tmp_path: Path) -> None:
    """Nothing pretends to have written; what is refused says what to do."""
    (tmp_path / "file").write_text("text")
    attempts: list[Any] = [
        lambda: fs.pipe_file("job/step-5/x", b"1"), lambda: fs.rm_file(FILE), lambda: fs.rmdir("job/step-5"),
        lambda: fs.cp_file(FILE, "job/x"), lambda: fs.touch("job/x"), lambda: fs.put_file(str(tmp_path / "file"), "job/x"),
        lambda: fs.open(FILE, "r+b"), lambda: fs.open("job/step-9/x", "ab"), lambda: fs.rm("job/step-5", recursive=True),
        lambda: fs.open("job/step-9/rank-00000.safetensors", "wb"), lambda: fs.open("job/step-5.e1/x", "wb"),
        lambda: fs.open("job/step-9/../x", "wb"), lambda: fs.open("../step-9/x", "wb"), lambda: fs.mkdir("job/last"),
        lambda: fs.open("job/step-9/__0.metadata.tmp", "wb"), lambda: fs.rm(FILE), lambda: fs.mv(FILE, "job/step-9/x"),
    ]  # fmt: skip
    for attempt in attempts:
        with pytest.raises(OSError, match=re.escape("write files below ckptd://job/step-12/")) as raised:
            attempt()
        assert raised.value.errno == errno.EROFS
    assert fs.find("job") == [FILE, "job/step-6/rank-00000.safetensors"]


def test_a_step_that_makes_way_while_it_is_read_is_an_error(fs: CkptdFileSystem, channel: FakeChannel) -> None:
    """A later capture into the same memory is noticed, whatever the bytes were."""
    with fs.open(FILE) as file:
        file.read(10)
        newer = channel.image(Version(1, 6)).read_bytes()
        with channel.image(Version(2, 5)).open("r+b") as slot:
            slot.write(newer)
        with pytest.raises(OSError, match="made way for a newer one") as raised:
            file.read(10)
    assert raised.value.errno == errno.ESTALE


def test_the_entry_point_names_the_class() -> None:
    """What fsspec and stock DCP look up for ckptd://."""
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    found = re.search(r'^\[project.entry-points."fsspec.specs"\]\nckptd = "([\w.]+)\.(\w+)"$', project, re.MULTILINE)
    assert found is not None
    assert getattr(import_module(found[1]), found[2]) is CkptdFileSystem
