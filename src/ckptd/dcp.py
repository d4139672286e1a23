"""torch.distributed.checkpoint on the memory tier. `import ckptd` does not load it, nor torch."""

from ckptd.integrations.dcp import (
    AsyncStager,
    LoadPlanner,
    StorageReader,
    StorageWriter,
    async_save,
    load,
    save,
)

__all__ = ["AsyncStager", "LoadPlanner", "StorageReader", "StorageWriter", "async_save", "load", "save"]
