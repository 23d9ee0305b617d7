"""Time calls side by side, and modules as they are and compiled."""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn


class Setting(NamedTuple):
    """How everything in a run is executed."""

    device: torch.device
    dtype: torch.dtype  # float32, or what autocast uses
    threads: int  # of an operator on a CPU
    rounds: int  # how often everything is measured
    seconds: float  # what a measurement lasts at least; fast calls are repeated
    compile: bool  # whether modules are timed compiled as well

    def precision(self) -> AbstractContextManager:
        """Enter mixed precision, unless float32 is asked for."""
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)


class Spread(NamedTuple):
    """Median of several rounds, and half the range that holds their middle half."""

    median: float
    half_range: float

    @classmethod
    def of(cls, values: np.ndarray) -> 'Spread':
        """Summarize one value a round."""
        low, median, high = np.percentile(values, (25, 50, 75))
        return cls(float(median), float(high - low) / 2)

    def show(self, digits: int) -> str:
        """Write as ``median ± half_range``."""
        return f'{self.median:.{digits}f} ± {self.half_range:.{digits}f}'


# Seconds of a module, one value a round, by 'eager' and, if asked for, 'compiled'.
Ways = dict[str, np.ndarray]


def time_ways(
    subjects: Mapping[str, tuple[nn.Module, Callable[[Any], object]]],
    setting: Setting,
    title: str,
) -> dict[str, Ways]:
    """Time modules as they are and, if the setting asks for it, compiled.

    A module that torch cannot compile is timed as it is, and a line on stderr says so. With each
    module comes what to do with it: a function of the module, or of its compiled form.
    """
    if setting.compile:
        torch.compiler.reset()
        # many modules share the code of a method, and each counts as one more compilation of it
        torch._dynamo.config.recompile_limit = 64
    calls: dict[str, Callable[[], object]] = {}
    for name, (module, call) in subjects.items():
        calls[f'{name}, eager'] = partial(call, module)
        if setting.compile:
            compiled = partial(call, torch.compile(module, dynamic=False))
            try:
                compiled()
                calls[f'{name}, compiled'] = compiled
            except Exception as error:  # of whatever torch finds in somebody's module
                reason = f'{type(error).__name__}: {error}'.splitlines()[0]
                print(f'{title}: {name} cannot be compiled: {reason}', file=sys.stderr)
    found: dict[str, Ways] = {name: {} for name in subjects}
    for key, seconds in interleave(calls, setting, title).items():
        name, _, way = key.rpartition(', ')
        found[name][way] = seconds
    return found


def best(ways: Ways) -> np.ndarray:
    """Seconds of the faster way."""
    return min(ways.values(), key=lambda seconds: float(np.median(seconds)))


def interleave(
    calls: Mapping[str, Callable[[], object]], setting: Setting, title: str
) -> dict[str, np.ndarray]:
    """Time calls, one after the other in every round, so that all see the same machine.

    Each is called twice before the first round. Returns seconds, one value a round.
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with progress_bar() as progress:
        task = progress.add_task(title, total=len(names) * (setting.rounds + 1))
        repeats = {}
        for name in names:
            progress.update(task, description=f'{title}: {name}, warm-up')
            calls[name]()
            repeats[name] = max(1, round(setting.seconds / clock(calls[name], setting)))
            progress.advance(task)
        for i in range(setting.rounds):
            # nobody always runs behind the same neighbour
            first = i % len(names)
            for name in names[first:] + names[:first]:
                progress.update(task, description=f'{title}: {name}')
                seconds[name].append(clock(calls[name], setting, repeats[name]))
                progress.advance(task)
    return {name: np.array(values) for name, values in seconds.items()}


def clock(call: Callable[[], object], setting: Setting, repeats: int = 1) -> float:
    """Seconds of one call, as a mean of ``repeats``."""
    synchronize(setting.device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize(setting.device)
    return (time.perf_counter() - start) / repeats


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked for."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def progress_bar() -> Progress:
    """Make a bar on stderr that vanishes when done, so that stdout holds the results only."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)
