"""The rendezvous store lives exactly as long as whoever started it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import psutil
import pytest

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "ckptd.integrations.store_host"]


@contextmanager
def store_host() -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            told = json.loads(process.stdout.readline())
            yield process, told["host"], told["port"]
        finally:
            process.kill()


def test_it_serves_a_store_on_the_given_address_alone_until_its_input_closes() -> None:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    with store_host() as (process, host, port):
        listening = [c for c in psutil.Process(process.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        assert [(c.laddr.ip, c.laddr.port) for c in listening] == [("127.0.0.1", port)]
        for _ in range(2):  # agents come and go
            client = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10))
            client.set("key", "value")
            assert client.get("key") == b"value"
        assert process.stdin
        process.stdin.close()
        assert process.wait(10) == 0


def test_it_ends_with_sigterm() -> None:
    with store_host() as (process, _, _):
        for _ in range(3000):  # what comes while another one is handled, too
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_taken_port_is_said_clearly() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = subprocess.run([*COMMAND, f"--port={port}"], capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
