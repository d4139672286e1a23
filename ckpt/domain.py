"""Which failure domain this node stands in: what fails with it as a whole, such as a rack, a leaf switch or a zone. Pure.

Precedence: the setting `domain`, Slurm, the labels of the Kubernetes pod, the host's own variable. What is found is text
from outside: it is checked here, and nothing else is read out of it than whether two nodes have the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.strict import short

DOMAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+,\[\]-]{0,127}")
"""Brackets and commas because Slurm names a node's several switches as leaf[1,4-6]."""

NONE = "none"
"""As the setting `domain`: this node stands in no domain, and nothing is looked up."""

ADDRESS, PATTERN = "SLURM_TOPOLOGY_ADDR", "SLURM_TOPOLOGY_ADDR_PATTERN"
HOST_VARIABLE = "CKPTD_NODE_DOMAIN"
"""What the host's image or unit file says of where the host stands; whatever the scheduler knows goes first."""

LABELS = ("topology.kubernetes.io/rack", "topology.kubernetes.io/zone")
"""The labels that are looked for unless the setting `domain_label` names one. Kubernetes itself sets the zone alone."""


@dataclass(frozen=True, slots=True)
class Found:
    """A node's failure domain, and who says so."""

    domain: str
    """'' when none is known."""
    source: str
    """Where it comes from, or why there is none, for people."""


def domain_from(environ: Mapping[str, str], labels: str | None, *, setting: str = "", label: str = "") -> Found:
    """The failure domain of this node.

    `labels` is the text of the downward API's file of pod labels (None: there is no such file), `setting` and `label` are
    the settings `domain` and `domain_label`, '' when unset. What is not understood is passed over, and `source` says so.
    Raises UsageError for a domain outside the alphabet, naming where it came from.
    """
    if setting == NONE:
        return Found("", "switched off by the setting `domain`")
    if setting:
        return Found(check_domain(setting, "setting domain"), "setting domain")
    looked = (_from_slurm(environ), _from_labels(labels, label), _from_host(environ))
    for found in looked:
        if found.domain:
            return found
    reasons = [found.source for found in looked if found.source]
    return Found("", "; ".join([*reasons, "set `domain` where nodes can fail together"]))


def check_domain(domain: str, source: str) -> str:
    """Return `domain`, or raise UsageError: it travels between nodes and is shown on terminals."""
    if not DOMAIN.fullmatch(domain):
        raise UsageError(
            f"{source}: found {short(domain)}, expected 1 to 128 of A-Z a-z 0-9 . _ : / @ + , [ ] - beginning with a letter "
            "or digit; choose another (--domain or CKPTD_DOMAIN goes before what is detected)"
        )
    return domain


def _from_slurm(environ: Mapping[str, str]) -> Found:
    """The switch or block right above the node: Slurm gives root.leaf7.node12 with the pattern switch.switch.node."""
    address, pattern = environ.get(ADDRESS, ""), environ.get(PATTERN, "")
    if not address:
        return Found("", "")
    *kinds, last = pattern.split(".")
    if last != "node" or (kinds and kinds[-1] not in ("switch", "block")):
        return Found("", f"{PATTERN} {short(pattern)} is not one of switches or blocks")
    if not kinds:
        return Found("", f"Slurm has no topology ({PATTERN} is 'node')")
    # The node's name may have dots of its own, so it is cut off by name where Slurm tells it.
    node = environ.get("SLURMD_NODENAME") or address.rpartition(".")[2]
    above = address.removesuffix(f".{node}")
    units = above.split(".")
    if above == address or len(units) != len(kinds) or not units[-1]:
        return Found("", f"{ADDRESS} {short(address)} does not fit its pattern {short(pattern)}")
    return Found(check_domain(units[-1], ADDRESS), ADDRESS)


def _from_labels(labels: str | None, label: str) -> Found:
    """The downward API writes key="value" a line, quoted as Go quotes; a valid label value needs no escapes."""
    if labels is None:
        return Found("", "")
    pairs = dict(line.partition("=")[::2] for line in labels.splitlines())
    keys = (label,) if label else LABELS
    for key in keys:
        quoted = pairs.get(key, '""')
        source = f"pod label {key}"
        if len(quoted) < 2 or not quoted.startswith('"') or not quoted.endswith('"'):
            raise UsageError(f"{source}: found {short(quoted)}, expected a value in double quotes; set --domain")
        if quoted != '""':
            return Found(check_domain(quoted[1:-1], source), source)
    return Found("", f"the pod has no label {' or '.join(keys)}")


def _from_host(environ: Mapping[str, str]) -> Found:
    domain = environ.get(HOST_VARIABLE, "")
    return Found(check_domain(domain, HOST_VARIABLE), HOST_VARIABLE) if domain else Found("", "")
