"""What bounds the memory of a daemon, and slots that are refused before anything is taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.cluster import shm_dir

from ckptd.ckpt.budget import Limit
from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import MemoryBudgetError
from ckptd.ckpt.model import PIECE
from ckptd.daemon.admission import Admission
from ckptd.daemon.limits import cgroups, limits, machine
from ckptd.daemon.main import serve
from ckptd.daemon.segments import Segments

GB = 10**9


@pytest.fixture
def folder() -> Iterator[Path]:
    with shm_dir() as path:
        yield path


def files(root: Path, **content: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in content.items():
        (root / name.replace("__", ".")).write_text(text)


def test_the_machine_as_the_kernel_tells_it(tmp_path: Path) -> None:
    """Free is what can be had without swapping; a kernel that says nothing bounds nothing."""
    (tmp_path / "meminfo").write_text("MemTotal:  64 kB\nMemFree:  1 kB\nMemAvailable:  20 kB\nHugePages_Total: 0\n")
    assert list(machine(tmp_path / "meminfo")) == [Limit("machine", "the machine", 20 * 1024, 64 * 1024)]
    assert list(machine(tmp_path / "none")) == []


def test_cgroups_of_both_versions(tmp_path: Path) -> None:
    """Every level with a limit; files in the page cache count as free, and what stands for no limit is none."""
    root, own = tmp_path / "fs", tmp_path / "cgroup"
    own.write_text("0::/pod/daemon\n5:cpu,memory:/job\n3:cpuset:/\n")
    files(
        root / "pod/daemon", memory__max="1000\n", memory__current="400\n", memory__stat="anon 5\ninactive_file 100\n"
    )
    files(root / "pod", memory__max="max\n", memory__current="400\n")
    files(root, memory__max="5000\n", memory__current="6000\n")
    files(root / "memory/job", memory__limit_in_bytes="3000\n", memory__usage_in_bytes="1000\n")
    files(root / "memory/job", memory__stat="inactive_file 7\ntotal_inactive_file 500\n")
    files(root / "memory", memory__limit_in_bytes=f"{2**63 - 4096}\n", memory__usage_in_bytes="1\n")
    assert list(cgroups(own, root)) == [
        Limit("cgroup", "cgroup /pod/daemon", 700, 1000),
        Limit("cgroup", "cgroup /", 0, 5000),
        Limit("cgroup", "cgroup /job", 2500, 3000),
    ]


@pytest.mark.parametrize("text", ["", "0::/../../other\n", "nonsense\n", "0::/\n", "\xff\n"])
def test_cgroups_that_say_nothing(tmp_path: Path, text: str) -> None:
    """No cgroup, one outside of the namespace, none with a limit: no bound, and no error."""
    (tmp_path / "cgroup").write_text(text)
    assert list(cgroups(tmp_path / "cgroup", tmp_path)) == []


def test_this_machine(folder: Path) -> None:
    """The file system comes first, also for a directory that is not there yet, and the machine last."""
    found = limits(folder / "a" / "b")
    assert (found[0].kind, found[0].name, found[-1].kind) == ("tmpfs", str(folder), "machine")
    assert all(0 <= limit.free <= limit.total for limit in found)


def admission(folder: Path, free: int, *, nodes: int = 1, parity: int = 1) -> tuple[Admission, Segments]:
    """A node's admission where so many bytes are free beside the headroom, and its segments."""
    addresses = tuple(f"127.0.0.1:{7000 + node}" for node in range(nodes))
    config = Config(
        run_dir=folder, segment_dir=folder / "s", nodes=addresses, secret=b"s" * 16, parity=parity
    ).validate()
    segments = Segments(config.segment_dir)

    def look(_: Path) -> Sequence[Limit]:
        used = sum(segments.usage().values())
        return [Limit("machine", "the machine", free + (64 << 20) - used, 4 * GB)]

    return Admission(config, look), segments


def test_all_ranks_of_a_node_must_fit(folder: Path) -> None:
    """The second rank is refused when both together don't fit, with nothing taken; a smaller one fits in its place."""
    gate, segments = admission(folder, 3 * 5 * PIECE)
    gate.admit(0, 3 * PIECE, [0, 1])
    segments.reserve(0, 3 * PIECE, 3)
    before = segments.usage()
    with pytest.raises(MemoryBudgetError, match=r"3 slots of 1572864 bytes each: .* the machine has .* slots to 2"):
        gate.admit(1, 3 * PIECE, [0, 1])
    assert segments.usage() == before
    gate.admit(1, 2 * PIECE, [0, 1])
    gate.admit(0, 3 * PIECE, [0, 1])  # has all that it needs


def test_parity_is_counted_before_there_is_any(folder: Path) -> None:
    """A node of a mirrored pair needs its slots, and twice its neighbour's payload."""
    gate, _ = admission(folder, (3 + 2) * PIECE - 1, nodes=2, parity=1)
    with pytest.raises(MemoryBudgetError, match="and 2 parities of 262144 bytes: 1310720 bytes"):
        gate.admit(0, PIECE, [0])
    gate, _ = admission(folder / "b", (3 + 2) * PIECE, nodes=2, parity=1)
    gate.admit(0, PIECE, [0])


def test_a_file_beside_the_slots_must_leave_room_for_what_is_promised(folder: Path) -> None:
    """One is lent where slots and parity fit too, those that are not made yet; a spare one that stands costs nothing."""
    gate, segments = admission(folder, (3 + 2 + 1) * PIECE - 1, nodes=2, parity=1)
    gate.admit(0, PIECE, [0])
    with pytest.raises(MemoryBudgetError):
        gate.admit(0, PIECE, [0], beside=1)
    gate, segments = admission(folder / "b", (3 + 2 + 1) * PIECE, nodes=2, parity=1)
    gate.admit(0, PIECE, [0], beside=1)
    segments.reserve(0, PIECE, 4)
    gate.admit(0, PIECE, [0], beside=1)


def test_ranks_that_went_elsewhere_make_room(folder: Path) -> None:
    """Only who is attached is counted; a layout that grew is counted anew."""
    gate, _ = admission(folder, 3 * 3 * PIECE)
    gate.admit(0, 3 * PIECE, [0])
    gate.admit(1, 3 * PIECE, [1])
    with pytest.raises(MemoryBudgetError):
        gate.admit(1, 4 * PIECE, [1])


def test_a_daemon_refuses_a_budget_that_is_not_there(folder: Path) -> None:
    """Before it makes a directory or a socket."""
    config = Config(run_dir=folder / "run", segment_dir=folder / "s", memory_bytes=2**50)
    with pytest.raises(MemoryBudgetError, match=r"memory_bytes is 1125899906842624, but /dev/shm.* bytes in all"):
        serve(config)
    assert list(folder.iterdir()) == []
