"""Looks at the ranks and the links of this node once a second, and tells the collector's daemon: see `docs/watching.md`."""
