"""The words of the system as frozen values. Everything else is said in these terms.

Nothing here does input or output, and nothing here knows torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

import xxhash

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


@dataclass(frozen=True, slots=True, order=True)
class GroupMap:
    """Which nodes protect each other. The number grows with every change: of two maps the greater one is the newer."""

    number: int = 0
    parity: int = 0
    """How many nodes of a group may be lost, if it is large enough."""
    groups: tuple[tuple[int, ...], ...] = ()
    """The nodes of each group, by position. A node that has left for good is in none. Empty: not known yet."""
    domains: tuple[tuple[int, str], ...] = ()
    """(node, failure domain) as the map was made for, by node, where one is known."""

    @property
    def nodes(self) -> frozenset[int]:
        return frozenset(node for group in self.groups for node in group)


@dataclass(frozen=True)
class Table:
    """Who holds what of one version, over all nodes, and how it is protected: complete when ranks 0..world-1 are covered.

    A version has one table for each group map that it was protected under; the images are the same in all of them.
    """

    version: Version
    world: int
    payloads: tuple[Payload, ...]
    map: GroupMap = field(default_factory=GroupMap)

    def __hash__(self) -> int:
        return hash(self.name)  # computed once: tables are keys of caches, and have many fields

    @cached_property
    def name(self) -> str:
        """What parities and messages call this very table: 32 hexadecimal digits."""
        return xxhash.xxh3_128_hexdigest(repr((self.version, self.world, self.payloads, self.map)).encode())

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
