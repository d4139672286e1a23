"""A link of the demo is one wire: what becomes of it befalls the trainers' own connections and the daemons' proxies."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster import until

from ckptd.ckpt.errors import CkptdError
from ckptd.daemon.demo.linked import LinkedCluster
from ckptd.daemon.demo.options import DemoOptions, Layout

pytestmark = pytest.mark.slow

TALK = """
import pathlib, socket, sys
port = pathlib.Path("port")
if sys.argv[1] == "0":
    server = socket.create_server(("127.0.0.1", 0))
    port.write_text(str(server.getsockname()[1]))
    wire = server.accept()[0]
else:
    wire = socket.create_connection(("127.0.0.1", int(port.read_text())))
    wire.sendall(b"x")
while data := wire.recv(1):
    print("on", flush=True)
    wire.sendall(data)
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LinkedCluster]:
    """One of three nodes, of which nothing is started."""
    for name in ("work", "segments"):
        (tmp_path / name).mkdir()
    options = DemoOptions(nodes=3, fault="cut-link", lose_nodes=(0, 1))
    made = LinkedCluster(options, Layout("test-linked", tmp_path / "work", tmp_path / "segments"))
    yield made
    made.stop()


def test_the_trainers_of_both_nodes_fall_silent_when_their_link_is_cut(cluster: LinkedCluster, tmp_path: Path) -> None:
    (tmp_path / "talk.py").write_text(TALK)
    log, processes = tmp_path / "log", []
    try:
        for rank in (0, 1):
            command = [
                sys.executable,
                "-m",
                "ckptd.daemon.demo.faulty",
                f"cut-link={cluster.spoiled}",
                "talk",
                str(rank),
            ]
            with log.open("ab") as output:
                processes.append(subprocess.Popen(command, cwd=tmp_path, stdout=output))
            until(lambda: (tmp_path / "port").exists() and (tmp_path / "port").read_text(), "the first one listens")
        until(lambda: log.exists() and log.stat().st_size > 100, "they talk")
        cluster.spoil_link("cut", 0, 1, {rank: process.pid for rank, process in enumerate(processes)})
        until(lambda: time.time() - log.stat().st_mtime > 0.3, "they are silent")
        assert [process.poll() for process in processes] == [None, None]
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()


def test_trainers_without_a_connection_are_no_link(cluster: LinkedCluster) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as alone:
        with pytest.raises(CkptdError, match="expected some between trainers"):
            cluster.spoil_link("slow", 0, 1, {0: alone.pid, 1: alone.pid})
        alone.communicate(b"\n")
