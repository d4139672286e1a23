"""Sightings between daemons: they arrive signed, their answers too, and neither stands in the way of reports and ledgers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.cluster import free_address, until

from ckptd.ckpt.config import Config
from ckptd.ckpt.inventory import Report
from ckptd.ckpt.sighting import Answer, Sighting
from ckptd.ckpt.wire.translate import Letter
from ckptd.daemon.peers import Peers, PeerServer

SECRET = b"s" * 32


@pytest.fixture
def configs(tmp_path: Path) -> list[Config]:
    """Two nodes of one job."""
    nodes = tuple(free_address(f"127.75.0.{index + 1}") for index in range(2))
    base = Config(job="j", nodes=nodes, run_dir=tmp_path, segment_dir=tmp_path, secret=SECRET)
    return [replace(base, node=index).validate() for index in range(2)]


@pytest.fixture
def peers(configs: list[Config]) -> Iterator[Peers]:
    """Node 0 sends."""
    made = Peers(configs[0])
    yield made
    made.close()


def test_a_sighting_is_answered(configs: list[Config], peers: Peers) -> None:
    """What the collector's daemon answers comes back to who is told of answers, with the node's number."""
    heard: list[Letter] = []
    answers: list[tuple[int, Answer]] = []
    peers.answered = lambda node, answer: answers.append((node, answer))

    def received(letter: Letter) -> Answer | None:
        heard.append(letter)
        return Answer(7.0, (0,), (3,)) if isinstance(letter, Sighting) else None

    server = PeerServer(configs[1], "b", received)
    try:
        seen = Sighting(node=0, boot="b", at=5.0)
        peers.send(1, seen)
        until(lambda: answers, "the answer")
        assert (heard, answers) == ([seen], [(1, Answer(7.0, (0,), (3,)))])
        peers.send(1, Report(node=0, boot="b", seq=1))
        until(lambda: len(heard) == 2, "the report")
        assert len(answers) == 1, "only sightings are answered"
    finally:
        server.close()


def test_only_the_newest_sighting_waits_beside_the_report(configs: list[Config], peers: Peers) -> None:
    """A collector that is down costs a node one sighting and one report."""
    for at in range(1, 50):
        peers.send(1, Sighting(node=0, boot="b", at=float(at)))
        peers.send(1, Report(node=0, boot="b", seq=at))
    heard: list[Letter] = []
    server = PeerServer(configs[1], "b", heard.append)
    try:

        def arrived() -> bool:
            peers.send(1, Sighting(node=0, boot="b", at=99.0))
            return Sighting(node=0, boot="b", at=99.0) in heard

        until(arrived, "the newest one")
        assert len(heard) < 20
    finally:
        server.close()


def test_who_is_not_at_its_place_is_not_heard(configs: list[Config], peers: Peers) -> None:
    """A sighting counts only from the daemon that answered last at its node's address, never as this node itself."""
    assert not peers.knows(Sighting(node=1, boot="b"))
    server = PeerServer(configs[1], "b", lambda _letter: None)
    try:
        peers.send(1, Report(node=0, boot="a", seq=1))
        until(lambda: peers.knows(Sighting(node=1, boot="b")), "the introduction")
        assert not peers.knows(Sighting(node=1, boot="an older machine's"))
        assert not peers.knows(Sighting(node=0, boot="b"))
    finally:
        server.close()
