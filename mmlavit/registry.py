"""Registries of the scope ``mmlavit``, children of mmengine's root registries.

``locations`` names what a registry imports at its first look-up, so ``type='mmlavit.LaViT'``
resolves in a config of any toolbox without ``custom_imports``.
"""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import Registry

__all__ = ['HOOKS', 'LOOPS', 'MODELS', 'OPTIM_WRAPPER_CONSTRUCTORS', 'RUNNERS']

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmlavit', locations=['mmlavit.models'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmlavit', locations=['mmlavit.engine'])
LOOPS = Registry('loop', parent=MMENGINE_LOOPS, scope='mmlavit', locations=['mmlavit.engine'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmlavit',
    # apart from mmlavit.engine, since it needs mmpretrain
    locations=['mmlavit.engine.optimizers.layer_decay'],
)
RUNNERS = Registry('runner', parent=MMENGINE_RUNNERS, scope='mmlavit', locations=['mmlavit.engine'])
