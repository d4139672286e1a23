"""Who protects whom: nodes into protection groups, across failure domains wherever that is possible. Pure.

A failure domain is what fails as a whole: a rack, a switch, a zone. A group of k+m members survives the loss of a domain
when at most m of them stand in it: that is *the rule*. A step is recoverable when all its groups are, so the job survives
the loss of a domain when the rule holds for it in every group.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Groups = tuple[tuple[int, ...], ...]
"""The node numbers of each group, in the order of their positions in it."""


def parity_of(members: int, parity: int) -> int:
    """How many losses (m) a group of so many members tolerates: as many as asked for, but one member holds data."""
    return min(parity, members - 1)


def place(members: Sequence[int], domains: Mapping[int, str], *, parity: int, size: int) -> Groups:
    """Split `members` (node numbers, each once, in any order) into groups of nearly equal size, at most `size` each.

    `domains` says where nodes stand; one that is not in it, or stands in '', is a domain of its own. The result depends on
    nothing else: every node computes the same. The rule holds for every domain if any groups of at most `size` allow it.
    Otherwise it breaks for as few domains as possible, with as few members beyond m as that number of groups allows. Of
    equals, the fewest groups are taken, as large ones cost the least memory (m/k), and neighbours by number stay together:
    without domains the groups are the contiguous ones. Groups are ordered by their lowest member.

    Why it finds what can be found. n members in g groups of n_i have room for M = sum(m_i) of one domain, m_i =
    min(parity, n_i - 1), so a domain of more than M members breaks the rule by at least what is beyond M. As m_i is concave
    in n_i, sizes that differ by one at most have the most room: uneven ones need not be tried. Nor need more groups than
    n / (parity + 1), rounded up: from there on M = n - g.

    For g such groups the bound is met by *dealing*: members sorted by domain, largest first, go to the groups in turn, as
    cards do. So the larger groups come first, and a domain of c members has c // g in each group and one more in c mod g
    successive ones.

    * All n_i > parity: m_i is the same for all. A domain of c <= g * m has at most m in each group; a larger one fills
      every group to m or beyond, so that exactly c - M are too many.
    * All n_i <= parity + 1: m_i = n_i - 1, which is q - 1, and q for the first r groups, with q = n // g and r = n mod g.
      The first domain starts at group 0: it exceeds a q - 1 only where the larger groups are, unless it is larger than M;
      then it leaves no room unused, and fewer than n - M = g members follow: at most one in a group. The second domain
      is no larger than the first. If it too has q - 1 or more in each group, q is 2 at most, and as the two
      have no more than 2g + r members, its doubles follow the first one's within the r larger groups.

    A group of one has no parity. It occurs only where `size` leaves no choice.
    """
    assert parity >= 0, parity
    assert size >= 1, size
    nodes = sorted(members)
    assert len(set(nodes)) == len(nodes), "a member stands twice"
    if not nodes:
        return ()
    standing = _by_domain(nodes, domains)
    count = _count([len(domain) for domain in standing], len(nodes), parity, size)
    dealt = _deal(standing, count)
    bounds = [len(nodes) * index // count for index in range(count + 1)]
    contiguous = [nodes[start:end] for start, end in pairwise(bounds)]
    # Each domain's excess in `dealt` is the least that there is, so where the sums are equal, so are the broken domains.
    best = contiguous if _beyond(contiguous, domains, parity) <= _beyond(dealt, domains, parity) else dealt
    return tuple(_spread(group, domains) for group in sorted(best, key=min))


@dataclass(frozen=True, slots=True)
class Breach:
    """A domain that holds more members of a group than the group can lose."""

    group: int
    """The index of the group."""
    domain: str
    nodes: tuple[int, ...]
    """The members of the group that stand in the domain, by number: more than `tolerated`."""
    tolerated: int
    """How many losses the group tolerates (m), at least 1."""
    size: int
    """How many members the group has."""

    def __str__(self) -> str:
        """What is wrong and what to do, for people."""
        beyond = len(self.nodes) - self.tolerated
        # A group that stands in one domain altogether can't be given the parity to lose it: one member holds data.
        parity = f", or raise the parity to {len(self.nodes)}" if len(self.nodes) < self.size else ""
        return (
            f"group {self.group}: {_nodes(self.nodes)} stand in {self.domain} and only {_losses(self.tolerated)} tolerated; "
            f"move {beyond} of them to another domain, or add nodes elsewhere{parity}"
        )


def breaches(groups: Sequence[Sequence[int]], domains: Mapping[int, str], *, parity: int) -> tuple[Breach, ...]:
    """Each group and domain that break the rule, by group, then by how many members the domain has there.

    A group without parity can't break it, as it survives no loss at all: `explain` says that.
    """
    return tuple(
        Breach(index, domains[nodes[0]], tuple(nodes), m, len(group))
        for index, group in enumerate(groups)
        if (m := parity_of(len(group), parity))
        for nodes in _by_domain(group, domains)
        if len(nodes) > m
    )


def explain(groups: Sequence[Sequence[int]], domains: Mapping[int, str], *, parity: int) -> list[str]:
    """Lines for people: each group with its k+m, what it tolerates and its domains, then the `verdict`."""
    described = [_described(index, group, domains, parity) for index, group in enumerate(groups)]
    return described + verdict(groups, domains, parity=parity)


def verdict(groups: Sequence[Sequence[int]], domains: Mapping[int, str], *, parity: int) -> list[str]:
    """Lines for people: what has no parity, which domains are unknown, and that the rule is kept or what breaks it."""
    nodes = [node for group in groups for node in group]
    bare = [index for index, group in enumerate(groups) if not parity_of(len(group), parity)]
    lines = []
    if len(nodes) == 1:
        lines.append(
            "NO PARITY: a single node's snapshots survive the trainer and the daemon, not the node; add a node"
        )
    elif bare and not parity:
        lines.append(
            "NO PARITY: parity is 0, so what a lost node held comes back from storage or not at all; set it to 1"
        )
    elif bare:
        names = " and ".join(f"group {index}" for index in bare)
        lines.append(f"NO PARITY: {names}: one node alone, which nothing protects; choose another group size")
    if len(bare) == len(groups):
        return lines
    unknown = [node for node in nodes if not domains.get(node)]
    if len(unknown) == len(nodes):
        return [
            *lines,
            "no failure domain is known, so each node counts as its own; set `domain` where nodes fail together",
        ]
    if unknown:
        lines.append(f"no failure domain is known of {_nodes(unknown)}: each counts as its own")
    broken = [f"BROKEN: {breach}" for breach in breaches(groups, domains, parity=parity)]
    return lines + (broken or ["proved: no domain holds more members of a group than the group may lose"])


def _count(counts: Sequence[int], members: int, parity: int, size: int) -> int:
    """How many groups: the fewest of those that break the rule for the fewest domains, which hold `counts` members."""
    first = -(-members // size)
    last = max(first, -(-members // (parity + 1)))
    ascending = sorted(counts)

    def broken(groups: int) -> int:
        each, larger = divmod(members, groups)
        room = larger * parity_of(each + 1, parity) + (groups - larger) * parity_of(each, parity)
        return len(ascending) - bisect_right(ascending, room)

    return min(range(first, last + 1), key=broken)  # the first of equals


def _by_domain(nodes: Iterable[int], domains: Mapping[int, str]) -> list[list[int]]:
    """The nodes of each domain in ascending order; the largest domain first, of equals the one with the lowest node."""
    found: dict[str | int, list[int]] = {}
    for node in sorted(nodes):
        found.setdefault(domains.get(node) or node, []).append(node)
    return sorted(found.values(), key=lambda members: (-len(members), members[0]))


def _deal(standing: Sequence[Sequence[int]], piles: int) -> list[list[int]]:
    """Deal the nodes, domain after domain, to so many piles in turn."""
    ordered = [node for domain in standing for node in domain]
    return [ordered[pile::piles] for pile in range(piles)]


def _beyond(groups: Iterable[Sequence[int]], domains: Mapping[int, str], parity: int) -> int:
    """How many members there are in their groups beyond what the rule allows, over all domains."""
    return sum(
        max(0, len(nodes) - parity_of(len(group), parity)) for group in groups for nodes in _by_domain(group, domains)
    )


def _spread(group: Sequence[int], domains: Mapping[int, str]) -> tuple[int, ...]:
    """The members such that neighbours, the last and the first too, are of different domains wherever possible.

    Neighbours own the parities of the same stripe and so read the same segments from all others, but none from each other.
    Members of a domain that stand apart read from each other instead: less crosses the borders of domains, and when a
    domain is lost, the segments to decode are spread evenly over the stripes.

    The largest domain has c members. Dealt to c piles, each pile begins with one of them and has no domain twice, as none is
    larger. One pile after the other, only piles of one member bring two of the largest domain together, and they occur
    only where it has more members than all others.
    """
    standing = _by_domain(group, domains)
    return tuple(node for pile in _deal(standing, len(standing[0])) for node in pile)


def _described(index: int, group: Sequence[int], domains: Mapping[int, str], parity: int) -> str:
    m = parity_of(len(group), parity)
    k = len(group) - m
    where = [f"{domains[nodes[0]]}: {_numbers(nodes)}" for nodes in _by_domain(group, domains) if domains.get(nodes[0])]
    kind = ", a mirror" if (k, m) == (1, 1) else ""
    less = f" of the {parity} asked for, as the group is small" if 0 < m < parity else ""
    standing = f"; {'; '.join(where)}" if where else ""
    return f"group {index}: {_nodes(group)} ({k}+{m}{kind}), {_losses(m)} tolerated{less}{standing}"


def _losses(count: int) -> str:
    return f"{count or 'no'} {'losses are' if count > 1 else 'loss is'}"


def _nodes(nodes: Sequence[int]) -> str:
    return f"node{'s' if len(nodes) > 1 else ''} {_numbers(sorted(nodes))}"


def _numbers(nodes: Sequence[int]) -> str:
    *most, last = map(str, nodes)
    return f"{', '.join(most)} and {last}" if most else last
