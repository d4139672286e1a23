"""Lightning with ckptd: a callback, a plugin, strategies; docs/frameworks/lightning.md. `import ckptd` does not load it."""

from ckptd.integrations.frameworks.lightning import CkptdCallback
from ckptd.integrations.frameworks.lightning_io import CkptdIO
from ckptd.integrations.frameworks.lightning_sharded import (
    CkptdFSDPStrategy,
    CkptdModelParallelStrategy,
    newest_step,
)

__all__ = ["CkptdCallback", "CkptdFSDPStrategy", "CkptdIO", "CkptdModelParallelStrategy", "newest_step"]
