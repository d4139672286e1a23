"""Real daemons, real SIGKILL: what is promised when daemons, trainers and bytes are lost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.cluster import Cluster, fill, until
from tests.payload import JOB, bytes_of, flip
from tests.real.writer import POINTS

from ckptd.ckpt.errors import CkptdError, CorruptionError, DaemonUnavailable, StaleStepError, Unrecoverable
from ckptd.ckpt.model import Version

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def inventory(cluster: Cluster, node: int) -> tuple[object, ...]:
    """What the daemons say can be restored, and how much each holds."""
    status, listing = cluster.document(node, "Status"), cluster.document(node, "List")
    held = [(row["node"], row["images"], row["parities"], row["captured"]) for row in status["nodes"]]
    return held, status["sealed"], status["persisted"], listing["steps"], listing["next_restore"]


def test_a_killed_daemon_finds_everything_again() -> None:
    """A daemon that gets SIGKILL and is started again loses nothing, and its trainers are served again unasked."""
    with Cluster(3, parity=1, persist_every=2) as cluster:
        cluster.begin_life()
        for step in (1, 2, 3):
            version = cluster.capture(step, level="persisted" if step == 2 else "sealed")
        until(lambda: {row["parities"] for row in cluster.document(0, "Status")["nodes"]} == {1}, "older ones dropped")
        before = inventory(cluster, 0)
        cluster.kill(1)
        cluster.restart(1)
        until(lambda: inventory(cluster, 0) == before, "the same inventory as before")
        assert cluster.gather(1, version) == ["peer", "own", "peer"]
        assert cluster.document(1, "Verify")["ok"]

        version = cluster.capture(4)  # the clients have noticed nothing
        assert cluster.gather(2, version) == ["peer", "peer", "own"]
        until(lambda: cluster.document(0, "Status")["nodes"][1]["ranks"] == [1], "rank 1 attached again")


def test_a_daemon_killed_during_a_capture() -> None:
    """The snapshot in flight is refused, the sealed one stays whole, and the next one begins without ado."""
    with Cluster(2, parity=1) as cluster:
        cluster.begin_life()
        version = cluster.capture(1)
        torn = Version(cluster.epoch, 2)
        cluster.capture_one(0, torn)
        data = bytes_of(torn, 1)
        slot = cluster.ranks[1].begin(torn, len(data))
        assert slot is not None
        fill(slot, data[:1000].ljust(len(data), b"?"))
        cluster.kill(1)
        with pytest.raises(CkptdError):
            cluster.ranks[1].commit(slot, torn)
        cluster.restart(1)
        with pytest.raises(StaleStepError):
            cluster.ranks[1].commit(slot, torn)
        # Until node 0 has heard where the new daemon serves, it decodes.
        until(lambda: cluster.gather(0, version) == ["own", "peer"], "node 1 serves again")
        assert cluster.gather(1, version) == ["peer", "own"]
        cluster.capture(3)


def test_a_daemon_serves_a_trainer_that_did_not_wait_for_it() -> None:
    """A trainer may begin at the moment the socket is there, while a restarted daemon still reads what it found."""
    with Cluster(1, parity=0, slots=2) as cluster:
        cluster.begin_life()
        size = 150_000_000
        cluster.capture(1, size=size)
        version = cluster.capture(2, size=size)
        cluster.kill(0)
        cluster.start(0)
        late = Version(cluster.epoch, 3)

        def begun() -> bool:
            try:
                cluster.ranks[0].begin(late, size)
            except StaleStepError:
                raise
            except CkptdError:
                return False
            return True

        until(begun, "an answer to begin")
        cluster.wait_ready(0)
        assert cluster.gather(0, version, size=size) == ["own"]


def test_the_decision_waits_for_every_node() -> None:
    """What to restore is not decided while a node may still come with what it holds."""
    with Cluster(2, parity=0) as cluster:
        cluster.begin_life()
        version = cluster.capture(1)
        cluster.kill(0, 1)
        cluster.restart(0)
        with ThreadPoolExecutor(1) as pool:
            asking = cluster.client(0)
            decision = pool.submit(asking.decide, world=2)
            cluster.start(1)  # without parity nobody else can give back what this one has
            assert decision.result(30.0).version == version


def test_a_single_node() -> None:
    """One node has no parity, keeps two ranks' snapshots over the death of its daemon, and both ranks may ask at once."""
    with Cluster(1, parity=1, placement=[0, 0]) as cluster:
        cluster.begin_life()
        for step in (1, 2, 3, 4):
            version = cluster.capture(step)
        status = cluster.document(0, "Status")
        assert (status["parity"], status["losses_tolerated"], status["skipped"]) == (0, 0, 0)
        cluster.kill(0)
        cluster.restart(0)
        decision = cluster.begin_life()
        assert (decision.version, decision.source) == (version, "own")


def test_ranks_of_one_node_gather_at_once() -> None:
    """Ranks that share a node ask for the same version at the same moment, and each reads whole images."""
    with Cluster(2, parity=1, placement=[0, 0, 0, 0, 1]) as cluster:
        cluster.begin_life()
        size = 8_000_000
        version = cluster.capture(1, size=size)
        cluster.lose(1)
        cluster.restart(1)
        together = threading.Barrier(4)

        def fetch(rank: int) -> bool:
            together.wait()
            found = cluster.ranks[rank].gather(version)
            return all(item.path.read_bytes() == bytes_of(version, item.rank, size) for item in found)

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(fetch, range(4)))


def test_a_flipped_bit_in_a_slot() -> None:
    """It is found by `verify` or by whoever gathers, decoded from elsewhere, and repaired where it stands."""
    with Cluster(3, parity=1) as cluster:
        cluster.begin_life()
        version = cluster.capture(1)
        flip(cluster.slot_file(2, version, 2))
        found = cluster.document(2, "Verify")
        assert not found["ok"]
        assert [row["what"] for row in found["checked"] if not row["ok"]] == ["rank 2"]
        until(lambda: cluster.events(2, "repaired"), "repaired")
        assert cluster.slot_file(2, version, 2).read_bytes() == bytes_of(version, 2)
        assert cluster.document(2, "Verify")["ok"]

        flip(cluster.slot_file(1, version, 1), offset=600_999)
        # Its own does not check; the repair that follows may be done before the other sources were asked.
        assert cluster.gather(1, version) in (["peer", "parity", "peer"], ["peer", "own", "peer"])
        until(lambda: cluster.events(1, "repaired"), "repaired, as it was found damaged")
        until(lambda: len(cluster.events(1, "repaired")) == 1, "repaired")
        flip(cluster.slot_file(1, version, 1), offset=300_000)
        assert cluster.gather(0, version) == ["own", "parity", "peer"]  # what it sends does not check
        until(lambda: len(cluster.events(1, "repaired")) == 2, "repaired")
        assert cluster.document(1, "Verify")["ok"]


def test_a_flipped_bit_before_the_parity_is_made() -> None:
    """A snapshot that is damaged before it is protected is given up by name; the next one is sealed."""
    with Cluster(3, parity=1) as cluster:
        cluster.begin_life()
        cluster.capture(1)
        torn = Version(cluster.epoch, 2)
        for rank in (0, 1):
            cluster.capture_one(rank, torn)
        until(lambda: cluster.events(0, "captured")[-1]["step"] == 2, "rank 0's image recorded")
        flip(cluster.slot_file(0, torn, 0))
        cluster.capture_one(2, torn)
        cluster.capture(3)
        assert [entry["step"] for entry in cluster.events(0, "damaged")] == [2]


def test_a_flipped_bit_in_a_parity() -> None:
    """It is found by `verify`, made anew, and never decoded from."""
    with Cluster(3, parity=1) as cluster:
        cluster.begin_life()
        version = cluster.capture(1)
        flip(cluster.parity_files(1, version)[0])
        found = cluster.document(1, "Verify")
        assert [row["kind"] for row in found["checked"] if not row["ok"]] == ["parity"]
        until(lambda: cluster.events(1, "parity_damaged"), "damage noted")
        until(lambda: cluster.parity_files(1, version) and cluster.document(1, "Verify")["ok"], "made anew")

        flip(cluster.parity_files(2, version)[0])
        cluster.lose(0)
        cluster.wait_lost(0)
        with pytest.raises(Unrecoverable, match="fails its checksum"):
            cluster.gather(1, version)


def test_a_flipped_bit_in_a_persisted_file() -> None:
    """`verify` names the file; with the nodes gone too, the step is refused by name and nothing wrong is handed out. The
    next life begins from an older one."""
    with Cluster(2, parity=1, persist_every=1) as cluster:
        cluster.begin_life()
        older = cluster.capture(1, level="persisted")
        version = cluster.capture(2, level="persisted")
        folder = max(path for path in (cluster.storage / "t").iterdir() if path.name.startswith("step-"))
        flip(folder / "rank-00001.safetensors")
        found = cluster.document(0, "Verify")
        assert [row["what"] for row in found["checked"] if not row["ok"]] == ["rank 1"]
        assert "rank-00001.safetensors does not match its manifest" in str(found)
        assert cluster.gather(0, version) == ["own", "peer"]
        cluster.lose(0, 1)
        cluster.start(0)
        cluster.start(1)
        cluster.wait_ready(0)
        with pytest.raises(CorruptionError, match=r"rank-00001\.safetensors does not match its manifest"):
            cluster.gather(0, version)
        decision = cluster.begin_life()
        assert (decision.version, decision.source) == (older, "storage")
        assert f"passed over {version}: " in decision.reason
        assert "rank-00001.safetensors does not match its manifest" in decision.reason
        assert cluster.gather(0, older) == ["storage", "storage"]


@contextlib.contextmanager
def writers(cluster: Cluster) -> Iterator[Callable[[Version, int], int]]:
    """Trainers that stop at a point of a capture: a function that starts one as rank 0 and returns its process id."""
    command = [sys.executable, "-m", "tests.real.writer", str(cluster.run_dir(0)), str(cluster.world)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdin
        assert process.stdout
        lines, started = process.stdout, list[int]()

        def write(version: Version, point: int) -> int:
            print(version.epoch, version.step, point, file=process.stdin, flush=True)
            started.append(int(lines.readline()))
            return started[-1]

        try:
            yield write
        finally:
            process.stdin.close()
            process.wait(10.0)
            for pid in started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def test_a_trainer_killed_at_every_point_of_a_capture() -> None:
    """SIGKILL at 20 points of a capture: its end is noticed, the step before it is never lost, and none is ever mixed."""
    with Cluster(2, parity=1) as cluster, writers(cluster) as write:
        cluster.begin_life()
        last = cluster.capture(1)
        for point in range(POINTS):
            version = Version(cluster.epoch, last.step + 1)
            pid = write(version, point)
            cluster.capture_one(1, version)
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: [e for e in cluster.events(0, "rank_lost") if e["pid"] == pid], "its end noticed")  # type: ignore[misc]

            decision = cluster.begin_life()
            assert decision.version == (version if point == POINTS - 1 else last), f"killed at point {point}"
            assert cluster.gather(0, decision.version) == ["own", "peer"]
            assert cluster.gather(1, decision.version) == ["peer", "own"]
            last = cluster.capture(decision.version.step + 1)
        assert cluster.document(0, "Verify")["ok"]
        assert cluster.document(0, "Status")["skipped"] == 0


def test_a_zombie_writes_to_nobody_s_memory() -> None:
    """A trainer that was replaced in mid-capture may go on writing; its successor is given another file."""
    with Cluster(1, parity=0) as cluster:
        cluster.begin_life()
        old = cluster.ranks[0].begin(Version(cluster.epoch, 1), 1000)
        assert old is not None
        writer = old.path.open("r+b", buffering=0)
        successor = subprocess.run(
            [sys.executable, "-c", _SUCCESSOR, str(cluster.run_dir(0)), JOB],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert successor.returncode == 0, successor.stderr
        assert successor.stdout.strip() != str(old.path)
        writer.write(b"x" * 1000)
        writer.close()
        assert not old.path.exists()


_SUCCESSOR = """
import sys
from pathlib import Path
from ckptd.ckpt.client import Client
from ckptd.ckpt.model import Version
client = Client(Path(sys.argv[1]), sys.argv[2])
client.attach(rank=0, world=1, local_world=1)
epoch = client.decide(world=1).epoch
client.join(epoch)
print(client.begin(Version(epoch, 1), 1000).path)
"""


def test_a_daemon_stops_at_once_although_somebody_waits() -> None:
    """Who waits for a level is told that the daemon stops; it does not hold the daemon back."""
    with Cluster(2, parity=1) as cluster:
        cluster.begin_life()
        told: list[str] = []

        def wait() -> None:
            try:
                cluster.ranks[0].wait(Version(9, 9), "sealed", 30.0)
            except DaemonUnavailable as error:
                told.append(str(error))

        waiter = threading.Thread(target=wait)
        waiter.start()
        until(lambda: cluster.document(0, "Status")["ready"], "the daemon")
        started = time.monotonic()
        cluster.processes[0].send_signal(signal.SIGTERM)
        cluster.processes[0].wait(20.0)
        assert time.monotonic() - started < 5.0
        waiter.join(5.0)
        assert told
