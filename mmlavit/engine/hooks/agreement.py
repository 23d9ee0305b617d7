"""Lets the processes of a run act on what only one of them knows."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine import dist

from mmlavit.errors import UserError

__all__ = ['fail_together', 'largest']


def largest(value: int) -> int:
    """Compare a number among the processes; all of them must call this.

    It takes one all-reduce of 8 bytes, and nothing in a run of one process.

    Args:
        value: What this process has.

    Returns:
        The largest value of all processes.
    """
    if dist.get_world_size() == 1:
        return value
    number = torch.tensor(value)
    dist.all_reduce(number, op='max')
    return int(number)


class _AgreedError(UserError):
    """A failure that every process knows of."""


@contextmanager
def fail_together() -> Iterator[None]:
    """Turn a ``UserError`` of one process into one of each; all of them must enter this.

    Without it, the others would wait for the one that stopped. Rank 0 says what happened, whoever
    it happened to. Contexts may be nested.

    Raises:
        UserError: If there was one in any process.
    """
    error = None
    try:
        yield
    except _AgreedError:
        raise
    except UserError as found:
        error = found
    if not largest(error is not None):
        return
    if dist.get_world_size() == 1:
        assert error is not None
        raise error
    messages = dist.all_gather_object(None if error is None else str(error))
    told = [f'rank {rank}: {text}' for rank, text in enumerate(messages) if text is not None]
    raise _AgreedError('\n'.join(told) if dist.is_main_process() else 'stopped, as rank 0 explains')
