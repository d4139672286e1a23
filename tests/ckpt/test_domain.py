"""The node's failure domain: read from what schedulers say, as they really write it, and never guessed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.ckpt.domain import DOMAIN, Found, domain_from
from ckptd.ckpt.errors import UsageError


def slurm(address: str, pattern: str, **more: str) -> Found:
    return domain_from({"SLURM_TOPOLOGY_ADDR": address, "SLURM_TOPOLOGY_ADDR_PATTERN": pattern, **more}, None)


@pytest.mark.parametrize(
    ("address", "pattern", "domain"),
    [
        ("s0.s4.s8.tux1", "switch.switch.switch.node", "s8"),
        ("root.leaf7", "switch.node", "root"),
        ("b8.tux1", "block.node", "b8"),
        ("aib-switch-[1-4].aib-switch-6.aion-0027", "switch.switch.node", "aib-switch-6"),  # several cores above
        ("core.leaf[1,4-6].n1", "switch.switch.node", "leaf[1,4-6]"),  # a node on several leaves
        (".leaf7.n1", "switch.switch.node", "leaf7"),  # a tree of uneven depth
    ],
)
def test_slurm_names_the_switch_or_block_above_the_node(address: str, pattern: str, domain: str) -> None:
    """The address's part right above the node is the domain."""
    assert slurm(address, pattern) == Found(domain, "SLURM_TOPOLOGY_ADDR")


def test_a_node_whose_name_has_dots() -> None:
    """Slurm tells the node's name, so its own dots are not taken for the topology's."""
    assert (
        slurm("root.leaf7.n1.cluster.local", "switch.switch.node", SLURMD_NODENAME="n1.cluster.local").domain == "leaf7"
    )
    assert slurm("root.leaf7.n1.cluster.local", "switch.switch.node").domain == ""


@pytest.mark.parametrize(
    ("address", "pattern", "reason"),
    [
        ("n1", "node", "no topology"),
        ("n1.cluster.local", "node", "no topology"),
        ("root.leaf7.n1", "", "'' is not one of switches or blocks"),
        ("root.leaf7.n1", "switch.node", "does not fit its pattern 'switch.node'"),
        ("leaf7", "switch.node", "does not fit"),
        ("..n1", "switch.switch.node", "does not fit"),
        ("torus:0:1:2.n1", "torus:x:y:z.node", "'torus:x:y:z.node' is not one of"),
        ("root.leaf7.n1", "switch.switch", "not one of"),
    ],
)
def test_what_slurm_says_otherwise_is_passed_over(address: str, pattern: str, reason: str) -> None:
    """A flat cluster, a missing pattern or one that doesn't fit: the next source is asked, and the reason is told."""
    found = slurm(address, pattern)
    assert found.domain == ""
    assert reason in found.source
    assert slurm(address, pattern, CKPTD_NODE_DOMAIN="rack-7") == Found("rack-7", "CKPTD_NODE_DOMAIN")


LABELS = 'app="trainer"\nempty=""\nmine="r1"\ntopology.kubernetes.io/rack="rack-7"\ntopology.kubernetes.io/zone="eu-1a"'


def test_pod_labels() -> None:
    """The rack's label, else the zone's; a label that was named counts alone; an empty value is none."""
    assert domain_from({}, LABELS) == Found("rack-7", "pod label topology.kubernetes.io/rack")
    assert domain_from({}, LABELS.replace("/rack", "/x")) == Found("eu-1a", "pod label topology.kubernetes.io/zone")
    assert domain_from({}, LABELS, label="mine") == Found("r1", "pod label mine")
    for label in ("empty", "other"):
        found = domain_from({}, LABELS, label=label)
        assert found.domain == ""
        assert f"the pod has no label {label}" in found.source
    assert domain_from({}, "").domain == ""


@pytest.mark.parametrize(
    "line", ["rack=r7", 'rack="', 'rack="r7', 'rack=r7"', 'rack="r\\"7"', 'rack="r\\n7"', 'rack=" "']
)
def test_a_label_that_is_damaged(line: str) -> None:
    """A value without its quotes, or with what labels can't have, is an error that names the label."""
    with pytest.raises(UsageError, match="pod label rack: found"):
        domain_from({}, f'a="b"\n{line}\n', label="rack")
    assert domain_from({}, f"{line}\n", label="other").domain == ""


@pytest.mark.parametrize("bad", ["a b", "-a", "ä", "a\n", "a" * 129, "a\x1b[31m", "a;b", "[a]", "\udc80"])
def test_names_outside_the_alphabet(bad: str) -> None:
    """Whatever its source, such a name is refused with the source and what was expected."""
    sources: dict[str, Callable[[], Found]] = {
        "setting domain": lambda: domain_from({}, None, setting=bad),
        "SLURM_TOPOLOGY_ADDR": lambda: slurm(f"{bad}.n1", "switch.node"),
        "CKPTD_NODE_DOMAIN": lambda: domain_from({"CKPTD_NODE_DOMAIN": bad}, None),
    }
    for source, look in sources.items():
        with pytest.raises(UsageError, match=rf"{source}: found .*, expected 1 to 128 of"):
            look()


def test_the_setting_goes_first_and_can_switch_it_off() -> None:
    """A domain that was set is taken; 'none' looks nothing up, however odd it is."""
    environ = {"SLURM_TOPOLOGY_ADDR": "a b.n1", "SLURM_TOPOLOGY_ADDR_PATTERN": "switch.node"}
    assert domain_from(environ, "rack=", setting="rack-7") == Found("rack-7", "setting domain")
    assert domain_from(environ, "rack=", setting="none").domain == ""


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=60))
def test_anything_is_a_name_nothing_or_an_error(address: str, pattern: str, labels: str) -> None:
    """No text from outside gets through unchecked, or ends in another error."""
    for kind in (pattern, "switch.node", "node"):
        environ = {"SLURM_TOPOLOGY_ADDR": address, "SLURM_TOPOLOGY_ADDR_PATTERN": kind}
        try:
            found = domain_from(environ, labels, label=labels.partition("=")[0])
        except UsageError:
            continue
        assert found.domain == "" or DOMAIN.fullmatch(found.domain)
