"""Adds the diagonality-preserving loss to whatever model is being trained."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.hooks import RemovableHandle

from mmlavit.errors import UserError
from mmlavit.models import DiagonalityLoss, LaViT, LayerTrace, trace_layers
from mmlavit.ops.diagonality import Form
from mmlavit.registry import HOOKS


@HOOKS.register_module()
class DiagonalityLossHook(Hook):
    """Put ``loss_dp`` into the losses of a classifier, detector or segmentor (paper, eq. 10).

    One line in any config turns it on::

        custom_hooks = [dict(type='mmlavit.DiagonalityLossHook')]

    The loss is averaged over the less-attention layers, so that one weight serves all depths. It
    joins the dictionary that ``forward(mode='loss')`` returns, hence it reaches the log and the
    gradient as any other loss does, under DDP, AMP, gradient accumulation and activation
    checkpointing.

    Args:
        loss_weight: Factor on the loss. The paper adds it with 1, which made attention even
            (docs/ablations.md).
        form: ``'hinge'`` or ``'linear'``, see :func:`mmlavit.models.diagonality_loss`.

    Raises:
        ValueError: If ``form`` is unknown.
    """

    def __init__(self, loss_weight: float = 0.01, form: Form = 'hinge') -> None:
        self.loss = DiagonalityLoss(loss_weight, form)
        self._handles: list[RemovableHandle] = []

    def before_train(self, runner: Runner) -> None:
        """Attach the loss to the model."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._handles = attach_diagonality_loss(model, self.loss)

    def after_train(self, runner: Runner) -> None:
        """Detach the loss from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def attach_diagonality_loss(model: nn.Module, loss: DiagonalityLoss) -> list[RemovableHandle]:
    """Make ``model(..., mode='loss')`` return ``loss_dp`` among its losses.

    That call raises a :class:`UserError` where it passes no less-attention layer. A model whose
    losses nobody asks for, such as the stand-in of a tool that draws learning rates, may have none.

    Args:
        model: Model without its distributed wrapper.
        loss: Loss of one layer.

    Returns:
        Handles whose ``remove()`` detaches the loss.
    """
    collected: list[LayerTrace] = []

    def start(module: nn.Module, args: Any) -> None:
        collected.clear()

    def finish(module: nn.Module, args: Any, kwargs: dict[str, Any], losses: Any) -> Any:
        layers = collected.copy()
        collected.clear()
        if kwargs.get('mode') != 'loss':
            return losses
        if not layers:
            raise UserError(
                f'loss_dp: {type(model).__name__} has no less-attention layer; remove '
                'DiagonalityLossHook from custom_hooks or use a LaViT backbone with '
                'less_attention=True'
            )
        values = [loss(layer.logits, layer.windows) for layer in layers]
        return {**losses, 'loss_dp': torch.stack(values).mean()}

    handles = [model.register_forward_pre_hook(start)]
    for module in model.modules():
        if isinstance(module, LaViT):
            # not the bound method, whose list a deep copy of the model would copy as well
            handles += trace_layers(module, lambda layer: collected.append(layer), kinds=('LA',))
    return [*handles, model.register_forward_hook(finish, with_kwargs=True)]
