"""A berth: a lent file that is this process's while anything that was staged in it is held, and not a moment longer."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ckptd.ckpt.errors import CorruptionError
from ckptd.integrations.dcp.berths import Berth, Berths

SIZE = 3 * 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "lent"
    made.write_bytes(b"\xaa" * SIZE)
    return made


def is_held(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def opened(path: Path, berths: Berths | None = None) -> Berth:
    berth = (berths or Berths()).open(path, SIZE, pinned=False)
    assert berth is not None
    return berth


def test_it_is_held_until_the_last_tensor_is_gone(path: Path) -> None:
    """Views and detached tensors count; the mapping, which is kept for the next time, does not."""
    berths = Berths()
    berth = opened(path, berths)
    tensor = torch.empty(0, dtype=torch.uint8).set_(berth.storage((4096, 8192)))
    berth.leave()
    part = tensor.detach()[10:20]
    del tensor
    gc.collect()
    assert is_held(path)
    part.fill_(7)
    del part
    gc.collect()
    assert not is_held(path)
    assert path.read_bytes()[4096 + 10 : 4096 + 20] == bytes([7] * 10)
    assert opened(path, berths).mapping is berth.mapping


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_neither_ends_the_loan_nor_keeps_it(path: Path) -> None:
    """As those of a data loader, which have the descriptor of the lock too."""
    berth, (come, go) = opened(path), os.pipe()
    children = [forked(berth.leave, go), forked(lambda: None, go)]
    try:
        for _ in children:
            assert os.read(come, 1) == b"."
        assert is_held(path)
        berth.leave()
        assert not is_held(path)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(come)
        os.close(go)


def forked(act: Callable[[], None], go: int) -> int:
    """A child that acts, says so, and lives on; its process id."""
    child = os.fork()
    if child == 0:
        act()
        os.write(go, b".")
        while True:
            signal.pause()
    return child


def test_one_in_which_nothing_was_staged_is_let_go(path: Path) -> None:
    """At once when it is left, and when it is forgotten."""
    berth = opened(path)
    assert is_held(path)
    berth.leave()
    assert not is_held(path)
    berth = opened(path)
    del berth
    assert not is_held(path)


def test_readers_of_an_older_image_see_that_it_goes(path: Path) -> None:
    """Its first bytes change before anything is staged."""
    berth = opened(path)
    assert path.read_bytes()[:8] == bytes(8)
    berth.leave()


def renamed(path: Path) -> None:
    path.rename(path.with_name("taken-back"))


def replaced(path: Path) -> None:
    renamed(path)
    path.write_bytes(b"\xbb" * SIZE)


@pytest.mark.parametrize("meanwhile", [renamed, replaced])
def test_a_file_that_was_taken_back_before_it_was_locked(
    path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[Path], None]
) -> None:
    """Is not written to."""
    flock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        meanwhile(path)
        flock(descriptor, operation)

    monkeypatch.setattr("ckptd.integrations.dcp.berths.fcntl.flock", late)
    assert Berths().open(path, SIZE, pinned=False) is None
    assert path.with_name("taken-back").read_bytes() == b"\xaa" * SIZE


def test_a_file_that_is_not_what_was_announced(path: Path) -> None:
    """Missing, of another size, or a link: an error, and no lock is left behind."""
    with pytest.raises(CorruptionError, match="found 12288 bytes, expected 4096"):
        Berths().open(path, 4096, pinned=False)
    link = path.with_name("link")
    link.symlink_to(path)
    for wrong in (link, path.with_name("nothing")):
        with pytest.raises(OSError, match=r"symbolic links|No such file"):
            Berths().open(wrong, SIZE, pinned=False)
    assert not is_held(path)
