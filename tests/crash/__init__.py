"""Real daemons, stopped before each of the primitive steps that they make."""
