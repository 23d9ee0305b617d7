"""Stops a run whose data is unusable, does not fit the model, or teaches it nothing."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmlavit.checks.datasets import (
    base_datasets,
    class_heads,
    class_names,
    listing,
    wrong_categories,
    wrong_heads,
    wrong_instances,
    wrong_labels,
    wrong_order,
)
from mmlavit.checks.masks import wrong_masks
from mmlavit.errors import UserError
from mmlavit.registry import HOOKS

__all__ = ['DatasetCheckHook', 'images_of', 'unwrapped']

# Where no image has an instance that counts, the run stops after so many.
IMAGES_WITHOUT_INSTANCE = 50


@HOOKS.register_module()
class DatasetCheckHook(Hook):
    """Compare the datasets of a run with their files and the model, and look at its first step.

    Before it starts, the run stops where a dataset is empty, where a COCO annotation file has an
    image id twice, lacks classes or has them in another order, where splits or a tested checkpoint
    have the classes in different orders, where a head has another number of classes, where labels
    or masks hold values beyond the classes, and where all masks hold the same class. It stops in
    training where the pipeline leaves no instance that counts, where a batch of one image reaches
    a norm as a single value, and where all gradients of the first step are 0. Datasets and heads
    of another make are not checked.

    Args:
        num_masks: How many masks of each segmentation dataset are read before the run, evenly
            spaced. With 0, none is.
    """

    priority = 'VERY_HIGH'

    def __init__(self, num_masks: int = 50) -> None:
        self.num_masks = num_masks
        self._learned: Any = None
        self._images = 0
        self._watched: list[Any] = []

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Remember the classes that were learned."""
        meta = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
        self._learned = meta.get('classes')

    def before_train(self, runner: Runner) -> None:
        """Check the data to train on and to validate on.

        Raises:
            UserError: With the first thing that is wrong.
        """
        for problem in chain(self.problems(runner, 'train'), self.problems(runner, 'val')):
            raise UserError(problem)
        self._images = 0
        if isinstance(runner.optim_wrapper, OptimWrapper):
            self._watch_gradients(unwrapped(runner.model), runner.optim_wrapper.optimizer)

    def before_test(self, runner: Runner) -> None:
        """Check the data to test on.

        Raises:
            UserError: With the first thing that is wrong.
        """
        for problem in self.problems(runner, 'test'):
            raise UserError(problem)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict[str, Any] | None = None
    ) -> None:
        """Look at what a batch holds.

        Raises:
            UserError: If the pipeline ignores all instances of the first images.
        """
        if self._images < IMAGES_WITHOUT_INSTANCE:
            self._count_instances(runner, data_batch)
        if images_of(data_batch) == 1:
            model = unwrapped(runner.model)
            self._watched = [
                module.register_forward_pre_hook(_watch(name))
                for name, module in model.named_modules()
                if isinstance(module, _BatchNorm)
                and not (isinstance(module, nn.SyncBatchNorm) and runner.world_size > 1)
            ]

    def after_train_iter(self, *args: Any, **kwargs: Any) -> None:
        """Let go of the norms."""
        for handle in self._watched:
            handle.remove()
        self._watched = []

    def problems(self, runner: Runner, split: str) -> Iterator[str]:
        """Compare the data of a split with its files, the model and the data of training."""
        model, learned = unwrapped(runner.model), None
        if split == 'val':
            learned = next(map(class_names, base_datasets(_data(runner.train_loop))), None)
        for dataset in base_datasets(_data(getattr(runner, f'{split}_loop'))):
            wrong = list(wrong_categories(dataset))
            yield from wrong
            if wrong:
                continue
            yield from wrong_order(dataset, learned, 'the data to train on')
            if split == 'test':
                yield from wrong_order(dataset, self._learned, 'the checkpoint')
            yield from wrong_heads(model, dataset)
            yield from wrong_labels(model, dataset)
            if split == 'train':
                yield from wrong_instances(dataset)
            yield from wrong_masks(dataset, self.num_masks, split == 'train')

    def _count_instances(self, runner: Runner, batch: dict[str, Any] | None) -> None:
        samples = batch.get('data_samples') if isinstance(batch, dict) else None
        if not isinstance(samples, list) or any(
            len(getattr(sample, 'gt_instances', 'other')) for sample in samples
        ):
            self._images = IMAGES_WITHOUT_INSTANCE
            return
        self._images += len(samples)
        paths = {sample.get('img_path') for sample in samples}
        ignored = sum(len(getattr(sample, 'ignored_instances', ())) for sample in samples)
        if not ignored and self._images < IMAGES_WITHOUT_INSTANCE:
            return
        listed = [
            instance
            for dataset in base_datasets(_data(runner.train_loop))
            if hasattr(dataset, 'get_data_info')
            for info in map(dataset.get_data_info, range(len(dataset)))
            if info.get('img_path') in paths
            for instance in info.get('instances', ())
            if not instance.get('ignore_flag')
        ]
        if listed:
            text = f'{len(listed)} annotations of {listing(sorted(map(str, paths)), 3)} count, and '
            text += 'the pipeline ignores or drops them all'
            if ignored and any(isinstance(instance.get('mask'), dict) for instance in listed):
                text += '; LoadAnnotations(poly2mask=False) ignores run-length masks: set '
                text += 'poly2mask=True'
            raise UserError(text)

    def _watch_gradients(self, model: nn.Module, optimizer: Any) -> None:
        # torch goes through its hooks while they run, so this one cannot remove itself.
        looked = False

        def look(optimizer: Any, *_: Any) -> None:
            nonlocal looked
            if looked:
                return
            looked = True
            values = (p.grad for group in optimizer.param_groups for p in group['params'])
            if any(bool(grad.any()) for grad in values if grad is not None):
                return
            text = 'all gradients of the first step are 0: the model learns nothing from its losses'
            single = [name for name, head in class_heads(model).items() if head.num_classes == 1]
            if single:
                text += f'; {", ".join(single)}: one class has nothing to be told apart from under '
                text += 'a softmax: name the background as a class, or use a sigmoid'
            raise UserError(text)

        optimizer.register_step_pre_hook(look)


def images_of(batch: Any) -> int | None:
    """How many images a batch of a dataloader holds, ``None`` where that is not known."""
    inputs: Any = batch.get('inputs') if isinstance(batch, dict) else None
    return len(inputs) if hasattr(inputs, 'shape') or isinstance(inputs, list | tuple) else None


def unwrapped(model: Any) -> nn.Module:
    """The model without its wrappers."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def _data(loop: BaseLoop | None) -> Any:
    return getattr(getattr(loop, 'dataloader', None), 'dataset', None)


def _watch(name: str) -> Any:
    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        values = inputs[0]
        if module.training and values.numel() == values.shape[1]:
            raise UserError(
                f'{name} ({type(module).__name__}) averages over the batch, and has one value a '
                'channel of a batch of one image; set train_dataloader.batch_size to 2 or more, '
                'and drop_last=True where an epoch ends in one image'
            )

    return look
