"""What ``--amp`` stands for."""

from mmengine.config import Config
from mmengine.device import get_device

from mmlavit.errors import UserError

__all__ = ['check_gpu', 'enable_amp']


def check_gpu() -> None:
    """Stop where mixed precision cannot run.

    Raises:
        UserError: If there is no GPU.
    """
    if get_device() == 'cpu':
        raise UserError('--amp needs a GPU, and torch finds none')


def enable_amp(cfg: Config) -> None:
    """Train in float16, or in the ``dtype`` that the config gives, as upstream's tools do.

    Args:
        cfg: The config, changed in place.

    Raises:
        UserError: If there is no GPU, or the config has an optimizer wrapper of another kind.
    """
    check_gpu()
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    name = kind if isinstance(kind, str) else kind.__name__
    if name.removeprefix('mmengine.') not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(f'--amp: optim_wrapper.type is {name!r}, expected OptimWrapper')
    wrapper.type = 'AmpOptimWrapper'
    wrapper.setdefault('loss_scale', 'dynamic')
