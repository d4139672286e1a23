"""A trainer that dies in the middle of a capture, and says how far it came. Forked from a process that has all imported.

`python -m tests.real.writer RUN_DIR WORLD` reads lines `EPOCH STEP POINT` and answers each with the process id of a child
that has attached as rank 0 of WORLD and captured that version up to POINT, where it waits to be killed:

    0                 attached, nothing asked for yet
    1                 has a slot
    2 .. CHUNKS + 1   has written POINT - 1 chunks
    CHUNKS + 2        has written everything and committed
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tests.payload import JOB, bytes_of

from ckptd.ckpt.client import Client
from ckptd.ckpt.model import Version

CHUNKS = 17
POINTS = CHUNKS + 3


def main(run_dir: Path, world: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        epoch, step, point = map(int, line.split())
        if os.fork() == 0:
            capture(run_dir, world, Version(epoch, step), point)
            print(os.getpid(), flush=True)
            signal.pause()


def capture(run_dir: Path, world: int, version: Version, point: int) -> None:
    client = Client(run_dir, JOB)
    client.attach(rank=0, world=world, local_world=1)
    client.join(version.epoch)
    if point == 0:
        return
    data = bytes_of(version, 0)
    slot = client.begin(version, len(data))
    assert slot is not None
    if point == 1:
        return
    chunk = -(-len(data) // CHUNKS)
    with slot.path.open("r+b", buffering=0) as file:
        for index in range(min(point - 1, CHUNKS)):
            file.write(data[index * chunk : (index + 1) * chunk])
    if point == POINTS - 1:
        client.commit(slot, version)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
