"""`ckptd drill`: faults on purpose, against a throw-away job or a named running one, held against what is promised.

`faults` says what is promised (pure), `judge` whether it was kept (pure), `strikes` does it, `run` tells the story.
"""
