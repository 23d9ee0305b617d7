"""Layer-wise learning-rate decay for classifiers, detectors and segmentors."""

from collections.abc import Callable
from functools import partial
from typing import Any

from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
from torch import nn

from mmlavit.registry import OPTIM_WRAPPER_CONSTRUCTORS

__all__ = ['LayerDecayOptimWrapperConstructor']


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(LearningRateDecayOptimWrapperConstructor):
    """mmpretrain's layer-wise learning-rate decay, in mmdet and mmseg too.

    Two lines turn it on in a config of any of the three::

        optim_wrapper = dict(
            constructor='mmlavit.LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.9),
        )

    A parameter in layer ``i`` of ``n`` learns at ``layer_decay_rate ** (n - i - 1)`` times the base
    rate, ``i, n`` being what the backbone's ``get_layer_depth`` says: the last block's decay by one
    factor, and necks and heads do not decay. ``norm_decay_mult``, ``bias_decay_mult``,
    ``flat_decay_mult`` and the ``decay_mult`` of ``custom_keys`` mean what they mean without it;
    ``lr_mult`` has no effect. The optimizer must set ``weight_decay``, and mmpretrain must be
    installed.
    """

    def add_params(
        self,
        params: list[dict[str, Any]],
        module: nn.Module,
        prefix: str = '',
        get_layer_depth: Callable[[str], tuple[int, int]] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add one group of settings for each parameter of a module.

        Args:
            params: The groups, extended in place.
            module: The model, or one of its modules.
            prefix: What the names of the module's parameters start with.
            get_layer_depth: Says the layer of a named parameter and the count of layers. If None,
                the model does, or else its backbone.

        Raises:
            TypeError: If neither does.
        """
        if get_layer_depth is None and not hasattr(module, 'get_layer_depth'):
            backbone: Any = getattr(module, 'backbone', None)
            if not hasattr(backbone, 'get_layer_depth'):
                raise TypeError(
                    f'layer-wise learning-rate decay: neither {type(module).__name__} nor its '
                    f'backbone ({type(backbone).__name__}) has get_layer_depth; LaViT has'
                )
            get_layer_depth = partial(backbone.get_layer_depth, prefix='backbone.')
        super().add_params(params, module, prefix=prefix, get_layer_depth=get_layer_depth, **kwargs)
