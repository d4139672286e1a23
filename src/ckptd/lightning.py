"""Lightning with ckptd: `callbacks=[CkptdCallback()]`, or `plugins=[CkptdIO()]`. `import ckptd` does not load it."""

from ckptd.integrations.frameworks.lightning import CkptdCallback
from ckptd.integrations.frameworks.lightning_io import CkptdIO

__all__ = ["CkptdCallback", "CkptdIO"]
