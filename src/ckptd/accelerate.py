"""Accelerate with ckptd: `Batches` beside a Checkpointer. `import ckptd` does not load it."""

from ckptd.integrations.frameworks.batches import Batches

__all__ = ["Batches"]
