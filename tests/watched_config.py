"""Find the keys of a config that nothing reads, and the deprecated ones."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

# what a run on one process without options leaves alone, and what is left over in upstream's bases
UNREAD = {
    'auto_scale_lr.base_batch_size',  # of --auto-scale-lr
    'env_cfg.dist_cfg.backend',  # of several processes
    # of mmseg's visualization_cam.py
    *(f'data_preprocessor.{key}' for key in ('type', 'mean', 'std', 'bgr_to_rgb', 'size')),
    *(
        f'model.train_cfg{of}.debug'
        for of in ('', '.rpn', '.rcnn', '.rcnn.0', '.rcnn.1', '.rcnn.2')
    ),
    # mmpretrain's schedule of Swin exempts parameters that LaViT has not
    'optim_wrapper.paramwise_cfg.custom_keys..absolute_pos_embed.decay_mult',
    'optim_wrapper.paramwise_cfg.custom_keys..relative_position_bias_table.decay_mult',
}
# mmengine's own calls, whatever the config
UPSTREAM_DEPRECATIONS = ('"FileClient"', '"HardDiskBackend"')


def watch(cfg: Config, read: set[str]) -> Config:
    """Copy a config; a key of the copy that somebody reads adds its path to ``read``."""
    return Config(_watch(cfg._cfg_dict.to_dict(), read, ''), filename=cfg.filename)


def _watch(value: Any, read: set[str], path: str) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_watch(item, read, f'{path}{i}.') for i, item in enumerate(value))
    if not isinstance(value, dict):
        return value

    class Watched(ConfigDict):
        """A copy has the same class, so it notes the same paths."""

        def __getitem__(self, key: str) -> Any:
            read.add(f'{path}{key}')
            return super().__getitem__(key)

        def get(self, key: str, default: Any = None) -> Any:
            read.add(f'{path}{key}')
            return super().get(key, default)

        def pop(self, key: str, default: Any = None) -> Any:
            read.add(f'{path}{key}')
            return super().pop(key, default)

        def items(self) -> Any:
            read.update(f'{path}{key}' for key in self)
            return super().items()

    watched = Watched()
    for key, item in value.items():
        watched[key] = _watch(item, read, f'{path}{key}.')
    return watched


def unread_keys(cfg: Config, read: set[str]) -> list[str]:
    """What the run of a watched copy has not read, of the keys that mmengine's runner takes."""
    # the others are variables, as `train_pipeline`, which are copied to where they are used
    taken = inspect.signature(Runner.__init__).parameters
    used = {key: value for key, value in cfg._cfg_dict.to_dict().items() if key in taken}
    return sorted(set(_leaves(used, '')) - read - UNREAD)


def _leaves(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, (list, tuple)) and any(isinstance(item, (dict, list)) for item in value):
        value = dict(enumerate(value))
    if not isinstance(value, dict) or not value:
        yield path.removesuffix('.')
        return
    for key, item in value.items():
        yield from _leaves(item, f'{path}{key}.')


def deprecations(warnings: list[Any], work_dir: Path) -> list[str]:
    """What recorded warnings and the logs of a work dir call deprecated."""
    lines = [str(warning.message) for warning in warnings]
    for log in work_dir.glob('*/*.log'):
        lines += [line for line in log.read_text().splitlines() if 'WARNING' in line]
    return [
        line
        for line in lines
        if 'deprecated' in line and not any(known in line for known in UPSTREAM_DEPRECATIONS)
    ]
