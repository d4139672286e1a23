"""The loops of other people: each file makes a Checkpointer part of one framework, and only it imports that framework."""
