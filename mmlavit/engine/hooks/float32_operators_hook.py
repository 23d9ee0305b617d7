"""Keep mmcv's operators in float32 while a detector trains in bfloat16."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.utils import apply_to
from torch import Tensor, nn

from mmlavit.registry import HOOKS


@HOOKS.register_module()
class Float32OperatorsHook(Hook):
    """Give float32 to what cannot read bfloat16 in detectors of mmdet.

    mmcv's RoIAlign and focal loss have no kernels for it, and mmdet would store RoIs and anchors
    in the type of the maps: bfloat16 rounds a coordinate near 1000 to a multiple of 4. RoI
    extractors read float32, and heads return it. Convolutions and linear layers autocast as
    before, and a run in float16 or float32 stays as it is.
    """

    def before_run(self, runner: Runner) -> None:
        """Attach to all RoI extractors and heads."""
        for module in runner.model.modules():
            # `roi_layers` are the operators of every RoI extractor
            if hasattr(module, 'roi_layers'):
                module.register_forward_pre_hook(_cast_inputs, with_kwargs=True)
            elif hasattr(module, 'predict_by_feat'):
                module.register_forward_hook(_cast_outputs)


def _cast_inputs(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return _to_float32(args), _to_float32(kwargs)


def _cast_outputs(module: nn.Module, args: Any, outputs: Any) -> Any:
    return _to_float32(outputs)


def _to_float32(data: Any) -> Any:
    return apply_to(data, _is_bfloat16, Tensor.float)


def _is_bfloat16(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16
