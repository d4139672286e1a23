"""An fsspec file system as a store of objects: every call is bounded in time, tried again, and ends in an error of ours.

fsspec's asynchronous file systems (s3fs and its kind) run in its own event loop, on a thread of its own; calls are handed to
it from whatever thread needs them, and can be taken back. What is imported here is imported only where a URL asks for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, TypeVar

from ckptd.ckpt.errors import StorageError, UsageError
from ckptd.ckpt.place import Done

log = logging.getLogger(__name__)

EXTRAS = {"s3": "ckptd[s3]", "s3a": "ckptd[s3]", "gs": "ckptd[gcs]", "gcs": "ckptd[gcs]"}
"""What brings the file system of a protocol, for those that are tested with ckptd."""
_S3 = ("s3", "s3a")
_TIMES = ("LastModified", "last_modified", "mtime", "modified", "updated", "created")
_NO_BUCKET = re.compile(r"NoSuchBucket|(^|/)b/[^/]+/o(\?|$)")
"""How S3 says so; and the URL of a bucket's listing, which is missing only with the bucket, in gcsfs's error."""
STOPPING = "the daemon is stopping"
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a call and its repetitions may take. Seconds."""

    tries: int = 6
    first_pause_s: float = 0.25
    """Before the second try; doubled before each further one. Shortened by chance: the nodes should not come together."""
    enough_s: float = 30.0
    """After so long nothing is tried again: a rank that starts waits for what storage has."""
    call_s: float = 120.0
    """One try. A part of 8 MiB at 0.07 MB/s; what takes longer is taken back and tried again."""


class Missing(Exception):
    """There is no such object, upload or bucket: an answer of the store, and no failure."""


@dataclass(frozen=True, slots=True)
class Object:
    """What a listing says of an object."""

    size: int
    written_at: float | None
    """By the store's clock: seconds since 1970; None where it does not say."""


class Bucket:
    """Objects by key. May be used from several threads. Every method raises StorageError."""

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        """Nothing is sent yet. Raises UsageError when there is no such file system."""
        self.url = url
        self._patience = patience or Patience()
        self.fs, self.root = _open(url)
        self._closing = threading.Event()
        self._running: set[Future[Any]] = set()

    def key(self, *names: str) -> str:
        """The key of an object below the URL."""
        return "/".join((self.root, *names))

    # ---- calls ----------------------------------------------------------------------------------------

    def ask(self, what: str, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the file system, again if need be. Raises Missing, and StorageError ("cannot `what`: ...")."""
        return self.insist(what, lambda: self.once(name, *arguments, **options))

    def insist(self, what: str, act: Callable[[], T]) -> T:
        """The same of anything that uses `once`, or the file system itself."""
        began, pause_s = time.monotonic(), self._patience.first_pause_s
        for tried in range(1, self._patience.tries + 1):
            if self._closing.is_set():
                raise StorageError(f"cannot {what}: {STOPPING}")
            try:
                return act()
            except (Missing, StorageError):
                raise
            except FileNotFoundError as error:
                raise Missing(str(error)) from error
            except PermissionError as error:
                raise StorageError(
                    f"cannot {what}: {error}; check the storage's credentials and what they may do"
                ) from error
            except Exception as error:  # noqa: BLE001 - what somebody else's file system raises can't be listed
                problem = error
            took_s = time.monotonic() - began
            if took_s > self._patience.enough_s:
                break
            if tried < self._patience.tries:
                log.info("cannot %s: %s; again in %.1f s", what, said(problem), pause_s)
                self._closing.wait(pause_s * random.uniform(0.5, 1.0))
                pause_s *= 2
        raise StorageError(f"cannot {what}: {said(problem)}; tried {tried} times in {took_s:.0f} s") from problem

    def once(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the file system, once. Raises whatever it raises, TimeoutError, and CancelledError at the end."""
        if not self.fs.async_impl:
            return getattr(self.fs, name)(*arguments, **options)
        coroutine = getattr(self.fs, f"_{name}")(*arguments, **options)
        future = asyncio.run_coroutine_threadsafe(coroutine, self.fs.loop)
        self._running.add(future)
        try:
            if self._closing.is_set():
                future.cancel()
            return future.result(self._patience.call_s)
        finally:
            self._running.discard(future)
            future.cancel()  # of no effect once it is done

    def close(self) -> None:
        """Take back what runs, and try nothing again."""
        self._closing.set()
        for future in tuple(self._running):
            future.cancel()

    # ---- objects --------------------------------------------------------------------------------------

    def put(self, key: str, data: bytes) -> None:
        """Write a small object, in one call: whole or not at all."""
        try:
            self.ask(f"write {key}", "pipe_file", key, data)
        except Missing as error:
            raise StorageError(f"cannot write {key}: {error}; check that the bucket exists") from error

    def put_large(self, key: str, data: memoryview, block: int, done: Done) -> None:
        """Write an object block by block, as the file system does it. Seen when it is whole, where it can do that."""

        def write() -> None:
            sent = 0
            file = self.fs.open(key, "wb", block_size=block, autocommit=False)
            try:
                for start in range(0, len(data), block):
                    sent += file.write(data[start : start + block])
                    done(min(block, len(data) - start))
                    if self._closing.is_set():
                        raise StorageError(f"cannot write {key}: {STOPPING}")
                file.close()
                file.commit()
            except BaseException:
                done(-sent)
                file.discard()
                raise

        try:
            self.insist(f"write {key}", write)
        except Missing as error:
            raise StorageError(f"cannot write {key}: {error}; check that the bucket exists") from error

    def get(self, key: str, start: int, count: int) -> bytes:
        """`count` bytes of an object from `start` on, which must be there."""

        def read() -> bytes:
            data: bytes = self.once("cat_file", key, start=start, end=start + count)
            if len(data) != count:
                raise OSError(f"{len(data)} bytes came, expected {count}")
            return data

        try:
            return self.insist(f"read {key}", read)
        except Missing as error:
            raise StorageError(f"cannot read {key}: there is no such object") from error

    def size(self, key: str) -> int | None:
        """The bytes of an object; None when there is none."""
        try:
            found = self.ask(f"look at {key}", "info", key)
        except Missing:
            return None
        return int(found["size"]) if found["type"] == "file" else None

    def small(self, key: str, limit: int) -> bytes | None:
        """A whole object of at most `limit` bytes; None when there is none."""
        size = self.size(key)
        return None if size is None else self.whole(key, size, limit)

    def whole(self, key: str, size: int, limit: int) -> bytes:
        """An object of `size` bytes, which must be at most `limit`."""
        if size > limit:
            raise StorageError(f"{key} is longer than {limit} bytes; it is not ours")
        return self.get(key, 0, size) if size else b""

    def below(self, prefix: str) -> dict[str, Object | None]:
        """What stands right below a prefix: objects, and further prefixes as None. StorageError where there is no bucket."""
        try:
            found = self.ask(f"list {prefix}", "ls", prefix, detail=True)
        except Missing as error:
            if _is_no_bucket(error):
                raise StorageError(f"cannot list {prefix}: {error}; check the name of the bucket") from error
            return {}
        start, named = prefix.lstrip("/") + "/", dict[str, Object | None]()
        for item in found:
            name = str(item["name"]).lstrip("/").rstrip("/")
            if name.startswith(start):
                is_object = item["type"] == "file"
                named[name[len(start) :]] = Object(int(item["size"]), time_of(item)) if is_object else None
        return named

    def tree(self, prefix: str) -> dict[str, Object]:
        """All objects below a prefix, by the rest of their names, in as few requests as the store allows."""
        try:
            found = self.ask(f"list {prefix}", "find", prefix, detail=True)
        except Missing:
            found = {}
        start = prefix.lstrip("/") + "/"
        named = {str(name).lstrip("/"): item for name, item in found.items()}
        if not named:
            self.below(prefix)  # which tells a bucket that is not there from one that has nothing
        return {
            name[len(start) :]: Object(int(item["size"]), time_of(item))
            for name, item in named.items()
            if name.startswith(start) and item["type"] == "file"
        }

    def objects(self, prefix: str) -> dict[str, Object]:
        """The objects among them."""
        return {name: found for name, found in self.below(prefix).items() if found is not None}

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there are no error."""
        try:
            if keys:
                self.ask(f"remove {keys[0]}", "rm", list(keys))
        except Missing:
            for key in keys if len(keys) > 1 else ():  # some are there, perhaps
                self.delete([key])


def said(error: BaseException) -> str:
    """What an error of somebody else says, in one short line; some say nothing but their name."""
    text = " ".join(str(error).split())
    return text[:200] if text else type(error).__name__


def time_of(item: Mapping[str, Any]) -> float | None:
    """When an object was written, from what a file system's listing says of it; each kind has another word for it."""
    for name in _TIMES:
        found = item.get(name)
        if isinstance(found, datetime):
            return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()
        if isinstance(found, float) and math.isfinite(found):
            return found
    return None


def _is_no_bucket(error: Missing) -> bool:
    """Whether it is the bucket that is missing, and not only what should be in it."""
    cause: BaseException | None = error
    while cause is not None:
        if _NO_BUCKET.search(str(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _open(url: str) -> tuple[Any, str]:
    import fsspec  # only where a URL asks for it

    protocol = url.partition("://")[0]
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if protocol in _S3:
        bounds = {"connect_timeout": 5, "read_timeout": 30, "max_pool_connections": 32, "retries": {"max_attempts": 0}}
        configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        options["config_kwargs"] = {**bounds, **configured}
    try:
        fs, root = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        advice = f'pip install "{EXTRAS[protocol]}"' if protocol in EXTRAS else "install the package that has it"
        raise UsageError(f"storage {url}: {error}; {advice}") from error
    except ValueError as error:  # no such protocol, or not a URL that it takes
        raise UsageError(f"storage {url}: {error}; expected a directory or the URL of an object store") from error
    except Exception as error:  # what somebody else's file system raises can't be listed
        raise StorageError(f"cannot open {url}: {said(error)}; check the storage's credentials and settings") from error
    if protocol in _S3:
        fs.retries = 1  # `insist` does that, and says so
    return fs, str(root).rstrip("/")
