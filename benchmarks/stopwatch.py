"""Time modules within a running model."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from common import Setting, clock, progress_bar, synchronize
from torch import nn


class Stopwatch:
    """Sums the time that modules take in a forward pass.

    Args:
        setting: Tells the device: on a GPU each module is waited for.
    """

    def __init__(self, setting: Setting) -> None:
        self.seconds: Counter[str] = Counter()
        self._device = setting.device
        self._start = 0.0

    def watch(self, name: str, module: nn.Module) -> None:
        """Add a module's time to that of a name."""

        def start(*_: Any) -> None:
            synchronize(self._device)
            self._start = time.perf_counter()

        def stop(*_: Any) -> None:
            synchronize(self._device)
            self.seconds[name] += time.perf_counter() - self._start

        module.register_forward_pre_hook(start)
        module.register_forward_hook(stop)


def time_parts(
    calls: Mapping[str, Callable[[], None]],
    watches: Mapping[str, Stopwatch],
    setting: Setting,
    title: str,
) -> dict[str, dict[str, np.ndarray]]:
    """Interleave forward passes whose parts are timed as well.

    Args:
        calls: The passes, by name.
        watches: What watches each one's model.
        setting: How.
        title: Stands beside the progress bar.

    Returns:
        For each name seconds of each part, one value a round; those of the whole as ``'all'``.
    """
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    with progress_bar() as progress:
        task = progress.add_task(title, total=(setting.rounds + 1) * len(calls))
        for i in range(setting.rounds + 1):
            for name, call in calls.items():
                watches[name].seconds.clear()
                whole = clock(call, setting)
                if i:  # the first is the warm-up
                    seconds[name].append({**watches[name].seconds, 'all': whole})
                progress.advance(task)
    return {
        name: {part: np.array([r[part] for r in rounds]) for part in rounds[0]}
        for name, rounds in seconds.items()
    }
