"""What a trainer may ask of its daemon beside a slot at once: to wait for one, and to have a step persisted now."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from tests.cluster import daemon_here, fill, shm_dir, until
from tests.payload import JOB, bytes_of

from ckptd.ckpt.client import Client
from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.model import Version
from ckptd.daemon import tables

SIZE = 1000
WAIT_S = 60.0


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Config]:
    with shm_dir() as folder:
        yield Config(job=JOB, run_dir=tmp_path / "run", segment_dir=folder / "s", slots=2).validate()


def capture(client: Client, rank: int, version: Version) -> None:
    slot = client.begin(version, SIZE)
    assert slot is not None
    fill(slot, bytes_of(version, rank, SIZE))
    client.commit(slot, version)
    until(lambda: client.wait(version, "captured", 10.0) != "none", f"rank {rank} captured {version}")


def two_ranks(config: Config) -> tuple[Client, Client, int]:
    """Two ranks of one node in a new life; its epoch."""
    first, second = (Client(config.run_dir, JOB) for _ in range(2))
    for rank, client in enumerate((first, second)):
        client.attach(rank=rank, world=2, local_world=2)
    epoch = first.decide(world=2).epoch
    for client in (first, second):
        client.join(epoch)
    return first, second, epoch


def test_a_capture_waits_for_a_slot(config: Config) -> None:
    """It gets the one that a seal sets free; a wait that is in vain is a skip. Both are counted and shown."""
    with daemon_here(config), ThreadPoolExecutor(1) as elsewhere:
        first, second, epoch = two_ranks(config)
        for step in (1, 2):
            capture(first, 0, Version(epoch, step))
        assert first.begin(Version(epoch, 3), SIZE) is None
        assert first.begin(Version(epoch, 4), SIZE, 0.05) is None
        status = first.document("Status")
        assert (status["skipped"], status["waited"]["count"]) == (2, 1)
        assert status["waited"]["seconds"] >= 0.05
        late = elsewhere.submit(first.begin, Version(epoch, 5), SIZE, 20.0)
        for step in (1, 2):
            capture(second, 1, Version(epoch, step))
        slot = late.result(20.0)
        assert slot is not None
        status = second.document("Status")
        assert (status["skipped"], status["waited"]["count"]) == (2, 1 + (slot.waited_s > 0.0))
        assert status["waited"]["seconds"] >= slot.waited_s
        assert tables.status(status | {"transfers": []}) is not None
        for client in (first, second):
            client.close()


def test_a_free_slot_is_given_at_once(config: Config) -> None:
    """Who may wait does not, and a wait that makes no sense is refused."""
    with daemon_here(config):
        first, second, epoch = two_ranks(config)
        slot = first.begin(Version(epoch, 1), SIZE, 60.0)
        assert slot is not None
        assert slot.waited_s == 0.0
        for wait_s in (-1.0, math.nan, math.inf, 1e6):
            with pytest.raises(UsageError, match="expected 0 to 3600"):
                second.begin(Version(epoch, 1), SIZE, wait_s)
        for client in (first, second):
            client.close()


@pytest.mark.parametrize("stored", [True, False])
def test_a_step_is_persisted_when_somebody_asks(config: Config, tmp_path: Path, stored: bool) -> None:
    """Though no step is due, and the answer says whether there is storage at all."""
    config = replace(config, storage=tmp_path / "p" if stored else None)
    with daemon_here(config):
        first, second, epoch = two_ranks(config)
        version = Version(epoch, 7)
        assert first.sealing_lag_s() is None
        capture(first, 0, version)
        assert first.persist(version) is stored
        capture(second, 1, version)
        level = "persisted" if stored else "sealed"
        assert first.wait(version, level, 20.0) == level
        lag_s = first.sealing_lag_s()
        assert lag_s is not None
        assert lag_s >= 0.0
        assert [path.name for path in (tmp_path / "p").rglob("step-*")] == ["step-000000000007.e0001"] * stored
        for client in (first, second):
            client.close()


@pytest.mark.parametrize("passed", ["a newer one is begun", "it is given up"])
def test_what_a_rank_has_passed_over_is_not_waited_for(config: Config, passed: str) -> None:
    """Nobody can complete it any more, so the others learn at once how far it has come."""
    with daemon_here(config), ThreadPoolExecutor(1) as elsewhere:
        first, second, epoch = two_ranks(config)
        version = Version(epoch, 5)
        capture(first, 0, version)
        waiting = elsewhere.submit(first.wait, version, "sealed", WAIT_S)
        if passed == "it is given up":
            slot = second.begin(version, SIZE)
            assert slot is not None
            second.abort(slot, version, "written to meanwhile")
        else:
            assert second.begin(Version(epoch, 6), SIZE) is not None
        assert waiting.result(WAIT_S / 2) == "captured"
        for client in (first, second):
            client.close()


def test_storage_that_is_not_there_is_not_waited_for(config: Config) -> None:
    with daemon_here(config), ThreadPoolExecutor(1) as elsewhere:
        first, second, epoch = two_ranks(config)
        version = Version(epoch, 5)
        waits = Client(config.run_dir, JOB)
        waiting = elsewhere.submit(waits.wait, version, "persisted", WAIT_S)
        for rank, client in enumerate((first, second)):
            capture(client, rank, version)
        assert waiting.result(WAIT_S / 2) == "sealed"
        for client in (first, second, waits):
            client.close()
