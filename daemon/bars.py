"""Progress bars of the command line, fed by what the daemon says of its work; nothing is drawn where nobody looks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from ckptd.ckpt.errors import CkptdError

_POLL_S = 0.2
Work = dict[str, dict[str, int]]


@contextmanager
def bar(what: str, name: str, ask: Callable[[], Work], *, quiet: bool) -> Iterator[None]:
    """Show how far the work `name` has come while the block runs. `ask` is called from another thread."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    done = threading.Event()
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(what, total=None)

        def follow() -> None:
            while not done.wait(_POLL_S):
                try:
                    state: dict[str, Any] | None = ask().get(name)
                except CkptdError:
                    continue  # the block meets the same daemon and says what is wrong with it
                if state:
                    shown.update(task, completed=state["done"], total=state["total"])

        follower = threading.Thread(target=follow, name="bar", daemon=True)
        follower.start()
        try:
            yield
        finally:
            done.set()
            follower.join()
