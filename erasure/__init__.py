"""The mathematics of protection: which node holds which parity (`Layout`), and how parities are made and used (`Code`).

Arithmetic over numbers and bytes. Nothing here imports the rest of ckptd. The effects are two: a library is looked for
once (`isal.py`), and threads are started when a caller asks for more than one (`threads.py`).
"""

from ckptd.erasure.backends import isal_here, serving
from ckptd.erasure.code import Code, TooFewSymbols
from ckptd.erasure.layout import Layout

__all__ = ["Code", "Layout", "TooFewSymbols", "isal_here", "serving"]
