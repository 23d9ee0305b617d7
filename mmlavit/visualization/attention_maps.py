"""Attention maps of a LaViT, layer by layer, as its forward pass has them."""

from collections.abc import Callable
from math import isqrt
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmlavit.errors import UserError
from mmlavit.models import LaViT, LessAttention, VanillaAttention
from mmlavit.models.layers import Stage
from mmlavit.models.layers.scores import softmax

__all__ = ['LayerAttention', 'attach_attention_maps', 'collect_attention', 'find_backbone']


class LayerAttention(NamedTuple):
    """The attention of one layer."""

    stage: int  # from 1, as the paper counts
    layer: int  # from 1 in each stage
    kind: Literal['VA', 'LA']
    attention: Tensor  # (groups, heads, N, N), rows sum to 1; float32 or better
    mask: Tensor | None  # (groups, N), true where a token is real; None if all are
    size: tuple[int, int]  # (h, w) of the stage's map in tokens

    @property
    def window(self) -> int:
        """Side of a window in tokens."""
        return isqrt(self.attention.shape[-1])


def collect_attention(backbone: LaViT, image: Tensor) -> list[LayerAttention]:
    """Run a backbone on images and keep the attention of every layer.

    Args:
        backbone: The backbone, in the mode it is to be looked at.
        image: Normalized batch of shape ``(B, C, h, w)``, on the backbone's device.

    Returns:
        One entry a layer, in the order of the forward pass. The windows of an image follow each
        other row by row, and images follow each other.
    """
    layers: list[LayerAttention] = []
    handles = attach_attention_maps(backbone, layers.append)
    try:
        with torch.no_grad():
            backbone(image)
    finally:
        for handle in handles:
            handle.remove()
    return layers


def attach_attention_maps(
    backbone: LaViT, receive: Callable[[LayerAttention], None]
) -> list[RemovableHandle]:
    """Hand over the attention of each layer in every forward pass, without changing the pass.

    Where windows do not cover a map, a CPU computes them whole for this, which changes rounding.

    Args:
        backbone: The backbone.
        receive: Called without gradients and outside autocast when a stage is finished, once for
            each of its layers. What activation checkpointing computes again does not count.

    Returns:
        Handles whose ``remove()`` ends it.
    """
    handles: list[RemovableHandle] = []
    for number, stage in enumerate(backbone.stages, start=1):
        assert isinstance(stage, Stage)
        handles += _attach(stage, number, receive)
    return handles


def find_backbone(model: nn.Module) -> LaViT:
    """Find the LaViT in a model, wrapped or not.

    Args:
        model: Any model.

    Raises:
        UserError: If there is none.
    """
    for module in model.modules():
        if isinstance(module, LaViT):
            return module
    raise UserError(f'{type(model).__name__} has no mmlavit.LaViT, whose attention could be read')


def _attach(
    stage: Stage, number: int, receive: Callable[[LayerAttention], None]
) -> list[RemovableHandle]:
    attentions = [block.get_submodule('attn') for block in stage.blocks]
    # scores by layer, in one piece or in runs of windows; None outside the stage's own forward
    # pass, where a checkpointed block may run again
    running: list[list[Tensor]] | None = None

    def start(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal running
        running = [[] for _ in attentions]

    def collect(
        module: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Tensor | None]
    ) -> None:
        if running is None:
            return
        scores = output[1]
        with torch.no_grad():
            if scores is None:
                assert isinstance(module, VanillaAttention)
                scores = module.scores(args[0], args[1])
            running[attentions.index(module)].append(scores.detach())

    def finish(module: nn.Module, args: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        nonlocal running
        assert running is not None
        collected, running = running, None
        x, _, mask, _ = output
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            for i, (attention, scores) in enumerate(zip(attentions, collected, strict=True)):
                receive(
                    LayerAttention(
                        stage=number,
                        layer=i + 1,
                        kind='LA' if isinstance(attention, LessAttention) else 'VA',
                        attention=softmax(torch.cat(scores), mask),
                        mask=mask,
                        size=(x.shape[1], x.shape[2]),
                    )
                )

    return [
        stage.register_forward_pre_hook(start),
        *(attention.register_forward_hook(collect) for attention in attentions),
        stage.register_forward_hook(finish),
    ]
