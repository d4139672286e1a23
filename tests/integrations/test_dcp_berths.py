"""What `async_save` copies once: staged in a file that becomes the slot's, and copied as ever wherever that can't be."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cluster import daemon_here, shm_dir, until
from tests.fakes import FakeChannel
from tests.integrations.test_berths import is_held
from tests.integrations.test_dcp import load, same, state
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.state_dict_saver import async_save

import ckptd.dcp
from ckptd.ckpt.client import Client
from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import CkptdError, DaemonUnavailable, MemoryBudgetError
from ckptd.ckpt.image import parse
from ckptd.ckpt.model import Version
from ckptd.dcp import AsyncStager, StorageWriter

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
WAIT_S = 60.0


@pytest.fixture
def channel(tmp_path: Path) -> FakeChannel:
    return FakeChannel(tmp_path)


@pytest.fixture(autouse=True)
def _job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPTD_JOB", "job")


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of tensors that writers have copied since; what they write beside these are bytes, in whole pages."""
    found: list[int] = []
    copy = torch._foreach_copy_

    def counting(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
        found.extend(target.nbytes for target in targets if target.dtype != torch.uint8)
        copy(targets, sources)

    monkeypatch.setattr(torch, "_foreach_copy_", counting)
    return found


class Run:
    """A training process that saves by one stager and one writer."""

    def __init__(self, channel: FakeChannel | Client) -> None:
        self.stager = AsyncStager()
        self.writer = StorageWriter(channel=channel)

    def begin(self, what: dict[str, Any], step: int, **options: Any) -> Future[Metadata]:
        future = async_save(
            what, checkpoint_id=str(step), storage_writer=self.writer, async_stager=self.stager, no_dist=True, **options
        )
        assert isinstance(future, Future)
        return future

    def save(self, what: dict[str, Any], step: int, **options: Any) -> None:
        self.begin(what, step, **options).result(WAIT_S)


def plain_state(seed: int) -> dict[str, Any]:
    """Of whole tensors of several sizes of elements, and a value beside them."""
    torch.manual_seed(seed)
    layers = {f"layer.{at}": torch.randn(64, 33) for at in range(4)}
    return {"model": layers, "step": torch.tensor(float(seed)), "half": torch.randn(7).bfloat16(), "lr": 0.1 * seed}


def refill(live: dict[str, Any], seed: int) -> None:
    """Another update of the same tensors, which a training makes in place."""
    for name, value in plain_state(seed)["model"].items():
        live["model"][name].copy_(value)
    live["step"].fill_(float(seed))
    live["half"].copy_(plain_state(seed)["half"])
    live["lr"] = 0.1 * seed


def test_the_writer_copies_no_tensor(channel: FakeChannel, copied: list[int]) -> None:
    """From the second save on; what comes back is what each save held, though the state changed at once."""
    run, live = Run(channel), plain_state(0)
    for step in range(1, 5):
        refill(live, step)
        future = run.begin(live, step)
        refill(live, 99)
        future.result(WAIT_S)
        assert bool(copied) == (step == 1)
        copied.clear()
    for step in range(1, 5):
        found = plain_state(50)
        load(channel, found, step)
        assert same(found, plain_state(step))


def test_other_tensors_of_the_same_kind_go_to_the_same_places(channel: FakeChannel, copied: list[int]) -> None:
    """A state_dict that is made anew for each save, as a sharded one's is."""
    run = Run(channel)
    for step in range(1, 4):
        run.save(plain_state(step), step)
        assert bool(copied) == (step == 1)
        copied.clear()
    found = plain_state(50)
    load(channel, found)
    assert same(found, plain_state(3))


def test_the_image_is_the_same_as_one_that_was_copied(channel: FakeChannel) -> None:
    """Byte by byte but for the version in it: no reader has to know."""
    run = Run(channel)
    for step in (1, 2):
        run.save(plain_state(7), step)
    one, two = (channel.image(Version(1, step)).read_bytes() for step in (1, 2))
    assert parse(one).spans == parse(two).spans
    start = min(first for first, _ in parse(one).spans.values())
    assert one[start:] == two[start:]


def grown(live: dict[str, Any]) -> None:
    live["model"]["layer.1"] = torch.randn(65, 33)


def renamed(live: dict[str, Any]) -> None:
    live["model"]["zzz"] = live["model"].pop("layer.0")


def tied(live: dict[str, Any]) -> None:
    live["model"]["layer.1"] = live["model"]["layer.0"]


def turned(live: dict[str, Any]) -> None:
    live["model"]["layer.1"] = torch.randn(33, 64).T


def halved(live: dict[str, Any]) -> None:
    live["model"]["layer.2"] = torch.randn(128, 33)[64:]


def retyped(live: dict[str, Any]) -> None:
    live["model"]["layer.3"] = live["model"]["layer.3"].view(torch.int32)


def shuffled(live: dict[str, Any]) -> None:
    live["model"] = dict(reversed(live["model"].items()))


@pytest.mark.parametrize("change", [grown, renamed, tied, turned, halved, retyped, shuffled])
def test_a_state_that_changed_is_saved_as_it_is(channel: FakeChannel, change: Callable[[dict[str, Any]], None]) -> None:
    """Where tensors do not stand where the new image has them, they are copied; and back again."""
    run = Run(channel)
    run.save(plain_state(1), 1)
    for step, changes in ((2, True), (3, True), (4, False), (5, False)):
        what = plain_state(step)
        if changes:
            change(what)
        run.save(what, step)
        found = {**plain_state(50), "model": {name: torch.zeros_like(part) for name, part in what["model"].items()}}
        load(channel, found, step)
        assert same(found, what)


def test_every_kind_of_value_comes_back_equal(channel: FakeChannel) -> None:
    """Other strides, empty tensors, dtypes that are carried as bytes, names with a meaning."""
    run = Run(channel)
    for step in (1, 2, 3):
        run.save(state(step), step)
        found = state(50)
        load(channel, found, step)
        assert same(found, state(step))


def test_a_daemon_that_lends_nothing(channel: FakeChannel, copied: list[int]) -> None:
    """No memory for it, or a daemon that does not know how: saves are copied, as ever."""
    run = Run(channel)
    for step, error in enumerate(
        (MemoryBudgetError("full"), DaemonUnavailable("gone"), CkptdError("unimplemented")), 1
    ):
        channel.fail["lend"] = error
        run.save(plain_state(step), step)
        assert copied
        copied.clear()
        found = plain_state(50)
        load(channel, found, step)
        assert same(found, plain_state(step))


def test_a_lent_file_that_the_daemon_has_forgotten(channel: FakeChannel, copied: list[int]) -> None:
    """It was restarted, say: the slot has another file, and what was staged is copied there."""
    run = Run(channel)
    run.save(plain_state(1), 1)
    for path in channel.lent:
        path.unlink()
    channel.lent.clear()
    copied.clear()
    run.save(plain_state(2), 2)
    assert copied
    found = plain_state(50)
    load(channel, found, 2)
    assert same(found, plain_state(2))


def test_two_saves_in_flight_do_not_mix(channel: FakeChannel) -> None:
    """The second is staged while the first one's bytes are still to be committed, and changes none of them."""
    run, other = Run(channel), StorageWriter(channel=channel)
    run.save(plain_state(1), 1)
    with channel.held_up():
        first = run.begin(plain_state(2), 2)
        staged = run.stager.stage(plain_state(3))
        assert same(staged, plain_state(3))
    first.result(WAIT_S)
    ckptd.dcp.save(staged, checkpoint_id=3, storage_writer=other, no_dist=True)
    for step in (2, 3):
        found = plain_state(50)
        load(channel, found, step)
        assert same(found, plain_state(step))


class Fails(DefaultSavePlanner):
    """Notices a mistake when everything is staged."""

    def create_local_plan(self) -> SavePlan:
        raise ValueError("no such plan")


@pytest.fixture
def client(tmp_path: Path) -> Iterator[tuple[Client, Path]]:
    """Of a real daemon, and its segment directory."""
    with shm_dir() as folder:
        config = Config(job="job", run_dir=tmp_path / "run", segment_dir=folder / "s", slots=2).validate()
        with daemon_here(config):
            made = Client(config.run_dir, "job")
            yield made, config.segment_dir
            made.close()


def held_in(folder: Path) -> list[Path]:
    gc.collect()  # an exception that DCP raises is in a cycle with its frames
    return list(filter(is_held, folder.glob("*.safetensors")))


def test_saves_that_fail_give_their_memory_back(client: tuple[Client, Path], copied: list[int]) -> None:
    """A rank has the files of its slots and one more, after any number of saves that went well and that failed."""
    channel, folder = client
    run = Run(channel)
    for step in range(1, 9):
        copied.clear()
        if step in (3, 6):
            with pytest.raises(BaseException, match="no such plan"):  # DCP's is no Exception
                run.save(plain_state(step), step, planner=Fails())
            until(lambda: not held_in(folder), "nobody has a tensor of the save that failed")
        else:
            run.save(plain_state(step), step)
            assert bool(copied) == (step in (1, 4, 7))  # the first one, and those after a failure, had no file
        assert len(list(folder.glob("*.safetensors"))) <= 3
    found = plain_state(50)
    load(channel, found, 8)  # type: ignore[arg-type]
    assert same(found, plain_state(8))
