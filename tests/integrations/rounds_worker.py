"""One rank that counts calls of `step` over gloo: `python -m tests.integrations.rounds_worker RANK DIRECTORY`; prints JSON.

The ranks' clocks run at different rates, and rank 1 alone is told to end.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ckptd.ckpt.policy import Failures, Seconds
from ckptd.integrations.ranks import Ranks
from ckptd.integrations.rounds import Rounds

CALLS_MAX = 2000
END_AT = 60


def main(rank: int, directory: Path) -> dict[str, Any]:
    """Call until the last turn; which calls were due."""
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    lag: Future[float | None] = Future()
    calls, due = 0, []
    rounds = Rounds(
        Seconds(0.1),
        Ranks(rank, 2, 2),
        failures=Failures,
        ending=lambda: rank == 1 and calls >= END_AT,
        lag_s=lambda: lag,
        blocked_s=lambda: 0.0,
        clock=lambda: time.monotonic() * (1.0 + 2.0 * rank),
    )
    gradient = torch.zeros(1)
    for calls in range(1, CALLS_MAX):
        dist.all_reduce(gradient)  # an update: ranks are in step
        time.sleep(0.005)  # the work of a step
        turn = rounds.turn(calls)
        if turn.due:
            due.append(calls)
        if turn.last:
            break
    dist.barrier()
    dist.destroy_process_group()
    return {"due": due, "last": calls}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), Path(sys.argv[2]))))
