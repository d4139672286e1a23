"""The demo's options are checked before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ckptd.ckpt.errors import UsageError
from ckptd.daemon.demo.options import DemoOptions, Layout, Model, parse_indices


def test_by_default_node_1_of_4_is_lost_in_the_middle() -> None:
    options = DemoOptions()
    assert (options.nodes, options.parity, options.lost, options.killed) == (4, 1, (1,), ())
    assert options.fault_step == options.steps // 2


def test_a_single_node_loses_itself() -> None:
    assert DemoOptions(nodes=1, parity=0).lost == (0,)


def test_killing_ranks_alone_loses_no_node() -> None:
    options = DemoOptions(kill_ranks=(0, 2))
    assert (options.lost, options.killed) == ((), (0, 2))


def test_a_rank_on_a_lost_node_dies_with_its_node() -> None:
    options = DemoOptions(lose_nodes=(1,), kill_ranks=(0, 1))
    assert (options.lost, options.killed) == ((1,), (0,))


@pytest.mark.parametrize("fault", ["slow-link", "lossy-link", "cut-link"])
def test_a_link_that_ckptd_is_to_notice_is_that_of_nodes_1_and_2_or_another_one(fault: str) -> None:
    options = DemoOptions(fault=fault)
    assert (options.link, options.lost, options.killed) == ((1, 2), (), ())
    assert DemoOptions(fault=fault, lose_nodes=(0, 3)).link == (0, 3)
    assert DemoOptions(fault="hang").link == ()


@pytest.mark.parametrize("fault", ["kill-rank", "hang", "gil", "loader", "stop", "slow-rank"])
def test_a_fault_that_ckptd_is_to_notice_befalls_rank_1_or_whom_it_is_said_to(fault: str) -> None:
    assert (DemoOptions(fault=fault).lost, DemoOptions(fault=fault).killed) == ((), (1,))
    assert DemoOptions(fault=fault, kill_ranks=(0, 2)).killed == (0, 2)
    assert DemoOptions(fault=fault, nodes=1, parity=0).killed == (0,)


def test_a_node_that_ckptd_is_to_miss_is_node_1_or_another_one() -> None:
    assert (DemoOptions(fault="kill-node").lost, DemoOptions(fault="kill-node").killed) == ((1,), ())
    assert DemoOptions(fault="kill-node", lose_nodes=(2,)).lost == (2,)
    assert DemoOptions(fault="kill-node", lose_nodes=(0,)).lost == (0,)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"nodes": 0, "parity": 0}, "--nodes 0: expected 1 to 16"),
        ({"nodes": 17}, "--nodes 17"),
        ({"parity": 4}, "--parity 4: expected 0 to 3"),
        ({"parity": -1}, "--parity -1"),
        ({"steps": 1}, "--steps 1"),
        ({"steps": 20, "at_step": 20}, "--at-step 20: expected 1 to 19"),
        ({"at_step": 0}, "--at-step 0"),
        ({"lose_nodes": (4,)}, "--lose-nodes 4: expected 0 to 3"),
        ({"lose_nodes": (1, 1)}, "--lose-nodes 1,1: the same one twice"),
        ({"kill_ranks": (-1,)}, "--kill-ranks -1"),
        ({"lose_nodes": ()}, "nothing to recover from"),
        ({"persist_every": 0}, "persist_every 0"),
        ({"fault": "meteor"}, "--fault meteor: expected one of kill-rank"),
        ({"fault": "hang", "lose_nodes": (1,)}, "say --kill-ranks"),
        ({"fault": "kill-node", "lose_nodes": (0, 1, 2, 3)}, "leaves one node that can tell"),
        ({"fault": "hang", "launcher": "torchrun"}, "need --launcher ckptd"),
        ({"warm_workers": True, "launcher": "torchrun"}, "need --launcher ckptd"),
        ({"fault": "kill-node", "kill_ranks": (1,)}, "takes --lose-nodes"),
        ({"fault": "gil", "kill_ranks": (4,)}, "--kill-ranks 4"),
        ({"fault": "slow-link", "nodes": 2}, "take 3 or more"),
        ({"fault": "slow-link", "lose_nodes": (1,)}, "as in --lose-nodes 1,2"),
        ({"fault": "slow-link", "lose_nodes": (1, 1)}, "the same one twice"),
        ({"fault": "slow-link", "lose_nodes": (1, 4)}, "--lose-nodes 4"),
        ({"fault": "slow-link", "kill_ranks": (1,)}, "befalls a link"),
        ({"timeout_s": 0.0}, "timeout_s 0.0"),
    ],
)
def test_what_cannot_work_is_refused_by_name(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        DemoOptions(**wrong)


def test_lists_of_numbers_are_read_from_the_command_line() -> None:
    assert parse_indices("1,2", "--lose-nodes") == (1, 2)
    assert parse_indices("", "--lose-nodes") == ()
    with pytest.raises(UsageError, match="--lose-nodes '1,b'"):
        parse_indices("1,b", "--lose-nodes")


def test_the_model_s_size_becomes_arguments_of_the_example() -> None:
    assert Model(layers=2).arguments() == ["--layers=2", "--width=256", "--heads=4", "--context=64", "--batch=8"]


def test_a_path_too_long_for_a_socket_is_refused() -> None:
    with pytest.raises(UsageError, match="choose a shorter --workdir"):
        Layout("name", Path("/tmp") / ("x" * 90), Path("/dev/shm/name")).check()
    Layout("name", Path("/tmp/ckptd-demo-12345678"), Path("/dev/shm/name")).check()
