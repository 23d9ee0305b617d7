"""The logits of every layer, as the forward pass of a LaViT has them."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mmlavit import ops
from mmlavit.ops import Windows

from .layers import LessAttention, VanillaAttention


class LayerTrace(NamedTuple):
    """The logits of one layer."""

    stage: int  # from 1, as the paper counts
    layer: int  # from 1 in each stage
    kind: Literal['VA', 'LA']
    logits: Tensor  # (groups, heads, N, N); those of padded tokens carry no meaning
    windows: Windows


def trace_layers(
    backbone: Any,
    receive: Callable[[LayerTrace], None],
    kinds: tuple[Literal['VA', 'LA'], ...] = ('VA', 'LA'),
) -> list[RemovableHandle]:
    """Hand over the logits of each layer in every forward pass, without changing the pass.

    Logits that a vanilla layer does not keep are computed for this, without gradients.

    Args:
        backbone: A LaViT.
        receive: Called when the pass is finished, once for each layer in its order. What activation
            checkpointing computes again does not count.
        kinds: Of the layers that count.

    Returns:
        Handles whose ``remove()`` ends it.
    """
    layers: dict[nn.Module, tuple[int, int, Literal['VA', 'LA']]] = {}
    for stage_number, stage in enumerate(backbone.stages, start=1):
        for layer_number, block in enumerate(stage.blocks, start=1):
            kind: Literal['VA', 'LA'] = 'LA' if isinstance(block.attn, LessAttention) else 'VA'
            if kind in kinds:
                layers[block.attn] = (stage_number, layer_number, kind)
    # None outside a forward pass of the backbone: a checkpointed block may run again there
    running: list[LayerTrace] | None = None

    def start(module: nn.Module, args: Any) -> None:
        nonlocal running
        running = []

    def collect(module: nn.Module, args: Any, output: tuple[Tensor, Tensor | None]) -> None:
        if running is None:
            return
        x, logits, windows = args
        if output[1] is None:
            assert isinstance(module, VanillaAttention)
            with torch.no_grad():
                qkv = module.qkv(x)
                _, logits = ops.vanilla_attention(qkv, logits, windows, module.num_heads, True)
        else:
            logits = output[1]
        running.append(LayerTrace(*layers[module], logits, windows))

    def finish(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal running
        assert running is not None
        collected, running = running, None
        for layer in collected:
            receive(layer)

    return [
        backbone.register_forward_pre_hook(start),
        *(layer.register_forward_hook(collect) for layer in layers),
        backbone.register_forward_hook(finish),
    ]
