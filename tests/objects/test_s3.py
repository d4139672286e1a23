"""Object storage against a real S3 server: what is cut off goes on, what fails ends in time, what is damaged is found."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from tests.cluster import until
from tests.objects.s3 import FLIPPED, HELD, LOST, Fault, Gate, served

from ckptd.ckpt.bucket import Bucket, Patience
from ckptd.ckpt.errors import CorruptionError, StorageError
from ckptd.ckpt.model import PIECE, Image, Version
from ckptd.ckpt.objects import Objects
from ckptd.ckpt.pieces import digest_of, sums_of
from ckptd.ckpt.storage import Storage

pytestmark = pytest.mark.slow

JOB, V4, V12 = "job", Version(1, 4), Version(1, 12)
DATA = random.Random(5).randbytes(9 * PIECE + 77)
PARTS = 5
IMAGE = Image(0, len(DATA), digest_of(sums_of(DATA), len(DATA)))
QUICK = Patience(tries=2, first_pause_s=0.01, call_s=2.0)
SEND, READ = r"^PUT .*partNumber=", r"^GET [^?]*\.safetensors"
Open = Callable[..., Storage]


@pytest.fixture
def open_at(gate: Gate, url: str) -> Iterator[Open]:
    """Opens the job's storage, as another daemon would: parts of two pieces."""
    with contextlib.ExitStack() as opened:

        def make(patience: Patience = QUICK, at: str = url) -> Storage:
            storage = Storage(Objects(Bucket(at, patience), JOB, part=2 * PIECE), JOB)
            opened.callback(storage.close)
            return storage

        yield make


def write(storage: Storage, version: Version = V12, data: bytes = DATA) -> None:
    storage.write(version, Image(0, len(data), digest_of(sums_of(data), len(data))), memoryview(data))


def read(storage: Storage) -> bytes:
    (step, *_), problems = storage.steps()
    assert not problems
    into = memoryview(bytearray(step.manifest.images[0].size))
    storage.read(step, 0, into)
    return bytes(into)


def test_an_image_goes_up_in_parts_and_comes_down_in_ranges(gate: Gate, open_at: Open) -> None:
    """One request a part, one a range; the manifest is the last thing that is written."""
    storage, written = open_at(), list[int]()
    storage.write(V12, IMAGE, memoryview(DATA), written.append)
    assert sum(written) == len(DATA)
    assert gate.count(SEND) == PARTS
    storage.publish(V12, [IMAGE])
    assert [request for request in gate.seen if request.startswith("PUT")][-1].endswith("/manifest.json")
    assert read(open_at()) == DATA
    assert gate.count(READ) == PARTS


def test_parts_that_are_there_are_not_sent_again(gate: Gate, open_at: Open) -> None:
    """One part fails for good: the next writer sends that one alone, and the one after it nothing."""
    gate.spoil(Fault(SEND + "4"))
    moved: list[int] = []
    with pytest.raises(StorageError, match=r"cannot write part 4 of .*rank-00000\.safetensors: .*; tried 2 times in"):
        open_at().write(V12, IMAGE, memoryview(DATA), moved.append)
    assert sum(moved) == 0
    assert gate.count(SEND) == PARTS - 1 + QUICK.tries
    gate.heal()
    for _ in range(2):
        write(open_at())
        assert gate.count(SEND) == PARTS - 1 + QUICK.tries + 1
    storage = open_at()
    storage.publish(V12, [IMAGE])
    assert read(storage) == DATA


def test_parts_of_another_image_are_not_taken(gate: Gate, open_at: Open) -> None:
    """An upload that an earlier life left under the same name has other bytes in one part: all is sent, and is right."""
    other = DATA[: 3 * PIECE] + b"x" + DATA[3 * PIECE + 1 :]
    gate.spoil(Fault(SEND + "5"))
    with pytest.raises(StorageError):
        write(open_at(), data=other)
    gate.heal()
    storage = open_at()
    write(storage)
    storage.publish(V12, [IMAGE])
    assert read(storage) == DATA


def test_an_answer_that_is_lost(gate: Gate, open_at: Open) -> None:
    """The store has put the parts together and nobody heard it: nothing is sent twice."""
    gate.spoil(Fault(r"^POST .*uploadId=", LOST, times=1))
    storage = open_at()
    write(storage)
    assert gate.count(SEND) == PARTS
    storage.publish(V12, [IMAGE])
    assert read(storage) == DATA


def test_every_request_may_fail_once(gate: Gate, open_at: Open) -> None:
    """Whichever request of writing, publishing, listing and reading is answered with an error of the server, all goes on."""
    storage = open_at(Patience(tries=6, first_pause_s=0.01))
    acts: dict[Callable[[], object], int] = {
        lambda: write(storage): 503,
        lambda: storage.publish(V12, [IMAGE]): 500,
        lambda: read(storage): 503,
        lambda: storage.remove(V12): 500,
    }
    for act, status in acts.items():
        gate.spoil(Fault("", status, times=2))
        gate.spoil(Fault("", status, times=2, skip=2))
        act()
        gate.heal()


def test_a_bit_that_flips_on_its_way_down(gate: Gate, open_at: Open) -> None:
    """The piece is found and read again; one that stays damaged is refused by name."""
    storage = open_at()
    write(storage)
    storage.publish(V12, [IMAGE])
    gate.spoil(Fault(READ, FLIPPED, times=1))
    assert read(storage) == DATA
    assert gate.count(READ) == PARTS + 1
    gate.spoil(Fault(READ, FLIPPED))
    with pytest.raises(CorruptionError, match=r"rank-00000\.safetensors: 1 pieces fail their checksum, the first is"):
        read(storage)


def test_an_image_is_checked_while_it_comes(gate: Gate, open_at: Open) -> None:
    """While one range is on its way, all others are read, and what is damaged of them is found and read again."""
    storage = open_at(Patience(tries=2, first_pause_s=0.01))
    write(storage)
    storage.publish(V12, [IMAGE])
    held = gate.spoil(Fault(READ, HELD, times=1))
    gate.spoil(Fault(READ, FLIPPED, times=1))
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(read(storage)))
    reader.start()
    assert held.met.wait(20.0)
    until(lambda: gate.count(READ) == PARTS + 1, "the others read, and the damaged one again")
    assert not found
    gate.heal()
    reader.join(20.0)
    assert found == [DATA]


def test_a_store_that_does_not_answer(gate: Gate, open_at: Open) -> None:
    """A part that hangs is taken back and sent again; if all hang, an error ends it, and closing does so at once."""
    gate.spoil(Fault(SEND + "2", HELD, times=1))
    write(open_at(Patience(tries=2, first_pause_s=0.01, call_s=0.5)))
    held = gate.spoil(Fault("^GET", HELD))
    with pytest.raises(StorageError, match="TimeoutError; tried 2 times"):
        open_at(Patience(tries=2, first_pause_s=0.01, call_s=0.2)).publish(V4, [IMAGE])
    storage, problems = open_at(Patience(call_s=60.0)), list[str]()
    held.met.clear()

    def look() -> None:
        problems.extend(storage.steps()[1])

    reader = threading.Thread(target=look)
    reader.start()
    assert held.met.wait(10.0)
    began = time.monotonic()
    storage.close()
    reader.join(10.0)
    assert time.monotonic() - began < 5.0
    assert "the daemon is stopping" in problems[0]


def test_what_can_not_work_is_said_at_once(gate: Gate, open_at: Open) -> None:
    """No bucket, and credentials that are good no more: not tried again, and nothing is offered."""
    for act in (write, lambda storage: storage.publish(V12, [])):
        with pytest.raises(StorageError, match=r"check that the bucket exists|check the name of the bucket"):
            act(open_at(at="s3://nowhere/prefix"))
    assert "check the name of the bucket" in open_at(at="s3://nowhere").steps()[1][0]
    storage = open_at()
    gate.spoil(Fault("", 403))
    for act in (write, lambda storage: storage.publish(V12, [IMAGE]), lambda storage: storage.remove(V12)):
        with pytest.raises(StorageError, match="check the storage's credentials"):
            act(storage)
    assert "credentials" in storage.steps()[1][0]


def test_credentials_that_expire_in_the_middle(gate: Gate, open_at: Open) -> None:
    """The parts that were sent before stay, and go on with those that are good again."""
    gate.spoil(Fault(SEND, 403, skip=3))
    with pytest.raises(StorageError, match="check the storage's credentials"):
        write(open_at())
    sent = gate.count(SEND)
    gate.heal()
    write(open_at())
    assert gate.count(SEND) - sent == PARTS - 3


def test_two_nodes_write_the_same_image(gate: Gate, open_at: Open) -> None:
    """Whoever comes first: both end well, and the image is whole."""
    both, problems = [open_at(), open_at()], list[Exception]()

    def run(storage: Storage) -> None:
        try:
            write(storage)
        except StorageError as error:
            problems.append(error)

    writers = [threading.Thread(target=run, args=(storage,)) for storage in both]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30.0)
    assert not problems
    both[0].publish(V12, [IMAGE])
    assert read(both[1]) == DATA


def test_what_was_cut_off_costs_nothing_for_ever(gate: Gate, open_at: Open) -> None:
    """Publishing ends the uploads of older steps, which a bucket would keep, unseen and paid for."""
    gate.spoil(Fault(SEND + "4"))
    with pytest.raises(StorageError):
        write(open_at(), V4)
    gate.heal()
    storage = open_at()
    write(storage)
    storage.publish(V12, [IMAGE])
    place = storage._place
    assert isinstance(place, Objects)
    bucket = place._bucket
    name = bucket.root.partition("/")[0]
    assert not bucket.ask("look", "call_s3", "list_multipart_uploads", Bucket=name).get("Uploads")
    assert read(storage) == DATA


def test_folders_that_a_console_made(gate: Gate, open_at: Open, url: str) -> None:
    """Empty objects with a slash at their end, and anything else that is not ours, are neither steps nor in the way."""
    storage, bucket = open_at(), Bucket(url, QUICK)
    for name in (f"{JOB}/", f"{JOB}/step-000000000012.e0001/", f"{JOB}/notes", f"{JOB}/step-000000000013.e0001/x"):
        bucket.ask("put", "call_s3", "put_object", Bucket=url.split("/")[2], Key=f"some/prefix/{name}", Body=b"")
    assert storage.steps() == ([], [])
    write(storage)
    storage.publish(V12, [IMAGE])
    assert read(storage) == DATA
    storage.remove(V12)
    assert bucket.size(bucket.key(JOB, "step-000000000013.e0001", "x")) == 0
    bucket.close()


def test_a_server_that_is_killed_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing ends with an error in bounded time; a server that has nothing any more gets all of it."""
    with served() as first, contextlib.closing(Gate(first)) as gate:
        first.make_bucket("bucket")
        monkeypatch.setenv("AWS_ENDPOINT_URL", gate.url)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "loopback")
        storage = Storage(Objects(Bucket("s3://bucket", QUICK), JOB, part=2 * PIECE), JOB)
        held, problems = gate.spoil(Fault(SEND + "3", HELD, times=1)), list[str]()

        def run() -> None:
            try:
                write(storage)
            except StorageError as error:
                problems.append(str(error))

        writer = threading.Thread(target=run)
        writer.start()
        assert held.met.wait(20.0)
        until(lambda: gate.count(SEND) == PARTS, "the other parts sent")
        first.kill()
        gate.heal()
        writer.join(30.0)
        assert "cannot write part" in problems[0]
        with served() as second:
            second.make_bucket("bucket")
            gate.port = second.port
            write(storage)
            storage.publish(V12, [IMAGE])
            assert read(storage) == DATA
        storage.close()
