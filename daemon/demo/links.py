"""Links between daemons that can be cut, slowed down or corrupted: a TCP proxy for each ordered pair of nodes.

Daemon A reaches daemon B at an address of their own, 127.1.A.B, so that who talks to whom is known without a look
into what they say. Cut means what it means on a network: connections stay, nothing arrives until the link is back. Delay
is imitated by holding bytes back; loss is real, see `wires`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from random import Random
from typing import Any, Literal

from ckptd.daemon.demo import wires

How = Literal["cut", "slow", "corrupt", "lossy"]

CHUNK = 64 * 1024
SLOW_S = 0.02
"""Seconds that each chunk takes on a slow link: about 3 MB/s, and as many times as much delay for a round trip."""
CORRUPT_EVERY = 4
"""One chunk of so many has a bit flipped."""
POLL_S = 0.02
CALL_S = 10.0


def address_of(reader: int, node: int) -> str:
    """Where `reader` finds `node`."""
    return f"127.1.{reader}.{node}"


class Links:
    """The proxies, in a thread of their own. `close` must be called."""

    def __init__(self, seed: int = 0) -> None:
        self._how: dict[frozenset[int], How] = {}
        self._rng = Random(seed)
        self._servers: dict[tuple[int, int, int], asyncio.Server] = {}
        self._pumps: set[asyncio.Task[None]] = set()
        self._wires: dict[frozenset[int], set[wires.Wire]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="links", daemon=True)
        self._thread.start()

    def open(self, reader: int, node: int, port: int, host: str) -> None:
        """Lead what `reader` sends to `node`'s `port` on to `host`. Doing it twice is harmless. Raises OSError."""
        self._call(self._open(reader, node, port, host))

    def set(self, a: int, b: int, how: How | None) -> None:
        """What becomes of what `a` and `b` send each other from now on; None: it arrives.

        Raises OSError where the kernel can't lose what a lossy link should.
        """
        self._call(self._set(frozenset((a, b)), how))

    def close(self) -> None:
        """End all connections, and the thread."""
        self._how.clear()
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_S)
        self._loop.close()

    def _call(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(CALL_S)

    async def _set(self, ends: frozenset[int], how: How | None) -> None:
        before = self._how.pop(ends, None)
        if how is not None:
            self._how[ends] = how
        if "lossy" in (before, how):
            for wire in [
                wire for wire in self._wires.get(ends, ()) if wire.fileno() >= 0
            ]:  # the others have just ended
                wires.spoil(wire, "lossy" if how == "lossy" else None)

    async def _open(self, reader: int, node: int, port: int, host: str) -> None:
        if (reader, node, port) in self._servers:
            return

        async def serve(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task
            self._pumps.add(task)
            try:
                await self._connect(frozenset((reader, node)), source, sink, host, port)
            except asyncio.CancelledError:
                pass  # we are closing
            finally:
                self._pumps.discard(task)

        server = await asyncio.start_server(serve, address_of(reader, node), port, limit=CHUNK)
        self._servers[reader, node, port] = server

    async def _connect(
        self, ends: frozenset[int], source: asyncio.StreamReader, sink: asyncio.StreamWriter, host: str, port: int
    ) -> None:
        try:
            await self._held(ends)
            there, back = await asyncio.open_connection(host, port, limit=CHUNK)
            forth = asyncio.create_task(self._pump(ends, source, back))
            try:
                with self._known(ends, sink, back):
                    await self._pump(ends, there, sink)
                    await forth
            finally:
                forth.cancel()
                back.close()
        except OSError:
            pass  # nobody listens there: our end is closed, as theirs is
        finally:
            sink.close()

    @contextlib.contextmanager
    def _known(self, ends: frozenset[int], *writers: asyncio.StreamWriter) -> Iterator[None]:
        """While a connection lasts it gets what becomes of its link."""
        made = {writer.get_extra_info("socket") for writer in writers}
        self._wires.setdefault(ends, set()).update(made)
        try:
            if self._how.get(ends) == "lossy":
                for wire in made:
                    wires.spoil(wire, "lossy")
            yield
        finally:
            self._wires[ends] -= made

    async def _held(self, ends: frozenset[int]) -> None:
        while self._how.get(ends) == "cut":
            await asyncio.sleep(POLL_S)

    async def _pump(self, ends: frozenset[int], source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(CHUNK):
                await self._held(ends)
                if self._how.get(ends) == "slow":
                    await asyncio.sleep(SLOW_S)
                elif self._how.get(ends) == "corrupt" and self._rng.randrange(CORRUPT_EVERY) == 0:
                    data = self._flipped(data)
                sink.write(data)
                await sink.drain()
            sink.write_eof()

    def _flipped(self, data: bytes) -> bytes:
        spoiled = bytearray(data)
        spoiled[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
        return bytes(spoiled)

    async def _end(self) -> None:
        for server in self._servers.values():
            server.close()
        for task in list(self._pumps):
            task.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        await asyncio.sleep(0)  # the transports close their sockets in the loop's next turn
