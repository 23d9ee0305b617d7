"""Time modules within a running model."""

import time
from collections import defaultdict
from collections.abc import Callable
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
        self.seconds: defaultdict[str, float] = defaultdict(float)
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
    call: Callable[[], None], watch: Stopwatch, setting: Setting, title: str
) -> dict[str, np.ndarray]:
    """Time forward passes, and their parts as well.

    Args:
        call: The pass. It is called twice before the first round.
        watch: What watches the model.
        setting: How.
        title: Stands beside the progress bar.

    Returns:
        Seconds of each part, one value a round; those of the whole as ``'all'``.
    """
    rounds: list[dict[str, float]] = []
    with progress_bar() as progress:
        for _ in range(2):
            call()
        for _ in progress.track(range(setting.rounds), description=title):
            watch.seconds.clear()
            whole = clock(call, setting)
            rounds.append({**watch.seconds, 'all': whole})
    return {part: np.array([r[part] for r in rounds]) for part in rounds[0]}
