"""The error that the tools report without a traceback."""


class UserError(RuntimeError):
    """Something the user can mend: an argument, a config value, a path or a file."""


class UnsafeCheckpointError(UserError):
    """A checkpoint that is complete, but holds what could run code."""
