"""Which rank this process is, and the two small collectives that a start needs. They carry numbers, never pickles."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from ckptd.ckpt.errors import Unrecoverable, UsageError
from ckptd.ckpt.strict import json_object

T = TypeVar("T")
_MESSAGE_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the `world` ranks of the job."""

    rank: int = 0
    world: int = 1
    local_world: int = 1

    @staticmethod
    def detect() -> Ranks:
        """From the process group, else a single process. Raises UsageError when a launcher promised more than one."""
        local = local_world()
        if dist.is_available() and dist.is_initialized():
            return Ranks(dist.get_rank(), dist.get_world_size(), local)
        promised = _from_environment("WORLD_SIZE")
        if promised > 1:
            raise UsageError(
                f"found WORLD_SIZE={promised} but no process group; expected one before the Checkpointer is made: "
                "call torch.distributed.init_process_group() first"
            )
        return Ranks()

    def from_first(self, value: dict[str, Any] | None) -> dict[str, Any]:
        """Rank 0's `value` on every rank: JSON in a fixed tensor of int64. A collective when there are several ranks."""
        if self.world == 1:
            assert value is not None
            return value
        text = json.dumps(value).encode().ljust(_MESSAGE_BYTES) if self.rank == 0 else bytes(_MESSAGE_BYTES)
        assert len(text) == _MESSAGE_BYTES, f"a message of {len(text)} bytes"
        tensor = torch.from_numpy(np.frombuffer(text, dtype=np.int64).copy()).to(_device())
        dist.broadcast(tensor, src=0)
        return json_object(tensor.cpu().numpy().tobytes().rstrip())

    def together(self, work: Callable[[], T]) -> T:
        """Do `work` on every rank; either it went well everywhere, or every rank raises. A collective.

        Without it the ranks that succeeded would walk into the next collective and wait there for the one that raised.
        """
        if self.world == 1:
            return work()
        failed = 1
        try:
            result = work()
            failed = 0
        finally:
            count = torch.tensor([failed], dtype=torch.int64, device=_device())
            dist.all_reduce(count)
        if int(count.item()):
            raise Unrecoverable(
                f"rank {self.rank} was ready, {int(count.item())} of the {self.world} ranks failed; see their own messages"
            )
        return result


def local_world() -> int:
    """How many ranks the launcher started on this node; 1 without a launcher."""
    return _from_environment("LOCAL_WORLD_SIZE")


def _device() -> torch.device:
    """Where the process group wants its tensors: NCCL alone takes no CPU tensors."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _from_environment(name: str) -> int:
    text = os.environ.get(name, "1")
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"found {name}={text!r}, expected a number of processes; let torchrun set it, or unset it")
    return int(text)
