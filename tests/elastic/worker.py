"""A trainer for the tests of launching: an all_reduce a step, and a line about each, until its folder has a file `stop`."""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


def main(folder: Path) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, world = dist.get_rank(), dist.get_world_size()
    node = os.environ["CKPTD_RUN_DIR"].rsplit("n", 1)[-1]
    with (folder / f"steps-{os.getpid()}.jsonl").open("w", buffering=1) as log:
        stop = False
        while not stop:
            wanted = torch.tensor([1.0, float(rank == 0 and (folder / "stop").exists())])
            dist.all_reduce(wanted)
            assert wanted[0] == world
            stop = bool(wanted[1])
            log.write(
                json.dumps({"t": time.time(), "rank": rank, "world": world, "pid": os.getpid(), "node": node}) + "\n"
            )
            time.sleep(0.02)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
