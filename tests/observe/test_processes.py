"""What the operating system says of a process: how it stands, and how it ended, whoever has reaped it."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator

import pytest
from tests.cluster import until

from ckptd.ckpt.errors import PeerError
from ckptd.daemon.observe.processes import TrainerProcess


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for a line and ends with code 3."""
    with subprocess.Popen(["/bin/sh", "-c", "read line; exit 3"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_process_that_sleeps_and_one_that_is_stopped(child: subprocess.Popen[bytes]) -> None:
    """Its letter is that of `ps`; where it sleeps is a name of the kernel's."""
    process = TrainerProcess(child.pid)
    until(lambda: process.state().letter == "S" and process.state().asleep_in, "it waits for input")
    child.send_signal(signal.SIGSTOP)
    until(lambda: process.state().letter == "T", "stopped")
    assert process.ending() is None
    process.close()


@pytest.mark.parametrize("killed", [False, True], ids=["exits", "is killed"])
def test_the_end_of_a_process(child: subprocess.Popen[bytes], killed: bool) -> None:
    """The exit code or the signal, of a process that nobody has reaped yet; and afterwards where the kernel still tells."""
    process = TrainerProcess(child.pid)
    if killed:
        child.kill()
    else:
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.flush()
    expected = -9 if killed else 3
    until(lambda: process.ending() is not None, "its end")
    assert process.ending() == expected
    child.wait()
    assert process.ending() in (expected, None)
    process.close()


def test_a_process_that_is_not_here() -> None:
    """Of another pid namespace, or gone: said at once."""
    with subprocess.Popen(["/bin/true"]) as process:
        process.wait()
    with pytest.raises(PeerError, match="namespace"):
        TrainerProcess(process.pid)
