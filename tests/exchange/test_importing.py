"""What an import makes is a step like any other: persisted whole, restored by a Checkpointer or loaded by `ckptd.dcp`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.exchange.contents import KINDS, content_of_tensors, held, told
from tests.fakes import FakeChannel, bits, capture_to, restore_from
from torch import nn

import ckptd.dcp
from ckptd.ckpt import manifest
from ckptd.ckpt.client import Found
from ckptd.ckpt.errors import CkptdError, CorruptionError, StateError, StorageError, UsageError
from ckptd.ckpt.model import Version
from ckptd.ckpt.storage import Storage
from ckptd.dcp import StorageReader, StorageWriter
from ckptd.integrations import importing
from ckptd.integrations.exchange.images import images_of
from ckptd.integrations.exchange.progress import Teller
from ckptd.integrations.exchange.steps import content_of
from ckptd.integrations.exchange.writers import write
from ckptd.integrations.importing import import_step
from ckptd.integrations.ranks import Ranks

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
SOME = {"w": torch.randn(4, 3), "b": torch.randn(3).bfloat16()}


def bring(source: Path, root: Path, **asked: Any) -> dict[str, Any]:
    """Import into job "job"."""
    defaults = {"source": str(source), "storage": str(root), "job": "job", "step": None, "memory": None, "time_s": None}
    return import_step(defaults | asked)


def found_in(root: Path, version: Version) -> list[Found]:
    """The images of a persisted step, every byte held against its manifest."""
    storage = Storage(root, "job")
    (step,) = storage.steps()[0]
    assert step.manifest.version == version
    for image in step.manifest.images:
        storage.check(step, image.rank)
    return [
        Found(image.rank, step.path / manifest.file_name(image.rank), image.size, "own")
        for image in step.manifest.images
    ]


def channel_to(root: Path, folder: Path, version: Version) -> FakeChannel:
    """A daemon that has nothing but this storage."""
    channel = FakeChannel(folder)
    channel.world = len(found_in(root, version))
    (folder / f"version-{version.epoch}-{version.step}").symlink_to(root / "job" / manifest.dir_name(version))
    return channel


def test_a_model_from_elsewhere_is_loaded_by_dcp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every dtype, bit by bit, into a nested state; what does not fit is an error as with any other step."""
    monkeypatch.setenv("CKPTD_JOB", "job")
    (tmp_path / "in").mkdir()
    write("safetensors", tmp_path / "in", content_of_tensors(KINDS), shard_bytes=0, add=lambda _: None)
    made = bring(tmp_path / "in", tmp_path / "root", step=5)
    assert (made["loads"], made["step"], made["tensors"]) == ("ckptd.dcp.load", 5, len(KINDS))
    channel = channel_to(tmp_path / "root", tmp_path, Version(1, 5))
    state = {name: torch.zeros_like(tensor) for name, tensor in KINDS.items()}
    ckptd.dcp.load(state, storage_reader=StorageReader(5, channel=channel), no_dist=True)
    assert told(state) == told(KINDS)
    with pytest.raises(StateError, match="only in it"):
        ckptd.dcp.load({"bool": state["bool"]}, storage_reader=StorageReader(5, channel=channel), no_dist=True)


def test_a_step_of_dcp_goes_out_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a persisted step itself: tensors under their names, odd ones too, values and the ways to them."""
    monkeypatch.setenv("CKPTD_JOB", "job")
    (tmp_path / "first").mkdir()
    channel = FakeChannel(tmp_path / "first")
    state = {"model": {"w": SOME["w"], "ckptd.odd": SOME["b"]}, "lr": 0.25}
    ckptd.dcp.save(state, storage_writer=StorageWriter(3, channel=channel), no_dist=True)
    image = channel.image(Version(1, 3))
    (image.parent / "manifest.json").touch()
    assert bring(image.parent, tmp_path / "root")["step"] == 3
    again = channel_to(tmp_path / "root", tmp_path, Version(1, 3))
    found = {"model": {"w": torch.zeros(4, 3), "ckptd.odd": torch.zeros(3).bfloat16()}, "lr": 0.0}
    ckptd.dcp.load(found, storage_reader=StorageReader(3, channel=again), no_dist=True)
    assert found["lr"] == 0.25
    assert told(found["model"]) == told(state["model"])  # type: ignore[arg-type]


class Counter:
    """A Stateful with a tensor and a number."""

    def __init__(self) -> None:
        self.count, self.seen = 0, torch.zeros(2)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.seen = state["count"], state["seen"]


def training() -> dict[str, Any]:
    """A model whose optimizer has a state, and a counter."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    counter = Counter()
    counter.count, counter.seen = 7, torch.randn(2)
    return {"model": model, "optim": optimizer, "counter": counter}


def all_bits(objects: dict[str, Any]) -> dict[str, bytes]:
    found = {name: bits(tensor) for name, tensor in objects["model"].state_dict().items()}
    for key, values in objects["optim"].state_dict()["state"].items():
        found |= {f"{key}.{name}": bits(value) for name, value in values.items()}
    return found | {"seen": bits(objects["counter"].seen), "count": bytes([objects["counter"].count])}


@pytest.mark.parametrize("fmt", ["safetensors", "shards"])
@pytest.mark.parametrize("world", [1, 2])
def test_a_checkpointers_state_goes_out_and_starts_a_training(tmp_path: Path, fmt: str, world: int) -> None:
    """Model, optimizer, counters and random numbers of every rank, bit by bit, on as many ranks."""
    ranks = [training() for _ in range(world)]
    paths = []
    for rank, objects in enumerate(ranks):
        paths.append(tmp_path / f"rank-{rank}")
        capture_to(paths[-1], objects, Version(4, 30), ranks=Ranks(rank, world))
    (tmp_path / "out").mkdir()
    write("safetensors", tmp_path / "out", content_of(paths), shard_bytes=900 * (fmt == "shards"), add=lambda _: None)
    made = bring(tmp_path / "out", tmp_path / "root")
    assert (made["loads"], made["ranks"], made["step"]) == ("Checkpointer.restore", world, 30)
    found = found_in(tmp_path / "root", Version(1, 30))
    for rank, objects in enumerate(ranks):
        fresh = training()
        assert all_bits(fresh) != all_bits(objects)
        restore_from(found, fresh, Version(1, 30), ranks=Ranks(rank, world))
        assert all_bits(fresh) == all_bits(objects)


def test_a_job_that_has_steps_is_left_alone(tmp_path: Path) -> None:
    """An import never mixes with a training, nor with another import, nor with what is being written."""
    save_file(SOME, tmp_path / "m.safetensors")
    bring(tmp_path / "m.safetensors", tmp_path / "root")
    with pytest.raises(UsageError, match=r"has 1 steps on .* import into a job of a new name"):
        bring(tmp_path / "m.safetensors", tmp_path / "root", step=9)
    (tmp_path / "root" / "other" / ".writing-step-000000000004.e0001").mkdir(parents=True)
    with pytest.raises(UsageError, match="import into another job"):
        bring(tmp_path / "m.safetensors", tmp_path / "root", job="other")
    assert bring(tmp_path / "m.safetensors", tmp_path / "root", job="other", step=4)["step"] == 4


def test_nothing_is_left_of_an_import_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it fails while it writes or when it publishes."""
    save_file(SOME, tmp_path / "m.safetensors")

    def fail(*_: object) -> None:
        raise StorageError("the disk is gone")

    for place, name in ((Storage, "publish"), (Teller, "add")):
        with monkeypatch.context() as patched:
            patched.setattr(place, name, fail)
            with pytest.raises(StorageError, match="the disk is gone"):
                bring(tmp_path / "m.safetensors", tmp_path / "root")
        assert list((tmp_path / "root" / "job").iterdir()) == []


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no directory is made."""
    save_file(SOME, tmp_path / "m.safetensors")

    def none(*_: object) -> None:
        raise StorageError("too little")

    monkeypatch.setattr(importing, "check_space", none)
    with pytest.raises(StorageError, match="too little"):
        bring(tmp_path / "m.safetensors", tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_somebody_elses_step_of_the_same_name_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another import has published in the meantime, this one does not claim that step for itself."""
    save_file(SOME, tmp_path / "m.safetensors")
    save_file({"other": torch.ones(1)}, tmp_path / "n.safetensors")
    bring(tmp_path / "n.safetensors", tmp_path / "root")
    monkeypatch.setattr(importing, "check_new", lambda *_: None)
    with pytest.raises(StorageError, match="somebody else wrote one of that name"):
        bring(tmp_path / "m.safetensors", tmp_path / "root")


DOCUMENT = torch.frombuffer(bytearray(b'{"rng":{}}'), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({"ckptd.state.rank-00001": DOCUMENT}, CorruptionError, "expected that of all ranks from 0 on"),
        ({"ckptd.state.rank-00000": DOCUMENT, "rank-00002.w": torch.ones(1)}, CorruptionError, "not among the 1"),
        ({"ckptd.state.rank-00000": torch.ones(3)}, CorruptionError, "expected bytes of JSON"),
        ({"ckptd.state.rank-00000": DOCUMENT[1:]}, CorruptionError, "is not readable"),
        ({"ckptd.state.rank-00000": DOCUMENT}, UsageError, "add --step"),
        ({}, StateError, "there is nothing in it"),
    ],
)
def test_half_a_state_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], error: type[CkptdError], message: str
) -> None:
    """Documents of some ranks, tensors of ranks without one, documents that are none, a state of an unknown step."""
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(error, match=message):
        bring(tmp_path / "m.safetensors", tmp_path / "root")


@pytest.mark.parametrize("step", [-1, 2**53])
def test_steps_are_numbers_that_a_manifest_can_hold(tmp_path: Path, step: int) -> None:
    """Others are wrong usage."""
    save_file(SOME, tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match="expected 0 to"):
        bring(tmp_path / "m.safetensors", tmp_path / "root", step=step)


def test_values_beside_a_checkpointers_state_are_refused() -> None:
    """No export writes both; half of it would be lost."""
    content = content_of_tensors({"ckptd.state.rank-00000": DOCUMENT})
    with pytest.raises(StateError, match="found values beside"):
        images_of(type(content)(content.tensors, {"lr": b"x"}), "job")


def test_a_step_on_storage_is_content(tmp_path: Path) -> None:
    """What an import has made can be exported again as it is."""
    save_file(SOME, tmp_path / "m.safetensors")
    bring(tmp_path / "m.safetensors", tmp_path / "root")
    (image,) = found_in(tmp_path / "root", Version(1, 0))
    assert held(content_of([image.path])) == told(SOME)
