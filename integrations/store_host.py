"""Host the rendezvous store of a torchrun job in a process of its own, so that any node may be lost.

    python -m ckptd.integrations.store_host --host 127.0.0.1 --port 0
    {"host": "127.0.0.1", "port": 29512}

By default torchrun's c10d rendezvous keeps its store inside one of the agents, and the job cannot outlive that agent's
node. With the store out here no agent is special. Start each agent with

    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --rdzv-backend c10d --rdzv-endpoint HOST:PORT --rdzv-conf is_host=0 ...

The store lives until its standard input closes (its starter ended) or it gets SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
from datetime import timedelta
from types import FrameType

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # from torch's C++ half


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on this address alone: left to itself, TCPStore listens on every interface."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(1024)
    return listener


def host_store(listener: socket.socket) -> TCPStore:
    """Serve a store on the listening socket, which it takes over, for as long as the returned object lives."""
    host, port = listener.getsockname()[:2]
    return TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=30),
        master_listen_fd=listener.detach(),
    )


def parser() -> argparse.ArgumentParser:
    """The command line's."""
    found = argparse.ArgumentParser(prog="python -m ckptd.integrations.store_host", description=__doc__)
    found.formatter_class = argparse.RawDescriptionHelpFormatter
    found.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    found.add_argument("--port", type=int, default=0, help="the port; 0 takes a free one (default: %(default)s)")
    return found


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        listener = listen(options.host, options.port)
    except (OSError, OverflowError) as error:
        print(f"cannot listen on {options.host}:{options.port}: {error}; choose another address", file=sys.stderr)
        return 1

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    store = host_store(listener)
    print(json.dumps({"host": options.host, "port": store.port}), flush=True)
    while os.read(sys.stdin.fileno(), 4096):  # until whoever holds its other end closes it or dies
        pass
    return 0


def end(_number: int, _frame: FrameType | None) -> None:
    """Once; what comes after the first word is no other one."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
