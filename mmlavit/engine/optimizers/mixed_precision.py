"""Choose the optimizer wrapper of mixed precision."""

from mmengine.config import Config

from mmlavit.errors import UserError

__all__ = ['set_mixed_precision']


def set_mixed_precision(cfg: Config, enable: bool, device: str) -> None:
    """Choose the optimizer wrapper for mixed precision.

    ``AmpOptimWrapper`` does not run on a CPU, whoever asked for it; ``BFloat16OptimWrapper`` does.

    Args:
        cfg: The config, changed in place.
        enable: Whether to turn mixed precision on where the config does not.
        device: Type of the device to train on, as ``'cuda'``.

    Raises:
        UserError: If the config has an optimizer wrapper of another kind.
    """
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    name = (
        (kind if isinstance(kind, str) else kind.__name__)
        .removeprefix('mmengine.')
        .removeprefix('mmlavit.')
    )
    if enable:
        if name not in ('OptimWrapper', 'AmpOptimWrapper', 'BFloat16OptimWrapper'):
            raise UserError(
                f'--amp: optim_wrapper.type is {name!r}, expected OptimWrapper or AmpOptimWrapper'
            )
        if name == 'OptimWrapper':
            name = wrapper.type = 'AmpOptimWrapper'
            wrapper.setdefault('loss_scale', 'dynamic')
    if name == 'AmpOptimWrapper' and device == 'cpu':
        wrapper.type = 'mmlavit.BFloat16OptimWrapper'
        for key in ('loss_scale', 'dtype'):
            wrapper.pop(key, None)
