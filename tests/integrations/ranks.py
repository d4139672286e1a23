"""The ranks of small trainings, forked from one process that imports what they run: that takes seconds, and only once.

Each line on standard input is a JSON object: {"module": name, "world": N, "arguments": [...], "environment": {...},
"folder": path} is `python -m MODULE RANK WORLD ARGUMENTS...` for each rank, in a session of their own. It is answered by the
session's number, and by how the ranks ended (negative: a signal; nothing where that is not known). What they print is in
FOLDER/RANK.out and .err.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any


def be(rank: int, order: dict[str, Any]) -> None:
    """The whole life of a rank, as if this process had been started with that environment. It ends as a script does."""
    for descriptor, name in ((1, "out"), (2, "err")):
        with (Path(order["folder"]) / f"{rank}.{name}").open("wb") as output:
            os.dup2(output.fileno(), descriptor)
    os.environ.update(order["environment"])
    sys.argv = [order["module"], str(rank), str(order["world"]), *order["arguments"]]
    del sys.modules[order["module"]]  # it is run anew, as a script is
    runpy.run_module(order["module"], run_name="__main__", alter_sys=True)


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        importlib.import_module(order["module"])
        codes = Path(order["folder"]) / "codes"
        leader = os.fork()
        if leader == 0:
            os.setsid()
            pids = []
            for rank in range(order["world"]):
                pid = os.fork()
                if pid == 0:
                    be(rank, order)
                    return
                pids.append(pid)
            codes.write_text(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]))
            os._exit(0)
        print(leader, flush=True)
        os.waitpid(leader, 0)
        with contextlib.suppress(OSError):
            print(codes.read_text(), flush=True)
            continue
        print("[]", flush=True)


if __name__ == "__main__":
    main()
