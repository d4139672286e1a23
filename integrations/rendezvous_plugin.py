"""How torchrun finds the rendezvous backend `ckptd`: the entry point of the group `torchrun.handlers`.

torch loads it in every process that imports torch.distributed.elastic, so the rest is loaded when the backend is chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous.api import (
        RendezvousHandler,
        RendezvousHandlerCreator,
        RendezvousParameters,
    )


def getter() -> RendezvousHandlerCreator:
    """What torch registers for `--rdzv-backend ckptd`."""
    return create


def create(parameters: RendezvousParameters) -> RendezvousHandler:
    """A handler by this node's daemon; one is started if none runs. Raises CkptdError when there is none to be had."""
    from ckptd.ckpt import embedded
    from ckptd.integrations.rendezvous import CkptdRendezvous

    return CkptdRendezvous(parameters, embedded.connect)
