"""Stops a run whose datasets are unusable or do not fit the model."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import BaseLoop, Runner

from mmlavit.checks.datasets import (
    base_datasets,
    check_heads,
    check_labels,
    check_samples,
    class_heads,
)
from mmlavit.checks.masks import check_masks
from mmlavit.checks.pipeline import name_files
from mmlavit.registry import HOOKS

__all__ = ['DatasetCheckHook', 'add_dataset_check']


@HOOKS.register_module()
class DatasetCheckHook(Hook):
    """Compare the datasets of a run with their files and with the model before it starts.

    The run stops where a dataset is empty, where a COCO annotation file has an image id twice,
    lacks classes or has them in another order, where a head has another number of classes, and
    where labels or masks hold values beyond the classes. Datasets and heads of another make are not
    checked. Files that cannot be read are named when the run meets them. tools/train.py
    and tools/test.py add this hook; configure it as any other::

        custom_hooks = [dict(type='mmlavit.DatasetCheckHook', num_masks=0)]

    Args:
        num_masks: How many masks of each segmentation dataset are read before the run, evenly
            spaced. With 0, the values of those that the run loads are not looked at either.
    """

    priority = 'VERY_HIGH'

    def __init__(self, num_masks: int = 50) -> None:
        self.num_masks = num_masks

    def before_train(self, runner: Runner) -> None:
        """Check the data to train on and to validate on.

        Raises:
            UserError: If a dataset is unusable or does not fit the model.
        """
        self._check(runner, runner.train_loop)
        self._check(runner, runner.val_loop)

    def before_test(self, runner: Runner) -> None:
        """Check the data to test on.

        Raises:
            UserError: If a dataset is unusable or does not fit the model.
        """
        self._check(runner, runner.test_loop)

    def _check(self, runner: Runner, loop: BaseLoop | None) -> None:
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        heads = class_heads(model).values()
        ignored: set[Any] = {head.ignore_index for head in heads if hasattr(head, 'ignore_index')}
        data = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
        check_samples(data)
        for dataset in base_datasets(data):
            check_heads(model, dataset)
            check_labels(model, dataset)
            check_masks(dataset, ignored or {255}, self.num_masks)
            name_files(dataset, (ignored or {255}) if self.num_masks else None)


def add_dataset_check(runner: Runner) -> None:
    """Register a :class:`DatasetCheckHook`, unless the config has one.

    Args:
        runner: The runner.
    """
    if not any(isinstance(hook, DatasetCheckHook) for hook in runner.hooks):
        runner.register_hook(DatasetCheckHook())
