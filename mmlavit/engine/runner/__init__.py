"""Runner, loop, and where to resume from."""
