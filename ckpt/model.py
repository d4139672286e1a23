"""The words of the system as frozen values. Everything else is said in these terms.

Nothing here does input or output, and nothing here knows torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ckptd.ckpt.errors import UsageError

PIECE = 256 * 1024
"""Bytes of one checksummed piece. Images, segments and range reads are counted in whole pieces, so that every byte that
crosses a wire or a disk is checked against the sum that was taken when it was captured."""

JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """Names a snapshot: the training life that made it, then the number of finished optimizer updates.

    The epoch grows at every start or restart of the trainers, so a step that is trained again after a rollback is never
    mixed with what the earlier life captured under the same number. Versions order by epoch first: a later life
    continues from a restored snapshot, so whatever it captured supersedes the abandoned future of the earlier one.
    """

    epoch: int
    step: int

    def __str__(self) -> str:
        return f"step {self.step} (epoch {self.epoch})"


@dataclass(frozen=True, slots=True)
class Image:
    """One rank's captured snapshot: `size` bytes of a safetensors file, and the digest of its pieces' checksums."""

    rank: int
    size: int
    digest: str
    """Hexadecimal xxh3_128 over the pieces' xxh3_64 sums, little-endian, in order (see `ckptd.ckpt.pieces`)."""

    @property
    def pieces(self) -> int:
        """How many pieces the image occupies; the last one may be short and counts as padded with zeros."""
        return pieces_of(self.size)


@dataclass(frozen=True, slots=True)
class Payload:
    """A node's images of one version, in rank order, each starting on a piece: the unit that the code protects."""

    node: int
    images: tuple[Image, ...]

    @property
    def pieces(self) -> int:
        return sum(image.pieces for image in self.images)

    def start_of(self, rank: int) -> int:
        """The piece at which the image of `rank` begins. Raises KeyError when the rank is not here."""
        start = 0
        for image in self.images:
            if image.rank == rank:
                return start
            start += image.pieces
        raise KeyError(rank)


@dataclass(frozen=True, slots=True)
class Table:
    """Who captured what at one version, over all nodes: complete when the images cover ranks 0..world-1 exactly."""

    version: Version
    world: int
    payloads: tuple[Payload, ...]

    def payload(self, node: int) -> Payload:
        """The node's payload, empty when it held no rank."""
        for payload in self.payloads:
            if payload.node == node:
                return payload
        return Payload(node, ())

    def holder(self, rank: int) -> tuple[Payload, Image]:
        """The payload and image of a rank. Raises KeyError when no node captured it."""
        for payload in self.payloads:
            for image in payload.images:
                if image.rank == rank:
                    return payload, image
        raise KeyError(rank)


def pieces_of(size: int) -> int:
    """The number of pieces that `size` bytes occupy."""
    return -(-size // PIECE)


def check_job_name(name: str) -> str:
    """Return `name`, or raise UsageError: job names become parts of paths, so only a safe alphabet is taken."""
    if not JOB_NAME.fullmatch(name):
        raise UsageError(
            f"job name {name!r}: expected 1 to 64 of A-Z a-z 0-9 . _ - beginning with a letter or digit; choose another"
        )
    return name
