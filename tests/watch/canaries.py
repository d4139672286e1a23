"""Bugs planted into the rules one at a time: the campaign must notice each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from ckptd.daemon.watch import crash, delays, hang, judge
from ckptd.daemon.watch.fleet import Fleet
from ckptd.daemon.watch.limits import Limits
from ckptd.daemon.watch.slow import SlowRanks

CANARIES: dict[str, Callable[[], AbstractContextManager[None]]] = {}


@contextmanager
def _put(owner: Any, name: str, value: Any) -> Iterator[None]:
    old = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, old)


def _canary(plant: Callable[[], AbstractContextManager[None]]) -> None:
    CANARIES[(plant.__doc__ or "").rstrip(".")] = plant


@_canary
def blame_the_first_missing() -> AbstractContextManager[None]:
    """Blame whoever has not entered, without following the waits."""

    def culprits(fleet: Fleet, seen: hang.Waits) -> Any:
        return seen.missing, np.zeros_like(seen.missing)

    return _put(hang, "culprits", culprits)


@_canary
def no_grace() -> AbstractContextManager[None]:
    """Give no grace to evaluation, checkpoint and compilation."""
    return _put(Fleet, "excused", lambda self, now: np.zeros(self.layout.world, bool))


@_canary
def blame_the_longest_wait() -> AbstractContextManager[None]:
    """Call slow who waits longest."""
    real = SlowRanks._judge

    def wrong(self: SlowRanks, fleet: Fleet, own: Any, step_s: float) -> Any:
        return real(self, fleet, step_s - own, step_s)

    return _put(SlowRanks, "_judge", wrong)


@_canary
def one_slow_step_is_enough() -> AbstractContextManager[None]:
    """Call slow who was late once."""
    real = SlowRanks.__init__

    def begin(self: SlowRanks, world: int, limits: Limits) -> None:
        real(self, world, replace(limits, late_of=1))

    return _put(SlowRanks, "__init__", begin)


@_canary
def someone_is_always_last() -> AbstractContextManager[None]:
    """Compare with the average of the ranks, without regard to how much they differ."""
    return _put(Limits, "__init__", _with(late_mads=0.5, apart=0.0))


@_canary
def one_witness_is_enough() -> AbstractContextManager[None]:
    """Call a node lost as soon as one node accuses it."""
    real = delays.Delays.votes

    def votes(self: delays.Delays, node: int, speaking: Any, now: float) -> tuple[int, int]:
        return 0, real(self, node, speaking, now)[1]

    @contextmanager
    def both() -> Iterator[None]:
        with _put(delays.Delays, "votes", votes), _put(Limits, "__init__", _with(silent_s=0.5)):
            yield

    return both()


@_canary
def swap_rows_and_columns() -> AbstractContextManager[None]:
    """Take the receiver of a slow transfer for its sender."""

    def swapped(cells: Any, nodes: int, limits: Limits) -> Any:
        found = delays.slow_links(replace(cells, receivers=cells.senders, senders=cells.receivers), nodes, limits)
        return [replace(verdict, nodes=(verdict.nodes[0] ^ 1,)) if not verdict.links else verdict for verdict in found]

    return _put(judge, "slow_links", swapped)


@_canary
def every_link_for_itself() -> AbstractContextManager[None]:
    """Blame each link of a node whose whole side is slow."""

    def apart(receivers: Any, senders: Any, value: Any, nodes: int, hot: float, limits: Limits) -> Any:
        return np.zeros(nodes), np.zeros(nodes), value

    return _put(delays, "_polish", apart)


@_canary
def whoever_shows_first() -> AbstractContextManager[None]:
    """Blame the first links that show a slow side."""
    return _put(delays, "_median_of_others", lambda line, value, cell: 0.0)


@_canary
def one_loss_is_enough() -> AbstractContextManager[None]:
    """Call a link lossy that has lost once."""
    return _put(Limits, "__init__", _with(lost_of=1))


@_canary
def last_to_die() -> AbstractContextManager[None]:
    """Blame everybody who has died, not who died first."""

    @contextmanager
    def both() -> Iterator[None]:
        with _put(crash, "FIRST_HAND", frozenset(range(-255, 256))), _put(Limits, "__init__", _with(close_s=1e9)):
            yield

    return both()


@_canary
def the_others_died_first() -> AbstractContextManager[None]:
    """Take the first error that is heard for the cause, though a node may have gone before."""
    return _put(crash, "FIRST_HAND", frozenset(range(-255, 65)))


@_canary
def earlier_lives_count() -> AbstractContextManager[None]:
    """Count what ranks of an earlier life report."""

    def known(self: Fleet, new: Any, source: Any) -> Any:
        return new["rank"] < self.layout.world

    return _put(Fleet, "_known", known)


@_canary
def believe_everything() -> AbstractContextManager[None]:
    """Take every digest, whatever it says."""
    return _put(Fleet, "_plausible", lambda self, new, old, heard, now: np.ones(len(new), bool))


def _with(**changed: Any) -> Callable[..., None]:
    """Limits with other defaults."""
    real = Limits.__init__

    def begin(self: Limits, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **(changed | kwargs))

    return begin
