"""Logs what becomes of the attention during training."""

from collections import defaultdict
from contextlib import suppress
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from mmlavit.errors import UserError
from mmlavit.models import LaViT, LayerTrace, LessAttention, trace_layers
from mmlavit.registry import HOOKS
from mmlavit.visualization.attention_maps import find_backbone
from mmlavit.visualization.attention_measures import (
    diagonality_terms,
    entropy,
    identity_distance,
    similarity_matrix,
)

__all__ = ['DiagonalityHook']


@HOOKS.register_module()
class DiagonalityHook(Hook):
    """Log diagonality, symmetry, entropy and saturation of the attention, stage by stage.

    One line in any config turns it on::

        custom_hooks = [dict(type='mmlavit.DiagonalityHook', interval=100)]

    Every ``interval`` iterations the visualizer's backends get, for each stage ``m``,

    - ``attention/stage{m}/diagonality`` and ``.../symmetry``: the two terms of the
      diagonality-preserving loss, averaged over all layers of the stage; 0 at best
    - ``attention/stage{m}/entropy``: 1 where each token attends to all of its window alike, 0 where
      it attends to one; averaged over all layers of the stage
    - ``attention/stage{m}/saturation``: similarity of each layer's attention to that of the layer
      before, averaged over the stage; from two layers on
    - ``attention/stage{m}/theta_distance`` and ``.../psi_distance``: relative distance of the
      transforms from the identity, averaged over the stage; where there is less attention

    They are measured on the batch being trained on, by the first process on its part of it. Between
    these iterations the model is as it is without the hook.

    Args:
        interval: Iterations from one measurement to the next.

    Raises:
        ValueError: If ``interval`` is no whole number or below 1.
    """

    def __init__(self, interval: int = 100) -> None:
        if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
            raise ValueError(f'interval={interval!r}: expected a whole number of at least 1')
        self.interval = interval
        self._backbone: LaViT | None = None
        self._handles: list[RemovableHandle] = []
        self._values: dict[str, list[Tensor]] = {}
        self._previous: LayerTrace | None = None

    def before_train(self, runner: Runner) -> None:
        """Find the backbone, and refuse a compiled one, whose code calls nothing attached later."""
        compiled = runner.cfg.get('compile')
        if compiled is not None and compiled is not False:  # {} compiles too
            raise UserError(
                f'compile={compiled!r}: DiagonalityHook does not see into a compiled model; remove '
                'the hook from custom_hooks, or set compile=False'
            )
        # one that is trained must have it, the stand-in of a tool that draws learning rates not
        with suppress(UserError):
            self._backbone = find_backbone(runner.model)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Attach to the backbone, where the iteration is to be measured."""
        measured = is_main_process() and self.every_n_train_iters(runner, self.interval)
        if measured and self._backbone is not None:
            self._values = defaultdict(list)
            self._handles = trace_layers(self._backbone, self._measure)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Log what was measured, and detach; refuse losses of a model without the backbone."""
        if outputs and self._backbone is None:
            self._backbone = find_backbone(runner.model)
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles, self._previous = [], None
        self._measure_transforms()
        scalars = {name: float(torch.stack(v).mean()) for name, v in self._values.items()}
        # not through the message hub: LoggerHook would repeat the values until the next ones, and
        # put all of them into its lines
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)

    def _measure(self, layer: LayerTrace) -> None:
        prefix = f'attention/stage{layer.stage}'
        diagonality, symmetry = diagonality_terms(layer)
        self._values[f'{prefix}/diagonality'].append(diagonality)
        self._values[f'{prefix}/symmetry'].append(symmetry)
        self._values[f'{prefix}/entropy'].append(entropy(layer))
        if layer.layer > 1:
            assert self._previous is not None
            similarity = similarity_matrix([self._previous, layer])
            self._values[f'{prefix}/saturation'].append(similarity[0, 1])
        self._previous = layer

    def _measure_transforms(self) -> None:
        assert self._backbone is not None
        for number, stage in enumerate(self._backbone.stages, start=1):
            for module in stage.modules():
                if isinstance(module, LessAttention):
                    for name in ('theta', 'psi'):
                        distance = identity_distance(getattr(module, name))
                        self._values[f'attention/stage{number}/{name}_distance'].append(distance)
