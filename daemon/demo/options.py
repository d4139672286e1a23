"""What the demo is asked to do, checked before anything starts, and where it puts things. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ckptd.ckpt.errors import UsageError
from ckptd.daemon.demo.judged import CLASSES
from ckptd.daemon.demo.wires import LINKS

NODES_MAX = 16
"""More would be slow on one machine; and torchrun orders nodes by address as text, which is ours up to 127.0.0.99."""

LINKED_MIN = 3
"""Of two nodes' one link nobody can say whether it is slow: there is no other."""

SOCKET_PATH_MAX = 100
"""A unix socket's path may have 107 bytes; the rest is room for a temporary name beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The size of the trained GPT, as options of `ckptd.examples.train_gpt`. The default has 3.2 million parameters."""

    layers: int = 4
    width: int = 256
    heads: int = 4
    context: int = 64
    batch: int = 8

    def arguments(self) -> list[str]:
        return [f"--{name}={getattr(self, name)}" for name in ("layers", "width", "heads", "context", "batch")]


SMALL = Model(layers=2, width=128)
"""Where links are slow: its gradients pass one in less than a second, so steps are slow and do not look like a hang."""
LINK_STEPS, LINK_PACE_S = 60, 0.5
"""A link is measured about once a second, and judged by twenty measurements."""


def training_for(fault: str) -> tuple[Model, float]:
    """How a demo of this fault trains: its model, and the seconds that a step takes at least."""
    return (SMALL, LINK_PACE_S) if fault in LINKS else (Model(), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """One demo. Raises UsageError when it could not work."""

    nodes: int = 4
    """Nodes, each with one daemon and one trainer; rank I lives on node I."""
    parity: int = 1
    """Nodes of the group that may be lost at once without falling back to storage."""
    lose_nodes: tuple[int, ...] | None = None
    """Nodes to lose, or the two ends of a link. None: node 1 (node 0 of a single one), unless ranks are to be killed."""
    kill_ranks: tuple[int, ...] = ()
    """Trainers to kill while their nodes live."""
    fault: str = ""
    """What befalls `kill_ranks` or `lose_nodes` (rank or node 1; of a link nodes 1 and 2), and has to be called so.
    '': trainers and nodes are killed."""
    launcher: Literal["ckptd", "torchrun"] = "ckptd"
    """`ckptd run`: nobody but ckptd notices and restarts. Or torchrun with a store of its own, without ckptd's part."""
    warm_workers: bool = False
    """Whether `ckptd run` forks trainers from a server that has torch loaded."""
    at_step: int | None = None
    """The fault happens when every rank has finished this step. None: in the middle."""
    steps: int = 40
    seed: int = 1
    persist_every: int = 10
    """Steps between two that are written to storage."""
    workdir: Path | None = None
    """An empty or new directory for the run. None: a temporary one."""
    keep: bool = False
    """Leave the work directory, with the persisted steps and the logs."""
    report: Path | None = None
    """A file to write the JSON report to."""
    segments_root: Path = Path("/dev/shm")  # noqa: S108  (the tmpfs that every Linux has)
    """A directory on a tmpfs for the nodes' shared memory."""
    timeout_s: float = 170.0
    """Limit for each of the two runs, in seconds."""
    model: Model = Model()
    pace_s: float = 0.0
    """Seconds that a step with checkpoints takes at least."""

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= NODES_MAX:
            raise UsageError(f"--nodes {self.nodes}: expected 1 to {NODES_MAX}")
        if not 0 <= self.parity < self.nodes:
            raise UsageError(
                f"--parity {self.parity}: expected 0 to {self.nodes - 1}, fewer than the {self.nodes} nodes"
            )
        if self.steps < 2:
            raise UsageError(f"--steps {self.steps}: expected 2 or more, so that there is a middle")
        if not 1 <= self.fault_step < self.steps:
            raise UsageError(f"--at-step {self.at_step}: expected 1 to {self.steps - 1}, before the last step")
        if self.persist_every < 1:
            raise UsageError(f"persist_every {self.persist_every}: expected 1 or more")
        if self.timeout_s <= 0:
            raise UsageError(f"timeout_s {self.timeout_s}: expected a positive number of seconds")
        if self.launcher != "ckptd" and (self.fault or self.warm_workers):
            raise UsageError("--fault and --warm-workers need --launcher ckptd: torchrun knows nothing of either")
        self._check_fault()
        check_indices("--lose-nodes", self.lost, self.nodes)
        check_indices("--kill-ranks", self.kill_ranks, self.nodes)
        check_indices("--lose-nodes", self.link, self.nodes)
        if not self.lost and not self.killed and not self.link:
            raise UsageError(
                "neither --lose-nodes nor --kill-ranks names anybody: there would be nothing to recover from"
            )

    def _check_fault(self) -> None:
        if self.fault and self.fault not in CLASSES:
            raise UsageError(f"--fault {self.fault}: expected one of {', '.join(CLASSES)}")
        if self.fault == "kill-node":
            if self.kill_ranks or len(self.lost) == self.nodes:
                raise UsageError("--fault kill-node takes --lose-nodes, and leaves one node that can tell")
        elif self.fault in LINKS:
            self._check_link()
        elif self.fault and self.lose_nodes is not None:
            raise UsageError(f"--fault {self.fault} befalls ranks; say --kill-ranks, not --lose-nodes")

    def _check_link(self) -> None:
        if self.nodes < LINKED_MIN:
            raise UsageError(
                f"--fault {self.fault} with --nodes {self.nodes}: a link is compared with others; take 3 or more"
            )
        if self.kill_ranks or len(self.link) != 2:
            raise UsageError(f"--fault {self.fault} befalls a link; say its two ends, as in --lose-nodes 1,2")

    @property
    def link(self) -> tuple[int, ...]:
        """The two nodes whose link `fault` befalls."""
        if self.fault not in LINKS:
            return ()
        return (1, 2) if self.lose_nodes is None else self.lose_nodes

    @property
    def lost(self) -> tuple[int, ...]:
        """The nodes that will be lost."""
        if self.fault not in ("", "kill-node"):
            return ()
        if self.lose_nodes is not None:
            return self.lose_nodes
        return () if self.kill_ranks else (min(1, self.nodes - 1),)

    @property
    def killed(self) -> tuple[int, ...]:
        """The ranks that will be killed on nodes that live on, or that `fault` befalls."""
        if self.link:
            return ()
        if self.fault not in ("", "kill-node"):
            return self.kill_ranks or (min(1, self.nodes - 1),)
        return tuple(rank for rank in self.kill_ranks if rank not in self.lost)

    @property
    def fault_step(self) -> int:
        return self.steps // 2 if self.at_step is None else self.at_step


def parse_indices(text: str, option: str) -> tuple[int, ...]:
    """Read `1,2` as (1, 2) and an empty text as (); raises UsageError. For the command line."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UsageError(f"{option} {text!r}: expected numbers with commas between them, such as 1,2") from None


def check_indices(option: str, indices: Iterable[int], count: int) -> None:
    """Raise UsageError unless the indices are distinct and below `count`."""
    seen = list(indices)
    for index in seen:
        if not 0 <= index < count:
            raise UsageError(f"{option} {index}: expected 0 to {count - 1}, as there are {count} nodes")
    if len(set(seen)) < len(seen):
        raise UsageError(f"{option} {','.join(map(str, seen))}: the same one twice")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where one demo's files are. Logs stand beside the nodes' directories, so that they outlive a lost node."""

    name: str
    """Names the job, the directory on the tmpfs, and, in their environment, all processes."""
    workdir: Path
    segments: Path

    @property
    def logs(self) -> Path:
        return self.workdir / "logs"

    @property
    def storage(self) -> Path:
        return self.workdir / "storage"

    @property
    def temporary(self) -> Path:
        return self.workdir / "tmp"

    @property
    def secret(self) -> Path:
        return self.workdir / "secret"

    def run_dir(self, node: int) -> Path:
        return self.workdir / f"node-{node}"

    def segment_dir(self, node: int) -> Path:
        return self.segments / f"node-{node}"

    def trainer_log(self, run: str, rank: int) -> Path:
        """What the trainer of `rank` tells about itself: `--events` of the example is this without the ending."""
        return self.logs / f"{run}.rank-{rank}.jsonl"

    def check(self) -> None:
        """Raise UsageError when the daemons could not open their sockets here."""
        socket = self.run_dir(NODES_MAX) / "ckptd.sock"
        if len(str(socket).encode()) > SOCKET_PATH_MAX:
            raise UsageError(f"{self.workdir}: too long a path for a unix socket in it; choose a shorter --workdir")
