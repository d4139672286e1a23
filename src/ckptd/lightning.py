"""Lightning with ckptd: `Trainer(callbacks=[CkptdCallback()])`. `import ckptd` does not load it."""

from ckptd.integrations.frameworks.lightning import CkptdCallback

__all__ = ["CkptdCallback"]
