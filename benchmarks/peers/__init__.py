"""The systems that are compared: what each needs, what its snapshots survive, and where its adapter is.

Nothing here imports torch or a peer: the list is read by the process that starts the trainers.
"""

from __future__ import annotations

from dataclasses import dataclass

EVENTS, STORAGE = "events.jsonl", "storage"
"""What a trainer writes, and where its system may: names in the folder of a run."""
BASELINE = "none"
LOSSES = ("trainer", "node", "power")
"""What a snapshot may survive: the trainer's kill, the loss of its node with its memory, and a power cut everywhere.

By the state in which the system calls it complete. Storage counts as shared by the nodes; files that were not synced by
then count as lost with the node and with the power.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One way to take snapshots."""

    name: str
    adapter: str
    """MODULE:CLASS below benchmarks.peers."""
    package: str
    """The distribution whose version is reported."""
    requirement: str = ""
    """What pip installs into an environment of its own; '': it is in ours."""
    survives: tuple[str, ...] = ()
    service: str = ""
    """What must run outside the trainer, a name of benchmarks.services."""


SYSTEMS = (
    System(name=BASELINE, adapter="none:Nothing", package="torch"),
    System(name="torch.save", adapter="torch_save:TorchSave", package="torch", survives=("trainer",)),
    System(name="dcp.save", adapter="dcp:Save", package="torch", survives=LOSSES),
    System(name="dcp.async_save thread", adapter="dcp:AsyncThread", package="torch", survives=LOSSES),
    System(name="dcp.async_save process", adapter="dcp:AsyncProcess", package="torch", survives=LOSSES),
    System(
        name="torchsnapshot", adapter="torchsnapshot:AsyncTake", package="torchsnapshot",
        requirement="torchsnapshot==0.1.0", survives=("trainer",),
    ),
    System(
        name="torch_checkpointing", adapter="torch_checkpointing:Manager", package="torch_checkpointing",
        requirement="torch_checkpointing==0.1.1", survives=("trainer",),
    ),
    System(
        name="dlrover", adapter="dlrover:Flash", package="dlrover", requirement="dlrover[torch]==0.6.1",
        survives=("trainer",), service="dlrover",
    ),
    System(
        name="nvrx async", adapter="nvrx:Async", package="nvidia-resiliency-ext",
        requirement="nvidia-resiliency-ext==0.4.1", survives=("trainer",),
    ),
    System(
        name="nvrx local", adapter="nvrx:Local", package="nvidia-resiliency-ext",
        requirement="nvidia-resiliency-ext==0.4.1", survives=("trainer",),
    ),
    System(
        name="lm-resiliency", adapter="lm_resiliency:Gemini", package="lm-resiliency", requirement="lm-resiliency==0.2.0",
    ),
    System(name="ckptd captured", adapter="ckptd:Captured", package="ckptd", survives=("trainer",), service="captured"),
    System(name="ckptd sealed", adapter="ckptd:Sealed", package="ckptd", survives=("trainer", "node"), service="sealed"),
    System(name="ckptd persisted", adapter="ckptd:Persisted", package="ckptd", survives=LOSSES, service="persisted"),
)  # fmt: skip


class UnknownSystemError(Exception):
    """A system was asked for that is not in the list; the message names those that are."""


def named(name: str) -> System:
    """Raises UnknownSystemError."""
    for system in SYSTEMS:
        if system.name == name:
            return system
    raise UnknownSystemError(f"found system {name!r}, expected all or some of: {', '.join(s.name for s in SYSTEMS)}")


def chosen(text: str) -> list[System]:
    """`all`, or names with commas between; the baseline is always among them, first. Raises UnknownSystemError."""
    names = [s.name for s in SYSTEMS] if text == "all" else [part.strip() for part in text.split(",")]
    return [named(BASELINE), *(named(name) for name in names if name != BASELINE)]
