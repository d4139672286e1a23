"""What comes into the node's pure core (events) and what it asks the outside to do (effects). Plain values all of them.
A `ticket` names somebody who waits for an answer; it is answered by exactly one `Answer`."""

from __future__ import annotations

from dataclasses import dataclass

from ckptd.ckpt.client import Attachment, Decision
from ckptd.ckpt.errors import CkptdError
from ckptd.ckpt.inventory import Ledger, Origin, Parity, Report
from ckptd.ckpt.model import Image, Table, Version
from ckptd.ckpt.recovery import Stored
from ckptd.ckpt.retention import Kept
from ckptd.ckpt.rounds import Standing
from ckptd.daemon.launch_events import AgentCame, AgentEnded, BarAsked, RestartAsked

Ticket = int


@dataclass(frozen=True, slots=True)
class SlotId:
    """Slot `index` of rank `rank` on this node."""

    rank: int
    index: int


# ---- events -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FoundSlot:
    """A slot whose record and bytes agree, found in the segment directory at start."""

    slot: SlotId
    version: Version
    world: int
    image: Image
    origin: Origin


@dataclass(frozen=True, slots=True)
class FoundParity:
    parity: Parity
    table: Table


@dataclass(frozen=True, slots=True)
class Scanned:
    """The segment directory was read and verified; `epoch` is the highest that this node had heard of."""

    slots: tuple[FoundSlot, ...]
    parities: tuple[FoundParity, ...]
    epoch: int
    sealed: Version | None


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class ReportCame:
    report: Report


@dataclass(frozen=True, slots=True)
class LedgerCame:
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class AttachAsked:
    ticket: Ticket
    rank: int
    world: int
    local_world: int
    pid: int
    epoch: int = 0
    """The life in which it was a rank before the daemon restarted; 0 for a trainer that has just started."""


@dataclass(frozen=True, slots=True)
class RankGone:
    rank: int
    pid: int


@dataclass(frozen=True, slots=True)
class DecideAsked:
    ticket: Ticket
    world: int
    fresh: bool
    stored: tuple[Stored, ...]
    pid: int = 0
    """The process of rank 0 that asks; 0 for somebody who is no trainer."""
    clock_s: float = 0.0
    """What time it is on this node, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class JoinAsked:
    ticket: Ticket
    rank: int
    epoch: int


@dataclass(frozen=True, slots=True)
class BeginAsked:
    ticket: Ticket
    rank: int
    version: Version
    size: int
    waited_s: float = 0.0  # for a free slot; 0 where one was free, or the trainer does not wait
    lent: str = ""  # a file that it would have for its slot


@dataclass(frozen=True, slots=True)
class CommitAsked:
    ticket: Ticket
    slot: SlotId
    version: Version


@dataclass(frozen=True, slots=True)
class SlotMade:
    """The file of a slot that was granted for `version` stands at `path`, or `problem` says why there is none."""

    ticket: Ticket
    slot: SlotId
    version: Version
    path: str = ""
    problem: CkptdError | None = None


@dataclass(frozen=True, slots=True)
class AbortAsked:
    ticket: Ticket
    slot: SlotId
    version: Version
    reason: str


@dataclass(frozen=True, slots=True)
class PersistAsked:
    """A trainer is about to leave, and wants a version on storage as soon as it is sealed."""

    ticket: Ticket
    version: Version


@dataclass(frozen=True, slots=True)
class Recorded:
    """The bytes of a committed slot were summed and its record written (or not: `image` is None, `reason` says why)."""

    slot: SlotId
    version: Version
    world: int
    image: Image | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RebuildAsked:
    """Somebody wants lost images of this node's payload rebuilt without delay."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class ParityMade:
    table: Table
    made: tuple[Parity, ...]
    reason: str = ""
    """Why some are missing."""
    waited_s: float = 0.0
    """For bytes of the others; `coded_s` went into encoding and sums."""
    coded_s: float = 0.0
    read_bytes: int = 0
    copied_bytes: int = 0
    """Of the parities: taken from older ones as they were; in `updated_bytes` what had changed was added."""
    updated_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Images of a lost payload now stand in slots here."""

    table: Table
    slots: tuple[FoundSlot, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Written:
    """This node's images of a version are on storage and synced (`reason` says why not)."""

    version: Version
    images: tuple[Image, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Published:
    """The manifest of a version is on storage: it is persisted (`reason` says why not). `stored` is all that is there."""

    version: Version
    reason: str = ""
    stored: tuple[Kept, ...] = ()


@dataclass(frozen=True, slots=True)
class Removed:
    """A persisted version is gone from storage (`reason` says why not)."""

    version: Version
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Damaged:
    """Pieces (ascending) of a slot's image no longer match its record."""

    slot: SlotId
    version: Version
    pieces: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Repaired:
    """The damaged pieces of an image stand again as they were captured (`reason` says why not)."""

    slot: SlotId
    version: Version
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ParityDamaged:
    parity: Parity


Event = (
    Scanned | Tick | ReportCame | LedgerCame | AttachAsked | RankGone | DecideAsked | JoinAsked | BeginAsked
    | CommitAsked | AbortAsked | PersistAsked | SlotMade | Recorded | RebuildAsked | ParityMade | Rebuilt | Written
    | Published | Removed | Damaged | Repaired | ParityDamaged | AgentCame | AgentEnded | BarAsked | RestartAsked
)  # fmt: skip


# ---- effects ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Granted:
    """What a trainer that may fill a slot is told."""

    slot: SlotId
    path: str


@dataclass(frozen=True, slots=True)
class Answer:
    ticket: Ticket
    value: Attachment | Decision | Granted | Standing | bool | CkptdError | None


@dataclass(frozen=True, slots=True)
class Send:
    to: int
    letter: Report | Ledger


@dataclass(frozen=True, slots=True)
class DropRecord:
    """Before a slot is filled again its record goes, so that a crash never finds old words about new bytes."""

    slot: SlotId


@dataclass(frozen=True, slots=True)
class Retire:
    """Take the slot's file away: a trainer that counts as gone may still be writing to it, and must not meet the next."""

    slot: SlotId


@dataclass(frozen=True, slots=True)
class MakeSlot:
    """Give the slot, granted for `version`, a file of `size` bytes, `lent` if it can be; come back with `SlotMade`."""

    ticket: Ticket
    slot: SlotId
    version: Version
    size: int
    lent: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """Sum the slot's pieces, write its record, and come back with `Recorded`."""

    slot: SlotId
    version: Version
    world: int


@dataclass(frozen=True, slots=True)
class MakeParity:
    """Read, encode and place these parities; come back with `ParityMade`."""

    table: Table
    parities: tuple[Parity, ...]
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class DropParity:
    parity: Parity


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Decode these images of a lost payload into the slots given; come back with `Rebuilt`."""

    table: Table
    slots: tuple[tuple[Image, SlotId], ...]
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class Repair:
    """Decode these pieces of an image that stands in a slot, and put them in their place; come back with `Repaired`."""

    slot: SlotId
    version: Version
    image: Image
    pieces: tuple[int, ...]
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class Write:
    """Write these slots' images to storage; come back with `Written`."""

    version: Version
    world: int
    slots: tuple[tuple[Image, SlotId], ...]


@dataclass(frozen=True, slots=True)
class Publish:
    """Write the manifest that makes the version persisted; come back with `Published`."""

    table: Table


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove a persisted version that need not be kept any more; come back with `Removed`."""

    version: Version


@dataclass(frozen=True, slots=True)
class Remember:
    """Keep these numbers over a restart of the daemon."""

    epoch: int
    sealed: Version | None


@dataclass(frozen=True, slots=True)
class Note:
    """An entry for the event record; `fields` are JSON values."""

    event: str
    fields: tuple[tuple[str, object], ...] = ()


Effect = (
    Answer | Send | DropRecord | Retire | MakeSlot | Record | MakeParity | DropParity | Rebuild | Repair | Write | Publish
    | Remove
    | Remember | Note
)  # fmt: skip


def named(version: Version) -> dict[str, object]:
    """A version as fields of an event record's entry."""
    return {"epoch": version.epoch, "step": version.step}


def note(event: str, **fields: object) -> Note:
    """An entry for the event record."""
    return Note(event, tuple(fields.items()))


def refuse(ticket: Ticket, error: CkptdError) -> Answer:
    """Answer with an error, which is raised where the question was asked."""
    return Answer(ticket, error)
