"""Hugging Face's Trainer with ckptd: `trainer.add_callback(CkptdCallback(trainer))`. `import ckptd` does not load it."""

from ckptd.integrations.frameworks.trainer import CkptdCallback

__all__ = ["CkptdCallback"]
