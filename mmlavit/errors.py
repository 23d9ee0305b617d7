"""The error that a tool reports without a traceback."""

__all__ = ['UserError']


class UserError(Exception):
    """Bad input from a user: the message names what was found and what was expected."""
