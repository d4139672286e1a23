"""What the operating system says of a trainer's process, without any help of the process. Linux."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from ckptd.ckpt.errors import PeerError

_PIDFD_GET_INFO = 0xC040FF0B  # Linux 6.13; the end of a process that was reaped since 6.15
_PIDFD_INFO_EXIT = 1 << 3
_INFO_BYTES = 64
_STAT_MAX = 4096


@dataclass(frozen=True, slots=True)
class State:
    """A process at one moment."""

    letter: str
    """As in `ps`: R, S, D, T, Z, ...; '' when it can't be read."""
    asleep_in: str
    """The kernel function that its main thread sleeps in; '' while it runs, or when that can't be read."""


class TrainerProcess:
    """One process by its pidfd: a number that is used again is not mistaken for it."""

    def __init__(self, pid: int) -> None:
        """Raises PeerError when there is no such process here."""
        self.pid = pid
        try:
            self.descriptor = os.pidfd_open(pid)
        except OSError as error:
            raise PeerError(f"process {pid}: {error.strerror}; of another pid namespace?") from error

    def state(self) -> State:
        """What its main thread does now."""
        try:
            letter = _after_name(self.pid)[0]
        except (OSError, IndexError):
            return State("", "")
        try:
            where = Path(f"/proc/{self.pid}/wchan").read_text()[:64]
        except (OSError, UnicodeDecodeError):
            where = ""
        return State(letter, "" if where == "0" else where)

    def ending(self) -> int | None:
        """Once it has gone: its exit code, or minus the signal, whether its parent has reaped it or not. None: not known."""
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = _after_name(self.pid)
            if fields[0] == "Z":
                return _code(int(fields[49]))
        info = bytearray(_INFO_BYTES)
        struct.pack_into("<Q", info, 0, _PIDFD_INFO_EXIT)
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.descriptor, _PIDFD_GET_INFO, info)
            if struct.unpack_from("<Q", info)[0] & _PIDFD_INFO_EXIT:
                return _code(struct.unpack_from("<i", info, _INFO_BYTES - 4)[0])
        return None

    def close(self) -> None:
        os.close(self.descriptor)


def _after_name(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; a name may hold blanks and brackets."""
    with Path(f"/proc/{pid}/stat").open("rb") as file:
        return file.read(_STAT_MAX).rpartition(b")")[2].decode("ascii", "replace").split()


def _code(status: int) -> int:
    """A wait status as an exit code, or minus the signal."""
    return -(status & 0x7F) if status & 0x7F else status >> 8 & 0xFF
