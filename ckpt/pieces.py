"""Checksums of pieces: the sums that are taken at capture and checked wherever the bytes go."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import xxhash

from ckptd.ckpt.model import PIECE, Image

Buffer = bytes | bytearray | memoryview


def piece_sum(piece: Buffer) -> int:
    """xxh3_64 of one piece (the last piece of an image is summed without padding)."""
    return xxhash.xxh3_64_intdigest(piece)


def sums_of(image: Buffer) -> list[int]:
    """The sums of all pieces of `image`, in order."""
    view = memoryview(image)
    return [piece_sum(view[start : start + PIECE]) for start in range(0, len(view), PIECE)]


def digest_of(sums: Sequence[int], size: int) -> str:
    """Name an image by its pieces' sums and its size: hexadecimal xxh3_128 over `size`, then the sums, all u64 LE."""
    return xxhash.xxh3_128_hexdigest(struct.pack(f"<Q{len(sums)}Q", size, *sums))


def pack_sums(sums: Sequence[int]) -> bytes:
    """What stands beside a persisted image: its pieces' sums in order, u64 LE."""
    return struct.pack(f"<{len(sums)}Q", *sums)


def unpack_sums(data: bytes, image: Image) -> list[int] | None:
    """The sums in such bytes; None where they are not those of the image, as its digest tells."""
    if len(data) != 8 * image.pieces:
        return None
    sums = list(struct.unpack(f"<{image.pieces}Q", data))
    return sums if digest_of(sums, image.size) == image.digest else None


def parts(pieces: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """As `runs`, none of more than `most` pieces."""
    for first, count in runs(pieces):
        for start in range(first, first + count, most):
            yield start, min(most, first + count - start)


def runs(pieces: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as (first, count) of those that follow each other."""
    if isinstance(pieces, range):
        yield pieces.start, len(pieces)
        return
    first = last = -1
    for piece in pieces:
        if piece != last + 1 or first < 0:
            if first >= 0:
                yield first, last - first + 1
            first = piece
        last = piece
    if first >= 0:
        yield first, last - first + 1
