"""Hypothesis strategies for the values of the system, valid ones, and for whatever JSON may be found instead."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st

from ckptd.ckpt.barred import Bar, Barred, merged
from ckptd.ckpt.domain import DOMAIN
from ckptd.ckpt.inventory import ORIGINS, Captures, Held, Ledger, Parity, Part, Report
from ckptd.ckpt.model import GroupMap, Image, Payload, Table, Version
from ckptd.ckpt.rounds import ENDED, ENDS, WISHED_ENDS, Agent, Isolation, Member, Place, Round, Wish

NODES = 8
"""The letters below are of a job with this many nodes."""

versions = st.builds(Version, st.integers(0, 2**53 - 1), st.integers(0, 2**53 - 1))
digests = st.text("0123456789abcdef", min_size=32, max_size=32)


domains = st.from_regex(DOMAIN, fullmatch=True)


@st.composite
def _maps(draw: st.DrawFn) -> GroupMap:
    """Any map of some of the job's nodes; none at all, too."""
    nodes = draw(st.permutations(range(NODES)))[: draw(st.integers(0, NODES))]
    cuts = sorted(draw(st.sets(st.integers(1, NODES - 1), max_size=3)) | {0, NODES})
    groups = tuple(tuple(nodes[first:last]) for first, last in pairwise(cuts) if nodes[first:last])
    known = tuple((node, draw(domains)) for node in sorted(nodes) if draw(st.booleans()))
    return GroupMap(draw(st.integers(0, 2**53 - 1)), draw(st.integers(0, NODES - 1)), groups, known)


maps = _maps()


def images_of(rank: int) -> st.SearchStrategy[Image]:
    return st.builds(Image, st.just(rank), st.integers(0, 2**46 - 1), digests)


@st.composite
def _tables(draw: st.DrawFn) -> Table:
    """Any table that a job may have, also one that lacks ranks."""
    world = draw(st.integers(0, 6))
    where = {rank: draw(st.integers(-1, NODES - 1)) for rank in range(world)}
    payloads = tuple(
        Payload(node, tuple(draw(images_of(rank)) for rank in where if where[rank] == node))
        for node in sorted(set(where.values()) - {-1})
    )
    return Table(draw(versions), world, payloads, draw(maps))


tables = _tables()


@st.composite
def _held(draw: st.DrawFn) -> Held:
    world = draw(st.integers(1, 50))
    image = draw(images_of(draw(st.integers(0, world - 1))))
    return Held(draw(versions), world, image, draw(st.sampled_from(ORIGINS)))


small = st.integers(0, 255)
parities = st.builds(Parity, versions, digests, small, small, small)
boots = st.text(min_size=1, max_size=64)
maybe_version = st.none() | versions


def _captures() -> st.SearchStrategy[Captures]:
    numbers = st.integers(0, 2**20 - 1)
    return st.builds(Captures, numbers, numbers, maybe_version, st.lists(versions, max_size=2).map(tuple))


numbers = st.integers(0, 2**53 - 1)
names = st.from_regex(r"[0-9A-Za-z._-]{1,64}", fullmatch=True)
hosts = st.sampled_from(["", "node-3", "10.0.0.7", "fe80::1%eth0"])
ports = st.integers(0, 65535)
reasons = st.text("abc xyz,:é", max_size=500)


@st.composite
def _places(draw: st.DrawFn) -> Place:
    size = draw(st.integers(1, 2**20 - 1))
    return Place(draw(numbers), draw(names), draw(st.integers(0, size - 1)), size)


@st.composite
def _agents(draw: st.DrawFn) -> Agent:
    minimum = draw(st.integers(1, 2**20 - 1))
    return Agent(
        name=draw(names),
        join=draw(numbers),
        host=draw(hosts),
        port=draw(ports),
        minimum=minimum,
        maximum=draw(st.integers(minimum, 2**20 - 1)),
        last_call_s=draw(st.floats(0.0, 3600.0)),
        since=draw(numbers),
        place=draw(st.none() | _places()),
        reason=draw(reasons),
        ended=draw(st.sampled_from(ENDED)),
    )


@st.composite
def _rounds(draw: st.DrawFn) -> Round:
    nodes = draw(st.lists(st.integers(0, NODES - 1), unique=True, max_size=NODES))
    return Round(
        number=draw(numbers),
        key=draw(names),
        size=draw(st.integers(len(nodes), 2**20 - 1)),
        members=tuple(Member(node, draw(names), draw(numbers)) for node in nodes),
        host=draw(hosts),
        port=draw(ports),
        over=draw(reasons),
        end=draw(st.sampled_from(ENDS)),
    )


agents, rounds = _agents(), _rounds()
isolations = st.lists(st.builds(Isolation, st.integers(0, NODES - 1), numbers, st.booleans(), reasons), max_size=2)
bars = st.builds(Bar, numbers, versions, reasons.filter(bool), st.booleans())
barred = st.builds(lambda lifted, found: merged(Barred(lifted, tuple(found))), numbers, st.lists(bars, max_size=3))
"""What is barred, as it is kept: bars by number, none that is lifted."""
wishes = st.builds(Wish, numbers, names, reasons, st.sampled_from(WISHED_ENDS))


def reports(node: st.SearchStrategy[int]) -> st.SearchStrategy[Report]:
    """Reports of a node of the job."""
    ranks = st.tuples(st.integers(0, 2**20 - 1), st.integers(0, 2**31 - 1))
    return st.builds(
        Report,
        node=node,
        boot=boots,
        seq=st.integers(0, 2**53 - 1),
        data_port=st.integers(0, 65535),
        epoch=st.integers(0, 2**53 - 1),
        ranks=st.lists(ranks, max_size=3).map(tuple),
        captures=st.lists(_captures(), max_size=2).map(tuple),
        held=st.lists(_held(), max_size=3).map(tuple),
        parities=st.lists(parities, max_size=3).map(tuple),
        tables=st.lists(tables, max_size=2).map(tuple),
        part=st.none()
        | st.builds(Part, versions, st.lists(st.integers(0, 9).flatmap(images_of), max_size=2).map(tuple)),
        sealed=maybe_version,
        persisted=maybe_version,
        domain=st.just("") | domains,
        questions=st.integers(0, 2**53 - 1),
        wanted=maybe_version,
        scanned=st.booleans(),
        agent=st.none() | agents,
        wish=st.none() | wishes,
        isolations=isolations.map(tuple),
        barred=barred,
    )


@st.composite
def _ledgers(draw: st.DrawFn) -> Ledger:
    live = draw(st.lists(st.integers(0, NODES - 1), unique=True, max_size=3).map(sorted))
    lost = draw(st.lists(st.integers(0, NODES - 1).filter(lambda node: node not in live), unique=True, max_size=3))
    return Ledger(
        collector=draw(st.integers(0, NODES - 1)),
        boot=draw(boots),
        seq=draw(st.integers(0, 2**53 - 1)),
        nodes=NODES,
        map=draw(maps),
        epoch=draw(st.integers(0, 2**53 - 1)),
        sealed=draw(maybe_version),
        shielded=draw(maybe_version),
        persisted=draw(maybe_version),
        persist=draw(maybe_version),
        protect=draw(maybe_version),
        tables=tuple(draw(st.lists(tables, max_size=2))),
        reports=tuple(draw(reports(st.just(node))) for node in live),
        lost=tuple(lost),
        round=draw(st.none() | rounds),
        isolations=tuple(draw(isolations)),
        barred=draw(barred),
    )


ledgers = _ledgers()
letters = reports(st.integers(0, NODES - 1)) | ledgers

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)
"""Anything that Python's JSON parser may return."""
