"""Keep operators without a bfloat16 kernel in float32 while the rest of a model autocasts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.utils import apply_to
from torch import Tensor, nn

__all__ = ['float32_operators']


@contextmanager
def float32_operators(model: nn.Module) -> Iterator[None]:
    """Give float32 to what cannot read bfloat16 in models of mmdet and mmseg.

    mmcv's RoIAlign and NMS have no kernel for bfloat16, and metrics cannot turn it into numpy
    arrays. Inside this context, RoI extractors read float32, and dense heads, box heads, mask heads
    and decode heads return it, so that losses, predictions and metrics are float32 too. The
    convolutions and linear layers, which cost the time, autocast as before.

    Args:
        model: The model, with or without wrappers.
    """
    handles = []
    for module in model.modules():
        # `roi_layers` are the operators of every RoI extractor. The extractor hands them the boxes
        # in the features' type too: in bfloat16 a coordinate of 1000 is 4 pixels coarse.
        if isinstance(getattr(module, 'roi_layers', None), nn.ModuleList):
            handles.append(module.register_forward_pre_hook(_cast_inputs, with_kwargs=True))
        if callable(getattr(module, 'predict_by_feat', None)):
            handles.append(module.register_forward_hook(_cast_output))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cast_inputs(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return _to_float32(args), _to_float32(kwargs)


def _cast_output(module: nn.Module, args: Any, output: Any) -> Any:
    return _to_float32(output)


def _to_float32(data: Any) -> Any:
    return apply_to(data, _is_bfloat16, Tensor.float)


def _is_bfloat16(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16
