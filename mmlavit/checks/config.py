"""What is wrong with a config before anything is built: its keys, its paths, its work dir."""

from collections.abc import Iterator
from difflib import get_close_matches
from inspect import isroutine, signature
from pathlib import Path
from tempfile import TemporaryFile
from types import ModuleType
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from mmlavit.errors import UserError

__all__ = [
    'LOADERS',
    'RUNNER_KEYS',
    'check_work_dir',
    'misspelt_keys',
    'missing_paths',
    'unmatched_keys',
    'wrong_ann_files',
]

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# What the runner reads from a config: its arguments, and the keys it looks up by itself.
RUNNER_KEYS = {
    *signature(Runner.__init__).parameters,
    'activation_checkpointing',
    'compile',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'runner_type',
    'sync_bn',
    'tta_model',
    'tta_pipeline',
} - {'self', 'cfg'}

SIMILAR = 0.8
# `test_pipeline`, which most configs have, is a variable and no misspelt `tta_pipeline`.
RESEMBLED_KEYS = sorted(RUNNER_KEYS - {'tta_pipeline'})
# The second and third are mmengine's.
LOADER_KEYS = {
    *signature(DataLoader).parameters,
    'num_batch_per_epoch',
    'disable_subprocess_warning',
}


def misspelt_keys(cfg: Config) -> list[str]:
    """Find keys that nothing uses, and keys of a dataloader that contradict each other.

    A config may hold variables of any name, so at the top only a close match of one of the runner's
    keys is suspect. What those are built from, such as a dictionary ``val_evaluator_a``, is none,
    and neither is what a pure Python config imports.
    """
    messages = []
    for key, value in cfg.items():
        close = get_close_matches(key, RESEMBLED_KEYS, 1, SIMILAR)
        imported = isinstance(value, type | ModuleType) or isroutine(value)
        if not close or key in RUNNER_KEYS or imported:
            continue
        used = isinstance(value, dict | list) and any(
            _holds(cfg[other], value) for other in cfg if other in RUNNER_KEYS
        )
        if not used:
            messages.append(
                f'the config has the key {key!r}, which nothing reads; did you mean {close[0]!r}? '
                'A variable of your own needs a name less alike'
            )
    for name in LOADERS:
        loader = cfg.get(name)
        if not isinstance(loader, dict):
            continue
        for key in sorted(set(loader) - LOADER_KEYS):
            close = get_close_matches(key, LOADER_KEYS, 1)
            hint = f'; did you mean {close[0]!r}?' if close else ''
            messages.append(f'{name}: no argument {key!r}{hint}')
        if loader.get('persistent_workers') and not loader.get('num_workers'):
            messages.append(
                f'{name}: persistent_workers=True beside num_workers=0: there are no workers to '
                'keep; set persistent_workers=False (--no-persistent-workers)'
            )
    return messages


def missing_paths(cfg: Config, key: str) -> list[str]:
    """Find data of a dataloader that is not there.

    Only local paths are looked at, and those below a data root only where the root exists.
    """
    messages = []
    for dataset in _local_datasets(cfg[key]):
        root = dataset.get('data_root') or ''
        absence = _absence(Path(root)) if root else ''
        if absence:
            messages.append(f'{key}: data_root {root!r} {absence}, seen from {Path.cwd()}')
            continue
        prefix = dataset.get('data_prefix') or {}
        below = {'ann_file': dataset.get('ann_file')}
        if isinstance(prefix, dict):
            below |= {f'data_prefix.{name}': path for name, path in prefix.items()}
            # of masks, the first that is missing is named when it is read
            below.pop('data_prefix.seg_map_path', None)
        else:
            below['data_prefix'] = prefix
        for name, path in below.items():
            absence = _absence(Path(root, path)) if _is_local(path, dataset) else ''
            if absence:
                seen = '' if root else f', seen from {Path.cwd()}'
                messages.append(f'{key}: {name} {str(Path(root, path))!r} {absence}{seen}')
    return messages


def wrong_ann_files(cfg: Config, key: str) -> list[str]:
    """Find annotation files of a dataloader's evaluator that are not there, or not its data's.

    mmdet's metrics read the file once more, and one of other data numbers its images differently.
    Where local data has a single annotation file, one of the metrics must read it: of panoptic
    data, others read the boxes.
    """
    name = key.replace('dataloader', 'evaluator')
    evaluator = cfg.get(name)
    if isinstance(evaluator, dict) and 'metrics' in evaluator:
        name, evaluator = f'{name}.metrics', evaluator['metrics']
    metrics = {name: evaluator}
    if isinstance(evaluator, list | tuple):
        metrics = {f'{name}.{i}': metric for i, metric in enumerate(evaluator)}
    paths = {
        place: metric['ann_file']
        for place, metric in metrics.items()
        if isinstance(metric, dict) and _is_local(metric.get('ann_file'), metric)
    }
    missing = [
        f'{place}: ann_file {path!r} {absence}, seen from {Path.cwd()}'
        for place, path in paths.items()
        if (absence := _absence(Path(path)))
    ]
    known = {
        Path(dataset.get('data_root') or '', dataset.ann_file)
        for dataset in _local_datasets(cfg[key])
        if _is_local(dataset.get('ann_file'), dataset)
    }
    # mmpretrain has the captions of its data in a file of their own.
    if missing or cfg.get('default_scope') != 'mmdet' or len(known) != 1:
        return missing
    (expected,) = known
    if expected.resolve() in [Path(path).resolve() for path in paths.values()]:
        return []
    return [
        f'{place}: ann_file is {path!r}, expected that of {key}, {str(expected)!r}'
        for place, path in paths.items()
    ]


def unmatched_keys(cfg: Config, model: nn.Module) -> list[str]:
    """Find ``custom_keys`` of the optimizer that are part of no parameter's name."""
    paramwise = cfg.optim_wrapper.get('paramwise_cfg') or {}
    names = [name for name, _ in model.named_parameters()]
    return [
        key for key in paramwise.get('custom_keys') or () if not any(key in name for name in names)
    ]


def check_work_dir(path: str, name: str = 'work dir') -> None:
    """Stop where a folder, which need not exist yet, cannot be written to; messages have its name.

    Raises:
        UserError: If no file can be made there.
    """
    folder = Path(path).absolute()
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f'{name} {path!r} cannot be written to: {folder}: {error.strerror}'
        ) from error


def _local_datasets(node: Any) -> Iterator[ConfigDict]:
    """The configs of datasets below that of a dataloader or of a wrapper."""
    if not isinstance(node, dict):
        return
    for inner in (node.get('dataset'), *(node.get('datasets') or ())):
        local = isinstance(inner, dict) and _is_local(inner.get('data_root') or '', inner)
        if local and not inner.get('download'):
            yield inner
        yield from _local_datasets(inner)


def _absence(path: Path) -> str:
    """Why a path cannot be used, empty where it is there."""
    try:
        return '' if path.exists() else 'does not exist'
    except OSError as error:
        return f'cannot be used: {error.strerror}'


def _is_local(path: Any, node: Any) -> bool:
    return isinstance(path, str) and ':' not in path and not node.get('backend_args')


def _holds(node: Any, value: Any) -> bool:
    if isinstance(node, type(value)) and node == value:
        return True
    if isinstance(node, dict):
        return any(_holds(inner, value) for inner in node.values())
    return isinstance(node, list | tuple) and any(_holds(inner, value) for inner in node)
