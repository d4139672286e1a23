"""Google Cloud Storage, by a server of its protocol: what works on S3 works there, without parts that are resumed."""

from __future__ import annotations

import contextlib
import random
import secrets
import time
from collections.abc import Iterator

import pytest
from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import Server, create_server

from ckptd.ckpt.bucket import Bucket, Patience
from ckptd.ckpt.errors import CorruptionError, StorageError
from ckptd.ckpt.model import PIECE, Image, Version
from ckptd.ckpt.objects import Objects
from ckptd.ckpt.pieces import digest_of, sums_of
from ckptd.ckpt.retention import Rule
from ckptd.ckpt.shelf_objects import ObjectShelf
from ckptd.ckpt.storage import Storage
from ckptd.daemon.gc_command import outlook

pytestmark = pytest.mark.slow

JOB, V4, V12 = "job", Version(1, 4), Version(1, 12)
DATA = random.Random(5).randbytes(3 * PIECE + 77)
IMAGE = Image(0, len(DATA), digest_of(sums_of(DATA), len(DATA)))
QUICK = Patience(tries=2, first_pause_s=0.01, call_s=20.0)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with create_server("127.0.0.1", 0, in_memory=True) as made:
        yield made


@pytest.fixture
def url(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a prefix in a new bucket, with the environment that leads there."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server._api._httpd.server_address[1]}")
    name = f"bucket-{secrets.token_hex(4)}"
    create_bucket(name, server._storage)
    return f"gs://{name}/some/prefix"


@pytest.fixture
def storage(url: str) -> Iterator[Storage]:
    """Parts of two pieces, so that an image is several ranges."""
    with contextlib.closing(Storage(Objects(Bucket(url, QUICK), JOB, part=2 * PIECE), JOB)) as made:
        yield made


def persist(storage: Storage, version: Version) -> None:
    storage.write(version, IMAGE, memoryview(DATA))
    storage.publish(version, [IMAGE])


def test_a_step_is_kept_read_and_removed(storage: Storage) -> None:
    """Not offered before it is whole; every byte comes back; removed, nothing is there."""
    assert storage.steps() == ([], [])
    told: list[int] = []
    storage.write(V12, IMAGE, memoryview(DATA), told.append)
    assert sum(told) == len(DATA)
    assert storage.steps() == ([], [])
    storage.publish(V12, [IMAGE])
    persist(storage, V4)
    steps, problems = storage.steps()
    assert [step.manifest.version for step in steps] == [V12, V4]
    assert not problems
    into = memoryview(bytearray(len(DATA)))
    storage.read(steps[0], 0, into)
    assert into == DATA
    storage.check(steps[1], 0)
    for version in (V4, V12):
        storage.remove(version)
    assert storage.steps() == ([], [])


def test_damage_and_what_is_removed_in_part(storage: Storage, url: str) -> None:
    """Found by name; a step without one of its images is not offered."""
    persist(storage, V12)
    (step,), _ = storage.steps()
    with contextlib.closing(Bucket(url, QUICK)) as bucket:
        key = bucket.key(JOB, "step-000000000012.e0001", "rank-00000.safetensors")
        bucket.put(key, DATA[:-1] + bytes([DATA[-1] ^ 1]))
        with pytest.raises(CorruptionError, match=r"rank-00000\.safetensors: 1 pieces fail their checksum"):
            storage.read(step, 0, memoryview(bytearray(len(DATA))))
        bucket.delete([key])
    steps, (problem,) = storage.steps()
    assert not steps
    assert r"rank-00000.safetensors is missing; it was removed in part" in problem


def test_what_stands_there_is_seen_from_outside(storage: Storage, url: str) -> None:
    """Jobs, steps and their ages, what was left behind, and what may go."""
    persist(storage, V4)
    persist(storage, V12)
    storage.write(Version(1, 13), IMAGE, memoryview(DATA))
    with contextlib.closing(Bucket(url, QUICK)) as bucket:
        shelf, now = ObjectShelf(bucket), time.time()
        assert shelf.jobs() == [JOB]
        steps = shelf.published(JOB)
        assert [(step.version, step.world, step.problem) for step in steps] == [(V12, 1, ""), (V4, 1, "")]
        assert all(step.written_at is not None and abs(now - step.written_at) < 60.0 for step in steps)
        found = outlook(shelf, JOB, Rule(older_than_s=3600.0), now + 7200.0)
        assert [step.version for step in found.steps] == [V4]
        (left,) = found.leftovers
        shelf.discard(left)
        assert shelf.leftovers(JOB) == []


def test_a_bucket_that_is_not_there(url: str) -> None:
    """No fresh start on a mistyped name: listing and writing say so."""
    del url  # sets the environment
    with contextlib.closing(Storage(Objects(Bucket("gs://nowhere/x", QUICK), JOB), JOB)) as storage:
        steps, (problem,) = storage.steps()
        assert not steps
        assert "check the name of the bucket" in problem
        with pytest.raises(StorageError, match="check that the bucket exists"):
            storage.write(V4, IMAGE, memoryview(DATA))
