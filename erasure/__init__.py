"""The mathematics of protection: which node holds which parity (`Layout`), and how parities are made and used (`Code`).

Pure arithmetic over numbers and bytes. Nothing here imports the rest of ckptd, does input or output, or keeps state.
"""

from ckptd.erasure.code import Code, TooFewSymbols
from ckptd.erasure.layout import Layout

__all__ = ["Code", "Layout", "TooFewSymbols"]
