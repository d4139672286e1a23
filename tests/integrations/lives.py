"""Lives of the examples for frameworks, forked from one process that imports them: that takes seconds, and only once.

Each line on standard input is a JSON object: {"example": module, "argv": [...], "environment": {...}, "output": path}
starts a life and is answered by its process id, {"wait": pid} by how it ended (negative: a signal).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any


def live(example: ModuleType, order: dict[str, Any]) -> None:
    """The whole life of a trainer, as if this process had been started with that environment. Does not return."""
    code = 1
    try:
        with Path(order["output"]).open("wb") as output:
            for descriptor in (1, 2):
                os.dup2(output.fileno(), descriptor)
        os.environ.update(order["environment"])
        example.main(example.parse(example.__doc__ or "", order["argv"]))
        code = 0
    except Exception:  # noqa: BLE001 - it is this process's last line
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
        else:
            example = importlib.import_module(order["example"])
            pid = os.fork()
            if pid == 0:
                live(example, order)
            print(pid, flush=True)


if __name__ == "__main__":
    main()
