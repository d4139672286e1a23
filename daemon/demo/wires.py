"""TCP connections that behave as over a bad link, by options that the kernel gives everybody: no root, no own network.

On loopback nothing stands between two trainers that could be slow. But each end of a connection may be paced, and may have
a filter that drops what arrives, segment by segment: then TCP itself waits, backs off and sends again, as it does on
a real network.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import stat
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal, Protocol

import psutil

from ckptd.ckpt.errors import CkptdError

Ill = Literal["cut", "slow", "lossy"]

SLOW_BYTES_S = 3_000_000
"""What a slow link lets through in each direction, in bytes a second."""
LOST = 0.1
"""The part of all segments that a lossy link loses. One of loopback has up to 64 KiB, more than forty of Ethernet."""
FREE = 0xFFFFFFFF

_SO_ATTACH_FILTER, _SO_DETACH_FILTER, _SO_MAX_PACING_RATE = 26, 27, 47
"""Linux's numbers, of asm-generic/socket.h; Python names none of them."""
_LOAD, _JUMP_IF_LESS, _RETURN = 0x20, 0x35, 0x06
"""Classic BPF: load a word, skip unless it is at least so much, end with so many bytes kept."""
_RANDOM = 0xFFFFF000 + 56
"""Where a load finds a random word (SKF_AD_OFF + SKF_AD_RANDOM)."""

LINKS: dict[str, Ill] = {"slow-link": "slow", "lossy-link": "lossy", "cut-link": "cut"}
"""The faults of the demo that befall a link."""

Ports = tuple[int, int]
"""The local and the remote port of a connection."""


class Wire(Protocol):
    """A connected socket, Python's or asyncio's."""

    def fileno(self) -> int: ...

    def setsockopt(self, level: int, optname: int, value: int | bytes, /) -> None: ...


def spoil(wire: Wire, ill: Ill | None) -> None:
    """From now on this end of a connection is slow to send, loses of what arrives, or gets nothing; None: it is well again.

    Raises OSError where the kernel knows no such option.
    """
    rate = SLOW_BYTES_S if ill == "slow" else FREE
    wire.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, struct.pack("=I", rate))
    if ill in ("cut", "lossy"):
        _filter(wire, 1.0 if ill == "cut" else LOST)
    else:
        with contextlib.suppress(FileNotFoundError):  # it had none
            wire.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def _filter(wire: Wire, lost: float) -> None:
    """Drop this part of the segments that arrive."""
    least = int(lost * 0xFFFFFFFF)
    program = [(_LOAD, 0, 0, _RANDOM), (_JUMP_IF_LESS, 1, 0, least), (_RETURN, 0, 0, 0), (_RETURN, 0, 0, FREE)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    wire.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code)))


def between(a: int, b: int) -> list[Ports]:
    """The connections of two processes of ours to each other, as both ends know them.

    Raises CkptdError when there is none.
    """
    ends = [_ends(pid) for pid in (a, b)]
    mutual = {(local, remote) for local, remote in ends[0] if (remote, local) in ends[1]}
    if not mutual:
        raise CkptdError(f"processes {a} and {b} have no TCP connection to each other; expected some between trainers")
    return sorted({pair for local, remote in mutual for pair in ((local[1], remote[1]), (remote[1], local[1]))})


def _ends(pid: int) -> set[tuple[tuple[str, int], tuple[str, int]]]:
    found = [c for c in psutil.Process(pid).net_connections("tcp") if c.laddr and c.raddr]
    return {((c.laddr.ip, c.laddr.port), (c.raddr.ip, c.raddr.port)) for c in found}


def own(ports: Collection[Ports]) -> Iterator[socket.socket]:
    """This process's connections with these ports. Each is another handle of the same connection, closed afterwards."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if not stat.S_ISSOCK(entry.stat().st_mode):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as wire:
                inet = wire.family in (socket.AF_INET, socket.AF_INET6)
                if inet and (wire.getsockname()[1], wire.getpeername()[1]) in ports:
                    yield wire
