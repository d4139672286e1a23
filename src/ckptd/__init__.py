"""ckptd: asynchronous checkpointing and in-memory fault tolerance for PyTorch training.

The public face. `Checkpointer` is loaded on first use, so that `import ckptd` (and the daemon) never imports torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckptd.integrations.checkpointer import Checkpointer as Checkpointer

__version__ = "0.1.0"
__all__ = ["Checkpointer", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Checkpointer":
        from ckptd.integrations.checkpointer import Checkpointer

        return Checkpointer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
