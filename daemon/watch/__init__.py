"""What the daemons see of a training job, what it means and what to do about it. Pure: see `docs/watching.md`."""
