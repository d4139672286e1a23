"""torch.distributed.checkpoint on the memory tier, in one process and without a daemon."""

from __future__ import annotations

import gc
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes import FakeChannel
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

import ckptd.dcp
from ckptd.ckpt.errors import CkptdError, StateError, Unrecoverable, UsageError
from ckptd.ckpt.model import Version
from ckptd.dcp import AsyncStager, LoadPlanner, StorageReader, StorageWriter
from ckptd.integrations.checkpointer import Checkpointer
from ckptd.integrations.exchange.steps import content_of

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def channel(tmp_path: Path) -> FakeChannel:
    return FakeChannel(tmp_path)


@pytest.fixture(autouse=True)
def _job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPTD_JOB", "job")


def state(seed: int) -> dict[str, Any]:
    """All kinds of values that a state_dict may have, at two levels."""
    torch.manual_seed(seed)
    return {
        "model": {
            "weight": torch.randn(5, 7), "half": torch.randn(3).bfloat16(), "scalar": torch.tensor(float(seed)),
            "empty": torch.zeros(0, 4), "wide": torch.randn(2, 3, dtype=torch.complex128), "turned": torch.randn(4, 6).T,
            "ckptd.odd": torch.randn(2), "__metadata__": torch.randn(1),
        },
        "optim": {"lr": 0.1 * seed, "names": ["a", "b" * seed], "groups": [{"params": [torch.randn(2), seed]}]},
    }  # fmt: skip


def save(channel: FakeChannel, what: dict[str, Any], step: int, **options: Any) -> Metadata:
    return ckptd.dcp.save(what, storage_writer=StorageWriter(step, channel=channel), no_dist=True, **options)


def load(channel: FakeChannel, into: dict[str, Any], step: int | str | None = None, **options: Any) -> None:
    ckptd.dcp.load(into, storage_reader=StorageReader(step, channel=channel), no_dist=True, **options)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("planner", [LoadPlanner, DefaultLoadPlanner])
def test_every_kind_of_value_comes_back_equal(channel: FakeChannel, planner: type[DefaultLoadPlanner]) -> None:
    """Tensors of any dtype, shape and stride, and plain values, with our planner and with DCP's."""
    save(channel, state(1), 12)
    found = state(2)
    load(channel, found, planner=planner())
    assert same(found, state(1))


def test_stock_calls_take_writer_and_reader(channel: FakeChannel) -> None:
    """`dcp.save` and `dcp.load` themselves, under an id that only they are given."""
    dcp_save({"a": torch.ones(3)}, checkpoint_id="step-7", storage_writer=StorageWriter(channel=channel))
    found = {"a": torch.zeros(3)}
    dcp_load(found, checkpoint_id="step-7", storage_reader=StorageReader(channel=channel))
    assert found["a"].tolist() == [1, 1, 1]
    assert channel.recorded() == [Version(1, 7)]


def test_an_image_opens_without_ckptd(channel: FakeChannel) -> None:
    """What is persisted of such a step is what stock DCP's safetensors reader takes, and what `ckptd export` writes out."""
    save(channel, {"model": {"weight": torch.arange(6.0).view(2, 3)}}, 1)
    found = {"model.weight": torch.zeros(2, 3)}
    dcp_load(found, storage_reader=HuggingFaceStorageReader(str(channel.image(Version(1, 1)).parent)))
    assert found["model.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    content = content_of([channel.image(Version(1, 1))])
    (weight,) = content.tensors
    assert (weight.name, content.step) == ("model.weight", 1)
    assert torch.cat(list(weight.bands())).equal(found["model.weight"])


def test_an_async_save_holds_what_was_there_when_it_was_called(channel: FakeChannel) -> None:
    """The state may change as soon as the call has returned, tensors on CPUs too."""
    live = state(1)
    future = ckptd.dcp.async_save(live, storage_writer=StorageWriter(3, channel=channel), no_dist=True)
    live["model"]["weight"].zero_()
    live["optim"]["lr"] = -1.0
    assert isinstance(future.result(), Metadata)
    found = state(2)
    load(channel, found)
    assert same(found, state(1))


def test_staged_memory_is_used_again_only_when_it_is_free() -> None:
    """A save that still runs keeps its copy; when it has ended, the next one copies to the same memory."""
    stager, live = AsyncStager(), torch.ones(1000)
    first = stager.stage({"a": [live]})
    second = stager.stage({"a": [live.mul_(2)]})
    assert first["a"][0][0] == 1
    assert second["a"][0][0] == 2
    place = first["a"][0].data_ptr()
    del first
    assert stager.stage({"a": [live]})["a"][0].data_ptr() == place
    stager.close()


def test_an_id_that_is_used_again_names_the_newer_save_alone(channel: FakeChannel) -> None:
    """Both are whole, in epochs of their own; also an older step than the last begins an epoch."""
    writer = StorageWriter(channel=channel)
    for step, value in ((5, 1.0), (6, 2.0), (5, 3.0)):
        ckptd.dcp.save({"a": torch.full((4,), value)}, checkpoint_id=step, storage_writer=writer, no_dist=True)
    assert channel.recorded() == [Version(1, 5), Version(1, 6), Version(2, 5)]
    for name, value in (("5", 3.0), ("step-5.e1", 1.0), ("ckptd://job/step-6", 2.0), (None, 3.0)):
        found = {"a": torch.zeros(4)}
        load(channel, found, name)
        assert found["a"].tolist() == [value] * 4


def test_a_save_after_one_that_failed_is_a_life_of_its_own(channel: FakeChannel) -> None:
    """Nothing of the failed one is taken for the later one's."""
    writer = StorageWriter(channel=channel)
    channel.fail["commit"] = CkptdError("the disk is on fire")
    with pytest.raises(CkptdError, match="on fire"):
        ckptd.dcp.save({"a": torch.ones(4)}, checkpoint_id=5, storage_writer=writer, no_dist=True)
    channel.fail.clear()
    ckptd.dcp.save({"a": torch.ones(4)}, checkpoint_id=6, storage_writer=writer, no_dist=True)
    assert channel.recorded() == [Version(2, 6)]


def test_processes_may_save_in_turns(tmp_path: Path) -> None:
    """As a trainer and DCP's process for it do: each begins a life of its own after the other's."""
    first, second = (StorageWriter(channel=FakeChannel(tmp_path)) for _ in range(2))
    for step, writer in ((1, first), (2, first), (3, second), (4, first)):
        ckptd.dcp.save({"a": torch.ones(4)}, checkpoint_id=step, storage_writer=writer, no_dist=True)
    found = FakeChannel(tmp_path)
    found.world = 1
    assert found.recorded() == [Version(1, 1), Version(1, 2), Version(2, 3), Version(3, 4)]


def test_a_checkpoint_exists_with_the_coordinators_commit_or_not_at_all(tmp_path: Path) -> None:
    """Two ranks: the save of step 1 breaks off after the other rank has written, and leaves nothing; step 2 is whole."""
    channels = [FakeChannel(tmp_path) for _ in range(2)]
    writers = [StorageWriter(channel=channel) for channel in channels]
    for step in (1, 2):
        planners, plans = [DefaultSavePlanner() for _ in writers], []
        for rank, (writer, planner) in enumerate(zip(writers, planners, strict=True)):
            writer.reset(step)
            planner.set_up_planner({f"a{rank}": torch.full((4,), float(step))}, is_coordinator=rank == 0)
            writer.set_up_storage_writer(rank == 0)
            plans.append(writer.prepare_local_plan(planner.create_local_plan()))
        plans, metadata = planners[0].create_global_plan(plans)
        plans = writers[0].prepare_global_plan(plans)
        order = (1,) if step == 1 else (1, 0)
        results = [writers[rank].write_data(plans[rank], planners[rank]).value() for rank in order]
        assert channels[0].recorded() == []
        if step == 2:
            writers[0].finish(metadata, results)
    assert channels[0].recorded() == [Version(2, 2)]
    found = {"a0": torch.zeros(4), "a1": torch.zeros(4)}
    load(channels[0], found)
    assert same(found, {"a0": torch.full((4,), 2.0), "a1": torch.full((4,), 2.0)})


def test_cached_plans_save_under_their_own_step(channel: FakeChannel) -> None:
    """A planner with plan caching brings an old plan; what is written belongs to the new step."""

    class Cached(DefaultSavePlanner):
        pass

    writer = StorageWriter(channel=channel)
    for step in (1, 2, 3):
        what = {"a": torch.full((4,), float(step))}
        planner = Cached(enable_plan_caching=True)
        ckptd.dcp.save(what, checkpoint_id=step, storage_writer=writer, planner=planner, no_dist=True)
    found = {"a": torch.zeros(4)}
    load(channel, found, 3)
    assert found["a"].tolist() == [3, 3, 3, 3]


# ---- what does not fit --------------------------------------------------------------------------------------


def test_everything_that_does_not_fit_is_named_and_nothing_is_loaded(channel: FakeChannel) -> None:
    """Missing and surplus names, shapes, dtypes and kinds, with their numbers."""
    save(channel, {"a": torch.ones(4), "b": torch.ones(2, 3), "c": torch.ones(2), "d": 5, "e": torch.ones(1)}, 1)
    found: dict[str, Any] = {
        "a": torch.zeros(4), "b": torch.zeros(3, 2), "c": torch.zeros(2).double(), "d": torch.zeros(1), "e": "text",
        **{f"new-{index:02d}": torch.zeros(1) for index in range(12)},
    }  # fmt: skip
    with pytest.raises(StateError) as raised:
        load(channel, found)
    text = str(raised.value)
    assert "12 missing in it: new-00" in text
    assert "new-09 and 2 more" in text
    assert "4 different: b (float32 [2, 3] in the checkpoint, float32 [3, 2] here)" in text
    for part in ("c (float32 [2] in the checkpoint, float64 [2] here)", "d (an object", "e (a tensor"):
        assert part in text
    assert found["a"].tolist() == [0, 0, 0, 0]


def test_surplus_names_are_refused_unless_that_is_asked_for(channel: FakeChannel) -> None:
    """DCP itself leaves them out silently."""
    save(channel, {"a": torch.ones(4), "b": torch.ones(1), "c": 3}, 1)
    found = {"a": torch.zeros(4)}
    with pytest.raises(StateError, match="2 only in it: b, c"):
        load(channel, found)
    assert found["a"].tolist() == [0, 0, 0, 0]
    load(channel, found, planner=LoadPlanner(extra="ignore"))
    assert found["a"].tolist() == [1, 1, 1, 1]


class HalfSaved(DefaultSavePlanner):
    """Saves the first half of every tensor, and says nothing."""

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        for item in plan.items:
            assert item.tensor_data is not None
            item.tensor_data.chunk.sizes = torch.Size([2])
        return plan

    def transform_object(self, write_item: Any, object: Any) -> Any:  # noqa: A002 - DCP's name
        return object[:2]


class HalfLoaded(DefaultLoadPlanner):
    """Asks for the first half of every tensor."""

    def create_local_plan(self) -> LoadPlan:
        plan = super().create_local_plan()
        for item in plan.items:
            object.__setattr__(item, "lengths", torch.Size([2]))
        return plan


def test_a_save_with_holes_is_refused(channel: FakeChannel) -> None:
    """DCP would load it and leave the rest as it was."""
    with pytest.raises(
        StateError, match=re.escape("a: the planner had 2 elements written in 1 parts, expected each of the 4")
    ):
        save(channel, {"a": torch.ones(4)}, 1, planner=HalfSaved())
    assert channel.recorded() == []


def test_a_load_with_holes_is_refused(channel: FakeChannel) -> None:
    """With any planner that tells what its destinations are; nothing is written."""
    save(channel, {"a": torch.ones(4), "b": torch.ones(2)}, 1)
    found = {"a": torch.zeros(4), "b": torch.zeros(2)}
    with pytest.raises(StateError, match="leaves elements of 1 tensors unwritten, or writes some twice: a;"):
        load(channel, found, planner=HalfLoaded())
    assert found["b"].tolist() == [0, 0]


def test_a_checkpointers_step_and_one_of_dcp_are_told_apart(channel: FakeChannel) -> None:
    """Each says who can read it."""
    model = torch.nn.Linear(2, 2)
    save(channel, {"model": model.state_dict()}, 1)
    with (
        Checkpointer(job="job", channel=channel, model=model) as ck,
        pytest.raises(StateError, match=r"ckptd\.dcp\.load"),
    ):
        ck.restore()
    with Checkpointer(job="job", channel=channel, on_error="raise", model=model) as ck:
        ck.step(2)
    with pytest.raises(StateError, match="restore it with the Checkpointer"):
        load(channel, {"model": model.state_dict()}, 2)


def test_what_is_not_ours_to_raise_comes_as_an_exception_too(
    channel: FakeChannel, caplog: pytest.LogCaptureFixture
) -> None:
    """A planner's own error ends a load with its text, and with every rank's traceback in the log."""

    class Broken(DefaultLoadPlanner):
        def create_local_plan(self) -> LoadPlan:
            raise ZeroDivisionError("no plan")

    save(channel, {"a": torch.ones(4)}, 1)
    with pytest.raises(Unrecoverable, match="1 ranks failed, rank 0 first: ZeroDivisionError: no plan"):
        load(channel, {"a": torch.ones(4)}, planner=Broken())
    assert "create_local_plan" in caplog.text


def test_an_error_that_was_handled_is_gone(channel: FakeChannel) -> None:
    """It would hold DCP's frames, and so the process group, which must not outlive the interpreter's end."""
    save(channel, {"a": torch.ones(4)}, 1)
    held: list[weakref.ref[CkptdError]] = []
    gc.disable()
    try:
        load(channel, {"a": torch.ones(5)})
    except StateError as error:
        held.append(weakref.ref(error))
    finally:
        gc.enable()
    assert held[0]() is None


def test_only_what_is_read_is_brought(channel: FakeChannel) -> None:
    """To a node that holds nothing of a step: what is in it, and the bytes of the tensors and objects that are asked for."""
    save(channel, {"a": torch.ones(4), "b": torch.zeros(1 << 20), "note": "x"}, 1)
    elsewhere = FakeChannel(channel.directory)
    state = {"a": torch.zeros(4), "note": ""}
    dcp_load(state, storage_reader=StorageReader(channel=elsewhere))
    assert torch.equal(torch.as_tensor(state["a"]), torch.ones(4))
    assert state["note"] == "x"
    assert 0 < elsewhere.brought < 100_000


def test_a_load_lets_go_of_what_was_opened(channel: FakeChannel) -> None:
    """Once for each opening, also when nothing fits."""
    save(channel, {"a": torch.ones(4)}, 1)
    load(channel, {"a": torch.ones(4)})
    dcp_load({"a": torch.ones(4)}, storage_reader=StorageReader(channel=channel))
    with pytest.raises(StateError):
        load(channel, {"a": torch.ones(5)})
    assert channel.calls.count("open") == channel.calls.count("shut") == 3


def test_a_step_that_is_not_there_is_refused_with_what_is(
    channel: FakeChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what there is to choose from."""
    monkeypatch.setattr("ckptd.integrations.dcp.life._HEARD_S", 0.0)
    save(channel, {"a": torch.ones(4)}, 3)
    with pytest.raises(
        Unrecoverable, match=re.escape("step 4 of job job is neither in memory nor on storage; there is: step 3")
    ):
        load(channel, {"a": torch.ones(4)}, 4)


def test_a_save_needs_a_step_and_all_ranks(channel: FakeChannel) -> None:
    """No id, an epoch of one's own choice, and DCP's mode without collectives are refused before anything is written."""
    for writer in (StorageWriter(channel=channel), StorageWriter("step-1.e4", channel=channel)):
        with pytest.raises(UsageError, match="expected a step to save"):
            ckptd.dcp.save({"a": torch.ones(1)}, storage_writer=writer, no_dist=True)
    with pytest.raises(UsageError, match="use_collectives=False"):
        dcp_save({"a": torch.ones(1)}, storage_writer=StorageWriter(1, channel=channel), use_collectives=False)
    for options in ({"level": "safe"}, {"timeout_s": 0.0}, {"timeout_s": float("nan")}):
        with pytest.raises(UsageError, match="expected"):
            StorageWriter(1, **options)
    with pytest.raises(UsageError, match="expected 'refuse' or 'ignore'"):
        LoadPlanner(extra="drop")  # type: ignore[arg-type]
    assert channel.recorded() == []
