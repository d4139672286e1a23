"""Placement: the rule is kept wherever any groups could keep it, by brute force over all of them and by maximum flows."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptd.ckpt.groups import map_of
from ckptd.ckpt.placement import Breach, breaches, explain, parity_of, place

few = settings(max_examples=60, deadline=None)


def stand(counts: Sequence[int], rng: Random | None = None) -> dict[int, str]:
    """Nodes 0.. in domains of so many nodes each, in order or shuffled."""
    nodes = list(range(sum(counts)))
    if rng:
        rng.shuffle(nodes)
    names = [f"rack-{index}" for index, count in enumerate(counts) for _ in range(count)]
    return dict(zip(nodes, names, strict=True))


def excess(groups: Sequence[Sequence[int]], domains: Mapping[int, str], parity: int) -> Counter[str]:
    """Members beyond m of each domain that has any, over all groups."""
    found: Counter[str] = Counter()
    for group in groups:
        for name, count in Counter(domains[node] for node in group).items():
            found[name] += max(0, count - min(parity, len(group) - 1))
    return +found


def compositions(total: int, largest: int) -> Iterator[tuple[int, ...]]:
    """Every way to write `total` as a descending sum."""
    if not total:
        yield ()
    for first in range(min(total, largest), 0, -1):
        for rest in compositions(total - first, first):
            yield (first, *rest)


@cache
def partitions(n: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Every way to split nodes 0..n-1 into groups of any sizes."""
    if not n:
        return ((),)
    found = []
    for smaller in partitions(n - 1):
        found.append((*smaller, (n - 1,)))
        found += [(*smaller[:index], (*group, n - 1), *smaller[index + 1 :]) for index, group in enumerate(smaller)]
    return tuple(found)


SHAPES = [counts for n in range(1, 9) for counts in compositions(n, n)]


@pytest.mark.parametrize("counts", SHAPES, ids=str)
def test_no_groups_at_all_do_better(counts: tuple[int, ...]) -> None:
    """Up to 8 nodes, against every split into groups of any sizes: no other breaks the rule for fewer domains, nor, with
    as many groups, has fewer members beyond it."""
    n = sum(counts)
    domains = stand(counts, Random(sum(count * 9**index for index, count in enumerate(counts))))
    for parity in range(1, 4):
        least: dict[tuple[int, int], tuple[int, int]] = {}  # (largest size, groups) -> broken domains; members beyond
        for groups in partitions(n):
            found = excess(groups, domains, parity)
            key = max(map(len, groups)), len(groups)
            broken, beyond = least.get(key, (n + 1, n + 1))
            least[key] = min(broken, len(found)), min(beyond, found.total())
        for size in range(1, 9):
            placed = place(range(n), domains, parity=parity, size=size)
            found = excess(placed, domains, parity)
            allowed = {key: value for key, value in least.items() if key[0] <= size}
            assert len(found) == min(broken for broken, _ in allowed.values())
            same = [beyond for (_, count), (_, beyond) in allowed.items() if count == len(placed)]
            assert found.total() == min(same)
            fewer = [broken for (_, count), (broken, _) in allowed.items() if count < len(placed)]
            assert all(broken > len(found) for broken in fewer)  # more groups than needed are taken for a reason


def placeable(sizes: Sequence[int], counts: Sequence[int], parity: int) -> bool:
    """Whether groups of these sizes can keep the rule: a maximum flow from domains to groups, found path by path."""
    room = [[min(parity, size - 1)] * len(counts) for size in sizes]
    left = list(sizes)
    held = [[0] * len(counts) for _ in sizes]
    for domain, count in enumerate(counts):
        for _ in range(count):
            came: dict[tuple[str, int], tuple[str, int]] = {("d", domain): ("", 0)}
            queue = deque([("d", domain)])
            end = None
            while queue and end is None:
                kind, at = queue.popleft()
                if kind == "d":
                    steps = [("g", group) for group in range(len(sizes)) if held[group][at] < room[group][at]]
                elif left[at]:
                    end = at
                    break
                else:
                    steps = [("d", other) for other in range(len(counts)) if held[at][other]]
                for step in steps:
                    if step not in came:
                        came[step] = (kind, at)
                        queue.append(step)
            if end is None:
                return False
            left[end] -= 1
            step = ("g", end)
            while came[step][0]:
                before = came[step]
                if step[0] == "g":
                    held[step[1]][before[1]] += 1
                else:
                    held[before[1]][step[1]] -= 1
                step = before
    return True


def test_the_flow_knows() -> None:
    """The oracle itself, on cases whose answer is plain."""
    assert placeable([4, 4], [2, 2, 2, 2], 1)
    assert not placeable([4, 4], [3, 2, 2, 1], 1)
    assert placeable([3, 2], [3, 1, 1], 2)
    assert not placeable([1], [1], 1)


@few
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=10).filter(lambda counts: sum(counts) <= 64),
    st.integers(1, 4),
    st.integers(2, 16),
    st.randoms(use_true_random=False),
)
def test_what_a_flow_finds_is_found(counts: list[int], parity: int, size: int, rng: Random) -> None:
    """Up to 64 nodes: where the rule is said to be impossible, no number of groups and no uneven sizes make it possible."""
    n = sum(counts)
    domains = stand(counts, rng)
    placed = place(range(n), domains, parity=parity, size=size)
    check_shape(placed, range(n), size)
    if not excess(placed, domains, parity):
        return
    for groups in range(-(-n // size), n // 2 + 1):
        even = [n // groups + (index < n % groups) for index in range(groups)]
        uneven = list(even)
        for _ in range(groups):
            giver, taker = rng.randrange(groups), rng.randrange(groups)
            if uneven[giver] > 1 and uneven[taker] < size and giver != taker:
                uneven[giver] -= 1
                uneven[taker] += 1
        assert not placeable(even, counts, parity)
        assert not placeable(uneven, counts, parity)


def check_shape(groups: Sequence[Sequence[int]], members: Sequence[int], size: int) -> None:
    assert sorted(node for group in groups for node in group) == sorted(members)
    sizes = [len(group) for group in groups]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert [min(group) for group in groups] == sorted(min(group) for group in groups)


@few
@given(
    st.dictionaries(st.integers(0, 10_000), st.sampled_from(["", "a", "b", "c", "d"]), min_size=1, max_size=64),
    st.integers(0, 4),
    st.integers(1, 16),
    st.randoms(use_true_random=False),
)
def test_every_member_is_in_one_group_and_all_agree(
    domains: dict[int, str], parity: int, size: int, rng: Random
) -> None:
    """Any node numbers, with gaps: groups of nearly equal size, the same whatever order a node has heard of them in."""
    placed = place(list(domains), domains, parity=parity, size=size)
    check_shape(placed, list(domains), size)
    items = list(domains.items())
    rng.shuffle(items)
    assert place([node for node, _ in items], dict(items), parity=parity, size=size) == placed
    known = {node: domain for node, domain in items if domain}
    assert place(list(domains), known, parity=parity, size=size) == placed
    renamed = {node: f"x{'dcba'.index(domain)}" for node, domain in known.items()}
    assert place(list(domains), renamed, parity=parity, size=size) == placed


@pytest.mark.parametrize("nodes", [*range(1, 40), 1000])
def test_without_domains_groups_are_contiguous(nodes: int) -> None:
    """As ever: the groups that the configuration alone gives; the same where all stand in one domain, as nothing helps."""
    for parity in range(4):
        for size in (2, 4, 8):
            plain = map_of(1, range(nodes), parity=parity, size=size).groups
            assert place(range(nodes), {}, parity=parity, size=size) == plain
            assert place(range(nodes), dict.fromkeys(range(nodes), "a"), parity=parity, size=size) == plain


def test_nobody() -> None:
    """No members, no groups."""
    assert place((), {}, parity=1, size=8) == ()


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.randoms(use_true_random=False))
@few
def test_neighbours_are_of_different_domains(counts: list[int], rng: Random) -> None:
    """Around the ring of positions as few neighbours share a domain as possible: none, unless one domain outnumbers all."""
    domains = stand(counts, rng)
    n = len(domains)
    (group,) = place(range(n), domains, parity=0, size=n)
    shared = sum(domains[group[position - 1]] == domains[group[position]] for position in range(n))
    assert shared == max(0, 2 * max(counts) - n)


def within(order: Sequence[str], m: int) -> int:
    """Segments that members read from members of their own domain: each stripe's owners read its data nodes."""
    n = len(order)
    return sum(
        order[(stripe + row) % n] == order[(stripe + m + symbol) % n]
        for stripe in range(n)
        for row in range(m)
        for symbol in range(n - m)
    )


@pytest.mark.parametrize("counts", [(2, 2), (2, 2, 1), (2, 1, 1), (2, 2, 2), (2, 2, 1, 1)])
def test_the_order_keeps_traffic_within_domains(counts: tuple[int, ...]) -> None:
    """With parity 2, no order of the members has less traffic between domains."""
    domains = stand(counts)
    (group,) = place(range(len(domains)), domains, parity=2, size=8)
    best = max(within(order, 2) for order in set(permutations(domains.values())))
    assert within([domains[node] for node in group], 2) == best


def test_a_thousand_nodes_are_placed_at_once() -> None:
    """The collector can afford it: far less than 0.1 s of its time."""
    for domains in ({}, stand([16] * 62 + [8]), stand([1000]), stand([500, 300, 200]), stand([1] * 1000)):
        start = time.process_time()
        place(range(1000), domains, parity=2, size=8)
        assert time.process_time() - start < 0.1


def test_breaches_name_who_breaks_the_rule() -> None:
    """The pair, its domain, how much is tolerated, and what to do."""
    domains = {0: "a", 1: "b", 2: "a", 3: "a", 4: "c", 5: ""}
    groups = [(0, 1, 2), (5, 3, 4)]
    (breach,) = breaches(groups, domains, parity=1)
    assert breach == Breach(0, "a", (0, 2), 1, 3)
    assert str(breach) == (
        "group 0: nodes 0 and 2 stand in a and only 1 loss is tolerated; move 1 of them to another domain, or add nodes "
        "elsewhere, or raise the parity to 2"
    )
    assert breaches(groups, domains, parity=2) == ()
    (whole,) = breaches([(0, 2, 3)], domains, parity=2)
    assert "nodes 0, 2 and 3 stand in a and only 2 losses are tolerated; move 1 of them" in str(whole)
    assert "parity" not in str(whole)


@few
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(1, 3), st.randoms(use_true_random=False))
def test_breaches_are_exactly_the_excess(counts: list[int], parity: int, rng: Random) -> None:
    """A domain is named if and only if it has more members in a group than may be lost."""
    domains = stand(counts, rng)
    placed = place(range(len(domains)), domains, parity=parity, size=8)
    found = breaches(placed, domains, parity=parity)
    named: Counter[str] = Counter()
    for breach in found:
        assert set(breach.nodes) <= set(placed[breach.group])
        assert {domains[node] for node in breach.nodes} == {breach.domain}
        named[breach.domain] += len(breach.nodes) - breach.tolerated
    assert named == (excess(placed, domains, parity) if len(domains) > 1 else {})


def test_the_advice_helps() -> None:
    """Raising the parity as a breach says leaves none."""
    for counts in ((3, 1), (5, 2, 1), (5, 1, 1, 1), (6, 1)):
        domains = stand(counts)
        groups = place(range(len(domains)), domains, parity=1, size=8)
        wanted = max(len(breach.nodes) for breach in breaches(groups, domains, parity=1))
        better = place(range(len(domains)), domains, parity=wanted, size=8)
        assert breaches(better, domains, parity=wanted) == ()


@pytest.mark.parametrize(
    ("counts", "parity", "size", "lines"),
    [
        (
            (2, 2),
            1,
            8,
            ["group 0: nodes 0 and 2 (1+1, a mirror), 1 loss is tolerated; rack-0: 0; rack-1: 2", "proved: "],
        ),
        ((1, 1, 1, 1), 2, 8, ["nodes 0, 1, 2 and 3 (2+2), 2 losses are tolerated", "proved: no domain holds more"]),
        (
            (3, 1),
            1,
            8,
            ["(3+1), 1 loss is tolerated; rack-0: 0, 1 and 2; rack-1: 3", "BROKEN: group 0: nodes 0, 1 and 2"],
        ),
        (
            (1,),
            1,
            8,
            ["group 0: node 0 (1+0), no loss is tolerated", "NO PARITY: a single node's snapshots survive the"],
        ),
        ((1, 1), 0, 8, ["(2+0), no loss is tolerated", "NO PARITY: parity is 0"]),
        (
            (1, 1, 1),
            1,
            2,
            ["(1+0), no", "(1+1, a mirror)", "NO PARITY: group 0: one node alone, which nothing", "proved: "],
        ),
        ((3, 1, 1), 2, 8, ["1 loss is tolerated of the 2 asked for, as the group is small", "proved: "]),
    ],
)
def test_what_people_are_told(counts: Sequence[int], parity: int, size: int, lines: list[str]) -> None:
    """Each group with k+m, what it tolerates and its domains; missing parity loudly; the rule proved or who breaks it."""
    domains = stand(counts)
    told = explain(place(range(len(domains)), domains, parity=parity, size=size), domains, parity=parity)
    for line in lines:
        assert any(line in said for said in told), (line, told)


def test_unknown_domains_prove_nothing() -> None:
    """Where no domain is known it is said instead of a proof; where some are unknown, those nodes are named."""
    assert explain([(0, 1)], {}, parity=1)[-1].startswith("no failure domain is known, so each node counts as its own")
    told = explain([(0, 1), (2, 3)], {0: "a", 1: "b", 3: "a"}, parity=1)
    assert told[-2:] == [
        "no failure domain is known of node 2: each counts as its own",
        "proved: no domain holds more members of a group than the group may lose",
    ]


def test_parity_leaves_one_member_for_data() -> None:
    """As much parity as asked for, but never all members."""
    assert [parity_of(members, 2) for members in (1, 2, 3, 4)] == [0, 1, 2, 2]
