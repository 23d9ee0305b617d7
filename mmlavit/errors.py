"""The error that the tools report without a traceback."""


class UserError(RuntimeError):
    """Something the user can repair: an argument, a config value, a path or a file."""
