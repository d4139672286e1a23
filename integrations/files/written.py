"""A file that is being written: in anonymous memory of this process until it is committed."""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Callable

from ckptd.integrations.files.places import Place


class NewFile(io.BufferedRandom):
    """Has a file descriptor, as writers of checkpoints sync them: without one DCP would sync all disks of the machine."""

    def __init__(self, place: Place, done: Callable[[NewFile], None]) -> None:
        """`done` is called when it is closed, with `content` set; not when it was left by an exception or forgotten."""
        self.place = place
        self.content = memoryview(bytearray())
        self.discarded = False
        self._done = done
        super().__init__(io.FileIO(os.memfd_create("ckptd-file", os.MFD_CLOEXEC), "r+b"))

    def __exit__(self, kind: object, *_: object) -> None:
        self.discarded = self.discarded or kind is not None
        self.close()

    def __del__(self) -> None:
        self.discarded = True
        self.close()

    def close(self) -> None:
        """The file is whole. Raises OSError when that is what commits it and that failed."""
        if self.closed:
            return
        try:
            self.flush()
            if size := self.seek(0, io.SEEK_END):
                self.content = memoryview(mmap.mmap(self.fileno(), size))
        finally:
            super().close()
        if not self.discarded:
            self._done(self)

    def commit(self) -> None:
        """For fsspec's transactions, which commit all of their files at once."""

    def discard(self) -> None:
        """For fsspec's transactions."""
        self.discarded = True
