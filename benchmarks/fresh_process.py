"""A process of its own for each measurement that a process's past would change."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

import torch
from timing import Setting

Args = ParamSpec('Args')
Result = TypeVar('Result')


def in_fresh_process(
    setting: Setting, function: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs
) -> Result:
    """Call a function in a new process and return its result.

    On a CPU the peak of memory belongs to the process, and so does the heap: one that earlier work
    has left large serves large tensors without asking the system for pages.
    """
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(
        1, mp_context=context, initializer=_begin, initargs=(setting,)
    ) as pool:
        return pool.submit(function, *args, **kwargs).result()


def _begin(setting: Setting) -> None:
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
