"""Several threads on one range of bytes. What they call releases the interpreter lock, so they run at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache

THREADS_MAX = 64
GRAIN = 64 * 1024
"""The fewest bytes of a symbol that are worth a thread of their own; shares begin at a multiple of it."""


def spread(length: int, threads: int, work: Callable[[slice], None]) -> None:
    """Call `work` with parts that cover `length` bytes, on up to `threads` threads, this one being the first.

    Returns when all are done. Raises ValueError unless 1 <= threads <= 64, and what `work` raised.
    """
    if not 1 <= threads <= THREADS_MAX:
        raise ValueError(f"threads: found {threads}, expected 1 to {THREADS_MAX}")
    grains = -(-length // GRAIN)
    share = -(-grains // threads) * GRAIN
    if share >= length:
        work(slice(0, length))
        return
    parts = [slice(start, min(length, start + share)) for start in range(0, length, share)]
    futures = [_pool(os.getpid()).submit(work, part) for part in parts[1:]]
    try:
        work(parts[0])
    finally:
        wait(futures)  # also after an error: the others still write into the caller's buffers
    for future in futures:
        future.result()


@lru_cache(maxsize=1)
def _pool(_process: int) -> ThreadPoolExecutor:
    # One for each process: the threads do not live on in a fork.
    return ThreadPoolExecutor(max_workers=THREADS_MAX - 1, thread_name_prefix="erasure")
