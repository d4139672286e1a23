"""The split of replicated state over the replicas."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptd.ckpt.plan import Item, Share, split

tensors = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40)), max_size=12)
calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
replica_counts = st.integers(1, 9)


def items_of(sizes: list[tuple[int, int]]) -> list[Item]:
    return [Item(f"t{index:02d}", rows, row_bytes) for index, (rows, row_bytes) in enumerate(sizes)]


@calm
@given(tensors, replica_counts)
def test_every_row_exactly_once(sizes: list[tuple[int, int]], replicas: int) -> None:
    """The shares cover every row of every tensor exactly once, in order, and name every empty tensor exactly once."""
    items = items_of(sizes)
    found: dict[str, list[Share]] = {item.name: [] for item in items}
    for shares in split(items, replicas):
        assert [share.name for share in shares] == sorted(share.name for share in shares)
        for share in shares:
            found[share.name].append(share)
    for item in items:
        rows = [row for share in found[item.name] for row in range(share.start, share.start + share.count)]
        assert rows == list(range(item.rows))
        if item.rows * item.row_bytes == 0:
            assert len(found[item.name]) == 1


@calm
@given(tensors, replica_counts)
def test_no_share_is_much_larger_than_its_part(sizes: list[tuple[int, int]], replicas: int) -> None:
    """No replica captures more than total/replicas plus the largest row."""
    items = {item.name: item for item in items_of(sizes)}
    total = sum(item.rows * item.row_bytes for item in items.values())
    largest = max((item.row_bytes for item in items.values() if item.rows), default=0)
    for shares in split(items.values(), replicas):
        assert (
            replicas * sum(share.count * items[share.name].row_bytes for share in shares) <= total + replicas * largest
        )


@calm
@given(tensors, replica_counts, st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(sizes: list[tuple[int, int]], replicas: int, random) -> None:  # type: ignore[no-untyped-def]
    """Ranks that list their tensors in different orders compute the same split."""
    items = items_of(sizes)
    shuffled = random.sample(items, len(items))
    assert split(shuffled, replicas) == split(items, replicas)


def test_tensors_of_one_row_are_not_cut() -> None:
    """A 0-dim, empty or one-row tensor goes to one replica whole."""
    items = [Item("a", 1, 8), Item("b", 0, 8), Item("c", 1, 1000), Item("d", 3, 0)]
    shares = [share for part in split(items, 4) for share in part]
    assert sorted(share.name for share in shares) == ["a", "b", "c", "d"]


def test_one_replica_takes_everything() -> None:
    """Without replicas there is nothing to split."""
    assert split([Item("b", 4, 2), Item("a", 1, 4)], 1) == [[Share("a", 0, 1), Share("b", 0, 4)]]
